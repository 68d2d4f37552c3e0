//! Where a Service's traffic may go: EndpointSlices, and the older Endpoints, both from one computation.
//!
//! Nothing is batched: a pod's readiness or deletion is in its slice after one write. A burst batches itself,
//! because a Service that is being written collects what changes meanwhile.

mod mirror;
mod moments;
mod observed;
mod selected;
mod slices;
mod subsets;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::DeleteParams;
use model::ObjectName;

use crate::cache::{Change, Subscription, name_of};
use crate::error::{Error, all};
use crate::ownership;
use crate::queue::{Next, Queue, Reconcile, drive};
use crate::{Context, selector};
use moments::Moments;
use observed::{ServicePods, ZONE_LABEL, selects_pods};
use slices::{SERVICE_LABEL, is_managed_by};

/// How many Services are worked on at a time.
const WORKERS: usize = 16;

/// Runs the controller of EndpointSlices.
pub(crate) async fn run_slices(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let _sources = subscribe(&context, &queue);
    let _slices = subscribe_slices(&context, &queue, selected::MANAGED_BY);
    drive(&queue, &Slices::new(context), WORKERS).await;
    Ok(())
}

/// Runs the controller of Endpoints.
pub(crate) async fn run_endpoints(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let _sources = subscribe(&context, &queue);
    let _endpoints = context.caches.endpoints.subscribe({
        let queue = Arc::clone(&queue);
        move |change| {
            change
                .states()
                .take(1)
                .for_each(|endpoints| queue.add(name_of(&**endpoints)))
        }
    });
    drive(&queue, &Subsets(context), WORKERS).await;
    Ok(())
}

/// Runs the controller that mirrors Endpoints made by hand.
pub(crate) async fn run_mirror(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let _endpoints = context.caches.endpoints.subscribe({
        let queue = Arc::clone(&queue);
        move |change| {
            change
                .states()
                .take(1)
                .for_each(|endpoints| queue.add(name_of(&**endpoints)))
        }
    });
    let _services = context.caches.services.subscribe({
        let queue = Arc::clone(&queue);
        move |change| {
            change
                .states()
                .take(1)
                .for_each(|service| queue.add(name_of(&**service)))
        }
    });
    let _slices = subscribe_slices(&context, &queue, mirror::MANAGED_BY);
    drive(&queue, &Mirror(context), WORKERS).await;
    Ok(())
}

/// Queues the Service of every slice of `manager` that changes.
fn subscribe_slices(
    context: &Context,
    queue: &Arc<Queue<ObjectName>>,
    manager: &'static str,
) -> Subscription {
    let queue = Arc::clone(queue);
    context.caches.slices.subscribe(move |change| {
        for slice in change.states().filter(|slice| is_managed_by(slice, manager)) {
            let service = slice
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(SERVICE_LABEL));
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            service
                .into_iter()
                .for_each(|service| queue.add(ObjectName::new(namespace, service)));
        }
    })
}

/// Queues every Service that a change of a Service, a pod or a node concerns.
fn subscribe(context: &Arc<Context>, queue: &Arc<Queue<ObjectName>>) -> Vec<Subscription> {
    let services = context.caches.services.subscribe({
        let queue = Arc::clone(queue);
        move |change| {
            change
                .states()
                .take(1)
                .for_each(|service| queue.add(name_of(&**service)))
        }
    });
    let pods = context.caches.pods.subscribe({
        let queue = Arc::clone(queue);
        let context = Arc::clone(context);
        move |change| {
            selecting(&context, change)
                .into_iter()
                .for_each(|name| queue.add(name))
        }
    });
    let nodes = context.caches.nodes.subscribe({
        let queue = Arc::clone(queue);
        let context = Arc::clone(context);
        move |change| {
            if zone(change.old.as_deref()) != zone(change.new.as_deref()) {
                context
                    .caches
                    .services
                    .list()
                    .iter()
                    .for_each(|service| queue.add(name_of(&**service)));
            }
        }
    });
    vec![services, pods, nodes]
}

/// The Services that select a pod, or did so before it changed.
fn selecting(context: &Context, change: &Change<Pod>) -> Vec<ObjectName> {
    let Some(namespace) = change
        .states()
        .next()
        .and_then(|pod| pod.metadata.namespace.as_deref())
    else {
        return Vec::new();
    };
    let no_labels = selector::Labels::new();
    let labels: Vec<_> = change
        .states()
        .map(|pod| pod.metadata.labels.as_ref().unwrap_or(&no_labels))
        .collect();
    let services = context.caches.services.list_in(namespace).into_iter();
    let selecting = services.filter(|service| {
        let wanted = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        wanted.is_some_and(|wanted| labels.iter().any(|labels| selector::includes(wanted, labels)))
    });
    selecting.map(|service| name_of(&*service)).collect()
}

fn zone(node: Option<&Node>) -> Option<&String> {
    let zone = node?.metadata.labels.as_ref()?.get(ZONE_LABEL);
    zone.filter(|zone| !zone.is_empty())
}

fn observe<'a>(context: &Context, service: &'a Service, pods: &'a [Arc<Pod>]) -> ServicePods<'a> {
    ServicePods::observe(service, pods, &|name| {
        let node = context.caches.nodes.get(&ObjectName::new("", name))?;
        zone(Some(&node)).cloned()
    })
}

