//! Watches that are slow, idle, or overtaken.

use std::time::Duration;

use etcd_client::{Client, EventType, WatchOptions, WatchStream};
use store::AutoCompaction;

use crate::fixture::{Directory, LIMIT, Store, config, eventually, refusal};

/// More than all the buffers between store and client hold together.
const WRITES: usize = 300;
const VALUE_BYTES: usize = 100_000;

async fn next(watch: &mut WatchStream) -> etcd_client::WatchResponse {
    let message = tokio::time::timeout(LIMIT, watch.message())
        .await
        .expect("a response in time");
    message.unwrap().expect("an open stream")
}

async fn watch(client: &mut Client, options: WatchOptions) -> WatchStream {
    let mut watch = client.watch("", Some(options.with_all_keys())).await.unwrap();
    assert!(next(&mut watch).await.created());
    watch
}

async fn write_much(client: &mut Client) {
    for number in 0..WRITES {
        client
            .put(number.to_string(), vec![b'x'; VALUE_BYTES], None)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_watch_that_does_not_read_holds_nobody_up_and_misses_nothing() {
    let directory = Directory::new();
    let store = Store::start(config(&directory)).await;
    let mut client = store.client().await;
    let mut slow = watch(&mut client, WatchOptions::new()).await;
    write_much(&mut store.client().await).await;
    let mut keys = Vec::new();
    while keys.len() < WRITES {
        keys.extend(
            next(&mut slow)
                .await
                .events()
                .iter()
                .map(|event| event.kv().unwrap().key_str().unwrap().to_owned()),
        );
    }
    assert_eq!(
        keys,
        (0..WRITES).map(|number| number.to_string()).collect::<Vec<_>>()
    );
    store.stop().await;
}

#[tokio::test]
async fn a_watch_that_a_compaction_passes_is_cancelled_after_what_it_saw() {
    let directory = Directory::new();
    let store = Store::start(config(&directory)).await;
    let mut client = store.client().await;
    let mut slow = watch(&mut client, WatchOptions::new()).await;
    let mut other = store.client().await;
    write_much(&mut other).await;
    let newest = other.get("x", None).await.unwrap().header().unwrap().revision();
    other.compact(newest, None).await.unwrap();
    let mut seen = 1;
    loop {
        let response = next(&mut slow).await;
        if response.canceled() {
            assert_eq!(response.compact_revision(), newest);
            break;
        }
        for event in response.events() {
            seen += 1;
            assert_eq!(event.kv().unwrap().mod_revision(), seen);
        }
    }
    assert!(seen < newest, "the compaction passed it");
    store.stop().await;
}

/// It has seen everything up to the first revision: what looks again and again until it has must come to an end.
#[tokio::test]
async fn a_watch_from_the_first_revision_of_an_empty_store_waits_for_the_second() {
    let directory = Directory::new();
    let store = Store::start(config(&directory)).await;
    let mut client = store.client().await;
    let mut first = watch(&mut client, WatchOptions::new().with_start_revision(1)).await;
    first.request_progress().await.unwrap();
    assert_eq!(next(&mut first).await.header().unwrap().revision(), 1);
    client.put("a", "1", None).await.unwrap();
    assert_eq!(next(&mut first).await.events()[0].kv().unwrap().mod_revision(), 2);
    store.stop().await;
}

#[tokio::test]
async fn an_idle_watch_is_told_the_revision_if_it_asked_for_that() {
    let directory = Directory::new();
    let mut quick = config(&directory);
    quick.progress_interval = Duration::from_millis(50);
    let store = Store::start(quick).await;
    let mut client = store.client().await;
    client.put("b", "1", None).await.unwrap();
    let mut idle = client
        .watch("a", Some(WatchOptions::new().with_progress_notify()))
        .await
        .unwrap();
    assert!(next(&mut idle).await.created());
    client.put("b", "2", None).await.unwrap();
    loop {
        let response = next(&mut idle).await;
        assert_eq!((response.events().len(), response.watch_id()), (0, 0));
        if response.header().unwrap().revision() == 3 {
            break;
        }
    }
    store.stop().await;
}

#[tokio::test]
async fn progress_on_request_comes_after_all_events_up_to_it() {
    let directory = Directory::new();
    let store = Store::start(config(&directory)).await;
    let mut client = store.client().await;
    for number in 0..50 {
        client.put(number.to_string(), "1", None).await.unwrap();
    }
    let mut behind = client
        .watch(
            "",
            Some(WatchOptions::new().with_all_keys().with_start_revision(1)),
        )
        .await
        .unwrap();
    behind.request_progress().await.unwrap();
    assert!(next(&mut behind).await.created());
    let mut events = 0;
    let progress = loop {
        let response = next(&mut behind).await;
        if response.events().is_empty() {
            break response;
        }
        events += response.events().len();
    };
    assert_eq!(
        (progress.watch_id(), progress.header().unwrap().revision(), events),
        (-1, 51, 50)
    );
    store.stop().await;
}

#[tokio::test]
async fn a_large_revision_comes_in_fragments_to_a_client_that_takes_them() {
    let directory = Directory::new();
    let store = Store::start(config(&directory)).await;
    let mut client = store.client().await;
    let mut watch = watch(
        &mut client,
        WatchOptions::new()
            .with_fragment()
            .with_filters([etcd_client::WatchFilterType::NoPut])
            .with_prev_key(),
    )
    .await;
    for number in 0..4 {
        client
            .put(number.to_string(), vec![b'x'; 700_000], None)
            .await
            .unwrap();
    }
    client
        .delete("", Some(etcd_client::DeleteOptions::new().with_all_keys()))
        .await
        .unwrap();
    let mut parts = Vec::new();
    let mut more = true;
    while more {
        let response = next(&mut watch).await;
        assert!(
            response
                .events()
                .iter()
                .all(|event| event.event_type() == EventType::Delete)
        );
        parts.push(response.events().len());
        more = response.0.fragment;
    }
    assert_eq!(parts, [2, 2]);
    store.stop().await;
}

#[tokio::test]
async fn history_is_kept_as_short_as_it_is_configured() {
    let directory = Directory::new();
    let mut short = config(&directory);
    short.auto_compaction = AutoCompaction::Age(Duration::from_millis(20));
    let store = Store::start(short).await;
    let mut client = store.client().await;
    for value in ["1", "2", "3"] {
        client.put("a", value, None).await.unwrap();
    }
    eventually(
        "OutOfRange: etcdserver: mvcc: required revision has been compacted".to_owned(),
        || {
            let mut client = client.clone();
            async move {
                let old = etcd_client::GetOptions::new().with_revision(3);
                match client.get("a", Some(old)).await {
                    Ok(_) => String::new(),
                    refused => refusal(refused),
                }
            }
        },
    )
    .await;
    store.stop().await;
}

#[tokio::test]
async fn any_number_of_watches_leaves_room_for_requests_on_the_same_connection() {
    let directory = Directory::new();
    let store = Store::start(config(&directory)).await;
    let mut client = store.client().await;
    let mut streams = Vec::new();
    for _ in 0..300 {
        streams.push(watch(&mut client, WatchOptions::new()).await);
    }
    client.put("a", "1", None).await.unwrap();
    for stream in &mut streams {
        assert_eq!(next(stream).await.events().len(), 1);
    }
    store.stop().await;
}
