//! The `rewrite` plugin: the other plugins see another question, and the client sees its own again.
//!
//! ```text
//! question ─► rules, in the file's order ─► packet with the new question ─► the other plugins
//! answer   ◄─ what each rule does to answers, the last rule first        ◄─ response
//! ```

use crate::answer::code_only;
use crate::pattern::Pattern;
use crate::presentation::{NameText, name};
use crate::question::{HEADER, Query, rcode};
use crate::reply::{Reply, ReplyRecord};

/// One rule, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it changes.
    pub field: Field,
    /// Whether the rules behind it are looked at where it fits. Default: they are not.
    pub goes_on: bool,
}

/// What a rule changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// The name asked for.
    Name(NameRule),
    /// The type asked for.
    Type {
        /// What the client asks for.
        from: u16,
        /// What the other plugins are asked for.
        to: u16,
    },
    /// The TTL of every record of the answer.
    Ttl {
        /// The names whose answers are changed.
        names: Match,
        /// The least, in seconds.
        least: u32,
        /// The most, in seconds.
        most: u32,
    },
}

/// Another name instead of the one asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameRule {
    /// The names that are changed.
    pub names: Match,
    /// What comes in place of what fits; `{1}` is a group of a regular expression.
    pub to: String,
    /// Whether the new name and those below it become the old one again in the answer.
    pub answers_back: bool,
    /// What else is changed in the answer.
    pub answers: Vec<AnswerRule>,
}

/// How a name is compared: lower case, as text with the final dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// All of it.
    Exact(String),
    /// Its front.
    Prefix(String),
    /// Its end.
    Suffix(String),
    /// Any part of it.
    Substring(String),
    /// A regular expression.
    Regex(Pattern),
}

/// Another name in the answer's records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerRule {
    /// Which name of a record.
    pub part: Part,
    /// The names that are changed.
    pub names: Pattern,
    /// What comes in their place; `{1}` is a group.
    pub to: String,
}

/// A name of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its owner.
    Owner,
    /// The name that is its data, or ends it.
    Value,
}

/// A question that was changed, and how to change its answer.
#[derive(Debug)]
pub struct Rewritten<'r> {
    /// The query for the other plugins.
    pub packet: Vec<u8>,
    changes: Vec<Change<'r>>,
}

/// The rules lead to something that is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rewritten to {0:?}, which is no domain name")]
pub struct NoName(pub String);

/// What one rule does to an answer.
#[derive(Debug)]
enum Change<'r> {
    /// A name, and the end of names below it.
    Back {
        from: String,
        to: String,
    },
    /// The end of names, whatever stands before it.
    End {
        from: &'r str,
        to: &'r str,
    },
    Answer(&'r AnswerRule),
    Ttl {
        least: u32,
        most: u32,
    },
}

impl Match {
    /// What becomes of a name that fits.
    fn replace(&self, text: &str, to: &str) -> Option<String> {
        match self {
            Self::Exact(name) => (text == name).then(|| to.to_owned()),
            Self::Prefix(front) => text
                .strip_prefix(front.as_str())
                .map(|rest| format!("{to}{rest}")),
            Self::Suffix(end) => text.strip_suffix(end.as_str()).map(|rest| format!("{rest}{to}")),
            Self::Substring(part) => text
                .contains(part.as_str())
                .then(|| text.replace(part.as_str(), to)),
            Self::Regex(pattern) => with_groups(pattern, text, to),
        }
    }

    fn fits(&self, text: &str) -> bool {
        match self {
            Self::Exact(name) => text == name,
            Self::Prefix(front) => text.starts_with(front.as_str()),
            Self::Suffix(end) => text.ends_with(end.as_str()),
            Self::Substring(part) => text.contains(part.as_str()),
            Self::Regex(pattern) => pattern.matches(text),
        }
    }
}

/// `to` with `{0}`, `{1}` … replaced by the groups of the match, where there is one.
fn with_groups(pattern: &Pattern, text: &str, to: &str) -> Option<String> {
    let groups = pattern.groups(text)?;
    let mut new = to.to_owned();
    for (index, group) in groups.iter().enumerate() {
        let value = group.map_or("", |group| group.as_str());
        new = new.replace(&format!("{{{index}}}"), value);
    }
    Some(new)
}

