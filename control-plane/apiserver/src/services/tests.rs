//! One Service from what a user wrote to what is stored, as rows: what was asked, before and now, on which cluster.

use super::*;
use crate::resources::Registry;

const SINGLE: &str = "10.96.0.0/12";
const DUAL: &str = "10.96.0.0/12,fd00::/112";
const V6_FIRST: &str = "fd00::/112,10.96.0.0/12";

fn ranges(cidrs: &str) -> Ranges {
    Ranges {
        cidrs: cidrs.parse().expect("networks"),
        ports: (30000, 30002),
    }
}

/// The way of a Service through defaults, families, rules and allocation, as `api::write` goes it.
fn write(cidrs: &str, old: Option<&Value>, spec: Value) -> Result<Value, String> {
    let rules = Registry::global().kind("", "Service");
    let ranges = ranges(cidrs);
    let mut service = json!({ "metadata": { "name": "web" }, "spec": spec });
    (rules.defaults)(&mut service);
    match old {
        Some(old) => {
            object::copy_field(old, &mut service, "status");
            carry_over(&mut service, old);
        }
        None => align_cluster_ips(&mut service, None),
    }
    let told = |errors: Vec<FieldError>| {
        errors
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; ")
    };
    settle_families(&mut service, old, &ranges.cidrs).map_err(told)?;
    let mut errors = Errors::default();
    (rules.validate)(&service, &mut errors);
    if let Some(old) = old {
        (rules.validate_update)(&service, old, &mut errors);
    }
    errors.into_result().map_err(told)?;
    allocate(&mut service, old, &ranges, &Taken::default()).map_err(told)?;
    Ok(service)
}

/// A TCP port 80, and `more`.
fn spec(more: Value) -> Value {
    let mut spec = json!({ "selector": { "app": "web" }, "ports": [{ "port": 80 }] });
    let more = more.as_object().expect("an object").clone();
    spec.as_object_mut().expect("an object").extend(more);
    spec
}

#[track_caller]
fn created(cidrs: &str, more: Value) -> Value {
    write(cidrs, None, spec(more)).expect("must be accepted")
}

/// `old` with some fields of its spec set, or with `null` removed, as a patch does it.
fn patched(cidrs: &str, old: &Value, patch: Value) -> Result<Value, String> {
    let mut spec = old["spec"].clone();
    json_patch::merge(&mut spec, &patch);
    write(cidrs, Some(old), spec)
}

#[track_caller]
fn complaint(cidrs: &str, more: Value, expected: &str) {
    assert_eq!(write(cidrs, None, spec(more)), Err(expected.to_owned()));
}

fn families(service: &Value) -> Value {
    let kinds = service.list("spec.clusterIPs").iter().map(|ip| {
        let parsed: Option<IpAddr> = ip.as_str().and_then(|text| text.parse().ok());
        parsed.map_or("None", family)
    });
    let kinds: Vec<&str> = kinds.collect();
    json!([
        service.at("spec.ipFamilyPolicy"),
        service.at("spec.ipFamilies"),
        kinds
    ])
}

