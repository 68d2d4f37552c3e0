//! What etcd promises of writes and watches, under kill -9: random clients write and read a few keys, watches follow,
//! the server is killed and started again in between; then every history is judged. The promises are etcd's
//! (`etcd.io/docs/v3.5/learning/api_guarantees`): a watch is ordered, unique, reliable, atomic, resumable and
//! bookmarkable, and operations are linearizable.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_client::{
    Client, Compare, CompareOp, EventType, GetOptions, Txn, TxnOp, TxnOpResponse, WatchOptions,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tests::{
    directory::Directory,
    is_full_run,
    ledger::Holdings,
    process::{Place, Process},
    skipped,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{connect, etcd_command, free_addrs};

const KEYS: [&str; 5] = ["k/0", "k/1", "k/2", "k/3", "k/4"];
const WRITERS: u64 = 6;
/// What the last transaction writes, to every key.
const END: &str = "end";
/// An answer that takes longer is not waited for: what was asked may have happened or not.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// A client that was refused tries again after this.
const RETRY: Duration = Duration::from_millis(20);

const DIRECTORY: &str = "CWT_STORE_DIRECTORY";
const ADDRESS: &str = "CWT_STORE_ADDRESS";

#[tokio::test(flavor = "multi_thread")]
async fn our_store_keeps_what_it_promises_when_it_is_killed() {
    histories(Kind::Ours).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_keeps_what_it_promises_when_it_is_killed() {
    match tests::etcd::program() {
        Some(program) => histories(Kind::Etcd(program)).await,
        None => skipped(
            "etcd_keeps_what_it_promises_when_it_is_killed",
            "no etcd on PATH or in target/tools (run ./setup.sh test)",
        ),
    }
}

/// Not how long it may take, but when it is stuck.
async fn histories(kind: Kind) {
    let limit = Duration::from_secs(if is_full_run() { 3600 } else { 300 });
    let judged = tokio::time::timeout(limit, judge_histories(kind)).await;
    judged.expect("all histories come to their end");
}

async fn judge_histories(kind: Kind) {
    let kills = if is_full_run() { 60 } else { 6 };
    let has_progress = matches!(kind, Kind::Ours);
    let mut server = Server::start(kind).await;
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let stop = CancellationToken::new();
    let mut watchers = JoinSet::new();
    for watched in WATCHED {
        watchers.spawn(watch(server.endpoint(), watched, has_progress));
    }
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let client = connect(&server.endpoint()).await;
        writers.spawn(write(writer, client, Arc::clone(&acknowledged), stop.clone()));
    }
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..kills {
        let enough = acknowledged.load(Ordering::Relaxed) + random.random_range(50..400);
        let deadline = Instant::now() + Duration::from_secs(60);
        while acknowledged.load(Ordering::Relaxed) < enough {
            assert!(Instant::now() < deadline, "nothing is acknowledged any more");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        server.kill_and_start_again().await;
    }
    stop.cancel();
    let calls: Vec<Call> = writers.join_all().await.into_iter().flatten().collect();
    let mut client = connect(&server.endpoint()).await;
    let puts = KEYS.map(|key| TxnOp::put(key, END, None));
    client
        .txn(Txn::new().and_then(puts))
        .await
        .expect("the last write");
    let seen = watchers.join_all().await;
    let all = watch(server.endpoint(), EVERYTHING, false).await.events;

    let mut problems = check_calls(&all, &calls);
    for history in &seen {
        problems.extend(check_watch(&all, history));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    let unknown = calls
        .iter()
        .filter(|call| matches!(call.did, Did::Unknown { .. }))
        .count();
    let resumed: usize = seen.iter().map(|history| history.resumed).sum();
    let bookmarks: usize = seen.iter().map(|history| history.bookmarks.len()).sum();
    assert!(resumed >= kills, "watches were broken {resumed} times");
    assert!(bookmarks > 0 || !has_progress, "no bookmark came");
    println!(
        "{} calls ({unknown} without an answer), {} events, {kills} kills, {} watches resumed {resumed} times, \
         {bookmarks} bookmarks",
        calls.len(),
        all.len(),
        seen.len(),
    );
}

/// Who is judged.
pub enum Kind {
    Ours,
    Etcd(PathBuf),
}

pub struct Server {
    kind: Kind,
    addrs: [SocketAddr; 2],
    process: Process,
    directory: Directory,
}

impl Server {
    pub async fn start(kind: Kind) -> Self {
        let (directory, addrs) = (Directory::new("histories"), free_addrs());
        let process = spawn(&kind, &directory, addrs);
        let server = Self {
            kind,
            addrs,
            process,
            directory,
        };
        connect(&server.endpoint()).await;
        server
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addrs[0])
    }

    /// What the process has and has used.
    pub fn holdings(&self) -> Holdings {
        Holdings::of(self.process.pid()).expect("a running process")
    }

    async fn kill_and_start_again(&mut self) {
        self.process.kill();
        self.process = spawn(&self.kind, &self.directory, self.addrs);
        connect(&self.endpoint()).await;
    }
}

fn spawn(kind: &Kind, directory: &Directory, addrs: [SocketAddr; 2]) -> Process {
    let data = directory.path().join("data");
    let mut command = match kind {
        Kind::Ours => {
            let mut command = Command::new(std::env::current_exe().expect("this program"));
            command
                .args([
                    "histories::serve_until_killed",
                    "--exact",
                    "--ignored",
                    "--nocapture",
                ])
                .env(DIRECTORY, data)
                .env(ADDRESS, addrs[0].to_string());
            command
        }
        Kind::Etcd(program) => etcd_command(program, &data, addrs),
    };
    Process::spawn(&Place::default(), &mut command)
        .expect("start the server")
        .quiet()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "not a test: the process that is killed"]
async fn serve_until_killed() {
    let (Some(directory), Ok(address)) = (std::env::var_os(DIRECTORY), std::env::var(ADDRESS)) else {
        return;
    };
    let config = store::Config::new(directory, vec![address.parse().expect("an address")]);
    store::serve(config, CancellationToken::new())
        .await
        .expect("serve");
}

/// One event, as a history tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Event {
    revision: i64,
    key: String,
    /// Nothing for a deletion.
    value: Option<String>,
    /// The value before, where the watch asked for it.
    before: Option<String>,
}

/// What a watch asks for.
#[derive(Debug, Clone, Copy)]
struct Watched {
    key: &'static str,
    end: &'static str,
    before: bool,
}

const EVERYTHING: Watched = Watched {
    key: "k/",
    end: "k0",
    before: true,
};

const WATCHED: [Watched; 5] = [
    EVERYTHING,
    Watched {
        before: false,
        ..EVERYTHING
    },
    Watched {
        key: "k/1",
        end: "k/3",
        before: true,
    },
    Watched {
        key: "k/4",
        end: "",
        before: false,
    },
    Watched {
        key: "k/0",
        end: "",
        before: true,
    },
];

impl Watched {
    fn wants(&self, key: &str) -> bool {
        match self.end {
            "" => key == self.key,
            end => key >= self.key && key < end,
        }
    }
}

/// What a watch saw, over all its connections.
#[derive(Debug)]
struct WatchHistory {
    watched: Watched,
    events: Vec<Event>,
    /// How many events there were when it was told that it has seen everything up to the revision.
    bookmarks: Vec<(usize, i64)>,
    resumed: usize,
}

/// Watches until the last write; where the connection ends, another goes on behind the last revision that was seen.
async fn watch(endpoint: String, watched: Watched, ask_progress: bool) -> WatchHistory {
    let mut history = WatchHistory {
        watched,
        events: Vec::new(),
        bookmarks: Vec::new(),
        resumed: 0,
    };
    loop {
        let mut client = connect(&endpoint).await;
        if watch_once(&mut client, &mut history, ask_progress).await.is_ok() {
            return history;
        }
        history.resumed += 1;
        tokio::time::sleep(RETRY).await;
    }
}

/// Ends well with the last write, badly with the connection.
async fn watch_once(
    client: &mut Client,
    history: &mut WatchHistory,
    ask_progress: bool,
) -> Result<(), Option<etcd_client::Error>> {
    let from = history.events.last().map_or(1, |event| event.revision + 1);
    let Watched { key, end, before } = history.watched;
    let mut options = WatchOptions::new().with_range(end).with_start_revision(from);
    if before {
        options = options.with_prev_key();
    }
    let mut stream = client.watch(key, Some(options)).await?;
    loop {
        let Some(response) = stream.message().await? else {
            return Err(None);
        };
        assert!(!response.canceled(), "{response:?}");
        if response.created() {
            continue;
        }
        if response.events().is_empty() {
            let revision = response.header().map_or(0, |header| header.revision());
            history.bookmarks.push((history.events.len(), revision));
            continue;
        }
        let events = response.events().iter().map(|event| {
            let kv = event.kv().expect("an event has a key");
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Event {
                revision: kv.mod_revision(),
                key: text(kv.key()),
                value: (event.event_type() == EventType::Put).then(|| text(kv.value())),
                before: event.prev_kv().map(|kv| text(kv.value())),
            }
        });
        history.events.extend(events);
        if history
            .events
            .iter()
            .rev()
            .take(KEYS.len())
            .any(|event| event.value.as_deref() == Some(END))
        {
            return Ok(());
        }
        if ask_progress {
            stream.request_progress().await?;
        }
    }
}

/// What a client asked for, and when: nothing is known of its place in time but that it lies in between.
#[derive(Debug, Clone)]
struct Call {
    start: Instant,
    end: Instant,
    did: Did,
}

type Write = (String, Option<String>);

#[derive(Debug, Clone)]
enum Did {
    /// All of it, in one revision.
    Wrote { writes: Vec<Write>, revision: i64 },
    /// Saw the key at the revision.
    Read {
        key: String,
        found: Option<String>,
        revision: i64,
    },
    /// No answer came: all of it or nothing, sometime.
    Unknown { writes: Vec<Write> },
}

async fn write(
    writer: u64,
    mut client: Client,
    acknowledged: Arc<AtomicUsize>,
    stop: CancellationToken,
) -> Vec<Call> {
    let mut random = StdRng::seed_from_u64(writer);
    let mut calls = Vec::new();
    for number in 0.. {
        if stop.is_cancelled() {
            break;
        }
        let key = KEYS[random.random_range(0..KEYS.len())];
        let other = KEYS[random.random_range(0..KEYS.len())];
        let value = format!("{writer}-{number}");
        let start = Instant::now();
        let (writes, asked): (Vec<Write>, _) = match random.random_range(0..10) {
            0..4 => (
                vec![(key.to_owned(), Some(value.clone()))],
                timed(put(&mut client, key, &value)).await,
            ),
            4 => (
                vec![(key.to_owned(), None)],
                timed(delete(&mut client, key)).await,
            ),
            5..7 => (Vec::new(), timed(get(&mut client, key)).await),
            _ => {
                let mut keys = vec![key];
                keys.extend((other != key).then_some(other));
                let seen = calls.iter().rev().find_map(|call: &Call| match &call.did {
                    Did::Wrote { writes, revision } if writes.iter().any(|(wrote, _)| wrote == key) => {
                        Some(*revision)
                    }
                    _ => None,
                });
                let writes = keys.iter().map(|key| ((*key).to_owned(), Some(value.clone())));
                (
                    writes.collect(),
                    timed(swap(&mut client, &keys, seen.unwrap_or(0), &value)).await,
                )
            }
        };
        let did = asked.unwrap_or(Did::Unknown { writes });
        let answered = !matches!(did, Did::Unknown { .. });
        calls.push(Call {
            start,
            end: Instant::now(),
            did,
        });
        if answered {
            acknowledged.fetch_add(1, Ordering::Relaxed);
        } else {
            tokio::time::sleep(RETRY).await;
        }
    }
    calls
}

async fn timed(call: impl Future<Output = Result<Did, etcd_client::Error>>) -> Option<Did> {
    tokio::time::timeout(ANSWER_LIMIT, call).await.ok()?.ok()
}

fn revision(header: Option<&etcd_client::ResponseHeader>) -> i64 {
    header.expect("a header").revision()
}

async fn put(client: &mut Client, key: &str, value: &str) -> Result<Did, etcd_client::Error> {
    let answer = client.put(key, value, None).await?;
    Ok(Did::Wrote {
        writes: vec![(key.to_owned(), Some(value.to_owned()))],
        revision: revision(answer.header()),
    })
}

/// A deletion of nothing is a look at nothing.
async fn delete(client: &mut Client, key: &str) -> Result<Did, etcd_client::Error> {
    let answer = client.delete(key, None).await?;
    let (key, revision) = (key.to_owned(), revision(answer.header()));
    Ok(match answer.deleted() {
        0 => Did::Read {
            key,
            found: None,
            revision,
        },
        _ => Did::Wrote {
            writes: vec![(key, None)],
            revision,
        },
    })
}

fn found(key: &str, answer: &etcd_client::GetResponse, revision: i64) -> Did {
    let value = |kv: &etcd_client::KeyValue| String::from_utf8_lossy(kv.value()).into_owned();
    Did::Read {
        key: key.to_owned(),
        found: answer.kvs().first().map(value),
        revision,
    }
}

async fn get(client: &mut Client, key: &str) -> Result<Did, etcd_client::Error> {
    let answer = client.get(key, Some(GetOptions::new())).await?;
    Ok(found(key, &answer, revision(answer.header())))
}

/// Writes all the keys if the first is unchanged, else looks at it.
async fn swap(client: &mut Client, keys: &[&str], seen: i64, value: &str) -> Result<Did, etcd_client::Error> {
    let key = keys[0];
    let txn = Txn::new()
        .when([Compare::mod_revision(key, CompareOp::Equal, seen)])
        .and_then(
            keys.iter()
                .map(|key| TxnOp::put(*key, value, None))
                .collect::<Vec<_>>(),
        )
        .or_else([TxnOp::get(key, None)]);
    let answer = client.txn(txn).await?;
    let revision = revision(answer.header());
    if answer.succeeded() {
        let writes = keys.iter().map(|key| ((*key).to_owned(), Some(value.to_owned())));
        return Ok(Did::Wrote {
            writes: writes.collect(),
            revision,
        });
    }
    match answer.op_responses().first() {
        Some(TxnOpResponse::Get(answer)) => Ok(found(key, answer, revision)),
        other => panic!("{other:?}"),
    }
}

/// Whether a watch saw what happened in its range: each event once, in order, whole revisions, and nothing later that a
/// bookmark had promised to be past.
fn check_watch(all: &[Event], history: &WatchHistory) -> Vec<String> {
    let WatchHistory {
        watched,
        events,
        bookmarks,
        resumed: _,
    } = history;
    let expected = all
        .iter()
        .filter(|event| watched.wants(&event.key))
        .map(|event| Event {
            before: event.before.clone().filter(|_| watched.before),
            ..event.clone()
        });
    let expected: Vec<Event> = expected.collect();
    let mut problems = Vec::new();
    if *events != expected {
        let at = events
            .iter()
            .zip(&expected)
            .take_while(|(seen, expected)| seen == expected)
            .count();
        let (seen, expected) = (events.get(at), expected.get(at));
        problems.push(format!("{watched:?}: event {at} is {seen:?}, not {expected:?}"));
    }
    for (count, revision) in bookmarks {
        if let Some(late) = events.get(*count).filter(|event| event.revision <= *revision) {
            problems.push(format!(
                "{watched:?}: {late:?} came after a bookmark at {revision}"
            ));
        }
    }
    problems
}

/// Whether the calls are linearizable, in the order of their revisions: each did and saw what the events say of its
/// revision, and none lies before one that had ended when it started.
fn check_calls(all: &[Event], calls: &[Call]) -> Vec<String> {
    let mut problems = check_events(all, calls);
    let mut by_start: Vec<(&Call, i64, bool)> = calls.iter().filter_map(|call| placed(all, call)).collect();
    by_start.sort_by_key(|(call, ..)| call.start);
    let mut by_end = by_start.clone();
    by_end.retain(|(call, ..)| !matches!(call.did, Did::Unknown { .. }));
    by_end.sort_by_key(|(call, ..)| call.end);
    let mut ended = by_end.into_iter().peekable();
    let mut newest = 0;
    for (call, revision, writes) in by_start {
        while let Some((_, revision, _)) = ended.next_if(|(before, ..)| before.end < call.start) {
            newest = newest.max(revision);
        }
        if revision < newest || (writes && revision == newest) {
            problems.push(format!(
                "{call:?} at {revision} started when {newest} had been seen"
            ));
        }
    }
    problems
}

/// The revision of a call, and whether it made it. One without an answer is where its value is found.
fn placed<'a>(all: &[Event], call: &'a Call) -> Option<(&'a Call, i64, bool)> {
    match &call.did {
        Did::Wrote { revision, .. } => Some((call, *revision, true)),
        Did::Read { revision, .. } => Some((call, *revision, false)),
        Did::Unknown { writes } => {
            let (_, value) = writes.first()?;
            value.as_ref()?;
            let event = all.iter().find(|event| event.value == *value)?;
            Some((call, event.revision, true))
        }
    }
}

