//! Options of the commands that tell what is wrong: `causeway doctor`, `trace`, `drops`, `flows`, `explain`, `capture` and
//! `connectivity`.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{AgentArgs, Output, ServerArgs};
use crate::ends::{Ends, FormError, NAMESPACE, Name};
use crate::explain::{Question, Vantage};
use crate::trace_cli;

/// Options of `causeway doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Which agent is asked.
    #[command(flatten)]
    pub agent: AgentArgs,
    /// Have the agent put right what it can: what differs from its plans, and pods' devices
    #[arg(long)]
    pub fix: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

/// Who sends, and to whom.
#[derive(Debug, Args)]
pub struct EndsArgs {
    /// Who sends, and to whom: SRC DST[:PORT][/PROTO], or 'SRC -> DST[:PORT][/PROTO]'
    #[arg(required = true, num_args = 1..=3, value_name = "END")]
    words: Vec<String>,
    /// The Kubernetes namespace of names that have none
    #[arg(short, long, value_name = "NAMESPACE", default_value = NAMESPACE)]
    pub namespace: String,
}

impl EndsArgs {
    /// Both ends.
    ///
    /// # Errors
    /// When they have no form that is known.
    pub fn parse(&self) -> Result<Ends, FormError> {
        Ends::parse(&self.namespace, &self.words)
    }

    /// The question what becomes of such a packet.
    ///
    /// # Errors
    /// When the ends have no form that is known.
    pub fn question(&self) -> Result<Question, FormError> {
        let Ends { source, destination } = self.parse()?;
        Ok(Question {
            source: source.to_string(),
            destination: destination.to_string(),
            vantage: Vantage::default(),
        })
    }
}

/// Options of `causeway trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Who sends, and to whom.
    #[command(flatten)]
    pub ends: EndsArgs,
    /// Send one: a TCP connection, or a UDP datagram, from a socket in the sender's network namespace and cgroup; to port 53 a
    /// question
    #[arg(long)]
    pub inject: bool,
    /// Where --inject sends from: a name of `ip netns`, or a path; where the sender's address is by default
    #[arg(long, value_name = "NAME", requires = "inject")]
    pub netns: Option<String>,
    /// How long to wait for the first packet, for example 30s or 500ms
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = trace_cli::duration)]
    pub timeout: Duration,
    /// How long to follow the connection after its first packet; until its reply by default, one second at the most
    #[arg(long = "for", value_name = "TIME", value_parser = trace_cli::duration)]
    pub duration: Option<Duration>,
    /// Also packets from this one, whose address may stand in the place of the sender's: node/NAME for a node that
    /// masquerades; may be given again
    #[arg(long, value_name = "END")]
    pub also_from: Vec<String>,
    /// See only what happens in the node's network namespace and in those of its pods: where several nodes share a machine,
    /// as those of `causeway up` do, what the one of --config would see on a machine of its own
    #[arg(long)]
    pub own_namespaces: bool,
    /// Configuration of an agent of this machine, whose pods have names and which is asked for others; may be given again
    /// for further ones [default: /etc/causeway/node.yaml, else those of `causeway up`]
    #[arg(long, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// Tell all packets, also those that close a connection which works, and how long it took to attach and to detach
    #[arg(short, long)]
    pub verbose: bool,
    /// Form of the output; ndjson: that it follows packets, each hop as it is seen, and the story
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Stream,
}

/// Forms of output that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stream {
    /// For people.
    Text,
    /// For programs, as a whole.
    Json,
    /// For programs, a line for each.
    Ndjson,
}

/// Options of `causeway drops`.
#[derive(Debug, Args)]
pub struct DropsArgs {
    /// How long to count, for example 30s or 2m; 10s by default, with --follow until it is ended
    #[arg(long = "for", value_name = "TIME", value_parser = trace_cli::duration)]
    pub duration: Option<Duration>,
    /// Tell each second what was dropped in it
    #[arg(short, long)]
    pub follow: bool,
    /// The Kubernetes namespace of --pod where it names none; without --pod only what is dropped of its pods, whichever way
    /// it went
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Only what is dropped of this pod: NAME, of --namespace or default, or NAMESPACE/NAME
    #[arg(long)]
    pub pod: Option<String>,
    /// Also what is part of normal traffic
    #[arg(short, long)]
    pub all: bool,
    /// Configuration of an agent of this machine, whose pods have names; may be given again for further ones
    #[arg(long, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Stream,
}