#[test]
fn families_follow_policy_wish_and_networks() {
    let headless = |more: Value| {
        let mut all = json!({ "clusterIP": "None" });
        json_patch::merge(&mut all, &more);
        all
    };
    for (cidrs, more, policy, expected, addresses) in [
        (SINGLE, json!({}), "SingleStack", json!(["IPv4"]), json!(["IPv4"])),
        (
            V6_FIRST,
            json!({}),
            "SingleStack",
            json!(["IPv6"]),
            json!(["IPv6"]),
        ),
        (
            SINGLE,
            json!({ "ipFamilyPolicy": "PreferDualStack" }),
            "PreferDualStack",
            json!(["IPv4"]),
            json!(["IPv4"]),
        ),
        (
            DUAL,
            json!({ "ipFamilyPolicy": "PreferDualStack" }),
            "PreferDualStack",
            json!(["IPv4", "IPv6"]),
            json!(["IPv4", "IPv6"]),
        ),
        (
            DUAL,
            json!({ "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"] }),
            "RequireDualStack",
            json!(["IPv6", "IPv4"]),
            json!(["IPv6", "IPv4"]),
        ),
        (
            DUAL,
            json!({ "ipFamilies": ["IPv6"] }),
            "SingleStack",
            json!(["IPv6"]),
            json!(["IPv6"]),
        ),
        (
            DUAL,
            json!({ "clusterIP": "fd00::9" }),
            "SingleStack",
            json!(["IPv6"]),
            json!(["IPv6"]),
        ),
        (
            DUAL,
            json!({ "ipFamilyPolicy": "PreferDualStack", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00::9"] }),
            "PreferDualStack",
            json!(["IPv4", "IPv6"]),
            json!(["IPv4", "IPv6"]),
        ),
        (
            DUAL,
            headless(json!({})),
            "SingleStack",
            json!(["IPv4"]),
            json!(["None"]),
        ),
        (
            SINGLE,
            headless(json!({ "selector": {} })),
            "RequireDualStack",
            json!(["IPv4", "IPv6"]),
            json!(["None"]),
        ),
        (
            SINGLE,
            headless(json!({ "selector": {}, "ipFamilyPolicy": "SingleStack" })),
            "SingleStack",
            json!(["IPv4"]),
            json!(["None"]),
        ),
    ] {
        let service = created(cidrs, more.clone());
        assert_eq!(
            families(&service),
            json!([policy, expected, addresses]),
            "{more} on {cidrs}"
        );
        assert_eq!(service.at("spec.clusterIP"), &service["spec"]["clusterIPs"][0]);
    }
}

#[test]
fn families_that_cannot_be_are_refused() {
    complaint(
        SINGLE,
        json!({ "ipFamilyPolicy": "RequireDualStack" }),
        "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
    );
    complaint(
        SINGLE,
        json!({ "ipFamilies": ["IPv6"] }),
        "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
    );
    complaint(
        SINGLE,
        json!({ "clusterIP": "fd00::9" }),
        "spec.clusterIPs[0]: Invalid value: [\"fd00::9\"]: IPv6 is not configured on this cluster",
    );
    complaint(
        DUAL,
        json!({ "ipFamilies": ["IPv4", "IPv6"] }),
        "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
    );
    complaint(
        DUAL,
        json!({ "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00::9"] }),
        "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified",
    );
    complaint(
        DUAL,
        json!({ "ipFamilyPolicy": "Dual" }),
        "spec.ipFamilyPolicy: Unsupported value: \"Dual\": supported values: \"PreferDualStack\", \"RequireDualStack\", \"SingleStack\"",
    );
}

#[test]
fn a_second_family_comes_and_goes_with_the_policy() {
    let single = created(DUAL, json!({}));
    let dual = patched(DUAL, &single, json!({ "ipFamilyPolicy": "PreferDualStack" })).expect("upgraded");
    let expected = json!(["PreferDualStack", ["IPv4", "IPv6"], ["IPv4", "IPv6"]]);
    assert_eq!(families(&dual), expected);
    assert_eq!(dual.at("spec.clusterIP"), single.at("spec.clusterIP"));
    let back = patched(DUAL, &dual, json!({ "ipFamilyPolicy": "SingleStack" })).expect("downgraded");
    assert_eq!(back["spec"], single["spec"]);
    let released: Vec<Holding> = holdings(&dual)
        .into_iter()
        .filter(|holding| !holdings(&back).contains(holding))
        .collect();
    let second = dual["spec"]["clusterIPs"][1]
        .as_str()
        .and_then(|ip| ip.parse().ok());
    assert_eq!(
        released,
        second.map(Holding::Address).into_iter().collect::<Vec<_>>()
    );
    // Someone who knows of one family only changes something else.
    let unaware = write(DUAL, Some(&dual), spec(json!({ "sessionAffinity": "ClientIP" })));
    assert_eq!(families(&unaware.expect("accepted")), expected);
}

