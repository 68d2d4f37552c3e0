//! Clients that are not kubectl: `kube` of Rust, and Python's `kubernetes`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{
    Api, AttachParams, DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams, WatchEvent,
    WatchParams,
};
use kube::runtime::watcher;
use serde_json::{Value, json};
use tests::cluster::{Cluster, everything, programs};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use super::{SOON, streams};

const CLIENT: &str = "clients";

/// Runs what a Rust client does, which has to come to an end.
fn with_client<F: Future<Output = anyhow::Result<()>>>(
    cluster: &Cluster,
    work: impl FnOnce(kube::Client) -> F,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let client = cluster.client().await?;
        let ended = tokio::time::timeout(SOON, work(client)).await;
        ended.context("the Rust client waits")?
    })
}

pub fn rust_lists_and_watches(cluster: &Cluster) -> anyhow::Result<()> {
    with_client(cluster, |client| async move {
        let maps: Api<ConfigMap> = Api::default_namespaced(client);
        for at in 0..5 {
            maps.create(&PostParams::default(), &config_map(&format!("client-{at}"))?)
                .await?;
        }
        let ours = ListParams::default().labels("of=clients");
        let mut page = maps.list(&ours.clone().limit(2)).await?;
        let version = page.metadata.resource_version.clone();
        let mut names: Vec<_> = page.iter().filter_map(|map| map.metadata.name.clone()).collect();
        while let Some(token) = page.metadata.continue_.clone().filter(|token| !token.is_empty()) {
            page = maps.list(&ours.clone().limit(2).continue_token(&token)).await?;
            ensure!(page.metadata.resource_version == version, "pages of one revision");
            names.extend(page.iter().filter_map(|map| map.metadata.name.clone()));
        }
        ensure!(
            names == (0..5).map(|at| format!("client-{at}")).collect::<Vec<_>>(),
            "{names:?}"
        );

        let all = WatchParams::default().labels("of=clients");
        // Bookmarks tell when the first state is complete; then changes come as they are made.
        let mut events = maps.watch(&all.clone().initial_events(), "").await?.boxed();
        let seen = until_bookmark(&mut events).await?;
        ensure!(seen == names, "{seen:?}");
        maps.delete("client-4", &DeleteParams::default()).await?;
        let deleted = events.try_next().await?;
        let is_it = matches!(&deleted, Some(WatchEvent::Deleted(map)) if named(map) == "client-4");
        ensure!(is_it, "{deleted:?}");
        // A watch from a revision has what came after it.
        let version = version.context("a list has a version")?;
        let later = maps.watch(&all, &version).await?.boxed().try_next().await?;
        let is_it = matches!(&later, Some(WatchEvent::Deleted(map)) if named(map) == "client-4");
        ensure!(is_it, "{later:?}");
        let old = maps
            .watch(&WatchParams::default().timeout(290), "1")
            .await?
            .boxed()
            .try_next()
            .await?;
        println!("a watch from revision 1 begins with {old:?}");
        for config in [
            watcher::Config::default(),
            watcher::Config::default().streaming_lists(),
        ] {
            let mut events = watcher(maps.clone(), config.labels("of=clients")).boxed();
            while !matches!(events.try_next().await?, Some(watcher::Event::InitDone)) {}
        }
        maps.delete_collection(&DeleteParams::default(), &ours).await?;
        ensure!(maps.list(&ours).await?.items.is_empty(), "some were left");
        Ok(())
    })
}

fn config_map(name: &str) -> anyhow::Result<ConfigMap> {
    let map = json!({ "metadata": { "name": name, "labels": { "of": CLIENT } }, "data": { "a": "1" } });
    Ok(serde_json::from_value(map)?)
}

fn named(map: &ConfigMap) -> &str {
    map.metadata.name.as_deref().unwrap_or_default()
}

/// Names of what was added before the bookmark that says that this was all.
async fn until_bookmark(
    events: &mut (impl futures::Stream<Item = kube::Result<WatchEvent<ConfigMap>>> + Unpin),
) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    while let Some(event) = events.try_next().await? {
        match event {
            WatchEvent::Added(map) => names.push(named(&map).to_owned()),
            WatchEvent::Bookmark(bookmark) => {
                let told = &bookmark.metadata.annotations;
                ensure!(
                    told.get("k8s.io/initial-events-end").map(String::as_str) == Some("true"),
                    "{told:?}"
                );
                return Ok(names);
            }
            other => bail!("{other:?} before the bookmark"),
        }
    }
    bail!("the watch ended before its first bookmark")
}

