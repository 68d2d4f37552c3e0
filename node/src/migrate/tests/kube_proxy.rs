//! kube-proxy's fields.

use super::super::kube_proxy::is_known;
use super::*;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// What is told, and which keys are set, beyond what is for an empty file.
#[track_caller]
fn check(fields: &str, outcomes_expected: &str, keys_expected: &str) {
    let empty = migrated(&[HEAD], None);
    let inner = fields.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1, kind: KubeProxyConfiguration";
    let this = migrated(&[&format!("{{{head}, {}}}", inner.unwrap_or(fields))], None);
    let found = (
        beyond(outcomes(&this), &outcomes(&empty)),
        beyond(keys(&this), &keys(&empty)),
    );
    assert_eq!(
        found,
        (outcomes_expected.to_owned(), keys_expected.to_owned()),
        "for {fields}"
    );
}

#[test]
fn what_kube_proxy_does_for_want_of_a_word_is_said_aloud() {
    let empty = migrated(&[HEAD], None);
    let expected = [
        "not needed apiVersion",
        "not needed kind",
        "differs mode",
        "taken detectLocalMode",
        "taken nodePortAddresses",
        "taken (spec.externalIPs)",
    ];
    assert_eq!(outcomes(&empty), expected);
    let expected = [
        "proxy.datapath=\"ebpf\"",
        "proxy.detectLocalMode=\"None\"",
        "proxy.externalIPs=true",
    ];
    assert_eq!(keys(&empty), expected);
    assert!(!empty.is_wrong());
}

#[test]
fn who_the_node_is_and_where_it_listens() {
    check(
        "hostnameOverride: node-7",
        "taken hostnameOverride",
        "nodeName=\"node-7\"",
    );
    check("bindAddress: 0.0.0.0", "not needed bindAddress", "");
    check(
        "bindAddress: '::'",
        "taken bindAddress",
        "healthBind=\"[::]:10256\"; metricsBind=\"[::1]:10249\"",
    );
    check(
        "{bindAddress: '::', metricsBindAddress: '[::]:9249'}",
        "taken bindAddress; taken metricsBindAddress",
        "healthBind=\"[::]:10256\"; metricsBind=\"[::]:9249\"",
    );
    check("bindAddress: 192.0.2.7", "differs bindAddress", "");
    check("bindAddress: here", "NOT SUPPORTED bindAddress", "");
    let health = "taken healthzBindAddress";
    check(
        "healthzBindAddress: 0.0.0.0:9256",
        health,
        "healthBind=\"0.0.0.0:9256\"",
    );
    check(
        "healthzBindAddress: 192.0.2.7",
        health,
        "healthBind=\"192.0.2.7:10256\"",
    );
    check("healthzBindAddress: '::1'", health, "healthBind=\"[::1]:10256\"");
    check(
        "healthzBindAddress: '[::1]'",
        health,
        "healthBind=\"[::1]:10256\"",
    );
    check(
        "healthzBindAddress: 'here:1'",
        "NOT SUPPORTED healthzBindAddress",
        "",
    );
    check(
        "metricsBindAddress: 0.0.0.0",
        "taken metricsBindAddress",
        "metricsBind=\"0.0.0.0:10249\"",
    );
    check(
        "{healthzBindAddress: '0.0.0.0:1', metricsBindAddress: '0.0.0.0:1'}",
        "taken healthzBindAddress; taken metricsBindAddress; NOT SUPPORTED (as a whole)",
        "healthBind=\"0.0.0.0:1\"; metricsBind=\"0.0.0.0:1\"",
    );
    check("bindAddressHardFail: true", "differs bindAddressHardFail", "");
    check("enableProfiling: true", "differs enableProfiling", "");
    check(
        "showHiddenMetricsForVersion: '1.30'",
        "not needed showHiddenMetricsForVersion",
        "",
    );
    check("oomScoreAdj: -999", "differs oomScoreAdj", "");
}

