//! Endpoints and EndpointSlices: those of controllers, and those that are written by hand.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tests::api::is_refused;
use tests::client::How::Tcp;
use tests::client::each;

use crate::namespace::{HTTP, Namespace, server};

/// EndpointSlice: should have Endpoints and EndpointSlices pointing to API Server \[Conformance\]
pub fn of_the_api_server(at: &Namespace<'_>) -> anyhow::Result<()> {
    let endpoints = at.api.read("/api/v1/namespaces/default/endpoints/kubernetes")?;
    let subsets = endpoints["subsets"].as_array().context("subsets")?;
    ensure!(!subsets.is_empty(), "{endpoints}");
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name%3D";
    let slices = at.api.read(&format!("{path}kubernetes"))?;
    let slice = &slices["items"][0];
    for subset in subsets {
        for address in subset["addresses"].as_array().into_iter().flatten() {
            let found = slice["endpoints"].as_array().into_iter().flatten();
            let mut found = found.flat_map(|endpoint| endpoint["addresses"].as_array().into_iter().flatten());
            ensure!(
                found.any(|other| *other == address["ip"]),
                "{address} is not in {slice}"
            );
        }
        ensure!(
            subset["ports"][0]["port"] == slice["ports"][0]["port"],
            "{subset} {slice}"
        );
    }
    Ok(())
}

/// EndpointSlice: should create and delete Endpoints and EndpointSlices for a Service with a selector specified
/// \[Conformance\]
pub fn come_and_go_with_the_service(at: &Namespace<'_>) -> anyhow::Result<()> {
    let service = at.service("empty", &json!({}))?;
    let endpoints = format!("{}/empty", at.collection("endpoints"));
    at.await_object(&endpoints, "it is there", |object| {
        object["subsets"].as_array().is_none_or(Vec::is_empty)
    });
    at.await_object(&slices_path(at, "empty"), "one slice that is managed", |list| {
        let slices = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let manager = "endpointslice.kubernetes.io/managed-by";
        slices.len() == 1
            && slices[0]["metadata"]["labels"][manager] == "endpointslice-controller.k8s.io"
            && slices[0]["metadata"]["ownerReferences"][0]["name"] == "empty"
    });
    service.remove()?;
    at.await_object(&slices_path(at, "empty"), "no slices", |list| {
        list["items"].as_array().is_some_and(Vec::is_empty)
    });
    at.await_gone(&endpoints);
    Ok(())
}

fn slices_path(at: &Namespace<'_>, service: &str) -> String {
    let collection = at.collection("endpointslices");
    format!("{collection}?labelSelector=kubernetes.io/service-name%3D{service}")
}

/// EndpointSlice: should create Endpoints and EndpointSlices for Pods matching a Service \[Conformance\]
pub fn say_where_pods_are(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.server("one", 0)?;
    let spec = json!({"containers": [server(9090, "/readyz")]});
    at.pod("two", 1, &spec)?;
    let addresses = [at.address("one"), at.address("two")];
    at.service("service", &json!({}))?;
    let wanted = [
        (addresses[0], HTTP),
        (addresses[0], HTTP + 1),
        (addresses[1], 9090),
        (addresses[1], 9091),
    ];
    at.await_endpoints("service", &wanted);
    for slice in at.slices("service")? {
        ensure!(
            slice["addressType"] == "IPv4" || slice["addressType"] == "IPv6",
            "{slice}"
        );
        for endpoint in slice["endpoints"].as_array().context("endpoints")? {
            let number = addresses
                .iter()
                .position(|ip| endpoint["addresses"][0] == ip.to_string());
            let number = number.with_context(|| format!("whose is {endpoint}"))?;
            ensure!(endpoint["nodeName"] == at.nodes[number].name, "{endpoint}");
            ensure!(endpoint["targetRef"]["kind"] == "Pod", "{endpoint}");
            ensure!(
                endpoint["targetRef"]["name"] == ["one", "two"][number],
                "{endpoint}"
            );
            let conditions = json!({"ready": true, "serving": true, "terminating": false});
            ensure!(endpoint["conditions"] == conditions, "{endpoint}");
        }
    }
    let endpoints = format!("{}/service", at.collection("endpoints"));
    at.await_object(&endpoints, "the same addresses", |object| {
        let subsets = object["subsets"].as_array().into_iter().flatten();
        let ips = subsets.flat_map(|subset| subset["addresses"].as_array().into_iter().flatten());
        let mut ips: Vec<_> = ips
            .map(|address| address["ip"].as_str().unwrap_or_default().to_owned())
            .collect();
        ips.sort();
        let mut wanted = addresses.map(|ip| ip.to_string());
        wanted.sort();
        ips == wanted
    });
    Ok(())
}

