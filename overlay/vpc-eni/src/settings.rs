//! The settings, by amazon-vpc-cni-k8s's environment variables and with its defaults (README there, v1.23): whoever
//! switches takes the variables of the `aws-node` DaemonSet along.
//!
//! A variable that cannot be understood is refused and told; the peer falls back to a default and logs it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::ec2::Tags;
use crate::warm::{Target, Unit};

/// Which version of IP pods have: one, as at the peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodFamily {
    /// `ENABLE_IPv4`.
    #[default]
    V4,
    /// `ENABLE_IPv6`: a `/80` of the primary interface.
    V6,
}

/// How source ports are chosen where addresses are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Randomize {
    /// All of it is random (`--random-fully`).
    #[default]
    Prng,
    /// By a hash of the connection (`--random`).
    HashRandom,
    /// The pod's own port, where it is free.
    None,
}

/// Where an `ENIConfig` is named, under custom networking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomNetworking {
    /// The annotation of the node, which comes first (`ENI_CONFIG_ANNOTATION_DEF`).
    pub annotation: String,
    /// The label of the node (`ENI_CONFIG_LABEL_DEF`).
    pub label: String,
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// `ENABLE_IPv4`, `ENABLE_IPv6`.
    pub family: PodFamily,
    /// `ENABLE_PREFIX_DELEGATION`.
    pub unit: Unit,
    /// `WARM_ENI_TARGET`, `WARM_PREFIX_TARGET`, `WARM_IP_TARGET`, `MINIMUM_IP_TARGET`.
    pub target: Target,
    /// `MAX_ENI`.
    pub max_interfaces: Option<u32>,
    /// `IP_COOLDOWN_PERIOD`: how long an address that came back is given to nobody.
    pub cool_down: Duration,
    /// `CLUSTER_NAME`.
    pub cluster: Option<String>,
    /// `ADDITIONAL_ENI_TAGS`.
    pub tags: Tags,
    /// `ENABLE_SUBNET_DISCOVERY`.
    pub discovers_subnets: bool,
    /// `MANAGE_UNTAGGED_ENI`: whether interfaces that somebody else attached serve pods, too.
    pub manages_untagged: bool,
    /// `AWS_MANAGE_ENIS_NON_SCHEDULABLE`: whether interfaces come and go on a node that takes no pods.
    pub manages_unschedulable: bool,
    /// `AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG`.
    pub custom_networking: Option<CustomNetworking>,
    /// `AWS_VPC_K8S_CNI_EXTERNALSNAT`: somebody else translates addresses.
    pub external_snat: bool,
    /// `AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS`: where pods go with their own addresses, besides the VPC.
    pub snat_excluded: Vec<IpNetwork>,
    /// `AWS_VPC_K8S_CNI_RANDOMIZESNAT`.
    pub randomize: Randomize,
    /// `AWS_EXTERNAL_SERVICE_CIDRS`: networks that are always reached by the main table.
    pub external_services: Vec<IpNetwork>,
    /// `AWS_VPC_CNI_NODE_PORT_SUPPORT`.
    pub node_ports: bool,
    /// `AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER`: who sets it. The agent keeps it loose whatever this says, as the peer's init
    /// container does where this is `false`.
    pub sets_rp_filter: bool,
    /// `AWS_VPC_ENI_MTU`, in bytes.
    pub mtu: u16,
    /// `POD_MTU`, in bytes; the interfaces' where it is not given.
    pub pod_mtu: Option<u16>,
    /// `INTROSPECTION_BIND_ADDRESS`.
    pub introspection: SocketAddr,
    /// Whether it is served, unless `DISABLE_INTROSPECTION`.
    pub serves_introspection: bool,
    /// Whether metrics are wanted, unless `DISABLE_METRICS`. The agent has them at its own `metricsBind` in any case.
    pub metrics: bool,
    /// `AWS_EC2_ENDPOINT`.
    pub ec2_endpoint: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            family: PodFamily::V4,
            unit: Unit::Address,
            target: Target::Interfaces(1),
            max_interfaces: None,
            cool_down: Duration::from_secs(30),
            cluster: None,
            tags: Tags::new(),
            discovers_subnets: true,
            manages_untagged: true,
            manages_unschedulable: false,
            custom_networking: None,
            external_snat: false,
            snat_excluded: Vec::new(),
            randomize: Randomize::Prng,
            external_services: Vec::new(),
            node_ports: true,
            sets_rp_filter: true,
            mtu: 9001,
            pod_mtu: None,
            introspection: (Ipv4Addr::LOCALHOST, 61_679).into(),
            serves_introspection: true,
            metrics: true,
            ec2_endpoint: None,
        }
    }
}

