//! What serves: listeners by address, endpoints, feeds, and the chain that they all look at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::prepare::{self, FeedKey, Opened, Prepared, Probe, Wanted};
use crate::Error;
use crate::chain::{Block, Server, Worker};
use crate::corefile::{Corefile, Scheme, ServerBlock};
use crate::feed::{Served, Source, Watcher};
use crate::http::{self, Endpoints};
use crate::kubernetes::Objects;
use crate::metrics::Registry;
use crate::serve::drops::{self, Inode};
use crate::serve::{LAST_ANSWERS, ServeError, tcp, udp};
use crate::state::State;

/// Queries that may wait for a task to take them; what is beyond is dropped and counted.
const WAITING: usize = 4096;
/// How often it is seen whether the objects that are waited for are there.
const OBJECTS_CHECK: Duration = Duration::from_millis(10);

/// A server with everything that it has started.
pub(super) struct Running {
    corefile: Corefile,
    blocks: Vec<Arc<Block>>,
    state: Arc<State>,
    listeners: BTreeMap<Wanted, Listening>,
    http: BTreeMap<SocketAddr, CancellationToken>,
    feeds: BTreeMap<FeedKey, (Arc<Source>, CancellationToken)>,
    watcher: Option<Arc<Watcher>>,
    /// Where clients shall come.
    served: watch::Sender<Served>,
    /// Ends what the current chain does by itself.
    chain: CancellationToken,
    /// Ends everything.
    ended: CancellationToken,
    waiting: mpsc::Sender<udp::Waiting>,
    queue: Option<mpsc::Receiver<udp::Waiting>>,
    tasks: JoinSet<()>,
}

/// One address that is served.
struct Listening {
    address: SocketAddr,
    server: Arc<ArcSwap<Server>>,
    tls: Option<Arc<ArcSwap<ServerConfig>>>,
    /// The UDP sockets.
    sockets: BTreeSet<Inode>,
    stop: Arc<AtomicBool>,
    ended: CancellationToken,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    /// Nothing yet. `watcher` watches the API servers that a configuration names.
    pub(super) fn new(watcher: Option<Arc<Watcher>>) -> Self {
        let (waiting, queue) = mpsc::channel(WAITING);
        let ended = CancellationToken::new();
        Self {
            corefile: Corefile::default(),
            blocks: Vec::new(),
            state: Arc::new(State::new(Registry::new(Vec::new()))),
            listeners: BTreeMap::new(),
            http: BTreeMap::new(),
            feeds: BTreeMap::new(),
            watcher,
            served: watch::Sender::default(),
            chain: ended.child_token(),
            ended,
            waiting,
            queue: Some(queue),
            tasks: JoinSet::new(),
        }
    }

    pub(super) fn corefile(&self) -> &Corefile {
        &self.corefile
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.state.registry
    }

    pub(super) fn serves(&self, wanted: &Wanted) -> bool {
        self.listeners.contains_key(wanted)
    }

    /// The addresses that are served.
    pub(super) fn served(&self) -> Vec<SocketAddr> {
        self.listeners
            .values()
            .map(|listening| listening.address)
            .collect()
    }

    pub(super) fn has_http(&self, address: &SocketAddr) -> bool {
        self.http.contains_key(address)
    }

    /// The addresses that have HTTP, as the Corefile writes them.
    pub(super) fn served_http(&self) -> Vec<SocketAddr> {
        self.http.keys().copied().collect()
    }

    pub(super) fn watcher(&self) -> Option<&Watcher> {
        self.watcher.as_deref()
    }

    /// What a feed that is followed has said.
    pub(super) fn source(&self, key: &FeedKey) -> Option<Arc<Source>> {
        self.feeds.get(key).map(|(source, _)| Arc::clone(source))
    }

    /// What a feed has said that differs at most in whether it keeps the names of pods.
    pub(super) fn source_of_like(&self, objects: &Objects) -> Option<Arc<Source>> {
        let named = |objects: &Objects| objects.clone().with_pod_names();
        let mut feeds = self.feeds.iter();
        let (_, (source, _)) = feeds.find(|((own, _), _)| named(own) == named(objects))?;
        Some(Arc::clone(source))
    }

