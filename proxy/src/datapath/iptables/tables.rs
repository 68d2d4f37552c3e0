//! The tables of one version of IP: what they hold, and making it so.

use std::collections::{BTreeMap, BTreeSet};

use model::{IpFamily, ObjectName};

use super::layout::{self, Surroundings};
use super::names::{CANARY, MARK_OUTSIDE, NODE_PORTS, SERVICES, is_of_port};
use super::programs::Programs;
use super::render::{Rendered, render};
use super::rule::Rule;
use super::ruleset::{Edits, Jump, Rules, Ruleset, Table};
use crate::Error;
use crate::datapath::{Applied, Swept};
use crate::plan::{FrontendKey, NodeContext, ServicePlan};
use crate::report::TableRules;

/// A Service with what it shall look like.
pub type Wanted = (ObjectName, Rendered);

/// The tables of one version of IP.
#[derive(Debug)]
pub struct Tables {
    family: IpFamily,
    programs: Programs,
    node: Surroundings,
    /// What the kernel holds.
    kernel: Ruleset,
    /// What it was asked for.
    services: BTreeMap<ObjectName, Rendered>,
    /// Whether all Services were told once: until then, what an earlier process left is better than what is known.
    complete: bool,
    /// Whether `kernel` was read anew, so that anything may differ.
    suspect: bool,
    /// Frontends that an earlier process left.
    found: BTreeSet<FrontendKey>,
    /// How often it was looked whether everything is in place.
    turn: usize,
    /// How many rules the latest change wrote.
    written: BTreeMap<Table, u64>,
    /// How often a change was refused.
    refused_changes: u64,
}

impl Tables {
    /// Reads what is there and repairs the fixed part.
    pub fn open(family: IpFamily, programs: Programs, context: &NodeContext) -> Result<Self, Error> {
        let mut tables = Self {
            family,
            node: Surroundings::new(context, family, programs.is_liberal()),
            programs,
            kernel: Ruleset::default(),
            services: BTreeMap::new(),
            complete: false,
            suspect: true,
            found: BTreeSet::new(),
            turn: 0,
            written: BTreeMap::new(),
            refused_changes: 0,
        };
        tables.reread()?;
        tables.found = tables.frontends();
        Ok(tables)
    }

    /// Their version of IP.
    #[must_use]
    pub const fn family(&self) -> IpFamily {
        self.family
    }

    /// How often a change was refused, after which all rules were read back and compared.
    #[must_use]
    pub const fn refused_changes(&self) -> u64 {
        self.refused_changes
    }

    /// How many rules there are, and how many of them the latest change wrote.
    #[must_use]
    pub fn rules(&self) -> [TableRules; 2] {
        [Table::Nat, Table::Filter].map(|table| TableRules {
            family: self.family,
            table: table.name(),
            total: self.kernel.own_rules(table) as u64,
            written: self.written.get(&table).copied().unwrap_or(0),
        })
    }

    /// Renders a plan for these tables.
    #[must_use]
    pub fn render(&self, service: &ObjectName, plan: &ServicePlan) -> Rendered {
        render(service, plan, &self.node)
    }

    /// Makes Services look as wanted. What the kernel refuses stops nobody else.
    pub fn apply(&mut self, wanted: Vec<Wanted>) -> Applied {
        let mut applied = Applied::default();
        self.apply_to(wanted, &mut applied);
        applied
    }

