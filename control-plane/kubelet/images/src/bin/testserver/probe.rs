//! Many servers tried at once, for a matrix of who reaches whom: a line for each, in the order in which they were named.
//!
//! A probe is `KIND:HOST:PORT`. `tcp` and `udp` ask for the server's name; `tcp+large` and `udp+large` send as much as
//! fills the largest packets of the way and want it back, and no router may cut these up; `connect` opens a TCP
//! connection to whoever listens.

use std::io::{self, BufReader, ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};

use crate::args::Args;
use crate::dns::Resolver;
use crate::http;

/// Headers of IPv4 and UDP.
const HEADERS_V4: u32 = 20 + 8;
/// Headers of IPv6 and UDP.
const HEADERS_V6: u32 = 40 + 8;

/// Several segments of any MTU below a jumbo frame's.
const LARGE_BY_TCP: usize = 20_000;

/// Routers that tell a smaller MTU, one behind the other, at the most.
const SMALLER_MTUS: usize = 4;

#[derive(Clone, Copy)]
enum Kind {
    Connect,
    Tcp,
    TcpLarge,
    Udp,
    UdpLarge,
}

/// What came back, in a word: the server's name, a number of bytes, or `open`.
type Answer = io::Result<String>;

/// `testserver probe`.
pub fn run(args: &Args) -> Result<bool, String> {
    crate::exit_on_ending_signals()?;
    let timeout = Duration::from_millis(args.value("timeout-ms", 1000)?);
    let resolver = Resolver::from_system(args.text("resolver"), timeout)?;
    let probes = args.positionals().iter().map(|text| parse(text));
    let probes: Vec<_> = probes.collect::<Result<_, _>>()?;
    if probes.is_empty() {
        return Err("probe needs KIND:HOST:PORT".to_owned());
    }
    let answers = thread::scope(|scope| {
        let probing: Vec<_> = probes
            .iter()
            .map(|(kind, host, port)| {
                let resolver = &resolver;
                scope.spawn(move || {
                    let start = Instant::now();
                    let answer = try_one(*kind, host, *port, resolver, start + timeout);
                    (answer, start.elapsed().as_micros())
                })
            })
            .collect();
        let joined = probing.into_iter().map(|probing| probing.join());
        joined
            .map(|answer| answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Vec<_>>()
    });
    let mut all_good = true;
    for (text, (answer, micros)) in args.positionals().iter().zip(answers) {
        match answer {
            Ok(answer) => println!("{text} ok {micros} {answer}"),
            Err(error) => {
                all_good = false;
                println!("{text} failed {micros} {}", reason(&error));
            }
        }
    }
    Ok(all_good)
}

fn parse(text: &str) -> Result<(Kind, &str, u16), String> {
    let bad = || format!("{text:?} is not KIND:HOST:PORT");
    let (kind, end) = text.split_once(':').ok_or_else(bad)?;
    let kind = match kind {
        "connect" => Kind::Connect,
        "tcp" => Kind::Tcp,
        "tcp+large" => Kind::TcpLarge,
        "udp" => Kind::Udp,
        "udp+large" => Kind::UdpLarge,
        _ => return Err(bad()),
    };
    let (host, port) = end.rsplit_once(':').ok_or_else(bad)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((kind, host, port.parse().map_err(|_| bad())?))
}

fn try_one(kind: Kind, host: &str, port: u16, resolver: &Resolver, deadline: Instant) -> Answer {
    let address = match host.parse::<IpAddr>() {
        Ok(address) => Some(address),
        Err(_) => resolver
            .addresses(host)
            .map_err(|error| io::Error::new(error.kind(), format!("the name is not found: {error}")))?
            .first()
            .copied(),
    };
    let address = address.ok_or_else(|| io::Error::new(ErrorKind::NotFound, "the name has no address"))?;
    let server = SocketAddr::new(address, port);
    match kind {
        Kind::Connect => connect(server, deadline).map(|_| "open".to_owned()),
        Kind::Tcp => by_http(server, "/hostname", deadline),
        Kind::TcpLarge => {
            let sent = letters(LARGE_BY_TCP);
            let back = by_http(server, &format!("/echo?msg={sent}"), deadline)?;
            same(back == sent, back.len())
        }
        Kind::Udp => {
            let name = by_udp(&datagrams_to(server)?, b"hostname", deadline)?;
            Ok(String::from_utf8_lossy(&name).into_owned())
        }
        Kind::UdpLarge => large_by_udp(server, deadline),
    }
}

fn letters(count: usize) -> String {
    ('a'..='z').cycle().take(count).collect()
}

fn same(same: bool, length: usize) -> Answer {
    match same {
        true => Ok(length.to_string()),
        false => Err(io::Error::other(format!("other {length} bytes came back"))),
    }
}

fn connect(server: SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, left(deadline)?)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn by_http(server: SocketAddr, path: &str, deadline: Instant) -> Answer {
    let mut stream = connect(server, deadline)?;
    stream.set_read_timeout(Some(left(deadline)?))?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let response = http::read_response(&mut BufReader::new(&stream))?;
    match response.status {
        200 => Ok(String::from_utf8_lossy(&response.body).into_owned()),
        status => Err(io::Error::other(format!("HTTP status {status}"))),
    }
}

fn datagrams_to(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    Ok(socket)
}

fn by_udp(socket: &UdpSocket, datagram: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
    socket.set_read_timeout(Some(left(deadline)?))?;
    socket.send(datagram)?;
    let mut buffer = vec![0; 64 << 10];
    let length = socket.recv(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// As much as the way takes at once, as the kernel knows it: a router with a smaller MTU tells, and it is tried again.
fn large_by_udp(server: SocketAddr, deadline: Instant) -> Answer {
    let socket = datagrams_to(server)?;
    match server {
        SocketAddr::V4(_) => sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?,
        SocketAddr::V6(_) => sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO)?,
    }
    let mut result = Err(io::Error::other("the MTU became smaller with each attempt"));
    for _ in 0..SMALLER_MTUS {
        let (mtu, headers) = match server {
            SocketAddr::V4(_) => (sockopt::ip_mtu(&socket)?, HEADERS_V4),
            SocketAddr::V6(_) => (sockopt::ipv6_mtu(&socket)?, HEADERS_V6),
        };
        // A datagram has no more than 65,535 bytes with its headers, whatever loopback takes.
        let size = mtu.min(u32::from(u16::MAX)).saturating_sub(headers);
        let sent = letters(usize::try_from(size).map_err(io::Error::other)?);
        result = by_udp(&socket, sent.as_bytes(), deadline)
            .and_then(|back| same(back == sent.as_bytes(), back.len()))
            .map_err(|error| io::Error::new(error.kind(), format!("{size} bytes: {}", reason(&error))));
        if !matches!(&result, Err(error) if is_too_large(error)) {
            break;
        }
    }
    result
}

/// EMSGSIZE has no kind of its own, and its number is gone once it has a text.
fn is_too_large(error: &io::Error) -> bool {
    error.to_string().ends_with("message too long")
}

fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        // With a text of its own it was told already.
        ErrorKind::WouldBlock | ErrorKind::TimedOut if error.get_ref().is_none() => "no answer".to_owned(),
        _ => {
            let text = error.to_string();
            let text = text.split(" (os error").next().unwrap_or_default();
            let mut letters = text.chars();
            let first = letters.next().map(|first| first.to_ascii_lowercase());
            first.into_iter().chain(letters).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_name_kind_host_and_port() {
        for (text, expected) in [
            ("tcp:10.0.0.1:80", Some(("10.0.0.1", 80))),
            ("udp+large:[fd00::1]:81", Some(("fd00::1", 81))),
            (
                "connect:kubernetes.default.svc:443",
                Some(("kubernetes.default.svc", 443)),
            ),
            ("sctp:10.0.0.1:80", None),
            ("tcp:10.0.0.1", None),
            ("tcp:10.0.0.1:0x50", None),
        ] {
            let parsed = parse(text).ok().map(|(_, host, port)| (host, port));
            assert_eq!(parsed, expected, "{text}");
        }
    }

    #[test]
    fn reasons_are_short_and_tell_silence_from_refusal() {
        let refused = io::Error::from_raw_os_error(111);
        assert_eq!(reason(&refused), "connection refused");
        assert_eq!(reason(&io::Error::from_raw_os_error(11)), "no answer");
        assert_eq!(reason(&ErrorKind::TimedOut.into()), "no answer");
        let told = io::Error::new(ErrorKind::WouldBlock, "1422 bytes: no answer");
        assert_eq!(reason(&told), "1422 bytes: no answer");
        let too_large = io::Error::other(format!("9 bytes: {}", reason(&io::Error::from_raw_os_error(90))));
        assert!(is_too_large(&too_large), "{too_large}");
    }

    #[test]
    fn a_server_on_loopback_takes_and_gives_back_what_fills_its_packets() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
        let address = server.local_addr().expect("bound");
        let echo = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            let (length, client) = server.recv_from(&mut buffer).expect("a datagram");
            server.send_to(&buffer[..length], client).expect("sent");
            length
        });
        let answer = large_by_udp(address, Instant::now() + Duration::from_secs(5)).expect("an answer");
        assert_eq!(answer, echo.join().expect("echoed").to_string());
        assert_eq!(answer, (65_535 - HEADERS_V4).to_string());
    }
}
