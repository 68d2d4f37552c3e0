//! The composition root: a configuration becomes sockets, threads and tasks, and ends in order.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::chain::{Block, LoopProbe, Plugin, Route, Server, Worker};
use crate::corefile::{Corefile, ServerBlock};
use crate::feed::{FeedError, Follower, Source, Watcher};
use crate::http::{self, Endpoints};
use crate::kubernetes::{Objects, Options, PodMode};
use crate::metrics::{Registry, ZoneLabel};
use crate::name::Name;
use crate::serve::{self, ServeError, tcp, udp};
use crate::state::State;
use crate::{Config, Error};

/// Queries that may wait for a task to take them; what is beyond is dropped and counted.
const WAITING: usize = 4096;
/// How often it is seen at the start whether the objects are complete.
const OBJECTS_CHECK: Duration = Duration::from_millis(10);

/// A server that has its sockets and does not serve yet. From here on clients' queries are kept by the kernel.
pub struct Bound {
    listeners: Vec<Listening>,
    endpoints: Vec<(TcpListener, Endpoints)>,
    followers: Vec<Follower>,
    probes: Vec<(Arc<LoopProbe>, Arc<Block>, Name)>,
    state: Arc<State>,
    lameduck: Duration,
    /// API servers that are waited for at the start, and for how long.
    awaited: Vec<(Arc<Source>, Duration)>,
}

/// One address with everything that is served there.
struct Listening {
    address: SocketAddr,
    server: Arc<Server>,
    udp: Vec<OwnedFd>,
    tcp: TcpListener,
}

impl Bound {
    /// Takes every socket of a configuration in which no API server is named.
    ///
    /// # Errors
    /// When one of them cannot be had; nothing is left open then.
    pub async fn new(config: &Config) -> Result<Self, Error> {
        Self::with_watcher(config, None).await
    }

    /// Takes every socket of a configuration, whose API servers `watcher` watches.
    ///
    /// # Errors
    /// When one of them cannot be had; nothing is left open then.
    pub async fn with_watcher(config: &Config, watcher: Option<&Watcher>) -> Result<Self, Error> {
        let corefile = &config.0;
        let addresses = free_addresses(corefile)?;
        note_what_waits(corefile);
        let followers = followers(corefile, watcher)?;
        let awaited = awaited(corefile, &followers);
        let mut blocks = Vec::new();
        let mut probes = Vec::new();
        for config in &corefile.blocks {
            let probe = config.detect_loops.then(|| Arc::new(LoopProbe::new()));
            let source = config
                .kubernetes
                .as_ref()
                .and_then(|options| followers.get(&options.objects));
            let block = Arc::new(Block::new(config, source.map(Follower::source), probe.clone()));
            let zone = config
                .keys
                .first()
                .map_or_else(Name::root, |key| key.zone.clone());
            probes.extend(probe.map(|probe| (probe, Arc::clone(&block), zone)));
            blocks.push(block);
        }
        let mut labels = Vec::new();
        let servers = servers(corefile, &blocks, &mut labels);
        let listeners = listen(servers, &addresses)?;
        let endpoints = http::listen(&endpoints(corefile)).await?;
        let sources = followers
            .iter()
            .map(|(objects, follower)| (objects.to_string(), follower.source()));
        let state = State {
            registry: Registry::new(labels),
            blocks,
            sources: sources.collect(),
        };
        let lameduck = corefile
            .blocks
            .iter()
            .filter_map(|block| Some(block.health?.lameduck))
            .max();
        Ok(Self {
            listeners,
            endpoints,
            followers: followers.into_values().collect(),
            probes,
            state: Arc::new(state),
            lameduck: lameduck.unwrap_or_default(),
            awaited,
        })
    }

