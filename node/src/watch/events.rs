//! Events: what whoever looks at an object with kubectl shall see of it, without this node's logs.
//!
//! An Event has a name that follows from what it says, so that there is one of it however often it is said: by the
//! next attempt, by the next agent, and, where it is true on every node alike, by the other nodes. They are advice:
//! nobody waits for them, few are written at a time, and those beyond are dropped, since logs and metrics have all.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Event, EventSource, Namespace, Node, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{NetworkPolicy, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::core::Status;
use kube::{Client, Resource};
use model::{Kind, NodeName, ObjectName, with_causes};
use serde::de::DeserializeOwned;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use super::client::{ApiSource, ConnectError, Connection};
use crate::backoff::Backoff;

/// Who tells it, in the Event.
const COMPONENT: &str = "causeway";

/// How many wait for the API server.
const QUEUE: usize = 64;

/// How many are written at once, and how long until one more may be: a map that is full concerns thousands of
/// Services on each of thousands of nodes.
const BURST: u32 = 25;
const ONE_MORE: Duration = Duration::from_secs(10);

/// Delays before what the API server did not take is tried again.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// For how long one of them is tried while others wait and are dropped.
const LONGEST_TRIED: Duration = Duration::from_secs(180);

/// Bytes of `note` (`events/v1`: "up to 1kB"), and of the object's name in the Event's.
const LONGEST_NOTE: usize = 1024;
const LONGEST_NAME: usize = 200;

/// Where what is told is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// On this node; another may tell the same of itself.
    ThisNode,
    /// Wherever the object is read: the first that tells it does so for all.
    Everywhere,
}

/// Kinds of objects that are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// One of the snapshot.
    Watched(Kind),
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Watched(kind) => kind.name(),
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            Self::Watched(Kind::EndpointSlice) => "discovery.k8s.io/v1",
            Self::Watched(Kind::ServiceCidr) | Self::NetworkPolicy => "networking.k8s.io/v1",
            Self::Watched(Kind::Service | Kind::Node | Kind::Namespace | Kind::Pod) => "v1",
        }
    }
}

/// Something is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Kind of the object.
    pub subject: Subject,
    /// The object. The namespace is empty for kinds that have none.
    pub object: ObjectName,
    /// Where it is true.
    pub scope: Scope,
    /// One word for programs: `FailedToProgram`.
    pub reason: &'static str,
    /// A sentence for people.
    pub note: String,
}

/// Takes what is to be told, and never waits. One made by `default` tells nobody.
#[derive(Clone, Debug, Default)]
pub struct Events {
    queue: Option<mpsc::Sender<Notice>>,
}

/// What waits to be written.
#[derive(Clone, Debug)]
pub struct Notices {
    queue: Arc<Mutex<mpsc::Receiver<Notice>>>,
}

impl Events {
    /// Both ends of the queue.
    #[must_use]
    pub fn queue() -> (Self, Notices) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let notices = Notices {
            queue: Arc::new(Mutex::new(receiver)),
        };
        (Self { queue: Some(sender) }, notices)
    }

    /// Tells it, unless too much waits already.
    pub fn tell(&self, notice: Notice) {
        let Some(queue) = &self.queue else { return };
        if let Err(error) = queue.try_send(notice) {
            tracing::debug!(%error, "event dropped");
        }
    }
}

impl Notices {
    /// What waits, in order, without waiting.
    #[cfg(test)]
    pub fn take(&self) -> Vec<Notice> {
        let mut queue = self.queue.try_lock().expect("nobody else takes them");
        std::iter::from_fn(|| queue.try_recv().ok()).collect()
    }

    /// Writes them until shutdown; `told` hears of each attempt what came of it.
    pub async fn write(
        self,
        source: ApiSource,
        node: NodeName,
        told: impl Fn(Result<(), &str>),
        shutdown: CancellationToken,
    ) {
        shutdown
            .run_until_cancelled(self.write_all(source, node, told))
            .await;
    }

    async fn write_all(self, source: ApiSource, node: NodeName, told: impl Fn(Result<(), &str>)) {
        let mut queue = self.queue.lock().await;
        let mut budget = Budget::full(Instant::now());
        let mut connection = Connection::to(&source);
        while let Some(notice) = queue.recv().await {
            if !budget.spend(Instant::now()) {
                tracing::debug!(?notice, "event dropped, too many at once");
                continue;
            }
            let mut attempts = Attempts::new(Instant::now());
            loop {
                let error = match write_with(&mut connection, &node, &notice).await {
                    Ok(Outcome::Written) => break told(Ok(())),
                    Ok(Outcome::Needless) => break,
                    Err(error) => error,
                };
                told(Err(&with_causes(&error)));
                if !attempts.go_on_after(&error, Instant::now()) {
                    tracing::debug!(?notice, "event given up");
                    break;
                }
                tokio::time::sleep(connection.failed(&mut attempts.backoff)).await;
            }
        }
    }
}