/// A slice of the Service `by-hand` for a port of servers.
fn slice(name: &str, port: (&str, u16), addresses: &[String]) -> Value {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|address| json!({"addresses": [address]}))
        .collect();
    json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "by-hand"}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": port.0, "port": port.1, "protocol": "TCP"}],
    })
}

/// A Service without a selector.
fn by_hand(ports: Value) -> Value {
    json!({"metadata": {"name": "by-hand"}, "spec": {"ports": ports}})
}

/// EndpointSlice: should support a Service with multiple ports specified in multiple EndpointSlices \[Conformance\]
pub fn of_one_port_each(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.server("one", 0)?;
    let spec = json!({"containers": [server(9090, "/readyz")]});
    at.pod("two", 1, &spec)?;
    let addresses = ["one", "two"].map(|pod| vec![at.address(pod).to_string()]);
    let ports = json!([{"name": "first", "port": 80, "targetPort": HTTP}, {"name": "second", "port": 81, "targetPort": 9090}]);
    let service = at.make("services", &by_hand(ports))?;
    at.make("endpointslices", &slice("one", ("first", HTTP), &addresses[0]))?;
    at.make("endpointslices", &slice("two", ("second", 9090), &addresses[1]))?;
    let first = service.cluster_ip()?;
    let second = std::net::SocketAddr::new(first.ip(), 81);
    each(at.inside(), |client| {
        client.await_pods(Tcp, first, &["one"]);
        client.await_pods(Tcp, second, &["two"]);
    });
    Ok(())
}

/// EndpointSlice: should support a Service with multiple endpoint IPs specified in multiple EndpointSlices \[Conformance\]
pub fn of_one_address_each(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.server("one", 0)?;
    at.server("two", 1)?;
    let addresses = ["one", "two"].map(|pod| vec![at.address(pod).to_string()]);
    let service = at.make(
        "services",
        &by_hand(json!([{"name": "http", "port": 80, "targetPort": HTTP}])),
    )?;
    let server = service.cluster_ip()?;
    let first = at.make("endpointslices", &slice("one", ("http", HTTP), &addresses[0]))?;
    at.make("endpointslices", &slice("two", ("http", HTTP), &addresses[1]))?;
    each(at.inside(), |client| {
        client.await_pods(Tcp, server, &["one", "two"])
    });
    first.delete()?;
    each(at.inside(), |client| client.await_pods(Tcp, server, &["two"]));
    Ok(())
}

/// EndpointSlice: should support creating EndpointSlice API operations \[Conformance\]
pub fn have_all_operations(at: &Namespace<'_>) -> anyhow::Result<()> {
    let collection = at.collection("endpointslices");
    let addresses = ["192.0.2.1".to_owned()];
    let mut made = at.make("endpointslices", &slice("one", ("http", 80), &addresses))?;
    is_refused(
        at.api
            .create(&collection, &slice("one", ("http", 80), &addresses)),
        409,
    )?;
    made.merge(&json!({"metadata": {"annotations": {"patched": "true"}}}))?;
    ensure!(
        made.content["metadata"]["annotations"]["patched"] == "true",
        "{}",
        made.content
    );
    let mut changed = made.content.clone();
    changed["endpoints"][0]["addresses"] = json!(["192.0.2.2"]);
    let replaced = at.api.replace(&made.path, &changed)?;
    ensure!(replaced["endpoints"] == changed["endpoints"], "{replaced}");
    // A version that is not the last one.
    is_refused(at.api.replace(&made.path, &changed), 409)?;
    let mut other_type = replaced.clone();
    other_type["addressType"] = json!("FQDN");
    is_refused(at.api.replace(&made.path, &other_type), 422)?;
    at.make("endpointslices", &slice("two", ("http", 80), &addresses))?;
    let everywhere =
        "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=kubernetes.io/service-name%3Dby-hand";
    let all = at.api.read(everywhere)?;
    let own = all["items"].as_array().into_iter().flatten();
    let own = own.filter(|slice| slice["metadata"]["namespace"] == at.name.as_str());
    ensure!(own.count() == 2, "{all}");
    made.remove()?;
    at.api.delete(&slices_path(at, "by-hand"), None)?;
    let left = at.api.read(&slices_path(at, "by-hand"))?;
    ensure!(left["items"].as_array().is_some_and(Vec::is_empty), "{left}");
    Ok(())
}

/// The addresses and the first port of mirrored slices.
fn mirrored(list: &Value) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for slice in list["items"].as_array().into_iter().flatten() {
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let address = endpoint["addresses"][0].as_str().unwrap_or_default();
            found.push((
                address.to_owned(),
                slice["ports"][0]["port"].as_u64().unwrap_or_default(),
            ));
        }
    }
    found.sort();
    found
}

