//! Events: core/v1 as stored, and events.k8s.io/v1 as another view of the same objects
//! (`pkg/apis/events/v1/conversion.go`).

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::events::v1 as events;
use serde_json::Value;

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
        printed(Resource::new::<core::Event>(("", "v1"), "Event", "events")).selectable_by(FIELDS),
        Resource {
            serves: Serves::View(View::Event),
            ..printed(Resource::new::<events::Event>(
                ("events.k8s.io", "v1"),
                "Event",
                "events",
            ))
        },
    ]
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
