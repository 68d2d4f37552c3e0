//! What is put up in the cluster, and taken down again.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures::future::try_join_all;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::cells::{Family, ServiceSite, Site};
use super::held::Holder;
use super::objects::{self, LABEL, Role};
use crate::watch::{Objects, ObjectsError};

/// Between two looks at what is awaited.
const INTERVAL: Duration = Duration::from_millis(100);

/// How long a namespace may take to have the account that pods need.
const ACCOUNT: Duration = Duration::from_secs(10);

/// How long the end of a namespace is waited for. It goes on without us.
const END: Duration = Duration::from_secs(10);

/// Nodes that are used where none is named.
const NODES: usize = 2;

/// Warnings that are told where pods do not become ready.
const TOLD: usize = 4;

/// A namespace in a cluster.
pub struct Stage<'o> {
    objects: &'o Objects,
    /// Its name.
    pub namespace: String,
    image: String,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its addresses in the cluster.
    pub addresses: Vec<IpAddr>,
}

impl<'o> Stage<'o> {
    /// A namespace of its own; its pods will have this image.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn put_up(objects: &'o Objects, prefix: &str, image: &str) -> anyhow::Result<Self> {
        let holder = Holder::own().context("find out which process this is")?;
        let name = format!("{prefix}{:06x}", rand::random::<u32>() & 0x00ff_ffff);
        let namespace = objects::namespace(&name, &holder.text());
        if let Err(error) = objects.create("/api/v1/namespaces", &namespace).await {
            // The server may have made it, and only its answer been lost.
            if error.refusal().is_none() {
                let _gone_or_left_for_the_next_run = remove(objects, &name).await;
            }
            return Err(error.into());
        }
        Ok(Self {
            objects,
            namespace: name,
            image: image.to_owned(),
        })
    }

    fn path(&self, kind: &str) -> String {
        format!("/api/v1/namespaces/{}/{kind}", self.namespace)
    }

    /// Puts pods and Services onto nodes, and waits until the pods are ready.
    ///
    /// # Errors
    /// When something is refused, or the pods are not ready in time: with what is known of why.
    pub async fn fill(&self, nodes: &[Node], within: Duration) -> anyhow::Result<Vec<Site>> {
        self.await_account().await?;
        let pods = nodes
            .iter()
            .enumerate()
            .flat_map(|(site, node)| Role::ALL.map(|role| objects::pod(role, site, &node.name, &self.image)));
        let pods: Vec<Value> = pods.collect();
        let path = self.path("pods");
        let made = pods.iter().map(|pod| self.objects.create(&path, pod));
        let services = (0..nodes.len()).map(|site| self.services(site));
        let (_, services) = tokio::try_join!(
            async { try_join_all(made).await.map_err(anyhow::Error::from) },
            try_join_all(services)
        )?;
        let addresses = self.await_pods(pods.len(), within).await?;
        let of = |role, site| {
            let name = objects::pod_name(role, site);
            addresses.get(&name).cloned().unwrap_or_default()
        };
        let sites = nodes.iter().zip(services).enumerate();
        let sites = sites.map(|(site, (node, services))| Site {
            node: node.name.clone(),
            addresses: node.addresses.clone(),
            client: of(Role::Client, site),
            server: objects::pod_name(Role::Server, site),
            server_addresses: of(Role::Server, site),
            services,
        });
        Ok(sites.collect())
    }

    /// Pods are refused before their account is there.
    async fn await_account(&self) -> anyhow::Result<()> {
        let path = self.path("serviceaccounts/default");
        let deadline = Instant::now() + ACCOUNT;
        loop {
            match self.objects.read(&path).await {
                Ok(_) => return Ok(()),
                Err(error) if error.refusal() == Some(404) && Instant::now() < deadline => {}
                Err(error) => return Err(error).context("wait for the namespace's account"),
            }
            sleep(INTERVAL).await;
        }
    }

    /// A server's Services, one of each version of IP that the cluster has Services of.
    async fn services(&self, site: usize) -> anyhow::Result<BTreeMap<Family, ServiceSite>> {
        let path = self.path("services");
        let mut services = BTreeMap::new();
        for family in Family::ALL {
            let made = self
                .objects
                .create(&path, &objects::service(site, family, false))
                .await;
            let made = match made {
                Ok(made) => made,
                Err(error) if lacks_family(&error) => continue,
                Err(error) => return Err(error.into()),
            };
            self.objects
                .create(&path, &objects::service(site, family, true))
                .await?;
            let name = |name: String| format!("{name}.{}.svc", self.namespace);
            let service = ServiceSite {
                cluster_ip: text(&made["spec"]["clusterIP"])
                    .and_then(|text| text.parse().ok())
                    .context("a Service without a ClusterIP")?,
                node_ports: (node_port(&made, "TCP")?, node_port(&made, "UDP")?),
                name: name(objects::service_name(site, family)),
                headless: name(objects::headless_name(site, family)),
            };
            services.insert(family, service);
        }
        Ok(services)
    }

    /// The addresses of so many pods, once they are ready.
    async fn await_pods(
        &self,
        count: usize,
        within: Duration,
    ) -> anyhow::Result<BTreeMap<String, Vec<IpAddr>>> {
        let deadline = Instant::now() + within;
        loop {
            let list = self.objects.read(&self.path("pods")).await?;
            let pods = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
            let ready: BTreeMap<_, _> = pods
                .iter()
                .filter(|pod| is_ready(pod))
                .filter_map(read_pod)
                .collect();
            if ready.len() == count {
                return Ok(ready);
            }
            if Instant::now() >= deadline {
                let mut reasons: Vec<String> = pods
                    .iter()
                    .filter(|pod| !is_ready(pod))
                    .map(why_unready)
                    .collect();
                reasons.extend(self.warnings().await);
                bail!(
                    "the pods of namespace {} are not ready after {} s:\n  {}",
                    self.namespace,
                    within.as_secs(),
                    reasons.join("\n  ")
                );
            }
            sleep(INTERVAL).await;
        }
    }

    /// The last warnings about its pods.
    async fn warnings(&self) -> Vec<String> {
        let Ok(list) = self.objects.read(&self.path("events")).await else {
            return Vec::new();
        };
        let events = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let warnings = events.iter().filter(|event| event["type"] == "Warning");
        let warnings: Vec<String> = warnings
            .map(|event| {
                let part = |value: &Value| text(value).unwrap_or_default().to_owned();
                let object = part(&event["involvedObject"]["name"]);
                format!(
                    "{object}: {}: {}",
                    part(&event["reason"]),
                    part(&event["message"])
                )
            })
            .collect();
        warnings.into_iter().rev().take(TOLD).collect()
    }

    /// Takes everything down. Returns whether all of it is gone; what is not is on its way.
    ///
    /// # Errors
    /// When it is left behind.
    pub async fn take_down(&self) -> anyhow::Result<bool> {
        remove(self.objects, &self.namespace).await?;
        let path = format!("/api/v1/namespaces/{}", self.namespace);
        let deadline = Instant::now() + END;
        while Instant::now() < deadline {
            match self.objects.read(&path).await {
                Err(error) if error.refusal() == Some(404) => return Ok(true),
                _ => sleep(INTERVAL).await,
            }
        }
        Ok(false)
    }
}

