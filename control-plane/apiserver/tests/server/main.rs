//! The server as clients see it, through kube-rs over TLS, on the bundled store and on a real etcd.

mod access;
mod apply;
mod bounds;
mod documents;
mod etcd;
mod eviction;
mod features;
mod figures;
#[path = "../harness/mod.rs"]
mod harness;
mod kubelet;
mod lists;
mod proxy;
mod services;
mod writes;

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Binding, ConfigMap, Namespace, Pod, Secret, ServiceAccount};
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, VersionMatch, WatchEvent, WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use harness::{Etcd, Files, free_port};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

const DEADLINE: Duration = Duration::from_secs(20);

/// One API server with its store; all of it ends with this value.
struct Cluster {
    client: Client,
    files: Files,
    port: u16,
    _server: DropGuard,
    _etcd: Etcd,
    _directory: Directory,
}

struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Runs a claim on every store there is.
async fn on_every_store<F>(name: &str, claim: impl Fn(Cluster) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    for real in [false, true] {
        if real && Etcd::binary().is_none() {
            eprintln!("SKIPPED on a real etcd: install Debian's etcd-server or set ETCD_BINARY");
            continue;
        }
        let cluster = Cluster::start(name, real).await?;
        let claim = tokio::time::timeout(DEADLINE * 2, claim(cluster)).await;
        claim.context("timed out")?.with_context(|| {
            if real {
                "on a real etcd"
            } else {
                "on the bundled store"
            }
        })?;
    }
    Ok(())
}

impl Cluster {
    async fn start(name: &str, real: bool) -> anyhow::Result<Self> {
        Cluster::start_with(name, real, |_| ()).await
    }

    async fn start_with(
        name: &str,
        real: bool,
        configure: impl FnOnce(&mut apiserver::Config),
    ) -> anyhow::Result<Self> {
        let directory = std::env::temp_dir().join(format!("cwt-api-{}-{name}-{real}", std::process::id()));
        let port = free_port()?;
        let files = Files::create(&directory, port)?;
        let etcd = if real {
            Etcd::real(&directory)?
        } else {
            Etcd::bundled(&directory).await?
        };
        let mut config = files.config(port, etcd.endpoint());
        configure(&mut config);
        let server = apiserver::Server::bind(config).await?;
        let shutdown = CancellationToken::new();
        let guard = shutdown.clone().drop_guard();
        tokio::spawn(async move { server.run(shutdown).await });
        let client = client(&files).await?;
        let cluster = Cluster {
            client,
            files,
            port,
            _server: guard,
            _etcd: etcd,
            _directory: Directory(directory),
        };
        cluster.ready().await?;
        Ok(cluster)
    }

    /// Waits for the server's word that it is ready: its namespaces are there then.
    async fn ready(&self) -> anyhow::Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), "default");
        eventually("the server is ready", async || {
            let question = http::Request::get("/readyz").body(Vec::new())?;
            Ok(self.client.request_text(question).await?)
        })
        .await?;
        let made = namespaces.list(&ListParams::default()).await?;
        let names: Vec<String> = made.iter().map(ResourceExt::name_any).collect();
        ensure!(
            names == ["default", "kube-node-lease", "kube-public", "kube-system"],
            "{names:?}"
        );
        accounts
            .create(
                &PostParams::default(),
                &from(json!({ "metadata": { "name": "default" } }))?,
            )
            .await?;
        Ok(())
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Where the store listens.
    fn store(&self) -> &str {
        self._etcd.endpoint()
    }

    fn https(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }
}

