//! A TCP segment's headers, copied out of the packet and written back: `[Ethernet:14][IP:20 or 40][TCP:20…]`; and those
//! that wrap it in the tunnel's packets: `[Ethernet:14][IP:20 or 40][UDP:8][VXLAN:8]`.

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_RECOMPUTE_CSUM,
};
use aya_ebpf::helpers::{
    bpf_get_hash_recalc, bpf_get_prandom_u32, bpf_skb_adjust_room, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use ebpf_common::net::{Ip, Port};
use ebpf_common::pods::{Hop, Tunnel};

const ETHERNET_BYTES: u32 = 14;
const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
const ETHERTYPE_IPV6: u16 = 0x86dd_u16.to_be();
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// Both bits of explicit congestion notification: CE.
const CONGESTION: u8 = 0b11;
/// What a packet says that is sent around such a one: that its ends would notice (ECT(0); `INET_ECN_encapsulate` in
/// include/net/inet_ecn.h).
const CAPABLE: u8 = 0b10;

/// `ip_default_ttl` and `hop_limit` as kernels have them at first.
const HOPS: u8 = 64;

/// The header has a network identifier, and nothing else (RFC 7348 §5).
const VXLAN_PLAIN: u32 = 0x0800_0000_u32.to_be();

/// Version 4, five words: a header without options.
const PLAIN_V4: u8 = 0x45;
/// Don't-fragment and the reserved bit may be set, no other: no fragment.
const FRAGMENT_BITS: u16 = 0x3fff_u16.to_be();

/// Where the copy of a packet begins in its struct: two bytes in, so that the IP header is aligned.
const PAD_BYTES: usize = 2;

const FIN_SYN_RST_ACK: u8 = 0x17;
const RST: u8 = 0x04;
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;

/// `[pad:2][dst:6][src:6][type:2 be] = 16 bytes`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ethernet {
    pad: u16,
    destination: [u8; 6],
    source: [u8; 6],
    kind: u16,
}

/// The first 14 bytes of a TCP header (RFC 9293 §3.1).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tcp {
    source_port: u16,
    destination_port: u16,
    sequence: u32,
    acknowledgment: u32,
    data_offset: u8,
    flags: u8,
}

/// What a segment says about its connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Says {
    /// It begins.
    Open,
    /// The SYN is answered.
    Answer,
    /// It ends at once.
    Reset,
    /// It goes on.
    Data,
}

impl Tcp {
    #[inline(always)]
    pub fn says(&self) -> Says {
        if self.flags & RST != 0 {
            return Says::Reset;
        }
        match self.flags & FIN_SYN_RST_ACK {
            SYN => Says::Open,
            SYN_ACK => Says::Answer,
            _ => Says::Data,
        }
    }

    #[inline(always)]
    pub fn ports(&self) -> (Port, Port) {
        (Port(self.source_port), Port(self.destination_port))
    }

    #[inline(always)]
    fn bytes(&self) -> u32 {
        u32::from(self.data_offset >> 4) * 4
    }
}

/// An IP header of a version.
pub trait Header: Copy {
    /// `ETH_P_IP` or `ETH_P_IPV6`, in network order.
    const ETHERTYPE: u16;
    /// Its size where nothing stands between it and TCP.
    const BYTES: u32;
    /// Bytes of it that [`Header::hop`] may change, from its beginning.
    const WRITTEN: u32;
    /// Key of its tunnel in `TUNNELS`.
    const TUNNEL: u32;
    /// How `bpf_skb_adjust_room` names it around another packet.
    const AROUND: u32;

    /// That of a UDP packet of so many bytes behind it, with these two bits of congestion notification.
    fn around(source: Ip, destination: Ip, bytes: u32, congestion: u8) -> Self;

    /// No options, no extension headers, no fragment, this protocol.
    fn is_plain(&self, protocol: u8) -> bool;
    /// Source and destination.
    fn addresses(&self) -> (Ip, Ip);
    /// How many bytes are behind it.
    fn payload_bytes(&self) -> u32;
    /// The two bits of congestion notification (RFC 3168 §5).
    fn congestion(&self) -> u8;
    /// How many hops it may go on, this one included.
    fn hops_left(&self) -> u8;
    /// One hop less, as a router does it.
    fn hop(&mut self);
}

