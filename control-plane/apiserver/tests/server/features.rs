//! Servers of older versions, and with features switched off one by one, as clients meet them.

use anyhow::{Context as _, ensure};
use http::header::ACCEPT;
use serde_json::{Value, json};

use super::Cluster;
use super::documents::get;

/// A server with these features.
async fn start(name: &str, version: &str, gates: &str) -> anyhow::Result<Cluster> {
    let features = apiserver::Features {
        version: version.parse()?,
        gates: gates.parse()?,
    };
    Cluster::start_with(name, false, |config| config.features = features).await
}

async fn answer(cluster: &Cluster, path: &str) -> anyhow::Result<(u16, String)> {
    let (code, _, body) = get(cluster, path, &[]).await?;
    Ok((code, String::from_utf8(body)?))
}

async fn document(cluster: &Cluster, path: &str) -> anyhow::Result<Value> {
    let (code, text) = answer(cluster, path).await?;
    ensure!(code == 200, "{path}: {code} {text}");
    Ok(serde_json::from_str(&text)?)
}

async fn create(cluster: &Cluster, path: &str, object: &Value) -> anyhow::Result<Value> {
    let request = http::Request::post(path).header("content-type", "application/json");
    Ok(cluster
        .client
        .request(request.body(object.to_string().into_bytes())?)
        .await?)
}

const SERVICES: &str = "/api/v1/namespaces/default/services";
const SERVICE_CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";
const INITIAL: &str =
    "/api/v1/namespaces?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": { "ports": [{ "port": 80 }], "trafficDistribution": "PreferClose" },
    })
}

/// Of discovery, of both documents of OpenAPI: whether they know ServiceCIDRs.
async fn know_service_cidrs(cluster: &Cluster) -> anyhow::Result<[bool; 3]> {
    let discovered = document(cluster, "/apis/networking.k8s.io/v1").await?;
    let discovered = discovered["resources"].as_array().context("a list")?;
    let v2 = document(cluster, "/openapi/v2").await?;
    let v3 = document(cluster, "/openapi/v3/apis/networking.k8s.io/v1").await?;
    Ok([
        discovered
            .iter()
            .any(|resource| resource["name"] == "servicecidrs"),
        v2["paths"].get(SERVICE_CIDRS).is_some(),
        v3["paths"].get(SERVICE_CIDRS).is_some(),
    ])
}

#[tokio::test]
async fn a_server_of_1_27_has_what_1_27_has() -> anyhow::Result<()> {
    let cluster = start("of-1-27", "1.27", "").await?;
    let version = document(&cluster, "/version").await?;
    ensure!(
        (&version["minor"], &version["gitVersion"]) == (&json!("27"), &json!("v1.27.0+causeway")),
        "{version}"
    );
    let v2 = document(&cluster, "/openapi/v2").await?;
    ensure!(v2["info"]["version"] == "v1.27.0+causeway", "{}", v2["info"]);
    ensure!(know_service_cidrs(&cluster).await? == [false; 3]);
    let (code, text) = answer(&cluster, SERVICE_CIDRS).await?;
    ensure!(code == 404, "{code} {text}");
    let (code, text) = answer(&cluster, INITIAL).await?;
    let refused = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
    ensure!(code == 422 && text.contains(refused), "{code} {text}");
    let made = create(&cluster, SERVICES, &service("old")).await?;
    ensure!(made["spec"].get("trafficDistribution").is_none(), "{made}");
    // Addresses are given out all the same.
    ensure!(made["spec"]["clusterIP"].is_string(), "{made}");
    Ok(())
}

#[tokio::test]
async fn a_server_of_1_33_has_it_all_and_keeps_out_what_a_gate_does() -> anyhow::Result<()> {
    let cluster = start("of-1-33", "1.33", "").await?;
    ensure!(know_service_cidrs(&cluster).await? == [true; 3]);
    let (code, text) = answer(&cluster, &format!("{INITIAL}&timeoutSeconds=1")).await?;
    ensure!(
        code == 200 && text.contains("k8s.io/initial-events-end"),
        "{code} {text}"
    );
    let made = create(&cluster, SERVICES, &service("new")).await?;
    ensure!(made["spec"]["trafficDistribution"] == "PreferClose", "{made}");

    let cluster = start("of-1-33-gated", "1.33", "MultiCIDRServiceAllocator=false").await?;
    ensure!(know_service_cidrs(&cluster).await? == [false; 3]);
    ensure!(document(&cluster, "/version").await?["minor"] == "33");
    Ok(())
}

#[tokio::test]
async fn lists_come_whole_where_they_have_no_parts() -> anyhow::Result<()> {
    for (gates, expected) in [("", 1), ("APIListChunking=false", 4)] {
        let cluster = start(&format!("parts-{expected}"), "1.27", gates).await?;
        let list = document(&cluster, "/api/v1/namespaces?limit=1").await?;
        let items = list["items"].as_array().context("a list")?;
        let is_more = list["metadata"].get("continue").is_some();
        ensure!(
            (items.len(), is_more) == (expected, expected == 1),
            "{gates}: {list}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn watches_end_with_a_bookmark_where_there_are_bookmarks() -> anyhow::Result<()> {
    for (gates, expected) in [("", true), ("WatchBookmark=false", false)] {
        let cluster = start(&format!("bookmarks-{expected}"), "1.33", gates).await?;
        let watch = "/api/v1/namespaces?watch=true&allowWatchBookmarks=true&timeoutSeconds=1";
        let (code, text) = answer(&cluster, watch).await?;
        ensure!(
            (code, text.contains("\"type\":\"BOOKMARK\"")) == (200, expected),
            "{gates}: {code} {text}"
        );
        // What ends the list in a watch is no bookmark of that kind.
        let (code, text) = answer(&cluster, &format!("{INITIAL}&timeoutSeconds=1")).await?;
        ensure!(
            code == 200 && text.contains("k8s.io/initial-events-end"),
            "{gates}: {code} {text}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn older_forms_of_documents_stay_where_newer_ones_are_off() -> anyhow::Result<()> {
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let rows = [
        ("", "APIGroupDiscoveryList", 200),
        ("AggregatedDiscoveryEndpoint=false", "APIGroupList", 200),
        ("OpenAPIV3=false", "APIGroupDiscoveryList", 404),
    ];
    for (index, (gates, kind, expected)) in rows.into_iter().enumerate() {
        let cluster = start(&format!("forms-{index}"), "1.33", gates).await?;
        let (_, _, body) = get(&cluster, "/apis", &[(ACCEPT, aggregated)]).await?;
        let groups: Value = serde_json::from_slice(&body)?;
        ensure!(groups["kind"] == kind, "{gates}: {groups}");
        for path in ["/openapi/v3", "/openapi/v3/api/v1"] {
            let (code, _) = answer(&cluster, path).await?;
            ensure!(code == expected, "{gates}: {path}: {code}");
        }
        let (code, _) = answer(&cluster, "/openapi/v2").await?;
        ensure!(code == 200, "{gates}: {code}");
    }
    Ok(())
}
