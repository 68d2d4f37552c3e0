//! The scheduler: a node for every pod that has none.
//!
//! One task decides, one pod after the other, on a [`Ledger`] of what runs where. A decision counts in the
//! ledger at once, while its binding is still on its way, so that a burst of pods does not end on one node.
//! Nothing waits for a clock: a pod that found no place is tried again when a node or a pod changes in a way
//! that may help.

mod affinity;
mod filter;
mod ledger;
mod resources;
mod score;
mod topology;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, Namespace, Node, ObjectReference, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, PostParams};
use kube::core::Status;
use model::{NodeName, ObjectName};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::cache::{Change, name_of};
use crate::{Context, Error, pods, selector};
use affinity::Neighbourhood;
pub(crate) use affinity::selects_node;
use filter::Unschedulable;
use ledger::{Ledger, Offer};
pub(crate) use ledger::{NAME_FIELD, node_labels};
use score::{Spread, Surroundings};
use topology::Evenness;

const COMPONENT: &str = "default-scheduler";
/// The scheduler that pods name when they name none.
const NAME: &str = "default-scheduler";
/// How long a pod rests whose binding failed.
const REST_AFTER_FAILURE: Duration = Duration::from_millis(200);

/// Chooses a node for `pod`, or tells for every node why it will not do.
///
/// Among nodes of the same score `seed` chooses, always in the same way.
pub(crate) fn schedule(
    pod: &Pod,
    ledger: &Ledger,
    spread: &Spread,
    seed: u64,
) -> Result<NodeName, Unschedulable> {
    let near = Neighbourhood::of(pod, ledger);
    let evenness = Evenness::of(pod, ledger.nodes());
    let fitting = filter::fitting(pod, ledger, &near, &evenness)?;
    let surroundings = Surroundings {
        spread,
        near: &near,
        evenness: &evenness,
    };
    Ok(score::best(pod, &fitting, &surroundings, seed))
}

/// Runs the scheduler.
pub(crate) async fn run(context: Arc<Context>) -> Result<(), Error> {
    let inbox = Arc::new(Inbox::default());
    let _nodes = context.caches.nodes.subscribe({
        let inbox = Arc::clone(&inbox);
        move |change| inbox.note_node(change)
    });
    let _pods = context.caches.pods.subscribe({
        let inbox = Arc::clone(&inbox);
        move |change| inbox.note_pod(change)
    });
    let _namespaces = context.caches.namespaces.subscribe({
        let inbox = Arc::clone(&inbox);
        move |change| inbox.note_namespace(change)
    });
    let mut scheduler = Scheduler {
        context,
        inbox: Arc::clone(&inbox),
        ledger: Ledger::default(),
        waiting: BTreeMap::new(),
        under_way: JoinSet::new(),
    };
    loop {
        tokio::select! {
            () = inbox.wake.notified() => scheduler.turn(),
            Some(done) = scheduler.under_way.join_next() => scheduler.note(done),
        }
    }
}

/// What changed since the scheduler last looked. Names only: it looks into the caches itself.
#[derive(Default)]
struct Inbox {
    changed: Mutex<Changed>,
    wake: Notify,
}

#[derive(Default)]
struct Changed {
    nodes: BTreeSet<ObjectName>,
    namespaces: BTreeSet<ObjectName>,
    pods: BTreeSet<ObjectName>,
    /// Something changed for the better for pods that wait.
    relief: bool,
}

