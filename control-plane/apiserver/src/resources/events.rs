//! Events: core/v1 as stored, and events.k8s.io/v1 as another view of the same objects
//! (`pkg/apis/events/v1/conversion.go`).

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::events::v1 as events;
use serde_json::Value;

use super::field::{Errors, Path};
use super::{NameRule, Resource, Serves, View};
use crate::object::{self, Fields};
use crate::table::core as table;

/// Fields by which core Events can be selected.
const FIELDS: &[&str] = &[
    "involvedObject.apiVersion",
    "involvedObject.fieldPath",
    "involvedObject.kind",
    "involvedObject.name",
    "involvedObject.namespace",
    "involvedObject.resourceVersion",
    "involvedObject.uid",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

/// Fields by which the newer view can be selected (`AddFieldLabelConversionsForEvent`).
const FIELDS_OF_VIEW: &[&str] = &[
    "reason",
    "regarding.apiVersion",
    "regarding.fieldPath",
    "regarding.kind",
    "regarding.name",
    "regarding.namespace",
    "regarding.resourceVersion",
    "regarding.uid",
    "reportingController",
    "type",
];

/// The longest of most texts (`pkg/apis/core/validation/events.go`), and of the one for people.
const MAX_TEXT: usize = 128;
const MAX_MESSAGE: usize = 1024;

/// Core name, events.k8s.io name.
const RENAMED: [(&str, &str); 7] = [
    ("count", "deprecatedCount"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("involvedObject", "regarding"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
];

pub(super) fn rows() -> Vec<Resource> {
    let printed = |row: Resource| {
        row.short(&["ev"])
            .named(NameRule::Subdomain)
            .printed(table::EVENT, table::event)
    };
    vec![
        printed(Resource::new::<core::Event>(("", "v1"), "Event", "events"))
            .selectable_by(FIELDS)
            .validated(validate, |_, _, _| {}),
        Resource {
            serves: Serves::View(View::Event),
            ..printed(Resource::new::<events::Event>(
                ("events.k8s.io", "v1"),
                "Event",
                "events",
            ))
            .selectable_by(FIELDS_OF_VIEW)
            .validated(validate_view, |_, _, _| {})
        },
    ]
}

/// Events stand beside what they are about; those of nothing in a namespace stand in `default`. The newer kind, which
/// has an `eventTime`, also says who reports what (`legacyValidateEvent`).
fn validate(event: &Value, errors: &mut Errors) {
    let at = |field: &str| Path::new(field);
    let (namespace, about) = (object::namespace(event), event.text("involvedObject.namespace"));
    let is_new = !event.text("eventTime").is_empty();
    let agree = match about {
        "" if is_new => matches!(namespace, "" | "default" | "kube-system"),
        "" => matches!(namespace, "" | "default"),
        about => is_new || about == namespace,
    };
    if !agree {
        errors.invalid(
            &at("involvedObject").child("namespace"),
            about,
            "does not match event.namespace",
        );
    }
    if !is_new {
        return;
    }
    for field in ["reportingComponent", "reportingInstance", "action", "reason"] {
        match event.text(field) {
            "" => errors.required(&at(field), ""),
            text if text.len() > MAX_TEXT => {
                errors.invalid(&at(field), "", format!("can have at most {MAX_TEXT} characters"));
            }
            _ => {}
        }
    }
    if event.text("message").len() > MAX_MESSAGE {
        errors.invalid(
            &at("message"),
            "",
            format!("can have at most {MAX_MESSAGE} characters"),
        );
    }
}

/// What the newer kind wants beyond that when it is created (`validateV1EventSeries`, `ValidateEventCreate`).
fn validate_view(event: &Value, errors: &mut Errors) {
    let at = |field: &str| Path::new(field);
    if event.text("eventTime").is_empty() {
        errors.required(&at("eventTime"), "");
    }
    if event.at("series").is_object() {
        if event.text("series.lastObservedTime").is_empty() {
            errors.required(&at("series").child("lastObservedTime"), "");
        }
        if event.int("series.count").unwrap_or_default() < 2 {
            errors.invalid(&at("series").child("count"), "", "should be at least 2");
        }
    }
    let kind = event.text("type");
    if !matches!(kind, "Normal" | "Warning") {
        errors.invalid(&at("type"), "", format!("has invalid value: {kind}"));
    }
    for (field, name) in [
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
        ("deprecatedSource", "source"),
    ] {
        let value = event.at(field);
        if !value.is_null() && *value != 0 {
            errors.invalid(&at(name), "", "needs to be unset");
        }
    }
}

/// The events.k8s.io view of a core Event.
pub fn from_core(mut event: Value) -> Value {
    for (core, view) in RENAMED {
        rename(&mut event, core, view);
    }
    event["apiVersion"] = "events.k8s.io/v1".into();
    event
}

/// The core Event behind an events.k8s.io view.
pub fn to_core(mut event: Value) -> Value {
    for (core, view) in RENAMED {
        rename(&mut event, view, core);
    }
    event["apiVersion"] = "v1".into();
    if event.at("involvedObject").is_null() {
        event["involvedObject"] = serde_json::json!({});
    }
    event
}

fn rename(event: &mut Value, from: &str, to: &str) {
    if let Some(value) = object::remove(event, from) {
        event[to] = value;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(event: Value, expected: &[&str]) {
        check_by(validate, event, expected);
    }

    #[track_caller]
    fn check_by(validate: fn(&Value, &mut Errors), event: Value, expected: &[&str]) {
        let mut errors = Errors::default();
        validate(&event, &mut errors);
        let told = errors.into_result().err().unwrap_or_default();
        let told: Vec<String> = told.iter().map(ToString::to_string).collect();
        assert_eq!(told, expected, "{event}");
    }

    #[test]
    fn events_stand_beside_what_they_are_about() {
        let event = |namespace: &str, about: Value| json!({ "metadata": { "namespace": namespace }, "involvedObject": about });
        check(event("a", json!({ "namespace": "a" })), &[]);
        check(event("default", json!({})), &[]);
        let wrong = |given: &str| {
            format!("involvedObject.namespace: Invalid value: \"{given}\": does not match event.namespace")
        };
        check(event("a", json!({})), &[&wrong("")]);
        check(event("a", json!({ "namespace": "b" })), &[&wrong("b")]);
    }

    #[test]
    fn newer_events_say_who_reports_what() {
        let mut event = json!({
            "metadata": { "namespace": "kube-system" }, "eventTime": "2024-01-01T00:00:00.000000Z",
            "reportingComponent": "c", "reportingInstance": "i", "action": "a", "reason": "r",
        });
        check(event.clone(), &[]);
        event["action"] = "a".repeat(129).into();
        event["reason"] = "".into();
        event["message"] = "m".repeat(1025).into();
        check(
            event,
            &[
                "action: Invalid value: \"\": can have at most 128 characters",
                "reason: Required value",
                "message: Invalid value: \"\": can have at most 1024 characters",
            ],
        );
    }

    #[test]
    fn the_newer_kind_is_of_a_moment_and_has_nothing_of_the_older_one() {
        let moment = "2024-01-01T00:00:00.000000Z";
        let series = json!({ "count": 2, "lastObservedTime": moment });
        let mut event = json!({ "type": "Normal", "eventTime": moment, "series": series });
        check_by(validate_view, event.clone(), &[]);
        event["series"] = json!({ "count": 1 });
        event["deprecatedCount"] = 1.into();
        check_by(
            validate_view,
            event,
            &[
                "series.lastObservedTime: Required value",
                "series.count: Invalid value: \"\": should be at least 2",
                "count: Invalid value: \"\": needs to be unset",
            ],
        );
        check_by(
            validate_view,
            json!({ "type": "Odd" }),
            &[
                "eventTime: Required value",
                "type: Invalid value: \"\": has invalid value: Odd",
            ],
        );
    }

    #[test]
    fn both_views_of_an_event_are_one_object() {
        let core = json!({
            "apiVersion": "v1", "kind": "Event", "involvedObject": { "name": "a" }, "message": "m",
            "reason": "r", "count": 2, "reportingComponent": "kubelet",
        });
        let view = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "regarding": { "name": "a" }, "note": "m",
            "reason": "r", "deprecatedCount": 2, "reportingController": "kubelet",
        });
        assert_eq!(from_core(core.clone()), view);
        assert_eq!(to_core(view), core);
    }
}
