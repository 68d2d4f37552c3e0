//! Hands the snapshot to the DNS process on the same node; see [`model::feed`].
//!
//! Each reader gets the whole snapshot, then what changes. A reader that is slow is not waited for and not queued
//! for: when it took the last changes, it gets the difference to what is then the newest.
//!
//! Each says where it answers. That decides whether the cluster's DNS address is left to it, or leads where its Service
//! leads: to servers on other nodes.

use std::collections::BTreeMap;
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

/// What is known of a reader and the address.
#[derive(Debug)]
struct Claim {
    /// Whose it is.
    reader: u64,
    says: Says,
}

#[derive(Debug)]
enum Says {
    /// Nothing yet: it has connected, and may take the place of one that leaves. It is waited for until then.
    Nothing(Instant),
    /// It answers there until then.
    Answers(Instant),
    /// It does not answer there, or left.
    No,
}

/// Until when each reader answers.
#[derive(Debug)]
struct Claims {
    until: BTreeMap<u64, Instant>,
    /// Until when those are waited for that have said nothing yet.
    awaited: BTreeMap<u64, Instant>,
    /// Before that nobody's silence says anything.
    not_before: Instant,
}

impl Claims {
    /// Nobody has had the time to say anything yet.
    fn none_yet(now: Instant) -> Self {
        Self {
            until: BTreeMap::new(),
            awaited: BTreeMap::new(),
            not_before: now + HOLDS,
        }
    }

    /// A claim holds at once; that nobody else answers is known with it.
    fn take(&mut self, Claim { reader, says }: Claim, now: Instant) {
        self.awaited.remove(&reader);
        match says {
            Says::Nothing(until) => drop(self.awaited.insert(reader, until)),
            Says::Answers(until) => {
                self.until.insert(reader, until);
                self.not_before = now;
            }
            Says::No => drop(self.until.remove(&reader)),
        }
    }

    /// When nobody answers any more, if nobody claims anything until then.
    fn end(&self) -> Instant {
        let until = self.until.values().chain(self.awaited.values());
        until.copied().fold(self.not_before, Instant::max)
    }

    /// Whether somebody answers; `None` where it is too early to say.
    fn answered(&mut self, now: Instant) -> Option<bool> {
        if self.until.values().any(|until| *until > now) {
            return Some(true);
        }
        // Who notices so late stood still: what was claimed meanwhile is still to be read.
        if !self.until.is_empty() && now > self.end() + SAID_EVERY {
            self.until.clear();
            self.not_before = now + SAID_EVERY;
        }
        let is_early = now < self.not_before || self.awaited.values().any(|until| *until > now);
        (!is_early).then_some(false)
    }
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

#[cfg(test)]
mod tests {
    use model::feed::NEEDED;
    use model::{Kind, Namespace, Node};
    use tokio::io::{AsyncBufReadExt, BufReader, Lines};

    use super::super::supervisor::Supervisor;
    use super::*;
    use model::Change;

    /// A feed of what a test publishes, on a socket that is removed at the end.
    struct Bench {
        snapshots: watch::Sender<Arc<Snapshot>>,
        path: PathBuf,
        readers: Readers,
        answers: watch::Receiver<bool>,
        directory: PathBuf,
        _server: AbortOnDropHandle<()>,
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }

    impl Bench {
        fn start(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("cwt-feed-{}-{name}", std::process::id()));
            let directory = path.with_extension("state");
            let (snapshots, receiver) = watch::channel(Arc::default());
            let (answered, answers) = watch::channel(true);
            let feed = Feed {
                path: path.clone(),
                snapshots: receiver,
                readers: Readers::default(),
                address: Some([10, 96, 0, 10].into()),
                state_dir: directory.clone(),
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
                directory,
                _server: AbortOnDropHandle::new(tokio::spawn(supervisor.join())),
            }
        }

        /// Waits until the address is answered, or not.
        async fn until(&mut self, answered: bool) {
            let changed = self.answers.wait_for(|now| *now == answered);
            let waited = tokio::time::timeout(Duration::from_secs(10), changed).await;
            waited.expect("in time").expect("the feed goes on");
        }

