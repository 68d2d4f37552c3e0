//! The kubelet's own API on port 10250: logs, pods, health, [`figures`], and [`streams`]. Only for who proves to be of the cluster's
//! administration by a client certificate: whoever may talk to a kubelet reads every pod's output.

use std::io;
use std::net::SocketAddr;
use std::path::Path as FsPath;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use futures::Stream;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::board::{Board, ContainerLogs};
use crate::config::Config;
use crate::figures::{self, Figures};
use crate::logs::{LogOptions, LogReader};
use crate::network_ready::InotifyFd;
use crate::readiness::readable;
use crate::streams::{self, Streaming};

/// The group that may use this API.
const ALLOWED_GROUP: &str = "system:masters";

/// Whoever connects and says nothing is sent away after this.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// After an accept that failed (too many open files) the next is tried after this time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the API is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address.
    #[error("listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        #[source]
        /// Why not.
        source: io::Error,
    },
    /// Certificates.
    #[error("TLS files of the kubelet: {0}")]
    Tls(String),
}

/// Serves until the shutdown.
pub async fn serve(config: &Config, streaming: Streaming) -> Result<(), ServerError> {
    let shutdown = streaming.shutdown.clone();
    let acceptor = TlsAcceptor::from(Arc::new(tls(config)?));
    let address = SocketAddr::new(config.node_ip, config.port);
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| ServerError::Listen { address, source })?;
    let router = router(streaming);
    tracing::info!(%address, "kubelet API listening");
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                let connection = serve_connection(acceptor.clone(), stream, router.clone());
                let shutdown = shutdown.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        outcome = connection => if let Err(error) = outcome {
                            tracing::debug!(%client, error, "connection ended");
                        }
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(acceptor: TlsAcceptor, stream: TcpStream, router: Router) -> Result<(), String> {
    let stream = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream))
        .await
        .map_err(|_| "no TLS handshake in time".to_owned())?
        .map_err(|error| error.to_string())?;
    let allowed = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .is_some_and(|certificate| is_allowed(certificate));
    let router = if allowed {
        router
    } else {
        Router::new().fallback(forbidden)
    };
    let service = TowerToHyperService::new(router);
    Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await
        .map_err(|error| error.to_string())
}

async fn forbidden() -> Response {
    (
        StatusCode::FORBIDDEN,
        format!("Forbidden: only the group {ALLOWED_GROUP} may use the kubelet's API\n"),
    )
        .into_response()
}

fn is_allowed(certificate: &CertificateDer) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
        return false;
    };
    let mut groups = parsed.subject().iter_organization();
    groups.any(|group| group.as_str() == Ok(ALLOWED_GROUP))
}

fn tls(config: &Config) -> Result<rustls::ServerConfig, ServerError> {
    let failed = |what: &FsPath, error: &dyn std::fmt::Display| {
        ServerError::Tls(format!("{}: {error}", what.display()))
    };
    let certificates = |path: &FsPath| -> Result<Vec<CertificateDer<'static>>, ServerError> {
        CertificateDer::pem_file_iter(path)
            .and_then(|certificates| certificates.collect())
            .map_err(|error| failed(path, &error))
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&config.client_ca)? {
        roots
            .add(certificate)
            .map_err(|error| failed(&config.client_ca, &error))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| failed(&config.client_ca, &error))?;
    let key = PrivateKeyDer::from_pem_file(&config.key).map_err(|error| failed(&config.key, &error))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&config.cert, &error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&config.cert)?, key)
        .map_err(|error| failed(&config.cert, &error))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

fn router(streaming: Streaming) -> Router {
    let board = streaming.board.clone();
    let figures = Figures::new(Arc::clone(&streaming.config), board.clone());
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/pods", get(pods))
        .route(
            "/containerLogs/{namespace}/{pod}/{container}",
            get(container_logs),
        )
        .with_state(board)
        .merge(figures::router(figures))
        .merge(streams::router(streaming))
}

