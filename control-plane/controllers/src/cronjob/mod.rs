//! CronJobs: Jobs at the times of a schedule.

mod plan;
mod schedule;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use kube::api::DeleteParams;
use model::ObjectName;

use crate::Context;
use crate::cache::{Change, name_of};
use crate::error::{Error, all};
use crate::events::Severity;
use crate::ownership;
use crate::queue::{Next, Queue, Reconcile, drive};
use plan::Plan;

const COMPONENT: &str = "cronjob-controller";
/// How many CronJobs are worked on at a time.
const WORKERS: usize = 4;

/// Runs the controller.
pub(crate) async fn run(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let _crons = context.caches.cron_jobs.subscribe({
        let queue = Arc::clone(&queue);
        move |change| {
            change
                .states()
                .take(1)
                .for_each(|cron| queue.add(name_of(&**cron)))
        }
    });
    let _jobs = context.caches.jobs.subscribe({
        let queue = Arc::clone(&queue);
        move |change: &Change<Job>| {
            for job in change.states() {
                let owner = ownership::controller_of(&job.metadata).filter(|owner| owner.kind == "CronJob");
                if let Some(owner) = owner {
                    queue.add(ObjectName::new(&name_of(&**job).namespace, &owner.name));
                }
            }
        }
    });
    drive(&queue, &Controller(context), WORKERS).await;
    Ok(())
}

struct Controller(Arc<Context>);

impl Reconcile for Controller {
    type Key = ObjectName;
    const NAME: &'static str = "cronjob";

    async fn reconcile(&self, key: &ObjectName) -> Result<Next, Error> {
        let Some(cron) = self.0.caches.cron_jobs.get(key) else {
            return Ok(Next::OnChange);
        };
        let mut jobs = self.0.caches.jobs.list_in(&key.namespace);
        jobs.retain(|job| ownership::is_controlled_by(&job.metadata, cron.metadata.uid.as_ref()));
        let plan = plan::plan(&cron, &jobs, Timestamp::now());
        self.apply(&cron, plan).await
    }
}

impl Controller {
    async fn apply(&self, cron: &CronJob, plan: Plan) -> Result<Next, Error> {
        let Plan {
            delete,
            create,
            status,
            scheduled,
            said,
            again,
        } = plan;
        for (severity, reason, message) in said {
            self.tell(cron, severity, reason, message);
        }
        let mut deleted = Vec::new();
        for job in &delete {
            deleted.push(self.delete(cron, job).await);
        }
        all(deleted)?;
        let mut status = status;
        if let (Some(job), Some(scheduled)) = (create, scheduled)
            && let Some(job) = self.create(cron, &job).await?
        {
            status = plan::started(status, &job, scheduled);
        }
        self.write_status(cron, status).await?;
        Ok(again.map_or(Next::OnChange, Next::After))
    }

    async fn delete(&self, cron: &CronJob, job: &Job) -> Result<(), Error> {
        let name = name_of(job).name;
        match self.0.caches.jobs.delete(job, DeleteParams::background()).await {
            Ok(()) => {
                self.tell(
                    cron,
                    Severity::Normal,
                    "SuccessfulDelete",
                    format!("Deleted job {name}"),
                );
                Ok(())
            }
            Err(error) => {
                let message = format!("Deleted job: {}", error.reason());
                self.tell(cron, Severity::Warning, "FailedDelete", message);
                Err(error)
            }
        }
    }

    /// The Job that was created, or was already; `None` where its name is somebody else's.
    async fn create(&self, cron: &CronJob, job: &Job) -> Result<Option<Arc<Job>>, Error> {
        match self.0.caches.jobs.create(job).await {
            Ok(job) => {
                let message = format!("Created job {}", name_of(&*job).name);
                self.tell(cron, Severity::Normal, "SuccessfulCreate", message);
                Ok(Some(job))
            }
            Err(error) if error.is_namespace_terminating() => Ok(None),
            Err(error) if error.is_already_exists() => {
                let taken = self.0.caches.jobs.fetch(&name_of(job)).await?;
                let ours = taken
                    .filter(|taken| ownership::is_controlled_by(&taken.metadata, cron.metadata.uid.as_ref()));
                Ok(ours.map(Arc::new))
            }
            Err(error) => {
                let message = format!("Error creating job: {}", error.reason());
                self.tell(cron, Severity::Warning, "FailedCreate", message);
                Err(error)
            }
        }
    }

    async fn write_status(&self, cron: &CronJob, status: CronJobStatus) -> Result<(), Error> {
        // No status and an empty one are the same.
        if cron.status.clone().unwrap_or_default() == status {
            return Ok(());
        }
        let changed = CronJob {
            status: Some(status),
            ..cron.clone()
        };
        self.0
            .caches
            .cron_jobs
            .write_status(cron, &changed)
            .await
            .map(drop)
    }

    fn tell(&self, cron: &CronJob, severity: Severity, reason: &'static str, message: String) {
        self.0.recorder.tell(COMPONENT, cron, severity, reason, message);
    }
}
