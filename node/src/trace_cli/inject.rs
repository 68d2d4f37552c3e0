//! A packet that is sent to be followed: by a real socket in the sender's network namespace and cgroup, so that hooks,
//! rules and connection tracking do with it what they do with the sender's own.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use netlink::Namespace;
use netlink::netns::PIN_DIRECTORY;
use nix::errno::Errno;
use tokio::net::TcpSocket;
use trace::Filter;
use trace::hop::{Flow, Protocol};
use trace::namespaces::Found;

use super::standing;

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
    /// The address that the socket is bound to; none where the kernel chooses one.
    source: Option<IpAddr>,
    flow: Flow,
    /// The network namespace that it is sent from.
    netns: u32,
}

/// Who sends a probe, and from where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender<'a> {
    /// Whether its kernel chooses the address: a node has one for each way.
    pub(super) is_of_node: bool,
    /// Inode number of its network namespace, where it is a node or a pod of this machine.
    pub(super) home: Option<u32>,
    /// A network namespace that was named.
    pub(super) netns: Option<&'a str>,
    /// The cgroup whose sockets a hook translates, where its node has one.
    pub(super) hooked: Option<&'a Path>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpSocket),
    Udp(UdpSocket),
}

/// What a socket said of what it had sent, or was to send: that it was refused, or not allowed. `None`: nothing.
pub(super) type Said = Option<io::Error>;

/// A packet that is being sent.
#[derive(Debug)]
pub(super) struct Sending {
    thread: JoinHandle<anyhow::Result<Said>>,
    /// Readable once the thread has ended, which has the other end.
    ended: UnixStream,
}

impl Probe {
    /// What the filter names, from a namespace by its name or path, or from where the sender's address is.
    pub(super) fn new(filter: &Filter, sender: &Sender<'_>, namespaces: &[Found]) -> anyhow::Result<Self> {
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
        let target = SocketAddr::new(*address, port);
        let source = source_for(address).filter(|_| !sender.is_of_node);
        let (namespace, netns) = namespace(filter, sender, namespaces)?;
        let open = || Socket::open(protocol, source, target);
        // The thread is made first: the sender's cgroup may be full.
        let opened = namespace.run(|| standing::beside(netns, sender.hooked, open))?;
        let (socket, port) = opened.map_err(|error| not_sent(&error, source, target))?;
        let chosen = || namespace.run(|| chosen_source(target)).ok()?.ok();
        let own = source.or_else(chosen).unwrap_or_else(|| unspecified(target));
        Ok(Self {
            socket,
            source,
            flow: Flow {
                source: SocketAddr::new(own, port),
                destination: target,
                protocol,
            },
            netns,
        })
    }

    /// Who sends to whom, as the sender sees it.
    pub(super) fn flow(&self) -> Flow {
        self.flow
    }

