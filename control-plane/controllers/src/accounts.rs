//! What every namespace has by itself: the ServiceAccount `default`, and the cluster's CA in a ConfigMap.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use model::ObjectName;
use serde_json::json;

use crate::Context;
use crate::cache::{Subscription, name_of};
use crate::context::ROOT_CA;
use crate::error::Error;
use crate::queue::{Next, Queue, Reconcile, drive};

const WORKERS: usize = 4;
/// The ServiceAccount of pods that name none.
const DEFAULT: &str = "default";
/// Upstream's description of the ConfigMap, which tools show.
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
                           endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
                           guaranteed across distributions of Kubernetes clusters.";

/// Runs the controller of default ServiceAccounts. Its keys are the names of namespaces.
pub(crate) async fn run_service_accounts(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let _namespaces = subscribe(&context, &queue);
    let _accounts = context.caches.service_accounts.subscribe({
        let queue = Arc::clone(&queue);
        move |change| {
            if let (Some(account), None) = (&change.old, &change.new) {
                queue.add(name_of(&**account).namespace.into());
            }
        }
    });
    drive(&queue, &Accounts(context), WORKERS).await;
    Ok(())
}

/// Runs the publisher of the CA. Its keys are the names of namespaces.
pub(crate) async fn run_root_ca(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let _namespaces = subscribe(&context, &queue);
    let _config_maps = context.caches.root_cas.subscribe({
        let queue = Arc::clone(&queue);
        move |change| {
            change
                .states()
                .take(1)
                .for_each(|map| queue.add(name_of(&**map).namespace.into()))
        }
    });
    drive(&queue, &RootCa(context), WORKERS).await;
    Ok(())
}

fn subscribe(context: &Context, queue: &Arc<Queue<String>>) -> Subscription {
    let queue = Arc::clone(queue);
    context.caches.namespaces.subscribe(move |change| {
        change
            .new
            .iter()
            .for_each(|namespace| queue.add(name_of(&**namespace).name.into()));
    })
}

/// Whether the namespace exists and is not on its way out.
fn is_active(context: &Context, namespace: &str) -> bool {
    let namespace: Option<Arc<Namespace>> = context.caches.namespaces.get(&ObjectName::new("", namespace));
    namespace.is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_none())
}

/// The outcome of creating what somebody else may have created already, in a namespace that may be going.
fn created<T>(outcome: Result<T, Error>) -> Result<Next, Error> {
    match outcome {
        Err(error) if !error.is_already_exists() && !error.is_namespace_terminating() => Err(error),
        _ => Ok(Next::OnChange),
    }
}

struct Accounts(Arc<Context>);

impl Reconcile for Accounts {
    type Key = String;
    const NAME: &'static str = "serviceaccount";

    async fn reconcile(&self, namespace: &String) -> Result<Next, Error> {
        let cache = &self.0.caches.service_accounts;
        if !is_active(&self.0, namespace) || cache.get(&ObjectName::new(namespace, DEFAULT)).is_some() {
            return Ok(Next::OnChange);
        }
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(DEFAULT.to_owned()),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        created(cache.create(&account).await)
    }
}

struct RootCa(Arc<Context>);

impl Reconcile for RootCa {
    type Key = String;
    const NAME: &'static str = "root-ca";

    async fn reconcile(&self, namespace: &String) -> Result<Next, Error> {
        let pem = &self.0.config.root_ca_pem;
        if pem.is_empty() || !is_active(&self.0, namespace) {
            return Ok(Next::OnChange);
        }
        let cache = &self.0.caches.root_cas;
        let wanted = BTreeMap::from([("ca.crt".to_owned(), pem.clone())]);
        match cache.get(&ObjectName::new(namespace, ROOT_CA)) {
            None => created(cache.create(&config_map(namespace, wanted)).await),
            Some(map) if map.data.as_ref() != Some(&wanted) => {
                let patch = json!({ "metadata": { "uid": map.metadata.uid }, "data": wanted });
                cache.merge(&name_of(&*map), patch).await.map(|_| Next::OnChange)
            }
            Some(_) => Ok(Next::OnChange),
        }
    }
}

fn config_map(namespace: &str, data: BTreeMap<String, String>) -> ConfigMap {
    let description = ("kubernetes.io/description".to_owned(), DESCRIPTION.to_owned());
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(ROOT_CA.to_owned()),
            namespace: Some(namespace.to_owned()),
            annotations: Some(BTreeMap::from([description])),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..ConfigMap::default()
    }
}
