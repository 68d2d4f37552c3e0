//! `causeway connectivity` on the cluster: all of it works, a fault is told with its place, and nothing is left behind.

use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use netlink::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::cluster::{Cluster, everything, program};
use tests::wait;

use super::LATER;

/// The whole matrix takes no longer, with putting up and taking down.
const LONGEST: Duration = Duration::from_secs(30);

/// A table of rules that somebody else would have.
const RULES: &str = "cwt_connectivity";

fn connectivity(cluster: &Cluster, flags: &[&str]) -> Command {
    let mut command = Command::new(program("causeway"));
    command
        .arg("connectivity")
        .arg("--kubeconfig")
        .arg(cluster.kubeconfig());
    command.args(flags);
    command
}

fn run(cluster: &Cluster, flags: &[&str]) -> anyhow::Result<Output> {
    connectivity(cluster, flags)
        .output()
        .context("starting causeway connectivity")
}

/// Namespaces that were put up for it.
fn put_up(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let names = "jsonpath={.items[*].metadata.name}";
    let listed = cluster.run(&[
        "get",
        "namespaces",
        "-l",
        "causeway.dev/connectivity=true",
        "-o",
        names,
    ])?;
    Ok(listed.split_whitespace().map(str::to_owned).collect())
}

fn read(output: &Output) -> anyhow::Result<Value> {
    serde_json::from_slice(&output.stdout).with_context(|| everything(output))
}

fn cells(report: &Value) -> anyhow::Result<&Vec<Value>> {
    report["cells"].as_array().context("cells")
}

pub fn everything_is_reached(cluster: &Cluster) -> anyhow::Result<()> {
    let began = Instant::now();
    let output = run(cluster, &["-o", "json"])?;
    let took = began.elapsed();
    let report = read(&output)?;
    ensure!(output.status.code() == Some(0), "{}", everything(&output));
    ensure!(took < LONGEST, "it took {took:?}");
    println!("{} cells in {took:?}", report["tried"]);
    ensure!(
        report["nodes"] == serde_json::json!(["node-1", "node-2"]),
        "{report:#}"
    );
    let tried: BTreeSet<(&str, &str, &str)> = cells(&report)?
        .iter()
        .map(|cell| {
            let text = |key: &str| cell[key].as_str().unwrap_or_default();
            (text("path"), text("place"), text("transport"))
        })
        .collect();
    let both = ["same-node", "other-node"];
    let mut expected = BTreeSet::from([
        ("pod-to-api-server", "anywhere", "connect"),
        ("pod-to-other-node-port", "other-node", "tcp"),
        ("pod-to-other-node-port", "other-node", "udp"),
        ("pod-to-other-node-port", "other-node", "tcp-large"),
        ("pod-to-other-node-port", "other-node", "udp-large"),
    ]);
    for path in [
        "pod-to-pod",
        "pod-to-cluster-ip",
        "pod-to-node-port",
        "node-to-pod",
        "node-to-cluster-ip",
    ] {
        for place in both {
            expected
                .extend(["tcp", "udp", "tcp-large", "udp-large"].map(|transport| (path, place, transport)));
        }
    }
    for path in ["pod-to-name", "pod-to-headless"] {
        expected.extend(
            both.iter()
                .flat_map(|place| ["tcp", "udp"].map(|transport| (path, *place, transport))),
        );
    }
    ensure!(tried == expected, "{tried:#?}");
    ensure!(put_up(cluster)?.is_empty(), "left behind: {:?}", put_up(cluster)?);
    Ok(())
}

/// Rules of somebody else on a node, for as long as this lives.
struct Rules(Namespace);

impl Rules {
    fn add(node: &str, rules: &[&str]) -> anyhow::Result<Self> {
        let own = Self(Namespace::named(&format!("causeway-{node}"))?);
        for rule in rules {
            own.nft(rule)?;
        }
        Ok(own)
    }

    fn nft(&self, rule: &str) -> anyhow::Result<()> {
        let output = self.0.run(|| Command::new("nft").arg(rule).output())??;
        ensure!(output.status.success(), "nft {rule}: {}", everything(&output));
        Ok(())
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        if let Err(error) = self.nft(&format!("delete table ip {RULES}")) {
            eprintln!("left behind: {error:#}");
        }
    }
}

