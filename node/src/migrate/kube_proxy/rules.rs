//! What becomes of the fields whose value decides.

use std::net::{IpAddr, SocketAddr};

use http::Uri;
use ipnetwork::IpNetwork;
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{KubeProxy, Mode, Server, Verdict};

const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

pub fn api_version(state: &KubeProxy, _: &Value) -> Verdict {
    match state.text("/apiVersion") {
        "kubeproxy.config.k8s.io/v1alpha1" => Verdict::not_needed("says what the file is"),
        _ => Verdict::not_supported("only kubeproxy.config.k8s.io/v1alpha1 is known"),
    }
}

/// The server of a kubeconfig's current context. None where it names none by host alone.
pub fn server(kubeconfig: &Value) -> Option<Server> {
    let named = |list: &str, name: &Value| {
        let entries = kubeconfig[list].as_array()?;
        entries.iter().find(|entry| entry["name"] == *name).cloned()
    };
    let context = named("contexts", &kubeconfig["current-context"])?;
    let cluster = named("clusters", &context["context"]["cluster"])?;
    let user = named("users", &context["context"]["user"])?;
    let uri: Uri = cluster["cluster"]["server"].as_str()?.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']).to_owned();
    let is_root = matches!(uri.path(), "" | "/");
    (is_root && uri.scheme_str() == Some("https")).then(|| Server {
        host,
        port: uri.port_u16().unwrap_or(443),
        by_service_account: user["user"]["tokenFile"] == SERVICE_ACCOUNT,
    })
}

pub fn kubeconfig(state: &KubeProxy, value: &Value) -> Verdict {
    match &state.server {
        Some(server) if server.by_service_account => {
            let words =
                "kubernetes.serviceHost and servicePort, with the pod's service account, as it says itself";
            Verdict::taken("kubernetes.serviceHost", server.host.clone())
                .and("kubernetes.servicePort", server.port)
                .saying(words)
        }
        _ => Verdict::taken("kubernetes.kubeconfig", value.clone())
            .saying("kubernetes.kubeconfig; the agent needs the file at this path, and rights of its own"),
    }
}

pub fn log_format(_: &KubeProxy, value: &Value) -> Verdict {
    match value.as_str() {
        Some("text") => Verdict::as_it_is("logs are text for want of a word"),
        Some("json") => Verdict::taken("logging.format", "json"),
        _ => Verdict::differs("logging.format is text or json"),
    }
}

pub fn node_name(_: &KubeProxy, value: &Value) -> Verdict {
    Verdict::taken("nodeName", value.clone())
        .saying("nodeName; leave it out where one file serves all nodes, and give NODE_NAME")
}

/// kube-proxy listens there for nothing: it is what it takes for the node's address, and the defaults' version of IP.
pub fn bind_address(state: &KubeProxy, value: &Value) -> Verdict {
    let Some(address) = value.as_str().and_then(|text| text.parse::<IpAddr>().ok()) else {
        return Verdict::not_supported("is not an address");
    };
    let mut verdict = match (address.is_unspecified(), address.is_ipv6()) {
        (true, false) => Verdict::not_needed("the node's addresses are those of its Node object"),
        (true, true) => Verdict::as_it_is("the defaults of healthBind and metricsBind"),
        (false, _) => Verdict::differs("the node's addresses are those of its Node object"),
    };
    if address.is_ipv6() {
        let unsaid = |pointer: &str| state.text(pointer).is_empty();
        if unsaid("/healthzBindAddress") {
            verdict = verdict.and("healthBind", "[::]:10256");
        }
        if unsaid("/metricsBindAddress") {
            verdict = verdict.and("metricsBind", "[::1]:10249");
        }
    }
    verdict
}

pub fn health_bind(_: &KubeProxy, value: &Value) -> Verdict {
    bind("healthBind", 10_256, value)
}

pub fn metrics_bind(_: &KubeProxy, value: &Value) -> Verdict {
    bind("metricsBind", 10_249, value)
}

fn bind(key: &'static str, default_port: u16, value: &Value) -> Verdict {
    let text = value.as_str().unwrap_or_default();
    let with_port = text.parse::<SocketAddr>().ok();
    let address = text.trim_matches(['[', ']']).parse::<IpAddr>().ok();
    match with_port.or(address.map(|address| (address, default_port).into())) {
        Some(socket) => Verdict::taken(key, socket.to_string()),
        None => Verdict::not_supported("is not an address with a port"),
    }
}

