//! Both engines side by side: pure.

use std::net::IpAddr;

use model::{MacAddr, Mtu};
use netlink::conntrack::Usage;
use netlink::{Found, Link, LinkKind, Route, RouteKind};
use nix::errno::Errno;
use proxy::programmed::{self, Client, Layer, LayerKind};
use proxy::verdict::Verdict;

use super::kernel::{Routed, Sight};
use super::look::Vantage;
use super::objects::{self, Intent, Way, target_text};
use super::vpc::Leaving;
use super::{Entry, Stage, Step};

/// What is programmed at a packet's destination, as far as it could be read.
#[derive(Debug, Default)]
pub struct Programming {
    /// The layers, in the order in which packets meet them.
    pub layers: Vec<Layer>,
    /// Why there is nothing to be told of one.
    pub unread: Option<String>,
}

/// What becomes of a packet by what is programmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// The layer that decides.
    pub by: LayerKind,
    /// What it does.
    pub verdict: programmed::Verdict,
}

impl Programming {
    /// None: it goes on unchanged, or that could not be told.
    #[must_use]
    pub fn follow(&self, client: Client) -> Option<Followed> {
        let (layer, verdict) = programmed::follow(&self.layers, client).ok().flatten()?;
        Some(Followed {
            by: layer.kind,
            verdict,
        })
    }
}

/// What both say of a packet's destination. `intent` is absent where nobody tells the objects.
///
/// What is programmed is followed as a packet does. A layer that differs from its plan is a problem only if the packet
/// meets it and gets something else than the plan's: where another layer serves it, it is a difference.
#[must_use]
pub fn service(
    about: &str,
    intent: Option<&Intent>,
    programming: &Programming,
    client: Client,
    from: &Vantage,
) -> Step {
    let mut step = Step::new(Stage::Service, about);
    step.unknown.extend(programming.unread.clone());
    let layers = &programming.layers;
    let differences = layers.iter().flat_map(|layer| {
        let told = layer.differences().into_iter();
        told.map(move |line| format!("{}: {line}", layer.kind.name()))
    });
    step.differences.extend(differences);
    for layer in layers {
        step.kernel.extend(layer.entries.iter().cloned().map(Entry::from));
        step.look.extend(layer.at.as_ref().map(|at| from.entry(at)));
    }
    if let Some(intent) = intent {
        if intent.owner.is_none() {
            // That there is none is as it shall be.
            step.kernel.retain(|entry| entry.value.is_some());
        }
        step.objects.clone_from(&intent.lines);
        step.problems.extend(intent.failure.clone());
    }
    let followed = match programmed::follow(layers, client) {
        Ok(followed) => followed,
        Err(layer) => {
            let text = format!("{}: what it leads to is none of this agent's", layer.kind.name());
            step.unknown.push(text);
            return step;
        }
    };
    let wrong = match intent {
        Some(intent) if programming.unread.is_none() => {
            contradiction(&intent.verdict, followed.as_ref(), layers)
        }
        Some(_) => None,
        None => failure(followed.as_ref(), layers),
    };
    if let Some(wrong) = wrong {
        // What differs is the reason, and says it better.
        let reasons = std::mem::take(&mut step.differences);
        step.problems
            .extend(if reasons.is_empty() { vec![wrong] } else { reasons });
    }
    step
}

/// Where a packet gets something else than what the objects say.
fn contradiction(
    wanted: &Verdict,
    followed: Option<&(&Layer, programmed::Verdict)>,
    layers: &[Layer],
) -> Option<String> {
    use programmed::Verdict as Found;
    let Some((layer, found)) = followed else {
        let is_read = layers.iter().any(|layer| layer.is_attached);
        return match wanted {
            Verdict::Forward { .. } if is_read => {
                Some("nothing that is programmed sends it to an endpoint".to_owned())
            }
            Verdict::Forward { .. } => Some("nothing is programmed for Services".to_owned()),
            Verdict::Pass | Verdict::Refuse | Verdict::Drop => None,
        };
    };
    let by = layer.kind.name();
    let is_filtered = layer
        .found
        .as_ref()
        .is_some_and(programmed::Treatment::is_filtered);
    match (wanted, found) {
        // Whom a filtered chain lets pass is not read back.
        (Verdict::Drop, _) if is_filtered => None,
        (Verdict::Forward { to, .. }, Found::Spread(found)) => {
            let stray = found.iter().filter(|target| to.binary_search(target).is_err());
            let stray: Vec<_> = stray.map(target_text).collect();
            (!stray.is_empty())
                .then(|| format!("{by}: it may get {}, which is not the plan's", stray.join(", ")))
        }
        (Verdict::Forward { .. } | Verdict::Pass | Verdict::Drop, Found::Refuse) => {
            Some(format!("{by}: it is refused"))
        }
        (Verdict::Forward { .. } | Verdict::Pass | Verdict::Refuse, Found::Drop) => {
            Some(format!("{by}: it is dropped"))
        }
        (Verdict::Refuse | Verdict::Drop | Verdict::Pass, Found::Spread(found)) => Some(format!(
            "{by}: it goes to {}",
            objects::targets_text(found.iter())
        )),
        (Verdict::Refuse, Found::Refuse) | (Verdict::Drop, Found::Drop) => None,
    }
}