#[test]
fn a_value_of_another_type_than_kube_proxys_is_refused_wherever_it_stands() {
    let rows = [
        (
            "nodePortAddresses: 192.168.0.0/16",
            "nodePortAddresses",
            "a list of texts",
        ),
        ("nodePortAddresses: ''", "nodePortAddresses", "a list of texts"),
        ("nodePortAddresses: [5]", "nodePortAddresses", "a list of texts"),
        ("mode: 5", "mode", "a text"),
        ("mode: false", "mode", "a text"),
        ("hostnameOverride: 7", "hostnameOverride", "a text"),
        ("featureGates: [a]", "featureGates", "a map"),
        ("featureGates: []", "featureGates", "a map"),
        ("clusterCIDR: [10.0.0.0/8]", "clusterCIDR", "a text"),
        ("detectLocalMode: 1", "detectLocalMode", "a text"),
        ("enableProfiling: 1", "enableProfiling", "true or false"),
        ("conntrack: {min: '5'}", "conntrack.min", "a whole number"),
        ("conntrack: {max: 1.5}", "conntrack.max", "a whole number"),
        ("conntrack: {udpTimeout: 30}", "conntrack.udpTimeout", "a text"),
        ("ipvs: {syncPeriod: 0}", "ipvs.syncPeriod", "a text"),
        ("ipvs: {strictARP: ''}", "ipvs.strictARP", "true or false"),
        ("clientConnection: {qps: '5'}", "clientConnection.qps", "a number"),
        ("logging: {vmodule: [a]}", "logging.vmodule", "a list of maps"),
        (
            "logging: {flushFrequency: 1.5}",
            "logging.flushFrequency",
            "a text or a whole number",
        ),
        ("iptables: []", "iptables", "a map"),
        ("iptables: 14", "iptables", "a map"),
    ];
    for (fields, path, expected) in rows {
        let this = migrated(&[&format!("{HEAD}{fields}\n")], None);
        let told = this.told.iter().find(|told| told.path == path).expect(fields);
        assert_eq!(
            told.words,
            format!("kube-proxy itself refuses it: not {expected}"),
            "for {fields}"
        );
        assert!(this.is_wrong(), "for {fields}");
    }
    for absent in [
        "nodePortAddresses",
        "mode",
        "featureGates",
        "iptables",
        "enableProfiling",
    ] {
        check(&format!("{absent}: null"), "", "");
    }
    let this = migrated(&[&format!("{HEAD}enableProfiling: yes\n")], None);
    assert_eq!(
        words(&this, "enableProfiling"),
        "kube-proxy may read it: write true or false"
    );
}

#[test]
fn how_it_speaks_to_the_api_and_writes_its_log() {
    check(
        "clientConnection: {kubeconfig: /etc/kubeconfig}",
        "taken clientConnection.kubeconfig",
        "kubernetes.kubeconfig=\"/etc/kubeconfig\"",
    );
    check(
        "clientConnection: {acceptContentTypes: a, contentType: b, qps: 5, burst: 10}",
        "not needed clientConnection.acceptContentTypes; not needed clientConnection.burst; \
         not needed clientConnection.contentType; not needed clientConnection.qps",
        "",
    );
    check("clientConnection: {qps: 0, burst: 0, kubeconfig: ''}", "", "");
    check("configSyncPeriod: 15m0s", "not needed configSyncPeriod", "");
    check("logging: {format: text}", "taken logging.format", "");
    check(
        "logging: {format: json}",
        "taken logging.format",
        "logging.format=\"json\"",
    );
    check("logging: {format: cbor}", "differs logging.format", "");
    check(
        "logging: {verbosity: 4, vmodule: [{filePattern: a, verbosity: 1}], flushFrequency: 5s}",
        "not needed logging.flushFrequency; differs logging.verbosity; differs logging.vmodule",
        "",
    );
    check(
        "logging: {options: {json: {infoBufferSize: '0'}}, verbosity: 0, flushFrequency: 0}",
        "",
        "",
    );
    check(
        "logging: {options: {json: {infoBufferSize: 1Ki}}}",
        "not needed logging.options",
        "",
    );
}

