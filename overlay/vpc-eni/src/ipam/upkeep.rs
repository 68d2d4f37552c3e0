//! What interfaces made here have besides addresses: security groups and tags, as they shall be now, whatever they were
//! when an interface was made.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::problem::Subject;
use super::{Held, Ipam, LOOKS_EVERY, Turn, tag};
use crate::ec2::{Ec2, EniId, Meaning, Metadata, SecurityGroupId, Tags};
use crate::home::Home;

impl<E: Ec2, M: Metadata, H: Home> Ipam<E, M, H> {
    /// The security groups of interfaces that are made here; `None` as long as that cannot be said.
    pub(super) fn groups(&self) -> Option<Vec<SecurityGroupId>> {
        let primary = || self.node.as_ref()?.primary().map(|held| held.eni.groups.clone());
        if self.settings.custom_networking.is_none() {
            return primary();
        }
        let own = self.facts.borrow().eni_config.as_ref().ok()?.groups.clone();
        if own.is_empty() { primary() } else { Some(own) }
    }

    /// The tags of interfaces that are made here, but for who made them and when.
    pub(super) fn tags(&self) -> Tags {
        let mut tags = self.settings.tags.clone();
        if let Some(cluster) = &self.settings.cluster {
            tags.insert(tag::CLUSTER.to_owned(), cluster.clone());
        }
        tags
    }

    fn made_here(&self) -> impl Iterator<Item = &Held> {
        self.held()
            .filter(|held| self.manages(held) && self.is_ours(held))
    }

    /// Interfaces made here whose groups are not those of the primary one or of the `ENIConfig`.
    pub(super) fn ill_grouped(&self) -> Vec<EniId> {
        let Some(wanted) = self.groups().filter(|wanted| !wanted.is_empty()) else {
            return Vec::new();
        };
        let wanted: BTreeSet<_> = wanted.iter().collect();
        self.made_here()
            .filter(|held| held.eni.groups.iter().collect::<BTreeSet<_>>() != wanted)
            .map(|held| held.eni.id.clone())
            .collect()
    }

    /// Gives one of them its groups.
    pub(super) async fn regroup(&mut self, now: Instant) -> Turn {
        let due = |eni: &EniId| self.pace.allows(&Subject::Groups(eni.clone()), now);
        let (Some(eni), Some(wanted)) = (self.ill_grouped().into_iter().find(due), self.groups()) else {
            return Turn::Idle;
        };
        let subject = Subject::Groups(eni.clone());
        match self.ec2.set_groups(&eni, &wanted).await {
            Ok(()) => {
                self.worked(&subject);
                if let Some(node) = &mut self.node {
                    node.regrouped(&eni, wanted);
                }
            }
            Err(error) => {
                if error.meaning() == Meaning::NoSuchGroup {
                    // The primary interface may have others by now.
                    self.look_due = now;
                }
                self.failed(subject, &error, now);
            }
        }
        Turn::Acted
    }

    /// Interfaces made here without some of the tags that they would be made with now, each with those. What others
    /// wrote stays.
    pub(super) fn ill_tagged(&self) -> Vec<(EniId, Tags)> {
        let wanted = self.tags();
        let missing = |held: &Held| {
            let has = &held.eni.tags;
            let missing = wanted.iter().filter(|(key, value)| has.get(*key) != Some(*value));
            let missing = missing.map(|(key, value)| (key.clone(), value.clone()));
            (held.eni.id.clone(), missing.collect())
        };
        self.made_here()
            .map(missing)
            .filter(|(_, missing): &(EniId, Tags)| !missing.is_empty())
            .collect()
    }

    /// Gives one of them its tags: they are for people and their bills, and for who looks for leaks.
    pub(super) async fn retag(&mut self, now: Instant) -> Turn {
        let due = |(eni, _): &(EniId, Tags)| self.pace.allows(&Subject::Tags(eni.clone()), now);
        let Some((eni, missing)) = self.ill_tagged().into_iter().find(due) else {
            return Turn::Idle;
        };
        let subject = Subject::Tags(eni.clone());
        match self.ec2.tag(&eni, &missing).await {
            Ok(()) => {
                self.worked(&subject);
                if let Some(node) = &mut self.node {
                    node.tagged(&eni, missing);
                }
            }
            Err(error) => {
                let meaning = error.meaning();
                self.failed(subject.clone(), &error, now);
                if !matches!(meaning, Meaning::Throttled | Meaning::Unknown) {
                    // No pod waits for it.
                    self.pace.hold(subject, now, LOOKS_EVERY);
                }
            }
        }
        Turn::Acted
    }
}
