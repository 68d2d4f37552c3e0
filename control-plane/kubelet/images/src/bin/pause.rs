//! `pause`: sleeps until SIGTERM or SIGINT, the smallest thing that a container can do.
//!
//! It is process 1 of its PID namespace, for which the kernel drops every signal without a handler
//! (`pid_namespaces(7)`): it has to wait for SIGTERM by name.

use nix::sys::signal::{SigSet, Signal};

fn main() -> nix::Result<()> {
    let ends = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    ends.thread_block()?;
    ends.wait()?;
    Ok(())
}
