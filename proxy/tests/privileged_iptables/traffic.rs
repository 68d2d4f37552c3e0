//! What the rules do to packets.

use super::*;

/// From the node itself, to an address of its own: the whole packet table runs elsewhere, over all datapaths.
#[test]
fn connections_are_translated_and_refused() {
    with_each_variant("connections are translated and refused", |variant, _| {
        for words in [
            "link add uplink type veth peer name cable",
            "link set uplink up",
            "link set cable up",
            "address add 172.30.0.1/24 dev uplink",
            "address add 10.244.1.2/32 dev lo",
            // Stands for a router: without it VIPs have no route at all.
            "neighbor add 172.30.0.2 lladdr 02:00:00:00:00:01 dev uplink",
            "route add default via 172.30.0.2",
        ] {
            run("ip", &words.split(' ').collect::<Vec<_>>());
        }
        let server = TcpListener::bind("10.244.1.2:8080").expect("listen");
        let everyone = Action::Spread {
            list: List::Cluster,
            masquerade: Masquerade::Everyone,
        };
        let served = plan("10.96.0.1:80", TO_CLUSTER, &["10.244.1.2:8080"], &[]);
        let served = with_frontend(served, "30080", everyone, Admits::Everyone);
        let sticky = plan("10.96.0.2:80", TO_CLUSTER, &["10.244.1.2:8080"], &[]);
        let sticky = each_port(sticky, |port| port.affinity = Some(Duration::from_secs(60)));
        let empty = plan("10.96.0.3:80", Action::Refuse, &[], &[]);
        let empty = with_frontend(empty, "30083", Action::Refuse, Admits::Everyone);
        let away = plan("10.96.0.4:80", Action::Drop, &[], &[]);
        let forbidden = plan("10.96.0.5:80", TO_CLUSTER, &["10.244.1.2:8080"], &[]);
        let forbidden = with_frontend(forbidden, "198.51.100.5:80", everyone, Admits::Sources);
        let forbidden = each_port(forbidden, |port| port.sources = [network("192.0.2.0/24")].into());
        let services = [
            ("served", served),
            ("sticky", sticky),
            ("empty", empty),
            ("away", away),
            ("forbidden", forbidden),
        ];
        let services = services.map(|(service, plan)| (name(service), plan)).into();
        let mut datapath = open(variant);
        writes(apply(&mut datapath, &services));
        let connect = |to: &str| {
            let to: SocketAddr = to.parse().expect("an address");
            TcpStream::connect_timeout(&to, Duration::from_millis(500)).map_err(|error| error.kind())
        };
        for served in [
            "10.96.0.1:80",
            "10.96.0.2:80",
            "10.96.0.2:80",
            "172.30.0.1:30080",
            "10.96.0.5:80",
        ] {
            let client = connect(served).expect(served);
            let (accepted, _) = server.accept().expect("accept");
            assert_eq!(client.peer_addr().expect("peer").to_string(), served);
            assert_eq!(
                accepted.local_addr().expect("address").to_string(),
                "10.244.1.2:8080"
            );
        }
        let refused = Some(io::ErrorKind::ConnectionRefused);
        for (at, what) in [
            ("10.96.0.3:80", "no endpoint"),
            ("172.30.0.1:30083", "no endpoint, by node port"),
            ("10.96.0.1:81", "no such port"),
            ("127.0.0.1:30080", "loopback is not served"),
        ] {
            assert_eq!(connect(at).err(), refused, "{what}");
        }
        for (at, what) in [
            ("10.96.0.4:80", "none here"),
            ("198.51.100.5:80", "not of the ranges"),
        ] {
            let failure = connect(at).err();
            assert!(failure.is_some() && failure != refused, "{what}: {failure:?}");
        }
        // Nothing is forgotten that was not asked for.
        assert_eq!(
            datapath
                .forget_flows(&StaleFlows::default())
                .expect("flows")
                .total(),
            0
        );
    });
}

#[test]
fn udp_flows_to_an_endpoint_that_is_gone_are_forgotten() {
    with_each_variant(
        "UDP flows to an endpoint that is gone are forgotten",
        |variant, _| {
            for words in [
                "address add 172.30.0.1/24 dev lo",
                "route add default dev lo",
                "-6 address add fd00:1::1/64 dev lo nodad",
                "-6 route add default dev lo",
            ] {
                run("ip", &words.split(' ').collect::<Vec<_>>());
            }
            let mut datapath = open(variant);
            for (vip, own, endpoint) in [
                ("10.96.0.8:53", "172.30.0.1:0", "172.30.0.1:5353"),
                ("[fd00:96::8]:53", "[fd00:1::1]:0", "[fd00:1::1]:5353"),
            ] {
                let server = UdpSocket::bind(endpoint).expect("bind");
                let client = UdpSocket::bind(own).expect("bind");
                for socket in [&server, &client] {
                    socket
                        .set_read_timeout(Some(Duration::from_secs(5)))
                        .expect("timeout");
                }
                let served = udp_plan(vip, &[endpoint]);
                let services = BTreeMap::from([(name("dns"), served.clone())]);
                writes(apply(&mut datapath, &services));
                client.send_to(b"?", vip).expect("send");
                let mut buffer = [0; 8];
                let (_, from) = server.recv_from(&mut buffer).expect("a question");
                server.send_to(b"!", from).expect("send");
                let (_, from) = client.recv_from(&mut buffer).expect("an answer");
                assert_eq!(from.to_string(), vip);
                let mut stale = StaleFlows::default();
                stale.add_change(&served, &served);
                assert_eq!(
                    datapath.forget_flows(&stale).expect("flows").total(),
                    0,
                    "{vip} is served"
                );
                stale.add_change(&served, &udp_plan(vip, &[]));
                assert_eq!(
                    datapath.forget_flows(&stale).expect("flows").total(),
                    1,
                    "{vip} is gone"
                );
            }
        },
    );
}

fn udp_plan(vip: &str, endpoints: &[&str]) -> ServicePlan {
    let endpoints = targets(endpoints);
    let mut port = PortPlan {
        serving: endpoints.clone(),
        cluster: endpoints,
        ..PortPlan::default()
    };
    let action = if port.cluster.is_empty() {
        Action::Refuse
    } else {
        TO_CLUSTER
    };
    let family = vip.parse::<SocketAddr>().expect("an address").ip().into();
    let frontend = Frontend {
        action,
        admits: Admits::Everyone,
    };
    port.frontends.insert(key(vip, family, Protocol::Udp), frontend);
    let port_key = PortKey {
        family,
        name: "dns".into(),
        protocol: Protocol::Udp,
    };
    let mut plan = ServicePlan::default();
    plan.ports.insert(port_key, port);
    plan
}
