//! Carries a wiring plan out with the kernel, undoes it, and compares it with what is there.
//!
//! The veth is made inside the pod's namespace with its other end in the node's: moving it there later would wait for
//! RCU (`dev_change_net_namespace`). Every step is a "replace": a plugin that was killed half-way is finished by the
//! next ADD.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use model::Mtu;
use model::wiring::{HOST_IFNAME_PREFIX, ROUTE_PROTOCOL, RateLimit, WiringPlan};
use netlink::{
    AbsentIsFine, Address, Error, Events, Group, Kernel, Link, LinkChange, LinkKind, Namespace, Neighbour,
    Netlink, NewLink, NewLinkKind, Operation, Result, RootQdisc, Route, RouteFilter, Scope, TokenBucket,
    VethPeer,
};
use nix::errno::Errno;

/// How long a packet may wait at a limit after a pause, in milliseconds: the reference plugin's (`latencyInMillis`).
const LATENCY_MILLIS: u64 = 25;

/// How long a device may take until it passes packets. The kernel sees to it at most once a second.
const RUNNING: Duration = Duration::from_secs(5);

/// The header of a frame, which counts for the kernel.
const ETHERNET_HEADER_BYTES: u32 = 14;

/// Two sockets: one in the node's namespace, one in the pod's.
pub struct Sides {
    node: Netlink,
    pod: Netlink,
    node_namespace: Namespace,
    pod_namespace: Namespace,
}

impl Sides {
    /// Opens both; the node's side is the calling thread's.
    ///
    /// # Errors
    /// When the pod's namespace cannot be entered.
    pub fn open(pod: &Namespace) -> Result<Self> {
        Ok(Self {
            node: Netlink::open()?,
            pod: Netlink::open_in(pod)?,
            node_namespace: Namespace::current()?,
            pod_namespace: pod.clone(),
        })
    }

