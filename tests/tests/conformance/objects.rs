//! Services as objects of the API, and how soon one that is made has its endpoints.

use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tests::api::is_refused;
use tests::{client::each, wait};

use crate::namespace::{HTTP, Namespace, server};
use crate::world::{await_answer, soon};

/// So many Services tell how soon endpoints follow, in so many rows beside each other.
const SERVICES: usize = 60;
const ROWS: usize = 6;
/// Upstream's bounds (`test/e2e/network/service_latency.go`); they are limits and no measurement.
const MEDIAN: Duration = Duration::from_secs(20);
const NEARLY_ALL: Duration = Duration::from_secs(50);

/// Services: should provide secure master service \[Conformance\]
pub fn of_the_api_server(at: &Namespace<'_>) -> anyhow::Result<()> {
    let service = at.api.read("/api/v1/namespaces/default/services/kubernetes")?;
    let ports = service["spec"]["ports"].as_array().context("ports")?;
    ensure!(
        ports
            .iter()
            .any(|port| port["port"] == 443 && port["name"] == "https"),
        "{service}"
    );
    let address = service["spec"]["clusterIP"].as_str().context("clusterIP")?;
    let endpoints = at.api.read("/api/v1/namespaces/default/endpoints/kubernetes")?;
    let subset = &endpoints["subsets"][0];
    let server = subset["addresses"][0]["ip"].as_str().context("an endpoint")?;
    let port = subset["ports"][0]["port"].as_u64().context("its port")?;
    // The server speaks TLS: what it says to plain HTTP is no success, but its own.
    let url = |address: &str, port: u64| {
        let socket = SocketAddr::new(address.parse()?, u16::try_from(port)?);
        anyhow::Ok(format!("http://{socket}/"))
    };
    let urls = [url(address, 443)?, url(server, port)?];
    each(at.inside(), |client| {
        await_answer(
            &format!("{}: {} is answered as {}", client.name, urls[0], urls[1]),
            || {
                let [service, endpoint] = urls.each_ref().map(|url| client.run(&["fetch", url]));
                anyhow::Ok((service?, endpoint?))
            },
            |(service, endpoint)| answer(endpoint).is_some() && answer(service) == answer(endpoint),
        );
    });
    Ok(())
}

/// What `fetch` has been told, behind the time; `None` where no connection came to be.
fn answer(printed: &str) -> Option<&str> {
    let answer = printed.split_whitespace().nth(1)?;
    let refused = ["timed-out", "connection-refused", "unreachable", "no-route"];
    let is_refused = refused.iter().any(|word| answer.contains(word));
    (!is_refused).then_some(answer)
}

/// Services: should find a service from listing all namespaces \[Conformance\]
pub fn are_found_in_all_namespaces(at: &Namespace<'_>) -> anyhow::Result<()> {
    let all = at.api.read("/api/v1/services")?;
    let items = all["items"].as_array().context("items")?;
    let is_it = |service: &Value| {
        service["metadata"]["namespace"] == "default" && service["metadata"]["name"] == "kubernetes"
    };
    ensure!(items.iter().any(is_it), "no default/kubernetes");
    at.service("another", &json!({}))?;
    let selected = at
        .api
        .read("/api/v1/services?fieldSelector=metadata.name%3Danother")?;
    let items = selected["items"].as_array().context("items")?;
    ensure!(
        items
            .iter()
            .any(|service| service["metadata"]["namespace"] == at.name.as_str()),
        "{selected}"
    );
    Ok(())
}

/// A load balancer that no controller makes.
pub fn load_balancer() -> Value {
    json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/nobody"})
}

