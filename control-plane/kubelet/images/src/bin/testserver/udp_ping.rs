//! UDP round trips against `testserver serve --udp`: from connected sockets or with `sendto(2)`, each from a socket of its
//! own or all from one, which is a flow to connection tracking.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::clock;
use crate::dns::Resolver;

/// `testserver udp-ping`.
pub fn run(args: &Args) -> Result<bool, String> {
    crate::exit_on_ending_signals()?;
    let target = args.positional(0).ok_or("udp-ping needs HOST:PORT")?;
    let (host, port) = target
        .rsplit_once(':')
        .ok_or_else(|| format!("{target:?} is not HOST:PORT"))?;
    let port: u16 = port.parse().map_err(|_| format!("{target:?} has a bad port"))?;
    let timeout = Duration::from_millis(args.value("timeout-ms", 1000)?);
    let interval = Duration::from_millis(args.value("interval-ms", 0)?);
    let count: u64 = args.value("count", 1)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = match host.parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) => first_address(host, args, timeout)?,
    };
    let pings = Pings {
        server: SocketAddr::new(address, port),
        connected: args.flag("connected"),
        timeout,
        size: args.value("size", 0)?,
    };
    let kept = match args.flag("kept") {
        true => Some(pings.socket().map_err(|error| error.to_string())?),
        false => None,
    };

    let mut failed = 0u64;
    let mut sequence = 0u64;
    while args.flag("forever") || sequence < count {
        let start = Instant::now();
        let outcome = match &kept {
            Some(socket) => pings.ping(socket),
            None => pings.socket().and_then(|socket| pings.ping(&socket)),
        };
        let micros = start.elapsed().as_micros();
        match outcome {
            Ok((from, name)) => println!("{} ok {name} {micros} from={from}", clock::now()),
            Err(error) => {
                failed += 1;
                println!("{} error={error} - {micros}", clock::now());
            }
        }
        sequence += 1;
        if args.flag("forever") || sequence < count {
            std::thread::sleep(interval);
        }
    }
    println!("summary: requests={count} failed={failed}");
    Ok(failed == 0)
}

fn first_address(host: &str, args: &Args, timeout: Duration) -> Result<IpAddr, String> {
    let resolver = Resolver::from_system(args.text("resolver"), timeout)?;
    let addresses = resolver
        .addresses(host)
        .map_err(|error| format!("resolve {host}: {error}"))?;
    addresses
        .first()
        .copied()
        .ok_or_else(|| format!("{host} has no address"))
}

/// What all datagrams of a run have in common.
struct Pings {
    server: SocketAddr,
    connected: bool,
    timeout: Duration,
    /// So many bytes are sent and have to come back; 0 asks for the server's name instead.
    size: usize,
}

impl Pings {
    fn socket(&self) -> io::Result<UdpSocket> {
        let any: IpAddr = if self.server.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(self.timeout))?;
        if self.connected {
            socket.connect(self.server)?;
        }
        Ok(socket)
    }

    /// Returns who answered, and its name or how much it sent back.
    fn ping(&self, socket: &UdpSocket) -> io::Result<(SocketAddr, String)> {
        let datagram: Vec<u8> = match self.size {
            0 => b"hostname".to_vec(),
            size => (b'a'..=b'z').cycle().take(size).collect(),
        };
        let mut buffer = vec![0; 64 << 10];
        let (length, from) = if self.connected {
            socket.send(&datagram)?;
            (socket.recv(&mut buffer)?, self.server)
        } else {
            socket.send_to(&datagram, self.server)?;
            socket.recv_from(&mut buffer)?
        };
        let answer = buffer.get(..length).unwrap_or_default();
        if self.size == 0 {
            return Ok((from, String::from_utf8_lossy(answer).into_owned()));
        }
        match answer == datagram {
            true => Ok((from, format!("{length}-bytes"))),
            false => Err(io::Error::other(format!("other {length} bytes came back"))),
        }
    }
}
