//! Processes of the cluster that are killed while traffic flows.

use anyhow::ensure;
use tests::cluster::Cluster;
use tests::wait;

use super::{LATER, SOON, example};

/// Runs `disturb` while a pod asks the Service without pause, and returns how many requests failed.
fn failures_under_load(
    cluster: &Cluster,
    disturb: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    cluster.apply(&example("load.yaml")?)?;
    let log = ["logs", "load"];
    let answers = |text: &str| {
        text.lines()
            .filter(|line| line.split(' ').nth(1) == Some("200"))
            .count()
    };
    cluster.await_that(&log, LATER, |text| answers(text) >= 20);
    disturb()?;
    let seen = answers(&cluster.run(&log)?);
    let text = cluster.await_that(&log, LATER, |text| answers(text) >= seen + 100);
    cluster.run(&["delete", "pod", "load", "--grace-period=1"])?;
    let failed: Vec<&str> = text
        .lines()
        .filter(|line| line.split(' ').nth(1) != Some("200"))
        .collect();
    if !failed.is_empty() {
        println!("failed requests:\n{}", failed.join("\n"));
    }
    Ok(failed.len())
}

fn kill(pid: i32) -> anyhow::Result<()> {
    use nix::sys::signal::{Signal, kill};
    Ok(kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL)?)
}

fn kill_and_await_successor(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let before = cluster.pid(name)?;
    kill(before)?;
    wait::until_value(
        name,
        SOON,
        || cluster.pid(name).unwrap_or(before),
        |pid| *pid != before,
    );
    Ok(())
}

pub fn control_plane_restarts(cluster: &Cluster) -> anyhow::Result<()> {
    let started = [
        "get",
        "pods",
        "-l",
        "app=hello",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[*].restartCount}",
    ];
    let before = cluster.run(&["get", "pods", "-l", "app=hello", "-o", "name"])?;
    let version = cluster.run(&[
        "get",
        "deployment",
        "hello",
        "-o",
        "jsonpath={.metadata.resourceVersion}",
    ])?;
    let failed = failures_under_load(cluster, || {
        kill_and_await_successor(cluster, "control-plane")?;
        cluster.await_that(&["get", "--raw", "/readyz"], LATER, |text| text.contains("ok"));
        Ok(())
    })?;
    ensure!(failed == 0, "{failed} requests failed");
    ensure!(
        cluster.run(&["get", "pods", "-l", "app=hello", "-o", "name"])? == before,
        "pods were replaced"
    );
    ensure!(
        cluster
            .run(&started)?
            .split_whitespace()
            .all(|count| count == "0"),
        "containers were restarted"
    );
    ensure!(
        cluster.run(&[
            "get",
            "deployment",
            "hello",
            "-o",
            "jsonpath={.metadata.resourceVersion}"
        ])? >= version,
        "the store went back in time"
    );
    Ok(())
}

pub fn node_daemons_restart(cluster: &Cluster) -> anyhow::Result<()> {
    let before = cluster.run(&["get", "pods", "-l", "app=hello", "-o", "name"])?;
    let failed = failures_under_load(cluster, || {
        for node in 1..=3 {
            kill_and_await_successor(cluster, &format!("node-{node}-agent"))?;
            kill_and_await_successor(cluster, &format!("node-{node}-kubelet"))?;
        }
        Ok(())
    })?;
    ensure!(failed == 0, "{failed} requests failed");
    ensure!(
        cluster.run(&["get", "pods", "-l", "app=hello", "-o", "name"])? == before,
        "pods were replaced"
    );
    cluster.await_that(&["get", "nodes"], LATER, |text| {
        text.matches(" Ready ").count() == 3
    });
    Ok(())
}