/// Why a packet fails by what is programmed alone.
fn failure(followed: Option<&(&Layer, programmed::Verdict)>, layers: &[Layer]) -> Option<String> {
    use programmed::Verdict as Found;
    match followed {
        Some((_, Found::Spread(_))) => None,
        Some((layer, Found::Refuse)) => Some(format!("{}: it is refused", layer.kind.name())),
        Some((layer, Found::Drop)) => Some(format!("{}: it is dropped", layer.kind.name())),
        None => {
            let known = layers
                .iter()
                .find_map(|layer| Some((layer, layer.found.as_ref()?)));
            known.map(|(layer, found)| format!("{}: {}, and no endpoint", layer.kind.name(), found.rule))
        }
    }
}

/// What both say of the way to an address.
#[must_use]
pub fn way(wanted: &Way, sight: &Sight, from: &Vantage) -> Vec<Step> {
    let mut steps = vec![route(wanted, &sight.routed, from)];
    if let Some(found) = sight.routed.leaves_by() {
        steps.push(link(wanted, found, from));
    }
    if let Some(next) = sight.next {
        steps.extend(neighbour(wanted, sight, next, from));
    }
    steps.extend(forwarding(wanted, sight, from));
    if let Some(outer) = &sight.underlay {
        steps.push(underlay(outer, sight.routed.link.as_ref(), from));
    }
    steps
}

fn packet_text(routed: &Routed) -> String {
    let mut text = routed.packet.destination.to_string();
    if let Some(source) = routed.packet.source {
        text += &format!(" from {source}");
    }
    if let Some(device) = &routed.arrives_by {
        text += &format!(" iif {device}");
    }
    if routed.packet.mark != 0 {
        text += &format!(" mark {:#x}", routed.packet.mark);
    }
    text
}

fn route(wanted: &Way, routed: &Routed, from: &Vantage) -> Step {
    let destination = routed.packet.destination;
    let mut step = Step::new(Stage::Route, destination.to_string());
    step.look
        .push(from.route(&routed.packet, routed.arrives_by.as_deref()));
    step.objects.extend(match wanted {
        Way::Pod { device, .. } => Some(format!("a pod of this node, behind {device}")),
        Way::Tunnel {
            device,
            subnet,
            vtep,
            public_ip,
            ..
        } => Some(format!(
            "{subnet} is node {public_ip}'s by its lease: via {vtep} dev {device}"
        )),
        Way::Gateway { subnet, public_ip } => Some(format!(
            "{subnet} is node {public_ip}'s by its lease: via that node"
        )),
        Way::Vpc(leaving) => Some(leaving.said.clone()),
        Way::Here => Some("an address of this node".to_owned()),
        Way::NoPod { subnet } => Some(format!("of this node's subnet {subnet}, and no pod has it")),
        Way::NoLease { network } => Some(format!("of the pod network {network}, and in no node's lease")),
        Way::Elsewhere => Some("no pod's: the node's other routes decide".to_owned()),
        Way::Unknown => None,
    });
    let value = match &routed.found {
        Found::Route(route) => Some(route_text(route, routed.link.as_ref())),
        Found::Other => Some("a route with several next hops, or of another kind".to_owned()),
        Found::Refused(_) => None,
    };
    step.kernel.push(Entry::new("route", packet_text(routed), value));
    step.problems.extend(match wanted {
        Way::NoPod { subnet } => Some(format!(
            "{destination} is of this node's subnet {subnet}, and no pod has it"
        )),
        Way::NoLease { network } => Some(format!(
            "{destination} is of the pod network {network}, and no node's lease has it"
        )),
        _ => None,
    });
    match &routed.found {
        Found::Route(route) => step
            .problems
            .extend(route_problem(wanted, route, routed.link.as_ref())),
        Found::Other => step
            .unknown
            .push("the route has several next hops: each would be another way".to_owned()),
        Found::Refused(errno) => step.problems.push(format!("no way: {}", refusal(*errno))),
    }
    step
}

