//! How packets of pods with addresses of a VPC leave this node, there and back.

use std::net::IpAddr;

use model::MacAddr;

use super::{Origin, Walk};
use crate::explain::vpc::Leaving;
use crate::explain::witness::{Seen, Witness};

impl Walk<'_> {
    /// How a packet to that address leaves, where such a pod sends it.
    pub(super) fn leaving(&self, to: IpAddr) -> Option<Leaving> {
        let ways = self.facts()?.vpc.as_ref()?;
        (self.is_pod(self.source) && self.is_outside(to)).then(|| ways.leaving(self.source, to))
    }

    /// How such a pod's answer leaves.
    pub(super) fn answering(
        &self,
        kernel: &mut dyn Witness,
        origin: &Origin,
        pod: IpAddr,
    ) -> Seen<Option<Leaving>> {
        let Some(ways) = self.facts().and_then(|facts| facts.vpc.as_ref()) else {
            return Ok(None);
        };
        if !self.is_pod(pod) || !self.is_outside(self.source) {
            return Ok(None);
        }
        let device = match &origin.device {
            Some((index, _)) => kernel.link_at(*index)?.and_then(|link| link.mac).map(MacAddr),
            None => None,
        };
        let asked_the_node = self.own.contains(&self.destination);
        Ok(Some(ways.answering(pod, self.source, device, asked_the_node)))
    }

    fn is_pod(&self, address: IpAddr) -> bool {
        self.pods().iter().any(|pod| pod.addresses.contains(&address))
    }

    /// Whether an address is neither the node's nor a pod's of it.
    fn is_outside(&self, address: IpAddr) -> bool {
        !self.own.contains(&address) && !self.is_pod(address)
    }
}
