//! Ctrl-C ends the looking, not the telling: what was seen until then is printed.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// SIGINT and SIGTERM, held back on this thread and on those that it starts, until this is dropped. Readable once one came.
#[derive(Debug)]
pub(super) struct Interrupt {
    held: SigSet,
    came: SignalFd,
}

impl Interrupt {
    /// Holds them back from now on.
    pub(super) fn hold() -> anyhow::Result<Self> {
        let held = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
        held.thread_block().context("hold back signals")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let came = SignalFd::with_flags(&held, flags).context("read signals")?;
        Ok(Self { held, came })
    }

    /// Whether one came since it was asked last.
    pub(super) fn came(&self) -> bool {
        matches!(self.came.read_signal(), Ok(Some(_)))
    }
}

impl AsFd for Interrupt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.came.as_fd()
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        let _ = self.held.thread_unblock(); // the kernel knows these signals
    }
}
