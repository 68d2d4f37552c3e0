//! A look-up of a route as the kernel does it, without the kernel: rules of policy routing by priority (`fib_rules_lookup`),
//! in a table the longest prefix and the lowest metric (`fib_table_lookup`, `fib6_table_lookup`), and for packets that come
//! in what IPv4 asks of their source (`ip_route_input_slow`, `fib_validate_source`). Where the answer depends on what is
//! not recorded there is none.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::errno::Errno;

use super::{Recording, TableRoute};
use crate::link::{Link, LinkKind};
use crate::route::{Found, Lookup, RouteKind, TABLE_MAIN, usual_table};
use crate::rule::{Action, Rule, TABLE_LOCAL};

/// The index of `lo`, by which this host's own packets come in as rules see it.
const LOOPBACK: u32 = 1;

/// Kinds of routes that [`RouteKind`] does not name.
const BROADCAST: RouteKind = RouteKind::Other(3);
const PROHIBIT: RouteKind = RouteKind::Other(8);
const THROW: RouteKind = RouteKind::Other(9);

/// The rules that every namespace begins with: priority and table.
const FIRST_RULES: [(u32, u32); 3] = [(0, TABLE_LOCAL), (32766, TABLE_MAIN), (32767, 253)];

/// Why a recording has no answer, where the kernel would have one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what is recorded does not tell: {0}")]
pub struct Undecided(String);

type Decided<T> = Result<T, Undecided>;

fn undecided<T>(reason: impl Into<String>) -> Decided<T> {
    Err(Undecided(reason.into()))
}

/// A packet, as rules and tables see it.
#[derive(Clone, Copy)]
struct Flow {
    destination: IpAddr,
    source: Option<IpAddr>,
    /// The device that it came in by; [`LOOPBACK`] for this host's own.
    arrives_by: u32,
    mark: u32,
}

/// What a look-up ends in: a route, or why there is none.
type Outcome<'a> = Result<&'a TableRoute, Errno>;

impl Recording {
    /// What the routing tables make of a packet, as [`crate::Netlink::look_up`] tells it.
    ///
    /// # Errors
    /// When the answer depends on something that is not recorded.
    pub fn look_up(&self, packet: &Lookup) -> Decided<Found> {
        if let IpAddr::V4(to) = packet.destination
            && (to.is_multicast() || to.is_broadcast())
        {
            return undecided(format!("{to} is for many, and who takes part is not recorded"));
        }
        let outcome = match (packet.device, packet.destination) {
            (None, _) => self.of_this_host(packet)?,
            (Some(device), IpAddr::V4(_)) => self.coming_in(packet, device)?,
            // IPv6 asks nothing of who sends.
            (Some(device), IpAddr::V6(_)) => self.route_of(&Flow {
                destination: packet.destination,
                source: packet.source,
                arrives_by: device,
                mark: packet.mark,
            })?,
        };
        Ok(match outcome {
            Err(errno) => Found::Refused(errno),
            Ok(found) if !found.several.is_empty() => Found::Other,
            Ok(found) => Found::Route(usual_table(found.route.clone())),
        })
    }

