//! kube-proxy's configuration: `kubeproxy.config.k8s.io/v1alpha1`, every field of it (`k8s.io/kube-proxy`,
//! `config/v1alpha1/types.go` of 1.36, with those that older versions had).

mod gates;
mod rules;
mod types;

use serde_json::Value;

use super::draft::Draft;
use super::fields::{Field, Fields, When, differs, each, not_needed, read};
use super::told::{LOGS, Verdict};

const OF: &str = "kube-proxy";

/// What the rules know of the rest of the file.
pub struct KubeProxy {
    document: Value,
    /// The server and the credentials of the kubeconfig in the same ConfigMap, where there is one.
    server: Option<Server>,
}

/// Where the API server is, by a kubeconfig.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    host: String,
    port: u16,
    /// Whether the credentials are the pod's service account.
    by_service_account: bool,
}

/// How kube-proxy works: what it does for want of a word is `iptables` on Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Iptables,
    Ipvs,
    Nftables,
}

impl KubeProxy {
    fn text(&self, pointer: &str) -> &str {
        let value = self.document.pointer(pointer).and_then(Value::as_str);
        value.unwrap_or_default()
    }

    fn mode(&self) -> Mode {
        match self.text("/mode") {
            "ipvs" => Mode::Ipvs,
            "nftables" => Mode::Nftables,
            _ => Mode::Iptables,
        }
    }
}

/// Reads the file; `kubeconfig` is that of the same ConfigMap.
pub fn translate(document: &Value, kubeconfig: Option<&Value>, draft: &mut Draft) {
    let state = KubeProxy {
        document: document.clone(),
        server: kubeconfig.and_then(rules::server),
    };
    FIELDS.read(&state, document, "", draft);
}

/// Whether the field at a path has its row in the table.
#[cfg(test)]
pub fn is_known(path: &str) -> bool {
    FIELDS.find(path).is_some()
}

const WINDOWS: &str = "only Windows has it";
const OWN_PACE: &str =
    "every entry is looked at every 5 minutes, chains and pins every 10 seconds, drift at once";
const BY_WATCH: &str = "every change comes by a watch";

const FIELDS: Fields<KubeProxy> = Fields {
    of: OF,
    any_case: false,
    type_of: types::type_of,
    table: TABLE,
};

