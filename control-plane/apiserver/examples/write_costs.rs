//! What writes cost: milliseconds of a pod's creates and of changes of its status, one after the other, on the bundled
//! store. The client is in the same process.
//!
//! ```text
//! cargo run -p apiserver --example write_costs
//! ```

#[expect(dead_code, reason = "a real etcd and single files are for others")]
#[path = "../tests/harness/mod.rs"]
mod harness;

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const PODS: usize = 500;
const CHANGES: usize = 2000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = std::env::temp_dir().join(format!("cwt-write-costs-{}", std::process::id()));
    let port = harness::free_port()?;
    let files = harness::Files::create(&directory, port)?;
    let etcd = harness::Etcd::bundled(&directory).await?;
    let server = apiserver::Server::bind(files.config(port, etcd.endpoint())).await?;
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(server.run(shutdown.clone()));
    let kubeconfig = Kubeconfig::read_from(files.kubeconfig())?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = kube::Client::try_from(config)?;
    let account: ServiceAccount = serde_json::from_value(json!({ "metadata": { "name": "default" } }))?;
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    while accounts.create(&PostParams::default(), &account).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let pods: Api<Pod> = Api::default_namespaced(client);
    let mut creates = Vec::new();
    for number in 0..PODS {
        let pod: Pod = serde_json::from_value(pod(number))?;
        let start = Instant::now();
        pods.create(&PostParams::default(), &pod).await?;
        creates.push(start.elapsed());
    }
    let mut changes = Vec::new();
    for number in 0..CHANGES {
        let status = Patch::Strategic(json!({ "status": status(number) }));
        let params = PatchParams {
            field_manager: Some("kubelet".to_owned()),
            ..PatchParams::default()
        };
        let start = Instant::now();
        pods.patch_status(&format!("p{}", number % PODS), &params, &status)
            .await?;
        changes.push(start.elapsed());
    }
    println!("create a pod:            {}", told(creates));
    println!("patch a pod's status:    {}", told(changes));
    let stored = serde_json::to_vec(&pods.get("p0").await?)?;
    println!("bytes of a pod:          {}", stored.len());
    shutdown.cancel();
    running.await??;
    std::fs::remove_dir_all(directory)?;
    Ok(())
}

fn pod(number: usize) -> Value {
    json!({
        "metadata": { "name": format!("p{number}"), "labels": { "app": "web", "pod-template-hash": "abc" } },
        "spec": { "containers": [{
            "name": "web", "image": "web:1", "ports": [{ "containerPort": 80 }],
            "env": [{ "name": "A", "value": "b" }, { "name": "C", "value": "d" }],
            "readinessProbe": { "httpGet": { "path": "/", "port": 80 } },
            "resources": { "requests": { "cpu": "10m", "memory": "20Mi" } },
        }] },
    })
}

fn status(number: usize) -> Value {
    let ready = if number.is_multiple_of(2) { "True" } else { "False" };
    let conditions = ["Ready", "ContainersReady", "Initialized", "PodScheduled"]
        .map(|kind| json!({ "type": kind, "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z" }));
    json!({
        "phase": "Running", "podIP": "10.244.0.7", "podIPs": [{ "ip": "10.244.0.7" }], "hostIP": "172.30.0.11",
        "conditions": conditions,
        "containerStatuses": [{ "name": "web", "image": "web:1", "imageID": "", "ready": number.is_multiple_of(2),
            "restartCount": number, "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } } }],
    })
}

fn told(mut times: Vec<Duration>) -> String {
    times.sort();
    let mean = times.iter().sum::<Duration>() / u32::try_from(times.len()).unwrap_or(1);
    format!(
        "mean {mean:.2?}, median {:.2?}, p99 {:.2?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100]
    )
}
