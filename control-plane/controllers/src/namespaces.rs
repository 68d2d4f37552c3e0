//! The end of a namespace: everything in it is deleted, and when nothing is left, so is the namespace.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
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

/// What one look at a namespace that ends came to.
#[derive(Debug, Default)]
struct Found {
    /// Why the kinds are not known.
    undiscovered: Option<String>,
    /// What could not be deleted.
    failures: Vec<String>,
    rests: Vec<Rest>,
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
        let kinds = match discovery::kinds(&self.0.client).await {
            Ok(kinds) => kinds,
            Err(error) => {
                let found = Found {
                    undiscovered: Some(error.to_string()),
                    ..Found::default()
                };
                self.report(&namespace, &found).await?;
                return Err(error);
            }
        };
        let kinds = kinds
            .into_iter()
            .filter(|kind| kind.is_namespaced && kind.offers(&["list", "delete"]));
        let results = stream::iter(kinds.map(|kind| self.clear(kind, key)));
        let results: Vec<Result<Rest, Error>> = results.buffer_unordered(PARALLEL).collect().await;
        let (mut rests, mut failures) = (Vec::new(), Vec::new());
        for result in results {
            match result {
                Ok(rest) if rest.count > 0 => rests.push(rest),
                Ok(_) => {}
                Err(error) => failures.push(error),
            }
        }
        if rests.is_empty() && failures.is_empty() {
            self.finalize(namespace).await?;
            return Ok(Next::OnChange);
        }
        let found = Found {
            undiscovered: None,
            failures: failures.iter().map(ToString::to_string).collect(),
            rests,
        };
        self.report(&namespace, &found).await?;
        match failures.into_iter().next() {
            Some(failure) => Err(failure),
            None => Ok(Next::After(self.patience(key))),
        }
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
    async fn report(&self, namespace: &Namespace, found: &Found) -> Result<(), Error> {
        let stored = namespace
            .status
            .as_ref()
            .and_then(|status| status.conditions.clone())
            .unwrap_or_default();
        let wanted = conditions(found, &stored, Timestamp::now());
        if wanted.iter().all(|wanted| stored.contains(wanted)) {
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

/// Upstream's conditions on what was found, in its words. The time of one changes with its status.
fn conditions(found: &Found, stored: &[NamespaceCondition], now: Timestamp) -> Vec<NamespaceCondition> {
    let [discovery, deletion, content, finalizers] = messages(found);
    let rows = [
        (
            "NamespaceDeletionDiscoveryFailure",
            ["ResourcesDiscovered", "DiscoveryFailed"],
            "All resources successfully discovered",
            discovery,
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            ["ParsedGroupVersions", "GroupVersionParsingFailed"],
            "All legacy kube types successfully parsed",
            None,
        ),
        (
            "NamespaceDeletionContentFailure",
            ["ContentDeleted", "ContentDeletionFailed"],
            "All content successfully deleted, may be waiting on finalization",
            deletion,
        ),
        (
            "NamespaceContentRemaining",
            ["ContentRemoved", "SomeResourcesRemain"],
            "All content successfully removed",
            content,
        ),
        (
            "NamespaceFinalizersRemaining",
            ["ContentHasNoFinalizers", "SomeFinalizersRemain"],
            "All content-preserving finalizers finished",
            finalizers,
        ),
    ];
    let condition = |(type_, reasons, good, bad): (&str, [&str; 2], &str, Option<String>)| {
        let status = if bad.is_some() { "True" } else { "False" };
        let mut known = stored.iter().filter(|known| known.type_ == type_);
        let since = known
            .find(|known| known.status == status)
            .and_then(|known| known.last_transition_time.clone());
        NamespaceCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reasons[usize::from(bad.is_some())].to_owned()),
            message: Some(bad.unwrap_or_else(|| good.to_owned())),
            last_transition_time: Some(since.unwrap_or(Time(now))),
        }
    };
    rows.into_iter().map(condition).collect()
}

/// What is wrong with the discovery, with deletions, with what remains and with its finalizers.
fn messages(found: &Found) -> [Option<String>; 4] {
    let failures = &found.failures;
    let deletion = format!(
        "Failed to delete all resource types, {} remaining: {}",
        failures.len(),
        failures.join(", ")
    );
    let mut remaining: Vec<String> = found
        .rests
        .iter()
        .map(|rest| format!("{}. has {} resource instances", rest.kind, rest.count))
        .collect();
    remaining.sort();
    let content = format!("Some resources are remaining: {}", remaining.join(", "));
    let mut finalizers: BTreeMap<&str, usize> = BTreeMap::new();
    for finalizer in found.rests.iter().flat_map(|rest| &rest.finalizers) {
        *finalizers.entry(finalizer).or_default() += 1;
    }
    let listed: Vec<_> = finalizers
        .iter()
        .map(|(name, count)| format!("{name} in {count} resource instances"))
        .collect();
    let held = format!(
        "Some content in the namespace has finalizers remaining: {}",
        listed.join(", ")
    );
    [
        found
            .undiscovered
            .as_ref()
            .map(|why| format!("Discovery failed: {why}")),
        (!failures.is_empty()).then_some(deletion),
        (!remaining.is_empty()).then_some(content),
        (!listed.is_empty()).then_some(held),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 5] = [
        (
            "False ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "False ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "False ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        ("False ContentRemoved", "All content successfully removed"),
        (
            "False ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ];

    /// `bad`: which of the conditions are not as in [`GOOD`].
    #[track_caller]
    fn check(found: &Found, bad: &[(usize, (&str, &str))]) {
        let told = conditions(found, &[], Timestamp::UNIX_EPOCH);
        let told: Vec<_> = told
            .into_iter()
            .map(|c| (format!("{} {}", c.status, c.reason.unwrap()), c.message.unwrap()))
            .collect();
        let mut expected = GOOD;
        for (place, row) in bad {
            expected[*place] = *row;
        }
        let expected = expected.map(|(reason, message)| (reason.to_owned(), message.to_owned()));
        assert_eq!(told, expected);
    }

    #[test]
    fn the_namespace_says_what_it_waits_for_in_upstreams_words() {
        let rest = |kind: &str, count, finalizers: &[&str]| Rest {
            kind: kind.to_owned(),
            count,
            finalizers: finalizers.iter().map(|name| (*name).to_owned()).collect(),
        };
        check(&Found::default(), &[]);
        let found = Found {
            rests: vec![rest("widgets.example.com", 1, &["a/b"]), rest("pods", 2, &[])],
            ..Found::default()
        };
        let remaining = "Some resources are remaining: pods. has 2 resource instances, widgets.example.com. has 1 resource \
             instances";
        let held = "Some content in the namespace has finalizers remaining: a/b in 1 resource instances";
        check(
            &found,
            &[
                (3, ("True SomeResourcesRemain", remaining)),
                (4, ("True SomeFinalizersRemain", held)),
            ],
        );
        let found = Found {
            failures: vec!["cannot delete pods".to_owned()],
            ..Found::default()
        };
        let failed = "Failed to delete all resource types, 1 remaining: cannot delete pods";
        check(&found, &[(2, ("True ContentDeletionFailed", failed))]);
        let found = Found {
            undiscovered: Some("no answer".to_owned()),
            ..Found::default()
        };
        check(
            &found,
            &[(0, ("True DiscoveryFailed", "Discovery failed: no answer"))],
        );
    }

    #[test]
    fn a_conditions_time_changes_with_its_status_alone() {
        let rest = |count| Found {
            rests: vec![Rest {
                kind: "pods".to_owned(),
                count,
                finalizers: Vec::new(),
            }],
            ..Found::default()
        };
        let first = conditions(&rest(2), &[], Timestamp::UNIX_EPOCH);
        let later = Timestamp::from_second(9).unwrap();
        let second = conditions(&rest(1), &first, later);
        assert_eq!(second[3].last_transition_time, Some(Time(Timestamp::UNIX_EPOCH)));
        let third = conditions(&Found::default(), &second, later);
        assert_eq!(third[3].last_transition_time, Some(Time(later)));
    }
}
