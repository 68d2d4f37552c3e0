//! flannel's keys and JSON, exactly as its nodes read and write them (`pkg/subnet/config.go`, `pkg/lease/lease.go`,
//! `pkg/subnet/etcd/registry.go`).
//!
//! Go's decoder matches names without regard to case and ignores what it does not know; so does this one. What it does
//! not know it keeps, so that a rewritten lease loses nothing.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use model::lease::{Encap, Lease, Site};
use model::{ByFamily, IpFamily, MacAddr, NodeName, Vni};
use serde_json::{Map, Value, json};

pub mod annotations;

use crate::pool::{Pool, address, masked, number, size_of};

/// Our key in a lease's `BackendData`: the name of the node that holds it. flannel ignores it.
const NODE_KEY: &str = "CausewayNode";

/// UDP port of flannel's VXLAN: the kernel's default, older than the assigned 4789.
pub const VXLAN_PORT: u16 = 8472;

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
    /// The pods' addresses, of one version of IP or both.
    pub pools: ByFamily<Pool>,
    /// How packets travel.
    pub backend: Backend,
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
        /// MTU to start from, before the tunnel's overhead. Default: the underlay device's.
        mtu: Option<u32>,
        /// Group-based policy extension.
        gbp: bool,
        /// Send plainly to nodes that are on the link.
        direct_routing: bool,
    },
    /// Plain routes through nodes on the link.
    HostGw,
}

/// What flannel says about one version of IP: the names of its fields, and its defaults and limits.
struct Rules {
    family: IpFamily,
    enabled: &'static str,
    by_default: bool,
    network: &'static str,
    subnet_len: &'static str,
    subnet_min: &'static str,
    subnet_max: &'static str,
    /// Length of a subnet where nothing is said and the network has room.
    usual_len: u8,
    /// Longest prefix of a subnet.
    longest_len: u8,
    /// Longest prefix of a network.
    longest_network: u8,
    /// Networks whose addresses no pod can have.
    not_for_pods: &'static [(&'static str, &'static str)],
}

const RULES: [Rules; 2] = [
    Rules {
        family: IpFamily::V4,
        enabled: "EnableIPv4",
        by_default: true,
        network: "Network",
        subnet_len: "SubnetLen",
        subnet_min: "SubnetMin",
        subnet_max: "SubnetMax",
        usual_len: 24,
        longest_len: 30,
        longest_network: 28,
        not_for_pods: &[("127.0.0.0/8", "loopback"), ("224.0.0.0/4", "multicast")],
    },
    Rules {
        family: IpFamily::V6,
        enabled: "EnableIPv6",
        by_default: false,
        network: "IPv6Network",
        subnet_len: "IPv6SubnetLen",
        subnet_min: "IPv6SubnetMin",
        subnet_max: "IPv6SubnetMax",
        usual_len: 64,
        longest_len: 126,
        longest_network: 124,
        not_for_pods: &[
            ("::1/128", "loopback"),
            ("fe80::/10", "link-local"),
            ("ff00::/8", "multicast"),
        ],
    },
];