#[test]
fn the_first_family_and_address_stay() {
    let dual = created(
        DUAL,
        json!({ "ipFamilyPolicy": "RequireDualStack", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00::9"] }),
    );
    for (patch, expected) in [
        (
            json!({ "ipFamilies": ["IPv4"] }),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be 'SingleStack' to release the secondary IP family",
        ),
        (
            json!({ "clusterIPs": ["10.96.0.9"] }),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be 'SingleStack' to release the secondary cluster IP",
        ),
        (
            json!({ "ipFamilyPolicy": "SingleStack", "clusterIP": "fd00::9", "clusterIPs": ["fd00::9"], "ipFamilies": ["IPv6"] }),
            "spec.clusterIPs[0]: Invalid value: [\"fd00::9\"]: may not change once set; spec.ipFamilies[0]: Invalid value: [\"IPv6\"]: may not change once set",
        ),
        (
            json!({ "clusterIPs": ["10.96.0.9", "fd00::a"] }),
            "spec.clusterIPs[1]: Invalid value: [\"10.96.0.9\",\"fd00::a\"]: may not change once set",
        ),
    ] {
        assert_eq!(
            patched(DUAL, &dual, patch.clone()),
            Err(expected.to_owned()),
            "{patch}"
        );
    }
    let single = created(SINGLE, json!({}));
    let expected = "spec.clusterIPs[0]: Invalid value: [\"10.96.0.77\"]: may not change once set";
    assert_eq!(
        patched(SINGLE, &single, json!({ "clusterIP": "10.96.0.77" })),
        Err(expected.to_owned())
    );
}

#[test]
fn who_prefers_two_families_keeps_what_there_is_when_the_networks_change() {
    let single = created(SINGLE, json!({ "ipFamilyPolicy": "PreferDualStack" }));
    let later = patched(DUAL, &single, json!({ "sessionAffinity": "ClientIP" })).expect("accepted");
    assert_eq!(families(&later), json!(["PreferDualStack", ["IPv4"], ["IPv4"]]));
    let dual = created(DUAL, json!({ "ipFamilyPolicy": "PreferDualStack" }));
    let later = patched(SINGLE, &dual, json!({ "sessionAffinity": "ClientIP" })).expect("accepted");
    assert_eq!(
        families(&later),
        json!(["PreferDualStack", ["IPv4", "IPv6"], ["IPv4", "IPv6"]])
    );
}

#[test]
fn named_addresses_and_ports_must_be_in_range() {
    complaint(
        SINGLE,
        json!({ "clusterIP": "1.2.3.4" }),
        "spec.clusterIPs: Invalid value: [\"1.2.3.4\"]: failed to allocate IP 1.2.3.4: the provided IP (1.2.3.4) is not in the valid range. The range of valid IPs is 10.96.0.0/12",
    );
    complaint(
        DUAL,
        json!({ "clusterIP": "fd01::1" }),
        "spec.clusterIPs: Invalid value: [\"fd01::1\"]: failed to allocate IP fd01::1: the provided IP (fd01::1) is not in the valid range. The range of valid IPs is fd00::/112",
    );
    complaint(
        SINGLE,
        json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 80 }] }),
        "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-30002",
    );
    complaint(
        SINGLE,
        json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 80 }),
        "spec.healthCheckNodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-30002",
    );
}

