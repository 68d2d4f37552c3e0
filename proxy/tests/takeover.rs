//! A table of another layout, and a kernel that does not take another in its place: nftables in memory.

mod world;

use std::collections::BTreeMap;
use std::io;

use model::{Change, IpFamily, Snapshot};
use netlink::conntrack::Conntrack;
use netlink::nft::fake::FakeTables;
use netlink::nft::read::RuleInfo;
use netlink::nft::{
    BaseChain, Chain, DataType, Element, ElementData, Error, Failure, Layout, Rule, Set, SetKind, Table,
};
use nix::libc;
use proxy::datapath::Kernel;
use proxy::datapath::packets::Packets;
use proxy::datapath::packets::elements::Name;
use proxy::{Proxy, SyncReport};
use world::{READY, name, service, settings, slice, snapshot};

/// What is in the proxy's table for IPv4.
#[derive(Debug, PartialEq)]
struct State {
    chains: Vec<Chain>,
    rules: Vec<RuleInfo>,
    elements: BTreeMap<&'static str, Vec<Element>>,
}

fn table() -> Table {
    Packets::tables()[0].clone()
}

fn state(tables: &FakeTables) -> State {
    let mut nft = tables.connect();
    let mut elements = BTreeMap::new();
    for name in Name::ALL {
        elements.extend(
            nft.elements(&table(), name.text())
                .map(|found| (name.text(), found)),
        );
    }
    State {
        chains: nft.chains(&table()).expect("chains"),
        rules: nft.rules(&table()).expect("rules"),
        elements,
    }
}

/// Tables as another version left them: keys of Services' addresses lack the protocol.
fn of_another_layout() -> FakeTables {
    let tables = FakeTables::default();
    let mut nft = tables.connect();
    let mut layout = Layout::new(table());
    let key = [DataType::Ipv4Addr, DataType::InetService];
    layout.add_set(Set::new("service-ips", &key, SetKind::Set));
    let serves = Rule::new("what the other version served");
    layout.add_chain(Chain::base("prerouting", BaseChain::PREROUTING_NAT), [serves]);
    layout.fill_set(
        "service-ips",
        [Element::new(vec![10, 96, 0, 1, 0, 80, 0, 0], ElementData::None)],
    );
    nft.ensure(&layout).expect("the other version's table");
    tables
}

fn proxy(tables: &FakeTables) -> Proxy {
    let kernel = Kernel {
        packets: vec![Packets::over(tables.connect(), IpFamily::V4).expect("tables that can be read")],
        sockets: None,
        conntrack: Conntrack::open().expect("a socket"),
    };
    let mut settings = settings();
    settings.families = [IpFamily::V4].into();
    Proxy::with_datapath(settings, Box::new(kernel))
}

fn refused(errno: i32) -> Error {
    Error::Refused(vec![Failure {
        index: 0,
        message: "commit".into(),
        error: io::Error::from_raw_os_error(errno),
    }])
}

fn web(service_name: &str, number: u8, endpoints: &[&str]) -> [Change; 2] {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|address| (*address, "here", READY))
        .collect();
    [
        Change::Service(service(service_name, &format!("10.96.0.{number}"))),
        Change::EndpointSlice(slice(service_name, service_name, &endpoints)),
    ]
}

/// Services as the agent finds them, and changes of some of them.
fn before_and_after() -> [Snapshot; 2] {
    let some = [
        web("a", 1, &["10.244.0.1", "10.244.1.1"]),
        web("b", 2, &["10.244.0.2"]),
        web("c", 3, &["10.244.0.3", "10.244.1.3"]),
    ];
    let before = snapshot(some.concat());
    let mut after = before.clone();
    for change in web("c", 3, &["10.244.1.4"]).into_iter().chain(web("d", 4, &[])) {
        after.apply(change);
    }
    after.apply(Change::DeleteService(name("b")));
    [before, after]
}

