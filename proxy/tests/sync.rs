//! The proxy over a fake datapath: what is asked of it, in which order, and what follows failures.

mod world;

use std::collections::{BTreeMap, BTreeSet};

use model::{Change, Extras, Kind, Protocol, Snapshot};
use proxy::Proxy;
use proxy::datapath::fake::FakeDatapath;
use proxy::plan::{Action, Admits, Frontend, FrontendKey, Reason};
use world::{READY, name, port, service, settings, slice, snapshot, vip};

fn proxy() -> (Proxy, FakeDatapath) {
    let fake = FakeDatapath::default();
    (Proxy::with_datapath(settings(), Box::new(fake.clone())), fake)
}

/// Frontends, and how many endpoints each has.
fn frontends(fake: &FakeDatapath) -> BTreeMap<FrontendKey, usize> {
    fake.with(|state| {
        state
            .frontends
            .iter()
            .map(|(key, (_, port))| (*key, port.cluster.len()))
            .collect()
    })
}

fn three_services() -> Vec<Change> {
    let mut changes = Vec::new();
    for (number, service_name) in ["a", "b", "c"].into_iter().enumerate() {
        changes.push(Change::Service(service(
            service_name,
            &format!("10.96.0.{number}"),
        )));
        for part in 0..2 {
            let address = format!("10.244.{part}.{number}");
            let slice_name = format!("{service_name}-{part}");
            changes.push(Change::EndpointSlice(slice(
                &slice_name,
                service_name,
                &[(&address, "here", READY)],
            )));
        }
    }
    changes
}

#[test]
fn nothing_is_done_before_all_lists_are_complete() {
    let (mut proxy, fake) = proxy();
    let mut incomplete = Snapshot::default();
    incomplete.apply(Change::Service(service("a", "10.96.0.1")));
    assert_eq!(
        proxy.sync(&incomplete).waiting_for,
        [Kind::Service, Kind::EndpointSlice, Kind::Node]
    );
    incomplete.apply(Change::Synced(Kind::Service));
    incomplete.apply(Change::Synced(Kind::Node));
    assert_eq!(proxy.sync(&incomplete).waiting_for, [Kind::EndpointSlice]);
    assert_eq!(frontends(&fake), BTreeMap::new());
    incomplete.apply(Change::Synced(Kind::EndpointSlice));
    assert_eq!(proxy.sync(&incomplete).applied, [name("a")]);
    assert_eq!(
        frontends(&fake),
        BTreeMap::from([(vip("10.96.0.1", 80, Protocol::Tcp), 0)])
    );
}

#[test]
fn states_that_arrive_reversed_doubled_split_or_squashed_end_the_same() {
    let changes = three_services();
    let mut ends = Vec::new();
    let orders: Vec<Vec<Change>> = vec![
        changes.clone(),
        changes.iter().rev().cloned().collect(),
        changes.iter().chain(&changes).cloned().collect(),
        changes
            .iter()
            .cycle()
            .skip(4)
            .take(changes.len())
            .cloned()
            .collect(),
    ];
    for order in orders {
        for step in [1, 2, order.len()] {
            let (mut proxy, fake) = proxy();
            let mut state = world::synced();
            for some in order.chunks(step) {
                for change in some {
                    state.apply(change.clone());
                }
                proxy.sync(&state);
            }
            ends.push(fake.with(|state| state.frontends.clone()));
        }
    }
    assert!(ends.windows(2).all(|pair| pair[0] == pair[1]), "{ends:?}");
    assert_eq!(ends[0].len(), 3);
}

#[test]
fn a_snapshot_costs_what_changed_in_it() {
    let (mut proxy, fake) = proxy();
    let mut state = snapshot(three_services());
    proxy.sync(&state);
    assert_eq!(proxy.sync(&state).applied, []);
    state.apply(Change::DeleteEndpointSlice(name("b-0")));
    let report = proxy.sync(&state);
    assert_eq!((report.applied, report.writes), (vec![name("b")], 1));
    state.apply(Change::DeleteService(name("b")));
    proxy.sync(&state);
    assert_eq!(frontends(&fake).len(), 2);
}

