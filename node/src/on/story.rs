//! A trace on several nodes, told as one story.
//!
//! ```text
//! others    attached ──────────── hops … ─────────── told to end ─ story ┐
//! sender's            attached, probe ─ hops … ─ story ┘                 ├─► one story
//! ```

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use trace::Story;

use super::cluster::Places;
use super::nodes::Chosen;
use super::parts::Parts;
use super::telling::{COULD_NOT_ASK, Piece, Told, escaped};
use super::traced::{Role, Traced};
use super::visit::{Speech, Visit, words};
use super::{BEGIN_AT_ONCE, IN_FLIGHT};
use crate::cli::OnArgs;
use crate::logs::tell;
use crate::trace_cli::{self, Finding};
use crate::watch::Objects;

/// Follows packets on nodes, and tells by `show` what they saw together. Returns the exit code that `trace` has for it.
///
/// # Errors
/// When no node followed packets.
pub(super) async fn tell_one(
    args: &OnArgs,
    trace: &Traced,
    objects: &Objects,
    nodes: Nodes<'_>,
    shutdown: &CancellationToken,
    mut show: impl FnMut(&[u8]) -> bool,
) -> anyhow::Result<u8> {
    let Nodes {
        chosen,
        places,
        sender,
    } = nodes;
    let (chosen, leads) = in_order(chosen, sender.as_deref(), trace.inject);
    let roles = || {
        chosen
            .iter()
            .take(leads)
            .map(|_| true)
            .chain(std::iter::repeat(false))
    };
    let mut parts = Parts::new(chosen.iter().map(|(node, _)| node.clone()).zip(roles()));
    let (to_parts, pieces) = mpsc::channel(IN_FLIGHT);
    let asking = Asking {
        args,
        trace,
        objects,
        places,
        to_parts,
        beginning: Arc::new(Semaphore::new(BEGIN_AT_ONCE)),
        enough: shutdown.child_token(),
    };
    let follows = Role::Follows {
        begins_within: args.timeout,
        sender: sender.as_deref(),
    };
    let mut visits = JoinSet::new();
    let enough = asking.enough.clone();
    let mut leading = Vec::new();
    for (number, chosen) in chosen.into_iter().enumerate() {
        match number < leads {
            true => leading.push((number, chosen)),
            false => {
                visits.spawn(asking.visit(number, chosen, follows));
            }
        }
    }
    let mut listening = Listening {
        pieces,
        parts: &mut parts,
    };
    if !listening.until_ready(args.timeout, &enough).await {
        let seconds = args.timeout.as_secs_f32();
        listening
            .parts
            .go_without(&format!("it did not begin to follow packets in {seconds} s"));
    }
    for (number, chosen) in leading {
        visits.spawn(asking.visit(number, chosen, Role::Leads));
    }
    // With the last visit the pieces end.
    drop(asking);
    listening.until_end(!trace.inject, &enough).await;
    let parts = parts.finish();
    let Some(story) = Story::joined(&parts) else {
        let why =
            |part: &trace::Part| format!("{}: {}", part.node, part.missing.as_deref().unwrap_or("silent"));
        bail!(
            "no node followed packets: {}",
            parts.iter().map(why).collect::<Vec<_>>().join("; ")
        );
    };
    let told = match trace.is_json {
        true => escaped(&trace::render::json(&story)),
        false => trace_cli::text(&story, trace.in_full),
    };
    show(told.as_bytes());
    Ok(match trace_cli::finding(&story) {
        Finding::Good => 0,
        Finding::Wrong => 1,
        Finding::Nothing => COULD_NOT_ASK,
    })
}

/// The sender's node first, and how many lead: it alone, where it can be asked or shall send, else all of them.
fn in_order(mut chosen: Vec<Chosen>, sender: Option<&str>, inject: bool) -> (Vec<Chosen>, usize) {
    chosen.sort_by_key(|(node, _)| Some(node.as_str()) != sender);
    let leads = match chosen.first() {
        // Who is not the sender's node says so: it has no such address.
        Some(_) if inject => 1,
        Some((node, Ok(_))) if Some(node.as_str()) == sender => 1,
        _ => chosen.len(),
    };
    (chosen, leads)
}

/// Whom a trace is about.
pub(super) struct Nodes<'n> {
    /// The nodes that are asked.
    pub(super) chosen: Vec<Chosen>,
    /// Where pods are.
    pub(super) places: &'n Places,
    /// The sender's node, where it is known.
    pub(super) sender: Option<String>,
}

/// How nodes are asked.
struct Asking<'a> {
    args: &'a OnArgs,
    trace: &'a Traced,
    objects: &'a Objects,
    places: &'a Places,
    to_parts: mpsc::Sender<(usize, Piece)>,
    beginning: Arc<Semaphore>,
    /// They shall end, whatever their roles: also who leads, where another one has seen something.
    enough: CancellationToken,
}