#[test]
fn a_service_claims_only_what_it_does_not_hold() {
    let service = created(
        DUAL,
        json!({
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30002,
            "ipFamilyPolicy": "RequireDualStack", "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10", "fd00::10"],
            "ports": [
                { "name": "a", "port": 1, "protocol": "TCP", "nodePort": 30001 },
                { "name": "b", "port": 1, "protocol": "UDP", "nodePort": 30001 },
            ],
        }),
    );
    let address = |text: &str| Holding::Address(text.parse().expect("an address"));
    let expected = [
        address("10.96.0.10"),
        address("fd00::10"),
        Holding::Port(30001),
        Holding::Port(30002),
    ];
    assert_eq!(holdings(&service), expected);
    let mut same = service.clone();
    let claims = allocate(&mut same, None, &ranges(DUAL), &Taken::default()).expect("all is free");
    let told = |claim: &Claim| claim.collision.as_ref().map(|errors| errors[0].to_string());
    assert_eq!(
        claims.iter().map(told).collect::<Vec<_>>(),
        [
            "spec.clusterIPs: Invalid value: [\"10.96.0.10\",\"fd00::10\"]: failed to allocate IP 10.96.0.10: provided IP is already allocated",
            "spec.clusterIPs: Invalid value: [\"10.96.0.10\",\"fd00::10\"]: failed to allocate IP fd00::10: provided IP is already allocated",
            "spec.ports[0].nodePort: Invalid value: 30001: provided port is already allocated",
            "spec.healthCheckNodePort: Invalid value: 30002: provided port is already allocated",
        ]
        .map(|text| Some(text.to_owned()))
    );
    let claimed: Vec<Holding> = claims.into_iter().map(|claim| claim.holding).collect();
    assert_eq!(claimed, expected);
    let again = allocate(&mut same, Some(&service), &ranges(DUAL), &Taken::default());
    assert_eq!((again, same), (Ok(vec![]), service));
}

fn port_list(ports: &[(&str, i64, i64)]) -> Value {
    let port = |&(protocol, port, node_port): &(&str, i64, i64)| {
        let name = format!("{}-{port}", protocol.to_lowercase());
        let mut listed = json!({ "name": name, "protocol": protocol, "port": port });
        if node_port != 0 {
            listed["nodePort"] = node_port.into();
        }
        listed
    };
    ports.iter().map(port).collect()
}

fn traffic_ports(service: &Value) -> Vec<i64> {
    let ports = service.list("spec.ports").iter();
    ports.map(|port| port.int("nodePort").unwrap_or(0)).collect()
}

#[test]
fn protocols_of_a_new_port_share_its_node_port() {
    let wanted =
        json!({ "type": "NodePort", "ports": port_list(&[("TCP", 53, 0), ("UDP", 53, 0), ("SCTP", 54, 0)]) });
    let ports = traffic_ports(&created(SINGLE, wanted));
    assert!(
        ports[0] == ports[1] && ports[0] != ports[2] && !ports.contains(&0),
        "{ports:?}"
    );
    let one_named = json!({ "type": "NodePort", "ports": port_list(&[("TCP", 53, 0), ("UDP", 53, 30001)]) });
    assert_eq!(traffic_ports(&created(SINGLE, one_named)), [30001, 30001]);
    // A port that comes later has its own.
    let tcp = json!({ "type": "NodePort", "ports": port_list(&[("TCP", 53, 30001)]) });
    let both = json!({ "ports": port_list(&[("TCP", 53, 30001), ("UDP", 53, 0)]) });
    let both = patched(SINGLE, &created(SINGLE, tcp), both).expect("accepted");
    let ports = traffic_ports(&both);
    assert!(
        ports[0] == 30001 && ports[1] != 30001 && ports[1] != 0,
        "{ports:?}"
    );
}

#[test]
fn a_port_that_the_service_names_is_not_chosen_for_another_of_its_ports() {
    let wanted = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30000,
        "ports": port_list(&[("TCP", 80, 0), ("TCP", 81, 30002)]),
    });
    assert_eq!(traffic_ports(&created(SINGLE, wanted)), [30001, 30002]);
    let too_many = json!({
        "type": "NodePort",
        "ports": port_list(&[("TCP", 80, 0), ("TCP", 81, 0), ("TCP", 82, 30002), ("TCP", 83, 0)]),
    });
    complaint(
        SINGLE,
        too_many,
        "spec.ports[3].nodePort: Invalid value: 0: failed to allocate a nodePort: range is full",
    );
}

