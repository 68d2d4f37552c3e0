//! One question among the upstreams: who is asked when, and whose answer counts.
//!
//! ```text
//! first ────── patience ──────┬────────────── GIVE_UP ─┐
//!                             └► second, beside it      └► third, in the place of the first
//!       fails, or is no help ──► the next one at once
//! ```
//! Two are waited for at the most, so that a question has two sockets, and only one goes out because another is slow:
//! an upstream that is slow because it has too much to do would have twice as much of it with each more.

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, select_all};
use tokio::time::{Instant, sleep_until};

use super::question::Question;
use super::{ExchangeError, Failure, Forward, Upstream};
use crate::answer::code_of;
use crate::question::rcode;

/// No query is worked on for longer, as in CoreDNS.
const OVERALL: Duration = Duration::from_secs(5);
/// How long an upstream may be silent before its place is another one's.
const GIVE_UP: Duration = Duration::from_millis(1200);

/// A question, and those who are asked.
pub(super) struct Race<'f> {
    forward: &'f Forward,
    question: &'f Question,
    deadline: Instant,
    /// Who was not asked yet.
    others: slice::Iter<'f, Arc<Upstream>>,
    /// Who is waited for, the longest first.
    attempts: Vec<Attempt<'f>>,
    /// Whether somebody was asked beside a slow one.
    has_hedged: bool,
}

/// An upstream that is being asked. Its socket is closed with it.
struct Attempt<'f> {
    upstream: &'f Arc<Upstream>,
    started: Instant,
    exchange: BoxFuture<'f, Result<Vec<u8>, ExchangeError>>,
}

impl<'f> Race<'f> {
    pub(super) fn new(forward: &'f Forward, question: &'f Question, order: &'f [Arc<Upstream>]) -> Self {
        Self {
            forward,
            question,
            deadline: Instant::now() + OVERALL,
            others: order.iter(),
            attempts: Vec::new(),
            has_hedged: false,
        }
    }

    /// The first answer that helps, else one that does not, else why the last one failed.
    pub(super) async fn run(mut self) -> Result<Arc<[u8]>, Failure> {
        let (mut no_help, mut failure) = (None, Failure::NoUpstream);
        self.ask_next();
        while !self.attempts.is_empty() {
            match self.next_ended().await {
                Some((_, Ok(response))) if is_no_help(&response) => {
                    no_help = Some(response);
                    self.ask_next();
                }
                Some((_, Ok(response))) => {
                    self.note_the_outrun();
                    return Ok(response.into());
                }
                Some((upstream, Err(source))) => {
                    self.forward.note_failure(upstream);
                    failure = Failure::unanswered(upstream, source);
                    self.ask_next();
                }
                None if self.has_hedged => {
                    let slow = self.attempts.remove(0).upstream;
                    self.forward.note_failure(slow);
                    failure = Failure::unanswered(slow, ExchangeError::Timeout);
                    self.ask_next();
                }
                None => self.hedge(),
            }
        }
        no_help.map(Arc::from).ok_or(failure)
    }

    /// What ends next. `None` = the oldest attempt has taken too long, and something can be done about it.
    async fn next_ended(&mut self) -> Option<(&'f Arc<Upstream>, Result<Vec<u8>, ExchangeError>)> {
        let oldest = self.attempts.first()?;
        let patience = match (self.has_hedged, self.others.as_slice()) {
            (false, _) => Some(oldest.upstream.patience()),
            (true, [_, ..]) => Some(GIVE_UP),
            (true, []) => None,
        };
        let too_long = oldest.started + patience.unwrap_or(OVERALL);
        let exchanges = select_all(self.attempts.iter_mut().map(|attempt| &mut attempt.exchange));
        let (result, index) = tokio::select! {
            (result, index, _) = exchanges => (result, index),
            () = sleep_until(too_long), if patience.is_some() => return None,
        };
        Some((self.attempts.remove(index).upstream, result))
    }

    fn ask_next(&mut self) {
        if let Some(next) = self.others.next() {
            self.ask(next);
        }
    }

    /// Asks somebody beside one that is slow or dead, which a check will tell. Where nobody else is left, a datagram is
    /// sent once more: it may have been lost.
    fn hedge(&mut self) {
        self.has_hedged = true;
        let slow = self.attempts[0].upstream;
        self.forward.note_failure(slow);
        let again = || Some(slow).filter(|slow| slow.is_asked_by_udp(self.question));
        if let Some(next) = self.others.next().or_else(again) {
            self.ask(next);
        }
    }

    fn ask(&mut self, upstream: &'f Arc<Upstream>) {
        self.attempts.push(Attempt {
            upstream,
            started: Instant::now(),
            exchange: upstream.exchange(self.question, self.deadline).boxed(),
        });
    }

    /// Notes of those who are still waited for that another one's answer came first.
    fn note_the_outrun(&self) {
        for Attempt {
            upstream, started, ..
        } in &self.attempts
        {
            let waited = started.elapsed();
            if waited > upstream.patience() {
                self.forward.note_failure(upstream);
            }
            upstream.note_waited(waited);
        }
    }
}

/// Whether an answer says that its upstream cannot, or will not, say anything of the name.
fn is_no_help(response: &[u8]) -> bool {
    matches!(code_of(response), rcode::SERVFAIL | rcode::REFUSED)
}
