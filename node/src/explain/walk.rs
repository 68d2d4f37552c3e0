//! The walk: names, then objects and kernel, there and back.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;

use model::{IpFamily, NodeName, Protocol, Snapshot, with_causes};
use netlink::nft::Nft;
use netlink::{Found, Kernel, Lookup, Netlink};
use overlay::fast_path::foreign_filters;
use overlay::plan::Plan;
use proxy::datapath::packets::layout::MASQUERADE_MARK;
use proxy::plan::{FrontendAddress, FrontendKey, NodeContext};
use proxy::programmed::{Layer, Programmed, Wanted};
use proxy::verdict::{Packet, Verdict};

use super::compare;
use super::kernel::{self, Sight};
use super::names::{Known, Name, NameError, Place, Subject, endpoint_text};
use super::objects::{self, Intent, Way, intent, target_text};
use super::{End, Explanation, PodHere, Question, Stage, Step};

/// Endpoints whose way is looked at.
const WAYS: usize = 4;

/// What an agent knows.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its node.
    pub node: NodeName,
    /// The cluster.
    pub snapshot: Arc<Snapshot>,
    /// What plans are made by; none before the proxy's first sync, or where there is none.
    pub context: Option<NodeContext>,
    /// This node's pods.
    pub pods: Vec<PodHere>,
    /// Whose addresses were that are nobody's any more, and until when.
    pub former: BTreeMap<IpAddr, String>,
    /// What the kernel shall have for the pod network.
    pub network: Option<Arc<Plan>>,
    /// Where the socket hook is pinned; none where there shall be none.
    pub pin_dir: Option<PathBuf>,
    /// Why the packet rules are not read.
    pub unread_rules: Option<String>,
}

/// What both ends are, with addresses of one version of IP.
struct Ends {
    source: End,
    destination: End,
    protocol: Protocol,
    port: Option<NonZeroU16>,
    /// The node that the source is on.
    source_node: Option<NodeName>,
}

/// Where a packet comes from, as this node sees it.
struct Origin {
    /// Index and name of the device that it comes in by; none for the node's own.
    device: Option<(u32, String)>,
    is_of_other_node: bool,
}

/// Answers a question with all that the agent knows. Blocks; in the network namespace of the calling thread.
///
/// # Errors
/// When a name names nothing, or several things.
pub fn explain(question: &Question, facts: &Facts) -> Result<Explanation, NameError> {
    let known = Known {
        snapshot: Some(&facts.snapshot),
        pods: &facts.pods,
        former: Some(&facts.former),
    };
    let ends = ends(question, &known)?;
    Ok(Walk::new(&ends, Some(facts), facts.pin_dir.clone()).run(&ends))
}

/// Answers a question by the kernel alone.
///
/// # Errors
/// When a name is no address.
pub fn without_agent(question: &Question, pin_dir: PathBuf) -> Result<Explanation, NameError> {
    let known = Known {
        snapshot: None,
        pods: &[],
        former: None,
    };
    let ends = ends(question, &known)?;
    Ok(Walk::new(&ends, None, Some(pin_dir)).run(&ends))
}

fn ends(question: &Question, known: &Known<'_>) -> Result<Ends, NameError> {
    let source = place(&question.source, known)?;
    let destination = place(&question.destination, known)?;
    let pair = destination.addresses.iter().find_map(|to| {
        let mut from = source.addresses.iter();
        Some((*from.find(|from| from.is_ipv4() == to.is_ipv4())?, *to))
    });
    let Some((from, to)) = pair else {
        return Err(NameError::NotHere {
            name: question.destination.clone(),
            reason: format!(
                "{} and {} have no version of IP in common",
                source.name, destination.name
            ),
        });
    };
    let end = |place: &Place, address| End {
        name: place.name.clone(),
        address,
        port: place.port.map(NonZeroU16::get),
        node: place.node.as_ref().map(ToString::to_string),
    };
    Ok(Ends {
        source: End {
            port: None,
            ..end(&source, from)
        },
        destination: end(&destination, to),
        protocol: destination.protocol.unwrap_or(Protocol::Tcp),
        port: destination.port,
        source_node: source.node,
    })
}

