//! A real cluster for tests: `causeway up` into a directory of its own, `causeway down` at the end.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// Where cargo put the programs: beside the directory of this test or example.
///
/// # Panics
/// When it does not run from a cargo target directory.
#[must_use]
pub fn programs() -> PathBuf {
    let test = std::env::current_exe().expect("invariant: the kernel names this program");
    let dir = test.parent().expect("invariant: a program lies in a directory");
    let programs = if dir.ends_with("deps") || dir.ends_with("examples") {
        dir.parent().expect("invariant: target/debug/deps has a parent")
    } else {
        dir
    };
    programs.to_path_buf()
}

/// A program that cargo put there.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let path = programs().join(name);
    assert!(
        path.exists(),
        "{} is missing: cargo build --workspace",
        path.display()
    );
    path
}

/// An image of the machine's busybox.
pub const SHELL: &str = "cwt/sh:v1";
/// Of `causeway image build` for [`SHELL`].
pub const SHELL_FLAGS: [&str; 6] = [
    "--entrypoint",
    "/busybox",
    "--entrypoint",
    "sh",
    "--env",
    "FROM=image",
];

/// A cluster that is up.
pub struct Cluster {
    state_dir: PathBuf,
}

impl Cluster {
    /// Brings one up with `flags` for `causeway up`.
    ///
    /// # Errors
    /// With everything that `causeway up` said, when it failed.
    pub fn up(state_dir: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        let cluster = Self {
            state_dir: state_dir.to_path_buf(),
        };
        let output = cluster.causeway("up", flags)?;
        if !output.status.success() {
            cluster.print_logs();
            bail!("causeway up: {}", everything(&output));
        }
        println!("{}", String::from_utf8_lossy(&output.stdout));
        Ok(cluster)
    }

