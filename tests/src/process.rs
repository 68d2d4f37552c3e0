//! Child processes of a test: started inside a namespace and a cgroup, their output kept, ended when dropped.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netlink::Namespace;

use crate::{cgroup, wait};

/// Where a process shall run.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Network namespace; `None` = the test's own.
    pub namespace: Option<Namespace>,
    /// cgroup v2 directory, which it enters before it executes; `None` = the test's own.
    pub cgroup: Option<PathBuf>,
}

impl Place {
    /// Where another process runs.
    ///
    /// # Errors
    /// When there is no such process, or it is in no cgroup v2.
    pub fn beside(pid: u32) -> Result<Self> {
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let of_v2 = cgroups.lines().find_map(|line| line.strip_prefix("0::/"));
        Ok(Self {
            namespace: Some(Namespace::open(format!("/proc/{pid}/ns/net"))?),
            cgroup: Some(cgroup::mount_point()?.join(of_v2.context("no cgroup v2")?)),
        })
    }
}

/// Prepares a command. `run_in` and [`Process::spawn`] start it.
///
/// The cgroup is entered by a shell that then executes the program: a process has to be in it before its first
/// socket, or cgroup programs never see that socket.
#[must_use]
pub fn command(place: &Place, program: impl AsRef<OsStr>) -> Command {
    let Some(cgroup) = &place.cgroup else {
        return Command::new(program);
    };
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
        .arg(cgroup.join("cgroup.procs"))
        .arg(program);
    command
}

/// A program of the distribution: on PATH, or unpacked by `setup.sh`.
#[must_use]
pub fn installed(name: &str) -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/usr");
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&on_path).chain([tools.join("bin"), tools.join("sbin")]);
    directories
        .map(|directory| directory.join(name))
        .find(|path| path.exists())
}

/// Output of a finished command.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// It ended with this exit code, and said all of this on either stream.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn assert_said(&self, code: i32, words: &[&str]) {
        let said = format!("{}{}", self.stdout, self.stderr);
        assert_eq!(self.status.code(), Some(code), "{said}");
        for words in words {
            assert!(said.contains(words), "{words}: {said}");
        }
    }
}

/// Copies a program that is then to be executed, by a process of its own: a process that another test starts at that
/// moment would inherit the copy as this one has it open for writing, and as long as it does nobody can execute it
/// (`ETXTBSY`).
///
/// # Errors
/// When it cannot be copied.
pub fn copy_program(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg(from).arg(to).status();
    ensure!(status.context("start cp")?.success(), "cp to {}", to.display());
    Ok(())
}

/// Runs a command in a place to its end; `stdin` is given to it whole.
///
/// # Errors
/// When it cannot be started.
pub fn run_in(place: &Place, command: &mut Command, stdin: &[u8]) -> Result<Output> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = start(place, command)?;
    if let Some(mut input) = child.stdin.take() {
        // A program that does not read its input closes it: that is its right.
        let _ = std::io::Write::write_all(&mut input, stdin);
    }
    let output = child.wait_with_output().context("wait for the command")?;
    Ok(Output {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A new process is in the namespace of the thread that starts it.
fn start(place: &Place, command: &mut Command) -> Result<Child> {
    let name = format!("{command:?}");
    match &place.namespace {
        Some(namespace) => namespace.run(|| command.spawn())?,
        None => command.spawn(),
    }
    .with_context(|| format!("start {name}"))
}

/// A running process; killed, by its pid, and reaped on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    output: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
    quiet: bool,
}

impl Process {
    /// Starts a command in a place; its output is collected line by line.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(place: &Place, command: &mut Command) -> Result<Self> {
        let name = Path::new(command.get_program()).display().to_string();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = start(place, command)?;
        let output = Arc::new(Mutex::new(Vec::new()));
        let mut readers = Vec::new();
        readers.extend(
            child
                .stdout
                .take()
                .map(|stream| collect(stream, Arc::clone(&output))),
        );
        readers.extend(
            child
                .stderr
                .take()
                .map(|stream| collect(stream, Arc::clone(&output))),
        );
        Ok(Self {
            child,
            name,
            output,
            readers,
            quiet: false,
        })
    }

    /// The same, but what it printed is not shown when the test fails.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it printed so far, both streams.
    #[must_use]
    pub fn output(&self) -> String {
        self.output
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .join("\n")
    }

    /// Waits until it printed a line that contains the text.
    ///
    /// # Panics
    /// When the deadline passes, or the process ends first; tells what it printed.
    #[track_caller]
    pub fn await_line(&mut self, text: &str, timeout: Duration) {
        let what = format!("{} prints {text:?}", self.name);
        wait::until(&what, timeout, || {
            let output = self.output();
            if output.contains(text) {
                return Ok(());
            }
            if let Some(status) = self.ended() {
                let output = self.output();
                assert!(
                    output.contains(text),
                    "{} ended with {status} before it printed {text:?}:\n{output}",
                    self.name
                );
                return Ok(());
            }
            Err(output)
        });
    }

    /// How it ended, once all that it printed is read.
    fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().ok()??;
        self.readers.iter().all(JoinHandle::is_finished).then_some(status)
    }

    /// Waits for its end, and that of what it prints: a child of it that goes on must not print to the same.
    ///
    /// # Panics
    /// When the deadline passes.
    #[track_caller]
    pub fn await_end(&mut self, timeout: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        wait::until(&what, timeout, || self.ended().ok_or_else(|| self.output()))
    }

    /// Kills it (SIGKILL), as a crash would, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill(); // ended already
        let _ = self.child.wait();
    }

    /// Asks it to end (SIGTERM).
    ///
    /// # Errors
    /// When it is gone already.
    pub fn terminate(&self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("pid")?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)
            .with_context(|| format!("terminate {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() && !self.quiet {
            eprintln!("---- output of {}:\n{}\n----", self.name, self.output());
        }
        // A grandchild may hold the pipe open: the readers are left to end by themselves.
        self.readers.clear();
    }
}

fn collect(stream: impl Read + Send + 'static, into: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(|line| line.ok()) {
            let line = String::from_utf8_lossy(&line).into_owned();
            into.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_readiness_of_a_child_are_seen_and_it_dies_with_its_handle() {
        let mut command = command(&Place::default(), "/bin/sh");
        command.args(["-c", "echo starting; echo ready >&2; exec sleep 60"]);
        let mut process = Process::spawn(&Place::default(), &mut command).expect("start");
        process.await_line("ready", Duration::from_secs(5));
        process.await_line("starting", Duration::from_secs(5));
        let pid = process.pid();
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_command_gets_its_input_and_gives_its_output_and_status() {
        let mut cat = command(&Place::default(), "/bin/sh");
        cat.args(["-c", "cat; echo oops >&2; exit 3"]);
        let output = run_in(&Place::default(), &mut cat, b"hello").expect("run");
        assert_eq!(
            (output.stdout.as_str(), output.stderr.as_str()),
            ("hello", "oops\n")
        );
        assert_eq!(output.status.code(), Some(3));
    }
}
