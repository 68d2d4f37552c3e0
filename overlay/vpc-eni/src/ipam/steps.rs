//! What changes something at EC2: each written down first, and continued after a restart from where it was.

use std::time::Duration;

use ipnetwork::IpNetwork;
use rand::RngCore as _;
use tokio::time::Instant;

use super::node::{self, SETTLES};
use super::problem::{Problem, Subject, of_call};
use super::{Ipam, Turn, tag};
use crate::ec2::{
    Amount, Attached, AttachmentId, CallError, Ec2, Eni, EniId, Limits, Meaning, Metadata, NewEni,
    SecurityGroupId, SubnetId, Tags, Which,
};
use crate::home::Home;
use crate::plan::{Step, next_step};
use crate::settings::PodFamily;
use crate::undertaking::Undertaking;

/// How long a subnet is left alone that has no address, the peer's.
const EXHAUSTED: Duration = Duration::from_secs(120);

/// How long it is believed that the instance can have no more interfaces than it has.
const LIMITED: Duration = Duration::from_secs(600);

/// How often subnets are asked for again when an interface is made.
const SUBNETS_AGE: Duration = Duration::from_secs(600);

impl<E: Ec2, M: Metadata, H: Home> Ipam<E, M, H> {
    /// What was begun and may go on now.
    pub(super) fn next_undertaking(&self, now: Instant) -> Option<Undertaking> {
        let open = self.undertakings.open_ones().iter();
        open.filter(|open| match open {
            // A look ends them, or time.
            Undertaking::Change { .. } | Undertaking::GaveBack { .. } | Undertaking::Removed { .. } => false,
            Undertaking::Add {
                eni: Some(eni),
                attachment: Some(_),
                ..
            } => self.pace.allows(&Subject::Termination(eni.clone()), now),
            Undertaking::Remove { eni, .. } => self.pace.allows(&Subject::Removal(eni.clone()), now),
            Undertaking::Add { .. } => self.pace.allows(&Subject::NewInterface, now),
        })
        .find(|_| self.pace.allows(&Subject::File, now))
        .cloned()
    }

    /// Does the next call of it.
    pub(super) async fn continue_with(&mut self, undertaking: Undertaking, now: Instant) -> Turn {
        match undertaking.clone() {
            Undertaking::Add { new, eni: None, .. } => self.create(undertaking, new, now).await,
            Undertaking::Add {
                eni: Some(eni),
                attachment: None,
                ..
            } => self.attach(undertaking, eni, now).await,
            Undertaking::Add {
                eni: Some(eni),
                attachment: Some(attachment),
                ..
            } => self.finish(undertaking, eni, attachment, now).await,
            Undertaking::Remove {
                eni,
                attachment,
                was_here,
            } => self.remove(undertaking, eni, attachment, was_here, now).await,
            Undertaking::Change { .. } | Undertaking::GaveBack { .. } | Undertaking::Removed { .. } => {
                Turn::Idle
            }
        }
    }

    /// Decides, and begins.
    pub(super) async fn take_step(&mut self, now: Instant) -> Turn {
        let Some(limits) = self.limits.filter(|_| self.pace.allows(&Subject::File, now)) else {
            return Turn::Idle;
        };
        let is_schedulable = self.facts.borrow().is_schedulable || self.settings.manages_unschedulable;
        if self.settings.family == PodFamily::V6 {
            return self.fill_with_v6(now).await;
        }
        let view = self.view(limits, now);
        if !is_schedulable && view.waiting == 0 {
            return Turn::Idle;
        }
        let step = next_step(&view);
        if step == Step::Full {
            self.note_full(limits, now);
        } else {
            self.problems.ends(&Subject::Room);
        }
        self.end_problems_of_full_ones(limits);
        match step {
            Step::Rest | Step::GiveBack { .. } | Step::Remove { .. } => self.end_problems_of_growth(),
            Step::Fill { .. } | Step::Add { .. } | Step::Full => self.end_problems_of_giving_back(),
        }
        if step == Step::Rest && view.may_give_back {
            self.end_problems_of_giving_back();
        }
        match step {
            Step::Rest if view.may_give_back => self.retire(now).await,
            Step::Rest | Step::Full => Turn::Idle,
            Step::Fill { eni, amount } => self.fill(&eni, amount, now).await,
            Step::Add { amount } => self.add(amount, now).await,
            Step::GiveBack { eni, blocks } => self.give_back(&eni, &blocks, now).await,
            Step::Remove { eni } => self.begin_removal(&eni, now),
        }
    }

