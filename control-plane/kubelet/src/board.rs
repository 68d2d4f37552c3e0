//! What the kubelet's own API tells: each pod and its containers, published by the pods' workers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

/// How long a request waits for a pod that is not known yet.
const PATIENCE: Duration = Duration::from_secs(2);

/// A container and its logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerLogs {
    /// Directory with `<attempt>.log`.
    pub directory: PathBuf,
    /// The latest attempt; `None` before the first.
    pub attempt: Option<u32>,
    /// What the runtime knows this attempt by.
    pub id: Option<String>,
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

    /// A container, by the names of its pod. A pod that is not known yet gets a moment: it may have come just now, or
    /// the kubelet.
    pub async fn container(&self, namespace: &str, pod: &str, container: &str) -> Option<ContainerLogs> {
        let mut entries = self.subscribe();
        let known = entries.wait_for(|entries| Self::entry(entries, namespace, pod).is_some());
        let _ = tokio::time::timeout(PATIENCE, known).await;
        Self::logs(&self.entries.borrow(), namespace, pod, container)
    }

    /// A pod, by its names.
    pub fn pod<'a>(entries: &'a BTreeMap<String, Entry>, namespace: &str, pod: &str) -> Option<&'a Pod> {
        Self::entry(entries, namespace, pod).map(|entry| &entry.pod)
    }

    /// The logs of a container, by the names of its pod.
    pub fn logs(
        entries: &BTreeMap<String, Entry>,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Option<ContainerLogs> {
        Self::entry(entries, namespace, pod)?
            .containers
            .get(container)
            .cloned()
    }

    fn entry<'a>(entries: &'a BTreeMap<String, Entry>, namespace: &str, pod: &str) -> Option<&'a Entry> {
        entries.values().find(|entry| {
            entry.pod.metadata.namespace.as_deref() == Some(namespace)
                && entry.pod.metadata.name.as_deref() == Some(pod)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_waits_for_a_pod_that_is_to_come() {
        let board = Board::default();
        let logs = ContainerLogs {
            directory: PathBuf::from("/log"),
            attempt: Some(1),
            id: Some("id".to_owned()),
            running: true,
            waiting: String::new(),
        };
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("a".to_owned());
        pod.metadata.name = Some("b".to_owned());
        let containers = BTreeMap::from([("c".to_owned(), logs.clone())]);
        let later = async {
            tokio::task::yield_now().await;
            board.post("uid", Entry { pod, containers });
        };
        let (found, ()) = tokio::join!(board.container("a", "b", "c"), later);
        assert_eq!(found, Some(logs));
        assert_eq!(board.container("a", "b", "other").await, None);
    }
}
