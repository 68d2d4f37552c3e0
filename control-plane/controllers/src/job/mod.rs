//! Jobs: pods that run until enough of them have succeeded.

mod indexes;
mod plan;

use std::sync::Arc;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::DeleteParams;
use model::ObjectName;
use serde_json::json;

use crate::cache::{Change, name_of};
use crate::error::{Error, all};
use crate::queue::{Next, Queue, Reconcile, drive};
use crate::workload::{self, Workload};
use crate::{Context, ownership};
pub(crate) use plan::end_of;
use plan::{Plan, TRACKING};

const COMPONENT: &str = "job-controller";
/// How many Jobs are worked on at a time.
const WORKERS: usize = 8;
/// The value of `spec.managedBy` that means this controller.
const OURS: &str = "kubernetes.io/job-controller";

/// Runs the controller.
pub(crate) async fn run(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let _pods = context.caches.pods.subscribe({
        let (queue, context) = (Arc::clone(&queue), Arc::clone(&context));
        move |change| {
            let names = workload::concerned(&context.caches.jobs, selector_of, change);
            names.into_iter().for_each(|name| queue.add(Task::Job(name)));
            let orphan = change.new.as_ref().filter(|pod| is_orphan(&context, pod));
            if let Some(pod) = orphan {
                queue.add(Task::Orphan(name_of(&**pod)));
            }
        }
    });
    let _jobs = context.caches.jobs.subscribe({
        let (queue, context) = (Arc::clone(&queue), Arc::clone(&context));
        move |change: &Change<Job>| {
            let jobs = change.states().take(1);
            jobs.for_each(|job| queue.add(Task::Job(name_of(&**job))));
            if let (Some(job), None) = (&change.old, &change.new) {
                let pods = context.caches.pods.list_in(&name_of(&**job).namespace);
                let orphans = pods.iter().filter(|pod| is_orphan(&context, pod));
                orphans.for_each(|pod| queue.add(Task::Orphan(name_of(&**pod))));
            }
        }
    });
    drive(&queue, &Controller(context), WORKERS).await;
    Ok(())
}

fn selector_of(job: &Job) -> Option<&LabelSelector> {
    job.spec.as_ref()?.selector.as_ref()
}

/// A pod that nobody will count: its Job is gone.
fn is_orphan(context: &Context, pod: &Pod) -> bool {
    if !plan::is_tracked(pod) {
        return false;
    }
    let owner = ownership::controller_of(&pod.metadata).filter(|owner| owner.kind == "Job");
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    !owner.is_some_and(|owner| {
        let job = context.caches.jobs.get(&ObjectName::new(namespace, &owner.name));
        job.is_some_and(|job| job.metadata.uid.as_ref() == Some(&owner.uid))
    })
}

/// What is looked after.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    Job(ObjectName),
    /// A pod whose Job is gone.
    Orphan(ObjectName),
}

struct Controller(Arc<Context>);

impl Reconcile for Controller {
    type Key = Task;
    const NAME: &'static str = "job";

    async fn reconcile(&self, task: &Task) -> Result<Next, Error> {
        match task {
            Task::Job(name) => self.look_at(name).await,
            Task::Orphan(name) => {
                let pod = self.0.caches.pods.get(name).filter(|pod| is_orphan(&self.0, pod));
                if let Some(pod) = pod {
                    self.release(&pod).await?;
                }
                Ok(Next::OnChange)
            }
        }
    }
}

impl Controller {
    async fn look_at(&self, name: &ObjectName) -> Result<Next, Error> {
        let Some(job) = self.0.caches.jobs.get(name) else {
            return Ok(Next::OnChange);
        };
        let Some(spec) = &job.spec else {
            return Ok(Next::OnChange);
        };
        if spec.managed_by.as_deref().is_some_and(|manager| manager != OURS) {
            return Ok(Next::OnChange);
        }
        let workload = Workload {
            context: &self.0,
            component: COMPONENT,
            kind: &self.0.caches.jobs,
            object: &*job,
        };
        let pods = match &spec.selector {
            Some(selector) => workload.claim(&self.0.caches.pods, selector, |_| true).await?,
            None => workload.pods(),
        };
        let plan = plan::plan(&job, &pods, Timestamp::now());
        self.apply(&workload, plan).await
    }

    async fn apply(&self, workload: &Workload<'_, Job>, plan: Plan) -> Result<Next, Error> {
        let Plan {
            status,
            release,
            delete,
            create,
            said,
            expired,
            again,
        } = plan;
        let job = workload.object;
        if expired {
            tracing::info!(job = %name_of(job), "a job's time after its end is over");
            let params = DeleteParams::foreground();
            self.0.caches.jobs.delete(job, params).await?;
            return Ok(Next::OnChange);
        }
        let changed = Job {
            status: Some(status),
            ..job.clone()
        };
        // What follows counts on the status: a Job that is gone gets no pods, and its own are released as orphans.
        if !self.0.caches.jobs.write_status(job, &changed).await? {
            return Ok(Next::OnChange);
        }
        for (severity, reason, message) in said {
            self.0.recorder.tell(COMPONENT, job, severity, reason, message);
        }
        let released = all(join_all(release.iter().map(|pod| self.release(pod))).await);
        let deleted = workload.delete_pods(&delete).await;
        let pods: Vec<Pod> = create.iter().map(|index| pod(workload, *index)).collect();
        workload.create_pods(&pods).await?;
        released?;
        deleted?;
        Ok(again.map_or(Next::OnChange, Next::After))
    }

    /// Lets go of a pod that is counted.
    async fn release(&self, pod: &Pod) -> Result<(), Error> {
        let mut finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|finalizer| finalizer != TRACKING);
        // An empty list would stay, where upstream has none.
        let finalizers = Some(finalizers).filter(|finalizers| !finalizers.is_empty());
        let patch = json!({ "metadata": {
            "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version, "finalizers": finalizers,
        } });
        match self.0.caches.pods.merge(&name_of(pod), patch).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

/// A pod of the Job; with an index, if it has one, in the places where upstream tells it.
fn pod(workload: &Workload<'_, Job>, index: Option<u32>) -> Pod {
    let job = workload.object;
    let template = job
        .spec
        .as_ref()
        .map(|spec| spec.template.clone())
        .unwrap_or_default();
    let mut pod = workload.pod_from(&template);
    let meta = &mut pod.metadata;
    meta.finalizers.get_or_insert_default().push(TRACKING.to_owned());
    let Some(index) = index else { return pod };
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let prefix = format!("{name}-{index}-");
    meta.name = Some(ownership::generated_name(&prefix));
    meta.generate_name = Some(prefix);
    for map in [&mut meta.labels, &mut meta.annotations] {
        map.get_or_insert_default()
            .insert(indexes::INDEX.to_owned(), index.to_string());
    }
    if let Some(spec) = &mut pod.spec {
        tell_index(spec);
        spec.hostname = Some(format!("{name}-{index}"));
    }
    pod
}

/// Every container knows its pod's index by `JOB_COMPLETION_INDEX`.
fn tell_index(spec: &mut PodSpec) {
    let variable = EnvVar {
        name: "JOB_COMPLETION_INDEX".to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: format!("metadata.annotations['{}']", indexes::INDEX),
            }),
            ..EnvVarSource::default()
        }),
    };
    let containers = spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten());
    for container in containers {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|known| known.name == variable.name) {
            env.push(variable.clone());
        }
    }
}
