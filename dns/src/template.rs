//! The `template` plugin: answers made of the question, by templates in Go's notation.
//!
//! Of Go's template language there is what answers need: fields, `index`, `parseInt`. Anything else is an error when
//! the Corefile is read, and never a surprise later.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::answer::{Owner, Section, Writer, code_only};
use crate::kubernetes::Shape;
use crate::mnemonic::type_name;
use crate::name::Name;
use crate::pattern::Pattern;
use crate::presentation::{self, NameText, RecordError};
use crate::question::{Query, rcode, rtype};

/// What a template may hold.
const KNOWN: &str = ".Name, .Zone, .Type, .Class, .Remote, .Group.NAME, index .Group \"NAME\", index .Match NUMBER, \
                     parseInt VALUE BASE BITS";

/// Options of one `template`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The zones of the names that are answered.
    pub zones: Vec<Name>,
    /// The type of the queries that are answered; `None` = every type.
    pub qtype: Option<u16>,
    /// What a name must match, one of them; empty = nothing.
    pub matches: Vec<Pattern>,
    /// Records for the three sections.
    pub records: [Vec<Template>; 3],
    /// The code. Default NOERROR.
    pub code: u16,
    /// For which names the next template or plugin is asked where none of `matches` fits.
    pub fallthrough: Vec<Name>,
}

/// A text with places to fill in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Value(Value),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Name,
    Zone,
    Type,
    Class,
    Remote,
    /// A group by its name or number.
    Group(String),
    ParseInt {
        of: Box<Value>,
        base: u32,
        bits: u32,
    },
}

/// Why a template cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// `{{` without `}}`.
    #[error("{{{{ is opened and never closed")]
    Open,
    /// Something of Go's that is not there.
    #[error("{{{{ {0} }}}} is nothing that a template may hold; known are {KNOWN}")]
    Unknown(String),
    /// The patterns have no such group.
    #[error("no match has the group {0:?}")]
    NoGroup(String),
    /// Nothing has to be filled in, and the text is no record.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Why a query got no answer from a template that is for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// A group holds no number as `parseInt` wants it.
    #[error("parseInt of {0:?} in a template")]
    ParseInt(String),
    /// The text that the template made is no record.
    #[error("a template made {text:?}")]
    Record {
        /// The text.
        text: String,
        /// Why it is no record.
        #[source]
        source: RecordError,
    },
}

/// What became of a query.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The answer is written.
    Answered,
    /// The next template or plugin is to be asked.
    NotOurs,
    /// The answer is an alias for this name, with that TTL.
    Follow(Name, u32),
    /// The answer cannot be made; SERVFAIL is written.
    Failed(AnswerError),
}

/// One template of a server block, and what it did.
#[derive(Debug)]
pub struct Templates {
    options: Options,
    /// Queries that it answered; aliases are counted by who follows them.
    pub matched: AtomicU64,
    /// Answers that could not be made.
    pub failed: AtomicU64,
}

/// What the places of a template are filled with.
struct Fields<'f> {
    name: &'f str,
    zone: String,
    qtype: u16,
    remote: IpAddr,
    groups: Option<regex::Captures<'f>>,
}

impl Template {
    /// Reads a template for a record of queries that match one of `matches`.
    ///
    /// # Errors
    /// When it holds what is not known, names a group that is not there, or is no record although it is complete.
    pub fn parse(text: &str, matches: &[Pattern]) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((front, tail)) = rest.split_once("{{") {
            let (action, behind) = tail.split_once("}}").ok_or(TemplateError::Open)?;
            let trimmed = |cut: bool, text: &'_ str| {
                if cut {
                    text.trim_end().to_owned()
                } else {
                    text.to_owned()
                }
            };
            pieces.push(Piece::Text(trimmed(action.starts_with("- "), front)));
            let words: Vec<&str> = action
                .trim_start_matches("- ")
                .trim_end_matches(" -")
                .split_whitespace()
                .collect();
            pieces.push(Piece::Value(value(&words, matches)?));
            rest = if action.ends_with(" -") {
                behind.trim_start()
            } else {
                behind
            };
        }
        pieces.push(Piece::Text(rest.to_owned()));
        if let [Piece::Text(whole)] = pieces.as_slice() {
            presentation::record(whole)?;
        }
        Ok(Self(pieces))
    }

    fn fill(&self, fields: &Fields<'_>) -> Result<String, AnswerError> {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(literal) => text.push_str(literal),
                Piece::Value(value) => value.fill(fields, &mut text)?,
            }
        }
        Ok(text)
    }
}

/// Reads one action.
fn value(words: &[&str], matches: &[Pattern]) -> Result<Value, TemplateError> {
    let group = |name: &str| {
        let is_there = name == "0" || matches.iter().any(|pattern| pattern.has_group(name));
        if is_there {
            Ok(Value::Group(name.to_owned()))
        } else {
            Err(TemplateError::NoGroup(name.to_owned()))
        }
    };
    let unknown = || TemplateError::Unknown(words.join(" "));
    match *words {
        [".Name"] => Ok(Value::Name),
        [".Zone"] => Ok(Value::Zone),
        [".Type"] => Ok(Value::Type),
        [".Class"] => Ok(Value::Class),
        [".Remote"] => Ok(Value::Remote),
        ["index", ".Match", number] if number.parse::<usize>().is_ok() => group(number),
        ["index", ".Group", name] => match name.trim_matches(['"', '`']) {
            bare if bare.len() + 2 == name.len() => group(bare),
            _ => Err(unknown()),
        },
        ["parseInt", ref inner @ .., base, bits] => match (base.parse(), bits.parse()) {
            (Ok(base @ 2..=36), Ok(bits @ 1..=64)) => {
                let inner: Vec<&str> = inner.iter().map(|word| word.trim_matches(['(', ')'])).collect();
                let of = Box::new(value(&inner, matches)?);
                Ok(Value::ParseInt { of, base, bits })
            }
            _ => Err(unknown()),
        },
        [field] => match field.strip_prefix(".Group.") {
            Some(name) => group(name),
            None => Err(unknown()),
        },
        _ => Err(unknown()),
    }
}

