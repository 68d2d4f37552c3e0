//! What is asked of EC2 and of the instance without changing anything.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::node::{DOUBT, Node, SETTLES};
use super::problem::{Kind, Problem, REGION, Subject, without_metadata};
use super::rounds::Rounds;
use super::{Ipam, LOOKS_EVERY, SWEEPS_EVERY, Turn, abandoned, may_be_managed, tag};
use crate::ec2::{Ec2, Eni, EniId, Metadata, Subnet, SubnetId, Which};
use crate::home::Home;
use crate::undertaking::Undertaking;

/// How many lists of subnets may lack one until it is taken for one that they never have.
const TOLD_BY: u32 = 2;

/// How long an interface that nobody has may belong to a manager that is about to attach it.
const ORPHANED: Duration = Duration::from_secs(5 * 60);

impl<E: Ec2, M: Metadata, H: Home> Ipam<E, M, H> {
    /// Finds out who this node is, as far as that is not known; once.
    pub(super) async fn knows_itself(&mut self, now: Instant) -> bool {
        if self.identity.is_none() && !self.asks_who_it_is(now).await {
            return false;
        }
        if self.instance.is_none() && !self.asks_what_it_is(now).await {
            return false;
        }
        if self.limits.is_none() && !self.asks_what_it_may(now).await {
            return false;
        }
        !self.subnets.is_empty() || self.asks_for_subnets(now).await
    }

    async fn asks_who_it_is(&mut self, now: Instant) -> bool {
        if !self.pace.allows(&Subject::Identity, now) {
            return false;
        }
        let told = match self.metadata.identity().await {
            Ok(identity) => {
                let networks = self.metadata.vpc_networks(identity.primary_mac).await;
                networks.map(|networks| (identity, networks))
            }
            Err(error) => Err(error),
        };
        match told {
            Ok((identity, networks)) => {
                self.worked(&Subject::Identity);
                self.rounds = Some(Rounds::new(&identity.instance, self.wall.at));
                self.identity = Some(identity);
                self.networks.take(networks, now);
                true
            }
            Err(error) => {
                self.problems.note(&Subject::Identity, without_metadata(&error));
                self.pace.failed(Subject::Identity, now);
                false
            }
        }
    }

    async fn asks_what_it_is(&mut self, now: Instant) -> bool {
        let Some(identity) = self
            .identity
            .clone()
            .filter(|_| self.pace.allows(&Subject::Identity, now))
        else {
            return false;
        };
        match self.ec2.instance(&identity.instance).await {
            Ok(instance) => {
                self.worked(&Subject::Identity);
                self.instance = Some(instance);
                true
            }
            Err(error) => {
                self.failed(Subject::Identity, &error, now);
                false
            }
        }
    }

    async fn asks_what_it_may(&mut self, now: Instant) -> bool {
        let allowed = self.pace.allows(&Subject::Limits, now);
        let Some(instance) = self.instance.clone().filter(|_| allowed) else {
            return false;
        };
        match self.ec2.limits(&instance.instance_type).await {
            Ok(Some(limits)) => {
                self.worked(&Subject::Limits);
                self.limits = Some(limits);
                true
            }
            Ok(None) => {
                let problem = Problem {
                    kind: Kind::InstanceType,
                    what: format!("EC2 knows no instance type {}", instance.instance_type),
                    advice: REGION.to_owned(),
                };
                self.problems.note(&Subject::Limits, problem);
                self.pace.failed(Subject::Limits, now);
                false
            }
            Err(error) => {
                self.failed(Subject::Limits, &error, now);
                false
            }
        }
    }

    /// Asks for the subnets of this node's zone.
    pub(super) async fn asks_for_subnets(&mut self, now: Instant) -> bool {
        let allowed = self.pace.allows(&Subject::Subnets, now);
        let Some(instance) = self.instance.clone().filter(|_| allowed) else {
            return false;
        };
        match self.ec2.subnets(&instance.vpc, &instance.zone).await {
            Ok(subnets) => {
                if subnets.is_empty() {
                    let problem = Problem {
                        kind: Kind::Region,
                        what: format!("EC2 knows no subnet of {} in {}", instance.vpc, instance.zone),
                        advice: format!("it is asked again; {REGION}"),
                    };
                    self.problems.note(&Subject::Subnets, problem);
                    self.pace.failed(Subject::Subnets, now);
                    return false;
                }
                self.worked(&Subject::Subnets);
                let named = |subnet: Subnet| (subnet.id.clone(), subnet);
                let before = std::mem::replace(&mut self.subnets, subnets.into_iter().map(named).collect());
                // A list may lack what there is; an interface is in its subnet as long as there is the interface.
                let used: BTreeSet<SubnetId> = self.held().map(|held| held.eni.subnet.clone()).collect();
                for (id, subnet) in before.into_iter().filter(|(id, _)| used.contains(id)) {
                    self.subnets.entry(id).or_insert(subnet);
                }
                for id in used.difference(&self.subnets.keys().cloned().collect()) {
                    *self.untold_subnets.entry(id.clone()).or_default() += 1;
                }
                true
            }
            Err(error) => {
                self.failed(Subject::Subnets, &error, now);
                false
            }
        }
    }

