use model::feed::NEEDED;
use model::{Kind, Namespace, Node};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};

use super::*;
use crate::agent::supervisor::Supervisor;
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
