//! Commands in containers that run already: what `kubectl exec` and exec probes ask for.
//!
//! Each is started by `causeway-shim exec`, whose standard streams it inherits. A command belongs to its container and
//! ends with it at the latest; a kubelet that ends lets go of the command's streams.

use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use crate::disk::{self, DiskError, OnPath};
use crate::process::{ProcessIdentity, Signal};
use crate::runtime::Runtime;
use crate::shim::state::{ContainerDir, ExecDir, ExecOutcome};
use crate::terminal::{ConsoleSocket, Terminal};

/// What [`Runtime::exec_output`] keeps of a command's output, in bytes: as much as the kubelet keeps of a probe's
/// (`maxRespBodyLength` of `pkg/probe/exec`).
const KEPT_OUTPUT: usize = 10 << 10;
/// How long output is awaited after its command has ended: something that the command left behind may hold it open.
pub(crate) const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// Why a command did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The node failed to prepare it.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The container is not there.
    #[error("container {0} not found")]
    NoContainer(String),
    /// It was not started: in words of the runtimes that Kubernetes users know.
    #[error("OCI runtime exec failed: exec failed: unable to start container process: {0}: unknown")]
    NotStarted(String),
    /// It took too long and was killed.
    #[error("command {command:?} timed out after {limit:?}")]
    TimedOut {
        /// Which.
        command: Vec<String>,
        /// What it was given.
        limit: Duration,
    },
    /// Its helper was killed, or the kubelet ends.
    #[error("the command's end was not seen")]
    Lost,
}

/// What is to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// With a terminal, which is then input and output.
    pub terminal: bool,
    /// With input.
    pub stdin: bool,
}

/// A command that runs.
#[derive(Debug)]
pub struct Process {
    /// How it talks.
    pub streams: Streams,
    /// How it ends.
    pub ending: Ending,
}

/// The streams of a command.
#[derive(Debug)]
pub enum Streams {
    /// Apart.
    Pipes {
        /// Its standard input, where it was asked for.
        stdin: Option<pipe::Sender>,
        /// Its standard output.
        stdout: pipe::Receiver,
        /// Its standard error.
        stderr: pipe::Receiver,
    },
    /// All in one.
    Terminal(Terminal),
}

/// The end of a command.
#[derive(Debug)]
pub struct Ending {
    job: ExecDir,
    helper: Option<ProcessIdentity>,
    outcome: oneshot::Receiver<Option<ExecOutcome>>,
}

/// A command that has run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// Beginning of what it wrote, to standard output and standard error as it came.
    pub output: Vec<u8>,
}

impl Ending {
    /// Waits for it: the exit code. May be called again only after it was cancelled.
    pub async fn code(&mut self) -> Result<i32, ExecError> {
        match (&mut self.outcome).await {
            Ok(Some(ExecOutcome::Exited(code))) => Ok(code),
            Ok(Some(ExecOutcome::NotStarted(why))) => Err(ExecError::NotStarted(in_known_words(why))),
            Ok(None) | Err(_) => Err(ExecError::Lost),
        }
    }

    /// Kills the command.
    pub fn kill(&self) {
        let process: Option<ProcessIdentity> = disk::read_json(&self.job.started()).unwrap_or_default();
        if let Some(process) = process.or(self.helper) {
            process.signal(Signal::KILL);
        }
    }
}

impl Runtime {
    /// Runs a command in the container `id`, with the container's own namespaces, cgroup, user, variables and working
    /// directory.
    pub async fn exec(&self, id: &str, exec: &Exec) -> Result<Process, ExecError> {
        let directory = self.container_dir(id);
        let config: Value =
            disk::read_json(&directory.oci_config())?.ok_or_else(|| ExecError::NoContainer(id.to_owned()))?;
        let job = ExecDir(directory.execs().join(uuid::Uuid::new_v4().simple().to_string()));
        disk::make_dir(job.path())?;
        disk::write_json_for_now(&job.process(), &process(&config, exec))?;
        let started = match exec.terminal {
            true => self.start_on_terminal(&directory, job.clone()).await,
            false => self.start_on_pipes(&directory, job.clone(), exec.stdin),
        };
        if started.is_err() {
            disk::remove_tree(job.path())?;
        }
        started
    }

    /// Runs a command to its end, for at most `limit`.
    pub async fn exec_output(
        &self,
        id: &str,
        command: &[String],
        limit: Duration,
    ) -> Result<ExecOutput, ExecError> {
        let exec = Exec {
            command: command.to_vec(),
            ..Exec::default()
        };
        let Process { streams, mut ending } = self.exec(id, &exec).await?;
        let Streams::Pipes { stdout, stderr, .. } = streams else {
            return Err(ExecError::Lost);
        };
        let mut output = Vec::new();
        let code = tokio::time::timeout(limit, async {
            let mut copy = std::pin::pin!(gather(stdout, stderr, &mut output));
            tokio::select! {
                biased;
                () = &mut copy => ending.code().await,
                code = ending.code() => {
                    let _ = tokio::time::timeout(DRAIN_LIMIT, copy).await;
                    code
                }
            }
        })
        .await;
        match code {
            Ok(code) => Ok(ExecOutput { code: code?, output }),
            Err(_) => {
                ending.kill();
                let command = exec.command;
                Err(ExecError::TimedOut { command, limit })
            }
        }
    }

