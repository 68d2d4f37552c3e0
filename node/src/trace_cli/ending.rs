//! Why a packet ended where it did, beyond what the kernel says of it: by what Causeway means the node to do, and by what
//! the node's kernel has.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink::nft::Nft;
use netlink::{Found as Route, Kernel, LinkKind, Lookup, Neighbour, Netlink};
use trace::Service;
use trace::cause::{self, Cause};
use trace::hop::{Flow, Hop, HopKind};
use trace::namespaces::Found;
use trace::places::command_at;
use trace::shell::quoted;
use trace::story::{Packet, Step};
use trace::{Story, Verdict};

use crate::ends::agents::{Agent, Agents};
use crate::ends::pods::Pods;
use crate::explain::{Explanation, Question, Stage, Vantage};

/// What is known of this machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine<'a> {
    pub(super) agents: &'a Agents,
    pub(super) pods: &'a Pods,
    pub(super) namespaces: &'a [Found],
}

impl Machine<'_> {
    /// Why a packet ended, or left, at this step; none where nobody knows more than the kernel has said.
    pub(super) fn cause(&self, step: &Step, packet: &Packet) -> Option<Cause> {
        let hop = &step.hop;
        match &hop.kind {
            HopKind::Dropped { reason, place } if reason == "NETFILTER_DROP" => self
                .spoofed(step)
                .or_else(|| self.full_table(step, reason, place))
                .or_else(|| self.refused(hop)),
            HopKind::Dropped { reason, .. } if is_of_device(reason) => self.device_down(step),
            HopKind::Dropped { .. } | HopKind::Consumed { .. } => None,
            HopKind::Received => self.unresolved(hop.netns, &receivers(hop)),
            HopKind::Sent if hop.wrapping.is_some() => None,
            HopKind::Sent => self
                .unresolved_below(hop)
                .or_else(|| self.no_way(self.turn(packet).unwrap_or(step))),
        }
    }

    /// Says of a request that its receiver took, and that nobody answered, what that means.
    pub(super) fn explain_silence(&self, story: &mut Story) {
        let has_reply = story.packets.iter().any(|packet| packet.is_reply);
        let first = story.packets.first_mut();
        let Some(last) = first.and_then(|packet| packet.hops.last_mut()) else {
            return;
        };
        let is_taken = matches!(last.hop.kind, HopKind::Consumed { .. });
        if story.verdict != Verdict::Unanswered || has_reply || !is_taken || last.cause.is_some() {
            return;
        }
        let sender = last.hop.header.flow.source.ip();
        last.cause = Some(Cause {
            means: "its receiver has taken it: that has no way back to the sender, or says nothing"
                .to_owned(),
            look: vec![
                last.command(&format!("ip route get {sender}")),
                doctor(self.agents.in_netns(last.hop.netns)),
            ],
        });
    }

    /// Why no packet of a probe was seen: its socket was refused, or the kernel holds it back.
    pub(super) fn unseen(
        &self,
        flow: Flow,
        netns: u32,
        said: Option<&io::Error>,
        service: Option<&Service>,
    ) -> Option<Cause> {
        let Some(said) = said else {
            let endpoints = service.into_iter().flat_map(|service| &service.endpoints);
            let receivers: Vec<IpAddr> = [flow.destination.ip()]
                .into_iter()
                .chain(endpoints.map(SocketAddr::ip))
                .collect();
            return self.unresolved(netns, &receivers);
        };
        let question = question_of(flow);
        let of_pod = self.pods.with_address(flow.source.ip());
        let agent = match of_pod {
            Some((_, record)) => self.agents.of_node(&record.node),
            None => self.agents.in_netns(netns),
        };
        let explanation = agent.and_then(|agent| agent.explain(&question));
        let means = match explanation.as_ref().and_then(refusal) {
            Some(refusal) => format!("Causeway refuses it: {refusal}"),
            None => {
                format!("a program at the sender's cgroup, as the socket hook, or a rule refuses it: {said}")
            }
        };
        Some(Cause {
            means,
            look: vec![asks(agent, &question)],
        })
    }

    /// A next hop that nobody answers for: packets to it wait for its MAC address, and pass no device meanwhile.
    fn unresolved(&self, netns: u32, receivers: &[IpAddr]) -> Option<Cause> {
        let (mut kernel, entering) = self.at(netns)?;
        let mut receivers = receivers.iter();
        receivers.find_map(|receiver| unresolved(&mut kernel, *receiver, entering))
    }

    /// The same of what a tunnel's device wraps: the packet was handed to it, and what it was wrapped in waits.
    fn unresolved_below(&self, hop: &Hop) -> Option<Cause> {
        let (mut kernel, entering) = self.at(hop.netns)?;
        let link = kernel.link_named(&hop.device).ok()??;
        if !matches!(link.kind, LinkKind::Vxlan(_)) {
            return None;
        }
        let receiver = hop.header.flow.destination.ip();
        let (_, next) = next_hop(&mut kernel, receiver)?;
        let neighbours = kernel.neighbours(Some(link.index)).ok()?;
        let mac = neighbours.iter().find(|found| found.address == next)?.mac?;
        let forwarding = kernel.forwarding(link.index).ok()?;
        let entry = forwarding.iter().find(|entry| entry.mac == mac)?;
        unresolved(&mut kernel, entry.destination, entering)
    }

    /// A pod that sends in another's name.
    fn spoofed(&self, step: &Step) -> Option<Cause> {
        let hop = &step.hop;
        let (pod, record) = self.pods.behind(&hop.device)?;
        let [source, destination] = [hop.header.flow.source, hop.header.flow.destination].map(|end| end.ip());
        // It was on its way to the pod, or nobody looks who sends: another rule stopped it.
        if record.addresses.contains(&destination) || self.has_guard(hop) == Some(false) {
            return None;
        }
        let table = if source.is_ipv4() { "ip" } else { "ip6" };
        let own: Vec<String> = record.addresses.iter().map(IpAddr::to_string).collect();
        (!record.addresses.contains(&source)).then(|| Cause {
            means: format!(
                "Causeway refuses it: pod/{pod} may send from {} alone, and it sent from {source} (network.antiSpoofing)",
                own.join(" and ")
            ),
            look: vec![
                format!("who in pod/{pod} sends from {source}"),
                step.command(&format!("nft list table {table} causeway-guard")),
            ],
        })
    }

    /// A table of connections without room for the packet's. One that the packet has is there; what wraps others is not
    /// tracked.
    fn full_table(&self, step: &Step, reason: &str, place: &str) -> Option<Cause> {
        let hop = &step.hop;
        if hop.connection.is_some() || hop.wrapping.is_some() {
            return None;
        }
        let tracked = || trace::namespaces::tracked(self.namespaces, hop.netns);
        cause::of_full_table(reason, place, &step.scene(), tracked)
    }

    /// Whether the rules that know senders are where a packet is; `None` where that cannot be seen.
    fn has_guard(&self, hop: &Hop) -> Option<bool> {
        let found = self.namespaces.iter().find(|found| found.inode == hop.netns)?;
        let table = overlay::guard_table(hop.header.flow.source.ip().into());
        let is_there = found.namespace.run(|| Nft::open()?.has_table(&table));
        is_there.ok()?.ok()
    }

    /// A Service that takes nobody, or not this client.
    fn refused(&self, hop: &Hop) -> Option<Cause> {
        let question = question(hop);
        let agent = self.agents.in_netns(hop.netns)?;
        let explanation = agent.explain(&question)?;
        let refusal = refusal(&explanation)?;
        Some(Cause {
            means: format!("Causeway refuses it: {refusal}"),
            look: vec![asks(Some(agent), &question)],
        })
    }

    /// A device, or what is behind it, that is down.
    fn device_down(&self, step: &Step) -> Option<Cause> {
        let hop = &step.hop;
        let link = self.at(hop.netns)?.0.link_named(&hop.device).ok()??;
        let device = &hop.device;
        let (means, look) = match (link.up, link.running) {
            (true, true) => return None,
            (true, false) => (
                format!("the peer of device {device} is down"),
                vec![
                    step.command(&format!("ip link show {}", quoted(device))),
                    "its other end: set it up".to_owned(),
                ],
            ),
            (false, _) => (
                format!("device {device} is down"),
                vec![step.command(&format!("ip link set {} up", quoted(device)))],
            ),
        };
        Some(Cause { means, look })
    }

    /// Where a node chose the packet's way: what it is handed to afterwards only follows.
    fn turn<'a>(&self, packet: &'a Packet) -> Option<&'a Step> {
        let mut sent = packet.hops.iter().filter(|step| step.hop.kind == HopKind::Sent);
        sent.find(|step| self.agents.is_in(step.hop.netns))
    }

    /// A receiver of the cluster to which no route of its own leads from here.
    fn no_way(&self, step: &Step) -> Option<Cause> {
        let Step { at, hop, .. } = step;
        let question = question(hop);
        let agent = self.agents.in_netns(hop.netns);
        let explanation = agent.and_then(|agent| agent.explain(&question));
        let problem = explanation.as_ref().and_then(way_problem);
        if let Some(problem) = problem {
            return Some(Cause {
                means: format!("it took the wrong way: {problem}"),
                look: vec![asks(agent, &question)],
            });
        }
        let receiver = hop.header.flow.destination.ip();
        let (pod, record) = self.pods.with_address(receiver)?;
        let found = self.at(hop.netns)?.0.look_up(&Lookup {
            destination: receiver,
            source: None,
            device: None,
            mark: 0,
        });
        let now = match found.ok()? {
            Route::Route(route) if route.destination.prefix() == 0 => {
                "only the default route leads there".to_owned()
            }
            Route::Route(route) => format!("that of {} leads there", route.destination),
            Route::Other => "one with several next hops, or of another kind, leads there".to_owned(),
            Route::Refused(errno) => format!("none leads there ({errno})"),
        };
        Some(Cause {
            means: format!(
                "the route to {receiver} was missing at {at}, or led elsewhere: that is pod/{pod} of node {}, which is on this \
                 machine; now {now}",
                record.node
            ),
            look: vec![step.command(&format!("ip route get {receiver}")), doctor(agent)],
        })
    }

    /// The kernel in a namespace, and what runs a command there.
    fn at(&self, netns: u32) -> Option<(Netlink, &str)> {
        let found = self.namespaces.iter().find(|found| found.inode == netns)?;
        Some((Netlink::open_in(&found.namespace).ok()?, &found.entering))
    }
}

