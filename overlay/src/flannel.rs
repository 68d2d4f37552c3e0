//! flannel's keys and JSON, exactly as its nodes read and write them (`pkg/subnet/config.go`, `pkg/lease/lease.go`,
//! `pkg/subnet/etcd/registry.go`).
//!
//! Go's decoder matches names without regard to case and ignores what it does not know; so does this one. What it does
//! not know it keeps, so that a rewritten lease loses nothing.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};
use model::lease::{Encap, Lease};
use model::{MacAddr, NodeName, Vni};
use serde_json::{Map, Value, json};

/// Our key in a lease's `BackendData`: the name of the node that holds it. flannel ignores it.
const NODE_KEY: &str = "CausewayNode";

/// UDP port of flannel's VXLAN: the kernel's default, older than the assigned 4789.
pub const VXLAN_PORT: u16 = 8472;

const LOOPBACK: Ipv4Network = constant([127, 0, 0, 0], 8);
const MULTICAST: Ipv4Network = constant([224, 0, 0, 0], 4);

const fn constant([a, b, c, d]: [u8; 4], prefix: u8) -> Ipv4Network {
    Ipv4Network::new_checked(Ipv4Addr::new(a, b, c, d), prefix).expect("invariant: a prefix is 32 at most")
}

/// Why a configuration or a lease was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Not a JSON object.
    #[error("not a JSON object: {0}")]
    NotAnObject(String),
    /// A field is missing or has a wrong value.
    #[error("{field}: {reason}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The network is carried by something that this program does not speak.
    #[error("Backend.Type: {0:?} is not supported, vxlan and host-gw are")]
    Backend(String),
    /// Not a subnet's key.
    #[error("not the key of a subnet: {0}")]
    Key(String),
}

fn field(field: &'static str, reason: impl Into<String>) -> FormatError {
    FormatError::Field {
        field,
        reason: reason.into(),
    }
}

/// The network, as `PREFIX/config` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// All pods' addresses.
    pub network: Ipv4Network,
    /// Prefix length of a node's subnet.
    pub subnet_len: u8,
    /// First subnet that is given out.
    pub subnet_min: Ipv4Addr,
    /// Last subnet that is given out.
    pub subnet_max: Ipv4Addr,
    /// How packets travel.
    pub backend: Backend,
    /// IPv6 is asked for (`EnableIPv6`). This program serves the IPv4 half of such a network.
    pub wants_v6: bool,
}

/// How packets travel between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// VXLAN (RFC 7348).
    Vxlan {
        /// Network identifier. Default 1.
        vni: Vni,
        /// UDP port. Default 8472.
        port: u16,
        /// MTU to start from, before the 50 bytes of overhead. Default: the underlay device's.
        mtu: Option<u32>,
        /// Group-based policy extension.
        gbp: bool,
        /// Send plainly to nodes that are on the link.
        direct_routing: bool,
    },
    /// Plain routes through nodes on the link.
    HostGw,
}

