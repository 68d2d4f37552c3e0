//! Deployments: a ReplicaSet for each version of the pod template, and the way from one to the next.
//!
//! [`plan::plan`] decides on everything that one look at the Deployment and its ReplicaSets calls for, where
//! upstream writes and reads several times over; each ReplicaSet then gets at most one patch.

mod plan;
mod proportional;
mod revision;
mod rolling;
mod set;
mod status;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::DeleteParams;
use model::ObjectName;
use serde_json::json;

use crate::cache::name_of;
use crate::error::Error;
use crate::ownership;
use crate::queue::{Next, Queue, Reconcile, drive};
use crate::workload::{self, Workload};
use crate::{Context, pods};
use plan::Plan;
use set::SetPatch;

const COMPONENT: &str = "deployment-controller";
/// How many Deployments are worked on at a time.
const WORKERS: usize = 16;

/// Runs the controller.
pub(crate) async fn run(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let _deployments = context.caches.deployments.subscribe({
        let queue = Arc::clone(&queue);
        move |change| {
            change
                .states()
                .take(1)
                .for_each(|deployment| queue.add(name_of(&**deployment)))
        }
    });
    let _replica_sets = context.caches.replica_sets.subscribe({
        let queue = Arc::clone(&queue);
        let context = Arc::clone(&context);
        move |change| {
            let deployments = &context.caches.deployments;
            workload::concerned(deployments, selector_of, change)
                .into_iter()
                .for_each(|name| queue.add(name))
        }
    });
    // Only Recreate looks at pods, and only at their end: a new version waits for the last pod of the old
    // one.
    let _pods = context.caches.pods.subscribe({
        let queue = Arc::clone(&queue);
        let context = Arc::clone(&context);
        move |change| {
            let ended = change.new.as_ref().is_none_or(|pod| pods::is_finished(pod));
            let pod = change.states().next().filter(|_| ended);
            if let Some(name) = pod.and_then(|pod| recreating(&context, &pod.metadata)) {
                queue.add(name);
            }
        }
    });
    drive(&queue, &Controller(context), WORKERS).await;
    Ok(())
}

fn selector_of(deployment: &Deployment) -> Option<&LabelSelector> {
    Some(&deployment.spec.as_ref()?.selector)
}

