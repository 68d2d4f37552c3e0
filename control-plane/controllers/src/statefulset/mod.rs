//! StatefulSets: pods with places and names of their own, that come, go and change one after the other.

mod plan;
mod pods;

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use model::ObjectName;

use crate::cache::{Change, name_of};
use crate::error::Error;
use crate::history::{self, Stored, Versions};
use crate::queue::{Next, Queue, Reconcile, drive};
use crate::workload::{self, Workload};
use crate::{Context, selector};
use plan::{Places, Plan, Revisions};

const COMPONENT: &str = "statefulset-controller";
/// How many StatefulSets are worked on at a time.
const WORKERS: usize = 8;

/// Runs the controller.
pub(crate) async fn run(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let _sets = context.caches.stateful_sets.subscribe({
        let queue = Arc::clone(&queue);
        move |change| change.states().take(1).for_each(|set| queue.add(name_of(&**set)))
    });
    let _pods = context.caches.pods.subscribe({
        let (queue, context) = (Arc::clone(&queue), Arc::clone(&context));
        move |change: &Change<Pod>| {
            let names = workload::concerned(&context.caches.stateful_sets, selector_of, change);
            names.into_iter().for_each(|name| queue.add(name));
        }
    });
    let _revisions = context.caches.controller_revisions.subscribe({
        let (queue, context) = (Arc::clone(&queue), Arc::clone(&context));
        move |change: &Change<ControllerRevision>| {
            let names = workload::concerned(&context.caches.stateful_sets, selector_of, change);
            names.into_iter().for_each(|name| queue.add(name));
        }
    });
    drive(&queue, &Controller(context), WORKERS).await;
    Ok(())
}

fn selector_of(set: &StatefulSet) -> Option<&LabelSelector> {
    Some(&set.spec.as_ref()?.selector)
}

struct Controller(Arc<Context>);

impl Reconcile for Controller {
    type Key = ObjectName;
    const NAME: &'static str = "statefulset";

    async fn reconcile(&self, key: &ObjectName) -> Result<Next, Error> {
        let Some(set) = self.0.caches.stateful_sets.get(key) else {
            return Ok(Next::OnChange);
        };
        let Some(spec) = set
            .spec
            .as_ref()
            .filter(|spec| !selector::is_empty(&spec.selector))
        else {
            return Ok(Next::OnChange);
        };
        let workload = Workload {
            context: &self.0,
            component: COMPONENT,
            kind: &self.0.caches.stateful_sets,
            object: &*set,
        };
        // A pod that has no place in it is nobody's to adopt.
        let has_place = |pod: &Pod| pods::ordinal(&key.name, pod).is_some();
        workload
            .claim(&self.0.caches.pods, &spec.selector, has_place)
            .await?;
        let revisions = workload.revisions(&spec.selector).await?;
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Next::OnChange);
        }
        let versions = history::versions(&spec.template, revisions);
        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let stored = workload.store_versions(&versions, &spec.template, collisions.unwrap_or(0));
        match stored.await? {
            Stored::As(update) => self.keep(&workload, spec, &versions, &update).await,
            Stored::Collision => {
                let mut changed = (*set).clone();
                changed.status.get_or_insert_default().collision_count = Some(collisions.unwrap_or(0) + 1);
                self.0.caches.stateful_sets.replace_status(&changed).await?;
                Ok(Next::OnChange)
            }
        }
    }
}

impl Controller {
    async fn keep(
        &self,
        workload: &Workload<'_, StatefulSet>,
        spec: &StatefulSetSpec,
        versions: &Versions,
        update: &str,
    ) -> Result<Next, Error> {
        let set = workload.object;
        let known = set
            .status
            .as_ref()
            .and_then(|status| status.current_revision.as_ref());
        let old = known.and_then(|known| {
            versions
                .old
                .iter()
                .find(|revision| revision.metadata.name.as_ref() == Some(known))
        });
        // Pods and status know a revision by its name.
        let update = format!("{}-{update}", name_of(set).name);
        let revisions = Revisions {
            current: old
                .and_then(|old| old.metadata.name.as_deref())
                .unwrap_or(&update),
            update: &update,
        };
        let plan = plan::plan(
            set,
            &Places::new(set, &workload.pods(), Timestamp::now()),
            revisions,
        );
        let again = plan.again;
        let old = old.and_then(|old| history::template_of(old));
        let template = |revision: &str| match &old {
            Some(old) if revision == revisions.current && revision != revisions.update => old.clone(),
            _ => spec.template.clone(),
        };
        let done = self.apply(workload, plan, template).await;
        let places = Places::new(set, &workload.pods(), Timestamp::now());
        let cleaned = self
            .forget_old_versions(workload, spec, versions, revisions)
            .await;
        self.write_status(set, &places, revisions).await?;
        done?;
        cleaned?;
        let again = again.into_iter().chain(places.next_available()).min();
        Ok(again.map_or(Next::OnChange, Next::After))
    }

    async fn apply(
        &self,
        workload: &Workload<'_, StatefulSet>,
        plan: Plan,
        template: impl Fn(&str) -> PodTemplateSpec,
    ) -> Result<(), Error> {
        for pod in &plan.ended {
            let message = format!(
                "StatefulSet {} is recreating failed Pod {}",
                name_of(workload.object),
                name_of(&**pod).name
            );
            self.0
                .recorder
                .warning(COMPONENT, workload.object, "RecreatingFailedPod", message);
        }
        let deleted = workload.delete_pods(&plan.delete).await;
        let pods: Vec<Pod> = plan
            .create
            .iter()
            .map(|(place, revision)| pods::pod_at(workload, &template(revision), revision, *place))
            .collect();
        workload.create_pods(&pods).await?;
        deleted
    }

    async fn forget_old_versions(
        &self,
        workload: &Workload<'_, StatefulSet>,
        spec: &StatefulSetSpec,
        versions: &Versions,
        revisions: Revisions<'_>,
    ) -> Result<(), Error> {
        let pods = workload.pods();
        let prefix = format!("{}-", name_of(workload.object).name);
        let names = pods
            .iter()
            .map(|pod| pods::revision(pod))
            .chain([revisions.current]);
        let live: BTreeSet<&str> = names.filter_map(|name| name.strip_prefix(&prefix)).collect();
        workload
            .forget_old_versions(versions, &live, spec.revision_history_limit)
            .await
    }

    async fn write_status(
        &self,
        set: &StatefulSet,
        places: &Places,
        revisions: Revisions<'_>,
    ) -> Result<(), Error> {
        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let status = plan::status(set, places, revisions, collisions);
        let changed = StatefulSet {
            status: Some(status),
            ..set.clone()
        };
        self.0
            .caches
            .stateful_sets
            .write_status(set, &changed)
            .await
            .map(drop)
    }
}
