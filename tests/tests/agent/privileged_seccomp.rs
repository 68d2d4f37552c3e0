//! The agent under the seccomp profile that it is deployed with.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tests::cluster::program;
use tests::node::Node;
use tests::process::{self, Process};
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

#[track_caller]
fn check(datapath: &str) -> anyhow::Result<()> {
    let node = Node::new(&format!("confined-{datapath}"))?;
    let _bpffs = Bpffs::mount(&node.directory.path().join("bpf"))?;
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}, "spec": {"podCIDRs": ["10.244.1.0/24"]},
    }));
    node.host()
        .command("ip", &["address", "add", "10.244.9.9/32", "dev", "lo"])?;
    let _server = serve(&node.place(), "10.244.9.9")?;
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
    let mut agent = Process::spawn(&place, command.env_remove("NODE_NAME"))?;
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
        node.until_working(part);
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    assert!(status.lines().any(|line| line == "Seccomp:\t2"), "{status}");
    let _answer = wait::until_value(
        "the Service",
        DEADLINE,
        || ask(&place, "http://10.96.0.7/"),
        |answer| answer.as_deref() == Ok("from 10.244.9.9"),
    );
    let page = node.metrics()?;
    let failing = page
        .lines()
        .filter(|line| line.starts_with("causeway_part_working") && line.ends_with(" 0"));
    assert_eq!(failing.collect::<Vec<_>>(), Vec::<&str>::new());
    let log = agent.output();
    assert!(!log.contains("Operation not permitted"), "{log}");
    agent.terminate()?;
    assert_eq!(agent.await_end(DEADLINE).code(), Some(0));
    Ok(())
}

#[test]
fn an_agent_with_ebpf_serves_under_its_seccomp_profile() -> anyhow::Result<()> {
    if !tests::privileged("an agent with eBPF serves under its seccomp profile") {
        return Ok(());
    }
    check("ebpf")
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
