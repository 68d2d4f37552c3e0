//! What a PodDisruptionBudget may say (`pkg/apis/policy/validation`).

use serde_json::Value;

use super::field::{Errors, Path};
use super::names::{validate_labels, validate_qualified_name};
use crate::object::Fields;

const BOUNDS: [&str; 2] = ["minAvailable", "maxUnavailable"];

pub(super) fn validate(budget: &Value, errors: &mut Errors) {
    let (at, spec) = (Path::new("spec"), budget.at("spec"));
    if BOUNDS.iter().all(|bound| !spec.at(bound).is_null()) {
        let why = "minAvailable and maxUnavailable cannot be both set";
        errors.invalid(&at, spec.clone(), why);
    }
    for bound in BOUNDS {
        if let Some(why) = complaint(spec.at(bound)) {
            errors.invalid(&at.child(bound), spec.at(bound).clone(), why);
        }
    }
    validate_selector(spec.at("selector"), &at.child("selector"), errors);
}

/// What is wrong with a count of pods or a share of them.
fn complaint(bound: &Value) -> Option<&'static str> {
    let Some(text) = bound.as_str() else {
        let is_negative = bound.as_i64().is_some_and(|count| count < 0);
        return is_negative.then_some("must be greater than or equal to 0");
    };
    let digits = text.strip_suffix('%').unwrap_or_default();
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(
            "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex \
             used for validation is '[0-9]+%')",
        );
    }
    let is_share = digits.parse::<u64>().is_ok_and(|percent| percent <= 100);
    (!is_share).then_some("must not be greater than 100%")
}

/// `ValidateLabelSelector`.
fn validate_selector(selector: &Value, at: &Path, errors: &mut Errors) {
    validate_labels(selector.at("matchLabels"), &at.child("matchLabels"), errors);
    for (index, expression) in selector.list("matchExpressions").iter().enumerate() {
        let at = at.child("matchExpressions").index(index);
        let has_values = !expression.list("values").is_empty();
        match expression.text("operator") {
            "In" | "NotIn" if !has_values => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.required(&at.child("values"), why);
            }
            "Exists" | "DoesNotExist" if has_values => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(&at.child("values"), why);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&at.child("operator"), other, "not a valid selector operator"),
        }
        validate_qualified_name(expression.text("key"), &at.child("key"), errors);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(spec: Value, expected: &[&str]) {
        let mut errors = Errors::default();
        validate(&json!({ "spec": spec }), &mut errors);
        let errors = errors.into_result().err().unwrap_or_default();
        let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(told, expected, "{spec}");
    }

    #[test]
    fn budgets_are_judged_in_the_words_of_upstream() {
        check(json!({ "minAvailable": 0 }), &[]);
        check(json!({ "maxUnavailable": "100%" }), &[]);
        check(
            json!({ "minAvailable": -1 }),
            &["spec.minAvailable: Invalid value: -1: must be greater than or equal to 0"],
        );
        check(
            json!({ "maxUnavailable": "101%" }),
            &["spec.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%"],
        );
        for text in ["50", "-5%", "%", ""] {
            check(
                json!({ "minAvailable": text }),
                &[&format!(
                    "spec.minAvailable: Invalid value: {text:?}: a valid percent string must be a numeric string \
                     followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"
                )],
            );
        }
        check(
            json!({ "minAvailable": 1, "maxUnavailable": 1 }),
            &[
                "spec: Invalid value: {\"maxUnavailable\":1,\"minAvailable\":1}: minAvailable and maxUnavailable cannot \
               be both set",
            ],
        );
        check(
            json!({ "selector": { "matchExpressions": [
                { "key": "a", "operator": "In", "values": ["b"] },
                { "key": "a", "operator": "In" },
                { "key": "a", "operator": "Exists", "values": ["b"] },
                { "key": "a", "operator": "Like" },
            ] } }),
            &[
                "spec.selector.matchExpressions[1].values: Required value: must be specified when `operator` is 'In' \
                 or 'NotIn'",
                "spec.selector.matchExpressions[2].values: Forbidden: may not be specified when `operator` is \
                 'Exists' or 'DoesNotExist'",
                "spec.selector.matchExpressions[3].operator: Invalid value: \"Like\": not a valid selector operator",
            ],
        );
    }
}
