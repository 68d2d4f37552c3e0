//! What a HorizontalPodAutoscaler may say (`pkg/apis/autoscaling/validation`): whom it scales, and between which counts.

use serde_json::Value;

use super::field::{Errors, Path};
use crate::object::Fields;

pub(super) fn validate(autoscaler: &Value, errors: &mut Errors) {
    let (at, spec) = (Path::new("spec"), autoscaler.at("spec"));
    let least = spec.int("minReplicas");
    let most = spec.int("maxReplicas").unwrap_or(0);
    if let Some(least) = least.filter(|least| *least < 1) {
        errors.invalid(
            &at.child("minReplicas"),
            least,
            "must be greater than or equal to 1",
        );
    }
    if most < 1 {
        errors.invalid(&at.child("maxReplicas"), most, "must be greater than 0");
    }
    if least.is_some_and(|least| most < least) {
        let why = "must be greater than or equal to `minReplicas`";
        errors.invalid(&at.child("maxReplicas"), most, why);
    }
    for field in ["kind", "name"] {
        if spec.at("scaleTargetRef").text(field).is_empty() {
            errors.required(&at.child("scaleTargetRef").child(field), "");
        }
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
    fn autoscalers_are_judged_in_the_words_of_upstream() {
        let web = json!({ "kind": "Deployment", "name": "web" });
        check(
            json!({ "scaleTargetRef": web, "minReplicas": 1, "maxReplicas": 1 }),
            &[],
        );
        check(json!({ "scaleTargetRef": web, "maxReplicas": 3 }), &[]);
        check(
            json!({ "scaleTargetRef": web, "minReplicas": 0, "maxReplicas": 0 }),
            &[
                "spec.minReplicas: Invalid value: 0: must be greater than or equal to 1",
                "spec.maxReplicas: Invalid value: 0: must be greater than 0",
            ],
        );
        check(
            json!({ "scaleTargetRef": { "kind": "" }, "minReplicas": 4, "maxReplicas": 3 }),
            &[
                "spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`",
                "spec.scaleTargetRef.kind: Required value",
                "spec.scaleTargetRef.name: Required value",
            ],
        );
    }
}
