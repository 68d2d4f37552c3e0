//! What an interface gets, as things stand. Pure.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use model::{ByFamily, MacAddr, Mtu};

use super::addresses::{Addresses, AttachmentKey, Refused};
use super::clock::Now;
use super::line::Line;
use super::pool::{Growth, Served};
use super::{Attachment, PodError, wiring};

/// The interface of a pod that its name goes with: runtimes call a pod's first one so.
const FIRST_IFNAME: &str = "eth0";

/// What there is, and who wants of it.
pub(super) struct State {
    pub(super) addresses: Addresses,
    pub(super) place: Place,
    pub(super) line: Line,
    /// Interfaces that got their addresses from this process, and of which nobody was told that they can be used.
    pub(super) unanswered: HashSet<AttachmentKey>,
    /// Told after every change.
    pub(super) listener: Option<Box<dyn Fn() + Send>>,
}

/// Where new pods go.
pub(super) enum Place {
    /// Nowhere yet.
    Waiting { reason: String },
    /// Into these subnets, with an address of each.
    Ready { subnets: ByFamily<IpNetwork>, mtu: Mtu },
    /// Into blocks.
    Pool(Served),
}

impl Place {
    /// The MTU of pods' devices.
    pub(super) fn mtu(&self) -> Result<Mtu, PodError> {
        match self {
            Self::Waiting { reason } => Err(PodError::NotReady {
                reason: reason.clone(),
            }),
            Self::Ready { mtu, .. } => Ok(*mtu),
            Self::Pool(pool) => Ok(pool.mtu()),
        }
    }

    /// Whether an interface's addresses are what it would get.
    pub(super) fn has(&self, addresses: &ByFamily<IpAddr>) -> bool {
        match self {
            Self::Waiting { .. } => false,
            Self::Ready { subnets, .. } => are_of(addresses, subnets),
            Self::Pool(pool) => pool.has(addresses),
        }
    }

    /// What there is to be given.
    fn networks(&self) -> Vec<String> {
        match self {
            Self::Waiting { .. } => Vec::new(),
            Self::Ready { subnets, .. } => subnets.values().map(IpNetwork::to_string).collect(),
            Self::Pool(pool) => pool.networks().map(|network| network.to_string()).collect(),
        }
    }
}

impl State {
    /// Addresses for an interface, one of each version of IP. `ahead` are before it.
    pub(super) fn choose(
        &self,
        attachment: &Attachment,
        ahead: usize,
        now: Now,
    ) -> Result<ByFamily<IpAddr>, PodError> {
        let Attachment {
            key, wishes, taken, ..
        } = attachment;
        let chosen = match &self.place {
            Place::Waiting { reason } => {
                return Err(PodError::NotReady {
                    reason: reason.clone(),
                });
            }
            Place::Ready { subnets, .. } => self.addresses.choose_each(subnets, &wishes.ips, key, taken),
            Place::Pool(pool) => pool.choose_each(&self.addresses, &wishes.ips, key, taken, ahead, now),
        };
        chosen.map_err(|refused| match refused {
            Refused::Exhausted(subnet) => PodError::Exhausted {
                subnet,
                used: self.addresses.iter().count(),
            },
            Refused::InUse(address) => PodError::InUse(address),
            Refused::NotOfThisNode(address) => PodError::NotOfThisNode {
                address,
                subnets: self.place.networks(),
            },
            Refused::NoneNow => self.none_now(ahead, now),
        })
    }

    /// Whether an interface would get an address, if not now.
    pub(super) fn could_serve(&self, now: Now) -> Result<(), PodError> {
        let refused = match self.choose(&Attachment::default(), 0, now) {
            Ok(_) => return Ok(()),
            Err(refused) => refused,
        };
        let (Place::Pool(pool), PodError::NoneNow { next_cool, .. }) = (&self.place, &refused) else {
            return Err(refused);
        };
        match pool.growth() {
            _ if next_cool.is_some() => Ok(()),
            Growth::Possible if pool.is_empty() => Err(PodError::NotReady {
                reason: "its pool has no block yet".to_owned(),
            }),
            Growth::Blocked { reason } if pool.is_empty() => Err(PodError::NotReady {
                reason: reason.clone(),
            }),
            Growth::Possible => Ok(()),
            Growth::Blocked { reason } => Err(PodError::NoneComing {
                used: self.addresses.iter().count(),
                reason: reason.clone(),
            }),
        }
    }

    fn none_now(&self, ahead: usize, now: Now) -> PodError {
        let Place::Pool(pool) = &self.place else {
            return PodError::NoPool;
        };
        let counts = pool.counts(&self.addresses, now);
        let (blocks, assigned): (usize, usize) =
            (counts.len(), counts.iter().map(|count| count.assigned).sum());
        let cooling: usize = counts.iter().map(|count| count.cooling).sum();
        let outlook = match pool.growth() {
            Growth::Possible => "more are asked for",
            Growth::Blocked { reason } => reason,
        };
        PodError::NoneNow {
            waiting_for: format!(
                "{blocks} blocks with {assigned} addresses in use, {cooling} that cool down, {ahead} pods before this one: {outlook}"
            ),
            next_cool: pool.next_cool(&self.addresses, now),
        }
    }

    /// The name of an interface's device, where that does not follow from its key alone. It keeps the one that it has. A
    /// device that is there, with its MAC address, may be another one's without a record.
    pub(super) fn host_ifname(
        &self,
        attachment: &Attachment,
        device: Option<Option<MacAddr>>,
    ) -> Option<String> {
        let key = &attachment.key;
        if let Some(before) = self.addresses.get(key) {
            return before.host_ifname.clone();
        }
        if !matches!(self.place, Place::Pool(_)) {
            return None;
        }
        let is_strange = device.is_some_and(|mac| mac != Some(wiring::host_mac(key)));
        let by_pod =
            eni_ifname_of(attachment).filter(|name| !is_strange && !self.addresses.is_called(name, key));
        Some(by_pod.unwrap_or_else(|| wiring::eni_ifname_by_key(key)))
    }
}

/// What a pod's first interface is called after the pod.
pub(super) fn eni_ifname_of(attachment: &Attachment) -> Option<String> {
    let pod = attachment.pod.as_ref();
    pod.filter(|_| attachment.key.ifname == FIRST_IFNAME)
        .map(wiring::eni_ifname)
}

/// Whether there is an address of each subnet, and no other.
fn are_of(addresses: &ByFamily<IpAddr>, subnets: &ByFamily<IpNetwork>) -> bool {
    addresses.families() == subnets.families()
        && subnets.iter().all(|(family, subnet)| {
            addresses
                .get(family)
                .is_some_and(|address| subnet.contains(*address))
        })
}
