//! Sockets: what is listened at, by whom.

pub mod drops;
pub mod keepalive;
pub mod slots;
pub mod tcp;
pub mod tls;
pub mod udp;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, listen, setsockopt,
    socket, sockopt,
};
use tokio::net::TcpListener;

use crate::chain::Client;
use crate::metrics::Shard;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;
/// How long the answers to queries that are under way may take at the end: as long as upstreams are waited for.
pub const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// How many ports of the kernel's choice are tried.
const PORT_ATTEMPTS: u32 = 16;
/// Asked for; the kernel gives what `net.core.rmem_max` allows.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Why a socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Somebody else listens there.
    #[error(
        "cannot listen at {address} ({transport}): another program does; stop it, or choose another address or port"
    )]
    InUse {
        /// The address.
        address: SocketAddr,
        /// `udp` or `tcp`.
        transport: &'static str,
    },
    /// The address is not one of this machine.
    #[error("cannot listen at {address} ({transport}): no interface has this address")]
    NotOurs {
        /// The address.
        address: SocketAddr,
        /// `udp` or `tcp`.
        transport: &'static str,
    },
    /// Ports below 1024 need a right.
    #[error(
        "cannot listen at {address} ({transport}): not permitted; CAP_NET_BIND_SERVICE is needed below port 1024"
    )]
    NotPermitted {
        /// The address.
        address: SocketAddr,
        /// `udp` or `tcp`.
        transport: &'static str,
    },
    /// Anything else.
    #[error("cannot listen at {address} ({transport})")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// `udp` or `tcp`.
        transport: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ServeError {
    pub(crate) fn new(address: SocketAddr, transport: &'static str, errno: Errno) -> Self {
        match errno {
            Errno::EADDRINUSE => Self::InUse { address, transport },
            Errno::EADDRNOTAVAIL => Self::NotOurs { address, transport },
            Errno::EACCES | Errno::EPERM => Self::NotPermitted { address, transport },
            errno => Self::Listen {
                address,
                transport,
                source: errno.into(),
            },
        }
    }
}

/// The addresses that a server block without `bind` listens at: everything, each family by a socket of its own, so
/// that addresses keep their family. IPv6 only where the kernel has it.
#[must_use]
pub fn everywhere() -> Vec<IpAddr> {
    let v6 = socket(
        AddressFamily::Inet6,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    );
    let mut addresses = vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
    addresses.extend(v6.is_ok().then_some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)));
    addresses
}

/// Whether the sockets of this process at `own` share the port of an address: they stand in its way on purpose.
#[must_use]
pub fn is_shared(address: SocketAddr, own: &[SocketAddr]) -> bool {
    own.iter().any(|own| {
        let same = own.ip() == address.ip() || own.ip().is_unspecified() || address.ip().is_unspecified();
        own.port() == address.port() && same && own.is_ipv4() == address.is_ipv4()
    })
}

/// Sees whether an address is free for UDP and TCP, and returns it with a port where it had none.
///
/// The sockets that serve share their ports ([`sockopt::ReusePort`]), so that a second program that does the same would
/// go unnoticed and take every other query. Therefore each address is first taken without sharing.
///
/// # Errors
/// When the address cannot be had.
pub fn probe(address: SocketAddr) -> Result<SocketAddr, ServeError> {
    let datagram = || -> Result<SocketAddr, Errno> {
        let socket = own_family_socket(address, SockType::Datagram)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        let own = getsockname::<SockaddrStorage>(socket.as_raw_fd())?;
        Ok(socket_addr_of(&own).unwrap_or(address))
    };
    // The kernel chooses a port that is free for UDP; by TCP somebody may have it.
    let mut attempts = if address.port() == 0 { PORT_ATTEMPTS } else { 1 };
    loop {
        let chosen = datagram().map_err(|errno| ServeError::new(address, "udp", errno))?;
        attempts -= 1;
        match probe_stream(chosen) {
            Err(ServeError::InUse { .. }) if attempts > 0 => {}
            probed => return probed,
        }
    }
}

/// The same for TCP alone.
///
/// # Errors
/// When the address cannot be had.
pub fn probe_stream(address: SocketAddr) -> Result<SocketAddr, ServeError> {
    let stream = || -> Result<SocketAddr, Errno> {
        let socket = own_family_socket(address, SockType::Stream)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        // Only listening meets another listener that set SO_REUSEADDR as well.
        listen(&socket, Backlog::new(1)?)?;
        let own = getsockname::<SockaddrStorage>(socket.as_raw_fd())?;
        Ok(socket_addr_of(&own).unwrap_or(address))
    };
    stream().map_err(|errno| ServeError::new(address, "tcp", errno))
}

