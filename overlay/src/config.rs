//! What the overlay of a node has to be told.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use model::{ByFamily, NodeName, Snapshot};
use tokio::sync::watch;

use crate::fast_path::State;

/// The overlay's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node. Written into its lease, so that two nodes with one address are told apart.
    pub node: NodeName,
    /// Where leases are kept.
    pub leases: Leases,
    /// The device whose address the other nodes send to. Default: that of the default route.
    pub interface: Option<String>,
    /// The addresses that the other nodes send to. Default: the interface's first of each version of IP.
    pub public_ips: ByFamily<IpAddr>,
    /// flannel's network configuration. With leases in etcd it is written to `PREFIX/config` if none is there, and one
    /// that is there is never changed; without it the overlay waits until somebody wrote one. With leases in Kubernetes
    /// it is needed.
    pub network: Option<serde_json::Value>,
    /// Where the node's subnet is told to others, and read back to claim the same one again:
    /// flannel's is `/run/flannel/subnet.env`.
    pub subnet_env: PathBuf,
    /// Whether what a pod, or another node through the tunnel, sends in another's name is dropped.
    pub anti_spoofing: bool,
    /// Directory of what is remembered over restarts.
    pub state_dir: PathBuf,
    /// Whether TCP between pods, of this node and through VXLAN, passes by its network stack, where nobody's rules are in the way; or why
    /// it must not.
    pub fast_path: State,
    /// Directory on a BPF file system for the fast path's maps and links. Without one there is no fast path.
    pub pin_dir: PathBuf,
}

/// Where leases are kept.
#[derive(Clone, Debug)]
pub enum Leases {
    /// In etcd, in flannel's layout; each node takes a free subnet.
    Etcd(Etcd),
    /// In Node objects, with flannel's annotations; `spec.podCIDRs` are the subnets.
    Kubernetes(Nodes),
}

/// The cluster's Node objects.
#[derive(Clone, Debug)]
pub struct Nodes {
    /// What they are.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The annotations that this node's object shall have, without their prefix `flannel.alpha.coreos.com/`. None until
    /// they are known.
    pub announced: watch::Sender<Option<Announcement>>,
}

/// Annotations by name.
pub type Announcement = BTreeMap<&'static str, String>;

/// An etcd, real or bundled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etcd {
    /// URLs of its members, `http://` or `https://`.
    pub endpoints: Vec<String>,
    /// What its keys begin with: flannel's is `/coreos.com/network`.
    pub prefix: String,
    /// File with the certificate of its authority; needed for `https`.
    pub ca: Option<PathBuf>,
    /// File with our certificate. Default: none is shown. Goes with `key`.
    pub cert: Option<PathBuf>,
    /// File with our private key.
    pub key: Option<PathBuf>,
    /// The user of an etcd with users and roles. Default: none is named. Goes with `password_file`.
    pub username: Option<String>,
    /// File with the user's password, without the white space around it; read at every connection.
    pub password_file: Option<PathBuf>,
}
