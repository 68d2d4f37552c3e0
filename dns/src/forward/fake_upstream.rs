//! A name server for tests: UDP and TCP at one port of the loopback, with answers made by a function.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;

use crate::answer::{Owner, Section, Writer};
use crate::question::{Query, flag, rcode, rtype, set_flags};

/// What is sent back: one packet after the other.
pub(crate) type Replies = Vec<Vec<u8>>;

pub(crate) struct FakeUpstream {
    pub(crate) address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl FakeUpstream {
    /// Starts one. `reply` gets the packet and whether it came by TCP.
    pub(crate) async fn start(reply: impl Fn(&[u8], bool) -> Replies + Send + Sync + 'static) -> Self {
        let (listener, socket) = same_port().await;
        let address = socket.local_addr().expect("address");
        let (reply, asked) = (Arc::new(reply), Arc::new(AtomicUsize::new(0)));
        let (by_udp, count) = (Arc::clone(&reply), Arc::clone(&asked));
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                count.fetch_add(1, Ordering::SeqCst);
                for packet in by_udp(&buffer[..length], false) {
                    socket.send_to(&packet, from).await.expect("sent");
                }
            }
        });
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let Ok(length) = stream.read_u16().await else {
                    continue;
                };
                let mut packet = vec![0; usize::from(length)];
                stream.read_exact(&mut packet).await.expect("read");
                count.fetch_add(1, Ordering::SeqCst);
                for reply in reply(&packet, true) {
                    stream.write_u16(reply.len() as u16).await.expect("written");
                    stream.write_all(&reply).await.expect("written");
                }
            }
        });
        Self { address, asked }
    }

    /// One that answers every question with this address, TTL 60.
    pub(crate) async fn answering(address: [u8; 4]) -> Self {
        Self::start(move |packet, _| vec![answer(packet, &[address])]).await
    }

    /// One that answers by UDP with this address, each time that a permit is given.
    pub(crate) async fn answering_after(permits: Arc<Semaphore>, address: [u8; 4]) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("bound"));
        let (own, asked) = (
            socket.local_addr().expect("address"),
            Arc::new(AtomicUsize::new(0)),
        );
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                count.fetch_add(1, Ordering::SeqCst);
                let (socket, permits) = (Arc::clone(&socket), Arc::clone(&permits));
                let reply = answer(&buffer[..length], &[address]);
                tokio::spawn(async move {
                    permits.acquire().await.expect("open").forget();
                    socket.send_to(&reply, from).await.expect("sent");
                });
            }
        });
        Self { address: own, asked }
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// A port for both transports. Of one that the kernel chose for TCP, a forwarder may have the other half.
async fn same_port() -> (TcpListener, UdpSocket) {
    for _ in 0..100 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("address");
        if let Ok(socket) = UdpSocket::bind(address).await {
            return (listener, socket);
        }
    }
    panic!("no port is free for both transports");
}

/// An answer with A records, however long.
pub(crate) fn answer(packet: &[u8], addresses: &[[u8; 4]]) -> Vec<u8> {
    with_code(packet, rcode::NOERROR, |writer| {
        for address in addresses {
            writer.address(Section::Answer, Owner::QUESTION, (*address).into(), 60);
        }
    })
}

/// An alias for a name, with that name's address.
pub(crate) fn alias(packet: &[u8], target: &[u8], address: [u8; 4]) -> Vec<u8> {
    with_code(packet, rcode::NOERROR, |writer| {
        writer.name(Section::Answer, Owner::QUESTION, rtype::CNAME, 60, target);
        writer.address(Section::Answer, Owner::Literal(target), address.into(), 60);
    })
}

/// A response without records.
pub(crate) fn code(packet: &[u8], code: u16) -> Vec<u8> {
    with_code(packet, code, |_| {})
}

/// NXDOMAIN with the root's SOA, which lets it be kept for 60 s.
pub(crate) fn denial(packet: &[u8]) -> Vec<u8> {
    with_code(packet, rcode::NXDOMAIN, |writer| {
        writer.record(Section::Authority, Owner::Literal(&[0]), rtype::SOA, 60, |out| {
            out.extend([0, 0]);
            out.extend([60_u32; 5].map(u32::to_be_bytes).concat());
        });
    })
}

/// The same response with TC set and nothing in it.
pub(crate) fn truncated(packet: &[u8]) -> Vec<u8> {
    let mut response = code(packet, rcode::NOERROR);
    set_flags(&mut response, flag::TC, flag::TC);
    response
}

fn with_code(packet: &[u8], code: u16, write: impl FnOnce(&mut Writer<'_, '_>)) -> Vec<u8> {
    let query = Query::parse(packet).expect("query");
    let mut out = Vec::new();
    let mut writer = Writer::start(&mut out, &query, 65_535);
    write(&mut writer);
    writer.finish(code, false);
    out
}
