//! What the API server is asked: who the agents are, where pods are, and what a refusal means.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, bail, ensure};
use model::{ObjectName, with_causes};
use serde_json::Value;

use super::errand::Errand;
use super::nodes::{self, Chosen, Wanted};
use crate::cli::OnArgs;
use crate::ends::nearest::{Suggested, nearest_objects, typed};
use crate::ends::{Name, Subject};
use crate::logs::tell;
use crate::watch::{Objects, ObjectsError};

/// Which pods are agents, as `node/deploy` labels them.
const AGENTS: &str = "labelSelector=app.kubernetes.io%2Fname%3Dcauseway-node";

/// So many nodes are looked at where nobody names them: a Service may have endpoints on all.
const MOST_ON_THE_WAY: usize = 16;

/// Pods that are read at once where all have to be.
const PAGE: usize = 500;

/// Where a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its node.
    pub node: String,
    /// Its first address, where it has one.
    pub address: Option<IpAddr>,
}

/// Where pods are, or why that is not known.
pub type Places = BTreeMap<ObjectName, Result<Place, String>>;

/// A cluster, and the namespace of its agents.
pub struct Cluster<'c> {
    objects: &'c Objects,
    namespace: &'c str,
}

impl<'c> Cluster<'c> {
    /// By its API server.
    #[must_use]
    pub fn new(objects: &'c Objects, namespace: &'c str) -> Self {
        Self { objects, namespace }
    }

    /// Where the pods are that a command names, or why that is not known.
    pub async fn places(&self, ends: &[Subject]) -> Places {
        let mut places = Places::new();
        for end in ends {
            if let Subject::Pod(pod) = end
                && !places.contains_key(pod)
            {
                let place = self.place(pod).await.map_err(|error| format!("{error:#}"));
                places.insert(pod.clone(), place);
            }
        }
        places
    }

    /// The nodes that are meant, with their agents.
    ///
    /// # Errors
    /// When the server does not answer, there are no agents, or a node or pod is not known.
    pub async fn choose(
        &self,
        args: &OnArgs,
        errand: &Errand,
        places: &Places,
    ) -> anyhow::Result<Vec<Chosen>> {
        let namespace = self.namespace;
        let path = format!("/api/v1/namespaces/{namespace}/pods?{AGENTS}");
        let agents = match self.objects.read(&path).await {
            Ok(listed) => nodes::agents(&listed),
            Err(error) => bail!(
                "list the agents: {}",
                lacks(&error, &format!("list pods in namespace {namespace}"))
            ),
        };
        ensure!(
            !agents.is_empty(),
            "namespace {namespace} has no agents (pods with the label app.kubernetes.io/name=causeway-node): \
             --namespace names another; agents that are no pods, as those of `causeway up`, are asked on their own machine"
        );
        let named = match (&args.of, args.nodes.is_empty() && !args.all) {
            (Some(end), _) => match Name::parse(end)?.subject {
                Subject::Pod(pod) => vec![self.place(&pod).await?.node],
                Subject::Node(node) => vec![node],
                _ => bail!(
                    "--of {end}: only pods and nodes are on a node: pod/NAME, pod/NAMESPACE/NAME or node/NAME"
                ),
            },
            (None, true) if errand.trace.is_some() => self.on_the_way(errand, places).await?,
            (None, true) => told(of_ends(errand, places)?)?,
            (None, false) => args.nodes.clone(),
        };
        let typed = typed_nodes(args, errand);
        let wanted = match args.all {
            true => Wanted::All,
            false => Wanted::Named {
                names: &named,
                typed: &typed,
            },
        };
        let mut meant = named.iter().map(|name| nodes::bare(name));
        let nodes = match wanted {
            // Of others the cluster said that there are such nodes.
            Wanted::Named { .. }
                if meant
                    .all(|name| agents.contains_key(name) || !typed.iter().any(|typed| typed == name)) =>
            {
                None
            }
            Wanted::All | Wanted::Named { .. } => self.nodes().await,
        };
        Ok(nodes::choose(wanted, &agents, nodes.as_ref())?)
    }