    /// The block that serves the same zones at the same addresses now.
    pub(super) fn block_like(&self, config: &ServerBlock) -> Option<Arc<Block>> {
        let own = |old: &ServerBlock| old.keys == config.keys && old.bind == config.bind;
        let index = self.corefile.blocks.iter().position(own)?;
        self.blocks.get(index).cloned()
    }

    /// Tells the agent, and whoever asks for readiness, that this server ends; who comes nevertheless is served.
    pub(super) fn note_ending(&self) {
        self.served.send_replace(Served::new());
        self.state.note_ending();
    }

    pub(super) fn note_refused(&self) {
        self.state.refused_reloads.fetch_add(1, Ordering::Relaxed);
    }

    /// Puts a configuration in the place of the one that is served. Where something of it cannot be had, nothing
    /// changes.
    pub(super) async fn change_to(
        &mut self,
        corefile: &Corefile,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        let mut prepared = self.prepare(corefile)?;
        self.follow(&mut prepared);
        prepared.wait_for_objects(shutdown).await;
        // From here on the new sockets have queries.
        if let Err(error) = self.open(&mut prepared) {
            self.keep_feeds(&prepare::feeds(&self.corefile));
            return Err(error);
        }
        self.commit(prepared)
    }

    /// Begins to follow what is new.
    pub(super) fn follow(&mut self, prepared: &mut Prepared) {
        for (key, follower) in std::mem::take(&mut prepared.followers) {
            let ended = self.ended.child_token();
            self.feeds.insert(key, (follower.source(), ended.clone()));
            self.tasks.spawn(follower.run(self.served.subscribe(), ended));
        }
    }

    /// Serves a configuration, whose feeds are followed, from now on. No socket that it still wants is closed.
    ///
    /// # Errors
    /// When a thread cannot be started; nothing has changed then.
    pub(super) fn commit(&mut self, prepared: Prepared) -> Result<(), Error> {
        let Prepared {
            corefile,
            blocks,
            mut servers,
            identities,
            opened,
            endpoints,
            http,
            followers: _,
            awaited: _,
            feeds,
            probes,
        } = prepared;
        if let Some(queue) = self.queue.take() {
            self.tasks
                .spawn(udp::answer_waiting(queue, self.state.registry.shard()));
        }
        // What can fail comes first.
        let new = match self.start_all(&mut servers, &identities, opened) {
            Ok(new) => new,
            Err(error) => {
                self.keep_feeds(&prepare::feeds(&self.corefile));
                return Err(error);
            }
        };
        self.keep_feeds(&feeds);
        self.state.set(blocks.clone(), self.sources(), endpoints.clone());
        self.serve(servers, &identities);
        self.listeners.extend(new);
        let sockets = self.listeners.values().flat_map(|listening| &listening.sockets);
        self.state.set_sockets(sockets.copied().collect());
        self.serve_pages(http, &endpoints);
        self.start_chain(&blocks, probes);
        (self.blocks, self.corefile) = (blocks, corefile);
        let listeners = self.listeners.iter();
        let plain = listeners.filter(|(wanted, _)| wanted.scheme == Scheme::Dns);
        self.served
            .send_replace(plain.map(|(_, listening)| listening.address).collect());
        self.reap();
        Ok(())
    }

    /// Serves HTTP where that is new, and ends it where nobody wants it.
    fn serve_pages(
        &mut self,
        new: BTreeMap<SocketAddr, TcpListener>,
        wanted: &BTreeMap<SocketAddr, Endpoints>,
    ) {
        for (address, listener) in new {
            let ended = self.ended.child_token();
            self.http.insert(address, ended.clone());
            self.tasks
                .spawn(serve_http(address, listener, Arc::clone(&self.state), ended));
        }
        self.http
            .retain(|address, ended| wanted.contains_key(address) || cancel(ended));
    }

