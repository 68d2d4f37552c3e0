//! Objects as the API sends them, against what the data plane makes of them.

use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use kube::core::WatchEvent;
use model::{Change, Namespace, Node, ServiceCidr, ServiceKind, SessionAffinity, TrafficPolicy, UnixTime};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::watch::object::{Converted, Watchable, Watched};

/// Parses as a list and a watch would, also one that says the type of an event last, and returns what came of it with
/// the faults as text.
#[track_caller]
fn parse<K: Watchable + Clone>(object: Value) -> (Converted, Vec<String>) {
    let type_first = format!(r#"{{"type": "ADDED", "object": {object}}}"#);
    let type_last = format!(r#"{{"object": {object}, "type": "ADDED"}}"#);
    let parsed = |watched: Watched<K>| {
        let faults: Vec<_> = watched.rejected.iter().map(ToString::to_string).collect();
        (watched.converted, faults)
    };
    let listed = parsed(read(&object.to_string()));
    for event in [type_first, type_last] {
        match read::<WatchEvent<Watched<K>>>(&event) {
            WatchEvent::Added(object) => assert_eq!(parsed(object), listed, "{event}"),
            other => panic!("{event} is {other:?}"),
        }
    }
    listed
}

#[track_caller]
fn read<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).expect("no object is too bad to be looked at")
}

fn merged(base: Value, edit: &Value) -> Value {
    let (Value::Object(mut base), Value::Object(edit)) = (base.clone(), edit) else {
        return edit.clone();
    };
    for (key, value) in edit {
        let old = base.remove(key).unwrap_or(Value::Null);
        base.insert(key.clone(), merged(old, value));
    }
    Value::Object(base)
}

fn service(edit: Value) -> Value {
    let base = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "default", "name": "web", "resourceVersion": "7"},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
                 "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "named"}]},
        "status": {"loadBalancer": {}},
    });
    merged(base, &edit)
}

/// The Service as JSON, only the fields that differ from that of `service(json!({}))`.
#[track_caller]
fn check_service(edit: Value, expected: Value, faults: &[&str]) {
    let base = as_json(parse::<core::Service>(service(json!({}))).0);
    let (converted, found) = parse::<core::Service>(service(edit.clone()));
    let mut different = as_json(converted);
    if let (Value::Object(different), Value::Object(base)) = (&mut different, &base) {
        different.retain(|field, value| base.get(field) != Some(value));
    }
    assert_eq!(different, expected, "for {edit}");
    assert_eq!(found, faults, "for {edit}");
}

fn as_json(converted: Converted) -> Value {
    match converted {
        Converted::Put(change) => match *change {
            Change::Service(service) => serde_json::to_value(service),
            Change::EndpointSlice(slice) => serde_json::to_value(slice),
            other => serde_json::to_value(other),
        },
        Converted::Irrelevant => Ok(json!("irrelevant")),
        Converted::Invalid => Ok(json!("invalid")),
    }
    .expect("model types are JSON")
}

#[test]
fn a_plain_service_is_taken_with_kubernetes_defaults() {
    let (converted, faults) = parse::<core::Service>(service(json!({})));
    let Converted::Put(change) = converted else {
        panic!("{faults:?}")
    };
    let Change::Service(service) = *change else {
        panic!("{change:?} is no Service")
    };
    assert_eq!(faults, Vec::<String>::new());
    assert_eq!(service.name.to_string(), "default/web");
    assert_eq!(
        service.kind,
        ServiceKind::ClusterIp {
            addresses: [[10, 96, 0, 7].into()].into()
        }
    );
    assert_eq!(service.affinity, SessionAffinity::None);
    assert_eq!(
        (service.external_policy, service.internal_policy),
        (TrafficPolicy::Cluster, TrafficPolicy::Cluster)
    );
    let [port] = &service.ports[..] else {
        panic!("{:?} is not one port", service.ports)
    };
    assert_eq!(
        (&*port.name, port.protocol, port.port.get(), port.node_port),
        ("http", model::Protocol::Tcp, 80, None)
    );
}