/// Reasons that a device which is down gives, among others.
fn is_of_device(reason: &str) -> bool {
    matches!(reason, "QDISC_DROP" | "DEV_READY" | "NOT_SPECIFIED")
}

/// Where the packet goes: also by the name that connection tracking has for that.
fn receivers(hop: &Hop) -> Vec<IpAddr> {
    let tracked = hop.connection.map(|connection| connection.reply.source.ip());
    [Some(hop.header.flow.destination.ip()), tracked]
        .into_iter()
        .flatten()
        .collect()
}

/// The device by which packets leave for a receiver, and who on its link gets them.
fn next_hop(kernel: &mut Netlink, receiver: IpAddr) -> Option<(u32, IpAddr)> {
    let found = kernel.look_up(&Lookup {
        destination: receiver,
        source: None,
        device: None,
        mark: 0,
    });
    match found.ok()? {
        Route::Route(route) => Some((route.link?, route.gateway.unwrap_or(receiver))),
        Route::Other | Route::Refused(_) => None,
    }
}

fn unresolved(kernel: &mut Netlink, receiver: IpAddr, entering: &str) -> Option<Cause> {
    let (link, next) = next_hop(kernel, receiver)?;
    let neighbours = kernel.neighbours(Some(link)).ok()?;
    let is_asked_for = |found: &&Neighbour| found.address == next && found.mac.is_none();
    neighbours.iter().find(is_asked_for)?;
    let device = kernel.link_at(link).ok()??.name;
    Some(Cause {
        means: format!(
            "NEIGHBOUR unresolved: nobody has answered for {next} at device {device}; what is sent there waits for its MAC \
             address"
        ),
        look: vec![
            command_at(
                &format!("ip neigh show {next} dev {}", quoted(&device)),
                Some(entering),
                "",
            ),
            format!("whether who has {next} is up"),
        ],
    })
}