/// RFC 791 §3.1.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct V4 {
    version_and_length: u8,
    service: u8,
    total: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

impl Header for V4 {
    const ETHERTYPE: u16 = ETHERTYPE_IPV4;
    const BYTES: u32 = 20;
    const WRITTEN: u32 = 12;
    const TUNNEL: u32 = Tunnel::V4;
    const AROUND: u32 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;

    #[inline(always)]
    fn around(source: Ip, destination: Ip, bytes: u32, congestion: u8) -> Self {
        let mut header = Self {
            version_and_length: PLAIN_V4,
            service: congestion,
            total: ((Self::BYTES + bytes) as u16).to_be(),
            // Routers may cut it up, as they may what the device sends.
            // SAFETY: a plain helper call without arguments.
            id: unsafe { bpf_get_prandom_u32() } as u16,
            fragment: 0,
            ttl: HOPS,
            protocol: IPPROTO_UDP,
            checksum: 0,
            source: source.last_word(),
            destination: destination.last_word(),
        };
        header.checksum = Sum::default().words(&header, 0).complement();
        header
    }

    #[inline(always)]
    fn is_plain(&self, protocol: u8) -> bool {
        self.version_and_length == PLAIN_V4 && self.fragment & FRAGMENT_BITS == 0 && self.protocol == protocol
    }

    #[inline(always)]
    fn addresses(&self) -> (Ip, Ip) {
        (Ip::v4(self.source), Ip::v4(self.destination))
    }

    #[inline(always)]
    fn payload_bytes(&self) -> u32 {
        u32::from(u16::from_be(self.total)).wrapping_sub(Self::BYTES)
    }

    #[inline(always)]
    fn congestion(&self) -> u8 {
        self.service & CONGESTION
    }

    #[inline(always)]
    fn hops_left(&self) -> u8 {
        self.ttl
    }

    #[inline(always)]
    fn hop(&mut self) {
        self.ttl -= 1;
        // The sum of 16-bit words, one's complement: the TTL is the high byte of its word (RFC 1624, RFC 1141).
        let sum = u32::from(u16::from_be(self.checksum)) + 0x0100;
        self.checksum = ((sum + (sum >> 16)) as u16).to_be();
    }
}

/// RFC 8200 §3.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct V6 {
    version_and_class: u32,
    payload: u16,
    next_header: u8,
    hop_limit: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

impl Header for V6 {
    const ETHERTYPE: u16 = ETHERTYPE_IPV6;
    const BYTES: u32 = 40;
    const WRITTEN: u32 = 8;
    const TUNNEL: u32 = Tunnel::V6;
    const AROUND: u32 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV6;

    #[inline(always)]
    fn around(source: Ip, destination: Ip, bytes: u32, congestion: u8) -> Self {
        Self {
            version_and_class: (6 << 28 | u32::from(congestion) << 20).to_be(),
            payload: (bytes as u16).to_be(),
            next_header: IPPROTO_UDP,
            hop_limit: HOPS,
            source: source.0,
            destination: destination.0,
        }
    }

    #[inline(always)]
    fn is_plain(&self, protocol: u8) -> bool {
        self.next_header == protocol
    }

    #[inline(always)]
    fn addresses(&self) -> (Ip, Ip) {
        (Ip(self.source), Ip(self.destination))
    }

    #[inline(always)]
    fn payload_bytes(&self) -> u32 {
        u16::from_be(self.payload).into()
    }

    #[inline(always)]
    fn congestion(&self) -> u8 {
        (u32::from_be(self.version_and_class) >> 20) as u8 & CONGESTION
    }

    #[inline(always)]
    fn hops_left(&self) -> u8 {
        self.hop_limit
    }

    #[inline(always)]
    fn hop(&mut self) {
        self.hop_limit -= 1;
    }
}

/// The headers of a segment.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Segment<H: Header> {
    ethernet: Ethernet,
    pub ip: H,
    pub tcp: Tcp,
}

impl<H: Header> Segment<H> {
    /// None for what is not a plain TCP segment of this version of IP.
    #[inline(always)]
    pub fn read(ctx: &TcContext) -> Option<Self> {
        let segment = Self::read_at(ctx, 0)?;
        (!is_tagged(ctx) && is_for_the_node(ctx)).then_some(segment)
    }