    /// Whether EC2 could give pods more of an interface.
    fn has_room(&self, held: &super::Held, limits: Limits) -> bool {
        let used = (held.eni.secondary.len() + held.eni.prefixes.len()) as u32;
        self.manages(held) && self.serves(held) && used + 1 < limits.addresses_per_interface
    }

    /// Nothing more is asked for those that are full.
    fn end_problems_of_full_ones(&mut self, limits: Limits) {
        let full: Vec<EniId> = self
            .held()
            .filter(|held| !self.has_room(held, limits))
            .map(|held| held.eni.id.clone())
            .collect();
        for eni in full {
            self.problems.ends(&Subject::Interface(eni));
        }
    }

    /// Who wants nothing more is refused nothing.
    fn end_problems_of_growth(&mut self) {
        let mut open = self.undertakings.open_ones().iter();
        let is_adding = open.any(|open| matches!(open, Undertaking::Add { attachment: None, .. }));
        self.problems.retain(|subject| match subject {
            Subject::NewInterface => is_adding,
            Subject::Subnet(_) | Subject::Interface(_) => false,
            _ => true,
        });
    }

    /// Likewise for what is not given back any more.
    fn end_problems_of_giving_back(&mut self) {
        self.problems
            .retain(|subject| !matches!(subject, Subject::GivingBack(_)));
    }

    /// Gives back what an interface has that pods get no addresses of any more: custom networking was turned on.
    async fn retire(&mut self, now: Instant) -> Turn {
        let is_retired = |held: &&super::Held| {
            self.manages(held)
                && !self.serves(held)
                && !held.eni.secondary.is_empty() | !held.eni.prefixes.is_empty()
        };
        let retired = self.held().find(is_retired);
        let Some((eni, blocks)) = retired.map(|held| (held.eni.id.clone(), held.blocks())) else {
            return Turn::Idle;
        };
        let blocks: Vec<IpNetwork> = blocks.into_iter().collect();
        self.give_back(&eni, &blocks, now).await
    }

    /// Where nothing can be added, that is a problem only for pods that wait; and what is held up is told as what holds
    /// it up.
    fn note_full(&mut self, limits: Limits, now: Instant) {
        let is_limited = self.interface_limit.is_some_and(|(_, until)| now < until);
        let mut open = self.undertakings.open_ones().iter();
        let is_held_up = self.held().any(|held| self.has_room(held, limits))
            || is_limited
            || open.any(Undertaking::is_underway);
        if self.home.census().waiting == 0 || is_held_up {
            return self.problems.ends(&Subject::Room);
        }
        let what = match &self.instance {
            Some(instance) => format!(
                "pods wait, and an instance of type {} can have no more addresses",
                instance.instance_type
            ),
            None => "pods wait, and the instance can have no more addresses".to_owned(),
        };
        let advice = "lower the kubelet's --max-pods, raise MAX_ENI, turn ENABLE_PREFIX_DELEGATION on, or take a larger \
                      instance type"
            .to_owned();
        self.problems.note(&Subject::Room, Problem { what, advice });
    }

    /// One `/80` of the primary interface is more than any node needs.
    async fn fill_with_v6(&mut self, now: Instant) -> Turn {
        let Some(primary) = self.node.as_ref().and_then(super::Node::primary) else {
            return Turn::Idle;
        };
        let id = primary.eni.id.clone();
        let may = self.may_fill(primary, now) && !self.is_unsure(&id);
        if !primary.eni.prefixes_v6.is_empty() || !may {
            return Turn::Idle;
        }
        self.fill(&id, Amount::PrefixesV6(1), now).await
    }