#[test]
fn services_of_every_type_and_with_every_field_are_understood() {
    let rows = [
        (
            json!({"spec": {"clusterIPs": ["None"], "clusterIP": "None"}}),
            json!({"kind": "Headless"}),
        ),
        (
            json!({"spec": {"type": "ExternalName", "externalName": "db.example.com", "clusterIPs": [], "ports": []}}),
            json!({"kind": {"ExternalName": "db.example.com"}, "ports": []}),
        ),
        (
            json!({"spec": {"clusterIPs": ["10.96.0.7", "fd00::7"]}}),
            json!({"kind": {"ClusterIp": {"addresses": ["10.96.0.7", "fd00::7"]}}}),
        ),
        (
            json!({"spec": {"type": "LoadBalancer", "clusterIPs": [""], "clusterIP": ""}}),
            json!({"kind": {"ClusterIp": {"addresses": []}}}),
        ),
        (json!({"spec": {"clusterIPs": null}}), json!({})),
        (
            json!({"spec": {"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
                            "healthCheckNodePort": 31000, "publishNotReadyAddresses": true,
                            "trafficDistribution": "PreferClose"}}),
            json!({"external_policy": "Local", "internal_policy": "Local", "health_check_node_port": 31000,
                   "publish_not_ready": true, "traffic_distribution": "PreferClose"}),
        ),
        (
            json!({"spec": {"sessionAffinity": "ClientIP"}}),
            json!({"affinity": {"ClientIp": {"timeout": {"secs": 10800, "nanos": 0}}}}),
        ),
        (
            json!({"spec": {"sessionAffinity": "ClientIP",
                            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 30}}}}),
            json!({"affinity": {"ClientIp": {"timeout": {"secs": 30, "nanos": 0}}}}),
        ),
        (
            json!({"spec": {"externalIPs": ["192.0.2.1"], "loadBalancerSourceRanges": [" 198.51.100.0/24 "]}}),
            json!({"external_addresses": ["192.0.2.1"], "source_ranges": ["198.51.100.0/24"]}),
        ),
        (
            json!({"status": {"loadBalancer": {"ingress": [
                {"ip": "192.0.2.9"}, {"hostname": "lb.example.com"}, {"ip": "192.0.2.8", "ipMode": "Proxy"}]}}}),
            json!({"load_balancer": [{"address": "192.0.2.9", "proxied": false},
                                     {"address": "192.0.2.8", "proxied": true}]}),
        ),
        (
            json!({"metadata": {"labels": {"app": "web", "service.kubernetes.io/service-proxy-name": "other"}}}),
            json!({"proxy_labels": {"service.kubernetes.io/service-proxy-name": "other"}}),
        ),
        (
            json!({"spec": {"ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053},
                                      {"name": "s", "port": 132, "protocol": "SCTP"}, {"name": "t", "port": 1}]}}),
            json!({"ports": [
                {"name": "", "protocol": "UDP", "port": 53, "node_port": 30053, "app_protocol": null},
                {"name": "s", "protocol": "SCTP", "port": 132, "node_port": null, "app_protocol": null},
                {"name": "t", "protocol": "TCP", "port": 1, "node_port": null, "app_protocol": null}]}),
        ),
    ];
    for (edit, expected) in rows {
        check_service(edit, expected, &[]);
    }
}

