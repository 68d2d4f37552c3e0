//! PodDisruptionBudgets: how many pods may be evicted now. The API server decides on each eviction for itself; what is
//! written here is what people, and drains that ask first, see.

mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;
use kube::api::Api;
use kube::core::{ApiResource, DynamicObject, GroupVersion};
use model::ObjectName;

use crate::cache::{Change, Object, name_of};
use crate::error::Error;
use crate::queue::{Next, Queue, Reconcile, drive};
use crate::{Context, ownership, selector};

const COMPONENT: &str = "controllermanager";
/// How many budgets are worked on at a time.
const WORKERS: usize = 4;

/// Runs the controller.
pub(crate) async fn run(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let _budgets = context.caches.budgets.subscribe({
        let queue = Arc::clone(&queue);
        move |change| {
            change
                .states()
                .take(1)
                .for_each(|budget| queue.add(name_of(&**budget)))
        }
    });
    let _pods = context.caches.pods.subscribe({
        let (queue, context) = (Arc::clone(&queue), Arc::clone(&context));
        move |change| {
            selecting(&context, change)
                .into_iter()
                .for_each(|name| queue.add(name))
        }
    });
    // A scale changes what a share of it is, before any pod comes or goes.
    let _deployments = context.caches.deployments.subscribe({
        let (queue, context) = (Arc::clone(&queue), Arc::clone(&context));
        move |change: &Change<Deployment>| {
            let scales = [&change.old, &change.new].map(|one| one.as_ref()?.spec.as_ref()?.replicas);
            if scales[0] != scales[1] {
                of_namespace(&context, change)
                    .into_iter()
                    .for_each(|name| queue.add(name));
            }
        }
    });
    let _replica_sets = context.caches.replica_sets.subscribe({
        let (queue, context) = (Arc::clone(&queue), Arc::clone(&context));
        move |change: &Change<ReplicaSet>| {
            let scales = [&change.old, &change.new].map(|one| one.as_ref()?.spec.as_ref()?.replicas);
            if scales[0] != scales[1] {
                of_namespace(&context, change)
                    .into_iter()
                    .for_each(|name| queue.add(name));
            }
        }
    });
    drive(&queue, &Controller(context), WORKERS).await;
    Ok(())
}

/// The budgets that select a pod, or did.
fn selecting(context: &Context, change: &Change<Pod>) -> Vec<ObjectName> {
    let mut names = Vec::new();
    for pod in change.states() {
        let budgets = context.caches.budgets.list_in(&name_of(&**pod).namespace);
        let selecting = budgets.iter().filter(|budget| selects(budget, pod));
        names.extend(selecting.map(|budget| name_of(&**budget)));
    }
    names.sort();
    names.dedup();
    names
}

fn of_namespace<K: Object>(context: &Context, change: &Change<K>) -> Vec<ObjectName> {
    let Some(object) = change.states().next() else {
        return Vec::new();
    };
    let budgets = context.caches.budgets.list_in(&name_of(&**object).namespace);
    budgets.iter().map(|budget| name_of(&**budget)).collect()
}

/// A budget without a selector selects nothing, with an empty one every pod of its namespace (`policy/v1`).
fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let no_labels = selector::Labels::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&no_labels);
    let wanted = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    wanted.is_some_and(|wanted| selector::matches(wanted, labels))
}

struct Controller(Arc<Context>);

impl Reconcile for Controller {
    type Key = ObjectName;
    const NAME: &'static str = "disruption";

