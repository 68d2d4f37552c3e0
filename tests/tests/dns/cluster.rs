//! The cluster that is asked about: one object for each rule.

use serde_json::{Value, json};
use tests::fake_api::FakeApi;

/// Name, protocol, number; an empty name is none.
type Port = (&'static str, &'static str, u16);

const HTTP: &[Port] = &[("http", "TCP", 80)];
const WEB: &[Port] = &[("http", "TCP", 80), ("https", "TCP", 443)];

pub fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"name": name}}})
}

fn ports(ports: &[Port]) -> Vec<Value> {
    let ports = ports.iter().map(|(name, protocol, number)| match *name {
        "" => json!({"protocol": protocol, "port": number}),
        name => json!({"name": name, "protocol": protocol, "port": number}),
    });
    ports.collect()
}

fn service(namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
        "spec": spec,
    })
}

pub fn cluster_ip(namespace: &str, name: &str, addresses: &[&str], own: &[Port]) -> Value {
    let spec = json!({
        "type": "ClusterIP", "clusterIP": addresses[0], "clusterIPs": addresses, "ports": ports(own),
    });
    service(namespace, name, spec)
}

pub fn headless(namespace: &str, name: &str, own: &[Port]) -> Value {
    cluster_ip(namespace, name, &["None"], own)
}

pub fn external(namespace: &str, name: &str, target: &str) -> Value {
    service(
        namespace,
        name,
        json!({"type": "ExternalName", "externalName": target}),
    )
}

/// `entries`: endpoints as [`endpoint`] and its like make them, all of one family.
pub fn slice(namespace: &str, name: &str, of: &str, own: &[Port], entries: Vec<Value>) -> Value {
    let is_v6 = entries.iter().any(|entry| {
        entry["addresses"][0]
            .as_str()
            .is_some_and(|text| text.contains(':'))
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace, "name": name,
            "labels": {"kubernetes.io/service-name": of, "app": of},
        },
        "addressType": if is_v6 { "IPv6" } else { "IPv4" },
        "endpoints": entries, "ports": ports(own),
    })
}

/// One that is ready.
pub fn endpoint(address: &str) -> Value {
    json!({"addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false}})
}

fn unready(address: &str) -> Value {
    json!({"addresses": [address], "conditions": {"ready": false, "serving": false, "terminating": false}})
}

fn named(hostname: &str, address: &str) -> Value {
    let mut endpoint = endpoint(address);
    endpoint["hostname"] = hostname.into();
    endpoint
}

fn of_pod(pod: &str, address: &str) -> Value {
    let mut endpoint = endpoint(address);
    endpoint["targetRef"] = json!({"kind": "Pod", "name": pod, "namespace": "testns"});
    endpoint
}

fn pod(namespace: &str, name: &str, phase: &str, addresses: &[&str]) -> Value {
    let all: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name},
        "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": phase, "podIP": addresses.first(), "podIPs": all},
    })
}

fn terminating_pod() -> Value {
    let mut pod = pod("testns", "leaving", "Running", &["172.0.0.61"]);
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    pod
}

/// An API server with every object.
pub fn api() -> FakeApi {
    let api = FakeApi::start().expect("loopback is there");
    for object in objects() {
        api.put(object);
    }
    api
}

fn objects() -> Vec<Value> {
    let mut objects: Vec<Value> = ["default", "testns", "otherns", "emptyns", "kube-system"]
        .map(namespace)
        .into();
    objects.extend(services_with_addresses());
    objects.extend(headless_services());
    objects.extend(external_names());
    objects.extend([
        pod("testns", "web-0", "Running", &["172.0.0.3"]),
        pod("testns", "dual-pod", "Running", &["172.0.0.50", "5678:abcd::50"]),
        pod("testns", "ended", "Succeeded", &["172.0.0.60"]),
        pod("testns", "pending", "Pending", &[]),
        pod("otherns", "other", "Running", &["172.0.0.70"]),
        terminating_pod(),
    ]);
    objects
}

