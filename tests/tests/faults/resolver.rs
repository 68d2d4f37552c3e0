//! Questions of the pod to the node's DNS server, and name servers that it forwards to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use std::io::{Read as _, Write as _};

use anyhow::{Context, Result};
use tests::probe::queries;
use tests::topology::Host;

use crate::world::{DNS, World, server, socket};

pub const HEADER: usize = 12;
pub const FLAG_TC: u8 = 0x02;
pub const NOERROR: u8 = 0;
pub const SERVFAIL: u8 = 2;
pub const NXDOMAIN: u8 = 3;
pub const REFUSED: u8 = 5;

/// Longer than any query is worked on.
const PATIENCE: Duration = Duration::from_secs(8);

/// What came back to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    pub code: u8,
    /// Of an answer with one record.
    pub address: Option<Ipv4Addr>,
    pub took: Duration,
}

/// Asks the node's DNS server from the pod.
pub fn ask(world: &World, name: &str) -> Result<Answered> {
    ask_packet(world, &queries::query(4711, name))
}

pub fn ask_packet(world: &World, query: &[u8]) -> Result<Answered> {
    let socket = client(&world.pod)?;
    let began = Instant::now();
    socket.send(query)?;
    let mut answer = [0; 4096];
    let length = socket.recv(&mut answer)?;
    let answer = answer.get(..length).context("what was received")?;
    Ok(Answered {
        code: answer.get(3).context("a header")? & 15,
        address: queries::address(query, answer).ok(),
        took: began.elapsed(),
    })
}

/// A socket of a host towards the node's DNS server.
pub fn client(host: &Host) -> Result<UdpSocket> {
    let client = host.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    client.connect(socket(DNS, 53))?;
    client.set_read_timeout(Some(PATIENCE))?;
    Ok(client)
}

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Udp,
    Tcp,
}

/// Where an upstream of this number listens: at one of the servers' addresses, on a port of its own.
pub fn upstream(number: u16) -> SocketAddr {
    let [v4, _] = server(2);
    SocketAddr::new(v4, 5300 + number)
}

/// Serves until the end of the test: sends each packet that `replies` makes of a query.
pub fn serve(
    world: &World,
    at: SocketAddr,
    replies: impl Fn(&[u8], By) -> Vec<Vec<u8>> + Send + Sync + 'static,
) -> Result<()> {
    let replies = Arc::new(replies);
    let socket = world.servers.run(|| UdpSocket::bind(at))??;
    let by_udp = Arc::clone(&replies);
    std::thread::spawn(move || {
        let mut query = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut query) {
            for reply in by_udp(query.get(..length).unwrap_or_default(), By::Udp) {
                let _ = socket.send_to(&reply, client); // who has what it wanted is gone
            }
        }
    });
    let listener = world.servers.run(|| TcpListener::bind(at))??;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let replies = Arc::clone(&replies);
            std::thread::spawn(move || converse(stream, |query| replies(query, By::Tcp)));
        }
    });
    Ok(())
}

/// Two bytes of length in front of each message (RFC 1035 §4.2.2).
fn converse(mut stream: std::net::TcpStream, replies: impl Fn(&[u8]) -> Vec<Vec<u8>>) -> std::io::Result<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut query)?;
        for reply in replies(&query) {
            let length = u16::try_from(reply.len()).unwrap_or(u16::MAX);
            stream.write_all(&[&length.to_be_bytes()[..], &reply].concat())?;
        }
    }
}

/// The length of header and question.
pub fn question_end(query: &[u8]) -> usize {
    let name = query.iter().skip(HEADER).position(|byte| *byte == 0);
    HEADER + name.expect("a name ends") + 1 + 4
}

/// Header and question of a query, as its answer begins.
pub fn head(query: &[u8], flags: u8, code: u8, answers: u16) -> Vec<u8> {
    let mut head = query[..question_end(query)].to_vec();
    head[2..4].copy_from_slice(&[0x81 | flags, 0x80 | code]);
    head[6..8].copy_from_slice(&answers.to_be_bytes());
    head[8..HEADER].fill(0);
    head
}

/// `[pointer to the question's name:2][A:2][IN:2][TTL 60:4][length:2][address:4]`
pub fn record(address: Ipv4Addr) -> Vec<u8> {
    [&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4][..], &address.octets()].concat()
}

/// The answer with this address; to a question for something else than addresses, that there is nothing.
pub fn answer(query: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let end = question_end(query);
    if query[end - 4..end] != [0, 1, 0, 1] {
        return head(query, 0, NOERROR, 0);
    }
    [head(query, 0, NOERROR, 1), record(address)].concat()
}

pub fn is_from_upstream(answered: &Answered, address: Ipv4Addr) -> bool {
    answered.code == NOERROR && answered.address.map(IpAddr::V4) == Some(address.into())
}
