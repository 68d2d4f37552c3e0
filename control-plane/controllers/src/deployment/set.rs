//! The ReplicaSets of a Deployment while its plan is made.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::revision::Annotations;
use super::rolling::Size;
use super::status::Counts;
use crate::{ownership, template};

/// A change of one ReplicaSet. Fields that are `None` stay as they are.
#[derive(Debug, PartialEq)]
pub(crate) struct SetPatch {
    pub set: Arc<ReplicaSet>,
    pub replicas: Option<i32>,
    pub min_ready_seconds: Option<i32>,
    /// All annotations after the change.
    pub annotations: Annotations,
}

/// A ReplicaSet as it will be.
pub(super) struct Set {
    /// As it is; `None` for one that is still to be created.
    pub(super) stored: Option<Arc<ReplicaSet>>,
    pub(super) replicas: i32,
    pub(super) min_ready_seconds: Option<i32>,
    pub(super) annotations: Annotations,
}

impl Set {
    pub(super) fn of(stored: &Arc<ReplicaSet>) -> Self {
        let spec = stored.spec.as_ref();
        Self {
            stored: Some(Arc::clone(stored)),
            replicas: spec.and_then(|spec| spec.replicas).unwrap_or(1),
            min_ready_seconds: spec.and_then(|spec| spec.min_ready_seconds),
            annotations: stored.metadata.annotations.clone().unwrap_or_default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        self.stored
            .as_ref()
            .and_then(|stored| stored.metadata.name.as_deref())
            .unwrap_or_default()
    }

    pub(super) fn available(&self) -> i32 {
        let status = self.stored.as_ref().and_then(|stored| stored.status.as_ref());
        status.and_then(|status| status.available_replicas).unwrap_or(0)
    }

    pub(super) fn size(&self) -> Size {
        Size {
            replicas: self.replicas,
            available: self.available(),
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let status = self.stored.as_ref().and_then(|stored| stored.status.as_ref());
        let Some(status) = status else {
            return Counts {
                wanted: self.replicas,
                ..Counts::default()
            };
        };
        Counts {
            wanted: self.replicas,
            actual: status.replicas,
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
        }
    }

    pub(super) fn patch(self) -> Option<SetPatch> {
        let set = self.stored?;
        let before = Set::of(&set);
        let replicas = (before.replicas != self.replicas).then_some(self.replicas);
        let min_ready_seconds = self
            .min_ready_seconds
            .filter(|_| before.min_ready_seconds != self.min_ready_seconds);
        let same =
            replicas.is_none() && min_ready_seconds.is_none() && before.annotations == self.annotations;
        (!same).then_some(SetPatch {
            set,
            replicas,
            min_ready_seconds,
            annotations: self.annotations,
        })
    }
}

/// Whether a ReplicaSet has no pods, wants none, and its controller has seen that.
pub(super) fn is_empty(set: &ReplicaSet) -> bool {
    let status = set.status.clone().unwrap_or_default();
    let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    status.replicas == 0
        && wanted == 0
        && set.metadata.generation.unwrap_or(0) <= status.observed_generation.unwrap_or(0)
}

/// The ReplicaSet of the Deployment's current template.
pub(super) fn new_set(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    collisions: i32,
    replicas: i32,
    annotations: Annotations,
) -> ReplicaSet {
    let hash = template::hash(&spec.template, collisions);
    let mut template = spec.template.clone();
    let labels = template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default();
    labels.insert(template::HASH_LABEL.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut pairs = spec.selector.match_labels.clone().unwrap_or_default();
    pairs.insert(template::HASH_LABEL.to_owned(), hash.clone());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!(
                "{}-{hash}",
                deployment.metadata.name.as_deref().unwrap_or_default()
            )),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![ownership::controller_ref(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            selector: LabelSelector {
                match_labels: Some(pairs),
                match_expressions: spec.selector.match_expressions.clone(),
            },
            template: Some(template),
        }),
        status: None,
    }
}
