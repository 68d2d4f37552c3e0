//! NetworkPolicies: nothing here enforces them, and whoever relies on one shall hear of it.
//!
//! Only their metadata is read, and kept beside the snapshot: no data plane needs them.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use model::{ObjectName, with_causes};
use tokio::time::{Instant, sleep, sleep_until};

use super::client::{ApiSource, ConnectError, Connection};
use super::events::{Events, Notice, Scope, Subject};
use super::stream::is_denied;
use crate::backoff::Backoff;

/// Delays before what failed is tried again.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// The same where the server does not let us list them.
const LONGEST_WITHOUT: Duration = Duration::from_secs(300);

/// A watch that stood this long before it failed was good.
const STEADY: Duration = Duration::from_secs(60);

/// Events that are written at once, and the time between further ones: a fraction of what may be written, so that
/// those of Services are never dropped because of these.
const TOLD_AT_ONCE: u32 = 5;
const BETWEEN: Duration = Duration::from_secs(20);

/// What is said of each.
const REASON: &str = "NotEnforced";
const NOTE: &str = "not enforced by this network: pods are reached as if this policy were not there";

/// The NetworkPolicies of the cluster, for reports.
#[derive(Clone, Debug, Default)]
pub struct NetworkPolicies {
    known: Arc<Mutex<Option<BTreeSet<ObjectName>>>>,
}

/// Why they are not watched.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("connect for NetworkPolicies")]
    Connect(#[source] ConnectError),
    #[error("watch NetworkPolicies")]
    Watch(#[source] watcher::Error),
}

impl NetworkPolicies {
    /// All of them. None where they were not listed yet, or may not be.
    #[must_use]
    pub fn known(&self) -> Option<BTreeSet<ObjectName>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, policies: Option<BTreeSet<ObjectName>>) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = policies;
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeSet<ObjectName>) -> T) -> T {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        change(known.get_or_insert_default())
    }

    /// Watches them until cancelled, and tells of each to `events`. `told` hears how that goes; that the server does
    /// not let us list or watch them is no failure, and is logged once.
    pub async fn watch(self, source: &ApiSource, events: Events, told: impl Fn(Result<(), &str>)) {
        let mut watching = Watching::new(self, events, told);
        let mut connection = Connection::to(source);
        loop {
            let began = Instant::now();
            let error = match connection.client().await {
                Ok(client) => watching.follow(client).await,
                Err(error) => WatchError::Connect(error),
            };
            let backoff = watching.failed(&error, began.elapsed());
            sleep(connection.failed(backoff)).await;
        }
    }
}

/// Where the watch stands.
struct Watching<F> {
    policies: NetworkPolicies,
    /// What the list that began has so far.
    listed: BTreeSet<ObjectName>,
    teller: Teller,
    told: F,
    backoff: Backoff,
    /// While the server denies them.
    without: Option<Backoff>,
}

impl<F: Fn(Result<(), &str>)> Watching<F> {
    fn new(policies: NetworkPolicies, events: Events, told: F) -> Self {
        Self {
            policies,
            listed: BTreeSet::new(),
            teller: Teller::new(events),
            told,
            backoff: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
            without: None,
        }
    }

