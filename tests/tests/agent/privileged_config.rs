//! The configuration file while the agent runs, as a ConfigMap's volume changes it.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use tests::cluster::program;
use tests::directory::Directory;
use tests::node::Node;
use tests::wait;

use crate::DEADLINE;

/// A directory as the kubelet makes it for a ConfigMap: the file is a link through `..data`, which is replaced.
struct Volume {
    directory: Directory,
    versions: AtomicU32,
}

impl Volume {
    fn new(config: &Value) -> Self {
        let volume = Self {
            directory: Directory::new("volume"),
            versions: AtomicU32::new(0),
        };
        volume.put(&config.to_string());
        symlink("..data/node.yaml", volume.file()).expect("own directory");
        volume
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("node.yaml")
    }

    fn put(&self, text: &str) {
        let version = format!("..version-{}", self.versions.fetch_add(1, Ordering::Relaxed));
        let inside = |name: &str| self.directory.path().join(name);
        std::fs::create_dir(inside(&version)).expect("own directory");
        std::fs::write(inside(&version).join("node.yaml"), text).expect("own directory");
        symlink(&version, inside("..data_tmp")).expect("own directory");
        std::fs::rename(inside("..data_tmp"), inside("..data")).expect("own directory");
    }
}

fn ruleset(node: &Node) -> String {
    let output = node.host().command("nft", &["list", "ruleset"]);
    output.map(|output| output.stdout).unwrap_or_default()
}

/// Until the metrics at `port` have all of these lines.
#[track_caller]
fn until_told(node: &Node, port: u16, lines: &[&str]) {
    wait::until_value(
        "the metrics tell",
        DEADLINE,
        || {
            node.get(port, "/metrics")
                .unwrap_or_else(|error| error.to_string())
        },
        |page| lines.iter().all(|line| page.contains(line)),
    );
}

fn doctor(config: &Path) -> (Option<i32>, String) {
    let mut command = Command::new(program("causeway"));
    command
        .arg("doctor")
        .arg("--config")
        .arg(config)
        .env_remove("NODE_NAME");
    let output = command.output().expect("it starts");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

#[test]
fn a_changed_configuration_is_taken_without_a_restart_or_told() -> anyhow::Result<()> {
    if !tests::privileged("a changed configuration is taken without a restart") {
        return Ok(());
    }
    let node = Node::new("config")?;
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "web"},
        "spec": {"clusterIPs": ["10.96.0.7"], "externalIPs": ["198.51.100.77"], "ports": [{"port": 80}]},
    }));
    let first = std::fs::read_to_string(node.configure(json!({
        "proxy": {
            "datapath": "nftables", "pinDir": node.path("bpf"), "podNetworks": ["10.244.0.0/16"],
            "conntrack": {"maxPerCore": 0, "tcpCloseWaitTimeout": "59m"},
        },
    })))?;
    let mut config: Value = serde_json::from_str(&first)?;
    let volume = Volume::new(&config);
    let mut agent = node.agent(&volume.file());
    for part in ["proxy", "metrics", "sysctls", "config"] {
        node.until_working(part);
    }
    let rules = || ruleset(&node);
    wait::until_value("it serves", DEADLINE, rules, |rules| rules.contains("10.96.0.7"));
    assert!(
        !ruleset(&node).contains("198.51.100.77"),
        "external addresses are off"
    );

    // What plans are made by, where metrics are, kernel settings, and what is logged.
    config["proxy"]["externalIPs"] = json!(true);
    config["proxy"]["masqueradeAll"] = json!(true);
    config["proxy"]["conntrack"]["tcpCloseWaitTimeout"] = json!("58m");
    config["metricsBind"] = json!("127.0.0.1:10349");
    config["logging"] = json!({"level": "debug"});
    volume.put(&config.to_string());
    until_told(
        &node,
        10_349,
        &[
            "causeway_config_reloads_total{result=\"taken\"} 1",
            "causeway_config_refused 0",
        ],
    );
    assert!(node.metrics().is_err(), "nobody is at the former address");
    wait::until_value("the address is served", DEADLINE, rules, |rules| {
        rules.contains("198.51.100.77")
    });
    let close_wait = || {
        node.host().command(
            "sysctl",
            &["-n", "net.netfilter.nf_conntrack_tcp_timeout_close_wait"],
        )
    };
    wait::until_value(
        "the kernel's setting is another",
        DEADLINE,
        || close_wait().map(|output| output.stdout).unwrap_or_default(),
        |text| text.trim() == "3480",
    );
    agent.await_line("configuration taken without a restart", DEADLINE);
    agent.await_line("DEBUG", DEADLINE);

    // A file that is wrong changes nothing.
    volume.put("{proxy: {datapath: [}");
    until_told(
        &node,
        10_349,
        &[
            "causeway_config_refused 1",
            "causeway_config_reloads_total{result=\"refused\"} 1",
        ],
    );
    assert_eq!(node.part("config").as_deref(), Some("failing"));
    assert!(ruleset(&node).contains("198.51.100.77"), "the former one stays");
    let good = node.configure(json!({}));
    let (code, told) = doctor(&good);
    assert_eq!(code, Some(1), "{told}");
    assert!(
        told.contains("part config") && told.contains("node.yaml"),
        "{told}"
    );

    // What the agent cannot take alone is told by its key, and the rest of the same file taken.
    config["proxy"]["datapath"] = json!("iptables");
    config["proxy"]["externalIPs"] = json!(false);
    config["dns"]["address"] = json!("10.96.0.10");
    volume.put(&config.to_string());
    until_told(
        &node,
        10_349,
        &[
            "causeway_config_refused 0",
            "causeway_config_reloads_total{result=\"needs_restart\"} 1",
            "causeway_config_keys_waiting_for_restart 2",
        ],
    );
    wait::until_value("the address is not served", DEADLINE, rules, |rules| {
        rules.contains("10.96.0.7") && !rules.contains("198.51.100.77")
    });
    let (_, told) = doctor(&good);
    assert!(
        told.contains("note   config-needs-restart") && told.contains("dns.address, proxy.datapath"),
        "{told}"
    );
    agent.await_line("needs a restart", DEADLINE);

    // Put back, nothing waits any more.
    config["proxy"]["datapath"] = json!("nftables");
    config["dns"]
        .as_object_mut()
        .expect("a section")
        .remove("address");
    volume.put(&config.to_string());
    until_told(
        &node,
        10_349,
        &[
            "causeway_config_keys_waiting_for_restart 0",
            "causeway_config_reloads_total{result=\"taken\"} 2",
        ],
    );
    Ok(())
}

