//! What changes something at EC2: each written down first, and continued after a restart from where it was.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::time::Instant;

use super::node::SETTLES;
use super::problem::{Kind, Problem, Subject, of_call};
use super::{Ipam, Turn};
use crate::ec2::{Addresses, Amount, CallError, Ec2, EniId, Limits, Meaning, Metadata, SubnetId};
use crate::home::Home;
use crate::plan::{Step, next_step};
use crate::settings::PodFamily;
use crate::undertaking::Undertaking;

/// How long a subnet is left alone that has no address, the peer's.
pub(super) const EXHAUSTED: Duration = Duration::from_secs(120);

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
            self.problems.ends(&Subject::Room);
            self.end_problems_of_growth();
            return Turn::Idle;
        }
        let step = next_step(&view);
        if step == Step::Full {
            self.note_full(limits, now);
        } else {
            self.problems.ends(&Subject::Room);
        }
        self.end_problems_of_full_ones(limits, now);
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
    fn has_room(&self, held: &super::Held, limits: Limits, now: Instant) -> bool {
        let used = (held.eni.secondary.len() + held.eni.prefixes.len()) as u32;
        let may = self.manages(held) && self.serves(held) && !self.lacks_device(held, now);
        may && used + 1 < limits.addresses_per_interface
    }

    /// Nothing more is asked for those that are full.
    fn end_problems_of_full_ones(&mut self, limits: Limits, now: Instant) {
        let full: Vec<EniId> = self
            .held()
            .filter(|held| !self.has_room(held, limits, now))
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
        let is_held_up = self.held().any(|held| self.has_room(held, limits, now))
            || is_limited
            || open.any(Undertaking::is_underway);
        let census = self.home.census();
        let cooling: u32 = census.blocks.values().map(|used| used.cooling).sum();
        // There is room for those who wait as soon as addresses may be given again.
        if census.waiting <= cooling || is_held_up {
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
        let problem = Problem {
            kind: Kind::Full,
            what,
            advice,
        };
        self.problems.note(&Subject::Room, problem);
    }

    /// One `/80` of the primary interface is more than any node needs.
    async fn fill_with_v6(&mut self, now: Instant) -> Turn {
        let Some(primary) = self.node.as_ref().and_then(super::Node::primary) else {
            return Turn::Idle;
        };
        let id = primary.eni.id.clone();
        let may = self.may_fill(primary, now) && !self.is_unsure(&id);
        if !primary.eni.prefixes_v6.is_empty() {
            self.end_problems_of_growth();
            return Turn::Idle;
        }
        if !may {
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
                self.came_again(eni, &addresses, now);
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

    /// EC2 may give again what was given back a moment ago: no record may say any more that it goes.
    fn came_again(&mut self, eni: &EniId, addresses: &Addresses, now: Instant) {
        let came: BTreeSet<IpNetwork> = addresses.blocks().collect();
        for open in self.undertakings.open_ones().to_vec() {
            let mut after = open.clone();
            let (Undertaking::GaveBack { eni: of, blocks, .. }
            | Undertaking::Change {
                eni: of,
                gives_back: blocks,
                ..
            }) = &mut after
            else {
                continue;
            };
            if of == eni && blocks.iter().any(|block| came.contains(block)) {
                blocks.retain(|block| !came.contains(block));
                let written = self.undertakings.advance(&open, after);
                self.is_recorded(written, now);
            }
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
        let answer = self.ec2.unassign(eni, &blocks.iter().copied().collect()).await;
        // It may have happened as late as now.
        let now = Instant::now();
        if let Some(node) = &mut self.node {
            node.went(eni, &blocks, now);
        }
        match answer {
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
                        let later = Undertaking::Change {
                            eni: eni.clone(),
                            gives_back: blocks,
                            since: self.wall.now(),
                        };
                        let written = self.undertakings.advance(&change, later);
                        self.is_recorded(written, now);
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

    /// It happened, or it is known that it did not.
    pub(super) fn end(&mut self, undertaking: &Undertaking, now: Instant) -> Turn {
        let written = self.undertakings.end(undertaking);
        self.is_recorded(written, now);
        Turn::Acted
    }

    pub(super) fn changed(&mut self, subject: &Subject, now: Instant) {
        self.worked(subject);
        self.last_change = Some(now);
    }

    fn subnet_of(&self, eni: &EniId) -> Option<SubnetId> {
        self.node.as_ref()?.get(eni).map(|held| held.eni.subnet.clone())
    }
}

/// How many units.
pub(super) const fn count(amount: Amount) -> u32 {
    match amount {
        Amount::Addresses(count) | Amount::Prefixes(count) | Amount::PrefixesV6(count) => count,
    }
}

pub(super) fn at_most(amount: Amount, most: u32) -> Amount {
    match amount {
        Amount::Addresses(count) => Amount::Addresses(count.min(most)),
        Amount::Prefixes(count) => Amount::Prefixes(count.min(most)),
        Amount::PrefixesV6(count) => Amount::PrefixesV6(count.min(most)),
    }
}
