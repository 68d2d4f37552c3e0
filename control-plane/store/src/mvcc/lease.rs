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

/// Who asked for a lease. What it ends is as much as its holder may touch, and so is who may use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// A client that may touch every key.
    Administrator,
    /// A client that may touch some keys only.
    Limited,
}

/// What a lease was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Its time to live.
    pub seconds: i64,
    /// Who asked for it.
    pub holder: Holder,
}

#[derive(Debug)]
struct Lease {
    granted: Grant,
    expires: Instant,
    keys: BTreeSet<Bytes>,
}

/// All leases, the keys that hang on each, and the order in which they end.
#[derive(Debug, Default)]
pub struct Leases {
    by_id: BTreeMap<LeaseId, Lease>,
    by_expiry: BTreeSet<(Instant, LeaseId)>,
    unsettled: Vec<Unsettled>,
}

/// What may still be taken back.
#[derive(Debug)]
enum Unsettled {
    Granted(LeaseId),
    Ended(LeaseId, Lease),
}

impl Leases {
    /// Adds a lease and returns what it was given.
    pub fn grant(&mut self, id: LeaseId, asked: Grant, now: Instant) -> Result<Grant, Error> {
        if asked.seconds > MAX_TTL_SECONDS {
            return Err(Error::LeaseTtlTooLarge);
        }
        if self.by_id.contains_key(&id) {
            return Err(Error::LeaseExists);
        }
        let granted = Grant {
            seconds: asked.seconds.max(MIN_TTL_SECONDS),
            ..asked
        };
        let expires = now + seconds(granted.seconds);
        self.by_id.insert(
            id,
            Lease {
                granted,
                expires,
                keys: BTreeSet::new(),
            },
        );
        self.by_expiry.insert((expires, id));
        self.unsettled.push(Unsettled::Granted(id));
        Ok(granted)
    }

    /// Starts the lease's time again and returns its seconds; nothing for a lease that is not there or has ended.
    pub fn renew(&mut self, id: LeaseId, now: Instant) -> Option<i64> {
        let lease = self.by_id.get_mut(&id).filter(|lease| lease.expires > now)?;
        self.by_expiry.remove(&(lease.expires, id));
        lease.expires = now + seconds(lease.granted.seconds);
        self.by_expiry.insert((lease.expires, id));
        Some(lease.granted.seconds)
    }

    /// Takes the lease away and returns the keys that hung on it, in order.
    pub fn remove(&mut self, id: LeaseId) -> Option<BTreeSet<Bytes>> {
        let lease = self.by_id.remove(&id)?;
        self.by_expiry.remove(&(lease.expires, id));
        let keys = lease.keys.clone();
        self.unsettled.push(Unsettled::Ended(id, lease));
        Some(keys)
    }

    /// The leases granted and ended so far are durable.
    pub fn settle(&mut self) {
        self.unsettled.clear();
    }

    /// Undoes what was granted and ended since the last [`Leases::settle`]; which keys hang on them is for
    /// [`Keyspace::take_back`](super::Keyspace::take_back) to say.
    pub(super) fn take_back(&mut self) {
        while let Some(last) = self.unsettled.pop() {
            match last {
                Unsettled::Granted(id) => {
                    if let Some(lease) = self.by_id.remove(&id) {
                        self.by_expiry.remove(&(lease.expires, id));
                    }
                }
                Unsettled::Ended(id, lease) => {
                    self.by_expiry.insert((lease.expires, id));
                    self.by_id.insert(id, lease);
                }
            }
        }
    }

    /// Every lease, with what it was given.
    pub fn grants(&self) -> impl Iterator<Item = (LeaseId, Grant)> + '_ {
        self.by_id.iter().map(|(id, lease)| (*id, lease.granted))
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

    /// Who asked for the lease.
    pub fn holder(&self, id: LeaseId) -> Option<Holder> {
        self.by_id.get(&id).map(|lease| lease.granted.holder)
    }

    /// The seconds that the lease was given and those that remain, rounded down.
    pub fn time_to_live(&self, id: LeaseId, now: Instant) -> Option<(i64, i64)> {
        let lease = self.by_id.get(&id)?;
        let remaining = lease.expires.saturating_duration_since(now).as_secs();
        Some((
            lease.granted.seconds,
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
