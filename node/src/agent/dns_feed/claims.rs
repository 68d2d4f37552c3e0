//! Who answers at the cluster's DNS address, by what the readers of the feed say of themselves.

use std::collections::BTreeMap;

use model::feed::{HOLDS, SAID_EVERY};
use tokio::time::Instant;

/// What is known of a reader and the address.
#[derive(Debug)]
pub struct Claim {
    /// Whose it is.
    pub reader: u64,
    pub says: Says,
}

#[derive(Debug)]
pub enum Says {
    /// Nothing yet: it has connected, and may take the place of one that leaves. It is waited for until then.
    Nothing(Instant),
    /// It answers there until then.
    Answers(Instant),
    /// It does not answer there, or left.
    No,
}

/// Until when each reader answers.
#[derive(Debug)]
pub struct Claims {
    until: BTreeMap<u64, Instant>,
    /// Until when those are waited for that have said nothing yet.
    awaited: BTreeMap<u64, Instant>,
    /// Before that nobody's silence says anything.
    not_before: Instant,
}

impl Claims {
    /// Nobody has had the time to say anything yet.
    pub fn none_yet(now: Instant) -> Self {
        Self {
            until: BTreeMap::new(),
            awaited: BTreeMap::new(),
            not_before: now + HOLDS,
        }
    }

    /// A claim holds at once; that nobody else answers is known with it.
    pub fn take(&mut self, Claim { reader, says }: Claim, now: Instant) {
        self.awaited.remove(&reader);
        match says {
            Says::Nothing(until) => drop(self.awaited.insert(reader, until)),
            Says::Answers(until) => {
                self.until.insert(reader, until);
                self.not_before = now;
            }
            Says::No => drop(self.until.remove(&reader)),
        }
    }

    /// When nobody answers any more, if nobody claims anything until then.
    pub fn end(&self) -> Instant {
        let until = self.until.values().chain(self.awaited.values());
        until.copied().fold(self.not_before, Instant::max)
    }

    /// Whether somebody answers; `None` where it is too early to say.
    pub fn answered(&mut self, now: Instant) -> Option<bool> {
        if self.until.values().any(|until| *until > now) {
            return Some(true);
        }
        // Who notices so late stood still: what was claimed meanwhile is still to be read.
        if !self.until.is_empty() && now > self.end() + SAID_EVERY {
            self.until.clear();
            self.not_before = now + SAID_EVERY;
        }
        let is_early = now < self.not_before || self.awaited.values().any(|until| *until > now);
        (!is_early).then_some(false)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_reader_says_nothing_of_another_and_who_stood_still_listens_first() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let of = |until: &[(u64, Instant)], not_before| Claims {
            until: until.iter().copied().collect(),
            awaited: BTreeMap::new(),
            not_before,
        };
        let rows = [
            ("nobody yet", of(&[], now + second), None),
            ("nobody", of(&[], now), Some(false)),
            ("one", of(&[(1, now + second)], now), Some(true)),
            ("one of two", of(&[(1, now), (2, now + second)], now), Some(true)),
            ("not any more", of(&[(1, now)], now), Some(false)),
            ("late", of(&[(1, now - 2 * second)], now - 9 * second), None),
        ];
        for (what, mut claims, expected) in rows {
            assert_eq!(claims.answered(now), expected, "{what}");
        }
        let mut two = of(&[(1, now + second), (2, now + second)], now);
        two.take(claim(1, Says::No), now);
        assert_eq!(two.answered(now), Some(true), "the other goes on");
    }

    fn claim(reader: u64, says: Says) -> Claim {
        Claim { reader, says }
    }

    #[test]
    fn who_has_connected_is_waited_for_when_the_one_before_leaves() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        for (what, at, says, expected) in [
            ("it is early", now, None, None),
            ("it says nothing", now + second, None, Some(false)),
            ("it left", now, Some(Says::No), Some(false)),
            ("it answers", now, Some(Says::Answers(now + second)), Some(true)),
        ] {
            let mut claims = Claims::none_yet(now - HOLDS);
            claims.take(claim(1, Says::Answers(now + second)), now);
            claims.take(claim(2, Says::Nothing(now + second)), now);
            assert_eq!(claims.answered(now), Some(true), "{what}");
            claims.take(claim(1, Says::No), now);
            assert_eq!(claims.end(), now + second, "{what}");
            if let Some(says) = says {
                claims.take(claim(2, says), now);
            }
            assert_eq!(claims.answered(at), expected, "{what}");
        }
    }
}
