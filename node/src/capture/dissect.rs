//! What the headers of a captured packet say, for a line of text and for finding a packet again.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::Serialize;
use trace::hop::{Flow, Protocol};

use trace::session::VXLAN_PORTS;

/// A packet's headers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Headers {
    /// Who sends to whom: of VXLAN the packet in it.
    #[serde(flatten)]
    pub flow: Flow,
    /// TCP's flags; empty for others.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub flags: String,
    /// Length in bytes from the IP header on.
    pub length: usize,
    /// Identification of IPv4; 0 of IPv6.
    #[serde(skip)]
    pub ip_id: u32,
    /// TCP: sequence number and acknowledgement. UDP: the first bytes that it carries. As `trace::hop::Header` has it.
    #[serde(skip)]
    pub numbers: (u32, u32),
    /// Where the packet's own Ethernet header begins, in bytes from the beginning of the frame.
    #[serde(skip)]
    pub ethernet: usize,
    /// The outer packet's ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wrapping: Option<Flow>,
}

impl fmt::Display for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {}", self.flow, self.flow.protocol)?;
        if !self.flags.is_empty() {
            write!(f, " {}", self.flags)?;
        }
        write!(f, ", {} bytes", self.length)?;
        match self.wrapping {
            Some(wrapping) => write!(f, "  in VXLAN {wrapping}"),
            None => Ok(()),
        }
    }
}

/// Reads an Ethernet frame. None where it is no IP, or is cut off too early.
#[must_use]
pub fn headers(frame: &[u8]) -> Option<Headers> {
    let outer = network_layer(frame, 0)?;
    let is_vxlan =
        outer.flow.protocol == Protocol::UDP && VXLAN_PORTS.contains(&outer.flow.destination.port());
    let inner = match is_vxlan {
        true => network_layer(frame, outer.payload + 8 + 8),
        false => None,
    };
    let (read, wrapping) = match inner {
        Some(inner) => (inner, Some(outer.flow)),
        None => (outer, None),
    };
    Some(Headers {
        flow: read.flow,
        flags: read.flags,
        length: read.length,
        ip_id: read.ip_id,
        numbers: read.numbers,
        ethernet: read.ethernet,
        wrapping,
    })
}

/// A network layer's header and what it says of the next one.
struct Read {
    flow: Flow,
    flags: String,
    length: usize,
    ip_id: u32,
    numbers: (u32, u32),
    ethernet: usize,
    /// Where the next header begins.
    payload: usize,
}

fn network_layer(frame: &[u8], ethernet: usize) -> Option<Read> {
    let offset = ethernet + 14;
    let half = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_be_bytes(frame.get(at..at + 4)?.try_into().ok()?));
    let (source, destination, protocol, payload, length, ip_id, is_first): (IpAddr, IpAddr, _, _, _, _, _) =
        match half(ethernet + 12)? {
            0x0800 => {
                let address = |at| Some(Ipv4Addr::from_bits(word(offset + at)?));
                let header = usize::from(frame.get(offset)? & 0x0f) * 4;
                (
                    address(12)?.into(),
                    address(16)?.into(),
                    *frame.get(offset + 9)?,
                    offset + header,
                    usize::from(half(offset + 2)?),
                    u32::from(half(offset + 4)?),
                    half(offset + 6)? & 0x1fff == 0,
                )
            }
            0x86dd => {
                let address = |at: usize| {
                    let bytes: [u8; 16] = frame.get(offset + at..offset + at + 16)?.try_into().ok()?;
                    Some(Ipv6Addr::from(bytes))
                };
                (
                    address(8)?.into(),
                    address(24)?.into(),
                    *frame.get(offset + 6)?,
                    offset + 40,
                    usize::from(half(offset + 4)?) + 40,
                    0,
                    true,
                )
            }
            _ => return None,
        };
    let protocol = Protocol(protocol);
    let has_ports = is_first && protocol.has_ports();
    let port = |at: usize| if has_ports { half(payload + at) } else { Some(0) };
    let flow = Flow {
        source: SocketAddr::new(source, port(0)?),
        destination: SocketAddr::new(destination, port(2)?),
        protocol,
    };
    let (numbers, flags) = match protocol {
        Protocol::TCP if is_first => (
            (word(payload + 4).unwrap_or(0), word(payload + 8).unwrap_or(0)),
            frame
                .get(payload + 13)
                .map_or_else(String::new, |flags| trace::hop::tcp_flags(*flags)),
        ),
        Protocol::UDP if is_first => (
            (word(payload + 8).unwrap_or(0), word(payload + 12).unwrap_or(0)),
            String::new(),
        ),
        _ => ((0, 0), String::new()),
    };
    Some(Read {
        flow,
        flags,
        length,
        ip_id,
        numbers,
        ethernet,
        payload,
    })
}

#[cfg(test)]
mod tests {
    use super::super::frames::{Packet, vxlan};
    use super::*;

    #[test]
    fn headers_are_told_of_either_version_of_ip_plain_and_within_vxlan() {
        let outer = ("192.168.77.1", "192.168.77.2");
        let rows = [
            (
                Packet::tcp("10.1.0.5:4000", "10.2.0.5:80"),
                "10.1.0.5:4000 -> 10.2.0.5:80  tcp SYN, 40 bytes",
            ),
            (
                Packet::tcp("10.1.0.5:4000", "10.2.0.5:80").with_options(8),
                "10.1.0.5:4000 -> 10.2.0.5:80  tcp SYN, 48 bytes",
            ),
            (
                Packet::udp("[fd00:1::5]:4000", "[fd00:2::5]:53", b"hello"),
                "[fd00:1::5]:4000 -> [fd00:2::5]:53  udp, 53 bytes",
            ),
            (
                Packet::icmp("10.1.0.5", "10.2.0.5"),
                "10.1.0.5 -> 10.2.0.5  icmp, 28 bytes",
            ),
        ];
        for (packet, expected) in rows {
            let frame = packet.frame();
            assert_eq!(headers(&frame).expect("headers").to_string(), expected);
            let wrapped = headers(&vxlan(outer, 8472, &frame)).expect("headers");
            let text = wrapped.to_string();
            let (inner, wrapping) = text.split_once("  in VXLAN ").expect("a wrapping");
            assert_eq!(
                (inner, wrapping),
                (expected, "192.168.77.1:50000 -> 192.168.77.2:8472")
            );
            assert_eq!(wrapped.ethernet, 14 + 20 + 8 + 8);
        }
    }

    #[test]
    fn what_is_cut_off_is_read_as_far_as_it_goes() {
        let frame = Packet::tcp("10.1.0.5:4000", "10.2.0.5:80").frame();
        for length in 0..frame.len() {
            let read = headers(&frame[..length]);
            assert_eq!(read.is_some(), length >= 14 + 20 + 4, "{length} bytes");
        }
        let wrapped = vxlan(("192.168.77.1", "192.168.77.2"), 8472, &frame);
        let cut = headers(&wrapped[..14 + 20 + 8 + 8 + 14 + 4]).expect("the wrapping");
        assert_eq!(
            cut.to_string(),
            "192.168.77.1:50000 -> 192.168.77.2:8472  udp, 90 bytes"
        );
    }
}