/// The command that has an agent look at everything.
fn doctor(agent: Option<&Agent>) -> String {
    format!("causeway doctor{}", agent.map(Agent::option).unwrap_or_default())
}

/// The command that has an agent explain a packet.
fn asks(
    agent: Option<&Agent>,
    Question {
        source, destination, ..
    }: &Question,
) -> String {
    let option = agent.map(Agent::option).unwrap_or_default();
    let ends = [source, destination].map(|end| quoted(end));
    format!("causeway explain{option} {}", ends.join(" "))
}

fn question(hop: &Hop) -> Question {
    question_of(hop.header.flow)
}

fn question_of(flow: Flow) -> Question {
    let destination = if flow.protocol.has_ports() {
        format!("{}/{}", flow.destination, flow.protocol)
    } else {
        flow.destination.ip().to_string()
    };
    Question {
        source: flow.source.ip().to_string(),
        destination,
        vantage: Vantage::default(),
    }
}

/// Why a Service's address takes nothing; none where it does.
fn refusal(explanation: &Explanation) -> Option<&str> {
    let services = explanation
        .forward
        .iter()
        .filter(|step| step.stage == Stage::Service);
    let mut problems = services.flat_map(|step| &step.problems);
    let problem =
        problems.find(|problem| problem.starts_with("refused") || problem.starts_with("dropped"))?;
    Some(
        problem
            .split_once(": ")
            .map_or(problem.as_str(), |(_, reason)| reason),
    )
}

/// What is wrong with the way there.
fn way_problem(explanation: &Explanation) -> Option<String> {
    let mut steps = explanation.forward.iter();
    let is_way = |stage| !matches!(stage, Stage::Service | Stage::Tracking);
    let step = steps.find(|step| is_way(step.stage) && !step.problems.is_empty())?;
    Some(format!("{}: {}", step.about, step.problems.join("; ")))
}

#[cfg(test)]
mod tests;
