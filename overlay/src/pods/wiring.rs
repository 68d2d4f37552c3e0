//! The plan by which one pod is wired: names, MAC addresses and routes that follow from its key and addresses alone.
//!
//! Packet walk, pod to anywhere: the pod's default route points to 169.254.1.1 or fe80::1, whose MAC address is a
//! permanent neighbour entry, so that nobody is asked for it; the frame enters the host at the veth's other end,
//! addressed to it, and is routed. Back: the host's `/32` or `/128` route names the veth, and the permanent neighbour
//! entry of the pod's address its MAC address. No bridge, no learning, no broadcast.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use model::wiring::{ENI_IFNAME_DIGITS, ENI_IFNAME_PREFIX, HOST_IFNAME_PREFIX, PodRoute, WiringPlan};
use model::{IpFamily, MacAddr, Mtu, ObjectName};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::addresses::{Assigned, AttachmentKey};

/// The pods' next hop. Link-local (RFC 3927, RFC 4291 §2.5.6), the same in every pod; no host owns it.
#[must_use]
pub const fn gateway(family: IpFamily) -> IpAddr {
    match family {
        IpFamily::V4 => IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
        IpFamily::V6 => IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
    }
}

/// Plans one pod's interface.
#[must_use]
pub fn plan_pod(assigned: &Assigned, mtu: Mtu) -> WiringPlan {
    let addresses = assigned.addresses();
    let routes = addresses.iter().flat_map(|(family, _)| {
        let gateway = gateway(family);
        let on_link = PodRoute {
            destination: IpNetwork::from(gateway),
            gateway: None,
        };
        let default = PodRoute {
            destination: everywhere(family),
            gateway: Some(gateway),
        };
        [on_link, default]
    });
    WiringPlan {
        host_ifname: host_ifname(assigned),
        host_mac: assigned.host_mac.unwrap_or_else(|| host_mac(&assigned.key)),
        pod_ifname: assigned.key.ifname.clone(),
        pod_mac: pod_mac(assigned),
        mtu,
        addresses: addresses.values().copied().map(IpNetwork::from).collect(),
        gateways: addresses.iter().map(|(family, _)| gateway(family)).collect(),
        routes: routes.collect(),
        bandwidth: assigned.bandwidth,
    }
}

/// Name of the device on the node's side, within the 15 bytes of `IFNAMSIZ`: that which the pod was made with.
#[must_use]
pub fn host_ifname(assigned: &Assigned) -> String {
    let made_with = assigned.host_ifname.clone();
    made_with.unwrap_or_else(|| ifname_by_key(&assigned.key))
}

/// Such a name of a pod in a node's subnet: `cw` and 12 hexadecimal digits.
#[must_use]
pub fn ifname_by_key(key: &AttachmentKey) -> String {
    format!("{HOST_IFNAME_PREFIX}{}", hex(digest(key, "name"), 12))
}

/// Such a name of a pod with an address of a VPC's network interface: `eni` and the first 11 hexadecimal digits of the
/// SHA-1 of `namespace.name`. amazon-vpc-cni-k8s makes it so, and there are tools that compute it from the pod.
#[must_use]
pub fn eni_ifname(pod: &ObjectName) -> String {
    let name = format!("{}.{}", pod.namespace, pod.name);
    format!(
        "{ENI_IFNAME_PREFIX}{}",
        hex(<Sha1 as sha1::Digest>::digest(name), ENI_IFNAME_DIGITS)
    )
}

/// The same where the pod's name does not tell: it is not known, the interface is not its first, or another one is called
/// so.
#[must_use]
pub fn eni_ifname_by_key(key: &AttachmentKey) -> String {
    format!(
        "{ENI_IFNAME_PREFIX}{}",
        hex(digest(key, "name"), ENI_IFNAME_DIGITS)
    )
}

/// The first digits of a digest.
fn hex(digest: impl AsRef<[u8]>, digits: usize) -> String {
    let bytes = digest.as_ref().iter();
    let mut text: String = bytes.map(|byte| format!("{byte:02x}")).collect();
    text.truncate(digits);
    text
}

/// MAC address of the device on the node's side, of interfaces that are wired here.
#[must_use]
pub fn host_mac(key: &AttachmentKey) -> MacAddr {
    mac(key, "host")
}

/// MAC address of the pod's device.
#[must_use]
pub fn pod_mac(assigned: &Assigned) -> MacAddr {
    assigned.mac.unwrap_or_else(|| mac(&assigned.key, "pod"))
}

fn mac(key: &AttachmentKey, side: &str) -> MacAddr {
    let [a, b, c, d, e, f, ..] = digest(key, side);
    MacAddr::locally_administered([a, b, c, d, e, f])
}

fn digest(key: &AttachmentKey, purpose: &str) -> [u8; 32] {
    Sha256::digest(format!("{purpose}\0{}\0{}", key.container_id, key.ifname)).into()
}

fn everywhere(family: IpFamily) -> IpNetwork {
    let unspecified = match family {
        IpFamily::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpFamily::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    IpNetwork::new(unspecified, 0).expect("invariant: 0 is a prefix length")
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
        let both = ["10.244.1.2", "fd05:0:0:1::2"].map(|text| text.parse::<IpAddr>().expect("an address"));
        let assigned = Assigned::new(key.clone(), &both.into_iter().collect());
        let plan = plan_pod(&assigned, Mtu(1450));
        let json = serde_json::to_value(&plan).expect("plain data");
        assert_eq!(
            json["addresses"],
            serde_json::json!(["10.244.1.2/32", "fd05:0:0:1::2/128"])
        );
        assert_eq!(json["gateways"], serde_json::json!(["169.254.1.1", "fe80::1"]));
        assert_eq!(
            json["routes"],
            serde_json::json!([
                {"destination": "169.254.1.1/32", "gateway": null},
                {"destination": "0.0.0.0/0", "gateway": "169.254.1.1"},
                {"destination": "fe80::1/128", "gateway": null},
                {"destination": "::/0", "gateway": "fe80::1"},
            ])
        );
        assert_eq!((plan.host_ifname.len(), plan.pod_ifname.as_str()), (14, "eth0"));
        assert_ne!(plan.host_mac, plan.pod_mac);
        assert_eq!(plan_pod(&assigned, Mtu(1450)), plan);
        let other = AttachmentKey {
            ifname: "eth1".to_owned(),
            ..key
        };
        assert_ne!(ifname_by_key(&other), plan.host_ifname);
    }

    /// The digests are those of `printf NAMESPACE.NAME | sha1sum`.
    #[test]
    fn a_pod_of_a_vpc_is_called_as_others_compute_it() {
        let rows = [
            ("default", "web-0", "eni0d7763386da"),
            ("kube-system", "coredns-6d4b75cb6d-abcde", "eni90953e24e13"),
            ("a", "b", "eni69f6642c9d7"),
        ];
        for (namespace, name, expected) in rows {
            assert_eq!(eni_ifname(&ObjectName::new(namespace, name)), expected);
            assert!(model::wiring::is_host_ifname(expected));
        }
        let key = AttachmentKey {
            container_id: "c1".to_owned(),
            ifname: "eth0".to_owned(),
        };
        assert!(model::wiring::is_host_ifname(&eni_ifname_by_key(&key)));
        assert!(model::wiring::is_host_ifname(&ifname_by_key(&key)));
    }
}
