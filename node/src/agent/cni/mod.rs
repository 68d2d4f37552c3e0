//! The CNI server: decides for the plugin `causeway-cni`, which does the work in the pod's namespace.
//!
//! ```text
//! runtime ─ exec ─► causeway-cni ─ one frame ─► serve_plugin ─ blocking thread ─► PodNetwork (log, fdatasync)
//! ```
//! Where the node's addresses come in blocks and none is free, an ADD waits for its turn, without a thread, as long as the
//! plugin does. It is answered once the kernel leads the pod's packets. The runtime learns of the plugin by [`conflist`],
//! which is written once a pod could be connected, and stays.

pub mod conflist;
mod decide;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use cni_plugin::protocol::{HEADER_BYTES, Request, Response, decode, encode, frame_length};
use cni_plugin::tombstone;
use model::wiring::WiringPlan;
use overlay::pods::{PodError, PodNetwork, Turn};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::field::{self, Empty};
use tracing::{Span, info_span};

use super::history::History;
use super::socket::listen;
use super::supervisor::Part;
use crate::config::Cni;
use crate::metrics::{Counters, labels};
use crate::telemetry::TARGET;
use decide::{decide, key};

/// A plugin that does not send its request, or take its answer, in this time is gone.
const EXCHANGE: Duration = Duration::from_secs(10);

/// How long an ADD waits for an address at most.
const MOST_PATIENCE: Duration = Duration::from_secs(100);

/// How often a plugin that waits is told so: it gives up when it hears nothing for ten seconds.
const TELL: Duration = Duration::from_secs(4);

/// Requests that are decided at once: each may wait for the disk on a thread of its own.
const AT_ONCE: usize = 64;

/// How soon the readiness of the pod network is seen. Only until it is there.
const LOOK: Duration = Duration::from_millis(100);

/// How often deletions that the plugin could not tell are looked for.
const REPLAY: Duration = Duration::from_secs(30);

/// Serves the plugin until shutdown.
///
/// # Errors
/// When the socket cannot be made, or the conflist not be written.
pub async fn serve(
    config: Cni,
    pods: PodNetwork,
    requests: Arc<Requests>,
    history: History,
    part: Part,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let socket = &config.socket;
    let listener = listen(socket).with_context(|| format!("listen on {}", socket.display()))?;
    let mut announced = false;
    let mut look = tokio::time::interval(LOOK);
    let mut replay = tokio::time::interval(REPLAY);
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut exchanges = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ended = exchanges.join_next(), if !exchanges.is_empty() => {}
            accepted = listener.accept() => {
                let stream = accepted.context("accept a plugin")?;
                let (pods, requests, at_once) = (pods.clone(), requests.clone(), at_once.clone());
                let history = history.clone();
                exchanges.spawn(async move {
                    if let Err(error) = serve_plugin(stream, pods, &requests, history, &at_once).await {
                        let error = format!("{error:#}");
                        tracing::warn!(error, "exchange with the CNI plugin failed");
                    }
                });
            }
            _ = look.tick(), if !announced => match ready(&pods).await? {
                Ok(()) | Err(PodError::Exhausted { .. } | PodError::NoneComing { .. }) => {
                    announce(&config).await?;
                    part.works();
                    announced = true;
                }
                Err(waiting) => part.fails(&waiting.to_string()),
            },
            _ = replay.tick() => replay_deletions(socket, &pods).await,
        }
    }
}

/// Whether a pod could be connected; may wait for the disk.
async fn ready(pods: &PodNetwork) -> anyhow::Result<Result<(), PodError>> {
    let pods = pods.clone();
    spawn_blocking(move || pods.ready())
        .await
        .context("ask whether pods can be connected")
}

/// What plugins asked for so far, and what came of it.
#[derive(Debug, Default)]
pub struct Requests {
    answered: Counters,
    additions: AtomicU64,
    without_address: AtomicU64,
}

impl Requests {
    /// Answers by command and result.
    #[must_use]
    pub fn answered(&self) -> &Counters {
        &self.answered
    }

    /// How many interfaces were asked for.
    #[must_use]
    pub fn additions(&self) -> u64 {
        self.additions.load(Ordering::Relaxed)
    }

    /// How many of them had to go without, since there was no address as long as they waited.
    #[must_use]
    pub fn without_address(&self) -> u64 {
        self.without_address.load(Ordering::Relaxed)
    }

