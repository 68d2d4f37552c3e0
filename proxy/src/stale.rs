//! Flows that connection tracking still sends where they are not answered: what it decided for a flow's first packet
//! holds for all of them.
//!
//! - A UDP "connection" lives as long as its client keeps sending: without this, clients of a DNS server that went away
//!   would be sent to it for ever (kubernetes#48370). Flows to endpoints that still serve are left alone, whether or
//!   not they would be chosen again.
//! - A connection that was tried before its Service was in the kernel went out untranslated, and so does whatever tries
//!   again by the same port within two minutes. What somebody answers is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use model::{IpFamily, Protocol};
use netlink::conntrack::{Conntrack, Flow, Glance, Tuple};

use crate::Error;
use crate::plan::{FrontendAddress, FrontendKey, PortPlan, ServicePlan, Target};

/// What was done about stale flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Flows that connection tracking forgot, by version of IP.
    pub flows: BTreeMap<IpFamily, u64>,
    /// Sockets that were ended.
    pub sockets: u64,
}

impl Forgotten {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.flows.values().sum::<u64>() + self.sockets
    }
}

/// Which flows are stale: those by UDP to a frontend below that none of its endpoints answers, and those that went to
/// an address untranslated where a frontend appeared, if nobody answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StaleFlows {
    appeared: BTreeSet<(u8, SocketAddr)>,
    services: BTreeMap<SocketAddr, BTreeSet<SocketAddr>>,
    node_ports: BTreeMap<(IpFamily, u16), BTreeSet<SocketAddr>>,
    /// This node's own addresses.
    node_addresses: BTreeSet<IpAddr>,
}

impl StaleFlows {
    /// What a change of plans leaves behind. Flows of a frontend that is new are looked at too: before it was there
    /// their packets went out untranslated, and tracking would keep it so.
    pub fn add_change(&mut self, old: &ServicePlan, new: &ServicePlan) {
        let (known, wanted) = (addresses_of(old), addresses_of(new));
        for gone in known.difference(&wanted) {
            self.appeared.remove(gone);
        }
        self.appeared.extend(wanted.difference(&known));
        let before = udp_frontends(old);
        let after = udp_frontends(new);
        for key in before.keys().filter(|key| !after.contains_key(*key)) {
            self.add_gone(key);
        }
        for (key, port) in after {
            let lost = before
                .get(&key)
                .is_none_or(|old| !old.serving.is_subset(&port.serving));
            // What an earlier attempt left undone must not be done with the endpoints of that time.
            if lost || self.contains(&key) {
                *self.entry(&key) = port.serving.iter().map(socket_address).collect();
            }
        }
    }

    /// A frontend that is gone altogether, unless another Service has it by now.
    pub fn add_gone(&mut self, key: &FrontendKey) {
        if key.protocol == Protocol::Udp {
            self.entry(key);
        }
    }

    /// On which addresses this node serves node ports.
    pub fn set_node_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.node_addresses = addresses.into_iter().collect();
    }

    /// Whether there is nothing to look for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.appeared.is_empty() && self.services.is_empty() && self.node_ports.is_empty()
    }

    /// Makes connection tracking forget the flows. One that cannot be forgotten keeps no other.
    ///
    /// # Errors
    /// The first failure.
    pub fn forget_in(&self, conntrack: &mut Conntrack) -> Result<Forgotten, Error> {
        let flows = conntrack.flows(|glance| self.may_be_stale(glance), |flow| self.is_stale(flow))?;
        let mut forgotten = Forgotten::default();
        let mut failure = None;
        for flow in flows {
            match conntrack.delete(&flow) {
                Ok(()) => {
                    let family = flow.original.destination.ip().into();
                    *forgotten.flows.entry(family).or_default() += 1;
                }
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(forgotten), |error| Err(error.into()))
    }

    fn may_be_stale(&self, Glance { protocol, answered }: Glance) -> bool {
        if protocol == Protocol::Udp.number() {
            !self.services.is_empty() || !self.node_ports.is_empty()
        } else {
            !answered && !self.appeared.is_empty()
        }
    }

    fn is_stale(&self, flow: &Flow) -> bool {
        self.matches(&flow.original, &flow.reply, flow.answered)
    }

    /// Whether a flow leads nowhere (any more): as its client sends, as answers are expected, and whether any came.
    #[must_use]
    pub fn matches(&self, original: &Tuple, reply: &Tuple, answered: bool) -> bool {
        let (protocol, to, answers) = (original.protocol, original.destination, reply.source);
        if protocol == Protocol::Udp.number() {
            return self.leads_nowhere(to, answers);
        }
        !answered && answers == to && self.appeared.contains(&(protocol, to))
    }

    /// Whether a UDP client that asks `to` and is answered by `answers` will not be answered any more.
    #[must_use]
    pub fn leads_nowhere(&self, to: SocketAddr, answers: SocketAddr) -> bool {
        let by_address = self
            .services
            .get(&to)
            .is_some_and(|serving| !serving.contains(&answers));
        // Without translation it was a flow to this node, or none to a node port: to the same port somewhere else.
        let to_node_port = to != answers || self.node_addresses.contains(&to.ip());
        let by_node_port = to_node_port
            && self
                .node_ports
                .get(&(to.ip().into(), to.port()))
                .is_some_and(|serving| !serving.contains(&answers));
        by_address || by_node_port
    }

    fn contains(&self, key: &FrontendKey) -> bool {
        match key.address {
            FrontendAddress::Service(address) => self
                .services
                .contains_key(&SocketAddr::new(address, key.port.get())),
            FrontendAddress::EveryNodeAddress(family) => {
                self.node_ports.contains_key(&(family, key.port.get()))
            }
        }
    }

    fn entry(&mut self, key: &FrontendKey) -> &mut BTreeSet<SocketAddr> {
        match key.address {
            FrontendAddress::Service(address) => self
                .services
                .entry(SocketAddr::new(address, key.port.get()))
                .or_default(),
            FrontendAddress::EveryNodeAddress(family) => {
                self.node_ports.entry((family, key.port.get())).or_default()
            }
        }
    }
}

/// Where clients find a Service by other protocols than UDP. Node ports are not among them: while one is not there,
/// the node itself refuses, and tracking forgets a connection that was refused.
fn addresses_of(plan: &ServicePlan) -> BTreeSet<(u8, SocketAddr)> {
    let frontends = plan.frontends().filter(|key| key.protocol != Protocol::Udp);
    let addresses = frontends.filter_map(|key| match key.address {
        FrontendAddress::Service(address) => {
            Some((key.protocol.number(), SocketAddr::new(address, key.port.get())))
        }
        FrontendAddress::EveryNodeAddress(_) => None,
    });
    addresses.collect()
}

fn udp_frontends(plan: &ServicePlan) -> BTreeMap<FrontendKey, &PortPlan> {
    let udp = plan.ports.iter().filter(|(key, _)| key.protocol == Protocol::Udp);
    udp.flat_map(|(_, port)| port.frontends.keys().map(move |key| (*key, port)))
        .collect()
}

fn socket_address(target: &Target) -> SocketAddr {
    let address: IpAddr = target.address;
    SocketAddr::new(address, target.port.get())
}
