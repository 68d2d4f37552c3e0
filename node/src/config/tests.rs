//! Files that are taken, and files that are refused with which words.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::sections::Mode;
use super::{
    Config, Conntrack, Datapath, DetectLocalMode, IptablesVariant, LogFormat, LogLevel, Logging,
    NetworkPolicies, NodePortAddresses, Proxy, load,
};

/// A file that is removed at the end.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("cwt-config-{}-{number}.yaml", std::process::id()));
        std::fs::write(&path, text).expect("temporary directory is writable");
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[track_caller]
pub(super) fn accepted(text: &str) -> Config {
    let file = File::new(text);
    match load(&file.0, None) {
        Ok(config) => config,
        Err(error) => panic!("{error}\nfor\n{text}"),
    }
}

#[track_caller]
fn refused(text: &str, words: &str) {
    let file = File::new(text);
    let error = load(&file.0, None).expect_err(text).to_string();
    let error = error.replace(&format!("{}: ", file.0.display()), "");
    assert_eq!(error, words, "for\n{text}");
}

fn network(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

#[test]
fn a_pod_network_is_a_whole_configuration() {
    let config = accepted("proxy: {podNetwork: 10.244.0.0/16}");
    assert!(!config.node_name.0.is_empty());
    assert_eq!(config.network, None);
    let proxy = Proxy {
        datapath: Datapath::Ebpf,
        iptables_variant: IptablesVariant::Auto,
        cgroup: None,
        pin_dir: "/sys/fs/bpf/causeway".into(),
        detect_local_mode: DetectLocalMode::ClusterCidr,
        pod_networks: vec![network("10.244.0.0/16")],
        bridge_interface: None,
        interface_name_prefix: None,
        masquerade_all: false,
        external_ips: false,
        node_port_addresses: NodePortAddresses::All,
        min_sync_period: Duration::from_millis(10),
        conntrack: Conntrack {
            max_per_core: 32_768,
            min: 131_072,
            tcp_established_timeout: Duration::from_secs(86_400),
            tcp_close_wait_timeout: Duration::from_secs(3600),
            tcp_be_liberal: false,
            udp_timeout: Duration::ZERO,
            udp_stream_timeout: Duration::ZERO,
        },
    };
    assert_eq!(config.proxy, proxy);
    assert_eq!(config.dns.feed_socket, PathBuf::from("/run/causeway/dns.sock"));
    assert_eq!(config.cni.socket, PathBuf::from("/run/causeway/cni.sock"));
    assert_eq!(config.cni.conf_dir, PathBuf::from("/etc/cni/net.d"));
    assert_eq!(config.state_dir, PathBuf::from("/var/lib/causeway/node"));
    assert_eq!(config.health_bind.to_string(), "0.0.0.0:10256");
    assert_eq!(config.metrics_bind.to_string(), "127.0.0.1:10249");
    assert_eq!(config.telemetry.traces(), Ok(None));
}

#[test]
fn every_key_is_read_and_the_echo_reads_back_as_the_same() {
    let config = accepted(
        "
nodeName: node-1
kubernetes: {kubeconfig: /etc/kubeconfig, serviceHost: 172.30.0.1, servicePort: 6443}
node: {startupTaint: example.com/wait}
network:
  mode: host-gw
  etcd: {endpoints: ['https://172.30.0.1:2379'], prefix: /my/network, ca: /pki/ca.crt, cert: /pki/n.crt, key: /pki/n.key}
  interface: eth0
  publicIp: 172.30.0.11
  config: {Network: 10.244.0.0/16, SubnetLen: 24, Backend: {Type: host-gw}}
  subnetEnv: /run/subnet.env
  fastPath: false
  networkPolicies: ignore
proxy:
  datapath: iptables
  iptablesVariant: nft
  cgroup: /sys/fs/cgroup/node-1
  pinDir: /sys/fs/bpf/node-1
  detectLocalMode: BridgeInterface
  podNetworks: [10.244.0.0/16, 'fd00:10:244::/56']
  bridgeInterface: cni0
  interfaceNamePrefix: veth
  masqueradeAll: true
  externalIPs: true
  nodePortAddresses: [192.0.2.7/24, 'fd00::/64']
  minSyncPeriod: 1500ms
  conntrack: {maxPerCore: 0, min: 1, tcpEstablishedTimeout: 1h 30m, tcpCloseWaitTimeout: 0s, tcpBeLiberal: true,
    udpTimeout: 30s, udpStreamTimeout: 3m}
dns: {enabled: true, address: 10.96.0.10, feedSocket: /run/feed.sock}
cni: {enabled: true, socket: /run/cni.sock, confDir: /etc/net.d}
stateDir: /state
healthBind: 172.30.0.11:10256
metricsBind: 172.30.0.11:10249
logging: {format: json, level: debug}
telemetry: {endpoint: 'https://collector:4318/otlp/', caFile: /ca.crt}
",
    );
    assert_eq!(config.node_name.0, "node-1");
    assert_eq!(config.node.startup_taint.as_deref(), Some("example.com/wait"));
    let (format, level) = (LogFormat::Json, LogLevel::Debug);
    assert_eq!(config.logging, Logging { format, level });
    let traces = config.telemetry.traces().expect("a URL");
    assert_eq!(
        traces,
        Some("https://collector:4318/otlp/v1/traces".parse().expect("a URL"))
    );
    assert_eq!(config.proxy.datapath, Datapath::Iptables);
    assert_eq!(config.proxy.iptables_variant, IptablesVariant::Nft);
    assert_eq!(config.proxy.detect_local_mode, DetectLocalMode::BridgeInterface);
    assert_eq!(
        config.proxy.node_port_addresses,
        NodePortAddresses::Networks([network("192.0.2.0/24"), network("fd00::/64")].into()),
        "an address in a network stands for the network"
    );
    assert_eq!(config.proxy.min_sync_period, Duration::from_millis(1500));
    assert_eq!(
        config.proxy.conntrack.tcp_established_timeout,
        Duration::from_secs(5400)
    );
    assert!(config.proxy.masquerade_all && config.proxy.external_ips);
    let network = config.network.as_ref().expect("it is there");
    assert_eq!(network.mode, Some(Mode::HostGw));
    assert_eq!(network.network_policies, NetworkPolicies::Ignore);
    assert_eq!(
        network.etcd.as_ref().map(|etcd| etcd.prefix.as_str()),
        Some("/my/network")
    );
    assert_eq!(network.public_ip, Some([172, 30, 0, 11].into()));
    assert_eq!(accepted(&config.to_yaml()), config);
}

#[test]
fn pod_networks_are_named_one_or_more_under_either_name_or_are_those_of_the_overlay() {
    let overlay = "network: {etcd: {endpoints: ['http://a:1']}, config: \
                   {Network: 10.1.0.0/16, IPv6Network: 'fd01::/56'}}";
    let rows = [
        ("proxy: {podNetwork: 10.244.0.0/16}", vec!["10.244.0.0/16"]),
        ("proxy: {podNetworks: 10.244.1.7/16}", vec!["10.244.0.0/16"]),
        (
            "proxy: {podNetwork: [10.244.0.0/16, 'fd00::/56']}",
            vec!["10.244.0.0/16", "fd00::/56"],
        ),
        (overlay, vec!["10.1.0.0/16", "fd01::/56"]),
        ("proxy: {detectLocalMode: NodeCIDR}", vec![]),
        ("proxy: {detectLocalMode: None}", vec![]),
    ];
    for (text, expected) in rows {
        let expected: Vec<_> = expected.into_iter().map(network).collect();
        assert_eq!(accepted(text).pod_networks(), expected, "for {text}");
    }
}

#[test]
fn each_component_is_switched_by_itself_and_those_that_cannot_be_alone_say_why() {
    const NETWORK: &str = "network: {leases: kubernetes, config: {Network: 10.1.0.0/16}}";
    const PROXY: &str = "proxy: {detectLocalMode: NodeCIDR}";
    const NO_PROXY: &str = "proxy: {datapath: none}";
    const NO_DNS: &str = "dns: {enabled: false}";
    let needs = "cni.enabled: needs the section network, which gives pods their addresses";
    let nothing = "proxy.datapath: is none, and network and dns.enabled are off too: there is nothing for an agent to do";
    let no_server = "dns.address: has no server on the node where dns.enabled is false";
    // Proxy, pod network, CNI plugin, DNS.
    let rows = [
        (vec![PROXY, NETWORK], Ok([true, true, true, true])),
        (vec![PROXY], Ok([true, false, false, true])),
        (vec![PROXY, NO_DNS], Ok([true, false, false, false])),
        (vec![NO_PROXY], Ok([false, false, false, true])),
        (vec![NO_PROXY, NETWORK, NO_DNS], Ok([false, true, true, false])),
        (
            vec![NO_PROXY, NETWORK, NO_DNS, "cni: {enabled: false}"],
            Ok([false, true, false, false]),
        ),
        (
            vec![PROXY, NETWORK, "cni: {enabled: false}"],
            Ok([true, true, false, true]),
        ),
        (
            vec![PROXY, NETWORK, "cni: {enabled: true}", NO_DNS],
            Ok([true, true, true, false]),
        ),
        (
            vec![PROXY, "cni: {enabled: false}"],
            Ok([true, false, false, true]),
        ),
        (vec![PROXY, "cni: {enabled: true}"], Err(needs)),
        (vec![NO_PROXY, NO_DNS], Err(nothing)),
        (
            vec![PROXY, "dns: {enabled: false, address: 10.96.0.10}"],
            Err(no_server),
        ),
    ];
    for (sections, expected) in rows {
        let text = format!("{{{}}}", sections.join(", "));
        match expected {
            Err(words) => refused(&text, words),
            Ok(expected) => {
                let config = accepted(&text);
                let is_proxy = config.proxy.datapath != Datapath::None;
                let found = [
                    is_proxy,
                    config.network.is_some(),
                    config.connects_pods(),
                    config.dns.enabled,
                ];
                assert_eq!(found, expected, "for {text}");
            }
        }
    }
}

#[test]
fn node_ports_are_served_on_all_addresses_the_primary_ones_or_those_of_networks() {
    let rows = [
        ("[all]", NodePortAddresses::All),
        ("[primary]", NodePortAddresses::Primary),
        (
            "[0.0.0.0/0]",
            NodePortAddresses::Networks([network("0.0.0.0/0")].into()),
        ),
    ];
    for (text, expected) in rows {
        let config = accepted(&format!(
            "proxy: {{podNetwork: 10.244.0.0/16, nodePortAddresses: {text}}}"
        ));
        assert_eq!(config.proxy.node_port_addresses, expected, "for {text}");
        assert_eq!(accepted(&config.to_yaml()), config);
    }
}

#[test]
fn the_name_given_with_the_command_comes_before_the_file() {
    let file = File::new("{nodeName: in-file, proxy: {datapath: none}}");
    let config = load(&file.0, Some("given")).expect("valid");
    assert_eq!(config.node_name.0, "given");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = load("/nonexistent/agent.yaml".as_ref(), None).expect_err("no file");
    assert_eq!(
        error.to_string(),
        "read /nonexistent/agent.yaml: No such file or directory (os error 2)"
    );
}

#[test]
fn keys_and_types_that_are_wrong_are_refused_with_their_place() {
    let rows = [
        (
            "proxy:\n  datapth: ebpf\n",
            "proxy: unknown field `datapth`, expected one of `datapath`, `iptablesVariant`, `cgroup`, `pinDir`, \
             `detectLocalMode`, `podNetwork`, `podNetworks`, `bridgeInterface`, `interfaceNamePrefix`, \
             `masqueradeAll`, `externalIPs`, `nodePortAddresses`, `minSyncPeriod`, `conntrack` at line 2 column 3",
        ),
        (
            "proxy: {datapath: ipvs}\n",
            "proxy.datapath: unknown variant `ipvs`, expected one of `ebpf`, `nftables`, `iptables`, `none` at line 1 column 19",
        ),
        (
            "proxy: {podNetwork: 10.244.0.0/33}\n",
            "proxy.podNetwork: \"10.244.0.0/33\" is not a network like 10.244.0.0/16 at line 1 column 21",
        ),
        (
            "proxy: {nodePortAddresses: [primary, 192.0.2.0/24]}\n",
            "proxy.nodePortAddresses: \"primary\" is not a network like 192.0.2.0/24, \
             nor alone and one of `all`, `primary` at line 1 column 28",
        ),
        (
            "proxy: {nodePortAddresses: []}\n",
            "proxy.nodePortAddresses: is empty at line 1 column 28",
        ),
        (
            "proxy: {minSyncPeriod: -1s}\n",
            "proxy.minSyncPeriod: \"-1s\" is not a duration like 10ms or 1h 30m at line 1 column 24",
        ),
        (
            "proxy: {minSyncPeriod: 10}\n",
            "proxy.minSyncPeriod: \"10\" is not a duration like 10ms or 1h 30m at line 1 column 24",
        ),
        (
            "proxy: {detectLocalMode: clusterCIDR}\n",
            "proxy.detectLocalMode: unknown variant `clusterCIDR`, expected one of `ClusterCIDR`, `NodeCIDR`, \
             `BridgeInterface`, `InterfaceNamePrefix`, `None` at line 1 column 26",
        ),
        (
            "network: {etcd: {}}\n",
            "network.etcd: missing field `endpoints` at line 1 column 17",
        ),
        (
            "healthBind: everywhere\n",
            "healthBind: invalid socket address syntax at line 1 column 13",
        ),
        (
            "kubernetes: {servicePort: 70000}\n",
            "kubernetes.servicePort: invalid value: integer `70000`, expected u16 at line 1 column 27",
        ),
    ];
    for (text, words) in rows {
        refused(text, words);
    }
}

#[test]
fn values_that_make_no_sense_are_refused_all_at_once() {
    let rows = [
        ("nodeName: ''", "nodeName: is empty"),
        (
            "nodeName: Bad Name!",
            "nodeName: \"Bad Name!\" is not a Node's name: labels of a-z, 0-9 and - with dots between",
        ),
        (
            "proxy: {datapath: ebpf}",
            "proxy.podNetworks: is needed where network.config is absent",
        ),
        (
            "proxy: {detectLocalMode: BridgeInterface}",
            "proxy.bridgeInterface: is needed for this detectLocalMode",
        ),
        (
            "proxy: {detectLocalMode: InterfaceNamePrefix, interfaceNamePrefix: ve/th}",
            "proxy.interfaceNamePrefix: \"ve/th\" is not a device's name",
        ),
        (
            "proxy: {datapath: iptables, detectLocalMode: InterfaceNamePrefix, \
             interfaceNamePrefix: fifteen-letters}",
            "proxy.interfaceNamePrefix: \"fifteen-letters\" is longer than 14 bytes",
        ),
        (
            "proxy: {detectLocalMode: InterfaceNamePrefix, interfaceNamePrefix: sixteen-letters-}",
            "proxy.interfaceNamePrefix: \"sixteen-letters-\" is longer than 15 bytes",
        ),
        (
            "proxy: {datapath: iptables, detectLocalMode: BridgeInterface, bridgeInterface: sixteen-letters-}",
            "proxy.bridgeInterface: \"sixteen-letters-\" is longer than 15 bytes",
        ),
        ("stateDir: state", "stateDir: state is not an absolute path"),
        (
            "proxy: {datapath: none, cgroup: a, pinDir: b}",
            "proxy.pinDir: b is not an absolute path\nproxy.cgroup: a is not an absolute path",
        ),
        (
            "healthBind: 127.0.0.1:1\nmetricsBind: 127.0.0.1:1",
            "metricsBind: 127.0.0.1:1 is healthBind already",
        ),
        (
            "telemetry: {endpoint: 'grpc://collector:4317'}",
            "telemetry.endpoint: \"grpc://collector:4317\" is not a URL like http://127.0.0.1:4318",
        ),
        (
            "telemetry: {endpoint: 'collector:4318'}",
            "telemetry.endpoint: \"collector:4318\" is not a URL like http://127.0.0.1:4318",
        ),
        (
            "kubernetes: {serviceHost: 'https://a', servicePort: 0}",
            "kubernetes.serviceHost: \"https://a\" is not a host name or address\n\
             kubernetes.servicePort: 0 is not a port number",
        ),
        (
            "dns: {address: 0.0.0.0}",
            "dns.address: 0.0.0.0 is not the address of one host",
        ),
        ("network: {}", "network.etcd: is needed with leases in etcd"),
        (
            "network: {leases: kubernetes}",
            "network.config: is needed with leases in Kubernetes",
        ),
        (
            "network: {etcd: {endpoints: []}}",
            "network.etcd.endpoints: is empty",
        ),
        (
            "network: {etcd: {endpoints: ['http://a:1']}, mode: vxlan, \
             config: {Network: 10.244.0.0/16, Backend: {Type: host-gw}}}",
            "network.mode: is \"vxlan\", but network.config has backend \"host-gw\"",
        ),
        (
            "network: {etcd: {endpoints: ['https://a:1', 'b:2'], cert: /c, username: u, prefix: x}}",
            "network.etcd.endpoints[1]: \"b:2\" is not a URL like https://192.0.2.1:2379\n\
             network.etcd.ca: is needed for https\n\
             network.etcd: cert and key go together\n\
             network.etcd: username and passwordFile go together\n\
             network.etcd.prefix: \"x\" is not like /coreos.com/network",
        ),
        (
            "network: {etcd: {endpoints: ['http://a:1']}, interface: a-name-too-long-for-linux, config: {}}",
            "network.interface: \"a-name-too-long-for-linux\" is not a device's name\n\
             network.config: Network: is missing",
        ),
        (
            "network: {etcd: {endpoints: ['http://a:1']}, config: {Network: 10.244.0.0/16, SubnetLen: 99}}",
            "network.config: SubnetLen: 99 is not between 18 and 30",
        ),
        (
            "network: {etcd: {endpoints: ['http://a:1']}, config: {Network: 127.0.0.0/8}}",
            "network.config: Network: 127.0.0.0/8 has loopback addresses",
        ),
        (
            "network: {etcd: {endpoints: ['http://a:1']}, config: {Network: 'fd00::/64'}}",
            "network.config: Network: \"fd00::/64\" is not a network",
        ),
    ];
    for (text, words) in rows {
        // Only a proxy needs the network of pods.
        let text = if text.contains("proxy:") {
            text.to_owned()
        } else {
            format!("proxy: {{datapath: none}}\n{text}")
        };
        refused(&text, words);
    }
}

#[test]
fn a_name_of_a_device_is_nothing_that_a_rule_would_read_otherwise() {
    let rows = [
        (
            "detectLocalMode: BridgeInterface, bridgeInterface",
            "bridgeInterface",
        ),
        (
            "detectLocalMode: InterfaceNamePrefix, interfaceNamePrefix",
            "interfaceNamePrefix",
        ),
    ];
    for (keys, key) in rows {
        for datapath in ["ebpf", "nftables", "iptables"] {
            for name in [
                "", "a b", "a\tb", "a\nb", "a\u{1}b", "a\u{a0}b", "a'b", "a\"b", "`ab", "a/b", "ab+",
            ] {
                let written = serde_json::to_string(name).expect("a text");
                refused(
                    &format!("proxy: {{datapath: {datapath}, podNetwork: 10.244.0.0/16, {keys}: {written}}}"),
                    &format!("proxy.{key}: {name:?} is not a device's name"),
                );
            }
        }
    }
    let names = [
        (
            "iptables",
            "InterfaceNamePrefix, interfaceNamePrefix: fourteen-bytes",
        ),
        (
            "nftables",
            "InterfaceNamePrefix, interfaceNamePrefix: fifteen-letters",
        ),
        (
            "ebpf",
            "InterfaceNamePrefix, interfaceNamePrefix: fifteen-letters",
        ),
        ("iptables", "BridgeInterface, bridgeInterface: fifteen-letters"),
    ];
    for (datapath, keys) in names {
        accepted(&format!(
            "proxy: {{datapath: {datapath}, podNetwork: 10.244.0.0/16, detectLocalMode: {keys}}}"
        ));
    }
}

#[test]
fn what_stands_in_the_wrong_place_is_not_quoted() {
    for text in ["token abc\\\"defg\nmore of it", "proxy: abc\\\"defg"] {
        let error = super::parse(Path::new("node.yaml"), text, None).expect_err("no such form");
        let told = format!("{:#}", anyhow::Error::from(error));
        assert!(
            told.starts_with("node.yaml: ") && !told.contains("abc") && !told.contains("defg"),
            "{told}"
        );
        assert!(told.contains("a string, expected"), "{told}");
    }
}

/// Every key of a mapping and of those in it, as `a.b`.
fn keys(value: &serde_json::Value, prefix: &str) -> Vec<String> {
    let serde_json::Value::Object(fields) = value else {
        return Vec::new();
    };
    let below = |(key, value): (&String, &serde_json::Value)| {
        let path = format!("{prefix}{key}");
        let mut all = keys(value, &format!("{path}."));
        all.push(path);
        all
    };
    fields.iter().flat_map(below).collect()
}

#[test]
fn the_reference_file_is_accepted_and_names_every_key() {
    let text = include_str!("../../deploy/node.yaml");
    let config = accepted(text);
    let read = |text: &str| serde_yaml_ng::from_str::<serde_json::Value>(text).expect("YAML");
    let (mut documented, mut known) = (keys(&read(text), ""), keys(&read(&config.to_yaml()), ""));
    documented.sort();
    known.sort();
    assert_eq!(documented, known);
}

/// What tells pods from others where there is no network of pods alone.
const BY_DEVICES: &str = "proxy: {detectLocalMode: InterfaceNamePrefix, interfaceNamePrefix: eni}\n";

#[test]
fn addresses_of_a_vpc_are_a_pod_network_by_the_peers_variables() {
    let config = accepted(&format!(
        "{BY_DEVICES}vpcEni: {{variables: {{WARM_IP_TARGET: \"2\"}}}}"
    ));
    let section = config.vpc_eni.clone().expect("a section");
    let environment = [("WARM_IP_TARGET", "7"), ("CLUSTER_NAME", "prod")];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let (settings, wrong) = section.settings(environment.into_iter());
    assert_eq!(wrong, Vec::<String>::new());
    let expected = vpc_eni::settings::Settings {
        target: vpc_eni::warm::Target::Addresses { warm: 2, minimum: 0 },
        cluster: Some("prod".to_owned()),
        ..Default::default()
    };
    assert_eq!(settings, expected);
    assert!(section.anti_spoofing && config.connects_pods());
}

#[test]
fn what_does_not_go_with_addresses_of_a_vpc_is_named() {
    refused(
        "proxy: {datapath: none}\nvpcEni: {}\nnetwork: {etcd: {endpoints: [\"http://127.0.0.1:2379\"]}}",
        "vpcEni: stands beside network; pods have their addresses of one of them",
    );
    refused(
        "vpcEni: {}",
        "proxy.detectLocalMode: with vpcEni there are no networks of pods alone; pods are told by their devices: \
         InterfaceNamePrefix, and interfaceNamePrefix: eni",
    );
    for (variable, words) in [
        (
            "WARM_ENI_TARGET: many",
            "WARM_ENI_TARGET=many: is not a number of 0 to 65536",
        ),
        (
            "AWS_VPC_K8S_CNI_VETHPREFIX: vpc",
            "AWS_VPC_K8S_CNI_VETHPREFIX=vpc: pods' devices are called eni… here",
        ),
        (
            "AWS_VPC_K8S_CNI_CONNMARK: \"0x100\"",
            "AWS_VPC_K8S_CNI_CONNMARK=0x100: the mark is 0x80 here",
        ),
        (
            "ENABLE_POD_ENI: \"true\"",
            "ENABLE_POD_ENI=true: security groups for single pods are not here yet",
        ),
    ] {
        let text = format!("{BY_DEVICES}vpcEni: {{variables: {{{variable}}}}}");
        refused(&text, &format!("vpcEni.variables: {words}"));
    }
}
