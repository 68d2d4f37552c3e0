//! What a Deployment calls for now: one look at it and at its ReplicaSets, everything that follows from it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet};

use super::proportional::{self, Share};
use super::revision::{self, Annotations};
use super::rolling::{self, Limits, Size};
use super::set::{Set, SetPatch, is_empty, new_set};
use super::status::{self, Counts, Progress};
use crate::selector;

/// What is to be done, in this order.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// The ReplicaSet of a template that has none yet.
    pub create: Option<ReplicaSet>,
    /// Changes of existing ReplicaSets.
    pub patches: Vec<SetPatch>,
    /// ReplicaSets beyond the history limit.
    pub delete: Vec<Arc<ReplicaSet>>,
    /// The Deployment's new revision annotation, where it changes.
    pub revision: Option<String>,
    /// The Deployment's status after all that.
    pub status: DeploymentStatus,
    /// Messages of `ScalingReplicaSet` events.
    pub said: Vec<String>,
    /// Reason and message of a warning.
    pub warned: Option<(&'static str, String)>,
    /// When to look again if nothing changes: a deadline.
    pub again: Option<Duration>,
}

/// Whether all old pods must be gone before new ones come.
pub(crate) fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// Decides for a Deployment with these ReplicaSets (only its own). `has_running_pods` tells whether a
/// ReplicaSet still has pods that are not finished; only Recreate asks.
pub(crate) fn plan(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    has_running_pods: &dyn Fn(&ReplicaSet) -> bool,
    now: Timestamp,
) -> Plan {
    let Some(spec) = &deployment.spec else {
        return Plan::default();
    };
    let mut draft = Draft::new(deployment, spec, sets, now);
    if selector::is_empty(&spec.selector) {
        draft.status.observed_generation = deployment.metadata.generation;
        let message = "This deployment is selecting all pods. A non-empty selector is required.".to_owned();
        return Plan {
            warned: Some(("SelectingAll", message)),
            status: draft.status,
            ..Plan::default()
        };
    }
    if deployment.metadata.deletion_timestamp.is_some() {
        draft.adopt_new();
        return draft.finish(Progress::Leave);
    }
    status::note_pause(spec, &mut draft.status, now);
    if spec.paused == Some(true) || draft.is_scaling() {
        draft.adopt_new();
        draft.scale();
        if spec.paused == Some(true) {
            draft.clean_up();
        }
        return draft.finish(Progress::Leave);
    }
    if is_recreate(deployment) {
        draft.recreate(has_running_pods);
    } else {
        draft.adopt_new();
        draft.create_new();
        draft.roll();
    }
    if draft.is_complete() {
        draft.clean_up();
    }
    draft.finish(Progress::Follow)
}

struct Draft<'a> {
    deployment: &'a Deployment,
    spec: &'a DeploymentSpec,
    limits: Limits,
    /// Oldest first.
    sets: Vec<Set>,
    /// Where among `sets` the one of the current template is.
    new: Option<usize>,
    create: Option<ReplicaSet>,
    delete: Vec<Arc<ReplicaSet>>,
    revision: Option<String>,
    status: DeploymentStatus,
    said: Vec<String>,
    now: Timestamp,
}

impl<'a> Draft<'a> {
    fn new(
        deployment: &'a Deployment,
        spec: &'a DeploymentSpec,
        sets: &[Arc<ReplicaSet>],
        now: Timestamp,
    ) -> Self {
        let mut sets = sets.to_vec();
        sets.sort_by_key(|set| (set.metadata.creation_timestamp.clone(), set.metadata.name.clone()));
        Self {
            deployment,
            spec,
            limits: Limits::of(deployment),
            // Of several with the same template the oldest is the current one.
            new: sets
                .iter()
                .position(|set| revision::has_template_of(set, deployment)),
            sets: sets.iter().map(Set::of).collect(),
            create: None,
            delete: Vec::new(),
            revision: None,
            status: deployment.status.clone().unwrap_or_default(),
            said: Vec::new(),
            now,
        }
    }

    /// Whether `spec.replicas` changed since the active ReplicaSets were last scaled.
    fn is_scaling(&self) -> bool {
        let active = self.sets.iter().filter(|set| set.replicas > 0);
        active
            .filter_map(|set| revision::number(Some(&set.annotations), revision::DESIRED))
            .any(|desired| desired != i64::from(self.limits.desired))
    }

    fn total(&self) -> i32 {
        rolling::sum(self.sets.iter().map(|set| set.replicas))
    }

    fn old(&self) -> Vec<usize> {
        (0..self.sets.len())
            .filter(|index| Some(*index) != self.new)
            .collect()
    }

