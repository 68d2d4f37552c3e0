//! `cache`.

use std::time::Duration;

use super::Error;
use super::arguments::{bare, duration, names, no_options, number, number_within, single, unknown_option};
use super::lexer::Token;
use super::tree::Directive;
use crate::cache::{Options, Part, Prefetch, Stale};
use crate::name::Name;

const MAX_SERVFAIL: Duration = Duration::from_secs(300);

/// `cache [TTL] [ZONE...] { success | denial | prefetch | serve_stale | servfail | disable | keepttl }`.
pub(super) fn cache(directive: &Directive) -> Result<Options, Error> {
    const KNOWN_OPTIONS: &[&str] = &[
        "success",
        "denial",
        "prefetch",
        "serve_stale",
        "servfail",
        "disable",
        "keepttl",
    ];
    let mut options = Options::default();
    let mut zone_tokens = directive.args.as_slice();
    if let Some((first, rest)) = directive.args.split_first()
        && let Ok(ttl) = first.text.parse::<u32>()
    {
        options.success.max_ttl = ttl;
        options.denial.max_ttl = ttl;
        zone_tokens = rest;
    }
    options.zones = names(zone_tokens)?;
    for option in &directive.options {
        no_options(option)?;
        match option.name.text.as_str() {
            "success" => cache_part(&mut options.success, option)?,
            "denial" => cache_part(&mut options.denial, option)?,
            "prefetch" => options.prefetch = Some(prefetch(option)?),
            "serve_stale" => options.stale = Some(stale(option)?),
            "keepttl" => options.keeps_ttl = bare(option)?,
            "servfail" => {
                let token = single(option)?;
                options.servfail = duration(token)?;
                if options.servfail > MAX_SERVFAIL {
                    return Err(token.error("a SERVFAIL is kept for 5m at the most"));
                }
            }
            "disable" => {
                let Some((which, zones)) = option.args.split_first() else {
                    return Err(option.name.error("disable takes success or denial, and zones"));
                };
                let mut zones = names(zones)?;
                if zones.is_empty() {
                    zones.push(Name::root());
                }
                match which.text.as_str() {
                    "success" => options.success.disabled.extend(zones),
                    "denial" => options.denial.disabled.extend(zones),
                    other => {
                        return Err(which.error(format!("disable takes success or denial, not {other:?}")));
                    }
                }
            }
            _ => return Err(unknown_option(directive, option, KNOWN_OPTIONS)),
        }
    }
    Ok(options)
}

/// `prefetch AMOUNT [[DURATION] [PERCENTAGE%]]`.
fn prefetch(option: &Directive) -> Result<Prefetch, Error> {
    let [amount, others @ ..] = option.args.as_slice() else {
        return Err(option.name.error("prefetch takes an amount of queries"));
    };
    let mut prefetch = Prefetch {
        amount: number(amount)?,
        pause: Duration::from_secs(60),
        percentage: 10,
    };
    let (pause, percentage) = match others {
        [] => (None, None),
        [pause] => (Some(pause), None),
        [pause, percentage] => (Some(pause), Some(percentage)),
        [_, _, third, ..] => {
            return Err(third.error("prefetch takes an amount, a duration and a percentage"));
        }
    };
    if let Some(token) = pause {
        prefetch.pause = duration(token)?;
    }
    if let Some(token) = percentage {
        let digits = token.text.strip_suffix('%');
        let digits =
            digits.ok_or_else(|| token.error(format!("{:?} is no percentage like 10%", token.text)))?;
        let number_token = Token {
            text: digits.to_owned(),
            ..token.clone()
        };
        prefetch.percentage = number_within(&number_token, 10, 90)?;
    }
    Ok(prefetch)
}

/// `serve_stale [DURATION] [immediate|verify]`.
fn stale(option: &Directive) -> Result<Stale, Error> {
    let mut stale = Stale {
        beyond: Duration::from_secs(3600),
        verifies: false,
    };
    let (beyond, mode) = match option.args.as_slice() {
        [] => (None, None),
        [beyond] => (Some(beyond), None),
        [beyond, mode] => (Some(beyond), Some(mode)),
        [_, _, third, ..] => return Err(third.error("serve_stale takes a duration and a mode")),
    };
    if let Some(token) = beyond {
        stale.beyond = duration(token)?;
        if stale.beyond.is_zero() {
            return Err(token.error("serve_stale of no time serves nothing"));
        }
    }
    if let Some(token) = mode {
        stale.verifies = match token.text.to_ascii_lowercase().as_str() {
            "immediate" => false,
            "verify" => true,
            other => {
                let message = format!("the mode of serve_stale is immediate or verify, not {other:?}");
                return Err(token.error(message));
            }
        };
    }
    Ok(stale)
}

/// `success CAPACITY [TTL] [MINTTL]`.
fn cache_part(part: &mut Part, option: &Directive) -> Result<(), Error> {
    let [capacity, ttls @ ..] = option.args.as_slice() else {
        return Err(option
            .name
            .error(format!("{} takes a capacity", option.name.text)));
    };
    part.capacity = number(capacity)?;
    if let Some(third) = ttls.get(2) {
        return Err(third.error(format!(
            "{} takes a capacity, a TTL and a least TTL",
            option.name.text
        )));
    }
    if let Some(ttl) = ttls.first() {
        part.max_ttl = number(ttl)?;
    }
    if let Some(ttl) = ttls.get(1) {
        part.min_ttl = number(ttl)?;
    }
    Ok(())
}