/// Attempts at one notice.
struct Attempts {
    backoff: Backoff,
    began: Instant,
}

impl Attempts {
    const fn new(now: Instant) -> Self {
        Self {
            backoff: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
            began: now,
        }
    }

    /// Whether there shall be another one.
    fn go_on_after(&self, error: &WriteError, now: Instant) -> bool {
        let is_early = now.saturating_duration_since(self.began) < LONGEST_TRIED;
        is_early && error.may_pass()
    }
}

/// What became of a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The Event is there.
    Written,
    /// Nobody would look: the object is gone, or its namespace is about to be.
    Needless,
}

/// Why an Event was not written.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("connect for events")]
    Connect(#[source] ConnectError),
    #[error("write event about {} {object}", subject.name())]
    Request {
        subject: Subject,
        object: ObjectName,
        #[source]
        source: kube::Error,
    },
}

impl WriteError {
    /// Whether another attempt may succeed: what the API server refuses for good is not asked again.
    fn may_pass(&self) -> bool {
        match self {
            Self::Request {
                source: kube::Error::Api(status),
                ..
            } => status.code == 401 || status.code == 429 || status.code >= 500,
            Self::Request { .. } | Self::Connect(_) => true,
        }
    }
}

async fn write_with(
    connection: &mut Connection<'_>,
    node: &NodeName,
    notice: &Notice,
) -> Result<Outcome, WriteError> {
    let client = connection.client().await.map_err(WriteError::Connect)?;
    let written = write(&client, node, notice).await;
    written.map_err(|source| WriteError::Request {
        subject: notice.subject,
        object: notice.object.clone(),
        source,
    })
}

async fn write(client: &Client, node: &NodeName, notice: &Notice) -> kube::Result<Outcome> {
    let Some(uid) = uid_of(client, notice).await? else {
        return Ok(Outcome::Needless);
    };
    let event = event_of(notice, node, uid, Timestamp::now());
    let api: Api<Event> = Api::namespaced(
        client.clone(),
        event.metadata.namespace.as_deref().unwrap_or_default(),
    );
    match api.create(&PostParams::default(), &event).await {
        Err(kube::Error::Api(status)) if is_namespace_ending(&status) => return Ok(Outcome::Needless),
        Err(kube::Error::Api(status)) if status.code == 409 && notice.scope == Scope::ThisNode => {
            let name = event.metadata.name.as_deref().unwrap_or_default();
            let again = Patch::Merge(json!({ "lastTimestamp": event.last_timestamp }));
            api.patch(name, &PatchParams::default(), &again).await?;
        }
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        other => drop(other?),
    }
    Ok(Outcome::Written)
}

/// In a namespace that is being deleted nothing may be created: a 403 as well, but none that tells of permissions.
fn is_namespace_ending(status: &Status) -> bool {
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 403 && causes.any(|cause| cause.reason == "NamespaceTerminating")
}

/// By its UID `kubectl describe` finds the Events of an object. Asked for by a list: who may watch may list.
async fn uid_of(client: &Client, notice: &Notice) -> kube::Result<Option<String>> {
    let ObjectName { namespace, name } = &notice.object;
    let kind = match notice.subject {
        Subject::Watched(kind) => kind,
        Subject::NetworkPolicy => return uid(namespaced::<NetworkPolicy>(client, namespace), name).await,
    };
    match kind {
        Kind::Service => uid(namespaced::<Service>(client, namespace), name).await,
        Kind::EndpointSlice => uid(namespaced::<EndpointSlice>(client, namespace), name).await,
        Kind::Pod => uid(namespaced::<Pod>(client, namespace), name).await,
        Kind::Node => uid(Api::<Node>::all(client.clone()), name).await,
        Kind::Namespace => uid(Api::<Namespace>::all(client.clone()), name).await,
        Kind::ServiceCidr => uid(Api::<ServiceCIDR>::all(client.clone()), name).await,
    }
}

fn namespaced<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
    client: &Client,
    namespace: &str,
) -> Api<K> {
    Api::namespaced(client.clone(), namespace)
}

async fn uid<K: Clone + Debug + DeserializeOwned>(api: Api<K>, name: &str) -> kube::Result<Option<String>> {
    let only = ListParams::default().fields(&format!("metadata.name={name}"));
    let objects = api.list_metadata(&only).await?.items.into_iter();
    let mut objects = objects.filter(|object| object.metadata.name.as_deref() == Some(name));
    Ok(objects
        .next()
        .map(|object| object.metadata.uid.unwrap_or_default()))
}

