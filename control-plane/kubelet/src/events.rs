//! Events on pods and the node (`core/v1`), equal ones counted in one object.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;

use crate::pod::status::whole_seconds;

/// How many events wait for the API server; more are dropped, events being advice only.
const QUEUE: usize = 256;
/// How many different events are remembered for counting.
const REMEMBERED: usize = 1024;

/// Whether something went as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// It did.
    Normal,
    /// It did not.
    Warning,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Occurrence {
    object_kind: &'static str,
    namespace: String,
    name: String,
    uid: String,
    field_path: Option<String>,
    event_type: EventType,
    reason: &'static str,
    message: String,
}

/// Sends events without waiting.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: mpsc::Sender<Occurrence>,
}

impl Recorder {
    /// Starts the task that writes them; it ends when every recorder is dropped.
    pub fn start(client: kube::Client, node: String) -> (Self, tokio::task::JoinHandle<()>) {
        let (queue, occurrences) = mpsc::channel(QUEUE);
        (Self { queue }, tokio::spawn(write_all(client, node, occurrences)))
    }

    /// On a pod.
    pub fn pod(&self, pod: &Pod, event_type: EventType, reason: &'static str, message: impl Into<String>) {
        self.about(pod, None, event_type, reason, message.into());
    }

    /// On a container of a pod.
    pub fn container(
        &self,
        pod: &Pod,
        container: &str,
        event_type: EventType,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let init = pod
            .spec
            .iter()
            .flat_map(|spec| spec.init_containers.iter().flatten());
        let list = if init.into_iter().any(|one| one.name == container) {
            "initContainers"
        } else {
            "containers"
        };
        let field = format!("spec.{list}{{{container}}}");
        self.about(pod, Some(field), event_type, reason, message.into());
    }

    /// On the node.
    pub fn node(&self, node: &Node, event_type: EventType, reason: &'static str, message: impl Into<String>) {
        self.send(Occurrence {
            object_kind: "Node",
            namespace: "default".to_owned(),
            name: node.metadata.name.clone().unwrap_or_default(),
            // Kubernetes' kubelet uses the node's name here, and `kubectl describe node` looks for it.
            uid: node.metadata.name.clone().unwrap_or_default(),
            field_path: None,
            event_type,
            reason,
            message: message.into(),
        });
    }

    fn about(
        &self,
        pod: &Pod,
        field_path: Option<String>,
        event_type: EventType,
        reason: &'static str,
        message: String,
    ) {
        self.send(Occurrence {
            object_kind: "Pod",
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            field_path,
            event_type,
            reason,
            message,
        });
    }

    fn send(&self, occurrence: Occurrence) {
        tracing::debug!(
            object = occurrence.name,
            reason = occurrence.reason,
            message = occurrence.message,
            "event"
        );
        if self.queue.try_send(occurrence).is_err() {
            tracing::warn!("event dropped, the API server is slow or away");
        }
    }
}

async fn write_all(client: kube::Client, node: String, mut occurrences: mpsc::Receiver<Occurrence>) {
    let mut counts: HashMap<Occurrence, (String, i32)> = HashMap::new();
    while let Some(occurrence) = occurrences.recv().await {
        let api: Api<Event> = Api::namespaced(client.clone(), &occurrence.namespace);
        let now = whole_seconds(Timestamp::now());
        if counts.len() > REMEMBERED {
            counts.clear();
        }
        if let Some((name, count)) = counts.get_mut(&occurrence) {
            *count += 1;
            let patch = Patch::Merge(json!({ "count": *count, "lastTimestamp": now }));
            if api.patch(name, &PatchParams::default(), &patch).await.is_ok() {
                continue;
            }
        }
        let event = event_of(&occurrence, &node, now);
        let name = event.metadata.name.clone().unwrap_or_default();
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                counts.insert(occurrence, (name, 1));
            }
            Err(error) => tracing::warn!(%error, reason = occurrence.reason, "event not written"),
        }
    }
}

fn event_of(occurrence: &Occurrence, node: &str, now: Time) -> Event {
    let Occurrence {
        object_kind,
        namespace,
        name,
        uid,
        field_path,
        event_type,
        reason,
        message,
    } = occurrence;
    // Events of one second are shown in the order of their names.
    let suffix = Timestamp::now().as_nanosecond();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{suffix:x}")),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some((*object_kind).to_owned()),
            name: Some(name.clone()),
            namespace: (*object_kind == "Pod").then(|| namespace.clone()),
            uid: Some(uid.clone()),
            field_path: field_path.clone(),
            ..ObjectReference::default()
        },
        type_: Some(
            match event_type {
                EventType::Normal => "Normal",
                EventType::Warning => "Warning",
            }
            .to_owned(),
        ),
        reason: Some((*reason).to_owned()),
        message: Some(message.clone()),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        source: Some(EventSource {
            component: Some("kubelet".to_owned()),
            host: Some(node.to_owned()),
        }),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}
