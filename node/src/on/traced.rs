//! A trace that several nodes tell as one story: what each of them is asked. Pure.
//!
//! Others follow packets before the sender's node begins: a probe is sent once, and by it. They look for what that one
//! looks for and for longer, until they are told that it has ended.

use std::path::PathBuf;
use std::time::Duration;

use super::addressed::addressed;
use super::cluster::Places;
use super::errand::{FOLLOWED, elsewhere};
use crate::cli::{Stream, TraceArgs};
use crate::ends::{Ends, FormError, Subject};

/// The longest time that is taken on a command line.
const LONGEST: Duration = Duration::from_secs(86_400);

/// A trace for several nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// Who sends.
    pub source: Subject,
    /// What is told is JSON.
    pub is_json: bool,
    /// All packets are told.
    pub in_full: bool,
    /// A probe is sent.
    pub inject: bool,
    destination: String,
    namespace: String,
    netns: Option<String>,
    timeout: Duration,
    duration: Option<Duration>,
    also_from: Vec<String>,
    config: Vec<PathBuf>,
    own_namespaces: bool,
}

/// What a node is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role<'r> {
    /// Its end is the end: that of the sender, where it is known.
    Leads,
    /// It looks until it is told to end, which may take so long until the one that leads has begun.
    Follows {
        /// That time.
        begins_within: Duration,
        /// The node whose address may stand in the place of the sender's.
        sender: Option<&'r str>,
    },
}

impl Traced {
    /// By its options; none where each node's lines are told as they are.
    ///
    /// # Errors
    /// When an end is not understood.
    pub fn of(args: &TraceArgs) -> Result<Option<Self>, FormError> {
        let Ends { source, destination } = args.ends.parse()?;
        let is_json = match args.output {
            Stream::Text => false,
            Stream::Json => true,
            Stream::Ndjson => return Ok(None),
        };
        Ok(Some(Self {
            source,
            is_json,
            in_full: args.verbose,
            inject: args.inject,
            destination: destination.to_string(),
            namespace: args.ends.namespace.clone(),
            netns: args.netns.clone(),
            timeout: args.timeout,
            duration: args.duration,
            also_from: args.also_from.clone(),
            config: args.config.clone(),
            own_namespaces: args.own_namespaces,
        }))
    }

    /// The longest time that a node takes by itself.
    #[must_use]
    pub fn lasts(&self, role: Role<'_>) -> Duration {
        let (first, then) = self.times(role);
        first + then
    }

    /// How long the first packet is waited for, and how long then others.
    fn times(&self, role: Role<'_>) -> (Duration, Duration) {
        let then = self.duration.unwrap_or(FOLLOWED);
        match role {
            Role::Leads => (self.timeout, then),
            Role::Follows { begins_within, .. } => {
                let until_its_end = (2 * begins_within + self.timeout + then).min(LONGEST);
                (until_its_end, until_its_end)
            }
        }
    }

    /// The command line for a node.
    #[must_use]
    pub fn words_on(&self, node: &str, role: Role<'_>, places: &Places) -> Vec<String> {
        let mut words = vec![
            "trace".to_owned(),
            self.source.to_string(),
            self.destination.clone(),
            "-o=ndjson".to_owned(),
            format!("--namespace={}", self.namespace),
        ];
        let (first, then) = self.times(role);
        words.push(format!("--timeout={}ms", first.as_millis()));
        let is_told = self.duration.is_some() || role != Role::Leads;
        words.extend(is_told.then(|| format!("--for={}ms", then.as_millis())));
        match role {
            Role::Leads => {
                words.extend(self.inject.then(|| "--inject".to_owned()));
                words.extend(self.netns.iter().map(|netns| format!("--netns={netns}")));
            }
            Role::Follows { sender, .. } => {
                words.extend(sender.map(|sender| format!("--also-from=node/{sender}")));
            }
        }
        words.extend(self.also_from.iter().map(|end| format!("--also-from={end}")));
        words.extend(
            self.config
                .iter()
                .map(|file| format!("--config={}", file.display())),
        );
        words.extend(self.own_namespaces.then(|| "--own-namespaces".to_owned()));
        addressed(&words, &self.namespace, |pod| elsewhere(pod, node, places))
    }
}

#[cfg(test)]
mod tests {
    use model::ObjectName;

    use super::super::cluster::Place;
    use super::super::errand::Errand;
    use super::*;

    const FOLLOWS: Role<'_> = Role::Follows {
        begins_within: Duration::from_secs(15),
        sender: Some("node-1"),
    };

    fn errand(line: &str) -> Errand {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        Errand::parse(&words).expect(line)
    }

    #[test]
    fn the_sender_sends_and_others_only_look_and_for_longer() {
        let place = |node: &str, address: &str| {
            Ok(Place {
                node: node.to_owned(),
                address: Some(address.parse().expect("an address")),
            })
        };
        let places = Places::from([
            (ObjectName::new("shop", "a"), place("node-1", "10.244.1.3")),
            (ObjectName::new("shop", "b"), place("node-2", "10.244.2.3")),
        ]);
        let rows = [
            (
                "trace pod/a pod/b:80 -n shop --inject --netns x",
                "trace pod/shop/a 10.244.2.3:80 -o=ndjson --namespace=shop --timeout=10000ms --inject --netns=x",
                "trace 10.244.1.3 pod/shop/b:80 -o=ndjson --namespace=shop --timeout=41000ms --for=41000ms \
                 --also-from=node/node-1",
            ),
            (
                "trace any svc/web:http --timeout 5s --for 2s --own-namespaces --also-from node/x -o json -v",
                "trace any svc/default/web:http -o=ndjson --namespace=default --timeout=5000ms --for=2000ms \
                 --also-from=node/x --own-namespaces",
                "trace any svc/default/web:http -o=ndjson --namespace=default --timeout=37000ms --for=37000ms \
                 --also-from=node/node-1 --also-from=node/x --own-namespaces",
            ),
        ];
        for (line, leads, follows) in rows {
            let trace = errand(line).trace.expect("a trace");
            for (node, role, expected) in [("node-1", Role::Leads, leads), ("node-2", FOLLOWS, follows)] {
                let words = trace.words_on(node, role, &places);
                assert_eq!(words.join(" "), expected, "{line}");
                // It is a command.
                assert_eq!(Errand::parse(&words).expect(expected).trace, None);
            }
        }
        let long = errand("trace pod/a pod/b:80 --timeout 1440m")
            .trace
            .expect("a trace");
        assert_eq!(long.times(FOLLOWS), (LONGEST, LONGEST));
    }

    #[test]
    fn what_is_told_hop_by_hop_is_no_story_of_several() {
        assert_eq!(errand("trace pod/a pod/b:80 -o ndjson").trace, None);
        assert_eq!(errand("explain pod/a pod/b:80").trace, None);
        let trace = errand("trace pod/a pod/b:80 -o json -v").trace.expect("a trace");
        assert!(trace.is_json && trace.in_full);
    }
}
