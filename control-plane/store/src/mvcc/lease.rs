//! Leases: a time to live that keys share.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::Error;

/// A shorter time to live is raised to this: etcd's rule of one and a half election timeouts, with its default of one
/// second (`server/lease/lessor.go`, `minLeaseTTL`).
const MIN_TTL_SECONDS: i64 = 2;

/// A longer time to live is refused (`server/lease/lessor.go`, `MaxLeaseTTL`).
const MAX_TTL_SECONDS: i64 = 9_000_000_000;

/// The number of a lease; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(i64);

impl LeaseId {
    /// Reads the protocol's number, in which 0 means no lease.
    pub fn from_protocol(number: i64) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }

    /// The protocol's number.
    pub fn get(self) -> i64 {
        self.0
    }
}

#[derive(Debug)]
struct Lease {
    granted_seconds: i64,
    expires: Instant,
    keys: BTreeSet<Bytes>,
}

/// All leases, the keys that hang on each, and the order in which they end.
#[derive(Debug, Default)]
pub struct Leases {
    by_id: BTreeMap<LeaseId, Lease>,
    by_expiry: BTreeSet<(Instant, LeaseId)>,
}

impl Leases {
    /// Adds a lease and returns the seconds that it was given.
    pub fn grant(&mut self, id: LeaseId, ttl_seconds: i64, now: Instant) -> Result<i64, Error> {
        if ttl_seconds > MAX_TTL_SECONDS {
            return Err(Error::LeaseTtlTooLarge);
        }
        if self.by_id.contains_key(&id) {
            return Err(Error::LeaseExists);
        }
        let granted_seconds = ttl_seconds.max(MIN_TTL_SECONDS);
        let expires = now + seconds(granted_seconds);
        self.by_id.insert(
            id,
            Lease {
                granted_seconds,
                expires,
                keys: BTreeSet::new(),
            },
        );
        self.by_expiry.insert((expires, id));
        Ok(granted_seconds)
    }

    /// Starts the lease's time again and returns its seconds; nothing for a lease that is not there or has ended.
    pub fn renew(&mut self, id: LeaseId, now: Instant) -> Option<i64> {
        let lease = self.by_id.get_mut(&id).filter(|lease| lease.expires > now)?;
        self.by_expiry.remove(&(lease.expires, id));
        lease.expires = now + seconds(lease.granted_seconds);
        self.by_expiry.insert((lease.expires, id));
        Some(lease.granted_seconds)
    }

    /// Takes the lease away and returns the keys that hung on it, in order.
    pub fn remove(&mut self, id: LeaseId) -> Option<BTreeSet<Bytes>> {
        let lease = self.by_id.remove(&id)?;
        self.by_expiry.remove(&(lease.expires, id));
        Some(lease.keys)
    }

    /// The leases whose time is over, the longest over first.
    pub fn expired(&self, now: Instant) -> Vec<LeaseId> {
        self.by_expiry
            .iter()
            .take_while(|(expires, _)| *expires <= now)
            .map(|(_, id)| *id)
            .collect()
    }

    /// Whether the lease exists.
    pub fn contains(&self, id: LeaseId) -> bool {
        self.by_id.contains_key(&id)
    }

    /// The seconds that the lease was given and those that remain, rounded down.
    pub fn time_to_live(&self, id: LeaseId, now: Instant) -> Option<(i64, i64)> {
        let lease = self.by_id.get(&id)?;
        let remaining = lease.expires.saturating_duration_since(now).as_secs();
        Some((
            lease.granted_seconds,
            i64::try_from(remaining).unwrap_or(i64::MAX),
        ))
    }

    /// The keys that hang on the lease.
    pub fn keys(&self, id: LeaseId) -> impl Iterator<Item = &Bytes> {
        self.by_id.get(&id).into_iter().flat_map(|lease| &lease.keys)
    }

    /// Every lease, the next to end first.
    pub fn ids(&self) -> impl Iterator<Item = LeaseId> + '_ {
        self.by_expiry.iter().map(|(_, id)| *id)
    }

    /// Hangs the key on the lease.
    pub fn attach(&mut self, id: LeaseId, key: Bytes) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.insert(key);
        }
    }

    /// Takes the key off the lease.
    pub fn detach(&mut self, id: LeaseId, key: &Bytes) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.remove(key);
        }
    }
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(count.unsigned_abs())
}
