//! An interface that is detached and deleted, or was with nobody.

use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::time::Instant;

use super::node::{self, SETTLES};
use super::problem::{Subject, of_call};
use super::{Ipam, Turn};
use crate::ec2::{AttachmentId, CallError, Ec2, EniId, Meaning, Metadata, Which};
use crate::home::Home;
use crate::undertaking::Undertaking;

/// How long it is not tried again what nobody may do.
const DENIED: Duration = Duration::from_secs(600);

impl<E: Ec2, M: Metadata, H: Home> Ipam<E, M, H> {
    pub(super) fn begin_removal(&mut self, eni: &EniId, now: Instant) -> Turn {
        let held = self.node.as_ref().and_then(|node| node.get(eni)).cloned();
        let may = self.pace.allows(&Subject::Removal(eni.clone()), now);
        let Some(held) = held.filter(|_| may) else {
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

    pub(super) async fn remove(
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
                Err(error) if error.meaning() == Meaning::Denied => {
                    return self.stays(&before, &eni, &error, now);
                }
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
        self.leaked.remove(&eni);
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

    /// What nobody may detach serves pods as before.
    fn stays(&mut self, before: &Undertaking, eni: &EniId, error: &CallError, now: Instant) -> Turn {
        let subject = Subject::Removal(eni.clone());
        self.problems.note(&subject, of_call(error));
        self.pace.hold(subject, now, DENIED);
        if let Some(node) = &mut self.node {
            node.stays(eni);
        }
        self.look_due = now;
        self.end(before, now)
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
            self.leaked.remove(&eni);
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
                self.leaked.remove(&eni);
                self.worked(&Subject::Removal(eni));
                self.end(&before, now)
            }
        }
    }
}