    /// The network namespace that it is sent from.
    pub(super) fn netns(&self) -> u32 {
        self.netns
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
    fn send(self) -> anyhow::Result<Said> {
        let Self {
            socket,
            source,
            flow,
            netns: _,
        } = self;
        let target = flow.destination;
        let sent = match socket {
            Socket::Tcp(socket) => connect(socket, target)?,
            Socket::Udp(socket) => ask(&socket, target),
        };
        match sent {
            Ok(()) => Ok(None),
            Err(error) if tells_of_a_packet(&error) => Ok(Some(error)),
            Err(error) => Err(not_sent(&error, source, target)),
        }
    }
}

impl Socket {
    /// Opens one in the calling thread's network namespace, with the port that it has.
    fn open(protocol: Protocol, source: Option<IpAddr>, target: SocketAddr) -> io::Result<(Self, u16)> {
        let own = SocketAddr::new(source.unwrap_or_else(|| unspecified(target)), 0);
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

fn unspecified(target: SocketAddr) -> IpAddr {
    match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The address that the kernel chooses for a way: a datagram's socket learns it before there is a datagram.
fn chosen_source(target: SocketAddr) -> io::Result<IpAddr> {
    let socket = UdpSocket::bind((unspecified(target), 0))?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}

fn connect(socket: TcpSocket, target: SocketAddr) -> anyhow::Result<io::Result<()>> {
    let connected = crate::block_on(async { tokio::time::timeout(CONNECT, socket.connect(target)).await })?;
    // Where it takes too long, the story tells where it went.
    Ok(connected.map_or(Ok(()), |connected| connected.map(drop)))
}

fn ask(socket: &UdpSocket, target: SocketAddr) -> io::Result<()> {
    socket.set_read_timeout(Some(ANSWER))?;
    socket.connect(target)?;
    let payload = match target.port() {
        DNS => question(rand::random()),
        _ => rand::random::<[u8; NONCE_BYTES]>().to_vec(),
    };
    socket.send(&payload)?;
    match socket.recv(&mut [0; 512]) {
        Err(error) if tells_of_a_packet(&error) => Err(error),
        // Where nothing came, the story tells where it went.
        _ => Ok(()),
    }
}

fn not_sent(error: &io::Error, source: Option<IpAddr>, target: SocketAddr) -> anyhow::Error {
    let means = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH) => {
            format!(": the sender has no route to {}", target.ip())
        }
        Some(Errno::EADDRNOTAVAIL) => {
            ": the sender's network namespace does not have that address".to_owned()
        }
        Some(Errno::EMSGSIZE) => ": it is larger than the way takes (MTU)".to_owned(),
        Some(Errno::ENOBUFS) => ": the device's queue, or the socket's buffer, is full".to_owned(),
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
    pub(super) fn finish(self) -> anyhow::Result<Said> {
        let sent = self.thread.join();
        sent.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl AsFd for Sending {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

/// Errors after which there may be a packet to be told of: a rule of the sender's own dropped it, or somebody refused it.
/// Where there is none, a program at the sender's cgroup refused it.
fn tells_of_a_packet(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::PermissionDenied | ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset
    )
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

/// The namespace, and its inode number.
fn namespace(filter: &Filter, sender: &Sender<'_>, namespaces: &[Found]) -> anyhow::Result<(Namespace, u32)> {
    if let Some(name) = sender.netns {
        let path = match name.contains('/') {
            true => PathBuf::from(name),
            false => Path::new(PIN_DIRECTORY).join(name),
        };
        let namespace = Namespace::open(&path)?;
        let inode = trace::places::inode(&path);
        return Ok((
            namespace,
            inode.with_context(|| format!("{} is no namespace", path.display()))?,
        ));
    }
    ensure!(
        !filter.sources.is_empty(),
        "--inject sends from somebody: name the sender, or its network namespace by --netns"
    );
    let has_source = |found: &&Found| match sender.home {
        Some(inode) => found.inode == inode,
        None => found
            .addresses
            .iter()
            .any(|address| filter.sources.contains(address)),
    };
    match namespaces.iter().filter(has_source).collect::<Vec<_>>()[..] {
        [found] => Ok((found.namespace.clone(), found.inode)),
        [] => {
            let sources: Vec<String> = filter.sources.iter().map(IpAddr::to_string).collect();
            bail!(
                "nothing can be sent from {}: no network namespace of this machine has that address. Run this on the \
                 sender's node, or name a network namespace by --netns",
                sources.join(" and ")
            )
        }
        ref several => bail!(
            "the sender's address is in several network namespaces: name one by {}",
            several
                .iter()
                .map(|found| format!("--netns {}", found.path.display()))
                .collect::<Vec<_>>()
                .join(" or ")
        ),
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
            let sender = Sender {
                is_of_node: false,
                home: None,
                netns: None,
                hooked: None,
            };
            let error = Probe::new(&filter, &sender, &[])
                .expect_err("not here")
                .to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
