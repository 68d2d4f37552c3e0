//! What stands beside routes on a packet's way: the fast path, which passes them by, and connection tracking.

use std::net::IpAddr;

use proxy::programmed::LayerKind;

use super::super::objects::Way;
use super::super::witness::{Seen, Witness};
use super::super::{Step, compare, passage, rules, ruling};
use super::Walk;

/// The fast path's part.
pub(super) struct Passing {
    pub(super) step: Step,
    /// The node that it wraps the packet for, if any.
    pub(super) node: Option<IpAddr>,
    /// Whether the stack gets the packet all the same.
    is_left: bool,
}

impl Passing {
    /// Whether the packet passes by the stack, and gets where it shall.
    pub(super) fn is_taken(&self) -> bool {
        !self.is_left && self.step.problems.is_empty()
    }
}

impl Walk<'_> {
    /// The fast path's part in a packet that comes by a device. None: it leaves it to the stack, or nobody can say what it
    /// should do. `opener`: the device, where a pod opens a connection by it, so that the program there can be asked.
    pub(super) fn passage(
        &self,
        kernel: &mut dyn Witness,
        device: Option<&str>,
        opener: Option<&str>,
        to: IpAddr,
    ) -> Seen<Option<Passing>> {
        let way = self.way(to);
        let out = match &way {
            Way::Pod { device, .. } | Way::Tunnel { device, .. } => device,
            _ => return Ok(None),
        };
        // What the rules translate is addressed to a Service, and stays with the stack.
        let is_direct = matches!(self.translated_by, None | Some(LayerKind::SocketHook));
        let (Some(device), Some(pin_dir), true) = (device, self.pin_dir(), self.is_tcp && is_direct) else {
            return Ok(None);
        };
        let found = kernel.fast_path(pin_dir, device, to);
        let told = opener
            .and_then(|device| self.opening(device, to))
            .map(|opening| kernel.ruling(pin_dir, &opening));
        if matches!((&found, &told), (Ok(None), None | Some(Ok(None) | Err(_)))) {
            return Ok(None);
        }
        let link = kernel.link_named(out)?;
        let index = link.as_ref().map(|link| link.index);
        let node = match found {
            Ok(Some(passage::Found::Remote(_, node))) => Some(node),
            _ => None,
        };
        let mut step = match &found {
            Ok(Some(found)) => passage::step(&way, to, device, Ok(*found), index),
            Ok(None) => ruling::step(to),
            Err(reason) => passage::step(&way, to, device, Err(reason), index),
        };
        let is_left = match (&found, told) {
            (Ok(found), Some(told)) => ruling::compare(&mut step, device, *found, told, &way, link.as_ref()),
            _ => false,
        };
        // A pod's device does not run where its other end is down.
        let is_pod = matches!(way, Way::Pod { .. });
        if !is_left && link.is_some_and(|link| !link.up || (is_pod && !link.running)) {
            step.problems.push(format!("{out} is down, or its other end is"));
        }
        Ok(Some(Passing { step, node, is_left }))
    }

    /// A connection that a pod of this node opens; none where it is not known who that is.
    fn opening<'o>(&self, device: &'o str, to: IpAddr) -> Option<ruling::Opening<'o>> {
        let pod = self
            .pods()
            .iter()
            .find(|pod| pod.addresses.contains(&self.source))?;
        Some(ruling::Opening {
            device,
            source: self.source,
            mac: pod.mac?,
            to,
            port: self.asked.port_at(to)?,
        })
    }

    /// Whether connection tracking takes what the stack forwards. Questions to the node's own DNS server are not tracked.
    pub(super) fn tracking(
        &self,
        kernel: &mut dyn Witness,
        to: IpAddr,
        trip: Option<&rules::Trip>,
    ) -> Option<Step> {
        let context = self.facts().and_then(|facts| facts.context.as_ref());
        let is_untracked =
            context.is_some_and(|context| context.dns_answers && context.local_dns.contains(&to));
        let trip = trip.filter(|_| !is_untracked)?;
        compare::tracking(kernel.tracked()?, trip.about(), self.vantage)
    }
}
