//! A cluster whose nodes have no agent until the manifests bring one, and what a node has of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use netlink::Namespace;
use serde_json::json;
use tests::cluster::{Cluster, everything};
use tests::ledger::{self, Ledger};
use tests::process::{self, Place};
use tests::{image, privileged, wait};

pub const LATER: Duration = Duration::from_secs(90);
pub const NODES: [&str; 2] = ["node-1", "node-2"];

/// There is one cluster on a machine at a time.
static MACHINE: Mutex<()> = Mutex::new(());

/// Runs a scenario on a cluster of its own, where the test may have one.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn on_a_cluster(what: &str, scenario: impl FnOnce(&Cluster) -> anyhow::Result<()>) {
    on_a_cluster_with(&["--leases", "kubernetes"], what, scenario);
}

/// The same, with these flags besides.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn on_a_cluster_with(flags: &[&str], what: &str, scenario: impl FnOnce(&Cluster) -> anyhow::Result<()>) {
    if !privileged(what) {
        return;
    }
    let _machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let state_dir = PathBuf::from(format!("/var/lib/cwt-daemonset-{}", std::process::id()));
    let flags = [&["--nodes", "2", "--agent", "none"], flags].concat();
    let outcome = Cluster::up(&state_dir, &flags)
        .and_then(|cluster| scenario(&cluster).inspect_err(|_| print_state(&cluster)));
    if let Err(error) = outcome {
        panic!("{error:#}");
    }
}

/// For the log of a failed test.
fn print_state(cluster: &Cluster) {
    for words in [
        &["get", "pods", "-A", "-o", "wide"][..],
        &["get", "events", "-A"],
        &["logs", "-n", "causeway", "daemonset/causeway-node", "--tail=60"],
        &["logs", "-n", "causeway", "daemonset/causeway-dns", "--tail=60"],
        &[
            "logs",
            "-n",
            "causeway-uninstall",
            "daemonset/causeway-uninstall",
            "-c",
            "cleanup",
        ],
    ] {
        let said = cluster.run(words).unwrap_or_else(|error| format!("{error:#}"));
        eprintln!("---- kubectl {} ----\n{said}", words.join(" "));
    }
    cluster.print_logs();
}

/// A file or directory of `node/deploy`.
pub fn deploy(path: &str) -> String {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/deploy");
    deploy.join(path).display().to_string()
}

/// Builds the image from the programs of this build, in the nodes' stores.
pub fn build_image(cluster: &Cluster) -> anyhow::Result<()> {
    let recipe = image::recipe(&["causeway", "causeway-cni"])?;
    let recipe: Vec<&str> = recipe.iter().map(String::as_str).collect();
    let built = cluster.causeway_words("image", &[&["build"], &recipe[..]].concat())?;
    ensure!(built.status.success(), "{}", everything(&built));
    Ok(())
}

/// Brings an archive of the image to the nodes' stores.
pub fn import_image(cluster: &Cluster, archive: &Path) -> anyhow::Result<()> {
    let archive = archive.to_str().context("a path")?;
    let imported = cluster.causeway_words("image", &["import", archive])?;
    ensure!(imported.status.success(), "{}", everything(&imported));
    Ok(())
}

/// As the paper says: where the API server is, then the overlay.
pub fn install(cluster: &Cluster, overlay: &str) -> anyhow::Result<()> {
    begin_install(cluster, overlay)?;
    end_install(cluster)
}

/// Applies it.
pub fn begin_install(cluster: &Cluster, overlay: &str) -> anyhow::Result<()> {
    cluster.run(&["apply", "-f", &deploy("base/namespace.yaml")])?;
    let address = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "causeway-api-server", "namespace": "causeway" },
        "data": { "KUBERNETES_SERVICE_HOST": "172.30.0.1", "KUBERNETES_SERVICE_PORT": "6443" },
    });
    cluster.apply(&address.to_string())?;
    cluster.run(&["apply", "-k", &deploy(&format!("overlays/{overlay}"))])?;
    Ok(())
}

/// Waits until it does its work.
pub fn end_install(cluster: &Cluster) -> anyhow::Result<()> {
    let sets = cluster.run(&["get", "daemonsets", "-n", "causeway", "-o", "name"])?;
    for set in sets.split_whitespace() {
        cluster.run(&["rollout", "status", set, "-n", "causeway", "--timeout=90s"])?;
    }
    Ok(())
}

/// Deletes the overlay, and lets the nodes be cleaned.
pub fn begin_uninstall(cluster: &Cluster, overlay: &str) -> anyhow::Result<()> {
    let overlay = deploy(&format!("overlays/{overlay}"));
    cluster.run(&["delete", "-k", &overlay, "--ignore-not-found", "--timeout=60s"])?;
    cluster.run(&["apply", "-k", &deploy("uninstall")])?;
    Ok(())
}

/// Waits until all nodes are clean, and takes away what cleaned them.
pub fn end_uninstall(cluster: &Cluster) -> anyhow::Result<()> {
    let set = ["daemonset/causeway-uninstall", "-n", "causeway-uninstall"];
    cluster.run(&[&["rollout", "status", "--timeout=60s"], &set[..]].concat())?;
    let log = cluster.run(&[&["logs", "-c", "cleanup"], &set[..]].concat())?;
    println!("{log}");
    let uninstall = deploy("uninstall");
    cluster.run(&["delete", "-k", &uninstall, "--ignore-not-found", "--timeout=60s"])?;
    Ok(())
}

