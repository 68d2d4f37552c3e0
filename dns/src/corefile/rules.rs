//! Directives whose options are rules about names and clients.

use std::path::Path;
use std::time::Duration;

use super::arguments::{
    bare, duration, names, names_or_all, network, no_options, number_within, record_type, single,
    unknown_option,
};
use super::lexer::Token;
use super::rewrites::pattern;
use super::tree::Directive;
use super::{DEFAULT_BUFSIZE, Error, ServerBlock};
use crate::chain::autopath::{self, SearchPath};
use crate::forward::resolv_conf;
use crate::kubernetes::{Objects, PodMode};
use crate::name::Name;
use crate::pattern::Pattern;
use crate::question::{rcode, rtype};
use crate::template::{self, Template};
use crate::{aaaa, acl, hosts, mnemonic, rate_limit};

/// The argument of `autopath` that leaves the path to the client's pod.
const BY_PODS: &str = "@kubernetes";

/// `bufsize [SIZE]`.
pub(super) fn bufsize(directive: &Directive) -> Result<u16, Error> {
    no_options(directive)?;
    match directive.args.as_slice() {
        [] => Ok(DEFAULT_BUFSIZE),
        // The bounds are CoreDNS's.
        [size] => Ok(number_within(size, 512, 4096)? as u16),
        [_, second, ..] => Err(second.error("bufsize takes one size")),
    }
}

/// `aaaa off [ZONE...]`.
pub(super) fn aaaa(directive: &Directive, own_zones: &[Name]) -> Result<aaaa::Off, Error> {
    no_options(directive)?;
    match directive.args.split_first() {
        Some((off, [])) if off.text == "off" => Ok(aaaa::Off {
            zones: own_zones.to_vec(),
        }),
        Some((off, zones)) if off.text == "off" => Ok(aaaa::Off { zones: names(zones)? }),
        Some((other, _)) => Err(other.error(format!("aaaa can be off, not {:?}", other.text))),
        None => Err(directive.name.error("aaaa wants to be told that it is off")),
    }
}

/// `ratelimit QUERIES_PER_SECOND [BURST] { exempt NET... | ipv4-prefix-length BITS | ipv6-prefix-length BITS }`.
pub(super) fn rate_limit(directive: &Directive) -> Result<rate_limit::Options, Error> {
    const MOST: u32 = 1_000_000;
    const KNOWN_OPTIONS: &[&str] = &["exempt", "ipv4-prefix-length", "ipv6-prefix-length"];
    let (rate, burst) = match directive.args.as_slice() {
        [rate] => (rate, rate),
        [rate, burst] => (rate, burst),
        _ => {
            let usage = "ratelimit takes the queries per second of one client, and how many may come at once";
            return Err(directive.name.error(usage));
        }
    };
    let mut options = rate_limit::Options {
        per_second: number_within(rate, 1, MOST)?,
        burst: number_within(burst, 1, MOST)?,
        exempt: Vec::new(),
        prefixes: rate_limit::Prefixes::default(),
    };
    for option in &directive.options {
        match option.name.text.as_str() {
            "exempt" => {
                let networks: Result<Vec<_>, _> = some(option)?.iter().map(network).collect();
                options.exempt.extend(networks?);
            }
            "ipv4-prefix-length" => options.prefixes.v4 = number_within(single(option)?, 1, 32)?,
            "ipv6-prefix-length" => options.prefixes.v6 = number_within(single(option)?, 1, 128)?,
            _ => return Err(unknown_option(directive, option, KNOWN_OPTIONS)),
        }
    }
    Ok(options)
}

/// `acl [ZONE...] { ACTION [type TYPE...] [net NET...] }`.
pub(super) fn acl(directive: &Directive, own_zones: &[Name]) -> Result<acl::Options, Error> {
    let zones = zones_or(directive, own_zones)?;
    if directive.options.is_empty() {
        return Err(directive.name.error("acl needs at least one rule"));
    }
    let rules: Result<_, _> = directive
        .options
        .iter()
        .map(|option| acl_rule(directive, option))
        .collect();
    Ok(acl::Options { zones, rules: rules? })
}