fn check_events(all: &[Event], calls: &[Call]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut by_revision: BTreeMap<i64, Vec<Write>> = BTreeMap::new();
    for event in all {
        let write = (event.key.clone(), event.value.clone());
        by_revision.entry(event.revision).or_default().push(write);
    }
    let mut claimed = BTreeSet::new();
    for call in calls {
        match &call.did {
            Did::Wrote { writes, revision } => {
                let is_there = by_revision.get(revision) == Some(writes);
                if !is_there || !claimed.insert(*revision) {
                    problems.push(format!("{call:?}: there is {:?}", by_revision.get(revision)));
                }
            }
            Did::Read { key, found, revision } => {
                let seen = all
                    .iter()
                    .rev()
                    .find(|event| event.revision <= *revision && event.key == *key);
                let value = seen.and_then(|event| event.value.clone());
                if value != *found {
                    problems.push(format!("{call:?}: there was {value:?}"));
                }
            }
            Did::Unknown { .. } => {}
        }
    }
    let mut unknown: Vec<&Vec<Write>> = calls
        .iter()
        .filter_map(|call| match &call.did {
            Did::Unknown { writes } => Some(writes),
            Did::Wrote { .. } | Did::Read { .. } => None,
        })
        .collect();
    for (revision, writes) in by_revision {
        let is_end = writes.iter().all(|(_, value)| value.as_deref() == Some(END));
        if claimed.contains(&revision) || is_end {
            continue;
        }
        match unknown.iter().position(|asked| **asked == writes) {
            Some(at) => drop(unknown.swap_remove(at)),
            None => problems.push(format!("nobody asked for {writes:?} at {revision}")),
        }
    }
    problems
}