/// EndpointSliceMirroring: should mirror a custom Endpoints resource through create update and delete \[Conformance\]
pub fn mirror_endpoints(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.server("one", 0)?;
    at.server("two", 1)?;
    let addresses = ["one", "two"].map(|pod| at.address(pod).to_string());
    let server = at
        .make(
            "services",
            &by_hand(json!([{"name": "http", "port": 80, "targetPort": HTTP}])),
        )?
        .cluster_ip()?;
    let subset =
        |address: &str| json!([{"addresses": [{"ip": address}], "ports": [{"name": "http", "port": HTTP}]}]);
    let metadata = json!({"name": "by-hand"});
    let mut endpoints = at.make(
        "endpoints",
        &json!({"metadata": metadata, "subsets": subset(&addresses[0])}),
    )?;
    let is_one = |list: &Value, address: &str| mirrored(list) == [(address.to_owned(), u64::from(HTTP))];
    let list = at.await_object(&slices_path(at, "by-hand"), "the mirror", |list| {
        is_one(list, &addresses[0])
    });
    let manager = &list["items"][0]["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"];
    ensure!(*manager == "endpointslicemirroring-controller.k8s.io", "{list}");
    each(at.inside(), |client| client.await_pods(Tcp, server, &["one"]));
    endpoints.merge(&json!({"subsets": subset(&addresses[1])}))?;
    at.await_object(&slices_path(at, "by-hand"), "the new mirror", |list| {
        is_one(list, &addresses[1])
    });
    each(at.inside(), |client| client.await_pods(Tcp, server, &["two"]));
    endpoints.delete()?;
    at.await_object(&slices_path(at, "by-hand"), "no mirror", |list| {
        mirrored(list).is_empty()
    });
    each(&at.pods, |client| client.await_unserved(Tcp, server));
    Ok(())
}

/// EndpointSliceMirroring: should mirror a custom Endpoint with multiple subsets and same IP address
pub fn mirror_two_subsets_of_an_address(at: &Namespace<'_>) -> anyhow::Result<()> {
    let mut container = server(HTTP, "/readyz");
    let more = json!([{"name": "low", "containerPort": HTTP}, {"name": "high", "containerPort": 9090}]);
    container["ports"] = more;
    container["readinessProbe"]["httpGet"]["port"] = json!(HTTP);
    let mut second = server(9090, "/readyz");
    second["name"] = json!("second");
    second["ports"] = json!([]);
    second["readinessProbe"]["httpGet"]["port"] = json!(9090);
    at.pod("one", 0, &json!({"containers": [container, second]}))?;
    let address = at.address("one").to_string();
    let ports = json!([{"name": "low", "port": 80, "targetPort": HTTP}, {"name": "high", "port": 81, "targetPort": 9090}]);
    let server = at.make("services", &by_hand(ports))?.cluster_ip()?;
    let subset = |name: &str, port: u16| json!({"addresses": [{"ip": address}], "ports": [{"name": name, "port": port}]});
    let subsets = [subset("low", HTTP), subset("high", 9090)];
    at.make(
        "endpoints",
        &json!({"metadata": {"name": "by-hand"}, "subsets": subsets}),
    )?;
    let wanted = [(address.clone(), u64::from(HTTP)), (address.clone(), 9090)];
    at.await_object(&slices_path(at, "by-hand"), "both ports", |list| {
        mirrored(list) == wanted
    });
    each(at.inside(), |client| {
        client.await_pods(Tcp, server, &["one"]);
        client.await_pods(Tcp, std::net::SocketAddr::new(server.ip(), 81), &["one"]);
    });
    Ok(())
}

/// Services: should test the lifecycle of an Endpoint \[Conformance\]
pub fn endpoints_have_all_operations(at: &Namespace<'_>) -> anyhow::Result<()> {
    let subset = |ip: &str| json!([{"addresses": [{"ip": ip}], "ports": [{"name": "http", "port": 80}]}]);
    let labels = json!({"name": "endpoint", "labels": {"of": "lifecycle"}});
    let mut made = at.make(
        "endpoints",
        &json!({"metadata": labels, "subsets": subset("192.0.2.24")}),
    )?;
    let selected = format!("{}?labelSelector=of%3Dlifecycle", at.collection("endpoints"));
    ensure!(
        at.api.read(&selected)?["items"]
            .as_array()
            .is_some_and(|all| all.len() == 1),
        "one"
    );
    let mut changed = made.content.clone();
    changed["metadata"]["labels"]["updated"] = json!("yes");
    let replaced = at.api.replace(&made.path, &changed)?;
    ensure!(replaced["metadata"]["labels"]["updated"] == "yes", "{replaced}");
    made.merge(&json!({"subsets": subset("192.0.2.25")}))?;
    ensure!(
        made.content["subsets"][0]["addresses"][0]["ip"] == "192.0.2.25",
        "{}",
        made.content
    );
    at.api.delete(&selected, None)?;
    at.await_gone(&made.path);
    Ok(())
}
