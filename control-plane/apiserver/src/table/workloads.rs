//! Columns of `apps`, `batch` and `policy`.

use jiff::Timestamp;
use serde_json::Value;

use super::{Column, age, human_duration, labels, number, selector, since, text, wide};
use crate::object::{self, Fields};

/// Deployments.
pub const DEPLOYMENT: &[Column] = &[
    text("Name"),
    text("Ready"),
    text("Up-to-date"),
    text("Available"),
    text("Age"),
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

/// Cells under [`DEPLOYMENT`].
pub fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let (containers, images) = containers(object);
    let ready = format!(
        "{}/{}",
        count(object, "status.readyReplicas"),
        count(object, "spec.replicas")
    );
    vec![
        object::name(object).into(),
        ready.into(),
        count(object, "status.updatedReplicas").into(),
        count(object, "status.availableReplicas").into(),
        age(object, now),
        containers,
        images,
        selector(object.at("spec.selector")),
    ]
}

/// ReplicaSets and ReplicationControllers.
pub const REPLICA_SET: &[Column] = &[
    text("Name"),
    number("Desired"),
    number("Current"),
    number("Ready"),
    text("Age"),
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

/// Cells under [`REPLICA_SET`].
pub fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    replicas(object, now, selector(object.at("spec.selector")))
}

/// Cells under [`REPLICA_SET`], for the older kind with its plain selector.
pub fn replication_controller(object: &Value, now: Timestamp) -> Vec<Value> {
    replicas(object, now, labels(object.at("spec.selector")))
}

fn replicas(object: &Value, now: Timestamp, selector: Value) -> Vec<Value> {
    let (containers, images) = containers(object);
    vec![
        object::name(object).into(),
        count(object, "spec.replicas").into(),
        count(object, "status.replicas").into(),
        count(object, "status.readyReplicas").into(),
        age(object, now),
        containers,
        images,
        selector,
    ]
}

/// DaemonSets.
pub const DAEMON_SET: &[Column] = &[
    text("Name"),
    number("Desired"),
    number("Current"),
    number("Ready"),
    number("Up-to-date"),
    number("Available"),
    text("Node Selector"),
    text("Age"),
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

/// Cells under [`DAEMON_SET`].
pub fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (containers, images) = containers(object);
    vec![
        object::name(object).into(),
        count(object, "status.desiredNumberScheduled").into(),
        count(object, "status.currentNumberScheduled").into(),
        count(object, "status.numberReady").into(),
        count(object, "status.updatedNumberScheduled").into(),
        count(object, "status.numberAvailable").into(),
        labels(object.at("spec.template.spec.nodeSelector")),
        age(object, now),
        containers,
        images,
        selector(object.at("spec.selector")),
    ]
}

/// StatefulSets.
pub const STATEFUL_SET: &[Column] = &[
    text("Name"),
    text("Ready"),
    text("Age"),
    wide("Containers"),
    wide("Images"),
];

/// Cells under [`STATEFUL_SET`].
pub fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (containers, images) = containers(object);
    let ready = format!(
        "{}/{}",
        count(object, "status.readyReplicas"),
        count(object, "spec.replicas")
    );
    vec![
        object::name(object).into(),
        ready.into(),
        age(object, now),
        containers,
        images,
    ]
}

/// Jobs.
pub const JOB: &[Column] = &[
    text("Name"),
    text("Status"),
    text("Completions"),
    text("Duration"),
    text("Age"),
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

/// Cells under [`JOB`].
pub fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (containers, images) = containers(object);
    let succeeded = count(object, "status.succeeded");
    let completions = match (object.int("spec.completions"), object.int("spec.parallelism")) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, Some(parallelism)) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        _ => format!("{succeeded}/1"),
    };
    vec![
        object::name(object).into(),
        job_status(object).into(),
        completions.into(),
        job_duration(object, now).into(),
        age(object, now),
        containers,
        images,
        selector(object.at("spec.selector")),
    ]
}

fn job_status(job: &Value) -> &'static str {
    let holds = |kind: &str| {
        job.list("status.conditions")
            .iter()
            .any(|one| one.text("type") == kind && one.text("status") == "True")
    };
    match () {
        () if holds("Complete") => "Complete",
        () if holds("Failed") => "Failed",
        () if object::is_terminating(job) => "Terminating",
        () if holds("Suspended") => "Suspended",
        () => "Running",
    }
}

fn job_duration(job: &Value, now: Timestamp) -> String {
    let time = |path: &str| job.text(path).parse::<Timestamp>().ok();
    match (time("status.startTime"), time("status.completionTime")) {
        (Some(start), end) => human_duration(end.unwrap_or(now).as_second() - start.as_second()),
        (None, _) => String::new(),
    }
}

/// CronJobs.
pub const CRON_JOB: &[Column] = &[
    text("Name"),
    text("Schedule"),
    text("Timezone"),
    text("Suspend"),
    number("Active"),
    text("Last Schedule"),
    text("Age"),
];

/// Cells under [`CRON_JOB`].
pub fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let last = match object.text("status.lastScheduleTime") {
        "" => "<none>".to_owned(),
        time => since(time, now),
    };
    vec![
        object::name(object).into(),
        object.text("spec.schedule").into(),
        super::or_none(object.text("spec.timeZone")),
        if object.flag("spec.suspend") {
            "True"
        } else {
            "False"
        }
        .into(),
        object.list("status.active").len().into(),
        last.into(),
        age(object, now),
    ]
}

/// ControllerRevisions.
pub const CONTROLLER_REVISION: &[Column] =
    &[text("Name"), text("Controller"), number("Revision"), text("Age")];

/// Cells under [`CONTROLLER_REVISION`].
pub fn controller_revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut owners = object.list("metadata.ownerReferences").iter();
    let controller = owners.find(|owner| owner.flag("controller")).map(|owner| {
        let group = owner
            .text("apiVersion")
            .split_once('/')
            .map_or("", |(group, _)| group);
        let kind = owner.text("kind").to_lowercase();
        let dot = if group.is_empty() { "" } else { "." };
        format!("{kind}{dot}{group}/{}", owner.text("name"))
    });
    vec![
        object::name(object).into(),
        controller.unwrap_or_else(|| "<none>".to_owned()).into(),
        count(object, "revision").into(),
        age(object, now),
    ]
}

/// PodDisruptionBudgets.
pub const DISRUPTION_BUDGET: &[Column] = &[
    text("Name"),
    text("Min Available"),
    text("Max Unavailable"),
    number("Allowed Disruptions"),
    text("Age"),
];

/// Cells under [`DISRUPTION_BUDGET`].
pub fn disruption_budget(object: &Value, now: Timestamp) -> Vec<Value> {
    let number_or_share = |path: &str| match object.at(path) {
        Value::Null => "N/A".to_owned(),
        Value::String(share) => share.clone(),
        number => number.to_string(),
    };
    vec![
        object::name(object).into(),
        number_or_share("spec.minAvailable").into(),
        number_or_share("spec.maxUnavailable").into(),
        count(object, "status.disruptionsAllowed").into(),
        age(object, now),
    ]
}

fn count(object: &Value, path: &str) -> i64 {
    object.int(path).unwrap_or(0)
}

fn containers(object: &Value) -> (Value, Value) {
    let listed = |field: &str| {
        let texts: Vec<&str> = object
            .list("spec.template.spec.containers")
            .iter()
            .map(|container| container.text(field))
            .collect();
        Value::String(texts.join(","))
    };
    (listed("name"), listed("image"))
}
