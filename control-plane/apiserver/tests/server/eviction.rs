//! Evictions and the budgets that refuse them.

use anyhow::ensure;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, Patch, PatchParams, PostParams};
use prost::Message as _;
use serde_json::{Value, json};

use super::{Cluster, from, on_every_store, protobuf, raw};

async fn make_pod(cluster: &Cluster, name: &str, ready: &str) -> anyhow::Result<()> {
    let pods: Api<Pod> = cluster.api();
    let pod = json!({
        "metadata": { "name": name, "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "a", "image": "x:1" }] },
    });
    pods.create(&PostParams::default(), &from(pod)?).await?;
    let status =
        json!({ "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": ready }] } });
    pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(status))
        .await?;
    Ok(())
}

async fn make_budget(cluster: &Cluster, name: &str, mut spec: Value) -> anyhow::Result<()> {
    let budgets: Api<PodDisruptionBudget> = cluster.api();
    spec["selector"] = json!({ "matchLabels": { "app": "web" } });
    let budget = json!({ "metadata": { "name": name }, "spec": spec });
    budgets.create(&PostParams::default(), &from(budget)?).await?;
    Ok(())
}

/// As kubectl 1.33 asks, in protobuf.
async fn evict(cluster: &Cluster, name: &str, query: &str) -> anyhow::Result<(u16, Value)> {
    use k8s_pb::api::policy::v1::Eviction;
    use k8s_pb::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    let eviction = Eviction {
        metadata: Some(ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("default".to_owned()),
            ..ObjectMeta::default()
        }),
        ..Eviction::default()
    };
    let body = protobuf("policy/v1", "Eviction", &eviction.encode_to_vec());
    let path = format!("/api/v1/namespaces/default/pods/{name}/eviction{query}");
    raw(
        cluster,
        "POST",
        &path,
        Some("application/vnd.kubernetes.protobuf"),
        body,
    )
    .await
}

#[tokio::test]
async fn a_budget_lets_go_what_it_can_spare_and_no_more() -> anyhow::Result<()> {
    on_every_store("budget", async |cluster| {
        let pods: Api<Pod> = cluster.api();
        for (name, ready) in [("a", "True"), ("b", "True"), ("sick", "False")] {
            make_pod(&cluster, name, ready).await?;
        }
        make_budget(&cluster, "keep", json!({ "minAvailable": 1 })).await?;

        let (code, told) = evict(&cluster, "a", "?dryRun=All").await?;
        ensure!(code == 201 && pods.get_opt("a").await?.is_some(), "{told}");
        let (code, told) = evict(&cluster, "a", "").await?;
        ensure!(code == 201 && pods.get_opt("a").await?.is_none(), "{told}");
        let budgets: Api<PodDisruptionBudget> = cluster.api();
        let status = budgets.get("keep").await?.status.unwrap_or_default();
        ensure!((status.disruptions_allowed, status.current_healthy, status.desired_healthy) == (0, 1, 1), "{status:?}");

        let (code, told) = evict(&cluster, "b", "").await?;
        let cause = json!([{
            "reason": "DisruptionBudget", "message": "The disruption budget keep needs 1 healthy pods and has 1 currently",
        }]);
        ensure!(code == 429 && told["reason"] == "TooManyRequests" && told["details"]["causes"] == cause, "{told}");
        ensure!(pods.get_opt("b").await?.is_some());
        // One that is not ready is no loss, as long as there are enough without it.
        let (code, told) = evict(&cluster, "sick", "").await?;
        ensure!(code == 201 && pods.get_opt("sick").await?.is_none(), "{told}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_eviction_that_makes_no_sense_is_refused() -> anyhow::Result<()> {
    on_every_store("eviction", async |cluster| {
        make_pod(&cluster, "a", "True").await?;
        let path = "/api/v1/namespaces/default/pods/a/eviction";
        let body = json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": "b" } });
        let (code, told) = raw(&cluster, "POST", path, Some("application/json"), body.to_string()).await?;
        ensure!(code == 400, "{told}");
        let (code, told) = evict(&cluster, "absent", "").await?;
        ensure!(code == 404, "{told}");
        for name in ["one", "two"] {
            make_budget(&cluster, name, json!({ "maxUnavailable": 1 })).await?;
        }
        let (code, told) = evict(&cluster, "a", "").await?;
        let expected = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        ensure!((code, told["message"].as_str()) == (500, Some(expected)), "{told}");
        Ok(())
    })
    .await
}
