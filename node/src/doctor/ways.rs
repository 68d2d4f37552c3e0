//! The ways out of this node: to the world, and to other nodes and the API server with packets as large as its devices
//! take them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use model::{IpFamily, NodeName, Snapshot, with_causes};
use netlink::path::{Passes, probe};
use netlink::{Found, Kernel as _, Lookup, Netlink};

use super::finding;
use crate::findings::Finding;

/// Nodes that are asked: those behind this one in the order of their names, so that of all nodes' doctors together
/// each node is asked by as many.
const ASKED: usize = 16;

/// For how long a way is not tried again.
const PROVEN_FOR: Duration = Duration::from_secs(5);

/// Addresses of the world. Nothing is sent there: a route is looked up. Two, since somebody may have a route of his own
/// for one of them.
const OUTSIDE_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(1, 1, 1, 1)];
const OUTSIDE_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111),
];

/// Versions of IP in which a route leads out of this node's networks.
///
/// # Errors
/// When the kernel does not answer.
fn leading_out() -> netlink::Result<BTreeSet<IpFamily>> {
    let mut kernel = Netlink::open()?;
    let outside = OUTSIDE_V4.map(IpAddr::from).into_iter();
    let mut families = BTreeSet::new();
    for destination in outside.chain(OUTSIDE_V6.map(IpAddr::from)) {
        let found = kernel.look_up(&Lookup {
            destination,
            source: None,
            device: None,
            mark: 0,
        })?;
        if !matches!(found, Found::Refused(_)) {
            families.insert(IpFamily::from(destination));
        }
    }
    Ok(families)
}

/// Versions of IP in which a route was seen to lead out since the agent began.
#[derive(Debug, Default)]
pub struct LedOut(Mutex<BTreeSet<IpFamily>>);

impl LedOut {
    /// Those in which one leads out now, as far as the kernel says it.
    #[must_use]
    pub fn begun() -> Self {
        let leads = leading_out().unwrap_or_else(|error| {
            tracing::warn!(
                error = with_causes(&error),
                "routes out of this node are not known yet: the next look of doctor begins with those that it finds"
            );
            BTreeSet::new()
        });
        Self(Mutex::new(leads))
    }

    /// Those of before in which none leads out any more. The others count from now on.
    fn lost(&self, leads: BTreeSet<IpFamily>) -> BTreeSet<IpFamily> {
        let mut led = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = led.difference(&leads).copied().collect();
        led.extend(leads);
        lost
    }
}

/// Versions of IP in which a route led out since the agent began, and none does any more.
///
/// # Errors
/// When the kernel does not answer.
pub fn outside(led: &LedOut) -> netlink::Result<Vec<Finding>> {
    let lost = led.lost(leading_out()?).into_iter().map(|family| {
        let (name, command) = match family {
            IpFamily::V4 => ("IPv4", "ip route"),
            IpFamily::V6 => ("IPv6", "ip -6 route"),
        };
        finding(
            "default-route",
            format!("default route of {name}"),
            "it is gone: neither the node nor its pods reach anything outside of the networks that have a route of their \
             own, and what is masqueraded has no way"
                .to_owned(),
            &format!(
                "{command} add default via GATEWAY dev DEVICE; a device that was taken down and up again lost its routes: \
                 let what configures the network do it again"
            ),
        )
    });
    Ok(lost.collect())
}

/// Somebody whom packets of this node must reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// A kind and a name.
    pub name: String,
    /// Where it is.
    pub address: IpAddr,
}

/// Other nodes, as far as they are asked.
#[must_use]
pub fn peers(snapshot: &Snapshot, own: &NodeName) -> Vec<Peer> {
    let mut names: Vec<_> = snapshot.nodes.iter().map(|(name, _)| name.clone()).collect();
    names.sort();
    let behind = names.partition_point(|name| name <= own);
    names.rotate_left(behind);
    let others = names.iter().filter(|name| *name != own).take(ASKED);
    let peer = |name: &NodeName| {
        let node = snapshot.nodes.get(name)?;
        Some(Peer {
            name: format!("Node {name}"),
            address: *node.internal_addresses.first()?,
        })
    };
    others.filter_map(peer).collect()
}

/// Where large packets arrived lately, and how large they were: hosts answer few questions each second.
#[derive(Debug, Default)]
pub struct Proven(Mutex<BTreeMap<IpAddr, (u32, Instant)>>);

impl Proven {
    fn has(&self, to: IpAddr, bytes: u32) -> bool {
        let proven = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        proven
            .get(&to)
            .is_some_and(|(arrived, when)| *arrived == bytes && when.elapsed() < PROVEN_FOR)
    }

