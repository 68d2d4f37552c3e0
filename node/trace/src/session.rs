//! A session: the programs are attached, and what they see comes as hops.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use ebpf::abi::net::Port;
use ebpf::kernel_types::{KernelTypes, TypesError};
use ebpf::tracepoints::TracepointError;
use ebpf::tracer::{Tracer, Wanted};
use serde::{Deserialize, Serialize};

use crate::hop::{Hop, Protocol};
use crate::places::Places;
use crate::story::Gaps;

/// UDP ports of VXLAN: IANA's (RFC 7348 §5), and that of Linux and flannel.
pub const VXLAN_PORTS: [u16; 2] = [4789, 8472];

/// Whose packets are followed, in both directions, under whatever addresses NAT gives them on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    /// Addresses of one end, at most 1024; none: anybody.
    pub sources: Vec<IpAddr>,
    /// The port of that end; `None`: any.
    pub source_port: Option<u16>,
    /// Addresses and ports of the other end; none: anybody.
    pub targets: Vec<(IpAddr, Option<u16>)>,
    /// Protocol of layer 4; `None`: any.
    pub protocol: Option<Protocol>,
    /// UDP ports at which packets are unwrapped, at most two.
    pub vxlan_ports: Vec<u16>,
}

impl Default for Filter {
    /// Everything, with [`VXLAN_PORTS`].
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            source_port: None,
            targets: Vec::new(),
            protocol: None,
            vxlan_ports: VXLAN_PORTS.to_vec(),
        }
    }
}

/// Why packets cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The kernel does not tell its types.
    #[error(transparent)]
    Types(#[from] TypesError),
    /// The programs cannot be loaded or asked.
    #[error(transparent)]
    Programs(#[from] TracepointError),
}

/// The attached programs, and the names of what they tell.
#[derive(Debug)]
pub struct Session {
    tracer: Tracer,
    places: Places,
    node: String,
    attached_in: Duration,
}

impl Session {
    /// Attaches the programs. Every packet of the filter is seen from here on until this is dropped. `node` is the name
    /// of this machine in what is told. Needs root, and Linux 5.17 or newer with BTF.
    ///
    /// # Errors
    /// When the kernel lacks something, or this process the right.
    pub fn start(filter: &Filter, node: &str) -> Result<Self, TraceError> {
        let began = Instant::now();
        let wanted = wanted(filter);
        let types = KernelTypes::read()?;
        let places = Places::read(&types)?;
        let tracer = Tracer::start(&wanted, &types)?;
        Ok(Self {
            tracer,
            places,
            node: node.to_owned(),
            attached_in: began.elapsed(),
        })
    }

    /// How long it took to attach.
    #[must_use]
    pub fn attached_in(&self) -> Duration {
        self.attached_in
    }

    /// The next hop, waited for until `deadline`; `None`: there was none.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn next_hop(&mut self, deadline: Instant) -> Result<Option<Hop>, TraceError> {
        loop {
            while let Some(event) = self.tracer.next_event() {
                // Not before: who finds nobody shall cost others nothing.
                self.places.read_functions();
                if let Some(hop) = Hop::of(&event, &self.node, &mut self.places) {
                    return Ok(Some(hop));
                }
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            self.tracer.wait(deadline)?;
        }
    }

    /// What was not seen since the start.
    ///
    /// # Errors
    /// When the kernel does not say it.
    pub fn gaps(&self) -> Result<Gaps, TraceError> {
        Ok(Gaps {
            lost_events: self.tracer.lost()?,
            missed_events: self.tracer.missed()?,
        })
    }
}

impl AsFd for Session {
    /// Readable when there may be a hop.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tracer.as_fd()
    }
}

fn wanted(filter: &Filter) -> Wanted {
    let Filter {
        sources,
        source_port,
        targets,
        protocol,
        vxlan_ports,
    } = filter;
    let target = |(address, port): &(IpAddr, Option<u16>)| ((*address).into(), port.map(Port::new));
    Wanted {
        sources: sources.iter().map(|address| (*address).into()).collect(),
        source_port: source_port.map(Port::new),
        targets: targets.iter().map(target).collect(),
        protocol: protocol.map(|Protocol(number)| number),
        vxlan_ports: vxlan_ports.iter().map(|port| Port::new(*port)).collect(),
    }
}
