//! What changes while the proxy runs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use model::{Change, IpFamily, Protocol, Service, SessionAffinity, Snapshot};
use netlink::conntrack::{Conntrack, Flow, Glance};
use proxy::{DatapathKind, IptablesVariant, Proxy};
use tests::{privileged, wait};

use super::{answers, both, outcome};
use crate::cluster::{
    BALANCER, FAMILIES, FAR, FAR2, NEAR, NEAR2, NODE, State, TCP, UDP, VIP, empty, settings, with_balancer,
};
use crate::node::{Knocks, Surroundings, ip};

/// Long enough for an attempt to connect that the kernel makes again.
const LONG: Duration = Duration::from_secs(20);

fn counters(proxy: &Proxy) -> BTreeMap<&'static str, u64> {
    proxy.counters().expect("counters").into_iter().collect()
}

#[test]
fn the_hook_counts_each_connection() {
    if !privileged("the hook counts each connection") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let proxy = surroundings.proxy(settings(), surroundings.hook());
    let mut proxy = proxy.expect("a proxy");
    proxy.sync(&both().snapshot());
    let before = counters(&proxy);
    let knocks: Vec<_> = [("tcp", TCP.0), ("udp", UDP.0)]
        .into_iter()
        .flat_map(|(how, port)| {
            FAMILIES.map(|family| Knocks {
                pause: None,
                lane: format!("{how} {family:?}").replace(' ', "-"),
                how,
                count: 25,
                addresses: vec![(VIP.of(family), port).into()],
            })
        })
        .collect();
    let results = surroundings.knock(&surroundings.pod, &knocks).expect("knock ran");
    assert!(
        results.concat().iter().all(|line| line.starts_with("answer ")),
        "{results:?}"
    );
    let after = counters(&proxy);
    assert_eq!(after["translated"] - before["translated"], 100);
    assert_eq!(after["slot_missing"], before["slot_missing"]);
}

#[test]
fn a_changed_endpoint_costs_few_writes_and_the_same_snapshot_none() {
    if !privileged("a changed endpoint costs few writes and the same snapshot none") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let proxy = surroundings.proxy(settings(), surroundings.hook());
    let mut proxy = proxy.expect("a proxy");
    assert!(proxy.sync(&both().snapshot()).writes > 0);
    assert_eq!(proxy.sync(&both().snapshot()).writes, 0, "nothing changed");
    assert!(proxy.audit().is_clean());
    let report = proxy.sync(&State::new([NEAR]).snapshot());
    // Two ports in two families, each with an address and a node port: per port one new slot and two frontends in the
    // hook's maps; per frontend a verdict out and one in, and per port one or two endpoint elements; template chains.
    assert!((1..=80).contains(&report.writes), "{report:?}");
    assert!(proxy.audit().is_clean());
}

#[test]
fn a_node_that_moves_to_another_zone_follows_the_hints_to_that() {
    if !privileged("a node that moves to another zone follows the hints to that") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let proxy = surroundings.proxy(settings(), surroundings.hook());
    let mut proxy = proxy.expect("a proxy");
    let state = State::new([NEAR.zones(&["a"]), FAR.zones(&["b"])]);
    let mut snapshot = state.snapshot();
    for (zone, name) in [("a", "near"), ("b", "far"), ("a", "near")] {
        let mut node = state.this_node();
        node.zone = Some(zone.into());
        snapshot.apply(Change::Node(node));
        proxy.sync(&snapshot);
        for family in FAMILIES {
            for (from, to) in [
                (&surroundings.pod, SocketAddr::new(VIP.of(family), TCP.0)),
                (&surroundings.outside, SocketAddr::new(NODE.of(family), TCP.1)),
            ] {
                assert_eq!(answers(&surroundings, from, to), name, "zone {zone}, {to}");
            }
        }
        assert_eq!(proxy.sync(&snapshot).writes, 0, "nothing changed");
    }
}