#[test]
fn the_mode_decides_which_section_counts() {
    check("mode: iptables", "", "");
    check("mode: ipvs", "", "");
    check("mode: nftables", "", "proxy.nodePortAddresses=[\"primary\"]");
    check("mode: userspace", "", "");
    check("mode: kernelspace", "NOT SUPPORTED mode", "");
    check("mode: quick", "NOT SUPPORTED mode", "");
    check(
        "iptables: {masqueradeAll: true}",
        "taken iptables.masqueradeAll",
        "proxy.masqueradeAll=true",
    );
    check(
        "{mode: ipvs, iptables: {masqueradeAll: true}}",
        "taken iptables.masqueradeAll",
        "proxy.masqueradeAll=true",
    );
    check(
        "nftables: {masqueradeAll: true}",
        "not needed nftables.masqueradeAll",
        "",
    );
    check(
        "{mode: nftables, iptables: {masqueradeAll: true}, nftables: {masqueradeAll: true}}",
        "not needed iptables.masqueradeAll; taken nftables.masqueradeAll",
        "proxy.masqueradeAll=true; proxy.nodePortAddresses=[\"primary\"]",
    );
    check(
        "iptables: {masqueradeAll: perhaps}",
        "NOT SUPPORTED iptables.masqueradeAll",
        "",
    );
    check(
        "iptables: {masqueradeBit: 14}",
        "taken iptables.masqueradeBit",
        "",
    );
    check(
        "iptables: {masqueradeBit: 15}",
        "differs iptables.masqueradeBit",
        "",
    );
    check(
        "nftables: {masqueradeBit: 7}",
        "differs nftables.masqueradeBit",
        "",
    );
    check(
        "iptables: {localhostNodePorts: true}",
        "taken iptables.localhostNodePorts",
        "",
    );
    check(
        "iptables: {localhostNodePorts: false}",
        "differs iptables.localhostNodePorts",
        "",
    );
    check("iptables: {localhostNodePorts: null}", "", "");
    check(
        "{mode: ipvs, iptables: {localhostNodePorts: false}}",
        "not needed iptables.localhostNodePorts",
        "",
    );
    check(
        "iptables: {snatNodeInternalIP: true}",
        "NOT SUPPORTED iptables.snatNodeInternalIP",
        "",
    );
    check(
        "iptables: {syncPeriod: 30s}",
        "not needed iptables.syncPeriod",
        "",
    );
    check(
        "iptables: {minSyncPeriod: 1s}",
        "taken iptables.minSyncPeriod",
        "proxy.minSyncPeriod=\"1s\"",
    );
    check(
        "iptables: {syncPeriod: 0s, minSyncPeriod: 0s, masqueradeAll: false, masqueradeBit: null}",
        "",
        "",
    );
    check(
        "iptables: {minSyncPeriod: soon}",
        "NOT SUPPORTED iptables.minSyncPeriod",
        "",
    );
    check(
        "nftables: {minSyncPeriod: 1s, syncPeriod: 1m}",
        "not needed nftables.minSyncPeriod; not needed nftables.syncPeriod",
        "",
    );
    check("iptables: null", "", "");
    check("iptables: quick", "NOT SUPPORTED iptables", "");
}

#[test]
fn of_ipvs_only_what_changes_who_is_served_is_missed() {
    let ipvs = |fields: &str, outcomes: &str, keys: &str| {
        check(&format!("{{mode: ipvs, ipvs: {fields}}}"), outcomes, keys)
    };
    ipvs("{scheduler: rr}", "differs ipvs.scheduler", "");
    ipvs("{scheduler: ''}", "", "");
    ipvs("{scheduler: sh}", "NOT SUPPORTED ipvs.scheduler", "");
    ipvs("{scheduler: lc}", "NOT SUPPORTED ipvs.scheduler", "");
    check("ipvs: {scheduler: sh}", "not needed ipvs.scheduler", "");
    ipvs("{strictARP: true}", "not needed ipvs.strictARP", "");
    ipvs(
        "{excludeCIDRs: [192.0.2.0/24]}",
        "not needed ipvs.excludeCIDRs",
        "",
    );
    ipvs("{excludeCIDRs: null, tcpTimeout: 0s}", "", "");
    ipvs("{tcpTimeout: 1h}", "differs ipvs.tcpTimeout", "");
    ipvs("{tcpFinTimeout: 1m}", "differs ipvs.tcpFinTimeout", "");
    ipvs("{udpTimeout: 1m}", "differs ipvs.udpTimeout", "");
    check("ipvs: {udpTimeout: 1m}", "not needed ipvs.udpTimeout", "");
    ipvs("{syncPeriod: 30s}", "not needed ipvs.syncPeriod", "");
    ipvs(
        "{minSyncPeriod: 1m30s}",
        "taken ipvs.minSyncPeriod",
        "proxy.minSyncPeriod=\"1m 30s\"",
    );
}

