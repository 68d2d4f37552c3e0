//! All controllers and the scheduler at work together, on an API server in memory and with kubelets that are
//! played.

#[cfg(test)]
mod fake;

use std::sync::Arc;
use std::time::Duration;

use controllers::{Config, KubernetesService};
use fake::{FakeApi, Faults, text};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Cluster {
    api: Arc<FakeApi>,
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Cluster {
    /// Two nodes, healthy pods.
    fn start(faults: Faults) -> Self {
        Self::start_with(faults, config(), |_| true)
    }

    fn start_with(faults: Faults, config: Config, is_healthy: fn(&Value) -> bool) -> Self {
        let api = FakeApi::new(faults);
        for name in ["n1", "n2"] {
            api.create("nodes", node(name));
        }
        let mut cluster = Self {
            api,
            shutdown: CancellationToken::new(),
            tasks: Vec::new(),
        };
        cluster
            .tasks
            .push(tokio::spawn(Arc::clone(&cluster.api).run_kubelets(is_healthy)));
        cluster.run_controllers(config);
        cluster
    }

    fn run_controllers(&mut self, config: Config) {
        let (client, shutdown) = (self.api.client(), self.shutdown.clone());
        self.tasks.push(tokio::spawn(async move {
            let ended = controllers::run(client, config, shutdown).await;
            assert!(ended.is_ok(), "{ended:?}");
        }));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn config() -> Config {
    Config {
        root_ca_pem: "-----BEGIN CERTIFICATE-----".to_owned(),
        kubernetes_service: Some(KubernetesService {
            cluster_ip: [10, 96, 0, 1].into(),
            port: 443,
            addresses: vec![[172, 30, 0, 1].into()],
            target_port: 6443,
        }),
        cluster_dns: Some([10, 96, 0, 10].into()),
        ..Config::default()
    }
}

fn node(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "spec": {},
        "status": {
            "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "110" },
            "conditions": [{ "type": "Ready", "status": "True" }],
            "addresses": [{ "type": "InternalIP", "address": name.replace('n', "172.30.0.1") }],
        },
    })
}

fn deployment(name: &str, replicas: usize) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
            "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 10,
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "c", "image": "causeway/testserver:v1" }] },
            },
        },
    })
}

fn service(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "clusterIP": "10.96.0.7", "selector": { "app": name },
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" }],
        },
    })
}

/// What `kubectl rollout status` waits for.
fn is_rolled_out(api: &FakeApi, name: &str, replicas: u64) -> bool {
    let Some(deployment) = api.get("deployments", "default", name) else {
        return false;
    };
    let count = |field: &str| deployment["status"][field].as_u64().unwrap_or(0);
    let is_current = deployment["status"]["observedGeneration"] == deployment["metadata"]["generation"];
    is_current
        && ["replicas", "updatedReplicas", "availableReplicas"]
            .iter()
            .all(|field| count(field) == replicas)
}

fn pods_of(api: &FakeApi, app: &str) -> Vec<Value> {
    api.all("pods")
        .into_iter()
        .filter(|pod| text(pod, "/metadata/labels/app") == app)
        .collect()
}

/// Addresses of a Service's ready endpoints, sorted.
fn ready_addresses(api: &FakeApi, service: &str) -> Vec<String> {
    let slices = api.all("endpointslices").into_iter();
    let slices = slices.filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == service);
    let endpoints = slices.flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
    let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true);
    let mut addresses: Vec<_> = ready
        .map(|endpoint| text(&endpoint, "/addresses/0").to_owned())
        .collect();
    addresses.sort();
    addresses
}

