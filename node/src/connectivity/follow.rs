//! What `causeway trace` tells of a cell that failed, where its packets pass this machine.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use trace::hop::Protocol;
use trace::namespaces::Found;
use trace::{Filter, Names, Session, Story, Verdict};

use super::attempt::Asker;
use super::cells::{Cell, Site, Transport, of_family};
use super::objects::{self, Role};
use crate::rights;

/// Cells that are followed, at the most.
const MOST: usize = 6;

/// How long a packet may still be under way when nobody waits for it any more.
const AFTERWARDS: Duration = Duration::from_millis(200);

/// A command that asks does not take longer.
const LONGEST: Duration = Duration::from_secs(15);

/// Follows cells on this machine.
pub struct Follower {
    namespaces: Vec<Found>,
    names: Names,
    followed: BTreeSet<Way>,
}

/// What fails on one way often fails for one reason: the nodes, the size and protocol, and whether a node itself asks.
type Way = (usize, Option<usize>, Transport, bool);

impl Follower {
    /// None where packets cannot be followed: by who is not root.
    pub fn new(sites: &[Site]) -> Option<Self> {
        if !rights::is_root() {
            return None;
        }
        let namespaces = trace::namespaces::of_this_machine();
        let mut names = Names::of_this_machine();
        for (number, site) in sites.iter().enumerate() {
            let client = objects::pod_name(Role::Client, number);
            for (pod, addresses) in [(&client, &site.client), (&site.server, &site.server_addresses)] {
                let is_its =
                    |found: &&Found| found.addresses.iter().any(|address| addresses.contains(address));
                if let Some(found) = namespaces.iter().find(is_its) {
                    names.netns.insert(found.inode, format!("pod/{pod}"));
                }
                names
                    .pods
                    .extend(addresses.iter().map(|address| (*address, format!("pod/{pod}"))));
            }
        }
        Some(Self {
            namespaces,
            names,
            followed: BTreeSet::new(),
        })
    }

    /// Tries a cell once more, and tells what became of its packets. Nothing where it cannot be told.
    ///
    /// # Errors
    /// When the cell cannot be tried.
    pub async fn follow(
        &mut self,
        cell: &Cell,
        from: &Site,
        asker: &Asker<'_>,
    ) -> anyhow::Result<Vec<String>> {
        let addresses = if cell.path.is_of_node() {
            &from.addresses
        } else {
            &from.client
        };
        let Some(source) = of_family(addresses, cell.family).filter(|source| self.is_here(*source)) else {
            return Ok(Vec::new());
        };
        let way = (cell.from, cell.to, cell.transport, cell.path.is_of_node());
        if cell.seen_at.is_empty() || self.followed.len() >= MOST || !self.followed.insert(way) {
            return Ok(Vec::new());
        }
        let protocol = if cell.transport.is_udp() {
            Protocol::UDP
        } else {
            Protocol::TCP
        };
        let filter = Filter {
            // A node has an address for each way. Nobody else asks what was put up for this.
            sources: if cell.path.is_of_node() {
                Vec::new()
            } else {
                vec![source]
            },
            targets: cell
                .seen_at
                .iter()
                .map(|end| (end.ip(), Some(end.port())))
                .collect(),
            protocol: Some(protocol),
            ..Filter::default()
        };
        let is_over = Arc::new(AtomicBool::new(false));
        let (ready, attached) = oneshot::channel();
        let watching = {
            let (is_over, names) = (Arc::clone(&is_over), self.names.clone());
            tokio::task::spawn_blocking(move || watch(&filter, &names, ready, &is_over))
        };
        // Where it cannot be attached, nothing is sent for it.
        let asked = match attached.await {
            Ok(()) => asker.once(cell).await,
            Err(_) => Ok(()),
        };
        is_over.store(true, Ordering::Relaxed);
        let told = watching.await.unwrap_or_default();
        asked.map(|()| told)
    }

    fn is_here(&self, address: IpAddr) -> bool {
        self.namespaces
            .iter()
            .any(|found| found.addresses.contains(&address))
    }
}

fn watch(filter: &Filter, names: &Names, ready: oneshot::Sender<()>, is_over: &AtomicBool) -> Vec<String> {
    let Ok(mut session) = Session::start(filter, "this machine") else {
        return Vec::new();
    };
    if ready.send(()).is_err() {
        return Vec::new();
    }
    let mut hops = Vec::new();
    let mut deadline = Instant::now() + LONGEST;
    while Instant::now() < deadline {
        if is_over.load(Ordering::Relaxed) {
            deadline = deadline.min(Instant::now() + AFTERWARDS);
        }
        match session.next_hop(deadline.min(Instant::now() + AFTERWARDS)) {
            Ok(Some(hop)) => hops.push(hop),
            Ok(None) if is_over.load(Ordering::Relaxed) => break,
            Ok(None) => {}
            Err(_) => break,
        }
    }
    let gaps = session.gaps().unwrap_or_default();
    conclusions(&Story::new(filter, &hops, names, gaps))
}

fn conclusions(story: &Story) -> Vec<String> {
    // What was seen to work meanwhile, or not at all, explains nothing.
    if matches!(story.verdict, Verdict::NothingSeen | Verdict::Answered) {
        return Vec::new();
    }
    trace::render::brief(story)
}
