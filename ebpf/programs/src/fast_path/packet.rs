//! A TCP segment's headers, copied out of the packet and written back: `[Ethernet:14][IP:20 or 40][TCP:20…]`; and those
//! that wrap it in the tunnel's packets: `[Ethernet:14][IP:20 or 40][UDP:8][VXLAN:8]`.

use core::mem::{MaybeUninit, offset_of};

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_RECOMPUTE_CSUM, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
};
use aya_ebpf::helpers::{
    bpf_get_hash_recalc, bpf_get_prandom_u32, bpf_skb_adjust_room, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use ebpf_common::net::{Ip, Port};
use ebpf_common::pods::{Hop, Remote, Tunnel};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

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
#[repr(C, align(4))]
#[derive(Clone, Copy)]
struct Ethernet {
    pad: u16,
    destination: [u8; 6],
    source: [u8; 6],
    kind: u16,
}

impl Ethernet {
    /// As it lies in the packet.
    #[inline(always)]
    const fn words(&self) -> [u16; ETHERNET_BYTES as usize / 2] {
        // SAFETY: behind the first two bytes.
        let start = unsafe { (&raw const *self).cast::<u16>().add(1) };
        // SAFETY: so many are there.
        unsafe { start.cast::<[u16; ETHERNET_BYTES as usize / 2]>().read() }
    }
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
    /// The words of it that [`Header::hop`] may change, from its beginning.
    type Changed: Copy;
    /// How many bytes they are.
    const WRITTEN: u32 = size_of::<Self::Changed>() as u32;
    /// Whether [`Header::hop`] leaves the sum of its words as it was.
    const KEEPS_ITS_SUM: bool;
    /// Key of its tunnel in `TUNNELS`.
    const TUNNEL: u32;
    /// How `bpf_skb_adjust_room` names it around another packet.
    const AROUND: u32;

    /// How `bpf_redirect_neigh` is told who on the link it goes to.
    fn neighbour(address: Ip) -> bpf_redir_neigh;
    /// That of a UDP packet of the tunnel's to another node, of so many bytes behind it, with these two bits of congestion notification.
    fn around(tunnel: &Tunnel, to: &Remote, bytes: u32, congestion: u8) -> Self;

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
    type Changed = [u16; 6];
    const KEEPS_ITS_SUM: bool = true;
    const TUNNEL: u32 = Tunnel::V4;
    const AROUND: u32 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;

    #[inline(always)]
    fn neighbour(address: Ip) -> bpf_redir_neigh {
        let first = [address.last_word(), 0, 0, 0];
        bpf_redir_neigh {
            nh_family: AF_INET,
            __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: first },
        }
    }

    #[inline(always)]
    fn around(tunnel: &Tunnel, to: &Remote, bytes: u32, congestion: u8) -> Self {
        let mut header = Self {
            version_and_length: PLAIN_V4,
            service: congestion,
            total: ((Self::BYTES + bytes) as u16).to_be(),
            // Routers may cut it up, as they may what the device sends.
            // SAFETY: a plain helper call without arguments.
            id: unsafe { bpf_get_prandom_u32() } as u16,
            fragment: 0,
            ttl: to.hops as u8,
            protocol: IPPROTO_UDP,
            checksum: 0,
            source: tunnel.local.last_word(),
            destination: to.node.last_word(),
        };
        header.checksum = Sum::default().words(&header).complement();
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
    type Changed = [u16; 4];
    const KEEPS_ITS_SUM: bool = false;
    const TUNNEL: u32 = Tunnel::V6;
    const AROUND: u32 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV6;

    #[inline(always)]
    fn neighbour(Ip(words): Ip) -> bpf_redir_neigh {
        bpf_redir_neigh {
            nh_family: AF_INET6,
            __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: words },
        }
    }

    #[inline(always)]
    fn around(tunnel: &Tunnel, to: &Remote, bytes: u32, congestion: u8) -> Self {
        Self {
            version_and_class: (6 << 28 | u32::from(congestion) << 20).to_be(),
            payload: (bytes as u16).to_be(),
            next_header: IPPROTO_UDP,
            hop_limit: to.hops as u8,
            source: tunnel.local.0,
            destination: to.node.0,
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
    pub fn read<'a>(ctx: &TcContext, room: &'a mut Room<Self>) -> Option<&'a mut Self> {
        let segment = Self::read_at(ctx, 0, room)?;
        (!is_tagged(ctx) && is_for_the_node(ctx)).then_some(segment)
    }

    /// The same of what begins so many bytes behind the packet's begin.
    #[inline(always)]
    fn read_at<'a>(ctx: &TcContext, at: u32, room: &'a mut Room<Self>) -> Option<&'a mut Self> {
        let bytes = ETHERNET_BYTES + H::BYTES + size_of::<Tcp>() as u32 - 2;
        // SAFETY: it is a copy of the packet's bytes in integers, and that many behind the first two.
        let segment = unsafe { load(ctx, at, bytes, room) }?;
        let plain = segment.ethernet.kind == H::ETHERTYPE && segment.ip.is_plain(IPPROTO_TCP);
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
        // SAFETY: behind the first two bytes.
        let start = unsafe { (&raw const *self).cast::<u8>().add(PAD_BYTES) };
        // A device may have summed up the packet from its IP header on: what changes there is told to the sum.
        if H::KEEPS_ITS_SUM {
            // SAFETY: the Ethernet header, and the IP header behind it, are there whole; likewise below.
            return unsafe { store(ctx, 0, start, ETHERNET_BYTES + H::WRITTEN, 0) };
        }
        let ip = (&raw const self.ip).cast();
        let summed = BPF_F_RECOMPUTE_CSUM.into();
        // SAFETY: as above.
        let addressed = unsafe { store(ctx, 0, start, ETHERNET_BYTES, 0) };
        // SAFETY: as above.
        addressed && unsafe { store(ctx, ETHERNET_BYTES, ip, H::WRITTEN, summed) }
    }

    /// What of the IP header [`Segment::address`] may have changed.
    #[inline(always)]
    const fn changed(&self) -> H::Changed {
        const { assert!(size_of::<H::Changed>() <= size_of::<H>() && align_of::<H::Changed>() <= align_of::<H>()) };
        // SAFETY: the header is no shorter, as much aligned, and all integers.
        unsafe { (&raw const self.ip).cast::<H::Changed>().read() }
    }

    /// As [`Segment::forward`], in the copy alone.
    #[inline(always)]
    fn address(&mut self, to: &Hop) {
        self.ethernet.destination = to.there;
        self.ethernet.source = to.here;
        self.ip.hop();
    }
}

