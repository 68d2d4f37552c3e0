//! The `ratelimit` plugin: one client cannot take the server from the others.
//!
//! Each client has a bucket of `burst` queries that fills up again at `per_second`. It is kept as the one moment at
//! which it will be full again (the "theoretical arrival time" of ITU-T I.371's GCRA): a query moves that moment on by
//! `1 / per_second`, and is over the limit where the moment then lies farther ahead than the bucket is deep.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

/// Independent parts, so that threads rarely wait for each other.
const SHARDS: usize = 64;
/// Clients that a part remembers; whoever comes while it is full of busy ones is not limited.
const CLIENTS_PER_SHARD: usize = 1024;

/// Options of the plugin, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Queries that a client may send each second, 1 to 1,000,000.
    pub per_second: u32,
    /// Queries that it may send at once. Default: as many as in a second.
    pub burst: u32,
    /// Clients that are not limited.
    pub exempt: Vec<IpNetwork>,
    /// Addresses that share so many bits are one client. Default: each is one.
    pub prefixes: Prefixes,
}

/// How many bits of an address tell clients apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefixes {
    /// Of an IPv4 address, 1 to 32. Default 32.
    pub v4: u32,
    /// Of an IPv6 address, 1 to 128. Default 128: in a cluster a /64 is a node with all of its pods.
    pub v6: u32,
}

impl Default for Prefixes {
    fn default() -> Self {
        Self { v4: 32, v6: 128 }
    }
}

/// The buckets of a server block's clients.
#[derive(Debug)]
pub struct RateLimit {
    options: Options,
    started: Instant,
    /// By [`Prefixes::client_of`]: when its bucket is full again, in nanoseconds since `started`.
    shards: Vec<Mutex<HashMap<u128, u64>>>,
    /// Queries over the limit.
    pub limited: AtomicU64,
}

impl RateLimit {
    /// Buckets that are all full.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            options,
            started: Instant::now(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            limited: AtomicU64::new(0),
        }
    }

    /// The options.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Takes one query out of a client's bucket. False = it is empty; that is counted.
    pub fn admits(&self, client: IpAddr, now: Instant) -> bool {
        let client = client.to_canonical();
        if self.options.exempt.iter().any(|net| net.contains(client)) {
            return true;
        }
        let key = self.options.prefixes.client_of(client);
        let now = nanos(now.saturating_duration_since(self.started));
        let step = 1_000_000_000 / u64::from(self.options.per_second);
        let depth = step * u64::from(self.options.burst);
        // Neighbouring addresses go to different parts.
        let folded = (key ^ key >> 64) as u64;
        let shard = &self.shards[(folded ^ folded >> 32 ^ folded >> 16) as usize % SHARDS];
        let mut buckets = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= CLIENTS_PER_SHARD && !buckets.contains_key(&key) {
            buckets.retain(|_, full_at| *full_at > now);
            if buckets.len() >= CLIENTS_PER_SHARD {
                return true;
            }
        }
        let full_at = buckets.entry(key).or_insert(now);
        let moved = now.max(*full_at) + step;
        if moved - now > depth {
            self.limited.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        *full_at = moved;
        true
    }
}

impl Prefixes {
    /// The client that an address belongs to: its bits, those behind the prefix zero. IPv4 addresses stand where
    /// RFC 4291 §2.5.5.2 maps them to, so that they meet no IPv6 address.
    fn client_of(self, address: IpAddr) -> u128 {
        let (bits, prefix) = match address {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped().to_bits(), 96 + self.v4),
            IpAddr::V6(v6) => (v6.to_bits(), self.v6),
        };
        bits & u128::MAX.checked_shl(128 - prefix).unwrap_or_default()
    }
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(per_second: u32, burst: u32) -> RateLimit {
        limit_by(per_second, burst, Prefixes::default())
    }

    fn limit_by(per_second: u32, burst: u32, prefixes: Prefixes) -> RateLimit {
        RateLimit::new(Options {
            per_second,
            burst,
            exempt: vec!["10.9.0.0/16".parse().expect("network")],
            prefixes,
        })
    }

    #[test]
    fn a_client_gets_its_burst_then_its_rate_and_takes_nothing_from_others() {
        let limit = limit(10, 5);
        let ask = |client: &str, millis: u64| {
            let now = limit.started + Duration::from_millis(millis);
            limit.admits(client.parse().expect("address"), now)
        };
        let at_once: Vec<bool> = (0..7).map(|_| ask("10.0.0.1", 0)).collect();
        assert_eq!(at_once, [true, true, true, true, true, false, false]);
        for (client, millis, expected) in [
            ("10.0.0.2", 0, true),
            ("::ffff:10.0.0.1", 0, false),
            ("10.0.0.1", 99, false),
            ("10.0.0.1", 100, true),
            ("10.0.0.1", 100, false),
            ("10.0.0.1", 300, true),
            ("10.0.0.1", 300, true),
            ("10.0.0.1", 300, false),
        ] {
            assert_eq!(ask(client, millis), expected, "{client} at {millis} ms");
        }
        let exempt = (0..100).all(|_| ask("10.9.1.1", 0));
        assert_eq!((exempt, limit.limited.load(Ordering::Relaxed)), (true, 6));
    }

    #[test]
    fn an_address_is_a_client_unless_prefixes_make_networks_of_them() {
        let clients = [
            "fd00:0:0:1::1",
            "fd00:0:0:1::2",
            "fd00:0:0:2::1",
            "10.0.0.1",
            "10.0.0.2",
            "10.0.1.1",
            // The bits of 10.0.0.1 in front, and behind.
            "a00:1::",
            "::a00:1",
        ];
        let default = Prefixes::default();
        for (prefixes, expected) in [
            (default, [true; 8]),
            (
                Prefixes { v6: 64, ..default },
                [true, false, true, true, true, true, true, true],
            ),
            (
                Prefixes { v4: 24, ..default },
                [true, true, true, true, false, true, true, true],
            ),
            (
                Prefixes { v4: 1, v6: 1 },
                [true, false, false, true, false, false, true, false],
            ),
        ] {
            let limit = limit_by(1, 1, prefixes);
            let ask = |client: &str| limit.admits(client.parse().expect("address"), limit.started);
            assert_eq!(clients.map(ask), expected, "{prefixes:?}");
        }
    }

    #[test]
    fn more_clients_than_there_is_room_for_are_served_and_memory_stays_bounded() {
        let limit = limit(1, 1);
        let all = SHARDS * CLIENTS_PER_SHARD * 2;
        let ask = |index: usize, seconds: u64| {
            let now = limit.started + Duration::from_secs(seconds);
            limit.admits(IpAddr::from((index as u32).to_be_bytes()), now)
        };
        assert!((0..all).all(|index| ask(index, 0)));
        let remembered = || -> usize {
            let shards = limit.shards.iter();
            shards.map(|shard| shard.lock().expect("lock").len()).sum()
        };
        assert!(remembered() <= SHARDS * CLIENTS_PER_SHARD, "{}", remembered());
        // Those whose buckets are full again make room: the newcomer is limited as everybody.
        assert_eq!((ask(all, 2), ask(all, 2)), (true, false));
    }
}
