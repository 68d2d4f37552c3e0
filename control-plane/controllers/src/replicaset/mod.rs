//! ReplicaSets: as many pods as asked for.

mod plan;
mod rank;
mod status;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DeleteParams;
use model::ObjectName;

use crate::cache::{Change, name_of};
use crate::error::{Error, all};
use crate::ownership::{self, Claim};
use crate::queue::{Next, Queue, Reconcile, drive};
use crate::{Context, pods, selector};
use plan::Scale;
use status::Failure;

const COMPONENT: &str = "replicaset-controller";
/// How many ReplicaSets are worked on at a time.
const WORKERS: usize = 16;

/// Runs the controller.
pub(crate) async fn run(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let _replica_sets = context.caches.replica_sets.subscribe({
        let queue = Arc::clone(&queue);
        move |change| change.states().take(1).for_each(|rs| queue.add(name_of(&**rs)))
    });
    let _pods = context.caches.pods.subscribe({
        let queue = Arc::clone(&queue);
        let context = Arc::clone(&context);
        move |change| {
            concerned(&context, change)
                .into_iter()
                .for_each(|name| queue.add(name))
        }
    });
    drive(&queue, &Controller(context), WORKERS).await;
    Ok(())
}

/// The ReplicaSets to look at when a pod changed: those that control or controlled it, and for one that
/// nobody controls, those that might adopt it.
fn concerned(context: &Context, change: &Change<Pod>) -> Vec<ObjectName> {
    let mut names = Vec::new();
    for pod in change.states() {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        match ownership::controller_of(&pod.metadata) {
            Some(owner) if owner.kind == "ReplicaSet" => names.push(ObjectName::new(namespace, &owner.name)),
            Some(_) => {}
            None => {
                let candidates = context.caches.replica_sets.list_in(namespace).into_iter();
                let adopting = candidates.filter(|rs| might_adopt(rs, pod));
                names.extend(adopting.map(|rs| name_of(&*rs)));
            }
        }
    }
    names.dedup();
    names
}

fn might_adopt(rs: &ReplicaSet, pod: &Pod) -> bool {
    let (Some(spec), Some(labels)) = (&rs.spec, &pod.metadata.labels) else {
        return false;
    };
    !selector::is_empty(&spec.selector) && selector::matches(&spec.selector, labels)
}

struct Controller(Arc<Context>);

impl Reconcile for Controller {
    type Key = ObjectName;
    const NAME: &'static str = "replicaset";

    async fn reconcile(&self, key: &ObjectName) -> Result<Next, Error> {
        let Some(rs) = self.0.caches.replica_sets.get(key) else {
            return Ok(Next::OnChange);
        };
        self.claim_pods(&rs).await?;
        let now = Timestamp::now();
        let scaled = match rs.metadata.deletion_timestamp {
            Some(_) => Ok(()),
            None => match plan::scale(&rs, &self.active_pods(&rs), &self.related_pods(&rs), now) {
                Scale::Keep => Ok(()),
                Scale::Up(count) => self.create_pods(&rs, count).await.map_err(Failure::Create),
                Scale::Down(victims) => self.delete_pods(&rs, &victims).await.map_err(Failure::Delete),
            },
        };
        let next = self.write_status(&rs, scaled.as_ref().err()).await?;
        match scaled {
            Ok(()) => Ok(next),
            Err(Failure::Create(error) | Failure::Delete(error)) => Err(error),
        }
    }
}

