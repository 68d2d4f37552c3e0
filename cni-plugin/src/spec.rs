//! The CNI specification's side of the plugin: what comes in by environment and standard input, what goes out as
//! result or error, in every version of the specification. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU64};
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use model::wiring::{Bandwidth, PortMapping, RateLimit, WiringPlan, Wishes};
use model::{MacAddr, ObjectName, Protocol};
use serde::Deserialize;
use serde_json::{Map, Number, Value, json};

use crate::host_local;
use crate::protocol::{AttachmentKey, DEFAULT_SOCKET, Failure};

/// Error codes (CNI 1.1, "Error"; below 100 they are the specification's).
pub mod code {
    /// The configuration's `cniVersion` is not supported.
    pub const VERSION: u32 = 1;
    /// The container is unknown.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A `CNI_*` variable is missing or invalid.
    pub const ENVIRONMENT: u32 = 4;
    /// A file or socket could not be read or written.
    pub const IO: u32 = 5;
    /// Standard input is not JSON.
    pub const DECODE: u32 = 6;
    /// The configuration is invalid.
    pub const CONFIG: u32 = 7;
    /// Try again later: the agent is not there, or has no subnet yet.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: an ADD would not be served now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: likewise, and pods that run may be out of reach.
    pub const LIMITED: u32 = 51;
    /// Ours: the kernel refused.
    pub const KERNEL: u32 = 100;
    /// Ours: CHECK found a difference.
    pub const DIFFERENT: u32 = 101;
}

/// Versions of the specification that this plugin speaks, oldest first.
pub const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What a configuration without `cniVersion` means.
const OLDEST: &str = "0.1.0";

/// The kernel counts whole bytes in a second.
const LEAST_RATE_BITS: u64 = 8;

/// What fits into the kernel's number (`TCA_TBF_BURST`).
const MOST_BURST_BYTES: u64 = u32::MAX as u64;

/// Environment variables.
pub type Variables = BTreeMap<String, String>;

fn fail(code: u32, msg: impl Into<String>) -> Failure {
    Failure {
        code,
        msg: msg.into(),
        details: String::new(),
    }
}

/// `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are the specification's verbs")]
pub enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            _ => return None,
        })
    }

    /// Variables that the verb requires (CNI 1.1 §2, "Parameters").
    const fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Self::Gc | Self::Status => &["CNI_PATH"],
            Self::Version => &[],
        }
    }

    /// The specification's version that introduced the verb.
    const fn since(self) -> &'static str {
        match self {
            Self::Add | Self::Del | Self::Version => OLDEST,
            Self::Check => "0.4.0",
            Self::Gc | Self::Status => "1.1.0",
        }
    }
}

/// What the environment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The verb.
    pub verb: Verb,
    /// Which interface; empty fields where the verb has none.
    pub key: AttachmentKey,
    /// Path of the pod's namespace; empty where DEL has none any more.
    pub netns: String,
    /// The pod, by `CNI_ARGS`.
    pub pod: Option<ObjectName>,
    /// `CNI_NETNS_OVERRIDE`: the pod's namespace may be the plugin's own.
    pub own_netns_allowed: bool,
}

/// Reads the environment; `None` without `CNI_COMMAND`: somebody only tried the program.
///
/// # Errors
/// Code 4, with all missing variables named.
pub fn parse_environment(variables: &Variables) -> Result<Option<Call>, Failure> {
    let get = |name: &str| variables.get(name).cloned().unwrap_or_default();
    let command = get("CNI_COMMAND");
    if command.is_empty() {
        return Ok(None);
    }
    let verb = Verb::parse(&command)
        .ok_or_else(|| fail(code::ENVIRONMENT, format!("unknown CNI_COMMAND: {command}")))?;
    let missing: Vec<&str> = verb
        .required()
        .iter()
        .copied()
        .filter(|name| get(name).is_empty())
        .collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Err(fail(
            code::ENVIRONMENT,
            format!("required environment variables missing: {missing}"),
        ));
    }
    let key = AttachmentKey {
        container_id: get("CNI_CONTAINERID"),
        ifname: get("CNI_IFNAME"),
    };
    if verb.required().contains(&"CNI_CONTAINERID") {
        check_names(&key)?;
    }
    let own_netns_allowed = matches!(get("CNI_NETNS_OVERRIDE").to_lowercase().as_str(), "1" | "true");
    Ok(Some(Call {
        verb,
        key,
        netns: get("CNI_NETNS"),
        pod: pod(&get("CNI_ARGS")),
        own_netns_allowed,
    }))
}

