//! Why the overlay does not work, or not yet.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use model::lease::Lease;
use model::{IpFamily, NodeName};

use crate::flannel::FormatError;

/// Why the overlay does not work, or not yet. Most of them pass: [`crate::run`] tries again and tells them in
/// [`crate::Status`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate, a key, or what is remembered cannot be read.
    #[error("read {}", path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("write {}", path.display())]
    WriteFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file stays.
    #[error("remove {}", path.display())]
    RemoveFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// etcd refused or failed.
    #[error("etcd: {operation}")]
    Etcd {
        /// What was asked.
        operation: &'static str,
        /// Why.
        #[source]
        source: etcd_client::Error,
    },
    /// etcd ended an encrypted connection instead of answering the first request on it.
    #[error("etcd: {operation}: it ended the connection: {}", doubt(certificate.as_deref()))]
    EtcdHungUp {
        /// What was asked.
        operation: &'static str,
        /// Our certificate, where we have one.
        certificate: Option<PathBuf>,
        /// How that was noticed.
        #[source]
        source: etcd_client::Error,
    },
    /// etcd did not answer in time.
    #[error("etcd: {operation}: no answer in time")]
    EtcdSilent {
        /// What was asked.
        operation: &'static str,
    },
    /// Nobody wrote a network configuration yet.
    #[error("no network configuration at {key} yet")]
    NoNetwork {
        /// The key.
        key: String,
    },
    /// The network configuration is not one that this program serves.
    #[error("network configuration at {key}")]
    BadNetwork {
        /// The key.
        key: String,
        /// Why not.
        #[source]
        source: FormatError,
    },
    /// The network has no IPv4, and the key of a lease in etcd begins with an IPv4 subnet.
    #[error("network configuration at {key}: EnableIPv4 is off, which flannel's keys of leases do not allow")]
    NoIpv4InKeys {
        /// The key.
        key: String,
    },
    /// Leases are in Kubernetes, and the list of Nodes is not complete.
    #[error("the API server has not told of the Nodes yet")]
    NodesUnknown,
    /// This node has no object.
    #[error("there is no Node {0} in the API (is nodeName right?)")]
    NoNode(NodeName),
    /// Nobody gave this node a subnet.
    #[error(
        "Node {node} has no {family} podCIDR: does the cluster give them out (kube-controller-manager --allocate-node-cidrs)?"
    )]
    NoPodCidr {
        /// This node.
        node: NodeName,
        /// The version of IP that lacks.
        family: IpFamily,
    },
    /// What this node was given is not of the pod network.
    #[error("podCIDR {subnet} of Node {node} is not a part of the pod network {network}")]
    ForeignPodCidr {
        /// This node.
        node: NodeName,
        /// What it was given.
        subnet: IpNetwork,
        /// The network by its configuration.
        network: IpNetwork,
    },
    /// Another node has this node's address.
    #[error(
        "public address {public_ip} belongs to node {holder} already, which has {lease}: give each node its own"
    )]
    DuplicateAddress {
        /// The address.
        public_ip: IpAddr,
        /// The node that has it.
        holder: NodeName,
        /// Its subnets.
        lease: Box<Lease>,
    },
    /// Every subnet of the network is taken.
    #[error("no free subnet in {network}: {taken} taken")]
    OutOfSubnets {
        /// The network.
        network: IpNetwork,
        /// How many leases there are.
        taken: usize,
    },
    /// Others were faster too often.
    #[error("lost the race for a subnet {tries} times")]
    LostRaces {
        /// How often.
        tries: usize,
    },
    /// There is no device to send through.
    #[error("{0}")]
    Underlay(String),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] netlink::Error),
    /// The masquerade rules cannot be reached.
    #[error(transparent)]
    Nftables(#[from] netlink::nft::Error),
    /// Connection tracking cannot be read or changed.
    #[error(transparent)]
    Conntrack(#[from] netlink::conntrack::Error),
    /// A thread cannot be started.
    #[error("start thread {name}")]
    StartThread {
        /// Its name.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread that programs the kernel ended.
    #[error("the kernel thread ended")]
    EngineEnded,
}

fn doubt(certificate: Option<&Path>) -> String {
    match certificate {
        Some(path) => format!("does it accept our certificate {}?", path.display()),
        None => "does it ask for a certificate? We have none to show".to_owned(),
    }
}