impl NetworkConfig {
    /// Reads `PREFIX/config`, with flannel's defaults and checks.
    ///
    /// # Errors
    /// When flannel would refuse it too, it names another backend, or no packet could be routed to its addresses.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let object = object(text)?;
        let network = string(&object, "Network")?.ok_or_else(|| field("Network", "is missing"))?;
        let network: Ipv4Network = network
            .parse()
            .map_err(|_| field("Network", format!("{network:?} is not a network")))?;
        let network = masked(network);
        if network.prefix() > 28 {
            return Err(field("Network", format!("{network} is smaller than a /28")));
        }
        for (other, whose) in [(LOOPBACK, "loopback"), (MULTICAST, "multicast")] {
            if other.contains(network.network()) {
                return Err(field("Network", format!("{network} has {whose} addresses")));
            }
        }
        let subnet_len = subnet_len(&object, network)?;
        let size = 1_u32 << (32 - subnet_len);
        // The first subnet is left out: its first address is the network's own.
        let first = Ipv4Addr::from(u32::from(network.network()) + size);
        let last = Ipv4Addr::from(u32::from(network.broadcast()) - (size - 1));
        let subnet_min = boundary(&object, "SubnetMin", network, size)?.unwrap_or(first);
        let subnet_max = boundary(&object, "SubnetMax", network, size)?.unwrap_or(last);
        if subnet_min > subnet_max {
            return Err(field(
                "SubnetMin",
                format!("{subnet_min} comes after SubnetMax {subnet_max}"),
            ));
        }
        let wants_v6 = get(&object, "EnableIPv6")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        Ok(Self {
            network,
            subnet_len,
            subnet_min,
            subnet_max,
            backend: backend(&object)?,
            wants_v6,
        })
    }

    /// Whether a subnet is one that this configuration would give out.
    #[must_use]
    pub fn admits(&self, subnet: Ipv4Network) -> bool {
        subnet.prefix() == self.subnet_len && (self.subnet_min..=self.subnet_max).contains(&subnet.network())
    }

    /// The name of the VXLAN device, `flannel.<VNI>`; `None` without one.
    #[must_use]
    pub fn device_name(&self) -> Option<String> {
        match self.backend {
            Backend::Vxlan { vni, .. } => Some(format!("flannel.{}", vni.0)),
            Backend::HostGw => None,
        }
    }

    /// How this node is reached, for its lease.
    #[must_use]
    pub fn encap(&self, vtep_mac: MacAddr) -> Encap {
        match self.backend {
            Backend::Vxlan { vni, .. } => Encap::Vxlan { vni, vtep_mac },
            Backend::HostGw => Encap::HostGw,
        }
    }
}

fn subnet_len(object: &Map<String, Value>, network: Ipv4Network) -> Result<u8, FormatError> {
    let Some(given) = number(object, "SubnetLen")?.filter(|length| *length != 0) else {
        return Ok(if network.prefix() > 22 {
            network.prefix() + 2
        } else {
            24
        });
    };
    u8::try_from(given)
        .ok()
        .filter(|length| *length <= 30 && *length >= network.prefix() + 2)
        .ok_or_else(|| {
            field(
                "SubnetLen",
                format!("{given} is not between {} and 30", network.prefix() + 2),
            )
        })
}

fn boundary(
    object: &Map<String, Value>,
    name: &'static str,
    network: Ipv4Network,
    size: u32,
) -> Result<Option<Ipv4Addr>, FormatError> {
    let Some(text) = string(object, name)? else {
        return Ok(None);
    };
    let address: Ipv4Addr = text
        .parse()
        .map_err(|_| field(name, format!("{text:?} is not an address")))?;
    if !network.contains(address) {
        return Err(field(name, format!("{address} is not in {network}")));
    }
    if !u32::from(address).is_multiple_of(size) {
        return Err(field(name, format!("{address} is not where a subnet begins")));
    }
    Ok(Some(address))
}

fn backend(object: &Map<String, Value>) -> Result<Backend, FormatError> {
    let empty = Map::new();
    // flannel takes "udp" where nothing is said.
    let Some(backend) = get(object, "Backend") else {
        return Err(FormatError::Backend("udp".to_owned()));
    };
    let backend = backend.as_object().unwrap_or(&empty);
    let kind = string(backend, "Type")?.unwrap_or_default();
    let flag = |name| get(backend, name).and_then(Value::as_bool).unwrap_or(false);
    match kind.as_str() {
        "vxlan" => Ok(Backend::Vxlan {
            vni: Vni(narrow(backend, "VNI")?.unwrap_or(1)),
            port: narrow(backend, "Port")?
                .filter(|port| *port != 0)
                .unwrap_or(VXLAN_PORT),
            mtu: narrow(backend, "MTU")?.filter(|mtu| *mtu != 0),
            gbp: flag("GBP"),
            direct_routing: flag("DirectRouting"),
        }),
        "host-gw" => Ok(Backend::HostGw),
        _ => Err(FormatError::Backend(kind)),
    }
}

