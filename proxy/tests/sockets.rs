//! The socket renderer over maps in memory: revisions, members, restarts, writes cut off in the middle, full maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use ebpf::abi::service::{FrontendKey as HookKey, MemberKey, Membership, SlotKey, flags};
use model::{IpFamily, ObjectName, Protocol, Text};
use proxy::ServicePlan;
use proxy::datapath::fake::FakeMaps;
use proxy::datapath::sockets::{Contents, Sockets};
use proxy::datapath::{Change, NodeAddresses, NodeRole};
use proxy::plan::{
    Action, Admits, Frontend, FrontendAddress, FrontendKey, List, Masquerade, PortKey, PortPlan, Target,
};

/// What a Service of the tests is.
#[derive(Clone, Copy, Debug)]
struct Kind {
    family: IpFamily,
    protocol: Protocol,
    affinity: Option<Duration>,
}

const STICKY: Option<Duration> = Some(Duration::from_secs(10_800));

const KINDS: [Kind; 4] = [
    kind(IpFamily::V4, Protocol::Tcp, None),
    kind(IpFamily::V6, Protocol::Tcp, STICKY),
    kind(IpFamily::V4, Protocol::Udp, None),
    kind(IpFamily::V6, Protocol::Udp, STICKY),
];

const fn kind(family: IpFamily, protocol: Protocol, affinity: Option<Duration>) -> Kind {
    Kind {
        family,
        protocol,
        affinity,
    }
}

/// Endpoints by number: those in the list for cluster-wide traffic, and those that only serve.
type State = (&'static [u8], &'static [u8]);

const STATES: [State; 7] = [
    (&[], &[]),
    (&[1], &[]),
    (&[2], &[1]),
    (&[1, 2], &[]),
    (&[2, 3, 4], &[1]),
    (&[1, 2, 3], &[4]),
    (&[], &[1, 2]),
];

impl Kind {
    fn address(self, number: u8) -> IpAddr {
        match self.family {
            IpFamily::V4 => [10, 244, 0, number].into(),
            IpFamily::V6 => [0xfd00, 0x10, 0x244, 0, 0, 0, 0, u16::from(number)].into(),
        }
    }

    fn target(self, number: u8) -> Target {
        Target {
            address: self.address(number),
            port: port(8080),
        }
    }

    fn vip(self, number: u8) -> FrontendKey {
        let address = match self.family {
            IpFamily::V4 => [10, 96, 0, number].into(),
            IpFamily::V6 => [0xfd00, 0x10, 0x96, 0, 0, 0, 0, u16::from(number)].into(),
        };
        self.frontend(FrontendAddress::Service(address), 80)
    }

    fn node_port(self, number: u16) -> FrontendKey {
        self.frontend(FrontendAddress::EveryNodeAddress(self.family), number)
    }

    fn frontend(self, address: FrontendAddress, number: u16) -> FrontendKey {
        FrontendKey {
            address,
            port: port(number),
            protocol: self.protocol,
        }
    }

    /// Service `number`, with an address and a node port.
    fn plan(self, number: u8, (listed, serving): State) -> ServicePlan {
        let action = if listed.is_empty() {
            Action::Refuse
        } else {
            Action::Spread {
                list: List::Cluster,
                masquerade: Masquerade::OutsidePods,
            }
        };
        let frontend = Frontend {
            action,
            admits: Admits::Everyone,
        };
        let keys = [self.vip(number), self.node_port(30000 + u16::from(number))];
        let all = listed.iter().chain(serving);
        let plan = PortPlan {
            frontends: keys.map(|key| (key, frontend)).into_iter().collect(),
            cluster: listed.iter().map(|number| self.target(*number)).collect(),
            affinity: self.affinity,
            serving: all.map(|number| self.target(*number)).collect(),
            ..PortPlan::default()
        };
        ServicePlan {
            ports: [(self.port_key(), plan)].into_iter().collect(),
            ..ServicePlan::default()
        }
    }

    fn port_key(self) -> PortKey {
        PortKey {
            family: self.family,
            name: Text::default(),
            protocol: self.protocol,
        }
    }

    /// What `MEMBERS` must say of a state.
    fn members(self, (listed, serving): State) -> BTreeMap<IpAddr, u32> {
        let (sticky, flows) = (self.affinity.is_some(), self.protocol == Protocol::Udp);
        let mut members = BTreeMap::new();
        for number in listed.iter().filter(|_| sticky || flows) {
            *members.entry(self.address(*number)).or_default() |= Membership::IN_CLUSTER;
        }
        for number in listed.iter().chain(serving).filter(|_| flows) {
            *members.entry(self.address(*number)).or_default() |= Membership::SERVING;
        }
        members
    }
}

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).expect("not zero")
}

