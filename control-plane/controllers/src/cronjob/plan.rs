//! What a CronJob calls for now: a Job whose time has come, Jobs that ended long enough ago, and what its status says of
//! both.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::schedule::Schedule;
use crate::events::Severity;
use crate::{job, ownership};

/// When the Job was meant to start, in the CronJob's time zone.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// How long after a time of the schedule it is looked at (upstream's `nextScheduleDelta`).
const DELTA: Duration = Duration::from_millis(100);
/// More missed times than this are told of: a clock that is wrong, or a controller that was gone for long.
const MANY: usize = 100;

/// What is to be done, in this order.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub delete: Vec<Arc<Job>>,
    pub create: Option<Job>,
    /// The CronJob's status; where a Job is created, before it is.
    pub status: CronJobStatus,
    /// When that Job's time was.
    pub scheduled: Option<Timestamp>,
    /// Severity, reason and message of events.
    pub said: Vec<(Severity, &'static str, String)>,
    /// When to look again if nothing changes.
    pub again: Option<Duration>,
}

/// Decides for a CronJob with these `jobs`, its own.
pub(crate) fn plan(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let Some(spec) = &cron.spec else {
        return Plan::default();
    };
    let mut plan = Plan {
        status: cron.status.clone().unwrap_or_default(),
        ..Plan::default()
    };
    plan.forget(spec, jobs);
    plan.note_ends(jobs);
    if cron.metadata.deletion_timestamp.is_none() && spec.suspend != Some(true) {
        plan.start(cron, spec, jobs, now);
    }
    plan
}

/// `Complete` or `Failed`.
fn end_of(job: &Job) -> Option<&str> {
    job::end_of(job.status.as_ref()?).map(|end| end.type_.as_str())
}

impl Plan {
    /// Ended Jobs beyond the limits go, those that started first before others.
    fn forget(&mut self, spec: &CronJobSpec, jobs: &[Arc<Job>]) {
        for (end, limit) in [
            ("Complete", spec.successful_jobs_history_limit.unwrap_or(3)),
            ("Failed", spec.failed_jobs_history_limit.unwrap_or(1)),
        ] {
            let mut ended: Vec<_> = jobs
                .iter()
                .filter(|job| end_of(job) == Some(end))
                .cloned()
                .collect();
            ended.sort_by_key(|job| {
                let started = job.status.as_ref().and_then(|status| status.start_time.clone());
                (started, job.metadata.name.clone())
            });
            let surplus = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
            ended.truncate(surplus);
            ended.retain(|job| job.metadata.deletion_timestamp.is_none());
            self.delete.extend(ended);
        }
    }

    /// The status names the Jobs that run, and when one was last complete.
    fn note_ends(&mut self, jobs: &[Arc<Job>]) {
        let by_uid = |uid: Option<&String>| jobs.iter().find(|job| job.metadata.uid.as_ref() == uid);
        let mut active = self.status.active.take().unwrap_or_default();
        active.retain(|reference| {
            let name = reference.name.as_deref().unwrap_or_default();
            match by_uid(reference.uid.as_ref()).map(|job| end_of(job)) {
                Some(None) => return true,
                Some(Some(end)) => {
                    let message = format!("Saw completed job: {name}, condition: {end}");
                    self.said.push((Severity::Normal, "SawCompletedJob", message));
                }
                None => {
                    let message = format!("Active job went missing: {name}");
                    self.said.push((Severity::Normal, "MissingJob", message));
                }
            }
            false
        });
        // One that was created and, since the process ended, not noted.
        for job in jobs.iter().filter(|job| end_of(job).is_none()) {
            if !active.iter().any(|known| known.uid == job.metadata.uid) {
                active.push(reference(job));
            }
        }
        self.status.active = Some(active).filter(|active| !active.is_empty());
        let complete = jobs.iter().filter(|job| end_of(job) == Some("Complete"));
        let last = complete
            .filter_map(|job| job.status.as_ref()?.completion_time.clone())
            .max();
        self.status.last_successful_time = last.max(self.status.last_successful_time.take());
    }