const TABLE: &[Field<KubeProxy>] = &[
    read("apiVersion", When::Always, rules::api_version),
    not_needed("kind", "says what the file is"),
    each("featureGates", gates::gate),
    not_needed("clientConnection.acceptContentTypes", "the agent asks for JSON"),
    not_needed("clientConnection.contentType", "the agent sends JSON"),
    not_needed("clientConnection.qps", BY_WATCH),
    not_needed("clientConnection.burst", BY_WATCH),
    read("clientConnection.kubeconfig", When::Set, rules::kubeconfig),
    read("logging.format", When::Set, rules::log_format),
    differs("logging.verbosity", LOGS),
    differs("logging.vmodule", LOGS),
    not_needed("logging.flushFrequency", "each line is written at once"),
    not_needed("logging.options", "each line is written at once"),
    read("hostnameOverride", When::Set, rules::node_name),
    read("bindAddress", When::Set, rules::bind_address),
    read("healthzBindAddress", When::Set, rules::health_bind),
    read("metricsBindAddress", When::Set, rules::metrics_bind),
    differs(
        "bindAddressHardFail",
        "a port that is taken is told on /healthz and tried again",
    ),
    differs("enableProfiling", "there is no /debug/pprof"),
    not_needed("showHiddenMetricsForVersion", "no metrics are hidden"),
    read("mode", When::Always, rules::mode),
    read("iptables.masqueradeBit", When::Set, rules::masquerade_bit),
    read(
        "iptables.masqueradeAll",
        When::Set,
        rules::masquerade_all_of_iptables,
    ),
    read(
        "iptables.localhostNodePorts",
        When::Given,
        rules::localhost_node_ports,
    ),
    read(
        "iptables.snatNodeInternalIP",
        When::Set,
        rules::snat_node_internal_ip,
    ),
    not_needed("iptables.syncPeriod", OWN_PACE),
    read("iptables.minSyncPeriod", When::Set, |state, value| {
        rules::min_sync_period(state, Mode::Iptables, value)
    }),
    not_needed("ipvs.syncPeriod", OWN_PACE),
    read("ipvs.minSyncPeriod", When::Set, |state, value| {
        rules::min_sync_period(state, Mode::Ipvs, value)
    }),
    read("ipvs.scheduler", When::Set, rules::scheduler),
    not_needed(
        "ipvs.excludeCIDRs",
        "there is no IPVS, and what others have there is not touched",
    ),
    not_needed(
        "ipvs.strictARP",
        "there is no kube-ipvs0: no device has the Services' addresses",
    ),
    read("ipvs.tcpTimeout", When::Set, rules::ipvs_timeout),
    read("ipvs.tcpFinTimeout", When::Set, rules::ipvs_timeout),
    read("ipvs.udpTimeout", When::Set, rules::ipvs_timeout),
    read("nftables.masqueradeBit", When::Set, rules::masquerade_bit),
    read(
        "nftables.masqueradeAll",
        When::Set,
        rules::masquerade_all_of_nftables,
    ),
    not_needed("nftables.syncPeriod", OWN_PACE),
    read("nftables.minSyncPeriod", When::Set, |state, value| {
        rules::min_sync_period(state, Mode::Nftables, value)
    }),
    not_needed("winkernel.networkName", WINDOWS),
    not_needed("winkernel.sourceVip", WINDOWS),
    not_needed("winkernel.enableDSR", WINDOWS),
    not_needed("winkernel.rootHnsEndpointName", WINDOWS),
    not_needed("winkernel.forwardHealthCheckVip", WINDOWS),
    not_needed("windowsRunAsService", WINDOWS),
    read("detectLocalMode", When::Always, rules::detect_local_mode),
    read("detectLocal.bridgeInterface", When::Set, rules::bridge_interface),
    read(
        "detectLocal.interfaceNamePrefix",
        When::Set,
        rules::interface_name_prefix,
    ),
    read("clusterCIDR", When::Set, rules::cluster_cidr),
    read("nodePortAddresses", When::Always, rules::node_port_addresses),
    differs(
        "oomScoreAdj",
        "who starts the agent sets it (OOMScoreAdjust= of systemd)",
    ),
    read("conntrack.maxPerCore", When::Given, |_, value| {
        rules::count("proxy.conntrack.maxPerCore", value)
    }),
    read("conntrack.min", When::Given, |_, value| {
        rules::count("proxy.conntrack.min", value)
    }),
    read("conntrack.tcpEstablishedTimeout", When::Given, |_, value| {
        rules::duration("proxy.conntrack.tcpEstablishedTimeout", value)
    }),
    read("conntrack.tcpCloseWaitTimeout", When::Given, |_, value| {
        rules::duration("proxy.conntrack.tcpCloseWaitTimeout", value)
    }),
    read("conntrack.tcpBeLiberal", When::Set, rules::be_liberal),
    read("conntrack.udpTimeout", When::Set, |_, value| {
        rules::duration("proxy.conntrack.udpTimeout", value)
    }),
    read("conntrack.udpStreamTimeout", When::Set, |_, value| {
        rules::duration("proxy.conntrack.udpStreamTimeout", value)
    }),
    differs(
        "conntrack.max",
        "is of kube-proxy before 1.11; proxy.conntrack.min is the least",
    ),
    not_needed("configSyncPeriod", BY_WATCH),
    not_needed("portRange", "was of the userspace proxy, which is gone"),
    not_needed("udpIdleTimeout", "was of the userspace proxy, which is gone"),
    not_needed("resourceContainer", "has no effect in kube-proxy either"),
    // What is served for want of a word is not the same.
    read("(spec.externalIPs)", When::Always, gates::external_ips),
];