    fn note(&self, to: IpAddr, bytes: u32) {
        let mut proven = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        proven.retain(|_, (_, when)| when.elapsed() < PROVEN_FOR);
        proven.insert(to, (bytes, Instant::now()));
    }
}

/// Those where packets vanish that the device which leads there takes. Who does not answer at all is not told: others see
/// to that, and hosts may be silent on purpose.
///
/// # Errors
/// When the kernel does not answer.
pub fn vanishing(peers: &[Peer], proven: &Proven) -> netlink::Result<Vec<Finding>> {
    let mut kernel = Netlink::open()?;
    let mut ways = Vec::new();
    for peer in peers {
        if let Some(way) = way_to(&mut kernel, peer.address)?
            && !proven.has(peer.address, way.1)
        {
            ways.push((peer, way));
        }
    }
    let found = thread::scope(|scope| {
        let probes = ways.iter().map(|(peer, (_, bytes))| {
            let (address, bytes) = (peer.address, *bytes as usize);
            scope.spawn(move || probe(address, bytes))
        });
        let probes: Vec<_> = probes.collect();
        let joined = probes.into_iter().map(|probe| probe.join());
        joined
            .map(|joined| joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Vec<_>>()
    });
    let told = ways
        .iter()
        .zip(found)
        .filter_map(|((peer, (device, bytes)), found)| match found {
            Ok(Passes::SmallAlone) => Some(told(peer, device, *bytes)),
            Ok(Passes::Large) => {
                proven.note(peer.address, *bytes);
                None
            }
            Ok(Passes::TooLarge | Passes::Unknown) => None,
            Err(error) => {
                tracing::debug!(peer = peer.name, error = with_causes(&error), "path not probed");
                None
            }
        });
    Ok(told.collect())
}

fn told(peer: &Peer, device: &str, bytes: u32) -> Finding {
    finding(
        "path-mtu",
        peer.name.clone(),
        format!(
            "packets of {bytes} bytes, which {device} takes, vanish on their way to {}, and small ones arrive: what is \
             large never comes through, lists of the API server among it",
            peer.address
        ),
        "give the devices of both ends, and all between them, one MTU: ip link set DEVICE mtu BYTES; or say on the route \
         what passes: ip route change … mtu BYTES",
    )
}

/// The device that leads there, and the largest packet that goes that way; none where it is this host, or nothing leads
/// there by one device.
fn way_to(kernel: &mut Netlink, address: IpAddr) -> netlink::Result<Option<(String, u32)>> {
    let found = kernel.look_up(&Lookup {
        destination: address,
        source: None,
        device: None,
        mark: 0,
    })?;
    let Found::Route(route) = found else {
        return Ok(None);
    };
    let Some(index) = route.link else { return Ok(None) };
    let Some(link) = kernel.link_at(index)?.filter(|link| !link.loopback && link.up) else {
        return Ok(None);
    };
    let addresses = kernel.addresses(Some(index))?;
    let mut own = addresses.iter().map(|own| own.network.ip());
    let source = route
        .source
        .or_else(|| own.find(|own| own.is_ipv4() == address.is_ipv4()));
    let limit = match source {
        Some(source) => kernel.way_to(address, source, index)?.and_then(|way| way.mtu),
        None => None,
    };
    Ok(Some((
        link.name,
        limit.map_or(link.mtu, |limit| limit.min(link.mtu)),
    )))
}

#[cfg(test)]
mod tests {
    use model::{Change, Node};

    use super::*;

    #[test]
    fn a_route_that_came_after_the_agent_is_missed_when_it_is_gone() {
        let led = LedOut::default();
        let (none, v4) = (BTreeSet::new(), BTreeSet::from([IpFamily::V4]));
        assert_eq!(led.lost(none.clone()), none);
        assert_eq!(led.lost(v4.clone()), none);
        assert_eq!(led.lost(none.clone()), v4);
        assert_eq!(led.lost(none.clone()), v4, "it is told until it is back");
        assert_eq!(led.lost(v4), none);
    }

    #[test]
    fn those_behind_in_the_order_of_names_are_asked() {
        let mut snapshot = Snapshot::default();
        for number in 0..20_u8 {
            let mut node = Node::new(format!("node-{number:02}").as_str());
            node.internal_addresses = vec![Ipv4Addr::new(172, 30, 0, number).into()];
            snapshot.apply(Change::Node(node));
        }
        let asked = peers(&snapshot, &"node-10".into());
        let names: Vec<_> = asked.iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!(
            (names.len(), names[0], names[15]),
            (16, "Node node-11", "Node node-06")
        );
    }
}