    fn start(&mut self, cron: &CronJob, spec: &CronJobSpec, jobs: &[Arc<Job>], now: Timestamp) {
        let zone = match spec.time_zone.as_deref().map(TimeZone::get) {
            None => TimeZone::UTC,
            Some(Ok(zone)) => zone,
            Some(Err(error)) => {
                let name = spec.time_zone.as_deref().unwrap_or_default();
                let message = format!("invalid timeZone: {name:?}: {error}");
                self.said.push((Severity::Warning, "UnknownTimeZone", message));
                return;
            }
        };
        let schedule = match Schedule::parse(&spec.schedule) {
            Ok(schedule) => schedule,
            Err(why) => {
                let message = format!("unparseable schedule: {:?} : {why}", spec.schedule);
                self.said
                    .push((Severity::Warning, "UnparseableSchedule", message));
                return;
            }
        };
        if let Some(next) = schedule.after(now, &zone) {
            self.again = Some(next.duration_since(now).unsigned_abs() + DELTA);
        }
        let Some(due) = self.due(cron, spec, &schedule, &zone, now) else {
            return;
        };
        let job = job_at(cron, spec, due, &zone);
        let is_there = jobs.iter().any(|known| known.metadata.name == job.metadata.name);
        let is_noted = self
            .status
            .last_schedule_time
            .as_ref()
            .is_some_and(|last| last.0 == due);
        if is_there || is_noted {
            return;
        }
        let running: Vec<_> = jobs.iter().filter(|job| end_of(job).is_none()).cloned().collect();
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !running.is_empty() => {
                let message =
                    "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.said
                    .push((Severity::Normal, "JobAlreadyActive", message.to_owned()));
                return;
            }
            Some("Replace") => {
                self.status.active = None;
                self.delete.extend(running);
            }
            _ => {}
        }
        self.scheduled = Some(due);
        self.create = Some(job);
    }

    /// The last time of the schedule that was not served yet and for which it is not too late.
    fn due(
        &mut self,
        cron: &CronJob,
        spec: &CronJobSpec,
        schedule: &Schedule,
        zone: &TimeZone,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let created = cron.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let last = self.status.last_schedule_time.as_ref().map(|time| time.0);
        let mut earliest = last.or(created)?;
        let patience = spec
            .starting_deadline_seconds
            .map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
        if let Some(patience) = patience {
            earliest = earliest.max(now.checked_sub(patience).unwrap_or(Timestamp::MIN));
        }
        let (due, missed) = last_before(schedule, zone, earliest, now)?;
        if missed > MANY {
            let message = format!(
                "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew: more than {MANY}"
            );
            self.said.push((Severity::Warning, "TooManyMissedTimes", message));
        }
        Some(due)
    }
}

/// The last time of a schedule after `from` and not after `now`, and how many there were; beyond [`MANY`] at least so
/// many: after a long absence the days in between are not walked through, the search begins ever later.
fn last_before(
    schedule: &Schedule,
    zone: &TimeZone,
    from: Timestamp,
    now: Timestamp,
) -> Option<(Timestamp, usize)> {
    let mut found = schedule.after(from, zone).filter(|at| *at <= now)?;
    let mut count = 1;
    while let Some(next) = schedule.after(found, zone).filter(|next| *next <= now) {
        (found, count) = (next, count + 1);
        if count > MANY {
            // Half the way from here to now is saved each time; where nothing lies beyond it, one step is taken.
            let half = found.checked_add(now.duration_since(found) / 2).unwrap_or(now);
            if let Some(later) = schedule.after(half, zone).filter(|later| *later <= now) {
                found = later;
            }
        }
    }
    Some((found, count))
}