    /// The nodes that a packet passes on its way from the first end to the second: those of both, and of a Service those
    /// of its endpoints.
    async fn on_the_way(&self, errand: &Errand, places: &Places) -> anyhow::Result<Vec<String>> {
        let [source, destination] = &errand.ends[..] else {
            return told(of_ends(errand, places)?);
        };
        let mut nodes: Vec<String> = match (source, self.node_of(source, places).await) {
            (_, Ok(node)) => node.into_iter().collect(),
            // What the others know of it is told.
            (Subject::Address(_), Err(error)) => {
                tell(format_args!(
                    "warning: the node of {source} is not looked at: {error:#}"
                ));
                Vec::new()
            }
            (_, Err(error)) => return Err(error),
        };
        let others = match destination {
            Subject::Service(service) => self.behind(service).await,
            other => self.node_of(other, places).await.map(Vec::from_iter),
        };
        match others {
            Ok(others) => {
                nodes.extend(others);
                let mut seen = BTreeSet::new();
                nodes.retain(|node| seen.insert(node.clone()));
            }
            // What the others know of it is told.
            Err(error) => tell(format_args!(
                "warning: the node of {destination} is not looked at: {error:#}"
            )),
        }
        if nodes.len() > MOST_ON_THE_WAY {
            let left_out = nodes.split_off(MOST_ON_THE_WAY);
            tell(format_args!(
                "warning: not looked at, since more than {MOST_ON_THE_WAY} nodes may be on the way: {}; name nodes to choose",
                left_out.join(", ")
            ));
        }
        told(nodes)
    }

    /// The node of an end that is on one, as far as that is known.
    ///
    /// # Errors
    /// When it is a pod that is not there, or what is asked is refused.
    pub async fn node_of(&self, end: &Subject, places: &Places) -> anyhow::Result<Option<String>> {
        match end {
            Subject::Node(node) => Ok(Some(node.clone())),
            Subject::Pod(pod) => match places.get(pod) {
                Some(Ok(place)) => Ok(Some(place.node.clone())),
                Some(Err(why)) => bail!("{why}"),
                None => Ok(None),
            },
            Subject::Address(address) => self.node_with(*address).await,
            Subject::Service(_) | Subject::Dns(_) | Subject::Any => Ok(None),
        }
    }

    /// The node of pods with an address; pods on the host's network have that one's.
    async fn node_with(&self, address: IpAddr) -> anyhow::Result<Option<String>> {
        let mut query = format!("fieldSelector=status.podIP%3D{address}");
        let mut is_selected = true;
        loop {
            let listed = self.objects.read(&format!("/api/v1/pods?{query}")).await;
            let listed =
                listed.map_err(|error| anyhow::anyhow!(lacks(&error, "list pods in all namespaces")))?;
            let node = nodes::of_pods(&listed, address);
            let next = listed["metadata"]["continue"]
                .as_str()
                .filter(|next| !next.is_empty());
            query = match (node, next) {
                (Some(node), _) => return Ok(Some(node)),
                // By a pod's second address no server selects.
                (None, _) if is_selected => format!("limit={PAGE}"),
                (None, Some(next)) => format!("limit={PAGE}&continue={next}"),
                (None, None) => return Ok(None),
            };
            is_selected = false;
        }
    }

    /// The nodes of a Service's endpoints.
    async fn behind(&self, service: &ObjectName) -> anyhow::Result<Vec<String>> {
        let ObjectName { namespace, name } = service;
        let path = format!(
            "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{name}"
        );
        match self.objects.read(&path).await {
            Ok(listed) => Ok(nodes::of_endpoints(&listed)),
            Err(error) => bail!(
                "list its endpoints: {}",
                lacks(&error, &format!("list endpointslices in namespace {namespace}"))
            ),
        }
    }

    /// All nodes; none where this user may not know.
    async fn nodes(&self) -> Option<BTreeSet<String>> {
        match self.objects.read("/api/v1/nodes").await {
            Ok(listed) => Some(nodes::nodes(&listed)),
            Err(error) => {
                tell(format_args!(
                    "warning: nodes without an agent are not seen: list the nodes: {}",
                    lacks(&error, "list nodes")
                ));
                None
            }
        }
    }

