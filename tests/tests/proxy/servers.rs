//! What answers on the machines of the tests: `NAME CLIENT-ADDRESS`.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use tests::sctp;
use tests::topology::Host;

/// Answers on TCP until the test process ends.
pub fn serve_tcp(host: &Host, name: &'static str, at: SocketAddr) -> Result<()> {
    let listener = host.run(|| TcpListener::bind(at))??;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || greet(name, stream));
        }
    });
    Ok(())
}

/// The client closes first; one that does not is left after a while.
fn greet(name: &str, mut stream: TcpStream) {
    let Ok(peer) = stream.peer_addr() else { return };
    let _ = writeln!(stream, "{name} {}", peer.ip().to_canonical()); // the client may be gone
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    let _ = stream.read(&mut [0; 1]);
}

/// Answers on UDP until the test process ends.
pub fn serve_udp(host: &Host, name: &'static str, at: SocketAddr) -> Result<()> {
    let socket = host.run(|| UdpSocket::bind(at))??;
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let text = format!("{name} {}", peer.ip().to_canonical());
            let _ = socket.send_to(text.as_bytes(), peer); // the client may be gone
        }
    });
    Ok(())
}

/// Answers on SCTP, in both families, until the test process ends.
pub fn serve_sctp(host: &Host, name: &'static str, port: u16) -> Result<()> {
    for any in [
        IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::from(Ipv6Addr::UNSPECIFIED),
    ] {
        let socket = host.run(|| sctp::listen(any))??;
        std::thread::spawn(move || sctp::serve(&socket, any, port, |client| format!("{name} {client}")));
    }
    Ok(())
}
