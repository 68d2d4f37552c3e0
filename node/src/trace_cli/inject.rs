//! A packet that is sent to be followed: by a real socket in the sender's network namespace, so that rules and
//! connection tracking are real. The socket is this process's: a hook at the sender's cgroup does not see it.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use netlink::Namespace;
use nix::errno::Errno;
use tokio::net::TcpSocket;
use trace::Filter;
use trace::hop::Protocol;
use trace::namespaces::Found;

/// How long a TCP connection is tried: one SYN, and one more.
const CONNECT: Duration = Duration::from_millis(1500);

/// How long a socket waits for the answer to its datagram: one that is closed refuses it.
const ANSWER: Duration = Duration::from_secs(1);

/// What a datagram carries, so that no two are the same.
const NONCE_BYTES: usize = 16;

/// The port at which datagrams are questions.
const DNS: u16 = 53;

/// What is asked there: a name that every cluster has. Who does not know it says so.
const NAME: &str = "kubernetes.default.svc.cluster.local";

/// A packet to be sent, by a socket that has its port already.
#[derive(Debug)]
pub(super) struct Probe {
    socket: Socket,
    source: Option<IpAddr>,
    port: u16,
    target: SocketAddr,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpSocket),
    Udp(UdpSocket),
}

/// A packet that is being sent.
#[derive(Debug)]
pub(super) struct Sending {
    thread: JoinHandle<anyhow::Result<()>>,
    /// Readable once the thread has ended, which has the other end.
    ended: UnixStream,
}

impl Probe {
    /// What the filter names, from a namespace by its name or path, or from where the sender's address is.
    pub(super) fn new(filter: &Filter, netns: Option<&str>, namespaces: &[Found]) -> anyhow::Result<Self> {
        let source_for = |target: &IpAddr| {
            let mut sources = filter.sources.iter();
            sources
                .find(|source| source.is_ipv4() == target.is_ipv4())
                .copied()
        };
        let is_reached =
            |(address, _): &&(IpAddr, _)| filter.sources.is_empty() || source_for(address).is_some();
        let target = filter.targets.iter().find(is_reached);
        let (address, port) =
            target.context("--inject needs an address to send to, of the sender's version of IP")?;
        let protocol = filter.protocol.unwrap_or(Protocol::TCP);
        ensure!(protocol.has_ports(), "--inject sends TCP and UDP, not {protocol}");
        let port =
            port.context("--inject needs a port to send to; behind an address of IPv6 it is [ADDRESS]:PORT")?;
        let (target, source) = (SocketAddr::new(*address, port), source_for(address));
        let opened = namespace(filter, netns, namespaces)?.run(|| Socket::open(protocol, source, target))?;
        let (socket, port) = opened.map_err(|error| not_sent(&error, source, target))?;
        Ok(Self {
            socket,
            source,
            port,
            target,
        })
    }

    /// The port that it is sent from.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Sends it, on a thread of its own.
    pub(super) fn start(self) -> anyhow::Result<Sending> {
        let (ended, other_end) = UnixStream::pair().context("make a pair of sockets")?;
        let thread = std::thread::spawn(move || {
            let sent = self.send();
            drop(other_end);
            sent
        });
        Ok(Sending { thread, ended })
    }

    /// That nobody takes it, or answers, is no error: what became of it is told.
    fn send(self) -> anyhow::Result<()> {
        let Self {
            socket,
            source,
            target,
            port: _,
        } = self;
        let sent = match socket {
            Socket::Tcp(socket) => connect(socket, target)?,
            Socket::Udp(socket) => ask(&socket, target),
        };
        sent.map_err(|error| not_sent(&error, source, target))
    }
}

impl Socket {
    /// Opens one in the calling thread's network namespace, with the port that it has.
    fn open(protocol: Protocol, source: Option<IpAddr>, target: SocketAddr) -> io::Result<(Self, u16)> {
        let own = source.unwrap_or(match target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        });
        let own = SocketAddr::new(own, 0);
        if protocol == Protocol::UDP {
            let socket = UdpSocket::bind(own)?;
            let port = socket.local_addr()?.port();
            return Ok((Self::Udp(socket), port));
        }
        let socket = if target.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.bind(own)?;
        let port = socket.local_addr()?.port();
        Ok((Self::Tcp(socket), port))
    }
}

fn connect(socket: TcpSocket, target: SocketAddr) -> anyhow::Result<io::Result<()>> {
    let connected = crate::block_on(async { tokio::time::timeout(CONNECT, socket.connect(target)).await })?;
    Ok(match connected {
        Ok(connected) => seen_on_its_way(connected.map(drop)),
        // The story tells where it went.
        Err(_) => Ok(()),
    })
}

