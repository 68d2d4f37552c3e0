//! Whether an upstream's answer belongs to the question: every answer's owner is the name asked for, or one that an alias
//! in the answers leads to, and what the authorities tell of is a zone around one of those names. Additional records are
//! passed over.

use crate::question::{Record, expand_name, flag, flags_of, rtype};

/// The longest chain of aliases in an answer.
const MAX_CHAIN: usize = 32;

/// A name in wire form, lower case.
type Wire = Vec<u8>;

/// What an answer tells of.
#[derive(Default)]
struct Told {
    answers: Vec<Answer>,
    /// Owners in the authorities.
    zones: Vec<Wire>,
}

struct Answer {
    owner: Wire,
    rtype: u16,
    /// Where an alias leads.
    target: Option<Wire>,
}

/// Whether everything in it belongs to the question for the name `asked`, in wire form. What is not whole does not, unless
/// TC says so.
pub(super) fn is_in_bailiwick(response: &[u8], asked: &[u8], question_end: usize) -> bool {
    let Some(Told { answers, zones }) = Told::read(response, question_end) else {
        return false;
    };
    let Some(names) = names_reached(asked.to_ascii_lowercase(), answers) else {
        return false;
    };
    let is_around = |zone: &Wire| names.iter().any(|name| name == zone || is_below(name, zone));
    zones.iter().all(is_around)
}

impl Told {
    fn read(response: &[u8], question_end: usize) -> Option<Self> {
        let count = |at: usize| usize::from(u16::from_be_bytes([response[at], response[at + 1]]));
        let (answers, authorities, additionals) = (count(6), count(8), count(10));
        let mut told = Self::default();
        let mut at = question_end;
        for index in 0..answers + authorities + additionals {
            let Some((record, next)) = Record::read(response, at) else {
                return (flags_of(response) & flag::TC != 0).then_some(told);
            };
            at = next;
            if index < answers {
                told.answers.push(Answer::read(response, &record)?);
            } else if index < answers + authorities {
                let owner = lower(response, record.start)?;
                if matches!(record.rtype, rtype::SOA | rtype::NS) {
                    told.zones.push(owner);
                }
            }
        }
        Some(told)
    }
}

impl Answer {
    fn read(response: &[u8], record: &Record<'_>) -> Option<Self> {
        let is_alias = matches!(record.rtype, rtype::CNAME | rtype::DNAME);
        Some(Self {
            owner: lower(response, record.start)?,
            rtype: record.rtype,
            target: is_alias.then(|| lower(response, record.data_at)).flatten(),
        })
    }
}

fn lower(response: &[u8], at: usize) -> Option<Wire> {
    Some(expand_name(response, at)?.to_ascii_lowercase())
}

/// The name asked for and those that aliases lead to from there. `None` = some answer belongs to none of them, or the
/// aliases lead back to each other, and so to no answer.
fn names_reached(asked: Wire, mut answers: Vec<Answer>) -> Option<Vec<Wire>> {
    let (mut names, mut aliased) = (vec![asked], Vec::new());
    // Answers come in any order; each round takes in what the chain has reached. A chain that is longer than any
    // resolver follows is nobody's.
    while !answers.is_empty() {
        let before = answers.len();
        answers.retain(|answer| {
            let Answer { owner, rtype, target } = answer;
            let is_own = names.contains(owner);
            let is_above = *rtype == rtype::DNAME && names.iter().any(|name| is_below(name, owner));
            // A DNAME leads from the names below it, not from its own (RFC 6672 §2.3).
            if is_own
                && *rtype == rtype::CNAME
                && let Some(target) = target
            {
                names.push(target.clone());
                aliased.push(owner.clone());
            }
            !is_own && !is_above
        });
        if answers.len() == before || names.len() > MAX_CHAIN {
            return None;
        }
    }
    let leads_back = names.iter().all(|name| aliased.contains(name));
    (!leads_back).then_some(names)
}

/// Whether a name in wire form is below another one.
fn is_below(name: &[u8], zone: &[u8]) -> bool {
    let mut rest = name;
    while let Some((&length, tail)) = rest.split_first()
        && length > 0
    {
        rest = tail.get(usize::from(length)..).unwrap_or(&[]);
        if rest == zone {
            return true;
        }
    }
    false
}
