//! The kernel's structures: fields at the offsets that the host side found.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_probe_read_kernel;
use ebpf_common::net::{Ip, Port};
use ebpf_common::trace::{Flow, Offsets};

/// Set by the loader.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
    skb_dev: 0,
    skb_sk: 0,
    skb_protocol: 0,
    skb_network_header: 0,
    skb_tail: 0,
    skb_head: 0,
    skb_data: 0,
    skb_nfct: 0,
    dev_name: 0,
    dev_net: 0,
    sock_net: 0,
    net_inum: 0,
    skb_len: 0,
    dev_ifindex: 0,
    conn_original: 0,
    conn_reply: 0,
    conn_status: 0,
    sock_cookie: 0,
    skb_iif: 0,
    dev_upper: 0,
};

/// One of the offsets.
macro_rules! offset {
    ($field:ident) => {
        // SAFETY: the global is there as long as the program. Volatile: what it holds is not known when this is compiled.
        unsafe { core::ptr::read_volatile(&raw const OFFSETS.$field) }
    };
}

/// A packet in the kernel's memory (`struct sk_buff`).
#[derive(Clone, Copy)]
pub struct Skb(*const u8);

/// Where a packet's headers lie: from the network header to the end of what is in one piece.
#[derive(Clone, Copy)]
pub struct Bytes {
    pub start: u64,
    pub end: u64,
}

impl Skb {
    #[inline(always)]
    pub fn new(skb: *const c_void) -> Self {
        Self(skb.cast())
    }

    #[inline(always)]
    pub fn address(self) -> u64 {
        self.0 as u64
    }

    /// The link layer's type of what it carries, in network order.
    #[inline(always)]
    pub fn protocol(self) -> u16 {
        self.field(offset!(skb_protocol))
    }

    /// Its length, in bytes; nobody asks for it who follows packets.
    #[allow(dead_code)]
    #[inline(always)]
    pub fn length(self) -> u32 {
        self.field(offset!(skb_len))
    }

    /// The headers, behind what the network layer noted.
    #[inline(always)]
    pub fn from_network_header(self) -> Bytes {
        let head: u64 = self.field(offset!(skb_head));
        let header: u16 = self.field(offset!(skb_network_header));
        Bytes {
            start: head + u64::from(header),
            end: self.end(head),
        }
    }

    /// The headers of a packet that a device has just given: nobody has noted yet where they are.
    #[inline(always)]
    pub fn from_data(self) -> Bytes {
        Bytes {
            start: self.field(offset!(skb_data)),
            end: self.end(self.field(offset!(skb_head))),
        }
    }

    #[inline(always)]
    fn end(self, head: u64) -> u64 {
        let tail: u32 = self.field(offset!(skb_tail));
        head + u64::from(tail)
    }

    /// The device that it is at, or 0.
    #[inline(always)]
    pub fn device(self) -> u64 {
        self.field(offset!(skb_dev))
    }

    /// The same, and the socket, by the helper, for what is read of few packets: whenever the verifier comes by a plain
    /// read of a pointer, it looks among all of the kernel's types for one of another name (`btf_nested_type_is_trusted`,
    /// kernel/bpf/btf.c), which was two fifths of what it took to load the programs that follow packets.
    #[allow(dead_code)]
    #[inline(always)]
    pub fn device_and_socket(self) -> (u64, u64) {
        (
            read(self.address(), offset!(skb_dev)),
            read(self.address(), offset!(skb_sk)),
        )
    }

    /// The namespace of the socket that sent it, or 0: for packets that are at no device yet.
    #[inline(always)]
    pub fn socket_netns(self) -> u32 {
        netns_of_socket(self.socket())
    }

    /// The socket that sent it, or 0. It is lost where the packet goes into another namespace (`skb_scrub_packet`).
    #[inline(always)]
    pub fn socket(self) -> u64 {
        self.field(offset!(skb_sk))
    }

    /// Index of the device that gave it before, or 0: a bridge's port, where the bridge gives it now. It is noted behind
    /// `netif_receive_skb`, and lost where the packet goes into another namespace, or out of a tunnel
    /// (`skb_scrub_packet`).
    #[inline(always)]
    pub fn came_by(self) -> u32 {
        self.field(offset!(skb_iif))
    }

