//! What the overlay of a node has to be told.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use model::NodeName;
use serde::{Deserialize, Serialize};

/// The overlay's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// This node. Written into its lease, so that two nodes with one address are told apart.
    pub node: NodeName,
    /// Where leases are kept.
    pub etcd: Etcd,
    /// The device whose address the other nodes send to. Default: that of the default route.
    #[serde(default)]
    pub interface: Option<String>,
    /// The address that the other nodes send to. Default: the interface's first.
    #[serde(default)]
    pub public_ip: Option<Ipv4Addr>,
    /// flannel's network configuration, written to `PREFIX/config` if none is there; one that is there is never
    /// changed. Default: wait until somebody wrote one.
    #[serde(default)]
    pub network: Option<serde_json::Value>,
    /// Where the node's subnet is told to others, and read back to claim the same one again.
    /// Default: `/run/flannel/subnet.env`.
    #[serde(default = "default_subnet_env")]
    pub subnet_env: PathBuf,
    /// Directory of what is remembered over restarts.
    pub state_dir: PathBuf,
}

fn default_subnet_env() -> PathBuf {
    "/run/flannel/subnet.env".into()
}

/// An etcd, real or bundled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Etcd {
    /// URLs of its members, `http://` or `https://`.
    pub endpoints: Vec<String>,
    /// What its keys begin with. Default: `/coreos.com/network`, flannel's.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// File with the certificate of its authority; needed for `https`.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// File with our certificate. Default: none is shown. Goes with `key`.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// File with our private key.
    #[serde(default)]
    pub key: Option<PathBuf>,
}

fn default_prefix() -> String {
    "/coreos.com/network".to_owned()
}
