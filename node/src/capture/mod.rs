//! `causeway capture`: packets of a pod, at each device that they pass on this machine, as one file of several interfaces.
//!
//! - [`places`]: the devices.
//! - [`link_layer`]: what their packets begin with.
//! - [`filter`]: whose packets, decided in the kernel.
//! - [`pcapng`], [`file`]: the file.
//! - [`dissect`]: a packet in a line.
//! - [`drops`]: where the kernel drops some.
//!
//! Packets are read by sockets of `AF_PACKET`, as tcpdump reads them: that works on every kernel, and costs nothing where
//! nobody captures.

mod dissect;
mod drops;
pub mod file;
mod filter;
#[cfg(test)]
mod frames;
mod link_layer;
pub mod pcapng;
mod places;

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use ebpf::packet_socket::{self, PacketSocket, Seen};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use trace::Filter;
use trace::hop::Protocol;

use crate::cli::{CaptureArgs, Lines};
use crate::ends::meant::{Meant, Resolver};
use crate::ends::{Ends, Name, Subject};
use crate::logs::{printable, tell};
use crate::trace_cli::filter::{self as both_ends, Ports};
use dissect::Headers;
use drops::Drops;
use filter::Wanted;
use link_layer::LinkLayer;
use places::Place;

/// How soon it is seen that it shall end.
const ATTENTION: u16 = 100;

/// How long the kernel may take to give packets their times.
const TIMES: Duration = Duration::from_secs(1);

/// Ethernet's header, two of IPv6, VXLAN's, and TCP's with all of its options fit in twice as much.
const LEAST_SNAP_LENGTH: usize = 64;

/// Packets that are remembered, so that one which is dropped has its bytes.
const REMEMBERED: usize = 4096;

/// What was captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Captured {
    /// At each device.
    pub interfaces: Vec<Interface>,
    /// Packets that the kernel dropped on their way, where it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drops: Option<u64>,
    /// Events of drops that were lost.
    pub lost_events: u64,
    /// The file, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

/// What was captured at a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Packets.
    pub packets: u64,
    /// Those that found no room.
    pub missed: u64,
}

impl Captured {
    /// Whether packets are missing in the file.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.lost_events > 0 || self.interfaces.iter().any(|interface| interface.missed > 0)
    }

    /// What was captured, for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for Interface {
            name,
            packets,
            missed,
        } in &self.interfaces
        {
            let missed = match missed {
                0 => String::new(),
                missed => format!(", {missed} more found no room: INCOMPLETE"),
            };
            text.push_str(&format!("{packets:6}  {}{missed}\n", printable(name)));
        }
        if let Some(drops) = self.drops {
            text.push_str(&format!("{drops:6}  dropped\n"));
        }
        if self.lost_events > 0 {
            text.push_str(&format!(
                "INCOMPLETE: {} events of drops lost\n",
                self.lost_events
            ));
        }
        if let Some(file) = &self.file {
            text.push_str(&format!("written to {}\n", file.display()));
        }
        text
    }
}

/// A device that is read.
struct Source {
    place: Place,
    layer: LinkLayer,
    socket: PacketSocket,
    packets: u64,
    missed: u64,
    /// The device is gone, or down.
    is_over: bool,
}

/// A packet of a device.
struct Frame {
    source: usize,
    seen: Seen,
    bytes: Vec<u8>,
}

/// Where packets go.
enum Sink {
    File(pcapng::Writer<BufWriter<File>>),
    Lines { output: Lines, began: Option<Duration> },
}