#[test]
fn a_failure_stops_no_other_service_and_is_tried_again() {
    let (mut proxy, fake) = proxy();
    let state = snapshot(three_services());
    fake.with(|fake| fake.fail_next.insert(name("b")));
    let report = proxy.sync(&state);
    assert_eq!(report.applied, [name("a"), name("c")]);
    assert_eq!(
        report.failures.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        [&name("b")]
    );
    assert!(proxy.has_pending());
    assert_eq!(
        proxy.sync(&state).applied,
        [],
        "what failed costs no other sync anything"
    );
    proxy.retry_failed();
    let report = proxy.sync(&state);
    assert_eq!(report.applied, [name("b")]);
    assert!(!proxy.has_pending());
    assert_eq!(frontends(&fake).len(), 3);
}

#[test]
fn what_a_failed_change_may_have_left_is_removed_when_the_service_changes_again() {
    let (mut proxy, fake) = proxy();
    let mut state = snapshot([Change::Service(service("a", "10.96.0.1"))]);
    proxy.sync(&state);
    state.apply(Change::Service(service("a", "10.96.0.2")));
    fake.with(|fake| fake.fail_next.insert(name("a")));
    proxy.sync(&state);
    // The failed attempt got as far as the new frontend.
    fake.with(|fake| {
        let value = fake.frontends.values().next().expect("the old frontend").clone();
        fake.frontends.insert(vip("10.96.0.2", 80, Protocol::Tcp), value);
    });
    state.apply(Change::Service(service("a", "10.96.0.3")));
    proxy.sync(&state);
    assert_eq!(
        frontends(&fake).into_keys().collect::<Vec<_>>(),
        [vip("10.96.0.3", 80, Protocol::Tcp)]
    );
}

#[test]
fn leftovers_of_an_earlier_process_go_with_the_first_complete_sync() {
    let (mut proxy, fake) = proxy();
    let left = vip("10.96.0.9", 53, Protocol::Udp);
    let refuses = Frontend {
        action: Action::Refuse,
        admits: Admits::Everyone,
    };
    fake.with(|fake| fake.frontends.insert(left, (refuses, Default::default())));
    fake.with(|fake| fake.fail_sweep = true);
    let report = proxy.sync(&snapshot(three_services()));
    assert_eq!(report.common_failures.len(), 1);
    assert!(frontends(&fake).contains_key(&left) && proxy.has_pending());
    proxy.sync(&snapshot(three_services()));
    assert_eq!(frontends(&fake).len(), 3);
    proxy.forget_flows().expect("forgotten");
    let forgotten = fake.with(|fake| fake.forgotten.pop()).expect("a look for flows");
    let (to, anybody) = ("10.96.0.9:53", "10.244.0.1:53");
    assert!(
        forgotten.leads_nowhere(
            to.parse().expect("an address"),
            anybody.parse().expect("an address")
        ),
        "flows to a UDP frontend that is gone are forgotten"
    );
}

#[test]
fn a_frontend_that_two_services_want_is_the_first_names_and_passes_on_when_that_goes() {
    let key = vip("10.96.0.1", 80, Protocol::Tcp);
    let one = [
        Change::Service(service("a", "10.96.0.1")),
        Change::EndpointSlice(slice("a-1", "a", &[("10.244.0.1", "here", READY)])),
    ];
    let two = [
        Change::Service(service("b", "10.96.0.1")),
        Change::EndpointSlice(slice(
            "b-1",
            "b",
            &[("10.244.0.1", "here", READY), ("10.244.0.2", "here", READY)],
        )),
    ];
    for order in [[&one, &two], [&two, &one]] {
        let (mut proxy, fake) = proxy();
        let mut state = world::synced();
        let mut rejected = BTreeSet::new();
        for changes in order {
            for change in changes {
                state.apply(change.clone());
            }
            rejected.extend(proxy.sync(&state).rejected);
        }
        assert_eq!(frontends(&fake), BTreeMap::from([(key, 1)]));
        let taken = Reason::Taken {
            frontend: key,
            owner: name("a"),
        };
        assert!(
            rejected
                .iter()
                .any(|rejected| rejected.service == name("b") && rejected.reason == taken)
        );
        state.apply(Change::DeleteService(name("a")));
        proxy.sync(&state);
        assert_eq!(frontends(&fake), BTreeMap::from([(key, 2)]));
    }
}

