//! `rewrite`: rules as lines, and as blocks of lines.

use super::Error;
use super::arguments::{number, record_type};
use super::lexer::Token;
use super::tree::Directive;
use crate::pattern::Pattern;
use crate::presentation::{NameText, name};
use crate::rewrite::{AnswerRule, Field, Match, NameRule, Part, Rule};

const FIELDS: &str = "name, type, ttl";

/// `rewrite [continue|stop] FIELD …`, where what stands in braces behind it counts as the rest of the line.
pub(super) fn rewrite(directive: &Directive) -> Result<Rule, Error> {
    let lines = directive
        .options
        .iter()
        .flat_map(|line| std::iter::once(&line.name).chain(&line.args));
    let words: Vec<&Token> = directive.args.iter().chain(lines).collect();
    let (goes_on, words) = match words.as_slice() {
        [first, rest @ ..] if first.text == "continue" => (true, rest),
        [first, rest @ ..] if first.text == "stop" => (false, rest),
        words => (false, words),
    };
    let [field, rest @ ..] = words else {
        return Err(directive.name.error(format!("rewrite takes a field: {FIELDS}")));
    };
    let field = match field.text.as_str() {
        "name" => Field::Name(name_rule(field, rest)?),
        "type" => type_rule(field, rest)?,
        "ttl" => ttl_rule(field, rest)?,
        other => {
            return Err(field.error(format!(
                "rewrite does not know the field {other:?}; known are {FIELDS}"
            )));
        }
    };
    Ok(Rule { field, goes_on })
}

/// `name [exact|prefix|suffix|substring|regex] FROM TO [answer auto | answer name|value FROM TO]…`.
fn name_rule(field: &Token, words: &[&Token]) -> Result<NameRule, Error> {
    let usage = || field.error("rewrite name takes a name and another one");
    let (kind, words) = split_kind(words);
    let [from, to, options @ ..] = words else {
        return Err(usage());
    };
    let names = matching(kind.map(|kind| kind.text.as_str()), from)?;
    let to_text = match &names {
        Match::Exact(_) => absolute(to)?,
        Match::Suffix(_) => with_final_dot(&to.text),
        Match::Regex(pattern) => replacement(to, pattern)?,
        Match::Prefix(_) | Match::Substring(_) => to.text.clone(),
    };
    if kind.is_none() && !options.is_empty() {
        return Err(usage());
    }
    let mut rule = NameRule {
        // A whole name leads back to one name only.
        answers_back: matches!(names, Match::Exact(_)),
        names,
        to: to_text,
        answers: Vec::new(),
    };
    let mut options = options;
    while let [answer, rest @ ..] = options {
        if answer.text != "answer" {
            return Err(answer.error(format!(
                "a name's rule goes on with answer, not {:?}",
                answer.text
            )));
        }
        options = match rest {
            [auto, rest @ ..] if auto.text == "auto" => {
                rule.answers_back = true;
                rest
            }
            [part, from, to, rest @ ..] => {
                rule.answers.push(answer_rule(part, from, to)?);
                rest
            }
            _ => {
                let usage = "answer takes auto, or name or value with a pattern and what comes in its place";
                return Err(answer.error(usage));
            }
        };
    }
    Ok(rule)
}

fn answer_rule(part: &Token, from: &Token, to: &Token) -> Result<AnswerRule, Error> {
    let names = pattern(from)?;
    Ok(AnswerRule {
        part: match part.text.as_str() {
            "name" => Part::Owner,
            "value" => Part::Value,
            other => return Err(part.error(format!("answer takes auto, name or value, not {other:?}"))),
        },
        to: replacement(to, &names)?,
        names,
    })
}

/// `type FROM TO`.
fn type_rule(field: &Token, words: &[&Token]) -> Result<Field, Error> {
    match words {
        [from, to] => Ok(Field::Type {
            from: record_type(from)?,
            to: record_type(to)?,
        }),
        _ => Err(field.error("rewrite type takes a type and another one")),
    }
}

/// `ttl [exact|prefix|suffix|substring|regex] NAME SECONDS|LEAST-MOST|-MOST|LEAST-`.
fn ttl_rule(field: &Token, words: &[&Token]) -> Result<Field, Error> {
    let (kind, words) = split_kind(words);
    let [from, seconds] = words else {
        return Err(field.error("rewrite ttl takes a name, and seconds or bounds like 5-30"));
    };
    let bound = |text: &str, open: u32| match text {
        "" => Ok(open),
        text => number(&Token {
            text: text.to_owned(),
            ..(*seconds).clone()
        }),
    };
    let (least, most) = match seconds.text.split_once('-') {
        None => (bound(&seconds.text, 0)?, bound(&seconds.text, 0)?),
        Some((least, most)) => (bound(least, 0)?, bound(most, u32::MAX)?),
    };
    if least > most {
        return Err(seconds.error(format!("the least TTL, {least}, is more than the most, {most}")));
    }
    let names = matching(kind.map(|kind| kind.text.as_str()), from)?;
    Ok(Field::Ttl { names, least, most })
}

fn split_kind<'w, 't>(words: &'w [&'t Token]) -> (Option<&'t Token>, &'w [&'t Token]) {
    const KINDS: [&str; 5] = ["exact", "prefix", "suffix", "substring", "regex"];
    match words {
        [kind, rest @ ..] if KINDS.contains(&kind.text.as_str()) => (Some(kind), rest),
        words => (None, words),
    }
}

fn matching(kind: Option<&str>, from: &Token) -> Result<Match, Error> {
    let lower = from.text.to_ascii_lowercase();
    Ok(match kind {
        Some("prefix") => Match::Prefix(lower),
        Some("suffix") => Match::Suffix(with_final_dot(&lower)),
        Some("substring") => Match::Substring(lower),
        Some("regex") => Match::Regex(pattern(from)?),
        _ => Match::Exact(absolute(from)?),
    })
}

/// A whole name as the rules compare it.
fn absolute(token: &Token) -> Result<String, Error> {
    let wire = name(&token.text.to_ascii_lowercase());
    let wire = wire.ok_or_else(|| token.error(format!("{:?} is no domain name", token.text)))?;
    Ok(NameText::of(&wire).as_str().to_owned())
}

fn with_final_dot(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    if lower.ends_with('.') { lower } else { lower + "." }
}

/// A regular expression.
pub(super) fn pattern(token: &Token) -> Result<Pattern, Error> {
    Pattern::parse(&token.text).map_err(|error| token.error(format!("{:?} {error}", token.text)))
}

/// A text whose `{1}` are groups of the pattern.
fn replacement(token: &Token, pattern: &Pattern) -> Result<String, Error> {
    for part in token.text.split('{').skip(1) {
        if let Some((number, _)) = part.split_once('}')
            && number.parse::<usize>().is_ok()
            && !pattern.has_group(number)
        {
            return Err(token.error(format!("{:?} has no group {number}", pattern.as_str())));
        }
    }
    Ok(token.text.clone())
}
