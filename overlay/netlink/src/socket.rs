//! One rtnetlink socket: a request, and everything the kernel answers to it.

use std::os::fd::AsRawFd;

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use crate::error::Cause;

/// The kernel puts at most 32 KiB in a datagram of a dump (`netlink_dump`).
const RECEIVE_BYTES: usize = 64 * 1024;

/// How often a dump is repeated that changed while it was read.
const DUMP_TRIES: usize = 16;

/// An extended acknowledgement starts after the error code and the 16 bytes of the request's header
/// (`netlink_ack_tlv_len`, with `NETLINK_CAP_ACK` set).
const REQUEST_HEADER_BYTES: usize = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;

pub(crate) struct RouteSocket {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl RouteSocket {
    pub(crate) fn open() -> std::io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_netlink_get_strict_chk(true)?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; RECEIVE_BYTES],
        })
    }

    /// Sends a request that changes something; waits for the acknowledgement.
    pub(crate) fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Cause> {
        self.send(message, flags | NLM_F_REQUEST | NLM_F_ACK)?;
        self.receive().map(drop)
    }

    /// Asks for one object.
    pub(crate) fn get(&mut self, message: RouteNetlinkMessage) -> Result<Option<RouteNetlinkMessage>, Cause> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK)?;
        Ok(self.receive()?.messages.pop())
    }

    /// Lists a whole table, as the request filters it.
    pub(crate) fn dump(&mut self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Cause> {
        for _ in 0..DUMP_TRIES {
            self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            let answer = self.receive()?;
            if !answer.inconsistent {
                return Ok(answer.messages);
            }
        }
        Err(Errno::EINTR.into())
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Cause> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        Ok(())
    }

    /// Reads until the acknowledgement, the error or the end of the dump.
    fn receive(&mut self) -> Result<Answer, Cause> {
        let mut answer = Answer::default();
        loop {
            let length = receive_datagram(&self.socket, &mut self.buffer, MsgFlags::empty())?;
            for message in datagram(self.buffer.get(..length).unwrap_or_default()) {
                let message = message?;
                if message.header.sequence_number != self.sequence {
                    continue; // the rest of an earlier answer that was given up
                }
                answer.inconsistent |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => answer.messages.push(inner),
                    NetlinkPayload::Done(done) if done.code == 0 => return Ok(answer),
                    NetlinkPayload::Done(done) => return Err(Errno::from_raw(-done.code).into()),
                    NetlinkPayload::Error(error) => return acknowledged(&error).map(|()| answer),
                    NetlinkPayload::Overrun(_) => return Err(Errno::ENOBUFS.into()),
                    _ => {}
                }
            }
        }
    }
}

#[derive(Default)]
struct Answer {
    messages: Vec<RouteNetlinkMessage>,
    inconsistent: bool,
}

/// Reads one datagram into the buffer and returns its length; one that does not fit is an error.
pub(crate) fn receive_datagram(socket: &Socket, buffer: &mut [u8], flags: MsgFlags) -> Result<usize, Cause> {
    loop {
        match recv(socket.as_raw_fd(), buffer, flags | MsgFlags::MSG_TRUNC) {
            Ok(length) if length > buffer.len() => return Err(Errno::EMSGSIZE.into()),
            Ok(length) => return Ok(length),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The messages of a datagram. One that this program cannot decode (an attribute of a newer kernel on a foreign
/// device) is left out, so that it does not hide the others.
pub(crate) fn datagram(
    mut bytes: &[u8],
) -> impl Iterator<Item = Result<NetlinkMessage<RouteNetlinkMessage>, Cause>> {
    std::iter::from_fn(move || {
        loop {
            let length = message_length(bytes)?;
            let Some(one) = bytes.get(..length) else {
                bytes = &[];
                return Some(Err(Cause::Undecodable(
                    "message longer than its datagram".to_owned(),
                )));
            };
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
            match NetlinkMessage::deserialize(one) {
                Ok(message) => return Some(Ok(message)),
                Err(error) => tracing::debug!(%error, "kernel message left out, it cannot be decoded"),
            }
        }
    })
}

/// `nlmsg_len`, the first four bytes, in host order. `None` = no further message.
fn message_length(bytes: &[u8]) -> Option<usize> {
    let length: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    let length = usize::try_from(u32::from_ne_bytes(length)).ok()?;
    (length >= REQUEST_HEADER_BYTES).then_some(length)
}

fn acknowledged(error: &ErrorMessage) -> Result<(), Cause> {
    let Some(code) = error.code else { return Ok(()) };
    Err(Cause::Refused {
        errno: Errno::from_raw(-code.get()),
        hint: hint(&error.header),
    })
}

/// The text of an extended acknowledgement: attributes `[len:2][type:2][value]`, padded to four bytes.
fn hint(payload: &[u8]) -> String {
    let mut rest = payload.get(REQUEST_HEADER_BYTES..).unwrap_or_default();
    while let [len_a, len_b, kind_a, kind_b, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([len_a, len_b]));
        let Some(value) = rest.get(4..length) else { break };
        if u16::from_ne_bytes([kind_a, kind_b]) == NLMSGERR_ATTR_MSG {
            return String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    String::new()
}
