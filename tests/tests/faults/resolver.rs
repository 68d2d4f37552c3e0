//! Questions of the pod to the node's DNS server, and name servers that it forwards to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::name_server;
pub use tests::name_server::{
    By, FLAG_TC, HEADER, NOERROR, NXDOMAIN, REFUSED, SERVFAIL, answer, head, question_end, record,
};
use tests::probe::queries;
use tests::topology::Host;

use crate::world::{DNS, World, server, socket};

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
    let (socket, listener) = world
        .servers
        .run(|| Ok::<_, std::io::Error>((UdpSocket::bind(at)?, TcpListener::bind(at)?)))??;
    name_server::serve(socket, Some(listener), replies);
    Ok(())
}

pub fn is_from_upstream(answered: &Answered, address: Ipv4Addr) -> bool {
    answered.code == NOERROR && answered.address.map(IpAddr::V4) == Some(address.into())
}
