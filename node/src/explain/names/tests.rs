//! What is typed, and what it names.

use model::{Change, Endpoint, EndpointPort, EndpointSlice, Few, IpFamily, Node};

use super::*;

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    let mut put = |namespace: &str, name: &str, address: [u8; 4], ports: &[(&str, u16)]| {
        let kind = ServiceKind::ClusterIp {
            addresses: Few::from(vec![address.into()]),
        };
        let mut service = Service::new(ObjectName::new(namespace, name), kind);
        let port = |(name, number): &(&str, u16)| ServicePort {
            name: (*name).into(),
            ..ServicePort::new(Protocol::Tcp, (*number).try_into().expect("no zero"))
        };
        service.ports = ports.iter().map(port).collect();
        snapshot.apply(Change::Service(service));
    };
    put("default", "web", [10, 96, 0, 7], &[("http", 80)]);
    put("shop", "web", [10, 96, 0, 8], &[("http", 80)]);
    put("shop", "pay", [10, 96, 0, 9], &[("http", 80), ("admin", 81)]);
    put("shop", "twin", [10, 96, 0, 10], &[("http", 80)]);
    for (name, kind) in [
        ("db", ServiceKind::Headless),
        ("none", ServiceKind::Headless),
        ("there", ServiceKind::ExternalName("example.com".into())),
    ] {
        let service = Service::new(ObjectName::new("shop", name), kind);
        snapshot.apply(Change::Service(service));
    }
    snapshot.apply(Change::EndpointSlice(EndpointSlice {
        name: ObjectName::new("shop", "db-1"),
        service: "db".into(),
        family: IpFamily::V4,
        endpoints: vec![
            Endpoint {
                pod: Some("db-0".into()),
                ..Endpoint::new([10, 244, 2, 8].into())
            },
            Endpoint::new([10, 244, 2, 9].into()),
        ]
        .into(),
        ports: [EndpointPort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 5432.try_into().expect("no zero"),
        }]
        .into_iter()
        .collect(),
        last_change: None,
    }));
    let mut node = Node::new("node-1");
    node.internal_addresses = vec![[172, 30, 0, 11].into()];
    snapshot.apply(Change::Node(node));
    snapshot
}

fn pods() -> Vec<PodHere> {
    let pod = |namespace: &str, name: &str, last| PodHere {
        name: Some(ObjectName::new(namespace, name)),
        addresses: vec![[10, 244, 1, last].into()],
        node: "node-1".into(),
        device: "cw0".to_owned(),
        mac: None,
    };
    vec![
        pod("default", "client", 5),
        pod("shop", "client", 6),
        pod("shop", "twin", 7),
    ]
}

#[track_caller]
fn check(text: &str, expected: &str) {
    let (snapshot, pods) = (snapshot(), pods());
    let former = [
        ([10, 244, 2, 9], "pod shop/pay-1 until 34 s ago"),
        ([10, 244, 1, 5], "pod shop/old until 5 s ago"),
    ];
    let former = former
        .map(|(address, told)| (address.into(), told.to_owned()))
        .into();
    let known = Known {
        snapshot: Some(&snapshot),
        pods: &pods,
        former: Some(&former),
    };
    let named = Name::parse(text).map_err(NameError::from);
    let told = match named.and_then(|name| known.destination(&name)) {
        Ok(place) => {
            let address = place.addresses.first().copied();
            let at = address.map(|address| endpoint_text(address, place.port));
            let protocol = place.protocol.map(|protocol| format!("/{protocol}"));
            let [at, protocol] = [at, protocol].map(Option::unwrap_or_default);
            format!("{} {at}{protocol}", place.name)
        }
        Err(error) => error.to_string(),
    };
    assert_eq!(told, expected, "{text}");
}

