//! What a store is told: where it keeps its data, where it listens, who may come in, how long history lasts.

use std::{
    fmt,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

/// The configuration of a store.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory of the data; made if it is not there. One process at a time can use it.
    pub data_dir: PathBuf,
    /// The addresses to listen on, at least one. Port 0 takes a free one, see `Server::local_addrs`.
    pub listen: Vec<SocketAddr>,
    /// With files every client must show a certificate of the client CA; without, anyone who can connect may do
    /// anything, so that only loopback addresses are accepted.
    pub tls: Option<TlsFiles>,
    /// How much history is kept. Default: all of it, until a client compacts (the API server does, every five minutes).
    pub auto_compaction: AutoCompaction,
    /// How large the file may become, in bytes. Beyond it the alarm NOSPACE is raised, and no key is put until history
    /// was compacted, the file defragmented, and the alarm cleared (`etcdctl compact`, `defrag`, `alarm disarm`).
    /// Default: 2 GiB, as etcd's.
    pub quota_bytes: u64,
    /// How often a watch that asked for it, and that has nothing to report, is told the revision. Default: 10 s.
    pub progress_interval: Duration,
    /// What leases measure their time with. Default: the system's monotonic clock.
    pub clock: Arc<dyn Clock>,
}

impl Config {
    /// Everything else at its default: no TLS, no automatic compaction.
    pub fn new(data_dir: impl Into<PathBuf>, listen: Vec<SocketAddr>) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen,
            tls: None,
            auto_compaction: AutoCompaction::Off,
            quota_bytes: 2 << 30,
            progress_interval: Duration::from_secs(10),
            clock: Arc::new(MonotonicClock),
        }
    }
}

/// PEM files. They are read once, when the server is bound.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The server's certificate, and those between it and its CA.
    pub cert: PathBuf,
    /// The key of the first of them.
    pub key: PathBuf,
    /// The CA that clients' certificates must come from.
    pub client_ca: PathBuf,
}

/// How much history the store keeps by itself. History is memory: every version since the last compaction is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoCompaction {
    /// All of it; clients compact.
    Off,
    /// The newest so many revisions; looked at every 10 s.
    Revisions(u32),
    /// What was written within this time; looked at ten times within it, at most every 10 s.
    Age(Duration),
}

/// The time that leases are measured with.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Now; never less than before.
    fn now(&self) -> Instant;
}

/// The system's monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct MonotonicClock;

impl Clock for MonotonicClock {
    fn now(&self) -> Instant {
        Instant::now()
    }
}
