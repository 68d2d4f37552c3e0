//! `causeway dns query`: an answer of the server, and why it is that.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, bail};
use dns::client::{Question, Reply, ask};
use dns::corefile::{Corefile, Scheme, ServerBlock};
use dns::explain::Explanation;
use serde_json::json;

use crate::cli::{DnsQueryArgs, Output};
use crate::logs::printable;

const PORT: u16 = 53;

/// An answer, and who was asked.
#[derive(Debug)]
pub struct Answered {
    server: SocketAddr,
    reply: Reply,
}

/// Asks.
///
/// # Errors
/// When there is no such question, or nobody answers it.
pub async fn query(args: &DnsQueryArgs) -> anyhow::Result<Answered> {
    let question = Question::parse(&args.name, args.qtype.as_deref())?;
    let server = match &args.server {
        Some(text) => address(text)?,
        None => {
            // Where the server listens does not depend on plugins that it passes over.
            let corefile = Corefile::read_again(&args.conf, true);
            let corefile = corefile.context("find the server by its Corefile")?;
            server_of(&corefile, &question)?
        }
    };
    let reply = ask(server, &question).await?;
    Ok(Answered { server, reply })
}

/// `10.96.0.10`, `10.96.0.10:1053`, `fd00::a`, `[fd00::a]:1053`.
fn address(text: &str) -> anyhow::Result<SocketAddr> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let ip: IpAddr = text
        .trim_matches(['[', ']'])
        .parse()
        .with_context(|| format!("{text:?} is no address like 10.96.0.10 or [fd00::a]:53"))?;
    Ok(SocketAddr::new(ip, PORT))
}

/// Where the block listens that serves the name, as the server chooses it: by the longest zone.
fn server_of(corefile: &Corefile, question: &Question) -> anyhow::Result<SocketAddr> {
    let keys = corefile
        .blocks
        .iter()
        .flat_map(|block| block.keys.iter().map(move |key| (block, key)));
    let plain = keys.filter(|(_, key)| key.scheme == Scheme::Dns);
    let serving = plain.filter(|(_, key)| question.name.is_within(&key.zone));
    let Some((block, key)) = serving.max_by_key(|(_, key)| key.zone.label_count()) else {
        bail!("no server block of the Corefile serves {}", question.name);
    };
    Ok(SocketAddr::new(listens_at(block), key.port))
}

fn listens_at(block: &ServerBlock) -> IpAddr {
    let bound = block.bind.first().filter(|address| !address.is_unspecified());
    bound.copied().unwrap_or(Ipv4Addr::LOCALHOST.into())
}

impl Answered {
    /// Whether there are records of that name and type.
    pub fn is_empty(&self) -> bool {
        self.reply.code != "NOERROR" || self.reply.answers.is_empty()
    }

    /// What there is to say, in the form that was asked for.
    pub fn render(&self, output: Output) -> String {
        match output {
            Output::Text => self.text(),
            Output::Json => {
                let mut json = json!(self.reply);
                json["server"] = self.server.to_string().into();
                format!("{json:#}\n")
            }
        }
    }

    fn text(&self) -> String {
        let Reply {
            code,
            answers,
            authorities,
            additionals,
            bytes,
            microseconds,
            explanation,
        } = &self.reply;
        let mut text = String::new();
        let records = answers.iter().chain(authorities).chain(additionals);
        for record in records {
            let _infallible = writeln!(text, "{}", printable(record));
        }
        let is_nodata = code == "NOERROR" && answers.is_empty();
        let meaning = if is_nodata { " (no such record)" } else { "" };
        let _infallible = writeln!(
            text,
            "answer   {code}{meaning}, {bytes} bytes in {microseconds} µs"
        );
        let _infallible = writeln!(text, "server   {}", self.server);
        match explanation {
            None if code == "REFUSED" => text.push_str("block    none serves this name\n"),
            None => text.push_str("block    not told (by another server, or to another machine)\n"),
            Some(explanation) => explained(&mut text, explanation),
        }
        text
    }
}

fn explained(text: &mut String, explanation: &Explanation) {
    let Explanation {
        block,
        plugin,
        instead,
        object,
        objects_from,
    } = explanation;
    let plugin = match plugin.as_str() {
        "" => "none: the end of the block",
        plugin => plugin,
    };
    let rows = [
        ("block", Some(block.as_str())),
        ("asked", instead.as_deref()),
        ("plugin", Some(plugin)),
        ("object", object.as_deref()),
        ("told by", objects_from.as_deref()),
    ];
    for (title, value) in rows {
        if let Some(value) = value {
            let _infallible = writeln!(text, "{title:<8} {}", printable(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(text: &str, name: &str) -> String {
        let corefile = Corefile::parse("Corefile", text, &|_| None).expect("a Corefile");
        let question = Question::parse(name, None).expect("a question");
        match server_of(&corefile, &question) {
            Ok(server) => server.to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_server_is_found_by_the_block_that_serves_the_name() {
        let node = ".:53 {\n bind 10.96.0.10\n whoami\n}";
        let two = "cluster.local:1053 {\n whoami\n}\na.cluster.local:54 {\n bind 0.0.0.0\n whoami\n}";
        for (text, name, expected) in [
            (node, "x.cluster.local", "10.96.0.10:53"),
            (two, "x.cluster.local", "127.0.0.1:1053"),
            (two, "x.a.cluster.local", "127.0.0.1:54"),
            (
                two,
                "example.com",
                "no server block of the Corefile serves example.com.",
            ),
        ] {
            assert_eq!(find(text, name), expected, "{name}");
        }
    }

    #[test]
    fn a_server_is_an_address_with_a_port_or_without() {
        for (text, expected) in [
            ("10.96.0.10", Some("10.96.0.10:53")),
            ("10.96.0.10:1053", Some("10.96.0.10:1053")),
            ("fd00::a", Some("[fd00::a]:53")),
            ("[fd00::a]", Some("[fd00::a]:53")),
            ("[fd00::a]:54", Some("[fd00::a]:54")),
            ("dns.example", None),
        ] {
            let found = address(text).ok().map(|address| address.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }
}
