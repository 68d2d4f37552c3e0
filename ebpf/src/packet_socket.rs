//! Packets as a device passes them on: a socket of `AF_PACKET` for one device, with a filter of classic BPF in the kernel
//! (`packet(7)`, Documentation/networking/filter.rst).

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;

/// What the kernel keeps of a device's packets until they are read, in bytes of its own accounting.
const BUFFER_BYTES: usize = 8 << 20;

/// An instruction of classic BPF, `struct sock_filter`.
///
/// `[code:2][jt:1][jf:1][k:4] = 8 bytes`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// How many instructions are skipped where a condition holds.
    pub jump_true: u8,
    /// And where it does not.
    pub jump_false: u8,
    /// Its operand.
    pub operand: u32,
}

const _: () = assert!(size_of::<Instruction>() == size_of::<libc::sock_filter>());
const _: () = assert!(align_of::<Instruction>() == align_of::<libc::sock_filter>());

/// Lets nothing through: `BPF_RET | BPF_K` of no bytes.
const NOTHING: Instruction = Instruction {
    code: 0x06,
    jump_true: 0,
    jump_false: 0,
    operand: 0,
};

/// A packet, but for its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When, since 1970.
    pub at: Duration,
    /// How many bytes were kept.
    pub kept: usize,
    /// How long it is.
    pub length: usize,
    /// It leaves by the device, and did not come by it.
    pub is_outgoing: bool,
}

/// What the kernel did since it was asked last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that the filter let through.
    pub passed: u32,
    /// Those among them that found no room.
    pub dropped: u32,
}

/// A socket of one device.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// A socket of a device of the calling thread's namespace, which hears nothing until [`Self::hear`]. It may be read
    /// from any thread.
    ///
    /// # Errors
    /// When rights are missing (`CAP_NET_RAW`), or there is no such device.
    pub fn open(device: u32) -> io::Result<Self> {
        // Of protocol 0 it hears nothing until it is bound: then a filter is there.
        // SAFETY: no memory is passed.
        let made = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                0,
            )
        };
        let made = Errno::result(made)?;
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(made) };
        attach(socket.as_fd(), &[NOTHING])?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        // Beyond the system's limit where this process may; else as much as it may have.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &BUFFER_BYTES)?;
        }
        bind(&socket, device)?;
        Ok(Self(socket))
    }

    /// The device's hardware type (`ARPHRD_*`, linux/if_arp.h), which says what its packets begin with.
    ///
    /// # Errors
    /// When the kernel does not say it.
    pub fn hardware_type(&self) -> io::Result<u16> {
        let mut address = link_address(0)?;
        let mut length =
            libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
        // SAFETY: both pointers are of live values, and the length is that of the first; what the kernel leaves is zero.
        let asked = unsafe {
            libc::getsockname(
                self.0.as_raw_fd(),
                std::ptr::from_mut(&mut address).cast(),
                &mut length,
            )
        };
        Errno::result(asked)?;
        Ok(address.sll_hatype)
    }

    /// All packets of the device that the filter lets through, from here on.
    ///
    /// # Errors
    /// When the filter is none.
    pub fn hear(&self, filter: &[Instruction]) -> io::Result<()> {
        attach(self.0.as_fd(), filter)
    }

    /// The next packet, whose first bytes go into `buffer`; `None`: there is none yet.
    ///
    /// # Errors
    /// When the device is gone or down (`ENETDOWN`).
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<Seen>> {
        let room = buffer.len();
        let mut slices = [IoSliceMut::new(buffer)];
        let mut control = nix::cmsg_space!(TimeSpec);
        let flags = MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
        let received = recvmsg::<LinkAddr>(self.0.as_raw_fd(), &mut slices, Some(&mut control), flags);
        let received = match received {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let at = received.cmsgs()?.find_map(time_of);
        let direction = received.address.map(|address| address.pkttype());
        Ok(Some(Seen {
            at: at.unwrap_or_default(),
            kept: received.bytes.min(room),
            length: received.bytes,
            is_outgoing: direction == Some(libc::PACKET_OUTGOING),
        }))
    }

    /// What the kernel did since it was asked last.
    ///
    /// # Errors
    /// When it does not say.
    pub fn counts(&self) -> io::Result<Counts> {
        let mut counts = libc::tpacket_stats {
            tp_packets: 0,
            tp_drops: 0,
        };
        let mut length =
            libc::socklen_t::try_from(size_of::<libc::tpacket_stats>()).map_err(io::Error::other)?;
        // SAFETY: both pointers are of live values, and the length is that of the first.
        let asked = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                std::ptr::from_mut(&mut counts).cast(),
                &mut length,
            )
        };
        Errno::result(asked)?;
        Ok(Counts {
            passed: counts.tp_packets,
            dropped: counts.tp_drops,
        })
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until packets have the time at which they came. The kernel begins with that a moment after the first socket asked
/// for it (`net_enable_timestamp` leaves it to a worker); until then they have the time at which they are read. Returns
/// whether it is so; it is not known where this namespace has no loopback.
#[must_use]
pub fn await_times(within: Duration) -> bool {
    let began = Instant::now();
    let Ok(socket) = loopback() else { return false };
    while began.elapsed() < within {
        match own_datagram_has_its_time(&socket) {
            Ok(true) => return true,
            Ok(false) => std::thread::yield_now(),
            Err(_) => return false,
        }
    }
    false
}