pub fn a_fault_is_told_with_its_place(cluster: &Cluster) -> anyhow::Result<()> {
    let table = format!("add table ip {RULES}");
    let chain = format!("add chain ip {RULES} passing {{ type filter hook forward priority 0; }}");
    let rule = format!("add rule ip {RULES} passing udp dport 8081 ip length > 1000 drop");
    let rules = Rules::add("node-2", &[&table, &chain, &rule])?;
    let output = run(cluster, &["-o", "json", "--nodes", "node-1,node-2"])?;
    let text = run(cluster, &["--nodes", "node-1,node-2"])?;
    drop(rules);
    let report = read(&output)?;
    ensure!(output.status.code() == Some(1), "{}", everything(&output));
    let failed: Vec<&Value> = cells(&report)?
        .iter()
        .filter(|cell| cell["ok"] == false)
        .collect();
    let all_are_large = failed.iter().all(|cell| cell["transport"] == "udp-large");
    ensure!(all_are_large, "{failed:#?}");
    let wanted = failed
        .iter()
        .find(|cell| cell["path"] == "pod-to-pod" && cell["from"] == "node-1" && cell["to"] == "node-2");
    let wanted = wanted.with_context(|| format!("{failed:#?}"))?;
    let reason = wanted["reason"].as_str().unwrap_or_default();
    ensure!(reason.ends_with(" bytes: no answer"), "{wanted:#}");
    let told = wanted["trace"].to_string();
    for part in [
        "verdict: DROPPED",
        "causeway-node-2",
        "NETFILTER_DROP in nft_do_chain",
    ] {
        ensure!(told.contains(part), "no {part:?} in {wanted:#}");
    }
    let said = String::from_utf8_lossy(&text.stdout);
    ensure!(text.status.code() == Some(1), "{}", everything(&text));
    let row = said
        .lines()
        .find(|line| line.starts_with("pod -> pod "))
        .context("no row")?;
    let columns: Vec<&str> = row.split_whitespace().skip(3).collect();
    ensure!(columns.first() == Some(&"IPv4"), "{row}");
    // On node-2 also pods of the same node meet its rules.
    ensure!(columns.last() == Some(&"FAIL"), "{row}");
    ensure!(columns.get(1..4) == Some(&["ok", "ok", "ok"]), "{row}");
    ensure!(said.contains("NETFILTER_DROP"), "{said}");
    Ok(())
}

pub fn nothing_is_left_when_it_is_interrupted_or_killed(cluster: &Cluster) -> anyhow::Result<()> {
    let begin = || -> anyhow::Result<_> {
        let known = put_up(cluster)?;
        let mut command = connectivity(cluster, &[]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let fresh = || -> anyhow::Result<Option<String>> {
            Ok(put_up(cluster)?.into_iter().find(|name| !known.contains(name)))
        };
        let name = wait::until("a namespace", LATER, || fresh().ok().flatten().ok_or("none"));
        Ok((child, name))
    };
    let (mut killed, left) = begin()?;
    killed.kill()?;
    killed.wait()?;
    ensure!(
        put_up(cluster)?.contains(&left),
        "{left} is gone though nobody removed it"
    );
    let (interrupted, fresh) = begin()?;
    kill(Pid::from_raw(i32::try_from(interrupted.id())?), Signal::SIGINT)?;
    let output = interrupted.wait_with_output()?;
    let said = everything(&output);
    ensure!(output.status.code() == Some(2), "{said}");
    ensure!(said.contains("error: interrupted"), "{said}");
    ensure!(
        said.contains(&format!("removed namespace {left}, which an earlier run left")),
        "{said}"
    );
    let gone = || put_up(cluster).unwrap_or_else(|error| vec![format!("{error:#}")]);
    wait::until_value(&format!("{left} and {fresh} gone"), LATER, gone, Vec::is_empty);
    Ok(())
}

pub fn what_cannot_be_tried_is_told(cluster: &Cluster) -> anyhow::Result<()> {
    let rows: [(&[&str], &str); 5] = [
        (&["--nodes", "node-9"], "error: there is no node node-9"),
        (
            &["--external", "example.test"],
            "error: --external example.test: HOST:PORT or [ADDRESS]:PORT",
        ),
        (&["--context", "nobodys"], "error: use kubeconfig"),
        (&["--timeout", "soon"], "soon is no time"),
        (
            &["--image", "causeway/nothing:v1", "--timeout", "2s"],
            "are not ready after 2 s:\n",
        ),
    ];
    for (flags, words) in rows {
        let output = run(cluster, flags)?;
        let said = everything(&output);
        ensure!(
            output.status.code() == Some(2) && said.contains(words),
            "{flags:?}: {said}"
        );
    }
    ensure!(put_up(cluster)?.is_empty(), "left behind: {:?}", put_up(cluster)?);
    Ok(())
}