fn pod_addresses(api: &FakeApi, app: &str) -> Vec<String> {
    let mut addresses: Vec<_> = pods_of(api, app)
        .iter()
        .map(|pod| text(pod, "/status/podIP").to_owned())
        .collect();
    addresses.sort();
    addresses
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_becomes_pods_on_all_nodes_and_endpoints_of_its_service() {
    let cluster = Cluster::start(Faults::default());
    let api = &cluster.api;
    api.create("services", service("web"));
    api.create("deployments", deployment("web", 4));
    api.eventually("rolled out", |api| is_rolled_out(api, "web", 4))
        .await;
    api.eventually("endpoints", |api| ready_addresses(api, "web").len() == 4)
        .await;
    assert_eq!(ready_addresses(api, "web"), pod_addresses(api, "web"));
    let pods = pods_of(api, "web");
    for name in ["n1", "n2"] {
        assert_eq!(
            pods.iter()
                .filter(|pod| text(pod, "/spec/nodeName") == name)
                .count(),
            2,
            "on {name}"
        );
    }
    api.eventually("endpoints object", |api| {
        let endpoints = api.get("endpoints", "default", "web").unwrap_or_default();
        endpoints["subsets"][0]["addresses"].as_array().map(Vec::len) == Some(4)
    })
    .await;
    for (reason, count) in [
        ("ScalingReplicaSet", 1),
        ("SuccessfulCreate", 4),
        ("Scheduled", 4),
    ] {
        api.eventually(reason, |api| {
            let events = api.all("events");
            let told = events.iter().filter(|event| text(event, "/reason") == reason);
            told.count() == count
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_has_its_own_services_and_every_namespace_an_account_and_the_ca() {
    let cluster = Cluster::start(Faults::default());
    let api = &cluster.api;
    for namespace in ["default", "kube-system", "shop"] {
        api.create("namespaces", json!({ "metadata": { "name": namespace } }));
    }
    for namespace in ["default", "kube-system", "shop"] {
        api.eventually("account", |api| {
            api.get("serviceaccounts", namespace, "default").is_some()
        })
        .await;
        api.eventually("ca", |api| {
            let map = api
                .get("configmaps", namespace, "kube-root-ca.crt")
                .unwrap_or_default();
            map["data"]["ca.crt"] == "-----BEGIN CERTIFICATE-----"
        })
        .await;
    }
    api.eventually("kubernetes", |api| {
        ready_addresses(api, "kubernetes") == ["172.30.0.1"]
    })
    .await;
    api.eventually("dns", |api| {
        let dns = api.get("services", "kube-system", "kube-dns").unwrap_or_default();
        dns["spec"]["clusterIP"] == "10.96.0.10"
    })
    .await;
    let servers = |addresses: &'static [&'static str]| {
        api.eventually("servers of DNS", move |api| {
            ready_addresses(api, "kube-dns") == addresses
        })
    };
    servers(&["172.30.0.11", "172.30.0.12"]).await;
    let unready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } });
    api.patch("nodes", "", "n1", unready);
    servers(&["172.30.0.12"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_dns_that_one_slice_does_not_hold_are_in_a_second_one_for_as_long() {
    let cluster = Cluster::start(Faults::default());
    let api = &cluster.api;
    api.create("namespaces", json!({ "metadata": { "name": "kube-system" } }));
    for number in 3..=1001_u16 {
        let mut node = node(&format!("n{number}"));
        let [high, low] = number.to_be_bytes();
        node["status"]["addresses"][0]["address"] = json!(format!("172.31.{high}.{low}"));
        api.create("nodes", node);
    }
    let servers = |sizes: &'static [usize]| {
        api.eventually("servers of DNS", move |api| {
            let mut slices = api.all("endpointslices");
            slices.retain(|slice| text(slice, "/metadata/name").starts_with("kube-dns"));
            slices.sort_by_key(|slice| text(slice, "/metadata/name").to_owned());
            let found = slices
                .iter()
                .map(|slice| slice["endpoints"].as_array().map_or(0, Vec::len));
            found.collect::<Vec<_>>() == sizes
        })
    };
    servers(&[1000, 1]).await;
    let unready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } });
    api.patch("nodes", "", "n1", unready);
    servers(&[1000]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_that_are_behind_make_no_pod_too_many() {
    let cluster = Cluster::start(Faults {
        lag: Duration::from_millis(150),
        ..Faults::default()
    });
    let api = &cluster.api;
    api.create("services", service("web"));
    api.create("deployments", deployment("web", 20));
    api.eventually("rolled out", |api| is_rolled_out(api, "web", 20))
        .await;
    api.quiet().await;
    assert_eq!(api.ever("replicasets").len(), 1);
    assert_eq!(api.ever("pods").len(), 20);
    let slices = api.ever("endpointslices");
    assert_eq!(slices.iter().filter(|name| name.starts_with("web-")).count(), 1);
    for node in ["n1", "n2"] {
        let on_node = pods_of(api, "web")
            .iter()
            .filter(|pod| text(pod, "/spec/nodeName") == node)
            .count();
        assert_eq!(
            on_node, 10,
            "a burst is shared out although bindings are not seen yet"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_writes_delay_and_change_nothing_else() {
    let cluster = Cluster::start(Faults {
        fail_every: Some(3),
        ..Faults::default()
    });
    let api = &cluster.api;
    api.create("services", service("web"));
    api.create("deployments", deployment("web", 10));
    api.eventually("rolled out", |api| is_rolled_out(api, "web", 10))
        .await;
    api.eventually("endpoints", |api| ready_addresses(api, "web").len() == 10)
        .await;
    api.quiet().await;
    assert_eq!(pods_of(api, "web").len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_replaces_all_pods_and_undo_brings_the_old_template_back() {
    let cluster = Cluster::start(Faults::default());
    let api = &cluster.api;
    api.create("services", service("web"));
    api.create("deployments", deployment("web", 3));
    api.eventually("rolled out", |api| is_rolled_out(api, "web", 3))
        .await;
    let first = pod_addresses(api, "web");
    let template = |version: Value| json!({ "spec": { "template": { "metadata": { "annotations": { "v": version } } } } });
    api.patch("deployments", "default", "web", template(json!("2")));
    api.eventually("rolled out again", |api| is_rolled_out(api, "web", 3))
        .await;
    api.eventually("new endpoints", |api| {
        let ready = ready_addresses(api, "web");
        ready.len() == 3 && ready.iter().all(|address| !first.contains(address))
    })
    .await;
    api.patch("deployments", "default", "web", template(Value::Null));
    api.eventually("rolled back", |api| is_rolled_out(api, "web", 3))
        .await;
    let revision =
        |object: &Value| text(object, "/metadata/annotations/deployment.kubernetes.io~1revision").to_owned();
    let mut revisions: Vec<_> = api.all("replicasets").iter().map(revision).collect();
    revisions.sort();
    assert_eq!(revisions, ["2", "3"]);
}

fn daemon_set(name: &str) -> Value {
    let mut set = deployment(name, 0);
    set["spec"] = json!({
        "selector": set["spec"]["selector"], "template": set["spec"]["template"],
        "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 0, "maxUnavailable": 1 } },
        "revisionHistoryLimit": 10,
    });
    set
}

/// The nodes on which pods of an app run, sorted.
fn nodes_of(api: &FakeApi, app: &str) -> Vec<String> {
    let pods = pods_of(api, app).into_iter();
    let running = pods.filter(|pod| pod.pointer("/metadata/deletionTimestamp").is_none());
    let mut nodes: Vec<_> = running
        .map(|pod| text(&pod, "/spec/nodeName").to_owned())
        .collect();
    nodes.sort();
    nodes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_set_has_a_pod_on_every_node_also_with_failing_writes_and_late_news() {
    for faults in [
        Faults::default(),
        Faults {
            lag: Duration::from_millis(50),
            fail_every: Some(3),
        },
    ] {
        let cluster = Cluster::start(faults);
        let api = &cluster.api;
        api.create("daemonsets", daemon_set("agent"));
        api.eventually("on two nodes", |api| nodes_of(api, "agent") == ["n1", "n2"])
            .await;
        api.create("nodes", node("n3"));
        api.eventually("on a new one", |api| nodes_of(api, "agent") == ["n1", "n2", "n3"])
            .await;
        let taint = |taints: Value| json!({ "spec": { "taints": taints } });
        let key = json!([{ "key": "only", "value": "others", "effect": "NoExecute" }]);
        api.patch("nodes", "", "n2", taint(key));
        api.eventually("off a tainted one", |api| nodes_of(api, "agent") == ["n1", "n3"])
            .await;
        api.patch("nodes", "", "n2", taint(json!([])));
        api.eventually("back again", |api| nodes_of(api, "agent") == ["n1", "n2", "n3"])
            .await;
        let before = pod_addresses(api, "agent");
        let template = json!({ "spec": { "template": { "metadata": { "annotations": { "v": "2" } } } } });
        api.patch("daemonsets", "default", "agent", template);
        api.eventually("all replaced", |api| {
            let set = api.get("daemonsets", "default", "agent").unwrap_or_default();
            let status = &set["status"];
            status["observedGeneration"] == set["metadata"]["generation"]
                && status["updatedNumberScheduled"] == 3
                && status["numberAvailable"] == 3
        })
        .await;
        let after = pod_addresses(api, "agent");
        assert!(
            before.iter().all(|address| !after.contains(address)),
            "{before:?} {after:?}"
        );
        let revisions = api.all("controllerrevisions");
        let mut numbers: Vec<_> = revisions
            .iter()
            .filter_map(|one| one["revision"].as_u64())
            .collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2]);
        api.quiet().await;
        assert_eq!(nodes_of(api, "agent"), ["n1", "n2", "n3"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_keeps_its_names_and_changes_from_the_top() {
    for faults in [
        Faults::default(),
        Faults {
            lag: Duration::from_millis(50),
            fail_every: Some(3),
        },
    ] {
        let cluster = Cluster::start(faults);
        let api = &cluster.api;
        let mut set = deployment("db", 3);
        set["spec"] = json!({
            "replicas": 3, "selector": set["spec"]["selector"], "template": set["spec"]["template"], "serviceName": "db",
            "podManagementPolicy": "OrderedReady", "updateStrategy": { "type": "RollingUpdate" },
        });
        api.create("statefulsets", set);
        let names = |api: &FakeApi| -> Vec<String> {
            pods_of(api, "db")
                .iter()
                .map(|pod| text(pod, "/metadata/name").to_owned())
                .collect()
        };
        let is_whole = |api: &FakeApi, revision: u64| {
            let set = api.get("statefulsets", "default", "db").unwrap_or_default();
            let status = &set["status"];
            let revisions = api.all("controllerrevisions");
            let newest = revisions.iter().find(|one| one["revision"] == revision);
            let newest = newest
                .map(|one| one["metadata"]["name"].clone())
                .unwrap_or_default();
            status["readyReplicas"] == 3
                && status["updatedReplicas"] == 3
                && status["currentRevision"] == newest
        };
        api.eventually("whole", |api| is_whole(api, 1)).await;
        assert_eq!(names(api), ["db-0", "db-1", "db-2"]);
        assert_eq!(
            api.ever("pods"),
            ["db-0", "db-1", "db-2"],
            "in order, and each once"
        );
        let template = json!({ "spec": { "template": { "metadata": { "annotations": { "v": "2" } } } } });
        api.patch("statefulsets", "default", "db", template);
        api.eventually("changed", |api| is_whole(api, 2)).await;
        assert_eq!(api.ever("pods")[3..], ["db-2", "db-1", "db-0"]);
        api.patch(
            "statefulsets",
            "default",
            "db",
            json!({ "spec": { "replicas": 1 } }),
        );
        api.eventually("smaller", |api| names(api) == ["db-0"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_tells_what_may_go_as_pods_and_scales_change() {
    let cluster = Cluster::start(Faults::default());
    let api = &cluster.api;
    let budget = json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": { "maxUnavailable": "50%", "selector": { "matchLabels": { "app": "web" } } },
    });
    api.create("poddisruptionbudgets", budget);
    api.create("deployments", deployment("web", 2));
    let told = |wanted: [u64; 4]| {
        api.eventually("told", move |api| {
            let budget = api
                .get("poddisruptionbudgets", "default", "web")
                .unwrap_or_default();
            let fields = [
                "currentHealthy",
                "desiredHealthy",
                "expectedPods",
                "disruptionsAllowed",
            ];
            fields.map(|field| budget["status"][field].as_u64().unwrap_or(99)) == wanted
        })
    };
    told([2, 1, 2, 1]).await;
    api.patch(
        "deployments",
        "default",
        "web",
        json!({ "spec": { "replicas": 4 } }),
    );
    told([4, 2, 4, 2]).await;
    let unmanaged = json!({
        "metadata": { "name": "alone", "namespace": "default", "labels": { "app": "web", "alone": "yes" } },
        "spec": { "containers": [], "nodeName": "n1" },
    });
    api.patch(
        "poddisruptionbudgets",
        "default",
        "web",
        json!({ "spec": { "selector": {
        "matchLabels": { "alone": "yes" } } } }),
    );
    api.create("pods", unmanaged);
    told([1, 0, 0, 0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_at_rest_writes_nothing() {
    let cluster = Cluster::start(Faults::default());
    let api = &cluster.api;
    api.create("services", service("web"));
    api.create("deployments", deployment("web", 3));
    api.create("daemonsets", daemon_set("agent"));
    api.eventually("rolled out", |api| is_rolled_out(api, "web", 3))
        .await;
    api.quiet().await;
    let before = api.writes();
    tokio::time::timeout(Duration::from_millis(500), std::future::pending::<()>())
        .await
        .unwrap_err();
    assert_eq!(api.writes(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn controllers_that_start_anew_find_nothing_to_do() {
    let mut cluster = Cluster::start(Faults::default());
    cluster.api.create("services", service("web"));
    cluster.api.create("deployments", deployment("web", 3));
    cluster
        .api
        .eventually("rolled out", |api| is_rolled_out(api, "web", 3))
        .await;
    cluster.api.quiet().await;
    cluster.shutdown.cancel();
    cluster.shutdown = CancellationToken::new();
    let before = cluster.api.writes();
    cluster.run_controllers(config());
    cluster.api.quiet().await;
    assert_eq!(cluster.api.writes(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_deployment_owns_goes_with_it() {
    for policy in ["Background", "Foreground"] {
        let cluster = Cluster::start(Faults::default());
        let api = &cluster.api;
        api.create("deployments", deployment("web", 3));
        api.eventually("rolled out", |api| is_rolled_out(api, "web", 3))
            .await;
        api.delete(
            "deployments",
            "default",
            "web",
            json!({ "propagationPolicy": policy }),
        );
        api.eventually(policy, |api| {
            ["deployments", "replicasets", "pods"]
                .iter()
                .all(|plural| api.all(plural).is_empty())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_stay_and_are_adopted_by_a_successor() {
    let cluster = Cluster::start(Faults::default());
    let api = &cluster.api;
    api.create("deployments", deployment("web", 3));
    api.eventually("rolled out", |api| is_rolled_out(api, "web", 3))
        .await;
    api.delete(
        "deployments",
        "default",
        "web",
        json!({ "propagationPolicy": "Orphan" }),
    );
    api.eventually("orphaned", |api| {
        let sets = api.all("replicasets");
        api.all("deployments").is_empty()
            && sets.len() == 1
            && text(&sets[0], "/metadata/ownerReferences/0/uid").is_empty()
    })
    .await;
    let pods = api.ever("pods");
    api.create("deployments", deployment("web", 3));
    api.eventually("adopted", |api| is_rolled_out(api, "web", 3))
        .await;
    assert_eq!(api.ever("pods"), pods);
    assert_eq!(api.all("replicasets").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_ends_with_everything_in_it() {
    let cluster = Cluster::start(Faults::default());
    let api = &cluster.api;
    api.create("namespaces", json!({ "metadata": { "name": "shop" } }));
    let mut shop = deployment("web", 2);
    shop["metadata"]["namespace"] = json!("shop");
    api.create("deployments", shop);
    api.eventually("pods", |api| pods_of(api, "web").len() == 2).await;
    api.delete("namespaces", "", "shop", json!({}));
    api.eventually("ended", |api| api.get("namespaces", "", "shop").is_none())
        .await;
    for plural in [
        "pods",
        "replicasets",
        "deployments",
        "serviceaccounts",
        "configmaps",
    ] {
        let left = api
            .all(plural)
            .into_iter()
            .filter(|object| text(object, "/metadata/namespace") == "shop");
        assert_eq!(left.collect::<Vec<_>>(), Vec::<Value>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_leave_when_their_pod_is_told_to_go() {
    let cluster = Cluster::start_with(Faults::default(), config(), |_| true);
    let api = &cluster.api;
    api.create("services", service("web"));
    api.create("deployments", deployment("web", 2));
    api.eventually("endpoints", |api| ready_addresses(api, "web").len() == 2)
        .await;
    let victim = pods_of(api, "web").remove(0);
    api.delete("pods", "default", text(&victim, "/metadata/name"), json!({}));
    let gone = text(&victim, "/status/podIP").to_owned();
    api.eventually("replaced", |api| {
        let ready = ready_addresses(api, "web");
        ready.len() == 2 && !ready.contains(&gone)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_not_ready_any_more_leaves_its_slice_which_tells_since_when() {
    let cluster = Cluster::start(Faults::default());
    let api = &cluster.api;
    api.create("services", service("web"));
    api.create("deployments", deployment("web", 2));
    api.eventually("endpoints", |api| ready_addresses(api, "web").len() == 2)
        .await;
    let pod = pods_of(api, "web").remove(0);
    let moment = "2126-01-01T00:00:00Z";
    let unready = json!([{ "type": "Ready", "status": "False", "lastTransitionTime": moment }]);
    api.patch(
        "pods",
        "default",
        text(&pod, "/metadata/name"),
        json!({ "status": { "conditions": unready } }),
    );
    let gone = text(&pod, "/status/podIP");
    api.eventually("left", |api| {
        let slices = api.all("endpointslices");
        let slice = slices
            .iter()
            .find(|slice| text(slice, "/metadata/name").starts_with("web-"));
        let annotation = "/metadata/annotations/endpoints.kubernetes.io~1last-change-trigger-time";
        let ready = ready_addresses(api, "web");
        ready.len() == 1
            && !ready.iter().any(|address| address == gone)
            && slice.is_some_and(|slice| text(slice, annotation) == moment)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_given_a_zone_gives_it_to_its_endpoints() {
    let cluster = Cluster::start(Faults::default());
    let api = &cluster.api;
    let mut close = service("web");
    close["spec"]["trafficDistribution"] = json!("PreferClose");
    api.create("services", close);
    api.create("deployments", deployment("web", 2));
    api.eventually("endpoints", |api| ready_addresses(api, "web").len() == 2)
        .await;
    for name in ["n1", "n2"] {
        let labels = json!({ "topology.kubernetes.io/zone": format!("zone-of-{name}") });
        api.patch("nodes", "", name, json!({ "metadata": { "labels": labels } }));
    }
    api.eventually("zones and hints", |api| {
        let slices = api.all("endpointslices");
        let mut endpoints = slices
            .iter()
            .filter(|slice| text(slice, "/metadata/name").starts_with("web-"))
            .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
        endpoints.all(|endpoint| {
            let zone = format!("zone-of-{}", text(&endpoint, "/nodeName"));
            text(&endpoint, "/zone") == zone && text(&endpoint, "/hints/forZones/0/name") == zone
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_without_room_say_why_and_run_when_there_is_room() {
    let cluster = Cluster::start(Faults::default());
    let api = &cluster.api;
    let mut greedy = deployment("web", 1);
    greedy["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({ "requests": { "cpu": "6" } });
    api.create("deployments", greedy);
    let message = "0/2 nodes are available: 2 Insufficient cpu.";
    api.eventually("reported", |api| {
        let pods = pods_of(api, "web");
        pods.iter()
            .any(|pod| text(pod, "/status/conditions/0/message") == message)
    })
    .await;
    let mut large = node("n3");
    large["status"]["allocatable"]["cpu"] = json!("8");
    api.create("nodes", large);
    api.eventually("rolled out", |api| is_rolled_out(api, "web", 1))
        .await;
    assert_eq!(text(&pods_of(api, "web")[0], "/spec/nodeName"), "n3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_is_unknown_and_tainted_and_its_pods_leave_their_services() {
    let grace = Duration::from_millis(600);
    let cluster = Cluster::start_with(
        Faults::default(),
        Config {
            node_grace: grace,
            ..config()
        },
        |_| true,
    );
    let api = &cluster.api;
    let lease = |time: u32| json!({ "spec": { "renewTime": format!("2026-01-01T00:00:00.{time:06}Z") } });
    for name in ["n1", "n2"] {
        api.create(
            "leases",
            json!({ "metadata": { "name": name, "namespace": "kube-node-lease" } }),
        );
    }
    let renewing = Arc::clone(api);
    let renewal = tokio::spawn(async move {
        for time in 0.. {
            renewing.patch("leases", "kube-node-lease", "n1", lease(time));
            tokio::time::sleep(grace / 6).await;
        }
    });
    api.create("services", service("web"));
    api.create("deployments", deployment("web", 2));
    api.eventually("silence is noticed", |api| {
        let node = api.get("nodes", "", "n2").unwrap();
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        text(&node, "/status/conditions/0/status") == "Unknown"
            && taints
                .iter()
                .any(|taint| taint["key"] == "node.kubernetes.io/unreachable")
    })
    .await;
    api.eventually("only the living node's pod is an endpoint", |api| {
        let on = |name: &str| -> Vec<String> {
            let pods = pods_of(api, "web")
                .into_iter()
                .filter(|pod| text(pod, "/spec/nodeName") == name);
            pods.map(|pod| text(&pod, "/status/podIP").to_owned()).collect()
        };
        let ready = ready_addresses(api, "web");
        !ready.is_empty() && ready == on("n1")
    })
    .await;
    assert_eq!(
        text(
            &api.get("nodes", "", "n1").unwrap(),
            "/status/conditions/0/status"
        ),
        "True"
    );
    let back = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:09Z" }] } });
    api.patch("nodes", "", "n2", back);
    api.eventually("its taints go", |api| {
        let node = api.get("nodes", "", "n2").unwrap();
        node["spec"]["taints"].as_array().is_none_or(Vec::is_empty)
    })
    .await;
    renewal.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_a_user_made_are_mirrored_to_slices() {
    let cluster = Cluster::start(Faults::default());
    let api = &cluster.api;
    let mut by_hand = service("db");
    by_hand["spec"].as_object_mut().unwrap().remove("selector");
    api.create("services", by_hand);
    let subset = |address: &str| json!([{ "addresses": [{ "ip": address }], "ports": [{ "name": "http", "port": 5432 }] }]);
    let meta = json!({ "name": "db", "namespace": "default" });
    api.create(
        "endpoints",
        json!({ "metadata": meta, "subsets": subset("192.0.2.1") }),
    );
    api.eventually("mirrored", |api| ready_addresses(api, "db") == ["192.0.2.1"])
        .await;
    api.patch(
        "endpoints",
        "default",
        "db",
        json!({ "subsets": subset("192.0.2.2") }),
    );
    api.eventually("changed", |api| ready_addresses(api, "db") == ["192.0.2.2"])
        .await;
    api.delete("endpoints", "default", "db", json!({}));
    api.eventually("gone", |api| {
        let slices = api.all("endpointslices");
        !slices
            .iter()
            .any(|slice| text(slice, "/metadata/name").starts_with("db-"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_made_of_others_follows_them() {
    let cluster = Cluster::start(Faults::default());
    let role = |name: &str, labels: Value, verb: &str| {
        json!({ "metadata": { "name": name, "labels": labels },
            "rules": [{ "verbs": [verb], "apiGroups": [""], "resources": ["pods"] }] })
    };
    let mut whole = role("whole", json!({}), "delete");
    whole["aggregationRule"] = json!({ "clusterRoleSelectors": [{ "matchLabels": { "to": "whole" } }] });
    cluster.api.create("clusterroles", whole);
    cluster
        .api
        .create("clusterroles", role("a", json!({ "to": "whole" }), "get"));
    cluster.api.create("clusterroles", role("b", json!({}), "list"));
    let verbs = |api: &FakeApi| {
        let whole = api.get("clusterroles", "", "whole").unwrap_or_default();
        let rules = whole["rules"].as_array().cloned().unwrap_or_default();
        let verbs = rules.iter().map(|rule| text(rule, "/verbs/0").to_owned());
        verbs.collect::<Vec<_>>()
    };
    let api = &cluster.api;
    api.eventually("made", |api| verbs(api) == ["get"]).await;
    let labelled = json!({ "metadata": { "labels": { "to": "whole" } } });
    api.patch("clusterroles", "", "b", labelled);
    api.eventually("one more", |api| verbs(api) == ["get", "list"])
        .await;
    api.delete("clusterroles", "", "a", json!({}));
    api.eventually("one less", |api| verbs(api) == ["list"]).await;
}
