//! What the programs that count packets are told when they are loaded, and what they count. As with [`crate::trace`], they
//! live as long as the process that loaded them: nothing here is pinned, and nothing here is part of [`crate::LAYOUT`].
//!
//! ```text
//! written by the host side, before the programs are loaded
//! OFFSETS  where the kernel's structures have their fields ([`crate::trace::Offsets`])    global
//! BY_FLOW  1: drops are told apart by the sender's port too                               global
//! TUNNELS  UDP ports whose packets carry others: those are counted                        global
//! LOCAL    an address of a network namespace → 1, for flows                                hash
//! written by the programs
//! DROPS    who lost a packet, where and why → how many    LRU
//! FLOWS    who sends to whom → how many                  LRU
//! NATS     a connection as it began → as it goes on      LRU
//! TOTALS   all packets that were counted, by kind: what an entry of an LRU that was forgotten had is told by them
//! ```

use crate::net::{Ip, Port};

/// Key of `DROPS`: packets that are dropped alike.
/// `[location:8][source:16 be][destination:16 be][netns:4][ifindex:4][reason:4][source_port:2 be][destination_port:2 be]
/// [ethertype:2 be][protocol:1][opens:1][wrapped:4] = 64 bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct DropKey {
    /// Where in the kernel.
    pub location: u64,
    /// The sender; [`Ip::ANY`] where it is no IP packet.
    pub source: Ip,
    /// The receiver.
    pub destination: Ip,
    /// Inode number of the network namespace; 0: not known.
    pub netns: u32,
    /// Index of the device; 0: none.
    pub ifindex: u32,
    /// `enum skb_drop_reason`.
    pub reason: u32,
    /// The sender's port, by flow alone.
    pub source_port: Port,
    /// The receiver's port; 0 where the protocol has none.
    pub destination_port: Port,
    /// What the link layer says that it carries, in network order; 0: it comes from no link (unix, netlink).
    pub ethertype: u16,
    /// Protocol of layer 4.
    pub protocol: u8,
    /// 1: it is the first packet of a TCP connection.
    pub opens: u8,
    /// 1: it was within a packet of a tunnel, and all of this but the place is its own.
    pub wrapped: u32,
}

/// Value of `DROPS`. `[4*8][device:16] = 48 bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DropCount {
    /// How many packets.
    pub packets: u64,
    /// How many bytes they had, from the IP header on where they have one.
    pub bytes: u64,
    /// When the first was dropped, in nanoseconds since boot, suspend included.
    pub first: u64,
    /// When the last was.
    pub last: u64,
    /// The device's name, zeroes behind it.
    pub device: [u8; 16],
}

/// Key of `LOCAL`. `[netns:4][address:16 be] = 20 bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Local {
    /// Inode number of the network namespace.
    pub netns: u32,
    /// An address that it has.
    pub address: Ip,
}

/// Value of `FLOWS`, whose key is a [`crate::trace::Flow`]: packets where they are sent, and where they are received.
/// `[6*8][cookie:8][sender:4][receiver:4][tcp flags:4][sent by:4][received by:4][pad:4] = 80 bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowCount {
    /// Packets that a socket of this machine sent, at the first device.
    pub sent_packets: u64,
    /// Their bytes from the IP header on.
    pub sent_bytes: u64,
    /// Packets that came to a device of the namespace whose address they are sent to.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// When the first was seen, in nanoseconds since boot, suspend included.
    pub first: u64,
    /// When the last was.
    pub last: u64,
    /// Cookie of the sender's socket; 0: not known.
    pub cookie: u64,
    /// Inode number of the sender's network namespace; 0: not seen there.
    pub sender: u32,
    /// Inode number of the receiver's.
    pub receiver: u32,
    /// All flags of TCP that were seen, and [`FlowCount::OPENS`].
    pub tcp_flags: u32,
    /// Index of the device at which packets are counted as sent; 0: none was.
    pub sent_by: u32,
    /// Index of the device at which the last one was counted as received.
    pub received_by: u32,
    /// Zero.
    pub pad: u32,
}

impl FlowCount {
    /// A packet with SYN and without ACK was seen: this direction is who began.
    pub const OPENS: u32 = 1 << 8;
}

/// Index into `TOTALS`.
pub struct Total;

impl Total {
    /// Packets that are counted in `DROPS`.
    pub const DROPS: u32 = 0;
    /// Packets that are counted in `FLOWS`.
    pub const FLOWS: u32 = 1;
    /// How many there are.
    pub const COUNT: u32 = 2;
}

const _: () = assert!(size_of::<DropKey>() == 64);
const _: () = assert!(size_of::<DropCount>() == 48);
const _: () = assert!(size_of::<Local>() == 20);
const _: () = assert!(size_of::<FlowCount>() == 80);

#[cfg(not(target_arch = "bpf"))]
crate::plain_old_data!(DropKey, DropCount, Local, FlowCount);
