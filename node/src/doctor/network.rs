//! What the kernel has for the pod network against its plan, in Kubernetes' names.

use std::net::IpAddr;

use model::Snapshot;
use netlink::Netlink;
use overlay::audit::{Difference, Part, Whose, differences};
use overlay::plan::Plan;
use overlay::pods::Assigned;

use super::finding;
use crate::findings::Finding;

/// One finding for each thing that is not as it shall be.
///
/// # Errors
/// When the kernel cannot be read.
pub fn look(snapshot: &Snapshot, plan: &Plan, pods: &[Assigned]) -> netlink::Result<Vec<Finding>> {
    let found = differences(&mut Netlink::open()?, plan, pods)?;
    Ok(found
        .iter()
        .map(|difference| told(snapshot, difference))
        .collect())
}

fn told(snapshot: &Snapshot, difference: &Difference) -> Finding {
    let (id, repair) = match difference.part {
        Part::Device => (
            "tunnel-device",
            "causeway doctor --fix; the agent repairs it when it sees the change",
        ),
        Part::Route => (
            "pod-route",
            "causeway doctor --fix; a route that is not the agent's must go by hand: ip route",
        ),
        Part::Neighbour => (
            "pod-neighbour",
            "causeway doctor --fix; the agent repairs it when it sees the change",
        ),
        Part::Forwarding => (
            "tunnel-fdb",
            "causeway doctor --fix; the agent repairs it when it sees the change",
        ),
        Part::PodDevice if difference.found.is_none() => (
            "pod-device-gone",
            "delete the pod: its network namespace lost its device, which comes with a new one",
        ),
        Part::PodDevice => (
            "pod-device",
            "causeway doctor --fix; where the pod's network namespace is out of the agent's sight its MTU stays: delete the pod",
        ),
    };
    let object = match &difference.whose {
        Whose::ThisNode => "this node".to_owned(),
        Whose::Node(address) => node_name(snapshot, *address),
        Whose::Pod { name: Some(name), .. } => format!("Pod {name}"),
        Whose::Pod {
            name: None,
            container,
        } => format!("container {container}"),
    };
    finding(id, object, difference.to_string(), repair)
}

fn node_name(snapshot: &Snapshot, address: IpAddr) -> String {
    let mut nodes = snapshot.nodes.iter();
    let named = nodes.find(|(_, node)| node.internal_addresses.contains(&address));
    match named {
        Some((name, _)) => format!("Node {name}"),
        None => format!("the node at {address}"),
    }
}