impl Value {
    fn fill(&self, fields: &Fields<'_>, text: &mut String) -> Result<(), AnswerError> {
        match self {
            Self::Name => text.push_str(fields.name),
            Self::Zone => text.push_str(&fields.zone),
            Self::Type => text.push_str(&type_name(fields.qtype)),
            Self::Class => text.push_str("IN"),
            Self::Remote => {
                // Writing to a string does not fail.
                let _ = write!(text, "{}", fields.remote);
            }
            Self::Group(name) => text.push_str(fields.group(name)),
            Self::ParseInt { of, base, bits } => {
                let mut digits = String::new();
                of.fill(fields, &mut digits)?;
                let number = u64::from_str_radix(&digits, *base).ok();
                // A sign is taken by Rust's reader and by Go's is not.
                let fits =
                    number.filter(|number| !digits.starts_with('+') && (*bits == 64 || number >> bits == 0));
                let Some(number) = fits else {
                    return Err(AnswerError::ParseInt(digits));
                };
                let _ = write!(text, "{number}");
            }
        }
        Ok(())
    }
}

impl Fields<'_> {
    fn group(&self, name: &str) -> &str {
        let Some(groups) = &self.groups else {
            return if name == "0" { self.name } else { "" };
        };
        let found = name
            .parse()
            .map_or_else(|_| groups.name(name), |index| groups.get(index));
        found.map_or("", |group| group.as_str())
    }
}

impl Templates {
    /// Makes one.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            options,
            matched: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// The options.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Answers a query from `remote`, or says why not. A name that none of the patterns fits gets SERVFAIL without
    /// `fallthrough`, as from CoreDNS.
    pub fn answer(&self, query: &Query<'_>, remote: IpAddr, shape: Shape, out: &mut Vec<u8>) -> Verdict {
        let options = &self.options;
        let covering = options
            .zones
            .iter()
            .filter(|zone| query.labels_before(zone).is_some());
        let Some(zone) = covering.max_by_key(|zone| zone.wire().len()) else {
            return Verdict::NotOurs;
        };
        if options
            .qtype
            .is_some_and(|own| own != query.qtype && query.qtype != rtype::ANY)
        {
            return Verdict::NotOurs;
        }
        let text = NameText::of(query.name());
        let groups = options
            .matches
            .iter()
            .find_map(|pattern| pattern.groups(text.as_str()));
        if groups.is_none() && !options.matches.is_empty() {
            if query.is_within(&options.fallthrough) {
                return Verdict::NotOurs;
            }
            code_only(out, query, rcode::SERVFAIL);
            return Verdict::Answered;
        }
        let fields = Fields {
            name: text.as_str(),
            zone: zone.to_string(),
            qtype: query.qtype,
            remote,
            groups,
        };
        let verdict = self.answer_with(&fields, query, shape, out);
        if !matches!(verdict, Ok(Verdict::Follow(..))) {
            self.matched.fetch_add(1, Ordering::Relaxed);
        }
        verdict.unwrap_or_else(|error| {
            self.failed.fetch_add(1, Ordering::Relaxed);
            code_only(out, query, rcode::SERVFAIL);
            Verdict::Failed(error)
        })
    }

    fn answer_with(
        &self,
        fields: &Fields<'_>,
        query: &Query<'_>,
        shape: Shape,
        out: &mut Vec<u8>,
    ) -> Result<Verdict, AnswerError> {
        if self.options.code == rcode::SERVFAIL {
            code_only(out, query, rcode::SERVFAIL);
            return Ok(Verdict::Answered);
        }
        let mut writer = Writer::start(out, query, shape.limit);
        let sections = [Section::Answer, Section::Authority, Section::Additional];
        for (section, templates) in sections.into_iter().zip(&self.options.records) {
            for template in templates {
                let text = template.fill(fields)?;
                let record = match presentation::record(&text) {
                    Ok(record) => record,
                    Err(source) => return Err(AnswerError::Record { text, source }),
                };
                let is_own = record.owner.eq_ignore_ascii_case(query.name());
                let is_only = section == Section::Answer && templates.len() == 1;
                let wants_address = matches!(query.qtype, rtype::A | rtype::AAAA);
                if record.rtype == rtype::CNAME && is_own && is_only && wants_address {
                    let target = Name::from_lower_wire(&record.data.to_ascii_lowercase());
                    return Ok(Verdict::Follow(target, record.ttl));
                }
                let owner = if is_own {
                    Owner::QUESTION
                } else {
                    Owner::Literal(&record.owner)
                };
                writer.record(section, owner, record.rtype, record.ttl, |out| {
                    out.extend_from_slice(&record.data);
                });
            }
        }
        writer.finish(self.options.code, true);
        Ok(Verdict::Answered)
    }
}

#[cfg(test)]
mod tests;
