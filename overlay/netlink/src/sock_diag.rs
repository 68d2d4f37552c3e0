//! Socket diagnosis: finding the connected UDP sockets of a network namespace, and ending single ones.
//!
//! A UDP client that is connected to an address that nothing answers at any more is told nothing by the network. When
//! the socket is destroyed, a waiting or the next `recv` fails with `ECONNABORTED` and every `send` with
//! `EDESTADDRREQ` (it is no longer connected), so that the application connects anew; it may use the same socket.
//!
//! ```text
//! inet_diag_req_v2    [family:1][protocol:1][ext:1][pad:1][states:4] inet_diag_sockid                    56 bytes
//! inet_diag_msg       [family:1][state:1][timer:1][retrans:1] inet_diag_sockid [other:20] attributes     72 bytes
//! inet_diag_sockid    [sport:2 be][dport:2 be][src:16][dst:16][if:4][cookie:8]                           48 bytes
//! ```
//! An IPv4 address takes the first four bytes of its field. Sources: `include/uapi/linux/inet_diag.h`,
//! `net/ipv4/udp_diag.c` (`CONFIG_INET_UDP_DIAG`; destroying needs `CONFIG_INET_DIAG_DESTROY`).

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::net::netlink;

use crate::nfnetlink::{self, Message, flag, malformed};
use crate::nft::Family;

/// A connected UDP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectedUdp {
    /// The local address and port.
    pub source: SocketAddr,
    /// Whom it is connected to. That of an IPv6 socket which speaks IPv4 (`::ffff:a.b.c.d`) is an IPv4 address.
    pub destination: SocketAddr,
    /// Family of the socket, which is IPv6 for the one that speaks IPv4.
    family: Family,
    /// Addresses, device and cookie as the kernel told them: they name exactly this socket.
    id: [u8; SOCKET_ID],
}

/// Why socket diagnosis did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket.
    #[error("open a socket diagnosis socket")]
    Open(#[source] io::Error),
    /// The list could not be read; `ENOENT`: the kernel cannot list UDP sockets.
    #[error("list connected UDP sockets")]
    List(#[source] io::Error),
    /// A socket could not be destroyed; `EOPNOTSUPP`: the kernel cannot.
    #[error("destroy the UDP socket from {} to {}", .socket.source, .socket.destination)]
    Destroy {
        /// The socket.
        socket: Box<ConnectedUdp>,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether the kernel cannot do it at all, or does not let this process.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        let errno = match self {
            Self::Open(source) | Self::List(source) | Self::Destroy { source, .. } => source.raw_os_error(),
        };
        matches!(
            errno,
            Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EPERM | libc::EACCES)
        )
    }
}

/// A connection to socket diagnosis in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct SockDiag {
    socket: nfnetlink::Socket,
}

impl SockDiag {
    /// Opens a connection. Destroying needs `CAP_NET_ADMIN` in the namespace.
    pub fn open() -> Result<Self, Error> {
        let socket = nfnetlink::Socket::of(netlink::SOCK_DIAG, 0).map_err(Error::Open)?;
        Ok(Self { socket })
    }

    /// All connected UDP sockets of the namespace, IPv4 and IPv6, for which `wanted` is true.
    pub fn connected_udp(
        &mut self,
        wanted: impl Fn(&ConnectedUdp) -> bool,
    ) -> Result<Vec<ConnectedUdp>, Error> {
        let mut found = Vec::new();
        for family in [Family::Ip, Family::Ip6] {
            let request = message(SOCK_DIAG_BY_FAMILY, flag::DUMP, family, &[0; SOCKET_ID]);
            let listed = self.socket.dump(&request, |_, payload| {
                let socket = ConnectedUdp::decode(family, payload).ok_or_else(malformed)?;
                found.extend(Some(socket).filter(&wanted));
                Ok(())
            });
            listed.map_err(Error::List)?;
        }
        Ok(found)
    }

    /// Ends a socket: disconnects it and tells the application. One that is gone already is fine.
    ///
    /// The kernel looks the socket up by its addresses: of several sockets with the same four (`SO_REUSEPORT`) it
    /// finds one, and leaves the others alone (`__udp_diag_destroy` compares the cookie of that one).
    pub fn destroy(&mut self, socket: &ConnectedUdp) -> Result<(), Error> {
        let request = message(SOCK_DESTROY, flag::ACK, socket.family, &socket.id);
        match self.socket.request(&request) {
            Err(source) if source.raw_os_error() != Some(libc::ENOENT) => Err(Error::Destroy {
                socket: Box::new(socket.clone()),
                source,
            }),
            _ => Ok(()),
        }
    }
}

impl ConnectedUdp {
    /// The socket's name that is never given to another, as `bpf_get_socket_cookie` tells it.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        let cookie = self.id.last_chunk().copied().unwrap_or_default();
        u64::from_ne_bytes(cookie)
    }

    fn decode(family: Family, message: &[u8]) -> Option<Self> {
        let id: &[u8; SOCKET_ID] = message.get(4..)?.first_chunk()?;
        let port = |at: usize| {
            id.get(at..)?
                .first_chunk()
                .map(|bytes| u16::from_be_bytes(*bytes))
        };
        let address = |at: usize| {
            let field: &[u8; 16] = id.get(at..)?.first_chunk()?;
            Some(match family {
                Family::Ip => IpAddr::from(*field.first_chunk::<4>()?),
                Family::Ip6 => IpAddr::from(*field).to_canonical(),
            })
        };
        Some(Self {
            source: SocketAddr::new(address(4)?, port(0)?),
            destination: SocketAddr::new(address(20)?, port(2)?),
            family,
            id: *id,
        })
    }
}

fn message(kind: u16, flags: u16, family: Family, id: &[u8; SOCKET_ID]) -> Message {
    let mut header = vec![family as u8, IPPROTO_UDP, 0, 0];
    header.extend(CONNECTED.to_ne_bytes());
    header.extend(id);
    Message::with_header(kind, flags, &header)
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const IPPROTO_UDP: u8 = 17;
/// A mask of socket states: `TCP_ESTABLISHED` is 1, and a connected UDP socket's state, too.
const CONNECTED: u32 = 1 << 1;
const SOCKET_ID: usize = 48;
