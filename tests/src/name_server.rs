//! Name servers that answer what a test wants, and the parts of their answers (RFC 1035 §4.1).

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;

/// Bytes of a header.
pub const HEADER: usize = 12;
/// TC, in the third byte of a header.
pub const FLAG_TC: u8 = 0x02;
/// The code for an answer.
pub const NOERROR: u8 = 0;
/// The code for a failure.
pub const SERVFAIL: u8 = 2;
/// The code for a name that does not exist.
pub const NXDOMAIN: u8 = 3;
/// The code for a question that is not answered.
pub const REFUSED: u8 = 5;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A datagram.
    Udp,
    /// A stream.
    Tcp,
}

/// Serves by UDP at a port of 127.0.0.1 until the end of the test: sends each packet that `replies` makes of a query.
///
/// # Panics
/// When no port is free.
pub fn start(replies: impl Fn(&[u8], By) -> Vec<Vec<u8>> + Send + Sync + 'static) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = socket.local_addr().expect("bound");
    serve(socket, None, replies);
    address
}

/// The same at sockets of the caller's.
pub fn serve(
    socket: UdpSocket,
    listener: Option<TcpListener>,
    replies: impl Fn(&[u8], By) -> Vec<Vec<u8>> + Send + Sync + 'static,
) {
    let replies = Arc::new(replies);
    let by_udp = Arc::clone(&replies);
    std::thread::spawn(move || {
        let mut query = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut query) {
            for reply in by_udp(query.get(..length).unwrap_or_default(), By::Udp) {
                let _ = socket.send_to(&reply, client); // who has what it wanted is gone
            }
        }
    });
    let Some(listener) = listener else { return };
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let replies = Arc::clone(&replies);
            std::thread::spawn(move || converse(stream, |query| replies(query, By::Tcp)));
        }
    });
}

fn converse(mut stream: TcpStream, replies: impl Fn(&[u8]) -> Vec<Vec<u8>>) -> std::io::Result<()> {
    loop {
        let query = read_frame(&mut stream)?;
        for reply in replies(&query) {
            stream.write_all(&frame(&reply))?;
        }
    }
}

/// A message of a stream: two bytes of length in front of it (RFC 1035 §4.2.2).
#[must_use]
pub fn frame(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], message].concat()
}

/// The next message of a stream.
///
/// # Errors
/// When the stream ends before it.
pub fn read_frame(stream: &mut impl std::io::Read) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// The length of header and question.
///
/// # Panics
/// When the question has no end.
#[must_use]
pub fn question_end(query: &[u8]) -> usize {
    let name = query.iter().skip(HEADER).position(|byte| *byte == 0);
    HEADER + name.expect("a name ends") + 1 + 4
}

/// Header and question of a query, as its answer begins.
#[must_use]
pub fn head(query: &[u8], flags: u8, code: u8, answers: u16) -> Vec<u8> {
    let mut head = query[..question_end(query)].to_vec();
    head[2..4].copy_from_slice(&[0x81 | flags, 0x80 | code]);
    head[6..8].copy_from_slice(&answers.to_be_bytes());
    head[8..HEADER].fill(0);
    head
}

/// `[pointer to the question's name:2][A:2][IN:2][TTL in seconds:4][length:2][address:4]`
#[must_use]
pub fn record(address: Ipv4Addr, ttl: u32) -> Vec<u8> {
    let ttl = ttl.to_be_bytes();
    [&[0xc0, 12, 0, 1, 0, 1][..], &ttl, &[0, 4], &address.octets()].concat()
}

/// The answer with this address for a minute.
#[must_use]
pub fn answer(query: &[u8], address: Ipv4Addr) -> Vec<u8> {
    answer_for(query, address, 60)
}

/// The answer with this address for `ttl` seconds; to a question for something else than addresses, that there is
/// nothing.
#[must_use]
pub fn answer_for(query: &[u8], address: Ipv4Addr, ttl: u32) -> Vec<u8> {
    let end = question_end(query);
    if query[end - 4..end] != [0, 1, 0, 1] {
        return head(query, 0, NOERROR, 0);
    }
    [head(query, 0, NOERROR, 1), record(address, ttl)].concat()
}
