//! Whether what came of a row's connections is what its rule says.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::cases::{Becomes, PacketCase};

/// What a client learns of one connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// A server answered, and saw the client at that address.
    Answered(String, IpAddr),
    Refused,
    Silent,
    /// Anything else, in words.
    Failed(String),
}

impl Outcome {
    /// From a line of `knock`.
    pub fn parse(line: &str) -> Self {
        let answer = line.strip_prefix("answer ").and_then(|text| text.split_once(' '));
        let answer = answer.and_then(|(name, seen)| Some((name, seen.parse().ok()?)));
        match (line, answer) {
            ("refused", _) => Self::Refused,
            ("silent", _) => Self::Silent,
            (_, Some((name, seen))) => Self::Answered(name.to_owned(), seen),
            _ => Self::Failed(line.to_owned()),
        }
    }
}

/// What is wrong with the outcomes of a row's connections.
pub fn judge(case: &PacketCase, expected: Becomes, outcomes: &[Outcome]) -> Result<(), String> {
    let found: BTreeSet<_> = outcomes.iter().collect();
    let fits = !outcomes.is_empty()
        && match expected {
            Becomes::Refused => found.iter().all(|outcome| **outcome == Outcome::Refused),
            Becomes::Silence => found.iter().all(|outcome| **outcome == Outcome::Silent),
            Becomes::Answer(_, sees) | Becomes::Keeps(_, sees) | Becomes::Leaves(_, sees) => {
                let answers = found.iter().map(|outcome| match outcome {
                    Outcome::Answered(name, seen) if sees.fits(case.from, name, *seen) => Some(name.as_str()),
                    _ => None,
                });
                answers
                    .collect::<Option<_>>()
                    .is_some_and(|names| of_whom(expected, &names))
            }
        };
    if fits {
        return Ok(());
    }
    Err(format!("expected {expected:?}, found {found:?}"))
}

fn of_whom(expected: Becomes, names: &BTreeSet<&str>) -> bool {
    let servers: BTreeSet<_> = expected.servers().into_iter().collect();
    match expected {
        Becomes::Keeps(..) => names.len() == 1 && names.is_subset(&servers),
        _ => *names == servers,
    }
}

/// How a row is named where it fails.
pub fn name(scene: &str, case: &PacketCase) -> String {
    let PacketCase {
        rule, from, how, to, ..
    } = case;
    format!("{scene}: {from:?} {how:?} {to:?} ({rule})")
}
