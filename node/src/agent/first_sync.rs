//! When a node can serve pods: everything that its agent is configured to serve was in the kernel once.

use std::sync::Arc;

use futures::FutureExt;
use model::{Kind, Snapshot};
use tokio::sync::watch::Receiver;

/// Kinds that every API server has, and without which something of what is served is missing.
const AWAITED: [Kind; 4] = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::Namespace];

/// What has to happen first.
#[derive(Clone, Debug)]
pub struct FirstSync {
    /// All of every kind that it takes is known.
    pub snapshots: Receiver<Arc<Snapshot>>,
    /// Services are in the kernel; absent where there is no proxy.
    pub proxy: Option<Receiver<bool>>,
    /// Pods can be connected; absent where the agent has no pod network.
    pub pods: Option<Receiver<bool>>,
}

impl FirstSync {
    /// Whether all of it has happened.
    pub fn has_happened(&self) -> bool {
        self.clone().await_all().now_or_never().is_some()
    }

    /// Returns when all of it has happened; never where one of those that tell is gone before.
    pub async fn await_all(mut self) {
        let is_known = |snapshot: &Arc<Snapshot>| AWAITED.iter().all(|kind| snapshot.is_synced(*kind));
        let mut all_happened = self.snapshots.wait_for(is_known).await.is_ok();
        for mut told in [self.proxy, self.pods].into_iter().flatten() {
            all_happened &= told.wait_for(|happened| *happened).await.is_ok();
        }
        if !all_happened {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use model::Change;
    use tokio::sync::watch;

    use super::*;

    #[tokio::test]
    async fn every_component_that_there_is_has_to_have_synced_once() {
        let (snapshot, snapshots) = watch::channel(Arc::<Snapshot>::default());
        let (proxy, proxied) = watch::channel(false);
        let (pods, connected) = watch::channel(false);
        let all = FirstSync {
            snapshots,
            proxy: Some(proxied),
            pods: Some(connected),
        };
        let without_network = FirstSync {
            pods: None,
            ..all.clone()
        };
        let states = || [&all, &without_network].map(FirstSync::has_happened);
        proxy.send_replace(true);
        assert_eq!(states(), [false, false], "nothing is known of the cluster");
        snapshot.send_modify(|known| {
            let known = Arc::make_mut(known);
            for kind in AWAITED {
                known.apply(Change::Synced(kind));
            }
        });
        assert_eq!(states(), [false, true]);
        pods.send_replace(true);
        assert_eq!(states(), [true, true]);
        drop((snapshot, proxy, pods));
        assert_eq!(states(), [true, true], "what happened, happened");
    }
}
