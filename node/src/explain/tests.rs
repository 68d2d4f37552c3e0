//! Objects and kernel side by side, without a kernel: what is told, word for word.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use model::lease::{Encap, Lease, Site};
use model::{
    Change, Conditions, Endpoint, EndpointPort, EndpointSlice, Few, IpFamily, MacAddr, Mtu, ObjectName,
    Protocol, Service, ServiceKind, ServicePort, Snapshot, TrafficPolicy, Vni,
};
use netlink::nft;
use netlink::{Forwarding, Found, Link, LinkKind, Lookup, Neighbour, Route, RouteKind, Vxlan};
use nix::errno::Errno;
use overlay::flannel::NetworkConfig;
use overlay::plan::{Plan, Underlay, plan};
use proxy::plan::{NodeContext, Target};
use proxy::programmed::{self, At, Client, Layer, LayerKind, Rule, Treatment};
use proxy::verdict::Packet;

use super::compare::{Followed, Programming};
use super::kernel::{Routed, Sight};
use super::look::Vantage;
use super::objects::{Way, intent, way};
use super::{Conclusion, End, Explanation, PodHere, Step, compare, render};
use crate::cli::Output;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn endpoint(text: &str, node: &str, conditions: Conditions) -> Endpoint {
    Endpoint {
        node: Some(node.into()),
        pod: Some(format!("web-{}", text.rsplit('.').next().unwrap_or_default()).into()),
        conditions,
        ..Endpoint::new(address(text))
    }
}

const NOT_READY: Conditions = Conditions {
    ready: false,
    serving: false,
    terminating: false,
};
const ENDING: Conditions = Conditions {
    ready: false,
    serving: true,
    terminating: true,
};

/// One Service with a port, and a slice of these endpoints.
fn cluster(policy: TrafficPolicy, endpoints: Vec<Endpoint>) -> Snapshot {
    let name = ObjectName::new("default", "web");
    let kind = ServiceKind::ClusterIp {
        addresses: Few::from(vec![address("10.96.0.7")]),
    };
    let mut service = Service::new(name, kind);
    service.internal_policy = policy;
    service.ports = [ServicePort {
        name: "http".into(),
        ..ServicePort::new(Protocol::Tcp, 80.try_into().expect("no zero"))
    }]
    .into_iter()
    .collect();
    let slice = EndpointSlice {
        name: ObjectName::new("default", "web-1"),
        service: "web".into(),
        family: IpFamily::V4,
        endpoints: endpoints.into(),
        ports: [EndpointPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080.try_into().expect("no zero"),
        }]
        .into_iter()
        .collect(),
        last_change: None,
    };
    let mut snapshot = Snapshot::default();
    snapshot.apply(Change::Service(service));
    snapshot.apply(Change::EndpointSlice(slice));
    snapshot
}

fn context() -> NodeContext {
    let mut context = NodeContext::new("node-1".into(), ["10.244.0.0/16".parse().expect("a network")]);
    context.addresses = vec![address("172.30.0.11")];
    context.service_networks = ["10.96.0.0/16".parse().expect("a network")].into();
    context
}

fn packet(to: &str, port: u16) -> Packet {
    Packet {
        source: address("10.244.1.5"),
        device: Some("cw0011".to_owned()),
        destination: address(to),
        port: port.try_into().expect("no zero"),
        protocol: Protocol::Tcp,
    }
}

