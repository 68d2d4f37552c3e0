//! Nodes: their pod ranges. Taints for nodes that are not ready are the node lifecycle controller's.

use serde_json::{Value, json};

use super::field::{Errors, Path};
use crate::object::{Fields, default_to};

pub(super) fn defaults(node: &mut Value) {
    crate::object::section(node, "spec");
    if let Some(first) = node.list("spec.podCIDRs").first().cloned() {
        default_to(&mut node["spec"], "podCIDR", first);
    } else if !node.text("spec.podCIDR").is_empty() {
        node["spec"]["podCIDRs"] = json!([node["spec"]["podCIDR"]]);
    }
}

/// A node's pod range is given once (`ValidateNodeUpdate`).
pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    let (now, before) = (new.text("spec.podCIDR"), old.text("spec.podCIDR"));
    if !before.is_empty() && now != before {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        errors.forbidden(&Path::new("spec").child("podCIDRs"), detail);
    }
}