    fn apply_to(&mut self, wanted: Vec<Wanted>, applied: &mut Applied) {
        if !wanted.is_empty() {
            self.written.clear();
        }
        let Err(error) = self.attempt(&wanted, applied) else {
            return;
        };
        self.refused_changes += 1;
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "a change of rules was refused; all rules are read back and compared"
        );
        let again = self.reread().and_then(|_| self.attempt(&wanted, applied));
        let Err(error) = again else { return };
        if let [(service, _)] = wanted.as_slice() {
            applied.failures.push((service.clone(), error));
            return;
        }
        let refused = self.refused(&wanted);
        let is_refused = |service: &ObjectName| refused.iter().any(|(name, _)| name == service);
        let (bad, good): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(service, _)| is_refused(service));
        if good.is_empty() {
            applied.failures.extend(refused);
            return;
        }
        match self.attempt(&good, applied) {
            Ok(()) => applied.failures.extend(refused),
            Err(error) => {
                let all = bad.into_iter().chain(good);
                applied
                    .failures
                    .extend(all.map(|(service, _)| (service, same(&error))));
            }
        }
    }

    /// Removes the chains of Services that nobody wants.
    pub fn sweep(&mut self, wanted: &dyn Fn(&FrontendKey) -> bool) -> Result<Swept, Error> {
        let used: BTreeSet<_> = self
            .services
            .values()
            .flat_map(|service| service.chains.keys())
            .collect();
        let chains = self.kernel.chains.keys();
        let unused = chains.filter(|(_, chain)| is_of_port(chain) && !used.contains(chain));
        let mut edits = Edits::default();
        edits.chains.extend(unused.map(|key| (key.clone(), None)));
        self.remove_unused_outside(&mut edits);
        let writes = self.commit(edits)?;
        let frontends = self.found.iter().filter(|key| !wanted(key)).copied().collect();
        self.found.clear();
        Ok(Swept {
            writes,
            frontends,
            damaged: false,
        })
    }

    /// Renders everything anew when the node changed in what rules depend on.
    pub fn set_context(
        &mut self,
        context: &NodeContext,
        plans: &BTreeMap<ObjectName, ServicePlan>,
    ) -> Result<u64, Error> {
        let node = Surroundings::new(context, self.family, self.node.liberal);
        if node == self.node {
            return Ok(0);
        }
        let old = std::mem::replace(&mut self.node, node);
        let wanted: Vec<_> = plans
            .iter()
            .map(|(service, plan)| (service.clone(), self.render(service, plan)))
            .collect();
        let was_complete = self.complete;
        let mut edits = self.fixed_edits();
        let before = self.exchange(&wanted);
        if was_complete {
            self.add_all_services(&mut edits);
            self.add_removed(&before, &mut edits);
            self.remove_unused_outside(&mut edits);
        }
        let result = self.commit(edits);
        if result.is_err() {
            self.exchange_back(before);
            self.node = old;
        }
        result
    }

    /// Repairs the fixed part, as far as that can be told from the jumps and the canaries.
    pub fn repair(&mut self) -> Result<Vec<String>, Error> {
        self.turn = self.turn.wrapping_add(1);
        if self.is_hooked(self.turn) {
            Ok(Vec::new())
        } else {
            self.reread()
        }
    }

    /// Reads everything back and repairs the fixed part.
    pub fn reread(&mut self) -> Result<Vec<String>, Error> {
        self.suspect = true;
        self.kernel = self.programs.save(&Table::OF_SERVICES)?;
        self.node.liberal = self.programs.is_liberal();
        let mut edits = self.fixed_edits();
        for (table, chain) in layout::list_names() {
            if !self.kernel.chains.contains_key(&(table, chain.to_owned())) {
                edits.put(table, chain, Rules::from([]));
            }
        }
        let missing = layout::jumps()
            .into_iter()
            .filter(|jump| !self.kernel.jumps.contains(jump));
        edits.inserted = missing.collect();
        let edits = edits.against(&self.kernel);
        let repaired = edits.described();
        self.commit(edits)?;
        Ok(repaired)
    }

    /// Whether jumps and canaries are there; whoever flushes a table takes them along. x_tables reads the whole of a
    /// table for each question, and nat is long: there, one is asked at each turn.
    fn is_hooked(&self, turn: usize) -> bool {
        let mut chains: BTreeMap<(Table, String), Vec<Rule>> = BTreeMap::new();
        for Jump { table, from, rule } in layout::jumps() {
            chains.entry((table, from)).or_default().push(rule);
        }
        chains.extend(Table::OF_SERVICES.map(|table| ((table, CANARY.to_owned()), Vec::new())));
        let (in_nat, others): (Vec<_>, Vec<_>) = chains
            .into_iter()
            .partition(|((table, _), _)| *table == Table::Nat);
        let one = in_nat.iter().cycle().nth(turn % in_nat.len().max(1));
        others.iter().chain(one).all(|((table, chain), wanted)| {
            let rules = self.programs.chain(*table, chain);
            rules.is_some_and(|rules| wanted.iter().all(|rule| rules.contains(rule)))
        })
    }

    /// One change for all of these Services.
    fn attempt(&mut self, wanted: &[Wanted], applied: &mut Applied) -> Result<(), Error> {
        let before = self.exchange(wanted);
        let mut edits = Edits::default();
        if self.suspect {
            edits = self.fixed_edits();
            self.add_all_services(&mut edits);
        } else {
            for (_, rendered) in wanted {
                add_chains(rendered, &mut edits);
            }
            if self.differs_in_tops(&before) {
                self.add_lists(&mut edits);
            }
        }
        self.add_removed(&before, &mut edits);
        let result = self.commit(edits);
        match &result {
            Ok(writes) => {
                applied.writes += writes;
                self.suspect = false;
                self.complete = true;
            }
            Err(_) => self.exchange_back(before),
        }
        result.map(|_| ())
    }

    /// Finds the Services whose chains the kernel refuses, as when it lacks a match. Their chains are tried without
    /// anything that leads there.
    fn refused(&mut self, wanted: &[Wanted]) -> Vec<(ObjectName, Error)> {
        let mut edits = Edits::default();
        for (_, rendered) in wanted {
            add_chains(rendered, &mut edits);
        }
        match (self.commit(edits), wanted) {
            (Ok(_), _) | (_, []) => Vec::new(),
            (Err(error), [(service, _)]) => vec![(service.clone(), error)],
            (Err(error), _) if !self.takes_anything() => wanted
                .iter()
                .map(|(service, _)| (service.clone(), same(&error)))
                .collect(),
            (Err(_), wanted) => {
                let (left, right) = wanted.split_at(wanted.len() / 2);
                let mut refused = self.refused(left);
                refused.extend(self.refused(right));
                refused
            }
        }
    }

    /// Whether a change that nothing can be wrong with is taken.
    fn takes_anything(&self) -> bool {
        let mut edits = Edits::default();
        edits.put(Table::Nat, CANARY, Rules::from([]));
        self.programs.restore(&edits.text()).is_ok()
    }

    /// Takes in what is wanted; returns what was there before.
    fn exchange(&mut self, wanted: &[Wanted]) -> Vec<(ObjectName, Option<Rendered>)> {
        let exchange = |(service, rendered): &Wanted| {
            let before = if rendered.is_empty() {
                self.services.remove(service)
            } else {
                self.services.insert(service.clone(), rendered.clone())
            };
            (service.clone(), before)
        };
        wanted.iter().map(exchange).collect()
    }

    fn exchange_back(&mut self, before: Vec<(ObjectName, Option<Rendered>)>) {
        for (service, rendered) in before {
            match rendered {
                Some(rendered) => self.services.insert(service, rendered),
                None => self.services.remove(&service),
            };
        }
    }

    fn differs_in_tops(&self, before: &[(ObjectName, Option<Rendered>)]) -> bool {
        let nothing = Rendered::default();
        before.iter().any(|(service, old)| {
            let new = self.services.get(service).unwrap_or(&nothing);
            !new.has_same_tops(old.as_ref().unwrap_or(&nothing))
        })
    }

    fn fixed_edits(&self) -> Edits {
        let mut edits = Edits::default();
        for (table, chain, rules) in self.node.fixed_chains() {
            edits.put(table, chain, rules);
        }
        edits
    }

    /// Chains of Services led to this one while pods were told in another way. For when none does any more.
    fn remove_unused_outside(&self, edits: &mut Edits) {
        let outside = (Table::Nat, MARK_OUTSIDE.to_owned());
        let fixed = self.node.fixed_chains();
        let is_used = fixed.iter().any(|(_, chain, _)| *chain == MARK_OUTSIDE);
        if !is_used && self.kernel.chains.contains_key(&outside) {
            edits.chains.insert(outside, None);
        }
    }

    fn add_lists(&self, edits: &mut Edits) {
        for (table, chain, rules) in self.node.lists(&self.services) {
            edits.put(table, chain, rules);
        }
    }

    fn add_all_services(&self, edits: &mut Edits) {
        for rendered in self.services.values() {
            add_chains(rendered, edits);
        }
        self.add_lists(edits);
    }

    /// Chains of earlier renderings that no rendering has any more.
    fn add_removed(&self, before: &[(ObjectName, Option<Rendered>)], edits: &mut Edits) {
        for (service, old) in before {
            let Some(old) = old else { continue };
            let kept = self.services.get(service);
            let is_kept = |chain: &String| kept.is_some_and(|kept| kept.chains.contains_key(chain));
            for chain in old.chains.keys().filter(|chain| !is_kept(chain)) {
                edits.chains.entry((Table::Nat, chain.clone())).or_insert(None);
            }
        }
    }

    fn commit(&mut self, edits: Edits) -> Result<u64, Error> {
        let edits = edits.against(&self.kernel);
        if edits.is_empty() {
            return Ok(0);
        }
        self.programs.restore(&edits.text())?;
        let writes = edits.len() as u64;
        for ((table, _), rules) in &edits.chains {
            let rules = rules.as_ref().map_or(0, |rules| rules.len() as u64);
            *self.written.entry(*table).or_default() += rules;
        }
        self.kernel.apply(edits);
        Ok(writes)
    }

    /// Frontends that the kernel translates.
    fn frontends(&self) -> BTreeSet<FrontendKey> {
        let lists = [SERVICES, NODE_PORTS].map(|chain| (Table::Nat, chain.to_owned()));
        let rules = lists.iter().filter_map(|list| self.kernel.chains.get(list));
        rules
            .flat_map(|rules| rules.iter())
            .filter_map(|rule| rule.frontend(self.family))
            .collect()
    }
}

fn add_chains(rendered: &Rendered, edits: &mut Edits) {
    for (chain, rules) in &rendered.chains {
        edits.put(Table::Nat, chain.clone(), Rules::clone(rules));
    }
}

/// One failure of several Services is told for each.
fn same(error: &Error) -> Error {
    match error {
        Error::Program {
            program,
            object,
            source,
        } => Error::Program {
            program: program.clone(),
            object: object.clone(),
            source: std::io::Error::new(source.kind(), source.to_string()),
        },
        other => Error::Program {
            program: "iptables".into(),
            object: "a change of rules".into(),
            source: std::io::Error::other(other.to_string()),
        },
    }
}

/// What takes everything of the proxy's away, as far as nobody else's rules lead to it.
#[must_use]
pub fn removal(ruleset: Ruleset) -> Edits {
    let kept = ruleset.referenced_by_others();
    let (deleted, _) = ruleset
        .jumps
        .into_iter()
        .partition(|jump| layout::is_built_in(&jump.from));
    let chains = ruleset.chains.into_keys().filter(|key| !kept.contains(key));
    Edits {
        chains: chains.map(|key| (key, None)).collect(),
        inserted: Vec::new(),
        deleted,
    }
}
