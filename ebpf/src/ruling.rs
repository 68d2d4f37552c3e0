//! What the program at a pod's device would make of a packet that nobody sends: the attached program itself is run on it,
//! in the kernel (`BPF_PROG_TEST_RUN`, net/bpf/test_run.c).
//!
//! The packet is a SYN with the mark [`ASKED`]: nothing is counted, no connection is noted. Nothing is sent either: where
//! a program wants a packet to go is carried out by who calls it, which here is nobody. Programs at `connect()` have no
//! such run: the kernel refuses it (`ENOTSUPP`).
//!
//! A program of an earlier version may not know the mark: it would count, and note a connection. So each is asked first of a
//! packet to [`NOBODY`], of which nothing can be noted, and of no other unless it answers: that one it counts.

use std::cell::OnceCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::programs::tc::TcAttachType;
use aya::programs::{ProgramInfo, SchedClassifier, TestRun as _, TestRunOptions};
use ebpf_common::pods::{ASKED, PodCounter};

use crate::{Error, FastPathMaps};

/// The program's name.
const PROGRAM: &str = "from_pod";

/// Addresses that are no pod's (RFC 5737, RFC 3849): nothing is sent there.
pub const NOBODY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// `TCX_NEXT`, `TC_ACT_SHOT` and `TC_ACT_REDIRECT`.
const NEXT: u32 = u32::MAX;
const SHOT: u32 = 2;
const REDIRECT: u32 = 7;

/// `struct __sk_buff` up to the index of the device, in words: the mark is word 2, the index word 10.
const MARK: usize = 2;
const IFINDEX: usize = 10;
const CONTEXT_BYTES: usize = 256;
/// A SYN's headers, and what wraps them.
const FRAME_BYTES: usize = 256;

const ETHERNET_BYTES: usize = 14;
const VXLAN_BYTES: usize = 8;
const UDP_BYTES: usize = 8;
const TCP: u8 = 6;

/// Where a pod's packet comes from and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Index of the pod's device on the node's side.
    pub device: u32,
    /// The MAC address of that end, and of the pod's.
    pub macs: ([u8; 6], [u8; 6]),
    /// The pod's address.
    pub source: IpAddr,
    /// The receiver's, of the same version of IP.
    pub destination: IpAddr,
    /// The port there.
    pub port: u16,
}

/// What the program does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// It leaves it to the network stack, for the reason that the counter of this name counts.
    Stack(&'static str),
    /// It drops it.
    Dropped,
    /// It sends it by a device.
    Sent {
        /// Index of the device.
        device: u32,
        /// The MAC address that the pod's packet goes to.
        there: [u8; 6],
        /// What is around it, where that is something.
        wrapping: Option<Wrapping>,
    },
    /// The kernel's answer is none of these, or the program is of a version that answers nobody.
    Unknown(u32),
}

/// What is around a packet in the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrapping {
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// The UDP port there.
    pub port: u16,
    /// The network's identifier.
    pub vni: u32,
}

/// The program that looks at what comes by a device.
#[derive(Debug)]
pub struct Attached {
    /// The kernel's number for it.
    pub id: u32,
    /// Names of programs that look at it before.
    pub before: Vec<String>,
    program: SchedClassifier,
    /// What it says of a packet to nobody.
    first: OnceCell<Ruling>,
}

impl Attached {
    /// The program at a device of the calling thread's network namespace whose link is pinned beside these maps, whatever
    /// others there are called. None where there is none. Needs `CAP_SYS_ADMIN`, as all that is looked up by number.
    ///
    /// # Errors
    /// When the kernel does not say it.
    pub fn at(device: &str, maps: &FastPathMaps) -> Result<Option<Self>, Error> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::AttachDevice {
            name: PROGRAM,
            device: device.to_owned(),
            source,
        };
        let Some(pinned) = maps.program_at(device)? else {
            return Ok(None);
        };
        let attached = SchedClassifier::query_tcx(device, TcAttachType::Ingress);
        let (_, attached) = attached.map_err(|error| failed(error.into()))?;
        let mut before = Vec::new();
        for info in attached {
            if info.id() == pinned {
                return Ok(Some(Self::of(info, before)?));
            }
            before.push(String::from_utf8_lossy(info.name()).into_owned());
        }
        Ok(None)
    }

    fn of(info: ProgramInfo, before: Vec<String>) -> Result<Self, Error> {
        let id = info.id();
        let program = SchedClassifier::from_program_info(info, PROGRAM.into());
        Ok(Self {
            id,
            before,
            program: program.map_err(Error::program(PROGRAM))?,
            first: OnceCell::new(),
        })
    }

    /// Runs it on a packet. The device must be one of the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses that.
    pub fn ask(&self, asked: &Asked) -> Result<Ruling, Error> {
        answer(asked, &self.first, |asked| self.run(asked))
    }

    fn run(&self, asked: &Asked) -> Result<Ruling, Error> {
        let mut context = [0; CONTEXT_BYTES];
        put(&mut context, MARK * 4, &ASKED.to_ne_bytes());
        put(&mut context, IFINDEX * 4, &asked.device.to_ne_bytes());
        let mut answer = [0; CONTEXT_BYTES];
        let mut frame = [0; FRAME_BYTES];
        let ran = self.program.test_run(TestRunOptions {
            data_in: Some(&syn(asked)),
            data_out: Some(&mut frame),
            ctx_in: Some(&context),
            ctx_out: Some(&mut answer),
            ..TestRunOptions::new()
        });
        let ran = ran.map_err(Error::program(PROGRAM))?;
        let mark = answer.get(MARK * 4..).and_then(|bytes| bytes.first_chunk());
        let mark = mark.map_or(ASKED, |mark| u32::from_ne_bytes(*mark));
        let frame = frame.get(..ran.data_size_out as usize).unwrap_or_default();
        Ok(ruling(ran.return_value, mark, frame))
    }
}

