//! The `loop` plugin.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::forward::Forward;
use crate::name::Name;
use crate::question::{Query, rtype};

/// How often those are probed that lead back here, or did not answer their probe.
const AGAIN: Duration = Duration::from_secs(30);

/// Finds upstreams that lead back here: each is sent a name that nobody else knows, and the one whose name comes in
/// is taken out until it answers a probe that does not come in. CoreDNS ends the whole process instead.
pub struct LoopProbe {
    /// `INDEX.SECRET.ZONE`: the secret's label.
    secret: Vec<u8>,
    forwards: OnceLock<Vec<Arc<Forward>>>,
    /// Upstreams that answered a probe without sending it back.
    cleared: Mutex<HashSet<usize>>,
}

impl LoopProbe {
    /// A probe with a new secret.
    #[must_use]
    pub fn new() -> Self {
        let secret = format!("{:016x}", rand::random::<u64>()).into_bytes();
        Self {
            secret,
            forwards: OnceLock::new(),
            cleared: Mutex::default(),
        }
    }

    /// Probes for as long as it is waited for.
    pub async fn follow(&self, forwards: Vec<Arc<Forward>>, zone: &Name) {
        loop {
            self.send(&forwards, zone).await;
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Sends every upstream its name that is not known to be innocent. A query that comes in later is recognised
    /// whenever it comes.
    pub(super) async fn send(&self, forwards: &[Arc<Forward>], zone: &Name) {
        let forwards = self.forwards.get_or_init(|| forwards.to_vec());
        let cleared = || self.cleared.lock().unwrap_or_else(PoisonError::into_inner);
        let upstreams = forwards.iter().flat_map(|forward| forward.upstreams());
        for (index, upstream) in upstreams.enumerate() {
            if cleared().contains(&index) && !upstream.is_looping() {
                continue;
            }
            let label = index.to_string().into_bytes();
            let name = crate::answer::join(&[&label, &self.secret], zone);
            if upstream.is_cleared_by_probe(&name).await {
                cleared().insert(index);
            }
        }
    }

    pub(super) fn recognizes(&self, query: &Query<'_>) -> bool {
        if query.qtype != rtype::HINFO || query.label_count() < 2 || query.label(1) != self.secret {
            return false;
        }
        let index = std::str::from_utf8(query.label(0))
            .ok()
            .and_then(|label| label.parse::<usize>().ok());
        let forwards = self.forwards.get().into_iter().flatten();
        let upstream = forwards
            .flat_map(|forward| forward.upstreams())
            .nth(index.unwrap_or(usize::MAX));
        if let Some(upstream) = upstream
            && upstream.mark_looping()
        {
            tracing::error!(upstream = %upstream.address, "upstream sends our queries back here and is taken out");
        }
        true
    }
}

impl Default for LoopProbe {
    fn default() -> Self {
        Self::new()
    }
}
