//! What the API server holds of one kind: kept current by one watch, and reading its own writes.
//!
//! A controller that acts on a stale cache creates the same pod twice. Upstream counts "expectations" against
//! that; here every answer to a write goes into the cache before the writer goes on, and what the watch says
//! later counts only where it is newer. So a decision never sees a state from before the decision that
//! preceded it, and there is no counter that can be off by one.

mod mirror;

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource};
use model::ObjectName;
use rand::Rng as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;

use crate::{Error, FIELD_MANAGER};
use mirror::{Mirror, strip};

/// A kind that is cached and written.
pub(crate) trait Object:
    Resource<DynamicType = ()> + Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// The API for the objects of `namespace` (which a cluster-wide kind ignores).
    fn api(client: Client, namespace: &str) -> Api<Self>;
}

macro_rules! objects {
    ($($kind:ty: $scope:ident),* $(,)?) => {
        $(impl Object for $kind {
            fn api(client: Client, namespace: &str) -> Api<Self> {
                objects!(@ $scope client, namespace)
            }
        })*
    };
    (@ namespaced $client:ident, $namespace:ident) => { Api::namespaced($client, $namespace) };
    (@ cluster $client:ident, $namespace:ident) => {{
        let _ = $namespace;
        Api::all($client)
    }};
}

objects!(
    Pod: namespaced, Service: namespaced, Endpoints: namespaced, EndpointSlice: namespaced,
    ReplicaSet: namespaced, Deployment: namespaced, DaemonSet: namespaced, StatefulSet: namespaced,
    ControllerRevision: namespaced, PodDisruptionBudget: namespaced, Job: namespaced, CronJob: namespaced,
    ServiceAccount: namespaced, ConfigMap: namespaced,
    Lease: namespaced, Node: cluster, Namespace: cluster, ClusterRole: cluster,
);

