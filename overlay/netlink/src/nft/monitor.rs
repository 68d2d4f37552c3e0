//! Who changed our tables behind our back.
//!
//! Elements that packets add, refresh or delete, and elements that expire, are no events: the kernel tells only of
//! transactions (`nf_tables_commit` is what calls `nf_tables_setelem_notify`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Error, Operation, SUBSYSTEM, Table};
use crate::nfnetlink::{self, attribute, messages, text};

/// `NFNLGRP_NFTABLES`, as a bit of the socket's group mask.
const GROUP_NFTABLES: u32 = 1 << (7 - 1);
/// In every message about something in a table, attribute 1 is the table's name.
const TABLE_NAME: u16 = 1;

/// Listens to changes of nftables in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Monitor {
    socket: nfnetlink::Socket,
    watched: Watched,
    own_ports: Vec<u32>,
}

/// Whose changes are news.
#[derive(Debug)]
struct Watched {
    /// Everything in these.
    tables: Vec<Table>,
    /// Rules and chains in all others, but for tables whose name begins so.
    others_but: Option<&'static str>,
}

impl Watched {
    fn include(&self, kind: u16, payload: &[u8]) -> bool {
        let [family, ..] = payload else { return false };
        let operation = kind & 0xff;
        if kind >> 8 != SUBSYSTEM || operation > Operation::DeleteElement as u16 {
            return false;
        }
        let Some(name) = attribute(nfnetlink::body(payload), TABLE_NAME).map(text) else {
            return false;
        };
        let is_named = |table: &Table| *family == table.family as u8 && name == table.name;
        let is_rule = operation <= Operation::DeleteRule as u16;
        let of_others = |but: &str| is_rule && !name.starts_with(but);
        self.tables.iter().any(is_named) || self.others_but.is_some_and(of_others)
    }
}

impl Monitor {
    /// Watches tables; changes made through the connections `own_ports` ([`Nft::port`](super::Nft::port)) are not
    /// news.
    pub fn open(tables: &[Table], own_ports: &[u32]) -> Result<Self, Error> {
        let socket = nfnetlink::Socket::open(GROUP_NFTABLES).map_err(Error::Open)?;
        Ok(Self {
            socket,
            watched: Watched {
                tables: tables.to_vec(),
                others_but: None,
            },
            own_ports: own_ports.to_vec(),
        })
    }

    /// Watches, too, which tables, chains and rules come and go elsewhere, but for tables whose name begins so.
    #[must_use]
    pub fn and_rules_of_others(mut self, but: &'static str) -> Self {
        self.watched.others_but = Some(but);
        self
    }

    /// Waits until somebody else changes one of the tables; false when `timeout` passes first. A burst of changes is
    /// one. When events were lost the answer is true: something may have changed.
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

    /// Takes what is waiting; whether any of it is somebody else's change of a watched table.
    fn take_events(&mut self) -> Result<bool, Error> {
        let mut changed = false;
        let Self {
            socket,
            watched,
            own_ports,
        } = self;
        loop {
            match socket.receive_ready() {
                Ok(Some(datagram)) => {
                    changed |= messages(datagram).any(|(header, payload)| {
                        !own_ports.contains(&header.port) && watched.include(header.kind, payload)
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
