//! What the kubelet's own API tells: each pod and its containers, published by the pods' workers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

/// A container's logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerLogs {
    /// Directory with `<attempt>.log`.
    pub directory: PathBuf,
    /// The latest attempt; `None` before the first.
    pub attempt: Option<u32>,
    /// It still runs.
    pub running: bool,
    /// Why it waits, as the API tells it; empty = it does not.
    pub waiting: String,
}

/// A pod of this node.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The pod as last seen, with the status that this kubelet knows.
    pub pod: Pod,
    /// Its containers by name.
    pub containers: BTreeMap<String, ContainerLogs>,
}

/// All pods of this node, by uid.
#[derive(Clone, Debug)]
pub struct Board {
    entries: watch::Sender<BTreeMap<String, Entry>>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            entries: watch::Sender::new(BTreeMap::new()),
        }
    }
}

impl Board {
    /// Puts or replaces a pod.
    pub fn post(&self, uid: &str, entry: Entry) {
        self.entries.send_modify(|entries| {
            entries.insert(uid.to_owned(), entry);
        });
    }

    /// Takes a pod away.
    pub fn remove(&self, uid: &str) {
        self.entries.send_modify(|entries| {
            entries.remove(uid);
        });
    }

    /// All pods.
    pub fn pods(&self) -> Vec<Pod> {
        self.entries
            .borrow()
            .values()
            .map(|entry| entry.pod.clone())
            .collect()
    }

    /// Follows changes.
    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<String, Entry>> {
        self.entries.subscribe()
    }

    /// The logs of a container, by the names of its pod.
    pub fn logs(
        entries: &BTreeMap<String, Entry>,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Option<ContainerLogs> {
        let named = |entry: &&Entry| {
            entry.pod.metadata.namespace.as_deref() == Some(namespace)
                && entry.pod.metadata.name.as_deref() == Some(pod)
        };
        entries.values().find(named)?.containers.get(container).cloned()
    }
}