async fn pods(State(board): State<Board>) -> Json<serde_json::Value> {
    Json(json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": board.pods() }))
}

async fn container_logs(
    State(board): State<Board>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(options): Query<LogOptions>,
) -> Response {
    let refused = |code, text: String| (code, text + "\n").into_response();
    let Some(logs) = board.container(&namespace, &pod, &container).await else {
        let text = format!("container \"{container}\" of pod \"{namespace}/{pod}\" not found on this node");
        return refused(StatusCode::NOT_FOUND, text);
    };
    let attempt = match (options.previous, logs.attempt) {
        (false, Some(attempt)) => attempt,
        (true, Some(attempt)) if attempt > 0 => attempt - 1,
        (true, _) => {
            let text = format!("previous terminated container \"{container}\" in pod \"{pod}\" not found");
            return refused(StatusCode::BAD_REQUEST, text);
        }
        (false, None) => {
            // `validateContainerLogStatus` of `pkg/kubelet`.
            let why = match logs.waiting.as_str() {
                "ErrImagePull" => "image can't be pulled",
                "ImagePullBackOff" => "trying and failing to pull image",
                reason => reason,
            };
            let text = if why.is_empty() {
                format!("container \"{container}\" in pod \"{pod}\" is terminated")
            } else {
                format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {why}")
            };
            return refused(StatusCode::BAD_REQUEST, text);
        }
    };
    let path = logs.directory.join(format!("{attempt}.log"));
    match LogReader::open(&path, &options, Timestamp::now()) {
        Err(error) => refused(StatusCode::NOT_FOUND, format!("{}: {error}", path.display())),
        Ok(reader) => {
            let (chunks, body) = mpsc::channel(4);
            let follow = options.follow && !options.previous;
            let subject = Subject {
                board,
                namespace,
                pod,
                container,
                attempt,
                directory: logs.directory,
            };
            tokio::spawn(async move {
                if let Err(error) = send_log(reader, follow, &subject, &chunks).await {
                    let _ = chunks.send(Err(error)).await;
                }
            });
            let headers = [("content-type", "text/plain; charset=utf-8")];
            (headers, Body::from_stream(stream_of(body))).into_response()
        }
    }
}

/// Whose log is followed.
struct Subject {
    board: Board,
    namespace: String,
    pod: String,
    container: String,
    attempt: u32,
    directory: std::path::PathBuf,
}

impl Subject {
    fn is_running(&self) -> bool {
        let entries = self.board.subscribe();
        let logs = Board::logs(&entries.borrow(), &self.namespace, &self.pod, &self.container);
        let is_now = |logs: &ContainerLogs| logs.running && logs.attempt == Some(self.attempt);
        logs.as_ref().is_some_and(is_now)
    }
}

/// Sends what is there; when following, also what comes, until the container has ended or nobody listens.
async fn send_log(
    mut reader: LogReader,
    follow: bool,
    subject: &Subject,
    chunks: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let changes = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_FROM;
    inotify.add_watch(&subject.directory, changes)?;
    let inotify = readable(InotifyFd(inotify))?;
    let mut board = subject.board.subscribe();
    loop {
        // Asked before reading: what the container wrote before it ended is then certainly read.
        let running = subject.is_running();
        let text = reader.read_available()?;
        if !text.is_empty() && chunks.send(Ok(Bytes::from(text))).await.is_err() {
            return Ok(());
        }
        if !follow || !running || reader.is_full() {
            return Ok(());
        }
        tokio::select! {
            () = chunks.closed() => return Ok(()),
            changed = board.changed() => if changed.is_err() { return Ok(()) },
            guard = inotify.readable() => {
                let mut guard = guard?;
                while inotify.get_ref().0.read_events().is_ok_and(|events| !events.is_empty()) {}
                guard.clear_ready();
            }
        }
    }
}

fn stream_of(receiver: mpsc::Receiver<io::Result<Bytes>>) -> impl Stream<Item = io::Result<Bytes>> {
    futures::stream::unfold(receiver, |mut receiver| async move {
        let chunk = receiver.recv().await?;
        Some((chunk, receiver))
    })
}
