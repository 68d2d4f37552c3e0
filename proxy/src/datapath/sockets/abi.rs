//! Plans in the words of the hook's maps.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use ebpf::abi::net::{Ip, Port};
use ebpf::abi::service::{FrontendKey as HookKey, Membership, NodeAddress, SlotKey, flags};
use model::{IpFamily, Protocol};

use crate::datapath::NodeRole;
use crate::plan::{Action, FrontendAddress, FrontendKey, List, PortPlan, Target};

/// An endpoint's address, port and protocol.
pub(super) type Place = (Ip, Port, u8);

fn place(target: &Target, protocol: Protocol) -> Place {
    let port = Port::new(target.port.get());
    (target.address.into(), port, protocol.number())
}

/// The lists of one port, in slot order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lists {
    pub(super) cluster: Vec<Place>,
    pub(super) local: Vec<Place>,
}

impl Lists {
    /// Only lists that a frontend leads to are written.
    pub(super) fn needed(plan: &PortPlan, frontends: &BTreeMap<HookKey, Action>, protocol: Protocol) -> Self {
        let of = |list: List, targets: &[Target]| {
            let mut lists = frontends.values().map(|action| list_of(*action));
            if lists.any(|used| used == Some(list)) {
                targets.iter().map(|target| place(target, protocol)).collect()
            } else {
                Vec::new()
            }
        };
        Self {
            cluster: of(List::Cluster, &plan.cluster),
            local: of(List::Local, &plan.local),
        }
    }

    pub(super) fn cluster_len(&self) -> u16 {
        u16::try_from(self.cluster.len()).unwrap_or(SlotKey::MAX_SLOTS)
    }

    pub(super) fn local_len(&self) -> u16 {
        u16::try_from(self.local.len()).unwrap_or(SlotKey::MAX_SLOTS)
    }
}

/// Endpoints that clients of one port may stay with, and the bits of [`Membership`] that say how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Members(pub(super) BTreeMap<Place, u32>);

impl Members {
    /// Connections of TCP ask for them with affinity alone; datagrams also without, to go on where their flow goes.
    pub(super) fn needed(plan: &PortPlan, lists: &Lists, protocol: Protocol) -> Self {
        let mut members = Self::default();
        let flows = protocol == Protocol::Udp;
        if plan.affinity.is_some() || flows {
            members.add(lists.cluster.iter().copied(), Membership::IN_CLUSTER);
            members.add(lists.local.iter().copied(), Membership::IN_LOCAL);
        }
        if flows {
            let serving = plan.serving.iter().map(|target| place(target, protocol));
            members.add(serving, Membership::SERVING);
        }
        members
    }

    fn add(&mut self, places: impl Iterator<Item = Place>, bit: u32) {
        for place in places {
            *self.0.entry(place).or_default() |= bit;
        }
    }
}

/// Which list a connection from this node is spread over. `Split` concerns only clients from outside.
fn list_of(action: Action) -> Option<List> {
    match action {
        Action::Refuse | Action::Drop => None,
        Action::Spread { list, .. } => Some(list),
        Action::Split => Some(List::Cluster),
    }
}

pub(super) fn flags_of(action: Action) -> u16 {
    match action {
        Action::Refuse => flags::REFUSE,
        // An empty local list: the hook leaves the connection to the packet rules, which drop it.
        Action::Drop
        | Action::Spread {
            list: List::Local, ..
        } => flags::LOCAL_ONLY,
        Action::Spread {
            list: List::Cluster, ..
        } => 0,
        Action::Split => flags::THIS_NODE_ONLY,
    }
}

/// In whole seconds, since 0 would be none.
pub(super) fn affinity_seconds(affinity: Option<Duration>) -> u32 {
    let seconds = |timeout: Duration| u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).max(1);
    affinity.map_or(0, seconds)
}

pub(super) fn node_address(role: NodeRole) -> NodeAddress {
    let flags = match role {
        NodeRole::ThisNode => NodeAddress::THIS_NODE,
        NodeRole::OtherNode => 0,
    };
    NodeAddress { flags }
}

/// The key in the map; none for what the hook does not see (SCTP).
pub(super) fn to_abi(key: &FrontendKey) -> Option<HookKey> {
    let (addr, kind) = match key.address {
        FrontendAddress::Service(address) => (address.into(), HookKey::ADDRESS),
        FrontendAddress::EveryNodeAddress(IpFamily::V4) => (Ip::ANY, HookKey::NODE_PORT4),
        FrontendAddress::EveryNodeAddress(IpFamily::V6) => (Ip::ANY, HookKey::NODE_PORT6),
    };
    let seen = matches!(key.protocol, Protocol::Tcp | Protocol::Udp);
    seen.then(|| HookKey {
        addr,
        port: Port::new(key.port.get()),
        proto: key.protocol.number(),
        kind,
    })
}

pub(super) fn from_abi(key: &HookKey) -> Option<FrontendKey> {
    let address = match key.kind {
        HookKey::ADDRESS => FrontendAddress::Service(IpAddr::from(key.addr)),
        HookKey::NODE_PORT4 => FrontendAddress::EveryNodeAddress(IpFamily::V4),
        HookKey::NODE_PORT6 => FrontendAddress::EveryNodeAddress(IpFamily::V6),
        _ => return None,
    };
    let protocols = [Protocol::Tcp, Protocol::Udp];
    let protocol = protocols
        .into_iter()
        .find(|protocol| protocol.number() == key.proto)?;
    Some(FrontendKey {
        address,
        port: NonZeroU16::new(key.port.number())?,
        protocol,
    })
}