pub fn mode(state: &KubeProxy, value: &Value) -> Verdict {
    let mode = value.as_str().unwrap_or_default();
    let ebpf = |words: &str| Verdict::differs(words).and("proxy.datapath", "ebpf");
    match mode {
        "" | "iptables" => ebpf(
            "proxy.datapath: ebpf serves by sockets, with nftables under them; `iptables` keeps kube-proxy's chains",
        ),
        "nftables" => {
            ebpf("proxy.datapath: ebpf serves by sockets; `nftables` has rules alone, in a table of its own")
        }
        "ipvs" => ebpf("proxy.datapath: ebpf serves by sockets, with nftables under them; there is no IPVS"),
        "userspace" => ebpf("proxy.datapath: ebpf; kube-proxy has no userspace mode since 1.26"),
        _ => Verdict::not_supported(match state.text("/mode") {
            "kernelspace" => "only Windows has it",
            _ => "is no mode of kube-proxy",
        }),
    }
}

/// The mark says to masquerade, and other programs know it: kubelet's KUBE-MARK-MASQ, flannel.
pub fn masquerade_bit(_: &KubeProxy, value: &Value) -> Verdict {
    match value.as_u64() {
        Some(14) => Verdict::as_it_is("bit 14, 0x4000"),
        _ => Verdict::differs("is bit 14, 0x4000, here: no other program may use that"),
    }
}

/// `iptables` and `ipvs` read the same field.
pub fn masquerade_all_of_iptables(state: &KubeProxy, value: &Value) -> Verdict {
    masquerade_all(state.mode() != Mode::Nftables, value)
}

pub fn masquerade_all_of_nftables(state: &KubeProxy, value: &Value) -> Verdict {
    masquerade_all(state.mode() == Mode::Nftables, value)
}

const OTHER_MODE: &str = "kube-proxy does not read it in its mode";

fn masquerade_all(is_read: bool, value: &Value) -> Verdict {
    match value {
        _ if !is_read => Verdict::not_needed(OTHER_MODE),
        Value::Bool(all) => Verdict::taken("proxy.masqueradeAll", *all),
        _ => Verdict::not_supported("is neither true nor false"),
    }
}

pub fn localhost_node_ports(state: &KubeProxy, value: &Value) -> Verdict {
    match (state.mode(), value.as_bool()) {
        (_, None) => Verdict::not_supported("is neither true nor false"),
        (Mode::Iptables, Some(true)) => {
            Verdict::as_it_is("datapath ebpf serves node ports on loopback, the others not")
        }
        (Mode::Iptables, Some(false)) => {
            Verdict::differs("datapath ebpf serves node ports on loopback, to the node alone")
        }
        (Mode::Ipvs | Mode::Nftables, _) => Verdict::not_needed(OTHER_MODE),
    }
}

pub fn snat_node_internal_ip(_: &KubeProxy, _: &Value) -> Verdict {
    Verdict::not_supported("what is masqueraded gets the address of the device that it leaves by")
}

pub fn min_sync_period(state: &KubeProxy, of: Mode, value: &Value) -> Verdict {
    if state.mode() == of {
        duration("proxy.minSyncPeriod", value)
    } else {
        Verdict::not_needed(OTHER_MODE)
    }
}

/// Endpoints are drawn at random here. What goes by the client's address keeps clients at their endpoints.
pub fn scheduler(state: &KubeProxy, value: &Value) -> Verdict {
    match value.as_str() {
        _ if state.mode() != Mode::Ipvs => Verdict::not_needed(OTHER_MODE),
        Some("rr") => Verdict::differs("endpoints are drawn at random, with the same share for each"),
        Some("sh" | "mh") => Verdict::not_supported(
            "a client keeps its endpoint where the Service has sessionAffinity: ClientIP",
        ),
        _ => Verdict::not_supported("endpoints are drawn at random, with the same share for each"),
    }
}

pub fn ipvs_timeout(state: &KubeProxy, _: &Value) -> Verdict {
    if state.mode() == Mode::Ipvs {
        Verdict::differs("connections are remembered by connection tracking: proxy.conntrack")
    } else {
        Verdict::not_needed(OTHER_MODE)
    }
}