#[test]
fn hostile_services_lose_only_what_is_wrong() {
    let rows: [(Value, Value, &[&str]); 13] = [
        (
            json!({"spec": {"ports": [{"port": 0}, {"port": 70000}, {"port": -1}, {"port": 443}]}}),
            json!({"ports": [{"name": "", "protocol": "TCP", "port": 443, "node_port": null, "app_protocol": null}]}),
            &[
                "Service default/web: spec.ports[0].port: 0 is not a port number (1 to 65535)",
                "Service default/web: spec.ports[1].port: 70000 is not a port number (1 to 65535)",
                "Service default/web: spec.ports[2].port: -1 is not a port number (1 to 65535)",
            ],
        ),
        (
            json!({"spec": {"ports": [{"port": 1, "protocol": "ICMP"}]}}),
            json!({"ports": []}),
            &["Service default/web: spec.ports[0].protocol: \"ICMP\" is not TCP, UDP or SCTP"],
        ),
        (
            json!({"spec": {"ports": [{"name": "http", "port": 80}, {"name": "again", "port": 80}]}}),
            json!({}),
            &["Service default/web: spec.ports[1]: 80/TCP is there already"],
        ),
        (
            json!({"spec": {"ports": [{"name": "http", "port": 80, "nodePort": 65536}]}}),
            json!({}),
            &["Service default/web: spec.ports[0].nodePort: 65536 is not a port number (1 to 65535)"],
        ),
        (
            json!({"spec": {"ports": "eighty"}}),
            json!("invalid"),
            &["Service default/web: invalid type: string \"eighty\", expected a sequence"],
        ),
        (
            json!({"spec": {"clusterIPs": ["10.96.0.007"]}}),
            json!({"kind": {"ClusterIp": {"addresses": []}}}),
            &["Service default/web: spec.clusterIPs[0]: \"10.96.0.007\" is not an IP address"],
        ),
        (
            json!({"spec": {"clusterIPs": ["127.0.0.1", "::ffff:10.0.0.1", "10.96.0.8", "10.96.0.9"]}}),
            json!({"kind": {"ClusterIp": {"addresses": ["10.96.0.8"]}}}),
            &[
                "Service default/web: spec.clusterIPs[0]: 127.0.0.1 is a loopback address",
                "Service default/web: spec.clusterIPs[1]: ::ffff:10.0.0.1 is an IPv4-mapped IPv6 address",
                "Service default/web: spec.clusterIPs[3]: 10.96.0.9 is the second address of its family",
            ],
        ),
        (
            json!({"spec": {"externalIPs": ["169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255", "x"]}}),
            json!({}),
            &[
                "Service default/web: spec.externalIPs[0]: 169.254.169.254 is a link-local address",
                "Service default/web: spec.externalIPs[1]: 0.0.0.0 is the unspecified address",
                "Service default/web: spec.externalIPs[2]: 224.0.0.1 is a multicast address",
                "Service default/web: spec.externalIPs[3]: 255.255.255.255 is the broadcast address",
                "Service default/web: spec.externalIPs[4]: \"x\" is not an IP address",
            ],
        ),
        (
            json!({"spec": {"loadBalancerSourceRanges": ["10.0.0.0/8", "10.0.0.0/33"]}}),
            json!("invalid"),
            &[
                "Service default/web: spec.loadBalancerSourceRanges[1]: \"10.0.0.0/33\" is not a network like 10.0.0.0/8",
            ],
        ),
        (
            json!({"spec": {"type": "ExternalName"}}),
            json!("invalid"),
            &["Service default/web: spec.externalName: is missing"],
        ),
        (
            json!({"spec": {"type": "Teleport"}}),
            json!("invalid"),
            &["Service default/web: spec.type: \"Teleport\" is not a type of Service"],
        ),
        (
            json!({"spec": null}),
            json!("invalid"),
            &["Service default/web: spec: is missing"],
        ),
        (
            json!({"metadata": {"name": "a\u{1b}[2J"}}),
            json!("invalid"),
            &["Service default/a\\u{1b}[2J: metadata.name: \"a\\u{1b}[2J\" is not an object's name"],
        ),
    ];
    for (edit, expected, faults) in rows {
        check_service(edit, expected, faults);
    }
}

#[test]
fn an_object_without_a_name_or_namespace_is_refused_and_not_fatal() {
    let rows = [
        (json!({}), "Service : metadata.name: \"\" is not an object's name"),
        (
            json!("text"),
            "Service : metadata.name: \"\" is not an object's name",
        ),
        (
            json!({"metadata": {"name": "web"}}),
            "Service web: metadata.namespace: \"\" is not a namespace's name",
        ),
        (
            json!({"metadata": {"name": "web", "namespace": "a/b"}}),
            "Service a/b/web: metadata.namespace: \"a/b\" is not a namespace's name",
        ),
    ];
    for (object, fault) in rows {
        assert_eq!(
            parse::<core::Service>(object),
            (Converted::Invalid, vec![fault.to_owned()])
        );
    }
}

fn slice(edit: Value) -> Value {
    let base = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    });
    merged(base, &edit)
}