#[track_caller]
fn failing(report: &SyncReport) -> Vec<String> {
    let failures = report.failures.iter();
    let mut failing: Vec<_> = failures.map(|(service, _)| service.name.to_string()).collect();
    failing.sort_unstable();
    failing
}

/// The kernel fails these transactions one after the other: the other table is as it was until a complete one is taken.
#[track_caller]
fn check(failures: Vec<Error>) {
    let [before, after] = before_and_after();
    let tables = of_another_layout();
    let other = state(&tables);
    let mut proxy = proxy(&tables);
    let times = failures.len() as u64;
    let taken = tables.with(|state| {
        state.failures.extend(failures);
        state.taken
    });
    let counts = || tables.with(|state| (state.taken - taken, state.refused));

    let report = proxy.sync(&before);
    assert_eq!(failing(&report), ["a", "b", "c"]);
    assert_eq!(report.unswept, [IpFamily::V4].into());
    assert_eq!((state(&tables), counts()), (other, (0, 1)));
    // A change, a look and a complete audit cost no try, and mend nothing.
    let other = state(&tables);
    assert_eq!(failing(&proxy.sync(&after)), ["b", "c", "d"]);
    assert_eq!(proxy.audit_structure().repaired, Vec::<String>::new());
    let audit = proxy.audit();
    assert_eq!((audit.repaired, audit.writes), (Vec::new(), 0));
    assert_eq!((state(&tables), counts()), (other, (0, 1)));

    for refused in 1..times {
        assert!(proxy.has_pending());
        let other = state(&tables);
        proxy.retry_failed();
        proxy.sync(&after);
        assert_eq!((state(&tables), counts()), (other, (0, refused + 1)));
    }
    proxy.retry_failed();
    let report = proxy.sync(&after);
    assert_eq!((failing(&report), counts().1), (Vec::new(), times));
    assert!(!proxy.has_pending());
    assert_eq!(state(&tables), as_new());
}

/// What a proxy makes that finds no table.
fn as_new() -> State {
    let [before, after] = before_and_after();
    let tables = FakeTables::default();
    let mut proxy = self::proxy(&tables);
    proxy.sync(&before);
    proxy.sync(&after);
    proxy.audit();
    state(&tables)
}

#[test]
fn the_other_table_serves_until_a_complete_one_is_taken() {
    check(vec![refused(libc::EPERM)]);
    check(vec![
        refused(libc::ENOMEM),
        refused(libc::ENFILE),
        Error::NoAnswer,
    ]);
    // What is read back elsewhere, since somebody else may have changed it.
    for errno in [libc::EEXIST, libc::ENOENT, libc::EBUSY] {
        check(vec![refused(errno), refused(errno)]);
    }
}

#[test]
fn without_a_service_the_other_table_goes_too() {
    let tables = of_another_layout();
    let other = state(&tables);
    let mut proxy = proxy(&tables);
    tables.with(|state| state.failures.push_back(refused(libc::EPERM)));
    let empty = world::synced();
    assert_eq!(proxy.sync(&empty).unswept, [IpFamily::V4].into());
    assert_eq!(proxy.sync(&empty).unswept, [IpFamily::V4].into());
    assert_eq!(state(&tables), other);
    assert_eq!(tables.with(|state| state.refused), 1);
    proxy.retry_failed();
    assert_eq!(proxy.sync(&empty).unswept, [].into());
    assert!(!proxy.has_pending());
    assert_eq!(state(&tables).elements[Name::ServiceIps.text()], []);
}

#[test]
fn what_can_never_be_sent_at_once_is_sent_in_pieces() {
    let [before, after] = before_and_after();
    let tables = of_another_layout();
    let mut proxy = proxy(&tables);
    let too_large = Error::Send {
        bytes: 1 << 20,
        source: io::Error::from_raw_os_error(libc::EMSGSIZE),
    };
    tables.with(|state| state.failures.push_back(too_large));
    assert_eq!(failing(&proxy.sync(&before)), Vec::<String>::new());
    proxy.sync(&after);
    proxy.audit();
    assert_eq!(state(&tables), as_new());
}
