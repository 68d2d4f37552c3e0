//! ControllerRevisions: the versions that a DaemonSet's or StatefulSet's pod template had, for `kubectl rollout
//! history` and `undo` (upstream's `pkg/controller/history`).

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::cache::{Object, name_of};
use crate::error::Error;
use crate::workload::Workload;
use crate::{ownership, template};

/// The label of a revision, and of the pods that were made from it.
pub(crate) const HASH_LABEL: &str = "controller-revision-hash";

/// The versions of one object's template, in order.
#[derive(Debug, PartialEq)]
pub(crate) struct Versions {
    /// The revision of the current template: one that is stored, perhaps to get a new number.
    pub current: Current,
    /// Other revisions of the same template: their pods belong to the current one, they themselves are to go.
    pub doubles: Vec<Arc<ControllerRevision>>,
    /// Those of other templates, oldest first.
    pub old: Vec<Arc<ControllerRevision>>,
}

/// The revision of the current template.
#[derive(Debug, PartialEq)]
pub(crate) enum Current {
    /// As stored.
    Kept(Arc<ControllerRevision>),
    /// Stored, and newest again: it gets this number.
    Renumbered(Arc<ControllerRevision>, i64),
    /// Not stored yet; with this number.
    New(i64),
}

/// Compares `stored` with the current template. The newest revision has the highest number; of several of the current
/// template the newest stays.
pub(crate) fn versions(current: &PodTemplateSpec, stored: Vec<Arc<ControllerRevision>>) -> Versions {
    let (mut same, mut old): (Vec<_>, Vec<_>) = stored.into_iter().partition(|revision| {
        template_of(revision).is_some_and(|stored| template::is_same(&stored, current))
    });
    let order = |revision: &Arc<ControllerRevision>| {
        (
            revision.revision,
            revision.metadata.creation_timestamp.clone(),
            revision.metadata.name.clone(),
        )
    };
    same.sort_by_key(order);
    old.sort_by_key(order);
    let number = old.last().map_or(0, |newest| newest.revision) + 1;
    let current = match same.pop() {
        None => Current::New(number),
        Some(known) if known.revision < number => Current::Renumbered(known, number),
        Some(known) => Current::Kept(known),
    };
    Versions {
        current,
        doubles: same,
        old,
    }
}

/// The oldest of `old` beyond `limit`, but for those of which pods still run.
fn surplus(
    old: &[Arc<ControllerRevision>],
    live: &BTreeSet<&str>,
    limit: i32,
) -> Vec<Arc<ControllerRevision>> {
    let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    old.iter()
        .filter(|revision| !live.contains(hash_of(&revision.metadata)))
        .take(surplus)
        .cloned()
        .collect()
}

/// The version that a revision or a pod belongs to; empty where it says none.
pub(crate) fn hash_of(meta: &ObjectMeta) -> &str {
    let labels = meta.labels.as_ref();
    labels
        .and_then(|labels| labels.get(HASH_LABEL))
        .map_or("", String::as_str)
}

/// The template that a revision keeps.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// What a revision keeps: a strategic merge patch that brings the template back, which `kubectl rollout undo` sends.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = json!("replace");
    json!({ "spec": { "template": template } })
}

/// What came of storing the versions.
pub(crate) enum Stored {
    /// The current version's hash.
    As(String),
    /// The name that the hash gives belongs to another version: the hash has to be another.
    Collision,
}

