//! The Corefile: CoreDNS's configuration language, read into typed options.
//!
//! Three steps: [`lexer`] (words), [`tree`] (blocks and directives, imports and snippets resolved), [`plugins`]
//! (options, checked). Every error names file and line.

mod arguments;
mod caching;
mod cluster;
mod forwarding;
pub mod lexer;
mod logs;
pub mod plugins;
mod rewrites;
mod rules;
mod taken;
pub mod tree;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::aaaa;
use crate::acl;
use crate::cache;
use crate::chain::autopath;
use crate::error_log;
use crate::forward;
use crate::hosts;
use crate::kubernetes;
use crate::name::Name;
use crate::query_log;
use crate::rate_limit;
use crate::rewrite;
use crate::serve::tls;
use crate::template;
use lexer::Token;
use taken::Taken;

/// The most bytes that a client is sent over UDP: safe over every path (DNS flag day 2020).
pub const DEFAULT_BUFSIZE: u16 = 1232;

/// Why a Corefile cannot be used. Displays as `Corefile:3: unknown plugin "foo"; …`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {message}")]
pub struct Error {
    /// The file.
    pub file: String,
    /// The line, from 1; 0 when the file as a whole is meant.
    pub line: u32,
    /// What is wrong.
    pub message: String,
}

/// A whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Corefile {
    /// The file that it was read from; `None` = it is not read again.
    pub path: Option<PathBuf>,
    /// Whether plugins that are not known are warned of instead of refused.
    pub is_lenient: bool,
    /// The server blocks, in the file's order.
    pub blocks: Vec<ServerBlock>,
}

/// What answers for some zones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerBlock {
    /// Zones and ports.
    pub keys: Vec<Key>,
    /// Addresses to listen at; empty = all.
    pub bind: Vec<IpAddr>,
    /// `tls`: who the server is where it is asked by TLS.
    pub tls: Option<tls::Identity>,
    /// `errors`: failures are logged.
    pub errors: bool,
    /// Failures that are logged together.
    pub consolidations: Vec<error_log::Consolidation>,
    /// `log`: queries are logged; in the file's order.
    pub log: Vec<query_log::Rule>,
    /// `health`.
    pub health: Option<Health>,
    /// `ready`: where it listens. Default `:8181`.
    pub ready: Option<SocketAddr>,
    /// `prometheus`: where it listens. Default `localhost:9153`.
    pub prometheus: Option<SocketAddr>,
    /// `cache`.
    pub cache: Option<cache::Options>,
    /// `loop`: upstreams that send queries back here are taken out.
    pub detect_loops: bool,
    /// `reload`: how often the Corefile is looked at.
    pub reload: Option<Reload>,
    /// `loadbalance`: addresses come in a random order.
    pub load_balance: bool,
    /// `kubernetes`.
    pub kubernetes: Option<kubernetes::Options>,
    /// `forward`, in the file's order.
    pub forward: Vec<forward::Options>,
    /// `whoami`.
    pub whoami: bool,
    /// `bufsize`: no client is sent more over UDP, in bytes. Default [`DEFAULT_BUFSIZE`], given or not.
    pub bufsize: Option<u16>,
    /// `ratelimit`.
    pub rate_limit: Option<rate_limit::Options>,
    /// `acl`, in the file's order.
    pub acl: Vec<acl::Options>,
    /// `any`: queries for every type at once get a hint instead (RFC 8482).
    pub any: bool,
    /// `rewrite`, in the file's order.
    pub rewrites: Vec<rewrite::Rule>,
    /// `autopath`.
    pub autopath: Option<autopath::Options>,
    /// `template`, in the file's order.
    pub templates: Vec<template::Options>,
    /// `hosts`.
    pub hosts: Option<hosts::Options>,
    /// `root`: where relative paths of the plugins lead from. Default: the working directory.
    pub root: PathBuf,
    /// `aaaa off`: names outside have no IPv6 addresses.
    pub no_aaaa: Option<aaaa::Off>,
    /// `minimal`: positive answers come without authorities and additional records.
    pub minimal: bool,
}