#[test]
fn a_cluster_ip_is_its_services_before_it_is_anybodys_external_address() {
    let key = vip("10.96.0.9", 80, Protocol::Tcp);
    let mut thief = service("a", "10.96.0.1");
    thief.external_addresses = [world::ip("10.96.0.9")].into();
    let owner = Change::Service(service("b", "10.96.0.9"));
    let endpoints = [("a", "10.244.0.1"), ("b", "10.244.0.2")];
    let endpoints = endpoints.map(|(service, address)| {
        Change::EndpointSlice(slice(
            &format!("{service}-1"),
            service,
            &[(address, "here", READY)],
        ))
    });
    for order in [
        [Change::Service(thief.clone()), owner.clone()],
        [owner.clone(), Change::Service(thief.clone())],
    ] {
        let fake = FakeDatapath::default();
        let settings = proxy::Settings {
            external_addresses: true,
            ..settings()
        };
        let mut proxy = Proxy::with_datapath(settings, Box::new(fake.clone()));
        let mut state = snapshot(endpoints.clone());
        let served = || {
            let target = |(_, port): &(_, proxy::plan::PortPlan)| port.cluster[0].address;
            fake.with(|fake| fake.frontends.get(&key).map(target))
        };
        for change in order {
            state.apply(change);
            proxy.sync(&state);
        }
        assert_eq!(served(), Some(world::ip("10.244.0.2")));
        state.apply(Change::DeleteService(name("b")));
        proxy.sync(&state);
        assert_eq!(served(), Some(world::ip("10.244.0.1")));
    }
}

#[test]
fn flows_are_forgotten_for_udp_endpoints_that_left_and_frontends_that_appeared_and_for_nothing_else() {
    let (mut proxy, fake) = proxy();
    let udp = |endpoints: &[&str]| {
        let mut web = service("a", "10.96.0.1");
        web.ports = [port("http", Protocol::Udp, 53, None)].into();
        let rows: Vec<_> = endpoints
            .iter()
            .map(|address| (*address, "here", READY))
            .collect();
        let mut part = slice("a-1", "a", &rows);
        part.ports[0].protocol = Protocol::Udp;
        snapshot([Change::Service(web), Change::EndpointSlice(part)])
    };
    let tcp = |endpoints: &[(&str, &str, _)]| {
        snapshot([
            Change::Service(service("tcp", "10.96.0.2")),
            Change::EndpointSlice(slice("tcp-1", "tcp", endpoints)),
        ])
    };
    let mut looks_after = |snapshot: &Snapshot| {
        proxy.sync(snapshot);
        proxy.forget_flows().expect("forgotten");
        assert!(!proxy.has_stale_flows());
        fake.with(|fake| std::mem::take(&mut fake.forgotten).len())
    };
    assert_eq!(
        looks_after(&udp(&["10.244.0.1"])),
        1,
        "a new frontend: its packets may have gone out untranslated"
    );
    let both = udp(&["10.244.0.1", "10.244.0.2"]);
    assert_eq!(looks_after(&both), 0, "nobody left");
    assert_eq!(looks_after(&udp(&["10.244.0.2"])), 1);
    assert_eq!(looks_after(&world::synced()), 1, "the Service is gone");
    let one = [("10.244.0.1", "here", READY)];
    assert_eq!(looks_after(&tcp(&one)), 1, "a new frontend, as by UDP");
    for snapshot in [tcp(&[]), tcp(&one), world::synced()] {
        assert_eq!(looks_after(&snapshot), 0, "TCP connections end by themselves");
    }
    fake.with(|fake| fake.fail_forget = true);
    proxy.sync(&tcp(&one));
    assert!(proxy.forget_flows().is_err() && proxy.has_stale_flows());
    proxy.forget_flows().expect("forgotten");
    assert!(!proxy.has_stale_flows());
}

