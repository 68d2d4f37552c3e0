//! Feature gates of kube-proxy.

use serde_json::Value;

use super::{KubeProxy, Verdict};

/// What is served here anyway.
const SERVED: [&str; 14] = [
    "EndpointSliceProxying",
    "KubeProxyDrainingTerminatingNodes",
    "LoadBalancerIPMode",
    "MinimizeIPTablesRestore",
    "MixedProtocolLBService",
    "NFTablesProxyMode",
    "PreferSameTrafficDistribution",
    "ProxyTerminatingEndpoints",
    "SCTPSupport",
    "ServiceInternalTrafficPolicy",
    "ServiceLBNodePortControl",
    "ServiceTrafficDistribution",
    "TopologyAwareHints",
    "IPv6DualStack",
];

/// What is about kube-proxy's own insides.
const INSIDES: [&str; 7] = [
    "AllAlpha",
    "AllBeta",
    "ContextualLogging",
    "LoggingAlphaOptions",
    "LoggingBetaOptions",
    "SupportIPVSProxyMode",
    "WatchListClient",
];

const EXTERNAL_IPS: &str = "AllowServiceExternalIPs";

/// One gate.
pub fn gate(_: &KubeProxy, name: &str, value: &Value) -> Verdict {
    match (name, value.as_bool()) {
        (_, None) => Verdict::not_supported("is neither true nor false"),
        (EXTERNAL_IPS, _) => Verdict::as_it_is("proxy.externalIPs"),
        ("KubeProxyNFTablesLocalhostNodePorts", _) => {
            Verdict::not_needed("the socket hook serves node ports on loopback")
        }
        (name, Some(true)) if SERVED.contains(&name) => Verdict::as_it_is("is served here always"),
        (name, Some(false)) if SERVED.contains(&name) => Verdict::differs("is served here always"),
        (name, _) if INSIDES.contains(&name) => Verdict::not_needed("is about kube-proxy itself"),
        _ => Verdict::not_supported("is not known here"),
    }
}

/// kube-proxy serves external addresses unless a gate forbids it (KEP-5707); here they are off unless allowed.
pub fn external_ips(state: &KubeProxy, _: &Value) -> Verdict {
    let gate = state
        .document
        .get("featureGates")
        .and_then(|gates| gates.get(EXTERNAL_IPS));
    let served = gate.and_then(Value::as_bool).unwrap_or(true);
    let words = if served {
        "proxy.externalIPs: true, as kube-proxy does; false is safer where no Service has them (CVE-2020-8554)"
    } else {
        "proxy.externalIPs"
    };
    Verdict::taken("proxy.externalIPs", served).saying(words)
}