    /// Address of the connection that it belongs to, or 0 (`nf_ct_get`: the last bits say how it belongs to it).
    #[inline(always)]
    pub fn conntrack(self) -> u64 {
        let offset = offset!(skb_nfct);
        if offset == Offsets::ABSENT {
            return 0;
        }
        self.field::<u64>(offset) & !7
    }

    #[inline(always)]
    fn field<T: Copy>(self, offset: u32) -> T {
        // SAFETY: the verifier knows the type of the packet, and that the offset, a constant for it, is that of a field
        // of this size; where the memory is gone the kernel reads zeroes.
        unsafe { core::ptr::read_volatile(self.0.add(offset as usize).cast::<T>()) }
    }
}

/// What is said of a device.
pub struct Device {
    pub name: [u8; 16],
    /// Nobody asks for it who follows packets.
    #[allow(dead_code)]
    pub ifindex: u32,
    pub netns: u32,
}

/// Reads a device (`struct net_device`); zeroes where that memory is something else.
#[inline(always)]
pub fn device(address: u64) -> Device {
    Device {
        name: read(address, offset!(dev_name)),
        ifindex: read(address, offset!(dev_ifindex)),
        netns: netns(read(address, offset!(dev_net))),
    }
}

/// The namespace of a socket (`struct sock`), or 0.
#[inline(always)]
pub fn netns_of_socket(address: u64) -> u32 {
    if address == 0 {
        0
    } else {
        netns(read(address, offset!(sock_net)))
    }
}

/// A socket's cookie; 0 where nobody has asked for it yet.
#[inline(always)]
pub fn cookie(socket: u64) -> u64 {
    read(socket, offset!(sock_cookie))
}

/// The index and the namespace of a device, without its name.
#[inline(always)]
pub fn place(address: u64) -> (u32, u32) {
    (
        read(address, offset!(dev_ifindex)),
        netns(read(address, offset!(dev_net))),
    )
}

/// Whether other devices stand on this one, as a bridge does on its ports: the list of them is not empty.
#[inline(always)]
pub fn carries_others(device: u64) -> bool {
    let list = device + u64::from(offset!(dev_upper));
    let first: u64 = read(list, 0);
    first != list && first != 0
}

/// Whether a connection is translated (`IPS_SRC_NAT` or `IPS_DST_NAT`, nf_conntrack_common.h).
#[inline(always)]
pub fn is_translated(conntrack: u64) -> bool {
    const NAT: u64 = 1 << 4 | 1 << 5;
    read::<u64>(conntrack, offset!(conn_status)) & NAT != 0
}

/// The inode number of a namespace (`struct net`).
#[inline(always)]
fn netns(address: u64) -> u32 {
    if address == 0 {
        0
    } else {
        read(address, offset!(net_inum))
    }
}

/// The connection's flows, as it began and as it is answered (`struct nf_conn`).
#[inline(always)]
pub fn flows(conntrack: u64) -> (Flow, Flow) {
    let tuple = |offset| flow(&read::<Tuple>(conntrack, offset));
    (tuple(offset!(conn_original)), tuple(offset!(conn_reply)))
}

/// `struct nf_conntrack_tuple`; the host side has compared it.
/// `[source:16][source_port:2][family:2][destination:16][destination_port:2][protocol:1][direction:1] = 40 bytes`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Tuple {
    source: [u32; 4],
    source_port: u16,
    family: u16,
    destination: [u32; 4],
    destination_port: u16,
    protocol: u8,
    direction: u8,
}

const _: () = assert!(size_of::<Tuple>() == 40);

/// `AF_INET`.
const INET: u16 = 2;

#[inline(always)]
fn flow(tuple: &Tuple) -> Flow {
    let ip = |words: [u32; 4]| {
        if tuple.family == INET {
            Ip::v4(words[0])
        } else {
            Ip(words)
        }
    };
    Flow {
        source: ip(tuple.source),
        destination: ip(tuple.destination),
        source_port: Port(tuple.source_port),
        destination_port: Port(tuple.destination_port),
        protocol: u32::from(tuple.protocol),
    }
}

/// Reads the kernel's memory; zeroes where it cannot be read.
#[inline(always)]
pub fn read<T: Copy>(address: u64, offset: u32) -> T {
    let place = (address + u64::from(offset)) as *const T;
    // SAFETY: the helper checks that there is memory, and the types read here are valid in every bit pattern.
    match unsafe { bpf_probe_read_kernel(place) } {
        Ok(value) => value,
        // SAFETY: as above.
        Err(_) => unsafe { core::mem::zeroed() },
    }
}