/// Services: should complete a service status lifecycle \[Conformance\]
pub fn have_a_status(at: &Namespace<'_>) -> anyhow::Result<()> {
    let mut service = at.service("status", &load_balancer())?;
    let status = format!("{}/status", service.path);
    let read = at.api.read(&status)?;
    ensure!(read["status"]["loadBalancer"]["ingress"].is_null(), "{read}");
    let ingress = json!([{"ip": "198.51.100.1", "ipMode": "VIP"}]);
    let patch = json!({
        "metadata": {"annotations": {"patchedstatus": "true"}},
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    let patched = at.api.merge_patch(&status, &patch)?;
    ensure!(
        patched["metadata"]["annotations"]["patchedstatus"] == "true",
        "{patched}"
    );
    ensure!(
        patched["status"]["loadBalancer"]["ingress"] == ingress,
        "{patched}"
    );
    let mut changed = patched.clone();
    let condition = json!({
        "type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "set by a test",
        "lastTransitionTime": "2024-01-01T00:00:00Z",
    });
    changed["status"]["conditions"] = json!([condition]);
    let replaced = at.api.replace(&status, &changed)?;
    ensure!(
        replaced["status"]["conditions"] == changed["status"]["conditions"],
        "{replaced}"
    );
    // What is no status is not changed by it, and the other way round.
    let both = json!({"spec": {"sessionAffinity": "ClientIP"}, "status": {"loadBalancer": null}});
    let by_status = at.api.merge_patch(&status, &both)?;
    ensure!(by_status["spec"]["sessionAffinity"] == "None", "{by_status}");
    service.merge(
        &json!({"metadata": {"labels": {"a": "b"}}, "status": {"loadBalancer": {"ingress": ingress}}}),
    )?;
    ensure!(
        service.content["metadata"]["labels"]["a"] == "b",
        "{}",
        service.content
    );
    ensure!(
        service.content["status"]["loadBalancer"]["ingress"].is_null(),
        "{}",
        service.content
    );
    service.remove()
}

/// Services: should delete a collection of services \[Conformance\]
pub fn are_deleted_as_a_collection(at: &Namespace<'_>) -> anyhow::Result<()> {
    for (name, of) in [("one", "them"), ("two", "them"), ("kept", "others")] {
        let metadata = json!({"name": name, "labels": {"of": of}});
        at.make(
            "services",
            &json!({"metadata": metadata, "spec": {"ports": [{"port": 80}]}}),
        )?;
    }
    at.api.delete(
        &format!("{}?labelSelector=of%3Dthem", at.collection("services")),
        None,
    )?;
    at.await_object(&at.collection("services"), "kept alone", |list| {
        let items = list["items"].as_array().into_iter().flatten();
        items
            .map(|service| &service["metadata"]["name"])
            .eq([&json!("kept")])
    });
    Ok(())
}

/// Service CIDRs: should create Services and serve on different Service CIDRs, as far as they are told: each address is in
/// one of them, and none is given twice
pub fn have_addresses_of_their_own(at: &Namespace<'_>) -> anyhow::Result<()> {
    let first = at.service("first", &json!({}))?.cluster_ip()?;
    let taken =
        json!({"metadata": {"name": "second"}, "spec": {"clusterIP": first.ip(), "ports": [{"port": 80}]}});
    is_refused(at.api.create(&at.collection("services"), &taken), 422)?;
    let outside =
        json!({"metadata": {"name": "second"}, "spec": {"clusterIP": "192.0.2.1", "ports": [{"port": 80}]}});
    is_refused(at.api.create(&at.collection("services"), &outside), 422)?;
    let mut moved = at.service("moved", &json!({}))?;
    let before = moved.cluster_ip()?;
    is_refused(
        at.api
            .merge_patch(&moved.path, &json!({"spec": {"clusterIP": first.ip()}})),
        422,
    )?;
    moved.merge(&json!({}))?;
    ensure!(moved.cluster_ip()? == before, "{}", moved.content);
    Ok(())
}

/// SCTP: should allow creating a basic SCTP service with pod and endpoints; should create a Pod with SCTP HostPort. Nothing
/// is sent: kernels need not have sockets of SCTP.
pub fn may_be_of_sctp(at: &Namespace<'_>) -> anyhow::Result<()> {
    let mut container = server(HTTP, "/readyz");
    let port = json!({"name": "sctp", "containerPort": 5060, "hostPort": 5060, "protocol": "SCTP"});
    container["ports"] = json!([{"name": "http", "containerPort": HTTP}, port]);
    at.pod("sctp", 0, &json!({"containers": [container]}))?;
    let ports = json!([{"name": "sctp", "port": 5060, "targetPort": "sctp", "protocol": "SCTP"}]);
    at.service("sctp", &json!({ "ports": ports }))?;
    at.await_endpoints("sctp", &[(at.address("sctp"), 5060)]);
    let slices = at.slices("sctp")?;
    ensure!(slices[0]["ports"][0]["protocol"] == "SCTP", "{slices:?}");
    Ok(())
}

/// Proxy: version v1: A set of valid responses are returned for both pod and service Proxy \[Conformance\]
pub fn are_reached_by_the_api_server(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.server("one", 0)?;
    at.service("service", &json!({}))?;
    at.await_endpoints(
        "service",
        &[(at.address("one"), HTTP), (at.address("one"), HTTP + 1)],
    );
    let base = format!("/api/v1/namespaces/{}", at.name);
    for place in [
        format!("pods/one:{HTTP}"),
        "pods/http:one:8080".to_owned(),
        "services/service:http".to_owned(),
        "services/http:service:http".to_owned(),
        "services/service:80".to_owned(),
    ] {
        let path = format!("{base}/{place}/proxy/hostname");
        let answer = wait::until(&path, soon(), || at.api.text(&path));
        ensure!(answer.trim() == "one", "{path}: {answer}");
    }
    Ok(())
}

/// Service endpoints latency: should not be very high \[Conformance\]
pub fn have_endpoints_soon(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.server("one", 0)?;
    at.address("one");
    // Several at once, each of which tells of one Service after the other.
    let mut took: Vec<Duration> = thread::scope(|scope| {
        let rows = (0..ROWS).map(|row| {
            scope.spawn(move || {
                (0..SERVICES / ROWS)
                    .map(|n| until_endpoints(at, row, n))
                    .collect()
            })
        });
        let rows: Vec<_> = rows.collect();
        let rows = rows
            .into_iter()
            .map(|row| row.join().unwrap_or_else(|panic| resume_unwind(panic)));
        rows.collect::<anyhow::Result<Vec<Vec<_>>>>()
    })?
    .concat();
    took.sort();
    let (median, nearly_all) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    println!(
        "endpoints of {} Services: p50 {median:?}, p99 {nearly_all:?}",
        took.len()
    );
    ensure!(median <= MEDIAN && nearly_all <= NEARLY_ALL, "{took:?}");
    Ok(())
}

/// Makes a Service, and tells how long it was without endpoints.
fn until_endpoints(at: &Namespace<'_>, row: usize, number: usize) -> anyhow::Result<Duration> {
    let name = format!("latency-{row}-{number}");
    let began = Instant::now();
    at.service(&name, &json!({}))?;
    let has_endpoints = |slice: &Value| slice["endpoints"].as_array().is_some_and(|all| !all.is_empty());
    await_answer(
        &format!("{name} has endpoints"),
        || at.slices(&name),
        |slices| slices.iter().any(has_endpoints),
    );
    Ok(began.elapsed())
}
