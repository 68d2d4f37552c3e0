//! The `autopath` plugin: the server goes along the client's search path, so that the client asks once.
//!
//! ```text
//! web.example.ns.svc.cluster.local ─► NXDOMAIN ─► web.example.svc.cluster.local ─► … ─► web.example
//! └ the first domain of the path         the first that exists answers, behind an alias for it ┘
//! ```
//! The path is one for all clients, or that of the client's namespace (`@kubernetes`): who asks for a name below
//! `ns.svc.ZONE` and has the address of a pod of `ns` goes along that namespace's path.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::feed::Source;
use crate::kubernetes;
use crate::name::{MAX_NAME, Name};
use crate::question::{HEADER, Query};

/// Options of the plugin, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The zones whose names are completed.
    pub zones: Vec<Name>,
    /// What is known of the clients' search paths.
    pub search: SearchPath,
}

/// The domains that clients complete names by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SearchPath {
    /// All clients have these.
    Given(Vec<Name>),
    /// Those of the pod's namespace, `ns.svc.ZONE svc.ZONE ZONE`, and behind them these, which this machine has. Other
    /// clients have none.
    OfPod(Vec<Name>),
}

/// The `autopath` of a server block.
#[derive(Debug)]
pub struct Autopath {
    options: Options,
    /// Names that were found farther along the path.
    pub found: AtomicU64,
}

/// A name that its client completed by the first domain of its path.
pub(super) struct Completed<'a> {
    pub(super) autopath: &'a Autopath,
    /// Labels in front of that domain.
    before: usize,
    /// The zone whose domains come next.
    cluster: Option<&'a Name>,
    /// The domains behind them.
    others: &'a [Name],
}

impl Autopath {
    /// Makes the plugin.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            options,
            found: AtomicU64::new(0),
        }
    }

    /// The options.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Where a query's name was completed by its client. `cluster`: the block's plugin `kubernetes`.
    pub(super) fn completed<'a>(
        &'a self,
        query: &Query<'_>,
        client: IpAddr,
        cluster: Option<(&'a kubernetes::Options, &Source)>,
    ) -> Option<Completed<'a>> {
        if !query.is_within(&self.options.zones) {
            return None;
        }
        let (before, cluster, others) = match &self.options.search {
            SearchPath::Given(domains) => {
                let (first, others) = domains.split_first()?;
                (query.labels_before(first)?, None, others)
            }
            SearchPath::OfPod(others) => {
                let (options, source) = cluster?;
                let zones = options.zones.iter();
                let within = zones.filter_map(|zone| Some((zone, query.labels_before(zone)?)));
                let (zone, labels) = within.min_by_key(|(_, labels)| *labels)?;
                let before = labels.checked_sub(2)?;
                let (namespace, kind) = (query.label(before), query.label(before + 1));
                let is_own = kind == b"svc" && source.table.load().has_pod(namespace, client.to_canonical());
                (before, Some(is_own.then_some(zone)?), others.as_slice())
            }
        };
        (before > 0).then_some(Completed {
            autopath: self,
            before,
            cluster,
            others,
        })
    }

    pub(super) fn note_found(&self) {
        self.found.fetch_add(1, Ordering::Relaxed);
    }
}

impl Completed<'_> {
    /// The names that the client would ask for next: completed by the other domains, and as it is.
    pub(super) fn others(&self, query: &Query<'_>) -> Vec<Name> {
        let base = &query.name()[..query.packet_offset(self.before) - HEADER];
        let cluster = self.cluster.into_iter();
        let of_cluster = cluster.flat_map(|zone| [[b"\x03svc", zone.wire()].concat(), zone.wire().to_vec()]);
        let root = Name::root();
        let others = self
            .others
            .iter()
            .chain([&root])
            .map(|domain| domain.wire().to_vec());
        let completed = of_cluster.chain(others).map(|domain| [base, &domain].concat());
        // What gets too long is no name.
        let names = completed.filter(|wire| wire.len() <= MAX_NAME);
        names.map(|wire| Name::from_lower_wire(&wire)).collect()
    }
}