/// Where a copy is put together, on the program's stack: what is handed around by value is copied again, byte by byte.
pub type Room<Copied> = MaybeUninit<Copied>;

/// A copy of so many bytes of the packet, from a place in it on. `None`: it ends before.
///
/// # Safety
/// The type takes any bytes, and is two bytes and that many long, but for what alignment adds.
#[inline(always)]
unsafe fn load<'a, Copied>(
    ctx: &TcContext,
    at: u32,
    bytes: u32,
    room: &'a mut Room<Copied>,
) -> Option<&'a mut Copied> {
    let start = room.as_mut_ptr().cast::<u8>();
    // SAFETY: the type is at least two bytes long, and aligned for them.
    unsafe { start.cast::<u16>().write(0) };
    // SAFETY: behind them.
    let behind = unsafe { start.add(PAD_BYTES) };
    // SAFETY: the caller vouches for the length.
    let result = unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), at, behind.cast(), bytes) };
    // SAFETY: the first two bytes are written above, all others by the helper.
    (result == 0).then(|| unsafe { room.assume_init_mut() })
}

/// Writes so many bytes to a place in the packet. Whether it could.
///
/// # Safety
/// So many are there to read.
#[inline(always)]
unsafe fn store(ctx: &TcContext, at: u32, start: *const u8, bytes: u32, flags: u64) -> bool {
    // SAFETY: the caller vouches for the bytes.
    let result = unsafe { bpf_skb_store_bytes(ctx.skb.skb.cast(), at, start.cast(), bytes, flags) };
    result == 0
}

