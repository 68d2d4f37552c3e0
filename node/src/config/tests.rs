//! Files that are taken, and files that are refused with which words.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::sections::Mode;
use super::{Config, Datapath, load};

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
fn accepted(text: &str) -> Config {
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

#[test]
fn a_pod_network_is_a_whole_configuration() {
    let config = accepted("proxy: {podNetwork: 10.244.0.0/16}");
    assert!(!config.node_name.0.is_empty());
    assert_eq!(config.network, None);
    assert_eq!(config.proxy.datapath, Datapath::Ebpf);
    assert_eq!(config.proxy.pin_dir, PathBuf::from("/sys/fs/bpf/causeway"));
    assert_eq!(config.dns.feed_socket, PathBuf::from("/run/causeway/dns.sock"));
    assert_eq!(config.cni.socket, PathBuf::from("/run/causeway/cni.sock"));
    assert_eq!(config.cni.conf_dir, PathBuf::from("/etc/cni/net.d"));
    assert_eq!(config.state_dir, PathBuf::from("/var/lib/causeway/node"));
    assert_eq!(config.health_bind.to_string(), "0.0.0.0:10256");
    assert_eq!(config.metrics_bind.to_string(), "127.0.0.1:10249");
}

#[test]
fn every_key_is_read_and_the_echo_reads_back_as_the_same() {
    let config = accepted(
        "
nodeName: node-1
kubernetes: {kubeconfig: /etc/kubeconfig, serviceHost: 172.30.0.1, servicePort: 6443}
network:
  mode: host-gw
  etcd: {endpoints: ['https://172.30.0.1:2379'], prefix: /my/network, ca: /pki/ca.crt, cert: /pki/n.crt, key: /pki/n.key}
  interface: eth0
  publicIp: 172.30.0.11
  config: {Network: 10.244.0.0/16, SubnetLen: 24, Backend: {Type: host-gw}}
  subnetEnv: /run/subnet.env
proxy: {datapath: nftables, cgroup: /sys/fs/cgroup/node-1, pinDir: /sys/fs/bpf/node-1}
dns: {address: 10.96.0.10, feedSocket: /run/feed.sock}
cni: {socket: /run/cni.sock, confDir: /etc/net.d}
stateDir: /state
healthBind: 172.30.0.11:10256
metricsBind: 172.30.0.11:10249
",
    );
    assert_eq!(config.node_name.0, "node-1");
    assert_eq!(config.proxy.datapath, Datapath::Nftables);
    let network = config.network.as_ref().expect("it is there");
    assert_eq!(network.mode, Some(Mode::HostGw));
    assert_eq!(network.etcd.prefix, "/my/network");
    assert_eq!(network.public_ip, Some([172, 30, 0, 11].into()));
    assert_eq!(accepted(&config.to_yaml()), config);
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
            "proxy: unknown field `datapth`, expected one of `datapath`, `cgroup`, `podNetwork`, `pinDir` at line 2 column 3",
        ),
        (
            "proxy: {datapath: ipvs}\n",
            "proxy.datapath: unknown variant `ipvs`, expected one of `ebpf`, `nftables`, `none` at line 1 column 19",
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
            "proxy: {datapath: ebpf}",
            "proxy.podNetwork: is needed where network.config is absent",
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
            "kubernetes: {serviceHost: 'https://a', servicePort: 0}",
            "kubernetes.serviceHost: \"https://a\" is not a host name or address\n\
             kubernetes.servicePort: 0 is not a port number",
        ),
        (
            "dns: {address: 0.0.0.0}",
            "dns.address: 0.0.0.0 is not the address of one host",
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
            "network: {etcd: {endpoints: ['https://a:1', 'b:2'], cert: /c, prefix: x}}",
            "network.etcd.endpoints[1]: \"b:2\" is not a URL like https://192.0.2.1:2379\n\
             network.etcd.ca: is needed for https\n\
             network.etcd: cert and key go together\n\
             network.etcd.prefix: \"x\" is not like /coreos.com/network",
        ),
        (
            "network: {etcd: {endpoints: ['http://a:1']}, interface: a-name-too-long-for-linux, config: {}}",
            "network.interface: \"a-name-too-long-for-linux\" is not a device's name\n\
             network.config: has no Network like 10.244.0.0/16",
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
