//! ReplicaSets: as many pods as asked for.

mod plan;
mod rank;
mod status;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use model::ObjectName;

use crate::cache::name_of;
use crate::error::Error;
use crate::ownership;
use crate::queue::{Next, Queue, Reconcile, drive};
use crate::workload::{self, Workload, until};
use crate::{Context, pods};
use plan::Scale;
pub(crate) use rank::victims_first;
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
            let sets = &context.caches.replica_sets;
            workload::concerned(sets, selector_of, change)
                .into_iter()
                .for_each(|name| queue.add(name))
        }
    });
    drive(&queue, &Controller(context), WORKERS).await;
    Ok(())
}

fn selector_of(rs: &ReplicaSet) -> Option<&LabelSelector> {
    Some(&rs.spec.as_ref()?.selector)
}

struct Controller(Arc<Context>);

impl Reconcile for Controller {
    type Key = ObjectName;
    const NAME: &'static str = "replicaset";

    async fn reconcile(&self, key: &ObjectName) -> Result<Next, Error> {
        let Some(rs) = self.0.caches.replica_sets.get(key) else {
            return Ok(Next::OnChange);
        };
        let workload = self.workload(&rs);
        if let Some(spec) = &rs.spec {
            workload
                .claim(&self.0.caches.pods, &spec.selector, |pod| !pods::is_finished(pod))
                .await?;
        }
        let now = Timestamp::now();
        let scaled = match rs.metadata.deletion_timestamp {
            Some(_) => Ok(()),
            None => match plan::scale(&rs, &self.active_pods(&rs), &self.related_pods(&rs), now) {
                Scale::Keep => Ok(()),
                Scale::Up(count) => create_pods(&workload, count).await.map_err(Failure::Create),
                Scale::Down(victims) => workload.delete_pods(&victims).await.map_err(Failure::Delete),
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
    fn workload<'a>(&'a self, rs: &'a ReplicaSet) -> Workload<'a, ReplicaSet> {
        Workload {
            context: &self.0,
            component: COMPONENT,
            kind: &self.0.caches.replica_sets,
            object: rs,
        }
    }

    fn active_pods(&self, rs: &ReplicaSet) -> Vec<Arc<Pod>> {
        let mut pods = self.workload(rs).pods();
        pods.retain(|pod| pods::is_active(pod));
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

    async fn write_status(&self, rs: &ReplicaSet, failure: Option<&Failure>) -> Result<Next, Error> {
        let now = Timestamp::now();
        let pods = self.active_pods(rs);
        let status = status::status(rs, &pods, failure, now);
        let changed = ReplicaSet {
            status: Some(status),
            ..rs.clone()
        };
        self.0.caches.replica_sets.write_status(rs, &changed).await?;
        let min_ready = status::min_ready(rs);
        let next = pods
            .iter()
            .filter_map(|pod| pods::available_from(pod, min_ready))
            .filter(|at| *at > now)
            .min();
        Ok(next.map_or(Next::OnChange, |at| Next::After(until(at, now))))
    }
}

async fn create_pods(workload: &Workload<'_, ReplicaSet>, count: usize) -> Result<(), Error> {
    let rs = workload.object;
    let template = rs.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let template = template.ok_or_else(|| Error::Incomplete {
        kind: "ReplicaSet",
        object: name_of(rs),
        field: "spec.template",
    })?;
    let pods: Vec<Pod> = (0..count).map(|_| workload.pod_from(template)).collect();
    workload.create_pods(&pods).await
}
