//! What happens to the etcd, and to leases in it.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::network::{Network, SOON, Traffic};
use tests::wait;

/// Nodes learn within this time what they missed (F26).
const CAUGHT_UP: Duration = Duration::from_secs(5);

#[test]
fn an_etcd_that_stands_still_costs_no_packet() {
    let Some(mut world) = Network::new("an etcd that stands still costs nothing (F25)", "still", 2) else {
        return;
    };
    let (near, far) = (world.pod(0, "near"), world.pod(1, "far"));
    let traffic = Traffic::start(&near, &far);
    let before = [0, 1].map(|number| world.entries(number));
    Network::signal(world.etcd.as_ref(), Signal::SIGSTOP);
    let stopped = Instant::now();
    // Longer than each of the agent's own waits for an answer.
    wait::until("the agents looked for it", SOON, || {
        let told = |number: usize| {
            let output = world.agents[number].as_ref().map(|agent| agent.output());
            output.is_some_and(|output| output.contains("leases are not followed"))
        };
        if told(0) && told(1) { Ok(()) } else { Err(()) }
    });
    // Pods come and go meanwhile.
    let new = world.pod(0, "new");
    world.delete(&new);
    traffic.await_more();
    Network::signal(world.etcd.as_ref(), Signal::SIGCONT);
    let stood = stopped.elapsed();
    for (number, before) in before.iter().enumerate() {
        assert_eq!(&world.entries(number), before);
    }
    let lost = traffic.ended("F25");
    assert_eq!(lost.datagrams, 0, "{lost:?}");
    // And an agent that starts without any etcd serves from what it remembers.
    world.etcd = None;
    world.kill_agent(0);
    world.start_agent(0);
    world.await_ready(0);
    let new = world.pod(0, "newer");
    world.delete(&new);
    let lost = traffic.ended("F25");
    assert_eq!(lost.datagrams, 0, "{lost:?}");
    println!("F25 etcd stood still for {stood:?}, then was gone: {lost:?}");
}

#[test]
fn what_a_node_missed_before_a_compaction_it_learns_when_it_is_back() {
    let Some(mut world) = Network::new("a compaction hides nothing (F26)", "compact", 3) else {
        return;
    };
    let third = world.lease_of(2).expect("a lease");
    Network::signal(world.agents[0].as_ref(), Signal::SIGSTOP);
    world.kill_agent(2);
    world.etcdctl(&["del", &third]).expect("deleted");
    // A revision that the node never saw, and that the etcd has no more.
    for round in 0..20 {
        world
            .etcdctl(&["put", "/other", &round.to_string()])
            .expect("written");
    }
    let status = world.etcdctl(&["get", "/other", "-w", "json"]).expect("read");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let revision = status["header"]["revision"]
        .as_u64()
        .expect("a revision")
        .to_string();
    world.etcdctl(&["compact", &revision]).expect("compacted");
    let etcd = world.etcd.take();
    drop(etcd);
    world.start_etcd();
    Network::signal(world.agents[0].as_ref(), Signal::SIGCONT);
    let began = Instant::now();
    wait::until_value(
        "the lease is gone there, too",
        SOON,
        || world.routes(0).len(),
        |routes| *routes == 1,
    );
    let took = began.elapsed();
    assert!(took < CAUGHT_UP, "{took:?}");
    world.start_agent(2);
    world.await_ready(2);
    world.await_ready(0);
    let leases = world.leases().expect("leases");
    let mut addresses: Vec<_> = leases
        .iter()
        .filter_map(|(_, lease)| lease["PublicIP"].as_str())
        .collect();
    addresses.sort_unstable();
    assert_eq!(addresses, ["172.30.8.11", "172.30.8.12", "172.30.8.13"]);
    println!("F26 caught up after {took:?}");
}