    /// Where UDP and TCP are listened at.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|listening| listening.address).collect()
    }

    /// Where HTTP is listened at.
    #[must_use]
    pub fn http_addresses(&self) -> Vec<SocketAddr> {
        self.endpoints
            .iter()
            .filter_map(|(listener, _)| listener.local_addr().ok())
            .collect()
    }

    /// Serves until `shutdown`, and for the lameduck time after it.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let addresses = self.addresses();
        let (lameduck, ended) = (self.lameduck, CancellationToken::new());
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for follower in self.followers {
            tasks.spawn(follower.run(ended.clone()));
        }
        shutdown
            .run_until_cancelled(wait_for_objects(&self.awaited))
            .await;
        let (waiting, queue) = mpsc::channel(WAITING);
        tasks.spawn(udp::answer_waiting(queue, self.state.registry.shard()));
        let mut threads = Vec::new();
        for listening in self.listeners {
            let (server, shard) = (Arc::clone(&listening.server), self.state.registry.shard());
            tasks.spawn(tcp::serve(listening.tcp, server, shard, ended.clone()));
            let worker = || Worker::new(self.state.registry.shard());
            let started = start_threads(
                listening.address,
                listening.udp,
                &listening.server,
                worker,
                &waiting,
                &stop,
            )?;
            threads.extend(started);
        }
        drop(waiting);
        for (listener, endpoints) in self.endpoints {
            tasks.spawn(serve_http(
                listener,
                http::router(endpoints, &self.state),
                ended.clone(),
            ));
        }
        for (probe, block, zone) in self.probes {
            let ended = ended.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = probe.send(forwards(&block), &zone) => {}
                    () = ended.cancelled() => {}
                }
            });
        }
        tracing::info!(?addresses, "serving");
        shutdown.cancelled().await;
        if !lameduck.is_zero() {
            tracing::info!(seconds = lameduck.as_secs_f64(), "going on for the lameduck time");
            tokio::time::sleep(lameduck).await;
        }
        stop.store(true, Ordering::Relaxed);
        ended.cancel();
        join_all(threads, tasks).await;
        tracing::info!("ended");
        Ok(())
    }
}

/// What the Corefile may say and this build does not do yet.
fn note_what_waits(corefile: &Corefile) {
    for block in &corefile.blocks {
        if block.reload.is_some() {
            tracing::info!("plugin reload: the Corefile is read at the start only; a change needs a restart");
        }
        if let Some(options) = &block.kubernetes
            && options.pods == PodMode::Verified
            && matches!(options.objects, Objects::Agent(_))
        {
            tracing::warn!(
                "plugin kubernetes: the agent tells of no pods, so that their names get SERVFAIL; pods verified needs \
                 an API server"
            );
        }
        for forward in block.forward.iter().filter(|forward| forward.to.is_empty()) {
            tracing::warn!(zones = ?forward.from, "plugin forward: no name server is known; such names get SERVFAIL");
        }
    }
}

fn forwards(block: &Block) -> Vec<Arc<crate::forward::Forward>> {
    let forwards = block.plugins().iter();
    forwards
        .filter_map(|plugin| match plugin {
            Plugin::Forward(forward) => Some(Arc::clone(forward)),
            _ => None,
        })
        .collect()
}

fn cluster_options(corefile: &Corefile) -> impl Iterator<Item = &Options> {
    let blocks = corefile.blocks.iter();
    blocks.filter_map(|block| block.kubernetes.as_ref())
}

/// One follower per source of objects, however many blocks use it.
fn followers(
    corefile: &Corefile,
    watcher: Option<&Watcher>,
) -> Result<BTreeMap<Objects, Follower>, FeedError> {
    let mut followers = BTreeMap::new();
    for options in cluster_options(corefile) {
        if let Entry::Vacant(entry) = followers.entry(options.objects.clone()) {
            entry.insert(Follower::new(&options.objects, options.snapshot_file(), watcher)?);
        }
    }
    Ok(followers)
}

/// The API servers that are waited for. An agent is not: where it is late, its node is being set up.
fn awaited(corefile: &Corefile, followers: &BTreeMap<Objects, Follower>) -> Vec<(Arc<Source>, Duration)> {
    let options = cluster_options(corefile).filter(|options| matches!(options.objects, Objects::Api(_)));
    let sources = options.filter_map(|options| {
        let follower = followers.get(&options.objects)?;
        Some((follower.source(), options.startup_timeout))
    });
    sources.collect()
}

/// Waits until each source is complete, or its time is over. Clients' queries wait in their sockets meanwhile.
async fn wait_for_objects(awaited: &[(Arc<Source>, Duration)]) {
    let started = Instant::now();
    let is_due =
        |(source, timeout): &(Arc<Source>, Duration)| source.is_synced() || started.elapsed() >= *timeout;
    while !awaited.iter().all(is_due) {
        tokio::time::sleep(OBJECTS_CHECK).await;
    }
    if awaited.iter().any(|(source, _)| !source.is_synced()) {
        tracing::warn!(
            "starting before the cluster's objects are known; names that are not yet get SERVFAIL"
        );
    }
}

