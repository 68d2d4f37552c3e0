//! Frames for tests.

use std::net::{IpAddr, SocketAddr};

/// A packet with as much as a test needs to say.
#[derive(Clone, Debug)]
pub struct Packet {
    source: SocketAddr,
    destination: SocketAddr,
    protocol: u8,
    payload: Vec<u8>,
    options: usize,
    fragment: u16,
}

impl Packet {
    fn new(from: &str, to: &str, protocol: u8) -> Self {
        Self {
            source: from.parse().expect("an end"),
            destination: to.parse().expect("an end"),
            protocol,
            payload: Vec::new(),
            options: 0,
            fragment: 0,
        }
    }

    /// A SYN.
    pub fn tcp(from: &str, to: &str) -> Self {
        let mut packet = Self::new(from, to, 6);
        // [sequence:4][acknowledgement:4][length:1][flags:1][window:2][checksum:2][urgent:2]
        packet.payload = vec![0, 0, 0, 7, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0];
        packet
    }

    pub fn udp(from: &str, to: &str, data: &[u8]) -> Self {
        let mut packet = Self::new(from, to, 17);
        let length = u16::try_from(8 + data.len()).expect("short");
        packet.payload = [&length.to_be_bytes()[..], &[0, 0], data].concat();
        packet
    }

    /// An echo request: its first bytes are no ports.
    pub fn icmp(from: &str, to: &str) -> Self {
        let mut packet = Self::new(&format!("{from}:2048"), &format!("{to}:0"), 1);
        packet.payload = vec![0; 4];
        packet
    }

    pub fn with_options(mut self, bytes: usize) -> Self {
        self.options = bytes;
        self
    }

    pub fn later_fragment(mut self) -> Self {
        self.fragment = 185;
        self
    }

    /// With an Ethernet header before it.
    pub fn frame(&self) -> Vec<u8> {
        let ports = [self.source.port(), self.destination.port()]
            .map(u16::to_be_bytes)
            .concat();
        let transport = [ports, self.payload.clone()].concat();
        let length = |more: usize| {
            u16::try_from(transport.len() + more)
                .expect("short")
                .to_be_bytes()
        };
        let mut frame = vec![2; 12];
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let words = u8::try_from(5 + self.options / 4).expect("short");
                frame.extend([0x08, 0x00, 0x40 | words, 0]);
                frame.extend(length(20 + self.options));
                frame.extend([0, 9]);
                frame.extend(self.fragment.to_be_bytes());
                frame.extend([64, self.protocol, 0, 0]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                frame.extend(std::iter::repeat_n(1, self.options));
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(length(0));
                frame.extend([self.protocol, 64]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            mixed => panic!("{mixed:?}"),
        }
        frame.extend(transport);
        frame
    }
}

/// A frame in VXLAN, between these nodes.
pub fn vxlan((from, to): (&str, &str), port: u16, frame: &[u8]) -> Vec<u8> {
    let end =
        |address: &str, port: u16| SocketAddr::new(address.parse().expect("an address"), port).to_string();
    let header = [0x08, 0, 0, 0, 0, 0, 77, 0];
    Packet::udp(&end(from, 50000), &end(to, port), &[&header[..], frame].concat()).frame()
}
