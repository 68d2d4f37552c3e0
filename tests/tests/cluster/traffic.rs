//! Packets between pods, Services, nodes and those outside.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, ensure};
use nix::sys::signal;
use tests::cluster::{Cluster, process_of};
use tests::process::{Place, command, run_in};
use tests::{http, wait};

use super::{LATER, SOON, example};

/// Where an agent serves its metrics.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);

pub fn apply_makes_a_deployment(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&example("hello.yaml")?)?;
    cluster.run(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    let nodes = cluster.run(&[
        "get",
        "pods",
        "-l",
        "app=hello",
        "-o",
        "jsonpath={.items[*].spec.nodeName}",
    ])?;
    let nodes: BTreeSet<&str> = nodes.split_whitespace().collect();
    ensure!(
        nodes == BTreeSet::from(["node-1", "node-2", "node-3"]),
        "pods stand on {nodes:?}"
    );
    Ok(())
}

pub fn pods_reach_the_service(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&example("clients.yaml")?)?;
    for node in 1..=3 {
        let pod = format!("client-node-{node}");
        cluster.await_output(
            &["get", "pod", &pod, "-o", "jsonpath={.status.phase}"],
            "Succeeded",
            LATER,
        );
        for container in ["by-ip", "by-name"] {
            let log = cluster.run(&["logs", &pod, "-c", container])?;
            let answers = log
                .lines()
                .filter(|line| line.split(' ').nth(1) == Some("200"))
                .count();
            ensure!(answers == 40, "{pod} {container}: {log}");
            // Forty random choices miss one of three pods once in three million runs.
            let pods: BTreeSet<_> = log
                .lines()
                .filter_map(|line| line.split(' ').nth(2))
                .filter(|pod| pod.starts_with("hello-"))
                .collect();
            ensure!(pods.len() == 3, "{pod} {container}: answered by {pods:?}");
        }
    }
    Ok(())
}

pub fn another_dns_server_answers(cluster: &Cluster) -> anyhow::Result<()> {
    let address = cluster.run(&["get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}"])?;
    let on_node = "jsonpath={.items[?(@.spec.nodeName==\"node-1\")].metadata.uid}";
    let uid = cluster.run(&["get", "pods", "-l", "app=hello", "-o", on_node])?;
    let place = Place::beside(process_of(&uid).context("the pod has no process")?)?;
    let ask = |over: &str| -> anyhow::Result<String> {
        let mut dig = command(&place, "dig");
        dig.args(["+short", "+tries=1", "+time=2", over, "@10.96.0.10"])
            .arg("hello.default.svc.cluster.local");
        Ok(run_in(&place, &mut dig, b"")?.stdout.trim().to_owned())
    };
    let is_answered = || {
        ["+notcp", "+tcp"]
            .iter()
            .all(|over| ask(over).is_ok_and(|answer| answer == address))
    };
    let server = nix::unistd::Pid::from_raw(cluster.pid("node-1-dns")?);
    ensure!(is_answered(), "by its own server");
    let _stopped = Stopped::now(server)?;
    wait::until_value("another server answers", SOON, is_answered, |answered| *answered);
    // Its own is one of the three endpoints.
    let unanswered = (0..10).filter(|_| !is_answered()).count();
    ensure!(unanswered == 0, "{unanswered} of ten times");
    Ok(())
}

/// A process that stands still, and goes on at the end.
pub struct Stopped(nix::unistd::Pid);

impl Stopped {
    pub fn now(process: nix::unistd::Pid) -> nix::Result<Self> {
        signal::kill(process, signal::SIGSTOP).map(|()| Self(process))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have ended.
        let _ = signal::kill(self.0, signal::SIGCONT);
    }
}

pub fn node_ports_answer(cluster: &Cluster) -> anyhow::Result<()> {
    let names = cluster.run(&[
        "get",
        "pods",
        "-l",
        "app=hello",
        "-o",
        "jsonpath={.items[*].metadata.name}",
    ])?;
    let pods: BTreeSet<String> = names.split_whitespace().map(str::to_owned).collect();
    for node in 1..=3 {
        let address = SocketAddr::from((Ipv4Addr::new(172, 30, 0, 10 + node), 30080));
        let mut missing = pods.clone();
        // Each try picks one of three at random: eighty tries miss one with a chance below one in 10^13.
        for _ in 0..80 {
            missing.remove(&hostname_behind(address)?);
        }
        ensure!(missing.is_empty(), "{address}: no answer from {missing:?}");
    }
    Ok(())
}

