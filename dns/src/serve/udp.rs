//! UDP: one thread per core and address that reads, answers and writes in batches.
//!
//! ```text
//! recvmmsg (waits for one, takes up to BATCH) ─► answer each in place ─► sendmmsg, per local address
//!                                                  └ has to wait for an upstream ─► bounded channel ─► tokio
//! ```

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg,
    sendmsg, setsockopt, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use crate::chain::{Arrived, Client, Denial, Outcome, Server, Worker};
use crate::metrics::{Shard, Transport};

/// Datagrams per system call; more than 8 gains little.
const BATCH: usize = 16;
/// The largest query that is read whole.
const QUERY_BUFFER: usize = 4096;
/// How often a thread without work looks whether it should end.
const STOP_CHECK_MILLIS: i64 = 200;
/// How much is still answered where clients do not stop asking.
const MAX_LAST_BATCHES: usize = 1024;
/// The most queries that have a task of their own; those that ask upstreams are bounded by [`crate::forward`], too.
const MAX_WAITING: usize = 8192;

/// The address of ours that a datagram was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Local {
    /// The socket has only one.
    Bound,
    V4(Ipv4Addr),
    /// With the interface, without which a link-local address is not complete.
    V6(Ipv6Addr, u32),
}

/// A query that an upstream has to be asked for.
pub struct Waiting {
    packet: Vec<u8>,
    client: SocketAddr,
    local: Local,
    socket: Arc<OwnedFd>,
    server: Arc<Server>,
    read_at: Instant,
    denial: Option<Denial>,
}

/// A datagram that was read.
#[derive(Clone, Copy)]
struct Received {
    length: usize,
    client: SocketAddr,
    from: SockaddrStorage,
    local: Local,
    read_at: Instant,
}

/// What one serving thread owns.
pub struct Listener {
    socket: Arc<OwnedFd>,
    /// What is answered by; another one may come between two batches.
    server: Arc<ArcSwap<Server>>,
    worker: Worker,
    waiting: mpsc::Sender<Waiting>,
    stop: Arc<AtomicBool>,
    /// Whether the socket has several addresses, so that each datagram tells which it came to.
    is_wildcard: bool,
}

impl Listener {
    /// A thread's worth of serving.
    ///
    /// # Errors
    /// When the socket takes no timeout.
    pub fn new(
        socket: OwnedFd,
        server: Arc<ArcSwap<Server>>,
        worker: Worker,
        waiting: mpsc::Sender<Waiting>,
        stop: Arc<AtomicBool>,
        is_wildcard: bool,
    ) -> Result<Self, Errno> {
        setsockopt(
            &socket,
            sockopt::ReceiveTimeout,
            &TimeVal::milliseconds(STOP_CHECK_MILLIS),
        )?;
        Ok(Self {
            socket: Arc::new(socket),
            server,
            worker,
            waiting,
            stop,
            is_wildcard,
        })
    }

    /// Serves until told to stop, and then what has come in already.
    pub fn run(mut self) {
        let fd = self.socket.as_raw_fd();
        let mut queries = vec![[0u8; QUERY_BUFFER]; BATCH];
        let mut replies: Vec<Vec<u8>> = (0..BATCH).map(|_| Vec::with_capacity(QUERY_BUFFER)).collect();
        let mut incoming = self.headers();
        let mut outgoing = self.headers();
        let mut received: [Option<Received>; BATCH] = [None; BATCH];
        let mut batches_left = MAX_LAST_BATCHES;
        loop {
            let is_ending = self.stop.load(Ordering::Relaxed);
            if is_ending && batches_left == 0 {
                return;
            }
            batches_left -= usize::from(is_ending);
            // Who ends takes what is there, and waits for nobody.
            let flags = if is_ending {
                MsgFlags::MSG_DONTWAIT
            } else {
                MsgFlags::MSG_WAITFORONE
            };
            let count = match receive(fd, flags, &mut incoming, &mut queries, &mut received) {
                Ok(count) => count,
                Err(Errno::EAGAIN) if is_ending => return,
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(errno) => {
                    // An ICMP error of an earlier reply is reported here too; it concerns nobody.
                    tracing::debug!(%errno, "receiving failed");
                    continue;
                }
            };
            let mut ready = 0;
            let server = self.server.load();
            for index in 0..count {
                let Some(datagram) = received[index] else { continue };
                let packet = &queries[index][..datagram.length];
                if self.answer_or_survive(&server, packet, &datagram, &mut replies[ready]) {
                    received[ready] = Some(datagram);
                    ready += 1;
                }
            }
            send(fd, &mut outgoing, &replies[..ready], &received[..ready]);
        }
    }

