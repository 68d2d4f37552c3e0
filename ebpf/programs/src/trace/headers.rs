//! What a packet's headers say. Options and extension headers are stepped over; whatever is not in the first piece of the
//! packet, or no IP, is not known.

use ebpf_common::net::{Ip, Port};
use ebpf_common::trace::{Fingerprint, Flow, Header};

use crate::kernel::{Bytes, read};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMP_V6: u8 = 58;

/// Extension headers of IPv6 that are stepped over, at the most.
const EXTENSIONS: usize = 3;

/// RFC 791 §3.1.
#[derive(Clone, Copy)]
#[repr(C)]
struct V4 {
    version_and_length: u8,
    tos: u8,
    total: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

/// RFC 8200 §3.
#[derive(Clone, Copy)]
#[repr(C)]
struct V6 {
    version_and_label: u32,
    payload: u16,
    next: u8,
    hops: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

/// The first bytes of TCP's header, and more than UDP's and ICMP's. `4 * 4 + 4 = 20 bytes`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Transport {
    ports: [u16; 2],
    first: u32,
    second: u32,
    offset: u8,
    flags: u8,
    window: u16,
    rest: u32,
}

const _: () = assert!(size_of::<V4>() == 20);
const _: () = assert!(size_of::<V6>() == 40);
const _: () = assert!(size_of::<Transport>() == 20);

/// VXLAN's header and that of the Ethernet frame behind it (RFC 7348 §5). `4 + 4 + 14 = 22 bytes`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Vxlan {
    flags: [u16; 2],
    vni: [u8; 4],
    macs: [u16; 6],
    ethertype: u16,
}

const _: () = assert!(size_of::<Vxlan>() == 22);

/// `ETH_P_IP` and `ETH_P_IPV6` in network order.
pub const V4_TYPE: u16 = 0x0800_u16.to_be();
pub const V6_TYPE: u16 = 0x86dd_u16.to_be();

/// What an IP header alone says.
pub struct Ends {
    pub source: Ip,
    pub destination: Ip,
    /// Protocol of layer 4, or an extension header of IPv6.
    pub next: u8,
}

/// Reads the IP header at the start of `bytes`, and nothing behind it; `None` where there is none.
#[inline(always)]
pub fn ends(bytes: Bytes, ethertype: u16) -> Option<Ends> {
    if ethertype == V4_TYPE {
        let ip: V4 = read(bytes.start, 0);
        let ends = Ends {
            source: Ip::v4(ip.source),
            destination: Ip::v4(ip.destination),
            next: ip.protocol,
        };
        return (ip.version_and_length >> 4 == 4).then_some(ends);
    }
    let ip: V6 = read(bytes.start, 0);
    let ends = Ends {
        source: Ip(ip.source),
        destination: Ip(ip.destination),
        next: ip.next,
    };
    (u32::from_be(ip.version_and_label) >> 28 == 6).then_some(ends)
}

/// Reads the headers at the start of `bytes`, of the version that the link layer says. Returns where the transport's header
/// begins; 0 where there is none.
#[inline(always)]
pub fn parse(bytes: Bytes, ethertype: u16, header: &mut Header) -> u64 {
    header.flow.protocol = 0;
    match ethertype {
        V4_TYPE => parse_v4(bytes, header),
        V6_TYPE => parse_v6(bytes, header),
        _ => 0,
    }
}

#[inline(always)]
fn parse_v4(bytes: Bytes, header: &mut Header) -> u64 {
    if !has(bytes, bytes.start, size_of::<V4>() as u64) {
        return 0;
    }
    let ip: V4 = read(bytes.start, 0);
    if ip.version_and_length >> 4 != 4 {
        return 0;
    }
    let length = u64::from(ip.version_and_length & 0xf) * 4;
    header.flow.source = Ip::v4(ip.source);
    header.flow.destination = Ip::v4(ip.destination);
    header.fingerprint.id = u32::from(u16::from_be(ip.id));
    header.length = u32::from(u16::from_be(ip.total));
    header.ttl = ip.ttl;
    // The transport's header is in the first fragment alone.
    let is_first = u16::from_be(ip.fragment) & 0x1fff == 0;
    parse_transport(bytes, bytes.start + length, ip.protocol, is_first, header)
}

#[inline(always)]
fn parse_v6(bytes: Bytes, header: &mut Header) -> u64 {
    if !has(bytes, bytes.start, size_of::<V6>() as u64) {
        return 0;
    }
    let ip: V6 = read(bytes.start, 0);
    if u32::from_be(ip.version_and_label) >> 28 != 6 {
        return 0;
    }
    header.flow.source = Ip(ip.source);
    header.flow.destination = Ip(ip.destination);
    header.fingerprint.id = 0;
    header.length = u32::from(u16::from_be(ip.payload)) + size_of::<V6>() as u32;
    header.ttl = ip.hops;
    let mut next = ip.next;
    let mut at = bytes.start + size_of::<V6>() as u64;
    let mut is_first = true;
    for _ in 0..EXTENSIONS {
        let extension: [u8; 4] = read(at, 0);
        match next {
            // Hop-by-hop options, routing, options of the destination.
            0 | 43 | 60 => at += (u64::from(extension[1]) + 1) * 8,
            44 => {
                at += 8;
                is_first = is_first && u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 == 0;
            }
            _ => break,
        }
        next = extension[0];
    }
    parse_transport(bytes, at, next, is_first, header)
}

