//! The `autopath` plugin: the server goes along the client's search path, so that the client asks once.
//!
//! ```text
//! web.example.ns.svc.cluster.local ─► NXDOMAIN ─► web.example.svc.cluster.local ─► … ─► web.example
//! └ the first domain of the path         the first that exists answers, behind an alias for it ┘
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

use crate::name::Name;
use crate::question::Query;

/// Options of the plugin, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The zones whose names are completed.
    pub zones: Vec<Name>,
    /// The clients' search path.
    pub search: Vec<Name>,
}

/// The search path of a server block's clients.
#[derive(Debug)]
pub struct Autopath {
    options: Options,
    /// Names that were found farther along the path.
    pub found: AtomicU64,
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

    /// Whether a client asks for a name completed by the first domain of its path.
    #[must_use]
    pub fn covers(&self, query: &Query<'_>) -> bool {
        let first = self.options.search.first();
        query.is_within(&self.options.zones)
            && first.is_some_and(|first| query.labels_before(first).is_some_and(|labels| labels > 0))
    }

    /// The names that the client would ask for next: completed by the other domains, and as it is.
    pub(super) fn others(&self, query: &Query<'_>) -> Vec<Name> {
        let Some((first, others)) = self.options.search.split_first() else {
            return Vec::new();
        };
        let base = &query.name()[..query.name().len() - first.wire().len()];
        let root = Name::root();
        let completed = others
            .iter()
            .chain([&root])
            .map(|domain| [base, domain.wire()].concat());
        // What gets too long is no name.
        let names = completed.filter(|wire| wire.len() <= crate::name::MAX_NAME);
        names.map(|wire| Name::from_lower_wire(&wire)).collect()
    }

    pub(super) fn note_found(&self) {
        self.found.fetch_add(1, Ordering::Relaxed);
    }
}
