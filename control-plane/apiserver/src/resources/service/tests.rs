//! Defaults and rules, as rows: what a user wrote, and what is said to it.

use super::*;

fn told(judge: impl FnOnce(&mut Errors)) -> Vec<String> {
    let mut errors = Errors::default();
    judge(&mut errors);
    let found = errors.into_result().err().unwrap_or_default();
    found.iter().map(ToString::to_string).collect()
}

fn defaulted(spec: Value) -> Value {
    let mut service = json!({ "spec": spec });
    defaults(&mut service);
    crate::services::align_cluster_ips(&mut service, None);
    service
}

#[track_caller]
fn check(spec: Value, expected: &[&str]) {
    let service = defaulted(spec);
    assert_eq!(told(|errors| validate(&service, errors)), expected);
}

/// A Service with one port and `more`.
#[track_caller]
fn check_with(more: Value, expected: &[&str]) {
    let mut spec = json!({ "ports": [{ "port": 80 }] });
    json_patch::merge(&mut spec, &more);
    check(spec, expected);
}

#[test]
fn services_are_judged_in_the_words_of_upstream() {
    check(json!({ "ports": [{ "port": 80 }] }), &[]);
    check(json!({ "clusterIP": "None" }), &[]);
    check(
        json!({ "type": "ExternalName", "externalName": "example.com." }),
        &[],
    );
    check(json!({}), &["spec.ports: Required value"]);
    check_with(
        json!({ "type": "Nodeport" }),
        &[
            "spec.type: Unsupported value: \"Nodeport\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ],
    );
    check(
        json!({ "type": "ExternalName", "clusterIP": "10.96.0.9", "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"] }),
        &[
            "spec.clusterIPs: Forbidden: may not be set for ExternalName services",
            "spec.ipFamilies: Forbidden: may not be set for ExternalName services",
            "spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services",
            "spec.externalName: Required value",
        ],
    );
    for kind in ["NodePort", "LoadBalancer"] {
        check_with(
            json!({ "type": kind, "clusterIP": "None" }),
            &[&format!(
                "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for {kind} services"
            )],
        );
    }
}

#[test]
fn ports_are_one_per_protocol_and_have_names_where_there_are_several() {
    check(
        json!({ "ports": [{ "port": 0, "targetPort": 1 }] }),
        &["spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"],
    );
    check(
        json!({ "ports": [{ "port": 1 }, { "port": 2 }] }),
        &[
            "spec.ports[0].name: Required value",
            "spec.ports[1].name: Required value",
        ],
    );
    check(
        json!({ "ports": [{ "name": "a", "port": 1 }, { "name": "a", "port": 2 }] }),
        &["spec.ports[1].name: Duplicate value: \"a\""],
    );
    check_with(
        json!({ "ports": [{ "port": 1, "nodePort": 30001 }] }),
        &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
    );
    let ports = |protocols: [&str; 3]| {
        let port = |(index, protocol): (usize, &&str)| json!({ "name": format!("p{index}"), "port": 53, "protocol": protocol, "nodePort": 30053 });
        let ports: Vec<Value> = protocols.iter().enumerate().map(port).collect();
        json!({ "type": "NodePort", "ports": ports })
    };
    check(ports(["TCP", "UDP", "SCTP"]), &[]);
    check(
        ports(["TCP", "UDP", "TCP"]),
        &[
            "spec.ports[2].nodePort: Duplicate value: 30053",
            "spec.ports[2]: Duplicate value: {\"port\":53,\"protocol\":\"TCP\"}",
        ],
    );
    check(
        json!({ "ports": [{ "port": 80, "protocol": "HTTP" }] }),
        &[
            "spec.ports[0].protocol: Unsupported value: \"HTTP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ],
    );
}

#[test]
fn affinity_lasts_three_hours_unless_told_otherwise_and_a_day_at_most() {
    for (spec, config) in [
        (json!({}), Value::Null),
        (
            json!({ "sessionAffinity": "None", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 5 } } }),
            Value::Null,
        ),
        (
            json!({ "sessionAffinity": "ClientIP" }),
            json!({ "clientIP": { "timeoutSeconds": 10800 } }),
        ),
        (
            json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": {} } }),
            json!({ "clientIP": { "timeoutSeconds": 10800 } }),
        ),
        (
            json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 5 } } }),
            json!({ "clientIP": { "timeoutSeconds": 5 } }),
        ),
    ] {
        assert_eq!(
            defaulted(spec.clone()).at("spec.sessionAffinityConfig"),
            &config,
            "{spec}"
        );
    }
    check_with(
        json!({ "sessionAffinity": "Cookie" }),
        &["spec.sessionAffinity: Unsupported value: \"Cookie\": supported values: \"ClientIP\", \"None\""],
    );
    let lasting = |seconds: i64| json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": seconds } } });
    check_with(lasting(1), &[]);
    check_with(lasting(86_400), &[]);
    for seconds in [0, -1, 86_401] {
        check_with(
            lasting(seconds),
            &[&format!(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: {seconds}: must be greater than 0 and less than 86400"
            )],
        );
    }
}

