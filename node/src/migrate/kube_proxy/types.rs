//! The type of each field (`k8s.io/kube-proxy`, `config/v1alpha1/types.go`; `k8s.io/component-base`,
//! `config/v1alpha1/types.go` and `logs/api/v1/types.go`).

use super::super::types::Type;

/// Of the field at a path. Texts are the most: durations and addresses are texts too.
pub fn type_of(path: &str) -> Type {
    match path {
        "iptables.masqueradeAll"
        | "iptables.localhostNodePorts"
        | "iptables.snatNodeInternalIP"
        | "ipvs.strictARP"
        | "nftables.masqueradeAll"
        | "winkernel.enableDSR"
        | "winkernel.forwardHealthCheckVip"
        | "windowsRunAsService"
        | "bindAddressHardFail"
        | "enableProfiling"
        | "conntrack.tcpBeLiberal" => Type::Switch,
        "clientConnection.burst"
        | "logging.verbosity"
        | "iptables.masqueradeBit"
        | "nftables.masqueradeBit"
        | "oomScoreAdj"
        | "conntrack.maxPerCore"
        | "conntrack.min"
        | "conntrack.max" => Type::Whole,
        "clientConnection.qps" => Type::Number,
        "logging.flushFrequency" => Type::TextOrWhole,
        "logging.vmodule" => Type::Maps,
        "logging.options" | "featureGates" => Type::Map,
        "ipvs.excludeCIDRs" | "nodePortAddresses" => Type::Texts,
        _ => Type::Text,
    }
}