/// A lease as it stands in etcd: the model's words, who wrote it, and what this program does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The lease.
    pub lease: Lease,
    /// The node that wrote it, where it was one of ours.
    pub node: Option<NodeName>,
    /// Fields that this program does not know, kept when the lease is written again.
    pub unknown: Map<String, Value>,
}

impl Record {
    /// A new lease of ours.
    #[must_use]
    pub fn new(lease: Lease, node: NodeName) -> Self {
        Self {
            lease,
            node: Some(node),
            unknown: Map::new(),
        }
    }

    /// Reads a lease: the key tells the subnet, the value the rest.
    ///
    /// # Errors
    /// When it is not a lease, or its packets travel in a way that this program does not speak.
    pub fn parse(key: &str, value: &str) -> Result<Self, FormatError> {
        let (subnet, subnet_v6) = parse_key(key)?;
        let mut object = object(value)?;
        let public_ip = take_address::<Ipv4Addr>(&mut object, "PublicIP")?
            .ok_or_else(|| field("PublicIP", "is missing"))?;
        let public_ip_v6 = take_address::<Ipv6Addr>(&mut object, "PublicIPv6")?;
        let kind = take(&mut object, "BackendType").and_then(|kind| kind.as_str().map(str::to_owned));
        let kind = kind.unwrap_or_default();
        let data = take(&mut object, "BackendData");
        let data_v6 = take(&mut object, "BackendV6Data");
        let node = data
            .as_ref()
            .and_then(Value::as_object)
            .and_then(|data| get(data, NODE_KEY));
        let node = node.and_then(Value::as_str).map(NodeName::from);
        let encap = encap(&kind, data.as_ref())?;
        let encap_v6 = match (subnet_v6, data_v6) {
            (Some(_), data) => Some(self::encap(&kind, data.as_ref())?),
            (None, _) => None,
        };
        let lease = Lease {
            subnet,
            subnet_v6,
            public_ip,
            public_ip_v6,
            encap,
            encap_v6,
        };
        Ok(Self {
            lease,
            node,
            unknown: object,
        })
    }

    /// The value for etcd, with flannel's field names.
    #[must_use]
    pub fn to_json(&self) -> String {
        let Self { lease, node, unknown } = self;
        let (kind, mut data) = backend_data(lease.encap);
        if let Some(node) = node {
            data.insert(NODE_KEY.to_owned(), json!(node.0));
        }
        // PublicIPv6 is there even when null; BackendData is left out when it is empty (Go's omitempty).
        let mut object = Map::new();
        object.insert("PublicIP".to_owned(), json!(lease.public_ip));
        object.insert("PublicIPv6".to_owned(), json!(lease.public_ip_v6));
        object.insert("BackendType".to_owned(), json!(kind));
        if !data.is_empty() {
            object.insert("BackendData".to_owned(), Value::Object(data));
        }
        if let Some(encap) = lease.encap_v6 {
            let (_, data) = backend_data(encap);
            if !data.is_empty() {
                object.insert("BackendV6Data".to_owned(), Value::Object(data));
            }
        }
        object.extend(unknown.clone());
        Value::Object(object).to_string()
    }
}

fn backend_data(encap: Encap) -> (&'static str, Map<String, Value>) {
    let mut data = Map::new();
    match encap {
        Encap::HostGw => ("host-gw", data),
        Encap::Vxlan { vni, vtep_mac } => {
            data.insert("VNI".to_owned(), json!(vni));
            data.insert("VtepMAC".to_owned(), json!(vtep_mac));
            ("vxlan", data)
        }
    }
}

