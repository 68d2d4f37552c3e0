//! A Service, as the data plane sees it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{Few, ObjectName, Pools, Seldom, Text};

/// Layer-4 protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
    /// IP protocol 132.
    Sctp,
}

impl Protocol {
    /// The number in the IP header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// A version of IP: of a Service's address, or of the addresses in an EndpointSlice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// Both, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// What Kubernetes calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<IpAddr> for IpFamily {
    fn from(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// What kind of Service this is, with what only that kind has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceKind {
    /// Addresses of its own: `ClusterIP`, `NodePort` and `LoadBalancer`.
    ClusterIp {
        /// `spec.clusterIPs`, at most one per family, the primary family first.
        addresses: Few<IpAddr>,
    },
    /// `clusterIP: None`: DNS only.
    Headless,
    /// `type: ExternalName`: DNS only.
    ExternalName(String),
}

/// Which endpoints may take traffic of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// Any endpoint of the cluster.
    #[default]
    Cluster,
    /// Only endpoints on the node where the packet is.
    Local,
}

/// `spec.sessionAffinity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionAffinity {
    /// Each connection picks afresh.
    #[default]
    None,
    /// A client address keeps its endpoint until it was silent for `timeout` (Kubernetes' default: 3 hours).
    ClientIp {
        /// `spec.sessionAffinityConfig.clientIP.timeoutSeconds`, 1 s to 24 h.
        timeout: Duration,
    },
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServicePort {
    /// `name`; empty when the Service has a single unnamed port. Joins with the name in EndpointSlices.
    pub name: Text,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`, on the Service's addresses.
    pub port: NonZeroU16,
    /// `nodePort`, on every node's addresses.
    pub node_port: Option<NonZeroU16>,
    /// `appProtocol`, kept for display.
    pub app_protocol: Option<Text>,
}

/// One entry of `status.loadBalancer.ingress`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LoadBalancerIngress {
    /// The address; an ingress that has only a hostname is not a matter of the data plane.
    pub address: IpAddr,
    /// `ipMode: Proxy`: packets come from the balancer already translated, so nodes must not answer for the address.
    pub proxied: bool,
}

/// Labels that hand a Service to another proxy, or to none: `service-proxy-name` (KEP-2447), and `headless` on what its
/// owner wants no proxy to touch. kube-proxy selects by the same.
pub const PROXY_LABELS: [&str; 2] = [
    "service.kubernetes.io/service-proxy-name",
    "service.kubernetes.io/headless",
];

/// A Service: `core/v1`, only what the proxy and DNS read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// Addresses, or none.
    pub kind: ServiceKind,
    /// `spec.ports`, in the object's order.
    pub ports: Few<ServicePort>,
    /// `spec.externalIPs`.
    pub external_addresses: Seldom<IpAddr>,
    /// `status.loadBalancer.ingress` entries that have an address.
    pub load_balancer: Seldom<LoadBalancerIngress>,
    /// `spec.loadBalancerSourceRanges`; empty = everyone.
    pub source_ranges: Seldom<IpNetwork>,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.healthCheckNodePort`, when one was allocated.
    pub health_check_node_port: Option<NonZeroU16>,
    /// `spec.sessionAffinity` with its timeout.
    pub affinity: SessionAffinity,
    /// `spec.trafficDistribution`, as written.
    pub traffic_distribution: Option<Text>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// Those of [`PROXY_LABELS`] that are present.
    pub proxy_labels: BTreeMap<String, String>,
}

impl Service {
    /// A Service of that kind with Kubernetes' defaults for everything else, and no ports.
    #[must_use]
    pub fn new(name: ObjectName, kind: ServiceKind) -> Self {
        Self {
            name,
            kind,
            ports: Few::none(),
            external_addresses: Seldom::none(),
            load_balancer: Seldom::none(),
            source_ranges: Seldom::none(),
            external_policy: TrafficPolicy::Cluster,
            internal_policy: TrafficPolicy::Cluster,
            health_check_node_port: None,
            affinity: SessionAffinity::None,
            traffic_distribution: None,
            publish_not_ready: false,
            proxy_labels: BTreeMap::new(),
        }
    }

    /// Makes it take no more memory than it must, for a Service that is to be kept: texts that many Services have
    /// become one, and lists have no room to grow.
    pub fn pack(&mut self, pools: &mut Pools) {
        pools.share(&mut self.name.namespace);
        // Its slices say it again.
        pools.share(&mut self.name.name);
        for port in &mut self.ports {
            pools.share(&mut port.name);
            port.app_protocol.iter_mut().for_each(|text| pools.share(text));
        }
        self.traffic_distribution
            .iter_mut()
            .for_each(|text| pools.share(text));
    }
}

impl ServicePort {
    /// An unnamed port without a node port.
    #[must_use]
    pub fn new(protocol: Protocol, port: NonZeroU16) -> Self {
        Self {
            name: Text::default(),
            protocol,
            port,
            node_port: None,
            app_protocol: None,
        }
    }
}