impl Controller {
    async fn claim_pods(&self, rs: &ReplicaSet) -> Result<(), Error> {
        let Some(spec) = &rs.spec else { return Ok(()) };
        let namespace = rs.metadata.namespace.as_deref().unwrap_or_default();
        let mut pods = self.0.caches.pods.list_in(namespace);
        pods.retain(|pod| !pods::is_finished(pod));
        let mut adopting = None;
        for (claim, pod) in ownership::claims(&rs.metadata, &spec.selector, pods) {
            let patch = match claim {
                Claim::Own | Claim::Ignore => continue,
                Claim::Release => ownership::release(&rs.metadata, &pod.metadata),
                Claim::Adopt => {
                    if adopting.is_none() {
                        adopting = Some(self.still_lives(rs).await?);
                    }
                    if adopting == Some(false) {
                        continue;
                    }
                    ownership::adoption(rs, &pod.metadata)
                }
            };
            match self.0.caches.pods.merge(&name_of(&*pod), patch).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the server agrees that it exists and is not being deleted: a cache that is behind must not let
    /// a ReplicaSet on its way out adopt anything.
    async fn still_lives(&self, rs: &ReplicaSet) -> Result<bool, Error> {
        let fresh = self.0.caches.replica_sets.fetch(&name_of(rs)).await?;
        Ok(fresh.is_some_and(|fresh| {
            fresh.metadata.uid == rs.metadata.uid && fresh.metadata.deletion_timestamp.is_none()
        }))
    }

    fn active_pods(&self, rs: &ReplicaSet) -> Vec<Arc<Pod>> {
        let namespace = rs.metadata.namespace.as_deref().unwrap_or_default();
        let mut pods = self.0.caches.pods.list_in(namespace);
        pods.retain(|pod| {
            pods::is_active(pod) && ownership::is_controlled_by(&pod.metadata, rs.metadata.uid.as_ref())
        });
        pods
    }

    /// The active pods of all ReplicaSets of the same Deployment, this one's included.
    fn related_pods(&self, rs: &ReplicaSet) -> Vec<Arc<Pod>> {
        let Some(owner) = ownership::controller_of(&rs.metadata) else {
            return self.active_pods(rs);
        };
        let namespace = rs.metadata.namespace.as_deref().unwrap_or_default();
        let sets = self.0.caches.replica_sets.list_in(namespace);
        let siblings = sets
            .iter()
            .filter(|set| ownership::is_controlled_by(&set.metadata, Some(&owner.uid)));
        siblings.flat_map(|sibling| self.active_pods(sibling)).collect()
    }

    /// Creates in batches of 1, 2, 4 …, and stops after a batch with a failure: when the first pod is
    /// refused, for want of quota for example, the other thousand are not tried.
    async fn create_pods(&self, rs: &ReplicaSet, count: usize) -> Result<(), Error> {
        let mut left = count;
        let mut batch = 1;
        while left > 0 {
            let size = batch.min(left);
            all(join_all((0..size).map(|_| self.create_pod(rs))).await)?;
            left -= size;
            batch *= 2;
        }
        Ok(())
    }

    async fn create_pod(&self, rs: &ReplicaSet) -> Result<(), Error> {
        let pod = pod_of(rs)?;
        match self.0.caches.pods.create(&pod).await {
            Ok(pod) => {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                self.0
                    .recorder
                    .normal(COMPONENT, rs, "SuccessfulCreate", format!("Created pod: {name}"));
                Ok(())
            }
            // The namespace's end will take the ReplicaSet as well.
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                let message = format!("Error creating: {}", error.reason());
                self.0.recorder.warning(COMPONENT, rs, "FailedCreate", message);
                Err(error)
            }
        }
    }

    async fn delete_pods(&self, rs: &ReplicaSet, victims: &[Arc<Pod>]) -> Result<(), Error> {
        let deletions = victims.iter().map(async |pod| {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            match self.0.caches.pods.delete(&**pod, DeleteParams::default()).await {
                Ok(()) => {
                    self.0
                        .recorder
                        .normal(COMPONENT, rs, "SuccessfulDelete", format!("Deleted pod: {name}"));
                    Ok(())
                }
                Err(error) => {
                    let message = format!("Error deleting: {}", error.reason());
                    self.0.recorder.warning(COMPONENT, rs, "FailedDelete", message);
                    Err(error)
                }
            }
        });
        all(join_all(deletions).await).map(drop)
    }

    async fn write_status(&self, rs: &ReplicaSet, failure: Option<&Failure>) -> Result<Next, Error> {
        let now = Timestamp::now();
        let pods = self.active_pods(rs);
        let status = status::status(rs, &pods, failure, now);
        if rs.status.as_ref() != Some(&status) {
            let changed = ReplicaSet {
                status: Some(status),
                ..rs.clone()
            };
            match self.0.caches.replica_sets.replace_status(&changed).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        let min_ready = status::min_ready(rs);
        let next = pods
            .iter()
            .filter_map(|pod| pods::available_from(pod, min_ready))
            .filter(|at| *at > now)
            .min();
        Ok(next.map_or(Next::OnChange, |at| Next::After(until(at, now))))
    }
}

/// How long from `now` until `at` has surely passed.
fn until(at: Timestamp, now: Timestamp) -> Duration {
    at.duration_since(now).unsigned_abs() + Duration::from_millis(10)
}

/// A pod made from the ReplicaSet's template.
fn pod_of(rs: &ReplicaSet) -> Result<Pod, Error> {
    let missing = || Error::Incomplete {
        kind: "ReplicaSet",
        object: name_of(rs),
        field: "spec.template",
    };
    let template = rs
        .spec
        .as_ref()
        .and_then(|spec| spec.template.as_ref())
        .ok_or_else(missing)?;
    let meta = template.metadata.clone().unwrap_or_default();
    let prefix = format!("{}-", rs.metadata.name.as_deref().unwrap_or_default());
    Ok(Pod {
        metadata: ObjectMeta {
            name: Some(ownership::generated_name(&prefix)),
            generate_name: Some(prefix),
            namespace: rs.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![ownership::controller_ref(rs)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    })
}