#[test]
fn names_name_one_thing_or_say_why_not() {
    check("pod/default/client", "pod default/client 10.244.1.5");
    check("pod/shop/client:8080/udp", "pod shop/client 10.244.1.6:8080/UDP");
    check("pod/client", "pod default/client 10.244.1.5");
    check(
        "10.244.2.9:80",
        "address of pod shop/pay-1 until 34 s ago 10.244.2.9:80",
    );
    check("10.244.1.5", "pod default/client 10.244.1.5");
    check(
        "pod/clinet",
        "no pod default/clinet is known to this node's agent, which knows its own, and others that are endpoints of Services \
         (did you mean pod/client?)",
    );
    check(
        "pod/shp/client",
        "no pod shp/client is known to this node's agent, which knows its own, and others that are endpoints of Services \
         (did you mean pod/shop/client or pod/client?)",
    );
    check(
        "pod/zzz",
        "no pod default/zzz is known to this node's agent, which knows its own, and others that are endpoints of Services",
    );
    // Without a kind.
    check("client", "pod default/client 10.244.1.5");
    check("client.shop:8080", "pod shop/client 10.244.1.6:8080");
    check("pay.shop:81", "Service shop/pay 10.96.0.9:81/TCP");
    check("node-1:30080", "node node-1 172.30.0.11:30080");
    check("twin.shop", "twin.shop may be pod/shop/twin or svc/shop/twin");
    check(
        "clinet",
        "there is no pod, Service or node clinet (did you mean pod/client?)",
    );
    check("svc/shop/pay:81", "Service shop/pay 10.96.0.9:81/TCP");
    check("svc/shop/pay:admin", "Service shop/pay 10.96.0.9:81/TCP");
    check(
        "svc/shop/pay",
        "svc/shop/pay may be svc/shop/pay:80/tcp or svc/shop/pay:81/tcp",
    );
    check("svc/shop/pay:9999", "Service shop/pay 10.96.0.9:9999");
    check(
        "svc/shop/pay:htpp",
        "there is no port of svc/shop/pay:htpp (did you mean svc/shop/pay:80/tcp or svc/shop/pay:81/tcp?)",
    );
    check("svc/web:80", "Service default/web 10.96.0.7:80/TCP");
    check(
        "svc/pay:80",
        "there is no Service default/pay (did you mean svc/shop/pay?)",
    );
    check(
        "svc/shop/webb",
        "there is no Service shop/webb (did you mean svc/shop/web?)",
    );
    check(
        "web.shop.svc.cluster.local:80",
        "Service shop/web 10.96.0.8:80/TCP",
    );
    check("node/node-1:30080", "node node-1 172.30.0.11:30080");
    check(
        "node/node-2",
        "there is no node node-2 (did you mean node/node-1?)",
    );
    check("10.96.0.8:80/tcp", "Service shop/web 10.96.0.8:80/TCP");
    check("10.244.1.6", "pod shop/client 10.244.1.6");
    check("172.30.0.11", "node node-1 172.30.0.11");
    check("[fd00::1]:53/udp", "address [fd00::1]:53/UDP");
    check("fd00::1", "address fd00::1");
    check(
        "10.96.0.9",
        "10.96.0.9 may be svc/shop/pay:80/tcp or svc/shop/pay:81/tcp",
    );
    check("10.96.0.8", "Service shop/web 10.96.0.8:80/TCP");
    check("10.96.0.9:9999", "Service shop/pay 10.96.0.9:9999");
    check(
        "svc/shop/db:5432",
        "Service shop/db has no address: it is headless, and clients go to its endpoints; ask for \
         10.244.2.9:5432/tcp or pod/shop/db-0:5432/tcp",
    );
    check(
        "svc/shop/none",
        "Service shop/none has no address: it is headless, and no EndpointSlice lists an endpoint of it",
    );
    check(
        "svc/shop/there:80",
        "Service shop/there has no address: it is another name of example.com; ask for that",
    );
    check(
        "example.com:443",
        "example.com cannot be looked up: no resolver was asked",
    );
    check(
        "any:80",
        "any cannot be looked up: one packet is explained, between two who are named",
    );
    check(
        "pod/client/icmp",
        "pod/default/client cannot be looked up: only tcp, udp and sctp are explained",
    );
    check(
        "pod/client:http",
        "\"http\" in \"pod/client:http\" is no port: a number from 1 to 65535 is one, or the name of a Service's port",
    );
}

#[test]
fn without_an_agent_only_addresses_are_names() {
    let known = Known {
        snapshot: None,
        pods: &[],
        former: None,
    };
    let place = |text: &str| known.place(&Name::parse(text).expect("a name"));
    let address = place("10.96.0.7:80").expect("an address");
    assert_eq!(address.name, "address");
    let error = place("svc/web:80").expect_err("nobody knows");
    assert!(
        error.to_string().contains("no agent of this node answers"),
        "{error}"
    );
}
