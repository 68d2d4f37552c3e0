//! A transcript's steps, carried out on a cluster.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::matching::{Seen, Wanted, lines_match, report, squeezed};
use super::parsing::{Act, Step, Transcript, Versions};
use crate::cluster::Cluster;
use crate::directory::Directory;
use crate::kubectl::{Kubectl, run_with_input};
use crate::ports;

/// How long a `~` or `.` waits.
const SOON: Duration = Duration::from_secs(30);
/// How long a command may take, for `timeout`.
const LIMIT: &str = "100";
/// Between two tries of a `~`.
const AGAIN: Duration = Duration::from_millis(150);

/// Plays transcripts with one kubectl on one cluster.
pub struct Player<'a> {
    kubectl: &'a Kubectl,
    directory: Directory,
    namespace: String,
    port: u16,
    alone: &'a Mutex<()>,
    stop: Option<&'a AtomicBool>,
}

impl<'a> Player<'a> {
    /// For a kubectl on a cluster; `label` tells its namespace from those of other players. `alone` is shared by the
    /// players of one cluster.
    ///
    /// # Errors
    /// When its directory cannot be filled.
    pub fn new(
        kubectl: &'a Kubectl,
        cluster: &Cluster,
        label: &str,
        alone: &'a Mutex<()>,
    ) -> anyhow::Result<Self> {
        let namespace = format!("{label}-{}", kubectl.minor);
        let directory = Directory::new(&namespace);
        let programs = directory.path().join("bin");
        std::fs::create_dir(&programs)?;
        std::os::unix::fs::symlink(kubectl.path(), programs.join("kubectl"))?;
        std::fs::copy(cluster.kubeconfig(), directory.path().join("kubeconfig"))?;
        let port = ports::free();
        Ok(Self {
            kubectl,
            directory,
            namespace,
            port,
            alone,
            stop: None,
        })
    }

    /// Until somebody says so.
    #[must_use]
    pub fn until(mut self, stop: &'a AtomicBool) -> Self {
        self.stop = Some(stop);
        self
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    /// Plays all of it.
    ///
    /// # Errors
    /// When lines were not as expected. Each is printed as it comes: its number, the kubectl, the command, what was
    /// expected and what came.
    pub fn play(&self, transcript: &Transcript) -> anyhow::Result<()> {
        let failed = self.failures(transcript, |failure| println!("{failure}"));
        ensure!(
            failed == 0,
            "{}: {failed} lines are not as expected, told above",
            self.kubectl
        );
        Ok(())
    }

    /// Plays it, gives `tell` each line that was not as expected, and returns how many these were.
    pub fn failures(&self, transcript: &Transcript, tell: impl Fn(&str)) -> usize {
        let mut stage = Stage::default();
        let mut failures = 0;
        let minor = self.kubectl.minor;
        for step in transcript.steps.iter().filter(|step| step.versions.holds(minor)) {
            if self.is_stopped() {
                break;
            }
            if let Err(error) = self.act(step, &mut stage) {
                let (line, text) = (step.line, &step.text);
                tell(&format!(
                    "---- line {line}, kubectl 1.{minor}: {text}\n{error:#}\n"
                ));
                failures += 1;
            }
        }
        failures
    }

    fn act(&self, step: &Step, stage: &mut Stage<'a>) -> anyhow::Result<()> {
        match step.act {
            Act::Alone => stage.alone = Some(self.alone.lock().unwrap_or_else(PoisonError::into_inner)),
            Act::Together => stage.alone = None,
            Act::File => std::fs::write(self.directory.path().join(&step.text), self.filled(&step.input))?,
            Act::Run => self.run(step)?,
            Act::Await => self.run_until(step)?,
            Act::Begin => stage.background = Some(Background::start(self.shell(&step.text))?),
            Act::End => {
                let background = stage.background.take();
                self.end(step, &background.context("nothing runs in the background")?)?;
            }
        }
        Ok(())
    }

    fn filled(&self, text: &str) -> String {
        text.replace("$NS", &self.namespace)
            .replace("$PORT", &self.port.to_string())
            .replace("$MINOR", &self.kubectl.minor.to_string())
    }

    fn wanted(&self, step: &Step) -> Wanted {
        let minor = self.kubectl.minor;
        let of_this = |rows: &[(Versions, String)]| -> Vec<String> {
            let rows = rows.iter().filter(|(versions, _)| versions.holds(minor));
            rows.map(|(_, text)| squeezed(&self.filled(text))).collect()
        };
        let mut codes = step.codes.iter().filter(|(versions, _)| versions.holds(minor));
        Wanted {
            code: codes.next().map_or(0, |(_, code)| *code),
            output: of_this(&step.output),
            errors: of_this(&step.errors),
        }
    }

    fn shell(&self, line: &str) -> Command {
        let directory = self.directory.path();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("timeout");
        command
            .args([LIMIT, "/bin/sh", "-c", line])
            .current_dir(directory)
            .env("PATH", format!("{}:{path}", directory.join("bin").display()))
            .env("HOME", directory)
            .env("KUBECONFIG", directory.join("kubeconfig"))
            .env("NS", &self.namespace)
            .env("PORT", self.port.to_string())
            .env("MINOR", self.kubectl.minor.to_string());
        command
    }

    fn once(&self, step: &Step) -> anyhow::Result<Seen> {
        let input = self.filled(&step.input);
        let output = run_with_input(&mut self.shell(&step.text), input.as_bytes())?;
        Ok(Seen::of(&output))
    }

    fn run(&self, step: &Step) -> anyhow::Result<()> {
        let wanted = self.wanted(step);
        let seen = self.once(step)?;
        ensure!(wanted.is_met_by(&seen), report(&wanted, &seen));
        Ok(())
    }

    fn run_until(&self, step: &Step) -> anyhow::Result<()> {
        let wanted = self.wanted(step);
        let mut seen = self.once(step)?;
        let deadline = Instant::now() + SOON;
        while !wanted.is_met_by(&seen) {
            let late = Instant::now() > deadline || self.is_stopped();
            ensure!(!late, "not within {SOON:?}\n{}", report(&wanted, &seen));
            std::thread::sleep(AGAIN);
            seen = self.once(step)?;
        }
        Ok(())
    }

    fn end(&self, step: &Step, background: &Background) -> anyhow::Result<()> {
        let wanted = self.wanted(step).output;
        let deadline = Instant::now() + SOON;
        loop {
            let seen = background.lines();
            if lines_match(&wanted, &seen) {
                return Ok(());
            }
            let late = Instant::now() > deadline || self.is_stopped();
            ensure!(
                !late,
                "not within {SOON:?}\nexpected:\n{}\ngot:\n{}",
                wanted.join("\n"),
                seen.join("\n")
            );
            std::thread::sleep(AGAIN);
        }
    }
}

/// What goes on between steps.
#[derive(Default)]
struct Stage<'a> {
    background: Option<Background>,
    alone: Option<MutexGuard<'a, ()>>,
}

/// A command that goes on, with all that it started; killed on drop.
struct Background {
    child: Child,
    output: Arc<Mutex<Vec<String>>>,
}

impl Background {
    fn start(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let into = Arc::clone(&output);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                into.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Ok(Self { child, output })
    }

    fn lines(&self) -> Vec<String> {
        let lines = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|line| squeezed(line)).collect()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // `timeout` makes itself the leader of a group; it is the one of `process_group(0)` already.
        if let Ok(group) = i32::try_from(self.child.id()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL); // ended already
        }
        let _ = self.child.wait();
    }
}
