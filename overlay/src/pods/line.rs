//! Who waits for an address: first come, first served.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use model::wiring::WiringPlan;
use tokio::sync::watch;

use super::addresses::AttachmentKey;
use super::{Attachment, PodError, PodNetwork};

/// All that have come and were not served yet, by their number.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: BTreeMap<u64, Waiting>,
    last: u64,
}

#[derive(Debug)]
struct Waiting {
    key: AttachmentKey,
    /// Whether there was no address when it asked.
    is_unmet: bool,
}

impl Line {
    pub(super) fn join(&mut self, key: AttachmentKey) -> u64 {
        self.last += 1;
        self.waiting.insert(self.last, Waiting { key, is_unmet: false });
        self.last
    }

    /// Whether somebody left.
    pub(super) fn leave(&mut self, number: u64) -> bool {
        self.waiting.remove(&number).is_some()
    }

    /// Sends away whoever waits for an interface. Whether there was somebody.
    pub(super) fn dismiss(&mut self, key: &AttachmentKey) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|_, waiting| waiting.key != *key);
        self.waiting.len() < before
    }

    /// Whether somebody waits for an interface.
    pub(super) fn has(&self, key: &AttachmentKey) -> bool {
        self.waiting.values().any(|waiting| waiting.key == *key)
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        self.waiting.contains_key(&number)
    }

    /// How many other interfaces came before it.
    pub(super) fn ahead_of(&self, number: u64) -> usize {
        let own = self.waiting.get(&number).map(|waiting| &waiting.key);
        let before = self.waiting.range(..number).map(|(_, waiting)| &waiting.key);
        before
            .filter(|key| Some(*key) != own)
            .collect::<BTreeSet<_>>()
            .len()
    }

    /// Notes that there was no address for it. Whether that is news.
    pub(super) fn note_unmet(&mut self, number: u64) -> bool {
        let waiting = self.waiting.get_mut(&number);
        waiting.is_some_and(|waiting| !std::mem::replace(&mut waiting.is_unmet, true))
    }

    /// How many interfaces there are for which there was none.
    pub(super) fn unmet(&self) -> usize {
        let unmet = self.waiting.values().filter(|waiting| waiting.is_unmet);
        unmet.map(|waiting| &waiting.key).collect::<BTreeSet<_>>().len()
    }
}

/// A place in the line of those who want an address, from the moment on when it was taken. Dropped, it is left.
///
/// ```text
/// let mut turn = pods.queue(attachment);
/// loop { match turn.add() { Err(PodError::NoneNow { .. }) => turn.comes().await, answer => break answer } }
/// ```
#[derive(Debug)]
#[must_use = "dropped, it is left"]
pub struct Turn {
    pods: PodNetwork,
    attachment: Attachment,
    number: u64,
    chances: watch::Receiver<u64>,
    /// When an address will have cooled down.
    next_cool: Option<Instant>,
}

impl Turn {
    pub(super) fn new(
        pods: PodNetwork,
        attachment: Attachment,
        number: u64,
        chances: watch::Receiver<u64>,
    ) -> Self {
        Self {
            pods,
            attachment,
            number,
            chances,
            next_cool: None,
        }
    }

    /// Gives the interface an address, as [`PodNetwork::add`] does. Blocks on the disk.
    ///
    /// # Errors
    /// [`PodError::NoneNow`] where it may be asked again, after [`Turn::comes`]; [`PodError::Dismissed`] where the
    /// interface was deleted while it waited; else as [`PodNetwork::add`] fails.
    pub fn add(&mut self) -> Result<WiringPlan, PodError> {
        // What changes from here on is news.
        self.chances.borrow_and_update();
        let answer = self.pods.add_as(&self.attachment, self.number);
        self.next_cool = match &answer {
            Err(PodError::NoneNow { next_cool, .. }) => *next_cool,
            _ => None,
        };
        answer
    }

    /// Waits until it is worth while to ask again: something has changed that may help, or an address has cooled down.
    pub async fn comes(&mut self) {
        let cooled = async {
            match self.next_cool {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Its sender is in what `pods` holds.
            _ = self.chances.changed() => {}
            () = cooled => {}
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn key(&self) -> &AttachmentKey {
        &self.attachment.key
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.pods.leave(self.number);
    }
}
