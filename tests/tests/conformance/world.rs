//! The cluster that is judged, and who asks in it: a pod and a process of the host's network on each node, and somebody
//! outside where the cluster is the test's own.

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tests::api::Api;
use tests::client::Client;
use tests::cluster::{Cluster, process_of};
use tests::directory::Directory;
use tests::process::copy_program;
use tests::route::Unserved;
use tests::wait;

/// What clusters may take to follow a change unless [`PATIENCE`] says so: what upstream's suite has for endpoints, twice.
const SOON: Duration = Duration::from_secs(60);
/// Seconds that the cluster may take to follow a change.
const PATIENCE: &str = "CONFORMANCE_PATIENCE";
/// The host's address on the nodes' network: who is outside comes from it.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
/// Clusters whose nodes cannot fetch Causeway's image may have it by another name.
const IMAGE: &str = "CONFORMANCE_IMAGE";
/// The label that says where a node is.
const ZONE: &str = "topology.kubernetes.io/zone";
/// So many nodes are used.
const NODES: usize = 3;

/// How the suite's own cluster is brought up.
const FLAGS: [&str; 7] = [
    "--allow-external-ips",
    "--service-cidr",
    "10.96.0.0/12,fd00:10:96::/112",
    "--underlay-cidr",
    "172.30.0.0/24,fd00:172:30::/64",
    "--pod-cidr",
    "10.244.0.0/16,fd00:10:244::/48",
];

/// A node that pods can be on.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its address in the cluster.
    pub address: IpAddr,
    /// Its zone, if it says so.
    pub zone: Option<String>,
}

/// The cluster.
pub struct World {
    /// Its API.
    pub api: Arc<Api>,
    /// Up to three nodes.
    pub nodes: Vec<Node>,
    /// A pod on each that does nothing else.
    pub pods: Vec<Client>,
    /// A pod of the host's network on each: the node itself.
    pub hosts: Vec<Client>,
    /// Whether its pods have addresses of both versions of IP.
    pub has_both_families: bool,
    /// Who is no part of the cluster.
    pub outside: Option<Client>,
    namespace: String,
    /// Goes last: the others need it.
    own: Option<Own>,
}

/// A cluster of the test's own.
struct Own {
    cluster: Cluster,
    _unserved: Unserved,
    /// Where the program of who is outside is.
    _directory: Directory,
}

impl World {
    /// The cluster of a kubeconfig, which stays as it is but for namespaces that are made and removed.
    pub fn foreign(kubeconfig: &Path) -> anyhow::Result<Self> {
        println!("the cluster of {}", kubeconfig.display());
        Self::of(Arc::new(Api::open(kubeconfig)?))
    }

    /// A cluster that is brought up, and taken down at the end.
    pub fn own() -> anyhow::Result<Self> {
        let state_dir = PathBuf::from(format!("/var/lib/cwt-conformance-{}", std::process::id()));
        let cluster = Cluster::up(&state_dir, &FLAGS)?;
        let api = Arc::new(Api::open(&cluster.kubeconfig())?);
        let usable = || usable_nodes(&api).map_or(0, |nodes| nodes.len());
        wait::until_value("nodes that take pods", soon(), usable, |count| *count == NODES);
        for (node, zone) in [("node-1", "near"), ("node-2", "near"), ("node-3", "far")] {
            let label = json!({"metadata": {"labels": {ZONE: zone}}});
            api.merge_patch(&format!("/api/v1/nodes/{node}"), &label)?;
        }
        let mut world = Self::of(api)?;
        let directory = Directory::new("conformance");
        let program = directory.path().join("testserver");
        let pod = world
            .api
            .read(&format!("/api/v1/namespaces/{}/pods/pod-1", world.namespace))?;
        let uid = pod["metadata"]["uid"].as_str().context("uid")?;
        let process = process_of(uid).context("the pod has no process")?;
        copy_program(Path::new(&format!("/proc/{process}/exe")), &program)?;
        world.outside = Some(Client::outside(OUTSIDE.into(), &program).patient(soon()));
        world.own = Some(Own {
            cluster,
            _unserved: Unserved::new()?,
            _directory: directory,
        });
        Ok(world)
    }

    fn of(api: Arc<Api>) -> anyhow::Result<Self> {
        let nodes = usable_nodes(&api)?;
        let namespace = make_namespace(&api)?;
        let collection = format!("/api/v1/namespaces/{namespace}/pods");
        for (number, node) in (1..).zip(&nodes) {
            for (name, on_host) in [("pod", false), ("host", true)] {
                let spec = json!({
                    "nodeName": node.name, "hostNetwork": on_host, "terminationGracePeriodSeconds": 1,
                    "automountServiceAccountToken": false,
                    "containers": [{"name": "client", "image": image(), "args": ["sleep", "infinity"]}],
                });
                let pod = json!({"metadata": {"name": format!("{name}-{number}")}, "spec": spec});
                api.create(&collection, &pod)?;
            }
        }
        let client = |name: &str, number: usize| {
            let pod = format!("{name}-{number}");
            let address = await_address(&api, &namespace, &pod);
            let name = format!("{pod} on {}", nodes[number - 1].name);
            Client::by_api(&api, (&namespace, &pod), (&name, address), soon())
        };
        let pods = (1..=nodes.len()).map(|number| client("pod", number)).collect();
        let hosts = (1..=nodes.len()).map(|number| client("host", number)).collect();
        let pod = api.read(&format!("{collection}/pod-1"))?;
        Ok(Self {
            has_both_families: pod["status"]["podIPs"]
                .as_array()
                .is_some_and(|all| all.len() == 2),
            pods,
            hosts,
            nodes,
            outside: None,
            namespace,
            own: None,
            api,
        })
    }