#[test]
fn policies_default_to_the_whole_cluster_where_they_apply() {
    for (spec, internal, external) in [
        (json!({}), json!("Cluster"), Value::Null),
        (
            json!({ "externalIPs": ["192.0.2.1"] }),
            json!("Cluster"),
            json!("Cluster"),
        ),
        (json!({ "type": "NodePort" }), json!("Cluster"), json!("Cluster")),
        (
            json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local" }),
            json!("Local"),
            json!("Local"),
        ),
        (json!({ "type": "ExternalName" }), Value::Null, Value::Null),
    ] {
        let service = defaulted(spec.clone());
        let policies = (
            service.at("spec.internalTrafficPolicy"),
            service.at("spec.externalTrafficPolicy"),
        );
        assert_eq!(policies, (&internal, &external), "{spec}");
    }
    check_with(
        json!({ "externalTrafficPolicy": "Local" }),
        &[
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
        ],
    );
    check_with(
        json!({ "externalTrafficPolicy": "Local", "externalIPs": ["192.0.2.1"] }),
        &[],
    );
    check_with(
        json!({ "type": "NodePort", "externalTrafficPolicy": "Global", "internalTrafficPolicy": "Node" }),
        &[
            "spec.externalTrafficPolicy: Unsupported value: \"Global\": supported values: \"Cluster\", \"Local\"",
            "spec.internalTrafficPolicy: Unsupported value: \"Node\": supported values: \"Cluster\", \"Local\"",
        ],
    );
}

#[test]
fn traffic_distribution_is_one_of_three_wishes() {
    for wish in ["PreferClose", "PreferSameZone", "PreferSameNode"] {
        check_with(json!({ "trafficDistribution": wish }), &[]);
    }
    for bad in ["PreferFar", ""] {
        check_with(
            json!({ "trafficDistribution": bad }),
            &[&format!(
                "spec.trafficDistribution: Unsupported value: {bad:?}: supported values: \"PreferClose\", \"PreferSameNode\", \"PreferSameZone\""
            )],
        );
    }
}

