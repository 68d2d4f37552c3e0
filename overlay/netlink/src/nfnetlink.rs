//! A netlink socket and the encoding that nftables, conntrack, socket diagnosis and IPsec share.
//!
//! ```text
//! nlmsghdr   [len:4][type:2 = subsystem<<8 | message][flags:2][seq:4][port:4]      host order
//! nfgenmsg   [family:1][version:1 = 0][resource:2 be]          in its place for sockets: inet_diag_req_v2
//! attribute  [len:2][type:2] payload, padded to 4                                  numbers inside: big-endian
//! ```
//! Sources: `include/uapi/linux/netfilter/nfnetlink.h`, `net/netfilter/nfnetlink.c`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, NetlinkAddr, bind, getsockname, recv, send, setsockopt, sockopt};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, netlink, socket_with};

const NLMSG_HEADER: usize = 16;
const NFGEN_HEADER: usize = 4;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// `nlmsg_flags`.
pub(crate) mod flag {
    pub const REQUEST: u16 = 0x1;
    pub const ACK: u16 = 0x4;
    pub const DUMP_INTERRUPTED: u16 = 0x10;
    pub const DUMP: u16 = 0x300;
    pub const CREATE: u16 = 0x400;
    pub const APPEND: u16 = 0x800;
}

/// Batches are one datagram; the kernel refuses one that is larger than the send buffer. A cold start of the proxy
/// sends a few MiB at a time.
const SEND_BUFFER_BYTES: usize = 16 << 20;
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// A dump fills at most this much at once (`netlink_dump` allocates what the reader offers, up to 32 KiB).
const DATAGRAM_BYTES: usize = 64 << 10;

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a netfilter socket; `groups` is a mask of multicast groups.
    pub(crate) fn open(groups: u32) -> io::Result<Self> {
        Self::of(netlink::NETFILTER, groups)
    }

    /// Opens a socket of that protocol.
    pub(crate) fn of(protocol: Protocol, groups: u32) -> io::Result<Self> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(protocol),
        )?;
        // Without CAP_NET_ADMIN in the initial namespace the buffers keep their default size; larger batches then
        // fail with EMSGSIZE, which names the problem.
        let _ = setsockopt(&fd, sockopt::SndBufForce, &SEND_BUFFER_BYTES);
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES);
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        let port = getsockname::<NetlinkAddr>(fd.as_raw_fd())?.pid();
        Ok(Self {
            fd,
            port,
            sequence: 0,
            buffer: vec![0; DATAGRAM_BYTES],
        })
    }

    /// The address by which the kernel names this socket in events.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Takes `count` sequence numbers and returns the first.
    pub(crate) fn take_sequence(&mut self, count: u32) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(count);
        first
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = send(self.fd.as_raw_fd(), bytes, MsgFlags::empty())?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// One datagram, or `None` when none is waiting.
    pub(crate) fn receive_ready(&mut self) -> io::Result<Option<&[u8]>> {
        match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(len) => Ok(self.buffer.get(..len)),
            Err(Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sends a dump request and hands each answer's payload (behind `nlmsghdr`) to `each`. The kernel flags a
    /// dump during which the tables changed; it is then `Interrupted` and what was seen is worthless.
    pub(crate) fn dump(
        &mut self,
        request: &Message,
        mut each: impl FnMut(&Header, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let sequence = self.take_sequence(1);
        self.send(&request.with_sequence(sequence))?;
        let mut interrupted = false;
        loop {
            let len = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            for (header, payload) in messages(self.buffer.get(..len).unwrap_or_default()) {
                if header.sequence != sequence {
                    continue;
                }
                interrupted |= header.flags & flag::DUMP_INTERRUPTED != 0;
                match header.kind {
                    NLMSG_ERROR => return Err(error_of(payload).unwrap_or_else(malformed)),
                    NLMSG_DONE if interrupted => return Err(io::ErrorKind::Interrupted.into()),
                    NLMSG_DONE => return error_of(payload).map_or(Ok(()), Err),
                    _ => each(&header, payload)?,
                }
            }
        }
    }

    /// Sends one request and waits for its acknowledgement.
    pub(crate) fn request(&mut self, request: &Message) -> io::Result<()> {
        let sequence = self.take_sequence(1);
        self.send(&request.with_sequence(sequence))?;
        loop {
            let len = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            for (header, payload) in messages(self.buffer.get(..len).unwrap_or_default()) {
                if header.sequence == sequence && header.kind == NLMSG_ERROR {
                    return error_of(payload).map_or(Ok(()), Err);
                }
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What the kernel answered to message `sequence`: `None` is an acknowledgement.
pub(crate) fn acknowledgements(datagram: &[u8]) -> impl Iterator<Item = (u32, Option<io::Error>)> {
    messages(datagram)
        .filter(|(header, _)| header.kind == NLMSG_ERROR)
        .map(|(header, payload)| (header.sequence, error_of(payload)))
}

/// The error code that an `NLMSG_ERROR` or the end of a dump carries; zero is success.
fn error_of(payload: &[u8]) -> Option<io::Error> {
    let code = payload
        .first_chunk()
        .map_or(-libc::EBADMSG, |code| i32::from_ne_bytes(*code));
    (code != 0).then(|| io::Error::from_raw_os_error(-code))
}

/// An answer that is not what the kernel's headers promise.
pub(crate) fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed netlink message")
}

/// `nlmsghdr`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub port: u32,
}

/// Splits a datagram into messages.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let header: &[u8; NLMSG_HEADER] = rest.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, p0, p1, p2, p3] = *header;
        let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let payload = rest.get(NLMSG_HEADER..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        let header = Header {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            port: u32::from_ne_bytes([p0, p1, p2, p3]),
        };
        Some((header, payload))
    })
}

/// The attributes of a netfilter message: its payload behind `nfgenmsg`.
pub(crate) fn body(payload: &[u8]) -> &[u8] {
    payload.get(NFGEN_HEADER..).unwrap_or_default()
}

/// Splits a payload into attributes: type without flags, and value.
pub(crate) fn attributes(payload: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = payload;
    std::iter::from_fn(move || {
        let [l0, l1, t0, t1] = *rest.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([t0, t1]) & NLA_TYPE_MASK, value))
    })
}