/// Applies rules to a question. `None` = no rule fits; nothing is allocated then.
///
/// # Errors
/// When the rules make something that is no domain name.
pub fn rewrite<'r>(rules: &'r [Rule], query: &Query<'_>) -> Option<Result<Rewritten<'r>, NoName>> {
    if rules.is_empty() {
        return None;
    }
    let asked = NameText::of(query.name());
    let mut new_name: Option<String> = None;
    let mut qtype = query.qtype;
    let mut changes = Vec::new();
    let mut fitted = false;
    for rule in rules {
        let text = new_name.as_deref().unwrap_or(asked.as_str());
        let fits = match &rule.field {
            Field::Name(name) => match name.names.replace(text, &name.to) {
                Some(new) => {
                    changes.extend(name.answers.iter().map(Change::Answer));
                    changes.extend(name.change_back(text, &new));
                    new_name = Some(new);
                    true
                }
                None => false,
            },
            Field::Type { from, to } if *from == qtype => {
                qtype = *to;
                true
            }
            Field::Type { .. } => false,
            Field::Ttl { names, least, most } => {
                let fits = names.fits(text);
                changes.extend(fits.then_some(Change::Ttl {
                    least: *least,
                    most: *most,
                }));
                fits
            }
        };
        fitted |= fits;
        if fits && !rule.goes_on {
            break;
        }
    }
    if !fitted {
        return None;
    }
    // What was done last is undone first.
    changes.reverse();
    let wire = match new_name {
        None => query.name().to_vec(),
        Some(text) => match name(&text) {
            Some(wire) => wire,
            None => return Some(Err(NoName(text))),
        },
    };
    let packet = with_question(query, &wire, qtype);
    Some(Ok(Rewritten { packet, changes }))
}

/// The same query with another question.
pub(crate) fn with_question(query: &Query<'_>, name: &[u8], qtype: u16) -> Vec<u8> {
    let old = query.packet();
    let mut packet = Vec::with_capacity(old.len() + name.len());
    packet.extend_from_slice(&old[..HEADER]);
    packet.extend_from_slice(name);
    packet.extend_from_slice(&qtype.to_be_bytes());
    packet.extend_from_slice(&query.qclass.to_be_bytes());
    packet.extend_from_slice(&old[query.question_end..]);
    packet
}

impl NameRule {
    fn change_back(&self, old: &str, new: &str) -> Option<Change<'_>> {
        match &self.names {
            _ if !self.answers_back => None,
            // The end can be put back under names that the question did not have.
            Match::Suffix(end) => Some(Change::End {
                from: &self.to,
                to: end,
            }),
            _ => Some(Change::Back {
                from: new.to_ascii_lowercase(),
                to: old.to_owned(),
            }),
        }
    }
}

impl Rewritten<'_> {
    /// Makes the response to the changed question, which stands in `out`, the answer to the client's own.
    pub fn restore(&self, query: &Query<'_>, limit: usize, out: &mut Vec<u8>) {
        let read = Query::parse(&self.packet)
            .ok()
            .and_then(|changed| Reply::read(out, &changed));
        let Some(mut reply) = read else {
            code_only(out, query, rcode::SERVFAIL);
            return;
        };
        for record in reply.records_mut() {
            for change in &self.changes {
                change.apply(record);
            }
        }
        reply.write(query, limit, out);
    }
}

impl Change<'_> {
    fn apply(&self, record: &mut ReplyRecord) {
        if let Self::Ttl { least, most } = self {
            record.ttl = record.ttl.clamp(*least, *most);
            return;
        }
        if let Some(owner) = self.renamed(Part::Owner, &record.owner) {
            record.owner = owner;
        }
        if let Some(value) = record.value().and_then(|value| self.renamed(Part::Value, value)) {
            record.set_value(&value);
        }
    }

    /// The other name that comes in place of this one.
    fn renamed(&self, part: Part, wire: &[u8]) -> Option<Vec<u8>> {
        let text = NameText::of(&wire.to_ascii_lowercase());
        let text = text.as_str();
        let new = match self {
            Self::Back { from, to } => match text.strip_suffix(from.as_str())? {
                front if front.is_empty() || front.ends_with('.') => format!("{front}{to}"),
                _ => return None,
            },
            Self::End { from, to } => format!("{}{to}", text.strip_suffix(*from)?),
            Self::Answer(rule) if rule.part == part => with_groups(&rule.names, text, &rule.to)?,
            Self::Answer(_) | Self::Ttl { .. } => return None,
        };
        name(&new)
    }
}

#[cfg(test)]
mod tests;
