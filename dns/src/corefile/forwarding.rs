//! `forward`.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::arguments::{bare, duration, names, no_options, number, single, unknown_option};
use super::lexer::Token;
use super::tree::Directive;
use super::{Error, zones};
use crate::forward::{self, HealthCheck, Target};
use crate::name::Name;

/// `forward FROM TO... { … }`.
pub(super) fn forward(directive: &Directive, root: &Path) -> Result<forward::Options, Error> {
    const KNOWN_OPTIONS: &[&str] = &[
        "except",
        "policy",
        "max_fails",
        "max_concurrent",
        "expire",
        "force_tcp",
        "prefer_udp",
        "health_check",
        "tls",
        "tls_servername",
    ];
    let [from, to @ ..] = directive.args.as_slice() else {
        return Err(directive
            .name
            .error("forward takes a zone and at least one upstream"));
    };
    if to.is_empty() {
        return Err(from.error("forward takes at least one upstream behind the zone"));
    }
    let from = zones(from, &from.text)?;
    let mut options = forward::Options {
        from,
        ..forward::Options::default()
    };
    for token in to {
        options.to.extend(upstreams(token)?);
    }
    for option in &directive.options {
        no_options(option)?;
        match option.name.text.as_str() {
            "except" => options.except.extend(names(&option.args)?),
            "policy" => options.policy = policy(single(option)?)?,
            "max_fails" => options.max_fails = number(single(option)?)?,
            "max_concurrent" => {
                let limit = number(single(option)?)?;
                options.max_concurrent = (limit > 0).then_some(limit);
            }
            "expire" => options.expire = duration(single(option)?)?,
            "force_tcp" => options.force_tcp = bare(option)?,
            "prefer_udp" => options.prefer_udp = bare(option)?,
            "health_check" => options.health_check = health_check(option)?,
            "tls" => tls_files(&mut options.tls, option, root)?,
            "tls_servername" => options.tls.server_name = Some(single(option)?.text.clone()),
            _ => return Err(unknown_option(directive, option, KNOWN_OPTIONS)),
        }
    }
    if options.to.iter().any(|target| target.over_tls)
        && let Err(error) = options.tls.connector()
    {
        return Err(directive.name.error(error.to_string()));
    }
    Ok(options)
}

/// `health_check DURATION [no_rec] [domain NAME]`.
fn health_check(option: &Directive) -> Result<HealthCheck, Error> {
    let usage = "health_check takes a duration, no_rec, and domain with a name";
    let [interval, others @ ..] = option.args.as_slice() else {
        return Err(option.name.error(usage));
    };
    let mut check = HealthCheck {
        interval: duration(interval)?,
        ..forward::Options::default().health_check
    };
    if check.interval.is_zero() {
        return Err(interval.error("health_check needs a time between two checks"));
    }
    let mut others = others.iter();
    while let Some(other) = others.next() {
        match (other.text.as_str(), others.as_slice().first()) {
            ("no_rec", _) => check.recursion_desired = false,
            ("domain", Some(name)) => {
                let domain = Name::parse(&name.text);
                check.domain =
                    domain.map_err(|error| name.error(format!("the domain {:?} {error}", name.text)))?;
                others.next();
            }
            _ => return Err(other.error(usage)),
        }
    }
    Ok(check)
}

/// `tls [CERT KEY] [CA]`.
fn tls_files(tls: &mut forward::Tls, option: &Directive, root: &Path) -> Result<(), Error> {
    let path = |token: &Token| root.join(&token.text);
    match option.args.as_slice() {
        [] => {}
        [authorities] => tls.authorities = Some(path(authorities)),
        [certificate, key] => tls.identity = Some((path(certificate), path(key))),
        [certificate, key, authorities] => {
            tls.identity = Some((path(certificate), path(key)));
            tls.authorities = Some(path(authorities));
        }
        [_, _, _, fourth, ..] => return Err(fourth.error("tls takes a certificate, its key and authorities")),
    }
    Ok(())
}

fn policy(token: &Token) -> Result<forward::Policy, Error> {
    match token.text.as_str() {
        "random" => Ok(forward::Policy::Random),
        "round_robin" => Ok(forward::Policy::RoundRobin),
        "sequential" => Ok(forward::Policy::Sequential),
        other => Err(token.error(format!(
            "policy is random, round_robin or sequential, not {other:?}"
        ))),
    }
}

/// An address, with a port or without, or the name servers of a file like `/etc/resolv.conf`.
fn upstreams(token: &Token) -> Result<Vec<Target>, Error> {
    let (over_tls, text) = match token.text.split_once("://") {
        None => (false, token.text.as_str()),
        Some(("dns", rest)) => (false, rest),
        Some(("tls", rest)) => (true, rest),
        Some((scheme, _)) => {
            return Err(token.error(format!(
                "{scheme}:// upstreams are not supported; dns:// and tls:// are"
            )));
        }
    };
    let port = if over_tls { 853 } else { 53 };
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(vec![Target { address, over_tls }]);
    }
    if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        let address = SocketAddr::from((address, port));
        return Ok(vec![Target { address, over_tls }]);
    }
    if !text.contains('/') || over_tls {
        return Err(token.error(format!(
            "{text:?} is neither an address nor a file like /etc/resolv.conf"
        )));
    }
    let servers = forward::resolv_conf::name_servers(Path::new(text))
        .map_err(|error| token.error(format!("cannot read name servers from {text}: {error}")))?;
    Ok(servers.into_iter().map(Target::from).collect())
}
