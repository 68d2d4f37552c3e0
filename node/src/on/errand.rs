//! What may run on other nodes, and what is known of it beforehand.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser as _;
use clap::error::{ContextKind, ContextValue};
use model::ObjectName;

use super::addressed::addressed;
use super::cluster::Places;
use super::traced::Traced;
use crate::cli::{
    CaptureArgs, Cli, Command, DropsArgs, FlowsArgs, Lines, NodeCommand, Output, Stream, TraceArgs,
    VersionArgs,
};
use crate::ends::{Ends, FormError, NAMESPACE, Subject};

/// What runs on other nodes, for people.
const THERE: &str = "doctor, explain, trace, drops, flows, capture, node config print and check, and version";

/// An agent that lives answers `doctor` and `explain` within this time, or is told to be silent.
const ANSWER: Duration = Duration::from_secs(40);

/// How long `drops` and `flows` count where nobody says.
const COUNTED: Duration = Duration::from_secs(10);

/// How long `trace` follows a connection where nobody says.
pub(super) const FOLLOWED: Duration = Duration::from_secs(1);

/// A command for other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errand {
    /// The command line as it is run there, without the program.
    pub words: Vec<String>,
    /// What it says on standard output.
    pub form: Form,
    /// The longest time that it takes by itself; `None` = until it is ended.
    pub lasts: Option<Duration>,
    /// Whom it names.
    pub ends: Vec<Subject>,
    /// A trace: several nodes tell it as one story.
    pub trace: Option<Traced>,
    /// Where names are that say none.
    namespace: String,
    /// It looks at the nodes of each of them, and not at that of the first alone.
    pub of_each: bool,
}

/// What a command says on standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// Text for people, that is complete at the end.
    Text,
    /// The same, line by line as something happens.
    Lines,
    /// One document.
    Json,
    /// Documents, each on a line.
    JsonLines,
    /// A capture, for this file here, or for standard output.
    Packets(Option<PathBuf>),
}

/// Why a command does not run on other nodes.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is none.
    #[error("{0}")]
    Usage(clap::Error),
    /// There is no such command.
    #[error("{command} is no command of causeway{}. What runs on other nodes: {THERE}", suggestion(.similar))]
    Unknown {
        /// What was said.
        command: String,
        /// Commands whose names are similar.
        similar: Vec<String>,
    },
    /// An end is not understood.
    #[error(transparent)]
    Ends(#[from] FormError),
    /// It is not for that.
    #[error("{command} is not for other nodes: {why}. What is: {THERE}")]
    NotThere {
        /// Which.
        command: String,
        /// Why.
        why: &'static str,
    },
}

impl Errand {
    /// Reads a command line.
    ///
    /// # Errors
    /// When it is none, or is not for other nodes.
    pub fn parse(words: &[String]) -> Result<Self, Refused> {
        let line = std::iter::once("causeway".to_owned()).chain(words.iter().cloned());
        let command = Cli::try_parse_from(line).map_err(|error| match error.kind() {
            clap::error::ErrorKind::InvalidSubcommand => unknown(words, &error),
            _ => Refused::Usage(error),
        });
        let command = command?.command;
        let (form, lasts, ends) = match &command {
            Command::Doctor(args) => (whole(args.output), Some(ANSWER), Vec::new()),
            Command::Explain(args) => {
                let Ends {
                    source, destination, ..
                } = args.ends.parse()?;
                (
                    whole(args.output),
                    Some(ANSWER),
                    vec![source, destination.subject],
                )
            }
            Command::Trace(args) => trace(args)?,
            Command::Drops(args) => drops(args)?,
            Command::Flows(args) => flows(args)?,
            Command::Capture(args) => capture(args)?,
            Command::Version(VersionArgs { output }) => (whole(*output), Some(Duration::ZERO), Vec::new()),
            Command::Node(node) if matches!(node.command, Some(NodeCommand::Config(_))) => {
                (Form::Text, Some(Duration::ZERO), Vec::new())
            }
            other => {
                return Err(Refused::NotThere {
                    command: name(words),
                    why: reason(other),
                });
            }
        };
        let words = match form {
            Form::Packets(Some(_)) => to_standard_output(words),
            _ => words.to_vec(),
        };
        Ok(Self {
            words,
            form,
            lasts,
            ends,
            trace: match &command {
                Command::Trace(args) => Traced::of(args)?,
                _ => None,
            },
            namespace: namespace(&command).to_owned(),
            of_each: matches!(command, Command::Capture(_)),
        })
    }
}