#[test]
fn flows_are_looked_for_once_their_service_is_in_the_kernel_and_not_before() {
    let (mut proxy, fake) = proxy();
    let state = snapshot([Change::Service(service("a", "10.96.0.1"))]);
    fake.with(|fake| fake.fail_next.insert(name("a")));
    proxy.sync(&state);
    assert!(!proxy.has_stale_flows(), "packets go out untranslated still");
    proxy.retry_failed();
    proxy.sync(&state);
    assert!(proxy.has_stale_flows());
    proxy.forget_flows().expect("forgotten");
    // Somebody removed it, and packets went out untranslated until it was repaired.
    assert!(proxy.audit().is_clean() && !proxy.has_stale_flows());
    fake.with(|fake| fake.frontends.clear());
    assert!(!proxy.audit().is_clean() && proxy.has_stale_flows());
}

#[test]
fn an_audit_writes_again_what_was_lost_and_is_clean_after() {
    let (mut proxy, fake) = proxy();
    assert!(
        proxy.audit().is_clean(),
        "before the first sync there is nothing to say"
    );
    proxy.sync(&snapshot(three_services()));
    assert!(proxy.audit().is_clean());
    fake.with(|fake| {
        fake.frontends.clear();
        fake.drift = vec!["the table was not there".to_owned()];
    });
    let report = proxy.audit_structure();
    assert_eq!((report.repaired.len(), report.writes), (1, 3));
    assert_eq!(frontends(&fake).len(), 3);
    assert!(proxy.audit().is_clean());
}

#[test]
fn a_change_of_this_nodes_zone_changes_every_plan_that_has_hints_and_no_other() {
    let (mut proxy, fake) = proxy();
    let hinted = slice(
        "a-1",
        "a",
        &[("10.244.0.1", "there", READY), ("10.244.0.2", "there", READY)],
    );
    let zones = ["east", "west"];
    let hinted = world::with_hints(
        hinted,
        zones.map(|zone| Extras::hints(vec![zone.into()], Vec::new())),
    );
    let mut state = snapshot([
        Change::Service(service("a", "10.96.0.1")),
        Change::EndpointSlice(hinted),
        Change::Service(service("b", "10.96.0.2")),
        Change::EndpointSlice(slice("b-1", "b", &[("10.244.0.3", "there", READY)])),
        Change::Node(world::node("here", Some("east"))),
    ]);
    proxy.sync(&state);
    let endpoints_of_a = || {
        let key = vip("10.96.0.1", 80, Protocol::Tcp);
        fake.with(|fake| fake.frontends[&key].1.cluster.clone())
    };
    assert_eq!(endpoints_of_a(), [world::target("10.244.0.1:8080")]);
    state.apply(Change::Node(world::node("here", Some("west"))));
    assert_eq!(proxy.sync(&state).applied, [name("a")]);
    assert_eq!(endpoints_of_a(), [world::target("10.244.0.2:8080")]);
    state.apply(Change::Node(world::node("there", Some("west"))));
    assert_eq!(proxy.sync(&state).applied, []);
}

#[test]
fn other_settings_change_the_plans_that_depend_on_them_at_the_next_sync() {
    let (mut proxy, fake) = proxy();
    let mut external = service("a", "10.96.0.1");
    external.external_addresses = [world::ip("198.51.100.1")].into();
    let mut state = snapshot([
        Change::Service(external),
        Change::Service(service("b", "10.96.0.2")),
        Change::Node(world::node("here", None)),
    ]);
    let own = ["10.96.0.1", "10.96.0.2"].map(|address| (vip(address, 80, Protocol::Tcp), 0));
    proxy.sync(&state);
    assert_eq!(frontends(&fake), own.into());
    let open = proxy::Settings {
        external_addresses: true,
        ..settings()
    };
    proxy.set_settings(open);
    assert_eq!(
        frontends(&fake),
        own.into(),
        "nothing is done before the next sync"
    );
    assert_eq!(proxy.sync(&state).applied, [name("a")]);
    let outer = (vip("198.51.100.1", 80, Protocol::Tcp), 0);
    assert_eq!(frontends(&fake), [own[0], own[1], outer].into());
    assert_eq!(proxy.sync(&state).applied, []);

    state.apply(Change::DeleteNode("here".into()));
    proxy.set_settings(settings());
    assert_eq!(
        proxy.sync(&state).applied,
        [],
        "an own node that is absent changes nothing"
    );
    state.apply(Change::Node(world::node("here", None)));
    assert_eq!(proxy.sync(&state).applied, [name("a")]);
    assert_eq!(frontends(&fake), own.into());
}

