//! What is known of a node, beside what its kernel has: it can be kept, and asked elsewhere.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use model::{NodeName, Snapshot};
use overlay::plan::Plan;
use proxy::plan::NodeContext;
use serde::{Deserialize, Serialize};

use super::PodHere;
use super::vpc::VpcWays;

/// What an agent knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// Its node.
    pub node: NodeName,
    /// The cluster.
    #[serde(with = "as_changes")]
    pub snapshot: Arc<Snapshot>,
    /// What plans are made by; none before the proxy's first sync, or where there is none.
    pub context: Option<NodeContext>,
    /// This node's pods.
    pub pods: Vec<PodHere>,
    /// Whose addresses were that are nobody's any more, and until when.
    pub former: BTreeMap<IpAddr, String>,
    /// What the kernel shall have for the pod network.
    pub network: Option<Arc<Plan>>,
    /// How pods leave whose addresses are of an AWS VPC; none where they have others, or it is not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vpc: Option<VpcWays>,
    /// Where the socket hook is pinned; none where there shall be none.
    pub pin_dir: Option<PathBuf>,
    /// Why the packet rules are not read.
    pub unread_rules: Option<String>,
}

/// What can be told of a node without its agent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WithoutAgent {
    /// This node's pods, as the agent has written them down.
    pub pods: Vec<PodHere>,
    /// Where the socket hook is pinned, as this process sees it.
    pub pin_dir: PathBuf,
    /// Why what the kernel has may not be the answer.
    pub doubt: Option<String>,
    /// What else somebody should know.
    pub notes: Vec<String>,
}

/// A snapshot as the edits that make it.
mod as_changes {
    use std::sync::Arc;

    use model::{Change, Snapshot};
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(snapshot: &Snapshot, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(snapshot.as_changes())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Snapshot>, D::Error> {
        let mut snapshot = Snapshot::default();
        for change in Vec::<Change>::deserialize(deserializer)? {
            snapshot.apply(change);
        }
        Ok(Arc::new(snapshot))
    }
}