#[test]
fn the_judge_finds_what_is_wrong() {
    let began = Instant::now();
    let event = |revision, key: &str, value: &str| Event {
        revision,
        key: key.to_owned(),
        value: (!value.is_empty()).then(|| value.to_owned()),
        before: None,
    };
    let all = [
        event(2, "k/0", "a"),
        event(3, "k/1", "b"),
        event(3, "k/0", "b"),
        event(4, "k/0", ""),
    ];
    let call = |start, end, did| Call {
        start: began + Duration::from_secs(start),
        end: began + Duration::from_secs(end),
        did,
    };
    let writes = |writes: &[(&str, &str)]| -> Vec<Write> {
        let write = |(key, value): &(&str, &str)| {
            (
                (*key).to_owned(),
                (!value.is_empty()).then(|| (*value).to_owned()),
            )
        };
        writes.iter().map(write).collect()
    };
    let wrote = |revision, asked: &[(&str, &str)]| Did::Wrote {
        writes: writes(asked),
        revision,
    };
    let read = |revision, key: &str, value: &str| Did::Read {
        key: key.to_owned(),
        found: (!value.is_empty()).then(|| value.to_owned()),
        revision,
    };
    let unknown = |asked: &[(&str, &str)]| Did::Unknown {
        writes: writes(asked),
    };
    let good = [
        call(0, 2, wrote(2, &[("k/0", "a")])),
        call(1, 3, unknown(&[("k/1", "b"), ("k/0", "b")])),
        call(3, 5, wrote(4, &[("k/0", "")])),
        call(4, 6, read(3, "k/0", "b")),
        call(6, 7, read(4, "k/0", "")),
    ];
    assert_eq!(check_calls(&all, &good), [] as [String; 0]);
    let bad = [
        ("a lost write", call(8, 9, wrote(5, &[("k/2", "c")]))),
        ("half a transaction", call(2, 3, wrote(3, &[("k/1", "b")]))),
        ("a stale read", call(7, 8, read(3, "k/0", "b"))),
        ("a read of what was not there", call(5, 6, read(4, "k/0", "b"))),
        ("two for one revision", call(1, 2, wrote(2, &[("k/0", "a")]))),
    ];
    for (what, call) in bad {
        let calls: Vec<Call> = good.iter().cloned().chain([call]).collect();
        assert!(!check_calls(&all, &calls).is_empty(), "{what}");
    }
    assert!(
        !check_calls(&all, &good[1..]).is_empty(),
        "a write that nobody asked for"
    );

    let saw = |events: &[Event], bookmarks: &[(usize, i64)]| WatchHistory {
        watched: WATCHED[4],
        events: events.to_vec(),
        bookmarks: bookmarks.to_vec(),
        resumed: 0,
    };
    let own = [all[0].clone(), all[2].clone(), all[3].clone()];
    assert_eq!(
        check_watch(&all, &saw(&own, &[(1, 2), (3, 4)])),
        [] as [String; 0]
    );
    let [first, second, third] = own.clone();
    let bad = [
        ("a lost event", saw(&own[..2], &[])),
        ("a gap", saw(&[first.clone(), third.clone()], &[])),
        (
            "out of order",
            saw(&[second.clone(), first.clone(), third.clone()], &[]),
        ),
        ("twice", saw(&[first.clone(), first, second, third], &[])),
        ("another's event", saw(&all, &[])),
        ("a bookmark too early", saw(&own, &[(1, 3)])),
    ];
    for (what, history) in bad {
        assert!(!check_watch(&all, &history).is_empty(), "{what}");
    }
}
