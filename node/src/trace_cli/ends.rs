//! Who sends to whom, as it is typed.

use std::fmt;
use std::net::{IpAddr, ToSocketAddrs};
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use model::ObjectName;
use trace::Filter;
use trace::hop::Protocol;

use super::pods::Pods;

/// Both ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    source: End,
    target: End,
    port: Option<u16>,
    protocol: Option<Protocol>,
}

/// An end.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Any,
    Address(IpAddr),
    Pod(ObjectName),
    Host(String),
}

impl Ends {
    /// Reads `SRC DST`, `SRC to DST` and `SRC -> DST`, whether it is one word for the shell or several.
    pub(super) fn parse(words: &[String]) -> anyhow::Result<Self> {
        let text = words.join(" ");
        let words: Vec<&str> = text
            .split([' ', '\t'])
            .flat_map(|word| word.split("->"))
            .filter(|word| !word.is_empty() && *word != "to")
            .collect();
        let [source, target] = words.as_slice() else {
            bail!("{text}: say who sends and to whom, as in: pod/client 10.96.0.10:80/tcp");
        };
        let (rest, protocol) = split_protocol(target);
        let (target, port) = split_port(rest)?;
        ensure!(
            port.is_none() || protocol.is_none_or(Protocol::has_ports),
            "{target}: only TCP and UDP have ports that can be followed"
        );
        Ok(Self {
            source: source.parse()?,
            target: target.parse()?,
            port,
            protocol,
        })
    }

    /// Whose packets these are.
    pub(super) fn filter(&self, pods: &Pods) -> anyhow::Result<Filter> {
        let targets = self.target.addresses(pods)?;
        let filter = Filter {
            sources: self.source.addresses(pods)?,
            targets: targets.into_iter().map(|address| (address, self.port)).collect(),
            protocol: self.protocol,
            ..Filter::default()
        };
        ensure!(
            !filter.sources.is_empty() || !filter.targets.is_empty(),
            "one of the ends must be somebody: all packets of a machine are too many"
        );
        ensure!(
            self.port.is_none() || !filter.targets.is_empty(),
            "a port needs an address before it"
        );
        Ok(filter)
    }
}

impl End {
    /// None: anybody.
    fn addresses(&self, pods: &Pods) -> anyhow::Result<Vec<IpAddr>> {
        match self {
            Self::Any => Ok(Vec::new()),
            Self::Address(address) => Ok(vec![*address]),
            Self::Pod(name) => pods.addresses(name),
            Self::Host(name) => {
                let found = (name.as_str(), 0).to_socket_addrs();
                let found = found.with_context(|| format!("find the address of host {name}"))?;
                let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
                addresses.sort_unstable();
                addresses.dedup();
                Ok(addresses)
            }
        }
    }
}

impl FromStr for End {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if let Ok(address) = text.trim_matches(['[', ']']).parse() {
            return Ok(Self::Address(address));
        }
        match text.split('/').collect::<Vec<_>>().as_slice() {
            ["any"] => Ok(Self::Any),
            ["pod", name] if !name.is_empty() => Ok(Self::Pod(pod("default", name))),
            ["pod", namespace, name] if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self::Pod(pod(namespace, name)))
            }
            ["svc" | "service" | "node", ..] => bail!(
                "{text}: Services and nodes cannot be named yet; their addresses can (kubectl get services, nodes -o wide)"
            ),
            [name] if !name.is_empty() => Ok(Self::Host((*name).to_owned())),
            _ => bail!(
                "{text} is no end: pod/NAME, pod/NAMESPACE/NAME, an address, a host's name or any is one"
            ),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Pod(name) => write!(f, "pod/{name}"),
            Self::Host(name) => f.write_str(name),
        }
    }
}

fn pod(namespace: &str, name: &str) -> ObjectName {
    ObjectName {
        namespace: namespace.into(),
        name: name.into(),
    }
}

/// Takes `/tcp` from the end. A pod may be called `tcp`: what stands directly behind its kind is a name.
fn split_protocol(text: &str) -> (&str, Option<Protocol>) {
    let Some((rest, last)) = text.rsplit_once('/') else {
        return (text, None);
    };
    let protocol = match last.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::TCP,
        "udp" => Protocol::UDP,
        "icmp" => Protocol::ICMP,
        "icmpv6" => Protocol::ICMP_V6,
        "sctp" => Protocol::SCTP,
        _ => return (text, None),
    };
    if rest == "pod" {
        (text, None)
    } else {
        (rest, Some(protocol))
    }
}

/// Takes `:80` from the end. Addresses of IPv6 have brackets where a port follows.
fn split_port(text: &str) -> anyhow::Result<(&str, Option<u16>)> {
    let Some((rest, last)) = text.rsplit_once(':') else {
        return Ok((text, None));
    };
    let is_address = text.parse::<IpAddr>().is_ok() || last.ends_with(']');
    if is_address {
        return Ok((text, None));
    }
    match last.parse() {
        Ok(port) if port > 0 => Ok((rest, Some(port))),
        _ => bail!("{last} in {text} is no port: a number from 1 to 65535 is one"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<Ends> {
        Ends::parse(&[text.to_owned()])
    }

    #[test]
    fn ends_are_read_in_every_form_in_which_they_are_typed() {
        let rows = [
            (
                "pod/a 10.96.0.10:80",
                "pod/default/a",
                "10.96.0.10",
                Some(80),
                None,
            ),
            (
                "pod/shop/a -> 10.96.0.10:53/udp",
                "pod/shop/a",
                "10.96.0.10",
                Some(53),
                Some(Protocol::UDP),
            ),
            (
                "any->[fd00::1]:80/TCP",
                "any",
                "fd00::1",
                Some(80),
                Some(Protocol::TCP),
            ),
            ("fd00::2 to fd00::1", "fd00::2", "fd00::1", None, None),
            (
                "10.0.0.1 to pod/b/icmp",
                "10.0.0.1",
                "pod/default/b",
                None,
                Some(Protocol::ICMP),
            ),
            ("any pod/tcp", "any", "pod/default/tcp", None, None),
            (
                "any pod/ns/b:8080/tcp",
                "any",
                "pod/ns/b",
                Some(8080),
                Some(Protocol::TCP),
            ),
            (
                "pod/a example.org:443",
                "pod/default/a",
                "example.org",
                Some(443),
                None,
            ),
        ];
        for (text, source, target, port, protocol) in rows {
            let ends = parse(text).expect(text);
            let found = (
                ends.source.to_string(),
                ends.target.to_string(),
                ends.port,
                ends.protocol,
            );
            assert_eq!(
                found,
                (source.to_owned(), target.to_owned(), port, protocol),
                "{text}"
            );
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_can() {
        let rows = [
            ("pod/a", "say who sends and to whom"),
            ("a b c", "say who sends and to whom"),
            ("any svc/web:80", "Services and nodes cannot be named yet"),
            ("any 10.0.0.1:0", "0 in 10.0.0.1:0 is no port"),
            ("any 10.0.0.1:http", "http in 10.0.0.1:http is no port"),
            ("any pod/a/b/c", "pod/a/b/c is no end"),
            ("any pod/", "pod/ is no end"),
            ("any 10.0.0.1:80/icmp", "only TCP and UDP have ports"),
        ];
        for (text, part) in rows {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let nobody = parse("any any").expect("ends").filter(&Pods::default());
        assert!(nobody.expect_err("too many").to_string().contains("too many"));
    }
}