    async fn fill(&mut self, eni: &EniId, amount: Amount, now: Instant) -> Turn {
        let subject = Subject::Interface(eni.clone());
        // Another interface in its place would be there for longer than this one's wait.
        if !self.pace.allows(&subject, now) {
            return Turn::Idle;
        }
        let amount = self
            .portions
            .get(eni)
            .map_or(amount, |most| at_most(amount, *most));
        let change = Undertaking::Change {
            eni: eni.clone(),
            gives_back: Vec::new(),
            since: self.wall.now(),
        };
        // One record says of an interface that it may have more, however often it was asked for.
        let is_fill = |open: &&Undertaking| matches!(open, Undertaking::Change { eni: of, gives_back, .. } if of == eni && gives_back.is_empty());
        let before = self.undertakings.open_ones().iter().find(is_fill).cloned();
        let written = match &before {
            Some(before) => self.undertakings.advance(before, change.clone()),
            None => self.undertakings.begin(change.clone()),
        };
        if !self.is_recorded(written, now) {
            return Turn::Acted;
        }
        // An earlier one of which nothing is known is not ended by this one.
        let ends = before.is_none().then_some(change);
        match self.ec2.assign(eni, amount).await {
            Ok(addresses) => {
                tracing::info!(%eni, ?amount, "addresses came");
                if let Some(node) = &mut self.node {
                    node.came(eni, &addresses, now);
                }
                if let Some(subnet) = self.subnet_of(eni) {
                    self.worked(&Subject::Subnet(subnet));
                }
                self.changed(&subject, now);
            }
            Err(error) if self.was_filled_perhaps(eni, amount, &error, now) => return Turn::Acted,
            Err(_) => {}
        }
        match ends {
            Some(change) => self.end(&change, now),
            None => Turn::Acted,
        }
    }

    /// Whether a call that failed may have happened all the same.
    fn was_filled_perhaps(&mut self, eni: &EniId, amount: Amount, error: &CallError, now: Instant) -> bool {
        let subject = Subject::Interface(eni.clone());
        let meaning = error.meaning();
        match meaning {
            Meaning::Unknown | Meaning::NotFound => {
                self.failed(subject, error, now);
                self.look_due = now;
            }
            Meaning::SubnetExhausted => self.ask_for_less(eni, amount, error, now),
            Meaning::InterfaceFull => {
                tracing::warn!(%eni, "an interface has more addresses than is known");
                self.full.insert(eni.clone(), now + SETTLES);
                self.look_due = now;
            }
            _ => self.failed(subject, error, now),
        }
        meaning == Meaning::Unknown
    }

    /// EC2 gives all or nothing: a subnet that has not so many may have some.
    fn ask_for_less(&mut self, eni: &EniId, amount: Amount, error: &CallError, now: Instant) {
        let count = count(amount);
        if count > 1 {
            self.portions.insert(eni.clone(), count / 2);
            return;
        }
        self.portions.remove(eni);
        if let Some(subnet) = self.subnet_of(eni) {
            let subject = Subject::Subnet(subnet);
            self.problems.note(&subject, of_call(error));
            self.pace.hold(subject, now, EXHAUSTED);
        }
    }

