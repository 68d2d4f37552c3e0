//! Leases end by a clock that the test moves.

use std::sync::Arc;

use etcd_client::PutOptions;

use crate::fixture::{Directory, ManualClock, Store, config, eventually, value};

#[tokio::test]
async fn a_lease_ends_when_its_time_is_over_and_not_before() {
    let directory = Directory::new();
    let clock = Arc::new(ManualClock::new());
    let mut manual = config(&directory);
    manual.clock = clock.clone();
    let store = Store::start(manual).await;
    let mut client = store.client().await;
    let kept = client.lease_grant(60, None).await.unwrap().id();
    let lost = client.lease_grant(60, None).await.unwrap().id();
    for (key, lease) in [("kept", kept), ("lost/a", lost), ("lost/b", lost)] {
        client
            .put(key, "1", Some(PutOptions::new().with_lease(lease)))
            .await
            .unwrap();
    }
    clock.pass(50);
    let (_keeper, _answers) = client.lease_keep_alive(kept).await.unwrap();
    assert_eq!(client.lease_time_to_live(kept, None).await.unwrap().ttl(), 60);
    assert_eq!(client.lease_time_to_live(lost, None).await.unwrap().ttl(), 10);
    clock.pass(11);
    eventually(vec![kept], || {
        let mut client = client.clone();
        async move {
            client
                .leases()
                .await
                .unwrap()
                .leases()
                .iter()
                .map(|lease| lease.id())
                .collect()
        }
    })
    .await;
    assert_eq!(value(&mut client, "kept").await, Some("1".into()));
    let lost = client.get("lost/a", None).await.unwrap();
    assert!(lost.kvs().is_empty());
    assert_eq!(
        lost.header().unwrap().revision(),
        5,
        "both keys went in one revision"
    );
    store.stop().await;
}

#[tokio::test]
async fn a_restart_gives_every_lease_its_whole_time_again() {
    let directory = Directory::new();
    let clock = Arc::new(ManualClock::new());
    let mut manual = config(&directory);
    manual.clock = clock.clone();
    let store = Store::start(manual.clone()).await;
    let lease = store.client().await.lease_grant(60, None).await.unwrap().id();
    clock.pass(50);
    store.stop().await;
    clock.pass(50);
    let store = Store::start(manual).await;
    let mut client = store.client().await;
    assert_eq!(client.lease_time_to_live(lease, None).await.unwrap().ttl(), 60);
    store.stop().await;
}