/// The Job of one time of the schedule: its name says which, so that it is not made twice.
fn job_at(cron: &CronJob, spec: &CronJobSpec, due: Timestamp, zone: &TimeZone) -> Job {
    let meta = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    let told = due
        .to_zoned(zone.clone())
        .strftime("%Y-%m-%dT%H:%M:%S%:z")
        .to_string();
    annotations.insert(SCHEDULED.to_owned(), told.replace("+00:00", "Z"));
    let name = cron.metadata.name.as_deref().unwrap_or_default();
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{}", due.as_second() / 60)),
            namespace: cron.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![ownership::controller_ref(cron)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

/// How the status names a Job.
pub(crate) fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".to_owned()),
        kind: Some("Job".to_owned()),
        name: job.metadata.name.clone(),
        namespace: job.metadata.namespace.clone(),
        uid: job.metadata.uid.clone(),
        resource_version: job.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}

/// The status once `job`, whose time was `scheduled`, is created.
pub(crate) fn started(mut status: CronJobStatus, job: &Job, scheduled: Timestamp) -> CronJobStatus {
    let active = status.active.get_or_insert_default();
    if !active.iter().any(|known| known.uid == job.metadata.uid) {
        active.push(reference(job));
    }
    status.last_schedule_time = Some(Time(scheduled));
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A CronJob of 10:00, every ten minutes unless `edit` says otherwise.
    fn cron(edit: Value, status: Value) -> CronJob {
        let mut spec = json!({ "schedule": "*/10 * * * *", "jobTemplate": { "spec": { "template": {} } } });
        spec.as_object_mut()
            .unwrap()
            .extend(edit.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "metadata": { "name": "tick", "uid": "c", "creationTimestamp": "2026-01-01T10:00:00Z" },
            "spec": spec, "status": status,
        }))
        .unwrap()
    }

    /// Jobs as `name` with `c` or `f` behind the ones that are complete or failed; the earlier ones started first.
    fn jobs(text: &str) -> Vec<Arc<Job>> {
        let job = |(place, text): (usize, &str)| {
            let name = text.trim_end_matches(['c', 'f']);
            let end = match &text[name.len()..] {
                "c" => json!([{ "type": "Complete", "status": "True" }]),
                "f" => json!([{ "type": "Failed", "status": "True" }]),
                _ => json!([]),
            };
            let at = format!("2026-01-01T09:00:{place:02}Z");
            let completed = text.ends_with('c').then_some(&at);
            let status = json!({ "conditions": end, "startTime": at, "completionTime": completed });
            Arc::new(
                serde_json::from_value(
                    json!({ "metadata": { "name": name, "uid": name }, "status": status }),
                )
                .unwrap(),
            )
        };
        text.split_whitespace().enumerate().map(job).collect()
    }

    /// `+name` for the Job that is created, `-name` for those that are deleted, and the reasons of events.
    #[track_caller]
    fn check(cron: &CronJob, before: &str, at: &str, expected: &str) -> Plan {
        let now = format!("2026-01-01T{at}Z").parse().unwrap();
        let plan = plan(cron, &jobs(before), now);
        let name = |job: &Job| job.metadata.name.clone().unwrap();
        let mut found: Vec<String> = plan.create.iter().map(|job| format!("+{}", name(job))).collect();
        found.extend(plan.delete.iter().map(|job| format!("-{}", name(job))));
        found.extend(plan.said.iter().map(|(_, reason, _)| (*reason).to_owned()));
        assert_eq!(found.join(" "), expected, "{before} at {at}");
        plan
    }

    /// 10:10 in minutes since 1970.
    const TEN_TEN: &str = "+tick-29454370";

    #[test]
    fn a_job_starts_when_its_time_has_come() {
        let new = cron(json!({}), json!({}));
        let plan = check(&new, "", "10:09:59", "");
        assert_eq!(plan.again, Some(Duration::from_millis(1100)));
        let plan = check(&new, "", "10:10:00", TEN_TEN);
        assert_eq!(plan.again, Some(Duration::from_millis(600_100)));
        let annotations = plan.create.unwrap().metadata.annotations.unwrap();
        assert_eq!(annotations[SCHEDULED], "2026-01-01T10:10:00Z");
        check(&new, "", "10:19:59", TEN_TEN);
        // Of several that were missed the last one.
        check(&new, "", "10:39:00", "+tick-29454390");
        check(&cron(json!({ "suspend": true }), json!({})), "", "10:10:00", "");
    }

    #[test]
    fn one_time_starts_one_job() {
        check(&cron(json!({}), json!({})), "tick-29454370", "10:11:00", "");
        check(&cron(json!({}), json!({})), "tick-29454370c", "10:11:00", "");
        let served = cron(json!({}), json!({ "lastScheduleTime": "2026-01-01T10:10:00Z" }));
        check(&served, "", "10:11:00", "");
        check(&served, "", "10:20:00", "+tick-29454380");
    }

    #[test]
    fn concurrency_allows_forbids_or_replaces() {
        let with = |policy: &str| cron(json!({ "concurrencyPolicy": policy }), json!({}));
        check(&with("Allow"), "old", "10:10:00", TEN_TEN);
        check(&with("Forbid"), "old", "10:10:00", "JobAlreadyActive");
        check(&with("Forbid"), "oldc", "10:10:00", TEN_TEN);
        let plan = check(
            &with("Replace"),
            "old oldc",
            "10:10:00",
            &format!("{TEN_TEN} -old"),
        );
        assert_eq!(plan.status.active, None);
    }

    #[test]
    fn what_is_too_late_is_not_started() {
        let patient = |secs: i64| cron(json!({ "startingDeadlineSeconds": secs }), json!({}));
        check(&patient(60), "", "10:10:59", TEN_TEN);
        check(&patient(60), "", "10:11:30", "");
        check(&patient(3600), "", "10:19:00", TEN_TEN);
    }

    #[test]
    fn a_long_absence_is_told_and_the_last_time_served() {
        let minutely = cron(json!({ "schedule": "* * * * *" }), json!({}));
        check(&minutely, "", "13:00:30", "+tick-29454540 TooManyMissedTimes");
        let ancient = cron(
            json!({ "schedule": "* * * * *" }),
            json!({ "lastScheduleTime": "1996-01-01T00:00:00Z" }),
        );
        check(&ancient, "", "13:00:30", "+tick-29454540 TooManyMissedTimes");
    }

    #[test]
    fn ended_jobs_beyond_the_limits_go_oldest_first() {
        let served = |edit: Value| cron(edit, json!({ "lastScheduleTime": "2026-01-01T10:10:00Z" }));
        check(&served(json!({})), "1c 2c 3c 4c 5f 6f", "10:11:00", "-1 -5");
        let none = json!({ "successfulJobsHistoryLimit": 0, "failedJobsHistoryLimit": 0 });
        check(&served(none), "ac bf run", "10:11:00", "-a -b");
        check(
            &served(json!({ "failedJobsHistoryLimit": 5 })),
            "af bf",
            "10:11:00",
            "",
        );
    }

    #[test]
    fn the_status_names_what_runs_and_when_it_last_went_well() {
        let active = |uid: &str| json!({ "name": uid, "uid": uid });
        let status = json!({
            "active": [active("run"), active("done"), active("gone")], "lastScheduleTime": "2026-01-01T10:10:00Z",
        });
        let plan = check(
            &cron(json!({}), status),
            "donec run unnoted",
            "10:11:00",
            "SawCompletedJob MissingJob",
        );
        let names: Vec<_> = plan
            .status
            .active
            .unwrap()
            .into_iter()
            .filter_map(|one| one.name)
            .collect();
        assert_eq!(names, ["run", "unnoted"]);
        let last = plan.status.last_successful_time.unwrap();
        assert_eq!(last.0.to_string(), "2026-01-01T09:00:00Z");
        assert_eq!(plan.said[0].2, "Saw completed job: done, condition: Complete");
    }

    #[test]
    fn schedules_and_zones_that_nobody_knows_are_told() {
        check(
            &cron(json!({ "schedule": "often" }), json!({})),
            "",
            "10:10:00",
            "UnparseableSchedule",
        );
        check(
            &cron(json!({ "timeZone": "Mars/Olympus" }), json!({})),
            "",
            "10:10:00",
            "UnknownTimeZone",
        );
        let berlin = cron(
            json!({ "timeZone": "Europe/Berlin", "schedule": "10 11 * * *" }),
            json!({}),
        );
        let plan = check(&berlin, "", "10:10:00", TEN_TEN);
        let annotations = plan.create.unwrap().metadata.annotations.unwrap();
        assert_eq!(annotations[SCHEDULED], "2026-01-01T11:10:00+01:00");
    }
}
