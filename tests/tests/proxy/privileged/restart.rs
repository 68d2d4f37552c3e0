//! Whoever opens the proxy next finds what was there.

use std::time::Duration;

use model::{
    Change, Endpoint, EndpointPort, EndpointSlice, IpFamily, ObjectName, Protocol, Service, ServiceKind,
    ServicePort,
};
use proxy::{Config, DatapathKind, Proxy};
use tests::ledger::rules;
use tests::privileged;
use tests::process::Process;

use super::{answers, assert_translated, both, loopback, outcome};
use crate::cases::scenes;
use crate::cluster::{FAMILIES, TARGET_PORT, TCP, VIP, empty, port_number, settings};
use crate::node::{Surroundings, this_program};

#[test]
fn any_state_follows_any_other_and_a_new_process_finds_nothing_to_write() {
    if !privileged("any state follows any other and a new process finds nothing to write") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let scenes = scenes();
    // Each comes behind the one before it, behind the one after it, and behind one from elsewhere in the table.
    let elsewhere = (0..scenes.len()).map(|number| number * 37 % scenes.len());
    let order = (0..scenes.len()).chain((0..scenes.len()).rev()).chain(elsewhere);
    for scene in order.map(|number| &scenes[number]) {
        let snapshot = scene.state.snapshot();
        let open = || surroundings.proxy(scene.state.settings(), DatapathKind::Nftables);
        let report = open().expect("a proxy").sync(&snapshot);
        assert!(
            report.failures.is_empty() && report.common_failures.is_empty(),
            "{}: {report:?}",
            scene.name
        );
        let mut proxy = open().expect("a proxy");
        let report = proxy.sync(&snapshot);
        assert_eq!(report.writes, 0, "{}: {report:?}", scene.name);
        let audit = proxy.audit();
        assert!(audit.is_clean(), "{}: {audit:?}", scene.name);
    }
}

#[test]
fn a_restarted_proxy_finds_everything_in_place_and_writes_nothing() {
    if !privileged("a restarted proxy finds everything in place and writes nothing") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let snapshot = both().snapshot();
    let open = || {
        surroundings
            .proxy(settings(), surroundings.hook())
            .expect("a proxy")
    };
    open().sync(&snapshot);
    let before = surroundings.ruleset();
    assert!(
        before.contains("10.96.0.10") && before.contains("fd00:96::10"),
        "{before}"
    );
    assert_translated(&surroundings);
    let report = open().sync(&snapshot);
    assert_eq!(report.writes, 0, "{report:?}");
    assert_eq!(surroundings.ruleset(), before);
    // What was deleted meanwhile goes with the first complete sync.
    let mut proxy = open();
    let mut incomplete = model::Snapshot::default();
    incomplete.apply(model::Change::Synced(model::Kind::Service));
    assert_eq!(
        proxy.sync(&incomplete).waiting_for,
        [model::Kind::EndpointSlice, model::Kind::Node]
    );
    assert_translated(&surroundings);
    assert!(proxy.sync(&empty()).writes > 0);
    for family in FAMILIES {
        let to = (VIP.of(family), TCP.0).into();
        assert_eq!(answers(&surroundings, &surroundings.pod, to), "beyond");
    }
}

/// A Service with an endpoint, behind the one of [`both`] and those of smaller numbers.
fn numbered(number: u16) -> [Change; 2] {
    let [high, low] = number.to_be_bytes();
    let name = ObjectName::new("default", format!("web-{number:03}"));
    let kind = ServiceKind::ClusterIp {
        addresses: [[10, 97, high, low].into()].into(),
    };
    let slice = EndpointSlice {
        name: ObjectName::new("default", format!("web-{number:03}-1")),
        service: name.name.clone(),
        family: IpFamily::V4,
        endpoints: vec![Endpoint::new([10, 245, high, low].into())].into(),
        ports: [EndpointPort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: port_number(TARGET_PORT),
        }]
        .into(),
        last_change: None,
    };
    let service = Service {
        ports: [ServicePort::new(Protocol::Tcp, port_number(TCP.0))].into(),
        ..Service::new(name, kind)
    };
    [Change::Service(service), Change::EndpointSlice(slice)]
}

