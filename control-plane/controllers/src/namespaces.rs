//! The end of a namespace: everything in it is deleted, and when nothing is left, so is the namespace.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use model::ObjectName;
use serde_json::json;

use crate::cache::name_of;
use crate::discovery::{self, Kind};
use crate::error::Error;
use crate::queue::{Next, Queue, Reconcile, drive};
use crate::{Context, pods};

const WORKERS: usize = 4;
/// The finalizer that this controller removes, in `spec.finalizers`.
const FINALIZER: &str = "kubernetes";
/// How many kinds are looked through at a time.
const PARALLEL: usize = 8;
/// When to look again for what does not announce its end. The end of pods is seen at once.
const PATIENCE: Duration = Duration::from_millis(250);

/// Runs the controller.
pub(crate) async fn run(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let _namespaces = context.caches.namespaces.subscribe({
        let queue = Arc::clone(&queue);
        move |change| {
            let ending = change
                .new
                .as_ref()
                .filter(|namespace| namespace.metadata.deletion_timestamp.is_some());
            ending
                .into_iter()
                .for_each(|namespace| queue.add(name_of(&**namespace)));
        }
    });
    let _pods = context.caches.pods.subscribe({
        let (queue, context) = (Arc::clone(&queue), Arc::clone(&context));
        move |change| {
            let (Some(pod), None) = (&change.old, &change.new) else {
                return;
            };
            let namespace = ObjectName::new("", name_of(&**pod).namespace);
            let home = context.caches.namespaces.get(&namespace);
            let last = home.is_some_and(|home| home.metadata.deletion_timestamp.is_some())
                && context.caches.pods.list_in(&namespace.name).is_empty();
            if last {
                queue.add(namespace);
            }
        }
    });
    drive(&queue, &Controller(context), WORKERS).await;
    Ok(())
}

/// What is left of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rest {
    kind: String,
    count: usize,
    finalizers: Vec<String>,
}

struct Controller(Arc<Context>);

impl Reconcile for Controller {
    type Key = ObjectName;
    const NAME: &'static str = "namespace";

    async fn reconcile(&self, key: &ObjectName) -> Result<Next, Error> {
        // The server itself is asked: what is deleted here is not to be decided by a cache.
        let Some(namespace) = self.0.caches.namespaces.fetch(key).await? else {
            return Ok(Next::OnChange);
        };
        if !is_ours_to_end(&namespace) {
            return Ok(Next::OnChange);
        }
        let kinds = discovery::kinds(&self.0.client).await?;
        let kinds = kinds
            .into_iter()
            .filter(|kind| kind.is_namespaced && kind.offers(&["list", "delete"]));
        let rests = stream::iter(kinds.map(|kind| self.clear(kind, key)));
        let rests: Vec<Rest> = rests.buffer_unordered(PARALLEL).try_collect().await?;
        let rests: Vec<Rest> = rests.into_iter().filter(|rest| rest.count > 0).collect();
        if rests.is_empty() {
            self.finalize(namespace).await?;
            return Ok(Next::OnChange);
        }
        self.report(&namespace, &rests).await?;
        Ok(Next::After(self.patience(key)))
    }
}

fn is_ours_to_end(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
    let holds =
        finalizers.is_some_and(|finalizers| finalizers.iter().any(|finalizer| finalizer == FINALIZER));
    namespace.metadata.deletion_timestamp.is_some() && holds
}

impl Controller {
    /// Deletes all objects of one kind, and counts those that are still there afterwards: pods that take
    /// their time, objects with finalizers.
    async fn clear(&self, kind: Kind, namespace: &ObjectName) -> Result<Rest, Error> {
        let api = kind.api(&self.0.client, &namespace.name);
        let object = ObjectName::new(&namespace.name, "*");
        let failed = |operation| {
            let (kind, object) = (kind.full_name(), object.clone());
            move |source| Error::Api {
                operation,
                kind,
                object,
                source: Box::new(source),
            }
        };
        let list = async || {
            api.list_metadata(&ListParams::default())
                .await
                .map(|list| list.items)
        };
        let before = list().await.map_err(failed("list"))?;
        if before.is_empty() {
            return Ok(Rest {
                kind: kind.full_name(),
                count: 0,
                finalizers: Vec::new(),
            });
        }
        let params = DeleteParams::background();
        if kind.offers(&["deletecollection"]) {
            let deleted = api.delete_collection(&params, &ListParams::default()).await;
            deleted.map_err(failed("delete"))?;
        } else {
            for object in before
                .iter()
                .filter(|object| object.metadata.deletion_timestamp.is_none())
            {
                match api
                    .delete(object.metadata.name.as_deref().unwrap_or_default(), &params)
                    .await
                {
                    Err(kube::Error::Api(status)) if status.is_not_found() => {}
                    other => other.map(drop).map_err(failed("delete"))?,
                }
            }
        }
        let after = list().await.map_err(failed("list"))?;
        let finalizers = after
            .iter()
            .flat_map(|object| object.metadata.finalizers.clone().unwrap_or_default());
        Ok(Rest {
            kind: kind.full_name(),
            count: after.len(),
            finalizers: finalizers.collect(),
        })
    }