pub fn rust_patches_in_all_types(cluster: &Cluster) -> anyhow::Result<()> {
    with_client(cluster, |client| async move {
        let pods: Api<Pod> = Api::default_namespaced(client.clone());
        let pod = json!({ "metadata": { "name": "patched", "labels": { "of": CLIENT } }, "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "c", "image": "causeway/pause:v1" }] } });
        pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
            .await?;
        let plain = PatchParams::default();
        let labels = |labels: Value| json!({ "metadata": { "labels": labels } });
        pods.patch(
            "patched",
            &plain,
            &Patch::Merge(labels(json!({ "merge": "yes" }))),
        )
        .await?;
        // By the container's name: its other fields stay.
        let image = json!({ "spec": { "containers": [{ "name": "c", "image": "causeway/testserver:v1" }] } });
        pods.patch("patched", &plain, &Patch::Strategic(image)).await?;
        let json_patch = json!([{ "op": "add", "path": "/metadata/labels/json", "value": "yes" }]);
        let request = axum::http::Request::patch("/api/v1/namespaces/default/pods/patched")
            .header("content-type", "application/json-patch+json")
            .body(serde_json::to_vec(&json_patch)?)?;
        client.request::<Pod>(request).await?;
        let mut applied = labels(json!({ "apply": "yes" }));
        applied["apiVersion"] = json!("v1");
        applied["kind"] = json!("Pod");
        let by_us = PatchParams::apply(CLIENT);
        let pod = pods.patch("patched", &by_us, &Patch::Apply(&applied)).await?;
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        ensure!(
            labels.keys().eq(["apply", "json", "merge", "of"]),
            "all four kinds of patches: {labels:?}"
        );
        let image = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.containers[0].image.clone());
        ensure!(image.as_deref() == Some("causeway/testserver:v1"), "{image:?}");
        let managers = pod.metadata.managed_fields.clone().unwrap_or_default();
        let is_ours = managers.iter().any(|entry| {
            entry.manager.as_deref() == Some(CLIENT) && entry.operation.as_deref() == Some("Apply")
        });
        ensure!(is_ours, "{managers:?}");

        let evicted = pods.evict("patched", &EvictParams::default()).await?;
        ensure!(evicted.is_success(), "{evicted:?}");
        while pods.get_opt("patched").await?.is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    })
}

/// `kube`'s exec, attach and port-forward, which speak plain WebSocket.
pub fn rust_streams(cluster: &Cluster) -> anyhow::Result<()> {
    streams::start(cluster)?;
    with_client(cluster, |client| async move {
        let pods: Api<Pod> = Api::default_namespaced(client.clone());
        let parameters = AttachParams::default().container("server").stdin(true);
        let mut cat = pods.exec("streams", ["cat"], &parameters).await?;
        let mut stdin = cat.stdin().context("no stdin")?;
        stdin.write_all(b"through the socket\n").await?;
        let mut line = [0; 19];
        cat.stdout().context("no stdout")?.read_exact(&mut line).await?;
        ensure!(
            &line == b"through the socket\n",
            "{:?}",
            String::from_utf8_lossy(&line)
        );
        drop(stdin);
        cat.abort();

        let failed = AttachParams::default().container("server").stderr(false);
        let mut failed = pods
            .exec("streams", ["/testserver", "exit", "7"], &failed)
            .await?;
        let status = failed.take_status().context("no status")?.await;
        let status = status.context("no status came")?;
        ensure!(status.reason.as_deref() == Some("NonZeroExitCode"), "{status:?}");

        let parameters = AttachParams::default()
            .container("echo")
            .stdin(true)
            .stderr(false);
        let mut attached = pods.attach("streams", &parameters).await?;
        let mut stdin = attached.stdin().context("no stdin")?;
        stdin.write_all(b"attached by kube\n").await?;
        let mut lines = BufReader::new(attached.stdout().context("no stdout")?).lines();
        while lines.next_line().await?.context("the stream ended")? != "attached by kube" {}
        drop(stdin);
        attached.abort();

        let mut forward = pods.portforward("streams", &[8080]).await?;
        let mut web = forward.take_stream(8080).context("no stream")?;
        web.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        web.read_to_string(&mut answer).await?;
        ensure!(answer.contains("hostname: streams"), "{answer}");

        // A WebSocket through `nodes/proxy`: the kubelet's own.
        let spec = pods.get("streams").await?.spec.context("no spec")?;
        let node = spec.node_name.context("no node")?;
        let command = "exec/default/streams/server?command=echo&command=proxied&stdout=true";
        let path = format!("/api/v1/nodes/{node}/proxy/{command}");
        let request = axum::http::Request::get(path).body(Vec::new())?;
        let messages = client.connect(request).await?.into_stream();
        let texts: Vec<_> = messages
            .map_ok(|message| message.into_data().to_vec())
            .try_collect()
            .await?;
        ensure!(texts.contains(&b"\x01proxied\n".to_vec()), "{texts:?}");
        Ok(())
    })
}

/// `clients.py`, with the client that `setup.sh` installs.
pub fn python(cluster: &Cluster) -> anyhow::Result<()> {
    let python = programs().join("../tools/python/bin/python");
    if !python.exists() {
        tests::skipped(
            "Python's kubernetes client",
            &format!("there is no {}: ./setup.sh test", python.display()),
        );
        return Ok(());
    }
    streams::start(cluster)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/clients.py");
    let output = Command::new("timeout")
        .arg("60")
        .arg(python)
        .arg(script)
        .env("KUBECONFIG", cluster.kubeconfig())
        .output()?;
    ensure!(output.status.success(), "{}", everything(&output));
    let told = String::from_utf8(output.stdout)?;
    let wanted = "list\nwatch\nstrategic merge patch\nJSON patch\nmerge patch\nexec\nattach\nlogs\ndelete\n";
    ensure!(told == wanted, "{told}");
    Ok(())
}