impl<K: Object> Workload<'_, K> {
    /// The revisions that it controls; those that `selector` matches and nobody controls become its own.
    pub async fn revisions(&self, selector: &LabelSelector) -> Result<Vec<Arc<ControllerRevision>>, Error> {
        let cache = &self.context.caches.controller_revisions;
        self.claim(cache, selector, |_| true).await
    }

    /// Makes the stored revisions what `versions` says.
    pub async fn store_versions(
        &self,
        versions: &Versions,
        current: &PodTemplateSpec,
        collisions: i32,
    ) -> Result<Stored, Error> {
        let cache = &self.context.caches.controller_revisions;
        let kept = match &versions.current {
            Current::Kept(known) => Arc::clone(known),
            Current::Renumbered(known, number) => {
                let renumbered = ControllerRevision {
                    revision: *number,
                    ..(**known).clone()
                };
                cache.replace(&renumbered).await?
            }
            Current::New(number) => {
                let revision = self.revision(current, *number, collisions);
                match cache.create(&revision).await {
                    Ok(created) => created,
                    Err(error) if error.is_already_exists() => {
                        let taken = cache.fetch(&name_of(&revision)).await?;
                        let ours = taken.filter(|taken| {
                            ownership::is_controlled_by(&taken.metadata, self.object.meta().uid.as_ref())
                                && taken.data == revision.data
                        });
                        // Ours: the cache has not heard of it yet, but will.
                        let Some(ours) = ours else {
                            return Ok(Stored::Collision);
                        };
                        Arc::new(ours)
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        let hash = hash_of(&kept.metadata).to_owned();
        for double in &versions.doubles {
            self.relabel_pods(hash_of(&double.metadata), &hash).await?;
            cache.delete(&**double, DeleteParams::default()).await?;
        }
        Ok(Stored::As(hash))
    }

    /// Deletes old versions beyond `limit` (10 where it is absent), but for those that `live` names.
    pub async fn forget_old_versions(
        &self,
        versions: &Versions,
        live: &BTreeSet<&str>,
        limit: Option<i32>,
    ) -> Result<(), Error> {
        let cache = &self.context.caches.controller_revisions;
        for revision in surplus(&versions.old, live, limit.unwrap_or(10)) {
            cache.delete(&*revision, DeleteParams::default()).await?;
        }
        Ok(())
    }

    async fn relabel_pods(&self, from: &str, to: &str) -> Result<(), Error> {
        let pods = self.pods();
        for pod in pods.iter().filter(|pod| hash_of(&pod.metadata) == from) {
            let patch = json!({ "metadata": { "uid": pod.metadata.uid, "labels": { HASH_LABEL: to } } });
            self.context.caches.pods.merge(&name_of(&**pod), patch).await?;
        }
        Ok(())
    }

    fn revision(&self, current: &PodTemplateSpec, number: i64, collisions: i32) -> ControllerRevision {
        let owner = self.object.meta();
        let hash = template::hash(current, collisions);
        let mut labels = current
            .metadata
            .as_ref()
            .and_then(|meta| meta.labels.clone())
            .unwrap_or_default();
        labels.insert(HASH_LABEL.to_owned(), hash.clone());
        ControllerRevision {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", owner.name.as_deref().unwrap_or_default())),
                namespace: owner.namespace.clone(),
                labels: Some(labels),
                annotations: owner.annotations.clone(),
                owner_references: Some(vec![ownership::controller_ref(self.object)]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(data(current))),
            revision: number,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(version: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({ "metadata": { "annotations": { "v": version } } })).unwrap()
    }

    /// Its name is its version, a dash and its number.
    fn revision(version: &str, number: i64) -> Arc<ControllerRevision> {
        let name = format!("{version}-{number}");
        Arc::new(ControllerRevision {
            metadata: serde_json::from_value(json!({ "name": name, "labels": { HASH_LABEL: version } }))
                .unwrap(),
            data: Some(RawExtension(data(&template(version)))),
            revision: number,
        })
    }

    #[track_caller]
    fn check(stored: &[(&str, i64)], current: &str, expected: (&str, &[&str], &[&str])) {
        let stored = stored.iter().map(|(version, number)| revision(version, *number));
        let found = versions(&template(current), stored.collect());
        let name = |revision: &Arc<ControllerRevision>| revision.metadata.name.clone().unwrap();
        let now = match &found.current {
            Current::Kept(known) => name(known),
            Current::Renumbered(known, number) => format!("{} to {number}", name(known)),
            Current::New(number) => format!("new {number}"),
        };
        let names = |list: &[Arc<ControllerRevision>]| list.iter().map(name).collect::<Vec<_>>();
        assert_eq!(
            (now.as_str(), names(&found.doubles), names(&found.old)),
            (
                expected.0,
                expected.1.iter().map(|name| (*name).to_owned()).collect(),
                expected.2.iter().map(|name| (*name).to_owned()).collect(),
            )
        );
    }

    #[test]
    fn a_version_is_stored_once_and_renumbered_when_it_comes_back() {
        check(&[], "a", ("new 1", &[], &[]));
        check(&[("a", 1)], "a", ("a-1", &[], &[]));
        check(&[("a", 1)], "b", ("new 2", &[], &["a-1"]));
        check(&[("b", 2), ("a", 1)], "b", ("b-2", &[], &["a-1"]));
        check(&[("b", 2), ("a", 1)], "a", ("a-1 to 3", &[], &["b-2"]));
        check(
            &[("c", 7), ("b", 2), ("a", 9)],
            "d",
            ("new 10", &[], &["b-2", "c-7", "a-9"]),
        );
        check(&[("a", 1), ("a", 4), ("b", 3)], "a", ("a-4", &["a-1"], &["b-3"]));
        check(
            &[("a", 1), ("a", 2), ("b", 3)],
            "a",
            ("a-2 to 4", &["a-1"], &["b-3"]),
        );
    }

    #[test]
    fn old_versions_beyond_the_limit_go_unless_pods_still_run_them() {
        let old = [revision("a", 1), revision("b", 2), revision("c", 3)];
        let gone = |live: &[&str], limit: i32| -> Vec<String> {
            let surplus = surplus(&old, &live.iter().copied().collect(), limit);
            surplus
                .iter()
                .map(|revision| hash_of(&revision.metadata).to_owned())
                .collect()
        };
        assert_eq!(gone(&[], 10), [""; 0]);
        assert_eq!(gone(&[], 2), ["a"]);
        assert_eq!(gone(&[], 0), ["a", "b", "c"]);
        assert_eq!(gone(&["a"], 1), ["b", "c"]);
        assert_eq!(gone(&["a", "b", "c"], 0), [""; 0]);
    }

    #[test]
    fn what_is_kept_is_the_patch_that_brings_the_template_back() {
        let kept = revision("a", 1);
        let expected = json!({ "spec": { "template": { "$patch": "replace", "metadata": { "annotations": { "v": "a" } } } } });
        assert_eq!(kept.data.as_ref().unwrap().0, expected);
        assert_eq!(template_of(&kept), Some(template("a")));
    }
}
