//! The section `logging`.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What the log looks like. It goes to standard error, one line an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Logging {
    /// `text` or `json`. The option `--log-format` comes first. Default: `text`.
    #[serde(default)]
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug` or `trace`: the least important events that are logged. The environment's
    /// `CAUSEWAY_LOG`, in tracing's filter syntax, comes first. Default: `info`.
    #[serde(default)]
    pub level: LogLevel,
}

/// Forms of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people: time, level, where in the program, what, and its fields.
    #[default]
    Text,
    /// For programs: an object with `timestamp`, `level`, `target`, `message` and each field.
    Json,
}

/// How important an event is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Something does not work.
    Error,
    /// Something may not work, or works by going another way.
    Warn,
    /// A change that an operator wants to know of.
    #[default]
    Info,
    /// Single objects.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}
