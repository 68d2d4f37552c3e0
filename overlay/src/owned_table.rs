//! A table of ours in nftables: what it shall be, with what is in its sets, and keeping it so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::IpFamily;
use netlink::nft::{Batch, Element, Error, Family, Layout, Nft, Repair};

/// A version of IP in nftables.
pub(crate) const fn nft_family(family: IpFamily) -> Family {
    match family {
        IpFamily::V4 => Family::Ip,
        IpFamily::V6 => Family::Ip6,
    }
}

/// An address in a key or value.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A table as it shall be.
pub(crate) struct OwnedTable {
    layout: Layout,
    elements: BTreeMap<&'static str, BTreeSet<Element>>,
}

/// What was written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) changes: usize,
    /// Elements that came, and elements that went.
    pub(crate) elements: Vec<Element>,
}

impl OwnedTable {
    pub(crate) fn new(mut layout: Layout, elements: BTreeMap<&'static str, BTreeSet<Element>>) -> Self {
        for (set, elements) in &elements {
            layout.fill_set(set, elements.iter().cloned());
        }
        Self { layout, elements }
    }

    /// Makes the kernel's table what it shall be; what is in its sets changes in one transaction.
    pub(crate) fn keep(&self, nft: &mut Nft) -> Result<Written, Error> {
        let table = self.layout.table();
        let rebuilt = usize::from(nft.ensure(&self.layout)? != Repair::Unchanged);
        let mut batch = Batch::new(table);
        let mut written = Written::default();
        for (set, wanted) in &self.elements {
            let actual: BTreeSet<Element> = nft.elements(table, set)?.into_iter().collect();
            // A key whose value changes goes before it comes.
            batch.delete_elements(set, actual.difference(wanted));
            batch.add_elements(set, wanted.difference(&actual));
            written
                .elements
                .extend(actual.symmetric_difference(wanted).cloned());
        }
        nft.commit(&batch)?;
        written.changes = rebuilt + written.elements.len();
        Ok(written)
    }
}