/// A sum of 16-bit words in one's complement, read as they lie there, two at a time: the order of the bytes, and the
/// grouping, are the same in the result (RFC 1071 §2).
#[derive(Clone, Copy, Default)]
struct Sum(u64);

impl Sum {
    /// Adds a struct, of whole words of 32 bits.
    #[inline(always)]
    fn words<Summed>(mut self, summed: &Summed) -> Self {
        const { assert!(size_of::<Summed>() % 4 == 0 && align_of::<Summed>() == 4) };
        let start = (&raw const *summed).cast::<u32>();
        let mut word = 0;
        while word < size_of::<Summed>() / 4 {
            // SAFETY: inside the struct, whose alignment is that of a word.
            self.0 += u64::from(unsafe { start.add(word).read() });
            word += 1;
        }
        self
    }

    /// Adds what TCP and UDP add for what is not in their own headers (RFC 9293 §3.1, RFC 8200 §8.1).
    #[inline(always)]
    fn pseudo_header(self, (source, destination): (Ip, Ip), protocol: u8, bytes: u32) -> Self {
        let rest = u32::from(protocol) + bytes;
        self.words(&source)
            .words(&destination)
            // What IPv4 addresses are mapped with is one word of all ones, which adds nothing.
            .words(&rest.to_be())
    }

    /// What makes the sum of everything all ones.
    #[inline(always)]
    fn complement(self) -> u16 {
        let halves = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let words = (halves & 0xffff) + (halves >> 16 & 0xffff) + (halves >> 32);
        let once = (words & 0xffff) + (words >> 16);
        !((once & 0xffff) + (once >> 16)) as u16
    }
}

/// The headers around a segment in the tunnel. What another machine's stack cut up is put together here with its
/// wrapping, and left to the stack; so is what will be cut up here.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Wrapping<H: Header> {
    ethernet: Ethernet,
    ip: H,
    udp: Udp,
    vxlan: Vxlan,
}

/// RFC 768.
#[repr(C, align(4))]
#[derive(Clone, Copy)]
struct Udp {
    source: u16,
    destination: u16,
    length: u16,
    checksum: u16,
}

/// RFC 7348 §5.
#[repr(C)]
#[derive(Clone, Copy)]
struct Vxlan {
    flags: u32,
    network: u32,
}

/// All that is written to wrap a segment, as it lies in the packet behind the underlay's MAC addresses: one piece.
#[repr(C)]
struct Written<H: Header> {
    ip: H,
    udp: Udp,
    vxlan: Vxlan,
    ethernet: [u16; ETHERNET_BYTES as usize / 2],
    /// The beginning of the inner IP header.
    inner: H::Changed,
}

impl<H: Header> Wrapping<H> {
    /// What is around the segment's own frame, behind the packet's first MAC addresses.
    const BYTES: u32 = H::BYTES + 8 + 8 + ETHERNET_BYTES;

