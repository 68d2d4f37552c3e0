//! A client for packet tests: sends to addresses and says what came of it.
//!
//! Standard input has a line for each series of attempts: `LANE tcp|udp|udp-unconnected|sctp COUNT ADDRESS:PORT,…`.
//! Attempts take the addresses in turn. `/MILLISECONDS` behind the count: so long a pause before each but the first, and
//! an end as soon as something else comes of one than of the first. Lanes run side by side, the lines of one lane one after the other. For each
//! attempt it prints the line's number and `answer TEXT`, `refused`, `silent` or `error TEXT`, in order.
//! It is a program of its own so that it can run in any network namespace and cgroup.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// Long enough for any answer on one machine, short enough for tables with silent rows.
const PATIENCE: Duration = Duration::from_millis(1000);

fn main() {
    let mut lanes: BTreeMap<String, Vec<(usize, Series)>> = BTreeMap::new();
    for (number, line) in std::io::stdin().lines().map_while(Result::ok).enumerate() {
        let Some((lane, series)) = parse(&line) else {
            eprintln!("not LANE HOW COUNT ADDRESS:PORT,…: {line:?}");
            std::process::exit(2);
        };
        lanes.entry(lane).or_default().push((number, series));
    }
    let lanes: Vec<_> = lanes
        .into_values()
        .map(|lane| std::thread::spawn(move || lane.iter().map(|(n, series)| (*n, series.run())).collect()))
        .collect();
    let results = lanes.into_iter().map(|lane| lane.join());
    let results: Vec<Vec<(usize, Vec<String>)>> = results.map(|lane| lane.expect("no panic")).collect();
    let results: BTreeMap<usize, Vec<String>> = results.into_iter().flatten().collect();
    for (number, lines) in results {
        for line in lines {
            println!("{number} {line}");
        }
    }
}

/// Attempts of one kind.
struct Series {
    how: How,
    count: usize,
    /// Between attempts, which end when they differ.
    pause: Option<Duration>,
    addresses: Vec<SocketAddr>,
}

#[derive(Clone, Copy)]
enum How {
    Tcp,
    Udp,
    UdpUnconnected,
    Sctp,
}

fn parse(line: &str) -> Option<(String, Series)> {
    let words: Vec<_> = line.split(' ').collect();
    let [lane, how, count, addresses] = words.as_slice() else {
        return None;
    };
    let how = match *how {
        "tcp" => How::Tcp,
        "udp" => How::Udp,
        "udp-unconnected" => How::UdpUnconnected,
        "sctp" => How::Sctp,
        _ => return None,
    };
    let (count, pause) = match count.split_once('/') {
        Some((count, millis)) => (count, Some(Duration::from_millis(millis.parse().ok()?))),
        None => (*count, None),
    };
    let addresses: Result<_, _> = addresses.split(',').map(str::parse).collect();
    let series = Series {
        how,
        count: count.parse().ok()?,
        pause,
        addresses: addresses.ok()?,
    };
    Some(((*lane).to_owned(), series))
}

impl Series {
    fn run(&self) -> Vec<String> {
        let mut results: Vec<String> = Vec::new();
        for address in self.addresses.iter().cycle().take(self.count) {
            if let (Some(pause), Some(first)) = (self.pause, results.first()) {
                if results.last() != Some(first) {
                    break;
                }
                std::thread::sleep(pause);
            }
            results.push(self.attempt(*address));
        }
        results
    }

    fn attempt(&self, address: SocketAddr) -> String {
        let result = match self.how {
            How::Tcp => tcp(address),
            How::Udp => udp(address, true),
            How::UdpUnconnected => udp(address, false),
            How::Sctp => tests::sctp::ask(address, PATIENCE),
        };
        match result {
            Ok(text) => format!("answer {text}"),
            Err(error) => match error.kind() {
                ErrorKind::ConnectionRefused => "refused".to_owned(),
                ErrorKind::TimedOut | ErrorKind::WouldBlock => "silent".to_owned(),
                _ => format!("error {error}"),
            },
        }
    }
}

/// Closes first, so that it is the client that keeps the pair of addresses for a while, and no server meets a new
/// client behind a masqueraded address that it still knows.
fn tcp(address: SocketAddr) -> std::io::Result<String> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    insist("the peer is", stream.peer_addr()?, address)?;
    let mut text = String::new();
    BufReader::new(stream).read_line(&mut text)?;
    Ok(text.trim_end().to_owned())
}

fn udp(address: SocketAddr, connected: bool) -> std::io::Result<String> {
    let socket = match address {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
    }?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let sent = if connected {
        socket.connect(address)?;
        socket.send(b"who")
    } else {
        socket.send_to(b"who", address)
    };
    // The kernel says so to a sender on the machine whose rules drop the datagram or refuse it. Which of the two it
    // was is told like everywhere else.
    if let Err(error) = sent
        && error.kind() != ErrorKind::PermissionDenied
    {
        return Err(error);
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
