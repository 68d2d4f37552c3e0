//! Hands the snapshot to the DNS process on the same node; see [`model::feed`].
//!
//! Each reader gets the whole snapshot, then what changes. A reader that is slow is not waited for and not queued
//! for: when it took the last changes, it gets the difference to what is then the newest.
//!
//! Each says where it answers. That decides whether the cluster's DNS address is left to it, or leads where its Service
//! leads: to servers on other nodes.

use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use model::Snapshot;
use model::feed::{HOLDS, Message, Serving, VERSION, is_complete, is_for_dns};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::socket::listen;
use super::supervisor::Part;

/// A reader that takes nothing for this long is cut off. It keeps what it has and comes back.
const STALLED: Duration = Duration::from_secs(30);

/// Bytes that are handed to the kernel at once.
const CHUNK: usize = 64 * 1024;

/// Words of readers that wait to be taken in.
const WORDS: usize = 16;

/// Readers connected now.
pub type Readers = Arc<AtomicU64>;

/// What readers are given, and what they tell.
#[derive(Clone)]
pub struct Feed {
    /// The socket.
    pub path: PathBuf,
    /// The cluster.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// How many there are.
    pub readers: Readers,
    /// The cluster's DNS address, where this node has it.
    pub address: Option<IpAddr>,
    /// Whether one of them answers there. Until they had the time to say it they do, as before.
    pub answered: watch::Sender<bool>,
}

/// Serves readers until shutdown.
///
/// # Errors
/// When the socket cannot be made.
pub async fn serve(feed: Feed, part: Part, shutdown: CancellationToken) -> anyhow::Result<()> {
    let path = &feed.path;
    let listener = listen(path).with_context(|| format!("listen on {}", path.display()))?;
    part.works();
    let mut tasks = JoinSet::new();
    let (say, mut said) = mpsc::channel(WORDS);
    let mut holds_until = Instant::now() + HOLDS;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ended = tasks.join_next(), if !tasks.is_empty() => {}
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("accept a reader")?;
                let (feed, say) = (feed.clone(), say.clone());
                tasks.spawn(async move {
                    feed.readers.fetch_add(1, Ordering::Relaxed);
                    let end = serve_reader(stream, &feed, &say).await;
                    feed.readers.fetch_sub(1, Ordering::Relaxed);
                    tracing::debug!(reason = %end, "DNS feed reader left");
                });
            }
            Some(until) = said.recv() => holds_until = until,
            () = sleep_until(holds_until), if *feed.answered.borrow() => {}
        }
        feed.note(Instant::now() < holds_until);
    }
}

impl Feed {
    /// Whether somebody answers at the address now.
    fn note(&self, answered: bool) {
        let is_new = self
            .answered
            .send_if_modified(|before| std::mem::replace(before, answered) != answered);
        match self.address.filter(|_| is_new) {
            Some(address) if answered => tracing::info!(%address, "this node's DNS answers"),
            Some(address) => {
                tracing::warn!(%address, "this node's DNS does not answer: its Service's endpoints shall");
            }
            None => {}
        }
    }
}

/// Serves one reader, and returns why that ended. Until when it answers is said by `say`.
async fn serve_reader(stream: UnixStream, feed: &Feed, say: &mpsc::Sender<Instant>) -> io::Error {
    let (back, mut stream) = stream.into_split();
    let mut answers = false;
    let end = tokio::select! {
        end = hear(back, feed.address, &mut answers, say) => end,
        end = give(&mut stream, feed.snapshots.clone()) => end,
    };
    if answers {
        let _ended = say.send(Instant::now()).await;
    }
    end.err().unwrap_or(ErrorKind::UnexpectedEof.into())
}