#[test]
fn source_ranges_follow_the_service() {
    if !privileged("source ranges follow the Service") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let proxy = surroundings.proxy(settings(), surroundings.hook());
    let mut proxy = proxy.expect("a proxy");
    let none: fn(&mut Service) = |_| ();
    let outside: fn(&mut Service) = |service| set_ranges(service, &["172.30.77.0/24", "fd00:77::/64"]);
    let stranger: fn(&mut Service) = |service| set_ranges(service, &["172.30.79.66/32", "fd00:79::/48"]);
    let wider: fn(&mut Service) = |service| set_ranges(service, &["172.30.0.0/16", "fd00::/16"]);
    for (edit, admitted) in [
        (none, [true, true]),
        (outside, [true, false]),
        (stranger, [false, true]),
        (wider, [true, true]),
        (outside, [true, false]),
        (none, [true, true]),
    ] {
        let mut state = both();
        state.service = vec![with_balancer, edit];
        let report = proxy.sync(&state.snapshot());
        assert!(report.failures.is_empty(), "{report:?}");
        for family in FAMILIES {
            let to = SocketAddr::new(BALANCER.of(family), TCP.0);
            let clients = [&surroundings.outside, &surroundings.stranger];
            let answered = clients.map(|from| outcome(&surroundings, from, to).starts_with("answer "));
            assert_eq!(answered, admitted, "{to}: {:?}", state.service().source_ranges);
        }
        assert!(proxy.audit().is_clean());
    }
}

fn set_ranges(service: &mut Service, ranges: &[&str]) {
    let ranges = ranges.iter().map(|range| range.parse().expect("a network"));
    service.source_ranges = ranges.collect();
}

#[test]
fn clients_keep_their_endpoint_over_a_restart_and_get_another_when_it_leaves() {
    if !privileged("clients keep their endpoint over a restart and get another when it leaves") {
        return;
    }
    for datapath in [|_: &Surroundings| DatapathKind::Nftables, Surroundings::hook] {
        let surroundings = Surroundings::build().expect("namespaces");
        let all = [NEAR, NEAR2, FAR, FAR2];
        let open = || {
            surroundings
                .proxy(settings(), datapath(&surroundings))
                .expect("a proxy")
        };
        open().sync(&sticky(&all));
        let before = kept(&surroundings);
        // One client would find its endpoint again by chance every fourth time; these are eight.
        let mut proxy = open();
        assert_eq!(proxy.sync(&sticky(&all)).writes, 0);
        assert_eq!(kept(&surroundings), before, "after a restart");
        assert!(proxy.audit().is_clean());
        assert_eq!(kept(&surroundings), before, "after an audit");
        for (at, name) in [(NEAR, "near"), (NEAR2, "near2"), (FAR, "far"), (FAR2, "far2")] {
            proxy.sync(&sticky(&[at]));
            let now: BTreeSet<_> = kept(&surroundings).into_values().collect();
            assert_eq!(now, BTreeSet::from([name.to_owned()]));
        }
        proxy.sync(&sticky(&all));
        let now: BTreeSet<_> = kept(&surroundings).into_values().collect();
        assert_eq!(
            now,
            BTreeSet::from(["far2".to_owned()]),
            "clients stay where they were moved"
        );
    }
}

fn sticky(endpoints: &[crate::cluster::EndpointAt]) -> Snapshot {
    let mut state = State::new(endpoints);
    state.service.push(|service| {
        let timeout = Duration::from_secs(600);
        service.affinity = SessionAffinity::ClientIp { timeout };
    });
    state.snapshot()
}

/// Which endpoint each client has.
fn kept(surroundings: &Surroundings) -> BTreeMap<(String, IpAddr), String> {
    let clients = [
        (&surroundings.pod, VIP),
        (&surroundings.node, VIP),
        (&surroundings.outside, VIP),
        (&surroundings.stranger, VIP),
    ];
    let clients = clients
        .into_iter()
        .flat_map(|(from, to)| to.both().map(|to| (from, to)));
    let kept = clients.map(|(from, to)| {
        let name = answers(surroundings, from, (to, TCP.0).into());
        ((from.name().to_owned(), to), name)
    });
    kept.collect()
}

#[test]
fn clients_that_keep_a_udp_port_move_on_when_their_endpoint_leaves() {
    if !privileged("clients that keep a UDP port move on when their endpoint leaves") {
        return;
    }
    let surroundings = Surroundings::build().expect("namespaces");
    let proxy = surroundings.proxy(settings(), DatapathKind::Nftables);
    let mut proxy = proxy.expect("a proxy");
    for family in FAMILIES {
        let client = UdpClient::on(&surroundings, family);
        for to in [
            SocketAddr::new(VIP.of(family), UDP.0),
            SocketAddr::new(NODE.of(family), UDP.1),
        ] {
            // Before the Service is there, somebody else has the address, and nobody the node's port.
            forgotten_after_snapshot(&mut proxy, &empty());
            let before = client.ask(to).ok();
            assert_eq!(before.as_deref(), (to.ip() == VIP.of(family)).then_some("beyond"));
            assert_eq!(forgotten_after(&mut proxy, &State::new([NEAR])), 1);
            assert_eq!(client.ask(to).expect("an answer"), "near");
            assert_eq!(forgotten_after(&mut proxy, &State::new([FAR])), 1);
            let name = wait::until(
                "an answer from the other endpoint",
                Duration::from_secs(5),
                || client.ask(to),
            );
            assert_eq!(name, "far");
            assert_eq!(forgotten_after(&mut proxy, &both()), 0, "nobody left");
            assert_eq!(
                client.ask(to).expect("an answer"),
                "far",
                "an established flow stays"
            );
            let forgotten = forgotten_after(&mut proxy, &State::new([]));
            assert_eq!(forgotten, 1, "no endpoint is left");
        }
    }
}