#[track_caller]
fn check_slice(edit: Value, expected: Value, faults: &[&str]) {
    let (converted, found) = parse::<discovery::EndpointSlice>(slice(edit.clone()));
    let empty = json!({
        "name": {"namespace": "default", "name": "web-1"}, "service": "web", "family": "V4",
        "endpoints": [], "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    });
    let expected = if expected.is_string() {
        expected
    } else {
        merged(empty, &expected)
    };
    assert_eq!(as_json(converted), expected, "for {edit}");
    assert_eq!(found, faults, "for {edit}");
}

/// An endpoint of the model as JSON, ready at `address` unless the edit says otherwise.
fn endpoint(address: &str, edit: Value) -> Value {
    let base = json!({
        "address": address, "conditions": {"ready": true, "serving": true, "terminating": false},
        "node": null, "zone": null, "hostname": null, "pod": null, "hinted_zones": [], "hinted_nodes": [],
    });
    merged(base, &edit)
}

#[test]
fn slices_are_taken_with_the_defaults_of_absent_conditions() {
    let conditions = |ready: bool, serving: bool, terminating: bool| json!({"conditions": {"ready": ready, "serving": serving, "terminating": terminating}});
    let rows = [
        (
            json!({}),
            json!({"ready": true, "serving": true, "terminating": false}),
        ),
        (
            json!({"ready": false}),
            conditions(false, false, false)["conditions"].clone(),
        ),
        (
            json!({"ready": false, "serving": true, "terminating": true}),
            conditions(false, true, true)["conditions"].clone(),
        ),
        (
            json!({"ready": null, "serving": null, "terminating": null}),
            conditions(true, true, false)["conditions"].clone(),
        ),
    ];
    for (given, effective) in rows {
        check_slice(
            json!({"endpoints": [{"addresses": ["10.244.1.2"], "conditions": given}]}),
            json!({"endpoints": [endpoint("10.244.1.2", json!({"conditions": effective}))]}),
            &[],
        );
    }
}

#[test]
fn slices_with_every_field_are_understood() {
    check_slice(
        json!({"endpoints": [{
            "addresses": ["10.244.1.2", "10.244.1.3"], "nodeName": "node-1", "zone": "a", "hostname": "web-0",
            "targetRef": {"kind": "Pod", "name": "web-0"},
            "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "node-1"}]}}]}),
        json!({"endpoints": [endpoint("10.244.1.2", json!({
            "node": "node-1", "zone": "a", "hostname": "web-0",
            "pod": {"namespace": "default", "name": "web-0"}, "hinted_zones": ["a"], "hinted_nodes": ["node-1"]}))]}),
        &[],
    );
    check_slice(
        json!({"addressType": "IPv6", "endpoints": [{"addresses": ["fd00::1"], "targetRef": {"kind": "Node", "name": "n"}}]}),
        json!({"family": "V6", "endpoints": [endpoint("fd00::1", json!({}))]}),
        &[],
    );
    // A port without number means all ports: nothing to program, and no fault.
    check_slice(json!({"ports": [{"name": "all"}]}), json!({"ports": []}), &[]);
    check_slice(
        json!({"ports": null, "endpoints": null}),
        json!({"ports": []}),
        &[],
    );
}

#[test]
fn the_moment_that_a_slice_was_written_for_is_read_and_one_that_makes_no_sense_is_a_fault() {
    let annotation = "endpoints.kubernetes.io/last-change-trigger-time";
    let fault = |text| format!("metadata.annotations[{annotation}]: {text:?} is not a time of this epoch");
    let rows = [
        ("1970-01-01T00:00:01Z", Ok(Duration::from_secs(1))),
        ("1970-01-01T01:00:01.000000002+01:00", Ok(Duration::new(1, 2))),
        ("1969-12-31T23:59:59Z", Err(fault("1969-12-31T23:59:59Z"))),
        ("yesterday", Err(fault("yesterday"))),
    ];
    for (text, expected) in rows {
        let object = slice(json!({"metadata": {"annotations": {annotation: text}}}));
        let (converted, faults) = parse::<discovery::EndpointSlice>(object);
        let Converted::Put(change) = converted else {
            panic!("{faults:?}")
        };
        let Change::EndpointSlice(slice) = *change else {
            panic!("{change:?} is no EndpointSlice")
        };
        assert_eq!(
            slice.last_change,
            expected.clone().ok().map(UnixTime),
            "for {text}"
        );
        let told = faults
            .iter()
            .any(|told| expected.as_ref().is_err_and(|fault| told.ends_with(fault)));
        assert_eq!(told, expected.is_err(), "{faults:?} for {text}");
    }
}

#[test]
fn slices_that_are_no_matter_of_a_data_plane_are_left_out_without_a_fault() {
    check_slice(json!({"addressType": "FQDN"}), json!("irrelevant"), &[]);
    check_slice(
        json!({"metadata": {"labels": {"kubernetes.io/service-name": ""}}}),
        json!("irrelevant"),
        &[],
    );
    check_slice(json!({"metadata": {"labels": null}}), json!("irrelevant"), &[]);
}

#[test]
fn hostile_slices_lose_only_what_is_wrong() {
    let fault = |rest: &str| format!("EndpointSlice default/web-1: {rest}");
    let good = endpoint("10.244.1.2", json!({}));
    let rows = [
        ("127.0.0.1", "127.0.0.1 is a loopback address"),
        ("169.254.169.254", "169.254.169.254 is a link-local address"),
        ("::1", "::1 is a loopback address"),
        ("fd00::1", "fd00::1 is not of the slice's address type"),
        ("10.244.1.2.3", "\"10.244.1.2.3\" is not an IP address"),
        ("web.example.com", "\"web.example.com\" is not an IP address"),
        ("", "\"\" is not an IP address"),
    ];
    for (address, reason) in rows {
        check_slice(
            json!({"endpoints": [{"addresses": [address]}, {"addresses": ["10.244.1.2"]}]}),
            json!({"endpoints": [good]}),
            &[&fault(&format!("endpoints[0].addresses[0]: {reason}"))],
        );
    }
    check_slice(
        json!({"endpoints": [{"addresses": []}, {"addresses": ["10.244.1.2"]}]}),
        json!({"endpoints": [good]}),
        &[&fault("endpoints[0].addresses: is empty")],
    );
    check_slice(
        json!({"ports": [{"port": 70000}, {"port": 0}, {"port": 1, "protocol": "QUIC"}]}),
        json!({"ports": []}),
        &[
            &fault("ports[0].port: 70000 is not a port number (1 to 65535)"),
            &fault("ports[1].port: 0 is not a port number (1 to 65535)"),
            &fault("ports[2].protocol: \"QUIC\" is not TCP, UDP or SCTP"),
        ],
    );
    check_slice(
        json!({"addressType": "IPX"}),
        json!("invalid"),
        &[&fault("addressType: \"IPX\" is not IPv4, IPv6 or FQDN")],
    );
    check_slice(
        json!({"ports": [{"port": 99_999_999_999_i64}]}),
        json!("invalid"),
        &[&fault("invalid value: integer `99999999999`, expected i32")],
    );
}

#[test]
fn nodes_namespaces_and_service_cidrs_are_reduced_to_their_place_in_the_network() {
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": "node-1", "labels": {"topology.kubernetes.io/zone": "a"},
            "annotations": {"flannel.alpha.coreos.com/public-ip": "172.30.0.11", "example.com/public-ip": "no"}},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "nonsense"],
                 "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]},
        "status": {"conditions": [
            {"type": "Ready", "status": "True"}, {"type": "NetworkUnavailable", "status": "False"}], "addresses": [
            {"type": "Hostname", "address": "node-1"}, {"type": "InternalIP", "address": "172.30.0.11"},
            {"type": "InternalIP", "address": "127.0.0.1"}, {"type": "ExternalIP", "address": "192.0.2.11"}]},
    });
    let expected = Node {
        name: "node-1".into(),
        internal_addresses: vec![[172, 30, 0, 11].into()],
        external_addresses: vec![[192, 0, 2, 11].into()],
        pod_cidrs: vec!["10.244.1.0/24".parse().expect("valid")],
        zone: Some("a".into()),
        flannel: [("public-ip".into(), "172.30.0.11".into())].into(),
        network_available: true,
        taints: vec!["ToBeDeletedByClusterAutoscaler".into()],
        draining: true,
    };
    let faults = [
        "Node node-1: status.addresses[2].address: 127.0.0.1 is a loopback address",
        "Node node-1: spec.podCIDRs[1]: \"nonsense\" is not a network like 10.0.0.0/8",
    ];
    assert_eq!(
        parse::<core::Node>(node),
        (
            Converted::Put(Box::new(Change::Node(expected))),
            faults.map(str::to_owned).to_vec()
        )
    );
    assert_eq!(
        parse::<core::Namespace>(json!({"metadata": {"name": "default"}})),
        (
            Converted::Put(Box::new(Change::Namespace(Namespace {
                name: "default".into()
            }))),
            vec![]
        )
    );
    let cidr = json!({
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.10/12", "fd00:96::/108", "10.96.0.0"]},
    });
    let networks = ["10.96.0.0/12", "fd00:96::/108"].map(|network| network.parse().expect("valid"));
    assert_eq!(
        parse::<networking::ServiceCIDR>(cidr),
        (
            Converted::Put(Box::new(Change::ServiceCidr(ServiceCidr {
                name: "kubernetes".into(),
                networks: networks.into(),
            }))),
            vec![
                "ServiceCIDR kubernetes: spec.cidrs[2]: \"10.96.0.0\" is not a network like 10.0.0.0/8"
                    .to_owned()
            ]
        )
    );
}