/// Asks until the answer is `Ok`, and returns it.
///
/// # Errors
/// With what was seen last, when that does not come to be within [`DEADLINE`].
async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let mut seen = anyhow::anyhow!("no answer");
    let asked = async {
        loop {
            match probe().await {
                Ok(answer) => return answer,
                Err(error) => seen = error,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let answer = tokio::time::timeout(DEADLINE, asked).await;
    answer.map_err(|_| seen.context(format!("not within {DEADLINE:?}: {what}; seen last")))
}

async fn client(files: &Files) -> anyhow::Result<Client> {
    client_of(files, "admin").await
}

async fn client_of(files: &Files, user: &str) -> anyhow::Result<Client> {
    let kubeconfig = Kubeconfig::read_from(files.kubeconfig_of(user))?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // The first answer is the one that is judged.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// A connection to the API server with the admin's certificate (or another's), for bytes that no client library sends.
async fn raw_connection(cluster: &Cluster) -> anyhow::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    raw_connection_of(cluster, "admin").await
}

async fn raw_connection_of(
    cluster: &Cluster,
    user: &str,
) -> anyhow::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", cluster.port)).await?;
    raw_connection_over(cluster, user, stream).await
}

async fn raw_connection_over(
    cluster: &Cluster,
    user: &str,
    stream: TcpStream,
) -> anyhow::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let path = |kind: &str| cluster.files.path(&format!("{user}.{kind}"));
    let certificate = vec![CertificateDer::from_pem_file(path("crt"))?];
    let tls =
        tls_of(cluster)?.with_client_auth_cert(certificate, PrivateKeyDer::from_pem_file(path("key"))?)?;
    Ok(TlsConnector::from(Arc::new(tls))
        .connect("localhost".try_into()?, stream)
        .await?)
}

/// A connection without credentials.
async fn anonymous_connection(
    cluster: &Cluster,
) -> anyhow::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", cluster.port)).await?;
    let tls = tls_of(cluster)?.with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(tls))
        .connect("localhost".try_into()?, stream)
        .await?)
}

/// Trusts the cluster's CA.
fn tls_of(
    cluster: &Cluster,
) -> anyhow::Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(cluster.files.path("ca.crt"))?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots))
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> anyhow::Result<T> {
    Ok(serde_json::from_value(value)?)
}

/// The code, reason and message of a refusal.
fn refused<T: Debug>(answer: kube::Result<T>) -> anyhow::Result<(u16, String, String)> {
    match answer {
        Err(kube::Error::Api(status)) => {
            let (code, reason, message) = (status.code, status.reason.clone(), status.message.clone());
            Ok((code, reason, message))
        }
        other => anyhow::bail!("expected a refusal, got {other:?}"),
    }
}

/// A request as it is, and the answer's code and JSON.
async fn raw(
    cluster: &Cluster,
    method: &str,
    path: &str,
    content_type: Option<&str>,
    body: impl Into<Vec<u8>>,
) -> anyhow::Result<(u16, Value)> {
    let (head, body) = raw_response(cluster, method, path, content_type, body).await?;
    Ok((head.status.as_u16(), body))
}

async fn raw_response(
    cluster: &Cluster,
    method: &str,
    path: &str,
    content_type: Option<&str>,
    body: impl Into<Vec<u8>>,
) -> anyhow::Result<(http::response::Parts, Value)> {
    use http_body_util::BodyExt as _;
    let mut request = http::Request::builder().method(method).uri(path);
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    let answer = cluster.client.send(request.body(body.into().into())?).await?;
    let (head, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok((head, serde_json::from_slice(&body)?))
}

/// The envelope of Kubernetes' protobuf around an object.
fn protobuf(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    use k8s_pb::apimachinery::pkg::runtime::{TypeMeta, Unknown};
    use prost::Message as _;
    let unknown = Unknown {
        type_meta: Some(TypeMeta {
            api_version: Some(api_version.to_owned()),
            kind: Some(kind.to_owned()),
        }),
        raw: Some(raw.to_owned()),
        ..Unknown::default()
    };
    [&b"k8s\0"[..], &unknown.encode_to_vec()].concat()
}

fn config_map(name: &str, labels: Value, data: Value) -> anyhow::Result<ConfigMap> {
    from(json!({ "metadata": { "name": name, "labels": labels }, "data": data }))
}

fn pod(name: &str) -> anyhow::Result<Pod> {
    from(json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "a", "image": "x:1" }] } }))
}

