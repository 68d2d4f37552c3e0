//! The control plane killed at random points, while kubectl works at the cluster, writers count what was acknowledged
//! and watchers follow: nothing that was acknowledged is lost, no container is started anew, nothing stays behind.
//!
//! The store, the API server and the controllers of `causeway up` are one process; beside a real etcd the store dies
//! alone as well.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;
use tests::cluster::Cluster;
use tests::directory::Directory;
use tests::kubectl::{self, Kubectl};
use tests::process::{Place, Process};
use tests::transcript::{Player, Transcript};
use tests::{cgroup, etcd, is_full_run, privileged, skipped, wait};

use crate::acknowledged::{self, Watchers};

/// For what shall be well again after the last kill.
const HEALED: Duration = Duration::from_secs(120);
/// Where Debian's etcd listens: nodes reach it at the bridge.
const ETCD_LISTENS: &str = "http://0.0.0.0:12379";
const ETCD: &str = "http://172.30.0.1:12379";

/// There is one cluster on a machine at a time.
static MACHINE: Mutex<()> = Mutex::new(());

/// How long there are kills, and the longest pause between two. The short run has about as many kills as 25 seconds of
/// the long one: the control plane is ready again in less than a second.
fn pace() -> (Duration, Duration) {
    let (length, pause) = if is_full_run() { (300, 6) } else { (10, 2) };
    (Duration::from_secs(length), Duration::from_secs(pause))
}

fn seed() -> u64 {
    let given = std::env::var("CAUSEWAY_TEST_SEED").ok();
    given
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random)
}

#[test]
fn kills_of_the_control_plane_lose_no_write_and_restart_no_container() -> anyhow::Result<()> {
    if !privileged("the control plane killed at random points") {
        return Ok(());
    }
    let _machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let state = PathBuf::from(format!("/var/lib/cwt-kills-{}", std::process::id()));
    let cluster = Cluster::up(&state, &[])?;
    endure(&cluster, None, seed()).inspect_err(|_| cluster.print_logs())
}

#[test]
fn kills_of_the_store_or_the_rest_lose_no_write_and_restart_no_container() -> anyhow::Result<()> {
    let what = "a real etcd and the control plane killed at random points";
    if !privileged(what) {
        return Ok(());
    }
    let Some(program) = etcd::program() else {
        skipped(what, "no etcd: ./setup.sh test unpacks one");
        return Ok(());
    };
    let _machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let data = Directory::new("kills-etcd");
    let mut store = RealStore::start(&program, data.path())?;
    let state = PathBuf::from(format!("/var/lib/cwt-kills-{}", std::process::id()));
    let cluster = Cluster::up(&state, &["--etcd", ETCD])?;
    endure(&cluster, Some(&mut store), seed()).inspect_err(|_| cluster.print_logs())
}

/// Debian's etcd, which this test starts again.
struct RealStore<'a> {
    program: &'a Path,
    data: &'a Path,
    process: Process,
}

impl<'a> RealStore<'a> {
    fn start(program: &'a Path, data: &'a Path) -> anyhow::Result<Self> {
        let process = Self::process(program, data)?;
        Ok(Self {
            program,
            data,
            process,
        })
    }

    fn process(program: &Path, data: &Path) -> anyhow::Result<Process> {
        let data = data.to_str().context("a path")?;
        Ok(etcd::start_at(&Place::default(), program, data, ETCD_LISTENS)?.quiet())
    }

    fn start_again(&mut self) -> anyhow::Result<()> {
        self.process = Self::process(self.program, self.data)?;
        Ok(())
    }
}

fn endure(cluster: &Cluster, store: Option<&mut RealStore>, seed: u64) -> anyhow::Result<()> {
    println!("seed {seed} (CAUSEWAY_TEST_SEED)");
    cluster.bring_shell()?;
    let create = "create deployment steady --image=causeway/testserver:v1 --replicas=3";
    cluster.run(&create.split(' ').collect::<Vec<_>>())?;
    cluster.run(&["rollout", "status", "deployment/steady", "--timeout=60s"])?;
    let containers = steady_containers(cluster)?;
    ensure!(containers.len() == 3, "{containers:?}");

    let runtime = tokio::runtime::Runtime::new()?;
    let client = runtime.block_on(cluster.client())?;
    let stop = Arc::new(AtomicBool::new(false));
    let watchers = runtime.block_on(Watchers::start(&client))?;
    let writing = runtime.spawn(acknowledged::write_until(client.clone(), Arc::clone(&stop)));
    work_while_killed(cluster, store, seed, &stop)?;
    let ledgers = runtime.block_on(writing)??;
    wait::until("the API server is ready", HEALED, || {
        cluster.run(&["get", "--raw", "/readyz"])
    });
    println!("{}", runtime.block_on(ledgers.compare(&client))?);
    runtime.block_on(watchers.converge(&client, HEALED))?;
    clear(cluster)?;
    await_no_orphans(cluster);
    let after = steady_containers(cluster)?;
    ensure!(
        after == containers,
        "containers were started anew:\n{containers:#?}\n{after:#?}"
    );
    if is_full_run() {
        let kubectls = kubectl::distinct();
        let kubectl = kubectls.last().context("no kubectl")?;
        Player::new(kubectl, cluster, "afterwards", &Mutex::default())?.play(&Transcript::read()?)?;
        println!("the transcript holds afterwards");
    }
    Ok(())
}