impl Errand {
    /// The command line for a node, where pods of others are named by their addresses ([`addressed`]).
    #[must_use]
    pub fn words_on(&self, node: &str, places: &Places) -> Vec<String> {
        // Whose drops are told is asked by name.
        if self.words.first().is_some_and(|command| command == "drops") {
            return self.words.clone();
        }
        addressed(&self.words, &self.namespace, |pod| elsewhere(pod, node, places))
    }
}

/// The address of a pod that is on another node.
pub(super) fn elsewhere(pod: &ObjectName, node: &str, places: &Places) -> Option<IpAddr> {
    match places.get(pod) {
        Some(Ok(place)) if place.node != node => place.address,
        _ => None,
    }
}

/// That of names that have none.
fn namespace(command: &Command) -> &str {
    match command {
        Command::Explain(args) => &args.ends.namespace,
        Command::Trace(args) => &args.ends.namespace,
        Command::Flows(args) => args.namespace(),
        Command::Capture(args) => &args.namespace,
        _ => NAMESPACE,
    }
}

fn unknown(words: &[String], error: &clap::Error) -> Refused {
    let said = match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(said)) => said.as_str(),
        _ => "",
    };
    // As deep as it was understood: arguments behind it are no part of its name.
    let depth = words.iter().position(|word| word == said).map_or(1, |at| at + 1);
    let similar = match error.get(ContextKind::SuggestedSubcommand) {
        Some(ContextValue::String(one)) => vec![one.clone()],
        Some(ContextValue::Strings(several)) => several.clone(),
        _ => Vec::new(),
    };
    Refused::Unknown {
        command: name(&words[..depth.min(words.len())]),
        similar,
    }
}

fn suggestion(commands: &[String]) -> String {
    match commands {
        [] => String::new(),
        [one] => format!("; a similar one is {one}"),
        several => format!("; similar ones are {}", several.join(", ")),
    }
}

/// Words before the first option, `node cleanup` for one.
fn name(words: &[String]) -> String {
    let words = words.iter().take_while(|word| !word.starts_with('-'));
    words.take(2).map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// Why it is not for other nodes. All others are handled before.
fn reason(command: &Command) -> &'static str {
    match command {
        Command::Up(_) | Command::Down(_) | Command::Status(_) | Command::Image(_) => {
            "it is about a cluster that `causeway up` made, on the machine where that runs"
        }
        Command::Node(node) => match node.command {
            None => "an agent runs there already",
            _ => "it changes the node",
        },
        Command::Dns(_) => {
            "the DNS server's pod has its Corefile, as in: kubectl exec -n causeway POD -- causeway dns query NAME"
        }
        Command::Connectivity(_) => "it asks the cluster by itself, so run it here",
        Command::Migrate(_) => "it reads files of the machine where it runs",
        Command::Bundle(_) => {
            "it is a file, as in: kubectl exec -n causeway POD -c agent -- causeway bundle -o - > FILE"
        }
        Command::Bench(_) => "it measures the machine where it runs, and wants nothing else there",
        Command::On(_) => "name all nodes at once",
        Command::Doctor(_)
        | Command::Explain(_)
        | Command::Trace(_)
        | Command::Drops(_)
        | Command::Flows(_)
        | Command::Capture(_)
        | Command::Version(_) => "it cannot be",
    }
}

type Known = (Form, Option<Duration>, Vec<Subject>);