    fn of_this_host(&self, packet: &Lookup) -> Decided<Outcome<'_>> {
        let has = |address| {
            let mut own = self.addresses.iter();
            own.any(|own| own.network.ip() == address)
        };
        if packet
            .source
            .is_some_and(|source| source.is_ipv4() && !has(source))
        {
            return Ok(Err(Errno::EINVAL));
        }
        self.route_of(&Flow {
            destination: packet.destination,
            source: packet.source,
            arrives_by: LOOPBACK,
            mark: packet.mark,
        })
    }

    /// `ip_route_input_slow`.
    fn coming_in(&self, packet: &Lookup, device: u32) -> Decided<Outcome<'_>> {
        let Some(link) = self.link_at(device) else {
            return undecided(format!("there is no device {device}"));
        };
        let (IpAddr::V4(to), Some(IpAddr::V4(from))) = (packet.destination, packet.source) else {
            return undecided("a packet that comes in has a source of the same version of IP");
        };
        let is_loop = to.is_loopback() || from.is_loopback();
        if from.is_multicast() || from.is_broadcast() || from.octets()[0] == 0 || to.octets()[0] == 0 {
            return Ok(Err(Errno::EINVAL));
        }
        if is_loop && !self.is_set_for_either("route_localnet", link)? {
            return Ok(Err(Errno::EINVAL));
        }
        let flow = Flow {
            destination: packet.destination,
            source: packet.source,
            arrives_by: device,
            mark: packet.mark,
        };
        let forwards = self.number(&link.name, "forwarding")? != 0;
        let found = match self.route_of(&flow)? {
            Ok(found) => found,
            Err(errno) => return Ok(Err(if forwards { errno } else { Errno::EHOSTUNREACH })),
        };
        let leaves_by = match found.route.kind {
            RouteKind::Local | BROADCAST => vec![None],
            _ if !forwards => return Ok(Err(Errno::EHOSTUNREACH)),
            RouteKind::Unicast if !found.several.is_empty() => {
                // Also those that are unplugged: whether they are left out depends on what came first (`fib_rebalance`).
                found.several.iter().copied().map(Some).collect()
            }
            RouteKind::Unicast => vec![found.route.link],
            _ => return Ok(Err(Errno::EINVAL)),
        };
        // Nobody answers in a broadcast's name.
        let answers_as = (found.route.kind != BROADCAST).then_some(packet.destination);
        let refusals = leaves_by
            .into_iter()
            .map(|out| self.refuses_source(&flow, answers_as, link, out));
        let refusals: Vec<_> = refusals.collect::<Decided<_>>()?;
        match refusals.as_slice() {
            [first, others @ ..] if others.iter().all(|other| other == first) => {
                Ok(first.map_or(Ok(found), Err))
            }
            _ => undecided(format!("it depends on which next hop {to} gets")),
        }
    }

    /// `fib_validate_source`: why a packet from there may not come in by the device.
    fn refuses_source(
        &self,
        flow: &Flow,
        answers_as: Option<IpAddr>,
        link: &Link,
        out: Option<u32>,
    ) -> Decided<Option<Errno>> {
        let Some(source) = flow.source else {
            return Ok(None);
        };
        let own = self.number(&link.name, "rp_filter")?;
        let filter = own.max(self.number("all", "rp_filter")?);
        let accepts_own = self.is_set_for_either("accept_local", link)?;
        let is_hairpin = out == Some(link.index);
        if filter == 0 && !is_hairpin {
            if accepts_own {
                return Ok(None);
            }
            if !self.has_rules_of_its_own(false) {
                let is_own = self.addresses.iter().any(|own| own.network.ip() == source);
                return Ok(is_own.then_some(Errno::EINVAL));
            }
        }
        let keeps_mark = self.is_set_for_either("src_valid_mark", link)?;
        let back = Flow {
            destination: source,
            source: answers_as,
            arrives_by: out.unwrap_or(LOOPBACK),
            mark: if keeps_mark { flow.mark } else { 0 },
        };
        let strays = || (filter != 0).then(|| self.strays());
        let Ok(found) = self.route_of(&back)? else {
            return Ok(strays());
        };
        match found.route.kind {
            RouteKind::Unicast => {}
            RouteKind::Local if accepts_own => {}
            _ => return Ok(Some(Errno::EINVAL)),
        }
        let uses = found.route.link == Some(link.index) || found.several.contains(&link.index);
        if uses || (found.route.kind == RouteKind::Local && link.loopback) {
            return Ok(None);
        }
        let mut addresses = self.addresses.iter();
        if !addresses.any(|address| address.link == link.index && address.network.is_ipv4()) {
            return Ok(strays());
        }
        Ok((filter == 1).then(|| self.strays()))
    }

    /// What `rp_filter` is told as: Linux 6.13 gave up its own number.
    fn strays(&self) -> Errno {
        let mut numbers = self.kernel.split(|character: char| !character.is_ascii_digit());
        let mut next = || numbers.next().and_then(|number| number.parse::<u32>().ok());
        let version = (next().unwrap_or_default(), next().unwrap_or_default());
        if version >= (6, 13) {
            Errno::EINVAL
        } else {
            Errno::EXDEV
        }
    }

    /// Whether rules were added to those that every namespace begins with, or taken away.
    fn has_rules_of_its_own(&self, is_v6: bool) -> bool {
        let rules = self.rules.iter().filter(|rule| rule.is_v6 == is_v6);
        let told = rules.map(|rule| (rule.priority, rule.table(), rule.is_for_all()));
        !told.eq(FIRST_RULES.map(|(priority, table)| (priority, Some(table), true)))
    }

    fn number(&self, device: &str, setting: &str) -> Decided<u32> {
        let path = format!("net/ipv4/conf/{device}/{setting}");
        let value = self.settings.get(&path).and_then(|value| value.parse().ok());
        value.ok_or_else(|| Undecided(format!("{path} is not known")))
    }

    /// `IN_DEV_ORCONF`.
    fn is_set_for_either(&self, setting: &str, link: &Link) -> Decided<bool> {
        let either = [self.number(&link.name, setting)?, self.number("all", setting)?];
        Ok(either != [0, 0])
    }

    /// `fib_rules_lookup`.
    fn route_of(&self, flow: &Flow) -> Decided<Outcome<'_>> {
        let is_v6 = flow.destination.is_ipv6();
        let rules: Vec<&Rule> = self.rules.iter().filter(|rule| rule.is_v6 == is_v6).collect();
        let mut number = 0;
        while let Some(rule) = rules.get(number) {
            number += 1;
            if !self.is_for(rule, flow)? {
                continue;
            }
            match rule.action {
                Action::Nothing => {}
                Action::GoTo(priority) => {
                    let target = rules.iter().position(|rule| rule.priority == priority);
                    // A rule without one does nothing.
                    number = target.map_or(number, |target| target.max(number));
                }
                Action::Unreachable => return Ok(Err(Errno::ENETUNREACH)),
                Action::Blackhole => return Ok(Err(Errno::EINVAL)),
                Action::Prohibit => return Ok(Err(Errno::EACCES)),
                Action::Other(action) => {
                    return undecided(format!("rule {} does something else: {action}", rule.priority));
                }
                Action::LookUp(table) => match self.in_table(table, flow)? {
                    None => {}
                    Some(Ok(found)) if is_suppressed(rule, found) => {}
                    Some(outcome) => return Ok(outcome),
                },
            }
        }
        Ok(Err(Errno::ENETUNREACH))
    }

    /// `fib_rule_match`, and those of both versions of IP.
    fn is_for(&self, rule: &Rule, flow: &Flow) -> Decided<bool> {
        let Rule {
            protocol: _,
            is_v6: _,
            priority,
            action: _,
            inverted,
            source,
            destination,
            arrives_by,
            leaves_by,
            mark: (mark, mask),
            users,
            tos,
            of_vrf,
            suppressed_bits: _,
            more,
        } = rule;
        let comes_by = |name: &String| {
            let link = self.link_named(name);
            link.is_some_and(|link| link.index == flow.arrives_by)
        };
        // Root asks; what comes in is nobody's for IPv6, and root's for IPv4.
        let is_of_root = flow.destination.is_ipv4() || flow.arrives_by == LOOPBACK;
        // IPv4 takes nobody for 0.0.0.0.
        let from = flow
            .source
            .or_else(|| flow.destination.is_ipv4().then_some(IpAddr::from([0; 4])));
        let is_it = arrives_by.as_ref().is_none_or(comes_by)
            // No socket asks for a device.
            && leaves_by.is_none()
            && (flow.mark ^ mark) & mask == 0
            && *tos == 0
            && users.is_none_or(|(first, _)| is_of_root && first == 0)
            && source.is_none_or(|source| from.is_some_and(|from| source.contains(from)))
            && destination.is_none_or(|destination| destination.contains(flow.destination));
        if *of_vrf {
            let is_vrf = |link: &Link| matches!(&link.kind, LinkKind::Other(kind) if kind == "vrf");
            if self.links.iter().any(is_vrf) {
                return undecided(format!("rule {priority} asks which VRF it is"));
            }
            return Ok(*inverted);
        }
        if is_it && *more {
            return undecided(format!("rule {priority} asks for more than is recorded of it"));
        }
        Ok(is_it != *inverted)
    }

    /// The route of a table; none: the next rule is asked.
    fn in_table(&self, table: u32, flow: &Flow) -> Decided<Option<Outcome<'_>>> {
        let mut candidates = Vec::new();
        for candidate in self.routes.iter().filter(|route| route.route.table == table) {
            if self.may_take(candidate, flow)? {
                candidates.push(candidate);
            }
        }
        // Of the same prefix and metric the first is taken: the order is the kernel's.
        candidates.sort_by_key(|candidate| rank(candidate));
        let Some(found) = candidates.first().copied() else {
            return Ok(None);
        };
        let equals: Vec<&TableRoute> = candidates
            .iter()
            .copied()
            .take_while(|other| rank(other) == rank(found))
            .collect();
        let found = if equals.len() == 1 {
            found
        } else {
            one_of(&equals, flow)?
        };
        self.is_alone(table, found, flow)?;
        Ok(match found.route.kind {
            THROW => None,
            RouteKind::Blackhole => Some(Err(Errno::EINVAL)),
            RouteKind::Unreachable => Some(Err(Errno::EHOSTUNREACH)),
            PROHIBIT => Some(Err(Errno::EACCES)),
            _ => Some(Ok(found)),
        })
    }

    /// As long as nobody adds rules, IPv4's tables `local` and `main` are one: there, a longer prefix of `main` comes first.
    /// Once somebody did they stay apart, which cannot be seen.
    fn is_alone(&self, table: u32, found: &TableRoute, flow: &Flow) -> Decided<()> {
        let is_in_doubt =
            table == TABLE_LOCAL && flow.destination.is_ipv4() && !self.has_rules_of_its_own(false);
        let bits = found.route.destination.prefix();
        if !is_in_doubt || bits == 32 {
            return Ok(());
        }
        for other in self.routes.iter().filter(|other| other.route.table == TABLE_MAIN) {
            if other.route.destination.prefix() > bits && self.may_take(other, flow)? {
                return undecided(format!(
                    "{} of table main lies within {} of table local",
                    other.route.destination, found.route.destination
                ));
            }
        }
        Ok(())
    }

    fn may_take(&self, candidate: &TableRoute, flow: &Flow) -> Decided<bool> {
        let TableRoute {
            route,
            several,
            tos,
            from,
            dead,
        } = candidate;
        let to = flow.destination;
        let is_here = route.destination.is_ipv4() == to.is_ipv4() && route.destination.contains(to);
        if !is_here || *dead || *tos != 0 {
            return Ok(false);
        }
        if let Some((from, bits)) = from {
            let from = IpNetwork::new(*from, *bits).ok();
            let is_from = flow
                .source
                .zip(from)
                .is_some_and(|(source, from)| from.contains(source));
            if is_from {
                return undecided(format!("{} is a route for some sources", route.destination));
            }
            return Ok(false);
        }
        let by = |wanted: u32| route.link == Some(wanted) || several.contains(&wanted);
        if must_stay_on_link(to) && flow.arrives_by != LOOPBACK && !by(flow.arrives_by) {
            return Ok(false);
        }
        Ok(true)
    }
}

