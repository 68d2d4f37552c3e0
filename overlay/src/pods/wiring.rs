//! The plan by which one pod is wired: names, MAC addresses and routes that follow from its key and address alone.
//!
//! Packet walk, pod to anywhere: the pod's default route points to 169.254.1.1, whose MAC address is a permanent
//! neighbour entry, so that no ARP is ever asked; the frame enters the host at the veth's other end, addressed to it,
//! and is routed. Back: the host's `/32` route names the veth, and the permanent neighbour entry of the pod's address
//! its MAC address. No bridge, no learning, no broadcast.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network};
use model::wiring::{HOST_IFNAME_PREFIX, PodRoute, WiringPlan};
use model::{MacAddr, Mtu};
use sha2::{Digest, Sha256};

use super::addresses::{Assigned, AttachmentKey};

/// The pods' next hop. Link-local (RFC 3927), the same in every pod; no host owns it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Plans one pod's interface.
#[must_use]
pub fn plan_pod(assigned: &Assigned, mtu: Mtu) -> WiringPlan {
    let on_link = PodRoute {
        destination: host_network(GATEWAY),
        gateway: None,
    };
    let default = PodRoute {
        destination: default_destination(),
        gateway: Some(GATEWAY.into()),
    };
    WiringPlan {
        host_ifname: host_ifname(&assigned.key),
        host_mac: mac(&assigned.key, "host"),
        pod_ifname: assigned.key.ifname.clone(),
        pod_mac: mac(&assigned.key, "pod"),
        mtu,
        addresses: vec![host_network(assigned.address)],
        gateways: vec![IpAddr::V4(GATEWAY)],
        routes: vec![on_link, default],
    }
}

/// Name of the device on the node's side: `cw` and 12 hexadecimal digits, within the 15 bytes of `IFNAMSIZ`.
#[must_use]
pub fn host_ifname(key: &AttachmentKey) -> String {
    let digest: String = digest(key, "name")
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{HOST_IFNAME_PREFIX}{digest}")
}

/// MAC address of the pod's device.
#[must_use]
pub fn pod_mac(key: &AttachmentKey) -> MacAddr {
    mac(key, "pod")
}

fn mac(key: &AttachmentKey, side: &str) -> MacAddr {
    let [a, b, c, d, e, f, ..] = digest(key, side);
    MacAddr::locally_administered([a, b, c, d, e, f])
}

fn digest(key: &AttachmentKey, purpose: &str) -> [u8; 32] {
    Sha256::digest(format!("{purpose}\0{}\0{}", key.container_id, key.ifname)).into()
}

fn host_network(address: Ipv4Addr) -> IpNetwork {
    IpNetwork::V4(Ipv4Network::from(address))
}

fn default_destination() -> IpNetwork {
    let everything = Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0);
    IpNetwork::V4(everything.expect("invariant: 0 is a prefix length of IPv4"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_wired_by_a_host_route_and_a_link_local_gateway() {
        let key = AttachmentKey {
            container_id: "c1".to_owned(),
            ifname: "eth0".to_owned(),
        };
        let assigned = Assigned {
            key: key.clone(),
            address: Ipv4Addr::new(10, 244, 1, 2),
            netns: "/run/netns/x".to_owned(),
            pod: None,
            boot: String::new(),
        };
        let plan = plan_pod(&assigned, Mtu(1450));
        let json = serde_json::to_value(&plan).expect("plain data");
        assert_eq!(json["addresses"], serde_json::json!(["10.244.1.2/32"]));
        assert_eq!(json["gateways"], serde_json::json!(["169.254.1.1"]));
        assert_eq!(
            json["routes"],
            serde_json::json!([
                {"destination": "169.254.1.1/32", "gateway": null},
                {"destination": "0.0.0.0/0", "gateway": "169.254.1.1"},
            ])
        );
        assert_eq!((plan.host_ifname.len(), plan.pod_ifname.as_str()), (14, "eth0"));
        assert_ne!(plan.host_mac, plan.pod_mac);
        assert_eq!(plan_pod(&assigned, Mtu(1450)), plan);
        let other = AttachmentKey {
            ifname: "eth1".to_owned(),
            ..key
        };
        assert_ne!(host_ifname(&other), plan.host_ifname);
    }
}
