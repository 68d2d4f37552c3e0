//! Types: every object passes once through its Rust type, which refuses wrong types and drops unknown fields, as Go's
//! decoder does. What was dropped is told to the client (`fieldValidation`).

use k8s_openapi::serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Fields whose values are quantities: a bare number is fine in a manifest (`cpu: 1`) but no string.
const QUANTITY_MAPS: [&str; 9] = [
    "allocatable",
    "capacity",
    "default",
    "defaultRequest",
    "hard",
    "limits",
    "max",
    "requests",
    "used",
];

/// Through the type `T` and back.
pub(super) fn round_trip<T: Serialize + DeserializeOwned>(mut object: Value) -> Result<Value, String> {
    numbers_to_quantities(&mut object);
    let typed: T = serde_path_to_error::deserialize(object).map_err(|error| {
        let path = error.path().to_string();
        go_text(&path, &error.into_inner().to_string())
    })?;
    serde_json::to_value(typed).map_err(|error| error.to_string())
}

/// Paths that are in `given` but not in `kept`.
pub fn unknown_fields(given: &Value, kept: &Value) -> Vec<String> {
    let mut unknown = Vec::new();
    compare(given, kept, "", &mut unknown);
    unknown
}

fn compare(given: &Value, kept: &Value, path: &str, unknown: &mut Vec<String>) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (field, value) in given.iter().filter(|(_, value)| !value.is_null()) {
                let below = if path.is_empty() {
                    field.clone()
                } else {
                    format!("{path}.{field}")
                };
                match kept.get(field) {
                    Some(kept) => compare(value, kept, &below, unknown),
                    None => unknown.push(below),
                }
            }
        }
        (Value::Array(given), Value::Array(kept)) => {
            for (index, (given, kept)) in given.iter().zip(kept).enumerate() {
                compare(given, kept, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

fn numbers_to_quantities(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (field, inner) in map.iter_mut() {
                match inner {
                    Value::Object(quantities) if QUANTITY_MAPS.contains(&field.as_str()) => {
                        for quantity in quantities.values_mut().filter(|value| value.is_number()) {
                            *quantity = Value::String(quantity.to_string());
                        }
                    }
                    Value::Number(number) if matches!(field.as_str(), "sizeLimit" | "divisor") => {
                        *inner = Value::String(number.to_string());
                    }
                    other => numbers_to_quantities(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(numbers_to_quantities),
        _ => {}
    }
}

/// `invalid type: string "x", expected i32` in the words of Go's decoder.
fn go_text(path: &str, serde_text: &str) -> String {
    let said = serde_text
        .strip_prefix("invalid type: ")
        .and_then(|rest| rest.split_once(", expected "));
    let Some((found, expected)) = said else {
        return serde_text.to_owned();
    };
    let found = match found.split_whitespace().next().unwrap_or_default() {
        "integer" | "floating" => "number",
        "sequence" => "array",
        "map" => "object",
        "boolean" => "bool",
        _ => "string",
    };
    let expected = match expected {
        "i32" => "int32",
        "i64" => "int64",
        "a boolean" => "bool",
        "a string" => "string",
        other => other,
    };
    format!("json: cannot unmarshal {found} into Go struct field .{path} of type {expected}")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use serde_json::json;

    use super::*;

    fn deployment(spec: Value) -> Value {
        json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "a" }, "spec": spec })
    }

    #[test]
    fn a_wrong_type_is_told_in_the_words_of_go() {
        let told =
            round_trip::<Deployment>(deployment(json!({ "replicas": "three" }))).expect_err("no number");
        let expected = "json: cannot unmarshal string into Go struct field .spec.replicas of type int32";
        assert_eq!(told, expected);
    }

    #[test]
    fn unknown_fields_are_dropped_and_named() {
        let given = deployment(json!({
            "replica": 3, "selector": {},
            "template": { "spec": { "containers": [{ "name": "a", "imag": "x", "stdin": null }] } },
        }));
        let kept = round_trip::<Deployment>(given.clone()).expect("types are right");
        let unknown = unknown_fields(&given, &kept);
        assert_eq!(unknown, ["spec.replica", "spec.template.spec.containers[0].imag"]);
    }

    #[test]
    fn numbers_are_quantities_where_quantities_stand() {
        let limits = json!({ "limits": { "cpu": 1, "memory": "1Mi" } });
        let spec = json!({ "containers": [{ "name": "a", "resources": limits }] });
        let given = deployment(json!({ "selector": {}, "template": { "spec": spec } }));
        let kept = round_trip::<Deployment>(given).expect("types are right");
        let kept = &kept["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"];
        assert_eq!(kept, "1");
    }
}
