//! What ends name, with who is behind them.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::{
    Change, Conditions, Endpoint, EndpointPort, Few, IpFamily, Node, Service, ServiceKind, ServicePort,
};

use super::*;

/// `web` with two ports, two endpoints and one that serves no more; `db` is headless.
pub fn facts() -> Facts {
    let mut snapshot = Snapshot::default();
    let mut put = |name: &str, kind, ports: &[(&str, u16, u16)], endpoints: Vec<Endpoint>| {
        let number = |number: u16| number.try_into().expect("no zero");
        let mut service = Service::new(ObjectName::new("default", name), kind);
        let port = |(name, port, _): &(&str, u16, u16)| ServicePort {
            name: (*name).into(),
            ..ServicePort::new(Protocol::Tcp, number(*port))
        };
        service.ports = ports.iter().map(port).collect();
        snapshot.apply(Change::Service(service));
        let port = |(name, _, target): &(&str, u16, u16)| EndpointPort {
            name: (*name).into(),
            protocol: Protocol::Tcp,
            port: number(*target),
        };
        snapshot.apply(Change::EndpointSlice(EndpointSlice {
            name: ObjectName::new("default", &*format!("{name}-1")),
            service: name.into(),
            family: IpFamily::V4,
            endpoints: endpoints.into(),
            ports: ports.iter().map(port).collect(),
            last_change: None,
        }));
    };
    let at = |name: &str, last: u8| Endpoint {
        pod: Some(format!("{name}-{last}").as_str().into()),
        ..Endpoint::new([10, 244, 1, last].into())
    };
    let ended = Endpoint {
        conditions: Conditions {
            ready: false,
            serving: false,
            terminating: true,
        },
        ..at("web", 7)
    };
    let cluster_ip = ServiceKind::ClusterIp {
        addresses: Few::from(vec![[10, 96, 0, 7].into()]),
    };
    let ports = [("http", 80, 8080), ("admin", 81, 8081)];
    put("web", cluster_ip, &ports, vec![at("web", 6), at("web", 5), ended]);
    put(
        "db",
        ServiceKind::Headless,
        &[("sql", 5432, 5432)],
        vec![at("db", 9)],
    );
    put("none", ServiceKind::Headless, &ports[..1], Vec::new());
    put(
        "there",
        ServiceKind::ExternalName("example.com".into()),
        &ports[..1],
        Vec::new(),
    );
    let mut node = Node::new("node-1");
    node.internal_addresses = vec![[172, 30, 0, 11].into()];
    snapshot.apply(Change::Node(node));
    Facts {
        vpc: None,
        former: BTreeMap::new(),
        node: "node-1".into(),
        snapshot: Arc::new(snapshot),
        context: Some(NodeContext::new("node-1".into(), [])),
        pods: Vec::new(),
        network: None,
        pin_dir: None,
        unread_rules: None,
    }
}

#[track_caller]
fn check(text: &str, expected: &str) {
    let told = match locate(text, &facts()) {
        Err(error) => error.to_string(),
        Ok(located) => {
            let addresses: Vec<String> = located.addresses.iter().map(IpAddr::to_string).collect();
            let behind = located.service.map(|behind| {
                let endpoints: Vec<String> = behind.endpoints.iter().map(SocketAddr::to_string).collect();
                format!(
                    " = {} -> {} by {}",
                    behind.name,
                    endpoints.join(" "),
                    behind.meant.join(" ")
                )
            });
            let tunnel: Vec<String> = located
                .tunnel
                .iter()
                .map(|own| format!(" tunnel {own}"))
                .collect();
            format!(
                "{} {}{}{}",
                located.name,
                addresses.join(" "),
                tunnel.concat(),
                behind.unwrap_or_default()
            )
        }
    };
    assert_eq!(told, expected, "{text}");
}

#[test]
fn a_service_is_found_by_its_name_and_by_its_address_with_its_endpoints() {
    let web = "= svc/default/web:80 -> 10.244.1.5:8080 10.244.1.6:8080 by svc/web:80/tcp";
    check("svc/web:80", &format!("Service default/web 10.96.0.7 {web}"));
    check("svc/web:http", &format!("Service default/web 10.96.0.7 {web}"));
    check("10.96.0.7:80", &format!("Service default/web 10.96.0.7 {web}"));
    check(
        "10.96.0.7:80/tcp",
        &format!("Service default/web 10.96.0.7 {web}"),
    );
    check("10.96.0.7:80/udp", "Service default/web 10.96.0.7");
    check(
        "svc/db",
        "Service default/db  = svc/default/db:5432 -> 10.244.1.9:5432 by svc/db:5432/tcp",
    );
    check(
        "svc/web:9",
        "Service default/web 10.96.0.7 = svc/default/web:9 ->  by ",
    );
}

#[test]
fn a_service_that_nobody_is_behind_is_told_as_explain_tells_it() {
    for (name, why) in [
        ("there:80", "it is another name of example.com; ask for that"),
        ("there", "it is another name of example.com; ask for that"),
        ("there/icmp", "it is another name of example.com; ask for that"),
        (
            "none",
            "it is headless, and no EndpointSlice lists an endpoint of it",
        ),
        (
            "db/icmp",
            "it is headless, and clients go to its endpoints; ask for pod/db-9:5432/tcp",
        ),
    ] {
        let told = locate(&format!("svc/{name}"), &facts())
            .expect_err(name)
            .to_string();
        let service = name.split([':', '/']).next().unwrap_or_default();
        assert_eq!(told, format!("Service default/{service} has no address: {why}"));
    }
}

#[test]
fn what_is_no_services_has_nobody_behind_it_and_several_ports_are_all_meant() {
    let web = "= svc/default/web:80 -> 10.244.1.5:8080 10.244.1.6:8080 by svc/web:80/tcp";
    check("node/node-1:80", "node node-1 172.30.0.11");
    check("10.1.2.3:80", "address 10.1.2.3");
    check(
        "svc/web",
        "Service default/web 10.96.0.7 = svc/default/web -> 10.244.1.5:8080 10.244.1.5:8081 10.244.1.6:8080 \
         10.244.1.6:8081 by svc/web:80/tcp svc/web:81/tcp",
    );
    // What has no ports goes to the address itself.
    check("svc/web/icmp", "Service default/web 10.96.0.7");
    check("node/node-1/icmp", "node node-1 172.30.0.11");
    check("pod/web-5/icmp", "pod default/web-5 10.244.1.5");
    check("10.96.0.7/icmp", "Service default/web 10.96.0.7");
    check("web:80", &format!("Service default/web 10.96.0.7 {web}"));
    check(
        "svc/web:htpp",
        "there is no port of svc/default/web:htpp (did you mean svc/web:80/tcp or svc/web:81/tcp?)",
    );
    check(
        "svc/wep:80",
        "there is no Service default/wep (did you mean svc/web?)",
    );
}