/// Namespace and name; the namespace of a cluster-wide object is empty.
pub(crate) fn name_of<K: Resource>(object: &K) -> ObjectName {
    let meta = object.meta();
    ObjectName::new(
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

/// One object came, changed or went.
#[derive(Debug)]
pub(crate) struct Change<K> {
    /// Before; `None` when it is new.
    pub old: Option<Arc<K>>,
    /// After; `None` when it is gone.
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// Both states, the older first.
    pub fn states(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(self.new.iter())
    }
}

type Handler<K> = dyn Fn(&Change<K>) + Send + Sync;

/// Keeps a handler called; dropping it ends that.
pub(crate) struct Subscription(
    #[expect(dead_code, reason = "owned for its drop")] Arc<dyn std::any::Any + Send + Sync>,
);

/// The cache of one kind.
pub(crate) struct Cache<K> {
    client: Client,
    mirror: RwLock<Mirror<K>>,
    handlers: Mutex<Vec<Weak<Box<Handler<K>>>>>,
    synced: watch::Sender<bool>,
}

impl<K: Object> Cache<K> {
    /// An empty cache, to be filled by [`Cache::watch`].
    pub fn new(client: Client) -> Self {
        Self {
            client,
            mirror: RwLock::new(Mirror::default()),
            handlers: Mutex::new(Vec::new()),
            synced: watch::Sender::new(false),
        }
    }

    /// Follows `api` for ever. A broken watch is resumed with a back-off of 50 ms to 1 s.
    pub async fn watch(&self, api: Api<K>, config: watcher::Config) {
        let events = watcher::watcher(api, config);
        pin_mut!(events);
        let mut failures = 0;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    failures = 0;
                    let done = matches!(event, Event::InitDone);
                    let changes = self.write(|mirror| mirror.observe(event));
                    self.tell(&changes);
                    if done {
                        self.synced.send_replace(true);
                    }
                }
                Err(error) => {
                    // An outage is told once, not with every attempt.
                    if failures == 0 {
                        tracing::warn!(kind = %K::kind(&()), %error, "watch failed, trying again");
                    }
                    tokio::time::sleep(watch_backoff(failures)).await;
                    failures += 1;
                }
            }
        }
    }

    /// Waits for the first complete list.
    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as `self`.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Calls `handler` for every object that is there already, and then for every change, until the
    /// subscription is dropped. It is called from the watch task and must not block. Two calls for one object
    /// may overtake each other: a handler marks what is to be looked at, and whoever looks reads the cache.
    #[must_use]
    pub fn subscribe(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) -> Subscription {
        let handler: Arc<Box<Handler<K>>> = Arc::new(Box::new(handler));
        self.handlers().push(Arc::downgrade(&handler));
        for object in self.list() {
            handler(&Change {
                old: None,
                new: Some(object),
            });
        }
        Subscription(handler)
    }

    /// The object of that name.
    pub fn get(&self, name: &ObjectName) -> Option<Arc<K>> {
        self.read(|mirror| mirror.objects.get(name).cloned())
    }

    /// Every object, sorted by name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.read(|mirror| mirror.objects.values().cloned().collect())
    }

    /// Every object of a namespace, sorted by name.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        self.read(|mirror| {
            let from = ObjectName::new(namespace, "");
            let objects = mirror.objects.range(from..);
            objects
                .take_while(|(name, _)| name.namespace == namespace)
                .map(|(_, object)| object.clone())
                .collect()
        })
    }

    /// Asks the server itself for the object of that name.
    pub async fn fetch(&self, name: &ObjectName) -> Result<Option<K>, Error> {
        let found = K::api(self.client.clone(), &name.namespace)
            .get_opt(&name.name)
            .await;
        found.map_err(|source| Error::api::<K>("get", name, source))
    }

    /// Creates `object` and returns what the server made of it.
    pub async fn create(&self, object: &K) -> Result<Arc<K>, Error> {
        let name = name_of(object);
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let created = K::api(self.client.clone(), &name.namespace)
            .create(&params, object)
            .await;
        self.written(created.map_err(|source| Error::api::<K>("create", &name, source))?)
    }

    /// Changes `name` by a JSON merge patch (RFC 7386).
    pub async fn merge(&self, name: &ObjectName, patch: Value) -> Result<Arc<K>, Error> {
        self.patch(name, None, &Patch::Merge(patch)).await
    }

    /// Changes the status of `name` by a strategic merge patch.
    pub async fn merge_status(&self, name: &ObjectName, patch: Value) -> Result<Arc<K>, Error> {
        self.patch(name, Some("status"), &Patch::Strategic(patch)).await
    }

    async fn patch(
        &self,
        name: &ObjectName,
        part: Option<&str>,
        patch: &Patch<Value>,
    ) -> Result<Arc<K>, Error> {
        let api = K::api(self.client.clone(), &name.namespace);
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patched = match part {
            None => api.patch(&name.name, &params, patch).await,
            Some(part) => api.patch_subresource(part, &name.name, &params, patch).await,
        };
        self.written(patched.map_err(|source| Error::api::<K>("patch", name, source))?)
    }

    /// Replaces the object, if nobody else did since it was read.
    pub async fn replace(&self, object: &K) -> Result<Arc<K>, Error> {
        let name = name_of(object);
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let api = K::api(self.client.clone(), &name.namespace);
        let replaced = api.replace(&name.name, &params, object).await;
        self.written(replaced.map_err(|source| Error::api::<K>("replace", &name, source))?)
    }

    /// Replaces the status, if nobody else changed the object since it was read.
    pub async fn replace_status(&self, object: &K) -> Result<Arc<K>, Error> {
        let name = name_of(object);
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let api = K::api(self.client.clone(), &name.namespace);
        let replaced = api
            .replace_subresource("status", &name.name, &params, object)
            .await;
        self.written(replaced.map_err(|source| Error::api::<K>("replace the status of", &name, source))?)
    }

    /// Replaces the status by that of `changed`, a copy of `stored`, if it differs, and says whether the object is still
    /// there: one that is gone needs none.
    pub async fn write_status(&self, stored: &K, changed: &K) -> Result<bool, Error>
    where
        K: PartialEq,
    {
        if stored == changed {
            return Ok(true);
        }
        match self.replace_status(changed).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes exactly this object: one of the same name and another uid stays. Gone already is good.
    pub async fn delete(&self, object: &K, params: DeleteParams) -> Result<(), Error> {
        let name = name_of(object);
        let uid = object.meta().uid.clone();
        let params = params.preconditions(Preconditions {
            uid: uid.clone(),
            resource_version: None,
        });
        let answer = K::api(self.client.clone(), &name.namespace)
            .delete(&name.name, &params)
            .await;
        let answer = answer.map_err(|source| Error::api::<K>("delete", &name, source));
        match answer.map(|answer| answer.left()) {
            Ok(Some(object)) if object.meta().deletion_timestamp.is_some() => {
                self.written(object)?;
            }
            Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
            Ok(_) | Err(_) => {
                let gone = self.write(|mirror| mirror.forget(&name, uid.as_deref().unwrap_or_default()));
                self.tell(gone.as_slice());
            }
        }
        Ok(())
    }

    /// Takes the answer to a write into the cache.
    #[expect(clippy::unnecessary_wraps, reason = "ends every writer's chain of results")]
    fn written(&self, object: K) -> Result<Arc<K>, Error> {
        let object = Arc::new(strip(object));
        let change = self.write(|mirror| mirror.note_written(object.clone()));
        self.tell(change.as_slice());
        Ok(object)
    }

    fn tell(&self, changes: &[Change<K>]) {
        if changes.is_empty() {
            return;
        }
        let handlers: Vec<_> = {
            let mut handlers = self.handlers();
            handlers.retain(|handler| handler.strong_count() > 0);
            handlers.iter().filter_map(Weak::upgrade).collect()
        };
        for change in changes {
            for handler in &handlers {
                handler(change);
            }
        }
    }

    fn handlers(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Box<Handler<K>>>>> {
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, look: impl FnOnce(&Mirror<K>) -> T) -> T {
        look(&self.mirror.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, edit: impl FnOnce(&mut Mirror<K>) -> T) -> T {
        edit(&mut self.mirror.write().unwrap_or_else(PoisonError::into_inner))
    }
}

fn watch_backoff(failures: u32) -> Duration {
    let ceiling = Duration::from_millis(50)
        .saturating_mul(1 << failures.min(10))
        .min(Duration::from_secs(1));
    ceiling.mul_f64(rand::rng().random_range(0.5..1.0))
}