/// A variable that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}={value}: {why}")]
pub struct Refused {
    /// The variable.
    pub name: &'static str,
    /// What it was.
    pub value: String,
    /// What is wrong with it.
    pub why: String,
}

/// What the peer has and this program has not.
const NOT_HERE: [(&str, &str); 9] = [
    (
        "ANNOTATE_POD_IP",
        "pods get no annotation vpc.amazonaws.com/pod-ips here",
    ),
    (
        "DISABLE_LEAKED_ENI_CLEANUP",
        "interfaces that nobody has are always removed here",
    ),
    (
        "DISABLE_NETWORK_RESOURCE_PROVISIONING",
        "an agent that changes nothing at EC2 is not here yet",
    ),
    ("DISABLE_POD_V6", "IPv6 is not turned off in pods here"),
    (
        "ENABLE_IMDS_ONLY_MODE",
        "an agent that asks nothing of EC2 is not here yet",
    ),
    (
        "ENABLE_POD_ENI",
        "security groups for single pods are not here yet",
    ),
    (
        "ENABLE_MULTI_NIC",
        "network cards besides the first are not here yet",
    ),
    (
        "ENABLE_V4_EGRESS",
        "IPv4 for pods of an IPv6 cluster is not here yet",
    ),
    (
        "ENABLE_V6_EGRESS",
        "IPv6 for pods of an IPv4 cluster is not here yet",
    ),
];

/// What the peer has that means nothing to this program: how it logs, how its parts find each other, which tools it works
/// with, and what goes only with a function that is refused.
const WITHOUT_MEANING: [&str; 15] = [
    "AWS_VPC_K8S_CNI_LOGLEVEL",
    "AWS_VPC_K8S_CNI_LOG_FILE",
    "AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE",
    "AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE",
    "AWS_VPC_K8S_PLUGIN_LOG_FILE",
    "AWS_VPC_K8S_PLUGIN_LOG_LEVEL",
    "CLUSTER_ENDPOINT",
    "DISABLE_TCP_EARLY_DEMUX",
    "ENABLE_BANDWIDTH_PLUGIN",
    "ENABLE_NFTABLES",
    "MY_NODE_NAME",
    "MY_POD_NAME",
    "POD_SECURITY_GROUP_ENFORCING_MODE",
    "VPC_CNI_VERSION",
    "VPC_ID",
];

/// Begin of names that are the SDK's (`AWS_REGION`), unless they begin like the peer's own.
const SDKS: &str = "AWS_";
const PEERS_OWN: &str = "AWS_VPC_";

impl Settings {
    /// Names among these that are neither the peer's variables nor AWS's: likely misspelt.
    #[must_use]
    pub fn unknown_names(variables: &BTreeMap<String, String>) -> Vec<&str> {
        let mut from = Variables {
            values: variables.clone(),
            asked: BTreeSet::new(),
            refused: Vec::new(),
        };
        let _settings = from.settings();
        from.refuse_other_names();
        let is_known = |name: &&str| {
            from.asked.contains(name)
                || NOT_HERE.iter().any(|(other, _)| other == name)
                || WITHOUT_MEANING.contains(name)
                || (name.starts_with(SDKS) && !name.starts_with(PEERS_OWN))
        };
        let names = variables.keys().map(String::as_str);
        names.filter(|name| !is_known(name)).collect()
    }

    /// Reads the variables. What is wrong with one leaves its default.
    #[must_use]
    pub fn from_variables(variables: impl IntoIterator<Item = (String, String)>) -> (Self, Vec<Refused>) {
        let mut from = Variables {
            values: variables
                .into_iter()
                .filter(|(_, value)| !value.trim().is_empty())
                .collect(),
            asked: BTreeSet::new(),
            refused: Vec::new(),
        };
        let settings = from.settings();
        for (name, why) in NOT_HERE {
            if from.flag(name, false) {
                from.refuse(name, why);
            }
        }
        from.refuse_other_names();
        (settings, from.refused)
    }