/// What a name names; names that are no object's are asked of the node's resolver.
fn place(text: &str, known: &Known<'_>) -> Result<Place, NameError> {
    use std::net::ToSocketAddrs;
    let name = Name::parse(text)?;
    let Subject::Dns(dns) = &name.subject else {
        return known.place(&name);
    };
    let not_here = |reason: String| NameError::NotHere {
        name: dns.clone(),
        reason,
    };
    let resolved = (dns.as_str(), 0).to_socket_addrs();
    let resolved = resolved.map_err(|error| not_here(format!("the node's resolver says: {error}")))?;
    let addresses: Vec<IpAddr> = resolved.map(|address| address.ip()).collect();
    let Some(first) = addresses.first() else {
        return Err(not_here("it has no address".to_owned()));
    };
    let by_address = Name {
        subject: Subject::Address(*first),
        ..name.clone()
    };
    Ok(Place {
        name: format!("name {dns}"),
        addresses,
        ..known.place(&by_address)?
    })
}

struct Walk<'a> {
    facts: Option<&'a Facts>,
    pin_dir: Option<PathBuf>,
    source: IpAddr,
    own: Vec<IpAddr>,
    forward: Vec<Step>,
    reverse: Vec<Step>,
    notes: Vec<String>,
}

impl<'a> Walk<'a> {
    fn new(ends: &Ends, facts: Option<&'a Facts>, pin_dir: Option<PathBuf>) -> Self {
        Self {
            facts,
            pin_dir,
            source: ends.source.address,
            own: Vec::new(),
            forward: Vec::new(),
            reverse: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn run(mut self, ends: &Ends) -> Explanation {
        if let Err(error) = self.look(ends) {
            let mut step = Step::new(Stage::Route, ends.destination.address.to_string());
            step.unknown
                .push(format!("the kernel does not answer: {}", with_causes(&error)));
            self.forward.push(step);
        }
        self.note_filters();
        let steps: Vec<Step> = self.forward.iter().chain(&self.reverse).cloned().collect();
        Explanation {
            node: self.facts.map(|facts| facts.node.to_string()),
            source: ends.source.clone(),
            destination: ends.destination.clone(),
            protocol: ends.protocol,
            conclusion: Explanation::conclude(&steps),
            forward: self.forward,
            reverse: self.reverse,
            notes: self.notes,
        }
    }

    fn look(&mut self, ends: &Ends) -> netlink::Result<()> {
        let mut kernel = Netlink::open()?;
        let addresses = kernel.addresses(None)?;
        self.own = addresses.iter().map(|address| address.network.ip()).collect();
        let origin = self.origin(&mut kernel, ends)?;
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
            let (step, verdict) = self.service(&packet, &origin, ends.source_node.as_ref());
            self.forward.push(step);
            match verdict {
                Some(Verdict::Forward { to, masquerade }) => {
                    is_masqueraded = masquerade;
                    let more = to.len().saturating_sub(WAYS);
                    if more > 0 {
                        let ways = to
                            .iter()
                            .take(WAYS)
                            .map(target_text)
                            .collect::<Vec<_>>()
                            .join(", ");
                        self.notes
                            .push(format!("ways to {ways} are shown, {more} more are not"));
                    }
                    targets = to.iter().take(WAYS).map(|target| target.address).collect();
                }
                Some(Verdict::Refuse | Verdict::Drop) => return Ok(()),
                Some(Verdict::Pass) | None => {}
            }
        }
        targets.dedup();
        for target in targets {
            self.there_and_back(&mut kernel, &origin, target, is_masqueraded)?;
        }
        Ok(())
    }

    /// By which device the packet comes to this node.
    fn origin(&self, kernel: &mut Netlink, ends: &Ends) -> netlink::Result<Origin> {
        let mut origin = Origin {
            device: None,
            is_of_other_node: false,
        };
        if self.own.contains(&self.source) {
            return Ok(origin);
        }
        let here = self.facts.map(|facts| &facts.node);
        origin.is_of_other_node =
            here.is_some() && ends.source_node.as_ref().is_some_and(|node| Some(node) != here);
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
        Ok(origin)
    }

    fn pods(&self) -> &'a [PodHere] {
        self.facts.map_or(&[], |facts| &facts.pods)
    }