    /// The same of what begins so many bytes behind the packet's begin.
    #[inline(always)]
    fn read_at(ctx: &TcContext, at: u32) -> Option<Self> {
        let mut segment = core::mem::MaybeUninit::<Self>::zeroed();
        let bytes = ETHERNET_BYTES + H::BYTES + size_of::<Tcp>() as u32 - 2;
        // SAFETY: the struct is two bytes longer in front than what is written here, and the helper writes all or
        // nothing.
        let result = unsafe {
            let start = segment.as_mut_ptr().cast::<u8>().add(PAD_BYTES);
            bpf_skb_load_bytes(ctx.skb.skb.cast(), at, start.cast(), bytes)
        };
        // SAFETY: all zero, or overwritten by the packet's bytes; integers take any.
        let segment = unsafe { segment.assume_init() };
        let plain = result == 0 && segment.ethernet.kind == H::ETHERTYPE && segment.ip.is_plain(IPPROTO_TCP);
        plain.then_some(segment)
    }

    /// The largest IP packet that this is, or that it will be cut into, in bytes.
    #[inline(always)]
    pub fn packet_bytes(&self, ctx: &TcContext) -> u32 {
        match gso_bytes(ctx) {
            0 => ctx.len() - ETHERNET_BYTES,
            bytes => H::BYTES + self.tcp.bytes() + bytes,
        }
    }

    /// The MAC address that the frame is from.
    #[inline(always)]
    pub fn sender(&self) -> &[u8; 6] {
        &self.ethernet.source
    }

    /// Addresses the packet to the next hop as the node's stack would. Whether it could.
    #[inline(always)]
    pub fn forward(&mut self, ctx: &TcContext, to: &Hop) -> bool {
        self.address(to);
        // A device may have summed up the packet from its IP header on: what changes there is told to the sum.
        store(ctx, 0, self, 0, ETHERNET_BYTES, 0)
            && store(
                ctx,
                ETHERNET_BYTES,
                self,
                ETHERNET_BYTES,
                H::WRITTEN,
                BPF_F_RECOMPUTE_CSUM.into(),
            )
    }

    /// As [`Segment::forward`], in the copy alone.
    #[inline(always)]
    fn address(&mut self, to: &Hop) {
        self.ethernet.destination = to.there;
        self.ethernet.source = to.here;
        self.ip.hop();
    }
}

/// Writes so many bytes of the copy of a frame, from a place in it on, to a place in the packet. Whether it could.
#[inline(always)]
fn store<Copied>(ctx: &TcContext, at: u32, copied: &Copied, from: u32, bytes: u32, flags: u64) -> bool {
    // SAFETY: the struct holds as many bytes after its first two: the callers are here, and read no further.
    let result = unsafe {
        let start = (&raw const *copied).cast::<u8>().add(PAD_BYTES + from as usize);
        bpf_skb_store_bytes(ctx.skb.skb.cast(), at, start.cast(), bytes, flags)
    };
    result == 0
}

/// A sum of 16-bit words in one's complement, read as they lie there: the order of the bytes is the same in the result
/// (RFC 1071 §2).
#[derive(Clone, Copy, Default)]
struct Sum(u64);

impl Sum {
    /// Adds what there is of a struct from a byte on.
    #[inline(always)]
    fn words<Summed>(mut self, summed: &Summed, from: usize) -> Self {
        let start = (&raw const *summed).cast::<u16>();
        let mut word = from / 2;
        while word < size_of::<Summed>() / 2 {
            // SAFETY: inside the struct, whose alignment is that of a word at least.
            self.0 += u64::from(unsafe { start.add(word).read() });
            word += 1;
        }
        self
    }

    /// Adds what TCP and UDP add for what is not in their own headers (RFC 9293 §3.1, RFC 8200 §8.1).
    #[inline(always)]
    fn pseudo_header(self, (source, destination): (Ip, Ip), protocol: u8, bytes: u32) -> Self {
        let rest = u32::from(protocol) + bytes;
        self.words(&source, 0)
            .words(&destination, 0)
            // What IPv4 addresses are mapped with is one word of all ones, which adds nothing.
            .words(&rest.to_be(), 0)
    }