    async fn add(&mut self, amount: Amount, now: Instant) -> Turn {
        let is_adding = self
            .undertakings
            .open_ones()
            .iter()
            .any(|open| matches!(open, Undertaking::Add { attachment: None, .. }));
        if is_adding || !self.pace.allows(&Subject::NewInterface, now) {
            return Turn::Idle;
        }
        let is_old = self.subnets_asked.is_none_or(|asked| now >= asked + SUBNETS_AGE);
        if is_old && self.settings.discovers_subnets && self.asks_for_subnets(now).await {
            self.subnets_asked = Some(now);
        }
        let Some(instance) = self.instance.as_ref().map(|instance| instance.id.clone()) else {
            return Turn::Idle;
        };
        let subnet = match self.subnet_for_new(now) {
            Ok(subnet) => subnet,
            Err(problem) => {
                self.problems.note(&Subject::NewInterface, problem);
                self.pace.failed(Subject::NewInterface, now);
                return Turn::Idle;
            }
        };
        let mut token = [0; 16];
        rand::rng().fill_bytes(&mut token);
        let new = NewEni {
            groups: self.groups().unwrap_or_default(),
            description: format!("aws-K8S-{instance}"),
            tags: self.tags(&instance.0),
            amount: self
                .portions_of(&subnet)
                .map_or(amount, |most| at_most(amount, most)),
            client_token: token.iter().map(|byte| format!("{byte:02x}")).collect(),
            subnet,
        };
        let undertaking = Undertaking::Add {
            new,
            eni: None,
            attachment: None,
            since: self.wall.now(),
        };
        let begun = self.undertakings.begin(undertaking);
        self.is_recorded(begun, now);
        Turn::Acted
    }

    fn tags(&self, instance: &str) -> Tags {
        let created = jiff::Timestamp::try_from(self.wall.now())
            .map_or_else(|_| String::new(), |now| format!("{now:.0}"));
        let mut tags = self.settings.tags.clone();
        tags.insert(tag::INSTANCE.to_owned(), instance.to_owned());
        tags.insert(tag::CREATED.to_owned(), created);
        if let Some(cluster) = &self.settings.cluster {
            tags.insert(tag::CLUSTER.to_owned(), cluster.clone());
        }
        tags
    }

    /// The security groups of interfaces that are made here; `None` as long as that cannot be said.
    pub(super) fn groups(&self) -> Option<Vec<SecurityGroupId>> {
        let primary = || self.node.as_ref()?.primary().map(|held| held.eni.groups.clone());
        if self.settings.custom_networking.is_none() {
            return primary();
        }
        let own = self.facts.borrow().eni_config.as_ref()?.groups.clone();
        if own.is_empty() { primary() } else { Some(own) }
    }

    /// The subnet of the next interface: the `ENIConfig`'s, or the one with the most free addresses of those that may
    /// be used.
    fn subnet_for_new(&self, now: Instant) -> Result<SubnetId, Problem> {
        let facts = self.facts.borrow();
        if self.settings.custom_networking.is_some() {
            return facts
                .eni_config
                .as_ref()
                .map(|config| config.subnet.clone())
                .ok_or_else(|| Problem {
                    what: "custom networking is on, and the node names no ENIConfig that there is".to_owned(),
                    advice:
                        "label or annotate the node with k8s.amazonaws.com/eniConfig, and make that ENIConfig"
                            .to_owned(),
                });
        }
        let own = self.instance.as_ref().map(|instance| &instance.subnet);
        let usable = self.subnets.values().filter(|subnet| {
            let is_own = Some(&subnet.id) == own;
            let role = subnet.tags.get(tag::SUBNET_ROLE).map(String::as_str);
            let is_for_pods = match role {
                Some("0") => false,
                Some("1") => self.is_for_this_cluster(&subnet.tags),
                _ => is_own,
            };
            let may = if self.settings.discovers_subnets {
                is_for_pods
            } else {
                is_own
            };
            may && self.pace.allows(&Subject::Subnet(subnet.id.clone()), now)
        });
        let best = usable.max_by_key(|subnet| (subnet.free_addresses, Some(&subnet.id) == own));
        best.map(|subnet| subnet.id.clone()).ok_or_else(|| Problem {
            what: "no subnet of this node's zone has addresses for another interface".to_owned(),
            advice: "free addresses, or tag another subnet of the zone with kubernetes.io/role/cni=1"
                .to_owned(),
        })
    }

