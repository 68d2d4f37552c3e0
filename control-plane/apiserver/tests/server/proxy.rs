//! What runs in pods, by way of this server: over a connection of the pod's kubelet, in the clear or by TLS.

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use kube::api::{Api, PostParams};
use serde_json::json;

use super::kubelet::{Behind, serve_kubelet_before};
use super::{Cluster, from, pod};

/// A pod, and a Service before it, on a node whose kubelet leads to a web server.
async fn cluster(name: &str, behind: Behind) -> anyhow::Result<Cluster> {
    let cluster = Cluster::start(name, false).await?;
    let port = serve_kubelet_before(&cluster.files, behind).await?;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let status = json!({
        "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
    });
    nodes
        .create(
            &PostParams::default(),
            &from(json!({ "metadata": { "name": "n1" }, "status": status }))?,
        )
        .await?;
    let mut running: Pod = pod("web")?;
    running.spec.as_mut().context("a spec")?.node_name = Some("n1".to_owned());
    cluster
        .api::<Pod>()
        .create(&PostParams::default(), &running)
        .await?;
    let ports = json!([{ "name": "web", "port": 443 }]);
    let service = json!({ "metadata": { "name": "web" }, "spec": { "clusterIP": "None", "ports": ports } });
    cluster
        .api::<Service>()
        .create(&PostParams::default(), &from(service)?)
        .await?;
    let to_pod =
        json!({ "ip": "10.244.0.2", "targetRef": { "kind": "Pod", "name": "web", "namespace": "default" } });
    let subset = json!({ "addresses": [to_pod], "ports": [{ "name": "web", "port": 8443 }] });
    let endpoints = json!({ "metadata": { "name": "web" }, "subsets": [subset] });
    cluster
        .api::<Endpoints>()
        .create(&PostParams::default(), &from(endpoints)?)
        .await?;
    Ok(cluster)
}

async fn get(cluster: &Cluster, path: &str) -> anyhow::Result<(u16, String)> {
    let path = format!("/api/v1/namespaces/default/{path}");
    let answer = cluster
        .client
        .send(http::Request::get(&path).body(Vec::new().into())?)
        .await?;
    let code = answer.status().as_u16();
    let body = http_body_util::BodyExt::collect(answer.into_body())
        .await?
        .to_bytes();
    Ok((code, String::from_utf8(body.to_vec())?))
}

#[tokio::test]
async fn https_to_pods_and_services_looks_at_no_certificate() -> anyhow::Result<()> {
    let cluster = cluster("https", Behind::Https).await?;
    for path in [
        "pods/https:web:8443/proxy/a?b=c",
        "services/https:web:web/proxy/a?b=c",
        "services/https:web:443/proxy/a?b=c",
    ] {
        let (code, text) = get(&cluster, path).await?;
        ensure!(
            (code, &*text) == (200, "by TLS: GET /a?b=c"),
            "{path}: {code} {text}"
        );
    }
    let (code, text) = get(&cluster, "pods/web:8443/proxy/").await?;
    ensure!(
        code == 503 && text.contains("error trying to reach service"),
        "{code} {text}"
    );
    Ok(())
}

#[tokio::test]
async fn https_to_what_speaks_no_tls_is_unreachable() -> anyhow::Result<()> {
    let cluster = cluster("plain", Behind::Echo).await?;
    let (code, text) = get(&cluster, "pods/https:web:8443/proxy/").await?;
    ensure!(
        code == 503 && text.contains("error trying to reach service"),
        "{code} {text}"
    );
    Ok(())
}