    /// Clients in pods and on nodes.
    pub fn inside(&self) -> impl Iterator<Item = &Client> {
        self.pods.iter().chain(&self.hosts)
    }

    /// The only ones for who a Service's external address at a node is reached from somewhere else: the other nodes.
    pub fn other_hosts(&self, node: usize) -> impl Iterator<Item = &Client> {
        let others = self.hosts.iter().enumerate();
        others
            .filter(move |(number, _)| *number != node)
            .map(|(_, host)| host)
    }

    /// Who is outside, in the cases that need it.
    pub fn outsider(&self) -> anyhow::Result<&Client> {
        self.outside.as_ref().context("nobody is outside")
    }

    /// Prints the logs of the cluster's processes, where they are to be had.
    pub fn print_logs(&self) {
        if let Some(own) = &self.own {
            own.cluster.print_logs();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        remove_namespace(&self.api, &self.namespace);
    }
}

/// What the cluster may take to follow a change.
pub fn soon() -> Duration {
    let seconds = std::env::var(PATIENCE)
        .ok()
        .and_then(|seconds| seconds.parse().ok());
    seconds.map_or(SOON, Duration::from_secs)
}

/// The image of all pods.
pub fn image() -> String {
    std::env::var(IMAGE).unwrap_or_else(|_| "causeway/testserver:v1".to_owned())
}

/// The first nodes that take any pod.
fn usable_nodes(api: &Api) -> anyhow::Result<Vec<Node>> {
    let list = api.read("/api/v1/nodes")?;
    let items = list["items"].as_array().context("nodes")?;
    let is_usable = |node: &&Value| {
        let taints = node["spec"]["taints"].as_array();
        taints.is_none_or(Vec::is_empty) && is_ready(node)
    };
    let nodes = items.iter().filter(is_usable).take(NODES).map(read_node);
    let nodes: Vec<Node> = nodes.collect::<anyhow::Result<_>>()?;
    ensure!(!nodes.is_empty(), "no node is ready and without taints");
    Ok(nodes)
}

/// A node's or a pod's condition.
fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    let says_so = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    conditions.is_some_and(|all| all.iter().any(says_so))
}

fn read_node(node: &Value) -> anyhow::Result<Node> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let name = text(&node["metadata"]["name"]).context("name")?;
    let addresses = node["status"]["addresses"].as_array().context("addresses")?;
    let internal = addresses.iter().find(|address| address["type"] == "InternalIP");
    let internal = internal.and_then(|address| address["address"].as_str());
    Ok(Node {
        address: internal
            .with_context(|| format!("{name} has no InternalIP"))?
            .parse()?,
        zone: text(&node["metadata"]["labels"][ZONE]),
        name,
    })
}

/// A namespace where pods may use the host's network and ports.
pub fn make_namespace(api: &Api) -> anyhow::Result<String> {
    let labels = json!({"pod-security.kubernetes.io/enforce": "privileged"});
    let metadata = json!({"generateName": "conformance-", "labels": labels});
    let made = api.create("/api/v1/namespaces", &json!({ "metadata": metadata }))?;
    let name = made["metadata"]["name"].as_str().context("name")?;
    // Pods are refused before their account is there.
    let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
    wait::until(&account, soon(), || api.read(&account));
    Ok(name.to_owned())
}

/// Removes one, and its pods at once: some are there to end late.
pub fn remove_namespace(api: &Api, name: &str) {
    let path = format!("/api/v1/namespaces/{name}");
    let removed = api
        .delete(&format!("{path}/pods"), Some(0))
        .and_then(|_| api.delete(&path, None));
    if let Err(error) = removed {
        eprintln!("left behind: {error:#}");
    }
}

/// Asks until an answer is good, and returns it. `what` tells which one, for the message that ends the case.
#[track_caller]
pub fn await_answer<T: Debug>(
    what: &str,
    mut ask: impl FnMut() -> anyhow::Result<T>,
    good: impl Fn(&T) -> bool,
) -> T {
    wait::until(what, soon(), || match ask() {
        Ok(answer) if good(&answer) => Ok(answer),
        Ok(answer) => Err(format!("{answer:?}")),
        Err(error) => Err(format!("{error:#}")),
    })
}

/// Waits until a pod is ready, and tells its address.
#[track_caller]
pub fn await_address(api: &Api, namespace: &str, pod: &str) -> IpAddr {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}");
    let what = format!("{namespace}/{pod} is ready");
    let pod = await_answer(&what, || api.read(&path), is_ready);
    let address = pod["status"]["podIP"].as_str().and_then(|text| text.parse().ok());
    address.expect("a ready pod has an address")
}