#[test]
fn a_load_balancer_may_do_without_node_ports_but_keeps_those_it_has() {
    let without = json!({ "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false });
    assert_eq!(traffic_ports(&created(SINGLE, without)), [0]);
    let named = json!({
        "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
        "ports": port_list(&[("TCP", 80, 30001), ("TCP", 81, 0)]),
    });
    assert_eq!(traffic_ports(&created(SINGLE, named)), [30001, 0]);
    let with = created(SINGLE, json!({ "type": "LoadBalancer" }));
    assert_eq!(with.at("spec.allocateLoadBalancerNodePorts"), true);
    let off = patched(SINGLE, &with, json!({ "allocateLoadBalancerNodePorts": false })).expect("accepted");
    assert_eq!(traffic_ports(&off), traffic_ports(&with));
    let gone = json!({ "ports": [{ "port": 80, "nodePort": 0, "name": "http" }] });
    assert_eq!(
        traffic_ports(&patched(SINGLE, &off, gone).expect("accepted")),
        [0]
    );
}

#[test]
fn health_checks_have_a_port_while_the_load_balancer_sends_to_local_endpoints() {
    let local = |more: Value| {
        let mut all = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local" });
        json_patch::merge(&mut all, &more);
        all
    };
    let check_port = |service: &Value| service.int("spec.healthCheckNodePort");
    let chosen = created(SINGLE, local(json!({})));
    let port = check_port(&chosen).expect("a port was chosen");
    assert!(
        (30000..=30002).contains(&port) && !traffic_ports(&chosen).contains(&port),
        "{port}"
    );
    assert_eq!(
        check_port(&created(SINGLE, local(json!({ "healthCheckNodePort": 30002 })))),
        Some(30002)
    );
    // One who does not know the field loses nothing.
    let unaware = write(SINGLE, Some(&chosen), spec(local(json!({})))).expect("accepted");
    assert_eq!(check_port(&unaware), Some(port));
    for (patch, kept) in [
        (json!({ "externalTrafficPolicy": "Cluster" }), None),
        (json!({ "type": "NodePort" }), None),
        (json!({ "type": "ClusterIP" }), None),
        (json!({ "sessionAffinity": "ClientIP" }), Some(port)),
    ] {
        let changed = patched(SINGLE, &chosen, patch.clone()).expect("accepted");
        assert_eq!(check_port(&changed), kept, "{patch}");
        let held = holdings(&changed).contains(&Holding::Port(port));
        assert_eq!(held, kept.is_some(), "{patch}");
    }
    let plain = created(SINGLE, json!({ "type": "LoadBalancer" }));
    let changed = patched(SINGLE, &plain, json!({ "externalTrafficPolicy": "Local" })).expect("accepted");
    assert!(check_port(&changed).is_some());
}

#[test]
fn the_port_of_health_checks_is_refused_where_it_cannot_be() {
    complaint(
        SINGLE,
        json!({ "type": "LoadBalancer", "healthCheckNodePort": 30000 }),
        "spec.healthCheckNodePort: Invalid value: 30000: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
    );
    complaint(
        SINGLE,
        json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 70000 }),
        "spec.healthCheckNodePort: Invalid value: 70000: must be between 1 and 65535, inclusive",
    );
    let ports = json!([{ "port": 80, "nodePort": 30000 }]);
    complaint(
        SINGLE,
        json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30000, "ports": ports }),
        "spec.healthCheckNodePort: Invalid value: 30000: provided port is already allocated",
    );
    let old = created(
        SINGLE,
        json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30002 }),
    );
    assert_eq!(
        patched(SINGLE, &old, json!({ "healthCheckNodePort": 30001 })),
        Err("spec.healthCheckNodePort: Forbidden: field is immutable".to_owned())
    );
}

