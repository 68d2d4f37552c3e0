//! Directives to typed options, one function per plugin.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::cluster::kubernetes;
use super::lexer::Token;
use super::tree::Directive;
use super::{Error, Health, Log, ServerBlock, zones};
use crate::name::Name;
use crate::{cache, forward};

/// The plugins that there are, in the order in which a query passes them (CoreDNS's `plugin.cfg`).
pub const KNOWN: [&str; 14] = [
    "reload",
    "bind",
    "health",
    "ready",
    "prometheus",
    "errors",
    "log",
    "loadbalance",
    "cache",
    "kubernetes",
    "loop",
    "forward",
    "whoami",
    "import",
];

/// Puts one directive into its server block.
pub(super) fn apply(block: &mut ServerBlock, directive: &Directive) -> Result<(), Error> {
    let given_before = match directive.name.text.as_str() {
        "errors" => std::mem::replace(&mut block.errors, bare(directive)?),
        "loop" => std::mem::replace(&mut block.detect_loops, bare(directive)?),
        "whoami" => std::mem::replace(&mut block.whoami, bare(directive)?),
        "loadbalance" => std::mem::replace(&mut block.load_balance, load_balance(directive)?),
        "log" => block.log.replace(log(directive)?).is_some(),
        "health" => block.health.replace(health(directive)?).is_some(),
        "ready" => {
            no_options(directive)?;
            block
                .ready
                .replace(listen_address(directive, everywhere(8181))?)
                .is_some()
        }
        "prometheus" => {
            no_options(directive)?;
            let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 9153));
            block
                .prometheus
                .replace(listen_address(directive, local)?)
                .is_some()
        }
        "reload" => block.reload.replace(reload(directive)?).is_some(),
        "cache" => block.cache.replace(cache(directive)?).is_some(),
        "kubernetes" => {
            let own: Vec<Name> = block.keys.iter().map(|key| key.zone.clone()).collect();
            block.kubernetes.replace(kubernetes(directive, &own)?).is_some()
        }
        "bind" => {
            block.bind.extend(bind(directive)?);
            false
        }
        "forward" => {
            block.forward.push(forward(directive)?);
            false
        }
        other => {
            let known = KNOWN.join(", ");
            return Err(directive
                .name
                .error(format!("unknown plugin {other:?}; known are {known}")));
        }
    };
    if given_before {
        let name = &directive.name;
        return Err(name.error(format!(
            "the plugin {:?} is given twice in one server block",
            name.text
        )));
    }
    Ok(())
}

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

fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
}

/// `:9153`, `localhost:9153`, `10.0.0.1:9153`, `[::1]:9153`.
fn listen_address(directive: &Directive, default: SocketAddr) -> Result<SocketAddr, Error> {
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

fn load_balance(directive: &Directive) -> Result<bool, Error> {
    no_options(directive)?;
    match directive.args.as_slice() {
        [] => Ok(true),
        [policy] if policy.text == "round_robin" => Ok(true),
        [policy, ..] => Err(policy.error(format!("loadbalance knows round_robin, not {:?}", policy.text))),
    }
}

fn log(directive: &Directive) -> Result<Log, Error> {
    let every = Log {
        success: true,
        denial: true,
        error: true,
    };
    match directive.args.as_slice() {
        [] => {}
        [zone] if zone.text == "." => {}
        [first, ..] => return Err(first.error("log takes no names or formats yet, only the option class")),
    }
    let mut log = Log::default();
    for option in &directive.options {
        if option.name.text != "class" {
            return Err(unknown_option(directive, option, &["class"]));
        }
        for class in &option.args {
            match class.text.as_str() {
                "all" => log = every,
                "success" => log.success = true,
                "denial" => log.denial = true,
                "error" => log.error = true,
                other => {
                    let known = "all, success, denial and error";
                    return Err(class.error(format!("{other:?} is no class of log; known are {known}")));
                }
            }
        }
    }
    Ok(if log == Log::default() { every } else { log })
}

fn health(directive: &Directive) -> Result<Health, Error> {
    let mut health = Health {
        address: listen_address(directive, everywhere(8080))?,
        lameduck: Duration::ZERO,
    };
    for option in &directive.options {
        match option.name.text.as_str() {
            "lameduck" => health.lameduck = duration(single(option)?)?,
            _ => return Err(unknown_option(directive, option, &["lameduck"])),
        }
    }
    Ok(health)
}

fn reload(directive: &Directive) -> Result<Duration, Error> {
    no_options(directive)?;
    let interval = match directive.args.first() {
        Some(token) => (duration(token)?, token),
        None => return Ok(Duration::from_secs(30)),
    };
    if interval.0 < Duration::from_secs(2) {
        return Err(interval
            .1
            .error("reload looks at the file every 2s at the most often"));
    }
    // The second argument, jitter, is checked and not needed: each process starts at a moment of its own.
    directive.args.get(1).map(duration).transpose()?;
    Ok(interval.0)
}

fn bind(directive: &Directive) -> Result<Vec<IpAddr>, Error> {
    no_options(directive)?;
    if directive.args.is_empty() {
        return Err(directive
            .name
            .error("bind takes at least one address or interface"));
    }
    let mut addresses = Vec::new();
    for token in &directive.args {
        match token.text.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => addresses.extend(interface_addresses(token)?),
        }
    }
    Ok(addresses)
}

