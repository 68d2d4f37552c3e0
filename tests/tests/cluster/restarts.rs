//! Processes of the cluster that are killed while traffic flows.

use anyhow::{Context as _, ensure};
use tests::cluster::Cluster;

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

/// The revision of the store at which the Deployment was written last.
fn revision(cluster: &Cluster) -> anyhow::Result<u64> {
    let version = ["-o", "jsonpath={.metadata.resourceVersion}"];
    let text = cluster.run(&[&["get", "deployment", "hello"][..], &version].concat())?;
    text.parse().with_context(|| format!("{text:?} is no revision"))
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
    let revision_before = revision(cluster)?;
    let failed = failures_under_load(cluster, || {
        cluster.kill_and_await_successor("control-plane", SOON)?;
        cluster.await_that(&["get", "--raw", "/readyz"], LATER, |text| text.contains("ok"));
        Ok(())
    })?;
    ensure!(failed == 0, "{failed} requests failed");
    ensure!(
        cluster.run(&["get", "pods", "-l", "app=hello", "-o", "name"])? == before,
        "pods were replaced"
    );
    let restarts = cluster.run(&started)?;
    let restarts: Vec<&str> = restarts.split_whitespace().collect();
    ensure!(restarts == ["0"; 3], "restarts of three containers: {restarts:?}");
    let revision_after = revision(cluster)?;
    ensure!(
        revision_after >= revision_before,
        "the store went back in time: from {revision_before} to {revision_after}"
    );
    Ok(())
}

pub fn node_daemons_restart(cluster: &Cluster) -> anyhow::Result<()> {
    let before = cluster.run(&["get", "pods", "-l", "app=hello", "-o", "name"])?;
    let failed = failures_under_load(cluster, || {
        for node in 1..=3 {
            cluster.kill_and_await_successor(&format!("node-{node}-agent"), SOON)?;
            cluster.kill_and_await_successor(&format!("node-{node}-kubelet"), SOON)?;
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
