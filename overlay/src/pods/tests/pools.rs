//! Nodes whose addresses come and go in blocks. Time stands still, unless a test lets it pass.
//!
//! - `blocks`: Blocks that come and go while pods have addresses of them.
//! - `choice`: Which address of the pool a pod is given.
//! - `cool_down`: Addresses that came back: when they are given again, also after a restart, and by logs of older versions.
//! - `histories`: What must be so whatever happened before, and wherever a crash came.
//! - `leading`: Pods that are answered for once the kernel leads their packets.
//! - `line`: Pods that wait for an address.
//! - `names`: Names of pods' devices on the node.

mod blocks;
mod choice;
mod cool_down;
mod histories;
mod leading;
mod line;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde::Deserialize;

use super::*;

const COOL_DOWN: Duration = Duration::from_secs(30);

/// A directory with a log, and a clock.
struct Node {
    place: Place,
    now: Arc<Mutex<Now>>,
}

impl Node {
    fn new(label: &str) -> Self {
        let now = Now {
            steady: Instant::now() + Duration::from_secs(100_000),
            wall: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        };
        Self {
            place: Place::new(label),
            now: Arc::new(Mutex::new(now)),
        }
    }

    fn open(&self) -> PodNetwork {
        let now = self.now.clone();
        let clock = Clock::new(move || *now.lock().expect("no panic"));
        PodNetwork::open_by(&self.place.0, clock).expect("open")
    }

    fn serving(&self, blocks: &[(&str, u32)]) -> PodNetwork {
        let pods = self.open();
        pods.serve_pool(pool(blocks));
        pods
    }

    fn pass(&self, seconds: u64) {
        let mut now = self.now.lock().expect("no panic");
        *now = now.after(Duration::from_secs(seconds));
    }

    /// Sets the clock that people set, by so many seconds.
    fn set_wall(&self, by: i64) {
        let mut now = self.now.lock().expect("no panic");
        let distance = Duration::from_secs(by.unsigned_abs());
        now.wall = if by < 0 {
            now.wall - distance
        } else {
            now.wall + distance
        };
    }

    fn log(&self) -> PathBuf {
        self.place.0.join(LOG)
    }
}

fn network(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn blocks(texts: &[(&str, u32)]) -> Vec<Block> {
    let block = |(text, device_index): &(&str, u32)| Block {
        network: network(text),
        device_index: *device_index,
    };
    texts.iter().map(block).collect()
}

fn pool(texts: &[(&str, u32)]) -> Pool {
    Pool {
        blocks: blocks(texts),
        mtu: Mtu(9001),
        cool_down: COOL_DOWN,
        growth: Growth::Possible,
    }
}

fn blocked(texts: &[(&str, u32)]) -> Pool {
    Pool {
        growth: Growth::Blocked {
            reason: "the machine has all its interfaces".to_owned(),
        },
        ..pool(texts)
    }
}

/// Gives a container an address.
#[track_caller]
fn given(pods: &PodNetwork, container: &str) -> String {
    let plan = pods.add(&attachment(container)).expect("an address");
    let addresses: Vec<String> = plan
        .addresses
        .iter()
        .map(|network| network.ip().to_string())
        .collect();
    addresses.join(" ")
}

#[track_caller]
fn removed(pods: &PodNetwork, container: &str) {
    assert!(pods.remove(&key(container)).expect("writable").is_some());
}

#[track_caller]
fn none_now(result: Result<WiringPlan, PodError>) -> String {
    match result {
        Err(PodError::NoneNow { waiting_for, .. }) => waiting_for,
        other => panic!("{other:?} waits for nothing"),
    }
}

/// `assigned cooling free`, and whether the block is withdrawn.
fn counts(pods: &PodNetwork) -> Vec<String> {
    let census = pods.census().expect("a pool");
    let count = |count: &Count| {
        let Count {
            block,
            assigned,
            cooling,
            free,
            is_withdrawn,
        } = count;
        let withdrawn = if *is_withdrawn { " withdrawn" } else { "" };
        format!("{} {assigned} {cooling} {free}{withdrawn}", block.network)
    };
    census.blocks.iter().map(count).collect()
}