/// By networks that nobody named, kube-proxy tells nobody.
pub fn detect_local_mode(state: &KubeProxy, value: &Value) -> Verdict {
    const KEY: &str = "proxy.detectLocalMode";
    let needs = |pointer: &str, words: &str| {
        if state.text(pointer).is_empty() {
            Verdict::not_supported(words)
        } else {
            Verdict::taken(KEY, value.clone())
        }
    };
    match value.as_str().unwrap_or_default() {
        "" | "ClusterCIDR" if state.text("/clusterCIDR").is_empty() => Verdict::taken(KEY, "None").saying(
            "proxy.detectLocalMode: None, since there is no clusterCIDR; podNetworks would let it be told",
        ),
        "" | "ClusterCIDR" => Verdict::taken(KEY, "ClusterCIDR"),
        "NodeCIDR" => Verdict::taken(KEY, "NodeCIDR"),
        "BridgeInterface" => needs(
            "/detectLocal/bridgeInterface",
            "needs detectLocal.bridgeInterface",
        ),
        "InterfaceNamePrefix" => needs(
            "/detectLocal/interfaceNamePrefix",
            "needs detectLocal.interfaceNamePrefix",
        ),
        _ => Verdict::not_supported("is no mode of kube-proxy"),
    }
}

const OTHER_DETECTION: &str = "kube-proxy does not read it with its detectLocalMode";

pub fn bridge_interface(state: &KubeProxy, value: &Value) -> Verdict {
    match state.text("/detectLocalMode") {
        "BridgeInterface" => Verdict::taken("proxy.bridgeInterface", value.clone()),
        _ => Verdict::not_needed(OTHER_DETECTION),
    }
}

pub fn interface_name_prefix(state: &KubeProxy, value: &Value) -> Verdict {
    match state.text("/detectLocalMode") {
        "InterfaceNamePrefix" => Verdict::taken("proxy.interfaceNamePrefix", value.clone()),
        _ => Verdict::not_needed(OTHER_DETECTION),
    }
}

pub fn cluster_cidr(state: &KubeProxy, value: &Value) -> Verdict {
    if !matches!(state.text("/detectLocalMode"), "" | "ClusterCIDR") {
        return Verdict::not_needed(OTHER_DETECTION);
    }
    let texts: Vec<&str> = value
        .as_str()
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .collect();
    match texts.iter().find(|text| !is_network(text)) {
        Some(text) => Verdict::not_supported(format!("{text:?} is not a network")),
        None => Verdict::taken("proxy.podNetworks", json!(texts)),
    }
}

fn is_network(text: &str) -> bool {
    text.contains('/') && text.parse::<IpNetwork>().is_ok()
}

/// The networks of loopback, `localhost` in kube-proxy's words.
const LOCALHOST: [&str; 2] = ["127.0.0.0/8", "::1/128"];

pub fn node_port_addresses(state: &KubeProxy, value: &Value) -> Verdict {
    const KEY: &str = "proxy.nodePortAddresses";
    let words: Vec<&str> = value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let has = |word: &str| words.contains(&word);
    match words.as_slice() {
        [] if state.mode() == Mode::Nftables => Verdict::taken(KEY, json!(["primary"]))
            .saying("proxy.nodePortAddresses: [primary], nftables' default"),
        [] => Verdict::as_it_is("proxy.nodePortAddresses: [all], kube-proxy's default"),
        _ if has("all") => Verdict::taken(KEY, json!(["all"])),
        ["primary"] => Verdict::taken(KEY, json!(["primary"])),
        _ if has("primary") => Verdict::not_supported("`primary` stands alone here: name the networks"),
        words => {
            let known = words.iter().filter(|word| **word != "localhost");
            let networks = known
                .copied()
                .chain(LOCALHOST.into_iter().filter(|_| has("localhost")));
            match networks.clone().find(|text| !is_network(text)) {
                Some(text) => Verdict::not_supported(format!("{text:?} is not a network")),
                None => Verdict::taken(KEY, networks.collect::<Vec<_>>()),
            }
        }
    }
}

pub fn be_liberal(_: &KubeProxy, value: &Value) -> Verdict {
    match value {
        Value::Bool(liberal) => Verdict::taken("proxy.conntrack.tcpBeLiberal", *liberal),
        _ => Verdict::not_supported("is neither true nor false"),
    }
}

pub fn count(key: &'static str, value: &Value) -> Verdict {
    match value.as_u64().and_then(|count| u32::try_from(count).ok()) {
        Some(count) => Verdict::taken(key, count),
        None => Verdict::not_supported("is not a number of flows"),
    }
}

/// Go's durations, `1m0s`, are ours but for the way they are printed.
pub fn duration(key: &'static str, value: &Value) -> Verdict {
    let parsed = value
        .as_str()
        .and_then(|text| text.parse::<SignedDuration>().ok());
    match parsed.filter(|duration| !duration.is_negative()) {
        Some(duration) => Verdict::taken(key, format!("{duration:#}")),
        None => Verdict::not_supported("is not a duration like 1m30s"),
    }
}
