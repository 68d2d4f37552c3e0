//! The programs that follow packets. They are the process's that loaded them: links and maps are descriptors, so they
//! are gone when it ends, however it ends.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, BtfError, Ebpf, EbpfError, EbpfLoader};
use ebpf_common::net::{Ip, Port};
use ebpf_common::trace::{Event, Filter, Offsets, Target};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::TRACE_OBJECT;
use crate::kernel_types::{KernelTypes, TypesError};

/// Addresses of the one end that the programs compare.
const MOST_SOURCES: usize = 2;

/// What there is room for in `TARGETS`.
const MOST_TARGETS: usize = 1024;

/// UDP ports at which the programs unwrap.
const MOST_VXLAN_PORTS: usize = 2;

/// The tracepoints.
const TRACEPOINTS: [&str; 4] = [
    // What ends packets first: what is seen of the others shall be forgotten again.
    "consume_skb",
    "kfree_skb",
    "netif_receive_skb",
    "net_dev_start_xmit",
];

/// The program for each of [`TRACEPOINTS`] in a kernel whose tracepoints give so many arguments: `consume_skb` tells its
/// place since Linux 6.3, `kfree_skb` its reason since 5.17.
fn chosen(arguments: impl Fn(&str) -> Result<usize, TypesError>) -> Result<[Chosen; 4], TracerError> {
    if arguments("kfree_skb")? < 3 {
        return Err(TracerError::NoReason);
    }
    let ends = match arguments("consume_skb")? {
        0 | 1 => "consume_skb_bare",
        _ => "consume_skb",
    };
    Ok(TRACEPOINTS.map(|tracepoint| Chosen {
        tracepoint,
        program: if tracepoint == "consume_skb" {
            ends
        } else {
            tracepoint
        },
    }))
}

/// A tracepoint and the program for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chosen {
    tracepoint: &'static str,
    program: &'static str,
}

