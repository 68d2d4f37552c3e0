//! The fast path between pods: it takes TCP past this node's routes, neighbours and rules.

use std::net::IpAddr;

use ebpf::FastPathMaps;
use ebpf::abi::pods::Hop;
use model::{MacAddr, with_causes};

use super::objects::Way;
use super::{Entry, Stage, Step};

/// What of the fast path concerns a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The pod's entry.
    Pod(Hop),
    /// The entry of the other node's subnet, and that node.
    Remote(Hop, IpAddr),
}

/// Looks up who takes a packet that comes by `device`. None: the stack does.
///
/// # Errors
/// When the maps cannot be read.
pub fn look(maps: &FastPathMaps, device: &str, to: IpAddr) -> Result<Option<Found>, ebpf::Error> {
    if !maps.is_attached(device) || !maps.lets_begin()? {
        return Ok(None);
    }
    if let Some(hop) = maps.pod(to)? {
        return Ok(Some(Found::Pod(hop)));
    }
    let remote = maps.remote(to)?;
    Ok(remote.map(|remote| Found::Remote(remote.hop, remote.node.into())))
}

/// What both say of it. `index` is that of the device that the plan leads to, where there is one.
#[must_use]
pub fn step(
    wanted: &Way,
    to: IpAddr,
    device: &str,
    found: Result<Found, &ebpf::Error>,
    index: Option<u32>,
) -> Step {
    let mut step = Step::new(Stage::FastPath, to.to_string());
    step.objects
        .push("TCP from pod to pod: past this node's routes, neighbours and rules".to_owned());
    let attached = Some("a program looks at what comes by it".to_owned());
    step.kernel.push(Entry::new("pinned links", device, attached));
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            step.unknown
                .push(format!("its maps cannot be read: {}", with_causes(error)));
            return step;
        }
    };
    let hop = match found {
        Found::Pod(hop) => {
            step.kernel
                .push(Entry::new("map PODS", to.to_string(), Some(hop_text(&hop))));
            hop
        }
        Found::Remote(hop, node) => {
            let value = format!("node {node}, {}", hop_text(&hop));
            step.kernel
                .push(Entry::new("map REMOTES", to.to_string(), Some(value)));
            hop
        }
    };
    let mac = MacAddr(hop.there);
    let leads = match (wanted, found) {
        (Way::Pod { mac: wanted, .. }, Found::Pod(_)) => wanted.is_none_or(|wanted| wanted == mac),
        (
            Way::Tunnel {
                mac: wanted,
                public_ip,
                ..
            },
            Found::Remote(_, node),
        ) => (*wanted, *public_ip) == (mac, node),
        _ => false,
    };
    if !leads || index.is_some_and(|index| index != hop.ifindex) {
        step.problems.push(format!(
            "the fast path leads {to} to {mac} by device {}, not to where it is",
            hop.ifindex
        ));
    }
    step
}

fn hop_text(hop: &Hop) -> String {
    format!(
        "{} by device {}, MTU {}",
        MacAddr(hop.there),
        hop.ifindex,
        hop.mtu
    )
}

/// Makes of what the stack would stumble over what it is where the fast path serves: differences. A device that is down
/// or too small stops both, and so does an underlay without a way.
pub fn pass_by(steps: &mut [Step]) {
    let is_passed = |step: &&mut Step| !matches!(step.stage, Stage::Link | Stage::Underlay);
    for step in steps.iter_mut().filter(is_passed) {
        let problems = std::mem::take(&mut step.problems);
        step.differences.extend(problems);
    }
}