    /// What makes the sum of everything all ones.
    #[inline(always)]
    fn complement(self) -> u16 {
        let once = (self.0 & 0xffff) + (self.0 >> 16);
        let twice = (once & 0xffff) + (once >> 16);
        !((twice & 0xffff) + (twice >> 16)) as u16
    }
}

/// The headers around a segment in the tunnel. What another machine's stack cut up is put together here with its
/// wrapping, and left to the stack; so is what will be cut up here.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Wrapping<H: Header> {
    ethernet: Ethernet,
    ip: H,
    udp_source: u16,
    udp_destination: u16,
    udp_length: u16,
    udp_checksum: u16,
    vxlan_flags: u32,
    vxlan_network: u32,
}

impl<H: Header> Wrapping<H> {
    /// What is around the segment's own frame, behind the packet's first MAC addresses.
    const BYTES: u32 = H::BYTES + 8 + 8 + ETHERNET_BYTES;

    /// The address that sent it, and the segment in it. None for what is not surely for the tunnel's device, or holds
    /// something else.
    #[inline(always)]
    pub fn read(ctx: &TcContext, tunnel: &Tunnel) -> Option<(Ip, Segment<H>)> {
        let mut wrapping = core::mem::MaybeUninit::<Self>::zeroed();
        // SAFETY: as in `Segment::read_at`.
        let result = unsafe {
            let start = wrapping.as_mut_ptr().cast::<u8>().add(PAD_BYTES);
            let bytes = ETHERNET_BYTES + H::BYTES + 8 + 8;
            bpf_skb_load_bytes(ctx.skb.skb.cast(), 0, start.cast(), bytes)
        };
        // SAFETY: likewise.
        let wrapping = unsafe { wrapping.assume_init() };
        if result != 0
            || wrapping.udp_destination != tunnel.port.0
            || wrapping.vxlan_flags != VXLAN_PLAIN
            || wrapping.vxlan_network != tunnel.vni
            || wrapping.ethernet.kind != H::ETHERTYPE
            || !wrapping.ip.is_plain(IPPROTO_UDP)
            || is_tagged(ctx)
            || !is_for_the_node(ctx)
            || gso_bytes(ctx) != 0
            // Only the stack tells the inner packet of it (RFC 6040).
            || wrapping.ip.congestion() == CONGESTION
        {
            return None;
        }
        let (source, destination) = wrapping.ip.addresses();
        if destination != tunnel.local {
            return None;
        }
        let segment = Segment::read_at(ctx, Self::BYTES)?;
        (segment.ethernet.destination == tunnel.mac).then_some((source, segment))
    }

    /// Makes of the segment what its node's tunnel would send to another node: addressed to the next hop, and wrapped.
    /// What the underlay's own addresses are is open. `None`: it is as it was. Whether all of it is written.
    #[inline(always)]
    pub fn put_around(
        ctx: &TcContext,
        segment: &mut Segment<H>,
        to: &Hop,
        tunnel: &Tunnel,
        node: Ip,
    ) -> Option<bool> {
        let inner_bytes = ETHERNET_BYTES + H::BYTES + segment.ip.payload_bytes();
        // Behind the end of an IP packet a frame may go on; that is the device's to sum up.
        if gso_bytes(ctx) != 0 || ctx.len() != inner_bytes {
            return None;
        }
        let port = tunnel.source_port(hash(ctx));
        // `BPF_F_ADJ_ROOM_ENCAP_L2`: how long the frame's own header is, in the highest byte.
        let room = u64::from(H::AROUND | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH)
            | u64::from(ETHERNET_BYTES) << 56;
        // SAFETY: a plain helper call; copies of headers are this program's own.
        let result =
            unsafe { bpf_skb_adjust_room(ctx.skb.skb.cast(), Self::BYTES as i32, BPF_ADJ_ROOM_MAC, room) };
        if result != 0 {
            return None;
        }
        segment.address(to);
        let udp_bytes = 8 + 8 + inner_bytes;
        let congestion = match segment.ip.congestion() {
            CONGESTION => CAPABLE,
            other => other,
        };
        let mut wrapping = Self {
            ethernet: segment.ethernet,
            ip: H::around(tunnel.local, node, udp_bytes, congestion),
            udp_source: port.0,
            udp_destination: tunnel.port.0,
            udp_length: (udp_bytes as u16).to_be(),
            udp_checksum: 0,
            vxlan_flags: VXLAN_PLAIN,
            vxlan_network: tunnel.vni,
        };
        wrapping.udp_checksum = wrapping.checksum(segment, udp_bytes);
        let flags = BPF_F_RECOMPUTE_CSUM.into();
        let header = H::BYTES + 8 + 8;
        let written = store(ctx, ETHERNET_BYTES, &wrapping, ETHERNET_BYTES, header, flags)
            && store(ctx, Self::BYTES, segment, 0, ETHERNET_BYTES + H::WRITTEN, flags);
        Some(written)
    }

