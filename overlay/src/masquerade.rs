//! What leaves the pod network leaves with the node's address: our own nftables table, flannel's rules.
//!
//! Packet walk, in this order: what kube-proxy marked is its to translate; pods of this node to pods, and pods to pods
//! of this node, keep their addresses; what others send to our pods keeps its source; pods to the world are
//! translated; what this node sends into the pod network from an address outside of it is translated, since the answer
//! to that address would not come back through the tunnel.

use ipnetwork::{IpNetwork, Ipv4Network};
use netlink::nft::{BaseChain, Chain, Family, Layout, Rule, Table};

/// The table that is ours.
const TABLE: &str = "causeway-masq";

/// The mark by which kube-proxy, and whoever takes its place, asks for translation (its `--iptables-masquerade-bit`).
const SERVICE_MARK: u32 = 0x4000;

/// The table's name and family.
pub(crate) fn table() -> Table {
    Table::new(Family::Ip, TABLE)
}

/// The table for a node with this subnet.
pub(crate) fn layout(network: Ipv4Network, subnet: Ipv4Network) -> Layout {
    let (network, subnet) = (IpNetwork::V4(network), IpNetwork::V4(subnet));
    let multicast = IpNetwork::V4(multicast());
    let mut layout = Layout::new(table());
    layout.add_chain(
        Chain::base("postrouting", BaseChain::POSTROUTING_NAT),
        [
            Rule::new("services: theirs to translate")
                .mark(SERVICE_MARK, SERVICE_MARK)
                .returns(),
            Rule::new("our pods to pods")
                .source(subnet)
                .destination(network)
                .returns(),
            Rule::new("pods to our pods")
                .source(network)
                .destination(subnet)
                .returns(),
            Rule::new("others to our pods")
                .not_source(network)
                .destination(subnet)
                .returns(),
            Rule::new("pods to the world")
                .source(network)
                .not_destination(network)
                .not_destination(multicast)
                .masquerade(),
            Rule::new("nodes to pods")
                .not_source(network)
                .destination(network)
                .masquerade(),
        ],
    );
    layout
}

fn multicast() -> Ipv4Network {
    let base = std::net::Ipv4Addr::new(224, 0, 0, 0);
    Ipv4Network::new(base, 4).expect("invariant: 4 is a prefix length of IPv4")
}