    async fn follow(&mut self, client: Client) -> WatchError {
        let api = Api::<PartialObjectMeta<NetworkPolicy>>::all(client);
        let mut events = pin!(watcher(api, watcher::Config::default()));
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => self.take(event),
                    Some(Err(error)) => return WatchError::Watch(error),
                    None => return WatchError::Watch(watcher::Error::NoResourceVersion),
                },
                () = sleep_until(self.teller.next), if !self.teller.pending.is_empty() => {
                    self.teller.tell_one(Instant::now());
                }
            }
        }
    }

    fn take(&mut self, event: Event<PartialObjectMeta<NetworkPolicy>>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(policy) => {
                self.listed.insert(name_of(&policy));
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                self.teller.keep_to(&listed);
                self.policies.set(Some(listed));
                (self.told)(Ok(()));
            }
            Event::Apply(policy) => {
                self.is_good();
                let name = name_of(&policy);
                if self.policies.change(|known| known.insert(name.clone())) {
                    self.teller.pending.insert(name);
                }
            }
            Event::Delete(policy) => {
                self.is_good();
                let name = name_of(&policy);
                self.policies.change(|known| known.remove(&name));
                self.teller.forget(&name);
            }
        }
    }

    /// The watch works. A list alone does not say so: who may list need not be one who may watch.
    fn is_good(&mut self) {
        self.backoff.reset();
        self.without = None;
    }

    /// How long to wait until the next attempt, after one that took this time.
    fn failed(&mut self, error: &WatchError, after: Duration) -> &mut Backoff {
        if after >= STEADY {
            self.is_good();
        }
        let error_text = with_causes(error);
        if !matches!(error, WatchError::Watch(error) if is_denied(error)) {
            (self.told)(Err(&error_text));
            return &mut self.backoff;
        }
        (self.told)(Ok(()));
        self.policies.set(None);
        self.without.get_or_insert_with(|| {
            tracing::info!(
                error = error_text,
                "NetworkPolicies may not be listed or watched: nobody is told that they are not enforced"
            );
            Backoff::new(FIRST_RETRY, LONGEST_WITHOUT)
        })
    }
}

