//! Plans in the words of the hook's maps.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use ebpf::abi::net::{Ip4, Port};
use ebpf::abi::service::{FrontendKey4, NodeAddress, SlotKey, flags};
use model::{IpFamily, Protocol};

use crate::datapath::NodeRole;
use crate::plan::{Action, FrontendAddress, FrontendKey, List, PortPlan, Target};

pub(super) type Target4 = (Ip4, Port, u8);

/// The lists of one port, in slot order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lists {
    pub(super) cluster: Vec<Target4>,
    pub(super) local: Vec<Target4>,
}

impl Lists {
    /// Only lists that a frontend leads to are written.
    pub(super) fn needed(
        plan: &PortPlan,
        frontends: &BTreeMap<FrontendKey4, Action>,
        protocol: Protocol,
    ) -> Self {
        let of = |targets: &[Target]| {
            let targets = targets.iter();
            targets
                .filter_map(|target| {
                    Some((
                        ip4(target.address)?,
                        Port::new(target.port.get()),
                        protocol.number(),
                    ))
                })
                .collect()
        };
        let leads_to = |list| frontends.values().any(|action| list_of(*action) == Some(list));
        Self {
            cluster: if leads_to(List::Cluster) {
                of(&plan.cluster)
            } else {
                Vec::new()
            },
            local: if leads_to(List::Local) {
                of(&plan.local)
            } else {
                Vec::new()
            },
        }
    }

    pub(super) fn cluster_len(&self) -> u16 {
        u16::try_from(self.cluster.len()).unwrap_or(SlotKey::MAX_SLOTS)
    }

    pub(super) fn local_len(&self) -> u16 {
        u16::try_from(self.local.len()).unwrap_or(SlotKey::MAX_SLOTS)
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

pub(super) fn ip4(address: IpAddr) -> Option<Ip4> {
    match address {
        IpAddr::V4(address) => Some(Ip4::new(address.octets())),
        IpAddr::V6(_) => None,
    }
}

pub(super) fn node_address(role: NodeRole) -> NodeAddress {
    let flags = match role {
        NodeRole::ThisNode => NodeAddress::THIS_NODE,
        NodeRole::OtherNode => 0,
    };
    NodeAddress { flags }
}

/// The key in the map; none for what the hook does not see (SCTP, IPv6).
pub(super) fn to_abi(key: &FrontendKey) -> Option<FrontendKey4> {
    let (addr, kind) = match key.address {
        FrontendAddress::Service(address) => (ip4(address)?, FrontendKey4::ADDRESS),
        FrontendAddress::EveryNodeAddress(IpFamily::V4) => (Ip4::ANY, FrontendKey4::NODE_PORT),
        FrontendAddress::EveryNodeAddress(IpFamily::V6) => return None,
    };
    let seen = matches!(key.protocol, Protocol::Tcp | Protocol::Udp);
    seen.then(|| FrontendKey4 {
        addr,
        port: Port::new(key.port.get()),
        proto: key.protocol.number(),
        kind,
    })
}

pub(super) fn from_abi(key: &FrontendKey4) -> Option<FrontendKey> {
    let address = match key.kind {
        FrontendKey4::ADDRESS => FrontendAddress::Service(Ipv4Addr::from(key.addr.octets()).into()),
        FrontendKey4::NODE_PORT => FrontendAddress::EveryNodeAddress(IpFamily::V4),
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