    /// Preallocated headers; each exchange of a wildcard socket carries exactly one control message.
    fn headers(&self) -> MultiHeaders<SockaddrStorage> {
        let space = match self.is_wildcard {
            false => None,
            true if self.is_v6() => Some(nix::cmsg_space!(libc::in6_pktinfo)),
            true => Some(nix::cmsg_space!(libc::in_pktinfo)),
        };
        MultiHeaders::preallocate(BATCH, space)
    }

    fn is_v6(&self) -> bool {
        let own = nix::sys::socket::getsockname::<SockaddrStorage>(self.socket.as_raw_fd());
        own.is_ok_and(|own| own.as_sockaddr_in6().is_some())
    }

    /// A query that finds a mistake in this program costs its own answer, not the thread.
    fn answer_or_survive(
        &mut self,
        server: &Arc<Server>,
        packet: &[u8],
        datagram: &Received,
        reply: &mut Vec<u8>,
    ) -> bool {
        let answer = AssertUnwindSafe(|| self.answer(server, packet, datagram, reply));
        catch_unwind(answer).unwrap_or_else(|_| {
            super::note_panic(&self.worker.shard, datagram.client);
            false
        })
    }

    /// Answers one query into `reply`, or hands it on. Returns whether there is a reply to send.
    fn answer(
        &mut self,
        server: &Arc<Server>,
        packet: &[u8],
        datagram: &Received,
        reply: &mut Vec<u8>,
    ) -> bool {
        let client = Client {
            address: datagram.client,
            transport: Transport::Udp,
        };
        let arrived = Arrived {
            packet,
            client,
            at: datagram.read_at,
        };
        match server.answer_now(arrived, &mut self.worker, reply) {
            Outcome::Reply => true,
            Outcome::Silence => false,
            Outcome::Later(denial) => {
                let waiting = Waiting {
                    packet: packet.to_vec(),
                    client: datagram.client,
                    local: datagram.local,
                    socket: Arc::clone(&self.socket),
                    server: Arc::clone(server),
                    read_at: datagram.read_at,
                    denial,
                };
                if self.waiting.try_send(waiting).is_err() {
                    self.worker.shard.overflow.fetch_add(1, Ordering::Relaxed);
                }
                false
            }
        }
    }
}

fn receive(
    fd: RawFd,
    flags: MsgFlags,
    headers: &mut MultiHeaders<SockaddrStorage>,
    buffers: &mut [[u8; QUERY_BUFFER]],
    received: &mut [Option<Received>; BATCH],
) -> Result<usize, Errno> {
    let mut buffers = buffers.iter_mut();
    let mut slices: [_; BATCH] = std::array::from_fn(|_| {
        [IoSliceMut::new(
            buffers.next().map_or(&mut [][..], |buffer| &mut buffer[..]),
        )]
    });
    let messages = recvmmsg(fd, headers, slices.iter_mut(), flags, None)?;
    let read_at = Instant::now();
    let mut count = 0;
    for message in messages {
        let from = message.address;
        let client = from.as_ref().and_then(super::socket_addr_of);
        let local = message
            .cmsgs()
            .ok()
            .and_then(|mut cmsgs| cmsgs.find_map(|cmsg| local_of(&cmsg)));
        received[count] = client.zip(from).map(|(client, from)| Received {
            length: message.bytes,
            client,
            from,
            local: local.unwrap_or(Local::Bound),
            read_at,
        });
        count += 1;
    }
    Ok(count)
}

fn local_of(message: &ControlMessageOwned) -> Option<Local> {
    match message {
        // The address in network order, as the kernel keeps it.
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(Local::V4(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes())))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
            let interface = if address.is_unicast_link_local() {
                info.ipi6_ifindex
            } else {
                0
            };
            Some(Local::V6(address, interface))
        }
        _ => None,
    }
}

/// Sends replies, those that leave from the same address together. What cannot be sent is dropped, as on any network.
fn send(
    fd: RawFd,
    headers: &mut MultiHeaders<SockaddrStorage>,
    mut replies: &[Vec<u8>],
    mut to: &[Option<Received>],
) {
    while let Some(Some(first)) = to.first() {
        let same = to
            .iter()
            .take_while(|next| next.is_some_and(|next| next.local == first.local))
            .count();
        let sent = first.local.with_control_message(|control| {
            let mut bytes = replies[..same].iter();
            let slices: [_; BATCH] =
                std::array::from_fn(|_| [IoSlice::new(bytes.next().map_or(&[][..], |reply| &reply[..]))]);
            let addresses: [Option<SockaddrStorage>; BATCH] =
                std::array::from_fn(|index| to[..same].get(index).copied().flatten().map(|to| to.from));
            let flags = MsgFlags::MSG_DONTWAIT;
            let results = sendmmsg(
                fd,
                headers,
                slices.iter().take(same),
                &addresses[..same],
                control,
                flags,
            );
            results.map(Iterator::count)
        });
        // A reply that fails alone is stepped over, so that the ones behind it go out.
        let done = sent.unwrap_or(0).max(1).min(same);
        (replies, to) = (&replies[done..], &to[done..]);
    }
}

