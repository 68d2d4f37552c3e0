//! What programs at tracepoints have in common: how they are loaded and attached, and where they find what they read.

use std::io;
use std::os::fd::AsFd;

use aya::maps::{Map, MapError};
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, BtfError, Ebpf, EbpfError};
use ebpf_common::trace::Offsets;

use crate::kernel_types::{KernelTypes, TypesError};

/// What there is room for in `SOURCES`.
pub(crate) const MOST_SOURCES: usize = 1024;

/// What there is room for in `TARGETS`.
pub(crate) const MOST_TARGETS: usize = 1024;

/// UDP ports at which the programs unwrap.
pub(crate) const MOST_VXLAN_PORTS: usize = 2;

/// Why packets cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum TracepointError {
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
        "load the programs at tracepoints (CAP_BPF with CAP_PERFMON, or CAP_SYS_ADMIN, is needed, which root in a \
         container may lack)"
    )]
    Load(#[source] Box<EbpfError>),
    /// The object is not the one that this program was built with.
    #[error("the BPF object has no {0}")]
    Missing(&'static str),
    /// A program was refused.
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
    /// More addresses of the one end than there is room for.
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
    #[error("read the counters of the programs")]
    Counters(#[source] io::Error),
}

/// A tracepoint and the program for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) tracepoint: &'static str,
    pub(crate) program: &'static str,
}

/// Loads the programs. The verifier takes most of the time, and looks at each program alone: they are loaded at once, on
/// as many CPUs as there are.
pub(crate) fn load_all(programs: &mut Ebpf, chosen: &[Chosen], btf: &Btf) -> Result<(), TracepointError> {
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (found, program) in programs.programs_mut() {
            let Some(chosen) = chosen.iter().find(|chosen| chosen.program == found) else {
                continue;
            };
            let name = chosen.tracepoint;
            threads.push(scope.spawn(move || {
                let program: &mut BtfTracePoint = program.try_into().map_err(attach_failed(name))?;
                program.load(name, btf).map_err(attach_failed(name))
            }));
        }
        threads.into_iter().try_for_each(|thread| {
            let loaded = thread.join();
            loaded.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

pub(crate) fn attach(
    programs: &mut Ebpf,
    Chosen { tracepoint, program }: Chosen,
) -> Result<(), TracepointError> {
    let program = programs
        .program_mut(program)
        .ok_or(TracepointError::Missing(program))?;
    let program: &mut BtfTracePoint = program.try_into().map_err(attach_failed(tracepoint))?;
    program.attach().map(drop).map_err(attach_failed(tracepoint))
}

/// How often the kernel left a program out, since it ran on that CPU already.
pub(crate) fn left_out(programs: &Ebpf, chosen: &[Chosen]) -> Result<u64, TracepointError> {
    let mut left_out = 0;
    for Chosen { tracepoint, program } in chosen {
        let program = programs
            .program(program)
            .ok_or(TracepointError::Missing(program))?;
        let program: &BtfTracePoint = program.try_into().map_err(attach_failed(tracepoint))?;
        let fd = program.fd().map_err(attach_failed(tracepoint))?;
        left_out += crate::sys::recursion_misses(fd.as_fd()).map_err(TracepointError::Counters)?;
    }
    Ok(left_out)
}

/// Takes a program away from its tracepoint. Its counters go with it.
pub(crate) fn detach(
    programs: &mut Ebpf,
    Chosen { tracepoint, program }: Chosen,
) -> Result<(), TracepointError> {
    let program = programs
        .program_mut(program)
        .ok_or(TracepointError::Missing(program))?;
    let program: &mut BtfTracePoint = program.try_into().map_err(attach_failed(tracepoint))?;
    program.unload().map_err(attach_failed(tracepoint))
}

fn attach_failed(name: &'static str) -> impl FnOnce(ProgramError) -> TracepointError {
    move |source| TracepointError::Attach {
        name,
        source: Box::new(source),
    }
}

pub(crate) fn map(operation: &'static str, name: &'static str) -> impl FnOnce(MapError) -> TracepointError {
    move |source| TracepointError::Map {
        operation,
        name,
        source: Box::new(source),
    }
}

pub(crate) fn take(programs: &mut Ebpf, name: &'static str) -> Result<Map, TracepointError> {
    programs.take_map(name).ok_or(TracepointError::Missing(name))
}

/// Where the programs find what they read.
pub(crate) fn offsets(types: &KernelTypes) -> Result<Offsets, TracepointError> {
    let skb = |field| types.offset("sk_buff", field);
    let device = |field| types.offset("net_device", field);
    let tuples = tuples(types)?;
    Ok(Offsets {
        skb_dev: skb("dev")?,
        skb_sk: skb("sk")?,
        skb_len: skb("len")?,
        skb_protocol: skb("protocol")?,
        skb_network_header: skb("network_header")?,
        skb_tail: skb("tail")?,
        skb_head: skb("head")?,
        skb_data: skb("data")?,
        skb_nfct: tuples.map_or(Ok(Offsets::ABSENT), |_| skb("_nfct"))?,
        dev_name: device("name")?,
        dev_ifindex: device("ifindex")?,
        dev_net: device("nd_net")?,
        sock_net: types.offset("sock", "__sk_common.skc_net")?,
        net_inum: types.offset("net", "ns.inum")?,
        conn_original: tuples.map_or(0, |(original, _)| original),
        conn_reply: tuples.map_or(0, |(_, reply)| reply),
        conn_status: tuples.map_or(Ok(0), |_| types.offset("nf_conn", "status"))?,
        sock_cookie: types.offset("sock", "__sk_common.skc_cookie")?,
        skb_iif: skb("skb_iif")?,
        dev_upper: device("adj_list.upper")?,
    })
}

/// Where a connection has its tuples; `None` in kernels without connection tracking.
fn tuples(types: &KernelTypes) -> Result<Option<(u32, u32)>, TracepointError> {
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
            return Err(TracepointError::Tuple);
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
}