/// Captures until it is enough.
///
/// # Errors
/// When an end is not known or not here, or packets cannot be captured or written.
pub fn run(args: &CaptureArgs, shutdown: &CancellationToken) -> anyhow::Result<Captured> {
    let snap_length = usize::try_from(args.snaplen).context("--snaplen")?;
    ensure!(
        snap_length >= LEAST_SNAP_LENGTH,
        "--snaplen {snap_length}: a packet's headers need {LEAST_SNAP_LENGTH} bytes"
    );
    let resolver = Resolver::read(&args.config)?;
    let (wanted, followed) = wanted(args, &resolver)?;
    let namespaces = trace::namespaces::of_this_machine();
    let names = resolver.names(&namespaces);
    let all: Vec<IpAddr> = wanted.ends.iter().chain(&wanted.others).copied().collect();
    let places = places::places(&all, &namespaces, &names, &resolver.pods.homes(&namespaces));
    let what = args.what();
    ensure!(
        !places.is_empty(),
        "no device of this machine has an address of {what}: {}",
        elsewhere(args.end().ok().and_then(|end| resolver.meant(&end).ok()))
    );
    // Before the first packet: what is dropped is looked for in what was captured.
    let mut drops = match args.drops {
        true => Some(Drops::start(&followed, names.clone(), namespaces)?),
        false => None,
    };
    let mut sources = Vec::with_capacity(places.len());
    for place in places {
        sources.extend(Source::open(place, &wanted)?);
    }
    match write(args, shutdown, &mut sources, &mut drops) {
        // A reader that has seen enough is no fault.
        Err(error) if is_reader_gone(&error) => {}
        ended => ended?,
    }
    let lost_events = drops.as_ref().map(Drops::lost).transpose()?.unwrap_or(0);
    Ok(Captured {
        interfaces: sources
            .into_iter()
            .map(|source| Interface {
                name: source.place.name,
                packets: source.packets,
                missed: source.missed,
            })
            .collect(),
        drops: drops.map(|drops| drops.told()),
        lost_events,
        file: args.write.clone().filter(|file| file != Path::new("-")),
    })
}

/// Where an end is that has no device here.
fn elsewhere(meant: Option<Meant>) -> String {
    let Some(Meant { node, service, .. }) = meant else {
        return "capture on the node where it is".to_owned();
    };
    match (service, node) {
        (Some(service), _) if service.endpoints.is_empty() => format!(
            "{} has no endpoint that serves, on any node: name a client to see who asks",
            service.name
        ),
        (Some(_), None) => "capture on the nodes of its endpoints".to_owned(),
        (_, Some(node)) => format!("capture on node {node}, where it is"),
        (None, None) => "capture on the node where it is".to_owned(),
    }
}

impl Source {
    /// Reads a device from here on. None where it is not known what its packets begin with, which is told.
    fn open(place: Place, wanted: &Wanted) -> anyhow::Result<Option<Self>> {
        let opened = place.found.namespace.run(|| PacketSocket::open(place.device))?;
        let at = || format!("capture at {}", place.name);
        let socket = opened.with_context(at)?;
        let hardware_type = socket.hardware_type().with_context(at)?;
        let Some(layer) = LinkLayer::of(hardware_type) else {
            tell(format_args!(
                "warning: {} is left out: packets of its hardware type, {hardware_type}, are not read",
                printable(&place.name)
            ));
            return Ok(None);
        };
        let program = filter::program(wanted, layer);
        ensure!(
            program.len() <= packet_socket::MOST_INSTRUCTIONS,
            "{} addresses and ports are too many for a filter in the kernel: name an endpoint, or a port",
            wanted.ends.len() + wanted.others.len() + wanted.ports.len()
        );
        socket.hear(&program).with_context(at)?;
        Ok(Some(Self {
            place,
            layer,
            socket,
            packets: 0,
            missed: 0,
            is_over: false,
        }))
    }
}

/// All that is written.
fn write(
    args: &CaptureArgs,
    shutdown: &CancellationToken,
    sources: &mut [Source],
    drops: &mut Option<Drops>,
) -> anyhow::Result<()> {
    let what = || match &args.write {
        Some(file) => format!("write {}", file.display()),
        None => "print".to_owned(),
    };
    let mut sink = Sink::open(args, sources, drops.is_some()).with_context(what)?;
    if !packet_socket::await_times(TIMES) {
        tell("warning: the first packets may have the times at which they were read");
    }
    tell_beginning(sources);
    capture(args, shutdown, sources, drops, &mut sink).with_context(what)
}