fn interface_addresses(token: &Token) -> Result<Vec<IpAddr>, Error> {
    let all = nix::ifaddrs::getifaddrs()
        .map_err(|error| token.error(format!("cannot list interfaces: {error}")))?;
    let own = all.filter(|interface| interface.interface_name == token.text);
    let addresses: Vec<IpAddr> = own
        .filter_map(|interface| crate::serve::ip_of(interface.address?))
        .collect();
    if addresses.is_empty() {
        return Err(token.error(format!(
            "{:?} is neither an address nor an interface that has one",
            token.text
        )));
    }
    Ok(addresses)
}

fn cache(directive: &Directive) -> Result<cache::Options, Error> {
    const KNOWN_OPTIONS: &[&str] = &["success", "denial", "disable", "servfail"];
    let mut options = cache::Options::default();
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
        match option.name.text.as_str() {
            "success" => cache_part(&mut options.success, option)?,
            "denial" => cache_part(&mut options.denial, option)?,
            "servfail" => options.servfail = duration(single(option)?)?,
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

/// `success CAPACITY [TTL] [MINTTL]`.
fn cache_part(part: &mut cache::Part, option: &Directive) -> Result<(), Error> {
    let [capacity, ttls @ ..] = option.args.as_slice() else {
        return Err(option
            .name
            .error(format!("{} takes a capacity", option.name.text)));
    };
    part.capacity = number(capacity)?;
    if let Some(ttl) = ttls.first() {
        part.max_ttl = number(ttl)?;
    }
    if let Some(ttl) = ttls.get(1) {
        part.min_ttl = number(ttl)?;
    }
    Ok(())
}

fn forward(directive: &Directive) -> Result<forward::Options, Error> {
    const KNOWN_OPTIONS: &[&str] = &[
        "except",
        "policy",
        "max_fails",
        "max_concurrent",
        "expire",
        "force_tcp",
        "prefer_udp",
        "health_check",
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
        match option.name.text.as_str() {
            "except" => options.except.extend(names(&option.args)?),
            "policy" => options.policy = policy(single(option)?)?,
            "max_fails" => options.max_fails = number(single(option)?)?,
            "max_concurrent" => options.max_concurrent = Some(number(single(option)?)?),
            "expire" => options.expire = duration(single(option)?)?,
            "force_tcp" => options.force_tcp = bare(option)?,
            "prefer_udp" => options.prefer_udp = bare(option)?,
            "health_check" => match option.args.as_slice() {
                [interval] => options.health_check = duration(interval)?,
                _ => {
                    return Err(option
                        .name
                        .error("health_check takes a duration and nothing else yet"));
                }
            },
            _ => return Err(unknown_option(directive, option, KNOWN_OPTIONS)),
        }
    }
    Ok(options)
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
fn upstreams(token: &Token) -> Result<Vec<SocketAddr>, Error> {
    let text = match token.text.split_once("://") {
        None => token.text.as_str(),
        Some(("dns", rest)) => rest,
        Some((scheme, _)) => {
            return Err(token.error(format!(
                "{scheme}:// upstreams are not supported yet; only dns:// are"
            )));
        }
    };
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(vec![SocketAddr::from((address, 53))]);
    }
    if !text.contains('/') {
        return Err(token.error(format!(
            "{text:?} is neither an address nor a file like /etc/resolv.conf"
        )));
    }
    let servers = forward::resolv_conf::name_servers(Path::new(text));
    servers.map_err(|error| token.error(format!("cannot read name servers from {text}: {error}")))
}
