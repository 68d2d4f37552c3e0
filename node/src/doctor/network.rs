//! What the kernel has for the pod network against its plan, in Kubernetes' names.

use std::net::IpAddr;

use model::{ObjectName, Snapshot};
use netlink::Netlink;
use netlink::nft::{self, Nft};
use overlay::audit::{Difference, Part, Whose, differences, table_differences};
use overlay::plan::Plan;
use overlay::pods::Assigned;

use super::finding;
use crate::findings::{Finding, Severity};

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

/// One finding for each table of the pod network that is not as it shall be.
///
/// # Errors
/// When they cannot be read.
pub fn tables(plan: &Plan, pods: &[Assigned], anti_spoofing: bool) -> Result<Vec<Finding>, nft::Error> {
    let found = table_differences(&mut Nft::open()?, plan, pods, anti_spoofing)?;
    let of_table = |(table, differences): (String, Vec<String>)| {
        finding(
            "network-rules",
            format!("table {table}"),
            differences.join("; "),
            "causeway doctor --fix; the agent makes it again when it sees the change: find who changes it",
        )
    };
    Ok(found.into_iter().map(of_table).collect())
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
        Part::ForeignRoute => (
            "foreign-route",
            "ip route del, where nobody needs it: packets to that part of the subnet do not take the way to its node",
        ),
        Part::Underlay => (
            "underlay",
            "ip link set DEVICE up, ip address add: other nodes, etcd and the API server are reached by it",
        ),
        Part::UnderlayNeighbour => (
            "underlay-neighbour",
            "none is needed where that is the node's MAC address; else ip neigh del, and it is asked for",
        ),
        Part::PodMtu => (
            "pod-mtu-small",
            "none is needed; causeway doctor --fix gives both ends what the network takes now",
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
        Whose::Pod { name, container } => pod_text(name.as_ref(), container),
    };
    let severity = match difference.part {
        Part::UnderlayNeighbour | Part::PodMtu => Severity::Note,
        _ => Severity::Wrong,
    };
    Finding {
        severity,
        ..finding(id, object, difference.to_string(), repair)
    }
}

/// A pod by its name, where the runtime told it.
pub fn pod_text(name: Option<&ObjectName>, container: &str) -> String {
    match name {
        Some(name) => format!("Pod {name}"),
        None => format!("container {container}"),
    }
}

fn node_name(snapshot: &Snapshot, address: IpAddr) -> String {
    let mut nodes = snapshot.nodes.iter();
    let named = nodes.find(|(_, node)| node.internal_addresses.contains(&address));
    match named {
        Some((name, _)) => format!("Node {name}"),
        None => format!("the node at {address}"),
    }
}
