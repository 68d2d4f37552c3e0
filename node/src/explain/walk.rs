//! The walk: names, then objects and kernel, there and back.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::Path;

use model::{NodeName, Protocol};
use netlink::{Found, Lookup};
use proxy::datapath::packets::layout::MASQUERADE_MARK;
use proxy::plan::{FrontendAddress, FrontendKey};
use proxy::programmed::{self, Client, LayerKind, Wanted};
use proxy::verdict::{Packet, Verdict};

use super::asked::{Ends, ends};
use super::compare::{self, Followed, Programming};
use super::facts::{Facts, WithoutAgent};
use super::kernel;
use super::look::Vantage;
use super::names::{Known, NameError, endpoint_text};
use super::objects::{self, Intent, Way, by_hook, intent, target_text};
use super::passage;
use super::rules::{self, Others};
use super::trips::{Asked, Turn};
use super::vpc;
use super::witness::{Seen, Witness};
use super::{Conclusion, Explanation, PodHere, Question, Stage, Step};

mod beside;
mod leaving;

use beside::Passing;

/// Endpoints whose way is looked at.
const WAYS: usize = 4;

/// Where a packet comes from, as this node sees it.
pub(super) struct Origin {
    /// Index and name of the device that it comes in by; none for the node's own.
    pub(super) device: Option<(u32, String)>,
    pub(super) client: Client,
}

/// Answers a question with all that the agent knows, and what `node` saw of its kernel. Blocks.
///
/// # Errors
/// When a name names nothing, or several things.
pub fn explain(question: &Question, facts: &Facts, node: &mut dyn Witness) -> Result<Explanation, NameError> {
    let known = Known {
        snapshot: Some(&facts.snapshot),
        pods: &facts.pods,
        former: Some(&facts.former),
    };
    let ends = ends(question, &known, node)?;
    Ok(Walk::new(&ends, &question.vantage, Knows::Agent(facts), node).run(&ends, node))
}

/// Answers a question by the kernel alone.
///
/// # Errors
/// When a name is no address and no pod's of this node.
pub fn without_agent(
    question: &Question,
    known: &WithoutAgent,
    node: &mut dyn Witness,
) -> Result<Explanation, NameError> {
    let names = Known {
        snapshot: None,
        pods: &known.pods,
        former: None,
    };
    let ends = ends(question, &names, node)?;
    Ok(Walk::new(&ends, &question.vantage, Knows::Kernel(known), node).run(&ends, node))
}

/// Who tells what there should be.
#[derive(Clone, Copy)]
enum Knows<'a> {
    Agent(&'a Facts),
    Kernel(&'a WithoutAgent),
}

struct Walk<'a> {
    knows: Knows<'a>,
    vantage: &'a Vantage,
    source: IpAddr,
    /// What the packet is sent to, before it is translated.
    destination: IpAddr,
    own: Vec<IpAddr>,
    forward: Vec<Step>,
    reverse: Vec<Step>,
    notes: Vec<String>,
    /// What became of the destination, for the conclusion.
    translated: Option<String>,
    /// Who made it another one.
    translated_by: Option<LayerKind>,
    is_tcp: bool,
    /// What rules of others compare.
    asked: Asked,
    /// Rules of others, or why they cannot be listed.
    others: Result<Others, String>,
}

impl<'a> Walk<'a> {
    fn new(ends: &Ends, vantage: &'a Vantage, knows: Knows<'a>, node: &mut dyn Witness) -> Self {
        Self {
            knows,
            vantage,
            source: ends.source.address,
            destination: ends.destination.address,
            own: Vec::new(),
            forward: Vec::new(),
            reverse: Vec::new(),
            notes: Vec::new(),
            translated: None,
            translated_by: None,
            is_tcp: ends.protocol == Protocol::Tcp,
            asked: Asked::of(ends),
            others: node.others(),
        }
    }

