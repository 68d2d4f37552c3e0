//! Places for connections: no client has more than its share, so that one alone cannot take them from the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places of one listener.
#[derive(Debug)]
pub struct Slots {
    free: Arc<Semaphore>,
    /// What one client may have.
    share: usize,
    /// Places taken, by client.
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// A place that a client has, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    client: IpAddr,
    _place: OwnedSemaphorePermit,
}

impl Slots {
    /// So many places, and so many of them for one client at the most.
    #[must_use]
    pub fn new(places: usize, share: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(places)),
            share,
            taken: Mutex::default(),
        })
    }

    /// Waits until a place is free.
    pub async fn free(&self) -> OwnedSemaphorePermit {
        let place = Arc::clone(&self.free).acquire_owned().await;
        place.expect("invariant: nobody closes the semaphore")
    }

    /// Gives a free place to a client. `None` = it has its share already.
    #[must_use]
    pub fn give(self: &Arc<Self>, place: OwnedSemaphorePermit, client: IpAddr) -> Option<Slot> {
        let client = client.to_canonical();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.entry(client).or_default();
        if *own >= self.share {
            return None;
        }
        *own += 1;
        Some(Slot {
            slots: Arc::clone(self),
            client,
            _place: place,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_has_its_share_and_others_theirs() {
        let slots = Slots::new(4, 2);
        let take = async |client: &str| {
            let place = slots.free().await;
            slots.give(place, client.parse().expect("address"))
        };
        let first = take("10.0.0.1").await;
        let second = take("::ffff:10.0.0.1").await.expect("the same client's second");
        assert!(take("10.0.0.1").await.is_none());
        let _third = take("fd00::1").await.expect("another client's first");
        assert_eq!(slots.free.available_permits(), 1);
        drop(first);
        let again = take("10.0.0.1").await.expect("its place came back");
        drop((second, again));
        let known: Vec<IpAddr> = slots.taken.lock().expect("no panic").keys().copied().collect();
        let other: IpAddr = "fd00::1".parse().expect("address");
        assert_eq!(known, [other], "who has no connection is forgotten");
    }
}