fn refusal(errno: Errno) -> String {
    let meaning = match errno {
        Errno::ENETUNREACH => "no route leads there",
        Errno::EHOSTUNREACH => "no route leads there, or the device that it came in by does not forward",
        Errno::EXDEV => "its source is not routed back by that device (rp_filter)",
        Errno::EINVAL => "a blackhole, or a source that no packet may have there",
        Errno::EACCES => "a route prohibits it",
        _ => return errno.to_string(),
    };
    format!("{meaning} ({errno:?})")
}

fn route_text(route: &Route, link: Option<&Link>) -> String {
    let mut text = match route.kind {
        RouteKind::Unicast => String::new(),
        RouteKind::Local => "local ".to_owned(),
        RouteKind::Blackhole => "blackhole ".to_owned(),
        RouteKind::Unreachable => "unreachable ".to_owned(),
        RouteKind::Other(number) => format!("type {number} "),
    };
    text += &route.destination.to_string();
    if let Some(gateway) = route.gateway {
        text += &format!(" via {gateway}");
    }
    if let Some(link) = link {
        text += &format!(" dev {}", link.name);
    }
    if route.onlink {
        text += " onlink";
    }
    format!("{text} proto {} table {}", route.protocol, route.table)
}

fn route_problem(wanted: &Way, route: &Route, link: Option<&Link>) -> Option<String> {
    let device = link.map_or("no device", |link| link.name.as_str());
    let gateway =
        |address: Option<IpAddr>| address.map_or("nobody".to_owned(), |address| address.to_string());
    let leads = |wanted_device: &str, wanted_gateway: Option<IpAddr>| {
        if device != wanted_device {
            Some(format!("the route leads to {device}, not to {wanted_device}"))
        } else if route.gateway != wanted_gateway {
            let (found, wanted) = (gateway(route.gateway), gateway(wanted_gateway));
            Some(format!("the route goes via {found}, not via {wanted}"))
        } else {
            None
        }
    };
    match wanted {
        Way::Pod { device, .. } => leads(device, None),
        Way::Tunnel { device, vtep, .. } => leads(device, Some(*vtep)),
        Way::Gateway { public_ip, .. } if route.gateway != Some(*public_ip) => Some(format!(
            "the route goes via {}, not via {public_ip}",
            gateway(route.gateway)
        )),
        Way::Vpc(Leaving { by: Some(by), .. }) => {
            let by_another = link.and_then(|link| link.mac).map(MacAddr) != Some(by.mac);
            let table = by.table.filter(|table| *table != route.table);
            match (by_another, table) {
                (true, _) => Some(format!(
                    "the route leads to {device}, which is not the interface {}: a VPC drops what comes from an address that \
                     is not the interface's",
                    by.mac
                )),
                (false, Some(table)) => {
                    Some(format!("the route is of table {}, not of {table}", route.table))
                }
                (false, None) if by.gateway.is_some() && route.gateway != by.gateway => Some(format!(
                    "the route goes via {}, not via {}",
                    gateway(route.gateway),
                    gateway(by.gateway)
                )),
                (false, None) => None,
            }
        }
        Way::Here if route.kind != RouteKind::Local => {
            Some(format!("the node routes its own address away, to {device}"))
        }
        _ if matches!(route.kind, RouteKind::Blackhole | RouteKind::Unreachable) => {
            Some("the route drops it".to_owned())
        }
        Way::Gateway { .. }
        | Way::Vpc(_)
        | Way::Here
        | Way::NoPod { .. }
        | Way::NoLease { .. }
        | Way::Elsewhere
        | Way::Unknown => None,
    }
}

/// A table of connections that has no room for a packet's; none where it has.
#[must_use]
pub fn tracking(usage: Usage, about: String, from: &Vantage) -> Option<Step> {
    let Usage { tracked, most } = usage;
    usage.is_full().then(|| {
        let mut step = Step::new(Stage::Tracking, about);
        let full = Some(format!("{tracked} of {most}"));
        step.kernel
            .push(Entry::new("connection tracking", "entries", full));
        step.problems.push(format!(
            "connection tracking's table is full ({tracked} of {most}): the packet of a new connection is dropped, unless an \
             entry goes for it that was not answered"
        ));
        step.look.push(from.tracked());
        step
    })
}