fn is_reader_gone(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == ErrorKind::BrokenPipe)
}

/// So that people know when to send.
fn tell_beginning(sources: &[Source]) {
    let names: Vec<String> = sources
        .iter()
        .map(|source| printable(&source.place.name))
        .collect();
    tell(format_args!("capturing at {}", names.join(", ")));
}

/// Whose packets: for the sockets, and for who looks for drops.
fn wanted(args: &CaptureArgs, resolver: &Resolver) -> anyhow::Result<(Wanted, Filter)> {
    let (end, others) = (args.end()?, args.others()?);
    ensure!(
        others.is_empty() || (end.port.is_none() && end.protocol.is_none()),
        "{end}: with --to, port and protocol stand behind the other end"
    );
    let is_anybody = |name: &Name| name.subject == Subject::Any;
    ensure!(
        !is_anybody(&end) && !others.iter().any(is_anybody),
        "any: an end has to be somebody, whose devices are known; without --to the other one is anybody"
    );
    let pair = |destination: &Name| Ends {
        source: if others.is_empty() {
            Subject::Any
        } else {
            end.subject.clone()
        },
        destination: destination.clone(),
    };
    let filter = |destination| {
        let wanted = both_ends::wanted(&pair(destination), resolver, Ports::All, &[]);
        anyhow::Ok(wanted?.filter)
    };
    let mut followed = filter(others.first().unwrap_or(&end))?;
    for other in others.iter().skip(1) {
        let more = filter(other)?;
        ensure!(
            more.protocol == followed.protocol,
            "{other}: the same protocol stands behind each --to"
        );
        followed.targets.extend(more.targets);
    }
    let ports: BTreeSet<Option<u16>> = followed.targets.iter().map(|(_, port)| *port).collect();
    let targets: BTreeSet<IpAddr> = followed.targets.iter().map(|(address, _)| *address).collect();
    let targets: Vec<IpAddr> = targets.into_iter().collect();
    let (ends, others) = match followed.sources.is_empty() {
        true => (targets, Vec::new()),
        false => (followed.sources.clone(), targets),
    };
    let wanted = Wanted {
        ends,
        others,
        // All have to have one before others are left out.
        ports: match ports.contains(&None) {
            true => Vec::new(),
            false => ports.into_iter().flatten().collect(),
        },
        protocol: followed.protocol.map(|Protocol(number)| number),
        vxlan_ports: followed.vxlan_ports.clone(),
    };
    Ok((wanted, followed))
}

