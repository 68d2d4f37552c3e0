//! What a cluster was asked to be: validated once, kept in the state directory, read by `down` and `status`.

mod vpc;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use apiserver::{Cidrs, Gates, KubernetesVersion};
use ipnetwork::{IpNetwork, Ipv4Network};
use serde::{Deserialize, Serialize};

pub use vpc::{Vpc, VpcArgs, default_underlay};

/// How Services reach their endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Datapath {
    /// Socket load balancing in eBPF, with nftables under it.
    Ebpf,
    /// nftables alone.
    Nftables,
    /// kube-proxy's chains of iptables.
    Iptables,
}

/// How pods of different nodes reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// VXLAN overlay.
    Vxlan,
    /// Plain routes through the nodes' addresses.
    HostGw,
    /// Addresses of an AWS VPC, which is a fake one: EC2, metadata services and a router on this machine.
    VpcEni,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::VpcEni => "vpc-eni",
        })
    }
}

/// Where it is kept which node has which part of the pods' addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Leases {
    /// In the store, in flannel's keys.
    #[default]
    Etcd,
    /// In Node objects: a controller gives out `spec.podCIDRs`.
    Kubernetes,
}

impl fmt::Display for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Etcd => "etcd",
            Self::Kubernetes => "kubernetes",
        })
    }
}

/// What programs a node's network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Agent {
    /// The agent and the DNS server of this build, as processes of the node beside its kubelet.
    #[default]
    BuiltIn,
    /// Whatever is installed into the cluster, as into any other: nodes are not Ready before that.
    None,
}

/// An etcd that somebody else runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalEtcd {
    /// Client URLs.
    pub endpoints: Vec<String>,
    /// CA of the servers' certificates, for `https`.
    pub ca: Option<PathBuf>,
    /// Our certificate and key, where the server asks for one.
    pub client: Option<(PathBuf, PathBuf)>,
    /// User and the file of its password, where etcd has users. State that was kept from before there was a choice
    /// names none.
    #[serde(default)]
    pub user: Option<(String, PathBuf)>,
}

impl ExternalEtcd {
    fn validate(&self) -> anyhow::Result<()> {
        for endpoint in &self.endpoints {
            let is_tls = endpoint.starts_with("https://");
            ensure!(
                is_tls || endpoint.starts_with("http://"),
                "--etcd {endpoint}: expected a URL like http://172.30.0.1:2379"
            );
            ensure!(
                self.ca.is_some() || !is_tls,
                "--etcd {endpoint}: --etcd-ca must name the CA that its certificate is of"
            );
            ensure!(
                self.ca.is_none() || is_tls,
                "--etcd {endpoint}: with --etcd-ca a URL begins with https://"
            );
        }
        Ok(())
    }
}

/// Everything that `causeway up` decides once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Number of nodes, 1 to 64.
    pub nodes: u8,
    /// Service datapath.
    pub datapath: Datapath,
    /// Pod network.
    pub network: Network,
    /// What programs the nodes' network. State that was kept from before there was a choice has the built-in agent.
    #[serde(default)]
    pub agent: Agent,
    /// Where nodes' subnets are kept. State that was kept from before there was a choice has them in etcd.
    #[serde(default)]
    pub leases: Leases,
    /// What nodes are in a VPC; there with [`Network::VpcEni`] alone.
    #[serde(default)]
    pub vpc: Option<Vpc>,
    /// Pods' addresses: an IPv4 network, of which every node leases a /24, and an IPv6 network next to it where pods
    /// shall have both, of which it leases a /64. In a VPC pods have addresses of the nodes' own network.
    pub pod_cidr: Cidrs,
    /// Services' addresses: an IPv4 network, and an IPv6 network next to it where Services may have both.
    pub service_cidr: Cidrs,
    /// Whether `externalIPs` of Services are served. State that was kept from before there was a choice says no.
    #[serde(default)]
    pub allow_external_ips: bool,
    /// The network that stands for the data centre's LAN: the control plane is its first address, nodes follow from
    /// the eleventh. IPv4, and IPv6 next to it where nodes shall have both.
    pub underlay_cidr: Cidrs,
    /// API server's port.
    pub api_port: u16,
    /// Embedded store's port.
    pub etcd_port: u16,
    /// Instead of the embedded store.
    pub etcd: Option<ExternalEtcd>,
    /// DNS domain of the cluster.
    pub domain: String,
    /// The Kubernetes version whose API is served. State that was kept from before there was a choice has the newest.
    #[serde(default)]
    pub kubernetes_version: KubernetesVersion,
    /// Features of the API that are switched apart from the version.
    #[serde(default)]
    pub feature_gates: Gates,
}