    /// What a pod's device can carry, in bytes.
    #[must_use]
    pub fn pod_mtu(&self) -> u16 {
        self.pod_mtu.unwrap_or(self.mtu)
    }
}

struct Variables {
    values: BTreeMap<String, String>,
    /// Names that were looked for, whether there or not.
    asked: BTreeSet<&'static str>,
    refused: Vec<Refused>,
}

impl Variables {
    fn settings(&mut self) -> Settings {
        let defaults = Settings::default();
        let unit = match self.flag("ENABLE_PREFIX_DELEGATION", false) {
            true => Unit::Prefix,
            false => Unit::Address,
        };
        let external_snat = self.flag("AWS_VPC_K8S_CNI_EXTERNALSNAT", defaults.external_snat);
        Settings {
            family: self.family(),
            unit,
            target: self.target(unit),
            max_interfaces: self
                .number("MAX_ENI", i64::from(i32::MIN)..=1000)
                .filter(|most| *most > 0)
                .map(|most| most as u32),
            cool_down: self
                .number("IP_COOLDOWN_PERIOD", 0..=3600)
                .map_or(defaults.cool_down, |seconds| {
                    Duration::from_secs(seconds.unsigned_abs())
                }),
            cluster: self.text("CLUSTER_NAME"),
            tags: self.tags(),
            discovers_subnets: self.flag("ENABLE_SUBNET_DISCOVERY", defaults.discovers_subnets),
            manages_untagged: self.flag("MANAGE_UNTAGGED_ENI", defaults.manages_untagged),
            manages_unschedulable: self
                .flag("AWS_MANAGE_ENIS_NON_SCHEDULABLE", defaults.manages_unschedulable),
            custom_networking: self.custom_networking(),
            external_snat,
            snat_excluded: self.networks("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS"),
            randomize: self.randomize(),
            external_services: self.networks("AWS_EXTERNAL_SERVICE_CIDRS"),
            node_ports: self.flag("AWS_VPC_CNI_NODE_PORT_SUPPORT", defaults.node_ports),
            sets_rp_filter: self.flag("AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER", defaults.sets_rp_filter),
            mtu: self.mtu("AWS_VPC_ENI_MTU").unwrap_or(defaults.mtu),
            pod_mtu: self.mtu("POD_MTU"),
            introspection: self.introspection(),
            serves_introspection: !self.flag("DISABLE_INTROSPECTION", false),
            metrics: !self.flag("DISABLE_METRICS", false),
            ec2_endpoint: self.text("AWS_EC2_ENDPOINT"),
        }
    }

    fn family(&mut self) -> PodFamily {
        let (v4, v6) = (self.flag("ENABLE_IPv4", true), self.flag("ENABLE_IPv6", false));
        match (v4, v6, self.values.contains_key("ENABLE_IPv4")) {
            (true, false, _) => PodFamily::V4,
            (false, true, _) | (true, true, false) => PodFamily::V6,
            (true, true, true) => {
                self.refuse(
                    "ENABLE_IPv6",
                    "pods have one version of IP: ENABLE_IPv4 is true, too",
                );
                PodFamily::V4
            }
            (false, false, _) => {
                self.refuse(
                    "ENABLE_IPv4",
                    "pods have no version of IP: ENABLE_IPv6 is not true",
                );
                PodFamily::V4
            }
        }
    }

    /// Addresses come before whole interfaces and whole blocks, as at the peer.
    fn target(&mut self, unit: Unit) -> Target {
        let many = 0..=65_536;
        let warm = self.number("WARM_IP_TARGET", many.clone()).unwrap_or(0) as u32;
        let minimum = self.number("MINIMUM_IP_TARGET", many.clone()).unwrap_or(0) as u32;
        let interfaces = self.number("WARM_ENI_TARGET", many.clone()).unwrap_or(1) as u32;
        let prefixes = self.number("WARM_PREFIX_TARGET", many).unwrap_or(0) as u32;
        match unit {
            _ if warm > 0 || minimum > 0 => Target::Addresses { warm, minimum },
            Unit::Address => Target::Interfaces(interfaces),
            Unit::Prefix => Target::Prefixes(prefixes),
        }
    }

