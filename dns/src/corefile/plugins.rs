//! Directives to typed options, one function per plugin.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::arguments::{bare, duration, everywhere, listen_address, no_options, single, unknown_option};
use super::cluster::kubernetes;
use super::lexer::Token;
use super::tree::Directive;
use super::{Error, Health, Reload, ServerBlock, caching, forwarding, logs, rewrites, rules};
use crate::name::Name;
use crate::serve::tls::{ClientAuth, Files, Identity};

/// The plugins that there are, in the order in which a query passes them (CoreDNS's `plugin.cfg`, and ours).
pub const KNOWN: [&str; 26] = [
    "reload",
    "bufsize",
    "root",
    "tls",
    "bind",
    "ready",
    "health",
    "prometheus",
    "errors",
    "log",
    "ratelimit",
    "acl",
    "any",
    "loadbalance",
    "cache",
    "rewrite",
    "autopath",
    "minimal",
    "template",
    "hosts",
    "kubernetes",
    "aaaa",
    "loop",
    "forward",
    "whoami",
    "import",
];

/// Puts one directive into its server block.
pub(super) fn apply(block: &mut ServerBlock, directive: &Directive) -> Result<(), Error> {
    let given_before = match directive.name.text.as_str() {
        "errors" => {
            block.consolidations = logs::errors(directive)?;
            std::mem::replace(&mut block.errors, true)
        }
        "any" => std::mem::replace(&mut block.any, bare(directive)?),
        "minimal" => std::mem::replace(&mut block.minimal, bare(directive)?),
        "bufsize" => block.bufsize.replace(rules::bufsize(directive)?).is_some(),
        "ratelimit" => block.rate_limit.replace(rules::rate_limit(directive)?).is_some(),
        "acl" => {
            block.acl.push(rules::acl(directive, &own_zones(block))?);
            false
        }
        "aaaa" => {
            let off = rules::aaaa(directive, &own_zones(block))?;
            block.no_aaaa.replace(off).is_some()
        }
        "root" => root(block, directive)?,
        "tls" => block.tls.replace(tls(directive, &block.root)?).is_some(),
        "hosts" => {
            let mut options = rules::hosts(directive, &own_zones(block))?;
            options.file = block.root.join(options.file);
            block.hosts.replace(options).is_some()
        }
        "rewrite" => {
            block.rewrites.push(rewrites::rewrite(directive)?);
            false
        }
        "template" => {
            let options = rules::template(directive, &own_zones(block))?;
            block.templates.push(options);
            false
        }
        "autopath" => {
            let options = rules::autopath(directive, &own_zones(block), &block.root)?;
            block.autopath.replace(options).is_some()
        }
        "loop" => std::mem::replace(&mut block.detect_loops, bare(directive)?),
        "whoami" => std::mem::replace(&mut block.whoami, bare(directive)?),
        "loadbalance" => std::mem::replace(&mut block.load_balance, load_balance(directive)?),
        "log" => {
            block.log.push(logs::log(directive)?);
            false
        }
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
        "cache" => block.cache.replace(caching::cache(directive)?).is_some(),
        "kubernetes" => {
            let own = own_zones(block);
            block.kubernetes.replace(kubernetes(directive, &own)?).is_some()
        }
        "bind" => {
            block.bind.extend(bind(directive)?);
            false
        }
        "forward" => {
            block.forward.push(forwarding::forward(directive, &block.root)?);
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

/// Whether there was one before.
fn root(block: &mut ServerBlock, directive: &Directive) -> Result<bool, Error> {
    no_options(directive)?;
    let folder = PathBuf::from(&single(directive)?.text);
    Ok(!std::mem::replace(&mut block.root, folder).as_os_str().is_empty())
}

/// `tls CERTIFICATE KEY [AUTHORITIES] { client_auth WHO }`.
fn tls(directive: &Directive, root: &Path) -> Result<Identity, Error> {
    let mut clients = ClientAuth::default();
    for option in &directive.options {
        no_options(option)?;
        if option.name.text != "client_auth" {
            return Err(unknown_option(directive, option, &["client_auth"]));
        }
        let who = single(option)?;
        clients = match who.text.as_str() {
            // A certificate that is asked for and not looked at changes nothing.
            "nocert" | "request" => ClientAuth::None,
            "verify_if_given" => ClientAuth::IfGiven,
            "require_and_verify" => ClientAuth::Required,
            "require" => {
                return Err(who.error("client_auth require lets everybody in; say require_and_verify"));
            }
            other => {
                let known = "nocert, request, verify_if_given and require_and_verify";
                return Err(who.error(format!("client_auth is one of {known}, not {other:?}")));
            }
        };
    }
    let path = |token: &Token| root.join(&token.text);
    let files = match directive.args.as_slice() {
        [certificate, key] => Files {
            certificate: path(certificate),
            key: path(key),
            authorities: None,
        },
        [certificate, key, authorities] => Files {
            certificate: path(certificate),
            key: path(key),
            authorities: Some(path(authorities)),
        },
        _ => {
            let usage = "tls takes a certificate, its key, and certificates of authorities";
            return Err(directive.name.error(usage));
        }
    };
    Identity::read(&files, clients).map_err(|error| directive.name.error(error.to_string()))
}

fn own_zones(block: &ServerBlock) -> Vec<Name> {
    block.keys.iter().map(|key| key.zone.clone()).collect()
}

fn load_balance(directive: &Directive) -> Result<bool, Error> {
    no_options(directive)?;
    match directive.args.as_slice() {
        [] => Ok(true),
        [policy] if policy.text == "round_robin" => Ok(true),
        [policy, ..] => Err(policy.error(format!("loadbalance knows round_robin, not {:?}", policy.text))),
    }
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

/// `reload [INTERVAL] [JITTER]`; the bounds are CoreDNS's.
fn reload(directive: &Directive) -> Result<Reload, Error> {
    const LEAST: Duration = Duration::from_secs(2);
    const LEAST_JITTER: Duration = Duration::from_secs(1);
    no_options(directive)?;
    let (interval, jitter) = match directive.args.as_slice() {
        [] => (None, None),
        [interval] => (Some(interval), None),
        [interval, jitter] => (Some(interval), Some(jitter)),
        [_, _, third, ..] => return Err(third.error("reload takes an interval and a jitter")),
    };
    let mut reload = Reload {
        interval: Duration::from_secs(30),
        jitter: Duration::from_secs(15),
    };
    if let Some(token) = interval {
        reload.interval = duration(token)?;
        if reload.interval < LEAST {
            return Err(token.error("reload looks at the file every 2s at the most often"));
        }
    }
    if let Some(token) = jitter {
        reload.jitter = duration(token)?;
        if reload.jitter < LEAST_JITTER {
            return Err(token.error("the jitter of reload is 1s at least"));
        }
    }
    reload.jitter = reload.jitter.min(reload.interval / 2);
    Ok(reload)
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