fn ask(socket: &UdpSocket, target: SocketAddr) -> io::Result<()> {
    socket.set_read_timeout(Some(ANSWER))?;
    socket.connect(target)?;
    let payload = match target.port() {
        DNS => question(rand::random()),
        _ => rand::random::<[u8; NONCE_BYTES]>().to_vec(),
    };
    seen_on_its_way(socket.send(&payload).map(drop))?;
    // No answer, a refusal: the story tells which.
    let _ = socket.recv(&mut [0; 512]);
    Ok(())
}

fn not_sent(error: &io::Error, source: Option<IpAddr>, target: SocketAddr) -> anyhow::Error {
    let means = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH) => {
            format!(": the sender has no route to {}", target.ip())
        }
        Some(Errno::EADDRNOTAVAIL) => {
            ": the sender's network namespace does not have that address".to_owned()
        }
        Some(Errno::EINVAL) => {
            ": its route leads nowhere, or the sender's address cannot be its source".to_owned()
        }
        _ => String::new(),
    };
    let from = source.map(|source| format!("from {source} ")).unwrap_or_default();
    anyhow::anyhow!("nothing could be sent {from}to {target}: {error}{means}")
}

impl Sending {
    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When nothing was sent.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        let sent = self.thread.join();
        sent.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl AsFd for Sending {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

/// Errors after which there is a packet to be told of: a rule of the sender's own dropped it, or somebody refused it.
fn seen_on_its_way(sent: io::Result<()>) -> io::Result<()> {
    match sent {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::PermissionDenied | ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset
            ) =>
        {
            Ok(())
        }
        sent => sent,
    }
}

/// A question for an address of [`NAME`], recursion desired (RFC 1035 §4.1).
fn question(id: u16) -> Vec<u8> {
    const RECURSION_DESIRED: u16 = 1 << 8;
    const QUESTIONS: u16 = 1;
    const TYPE_A: u16 = 1;
    const CLASS_IN: u16 = 1;
    let mut message: Vec<u8> = [id, RECURSION_DESIRED, QUESTIONS, 0, 0, 0]
        .into_iter()
        .flat_map(u16::to_be_bytes)
        .collect();
    for label in NAME.split('.') {
        message.extend(u8::try_from(label.len()));
        message.extend(label.bytes());
    }
    message.push(0);
    message.extend([TYPE_A, CLASS_IN].into_iter().flat_map(u16::to_be_bytes));
    message
}

fn namespace(filter: &Filter, netns: Option<&str>, namespaces: &[Found]) -> anyhow::Result<Namespace> {
    match netns {
        Some(path) if path.contains('/') => return Ok(Namespace::open(path)?),
        Some(name) => return Ok(Namespace::named(name)?),
        None => {}
    }
    ensure!(
        !filter.sources.is_empty(),
        "--inject sends from somebody: name the sender, or its network namespace by --netns"
    );
    let has_source = |found: &&Found| {
        let mut addresses = found.addresses.iter();
        addresses.any(|address| filter.sources.contains(address))
    };
    match namespaces.iter().filter(has_source).collect::<Vec<_>>()[..] {
        [found] => Ok(found.namespace.clone()),
        [] => {
            let sources: Vec<String> = filter.sources.iter().map(IpAddr::to_string).collect();
            bail!(
                "nothing can be sent from {}: no network namespace of this machine has that address. Run this on the \
                 sender's node, or name a network namespace by --netns",
                sources.join(" and ")
            )
        }
        _ => bail!("the sender's address is in several network namespaces: name one by --netns"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_to_the_port_of_dns_is_a_question_that_a_server_reads() {
        let message = question(0xabcd);
        assert_eq!(message[..12], [0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        let (name, rest) = message[12..].split_at(message.len() - 16);
        assert_eq!(name, b"\x0akubernetes\x07default\x03svc\x07cluster\x05local\0");
        assert_eq!(rest, [0, 1, 0, 1]);
    }

    #[test]
    fn a_sender_that_is_not_here_or_is_nobody_sends_nothing() {
        let filter = |sources: &[&str]| Filter {
            sources: sources
                .iter()
                .map(|source| source.parse().expect("an address"))
                .collect(),
            targets: vec![([10, 0, 0, 2].into(), Some(80))],
            ..Filter::default()
        };
        let rows = [
            (filter(&["10.0.0.1"]), "nothing can be sent from 10.0.0.1"),
            (filter(&[]), "name the sender"),
            (filter(&["fd00::1"]), "of the sender's version of IP"),
        ];
        for (filter, part) in rows {
            let error = Probe::new(&filter, None, &[]).expect_err("not here").to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
