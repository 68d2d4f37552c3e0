//! What the router lets through: source and destination checks as nftables rules.
//!
//! Sets of ranges have two fields or more (`nft_set_pipapo`), so that an address alone stands behind a zero.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink::nft::rule::{KeyField, Register};
use netlink::nft::{
    BaseChain, Batch, Chain, Contents, DataType, Element, ElementData, Error, Family, Layout, Nft, Rule, Set,
    SetKind, Table,
};

use super::plan::Port;

/// Name of the tables, one of each family.
const TABLE: &str = "fake-vpc";
/// The devices that lead to interfaces.
const PORTS: &str = "ports";
/// Which addresses may come in by which of them.
const OWNED: &str = "owned";
/// Which addresses anybody has.
const ADDRESSES: &str = "addresses";

const FORWARDING_WAS_OFF: &str = "forwarding-was-off";
const STRANGERS: &str = "strangers";
const NOBODYS: &str = "nobodys";
/// The counted rules, by their comments.
const OF_STRANGER: &str = "source that the interface does not own";
const TO_NOBODY: &str = "destination that nobody owns";

const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

/// How many packets the router dropped, of both families, since the fabric's tables are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// From an address that the interface by which they came does not own.
    pub of_stranger: u64,
    /// To an address of the VPC that nobody owns.
    pub to_nobody: u64,
}

/// Makes the tables what the ports want, in one transaction for each set of rules and one for what differs in sets.
pub(super) fn ensure(
    nft: &mut Nft,
    ports: &[(String, &Port)],
    blocks: &BTreeSet<IpNetwork>,
) -> Result<(), Error> {
    FAMILIES
        .into_iter()
        .try_for_each(|family| ensure_family(nft, family, ports, blocks))
}

/// Takes the tables away.
pub(super) fn remove(nft: &mut Nft) -> Result<(), Error> {
    FAMILIES
        .into_iter()
        .try_for_each(|family| nft.remove(&table(family)).map(drop))
}

/// Keeps in mind, for as long as the tables are there, that the router did not forward IPv6 before. An empty chain that
/// nothing enters says so: it outlives the process.
pub(super) fn remember_forwarding_was_off(nft: &mut Nft) -> Result<(), Error> {
    let mut batch = Batch::new(&table(Family::Ip6));
    batch.add_chain(&Chain::regular(FORWARDING_WAS_OFF));
    nft.commit(&batch)
}

/// Whether the router did not forward IPv6 before the tables were there.
pub(super) fn was_forwarding_off(nft: &mut Nft) -> Result<bool, Error> {
    let chains = nft.chains(&table(Family::Ip6))?;
    Ok(chains.iter().any(|chain| chain.name == FORWARDING_WAS_OFF))
}

/// What the rules have counted.
pub(super) fn drops(nft: &mut Nft) -> Result<Drops, Error> {
    let mut drops = Drops::default();
    for family in FAMILIES {
        let counts = nft.counts(&table(family))?;
        let count = |rule: &str| counts.get(rule).copied().unwrap_or_default();
        drops.of_stranger += count(OF_STRANGER);
        drops.to_nobody += count(TO_NOBODY);
    }
    Ok(drops)
}

fn table(family: Family) -> Table {
    Table::new(family, TABLE)
}

fn ensure_family(
    nft: &mut Nft,
    family: Family,
    ports: &[(String, &Port)],
    blocks: &BTreeSet<IpNetwork>,
) -> Result<(), Error> {
    let wanted = elements(family, ports);
    let mut layout = layout(family, blocks);
    for (set, elements) in &wanted {
        layout.fill_set(set, elements.iter().cloned());
    }
    nft.ensure(&layout)?;
    let mut batch = Batch::new(&table(family));
    for (set, wanted) in &wanted {
        let actual: BTreeSet<Element> = nft.elements(&table(family), set)?.into_iter().collect();
        batch.delete_elements(set, actual.difference(wanted));
        batch.add_elements(set, wanted.difference(&actual));
    }
    nft.commit(&batch)
}

fn layout(family: Family, blocks: &BTreeSet<IpNetwork>) -> Layout {
    let address = family.address();
    let mut layout = Layout::new(table(family));
    layout
        .add_set(Set::new(PORTS, &[DataType::InterfaceName], SetKind::Set))
        .add_set(
            Set::new(OWNED, &[DataType::InterfaceName, address], SetKind::Set)
                .with_contents(Contents::Ranges),
        )
        .add_set(
            Set::new(ADDRESSES, &[DataType::Mark, address], SetKind::Set).with_contents(Contents::Ranges),
        );
    layout.add_chain(Chain::regular(STRANGERS), [Rule::new(OF_STRANGER).count().drop()]);
    layout.add_chain(Chain::regular(NOBODYS), [Rule::new(TO_NOBODY).count().drop()]);
    layout.add_chain(
        Chain::base("prerouting", BaseChain::PREROUTING_RAW),
        rules(family, blocks),
    );
    layout
}

fn rules(family: Family, blocks: &BTreeSet<IpNetwork>) -> Vec<Rule> {
    let network = |text: &str| {
        text.parse::<IpNetwork>()
            .expect("invariant: a network in a constant")
    };
    let first = Register::FIRST;
    let mut rules = vec![
        Rule::new("not of an interface")
            .load(KeyField::InInterface, first)
            .not_found_in(PORTS, first)
            .accept(),
    ];
    if family == Family::Ip6 {
        // Neighbour discovery (RFC 4861 §4): what is on the link is not forwarded.
        for link in ["fe80::/10", "::/128"] {
            rules.push(Rule::new("on the link").source(network(link)).accept());
        }
    }
    let source = [KeyField::InInterface, KeyField::SourceAddress(family)];
    let destination = [KeyField::Number(0), KeyField::DestinationAddress(family)];
    rules.extend([
        Rule::new("strangers")
            .load_all(&source, first)
            .not_found_in(OWNED, first)
            .goto(STRANGERS),
        Rule::new("to an interface")
            .in_set(&destination, ADDRESSES)
            .accept(),
        Rule::new("to the router").destination_is_local().accept(),
    ]);
    let of_family = |block: &&IpNetwork| Family::of(block.ip()) == family;
    let nobodys = |block: &IpNetwork| Rule::new("nobody's").destination(*block).goto(NOBODYS);
    rules.extend(blocks.iter().filter(of_family).map(nobodys));
    rules
}

/// What each set has.
fn elements(family: Family, ports: &[(String, &Port)]) -> [(&'static str, BTreeSet<Element>); 3] {
    let mut sets = [PORTS, OWNED, ADDRESSES].map(|set| (set, BTreeSet::new()));
    let [(_, names), (_, owned), (_, addresses)] = &mut sets;
    for (name, port) in ports {
        // IFNAMSIZ bytes.
        let mut device = name.as_bytes().to_vec();
        device.resize(16, 0);
        for block in port.owned().filter(|block| Family::of(block.ip()) == family) {
            owned.insert(range(&device, block));
            addresses.insert(range(&[0; 4], block));
        }
        names.insert(Element::new(device, ElementData::None));
    }
    sets
}

/// All addresses of a block, behind the same value.
fn range(before: &[u8], block: IpNetwork) -> Element {
    let key = |address: IpAddr| {
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        [before, &octets].concat()
    };
    Element::range(key(block.network()), key(block.broadcast()), ElementData::None)
}
