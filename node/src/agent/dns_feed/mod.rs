//! Hands the snapshot to the DNS process on the same node; see [`model::feed`].
//!
//! Each reader gets the whole snapshot, then what changes. A reader that is slow is not waited for and not queued
//! for: when it took the last changes, it gets the difference to what is then the newest.
//!
//! Each says where it answers. That decides whether the cluster's DNS address is left to it, or leads where its Service
//! leads: to servers on other nodes.

mod claims;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use model::Snapshot;
use model::feed::{HOLDS, Message, SAID_EVERY, Serving, VERSION, is_complete, is_for_dns};
use overlay::files::{remove_file, write_file};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::claims::{Claim, Claims, Says};
use super::socket::{RootSocket, listen};
use super::supervisor::Part;

/// A reader that takes nothing for this long is cut off. It keeps what it has and comes back.
const STALLED: Duration = Duration::from_secs(30);

/// Bytes that are handed to the kernel at once.
const CHUNK: usize = 64 * 1024;

/// The longest line that a reader may say, in bytes.
const LONGEST: usize = 64 * 1024;

/// Claims of readers that wait to be taken in.
const CLAIMS: usize = 16;

/// Readers connected now.
pub type Readers = Arc<AtomicU64>;

/// What readers are given, and what they tell.
#[derive(Clone)]
pub struct Feed {
    /// The socket.
    pub path: PathBuf,
    /// The cluster.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// DNS processes that are connected.
    pub readers: Readers,
    /// The cluster's DNS address, where this node has it.
    pub address: Option<IpAddr>,
    /// Where it is kept for the next agent whether one of them answers.
    pub state_dir: PathBuf,
    /// Whether one of them answers at `address`. Until they had the time to say it, what the agent before knew holds.
    pub answered: watch::Sender<bool>,
}

/// The file in the state directory that is there while nobody answers.
const AWAY: &str = "dns-away";

/// Whether a DNS server answered at the address when the last agent of this node ended; true on a new node.
#[must_use]
pub fn was_answered(state_dir: &Path) -> bool {
    !state_dir.join(AWAY).exists()
}

/// Removes the file that says that nobody answered; returns whether it was there.
///
/// # Errors
/// When it cannot be removed.
pub fn forget(state_dir: &Path) -> Result<bool, overlay::Error> {
    remove_file(&state_dir.join(AWAY))
}

/// Serves readers until shutdown.
///
/// # Errors
/// When the socket cannot be made.
pub async fn serve(feed: Feed, part: Part, shutdown: CancellationToken) -> anyhow::Result<()> {
    let path = &feed.path;
    let listener = listen(path).with_context(|| format!("listen on {}", path.display()))?;
    part.works();
    let ended = shutdown.child_token();
    let record = AbortOnDropHandle::new(tokio::spawn(keep_record(
        feed.clone(),
        feed.answered.subscribe(),
        ended.clone(),
    )));
    let (claim, claims) = mpsc::channel(CLAIMS);
    let served = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        failed = accept(&feed, &listener, claim) => failed,
        () = judge(&feed, claims) => Ok(()),
    };
    ended.cancel();
    record.await.context("keep for the next agent who answers")?;
    served
}

/// Takes in readers, and serves each in a task of its own.
async fn accept(feed: &Feed, listener: &RootSocket, claims: mpsc::Sender<Claim>) -> anyhow::Result<()> {
    let mut readers = JoinSet::new();
    let mut count = 0;
    loop {
        tokio::select! {
            _ended = readers.join_next(), if !readers.is_empty() => {}
            accepted = listener.accept() => {
                let stream = accepted.context("accept a reader")?;
                count += 1;
                let reader = Reader::new(count, feed.clone(), claims.clone());
                readers.spawn(async move {
                    let end = reader.serve(stream).await;
                    tracing::debug!(reason = %end, "DNS feed reader left");
                });
            }
        }
    }
}

/// Tells whether somebody answers at the address, by what readers claim.
async fn judge(feed: &Feed, mut claimed: mpsc::Receiver<Claim>) {
    let mut claims = Claims::none_yet(Instant::now());
    loop {
        tokio::select! {
            claim = claimed.recv() => match claim {
                Some(claim) => claims.take(claim, Instant::now()),
                None => return,
            },
            () = sleep_until(claims.end()), if *feed.answered.borrow() => {}
        }
        if let Some(answered) = claims.answered(Instant::now()) {
            feed.tell(answered);
        }
    }
}

/// Keeps for the next agent whether somebody answers at the address, until the end and as it is then.
async fn keep_record(feed: Feed, mut answered: watch::Receiver<bool>, ended: CancellationToken) {
    let mut kept = was_answered(&feed.state_dir);
    loop {
        let is_last = tokio::select! {
            changed = answered.changed() => changed.is_err(),
            () = ended.cancelled() => true,
        };
        let newest = *answered.borrow_and_update();
        if feed.address.is_some() && newest != kept && record(feed.state_dir.clone(), newest).await {
            kept = newest;
        }
        if is_last {
            return;
        }
    }
}

