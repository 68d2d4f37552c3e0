//! `causeway-shim exec DIRECTORY JOB`: runs one more process in a container that runs already, and waits for it.
//!
//! Its standard streams are those of the process; with a terminal the runtime sends the terminal's master to the
//! kubelet's socket. Like the shim it is a process of its own because libcontainer forks, and because the process has
//! to be born in the container's cgroup v2. It leaves an [`ExecOutcome`] and ends with the process.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use super::state::{ContainerDir, ContainerRequest, ExecDir, ExecOutcome};
use super::{ShimError, error_text, nix_pid, null, own_cgroup, runtime_failure, trace_to, wait_for};
use crate::disk::{self, OnPath};
use crate::process::ProcessIdentity;

/// The command `exec`.
pub fn run(directory: &ContainerDir, job: &ExecDir) -> ExitCode {
    let _ = setsid();
    trace_to(&job.log());
    let outcome = match start(directory, job).and_then(wait_for) {
        Ok((code, _)) => ExecOutcome::Exited(code),
        Err(error) => ExecOutcome::NotStarted(error_text(&error)),
    };
    match disk::write_json_for_now(&job.outcome(), &outcome) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %error_text(&error), "outcome of a command not told");
            ExitCode::FAILURE
        }
    }
}

fn start(directory: &ContainerDir, job: &ExecDir) -> Result<Pid, ShimError> {
    let request: ContainerRequest = disk::read_json(&directory.request())?
        .ok_or_else(|| ShimError::NoRequest(directory.path().to_owned()))?;
    let home = own_cgroup(&request.cgroup)?;
    // Not made when it is not there: then the container is gone.
    let membership = request.cgroup.join("cgroup.procs");
    fs::write(&membership, "0").on("enter cgroup", &membership)?;
    let console = Some(job.console()).filter(|socket| socket.exists());
    let builder = ContainerBuilder::new(request.id.clone(), SyscallType::default())
        .with_root_path(directory.runtime())
        .map_err(runtime_failure("prepare to enter"))?
        .with_console_socket(console.clone());
    let built = builder
        .as_tenant()
        .with_process(Some(job.process()))
        .with_detach(true)
        .build();
    if let Some(console) = console {
        forget_console(&directory.runtime().join(&request.id), &console);
    }
    let process = nix_pid(built.map_err(runtime_failure("enter"))?);
    home.enter()?;
    if let Some(identity) = ProcessIdentity::of(process) {
        disk::write_json_for_now(&job.started(), &identity)?;
    }
    let_go_of_streams()?;
    Ok(Pid::from_raw(process))
}

/// The runtime reaches the console's socket by a link that it does not remove.
fn forget_console(runtime: &Path, console: &Path) {
    for entry in fs::read_dir(runtime).into_iter().flatten().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|target| target == console) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The streams are the process's alone: they shall end when it closes them.
fn let_go_of_streams() -> Result<(), ShimError> {
    let null = null()?;
    dup2_stdin(&null)
        .and_then(|()| dup2_stdout(&null))
        .and_then(|()| dup2_stderr(&null))
        .map_err(|source| ShimError::System {
            operation: "let go of the standard streams",
            source,
        })
}