/// The name of the pod that answers an HTTP request.
fn hostname_behind(address: SocketAddr) -> anyhow::Result<String> {
    let answer = http::get(address, "/").with_context(|| format!("asking {address}"))?;
    let line = answer.lines().find_map(|line| line.strip_prefix("hostname: "));
    line.map(str::to_owned)
        .with_context(|| format!("no hostname in {answer:?}"))
}

pub fn the_hook_fires_for_pods(cluster: &Cluster) -> anyhow::Result<()> {
    // The agent looks at the hook's counters every ten seconds.
    let before = wait::until("the counter of connects", SOON, || translated_connects("node-2"));
    cluster.run(&["delete", "pod", "client-node-2", "--wait=true"])?;
    cluster.apply(&example("clients.yaml")?)?;
    let phase = ["get", "pod", "client-node-2", "-o", "jsonpath={.status.phase}"];
    cluster.await_output(&phase, "Succeeded", LATER);
    let now = || translated_connects("node-2").unwrap_or_default();
    wait::until_value("80 connects of a pod translated", SOON, now, |after| {
        *after >= before + 80
    });
    Ok(())
}

/// The agent's counter of connects that the socket hook translated, as its metrics say it.
fn translated_connects(node: &str) -> anyhow::Result<u64> {
    let namespace = netlink::Namespace::named(&format!("causeway-{node}"))?;
    let text = namespace.run(|| http::get(METRICS, "/metrics"))??;
    let line = text
        .lines()
        .find(|line| line.starts_with("causeway_hook_verdicts_total") && line.contains("translated"));
    let line = line.with_context(|| format!("no counter of translated connects in {text}"))?;
    let value: f64 = line.rsplit(' ').next().unwrap_or_default().parse()?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a counter of connects"
    )]
    Ok(value as u64)
}

/// That the bounds hold is shown where the plugin is, `overlay/tests/nodes/capabilities.rs`.
pub fn bandwidth(cluster: &Cluster) -> anyhow::Result<()> {
    let apply = |name: &str, ingress: &str| {
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, annotations: {{kubernetes.io/ingress-bandwidth: {ingress}}}}}, spec: {{nodeName: node-1, terminationGracePeriodSeconds: 0, containers: [{{name: c, image: 'causeway/pause:v1'}}]}}}}"
        ))
    };
    let queues = || {
        let namespace = netlink::Namespace::named("causeway-node-1")?;
        let tc = namespace.run(|| std::process::Command::new("tc").args(["qdisc", "show"]).output())??;
        anyhow::Ok(String::from_utf8(tc.stdout)?)
    };
    let limited = |queues: &str| {
        queues
            .lines()
            .any(|line| line.contains("tbf") && line.contains("rate 21Mbit"))
    };
    ensure!(!limited(&queues()?), "{}", queues()?);
    apply("limited", "21M")?;
    let phase = ["get", "pod", "limited", "-o", "jsonpath={.status.phase}"];
    cluster.await_output(&phase, "Running", SOON);
    ensure!(limited(&queues()?), "{}", queues()?);
    cluster.run(&["delete", "pod", "limited"])?;
    // Its sandbox goes after its object.
    let left = || queues().unwrap_or_else(|error| error.to_string());
    wait::until_value("no queue", SOON, left, |queues| !limited(queues));

    apply("boundless", "fast")?;
    let events = [
        "get",
        "events",
        "--field-selector",
        "involvedObject.name=boundless",
        "-o",
        "jsonpath={.items[*].message}",
    ];
    let told = "annotation kubernetes.io/ingress-bandwidth: \"fast\" is not a quantity from 1k to 1P";
    cluster.await_that(&events, SOON, |text| text.contains(told));
    cluster.run(&["delete", "pod", "boundless"])?;
    Ok(())
}
