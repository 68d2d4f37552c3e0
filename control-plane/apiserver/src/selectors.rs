//! Label and field selectors (apimachinery `pkg/labels`, `pkg/fields`), parsed once and matched often.

use serde_json::Value;

use crate::object::Fields;
use crate::resources::Resource;
use crate::status::{Failure, Result};

/// Which objects a list, watch or deletecollection is about.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
    namespace: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldRequirement {
    field: String,
    value: String,
    equal: bool,
}

impl Selection {
    /// Reads both selectors; fields that the resource cannot be selected by are refused as upstream refuses them.
    pub fn parse(
        resource: &Resource,
        namespace: Option<&str>,
        labels: Option<&str>,
        fields: Option<&str>,
    ) -> Result<Self> {
        Ok(Selection {
            labels: parse_labels(labels.unwrap_or_default())?,
            fields: parse_fields(resource, fields.unwrap_or_default())?,
            namespace: namespace.map(str::to_owned),
        })
    }

    /// True when nothing but the namespace is asked for.
    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// True when the object is selected.
    pub fn matches(&self, resource: &Resource, object: &Value) -> bool {
        let in_namespace = self
            .namespace
            .as_deref()
            .is_none_or(|namespace| object.text("metadata.namespace") == namespace);
        in_namespace
            && self
                .labels
                .iter()
                .all(|wanted| wanted.matches(object.at("metadata.labels")))
            && self
                .fields
                .iter()
                .all(|wanted| (field_value(resource, object, &wanted.field) == wanted.value) == wanted.equal)
    }
}

impl Requirement {
    fn matches(&self, labels: &Value) -> bool {
        let label = |key: &str| labels.get(key).and_then(Value::as_str);
        match self {
            Requirement::In(key, values) => {
                label(key).is_some_and(|value| values.iter().any(|one| one == value))
            }
            // A missing label satisfies `!=` and `notin` (labels.Requirement.Matches).
            Requirement::NotIn(key, values) => {
                label(key).is_none_or(|value| values.iter().all(|one| one != value))
            }
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
        }
    }
}

/// Whether a `metav1.LabelSelector` selects what has these labels: an absent one selects nothing, an empty one all
/// (`LabelSelectorAsSelector`). One with an operator that does not exist selects nothing.
pub fn label_selector_matches(selector: &Value, labels: &Value) -> bool {
    let equal = |(key, value): (&String, &Value)| labels.get(key) == Some(value);
    selector.is_object()
        && selector
            .at("matchLabels")
            .as_object()
            .into_iter()
            .flatten()
            .all(equal)
        && selector
            .list("matchExpressions")
            .iter()
            .all(|one| expression(one).is_some_and(|requirement| requirement.matches(labels)))
}

fn expression(expression: &Value) -> Option<Requirement> {
    let key = expression.text("key").to_owned();
    let values = || {
        let values = expression.list("values").iter();
        values
            .map(|value| value.as_str().unwrap_or_default().to_owned())
            .collect()
    };
    match expression.text("operator") {
        "In" => Some(Requirement::In(key, values())),
        "NotIn" => Some(Requirement::NotIn(key, values())),
        "Exists" => Some(Requirement::Exists(key)),
        "DoesNotExist" => Some(Requirement::Absent(key)),
        _ => None,
    }
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>> {
    split_outside_parentheses(text)
        .into_iter()
        .map(|part| requirement(part.trim()).ok_or_else(|| unparsable(text, part)))
        .collect()
}

fn unparsable(text: &str, part: &str) -> Failure {
    Failure::bad_request(format!(
        "unable to parse requirement: found '{part}' in the selector '{text}'"
    ))
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let parts = text.split(|letter| {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        letter == ',' && depth == 0
    });
    parts.filter(|part| !part.trim().is_empty()).collect()
}

fn requirement(part: &str) -> Option<Requirement> {
    if let Some(key) = part.strip_prefix('!') {
        return Some(Requirement::Absent(label_key(key)?));
    }
    for (operator, negated) in [("!=", true), ("==", false), ("=", false)] {
        if let Some((key, value)) = part.split_once(operator) {
            let (key, values) = (label_key(key)?, vec![value.trim().to_owned()]);
            return Some(if negated {
                Requirement::NotIn(key, values)
            } else {
                Requirement::In(key, values)
            });
        }
    }
    let Some((head, values)) = part.split_once('(') else {
        return label_key(part).map(Requirement::Exists);
    };
    let values = values
        .trim()
        .strip_suffix(')')?
        .split(',')
        .map(|value| value.trim().to_owned())
        .collect();
    let (key, operator) = head.trim().rsplit_once(char::is_whitespace)?;
    match operator {
        "in" => Some(Requirement::In(label_key(key)?, values)),
        "notin" => Some(Requirement::NotIn(label_key(key)?, values)),
        _ => None,
    }
}

fn label_key(key: &str) -> Option<String> {
    let key = key.trim();
    let good = !key.is_empty()
        && key
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || "-_./".contains(letter));
    good.then(|| key.to_owned())
}