#[test]
fn external_ips_are_addresses_that_mean_the_same_to_all() {
    check_with(json!({ "externalIPs": ["192.0.2.1", "2001:db8::1"] }), &[]);
    for (ip, complaint) in [
        (
            "web",
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        ("0.0.0.0", "may not be unspecified (0.0.0.0)"),
        ("::", "may not be unspecified (::)"),
        (
            "127.0.0.1",
            "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        ("::1", "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        (
            "169.254.169.254",
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        ),
        (
            "fe80::1",
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        ),
        (
            "224.0.0.1",
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        ),
        (
            "ff02::1",
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        ),
    ] {
        check_with(
            json!({ "externalIPs": ["192.0.2.1", ip] }),
            &[&format!(
                "spec.externalIPs[1]: Invalid value: \"{ip}\": {complaint}"
            )],
        );
    }
}

#[test]
fn cluster_ips_and_families_fit_each_other() {
    check_with(
        json!({ "clusterIPs": ["10.96.0.9"] }),
        &["spec.clusterIPs: Invalid value: [\"10.96.0.9\"]: must be empty when `clusterIP` is not specified"],
    );
    check_with(
        json!({ "clusterIP": "10.96.0.8", "clusterIPs": ["10.96.0.9"] }),
        &["spec.clusterIPs: Invalid value: [\"10.96.0.9\"]: first value must match `clusterIP`"],
    );
    check_with(
        json!({ "clusterIP": "web" }),
        &[
            "spec.clusterIPs[0]: Invalid value: \"web\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ],
    );
    check_with(
        json!({ "clusterIP": "None", "clusterIPs": ["None", "10.96.0.9"] }),
        &[
            "spec.clusterIPs: Invalid value: [\"None\",\"10.96.0.9\"]: 'None' must be the first and only value",
        ],
    );
    check_with(
        json!({ "clusterIP": "10.96.0.8", "clusterIPs": ["10.96.0.8", "10.96.0.9"] }),
        &[
            "spec.clusterIPs: Invalid value: [\"10.96.0.8\",\"10.96.0.9\"]: may specify no more than one IP for each IP family",
        ],
    );
    check_with(
        json!({ "clusterIP": "10.96.0.8", "ipFamilies": ["IPv6"] }),
        &[
            "spec.clusterIPs[0]: Invalid value: \"10.96.0.8\": expected an IPv6 value as indicated by `ipFamilies[0]`",
        ],
    );
    check_with(
        json!({ "ipFamilies": ["IPv4", "IPv4"] }),
        &["spec.ipFamilies[1]: Duplicate value: \"IPv4\""],
    );
    check_with(
        json!({ "ipFamilies": ["IPX"] }),
        &["spec.ipFamilies[0]: Unsupported value: \"IPX\": supported values: \"IPv4\", \"IPv6\""],
    );
}

#[test]
fn what_load_balancers_have_is_theirs_alone() {
    let balancer = |more: Value| {
        let mut spec = json!({ "type": "LoadBalancer" });
        json_patch::merge(&mut spec, &more);
        spec
    };
    check_with(
        balancer(json!({
            "loadBalancerSourceRanges": ["10.0.0.0/8", " 2001:db8::/64 "], "loadBalancerClass": "example.com/class",
        })),
        &[],
    );
    check_with(
        balancer(json!({ "loadBalancerSourceRanges": ["10.0.0.0", "10.0.0.0/33"] })),
        &[
            "spec.LoadBalancerSourceRanges[0]: Invalid value: \"10.0.0.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            "spec.LoadBalancerSourceRanges[1]: Invalid value: \"10.0.0.0/33\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        ],
    );
    check_with(
        json!({
            "loadBalancerSourceRanges": ["10.0.0.0/8"], "allocateLoadBalancerNodePorts": true,
            "loadBalancerClass": "a",
        }),
        &[
            "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
            "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'",
            "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ],
    );
    check_with(
        balancer(json!({ "loadBalancerClass": "a b" })),
        &[
            "spec.loadBalancerClass: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
        ],
    );
}

#[test]
fn source_ranges_may_be_an_annotation() {
    let key = "service.beta.kubernetes.io/load-balancer-source-ranges";
    for (kind, text, expected) in [
        ("LoadBalancer", " 10.0.0.0/8, 192.0.2.0/24 ", vec![]),
        (
            "LoadBalancer",
            "10.0.0.0/8,web",
            vec![format!(
                "metadata.annotations[{key}]: Invalid value: \"web\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
            )],
        ),
        (
            "NodePort",
            "10.0.0.0/8",
            vec![format!(
                "metadata.annotations[{key}]: Forbidden: may only be used when `type` is 'LoadBalancer'"
            )],
        ),
    ] {
        let mut service = defaulted(json!({ "type": kind, "ports": [{ "port": 80 }] }));
        service["metadata"] = json!({ "annotations": { key: text } });
        assert_eq!(
            told(|errors| validate(&service, errors)),
            expected,
            "{kind} {text}"
        );
    }
}

#[track_caller]
fn check_status(kind: &str, ingress: Value, expected: Value, complaints: &[&str]) {
    let mut service =
        json!({ "spec": { "type": kind }, "status": { "loadBalancer": { "ingress": ingress } } });
    default_ip_modes(&mut service);
    assert_eq!(service.at("status.loadBalancer.ingress"), &expected);
    assert_eq!(told(|errors| validate_status(&service, errors)), complaints);
}

#[test]
fn a_load_balancers_status_tells_how_its_addresses_behave() {
    check_status(
        "LoadBalancer",
        json!([{ "ip": "192.0.2.1" }, { "ip": "192.0.2.2", "ipMode": "Proxy" }, { "hostname": "lb.example.com" }]),
        json!([
            { "ip": "192.0.2.1", "ipMode": "VIP" }, { "ip": "192.0.2.2", "ipMode": "Proxy" },
            { "hostname": "lb.example.com" },
        ]),
        &[],
    );
    let bad = json!([
        { "ip": "web", "ipMode": "VIP" }, { "ip": "192.0.2.1", "ipMode": "DSR" },
        { "hostname": "192.0.2.1" }, { "hostname": "lb", "ipMode": "VIP" },
    ]);
    check_status(
        "LoadBalancer",
        bad.clone(),
        bad,
        &[
            "status.loadBalancer.ingress[0].ip: Invalid value: \"web\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            "status.loadBalancer.ingress[1].ipMode: Unsupported value: \"DSR\": supported values: \"Proxy\", \"VIP\"",
            "status.loadBalancer.ingress[2].hostname: Invalid value: \"192.0.2.1\": must be a DNS name, not an IP address",
            "status.loadBalancer.ingress[3].ipMode: Forbidden: may not be specified when `ip` is not set",
        ],
    );
    check_status(
        "NodePort",
        json!([{ "ip": "192.0.2.1" }]),
        json!([{ "ip": "192.0.2.1" }]),
        &["status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is LoadBalancer"],
    );
    check_status("NodePort", json!([]), json!([]), &[]);
}

#[test]
fn both_topology_annotations_say_the_same() {
    let mut service = defaulted(json!({ "ports": [{ "port": 80 }] }));
    service["metadata"] = json!({ "annotations": { TOPOLOGY_MODE: "Auto", TOPOLOGY_HINTS: "Disabled" } });
    assert_eq!(
        told(|errors| validate(&service, errors)),
        [
            "metadata.annotations[service.kubernetes.io/topology-mode]: Invalid value: \"Auto\": must match annotations[service.kubernetes.io/topology-aware-hints] when both are specified"
        ]
    );
}
