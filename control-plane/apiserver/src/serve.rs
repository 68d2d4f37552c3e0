//! Listeners, TLS, and the tasks that run as long as the server does.

mod connections;
mod socket;

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::io::Errno;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, Bounds};
use crate::authn::User;
use crate::compaction::{self, Compaction};
use crate::config::{Config, Limits};
use crate::kubelet::{Kubelets, Reach};
use crate::metrics::Figures;
use crate::open_files;
use crate::openapi::Documents;
use crate::rbac::{self, Authorizer};
use crate::resources::Registry;
use crate::services::Ranges;
use crate::storage::{Storage, StorageError};
use crate::tokens::{TokenError, Tokens};
use crate::watch_cache::Caches;
pub(crate) use connections::Busy;
use connections::{Connections, Seat};
use socket::Socket;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_STREAMS: u32 = 1000;
const PING_EVERY: Duration = Duration::from_secs(30);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_secs(1);
/// How often the first objects are looked for again (`systemnamespaces.NewController`).
const FOUND_EVERY: Duration = Duration::from_secs(60);

/// The server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address is taken or not ours.
    #[error("listen on {address}")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A certificate or key file is missing or broken.
    #[error("read certificates or key from {path}")]
    Pem {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// Certificates and keys do not go together.
    #[error("set up TLS")]
    Tls(#[source] rustls::Error),
    /// The CA cannot verify client certificates.
    #[error("use {path} as client CA")]
    ClientCa {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: rustls::server::VerifierBuilderError,
    },
    /// The store's settings are not usable.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The token key is not usable.
    #[error(transparent)]
    Tokens(#[from] TokenError),
}

/// An API server that holds its addresses.
pub struct Server {
    listeners: Vec<TcpListener>,
    tls: TlsAcceptor,
    api: Arc<Api>,
    limits: Limits,
    shutdown: CancellationToken,
}

/// Binds and runs until `shutdown`.
pub async fn serve(config: Config, shutdown: CancellationToken) -> Result<(), ServeError> {
    Server::bind(config).await?.run(shutdown).await
}

impl Server {
    /// Takes the addresses and reads all files; etcd need not be there yet, unless it has to let a user in.
    pub async fn bind(config: Config) -> Result<Self, ServeError> {
        let tls = TlsAcceptor::from(Arc::new(server_tls(&config)?));
        let kubelets = Kubelets::new(
            Arc::new(kubelet_tls(&config)?),
            Reach {
                own: config.listen.clone(),
                nearby: config.nearby_nodes.clone(),
            },
        );
        let tokens = Tokens::load(&config.sa_signing_key, &config.sa_issuer)?;
        let mut listeners = Vec::new();
        for address in &config.listen {
            let bound = TcpListener::bind(address).await;
            listeners.push(bound.map_err(|source| ServeError::Listen {
                address: *address,
                source,
            })?);
        }
        let storage = Storage::connect(&config.etcd).await?;
        let registry = Registry::global();
        let caches = Caches::new(registry, &storage);
        let shutdown = CancellationToken::new();
        let ranges = Ranges {
            cidrs: config.service_cidrs,
            ports: config.node_port_range,
        };
        let api = Api {
            registry,
            storage,
            caches,
            tokens,
            kubelets,
            authorizer: Authorizer::default(),
            figures: Figures::default(),
            ranges,
            bounds: Bounds::new(&config.limits),
            documents: Arc::new(Documents::new(&config.features)),
            features: config.features,
            founded: AtomicBool::new(false),
            shutdown: shutdown.clone(),
        };
        Ok(Server {
            listeners,
            tls,
            api: Arc::new(api),
            limits: config.limits,
            shutdown,
        })
    }

    /// Serves until `shutdown`; watches end at once, other requests get a moment to finish.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ServeError> {
        let Server {
            listeners,
            tls,
            api,
            limits,
            shutdown: own,
        } = self;
        let mut tasks = JoinSet::new();
        open_files::raise();
        let door = Arc::new(Door {
            tls,
            api: api.clone(),
            connections: Connections::new(open_files::connections_within(limits.connections)),
            unread_timeout: limits.unread_timeout,
        });
        for listener in listeners {
            tasks.spawn(accept(listener, door.clone(), own.clone()));
        }
        let fed = api.clone();
        let stop = own.clone();
        tasks.spawn(async move { fed.caches.feed(fed.storage.clone(), stop).await });
        let members = api.clone();
        tasks.spawn(until(own.clone(), async move {
            members.storage.follow_members().await;
        }));
        tasks.spawn(until(own.clone(), keep_first_objects(api.clone())));
        tasks.spawn(until(own.clone(), api.clone().keep_figures()));
        tasks.spawn(until(own.clone(), compact(api)));
        shutdown.cancelled().await;
        own.cancel();
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a task of the API server failed");
            }
        }
        Ok(())
    }
}

async fn until(stop: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = task => {}
    }
}

/// What connections need.
struct Door {
    tls: TlsAcceptor,
    api: Arc<Api>,
    connections: Arc<Connections>,
    unread_timeout: Duration,
}

