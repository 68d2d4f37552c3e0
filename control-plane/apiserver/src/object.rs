//! Reading and writing Kubernetes objects as JSON values: the few accessors that everything else uses.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// Deep read access that treats an absent field as `null`.
pub trait Fields {
    /// The value at a dotted path (`spec.nodeName`); `null` when any step is absent.
    fn at(&self, path: &str) -> &Value;
    /// The string at a dotted path; empty when absent or not a string.
    fn text(&self, path: &str) -> &str;
    /// The list at a dotted path; empty when absent or not a list.
    fn list(&self, path: &str) -> &[Value];
    /// The integer at a dotted path.
    fn int(&self, path: &str) -> Option<i64>;
    /// True only when the field is there and true.
    fn flag(&self, path: &str) -> bool;
}

impl Fields for Value {
    fn at(&self, path: &str) -> &Value {
        path.split('.')
            .fold(self, |value, step| value.get(step).unwrap_or(&Value::Null))
    }

    fn text(&self, path: &str) -> &str {
        self.at(path).as_str().unwrap_or_default()
    }

    fn list(&self, path: &str) -> &[Value] {
        self.at(path).as_array().map(Vec::as_slice).unwrap_or_default()
    }

    fn int(&self, path: &str) -> Option<i64> {
        self.at(path).as_i64()
    }

    fn flag(&self, path: &str) -> bool {
        self.at(path).as_bool().unwrap_or(false)
    }
}

/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    object.text("metadata.name")
}

/// `metadata.namespace`, empty for cluster-scoped objects.
pub fn namespace(object: &Value) -> &str {
    object.text("metadata.namespace")
}

/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    object.text("metadata.uid")
}

/// The revision in `metadata.resourceVersion`; 0 when absent.
pub fn revision(object: &Value) -> i64 {
    object.text("metadata.resourceVersion").parse().unwrap_or(0)
}

/// Writes `metadata.resourceVersion`.
pub fn set_revision(object: &mut Value, revision: i64) {
    metadata(object).insert("resourceVersion".into(), revision.to_string().into());
}

/// True once deletion was asked for.
pub fn is_terminating(object: &Value) -> bool {
    object.at("metadata.deletionTimestamp").is_string()
}

/// `metadata`, made when absent.
pub fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    section(object, "metadata")
}

/// The top-level object `field`, made when absent (or when it is something else).
pub fn section<'a>(object: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let slot = &mut object[field];
    if !slot.is_object() {
        *slot = json!({});
    }
    slot.as_object_mut()
        .expect("invariant: the slot was just made an object")
}

/// Sets `field` to `value` when it is absent, null, or an empty string.
pub fn default_to(object: &mut Value, field: &str, value: impl Into<Value>) {
    if is_unset(object.at(field)) {
        object[field] = value.into();
    }
}

/// Absent, null, and the empty string are one in Go's types.
pub fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// Copies `field` from one object to another; absent there means absent here.
pub fn copy_field(from: &Value, to: &mut Value, field: &str) {
    match from.get(field) {
        Some(value) => to[field] = value.clone(),
        None => {
            remove(to, field);
        }
    }
}

/// Sets a direct field, or removes it for `None`.
pub fn set_or_remove(object: &mut Value, field: &str, value: Option<Value>) {
    match value {
        Some(value) => object[field] = value,
        None => {
            remove(object, field);
        }
    }
}

/// Removes a direct field.
pub fn remove(object: &mut Value, field: &str) -> Option<Value> {
    object.as_object_mut().and_then(|map| map.remove(field))
}

/// `metav1.Time`: RFC 3339 in whole seconds.
pub fn time(now: Timestamp) -> Value {
    Value::String(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// `metav1.MicroTime`: RFC 3339 in microseconds.
pub fn micro_time(now: Timestamp) -> Value {
    Value::String(now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string())
}

/// How many values a JSON text has, at least: those that begin a list or an object, or follow a comma.
pub fn json_values_at_least(json: &[u8]) -> usize {
    let (mut count, mut in_string, mut escaped) = (0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' | b',' if !in_string => count += 1,
            _ => {}
        }
    }
    count
}

/// `apiVersion` of a group and version.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}
