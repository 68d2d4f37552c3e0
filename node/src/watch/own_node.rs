//! This node's own object: the annotations by which other nodes reach it, and the condition by which pods come to it.
//!
//! What it shall say is compared with the newest snapshot, and the difference written, so that whatever somebody else
//! changes there is set right again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use kube::api::{Api, Patch, PatchParams};
use model::{Node, NodeName, Snapshot, with_causes};
use overlay::Announcement;
use serde_json::{Map, Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::sleep;

use super::client::{ApiSource, ConnectError, Connection};
use super::node::{FLANNEL, NETWORK_UNAVAILABLE};
use crate::backoff::Backoff;

/// Between two writes: what was written comes back by the watch before it is compared again.
const BETWEEN: Duration = Duration::from_secs(1);

/// Delays before what the API server did not take is tried again.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Keeps this node's object.
#[derive(Clone, Debug)]
pub struct OwnNode {
    /// Its name.
    pub name: NodeName,
    /// What it says.
    pub snapshots: Receiver<Arc<Snapshot>>,
    /// The annotations that it shall have, without their prefix.
    pub announcement: Receiver<Option<Announcement>>,
    /// Whether pods can be connected.
    pub ready: Receiver<bool>,
}

/// Why it was not written.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("connect for Node {0}")]
    Connect(NodeName, #[source] ConnectError),
    #[error("patch status of Node {0}")]
    Patch(NodeName, #[source] kube::Error),
}

impl OwnNode {
    /// Keeps it until cancelled; `told` hears whether it is as it should be.
    pub async fn keep(mut self, source: &ApiSource, told: impl Fn(Result<(), &str>)) {
        let mut connection = Connection::to(source);
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        loop {
            match self.difference() {
                None => told(Ok(())),
                Some(patch) => match self.write(&mut connection, patch).await {
                    Ok(()) => {
                        told(Ok(()));
                        backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
                        sleep(BETWEEN).await;
                    }
                    Err(error) => {
                        told(Err(&with_causes(&error)));
                        sleep(connection.failed(&mut backoff)).await;
                        continue;
                    }
                },
            }
            self.changed().await;
        }
    }

    /// Something that was compared is new. One whose sender is gone is new no more.
    async fn changed(&mut self) {
        let mut ended = false;
        tokio::select! {
            changed = self.snapshots.changed() => ended |= changed.is_err(),
            changed = self.announcement.changed() => ended |= changed.is_err(),
            changed = self.ready.changed() => ended |= changed.is_err(),
        }
        if ended {
            sleep(LONGEST_RETRY).await;
        }
    }

    /// What is to be written: none where all is as it should be, or is not known.
    fn difference(&mut self) -> Option<Value> {
        let snapshot = self.snapshots.borrow_and_update().clone();
        let announcement = self.announcement.borrow_and_update().clone()?;
        let ready = *self.ready.borrow_and_update();
        difference(
            snapshot.nodes.get(&self.name)?,
            &announcement,
            ready,
            Timestamp::now(),
        )
    }

    async fn write(&self, connection: &mut Connection<'_>, patch: Value) -> Result<(), WriteError> {
        let client = connection.client().await;
        let client = client.map_err(|error| WriteError::Connect(self.name.clone(), error))?;
        let api: Api<core::Node> = Api::all(client);
        // kubelet writes the other conditions: a strategic patch merges by type.
        let patched = api
            .patch_status(&self.name.0, &PatchParams::default(), &Patch::Strategic(patch))
            .await;
        patched.map_err(|error| WriteError::Patch(self.name.clone(), error))?;
        tracing::info!(node = %self.name, "wrote what other nodes and the scheduler are told by the Node");
        Ok(())
    }
}

fn difference(node: &Node, announcement: &Announcement, ready: bool, now: Timestamp) -> Option<Value> {
    let differing: BTreeMap<_, _> = announcement
        .iter()
        .filter(|(name, value)| node.flannel.get(**name).is_none_or(|found| **found != ***value))
        .collect();
    let mut patch = Map::new();
    if !differing.is_empty() {
        let annotations: Map<_, _> = differing
            .into_iter()
            .map(|(name, value)| (format!("{FLANNEL}{name}"), json!(value)))
            .collect();
        patch.insert("metadata".to_owned(), json!({"annotations": annotations}));
    }
    if ready && !node.network_available {
        // Kubernetes' times have no fractions.
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
        let condition = json!({
            "type": NETWORK_UNAVAILABLE, "status": "False", "reason": "CausewayIsUp",
            "message": "Causeway is running on this node", "lastHeartbeatTime": now, "lastTransitionTime": now,
        });
        patch.insert("status".to_owned(), json!({"conditions": [condition]}));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written_and_the_condition_once_pods_can_be_connected() {
        let announcement: Announcement = [("public-ip", "192.0.2.1"), ("backend-type", "vxlan")]
            .map(|(name, value)| (name, value.to_owned()))
            .into();
        let mut node = Node {
            flannel: [("public-ip".into(), "192.0.2.9".into())].into(),
            ..Node::new("node-1")
        };
        let now = Timestamp::from_millisecond(1_700_000_000_500).expect("a time");
        let written = |node: &Node, ready| difference(node, &announcement, ready, now);
        let prefixed = json!({"annotations": {
            "flannel.alpha.coreos.com/public-ip": "192.0.2.1", "flannel.alpha.coreos.com/backend-type": "vxlan",
        }});
        assert_eq!(written(&node, false), Some(json!({ "metadata": prefixed })));
        node.flannel.insert("public-ip".into(), "192.0.2.1".into());
        let one = json!({"annotations": {"flannel.alpha.coreos.com/backend-type": "vxlan"}});
        assert_eq!(written(&node, false), Some(json!({ "metadata": one })));
        node.flannel.insert("backend-type".into(), "vxlan".into());
        // What others wrote there is theirs.
        node.flannel
            .insert("public-ip-overwrite".into(), "198.51.100.7".into());
        assert_eq!(written(&node, false), None);
        let patch = written(&node, true).expect("the condition");
        assert_eq!(patch["status"]["conditions"][0]["status"], "False");
        assert_eq!(
            patch["status"]["conditions"][0]["lastTransitionTime"],
            "2023-11-14T22:13:20Z"
        );
        assert_eq!(patch.get("metadata"), None);
        node.network_available = true;
        assert_eq!(written(&node, true), None);
    }
}
