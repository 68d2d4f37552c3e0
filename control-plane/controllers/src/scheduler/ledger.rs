//! What runs where, and how much of each node is taken.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node, Pod, PodAffinityTerm, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use model::{NodeName, ObjectName};

use super::affinity::{self, Wishes};
use super::resources::{self, Amounts};
use crate::cache::name_of;
use crate::ownership;
use crate::selector::Labels;
use crate::taints::{NO_SCHEDULE, NOT_READY, UNREACHABLE};

/// A node with the pods on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeState {
    pub labels: Labels,
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`.
    pub cordoned: bool,
    pub allocatable: Amounts,
    pub requested: Amounts,
    /// With what pods are taken to use that ask for nothing.
    pub used: Amounts,
    pub pods: BTreeMap<ObjectName, PlacedPod>,
}

/// A pod on a node, bound or about to be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PlacedPod {
    pub uid: Option<String>,
    pub requests: Amounts,
    pub ports: Vec<HostPort>,
    pub labels: Labels,
    pub owner: Option<String>,
    pub terminating: bool,
    /// Its required anti-affinity, which newcomers have to respect.
    pub keeps_away: Vec<PodAffinityTerm>,
    /// What it thinks of newcomers near it.
    pub welcomes: Wishes,
}

/// A port of the node itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    /// `None` for all addresses.
    pub address: Option<IpAddr>,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    /// Whether the two cannot be had at once.
    pub fn conflicts(&self, other: &Self) -> bool {
        let overlap = self.address.is_none() || other.address.is_none() || self.address == other.address;
        overlap && self.port == other.port && self.protocol == other.protocol
    }
}

/// All nodes.
#[derive(Default)]
pub(crate) struct Ledger {
    nodes: BTreeMap<NodeName, NodeState>,
    /// Pods on nodes that are not known (yet).
    strays: BTreeMap<NodeName, BTreeMap<ObjectName, PlacedPod>>,
    places: BTreeMap<ObjectName, NodeName>,
    /// Labels of namespaces.
    namespaces: BTreeMap<String, Labels>,
    no_labels: Labels,
}

impl Ledger {
    /// The nodes that exist.
    pub fn nodes(&self) -> &BTreeMap<NodeName, NodeState> {
        &self.nodes
    }

    /// The labels of a namespace; none where it is not known.
    pub fn namespace_labels(&self, name: &str) -> &Labels {
        self.namespaces.get(name).unwrap_or(&self.no_labels)
    }

    /// Takes in the labels of a namespace; `None` for one that is gone.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
    }

    /// Takes in what a node is now; `None` for one that is gone.
    pub fn set_node(&mut self, name: &NodeName, node: Option<&Node>) {
        let pods = match self.nodes.remove(name) {
            Some(state) => state.pods,
            None => self.strays.remove(name).unwrap_or_default(),
        };
        let Some(node) = node else {
            if !pods.is_empty() {
                self.strays.insert(name.clone(), pods);
            }
            return;
        };
        let mut state = node_state(node);
        for (name, pod) in pods {
            state.add(name, pod);
        }
        self.nodes.insert(name.clone(), state);
    }

    /// Notes that `pod` is on `node`, or is about to be.
    pub fn place(&mut self, pod: &Pod, node: &NodeName) {
        let name = name_of(pod);
        self.remove(&name);
        self.places.insert(name.clone(), node.clone());
        match self.nodes.get_mut(node) {
            Some(state) => state.add(name, placed(pod)),
            None => {
                self.strays
                    .entry(node.clone())
                    .or_default()
                    .insert(name, placed(pod));
            }
        }
    }

    /// Notes that a pod takes no place any more.
    pub fn remove(&mut self, name: &ObjectName) {
        let Some(node) = self.places.remove(name) else {
            return;
        };
        if let Some(state) = self.nodes.get_mut(&node) {
            state.remove(name);
        } else if let Some(strays) = self.strays.get_mut(&node) {
            strays.remove(name);
            if strays.is_empty() {
                self.strays.remove(&node);
            }
        }
    }

    /// Whether this very pod has a place.
    pub fn holds(&self, pod: &Pod) -> bool {
        let name = name_of(pod);
        let node = self.places.get(&name);
        let placed = node.and_then(|node| match self.nodes.get(node) {
            Some(state) => state.pods.get(&name),
            None => self.strays.get(node)?.get(&name),
        });
        placed.is_some_and(|placed| placed.uid == pod.metadata.uid)
    }
}

impl NodeState {
    fn add(&mut self, name: ObjectName, pod: PlacedPod) {
        resources::add(&mut self.requested, &pod.requests);
        resources::add(&mut self.used, &resources::with_assumed(&pod.requests));
        self.pods.insert(name, pod);
    }

    fn remove(&mut self, name: &ObjectName) {
        let Some(pod) = self.pods.remove(name) else { return };
        resources::subtract(&mut self.requested, &pod.requests);
        resources::subtract(&mut self.used, &resources::with_assumed(&pod.requests));
    }
}

/// The parts of a node that decide whether pods fit: a change of anything else helps no waiting pod.
#[derive(PartialEq)]
pub(crate) struct Offer<'a> {
    labels: Option<&'a Labels>,
    taints: Vec<Taint>,
    cordoned: bool,
    allocatable: Option<&'a BTreeMap<String, Quantity>>,
}

impl<'a> Offer<'a> {
    /// Reads them.
    pub fn of(node: &'a Node) -> Self {
        Self {
            labels: node.metadata.labels.as_ref(),
            taints: taints(node),
            cordoned: node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true),
            allocatable: node
                .status
                .as_ref()
                .and_then(|status| status.allocatable.as_ref()),
        }
    }
}

fn node_state(node: &Node) -> NodeState {
    let Offer {
        labels: _,
        taints,
        cordoned,
        allocatable,
    } = Offer::of(node);
    NodeState {
        labels: node_labels(node),
        taints,
        cordoned,
        allocatable: resources::amounts(allocatable),
        ..NodeState::default()
    }
}

/// A node's labels, and its name as [`NAME_FIELD`].
pub(crate) fn node_labels(node: &Node) -> Labels {
    let mut labels = node.metadata.labels.clone().unwrap_or_default();
    let name = node.metadata.name.clone().unwrap_or_default();
    labels.insert(NAME_FIELD.to_owned(), name);
    labels
}

/// The field that node affinity can select by (`matchFields`). It stands among the labels, under a key that
/// none has by accident.
pub(crate) const NAME_FIELD: &str = "metadata.name";

/// A node's taints. A node that is not Ready has the taint for it even before the node controller sets it: a
/// kubelet registers first and becomes ready later.
fn taints(node: &Node) -> Vec<Taint> {
    let mut taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition.type_ == "Ready");
    let implied = match ready.map(|ready| ready.status.as_str()) {
        Some("True") => return taints,
        Some("Unknown") => UNREACHABLE,
        _ => NOT_READY,
    };
    if !taints.iter().any(|taint| taint.key == implied) {
        taints.push(Taint {
            key: implied.to_owned(),
            effect: NO_SCHEDULE.to_owned(),
            ..Taint::default()
        });
    }
    taints
}

fn placed(pod: &Pod) -> PlacedPod {
    let apart = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.affinity.as_ref()?.pod_anti_affinity.as_ref());
    PlacedPod {
        uid: pod.metadata.uid.clone(),
        requests: resources::requests(pod),
        ports: host_ports(pod),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        owner: ownership::controller_of(&pod.metadata).map(|owner| owner.uid.clone()),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        welcomes: affinity::welcome(pod),
        keeps_away: apart
            .and_then(|apart| apart.required_during_scheduling_ignored_during_execution.clone())
            .unwrap_or_default(),
    }
}

/// The ports of the node that a pod wants for itself.
pub(crate) fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let in_host = spec.host_network == Some(true);
    let ports = spec
        .containers
        .iter()
        .flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port
                .host_port
                .or(in_host.then_some(port.container_port))
                .filter(|number| *number > 0)?;
            let address = port.host_ip.as_ref().and_then(|ip| ip.parse().ok());
            Some(HostPort {
                address: address.filter(|address: &IpAddr| !address.is_unspecified()),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port: number,
            })
        })
        .collect()
}