fn trace(args: &TraceArgs) -> Result<Known, Refused> {
    let Ends {
        source, destination, ..
    } = args.ends.parse()?;
    let lasts = args.timeout + args.duration.unwrap_or(FOLLOWED);
    let form = match args.output {
        Stream::Text => Form::Text,
        Stream::Json => Form::Json,
        Stream::Ndjson => Form::JsonLines,
    };
    Ok((form, Some(lasts), vec![source, destination.subject]))
}

fn drops(args: &DropsArgs) -> Result<Known, Refused> {
    let (form, lasts) = counting(args.output, args.follow, args.duration);
    let ends = args.pod()?.into_iter().map(|pod| pod.subject).collect();
    Ok((form, lasts, ends))
}

fn flows(args: &FlowsArgs) -> Result<Known, Refused> {
    let (form, lasts) = counting(args.output, args.follow, args.duration);
    let ends = [args.from()?, args.to()?].into_iter().flatten();
    Ok((form, lasts, ends.map(|end| end.subject).collect()))
}

fn capture(args: &CaptureArgs) -> Result<Known, Refused> {
    let form = match (&args.write, args.output) {
        (Some(file), _) => Form::Packets(Some(file.clone()).filter(|file| file != Path::new("-"))),
        (None, Lines::Text) => Form::Lines,
        (None, Lines::Ndjson) => Form::JsonLines,
    };
    let ends = [args.end()?].into_iter().chain(args.others()?);
    Ok((form, args.duration, ends.map(|end| end.subject).collect()))
}

fn whole(output: Output) -> Form {
    match output {
        Output::Text => Form::Text,
        Output::Json => Form::Json,
    }
}

fn counting(output: Stream, follow: bool, duration: Option<Duration>) -> (Form, Option<Duration>) {
    let form = match output {
        Stream::Text if follow => Form::Lines,
        Stream::Text => Form::Text,
        Stream::Json => Form::Json,
        Stream::Ndjson => Form::JsonLines,
    };
    (form, duration.or((!follow).then_some(COUNTED)))
}