    /// The pod's device of that name, if there is one.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn pod_link(&mut self, name: &str) -> Result<Option<Link>> {
        self.pod.link_named(name)
    }

    /// Makes everything as the plan says; what is there already, stays.
    ///
    /// # Errors
    /// As the kernel says; what was done until then is undone by [`remove_pod_link`].
    pub fn apply(&mut self, plan: &WiringPlan) -> Result<()> {
        let pod_link = match self.pod.link_named(&plan.pod_ifname)? {
            Some(link) => link.index,
            None => self.create(plan)?,
        };
        let node_link = self.apply_on_node(plan)?;
        self.apply_in_pod(plan, pod_link)?;
        await_running(&mut self.node, &self.node_namespace, node_link)?;
        await_running(&mut self.pod, &self.pod_namespace, pod_link)
    }

    fn create(&mut self, plan: &WiringPlan) -> Result<u32> {
        let new = NewLink {
            mac: Some(plan.pod_mac.0),
            mtu: Some(plan.mtu.0),
            up: true,
            ..NewLink::new(
                &plan.pod_ifname,
                NewLinkKind::Veth(VethPeer {
                    name: plan.host_ifname.clone(),
                    mac: Some(plan.host_mac.0),
                    mtu: Some(plan.mtu.0),
                    namespace: Some(self.node_namespace.clone()),
                }),
            )
        };
        match self.pod.create_link(&new) {
            Ok(link) => Ok(link.index),
            // The node's end is left over of an earlier pod of the same key, whose namespace still lives.
            Err(error) if error.is_present() => {
                if let Some(old) = self.node.link_named(&plan.host_ifname)? {
                    if !is_of_same_key(&old, plan) {
                        return Err(error);
                    }
                    self.node.delete_link(old.index).absent_is_fine()?;
                }
                Ok(self.pod.create_link(&new)?.index)
            }
            Err(error) => Err(error),
        }
    }

    /// The node's end gets its limit and comes up; then the pod's address is a neighbour and a route of it. The agent
    /// knows neighbour and route from its own records and repairs them later. Returns the index of that end.
    fn apply_on_node(&mut self, plan: &WiringPlan) -> Result<u32> {
        let link = self.node.link_named(&plan.host_ifname)?;
        let absent = || Error::of(Operation::GetLink, &plan.host_ifname)(Errno::ENODEV);
        let link = link.ok_or_else(absent)?.index;
        limit(&mut self.node, link, bucket(plan.bandwidth.ingress, plan.mtu))?;
        self.node.change_link(link, &LinkChange::up())?;
        for address in &plan.addresses {
            self.node
                .replace_neighbour(&Neighbour::permanent(link, address.ip(), plan.pod_mac.0))?;
            self.node
                .replace_route(&Route::on_link(*address, link, ROUTE_PROTOCOL))?;
        }
        Ok(link)
    }

    fn apply_in_pod(&mut self, plan: &WiringPlan, link: u32) -> Result<()> {
        limit(&mut self.pod, link, bucket(plan.bandwidth.egress, plan.mtu))?;
        self.address_pod(plan, link)
    }

    fn address_pod(&mut self, plan: &WiringPlan, link: u32) -> Result<()> {
        self.pod.change_link(link, &LinkChange::up())?;
        for address in &plan.addresses {
            let no_dad = address.is_ipv6();
            self.pod.add_address(&Address {
                no_dad,
                ..Address::global(link, *address)
            })?;
        }
        for gateway in &plan.gateways {
            self.pod
                .replace_neighbour(&Neighbour::permanent(link, *gateway, plan.host_mac.0))?;
        }
        for route in pod_routes(plan, link) {
            self.pod.replace_route(&route)?;
        }
        Ok(())
    }

    /// Everything that is not as the plan says, one line each.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn differences(&mut self, plan: &WiringPlan) -> Result<Vec<String>> {
        let mut wrong = self.differences_in_pod(plan)?;
        match self.node.link_named(&plan.host_ifname)? {
            Some(link) if link.up => {
                let wanted = bucket(plan.bandwidth.ingress, plan.mtu);
                wrong.extend(limit_difference(&mut self.node, &link, wanted)?);
            }
            Some(_) => wrong.push(format!("device {} on the node is down", plan.host_ifname)),
            None => wrong.push(format!("device {} on the node is missing", plan.host_ifname)),
        }
        Ok(wrong)
    }

    /// Everything in the pod that is not as the plan says, one line each.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn differences_in_pod(&mut self, plan: &WiringPlan) -> Result<Vec<String>> {
        let Some(link) = self.pod.link_named(&plan.pod_ifname)? else {
            return Ok(vec![format!("device {} is missing", plan.pod_ifname)]);
        };
        let mut wrong = Vec::new();
        if !link.up {
            wrong.push(format!("device {} is down", link.name));
        }
        if link.mac != Some(plan.pod_mac.0) {
            wrong.push(format!(
                "device {} does not have MAC address {}",
                link.name, plan.pod_mac
            ));
        }
        let addresses = self.pod.addresses(Some(link.index))?;
        let missing = plan
            .addresses
            .iter()
            .filter(|wanted| !addresses.iter().any(|found| found.network == **wanted));
        wrong.extend(missing.map(|address| format!("address {address} is missing")));
        let routes = self.pod.routes(&RouteFilter {
            link: Some(link.index),
            ..RouteFilter::default()
        })?;
        let missing = plan.routes.iter().filter(|wanted| {
            !routes
                .iter()
                .any(|found| (found.destination, found.gateway) == (wanted.destination, wanted.gateway))
        });
        wrong.extend(missing.map(|route| format!("route to {} is missing", route.destination)));
        let neighbours = self.pod.neighbours(Some(link.index))?;
        let unknown = plan.gateways.iter().filter(|gateway| {
            !neighbours.contains(&Neighbour::permanent(link.index, **gateway, plan.host_mac.0))
        });
        wrong.extend(unknown.map(|gateway| format!("neighbour {gateway} with {} is missing", plan.host_mac)));
        let wanted = bucket(plan.bandwidth.egress, plan.mtu);
        wrong.extend(limit_difference(&mut self.pod, &link, wanted)?);
        Ok(wrong)
    }

    /// What works and was not planned, one line each: addresses that are not the pod's, and ends that take packets of
    /// different sizes.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn oddities(&mut self, plan: &WiringPlan) -> Result<Vec<String>> {
        let Some(link) = self.pod.link_named(&plan.pod_ifname)? else {
            return Ok(Vec::new());
        };
        let addresses = self.pod.addresses(Some(link.index))?.into_iter();
        let strange = addresses
            .filter(|address| address.scope == Scope::Universe && !plan.addresses.contains(&address.network));
        let mut odd: Vec<String> = strange
            .map(|address| format!("address {} is not the pod's", address.network))
            .collect();
        let node = self.node.link_named(&plan.host_ifname)?;
        odd.extend(node.filter(|node| node.mtu != link.mtu).map(|node| {
            format!(
                "{} has MTU {}, and its other end, {}, MTU {}: what is larger is lost",
                link.name, link.mtu, node.name, node.mtu
            )
        }));
        Ok(odd)
    }

    /// Gives the pod again what the plan says that it has inside, but for limits.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn mend_pod(&mut self, plan: &WiringPlan) -> Result<()> {
        match self.pod.link_named(&plan.pod_ifname)? {
            Some(link) => self.address_pod(plan, link.index),
            None => Ok(()),
        }
    }
}

/// Whether a device that has the name of the plan's belongs to the same interface. Such a name follows from the key, or from
/// the pod: then another network plugin may have given it, to a pod that still lives. The MAC address follows from the
/// key.
fn is_of_same_key(old: &Link, plan: &WiringPlan) -> bool {
    plan.host_ifname.starts_with(HOST_IFNAME_PREFIX) || old.mac == Some(plan.host_mac.0)
}

/// Waits until a device passes packets: after both ends of a veth are up, the kernel's link watch has to see it, and until
/// then what is sent is lost. Since Linux 6.8 it sees at once to a device that somebody asks for; before, it tells.
fn await_running(kernel: &mut Netlink, namespace: &Namespace, link: u32) -> Result<()> {
    let mut is_running = || Ok(kernel.link_at(link)?.is_some_and(|link| link.running));
    if is_running()? {
        return Ok(());
    }
    let mut events = Events::open_in(namespace, &[Group::Links])?;
    let deadline = Instant::now() + RUNNING;
    while !is_running()? {
        let left = deadline.saturating_duration_since(Instant::now());
        if events.next(left)?.is_none() {
            return Err(Error::of(Operation::ChangeLink, link)(Errno::ENETDOWN));
        }
    }
    Ok(())
}