impl Local {
    fn with_control_message<R>(self, then: impl FnOnce(&[ControlMessage<'_>]) -> R) -> R {
        match self {
            Self::Bound => then(&[]),
            Self::V4(address) => {
                let any = libc::in_addr { s_addr: 0 };
                let own = libc::in_addr {
                    s_addr: u32::from_ne_bytes(address.octets()),
                };
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: own,
                    ipi_addr: any,
                };
                then(&[ControlMessage::Ipv4PacketInfo(&info)])
            }
            Self::V6(address, interface) => {
                let own = libc::in6_addr {
                    s6_addr: address.octets(),
                };
                let info = libc::in6_pktinfo {
                    ipi6_addr: own,
                    ipi6_ifindex: interface,
                };
                then(&[ControlMessage::Ipv6PacketInfo(&info)])
            }
        }
    }
}

/// Answers what has to wait, until the threads that hand it over are gone, and what is under way then.
pub async fn answer_waiting(mut queries: mpsc::Receiver<Waiting>, shard: Arc<Shard>) {
    let slots = Arc::new(Semaphore::new(MAX_WAITING));
    let under_way = TaskTracker::new();
    while let Some(mut query) = queries.recv().await {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let shard = Arc::clone(&shard);
        under_way.spawn(async move {
            let client = Client {
                address: query.client,
                transport: Transport::Udp,
            };
            let denial = query.denial.take();
            let arrived = Arrived {
                packet: &query.packet,
                client,
                at: query.read_at,
            };
            let answer = query.server.answer(arrived, denial, &shard);
            if let Some(Some(reply)) = super::survived(&shard, client, answer).await {
                query.send(&reply);
            }
            drop(slot);
        });
    }
    under_way.close();
    under_way.wait().await;
}

impl Waiting {
    fn send(&self, reply: &[u8]) {
        let to = SockaddrStorage::from(self.client);
        let sent = self.local.with_control_message(|control| {
            let bytes = [IoSlice::new(reply)];
            sendmsg(
                self.socket.as_raw_fd(),
                &bytes,
                control,
                MsgFlags::MSG_DONTWAIT,
                Some(&to),
            )
        });
        if let Err(errno) = sent {
            tracing::debug!(client = %self.client, %errno, "reply not sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::chain::{Block, Route};
    use crate::corefile::Corefile;
    use crate::forward::fake_upstream::FakeUpstream;
    use crate::metrics::{Exposition, Registry, ZoneLabel};

    const AGO: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn the_time_of_a_query_begins_when_it_was_read_whether_it_waits_or_not() {
        let upstream = FakeUpstream::answering([1, 2, 3, 4]).await;
        for (plugin, waits) in [
            ("whoami", false),
            (&*format!("forward . {}", upstream.address), true),
        ] {
            let corefile = Corefile::parse("Corefile", &format!(". {{\n {plugin}\n}}"), &|_| None);
            let config = &corefile.expect("a Corefile").blocks[0];
            let route = Route {
                zone: config.keys[0].zone.clone(),
                block: Arc::new(Block::new(config, None, None)),
                counters: 0,
            };
            let registry = Registry::new(vec![ZoneLabel::of(config.keys.first())]);
            let server = Arc::new(Server::new(vec![route], 0));
            let (waiting, queue) = mpsc::channel(1);
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
            let mut listener = Listener::new(
                socket.into(),
                Arc::new(ArcSwap::new(Arc::clone(&server))),
                Worker::new(registry.shard()),
                waiting,
                Arc::default(),
                false,
            )
            .expect("a timeout");
            let client = SocketAddr::from(([127, 0, 0, 1], 9));
            let read = Received {
                length: 0,
                client,
                from: client.into(),
                local: Local::Bound,
                read_at: Instant::now()
                    .checked_sub(AGO)
                    .expect("the machine is up for so long"),
            };
            let packet = crate::question::query_packet(7, b"\x01a\0", crate::question::rtype::A);
            let mut reply = Vec::new();
            assert_eq!(
                listener.answer(&server, &packet, &read, &mut reply),
                !waits,
                "{plugin}"
            );
            drop(listener);
            answer_waiting(queue, registry.shard()).await;
            let mut told = Exposition::default();
            registry.write(&mut told);
            let sum = "coredns_dns_request_duration_seconds_sum{";
            let line = told
                .text
                .lines()
                .find(|line| line.starts_with(sum))
                .expect("counted");
            let seconds: f64 = line
                .rsplit(' ')
                .next()
                .expect("a value")
                .parse()
                .expect("a number");
            assert!(seconds >= AGO.as_secs_f64(), "{plugin}: {line}");
        }
    }
}