#[tokio::test]
async fn objects_are_created_changed_and_deleted_under_optimistic_locks() -> anyhow::Result<()> {
    on_every_store("crud", async |cluster| {
        let maps: Api<ConfigMap> = cluster.api();
        let made = maps
            .create(
                &PostParams::default(),
                &config_map("a", json!({}), json!({ "k": "1" }))?,
            )
            .await?;
        ensure!(made.uid().is_some() && made.creation_timestamp().is_some());
        let again = maps
            .create(&PostParams::default(), &config_map("a", json!({}), json!({}))?)
            .await;
        let expected = (
            409,
            "AlreadyExists".to_owned(),
            "configmaps \"a\" already exists".to_owned(),
        );
        ensure!(refused(again)? == expected);

        let patch = Patch::Merge(json!({ "data": { "k": "2" } }));
        let patched = maps.patch("a", &PatchParams::default(), &patch).await?;
        ensure!(patched.resource_version() != made.resource_version());
        let same = maps.patch("a", &PatchParams::default(), &patch).await?;
        ensure!(
            same.resource_version() == patched.resource_version(),
            "a change of nothing is no write"
        );
        let stale = maps.replace("a", &PostParams::default(), &made).await;
        ensure!(refused(stale)?.0 == 409);

        maps.delete("a", &DeleteParams::default()).await?;
        let expected = (
            404,
            "NotFound".to_owned(),
            "configmaps \"a\" not found".to_owned(),
        );
        ensure!(refused(maps.get("a").await)? == expected);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_watch_tells_what_enters_and_leaves_its_selection() -> anyhow::Result<()> {
    on_every_store("watch", async |cluster| {
        let maps: Api<ConfigMap> = cluster.api();
        let start = maps
            .list(&ListParams::default())
            .await?
            .metadata
            .resource_version
            .context("a revision")?;
        let parameters = WatchParams::default().labels("in=yes").timeout(10);
        let mut events = maps.watch(&parameters, &start).await?.boxed();
        let labelled = |value: &str| Patch::Merge(json!({ "metadata": { "labels": { "in": value } } }));
        maps.create(
            &PostParams::default(),
            &config_map("a", json!({ "in": "no" }), json!({}))?,
        )
        .await?;
        for value in ["yes", "yes", "no"] {
            maps.patch("a", &PatchParams::default(), &labelled(value)).await?;
            maps.patch(
                "a",
                &PatchParams::default(),
                &Patch::Merge(json!({ "data": { "v": value } })),
            )
            .await?;
        }
        maps.delete("a", &DeleteParams::default()).await?;
        maps.create(
            &PostParams::default(),
            &config_map("end", json!({ "in": "yes" }), json!({}))?,
        )
        .await?;
        let mut seen = Vec::new();
        while let Some(event) = events.try_next().await? {
            let (kind, name) = match event {
                WatchEvent::Added(map) => ("added", map.name_any()),
                WatchEvent::Modified(map) => ("modified", map.name_any()),
                WatchEvent::Deleted(map) => ("deleted", map.name_any()),
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(status) => anyhow::bail!("watch failed: {status:?}"),
            };
            let last = name == "end";
            seen.push(format!("{kind} {name}"));
            if last {
                break;
            }
        }
        ensure!(
            seen == ["added a", "modified a", "deleted a", "added end"],
            "{seen:?}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_watch_from_a_revision_that_the_store_has_not_reached_is_expired() -> anyhow::Result<()> {
    on_every_store("future", async |cluster| {
        let maps: Api<ConfigMap> = cluster.api();
        let mut events = maps.watch(&WatchParams::default(), "1000000000").await?.boxed();
        let first = events.try_next().await?;
        let Some(WatchEvent::Error(status)) = &first else {
            anyhow::bail!("expected a refusal, got {first:?}")
        };
        ensure!(
            (status.code, status.reason.as_str()) == (410, "Expired"),
            "{status:?}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_kubelet_writes_the_status_of_its_pods_and_reads_their_secrets_alone() -> anyhow::Result<()> {
    on_every_store("secrets", async |cluster| {
        let secrets: Api<Secret> = cluster.api();
        for name in ["of-n1", "of-n2", "unused"] {
            let secret = from(json!({ "metadata": { "name": name } }))?;
            secrets.create(&PostParams::default(), &secret).await?;
        }
        let pods: Api<Pod> = cluster.api();
        for node in ["n1", "n2"] {
            let mut bound = pod(node)?;
            bound.metadata.labels = Some([("app".to_owned(), "db".to_owned())].into());
            let spec = bound.spec.get_or_insert_default();
            spec.node_name = Some(node.to_owned());
            let secret = json!({ "secretName": format!("of-{node}") });
            spec.volumes = Some(vec![from(json!({ "name": "v", "secret": secret }))?]);
            pods.create(&PostParams::default(), &bound).await?;
        }
        let node = client_of(&cluster.files, "node").await?;
        let pods: Api<Pod> = Api::namespaced(node.clone(), "default");
        in_memory(&pods, 2).await?;
        let running = json!({ "status": { "phase": "Running" } });
        let relabelled = json!({ "metadata": { "labels": { "app": "web" } } });
        let tell = async |pod: &str, change: &Value| {
            pods.patch_status(pod, &PatchParams::default(), &Patch::Strategic(change))
                .await
        };
        tell("n1", &running).await?;
        ensure!(refused(tell("n2", &running).await)?.0 == 403);
        ensure!(refused(tell("n1", &relabelled).await)?.0 == 403);
        let secrets: Api<Secret> = Api::namespaced(node, "default");
        secrets.get("of-n1").await?;
        for name in ["of-n2", "unused", "absent"] {
            ensure!(refused(secrets.get(name).await)?.0 == 403, "{name}");
        }
        ensure!(refused(secrets.list(&ListParams::default()).await)?.0 == 403);
        Ok(())
    })
    .await
}

/// Waits until the server has so many objects in memory, which is what a list at any revision is answered from.
async fn in_memory<K>(api: &Api<K>, count: usize) -> anyhow::Result<()>
where
    K: Clone + serde::de::DeserializeOwned + Debug,
{
    let at_any_revision = ListParams::default().match_any();
    let seen =
        async { while !matches!(api.list(&at_any_revision).await, Ok(list) if list.items.len() == count) {} };
    tokio::time::timeout(DEADLINE, seen)
        .await
        .with_context(|| format!("the server never had {count} objects in memory"))
}

#[tokio::test]
async fn a_streaming_list_and_a_paged_list_both_initialise_a_watcher() -> anyhow::Result<()> {
    on_every_store("streaming", async |cluster| {
        let maps: Api<ConfigMap> = cluster.api();
        let made = maps
            .create(&PostParams::default(), &config_map("a", json!({}), json!({}))?)
            .await?;
        let version = made.resource_version().context("a version")?;
        let not_older = ListParams::default()
            .at(&version)
            .matching(VersionMatch::NotOlderThan);
        ensure!(maps.list(&not_older).await?.items.len() == 1);
        // kube's streaming list asks for any version, so it begins with what memory has.
        in_memory(&maps, 1).await?;
        for config in [
            watcher::Config::default().streaming_lists(),
            watcher::Config::default().page_size(1),
        ] {
            let mut events = watcher(maps.clone(), config).boxed();
            let mut seen = Vec::new();
            while let Some(event) = events.try_next().await? {
                match event {
                    watcher::Event::InitApply(map) => seen.push(map.name_any()),
                    watcher::Event::InitDone => break,
                    _ => {}
                }
            }
            ensure!(seen == ["a"], "{seen:?}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_running_pod_is_deleted_in_two_steps() -> anyhow::Result<()> {
    on_every_store("pods", async |cluster| {
        let pods: Api<Pod> = cluster.api();
        pods.create(&PostParams::default(), &pod("a")?).await?;
        let bind = async |uid: Option<&str>| {
            let metadata = json!({ "name": "a", "uid": uid });
            let binding: Binding =
                from(json!({ "metadata": metadata, "target": { "kind": "Node", "name": "n1" } }))?;
            let answer: kube::Result<Value> = pods
                .create_subresource("binding", "a", &PostParams::default(), &binding)
                .await;
            anyhow::Ok(answer)
        };
        let earlier = Some("of-an-earlier-pod");
        ensure!(
            refused(bind(earlier).await?)?.0 == 409,
            "the decision was for another pod"
        );
        bind(None).await??;
        ensure!(refused(bind(None).await?)?.0 == 409, "a pod is bound once");
        let selected = pods
            .list(&ListParams::default().fields("spec.nodeName=n1"))
            .await?;
        ensure!(selected.iter().map(ResourceExt::name_any).collect::<Vec<_>>() == ["a"]);

        pods.delete("a", &DeleteParams::default()).await?;
        let marked = pods.get("a").await?;
        ensure!(
            marked.metadata.deletion_timestamp.is_some()
                && marked.metadata.deletion_grace_period_seconds == Some(30)
        );
        pods.delete("a", &DeleteParams::default().grace_period(0)).await?;
        ensure!(pods.get_opt("a").await?.is_none());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_service_account_token_speaks_for_its_account_until_that_is_gone() -> anyhow::Result<()> {
    on_every_store("tokens", async |cluster| {
        let accounts: Api<ServiceAccount> = cluster.api();
        let body = json!({ "spec": {} });
        let answer: Value = accounts.create_subresource("token", "default", &PostParams::default(), &body).await?;
        let token = answer["status"]["token"].as_str().context("a token")?.to_owned();
        let mut config = kube::Config::new(cluster.https().parse()?);
        config.auth_info.token = Some(token.into());
        config.root_cert = kube::Config::from_custom_kubeconfig(
            Kubeconfig::read_from(cluster.files.kubeconfig())?,
            &KubeConfigOptions::default(),
        )
        .await?
        .root_cert;
        let client = Client::try_from(config)?;
        let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
        let (code, _, told) = refused(pods.list(&ListParams::default()).await)?;
        let expected = "pods is forbidden: User \"system:serviceaccount:default:default\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
        ensure!((code, told.as_str()) == (403, expected), "{told}");
        ensure!(client.list_core_api_resources("v1").await.is_ok(), "discovery is open to accounts");

        accounts.delete("default", &DeleteParams::default()).await?;
        eventually("the token ends with its account", async || {
            let (code, _, told) = refused(pods.list(&ListParams::default()).await)?;
            ensure!(code == 401, "{code}: {told}");
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn workloads_are_defaulted_scaled_and_counted_by_generation() -> anyhow::Result<()> {
    on_every_store("workloads", async |cluster| {
        let deployments: Api<Deployment> = cluster.api();
        let deployment: Deployment = from(json!({
            "metadata": { "name": "web" },
            "spec": {
                "selector": { "matchLabels": { "app": "web" } },
                "template": {
                    "metadata": { "labels": { "app": "web" } },
                    "spec": { "containers": [{ "name": "a", "image": "x" }] },
                },
            },
        }))?;
        let made = deployments.create(&PostParams::default(), &deployment).await?;
        let spec = made.spec.context("a spec")?;
        ensure!((spec.replicas, spec.progress_deadline_seconds) == (Some(1), Some(600)));
        let scaled = deployments
            .patch_scale(
                "web",
                &PatchParams::default(),
                &Patch::Merge(json!({ "spec": { "replicas": 3 } })),
            )
            .await?;
        ensure!(scaled.spec.and_then(|spec| spec.replicas) == Some(3));
        let status = Patch::Merge(
            json!({ "status": { "replicas": 3, "observedGeneration": 2 }, "spec": { "replicas": 9 } }),
        );
        let told = deployments
            .patch_status("web", &PatchParams::default(), &status)
            .await?;
        ensure!(
            told.metadata.generation == Some(2),
            "status does not count as a change"
        );
        ensure!(
            told.spec.and_then(|spec| spec.replicas) == Some(3),
            "status cannot change the spec"
        );
        ensure!(told.status.and_then(|status| status.replicas) == Some(3));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_namespace_goes_when_its_finalizers_are_gone() -> anyhow::Result<()> {
    on_every_store("namespaces", async |cluster| {
        let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
        namespaces.create(&PostParams::default(), &from(json!({ "metadata": { "name": "a" } }))?).await?;
        namespaces.delete("a", &DeleteParams::default()).await?;
        let going = namespaces.get("a").await?;
        ensure!(going.status.and_then(|status| status.phase).as_deref() == Some("Terminating"));
        let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "a");
        let (code, _, told) =
            refused(maps.create(&PostParams::default(), &config_map("m", json!({}), json!({}))?).await)?;
        ensure!(code == 403 && told.ends_with("because it is being terminated"), "{told}");
        let absent: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "absent");
        let (code, _, told) =
            refused(absent.create(&PostParams::default(), &config_map("m", json!({}), json!({}))?).await)?;
        ensure!((code, told.as_str()) == (404, "namespaces \"absent\" not found"));

        let body = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "a" }, "spec": { "finalizers": [] },
        });
        let _: Namespace = namespaces.replace_subresource("finalize", "a", &PostParams::default(), &body).await?;
        ensure!(namespaces.get_opt("a").await?.is_none());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_taken_address_is_named_in_the_error() -> anyhow::Result<()> {
    let cluster = Cluster::start("taken", false).await?;
    let second = apiserver::Server::bind(cluster.files.config(cluster.port, "http://127.0.0.1:1")).await;
    let told = second.err().context("two servers on one address")?.to_string();
    ensure!(told == format!("listen on 127.0.0.1:{}", cluster.port), "{told}");
    Ok(())
}