/// Container id and interface name (CNI 1.1 §2; `dev_valid_name` for the latter).
fn check_names(key: &AttachmentKey) -> Result<(), Failure> {
    let id = &key.container_id;
    if !is_identifier(id) {
        return Err(fail(
            code::ENVIRONMENT,
            format!("CNI_CONTAINERID: {id:?} is not an identifier"),
        ));
    }
    let name = &key.ifname;
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace();
    if name.len() > 15 || name == "." || name == ".." || name.contains(bad) {
        return Err(fail(
            code::ENVIRONMENT,
            format!("CNI_IFNAME: {name:?} is not a device name"),
        ));
    }
    Ok(())
}

/// `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`
fn is_identifier(text: &str) -> bool {
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    first
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// `K8S_POD_NAMESPACE` and `K8S_POD_NAME` of `CNI_ARGS` (`KEY=VALUE;…`).
fn pod(arguments: &str) -> Option<ObjectName> {
    let get = |name: &str| {
        arguments
            .split(';')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    };
    Some(ObjectName::new(get("K8S_POD_NAMESPACE")?, get("K8S_POD_NAME")?))
}

/// The configuration that comes on standard input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConf {
    /// `cniVersion`, which every answer repeats.
    pub version: String,
    /// The agent's socket: `socket`, by default [`DEFAULT_SOCKET`].
    pub socket: PathBuf,
    /// Where `host-local` keeps the addresses of pods that another plugin wired: `hostLocal`, by default
    /// [`host_local::DEFAULT_DIRECTORY`].
    pub host_local: PathBuf,
    /// What is still in use (`cni.dev/valid-attachments`), for GC.
    pub valid: Option<Vec<AttachmentKey>>,
    /// Devices of the result of the ADD before (`prevResult`).
    pub previous_devices: Vec<String>,
    /// What the runtime asks for, by the capabilities that the configuration declares (`runtimeConfig`).
    pub wishes: Wishes,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawConf {
    #[serde(default)]
    cni_version: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    socket: Option<PathBuf>,
    #[serde(default)]
    host_local: Option<PathBuf>,
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<RawAttachment>>,
    #[serde(default)]
    prev_result: Option<Value>,
    #[serde(default)]
    runtime_config: Option<RawRuntimeConfig>,
}

/// `runtimeConfig` (CNI conventions). What other plugins of a list are for is in here, too.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawRuntimeConfig {
    ips: Option<Vec<String>>,
    mac: Option<String>,
    port_mappings: Option<Vec<RawPortMapping>>,
    bandwidth: Option<RawBandwidth>,
}

