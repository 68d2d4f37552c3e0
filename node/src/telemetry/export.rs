//! Takes spans to the collector.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Collected, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::Connect;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use super::otlp::{self, Partial};
use super::spans::Span;
use crate::backoff::Backoff;

/// Spans of one request, at most.
const BATCH: usize = 512;
/// How long spans wait for others.
const GATHERED: Duration = Duration::from_secs(1);
/// A collector that does not answer in this time is away.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the last spans are tried to be sent when the agent ends.
const LAST_SPANS: Duration = Duration::from_secs(1);
/// More of an answer is not read.
const LONGEST_ANSWER: usize = 64 * 1024;
/// Delays before a request is made again.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Spans that ended.
#[derive(Clone, Debug)]
pub struct Traces {
    spans: Arc<Mutex<mpsc::Receiver<Span>>>,
    dropped: Arc<AtomicU64>,
}

/// Where they go.
#[derive(Clone, Debug)]
pub struct Export {
    /// The collector's `/v1/traces`.
    pub url: Uri,
    /// Certificates of the authorities, of which one signed the collector's. None = the system's.
    pub ca_file: Option<PathBuf>,
    /// The node's name.
    pub node: String,
}

/// Why a request did not deliver its spans.
enum Failed {
    /// It is worth to make it again, and not before that time.
    ForNow(anyhow::Error, Duration),
    /// The collector will not take this many of them.
    ForGood(anyhow::Error, u64),
}

impl Traces {
    pub(super) fn new(spans: mpsc::Receiver<Span>, dropped: Arc<AtomicU64>) -> Self {
        Self {
            spans: Arc::new(Mutex::new(spans)),
            dropped,
        }
    }

    /// Spans so far that no collector was told of.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Exports until shutdown, and then what is left; `told` is told how that goes.
    ///
    /// # Errors
    /// When the authorities' certificates cannot be read.
    pub async fn export(
        &self,
        export: Export,
        told: impl Fn(Result<(), &str>),
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let client = export.client()?;
        let mut spans = self.spans.lock().await;
        let mut batch = Vec::new();
        told(Ok(()));
        loop {
            let ends = shutdown.run_until_cancelled(gather(&mut spans, &mut batch)).await;
            if ends.is_none() {
                while spans.try_recv().map(|span| batch.push(span)).is_ok() {}
            }
            let ending = async {
                shutdown.cancelled().await;
                tokio::time::sleep(LAST_SPANS).await;
            };
            tokio::select! {
                () = self.deliver(&client, &export, &batch, &told) => {}
                () = ending => {
                    tracing::debug!("the last spans do not reach the collector");
                    return Ok(());
                }
            }
            if ends.is_none() {
                return Ok(());
            }
            batch.clear();
        }
    }

    /// Sends a batch, again and again if need be.
    async fn deliver<C: Connect + Clone + Send + Sync + 'static>(
        &self,
        client: &Client<C, Body>,
        export: &Export,
        batch: &[Span],
        told: &impl Fn(Result<(), &str>),
    ) {
        if batch.is_empty() {
            return;
        }
        let body = otlp::body(&export.node, batch).to_string();
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        loop {
            let sent = tokio::time::timeout(ANSWER, send(client, export, &body, batch.len() as u64)).await;
            let failed = sent.unwrap_or_else(|_| {
                let silent = anyhow::anyhow!("{} does not answer", export.url);
                Err(Failed::ForNow(silent, Duration::ZERO))
            });
            match failed {
                Ok(()) => return told(Ok(())),
                Err(Failed::ForGood(error, refused)) => {
                    self.dropped.fetch_add(refused, Ordering::Relaxed);
                    return told(Err(&format!("{error:#}")));
                }
                Err(Failed::ForNow(error, not_before)) => {
                    told(Err(&format!("{error:#}")));
                    tokio::time::sleep(backoff.next_delay().max(not_before)).await;
                }
            }
        }
    }
}

impl Export {
    /// By TLS as kube has it for the API server.
    fn client(&self) -> anyhow::Result<Client<impl Connect + Clone + Send + Sync + 'static, Body>> {
        let mut config = kube::Config::new(self.url.clone());
        if let Some(path) = &self.ca_file {
            let certificates =
                authorities(path).with_context(|| format!("telemetry.caFile {}", path.display()))?;
            config.root_cert = Some(certificates);
        }
        let connector = config.rustls_https_connector().context("TLS for the collector")?;
        Ok(Client::builder(TokioExecutor::new()).build(connector))
    }
}

/// The certificates of a file, in DER.
fn authorities(path: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let certificates = CertificateDer::pem_file_iter(path)?;
    let certificates: Vec<_> = certificates
        .map(|certificate| certificate.map(|certificate| certificate.to_vec()))
        .collect::<Result<_, _>>()?;
    ensure!(!certificates.is_empty(), "no certificate is in it");
    Ok(certificates)
}

/// Fills a batch.
async fn gather(spans: &mut mpsc::Receiver<Span>, batch: &mut Vec<Span>) {
    let first = spans.recv().await;
    let Some(first) = first else {
        return std::future::pending().await;
    };
    batch.push(first);
    let rest = async {
        while batch.len() < BATCH
            && let Some(span) = spans.recv().await
        {
            batch.push(span);
        }
    };
    // A batch that is not full is one, too.
    let _ = tokio::time::timeout(GATHERED, rest).await;
}

/// Sends this many spans.
async fn send<C: Connect + Clone + Send + Sync + 'static>(
    client: &Client<C, Body>,
    export: &Export,
    body: &str,
    spans: u64,
) -> Result<(), Failed> {
    let request = Request::post(export.url.clone())
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from(body.as_bytes().to_vec()))
        .context("make the request")
        .map_err(|error| Failed::ForGood(error, spans))?;
    let answer = client.request(request).await;
    let answer = answer
        .with_context(|| format!("send spans to {}", export.url))
        .map_err(|error| Failed::ForNow(error, Duration::ZERO))?;
    let refused = |code| anyhow::anyhow!("{} answers {code}", export.url);
    match answer.status() {
        code if code.is_success() => {
            // Whatever came of the answer, the spans are not to be sent again.
            let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
            let body = body.map(Collected::to_bytes).unwrap_or_default();
            let Partial { rejected, message } = otlp::partial_success(&body);
            if rejected == 0 {
                return Ok(());
            }
            let refused = format!(
                "{} takes all but {rejected} of {spans} spans: {message}",
                export.url
            );
            Err(Failed::ForGood(anyhow::Error::msg(refused), rejected.min(spans)))
        }
        // Those by which a collector asks for another try (OTLP, "Failures").
        code @ (StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT) => {
            let after = answer.headers().get(RETRY_AFTER);
            let seconds = after.and_then(|after| after.to_str().ok()?.parse().ok());
            let not_before = Duration::from_secs(seconds.unwrap_or(0)).min(LONGEST_RETRY);
            Err(Failed::ForNow(refused(code), not_before))
        }
        code => Err(Failed::ForGood(refused(code), spans)),
    }
}