    fn tags(&mut self) -> Tags {
        const NAME: &str = "ADDITIONAL_ENI_TAGS";
        let Some(text) = self.text(NAME) else {
            return Tags::new();
        };
        match serde_json::from_str::<Tags>(&text) {
            Ok(tags) => {
                let (ours, tags): (Tags, Tags) = tags
                    .into_iter()
                    .partition(|(key, _)| key.contains("k8s.amazonaws.com"));
                for key in ours.keys() {
                    self.refuse(
                        NAME,
                        format!("the tag {key} is left out: k8s.amazonaws.com is reserved"),
                    );
                }
                tags
            }
            Err(error) => {
                self.refuse(NAME, format!("is not an object of texts: {error}"));
                Tags::new()
            }
        }
    }

    fn custom_networking(&mut self) -> Option<CustomNetworking> {
        const DEFAULT: &str = "k8s.amazonaws.com/eniConfig";
        let mut key = |name| self.text(name).unwrap_or_else(|| DEFAULT.to_owned());
        let keys = CustomNetworking {
            annotation: key("ENI_CONFIG_ANNOTATION_DEF"),
            label: key("ENI_CONFIG_LABEL_DEF"),
        };
        self.flag("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", false)
            .then_some(keys)
    }

    fn randomize(&mut self) -> Randomize {
        const NAME: &str = "AWS_VPC_K8S_CNI_RANDOMIZESNAT";
        match self.text(NAME).as_deref() {
            None | Some("prng") => Randomize::Prng,
            Some("hashrandom") => Randomize::HashRandom,
            Some("none") => Randomize::None,
            Some(_) => {
                self.refuse(NAME, "is neither prng nor hashrandom nor none");
                Randomize::Prng
            }
        }
    }

    /// What the peer lets be chosen and this program does not.
    fn refuse_other_names(&mut self) {
        const MARK: &str = "AWS_VPC_K8S_CNI_CONNMARK";
        const PREFIX: &str = "AWS_VPC_K8S_CNI_VETHPREFIX";
        const POLICIES: &str = "NETWORK_POLICY_ENFORCING_MODE";
        if let Some(text) = self.text(MARK) {
            let number = match text.strip_prefix("0x") {
                Some(digits) => u32::from_str_radix(digits, 16).ok(),
                None => text.parse().ok(),
            };
            if number != Some(0x80) {
                self.refuse(MARK, "the mark is 0x80 here");
            }
        }
        if self.text(POLICIES).is_some_and(|mode| mode != "standard") {
            self.refuse(POLICIES, "NetworkPolicies are not enforced here");
        }
        if self.text(PREFIX).is_some_and(|prefix| prefix != "eni") {
            self.refuse(PREFIX, "pods' devices are called eni… here");
        }
    }

    /// As Go's `net.Listen` takes it: without a host it is all addresses.
    fn introspection(&mut self) -> SocketAddr {
        const NAME: &str = "INTROSPECTION_BIND_ADDRESS";
        let default = Settings::default().introspection;
        let Some(text) = self.text(NAME) else {
            return default;
        };
        let parsed = match text.rsplit_once(':') {
            Some(("", port)) => port.parse().map(|port| (Ipv4Addr::UNSPECIFIED, port).into()).ok(),
            Some(("localhost", port)) => port.parse().map(|port| (Ipv4Addr::LOCALHOST, port).into()).ok(),
            _ => text.parse().ok(),
        };
        parsed.unwrap_or_else(|| {
            self.refuse(NAME, "is not an address with a port");
            default
        })
    }

    fn mtu(&mut self, name: &'static str) -> Option<u16> {
        self.number(name, 576..=9001).map(|mtu| mtu as u16)
    }

