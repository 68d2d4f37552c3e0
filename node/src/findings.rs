//! What is wrong on a node, as its agent and `causeway doctor` tell it to each other: over the agent's socket, as JSON.

use serde::{Deserialize, Serialize};

/// Where the agent is asked to look at everything.
pub const PATH: &str = "/examine";

/// What the agent shall do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Order {
    /// Put right what it can.
    pub fix: bool,
}

/// What an agent says of itself.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its node.
    pub node: String,
    /// What it found, what is wrong first.
    pub findings: Vec<Finding>,
    /// What was wrong until it was told to put it right.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repaired: Vec<Finding>,
}

/// One thing that somebody should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of thing it is. Never changes its meaning.
    pub id: String,
    /// What it is about: a kind and a name.
    pub object: String,
    /// What was seen.
    pub evidence: String,
    /// What helps.
    pub repair: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work as it should.
    Wrong,
    /// Everything works; it could be better.
    Note,
}
