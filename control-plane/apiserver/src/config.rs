//! What the server is told at start.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::features::Features;

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
    /// ClusterIPs are taken from here; default 10.96.0.0/12 alone.
    pub service_cidrs: Cidrs,
    /// Node ports are taken from here, both ends included; default 30000-32767.
    pub node_port_range: (u16, u16),
    /// Client certificate for the kubelets (logs).
    pub kubelet_client_cert: PathBuf,
    /// Key of `kubelet_client_cert`.
    pub kubelet_client_key: PathBuf,
    /// Addresses of this machine, loopback too, where nodes may be; default none. Nowhere else is a node on this
    /// machine: what is asked of it would be asked with this server's rights of whatever listens there.
    pub nearby_nodes: Vec<IpAddr>,
    /// What clients may take of the server.
    pub limits: Limits,
    /// What of the API is served; default all.
    pub features: Features,
}

/// What clients may take of the server together. Beyond it they are told to come later; the defaults are upstream's
/// where upstream has such a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections; default 4096. One more ends the one that was longest without a request.
    pub connections: usize,
    /// Reading requests that are answered at once, without watches and streams; default 400. No user has more than
    /// three quarters of them. Requests without credentials have places of their own, a quarter as many.
    pub reading: usize,
    /// Writing requests that are answered at once; default 200. No user has more than three quarters of them.
    pub writing: usize,
    /// Bytes of bodies that have arrived and are carried out; default 64 MiB. No user has more than three quarters of
    /// them, but for administrators.
    pub body_bytes: usize,
    /// Bytes of the values that bodies and lists are made of, half of them for each; default 256 MiB. No list takes
    /// more than a quarter.
    pub value_bytes: usize,
    /// How long a body may take to arrive; default 60 s, as upstream's `--request-timeout`. A quarter of it is how
    /// long a request waits for room.
    pub body_timeout: Duration,
    /// How long a client may leave unread what was sent to it; default 60 s.
    pub unread_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 4096,
            reading: 400,
            writing: 200,
            body_bytes: 64 << 20,
            value_bytes: 256 << 20,
            body_timeout: Duration::from_secs(60),
            unread_timeout: Duration::from_secs(60),
        }
    }
}

impl Config {
    /// Issuer of ServiceAccount tokens, as kubeadm sets it.
    pub const DEFAULT_ISSUER: &'static str = "https://kubernetes.default.svc.cluster.local";
    /// Range of node ports, as upstream's default.
    pub const DEFAULT_NODE_PORTS: (u16, u16) = (30000, 32767);
}

/// A network, or one of each address family (KEP-563). As text they are joined by a comma, the primary one first:
/// `10.96.0.0/12,fd00:10:96::/112`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidrs {
    primary: IpNetwork,
    secondary: Option<IpNetwork>,
}

/// Why a text names no networks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrsError {
    /// Not an address and a prefix length.
    #[error("{0:?} is no network like 10.96.0.0/12 or fd00:10:96::/112")]
    NotANetwork(String),
    /// Two of one family.
    #[error("{0} and {1} are of one address family: one network of each is possible")]
    SameFamily(IpNetwork, IpNetwork),
    /// More than two.
    #[error("{0} networks: one, or one of each address family, is possible")]
    TooMany(usize),
}

impl Cidrs {
    /// The network of the family that is meant where none is named.
    pub fn primary(&self) -> IpNetwork {
        self.primary
    }

    /// The network of the other family.
    pub fn secondary(&self) -> Option<IpNetwork> {
        self.secondary
    }

    /// All of them, the primary one first.
    pub fn iter(&self) -> impl Iterator<Item = IpNetwork> {
        [Some(self.primary), self.secondary].into_iter().flatten()
    }
}

impl From<IpNetwork> for Cidrs {
    fn from(primary: IpNetwork) -> Self {
        Cidrs {
            primary,
            secondary: None,
        }
    }
}

impl FromStr for Cidrs {
    type Err = CidrsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let network = |text: &str| {
            let not_a_network = |_| CidrsError::NotANetwork(text.to_owned());
            let parsed: IpNetwork = text.trim().parse().map_err(not_a_network)?;
            // A bare address is a network of one, which leaves no address to give.
            if !text.contains('/') {
                return Err(CidrsError::NotANetwork(text.to_owned()));
            }
            Ok(parsed)
        };
        let networks: Vec<IpNetwork> = text.split(',').map(network).collect::<Result<_, _>>()?;
        match networks.as_slice() {
            [primary] => Ok(Cidrs::from(*primary)),
            [primary, secondary] if primary.is_ipv4() == secondary.is_ipv4() => {
                Err(CidrsError::SameFamily(*primary, *secondary))
            }
            [primary, secondary] => Ok(Cidrs {
                primary: *primary,
                secondary: Some(*secondary),
            }),
            many => Err(CidrsError::TooMany(many.len())),
        }
    }
}

impl fmt::Display for Cidrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.secondary {
            None => write!(f, "{}", self.primary),
            Some(secondary) => write!(f, "{},{secondary}", self.primary),
        }
    }
}

impl TryFrom<String> for Cidrs {
    type Error = CidrsError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Cidrs> for String {
    fn from(cidrs: Cidrs) -> Self {
        cidrs.to_string()
    }
}

/// A user of etcd.
#[derive(Debug, Clone)]
pub struct EtcdUser {
    /// Its name.
    pub name: String,
    /// File with its password, without the white space around it; read at every connection.
    pub password_file: PathBuf,
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
    /// The user of an etcd with users and roles.
    pub user: Option<EtcdUser>,
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
            user: None,
            prefix: "/registry".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_networks_are_one_or_one_of_each_family() {
        for (text, expected) in [
            ("10.96.0.0/12", Ok("10.96.0.0/12")),
            ("fd00:10:96::/112", Ok("fd00:10:96::/112")),
            (
                "10.96.0.0/12, fd00:10:96::/112",
                Ok("10.96.0.0/12,fd00:10:96::/112"),
            ),
            ("fd00::/112,10.96.0.0/12", Ok("fd00::/112,10.96.0.0/12")),
            (
                "10.96.0.0/12,10.112.0.0/12",
                Err(
                    "10.96.0.0/12 and 10.112.0.0/12 are of one address family: one network of each is possible",
                ),
            ),
            (
                "10.96.0.0",
                Err("\"10.96.0.0\" is no network like 10.96.0.0/12 or fd00:10:96::/112"),
            ),
            (
                "10.96.0.0/12,",
                Err("\"\" is no network like 10.96.0.0/12 or fd00:10:96::/112"),
            ),
            (
                "10.96.0.0/12,fd00::/112,fd01::/112",
                Err("3 networks: one, or one of each address family, is possible"),
            ),
        ] {
            let parsed = text.parse::<Cidrs>();
            let told = parsed
                .as_ref()
                .map(ToString::to_string)
                .map_err(ToString::to_string);
            assert_eq!(told, expected.map(str::to_owned).map_err(str::to_owned), "{text}");
        }
    }
}
