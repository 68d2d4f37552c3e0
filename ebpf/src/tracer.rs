//! The programs that follow packets. They are the process's that loaded them: links and maps are descriptors, so they
//! are gone when it ends, however it ends.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::{Ebpf, EbpfLoader};
use ebpf_common::net::{Ip, Port};
use ebpf_common::trace::{Event, Filter, Presence, Target};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::TRACE_OBJECT;
use crate::kernel_types::{KernelTypes, TypesError};
use crate::tracepoints::{
    Chosen, MOST_SOURCES, MOST_TARGETS, MOST_VXLAN_PORTS, TracepointError, attach, left_out, load_all, map,
    offsets, take,
};

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
fn chosen(arguments: impl Fn(&str) -> Result<usize, TypesError>) -> Result<[Chosen; 4], TracepointError> {
    if arguments("kfree_skb")? < 3 {
        return Err(TracepointError::NoReason);
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

/// Whose packets shall be followed, in both directions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Addresses of one end, at most 1024; none: anybody.
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
    pub fn start(wanted: &Wanted, types: &KernelTypes) -> Result<Self, TracepointError> {
        let filter = filter(wanted)?;
        let chosen = chosen(|tracepoint| types.arguments(tracepoint))?;
        // The loader reads the kernel's types for itself, whatever it is given.
        let (btf, loader) = std::thread::scope(|scope| {
            let loader = scope.spawn(EbpfLoader::new);
            (types.for_loader(), loader.join())
        });
        let btf = btf.map_err(|error| TracepointError::Btf(Box::new(error)))?;
        let mut programs = loader
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .override_global("OFFSETS", &offsets(types)?, true)
            .override_global("FILTER", &filter, true)
            .load(TRACE_OBJECT)
            .map_err(|error| TracepointError::Load(Box::new(error)))?;
        write_ends(&mut programs, wanted)?;
        let events = RingBuf::try_from(take(&mut programs, "EVENTS")?).map_err(map("open", "EVENTS"))?;
        let lost = PerCpuArray::try_from(take(&mut programs, "LOST")?).map_err(map("open", "LOST"))?;
        let missed = PerCpuArray::try_from(take(&mut programs, "MISSED")?).map_err(map("open", "MISSED"))?;
        load_all(&mut programs, &chosen, &btf)?;
        for chosen in chosen {
            attach(&mut programs, chosen)?;
        }
        begin(&mut programs)?;
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
    pub fn wait(&self, deadline: Instant) -> Result<(), TracepointError> {
        let left = deadline.saturating_duration_since(Instant::now());
        // A partial millisecond is waited for too.
        let left = left + Duration::from_millis(u64::from(!left.is_zero()));
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut sources = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        match poll(&mut sources, left) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(TracepointError::Wait(error.into())),
        }
    }

    /// How many events of followed packets were lost since the start, since no room was left for them.
    ///
    /// # Errors
    /// When the kernel does not say it.
    pub fn lost(&self) -> Result<u64, TracepointError> {
        sum(&self.lost, "LOST")
    }

    /// How often a packet was not looked at since the start, since the program was running on that CPU already. It may
    /// have been anybody's: most are none of those followed.
    ///
    /// # Errors
    /// When the kernel does not say it.
    pub fn missed(&self) -> Result<u64, TracepointError> {
        Ok(sum(&self.missed, "MISSED")? + left_out(&self.programs, &self.chosen)?)
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

/// Has the programs look, now that all of them are attached.
fn begin(programs: &mut Ebpf) -> Result<(), TracepointError> {
    let present = programs
        .map_mut("PRESENT")
        .ok_or(TracepointError::Missing("PRESENT"))?;
    let mut present: Array<_, u32> = Array::try_from(present).map_err(map("open", "PRESENT"))?;
    present
        .set(Presence::ALL_ATTACHED, 1, 0)
        .map_err(map("write to", "PRESENT"))
}

fn sum(counters: &PerCpuArray<MapData, u64>, name: &'static str) -> Result<u64, TracepointError> {
    let mut all = 0;
    for kind in 0..Event::KINDS {
        let of_kind = counters.get(&kind, 0).map_err(map("read", name))?;
        all += of_kind.iter().sum::<u64>();
    }
    Ok(all)
}

fn read_event(bytes: &[u8]) -> Option<Event> {
    let whole = bytes.get(..size_of::<Event>())?;
    // SAFETY: that many bytes are there, every bit pattern is an event, and the place need not be aligned.
    Some(unsafe { std::ptr::read_unaligned(whole.as_ptr().cast()) })
}

fn filter(wanted: &Wanted) -> Result<Filter, TracepointError> {
    let Wanted {
        sources,
        source_port,
        targets,
        protocol,
        vxlan_ports,
    } = wanted;
    if sources.len() > MOST_SOURCES {
        return Err(TracepointError::TooManySources(sources.len()));
    }
    if targets.len() > MOST_TARGETS {
        return Err(TracepointError::TooManyTargets(targets.len()));
    }
    if vxlan_ports.len() > MOST_VXLAN_PORTS {
        return Err(TracepointError::TooManyVxlanPorts(vxlan_ports.len()));
    }
    let bit = |(_, port): &(Ip, Option<Port>)| port.map_or(Filter::EVERY, |_| Filter::NAMED);
    let ends = |addresses: BTreeSet<Ip>| pair(addresses.into_iter()).unwrap_or([Ip::ANY; 2]);
    let mut ports = vxlan_ports.iter().copied();
    Ok(Filter {
        sources: ends(sources.iter().copied().collect()),
        targets: ends(targets.iter().map(|(address, _)| *address).collect()),
        protocol: protocol.unwrap_or(0).into(),
        any_source: sources.is_empty().into(),
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

fn write_ends(programs: &mut Ebpf, wanted: &Wanted) -> Result<(), TracepointError> {
    let sources = programs
        .map_mut("SOURCES")
        .ok_or(TracepointError::Missing("SOURCES"))?;
    let mut sources: HashMap<_, Ip, u32> = HashMap::try_from(sources).map_err(map("open", "SOURCES"))?;
    for address in &wanted.sources {
        let inserted = sources.insert(*address, 1, 0);
        inserted.map_err(map("write to", "SOURCES"))?;
    }
    let targets = programs
        .map_mut("TARGETS")
        .ok_or(TracepointError::Missing("TARGETS"))?;
    let mut targets: HashMap<_, Target, u32> = HashMap::try_from(targets).map_err(map("open", "TARGETS"))?;
    for (address, port) in &wanted.targets {
        let inserted = targets.insert(Target::new(*address, *port), 1, 0);
        inserted.map_err(map("write to", "TARGETS"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let found: Result<_, TracepointError> = ends(dropped, consumed);
            assert_eq!(found.as_ref().ok(), program.as_ref(), "{found:?}");
        }
        let error: TracepointError = ends(2, 1).expect_err("too old");
        assert!(error.to_string().contains("5.17"), "{error}");
    }

    #[test]
    fn an_unused_source_repeats_the_first_many_are_looked_up_and_no_source_is_anybody() {
        let ip = |text: &str| Ip::from(text.parse::<std::net::IpAddr>().expect("an address"));
        let sources = |addresses: &[&str]| {
            let wanted = Wanted {
                sources: addresses.iter().map(|address| ip(address)).collect(),
                ..Wanted::default()
            };
            let filter = filter(&wanted).expect("few enough");
            (filter.sources, filter.any_source)
        };
        let (own, tunnel, other) = ("172.30.8.11", "10.244.1.0", "fd00::1");
        assert_eq!(sources(&[own]), ([ip(own); 2], 0));
        assert_eq!(sources(&[own, tunnel]), ([ip(tunnel), ip(own)], 0));
        assert_eq!(sources(&[own, tunnel, other]), ([Ip::ANY; 2], 0));
        assert_eq!(sources(&[]), ([Ip::ANY; 2], 1));
        let none = filter(&Wanted::default()).expect("few enough");
        assert_eq!((none.targets, none.any_target), ([Ip::ANY; 2], 1));
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
            (
                sources(1024),
                sources(1025),
                "1025 addresses are too many for one end: 1024",
            ),
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