/// Why packets cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum TracerError {
    /// The kernel does not tell its types, or lacks one.
    #[error(transparent)]
    Types(#[from] TypesError),
    /// The kernel is too old.
    #[error("this kernel's tracepoint kfree_skb tells no reason: Linux 5.17 or newer is needed")]
    NoReason,
    /// The kernel's tuples of connections are laid out otherwise.
    #[error("this kernel's struct nf_conntrack_tuple is not laid out as the programs read it")]
    Tuple,
    /// The kernel's types are not what the loader reads.
    #[error("read the kernel's types")]
    Btf(#[source] Box<BtfError>),
    /// The object or one of its maps was refused.
    #[error(
        "load the programs that follow packets (CAP_BPF with CAP_PERFMON, or CAP_SYS_ADMIN, is needed, which root in a \
         container may lack)"
    )]
    Load(#[source] Box<EbpfError>),
    /// The object is not the one that this program was built with.
    #[error("the BPF object has no {0}")]
    Missing(&'static str),
    /// A program is not one for a tracepoint: another build's.
    #[error("the BPF program for the tracepoint {name} is of another kind")]
    Program {
        /// The tracepoint.
        name: &'static str,
        /// The reason.
        #[source]
        source: Box<ProgramError>,
    },
    /// The verifier, or the kernel, refused a program.
    #[error(
        "load the program for the tracepoint {name} (CAP_BPF with CAP_PERFMON, or CAP_SYS_ADMIN, is needed, which root in \
         a container may lack, and Linux 5.17 or newer with BTF)"
    )]
    Verify {
        /// The tracepoint.
        name: &'static str,
        /// The reason.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program cannot be attached.
    #[error(
        "attach to the tracepoint {name} (CAP_BPF with CAP_PERFMON, or CAP_SYS_ADMIN, is needed, which root in a \
         container may lack, and Linux 5.17 or newer with BTF)"
    )]
    Attach {
        /// The tracepoint.
        name: &'static str,
        /// The reason.
        #[source]
        source: Box<ProgramError>,
    },
    /// More addresses of the one end than the programs compare.
    #[error("{0} addresses are too many for one end: {most} can be followed", most = MOST_SOURCES)]
    TooManySources(usize),
    /// More ends than there is room for.
    #[error(
        "{0} addresses and ports are too many for the other end: {most} can be followed; name one of them",
        most = MOST_TARGETS
    )]
    TooManyTargets(usize),
    /// More ports of VXLAN than the programs compare.
    #[error("{0} UDP ports are too many: packets are unwrapped at {most}", most = MOST_VXLAN_PORTS)]
    TooManyVxlanPorts(usize),
    /// A map could not be read or written.
    #[error("{operation} map {name}")]
    Map {
        /// For example `write to`.
        operation: &'static str,
        /// Its name.
        name: &'static str,
        /// The reason.
        #[source]
        source: Box<MapError>,
    },
    /// Events could not be waited for.
    #[error("wait for events")]
    Wait(#[source] io::Error),
    /// The kernel does not tell how often a program was left out.
    #[error("read how often the program at the tracepoint {name} was left out")]
    Missed {
        /// The tracepoint.
        name: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// Whose packets shall be followed, in both directions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Addresses of one end, at most two; none: anybody.
    pub sources: Vec<Ip>,
    /// Its port; `None`: any.
    pub source_port: Option<Port>,
    /// The other end, at most 1024; none: anybody.
    pub targets: Vec<(Ip, Option<Port>)>,
    /// Protocol of layer 4.
    pub protocol: Option<u8>,
    /// UDP ports at which packets are unwrapped, at most two.
    pub vxlan_ports: Vec<Port>,
}

/// The attached programs.
pub struct Tracer {
    programs: Ebpf,
    chosen: [Chosen; 4],
    events: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
    missed: PerCpuArray<MapData, u64>,
}

impl Tracer {
    /// Loads the programs and attaches them. Packets are followed from here on until this is dropped.
    ///
    /// # Errors
    /// When more is wanted than the programs can compare, the kernel lacks something, or this process the right.
    pub fn start(wanted: &Wanted, types: &KernelTypes) -> Result<Self, TracerError> {
        let filter = filter(wanted)?;
        let chosen = chosen(|tracepoint| types.arguments(tracepoint))?;
        let btf = types
            .for_loader()
            .map_err(|error| TracerError::Btf(Box::new(error)))?;
        let mut programs = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("OFFSETS", &offsets(types)?, true)
            .override_global("FILTER", &filter, true)
            .load(TRACE_OBJECT)
            .map_err(|error| TracerError::Load(Box::new(error)))?;
        write_targets(&mut programs, wanted)?;
        let events = RingBuf::try_from(take(&mut programs, "EVENTS")?).map_err(map("open", "EVENTS"))?;
        let lost = PerCpuArray::try_from(take(&mut programs, "LOST")?).map_err(map("open", "LOST"))?;
        let missed = PerCpuArray::try_from(take(&mut programs, "MISSED")?).map_err(map("open", "MISSED"))?;
        load_all(&mut programs, &chosen, &btf)?;
        for chosen in chosen {
            attach(&mut programs, chosen)?;
        }
        Ok(Self {
            programs,
            chosen,
            events,
            lost,
            missed,
        })
    }

    /// The next event that is there already.
    pub fn next_event(&mut self) -> Option<Event> {
        let item = self.events.next()?;
        read_event(&item)
    }

    /// Waits until there is an event, but not beyond `deadline`.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn wait(&self, deadline: Instant) -> Result<(), TracerError> {
        let left = deadline.saturating_duration_since(Instant::now());
        // A partial millisecond is waited for too.
        let left = left + Duration::from_millis(u64::from(!left.is_zero()));
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut sources = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        match poll(&mut sources, left) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(TracerError::Wait(error.into())),
        }
    }

    /// How many events of followed packets were lost since the start, since no room was left for them.
    ///
    /// # Errors
    /// When the kernel does not say it.
    pub fn lost(&self) -> Result<u64, TracerError> {
        sum(&self.lost, "LOST")
    }

    /// How often a packet was not looked at since the start, since the program was running on that CPU already. It may
    /// have been anybody's: most are none of those followed.
    ///
    /// # Errors
    /// When the kernel does not say it.
    pub fn missed(&self) -> Result<u64, TracerError> {
        let mut missed = sum(&self.missed, "MISSED")?;
        for Chosen { tracepoint, program } in self.chosen {
            let program = self
                .programs
                .program(program)
                .ok_or(TracerError::Missing(program))?;
            let program: &BtfTracePoint = program.try_into().map_err(of_kind(tracepoint))?;
            let fd = program.fd().map_err(of_kind(tracepoint))?;
            let counted = crate::sys::recursion_misses(fd.as_fd());
            missed += counted.map_err(|source| TracerError::Missed {
                name: tracepoint,
                source,
            })?;
        }
        Ok(missed)
    }
}

