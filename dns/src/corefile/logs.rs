//! `errors` and `log`.

use super::Error;
use super::arguments::{duration, names, no_options, unknown_option};
use super::rewrites::pattern;
use super::tree::Directive;
use crate::error_log::{Consolidation, Level};
use crate::name::Name;
use crate::query_log::{Classes, Format, Rule};

/// `errors { consolidate DURATION REGEXP [LEVEL] [show_first] }`.
pub(super) fn errors(directive: &Directive) -> Result<Vec<Consolidation>, Error> {
    if let Some(arg) = directive.args.first() {
        return Err(arg.error("errors takes no argument"));
    }
    let consolidations = directive
        .options
        .iter()
        .map(|option| match option.name.text.as_str() {
            "consolidate" => consolidation(option),
            _ => Err(unknown_option(directive, option, &["consolidate"])),
        });
    consolidations.collect()
}

fn consolidation(option: &Directive) -> Result<Consolidation, Error> {
    no_options(option)?;
    let [period, errors, others @ ..] = option.args.as_slice() else {
        return Err(option
            .name
            .error("consolidate takes a duration and a regular expression"));
    };
    let mut consolidation = Consolidation {
        period: duration(period)?,
        errors: pattern(errors)?,
        level: Level::Error,
        show_first: false,
    };
    for other in others {
        match other.text.as_str() {
            "debug" => consolidation.level = Level::Debug,
            "info" => consolidation.level = Level::Info,
            "warning" => consolidation.level = Level::Warning,
            "error" => consolidation.level = Level::Error,
            "show_first" => consolidation.show_first = true,
            text => {
                let known = "debug, info, warning, error and show_first";
                return Err(other.error(format!("consolidate goes on with {known}, not {text:?}")));
            }
        }
    }
    if consolidation.period.is_zero() {
        return Err(period.error("consolidate needs a time to collect in"));
    }
    Ok(consolidation)
}

/// `log [NAME...] [FORMAT] { class CLASS... }`; a format is what holds a brace.
pub(super) fn log(directive: &Directive) -> Result<Rule, Error> {
    let (format, zone_tokens) = match directive.args.split_last() {
        Some((last, zones)) if last.text.contains('{') => (Some(Format::parse(&last.text)), zones),
        _ => (None, directive.args.as_slice()),
    };
    let mut zones = names(zone_tokens)?;
    if zones.is_empty() {
        zones.push(Name::root());
    }
    let mut classes = Classes::default();
    for option in &directive.options {
        if option.name.text != "class" {
            return Err(unknown_option(directive, option, &["class"]));
        }
        no_options(option)?;
        if option.args.is_empty() {
            return Err(option.name.error("class takes at least one class of answers"));
        }
        for class in &option.args {
            match class.text.as_str() {
                "all" => classes = Classes::ALL,
                "success" => classes.success = true,
                "denial" => classes.denial = true,
                "error" => classes.error = true,
                other => {
                    let known = "all, success, denial and error";
                    return Err(class.error(format!("{other:?} is no class of log; known are {known}")));
                }
            }
        }
    }
    if classes == Classes::default() {
        classes = Classes::ALL;
    }
    Ok(Rule {
        zones,
        classes,
        format,
    })
}