    /// What both engines say of the destination, and what becomes of the packet: by the objects, where they are known.
    fn service(
        &self,
        packet: &Packet,
        origin: &Origin,
        source_node: Option<&NodeName>,
    ) -> (Step, Option<Verdict>) {
        let about = format!(
            "{}/{}",
            endpoint_text(packet.destination, Some(packet.port)),
            packet.protocol
        );
        let facts = self.facts;
        let intent = facts.and_then(|facts| Some(intent(&facts.snapshot, facts.context.as_ref()?, packet)));
        let layers = self.layers(packet, intent.as_ref());
        let verdict = match &intent {
            Some(intent) => Some(intent.verdict.clone()),
            None => compare::programmed_verdict(&layers),
        };
        let mut step = compare::service(&about, intent.as_ref(), layers);
        if let Some(facts) = facts.filter(|facts| facts.context.is_none()) {
            let other =
                "the agent plans no Services here: whoever does so decides what becomes of one's address";
            step.unknown
                .extend(self.is_of_services(facts, packet).then(|| other.to_owned()));
        }
        let is_service = intent.as_ref().is_some_and(|intent| intent.owner.is_some());
        if origin.is_of_other_node && is_service && !self.own.contains(&packet.destination) {
            let node = source_node.map(ToString::to_string).unwrap_or_default();
            step.unknown.push(format!(
                "the endpoint is chosen on {node}, where the client is: ask there; here it is seen as this node would do it"
            ));
        }
        (step, verdict)
    }

    fn is_of_services(&self, facts: &Facts, packet: &Packet) -> bool {
        let mut services = facts.snapshot.services.iter();
        services.any(|(_, service)| {
            super::names::addresses_of(service).any(|address| address == packet.destination)
        })
    }

    /// What is programmed at the frontend that the packet meets.
    fn layers(&self, packet: &Packet, intent: Option<&Intent>) -> Vec<Result<Layer, String>> {
        if let Some(reason) = self.facts.and_then(|facts| facts.unread_rules.clone()) {
            let has_owner = intent.is_none_or(|intent| intent.owner.is_some());
            return has_owner.then_some(Err(reason)).into_iter().collect();
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
        let read = Programmed::read(self.pin_dir.as_deref(), [key.family()]);
        match read.and_then(|programmed| programmed.layers(&key, wanted)) {
            Ok(layers) => layers.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(format!(
                "what is programmed cannot be read: {}",
                with_causes(&error)
            ))],
        }
    }

    fn there_and_back(
        &mut self,
        kernel: &mut Netlink,
        origin: &Origin,
        target: IpAddr,
        is_masqueraded: bool,
    ) -> netlink::Result<()> {
        let device = origin.device.as_ref().map(|(index, _)| *index);
        // Behind a source without a device there is no way in to be looked at.
        let is_own = self.own.contains(&self.source);
        let there = kernel::look(
            kernel,
            Lookup {
                destination: target,
                source: device.map(|_| self.source),
                device,
                mark: if is_masqueraded && device.is_some() {
                    MASQUERADE_MARK
                } else {
                    0
                },
            },
        )?;
        let leaves_by = there
            .routed
            .link
            .as_ref()
            .filter(|link| !link.loopback)
            .map(|link| link.index);
        let mut steps = self.compare(target, &there);
        if device.is_none()
            && !is_own
            && let Some(step) = steps.first_mut()
        {
            step.unknown.push(format!(
                "no route leads to {}: it is not known where it comes in",
                self.source
            ));
        }
        self.forward.extend(steps);
        if matches!(there.routed.found, Found::Refused(_)) {
            return Ok(());
        }
        if is_masqueraded {
            self.notes.push(format!(
                "the answer of {target} goes to this node's own address and is translated back by connection tracking"
            ));
        }
        let back = kernel::look(
            kernel,
            Lookup {
                destination: self.source,
                source: leaves_by.map(|_| target),
                device: leaves_by,
                mark: 0,
            },
        )?;
        let steps = self.compare(self.source, &back);
        self.reverse.extend(steps);
        Ok(())
    }

    fn compare(&self, address: IpAddr, sight: &Sight) -> Vec<Step> {
        let way = match self.facts {
            Some(facts) => objects::way(address, &self.own, &facts.pods, facts.network.as_deref()),
            None => Way::Unknown,
        };
        compare::way(&way, sight)
    }

    /// Rules of others may drop what all else lets pass.
    fn note_filters(&mut self) {
        let foreign = match Nft::open().and_then(|mut nft| foreign_filters(&mut nft)) {
            Ok(foreign) => foreign,
            Err(error) => {
                self.notes.push(format!(
                    "rules of others cannot be listed: {}",
                    with_causes(&error)
                ));
                return;
            }
        };
        let family = match IpFamily::from(self.source) {
            IpFamily::V4 => "ip",
            IpFamily::V6 => "ip6",
        };
        let concerns = |name: &str| name == family || matches!(name, "inet" | "netdev");
        let foreign = foreign.iter().filter(|filter| concerns(filter.family));
        self.notes.extend(foreign.map(|filter| {
            format!(
                "chain {} {} {} is somebody else's and may drop or change it; its rules are not evaluated",
                filter.family, filter.table, filter.chain
            )
        }));
    }
}
