//! The taint by which pods are kept away from this node until what its agent serves is in the kernel.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use kube::api::{Api, ListParams, Patch, PatchParams};
use model::{NodeName, Snapshot, with_causes};
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::sleep;

use super::client::{ApiSource, ConnectError, Connection};
use crate::backoff::Backoff;

/// Delays before what the API server did not take is tried again. What was taken comes back by the watch within the
/// first.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Takes a taint off this node's object.
#[derive(Clone, Debug)]
pub struct StartupTaint {
    /// The node.
    pub node: NodeName,
    /// The taint's key.
    pub key: String,
    /// What the object says.
    pub snapshots: Receiver<Arc<Snapshot>>,
}

/// Why it is still there.
#[derive(Debug, thiserror::Error)]
enum RemoveError {
    #[error("connect for Node {0}")]
    Connect(NodeName, #[source] ConnectError),
    #[error("read taints of Node {0}")]
    Read(NodeName, #[source] kube::Error),
    #[error("take taint {key} off Node {node}")]
    Patch {
        node: NodeName,
        key: String,
        #[source]
        source: kube::Error,
    },
}

impl StartupTaint {
    /// Takes it off as often as it is seen, until cancelled; `told` hears whether it is gone. It is never set.
    pub async fn keep_off(mut self, source: &ApiSource, told: impl Fn(Result<(), &str>)) {
        let mut connection = Connection::to(source);
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        loop {
            if self.is_there() {
                let delay = match self.remove(&mut connection).await {
                    Ok(()) => {
                        told(Ok(()));
                        backoff.next_delay()
                    }
                    Err(error) => {
                        told(Err(&with_causes(&error)));
                        connection.failed(&mut backoff)
                    }
                };
                sleep(delay).await;
                continue;
            }
            told(Ok(()));
            backoff.reset();
            if self.snapshots.changed().await.is_err() {
                sleep(LONGEST_RETRY).await;
            }
        }
    }

    fn is_there(&mut self) -> bool {
        let snapshot = self.snapshots.borrow_and_update();
        let node = snapshot.nodes.get(&self.node);
        node.is_some_and(|node| node.taints.iter().any(|taint| **taint == *self.key))
    }

    async fn remove(&self, connection: &mut Connection<'_>) -> Result<(), RemoveError> {
        let client = connection.client().await;
        let client = client.map_err(|error| RemoveError::Connect(self.node.clone(), error))?;
        let api: Api<core::Node> = Api::all(client);
        // Asked for by a list: who may watch may list.
        let only = ListParams::default().fields(&format!("metadata.name={}", self.node));
        let listed = api.list(&only).await;
        let mut nodes = listed
            .map_err(|error| RemoveError::Read(self.node.clone(), error))?
            .items
            .into_iter();
        let node = nodes.find(|node| node.metadata.name.as_deref() == Some(&*self.node.0));
        let Some(patch) = node.and_then(|node| patch_without(&node, &self.key)) else {
            return Ok(());
        };
        let patched = api
            .patch(&self.node.0, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        patched.map_err(|source| RemoveError::Patch {
            node: self.node.clone(),
            key: self.key.clone(),
            source,
        })?;
        tracing::info!(node = %self.node, taint = self.key, "took the startup taint off the Node");
        Ok(())
    }
}

/// The patch after which the Node has all its other taints. It is refused (409) where somebody changed the Node since
/// it was read, since the list of taints is written as a whole. None where there is no such taint.
fn patch_without(node: &core::Node, key: &str) -> Option<Value> {
    let taints = node.spec.as_ref()?.taints.as_ref()?;
    let others: Vec<_> = taints.iter().filter(|taint| taint.key != key).collect();
    (others.len() < taints.len()).then(|| {
        json!({"metadata": {"resourceVersion": node.metadata.resource_version}, "spec": {"taints": others}})
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_taints_with_the_key_go_whatever_their_effect() {
        let node = |taints: Value| -> core::Node {
            let object =
                json!({"metadata": {"name": "node-1", "resourceVersion": "7"}, "spec": {"taints": taints}});
            serde_json::from_value(object).expect("a Node")
        };
        let other = json!({"key": "dedicated", "value": "gpu", "effect": "NoSchedule"});
        let [ours, ours_too] =
            ["NoSchedule", "NoExecute"].map(|effect| json!({"key": "ours", "effect": effect}));
        let expected = json!({"metadata": {"resourceVersion": "7"}, "spec": {"taints": [other]}});
        let tainted = node(json!([ours, other, ours_too]));
        assert_eq!(patch_without(&tainted, "ours"), Some(expected));
        assert_eq!(patch_without(&node(json!([other])), "ours"), None);
        assert_eq!(patch_without(&core::Node::default(), "ours"), None);
        let last = patch_without(&node(json!([ours])), "ours").expect("one goes");
        assert_eq!(last["spec"], json!({"taints": []}));
    }
}
