//! A client for packet tests: sends to an address and says what came of it, one line for each attempt.
//!
//! `knock tcp|udp|udp-unconnected ADDRESS:PORT [COUNT]` prints `answer TEXT`, `refused`, `silent` or `error TEXT`.
//! It is a program of its own so that it can run in any network namespace and cgroup.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// Long enough for any answer on one machine, short enough for tables with silent rows.
const PATIENCE: Duration = Duration::from_millis(1500);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [how, address, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: knock tcp|udp|udp-unconnected ADDRESS:PORT [COUNT]");
        std::process::exit(2);
    };
    let Ok(address) = address.parse() else {
        eprintln!("not an address and port: {address}");
        std::process::exit(2);
    };
    let count = rest.first().and_then(|count| count.parse().ok()).unwrap_or(1);
    for _ in 0..count {
        let result = match how.as_str() {
            "tcp" => tcp(address),
            "udp" => udp(address, true),
            _ => udp(address, false),
        };
        match result {
            Ok(text) => println!("answer {text}"),
            Err(error) => match error.kind() {
                ErrorKind::ConnectionRefused => println!("refused"),
                ErrorKind::TimedOut | ErrorKind::WouldBlock => println!("silent"),
                _ => println!("error {error}"),
            },
        }
    }
}

fn tcp(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    insist("the peer is", stream.peer_addr()?, address)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn udp(address: SocketAddr, connected: bool) -> std::io::Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    if connected {
        socket.connect(address)?;
        socket.send(b"who")?;
    } else {
        socket.send_to(b"who", address)?;
    }
    let mut buffer = [0; 512];
    if connected {
        insist("the peer is", socket.peer_addr()?, address)?;
    }
    let (len, from) = socket.recv_from(&mut buffer)?;
    insist("the answer came from", from, address)?;
    Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
}

/// Resolvers throw away what does not come from the address that they asked.
fn insist(what: &str, found: SocketAddr, wanted: SocketAddr) -> std::io::Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(std::io::Error::other(format!("{what} {found}")))
}