impl ServerBlock {
    /// The plugins that it has, in the order of [`plugins::KNOWN`].
    #[must_use]
    pub fn plugins(&self) -> Vec<&'static str> {
        let has = [
            ("reload", self.reload.is_some()),
            ("bufsize", self.bufsize.is_some()),
            ("root", !self.root.as_os_str().is_empty()),
            ("tls", self.tls.is_some()),
            ("bind", !self.bind.is_empty()),
            ("ready", self.ready.is_some()),
            ("health", self.health.is_some()),
            ("prometheus", self.prometheus.is_some()),
            ("errors", self.errors),
            ("log", !self.log.is_empty()),
            ("ratelimit", self.rate_limit.is_some()),
            ("acl", !self.acl.is_empty()),
            ("any", self.any),
            ("loadbalance", self.load_balance),
            ("cache", self.cache.is_some()),
            ("rewrite", !self.rewrites.is_empty()),
            ("autopath", self.autopath.is_some()),
            ("minimal", self.minimal),
            ("template", !self.templates.is_empty()),
            ("hosts", self.hosts.is_some()),
            ("kubernetes", self.kubernetes.is_some()),
            ("aaaa", self.no_aaaa.is_some()),
            ("loop", self.detect_loops),
            ("forward", !self.forward.is_empty()),
            ("whoami", self.whoami),
        ];
        let given = has.into_iter().filter(|(_, given)| *given);
        given.map(|(name, _)| name).collect()
    }
}

/// One zone of a server block's heading. Displays as `cluster.local.:53`, `tls://.:853`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// How it is asked for.
    pub scheme: Scheme,
    /// The zone.
    pub zone: Name,
    /// The port. Default 53, for TLS 853.
    pub port: u16,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme {
            Scheme::Dns => write!(f, "{}:{}", self.zone, self.port),
            Scheme::Tls => write!(f, "tls://{}:{}", self.zone, self.port),
        }
    }
}

/// How a zone is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// `dns://`: by UDP and TCP.
    #[default]
    Dns,
    /// `tls://`: by TLS (RFC 7858).
    Tls,
}

impl Scheme {
    /// What stands in front of `://`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Tls => "tls",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Dns => 53,
            Self::Tls => 853,
        }
    }
}

/// How often the Corefile is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reload {
    /// The time between two looks. Default 30 s, at least 2 s.
    pub interval: Duration,
    /// How much shorter or longer it may be each time. Default 15 s, at most half the interval.
    pub jitter: Duration,
}

/// The health endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Where it listens. Default `:8080`.
    pub address: SocketAddr,
    /// How long the server goes on answering after it was told to end. Default 0.
    pub lameduck: Duration,
}

impl Corefile {
    /// Reads a file, with the process's environment.
    ///
    /// # Errors
    /// With file and line of the first thing that is wrong.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::read_again(path, false)
    }

    /// The same; `is_lenient` warns of plugins that are not known, and passes them over.
    ///
    /// # Errors
    /// With file and line of the first thing that is wrong.
    pub fn read_again(path: &Path, is_lenient: bool) -> Result<Self, Error> {
        let (corefile, errors) = Self::look_over(path, is_lenient);
        errors.into_iter().next().map_or(Ok(corefile), Err)
    }

    /// Reads a file as far as it is right, and tells everything that is wrong: of what cannot be taken apart into
    /// blocks the first thing, else the first of each directive.
    #[must_use]
    pub fn look_over(path: &Path, is_lenient: bool) -> (Self, Vec<Error>) {
        let file = path.to_string_lossy();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("cannot read the Corefile: {error}");
                return (Self::default(), vec![whole_file(&file, message)]);
            }
        };
        let environment = |name: &str| std::env::var(name).ok();
        let (mut corefile, errors) = Self::look_over_text(&file, &text, &environment, is_lenient);
        corefile.path = Some(path.to_owned());
        (corefile, errors)
    }

    /// Reads a text. `environment` gives the value of a variable.
    ///
    /// # Errors
    /// With file and line of the first thing that is wrong.
    pub fn parse(
        file: &str,
        text: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Error> {
        let (corefile, errors) = Self::look_over_text(file, text, environment, false);
        errors.into_iter().next().map_or(Ok(corefile), Err)
    }

    /// Reads a text as far as it is right, and tells everything that is wrong. `environment` gives the value of a
    /// variable.
    #[must_use]
    pub fn look_over_text(
        file: &str,
        text: &str,
        environment: &dyn Fn(&str) -> Option<String>,
        is_lenient: bool,
    ) -> (Self, Vec<Error>) {
        let mut corefile = Self {
            is_lenient,
            ..Self::default()
        };
        let trees = match tree::blocks(file, text, environment) {
            Ok(trees) => trees,
            Err(error) => return (corefile, vec![error]),
        };
        let mut errors = Vec::new();
        let mut taken = Taken::default();
        for tree in &trees {
            let mut block = server_block(tree, is_lenient, &mut errors);
            if environment("KUBERNETES_SERVICE_HOST").is_none() {
                cluster::outside_of_a_pod(&mut block);
            }
            errors.extend(rules::pods_for_autopath(&block, &tree.directives).err());
            for key in &block.keys {
                if let Err(message) = taken.take(key, &block) {
                    errors.extend(tree.keys.first().map(|token| token.error(message)));
                }
            }
            corefile.blocks.push(block);
        }
        cluster::share_objects(&mut corefile.blocks);
        if trees.is_empty() {
            let message = "there is no server block: the least is '. { whoami }'".to_owned();
            errors.push(whole_file(file, message));
        }
        (corefile, errors)
    }
}

