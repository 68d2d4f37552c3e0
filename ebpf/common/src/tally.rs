//! What the programs that count packets are told when they are loaded, and what they count. As with [`crate::trace`], they
//! live as long as the process that loaded them: nothing here is pinned, and nothing here is part of [`crate::LAYOUT`].
//!
//! ```text
//! written by the host side, before the programs are loaded
//! OFFSETS  where the kernel's structures have their fields ([`crate::trace::Offsets`])    global
//! BY_FLOW  1: drops are told apart by the sender's port too                               global
//! written by the programs
//! DROPS    who lost a packet, where and why → how many    LRU
//! TOTALS   all packets that were counted, by kind: what an entry of an LRU that was forgotten had is told by them
//! ```

use crate::net::{Ip, Port};

/// Key of `DROPS`: packets that are dropped alike.
/// `[location:8][source:16 be][destination:16 be][netns:4][ifindex:4][reason:4][source_port:2 be][destination_port:2 be]
/// [ethertype:2 be][protocol:1][opens:1][pad:4] = 64 bytes`.
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
    /// Zero.
    pub pad: u32,
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

/// Index into `TOTALS`.
pub struct Total;

impl Total {
    /// Packets that are counted in `DROPS`.
    pub const DROPS: u32 = 0;
    /// How many there are.
    pub const COUNT: u32 = 1;
}

const _: () = assert!(size_of::<DropKey>() == 64);
const _: () = assert!(size_of::<DropCount>() == 48);

#[cfg(not(target_arch = "bpf"))]
crate::plain_old_data!(DropKey, DropCount);
