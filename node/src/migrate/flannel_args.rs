//! flannel's command line, as its DaemonSet has it (`flannel`, `main.go`).

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::draft::Draft;
use super::told::{LOGS, Verdict};

const OF: &str = "flannel";

/// Options that are given or not; all others have a value.
const SWITCHES: [&str; 7] = [
    "ip-masq",
    "ip-blackhole-route",
    "iptables-forward-rules",
    "kube-subnet-mgr",
    "set-node-network-unavailable",
    "version",
    "alsologtostderr",
];

/// An option and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    name: String,
    value: String,
}

/// Whether leases are in Kubernetes by that command line.
#[must_use]
pub fn are_leases_in_kubernetes(arguments: &[String]) -> bool {
    let mut given = given(arguments).into_iter();
    given.any(|given| given.name == "kube-subnet-mgr" && given.value != "false")
}

/// Tells each option. `arguments` is what follows the program.
pub fn translate(arguments: &[String], draft: &mut Draft) {
    let given = given(arguments);
    for Given { name, value } in &given {
        let devices = given.iter().filter(|other| other.name == "iface").count();
        let verdict = if name == "iface" && devices > 1 {
            Verdict::not_supported("network.interface names one device: which of them this node has")
        } else {
            verdict(name, value)
        };
        draft.add(OF, format!("--{name}"), &json!(value), &verdict);
    }
    // What flannel does for want of a word (`main.go`), and the agent does not.
    let defaults = [
        (
            "ip-masq",
            "flannel masquerades nothing without it; what leaves the pod network is masqueraded here",
        ),
        ("iptables-forward-rules", FORWARDS),
    ];
    for (name, words) in defaults {
        if !given.iter().any(|given| given.name == name) {
            draft.add(OF, format!("--{name}"), &Value::Null, &Verdict::differs(words));
        }
    }
}

/// Go's flags: one dash or two, the value behind `=` or in the next word.
fn given(arguments: &[String]) -> Vec<Given> {
    let mut words = arguments.iter();
    let mut given = Vec::new();
    while let Some(word) = words.next() {
        let option = word.trim_start_matches('-');
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None if SWITCHES.contains(&option) => (option, "true".to_owned()),
            None => (option, words.next().cloned().unwrap_or_default()),
        };
        let name = name.to_owned();
        given.push(Given { name, value });
    }
    given
}

const MASQUERADES: &str = "what leaves the pod network is masqueraded";
const FORWARDS: &str = "flannel accepts in FORWARD what pods send and get, unless told not to; no rules of FORWARD are \
                        added here: where its policy is DROP, accept that there";
const CONDITION: &str = "with leases in Kubernetes the Node's condition NetworkUnavailable is set";
const REPAIRED: &str = "rules, routes and devices are repaired within a second";

fn verdict(name: &str, value: &str) -> Verdict {
    let etcd = |key| Verdict::taken(key, value);
    match name {
        "kube-subnet-mgr" if value != "false" => Verdict::taken("network.leases", "kubernetes"),
        "kube-subnet-mgr" => Verdict::as_it_is("network.leases is etcd for want of a word"),
        "iface" => device(value),
        "iface-regex" | "iface-can-reach" => {
            Verdict::not_supported("network.interface names the device, network.publicIp the address")
        }
        "public-ip" if value.parse::<Ipv4Addr>().is_ok() => Verdict::taken("network.publicIp", value),
        "public-ip" => Verdict::not_supported("network.publicIp is an IPv4 address"),
        "public-ipv6" if value.parse::<Ipv6Addr>().is_ok() => Verdict::taken("network.publicIpV6", value),
        "public-ipv6" => Verdict::not_supported("network.publicIpV6 is an IPv6 address"),
        "ip-masq" if value != "false" => Verdict::as_it_is(MASQUERADES),
        "ip-masq" => Verdict::differs(MASQUERADES),
        "etcd-endpoints" => {
            let endpoints: Vec<&str> = value.split(',').map(str::trim).collect();
            Verdict::taken("network.etcd.endpoints", endpoints)
        }
        "etcd-prefix" => etcd("network.etcd.prefix"),
        "etcd-cafile" => etcd("network.etcd.ca"),
        "etcd-certfile" => etcd("network.etcd.cert"),
        "etcd-keyfile" => etcd("network.etcd.key"),
        "etcd-username" => etcd("network.etcd.username"),
        "etcd-password" => Verdict::not_supported("network.etcd.passwordFile names a file with it"),
        "subnet-file" => Verdict::taken("network.subnetEnv", value),
        "kubeconfig-file" => Verdict::taken("kubernetes.kubeconfig", value),
        "kube-annotation-prefix" if value == "flannel.alpha.coreos.com" => {
            Verdict::as_it_is("it is the same here")
        }
        "kube-annotation-prefix" => {
            Verdict::not_supported("annotations of Nodes begin with flannel.alpha.coreos.com")
        }
        "healthz-ip" | "healthz-port" => Verdict::differs("/healthz is served at healthBind"),
        "set-node-network-unavailable" if value == "false" => Verdict::differs(CONDITION),
        "set-node-network-unavailable" => Verdict::as_it_is(CONDITION),
        "net-config-path" => Verdict::not_needed("network.config"),
        "iptables-forward-rules" if value == "false" => Verdict::as_it_is("no rules of FORWARD are added"),
        "iptables-forward-rules" => Verdict::differs(FORWARDS),
        "ip-blackhole-route" if value == "false" => Verdict::as_it_is("there is none"),
        "ip-blackhole-route" => Verdict::differs(
            "there is none: what goes to an address of the node's subnet that no pod has follows its other routes",
        ),
        "iptables-resync" => Verdict::not_needed(REPAIRED),
        "subnet-lease-renew-margin" => Verdict::not_needed("leases are kept alive"),
        "v" | "vmodule" | "logtostderr" | "alsologtostderr" | "stderrthreshold" | "log_dir" => {
            Verdict::differs(LOGS)
        }
        _ => Verdict::not_supported("is not known here"),
    }
}

/// A device, or an address of one.
fn device(value: &str) -> Verdict {
    match (value.parse::<Ipv4Addr>(), value.parse::<Ipv6Addr>()) {
        (Ok(_), _) => Verdict::taken("network.publicIp", value),
        (_, Ok(_)) => Verdict::taken("network.publicIpV6", value),
        _ => Verdict::taken("network.interface", value),
    }
}
