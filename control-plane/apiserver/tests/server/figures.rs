//! `metrics.k8s.io` without a kubelet that tells figures.

use anyhow::ensure;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, PostParams};
use serde_json::json;

use super::{from, on_every_store, pod, raw};

#[tokio::test]
async fn what_is_not_there_is_told_by_its_own_name_and_what_has_no_figures_by_theirs() -> anyhow::Result<()> {
    on_every_store("figures", async |cluster| {
        let pods: Api<Pod> = cluster.api();
        pods.create(&PostParams::default(), &pod("a")?).await?;
        let nodes: Api<Node> = Api::all(cluster.client.clone());
        let node = from(json!({ "metadata": { "name": "n1" } }))?;
        nodes.create(&PostParams::default(), &node).await?;
        for (path, told, kind) in [
            (
                "namespaces/default/pods/nowhere",
                "pods \"nowhere\" not found",
                "pods",
            ),
            (
                "namespaces/default/pods/a",
                "podmetrics.metrics.k8s.io \"default/a\" not found",
                "podmetrics",
            ),
            ("nodes/nowhere", "nodes \"nowhere\" not found", "nodes"),
            (
                "nodes/n1",
                "nodemetrics.metrics.k8s.io \"n1\" not found",
                "nodemetrics",
            ),
        ] {
            let path = format!("/apis/metrics.k8s.io/v1beta1/{path}");
            let (code, status) = raw(&cluster, "GET", &path, None, "").await?;
            ensure!(
                code == 404 && status["message"] == told && status["details"]["kind"] == kind,
                "{path}: {status}"
            );
        }
        Ok(())
    })
    .await
}