impl Asking<'_> {
    fn visit(
        &self,
        number: usize,
        (node, agent): Chosen,
        role: Role<'_>,
    ) -> impl Future<Output = ()> + use<> {
        let visit = Visit {
            objects: self.objects.clone(),
            namespace: self.args.namespace.clone(),
            words: words(self.trace.words_on(&node, role, self.places)),
            beginning: Arc::clone(&self.beginning),
            begins_within: self.args.timeout,
            lasts: Some(self.trace.lasts(role) + self.args.timeout),
            enough: self.enough.clone(),
            said: Speech {
                number,
                sender: self.to_parts.clone(),
            },
        };
        visit.make(node, agent)
    }
}

/// Hears what nodes say.
struct Listening<'l> {
    pieces: mpsc::Receiver<(usize, Piece)>,
    parts: &'l mut Parts,
}

impl Listening<'_> {
    /// Until all that only follow do; false: not in time.
    async fn until_ready(&mut self, within: Duration, enough: &CancellationToken) -> bool {
        let deadline = Instant::now() + within;
        while !self.parts.are_ready() {
            tokio::select! {
                piece = self.pieces.recv() => self.take(piece),
                () = sleep_until(deadline) => return false,
                () = enough.cancelled() => return true,
            }
        }
        true
    }

    /// Until all have ended, and tells those that they may once it is enough. `waits`: somebody is to send.
    async fn until_end(&mut self, mut waits: bool, enough: &CancellationToken) {
        while let Some(piece) = self.pieces.recv().await {
            self.take(Some(piece));
            if waits && self.parts.have_begun() {
                waits = false;
                tell("following packets: Ctrl-C ends it, and tells what was seen");
            }
            if self.parts.is_enough() {
                enough.cancel();
            }
        }
    }

    fn take(&mut self, piece: Option<(usize, Piece)>) {
        for told in piece
            .into_iter()
            .flat_map(|(number, piece)| self.parts.take(number, piece))
        {
            if let Told::Err(line) = told {
                tell(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ::tests::fake_api::FakeApi;
    use clap::Parser as _;

    use super::super::errand::Errand;
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::watch::Credentials;

    #[tokio::test]
    async fn whoever_is_asked_ends_when_it_is_enough() {
        let api = FakeApi::start().expect("loopback is there");
        // Nobody begins.
        api.behave(|behaviour| behaviour.delay = Duration::from_secs(600));
        let line = "causeway on a,b --timeout 10m -- trace any svc/web:80 --timeout 30m";
        let Command::On(args) = Cli::try_parse_from(line.split(' ')).expect(line).command else {
            panic!("{line}");
        };
        let credentials = Credentials::Endpoint {
            url: api.url(),
            tls: None,
        };
        let follows = Role::Follows {
            begins_within: args.timeout,
            sender: None,
        };
        for role in [Role::Leads, follows] {
            let (to_parts, mut pieces) = mpsc::channel(IN_FLIGHT);
            let asking = Asking {
                args: &args,
                trace: &Errand::parse(&args.command).expect(line).trace.expect("a trace"),
                objects: &Objects::of(credentials.clone()).await.expect("a client"),
                places: &Places::new(),
                to_parts,
                beginning: Arc::new(Semaphore::new(BEGIN_AT_ONCE)),
                enough: CancellationToken::new(),
            };
            let visit = tokio::spawn(asking.visit(0, ("a".to_owned(), Ok("agent".to_owned())), role));
            asking.enough.cancel();
            visit.await.expect("it ends");
            let told = pieces.recv().await;
            let why = "interrupted before it began".to_owned();
            assert_eq!(told, Some((0, Piece::Ended(Err(why)))), "{role:?}");
        }
    }

    #[test]
    fn the_senders_node_leads_where_it_can_be_asked() {
        let chosen = |nodes: &str| -> Vec<Chosen> {
            let chosen = nodes.split(' ').map(|node| match node.strip_prefix('!') {
                Some(node) => (node.to_owned(), Err("no agent is on it".to_owned())),
                None => (node.to_owned(), Ok("agent".to_owned())),
            });
            chosen.collect()
        };
        // How many lead where a packet of somebody is waited for, and where one is sent.
        let rows = [
            ("a b c", Some("b"), "b a c", [1, 1]),
            ("a b", None, "a b", [2, 1]),
            ("a !b", Some("b"), "!b a", [2, 1]),
            // It was not named.
            ("a c", Some("b"), "a c", [2, 1]),
        ];
        for (nodes, sender, expected, leads) in rows {
            for (inject, leads) in [false, true].into_iter().zip(leads) {
                assert_eq!(
                    in_order(chosen(nodes), sender, inject),
                    (chosen(expected), leads),
                    "{nodes:?} {inject}"
                );
            }
        }
    }
}