fn event_of(notice: &Notice, node: &NodeName, uid: String, now: Timestamp) -> Event {
    let Notice {
        subject,
        object: ObjectName { namespace, name },
        scope,
        reason,
        note,
    } = notice;
    let teller = (*scope == Scope::ThisNode).then_some(node);
    let teller = teller.map(|node| node.0.as_ref()).unwrap_or_default();
    let hash = hash_of([&uid, teller, reason, note]);
    // Kubernetes' times without fractions (RFC 3339).
    let now = Timestamp::from_second(now.as_second()).ok().map(Time);
    Event {
        metadata: ObjectMeta {
            name: Some(event_name(name, hash)),
            // Those of objects without a namespace are in `default`, as kubelet's are.
            namespace: Some(
                if namespace.is_empty() {
                    "default"
                } else {
                    namespace
                }
                .to_owned(),
            ),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(subject.api_version().to_owned()),
            kind: Some(subject.name().to_owned()),
            name: Some(name.to_string()),
            namespace: (!namespace.is_empty()).then(|| namespace.to_string()),
            uid: Some(uid),
            ..ObjectReference::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some((*reason).to_owned()),
        message: Some(beginning(note, LONGEST_NOTE).to_owned()),
        count: Some(1),
        first_timestamp: now.clone(),
        last_timestamp: now,
        source: Some(EventSource {
            component: Some(COMPONENT.to_owned()),
            host: Some(node.0.to_string()),
        }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(node.0.to_string()),
        ..Event::default()
    }
}

/// A part of a name between dots ends in a letter or a digit (RFC 1123), also where it is cut.
fn event_name(object: &str, hash: u64) -> String {
    let object = beginning(object, LONGEST_NAME).trim_end_matches(['-', '.']);
    format!("{object}.{hash:016x}")
}

/// The same in every release: nodes of several releases, and one node before and after an update, tell the same.
fn hash_of(texts: [&str; 4]) -> u64 {
    let mut hasher = Sha256::new();
    for text in texts {
        hasher.update(text.len().to_be_bytes());
        hasher.update(text);
    }
    let hash: [u8; 32] = hasher.finalize().into();
    hash.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

fn beginning(text: &str, longest: usize) -> &str {
    text.get(..text.floor_char_boundary(longest)).unwrap_or(text)
}

/// How many may be written.
struct Budget {
    left: u32,
    /// When the latest that is counted in `left` came.
    since: Instant,
}

impl Budget {
    const fn full(now: Instant) -> Self {
        Self {
            left: BURST,
            since: now,
        }
    }

    /// Takes one out, if there is one.
    fn spend(&mut self, now: Instant) -> bool {
        let waited = now.saturating_duration_since(self.since).as_secs() / ONE_MORE.as_secs();
        let more = u32::try_from(waited).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(more).min(BURST);
        self.since = if self.left == BURST {
            now
        } else {
            self.since + ONE_MORE * more
        };
        let has_one = self.left > 0;
        self.left = self.left.saturating_sub(1);
        has_one
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use ::tests::fake_api::FakeApi;

    use super::*;

    fn notice(scope: Scope, note: &str) -> Notice {
        Notice {
            subject: Subject::Watched(Kind::Service),
            object: ObjectName::new("default", "web"),
            scope,
            reason: "FailedToProgram",
            note: note.to_owned(),
        }
    }

    fn name_of(notice: &Notice, node: &str, uid: &str, second: i64) -> String {
        let now = Timestamp::from_second(second).expect("in range");
        let event = event_of(notice, &node.into(), uid.to_owned(), now);
        event.metadata.name.expect("it has one")
    }

    #[test]
    fn the_same_said_again_has_the_same_name_and_anything_else_another() {
        let here = notice(Scope::ThisNode, "map FRONTENDS is full");
        let name = name_of(&here, "node-1", "1", 1);
        assert!(name.starts_with("web."), "{name}");
        assert_eq!(name, name_of(&here, "node-1", "1", 2), "later");
        assert_ne!(name, name_of(&here, "node-2", "1", 1), "of another node");
        assert_ne!(
            name,
            name_of(&here, "node-1", "2", 1),
            "of an object that was made anew"
        );
        let other = notice(Scope::ThisNode, "map SLOTS is full");
        assert_ne!(name, name_of(&other, "node-1", "1", 1));
        let everywhere = notice(Scope::Everywhere, "spec.ports[0]: is no port");
        let name = name_of(&everywhere, "node-1", "1", 1);
        assert_eq!(name, name_of(&everywhere, "node-2", "1", 1));
    }

    #[test]
    fn names_are_the_same_in_every_release_and_are_names() {
        // By another implementation: sha256 over [length:8 be] and bytes of each text.
        assert_eq!(hash_of(["a", "b", "c", "d"]), 0xd576_b8b5_3d6d_1c38);
        assert_ne!(hash_of(["ab", "", "c", "d"]), hash_of(["a", "b", "c", "d"]));
        let rows = [
            ("web".to_owned(), "web".to_owned()),
            ("a".repeat(300), "a".repeat(200)),
            (
                format!("{}-.-{}", "a".repeat(198), "b".repeat(9)),
                "a".repeat(198),
            ),
        ];
        for (object, beginning) in rows {
            assert_eq!(event_name(&object, 0x1f), format!("{beginning}.000000000000001f"));
        }
    }

    fn refused(code: u16) -> WriteError {
        let status = Status::failure("told to fail", "").with_code(code);
        failed(kube::Error::Api(status.boxed()))
    }

    fn failed(source: kube::Error) -> WriteError {
        WriteError::Request {
            subject: Subject::Watched(Kind::Service),
            object: ObjectName::new("default", "web"),
            source,
        }
    }

    #[test]
    fn what_may_pass_is_tried_for_three_minutes_and_what_is_refused_for_good_once() {
        let start = Instant::now();
        let unreadable = failed(kube::Error::LinesCodecMaxLineLengthExceeded);
        let rows = [
            (refused(403), [false, false]),
            (refused(422), [false, false]),
            (refused(401), [true, false]),
            (refused(429), [true, false]),
            (refused(503), [true, false]),
            (unreadable, [true, false]),
        ];
        for (error, expected) in rows {
            let tried = [179, 180].map(|seconds| {
                let now = start + Duration::from_secs(seconds);
                Attempts::new(start).go_on_after(&error, now)
            });
            assert_eq!(tried, expected, "{error:?}");
        }
    }

    #[test]
    fn a_namespace_that_ends_is_no_lack_of_permission() {
        let status = |cause: &str| -> Status {
            let status =
                json!({"code": 403, "reason": "Forbidden", "details": {"causes": [{"reason": cause}]}});
            serde_json::from_value(status).expect("a status")
        };
        assert!(is_namespace_ending(&status("NamespaceTerminating")));
        assert!(!is_namespace_ending(&status("Other")));
        assert!(!is_namespace_ending(
            &Status::failure("no", "Forbidden").with_code(403)
        ));
    }

    #[tokio::test]
    async fn the_part_works_again_once_something_was_written_and_no_sooner() {
        let api = FakeApi::start().expect("loopback is there");
        api.put(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "web", "uid": "1"},
        }));
        api.behave(|behaviour| behaviour.fail_next = vec![403, 403]);
        let kubeconfig = std::env::temp_dir().join(format!("cwt-events-{}", std::process::id()));
        api.write_kubeconfig(&kubeconfig)
            .expect("temporary directory is writable");
        let source = ApiSource {
            credentials: Some(kubeconfig.clone()).into(),
            ..ApiSource::default()
        };
        let (events, notices) = Events::queue();
        let gone = Notice {
            object: ObjectName::new("default", "gone"),
            ..notice(Scope::ThisNode, "third")
        };
        let here = |note| notice(Scope::ThisNode, note);
        for notice in [here("first"), here("second"), gone, here("fourth")] {
            events.tell(notice);
        }
        drop(events);
        let told = RefCell::new(Vec::new());
        let tell = |outcome: Result<(), &str>| told.borrow_mut().push(outcome.is_ok());
        let write = notices.write(source, "node-1".into(), tell, CancellationToken::new());
        let written = tokio::time::timeout(Duration::from_secs(30), write).await;
        let _ = std::fs::remove_file(kubeconfig); // of temporary files
        written.expect("all are dealt with");
        assert_eq!(told.into_inner(), [false, false, true]);
        let events = api.objects("/api/v1/events");
        let messages: Vec<_> = events.iter().map(|event| &event["message"]).collect();
        assert_eq!(messages, ["fourth"]);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let long = notice(Scope::ThisNode, &"é".repeat(LONGEST_NOTE));
        let event = event_of(&long, &"node-1".into(), String::new(), Timestamp::UNIX_EPOCH);
        assert_eq!(event.message.expect("it has one").len(), LONGEST_NOTE);
    }

    #[test]
    fn a_burst_is_written_and_then_one_each_ten_seconds() {
        let start = Instant::now();
        let mut budget = Budget::full(start);
        let written = |budget: &mut Budget, at: u64| {
            let now = start + Duration::from_secs(at);
            (0..100).filter(|_| budget.spend(now)).count()
        };
        let rows = [(0, 25), (9, 0), (10, 1), (25, 1), (30, 1), (31, 0), (600, 25)];
        for (at, expected) in rows {
            assert_eq!(written(&mut budget, at), expected, "after {at} s");
        }
    }
}
