//! What the controllers of all workloads do with pods: claim them, make them from a template, delete them, and tell.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::api::DeleteParams;
use model::ObjectName;

use crate::Context;
use crate::cache::{Cache, Change, Object, name_of};
use crate::error::{Error, all};
use crate::ownership::{self, Claim};
use crate::selector;

/// One object that controls pods, and where its controller acts.
pub(crate) struct Workload<'a, K> {
    pub context: &'a Context,
    /// In whose name events are told.
    pub component: &'static str,
    /// The cache of its kind.
    pub kind: &'a Cache<K>,
    pub object: &'a K,
}

impl<K: Object> Workload<'_, K> {
    /// Adopts those of `children` in its namespace that `selector` matches and nobody controls, releases those that it
    /// no longer matches, and answers with those that are its own. Only what `concerns` says is looked at.
    pub async fn claim<C: Object>(
        &self,
        children: &Cache<C>,
        selector: &LabelSelector,
        concerns: impl Fn(&C) -> bool,
    ) -> Result<Vec<Arc<C>>, Error> {
        let owner = self.object.meta();
        let mut candidates = children.list_in(self.namespace());
        candidates.retain(|child| concerns(child));
        let mut adopting = None;
        let mut own = Vec::new();
        for (claim, child) in ownership::claims(owner, selector, candidates) {
            let patch = match claim {
                Claim::Own => {
                    own.push(child);
                    continue;
                }
                Claim::Ignore => continue,
                Claim::Release => ownership::release(owner, child.meta()),
                Claim::Adopt => {
                    if adopting.is_none() {
                        adopting = Some(self.still_lives().await?);
                    }
                    if adopting == Some(false) {
                        continue;
                    }
                    ownership::adoption(self.object, child.meta())
                }
            };
            match children.merge(&name_of(&*child), patch).await {
                Ok(adopted) if claim == Claim::Adopt => own.push(adopted),
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(own)
    }

    /// Whether the server agrees that it exists and is not being deleted: a cache that is behind must not let an
    /// object on its way out adopt anything.
    async fn still_lives(&self) -> Result<bool, Error> {
        let fresh = self.kind.fetch(&name_of(self.object)).await?;
        Ok(fresh.is_some_and(|fresh| {
            fresh.meta().uid == self.object.meta().uid && fresh.meta().deletion_timestamp.is_none()
        }))
    }

    /// The pods that it controls, sorted by name.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        let mut pods = self.context.caches.pods.list_in(self.namespace());
        pods.retain(|pod| ownership::is_controlled_by(&pod.metadata, self.object.meta().uid.as_ref()));
        pods
    }

    /// Creates in batches of 1, 2, 4 …, and stops after a batch with a failure: when the first pod is refused, for want
    /// of quota for example, the other thousand are not tried.
    pub async fn create_pods(&self, pods: &[Pod]) -> Result<(), Error> {
        let mut left = pods;
        let mut batch = 1;
        while !left.is_empty() {
            let (now, later) = left.split_at(batch.min(left.len()));
            all(join_all(now.iter().map(|pod| self.create_pod(pod))).await)?;
            left = later;
            batch *= 2;
        }
        Ok(())
    }

    async fn create_pod(&self, pod: &Pod) -> Result<(), Error> {
        let recorder = &self.context.recorder;
        match self.context.caches.pods.create(pod).await {
            Ok(pod) => {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                let message = format!("Created pod: {name}");
                recorder.normal(self.component, self.object, "SuccessfulCreate", message);
                Ok(())
            }
            // The namespace's end will take the owner as well.
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                let message = format!("Error creating: {}", error.reason());
                recorder.warning(self.component, self.object, "FailedCreate", message);
                Err(error)
            }
        }
    }

    /// Deletes all of `pods`; a failure stops none of the others.
    pub async fn delete_pods(&self, pods: &[Arc<Pod>]) -> Result<(), Error> {
        let recorder = &self.context.recorder;
        let deletions = pods.iter().map(async |pod| {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            match self
                .context
                .caches
                .pods
                .delete(&**pod, DeleteParams::default())
                .await
            {
                Ok(()) => {
                    let message = format!("Deleted pod: {name}");
                    recorder.normal(self.component, self.object, "SuccessfulDelete", message);
                    Ok(())
                }
                Err(error) => {
                    let message = format!("Error deleting: {}", error.reason());
                    recorder.warning(self.component, self.object, "FailedDelete", message);
                    Err(error)
                }
            }
        });
        all(join_all(deletions).await).map(drop)
    }

    /// A pod made from `template`, with a name that begins with the owner's.
    pub fn pod_from(&self, template: &PodTemplateSpec) -> Pod {
        let meta = template.metadata.clone().unwrap_or_default();
        let prefix = format!("{}-", self.object.meta().name.as_deref().unwrap_or_default());
        Pod {
            metadata: ObjectMeta {
                name: Some(ownership::generated_name(&prefix)),
                generate_name: Some(prefix),
                namespace: self.object.meta().namespace.clone(),
                labels: meta.labels,
                annotations: meta.annotations,
                finalizers: meta.finalizers,
                owner_references: Some(vec![ownership::controller_ref(self.object)]),
                ..ObjectMeta::default()
            },
            spec: template.spec.clone(),
            status: None,
        }
    }

    fn namespace(&self) -> &str {
        self.object.meta().namespace.as_deref().unwrap_or_default()
    }
}

/// The API leaves zero counts out, and a status must compare equal to the one that is stored.
pub(crate) fn nonzero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

/// How long from `now` until `at` has surely passed.
pub(crate) fn until(at: Timestamp, now: Timestamp) -> Duration {
    at.duration_since(now).unsigned_abs() + Duration::from_millis(10)
}

/// The objects of one kind to look at when something changed that they may control: those that control or controlled
/// it, and where nobody does, those of its namespace whose selector, as `selector` reads it, matches.
pub(crate) fn concerned<K: Object, C: Object>(
    kind: &Cache<K>,
    selector: impl Fn(&K) -> Option<&LabelSelector>,
    change: &Change<C>,
) -> Vec<ObjectName> {
    let mut names = Vec::new();
    for child in change.states() {
        let meta = child.meta();
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        match ownership::controller_of(meta) {
            Some(owner) if owner.kind == K::kind(&()) => names.push(ObjectName::new(namespace, &owner.name)),
            Some(_) => {}
            None => {
                let Some(labels) = &meta.labels else { continue };
                let might_adopt = |object: &K| {
                    selector(object).is_some_and(|wanted| {
                        !selector::is_empty(wanted) && selector::matches(wanted, labels)
                    })
                };
                let candidates = kind.list_in(namespace).into_iter();
                names.extend(
                    candidates
                        .filter(|object| might_adopt(object))
                        .map(|object| name_of(&*object)),
                );
            }
        }
    }
    names.dedup();
    names
}