/// Takes in what a reader says of itself.
async fn hear(
    back: OwnedReadHalf,
    address: Option<IpAddr>,
    answers: &mut bool,
    say: &mpsc::Sender<Instant>,
) -> io::Result<()> {
    let mut lines = BufReader::new(back).lines();
    while let Some(line) = lines.next_line().await? {
        let serving: Serving = serde_json::from_str(&line)?;
        let did = std::mem::replace(answers, address.is_some_and(|address| serving.is_at(address)));
        // What another reader says of itself is not this one's to end.
        if *answers || did {
            let holds = if *answers { HOLDS } else { Duration::ZERO };
            let _ended = say.send(Instant::now() + holds).await;
        }
    }
    Ok(())
}

async fn give(stream: &mut OwnedWriteHalf, mut snapshots: watch::Receiver<Arc<Snapshot>>) -> io::Result<()> {
    let Ok(first) = snapshots
        .wait_for(|snapshot| is_complete(snapshot))
        .await
        .map(|snapshot| snapshot.clone())
    else {
        return Ok(());
    };
    let begin = std::iter::once(Message::Begin { version: VERSION });
    let changes = first.as_changes().filter(is_for_dns).map(Message::Change);
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

#[cfg(test)]
mod tests {
    use model::feed::NEEDED;
    use model::{Kind, Namespace, Node};
    use tokio::io::Lines;
    use tokio_util::task::AbortOnDropHandle;

    use super::super::supervisor::Supervisor;
    use super::*;
    use model::Change;

    /// A feed of what a test publishes, on a socket that is removed at the end.
    struct Bench {
        snapshots: watch::Sender<Arc<Snapshot>>,
        path: PathBuf,
        readers: Readers,
        answers: watch::Receiver<bool>,
        _server: AbortOnDropHandle<()>,
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    impl Bench {
        fn start(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("cwt-feed-{}-{name}", std::process::id()));
            let (snapshots, receiver) = watch::channel(Arc::default());
            let (answered, answers) = watch::channel(true);
            let feed = Feed {
                path: path.clone(),
                snapshots: receiver,
                readers: Readers::default(),
                address: Some([10, 96, 0, 10].into()),
                answered,
            };
            let readers = feed.readers.clone();
            let mut supervisor = Supervisor::new(CancellationToken::new());
            supervisor.start("feed", move |part, shutdown| serve(feed.clone(), part, shutdown));
            Self {
                snapshots,
                path,
                readers,
                answers,
                _server: AbortOnDropHandle::new(tokio::spawn(supervisor.join())),
            }
        }

        /// Waits until the address is answered, or not.
        async fn until(&mut self, answered: bool) {
            let changed = self.answers.wait_for(|now| *now == answered);
            let waited = tokio::time::timeout(Duration::from_secs(10), changed).await;
            waited.expect("in time").expect("the feed goes on");
        }

        async fn connect(&self) -> (Lines<BufReader<OwnedReadHalf>>, OwnedWriteHalf) {
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                match UnixStream::connect(&self.path).await {
                    Ok(stream) => {
                        let (read, write) = stream.into_split();
                        return (BufReader::new(read).lines(), write);
                    }
                    Err(error) => assert!(Instant::now() < deadline, "{error}"),
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }

        fn publish(&self, changes: impl IntoIterator<Item = Change>) {
            self.snapshots.send_modify(|snapshot| {
                let mut next = (**snapshot).clone();
                for change in changes {
                    next.apply(change);
                }
                *snapshot = Arc::new(next);
            });
        }
    }

    async fn next(lines: &mut Lines<BufReader<OwnedReadHalf>>) -> Message {
        let line = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await;
        let line = line.expect("in time").expect("readable").expect("not the end");
        serde_json::from_str(&line).expect("a message")
    }

    fn namespace(name: &str) -> Change {
        Change::Namespace(Namespace { name: name.into() })
    }

    fn synced() -> [Change; 3] {
        NEEDED.map(Change::Synced)
    }

    #[tokio::test]
    async fn a_reader_rebuilds_the_snapshot_and_follows_it() {
        let bench = Bench::start("follow");
        bench.publish(
            synced()
                .into_iter()
                .chain([namespace("default"), namespace("gone")]),
        );
        let (mut lines, _write) = bench.connect().await;
        assert_eq!(next(&mut lines).await, Message::Begin { version: VERSION });
        let mut rebuilt = Snapshot::default();
        loop {
            match next(&mut lines).await {
                Message::Change(change) => assert!(rebuilt.apply(change)),
                Message::End => break,
                other @ Message::Begin { .. } => panic!("{other:?}"),
            }
        }
        assert_eq!(rebuilt, **bench.snapshots.borrow());
        bench.publish([Change::DeleteNamespace("gone".into()), namespace("new")]);
        while rebuilt != **bench.snapshots.borrow() {
            let Message::Change(change) = next(&mut lines).await else {
                panic!("no change")
            };
            rebuilt.apply(change);
        }
    }

    #[tokio::test]
    async fn nothing_is_sent_before_everything_that_dns_needs_is_complete() {
        let bench = Bench::start("complete");
        let (mut lines, _write) = bench.connect().await;
        bench.publish([
            namespace("default"),
            Change::Synced(Kind::Service),
            Change::Synced(Kind::EndpointSlice),
        ]);
        let early = tokio::time::timeout(Duration::from_millis(200), lines.next_line()).await;
        assert!(early.is_err(), "{early:?} came too early");
        bench.publish([Change::Synced(Kind::Namespace)]);
        assert_eq!(next(&mut lines).await, Message::Begin { version: VERSION });
        assert_eq!(next(&mut lines).await, Message::Change(namespace("default")));
    }

    #[tokio::test]
    async fn a_slow_reader_skips_what_lies_between_and_a_gone_one_is_forgotten() {
        let bench = Bench::start("slow");
        bench.publish(synced());
        let (mut lines, write) = bench.connect().await;
        assert_eq!(next(&mut lines).await, Message::Begin { version: VERSION });
        // Far more than any socket buffer holds, all of it about one object.
        for round in 0..20_000_u32 {
            let zone = Some(format!("{round:0>200}").into());
            bench.publish([Change::Node(Node {
                zone,
                ..Node::new("node-1")
            })]);
            tokio::task::yield_now().await;
        }
        let mut received = 0;
        loop {
            received += 1;
            if let Message::Change(Change::Node(node)) = next(&mut lines).await
                && node.zone.is_some_and(|zone| zone.ends_with("19999"))
            {
                break;
            }
        }
        assert!(
            received < 19_000,
            "{received} messages for a reader that was not reading"
        );
        drop((lines, write));
        let deadline = Instant::now() + Duration::from_secs(10);
        while bench.readers.load(Ordering::Relaxed) > 0 {
            assert!(Instant::now() < deadline, "the reader is still there");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn say(write: &mut OwnedWriteHalf, line: &str) {
        let written = write.write_all(format!("{line}\n").as_bytes()).await;
        written.expect("it is read");
    }

    #[tokio::test]
    async fn the_address_is_answered_by_whom_says_so_and_for_as_long_as_it_is_said() {
        const THERE: &str = r#"{"addresses": ["10.96.0.10:53", "127.0.0.1:53"]}"#;
        const ELSEWHERE: &str = r#"{"addresses": ["127.0.0.1:53"]}"#;
        let mut bench = Bench::start("answers");
        assert!(*bench.answers.borrow(), "as before");
        bench.until(false).await;
        let (_lines, mut write) = bench.connect().await;
        say(&mut write, ELSEWHERE).await;
        say(&mut write, THERE).await;
        bench.until(true).await;
        let (_others, mut other) = bench.connect().await;
        say(&mut other, ELSEWHERE).await;
        drop(other);
        say(&mut write, THERE).await;
        say(&mut write, ELSEWHERE).await;
        bench.until(false).await;
        say(&mut write, THERE).await;
        bench.until(true).await;
        // It is silent.
        bench.until(false).await;
        say(&mut write, THERE).await;
        bench.until(true).await;
        say(&mut write, "no JSON").await;
        bench.until(false).await;
    }
}