fn acl_rule(directive: &Directive, option: &Directive) -> Result<acl::Rule, Error> {
    no_options(option)?;
    let action = match option.name.text.as_str() {
        "allow" => acl::Action::Allow,
        "block" => acl::Action::Block,
        "filter" => acl::Action::Filter,
        "drop" => acl::Action::Drop,
        _ => {
            let known = ["allow", "block", "filter", "drop"];
            return Err(unknown_option(directive, option, &known));
        }
    };
    let (mut types, mut clients) = (Vec::new(), Vec::new());
    let (mut any_type, mut any_client) = (false, false);
    let mut section = "";
    for (index, token) in option.args.iter().enumerate() {
        match (section, token.text.as_str()) {
            (_, word @ ("type" | "net")) => {
                let next = option.args.get(index + 1).map(|next| next.text.as_str());
                if matches!(next, None | Some("type" | "net")) {
                    return Err(token.error(format!("nothing stands behind {word}")));
                }
                section = word;
            }
            ("type", "*" | "ANY") => any_type = true,
            ("type", _) => types.push(record_type(token)?),
            ("net", "*") => any_client = true,
            ("net", _) => clients.push(network(token)?),
            (_, other) => {
                return Err(token.error(format!("a rule of acl goes on with type or net, not {other:?}")));
            }
        }
    }
    // Nothing listed means all, so a star among others takes them along.
    Ok(acl::Rule {
        action,
        types: if any_type { Vec::new() } else { types },
        clients: if any_client { Vec::new() } else { clients },
    })
}

/// The zones of a directive, or the server block's own.
fn zones_or(directive: &Directive, own_zones: &[Name]) -> Result<Vec<Name>, Error> {
    if directive.args.is_empty() {
        Ok(own_zones.to_vec())
    } else {
        names(&directive.args)
    }
}

/// The arguments of an option that needs at least one.
fn some(option: &Directive) -> Result<&[Token], Error> {
    if option.args.is_empty() {
        let name = &option.name.text;
        return Err(option.name.error(format!("{name} takes at least one argument")));
    }
    Ok(&option.args)
}

/// `hosts [FILE [ZONE...]] { ADDRESS NAME... | ttl | no_reverse | reload | fallthrough }`.
pub(super) fn hosts(directive: &Directive, own_zones: &[Name]) -> Result<hosts::Options, Error> {
    const KNOWN_OPTIONS: &[&str] = &["ADDRESS NAME...", "ttl", "no_reverse", "reload", "fallthrough"];
    let (file, zone_tokens) = match directive.args.split_first() {
        Some((file, zones)) => (file.text.as_str(), zones),
        None => ("/etc/hosts", &[][..]),
    };
    let zones = if zone_tokens.is_empty() {
        own_zones.to_vec()
    } else {
        names(zone_tokens)?
    };
    let mut options = hosts::Options {
        file: file.into(),
        zones,
        inline: Vec::new(),
        ttl: 3600,
        reverse: true,
        reload: Duration::from_secs(5),
        fallthrough: Vec::new(),
    };
    for option in &directive.options {
        no_options(option)?;
        match option.name.text.as_str() {
            "ttl" => options.ttl = number_within(single(option)?, 1, 65_535)?,
            "no_reverse" => options.reverse = !bare(option)?,
            "reload" => options.reload = duration(single(option)?)?,
            "fallthrough" => options.fallthrough.extend(names_or_all(&option.args)?),
            address => match address.parse() {
                Ok(address) => options.inline.push(hosts::Entry {
                    address,
                    names: names(some(option)?)?,
                }),
                Err(_) => return Err(unknown_option(directive, option, KNOWN_OPTIONS)),
            },
        }
    }
    Ok(options)
}

