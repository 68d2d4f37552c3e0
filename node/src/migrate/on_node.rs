//! What kube-proxy, flannel and CNI plugins have on this node, and what would become of it. Nothing is changed.

use std::net::IpAddr;
use std::path::Path;

use model::{IpFamily, MacAddr};
use netlink::nft::{Family, Nft, Table};
use netlink::{Kernel as _, Link, LinkKind, Netlink};
use overlay::flannel::{Backend, NetworkConfig};
use proxy::datapath::iptables::Iptables;
use serde_json::{Value, json};

use super::told::{Told, Verdict};
use crate::agent::CONFLIST;

const OF: &str = "this node";

/// Where flannel tells of the node's subnet, and where CNI plugins are configured.
const SUBNET_ENV: &str = "/run/flannel/subnet.env";
const CNI_DIR: &str = "/etc/cni/net.d";

/// Tables of nftables by whose they are.
const TABLES: [(Family, &str, &str); 4] = [
    (Family::Ip, "kube-proxy", KUBE_PROXYS),
    (Family::Ip6, "kube-proxy", KUBE_PROXYS),
    (Family::Ip, "flannel-ipv4", FLANNELS),
    (Family::Ip6, "flannel-ipv6", FLANNELS),
];

const KUBE_PROXYS: &str = "stays in force beside ours: stop kube-proxy once the agent serves, then `causeway node cleanup --kube-proxy`";
const FLANNELS: &str = "stays, and masquerades as ours does: delete it once flannel is stopped";

