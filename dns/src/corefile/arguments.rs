//! Readers of what stands behind a plugin's or an option's name: words, numbers, names, addresses, durations.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::lexer::Token;
use super::tree::Directive;
use super::{Error, zones};
use crate::mnemonic;
use crate::name::Name;

/// A directive that is only a word.
pub(super) fn bare(directive: &Directive) -> Result<bool, Error> {
    no_options(directive)?;
    match directive.args.first() {
        Some(arg) => Err(arg.error(format!("{} takes no argument", directive.name.text))),
        None => Ok(true),
    }
}

pub(super) fn no_options(directive: &Directive) -> Result<(), Error> {
    match directive.options.first() {
        Some(option) => Err(unknown_option(directive, option, &[])),
        None => Ok(()),
    }
}

pub(super) fn unknown_option(directive: &Directive, option: &Directive, known: &[&str]) -> Error {
    let plugin = &directive.name.text;
    let name = &option.name.text;
    let known = if known.is_empty() {
        "it has none".to_owned()
    } else {
        format!("known are {}", known.join(", "))
    };
    option
        .name
        .error(format!("unknown option {name:?} of {plugin}; {known}"))
}

/// The only argument of an option.
pub(super) fn single(directive: &Directive) -> Result<&Token, Error> {
    match directive.args.as_slice() {
        [only] => Ok(only),
        _ => Err(directive
            .name
            .error(format!("{} takes exactly one argument", directive.name.text))),
    }
}

pub(super) fn number<N: std::str::FromStr>(token: &Token) -> Result<N, Error> {
    token
        .text
        .parse()
        .map_err(|_| token.error(format!("{:?} is no number in range", token.text)))
}

pub(super) fn names(tokens: &[Token]) -> Result<Vec<Name>, Error> {
    let mut names = Vec::new();
    for token in tokens {
        names.extend(zones(token, &token.text)?);
    }
    Ok(names)
}

pub(super) fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
}

/// `:9153`, `localhost:9153`, `10.0.0.1:9153`, `[::1]:9153`.
pub(super) fn listen_address(directive: &Directive, default: SocketAddr) -> Result<SocketAddr, Error> {
    let token = match directive.args.as_slice() {
        [] => return Ok(default),
        [token] => token,
        [_, second, ..] => return Err(second.error(format!("{} takes one address", directive.name.text))),
    };
    let text = match token.text.split_once(':') {
        Some(("", port)) => format!("[::]:{port}"),
        Some(("localhost", port)) => format!("127.0.0.1:{port}"),
        _ => token.text.clone(),
    };
    text.parse()
        .map_err(|_| token.error(format!("{:?} is no address with a port", token.text)))
}

/// Go's notation: `5s`, `500ms`, `1m30s`, `1.5h`.
pub(super) fn duration(token: &Token) -> Result<Duration, Error> {
    let error = || token.error(format!("{:?} is no duration like 5s, 500ms or 1m30s", token.text));
    let mut rest = token.text.as_str();
    let mut seconds = 0.0;
    if rest.is_empty() {
        return Err(error());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let unit_end = rest[digits..]
            .find(|c: char| c.is_ascii_digit())
            .map_or(rest.len(), |at| digits + at);
        let amount: f64 = rest[..digits].parse().map_err(|_| error())?;
        let unit = match &rest[digits..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "" if amount == 0.0 => 0.0,
            _ => return Err(error()),
        };
        seconds += amount * unit;
        rest = &rest[unit_end..];
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| error())
}

/// `A`, `AAAA`, `TYPE65`, `ANY`.
pub(super) fn record_type(token: &Token) -> Result<u16, Error> {
    mnemonic::type_number(&token.text)
        .ok_or_else(|| token.error(format!("{:?} is no type of records", token.text)))
}

/// An address, or a network.
pub(super) fn network(token: &Token) -> Result<IpNetwork, Error> {
    token
        .text
        .parse()
        .map_err(|_| token.error(format!("{:?} is neither an address nor a network", token.text)))
}

/// Names, or all names where none is given.
pub(super) fn names_or_all(tokens: &[Token]) -> Result<Vec<Name>, Error> {
    if tokens.is_empty() {
        Ok(vec![Name::root()])
    } else {
        names(tokens)
    }
}

/// A whole number between two others.
pub(super) fn number_within(token: &Token, least: u32, most: u32) -> Result<u32, Error> {
    let number = number(token)?;
    if (least..=most).contains(&number) {
        Ok(number)
    } else {
        Err(token.error(format!("a number from {least} to {most} is wanted, not {number}")))
    }
}