fn addresses(kind: Kind, (listed, _): State) -> Option<BTreeSet<IpAddr>> {
    Some(listed.iter().map(|number| kind.address(*number)).collect())
}

/// What a reader in the kernel would get of each frontend: its endpoints, or none if any link is broken.
fn readers_view(maps: &Contents) -> BTreeMap<HookKey, Option<BTreeSet<IpAddr>>> {
    let view = |key: &HookKey| {
        let ids = list_of(maps, key)?;
        let address = |id| Some(IpAddr::from(maps.endpoints.get(&id)?.addr));
        ids.into_iter().map(address).collect()
    };
    maps.frontends.keys().map(|key| (*key, view(key))).collect()
}

fn list_of(maps: &Contents, key: &HookKey) -> Option<Vec<u32>> {
    let frontend = maps.frontends.get(key)?;
    let slot = |slot| SlotKey {
        service: frontend.service,
        revision: frontend.revision,
        slot,
    };
    let slots = (0..frontend.cluster).map(|number| maps.slots.get(&slot(number)).copied());
    slots.collect()
}

fn members_view(maps: &Contents) -> BTreeMap<IpAddr, u32> {
    let address = |key: &MemberKey| IpAddr::from(maps.endpoints[&key.endpoint].addr);
    let members = maps.members.iter();
    members.map(|(key, bits)| (address(key), bits.0)).collect()
}

fn contents(maps: &FakeMaps) -> Contents {
    maps.with(|maps| maps.contents.clone())
}

fn open(maps: &FakeMaps) -> Sockets<FakeMaps> {
    Sockets::open(maps.clone()).expect("opens")
}

fn name(number: u8) -> ObjectName {
    ObjectName::new("default", format!("service-{number}"))
}