    fn next_revision(&self) -> i64 {
        let revisions = self
            .old()
            .into_iter()
            .filter_map(|index| self.sets[index].stored.as_deref());
        revisions.map(revision::revision).max().unwrap_or(0) + 1
    }

    /// Brings an existing ReplicaSet of the current template up to date.
    fn adopt_new(&mut self) {
        let Some(new) = self.new else { return };
        let next = self.next_revision();
        let set = &mut self.sets[new];
        set.min_ready_seconds = self.spec.min_ready_seconds.or(set.min_ready_seconds.map(|_| 0));
        revision::annotate_new(self.deployment, &mut set.annotations, next);
        let name = set.name().to_owned();
        self.set_revision(set_revision(&self.sets[new].annotations));
        status::note_found(self.spec, &mut self.status, &name, self.now);
    }

    fn set_revision(&mut self, revision: Option<String>) {
        let have = self
            .deployment
            .metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get(revision::REVISION));
        self.revision = revision.filter(|revision| Some(revision) != have);
    }

    /// Makes the ReplicaSet of a template that has none.
    fn create_new(&mut self) {
        if self.new.is_some() {
            return;
        }
        let mut annotations = Annotations::new();
        revision::annotate_new(self.deployment, &mut annotations, self.next_revision());
        let replicas = if is_recreate(self.deployment) {
            self.limits.desired
        } else {
            self.limits.new_size(0, self.total())
        };
        revision::annotate_scale(
            &mut annotations,
            self.limits.desired,
            self.limits.desired + self.limits.surge,
        );
        self.set_revision(set_revision(&annotations));
        let set = new_set(
            self.deployment,
            self.spec,
            self.collisions(),
            replicas,
            annotations.clone(),
        );
        let name = set.metadata.name.clone().unwrap_or_default();
        if replicas > 0 {
            self.said
                .push(format!("Scaled up replica set {name} from 0 to {replicas}"));
        }
        status::note_created(self.spec, &mut self.status, &name, self.now);
        self.create = Some(set);
        self.new = Some(self.sets.len());
        let min_ready_seconds = self.spec.min_ready_seconds;
        self.sets.push(Set {
            stored: None,
            replicas,
            min_ready_seconds,
            annotations,
        });
    }

    fn collisions(&self) -> i32 {
        self.status.collision_count.unwrap_or(0)
    }

    /// Gives a ReplicaSet its size, and notes what it was scaled for.
    fn resize(&mut self, index: usize, replicas: i32) {
        let Limits { desired, surge, .. } = self.limits;
        let set = &mut self.sets[index];
        revision::annotate_scale(&mut set.annotations, desired, desired + surge);
        let before = std::mem::replace(&mut set.replicas, replicas);
        if before != replicas {
            let direction = if replicas > before { "up" } else { "down" };
            let name = set.name();
            self.said.push(format!(
                "Scaled {direction} replica set {name} from {before} to {replicas}"
            ));
        }
    }

    /// As [`Draft::resize`], but leaves one of the right size alone.
    fn resize_if_needed(&mut self, index: usize, replicas: i32) -> bool {
        let differs = self.sets[index].replicas != replicas;
        if differs {
            self.resize(index, replicas);
        }
        differs
    }

    /// One step of a rolling update: up as far as the surge allows, and only when that is done, down.
    fn roll(&mut self) {
        let Some(new) = self.new else { return };
        let wanted = self.limits.new_size(self.sets[new].replicas, self.total());
        if self.resize_if_needed(new, wanted) {
            return;
        }
        let old: Vec<usize> = self
            .old()
            .into_iter()
            .filter(|index| self.sets[*index].replicas > 0)
            .collect();
        let sizes: Vec<Size> = old.iter().map(|index| self.sets[*index].size()).collect();
        let wanted = self.limits.old_sizes(&sizes, self.sets[new].size());
        for (index, replicas) in old.into_iter().zip(wanted) {
            self.resize_if_needed(index, replicas);
        }
    }

    /// All old pods go; when none of them runs any more, the new ones come.
    fn recreate(&mut self, has_running_pods: &dyn Fn(&ReplicaSet) -> bool) {
        self.adopt_new();
        let old = self.old();
        let mut scaled_down = false;
        for index in &old {
            scaled_down |= self.resize_if_needed(*index, 0);
        }
        let mut old_sets = old.iter().filter_map(|index| self.sets[*index].stored.as_deref());
        if scaled_down
            || old_sets
                .any(|set| set.status.as_ref().is_some_and(|s| s.replicas > 0) || has_running_pods(set))
        {
            return;
        }
        self.create_new();
        if let Some(new) = self.new.filter(|new| self.sets[*new].stored.is_some()) {
            self.resize_if_needed(new, self.limits.desired);
        }
    }

    /// Follows a change of `spec.replicas`, without going on with a rollout.
    fn scale(&mut self) {
        let active: Vec<usize> = (0..self.sets.len())
            .filter(|index| self.sets[*index].replicas > 0)
            .collect();
        let only = match active[..] {
            [] => self.new.or(self.sets.len().checked_sub(1)),
            [only] => Some(only),
            _ => None,
        };
        if let Some(only) = only {
            self.resize(only, self.limits.desired);
        } else if self.new.is_some_and(|new| self.is_saturated(new)) {
            for index in self.old() {
                self.resize_if_needed(index, 0);
            }
        } else if !is_recreate(self.deployment) {
            self.scale_in_proportion(active);
        }
    }

    /// Whether the new ReplicaSet alone does all that is asked for.
    fn is_saturated(&self, new: usize) -> bool {
        let set = &self.sets[new];
        let desired = self.limits.desired;
        revision::number(Some(&set.annotations), revision::DESIRED) == Some(i64::from(desired))
            && set.replicas == desired
            && set.available() == desired
    }

    fn scale_in_proportion(&mut self, mut active: Vec<usize>) {
        let Limits { desired, surge, .. } = self.limits;
        let allowed = if desired > 0 { desired + surge } else { 0 };
        let growing = allowed > self.total();
        // Larger first; of equals the newer first when growing, the older first when shrinking.
        active.sort_by_key(|index| {
            let position = i64::try_from(*index).unwrap_or(i64::MAX);
            (
                -self.sets[*index].replicas,
                if growing { -position } else { position },
            )
        });
        let shares: Vec<Share> = active.iter().map(|index| self.share(*index)).collect();
        let total_before = self
            .deployment
            .status
            .as_ref()
            .and_then(|status| status.replicas)
            .unwrap_or(0);
        let sizes = proportional::sizes(&shares, desired, allowed, total_before);
        for (index, replicas) in active.into_iter().zip(sizes) {
            self.resize(index, replicas);
        }
    }

    fn share(&self, index: usize) -> Share {
        let set = &self.sets[index];
        let allowed_before = revision::number(Some(&set.annotations), revision::MAX);
        Share {
            replicas: set.replicas,
            allowed_before: allowed_before.and_then(|max| i32::try_from(max).ok()),
        }
    }

    /// Deletes the oldest empty ReplicaSets beyond the history limit.
    fn clean_up(&mut self) {
        let Some(limit) = self
            .spec
            .revision_history_limit
            .and_then(|limit| usize::try_from(limit).ok())
        else {
            return;
        };
        let old = self.old();
        let stored = old.iter().filter_map(|index| self.sets[*index].stored.as_ref());
        let mut candidates: Vec<&Arc<ReplicaSet>> = stored
            .filter(|set| set.metadata.deletion_timestamp.is_none())
            .collect();
        candidates.sort_by_key(|set| revision::revision(set));
        let surplus = candidates.len().saturating_sub(limit);
        self.delete = candidates
            .into_iter()
            .take(surplus)
            .filter(|set| is_empty(set))
            .cloned()
            .collect();
    }

    fn counts(&self) -> (Counts, Counts) {
        let total = self
            .sets
            .iter()
            .map(Set::counts)
            .fold(Counts::default(), |sum, counts| sum + counts);
        (
            total,
            self.new.map(|new| self.sets[new].counts()).unwrap_or_default(),
        )
    }

    fn is_complete(&self) -> bool {
        let (total, new) = self.counts();
        status::is_complete(self.limits.desired, total, new)
    }

    fn finish(mut self, progress: Progress) -> Plan {
        let (total, new) = self.counts();
        let new_name = self.new.map(|new| match &self.create {
            Some(created) => created.metadata.name.clone().unwrap_or_default(),
            None => self.sets[new].name().to_owned(),
        });
        let (status, again) = status::Report {
            deployment: self.deployment,
            spec: self.spec,
            limits: self.limits,
            total,
            new,
            new_name,
            failure: status::failure(self.sets.iter().filter_map(|set| set.stored.as_deref())),
            now: self.now,
        }
        .write(std::mem::take(&mut self.status), progress);
        let deleted = std::mem::take(&mut self.delete);
        Plan {
            create: self.create,
            patches: self.sets.into_iter().filter_map(Set::patch).collect(),
            delete: deleted,
            revision: self.revision,
            status,
            said: self.said,
            warned: None,
            again,
        }
    }
}

fn set_revision(annotations: &Annotations) -> Option<String> {
    annotations.get(revision::REVISION).cloned()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
