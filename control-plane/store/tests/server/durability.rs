//! What was acknowledged is there again, however the store ended.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use etcd_client::{Client, CompactionOptions, Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};
use store::{Config, Server};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::fixture::{Directory, Store, config, refusal, value};

/// Tells the process of [`serve_until_killed`] where its data is.
const DIRECTORY: &str = "CWT_STORE_DIRECTORY";

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let directory = Directory::new();
    let store = Store::start(config(&directory)).await;
    let mut client = store.client().await;
    let lease = client.lease_grant(600, None).await.unwrap().id();
    client.put("a", "1", None).await.unwrap();
    client.put("a", "2", None).await.unwrap();
    client
        .put("b", "1", Some(PutOptions::new().with_lease(lease)))
        .await
        .unwrap();
    client.delete("c", None).await.unwrap();
    client.compact(3, None).await.unwrap();
    let before = snapshot(&mut client).await;
    let cluster = client.status().await.unwrap().header().unwrap().cluster_id();
    store.stop().await;

    let store = Store::start(config(&directory)).await;
    let mut client = store.client().await;
    assert_eq!(snapshot(&mut client).await, before);
    assert_eq!(
        client.status().await.unwrap().header().unwrap().cluster_id(),
        cluster
    );
    let old = client.get("a", Some(GetOptions::new().with_revision(2))).await;
    assert_eq!(
        refusal(old),
        "OutOfRange: etcdserver: mvcc: required revision has been compacted"
    );
    let next = client.put("a", "3", None).await.unwrap();
    assert_eq!(next.header().unwrap().revision(), 5);
    client.lease_revoke(lease).await.unwrap();
    assert_eq!(
        value(&mut client, "b").await,
        None,
        "the key hangs on its lease after a restart"
    );
    store.stop().await;
}

/// Keys with all their numbers, and leases with their keys.
async fn snapshot(client: &mut Client) -> String {
    let all = client
        .get("", Some(GetOptions::new().with_all_keys()))
        .await
        .unwrap();
    let leases = client.leases().await.unwrap();
    format!("{:?} {:?}", all.0.kvs, leases.0.leases)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9() {
    const WRITERS: usize = 8;
    const ACKNOWLEDGED: usize = 400;
    let directory = Directory::new();
    let (mut process, endpoint) = spawn(&directory.file("store"));
    let (acknowledge, mut acknowledged) = tokio::sync::mpsc::unbounded_channel();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (endpoint, acknowledge) = (endpoint.clone(), acknowledge.clone());
        writers.spawn(async move {
            let mut client = Client::connect([endpoint], None).await.unwrap();
            for number in 0.. {
                let key = format!("{writer}/{number}");
                let Ok(answer) = client.put(key.clone(), "x", None).await else {
                    return;
                };
                let revision = answer.header().unwrap().revision();
                acknowledge.send((key, revision)).unwrap();
            }
        });
    }
    drop(acknowledge);
    let mut written = Vec::new();
    while let Some(put) = acknowledged.recv().await {
        written.push(put);
        if written.len() == ACKNOWLEDGED {
            process.kill().unwrap();
        }
    }
    process.wait().unwrap();
    writers.join_all().await;

    let store = Store::start(config(&directory)).await;
    let mut client = store.client().await;
    for (key, revision) in written {
        let found = client.get(key.clone(), None).await.unwrap();
        let revisions: Vec<_> = found.kvs().iter().map(|kv| kv.mod_revision()).collect();
        assert_eq!(revisions, [revision], "{key}");
    }
    store.stop().await;
}

#[tokio::test]
async fn compaction_and_defragmentation_give_disk_space_back() {
    let directory = Directory::new();
    let store = Store::start(config(&directory)).await;
    let mut client = store.client().await;
    for _ in 0..100 {
        client.put("a", vec![b'x'; 100_000], None).await.unwrap();
    }
    let before = client.status().await.unwrap().db_size();
    let physical = CompactionOptions::new().with_physical();
    client.compact(101, Some(physical)).await.unwrap();
    client.defragment().await.unwrap();
    let after = client.status().await.unwrap().db_size();
    assert!(after < before / 4, "{before} bytes before, {after} after");
    assert_eq!(client.get("a", None).await.unwrap().kvs()[0].version(), 100);
    store.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_compare_and_swap_loses_no_update() {
    const CLIENTS: i64 = 16;
    const INCREMENTS: i64 = 20;
    let directory = Directory::new();
    let store = Store::start(config(&directory)).await;
    let mut client = store.client().await;
    client.put("counter", "0", None).await.unwrap();
    let mut incrementers = JoinSet::new();
    for _ in 0..CLIENTS {
        let client = store.client().await;
        incrementers.spawn(async move {
            for _ in 0..INCREMENTS {
                while !increment(&mut client.clone()).await {}
            }
        });
    }
    incrementers.join_all().await;
    let found = client.get("counter", None).await.unwrap();
    let counter = &found.kvs()[0];
    assert_eq!(counter.value_str().unwrap(), (CLIENTS * INCREMENTS).to_string());
    assert_eq!(counter.version(), CLIENTS * INCREMENTS + 1);
    store.stop().await;
}

async fn increment(client: &mut Client) -> bool {
    let found = client.get("counter", None).await.unwrap();
    let counter = &found.kvs()[0];
    let next = counter.value_str().unwrap().parse::<i64>().unwrap() + 1;
    let unchanged = Compare::mod_revision("counter", CompareOp::Equal, counter.mod_revision());
    let swap = Txn::new()
        .when([unchanged])
        .and_then([TxnOp::put("counter", next.to_string(), None)]);
    client.txn(swap).await.unwrap().succeeded()
}

/// This test program again, running only [`serve_until_killed`].
fn spawn(data_dir: &Path) -> (Child, String) {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args([
            "durability::serve_until_killed",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env(DIRECTORY, data_dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(process.stdout.take().unwrap());
    let endpoint = output.lines().map(Result::unwrap).find_map(|line| {
        let (_, addr) = line.split_once("listening on ")?;
        Some(format!("http://{addr}"))
    });
    (process, endpoint.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "not a test: the process that what_was_acknowledged_survives_kill_9 starts and kills"]
async fn serve_until_killed() {
    let Some(data_dir) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let server = Server::bind(Config::new(data_dir, vec![([127, 0, 0, 1], 0).into()]))
        .await
        .unwrap();
    println!("listening on {}", server.local_addrs()[0]);
    server.run(CancellationToken::new()).await.unwrap();
}