fn whole_file(file: &str, message: String) -> Error {
    Error {
        file: file.to_owned(),
        line: 0,
        message,
    }
}

/// A server block as far as it is right.
fn server_block(tree: &tree::Block, is_lenient: bool, errors: &mut Vec<Error>) -> ServerBlock {
    let mut block = ServerBlock::default();
    for key in &tree.keys {
        match zone_keys(key) {
            Ok(keys) => block.keys.extend(keys),
            Err(error) => errors.push(error),
        }
    }
    // What the others' paths lead from comes first, wherever it stands.
    let (roots, others): (Vec<_>, Vec<_>) = tree
        .directives
        .iter()
        .partition(|directive| directive.name.text == "root");
    for directive in roots.into_iter().chain(others) {
        if is_lenient && !plugins::KNOWN.contains(&directive.name.text.as_str()) {
            let place = &directive.name.place;
            tracing::warn!(
                file = %place.file,
                line = place.line,
                plugin = directive.name.text,
                "unknown plugin passed over"
            );
            continue;
        }
        errors.extend(plugins::apply(&mut block, directive).err());
    }
    block
}

/// The zones of one word in front of a server block: `cluster.local:53`, `tls://.`, `10.96.0.0/12`.
fn zone_keys(token: &Token) -> Result<Vec<Key>, Error> {
    let (scheme, text) = match token.text.split_once("://") {
        None => (Scheme::Dns, token.text.as_str()),
        Some(("dns", rest)) => (Scheme::Dns, rest),
        Some(("tls", rest)) => (Scheme::Tls, rest),
        Some((scheme, _)) => {
            return Err(token.error(format!("{scheme}:// is not served; dns:// and tls:// are")));
        }
    };
    let (zone, port) = match text.rsplit_once(':') {
        // The colons of an IPv6 network are not followed by a port alone.
        Some((zone, port)) if !zone.contains(':') || zone.contains('/') => (
            zone,
            port.parse()
                .map_err(|_| token.error(format!("{port:?} is no port number")))?,
        ),
        _ => (text, scheme.default_port()),
    };
    let zone = if zone.is_empty() { "." } else { zone };
    Ok(zones(token, zone)?
        .into_iter()
        .map(|zone| Key { scheme, zone, port })
        .collect())
}

/// A zone by name, or the reverse zones of a network. A prefix that ends within a label becomes several zones.
pub(crate) fn zones(token: &Token, text: &str) -> Result<Vec<Name>, Error> {
    if text.contains('/') {
        let network: IpNetwork = text
            .parse()
            .map_err(|_| token.error(format!("{text:?} is neither a zone nor a network")))?;
        return Ok(reverse_zones(network));
    }
    let name = Name::parse(text).map_err(|error| token.error(format!("the zone {text:?} {error}")))?;
    Ok(vec![name])
}

fn reverse_zones(network: IpNetwork) -> Vec<Name> {
    let bits_per_label = if network.is_ipv4() { 8 } else { 4 };
    let labels = network.prefix().div_ceil(bits_per_label);
    let spare = labels * bits_per_label - network.prefix();
    let all_labels = if network.is_ipv4() { 4 } else { 32 };
    let zones = (0..1u128 << spare).map(|index| {
        let address = match network.network() {
            IpAddr::V4(v4) if labels > 0 => {
                IpAddr::V4((u32::from(v4) | (index as u32) << (32 - labels * 8)).into())
            }
            IpAddr::V6(v6) if labels > 0 => IpAddr::V6((u128::from(v6) | index << (128 - labels * 4)).into()),
            address => address,
        };
        let whole = Name::reverse(address).to_string();
        let zone: Vec<&str> = whole.split('.').skip(usize::from(all_labels - labels)).collect();
        Name::parse(&zone.join(".")).expect("invariant: the tail of a name is a name")
    });
    zones.collect()
}

#[cfg(test)]
mod tests;
