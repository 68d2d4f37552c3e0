//! What the server is told at start.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;

/// The configuration of one API server. All paths are PEM files.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; all of them serve the same over TLS.
    pub listen: Vec<SocketAddr>,
    /// Serving certificate (chain).
    pub cert: PathBuf,
    /// Key of `cert`.
    pub key: PathBuf,
    /// The cluster's CA: signs client certificates, and the kubelets' serving certificates.
    pub client_ca: PathBuf,
    /// EC P-256 key (PKCS #8) that signs ServiceAccount tokens (ES256).
    pub sa_signing_key: PathBuf,
    /// `iss` of ServiceAccount tokens; default [`Config::DEFAULT_ISSUER`].
    pub sa_issuer: String,
    /// The store.
    pub etcd: EtcdConfig,
    /// ClusterIPs are taken from here; default 10.96.0.0/12.
    pub service_cidr: IpNetwork,
    /// Node ports are taken from here, both ends included; default 30000-32767.
    pub node_port_range: (u16, u16),
    /// Client certificate for the kubelets (logs).
    pub kubelet_client_cert: PathBuf,
    /// Key of `kubelet_client_cert`.
    pub kubelet_client_key: PathBuf,
}

impl Config {
    /// Issuer of ServiceAccount tokens, as kubeadm sets it.
    pub const DEFAULT_ISSUER: &'static str = "https://kubernetes.default.svc.cluster.local";
    /// Range of node ports, as upstream's default.
    pub const DEFAULT_NODE_PORTS: (u16, u16) = (30000, 32767);
}

/// How to reach etcd (ours or a real one), by the v3 protocol.
#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// `http://` or `https://` URLs.
    pub endpoints: Vec<String>,
    /// CA of the server's certificate.
    pub ca: Option<PathBuf>,
    /// Client certificate.
    pub cert: Option<PathBuf>,
    /// Key of `cert`.
    pub key: Option<PathBuf>,
    /// Key prefix without a trailing slash; default `/registry`.
    pub prefix: String,
}

impl EtcdConfig {
    /// Plain access by URL under the usual prefix.
    pub fn plain(endpoint: impl Into<String>) -> Self {
        let endpoints = vec![endpoint.into()];
        EtcdConfig {
            endpoints,
            ca: None,
            cert: None,
            key: None,
            prefix: "/registry".to_owned(),
        }
    }
}