    /// The address that sent it, and the segment in it. None for what is not surely for the tunnel's device, or holds
    /// something else.
    #[inline(always)]
    pub fn read<'a>(
        ctx: &TcContext,
        tunnel: &Tunnel,
        room: &'a mut Room<Segment<H>>,
    ) -> Option<(Ip, &'a mut Segment<H>)> {
        let mut around = Room::uninit();
        let bytes = ETHERNET_BYTES + H::BYTES + 8 + 8;
        // SAFETY: as in `Segment::read_at`.
        let wrapping: &mut Self = unsafe { load(ctx, 0, bytes, &mut around) }?;
        if wrapping.udp.destination != tunnel.port.0
            || wrapping.vxlan.flags != VXLAN_PLAIN
            || wrapping.vxlan.network != tunnel.vni
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
        let segment = Segment::read_at(ctx, Self::BYTES, room)?;
        (segment.ethernet.destination == tunnel.mac).then_some((source, segment))
    }

    /// Makes of the segment what its node's tunnel would send to another node: addressed to the next hop, and wrapped.
    /// What the underlay's own addresses are is open. `None`: it is as it was. Whether all of it is written.
    #[inline(always)]
    pub fn put_around(
        ctx: &TcContext,
        segment: &mut Segment<H>,
        tunnel: &Tunnel,
        to: &Remote,
    ) -> Option<bool> {
        let inner_bytes = ETHERNET_BYTES + H::BYTES + segment.ip.payload_bytes();
        // Behind the end of an IP packet a frame may go on; that is the device's to sum up.
        if gso_bytes(ctx) != 0 || ctx.len() != inner_bytes {
            return None;
        }
        let port = tunnel.source_port(hash(ctx));
        // `BPF_F_ADJ_ROOM_ENCAP_L2`: how long the frame's own header is, in the highest byte.
        let flags = u64::from(H::AROUND | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH)
            | u64::from(ETHERNET_BYTES) << 56;
        // SAFETY: a plain helper call; copies of headers are this program's own.
        let result =
            unsafe { bpf_skb_adjust_room(ctx.skb.skb.cast(), Self::BYTES as i32, BPF_ADJ_ROOM_MAC, flags) };
        if result != 0 {
            return None;
        }
        segment.address(&to.hop);
        let udp_bytes = 8 + 8 + inner_bytes;
        let congestion = match segment.ip.congestion() {
            CONGESTION => CAPABLE,
            other => other,
        };
        let udp = Udp {
            source: port.0,
            destination: tunnel.port.0,
            length: (udp_bytes as u16).to_be(),
            checksum: 0,
        };
        let vxlan = Vxlan {
            flags: VXLAN_PLAIN,
            network: tunnel.vni,
        };
        let mut written = Written {
            ip: H::around(tunnel, to, udp_bytes, congestion),
            udp,
            vxlan,
            ethernet: segment.ethernet.words(),
            inner: segment.changed(),
        };
        written.udp.checksum = written.checksum(segment, udp_bytes);
        let (start, bytes) = ((&raw const written).cast(), Self::BYTES + H::WRITTEN);
        // SAFETY: it is as long, without a gap (asserted below).
        Some(unsafe { store(ctx, ETHERNET_BYTES, start, bytes, BPF_F_RECOMPUTE_CSUM.into()) })
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

impl<H: Header> Written<H> {
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
            .words(&self.udp)
            .words(&self.vxlan)
            // Two bytes of zeros are in front.
            .words(&segment.ethernet)
            .words(&segment.ip)
            .complement();
        // None at all is said by zero (RFC 768).
        if checksum == 0 { u16::MAX } else { checksum }
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

/// The packet's mark.
#[inline(always)]
pub fn mark(ctx: &TcContext) -> u32 {
    // SAFETY: as in `gso_bytes`.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).mark) }
}

/// Marks the packet.
#[inline(always)]
pub fn set_mark(ctx: &TcContext, mark: u32) {
    // SAFETY: as in `gso_bytes`; programs of tc may write this one.
    unsafe { core::ptr::write_volatile(&raw mut (*ctx.skb.skb).mark, mark) };
}

const _: () = assert!(size_of::<Ethernet>() == 16);
const _: () = assert!(size_of::<Tcp>() == 16);
const _: () = assert!(size_of::<Segment<V4>>() == 52);
const _: () = assert!(size_of::<Segment<V6>>() == 72);
const _: () = assert!(size_of::<Wrapping<V4>>() == 52);
const _: () = assert!(size_of::<Wrapping<V6>>() == 72);
const _: () = assert!(offset_of!(Written<V4>, inner) as u32 == Wrapping::<V4>::BYTES);
const _: () = assert!(offset_of!(Written<V6>, inner) as u32 == Wrapping::<V6>::BYTES);