#[test]
fn a_change_of_type_gives_back_what_is_no_longer_used() {
    let mut balancer = created(
        SINGLE,
        json!({
            "type": "LoadBalancer", "loadBalancerClass": "example.com/a", "externalTrafficPolicy": "Local",
            "clusterIP": "10.96.0.10", "healthCheckNodePort": 30002, "ports": [{ "port": 80, "nodePort": 30001 }],
        }),
    );
    balancer["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.1", "ipMode": "VIP" }] } });
    let address = json!({
        "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack",
    });
    let common = json!({
        "selector": { "app": "web" }, "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
        "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80 }],
    });
    let with = |parts: &[&Value]| {
        let mut all = common.clone();
        parts.iter().for_each(|part| json_patch::merge(&mut all, part));
        all
    };
    let node_port =
        json!({ "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80, "nodePort": 30001 }] });
    for (patch, expected) in [
        (
            json!({ "type": "NodePort" }),
            with(&[
                &address,
                &node_port,
                &json!({ "type": "NodePort", "externalTrafficPolicy": "Local" }),
            ]),
        ),
        (
            json!({ "type": "ClusterIP" }),
            with(&[&address, &json!({ "type": "ClusterIP" })]),
        ),
        (
            json!({ "type": "ExternalName", "externalName": "example.com" }),
            with(&[&json!({ "type": "ExternalName", "externalName": "example.com" })]),
        ),
    ] {
        let changed = patched(SINGLE, &balancer, patch.clone()).expect("accepted");
        assert_eq!(changed["spec"], expected, "{patch}");
        assert_eq!(changed["status"], json!({ "loadBalancer": {} }), "{patch}");
    }
    let alias = created(
        SINGLE,
        json!({ "type": "ExternalName", "externalName": "example.com" }),
    );
    assert_eq!(holdings(&alias), []);
    let back = patched(
        SINGLE,
        &alias,
        json!({ "type": "NodePort", "externalName": null }),
    )
    .expect("accepted");
    assert_eq!(holdings(&back).len(), 2);
    assert_eq!(families(&back), json!(["SingleStack", ["IPv4"], ["IPv4"]]));
}

#[test]
fn what_a_change_of_type_makes_void_is_refused_when_it_is_changed_with_it() {
    let old = created(
        SINGLE,
        json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "loadBalancerClass": "a" }),
    );
    for (patch, expected) in [
        (
            json!({ "type": "ClusterIP", "ports": [{ "port": 80, "nodePort": 31000 }] }),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            json!({ "type": "ClusterIP", "externalTrafficPolicy": "Cluster" }),
            "spec.externalTrafficPolicy: Invalid value: \"Cluster\": may only be set for externally-accessible services",
        ),
        (
            json!({ "type": "NodePort", "loadBalancerClass": "b" }),
            "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            json!({ "type": "NodePort", "allocateLoadBalancerNodePorts": false }),
            "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            json!({ "loadBalancerClass": "b" }),
            "spec.loadBalancerClass: Invalid value: \"b\": may not change once set",
        ),
        (
            json!({ "loadBalancerClass": null }),
            "spec.loadBalancerClass: Invalid value: null: may not change once set",
        ),
    ] {
        assert_eq!(
            patched(SINGLE, &old, patch.clone()),
            Err(expected.to_owned()),
            "{patch}"
        );
    }
}

#[test]
fn node_ports_stay_with_the_name_of_their_port() {
    let old = created(
        SINGLE,
        json!({ "type": "NodePort", "ports": port_list(&[("TCP", 80, 30001), ("TCP", 81, 30002)]) }),
    );
    let renumbered = json!({
        "type": "NodePort",
        "ports": [{ "name": "tcp-81", "port": 8081 }, { "name": "tcp-80", "port": 8080 }],
    });
    let changed = write(SINGLE, Some(&old), spec(renumbered)).expect("accepted");
    assert_eq!(traffic_ports(&changed), [30002, 30001]);
    let swapped = json!({
        "type": "NodePort",
        "ports": [{ "name": "tcp-81", "port": 81 }, { "name": "tcp-80", "port": 80, "nodePort": 30002 }],
    });
    let changed = write(SINGLE, Some(&old), spec(swapped)).expect("accepted");
    let ports = traffic_ports(&changed);
    assert!(
        ports[1] == 30002 && ports[0] != 30002 && ports[0] != 0,
        "{ports:?}"
    );
}
