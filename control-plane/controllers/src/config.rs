//! What the controllers have to be told.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

/// Configuration of [`crate::run`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's CA certificates, which the ConfigMap `kube-root-ca.crt` carries into every namespace.
    /// Empty: the ConfigMap is not kept. Default: empty.
    pub root_ca_pem: String,
    /// The Service `default/kubernetes`. `None`: the API server looks after it itself, as upstream's does.
    /// Default: `None`.
    pub kubernetes_service: Option<KubernetesService>,
    /// The address of the Service `kube-system/kube-dns`; every node serves DNS at its first InternalIP of that version
    /// of IP too. `None`: there is no such Service, or somebody else keeps it. Default: `None`.
    pub cluster_dns: Option<IpAddr>,
    /// What `spec.podCIDRs` of the nodes are taken from, one range of each version of IP. Empty: somebody else gives them,
    /// or nobody needs them. Default: empty.
    pub node_cidrs: Vec<NodeRange>,
    /// How long a node's silence is borne until it counts as unreachable. Default: 40 s.
    pub node_grace: Duration,
    /// How many pods that have ended are kept, before the oldest are deleted. Default: 12500.
    pub ended_pods: usize,
    /// Chooses among nodes that are equally good. Default: 0.
    pub scheduler_seed: u64,
    /// Names of controllers that are not to run, for example because another program runs them. Default:
    /// none.
    pub disabled: BTreeSet<String>,
}

/// How pods reach the API server.
#[derive(Clone, Debug)]
pub struct KubernetesService {
    /// Its cluster address, by convention the first of the service range.
    pub cluster_ip: IpAddr,
    /// The port of the Service, usually 443.
    pub port: u16,
    /// Where API servers listen.
    pub addresses: Vec<IpAddr>,
    /// The port that they listen on, usually 6443.
    pub target_port: u16,
}

/// Where nodes get their part of the pods' addresses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRange {
    /// All pods' addresses.
    pub network: IpNetwork,
    /// Length of a node's prefix.
    pub prefix: u8,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root_ca_pem: String::new(),
            kubernetes_service: None,
            cluster_dns: None,
            node_cidrs: Vec::new(),
            node_grace: Duration::from_secs(40),
            ended_pods: 12_500,
            scheduler_seed: 0,
            disabled: BTreeSet::new(),
        }
    }
}
