//! The plan by which the CNI plugin wires one pod: decided by the agent, applied by `causeway-cni` in the pod's
//! network namespace, so that the agent needs no right to enter pods.

use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU64};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{MacAddr, Mtu, Protocol};

/// The mark on every route that Causeway makes (`rtm_protocol`, shown by `ip route` as `proto 213`): 213 is in nobody's
/// list (`/etc/iproute2/rt_protos`). The plugin marks the node's route to a new pod with it, the agent repairs what
/// carries it.
pub const ROUTE_PROTOCOL: u8 = 213;

/// What the names of the pods' devices on the node's side begin with where the node has a subnet; `cw` and 12 hexadecimal
/// digits.
pub const HOST_IFNAME_PREFIX: &str = "cw";

/// What they begin with where pods have addresses of network interfaces of a VPC; `eni` and [`ENI_IFNAME_DIGITS`]
/// hexadecimal digits. amazon-vpc-cni-k8s calls them so, and what looks for pods' devices by name goes by it.
pub const ENI_IFNAME_PREFIX: &str = "eni";

/// How many digits of a digest stand in such a name.
pub const ENI_IFNAME_DIGITS: usize = 11;

/// Whether a device may be a pod's on the node's side, by its name. A pod keeps the name that it was made with, so both
/// kinds may be on a node. Another network plugin's may be called `eni…` too: a name alone makes no device ours.
#[must_use]
pub fn is_host_ifname(name: &str) -> bool {
    let is_digest = |digits: &str| {
        digits.len() == ENI_IFNAME_DIGITS && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    };
    name.starts_with(HOST_IFNAME_PREFIX) || name.strip_prefix(ENI_IFNAME_PREFIX).is_some_and(is_digest)
}

/// A pair of veth devices, its addresses and routes. Everything in it is desired state: applying it twice is
/// applying it once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WiringPlan {
    /// Name of the device on the node's side, at most 15 bytes.
    pub host_ifname: String,
    /// MAC address of the device on the node's side.
    pub host_mac: MacAddr,
    /// Name of the device in the pod (`CNI_IFNAME`).
    pub pod_ifname: String,
    /// MAC address of the device in the pod.
    pub pod_mac: MacAddr,
    /// MTU of both devices.
    pub mtu: Mtu,
    /// Addresses of the pod's device, host prefixes (`/32`, `/128`).
    pub addresses: Vec<IpNetwork>,
    /// Link-local gateways that the pod resolves by a permanent neighbour entry to `host_mac`.
    pub gateways: Vec<IpAddr>,
    /// Routes in the pod: destination and the gateway it goes through; `None` = on the link.
    pub routes: Vec<PodRoute>,
    /// How fast packets come to the pod and leave it.
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
}

/// What a runtime asks of an interface beside its being connected (CNI conventions, "Dynamic plugin specific fields").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Wishes {
    /// Addresses that it shall have, at most one of each version of IP. Default: free ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// MAC address that it shall have. Default: one that follows from its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Ports of the node that lead to ports of the pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// How fast packets may come to the pod and leave it.
    #[serde(skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
}

/// How fast packets may come and go; absent: as fast as they can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// To the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<RateLimit>,
    /// From the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<RateLimit>,
}

impl Bandwidth {
    /// Whether there is no limit at all.
    #[must_use]
    pub const fn is_unlimited(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

/// A rate, and how much may come at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Bits in a second.
    pub rate_bits: NonZeroU64,
    /// Bits at once.
    pub burst_bits: NonZeroU64,
}

/// A port of the node that leads to a port of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The node's port.
    pub host_port: NonZeroU16,
    /// The pod's port.
    pub container_port: NonZeroU16,
    /// Of which protocol.
    pub protocol: Protocol,
    /// The node's address that has it; absent: every one. The unspecified address stands for all of its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

impl PortMapping {
    /// Whether a packet could be for both.
    #[must_use]
    pub fn collides_with(&self, other: &Self) -> bool {
        let addresses_meet = match (self.host_ip, other.host_ip) {
            (Some(a), Some(b)) => {
                a == b || a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified())
            }
            _ => true,
        };
        addresses_meet && (self.protocol, self.host_port) == (other.protocol, other.host_port)
    }
}

/// A route inside a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRoute {
    /// Destination, `0.0.0.0/0` for the default route.
    pub destination: IpNetwork,
    /// Next hop; `None` = on the link.
    pub gateway: Option<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_pods_are_known_by_their_names_of_either_kind() {
        let rows = [
            ("cw0123456789ab", true),
            ("cw1", true),
            ("eni0d7763386da", true),
            ("eni0d7763386d", false),
            ("eni0d7763386daa", false),
            ("eni0d7763386dx", false),
            ("eni", false),
            ("ens5", false),
            ("eth0", false),
            ("", false),
        ];
        for (name, expected) in rows {
            assert_eq!(is_host_ifname(name), expected, "{name}");
        }
    }
}