    fn start_on_pipes(
        &self,
        directory: &ContainerDir,
        job: ExecDir,
        with_stdin: bool,
    ) -> Result<Process, ExecError> {
        let pipes = || -> std::io::Result<_> {
            let (stdin, stdin_end) = match with_stdin {
                true => {
                    let (sender, receiver) = pipe::pipe()?;
                    (Some(sender), Stdio::from(receiver.into_blocking_fd()?))
                }
                false => (None, Stdio::null()),
            };
            let (stdout_end, stdout) = pipe::pipe()?;
            let (stderr_end, stderr) = pipe::pipe()?;
            let streams = Streams::Pipes {
                stdin,
                stdout,
                stderr,
            };
            let ends: [OwnedFd; 2] = [stdout_end.into_blocking_fd()?, stderr_end.into_blocking_fd()?];
            Ok((streams, stdin_end, ends))
        };
        let (streams, stdin, [stdout, stderr]) = pipes().on("create pipe for", job.path())?;
        let helper = self
            .helper(directory, &job)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .on("execute", &self.shim)?;
        let ending = await_end(helper, job);
        Ok(Process { streams, ending })
    }

    async fn start_on_terminal(&self, directory: &ContainerDir, job: ExecDir) -> Result<Process, ExecError> {
        let socket = ConsoleSocket::bind(&job.console())?;
        let helper = self
            .helper(directory, &job)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .on("execute", &self.shim)?;
        let path = job.console();
        let mut ending = await_end(helper, job);
        tokio::select! {
            terminal = socket.terminal() => {
                let streams = Streams::Terminal(terminal.on("receive a terminal at", &path)?);
                Ok(Process { streams, ending })
            }
            ended = ending.code() => Err(ended.err().unwrap_or(ExecError::Lost)),
        }
    }

    fn helper(&self, directory: &ContainerDir, job: &ExecDir) -> Command {
        let mut command = Command::new(&self.shim);
        command.arg("exec").arg(directory.path()).arg(job.path());
        command
    }
}

/// Waits for the helper, whoever waits for the command, and removes what was on disk of it.
fn await_end(mut helper: Child, job: ExecDir) -> Ending {
    let (sender, outcome) = oneshot::channel();
    let pid = helper.id().and_then(|pid| i32::try_from(pid).ok());
    let waited = job.clone();
    tokio::spawn(async move {
        if let Err(error) = helper.wait().await {
            tracing::warn!(%error, "end of an exec helper not seen");
        }
        let outcome = disk::read_json(&waited.outcome()).unwrap_or_else(|error| {
            tracing::warn!(%error, "outcome of a command not read");
            None
        });
        if let Err(error) = disk::remove_tree(waited.path()) {
            tracing::warn!(%error, "remains of a command not removed");
        }
        let _ = sender.send(outcome);
    });
    Ending {
        job,
        helper: pid.and_then(ProcessIdentity::of),
        outcome,
    }
}

/// The container's own process with other arguments.
fn process(config: &Value, exec: &Exec) -> Value {
    let mut process = config.get("process").cloned().unwrap_or_default();
    if let Some(fields) = process.as_object_mut() {
        fields.insert("args".to_owned(), json!(exec.command));
        fields.insert("terminal".to_owned(), json!(exec.terminal));
        if let (true, Some(Value::Array(env))) = (exec.terminal, fields.get_mut("env"))
            && !env
                .iter()
                .any(|entry| entry.as_str().is_some_and(|text| text.starts_with("TERM=")))
        {
            env.push(json!("TERM=xterm"));
        }
    }
    process
}

/// What people and programs look for when a program is missing.
fn in_known_words(why: String) -> String {
    let (begin, end) = ("executable '", "' not found in $PATH");
    let name = why.split_once(begin).and_then(|(_, rest)| rest.split_once(end));
    match name {
        Some((name, _)) => format!("exec: {name:?}: executable file not found in $PATH"),
        None => why,
    }
}

/// Reads both streams to their ends and keeps the beginning.
async fn gather(mut stdout: pipe::Receiver, mut stderr: pipe::Receiver, kept: &mut Vec<u8>) {
    let (mut from_stdout, mut from_stderr) = (vec![0; 4096], vec![0; 4096]);
    let (mut stdout_open, mut stderr_open) = (true, true);
    while stdout_open || stderr_open {
        let piece = tokio::select! {
            read = stdout.read(&mut from_stdout), if stdout_open => {
                let length = read.unwrap_or(0);
                stdout_open = length > 0;
                from_stdout.get(..length)
            }
            read = stderr.read(&mut from_stderr), if stderr_open => {
                let length = read.unwrap_or(0);
                stderr_open = length > 0;
                from_stderr.get(..length)
            }
        };
        let room = KEPT_OUTPUT - kept.len();
        kept.extend(piece.unwrap_or_default().iter().take(room));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_the_containers_process_with_other_arguments() {
        let container = json!({ "process": {
            "terminal": false, "user": { "uid": 7, "gid": 8, "additionalGids": [9] }, "args": ["/server"],
            "env": ["A=b"], "cwd": "/tmp", "capabilities": { "bounding": ["CAP_KILL"] },
        } });
        let exec = |terminal| Exec {
            command: vec!["sh".to_owned(), "-c".to_owned(), "exit 3".to_owned()],
            terminal,
            stdin: false,
        };
        let expected = |terminal: bool, env: Value| {
            json!({
                "terminal": terminal, "user": { "uid": 7, "gid": 8, "additionalGids": [9] },
                "args": ["sh", "-c", "exit 3"],
                "env": env, "cwd": "/tmp", "capabilities": { "bounding": ["CAP_KILL"] },
            })
        };
        assert_eq!(process(&container, &exec(false)), expected(false, json!(["A=b"])));
        assert_eq!(
            process(&container, &exec(true)),
            expected(true, json!(["A=b", "TERM=xterm"]))
        );
    }
}