/// A node of the cluster, seen from its machine.
pub struct Node {
    pub name: &'static str,
    place: Place,
    /// `/` as its processes see it.
    root: PathBuf,
    state_dir: PathBuf,
}

/// Everything on a node that the manifests' pods could leave, but for kernel settings and empty directories.
pub struct Traces {
    ledger: Ledger,
    listed: BTreeSet<String>,
}

impl Traces {
    /// What differs.
    fn changes_since(&self, before: &Self) -> Vec<String> {
        let mut changes = self.ledger.changes_since(&before.ledger);
        let came = self.listed.difference(&before.listed);
        let went = before.listed.difference(&self.listed);
        changes.extend(came.map(|line| format!("+ {line}")));
        changes.extend(went.map(|line| format!("- {line}")));
        changes
    }
}

/// What each has now.
pub fn traces(nodes: &[Node]) -> anyhow::Result<Vec<Traces>> {
    nodes.iter().map(Node::traces).collect()
}

/// Nothing came to a node since then, and nothing went.
pub fn are_as_before(nodes: &[Node], before: &[Traces]) -> anyhow::Result<()> {
    for (node, before) in nodes.iter().zip(before) {
        let changes = node.traces()?.changes_since(before);
        ensure!(changes.is_empty(), "{}: {changes:#?}", node.name);
    }
    Ok(())
}

impl Node {
    /// All of them.
    pub fn all(cluster: &Cluster) -> anyhow::Result<Vec<Self>> {
        let node = |name: &'static str| {
            let kubelet = cluster.pid(&format!("{name}-kubelet"))?;
            let place = Place {
                namespace: Some(Namespace::named(&format!("causeway-{name}"))?),
                cgroup: None,
            };
            Ok(Self {
                name,
                place,
                root: format!("/proc/{kubelet}/root").into(),
                state_dir: cluster.state_dir().join("nodes").join(name),
            })
        };
        NODES.into_iter().map(node).collect()
    }

    /// Runs a program in the node's network.
    pub fn run(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = process::run_in(&self.place, Command::new(words[0]).args(&words[1..]), b"")?;
        ensure!(
            output.status.success(),
            "{}: {words:?}: {}",
            self.name,
            output.stderr
        );
        Ok(output.stdout)
    }

    /// Runs a closure in the node's network.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let namespace = self.place.namespace.as_ref().context("a node has one")?;
        Ok(namespace.run(work)?)
    }

    /// A directory of the container runtime's: `net.d` or `bin`.
    pub fn cni(&self, directory: &str) -> PathBuf {
        self.state_dir.join("cni").join(directory)
    }

    fn pins(&self) -> PathBuf {
        self.root.join("sys/fs/bpf")
    }

    fn traces(&self) -> anyhow::Result<Traces> {
        wait::until_value(
            "no address is tentative",
            LATER,
            || {
                self.run(&["ip", "-6", "address", "show", "tentative"])
                    .unwrap_or_default()
            },
            String::is_empty,
        );
        let mut listed = BTreeSet::new();
        for words in [
            &["ip", "neighbour", "show", "nud", "permanent"][..],
            &["ip", "-6", "rule", "show"],
            &["bridge", "fdb", "show"],
        ] {
            let shown = self.run(words)?;
            listed.extend(shown.lines().map(|line| format!("{}: {line}", words.join(" "))));
        }
        for directory in ["agent", "dns", "cni"] {
            files(&self.state_dir.join(directory), &mut listed)?;
        }
        for directory in ["run/causeway", "run/flannel"] {
            files(&self.root.join(directory), &mut listed)?;
        }
        Ok(Traces {
            ledger: Ledger::of(&self.place, &self.pins())?,
            listed,
        })
    }

    /// Which parts of Causeway are on it. `dns`: the DNS address.
    pub fn parts(&self, dns: &str) -> anyhow::Result<BTreeSet<&'static str>> {
        let shows = |words: &[&str], text: &str| anyhow::Ok(self.run(words)?.contains(text));
        let mut tables = ledger::rules(&self.place)?.into_iter();
        let found = [
            ("tunnel", shows(&["ip", "link"], "flannel.1")?),
            (
                "routes",
                !self.run(&["ip", "route", "show", "proto", "213"])?.is_empty(),
            ),
            ("plugin", self.cni("bin/causeway-cni").exists()),
            ("conflist", self.cni("net.d/10-causeway.conflist").exists()),
            ("rules", tables.any(|line| line.contains("causeway-proxy"))),
            ("hook", self.pins().join("causeway").exists()),
            (
                "DNS address",
                shows(&["ip", "address", "show", "lo"], &format!("{dns}/32"))?,
            ),
        ];
        let there = found.into_iter().filter(|(_, there)| *there);
        Ok(there.map(|(part, _)| part).collect())
    }
}

fn files(directory: &Path, found: &mut BTreeSet<String>) -> anyhow::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| directory.display().to_string())?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, found)?;
        } else {
            found.insert(path.display().to_string());
        }
    }
    Ok(())
}