/// Bits in a second, and bits; 0 or absent: no limit.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawBandwidth {
    ingress_rate: Option<Number>,
    ingress_burst: Option<Number>,
    egress_rate: Option<Number>,
    egress_burst: Option<Number>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPortMapping {
    host_port: i64,
    container_port: i64,
    #[serde(default)]
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

#[derive(Deserialize)]
struct RawAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

/// The version that an answer to this input shall have, as far as it can be told.
#[must_use]
pub fn input_version(input: &[u8]) -> String {
    let version = serde_json::from_slice::<Value>(input)
        .ok()
        .and_then(|conf| Some(conf.get("cniVersion")?.as_str()?.to_owned()));
    version
        .filter(|version| !version.is_empty())
        .unwrap_or_else(|| OLDEST.to_owned())
}

/// Reads the configuration for a verb.
///
/// # Errors
/// Code 6 for what is not JSON, 7 for a bad name, 1 for a version that is not spoken or lacks the verb.
pub fn parse_config(verb: Verb, input: &[u8]) -> Result<NetConf, Failure> {
    let not_valid = |error: serde_json::Error| Failure {
        details: error.to_string(),
        ..fail(code::DECODE, "network configuration is not valid JSON")
    };
    // An object: a list would do for a struct that has a default for every field.
    let object: Map<String, Value> = serde_json::from_slice(input).map_err(not_valid)?;
    let raw: RawConf = serde_json::from_value(Value::Object(object)).map_err(not_valid)?;
    let version = if raw.cni_version.is_empty() {
        OLDEST.to_owned()
    } else {
        raw.cni_version
    };
    if !VERSIONS.contains(&version.as_str()) {
        let msg = format!("cniVersion {version} is not supported");
        return Err(Failure {
            details: format!("supported: {}", VERSIONS.join(", ")),
            ..fail(code::VERSION, msg)
        });
    }
    if raw.name.is_empty() {
        return Err(fail(code::CONFIG, "the network configuration has no name"));
    }
    if !is_identifier(&raw.name) {
        return Err(fail(
            code::CONFIG,
            format!("name {:?} is not an identifier", raw.name),
        ));
    }
    let place = |version: &str| VERSIONS.iter().position(|known| *known == version);
    if place(&version) < place(verb.since()) {
        let msg = format!(
            "cniVersion {version} does not have this verb, {} does",
            verb.since()
        );
        return Err(fail(code::VERSION, msg));
    }
    let valid = raw.valid.map(|valid| {
        let key = |raw: RawAttachment| AttachmentKey {
            container_id: raw.container_id,
            ifname: raw.ifname,
        };
        valid.into_iter().map(key).collect()
    });
    Ok(NetConf {
        version,
        socket: raw.socket.unwrap_or_else(|| DEFAULT_SOCKET.into()),
        host_local: raw
            .host_local
            .unwrap_or_else(|| host_local::DEFAULT_DIRECTORY.into()),
        valid,
        previous_devices: previous_devices(raw.prev_result.as_ref()),
        wishes: wishes(raw.runtime_config.unwrap_or_default())?,
    })
}

fn wishes(raw: RawRuntimeConfig) -> Result<Wishes, Failure> {
    let wrong = |field: &str, text: &dyn std::fmt::Display, what: &str| {
        fail(
            code::CONFIG,
            format!("runtimeConfig.{field}: {text} is not {what}"),
        )
    };
    let ip = |text: &String| {
        let network: Option<IpNetwork> = text.parse().ok();
        let address = network.map(|network| network.ip());
        address.ok_or_else(|| wrong("ips", &format_args!("{text:?}"), "an address"))
    };
    let ips: Vec<IpAddr> = raw.ips.iter().flatten().map(ip).collect::<Result<_, _>>()?;
    let of_one_version = |v4| ips.iter().filter(|address| address.is_ipv4() == v4).count() > 1;
    if of_one_version(true) || of_one_version(false) {
        return Err(fail(
            code::CONFIG,
            "runtimeConfig.ips: one address of each version of IP is possible",
        ));
    }
    let mac = raw.mac.filter(|text| !text.is_empty());
    let mac = mac.map(|text| {
        // Of a group (IEEE 802), which no device can have.
        let parsed: Option<MacAddr> = text.parse().ok();
        parsed
            .filter(|mac| mac.0[0] & 1 == 0 && mac.0 != [0; 6])
            .ok_or_else(|| wrong("mac", &format_args!("{text:?}"), "a device's MAC address"))
    });
    let mappings = raw.port_mappings.iter().flatten();
    Ok(Wishes {
        ips,
        mac: mac.transpose()?,
        port_mappings: mappings
            .map(|raw| port_mapping(raw, wrong))
            .collect::<Result<_, _>>()?,
        bandwidth: bandwidth(&raw.bandwidth.unwrap_or_default(), wrong)?,
    })
}

fn bandwidth(
    raw: &RawBandwidth,
    wrong: impl Fn(&str, &dyn std::fmt::Display, &str) -> Failure,
) -> Result<Bandwidth, Failure> {
    let number = |direction: &str, what: &str, number: &Option<Number>| {
        let Some(number) = number else { return Ok(0) };
        let field = format!("bandwidth.{direction}{what}");
        number
            .as_u64()
            .ok_or_else(|| wrong(&field, number, "a number of bits"))
    };
    let limit = |direction: &str, rate: &Option<Number>, burst: &Option<Number>| {
        let rate = NonZeroU64::new(number(direction, "Rate", rate)?);
        let burst = NonZeroU64::new(number(direction, "Burst", burst)?);
        let (has, lacks, value) = match (rate, burst) {
            (None, None) => return Ok(None),
            (Some(rate_bits), Some(burst_bits)) => {
                if rate_bits.get() < LEAST_RATE_BITS {
                    let field = format!("bandwidth.{direction}Rate");
                    return Err(wrong(&field, &rate_bits, "8 bits in a second or more"));
                }
                if burst_bits.get() / 8 > MOST_BURST_BYTES {
                    let field = format!("bandwidth.{direction}Burst");
                    return Err(wrong(&field, &burst_bits, "less than 4 GiB, in bits"));
                }
                return Ok(Some(RateLimit {
                    rate_bits,
                    burst_bits,
                }));
            }
            (Some(rate), None) => ("Rate", "Burst", rate),
            (None, Some(burst)) => ("Burst", "Rate", burst),
        };
        let msg = format!("runtimeConfig.bandwidth: {direction}{has} is {value}, without {direction}{lacks}");
        Err(fail(code::CONFIG, msg))
    };
    Ok(Bandwidth {
        ingress: limit("ingress", &raw.ingress_rate, &raw.ingress_burst)?,
        egress: limit("egress", &raw.egress_rate, &raw.egress_burst)?,
    })
}

fn port_mapping(
    raw: &RawPortMapping,
    wrong: impl Fn(&str, &dyn std::fmt::Display, &str) -> Failure,
) -> Result<PortMapping, Failure> {
    let port = |field: &str, number: i64| {
        let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
        port.ok_or_else(|| wrong(&format!("portMappings.{field}"), &number, "a port"))
    };
    let protocol = match raw.protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => {
            let named = format_args!("{:?}", raw.protocol).to_string();
            return Err(wrong("portMappings.protocol", &named, "tcp, udp or sctp"));
        }
    };
    let host_ip = Some(raw.host_ip.as_str()).filter(|text| !text.is_empty());
    let host_ip = host_ip.map(|text| {
        let parsed: Option<IpAddr> = text.parse().ok();
        parsed.ok_or_else(|| wrong("portMappings.hostIP", &format_args!("{text:?}"), "an address"))
    });
    Ok(PortMapping {
        host_port: port("hostPort", raw.host_port)?,
        container_port: port("containerPort", raw.container_port)?,
        protocol,
        host_ip: host_ip.transpose()?,
    })
}

