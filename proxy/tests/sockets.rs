//! The socket renderer over maps in memory: revisions, restarts, writes cut off in the middle.

mod world;

use std::collections::{BTreeMap, BTreeSet};

use ebpf::abi::net::Ip4;
use ebpf::abi::service::{FrontendKey4, SlotKey, flags};
use model::{Conditions, Protocol};
use proxy::datapath::Change;
use proxy::datapath::fake::FakeMaps;
use proxy::datapath::sockets::{Contents, Sockets};
use proxy::{ServicePlan, ServiceView, plan_service};
use world::{READY, context, name, port, service, slice};

fn plan(endpoints: &[&str]) -> ServicePlan {
    let mut web = service("web", "10.96.0.1");
    web.ports = vec![port("http", Protocol::Tcp, 80, Some(30080))];
    let rows: Vec<(&str, &str, Conditions)> = endpoints
        .iter()
        .map(|address| (*address, "here", READY))
        .collect();
    let slice = slice("web-1", "web", &rows);
    plan_service(
        &ServiceView {
            service: &web,
            slices: vec![&slice],
        },
        &context(),
    )
    .0
}

/// What a reader in the kernel would get of each frontend: its endpoints, or none if any link is broken.
fn readers_view(maps: &Contents) -> BTreeMap<FrontendKey4, Option<BTreeSet<Ip4>>> {
    let endpoints = |key: &FrontendKey4| {
        let frontend = maps.frontends.get(key)?;
        let slot = |slot| SlotKey {
            service: frontend.service,
            revision: frontend.revision,
            slot,
        };
        (0..frontend.cluster)
            .map(|number| Some(maps.endpoints.get(maps.slots.get(&slot(number))?)?.addr))
            .collect()
    };
    maps.frontends.keys().map(|key| (*key, endpoints(key))).collect()
}

fn addresses(endpoints: &[&str]) -> Option<BTreeSet<Ip4>> {
    let octets = |text: &&str| text.parse::<std::net::Ipv4Addr>().expect("an address").octets();
    Some(endpoints.iter().map(|text| Ip4::new(octets(text))).collect())
}

fn apply(sockets: &mut Sockets<FakeMaps>, old: &ServicePlan, new: &ServicePlan) -> Result<u64, String> {
    let service = name("web");
    let applied = sockets.apply(&[Change {
        service: &service,
        old,
        new,
    }]);
    match applied.failures.first() {
        None => Ok(applied.writes),
        Some((_, error)) => Err(error.to_string()),
    }
}

const STATES: [&[&str]; 6] = [
    &[],
    &["10.244.0.1"],
    &["10.244.0.2"],
    &["10.244.0.1", "10.244.0.2"],
    &["10.244.0.2", "10.244.0.3", "10.244.0.4"],
    &["10.244.0.1", "10.244.0.2", "10.244.0.3"],
];

#[test]
fn any_state_follows_any_other_and_the_same_again_writes_nothing() {
    for from in STATES {
        for to in STATES {
            let maps = FakeMaps::default();
            let mut sockets = Sockets::open(maps.clone()).expect("opens");
            apply(&mut sockets, &ServicePlan::default(), &plan(from)).expect("applied");
            apply(&mut sockets, &plan(from), &plan(to)).expect("applied");
            let view = maps.with(|maps| readers_view(&maps.contents));
            assert_eq!(view.len(), 2);
            assert!(
                view.values().all(|found| *found == addresses(to)),
                "{from:?} to {to:?}: {view:?}"
            );
            assert_eq!(
                apply(&mut sockets, &plan(to), &plan(to)),
                Ok(0),
                "{from:?} to {to:?}"
            );
            let refuses = maps.with(|maps| {
                maps.contents
                    .frontends
                    .values()
                    .all(|f| f.flags & flags::REFUSE != 0)
            });
            assert_eq!(refuses, to.is_empty());
        }
    }
}

#[test]
fn a_reader_sees_the_old_list_or_the_new_one_wherever_an_update_is_cut_off() {
    for from in STATES {
        for to in STATES {
            for cut in 0..20 {
                let maps = FakeMaps::default();
                let mut sockets = Sockets::open(maps.clone()).expect("opens");
                apply(&mut sockets, &ServicePlan::default(), &plan(from)).expect("applied");
                maps.with(|maps| maps.fail_after = Some(cut));
                let result = apply(&mut sockets, &plan(from), &plan(to));
                for (key, found) in maps.with(|maps| readers_view(&maps.contents)) {
                    let whole = found == addresses(from) || found == addresses(to);
                    assert!(
                        whole,
                        "{from:?} to {to:?} cut at {cut}: {key:?} leads to {found:?}"
                    );
                }
                // A new process finishes what was cut off, and leaves nothing behind.
                maps.with(|maps| maps.fail_after = None);
                let mut sockets = Sockets::open(maps.clone()).expect("opens");
                apply(&mut sockets, &ServicePlan::default(), &plan(to)).expect("applied");
                sockets.sweep(&|_| true).expect("swept");
                let mut sockets = Sockets::open(maps.clone()).expect("opens");
                assert_eq!(
                    apply(&mut sockets, &ServicePlan::default(), &plan(to)),
                    Ok(0),
                    "{result:?}"
                );
                sockets.sweep(&|_| true).expect("swept");
                let contents = maps.with(|maps| maps.contents.clone());
                assert!(
                    readers_view(&contents)
                        .values()
                        .all(|found| *found == addresses(to))
                );
                assert_eq!(
                    (contents.slots.len(), contents.endpoints.len()),
                    (to.len(), to.len()),
                    "{result:?}"
                );
            }
        }
    }
}

#[test]
fn a_service_that_goes_leaves_nothing_after_the_next_audit() {
    let maps = FakeMaps::default();
    let mut sockets = Sockets::open(maps.clone()).expect("opens");
    let full = plan(STATES[5]);
    apply(&mut sockets, &ServicePlan::default(), &full).expect("applied");
    apply(&mut sockets, &full, &ServicePlan::default()).expect("applied");
    assert_eq!(maps.with(|maps| maps.contents.frontends.len()), 0);
    let mut sockets = Sockets::open(maps.clone()).expect("opens");
    sockets.sweep(&|_| false).expect("swept");
    assert_eq!(maps.with(|maps| maps.contents.clone()), Contents::default());
}

#[test]
fn frontends_that_nobody_wants_are_swept_and_reported() {
    let maps = FakeMaps::default();
    let mut sockets = Sockets::open(maps.clone()).expect("opens");
    apply(&mut sockets, &ServicePlan::default(), &plan(STATES[1])).expect("applied");
    let node_port = world::node_port(30080, Protocol::Tcp);
    let swept = sockets.sweep(&|key| *key != node_port).expect("swept");
    assert_eq!(swept.frontends, BTreeSet::from([node_port]));
    assert_eq!(maps.with(|maps| readers_view(&maps.contents)).len(), 1);
}