fn loopback() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(socket.local_addr()?)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    Ok(socket)
}

/// Through loopback it has come when it has been sent.
fn own_datagram_has_its_time(socket: &UdpSocket) -> io::Result<bool> {
    socket.send(&[0])?;
    let sent = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut byte = [0];
    let mut slices = [IoSliceMut::new(&mut byte)];
    let mut control = nix::cmsg_space!(TimeSpec);
    let received = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::empty(),
    )?;
    let at = received.cmsgs()?.find_map(time_of);
    Ok(at.is_some_and(|at| at <= sent))
}

fn time_of(message: ControlMessageOwned) -> Option<Duration> {
    match message {
        ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
        _ => None,
    }
}

/// The longest filter that the kernel takes (`BPF_MAXINSNS`, linux/bpf_common.h).
pub const MOST_INSTRUCTIONS: usize = 4096;

/// Gives any socket a filter: what it lets through is what the last instruction returns in bytes, at the most.
///
/// # Errors
/// When the kernel does not take it.
pub fn attach(socket: BorrowedFd<'_>, filter: &[Instruction]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(io::Error::other)?,
        // The kernel reads the instructions, and copies them.
        filter: filter.as_ptr().cast_mut().cast(),
    };
    let length = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).map_err(io::Error::other)?;
    // SAFETY: the program is live and of that length; it points to as many instructions, of the same layout, as it says.
    let attached = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::from_ref(&program).cast(),
            length,
        )
    };
    Errno::result(attached)?;
    Ok(())
}

/// All packets of a device.
fn link_address(device: u32) -> io::Result<libc::sockaddr_ll> {
    let all = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?;
    Ok(libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
        sll_protocol: all.to_be(),
        sll_ifindex: i32::try_from(device).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    })
}

fn bind(socket: &OwnedFd, device: u32) -> io::Result<()> {
    let address = link_address(device)?;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    // SAFETY: the address is live and of that length.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), length) };
    Errno::result(bound)?;
    Ok(())
}

/// What has to be added to the time of an event of BPF programs (`bpf_ktime_get_ns`, `CLOCK_MONOTONIC`) to have that of
/// packets, since 1970.
///
/// # Errors
/// When the kernel does not tell its time.
pub fn offset_of_events() -> io::Result<Duration> {
    let now = |clock| {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the pointer is of a live value.
        Errno::result(unsafe { libc::clock_gettime(clock, &mut time) })?;
        io::Result::Ok(Duration::from(TimeSpec::from(time)))
    };
    let events = now(libc::CLOCK_MONOTONIC)?;
    Ok(now(libc::CLOCK_REALTIME)?.saturating_sub(events))
}
