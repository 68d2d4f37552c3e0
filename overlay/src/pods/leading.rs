//! An interface is answered for once the kernel leads its packets: where the ways of a pool's blocks differ, what a pod
//! sends before its rules are there leaves by the wrong interface and is lost. A node with a subnet has one way for all
//! pods, which their wiring makes.
//!
//! ```text
//! CNI server ─ PodNetwork::await_led ─ Asked ─► who programs the kernel ─ Standing ─► CNI server
//! ```
//! The record is written before it is asked: whatever the programmer lists from then on has the interface in it, so that
//! nothing takes away what was made for it.

use std::fmt;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::addresses::AttachmentKey;
use super::state::Place;
use super::{PodError, PodNetwork};
use crate::own_pods::routes_of;
use crate::reconcile::PodRoute;

/// Whether the kernel leads an interface's packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Not yet, and why.
    NotYet(String),
    /// It does.
    Led,
}

/// An interface that is not answered for before the kernel leads its packets.
#[derive(Debug)]
pub(crate) struct Asked {
    /// How the node reaches it.
    pub(crate) routes: Vec<PodRoute>,
    standing: watch::Sender<Standing>,
}

impl Asked {
    /// Whether somebody waits for it still.
    pub(crate) fn is_awaited(&self) -> bool {
        !self.standing.is_closed()
    }

    /// Tells how it stands.
    pub(crate) fn tell(&self, standing: Standing) {
        self.standing.send_replace(standing);
    }
}

/// Who has the kernel lead packets.
#[derive(Clone)]
pub(super) struct Leader(Arc<dyn Fn(Asked) + Send + Sync>);

impl fmt::Debug for Leader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Leader")
    }
}

impl PodNetwork {
    /// Waits until the kernel leads what an interface sends, and what is sent to it, as its addresses ask for; where it
    /// has a subnet's address, it does once the interface is wired.
    ///
    /// # Errors
    /// [`PodError::NotLed`] where it does not in that time, or the interface was removed meanwhile. An interface that was
    /// never answered for is removed then: nobody has wired it.
    pub async fn await_led(&self, key: &AttachmentKey, patience: Duration) -> Result<(), PodError> {
        let Some(routes) = self.to_be_led(key)? else {
            return Ok(());
        };
        let mut reason = "nobody programs the kernel yet".to_owned();
        let led = tokio::time::timeout(patience, self.ask_to_lead(routes, &mut reason)).await;
        if led.is_ok() {
            return self.answer_for(key);
        }
        let (pods, of) = (self.clone(), key.clone());
        let removed = tokio::task::spawn_blocking(move || pods.remove_unanswered(&of)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(
                container = key.container_id,
                error = model::with_causes(&error),
                "address of a pod that could not be led stays with it until its DEL"
            );
        }
        Err(PodError::NotLed { reason })
    }

    /// The ways to an interface, where somebody has to lead its packets.
    fn to_be_led(&self, key: &AttachmentKey) -> Result<Option<Vec<PodRoute>>, PodError> {
        let state = self.lock();
        if !matches!(state.place, Place::Pool(_)) {
            return Ok(None);
        }
        let assigned = state.addresses.get(key);
        let assigned = assigned.ok_or_else(|| PodError::Dismissed(key.clone()))?;
        Ok(Some(routes_of(slice::from_ref(assigned)).collect()))
    }

    /// Asks whoever programs the kernel, and the next one where that one ends.
    async fn ask_to_lead(&self, routes: Vec<PodRoute>, reason: &mut String) {
        let mut leaders = self.shared.leader.subscribe();
        loop {
            let leader = leaders.borrow_and_update().clone();
            if let Some(Leader(ask)) = leader {
                let (standing, mut told) = watch::channel(Standing::NotYet(reason.clone()));
                ask(Asked {
                    routes: routes.clone(),
                    standing,
                });
                while told.changed().await.is_ok() {
                    match told.borrow_and_update().clone() {
                        Standing::Led => return,
                        Standing::NotYet(why) => *reason = why,
                    }
                }
            }
            // Its sender is in what `self` holds.
            let _ = leaders.changed().await;
        }
    }

    fn answer_for(&self, key: &AttachmentKey) -> Result<(), PodError> {
        let mut state = self.lock();
        if state.addresses.get(key).is_none() {
            return Err(PodError::Dismissed(key.clone()));
        }
        state.unanswered.remove(key);
        Ok(())
    }

    fn remove_unanswered(&self, key: &AttachmentKey) -> Result<(), PodError> {
        if self.lock().unanswered.contains(key) {
            self.remove(key)?;
        }
        Ok(())
    }

    /// Has interfaces of pools led by that from now on. It must list the pods anew after it was asked, whenever it takes
    /// something away.
    pub(crate) fn lead_by(&self, leader: impl Fn(Asked) + Send + Sync + 'static) {
        self.shared.leader.send_replace(Some(Leader(Arc::new(leader))));
    }
}
