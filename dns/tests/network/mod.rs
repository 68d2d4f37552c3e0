//! What the tests ask for, and whom the server asks.

use std::net::SocketAddr;

use dns::question::Query;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// Starts a name server at a port of the loopback, which sends what `reply` makes of a query, if anything.
pub async fn name_server(reply: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    let own = socket.local_addr().expect("address");
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            if let Some(reply) = reply(&buffer[..length]) {
                // Who is not there any more needs no answer.
                let _ = socket.send_to(&reply, from).await;
            }
        }
    });
    own
}

/// The answer with one address, TTL 1.
pub fn answer(query: &[u8], address: [u8; 4]) -> Vec<u8> {
    let query = Query::parse(query).expect("a query");
    let mut reply = query.head().to_vec();
    reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
    reply.extend(address);
    reply
}

/// A page over HTTP with its head, where somebody serves it.
pub async fn page(server: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(server).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await.ok()?;
    Some(page)
}