    fn networks(&mut self, name: &'static str) -> Vec<IpNetwork> {
        let text = self.text(name).unwrap_or_default();
        let mut networks = Vec::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            match IpNetwork::from_str(item) {
                Ok(network) if item.contains('/') => networks.push(network),
                _ => self.refuse(name, format!("{item:?} is not a network")),
            }
        }
        networks
    }

    fn number(&mut self, name: &'static str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let text = self.text(name)?;
        let number = text.parse().ok().filter(|number| range.contains(number));
        if number.is_none() {
            self.refuse(
                name,
                format!("is not a number of {} to {}", range.start(), range.end()),
            );
        }
        number
    }

    fn flag(&mut self, name: &'static str, default: bool) -> bool {
        match self.text(name).as_deref() {
            None => default,
            Some("true" | "True" | "TRUE" | "t" | "T" | "1") => true,
            Some("false" | "False" | "FALSE" | "f" | "F" | "0") => false,
            Some(_) => {
                self.refuse(name, "is neither true nor false");
                default
            }
        }
    }

    fn text(&mut self, name: &'static str) -> Option<String> {
        self.asked.insert(name);
        self.values.get(name).map(|value| value.trim().to_owned())
    }

    fn refuse(&mut self, name: &'static str, why: impl Into<String>) {
        let value = self.text(name).unwrap_or_default();
        self.refused.push(Refused {
            name,
            value,
            why: why.into(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Settings, Vec<String>) {
        let variables = text.split(' ').filter_map(|pair| pair.split_once('='));
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let (settings, refused) = Settings::from_variables(variables);
        (settings, refused.iter().map(ToString::to_string).collect())
    }

    #[track_caller]
    fn check(text: &str, change: impl FnOnce(&mut Settings)) {
        let mut expected = Settings::default();
        change(&mut expected);
        assert_eq!(read(text), (expected, Vec::new()), "{text}");
    }

    #[test]
    fn variables_have_the_names_and_defaults_that_users_know() {
        check("", |_| {});
        check("WARM_ENI_TARGET= MAX_ENI=-1", |_| {});
        check("WARM_ENI_TARGET=2", |settings| {
            settings.target = Target::Interfaces(2)
        });
        check("WARM_ENI_TARGET=2 WARM_IP_TARGET=3", |settings| {
            settings.target = Target::Addresses { warm: 3, minimum: 0 };
        });
        check("MINIMUM_IP_TARGET=12 MAX_ENI=4", |settings| {
            settings.target = Target::Addresses { warm: 0, minimum: 12 };
            settings.max_interfaces = Some(4);
        });
        check(
            "ENABLE_PREFIX_DELEGATION=true WARM_PREFIX_TARGET=1 WARM_ENI_TARGET=1",
            |settings| {
                settings.unit = Unit::Prefix;
                settings.target = Target::Prefixes(1);
            },
        );
        check("ENABLE_IPv4=false ENABLE_IPv6=true", |settings| {
            settings.family = PodFamily::V6
        });
        check(
            "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS=10.1.0.0/16,,10.2.0.0/16 AWS_VPC_K8S_CNI_RANDOMIZESNAT=none",
            |settings| {
                settings.snat_excluded = ["10.1.0.0/16", "10.2.0.0/16"]
                    .map(|text| text.parse().expect("a network"))
                    .into();
                settings.randomize = Randomize::None;
            },
        );
        check(
            r#"ADDITIONAL_ENI_TAGS={"team":"net"} CLUSTER_NAME=prod IP_COOLDOWN_PERIOD=0"#,
            |settings| {
                settings.tags = [("team".to_owned(), "net".to_owned())].into();
                settings.cluster = Some("prod".to_owned());
                settings.cool_down = Duration::ZERO;
            },
        );
        check(
            "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true ENI_CONFIG_LABEL_DEF=topology.kubernetes.io/zone",
            |settings| {
                settings.custom_networking = Some(CustomNetworking {
                    annotation: "k8s.amazonaws.com/eniConfig".to_owned(),
                    label: "topology.kubernetes.io/zone".to_owned(),
                });
            },
        );
        check(
            "AWS_VPC_K8S_CNI_CONNMARK=0x80 AWS_VPC_K8S_CNI_VETHPREFIX=eni DISABLE_INTROSPECTION=true AWS_VPC_ENI_MTU=1500",
            |settings| {
                settings.serves_introspection = false;
                settings.mtu = 1500;
            },
        );
    }

    #[test]
    fn a_variable_that_is_not_understood_is_named_and_leaves_its_default() {
        for (text, why) in [
            (
                "WARM_IP_TARGET=lots",
                "WARM_IP_TARGET=lots: is not a number of 0 to 65536",
            ),
            (
                "WARM_IP_TARGET=-1",
                "WARM_IP_TARGET=-1: is not a number of 0 to 65536",
            ),
            (
                "AWS_VPC_ENI_MTU=9002",
                "AWS_VPC_ENI_MTU=9002: is not a number of 576 to 9001",
            ),
            (
                "ENABLE_PREFIX_DELEGATION=yes",
                "ENABLE_PREFIX_DELEGATION=yes: is neither true nor false",
            ),
            (
                "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS=10.0.0.0",
                "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS=10.0.0.0: \"10.0.0.0\" is not a network",
            ),
            (
                "AWS_VPC_K8S_CNI_RANDOMIZESNAT=dice",
                "AWS_VPC_K8S_CNI_RANDOMIZESNAT=dice: is neither prng nor hashrandom nor none",
            ),
            (
                "INTROSPECTION_BIND_ADDRESS=unix:/var/run/aws-node/introspection.sock",
                "INTROSPECTION_BIND_ADDRESS=unix:/var/run/aws-node/introspection.sock: is not an address with a port",
            ),
            (
                "AWS_VPC_K8S_CNI_CONNMARK=0",
                "AWS_VPC_K8S_CNI_CONNMARK=0: the mark is 0x80 here",
            ),
            (
                "AWS_VPC_K8S_CNI_VETHPREFIX=vpc",
                "AWS_VPC_K8S_CNI_VETHPREFIX=vpc: pods' devices are called eni… here",
            ),
            (
                "ENABLE_IPv4=true ENABLE_IPv6=true",
                "ENABLE_IPv6=true: pods have one version of IP: ENABLE_IPv4 is true, too",
            ),
            (
                "ENABLE_IPv4=false",
                "ENABLE_IPv4=false: pods have no version of IP: ENABLE_IPv6 is not true",
            ),
            (
                "NETWORK_POLICY_ENFORCING_MODE=strict",
                "NETWORK_POLICY_ENFORCING_MODE=strict: NetworkPolicies are not enforced here",
            ),
            (
                "DISABLE_NETWORK_RESOURCE_PROVISIONING=true",
                "DISABLE_NETWORK_RESOURCE_PROVISIONING=true: an agent that changes nothing at EC2 is not here yet",
            ),
            (
                "ENABLE_POD_ENI=true",
                "ENABLE_POD_ENI=true: security groups for single pods are not here yet",
            ),
            (
                "IP_COOLDOWN_PERIOD=1d",
                "IP_COOLDOWN_PERIOD=1d: is not a number of 0 to 3600",
            ),
            (
                r#"ADDITIONAL_ENI_TAGS={"cluster.k8s.amazonaws.com/name":"x"}"#,
                r#"ADDITIONAL_ENI_TAGS={"cluster.k8s.amazonaws.com/name":"x"}: the tag cluster.k8s.amazonaws.com/name is left out: k8s.amazonaws.com is reserved"#,
            ),
        ] {
            assert_eq!(read(text), (Settings::default(), vec![why.to_owned()]), "{text}");
        }
    }

    #[test]
    fn the_introspection_endpoint_is_where_the_peers_would_be() {
        for (text, at) in [
            (":61679", "0.0.0.0:61679"),
            ("localhost:1", "127.0.0.1:1"),
            ("10.0.0.1:2", "10.0.0.1:2"),
            ("[::1]:3", "[::1]:3"),
        ] {
            let (settings, refused) = read(&format!("INTROSPECTION_BIND_ADDRESS={text}"));
            assert_eq!(
                (settings.introspection.to_string(), refused),
                (at.to_owned(), vec![])
            );
        }
    }

    /// A switch takes the peer's variables along, of which not all mean something here.
    #[test]
    fn a_name_is_unknown_that_is_neither_the_peers_nor_the_sdks() {
        for (name, is_known) in [
            ("WARM_IP_TARGET", true),
            ("ENI_CONFIG_LABEL_DEF", true),
            ("AWS_VPC_K8S_CNI_LOGLEVEL", true),
            ("AWS_VPC_K8S_CNI_CONNMARK", true),
            ("ENABLE_POD_ENI", true),
            ("AWS_REGION", true),
            ("WARM_IP_TARGETS", false),
            ("warm_ip_target", false),
            ("AWS_VPC_K8S_CNI_EXTERNAL_SNAT", false),
        ] {
            let variables = BTreeMap::from([(name.to_owned(), "1".to_owned())]);
            let unknown = if is_known { vec![] } else { vec![name] };
            assert_eq!(Settings::unknown_names(&variables), unknown);
        }
    }
}
