//! A disk that is full. It is a file system of its own, which only root can mount: skipped loudly elsewhere.

use std::{path::Path, process::Command};

use etcd_client::{PutOptions, WatchOptions};
use store::Config;
use tokio::task::JoinSet;

use crate::fixture::{Directory, Store, eventually, refusal};
use crate::space::{NO_SPACE, keys_of};

/// A file system of so many bytes, unmounted when dropped.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn mount(path: &'a Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let size = format!("size={bytes}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(path)
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(path))
    }

    fn resize(&self, bytes: u64) {
        let size = format!("remount,size={bytes}");
        let status = Command::new("mount")
            .args(["-o", &size])
            .arg(self.0)
            .status()
            .unwrap();
        assert!(status.success());
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// Everything that was acknowledged is there, nothing that was refused, and a watch saw the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_loses_nothing_and_goes_on_when_it_has_space() {
    const WRITERS: usize = 4;
    let directory = Directory::new();
    let path = directory.file("disk");
    let Some(disk) = Tmpfs::mount(&path, 12 << 20) else {
        eprintln!("\n==== SKIPPED: a file system of its own needs root ====\n");
        return;
    };
    let on_disk = Config::new(path.join("store"), vec![([127, 0, 0, 1], 0).into()]);
    let store = Store::start(on_disk.clone()).await;
    let mut client = store.client().await;
    let lease = client.lease_grant(600, None).await.unwrap().id();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let mut client = store.client().await;
        writers.spawn(async move {
            let mut acknowledged = Vec::new();
            loop {
                let key = format!("{writer}/{}", acknowledged.len());
                let on = Some(PutOptions::new().with_lease(lease));
                match client.put(key.clone(), vec![b'x'; 50_000], on).await {
                    Ok(put) => acknowledged.push((put.header().unwrap().revision(), key)),
                    refused => return (acknowledged, key, refusal(refused)),
                }
            }
        });
    }
    let mut written = Vec::new();
    let mut never = Vec::new();
    for (acknowledged, refused, why) in writers.join_all().await {
        assert_eq!(why, NO_SPACE);
        written.extend(acknowledged);
        never.push(refused);
    }
    written.sort();
    assert!(written.len() > 10, "{} puts were acknowledged", written.len());
    let revisions: Vec<i64> = written.iter().map(|(revision, _)| *revision).collect();
    let expected: Vec<i64> = (2..).take(written.len()).collect();
    assert_eq!(revisions, expected, "what was refused took no revision");
    let mut keys: Vec<String> = written.iter().map(|(_, key)| key.clone()).collect();
    keys.sort();
    assert_eq!(keys_of(&mut client).await, keys);
    let hanging = client.lease_time_to_live(
        lease,
        Some(etcd_client::LeaseTimeToLiveOptions::new().with_keys()),
    );
    assert_eq!(hanging.await.unwrap().keys().len(), keys.len());
    assert_eq!(
        refusal(client.put(never[0].clone(), vec![b'x'; 50_000], None).await),
        NO_SPACE
    );
    assert_eq!(refusal(client.compact(3, None).await), NO_SPACE);
    store.stop().await;

    // A store that starts on a full disk serves what it has.
    let store = Store::start(on_disk).await;
    let mut client = store.client().await;
    assert_eq!(keys_of(&mut client).await, keys);
    let mut watch_again = client
        .watch(
            "",
            Some(WatchOptions::new().with_all_keys().with_start_revision(2)),
        )
        .await
        .unwrap();
    disk.resize(64 << 20);
    eventually(true, || {
        let mut client = client.clone();
        let key = never[0].clone();
        async move { client.put(key, vec![b'x'; 50_000], None).await.is_ok() }
    })
    .await;
    let last = written.last().unwrap().0 + 1;
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        let response = watch_again.message().await.unwrap().unwrap();
        seen.extend(
            response
                .events()
                .iter()
                .map(|event| event.kv().unwrap().mod_revision()),
        );
    }
    assert_eq!(seen, (2..=last).collect::<Vec<_>>());
    store.stop().await;
    println!("{} puts acknowledged, {} refused", written.len(), never.len());
}