/// Removes what runs that were killed have left. Returns the names of their namespaces.
///
/// # Errors
/// When namespaces cannot be listed or removed.
pub async fn remove_leftovers(objects: &Objects) -> anyhow::Result<Vec<String>> {
    let own = Holder::own().context("find out which process this is")?;
    let list = objects
        .read(&format!("/api/v1/namespaces?labelSelector={LABEL}%3Dtrue"))
        .await?;
    let namespaces = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let left = namespaces.iter().filter(|namespace| {
        namespace["metadata"]["deletionTimestamp"].is_null() && own.finds_left(namespace, Timestamp::now())
    });
    let names: Vec<String> = left
        .filter_map(|namespace| text(&namespace["metadata"]["name"]))
        .map(str::to_owned)
        .collect();
    for name in &names {
        remove(objects, name).await?;
    }
    Ok(names)
}

/// Pods first, and at once: they have nothing to finish.
async fn remove(objects: &Objects, namespace: &str) -> Result<(), ObjectsError> {
    let path = format!("/api/v1/namespaces/{namespace}");
    let at_once = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
    for (path, options) in [(format!("{path}/pods"), at_once), (path, options)] {
        match objects.delete(&path, &options).await {
            Err(error) if error.refusal() != Some(404) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The nodes that are used: those that are named, else the first two that take any pod.
///
/// # Errors
/// When there are none.
pub async fn nodes(objects: &Objects, named: &[String]) -> anyhow::Result<Vec<Node>> {
    let list = objects.read("/api/v1/nodes").await?;
    let all = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    if named.is_empty() {
        let usable = all.iter().filter(|node| is_ready(node) && takes_pods(node));
        let nodes: Vec<Node> = usable.take(NODES).filter_map(read_node).collect();
        ensure!(
            !nodes.is_empty(),
            "of {} nodes none is ready and without taints: name those that are to be used by --nodes",
            all.len()
        );
        return Ok(nodes);
    }
    let find = |name: &String| {
        let node = all
            .iter()
            .find(|node| text(&node["metadata"]["name"]) == Some(name));
        let node = node.with_context(|| format!("there is no node {name}"))?;
        ensure!(is_ready(node), "node {name} is not ready");
        read_node(node).with_context(|| format!("node {name} has no name"))
    };
    let twice = named
        .iter()
        .enumerate()
        .find(|(at, name)| named[..*at].contains(*name));
    ensure!(twice.is_none(), "--nodes names a node twice: {}", named.join(","));
    named.iter().map(find).collect()
}

/// Where pods find the API server.
///
/// # Errors
/// When the cluster does not say it.
pub async fn api_server(objects: &Objects) -> anyhow::Result<Vec<SocketAddr>> {
    let service = objects
        .read("/api/v1/namespaces/default/services/kubernetes")
        .await?;
    let spec = &service["spec"];
    let port = spec["ports"][0]["port"]
        .as_u64()
        .and_then(|port| u16::try_from(port).ok());
    let port = port.context("Service default/kubernetes has no port")?;
    let addresses = spec["clusterIPs"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let addresses = addresses.iter().filter_map(|address| text(address)?.parse().ok());
    Ok(addresses
        .map(|address: IpAddr| SocketAddr::new(address, port))
        .collect())
}

/// A version of IP that the cluster is not configured for is refused by the field that names it.
fn lacks_family(error: &ObjectsError) -> bool {
    error.refusal() == Some(422) && model::with_causes(error).contains("spec.ipFamilies")
}

fn node_port(service: &Value, protocol: &str) -> anyhow::Result<u16> {
    let ports = service["spec"]["ports"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let port = ports.iter().find(|port| port["protocol"] == protocol);
    let port = port.and_then(|port| port["nodePort"].as_u64());
    let port = port.and_then(|port| u16::try_from(port).ok());
    port.with_context(|| format!("a Service without a node port of {protocol}"))
}

/// A node's or a pod's condition.
fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice);
    let says_so = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    conditions.unwrap_or_default().iter().any(says_so)
}

/// Not cordoned, and without taints that keep pods away.
fn takes_pods(node: &Value) -> bool {
    let taints = node["spec"]["taints"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let keeps_away = |taint: &Value| taint["effect"] != "PreferNoSchedule";
    node["spec"]["unschedulable"] != true && !taints.iter().any(keeps_away)
}

fn read_node(node: &Value) -> Option<Node> {
    let addresses = node["status"]["addresses"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let internal = addresses.iter().filter(|address| address["type"] == "InternalIP");
    Some(Node {
        name: text(&node["metadata"]["name"])?.to_owned(),
        addresses: internal
            .filter_map(|address| text(&address["address"])?.parse().ok())
            .collect(),
    })
}

fn read_pod(pod: &Value) -> Option<(String, Vec<IpAddr>)> {
    let addresses = pod["status"]["podIPs"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let addresses = addresses
        .iter()
        .filter_map(|address| text(&address["ip"])?.parse().ok());
    Some((text(&pod["metadata"]["name"])?.to_owned(), addresses.collect()))
}

/// What a pod's status says of why it is not ready.
fn why_unready(pod: &Value) -> String {
    let part = |value: &Value| text(value).unwrap_or("?").to_owned();
    let container = &pod["status"]["containerStatuses"][0]["state"];
    let state = [&container["waiting"], &container["terminated"]]
        .into_iter()
        .find(|state| !state.is_null());
    let mut why = format!(
        "{} on {}: {}",
        part(&pod["metadata"]["name"]),
        part(&pod["spec"]["nodeName"]),
        part(&pod["status"]["phase"])
    );
    for word in state
        .into_iter()
        .flat_map(|state| [&state["reason"], &state["message"]])
    {
        why.extend(text(word).map(|word| format!(": {word}")));
    }
    why
}

fn text(value: &Value) -> Option<&str> {
    value.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_keep_pods_away_are_not_chosen() {
        let rows = [
            (json!({}), true),
            (json!({"unschedulable": true}), false),
            (json!({"taints": [{"key": "a", "effect": "NoSchedule"}]}), false),
            (json!({"taints": [{"key": "a", "effect": "NoExecute"}]}), false),
            (
                json!({"taints": [{"key": "a", "effect": "PreferNoSchedule"}]}),
                true,
            ),
        ];
        for (spec, takes) in rows {
            assert_eq!(takes_pods(&json!({ "spec": spec })), takes, "{spec}");
        }
    }

    #[test]
    fn a_pod_that_is_not_ready_is_told_with_what_its_container_waits_for() {
        let waiting = json!({"reason": "ErrImagePull", "message": "there is no registry"});
        let pod = json!({
            "metadata": {"name": "server-1"}, "spec": {"nodeName": "node-1"},
            "status": {"phase": "Pending", "containerStatuses": [{"state": {"waiting": waiting}}]},
        });
        assert_eq!(
            why_unready(&pod),
            "server-1 on node-1: Pending: ErrImagePull: there is no registry"
        );
        let bare = json!({"metadata": {"name": "server-1"}, "spec": {"nodeName": "node-1"}, "status": {}});
        assert_eq!(why_unready(&bare), "server-1 on node-1: ?");
    }
}
