//! Field errors: what is wrong, where, in the texts of apimachinery's `util/validation/field`.

use std::fmt;

use serde_json::{Value, json};

/// A place in an object, such as `spec.containers[0].name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// The field `name` of the object itself.
    pub fn new(name: &str) -> Self {
        Path(name.to_owned())
    }

    /// `self.name`.
    pub fn child(&self, name: &str) -> Self {
        Path(format!("{}.{name}", self.0))
    }

    /// `self[index]`.
    pub fn index(&self, index: usize) -> Self {
        Path(format!("{}[{index}]", self.0))
    }

    /// `self[key]`.
    pub fn key(&self, key: &str) -> Self {
        Path(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One broken rule.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    path: Path,
    wrong: Wrong,
    detail: String,
}

#[derive(Debug, Clone, PartialEq)]
enum Wrong {
    Required,
    Invalid(Value),
    NotSupported(Value),
    Duplicate(Value),
    Forbidden,
    TooLong,
    TooMany(usize),
    NotFound(Value),
}

impl FieldError {
    /// The entry of `details.causes`.
    pub fn cause(&self) -> Value {
        let reason = match self.wrong {
            Wrong::Required => "FieldValueRequired",
            Wrong::Invalid(_) => "FieldValueInvalid",
            Wrong::NotSupported(_) => "FieldValueNotSupported",
            Wrong::Duplicate(_) => "FieldValueDuplicate",
            Wrong::Forbidden => "FieldValueForbidden",
            Wrong::TooLong => "FieldValueTooLong",
            Wrong::TooMany(_) => "FieldValueTooMany",
            Wrong::NotFound(_) => "FieldValueNotFound",
        };
        json!({ "reason": reason, "message": self.body(), "field": self.path.0 })
    }

    fn body(&self) -> String {
        let head = match &self.wrong {
            Wrong::Required => "Required value".to_owned(),
            Wrong::Invalid(value) => format!("Invalid value: {}", shown(value)),
            Wrong::NotSupported(value) => format!("Unsupported value: {}", shown(value)),
            Wrong::Duplicate(value) => format!("Duplicate value: {}", shown(value)),
            Wrong::Forbidden => "Forbidden".to_owned(),
            Wrong::TooLong => "Too long".to_owned(),
            Wrong::TooMany(count) => format!("Too many: {count}"),
            Wrong::NotFound(value) => format!("Not found: {}", shown(value)),
        };
        if self.detail.is_empty() {
            head
        } else {
            format!("{head}: {}", self.detail)
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// Go prints string maps as `map[string]string{"a":"b"}`; everything else here reads as JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::Object(map) if map.values().all(Value::is_string) => format!("map[string]string{value}"),
        other => other.to_string(),
    }
}

/// Everything that is wrong with one object, in the order in which it was found.
#[derive(Debug, Default)]
pub struct Errors(Vec<FieldError>);

impl Errors {
    /// The field must be there.
    pub fn required(&mut self, path: &Path, detail: &str) {
        self.push(path, Wrong::Required, detail);
    }

    /// The value breaks the rule that `detail` tells.
    pub fn invalid(&mut self, path: &Path, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(path, Wrong::Invalid(value.into()), detail);
    }

    /// The value is none of `supported`.
    pub fn not_supported(&mut self, path: &Path, value: impl Into<Value>, supported: &[&str]) {
        let quoted: Vec<String> = supported.iter().map(|one| format!("{one:?}")).collect();
        let detail = format!("supported values: {}", quoted.join(", "));
        self.push(path, Wrong::NotSupported(value.into()), detail);
    }

    /// The value stands twice in a set.
    pub fn duplicate(&mut self, path: &Path, value: impl Into<Value>) {
        self.push(path, Wrong::Duplicate(value.into()), "");
    }

    /// The field may not be set, or not be changed so.
    pub fn forbidden(&mut self, path: &Path, detail: &str) {
        self.push(path, Wrong::Forbidden, detail);
    }

    /// The value names something that is not there.
    pub fn not_found(&mut self, path: &Path, value: impl Into<Value>) {
        self.push(path, Wrong::NotFound(value.into()), "");
    }

    /// The value is longer than `limit` bytes.
    pub fn too_long(&mut self, path: &Path, limit: usize) {
        self.push(
            path,
            Wrong::TooLong,
            format!("may not be more than {limit} bytes"),
        );
    }

    /// The list has `count` items, more than `limit`.
    pub fn too_many(&mut self, path: &Path, count: usize, limit: usize) {
        self.push(
            path,
            Wrong::TooMany(count),
            format!("must have at most {limit} items"),
        );
    }

    /// `field is immutable` unless both are equal.
    pub fn immutable(&mut self, path: &Path, new: &Value, old: &Value) {
        if new != old {
            self.invalid(path, new.clone(), "field is immutable");
        }
    }

    /// `Err` holds everything found, when anything was.
    pub fn into_result(self) -> Result<(), Vec<FieldError>> {
        if self.0.is_empty() { Ok(()) } else { Err(self.0) }
    }

    fn push(&mut self, path: &Path, wrong: Wrong, detail: impl Into<String>) {
        self.0.push(FieldError {
            path: path.clone(),
            wrong,
            detail: detail.into(),
        });
    }
}
