//! A machine's own part of a story, told as it comes: that it follows packets, and each hop.

use std::collections::BTreeSet;

use trace::namespaces::Found;
use trace::part::{self, Attached, Line, Seen, Within};
use trace::{Filter, Hop, Names, Service};

use crate::cli::{Stream, TraceArgs};
use crate::ends::meant::Resolver;

/// Which hops are taken, and to whom they are told.
pub(super) struct Telling<'t> {
    own: &'t BTreeSet<u32>,
    /// Where only the hops there are taken.
    within: Option<Within<'t>>,
    names: &'t Names,
    /// None: nobody asked for them as they come.
    show: Option<&'t dyn Fn(&str) -> bool>,
    has_reader: bool,
}

impl<'t> Telling<'t> {
    /// As the options say. `own`: the namespaces of the node.
    pub(super) fn new(
        args: &TraceArgs,
        own: &'t BTreeSet<u32>,
        names: &'t Names,
        show: &'t dyn Fn(&str) -> bool,
    ) -> Self {
        Self {
            own,
            within: args.own_namespaces.then(|| Within::new(own)),
            names,
            show: (args.output == Stream::Ndjson).then_some(show),
            has_reader: true,
        }
    }

    /// From here on every packet is seen.
    pub(super) fn attached(&mut self, filter: &Filter, service: Option<&Service>, namespaces: &[Found]) {
        let sees_all = self.within.is_none();
        let own = self.own;
        let seen = namespaces
            .iter()
            .filter(|found| sees_all || own.contains(&found.inode));
        self.tell(|own| {
            Line::Attached(Box::new(Attached {
                kernel: part::kernel(),
                filter: filter.clone(),
                service: service.cloned(),
                addresses: seen.flat_map(|found| found.addresses.clone()).collect(),
                namespaces: own.clone(),
            }))
        });
    }

    /// Tells a hop. Returns whether it is one that is looked for.
    pub(super) fn takes(&mut self, hop: &Hop) -> bool {
        if self.within.as_mut().is_some_and(|within| !within.has(hop)) {
            return false;
        }
        let at = self.names.of_netns(hop.netns);
        let entering = self.names.entering.get(&hop.netns).cloned();
        self.tell(|_| {
            Line::Hop(Box::new(Seen {
                at,
                entering,
                hop: hop.clone(),
            }))
        });
        true
    }

    /// Whether whoever asked for hops as they come still reads them.
    pub(super) fn has_reader(&self) -> bool {
        self.has_reader
    }

    fn tell(&mut self, line: impl FnOnce(&BTreeSet<u32>) -> Line) {
        if let Some(show) = self.show {
            self.has_reader &= show(&line(self.own).text());
        }
    }
}

/// The network namespaces of the node and of its pods: of the agents that are asked, and of those that they have connected.
pub(super) fn own_namespaces(resolver: &Resolver, namespaces: &[Found]) -> BTreeSet<u32> {
    let mut own = resolver.agents.namespaces();
    if own.is_empty() {
        // No agent runs: this is the node, or nobody knows better.
        own.extend(trace::places::inode("/proc/self/ns/net".as_ref()));
    }
    let homes = resolver.pods.homes(namespaces);
    let is_pod = |found: &&Found| {
        let mut addresses = found.addresses.iter();
        addresses.any(|address| {
            let is_its = homes.get(address).is_none_or(|home| *home == found.inode);
            is_its && resolver.pods.with_address(*address).is_some()
        })
    };
    own.extend(namespaces.iter().filter(is_pod).map(|found| found.inode));
    own
}