async fn accept(listener: TcpListener, door: Arc<Door>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match door.connections.admit() {
                    Some(seat) => drop(connections.spawn(connection(stream, seat, door.clone(), stop.clone()))),
                    None => tracing::warn!("a connection was refused: all that there may be have requests"),
                },
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    if matches!(Errno::from_io_error(&error), Some(Errno::MFILE | Errno::NFILE)) {
                        door.connections.end_longest_idle();
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        connections.shutdown().await;
    }
}

async fn connection(stream: TcpStream, seat: Seat, door: Arc<Door>, stop: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let stream = Socket::new(stream, door.unread_timeout, seat.streams.clone());
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, door.tls.accept(stream));
    let stream = tokio::select! {
        () = seat.end.cancelled() => return tracing::debug!("a handshake had to go: there are too many connections"),
        done = handshake => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => return tracing::debug!("TLS handshake timed out"),
        },
    };
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    let peer = certificate.and_then(User::from_certificate);
    let end = seat.end.clone();
    let seat = Arc::new(seat);
    let service = service_fn(move |request| {
        let (api, peer, busy) = (door.api.clone(), peer.clone(), seat.busy());
        async move { Ok::<_, Infallible>(api.answer(peer, request, busy).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Every watch of a client is a stream of its one connection; pings find clients that vanished.
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(Some(PING_EVERY));
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(serving);
    tokio::select! {
        ended = &mut serving => return log_end(ended),
        () = stop.cancelled() => {}
        () = end.cancelled() => {}
    }
    serving.as_mut().graceful_shutdown();
    // Whose connection has to go gets no more time than a server that stops gives.
    match end.is_cancelled() {
        false => log_end(serving.await),
        true => drop(tokio::time::timeout(DRAIN_TIMEOUT, serving).await),
    }
}

fn log_end(ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Makes what every cluster has, and makes it again when somebody deleted it.
async fn keep_first_objects(api: Arc<Api>) {
    loop {
        make_first_objects(&api).await;
        api.founded.store(true, Ordering::Release);
        tokio::time::sleep(FOUND_EVERY).await;
    }
}

/// What every cluster has: its namespaces, the range of its ClusterIPs (KEP-1880), and its first roles.
async fn make_first_objects(api: &Api) {
    let named = |name: &str| json!({ "metadata": { "name": name } });
    let mut objects: Vec<_> = ["default", "kube-system", "kube-public", "kube-node-lease"]
        .into_iter()
        .map(|name| ("", "Namespace", "v1", named(name)))
        .collect();
    let mut range = named("kubernetes");
    range["spec"] =
        json!({ "cidrs": api.ranges.cidrs.iter().map(|cidr| cidr.to_string()).collect::<Vec<_>>() });
    objects.push(("networking.k8s.io", "ServiceCIDR", "networking.k8s.io/v1", range));
    let objects = objects.into_iter().map(|(group, kind, api_version, mut object)| {
        object["apiVersion"] = api_version.into();
        object["kind"] = kind.into();
        (group, kind, object)
    });
    let roles = rbac::first::objects()
        .into_iter()
        .map(|(kind, object)| (rbac::GROUP, kind, object));
    let made = objects.chain(roles).map(|(group, kind, object)| async move {
        while let Err(failure) = api.ensure(group, kind, object.clone()).await {
            tracing::debug!(error = %failure, kind, "first object could not be made yet");
            tokio::time::sleep(RETRY).await;
        }
    });
    join_all(made).await;
}

/// Lets etcd forget, so that it does not keep every version for ever.
async fn compact(api: Arc<Api>) {
    let mut compaction = Compaction::new(Instant::now());
    loop {
        let target = compaction.look(Instant::now(), api.caches.progress());
        if let Some(revision) = target
            && let Err(error) = api.storage.compact(revision).await
        {
            tracing::debug!(%error, revision, "compaction refused");
        }
        tokio::time::sleep(compaction::LOOK).await;
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    all.map_err(|source| ServeError::Pem {
        path: path.display().to_string(),
        source,
    })
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, ServeError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| ServeError::Pem {
        path: path.display().to_string(),
        source,
    })
}

fn roots(path: &Path) -> Result<RootCertStore, ServeError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(ServeError::Tls)?;
    }
    Ok(roots)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Client certificates are welcome but not required: pods come with tokens, probes with nothing.
fn server_tls(config: &Config) -> Result<ServerConfig, ServeError> {
    let ca = &config.client_ca;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|source| ServeError::ClientCa {
            path: ca.display().to_string(),
            source,
        })?;
    let mut tls = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(ServeError::Tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&config.cert)?, private_key(&config.key)?)
        .map_err(ServeError::Tls)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

fn kubelet_tls(config: &Config) -> Result<ClientConfig, ServeError> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(ServeError::Tls)?
        .with_root_certificates(roots(&config.client_ca)?)
        .with_client_auth_cert(
            certificates(&config.kubelet_client_cert)?,
            private_key(&config.kubelet_client_key)?,
        )
        .map_err(ServeError::Tls)
}
