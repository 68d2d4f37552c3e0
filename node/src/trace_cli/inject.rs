//! A packet that is sent to be followed: by a real socket in the sender's network namespace, so that rules and
//! connection tracking are real. The socket is this process's: a hook at the sender's cgroup does not see it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use netlink::Namespace;
use trace::Filter;
use trace::hop::Protocol;
use trace::namespaces::Found;

/// How long a TCP connection is tried: one SYN, and one more.
const CONNECT: Duration = Duration::from_millis(1500);

/// What a datagram carries, so that no two are the same.
const NONCE_BYTES: usize = 16;

/// A packet to be sent.
#[derive(Debug)]
pub(super) struct Probe {
    namespace: Namespace,
    target: SocketAddr,
    protocol: Protocol,
}

impl Probe {
    /// What the filter names, from a namespace by its name or path, or from where the sender's address is.
    pub(super) fn new(filter: &Filter, netns: Option<&str>, namespaces: &[Found]) -> anyhow::Result<Self> {
        let same_family = |address: &IpAddr| {
            filter.sources.is_empty()
                || filter
                    .sources
                    .iter()
                    .any(|source| source.is_ipv4() == address.is_ipv4())
        };
        let target = filter.targets.iter().find(|(address, _)| same_family(address));
        let (address, port) =
            target.context("--inject needs an address to send to, of the sender's version of IP")?;
        let protocol = filter.protocol.unwrap_or(Protocol::TCP);
        ensure!(protocol.has_ports(), "--inject sends TCP and UDP, not {protocol}");
        let port =
            port.context("--inject needs a port to send to; behind an address of IPv6 it is [ADDRESS]:PORT")?;
        Ok(Self {
            namespace: namespace(filter, netns, namespaces)?,
            target: SocketAddr::new(*address, port),
            protocol,
        })
    }

    /// Sends it. That nobody takes it is no error: what became of it is told.
    pub(super) fn send(&self) -> anyhow::Result<()> {
        let sent = self.namespace.run(|| match self.protocol {
            Protocol::UDP => self.send_datagram(),
            _ => {
                // Refused, unreachable, no answer: the story tells which.
                let _ = TcpStream::connect_timeout(&self.target, CONNECT);
                Ok(())
            }
        })?;
        sent.with_context(|| format!("send to {}", self.target))
    }

    fn send_datagram(&self) -> io::Result<()> {
        let any: IpAddr = if self.target.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let socket = UdpSocket::bind((any, 0))?;
        match socket.send_to(&nonce, self.target) {
            // A rule of the sender's own dropped it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            sent => sent.map(drop),
        }
    }
}

fn namespace(filter: &Filter, netns: Option<&str>, namespaces: &[Found]) -> anyhow::Result<Namespace> {
    match netns {
        Some(path) if path.contains('/') => Ok(Namespace::open(path)?),
        Some(name) => Ok(Namespace::named(name)?),
        None => {
            let has_source = |found: &&Found| {
                found
                    .addresses
                    .iter()
                    .any(|address| filter.sources.contains(address))
            };
            match namespaces
                .iter()
                .filter(has_source)
                .collect::<Vec<_>>()
                .as_slice()
            {
                [found] => Ok(found.namespace.clone()),
                [] => bail!(
                    "the sender's address is nowhere on this machine: name its network namespace by --netns"
                ),
                _ => bail!("the sender's address is in several network namespaces: name one by --netns"),
            }
        }
    }
}
