//! The server: bound first, so that its addresses and its troubles are known, then run.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Clock, Config},
    disk::{self, Disk},
    engine::{Engine, WriterThread},
    grpc::Service,
    listen::{self, Connection},
    retention::Retention,
};

/// Connections that wait to be served.
const ACCEPTED: usize = 64;

/// How often leases are looked at: a key outlives its lease by this at most.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);

/// After a shutdown, answers under way get this time.
const DRAIN: Duration = Duration::from_secs(2);

/// A client that is gone without a word is noticed within twice this time.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Why the store cannot start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory: in use by another store, or the disk fails.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// An address (in use, or not to be had), or the TLS files.
    #[error(transparent)]
    Listen(#[from] listen::Error),
    /// The writer's thread cannot be started.
    #[error("cannot start the writer's thread")]
    StartWriter(#[source] io::Error),
    /// The gRPC server failed.
    #[error("the gRPC server failed")]
    Serve(#[source] tonic::transport::Error),
    /// A part of the store panicked.
    #[error("{part} panicked")]
    Panicked {
        /// Which.
        part: &'static str,
    },
}

/// A store that has its data and its addresses. Connections are accepted by the kernel already, and served by
/// [`Server::run`].
#[derive(Debug)]
pub struct Server {
    engine: Arc<Engine>,
    writer: WriterThread,
    listeners: Vec<TcpListener>,
    local_addrs: Vec<SocketAddr>,
    tls: Option<Arc<ServerConfig>>,
    config: Config,
}

/// Binds and runs a store until the token is cancelled.
pub async fn serve(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    Server::bind(config).await?.run(shutdown).await
}

impl Server {
    /// Listens on every address, opens the data directory, and reads it.
    pub async fn bind(config: Config) -> Result<Self, Error> {
        let tls = config.tls.as_ref().map(listen::tls_config).transpose()?;
        let listeners = listen::bind(&config.listen, tls.is_some()).await?;
        let mut local_addrs = Vec::with_capacity(listeners.len());
        for (listener, asked) in listeners.iter().zip(&config.listen) {
            let bound = listener
                .local_addr()
                .map_err(|source| listen::Error::Bind { addr: *asked, source })?;
            local_addrs.push(bound);
        }
        let directory = config.data_dir.clone();
        let opened = tokio::task::spawn_blocking(move || Disk::open(&directory)).await;
        let (disk, contents) = opened.map_err(|_| Error::Panicked {
            part: "reading the data",
        })??;
        let (engine, writer) = Engine::start(disk, contents, Arc::clone(&config.clock), config.quota_bytes)
            .map_err(Error::StartWriter)?;
        let engine = Arc::new(engine);
        Ok(Self {
            engine,
            writer,
            listeners,
            local_addrs,
            tls,
            config,
        })
    }

    /// Where it listens, in the order of `Config::listen`.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs
    }

    /// Serves until the token is cancelled (then answers under way get two seconds), or until the disk fails.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let stop = shutdown.child_token();
        let _stop_when_dropped = stop.clone().drop_guard();
        let service = self.service(&stop);
        let Self {
            engine,
            writer,
            listeners,
            local_addrs,
            tls,
            config,
        } = self;
        let mut tasks = JoinSet::new();
        let (accepted, connections) = mpsc::channel(ACCEPTED);
        for listener in listeners {
            tasks.spawn(listen::accept(
                listener,
                tls.clone(),
                accepted.clone(),
                stop.clone(),
            ));
        }
        drop(accepted);
        tasks.spawn(expire_leases(Arc::clone(&engine)));
        tasks.spawn(keep_history_short(
            Arc::clone(&engine),
            Retention::new(config.auto_compaction),
            config.clock,
        ));
        let writer = tokio::task::spawn_blocking({
            let stop = stop.clone();
            move || {
                let ended = writer.join();
                stop.cancel();
                ended
            }
        });
        tracing::info!(addrs = ?local_addrs, tls = tls.is_some(), revision = engine.revision(), "store is listening");
        let served = serve_connections(service, connections, &stop).await;
        tasks.shutdown().await;
        engine.stop().await;
        writer
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or(Error::Panicked { part: "the writer" })??;
        tracing::info!(revision = engine.revision(), "store has stopped");
        served
    }

    fn service(&self, stop: &CancellationToken) -> Service {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        Service {
            engine: Arc::clone(&self.engine),
            client_urls: self
                .local_addrs
                .iter()
                .map(|addr| format!("{scheme}://{addr}"))
                .collect(),
            progress_interval: self.config.progress_interval,
            shutdown: stop.clone(),
        }
    }
}

async fn serve_connections(
    service: Service,
    connections: mpsc::Receiver<io::Result<Connection>>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let serving = tonic::transport::Server::builder()
        // Every watch is a stream, and a client may put all of them on one connection.
        .max_concurrent_streams(u32::MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_routes(service.routes())
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop.cancelled());
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = serving => served.map_err(Error::Serve),
        () = drained => Ok(()),
    }
}

async fn expire_leases(engine: Arc<Engine>) {
    let mut ticks = tokio::time::interval(EXPIRY_INTERVAL);
    loop {
        ticks.tick().await;
        match engine.expire_leases().await {
            Ok(0) => {}
            Ok(leases) => tracing::debug!(leases, "leases have ended"),
            Err(_) => return,
        }
    }
}

async fn keep_history_short(engine: Arc<Engine>, mut retention: Retention, clock: Arc<dyn Clock>) {
    let Some(interval) = retention.interval() else {
        return;
    };
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        let Some(revision) = retention.look(clock.now(), engine.revision()) else {
            continue;
        };
        // Refused when a client, or the look before, has compacted as far.
        if engine.compact(revision, false).await.is_ok() {
            tracing::debug!(revision, "history is compacted");
        }
    }
}
