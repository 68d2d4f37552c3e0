//! What becomes of a setting, and how it is told.

use std::fmt::{self, Write as _};

use serde::Serialize;
use serde_json::Value;

use crate::logs::printable;

/// Of options of the log, whosever they are.
pub const LOGS: &str = "logs go to standard error, their level is logging.level";

/// What becomes of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is in the configuration that is printed, or what it asks for is so here anyway.
    Taken,
    /// It has no effect here, and nobody misses it.
    NotNeeded,
    /// What it asks for is done otherwise, or not at all; what is served stays the same.
    Differs,
    /// Something that was served is not, or it is not known whether it would be.
    NotSupported,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Taken => "taken",
            Self::NotNeeded => "not needed",
            Self::Differs => "differs",
            Self::NotSupported => "NOT SUPPORTED",
        })
    }
}

/// A setting, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Told {
    /// What program it is a setting of.
    pub of: &'static str,
    /// Where in its configuration: `iptables.masqueradeAll`, `plugins[0].type`, `Corefile:3`.
    pub path: String,
    /// What it says.
    pub value: Value,
    /// What becomes of it.
    pub outcome: Outcome,
    /// To which key it goes, or why to none.
    pub words: String,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            of,
            path,
            value,
            outcome,
            words,
        } = self;
        write!(f, "{outcome:<13}  {of:<10}  {path}")?;
        match value {
            Value::Null => {}
            Value::String(text) if text.is_empty() => {}
            Value::String(text) => write!(f, ": {text}")?,
            value => write!(f, ": {value}")?,
        }
        write!(f, "  ({words})")
    }
}

/// A line for each setting.
#[must_use]
pub fn lines(told: &[Told]) -> String {
    let mut lines = String::new();
    for told in told {
        let _infallible = writeln!(lines, "{}", printable(&told.to_string()));
    }
    lines
}

/// What a rule says of a setting: what becomes of it, and the keys of ours that follow from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// What becomes of it.
    pub outcome: Outcome,
    /// To which key it goes, or why to none.
    pub words: String,
    /// Keys of ours, with dots between, and their values.
    pub keys: Vec<(&'static str, Value)>,
}

impl Verdict {
    fn without_keys(outcome: Outcome, words: impl Into<String>) -> Self {
        Self {
            outcome,
            words: words.into(),
            keys: Vec::new(),
        }
    }

    /// It is this key of ours.
    pub fn taken(key: &'static str, value: impl Into<Value>) -> Self {
        Self::as_it_is(key).and(key, value)
    }

    /// What it asks for is so here.
    pub fn as_it_is(words: impl Into<String>) -> Self {
        Self::without_keys(Outcome::Taken, words)
    }

    /// It has no effect here, and why.
    pub fn not_needed(why: impl Into<String>) -> Self {
        Self::without_keys(Outcome::NotNeeded, why)
    }

    /// It is done otherwise, and how.
    pub fn differs(how: impl Into<String>) -> Self {
        Self::without_keys(Outcome::Differs, how)
    }

    /// It is not done, and what to do about it.
    pub fn not_supported(why: impl Into<String>) -> Self {
        Self::without_keys(Outcome::NotSupported, why)
    }

    /// The same, with a key of ours.
    #[must_use]
    pub fn and(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.keys.push((key, value.into()));
        self
    }

    /// The same, in other words.
    #[must_use]
    pub fn saying(mut self, words: impl Into<String>) -> Self {
        self.words = words.into();
        self
    }

    /// Of the setting at `path`.
    #[must_use]
    pub fn told(&self, of: &'static str, path: impl Into<String>, value: &Value) -> Told {
        Told {
            of,
            path: path.into(),
            value: value.clone(),
            outcome: self.outcome,
            words: self.words.clone(),
        }
    }
}
