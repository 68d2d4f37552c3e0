//! What is decided about a Service.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::service::LoadBalancerIngress;
use model::{
    EndpointSlice, Extras, IpFamily, Protocol, Service, ServiceKind, SessionAffinity, TrafficPolicy,
};
use proxy::plan::{
    Action, Admits, Frontend, FrontendKey, HealthCheck, List, LocalTraffic, Masquerade, NodePortAddresses,
    PortKey, PortPlan, Reason, SharedSet,
};
use proxy::{NodeContext, ServicePlan, ServiceView, plan_service};
use world::{
    GONE, LEAVING, READY, UNREADY, context, ip, network, node_port, number, port, service, slice, target,
    vip, with_hints,
};

const TO_ALL: Action = Action::Spread {
    list: List::Cluster,
    masquerade: Masquerade::OutsidePods,
};
const TO_LOCAL: Action = Action::Spread {
    list: List::Local,
    masquerade: Masquerade::OutsidePods,
};
const NODE_PORT: Action = Action::Spread {
    list: List::Cluster,
    masquerade: Masquerade::Everyone,
};

fn plan(service: &Service, slices: &[EndpointSlice], node: &NodeContext) -> (ServicePlan, Vec<Reason>) {
    let view = ServiceView {
        service,
        slices: slices.iter().collect(),
    };
    let (plan, rejected) = plan_service(&view, node);
    assert!(rejected.iter().all(|rejected| rejected.service == service.name));
    (
        plan,
        rejected.into_iter().map(|rejected| rejected.reason).collect(),
    )
}

/// The only port's plan.
#[track_caller]
fn port_plan(service: &Service, slices: &[EndpointSlice]) -> PortPlan {
    let (plan, reasons) = plan(service, slices, &context());
    assert_eq!(reasons, []);
    assert_eq!(plan.ports.len(), 1, "{plan:?}");
    plan.ports.values().next().expect("one port").clone()
}

type Row<'a> = (&'a str, &'a str, model::Conditions);

