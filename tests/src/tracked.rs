//! Entries of connection tracking, made by ctnetlink: a table that is full, without the connections.
//!
//! ```text
//! nlmsghdr   [len:4][type:2][flags:2][seq:4][port:4]                                  host order
//! nfgenmsg   [family:1][version:1][resource:2]
//! attribute  [len:2][type:2] payload, padded to 4                                     numbers inside: big-endian
//! ```
//! Sources: `include/uapi/linux/netfilter/nfnetlink_conntrack.h`, `net/netfilter/nf_conntrack_netlink.c`.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink::Namespace;
use netlink::conntrack::Usage;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, NetlinkAddr, bind, recv, send, setsockopt, sockopt};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink as protocols, socket_with};

/// `NFNL_SUBSYS_CTNETLINK`, with `IPCTNL_MSG_CT_NEW` and `IPCTNL_MSG_CT_DELETE`.
const NEW: u16 = 1 << 8;
const DELETE: u16 = 1 << 8 | 2;
/// `NLM_F_REQUEST`, `NLM_F_ACK`, and `NLM_F_CREATE` with `NLM_F_EXCL`.
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x600;
const NLMSG_ERROR: u16 = 2;
const NESTED: u16 = 1 << 15;

/// What tells these entries from those of connections: `cwt`.
const MARK: u32 = 0x0063_7774;
/// `IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED`: none is given up for another one.
const ASSURED: u32 = 1 << 1 | 1 << 2 | 1 << 3;
/// How long they stay, in seconds, if nobody takes them away.
const STAY_SECONDS: u32 = 120;
/// Entries of one datagram.
const BATCH: u64 = 1024;
const SEND_BUFFER_BYTES: usize = 1 << 20;

/// Entries between addresses of nobody, in one network namespace.
#[derive(Debug)]
pub struct Entries {
    namespace: Namespace,
    socket: OwnedFd,
    made: u32,
}

impl Entries {
    /// None is there yet.
    ///
    /// # Errors
    /// When there is no such namespace, or the right is missing.
    pub fn in_namespace(namespace: &Namespace) -> io::Result<Self> {
        let socket = namespace.run(open).map_err(io::Error::other)??;
        Ok(Self {
            namespace: namespace.clone(),
            socket,
            made: 0,
        })
    }

    /// Adds entries until there is no room for another one.
    ///
    /// # Errors
    /// When the kernel refuses one for another reason, or has no bound.
    pub fn fill(&mut self) -> io::Result<()> {
        let usage = self.namespace.run(Usage::read).map_err(io::Error::other)?;
        let usage = usage.ok_or_else(|| io::Error::other("nothing is tracked, or as much as there is"))?;
        let mut room = usage.most.saturating_sub(usage.tracked);
        loop {
            // What looks full may have room for one more, and the other way round.
            let wanted = room.clamp(1, BATCH);
            let mut datagram = Vec::new();
            for _ in 0..wanted {
                self.made += 1;
                message(&mut datagram, NEW, CREATE, |body| entry(body, self.made));
            }
            match self.send(&datagram) {
                Ok(()) => room = room.saturating_sub(wanted),
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes away all such entries, whoever made them.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn clear(&self) -> io::Result<()> {
        let mut datagram = Vec::new();
        message(&mut datagram, DELETE, ACK, |body| {
            attribute(body, 8, &MARK.to_be_bytes());
            attribute(body, 21, &u32::MAX.to_be_bytes());
        });
        self.send(&datagram)
    }

    /// Sends messages, which the kernel has done when this returns; with the first error that it tells.
    fn send(&self, datagram: &[u8]) -> io::Result<()> {
        send(self.socket.as_raw_fd(), datagram, MsgFlags::empty())?;
        let mut first = Ok(());
        let mut buffer = vec![0; 64 << 10];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => first = first.and(answers(buffer.get(..length).unwrap_or_default())),
                Err(Errno::EAGAIN) => return first,
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(protocols::NETFILTER),
    )?;
    setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER_BYTES)?;
    setsockopt(&socket, sockopt::RcvBufForce, &SEND_BUFFER_BYTES)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

/// The first error among the kernel's answers.
fn answers(mut datagram: &[u8]) -> io::Result<()> {
    let number = |bytes: &[u8], at: usize| {
        let bytes = bytes.get(at..)?.first_chunk()?;
        Some(i32::from_ne_bytes(*bytes))
    };
    while let Some(length) = number(datagram, 0).and_then(|length| usize::try_from(length).ok()) {
        let is_error = datagram.get(4..6) == Some(&NLMSG_ERROR.to_ne_bytes());
        match number(datagram, 16) {
            Some(code) if is_error && code != 0 => return Err(io::Error::from_raw_os_error(-code)),
            _ => {}
        }
        datagram = datagram
            .get(length.max(16).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(())
}

fn entry(body: &mut Vec<u8>, number: u32) {
    let [_, high, low, last] = number.to_be_bytes();
    let client = (Ipv4Addr::new(10, 99, low, last), 1024 + u16::from(high));
    let server = (Ipv4Addr::new(198, 51, 100, 1), 80);
    tuple(body, 1, client, server);
    tuple(body, 2, server, client);
    attribute(body, 3, &ASSURED.to_be_bytes());
    attribute(body, 7, &STAY_SECONDS.to_be_bytes());
    attribute(body, 8, &MARK.to_be_bytes());
}

fn tuple(body: &mut Vec<u8>, kind: u16, source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) {
    nested(body, kind, |tuple| {
        nested(tuple, 1, |ip| {
            attribute(ip, 1, &source.0.octets());
            attribute(ip, 2, &destination.0.octets());
        });
        nested(tuple, 2, |protocol| {
            attribute(protocol, 1, &[6]);
            attribute(protocol, 2, &source.1.to_be_bytes());
            attribute(protocol, 3, &destination.1.to_be_bytes());
        });
    });
}

fn message(datagram: &mut Vec<u8>, kind: u16, flags: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut body = Vec::new();
    fill(&mut body);
    let length = u32::try_from(16 + 4 + body.len()).unwrap_or(u32::MAX);
    datagram.extend(length.to_ne_bytes());
    datagram.extend(kind.to_ne_bytes());
    datagram.extend((flags | REQUEST).to_ne_bytes());
    datagram.extend([0; 8]);
    datagram.extend([2, 0, 0, 0]);
    datagram.extend(body);
}

fn nested(body: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut within = Vec::new();
    fill(&mut within);
    attribute(body, kind | NESTED, &within);
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}