/// What a program says that `run` asks: of a packet to nobody first, which is kept, and of no other where it does not answer.
fn answer(
    asked: &Asked,
    first: &OnceCell<Ruling>,
    run: impl Fn(&Asked) -> Result<Ruling, Error>,
) -> Result<Ruling, Error> {
    let said = match first.get() {
        Some(said) => *said,
        None => {
            let [v4, v6] = NOBODY;
            let destination = if asked.source.is_ipv4() { v4 } else { v6 };
            let said = run(&Asked {
                destination,
                ..*asked
            })?;
            *first.get_or_init(|| said)
        }
    };
    match said {
        Ruling::Unknown(_) => Ok(said),
        _ => run(asked),
    }
}

fn ruling(action: u32, mark: u32, frame: &[u8]) -> Ruling {
    let counter = usize::try_from(mark).ok();
    let reason = counter.and_then(|counter| PodCounter::NAMES.get(counter));
    match (action, reason) {
        _ if mark == ASKED => Ruling::Unknown(action),
        (NEXT, Some(reason)) => Ruling::Stack(reason),
        (SHOT, _) => Ruling::Dropped,
        (REDIRECT, _) => sent(mark, frame).unwrap_or(Ruling::Unknown(action)),
        _ => Ruling::Unknown(action),
    }
}

/// A packet as it would leave.
fn sent(device: u32, frame: &[u8]) -> Option<Ruling> {
    let (source, destination, protocol, behind) = ip(frame.get(ETHERNET_BYTES..)?)?;
    if protocol == TCP {
        return Some(Ruling::Sent {
            device,
            there: *frame.first_chunk()?,
            wrapping: None,
        });
    }
    let vxlan = behind.get(UDP_BYTES..)?;
    let [_, _, _, _, high, middle, low, _] = *vxlan.first_chunk()?;
    Some(Ruling::Sent {
        device,
        there: *vxlan.get(VXLAN_BYTES..)?.first_chunk()?,
        wrapping: Some(Wrapping {
            source,
            destination,
            port: u16::from_be_bytes(*behind.get(2..)?.first_chunk()?),
            vni: u32::from_be_bytes([0, high, middle, low]),
        }),
    })
}

/// Source, destination, protocol, and what is behind the header.
fn ip(packet: &[u8]) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
    if packet.first()? >> 4 == 4 {
        let octets = |at| Some(IpAddr::from(*packet.get(at..)?.first_chunk::<4>()?));
        Some((octets(12)?, octets(16)?, *packet.get(9)?, packet.get(20..)?))
    } else {
        let octets = |at| Some(IpAddr::from(*packet.get(at..)?.first_chunk::<16>()?));
        Some((octets(8)?, octets(24)?, *packet.get(6)?, packet.get(40..)?))
    }
}