#[test]
fn many_services_at_once_leave_what_they_leave_a_few_at_a_time() {
    if !privileged("many services at once leave what they leave a few at a time") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let open = || {
        surroundings
            .proxy(settings(), surroundings.hook())
            .expect("a proxy")
    };
    let mut snapshot = both().snapshot();
    let mut proxy = open();
    let mut writes = proxy.sync(&snapshot).writes;
    for number in 0..400 {
        for change in numbered(number) {
            snapshot.apply(change);
        }
        if number % 50 == 49 {
            writes += proxy.sync(&snapshot).writes;
        }
    }
    let few_at_a_time = rules(&surroundings.node.place()).expect("a ruleset");
    drop(proxy);
    surroundings.uninstall();

    let report = open().sync(&snapshot);
    assert!(report.failures.is_empty(), "{report:?}");
    assert_eq!(report.writes, writes);
    assert_eq!(
        rules(&surroundings.node.place()).expect("a ruleset"),
        few_at_a_time
    );
    assert_translated(&surroundings);
    assert_eq!(open().sync(&snapshot).writes, 0, "both layers have all of it");
}

/// The other process of `a_killed_owner_leaves_translation_working`.
#[test]
#[ignore = "runs in a process of its own, started by another test"]
fn owner() {
    let Ok(config) = std::env::var("CWT_PROXY_OWNER") else {
        return;
    };
    let (cgroup, pin_dir) = config.split_once('\n').expect("two paths");
    let mut proxy = Proxy::open(&Config {
        settings: settings(),
        datapath: DatapathKind::Ebpf {
            cgroup: cgroup.into(),
            pin_dir: pin_dir.into(),
        },
    })
    .expect("a proxy");
    let report = proxy.sync(&both().snapshot());
    println!("\nSYNCED {report:?}");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_owner_leaves_translation_working() {
    if !privileged("a killed owner leaves translation working") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let DatapathKind::Ebpf { cgroup, pin_dir } = surroundings.hook() else {
        unreachable!("the hook's datapath")
    };
    let place = surroundings.node.place();
    let mut program = this_program("privileged::restart::owner");
    program.env(
        "CWT_PROXY_OWNER",
        format!("{}\n{}", cgroup.display(), pin_dir.display()),
    );
    let mut owner = Process::spawn(&place, &mut program).expect("started");
    owner.await_line("SYNCED", Duration::from_secs(30));
    owner.kill();
    assert_translated(&surroundings);
    let proxy = surroundings.proxy(settings(), surroundings.hook());
    assert_eq!(proxy.expect("a proxy").sync(&both().snapshot()).writes, 0);
}

#[test]
fn node_ports_on_loopback_are_served_where_the_proxy_was_opened_last() {
    if !privileged("node ports on loopback are served where the proxy was opened last") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let on_loopback = || {
        let hosts = [&surroundings.node, surroundings.near()];
        hosts.map(|host| {
            let outcomes =
                FAMILIES.map(|family| outcome(&surroundings, host, (loopback(family), TCP.1).into()));
            outcomes.map(|outcome| outcome.split(' ').next().unwrap_or_default().to_owned())
        })
    };
    let on_the_node = [["answer"; 2], ["refused"; 2]];
    let proxy = surroundings.proxy(settings(), surroundings.hook());
    let mut proxy = proxy.expect("a proxy");
    proxy.sync(&both().snapshot());
    assert_eq!(on_loopback(), on_the_node);
    // A node that starts anew has another namespace, and finds the pins of its former life.
    let config = Config {
        settings: settings(),
        datapath: surroundings.hook(),
    };
    let next = surroundings.near().run(|| Proxy::open(&config)).expect("entered");
    let _next = next.expect("a proxy");
    assert_eq!(on_loopback(), [["refused"; 2], ["answer"; 2]]);
    // To the proxy that was there before, that is damage.
    assert_eq!(
        proxy.audit_structure().repaired,
        ["the socket hook served another network namespace's loopback"]
    );
    assert!(proxy.audit_structure().is_clean());
    assert_eq!(on_loopback(), on_the_node);
}

#[test]
fn an_uninstalled_proxy_leaves_no_trace() {
    if !privileged("an uninstalled proxy leaves no trace") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let proxy = surroundings.proxy(settings(), surroundings.hook());
    proxy.expect("a proxy").sync(&both().snapshot());
    let there = [("nftables tables", 2), ("socket hooks", 1)];
    for expected in [&there[..], &[]] {
        let removed: Vec<_> = surroundings.uninstall().removed.into_iter().collect();
        assert_eq!(removed, expected);
        assert_eq!(surroundings.ruleset(), "");
        let pins =
            std::fs::read_dir(surroundings.bpffs.path().join("proxy")).expect("the pin directory stays");
        assert_eq!(pins.count(), 0);
    }
    for family in FAMILIES {
        let to = (loopback(family), TCP.1).into();
        assert_eq!(outcome(&surroundings, &surroundings.node, to), "refused");
    }
}
