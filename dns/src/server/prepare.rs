//! What a configuration needs that is not there yet: everything that can fail is done here, before anything changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpListener;

use super::running::Running;
use crate::Error;
use crate::chain::{Block, LoopProbe, Plugin, Route, Server};
use crate::corefile::{Corefile, Key, Scheme, ServerBlock};
use crate::feed::{FeedError, Follower, Source};
use crate::forward::Forward;
use crate::http::{self, Endpoints};
use crate::kubernetes::Objects;
use crate::metrics::{Registry, ZoneLabel};
use crate::name::Name;
use crate::serve::{self, ServeError};

/// Where the Corefile wants DNS to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wanted {
    pub(super) scheme: Scheme,
    pub(super) ip: IpAddr,
    /// 0 leaves it to the kernel.
    pub(super) port: u16,
}

/// A feed: who tells, and the file that keeps what was told.
pub(super) type FeedKey = (Objects, PathBuf);

/// What finds loops, the upstreams that it looks at, and the zone in which it asks.
pub(super) type Probe = (Arc<LoopProbe>, Vec<Arc<Forward>>, Name);

/// A configuration with everything that it needs, ready to take another one's place.
pub(super) struct Prepared {
    pub(super) corefile: Corefile,
    pub(super) blocks: Vec<Arc<Block>>,
    pub(super) servers: BTreeMap<Wanted, Server>,
    /// Who we are at the addresses that are served by TLS.
    pub(super) identities: BTreeMap<Wanted, Arc<ServerConfig>>,
    /// Sockets for addresses that are not served yet.
    pub(super) opened: BTreeMap<Wanted, Opened>,
    pub(super) endpoints: BTreeMap<SocketAddr, Endpoints>,
    pub(super) http: BTreeMap<SocketAddr, TcpListener>,
    /// Feeds that nobody follows yet.
    pub(super) followers: BTreeMap<FeedKey, Follower>,
    /// API servers that are waited for before their names are served, and for how long. An agent is not: where it is
    /// late, its node is being set up.
    pub(super) awaited: Vec<(Arc<Source>, Duration)>,
    pub(super) feeds: BTreeSet<FeedKey>,
    /// Probes for upstreams that were not probed yet.
    pub(super) probes: Vec<Probe>,
}

/// The sockets of one address.
pub(super) struct Opened {
    pub(super) address: SocketAddr,
    /// None where it is served by TLS.
    pub(super) udp: Vec<OwnedFd>,
    pub(super) tcp: TcpListener,
}

impl Prepared {
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.opened.values().map(|opened| opened.address).collect()
    }

    pub(super) fn http_addresses(&self) -> Vec<SocketAddr> {
        let listeners = self.http.values();
        listeners
            .filter_map(|listener| listener.local_addr().ok())
            .collect()
    }
}

impl Running {
    /// Opens the sockets that a prepared configuration needs and this server does not have.
    pub(super) fn open(&self, prepared: &mut Prepared) -> Result<(), Error> {
        let wanted = wanted_addresses(&prepared.corefile);
        let new = wanted.iter().filter(|wanted| !self.serves(wanted));
        prepared.opened = open(new, &self.served())?;
        let new_http = prepared
            .endpoints
            .keys()
            .filter(|address| !self.has_http(address));
        prepared.http = http::listen(new_http, &self.served_http())?;
        Ok(())
    }

    /// Builds a configuration's chain, and what follows its feeds.
    pub(super) fn prepare(&self, corefile: &Corefile) -> Result<Prepared, Error> {
        note_what_lacks(corefile);
        let feeds = feeds(corefile);
        let new_feeds = feeds.iter().filter(|key| self.source(key).is_none());
        let new_followers = new_feeds.map(|key| {
            let mut follower = Follower::new(&key.0, key.1.clone(), self.watcher())?;
            if let Some(running) = self.source_of_like(&key.0) {
                follower.take_over(&running);
            }
            Ok((key.clone(), follower))
        });
        let followers: BTreeMap<FeedKey, Follower> = new_followers.collect::<Result<_, FeedError>>()?;
        let awaited = awaited(corefile, &followers);
        let (mut blocks, mut probes) = (Vec::new(), Vec::new());
        for config in &corefile.blocks {
            let source = feed_key(config).and_then(|key| {
                let new = || followers.get(&key).map(Follower::source);
                self.source(&key).or_else(new)
            });
            let old = self.block_like(config);
            let probe = config.detect_loops.then(|| Arc::new(LoopProbe::new()));
            let block = Arc::new(Block::succeeding(old.as_deref(), config, source, probe.clone()));
            probes.extend(probe.map(|probe| (probe, forwards(&block), zone_of(config))));
            blocks.push(block);
        }
        Ok(Prepared {
            servers: servers(corefile, &blocks, self.registry()),
            identities: identities(corefile),
            corefile: corefile.clone(),
            blocks,
            opened: BTreeMap::new(),
            endpoints: endpoints(corefile),
            http: BTreeMap::new(),
            followers,
            awaited,
            feeds,
            probes,
        })
    }
}

/// What a Corefile can say that leads nowhere.
fn note_what_lacks(corefile: &Corefile) {
    let forwards = corefile.blocks.iter().flat_map(|block| &block.forward);
    for forward in forwards.filter(|forward| forward.to.is_empty()) {
        tracing::warn!(zones = ?forward.from, "plugin forward: no name server is known; such names get SERVFAIL");
    }
}