/// Names of devices on the node's side, of a result of any version since 0.3.0.
fn previous_devices(result: Option<&Value>) -> Vec<String> {
    let interfaces = result
        .and_then(|result| result.get("interfaces"))
        .and_then(Value::as_array);
    let on_node = |interface: &&Value| {
        interface
            .get("sandbox")
            .and_then(Value::as_str)
            .is_none_or(str::is_empty)
    };
    let name = |interface: &Value| interface.get("name")?.as_str().map(str::to_owned);
    interfaces
        .into_iter()
        .flatten()
        .filter(on_node)
        .filter_map(name)
        .collect()
}

/// The result of an ADD in the form of a version.
#[must_use]
pub fn result(version: &str, plan: &WiringPlan, netns: &str) -> Value {
    match version {
        "0.1.0" | "0.2.0" => old_result(version, plan),
        _ => new_result(version, plan, netns),
    }
}

/// 0.3.0 and later. `version` within an address went with 1.0.0, `mtu` came with 1.1.0.
fn new_result(version: &str, plan: &WiringPlan, netns: &str) -> Value {
    let with_family = version.starts_with("0.");
    let ips = plan.addresses.iter().map(|address| {
        let mut ip = Map::new();
        ip.insert("address".to_owned(), json!(address));
        ip.insert("interface".to_owned(), json!(1));
        if let Some(gateway) = gateway(plan, *address) {
            ip.insert("gateway".to_owned(), json!(gateway));
        }
        if with_family {
            ip.insert(
                "version".to_owned(),
                json!(if address.is_ipv4() { "4" } else { "6" }),
            );
        }
        Value::Object(ip)
    });
    let mut host = json!({"name": plan.host_ifname, "mac": plan.host_mac});
    let mut pod = json!({"name": plan.pod_ifname, "mac": plan.pod_mac, "sandbox": netns});
    if version == "1.1.0" {
        for interface in [&mut host, &mut pod].into_iter().filter_map(Value::as_object_mut) {
            interface.insert("mtu".to_owned(), json!(plan.mtu));
        }
    }
    let ips: Vec<Value> = ips.collect();
    json!({"cniVersion": version, "interfaces": [host, pod], "ips": ips, "routes": routes(plan, None), "dns": {}})
}