    /// Starts what blocks do by themselves, in the place of what those before did.
    fn start_chain(&mut self, blocks: &[Arc<Block>], probes: Vec<Probe>) {
        self.chain.cancel();
        self.chain = self.ended.child_token();
        for block in blocks {
            let (block, chain) = (Arc::clone(block), self.chain.clone());
            self.tasks
                .spawn(async move { _ = chain.run_until_cancelled(block.background()).await });
        }
        for (probe, forwards, zone) in probes {
            let chain = self.chain.clone();
            self.tasks
                .spawn(async move { _ = chain.run_until_cancelled(probe.follow(forwards, &zone)).await });
        }
    }

    fn sources(&self) -> Vec<(String, Arc<Source>)> {
        let sources = self.feeds.iter();
        sources
            .map(|((objects, _), (source, _))| (objects.to_string(), Arc::clone(source)))
            .collect()
    }

    /// Ends the feeds that are not among these; where one of these has its objects from the same place, not before that
    /// one does.
    fn keep_feeds(&mut self, wanted: &BTreeSet<FeedKey>) {
        let unwanted = self.feeds.extract_if(.., |key, _| !wanted.contains(key));
        for ((objects, _), (source, ended)) in unwanted.collect::<Vec<_>>() {
            match self.source_of_like(&objects) {
                Some(successor) => drop(self.tasks.spawn(hand_over(source, successor, ended))),
                None => ended.cancel(),
            }
        }
    }

    /// Gives every address that goes on its chain, and ends those that nobody wants.
    fn serve(
        &mut self,
        mut servers: BTreeMap<Wanted, Server>,
        identities: &BTreeMap<Wanted, Arc<ServerConfig>>,
    ) {
        let unwanted = self
            .listeners
            .extract_if(.., |wanted, _| !servers.contains_key(wanted));
        for (_, listening) in unwanted.collect::<Vec<_>>() {
            self.stop(listening);
        }
        for (wanted, listening) in &self.listeners {
            if let Some(server) = servers.remove(wanted) {
                listening.server.store(Arc::new(server));
            }
            if let Some((tls, identity)) = listening.tls.as_ref().zip(identities.get(wanted)) {
                tls.store(Arc::clone(identity));
            }
        }
    }

    /// Has an address answer what it was asked, and end.
    fn stop(&mut self, listening: Listening) {
        let lost = drops::dropped(&listening.sockets);
        self.state.lost_before.fetch_add(lost, Ordering::Relaxed);
        listening.stop.store(true, Ordering::Relaxed);
        listening.ended.cancel();
        self.tasks.spawn(join(listening.threads));
    }

    /// Starts every address that was opened, each with its chain of `servers`; all of them, or none.
    fn start_all(
        &mut self,
        servers: &mut BTreeMap<Wanted, Server>,
        identities: &BTreeMap<Wanted, Arc<ServerConfig>>,
        opened: BTreeMap<Wanted, Opened>,
    ) -> Result<BTreeMap<Wanted, Listening>, Error> {
        let mut started = BTreeMap::new();
        for (wanted, opened) in opened {
            let Some(server) = servers.remove(&wanted) else {
                continue;
            };
            match self.start(server, identities.get(&wanted), opened) {
                Ok(listening) => drop(started.insert(wanted, listening)),
                Err(error) => {
                    for (_, listening) in started {
                        self.stop(listening);
                    }
                    return Err(error);
                }
            }
        }
        Ok(started)
    }

    /// Starts an address's threads, one for each socket, and its connections.
    fn start(
        &mut self,
        server: Server,
        identity: Option<&Arc<ServerConfig>>,
        opened: Opened,
    ) -> Result<Listening, Error> {
        let mut listening = Listening {
            address: opened.address,
            server: Arc::new(ArcSwap::from_pointee(server)),
            tls: identity.map(|identity| Arc::new(ArcSwap::new(Arc::clone(identity)))),
            sockets: opened.udp.iter().filter_map(drops::inode).collect(),
            stop: Arc::default(),
            ended: self.ended.child_token(),
            threads: Vec::new(),
        };
        for (index, socket) in opened.udp.into_iter().enumerate() {
            match self.start_thread(index, socket, &listening) {
                Ok(thread) => listening.threads.push(thread),
                Err(error) => {
                    self.stop(listening);
                    return Err(error);
                }
            }
        }
        let streams = tcp::Listening {
            server: Arc::clone(&listening.server),
            tls: listening.tls.clone(),
            shard: self.state.registry.shard(),
            shutdown: listening.ended.clone(),
        };
        self.tasks.spawn(tcp::serve(opened.tcp, streams));
        Ok(listening)
    }

