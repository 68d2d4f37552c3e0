//! What is asked of EC2 and of the instance without changing anything.

use std::time::Duration;

use tokio::time::Instant;

use super::node::{DOUBT, Node, SETTLES};
use super::problem::{Problem, Subject};
use super::{Ipam, LOOKS_EVERY, SWEEPS_EVERY, Turn, tag};
use crate::ec2::{Ec2, Eni, EniId, Metadata, Subnet, Which};
use crate::home::Home;
use crate::undertaking::Undertaking;

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
                self.identity = Some(identity);
                self.vpc_networks = networks;
                true
            }
            Err(error) => {
                let problem = Problem {
                    what: error.to_string(),
                    advice: "the agent must reach 169.254.169.254 from the node's own network: enable the instance's \
                             metadata service (HttpEndpoint), IMDSv2"
                        .to_owned(),
                };
                self.problems.note(&Subject::Identity, problem);
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
                self.limits.is_some()
            }
            Ok(None) => {
                let problem = Problem {
                    what: format!("EC2 knows no instance type {}", instance.instance_type),
                    advice: "see that the agent asks EC2 of the instance's own region (AWS_REGION, AWS_EC2_ENDPOINT)"
                        .to_owned(),
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
                self.worked(&Subject::Subnets);
                let named = subnets
                    .into_iter()
                    .map(|subnet: Subnet| (subnet.id.clone(), subnet));
                self.subnets = named.collect();
                !self.subnets.is_empty()
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
                return Turn::Idle;
            }
        };
        // What is being removed is not this node's any more, though EC2 may not have come to it.
        let leaving = |eni: &EniId| {
            let open = self.undertakings.open_ones().iter();
            open.into_iter()
                .any(|open| matches!(open, Undertaking::Remove { eni: leaving, .. } if leaving == eni))
        };
        let found: Vec<Eni> = found.into_iter().filter(|eni| !leaving(&eni.id)).collect();
        let knows_subnets = found.iter().all(|eni| self.subnets.contains_key(&eni.subnet));
        let mut node = self.node.take().unwrap_or_else(|| Node::new(self.given_back()));
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
                self.look_due = now + if looked.doubts { DOUBT } else { LOOKS_EVERY };
                self.full.retain(|_, until| *until > now);
                self.interface_limit = None;
                self.end_changes(now);
                if !knows_subnets {
                    self.asks_for_subnets(now).await;
                }
                self.sync_groups(now).await;
                Turn::Acted
            }
            Err(error) => {
                let problem = Problem {
                    what: error.to_string(),
                    advice: "it is looked again; nothing is given up meanwhile".to_owned(),
                };
                self.problems.note(&Subject::Interfaces, problem);
                self.pace.failed(Subject::Interfaces, now);
                Turn::Idle
            }
        }
    }

    /// Blocks that were being given back when the last program ended.
    fn given_back(&self) -> Vec<(EniId, Vec<ipnetwork::IpNetwork>)> {
        let open = self.undertakings.open_ones().iter();
        open.filter_map(|open| match open {
            Undertaking::Change { eni, gives_back, .. } => Some((eni.clone(), gives_back.clone())),
            Undertaking::Add { .. } | Undertaking::Remove { .. } => None,
        })
        .collect()
    }

    /// Changes of which nothing was known end with a look that comes late enough to know; until then another one is due.
    fn end_changes(&mut self, now: Instant) {
        let today = self.wall.now();
        for open in self.undertakings.open_ones().to_vec() {
            let Undertaking::Change { since, .. } = &open else {
                continue;
            };
            // A clock that was set back would make it wait for long: it is then as old as can be.
            let age = today.duration_since(*since).unwrap_or(SETTLES);
            if age < SETTLES {
                self.look_due = self.look_due.min(now + (SETTLES - age));
            } else if let Err(error) = self.undertakings.end(&open) {
                self.cannot_record(&error, now);
            }
        }
    }

    /// The groups of the primary interface, or those of the `ENIConfig`, are those of all that were made here.
    async fn sync_groups(&mut self, now: Instant) {
        let wanted = self.groups();
        let differ = self
            .held()
            .filter(|held| self.is_ours(held) && held.eni.groups != wanted && !wanted.is_empty());
        let differ: Vec<EniId> = differ.map(|held| held.eni.id.clone()).collect();
        for eni in differ {
            let subject = Subject::Interface(eni.clone());
            match self.ec2.set_groups(&eni, &wanted).await {
                Ok(()) => self.worked(&subject),
                Err(error) => self.failed(subject, &error, now),
            }
        }
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
                return Turn::Idle;
            }
        };
        self.worked(&Subject::Leaks);
        self.sweep_due = now + SWEEPS_EVERY;
        for eni in found {
            let is_own = eni.tags.get(tag::INSTANCE) == Some(&instance.id.0);
            let is_leaked = eni.attachment.is_none()
                && eni.tags.contains_key(tag::INSTANCE)
                && !self.is_unsure(&eni.id)
                && (is_own || self.is_orphaned(&eni));
            // Nobody knows yet what an interface is of that is just being made.
            let is_making = self
                .undertakings
                .open_ones()
                .iter()
                .any(|open| open.eni().is_none());
            if !is_leaked || is_making {
                continue;
            }
            tracing::info!(eni = %eni.id, own = is_own, "an interface that nobody has is removed");
            let removal = Undertaking::Remove {
                eni: eni.id,
                attachment: None,
            };
            if let Err(error) = self.undertakings.begin(removal) {
                return self.cannot_record(&error, now);
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
