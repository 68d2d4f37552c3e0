//! Gives each node its part of the pods' addresses, `spec.podCIDRs`: upstream's node IPAM controller with
//! `--allocate-node-cidrs`, allocator `RangeAllocator`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Node;
use model::ObjectName;
use serde_json::json;

use crate::Context;
use crate::cache::name_of;
use crate::config::NodeRange;
use crate::error::Error;
use crate::queue::{Next, Queue, Reconcile, drive};

const COMPONENT: &str = "cidrAllocator";
/// One, so that no two nodes get the same.
const WORKERS: usize = 1;
/// Nodes go, and so do their subnets.
const AGAIN: Duration = Duration::from_secs(10);

/// Runs the controller. Without ranges there is nothing to do: somebody else gives the addresses.
pub(crate) async fn run(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let _nodes = context.caches.nodes.subscribe({
        let queue = Arc::clone(&queue);
        move |change| {
            change
                .new
                .iter()
                .filter(|node| cidrs(node).is_empty())
                .for_each(|node| queue.add(name_of(&**node)));
        }
    });
    drive(&queue, &Controller { context }, WORKERS).await;
    Ok(())
}

struct Controller {
    context: Arc<Context>,
}

impl Reconcile for Controller {
    type Key = ObjectName;
    const NAME: &'static str = "node-ipam";

    async fn reconcile(&self, key: &ObjectName) -> Result<Next, Error> {
        let ranges = &self.context.config.node_cidrs;
        let nodes = &self.context.caches.nodes;
        let Some(node) = nodes.get(key) else {
            return Ok(Next::OnChange);
        };
        if ranges.is_empty() || !cidrs(&node).is_empty() || node.metadata.deletion_timestamp.is_some() {
            return Ok(Next::OnChange);
        }
        let taken = nodes.list().iter().flat_map(|node| cidrs(node)).collect();
        let Some(given) = free(ranges, &taken) else {
            let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
            self.context
                .recorder
                .warning(COMPONENT, &*node, "CIDRNotAvailable", message);
            return Ok(Next::After(AGAIN));
        };
        tracing::info!(node = %key.name, cidrs = ?given, "node gets its pods' addresses");
        let patch = json!({
            "metadata": { "uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version },
            "spec": { "podCIDR": given.first(), "podCIDRs": given },
        });
        nodes.merge(key, patch).await?;
        Ok(Next::OnChange)
    }
}

/// What a node has. A text that is no network takes nothing away.
fn cidrs(node: &Node) -> Vec<IpNetwork> {
    let spec = node.spec.as_ref();
    let cidrs = spec.and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
    cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect()
}

/// A free subnet of each range; none where one of them is used up.
fn free(ranges: &[NodeRange], taken: &BTreeSet<IpNetwork>) -> Option<Vec<IpNetwork>> {
    ranges.iter().map(|range| free_of(range, taken)).collect()
}

fn free_of(range: &NodeRange, taken: &BTreeSet<IpNetwork>) -> Option<IpNetwork> {
    let overlaps = |subnet: &IpNetwork| {
        let mut taken = taken.iter();
        taken.any(|other| subnet.contains(other.network()) || other.contains(subnet.network()))
    };
    let steps = range.prefix.checked_sub(range.network.prefix())?;
    // More than anybody has nodes; a range of IPv6 may have 2^64.
    let count = 1_u128 << steps.min(24);
    let mut subnets = (0..count).filter_map(|place| subnet(range, place));
    subnets.find(|subnet| !overlaps(subnet))
}

/// The subnet at a place of the range, from 0.
fn subnet(range: &NodeRange, place: u128) -> Option<IpNetwork> {
    let address: IpAddr = match range.network.network() {
        IpAddr::V4(first) => {
            let size = 1_u128 << 32_u8.checked_sub(range.prefix)?;
            let number = u128::from(u32::from(first)) + place * size;
            IpAddr::V4(u32::try_from(number).ok()?.into())
        }
        IpAddr::V6(first) => {
            let size = 1_u128 << 128_u8.checked_sub(range.prefix).filter(|bits| *bits < 128)?;
            IpAddr::V6(u128::from(first).checked_add(place.checked_mul(size)?)?.into())
        }
    };
    IpNetwork::new(address, range.prefix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(network: &str, prefix: u8) -> NodeRange {
        NodeRange {
            network: network.parse().expect("a network"),
            prefix,
        }
    }

    #[track_caller]
    fn check(ranges: &[NodeRange], taken: &[&str], expected: Option<&[&str]>) {
        let taken = taken
            .iter()
            .map(|text| text.parse().expect("a network"))
            .collect();
        let found = free(ranges, &taken);
        let found: Option<Vec<String>> = found.map(|found| found.iter().map(ToString::to_string).collect());
        let expected = expected.map(|texts| texts.iter().map(ToString::to_string).collect());
        assert_eq!(found, expected, "taken {taken:?}");
    }

    #[test]
    fn each_node_gets_the_first_free_subnet_of_each_range() {
        let v4 = range("10.244.0.0/16", 24);
        check(&[v4], &[], Some(&["10.244.0.0/24"]));
        check(
            &[v4],
            &["10.244.0.0/24", "10.244.2.0/24"],
            Some(&["10.244.1.0/24"]),
        );
        // What somebody gave by hand, of another size.
        check(&[v4], &["10.244.0.0/22"], Some(&["10.244.4.0/24"]));
        check(&[v4], &["10.244.0.128/25"], Some(&["10.244.1.0/24"]));
        check(&[v4], &["192.0.2.0/24"], Some(&["10.244.0.0/24"]));
        let both = [v4, range("fd00:244::/56", 64)];
        let taken = ["10.244.0.0/24", "fd00:244::/64", "fd00:244:0:1::/64"];
        check(&both, &taken, Some(&["10.244.1.0/24", "fd00:244:0:2::/64"]));
    }

    #[test]
    fn a_range_that_is_used_up_gives_nothing() {
        let small = range("10.244.0.0/23", 24);
        check(&[small], &["10.244.0.0/24"], Some(&["10.244.1.0/24"]));
        check(&[small], &["10.244.0.0/24", "10.244.1.0/24"], None);
        check(&[range("255.255.255.0/24", 24)], &["255.255.255.0/24"], None);
        check(&[range("10.244.0.0/24", 16)], &[], None);
    }
}
