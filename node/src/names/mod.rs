//! Names, as an agent knows them: what an end names, with everybody who may get what is sent there, and what addresses are
//! called. Commands that look at packets ask for both at one place of the agent's socket.
//!
//! - [`ends`]: what an end names.
//! - [`addresses`]: what addresses are called.

pub mod addresses;
pub mod ends;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::agent::history::History;
use crate::explain::Facts;
pub use addresses::Called;
pub use ends::{Behind, Located};

/// What to ask the agent there.
pub const PATH: &str = "/names";

/// What somebody wants to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Ends, as [`crate::ends::Name`] reads them.
    pub ends: Vec<String>,
    /// Addresses that packets were seen with.
    pub addresses: Vec<IpAddr>,
}

/// What an agent says to a [`Question`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What each of the ends names, in their order.
    pub ends: Vec<End>,
    /// Those of the addresses that are known, in no order.
    pub addresses: Vec<Called>,
}

/// What an end names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// It is known.
    Located(Located),
    /// It names nothing, or several things; for people.
    NotUnderstood(String),
}

/// Answers a question.
#[must_use]
pub fn answer(question: &Question, facts: &Facts, history: &History) -> Answer {
    let end = |name: &String| match ends::locate(name, facts) {
        Ok(located) => End::Located(located),
        Err(error) => End::NotUnderstood(error.to_string()),
    };
    Answer {
        ends: question.ends.iter().map(end).collect(),
        addresses: addresses::called(&question.addresses, facts, |address| history.pod(address)),
    }
}
