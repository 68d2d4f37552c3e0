//! A name server that knows every name, and counts the questions for addresses.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use tests::topology::Host;

const HEADER: usize = 12;
/// Type A, class IN.
const ADDRESS_V4: [u8; 4] = [0, 1, 0, 1];
/// `[pointer to the question's name:2][type A:2][class IN:2][TTL 3600:4][length:2][192.0.2.1:4]`
const ANSWER: [u8; 16] = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0x0e, 0x10, 0, 4, 192, 0, 2, 1];

pub struct Upstream {
    pub address: SocketAddr,
    asked: Arc<AtomicU64>,
}

impl Upstream {
    /// Serves on a port of the host's 127.0.0.1 until the program ends.
    pub fn start(host: &Host, address: SocketAddr) -> Result<Self> {
        let socket = host.run(|| UdpSocket::bind(address))??;
        let asked = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let Some(reply) = buffer.get(..length).and_then(reply) else {
                    continue;
                };
                count.fetch_add(u64::from(reply.ends_with(&ANSWER)), Ordering::Relaxed);
                let _ = socket.send_to(&reply, from); // who asked may be gone
            }
        });
        Ok(Self { address, asked })
    }

    /// How often it was asked for an address.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

/// The address, where one is asked for; else that there is nothing (RFC 1035 §4.1).
fn reply(query: &[u8]) -> Option<Vec<u8>> {
    let name = query.get(HEADER..)?.iter().position(|byte| *byte == 0)? + 1;
    let end = HEADER + name + 4;
    let wants_address = query.get(HEADER + name..end)? == ADDRESS_V4;
    let mut reply = query.get(..end)?.to_vec();
    reply
        .get_mut(2..HEADER)?
        .copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(wants_address), 0, 0, 0, 0]);
    if wants_address {
        reply.extend(ANSWER);
    }
    Some(reply)
}
