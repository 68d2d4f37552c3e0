//! Takes spans to the collector.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::Body;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use super::otlp;
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
    /// The node's name.
    pub node: String,
}

/// Why a request did not deliver its spans.
enum Failed {
    /// It is worth to make it again, and not before that time.
    ForNow(anyhow::Error, Duration),
    /// The collector will not take them.
    ForGood(anyhow::Error),
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
    pub async fn export(&self, export: Export, told: impl Fn(Result<(), &str>), shutdown: CancellationToken) {
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
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
                    return;
                }
            }
            if ends.is_none() {
                return;
            }
            batch.clear();
        }
    }

    /// Sends a batch, again and again if need be.
    async fn deliver(
        &self,
        client: &Client<HttpConnector, Body>,
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
            let sent = tokio::time::timeout(ANSWER, send(client, export, &body)).await;
            let failed = sent.unwrap_or_else(|_| {
                let silent = anyhow::anyhow!("{} does not answer", export.url);
                Err(Failed::ForNow(silent, Duration::ZERO))
            });
            match failed {
                Ok(()) => return told(Ok(())),
                Err(Failed::ForGood(error)) => {
                    self.dropped.fetch_add(batch.len() as u64, Ordering::Relaxed);
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

async fn send(client: &Client<HttpConnector, Body>, export: &Export, body: &str) -> Result<(), Failed> {
    let request = Request::post(export.url.clone())
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from(body.as_bytes().to_vec()))
        .context("make the request")
        .map_err(Failed::ForGood)?;
    let answer = client.request(request).await;
    let answer = answer
        .with_context(|| format!("send spans to {}", export.url))
        .map_err(|error| Failed::ForNow(error, Duration::ZERO))?;
    let refused = |code| anyhow::anyhow!("{} answers {code}", export.url);
    match answer.status() {
        code if code.is_success() => Ok(()),
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
        code => Err(Failed::ForGood(refused(code))),
    }
}