/// A connection's first packet, from port 0, which is nobody's.
fn syn(asked: &Asked) -> Vec<u8> {
    /// `[source port:2][destination port:2][sequence:4][acknowledgement:4][offset:1][flags:1][window:2][sum:2][urgent:2]`
    const TCP_BYTES: u8 = 20;
    let (node, pod) = asked.macs;
    let mut frame = [node, pod].concat();
    match (asked.source, asked.destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, TCP_BYTES, TCP, 64]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (source, destination) => {
            let octets = |address| match address {
                IpAddr::V4(address) => address.octets(),
                IpAddr::V6(address) => address
                    .to_ipv4_mapped()
                    .map_or([0; 4], |address| address.octets()),
            };
            let mut header = [0x45, 0, 0, 20 + TCP_BYTES, 0, 0, 0x40, 0, 64, TCP, 0, 0].to_vec();
            header.extend(octets(source));
            header.extend(octets(destination));
            let sum = checksum(&header);
            put(&mut header, 10, &sum.to_be_bytes());
            frame.extend([0x08, 0x00]);
            frame.extend(header);
        }
    }
    frame.extend([0, 0]);
    frame.extend(asked.port.to_be_bytes());
    frame.extend([0; 8]);
    frame.extend([(TCP_BYTES / 4) << 4, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

/// Of an IPv4 header (RFC 1071).
fn checksum(header: &[u8]) -> u16 {
    let words = header.as_chunks::<2>().0.iter();
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(u16::MAX)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(room) = bytes.get_mut(at..at + value.len()) {
        room.copy_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const UDP: u8 = 17;

    fn asked(source: &str, destination: &str) -> Asked {
        Asked {
            device: 7,
            macs: ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]),
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
            port: 80,
        }
    }

    #[test]
    fn a_packet_reads_back_as_it_was_asked_for() {
        for (source, destination) in [("10.244.1.2", "10.244.2.2"), ("fd00::2", "fd00::3")] {
            let asked = asked(source, destination);
            let frame = syn(&asked);
            let (from, to, protocol, behind) = ip(&frame[ETHERNET_BYTES..]).expect("a packet");
            assert_eq!((from, to, protocol), (asked.source, asked.destination, TCP));
            assert_eq!(behind.len(), 20);
            assert_eq!(&behind[..4], [0, 0, 0, 80]);
            assert_eq!((behind[12], behind[13]), (0x50, 0x02));
            let sent = Ruling::Sent {
                device: 9,
                there: asked.macs.0,
                wrapping: None,
            };
            assert_eq!(ruling(REDIRECT, 9, &frame), sent);
            if asked.source.is_ipv4() {
                // With its checksum a header adds up to nothing.
                assert_eq!(checksum(&frame[ETHERNET_BYTES..][..20]), 0);
            }
        }
    }

    #[test]
    fn what_is_around_a_packet_is_told() {
        let inner = syn(&asked("10.244.1.2", "10.244.2.2"));
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, UDP, 0, 0]);
        frame.extend([172, 30, 0, 11, 172, 30, 0, 12]);
        frame.extend([0xc0, 0, 0x21, 0x18, 0, 0, 0, 0]);
        frame.extend([8, 0, 0, 0, 0, 0, 1, 0]);
        frame.extend(&inner);
        let sent = Ruling::Sent {
            device: 2,
            there: [2, 0, 0, 0, 0, 1],
            wrapping: Some(Wrapping {
                source: [172, 30, 0, 11].into(),
                destination: [172, 30, 0, 12].into(),
                port: 8472,
                vni: 1,
            }),
        };
        assert_eq!(ruling(REDIRECT, 2, &frame), sent);
        // A frame that ends before its end is nothing.
        for length in 0..frame.len() - inner.len() + 6 {
            assert_eq!(
                ruling(REDIRECT, 2, &frame[..length]),
                Ruling::Unknown(REDIRECT),
                "{length}"
            );
        }
    }

    #[test]
    fn only_a_program_that_answers_is_asked_of_somebody() {
        let asked = asked("10.244.1.2", "10.244.2.2");
        let somebody = asked.destination;
        let stack = Ruling::Stack("no_pod");
        for (said, expected) in [
            (Ruling::Unknown(NEXT), vec![NOBODY[0]]),
            (stack, vec![NOBODY[0], somebody, somebody]),
        ] {
            let (runs, first) = (RefCell::new(Vec::new()), OnceCell::new());
            let run = |asked: &Asked| {
                runs.borrow_mut().push(asked.destination);
                Ok(said)
            };
            for _ in 0..2 {
                assert_eq!(answer(&asked, &first, run).expect("it was run"), said);
            }
            assert_eq!(runs.into_inner(), expected);
        }
    }

    #[test]
    fn a_program_that_answers_nobody_is_told_from_one_that_does() {
        assert_eq!(ruling(NEXT, 4, &[]), Ruling::Stack("other_source"));
        assert_eq!(ruling(SHOT, 11, &[]), Ruling::Dropped);
        assert_eq!(ruling(NEXT, ASKED, &[]), Ruling::Unknown(NEXT));
        assert_eq!(ruling(REDIRECT, ASKED, &[]), Ruling::Unknown(REDIRECT));
    }
}
