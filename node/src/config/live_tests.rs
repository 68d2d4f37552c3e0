//! What of a changed configuration is taken without a restart.

use super::tests::accepted;

/// Every key that may change, and what it is changed to; where it needs other keys, with them.
#[test]
fn each_key_is_either_taken_at_once_or_waits_for_a_restart() {
    const BEFORE: &str = "{nodeName: n, network: {etcd: {endpoints: ['http://a:1']}}, proxy: {podNetwork: 10.1.0.0/16, \
                          bridgeInterface: br0, interfaceNamePrefix: veth}";
    let rows = [
        ("logging: {level: debug}", "logging.level", ""),
        (
            "telemetry: {endpoint: 'http://127.0.0.1:4318'}",
            "",
            "telemetry.endpoint",
        ),
        ("healthBind: '127.0.0.1:1'", "healthBind", ""),
        ("metricsBind: '127.0.0.1:2'", "metricsBind", ""),
        ("proxy: {detectLocalMode: NodeCIDR}", "proxy.detectLocalMode", ""),
        (
            "proxy: {detectLocalMode: BridgeInterface}",
            "proxy.detectLocalMode",
            "",
        ),
        ("proxy: {podNetwork: 10.2.0.0/16}", "proxy.podNetworks", ""),
        ("proxy: {bridgeInterface: br1}", "proxy.bridgeInterface", ""),
        (
            "proxy: {interfaceNamePrefix: eni}",
            "proxy.interfaceNamePrefix",
            "",
        ),
        ("proxy: {masqueradeAll: true}", "proxy.masqueradeAll", ""),
        ("proxy: {externalIPs: true}", "proxy.externalIPs", ""),
        (
            "proxy: {nodePortAddresses: [primary]}",
            "proxy.nodePortAddresses",
            "",
        ),
        ("proxy: {minSyncPeriod: 1s}", "proxy.minSyncPeriod", ""),
        (
            "proxy: {conntrack: {maxPerCore: 1}}",
            "proxy.conntrack.maxPerCore",
            "",
        ),
        ("proxy: {conntrack: {min: 1}}", "proxy.conntrack.min", ""),
        (
            "proxy: {conntrack: {tcpEstablishedTimeout: 1h}}",
            "proxy.conntrack.tcpEstablishedTimeout",
            "",
        ),
        (
            "proxy: {conntrack: {tcpCloseWaitTimeout: 1m}}",
            "proxy.conntrack.tcpCloseWaitTimeout",
            "",
        ),
        (
            "proxy: {conntrack: {tcpBeLiberal: true}}",
            "proxy.conntrack.tcpBeLiberal",
            "",
        ),
        (
            "proxy: {conntrack: {udpTimeout: 1m}}",
            "proxy.conntrack.udpTimeout",
            "",
        ),
        (
            "proxy: {conntrack: {udpStreamTimeout: 1m}}",
            "proxy.conntrack.udpStreamTimeout",
            "",
        ),
        ("nodeName: other", "", "nodeName"),
        ("kubernetes: {kubeconfig: /k}", "", "kubernetes.kubeconfig"),
        (
            "kubernetes: {serviceHost: h, servicePort: 7}",
            "",
            "kubernetes.serviceHost kubernetes.servicePort",
        ),
        ("network: null", "", "network"),
        ("network: {mode: host-gw}", "", "network.mode"),
        (
            "network: {leases: kubernetes, config: {Network: 10.1.0.0/16}}",
            "",
            "network.config network.leases",
        ),
        ("network: {etcd: {prefix: /p}}", "", "network.etcd.prefix"),
        ("network: {interface: eth1}", "", "network.interface"),
        ("network: {publicIp: 192.0.2.1}", "", "network.publicIp"),
        ("network: {publicIpV6: 'fd00::1'}", "", "network.publicIpV6"),
        ("network: {subnetEnv: /s}", "", "network.subnetEnv"),
        ("network: {antiSpoofing: false}", "", "network.antiSpoofing"),
        ("network: {fastPath: false}", "", "network.fastPath"),
        ("proxy: {datapath: none}", "", "proxy.datapath"),
        ("proxy: {iptablesVariant: nft}", "", "proxy.iptablesVariant"),
        ("proxy: {cgroup: /c}", "", "proxy.cgroup"),
        ("proxy: {pinDir: /p}", "", "proxy.pinDir"),
        ("dns: {address: 10.96.0.10}", "", "dns.address"),
        ("dns: {enabled: false}", "", "dns.enabled"),
        ("cni: {enabled: false}", "", "cni.enabled"),
        ("dns: {feedSocket: /f}", "", "dns.feedSocket"),
        ("cni: {socket: /s}", "", "cni.socket"),
        ("cni: {confDir: /c}", "", "cni.confDir"),
        ("stateDir: /s", "", "stateDir"),
        (
            "proxy: {datapath: none, masqueradeAll: true}",
            "proxy.masqueradeAll",
            "proxy.datapath",
        ),
    ];
    let before = accepted(&format!("{BEFORE}}}"));
    for (change, taken, waiting) in rows {
        let mut changed: serde_json::Value = serde_yaml_ng::from_str(&format!("{BEFORE}}}")).expect("YAML");
        overlaid(&mut changed, serde_yaml_ng::from_str(change).expect("YAML"));
        let newer = accepted(&changed.to_string());
        let applied = before.with_live_parts_of(&newer);
        let found = (
            before.differing_keys(&applied).join(" "),
            applied.differing_keys(&newer).join(" "),
        );
        assert_eq!(found, (taken.to_owned(), waiting.to_owned()), "for {change}");
    }
}

#[test]
fn what_makes_no_sense_without_the_rest_waits_with_it() {
    let before = accepted("{nodeName: n, proxy: {datapath: iptables, podNetwork: 10.1.0.0/16}}");
    let newer = accepted(
        "{nodeName: n, proxy: {podNetwork: 10.1.0.0/16, detectLocalMode: InterfaceNamePrefix, \
         interfaceNamePrefix: fifteen-letters}}",
    );
    let applied = before.with_live_parts_of(&newer);
    assert_eq!(applied, before, "iptables takes 14 letters");
    assert_eq!(
        applied.differing_keys(&newer),
        [
            "proxy.datapath",
            "proxy.detectLocalMode",
            "proxy.interfaceNamePrefix"
        ]
    );
    assert_eq!(before.differing_keys(&before), Vec::<String>::new());
}

fn overlaid(base: &mut serde_json::Value, change: serde_json::Value) {
    match (base, change) {
        (serde_json::Value::Object(base), serde_json::Value::Object(change)) => {
            for (key, value) in change {
                let slot = base.entry(key).or_insert(serde_json::Value::Null);
                overlaid(slot, value);
            }
        }
        (base, change) => *base = change,
    }
}
