//! The `loop` plugin.

use std::sync::Arc;

use crate::forward::Forward;
use crate::name::Name;
use crate::question::{Query, rtype};

/// Finds upstreams that lead back here: each is sent a name that nobody else knows, and the one whose name comes in
/// is taken out. CoreDNS ends the whole process instead.
pub struct LoopProbe {
    /// `INDEX.SECRET.ZONE`: the secret's label.
    secret: Vec<u8>,
    forwards: std::sync::OnceLock<Vec<Arc<Forward>>>,
}

impl LoopProbe {
    /// A probe with a new secret.
    #[must_use]
    pub fn new() -> Self {
        let secret = format!("{:016x}", rand::random::<u64>()).into_bytes();
        Self {
            secret,
            forwards: std::sync::OnceLock::new(),
        }
    }

    /// Sends every upstream its name. A query that comes in later is recognised whenever it comes.
    pub async fn send(&self, forwards: Vec<Arc<Forward>>, zone: &Name) {
        let forwards = self.forwards.get_or_init(|| forwards);
        for (index, upstream) in forwards
            .iter()
            .flat_map(|forward| forward.upstreams())
            .enumerate()
        {
            let label = index.to_string().into_bytes();
            let name = crate::answer::join(&[&label, &self.secret], zone);
            upstream.send_probe(&name).await;
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