/// 0.2.0 and earlier: one address of each family.
fn old_result(version: &str, plan: &WiringPlan) -> Value {
    let mut result = Map::new();
    result.insert("cniVersion".to_owned(), json!(version));
    for (name, v4) in [("ip4", true), ("ip6", false)] {
        if let Some(address) = plan.addresses.iter().find(|address| address.is_ipv4() == v4) {
            let mut ip = json!({"ip": address, "routes": routes(plan, Some(v4))});
            if let (Some(ip), Some(gateway)) = (ip.as_object_mut(), gateway(plan, *address)) {
                ip.insert("gateway".to_owned(), json!(gateway));
            }
            result.insert(name.to_owned(), ip);
        }
    }
    result.insert("dns".to_owned(), json!({}));
    Value::Object(result)
}

fn gateway(plan: &WiringPlan, address: IpNetwork) -> Option<IpAddr> {
    plan.gateways
        .iter()
        .copied()
        .find(|gateway| gateway.is_ipv4() == address.is_ipv4())
}

fn routes(plan: &WiringPlan, only_v4: Option<bool>) -> Vec<Value> {
    let wanted = |destination: IpNetwork| only_v4.is_none_or(|v4| destination.is_ipv4() == v4);
    let routes = plan.routes.iter().filter(|route| wanted(route.destination));
    routes
        .map(|route| match route.gateway {
            Some(gateway) => json!({"dst": route.destination, "gw": gateway}),
            None => json!({"dst": route.destination}),
        })
        .collect()
}

/// The answer to VERSION.
#[must_use]
pub fn version_result(version: &str) -> Value {
    json!({"cniVersion": version, "supportedVersions": VERSIONS})
}

/// A failure in the form of the specification. It goes to standard output, where libcni reads it.
#[must_use]
pub fn error_result(version: &str, failure: &Failure) -> Value {
    let Failure { code, msg, details } = failure;
    let mut error = Map::new();
    error.insert("cniVersion".to_owned(), json!(version));
    error.insert("code".to_owned(), json!(code));
    error.insert("msg".to_owned(), json!(msg));
    if !details.is_empty() {
        error.insert("details".to_owned(), json!(details));
    }
    Value::Object(error)
}

#[cfg(test)]
mod tests;