impl AsFd for Tracer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsRawFd as _;
        let raw = self.events.as_raw_fd();
        // SAFETY: the ring holds its descriptor open as long as it lives, which is as long as `self` does.
        unsafe { BorrowedFd::borrow_raw(raw) }
    }
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracer").finish_non_exhaustive()
    }
}

/// Loads the programs. The verifier takes most of the time, and looks at each program alone: they are loaded at once, on
/// as many CPUs as there are.
fn load_all(programs: &mut Ebpf, chosen: &[Chosen], btf: &Btf) -> Result<(), TracerError> {
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (found, program) in programs.programs_mut() {
            let Some(chosen) = chosen.iter().find(|chosen| chosen.program == found) else {
                continue;
            };
            let name = chosen.tracepoint;
            threads.push(scope.spawn(move || {
                let program: &mut BtfTracePoint = program.try_into().map_err(of_kind(name))?;
                program.load(name, btf).map_err(|source| TracerError::Verify {
                    name,
                    source: Box::new(source),
                })
            }));
        }
        threads.into_iter().try_for_each(|thread| {
            let loaded = thread.join();
            loaded.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

fn attach(programs: &mut Ebpf, Chosen { tracepoint, program }: Chosen) -> Result<(), TracerError> {
    let program = programs
        .program_mut(program)
        .ok_or(TracerError::Missing(program))?;
    let program: &mut BtfTracePoint = program.try_into().map_err(of_kind(tracepoint))?;
    let attached = program.attach().map(drop);
    attached.map_err(|source| TracerError::Attach {
        name: tracepoint,
        source: Box::new(source),
    })
}

fn sum(counters: &PerCpuArray<MapData, u64>, name: &'static str) -> Result<u64, TracerError> {
    let mut all = 0;
    for kind in 0..Event::KINDS {
        let of_kind = counters.get(&kind, 0).map_err(map("read", name))?;
        all += of_kind.iter().sum::<u64>();
    }
    Ok(all)
}

fn of_kind(name: &'static str) -> impl FnOnce(ProgramError) -> TracerError {
    move |source| TracerError::Program {
        name,
        source: Box::new(source),
    }
}

fn map(operation: &'static str, name: &'static str) -> impl FnOnce(MapError) -> TracerError {
    move |source| TracerError::Map {
        operation,
        name,
        source: Box::new(source),
    }
}

fn take(programs: &mut Ebpf, name: &'static str) -> Result<Map, TracerError> {
    programs.take_map(name).ok_or(TracerError::Missing(name))
}

fn read_event(bytes: &[u8]) -> Option<Event> {
    let whole = bytes.get(..size_of::<Event>())?;
    // SAFETY: that many bytes are there, every bit pattern is an event, and the place need not be aligned.
    Some(unsafe { std::ptr::read_unaligned(whole.as_ptr().cast()) })
}

fn filter(wanted: &Wanted) -> Result<Filter, TracerError> {
    let Wanted {
        sources,
        source_port,
        targets,
        protocol,
        vxlan_ports,
    } = wanted;
    if sources.len() > MOST_SOURCES {
        return Err(TracerError::TooManySources(sources.len()));
    }
    if targets.len() > MOST_TARGETS {
        return Err(TracerError::TooManyTargets(targets.len()));
    }
    if vxlan_ports.len() > MOST_VXLAN_PORTS {
        return Err(TracerError::TooManyVxlanPorts(vxlan_ports.len()));
    }
    let bit = |(_, port): &(Ip, Option<Port>)| port.map_or(Filter::EVERY, |_| Filter::NAMED);
    let addresses: BTreeSet<Ip> = targets.iter().map(|(address, _)| *address).collect();
    let mut ports = vxlan_ports.iter().copied();
    Ok(Filter {
        sources: pair(sources.iter().copied()).unwrap_or([Ip::ANY; 2]),
        targets: pair(addresses.into_iter()).unwrap_or([Ip::ANY; 2]),
        protocol: protocol.unwrap_or(0).into(),
        any_target: targets.is_empty().into(),
        ports: targets.iter().map(bit).fold(0, |bits, bit| bits | bit),
        vxlan_ports: [(); MOST_VXLAN_PORTS].map(|()| ports.next().unwrap_or_default()),
        source_port: source_port.unwrap_or_default(),
        pad: 0,
    })
}

/// One or two addresses, one of them twice; `None` where there are none or more.
fn pair(mut addresses: impl ExactSizeIterator<Item = Ip>) -> Option<[Ip; 2]> {
    if addresses.len() > 2 {
        return None;
    }
    let first = addresses.next()?;
    Some([first, addresses.next().unwrap_or(first)])
}

fn write_targets(programs: &mut Ebpf, wanted: &Wanted) -> Result<(), TracerError> {
    let targets = programs
        .map_mut("TARGETS")
        .ok_or(TracerError::Missing("TARGETS"))?;
    let mut targets: HashMap<_, Target, u32> = HashMap::try_from(targets).map_err(map("open", "TARGETS"))?;
    for (address, port) in &wanted.targets {
        let inserted = targets.insert(Target::new(*address, *port), 1, 0);
        inserted.map_err(map("write to", "TARGETS"))?;
    }
    Ok(())
}

/// Where the programs find what they read.
fn offsets(types: &KernelTypes) -> Result<Offsets, TracerError> {
    let skb = |field| types.offset("sk_buff", field);
    let device = |field| types.offset("net_device", field);
    let tuples = tuples(types)?;
    Ok(Offsets {
        skb_dev: skb("dev")?,
        skb_sk: skb("sk")?,
        skb_protocol: skb("protocol")?,
        skb_network_header: skb("network_header")?,
        skb_tail: skb("tail")?,
        skb_head: skb("head")?,
        skb_data: skb("data")?,
        skb_nfct: tuples.map_or(Ok(Offsets::ABSENT), |_| skb("_nfct"))?,
        dev_name: device("name")?,
        dev_net: device("nd_net")?,
        sock_net: types.offset("sock", "__sk_common.skc_net")?,
        net_inum: types.offset("net", "ns.inum")?,
        conn_status: tuples.map_or(Ok(0), |_| types.offset("nf_conn", "status"))?,
        conn_original: tuples.map_or(0, |(original, _)| original),
        conn_reply: tuples.map_or(0, |(_, reply)| reply),
    })
}

/// Where a connection has its tuples; `None` in kernels without connection tracking.
fn tuples(types: &KernelTypes) -> Result<Option<(u32, u32)>, TracerError> {
    let first = match types.offset("nf_conn", "tuplehash") {
        Err(TypesError::NoType(_)) => return Ok(None),
        first => first?,
    };
    let rows = [
        ("src.u3", 0),
        ("src.u", 16),
        ("src.l3num", 18),
        ("dst.u3", 20),
        ("dst.u", 36),
        ("dst.protonum", 38),
    ];
    for (field, offset) in rows {
        if types.offset("nf_conntrack_tuple", field)? != offset {
            return Err(TracerError::Tuple);
        }
    }
    let tuple = types.offset("nf_conntrack_tuple_hash", "tuple")?;
    let size = types.size("nf_conntrack_tuple_hash")?;
    Ok(Some((first + tuple, first + size + tuple)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_has_what_the_programs_read() {
        let types = KernelTypes::read().expect("a kernel with type information");
        let offsets = offsets(&types).expect("all fields");
        assert_ne!(offsets.skb_head, 0);
        assert!(offsets.conn_reply > offsets.conn_original, "{offsets:?}");
        let reasons = types.enumeration("skb_drop_reason").expect("reasons");
        let names: Vec<&String> = reasons.values().collect();
        assert!(
            names.iter().any(|name| *name == "SKB_DROP_REASON_NETFILTER_DROP"),
            "{names:?}"
        );
    }

    #[test]
    fn the_program_for_the_end_of_packets_is_the_one_that_fits_the_kernel() {
        let ends = |dropped, consumed| {
            let chosen = chosen(|name| Ok(if name == "kfree_skb" { dropped } else { consumed }))?;
            Ok(chosen.map(|chosen| chosen.program)[0])
        };
        let rows = [
            (3, 1, Some("consume_skb_bare")), // Linux 5.17 to 6.2
            (3, 2, Some("consume_skb")),      // 6.3
            (4, 2, Some("consume_skb")),      // 6.11
            (2, 1, None),                     // before 5.17
        ];
        for (dropped, consumed, program) in rows {
            let found: Result<_, TracerError> = ends(dropped, consumed);
            assert_eq!(found.as_ref().ok(), program.as_ref(), "{found:?}");
        }
        let error: TracerError = ends(2, 1).expect_err("too old");
        assert!(error.to_string().contains("5.17"), "{error}");
    }

    #[test]
    fn an_unused_source_repeats_the_first_and_no_source_is_anybody() {
        let ip = |text: &str| Ip::from(text.parse::<std::net::IpAddr>().expect("an address"));
        let one = Wanted {
            sources: vec![ip("10.244.1.2")],
            ..Wanted::default()
        };
        let filter = |wanted: &Wanted| filter(wanted).expect("few enough");
        assert_eq!(filter(&one).sources, [ip("10.244.1.2"); 2]);
        let none = filter(&Wanted::default());
        assert_eq!(
            (none.sources, none.targets, none.any_target),
            ([Ip::ANY; 2], [Ip::ANY; 2], 1)
        );
    }

    #[test]
    fn few_addresses_of_the_other_end_are_compared_and_many_are_looked_up() {
        let ip = |last: u8| Ip::from(std::net::IpAddr::from([10, 244, 1, last]));
        let targets = |lasts: &[u8]| {
            let ports = [Some(Port::new(80)), None];
            let of = |last: &u8| ports.map(|port| (ip(*last), port));
            let wanted = Wanted {
                targets: lasts.iter().flat_map(of).collect(),
                ..Wanted::default()
            };
            filter(&wanted).expect("few enough").targets
        };
        assert_eq!(targets(&[2]), [ip(2); 2]);
        assert_eq!(targets(&[2, 3]), [ip(2), ip(3)]);
        assert_eq!(targets(&[2, 3, 4]), [Ip::ANY; 2]);
    }

    #[test]
    fn more_than_the_programs_compare_is_refused_with_how_much_they_do() {
        let ip = |number: usize| {
            let [.., high, low] = number.to_be_bytes();
            Ip::from(std::net::IpAddr::from([10, 244, high, low]))
        };
        let sources = |count| Wanted {
            sources: (0..count).map(ip).collect(),
            ..Wanted::default()
        };
        let targets = |count| Wanted {
            targets: (0..count).map(|number| (ip(number), None)).collect(),
            ..Wanted::default()
        };
        let ports = |count| Wanted {
            vxlan_ports: (1..=count).map(Port::new).collect(),
            ..Wanted::default()
        };
        for (most, more, told) in [
            (sources(2), sources(3), "3 addresses are too many for one end: 2"),
            (
                targets(1024),
                targets(1025),
                "1025 addresses and ports are too many",
            ),
            (ports(2), ports(3), "3 UDP ports are too many"),
        ] {
            assert!(filter(&most).is_ok());
            let error = filter(&more).expect_err("too many").to_string();
            assert!(error.starts_with(told), "{error}");
        }
    }
}
