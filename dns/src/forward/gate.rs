//! How many questions may wait for upstreams, in all and of one client.
//!
//! A client may have as many under way as places are free: one that floods gets half of them, two get a third each,
//! and whoever comes next still finds room. It is how switches share a buffer among queues (Choudhury and Hahne,
//! "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches").

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use crate::open_files;

/// The most questions under way to all upstreams: 4,000 a second where each takes a second. Each holds two sockets at
/// the most, and the kernel has 28,232 ports for them and for everybody else in this network namespace.
const MAX_UNDER_WAY: u64 = 4096;
/// The part of the files that may be open which is for questions: two sockets each, and as much for all the rest.
const FILES_PER_QUESTION: u64 = 4;

/// The places of all clients. Files and ports are the process's, so that all forwarders share them.
pub(super) fn of_all() -> &'static Gate {
    static GATE: LazyLock<Gate> = LazyLock::new(|| {
        let places = (open_files::limit() / FILES_PER_QUESTION).clamp(1, MAX_UNDER_WAY);
        Gate::new(places as usize)
    });
    &GATE
}

/// A number of places.
pub(super) struct Gate {
    pub(super) limit: usize,
    taken: Mutex<Taken>,
}

/// `None` among the clients is this server itself.
#[derive(Default)]
struct Taken {
    total: usize,
    by_client: HashMap<Option<IpAddr>, usize>,
}

/// A place, until it is dropped.
pub(super) struct Place<'g> {
    gate: &'g Gate,
    client: Option<IpAddr>,
}

impl Gate {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            taken: Mutex::default(),
        }
    }

    /// A place for a client, if it may have one more.
    pub(super) fn enter(&self, client: Option<IpAddr>) -> Option<Place<'_>> {
        let mut taken = self.taken();
        let free = self.limit.saturating_sub(taken.total);
        let own = taken.by_client.get(&client).copied().unwrap_or(0);
        if free == 0 || own > free {
            return None;
        }
        taken.total += 1;
        taken.by_client.insert(client, own + 1);
        Some(Place { gate: self, client })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut taken = self.gate.taken();
        taken.total -= 1;
        if let Some(own) = taken.by_client.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                taken.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u8) -> Option<IpAddr> {
        Some([10, 0, 0, number].into())
    }

    /// As many places as a client gets.
    fn flood<'g>(gate: &'g Gate, number: u8) -> Vec<Place<'g>> {
        std::iter::from_fn(|| gate.enter(client(number))).collect()
    }

    #[test]
    fn whoever_floods_leaves_room_for_the_others() {
        let gate = Gate::new(1000);
        let first = flood(&gate, 1);
        let second = flood(&gate, 2);
        let third = flood(&gate, 3);
        assert_eq!([first.len(), second.len(), third.len()], [501, 250, 125]);
        // Places that come back go to those who have fewer.
        drop(second);
        assert!(gate.enter(client(1)).is_none());
        assert_eq!(flood(&gate, 3).len(), 125);
        assert!(gate.enter(None).is_some());
    }

    #[test]
    fn there_are_never_more_than_the_limit_and_nobody_is_remembered() {
        for limit in [0, 1, 2, 3, 10] {
            let gate = Gate::new(limit);
            let places: Vec<_> = (0..20).flat_map(|number| flood(&gate, number)).collect();
            assert_eq!(places.len(), limit);
            drop(places);
            assert!(
                gate.taken().by_client.is_empty() && gate.taken().total == 0,
                "{limit}"
            );
        }
    }
}
