//! UDP round trips against `testserver serve --udp`: with one connected socket, or with `sendto(2)` per datagram.

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
    let count: u32 = args.value("count", 1)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = match host.parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) => first_address(host, args, timeout)?,
    };
    let server = SocketAddr::new(address, port);

    let mut failed = 0u32;
    for sequence in 0..count {
        let start = Instant::now();
        let outcome = ping(server, args.flag("connected"), timeout);
        let micros = start.elapsed().as_micros();
        match outcome {
            Ok((from, name)) => println!("{} ok {name} {micros} from={from}", clock::now()),
            Err(error) => {
                failed += 1;
                println!("{} error={error} - {micros}", clock::now());
            }
        }
        if sequence + 1 < count {
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

/// Asks for the server's name; returns who answered.
fn ping(server: SocketAddr, connected: bool, timeout: Duration) -> io::Result<(SocketAddr, String)> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(timeout))?;
    let mut buffer = [0; 512];
    let (length, from) = if connected {
        socket.connect(server)?;
        socket.send(b"hostname")?;
        (socket.recv(&mut buffer)?, server)
    } else {
        socket.send_to(b"hostname", server)?;
        socket.recv_from(&mut buffer)?
    };
    Ok((
        from,
        String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned(),
    ))
}
