//! How the cloud is disposed: what takes its time, what is seen late, what is refused, and what gets lost.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tokio::time::{Duration, Instant};
use vpc_eni::ec2::{Action, EniId};

use crate::request::Refusal;

/// The moods, all of which can be changed at any time. The default is a fine day: everything happens at once, is seen
/// by everybody, and nothing is refused for how often it is asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weather {
    /// How long a new attachment is `attaching`.
    pub attaching: Duration,
    /// How long after the call the instance has the device.
    pub device_after: Duration,
    /// How long an attachment is `detaching`; the instance has the device until the end.
    pub detaching: Duration,
    /// How long an answer is on its way. What was asked for has happened before.
    pub answer_after: Duration,
    /// Whether a subnet's addresses are given here and there, as EC2 does, or from the lowest on.
    pub scattered: bool,
    /// What is seen late, by what asks. A change that names what has not arrived yet is told that it is not there.
    pub stale: BTreeMap<Action, Stale>,
    /// What the instances' metadata services tell.
    pub metadata: MetadataMood,
    /// How often each action may be called; without limit, where there is none.
    pub limits: BTreeMap<Action, Rate>,
    /// How many of a hundred calls are throttled whatever the limits are.
    pub throttled_per_cent: u8,
    /// What nobody is allowed.
    pub denied: BTreeSet<Action>,
    /// What every call of an action is refused with.
    pub refused: BTreeMap<Action, Refusal>,
    /// Whether nobody answers at all; what is asked for does not happen.
    pub outage: bool,
    /// How many objects a Describe gives at once though nobody asked for pages.
    pub page_size: Option<u32>,
}

/// How late something is seen. The worse of both is what is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stale {
    /// Of the last so many changes none to all are not seen, by chance.
    pub changes: usize,
    /// What changed less than this ago is not seen.
    pub time: Duration,
}

/// How often an action may be called: a bucket of tokens, of which each call takes one (EC2 API reference, "Request
/// throttling").
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// How many tokens there are at most, and in the beginning.
    pub burst: u32,
    /// How many come in a second.
    pub per_second: f64,
}

/// What the metadata services tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetadataMood {
    /// Whether they do not answer at all.
    pub is_down: bool,
    /// Whether they are disabled (`HttpEndpoint`): they answer 403 to everything.
    pub is_disabled: bool,
    /// How far behind they are.
    pub behind: Duration,
    /// Interfaces that they do not tell of.
    pub missing: BTreeSet<EniId>,
    /// Addresses and the network addresses of prefixes that they do not tell of.
    pub missing_addresses: BTreeSet<IpAddr>,
}

/// What befalls one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It does not arrive: nothing happens, nobody answers.
    Lost,
    /// It happens, and the answer is lost.
    AnswerLost,
    /// It is refused with a code, and does not happen.
    Refused {
        /// EC2's code.
        code: String,
        /// Words about it.
        message: String,
    },
    /// It happens, and is refused nevertheless: what an `InternalError` can be.
    DoneAndRefused {
        /// EC2's code.
        code: String,
        /// Words about it.
        message: String,
    },
}

impl Fault {
    /// It is refused with this code.
    #[must_use]
    pub fn refused(code: &str) -> Self {
        Self::Refused {
            code: code.to_owned(),
            message: "injected".to_owned(),
        }
    }

    /// It happens, and is refused nevertheless, with this code.
    #[must_use]
    pub fn done_and_refused(code: &str) -> Self {
        Self::DoneAndRefused {
            code: code.to_owned(),
            message: "injected".to_owned(),
        }
    }
}

/// The tokens that an action has left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    tokens: f64,
    filled_at: Instant,
}

impl Bucket {
    pub(crate) fn full(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            tokens: f64::from(rate.burst),
            filled_at: now,
        }
    }

    /// Whether it is of this rate still.
    pub(crate) fn is_of(&self, rate: Rate) -> bool {
        self.rate == rate
    }

    /// One token; `false`, where there is none.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let filled = now.saturating_duration_since(self.filled_at).as_secs_f64() * self.rate.per_second;
        self.tokens = (self.tokens + filled).min(f64::from(self.rate.burst));
        self.filled_at = now;
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}