fn encap(kind: &str, data: Option<&Value>) -> Result<Encap, FormatError> {
    match kind {
        "host-gw" => Ok(Encap::HostGw),
        "vxlan" => {
            let data = data
                .and_then(Value::as_object)
                .ok_or_else(|| field("BackendData", "is missing"))?;
            let mac = string(data, "VtepMAC")?.ok_or_else(|| field("VtepMAC", "is missing"))?;
            let vtep_mac = mac
                .parse()
                .map_err(|error| field("VtepMAC", format!("{error}")))?;
            Ok(Encap::Vxlan {
                vni: Vni(narrow(data, "VNI")?.unwrap_or(1)),
                vtep_mac,
            })
        }
        other => Err(FormatError::Backend(other.to_owned())),
    }
}

/// The last part of a subnet's key, for example `10.5.44.0-24` or `10.5.75.0-24&fd05:0:0:4a::-64`.
#[must_use]
pub fn key(subnet: Ipv4Network, subnet_v6: Option<Ipv6Network>) -> String {
    let v4 = format!("{}-{}", subnet.network(), subnet.prefix());
    match subnet_v6 {
        None => v4,
        Some(v6) => format!("{v4}&{}-{}", v6.network(), v6.prefix()),
    }
}

/// Reads the last part of a subnet's key.
///
/// # Errors
/// When it is something else.
pub fn parse_key(key: &str) -> Result<(Ipv4Network, Option<Ipv6Network>), FormatError> {
    let wrong = || FormatError::Key(key.to_owned());
    let (v4, v6) = key.split_once('&').map_or((key, None), |(v4, v6)| (v4, Some(v6)));
    let halves = |text: &str| {
        text.rsplit_once('-')
            .map(|(address, length)| format!("{address}/{length}"))
    };
    let subnet: Ipv4Network = halves(v4).and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
    let subnet_v6 = match v6 {
        None => None,
        Some(v6) => Some(
            halves(v6)
                .and_then(|text| text.parse::<Ipv6Network>().ok())
                .ok_or_else(wrong)?,
        ),
    };
    Ok((masked(subnet), subnet_v6))
}

/// The network without the host bits that a text may carry.
fn masked(network: Ipv4Network) -> Ipv4Network {
    Ipv4Network::new(network.network(), network.prefix()).unwrap_or(network)
}

fn object(text: &str) -> Result<Map<String, Value>, FormatError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(FormatError::NotAnObject(other.to_string())),
        Err(error) => Err(FormatError::NotAnObject(error.to_string())),
    }
}

/// A field by its exact name, else by its name in other case: Go's rule.
fn get<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let exact = object.get(name);
    exact.or_else(|| {
        object
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    })
}

fn take(object: &mut Map<String, Value>, name: &str) -> Option<Value> {
    if let Some(value) = object.remove(name) {
        return Some(value);
    }
    let key = object
        .keys()
        .find(|key| key.eq_ignore_ascii_case(name))
        .cloned()?;
    object.remove(&key)
}

fn take_address<A: std::str::FromStr>(
    object: &mut Map<String, Value>,
    name: &'static str,
) -> Result<Option<A>, FormatError> {
    match take(object, name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(value) => {
            let parsed = value.as_str().and_then(|text| text.parse().ok());
            parsed
                .map(Some)
                .ok_or_else(|| field(name, format!("{value} is not an address")))
        }
    }
}

fn string(object: &Map<String, Value>, name: &'static str) -> Result<Option<String>, FormatError> {
    match get(object, name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(field(name, format!("{other} is not a text"))),
    }
}

fn number(object: &Map<String, Value>, name: &'static str) -> Result<Option<u64>, FormatError> {
    match get(object, name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value
            .as_u64()
            .map(Some)
            .ok_or_else(|| field(name, format!("{value} is not a number"))),
    }
}

fn narrow<N: TryFrom<u64>>(
    object: &Map<String, Value>,
    name: &'static str,
) -> Result<Option<N>, FormatError> {
    let Some(value) = number(object, name)? else {
        return Ok(None);
    };
    N::try_from(value)
        .map(Some)
        .map_err(|_| field(name, format!("{value} is too large")))
}

#[cfg(test)]
mod tests;