impl NetworkConfig {
    /// Reads `PREFIX/config`, with flannel's defaults and checks.
    ///
    /// # Errors
    /// When flannel would refuse it too, it names another backend, or no packet could be routed to its addresses.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let object = object(text)?;
        let mut pools = Vec::new();
        for rules in &RULES {
            let enabled = get(&object, rules.enabled).and_then(Value::as_bool);
            if enabled.unwrap_or(rules.by_default) {
                pools.push((rules.family, pool(&object, rules)?));
            }
        }
        if pools.is_empty() {
            return Err(field("EnableIPv4", "is off, and EnableIPv6 too"));
        }
        Ok(Self {
            pools: pools.into_iter().collect(),
            backend: backend(&object)?,
        })
    }

    /// Whether subnets are those that this configuration would give out: one of each version of IP that it has.
    #[must_use]
    pub fn admits(&self, subnets: &ByFamily<IpNetwork>) -> bool {
        let admitted = |family| match (self.pools.get(family), subnets.get(family)) {
            (Some(pool), Some(subnet)) => pool.admits(*subnet),
            (None, None) => true,
            _ => false,
        };
        admitted(IpFamily::V4) && admitted(IpFamily::V6)
    }

    /// The names of the VXLAN devices, `flannel.<VNI>` and `flannel-v6.<VNI>`; none without VXLAN.
    #[must_use]
    pub fn device_names(&self) -> ByFamily<String> {
        match self.backend {
            Backend::Vxlan { vni, .. } => self.pools.map(|family, _| match family {
                IpFamily::V4 => format!("flannel.{}", vni.0),
                IpFamily::V6 => format!("flannel-v6.{}", vni.0),
            }),
            Backend::HostGw => ByFamily::default(),
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

fn pool(object: &Map<String, Value>, rules: &Rules) -> Result<Pool, FormatError> {
    let text = string(object, rules.network)?.ok_or_else(|| field(rules.network, "is missing"))?;
    let parsed: Option<IpNetwork> = text.parse().ok();
    let network = parsed
        .filter(|network| IpFamily::from(network.ip()) == rules.family)
        .ok_or_else(|| field(rules.network, format!("{text:?} is not a network")))?;
    let network = masked(network);
    if network.prefix() > rules.longest_network {
        let least = rules.longest_network;
        return Err(field(
            rules.network,
            format!("{network} is smaller than a /{least}"),
        ));
    }
    for (other, whose) in rules.not_for_pods {
        let other: Option<IpNetwork> = other.parse().ok();
        if other.is_some_and(|other| other.contains(network.network())) {
            return Err(field(rules.network, format!("{network} has {whose} addresses")));
        }
    }
    let subnet_len = subnet_len(object, rules, network)?;
    let size = size_of(network, subnet_len);
    let at = |place| address(network.is_ipv4(), place).unwrap_or(network.network());
    // The first subnet is left out: its first address is the network's own.
    let first = at(number(network.network()) + size);
    let last = at(number(network.broadcast()) - (size - 1));
    let subnet_min = boundary(object, rules.subnet_min, network, size)?.unwrap_or(first);
    let subnet_max = boundary(object, rules.subnet_max, network, size)?.unwrap_or(last);
    if subnet_min > subnet_max {
        let (min, max) = (rules.subnet_min, rules.subnet_max);
        return Err(field(min, format!("{subnet_min} comes after {max} {subnet_max}")));
    }
    Ok(Pool {
        network,
        subnet_len,
        subnet_min,
        subnet_max,
    })
}

fn subnet_len(object: &Map<String, Value>, rules: &Rules, network: IpNetwork) -> Result<u8, FormatError> {
    let least = network.prefix() + 2;
    let Some(given) = number_of(object, rules.subnet_len)?.filter(|length| *length != 0) else {
        return Ok(least.max(rules.usual_len));
    };
    let longest = rules.longest_len;
    u8::try_from(given)
        .ok()
        .filter(|length| (least..=longest).contains(length))
        .ok_or_else(|| {
            field(
                rules.subnet_len,
                format!("{given} is not between {least} and {longest}"),
            )
        })
}

fn boundary(
    object: &Map<String, Value>,
    name: &'static str,
    network: IpNetwork,
    size: u128,
) -> Result<Option<IpAddr>, FormatError> {
    let Some(text) = string(object, name)? else {
        return Ok(None);
    };
    let address: IpAddr = text
        .parse()
        .map_err(|_| field(name, format!("{text:?} is not an address")))?;
    if !network.contains(address) {
        return Err(field(name, format!("{address} is not in {network}")));
    }
    if !number(address).is_multiple_of(size) {
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
    match kind.as_str() {
        "vxlan" => Ok(Backend::Vxlan {
            vni: vni(backend)?,
            port: narrow(backend, "Port")?
                .filter(|port| *port != 0)
                .unwrap_or(VXLAN_PORT),
            mtu: narrow(backend, "MTU")?.filter(|mtu| *mtu != 0),
            gbp: flag(backend, "GBP")?,
            direct_routing: flag(backend, "DirectRouting")?,
        }),
        "host-gw" => Ok(Backend::HostGw),
        _ => Err(FormatError::Backend(kind)),
    }
}

/// RFC 7348 §5: 24 bits.
fn vni(backend: &Map<String, Value>) -> Result<Vni, FormatError> {
    match narrow(backend, "VNI")?.unwrap_or(1) {
        number if number >> 24 == 0 => Ok(Vni(number)),
        number => Err(field("VNI", format!("{number} is too large"))),
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
        Self::read(&parse_key(key)?, object(value)?)
    }

    /// Reads what [`Self::key`] and [`Self::to_json`] wrote, IPv6 alone too.
    ///
    /// # Errors
    /// When it is something else.
    pub(crate) fn remembered(key: &str, value: &str) -> Result<Self, FormatError> {
        Self::read(&parse_subnets(key)?, object(value)?)
    }

    fn read(subnets: &ByFamily<IpNetwork>, mut object: Map<String, Value>) -> Result<Self, FormatError> {
        let kind = take(&mut object, "BackendType").and_then(|kind| kind.as_str().map(str::to_owned));
        let kind = kind.unwrap_or_default();
        let mut node = None;
        let sites = subnets.try_map(|family, subnet| {
            let fields = Fields::of(family);
            let public_ip = take_address(&mut object, fields.public_ip, family)?
                .ok_or_else(|| field(fields.public_ip, "is missing"))?;
            let data = take(&mut object, fields.data);
            let name = data
                .as_ref()
                .and_then(Value::as_object)
                .and_then(|data| get(data, NODE_KEY));
            node = node.take().or(name.and_then(Value::as_str).map(NodeName::from));
            Ok(Site {
                subnet: *subnet,
                public_ip,
                encap: encap(&kind, fields.data, data.as_ref())?,
            })
        })?;
        Ok(Self {
            lease: Lease { sites },
            node,
            unknown: object,
        })
    }

    /// The last part of the key.
    #[must_use]
    pub fn key(&self) -> String {
        key(&self.lease.subnets())
    }

    /// The value for etcd, with flannel's field names.
    #[must_use]
    pub fn to_json(&self) -> String {
        let Self { lease, node, unknown } = self;
        // PublicIPv6 is there even when null; BackendData is left out when it is empty (Go's omitempty).
        let mut object = Map::new();
        for family in IpFamily::ALL {
            let name = Fields::of(family).public_ip;
            let public_ip = lease.sites.get(family).map(|site| site.public_ip);
            if public_ip.is_some() || get(unknown, name).is_none() {
                object.insert(name.to_owned(), json!(public_ip));
            }
        }
        for (n, (family, site)) in lease.sites.iter().enumerate() {
            let (kind, mut data) = backend_data(site.encap);
            if let Some(node) = node.as_ref().filter(|_| n == 0) {
                data.insert(NODE_KEY.to_owned(), json!(node.0));
            }
            object.insert("BackendType".to_owned(), json!(kind));
            if !data.is_empty() {
                object.insert(Fields::of(family).data.to_owned(), Value::Object(data));
            }
        }
        object.extend(unknown.clone());
        Value::Object(object).to_string()
    }
}

/// The names of a lease's fields about one version of IP.
struct Fields {
    public_ip: &'static str,
    data: &'static str,
}

impl Fields {
    const fn of(family: IpFamily) -> Self {
        match family {
            IpFamily::V4 => Self {
                public_ip: "PublicIP",
                data: "BackendData",
            },
            IpFamily::V6 => Self {
                public_ip: "PublicIPv6",
                data: "BackendV6Data",
            },
        }
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

fn encap(kind: &str, name: &'static str, data: Option<&Value>) -> Result<Encap, FormatError> {
    match kind {
        "host-gw" => Ok(Encap::HostGw),
        "vxlan" => {
            let data = data
                .and_then(Value::as_object)
                .ok_or_else(|| field(name, "is missing"))?;
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

/// The last part of a lease's key, for example `10.5.44.0-24` or `10.5.75.0-24&fd05:0:0:4a::-64`.
#[must_use]
pub fn key(subnets: &ByFamily<IpNetwork>) -> String {
    let parts = subnets
        .values()
        .map(|subnet| format!("{}-{}", subnet.network(), subnet.prefix()));
    parts.collect::<Vec<_>>().join("&")
}

/// Reads the last part of a lease's key. flannel knows none without IPv4.
///
/// # Errors
/// When it is something else.
pub fn parse_key(key: &str) -> Result<ByFamily<IpNetwork>, FormatError> {
    let subnets = parse_subnets(key)?;
    if subnets.v4.is_none() {
        return Err(FormatError::Key(key.to_owned()));
    }
    Ok(subnets)
}

fn parse_subnets(key: &str) -> Result<ByFamily<IpNetwork>, FormatError> {
    let subnet = |text: &str| {
        let (address, length) = text.rsplit_once('-')?;
        let network: IpNetwork = format!("{address}/{length}").parse().ok()?;
        Some(masked(network))
    };
    let wrong = || FormatError::Key(key.to_owned());
    let parts: Vec<_> = key
        .split('&')
        .map(subnet)
        .collect::<Option<_>>()
        .ok_or_else(wrong)?;
    match parts.as_slice() {
        [IpNetwork::V4(_)] | [IpNetwork::V6(_)] | [IpNetwork::V4(_), IpNetwork::V6(_)] => {
            Ok(parts.into_iter().collect())
        }
        _ => Err(wrong()),
    }
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

fn take_address(
    object: &mut Map<String, Value>,
    name: &'static str,
    family: IpFamily,
) -> Result<Option<IpAddr>, FormatError> {
    match take(object, name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(value) => {
            let parsed: Option<IpAddr> = value.as_str().and_then(|text| text.parse().ok());
            parsed
                .filter(|address| IpFamily::from(*address) == family)
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

fn number_of(object: &Map<String, Value>, name: &'static str) -> Result<Option<u64>, FormatError> {
    match get(object, name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value
            .as_u64()
            .map(Some)
            .ok_or_else(|| field(name, format!("{value} is not a number"))),
    }
}

fn flag(object: &Map<String, Value>, name: &'static str) -> Result<bool, FormatError> {
    match get(object, name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(is_on)) => Ok(*is_on),
        Some(other) => Err(field(name, format!("{other} is neither true nor false"))),
    }
}

fn narrow<N: TryFrom<u64>>(
    object: &Map<String, Value>,
    name: &'static str,
) -> Result<Option<N>, FormatError> {
    let Some(value) = number_of(object, name)? else {
        return Ok(None);
    };
    N::try_from(value)
        .map(Some)
        .map_err(|_| field(name, format!("{value} is too large")))
}

#[cfg(test)]
mod tests;
