//! What the manager knows of the node that it works for: its devices, and who has which address. The agent answers with
//! the book of pod addresses and the kernel, tests with a book of their own.

use std::collections::BTreeMap;
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
    /// Whether the kernel has a device with that MAC address.
    fn has_device(&self, mac: MacAddr) -> bool;

    /// From now on pods are given addresses of these interfaces, and of no other. What was withdrawn and is among them
    /// is given again. `blocked` says why there will not be more, where that is so.
    fn serve(&self, interfaces: &[Interface], blocked: Option<&str>);

    /// Who has what, now.
    fn census(&self) -> Census;

    /// No pod is given an address of these blocks from now on, but for those blocks that are in use or cool down: they
    /// are returned, and stay as they are.
    fn withdraw(&self, blocks: &[IpNetwork]) -> Vec<IpNetwork>;

    /// Returns when [`Home::census`] or [`Home::has_device`] may say something else than at the last call of this.
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
    pub eni_config: Option<EniConfig>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            max_pods: None,
            is_schedulable: true,
            eni_config: None,
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
