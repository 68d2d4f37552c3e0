//! `pause`: sleeps until SIGTERM or SIGINT, the smallest thing that a container can do. Where the containers of a pod
//! share their processes it is process 1 of all of them, and takes over what they leave behind.
//!
//! It is process 1 of its PID namespace, for which the kernel drops every signal without a handler
//! (`pid_namespaces(7)`): it has to wait for SIGTERM by name.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

fn main() -> nix::Result<()> {
    let awaited = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD]);
    awaited.thread_block()?;
    while awaited.wait()? == Signal::SIGCHLD {
        // One signal may stand for several ends.
        while is_reaped(waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG))) {}
    }
    Ok(())
}

fn is_reaped(waited: nix::Result<WaitStatus>) -> bool {
    waited.is_ok_and(|status| status != WaitStatus::StillAlive)
}
