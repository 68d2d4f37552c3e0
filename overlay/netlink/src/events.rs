//! What changes in a namespace, told by the kernel as it happens (rtnetlink multicast groups).

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::MsgFlags;

use crate::address::{self, Address};
use crate::error::{Cause, Error, Operation, Result};
use crate::link::{self, Link};
use crate::neighbour::{self, Entry, Forwarding, Neighbour};
use crate::netns::Namespace;
use crate::route::{self, Route};
use crate::rule::{self, Rule};
use crate::socket::{datagram, receive_datagram};

/// What to be told of (`enum rtnetlink_groups`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Devices.
    Links,
    /// Neighbours and forwarding entries.
    Neighbours,
    /// IPv4 addresses.
    AddressesV4,
    /// IPv6 addresses.
    AddressesV6,
    /// IPv4 routes.
    RoutesV4,
    /// IPv6 routes.
    RoutesV6,
    /// IPv4 rules of policy routing.
    RulesV4,
    /// IPv6 rules of policy routing.
    RulesV6,
}

impl Group {
    const fn number(self) -> u32 {
        match self {
            Self::Links => 1,
            Self::Neighbours => 3,
            Self::AddressesV4 => 5,
            Self::RoutesV4 => 7,
            Self::AddressesV6 => 9,
            Self::RulesV4 => 8,
            Self::RoutesV6 => 11,
            Self::RulesV6 => 19,
        }
    }
}

/// A change in the namespace: what is there now, or what is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variant is the event")]
pub enum Event {
    Link(Link),
    LinkGone(Link),
    Address(Address),
    AddressGone(Address),
    Route(Route),
    RouteGone(Route),
    Rule(Rule),
    RuleGone(Rule),
    Neighbour(Neighbour),
    NeighbourGone(Neighbour),
    Forwarding(Forwarding),
    ForwardingGone(Forwarding),
    /// Events were lost: whoever keeps a copy must read everything again.
    Overrun,
}

/// A subscription.
pub struct Events {
    socket: Socket,
    buffer: Vec<u8>,
    waiting: VecDeque<Event>,
}

impl Events {
    /// Subscribes in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses the socket or a group.
    pub fn open(groups: &[Group]) -> Result<Self> {
        let subscribe = || -> std::io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            for group in groups {
                socket.add_membership(group.number())?;
            }
            Ok(socket)
        };
        let socket = subscribe().map_err(Error::of(Operation::OpenSocket, "NETLINK_ROUTE events"))?;
        Ok(Self {
            socket,
            buffer: vec![0; 64 * 1024],
            waiting: VecDeque::new(),
        })
    }

    /// Subscribes inside another namespace.
    ///
    /// # Errors
    /// As [`Events::open`], or when the namespace cannot be entered.
    pub fn open_in(namespace: &Namespace, groups: &[Group]) -> Result<Self> {
        namespace.run(|| Self::open(groups))?
    }

    /// The next event; `None` when none came in time.
    ///
    /// # Errors
    /// When the socket fails. Lost events are no error but [`Event::Overrun`].
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Event>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Ok(Some(event));
            }
            if !self.readable(deadline.saturating_duration_since(Instant::now()))? {
                return Ok(None);
            }
            self.read().map_err(Error::of(Operation::ReadEvents, ""))?;
        }
    }

    fn readable(&self, timeout: Duration) -> Result<bool> {
        let milliseconds = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let mut descriptors = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut descriptors, milliseconds) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(true), // read() finds out whether there is anything
            Err(errno) => Err(Error::of(Operation::ReadEvents, "")(errno)),
        }
    }

    /// Reads one datagram; it may hold no event at all (a cached route, an address of a family we do not know).
    fn read(&mut self) -> Result<(), Cause> {
        let length = match receive_datagram(&self.socket, &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => length,
            Err(Cause::Refused {
                errno: Errno::EAGAIN, ..
            }) => return Ok(()),
            Err(Cause::Refused {
                errno: Errno::ENOBUFS,
                ..
            }) => {
                self.waiting.push_back(Event::Overrun);
                return Ok(());
            }
            Err(cause) => return Err(cause),
        };
        for message in datagram(self.buffer.get(..length).unwrap_or_default()) {
            if let NetlinkPayload::InnerMessage(inner) = message?.payload {
                self.waiting.extend(decode(inner));
            }
        }
        Ok(())
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::os::fd::AsRawFd for Events {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

fn decode(message: Message) -> Option<Event> {
    Some(match message {
        Message::NewLink(message) => Event::Link(link::decode(message)),
        Message::DelLink(message) => Event::LinkGone(link::decode(message)),
        Message::NewAddress(message) => Event::Address(address::decode(&message)?),
        Message::DelAddress(message) => Event::AddressGone(address::decode(&message)?),
        Message::NewRoute(message) => Event::Route(route::decode(message)?),
        Message::DelRoute(message) => Event::RouteGone(route::decode(message)?),
        Message::NewRule(message) => Event::Rule(rule::decode(&message)),
        Message::DelRule(message) => Event::RuleGone(rule::decode(&message)),
        Message::NewNeighbour(message) => match neighbour::decode(message)? {
            Entry::Neighbour(neighbour) => Event::Neighbour(neighbour),
            Entry::Forwarding(entry) => Event::Forwarding(entry),
        },
        Message::DelNeighbour(message) => match neighbour::decode(message)? {
            Entry::Neighbour(neighbour) => Event::NeighbourGone(neighbour),
            Entry::Forwarding(entry) => Event::ForwardingGone(entry),
        },
        _ => return None,
    })
}
