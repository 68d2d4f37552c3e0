//! Frames that no socket would send, put on a pod's cable as they are, and what is seen on a cable.

pub use privileged::{Packet, Wire, checksum, ethernet, octets};

mod privileged {
    use std::fs::File;
    use std::io::{ErrorKind, Read, Write};
    use std::net::IpAddr;
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, bind, socket};
    use tests::topology::Host;

    /// A host's `eth0`, beneath its kernel (`AF_PACKET`).
    pub struct Wire(File);

    impl Wire {
        #[track_caller]
        pub fn of(host: &Host) -> Self {
            let open = || {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
                let addresses = nix::ifaddrs::getifaddrs()?.filter(|found| found.interface_name == "eth0");
                let mut links = addresses
                    .filter_map(|found| found.address.and_then(|address| address.as_link_addr().copied()));
                bind(socket.as_raw_fd(), &links.next().expect("it has an eth0"))?;
                nix::Result::Ok(Self(File::from(socket)))
            };
            host.run(open).expect("entered").expect("a packet socket")
        }

        #[track_caller]
        pub fn send(&mut self, frame: &[u8]) {
            self.0.write_all(frame).expect("sent");
        }

        /// The frames that came, and went, since it was asked last.
        #[track_caller]
        pub fn seen(&mut self) -> Vec<Vec<u8>> {
            let mut frames = Vec::new();
            let mut buffer = [0; 2048];
            loop {
                match self.0.read(&mut buffer) {
                    Ok(len) => frames.push(buffer[..len].to_vec()),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return frames,
                    Err(error) => panic!("read the wire: {error}"),
                }
            }
        }
    }

    /// IEEE 802.3: destination, source, type.
    pub fn ethernet(to: [u8; 6], from: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
        [&to[..], &from, &ethertype.to_be_bytes(), payload].concat()
    }

    /// An IP packet.
    #[derive(Clone, Debug)]
    pub struct Packet {
        pub source: IpAddr,
        pub destination: IpAddr,
        pub protocol: u8,
        /// What is behind the IP header.
        pub payload: Vec<u8>,
    }

    impl Packet {
        pub fn new(source: IpAddr, destination: IpAddr, protocol: u8, payload: Vec<u8>) -> Self {
            Self {
                source,
                destination,
                protocol,
                payload,
            }
        }

        pub fn udp(source: IpAddr, destination: IpAddr, port: u16, payload: &[u8]) -> Self {
            let len = u16::try_from(8 + payload.len()).expect("short");
            let mut datagram = [7012, port, len, 0].map(u16::to_be_bytes).concat();
            datagram.extend(payload);
            Self::new(source, destination, 17, datagram).with_checksum_at(6)
        }

        /// With bytes behind it (RFC 9293 §3.1 admits them).
        pub fn syn(source: IpAddr, destination: IpAddr, port: u16, payload: &[u8]) -> Self {
            let header = [7012, port, 0, 1, 0, 0, 0x5002, 1024, 0, 0];
            let segment = [&header.map(u16::to_be_bytes).concat(), payload].concat();
            Self::new(source, destination, 6, segment).with_checksum_at(16)
        }

        /// RFC 768, RFC 9293 §3.1, RFC 8200 §8.1: addresses, protocol and length stand before what is summed.
        pub fn with_checksum_at(mut self, at: usize) -> Self {
            let len = u16::try_from(self.payload.len()).expect("short");
            let sum = checksum(
                &[
                    octets(self.source),
                    octets(self.destination),
                    vec![0, self.protocol],
                    len.to_be_bytes().to_vec(),
                    self.payload.clone(),
                ]
                .concat(),
            );
            self.payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            self
        }

        pub fn ethertype(&self) -> u16 {
            match self.destination {
                IpAddr::V4(_) => 0x0800,
                IpAddr::V6(_) => 0x86dd,
            }
        }

        /// The packet as it is sent. A neighbour's word came over no router (RFC 4861 §6.1): its hop limit is 255.
        pub fn bytes(&self) -> Vec<u8> {
            let len = u16::try_from(self.payload.len()).expect("short");
            let hops = if self.protocol == 58 { 255 } else { 64 };
            let mut header = match self.destination {
                IpAddr::V4(_) => {
                    let mut header = vec![0x45, 0];
                    header.extend((len + 20).to_be_bytes());
                    header.extend([0, 0, 0, 0, hops, self.protocol, 0, 0]);
                    header
                }
                IpAddr::V6(_) => {
                    let mut header = vec![0x60, 0, 0, 0];
                    header.extend(len.to_be_bytes());
                    header.extend([self.protocol, hops]);
                    header
                }
            };
            header.extend(octets(self.source));
            header.extend(octets(self.destination));
            if self.destination.is_ipv4() {
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            header.extend(&self.payload);
            header
        }
    }

    pub fn octets(address: IpAddr) -> Vec<u8> {
        match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        }
    }

    /// RFC 1071.
    pub fn checksum(bytes: &[u8]) -> u16 {
        let words = bytes
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).expect("folded")
    }
}
