//! The kubectls of this machine: the one on PATH, those of other minor versions beside it, and the oldest one, which
//! `setup.sh` unpacks beside the build.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use anyhow::Context as _;

use crate::cluster::{Cluster, programs};
use crate::skipped;

/// Minor versions that lie beside some distributions' `kubectl`.
const BESIDE: std::ops::RangeInclusive<u32> = 27..=33;
/// Those that speak differently: SPDY and OpenAPI v2 only; the last of SPDY; WebSocket; protobuf bodies.
const DISTINCT: [u32; 4] = [20, 27, 30, 33];

/// A kubectl.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubectl {
    /// Its program.
    pub program: PathBuf,
    /// Its minor version; of a dispatcher, that of what it runs without a server.
    pub minor: u32,
}

/// All that there are, the one on PATH first. What is missing is said loudly, once.
///
/// # Panics
/// When there is none, or one does not tell its version.
#[must_use]
pub fn all() -> &'static [Kubectl] {
    static FOUND: OnceLock<Vec<Kubectl>> = OnceLock::new();
    FOUND.get_or_init(|| find().expect("kubectl on PATH tells its version"))
}

/// One of each minor version; the one on PATH only where none lies beside it that it may only be a dispatcher of.
#[must_use]
pub fn minors() -> Vec<Kubectl> {
    let (on_path, others) = all().split_first().expect("invariant: `all` is not empty");
    let mut chosen = others.to_vec();
    if others.iter().all(|kubectl| !BESIDE.contains(&kubectl.minor)) {
        chosen.push(on_path.clone());
    }
    chosen.sort_by_key(|kubectl| kubectl.minor);
    chosen.dedup_by_key(|kubectl| kubectl.minor);
    chosen
}

/// One of each kind of protocol: those of [`minors`] of version 1.20, 1.27, 1.30 and 1.33, and what is on PATH alone.
#[must_use]
pub fn distinct() -> Vec<Kubectl> {
    let mut chosen = minors();
    chosen.retain(|kubectl| DISTINCT.contains(&kubectl.minor) || !BESIDE.contains(&kubectl.minor));
    chosen
}

fn find() -> anyhow::Result<Vec<Kubectl>> {
    let mut found = vec![Kubectl::at(PathBuf::from("kubectl"))?];
    let oldest = programs().join("../tools/usr/bin/kubectl");
    let others = BESIDE.filter_map(|minor| Some((minor, beside_path(&format!("kubectl.1.{minor}"))?)));
    for (minor, program) in others.chain([(20, oldest)]) {
        match program.exists() {
            true => found.push(Kubectl::at(program)?),
            false => skipped(
                &format!("kubectl 1.{minor}"),
                &format!("there is no {}", program.display()),
            ),
        }
    }
    Ok(found)
}

/// A file beside the one that `kubectl` on PATH links to.
fn beside_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let kubectl = std::env::split_paths(&path)
        .map(|directory| directory.join("kubectl"))
        .find(|file| file.exists())?;
    Some(std::fs::canonicalize(kubectl).ok()?.with_file_name(name))
}

impl Kubectl {
    fn at(program: PathBuf) -> anyhow::Result<Self> {
        let output = Command::new(&program)
            .args(["version", "--client", "-o", "json"])
            .output()
            .with_context(|| format!("starting {}", program.display()))?;
        let version: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let minor = version["clientVersion"]["minor"].as_str();
        let minor = minor.context("no minor version")?.trim_end_matches('+').parse()?;
        Ok(Self { program, minor })
    }

    /// The whole path of its program.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let on_path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&on_path).map(|directory| directory.join(&self.program));
        places
            .chain([self.program.clone()])
            .find(|place| place.exists())
            .unwrap_or_else(|| self.program.clone())
    }

    /// A command of it for a cluster, not yet run.
    #[must_use]
    pub fn command(&self, cluster: &Cluster, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--kubeconfig")
            .arg(cluster.kubeconfig())
            .args(arguments);
        command
    }

    /// Runs it on a cluster with `input`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, cluster: &Cluster, arguments: &[&str], input: &[u8]) -> anyhow::Result<Output> {
        run_with_input(&mut self.command(cluster, arguments), input)
    }
}

impl std::fmt::Display for Kubectl {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.program.file_name().unwrap_or(self.program.as_os_str());
        write!(formatter, "{} (1.{})", Path::new(name).display(), self.minor)
    }
}

/// Runs a command with input while its outputs are read, so that neither waits for the other.
///
/// # Errors
/// When it cannot be started.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> anyhow::Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let mut stdin = child.stdin.take().context("no input")?;
    std::thread::scope(|scope| {
        // It may end without having read all.
        scope.spawn(move || stdin.write_all(input));
        Ok(child.wait_with_output()?)
    })
}
