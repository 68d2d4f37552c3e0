//! Tables, chains and rules as the programs exchange them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::sync::Arc;

use super::layout;
use super::names::DNS;
use super::rule::Rule;

/// The rules of a chain, in order. A rendering and what is known of the kernel share them.
pub type Rules = Arc<[Rule]>;

/// Tables in the order in which they are written: while a frontend moves between endpoints and refusal, packets that
/// are translated already match nothing in filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Says what connection tracking leaves alone.
    Raw,
    /// Holds a canary only.
    Mangle,
    /// Translates.
    Nat,
    /// Refuses and drops.
    Filter,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Raw, Self::Mangle, Self::Nat, Self::Filter];

    /// Those that Services need.
    pub const OF_SERVICES: [Self; 3] = [Self::Mangle, Self::Nat, Self::Filter];

    /// Its name in the programs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A rule of a built-in chain that leads to one of the proxy's chains.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Jump {
    /// Table.
    pub table: Table,
    /// Built-in chain.
    pub from: String,
    /// The rule.
    pub rule: Rule,
}

impl fmt::Display for Jump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.rule.target().unwrap_or_default();
        write!(f, "{}: jump from {} to {target}", self.table, self.from)
    }
}

/// What is the proxy's, or touches it, in the tables of one version of IP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The proxy's chains.
    pub chains: BTreeMap<(Table, String), Rules>,
    /// Rules of other chains that lead to the proxy's: jumps from built-in ones, and what others made.
    pub jumps: Vec<Jump>,
    /// Chains that kubelet keeps for others to see which variant the host uses.
    pub has_hint: bool,
    /// Rules of anybody.
    pub size: usize,
    /// Rules of the proxy's chains: there may be very many chains, and the sum is wanted after every change.
    own_rules: BTreeMap<Table, usize>,
}

impl Ruleset {
    /// Reads what `iptables-save` printed.
    #[must_use]
    pub fn parse(saved: &str) -> Self {
        let mut ruleset = Self::default();
        let mut rules: BTreeMap<(Table, &str), Vec<Rule>> = BTreeMap::new();
        let mut table = None;
        for line in saved.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = Table::ALL.into_iter().find(|table| table.name() == name);
                continue;
            }
            let Some(table) = table else { continue };
            if let Some(chain) = line.strip_prefix(':') {
                let name = chain.split(' ').next().unwrap_or_default();
                ruleset.has_hint |= table == Table::Mangle && layout::KUBELETS.contains(&name);
                if layout::is_own_chain(table, name) {
                    rules.entry((table, name)).or_default();
                }
            } else if let Some((chain, rule)) = appended(line) {
                ruleset.size += 1;
                if layout::is_own_chain(table, chain) {
                    *ruleset.own_rules.entry(table).or_default() += 1;
                    rules.entry((table, chain)).or_default().push(Rule::new(rule));
                } else {
                    ruleset.jumps.extend(own_jump(table, chain, rule));
                }
            }
        }
        let chains = rules
            .into_iter()
            .map(|((table, chain), rules)| ((table, chain.to_owned()), rules.into()));
        ruleset.chains = chains.collect();
        ruleset
    }

    /// How many rules the proxy's chains in a table have.
    #[must_use]
    pub fn own_rules(&self, table: Table) -> usize {
        self.own_rules.get(&table).copied().unwrap_or(0)
    }

    /// Chains that somebody else's rules lead to.
    #[must_use]
    pub fn referenced_by_others(&self) -> BTreeSet<(Table, String)> {
        let foreign = self.jumps.iter().filter(|jump| !layout::is_built_in(&jump.from));
        foreign
            .filter_map(|jump| Some((jump.table, jump.rule.target()?)))
            .collect()
    }
}

fn appended(line: &str) -> Option<(&str, &str)> {
    let rule = line.strip_prefix("-A ")?;
    Some(rule.split_once(' ').unwrap_or((rule, "")))
}