    fn is_for_this_cluster(&self, tags: &Tags) -> bool {
        let mut clusters = tags
            .keys()
            .filter_map(|key| key.strip_prefix(tag::SUBNET_CLUSTER))
            .peekable();
        clusters.peek().is_none() || clusters.any(|cluster| Some(cluster) == self.settings.cluster.as_deref())
    }

    async fn create(&mut self, before: Undertaking, new: NewEni, now: Instant) -> Turn {
        match self.ec2.create(&new).await {
            Ok(made) => {
                tracing::info!(eni = %made.id, subnet = %made.subnet, "an interface is made");
                let id = made.id.clone();
                self.worked(&Subject::Subnet(made.subnet.clone()));
                self.made.insert(id.clone(), made);
                self.advance(&before, |eni, _| *eni = Some(id), now)
            }
            Err(error) => match error.meaning() {
                // The token makes it one interface, whatever became of this call.
                Meaning::Throttled | Meaning::Unknown => {
                    self.failed(Subject::NewInterface, &error, now);
                    Turn::Acted
                }
                Meaning::SubnetExhausted => {
                    let count = count(new.amount);
                    let subject = Subject::Subnet(new.subnet.clone());
                    if count > 1 {
                        self.subnet_portions.insert(new.subnet.clone(), count / 2);
                    } else {
                        self.subnet_portions.remove(&new.subnet);
                        self.problems.note(&subject, of_call(&error));
                        self.pace.hold(subject, now, EXHAUSTED);
                    }
                    self.end(&before, now)
                }
                meaning => {
                    self.failed(Subject::NewInterface, &error, now);
                    if meaning == Meaning::NoSuchGroup {
                        // The primary interface may have others by now.
                        self.look_due = now;
                    }
                    self.end(&before, now)
                }
            },
        }
    }

    async fn attach(&mut self, before: Undertaking, eni: EniId, now: Instant) -> Turn {
        let Some(instance) = self.instance.clone() else {
            return Turn::Idle;
        };
        let taken: Vec<u32> = self
            .held()
            .map(super::Held::device_index)
            .chain(instance.device_indexes.clone())
            .collect();
        let index = (1..).find(|index| !taken.contains(index)).unwrap_or(1);
        match self.ec2.attach(&eni, &instance.id, index).await {
            Ok(attachment) => self.is_attached(&before, &eni, attachment, index, now),
            Err(error) => {
                self.failed(Subject::NewInterface, &error, now);
                match error.meaning() {
                    Meaning::Throttled => Turn::Acted,
                    Meaning::IndexTaken => {
                        // Somebody else attached one.
                        if let Ok(instance) = self.ec2.instance(&instance.id).await {
                            self.instance = Some(instance);
                        }
                        self.look_due = now;
                        Turn::Acted
                    }
                    // It may not be told of everywhere yet; or it was attached, or deleted by somebody.
                    Meaning::Unknown | Meaning::NotFound | Meaning::InUse | Meaning::Other => {
                        self.find_attachment(&before, eni, now).await
                    }
                    Meaning::InterfaceLimit => {
                        // There are more than is known, or fewer allowed; and it may be this one that is too many.
                        self.interface_limit = Some((self.taken_places(), now + LIMITED));
                        self.look_due = now;
                        self.give_up(&before, eni, now)
                    }
                    _ => self.give_up(&before, eni, now),
                }
            }
        }
    }

    /// Whether an attachment that was asked for is there.
    async fn find_attachment(&mut self, before: &Undertaking, eni: EniId, now: Instant) -> Turn {
        let Undertaking::Add { since, .. } = before else {
            return Turn::Idle;
        };
        let instance = self.instance.as_ref().map(|instance| instance.id.clone());
        match self.ec2.interfaces(&Which::Named(eni.clone())).await {
            Ok(found) => match found.into_iter().next().map(|eni| eni.attachment) {
                Some(Some(attached)) if Some(&attached.instance) == instance.as_ref() => {
                    self.is_attached(before, &eni, attached.id, attached.device_index, now)
                }
                Some(Some(_)) => self.end(before, now),
                Some(None) => Turn::Acted,
                None => self.forget_when_old(before, *since, now),
            },
            Err(error) if error.meaning() == Meaning::NotFound => self.forget_when_old(before, *since, now),
            Err(_) => Turn::Acted,
        }
    }

