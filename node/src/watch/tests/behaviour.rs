//! The whole watch against a fake API server.

use std::collections::BTreeSet;
use std::time::Duration;

use model::{Kind, Snapshot};
use serde_json::json;
use tests::fake_api::StreamingLists;
use tokio::time::Instant;

use super::bench::{Bench, DEADLINE, feed, namespace, node, service, services, slice, wait_for};
use crate::watch::owner::PUBLICATION_INTERVAL;
use crate::watch::{KINDS, Status};

#[tokio::test]
async fn every_kind_is_listed_then_followed_whatever_the_server_makes_of_streaming_lists() {
    let kinds = [
        StreamingLists::Served,
        StreamingLists::Refused,
        StreamingLists::Unknown,
    ];
    let checks = kinds.map(|streaming| async move {
        let bench = Bench::start(|api| {
            feed(api);
            api.behave(|behaviour| behaviour.streaming_lists = streaming);
        });
        let snapshot = bench.until_services(&["a", "b"]).await;
        assert_eq!(snapshot.nodes.len(), 1);
        assert_eq!(snapshot.namespaces.len(), 1);
        assert_eq!(snapshot.slices.len(), 1);
        bench.api.put(service("c", 80));
        bench.api.delete(&service("a", 80));
        bench.until_services(&["b", "c"]).await;
    });
    futures::future::join_all(checks).await;
}

#[tokio::test]
async fn lists_longer_than_a_page_are_followed_to_their_end() {
    let bench = Bench::start(|api| {
        (0..25).for_each(|index| {
            api.put(service(&format!("s{index}"), 80));
        });
        api.behave(|behaviour| {
            behaviour.streaming_lists = StreamingLists::Refused;
            behaviour.largest_page = Some(10);
        });
    });
    let snapshot = bench
        .until("all services", |snapshot| snapshot.is_synced(Kind::Service))
        .await;
    assert_eq!(
        services(&snapshot),
        (0..25).map(|index| format!("s{index}")).collect()
    );
    let requests = bench.api.requests();
    let pages = requests
        .iter()
        .filter(|request| request.contains("continue=") && request.contains("services"));
    assert_eq!(pages.count(), 2, "in {requests:#?}");
}

#[tokio::test]
async fn a_list_after_410_removes_what_vanished_unseen_and_keeps_the_rest() {
    let bench = Bench::start(feed);
    bench.until_services(&["a", "b"]).await;
    bench.api.delete_unseen(&service("a", 80));
    bench.api.delete_unseen(&slice("a-1", "a", "10.244.1.2"));
    bench.api.put(slice("b-1", "b", "10.244.1.3"));
    bench.api.compact();
    let snapshot = bench
        .until("the vanished are gone", |snapshot| {
            services(snapshot) == BTreeSet::from(["b".to_owned()])
                && snapshot.slices.iter().all(|(service, _)| service.name == "b")
        })
        .await;
    assert_eq!(snapshot.slices.len(), 1);
    assert_eq!(snapshot.nodes.len(), 1, "what was listed again stays");
}

#[tokio::test]
async fn a_relist_that_finds_the_same_publishes_nothing() {
    let bench = Bench::start(feed);
    bench.until_services(&["a", "b"]).await;
    let before = bench.snapshots.borrow().clone();
    let lists = |status: &Status| status.kinds().values().map(|kind| kind.lists).sum::<u64>();
    let all = 2 * KINDS.len() as u64;
    bench.api.compact();
    wait_for("all kinds are listed again", || lists(&bench.status) >= all).await;
    bench.api.put(service("marker", 80));
    let after = bench.until_services(&["a", "b", "marker"]).await;
    let changed = after.changed_since(&before);
    assert_eq!(changed.services.len(), 1, "{changed:?}");
    assert!(
        changed.nodes.is_empty() && changed.namespaces.is_empty(),
        "{changed:?}"
    );
}

#[tokio::test]
async fn an_empty_list_is_not_taken_for_an_empty_cluster() {
    let bench = Bench::start(feed);
    bench.until_services(&["a", "b"]).await;
    for object in [service("a", 80), service("b", 80), node("node-1")] {
        bench.api.delete_unseen(&object);
    }
    bench.api.compact();
    bench.api.put(namespace("marker"));
    let snapshot = bench
        .until("the marker", |snapshot| snapshot.namespaces.len() == 2)
        .await;
    assert_eq!(
        services(&snapshot),
        BTreeSet::from(["a".to_owned(), "b".to_owned()])
    );
    assert_eq!(snapshot.nodes.len(), 1);
}

