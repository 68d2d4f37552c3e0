//! Whether packets as large as a device takes them arrive, or vanish on their way without a word.
//!
//! A datagram to a port at which nobody listens is answered ("port unreachable"), which the kernel tells a connected
//! socket (RFC 1122 §4.1.3.3). So a small one and a large one that may not be cut up (`IP_PMTUDISC_PROBE`: what the
//! kernel has learned of the way does not count) tell who is there, and what passes. No right is needed.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::thread::sleep;
use std::time::Duration;

use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};

/// Where traceroute(8) finds nobody.
const PORT: u16 = 33_434;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_millis(200);

/// Hosts answer six such datagrams at once, and one each second then (`icmp_ratelimit`). After this time one more is
/// answered, so that silence says something.
const BETWEEN: Duration = Duration::from_millis(1_100);

/// How often a large one must vanish after that time, and a small one arrive after it once more.
const ROUNDS: usize = 2;

/// Headers of IP and UDP.
const HEADERS_V4: usize = 20 + 8;
const HEADERS_V6: usize = 40 + 8;

/// What arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// Large ones too.
    Large,
    /// Small ones alone: large ones vanish.
    SmallAlone,
    /// A host on the way, or this one, says that they are too large.
    TooLarge,
    /// Nobody answers; nothing is known.
    Unknown,
}

/// Sends small datagrams, and some of `bytes`, IP header included, from this thread's network namespace. Takes
/// milliseconds where they arrive, and five seconds where they do not.
///
/// # Errors
/// When there is no such socket, or the kernel does not send.
pub fn probe(to: IpAddr, bytes: usize) -> io::Result<Passes> {
    let headers = if to.is_ipv4() { HEADERS_V4 } else { HEADERS_V6 };
    let (small, large) = ([0; 1], vec![0; bytes.saturating_sub(headers)]);
    let is_answered = |payload: &[u8]| answered(&socket_to(to)?, payload);
    // The first one may have to wait for a neighbour.
    if is_answered(&small)? != Some(true) && is_answered(&small)? != Some(true) {
        return Ok(Passes::Unknown);
    }
    match is_answered(&large)? {
        Some(true) => return Ok(Passes::Large),
        None => return Ok(Passes::TooLarge),
        Some(false) => {}
    }
    for _ in 0..ROUNDS {
        sleep(BETWEEN);
        match is_answered(&large)? {
            Some(true) => return Ok(Passes::Large),
            None => return Ok(Passes::TooLarge),
            Some(false) => {}
        }
        sleep(BETWEEN);
        if is_answered(&small)? != Some(true) {
            return Ok(Passes::Unknown);
        }
    }
    Ok(Passes::SmallAlone)
}

/// Each datagram has a socket of its own: an answer that is late is not taken for the next one's.
fn socket_to(to: IpAddr) -> io::Result<UdpSocket> {
    let socket = match to {
        IpAddr::V4(_) => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
            socket
        }
        IpAddr::V6(_) => {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
            set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?;
            socket
        }
    };
    socket.connect((to, PORT))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Whether a datagram is answered; none where it is too large for somebody who says so.
fn answered(socket: &UdpSocket, payload: &[u8]) -> io::Result<Option<bool>> {
    let heard = socket.send(payload).and_then(|_| socket.recv(&mut [0; 1]));
    match heard {
        // Somebody listens there, and answers.
        Ok(_) => Ok(Some(true)),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Ok(Some(true)),
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(Some(false)),
            _ if error.raw_os_error() == Some(libc::EMSGSIZE) => Ok(None),
            // Another answer than that of the host itself: no route, administratively prohibited.
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::PermissionDenied => {
                Ok(Some(false))
            }
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::thread::scope;

    use super::*;

    /// Somebody behind a long way, where what is large vanishes.
    fn answer_late(server: &UdpSocket) {
        scope(|scope| {
            let mut datagram = [0; 2_048];
            // The first one waits for a neighbour, too.
            let mut late = PATIENCE * 3 / 2;
            while let Ok((bytes, client)) = server.recv_from(&mut datagram) {
                if bytes == 1 {
                    scope.spawn(move || {
                        sleep(late);
                        // Nobody may be there any more.
                        let _sent = server.send_to(&[0], client);
                    });
                    late = PATIENCE * 5 / 4;
                }
            }
        });
    }

    #[test]
    fn a_late_answer_to_one_datagram_proves_nothing_of_the_next() {
        let here = Ipv4Addr::new(127, 0, 33, 1);
        let server = UdpSocket::bind((here, PORT)).expect("bound");
        server.set_read_timeout(Some(4 * PATIENCE)).expect("set");
        let found = scope(|scope| {
            scope.spawn(|| answer_late(&server));
            probe(here.into(), 1_500)
        });
        assert_eq!(found.expect("sent"), Passes::Unknown);
    }
}
