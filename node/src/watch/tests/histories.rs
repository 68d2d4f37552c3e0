//! Generated histories of a server and its faults: at rest the snapshot is the server's state.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tests::fake_api::{FakeApi, StreamingLists};

use super::bench::{Bench, feed, service, slice};

const HISTORIES: u64 = 48;
const STEPS: usize = 300;
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// What of a Service and its slices is looked at: the port, and addresses by slice.
type State = (BTreeMap<String, u64>, BTreeMap<String, String>);

fn on_server(api: &FakeApi) -> State {
    let by_name = |collection: &str, look: fn(&Value) -> Option<String>| {
        let objects = api.objects(collection).into_iter();
        let named = objects.filter_map(|object| {
            let name = object["metadata"]["name"].as_str()?.to_owned();
            Some((name, look(&object)?))
        });
        named.collect::<BTreeMap<_, _>>()
    };
    let ports = by_name("/api/v1/services", |service| {
        Some(service["spec"]["ports"][0]["port"].to_string())
    });
    let ports = ports
        .into_iter()
        .map(|(name, port)| (name, port.parse().expect("a number")));
    let addresses = by_name("/apis/discovery.k8s.io/v1/endpointslices", |slice| {
        Some(slice["endpoints"][0]["addresses"][0].as_str()?.to_owned())
    });
    (ports.collect(), addresses)
}

fn in_snapshot(snapshot: &model::Snapshot) -> State {
    let ports = snapshot.services.iter().filter_map(|(name, service)| {
        let port = service.ports.first()?.port.get();
        Some((name.name.to_string(), port.into()))
    });
    let slices = snapshot.slices.iter().flat_map(|(_, slices)| slices.iter());
    let addresses = slices.filter_map(|slice| {
        let address = slice.endpoints.get(0)?.address;
        Some((slice.name.name.to_string(), address.to_string()))
    });
    (ports.collect(), addresses.collect())
}

/// One thing that happens to objects, or to the server.
fn step(api: &FakeApi, random: &mut StdRng) {
    let name = NAMES.choose(random).expect("not empty");
    let number = random.random_range(1..=250_u8);
    let object = if random.random() {
        service(name, number.into())
    } else {
        slice(&format!("{name}-1"), name, &format!("10.244.0.{number}"))
    };
    match random.random_range(0..100) {
        0..50 => drop(api.put(object)),
        50..75 => drop(api.delete(&object)),
        // What no watch tells is found by the next list.
        75..80 => {
            api.delete_unseen(&object);
            api.compact();
        }
        80..83 => api.compact(),
        83..86 => api.cut(),
        86..88 => api.bookmark(),
        88..92 => api.behave(|server| server.silent = random.random()),
        92..96 => api.behave(|server| server.hasty_ends = random.random_ratio(1, 3)),
        96..98 => {
            api.behave(|server| server.fail_next = vec![*[410, 500, 503].choose(random).expect("some")])
        }
        _ => api.behave(|server| {
            let kinds = [StreamingLists::Served, StreamingLists::Refused];
            server.streaming_lists = *kinds.choose(random).expect("some");
            server.largest_page = [None, Some(2)].choose(random).copied().flatten();
        }),
    }
}

async fn check(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let bench = Bench::start(feed);
    bench.until_services(&["a", "b"]).await;
    for _ in 0..STEPS {
        step(&bench.api, &mut random);
        // Now and then the watch may see what there is in the middle.
        if random.random_ratio(1, 4) {
            tokio::task::yield_now().await;
        }
    }
    bench.api.behave(|server| {
        server.silent = false;
        server.hasty_ends = false;
        server.fail_next.clear();
    });
    // An empty list is believed only while something of the kind is left.
    bench.api.put(service("last", 7));
    bench.api.put(slice("last-1", "last", "10.244.0.7"));
    let wanted = on_server(&bench.api);
    let seen = bench.until("the server's state", |snapshot| in_snapshot(snapshot) == wanted);
    let seen = seen.await;
    assert_eq!(in_snapshot(&seen), wanted, "history {seed}");
}

#[tokio::test]
async fn whatever_the_server_does_the_snapshot_ends_as_its_state() {
    futures::future::join_all((0..HISTORIES).map(check)).await;
}