impl Inbox {
    fn note_node(&self, change: &Change<Node>) {
        let relief = match (&change.old, &change.new) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(old), Some(new)) => Offer::of(old) != Offer::of(new),
        };
        let names = change.states().map(|node| name_of(&**node));
        self.note(|changed| {
            changed.nodes.extend(names);
            changed.relief |= relief;
        });
    }

    fn note_pod(&self, change: &Change<Pod>) {
        // A pod that ends makes room; one that is bound may be whom another wants to be near.
        let relief = match (&change.old, &change.new) {
            (Some(old), None) => pods::node(old).is_some(),
            (Some(old), Some(new)) => {
                pods::is_finished(old) != pods::is_finished(new) || pods::node(old) != pods::node(new)
            }
            (None, _) => false,
        };
        let names = change.states().map(|pod| name_of(&**pod));
        self.note(|changed| {
            changed.pods.extend(names);
            changed.relief |= relief;
        });
    }

    fn note_namespace(&self, change: &Change<Namespace>) {
        let labels = [&change.old, &change.new].map(|one| one.as_ref().map(|one| &one.metadata.labels));
        if labels[0] != labels[1] {
            let names = change.states().map(|namespace| name_of(&**namespace));
            self.note(|changed| {
                changed.namespaces.extend(names);
                changed.relief = true;
            });
        }
    }

    fn note(&self, note: impl FnOnce(&mut Changed)) {
        note(&mut self.changed.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_one();
    }

    fn take(&self) -> Changed {
        std::mem::take(&mut self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A pod that waits for a node.
struct Waiting {
    /// Tried, and found no node.
    stuck: bool,
}

struct Scheduler {
    context: Arc<Context>,
    inbox: Arc<Inbox>,
    ledger: Ledger,
    waiting: BTreeMap<ObjectName, Waiting>,
    under_way: JoinSet<Done>,
}

/// What the API server was asked for, and has answered.
enum Done {
    /// A binding.
    Bound {
        pod: Arc<Pod>,
        outcome: Result<NodeName, kube::Error>,
    },
    /// A report on a pod that has no place.
    Told,
}

impl Scheduler {
    /// Takes in what changed, then tries every pod that has not been tried since something changed for it.
    fn turn(&mut self) {
        let changed = self.inbox.take();
        for name in changed.nodes {
            let node = self.context.caches.nodes.get(&name);
            self.ledger.set_node(&NodeName(name.name), node.as_deref());
        }
        for name in changed.namespaces {
            let namespace = self.context.caches.namespaces.get(&name);
            let labels = namespace.map(|namespace| namespace.metadata.labels.clone().unwrap_or_default());
            self.ledger.set_namespace(&name.name, labels);
        }
        for name in changed.pods {
            self.take_in(name);
        }
        if changed.relief {
            self.waiting
                .values_mut()
                .for_each(|waiting| waiting.stuck = false);
        }
        for name in self.due() {
            self.try_pod(&name);
        }
    }

    fn take_in(&mut self, name: ObjectName) {
        let Some(pod) = self.context.caches.pods.get(&name) else {
            self.waiting.remove(&name);
            self.ledger.remove(&name);
            return;
        };
        if pods::is_finished(&pod) {
            self.waiting.remove(&name);
            self.ledger.remove(&name);
        } else if let Some(node) = pods::node(&pod) {
            self.waiting.remove(&name);
            self.ledger.place(&pod, &NodeName::from(node));
        } else if !is_ours(&pod) {
            self.waiting.remove(&name);
        } else if !self.ledger.holds(&pod) {
            self.waiting.insert(name, Waiting { stuck: false });
        }
    }

    /// The pods to try now, in their turns.
    fn due(&self) -> Vec<ObjectName> {
        let names = self
            .waiting
            .iter()
            .filter(|(_, waiting)| !waiting.stuck)
            .map(|(name, _)| name);
        let mut due: Vec<_> = names
            .filter_map(|name| self.context.caches.pods.get(name))
            .collect();
        due.sort_by_cached_key(|pod| turn(pod));
        due.iter().map(|pod| name_of(&**pod)).collect()
    }

    fn try_pod(&mut self, name: &ObjectName) {
        let Some(pod) = self.context.caches.pods.get(name) else {
            self.waiting.remove(name);
            return;
        };
        let services = self.context.caches.services.list_in(&name.namespace);
        let spread = spread(&pod, &services);
        match schedule(&pod, &self.ledger, &spread, self.context.config.scheduler_seed) {
            Ok(node) => {
                self.waiting.remove(name);
                self.ledger.place(&pod, &node);
                self.under_way.spawn(bind(self.context.clone(), pod, node));
            }
            Err(reasons) => {
                self.waiting.insert(name.clone(), Waiting { stuck: true });
                let context = Arc::clone(&self.context);
                self.under_way.spawn(async move {
                    tell_unschedulable(&context, &pod, &reasons).await;
                    Done::Told
                });
            }
        }
    }

    fn note(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let Ok(Done::Bound { pod, outcome }) = done else {
            return;
        };
        let name = name_of(&*pod);
        match outcome {
            Ok(node) => {
                let message = format!("Successfully assigned {name} to {node}");
                self.context
                    .recorder
                    .normal(COMPONENT, &*pod, "Scheduled", message);
            }
            Err(error) => {
                tracing::warn!(pod = %name, %error, "binding failed");
                // The watch says whether the pod is still there, and perhaps bound by somebody else.
                self.ledger.remove(&name);
                self.inbox.note(|changed| _ = changed.pods.insert(name));
            }
        }
    }
}

/// When a pod's turn comes: the most important first, then the oldest (upstream's queue order). None makes room for
/// another: there is no preemption.
fn turn(pod: &Pod) -> (i64, Option<Time>, ObjectName) {
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
    (
        -i64::from(priority),
        pod.metadata.creation_timestamp.clone(),
        name_of(pod),
    )
}

/// Whether the pod waits for this scheduler.
fn is_ours(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let is_gated = spec
        .scheduling_gates
        .as_ref()
        .is_some_and(|gates| !gates.is_empty());
    spec.scheduler_name.as_deref().unwrap_or(NAME) == NAME
        && pod.metadata.deletion_timestamp.is_none()
        && !is_gated
}

/// Which pods this one should stand apart from: those of the same owner, and those behind the same Services.
fn spread(pod: &Pod, services: &[Arc<Service>]) -> Spread {
    let no_labels = selector::Labels::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&no_labels);
    let selectors = services
        .iter()
        .filter_map(|service| service.spec.as_ref()?.selector.as_ref());
    let selecting = selectors.filter(|wanted| !wanted.is_empty() && selector::includes(wanted, labels));
    Spread::new(pod, selecting.cloned().collect())
}

async fn bind(context: Arc<Context>, pod: Arc<Pod>, node: NodeName) -> Done {
    let name = name_of(&*pod);
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(name.name.clone().into()),
            namespace: Some(name.namespace.clone().into()),
            // Not to a later pod of the same name.
            uid: pod.metadata.uid.clone(),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.0.clone().into()),
            ..ObjectReference::default()
        },
    };
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &name.namespace);
    let outcome: Result<Status, _> = api
        .create_subresource("binding", &name.name, &PostParams::default(), &binding)
        .await;
    if outcome.is_err() {
        tokio::time::sleep(REST_AFTER_FAILURE).await;
    }
    Done::Bound {
        pod,
        outcome: outcome.map(|_| node),
    }
}

/// Says on the pod, and by an event, why it has no node.
async fn tell_unschedulable(context: &Context, pod: &Pod, reasons: &Unschedulable) {
    let message = reasons.to_string();
    let known = pods::condition(pod, "PodScheduled");
    let told =
        known.is_some_and(|known| known.status == "False" && known.message.as_deref() == Some(&message));
    if told {
        return;
    }
    context
        .recorder
        .warning(COMPONENT, pod, "FailedScheduling", message.clone());
    let since = known
        .filter(|known| known.status == "False")
        .and_then(|known| known.last_transition_time.clone());
    let patch = json!({
        "metadata": { "uid": pod.metadata.uid },
        "status": { "conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastProbeTime": null,
            "lastTransitionTime": since.unwrap_or_else(|| Time(Timestamp::now())),
        }] },
    });
    if let Err(error) = context.caches.pods.merge_status(&name_of(pod), patch).await {
        tracing::debug!(pod = %name_of(pod), %error, "cannot report an unschedulable pod");
    }
}