/// One UDP socket per thread at the same address; the kernel spreads clients over them.
///
/// # Errors
/// When the address cannot be had.
pub fn udp_sockets(address: SocketAddr, count: usize) -> Result<Vec<OwnedFd>, ServeError> {
    let shared = || -> Result<OwnedFd, Errno> {
        let socket = own_family_socket(address, SockType::Datagram)?;
        setsockopt(&socket, sockopt::ReusePort, &true)?;
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        if address.ip().is_unspecified() {
            // Replies must leave from the address that was asked, or the client drops them.
            match address {
                SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
                SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
            }
        }
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        Ok(socket)
    };
    (0..count)
        .map(|_| shared().map_err(|errno| ServeError::new(address, "udp", errno)))
        .collect()
}

fn own_family_socket(address: SocketAddr, kind: SockType) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    Ok(socket)
}

/// A TCP socket that listens.
///
/// # Errors
/// When the address cannot be had.
pub fn tcp_listener(address: SocketAddr) -> Result<TcpListener, ServeError> {
    listener(address, own_family_socket)
}

/// A TCP socket that listens; at all addresses of IPv6 means at those of IPv4 as well.
///
/// # Errors
/// When the address cannot be had.
pub fn dual_listener(address: SocketAddr) -> Result<TcpListener, ServeError> {
    listener(address, |address, kind| {
        let socket = own_family_socket(address, kind)?;
        if address.is_ipv6() && address.ip().is_unspecified() {
            setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
        }
        Ok(socket)
    })
}

fn listener(
    address: SocketAddr,
    socket: impl FnOnce(SocketAddr, SockType) -> Result<OwnedFd, Errno>,
) -> Result<TcpListener, ServeError> {
    let listening = || -> Result<OwnedFd, Errno> {
        let socket = socket(address, SockType::Stream)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        // One address and all of them may share a port: those of two blocks, or of two configurations.
        setsockopt(&socket, sockopt::ReusePort, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        listen(&socket, Backlog::new(BACKLOG)?)?;
        Ok(socket)
    };
    let listener = listening().map_err(|errno| ServeError::new(address, "tcp", errno))?;
    let for_tokio = |listener: std::net::TcpListener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    for_tokio(listener.into()).map_err(|source| ServeError::Listen {
        address,
        transport: "tcp",
        source,
    })
}

/// Answers, and survives it: a query that finds a mistake in this program costs its own answer, or its own connection.
async fn survived<T>(shard: &Shard, client: Client, answer: impl Future<Output = T>) -> Option<T> {
    let answered = AssertUnwindSafe(answer).catch_unwind().await;
    answered.map_err(|_| note_panic(shard, client.address)).ok()
}

fn note_panic(shard: &Shard, client: SocketAddr) {
    shard.panics.fetch_add(1, Ordering::Relaxed);
    tracing::error!(%client, "a query made its thread panic; it gets no answer");
}

/// The address in a socket address.
#[must_use]
pub fn ip_of(address: SockaddrStorage) -> Option<IpAddr> {
    socket_addr_of(&address).map(|address| address.ip())
}

pub(crate) fn socket_addr_of(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::from((v4.ip(), v4.port())));
    }
    address.as_sockaddr_in6().map(|v6| {
        SocketAddr::V6(std::net::SocketAddrV6::new(
            v6.ip(),
            v6.port(),
            v6.flowinfo(),
            v6.scope_id(),
        ))
    })
}

/// This machine's addresses without loopback and link-local ones.
#[must_use]
pub fn local_addresses() -> Vec<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let addresses = interfaces.filter_map(|interface| ip_of(interface.address?));
    let mut addresses: Vec<IpAddr> = addresses
        .filter(|address| match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        })
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Registry, Transport};

    #[tokio::test]
    async fn a_panic_costs_one_answer_and_is_counted() {
        let shard = Registry::new(Vec::new()).shard();
        let client = Client {
            address: ([127, 0, 0, 1], 1).into(),
            transport: Transport::Udp,
        };
        assert_eq!(survived(&shard, client, async { 7 }).await, Some(7));
        let panicking = async { panic!("a mistake") };
        assert_eq!(survived(&shard, client, panicking).await, None::<()>);
        assert_eq!(shard.panics.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn an_address_shares_its_port_with_its_own_family_alone() {
        let share = |address: &str, own: &str| {
            let parse = |text: &str| text.parse().expect("address");
            is_shared(parse(address), &[parse(own)])
        };
        for (address, own, expected) in [
            ("0.0.0.0:53", "127.0.0.1:53", true),
            ("127.0.0.1:53", "0.0.0.0:53", true),
            ("127.0.0.1:53", "127.0.0.1:53", true),
            ("127.0.0.1:53", "127.0.0.2:53", false),
            ("127.0.0.1:53", "0.0.0.0:54", false),
            ("[::]:53", "127.0.0.1:53", false),
            ("[::]:53", "[::1]:53", true),
        ] {
            assert_eq!(share(address, own), expected, "{address} {own}");
        }
    }
}