#[tokio::test]
async fn connections_cut_and_an_outage_lose_nothing_and_cost_nothing() {
    let bench = Bench::start(feed);
    bench.until_services(&["a", "b"]).await;
    bench.api.cut();
    bench.api.put(service("c", 80));
    bench.until_services(&["a", "b", "c"]).await;

    bench.api.go_down();
    bench.api.put(service("d", 80));
    bench.api.delete(&service("a", 80));
    let failing = || {
        bench
            .status
            .kinds()
            .values()
            .filter(|kind| kind.failing.is_some())
            .count()
    };
    wait_for("all watches fail", || failing() == KINDS.len()).await;
    assert_eq!(
        services(&bench.snapshots.borrow()).len(),
        3,
        "an outage removes nothing"
    );
    bench.api.come_up();
    bench.until_services(&["b", "c", "d"]).await;
    let lists: Vec<u64> = bench.status.kinds().values().map(|kind| kind.lists).collect();
    assert_eq!(lists, [1; KINDS.len()], "watches resume, they do not list again");
}

#[tokio::test]
async fn an_invalid_object_is_refused_alone_and_keeps_its_last_valid_form() {
    let bench = Bench::start(feed);
    bench.until_services(&["a", "b"]).await;
    let mut broken = service("a", 80);
    broken["spec"]["ports"] = json!("nonsense");
    bench.api.put(broken);
    bench.api.put(service("c", 80));
    bench.until_services(&["a", "b", "c"]).await;
    let rejected = || {
        bench
            .status
            .rejected()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    wait_for("the fault is told", || !rejected().is_empty()).await;
    assert_eq!(
        rejected(),
        ["Service default/a: invalid type: string \"nonsense\", expected a sequence"]
    );
    // Not even a list takes the last valid form away.
    bench.api.compact();
    bench.api.put(service("d", 80));
    bench.until_services(&["a", "b", "c", "d"]).await;

    bench.api.put(service("a", 81));
    let snapshot = bench
        .until("the valid form", |snapshot| {
            let service = snapshot.services.get(&model::ObjectName::new("default", "a"));
            service.is_some_and(|service| service.ports.iter().any(|port| port.port.get() == 81))
        })
        .await;
    assert_eq!(services(&snapshot).len(), 4);
    wait_for("no fault is left", || rejected().is_empty()).await;
}

#[tokio::test]
async fn the_fault_of_an_object_that_was_never_used_ends_with_the_object() {
    let bench = Bench::start(feed);
    bench.until_services(&["a", "b"]).await;
    let nonsense = |name: &str| {
        let mut service = service(name, 80);
        service["spec"]["ports"] = json!("nonsense");
        service
    };
    let rejected = || bench.status.rejected().len();
    for gone_unseen in [false, true] {
        bench.api.put(nonsense("broken"));
        wait_for("the fault is told", || rejected() == 1).await;
        // Nothing else changes, so that nothing else is published.
        if gone_unseen {
            bench.api.delete_unseen(&nonsense("broken"));
            bench.api.compact();
        } else {
            bench.api.delete(&nonsense("broken"));
        }
        wait_for("no fault is left", || rejected() == 0).await;
    }
}

#[tokio::test]
async fn a_server_without_an_optional_kind_lacks_nothing_and_is_asked_for_it_again() {
    let bench = Bench::start(|api| {
        feed(api);
        api.behave(|behaviour| behaviour.absent = vec!["servicecidrs"]);
    });
    let without = |snapshot: &Snapshot| {
        let mut others = KINDS.iter().filter(|kind| **kind != Kind::ServiceCidr);
        others.all(|kind| snapshot.is_synced(*kind))
    };
    bench.until("the other kinds", without).await;
    let asked = || {
        let kinds = bench.status.kinds();
        kinds.get(&Kind::ServiceCidr).map_or(0, |kind| kind.errors)
    };
    wait_for("it was asked twice", || asked() >= 2).await;
    let kinds = bench.status.kinds();
    assert!(kinds.values().all(|kind| kind.failing.is_none()), "{kinds:?}");
    // It is upgraded.
    bench.api.behave(|behaviour| behaviour.absent.clear());
    bench.api.put(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/12"]},
    }));
    bench
        .until("the ServiceCIDR", |snapshot| snapshot.service_cidrs.len() == 1)
        .await;
}

#[tokio::test]
async fn a_server_that_is_overloaded_is_asked_again_when_it_wants_to_be() {
    let bench = Bench::start(|api| {
        feed(api);
        api.behave(|behaviour| {
            behaviour.fail_next = vec![429, 503, 500, 403];
            behaviour.retry_after = 1;
        });
    });
    let start = Instant::now();
    bench.until_services(&["a", "b"]).await;
    assert!(start.elapsed() >= Duration::from_secs(1), "Retry-After is obeyed");
    let errors: u64 = bench.status.kinds().values().map(|kind| kind.errors).sum();
    assert_eq!(errors, 4);
}

