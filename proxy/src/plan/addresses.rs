//! The addresses at which a Service is served.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use ipnetwork::IpNetwork;
use model::{IpFamily, ServicePort};

use super::context::family_of;
use super::{FrontendAddress, NodeContext, Reason, ServiceView, SharedSet};

/// Why a Service has an address. The stricter first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `status.loadBalancer`.
    LoadBalancer,
    /// `spec.externalIPs`.
    External,
    /// A node port.
    NodePort,
}

/// The addresses of one Service that can be served.
#[derive(Debug)]
pub(super) struct Addresses<'a> {
    node: &'a NodeContext,
    has_endpoints: bool,
    /// Families in which endpoints of other nodes serve.
    others_serve: BTreeSet<IpFamily>,
    usable: BTreeSet<(Owner, IpAddr)>,
    ranges: BTreeSet<IpNetwork>,
}

impl<'a> Addresses<'a> {
    pub(super) fn of(
        view: &ServiceView<'_>,
        cluster_ips: &[IpAddr],
        node: &'a NodeContext,
        reasons: &mut BTreeSet<Reason>,
    ) -> Self {
        let service = view.service;
        let wanted = cluster_ips.iter().map(|address| (Owner::ClusterIp, *address));
        // A proxied ingress translates by itself: packets to its address are not for this node to catch (KEP-1860).
        let balanced = service.load_balancer.iter().filter(|ingress| !ingress.proxied);
        let wanted = wanted.chain(balanced.map(|ingress| (Owner::LoadBalancer, ingress.address)));
        let external = service.external_addresses.iter();
        if !node.external_addresses && !service.external_addresses.is_empty() {
            reasons.insert(Reason::ExternalAddressesOff);
        }
        let external = external.filter(|_| node.external_addresses);
        let wanted = wanted.chain(external.map(|address| (Owner::External, *address)));
        let mut usable = BTreeSet::new();
        for (owner, address) in wanted {
            if !is_possible(address) {
                reasons.insert(Reason::BadAddress(address));
            } else if node.families.contains(&address.into()) {
                usable.insert((owner, address));
            } else {
                reasons.insert(Reason::FamilyOff(address.into()));
            }
        }
        let endpoints = view.slices.iter().flat_map(|slice| &slice.endpoints);
        let serving = endpoints.filter(|endpoint| endpoint.conditions().serving);
        let addresses = serving.clone().map(|endpoint| endpoint.address);
        let of_others = addresses.filter(|address| !node.addresses.contains(address));
        Self {
            node,
            has_endpoints: serving.clone().next().is_some(),
            others_serve: of_others.map(IpFamily::from).collect(),
            usable,
            ranges: normal_ranges(&service.source_ranges, reasons),
        }
    }

    /// Families in which the Service has a ClusterIP: the others have no endpoints either.
    pub(super) fn families(&self) -> impl Iterator<Item = IpFamily> + use<> {
        let families: BTreeSet<_> = self.of_owner(Owner::ClusterIp).map(IpFamily::from).collect();
        families.into_iter()
    }

    /// ClusterIPs to which packets are translated.
    pub(super) fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.of_owner(Owner::ClusterIp)
            .filter(|address| !self.is_left_alone(address))
    }

    /// Whether packets to an address are this node's own server's. Where nobody else would answer, they stay.
    fn is_left_alone(&self, address: &IpAddr) -> bool {
        self.node.local_dns.contains(address) && (self.node.dns_answers || !self.has_endpoints)
    }

    /// Addresses at which nothing answers whatever the Service's slices say: this node's own, where its DNS server is
    /// away. They count in a family where there is nobody else.
    pub(super) fn silent(&self) -> Vec<IpAddr> {
        let is_of_dns = |address: IpAddr| self.node.local_dns.contains(&address);
        let is_away = !self.node.dns_answers && self.of_owner(Owner::ClusterIp).any(is_of_dns);
        let own = self.node.addresses.iter().copied().filter(|_| is_away);
        own.filter(|address| self.others_serve.contains(&IpFamily::from(*address)))
            .collect()
    }

    fn of_owner(&self, wanted: Owner) -> impl Iterator<Item = IpAddr> {
        let of_owner = self.usable.iter().filter(move |(owner, _)| *owner == wanted);
        of_owner.map(|(_, address)| *address)
    }

    /// Where a port is served in one family, the stricter owner of an address first.
    pub(super) fn frontends(
        &self,
        family: IpFamily,
        port: &ServicePort,
    ) -> impl Iterator<Item = (Owner, FrontendAddress, NonZeroU16)> {
        let addresses = self
            .usable
            .iter()
            .filter(move |(_, address)| IpFamily::from(*address) == family && !self.is_left_alone(address));
        let number = port.port;
        let addresses =
            addresses.map(move |(owner, address)| (*owner, FrontendAddress::Service(*address), number));
        let node_port = port.node_port.map(|number| {
            let address = FrontendAddress::EveryNodeAddress(family);
            (Owner::NodePort, address, number)
        });
        addresses.chain(node_port)
    }

    /// Who may use load balancer addresses of a family; nothing = everyone. Ranges count by family, so that a list
    /// of IPv6 ranges alone leaves IPv4 open (`pkg/proxy/serviceport.go`).
    pub(super) fn sources(&self, family: IpFamily) -> SharedSet<IpNetwork> {
        let ranges = self.ranges.iter().filter(|range| family_of(range) == family);
        let mut sources: BTreeSet<_> = ranges.copied().collect();
        if sources.iter().any(|range| range.prefix() == 0) {
            return SharedSet::default();
        }
        // Some platforms let this node send to the balancer's address with that address as its own.
        let node_is_admitted = self
            .node
            .addresses
            .iter()
            .any(|address| sources.iter().any(|range| range.contains(*address)));
        if node_is_admitted {
            let balancers = self.of_owner(Owner::LoadBalancer);
            let balancers = balancers.filter(|address| IpFamily::from(*address) == family);
            sources.extend(balancers.map(IpNetwork::from));
        }
        outermost(sources)
    }
}

/// The networks that lie in no other one.
fn outermost(networks: BTreeSet<IpNetwork>) -> SharedSet<IpNetwork> {
    let covers = |outer: &IpNetwork, inner: &IpNetwork| {
        outer.prefix() < inner.prefix() && outer.contains(inner.network())
    };
    let outer = networks
        .iter()
        .filter(|inner| !networks.iter().any(|outer| covers(outer, inner)));
    outer.copied().collect()
}

fn normal_ranges(ranges: &[IpNetwork], reasons: &mut BTreeSet<Reason>) -> BTreeSet<IpNetwork> {
    let mut normal = BTreeSet::new();
    for range in ranges {
        let network = IpNetwork::new(range.network(), range.prefix());
        let network = network.expect("invariant: the prefix length is the range's own");
        if network != *range {
            reasons.insert(Reason::BadSourceRange(*range));
        }
        normal.insert(network);
    }
    normal
}

/// Loopback, multicast, unspecified and link-local addresses would turn a Service against the node itself
/// (`ValidateNonSpecialIP`).
pub(super) fn is_possible(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_possible_v4(v4),
        IpAddr::V6(v6) => is_possible_v6(v6),
    }
}

fn is_possible_v4(address: Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_link_local())
}

fn is_possible_v6(address: Ipv6Addr) -> bool {
    // A mapped address (RFC 4291 §2.5.5.2) names an IPv4 host and is never on the wire.
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_unicast_link_local()
        || address.to_ipv4_mapped().is_some())
}