impl DropsArgs {
    /// Which pod.
    ///
    /// # Errors
    /// When it is none.
    pub fn pod(&self) -> Result<Option<Name>, FormError> {
        let Some(text) = &self.pod else { return Ok(None) };
        let mut kinds = ["pod/", "pods/", "po/"].into_iter();
        let name = kinds.find_map(|kind| text.strip_prefix(kind)).unwrap_or(text);
        let text = format!("pod/{name}");
        let name = Name::parse_in(self.namespace.as_deref().unwrap_or(NAMESPACE), &text)?;
        match (&name.port, &name.protocol) {
            (None, None) => Ok(Some(name)),
            _ => Err(FormError::Form(text)),
        }
    }
}

/// What became of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FlowsVerdict {
    /// They were handed on.
    #[value(name = "FORWARDED")]
    Forwarded,
    /// They were dropped.
    #[value(name = "DROPPED")]
    Dropped,
}

/// Options of `causeway flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// How long to count, for example 30s or 2m; 10s by default, with --follow until it is ended
    #[arg(long = "for", value_name = "TIME", value_parser = trace_cli::duration)]
    pub duration: Option<Duration>,
    /// Tell each second what passed in it
    #[arg(short, long)]
    pub follow: bool,
    /// Only what this end sends: pod/NAME, pod/NAMESPACE/NAME, svc/NAME, node/NAME, NAME, an address, a DNS name, with
    /// :PORT and /PROTO
    #[arg(long, value_name = "END")]
    from: Option<String>,
    /// Only what is sent to this end
    #[arg(long, value_name = "END")]
    to: Option<String>,
    /// Only what is sent to this Service or its endpoints, and the replies: NAME, NAME.NAMESPACE or NAMESPACE/NAME, with
    /// :PORT
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// The Kubernetes namespace of names that have none, else default; where there is no name, only what its pods send and
    /// get, and what is sent to its Services
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Only packets of which this became
    #[arg(long, value_enum, ignore_case = true)]
    pub verdict: Option<FlowsVerdict>,
    /// Configuration of an agent of this machine, whose pods have names; may be given again for further ones
    #[arg(long, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Stream,
}

impl FlowsArgs {
    /// Who sends.
    ///
    /// # Errors
    /// When it has no form that is known.
    pub fn from(&self) -> Result<Option<Name>, FormError> {
        self.end(self.from.as_deref())
    }

    /// To whom.
    ///
    /// # Errors
    /// When it has no form that is known.
    pub fn to(&self) -> Result<Option<Name>, FormError> {
        self.end(self.to.as_deref())
    }

    /// Of which Service.
    ///
    /// # Errors
    /// When it has no form that is known.
    pub fn service(&self) -> Result<Option<Name>, FormError> {
        let name = self.service.as_deref();
        let name = name.map(|name| format!("svc/{}", name.strip_prefix("svc/").unwrap_or(name)));
        self.end(name.as_deref())
    }

    /// The namespace of names that have none.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(NAMESPACE)
    }

    /// The namespace whose flows are meant, where no name says whose.
    #[must_use]
    pub fn of_namespace(&self) -> Option<&str> {
        let has_names = self.from.is_some() || self.to.is_some() || self.service.is_some();
        self.namespace.as_deref().filter(|_| !has_names)
    }

    fn end(&self, text: Option<&str>) -> Result<Option<Name>, FormError> {
        text.map(|text| Name::parse_in(self.namespace(), text))
            .transpose()
    }
}

/// Options of `causeway explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Who sends, and to whom.
    #[command(flatten)]
    pub ends: EndsArgs,
    /// Which agent is asked.
    #[command(flatten)]
    pub agent: AgentArgs,
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