/// Returns whether it is kept.
async fn record(state_dir: PathBuf, answered: bool) -> bool {
    let away = state_dir.join(AWAY);
    let write = move || {
        if answered {
            remove_file(&away).map(drop).map_err(io::Error::other)
        } else {
            write_file(&away, b"")
        }
    };
    let written = tokio::task::spawn_blocking(write).await;
    let written = written.map_err(io::Error::other).flatten();
    if let Err(error) = &written {
        let error = model::with_causes(error);
        tracing::warn!(
            error,
            "the next agent will not know whether this node's DNS server answered"
        );
    }
    written.is_ok()
}

impl Feed {
    /// Tells whether somebody answers at the address, where that is new.
    fn tell(&self, answered: bool) {
        let is_new = self
            .answered
            .send_if_modified(|before| std::mem::replace(before, answered) != answered);
        let Some(address) = self.address.filter(|_| is_new) else {
            return;
        };
        if answered {
            tracing::info!(%address, "this node's DNS server answers");
        } else {
            tracing::warn!(
                %address,
                "this node's DNS server does not answer; its Service's endpoints do, if it has any"
            );
        }
    }
}

/// One connection.
struct Reader {
    number: u64,
    feed: Feed,
    claims: mpsc::Sender<Claim>,
}

impl Reader {
    /// It counts as connected from now on.
    fn new(number: u64, feed: Feed, claims: mpsc::Sender<Claim>) -> Self {
        feed.readers.fetch_add(1, Ordering::Relaxed);
        Self { number, feed, claims }
    }

    /// Serves it, and returns why that ended.
    async fn serve(&self, stream: UnixStream) -> io::Error {
        let (back, mut stream) = stream.into_split();
        let began = OnceLock::new();
        self.claim(Says::Nothing(Instant::now() + HOLDS)).await;
        let end = tokio::select! {
            end = self.hear(back, &began) => end,
            end = give(&mut stream, self.feed.snapshots.clone(), &began) => end.err(),
        };
        self.claim(Says::No).await;
        end.unwrap_or(ErrorKind::UnexpectedEof.into())
    }

    /// Takes in what it says, to its end. Who says nothing although it was told that it is heard (`began`) is of an
    /// earlier build, and is there.
    async fn hear(&self, back: OwnedReadHalf, began: &OnceLock<Instant>) -> Option<io::Error> {
        let mut lines = FramedRead::new(back, LinesCodec::new_with_max_length(LONGEST));
        let mut has_spoken = false;
        loop {
            let line = match tokio::time::timeout(SAID_EVERY, lines.next()).await {
                Err(_silent) => {
                    let is_asked = began.get().is_some_and(|began| began.elapsed() >= SAID_EVERY);
                    if is_asked && !has_spoken {
                        self.claim_as(self.feed.address.is_some()).await;
                    }
                    continue;
                }
                Ok(None) => return None,
                Ok(Some(Err(error))) => return Some(io::Error::other(error)),
                Ok(Some(Ok(line))) => line,
            };
            has_spoken = true;
            let serving: Serving = match serde_json::from_str(&line) {
                Ok(serving) => serving,
                Err(error) => return Some(error.into()),
            };
            let answers = self.feed.address.is_some_and(|address| serving.is_at(address));
            self.claim_as(answers).await;
        }
    }

    /// Passes on whether it answers.
    async fn claim_as(&self, answers: bool) {
        let says = if answers {
            Says::Answers(Instant::now() + HOLDS)
        } else {
            Says::No
        };
        self.claim(says).await;
    }

    async fn claim(&self, says: Says) {
        let claim = Claim {
            reader: self.number,
            says,
        };
        let _ended = self.claims.send(claim).await;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.feed.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn give(
    stream: &mut OwnedWriteHalf,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    began: &OnceLock<Instant>,
) -> io::Result<()> {
    let Ok(first) = snapshots
        .wait_for(|snapshot| is_complete(snapshot))
        .await
        .map(|snapshot| snapshot.clone())
    else {
        return Ok(());
    };
    let begin = std::iter::once(Message::Begin {
        version: VERSION,
        hears: true,
    });
    let changes = first.as_changes().filter(is_for_dns).map(Message::Change);
    began.get_or_init(Instant::now);
    send(stream, begin.chain(changes).chain([Message::End])).await?;
    let mut sent = first;
    while snapshots.changed().await.is_ok() {
        let newest = snapshots.borrow_and_update().clone();
        let changes = newest.changes_since(&sent).into_iter().filter(is_for_dns);
        send(stream, changes.map(Message::Change)).await?;
        sent = newest;
    }
    Ok(())
}

/// Sends messages, one a line.
async fn send(stream: &mut OwnedWriteHalf, messages: impl Iterator<Item = Message>) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(CHUNK);
    for message in messages {
        serde_json::to_writer(&mut buffer, &message)?;
        buffer.push(b'\n');
        if buffer.len() >= CHUNK {
            write(stream, &buffer).await?;
            buffer.clear();
        }
    }
    write(stream, &buffer).await
}

async fn write(stream: &mut OwnedWriteHalf, bytes: &[u8]) -> io::Result<()> {
    tokio::time::timeout(STALLED, stream.write_all(bytes)).await?
}
