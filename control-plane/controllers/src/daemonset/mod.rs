//! DaemonSets: a pod on every node that fits, of the current version of the template or on the way to it.
//!
//! Pods are made for one node each by a node affinity to its name, and bound by the scheduler.

mod fit;
mod places;
mod plan;
mod rest;
mod rollout;
mod status;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use model::ObjectName;

use crate::cache::{Change, name_of};
use crate::error::Error;
use crate::history::{self, Stored, Versions};
use crate::queue::{Next, Queue, Reconcile, drive};
use crate::workload::{self, Workload};
use crate::{Context, pods, selector};
use places::Places;
use plan::Plan;
use rest::Rests;

const COMPONENT: &str = "daemonset-controller";
/// How many DaemonSets are worked on at a time.
const WORKERS: usize = 8;

/// Runs the controller.
pub(crate) async fn run(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let _sets = context.caches.daemon_sets.subscribe({
        let queue = Arc::clone(&queue);
        move |change| change.states().take(1).for_each(|set| queue.add(name_of(&**set)))
    });
    let _pods = context.caches.pods.subscribe({
        let (queue, context) = (Arc::clone(&queue), Arc::clone(&context));
        move |change| {
            concerned(&context, change)
                .into_iter()
                .for_each(|name| queue.add(name))
        }
    });
    let _revisions = context.caches.controller_revisions.subscribe({
        let (queue, context) = (Arc::clone(&queue), Arc::clone(&context));
        move |change: &Change<ControllerRevision>| {
            let names = workload::concerned(&context.caches.daemon_sets, selector_of, change);
            names.into_iter().for_each(|name| queue.add(name));
        }
    });
    let _nodes = context.caches.nodes.subscribe({
        let (queue, context) = (Arc::clone(&queue), Arc::clone(&context));
        move |change| {
            let offers = [&change.old, &change.new].map(|node| node.as_ref().map(|node| offer(node)));
            if offers[0] != offers[1] {
                let sets = context.caches.daemon_sets.list();
                sets.iter().for_each(|set| queue.add(name_of(&**set)));
            }
        }
    });
    let controller = Controller {
        context,
        rests: Rests::default(),
    };
    drive(&queue, &controller, WORKERS).await;
    Ok(())
}

fn concerned(context: &Context, change: &Change<Pod>) -> Vec<ObjectName> {
    workload::concerned(&context.caches.daemon_sets, selector_of, change)
}

fn selector_of(set: &DaemonSet) -> Option<&LabelSelector> {
    Some(&set.spec.as_ref()?.selector)
}

/// What of a node decides whether pods belong there.
fn offer(node: &Node) -> impl PartialEq {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone());
    (node.metadata.labels.clone(), taints)
}

struct Controller {
    context: Arc<Context>,
    rests: Rests,
}

impl Reconcile for Controller {
    type Key = ObjectName;
    const NAME: &'static str = "daemonset";

    async fn reconcile(&self, key: &ObjectName) -> Result<Next, Error> {
        let Some(set) = self.context.caches.daemon_sets.get(key) else {
            return Ok(Next::OnChange);
        };
        let Some(spec) = &set.spec else {
            return Ok(Next::OnChange);
        };
        if selector::is_empty(&spec.selector) {
            let message =
                "This daemon set is selecting all pods. A non-empty selector is required.".to_owned();
            self.context
                .recorder
                .warning(COMPONENT, &*set, "SelectingAll", message);
            return Ok(Next::OnChange);
        }
        let workload = Workload {
            context: &self.context,
            component: COMPONENT,
            kind: &self.context.caches.daemon_sets,
            object: &*set,
        };
        workload
            .claim(&self.context.caches.pods, &spec.selector, |_| true)
            .await?;
        let revisions = workload.revisions(&spec.selector).await?;
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Next::OnChange);
        }
        let versions = history::versions(&spec.template, revisions);
        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let stored = workload.store_versions(&versions, &spec.template, collisions.unwrap_or(0));
        match stored.await? {
            Stored::As(hash) => self.keep(&workload, spec, &versions, &hash).await,
            Stored::Collision => {
                let mut changed = (*set).clone();
                changed.status.get_or_insert_default().collision_count = Some(collisions.unwrap_or(0) + 1);
                self.context.caches.daemon_sets.replace_status(&changed).await?;
                Ok(Next::OnChange)
            }
        }
    }
}