/// What is there.
#[derive(Clone, Debug, Default)]
pub struct Found {
    links: Vec<Link>,
    /// Whether iptables has kube-proxy's chains.
    has_chains: bool,
    /// Of [`TABLES`].
    tables: Vec<(String, &'static str)>,
    /// The file's text.
    subnet_env: Option<String>,
    /// Configurations of CNI plugins, in the order in which a runtime reads them.
    conflists: Vec<String>,
}

/// Looks around.
///
/// # Errors
/// When the kernel does not tell, as without root.
pub fn look() -> anyhow::Result<Found> {
    let mut nft = Nft::open()?;
    let mut tables = Vec::new();
    for (family, name, words) in TABLES {
        if nft.has_table(&Table::new(family, name))? {
            tables.push((
                format!("table {} {name}", if family == Family::Ip { "ip" } else { "ip6" }),
                words,
            ));
        }
    }
    Ok(Found {
        links: Netlink::open()?.links()?,
        has_chains: Iptables::is_there(&[IpFamily::V4, IpFamily::V6].into()),
        tables,
        subnet_env: std::fs::read_to_string(SUBNET_ENV).ok(),
        conflists: conflists(Path::new(CNI_DIR)),
    })
}

/// By name, as runtimes read them (CNI 1.1 §1; libcni's `ConfFiles`).
fn conflists(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_read = |name: &String| {
        [".conf", ".conflist", ".json"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    let mut names: Vec<String> = names.filter(is_read).collect();
    names.sort();
    names
}

impl Found {
    /// What becomes of it under a configuration. `network`: flannel's, where the agent makes a pod network.
    #[must_use]
    pub fn judged(&self, network: Option<&NetworkConfig>) -> Vec<Told> {
        let mut told = Vec::new();
        if self.has_chains {
            let verdict =
                Verdict::differs(format!("{KUBE_PROXYS}; proxy.datapath: iptables takes them over"));
            told.push(verdict.told(OF, "chains KUBE-* of iptables", &Value::Null));
        }
        let tables = self.tables.iter();
        told.extend(tables.map(|(table, words)| Verdict::differs(*words).told(OF, table, &Value::Null)));
        told.extend(self.links.iter().filter_map(|link| device(link, network)));
        told.extend(self.subnet(network));
        if network.is_some() {
            told.extend(self.conflists.iter().map(|name| conflist(name)));
        }
        told
    }

    fn subnet(&self, network: Option<&NetworkConfig>) -> Option<Told> {
        let text = self.subnet_env.as_deref()?;
        let subnets = text
            .lines()
            .filter(|line| line.starts_with("FLANNEL_") && line.contains("SUBNET="));
        let verdict = match network {
            Some(_) => Verdict::as_it_is(
                "the node keeps its subnet: with leases in etcd the same is claimed, in Kubernetes it is spec.podCIDRs",
            ),
            None => Verdict::not_needed("the agent makes no pod network, and leaves it to flannel"),
        };
        Some(verdict.told(OF, SUBNET_ENV, &json!(subnets.collect::<Vec<_>>().join(" "))))
    }
}

fn device(link: &Link, network: Option<&NetworkConfig>) -> Option<Told> {
    let (value, verdict) = match &link.kind {
        _ if link.name == "kube-ipvs0" => (
            Value::Null,
            Verdict::differs(
                "has the Services' addresses, by which the node answers for them: stop kube-proxy, then `kube-proxy \
                 --cleanup`",
            ),
        ),
        LinkKind::Vxlan(vxlan) if link.name.starts_with("flannel") => {
            let mac = link.mac.map(|mac| MacAddr(mac).to_string()).unwrap_or_default();
            let value = json!(format!("VNI {}, port {}, MAC {mac}", vxlan.vni, vxlan.port));
            (
                value,
                tunnel(&link.name, vxlan.vni, vxlan.port, vxlan.local, network),
            )
        }
        LinkKind::Bridge if matches!(link.name.as_str(), "cni0" | "cbr0") => (
            Value::Null,
            Verdict::differs(
                "pods on it stay there until they are made anew, and new ones have a route of their own",
            ),
        ),
        _ => return None,
    };
    Some(verdict.told(OF, format!("device {}", link.name), &value))
}

fn tunnel(
    name: &str,
    vni: u32,
    port: u16,
    local: Option<IpAddr>,
    network: Option<&NetworkConfig>,
) -> Verdict {
    let Some(network) = network else {
        return Verdict::not_needed("the agent makes no pod network, and leaves it to flannel");
    };
    let family = local.map_or(IpFamily::V4, IpFamily::from);
    let is_wanted = network
        .device_names()
        .get(family)
        .is_some_and(|wanted| wanted == name);
    match &network.backend {
        Backend::Vxlan {
            vni: wanted,
            port: wanted_port,
            ..
        } if is_wanted => {
            if (wanted.0, *wanted_port) == (vni, port) {
                Verdict::as_it_is(
                    "is taken over with its VNI, port and MAC address: other nodes notice nothing",
                )
            } else {
                Verdict::differs(format!(
                    "is made anew with VNI {} and port {wanted_port}",
                    wanted.0
                ))
            }
        }
        _ => Verdict::differs("is not of this network: stays until it is deleted"),
    }
}

fn conflist(name: &str) -> Told {
    let ours = CONFLIST;
    let path = format!("{CNI_DIR}/{name}");
    let verdict = match name.cmp(ours) {
        std::cmp::Ordering::Less => Verdict::not_supported(format!(
            "comes before {ours}: the container runtime takes it, until it is moved away"
        )),
        std::cmp::Ordering::Equal => Verdict::as_it_is("is ours"),
        std::cmp::Ordering::Greater => Verdict::not_needed(format!(
            "comes after {ours}: new pods are connected by causeway-cni"
        )),
    };
    verdict.told(OF, path, &Value::Null)
}

#[cfg(test)]
mod tests {
    use netlink::Vxlan;

    use super::*;

    fn link(name: &str, kind: LinkKind) -> Link {
        Link {
            index: 7,
            name: name.to_owned(),
            mac: Some([2, 0, 0, 0, 0, 7]),
            mtu: 1450,
            up: true,
            running: true,
            loopback: false,
            master: None,
            alias: None,
            parent: None,
            parent_elsewhere: false,
            kind,
        }
    }

    fn vxlan(vni: u32, port: u16, local: &str) -> LinkKind {
        LinkKind::Vxlan(Vxlan {
            vni,
            local: local.parse().ok(),
            device: None,
            port,
            learning: false,
            udp_csum: true,
            gbp: false,
            collect_metadata: false,
        })
    }

    #[track_caller]
    fn check(found: &Found, backend: Option<&str>, expected: &[&str]) {
        let config = |backend: &str| {
            let text = format!(
                r#"{{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/56", "Backend": {backend}}}"#
            );
            NetworkConfig::parse(&text).expect("valid")
        };
        let told = found.judged(backend.map(config).as_ref());
        let short: Vec<String> = told
            .iter()
            .map(|told| format!("{} {}", told.outcome, told.path))
            .collect();
        assert_eq!(short, expected, "for {backend:?}: {told:#?}");
    }

    #[test]
    fn a_tunnel_is_taken_over_where_number_port_and_name_are_those_of_the_network() {
        let found = |name: &str, kind| Found {
            links: vec![link(name, kind)],
            ..Found::default()
        };
        let v4 = || found("flannel.1", vxlan(1, 8472, "192.0.2.1"));
        let v6 = || found("flannel-v6.1", vxlan(1, 8472, "fd00::1"));
        let rows = [
            (v4(), Some(r#"{"Type": "vxlan"}"#), "taken device flannel.1"),
            (v6(), Some(r#"{"Type": "vxlan"}"#), "taken device flannel-v6.1"),
            (
                v4(),
                Some(r#"{"Type": "vxlan", "Port": 4789}"#),
                "differs device flannel.1",
            ),
            (
                v4(),
                Some(r#"{"Type": "vxlan", "VNI": 4096}"#),
                "differs device flannel.1",
            ),
            (v4(), Some(r#"{"Type": "host-gw"}"#), "differs device flannel.1"),
            (v4(), None, "not needed device flannel.1"),
        ];
        for (found, backend, expected) in rows {
            check(&found, backend, &[expected]);
        }
        check(&found("vxlan.calico", vxlan(1, 8472, "192.0.2.1")), None, &[]);
        check(&found("eth0", LinkKind::Physical), None, &[]);
    }

    #[test]
    fn what_others_leave_in_force_is_told_and_who_is_first_among_cni_configurations() {
        let mut found = Found {
            links: vec![
                link("kube-ipvs0", LinkKind::Other("dummy".to_owned())),
                link("cni0", LinkKind::Bridge),
            ],
            has_chains: true,
            tables: vec![("table ip kube-proxy".to_owned(), KUBE_PROXYS)],
            subnet_env: Some(
                "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\n".to_owned(),
            ),
            conflists: ["05-first.conf", "10-causeway.conflist", "10-flannel.conflist"]
                .map(str::to_owned)
                .into(),
        };
        let before = [
            "differs chains KUBE-* of iptables",
            "differs table ip kube-proxy",
            "differs device kube-ipvs0",
            "differs device cni0",
        ];
        let network = [
            "taken /run/flannel/subnet.env",
            "NOT SUPPORTED /etc/cni/net.d/05-first.conf",
            "taken /etc/cni/net.d/10-causeway.conflist",
            "not needed /etc/cni/net.d/10-flannel.conflist",
        ];
        check(
            &found,
            Some(r#"{"Type": "vxlan"}"#),
            &[&before[..], &network].concat(),
        );
        check(
            &found,
            None,
            &[&before[..], &["not needed /run/flannel/subnet.env"]].concat(),
        );
        let told = found.judged(None);
        let subnet = told.last().expect("it is told");
        assert_eq!(subnet.value, json!("FLANNEL_SUBNET=10.244.3.1/24"));
        found = Found::default();
        check(&found, Some(r#"{"Type": "vxlan"}"#), &[]);
    }

    #[test]
    fn configurations_of_plugins_are_read_in_the_order_of_their_names() {
        let directory = std::env::temp_dir().join(format!("cwt-conflists-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("writable");
        for name in ["10-b.conflist", "10-a.json", "notes.txt", "9-c.conf"] {
            std::fs::write(directory.join(name), "").expect("writable");
        }
        assert_eq!(conflists(&directory), ["10-a.json", "10-b.conflist", "9-c.conf"]);
        std::fs::remove_dir_all(&directory).expect("own directory");
        assert_eq!(conflists(&directory), Vec::<String>::new());
    }
}
