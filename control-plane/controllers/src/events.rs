//! Events: what a controller did, told to whoever asks `kubectl describe`.
//!
//! They are written behind the controllers' backs by one task, and dropped when it cannot keep up: an event
//! is never worth a delay. The same thing told again within ten minutes raises the first event's count.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;

use crate::FIELD_MANAGER;

/// How many events may wait.
const BACKLOG: usize = 4096;
/// How long the same event is counted up rather than written anew (upstream's interval).
const AGGREGATE_FOR: Duration = Duration::from_secs(600);
/// How many events are remembered for that.
const REMEMBERED: usize = 4096;

/// Whether an event reports the normal course of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

/// One event to tell.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Told {
    pub about: ObjectReference,
    pub severity: Severity,
    pub reason: &'static str,
    pub message: String,
    pub component: &'static str,
}

/// Where controllers leave their events.
#[derive(Clone)]
pub(crate) struct Recorder(mpsc::Sender<Told>);

impl Recorder {
    /// A recorder, and the end from which [`write_events`] takes.
    pub fn new() -> (Self, mpsc::Receiver<Told>) {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        (Self(sender), receiver)
    }

    /// Tells that something normal happened to `object`.
    pub fn normal<K: Resource<DynamicType = ()>>(
        &self,
        component: &'static str,
        object: &K,
        reason: &'static str,
        message: String,
    ) {
        self.tell(component, object, Severity::Normal, reason, message);
    }

    /// Tells that something went wrong with `object`.
    pub fn warning<K: Resource<DynamicType = ()>>(
        &self,
        component: &'static str,
        object: &K,
        reason: &'static str,
        message: String,
    ) {
        self.tell(component, object, Severity::Warning, reason, message);
    }

    /// Tells of `object`.
    pub fn tell<K: Resource<DynamicType = ()>>(
        &self,
        component: &'static str,
        object: &K,
        severity: Severity,
        reason: &'static str,
        message: String,
    ) {
        let told = Told {
            about: object.object_ref(&()),
            severity,
            reason,
            message,
            component,
        };
        if self.0.try_send(told).is_err() {
            tracing::debug!(reason, "event dropped: the backlog is full");
        }
    }
}

type Sameness = (Option<String>, Option<String>, &'static str, String);

struct Remembered {
    namespace: String,
    name: String,
    count: i32,
    last: Timestamp,
}

/// Writes events for ever.
pub(crate) async fn write_events(client: Client, mut told: mpsc::Receiver<Told>) {
    let mut remembered: HashMap<Sameness, Remembered> = HashMap::new();
    while let Some(told) = told.recv().await {
        let now = Timestamp::now();
        if remembered.len() > REMEMBERED {
            remembered.retain(|_, event| is_recent(event.last, now));
            if remembered.len() > REMEMBERED {
                remembered.clear();
            }
        }
        let sameness = (
            told.about.uid.clone(),
            told.about.name.clone(),
            told.reason,
            told.message.clone(),
        );
        let known = remembered
            .get_mut(&sameness)
            .filter(|event| is_recent(event.last, now));
        let written = match known {
            Some(event) => {
                event.count += 1;
                event.last = now;
                count_up(&client, event).await
            }
            None => {
                let event = event(&told, now);
                let namespace = event.metadata.namespace.clone().unwrap_or_default();
                let name = event.metadata.name.clone().unwrap_or_default();
                remembered.insert(
                    sameness.clone(),
                    Remembered {
                        namespace: namespace.clone(),
                        name,
                        count: 1,
                        last: now,
                    },
                );
                let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
                api.create(&PostParams::default(), &event).await.map(drop)
            }
        };
        if let Err(error) = written {
            remembered.remove(&sameness);
            tracing::debug!(reason = told.reason, %error, "event not written");
        }
    }
}

fn is_recent(last: Timestamp, now: Timestamp) -> bool {
    now.duration_since(last).unsigned_abs() < AGGREGATE_FOR
}

async fn count_up(client: &Client, event: &Remembered) -> kube::Result<()> {
    let api: Api<Event> = Api::namespaced(client.clone(), &event.namespace);
    let patch = Patch::Merge(json!({ "count": event.count, "lastTimestamp": Time(event.last) }));
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    api.patch(&event.name, &params, &patch).await.map(drop)
}

/// Upstream's form: named after its object and the nanosecond, in its object's namespace (`default` for
/// cluster-wide objects), with both the old `source` and the newer `reportingComponent`.
fn event(told: &Told, now: Timestamp) -> Event {
    let namespace = told
        .about
        .namespace
        .clone()
        .unwrap_or_else(|| "default".to_owned());
    let object = told.about.name.as_deref().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{object}.{:x}", now.as_nanosecond())),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        involved_object: told.about.clone(),
        type_: Some(format!("{:?}", told.severity)),
        reason: Some(told.reason.to_owned()),
        message: Some(told.message.clone()),
        source: Some(EventSource {
            component: Some(told.component.to_owned()),
            host: None,
        }),
        reporting_component: Some(told.component.to_owned()),
        reporting_instance: Some(String::new()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    }
}