    /// UDP's, without a look at the payload: with its own checksum right, or to be filled in by a device, a TCP segment
    /// adds up to the opposite of its pseudo header (local checksum offload,
    /// Documentation/networking/checksum-offloads.rst).
    #[inline(always)]
    fn checksum(&self, segment: &Segment<H>, udp_bytes: u32) -> u16 {
        let tcp = Sum::default()
            .pseudo_header(segment.ip.addresses(), IPPROTO_TCP, segment.ip.payload_bytes())
            .complement();
        let checksum = Sum(tcp.into())
            .pseudo_header(self.ip.addresses(), IPPROTO_UDP, udp_bytes)
            .words(self, PAD_BYTES + (ETHERNET_BYTES + H::BYTES) as usize)
            .words(&segment.ethernet, PAD_BYTES)
            .words(&segment.ip, 0)
            .complement();
        // None at all is said by zero (RFC 768).
        if checksum == 0 { u16::MAX } else { checksum }
    }

    /// How many bytes the IP packet in it has.
    #[inline(always)]
    pub fn packet_bytes(ctx: &TcContext) -> u32 {
        ctx.len() - ETHERNET_BYTES - Self::BYTES
    }

    /// Takes it off: the frame in it remains. Whether it could.
    #[inline(always)]
    pub fn take_off(ctx: &TcContext) -> bool {
        // The kernel forgets that the checksum of the outer packet was right, which says nothing of the inner one's.
        // SAFETY: a plain helper call; copies of headers are this program's own.
        let result =
            unsafe { bpf_skb_adjust_room(ctx.skb.skb.cast(), -(Self::BYTES as i32), BPF_ADJ_ROOM_MAC, 0) };
        result == 0
    }
}

/// How long the segments are that the packet will be cut into; 0 where it will not.
#[inline(always)]
fn gso_bytes(ctx: &TcContext) -> u32 {
    // SAFETY: the context pointer is valid for the call; the verifier rewrites the load, which must be a whole word.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).gso_size) }
}

/// What is the same for all packets of a connection, and differs between connections.
#[inline(always)]
fn hash(ctx: &TcContext) -> u32 {
    // SAFETY: a plain helper call on the context.
    unsafe { bpf_get_hash_recalc(ctx.skb.skb.cast()) }
}

/// Whether the frame is one of a VLAN: its tag is beside the packet, not in it.
#[inline(always)]
fn is_tagged(ctx: &TcContext) -> bool {
    // SAFETY: as in `gso_bytes`.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).vlan_present) != 0 }
}

/// Whether the frame is addressed to the device that it came in by (`PACKET_HOST`): the stack takes no other.
#[inline(always)]
fn is_for_the_node(ctx: &TcContext) -> bool {
    // SAFETY: as in `gso_bytes`.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).pkt_type) == 0 }
}

/// Which version of IP the frame says that it carries, in network order.
#[inline(always)]
pub fn protocol(ctx: &TcContext) -> u16 {
    // SAFETY: as in `gso_bytes`.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).protocol) as u16 }
}

/// The index of the device that the packet came in by.
#[inline(always)]
pub fn device(ctx: &TcContext) -> u32 {
    // SAFETY: as in `gso_bytes`.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).ifindex) }
}

const _: () = assert!(size_of::<Ethernet>() == 16);
const _: () = assert!(size_of::<Tcp>() == 16);
const _: () = assert!(size_of::<Segment<V4>>() == 52);
const _: () = assert!(size_of::<Segment<V6>>() == 72);
const _: () = assert!(size_of::<Wrapping<V4>>() == 52);
const _: () = assert!(size_of::<Wrapping<V6>>() == 72);