    /// Looks at the interfaces.
    pub(super) async fn look(&mut self, now: Instant) -> Turn {
        let Some(instance) = self.instance.as_ref().map(|instance| instance.id.clone()) else {
            return Turn::Idle;
        };
        let found = match self.ec2.interfaces(&Which::AttachedTo(instance)).await {
            Ok(found) => found,
            Err(error) => {
                self.failed(Subject::Interfaces, &error, now);
                return Turn::Acted;
            }
        };
        // What is being removed is not this node's any more, though EC2 may not have come to it.
        let leaving = |eni: &EniId| {
            let open = self.undertakings.open_ones().iter();
            open.into_iter()
                .any(|open| matches!(open, Undertaking::Remove { eni: leaving, .. } if leaving == eni))
        };
        // Other network cards have their own indexes and tables.
        let is_on_first_card = |eni: &Eni| {
            eni.attachment
                .as_ref()
                .is_none_or(|attached| attached.card_index == 0)
        };
        let found: Vec<Eni> = found
            .into_iter()
            .filter(|eni| !leaving(&eni.id) && is_on_first_card(eni))
            .collect();
        // The first word may be from before the last program's end.
        let settles = *self.looks_old_until.get_or_insert(now + SETTLES);
        let known = self.node.take();
        let mut node = known.unwrap_or_else(|| Node::new(self.given_back(), self.departed(), now));
        let looked = node.take(found, now);
        self.node = (!node.interfaces().is_empty()).then_some(node);
        match looked {
            Ok(looked) => {
                self.worked(&Subject::Interfaces);
                for eni in &looked.lost_interfaces {
                    tracing::warn!(%eni, "an interface is not this node's any more, by EC2's word twice");
                }
                for (eni, block) in &looked.lost_blocks {
                    tracing::warn!(%eni, %block, "addresses are not this node's any more, by EC2's word twice");
                }
                self.look_due = match looked.doubts {
                    true => now + DOUBT,
                    false if now < settles => settles,
                    false => self.next_round(LOOKS_EVERY, now),
                };
                self.end_changes(now);
                self.forget_the_gone(now);
                Turn::Acted
            }
            Err(error) => {
                let problem = Problem {
                    kind: Kind::Refused,
                    what: error.to_string(),
                    advice: "it is looked again; nothing is given up meanwhile".to_owned(),
                };
                self.problems.note(&Subject::Interfaces, problem);
                self.pace.failed(Subject::Interfaces, now);
                Turn::Acted
            }
        }
    }

    /// What was remembered of interfaces that are not this node's any more, and how much a subnet had lately.
    fn forget_the_gone(&mut self, now: Instant) {
        let mut known: BTreeSet<EniId> = self.held().map(|held| held.eni.id.clone()).collect();
        let open = self.undertakings.open_ones().iter();
        let making: BTreeSet<EniId> = open.filter_map(Undertaking::eni).cloned().collect();
        self.made.retain(|eni, _| making.contains(eni));
        known.extend(making);
        let ill_grouped: BTreeSet<EniId> = self.ill_grouped().into_iter().collect();
        let ill_tagged: BTreeSet<EniId> = self.ill_tagged().into_iter().map(|(eni, _)| eni).collect();
        let is_alive = |subject: &Subject| match subject {
            Subject::Groups(eni) => ill_grouped.contains(eni),
            Subject::Tags(eni) => ill_tagged.contains(eni),
            other => other.eni().is_none_or(|eni| known.contains(eni)),
        };
        self.problems.retain(is_alive);
        self.pace.retain(is_alive);
        self.full.retain(|eni, until| *until > now && known.contains(eni));
        self.portions.clear();
        self.subnet_portions.clear();
        self.untold_subnets.clear();
    }

    /// Interfaces that had just gone when the last program ended.
    fn departed(&self) -> Vec<EniId> {
        let open = self.undertakings.open_ones().iter();
        open.filter_map(|open| match open {
            Undertaking::Removed { eni, .. } => Some(eni.clone()),
            _ => None,
        })
        .collect()
    }

    /// Blocks that were being given back when the last program ended, or had just gone.
    fn given_back(&self) -> Vec<(EniId, Vec<ipnetwork::IpNetwork>)> {
        let open = self.undertakings.open_ones().iter();
        open.filter_map(|open| match open {
            Undertaking::Change {
                eni,
                gives_back: blocks,
                ..
            }
            | Undertaking::GaveBack { eni, blocks, .. } => Some((eni.clone(), blocks.clone())),
            Undertaking::Add { .. } | Undertaking::Remove { .. } | Undertaking::Removed { .. } => None,
        })
        .collect()
    }