    fn start_thread(
        &self,
        index: usize,
        socket: OwnedFd,
        listening: &Listening,
    ) -> Result<JoinHandle<()>, Error> {
        let address = listening.address;
        let listener = udp::Listener::new(
            socket,
            Arc::clone(&listening.server),
            Worker::new(self.state.registry.shard()),
            self.waiting.clone(),
            Arc::clone(&listening.stop),
            address.ip().is_unspecified(),
        );
        let listener = listener.map_err(|errno| ServeError::new(address, "udp", errno))?;
        let thread = std::thread::Builder::new().name(format!("dns-udp-{index}"));
        thread
            .spawn(move || listener.run())
            .map_err(|source| Error::Thread { source })
    }

    /// Ends everything that was started, and waits for it, for the answers to what was asked not for ever.
    pub(super) async fn end(mut self) {
        for listening in self.listeners.values_mut() {
            listening.stop.store(true, Ordering::Relaxed);
        }
        self.ended.cancel();
        drop(self.waiting);
        let listeners = self.listeners.into_values();
        let threads = listeners.flat_map(|listening| listening.threads).collect();
        let tasks = async {
            join(threads).await;
            while let Some(ended) = self.tasks.join_next().await {
                if let Err(error) = ended {
                    tracing::error!(%error, "a task panicked");
                }
            }
        };
        if tokio::time::timeout(LAST_ANSWERS, tasks).await.is_err() {
            tracing::warn!("ended before everything that was asked was answered");
        }
    }

    /// Forgets the tasks that ended.
    fn reap(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "a task panicked");
            }
        }
    }
}

impl Prepared {
    /// Waits until each new source is complete, or its time is over. At the start clients' queries wait in their
    /// sockets meanwhile; at a reload the configuration before answers them.
    pub(super) async fn wait_for_objects(&self, shutdown: &CancellationToken) {
        let started = Instant::now();
        let is_due =
            |(source, timeout): &(Arc<Source>, Duration)| source.is_synced() || started.elapsed() >= *timeout;
        while !self.awaited.iter().all(is_due) {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(OBJECTS_CHECK) => {}
            }
        }
        if self.awaited.iter().any(|(source, _)| !source.is_synced()) {
            tracing::warn!(
                "starting before the cluster's objects are known; names that are not yet get SERVFAIL"
            );
        }
    }
}

/// Ends a feed once its successor is connected: an agent that heard of this server from nobody for a moment would lead
/// clients elsewhere.
async fn hand_over(old: Arc<Source>, successor: Arc<Source>, ended: CancellationToken) {
    while old.is_connected() && !successor.is_connected() {
        tokio::select! {
            () = ended.cancelled() => return,
            () = tokio::time::sleep(OBJECTS_CHECK) => {}
        }
    }
    ended.cancel();
}

/// Cancels, and says that it is not to be kept.
fn cancel(token: &CancellationToken) -> bool {
    token.cancel();
    false
}

/// Ends at once, and its connections with it: a client that waits for nothing would hold the end up.
async fn serve_http(address: SocketAddr, listener: TcpListener, state: Arc<State>, ended: CancellationToken) {
    let bound = listener.local_addr().unwrap_or(address);
    let served = http::serve(listener, http::router(address, &state));
    let checked = http::check_health(address, bound, state);
    let both = async { tokio::join!(served, checked) };
    ended.run_until_cancelled(both).await;
}

async fn join(threads: Vec<JoinHandle<()>>) {
    let joined = tokio::task::spawn_blocking(move || {
        let panicked = threads.into_iter().filter_map(|thread| thread.join().err());
        panicked.count()
    });
    match joined.await {
        Ok(0) => {}
        other => tracing::error!(?other, "a serving thread panicked"),
    }
}
