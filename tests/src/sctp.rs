//! Just enough SCTP to ask who is there, over raw sockets: kernels without SCTP sockets still track and translate it.
//!
//! A client sends an INIT; a server answers with an INIT ACK whose state cookie is its text (RFC 9260 §3.3.2, §3.3.3).
//! ```text
//! [source port:2][destination port:2][verification tag:4][CRC32c:4 le]
//! [chunk type:1][flags:1][length:2][initiate tag:4][window:4][out streams:2][in streams:2][TSN:4]
//! [parameter type:2 = 7][length:2][cookie]                                             in an INIT ACK
//! ```

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, ipproto, socket};

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const STATE_COOKIE: u16 = 7;
const COMMON_HEADER: usize = 12;
const COOKIE_AT: usize = COMMON_HEADER + 20 + 4;

/// Asks who is at an address and returns the text of the answer.
///
/// # Errors
/// [`io::ErrorKind::ConnectionRefused`] when the client is told that nobody is there, [`io::ErrorKind::TimedOut`] when
/// nothing comes back; or when raw sockets are forbidden.
pub fn ask(address: SocketAddr, patience: Duration) -> io::Result<String> {
    let socket = raw_socket(address.ip())?;
    // Errors that ICMP tells are given to connected sockets only.
    socket.connect(SocketAddr::new(address.ip(), 0))?;
    let port = own_port();
    let tag = u32::from(port);
    socket.send(&packet(INIT, (port, address.port()), 0, tag, b""))?;
    let deadline = Instant::now() + patience;
    let mut buffer = [0; 512];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = socket.recv(&mut buffer)?;
        let answer = Packet::parse(transport(address.ip(), &buffer[..length]));
        // A raw socket hears every answer from that address.
        if let Some(answer) = answer.filter(|answer| answer.ports == (address.port(), port)) {
            if answer.kind != INIT_ACK || answer.verification_tag != tag {
                return Err(io::Error::other(format!("an unfit answer: {answer:?}")));
            }
            return Ok(String::from_utf8_lossy(&answer.cookie).into_owned());
        }
    }
}

/// Answers who asks on a port, until the socket fails. `any` is the unspecified address of a family.
///
/// # Errors
/// When raw sockets are forbidden.
pub fn listen(any: IpAddr) -> io::Result<UdpSocket> {
    raw_socket(any)
}

/// See [`listen`].
pub fn serve(socket: &UdpSocket, any: IpAddr, port: u16, answer: impl Fn(IpAddr) -> String) {
    let mut buffer = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let Some(init) = Packet::parse(transport(any, &buffer[..length])) else {
            continue;
        };
        if init.kind == INIT && init.ports.1 == port {
            let text = answer(from.ip());
            let reply = packet(
                INIT_ACK,
                (port, init.ports.0),
                init.initiate_tag,
                1,
                text.as_bytes(),
            );
            let _ = socket.send_to(&reply, from); // the client may be gone
        }
    }
}

/// `UdpSocket` for its methods: what it sends and receives is what the raw socket does.
fn raw_socket(of_family: IpAddr) -> io::Result<UdpSocket> {
    let family = if of_family.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    Ok(socket(family, SocketType::RAW, Some(ipproto::SCTP))?.into())
}

/// Raw sockets of IPv4 give the IP header too, those of IPv6 do not.
fn transport(of_family: IpAddr, received: &[u8]) -> &[u8] {
    let header = match received.first() {
        Some(first) if of_family.is_ipv4() => usize::from(first & 0xf) * 4,
        _ => 0,
    };
    received.get(header..).unwrap_or_default()
}

/// Nobody hands out port numbers to raw sockets.
fn own_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() as u16 % 200 * 100;
    40_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000
}

#[derive(Debug)]
struct Packet {
    ports: (u16, u16),
    verification_tag: u32,
    kind: u8,
    initiate_tag: u32,
    cookie: Vec<u8>,
}

impl Packet {
    /// None for what is no INIT or INIT ACK, and for packets whose checksum is wrong.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let half = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let mut unsummed = bytes.to_vec();
        unsummed.get_mut(8..COMMON_HEADER)?.fill(0);
        if bytes.get(8..COMMON_HEADER)? != crc32c(&unsummed).to_le_bytes() {
            return None;
        }
        let kind = *bytes.get(COMMON_HEADER)?;
        let cookie = if kind == INIT_ACK {
            let length = usize::from(half(COOKIE_AT - 2)?).checked_sub(4)?;
            bytes.get(COOKIE_AT..COOKIE_AT + length)?.to_vec()
        } else {
            Vec::new()
        };
        Some(Self {
            ports: (half(0)?, half(2)?),
            verification_tag: word(4)?,
            kind,
            initiate_tag: word(COMMON_HEADER + 4)?,
            cookie,
        })
    }
}

fn packet(kind: u8, ports: (u16, u16), verification_tag: u32, initiate_tag: u32, cookie: &[u8]) -> Vec<u8> {
    let parameter = if cookie.is_empty() { 0 } else { 4 + cookie.len() };
    let mut bytes = Vec::new();
    bytes.extend(ports.0.to_be_bytes());
    bytes.extend(ports.1.to_be_bytes());
    bytes.extend(verification_tag.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend([kind, 0]);
    bytes.extend((20 + parameter as u16).to_be_bytes());
    bytes.extend(initiate_tag.to_be_bytes());
    bytes.extend(65_536_u32.to_be_bytes());
    bytes.extend([0, 1, 0, 1]);
    bytes.extend(1_u32.to_be_bytes());
    if parameter > 0 {
        bytes.extend(STATE_COOKIE.to_be_bytes());
        bytes.extend((parameter as u16).to_be_bytes());
        bytes.extend(cookie);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let sum = crc32c(&bytes).to_le_bytes();
    bytes[8..COMMON_HEADER].copy_from_slice(&sum);
    bytes
}

/// RFC 9260 appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| {
        if crc & 1 == 1 {
            crc >> 1 ^ 0x82f6_3b78
        } else {
            crc >> 1
        }
    };
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_the_rfc() {
        // RFC 3720 appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_packet_reads_back_and_a_damaged_one_does_not() {
        let mut bytes = packet(INIT_ACK, (80, 4000), 7, 1, b"near 10.244.3.2");
        let read = Packet::parse(&bytes).expect("a packet");
        assert_eq!(
            (read.ports, read.verification_tag, read.kind),
            ((80, 4000), 7, INIT_ACK)
        );
        assert_eq!(read.cookie, b"near 10.244.3.2");
        bytes[3] ^= 1;
        assert!(Packet::parse(&bytes).is_none());
    }
}
