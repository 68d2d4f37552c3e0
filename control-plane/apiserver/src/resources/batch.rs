//! `batch`: Jobs and CronJobs.

use k8s_openapi::api::batch::v1 as batch;
use serde_json::{Value, json};

use super::field::{Errors, Path};
use super::views::decode_as;
use super::workloads::clear_status;
use super::{Resource, Serves, View, pod_spec};
use crate::object::{self, Fields, default_to};
use crate::table::workloads as table;

const GROUP: (&str, &str) = ("batch", "v1");

pub(super) fn rows() -> Vec<Resource> {
    let cron_job = |version: &'static str| {
        Resource {
            prepare_create: clear_status,
            ..Resource::new::<batch::CronJob>((GROUP.0, version), "CronJob", "cronjobs")
        }
        .short(&["cj"])
        .in_all()
        .with_status()
        .with_generation()
        .printed(table::CRON_JOB, table::cron_job)
        .defaulted(cron_job_defaults)
    };
    vec![
        cron_job(GROUP.1),
        Resource {
            prepare_create: prepare_job,
            ..Resource::new::<batch::Job>(GROUP, "Job", "jobs")
        }
        .in_all()
        .with_status()
        .with_generation()
        .selectable_by(&["status.successful"])
        .printed(table::JOB, table::job)
        .defaulted(|job| job_spec_defaults(object::section(job, "spec")))
        .validated(validate_job, |_, _, _| {}),
        Resource {
            serves: Serves::View(View::CronJob),
            decode: |object| decode_as::<batch::CronJob>(object, "batch/v1"),
            ..cron_job("v1beta1")
        },
    ]
}

fn job_spec_defaults(spec: &mut serde_json::Map<String, Value>) {
    let indexed = spec.get("completionMode").is_some_and(|mode| mode == "Indexed");
    let mut fill = |field: &str, value: Value| {
        if spec.get(field).is_none_or(Value::is_null) {
            spec.insert(field.to_owned(), value);
        }
    };
    // Neither set means one; parallelism alone is a work queue (`SetDefaults_Job`).
    if !indexed {
        fill("completionMode", json!("NonIndexed"));
    }
    fill("backoffLimit", json!(6));
    fill("suspend", json!(false));
    fill("podReplacementPolicy", json!("TerminatingOrFailed"));
    let both_absent = !spec.contains_key("parallelism") && !spec.contains_key("completions");
    if both_absent {
        spec.insert("completions".to_owned(), json!(1));
    }
    spec.entry("parallelism").or_insert(json!(1));
    if let Some(template) = spec
        .get_mut("template")
        .and_then(|template| template.get_mut("spec"))
    {
        pod_spec::defaults(template);
    }
}

fn cron_job_defaults(object: &mut Value) {
    object::section(object, "spec");
    let spec = &mut object["spec"];
    default_to(spec, "concurrencyPolicy", "Allow");
    for (field, value) in [("successfulJobsHistoryLimit", 3), ("failedJobsHistoryLimit", 1)] {
        default_to(spec, field, value);
    }
    if spec.at("suspend").is_null() {
        spec["suspend"] = false.into();
    }
    let job = spec.get_mut("jobTemplate").and_then(|job| job.get_mut("spec"));
    if let Some(template) = job
        .and_then(|job| job.get_mut("template"))
        .and_then(|template| template.get_mut("spec"))
    {
        pod_spec::defaults(template);
    }
}

/// A Job selects its pods by its own uid, unless its author insists (`generateSelector`).
fn prepare_job(job: &mut Value) {
    clear_status(job);
    if job.flag("spec.manualSelector") {
        return;
    }
    let (uid, name) = (object::uid(job).to_owned(), object::name(job).to_owned());
    job["spec"]["selector"] = json!({ "matchLabels": { "batch.kubernetes.io/controller-uid": uid } });
    let template = object::section(&mut job["spec"], "template");
    let metadata = template.entry("metadata").or_insert_with(|| json!({}));
    let labels = object::section(metadata, "labels");
    for key in ["batch.kubernetes.io/controller-uid", "controller-uid"] {
        labels.insert(key.to_owned(), uid.clone().into());
    }
    for key in ["batch.kubernetes.io/job-name", "job-name"] {
        labels.insert(key.to_owned(), name.clone().into());
    }
}

fn validate_job(job: &Value, errors: &mut Errors) {
    let at = Path::new("spec");
    for field in ["parallelism", "completions", "backoffLimit"] {
        if let Some(number) = job.at("spec").int(field).filter(|number| *number < 0) {
            errors.invalid(&at.child(field), number, "must be greater than or equal to 0");
        }
    }
    let at = at.child("template").child("spec");
    let spec = job.at("spec.template.spec");
    let policy = spec.text("restartPolicy");
    if !matches!(policy, "OnFailure" | "Never") {
        errors.not_supported(&at.child("restartPolicy"), policy, &["OnFailure", "Never"]);
    }
    pod_spec::validate(spec, &at, errors);
}