fn services_with_addresses() -> Vec<Value> {
    let mut node_port = cluster_ip("testns", "node-port", &["10.0.0.7"], HTTP);
    node_port["spec"]["type"] = "NodePort".into();
    node_port["spec"]["ports"][0]["nodePort"] = 30_080.into();
    let mut balancer = cluster_ip("testns", "balancer", &["10.0.0.8"], HTTP);
    balancer["spec"]["type"] = "LoadBalancer".into();
    balancer["spec"]["externalIPs"] = json!(["198.51.100.2"]);
    balancer["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}});
    // A server before 1.20.
    let mut old = cluster_ip("testns", "old", &["10.0.0.12"], HTTP);
    old["spec"]
        .as_object_mut()
        .expect("an object")
        .remove("clusterIPs");
    let dns: &[Port] = &[
        ("dns", "UDP", 53),
        ("dns-tcp", "TCP", 53),
        ("metrics", "TCP", 9153),
    ];
    let protocols: &[Port] = &[("sig", "TCP", 1), ("media", "UDP", 2), ("m3ua", "SCTP", 2905)];
    vec![
        cluster_ip("testns", "svc1", &["10.0.0.1"], HTTP),
        slice(
            "testns",
            "svc1-a",
            "svc1",
            HTTP,
            vec![of_pod("svc1-pod", "172.0.0.1")],
        ),
        cluster_ip("testns", "two-ports", &["10.0.0.2"], WEB),
        cluster_ip("testns", "unnamed", &["10.0.0.3"], &[("", "TCP", 8080)]),
        cluster_ip("testns", "svc6", &["1234:abcd::1"], HTTP),
        slice("testns", "svc6-a", "svc6", HTTP, vec![endpoint("5678:abcd::6")]),
        cluster_ip("testns", "dual", &["10.0.0.4", "1234:abcd::4"], HTTP),
        slice("testns", "dual-a", "dual", HTTP, vec![endpoint("172.0.0.90")]),
        slice("testns", "dual-b", "dual", HTTP, vec![endpoint("5678:abcd::90")]),
        cluster_ip("testns", "dual6", &["1234:abcd::5", "10.0.0.14"], HTTP),
        cluster_ip("testns", "no-endpoints", &["10.0.0.5"], HTTP),
        cluster_ip("testns", "unready", &["10.0.0.6"], HTTP),
        slice(
            "testns",
            "unready-a",
            "unready",
            HTTP,
            vec![unready("172.0.0.91")],
        ),
        node_port,
        balancer,
        old,
        cluster_ip("testns", "1digit", &["10.0.0.9"], HTTP),
        cluster_ip("testns", "protocols", &["10.0.0.11"], protocols),
        cluster_ip("testns", "svc", &["10.0.0.13"], HTTP),
        cluster_ip("otherns", "svc1", &["10.0.1.1"], HTTP),
        slice("otherns", "svc1-a", "svc1", HTTP, vec![endpoint("172.0.0.1")]),
        cluster_ip("kube-system", "kube-dns", &["10.0.0.10"], dns),
    ]
}

fn headless_services() -> Vec<Value> {
    let without_conditions = json!({"addresses": ["172.0.0.8"]});
    let terminating = json!({
        "addresses": ["172.0.0.31"], "conditions": {"ready": false, "serving": true, "terminating": true},
    });
    let published = json!({
        "addresses": ["172.0.0.32"], "conditions": {"ready": true, "serving": false, "terminating": true},
    });
    let many = |network: u8, count: u8| -> Vec<Value> {
        (1..=count)
            .map(|n| endpoint(&format!("10.244.{network}.{n}")))
            .collect()
    };
    let mut fqdn = slice("testns", "fqdn-a", "hdls-fqdn", HTTP, vec![endpoint("x.example")]);
    fqdn["addressType"] = "FQDN".into();
    let dns: &[Port] = &[("dns", "UDP", 53), ("dns-tcp", "TCP", 53)];
    let mut publishes = headless("testns", "hdls-published", HTTP);
    publishes["spec"]["publishNotReadyAddresses"] = true.into();
    let hdls1 = vec![
        endpoint("172.0.0.2"),
        of_pod("web-0", "172.0.0.3"),
        named("dup-name", "172.0.0.4"),
        named("dup-name", "172.0.0.5"),
        unready("172.0.0.6"),
        without_conditions,
    ];
    vec![
        headless("testns", "hdls1", HTTP),
        slice("testns", "hdls1-a", "hdls1", HTTP, hdls1),
        slice(
            "testns",
            "hdls1-6",
            "hdls1",
            HTTP,
            vec![endpoint("5678:abcd::1"), endpoint("5678:abcd::")],
        ),
        headless("testns", "hdls-skewed", HTTP),
        slice(
            "testns",
            "skewed-a",
            "hdls-skewed",
            HTTP,
            vec![endpoint("172.0.0.33")],
        ),
        slice(
            "testns",
            "skewed-b",
            "hdls-skewed",
            HTTP,
            vec![endpoint("172.0.0.33")],
        ),
        headless("testns", "hdls-portless", &[]),
        slice(
            "testns",
            "portless",
            "hdls-portless",
            &[],
            vec![endpoint("172.0.0.20")],
        ),
        headless("testns", "hdls-unready", HTTP),
        slice(
            "testns",
            "unready",
            "hdls-unready",
            HTTP,
            vec![unready("172.0.0.30")],
        ),
        headless("testns", "hdls-terminating", HTTP),
        slice(
            "testns",
            "terminating",
            "hdls-terminating",
            HTTP,
            vec![terminating],
        ),
        publishes,
        slice("testns", "published", "hdls-published", HTTP, vec![published]),
        headless("testns", "hdls-none", HTTP),
        headless("testns", "hdls-fqdn", HTTP),
        fqdn,
        headless("testns", "hdls-two-ports", WEB),
        slice(
            "testns",
            "two-ports",
            "hdls-two-ports",
            WEB,
            vec![named("a", "172.0.0.40"), named("b", "172.0.0.41")],
        ),
        headless("testns", "hdls-unnamed", &[("", "TCP", 7000)]),
        slice(
            "testns",
            "unnamed",
            "hdls-unnamed",
            &[("", "TCP", 7000)],
            vec![endpoint("172.0.0.42")],
        ),
        headless("testns", "hdls-dns", dns),
        slice(
            "testns",
            "dns",
            "hdls-dns",
            dns,
            vec![named("ns-0", "172.0.0.43")],
        ),
        headless("testns", "hdls-dual", HTTP),
        slice(
            "testns",
            "dual-4",
            "hdls-dual",
            HTTP,
            vec![named("host", "172.0.0.50")],
        ),
        slice(
            "testns",
            "dual-6",
            "hdls-dual",
            HTTP,
            vec![named("host", "5678:abcd::50")],
        ),
        headless("testns", "hdls-three", HTTP),
        slice("testns", "three", "hdls-three", HTTP, many(3, 3)),
        headless("testns", "hdls-120", HTTP),
        slice("testns", "hundred-and-twenty", "hdls-120", HTTP, many(120, 120)),
        headless("testns", "hdls-200", HTTP),
        slice("testns", "two-hundred", "hdls-200", HTTP, many(200, 200)),
    ]
}

fn external_names() -> Vec<Value> {
    let mut objects = vec![
        external("testns", "external", "ext.interwebs.test"),
        external("testns", "external-dot", "dot.interwebs.test."),
        external("testns", "external-internal", "svc1.testns.svc.cluster.local"),
        external("testns", "external-v6", "svc6.testns.svc.cluster.local"),
        external(
            "testns",
            "external-headless",
            "hdls-three.testns.svc.cluster.local",
        ),
        external(
            "testns",
            "external-endpoint",
            "a.hdls-two-ports.testns.svc.cluster.local",
        ),
        external(
            "testns",
            "external-chain",
            "external-internal.testns.svc.cluster.local",
        ),
        external("testns", "external-none", "nosvc.testns.svc.cluster.local"),
        external("testns", "external-ip", "10.9.8.7"),
        external("testns", "external-ip6", "fd00::1"),
        external("testns", "external-pod", "172-0-0-3.testns.pod.cluster.local"),
        external("testns", "loop-self", "loop-self.testns.svc.cluster.local"),
        external("testns", "loop-a", "loop-b.testns.svc.cluster.local"),
        external("testns", "loop-b", "loop-a.testns.svc.cluster.local"),
        external("otherns", "external", "svc1.testns.svc.cluster.local"),
    ];
    objects.extend((0..12).map(|n| {
        let next = format!("chain-{}.testns.svc.cluster.local", n + 1);
        external("testns", &format!("chain-{n}"), &next)
    }));
    objects.push(external("testns", "chain-12", "svc1.testns.svc.cluster.local"));
    objects
}