    /// An interface that EC2 does not know may be so young that it will.
    fn forget_when_old(&mut self, before: &Undertaking, since: std::time::SystemTime, now: Instant) -> Turn {
        if self.age(since) < SETTLES {
            return Turn::Acted;
        }
        self.end(before, now)
    }

    fn is_attached(
        &mut self,
        before: &Undertaking,
        eni: &EniId,
        attachment: AttachmentId,
        index: u32,
        now: Instant,
    ) -> Turn {
        tracing::info!(%eni, index, "an interface is attached");
        if let (Some(made), Some(instance), Some(node)) =
            (self.made.remove(eni), &self.instance, &mut self.node)
        {
            let to = Attached {
                id: attachment.clone(),
                instance: instance.id.clone(),
                device_index: index,
                card_index: 0,
                delete_on_termination: false,
            };
            node.attached(made, to, now);
        }
        self.changed(&Subject::NewInterface, now);
        self.advance(before, |_, attached| *attached = Some(attachment), now)
    }

    /// It goes with its instance; then it is done.
    async fn finish(
        &mut self,
        before: Undertaking,
        eni: EniId,
        attachment: AttachmentId,
        now: Instant,
    ) -> Turn {
        let Some(held) = self.node.as_ref().and_then(|node| node.get(&eni)) else {
            return self.find_attached(&before, &eni, now).await;
        };
        // Somebody may have attached it anew.
        let attachment = held
            .eni
            .attachment
            .as_ref()
            .map_or(attachment, |now| now.id.clone());
        let subject = Subject::Termination(eni.clone());
        match self.ec2.delete_on_termination(&eni, &attachment).await {
            Ok(()) => {
                self.worked(&subject);
                self.end(&before, now)
            }
            // It serves as it is meanwhile.
            Err(error) => {
                self.failed(subject, &error, now);
                Turn::Acted
            }
        }
    }

    /// What an interface has that an earlier program attached, or this one without hearing of it.
    async fn find_attached(&mut self, before: &Undertaking, eni: &EniId, now: Instant) -> Turn {
        let Undertaking::Add { since, .. } = before else {
            return Turn::Idle;
        };
        let found = match self.ec2.interfaces(&Which::Named(eni.clone())).await {
            Ok(found) => found.into_iter().next(),
            Err(error) if error.meaning() == Meaning::NotFound => None,
            Err(error) => {
                self.failed(Subject::Termination(eni.clone()), &error, now);
                return Turn::Acted;
            }
        };
        let own = self.instance.as_ref().map(|instance| &instance.id);
        let is_here = |eni: &Eni| {
            eni.attachment
                .as_ref()
                .is_some_and(|attached| Some(&attached.instance) == own)
        };
        match (found.filter(is_here), &mut self.node) {
            (Some(found), Some(node)) => {
                if let Some(to) = found.attachment.clone() {
                    node.attached(found, to, now);
                }
                Turn::Acted
            }
            _ => {
                self.pace.failed(Subject::Termination(eni.clone()), now);
                self.forget_when_old(before, *since, now)
            }
        }
    }

    /// An interface that cannot be attached is deleted.
    fn give_up(&mut self, before: &Undertaking, eni: EniId, now: Instant) -> Turn {
        // The next one would not be either.
        self.pace.hold(Subject::NewInterface, now, EXHAUSTED);
        let removal = Undertaking::Remove {
            eni,
            attachment: None,
            was_here: false,
        };
        let written = self.undertakings.advance(before, removal);
        self.is_recorded(written, now);
        Turn::Acted
    }