#[tokio::test]
async fn a_server_that_ends_every_watch_at_once_is_not_asked_in_a_loop() {
    let bench = Bench::start(feed);
    bench.until_services(&["a", "b"]).await;
    bench.api.behave(|behaviour| behaviour.hasty_ends = true);
    bench.api.cut();
    let watches = || {
        let requests = bench.api.requests();
        let watches = requests
            .iter()
            .filter(|request| request.contains("services?") && request.contains("watch=true"));
        watches.count()
    };
    let (before, start) = (watches(), Instant::now());
    wait_for("it was asked again some times", || watches() >= before + 4).await;
    assert!(
        start.elapsed() >= Duration::from_secs(2),
        "asked 4 times in {:?}",
        start.elapsed()
    );
    bench.api.behave(|behaviour| behaviour.hasty_ends = false);
    bench.api.put(service("c", 80));
    bench.until_services(&["a", "b", "c"]).await;
}

#[tokio::test]
async fn credentials_are_read_again_when_the_server_refuses_them() {
    let bench = Bench::start(|api| {
        feed(api);
        api.behave(|behaviour| behaviour.fail_next = vec![401]);
    });
    bench.until_services(&["a", "b"]).await;
}

#[tokio::test]
async fn a_slow_server_is_waited_for() {
    let bench = Bench::start(|api| {
        feed(api);
        api.behave(|behaviour| behaviour.delay = Duration::from_millis(200));
    });
    bench.until_services(&["a", "b"]).await;
}

#[tokio::test]
async fn changes_of_one_object_arrive_in_order_and_the_last_one_stays() {
    let bench = Bench::start(feed);
    bench.until_services(&["a", "b"]).await;
    for port in 1..=200 {
        bench.api.put(service("a", port));
        if port % 3 == 0 {
            bench.api.delete(&service("a", port));
        }
    }
    let port = |snapshot: &Snapshot| {
        let service = snapshot.services.get(&model::ObjectName::new("default", "a"))?;
        service.ports.first().map(|port| port.port.get())
    };
    let mut seen = bench.snapshots.clone();
    let mut latest = 0;
    while latest != 200 {
        tokio::time::timeout(DEADLINE, seen.changed())
            .await
            .expect("changes come")
            .expect("the watch runs on");
        let now = port(&seen.borrow_and_update()).unwrap_or(latest);
        assert!(now >= latest || latest == 80, "{now} after {latest}");
        latest = now;
    }
}

#[tokio::test]
async fn a_single_change_is_published_at_once_and_a_burst_as_few() {
    let bench = Bench::start(feed);
    bench.until_services(&["a", "b"]).await;
    let before = bench.status.publications();
    let start = Instant::now();
    for index in 0..500 {
        bench.api.put(service(&format!("burst-{index}"), 80));
    }
    bench
        .until("the burst", |snapshot| snapshot.services.len() == 502)
        .await;
    let intervals = start.elapsed().as_millis() / PUBLICATION_INTERVAL.as_millis();
    let publications = bench.status.publications() - before;
    assert!(
        u128::from(publications) <= intervals + 2,
        "{publications} publications in {intervals} intervals"
    );
}

#[tokio::test]
async fn a_bad_object_is_told_by_one_event_on_it() {
    let bench = Bench::start(feed);
    bench.until_services(&["a", "b"]).await;
    let of = |name: &str, port| {
        let mut service = service(name, port);
        service["metadata"]["uid"] = name.into();
        bench.api.put(service);
    };
    let events = || bench.api.objects("/api/v1/events");
    of("bad", 70_000);
    wait_for("an event is written", || !events().is_empty()).await;
    // It goes and comes again: that is no other event.
    of("bad", 80);
    of("bad", 70_000);
    of("other", 70_001);
    wait_for("the next event is written", || events().len() > 1).await;
    let events = events();
    let objects: Vec<_> = events
        .iter()
        .map(|event| &event["involvedObject"]["uid"])
        .collect();
    assert_eq!(objects, ["bad", "other"]);
    let event = &events[0];
    let words = ["type", "reason", "reportingInstance", "message"].map(|field| event[field].as_str());
    let message = "not used by the network: spec.ports[0].port: 70000 is not a port number (1 to 65535)";
    assert_eq!(
        words,
        [Some("Warning"), Some("NotUsed"), Some("node-1"), Some(message)]
    );
}
