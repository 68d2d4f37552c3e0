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
        let wanted = match args.all {
            true => Wanted::All,
            false => Wanted::Named(&named),
        };
        let are_all_known = named.iter().all(|name| agents.contains_key(name));
        let nodes = match wanted {
            Wanted::Named(_) if are_all_known => None,
            Wanted::All | Wanted::Named(_) => self.nodes().await,
        };
        Ok(nodes::choose(wanted, &agents, nodes.as_ref())?)
    }

    /// The nodes that a packet passes on its way from the first end to the second: those of both, and of a Service those
    /// of its endpoints.
    async fn on_the_way(&self, errand: &Errand, places: &Places) -> anyhow::Result<Vec<String>> {
        let [source, destination] = &errand.ends[..] else {
            return told(of_ends(errand, places)?);
        };
        let mut nodes: Vec<String> = self.node_of(source, places).await?.into_iter().collect();
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
            Subject::Address(address) => {
                let path = format!("/api/v1/pods?fieldSelector=status.podIP%3D{address}");
                let listed = self.objects.read(&path).await;
                let listed =
                    listed.map_err(|error| anyhow::anyhow!(lacks(&error, "list pods in all namespaces")))?;
                // Pods on the host's network have its address.
                Ok(nodes::of_pods(&listed, *address))
            }
            Subject::Service(_) | Subject::Dns(_) | Subject::Any => Ok(None),
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
    use super::*;

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