/// Endpoints, then the wanted cluster list, local list, and serving endpoints, by the last byte of the address.
#[track_caller]
fn check_lists(endpoints: &[Row<'_>], cluster: &[u8], local: &[u8], serving: &[u8]) {
    let plan = port_plan(&service("web", "10.96.0.1"), &[slice("web-1", "web", endpoints)]);
    let last = |target: &proxy::plan::Target| match target.address {
        std::net::IpAddr::V4(address) => address.octets()[3],
        std::net::IpAddr::V6(_) => 0,
    };
    let found: [Vec<u8>; 3] = [
        plan.cluster.iter().map(last).collect(),
        plan.local.iter().map(last).collect(),
        plan.serving.iter().map(last).collect(),
    ];
    assert_eq!(
        found,
        [cluster.to_vec(), local.to_vec(), serving.to_vec()],
        "{endpoints:?}"
    );
}

#[test]
fn ready_endpoints_take_traffic_and_terminating_ones_only_where_no_other_is_left() {
    let (a, b, c) = ("10.244.1.1", "10.244.1.2", "10.244.2.3");
    check_lists(&[], &[], &[], &[]);
    check_lists(&[(a, "here", READY), (c, "there", READY)], &[1, 3], &[1], &[1, 3]);
    check_lists(&[(a, "here", UNREADY), (c, "there", READY)], &[3], &[], &[3]);
    check_lists(&[(a, "here", LEAVING), (c, "there", READY)], &[3], &[1], &[1, 3]);
    check_lists(
        &[(a, "here", LEAVING), (b, "here", READY), (c, "there", READY)],
        &[2, 3],
        &[2],
        &[1, 2, 3],
    );
    check_lists(
        &[(a, "here", LEAVING), (c, "there", LEAVING)],
        &[1, 3],
        &[1],
        &[1, 3],
    );
    check_lists(&[(a, "here", GONE), (c, "there", LEAVING)], &[3], &[], &[3]);
    check_lists(&[(a, "here", GONE), (c, "there", UNREADY)], &[], &[], &[]);
    check_lists(
        &[(c, "there", READY), (a, "here", READY), (b, "here", READY)],
        &[1, 2, 3],
        &[1, 2],
        &[1, 2, 3],
    );
}

#[test]
fn an_address_that_is_listed_twice_belongs_to_the_pod_that_is_not_terminating() {
    let address = "10.244.1.1";
    check_lists(
        &[(address, "here", LEAVING), (address, "there", READY)],
        &[1],
        &[],
        &[1],
    );
    check_lists(
        &[(address, "there", READY), (address, "here", LEAVING)],
        &[1],
        &[],
        &[1],
    );
    check_lists(
        &[(address, "there", GONE), (address, "here", UNREADY)],
        &[],
        &[],
        &[],
    );
}

/// Policies and endpoints, then what the address and the node port do.
#[track_caller]
fn check_actions(policies: [TrafficPolicy; 2], endpoints: &[Row<'_>], address: Action, node: Action) {
    let mut service = service("web", "10.96.0.1");
    [service.internal_policy, service.external_policy] = policies;
    service.ports = [port("http", Protocol::Tcp, 80, Some(30080))].into();
    let plan = port_plan(&service, &[slice("web-1", "web", endpoints)]);
    let expected = BTreeMap::from([
        (vip("10.96.0.1", 80, Protocol::Tcp), address),
        (node_port(30080, Protocol::Tcp), node),
    ]);
    assert_eq!(actions(&plan), expected, "{policies:?} {endpoints:?}");
}

/// What frontends do that admit everyone.
#[track_caller]
fn actions(plan: &PortPlan) -> BTreeMap<FrontendKey, Action> {
    let action = |frontend: &Frontend| {
        assert_eq!(frontend.admits, Admits::Everyone, "{plan:?}");
        frontend.action
    };
    plan.frontends
        .iter()
        .map(|(key, frontend)| (*key, action(frontend)))
        .collect()
}

#[test]
fn traffic_policies_choose_lists_and_a_service_without_endpoints_refuses() {
    use TrafficPolicy::{Cluster, Local};
    let here: &[Row<'_>] = &[("10.244.1.1", "here", READY)];
    let there: &[Row<'_>] = &[("10.244.2.1", "there", READY)];
    for policies in [
        [Cluster, Cluster],
        [Cluster, Local],
        [Local, Cluster],
        [Local, Local],
    ] {
        check_actions(policies, &[], Action::Refuse, Action::Refuse);
    }
    check_actions([Cluster, Cluster], here, TO_ALL, NODE_PORT);
    check_actions([Cluster, Cluster], there, TO_ALL, NODE_PORT);
    check_actions([Local, Cluster], here, TO_LOCAL, NODE_PORT);
    check_actions([Local, Cluster], there, Action::Drop, NODE_PORT);
    check_actions([Cluster, Local], here, TO_ALL, Action::Split);
    check_actions([Cluster, Local], there, TO_ALL, Action::Split);
    check_actions([Local, Local], there, Action::Drop, Action::Split);
}

#[test]
fn endpoints_join_by_port_name_and_protocol_with_a_number_of_their_own_in_each_slice() {
    let mut service = service("web", "10.96.0.1");
    service.ports = [
        port("http", Protocol::Tcp, 80, None),
        port("dns", Protocol::Udp, 53, None),
    ]
    .into();
    let mut other = slice("web-2", "web", &[("10.244.1.2", "here", READY)]);
    other.ports[0].port = world::number(9090);
    let (plan, reasons) = plan(
        &service,
        &[slice("web-1", "web", &[("10.244.1.1", "there", READY)]), other],
        &context(),
    );
    assert_eq!(reasons, []);
    let http = &plan.ports[&PortKey {
        family: IpFamily::V4,
        name: "http".into(),
        protocol: Protocol::Tcp,
    }];
    assert_eq!(
        http.cluster,
        [target("10.244.1.1:8080"), target("10.244.1.2:9090")]
    );
    assert_eq!(http.on_this_node, [target("10.244.1.2:9090")]);
    let dns = &plan.ports[&PortKey {
        family: IpFamily::V4,
        name: "dns".into(),
        protocol: Protocol::Udp,
    }];
    assert_eq!(
        actions(dns),
        BTreeMap::from([(vip("10.96.0.1", 53, Protocol::Udp), Action::Refuse)])
    );
}

#[test]
fn services_that_are_not_this_proxys_have_an_empty_plan() {
    let slices = [slice("web-1", "web", &[("10.244.1.1", "here", READY)])];
    let mut rows = vec![service("web", "10.96.0.1"); 4];
    rows[0].kind = ServiceKind::Headless;
    rows[1].kind = ServiceKind::ExternalName("example.com".to_owned());
    rows[2].proxy_labels.insert(
        "service.kubernetes.io/service-proxy-name".to_owned(),
        "other".to_owned(),
    );
    rows[3]
        .proxy_labels
        .insert("service.kubernetes.io/headless".to_owned(), String::new());
    for service in rows {
        assert_eq!(
            plan(&service, &slices, &context()),
            (ServicePlan::default(), Vec::new()),
            "{service:?}"
        );
    }
}

#[test]
fn an_address_of_the_nodes_own_dns_is_left_to_it_unless_it_is_away_and_others_answer() {
    let mut service = service("dns", "10.96.0.10");
    service.ports = [port("http", Protocol::Tcp, 53, Some(30053))].into();
    let others = [slice("dns-1", "dns", &[("10.244.1.1", "there", READY)])];
    let none: &[EndpointSlice] = &[];
    let is_left_alone = [
        (true, none, true),
        (true, &others, true),
        (false, none, true),
        (false, &others, false),
    ];
    for (dns_answers, slices, expected) in is_left_alone {
        let node = NodeContext {
            local_dns: BTreeSet::from([ip("10.96.0.10")]),
            dns_answers,
            ..context()
        };
        let (plan, _) = plan(&service, slices, &node);
        let node_port = node_port(30053, Protocol::Tcp);
        let (of_node, of_service): (Vec<_>, Vec<_>) =
            plan.frontends().copied().partition(|key| *key == node_port);
        assert_eq!(
            (of_node.len(), of_service.is_empty(), plan.cluster_ips.is_empty()),
            (1, expected, expected),
            "{dns_answers} {slices:?}"
        );
    }
}

#[test]
fn the_nodes_own_dns_server_is_no_endpoint_while_it_is_away_and_others_answer() {
    let dns = |address: &str| {
        let mut service = service("dns", address);
        service.ports = [port("http", Protocol::Tcp, 53, None)].into();
        service
    };
    let own = ("192.0.2.1", "here", READY);
    let other = ("192.0.2.2", "there", READY);
    let leaving = model::Conditions {
        terminating: true,
        ready: false,
        ..READY
    };
    let leaves = ("192.0.2.2", "there", leaving);
    let gone = ("192.0.2.2", "there", UNREADY);
    let cases: [(&str, bool, &[_], &[&str]); 6] = [
        ("10.96.0.10", false, &[own, other], &["192.0.2.2"]),
        ("10.96.0.10", false, &[own, leaves], &["192.0.2.2"]),
        ("10.96.0.10", false, &[own, gone], &["192.0.2.1"]),
        ("10.96.0.10", false, &[own], &["192.0.2.1"]),
        ("10.96.0.10", true, &[own, other], &["192.0.2.1", "192.0.2.2"]),
        ("10.96.0.11", false, &[own, other], &["192.0.2.1", "192.0.2.2"]),
    ];
    for (address, dns_answers, endpoints, expected) in cases {
        let node = NodeContext {
            addresses: vec![ip("192.0.2.1")],
            local_dns: BTreeSet::from([ip("10.96.0.10")]),
            dns_answers,
            ..context()
        };
        let (plan, rejected) = plan(&dns(address), &[slice("dns-1", "dns", endpoints)], &node);
        let found: Vec<_> = plan.ports.values().flat_map(|port| &port.cluster).collect();
        let found: Vec<_> = found.iter().map(|target| target.address.to_string()).collect();
        let expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
        assert_eq!(
            (found, rejected),
            (expected, Vec::new()),
            "{address} {dns_answers} {endpoints:?}"
        );
    }
}

#[test]
fn what_cannot_be_honoured_is_listed_and_the_rest_works() {
    let mut service = service("web", "10.96.0.1");
    service.kind = ServiceKind::ClusterIp {
        addresses: [ip("10.96.0.1"), ip("fd00::1"), ip("127.0.0.1")].into(),
    };
    service.external_addresses = [ip("192.0.2.1")].into();
    service.source_ranges = [network("192.0.2.7/24")].into();
    service.ports.push(port("again", Protocol::Tcp, 80, None));
    let endpoints = [
        ("10.244.1.1", "here", READY),
        ("127.0.0.1", "here", READY),
        ("169.254.1.1", "here", READY),
        ("fd00:244::1", "here", READY),
    ];
    let node = NodeContext {
        families: BTreeSet::from([IpFamily::V4]),
        ..context()
    };
    let (plan, reasons) = plan(&service, &[slice("web-1", "web", &endpoints)], &node);
    let frontend = vip("10.96.0.1", 80, Protocol::Tcp);
    assert_eq!(
        reasons,
        [
            Reason::FamilyOff(IpFamily::V6),
            Reason::ExternalAddressesOff,
            Reason::BadAddress(ip("127.0.0.1")),
            Reason::BadEndpoint(ip("127.0.0.1")),
            Reason::BadEndpoint(ip("169.254.1.1")),
            Reason::BadEndpoint(ip("fd00:244::1")),
            Reason::BadSourceRange(network("192.0.2.7/24")),
            Reason::DuplicateFrontend(frontend),
        ]
    );
    assert_eq!(plan.frontends().copied().collect::<Vec<_>>(), [frontend]);
    assert_eq!(
        plan.ports.values().next_back().expect("a port").cluster,
        [target("10.244.1.1:8080")]
    );
}

#[test]
fn addresses_that_no_service_or_endpoint_can_have_are_refused_in_both_families() {
    for address in [
        "0.0.0.0",
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "ff02::1",
        "::ffff:10.96.0.1",
    ] {
        let rows = [(address, "here", READY)];
        let (planned, reasons) = plan(&service("web", address), &[], &context());
        assert_eq!(
            (planned.is_empty(), reasons),
            (true, vec![Reason::BadAddress(ip(address))])
        );
        let vip = if ip(address).is_ipv4() {
            "10.96.0.1"
        } else {
            "fd00:96::1"
        };
        let (planned, reasons) = plan(&service("web", vip), &[slice("web-1", "web", &rows)], &context());
        assert_eq!(reasons, [Reason::BadEndpoint(ip(address))]);
        assert!(
            planned.ports.values().all(|port| port.cluster.is_empty()),
            "{address}"
        );
    }
}

#[test]
fn a_dual_stack_service_has_a_plan_for_each_family_with_that_familys_endpoints() {
    let mut web = service("web", "10.96.0.1");
    web.kind = ServiceKind::ClusterIp {
        addresses: [ip("10.96.0.1"), ip("fd00:96::1")].into(),
    };
    web.ports = [port("http", Protocol::Tcp, 80, Some(30080))].into();
    let slices = [
        slice("web-4", "web", &[("10.244.1.1", "here", READY)]),
        slice("web-6", "web", &[("fd00:244::1", "there", READY)]),
    ];
    let (plan, reasons) = plan(&web, &slices, &context());
    assert_eq!(reasons, []);
    let of = |family| {
        let key = PortKey {
            family,
            name: "http".into(),
            protocol: Protocol::Tcp,
        };
        let port = &plan.ports[&key];
        (actions(port), port.cluster.to_vec(), port.local.to_vec())
    };
    let frontends = |address: &str, family| {
        let mut node_port = node_port(30080, Protocol::Tcp);
        node_port.address = proxy::plan::FrontendAddress::EveryNodeAddress(family);
        BTreeMap::from([(vip(address, 80, Protocol::Tcp), TO_ALL), (node_port, NODE_PORT)])
    };
    let four = target("10.244.1.1:8080");
    assert_eq!(
        of(IpFamily::V4),
        (frontends("10.96.0.1", IpFamily::V4), vec![four], vec![four])
    );
    assert_eq!(
        of(IpFamily::V6),
        (
            frontends("fd00:96::1", IpFamily::V6),
            vec![target("[fd00:244::1]:8080")],
            vec![]
        )
    );
    assert_eq!(plan.cluster_ips, [ip("10.96.0.1"), ip("fd00:96::1")]);
}

/// A Service with a ClusterIP, a balancer's address, an external one, and an endpoint on this node.
fn published() -> (Service, [EndpointSlice; 1]) {
    let mut web = service("web", "10.96.0.1");
    let ingress = |address: &str, proxied| LoadBalancerIngress {
        address: ip(address),
        proxied,
    };
    web.load_balancer = [ingress("192.0.2.1", false), ingress("192.0.2.2", true)].into();
    web.external_addresses = [ip("198.51.100.1")].into();
    (web, [slice("web-1", "web", &[("10.244.1.1", "here", READY)])])
}

#[test]
fn balancers_addresses_are_served_unless_the_balancer_translates_and_external_ones_if_allowed() {
    let (web, slices) = published();
    for allowed in [false, true] {
        let node = NodeContext {
            external_addresses: allowed,
            ..context()
        };
        let (plan, reasons) = plan(&web, &slices, &node);
        let mut expected = BTreeMap::from([
            (vip("10.96.0.1", 80, Protocol::Tcp), TO_ALL),
            (vip("192.0.2.1", 80, Protocol::Tcp), NODE_PORT),
        ]);
        if allowed {
            expected.insert(vip("198.51.100.1", 80, Protocol::Tcp), NODE_PORT);
        }
        assert_eq!(
            actions(&plan.ports.values().next().expect("a port").clone()),
            expected
        );
        assert_eq!(reasons.contains(&Reason::ExternalAddressesOff), !allowed);
        assert_eq!(plan.cluster_ips, [ip("10.96.0.1")]);
    }
}

/// Source ranges and this node's address, then who is admitted at the balancer's address; nothing = everyone.
#[track_caller]
fn check_sources(ranges: &[&str], node_address: &str, admitted: &[&str]) {
    let (mut web, slices) = published();
    web.external_addresses = [].into();
    web.source_ranges = ranges.iter().map(|range| network(range)).collect();
    let node = NodeContext {
        addresses: vec![ip(node_address)],
        ..context()
    };
    let (plan, reasons) = plan(&web, &slices, &node);
    assert_eq!(reasons, []);
    let plan = plan.ports.values().next().expect("a port");
    let admitted: SharedSet<_> = admitted.iter().map(|range| network(range)).collect();
    assert_eq!(plan.sources, admitted, "{ranges:?}");
    let wanted = if admitted.is_empty() {
        Admits::Everyone
    } else {
        Admits::Sources
    };
    assert_eq!(
        plan.frontends[&vip("192.0.2.1", 80, Protocol::Tcp)].admits,
        wanted
    );
    let cluster_ip = plan.frontends[&vip("10.96.0.1", 80, Protocol::Tcp)];
    assert_eq!(
        cluster_ip.admits,
        Admits::Everyone,
        "ClusterIPs are never filtered"
    );
}

#[test]
fn source_ranges_filter_balancers_addresses_by_family() {
    let node = "172.30.0.11";
    check_sources(&[], node, &[]);
    check_sources(&["203.0.113.0/24"], node, &["203.0.113.0/24"]);
    check_sources(&["0.0.0.0/0", "203.0.113.0/24"], node, &[]);
    check_sources(&["fd00::/8"], node, &[]);
    check_sources(&["fd00::/8", "203.0.113.0/24"], node, &["203.0.113.0/24"]);
    check_sources(
        &[
            "203.0.113.0/24",
            "203.0.113.128/25",
            "203.0.113.1/32",
            "203.0.112.0/24",
        ],
        node,
        &["203.0.113.0/24", "203.0.112.0/24"],
    );
    // A node that is admitted may send with the balancer's address as its own.
    check_sources(&["172.30.0.0/16"], node, &["172.30.0.0/16", "192.0.2.1/32"]);
}

#[test]
fn session_affinity_is_the_ports_whatever_the_frontend() {
    let mut web = service("web", "10.96.0.1");
    let slices = [slice("web-1", "web", &[("10.244.1.1", "here", READY)])];
    assert_eq!(port_plan(&web, &slices).affinity, None);
    let timeout = Duration::from_secs(10_800);
    web.affinity = SessionAffinity::ClientIp { timeout };
    assert_eq!(port_plan(&web, &slices).affinity, Some(timeout));
}

#[test]
fn who_is_masqueraded_at_a_cluster_ip_follows_from_how_pods_are_told() {
    let networks = |text: &[&str]| LocalTraffic::Networks(text.iter().map(|text| network(text)).collect());
    let rows = [
        (networks(&["10.244.0.0/16"]), false, Masquerade::OutsidePods),
        (networks(&["fd00:244::/48"]), false, Masquerade::Nobody),
        (networks(&[]), false, Masquerade::Nobody),
        (LocalTraffic::Unknown, false, Masquerade::Nobody),
        (
            LocalTraffic::Interface("cni0".to_owned()),
            false,
            Masquerade::OutsidePods,
        ),
        (
            LocalTraffic::InterfacePrefix("veth".to_owned()),
            false,
            Masquerade::OutsidePods,
        ),
        (LocalTraffic::Unknown, true, Masquerade::Everyone),
        (networks(&["10.244.0.0/16"]), true, Masquerade::Everyone),
    ];
    let web = service("web", "10.96.0.1");
    let slices = [slice("web-1", "web", &[("10.244.1.1", "here", READY)])];
    for (local_traffic, masquerade_all, masquerade) in rows {
        let node = NodeContext {
            local_traffic,
            masquerade_all,
            ..context()
        };
        let (plan, _) = plan(&web, &slices, &node);
        let list = List::Cluster;
        let expected = Action::Spread { list, masquerade };
        assert_eq!(
            actions(&plan.ports.values().next().expect("a port").clone()),
            BTreeMap::from([(vip("10.96.0.1", 80, Protocol::Tcp), expected)]),
            "{node:?}"
        );
    }
}

/// Hints (zones, nodes) of four ready endpoints of which the first is on this node (`here`, zone `east`), then the
/// wanted cluster list by the last byte of the address.
#[track_caller]
fn check_hints(hints: [(&[&str], &[&str]); 4], cluster: &[u8]) {
    let rows = [
        ("10.244.1.1", "here", READY),
        ("10.244.1.2", "there", READY),
        ("10.244.1.3", "there", READY),
        ("10.244.1.4", "there", READY),
    ];
    let of_each = hints.map(|(zones, nodes)| {
        Extras::hints(
            zones.iter().map(|zone| (*zone).into()).collect(),
            nodes.iter().map(|node| (*node).into()).collect(),
        )
    });
    let hinted = with_hints(slice("web-1", "web", &rows), of_each);
    let node = NodeContext {
        zone: Some("east".into()),
        ..context()
    };
    let (plan, _) = plan(&service("web", "10.96.0.1"), &[hinted], &node);
    let plan = plan.ports.values().next().expect("a port");
    let last = |target: &proxy::plan::Target| match target.address {
        std::net::IpAddr::V4(address) => address.octets()[3],
        std::net::IpAddr::V6(_) => 0,
    };
    assert_eq!(
        plan.cluster.iter().map(last).collect::<Vec<_>>(),
        cluster,
        "{hints:?}"
    );
    assert_eq!(
        plan.local.iter().map(last).collect::<Vec<_>>(),
        [1],
        "never narrowed"
    );
    assert_eq!(plan.serving.len(), 4, "established flows stay");
}

#[test]
fn hints_narrow_the_cluster_list_only_if_all_ready_endpoints_have_them_and_one_is_for_here() {
    const NONE: &[&str] = &[];
    let (east, west, both): (&[&str], &[&str], &[&str]) = (&["east"], &["west"], &["east", "west"]);
    let (here, there): (&[&str], &[&str]) = (&["here"], &["there"]);
    check_hints([(NONE, NONE); 4], &[1, 2, 3, 4]);
    check_hints([(east, NONE), (west, NONE), (east, NONE), (west, NONE)], &[1, 3]);
    check_hints([(west, NONE), (both, NONE), (west, NONE), (west, NONE)], &[2]);
    // One without a hint: the list is in the middle of a change.
    check_hints(
        [(east, NONE), (west, NONE), (NONE, NONE), (west, NONE)],
        &[1, 2, 3, 4],
    );
    // None for this zone.
    check_hints([(west, NONE); 4], &[1, 2, 3, 4]);
    // Hints to nodes come first; where none is for this node, zones decide.
    check_hints([(east, here), (east, there), (west, there), (west, there)], &[1]);
    check_hints(
        [(east, there), (east, there), (west, there), (west, there)],
        &[1, 2],
    );
    check_hints(
        [(east, here), (east, NONE), (west, there), (west, there)],
        &[1, 2],
    );
    check_hints(
        [(NONE, here), (NONE, there), (NONE, here), (NONE, there)],
        &[1, 3],
    );
}

#[test]
fn terminating_endpoints_are_taken_from_all_zones() {
    let hinted = slice(
        "web-1",
        "web",
        &[("10.244.1.1", "here", LEAVING), ("10.244.1.2", "there", LEAVING)],
    );
    let zones = ["east", "west"];
    let hinted = with_hints(
        hinted,
        zones.map(|zone| Extras::hints(vec![zone.into()], Vec::new())),
    );
    let node = NodeContext {
        zone: Some("east".into()),
        ..context()
    };
    let (plan, _) = plan(&service("web", "10.96.0.1"), &[hinted], &node);
    let plan = plan.ports.values().next().expect("a port");
    assert_eq!(
        plan.cluster,
        [target("10.244.1.1:8080"), target("10.244.1.2:8080")]
    );
}

#[test]
fn a_balancer_hears_of_ready_endpoints_on_this_node_and_of_nothing_else() {
    let (mut web, _) = published();
    let rows = [
        ("10.244.1.1", "here", READY),
        ("10.244.1.2", "here", LEAVING),
        ("10.244.1.3", "here", UNREADY),
        ("10.244.2.1", "there", READY),
    ];
    // Two ports of one pod are one endpoint.
    web.ports.push(port("metrics", Protocol::Tcp, 81, None));
    let slices = [
        slice("web-1", "web", &rows),
        slice("web-2", "web", &rows[..1]),
        slice("web-6", "web", &[("fd00:244::1", "here", READY)]),
    ];
    web.health_check_node_port = Some(number(32000));
    assert_eq!(
        plan(&web, &slices, &context()).0.health,
        None,
        "policy Cluster has none"
    );
    web.external_policy = TrafficPolicy::Local;
    let expected = |ready_here| {
        Some(HealthCheck {
            port: number(32000),
            ready_here,
        })
    };
    assert_eq!(plan(&web, &slices, &context()).0.health, expected(1));
    let leaving = [slice("web-1", "web", &[("10.244.1.2", "here", LEAVING)])];
    let (leaving, _) = plan(&web, &leaving, &context());
    assert_eq!(leaving.health, expected(0), "although it still takes traffic");
    assert_eq!(leaving.ports.values().next().expect("a port").local.len(), 1);
}

#[test]
fn node_ports_are_served_on_the_addresses_that_are_asked_for() {
    let serves = |node_port_addresses: NodePortAddresses| {
        let node = NodeContext {
            addresses: vec![ip("172.30.0.11"), ip("192.168.1.11"), ip("fd00:77::11")],
            node_port_addresses,
            ..context()
        };
        let addresses = node
            .addresses
            .clone()
            .into_iter()
            .chain([ip("127.0.0.1"), ip("fd00:77::12")]);
        addresses
            .filter(|address| node.serves_node_ports_on(*address))
            .collect::<Vec<_>>()
    };
    let (first, second, six) = (ip("172.30.0.11"), ip("192.168.1.11"), ip("fd00:77::11"));
    assert_eq!(
        serves(NodePortAddresses::All),
        [first, second, six, ip("127.0.0.1"), ip("fd00:77::12")]
    );
    assert_eq!(serves(NodePortAddresses::Primary), [first, six]);
    let networks =
        |text: &[&str]| NodePortAddresses::Networks(text.iter().map(|text| network(text)).collect());
    assert_eq!(
        serves(networks(&["192.168.0.0/16"])),
        [second, six, ip("fd00:77::12")],
        "a family without a network is served whole"
    );
    assert_eq!(
        serves(networks(&["127.0.0.0/8", "fd00::/8"])),
        [six, ip("127.0.0.1"), ip("fd00:77::12")]
    );
}

#[test]
fn the_order_of_slices_and_endpoints_changes_nothing() {
    let rows = [
        ("10.244.1.1", "here", READY),
        ("10.244.1.2", "here", LEAVING),
        ("10.244.2.1", "there", READY),
        ("10.244.2.1", "there", LEAVING),
    ];
    let service = service("web", "10.96.0.1");
    let whole = [slice("web-1", "web", &rows)];
    let expected = plan(&service, &whole, &context());
    let mut reversed = rows;
    reversed.reverse();
    let split: Vec<_> = rows
        .iter()
        .enumerate()
        .map(|(i, row)| slice(&format!("web-{i}"), "web", &[*row]))
        .collect();
    let backwards: Vec<_> = split.iter().rev().cloned().collect();
    let doubled: Vec<_> = split.iter().chain(&whole).cloned().collect();
    for slices in [vec![slice("web-1", "web", &reversed)], split, backwards, doubled] {
        assert_eq!(plan(&service, &slices, &context()), expected, "{slices:?}");
    }
}