#[test]
fn a_frontend_that_moved_away_from_a_failing_service_is_left_to_its_new_owner() {
    let (mut proxy, fake) = proxy();
    let key = vip("10.96.0.1", 80, Protocol::Tcp);
    let mut state = snapshot([
        Change::Service(service("a", "10.96.0.1")),
        Change::EndpointSlice(slice("a-1", "a", &[("10.244.0.1", "here", READY)])),
    ]);
    proxy.sync(&state);
    state.apply(Change::Service(service("a", "10.96.0.9")));
    state.apply(Change::Service(service("b", "10.96.0.1")));
    state.apply(Change::EndpointSlice(slice(
        "b-1",
        "b",
        &[("10.244.0.2", "here", READY)],
    )));
    fake.with(|fake| fake.fail_next.insert(name("a")));
    proxy.sync(&state);
    proxy.retry_failed();
    proxy.sync(&state);
    let endpoints = fake.with(|fake| fake.frontends[&key].1.cluster.clone());
    assert_eq!(endpoints, [world::target("10.244.0.2:8080")]);
    assert_eq!(frontends(&fake).len(), 2);
}

#[test]
fn an_own_node_that_is_absent_for_a_while_changes_nothing() {
    let (mut proxy, fake) = proxy();
    let mut state = snapshot(three_services());
    state.apply(Change::Node(world::node("here", Some("east"))));
    proxy.sync(&state);
    let context = fake.with(|fake| fake.context.clone());
    assert_eq!(context.and_then(|context| context.zone).as_deref(), Some("east"));
    state.apply(Change::DeleteNode("here".into()));
    assert_eq!(proxy.sync(&state).applied, []);
    assert_eq!(proxy.context().zone.as_deref(), Some("east"));
}

#[test]
fn a_node_that_tells_pods_by_its_own_networks_waits_for_them() {
    let fake = FakeDatapath::default();
    let settings = proxy::Settings {
        detect_local: proxy::DetectLocal::NodeCidr,
        ..settings()
    };
    let mut proxy = Proxy::with_datapath(settings, Box::new(fake.clone()));
    let mut state = snapshot(three_services());
    assert_eq!(proxy.sync(&state).waiting_for, [Kind::Node]);
    state.apply(Change::Node(world::node("here", None)));
    assert_eq!(proxy.sync(&state).waiting_for, [Kind::Node]);
    let mut node = world::node("here", None);
    node.pod_cidrs = vec![world::network("10.244.1.0/24")];
    state.apply(Change::Node(node));
    assert_eq!(proxy.sync(&state).applied.len(), 3);
    state.apply(Change::Node(world::node("here", None)));
    assert_eq!(proxy.sync(&state).applied, [], "what it knew still holds");
}

#[test]
fn a_service_that_lost_every_frontend_to_another_keeps_no_address() {
    let (mut proxy, fake) = proxy();
    let mut state = snapshot([
        Change::Service(service("a", "10.96.0.1")),
        Change::Service(service("b", "10.96.0.1")),
    ]);
    proxy.sync(&state);
    state.apply(Change::DeleteService(name("b")));
    state.apply(Change::DeleteService(name("a")));
    proxy.sync(&state);
    assert_eq!(frontends(&fake), BTreeMap::new());
    assert!(!proxy.has_pending());
}
