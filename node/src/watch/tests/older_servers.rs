//! Servers of older versions, and with features switched off one by one.

use std::collections::BTreeSet;
use std::time::Duration;

use tests::fake_api::{Behaviour, StreamingLists};

use super::bench::{Bench, feed, namespace, service, services, synced, wait_for};
use crate::watch::KINDS;

/// Makes a server of another one.
type Switch = fn(&mut Behaviour);

/// Lists, follows, resumes, and lists again where the history is gone.
async fn check(server: &'static str, behave: Switch) {
    let bench = Bench::start(|api| {
        feed(api);
        api.behave(behave);
    });
    let lacks_kind = bench.api.lacks("servicecidrs");
    let wanted: BTreeSet<String> = ["a", "b", "c"].map(str::to_owned).into();
    bench.api.put(service("c", 80));
    bench
        .until(server, move |snapshot| {
            let mut kinds = KINDS.iter();
            services(snapshot) == wanted
                && (synced(snapshot)
                    || lacks_kind
                        && kinds.all(|kind| *kind == model::Kind::ServiceCidr || snapshot.is_synced(*kind)))
        })
        .await;
    let until_services = |names: &[&str]| {
        let names: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        bench.until(server, move |snapshot| services(snapshot) == names)
    };
    bench.api.bookmark();
    bench.api.cut();
    bench.api.put(service("d", 80));
    bench.api.delete(&service("a", 80));
    until_services(&["b", "c", "d"]).await;

    bench.api.delete_unseen(&service("b", 80));
    bench.api.compact();
    until_services(&["c", "d"]).await;
    bench.api.put(namespace("marker"));
    bench
        .until(server, |snapshot| snapshot.namespaces.len() == 2)
        .await;
    let failing = || {
        let kinds = bench.status.kinds();
        kinds.values().filter(|kind| kind.failing.is_some()).count()
    };
    wait_for(server, || failing() == 0).await;
    // A server that is behind others would take back what they told.
    let requests = bench.api.requests();
    let of_any_time = requests.iter().find(|uri| uri.contains("resourceVersion=0"));
    assert_eq!(of_any_time, None, "{server}");
}

#[tokio::test]
async fn every_server_is_listed_followed_and_listed_again() {
    let rows: [(&str, Switch); 7] = [
        ("1.33", |_| {}),
        ("no WatchList", |server| {
            server.streaming_lists = StreamingLists::Refused;
        }),
        ("a proxy that knows no WatchList", |server| {
            server.streaming_lists = StreamingLists::Unknown;
        }),
        ("no WatchBookmark", |server| server.no_bookmarks = true),
        ("neither WatchList nor APIListChunking", |server| {
            server.streaming_lists = StreamingLists::Refused;
            server.no_pages = true;
        }),
        ("no MultiCIDRServiceAllocator", |server| {
            server.absent = vec!["servicecidrs"];
        }),
        ("none of them, and pages of two", |server| {
            server.streaming_lists = StreamingLists::Refused;
            server.no_bookmarks = true;
            server.largest_page = Some(2);
            server.absent = vec!["servicecidrs"];
        }),
    ];
    futures::future::join_all(rows.map(|(server, behave)| check(server, behave))).await;
}

#[tokio::test]
async fn a_server_that_has_no_streaming_lists_any_more_is_listed_by_pages() {
    let bench = Bench::start(feed);
    bench.until_services(&["a", "b"]).await;
    bench
        .api
        .behave(|server| server.streaming_lists = StreamingLists::Refused);
    bench.api.compact();
    bench.api.put(service("c", 80));
    bench.until_services(&["a", "b", "c"]).await;
}

#[tokio::test]
async fn a_server_that_is_long_out_of_reach_keeps_its_streaming_lists() {
    // Longer than a server may say nothing that does not know them.
    let away = Duration::from_secs(11);
    let bench = Bench::start(|api| {
        feed(api);
        api.behave(|server| server.delay = away);
    });
    let watches = || {
        let requests = bench.api.requests();
        requests
            .iter()
            .filter(|uri| uri.contains("sendInitialEvents=true"))
            .count()
    };
    wait_for("all kinds are asked for", || watches() == KINDS.len()).await;
    bench.api.behave(|server| server.delay = Duration::ZERO);
    bench.until_services(&["a", "b"]).await;
    assert_eq!(watches(), KINDS.len(), "one request for each");
    let requests = bench.api.requests();
    let page = requests.iter().find(|uri| uri.contains("limit="));
    assert_eq!(page, None);
}