fn parse_fields(resource: &Resource, text: &str) -> Result<Vec<FieldRequirement>> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| field_requirement(resource, part))
        .collect()
}

fn field_requirement(resource: &Resource, part: &str) -> Result<FieldRequirement> {
    let parsed = [("!=", false), ("==", true), ("=", true)]
        .into_iter()
        .find_map(|(operator, equal)| {
            let (field, value) = part.split_once(operator)?;
            Some(FieldRequirement {
                field: field.to_owned(),
                value: value.to_owned(),
                equal,
            })
        });
    let Some(requirement) = parsed else {
        return Err(Failure::bad_request(format!(
            "invalid field selector: '{part}'; can't understand '{part}'"
        )));
    };
    let field = requirement.field.as_str();
    if matches!(field, "metadata.name" | "metadata.namespace") || resource.fields.contains(&field) {
        return Ok(requirement);
    }
    Err(Failure::bad_request(format!(
        "field label not supported: {field}"
    )))
}

/// Fields are compared as text; false and absent booleans are one, as in Go's types.
fn field_value(resource: &Resource, object: &Value, field: &str) -> String {
    let value = match (resource.kind, field) {
        ("Event", "source") => match object.at("source.component") {
            Value::String(component) if !component.is_empty() => object.at("source.component"),
            _ => object.at("reportingComponent"),
        },
        _ => object.at(field),
    };
    match value {
        Value::String(text) => text.clone(),
        Value::Null if matches!(field, "spec.unschedulable" | "spec.hostNetwork") => "false".to_owned(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::Registry;

    #[track_caller]
    fn check(labels: &str, fields: &str, expected: Option<bool>) {
        let registry = Registry::new();
        let pods = registry.find("", "v1", "pods").expect("pods are served");
        let pod = json!({
            "metadata": { "name": "a", "namespace": "default", "labels": { "app": "web", "tier": "front" } },
            "spec": { "nodeName": "n1" }, "status": { "phase": "Running" },
        });
        let found =
            Selection::parse(pods, None, Some(labels), Some(fields)).map(|wanted| wanted.matches(pods, &pod));
        assert_eq!(found.ok(), expected, "labels {labels:?}, fields {fields:?}");
    }

    #[test]
    fn labels_are_selected_as_upstream_does() {
        check("", "", Some(true));
        check("app=web", "", Some(true));
        check("app==web,tier!=back", "", Some(true));
        check("app!=web", "", Some(false));
        check("other!=x", "", Some(true));
        check("app in (web, api),tier notin (back)", "", Some(true));
        check("app in (api)", "", Some(false));
        check("app", "", Some(true));
        check("!app", "", Some(false));
        check("!other,tier", "", Some(true));
        check("app within (x)", "", None);
        check("a b", "", None);
    }

    #[test]
    fn a_label_selector_of_an_object_selects_as_upstream_does() {
        let labels = json!({ "app": "web", "tier": "front" });
        let one = |key: &str, operator: &str, values: &[&str]| json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] });
        for (selector, expected) in [
            (Value::Null, false),
            (json!({}), true),
            (json!({ "matchLabels": { "app": "web" } }), true),
            (json!({ "matchLabels": { "app": "web", "other": "x" } }), false),
            (one("app", "In", &["web", "api"]), true),
            (one("app", "NotIn", &["web"]), false),
            (one("other", "NotIn", &["x"]), true),
            (one("tier", "Exists", &[]), true),
            (one("tier", "DoesNotExist", &[]), false),
            (one("tier", "Gt", &["1"]), false),
        ] {
            assert_eq!(label_selector_matches(&selector, &labels), expected, "{selector}");
        }
    }

    #[test]
    fn fields_are_selected_when_the_resource_supports_them() {
        check("", "metadata.name=a", Some(true));
        check("", "metadata.name=b", Some(false));
        check("", "spec.nodeName=n1,status.phase!=Succeeded", Some(true));
        check("", "spec.hostNetwork=false", Some(true));
        check("", "spec.hostname=x", None);
        check("", "nonsense", None);
    }
}
