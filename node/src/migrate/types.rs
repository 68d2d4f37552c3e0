//! Types of foreign fields: what a program does not read as its own type it refuses, with the whole file.

use std::fmt;

use serde_json::Value;

use super::told::Verdict;

/// What a field is in the program's own words. `null` is any of them: the field is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Whatever the program makes of it.
    Any,
    /// A text; durations and addresses are texts too.
    Text,
    /// A text like `5s`, or a whole number of nanoseconds.
    TextOrWhole,
    /// `true` or `false`.
    Switch,
    /// A whole number.
    Whole,
    /// A number.
    Number,
    /// A list of texts.
    Texts,
    /// A list of maps.
    Maps,
    /// A map, sections included.
    Map,
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "anything",
            Self::Text => "a text",
            Self::TextOrWhole => "a text or a whole number",
            Self::Switch => "true or false",
            Self::Whole => "a whole number",
            Self::Number => "a number",
            Self::Texts => "a list of texts",
            Self::Maps => "a list of maps",
            Self::Map => "a map",
        })
    }
}

impl Type {
    fn is_of(self, value: &Value) -> bool {
        let each = |is: fn(&Value) -> bool| value.as_array().is_some_and(|list| list.iter().all(is));
        let is_whole = value.is_i64() || value.is_u64();
        match self {
            _ if value.is_null() => true,
            Self::Any => true,
            Self::Text => value.is_string(),
            Self::TextOrWhole => value.is_string() || is_whole,
            Self::Switch => value.is_boolean(),
            Self::Whole => is_whole,
            Self::Number => value.is_number(),
            Self::Texts => each(Value::is_string),
            Self::Maps => each(Value::is_object),
            Self::Map => value.is_object(),
        }
    }

    /// What is told of a value that the program `of` does not read. Go's YAML has more words for true and false than
    /// YAML 1.2: whether they stood in quotes is not seen here.
    pub fn refusal(self, of: &str, value: &Value) -> Option<Verdict> {
        const SWITCHES: [&str; 4] = ["yes", "no", "on", "off"];
        if self.is_of(value) {
            return None;
        }
        let text = value.as_str().unwrap_or_default().to_ascii_lowercase();
        Some(Verdict::not_supported(match self {
            Self::Switch if SWITCHES.contains(&text.as_str()) => {
                format!("{of} may read it: write true or false")
            }
            _ => format!("{of} itself refuses it: not {self}"),
        }))
    }
}