fn own_jump(table: Table, chain: &str, rule: &str) -> Option<Jump> {
    // Most rules of others lead nowhere near: they are not taken apart.
    ["KUBE-", DNS]
        .iter()
        .any(|part| rule.contains(part))
        .then_some(())?;
    let rule = Rule::new(rule);
    let is_own = rule
        .target()
        .is_some_and(|target| layout::is_own_chain(table, &target));
    is_own.then(|| Jump {
        table,
        from: chain.to_owned(),
        rule,
    })
}

/// The rules of one chain, of what `iptables -S CHAIN` printed.
#[must_use]
pub fn parse_chain(listed: &str) -> Vec<Rule> {
    listed
        .lines()
        .filter_map(appended)
        .map(|(_, rule)| Rule::new(rule))
        .collect()
}

/// A change of tables, made at once for each table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// Chains with what they shall hold; none = they shall not be there.
    pub chains: BTreeMap<(Table, String), Option<Rules>>,
    /// Jumps to be put first, the last of them on top.
    pub inserted: Vec<Jump>,
    /// Jumps to be taken away.
    pub deleted: Vec<Jump>,
}

impl Edits {
    /// Wants a chain to hold rules.
    pub fn put(&mut self, table: Table, chain: impl Into<String>, rules: Rules) {
        self.chains.insert((table, chain.into()), Some(rules));
    }

    /// The chains and jumps that are written, for people.
    pub fn described(&self) -> Vec<String> {
        let chains = self.chains.keys();
        let chains = chains.map(|(table, chain)| format!("{table}: {chain}"));
        chains.chain(self.inserted.iter().map(Jump::to_string)).collect()
    }

    /// Only what is in one table.
    #[must_use]
    pub fn of(mut self, table: Table) -> Self {
        self.chains.retain(|(of, _), _| *of == table);
        self.inserted.retain(|jump| jump.table == table);
        self.deleted.retain(|jump| jump.table == table);
        self
    }

    /// Only what differs from what is there.
    #[must_use]
    pub fn against(mut self, actual: &Ruleset) -> Self {
        self.chains
            .retain(|key, wanted| actual.chains.get(key) != wanted.as_ref());
        self
    }

    /// How many chains and jumps change.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chains.len() + self.inserted.len() + self.deleted.len()
    }

    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The input of `iptables-restore --noflush`, where a declared chain is made, or emptied.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for table in Table::ALL {
            // A String takes everything.
            let _ = self.write_table(table, &mut text);
        }
        text
    }

    fn write_table(&self, table: Table, text: &mut String) -> fmt::Result {
        let chains = || self.chains.iter().filter(move |((of, _), _)| *of == table);
        let jumps = |all: &'_ [Jump]| {
            all.iter()
                .filter(|jump| jump.table == table)
                .cloned()
                .collect::<Vec<_>>()
        };
        let (inserted, deleted) = (jumps(&self.inserted), jumps(&self.deleted));
        if chains().next().is_none() && inserted.is_empty() && deleted.is_empty() {
            return Ok(());
        }
        writeln!(text, "*{table}")?;
        for ((_, chain), _) in chains() {
            writeln!(text, ":{chain} - [0:0]")?;
        }
        for ((_, chain), rules) in chains() {
            for rule in rules.iter().flat_map(|rules| rules.iter()) {
                writeln!(text, "-A {chain} {rule}")?;
            }
        }
        for Jump { from, rule, .. } in &deleted {
            writeln!(text, "-D {from} {rule}")?;
        }
        for Jump { from, rule, .. } in &inserted {
            writeln!(text, "-I {from} {rule}")?;
        }
        for ((_, chain), _) in chains().filter(|(_, rules)| rules.is_none()) {
            writeln!(text, "-X {chain}")?;
        }
        writeln!(text, "COMMIT")
    }
}

