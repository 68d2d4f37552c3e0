//! The table on real packets, and what outlives the proxy. Needs root.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use proxy::{DatapathKind, Proxy};
use tests::process::Process;
use tests::topology::Host;
use tests::{privileged, wait};

use super::cases::{Becomes, CASES, From, How, PacketCase, Sees, states};
use super::cluster::{READY, State, TCP, THIS_NODE, UDP, VIP, empty};
use super::node::{FAR, NEAR, NODE, OUTSIDE, POD, Surroundings, this_program};

/// Runs every row under one datapath and reports all that went wrong together.
fn check_table(
    datapath: impl FnOnce(&Surroundings) -> DatapathKind,
    expected: impl Fn(&PacketCase) -> Becomes,
) {
    let surroundings = Surroundings::build().expect("namespaces");
    let mut proxy = surroundings.proxy(datapath(&surroundings)).expect("a proxy");
    let mut wrong = Vec::new();
    for (name, state) in states() {
        let report = proxy.sync(&state.snapshot());
        assert!(
            report.failures.is_empty() && report.common_failures.is_empty(),
            "{name}: {report:?}"
        );
        for case in CASES.iter().filter(|case| case.state == name) {
            let line = observe(&surroundings, case);
            if let Err(reason) = judge(&line, case, expected(case)) {
                wrong.push(format!("{case:?}\n    {reason}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} rows:\n{}\n{}",
        wrong.len(),
        wrong.join("\n"),
        surroundings.ruleset()
    );
}

fn observe(surroundings: &Surroundings, case: &PacketCase) -> String {
    let how = match case.how {
        How::Tcp => "tcp",
        How::Udp => "udp",
        How::UdpUnconnected => "udp-unconnected",
    };
    let lines = surroundings
        .knock(host(surroundings, case.from).0, how, case.destination(), 1)
        .expect("knock ran");
    lines.join("\n")
}

fn host(surroundings: &Surroundings, from: From) -> (&Host, Ipv4Addr) {
    match from {
        From::Outside => (&surroundings.outside, OUTSIDE),
        From::Pod => (&surroundings.pod, POD),
        From::Near => (&surroundings.near, NEAR),
        From::Far => (&surroundings.far, FAR),
        From::Node => (&surroundings.node, NODE),
    }
}

fn judge(line: &str, case: &PacketCase, expected: Becomes) -> Result<(), String> {
    let found = format!("expected {expected:?}, found {line:?}");
    let (by, sees) = match expected {
        Becomes::Refused if line == "refused" => return Ok(()),
        Becomes::Silence if line == "silent" => return Ok(()),
        Becomes::Refused | Becomes::Silence => return Err(found),
        Becomes::Answer(by, sees) => (by, sees),
    };
    let answer = line
        .strip_prefix("answer ")
        .and_then(|answer| answer.split_once(' '));
    let Some((name, client)) = answer else {
        return Err(found);
    };
    let client: Ipv4Addr = client.parse().map_err(|_| found.clone())?;
    let own = match case.from {
        From::Outside => OUTSIDE,
        From::Pod => POD,
        From::Near => NEAR,
        From::Far => FAR,
        From::Node => NODE,
    };
    let seen = match sees {
        Sees::Client => client == own,
        Sees::Node => client == NODE || (!client.is_loopback() && client.octets()[3] == 1),
        Sees::Loopback => client == Ipv4Addr::LOCALHOST,
    };
    if by.contains(&name) && seen {
        Ok(())
    } else {
        Err(found)
    }
}

/// The hook sees what runs in the node's cgroup; a machine outside is not there, and neither is its cgroup.
fn with_hook(case: &PacketCase) -> Becomes {
    case.hook.unwrap_or(case.packets)
}

#[test]
fn every_row_holds_with_packet_rules_alone() {
    if privileged("every row holds with packet rules alone") {
        check_table(|_| DatapathKind::Nftables, |case| case.packets);
    }
}

#[test]
fn every_row_holds_with_the_socket_hook() {
    if privileged("every row holds with the socket hook") {
        check_table(Surroundings::hook, with_hook);
    }
}

fn both() -> State {
    states()
        .into_iter()
        .find(|(name, _)| *name == "both")
        .expect("a state")
        .1
}

fn counters(proxy: &Proxy) -> BTreeMap<&'static str, u64> {
    proxy.counters().expect("counters").into_iter().collect()
}

#[test]
fn any_state_follows_any_other_and_a_new_process_finds_nothing_to_write() {
    if !privileged("any state follows any other and a new process finds nothing to write") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let mut proxy = surroundings.proxy(DatapathKind::Nftables).expect("a proxy");
    for (from, before) in states() {
        for (to, after) in states() {
            proxy.sync(&before.snapshot());
            let report = proxy.sync(&after.snapshot());
            assert!(
                report.failures.is_empty() && report.common_failures.is_empty(),
                "{from} to {to}: {report:?}"
            );
            proxy = surroundings.proxy(DatapathKind::Nftables).expect("a proxy");
            assert_eq!(proxy.sync(&after.snapshot()).writes, 0, "{from} to {to}");
        }
    }
}

#[test]
fn connections_are_spread_over_all_endpoints_and_the_hook_counts_each() {
    if !privileged("connections are spread over all endpoints and the hook counts each") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let mut proxy = surroundings.proxy(surroundings.hook()).expect("a proxy");
    proxy.sync(&both().snapshot());
    let before = counters(&proxy);
    for how in ["tcp", "udp"] {
        let port = if how == "tcp" { TCP.0 } else { UDP.0 };
        let lines = surroundings
            .knock(&surroundings.pod, how, (VIP, port).into(), 100)
            .expect("knock ran");
        let near = lines
            .iter()
            .filter(|line| line.starts_with("answer near"))
            .count();
        let far = lines.iter().filter(|line| line.starts_with("answer far")).count();
        assert_eq!(near + far, 100, "{lines:?}");
        // Each side of a fair draw of 100 stays within 20 to 80 but for once in a billion times.
        assert!((20..=80).contains(&near), "{near} of 100");
    }
    let after = counters(&proxy);
    assert_eq!(after["translated"] - before["translated"], 200);
    assert_eq!(after["slot_missing"], before["slot_missing"]);
}

#[test]
fn node_ports_on_loopback_are_served_where_the_proxy_was_opened_last() {
    if !privileged("node ports on loopback are served where the proxy was opened last") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let knock = |from: &Host| {
        let to = (Ipv4Addr::LOCALHOST, TCP.1).into();
        let lines = surroundings.knock(from, "tcp", to, 1).expect("knock ran");
        lines[0].split(' ').next().unwrap_or_default().to_owned()
    };
    let mut proxy = surroundings.proxy(surroundings.hook()).expect("a proxy");
    proxy.sync(&both().snapshot());
    assert_eq!(
        [knock(&surroundings.node), knock(&surroundings.near)],
        ["answer", "refused"]
    );
    // A node that starts anew has another namespace, and finds the pins of its former life.
    let config = surroundings.config(surroundings.hook());
    let next = surroundings.near.run(|| Proxy::open(&config)).expect("entered");
    let _next = next.expect("a proxy");
    assert_eq!(
        [knock(&surroundings.node), knock(&surroundings.near)],
        ["refused", "answer"]
    );
    // To the proxy that was there before, that is damage.
    assert_eq!(
        proxy.audit_structure().repaired,
        ["the socket hook served another network namespace's loopback"]
    );
    assert!(proxy.audit_structure().is_clean());
    assert_eq!(
        [knock(&surroundings.node), knock(&surroundings.near)],
        ["answer", "refused"]
    );
}

#[test]
fn a_changed_endpoint_costs_few_writes_and_the_same_snapshot_none() {
    if !privileged("a changed endpoint costs few writes and the same snapshot none") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let mut proxy = surroundings.proxy(surroundings.hook()).expect("a proxy");
    assert!(proxy.sync(&both().snapshot()).writes > 0);
    assert_eq!(proxy.sync(&both().snapshot()).writes, 0, "nothing changed");
    assert!(proxy.audit().is_clean());
    let mut fewer = both();
    fewer.endpoints.truncate(1);
    let report = proxy.sync(&fewer.snapshot());
    // Two ports, each with an address and a node port: per port one new slot and two frontends in the hook's maps;
    // per frontend one verdict out, one in and one or two endpoint elements; two template chains.
    assert!((1..=40).contains(&report.writes), "{report:?}");
    assert!(proxy.audit().is_clean());
}

#[test]
fn a_restarted_proxy_finds_everything_in_place_and_writes_nothing() {
    if !privileged("a restarted proxy finds everything in place and writes nothing") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let snapshot = both().snapshot();
    let mut proxy = surroundings.proxy(surroundings.hook()).expect("a proxy");
    proxy.sync(&snapshot);
    let before = surroundings.ruleset();
    drop(proxy);
    assert_translated(&surroundings);
    let mut proxy = surroundings.proxy(surroundings.hook()).expect("a proxy");
    let report = proxy.sync(&snapshot);
    assert_eq!(report.writes, 0, "{report:?}");
    assert_eq!(surroundings.ruleset(), before);
    // What was deleted meanwhile goes with the first complete sync.
    drop(proxy);
    let mut proxy = surroundings.proxy(surroundings.hook()).expect("a proxy");
    let mut incomplete = model::Snapshot::default();
    incomplete.apply(model::Change::Synced(model::Kind::Service));
    assert_eq!(proxy.sync(&incomplete).waiting_for, [model::Kind::EndpointSlice]);
    assert_translated(&surroundings);
    assert!(proxy.sync(&empty()).writes > 0);
    let lines = surroundings
        .knock(&surroundings.pod, "tcp", (VIP, TCP.0).into(), 1)
        .expect("knock ran");
    assert!(!lines[0].starts_with("answer"), "{lines:?}");
}

#[track_caller]
fn assert_translated(surroundings: &Surroundings) {
    for (from, to) in [
        (&surroundings.pod, SocketAddr::from((VIP, TCP.0))),
        (&surroundings.outside, SocketAddr::from((NODE, TCP.1))),
        (&surroundings.node, SocketAddr::from((Ipv4Addr::LOCALHOST, TCP.1))),
    ] {
        let lines = surroundings.knock(from, "tcp", to, 1).expect("knock ran");
        assert!(
            lines[0].starts_with("answer"),
            "{} to {to}: {lines:?}",
            from.name()
        );
    }
}

/// The other process of `a_killed_owner_leaves_translation_working`.
#[test]
#[ignore = "runs in a process of its own, started by another test"]
fn owner() {
    let Ok(config) = std::env::var("CWT_PROXY_OWNER") else {
        return;
    };
    let (cgroup, pin_dir) = config.split_once('\n').expect("two paths");
    let mut proxy = Proxy::open(&proxy::Config {
        node: THIS_NODE.into(),
        datapath: DatapathKind::Ebpf {
            cgroup: cgroup.into(),
            pin_dir: pin_dir.into(),
        },
        pod_network: "10.244.0.0/16".parse().expect("a network"),
        local_dns: None,
        node_addresses: vec![NODE.into()],
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
    let mut program = this_program("privileged::owner");
    program.env(
        "CWT_PROXY_OWNER",
        format!("{}\n{}", cgroup.display(), pin_dir.display()),
    );
    let mut owner = Process::spawn(&place, &mut program).expect("started");
    owner.await_line("SYNCED", Duration::from_secs(30));
    owner.kill();
    assert_translated(&surroundings);
    let mut proxy = surroundings.proxy(surroundings.hook()).expect("a proxy");
    assert_eq!(proxy.sync(&both().snapshot()).writes, 0);
}

#[test]
fn damage_by_others_is_found_and_repaired() {
    if !privileged("damage by others is found and repaired") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let mut proxy = surroundings.proxy(surroundings.hook()).expect("a proxy");
    proxy.sync(&both().snapshot());
    let mut watch = surroundings
        .node
        .run(|| proxy.watch_drift())
        .expect("entered")
        .expect("a watch")
        .expect("kernel");
    let whole = surroundings.ruleset();
    let table = "causeway-proxy";
    for damage in [
        vec!["delete", "table", "ip", table],
        vec!["flush", "chain", "ip", table, "services"],
        vec!["flush", "map", "ip", table, "endpoints"],
        vec![
            "delete",
            "element",
            "ip",
            table,
            "service-ips",
            "{ 10.96.0.10 . tcp . 80 }",
        ],
        vec!["add", "element", "ip", table, "cluster-ips", "{ 10.96.0.99 }"],
        vec!["add", "rule", "ip", table, "postrouting", "accept"],
    ] {
        let output = surroundings
            .node
            .command("nft", &damage)
            .expect("nft is installed");
        assert!(output.status.success(), "{damage:?}: {}", output.stderr);
        assert!(
            watch.wait(Duration::from_secs(1)).expect("events"),
            "{damage:?} was not noticed"
        );
        let report = proxy.audit();
        assert!(
            !report.is_clean() && report.failures.is_empty(),
            "{damage:?}: {report:?}"
        );
        assert_eq!(
            elements(&surroundings.ruleset()),
            elements(&whole),
            "after {damage:?}"
        );
        assert!(proxy.audit().is_clean(), "after {damage:?}");
        assert!(
            !watch.wait(Duration::from_millis(20)).expect("events"),
            "the repair is no news"
        );
    }
    let pins = surroundings.bpffs.path().join("proxy/v1");
    for (damage, repaired) in [
        ("links", "the socket hook was not attached"),
        ("FRONTENDS4", "the socket hook's maps were not pinned"),
        ("NODE_NETNS", "the socket hook's maps were not pinned"),
    ] {
        let pin = pins.join(damage);
        let removed = if pin.is_dir() {
            std::fs::remove_dir_all(&pin)
        } else {
            std::fs::remove_file(&pin)
        };
        removed.expect("pins are files");
        assert_eq!(proxy.audit_structure().repaired, [repaired], "{damage}");
        assert!(proxy.audit_structure().is_clean(), "after {damage}");
        assert_translated(&surroundings);
    }
    drop(proxy);
    let mut proxy = surroundings.proxy(surroundings.hook()).expect("a proxy");
    assert_eq!(
        proxy.sync(&both().snapshot()).writes,
        0,
        "the next process finds the maps"
    );
}

#[test]
fn damage_in_the_middle_of_a_sync_is_repaired_by_it() {
    if !privileged("damage in the middle of a sync is repaired by it") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let mut proxy = surroundings.proxy(DatapathKind::Nftables).expect("a proxy");
    let table = "causeway-proxy";
    for damage in [
        vec!["delete", "table", "ip", table],
        vec!["flush", "map", "ip", table, "service-ips"],
        vec!["flush", "map", "ip", table, "endpoints"],
        vec!["add", "element", "ip", table, "cluster-ips", "{ 10.96.0.99 }"],
    ] {
        proxy.sync(&both().snapshot());
        let output = surroundings
            .node
            .command("nft", &damage)
            .expect("nft is installed");
        assert!(output.status.success(), "{damage:?}: {}", output.stderr);
        let mut fewer = both();
        fewer.endpoints.truncate(1);
        let report = proxy.sync(&fewer.snapshot());
        assert!(
            report.failures.is_empty() && report.common_failures.is_empty(),
            "{damage:?}: {report:?}"
        );
        let lines = surroundings
            .knock(&surroundings.outside, "tcp", (NODE, TCP.1).into(), 1)
            .expect("knock ran");
        assert!(lines[0].starts_with("answer near"), "{damage:?}: {lines:?}");
        // What the sync had no reason to touch is left to the audit.
        proxy.audit();
        assert!(proxy.audit().is_clean(), "{damage:?}");
    }
}

#[test]
fn an_uninstalled_proxy_leaves_no_trace() {
    if !privileged("an uninstalled proxy leaves no trace") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let mut proxy = surroundings.proxy(surroundings.hook()).expect("a proxy");
    proxy.sync(&both().snapshot());
    drop(proxy);
    let config = surroundings.config(surroundings.hook());
    for attempt in ["installed", "gone already"] {
        surroundings
            .node
            .run(|| Proxy::uninstall(&config))
            .expect("entered")
            .expect(attempt);
        assert_eq!(surroundings.ruleset(), "");
        let pins =
            std::fs::read_dir(surroundings.bpffs.path().join("proxy")).expect("the pin directory stays");
        assert_eq!(pins.count(), 0);
    }
    let to = (Ipv4Addr::LOCALHOST, TCP.1).into();
    assert_eq!(
        surroundings
            .knock(&surroundings.node, "tcp", to, 1)
            .expect("knock ran"),
        ["refused"]
    );
}

/// Lines of a ruleset, without order: elements are printed in the order of their hashes.
fn elements(ruleset: &str) -> BTreeSet<String> {
    let parts = ruleset
        .split([',', '\n', '{', '}'])
        .map(|part| part.trim().replace("elements =", ""));
    parts.filter(|part| !part.is_empty()).collect()
}

#[test]
fn clients_that_keep_a_udp_port_move_on_when_their_endpoint_leaves() {
    if !privileged("clients that keep a UDP port move on when their endpoint leaves") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let mut proxy = surroundings.proxy(DatapathKind::Nftables).expect("a proxy");
    let only = |address, node| State {
        endpoints: vec![(address, node, READY)],
        ..both()
    };
    proxy.sync(&only(NEAR, THIS_NODE).snapshot());
    let socket = surroundings
        .pod
        .run(|| std::net::UdpSocket::bind("0.0.0.0:0"))
        .expect("entered")
        .expect("bound");
    let ask = |to: SocketAddr| {
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .expect("set");
        let mut buffer = [0; 64];
        socket
            .send_to(b"who", to)
            .and_then(|_| socket.recv_from(&mut buffer))
            .map(|(len, _)| {
                String::from_utf8_lossy(&buffer[..len])
                    .split(' ')
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            })
    };
    for to in [SocketAddr::from((VIP, UDP.0)), SocketAddr::from((NODE, UDP.1))] {
        proxy.sync(&only(NEAR, THIS_NODE).snapshot());
        assert_eq!(ask(to).expect("an answer"), "near");
        let report = proxy.sync(&only(FAR, "node-2").snapshot());
        assert_eq!(report.stale_flows, 1, "{report:?}");
        let name = wait::until(
            "an answer from the other endpoint",
            Duration::from_secs(5),
            || ask(to),
        );
        assert_eq!(name, "far");
        let mut both = both();
        assert_eq!(proxy.sync(&both.snapshot()).stale_flows, 0, "nobody left");
        assert_eq!(ask(to).expect("an answer"), "far", "an established flow stays");
        both.endpoints.clear();
        assert_eq!(proxy.sync(&both.snapshot()).stale_flows, 1, "no endpoint is left");
    }
}