impl Controller {
    /// Brings the pods nearer to what they should be, and tells how far that is.
    async fn keep(
        &self,
        workload: &Workload<'_, DaemonSet>,
        spec: &DaemonSetSpec,
        versions: &Versions,
        hash: &str,
    ) -> Result<Next, Error> {
        let set = workload.object;
        let pod_spec = fit::tolerating(spec.template.spec.clone().unwrap_or_default());
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let resting = self.rests.left(uid, Instant::now());
        let plan = plan::plan(set, &self.places(workload, &pod_spec, hash), &resting);
        let again = plan.again;
        let done = self.apply(workload, plan, &pod_spec, hash).await;
        let cleaned = self.forget_old_versions(workload, spec, versions).await;
        let places = self.places(workload, &pod_spec, hash);
        self.write_status(set, &places).await?;
        done?;
        cleaned?;
        Ok(again
            .into_iter()
            .chain(places.next_available())
            .min()
            .map_or(Next::OnChange, Next::After))
    }

    fn places<'a>(&self, workload: &Workload<'_, DaemonSet>, spec: &PodSpec, hash: &'a str) -> Places<'a> {
        let nodes = self.context.caches.nodes.list();
        Places::new(
            workload.object,
            spec,
            &nodes,
            &workload.pods(),
            hash,
            Timestamp::now(),
        )
    }

    async fn apply(
        &self,
        workload: &Workload<'_, DaemonSet>,
        plan: Plan,
        spec: &PodSpec,
        hash: &str,
    ) -> Result<(), Error> {
        let Plan {
            create,
            delete,
            ended,
            again: _,
        } = plan;
        let set = workload.object;
        for (node, pod) in &ended {
            let recorder = &self.context.recorder;
            let name = name_of(&**pod);
            if pods::phase(pod) == "Failed" {
                let uid = set.metadata.uid.as_deref().unwrap_or_default();
                self.rests.note(uid, node, Instant::now());
                let message = format!("Found failed daemon pod {name} on node {node}, will try to kill it");
                recorder.warning(COMPONENT, set, "FailedDaemonPod", message);
            } else {
                let message =
                    format!("Found succeeded daemon pod {name} on node {node}, will try to delete it");
                recorder.normal(COMPONENT, set, "SucceededDaemonPod", message);
            }
        }
        let deleted = workload.delete_pods(&delete).await;
        let template = set
            .spec
            .as_ref()
            .map(|spec| spec.template.clone())
            .unwrap_or_default();
        let pods: Vec<Pod> = create
            .iter()
            .map(|node| {
                let mut pod = workload.pod_from(&template);
                let labels = pod.metadata.labels.get_or_insert_default();
                labels.insert(history::HASH_LABEL.to_owned(), hash.to_owned());
                pod.spec = Some(fit::bound_for(spec.clone(), node));
                pod
            })
            .collect();
        workload.create_pods(&pods).await?;
        deleted
    }

    async fn forget_old_versions(
        &self,
        workload: &Workload<'_, DaemonSet>,
        spec: &DaemonSetSpec,
        versions: &Versions,
    ) -> Result<(), Error> {
        let pods = workload.pods();
        let live: BTreeSet<&str> = pods.iter().map(|pod| history::hash_of(&pod.metadata)).collect();
        workload
            .forget_old_versions(versions, &live, spec.revision_history_limit)
            .await
    }

    async fn write_status(&self, set: &DaemonSet, places: &Places<'_>) -> Result<(), Error> {
        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let status = status::status(set, places, collisions);
        let changed = DaemonSet {
            status: Some(status),
            ..set.clone()
        };
        self.context
            .caches
            .daemon_sets
            .write_status(set, &changed)
            .await
            .map(drop)
    }
}
