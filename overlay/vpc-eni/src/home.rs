//! What the manager knows of the node that it works for: its devices, and who has which address. The agent answers with
//! the book of pod addresses and the kernel, tests with a book of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network};
use model::MacAddr;
use serde::Serialize;

use crate::ec2::EniId;

/// An interface that serves pods, or could.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name.
    pub id: EniId,
    /// Its MAC address, by which its device is found.
    pub mac: MacAddr,
    /// Its own address.
    pub address: Ipv4Addr,
    /// The addresses of its subnet.
    pub subnet: Ipv4Network,
    /// 0 is the primary one.
    pub device_index: u32,
    /// What pods may be given of it.
    pub blocks: Vec<IpNetwork>,
}

/// How the addresses of a block are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Use {
    /// How many pods have one.
    pub assigned: u32,
    /// How many came back too lately to be given again.
    pub cooling: u32,
}

/// Who has what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// By block; one that is not here is not used.
    pub blocks: BTreeMap<IpNetwork, Use>,
    /// Pods that wait for an address.
    pub waiting: u32,
    /// Addresses that pods have and no interface.
    pub stranded: Vec<IpAddr>,
}

/// The node, as the manager sees it.
pub trait Home: Send + Sync + 'static {
    /// MAC addresses of the network interfaces' devices; `None` where the kernel does not tell.
    fn devices(&self) -> Option<BTreeSet<MacAddr>>;

    /// From now on pods are given addresses of these interfaces, and of no other. What was withdrawn and is among them
    /// is given again. `blocked` says why there will not be more, where that is so.
    fn serve(&self, interfaces: &[Interface], blocked: Option<&str>);

    /// Who has what, now.
    fn census(&self) -> Census;

    /// No pod is given an address of these blocks from now on, but for those blocks that are in use or cool down: they
    /// are returned, and stay as they are.
    fn withdraw(&self, blocks: &[IpNetwork]) -> Vec<IpNetwork>;

    /// Returns when [`Home::census`] or [`Home::devices`] may say something else than at the last call of this.
    fn changed(&self) -> impl Future<Output = ()> + Send;
}

/// What the cluster says of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// How many pods the kubelet takes.
    pub max_pods: Option<u32>,
    /// Whether pods come to it: `spec.unschedulable` is not set.
    pub is_schedulable: bool,
    /// The `ENIConfig` that it names; under custom networking there are no interfaces without.
    pub eni_config: Result<EniConfig, NoEniConfig>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            max_pods: None,
            is_schedulable: true,
            eni_config: Err(NoEniConfig::Unread),
        }
    }
}

impl Facts {
    /// What is known before the cluster was asked. Nothing is kept ready by what nobody knows yet; pods that come are
    /// served.
    #[must_use]
    pub const fn unread(max_pods: Option<u32>) -> Self {
        Self {
            max_pods,
            is_schedulable: false,
            eni_config: Err(NoEniConfig::Unread),
        }
    }
}

/// Why there is no `ENIConfig` for the node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoEniConfig {
    /// The cluster did not tell yet.
    #[error("the node's ENIConfig is not read yet")]
    Unread,
    /// The node is not the cluster's.
    #[error("the cluster has no Node {0}, which would name an ENIConfig")]
    NoNode(String),
    /// Nobody made it.
    #[error("there is no ENIConfig {name}, which {named_by}")]
    Missing {
        /// `metadata.name`.
        name: String,
        /// Who names it.
        named_by: NamedBy,
    },
    /// It does not say what it must.
    #[error("the ENIConfig {name} cannot be used: {why}")]
    Unusable {
        /// `metadata.name`.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

/// What names a node's `ENIConfig`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedBy {
    /// The Node's label of this key.
    Label(String),
    /// The Node's annotation of this key.
    Annotation(String),
    /// Neither: it is `default` then. The key of the label that could.
    Nobody(String),
}

impl std::fmt::Display for NamedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Label(key) => write!(f, "the Node's label {key} names"),
            Self::Annotation(key) => write!(f, "the Node's annotation {key} names"),
            Self::Nobody(_) => f.write_str("is meant where the Node names none"),
        }
    }
}

/// `ENIConfig` of `crd.k8s.amazonaws.com/v1alpha1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EniConfig {
    /// `metadata.name`.
    pub name: String,
    /// `spec.subnet`.
    pub subnet: crate::ec2::SubnetId,
    /// `spec.securityGroups`; those of the primary interface where there are none.
    pub groups: Vec<crate::ec2::SecurityGroupId>,
}
