//! What becomes of a call: the weather's word first, then the account's.

use rand::Rng;
use tokio::time::Instant;
use vpc_eni::ec2::Action;

use super::{Inner, REMEMBERED, Verdict};
use crate::account::{Account, Pace};
use crate::ledger::{Call, Outcome};
use crate::request::{Refusal, Reply, Request};
use crate::weather::{Bucket, Fault, Rate, Stale};

impl Inner {
    pub(super) fn call(&mut self, request: Request, now: Instant) -> Verdict {
        self.settle(now);
        let action = request.action();
        let count = self.counts.entry(action).or_default();
        *count += 1;
        let fault = self.faults.remove(&(action, *count));
        let (verdict, outcome) = self.judge(&request, fault, now);
        self.calls.push(Call {
            at: now,
            request,
            outcome,
        });
        verdict
    }

    fn judge(&mut self, request: &Request, fault: Option<Fault>, now: Instant) -> (Verdict, Outcome) {
        if self.weather.outage {
            return lost("nobody is there");
        }
        if fault == Some(Fault::Lost) {
            return lost("the call was lost");
        }
        if let Some(refusal) = self.refuses(request.action(), now) {
            return refused(refusal, false);
        }
        if let Some(Fault::Refused { code, message }) = fault {
            return refused(Refusal { code, message }, false);
        }
        let answer = self.answer(request, now);
        let happened = answer.is_ok();
        match (fault, answer) {
            (Some(Fault::AnswerLost), _) => {
                let outcome = Outcome::NoAnswer { happened };
                (Verdict::Silence("the answer was lost"), outcome)
            }
            (Some(Fault::DoneAndRefused { code, message }), Ok(_)) => {
                refused(Refusal { code, message }, true)
            }
            (_, Ok(reply)) => (Verdict::Answer(Ok(reply)), Outcome::Done),
            (_, Err(refusal)) => refused(refusal, false),
        }
    }

    /// What is refused without being looked at.
    fn refuses(&mut self, action: Action, now: Instant) -> Option<Refusal> {
        let too_often = || Refusal::new("RequestLimitExceeded", "Request limit exceeded.");
        let rate = self.weather.limits.get(&action).copied();
        if rate.is_some_and(|rate| !self.bucket(action, rate, now).take(now)) {
            return Some(too_often());
        }
        let per_cent = self.weather.throttled_per_cent;
        if per_cent > 0 && self.chance.random_range(0..100) < per_cent {
            return Some(too_often());
        }
        if self.weather.denied.contains(&action) {
            let message = format!(
                "You are not authorized to perform this operation. No identity-based policy allows the ec2:{action} \
                 action"
            );
            return Some(Refusal::new("UnauthorizedOperation", message));
        }
        self.weather.refused.get(&action).cloned()
    }

    fn bucket(&mut self, action: Action, rate: Rate, now: Instant) -> &mut Bucket {
        let bucket = self
            .buckets
            .entry(action)
            .or_insert_with(|| Bucket::full(rate, now));
        if !bucket.is_of(rate) {
            *bucket = Bucket::full(rate, now);
        }
        bucket
    }

    fn answer(&mut self, request: &Request, now: Instant) -> Result<Reply, Refusal> {
        let action = request.action();
        let stale = self.weather.stale.get(&action).copied();
        let stale = stale.map(|stale| Stale {
            changes: self.chance.random_range(0..=stale.changes),
            ..stale
        });
        let seen = stale.and_then(|stale| self.past_view(stale, now));
        if action.changes() {
            if let Some((account, _)) = seen {
                account.knows_what_is_named(request)?;
            }
            return self.change(now, |account, pace| account.answer(request, pace));
        }
        let pace = self.pace(now);
        match seen {
            Some((mut account, seen_at)) => account.answer(request, Pace { now: seen_at, ..pace }),
            None => self.account.answer(request, pace),
        }
    }

    /// How it was, for those who see late, and when that was; `None`, where nothing is late.
    pub(super) fn past_view(&self, stale: Stale, now: Instant) -> Option<(Account, Instant)> {
        let seen_at = now.checked_sub(stale.time).unwrap_or(now);
        let by_time = self
            .past
            .iter()
            .position(|(until, _)| *until > seen_at)
            .unwrap_or(self.past.len());
        let by_changes = self.past.len().saturating_sub(stale.changes);
        let (_, account) = self.past.get(by_time.min(by_changes))?;
        Some((account.clone(), seen_at))
    }

    pub(super) fn change<T>(
        &mut self,
        now: Instant,
        change: impl FnOnce(&mut Account, Pace) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.settle(now);
        let pace = self.pace(now);
        let mut account = self.account.clone();
        let changed = change(&mut account, pace)?;
        self.keep(&account, now)?;
        let before = std::mem::replace(&mut self.account, account);
        self.remember(now, before);
        Ok(changed)
    }

    /// Ends what was to end by now, each at its own time.
    pub(super) fn settle(&mut self, now: Instant) {
        while let Some(at) = self.account.next_end().filter(|at| *at <= now) {
            let before = self.account.clone();
            self.account.settle(at);
            self.remember(at, before);
        }
    }

    fn remember(&mut self, until: Instant, account: Account) {
        if self.past.len() == REMEMBERED {
            self.past.pop_front();
        }
        self.past.push_back((until, account));
    }

    fn pace(&mut self, now: Instant) -> Pace {
        Pace {
            now,
            attaching: self.weather.attaching,
            device_after: self.weather.device_after,
            detaching: self.weather.detaching,
            scattered: self.weather.scattered.then(|| self.chance.random()),
            page_size: self.weather.page_size,
        }
    }
}

fn lost(why: &'static str) -> (Verdict, Outcome) {
    (Verdict::Silence(why), Outcome::NoAnswer { happened: false })
}

fn refused(refusal: Refusal, happened: bool) -> (Verdict, Outcome) {
    let outcome = Outcome::Refused {
        code: refusal.code.clone(),
        happened,
    };
    (Verdict::Answer(Err(refusal)), outcome)
}
