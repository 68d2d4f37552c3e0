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
    /// Sets of which nothing is deleted, since not everything is known that must stay.
    growing: BTreeSet<&'static str>,
}

/// What was written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) changes: usize,
    /// Elements that came, and elements that went, with their set.
    pub(crate) elements: Vec<(&'static str, Element)>,
}

impl OwnedTable {
    pub(crate) fn new(mut layout: Layout, elements: BTreeMap<&'static str, BTreeSet<Element>>) -> Self {
        for (set, elements) in &elements {
            layout.fill_set(set, elements.iter().cloned());
        }
        Self {
            layout,
            elements,
            growing: BTreeSet::new(),
        }
    }

    /// The same with a set of which nothing is deleted.
    pub(crate) fn growing(mut self, set: &'static str) -> Self {
        self.growing.insert(set);
        self
    }

    /// Makes the kernel's table what it shall be. Elements come before the rules that ask for them: where rules drop what
    /// is in no set, there is no moment without.
    pub(crate) fn keep(&self, nft: &mut Nft) -> Result<Written, Error> {
        // It fails where there is no such table, or one of another shape, which is then made anew.
        let early = self.change_elements(nft).ok();
        let repair = nft.ensure(&self.layout)?;
        let mut written = match (early, &repair) {
            (_, Repair::Rebuilt) => Written {
                changes: 0,
                elements: self.all(),
            },
            (Some(early), _) => early,
            (None, _) => self.change_elements(nft)?,
        };
        written.changes = written.elements.len() + usize::from(repair != Repair::Unchanged);
        Ok(written)
    }

    /// What the kernel's table lacks, or has another way, one line each. Writes nothing.
    pub(crate) fn differences(&self, nft: &mut Nft) -> Result<Vec<String>, Error> {
        let mut found = nft.differences(&self.layout)?;
        if !found.is_empty() {
            return Ok(found);
        }
        for (set, wanted) in &self.elements {
            let actual: BTreeSet<Element> = nft.elements(self.layout.table(), set)?.into_iter().collect();
            let missing = wanted.difference(&actual).count();
            if missing > 0 {
                found.push(format!(
                    "{missing} of {} elements of set {set} are missing",
                    wanted.len()
                ));
            }
        }
        Ok(found)
    }

    fn all(&self) -> Vec<(&'static str, Element)> {
        let sets = self.elements.iter();
        sets.flat_map(|(set, elements)| elements.iter().map(move |element| (*set, element.clone())))
            .collect()
    }

    /// In one transaction.
    fn change_elements(&self, nft: &mut Nft) -> Result<Written, Error> {
        let table = self.layout.table();
        let mut batch = Batch::new(table);
        let mut elements = Vec::new();
        for (set, wanted) in &self.elements {
            let actual: BTreeSet<Element> = nft.elements(table, set)?.into_iter().collect();
            // A key whose value changes goes before it comes.
            if !self.growing.contains(set) {
                batch.delete_elements(set, actual.difference(wanted));
                elements.extend(actual.difference(wanted).map(|gone| (*set, gone.clone())));
            }
            batch.add_elements(set, wanted.difference(&actual));
            elements.extend(wanted.difference(&actual).map(|new| (*set, new.clone())));
        }
        nft.commit(&batch)?;
        Ok(Written { changes: 0, elements })
    }
}