#[inline(always)]
fn parse_transport(bytes: Bytes, at: u64, protocol: u8, is_first: bool, header: &mut Header) -> u64 {
    header.flow.protocol = u32::from(protocol);
    header.flow.source_port = Port(0);
    header.flow.destination_port = Port(0);
    header.tcp_flags = 0;
    header.icmp_type = 0;
    header.icmp_code = 0;
    header.fingerprint.protocol = u32::from(protocol);
    header.fingerprint.first = 0;
    header.fingerprint.second = 0;
    if !is_first || !has(bytes, at, 8) {
        return 0;
    }
    // What stands behind the packet's end is memory, and is not looked at.
    let transport: Transport = read(at, 0);
    let [source, destination] = transport.ports;
    match protocol {
        TCP if has(bytes, at, size_of::<Transport>() as u64) => {
            header.flow.source_port = Port(source);
            header.flow.destination_port = Port(destination);
            header.fingerprint.first = transport.first;
            header.fingerprint.second = transport.second;
            header.tcp_flags = transport.flags;
        }
        UDP => {
            header.flow.source_port = Port(source);
            header.flow.destination_port = Port(destination);
            if has(bytes, at, 16) {
                let carried: [u32; 2] = read(at, 8);
                header.fingerprint.first = carried[0];
                header.fingerprint.second = carried[1];
            }
        }
        ICMP | ICMP_V6 => {
            let [kind, code] = source.to_ne_bytes();
            header.icmp_type = kind;
            header.icmp_code = code;
            header.fingerprint.first = transport.first;
        }
        _ => {}
    }
    at
}

/// Unwraps what UDP's header at `at` carries; where that is an IP packet, `header` says what its headers say. Returns
/// VXLAN's network identifier.
#[inline(always)]
pub fn unwrap(bytes: Bytes, at: u64, header: &mut Header) -> u32 {
    let start = at + 8;
    let frame_bytes = size_of::<Vxlan>() as u64;
    if !has(bytes, start, frame_bytes) {
        return 0;
    }
    let vxlan: Vxlan = read(start, 0);
    let inside = Bytes {
        start: start + frame_bytes,
        end: bytes.end,
    };
    parse(inside, vxlan.ethertype, header);
    let [a, b, c, _] = vxlan.vni;
    u32::from_be_bytes([0, a, b, c])
}

/// Whether this is an error, which quotes the packet that it speaks of (RFC 792, RFC 4443 §2.1).
#[inline(always)]
pub fn is_icmp_error(header: &Header) -> bool {
    let protocol = header.flow.protocol;
    (protocol == ICMP as u32 && matches!(header.icmp_type, 3 | 11 | 12))
        || (protocol == ICMP_V6 as u32 && matches!(header.icmp_type, 1..=4))
}

/// The flow of the packet that an error at `at` quotes, as that one was sent; of protocol 0 where it is neither TCP nor UDP,
/// or has extension headers.
#[inline(always)]
pub fn quoted(bytes: Bytes, at: u64, ethertype: u16) -> Flow {
    let start = at + 8;
    let mut flow = NO_FLOW;
    let (next, ports_at) = if ethertype == V4_TYPE {
        let ip: V4 = read(start, 0);
        flow.source = Ip::v4(ip.source);
        flow.destination = Ip::v4(ip.destination);
        (ip.protocol, start + u64::from(ip.version_and_length & 0xf) * 4)
    } else {
        let ip: V6 = read(start, 0);
        flow.source = Ip(ip.source);
        flow.destination = Ip(ip.destination);
        (ip.next, start + size_of::<V6>() as u64)
    };
    if !has(bytes, ports_at, 4) || (next != TCP && next != UDP) {
        return NO_FLOW;
    }
    let [source, destination]: [u16; 2] = read(ports_at, 0);
    flow.source_port = Port(source);
    flow.destination_port = Port(destination);
    flow.protocol = u32::from(next);
    flow
}

#[inline(always)]
fn has(bytes: Bytes, at: u64, length: u64) -> bool {
    at >= bytes.start && at + length <= bytes.end
}

/// A flow without one.
pub const NO_FLOW: Flow = Flow {
    source: Ip::ANY,
    destination: Ip::ANY,
    source_port: Port(0),
    destination_port: Port(0),
    protocol: 0,
};

/// Whether two packets are one on its way.
#[inline(always)]
pub fn is_same(one: &Fingerprint, other: &Fingerprint) -> bool {
    one.id == other.id
        && one.first == other.first
        && one.second == other.second
        && one.protocol == other.protocol
}