struct Slices {
    context: Arc<Context>,
    /// What every Service and its pods told when its slices were last written.
    seen: Mutex<BTreeMap<ObjectName, Moments>>,
}

impl Slices {
    fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            seen: Mutex::default(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<ObjectName, Moments>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reconcile for Slices {
    type Key = ObjectName;
    const NAME: &'static str = "endpointslice";

    async fn reconcile(&self, key: &ObjectName) -> Result<Next, Error> {
        let caches = &self.context.caches;
        let existing = existing(&self.context, key, selected::MANAGED_BY);
        let Some(service) = caches.services.get(key) else {
            self.seen().remove(key);
            // Only what a Service owned: what somebody made by hand under our label is not ours to delete.
            let owned = existing.iter().filter(|slice| {
                ownership::controller_of(&slice.metadata).is_some_and(|owner| owner.kind == "Service")
            });
            for slice in owned {
                caches.slices.delete(&**slice, DeleteParams::default()).await?;
            }
            return Ok(Next::OnChange);
        };
        if !selects_pods(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(Next::OnChange);
        }
        let pods = caches.pods.list_in(&key.namespace);
        let pods = observe(&self.context, &service, &pods);
        let moments = Moments::of(&service, &pods);
        let changed_at = moments.first_change_since(self.seen().get(key), !existing.is_empty());
        let plan = selected::plan(&service, &pods, &existing, changed_at);
        apply(&self.context, plan).await?;
        self.seen().insert(key.clone(), moments);
        Ok(Next::OnChange)
    }
}

struct Mirror(Arc<Context>);

impl Reconcile for Mirror {
    type Key = ObjectName;
    const NAME: &'static str = "endpointslice-mirroring";

    async fn reconcile(&self, key: &ObjectName) -> Result<Next, Error> {
        let existing = existing(&self.0, key, mirror::MANAGED_BY);
        let service = self.0.caches.services.get(key);
        let endpoints = self.0.caches.endpoints.get(key);
        let plan = match endpoints.filter(|endpoints| mirror::is_mirrored(endpoints, service.as_deref())) {
            Some(endpoints) => mirror::plan(&endpoints, &existing),
            None => slices::Plan {
                delete: existing,
                ..slices::Plan::default()
            },
        };
        apply(&self.0, plan).await?;
        Ok(Next::OnChange)
    }
}

/// The slices of a Service that `manager` writes.
fn existing(context: &Context, service: &ObjectName, manager: &str) -> Vec<Arc<EndpointSlice>> {
    let mut slices = context.caches.slices.list_in(&service.namespace);
    slices.retain(|slice| {
        let labels = slice.metadata.labels.as_ref();
        is_managed_by(slice, manager)
            && labels.is_some_and(|labels| {
                labels
                    .get(SERVICE_LABEL)
                    .is_some_and(|name| service.name == **name)
            })
            && slice.metadata.deletion_timestamp.is_none()
    });
    slices
}

/// What is added comes before what is taken away, so that an endpoint that moves is never missing.
async fn apply(context: &Context, plan: slices::Plan) -> Result<(), Error> {
    let slices::Plan {
        create,
        update,
        delete,
    } = plan;
    let cache = &context.caches.slices;
    let creations = create.into_iter().map(async |mut slice| {
        let prefix = slice.metadata.generate_name.clone().unwrap_or_default();
        slice.metadata.name = Some(ownership::generated_name(&prefix));
        match cache.create(&slice).await {
            Err(error) if error.is_namespace_terminating() => Ok(()),
            other => other.map(drop),
        }
    });
    all(futures::future::join_all(creations).await)?;
    let updates = update
        .iter()
        .map(async |slice| cache.replace(slice).await.map(drop));
    all(futures::future::join_all(updates).await)?;
    let deletions = delete
        .iter()
        .map(|slice| cache.delete(&**slice, DeleteParams::default()));
    all(futures::future::join_all(deletions).await)?;
    Ok(())
}

struct Subsets(Arc<Context>);

impl Reconcile for Subsets {
    type Key = ObjectName;
    const NAME: &'static str = "endpoints";

    async fn reconcile(&self, key: &ObjectName) -> Result<Next, Error> {
        let cache = &self.0.caches.endpoints;
        let existing = cache.get(key);
        let Some(service) = self.0.caches.services.get(key) else {
            if let Some(orphan) = existing.filter(|endpoints| subsets::is_ours(endpoints)) {
                cache.delete(&*orphan, DeleteParams::default()).await?;
            }
            return Ok(Next::OnChange);
        };
        if !selects_pods(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(Next::OnChange);
        }
        let pods = self.0.caches.pods.list_in(&key.namespace);
        let wanted: Option<Endpoints> =
            subsets::plan(&service, &observe(&self.0, &service, &pods), existing.as_deref());
        let written = match (wanted, existing) {
            (None, _) => return Ok(Next::OnChange),
            (Some(wanted), None) => cache.create(&wanted).await,
            (Some(wanted), Some(_)) => cache.replace(&wanted).await,
        };
        match written {
            Err(error) if error.is_namespace_terminating() => Ok(Next::OnChange),
            other => other.map(|_| Next::OnChange),
        }
    }
}
