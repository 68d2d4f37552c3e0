//! The programs that follow packets. They are the process's that loaded them: links and maps are descriptors, so they
//! are gone when it ends, however it ends.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use aya::maps::{HashMap, MapData, MapError, PerCpuArray, RingBuf};
use aya::{Ebpf, EbpfLoader};
use ebpf_common::net::{Ip, Port};
use ebpf_common::trace::{Event, Filter, Target};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::TRACE_OBJECT;
use crate::kernel_types::{KernelTypes, TypesError};
use crate::tracepoints::{Chosen, TracepointError, attach, left_out, load_all, map, offsets, take};

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
    /// Addresses of one end, at most two; none: anybody.
    pub sources: Vec<Ip>,
    /// The other end; none: anybody.
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
    /// When the kernel lacks something, or this process the right.
    pub fn start(wanted: &Wanted, types: &KernelTypes) -> Result<Self, TracepointError> {
        let chosen = chosen(|tracepoint| types.arguments(tracepoint))?;
        let btf = types
            .for_loader()
            .map_err(|error| TracepointError::Btf(Box::new(error)))?;
        let mut programs = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("OFFSETS", &offsets(types)?, true)
            .override_global("FILTER", &filter(wanted), true)
            .load(TRACE_OBJECT)
            .map_err(|error| TracepointError::Load(Box::new(error)))?;
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

fn filter(wanted: &Wanted) -> Filter {
    let first = wanted.sources.first().copied().unwrap_or(Ip::ANY);
    let mut ports = wanted.vxlan_ports.iter().copied();
    let bit = |(_, port): &(Ip, Option<Port>)| port.map_or(Filter::EVERY, |_| Filter::NAMED);
    Filter {
        sources: [first, wanted.sources.get(1).copied().unwrap_or(first)],
        protocol: wanted.protocol.unwrap_or(0).into(),
        any_target: wanted.targets.is_empty().into(),
        ports: wanted.targets.iter().map(bit).fold(0, |bits, bit| bits | bit),
        vxlan_ports: [(); 2].map(|()| ports.next().unwrap_or_default()),
    }
}

fn write_targets(programs: &mut Ebpf, wanted: &Wanted) -> Result<(), TracepointError> {
    let targets = programs
        .map_mut("TARGETS")
        .ok_or(TracepointError::Missing("TARGETS"))?;
    let mut targets: HashMap<_, Target, u32> = HashMap::try_from(targets).map_err(map("open", "TARGETS"))?;
    for (address, port) in &wanted.targets {
        match targets.insert(Target::new(*address, *port), 1, 0) {
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(nix::libc::E2BIG) => {
                return Err(TracepointError::TooManyTargets(wanted.targets.len()));
            }
            inserted => inserted.map_err(map("write to", "TARGETS"))?,
        }
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
    fn an_unused_source_repeats_the_first_and_no_source_is_anybody() {
        let ip = |text: &str| Ip::from(text.parse::<std::net::IpAddr>().expect("an address"));
        let one = Wanted {
            sources: vec![ip("10.244.1.2")],
            ..Wanted::default()
        };
        assert_eq!(filter(&one).sources, [ip("10.244.1.2"); 2]);
        let none = filter(&Wanted::default());
        assert_eq!((none.sources, none.any_target), ([Ip::ANY; 2], 1));
    }
}