        /// Waits until the next agent would take it as answered, or not.
        async fn until_recorded(&self, answered: bool) {
            let deadline = Instant::now() + Duration::from_secs(10);
            while was_answered(&self.directory) != answered {
                assert!(
                    Instant::now() < deadline,
                    "it is not recorded that it is {answered}"
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
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

    const BEGIN: Message = Message::Begin {
        version: VERSION,
        hears: true,
    };

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
        assert_eq!(next(&mut lines).await, BEGIN);
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
        assert_eq!(next(&mut lines).await, BEGIN);
        assert_eq!(next(&mut lines).await, Message::Change(namespace("default")));
    }

    #[tokio::test]
    async fn a_slow_reader_skips_what_lies_between_and_a_gone_one_is_forgotten() {
        let bench = Bench::start("slow");
        bench.publish(synced());
        let (mut lines, write) = bench.connect().await;
        assert_eq!(next(&mut lines).await, BEGIN);
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
        assert!(
            *bench.answers.borrow() && was_answered(&bench.directory),
            "as before"
        );
        bench.until(false).await;
        bench.until_recorded(false).await;
        let (_lines, mut write) = bench.connect().await;
        say(&mut write, ELSEWHERE).await;
        say(&mut write, THERE).await;
        bench.until(true).await;
        bench.until_recorded(true).await;
        // Others come and go.
        let (_others, mut other) = bench.connect().await;
        say(&mut other, THERE).await;
        say(&mut other, ELSEWHERE).await;
        drop(other);
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

    #[tokio::test]
    async fn what_is_true_at_the_end_is_recorded() {
        let directory = std::env::temp_dir().join(format!("cwt-feed-{}-record", std::process::id()));
        let (answered, _) = watch::channel(true);
        let feed = Feed {
            path: PathBuf::new(),
            snapshots: watch::channel(Arc::default()).1,
            readers: Readers::default(),
            address: Some([10, 96, 0, 10].into()),
            state_dir: directory.clone(),
            answered,
        };
        for answers in [false, true] {
            feed.answered.send_replace(answers);
            let ended = CancellationToken::new();
            ended.cancel();
            keep_record(feed.clone(), feed.answered.subscribe(), ended).await;
            assert_eq!(was_answered(&directory), answers);
        }
        std::fs::remove_dir_all(&directory).expect("it was written");
    }

    #[tokio::test]
    async fn a_reader_that_never_speaks_is_there_until_it_leaves() {
        let mut bench = Bench::start("silent");
        bench.until(false).await;
        let (lines, write) = bench.connect().await;
        let early = tokio::time::timeout(2 * SAID_EVERY, bench.answers.changed()).await;
        assert!(early.is_err(), "it does not know yet that it is heard");
        bench.publish(synced());
        bench.until(true).await;
        let left = tokio::time::timeout(HOLDS + SAID_EVERY, bench.answers.changed()).await;
        assert!(left.is_err(), "it is still there");
        drop((lines, write));
        bench.until(false).await;
    }

    #[test]
    fn one_reader_says_nothing_of_another_and_who_stood_still_listens_first() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let of = |until: &[(u64, Instant)], not_before| Claims {
            until: until.iter().copied().collect(),
            awaited: BTreeMap::new(),
            not_before,
        };
        let rows = [
            ("nobody yet", of(&[], now + second), None),
            ("nobody", of(&[], now), Some(false)),
            ("one", of(&[(1, now + second)], now), Some(true)),
            ("one of two", of(&[(1, now), (2, now + second)], now), Some(true)),
            ("not any more", of(&[(1, now)], now), Some(false)),
            ("late", of(&[(1, now - 2 * second)], now - 9 * second), None),
        ];
        for (what, mut claims, expected) in rows {
            assert_eq!(claims.answered(now), expected, "{what}");
        }
        let mut two = of(&[(1, now + second), (2, now + second)], now);
        two.take(claim(1, Says::No), now);
        assert_eq!(two.answered(now), Some(true), "the other goes on");
    }

    fn claim(reader: u64, says: Says) -> Claim {
        Claim { reader, says }
    }

    #[test]
    fn who_has_connected_is_waited_for_when_the_one_before_leaves() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        for (what, at, says, expected) in [
            ("it is early", now, None, None),
            ("it says nothing", now + second, None, Some(false)),
            ("it left", now, Some(Says::No), Some(false)),
            ("it answers", now, Some(Says::Answers(now + second)), Some(true)),
        ] {
            let mut claims = Claims::none_yet(now - HOLDS);
            claims.take(claim(1, Says::Answers(now + second)), now);
            claims.take(claim(2, Says::Nothing(now + second)), now);
            assert_eq!(claims.answered(now), Some(true), "{what}");
            claims.take(claim(1, Says::No), now);
            assert_eq!(claims.end(), now + second, "{what}");
            if let Some(says) = says {
                claims.take(claim(2, says), now);
            }
            assert_eq!(claims.answered(at), expected, "{what}");
        }
    }
}