/// The token bucket of a limit. It takes at least one packet, since one that it cannot take would never pass.
fn bucket(limit: Option<RateLimit>, mtu: Mtu) -> Option<TokenBucket> {
    let limit = limit?;
    let rate_bytes = limit.rate_bits.get() / 8;
    let burst_bytes = u32::try_from(limit.burst_bits.get() / 8).unwrap_or(u32::MAX);
    let burst_bytes = burst_bytes.max(mtu.0.saturating_add(ETHERNET_HEADER_BYTES));
    let waiting_bytes = u32::try_from(rate_bytes.saturating_mul(LATENCY_MILLIS) / 1000).unwrap_or(u32::MAX);
    Some(TokenBucket {
        rate_bytes,
        burst_bytes,
        limit_bytes: burst_bytes.saturating_add(waiting_bytes),
    })
}

/// Limits what leaves through a device, or no longer does.
fn limit(kernel: &mut Netlink, link: u32, wanted: Option<TokenBucket>) -> Result<()> {
    match wanted {
        Some(bucket) => kernel.replace_root_qdisc(link, &bucket),
        // An ADD that was interrupted and asked for one may have left it.
        None => kernel.delete_root_qdisc(link).absent_is_fine(),
    }
}

/// What is there in place of the limit that was asked for. Without one it is nobody's business.
fn limit_difference(
    kernel: &mut Netlink,
    link: &Link,
    wanted: Option<TokenBucket>,
) -> Result<Option<String>> {
    let Some(wanted) = wanted else { return Ok(None) };
    let name = &link.name;
    Ok(match kernel.root_qdisc(link.index)? {
        Some(found) if found.is(&wanted) => None,
        Some(RootQdisc::TokenBucket { rate_bytes, .. }) => Some(format!(
            "qdisc tbf of device {name} has rate {rate_bytes} bytes/s in place of {}, or another limit",
            wanted.rate_bytes
        )),
        _ => Some(format!("qdisc tbf of device {name} is missing")),
    })
}

/// Routes in the order in which they can be made: a gateway has to be reachable first.
fn pod_routes(plan: &WiringPlan, link: u32) -> Vec<Route> {
    let source = |destination: IpNetwork| -> Option<IpAddr> {
        plan.addresses
            .iter()
            .map(IpNetwork::ip)
            .find(|address| address.is_ipv4() == destination.is_ipv4())
    };
    let mut routes: Vec<Route> = plan
        .routes
        .iter()
        .map(|route| {
            let made = match route.gateway {
                None => Route::on_link(route.destination, link, ROUTE_PROTOCOL),
                Some(gateway) => Route::via(route.destination, gateway, link, ROUTE_PROTOCOL),
            };
            Route {
                source: source(route.destination),
                ..made
            }
        })
        .collect();
    routes.sort_by_key(|route| route.gateway.is_some());
    routes
}

/// Removes a pod's device, if it is a veth; the node's end, its routes and neighbours go with it.
///
/// # Errors
/// As the kernel says; what is gone already is no error.
pub fn remove_pod_link(pod: &Namespace, name: &str) -> Result<()> {
    let mut kernel = Netlink::open_in(pod)?;
    match kernel.link_named(name)? {
        Some(link) if link.kind == LinkKind::Veth => kernel.delete_link(link.index).absent_is_fine(),
        _ => Ok(()),
    }
}

/// Removes a device of ours on the node's side, if it is there.
///
/// # Errors
/// As the kernel says.
pub fn remove_node_link(name: &str) -> Result<()> {
    let mut kernel = Netlink::open()?;
    match kernel.link_named(name)? {
        Some(link) if link.kind == LinkKind::Veth => kernel.delete_link(link.index).absent_is_fine(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    #[test]
    fn a_bucket_holds_the_burst_and_one_packet_and_lets_wait_what_25_ms_carry() {
        let rows = [
            (20_000_000, 1_000_000, (2_500_000, 125_000, 187_500)),
            (8, 1, (1, 1464, 1464)),
            // 2^32 - 1 bytes at once: what may wait is not more than the kernel can count.
            (
                1_000_000_000_000_000,
                8 * 4_294_967_295,
                (125_000_000_000_000, u32::MAX, u32::MAX),
            ),
        ];
        for (rate, burst, (rate_bytes, burst_bytes, limit_bytes)) in rows {
            let number = |number| NonZeroU64::new(number).expect("not zero");
            let limit = RateLimit {
                rate_bits: number(rate),
                burst_bits: number(burst),
            };
            let wanted = TokenBucket {
                rate_bytes,
                burst_bytes,
                limit_bytes,
            };
            assert_eq!(bucket(Some(limit), Mtu(1450)), Some(wanted));
        }
        assert_eq!(bucket(None, Mtu(1450)), None);
    }
}
