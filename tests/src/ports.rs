//! Ports of loopback for programs that cannot be told to choose one and to say which.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below those of NodePorts, and below those that the kernel gives to outgoing connections: one of these may be taken
/// before the program listens, and be held for a minute after its end.
const OURS: Range<u16> = 20_000..30_000;

/// A port of 127.0.0.1 that nobody has, neither by TCP nor by UDP.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = OURS.end - OURS.start;
    // Test programs run side by side: each begins elsewhere.
    let first = u16::try_from(std::process::id() * 101 % u32::from(count)).expect("less than the count");
    let found = (0..count).find_map(|_| {
        let port = OURS.start + (first + NEXT.fetch_add(1, Ordering::Relaxed) % count) % count;
        let address = (Ipv4Addr::LOCALHOST, port);
        (TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()).then_some(port)
    });
    found.expect("a free port")
}