    async fn give_back(&mut self, eni: &EniId, blocks: &[IpNetwork], now: Instant) -> Turn {
        let subject = Subject::GivingBack(eni.clone());
        if !self.pace.allows(&subject, now) {
            return Turn::Idle;
        }
        let in_use = self.home.withdraw(blocks);
        let blocks: Vec<IpNetwork> = blocks
            .iter()
            .filter(|block| !in_use.contains(block))
            .copied()
            .collect();
        if blocks.is_empty() {
            return Turn::Idle;
        }
        let change = Undertaking::Change {
            eni: eni.clone(),
            gives_back: blocks.clone(),
            since: self.wall.now(),
        };
        let begun = self.undertakings.begin(change.clone());
        if !self.is_recorded(begun, now) {
            return Turn::Acted;
        }
        if let Some(node) = &mut self.node {
            node.went(eni, &blocks, now);
        }
        match self.ec2.unassign(eni, &blocks.iter().copied().collect()).await {
            Ok(()) => {
                tracing::info!(%eni, blocks = blocks.len(), "addresses were given back");
                self.changed(&subject, now);
                let gone = Undertaking::GaveBack {
                    eni: eni.clone(),
                    blocks,
                    since: self.wall.now(),
                };
                let written = self.undertakings.advance(&change, gone);
                self.is_recorded(written, now);
                Turn::Acted
            }
            Err(error) => {
                self.failed(subject, &error, now);
                match error.meaning() {
                    // They may have gone; or EC2 says that not all of them are there. A look tells when it can know.
                    Meaning::Unknown | Meaning::NotFound | Meaning::Other => {
                        self.look_due = self.look_due.min(now + SETTLES);
                        Turn::Acted
                    }
                    _ => {
                        if let Some(node) = &mut self.node {
                            node.stayed(eni, &blocks);
                        }
                        self.end(&change, now)
                    }
                }
            }
        }
    }

    fn begin_removal(&mut self, eni: &EniId, now: Instant) -> Turn {
        let Some(held) = self.node.as_ref().and_then(|node| node.get(eni)).cloned() else {
            return Turn::Idle;
        };
        let blocks: Vec<IpNetwork> = held.blocks().into_iter().collect();
        if !self.home.withdraw(&blocks).is_empty() {
            // A pod came meanwhile; what was withdrawn is given again when the interfaces are published.
            return Turn::Idle;
        }
        let removal = Undertaking::Remove {
            eni: eni.clone(),
            attachment: held.eni.attachment.map(|attached| attached.id),
            was_here: true,
        };
        let begun = self.undertakings.begin(removal);
        if !self.is_recorded(begun, now) {
            return Turn::Acted;
        }
        if let Some(node) = &mut self.node {
            node.detached(eni, now);
        }
        self.last_change = Some(now);
        Turn::Acted
    }

    async fn remove(
        &mut self,
        before: Undertaking,
        eni: EniId,
        attachment: Option<AttachmentId>,
        was_here: bool,
        now: Instant,
    ) -> Turn {
        let subject = Subject::Removal(eni.clone());
        if let Some(attachment) = attachment {
            match self.ec2.detach(&attachment).await {
                Ok(()) => {}
                Err(error) if error.meaning() == Meaning::NotFound => {}
                Err(error) => {
                    self.failed(subject, &error, now);
                    return Turn::Acted;
                }
            }
            let detached = Undertaking::Remove {
                eni,
                attachment: None,
                was_here,
            };
            // It takes EC2 seconds to detach one.
            self.pace.hold(subject, now, Duration::from_secs(2));
            let written = self.undertakings.advance(&before, detached);
            self.is_recorded(written, now);
            return Turn::Acted;
        }
        match self.ec2.delete(&eni).await {
            Ok(()) => tracing::info!(%eni, "an interface is deleted"),
            Err(error) if error.meaning() == Meaning::NotFound => {}
            Err(error) if error.meaning() == Meaning::InUse => {
                self.pace.failed(subject, now);
                return self.check_still_leaving(before, eni, was_here, now).await;
            }
            Err(error) if was_here || matches!(error.meaning(), Meaning::Throttled | Meaning::Unknown) => {
                self.failed(subject, &error, now);
                return Turn::Acted;
            }
            // It is found again with the next search for leaks.
            Err(error) => {
                self.problems.note(&Subject::Leaks, of_call(&error));
                return self.end(&before, now);
            }
        }
        self.worked(&subject);
        if !was_here {
            return self.end(&before, now);
        }
        if let Some(node) = &mut self.node {
            node.detached(&eni, now);
        }
        let removed = Undertaking::Removed {
            eni,
            since: self.wall.now(),
        };
        let written = self.undertakings.advance(&before, removed);
        self.is_recorded(written, now);
        Turn::Acted
    }