fn network() -> Plan {
    let lease = |third: u8, host: u8| {
        let site = Site {
            subnet: format!("10.244.{third}.0/24").parse().expect("a network"),
            public_ip: [172, 30, 0, host].into(),
            encap: Encap::Vxlan {
                vni: Vni(1),
                vtep_mac: MacAddr([2, 0, 0, 0, 0, third]),
            },
        };
        Lease {
            sites: [(IpFamily::V4, site)].into_iter().collect(),
        }
    };
    let config =
        NetworkConfig::parse(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#).expect("valid");
    let on_link: IpNetwork = "172.30.0.11/24".parse().expect("a network");
    let underlay = Underlay {
        networks: [on_link].into_iter().collect(),
        mtu: Mtu(1500),
    };
    plan(&config, &lease(1, 11), &[lease(2, 12)], &underlay).0
}

fn pods() -> Vec<PodHere> {
    vec![PodHere {
        name: Some(ObjectName::new("default", "client")),
        addresses: vec![address("10.244.1.5")],
        node: "node-1".into(),
        device: "cw0011".to_owned(),
        mac: Some(MacAddr([2, 0, 0, 0, 1, 5])),
    }]
}

/// A device that is up and belongs to nothing.
pub(super) fn link(index: u32, name: &str, mtu: u32, kind: LinkKind) -> Link {
    Link {
        index,
        name: name.to_owned(),
        mac: None,
        mtu,
        up: true,
        running: true,
        loopback: false,
        master: None,
        alias: None,
        parent: None,
        parent_elsewhere: false,
        kind,
    }
}

fn sight(packet: Lookup, arrives_by: Option<&str>, route: Route, link: Link) -> Sight {
    let next = route.gateway.unwrap_or(packet.destination);
    Sight {
        next: (route.kind == RouteKind::Unicast).then_some(next),
        routed: Routed {
            packet,
            arrives_by: arrives_by.map(str::to_owned),
            found: Found::Route(route),
            link: Some(link),
        },
        neighbour: None,
        forwarding: None,
        underlay: None,
    }
}

/// What the kernel has for the way through the tunnel, as it shall be.
fn through_tunnel() -> Sight {
    let vxlan = Vxlan {
        vni: 1,
        local: None,
        device: Some(2),
        port: 8472,
        learning: false,
        udp_csum: true,
        gbp: false,
        collect_metadata: false,
    };
    let mac = [2, 0, 0, 0, 0, 2];
    let mut route = Route::via(
        "10.244.2.0/24".parse().expect("a network"),
        address("10.244.2.0"),
        3,
        213,
    );
    route.onlink = true;
    let lookup = |destination: &str, source: Option<&str>, device| Lookup {
        destination: address(destination),
        source: source.map(address),
        device,
        mark: 0,
    };
    let on_link = Route::on_link("172.30.0.0/24".parse().expect("a network"), 2, 2);
    let outer = sight(
        lookup("172.30.0.12", None, None),
        None,
        on_link,
        link(2, "eth0", 1500, LinkKind::Veth),
    );
    Sight {
        neighbour: Some(Neighbour::permanent(3, address("10.244.2.0"), mac)),
        forwarding: Some(Forwarding::permanent(3, mac, address("172.30.0.12"))),
        underlay: Some(outer.routed),
        ..sight(
            lookup("10.244.2.6", Some("10.244.1.5"), Some(4)),
            Some("cw0011"),
            route,
            link(3, "flannel.1", 1450, LinkKind::Vxlan(vxlan)),
        )
    }
}

/// The same for the answer's way to this node's pod.
fn to_pod() -> Sight {
    let packet = Lookup {
        destination: address("10.244.1.5"),
        source: Some(address("10.244.2.6")),
        device: Some(3),
        mark: 0,
    };
    let route = Route::on_link("10.244.1.5/32".parse().expect("a network"), 4, 213);
    Sight {
        neighbour: Some(Neighbour::permanent(4, address("10.244.1.5"), [2, 0, 0, 0, 1, 5])),
        ..sight(
            packet,
            Some("flannel.1"),
            route,
            link(4, "cw0011", 1450, LinkKind::Veth),
        )
    }
}

fn layer(endpoints: &[&str]) -> Layer {
    let target = |text: &&str| Target {
        address: address(text),
        port: 8080.try_into().expect("no zero"),
    };
    let rule = nft::Verdict::Goto("address.cluster-1.outside".to_owned());
    let treatment = |endpoints: &[&str]| Treatment {
        rule: rule.clone().into(),
        cluster: endpoints.iter().map(target).collect(),
        local: BTreeSet::new(),
    };
    Layer {
        kind: LayerKind::PacketRules,
        is_attached: true,
        at: Some(At::Set {
            family: "ip",
            table: "causeway-proxy".to_owned(),
            set: "service-ips",
            key: "10.96.0.7 . tcp . 80".to_owned(),
        }),
        wanted: Some(treatment(&["10.244.2.6"])),
        is_wanted_known: true,
        found: Some(treatment(endpoints)),
        entries: vec![
            programmed::Entry {
                place: "set ip causeway-proxy service-ips".to_owned(),
                key: "10.96.0.7 . tcp . 80".to_owned(),
                value: Some("goto address.cluster-1.outside".to_owned()),
            },
            programmed::Entry {
                place: "set ip causeway-proxy endpoints".to_owned(),
                key: "3 . 0".to_owned(),
                value: endpoints.first().map(|address| format!("{address}:8080")),
            },
        ],
    }
}

fn explanation(layers: Vec<Layer>, there: &Sight, back: &Sight) -> Explanation {
    let from = Vantage {
        network: "ip netns exec causeway-node-1".to_owned(),
        root: String::new(),
    };
    let snapshot = cluster(
        TrafficPolicy::Cluster,
        vec![
            endpoint("10.244.2.6", "node-2", Conditions::READY),
            endpoint("10.244.2.7", "node-2", NOT_READY),
            endpoint("10.244.1.8", "node-1", ENDING),
        ],
    );
    let intent = intent(&snapshot, &context(), &packet("10.96.0.7", 80));
    let (own, pods, network) = ([address("172.30.0.11")], pods(), network());
    let way_to = |to: &str| way(address(to), &own, &pods, Some(&network));
    let mut forward = vec![compare::service(
        "10.96.0.7:80/TCP",
        Some(&intent),
        &Programming { layers, unread: None },
        Client::PodHere,
        &from,
    )];
    forward.extend(compare::way(&way_to("10.244.2.6"), there, &from));
    let reverse = compare::way(&way_to("10.244.1.5"), back, &from);
    let steps: Vec<Step> = forward.iter().chain(&reverse).cloned().collect();
    let end = |name: &str, text: &str, port, node: Option<&str>| End {
        name: name.to_owned(),
        address: address(text),
        port,
        node: node.map(str::to_owned),
    };
    Explanation {
        node: Some("node-1".to_owned()),
        source: end("pod default/client", "10.244.1.5", None, Some("node-1")),
        destination: end("Service default/web", "10.96.0.7", Some(80), None),
        protocol: Protocol::Tcp,
        conclusion: Explanation::conclude(&steps),
        sentence: "as the walk says it".to_owned(),
        forward,
        reverse,
        notes: Vec::new(),
    }
}

#[test]
fn what_agrees_is_shown_from_both_sides_there_and_back() {
    let whole = explanation(vec![layer(&["10.244.2.6"])], &through_tunnel(), &to_pod());
    assert_eq!(
        render::render(&whole, Output::Text),
        include_str!("golden/works.txt")
    );
    assert_eq!(whole.conclusion, Conclusion::Works);
    let json = render::render(&whole, Output::Json);
    assert_eq!(json, include_str!("golden/works.json"));
    assert_eq!(serde_json::from_str::<Explanation>(&json).expect("valid"), whole);
}

/// What is wrong with a way that one thing was changed of.
#[track_caller]
fn check(damage: impl FnOnce(&mut Sight, &mut Sight), expected: &[&str]) {
    let (mut there, mut back) = (through_tunnel(), to_pod());
    damage(&mut there, &mut back);
    let explained = explanation(vec![layer(&["10.244.2.6"])], &there, &back);
    let steps = explained.forward.iter().chain(&explained.reverse);
    let problems: Vec<_> = steps.flat_map(|step| &step.problems).collect();
    assert_eq!(problems, expected);
    let conclusion = if expected.is_empty() {
        Conclusion::Works
    } else {
        Conclusion::Fails
    };
    assert_eq!(explained.conclusion, conclusion);
}

fn route_of(sight: &mut Sight) -> &mut Route {
    match &mut sight.routed.found {
        Found::Route(route) => route,
        found => panic!("{found:?} is no route"),
    }
}

#[test]
fn each_difference_on_the_way_is_named() {
    check(|_, _| (), &[]);
    check(
        |there, _| there.forwarding = None,
        &["flannel.1 does not know where 02:00:00:00:00:02 is"],
    );
    check(
        |there, _| {
            there.forwarding = Some(Forwarding::permanent(
                3,
                [2, 0, 0, 0, 0, 2],
                address("172.30.0.99"),
            ))
        },
        &["flannel.1 sends what is for 02:00:00:00:00:02 to 172.30.0.99, not to 172.30.0.12"],
    );
    check(
        |there, _| (there.neighbour, there.forwarding) = (None, None),
        &["no MAC address is known for 10.244.2.0 on flannel.1"],
    );
    check(
        |there, _| there.neighbour = Some(Neighbour::permanent(3, address("10.244.2.0"), [2, 0, 0, 0, 0, 9])),
        &["10.244.2.0 is taken to have 02:00:00:00:00:09, not 02:00:00:00:00:02"],
    );
    check(
        |there, _| route_of(there).gateway = Some(address("10.244.2.9")),
        &["the route goes via 10.244.2.9, not via 10.244.2.0"],
    );
    check(
        |there, _| {
            if let Some(link) = &mut there.routed.link {
                (link.up, link.mtu) = (false, 1300);
            }
        },
        &["flannel.1 is down", "MTU of flannel.1 is 1300, not 1450"],
    );
    check(
        |_, back| {
            (back.next, back.neighbour) = (None, None);
            (back.routed.link, back.routed.found) = (None, Found::Refused(Errno::EXDEV));
        },
        &["no way: its source is not routed back by that device (rp_filter) (EXDEV)"],
    );
    check(
        |_, back| back.routed.link = Some(link(2, "eth0", 1500, LinkKind::Physical)),
        &["the route leads to eth0, not to cw0011"],
    );
    check(
        |there, _| {
            let outer = there.underlay.as_mut().expect("wrapped");
            outer.found = Found::Refused(Errno::ENETUNREACH);
        },
        &["no way: no route leads there (ENETUNREACH)"],
    );
    check(
        |there, _| {
            let outer = there.underlay.as_mut().expect("wrapped");
            outer.link.clone_from(&there.routed.link);
        },
        &["wrapped packets for 172.30.0.12 are routed into flannel.1 again, which drops them"],
    );
}

#[test]
fn a_list_that_is_not_the_plans_is_the_finding() {
    let stale = explanation(vec![layer(&["10.244.2.99"])], &through_tunnel(), &to_pod());
    let text = render::render(&stale, Output::Text);
    let marks = ["    PROBLEM", "    DIFFERS", "    look at"];
    let told: Vec<_> = text
        .lines()
        .filter(|line| marks.iter().any(|mark| line.starts_with(mark)))
        .collect();
    let expected = [
        "    PROBLEM  packet rules: list for the cluster: endpoint 10.244.2.6:8080 is missing",
        "    PROBLEM  packet rules: list for the cluster: endpoint 10.244.2.99:8080 is not the plan's",
        "    look at: ip netns exec causeway-node-1 nft get element ip causeway-proxy service-ips '{ 10.96.0.7 . tcp . 80 }'",
    ];
    assert_eq!(told, expected);
}

/// The hook's layer, which has these endpoints where the plan wants the one; none: it has no entry.
fn hook(endpoints: Option<&[&str]>) -> Layer {
    let rule = Rule::Hook {
        flags: 0,
        affinity_seconds: 0,
    };
    let treatment = |layer: Layer| Treatment {
        rule: rule.clone(),
        ..layer.found.expect("it has an entry")
    };
    Layer {
        kind: LayerKind::SocketHook,
        wanted: Some(treatment(layer(&["10.244.2.6"]))),
        found: endpoints.map(|endpoints| treatment(layer(endpoints))),
        at: Some(At::Map {
            pin: "/sys/fs/bpf/causeway/v2/FRONTENDS".into(),
            key: vec![0, 10],
        }),
        entries: Vec::new(),
        ..layer(&[])
    }
}

/// What two layers come to: problems and differences.
#[track_caller]
fn check_layers(layers: [Layer; 2], problems: &[&str], differences: &[&str]) {
    let explained = explanation(layers.into(), &through_tunnel(), &to_pod());
    let service = &explained.forward[0];
    assert_eq!(
        (&service.problems[..], &service.differences[..]),
        (
            &problems.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>()[..],
            &differences
                .iter()
                .map(|line| (*line).to_owned())
                .collect::<Vec<_>>()[..]
        )
    );
    let expected = if problems.is_empty() {
        Conclusion::Works
    } else {
        Conclusion::Fails
    };
    assert_eq!(explained.conclusion, expected);
}

#[test]
fn a_layer_that_lacks_what_the_next_one_has_is_no_problem() {
    let rules = || layer(&["10.244.2.6"]);
    check_layers([hook(Some(&["10.244.2.6"])), rules()], &[], &[]);
    let no_entry = "socket hook: no entry, where the plan wants spread, 1 endpoint in the cluster";
    check_layers([hook(None), rules()], &[], &[no_entry]);
    let missing = "socket hook: list for the cluster: endpoint 10.244.2.6:8080 is missing";
    check_layers([hook(Some(&[])), rules()], &[], &[missing]);
    let by_rules = "packet rules: list for the cluster: endpoint 10.244.2.6:8080 is missing";
    check_layers([hook(Some(&["10.244.2.6"])), layer(&[])], &[], &[by_rules]);
    check_layers([hook(None), layer(&[])], &[no_entry, by_rules], &[]);
    let stray = "socket hook: list for the cluster: endpoint 10.244.2.99:8080 is not the plan's";
    check_layers([hook(Some(&["10.244.2.99"])), rules()], &[missing, stray], &[]);
}

/// What the objects say of a packet, and what is wrong with it.
#[track_caller]
fn check_objects(snapshot: &Snapshot, to: (&str, u16), expected: &[&str], problem: Option<&str>) {
    let intent = intent(snapshot, &context(), &packet(to.0, to.1));
    assert_eq!(intent.lines, expected);
    assert_eq!(intent.failure.as_deref(), problem);
}

const FRONTEND: &str = "Service default/web port http, frontend 10.96.0.7:80/TCP; policies: internal Cluster, external \
                        Cluster; affinity: none";
const LOCAL: &str = "Service default/web port http, frontend 10.96.0.7:80/TCP; policies: internal Local, external Cluster; \
                     affinity: none";

#[test]
fn endpoints_are_told_with_the_reason_why_they_are_chosen_or_not() {
    let of = |endpoints| cluster(TrafficPolicy::Cluster, endpoints);
    let to = ("10.96.0.7", 80);
    check_objects(
        &of(vec![
            endpoint("10.244.1.8", "node-1", ENDING),
            endpoint("10.244.2.7", "node-2", NOT_READY),
        ]),
        to,
        &[
            "to 10.244.1.8:8080, its source is kept",
            FRONTEND,
            "  10.244.1.8:8080       pod default/web-8 on node-1: chosen: it ends and still serves, and none is ready",
            "  10.244.2.7:8080       pod default/web-7 on node-2: not chosen: not ready",
        ],
        None,
    );
    check_objects(
        &of(vec![endpoint("10.244.2.7", "node-2", NOT_READY)]),
        to,
        &[
            "10.96.0.7:80 is refused",
            FRONTEND,
            "  10.244.2.7:8080       pod default/web-7 on node-2: not chosen: not ready",
        ],
        Some("refused: Service default/web has no endpoint that takes connections"),
    );
    check_objects(
        &of(Vec::new()),
        to,
        &[
            "10.96.0.7:80 is refused",
            FRONTEND,
            "  no EndpointSlice of Service default/web has an endpoint",
        ],
        Some("refused: Service default/web has no endpoint that takes connections"),
    );
    check_objects(
        &cluster(
            TrafficPolicy::Local,
            vec![endpoint("10.244.2.6", "node-2", Conditions::READY)],
        ),
        to,
        &[
            "10.96.0.7:80 is dropped",
            LOCAL,
            "  10.244.2.6:8080       pod default/web-6 on node-2: not chosen: it is not on this node, and the traffic policy is Local",
        ],
        Some(
            "dropped: Service default/web has no endpoint on this node that takes connections, and its traffic policy is Local",
        ),
    );
    let other_port = &["10.96.0.7:81 is refused"];
    check_objects(
        &of(Vec::new()),
        ("10.96.0.7", 81),
        other_port,
        Some("refused: Service default/web has no port 81/TCP; it has svc/web:80/tcp"),
    );
    check_objects(
        &of(Vec::new()),
        ("10.96.0.99", 80),
        &["10.96.0.99:80 is dropped"],
        Some("dropped: 10.96.0.99 is an address for Services (10.96.0.0/16), and no Service has it"),
    );
    let elsewhere = &["198.51.100.1:80 is no Service's: it goes there unchanged"];
    check_objects(&of(Vec::new()), ("198.51.100.1", 80), elsewhere, None);
}

/// Another Service's address is no frontend of this one: what datapaths lack for it is no finding.
#[test]
fn a_service_has_no_frontend_that_another_one_owns() {
    let mut snapshot = cluster(
        TrafficPolicy::Cluster,
        vec![endpoint("10.244.1.8", "node-1", Conditions::READY)],
    );
    let shared = || [address("198.51.100.7")].into_iter().collect();
    let web = snapshot.services.get(&ObjectName::new("default", "web"));
    let mut web = Service::clone(web.expect("listed"));
    web.external_addresses = shared();
    web.external_policy = TrafficPolicy::Local;
    let mut api = web.clone();
    api.name = ObjectName::new("default", "api");
    api.kind = ServiceKind::ClusterIp {
        addresses: Few::from(vec![address("10.96.0.8")]),
    };
    for service in [web, api] {
        snapshot.apply(Change::Service(service));
    }
    let mut context = context();
    context.external_addresses = true;
    let frontends = |to| -> Vec<String> {
        let owner = intent(&snapshot, &context, &packet(to, 80))
            .owner
            .expect("served");
        let frontends = owner.port.frontends.keys();
        frontends.map(|key| format!("{} {key}", owner.service)).collect()
    };
    assert_eq!(frontends("10.96.0.7"), ["default/web 10.96.0.7:80/TCP"]);
    let of_api = ["default/api 10.96.0.8:80/TCP", "default/api 198.51.100.7:80/TCP"];
    assert_eq!(frontends("198.51.100.7"), of_api);
}

#[test]
fn an_address_is_reached_as_pods_and_leases_say() {
    let (own, network) = ([address("172.30.0.11")], network());
    let way_to = |to: &str| way(address(to), &own, &pods(), Some(&network));
    assert!(matches!(way_to("10.244.1.5"), Way::Pod { device, .. } if device == "cw0011"));
    assert!(
        matches!(way_to("10.244.2.9"), Way::Tunnel { public_ip, .. } if public_ip == address("172.30.0.12"))
    );
    assert_eq!(way_to("172.30.0.11"), Way::Here);
    let subnet = "10.244.1.0/24".parse().expect("a network");
    assert_eq!(way_to("10.244.1.77"), Way::NoPod { subnet });
    let network = "10.244.0.0/16".parse().expect("a network");
    assert_eq!(way_to("10.244.9.9"), Way::NoLease { network });
    assert_eq!(way_to("198.51.100.1"), Way::Elsewhere);
}

#[test]
fn without_objects_a_packet_follows_what_is_programmed() {
    let found = |endpoints: &[&str]| Layer {
        wanted: None,
        is_wanted_known: false,
        ..layer(endpoints)
    };
    let programming = |layers: Vec<Layer>, unread: Option<&str>| Programming {
        layers,
        unread: unread.map(str::to_owned),
    };
    let client = Client::PodHere;
    let target = Target {
        address: address("10.244.2.6"),
        port: 8080.try_into().expect("no zero"),
    };
    let followed = Followed {
        by: LayerKind::PacketRules,
        verdict: programmed::Verdict::Spread([target].into()),
    };
    let served = programming(vec![found(&["10.244.2.6"])], None);
    assert_eq!(served.follow(client), Some(followed));
    let unknown = Layer {
        found: None,
        ..found(&[])
    };
    assert_eq!(
        programming(vec![unknown.clone()], Some("unread")).follow(client),
        None
    );
    let empty = programming(vec![found(&[]), unknown], Some("unread"));
    assert_eq!(empty.follow(client), None);
    let step = compare::service("", None, &empty, client, &Vantage::default());
    assert_eq!(
        (step.problems, step.unknown),
        (
            vec!["packet rules: goto address.cluster-1.outside, and no endpoint".to_owned()],
            vec!["unread".to_owned()]
        )
    );
}

/// An endpoint of another zone or node, by its hints.
fn hinted(text: &str, zones: &[&str], nodes: &[&str]) -> Endpoint {
    let extras = model::Extras {
        hinted_zones: zones.iter().map(|zone| (*zone).into()).collect(),
        hinted_nodes: nodes.iter().map(|node| (*node).into()).collect(),
        ..model::Extras::default()
    };
    Endpoint {
        extras: Some(Box::new(extras)),
        ..endpoint(text, "node-2", Conditions::READY)
    }
}

#[test]
fn hints_and_addresses_that_cannot_be_are_told_as_the_plan_judges_them() {
    let mut context = context();
    context.zone = Some("a".into());
    let endpoints = |endpoints| {
        let snapshot = cluster(TrafficPolicy::Cluster, endpoints);
        let lines = intent(&snapshot, &context, &packet("10.96.0.7", 80)).lines;
        lines[2..]
            .iter()
            .map(|line| line.split_once(": ").expect("a reason").1.to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        endpoints(vec![
            hinted("10.244.2.6", &["b"], &[]),
            hinted("10.244.2.7", &["a"], &[])
        ]),
        [
            "not chosen: its topology hints are for zone b, and this node is in a",
            "chosen, ready"
        ]
    );
    assert_eq!(
        endpoints(vec![
            hinted("10.244.2.6", &[], &["node-2"]),
            hinted("10.244.2.7", &[], &["node-1"])
        ]),
        [
            "not chosen: its topology hints are for node-2, and this is node-1",
            "chosen, ready"
        ]
    );
    assert_eq!(
        endpoints(vec![
            endpoint("127.0.0.1", "node-1", Conditions::READY),
            endpoint("10.244.1.8", "node-1", ENDING),
            endpoint("10.244.1.8", "node-1", Conditions::READY),
        ]),
        [
            "not chosen: no endpoint can have this address",
            "not chosen: another entry lists the same address and port, and counts",
            "chosen, ready"
        ]
    );
}

#[test]
fn the_nodes_own_dns_server_has_its_address() {
    let snapshot = cluster(
        TrafficPolicy::Cluster,
        vec![endpoint("10.244.2.6", "node-2", Conditions::READY)],
    );
    let mut context = context();
    context.local_dns = [address("10.96.0.7")].into();
    let own = intent(&snapshot, &context, &packet("10.96.0.7", 80));
    let expected = "10.96.0.7:80 is this node's own DNS server: it answers here, and nothing is translated";
    assert_eq!((own.lines, own.failure), (vec![expected.to_owned()], None));
    context.dns_answers = false;
    let away = intent(&snapshot, &context, &packet("10.96.0.7", 80));
    assert_eq!(away.failure, None);
    assert!(
        away.lines[0].starts_with("to 10.244.2.6:8080"),
        "{:?}",
        away.lines
    );
    let alone = intent(
        &cluster(TrafficPolicy::Cluster, Vec::new()),
        &context,
        &packet("10.96.0.7", 80),
    );
    let failure = alone.failure.expect("nobody answers");
    assert!(
        failure.contains("own DNS server, which does not answer"),
        "{failure}"
    );
}

#[test]
fn an_address_that_a_service_has_elsewhere_is_not_taken_for_anybodys() {
    let mut snapshot = cluster(
        TrafficPolicy::Cluster,
        vec![endpoint("10.244.2.6", "node-2", Conditions::READY)],
    );
    let web = snapshot.services.get(&ObjectName::new("default", "web"));
    let mut web = Service::clone(web.expect("listed"));
    web.external_addresses = [address("198.51.100.7")].into_iter().collect();
    snapshot.apply(Change::Service(web));
    let failure = |port, external| {
        let mut context = context();
        context.external_addresses = external;
        intent(&snapshot, &context, &packet("198.51.100.7", port)).failure
    };
    assert_eq!(failure(80, true), None);
    let other = failure(81, true);
    let no_port = "Service default/web has no port 81/TCP; it has svc/web:80/tcp";
    assert_eq!(other.as_deref(), Some(no_port));
    let off = failure(80, false);
    let not_served = "Service default/web has 198.51.100.7, and this node does not serve it there: externalIPs are not \
                      allowed on this node (proxy.externalIPs)";
    assert_eq!(off.as_deref(), Some(not_served));
}