/// Name of the bridge on the host's side.
pub const BRIDGE: &str = "causeway0";
/// Position of the first node's address in the underlay.
const FIRST_NODE: u32 = 11;

/// Length of a node's part of the pods' addresses.
pub const fn node_prefix(network: IpNetwork) -> u8 {
    match network {
        IpNetwork::V4(_) => 24,
        IpNetwork::V6(_) => 64,
    }
}

impl Settings {
    /// Refuses what cannot work, in one line that says why.
    pub fn validate(&self) -> anyhow::Result<()> {
        ensure!(
            (1..=64).contains(&self.nodes),
            "--nodes {}: from 1 to 64 nodes fit on one machine",
            self.nodes
        );
        self.validate_underlay_cidr()?;
        ensure!(
            self.vpc.is_some() == (self.network == Network::VpcEni),
            "the settings have {} VPC for the network {}",
            if self.vpc.is_some() { "a" } else { "no" },
            self.network
        );
        match &self.vpc {
            Some(vpc) => vpc.validate(self)?,
            None => self.validate_pod_cidr()?,
        }
        self.validate_service_cidr()?;
        let mut networks = vec![("service", self.service_cidr), ("underlay", self.underlay_cidr)];
        if self.vpc.is_none() {
            networks.insert(0, ("pod", self.pod_cidr));
        }
        for (i, (name, cidrs)) in networks.iter().enumerate() {
            for (other_name, others) in &networks[i + 1..] {
                let mut pairs = cidrs
                    .iter()
                    .flat_map(|one| others.iter().map(move |other| (one, other)));
                if let Some((one, other)) = pairs.find(|(one, other)| overlap(*one, *other)) {
                    bail!("--{name}-cidr {one} overlaps --{other_name}-cidr {other}");
                }
            }
        }
        ensure!(
            self.api_port != 0,
            "--api-port 0: a port from 1 to 65535 is needed"
        );
        if self.etcd.is_none() {
            ensure!(
                self.etcd_port != 0,
                "--etcd-port 0: a port from 1 to 65535 is needed"
            );
            ensure!(
                self.api_port != self.etcd_port,
                "--etcd-port {}: the API server has that port; choose another",
                self.etcd_port
            );
        }
        self.etcd.as_ref().map_or(Ok(()), ExternalEtcd::validate)
    }

    /// The IPv4 network of Services comes first, since nodes, pods and cluster DNS have IPv4 addresses. An IPv6 one is
    /// as large as Kubernetes allows (KEP-1880), or has room for a few Services at least.
    fn validate_service_cidr(&self) -> anyhow::Result<()> {
        let IpNetwork::V4(primary) = self.service_cidr.primary() else {
            bail!(
                "--service-cidr {}: the IPv4 network comes first, as in 10.96.0.0/12,fd00:10:96::/112",
                self.service_cidr
            );
        };
        ensure!(
            primary.prefix() <= 24,
            "--service-cidr {primary}: a /24 or larger is needed"
        );
        if let Some(secondary) = self.service_cidr.secondary() {
            ensure!(
                (64..=120).contains(&secondary.prefix()),
                "--service-cidr {secondary}: from /64 to /120 is possible"
            );
        }
        Ok(())
    }