fn forgotten_after(proxy: &mut Proxy, state: &State) -> u64 {
    forgotten_after_snapshot(proxy, &state.snapshot())
}

fn forgotten_after_snapshot(proxy: &mut Proxy, snapshot: &Snapshot) -> u64 {
    proxy.sync(snapshot);
    proxy.forget_flows().expect("flows are forgotten").total()
}

#[test]
fn a_connection_that_was_tried_before_its_service_was_there_is_served_by_it() {
    if !privileged("a connection that was tried before its Service was there is served by it") {
        return;
    }
    let legacy = |_: &Surroundings| DatapathKind::Iptables {
        variant: IptablesVariant::Legacy,
    };
    for datapath in [
        |_: &Surroundings| DatapathKind::Nftables,
        Surroundings::hook,
        legacy,
    ] {
        let surroundings = Surroundings::build().expect("namespaces");
        let proxy = surroundings.proxy(settings(), datapath(&surroundings));
        let mut proxy = proxy.expect("a proxy");
        // A new namespace may forward as the first one does: then it says that nobody has an address.
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            let setting = format!("net/{setting}");
            surroundings.beyond.set(&setting, "0").expect("set");
        }
        let conntrack = surroundings.node.run(Conntrack::open).expect("entered");
        let mut conntrack = conntrack.expect("opened");
        for family in FAMILIES {
            let to = SocketAddr::new(VIP.of(family), TCP.0);
            let tcp = |glance: Glance| glance.protocol == Protocol::Tcp.number();
            let mut tracked = || {
                let tracked = conntrack.flows(tcp, |flow| flow.original.destination == to);
                tracked.expect("listed")
            };
            let untouched = |flow: &Flow| flow.reply.source == to;
            // Somebody out there has the address: what he answers is left alone.
            proxy.sync(&empty());
            let (_stream, answer) = ask(&surroundings, to).expect("an answer");
            assert!(answer.starts_with("beyond "), "{answer}");
            assert_eq!(forgotten_after(&mut proxy, &State::new([NEAR])), 0);
            let flows = tracked();
            assert!(
                flows.iter().any(|flow| untouched(flow) && flow.answered),
                "{flows:?}"
            );

            proxy.sync(&empty());
            let address = to.ip().to_string();
            let removed = ip(&surroundings.beyond, &["address", "del", &address, "dev", "lo"]);
            removed.expect("removed");
            std::thread::scope(|scope| {
                let answer = scope.spawn(|| ask(&surroundings, to));
                wait::until_value("the attempt went out", LONG, &mut tracked, |flows| {
                    flows.iter().any(|flow| untouched(flow) && !flow.answered)
                });
                assert_eq!(forgotten_after(&mut proxy, &State::new([NEAR])), 1);
                let (_stream, answer) = answer.join().expect("no panic").expect("an answer");
                assert!(answer.starts_with("near "), "{answer}");
            });
        }
    }
}

/// A connection of the pod, once the kernel's attempts got through, and what whoever answers says.
fn ask(surroundings: &Surroundings, to: SocketAddr) -> anyhow::Result<(TcpStream, String)> {
    let stream = surroundings.pod.run(|| TcpStream::connect_timeout(&to, LONG))??;
    stream.set_read_timeout(Some(LONG))?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    Ok((stream, line))
}

/// One socket of the pod.
struct UdpClient(UdpSocket);

impl UdpClient {
    fn on(surroundings: &Surroundings, family: IpFamily) -> Self {
        let any: IpAddr = match family {
            IpFamily::V4 => Ipv4Addr::UNSPECIFIED.into(),
            IpFamily::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = surroundings.pod.run(|| UdpSocket::bind((any, 0)));
        let socket = socket.expect("entered").expect("bound");
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .expect("set");
        Self(socket)
    }

    fn ask(&self, to: SocketAddr) -> std::io::Result<String> {
        let mut buffer = [0; 64];
        self.0.send_to(b"who", to)?;
        let (len, _) = self.0.recv_from(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..len]);
        Ok(text.split(' ').next().unwrap_or_default().to_owned())
    }
}
