//! What a store says when it cannot start.

use std::net::TcpListener;

use store::{DiskError, Error, ListenError, Server, TlsFiles};

use crate::fixture::{Directory, Store, config};

#[tokio::test]
async fn a_directory_in_use_and_an_address_in_use_are_told_apart() {
    let directory = Directory::new();
    let store = Store::start(config(&directory)).await;
    let second = Server::bind(config(&directory)).await;
    assert!(matches!(second, Err(Error::Disk(DiskError::InUse { path })) if path == directory.file("store")));

    let other = Directory::new();
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let mut taken_config = config(&other);
    taken_config.listen = vec![taken.local_addr().unwrap()];
    let second = Server::bind(taken_config).await;
    assert!(
        matches!(second, Err(Error::Listen(ListenError::AddressInUse { addr })) if addr == taken.local_addr().unwrap())
    );
    store.stop().await;
}

#[tokio::test]
async fn without_tls_only_loopback_is_listened_on() {
    let directory = Directory::new();
    let mut open = config(&directory);
    open.listen = vec![([0, 0, 0, 0], 0).into()];
    let refused = Server::bind(open).await;
    assert!(
        matches!(refused, Err(Error::Listen(ListenError::Unprotected { .. }))),
        "{refused:?}"
    );
    let mut nowhere = config(&directory);
    nowhere.listen = Vec::new();
    assert!(matches!(
        Server::bind(nowhere).await,
        Err(Error::Listen(ListenError::NoAddress))
    ));
}

#[tokio::test]
async fn a_missing_certificate_is_named() {
    let directory = Directory::new();
    let mut broken = config(&directory);
    let missing = directory.file("no.crt");
    broken.tls = Some(TlsFiles {
        cert: missing.clone(),
        key: missing.clone(),
        client_ca: missing.clone(),
    });
    let refused = Server::bind(broken).await;
    assert!(matches!(refused, Err(Error::Listen(ListenError::ReadPem { path, .. })) if path == missing));
}

#[tokio::test]
async fn every_listener_serves_the_same_keys() {
    let directory = Directory::new();
    let mut twice = config(&directory);
    twice.listen.push(([127, 0, 0, 1], 0).into());
    let server = Server::bind(twice).await.unwrap();
    let endpoints = server
        .local_addrs()
        .iter()
        .map(|addr| format!("http://{addr}"))
        .collect::<Vec<_>>();
    let running = tokio::spawn(server.run(tokio_util::sync::CancellationToken::new()));
    let mut first = etcd_client::Client::connect([&endpoints[0]], None).await.unwrap();
    let mut second = etcd_client::Client::connect([&endpoints[1]], None).await.unwrap();
    first.put("a", "1", None).await.unwrap();
    assert_eq!(crate::fixture::value(&mut second, "a").await, Some("1".into()));
    let members = first.member_list().await.unwrap();
    assert_eq!(members.members()[0].client_urls(), endpoints);
    running.abort();
}