    async fn reconcile(&self, key: &ObjectName) -> Result<Next, Error> {
        let Some(budget) = self.0.caches.budgets.get(key) else {
            return Ok(Next::OnChange);
        };
        let Some(spec) = &budget.spec else {
            return Ok(Next::OnChange);
        };
        let mut pods = self.0.caches.pods.list_in(&key.namespace);
        pods.retain(|pod| selects(&budget, pod));
        if pods.is_empty() {
            let message = "No matching pods found".to_owned();
            self.0.recorder.normal(COMPONENT, &*budget, "NoPods", message);
        }
        let expected = self.expected(&budget, spec, &pods).await?;
        if let Err(why) = &expected {
            let message = format!("Failed to calculate the number of expected pods: {why}");
            let reason = "CalculateExpectedPodCountFailed";
            self.0.recorder.warning(COMPONENT, &*budget, reason, message);
        }
        let (status, again) = status::status(&budget, &pods, expected, Timestamp::now());
        if budget.status.as_ref() != Some(&status) {
            let changed = PodDisruptionBudget {
                status: Some(status),
                ..(*budget).clone()
            };
            match self.0.caches.budgets.replace_status(&changed).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(again.map_or(Next::OnChange, Next::After))
    }
}

impl Controller {
    /// How many pods there should be, or why that is not known.
    async fn expected(
        &self,
        budget: &PodDisruptionBudget,
        spec: &PodDisruptionBudgetSpec,
        pods: &[Arc<Pod>],
    ) -> Result<Result<i32, String>, Error> {
        if !status::needs_scales(spec) {
            return Ok(Ok(i32::try_from(pods.len()).unwrap_or(i32::MAX)));
        }
        let mut scales: BTreeMap<String, i32> = BTreeMap::new();
        let mut unmanaged = false;
        for pod in pods {
            let Some(owner) = ownership::controller_of(&pod.metadata) else {
                unmanaged = true;
                continue;
            };
            if scales.contains_key(&owner.uid) {
                continue;
            }
            let namespace = name_of(&**pod).namespace.to_string();
            let Some((uid, scale)) = self.scale(&namespace, owner).await? else {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                return Ok(Err(format!("found no controllers for pod {name:?}")));
            };
            scales.insert(uid, scale);
        }
        if unmanaged {
            let message = "Pods selected by this PodDisruptionBudget were found to be unmanaged. As a result, the \
                 status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account \
                 for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
                .to_owned();
            self.0
                .recorder
                .warning(COMPONENT, budget, "UnmanagedPods", message);
        }
        Ok(Ok(scales.into_values().fold(0, i32::saturating_add)))
    }

    /// The uid and the scale of what scales a pod's controller: a Deployment stands above its ReplicaSets.
    async fn scale(&self, namespace: &str, owner: &OwnerReference) -> Result<Option<(String, i32)>, Error> {
        let name = ObjectName::new(namespace, &owner.name);
        if owner.kind != ReplicaSet::kind(&()) {
            let scale = self.scale_of_any(&name, owner).await?;
            return Ok(scale.map(|scale| (owner.uid.clone(), scale)));
        }
        let set = self.0.caches.replica_sets.get(&name);
        let Some(set) = set.filter(|set| set.metadata.uid.as_ref() == Some(&owner.uid)) else {
            return Ok(None);
        };
        let above = ownership::controller_of(&set.metadata).filter(|owner| owner.kind == "Deployment");
        let Some(above) = above else {
            let replicas = set.spec.as_ref().and_then(|spec| spec.replicas);
            return Ok(Some((owner.uid.clone(), replicas.unwrap_or(1))));
        };
        let deployment = self
            .0
            .caches
            .deployments
            .get(&ObjectName::new(namespace, &above.name));
        let deployment = deployment.filter(|found| found.metadata.uid.as_ref() == Some(&above.uid));
        Ok(deployment.map(|deployment| {
            let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
            (above.uid.clone(), replicas.unwrap_or(1))
        }))
    }

    /// Any other kind is asked for its scale, if it has one.
    async fn scale_of_any(&self, name: &ObjectName, owner: &OwnerReference) -> Result<Option<i32>, Error> {
        let Ok(version) = owner.api_version.parse::<GroupVersion>() else {
            return Ok(None);
        };
        let resource = ApiResource::from_gvk(&version.with_kind(&owner.kind));
        let api: Api<DynamicObject> = Api::namespaced_with(self.0.client.clone(), &name.namespace, &resource);
        let answer = match api.get_subresource("scale", &name.name).await {
            Ok(answer) => answer,
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(None),
            Err(source) => return Err(Error::api::<Scale>("get", name, source)),
        };
        Ok(answer.data["spec"]["replicas"]
            .as_i64()
            .and_then(|scale| i32::try_from(scale).ok()))
    }
}
