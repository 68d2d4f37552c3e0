//! Pods with addresses of an AWS VPC: of the node's own network interfaces (ENIs), which the VPC routes to it. No tunnel,
//! no leases. The same datapath as amazon-vpc-cni-k8s, so that its nodes and ours can be in one cluster and a node can
//! change over.
//!
//! Tour:
//! - [`Ways`] is what is known of the node's place in the VPC; [`plan()`] makes of it what the kernel shall have (pure).
//! - `reconcile` compares that with the kernel, and writes the difference; `translation` is the table of nftables.
//! - [`audit`] compares only, for who looks for what is wrong.
//! - [`run`] does so on every occasion.
//!
//! Packet walk. A VPC takes from an interface only packets from the addresses that are the interface's, so what a pod
//! sends has to leave by the interface that its address belongs to:
//! - to a pod of this node: rule 512, `to POD lookup main`, where the pod's `/32` leads to its veth.
//! - from a pod of the primary interface: the main table, as everything of the node.
//! - from a pod of another interface: rule 1536, `from POD lookup TABLE`, where the default route goes to the subnet's
//!   gateway by that interface.
//! - out of the VPC, with [`Snat::Here`]: with the primary interface's address, so by that interface whosever the pod's
//!   address is. The connection gets the mark 0x80, its packets get it as they come from the pod, and rule 1024 sends
//!   what has it to the main table.
//! - the answer of a pod that was reached by a port of the node: the request came by the primary interface, which gave
//!   its connection the same mark.

pub mod audit;
pub mod aws_node;
pub mod plan;
mod reconcile;
mod run;
mod translation;

use std::net::Ipv4Addr;

use ipnetwork::{IpNetwork, Ipv4Network};
use model::{MacAddr, Mtu};

pub use plan::{Plan, Rejected, plan};
pub use reconcile::interface_devices;
pub(crate) use reconcile::remove_all;
pub use run::{Config, Status, run};
pub use translation::table;

/// What is known of the node's place in the VPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ways {
    /// The node's interfaces; `None` until they are known: nothing is deleted before.
    pub interfaces: Option<Interfaces>,
    /// The networks of the VPC, and of those that it is joined with: pods keep their addresses on the way there. The
    /// interfaces' subnets are always among them.
    pub vpc_networks: Vec<IpNetwork>,
    /// Networks that pods reach by the primary interface although they keep their addresses: services whose answers come
    /// in there (`EXTERNAL_SERVICE_CIDRS`).
    pub external_services: Vec<IpNetwork>,
    /// Who translates what leaves the VPC.
    pub snat: Snat,
    /// Whether ports of the node lead to pods.
    pub node_ports: bool,
    /// MTU of the interfaces and of pods: 9001 in a VPC, but for what leaves it.
    pub mtu: Mtu,
}

/// The node's network interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interfaces {
    /// The one that has the node's address. Its device is the machine's: it is not changed.
    pub primary: Interface,
    /// Those whose devices are the pod network's.
    pub others: Vec<Interface>,
}

/// A network interface (ENI) that is attached to the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its MAC address, by which its device is found.
    pub mac: MacAddr,
    /// Its own address, which no pod gets.
    pub address: Ipv4Addr,
    /// Its subnet; the gateway is the subnet's first host.
    pub subnet: Ipv4Network,
    /// The device index of its attachment, 0 for the primary one: its routing table is this and 1.
    pub device_index: u32,
    /// What pods get addresses of: `/32`, `/28` or `/80`.
    pub blocks: Vec<IpNetwork>,
}

/// Who gives what leaves the VPC an address that the world answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Snat {
    /// A gateway on the way (`AWS_VPC_K8S_CNI_EXTERNALSNAT=true`): pods keep their addresses.
    External,
    /// This node: they leave with the primary interface's address.
    Here {
        /// Networks out of the VPC to which pods keep their addresses (`AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS`).
        excluded: Vec<IpNetwork>,
        /// Which ports they get.
        random: Random,
    },
}

/// Which port a translated connection gets (`AWS_VPC_K8S_CNI_RANDOMIZESNAT`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Random {
    /// One that is drawn (`prng`).
    #[default]
    Prng,
    /// One that follows from its ends and a secret (`hashrandom`).
    HashRandom,
    /// The one that it has, unless that is in use (`none`).
    None,
}