/// What is served at each address, and the labels under which it is counted.
fn servers(
    corefile: &Corefile,
    blocks: &[Arc<Block>],
    labels: &mut Vec<ZoneLabel>,
) -> BTreeMap<(IpAddr, u16), Server> {
    let mut routes: BTreeMap<(IpAddr, u16), Vec<Route>> = BTreeMap::new();
    for (config, block) in corefile.blocks.iter().zip(blocks) {
        for key in &config.keys {
            let counters = label_index(labels, key.port, key.zone.to_string());
            for address in addresses(config) {
                routes.entry((address, key.port)).or_default().push(Route {
                    zone: key.zone.clone(),
                    block: Arc::clone(block),
                    counters,
                });
            }
        }
    }
    let served = routes.into_iter().map(|((address, port), routes)| {
        let unserved = label_index(labels, port, "dropped".to_owned());
        ((address, port), Server::new(routes, unserved))
    });
    served.collect()
}

fn label_index(labels: &mut Vec<ZoneLabel>, port: u16, zone: String) -> usize {
    let label = ZoneLabel {
        server: format!("dns://:{port}"),
        zone,
    };
    labels
        .iter()
        .position(|known| *known == label)
        .unwrap_or_else(|| {
            labels.push(label);
            labels.len() - 1
        })
}

fn addresses(config: &ServerBlock) -> Vec<IpAddr> {
    if config.bind.is_empty() {
        serve::everywhere()
    } else {
        config.bind.clone()
    }
}

/// Sees that every address is free, before anything is opened: the sockets of one address would stand in the way of
/// another's. Tells the port of those that left it to the kernel.
fn free_addresses(corefile: &Corefile) -> Result<BTreeMap<(IpAddr, u16), SocketAddr>, ServeError> {
    let mut free = BTreeMap::new();
    for config in &corefile.blocks {
        for key in &config.keys {
            for address in addresses(config) {
                let wanted = (address, key.port);
                if let Entry::Vacant(entry) = free.entry(wanted) {
                    entry.insert(serve::probe(wanted.into())?);
                }
            }
        }
    }
    Ok(free)
}

fn listen(
    servers: BTreeMap<(IpAddr, u16), Server>,
    free: &BTreeMap<(IpAddr, u16), SocketAddr>,
) -> Result<Vec<Listening>, ServeError> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut listeners = Vec::new();
    for (wanted, server) in servers {
        let address = free.get(&wanted).copied().unwrap_or(wanted.into());
        let tcp = serve::tcp_listener(address)?;
        let tcp = TcpListener::from_std(tcp).map_err(|source| ServeError::Listen {
            address,
            transport: "tcp",
            source,
        })?;
        let udp = serve::udp_sockets(address, threads)?;
        listeners.push(Listening {
            address,
            server: Arc::new(server),
            udp,
            tcp,
        });
    }
    Ok(listeners)
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

/// One thread for each socket of an address.
fn start_threads(
    address: SocketAddr,
    sockets: Vec<OwnedFd>,
    server: &Arc<Server>,
    worker: impl Fn() -> Worker,
    waiting: &mpsc::Sender<udp::Waiting>,
    stop: &Arc<AtomicBool>,
) -> Result<Vec<JoinHandle<()>>, Error> {
    let is_wildcard = address.ip().is_unspecified();
    let mut threads = Vec::new();
    for (index, socket) in sockets.into_iter().enumerate() {
        let (server, waiting, stop) = (Arc::clone(server), waiting.clone(), Arc::clone(stop));
        let listener = udp::Listener::new(socket, server, worker(), waiting, stop, is_wildcard)
            .map_err(|errno| ServeError::new(address, "udp", errno))?;
        let thread = std::thread::Builder::new().name(format!("dns-udp-{index}"));
        threads.push(
            thread
                .spawn(move || listener.run())
                .map_err(|source| Error::Thread { source })?,
        );
    }
    Ok(threads)
}

async fn serve_http(listener: TcpListener, router: axum::Router, ended: CancellationToken) {
    let served = axum::serve(listener, router).with_graceful_shutdown(ended.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "http endpoint ended");
    }
}

async fn join_all(threads: Vec<JoinHandle<()>>, mut tasks: JoinSet<()>) {
    let joined = tokio::task::spawn_blocking(move || {
        threads
            .into_iter()
            .filter_map(|thread| thread.join().err())
            .count()
    });
    match joined.await {
        Ok(0) => {}
        other => tracing::error!(?other, "a serving thread panicked"),
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a task panicked");
        }
    }
}
