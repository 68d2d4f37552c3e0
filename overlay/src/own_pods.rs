//! The pods of this node, as each pass sees them beside the kernel.

use std::path::Path;
use std::time::Instant;

use model::with_causes;

use crate::leaks::Leaks;
use crate::pods::wiring::{host_ifname, pod_mac};
use crate::pods::{Assigned, PodNetwork};
use crate::reconcile::{Mirror, Outcome, PodRoute};
use crate::strangers::Strangers;

/// The log of addresses, and what it does not say.
pub(crate) struct OwnPods {
    pods: PodNetwork,
    leaks: Leaks,
    strangers: Strangers,
}

impl OwnPods {
    pub(crate) fn new(pods: PodNetwork) -> Self {
        Self {
            pods,
            leaks: Leaks::default(),
            strangers: Strangers::default(),
        }
    }

    /// Those that have a record, once those that went without a word are released. The mirror must have been read
    /// before.
    pub(crate) fn list(&mut self, mirror: &Mirror, outcome: &mut Outcome) -> Vec<Assigned> {
        let is_there = |netns: &str| Path::new(netns).exists();
        let leaked = self
            .leaks
            .found(&self.pods.list(), &mirror.links, is_there, Instant::now());
        for key in leaked {
            match self.pods.remove(&key) {
                Ok(_) => tracing::info!(
                    container = key.container_id,
                    "pod went without a DEL, its address is free again"
                ),
                Err(error) => outcome.problems.push(with_causes(&error)),
            }
        }
        self.pods.list()
    }

    /// How this node reaches its pods: those that the log has, and those that it lost.
    pub(crate) fn routes(
        &mut self,
        mirror: &Mirror,
        assigned: &[Assigned],
        outcome: &mut Outcome,
    ) -> Vec<PodRoute> {
        let now = Instant::now();
        self.strangers.look(mirror, assigned, now);
        let strangers = self.strangers.routes();
        self.pods.hold(strangers.map(|route| route.address).collect());
        outcome.notes.extend(self.strangers.notes(now));
        let strangers = self.strangers.routes().cloned();
        strangers.chain(routes_of(assigned)).collect()
    }
}

/// How this node reaches the pods that have a record.
pub(crate) fn routes_of(pods: &[Assigned]) -> impl Iterator<Item = PodRoute> {
    let routes = |assigned: &Assigned| {
        let (host_ifname, pod_mac) = (host_ifname(assigned), pod_mac(assigned));
        assigned.addresses().map(|_, address| PodRoute {
            address: *address,
            host_ifname: host_ifname.clone(),
            pod_mac,
            is_limited: assigned.bandwidth.ingress.is_some(),
        })
    };
    let each = pods.iter().map(routes);
    each.flat_map(|routes| [routes.v4, routes.v6]).flatten()
}
