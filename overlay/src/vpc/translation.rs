//! The table of nftables that has pods' connections leave by the primary interface, and gives those that leave the VPC
//! its address. IPv4's alone: addresses of IPv6 are the world's.
//!
//! Packet walk, behind what translates destinations (Services -100, host ports -90), so that it is known where a packet
//! goes:
//! - before that: what comes in by the primary interface to an address of the node marks its connection. If it is led to
//!   a pod of another interface, the answers must leave by this one.
//! - from a pod: the first packets of a connection that leaves the VPC mark it. Then a packet gets its connection's mark,
//!   by which it is routed.
//! - last: what leaves the VPC gets the primary interface's address, unless Services' rules will do so.
//!
//! A connection is told to be new by its state and not by a chain of type `nat`, which connections to Services would not
//! come to: translated once, they pass by the chains behind.

use ipnetwork::IpNetwork;
use model::IpFamily;
use model::wiring::{ENI_IFNAME_PREFIX, HOST_IFNAME_PREFIX};
use netlink::nft::object::ChainKind;
use netlink::nft::rule::Interface;
use netlink::nft::{BaseChain, Chain, Hook, Layout, Rule, Table};

use super::plan::{MARK, SourceNat, Translation};
use crate::masquerade::SERVICE_MARK;
use crate::owned_table::nft_family;

/// The table that is ours.
const TABLE: &str = "causeway-vpc";

/// Begin of the names of pods' devices: ours, and those of amazon-vpc-cni-k8s that a node had before.
const POD_DEVICES: [&str; 2] = [HOST_IFNAME_PREFIX, ENI_IFNAME_PREFIX];

/// `priority mangle`.
const BEFORE_SERVICES: i32 = -150;
/// Behind Services (-100) and host ports (-90).
const BEHIND_SERVICES: i32 = -80;

/// The table.
#[must_use]
pub fn table() -> Table {
    Table::new(nft_family(IpFamily::V4), TABLE)
}

/// The table as it shall be, where the primary interface's device has this name.
pub(super) fn layout(translation: &Translation, primary: &str) -> Layout {
    let mut layout = Layout::new(table());
    let filter = |hook, priority| BaseChain::new(ChainKind::Filter, hook, priority);
    let arrive = Rule::new("to the node by its primary interface")
        .in_interface(Interface::Named(primary))
        .destination_is_local()
        .set_connection_mark_bits(MARK);
    let arrive = translation.node_ports.then_some(arrive);
    layout.add_chain(
        Chain::base("arriving", filter(Hook::Prerouting, BEFORE_SERVICES)),
        arrive,
    );
    let from_pods = POD_DEVICES.map(|prefix| {
        Rule::new(format!("from pods: {prefix}"))
            .in_interface(Interface::Prefixed(prefix))
            .jump("mark")
    });
    layout.add_chain(
        Chain::base("from-pods", filter(Hook::Prerouting, BEHIND_SERVICES)),
        from_pods,
    );
    let mut mark = Vec::new();
    if translation.snat.is_some() {
        mark.push(
            Rule::new("a connection begins")
                .connection_is_new()
                .jump("leaving"),
        );
    }
    mark.push(
        Rule::new("of a connection by the primary interface")
            .connection_mark(MARK)
            .set_mark_bits(MARK),
    );
    layout.add_chain(Chain::regular("mark"), mark);
    if let Some(snat) = &translation.snat {
        let mut leaving = stays(snat);
        leaving.push(Rule::new("leaves by the primary interface").set_connection_mark_bits(MARK));
        layout.add_chain(Chain::regular("leaving"), leaving);
        add_translation(&mut layout, translation, snat);
    }
    layout
}

fn add_translation(layout: &mut Layout, translation: &Translation, snat: &SourceNat) {
    let mut postrouting = vec![
        Rule::new("services: theirs to translate")
            .mark(SERVICE_MARK, SERVICE_MARK)
            .returns(),
    ];
    postrouting.extend(POD_DEVICES.map(|prefix| {
        Rule::new(format!("to pods: {prefix}"))
            .out_interface(Interface::Prefixed(prefix))
            .returns()
    }));
    postrouting.extend(POD_DEVICES.map(|prefix| {
        Rule::new(format!("from pods: {prefix}"))
            .in_interface(Interface::Prefixed(prefix))
            .jump("translate")
    }));
    layout.add_chain(
        Chain::base("postrouting", BaseChain::POSTROUTING_NAT),
        postrouting,
    );
    let mut translate = stays(snat);
    translate.push(
        Rule::new("leaves with the primary interface's address")
            .source_nat(translation.address.into(), snat.ports),
    );
    layout.add_chain(Chain::regular("translate"), translate);
}

/// What does not leave the VPC, or keeps its address all the same.
fn stays(snat: &SourceNat) -> Vec<Rule> {
    let inside = snat.inside.iter().map(|network| {
        Rule::new(format!("stays: {network}"))
            .destination(IpNetwork::V4(*network))
            .returns()
    });
    let local = Rule::new("stays: to the node").destination_is_local().returns();
    inside.chain([local]).collect()
}
