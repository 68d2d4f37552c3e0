//! What is decided about a Service.

mod world;

use std::collections::{BTreeMap, BTreeSet};

use model::{EndpointSlice, Protocol, Service, ServiceKind, SessionAffinity, TrafficPolicy};
use proxy::plan::{Action, Feature, List, Masquerade, PortKey, PortPlan, Reason};
use proxy::{NodeContext, ServicePlan, ServiceView, plan_service};
use world::{GONE, LEAVING, READY, UNREADY, context, ip, node_port, port, service, slice, target, vip};

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
    masquerade: Masquerade::Always,
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
    plan.ports.into_values().next().expect("one port")
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
    service.ports = vec![port("http", Protocol::Tcp, 80, Some(30080))];
    let plan = port_plan(&service, &[slice("web-1", "web", endpoints)]);
    let expected = BTreeMap::from([
        (vip("10.96.0.1", 80, Protocol::Tcp), address),
        (node_port(30080, Protocol::Tcp), node),
    ]);
    assert_eq!(plan.frontends, expected, "{policies:?} {endpoints:?}");
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
    service.ports = vec![
        port("http", Protocol::Tcp, 80, None),
        port("dns", Protocol::Udp, 53, None),
    ];
    let mut other = slice("web-2", "web", &[("10.244.1.2", "here", READY)]);
    other.ports[0].port = world::number(9090);
    let (plan, reasons) = plan(
        &service,
        &[slice("web-1", "web", &[("10.244.1.1", "there", READY)]), other],
        &context(),
    );
    assert_eq!(reasons, []);
    let http = &plan.ports[&PortKey {
        name: "http".to_owned(),
        protocol: Protocol::Tcp,
    }];
    assert_eq!(
        http.cluster,
        [target("10.244.1.1:8080"), target("10.244.1.2:9090")]
    );
    assert_eq!(http.on_this_node, BTreeSet::from([target("10.244.1.2:9090")]));
    let dns = &plan.ports[&PortKey {
        name: "dns".to_owned(),
        protocol: Protocol::Udp,
    }];
    assert_eq!(
        dns.frontends,
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
fn an_address_that_the_node_answers_itself_gets_no_frontend_and_its_node_port_does() {
    let mut service = service("dns", "10.96.0.10");
    service.ports = vec![port("http", Protocol::Tcp, 53, Some(30053))];
    let node = NodeContext {
        local_dns: Some(ip("10.96.0.10")),
        ..context()
    };
    let (plan, _) = plan(&service, &[], &node);
    assert_eq!(
        plan.frontends().copied().collect::<Vec<_>>(),
        [node_port(30053, Protocol::Tcp)]
    );
}

#[test]
fn what_cannot_be_honoured_is_listed_and_the_rest_works() {
    let mut service = service("web", "10.96.0.1");
    service.kind = ServiceKind::ClusterIp {
        addresses: vec![ip("10.96.0.1"), ip("fd00::1"), ip("127.0.0.1")],
    };
    service.affinity = SessionAffinity::ClientIp {
        timeout: std::time::Duration::from_secs(10),
    };
    service.external_addresses = vec![ip("192.0.2.1")];
    service.ports.push(port("again", Protocol::Tcp, 80, None));
    let endpoints = [
        ("10.244.1.1", "here", READY),
        ("127.0.0.1", "here", READY),
        ("169.254.1.1", "here", READY),
    ];
    let (plan, reasons) = plan(&service, &[slice("web-1", "web", &endpoints)], &context());
    let frontend = vip("10.96.0.1", 80, Protocol::Tcp);
    assert_eq!(
        reasons,
        [
            Reason::Unsupported(Feature::Ipv6),
            Reason::Unsupported(Feature::SessionAffinity),
            Reason::Unsupported(Feature::ExternalAddresses),
            Reason::BadAddress(ip("127.0.0.1")),
            Reason::BadEndpoint(ip("127.0.0.1")),
            Reason::BadEndpoint(ip("169.254.1.1")),
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