fn name_of(policy: &PartialObjectMeta<NetworkPolicy>) -> ObjectName {
    let metadata = &policy.metadata;
    ObjectName::new(
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

/// Tells of each policy once, not of all at the same time.
struct Teller {
    events: Events,
    told: BTreeSet<ObjectName>,
    pending: BTreeSet<ObjectName>,
    /// When the next may be told.
    next: Instant,
    at_once: u32,
}

impl Teller {
    fn new(events: Events) -> Self {
        Self {
            events,
            told: BTreeSet::new(),
            pending: BTreeSet::new(),
            next: Instant::now(),
            at_once: TOLD_AT_ONCE,
        }
    }

    /// There are these, and no others.
    fn keep_to(&mut self, known: &BTreeSet<ObjectName>) {
        self.told.retain(|policy| known.contains(policy));
        self.pending = known.difference(&self.told).cloned().collect();
    }

    /// This one is not there any more.
    fn forget(&mut self, policy: &ObjectName) {
        self.told.remove(policy);
        self.pending.remove(policy);
    }

    /// Any of those that wait: nodes that begin together share the work. What another node told is not written again.
    fn tell_one(&mut self, now: Instant) {
        let count = self.pending.len();
        let index = if count > 1 {
            rand::random_range(0..count)
        } else {
            0
        };
        let Some(policy) = self.pending.iter().nth(index).cloned() else {
            return;
        };
        self.pending.remove(&policy);
        self.told.insert(policy.clone());
        self.events.tell(Notice {
            subject: Subject::NetworkPolicy,
            object: policy,
            scope: Scope::Everywhere,
            reason: REASON,
            note: NOTE.to_owned(),
        });
        self.at_once = self.at_once.saturating_sub(1);
        if self.at_once == 0 {
            self.next = now + BETWEEN;
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn policies(names: &[&str]) -> BTreeSet<ObjectName> {
        names
            .iter()
            .map(|name| ObjectName::new("default", *name))
            .collect()
    }

    fn policy(name: &str) -> PartialObjectMeta<NetworkPolicy> {
        let object = serde_json::json!({"metadata": {"namespace": "default", "name": name}});
        serde_json::from_value(object).expect("metadata")
    }

    #[tokio::test]
    async fn a_role_that_may_list_and_not_watch_is_tried_less_and_less_often() {
        let (events, _notices) = Events::queue();
        let mut watching = Watching::new(NetworkPolicies::default(), events, |outcome| {
            assert_eq!(outcome, Ok(()), "a role is no failure");
        });
        let denied = || {
            let status = Status::failure("not allowed", "Forbidden").with_code(403);
            let error = kube::Error::Api(Box::new(status));
            WatchError::Watch(watcher::Error::WatchStartFailed(error))
        };
        let delay = |watching: &mut Watching<_>, after: Duration| {
            let listed = [Event::Init, Event::InitApply(policy("a")), Event::InitDone];
            listed.into_iter().for_each(|event| watching.take(event));
            let delay = watching.failed(&denied(), after).next_delay();
            assert_eq!(watching.policies.known(), None);
            delay
        };
        for full in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            let (full, delay) = (Duration::from_secs(full), delay(&mut watching, Duration::ZERO));
            assert!(full / 2 <= delay && delay <= full, "{delay:?} of {full:?}");
        }
        assert!(delay(&mut watching, STEADY) <= FIRST_RETRY, "the watch stood");
        assert!(delay(&mut watching, Duration::ZERO) >= FIRST_RETRY);
        watching.take(Event::Apply(policy("a")));
        assert!(
            delay(&mut watching, Duration::ZERO) <= FIRST_RETRY,
            "it told something"
        );
    }

    #[tokio::test]
    async fn what_the_watch_tells_is_known_and_told_as_what_is_listed() {
        let (events, notices) = Events::queue();
        let known = NetworkPolicies::default();
        let mut watching = Watching::new(known.clone(), events, |_| {});
        let applied = |name| Event::Apply(policy(name));
        let gone = |name| Event::Delete(policy(name));
        let rows: [(Vec<Event<_>>, &[&str], &[&str]); 6] = [
            (
                vec![Event::Init, Event::InitApply(policy("a")), Event::InitDone],
                &["a"],
                &["a"],
            ),
            (vec![applied("a"), applied("b")], &["a", "b"], &["b"]),
            (vec![applied("c"), gone("c")], &["a", "b"], &[]),
            (vec![gone("a"), gone("unknown")], &["b"], &[]),
            (vec![applied("a"), applied("a")], &["a", "b"], &["a"]),
            (
                vec![Event::Init, Event::InitApply(policy("b")), Event::InitDone],
                &["b"],
                &[],
            ),
        ];
        for (events, expected, told) in rows {
            let row = format!("{events:?}");
            events.into_iter().for_each(|event| watching.take(event));
            while !watching.teller.pending.is_empty() {
                watching.teller.tell_one(Instant::now());
            }
            assert_eq!(known.known(), Some(policies(expected)), "{row}");
            let objects = notices.take().into_iter().map(|notice| notice.object);
            assert_eq!(objects.collect::<BTreeSet<_>>(), policies(told), "{row}");
        }
    }

    #[tokio::test]
    async fn each_policy_is_told_once_and_again_after_it_was_gone() {
        let (events, notices) = Events::queue();
        let mut teller = Teller::new(events);
        let told = |teller: &mut Teller, known: &[&str]| -> BTreeSet<ObjectName> {
            teller.keep_to(&policies(known));
            while !teller.pending.is_empty() {
                teller.tell_one(Instant::now());
            }
            notices.take().into_iter().map(|notice| notice.object).collect()
        };
        assert_eq!(told(&mut teller, &["a", "b"]), policies(&["a", "b"]));
        assert_eq!(told(&mut teller, &["a", "b"]), policies(&[]));
        assert_eq!(told(&mut teller, &["b", "c"]), policies(&["c"]));
        assert_eq!(told(&mut teller, &["a", "b", "c"]), policies(&["a"]));
    }

    #[tokio::test]
    async fn many_policies_leave_room_for_other_events() {
        let (events, notices) = Events::queue();
        let mut teller = Teller::new(events);
        let names: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        teller.keep_to(&policies(&names));
        let start = Instant::now();
        let mut now = start;
        while now <= start + 3 * BETWEEN {
            now = now.max(teller.next);
            teller.tell_one(now);
        }
        assert_eq!(notices.take().len(), TOLD_AT_ONCE as usize + 4);
    }
}