    /// Runs a `causeway` command on this cluster's state directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn causeway(&self, command: &str, flags: &[&str]) -> anyhow::Result<Output> {
        causeway(command, &self.state_dir, flags)
    }

    /// As [`Cluster::causeway`], for a command that has commands of its own below it: `words` come before the state
    /// directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn causeway_words(&self, command: &str, words: &[&str]) -> anyhow::Result<Output> {
        let program = programs().join("causeway");
        Command::new(&program)
            .arg(command)
            .args(words)
            .arg("--state-dir")
            .arg(&self.state_dir)
            .output()
            .with_context(|| format!("starting {}", program.display()))
    }

    /// The state directory.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.state_dir.join("admin.kubeconfig")
    }

    /// A `kubectl` for this cluster, not yet run.
    #[must_use]
    pub fn kubectl(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(arguments);
        command
    }

    /// Runs kubectl and returns what it printed.
    ///
    /// # Errors
    /// With everything that it said, when it failed.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self
            .kubectl("kubectl", arguments)
            .output()
            .context("starting kubectl")?;
        ensure!(
            output.status.success(),
            "kubectl {}: {}",
            arguments.join(" "),
            everything(&output)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs kubectl with `stdin`, which must fail, and returns what it said on standard error.
    ///
    /// # Errors
    /// When it succeeded.
    pub fn refused(&self, arguments: &[&str], stdin: &str) -> anyhow::Result<String> {
        let output = self.with_input(arguments, stdin)?;
        ensure!(
            !output.status.success(),
            "kubectl {} was not refused: {}",
            arguments.join(" "),
            everything(&output)
        );
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Applies a manifest.
    ///
    /// # Errors
    /// As [`Cluster::run`].
    pub fn apply(&self, manifest: &str) -> anyhow::Result<String> {
        let output = self.with_input(&["apply", "-f", "-"], manifest)?;
        ensure!(output.status.success(), "kubectl apply: {}", everything(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Applies an object, and returns what the API server made of it.
    ///
    /// # Errors
    /// As [`Cluster::run`].
    pub fn apply_and_read(&self, object: &serde_json::Value) -> anyhow::Result<serde_json::Value> {
        let output = self.with_input(&["apply", "-o", "json", "-f", "-"], &object.to_string())?;
        ensure!(output.status.success(), "kubectl apply: {}", everything(&output));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn with_input(&self, arguments: &[&str], stdin: &str) -> anyhow::Result<Output> {
        let mut command = self.kubectl("kubectl", arguments);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .context("no standard input")?
            .write_all(stdin.as_bytes())?;
        Ok(child.wait_with_output()?)
    }

    /// Waits until kubectl prints `wanted` (white space at the ends aside).
    ///
    /// # Panics
    /// With what it printed last, when that does not come to be.
    #[track_caller]
    pub fn await_output(&self, arguments: &[&str], wanted: &str, deadline: Duration) {
        self.await_that(arguments, deadline, |text| text.trim() == wanted);
    }

    /// Waits until what kubectl prints satisfies `good`, and returns it.
    ///
    /// # Panics
    /// With what it printed last, when that does not come to be.
    #[track_caller]
    pub fn await_that(&self, arguments: &[&str], deadline: Duration, good: impl Fn(&str) -> bool) -> String {
        let observe = || self.run(arguments).unwrap_or_else(|error| format!("{error:#}"));
        let what = format!("kubectl {}", arguments.join(" "));
        wait::until_value(&what, deadline, observe, |text| good(text))
    }

    /// Prints the end of every process's log on standard error. The logs go with the state directory.
    pub fn print_logs(&self) {
        let Ok(entries) = std::fs::read_dir(self.state_dir.join("logs")) else {
            return;
        };
        for entry in entries.flatten() {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("---- {} ----", entry.path().display());
            eprintln!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }

    /// A client with the administrator's rights.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn client(&self) -> anyhow::Result<kube::Client> {
        let kubeconfig = kube::config::Kubeconfig::read_from(self.kubeconfig())?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// Gives all nodes the machine's static shell as the image [`SHELL`], whose entrypoint is `/busybox sh`.
    ///
    /// # Errors
    /// When there is none, or the image cannot be built.
    pub fn bring_shell(&self) -> anyhow::Result<()> {
        let busybox = busybox()?;
        let busybox = busybox.to_str().context("a path")?;
        let build = ["build", "--tag", SHELL, "--from-binary", busybox];
        let output = self.causeway_words("image", &[&build[..], &SHELL_FLAGS[..]].concat())?;
        ensure!(output.status.success(), "{}", everything(&output));
        Ok(())
    }

    /// The pid of a supervised process, for example `node-1-agent`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self, name: &str) -> anyhow::Result<i32> {
        pid_of(&self.state_dir, name)
    }

    /// Kills a supervised process, and waits until another one has its name. `deadline` is for that.
    ///
    /// # Errors
    /// When it cannot be killed.
    ///
    /// # Panics
    /// When it does not run, or nothing follows it.
    #[track_caller]
    pub fn kill_and_await_successor(&self, name: &str, deadline: Duration) -> anyhow::Result<()> {
        self.signal_and_await_successors(&[name], Signal::SIGKILL, deadline)
    }

    /// As [`Cluster::kill_and_await_successor`], for several at once and by any signal that ends them.
    ///
    /// # Errors
    /// When one cannot be signalled.
    ///
    /// # Panics
    /// When one does not run, or nothing follows it.
    #[track_caller]
    pub fn signal_and_await_successors(
        &self,
        names: &[&str],
        signal: Signal,
        deadline: Duration,
    ) -> anyhow::Result<()> {
        let mut before = Vec::new();
        for name in names {
            let pid = wait::until(name, deadline, || self.pid(name));
            kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {name}, {pid}"))?;
            before.push((name, pid));
        }
        for (name, before) in before {
            let now = || self.pid(name).unwrap_or(before);
            wait::until_value(name, deadline, now, |pid| *pid != before);
        }
        Ok(())
    }
}

/// What is done on a cluster.
pub type Scenario = fn(&Cluster) -> anyhow::Result<()>;

/// Brings a cluster up, runs trials on it in order, and takes it down. Whether all of that went well.
#[must_use]
pub fn run_trials(
    arguments: &Arguments,
    state_dir: &Path,
    flags: &[&str],
    scenarios: &'static [(&'static str, Scenario)],
) -> bool {
    let cluster = match Cluster::up(state_dir, flags) {
        Ok(cluster) => cluster,
        Err(error) => {
            eprintln!("{error:#}");
            return false;
        }
    };
    // The trials outlive no call of `run`; a leaked reference lets them be 'static, and the cluster is taken down by
    // hand below.
    let cluster: &'static Cluster = Box::leak(Box::new(cluster));
    let trials = scenarios.iter().map(|(name, scenario)| {
        Trial::test(*name, move || {
            scenario(cluster).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    let conclusion = libtest_mimic::run(arguments, trials.collect());
    if conclusion.has_failed() {
        cluster.print_logs();
    }
    let down = cluster.causeway("down", &[]);
    let is_down = down.as_ref().is_ok_and(|output| output.status.success());
    if !is_down {
        eprintln!("causeway down: {:?}", down.as_ref().map(everything));
    }
    !conclusion.has_failed() && is_down
}

/// A manifest of `examples`.
///
/// # Errors
/// When it cannot be read.
pub fn example(name: &str) -> anyhow::Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name);
    std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        match self.causeway("down", &[]) {
            Ok(output) if output.status.success() => {}
            Ok(output) => eprintln!("causeway down: {}", everything(&output)),
            Err(error) => eprintln!("causeway down: {error:#}"),
        }
    }
}

/// The pid of a supervised process of the cluster with this state directory, for example `node-1-agent`.
///
/// # Errors
/// When it does not run.
pub fn pid_of(state_dir: &Path, name: &str) -> anyhow::Result<i32> {
    let text = std::fs::read(state_dir.join("processes.json"))?;
    let processes: serde_json::Value = serde_json::from_slice(&text)?;
    let pid = processes[name]["pid"]
        .as_i64()
        .with_context(|| format!("{name} does not run"))?;
    Ok(i32::try_from(pid)?)
}

/// Runs a `causeway` command.
///
/// # Errors
/// When it cannot be started.
pub fn causeway(command: &str, state_dir: &Path, flags: &[&str]) -> anyhow::Result<Output> {
    let program = programs().join("causeway");
    Command::new(&program)
        .arg(command)
        .arg("--state-dir")
        .arg(state_dir)
        .args(flags)
        .output()
        .with_context(|| format!("starting {}", program.display()))
}

/// The machine's static shell.
///
/// # Errors
/// When it is not installed.
pub fn busybox() -> anyhow::Result<PathBuf> {
    std::fs::canonicalize("/bin/busybox").context("the package busybox-static")
}

/// A process of a pod's container, by the pod's cgroup.
#[must_use]
pub fn process_of(uid: &str) -> Option<u32> {
    let mut processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes.find_map(|process| {
        let pid = process.file_name().to_string_lossy().parse().ok()?;
        let program = std::fs::read_link(process.path().join("exe")).ok()?;
        let cgroups = std::fs::read_to_string(process.path().join("cgroup")).ok()?;
        (program.ends_with("testserver") && cgroups.contains(uid)).then_some(pid)
    })
}

/// Exit code and both outputs, for a message.
#[must_use]
pub fn everything(output: &Output) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    format!("{}\n{out}{err}", output.status)
}