/// Reads all devices until the time is over, there are enough, or it is told to end.
fn capture(
    args: &CaptureArgs,
    shutdown: &CancellationToken,
    sources: &mut [Source],
    drops: &mut Option<Drops>,
    sink: &mut Sink,
) -> io::Result<()> {
    let deadline = args.duration.map(|time| Instant::now() + time);
    let snap_length = usize::try_from(args.snaplen).map_err(io::Error::other)?;
    let mut left = args.count.map_or(u64::MAX, NonZeroU64::get);
    let mut remembered: VecDeque<(Headers, Vec<u8>)> = VecDeque::new();
    let mut frames: Vec<Frame> = Vec::new();
    loop {
        // What comes until the end is told is read once more.
        let is_last = shutdown.is_cancelled()
            || deadline.is_some_and(|deadline| Instant::now() >= deadline)
            || sources.iter().all(|source| source.is_over);
        // A packet was at its devices before it was dropped.
        let dropped = drops.as_mut().map_or(Ok(Vec::new()), Drops::next)?;
        let until = since_1970();
        for (number, source) in sources.iter_mut().enumerate() {
            read_until(until, number, source, snap_length, &mut frames)?;
        }
        // In the order in which packets met the devices: what is newer may come behind what another device has yet.
        frames.sort_by_key(|frame| frame.seen.at);
        let count = if is_last {
            frames.len()
        } else {
            frames.partition_point(|frame| frame.seen.at <= until)
        };
        for frame in frames.drain(..count) {
            if left == 0 {
                break;
            }
            left -= 1;
            let source = &mut sources[frame.source];
            source.packets += 1;
            let framed = source.layer.framed(&frame.bytes);
            let headers = dissect::headers(&framed);
            sink.packet(source, &frame, headers.as_ref())?;
            if let (Some(_), Some(headers)) = (&drops, headers) {
                if remembered.len() == REMEMBERED {
                    remembered.pop_front();
                }
                remembered.push_back((headers, framed.into_owned()));
            }
        }
        if let Some(drops) = drops {
            for hop in &dropped {
                sink.dropped(sources.len(), &drops.tell(hop, &remembered))?;
            }
        }
        sink.flush()?;
        if is_last || left == 0 {
            break;
        }
        if frames.is_empty() {
            wait(sources, deadline)?;
        }
    }
    finish(sources, sink)
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Reads what has come until then, and what comes next: traffic may be as fast as its reader.
fn read_until(
    until: Duration,
    number: usize,
    source: &mut Source,
    snap_length: usize,
    frames: &mut Vec<Frame>,
) -> io::Result<()> {
    let mut buffer = vec![0; snap_length];
    while !source.is_over {
        match source.socket.read(&mut buffer) {
            Ok(Some(seen)) => {
                frames.push(Frame {
                    source: number,
                    seen,
                    bytes: buffer[..seen.kept].to_vec(),
                });
                if seen.at > until {
                    return Ok(());
                }
            }
            Ok(None) => return Ok(()),
            Err(error) if is_gone(&error) => source.is_over = true,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A pod has ended, for one.
fn is_gone(error: &io::Error) -> bool {
    let gone = [Errno::ENETDOWN, Errno::ENODEV, Errno::ENXIO];
    gone.iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// Until there is a packet, or it may be time to end.
fn wait(sources: &[Source], deadline: Option<Instant>) -> io::Result<()> {
    let mut waiting: Vec<PollFd<'_>> = sources
        .iter()
        .filter(|source| !source.is_over)
        .map(|source| PollFd::new(source.socket.as_fd(), PollFlags::POLLIN))
        .collect();
    let left = deadline.map_or(Duration::MAX, |deadline| {
        deadline.saturating_duration_since(Instant::now())
    });
    let millis = u16::try_from(left.as_millis())
        .unwrap_or(ATTENTION)
        .clamp(1, ATTENTION);
    match poll(&mut waiting, PollTimeout::from(millis)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Tells what the kernel could not keep.
fn finish(sources: &mut [Source], sink: &mut Sink) -> io::Result<()> {
    let now = since_1970();
    for (number, source) in sources.iter_mut().enumerate() {
        source.missed = source
            .socket
            .counts()
            .map_or(0, |counts| u64::from(counts.dropped));
        if let Sink::File(writer) = sink {
            writer.statistics(
                interface(number),
                now,
                source.packets + source.missed,
                source.missed,
            )?;
        }
    }
    sink.flush()
}

fn interface(number: usize) -> u32 {
    u32::try_from(number).expect("invariant: no machine has so many devices")
}

impl Sink {
    fn open(args: &CaptureArgs, sources: &[Source], with_drops: bool) -> io::Result<Self> {
        let Some(file) = &args.write else {
            return Ok(Self::Lines {
                output: args.output,
                began: None,
            });
        };
        let file = match file == Path::new("-") {
            // Not as `Stdout` has it, which looks for ends of lines.
            true => File::from(io::stdout().as_fd().try_clone_to_owned()?),
            false => file::create(file)?,
        };
        let interfaces = sources.iter().map(|source| pcapng::Interface {
            name: source.place.name.clone(),
            description: source.place.description.clone(),
            link_type: source.layer.link_type(),
            snap_length: args.snaplen,
        });
        let drops = with_drops.then(|| pcapng::Interface {
            name: "drops".to_owned(),
            description: "packets that the kernel dropped".to_owned(),
            // Readers such as tcpdump take one kind of link alone.
            link_type: pcapng::ETHERNET,
            snap_length: args.snaplen,
        });
        let application = concat!("causeway ", env!("CARGO_PKG_VERSION"), " capture");
        let mut writer = pcapng::Writer::begin(BufWriter::new(file), application, &args.what())?;
        for interface in interfaces.chain(drops) {
            writer.interface(&interface)?;
        }
        writer.flush()?;
        Ok(Self::File(writer))
    }

    fn packet(&mut self, source: &Source, frame: &Frame, headers: Option<&Headers>) -> io::Result<()> {
        let Frame {
            source: number,
            seen,
            bytes,
        } = frame;
        match self {
            Self::File(writer) => {
                // The first of an interface says where it is, for readers that show no names of interfaces.
                let comment = (source.packets == 1)
                    .then(|| format!("{}: {}", source.place.name, source.place.description));
                writer.packet(&pcapng::Packet {
                    interface: interface(*number),
                    at: seen.at,
                    bytes,
                    length: u32::try_from(seen.length).unwrap_or(u32::MAX),
                    is_outgoing: Some(seen.is_outgoing),
                    comment: comment.as_deref(),
                })
            }
            Self::Lines { output, began } => {
                let since = seen.at.saturating_sub(*began.get_or_insert(seen.at));
                let direction = if seen.is_outgoing { "out" } else { "in" };
                let name = printable(&source.place.name);
                let line = match output {
                    Lines::Text => {
                        let micros = since.as_micros();
                        let what =
                            headers.map_or_else(|| format!("{} bytes", seen.length), Headers::to_string);
                        format!("+{micros:>9} us  {name}  {direction:3}  {what}")
                    }
                    Lines::Ndjson => serde_json::json!({
                        "atNs": u64::try_from(seen.at.as_nanos()).unwrap_or(u64::MAX),
                        "interface": source.place.name, "direction": direction, "bytes": seen.length,
                        "headers": headers,
                    })
                    .to_string(),
                };
                writeln!(io::stdout().lock(), "{line}")
            }
        }
    }

    fn dropped(&mut self, number: usize, dropped: &drops::Dropped) -> io::Result<()> {
        match self {
            Self::File(writer) => writer.packet(&pcapng::Packet {
                interface: interface(number),
                at: dropped.at,
                bytes: &dropped.bytes,
                length: dropped.length,
                is_outgoing: None,
                comment: Some(&dropped.why),
            }),
            Self::Lines { output, began } => {
                let since = dropped
                    .at
                    .saturating_sub(*began.get_or_insert(dropped.at))
                    .as_micros();
                let line = match output {
                    Lines::Text => format!("+{since:>9} us  {}", printable(&dropped.why)),
                    Lines::Ndjson => serde_json::json!({
                        "atNs": u64::try_from(dropped.at.as_nanos()).unwrap_or(u64::MAX),
                        "interface": "drops", "dropped": dropped.why,
                    })
                    .to_string(),
                };
                writeln!(io::stdout().lock(), "{line}")
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(writer) => writer.flush(),
            Self::Lines { .. } => io::stdout().flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Behind;

    #[test]
    fn an_end_without_a_device_here_is_elsewhere_or_nowhere() {
        let service = |endpoints: &[&str]| Meant {
            service: Some(Behind {
                name: "svc/default/web:80".to_owned(),
                endpoints: endpoints
                    .iter()
                    .map(|endpoint| endpoint.parse().expect("an endpoint"))
                    .collect(),
                meant: Vec::new(),
                ports: Vec::new(),
            }),
            ..Meant::default()
        };
        let pod = Meant {
            node: Some("node-2".into()),
            ..Meant::default()
        };
        let rows = [
            (
                Some(service(&[])),
                "svc/default/web:80 has no endpoint that serves, on any node: name a client to see who asks",
            ),
            (
                Some(service(&["10.244.2.3:8080"])),
                "capture on the nodes of its endpoints",
            ),
            (Some(pod), "capture on node node-2, where it is"),
            (Some(Meant::default()), "capture on the node where it is"),
            (None, "capture on the node where it is"),
        ];
        for (meant, expected) in rows {
            assert_eq!(elsewhere(meant), expected);
        }
    }
}
