//! Processes by identity: a process id alone may have been given to another process since it was written down.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

pub use rustix::process::Signal;

use crate::readiness::readable;

/// The longest single wait.
const LONG: Duration = Duration::from_secs(3600);

/// A process id with the process's start time (clock ticks since boot, `proc_pid_stat(5)` field 22).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessIdentity {
    /// Process id in this PID namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
}

impl ProcessIdentity {
    /// The identity of a running process.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self {
            pid,
            start_time: start_time(&stat)?,
        })
    }

    /// The identity of this process.
    pub fn own() -> Option<Self> {
        Self::of(i32::try_from(std::process::id()).ok()?)
    }

    /// A descriptor of the process; `None` when it is gone. The start time is compared after opening, so that what
    /// was opened is what was meant.
    pub fn open(self) -> Option<OwnedFd> {
        let descriptor = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        (Self::of(self.pid) == Some(self)).then_some(descriptor)
    }

    /// Whether it runs (a zombie does not).
    pub fn is_alive(self) -> bool {
        self.open()
            .is_some_and(|descriptor| !has_ended(&descriptor, Duration::ZERO))
    }

    /// Sends a signal; false when the process is gone.
    pub fn signal(self, signal: Signal) -> bool {
        self.open()
            .is_some_and(|descriptor| pidfd_send_signal(descriptor, signal).is_ok())
    }

    /// Waits for the end of the process.
    pub async fn ended(self) {
        let Some(descriptor) = self.open() else { return };
        // A pidfd becomes readable when its process ends (pidfd_open(2)).
        if let Ok(descriptor) = readable(descriptor) {
            let _ = descriptor.readable().await;
        }
    }

    /// Waits for the end of the process, and blocks meanwhile.
    pub fn wait(self) {
        let Some(descriptor) = self.open() else { return };
        while !has_ended(&descriptor, LONG) {}
    }

    /// Waits for the end of the process, and kills it when that takes too long.
    pub fn end_or_kill(self, deadline: Duration) -> bool {
        let Some(descriptor) = self.open() else {
            return true;
        };
        has_ended(&descriptor, deadline) || self.kill_and_wait(deadline)
    }

    /// Kills the process and waits for its end; false when it does not end in time.
    pub fn kill_and_wait(self, deadline: Duration) -> bool {
        let Some(descriptor) = self.open() else {
            return true;
        };
        let _ = pidfd_send_signal(&descriptor, Signal::KILL);
        has_ended(&descriptor, deadline)
    }
}

fn has_ended(pidfd: &OwnedFd, within: Duration) -> bool {
    let give_up = Instant::now() + within;
    loop {
        let left = give_up.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return false,
            Ok(ready) if ready > 0 => return true,
            _ => {}
        }
    }
}

/// Field 22 of `/proc/PID/stat`; the command's name in field 2 may hold blanks and parentheses.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        for name in ["(sh)", "(a b)", "(a) b)"] {
            assert_eq!(start_time(&format!("17 {name} {tail}")), Some(4711), "{name}");
        }
    }

    #[test]
    fn a_reused_process_id_is_not_alive() {
        let own = ProcessIdentity::own().expect("this process runs");
        assert!(own.is_alive());
        assert!(
            !ProcessIdentity {
                start_time: own.start_time + 1,
                ..own
            }
            .is_alive()
        );
    }
}
