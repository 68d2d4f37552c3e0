//! Who changed a table behind our back.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Error, Operation, SUBSYSTEM, Table};
use crate::nfnetlink::{self, attribute, messages, text};

/// `NFNLGRP_NFTABLES`, as a bit of the socket's group mask.
const GROUP_NFTABLES: u32 = 1 << (7 - 1);
const NFGEN_HEADER: usize = 4;
/// In every message about something in a table, attribute 1 is the table's name.
const TABLE_NAME: u16 = 1;

/// Listens to changes of nftables in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Monitor {
    socket: nfnetlink::Socket,
    table: Table,
    own_port: u32,
}

impl Monitor {
    /// Watches one table; changes made through the connection `own_port` ([`Nft::port`](super::Nft::port)) are not
    /// news.
    pub fn open(table: &Table, own_port: u32) -> Result<Self, Error> {
        let socket = nfnetlink::Socket::open(GROUP_NFTABLES).map_err(Error::Open)?;
        Ok(Self {
            socket,
            table: table.clone(),
            own_port,
        })
    }

    /// Waits until somebody else changes the table; false when `timeout` passes first. A burst of changes is one.
    /// When events were lost the answer is true: something may have changed.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, Error> {
        let deadline = std::time::Instant::now() + timeout;
        loop {
            if self.take_events()? {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            // invariant: saturated to the longest wait that poll knows.
            let wait = PollTimeout::try_from(left.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, wait) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::Receive(errno.into())),
            }
        }
    }

    /// Takes what is waiting; whether any of it is somebody else's change of the table.
    fn take_events(&mut self) -> Result<bool, Error> {
        let mut changed = false;
        loop {
            match self.socket.receive_ready() {
                Ok(Some(datagram)) => {
                    changed |= messages(datagram).any(|(header, payload)| {
                        header.port != self.own_port && concerns(&self.table, header.kind, payload)
                    });
                }
                Ok(None) => return Ok(changed),
                // The socket's buffer overflowed: events are lost.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Receive(error)),
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn concerns(table: &Table, kind: u16, payload: &[u8]) -> bool {
    let [family, ..] = payload else { return false };
    let body = payload.get(NFGEN_HEADER..).unwrap_or_default();
    kind >> 8 == SUBSYSTEM
        && kind & 0xff <= Operation::DeleteElement as u16
        && *family == table.family as u8
        && attribute(body, TABLE_NAME).map(text).as_ref() == Some(&table.name)
}