    async fn place(&self, pod: &ObjectName) -> anyhow::Result<Place> {
        let namespace = &pod.namespace;
        let pods = format!("/api/v1/namespaces/{namespace}/pods");
        let found = match self.objects.read(&format!("{pods}/{}", pod.name)).await {
            Ok(found) => found,
            Err(error) if error.refusal() == Some(404) => {
                let near = self.near(pod, &pods).await;
                bail!("there is no {}{}", typed("pod", pod), Suggested(&near))
            }
            Err(error) => bail!(
                "find {}: {}",
                typed("pod", pod),
                lacks(&error, &format!("get pods in namespace {namespace}"))
            ),
        };
        let node = found["spec"]["nodeName"].as_str();
        let node = node.with_context(|| format!("{} is on no node yet", typed("pod", pod)))?;
        Ok(Place {
            node: node.to_owned(),
            address: found["status"]["podIP"]
                .as_str()
                .and_then(|text| text.parse().ok()),
        })
    }

    /// Pods with names like this, as far as this user may know.
    async fn near(&self, pod: &ObjectName, pods: &str) -> Vec<String> {
        let listed = self.objects.read(pods).await.unwrap_or(Value::Null);
        let items = listed["items"].as_array().into_iter().flatten();
        let names: Vec<ObjectName> = items
            .filter_map(|item| item["metadata"]["name"].as_str())
            .map(|name| ObjectName::new(&*pod.namespace, name))
            .collect();
        nearest_objects(pod, names.iter(), "pod")
    }

    /// What it means that a command could not be started in an agent's pod.
    pub async fn refusal(&self, error: &ObjectsError, pod: &str) -> String {
        let namespace = self.namespace;
        match error.refusal() {
            Some(code @ (401 | 403)) => {
                // Of an upgrade's refusal no more than the code is told. Without an upgrade nothing is run.
                let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/exec");
                let again = self.objects.read(&path).await.err();
                let words = again.as_ref().filter(|again| again.refusal() == Some(code));
                lacks(
                    words.unwrap_or(error),
                    &format!("create and get pods/exec in namespace {namespace}"),
                )
            }
            Some(404) => format!("its agent, pod {pod}, is gone: ask again, its successor comes"),
            Some(code) => {
                format!("its agent, pod {pod}, takes no command, or its kubelet does not answer ({code})")
            }
            None => with_causes(error),
        }
    }
}

/// The nodes of those that a command names: of the first one, or of all, where it looks at all of them.
fn of_ends(errand: &Errand, places: &Places) -> anyhow::Result<Vec<String>> {
    let mut nodes: Vec<String> = Vec::new();
    for end in &errand.ends {
        let node = match end {
            Subject::Node(node) => Some(node),
            Subject::Pod(pod) => match places.get(pod) {
                Some(Ok(place)) => Some(&place.node),
                Some(Err(why)) => bail!("{why}"),
                None => None,
            },
            _ => None,
        };
        nodes.extend(node.filter(|node| !nodes.contains(node)).cloned());
        if !errand.of_each && !nodes.is_empty() {
            break;
        }
    }
    Ok(nodes)
}

/// The nodes that somebody named.
fn typed_nodes(args: &OnArgs, errand: &Errand) -> Vec<String> {
    let ends = errand.ends.iter().filter_map(|end| match end {
        Subject::Node(node) => Some(node),
        _ => None,
    });
    let all = args.nodes.iter().chain(&args.of).chain(ends);
    all.map(|name| nodes::bare(name).to_owned()).collect()
}

/// Says which nodes are meant where nobody named them.
fn told(nodes: Vec<String>) -> anyhow::Result<Vec<String>> {
    ensure!(
        !nodes.is_empty(),
        "which nodes? Name them (causeway on NODE[,NODE…] -- …), say --all, or --of pod/NAME for the node of a pod"
    );
    // Who asked for nothing else wants to know where it was.
    tell(format_args!("on {}", nodes.join(", ")));
    Ok(nodes)
}

/// Why the server refused; which right is missing, where it is that.
fn lacks(error: &ObjectsError, right: &str) -> String {
    let words = || error.words().map_or_else(|| with_causes(error), str::to_owned);
    match error.refusal() {
        Some(401) => "the API server does not know who asks (401): look at the kubeconfig's user".to_owned(),
        Some(403) => format!("the right is missing to {right} ({})", words()),
        Some(_) => words(),
        None => with_causes(error),
    }
}

#[cfg(test)]
mod tests {
    use ::tests::fake_api::FakeApi;
    use clap::Parser as _;
    use serde_json::json;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::watch::Credentials;