fn link(wanted: &Way, found: &Link, from: &Vantage) -> Step {
    let mut step = Step::new(Stage::Link, found.name.clone());
    step.look.push(from.link(&found.name));
    let mtu = match wanted {
        Way::Pod { device, mtu, .. } if *device == found.name => *mtu,
        Way::Tunnel { device, mtu, .. } if *device == found.name => Some(*mtu),
        _ => None,
    };
    step.objects
        .extend(mtu.map(|Mtu(bytes)| format!("up, MTU {bytes}")));
    let state = if found.up { "up" } else { "down" };
    step.kernel.push(Entry::new(
        "link",
        found.name.clone(),
        Some(format!("{state}, MTU {}", found.mtu)),
    ));
    if !found.up {
        step.problems.push(format!("{} is down", found.name));
    }
    if let Some(Mtu(bytes)) = mtu.filter(|mtu| mtu.0 != found.mtu) {
        step.problems
            .push(format!("MTU of {} is {}, not {bytes}", found.name, found.mtu));
    }
    step
}

fn mac_text(mac: netlink::Mac) -> String {
    MacAddr(mac).to_string()
}

/// None where there is none, and none is needed.
fn neighbour(wanted: &Way, sight: &Sight, next: IpAddr, from: &Vantage) -> Option<Step> {
    let wanted_mac = match wanted {
        Way::Pod { mac, .. } if sight.routed.packet.destination == next => *mac,
        Way::Tunnel { mac, vtep, .. } if *vtep == next => Some(*mac),
        _ => None,
    };
    let found = sight.neighbour.as_ref();
    // Elsewhere the kernel asks on the link when a packet comes; a tunnel's device never does.
    let is_needed = wanted_mac.is_some() || sight.routed.link.as_ref().is_some_and(is_tunnel);
    if !is_needed && found.is_none() {
        return None;
    }
    let device = sight.routed.link.as_ref().map_or("?", |link| link.name.as_str());
    let mut step = Step::new(Stage::Neighbour, next.to_string());
    step.look.push(from.neighbour(next, device));
    step.objects
        .extend(wanted_mac.map(|mac| format!("{next} has {mac}")));
    let value = found.map(|found| {
        let mac = found.mac.map_or("unresolved".to_owned(), mac_text);
        if found.permanent {
            format!("{mac} permanent")
        } else {
            mac
        }
    });
    step.kernel
        .push(Entry::new("neighbour", format!("{next} dev {device}"), value));
    let found_mac = found.and_then(|found| found.mac);
    match (wanted_mac, found_mac) {
        (Some(mac), Some(found)) if found != mac.0 => {
            step.problems
                .push(format!("{next} is taken to have {}, not {mac}", mac_text(found)));
        }
        (_, None) if is_needed => step
            .problems
            .push(format!("no MAC address is known for {next} on {device}")),
        _ => {}
    }
    Some(step)
}

/// None where the device is no tunnel's, and where no packet gets that far: the neighbour is what fails.
fn forwarding(wanted: &Way, sight: &Sight, from: &Vantage) -> Option<Step> {
    let link = sight.routed.link.as_ref().filter(|link| is_tunnel(link))?;
    let next = sight.neighbour.as_ref()?.mac?;
    let (mac, public_ip) = match wanted {
        Way::Tunnel { mac, public_ip, .. } => (*mac, Some(*public_ip)),
        _ => (MacAddr(next), None),
    };
    let mut step = Step::new(Stage::Forwarding, mac.to_string());
    step.look.push(from.forwarding(&link.name));
    step.objects
        .extend(public_ip.map(|node| format!("{mac} is behind {node}")));
    let found = sight.forwarding.as_ref();
    step.kernel.push(Entry::new(
        "fdb",
        format!("{mac} dev {}", link.name),
        found.map(|found| format!("dst {}", found.destination)),
    ));
    match (found, public_ip) {
        (None, _) => step
            .problems
            .push(format!("{} does not know where {mac} is", link.name)),
        (Some(found), Some(node)) if found.destination != node => step.problems.push(format!(
            "{} sends what is for {mac} to {}, not to {node}",
            link.name, found.destination
        )),
        (Some(_), _) => {}
    }
    Some(step)
}

fn is_tunnel(link: &Link) -> bool {
    matches!(link.kind, LinkKind::Vxlan(_))
}

/// How wrapped packets leave, and whether they do.
pub fn underlay(outer: &Routed, tunnel: Option<&Link>, from: &Vantage) -> Step {
    let mut step = route(&Way::Unknown, outer, from);
    step.stage = Stage::Underlay;
    if let Some(link) = outer.link.as_ref().filter(|link| !link.up) {
        step.problems.push(format!("{} is down", link.name));
    }
    let again = outer
        .link
        .as_ref()
        .filter(|link| tunnel.is_some_and(|tunnel| tunnel.index == link.index));
    // The kernel's vxlan driver drops what its own route leads back to itself (ELOOP).
    step.problems.extend(again.map(|tunnel| {
        format!(
            "wrapped packets for {} are routed into {} again, which drops them",
            outer.packet.destination, tunnel.name
        )
    }));
    step
}
