//! An interface that is made and attached, one call after the other.

use std::time::{Duration, SystemTime};

use rand::RngCore as _;
use tokio::time::Instant;

use super::node::SETTLES;
use super::problem::{Kind, Problem, Subject, of_call, without_eni_config};
use super::steps::{EXHAUSTED, at_most, count};
use super::{Held, Ipam, Turn, tag};
use crate::ec2::{
    Amount, Attached, AttachmentId, Ec2, Eni, EniId, Meaning, Metadata, NewEni, SubnetId, Tags, Which,
};
use crate::home::Home;
use crate::undertaking::Undertaking;

/// How long it is believed that the instance can have no more interfaces than it has.
const LIMITED: Duration = Duration::from_secs(600);

/// How often subnets are asked for again when an interface is made.
const SUBNETS_AGE: Duration = Duration::from_secs(600);

impl<E: Ec2, M: Metadata, H: Home> Ipam<E, M, H> {
    pub(super) async fn add(&mut self, amount: Amount, now: Instant) -> Turn {
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
            tags: self.tags_of_new(&instance.0),
            amount: self
                .subnet_portions
                .get(&subnet)
                .map_or(amount, |most| at_most(amount, *most)),
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

    /// The tags of an interface that is made now.
    fn tags_of_new(&self, instance: &str) -> Tags {
        let created = jiff::Timestamp::try_from(self.wall.now())
            .map_or_else(|_| String::new(), |now| format!("{now:.0}"));
        let mut tags = self.tags();
        tags.insert(tag::INSTANCE.to_owned(), instance.to_owned());
        tags.insert(tag::CREATED.to_owned(), created);
        tags
    }

    /// The subnet of the next interface: the `ENIConfig`'s, or the one with the most free addresses of those that may
    /// be used.
    fn subnet_for_new(&self, now: Instant) -> Result<SubnetId, Problem> {
        let facts = self.facts.borrow();
        if self.settings.custom_networking.is_some() {
            let config = facts.eni_config.as_ref().map_err(without_eni_config)?;
            let subject = Subject::Subnet(config.subnet.clone());
            let may = self.pace.allows(&subject, now);
            return may.then(|| config.subnet.clone()).ok_or_else(|| Problem {
                kind: Kind::Subnet,
                what: format!(
                    "subnet {} of the ENIConfig {} has no addresses for another interface",
                    config.subnet, config.name
                ),
                advice: "free addresses of it, or name another subnet of the node's zone".to_owned(),
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
            kind: Kind::Subnet,
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

    pub(super) async fn create(&mut self, before: Undertaking, new: NewEni, now: Instant) -> Turn {
        match self.ec2.create(&new).await {
            Ok(made) => {
                tracing::info!(eni = %made.id, subnet = %made.subnet, "an interface is made");
                let id = made.id.clone();
                self.perhaps_made = None;
                self.worked(&Subject::Subnet(made.subnet.clone()));
                self.made.insert(id.clone(), made);
                self.advance(&before, |eni, _| *eni = Some(id), now)
            }
            Err(error) => match error.meaning() {
                // The token makes it one interface, whatever became of this call.
                meaning @ (Meaning::Throttled | Meaning::Unknown) => {
                    if meaning == Meaning::Unknown {
                        self.perhaps_made = Some(new.client_token);
                    }
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
                    self.end_unmade(&before, &new, now)
                }
                meaning => {
                    self.failed(Subject::NewInterface, &error, now);
                    if meaning == Meaning::NoSuchGroup {
                        // The primary interface may have others by now.
                        self.look_due = now;
                    }
                    self.end_unmade(&before, &new, now)
                }
            },
        }
    }

    /// A refusal ends it. Where an earlier call may have made the interface all the same, it is looked for as soon as EC2
    /// tells of it.
    fn end_unmade(&mut self, before: &Undertaking, new: &NewEni, now: Instant) -> Turn {
        if self
            .perhaps_made
            .take_if(|token| *token == new.client_token)
            .is_some()
        {
            self.leak_suspected = Some(now);
            self.sweep_due = self.sweep_due.min(now + SETTLES);
        }
        self.end(before, now)
    }

    pub(super) async fn attach(&mut self, before: Undertaking, eni: EniId, now: Instant) -> Turn {
        let Some(instance) = self.instance.clone() else {
            return Turn::Idle;
        };
        let taken: Vec<u32> = self
            .held()
            .map(Held::device_index)
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
                    meaning @ (Meaning::Unknown | Meaning::NotFound | Meaning::InUse | Meaning::Other) => {
                        self.find_attachment(&before, eni, meaning == Meaning::Other, now)
                            .await
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

    /// Whether an attachment that was asked for is there. One that is refused for good comes no more, once EC2 must
    /// know the interface everywhere.
    async fn find_attachment(
        &mut self,
        before: &Undertaking,
        eni: EniId,
        is_refused: bool,
        now: Instant,
    ) -> Turn {
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
                Some(None) if is_refused && self.age(*since) >= SETTLES => self.give_up(before, eni, now),
                Some(None) => Turn::Acted,
                None => self.forget_when_old(before, *since, now),
            },
            Err(error) if error.meaning() == Meaning::NotFound => self.forget_when_old(before, *since, now),
            Err(_) => Turn::Acted,
        }
    }

    /// An interface that EC2 does not know may be so young that it will.
    fn forget_when_old(&mut self, before: &Undertaking, since: SystemTime, now: Instant) -> Turn {
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
        // Its subnet may be of a block that is new.
        self.networks.may_have_changed(now);
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
    pub(super) async fn finish(
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
}
