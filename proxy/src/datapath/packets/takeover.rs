//! A table of another layout gives way to one of this layout: in one transaction, to one that is complete.
//!
//! Until the kernel takes that transaction, the other table is left alone and serves what it served. What is wanted
//! meanwhile is noted in the mirror, so that whatever is tried is everything. A refused transaction costs as much as a
//! cold start: it is made again when [`try_again`](super::super::Datapath::try_again) says so, not at every change.

use model::with_causes;
use netlink::nft::{self, Batch};

use super::{Edits, Mirror, Packets, kept, layout, ports};
use crate::datapath::{Applied, Change};
use crate::error::OtherLayout;
use crate::plan::{NodeContext, ServicePlan};

/// Whose layout the kernel's table has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Takeover {
    /// This one's; or there is no table.
    Done,
    /// Another's, until this one's is complete.
    Due,
    /// Another's; this one's was refused, and why.
    Refused(String),
}

impl Packets {
    /// See [`super::super::Datapath::try_again`].
    pub fn try_again(&mut self) {
        if matches!(self.takeover, Takeover::Refused(_)) {
            self.takeover = Takeover::Due;
        }
    }

    /// [`Packets::apply`], where a table of another layout is there.
    pub(super) fn apply_to_new_table(&mut self, changes: &[Change<'_>]) -> Applied {
        let kept = kept(changes);
        let mut edits = Edits::new();
        for change in changes {
            self.collect(change, &kept, &mut edits);
        }
        for ((name, key), wanted) in &edits {
            self.note(*name, key, wanted.as_ref());
        }
        drop(edits);
        match self.finish_takeover() {
            Ok(writes) => {
                // Finds all of it there, unless the table had to be filled in pieces.
                let mut applied = self.apply(changes);
                applied.writes += writes;
                applied
            }
            Err(reason) => self.wait(changes, &reason),
        }
    }

    /// Puts what the mirror has in the other table's place, unless that was refused and is to wait; returns how much
    /// was written.
    pub(super) fn finish_takeover(&mut self) -> Result<u64, OtherLayout> {
        match (&self.takeover, self.context.clone()) {
            (Takeover::Done, _) => Ok(0),
            (Takeover::Refused(reason), _) => Err(OtherLayout(reason.clone())),
            (Takeover::Due, None) => Err(OtherLayout("nothing is known of this node yet".to_owned())),
            (Takeover::Due, Some(context)) => match self.take_over(&context) {
                Ok(writes) => {
                    self.takeover = Takeover::Done;
                    tracing::info!(family = %self.family(), "rules of another layout were replaced");
                    Ok(writes)
                }
                Err(error) => {
                    let reason = with_causes(&error);
                    self.takeover = Takeover::Refused(reason.clone());
                    Err(OtherLayout(reason))
                }
            },
        }
    }

    /// A process that may not send a transaction of that size never can: its table is empty first.
    fn take_over(&mut self, context: &NodeContext) -> Result<u64, nft::Error> {
        match self.replace_table(context) {
            Err(error) if error.is_too_large() => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "rules of another layout are replaced in pieces"
                );
                self.mirror = Mirror::new();
                self.replace_table(context)
            }
            result => result,
        }
    }

    fn replace_table(&mut self, context: &NodeContext) -> Result<u64, nft::Error> {
        let templates = self.used_templates();
        let layout = layout::layout(self.family, context, &templates);
        let mut batch = Batch::new(layout.table());
        layout.replace(&mut batch);
        for (name, elements) in &self.mirror {
            let elements: Vec<_> = elements
                .iter()
                .map(|(key, data)| name.element(key, &data))
                .collect();
            batch.add_elements(name.text(), &elements);
        }
        self.nft.commit(&batch)?;
        self.templates = templates;
        Ok(batch.changes() as u64)
    }

    /// What is not in the kernel yet: whatever these changes have of this version of IP.
    fn wait(&self, changes: &[Change<'_>], reason: &OtherLayout) -> Applied {
        let has_ports = |plan: &ServicePlan| ports(plan, self.family()).next().is_some();
        let waiting = changes
            .iter()
            .filter(|change| has_ports(change.old) || has_ports(change.new));
        let failures = waiting.map(|change| (change.service.clone(), reason.clone().into()));
        Applied {
            failures: failures.collect(),
            ..Applied::default()
        }
    }
}