impl Ruleset {
    /// Notes what was written.
    pub fn apply(&mut self, edits: Edits) {
        let length = |rules: Option<&Rules>| rules.map_or(0, |rules| rules.len());
        for (key, rules) in edits.chains {
            let own_rules = self.own_rules.entry(key.0).or_default();
            *own_rules += length(rules.as_ref());
            let replaced = match rules {
                Some(rules) => self.chains.insert(key, rules),
                None => self.chains.remove(&key),
            };
            *own_rules -= length(replaced.as_ref());
        }
        for jump in &edits.deleted {
            if let Some(position) = self.jumps.iter().position(|there| there == jump) {
                self.jumps.remove(position);
            }
        }
        self.jumps.extend(edits.inserted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "\
# Generated by iptables-save v1.8.9
*mangle
:PREROUTING ACCEPT [12:3400]
:KUBE-IPTABLES-HINT - [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-XPGD46QRK7WJZT7O - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -j DOCKER
-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
COMMIT
";

    #[test]
    fn a_saved_ruleset_tells_own_chains_and_who_leads_to_them() {
        let ruleset = Ruleset::parse(SAVED);
        let own: Vec<_> = ruleset
            .chains
            .iter()
            .map(|((_, chain), rules)| (chain.as_str(), rules.len()))
            .collect();
        assert_eq!(own, [("KUBE-MARK-MASQ", 1), ("KUBE-SVC-XPGD46QRK7WJZT7O", 0)]);
        let jumps: Vec<_> = ruleset.jumps.iter().map(Jump::to_string).collect();
        assert_eq!(
            jumps,
            [
                "nat: jump from PREROUTING to KUBE-SERVICES",
                "nat: jump from CNI-HOSTPORT-SETMARK to KUBE-MARK-MASQ"
            ]
        );
        let referenced = ruleset.referenced_by_others();
        assert_eq!(
            referenced,
            BTreeSet::from([(Table::Nat, "KUBE-MARK-MASQ".to_owned())])
        );
        assert_eq!((ruleset.has_hint, ruleset.size), (true, 4));
    }

    #[test]
    fn rules_of_own_chains_are_counted_as_they_come_and_go() {
        let mut ruleset = Ruleset::parse(SAVED);
        assert_eq!(Table::ALL.map(|table| ruleset.own_rules(table)), [0, 0, 1, 0]);
        let rule = || Rule::new("-j ACCEPT");
        let rows = [
            ("KUBE-SVC-XPGD46QRK7WJZT7O", Some(vec![rule(), rule()]), 3),
            ("KUBE-SVC-XPGD46QRK7WJZT7O", Some(vec![rule()]), 2),
            ("KUBE-SVC-OTHER", None, 2),
            ("KUBE-SVC-XPGD46QRK7WJZT7O", None, 1),
        ];
        for (chain, rules, expected) in rows {
            let mut edits = Edits::default();
            edits
                .chains
                .insert((Table::Nat, chain.to_owned()), rules.map(Rules::from));
            ruleset.apply(edits);
            assert_eq!(ruleset.own_rules(Table::Nat), expected, "{chain}");
        }
    }

    #[test]
    fn edits_declare_then_append_then_remove() {
        let mut edits = Edits::default();
        edits.put(
            Table::Nat,
            "KUBE-SERVICES",
            [Rule::new("-d 10.0.0.1 -j KUBE-SVC-A")].into(),
        );
        edits.chains.insert((Table::Nat, "KUBE-SVC-B".into()), None);
        edits.inserted.push(Jump {
            table: Table::Nat,
            from: "OUTPUT".into(),
            rule: Rule::new("-j KUBE-SERVICES"),
        });
        let text = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-B - [0:0]\n-A KUBE-SERVICES -d 10.0.0.1/32 -j KUBE-SVC-A\n\
                    -I OUTPUT -j KUBE-SERVICES\n-X KUBE-SVC-B\nCOMMIT\n";
        assert_eq!(edits.text(), text);
        let mut ruleset = Ruleset::default();
        ruleset.apply(edits.clone());
        edits.inserted.clear();
        assert!(
            edits.against(&ruleset).is_empty(),
            "what was applied differs in nothing"
        );
    }
}