/// `autopath [ZONE...] RESOLV-CONF` or `autopath [ZONE...] @kubernetes`.
pub(super) fn autopath(
    directive: &Directive,
    own_zones: &[Name],
    root: &Path,
) -> Result<autopath::Options, Error> {
    no_options(directive)?;
    let Some((path, zone_tokens)) = directive.args.split_last() else {
        return Err(directive
            .name
            .error("autopath takes a file like /etc/resolv.conf, or @kubernetes"));
    };
    let search = match path.text.as_str() {
        // Who reads no search path there has none, as in CoreDNS.
        BY_PODS => SearchPath::OfPod(resolv_conf::search(Path::new("/etc/resolv.conf")).unwrap_or_default()),
        plugin if plugin.starts_with('@') => {
            let message =
                format!("autopath takes a file like /etc/resolv.conf, or @kubernetes, not {plugin:?}");
            return Err(path.error(message));
        }
        file => SearchPath::Given(
            resolv_conf::search(&root.join(file))
                .map_err(|error| path.error(format!("cannot read a search path from {file}: {error}")))?,
        ),
    };
    let zones = if zone_tokens.is_empty() {
        own_zones.to_vec()
    } else {
        names(zone_tokens)?
    };
    Ok(autopath::Options { zones, search })
}

/// What `autopath @kubernetes` lacks in its server block, of which everything else is read.
pub(super) fn pods_for_autopath(block: &ServerBlock, directives: &[Directive]) -> Result<(), Error> {
    let is_by_pods = |options: &autopath::Options| matches!(options.search, SearchPath::OfPod(_));
    let named = |name: &str| directives.iter().find(|directive| directive.name.text == name);
    let Some(autopath) = named("autopath").filter(|_| block.autopath.as_ref().is_some_and(is_by_pods)) else {
        return Ok(());
    };
    let lacks = match &block.kubernetes {
        // What is wrong there is told already.
        None if named("kubernetes").is_some() => return Ok(()),
        None => "the plugin kubernetes in its server block",
        Some(options) if matches!(options.objects, Objects::Agent(_)) => {
            "an API server: the agent's feed has no pods"
        }
        Some(options) if options.pods != PodMode::Verified => "pods verified in the plugin kubernetes",
        Some(_) => return Ok(()),
    };
    Err(autopath.name.error(format!("autopath {BY_PODS} needs {lacks}")))
}

/// `template CLASS TYPE [ZONE...] { match | answer | additional | authority | rcode | fallthrough }`.
pub(super) fn template(directive: &Directive, own_zones: &[Name]) -> Result<template::Options, Error> {
    const KNOWN_OPTIONS: &[&str] = &[
        "match",
        "answer",
        "additional",
        "authority",
        "rcode",
        "fallthrough",
    ];
    let [class, qtype, zone_tokens @ ..] = directive.args.as_slice() else {
        return Err(directive.name.error("template takes a class and a type"));
    };
    if !["IN", "ANY"].contains(&class.text.to_ascii_uppercase().as_str()) {
        return Err(class.error(format!(
            "template answers the class IN or ANY, not {:?}",
            class.text
        )));
    }
    let zones = if zone_tokens.is_empty() {
        own_zones.to_vec()
    } else {
        names(zone_tokens)?
    };
    let mut options = template::Options {
        zones,
        qtype: Some(record_type(qtype)?).filter(|qtype| *qtype != rtype::ANY),
        matches: Vec::new(),
        records: Default::default(),
        code: rcode::NOERROR,
        fallthrough: Vec::new(),
    };
    // Records may name groups of patterns that stand behind them.
    for option in directive
        .options
        .iter()
        .filter(|option| option.name.text == "match")
    {
        for token in some(option)? {
            options.matches.push(pattern(token)?);
        }
    }
    for option in &directive.options {
        no_options(option)?;
        match option.name.text.as_str() {
            "match" => {}
            "answer" => add_templates(&mut options.records[0], option, &options.matches)?,
            "authority" => add_templates(&mut options.records[1], option, &options.matches)?,
            "additional" => add_templates(&mut options.records[2], option, &options.matches)?,
            "rcode" => {
                let token = single(option)?;
                let code = mnemonic::code_number(&token.text);
                options.code =
                    code.ok_or_else(|| token.error(format!("{:?} is no response code", token.text)))?;
            }
            "fallthrough" => options.fallthrough.extend(names_or_all(&option.args)?),
            _ => return Err(unknown_option(directive, option, KNOWN_OPTIONS)),
        }
    }
    Ok(options)
}

fn add_templates(to: &mut Vec<Template>, option: &Directive, matches: &[Pattern]) -> Result<(), Error> {
    for token in some(option)? {
        let template = Template::parse(&token.text, matches);
        to.push(template.map_err(|error| token.error(error.to_string()))?);
    }
    Ok(())
}