#[test]
fn how_pods_are_told() {
    let by_cidr = "proxy.detectLocalMode=\"ClusterCIDR\"; proxy.podNetworks";
    check(
        "clusterCIDR: 10.244.0.0/16",
        "taken clusterCIDR",
        &format!("{by_cidr}=[\"10.244.0.0/16\"]"),
    );
    check(
        "{clusterCIDR: '10.244.0.0/16, fd00::/56', detectLocalMode: ClusterCIDR}",
        "taken clusterCIDR",
        &format!("{by_cidr}=[\"10.244.0.0/16\",\"fd00::/56\"]"),
    );
    check(
        "clusterCIDR: 10.244.0.0",
        "NOT SUPPORTED clusterCIDR; NOT SUPPORTED (as a whole)",
        "proxy.detectLocalMode=\"ClusterCIDR\"",
    );
    check("detectLocalMode: ClusterCIDR", "", "");
    check(
        "detectLocalMode: NodeCIDR",
        "",
        "proxy.detectLocalMode=\"NodeCIDR\"",
    );
    check(
        "{detectLocalMode: NodeCIDR, clusterCIDR: 10.244.0.0/16}",
        "not needed clusterCIDR",
        "proxy.detectLocalMode=\"NodeCIDR\"",
    );
    check(
        "{detectLocalMode: BridgeInterface, detectLocal: {bridgeInterface: cni0, interfaceNamePrefix: ''}}",
        "taken detectLocal.bridgeInterface",
        "proxy.bridgeInterface=\"cni0\"; proxy.detectLocalMode=\"BridgeInterface\"",
    );
    check(
        "{detectLocalMode: InterfaceNamePrefix, detectLocal: {bridgeInterface: cni0, interfaceNamePrefix: veth}}",
        "not needed detectLocal.bridgeInterface; taken detectLocal.interfaceNamePrefix",
        "proxy.detectLocalMode=\"InterfaceNamePrefix\"; proxy.interfaceNamePrefix=\"veth\"",
    );
    check(
        "detectLocal: {interfaceNamePrefix: veth}",
        "not needed detectLocal.interfaceNamePrefix",
        "",
    );
    check(
        "detectLocalMode: BridgeInterface",
        "NOT SUPPORTED detectLocalMode; NOT SUPPORTED (as a whole)",
        "",
    );
    check(
        "detectLocalMode: Nose",
        "NOT SUPPORTED detectLocalMode; NOT SUPPORTED (as a whole)",
        "",
    );
}

#[test]
fn where_node_ports_and_external_addresses_are_served() {
    let addresses = |fields: &str, keys: &str| check(&format!("nodePortAddresses: {fields}"), "", keys);
    addresses("[]", "");
    addresses("null", "");
    addresses("[primary]", "proxy.nodePortAddresses=[\"primary\"]");
    addresses("[192.0.2.0/24, all]", "proxy.nodePortAddresses=[\"all\"]");
    addresses(
        "[192.0.2.0/24, 'fd00::/64']",
        "proxy.nodePortAddresses=[\"192.0.2.0/24\",\"fd00::/64\"]",
    );
    addresses(
        "[192.0.2.0/24, localhost]",
        "proxy.nodePortAddresses=[\"192.0.2.0/24\",\"127.0.0.0/8\",\"::1/128\"]",
    );
    check(
        "nodePortAddresses: [primary, 192.0.2.0/24]",
        "NOT SUPPORTED nodePortAddresses",
        "",
    );
    check(
        "nodePortAddresses: [192.0.2.0]",
        "NOT SUPPORTED nodePortAddresses",
        "",
    );
    let off = "featureGates: {AllowServiceExternalIPs: false}";
    check(
        off,
        "taken featureGates.AllowServiceExternalIPs",
        "proxy.externalIPs=false",
    );
}

#[test]
fn limits_of_connection_tracking() {
    check(
        "conntrack: {maxPerCore: 1000, min: 5}",
        "taken conntrack.maxPerCore; taken conntrack.min",
        "proxy.conntrack.maxPerCore=1000; proxy.conntrack.min=5",
    );
    check(
        "conntrack: {maxPerCore: 0, min: null}",
        "taken conntrack.maxPerCore",
        "proxy.conntrack.maxPerCore=0",
    );
    check(
        "conntrack: {maxPerCore: -1}",
        "NOT SUPPORTED conntrack.maxPerCore",
        "",
    );
    check(
        "conntrack: {tcpEstablishedTimeout: 24h0m0s, tcpCloseWaitTimeout: 0s}",
        "taken conntrack.tcpCloseWaitTimeout; taken conntrack.tcpEstablishedTimeout",
        "proxy.conntrack.tcpCloseWaitTimeout=\"0s\"; proxy.conntrack.tcpEstablishedTimeout=\"24h\"",
    );
    check(
        "conntrack: {tcpEstablishedTimeout: -1s}",
        "NOT SUPPORTED conntrack.tcpEstablishedTimeout",
        "",
    );
    check(
        "conntrack: {tcpBeLiberal: true}",
        "taken conntrack.tcpBeLiberal",
        "proxy.conntrack.tcpBeLiberal=true",
    );
    check(
        "conntrack: {udpTimeout: 30s}",
        "taken conntrack.udpTimeout",
        "proxy.conntrack.udpTimeout=\"30s\"",
    );
    check(
        "conntrack: {udpStreamTimeout: 3m}",
        "taken conntrack.udpStreamTimeout",
        "proxy.conntrack.udpStreamTimeout=\"3m\"",
    );
    check(
        "conntrack: {tcpBeLiberal: false, udpTimeout: 0s, udpStreamTimeout: 0s}",
        "",
        "",
    );
    check("conntrack: {max: 131072}", "differs conntrack.max", "");
}

