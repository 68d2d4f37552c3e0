//! Every call with what came of it, so that a test can say how many were needed.

use std::collections::BTreeMap;

use tokio::time::Instant;
use vpc_eni::ec2::Action;

use crate::request::Request;

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// When it arrived.
    pub at: Instant,
    /// What was asked for.
    pub request: Request,
    /// What came of it.
    pub outcome: Outcome,
}

impl Call {
    /// Its name in the API.
    #[must_use]
    pub const fn action(&self) -> Action {
        self.request.action()
    }
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done and answered.
    Done,
    /// It was refused with a code.
    Refused {
        /// EC2's code.
        code: String,
        /// Whether it happened nevertheless.
        happened: bool,
    },
    /// Nobody answered.
    NoAnswer {
        /// Whether it happened nevertheless.
        happened: bool,
    },
}

/// How many calls of each action there were.
#[must_use]
pub fn count_by_action(calls: &[Call]) -> BTreeMap<Action, usize> {
    let mut counts = BTreeMap::new();
    for call in calls {
        *counts.entry(call.action()).or_default() += 1;
    }
    counts
}