fn recreating(
    context: &Context,
    pod: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> Option<ObjectName> {
    let namespace = pod.namespace.as_deref()?;
    let set = &ownership::controller_of(pod)
        .filter(|owner| owner.kind == "ReplicaSet")?
        .name;
    let set = context
        .caches
        .replica_sets
        .get(&ObjectName::new(namespace, set))?;
    let name = ObjectName::new(namespace, &ownership::controller_of(&set.metadata)?.name);
    let deployment = context.caches.deployments.get(&name)?;
    plan::is_recreate(&deployment).then_some(name)
}

struct Controller(Arc<Context>);

impl Reconcile for Controller {
    type Key = ObjectName;
    const NAME: &'static str = "deployment";

    async fn reconcile(&self, key: &ObjectName) -> Result<Next, Error> {
        let Some(deployment) = self.0.caches.deployments.get(key) else {
            return Ok(Next::OnChange);
        };
        let sets = self.claim_sets(&deployment).await?;
        let running = |set: &ReplicaSet| self.has_running_pods(set);
        let plan = plan::plan(&deployment, &sets, &running, Timestamp::now());
        self.apply(&deployment, plan).await
    }
}

impl Controller {
    async fn claim_sets(&self, deployment: &Deployment) -> Result<Vec<Arc<ReplicaSet>>, Error> {
        let Some(spec) = &deployment.spec else {
            return Ok(Vec::new());
        };
        let workload = Workload {
            context: &self.0,
            component: COMPONENT,
            kind: &self.0.caches.deployments,
            object: deployment,
        };
        workload
            .claim(&self.0.caches.replica_sets, &spec.selector, |_| true)
            .await
    }

    fn has_running_pods(&self, set: &ReplicaSet) -> bool {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let pods = self.0.caches.pods.list_in(namespace);
        pods.iter().any(|pod| {
            !pods::is_finished(pod) && ownership::is_controlled_by(&pod.metadata, set.metadata.uid.as_ref())
        })
    }

    async fn apply(&self, deployment: &Deployment, plan: Plan) -> Result<Next, Error> {
        let Plan {
            create,
            patches,
            delete,
            revision,
            mut status,
            said,
            warned,
            again,
        } = plan;
        if let Some(set) = create
            && self.create_set(deployment, &set).await? == Created::NameTaken
        {
            status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        }
        for patch in &patches {
            self.patch_set(patch).await?;
        }
        for message in said {
            self.0
                .recorder
                .normal(COMPONENT, deployment, "ScalingReplicaSet", message);
        }
        if let Some((reason, message)) = warned {
            self.0.recorder.warning(COMPONENT, deployment, reason, message);
        }
        for set in delete {
            self.0
                .caches
                .replica_sets
                .delete(&*set, DeleteParams::background())
                .await?;
        }
        let mut current = deployment.clone();
        if let Some(revision) = revision {
            let patch = json!({ "metadata": {
                "uid": deployment.metadata.uid, "annotations": { revision::REVISION: revision },
            } });
            let patched = self
                .0
                .caches
                .deployments
                .merge(&name_of(deployment), patch)
                .await?;
            current.metadata.resource_version = patched.metadata.resource_version.clone();
        }
        if current.status.as_ref() != Some(&status) {
            current.status = Some(status);
            match self.0.caches.deployments.replace_status(&current).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(again.map_or(Next::OnChange, Next::After))
    }

    /// Creates the ReplicaSet of the current template.
    async fn create_set(&self, deployment: &Deployment, set: &ReplicaSet) -> Result<Created, Error> {
        match self.0.caches.replica_sets.create(set).await {
            Ok(_) => Ok(Created::Yes),
            Err(error) if error.is_namespace_terminating() => Ok(Created::Yes),
            Err(error) if error.is_already_exists() => {
                let taken = self.0.caches.replica_sets.fetch(&name_of(set)).await?;
                let is_ours = taken.is_some_and(|taken| {
                    ownership::is_controlled_by(&taken.metadata, deployment.metadata.uid.as_ref())
                        && revision::has_template_of(&taken, deployment)
                });
                // Ours: the cache has not heard of it yet, but will.
                Ok(if is_ours { Created::Yes } else { Created::NameTaken })
            }
            Err(error) => {
                let message = format!(
                    "Failed to create new replica set {:?}: {}",
                    name_of(set).name,
                    error.reason()
                );
                self.0
                    .recorder
                    .warning(COMPONENT, deployment, "ReplicaSetCreateError", message);
                Err(error)
            }
        }
    }

    async fn patch_set(&self, patch: &SetPatch) -> Result<(), Error> {
        let SetPatch {
            set,
            replicas,
            min_ready_seconds,
            annotations,
        } = patch;
        let mut spec = serde_json::Map::new();
        spec.extend(replicas.map(|replicas| ("replicas".to_owned(), json!(replicas))));
        spec.extend(min_ready_seconds.map(|seconds| ("minReadySeconds".to_owned(), json!(seconds))));
        let body = json!({
            "metadata": {
                "uid": set.metadata.uid,
                "resourceVersion": set.metadata.resource_version,
                "annotations": annotations,
            },
            "spec": spec,
        });
        self.0
            .caches
            .replica_sets
            .merge(&name_of(&**set), body)
            .await
            .map(drop)
    }
}

/// What came of creating a ReplicaSet.
#[derive(PartialEq)]
enum Created {
    Yes,
    /// Its name belongs to one with another template or owner: the name's hash collided.
    NameTaken,
}