#[test]
fn what_other_versions_and_windows_have() {
    check("portRange: 1-2", "not needed portRange", "");
    check("udpIdleTimeout: 250ms", "not needed udpIdleTimeout", "");
    check(
        "resourceContainer: /kube-proxy",
        "not needed resourceContainer",
        "",
    );
    check("windowsRunAsService: true", "not needed windowsRunAsService", "");
    check(
        "winkernel: {networkName: n, sourceVip: v, enableDSR: true, rootHnsEndpointName: r, forwardHealthCheckVip: true}",
        "not needed winkernel.enableDSR; not needed winkernel.forwardHealthCheckVip; not needed winkernel.networkName; \
         not needed winkernel.rootHnsEndpointName; not needed winkernel.sourceVip",
        "",
    );
    check(
        "featureGates: {ServiceTrafficDistribution: true}",
        "taken featureGates.ServiceTrafficDistribution",
        "",
    );
    check(
        "featureGates: {ServiceTrafficDistribution: false}",
        "differs featureGates.ServiceTrafficDistribution",
        "",
    );
    check(
        "featureGates: {AllAlpha: true}",
        "not needed featureGates.AllAlpha",
        "",
    );
    check(
        "featureGates: {KubeProxyNFTablesLocalhostNodePorts: true}",
        "not needed featureGates.KubeProxyNFTablesLocalhostNodePorts",
        "",
    );
    check(
        "featureGates: {ProxyByTelepathy: true}",
        "NOT SUPPORTED featureGates.ProxyByTelepathy",
        "",
    );
    check(
        "featureGates: {AllAlpha: 7}",
        "NOT SUPPORTED featureGates.AllAlpha",
        "",
    );
}

/// Of `config/v1alpha1/types.go` of 1.36, with what it embeds of component-base.
#[test]
fn every_field_of_the_type_is_known() {
    let sections = [
        (
            "",
            "kind apiVersion featureGates hostnameOverride bindAddress healthzBindAddress metricsBindAddress \
             bindAddressHardFail enableProfiling showHiddenMetricsForVersion mode detectLocalMode clusterCIDR \
             nodePortAddresses oomScoreAdj configSyncPeriod portRange windowsRunAsService",
        ),
        (
            "clientConnection.",
            "kubeconfig acceptContentTypes contentType qps burst",
        ),
        ("logging.", "format flushFrequency verbosity vmodule options"),
        (
            "iptables.",
            "masqueradeBit masqueradeAll localhostNodePorts snatNodeInternalIP syncPeriod minSyncPeriod",
        ),
        (
            "ipvs.",
            "syncPeriod minSyncPeriod scheduler excludeCIDRs strictARP tcpTimeout tcpFinTimeout udpTimeout",
        ),
        (
            "nftables.",
            "masqueradeBit masqueradeAll syncPeriod minSyncPeriod",
        ),
        (
            "conntrack.",
            "maxPerCore min tcpEstablishedTimeout tcpCloseWaitTimeout tcpBeLiberal udpTimeout udpStreamTimeout",
        ),
        (
            "winkernel.",
            "networkName sourceVip enableDSR rootHnsEndpointName forwardHealthCheckVip",
        ),
        ("detectLocal.", "bridgeInterface interfaceNamePrefix"),
    ];
    let paths = sections.iter().flat_map(|(section, names)| {
        let names = names.split_whitespace();
        names.map(move |name| format!("{section}{name}"))
    });
    let unknown: Vec<String> = paths.filter(|path| !is_known(path)).collect();
    assert_eq!(unknown, Vec::<String>::new());
    assert!(!is_known("iptables.sortOf") && !is_known("iptables"));
}

#[test]
fn what_is_not_known_is_told_with_its_path() {
    check("iptables: {sortOf: 7}", "NOT SUPPORTED iptables.sortOf", "");
    check("iptables: {sortOf: 0s}", "not needed iptables.sortOf", "");
    check("windPower: {blades: 3}", "NOT SUPPORTED windPower", "");
    check("Mode: ipvs", "NOT SUPPORTED Mode", "");
    let other = migrated(
        &["apiVersion: kubeproxy.config.k8s.io/v1beta1\nkind: KubeProxyConfiguration"],
        None,
    );
    assert_eq!(outcomes(&other)[0], "NOT SUPPORTED apiVersion");
    assert!(other.is_wrong());
}