/// The same command line, but what it writes goes to standard output. No other option begins with w.
fn to_standard_output(words: &[String]) -> Vec<String> {
    let mut is_value = false;
    let words = words.iter().map(|word| {
        if std::mem::take(&mut is_value) {
            return "-".to_owned();
        }
        is_value = matches!(word.as_str(), "-w" | "--write");
        match word {
            _ if is_value => word.clone(),
            _ if word.starts_with("--write=") => "--write=-".to_owned(),
            _ if word.starts_with("-w") => "-w-".to_owned(),
            _ => word.clone(),
        }
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errand(line: &str) -> Result<Errand, Refused> {
        Errand::parse(&words(line))
    }

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn what_looks_runs_elsewhere_and_its_form_and_time_are_known() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let file = |file: &str| Form::Packets(Some(file.into()));
        let rows = [
            ("doctor", Form::Text, Some(ANSWER)),
            ("doctor --fix -o json", Form::Json, Some(ANSWER)),
            ("explain pod/a svc/b:80", Form::Text, Some(ANSWER)),
            ("trace pod/a svc/b:80", Form::Text, seconds(11)),
            (
                "trace pod/a svc/b:80 --timeout 30s --for 5s -o json",
                Form::Json,
                seconds(35),
            ),
            ("trace pod/a svc/b:80 -o ndjson", Form::JsonLines, seconds(11)),
            ("drops", Form::Text, seconds(10)),
            ("drops --follow", Form::Lines, None),
            ("drops --follow --for 1m -o ndjson", Form::JsonLines, seconds(60)),
            ("flows -o json", Form::Json, seconds(10)),
            ("capture pod/a", Form::Lines, None),
            ("capture pod/a -o json --for 2s", Form::JsonLines, seconds(2)),
            ("capture pod/a -w -", Form::Packets(None), None),
            ("capture pod/a -w a.pcapng", file("a.pcapng"), None),
            ("version", Form::Text, seconds(0)),
            ("node config print", Form::Text, seconds(0)),
        ];
        for (line, form, lasts) in rows {
            let errand = errand(line).expect(line);
            assert_eq!((errand.form, errand.lasts), (form, lasts), "{line}");
        }
    }

    #[test]
    fn a_capture_is_written_here_and_not_there() {
        for (line, expected) in [
            (
                "capture pod/a -w a.pcapng --count 3",
                "capture pod/a -w - --count 3",
            ),
            ("capture --write a.pcapng pod/a", "capture --write - pod/a"),
            ("capture --write=a.pcapng pod/a", "capture --write=- pod/a"),
            ("capture pod/a -wa.pcapng", "capture pod/a -w-"),
            ("capture pod/a -w=a.pcapng", "capture pod/a -w-"),
            ("capture pod/a -w -", "capture pod/a -w -"),
        ] {
            let there = errand(line).expect(line).words;
            assert_eq!(there, words(expected), "{line}");
            let again = Errand::parse(&there).expect(expected);
            assert_eq!(again.form, Form::Packets(None), "{line}");
        }
    }

    #[test]
    fn what_changes_or_serves_does_not_run_elsewhere() {
        for (line, why) in [
            ("up --nodes 3", "up is not for other nodes: it is about a cluster"),
            ("status", "status is not for other nodes: it is about a cluster"),
            ("node", "node is not for other nodes: an agent runs there already"),
            (
                "node cleanup",
                "node cleanup is not for other nodes: it changes the node",
            ),
            ("node install-cni", "it changes the node"),
            (
                "dns query web.default.svc",
                "the DNS server's pod has its Corefile",
            ),
            ("connectivity", "it asks the cluster by itself, so run it here"),
            ("migrate check f", "it reads files of the machine where it runs"),
            ("on node-1 -- doctor", "name all nodes at once"),
        ] {
            let refused = errand(line).expect_err(line).to_string();
            assert!(refused.contains(why), "{line}: {refused}");
            assert!(refused.ends_with(THERE), "{line}: {refused}");
        }
        for line in ["ls", "docter -o json", "bundle"] {
            let refused = errand(line).expect_err(line).to_string();
            assert!(refused.ends_with(THERE), "{line}: {refused}");
        }
        for (line, told) in [
            ("ls -l /", "ls is no command of causeway. What"),
            ("ls /etc", "ls is no command of causeway. What"),
            (
                "docter",
                "docter is no command of causeway; a similar one is doctor. What",
            ),
            (
                "node clenup --force",
                "node clenup is no command of causeway; a similar one is cleanup. What",
            ),
        ] {
            let refused = errand(line).expect_err(line).to_string();
            assert!(refused.starts_with(told), "{line}: {refused}");
        }
        for line in ["trace", "drops --nobody"] {
            assert!(matches!(errand(line), Err(Refused::Usage(_))), "{line}");
        }
        assert!(matches!(
            errand("explain pod/a/b/c svc/b:80"),
            Err(Refused::Ends(_))
        ));
    }

    #[test]
    fn who_is_named_is_told_in_the_order_of_the_command() {
        let pod = |namespace: &str, name: &str| Subject::Pod(ObjectName::new(namespace, name));
        let rows = [
            ("explain any pod/shop/a:80", vec![Subject::Any, pod("shop", "a")]),
            ("drops --pod a -n shop", vec![pod("shop", "a")]),
            ("drops --pod pod/shop/a", vec![pod("shop", "a")]),
            ("drops --pod a", vec![pod("default", "a")]),
            (
                "flows --to pod/b:80 --from pod/a",
                vec![pod("default", "a"), pod("default", "b")],
            ),
            (
                "capture pod/a --to pod/b:80 --to pod/c:80",
                vec![pod("default", "a"), pod("default", "b"), pod("default", "c")],
            ),
            ("doctor", vec![]),
        ];
        for (line, expected) in rows {
            assert_eq!(errand(line).expect(line).ends, expected, "{line}");
        }
    }
}