/// The feeds that a configuration follows.
pub(super) fn feeds(corefile: &Corefile) -> BTreeSet<FeedKey> {
    corefile.blocks.iter().filter_map(feed_key).collect()
}

fn feed_key(config: &ServerBlock) -> Option<FeedKey> {
    let options = config.kubernetes.as_ref()?;
    Some((options.objects.clone(), options.snapshot_file()))
}

/// Of the feeds that are new, those of an API server.
fn awaited(corefile: &Corefile, followers: &BTreeMap<FeedKey, Follower>) -> Vec<(Arc<Source>, Duration)> {
    let awaited = corefile.blocks.iter().filter_map(|config| {
        let timeout = config.kubernetes.as_ref()?.startup_timeout;
        let key = feed_key(config).filter(|(objects, _)| matches!(objects, Objects::Api(_)))?;
        Some((followers.get(&key)?.source(), timeout))
    });
    awaited.collect()
}

fn zone_of(config: &ServerBlock) -> Name {
    config
        .keys
        .first()
        .map_or_else(Name::root, |key| key.zone.clone())
}

fn forwards(block: &Block) -> Vec<Arc<Forward>> {
    let forwards = block.plugins().iter().filter_map(Plugin::as_forward);
    forwards.cloned().collect()
}

/// What is served at each address.
fn servers(corefile: &Corefile, blocks: &[Arc<Block>], registry: &Registry) -> BTreeMap<Wanted, Server> {
    let mut routes: BTreeMap<Wanted, Vec<Route>> = BTreeMap::new();
    for (config, block) in corefile.blocks.iter().zip(blocks) {
        for key in &config.keys {
            let counters = registry.zone(ZoneLabel::of(Some(key)));
            for wanted in wanted_of(config, key) {
                routes.entry(wanted).or_default().push(Route {
                    zone: key.zone.clone(),
                    block: Arc::clone(block),
                    counters,
                });
            }
        }
    }
    let served = routes.into_iter().map(|(wanted, routes)| {
        let Wanted { scheme, port, .. } = wanted;
        let unserved = registry.zone(ZoneLabel {
            server: format!("{}://:{port}", scheme.name()),
            zone: "dropped".to_owned(),
        });
        (wanted, Server::new(routes, unserved))
    });
    served.collect()
}

/// Who the server is where it is asked by TLS; blocks of one address do not differ in that.
fn identities(corefile: &Corefile) -> BTreeMap<Wanted, Arc<ServerConfig>> {
    let blocks = corefile.blocks.iter();
    let identities = blocks.flat_map(|config| {
        let wanted = config.keys.iter().flat_map(|key| wanted_of(config, key));
        let by_tls = wanted.filter(|wanted| wanted.scheme == Scheme::Tls);
        by_tls.filter_map(|wanted| Some((wanted, config.tls.as_ref()?.config())))
    });
    identities.collect()
}

/// Where a zone of a block is served.
fn wanted_of(config: &ServerBlock, key: &Key) -> Vec<Wanted> {
    let Key { scheme, port, .. } = *key;
    let addresses = addresses(config).into_iter();
    addresses.map(|ip| Wanted { scheme, ip, port }).collect()
}

fn addresses(config: &ServerBlock) -> Vec<IpAddr> {
    if config.bind.is_empty() {
        serve::everywhere()
    } else {
        config.bind.clone()
    }
}

fn wanted_addresses(corefile: &Corefile) -> BTreeSet<Wanted> {
    let blocks = corefile.blocks.iter();
    let wanted = blocks.flat_map(|config| config.keys.iter().flat_map(|key| wanted_of(config, key)));
    wanted.collect()
}

/// Opens the sockets of every address. All are seen to be free before anything is opened: the sockets of one address
/// would stand in the way of another's; those of `own`, which are served already, do so on purpose.
fn open<'w>(
    wanted: impl Iterator<Item = &'w Wanted>,
    own: &[SocketAddr],
) -> Result<BTreeMap<Wanted, Opened>, ServeError> {
    let mut free = BTreeMap::new();
    for wanted in wanted {
        let address = SocketAddr::new(wanted.ip, wanted.port);
        let address = match wanted.scheme {
            _ if serve::is_shared(address, own) => address,
            Scheme::Dns => serve::probe(address)?,
            Scheme::Tls => serve::probe_stream(address)?,
        };
        free.insert(*wanted, address);
    }
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut opened = BTreeMap::new();
    for (wanted, address) in free {
        let tcp = serve::tcp_listener(address)?;
        let udp = match wanted.scheme {
            Scheme::Dns => serve::udp_sockets(address, threads)?,
            Scheme::Tls => Vec::new(),
        };
        let address = tcp.local_addr().unwrap_or(address);
        opened.insert(wanted, Opened { address, udp, tcp });
    }
    Ok(opened)
}

fn endpoints(corefile: &Corefile) -> BTreeMap<SocketAddr, Endpoints> {
    let mut endpoints: BTreeMap<SocketAddr, Endpoints> = BTreeMap::new();
    for block in &corefile.blocks {
        if let Some(health) = block.health {
            endpoints.entry(health.address).or_default().health = true;
        }
        if let Some(address) = block.ready {
            endpoints.entry(address).or_default().ready = true;
        }
        if let Some(address) = block.prometheus {
            endpoints.entry(address).or_default().metrics = true;
        }
    }
    endpoints
}