    async fn finalize(&self, mut namespace: Namespace) -> Result<(), Error> {
        let name = name_of(&namespace);
        if let Some(finalizers) = namespace.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        let api: Api<Namespace> = Api::all(self.0.client.clone());
        let body = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": namespace.metadata, "spec": namespace.spec,
        });
        let finalized = api
            .replace_subresource("finalize", &name.name, &PostParams::default(), &body)
            .await;
        match finalized {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(source) => Err(Error::api::<Namespace>("finalize", &name, source)),
            Ok(_) => Ok(()),
        }
    }

    /// Says on the namespace what it waits for.
    async fn report(&self, namespace: &Namespace, rests: &[Rest]) -> Result<(), Error> {
        let stored = namespace
            .status
            .as_ref()
            .and_then(|status| status.conditions.clone())
            .unwrap_or_default();
        let wanted = conditions(rests, Timestamp::now());
        let is_told = |wanted: &NamespaceCondition| {
            stored
                .iter()
                .any(|known| known.type_ == wanted.type_ && known.message == wanted.message)
        };
        if wanted.iter().all(is_told) {
            return Ok(());
        }
        let patch =
            json!({ "metadata": { "uid": namespace.metadata.uid }, "status": { "conditions": wanted } });
        match self
            .0
            .caches
            .namespaces
            .merge_status(&name_of(namespace), patch)
            .await
        {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Pods that are ending are waited for, their end is an event; anything else is looked for again soon.
    fn patience(&self, namespace: &ObjectName) -> Duration {
        let pods = self.0.caches.pods.list_in(&namespace.name);
        let running = pods.iter().filter(|pod| pods::node(pod).is_some());
        if running.count() > 0 {
            PATIENCE * 4
        } else {
            PATIENCE
        }
    }
}

/// Upstream's conditions on what remains.
fn conditions(rests: &[Rest], now: Timestamp) -> Vec<NamespaceCondition> {
    let condition = |type_: &str, reason: &str, message: String| NamespaceCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: Some(Time(now)),
    };
    let mut remaining: Vec<String> = rests
        .iter()
        .map(|rest| format!("{}. has {} resource instances", rest.kind, rest.count))
        .collect();
    remaining.sort();
    let message = format!("Some resources are remaining: {}", remaining.join(", "));
    let mut conditions = vec![condition(
        "NamespaceContentRemaining",
        "SomeResourcesRemain",
        message,
    )];
    let mut finalizers: BTreeMap<&str, usize> = BTreeMap::new();
    for finalizer in rests.iter().flat_map(|rest| &rest.finalizers) {
        *finalizers.entry(finalizer).or_default() += 1;
    }
    if !finalizers.is_empty() {
        let listed: Vec<_> = finalizers
            .iter()
            .map(|(name, count)| format!("{name} in {count} resource instances"))
            .collect();
        let message = format!(
            "Some content in the namespace has finalizers remaining: {}",
            listed.join(", ")
        );
        conditions.push(condition(
            "NamespaceFinalizersRemaining",
            "SomeFinalizersRemain",
            message,
        ));
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_says_what_it_waits_for_in_upstreams_words() {
        let rest = |kind: &str, count, finalizers: &[&str]| Rest {
            kind: kind.to_owned(),
            count,
            finalizers: finalizers.iter().map(|name| (*name).to_owned()).collect(),
        };
        let told = conditions(
            &[rest("widgets.example.com", 1, &["a/b"]), rest("pods", 2, &[])],
            Timestamp::UNIX_EPOCH,
        );
        let told: Vec<_> = told.into_iter().map(|c| (c.type_, c.message.unwrap())).collect();
        assert_eq!(
            told,
            [
                (
                    "NamespaceContentRemaining".to_owned(),
                    "Some resources are remaining: pods. has 2 resource instances, widgets.example.com. has 1 resource \
                     instances"
                        .to_owned(),
                ),
                (
                    "NamespaceFinalizersRemaining".to_owned(),
                    "Some content in the namespace has finalizers remaining: a/b in 1 resource instances".to_owned(),
                ),
            ]
        );
    }
}