/// Options of `causeway capture`.
#[derive(Debug, Args)]
pub struct CaptureArgs {
    /// Whose packets: pod/NAME, pod/NAMESPACE/NAME, svc/NAME:PORT, node/NAME, NAME, an address or a DNS name, with
    /// [:PORT][/PROTO] where --to is not given
    #[arg(value_name = "END")]
    end: String,
    /// Only those to and from this one: END[:PORT][/PROTO]; may be given again for its other addresses
    #[arg(long, value_name = "END")]
    to: Vec<String>,
    /// The file, or - for standard output; without it a line is printed for each packet
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// How long to capture, for example 10s; until it is interrupted by default
    #[arg(long = "for", value_name = "TIME", value_parser = trace_cli::duration)]
    pub duration: Option<Duration>,
    /// How many packets to capture, of all devices together
    #[arg(long, value_name = "NUMBER")]
    pub count: Option<NonZeroU64>,
    /// How many bytes of a packet are kept
    #[arg(long, value_name = "BYTES", default_value = "128")]
    pub snaplen: u32,
    /// Also what the kernel drops of these packets, with its reason. Needs Linux 5.17 or newer with BTF
    #[arg(long)]
    pub drops: bool,
    /// Configuration of an agent of this machine, whose pods have names and which is asked for others; may be given again
    /// for further ones [default: /etc/causeway/node.yaml, else those of `causeway up`]
    #[arg(long, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// The Kubernetes namespace of names that have none
    #[arg(short, long, value_name = "NAMESPACE", default_value = NAMESPACE)]
    pub namespace: String,
    /// Form of the lines that are printed without --write; ndjson is a line of JSON for each packet
    #[arg(short, long, value_enum, default_value = "text", conflicts_with = "write")]
    pub output: Lines,
}

/// Forms of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Lines {
    /// For people.
    Text,
    /// For programs. `json` is its name from before.
    #[value(alias = "json")]
    Ndjson,
}

impl CaptureArgs {
    /// Whose packets.
    ///
    /// # Errors
    /// When it has no form that is known.
    pub fn end(&self) -> Result<Name, FormError> {
        Name::parse_in(&self.namespace, &self.end)
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// When one has no form that is known.
    pub fn others(&self) -> Result<Vec<Name>, FormError> {
        let others = self.to.iter();
        others.map(|to| Name::parse_in(&self.namespace, to)).collect()
    }

    /// Both as they were written.
    #[must_use]
    pub fn what(&self) -> String {
        let ends = [&self.end].into_iter().chain(&self.to);
        ends.map(String::as_str).collect::<Vec<_>>().join(" and ")
    }
}

/// Options of `causeway connectivity`.
#[derive(Debug, Args)]
pub struct ConnectivityArgs {
    /// How the cluster is reached.
    #[command(flatten)]
    pub server: ServerArgs,
    /// The nodes, in place of the first two that are ready and without taints
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub nodes: Vec<String>,
    /// The image of the pods
    #[arg(long, value_name = "NAME", default_value = "causeway/testserver:v1")]
    pub image: String,
    /// How the name of the namespace begins
    #[arg(long, value_name = "TEXT", default_value = "causeway-connectivity-")]
    pub namespace_prefix: String,
    /// How long the pods may take to be ready, for example 30s
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = trace_cli::duration)]
    pub timeout: Duration,
    /// Also open a connection to this HOST:PORT from a pod on each node; may be given again for further ones
    #[arg(long, value_name = "ADDRESS")]
    pub external: Vec<String>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn trace_and_explain_read_both_ends_alike() {
        for words in [
            &["pod/client -> svc/web:http"][..],
            &["pod/client", "svc/web:http"],
            &["pod/client", "to", "svc/web:http"],
        ] {
            let ends = |command: &'static str| {
                let line = [&["causeway", command], words, &["-o", "json"]].concat();
                match Cli::try_parse_from(line).expect("valid").command {
                    Command::Trace(args) => args.ends.parse().expect("ends").to_string(),
                    Command::Explain(args) => {
                        let Question {
                            source, destination, ..
                        } = args.ends.question().expect("a question");
                        format!("{source} -> {destination}")
                    }
                    other => panic!("{other:?}"),
                }
            };
            let expected = "pod/default/client -> svc/default/web:http";
            assert_eq!(["trace", "explain"].map(ends), [expected; 2], "{words:?}");
        }
    }
}
