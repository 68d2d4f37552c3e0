//! The agent under the seccomp profile that it is deployed with.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tests::cluster::program;
use tests::node::Node;
use tests::process::{self, Place, Process};
use tests::topology::Host;
use tests::wait;

use crate::DEADLINE;
use crate::traffic::{Bpffs, ask, serve, service, slice};

fn profile() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/deploy/seccomp.json")
}

/// What the tests rely on: a call that is not named is refused.
#[test]
fn what_the_profile_does_not_name_is_refused() -> anyhow::Result<()> {
    if !tests::privileged("what the profile does not name is refused") {
        return Ok(());
    }
    let confined = |arguments: &[&str]| {
        let mut command = Command::new(program("confined"));
        command.arg(profile()).args(arguments).output()
    };
    let output = confined(&["chroot", "/", "true"])?;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && error.contains("Operation not permitted"),
        "{error}"
    );
    let output = confined(&["true"])?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// An agent under the profile, and one Service that it serves.
struct Confined {
    agent: Process,
    _server: Process,
    _bpffs: Bpffs,
    node: Node,
}

impl Confined {
    fn start(datapath: &str) -> anyhow::Result<Self> {
        let node = Node::new(&format!("confined-{datapath}"))?;
        let bpffs = Bpffs::mount(&node.directory.path().join("bpf"))?;
        node.api.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"},
            "spec": {"podCIDRs": ["10.244.1.0/24"]},
        }));
        node.host()
            .command("ip", &["address", "add", "10.244.9.9/32", "dev", "lo"])?;
        let server = serve(&node.place(), "10.244.9.9")?;
        node.api.put(service(80));
        node.api.put(slice(&["10.244.9.9"]));
        let config = node.configure(json!({
            "network": {
                "leases": "kubernetes", "config": {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}},
                "interface": "eth0", "subnetEnv": node.path("subnet.env"),
            },
            "cni": {"socket": node.path("cni.sock"), "confDir": node.path("net.d")},
            "proxy": {
                "datapath": datapath, "cgroup": node.cgroup.path(), "pinDir": node.path("bpf/causeway"),
            },
            "dns": {"address": "10.96.0.10"},
        }));
        let place = node.place();
        let mut command = process::command(&place, program("confined"));
        command
            .arg(profile())
            .arg(program("causeway"))
            .args(["node", "--config"])
            .arg(&config);
        let agent = Process::spawn(&place, command.env_remove("NODE_NAME"))?;
        Ok(Self {
            agent,
            _server: server,
            _bpffs: bpffs,
            node,
        })
    }

    #[track_caller]
    fn await_all_served(&self) -> anyhow::Result<()> {
        for part in [
            "overlay",
            "cni",
            "proxy",
            "dns-address",
            "dns-feed",
            "findings",
            "sysctls",
            "node-object",
        ] {
            self.node.until_working(part);
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.agent.pid()))?;
        assert!(status.lines().any(|line| line == "Seccomp:\t2"), "{status}");
        let place = self.node.place();
        let _answer = wait::until_value(
            "the Service",
            DEADLINE,
            || ask(&place, "http://10.96.0.7/"),
            |answer| answer.as_deref() == Ok("from 10.244.9.9"),
        );
        Ok(())
    }

    /// Nothing failed, and it ends as it should.
    #[track_caller]
    fn end(mut self) -> anyhow::Result<()> {
        let page = self.node.metrics()?;
        let failing = page
            .lines()
            .filter(|line| line.starts_with("causeway_part_working") && line.ends_with(" 0"));
        assert_eq!(failing.collect::<Vec<_>>(), Vec::<&str>::new());
        let log = self.agent.output();
        assert!(!log.contains("Operation not permitted"), "{log}");
        self.agent.terminate()?;
        assert_eq!(self.agent.await_end(DEADLINE).code(), Some(0));
        Ok(())
    }
}

#[track_caller]
fn check(datapath: &str) -> anyhow::Result<()> {
    let confined = Confined::start(datapath)?;
    confined.await_all_served()?;
    confined.end()
}

/// A connected UDP client of a Service of its own, in a network namespace that is not the agent's. Its endpoint leaves.
fn check_departed(node: &Node) -> anyhow::Result<()> {
    let names = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "names"},
        "spec": {"clusterIPs": ["10.96.0.8"], "ports": [{"port": 53, "protocol": "UDP"}]},
    });
    let slice = |endpoint: &str| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": "default", "name": "names-1", "labels": {"kubernetes.io/service-name": "names"},
            },
            "addressType": "IPv4", "endpoints": [{"addresses": [endpoint]}],
            "ports": [{"port": 5353, "protocol": "UDP"}],
        })
    };
    node.api.put(names);
    node.api.put(slice("10.244.9.9"));
    let pod = Host::new("confined-pod")?;
    pod.add_address("lo", "10.244.1.2/32".parse()?)?;
    pod.command("ip", &["route", "add", "default", "dev", "lo"])?;
    let place = Place {
        cgroup: node.place().cgroup,
        ..pod.place()
    };
    // Tries until the hook gave it the endpoint, whose address the kernel lists byte by byte from behind.
    let script = "import socket\n\
        while True:\n\
        \x20   client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        \x20   client.connect(('10.96.0.8', 53))\n\
        \x20   if '0909F40A:14E9' in open('/proc/self/net/udp').read(): break\n\
        print('connected', flush=True)\n\
        try: client.recv(1)\n\
        except ConnectionAbortedError: print('ended', flush=True)\n";
    let mut command = process::command(&place, "python3");
    let mut client = Process::spawn(&place, command.args(["-c", script]))?;
    client.await_line("connected", DEADLINE);
    node.api.put(slice("10.244.9.10"));
    client.await_line("ended", DEADLINE);
    Ok(())
}

#[test]
fn an_agent_with_ebpf_serves_under_its_seccomp_profile() -> anyhow::Result<()> {
    if !tests::privileged("an agent with eBPF serves under its seccomp profile") {
        return Ok(());
    }
    let confined = Confined::start("ebpf")?;
    confined.await_all_served()?;
    check_departed(&confined.node)?;
    confined.end()
}

#[test]
fn an_agent_with_nftables_serves_under_its_seccomp_profile() -> anyhow::Result<()> {
    if !tests::privileged("an agent with nftables serves under its seccomp profile") {
        return Ok(());
    }
    check("nftables")
}

#[test]
fn an_agent_with_iptables_serves_under_its_seccomp_profile() -> anyhow::Result<()> {
    if !tests::privileged("an agent with iptables serves under its seccomp profile") {
        return Ok(());
    }
    check("iptables")
}