    /// The IPv4 network comes first, with a /24 for each node. An IPv6 one has a /64 for each of the nodes that fit on
    /// one machine.
    fn validate_pod_cidr(&self) -> anyhow::Result<()> {
        let IpNetwork::V4(primary) = self.pod_cidr.primary() else {
            bail!(
                "--pod-cidr {}: the IPv4 network comes first, as in 10.244.0.0/16,fd00:10:244::/48",
                self.pod_cidr
            );
        };
        ensure!(
            primary.prefix() <= 22,
            "--pod-cidr {primary}: a /22 or larger is needed"
        );
        if let Some(secondary) = self.pod_cidr.secondary() {
            ensure!(
                secondary.prefix() <= 56,
                "--pod-cidr {secondary}: a /56 or larger is needed"
            );
            ensure!(
                self.underlay_cidr.secondary().is_some(),
                "--pod-cidr {secondary}: pods have IPv6 where nodes have it, as with --underlay-cidr {},fd00:172:30::/64",
                self.underlay_cidr.primary()
            );
        }
        let subnets = (1u32 << (24 - primary.prefix())) - 1;
        ensure!(
            u32::from(self.nodes) <= subnets,
            "--pod-cidr {primary}: --nodes {} need a /24 each, and {subnets} can be leased of it",
            self.nodes
        );
        Ok(())
    }

    fn validate_underlay_cidr(&self) -> anyhow::Result<()> {
        let IpNetwork::V4(primary) = self.underlay_cidr.primary() else {
            bail!(
                "--underlay-cidr {}: the IPv4 network comes first, as in 172.30.0.0/24,fd00:172:30::/64",
                self.underlay_cidr
            );
        };
        ensure!(
            primary.prefix() <= 25,
            "--underlay-cidr {primary}: a /25 or larger is needed"
        );
        if let Some(secondary) = self.underlay_cidr.secondary() {
            ensure!(
                secondary.prefix() <= 120,
                "--underlay-cidr {secondary}: a /120 or larger is needed"
            );
        }
        Ok(())
    }

    /// Reads the settings of a cluster that was brought up; `None` where there is none.
    pub fn load(path: &Path) -> anyhow::Result<Option<Self>> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let settings =
            serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?;
        Ok(Some(settings))
    }

    /// Refuses what a store that was kept contradicts: leases and ClusterIPs in it are of the networks that it was
    /// made with, and its cluster would go on with those.
    pub fn check_kept(&self, kept: &Self) -> anyhow::Result<()> {
        let mut rows = vec![
            ("--pod-cidr", kept.pod_cidr.to_string(), self.pod_cidr.to_string()),
            (
                "--service-cidr",
                kept.service_cidr.to_string(),
                self.service_cidr.to_string(),
            ),
            ("--network", kept.network.to_string(), self.network.to_string()),
            ("--leases", kept.leases.to_string(), self.leases.to_string()),
        ];
        if let (Some(kept_vpc), Some(vpc)) = (&kept.vpc, &self.vpc) {
            let [kept, asked] = [kept, self].map(|settings| settings.underlay_cidr.to_string());
            rows.push(("--underlay-cidr", kept, asked));
            let [kept, asked] = [kept_vpc, vpc].map(|vpc| vpc.instance_type.clone());
            rows.push(("--instance-type", kept, asked));
        }
        for (flag, kept, asked) in rows {
            ensure!(
                kept == asked,
                "{flag} {asked}: the kept state is of a cluster with {flag} {kept}; causeway down removes it"
            );
        }
        // More may join; one that is gone would stay as a Node object that never gets Ready again.
        ensure!(
            self.nodes >= kept.nodes,
            "--nodes {}: the kept state is of a cluster with --nodes {}; causeway down removes it",
            self.nodes,
            kept.nodes
        );
        Ok(())
    }

    /// Names of the nodes, in order.
    pub fn node_names(&self) -> impl Iterator<Item = String> {
        (1..=self.nodes).map(|index| format!("node-{index}"))
    }

    /// Address of the `index`-th node (from 0).
    pub fn node_address(&self, index: u8) -> Ipv4Addr {
        self.underlay_address(FIRST_NODE + u32::from(index))
    }

    /// IPv6 address of the `index`-th node (from 0), where nodes have one.
    pub fn node_address_v6(&self, index: u8) -> Option<Ipv6Addr> {
        self.underlay_address_v6(FIRST_NODE + u32::from(index))
    }

    /// The control plane's address on the underlay.
    pub fn control_plane_address(&self) -> Ipv4Addr {
        self.underlay_address(1)
    }

    /// Where the API server answers nodes.
    pub fn api_address(&self) -> SocketAddr {
        SocketAddr::from((self.control_plane_address(), self.api_port))
    }

    /// First address of the service range: the `kubernetes` Service.
    pub fn kubernetes_service(&self) -> Ipv4Addr {
        self.service_address(1)
    }

    /// Tenth address of the service range: cluster DNS.
    pub fn cluster_dns(&self) -> Ipv4Addr {
        self.service_address(10)
    }

    /// Client URLs of the store, embedded or not.
    pub fn etcd_endpoints(&self) -> Vec<String> {
        match &self.etcd {
            Some(etcd) => etcd.endpoints.clone(),
            None => vec![format!(
                "https://{}:{}",
                self.control_plane_address(),
                self.etcd_port
            )],
        }
    }

    fn service_address(&self, n: u32) -> Ipv4Addr {
        let network = match self.service_cidr.primary() {
            IpNetwork::V4(network) => Some(network),
            IpNetwork::V6(_) => None,
        };
        nth(
            network.expect("invariant: validate() admits only an IPv4 network first"),
            n,
        )
    }

    /// The control plane's IPv6 address on the underlay, where nodes have one.
    pub fn control_plane_address_v6(&self) -> Option<Ipv6Addr> {
        self.underlay_address_v6(1)
    }

    /// The IPv4 network between the nodes.
    pub fn underlay_network(&self) -> Ipv4Network {
        let network = match self.underlay_cidr.primary() {
            IpNetwork::V4(network) => Some(network),
            IpNetwork::V6(_) => None,
        };
        network.expect("invariant: validate() admits only an IPv4 network first")
    }

    fn underlay_address(&self, n: u32) -> Ipv4Addr {
        nth(self.underlay_network(), n)
    }

    fn underlay_address_v6(&self, n: u32) -> Option<Ipv6Addr> {
        match self.underlay_cidr.secondary()? {
            IpNetwork::V6(network) => Some((u128::from(network.network()) + u128::from(n)).into()),
            IpNetwork::V4(_) => None,
        }
    }
}

fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

fn nth(network: Ipv4Network, n: u32) -> Ipv4Addr {
    network
        .nth(n)
        .expect("invariant: validate() admits only networks with more than 75 addresses")
}

/// The flags about an external etcd, as they were given.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct EtcdArgs {
    /// Use this etcd instead of the built-in store (URL; may be given several times)
    #[arg(long = "etcd", value_name = "URL", value_delimiter = ',')]
    urls: Vec<String>,
    /// CA of the external etcd's certificate
    #[arg(long = "etcd-ca", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Client certificate for the external etcd
    #[arg(long = "etcd-cert", value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long = "etcd-key", value_name = "FILE")]
    key: Option<PathBuf>,
    /// User of the external etcd, where it has users
    #[arg(long = "etcd-user", value_name = "NAME")]
    user: Option<String>,
    /// File with that user's password
    #[arg(long = "etcd-password-file", value_name = "FILE")]
    password_file: Option<PathBuf>,
}

impl EtcdArgs {
    /// What they mean together, if they mean anything.
    pub fn external(&self) -> anyhow::Result<Option<ExternalEtcd>> {
        let Self {
            urls,
            ca,
            cert,
            key,
            user,
            password_file,
        } = self;
        let files = [ca, cert, key, password_file];
        if urls.is_empty() {
            ensure!(
                files.iter().all(|file| file.is_none()) && user.is_none(),
                "--etcd-ca, --etcd-cert, --etcd-key, --etcd-user and --etcd-password-file go with --etcd"
            );
            return Ok(None);
        }
        let client = match (cert, key) {
            (Some(cert), Some(key)) => Some((absolute(cert)?, absolute(key)?)),
            (None, None) => None,
            _ => bail!("--etcd-cert and --etcd-key go together"),
        };
        let user = match (user, password_file) {
            (Some(user), Some(file)) => Some((user.clone(), absolute(file)?)),
            (None, None) => None,
            _ => bail!("--etcd-user and --etcd-password-file go together"),
        };
        Ok(Some(ExternalEtcd {
            endpoints: urls.clone(),
            ca: ca.as_deref().map(absolute).transpose()?,
            client,
            user,
        }))
    }
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::fs::canonicalize(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests;