fn apply(sockets: &mut Sockets<FakeMaps>, old: &ServicePlan, new: &ServicePlan) -> Result<u64, String> {
    let service = name(1);
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

fn each_change(mut check: impl FnMut(Kind, State, State)) {
    for kind in KINDS {
        for from in STATES {
            for to in STATES {
                check(kind, from, to);
            }
        }
    }
}

/// A new process takes over, finishes, and leaves exactly what the state needs.
#[track_caller]
fn check_taken_over(maps: &FakeMaps, kind: Kind, to: State, what: &str) {
    let plan = kind.plan(1, to);
    let mut sockets = open(maps);
    apply(&mut sockets, &ServicePlan::default(), &plan).expect("applied");
    sockets.sweep(&|_| true).expect("swept");
    let mut sockets = open(maps);
    assert_eq!(
        apply(&mut sockets, &ServicePlan::default(), &plan),
        Ok(0),
        "{what}"
    );
    sockets.sweep(&|_| true).expect("swept");
    let contents = contents(maps);
    let view = readers_view(&contents);
    assert_eq!(view.len(), 2, "{what}");
    assert!(
        view.values().all(|found| *found == addresses(kind, to)),
        "{what}: {view:?}"
    );
    assert_eq!(members_view(&contents), kind.members(to), "{what}");
    let mut endpoints: BTreeSet<_> = addresses(kind, to).expect("some");
    endpoints.extend(kind.members(to).into_keys());
    assert_eq!(
        (contents.slots.len(), contents.endpoints.len()),
        (to.0.len(), endpoints.len()),
        "{what}"
    );
}

#[test]
fn any_state_follows_any_other_and_the_same_again_writes_nothing() {
    each_change(|kind, from, to| {
        let what = format!("{kind:?}: {from:?} to {to:?}");
        let maps = FakeMaps::default();
        let mut sockets = open(&maps);
        apply(&mut sockets, &ServicePlan::default(), &kind.plan(1, from)).expect("applied");
        apply(&mut sockets, &kind.plan(1, from), &kind.plan(1, to)).expect("applied");
        let after = contents(&maps);
        let view = readers_view(&after);
        assert_eq!(view.len(), 2, "{what}");
        assert!(
            view.values().all(|found| *found == addresses(kind, to)),
            "{what}: {view:?}"
        );
        assert_eq!(members_view(&after), kind.members(to), "{what}");
        assert_eq!(
            apply(&mut sockets, &kind.plan(1, to), &kind.plan(1, to)),
            Ok(0),
            "{what}"
        );
        for frontend in after.frontends.values() {
            assert_eq!(frontend.flags & flags::REFUSE != 0, to.0.is_empty(), "{what}");
            let seconds = kind.affinity.map_or(0, |affinity| affinity.as_secs());
            assert_eq!(u64::from(frontend.affinity_seconds), seconds, "{what}");
        }
        check_taken_over(&maps, kind, to, &what);
    });
}

#[test]
fn a_reader_sees_the_old_list_or_the_new_one_wherever_an_update_is_cut_off() {
    each_change(|kind, from, to| {
        for cut in 0..30 {
            let maps = FakeMaps::default();
            let mut sockets = open(&maps);
            apply(&mut sockets, &ServicePlan::default(), &kind.plan(1, from)).expect("applied");
            maps.with(|maps| maps.fail_after = Some(cut));
            let result = apply(&mut sockets, &kind.plan(1, from), &kind.plan(1, to));
            let what = format!("{kind:?}: {from:?} to {to:?} cut at {cut}: {result:?}");
            let found = contents(&maps);
            for (key, view) in readers_view(&found) {
                let whole = view == addresses(kind, from) || view == addresses(kind, to);
                assert!(whole, "{what}: {key:?} leads to {view:?}");
                check_members(&found, &key, kind, &what);
            }
            maps.with(|maps| maps.fail_after = None);
            check_taken_over(&maps, kind, to, &what);
        }
    });
}

/// Whatever endpoint a reader picks, its client may stay with.
#[track_caller]
fn check_members(maps: &Contents, key: &HookKey, kind: Kind, what: &str) {
    if kind.affinity.is_none() && kind.protocol == Protocol::Tcp {
        return;
    }
    let service = maps.frontends[key].service;
    for endpoint in list_of(maps, key).expect("whole") {
        let bits = maps.members.get(&MemberKey { service, endpoint });
        assert!(
            bits.is_some_and(|bits| bits.0 & Membership::IN_CLUSTER != 0),
            "{what}: {endpoint}"
        );
    }
}

#[test]
fn a_service_that_a_map_has_no_room_for_is_left_to_the_packet_rules() {
    let rooms = ["FRONTENDS", "SLOTS", "ENDPOINTS", "MEMBERS"]
        .into_iter()
        .flat_map(|map| (1..6).map(move |room| (map, room)));
    for (map, room) in rooms {
        each_change(|kind, from, to| {
            let maps = FakeMaps::default();
            let mut sockets = open(&maps);
            // Another Service has its part of the room, and keeps it.
            let other = kind.plan(2, (&[9], &[]));
            apply_as(&mut sockets, 2, &ServicePlan::default(), &other);
            apply(&mut sockets, &ServicePlan::default(), &kind.plan(1, from)).expect("applied");
            maps.with(|maps| maps.capacity.insert(map, room));
            let result = apply(&mut sockets, &kind.plan(1, from), &kind.plan(1, to));
            let what = format!("{kind:?}: {from:?} to {to:?} with {room} {map}: {result:?}");
            let found = contents(&maps);
            let others = 2;
            match &result {
                Ok(_) => assert_eq!(found.frontends.len(), 2 + others, "{what}"),
                Err(error) => {
                    assert_eq!(*error, format!("map {map} is full: it takes {room} entries"));
                    assert_eq!(found.frontends.len(), others, "{what}");
                }
            }
            let view = readers_view(&found);
            assert!(view.values().all(Option::is_some), "{what}: {view:?}");
            let members = found.members.keys().map(|member| member.endpoint);
            let used: BTreeSet<_> = found.slots.values().copied().chain(members).collect();
            assert_eq!(
                found.endpoints.into_keys().collect::<BTreeSet<_>>(),
                used,
                "{what}"
            );
            // When there is room again, all is well with the next attempt, and nothing was left lying about.
            maps.with(|maps| maps.capacity.clear());
            apply(&mut sockets, &kind.plan(1, from), &kind.plan(1, to)).expect("applied");
            apply_as(&mut sockets, 2, &other, &ServicePlan::default());
            check_taken_over(&maps, kind, to, &what);
        });
    }
}

fn apply_as(sockets: &mut Sockets<FakeMaps>, number: u8, old: &ServicePlan, new: &ServicePlan) {
    let service = name(number);
    let applied = sockets.apply(&[Change {
        service: &service,
        old,
        new,
    }]);
    assert!(applied.failures.is_empty(), "{applied:?}");
}

#[test]
fn a_full_map_stops_neither_other_ports_nor_removals() {
    let [tcp, _, udp, _] = KINDS;
    let both = |tcp_state, udp_state| {
        let mut plan = tcp.plan(1, tcp_state);
        plan.ports.extend(udp.plan(1, udp_state).ports);
        plan
    };
    let maps = FakeMaps::default();
    let mut sockets = open(&maps);
    let before = both((&[1], &[]), (&[1], &[]));
    apply(&mut sockets, &ServicePlan::default(), &before).expect("applied");
    maps.with(|maps| maps.capacity.insert("SLOTS", 4));
    let mut after = both((&[1, 2, 3], &[]), (&[2], &[]));
    let gone = udp.node_port(30001);
    let udp_plan = after.ports.get_mut(&udp.port_key()).expect("there");
    udp_plan.frontends.remove(&gone);
    let result = apply(&mut sockets, &before, &after);
    assert_eq!(result, Err("map SLOTS is full: it takes 4 entries".to_owned()));
    let view = readers_view(&contents(&maps));
    let expected: Vec<_> = view
        .iter()
        .map(|(key, found)| (key.proto, found.clone()))
        .collect();
    assert_eq!(expected, [(17, addresses(udp, (&[2], &[])))]);
}

#[test]
fn both_families_of_a_service_live_side_by_side() {
    let [v4, _, _, _] = KINDS;
    let v6 = Kind {
        family: IpFamily::V6,
        ..v4
    };
    let mut plan = v4.plan(1, (&[1, 2], &[]));
    plan.ports.extend(v6.plan(1, (&[3], &[])).ports);
    let maps = FakeMaps::default();
    apply(&mut open(&maps), &ServicePlan::default(), &plan).expect("applied");
    let found = contents(&maps);
    let services: BTreeSet<_> = found
        .frontends
        .values()
        .map(|frontend| frontend.service)
        .collect();
    assert_eq!(services.len(), 2);
    let view: BTreeMap<_, _> = readers_view(&found)
        .into_iter()
        .map(|(key, found)| ((IpAddr::from(key.addr).to_string(), key.kind), found))
        .collect();
    let of = |address: &str, kind| view[&(address.to_owned(), kind)].clone();
    let (four, six) = (addresses(v4, (&[1, 2], &[])), addresses(v6, (&[3], &[])));
    assert_eq!(of("10.96.0.1", HookKey::ADDRESS), four);
    assert_eq!(of("fd00:10:96::1", HookKey::ADDRESS), six);
    assert_eq!(of("::", HookKey::NODE_PORT4), four);
    assert_eq!(of("::", HookKey::NODE_PORT6), six);
    let swept = open(&maps)
        .sweep(&|key| key.family() == IpFamily::V4)
        .expect("swept");
    assert_eq!(swept.frontends, BTreeSet::from([v6.vip(1), v6.node_port(30001)]));
}

#[test]
fn frontends_whose_clients_are_filtered_are_not_the_hooks() {
    let kind = KINDS[1];
    let state: State = (&[1, 2], &[]);
    let open_to_all = kind.plan(1, state);
    let filtered = |keys: &[FrontendKey]| {
        let mut plan = open_to_all.clone();
        let port = plan.ports.get_mut(&kind.port_key()).expect("there");
        for key in keys {
            port.frontends.get_mut(key).expect("there").admits = Admits::Sources;
        }
        plan
    };
    let one = filtered(&[kind.vip(1)]);
    let all = filtered(&[kind.vip(1), kind.node_port(30001)]);
    for (from, to, left) in [
        (&ServicePlan::default(), &one, 1),
        (&open_to_all, &one, 1),
        (&open_to_all, &all, 0),
        (&one, &open_to_all, 2),
        (&all, &one, 1),
    ] {
        for restart in [false, true] {
            let maps = FakeMaps::default();
            let mut sockets = open(&maps);
            apply(&mut sockets, &ServicePlan::default(), from).expect("applied");
            if restart {
                sockets = open(&maps);
                apply(&mut sockets, &ServicePlan::default(), to).expect("applied");
            } else {
                apply(&mut sockets, from, to).expect("applied");
            }
            let found = contents(&maps);
            assert_eq!(found.frontends.len(), left);
            let view = readers_view(&found);
            assert!(view.values().all(|found| *found == addresses(kind, state)));
            assert_eq!(apply(&mut sockets, to, to), Ok(0));
            if left == 0 {
                open(&maps).sweep(&|_| true).expect("swept");
                assert_eq!(contents(&maps), Contents::default());
            }
        }
    }
}

#[test]
fn a_service_that_goes_leaves_nothing_after_the_next_audit() {
    for kind in KINDS {
        let maps = FakeMaps::default();
        let mut sockets = open(&maps);
        let full = kind.plan(1, STATES[5]);
        apply(&mut sockets, &ServicePlan::default(), &full).expect("applied");
        apply(&mut sockets, &full, &ServicePlan::default()).expect("applied");
        let found = contents(&maps);
        assert_eq!((found.frontends.len(), found.members.len()), (0, 0));
        open(&maps).sweep(&|_| false).expect("swept");
        assert_eq!(contents(&maps), Contents::default());
    }
}

#[test]
fn frontends_that_nobody_wants_are_swept_and_reported() {
    for kind in KINDS {
        let maps = FakeMaps::default();
        let mut sockets = open(&maps);
        apply(&mut sockets, &ServicePlan::default(), &kind.plan(1, STATES[1])).expect("applied");
        let node_port = kind.node_port(30001);
        let swept = sockets.sweep(&|key| *key != node_port).expect("swept");
        assert_eq!(swept.frontends, BTreeSet::from([node_port]));
        assert_eq!(readers_view(&contents(&maps)).len(), 1);
    }
}

#[test]
fn a_frontend_that_moves_to_another_service_takes_no_client_along() {
    for kind in KINDS {
        let maps = FakeMaps::default();
        let mut sockets = open(&maps);
        let (old, new) = (kind.plan(1, (&[1, 2], &[])), kind.plan(1, (&[2, 3], &[])));
        apply_as(&mut sockets, 1, &ServicePlan::default(), &old);
        let (first, second) = (name(1), name(2));
        let nothing = ServicePlan::default();
        let applied = sockets.apply(&[
            Change {
                service: &first,
                old: &old,
                new: &nothing,
            },
            Change {
                service: &second,
                old: &nothing,
                new: &new,
            },
        ]);
        assert!(applied.failures.is_empty(), "{applied:?}");
        let found = contents(&maps);
        assert_eq!(members_view(&found), kind.members((&[2, 3], &[])));
        check_taken_over(&maps, kind, (&[2, 3], &[]), "moved");
    }
}

#[test]
fn node_addresses_of_both_families_stay_until_the_list_is_complete() {
    let maps = FakeMaps::default();
    let mut sockets = open(&maps);
    let nodes = |texts: &[&str], complete| NodeAddresses {
        roles: texts
            .iter()
            .map(|text| (text.parse().expect("an address"), NodeRole::OtherNode))
            .collect(),
        complete,
    };
    let found = || -> Vec<String> {
        let nodes = contents(&maps).nodes.into_keys().map(IpAddr::from);
        let texts: BTreeSet<_> = nodes.map(|address| address.to_string()).collect();
        texts.into_iter().collect()
    };
    assert_eq!(
        sockets.set_nodes(&nodes(&["10.0.0.1", "fd00::1"], false)).ok(),
        Some(2)
    );
    assert_eq!(sockets.set_nodes(&nodes(&["fd00::2"], false)).ok(), Some(1));
    assert_eq!(found(), ["10.0.0.1", "fd00::1", "fd00::2"]);
    assert_eq!(sockets.set_nodes(&nodes(&["fd00::2"], true)).ok(), Some(2));
    assert_eq!(found(), ["fd00::2"]);
    // The one that goes makes room for the one that comes.
    maps.with(|maps| maps.capacity.insert("NODES", 1));
    assert_eq!(sockets.set_nodes(&nodes(&["10.0.0.3"], true)).ok(), Some(2));
    assert!(
        sockets
            .set_nodes(&nodes(&["10.0.0.3", "10.0.0.4"], true))
            .is_err()
    );
    assert_eq!(found(), ["10.0.0.3"]);
}

#[test]
fn a_mapped_address_is_the_ipv4_address() {
    let mapped: SocketAddr = "[::ffff:10.96.0.1]:80".parse().expect("an address");
    let plain: IpAddr = "10.96.0.1".parse().expect("an address");
    assert_eq!(
        ebpf::abi::net::Ip::from(mapped.ip()),
        ebpf::abi::net::Ip::from(plain)
    );
}
