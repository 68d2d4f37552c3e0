//! How the underlay's device leads to the other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use model::with_causes;
use netlink::{Kernel, Link, Route, Way};

use super::Node;
use crate::plan::Remote;
use crate::reconcile::Outcome;

/// For how long what the routes say is believed where nothing tells of a change.
const WAYS_KEPT: Duration = Duration::from_secs(9);

/// How the underlay's device leads to the other nodes, as the kernel said a moment ago.
#[derive(Debug, Default)]
pub(super) struct Ways {
    pub(super) known: BTreeMap<IpAddr, Option<Way>>,
    /// What it was said by: the device, and others' routes.
    asked: Option<(Instant, Link, BTreeSet<Route>)>,
}

impl Ways {
    /// Asks anew where something changed, and now and then: a router may have said what passes, and the routes of other
    /// tables are not looked at.
    pub(super) fn look(
        &mut self,
        kernel: &mut impl Kernel,
        node: &Node<'_>,
        underlay: &Link,
        outcome: &mut Outcome,
    ) {
        let is_fresh = self.asked.as_ref().is_some_and(|(when, link, routes)| {
            when.elapsed() < WAYS_KEPT && link == underlay && *routes == node.mirror.foreign_routes
        });
        if !is_fresh {
            self.known.clear();
            self.asked = Some((
                Instant::now(),
                underlay.clone(),
                node.mirror.foreign_routes.clone(),
            ));
        }
        for half in node.plan.halves.values() {
            let Some(device) = &half.device else { continue };
            for remote in half.remotes.values() {
                if let Remote::Tunnel { public_ip, .. } = remote
                    && !self.known.contains_key(public_ip)
                {
                    match kernel.way_to(*public_ip, device.local, underlay.index) {
                        Ok(way) => drop(self.known.insert(*public_ip, way)),
                        Err(error) => outcome
                            .problems
                            .push(format!("fast path: {}", with_causes(&error))),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use netlink::FakeKernel;

    use super::super::tests::{MAC, plan};
    use super::*;
    use crate::reconcile::Mirror;

    #[test]
    fn ways_are_asked_for_once_and_again_when_the_underlay_or_its_routes_change() {
        let mut kernel = FakeKernel::new();
        let index = kernel.plug("eth0", MAC, 1500);
        let mut eth0 = kernel.link_at(index).expect("listed").expect("plugged");
        let route = |gateway: &str| {
            let anywhere = "0.0.0.0/0".parse().expect("a network");
            Route::via(anywhere, gateway.parse().expect("an address"), eth0.index, 3)
        };
        let (first, second) = (route("192.0.2.8"), route("192.0.2.9"));
        let (plan, mut mirror, mut ways) = (plan(), Mirror::default(), Ways::default());
        let mut look = |kernel: &mut FakeKernel, mirror: &Mirror, eth0: &Link| {
            let node = Node {
                plan: &plan,
                underlay: "eth0",
                pods: &[],
                mirror,
            };
            let mut outcome = Outcome::default();
            ways.look(kernel, &node, eth0, &mut outcome);
            assert_eq!(outcome, Outcome::default());
            let neighbours = ways.known.values().map(|way| way.and_then(|way| way.neighbour));
            neighbours.collect::<Vec<_>>()
        };
        // Nothing leads to the other node by IPv6.
        kernel.replace_route(&first).expect("written");
        assert_eq!(look(&mut kernel, &mirror, &eth0), [first.gateway, None]);
        kernel.replace_route(&second).expect("written");
        assert_eq!(look(&mut kernel, &mirror, &eth0), [first.gateway, None]);
        mirror.foreign_routes.insert(second.clone());
        assert_eq!(look(&mut kernel, &mirror, &eth0), [second.gateway, None]);
        kernel.replace_route(&first).expect("written");
        eth0.mtu = 1400;
        assert_eq!(look(&mut kernel, &mirror, &eth0), [first.gateway, None]);
    }
}
