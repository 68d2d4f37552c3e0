//! What leaves the pod network leaves with the node's address: a table of our own in nftables for each version of IP,
//! flannel's rules.
//!
//! Packet walk, in this order: what kube-proxy marked is its to translate; pods of this node to pods, and pods to pods
//! of this node, keep their addresses; what others send to our pods keeps its source; pods to the world are
//! translated; what this node sends into the pod network from an address outside of it is translated, since the answer
//! to that address would not come back through the tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use model::IpFamily;
use netlink::nft::{BaseChain, Chain, Layout, Rule, Table};

use crate::owned_table::nft_family;

/// The tables that are ours.
const TABLE: &str = "causeway-masq";

/// The mark by which kube-proxy, and whoever takes its place, asks for translation (its `--iptables-masquerade-bit`).
pub(crate) const SERVICE_MARK: u32 = 0x4000;

/// The table of a version of IP.
pub(crate) fn table(family: IpFamily) -> Table {
    Table::new(nft_family(family), TABLE)
}

/// The table for a node with this subnet.
pub(crate) fn layout(family: IpFamily, network: IpNetwork, subnet: IpNetwork) -> Layout {
    let multicast = multicast(family);
    let mut layout = Layout::new(table(family));
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

fn multicast(family: IpFamily) -> IpNetwork {
    let (base, prefix) = match family {
        IpFamily::V4 => (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
        IpFamily::V6 => (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    };
    IpNetwork::new(base, prefix).expect("invariant: both are prefix lengths of their version")
}
