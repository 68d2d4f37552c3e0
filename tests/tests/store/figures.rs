//! How fast, how large. Not a test: prints figures of our store, in a process of its own, and of etcd, in the same run.
//!
//! ```text
//! cargo test --release -p tests --test store figures -- --ignored --nocapture
//! ```

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use etcd_client::{Client, CompactionOptions, WatchOptions};
use tokio::task::JoinSet;

use crate::{
    connect,
    histories::{Kind, Server},
};

/// How many write at a time, and how often each.
const CLIENTS: [(usize, usize); 3] = [(1, 1500), (8, 500), (64, 150)];
const WATCHERS: usize = 10;
const WATCHED_PUTS: usize = 4000;
const KEYS: usize = 100;
/// So many revisions of history are kept.
const KEPT: i64 = 500;
const UNREAD_PUTS: usize = 2000;
/// The kernel counts a hundred in a second (`USER_HZ`).
const TICK_US: u64 = 10_000;
const IDLE: Duration = Duration::from_secs(5);
const VALUE_BYTES: usize = 1024;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn puts_and_watches() {
    let program = tests::etcd::program().expect("etcd on PATH or in target/tools");
    for round in 1..=2 {
        for (name, kind) in [("ours", Kind::Ours), ("etcd", Kind::Etcd(program.clone()))] {
            let server = Server::start(kind).await;
            for (clients, puts) in CLIENTS {
                println!("round {round}, {name}: {}", writers(&server, clients, puts).await);
            }
            println!("round {round}, {name}: {}", watched_writer(&server).await);
            for watches in [0, 20] {
                println!("round {round}, {name}: {}", unread(&server, watches).await);
            }
        }
    }
}

async fn writers(server: &Server, count: usize, puts: usize) -> String {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(connect(&server.endpoint()).await);
    }
    let start = Instant::now();
    let mut writers = JoinSet::new();
    for (number, client) in clients.into_iter().enumerate() {
        writers.spawn(put_many(format!("{count}/{number}"), puts, client));
    }
    let mut times: Vec<Duration> = writers.join_all().await.into_iter().flatten().collect();
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    let [p50, p99] = [50, 99].map(|percent| at(&mut times, percent));
    format!("{count} writers {rate:.0} durable puts/s of 256 bytes, p50 {p50:.2} ms, p99 {p99:.2} ms")
}

async fn put_many(name: String, puts: usize, mut client: Client) -> Vec<Duration> {
    let mut times = Vec::new();
    for put in 0..puts {
        let start = Instant::now();
        let key = format!("many/{name}/{put}");
        client.put(key, vec![b'x'; 256], None).await.expect("a put");
        times.push(start.elapsed());
    }
    times
}

/// One writer that compacts behind itself, and ten watchers: from the put's start to the event.
async fn watched_writer(server: &Server) -> String {
    let began = Instant::now();
    let mut watchers = JoinSet::new();
    let ready = Arc::new(tokio::sync::Barrier::new(WATCHERS + 1));
    for _ in 0..WATCHERS {
        watchers.spawn(watch_all(
            connect(&server.endpoint()).await,
            began,
            Arc::clone(&ready),
        ));
    }
    ready.wait().await;
    let mut client = connect(&server.endpoint()).await;
    let (memory_before, mut largest_file) = (server.holdings().resident_kib, 0);
    let mut largest_memory = 0;
    for number in 0..WATCHED_PUTS {
        let mut value = began.elapsed().as_micros().to_string();
        value.push('.');
        value.extend(std::iter::repeat_n('x', VALUE_BYTES));
        let put = client
            .put(format!("one/{}", number % KEYS), value, None)
            .await
            .expect("a put");
        if number % 500 == 499 {
            let revision = put.header().expect("a header").revision();
            let physical = CompactionOptions::new().with_physical();
            client
                .compact(revision - KEPT, Some(physical))
                .await
                .expect("a compaction");
            largest_file = largest_file.max(client.status().await.expect("the status").db_size());
            largest_memory = largest_memory.max(server.holdings().resident_kib);
        }
    }
    let took = began.elapsed();
    let mut times: Vec<Duration> = watchers.join_all().await.into_iter().flatten().collect();
    let [p50, p99] = [50, 99].map(|percent| at(&mut times, percent));
    format!(
        "1 writer {:.0} puts/s of 1 KiB, {WATCHERS} watchers p50 {p50:.1} ms, p99 {p99:.1} ms from the put's start to \
         the event; {} MiB written, file {:.1} MiB at most, memory {:.1} MiB before, {:.1} MiB at most",
        WATCHED_PUTS as f64 / took.as_secs_f64(),
        (WATCHED_PUTS * VALUE_BYTES) >> 20,
        largest_file as f64 / f64::from(1 << 20),
        memory_before as f64 / 1024.0,
        largest_memory as f64 / 1024.0,
    )
}

/// Watches that nobody reads, while somebody writes what they see and when nobody does.
async fn unread(server: &Server, watches: usize) -> String {
    let mut client = connect(&server.endpoint()).await;
    let mut unread = Vec::new();
    for _ in 0..watches {
        let client = connect(&server.endpoint()).await;
        let options = WatchOptions::new().with_prefix();
        unread.push((
            client
                .watch_client()
                .watch("unread/", Some(options))
                .await
                .expect("a watch"),
            client,
        ));
    }
    let before = server.holdings().cpu_ticks;
    for put in 0..UNREAD_PUTS {
        let key = format!("unread/{}", put % KEYS);
        client
            .put(key, vec![b'x'; VALUE_BYTES], None)
            .await
            .expect("a put");
    }
    let after = server.holdings().cpu_ticks;
    tokio::time::sleep(IDLE).await;
    format!(
        "{watches} watches that nobody reads: {:.0} us of CPU a put of 1 KiB, then {} ms of CPU in {IDLE:?}",
        ((after - before) * TICK_US) as f64 / UNREAD_PUTS as f64,
        (server.holdings().cpu_ticks - after) * TICK_US / 1000,
    )
}

async fn watch_all(mut client: Client, began: Instant, ready: Arc<tokio::sync::Barrier>) -> Vec<Duration> {
    let mut watch = client
        .watch("one/", Some(WatchOptions::new().with_prefix()))
        .await
        .expect("a watch");
    let created = watch.message().await.expect("an answer").expect("an open stream");
    assert!(created.created());
    ready.wait().await;
    let mut times = Vec::new();
    while times.len() < WATCHED_PUTS {
        let response = watch.message().await.expect("events").expect("an open stream");
        for event in response.events() {
            let value = event.kv().and_then(|kv| kv.value_str().ok()).expect("text");
            let micros = value
                .split('.')
                .next()
                .and_then(|micros| micros.parse().ok())
                .expect("a number");
            times.push(began.elapsed().saturating_sub(Duration::from_micros(micros)));
        }
    }
    times
}

/// In milliseconds.
fn at(times: &mut [Duration], percent: usize) -> f64 {
    times.sort();
    let index = (times.len() - 1) * percent / 100;
    times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}