    /// Changes of which nothing was known end with a look that comes late enough to know; until then another one is due.
    fn end_changes(&mut self, now: Instant) {
        for open in self.undertakings.open_ones().to_vec() {
            let Undertaking::Change { since, .. } = &open else {
                continue;
            };
            let age = self.age(*since);
            if age < SETTLES {
                self.look_due = self.look_due.min(now + (SETTLES - age));
            } else {
                self.end(&open, now);
            }
        }
    }

    /// How old what has gone must be for EC2 to speak of it no more; then its record ends.
    pub(super) fn end_what_is_past(&mut self, now: Instant) {
        if !self.pace.allows(&Subject::File, now) {
            return;
        }
        for open in self.undertakings.open_ones().to_vec() {
            if open.gone_since().is_some_and(|since| self.age(since) >= SETTLES) {
                self.end(&open, now);
            }
        }
    }

    /// How long ago something was. A clock that was set back would make it wait for long: it is then as old as can be.
    pub(super) fn age(&self, since: SystemTime) -> Duration {
        self.wall.now().duration_since(since).unwrap_or(SETTLES)
    }

    /// Asks for a subnet that was made since the subnets were asked for.
    pub(super) async fn learn_subnets(&mut self, now: Instant) -> Turn {
        let knows_all = |manager: &Self| {
            // One of another VPC is never told.
            let is_untold = |id: &SubnetId| {
                manager
                    .untold_subnets
                    .get(id)
                    .is_some_and(|asked| *asked >= TOLD_BY)
            };
            let mut held = manager.held().filter(|held| manager.manages(held));
            held.all(|held| manager.subnets.contains_key(&held.eni.subnet) || is_untold(&held.eni.subnet))
        };
        if knows_all(self) || !self.pace.allows(&Subject::Subnets, now) {
            return Turn::Idle;
        }
        if self.asks_for_subnets(now).await && !knows_all(self) {
            self.pace.hold(Subject::Subnets, now, SETTLES);
        }
        Turn::Acted
    }

    /// Finds interfaces that nobody has and somebody of this cluster made, and has them removed.
    pub(super) async fn sweep(&mut self, now: Instant) -> Turn {
        let Some(instance) = self.instance.clone() else {
            return Turn::Idle;
        };
        let by_cluster = self
            .settings
            .cluster
            .clone()
            .map(|cluster| (tag::CLUSTER, cluster));
        let (key, value) = by_cluster.unwrap_or((tag::INSTANCE, instance.id.0.clone()));
        let which = Which::Available {
            vpc: instance.vpc.clone(),
            tag_key: key.to_owned(),
            tag_value: Some(value),
        };
        let found = match self.ec2.interfaces(&which).await {
            Ok(found) => found,
            Err(error) => {
                self.failed(Subject::Leaks, &error, now);
                return Turn::Acted;
            }
        };
        self.worked(&Subject::Leaks);
        // EC2 may not tell yet of what was made a moment ago.
        let untold = self.leak_suspected.map(|suspected| suspected + SETTLES);
        let untold = untold.filter(|due| *due > now);
        self.sweep_due = untold.unwrap_or_else(|| self.next_round(SWEEPS_EVERY, now));
        self.leaked = abandoned(self.undertakings.open_ones());
        for eni in found {
            let is_own = eni.tags.get(tag::INSTANCE) == Some(&instance.id.0);
            let is_leaked = eni.attachment.is_none()
                && eni.tags.contains_key(tag::INSTANCE)
                && may_be_managed(&eni)
                && !self.is_unsure(&eni.id)
                // That it is nobody's may be an old word.
                && self.node.as_ref().is_none_or(|node| node.get(&eni.id).is_none())
                && (is_own || self.is_orphaned(&eni));
            if !is_leaked {
                continue;
            }
            tracing::info!(eni = %eni.id, own = is_own, "an interface that nobody has is removed");
            self.leaked.insert(eni.id.clone());
            let removal = Undertaking::Remove {
                eni: eni.id,
                attachment: None,
                was_here: false,
            };
            let begun = self.undertakings.begin(removal);
            if !self.is_recorded(begun, now) {
                self.sweep_due = now;
                break;
            }
        }
        Turn::Acted
    }

    /// Whether whoever made an interface had time enough to attach it.
    fn is_orphaned(&self, eni: &Eni) -> bool {
        let created = eni
            .tags
            .get(tag::CREATED)
            .and_then(|text| text.parse::<jiff::Timestamp>().ok());
        let created = created.map(std::time::SystemTime::from);
        created.is_some_and(|created| {
            let age = self.wall.now().duration_since(created);
            age.is_ok_and(|age| age >= ORPHANED)
        })
    }
}
