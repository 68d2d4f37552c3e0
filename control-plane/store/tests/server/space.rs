//! Quotas that are full, snapshots, and how large the file becomes.

use etcd_client::{
    AlarmAction, AlarmType, Client, CompactionOptions, DeleteOptions, GetOptions, PutOptions, WatchOptions,
};
use store::AutoCompaction;
use tokio::task::JoinSet;

use crate::fixture::{Directory, Store, config, refusal, value};

pub const NO_SPACE: &str = "ResourceExhausted: etcdserver: mvcc: database space exceeded";

async fn alarms(client: &mut Client) -> Vec<(u64, AlarmType)> {
    let told = client
        .alarm(AlarmAction::Get, AlarmType::None, None)
        .await
        .unwrap();
    told.alarms()
        .iter()
        .map(|alarm| (alarm.member_id(), alarm.alarm()))
        .collect()
}

#[tokio::test]
async fn beyond_its_quota_the_store_puts_no_key_until_it_is_disarmed() {
    let directory = Directory::new();
    let mut small = config(&directory);
    small.quota_bytes = 8 << 20;
    let store = Store::start(small.clone()).await;
    let mut client = store.client().await;
    let lease = client.lease_grant(60, None).await.unwrap().id();
    client
        .put("on/lease", "1", Some(PutOptions::new().with_lease(lease)))
        .await
        .unwrap();
    let mut puts = 0;
    let refused = loop {
        match client.put("a", vec![b'x'; 100_000], None).await {
            Ok(_) => puts += 1,
            refused => break refusal(refused),
        }
    };
    assert_eq!(refused, NO_SPACE);
    assert!(puts > 20, "{puts} puts of 100 kB fit into 8 MiB");
    let member = client.status().await.unwrap().header().unwrap().member_id();
    assert_eq!(alarms(&mut client).await, [(member, AlarmType::Nospace)]);
    store.stop().await;

    // The alarm is kept; what makes no new keys is taken.
    let store = Store::start(small).await;
    let mut client = store.client().await;
    let told = client.status().await.unwrap().errors().to_vec();
    assert_eq!(told, [format!("memberID:{member} alarm:NOSPACE ")]);
    let txn = etcd_client::Txn::new().or_else([etcd_client::TxnOp::put("b", "1", None)]);
    assert_eq!(
        refusal(client.txn(txn).await),
        NO_SPACE,
        "a put in a branch that does not run"
    );
    assert_eq!(refusal(client.lease_grant(60, None).await), NO_SPACE);
    client.lease_keep_alive(lease).await.unwrap();
    client.lease_revoke(lease).await.unwrap();
    assert_eq!(value(&mut client, "on/lease").await, None);
    client.delete("a", None).await.unwrap();
    let newest = client.get("a", None).await.unwrap().header().unwrap().revision();
    let physical = CompactionOptions::new().with_physical();
    client.compact(newest, Some(physical)).await.unwrap();
    client.defragment().await.unwrap();
    assert_eq!(refusal(client.put("b", "1", None).await), NO_SPACE, "still armed");
    let disarmed = client
        .alarm(
            AlarmAction::Deactivate,
            AlarmType::Nospace,
            Some(alarm_of(member)),
        )
        .await
        .unwrap();
    assert_eq!(disarmed.alarms().len(), 1);
    client.put("b", "1", None).await.unwrap();
    assert_eq!(alarms(&mut client).await, []);
    store.stop().await;
}

fn alarm_of(member: u64) -> etcd_client::AlarmOptions {
    let mut options = etcd_client::AlarmOptions::new();
    options.with_member(member);
    options
}

pub async fn keys_of(client: &mut Client) -> Vec<String> {
    let all = client
        .get("", Some(GetOptions::new().with_all_keys().with_keys_only()))
        .await
        .unwrap();
    all.kvs()
        .iter()
        .map(|kv| kv.key_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_starts_from_a_snapshot_as_the_one_that_it_is_of() {
    let directory = Directory::new();
    let store = Store::start(config(&directory)).await;
    let mut client = store.client().await;
    let lease = client.lease_grant(600, None).await.unwrap().id();
    for number in 0..200 {
        let on = Some(PutOptions::new().with_lease(lease));
        client
            .put(format!("{}", number % 50), vec![b'x'; 2000], on)
            .await
            .unwrap();
    }
    client.delete("7", None).await.unwrap();
    client.compact(150, None).await.unwrap();
    let mut stream = client.snapshot().await.unwrap();
    let mut bytes = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        bytes.extend_from_slice(part.blob());
    }
    client.put("later", "1", None).await.unwrap();
    let hash = client.hash_kv(202).await.unwrap().hash();
    store.stop().await;

    let copy = Directory::new();
    std::fs::create_dir_all(copy.file("store")).unwrap();
    let file = &bytes[..bytes.len() - 32];
    assert_eq!(file.len() % 512, 0, "etcdctl tells by this that the sum is there");
    std::fs::write(copy.file("store").join("store.redb"), file).unwrap();
    let store = Store::start(config(&copy)).await;
    let mut client = store.client().await;
    assert_eq!(client.hash_kv(202).await.unwrap().hash(), hash);
    assert_eq!(value(&mut client, "later").await, None);
    let keys = etcd_client::LeaseTimeToLiveOptions::new().with_keys();
    assert_eq!(
        client
            .lease_time_to_live(lease, Some(keys))
            .await
            .unwrap()
            .keys()
            .len(),
        49
    );
    let old = client.get("1", Some(GetOptions::new().with_revision(149))).await;
    assert!(refusal(old).contains("compacted"));
    client
        .delete("", Some(DeleteOptions::new().with_all_keys()))
        .await
        .unwrap();
    store.stop().await;
}

/// One writer, ten watchers, and history that is compacted behind them.
#[tokio::test(flavor = "multi_thread")]
async fn the_file_stays_small_where_history_is_compacted() {
    const WRITES: usize = 3000;
    const KEYS: usize = 20;
    const VALUE_BYTES: usize = 10_000;
    const LARGEST: i64 = 16 << 20;
    let directory = Directory::new();
    let mut short = config(&directory);
    short.auto_compaction = AutoCompaction::Revisions(100);
    let store = Store::start(short).await;
    let mut client = store.client().await;
    let mut watchers = JoinSet::new();
    for _ in 0..10 {
        let mut client = store.client().await;
        let mut watch = client
            .watch("", Some(WatchOptions::new().with_all_keys()))
            .await
            .unwrap();
        assert!(watch.message().await.unwrap().unwrap().created());
        watchers.spawn(async move {
            let mut seen = 0;
            while seen < WRITES {
                seen += watch.message().await.unwrap().unwrap().events().len();
            }
        });
    }
    let mut largest = 0;
    for number in 0..WRITES {
        let put = client
            .put(format!("{}", number % KEYS), vec![b'x'; VALUE_BYTES], None)
            .await
            .unwrap();
        if number % 200 == 199 {
            let revision = put.header().unwrap().revision();
            client.compact(revision - 100, None).await.unwrap();
            largest = largest.max(client.status().await.unwrap().db_size());
        }
    }
    watchers.join_all().await;
    assert!(
        largest < LARGEST,
        "{largest} bytes for {} live ones",
        KEYS * VALUE_BYTES
    );
    println!(
        "{} bytes written, the file had {largest} at most",
        WRITES * VALUE_BYTES
    );
    store.stop().await;
}