/// `rt6_need_strict`: such an address is another one on each link.
fn must_stay_on_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_multicast() || address.is_unicast_link_local(),
    }
}

/// Smaller comes first.
fn rank(candidate: &TableRoute) -> (u8, u32) {
    let route = &candidate.route;
    (u8::MAX - route.destination.prefix(), route.metric)
}

/// Of several that are equal. IPv4 takes the first, but for default routes, of which it takes one whose gateway was heard
/// of lately; IPv6 takes the one by the device that a packet came in by, else one whose gateway was heard of.
fn one_of<'a>(equals: &[&'a TableRoute], flow: &Flow) -> Decided<&'a TableRoute> {
    let doubt = |destination| {
        undecided(format!(
            "several routes to {destination} have the same metric, and neighbours decide between them"
        ))
    };
    let Some(first) = equals.first().copied() else {
        return undecided("no route");
    };
    let destination = first.route.destination;
    if flow.destination.is_ipv4() {
        let is_default = destination.prefix() == 0 && first.route.kind == RouteKind::Unicast;
        return if is_default { doubt(destination) } else { Ok(first) };
    }
    let mut by_device = equals
        .iter()
        .filter(|route| route.route.link == Some(flow.arrives_by));
    match (by_device.next(), by_device.next()) {
        (Some(only), None) => Ok(only),
        _ => doubt(destination),
    }
}

fn is_suppressed(rule: &Rule, found: &TableRoute) -> bool {
    let bits = u32::from(found.route.destination.prefix());
    rule.suppressed_bits.is_some_and(|longest| bits <= longest)
}
