//! The fixed part of an owned table, and its repair.

use std::collections::BTreeMap;

use super::{Batch, Chain, Element, Error, Nft, Rule, Set, Table};

/// Chains with their rules, and sets, that a table must have, and no other chain that hooks packets. Elements of sets,
/// whether the owner or packets write them, and regular chains that are not named here, are the owner's business and
/// are left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    table: Table,
    sets: Vec<Set>,
    chains: Vec<(Chain, Vec<Rule>)>,
    /// What sets have when the table is made anew.
    elements: Vec<(String, Vec<Element>)>,
}

/// What [`Nft::ensure`] found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Everything was as it must be.
    Unchanged,
    /// These chains were absent or differed, and were written; or they hooked packets for nothing, and are gone.
    Chains(Vec<String>),
    /// The table was absent, or held sets of another shape: it was made anew, and sets have what the layout fills them
    /// with.
    Rebuilt,
}

impl Layout {
    /// A table with nothing in it.
    #[must_use]
    pub fn new(table: Table) -> Self {
        Self {
            table,
            sets: Vec::new(),
            chains: Vec::new(),
            elements: Vec::new(),
        }
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The sets and maps.
    #[must_use]
    pub fn sets(&self) -> &[Set] {
        &self.sets
    }

    /// Adds a set or map.
    pub fn add_set(&mut self, set: Set) -> &mut Self {
        self.sets.push(set);
        self
    }

    /// Says what a set has from the moment that the table is made anew: where rules drop what is in no set, not even a
    /// moment may pass without its elements. Those of a table that is there stay the owner's business.
    pub fn fill_set(&mut self, set: &str, elements: impl IntoIterator<Item = Element>) -> &mut Self {
        self.elements
            .push((set.to_owned(), elements.into_iter().collect()));
        self
    }

    /// Adds a chain and its rules in order.
    pub fn add_chain(&mut self, chain: Chain, rules: impl IntoIterator<Item = Rule>) -> &mut Self {
        self.chains.push((chain, rules.into_iter().collect()));
        self
    }

    /// Adds to a batch that the table is made anew, whatever is there. What is added behind it is in the new table.
    pub fn replace(&self, batch: &mut Batch) {
        batch.add_table().delete_table();
        self.create(batch);
    }

    fn create(&self, batch: &mut Batch) {
        batch.add_table();
        for set in &self.sets {
            batch.add_set(set);
        }
        for (set, elements) in &self.elements {
            batch.add_elements(set, elements);
        }
        // Chains before rules: a rule may jump to a chain that comes later.
        for (chain, _) in &self.chains {
            batch.add_chain(chain);
        }
        for (chain, rules) in &self.chains {
            for rule in rules {
                batch.add_rule(&chain.name, rule);
            }
        }
    }
}

/// A chain that is absent or differs, or that hooks packets and is not wanted.
struct WrongChain<'a> {
    name: String,
    wanted: Option<(&'a Chain, &'a [Rule])>,
    actual: Option<Chain>,
}

impl Nft {
    /// Makes the table what the layout says, in one transaction, and writes nothing when it is that already.
    pub fn ensure(&mut self, layout: &Layout) -> Result<Repair, Error> {
        let table = &layout.table;
        let mut batch = Batch::new(table);
        let there = self.has_table(table)?;
        if !there || !self.has_sets_of(layout)? {
            if there {
                layout.replace(&mut batch);
            } else {
                layout.create(&mut batch);
            }
            self.commit(&batch)?;
            return Ok(Repair::Rebuilt);
        }
        let wrong = self.wrong_chains(layout)?;
        for WrongChain { name, wanted, actual } in &wrong {
            let wanted = wanted.map(|(chain, _)| chain);
            if actual.is_some() {
                batch.flush_chain(name);
                // Hook, type and priority of a chain cannot be changed.
                if actual.as_ref() != wanted {
                    batch.delete_chain(name);
                }
            }
            if let Some(chain) = wanted {
                batch.add_chain(chain);
            }
        }
        for (chain, rules) in wrong.iter().filter_map(|wrong| wrong.wanted) {
            for rule in rules {
                batch.add_rule(&chain.name, rule);
            }
        }
        let names: Vec<_> = wrong.into_iter().map(|chain| chain.name).collect();
        self.commit(&batch)?;
        Ok(if names.is_empty() {
            Repair::Unchanged
        } else {
            Repair::Chains(names)
        })
    }

    /// What [`Nft::ensure`] would put right, one line each. Writes nothing.
    pub fn differences(&mut self, layout: &Layout) -> Result<Vec<String>, Error> {
        if !self.has_table(&layout.table)? {
            return Ok(vec!["it is not there".to_owned()]);
        }
        if !self.has_sets_of(layout)? {
            return Ok(vec!["a set is not there, or is another".to_owned()]);
        }
        let wrong = self.wrong_chains(layout)?.into_iter();
        let told = |WrongChain { name, wanted, actual }| match (wanted, actual) {
            (Some(_), None) => format!("chain {name} is not there"),
            (Some((chain, _)), Some(actual)) if *chain != actual => {
                format!("chain {name} hooks packets elsewhere")
            }
            (Some(_), Some(_)) => format!("the rules of chain {name} are others"),
            (None, _) => format!("chain {name} hooks packets and is nobody's"),
        };
        Ok(wrong.map(told).collect())
    }

    /// Removes the table, if it is there; returns whether it was.
    pub fn remove(&mut self, table: &Table) -> Result<bool, Error> {
        if !self.has_table(table)? {
            return Ok(false);
        }
        let mut batch = Batch::new(table);
        batch.delete_table();
        self.commit(&batch)?;
        Ok(true)
    }

    /// Whether the table, which is there, has all sets of the layout, in the same shape: not so after another version.
    pub fn has_sets_of(&mut self, layout: &Layout) -> Result<bool, Error> {
        let actual = self.sets(&layout.table)?;
        Ok(layout.sets.iter().all(|set| actual.contains(&set.numbers())))
    }

    fn wrong_chains<'a>(&mut self, layout: &'a Layout) -> Result<Vec<WrongChain<'a>>, Error> {
        let mut chains: BTreeMap<_, _> = self
            .chains(&layout.table)?
            .into_iter()
            .map(|chain| (chain.name.clone(), chain))
            .collect();
        let mut comments: BTreeMap<String, Vec<Option<String>>> = BTreeMap::new();
        for rule in self.rules(&layout.table)? {
            comments.entry(rule.chain).or_default().push(rule.comment);
        }
        let mut wrong = Vec::new();
        for (chain, rules) in &layout.chains {
            let actual = chains.remove(&chain.name);
            let actual_rules = comments.remove(&chain.name).unwrap_or_default();
            let wanted_rules = rules.iter().map(|rule| Some(rule.fingerprint()));
            if actual.as_ref() != Some(chain) || !wanted_rules.eq(actual_rules) {
                wrong.push(WrongChain {
                    name: chain.name.clone(),
                    wanted: Some((chain, rules.as_slice())),
                    actual,
                });
            }
        }
        let hooked = chains.into_iter().filter(|(_, chain)| chain.base.is_some());
        wrong.extend(hooked.map(|(name, chain)| WrongChain {
            name,
            wanted: None,
            actual: Some(chain),
        }));
        Ok(wrong)
    }
}
