//! A collector of OpenTelemetry, as far as traces by OTLP over HTTP and JSON go: it keeps what it is sent.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::Listener;
use serde_json::Value;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::fake_api::tls::{self, Identity};

/// How long spans are waited for.
const DEADLINE: Duration = Duration::from_secs(30);

/// A running collector. It stops with the process.
#[derive(Debug)]
pub struct Collector {
    url: String,
    shared: Arc<Shared>,
}

/// Clients that speak no TLS, or do not like the certificate, are not waited for again.
struct TlsListener {
    listener: tokio::net::TcpListener,
    acceptor: TlsAcceptor,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<Received>,
    /// Counts requests.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Received {
    requests: Vec<Value>,
    fail_next: VecDeque<u16>,
    answer: Value,
}

impl Collector {
    /// Serves on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port can be bound or no thread started.
    pub fn start() -> io::Result<Self> {
        Self::start_on(TcpListener::bind("127.0.0.1:0")?)
    }

    /// Serves on a listener, which may have been bound in another network namespace.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start_on(listener: TcpListener) -> io::Result<Self> {
        Self::serve(listener, "http", |listener| listener)
    }

    /// Speaks TLS as this server on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When the certificate cannot be used, no port can be bound or no thread started.
    pub fn start_with_tls(server: &Identity) -> anyhow::Result<Self> {
        let acceptor = TlsAcceptor::from(tls::config(server, None)?);
        let listener = TcpListener::bind("127.0.0.1:0")?;
        Ok(Self::serve(listener, "https", |listener| TlsListener {
            listener,
            acceptor,
        })?)
    }

    fn serve<L: Listener<Addr = SocketAddr>>(
        listener: TcpListener,
        scheme: &'static str,
        speak: impl FnOnce(tokio::net::TcpListener) -> L + Send + 'static,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
        });
        let router = Router::new()
            .route("/v1/traces", post(take))
            .with_state(shared.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name("collector".into())
            .spawn(move || {
                runtime.block_on(async {
                    let listener = tokio::net::TcpListener::from_std(listener)
                        .expect("invariant: the listener is a socket");
                    axum::serve(speak(listener), router).await
                })
            })?;
        Ok(Self {
            url: format!("{scheme}://{address}"),
            shared,
        })
    }

    /// `http://ADDRESS:PORT`, with TLS `https://ADDRESS:PORT`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Answers the next requests with these codes instead of taking what they bring.
    pub fn fail_next(&self, codes: &[u16]) {
        self.shared.received().fail_next.extend(codes);
    }

    /// Answers requests that it takes with this from now on.
    pub fn answer(&self, answer: Value) {
        self.shared.received().answer = answer;
    }

    /// Bodies so far, in order.
    #[must_use]
    pub fn requests(&self) -> Vec<Value> {
        self.shared.received().requests.clone()
    }

    /// Spans so far, in order.
    #[must_use]
    pub fn spans(&self) -> Vec<Value> {
        fn list<'v>(value: &'v Value, key: &str) -> impl Iterator<Item = &'v Value> {
            value[key].as_array().into_iter().flatten()
        }
        let requests = self.requests();
        let resources = requests.iter().flat_map(|request| list(request, "resourceSpans"));
        let scopes = resources.flat_map(|resource| list(resource, "scopeSpans"));
        scopes.flat_map(|scope| list(scope, "spans")).cloned().collect()
    }

    /// Waits until the spans so far fulfil a condition.
    ///
    /// # Panics
    /// When they do not in time.
    pub async fn until(&self, what: &str, condition: impl Fn(&[Value]) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        let met = changed.wait_for(|_| condition(&self.spans()));
        let met = tokio::time::timeout(DEADLINE, met).await.is_ok();
        assert!(met, "not within {DEADLINE:?}: {what}: {:#?}", self.spans());
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<tokio::net::TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (stream, peer) = Listener::accept(&mut self.listener).await;
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Shared {
    fn received(&self) -> MutexGuard<'_, Received> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn take(State(shared): State<Arc<Shared>>, body: axum::Json<Value>) -> Response {
    let answer = {
        let mut received = shared.received();
        match received.fail_next.pop_front() {
            Some(code) => StatusCode::from_u16(code)
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
                .into_response(),
            None => {
                received.requests.push(body.0);
                axum::Json(received.answer.clone()).into_response()
            }
        }
    };
    shared.changed.send_modify(|count| *count += 1);
    answer
}