#[test]
fn a_lease_that_is_revoked_is_taken_again_and_nobody_notices() {
    let Some(world) = Network::new("a revoked lease is taken again (F27)", "revoke", 2) else {
        return;
    };
    let (near, far) = (world.pod(0, "near"), world.pod(1, "far"));
    let traffic = Traffic::start(&near, &far);
    let key = world.lease_of(1).expect("a lease");
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        let shown = world.etcdctl(&["get", &key, "-w", "json"]).expect("read");
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
        let lease = shown["kvs"][0]["lease"].as_i64().expect("it has one");
        world
            .etcdctl(&["lease", "revoke", &format!("{lease:x}")])
            .expect("revoked");
        let began = Instant::now();
        wait::until("the same subnet again", SOON, || match world.lease_of(1) {
            Ok(found) if found == key => Ok(()),
            other => Err(format!("{other:?}")),
        });
        slowest = slowest.max(began.elapsed());
        traffic.await_more();
    }
    let lost = traffic.ended("F27");
    assert_eq!(lost.datagrams, 0, "{lost:?}");
    println!("F27 five times, back after {slowest:?} at most: {lost:?}");
}

#[test]
fn lying_leases_are_refused_alone_and_the_route_table_stays() {
    let Some(world) = Network::new("lying leases are refused alone (F29)", "lies", 2) else {
        return;
    };
    let (near, far) = (world.pod(0, "near"), world.pod(1, "far"));
    let traffic = Traffic::start(&near, &far);
    let before = world.entries(0);
    let good = r#"{"PublicIP":"172.30.8.40","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:40"}}"#;
    let with = |from: &str, to: &str| good.replace(from, to);
    let own_mac = world.mac(0, "flannel.1");
    let huge = format!(
        r#"{{"PublicIP":"172.30.8.40","Padding":"{}"}}"#,
        "x".repeat(100_000)
    );
    let free = "10.244.250.0-24";
    let rows: Vec<(&str, String)> = vec![
        (free, "{".into()),
        (free, "[]".into()),
        (free, "7".into()),
        (free, String::new()),
        (free, huge),
        (free, with("172.30.8.40", "0.0.0.0")),
        (free, with("172.30.8.40", "127.0.0.1")),
        (free, with("172.30.8.40", "224.0.0.5")),
        (free, with("172.30.8.40", "255.255.255.255")),
        (free, with("172.30.8.40", "172.30.8.11")),
        (free, with("172.30.8.40", "fd00::1")),
        (free, with("02:00:00:00:00:40", "01:00:5e:00:00:01")),
        (free, with("02:00:00:00:00:40", "00:00:00:00:00:00")),
        (free, with("02:00:00:00:00:40", "ff:ff:ff:ff:ff:ff")),
        (free, with("02:00:00:00:00:40", "not a MAC")),
        (free, with("02:00:00:00:00:40", &own_mac)),
        (free, with("\"VNI\":1", "\"VNI\":4294967296")),
        (free, with("vxlan", "ipsec")),
        ("0.0.0.0-0", good.into()),
        ("10.244.0.0-16", good.into()),
        ("127.0.0.0-24", good.into()),
        ("224.0.0.0-24", good.into()),
        ("192.0.2.0-24", good.into()),
        ("10.244.250.0-33", good.into()),
        ("10.244.250.0", good.into()),
        ("../../evil", good.into()),
    ];
    for (key, value) in &rows {
        let full = format!("/coreos.com/network/subnets/{key}");
        world.etcdctl(&["put", &full, value]).expect("written");
        // What is written after it is followed: so the lie was read.
        let witness = "/coreos.com/network/subnets/10.244.251.0-24";
        world
            .etcdctl(&["put", witness, &good.replace(".40", ".41").replace(":40", ":41")])
            .expect("written");
        wait::until_value(
            "the witness is routed",
            SOON,
            || world.routes(0).len(),
            |routes| *routes == 2,
        );
        world.etcdctl(&["del", witness]).expect("deleted");
        wait::until_value(
            "nothing but the witness came",
            SOON,
            || world.entries(0),
            |entries| *entries == before,
        );
        world.etcdctl(&["del", &full]).expect("deleted");
    }
    for agent in world.agents.iter().flatten() {
        assert!(!agent.output().contains("panicked"));
    }
    let lost = traffic.ended("F29");
    println!("F29 {} lies: {lost:?}", rows.len());
    assert_eq!(lost.datagrams, 0, "{lost:?}");
}