/// The first attribute of that type.
pub(crate) fn attribute(payload: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(payload)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

/// A NUL-terminated string attribute.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

/// A big-endian number attribute.
pub(crate) fn be32(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// One message under construction.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// Starts a netfilter message of `kind` (subsystem and number) with its `nfgenmsg`.
    pub(crate) fn new(kind: u16, flags: u16, family: u8, resource: u16) -> Self {
        let [high, low] = resource.to_be_bytes();
        Self::with_header(kind, flags, &[family, 0, high, low])
    }

    /// Starts a message with the fixed part that its protocol wants behind `nlmsghdr`.
    pub(crate) fn with_header(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | flag::REQUEST).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(header);
        Self { bytes }
    }

    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        // invariant: callers split what could exceed 64 KiB (element lists); names and keys are far smaller.
        let len = u16::try_from(value.len() + 4).expect("invariant: attributes are split before 64 KiB");
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
        self
    }

    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend(0_u16.to_ne_bytes());
        self.bytes.extend((kind | NLA_F_NESTED).to_ne_bytes());
        fill(self);
        let len =
            u16::try_from(self.bytes.len() - start).expect("invariant: attributes are split before 64 KiB");
        if let Some(header) = self.bytes.get_mut(start..start + 2) {
            header.copy_from_slice(&len.to_ne_bytes());
        }
        self
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Turns on more `nlmsg_flags`.
    pub(crate) fn add_flags(&mut self, flags: u16) {
        if let Some(field) = self.bytes.get_mut(6..8) {
            for (byte, more) in field.iter_mut().zip(flags.to_ne_bytes()) {
                *byte |= more;
            }
        }
    }

    /// Subsystem and number.
    pub(crate) fn kind(&self) -> u16 {
        self.bytes
            .get(4..)
            .and_then(|bytes| bytes.first_chunk())
            .map_or(0, |kind| u16::from_ne_bytes(*kind))
    }

    /// `nfgen_family`.
    pub(crate) fn family(&self) -> u8 {
        self.bytes.get(NLMSG_HEADER).copied().unwrap_or_default()
    }

    /// The attributes alone.
    pub(crate) fn body(&self) -> &[u8] {
        self.bytes.get(NLMSG_HEADER + NFGEN_HEADER..).unwrap_or_default()
    }

    /// The finished message.
    pub(crate) fn with_sequence(&self, sequence: u32) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        self.patch(&mut bytes, sequence);
        bytes
    }

    /// Appends the finished message to a datagram.
    pub(crate) fn append_to(&self, datagram: &mut Vec<u8>, sequence: u32) {
        let start = datagram.len();
        datagram.extend(&self.bytes);
        if let Some(bytes) = datagram.get_mut(start..) {
            self.patch(bytes, sequence);
        }
    }

    fn patch(&self, bytes: &mut [u8], sequence: u32) {
        // invariant: a datagram is far below 4 GiB.
        let len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        for (range, value) in [(0..4, len), (8..12, sequence)] {
            if let Some(field) = bytes.get_mut(range) {
                field.copy_from_slice(&value.to_ne_bytes());
            }
        }
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reads_back_as_it_was_written() {
        let mut message = Message::new(0x0a03, flag::CREATE, 2, 7);
        message.text(1, "causeway").nested(4, |hook| {
            hook.be32(1, 5).be32(2, (-100_i32).cast_unsigned());
        });
        let bytes = message.with_sequence(9);
        let (header, payload) = messages(&bytes).next().expect("one message");
        assert_eq!((header.kind, header.sequence), (0x0a03, 9));
        assert_eq!(header.flags, flag::CREATE | flag::REQUEST);
        let body = &payload[NFGEN_HEADER..];
        assert_eq!(attribute(body, 1).map(text), Some("causeway".to_owned()));
        let hook = attribute(body, 4).expect("nested");
        assert_eq!(attribute(hook, 2).and_then(be32), Some(0xffff_ff9c));
    }

    #[test]
    fn cut_messages_end_the_iteration_instead_of_reading_past_the_end() {
        let bytes = Message::new(1, 0, 0, 0).with_sequence(1);
        for len in 0..bytes.len() {
            assert_eq!(messages(&bytes[..len]).count(), 0, "{len} bytes");
        }
        assert_eq!(attributes(&[8, 0, 1, 0, 1]).count(), 0);
    }
}
