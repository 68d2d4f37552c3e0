//! Label selectors.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Labels of an object.
pub(crate) type Labels = BTreeMap<String, String>;

/// Whether every pair of `selector` is among `labels`: the selectors of Services and nodes. An empty one
/// matches all.
pub(crate) fn includes(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether `selector` matches. An empty selector matches everything, an operator that nobody knows nothing.
pub(crate) fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let pairs = selector.match_labels.iter().all(|pairs| includes(pairs, labels));
    let mut requirements = selector.match_expressions.iter().flatten();
    pairs
        && requirements.all(|r| {
            requirement(
                &r.key,
                &r.operator,
                r.values.as_deref().unwrap_or_default(),
                labels,
            )
        })
}

/// Whether `selector` names nothing at all.
pub(crate) fn is_empty(selector: &LabelSelector) -> bool {
    let no_pairs = selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty);
    no_pairs && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// One requirement, also those that only node selectors have (`Gt`, `Lt`).
pub(crate) fn requirement(key: &str, operator: &str, values: &[String], labels: &Labels) -> bool {
    let value = labels.get(key);
    let number = |text: &String| text.parse::<i64>().ok();
    let bound = values.first().and_then(number);
    match operator {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => value
            .and_then(number)
            .zip(bound)
            .is_some_and(|(have, bound)| have > bound),
        "Lt" => value
            .and_then(number)
            .zip(bound)
            .is_some_and(|(have, bound)| have < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(selector: serde_json::Value, labels: &[(&str, &str)], expected: bool) {
        let labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let parsed: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
        assert_eq!(matches(&parsed, &labels), expected, "{selector} on {labels:?}");
    }

    fn expression(key: &str, operator: &str, values: &[&str]) -> serde_json::Value {
        json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] })
    }

    #[test]
    fn selectors_match_as_the_api_documents() {
        check(json!({}), &[("a", "1")], true);
        check(
            json!({ "matchLabels": { "a": "1" } }),
            &[("a", "1"), ("b", "2")],
            true,
        );
        check(
            json!({ "matchLabels": { "a": "1", "b": "2" } }),
            &[("a", "1")],
            false,
        );
        check(expression("a", "In", &["1", "2"]), &[("a", "2")], true);
        check(expression("a", "In", &["1"]), &[], false);
        check(expression("a", "NotIn", &["1"]), &[], true);
        check(expression("a", "NotIn", &["1"]), &[("a", "1")], false);
        check(expression("a", "Exists", &[]), &[("a", "")], true);
        check(expression("a", "DoesNotExist", &[]), &[("a", "")], false);
        check(expression("a", "Gt", &["5"]), &[("a", "6")], true);
        check(expression("a", "Lt", &["5"]), &[("a", "x")], false);
        check(expression("a", "Near", &["5"]), &[("a", "5")], false);
    }
}