/// What is rendered once for the whole node, too, follows a running agent's file.
#[test]
fn who_is_a_pod_changes_in_the_rules_of_a_running_proxy() -> anyhow::Result<()> {
    if !tests::privileged("who is a pod changes in the rules of a running proxy") {
        return Ok(());
    }
    let rows = [
        ("nftables", "nft list ruleset", "iifname != \"veth*\""),
        ("iptables", "iptables-nft-save -t nat", "! -i veth+"),
    ];
    for (datapath, list, rule) in rows {
        let node = Node::new(&format!("pods-{datapath}"))?;
        node.api.put(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "web"},
            "spec": {"clusterIPs": ["10.96.0.7"], "ports": [{"port": 80}]},
        }));
        node.api.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"},
            },
            "ports": [{"port": 8080}], "endpoints": [{"addresses": ["10.244.0.9"]}],
        }));
        let config = node.configure(json!({
            "proxy": {
                "datapath": datapath, "iptablesVariant": "nft", "pinDir": node.path("bpf"),
                "podNetworks": ["10.244.0.0/16"],
            },
        }));
        let mut text: Value = serde_json::from_str(&std::fs::read_to_string(&config)?)?;
        let _agent = node.agent(&config);
        let words: Vec<&str> = list.split(' ').collect();
        let rules = || {
            let output = node.host().command(words[0], &words[1..]);
            output.map(|output| output.stdout).unwrap_or_default()
        };
        wait::until_value(datapath, DEADLINE, rules, |rules| rules.contains("10.244.0.9"));
        assert!(!rules().contains(rule), "{}", rules());
        text["proxy"]["detectLocalMode"] = json!("InterfaceNamePrefix");
        text["proxy"]["interfaceNamePrefix"] = json!("veth");
        std::fs::write(&config, text.to_string())?;
        wait::until_value(datapath, DEADLINE, rules, |rules| {
            rules.contains(rule) && rules.contains("10.244.0.9")
        });
    }
    Ok(())
}

#[test]
fn components_that_are_off_have_no_part_no_socket_and_no_file() -> anyhow::Result<()> {
    if !tests::privileged("components that are off have no part") {
        return Ok(());
    }
    let node = Node::new("components")?;
    let cni = |enabled| json!({"enabled": enabled, "confDir": node.directory.path(), "socket": node.path("cni.sock")});
    let off = json!({
        "network": {"leases": "kubernetes", "config": {"Network": "10.244.0.0/16"}, "subnetEnv": node.path("subnet.env")},
        "cni": cni(Some(false)),
        "dns": {"enabled": false},
    });
    let no_network = json!({"cni": cni(None)});
    let rows = [
        (
            off,
            &["overlay"][..],
            &["cni", "dns-feed", "dns-address", "proxy"][..],
            &["dns.sock"][..],
        ),
        (
            no_network,
            &["dns-feed"],
            &["overlay", "cni", "dns-address", "proxy"],
            &[],
        ),
    ];
    for (config, on, off, sockets) in rows {
        leave_as_an_earlier_agent(&node)?;
        let mut agent = node.agent(&node.configure(config));
        for part in ["watch", "metrics", "findings"] {
            node.until_working(part);
        }
        for part in on {
            assert!(node.part(part).is_some(), "{part}");
        }
        for part in off {
            assert_eq!(node.part(part), None, "{part}");
        }
        let files = ["cni.sock", CONFLIST, DNS_RECORD];
        for name in files.iter().chain(sockets) {
            assert!(!Path::new(&node.path(name)).exists(), "{name}");
        }
        assert!(!loopback(&node)?.contains(DNS_ADDRESS), "{}", loopback(&node)?);
        agent.kill();
    }
    Ok(())
}

const CONFLIST: &str = "10-causeway.conflist";
const DNS_RECORD: &str = "state/dns-address";
const DNS_ADDRESS: &str = "10.96.0.10";

/// What an agent leaves that connected pods and had the address of the cluster's DNS, and then crashed.
fn leave_as_an_earlier_agent(node: &Node) -> anyhow::Result<()> {
    let written = node
        .directory
        .write(CONFLIST, r#"{"plugins": [{"type": "causeway-cni"}]}"#);
    assert!(written.exists());
    std::fs::create_dir_all(node.path("state"))?;
    std::fs::write(node.path(DNS_RECORD), DNS_ADDRESS)?;
    node.host().command(
        "ip",
        &["address", "add", DNS_ADDRESS, "dev", "lo", "scope", "host"],
    )?;
    assert!(loopback(node)?.contains(DNS_ADDRESS));
    for socket in ["dns.sock", "cni.sock"] {
        drop(UnixListener::bind(node.path(socket))?);
    }
    Ok(())
}

fn loopback(node: &Node) -> anyhow::Result<String> {
    Ok(node
        .host()
        .command("ip", &["address", "show", "dev", "lo"])?
        .stdout)
}