    /// An interface that is in use may be about to be detached, or be somebody's again.
    async fn check_still_leaving(
        &mut self,
        before: Undertaking,
        eni: EniId,
        was_here: bool,
        now: Instant,
    ) -> Turn {
        let own = self.instance.as_ref().map(|instance| instance.id.clone());
        let found = self.ec2.interfaces(&Which::Named(eni.clone())).await;
        let found = found.ok().and_then(|found| found.into_iter().next());
        let Some(found) = found else {
            return Turn::Acted;
        };
        let blocks: Vec<IpNetwork> = node::blocks_of(&found).into_iter().collect();
        if !was_here && !self.home.withdraw(&blocks).is_empty() {
            // That it was nobody's was an old word: pods of this node have its addresses.
            self.look_due = now;
            self.looks_old_until = Some(now + SETTLES);
            self.worked(&Subject::Removal(eni));
            return self.end(&before, now);
        }
        match found.attachment {
            None => Turn::Acted,
            // The call to detach was lost, or an attachment that was given up had happened.
            Some(attached) if Some(&attached.instance) == own.as_ref() && attached.device_index != 0 => {
                let attached = Undertaking::Remove {
                    eni,
                    attachment: Some(attached.id),
                    was_here: true,
                };
                let written = self.undertakings.advance(&before, attached);
                self.is_recorded(written, now);
                Turn::Acted
            }
            Some(_) => {
                self.look_due = now;
                self.looks_old_until = Some(now + SETTLES);
                self.worked(&Subject::Removal(eni));
                self.end(&before, now)
            }
        }
    }

    fn advance(
        &mut self,
        before: &Undertaking,
        how: impl FnOnce(&mut Option<EniId>, &mut Option<AttachmentId>),
        now: Instant,
    ) -> Turn {
        let mut after = before.clone();
        if let Undertaking::Add {
            eni,
            attachment,
            since,
            ..
        } = &mut after
        {
            how(eni, attachment);
            // EC2 may not know for a while what has just been made.
            *since = self.wall.now();
        }
        let written = self.undertakings.advance(before, after);
        self.is_recorded(written, now);
        Turn::Acted
    }

    /// It happened, or it is known that it did not.
    pub(super) fn end(&mut self, undertaking: &Undertaking, now: Instant) -> Turn {
        let written = self.undertakings.end(undertaking);
        self.is_recorded(written, now);
        Turn::Acted
    }

    fn changed(&mut self, subject: &Subject, now: Instant) {
        self.worked(subject);
        self.last_change = Some(now);
    }

    fn subnet_of(&self, eni: &EniId) -> Option<SubnetId> {
        self.node.as_ref()?.get(eni).map(|held| held.eni.subnet.clone())
    }

    fn portions_of(&self, subnet: &SubnetId) -> Option<u32> {
        self.subnet_portions.get(subnet).copied()
    }
}

/// How many units.
const fn count(amount: Amount) -> u32 {
    match amount {
        Amount::Addresses(count) | Amount::Prefixes(count) | Amount::PrefixesV6(count) => count,
    }
}

fn at_most(amount: Amount, most: u32) -> Amount {
    match amount {
        Amount::Addresses(count) => Amount::Addresses(count.min(most)),
        Amount::Prefixes(count) => Amount::Prefixes(count.min(most)),
        Amount::PrefixesV6(count) => Amount::PrefixesV6(count.min(most)),
    }
}
