//! What the API server is asked: who the agents are, where pods are, and what a refusal means.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail, ensure};
use model::{ObjectName, with_causes};
use serde_json::Value;

use super::nodes::{self, Chosen, Wanted};
use crate::cli::OnArgs;
use crate::ends::nearest::{Suggested, nearest_objects, typed};
use crate::ends::{Name, Subject};
use crate::logs::tell;
use crate::watch::{Objects, ObjectsError};

/// Which pods are agents, as `node/deploy` labels them.
const AGENTS: &str = "labelSelector=app.kubernetes.io%2Fname%3Dcauseway-node";

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

    /// The nodes that are meant, with their agents. `ends`: whom the command names.
    ///
    /// # Errors
    /// When the server does not answer, there are no agents, or a node or pod is not known.
    pub async fn choose(&self, args: &OnArgs, ends: &[Subject]) -> anyhow::Result<Vec<Chosen>> {
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
            (Some(end), _) => vec![self.node_of(&Name::parse(end)?.subject).await?],
            (None, true) => vec![self.node_of_first(ends).await?],
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

    async fn node_of_first(&self, ends: &[Subject]) -> anyhow::Result<String> {
        let mut ends = ends.iter();
        let first = ends.find(|end| matches!(end, Subject::Pod(_) | Subject::Node(_)));
        let first = first.context(
            "which nodes? Name them (causeway on NODE[,NODE…] -- …), say --all, or --of pod/NAME for the node of a pod",
        )?;
        let node = self.node_of(first).await?;
        // Who asked for nothing else wants to know where it was.
        tell(format_args!("on {node}"));
        Ok(node)
    }

    async fn node_of(&self, end: &Subject) -> anyhow::Result<String> {
        match end {
            Subject::Node(node) => Ok(node.clone()),
            Subject::Pod(pod) => self.node_of_pod(pod).await,
            _ => bail!("--of: only pods and nodes are on a node: pod/NAME, pod/NAMESPACE/NAME or node/NAME"),
        }
    }

    async fn node_of_pod(&self, pod: &ObjectName) -> anyhow::Result<String> {
        let namespace = &pod.namespace;
        let pods = format!("/api/v1/namespaces/{namespace}/pods");
        let found = match self.objects.read(&format!("{pods}/{}", pod.name)).await {
            Ok(found) => found,
            Err(error) if error.refusal() == Some(404) => {
                let near = self.near(pod, &pods).await;
                bail!("no pod {}{}", typed("pod", pod), Suggested(&near))
            }
            Err(error) => bail!(
                "find pod {pod}: {}",
                lacks(&error, &format!("get pods in namespace {namespace}"))
            ),
        };
        let node = found["spec"]["nodeName"].as_str();
        let node = node.with_context(|| format!("pod {pod} is on no node yet"))?;
        Ok(node.to_owned())
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