    fn facts(&self) -> Option<&'a Facts> {
        match self.knows {
            Knows::Agent(facts) => Some(facts),
            Knows::Kernel(_) => None,
        }
    }

    fn run(mut self, ends: &Ends, node: &mut dyn Witness) -> Explanation {
        if let Err(unseen) = self.look(ends, node) {
            let mut step = Step::new(Stage::Route, ends.destination.address.to_string());
            step.unknown.push(unseen.to_string());
            self.forward.push(step);
        }
        if let Knows::Kernel(known) = self.knows {
            if let (Some(doubt), Some(step)) = (&known.doubt, self.forward.first_mut()) {
                step.unknown.push(doubt.clone());
            }
            self.notes.extend(known.notes.iter().cloned());
        }
        self.note_filters();
        let steps: Vec<Step> = self.forward.iter().chain(&self.reverse).cloned().collect();
        let conclusion = Explanation::conclude(&steps);
        Explanation {
            node: self.facts().map(|facts| facts.node.to_string()),
            source: ends.source.clone(),
            destination: ends.destination.clone(),
            protocol: ends.protocol,
            sentence: self.sentence(conclusion, &steps),
            conclusion,
            forward: self.forward,
            reverse: self.reverse,
            notes: self.notes,
        }
    }

    fn sentence(&self, conclusion: Conclusion, steps: &[Step]) -> String {
        let first_of = |lines: &dyn Fn(&Step) -> Vec<String>| {
            let lines: Vec<_> = steps.iter().flat_map(lines).collect();
            match lines.as_slice() {
                [] => String::new(),
                [only] => only.clone(),
                [first, others @ ..] => format!("{first} (and {} more, below)", others.len()),
            }
        };
        match conclusion {
            Conclusion::Works => {
                let seen_by = match self.knows {
                    Knows::Agent(facts) => format!("as far as {} sees", facts.node),
                    Knows::Kernel(_) => "by the kernel alone".to_owned(),
                };
                let differs = steps.iter().any(|step| !step.differences.is_empty());
                let differs = if differs {
                    "; what DIFFERS from the plan does not stand in its way"
                } else {
                    ""
                };
                let translated = self.translated.as_ref().map(|text| format!("{text}; "));
                let translated = translated.unwrap_or_default();
                let is_read = |others: &Others| others.unread(self.vantage).is_empty();
                let unread = if self.others.as_ref().is_ok_and(is_read) {
                    ""
                } else {
                    "; rules of others that are not read may stop it, see the notes"
                };
                format!("{translated}nothing stands in the way, {seen_by}{differs}{unread}")
            }
            Conclusion::Fails => first_of(&|step| step.problems.clone()),
            Conclusion::CouldNotTell => first_of(&|step| step.unknown.clone()),
        }
    }

    fn look(&mut self, ends: &Ends, kernel: &mut dyn Witness) -> Seen<()> {
        self.own = kernel.addresses()?;
        let origin = self.origin(kernel, ends)?;
        if let Some((index, name)) = &origin.device
            && kernel
                .link_at(*index)?
                .is_some_and(|link| !(link.up && link.running))
            && origin.client == Client::PodHere
        {
            let mut step = Step::new(Stage::Link, name.clone());
            step.problems.push(format!(
                "{name}, the sender's device, is down, or its other end is: nothing comes by it"
            ));
            self.forward.push(step);
        }
        let mut targets = vec![ends.destination.address];
        let mut is_masqueraded = false;
        if let Some(port) = ends.port {
            let packet = Packet {
                source: self.source,
                device: origin.device.as_ref().map(|(_, name)| name.clone()),
                destination: ends.destination.address,
                port,
                protocol: ends.protocol,
            };
            match self.service(kernel, &packet, &origin, ends.source_node.as_ref()) {
                Some(Verdict::Forward { to, masquerade }) => {
                    is_masqueraded = masquerade;
                    let more = to.len().saturating_sub(WAYS);
                    if more > 0 {
                        let shown = to.iter().take(WAYS).map(target_text);
                        let ways = shown.collect::<Vec<_>>().join(", ");
                        self.notes
                            .push(format!("ways to {ways} are shown, {more} more are not"));
                    }
                    self.asked.targets(&to);
                    targets = to.iter().take(WAYS).map(|target| target.address).collect();
                }
                Some(Verdict::Refuse | Verdict::Drop) => return Ok(()),
                Some(Verdict::Pass) | None => {}
            }
        }
        targets.dedup();
        for target in targets {
            if origin.client == Client::PodHere && target == self.source && !self.is_translated_outside() {
                self.stays(target);
                continue;
            }
            self.there_and_back(kernel, &origin, target, is_masqueraded)?;
        }
        Ok(())
    }

    /// Whether rules for packets choose the endpoint, outside of the pod.
    fn is_translated_outside(&self) -> bool {
        self.translated_by == Some(LayerKind::PacketRules)
    }

    /// A pod's packet to itself.
    fn stays(&mut self, address: IpAddr) {
        let mut step = Step::new(Stage::Route, address.to_string());
        let stays = "the sender's own address: the packet stays in the pod, on its loopback device";
        step.objects.push(stays.to_owned());
        self.forward.push(step);
    }

    /// By which device the packet comes to this node.
    fn origin(&self, kernel: &mut dyn Witness, ends: &Ends) -> Seen<Origin> {
        let here = self.facts().map(|facts| &facts.node);
        let way = self.way(self.source);
        let is_known_elsewhere = matches!(way, Way::Tunnel { .. } | Way::Gateway { .. });
        let is_of_other_node = here.is_some()
            && (is_known_elsewhere || ends.source_node.as_ref().is_some_and(|node| Some(node) != here));
        let mut origin = Origin {
            device: None,
            client: Client::ThisNode,
        };
        if self.own.contains(&self.source) {
            return Ok(origin);
        }
        let back = kernel.look_up(&Lookup {
            destination: self.source,
            source: None,
            device: None,
            mark: 0,
        })?;
        let pod = self
            .pods()
            .iter()
            .find(|pod| pod.addresses.contains(&self.source));
        let link = match (pod, back) {
            (Some(pod), _) => kernel.link_named(&pod.device)?,
            (None, Found::Route(route)) => match route.link {
                Some(index) => kernel.link_at(index)?,
                None => None,
            },
            (None, Found::Other | Found::Refused(_)) => None,
        };
        origin.device = link.map(|link| (link.index, link.name));
        let is_named_here = here.is_some() && ends.source_node.as_ref() == here;
        let packet = Packet {
            source: self.source,
            device: origin.device.as_ref().map(|(_, name)| name.clone()),
            destination: ends.destination.address,
            port: ends.port.unwrap_or(NonZeroU16::MIN),
            protocol: ends.protocol,
        };
        let context = self.facts().and_then(|facts| facts.context.as_ref());
        let is_pod = context.is_some_and(|context| context.is_pod(&packet));
        origin.client = match (pod.is_some() || is_named_here, is_of_other_node, is_pod) {
            (true, false, _) => Client::PodHere,
            (_, true, _) => Client::PodElsewhere,
            // A pod that nobody has written down is this node's where no lease says otherwise.
            (false, false, true) => Client::PodHere,
            (false, false, false) => Client::Outside,
        };
        Ok(origin)
    }

    fn pods(&self) -> &'a [PodHere] {
        match self.knows {
            Knows::Agent(facts) => &facts.pods,
            Knows::Kernel(known) => &known.pods,
        }
    }

    fn pin_dir(&self) -> Option<&'a Path> {
        match self.knows {
            Knows::Agent(facts) => facts.pin_dir.as_deref(),
            Knows::Kernel(known) => Some(&known.pin_dir),
        }
    }

    /// What both engines say of the destination, and what becomes of the packet: by the objects, where they are known.
    fn service(
        &mut self,
        kernel: &mut dyn Witness,
        packet: &Packet,
        origin: &Origin,
        source_node: Option<&NodeName>,
    ) -> Option<Verdict> {
        let about = format!(
            "{}/{}",
            endpoint_text(packet.destination, Some(packet.port)),
            packet.protocol
        );
        let facts = self.facts();
        let intent = facts.and_then(|facts| Some(intent(&facts.snapshot, facts.context.as_ref()?, packet)));
        let programming = self.programming(kernel, packet, intent.as_ref());
        let is_free = intent.as_ref().is_some_and(|intent| intent.owner.is_none());
        let taken = is_free
            .then(|| self.taken_by_hook(kernel, packet, origin))
            .flatten();
        let (intent, programming, node) = match taken {
            Some((node, intent, programming)) => (Some(intent), programming, Some(node)),
            None => (intent, programming, None),
        };
        let followed = programming.follow(origin.client);
        let mut step = compare::service(&about, intent.as_ref(), &programming, origin.client, self.vantage);
        step.objects.extend(node.map(|node| {
            format!(
                "{} is {node}'s: the socket hook takes node ports of all nodes here",
                packet.destination
            )
        }));
        if let Some(facts) = facts.filter(|facts| facts.context.is_none()) {
            let other =
                "the agent plans no Services here: whoever does so decides what becomes of one's address";
            step.unknown
                .extend(self.is_of_services(facts, packet).then(|| other.to_owned()));
        }
        let is_service = intent.as_ref().is_some_and(|intent| intent.owner.is_some());
        if origin.client == Client::PodElsewhere && is_service && !self.own.contains(&packet.destination) {
            let node = source_node.map_or("the node".to_owned(), ToString::to_string);
            step.unknown.push(format!(
                "the endpoint is chosen on {node}, where the client is: ask there; here it is seen as this node would do it"
            ));
        }
        self.translated = followed.as_ref().and_then(translation);
        self.translated_by = followed.as_ref().map(|followed| followed.by);
        let mut verdict = match &intent {
            Some(intent) => Some(intent.verdict.clone()),
            None => followed.as_ref().map(programmed_verdict),
        };
        let is_by_hook = followed.is_some_and(|followed| followed.by == LayerKind::SocketHook);
        if let Some(Verdict::Forward { to, masquerade }) = &mut verdict
            && is_by_hook
            && std::mem::take(masquerade)
            && let Some(first) = step.objects.first_mut()
        {
            *first = objects::text_by_hook(to);
        }
        self.forward.push(step);
        verdict
    }

    /// What the hook does with what processes of this node send to a node port of another node, where it does so.
    fn taken_by_hook(
        &self,
        kernel: &mut dyn Witness,
        packet: &Packet,
        origin: &Origin,
    ) -> Option<(NodeName, Intent, Programming)> {
        let facts = self.facts()?;
        if !matches!(origin.client, Client::PodHere | Client::ThisNode) {
            return None;
        }
        facts.pin_dir.as_ref()?;
        let (node, intent) = by_hook(&facts.snapshot, facts.context.as_ref()?, packet)?;
        let programming = self.programming(kernel, packet, Some(&intent));
        let followed = programming.follow(origin.client)?;
        (followed.by == LayerKind::SocketHook).then_some((node, intent, programming))
    }

    fn is_of_services(&self, facts: &Facts, packet: &Packet) -> bool {
        let mut services = facts.snapshot.services.iter();
        services.any(|(_, service)| {
            super::names::addresses_of(service).any(|address| address == packet.destination)
        })
    }

    /// What is programmed at the frontend that the packet meets.
    fn programming(&self, kernel: &mut dyn Witness, packet: &Packet, intent: Option<&Intent>) -> Programming {
        if let Some(reason) = self.facts().and_then(|facts| facts.unread_rules.clone()) {
            let has_owner = intent.is_none_or(|intent| intent.owner.is_some());
            return Programming {
                unread: has_owner.then_some(reason),
                ..Programming::default()
            };
        }
        let key = |address| FrontendKey {
            address,
            port: packet.port,
            protocol: packet.protocol,
        };
        let owner = intent.and_then(|intent| intent.owner.as_ref());
        let by_address = key(FrontendAddress::Service(packet.destination));
        let key = owner.map_or(by_address, |owner| owner.key);
        let wanted = match (intent, owner) {
            (None, _) => Wanted::Unknown,
            (Some(_), None) => Wanted::Nothing,
            (Some(_), Some(owner)) => Wanted::Port(&owner.port, owner.frontend),
        };
        match kernel.layers(self.pin_dir(), &key, wanted) {
            Ok(layers) => Programming { layers, unread: None },
            Err(reason) => Programming {
                unread: Some(format!("what is programmed cannot be read: {reason}")),
                ..Programming::default()
            },
        }
    }

    fn there_and_back(
        &mut self,
        kernel: &mut dyn Witness,
        origin: &Origin,
        target: IpAddr,
        is_masqueraded: bool,
    ) -> Seen<()> {
        let device = origin.device.as_ref().map(|(index, _)| *index);
        // Behind a source without a device there is no way in to be looked at.
        let is_own = self.own.contains(&self.source);
        let leaving = self.leaving(target);
        let masquerade_mark = if is_masqueraded && device.is_some() {
            MASQUERADE_MARK
        } else {
            0
        };
        let there = kernel::look(
            kernel,
            Lookup {
                destination: target,
                source: device.map(|_| self.source),
                device,
                mark: masquerade_mark | leaving.as_ref().map_or(0, |leaving| leaving.mark),
            },
        )?;
        let leaves_by = there.routed.leaves_by().map(|link| link.index);
        let translated = leaving.as_ref().and_then(|leaving| leaving.source);
        let way = leaving.map_or_else(|| self.way(target), Way::Vpc);
        let mut steps = compare::way(&way, &there, self.vantage);
        // Services' rules translate theirs themselves.
        let translated = translated.filter(|_| !is_masqueraded);
        steps.extend(translated.map(|source| vpc::translated(self.source, source, self.vantage)));
        let is_masqueraded = is_masqueraded || translated.is_some();
        let comes_by = origin.device.as_ref().map(|(_, name)| name.as_str());
        let opener = comes_by.filter(|_| origin.client == Client::PodHere);
        let passes = self.passage(kernel, comes_by, opener, target)?;
        let is_passed = passes.as_ref().is_some_and(Passing::is_taken);
        if is_passed {
            passage::pass_by(&mut steps);
            let node = passes.as_ref().and_then(|passing| passing.node);
            if let (Some(node), None) = (node, &there.underlay) {
                // The stack's way ends before it is wrapped, that of the fast path does not.
                let outer = kernel::wrapped(kernel, node)?;
                steps.push(compare::underlay(&outer, None, self.vantage));
            }
        }
        if device.is_none()
            && !is_own
            && let Some(step) = steps.first_mut()
        {
            step.unknown.push(format!(
                "no route leads to {}: it is not known where it comes in",
                self.source
            ));
        }
        let turn = Turn {
            target,
            is_masqueraded,
            translated_by: self.translated_by,
            is_passed,
            own: &self.own,
        };
        let trips = self.asked.trips(origin, &there, &turn);
        let passage = passes.map(|passing| passing.step);
        let tracking = if is_passed {
            None
        } else {
            self.tracking(kernel, target, trips.there.first())
        };
        add(
            &mut self.forward,
            passage.into_iter().chain(tracking).chain(steps),
        );
        let met = self.met(&trips.there);
        add(&mut self.forward, met.into_iter());
        if matches!(there.routed.found, Found::Refused(_)) && !is_passed {
            return Ok(());
        }
        if is_masqueraded {
            self.notes.push(format!(
                "the answer of {target} goes to this node's own address and is translated back by connection tracking"
            ));
        }
        let answering = self.answering(kernel, origin, target)?;
        let back = kernel::look(
            kernel,
            Lookup {
                destination: self.source,
                source: leaves_by.map(|_| target),
                device: leaves_by,
                mark: answering.as_ref().map_or(0, |answering| answering.mark),
            },
        )?;
        let way = answering.map_or_else(|| self.way(self.source), Way::Vpc);
        let mut steps = compare::way(&way, &back, self.vantage);
        let comes_by = match self.way(target) {
            Way::Pod { device, .. } | Way::Tunnel { device, .. } => Some(device),
            _ => None,
        };
        let comes_by = comes_by.as_deref().filter(|_| is_passed);
        let passes = self.passage(kernel, comes_by, None, self.source)?;
        if passes.as_ref().is_some_and(Passing::is_taken) {
            passage::pass_by(&mut steps);
        }
        add(
            &mut self.reverse,
            passes.map(|passing| passing.step).into_iter().chain(steps),
        );
        let met = self.met(&trips.back);
        add(&mut self.reverse, met.into_iter());
        Ok(())
    }

    fn way(&self, address: IpAddr) -> Way {
        match self.facts() {
            Some(facts) => objects::way(address, &self.own, &facts.pods, facts.network.as_deref()),
            None => Way::Unknown,
        }
    }

    /// What rules of others make of packets.
    fn met(&self, trips: &[rules::Trip]) -> Vec<Step> {
        let Ok(others) = &self.others else {
            return Vec::new();
        };
        let steps = trips
            .iter()
            .map(|trip| rules::step(&others.rules, trip, self.vantage));
        steps.flatten().collect()
    }

    /// Rules of others that were not evaluated may drop what all else lets pass.
    fn note_filters(&mut self) {
        let unevaluated = rules::unevaluated(self.forward.iter().chain(&self.reverse));
        self.notes.extend(unevaluated);
        match &self.others {
            Ok(others) => self.notes.extend(others.unread(self.vantage)),
            Err(reason) => self
                .notes
                .push(format!("rules of others cannot be listed: {reason}")),
        }
    }
}

/// Adds what is not told already: ways to several endpoints have much in common.
fn add(told: &mut Vec<Step>, steps: impl Iterator<Item = Step>) {
    for step in steps {
        if !told.contains(&step) {
            told.push(step);
        }
    }
}

/// What a layer does with the packet, in words; nothing where it stops it.
fn translation(followed: &Followed) -> Option<String> {
    match &followed.verdict {
        programmed::Verdict::Spread(to) => {
            let to = objects::targets_text(to.iter());
            Some(match followed.by {
                LayerKind::SocketHook => format!("the socket hook sends it to {to}"),
                LayerKind::PacketRules => format!("the packet rules send it to {to}"),
            })
        }
        programmed::Verdict::Refuse | programmed::Verdict::Drop => None,
    }
}

fn programmed_verdict(followed: &Followed) -> Verdict {
    match &followed.verdict {
        programmed::Verdict::Refuse => Verdict::Refuse,
        programmed::Verdict::Drop => Verdict::Drop,
        programmed::Verdict::Spread(to) => Verdict::Forward {
            to: to.iter().copied().collect(),
            masquerade: false,
        },
    }
}
