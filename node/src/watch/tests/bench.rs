//! A watch on a fake API server.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model::Snapshot;
use serde_json::{Value, json};
use tests::directory::Directory;
use tests::fake_api::FakeApi;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::watch::{ApiSource, Events, KINDS, Status, Wanted};

/// No condition here needs more than the back-off after a failed request.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

/// A fake API server, and a watch on it.
pub(super) struct Bench {
    pub(super) api: FakeApi,
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(super) status: Status,
    pub(super) directory: Directory,
    _watch: AbortOnDropHandle<()>,
    _write: AbortOnDropHandle<()>,
}

impl Bench {
    /// On a server that asks nobody who it is.
    pub(super) fn start(prepare: impl FnOnce(&FakeApi)) -> Self {
        Self::start_in(Directory::new("watch"), |api, kubeconfig| {
            prepare(api);
            api.write_kubeconfig(kubeconfig)
                .expect("temporary directory is writable");
        })
    }

    /// On a server that `prepare` makes a kubeconfig for, with files in this directory.
    pub(super) fn start_in(directory: Directory, prepare: impl FnOnce(&FakeApi, &Path)) -> Self {
        let api = FakeApi::start().expect("loopback is there");
        let kubeconfig = directory.path().join("kubeconfig");
        prepare(&api, &kubeconfig);
        let (sender, snapshots) = watch::channel(Arc::default());
        let status = Status::default();
        let source = ApiSource {
            credentials: Some(kubeconfig).into(),
            ..ApiSource::default()
        };
        let (events, notices) = Events::queue();
        let write = notices.write(source.clone(), "node-1".into(), |_| {}, CancellationToken::new());
        let watch = crate::watch::run(
            source,
            Wanted::by_agents(),
            sender,
            status.clone(),
            events,
            CancellationToken::new(),
        );
        Self {
            api,
            snapshots,
            status,
            directory,
            _watch: AbortOnDropHandle::new(tokio::spawn(watch)),
            _write: AbortOnDropHandle::new(tokio::spawn(write)),
        }
    }

    /// Waits until a snapshot fulfils the condition.
    #[track_caller]
    pub(super) fn until(
        &self,
        what: &'static str,
        condition: impl Fn(&Snapshot) -> bool,
    ) -> impl Future<Output = Arc<Snapshot>> {
        let mut snapshots = self.snapshots.clone();
        async move {
            let found =
                tokio::time::timeout(DEADLINE, snapshots.wait_for(|snapshot| condition(snapshot))).await;
            match found {
                Ok(snapshot) => snapshot.expect("the watch runs on").clone(),
                Err(_) => panic!("not within {DEADLINE:?}: {what}"),
            }
        }
    }

    pub(super) async fn until_services(&self, names: &[&str]) -> Arc<Snapshot> {
        let wanted: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.until("services", move |snapshot| {
            synced(snapshot) && services(snapshot) == wanted
        })
        .await
    }
}

pub(super) fn synced(snapshot: &Snapshot) -> bool {
    KINDS.iter().all(|kind| snapshot.is_synced(*kind))
}

pub(super) fn services(snapshot: &Snapshot) -> BTreeSet<String> {
    snapshot
        .services
        .iter()
        .map(|(name, _)| name.name.to_string())
        .collect()
}

pub(super) fn service(name: &str, port: i64) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name},
        "spec": {"clusterIPs": ["10.96.0.7"], "ports": [{"port": port}]},
    })
}

pub(super) fn slice(name: &str, service: &str, address: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": [{"addresses": [address]}], "ports": [{"port": 80}],
    })
}

pub(super) fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
}

pub(super) fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

pub(super) fn feed(api: &FakeApi) {
    api.put(namespace("default"));
    api.put(node("node-1"));
    api.put(service("a", 80));
    api.put(service("b", 80));
    api.put(slice("a-1", "a", "10.244.1.2"));
}

pub(super) async fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