    /// An agent on node-1; a Service with endpoints there and on a node that has none.
    async fn served() -> (FakeApi, Objects) {
        let api = FakeApi::start().expect("loopback is there");
        let pod = |namespace: &str, name: &str, status: Value| {
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "namespace": namespace, "name": name,
                    "labels": { "app.kubernetes.io/name": "causeway-node" } },
                "spec": { "nodeName": "node-1" }, "status": status,
            })
        };
        let running = json!([{ "name": "agent", "state": { "running": {} } }]);
        api.put(pod(
            "causeway",
            "agent-1",
            json!({ "containerStatuses": running }),
        ));
        let addresses = json!([{ "ip": "fd00::5" }, { "ip": "10.244.1.5" }]);
        api.put(pod(
            "shop",
            "a",
            json!({ "podIP": "fd00::5", "podIPs": addresses }),
        ));
        api.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "namespace": "shop", "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } },
            "endpoints": [{ "nodeName": "node-1" }, { "nodeName": "windows-1" }],
        }));
        let credentials = Credentials::Endpoint {
            url: api.url(),
            tls: None,
        };
        let objects = Objects::of(credentials).await.expect("a client");
        (api, objects)
    }

    async fn chosen(objects: &Objects, line: &str) -> Result<Vec<Chosen>, String> {
        let words = ["causeway", "on"].into_iter().chain(line.split(' '));
        let Command::On(args) = Cli::try_parse_from(words).expect("a command line").command else {
            panic!("{line}");
        };
        let errand = Errand::parse(&args.command).expect("a command");
        let cluster = Cluster::new(objects, &args.namespace);
        let places = cluster.places(&errand.ends).await;
        let chosen = cluster.choose(&args, &errand, &places).await;
        chosen.map_err(|error| format!("{error:#}"))
    }

    #[tokio::test]
    async fn a_node_that_the_cluster_names_is_missing_without_an_agent_and_one_that_is_typed_a_mistake() {
        let (api, objects) = served().await;
        let first = ("node-1".to_owned(), Ok("agent-1".to_owned()));
        let second = ("windows-1".to_owned(), Err("no agent is on it".to_owned()));
        let expected = Ok(vec![first.clone(), second]);
        let of_service = "-- trace any svc/web:80 -n shop";
        assert_eq!(chosen(&objects, of_service).await, expected);
        // It may not be known which nodes there are.
        api.behave(|behaviour| behaviour.forbidden = vec!["nodes"]);
        assert_eq!(chosen(&objects, of_service).await, expected);
        for line in [
            "windows-1 -- doctor",
            "--of node/windows-1 -- doctor",
            "-- trace node/windows-1 svc/web:80 -n shop",
        ] {
            let error = chosen(&objects, line).await.expect_err(line);
            assert!(error.starts_with("no node windows-1"), "{line}: {error}");
        }
        assert_eq!(chosen(&objects, "node/node-1 -- doctor").await, Ok(vec![first]));
    }

    #[tokio::test]
    async fn where_an_address_is_may_not_be_known() {
        let (api, objects) = served().await;
        let cluster = Cluster::new(&objects, "causeway");
        let words = ["trace", "10.244.1.5", "svc/web:80", "-n", "shop"].map(str::to_owned);
        let errand = Errand::parse(&words).expect("a command");
        let sender = errand.ends.first().expect("an end");
        let node = cluster
            .node_of(sender, &Places::new())
            .await
            .expect("it may be known");
        assert_eq!(node.as_deref(), Some("node-1"));
        api.behave(|behaviour| behaviour.forbidden = vec!["pods"]);
        let nodes = cluster.on_the_way(&errand, &Places::new()).await.expect("nodes");
        assert_eq!(nodes, ["node-1", "windows-1"]);
        let why = cluster
            .node_of(sender, &Places::new())
            .await
            .expect_err("it may not");
        assert!(
            why.to_string()
                .starts_with("the right is missing to list pods in all namespaces"),
            "{why}"
        );
    }

    #[test]
    fn each_node_of_the_ends_is_asked_once() {
        let words = ["capture", "pod/a"].map(str::to_owned);
        let mut errand = Errand::parse(&words).expect("a command");
        errand.ends = ["node-1", "node-2", "node-1"]
            .map(|node| Subject::Node(node.to_owned()))
            .to_vec();
        let nodes = of_ends(&errand, &Places::new()).expect("nodes");
        assert_eq!(nodes, ["node-1", "node-2"]);
    }
}
