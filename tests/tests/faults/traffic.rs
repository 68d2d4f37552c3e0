//! What goes on while one version, or one proxy, takes over from another: nothing of it may be lost.

use anyhow::Result;
use tests::is_full_run;
use tests::probe::{Attempts, Flows, Kind};

use crate::world::{PORT, VIP, World, socket};

const FLOWS: u32 = 200;

/// Attempts of each kind in a second.
pub fn rate() -> u32 {
    if is_full_run() { 100 } else { 50 }
}

/// Long-lived flows, new connections from pods and from outside, and datagrams of one socket, to `web`.
pub struct Traffic {
    flows: Flows,
    attempts: Vec<Attempts>,
}

impl Traffic {
    /// Begins, and waits until each has an answer.
    pub fn start(world: &World) -> Result<Self> {
        let messages = if is_full_run() { 100 } else { 5 };
        let mut attempts = world.connections(rate())?;
        let to = socket(VIP, PORT);
        for kind in [Kind::Requests, Kind::ConnectedRequests] {
            attempts.push(Attempts::start(&world.pod_place(), kind, to, rate())?);
        }
        Ok(Self {
            flows: world.flows(FLOWS, messages)?,
            attempts,
        })
    }

    /// The same with more attempts.
    pub fn with(mut self, attempts: Attempts) -> Self {
        self.attempts.push(attempts);
        self
    }

    /// Waits for more of each.
    #[track_caller]
    pub fn await_more(&self) {
        self.attempts.iter().for_each(|attempts| attempts.await_more(20));
    }

    /// Nothing is lost; what was tried, in words.
    #[track_caller]
    pub fn nothing_lost(&self) -> String {
        self.flows.await_more(2 * u64::from(FLOWS));
        let counts = self.flows.counts();
        let expected = (u64::from(FLOWS), 0);
        assert_eq!(
            (counts.open, counts.broken),
            expected,
            "{:#?}",
            self.flows.breaks()
        );
        for attempts in &self.attempts {
            assert_eq!(attempts.lost(), [], "of {}", attempts.all().len());
        }
        let tried: usize = self.attempts.iter().map(|attempts| attempts.all().len()).sum();
        format!(
            "{FLOWS} flows with {} exchanges, longest {:?}, and {tried} attempts: 0 lost",
            counts.exchanged, counts.longest
        )
    }
}