    fn answer(&self, verb: &str, result: &str) {
        self.answered.add(labels(&[("verb", verb), ("result", result)]));
        if verb == decide::ADD {
            self.additions.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn note(&self, added: &Result<WiringPlan, PodError>) {
        let is_without = matches!(
            added,
            Err(PodError::Exhausted { .. } | PodError::NoneNow { .. } | PodError::NoneComing { .. })
        );
        if is_without {
            self.without_address.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One request and its answer.
async fn serve_plugin(
    mut stream: UnixStream,
    pods: PodNetwork,
    requests: &Requests,
    history: History,
    at_once: &Semaphore,
) -> anyhow::Result<()> {
    let request = in_time(EXCHANGE, read_request(&mut stream)).await?;
    let verb = decide::verb(&request);
    let span = info_span!(
        target: TARGET,
        parent: None,
        "cni",
        verb,
        container = decide::container(&request),
        pod = decide::pod(&request).map(field::display),
        result = Empty,
        error = Empty
    );
    let deciding = info_span!(target: TARGET, parent: &span, "decide");
    let connects = decide::connects(&request);
    let leading = pods.clone();
    let patience = request.patience().min(MOST_PATIENCE);
    let decided = async {
        let answered = match decide::waiting(&request) {
            Some(attachment) => {
                let deadline = Instant::now() + patience;
                let added =
                    add_in_turn(&mut stream, pods.queue(attachment), deadline, at_once, deciding).await?;
                requests.note(&added);
                Ok(decide::added(added))
            }
            None => {
                let _permit = at_once.acquire().await.context("wait for a turn")?;
                spawn_blocking(move || deciding.in_scope(|| decide(&pods, &history, request)))
                    .await
                    .context("decide")
            }
        }?;
        anyhow::Ok(match &connects {
            Some(of) => decide::once_led(&leading, of, answered).await,
            None => answered,
        })
    };
    let response = in_time(EXCHANGE + patience, decided).await?;
    span.record("result", decide::result(&response));
    if let Response::Error(failure) = &response {
        span.record("error", failure.msg.as_str());
    }
    requests.answer(verb, decide::result(&response));
    in_time(EXCHANGE, write(&mut stream, &response)).await
}

/// An ADD that waits for its turn, until the deadline, or until the plugin goes.
async fn add_in_turn(
    stream: &mut UnixStream,
    mut turn: Turn,
    deadline: Instant,
    at_once: &Semaphore,
    deciding: Span,
) -> anyhow::Result<Result<WiringPlan, PodError>> {
    let mut tell = tokio::time::interval_at(Instant::now() + TELL, TELL);
    loop {
        let permit = at_once.acquire().await.context("wait for a turn")?;
        let within = deciding.clone();
        let added = spawn_blocking(move || {
            let added = within.in_scope(|| turn.add());
            (turn, added)
        });
        let added = added.await.context("decide")?;
        // Who waits keeps nobody else from being served: a DEL may free what it waits for.
        drop(permit);
        turn = added.0;
        let waiting_for = match added.1 {
            Err(PodError::NoneNow { waiting_for, .. }) if Instant::now() < deadline => waiting_for,
            added => return Ok(added),
        };
        tokio::select! {
            () = turn.comes() => {}
            () = tokio::time::sleep_until(deadline) => {}
            _ = tell.tick() => write(stream, &Response::Waiting { waiting_for }).await?,
            () = gone(stream) => bail!("the plugin went while its pod waited for an address"),
        }
    }
}

/// Waits until a plugin hangs up, which has nothing more to say.
async fn gone(stream: &mut UnixStream) {
    let _said_or_gone = stream.read(&mut [0; 1]).await;
}

async fn in_time<T>(limit: Duration, step: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let done = tokio::time::timeout(limit, step).await;
    done.context("the CNI plugin, or the answer to it, took too long")?
}

async fn read_request(stream: &mut UnixStream) -> anyhow::Result<Request> {
    let mut header = [0; HEADER_BYTES];
    stream
        .read_exact(&mut header)
        .await
        .context("read the request's length")?;
    let mut json = vec![0; frame_length(header)?];
    stream.read_exact(&mut json).await.context("read the request")?;
    decode(&json).context("understand the request")
}

async fn write(stream: &mut UnixStream, response: &Response) -> anyhow::Result<()> {
    stream
        .write_all(&encode(response)?)
        .await
        .context("write the answer")
}

async fn announce(config: &Cni) -> anyhow::Result<()> {
    let config = config.clone();
    let written = spawn_blocking(move || conflist::write(&config.conf_dir, &config.socket)).await;
    let path = written.context("write the CNI configuration")??;
    tracing::info!(path = %path.display(), "pods can be connected");
    Ok(())
}

/// Releases the interfaces that were deleted while no agent listened on the socket.
///
/// # Errors
/// When the book of pod addresses, or what was left beside the socket, cannot be changed.
pub fn release_deleted(socket: &Path, pods: &PodNetwork) -> anyhow::Result<()> {
    replay(&tombstone::directory(socket), pods).map(drop)
}

/// Where deletions are told while no agent listens on the socket.
#[must_use]
pub fn deletions(socket: &Path) -> PathBuf {
    tombstone::directory(socket)
}

fn replay(directory: &Path, pods: &PodNetwork) -> anyhow::Result<usize> {
    tombstone::replay(directory, |gone| {
        pods.remove(&key(gone)).map(drop).map_err(anyhow::Error::from)
    })
}

/// Deletions that happened while no agent listened.
async fn replay_deletions(socket: &Path, pods: &PodNetwork) {
    let (directory, pods): (PathBuf, PodNetwork) = (tombstone::directory(socket), pods.clone());
    let replayed = spawn_blocking(move || replay(&directory, &pods));
    match replayed.await {
        Ok(Ok(0)) => {}
        Ok(Ok(released)) => tracing::info!(released, "pods that went while no agent listened are released"),
        Ok(Err(error)) => tracing::warn!(
            error = format!("{error:#}"),
            "pods that are gone cannot be released yet"
        ),
        Err(error) => tracing::error!(%error, "replay of deletions broke off"),
    }
}