/// Kubectls type the transcript again and again while the control plane is killed.
fn work_while_killed(
    cluster: &Cluster,
    store: Option<&mut RealStore>,
    seed: u64,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let transcript = Transcript::read()?;
    let alone = Mutex::default();
    let mut kubectls = kubectl::distinct();
    if !is_full_run() {
        kubectls.drain(..kubectls.len().saturating_sub(1));
    }
    let (transcript, alone) = (&transcript, &alone);
    std::thread::scope(|scope| {
        let typists: Vec<_> = kubectls
            .iter()
            .map(|kubectl| scope.spawn(move || type_until(kubectl, cluster, transcript, alone, stop)))
            .collect();
        let kills = kill_at_random(cluster, store, seed);
        stop.store(true, Ordering::Relaxed);
        println!("{}", kills?);
        for typist in typists {
            println!("{}", typist.join().expect("no panic")?);
        }
        Ok(())
    })
}

/// A line fails when the control plane is killed under it, so failures are counted, not judged.
fn type_until(
    kubectl: &Kubectl,
    cluster: &Cluster,
    transcript: &Transcript,
    alone: &Mutex<()>,
    stop: &AtomicBool,
) -> anyhow::Result<String> {
    let (mut plays, mut failed) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let label = format!("killed-{plays}");
        let player = Player::new(kubectl, cluster, &label, alone)?.until(stop);
        failed += player.failures(transcript, |_| {});
        plays += 1;
    }
    let commands = transcript.commands(kubectl.minor);
    Ok(format!(
        "{kubectl}: {plays} times {commands} commands begun, {failed} of them failed under kills"
    ))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    ControlPlane,
    Store,
    Both,
}

/// Kills as [`pace`] says; what dies is up again before the next kill, but not ready.
fn kill_at_random(cluster: &Cluster, mut store: Option<&mut RealStore>, seed: u64) -> anyhow::Result<String> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut counts = BTreeMap::<Victim, u32>::new();
    let (length, longest_pause) = pace();
    let end = Instant::now() + length;
    while Instant::now() < end {
        // The pause is the load's time to get somewhere; the kill is to come at no particular moment.
        std::thread::sleep(longest_pause.mul_f64(random.random()));
        let victim = match store {
            None => Victim::ControlPlane,
            Some(_) => [Victim::ControlPlane, Victim::Store, Victim::Both][random.random_range(0..3)],
        };
        *counts.entry(victim).or_default() += 1;
        if let (Victim::Store | Victim::Both, Some(store)) = (victim, &mut store) {
            store.process.kill();
        }
        if victim != Victim::Store {
            cluster.kill_and_await_successor("control-plane", HEALED)?;
        }
        if let (Victim::Store | Victim::Both, Some(store)) = (victim, &mut store) {
            store.start_again()?;
        }
    }
    Ok(format!("killed: {counts:?}"))
}

/// Container ids, restarts and starts of the Deployment that nobody touches, by pod.
fn steady_containers(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, [String; 3]>> {
    let pods: Value =
        serde_json::from_str(&cluster.run(&["get", "pods", "-l", "app=steady", "-o", "json"])?)?;
    let pods = pods["items"].as_array().context("a list")?;
    let container = |pod: &Value| {
        let status = &pod["status"]["containerStatuses"][0];
        let name = pod["metadata"]["name"].to_string();
        let started = &status["state"]["running"]["startedAt"];
        (
            name,
            [&status["containerID"], &status["restartCount"], started].map(Value::to_string),
        )
    };
    Ok(pods.iter().map(container).collect())
}

/// Takes away what the typists had made when they were stopped.
fn clear(cluster: &Cluster) -> anyhow::Result<()> {
    let node = r#"{"spec":{"taints":null,"unschedulable":null}}"#;
    cluster.run(&["patch", "node", "node-3", "--type=merge", "-p", node])?;
    for kind in [
        "namespaces",
        "clusterroles",
        "clusterrolebindings",
        "priorityclasses",
    ] {
        let names = cluster.run(&["get", kind, "-o", "jsonpath={.items[*].metadata.name}"])?;
        let theirs = names.split(' ').filter(|name| name.starts_with("killed-"));
        let delete: Vec<&str> = ["delete", kind, "--timeout=100s"]
            .into_iter()
            .chain(theirs)
            .collect();
        if delete.len() > 3 {
            cluster.run(&delete)?;
        }
    }
    Ok(())
}

/// Every object's owner is there, and every container belongs to a pod.
fn await_no_orphans(cluster: &Cluster) {
    wait::until("no orphans", HEALED, || {
        orphans(cluster).and_then(|orphans| {
            ensure!(orphans.is_empty(), "{orphans:#?}");
            Ok(())
        })
    });
}

const KINDS: &str = "pods,deployments,replicasets,daemonsets,controllerrevisions,jobs,cronjobs,services,endpoints,endpointslices,nodes,leases";

fn orphans(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let objects: Value = serde_json::from_str(&cluster.run(&["get", KINDS, "-A", "-o", "json"])?)?;
    let objects = objects["items"].as_array().context("a list")?;
    let uids: BTreeSet<&str> = objects
        .iter()
        .filter_map(|object| object["metadata"]["uid"].as_str())
        .collect();
    let mut orphans = Vec::new();
    for object in objects {
        let owners = object["metadata"]["ownerReferences"]
            .as_array()
            .into_iter()
            .flatten();
        for owner in owners.filter_map(|owner| owner["uid"].as_str()) {
            if !uids.contains(owner) {
                let (kind, name) = (&object["kind"], &object["metadata"]["name"]);
                orphans.push(format!("{kind} {name} of {owner}"));
            }
        }
    }
    let root = cgroup::mount_point()?.join("causeway");
    for node in ["node-1", "node-2", "node-3"] {
        for entry in std::fs::read_dir(root.join(node).join("pods"))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_known = uids.iter().any(|uid| name.contains(uid));
            if entry.path().is_dir() && !is_known {
                orphans.push(format!("cgroup {node}/pods/{name}"));
            }
        }
    }
    Ok(orphans)
}
