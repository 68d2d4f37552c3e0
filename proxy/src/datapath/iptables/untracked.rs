//! Table raw, before connection tracking: questions to the node's own DNS server while it answers, and its answers, are
//! left untracked, so that they meet no rule of nat and cost no entry.
//!
//! ```text
//! raw PREROUTING, OUTPUT → CAUSEWAY-DNS
//!   to the address, port 53      untracked, while the server answers
//!   from the address, port 53    untracked
//! ```
//! kube-proxy has nothing like it; NodeLocal DNSCache has rules of this kind for its own address. Every packet of the
//! node passes the table, so that there is something in it only where the node has a DNS server.

use ipnetwork::IpNetwork;
use model::IpFamily;

use super::names::DNS;
use super::programs::Programs;
use super::rule::{Rule, comment};
use super::ruleset::{Edits, Jump, Rules, Ruleset, Table};
use super::tables;
use crate::Error;
use crate::plan::NodeContext;

/// What is left untracked in one version of IP.
#[derive(Debug)]
pub struct Untracked {
    family: IpFamily,
    programs: Programs,
    /// Of the variant that is not used, until nothing of this is there.
    others: Vec<Programs>,
    /// None where the node has no DNS server: then what an earlier process left is removed, and nothing looked at.
    wanted: Option<Rules>,
    /// What the kernel holds, as far as that is known.
    kernel: Option<Ruleset>,
}

impl Untracked {
    /// Nothing yet.
    ///
    /// # Errors
    /// When a program does not tell which variant it is of.
    pub fn new(family: IpFamily, programs: Programs) -> Result<Self, Error> {
        Ok(Self {
            family,
            others: programs.others()?,
            programs,
            wanted: None,
            kernel: None,
        })
    }

    /// Its version of IP.
    #[must_use]
    pub const fn family(&self) -> IpFamily {
        self.family
    }

    /// Makes it as this node needs it, and takes away what a process left that used the other variant; returns how many
    /// chains and jumps were written.
    ///
    /// # Errors
    /// When a program fails; the next call tries again.
    pub fn set_context(&mut self, context: &NodeContext) -> Result<u64, Error> {
        let before = std::mem::replace(&mut self.wanted, rules(context, self.family));
        if before.is_some() && self.wanted.is_none() {
            // It is ours to remove now.
            self.kernel = None;
        }
        let edits = self.edits()?;
        let writes = edits.len() as u64;
        self.commit(edits)?;
        Ok(writes + self.remove_from_others()?)
    }

    /// Reads back what is there, repairs it, and returns what was repaired.
    ///
    /// # Errors
    /// When a program fails.
    pub fn repair(&mut self) -> Result<Vec<String>, Error> {
        if self.wanted.is_none() {
            return Ok(Vec::new());
        }
        self.kernel = None;
        let edits = self.edits()?;
        let repaired = edits.described();
        self.commit(edits)?;
        Ok(repaired)
    }

    /// What differs from what is wanted.
    fn edits(&mut self) -> Result<Edits, Error> {
        let Some(wanted) = &self.wanted else {
            return self.leftovers();
        };
        let kernel = match &mut self.kernel {
            Some(kernel) => kernel,
            unknown => unknown.insert(self.programs.save(&[Table::Raw])?),
        };
        let mut edits = Edits::default();
        edits.put(Table::Raw, DNS, Rules::clone(wanted));
        let missing = jumps().into_iter().filter(|jump| !kernel.jumps.contains(jump));
        edits.inserted = missing.collect();
        Ok(edits.against(kernel))
    }

    /// What an earlier process left, when that is not known to be gone.
    fn leftovers(&mut self) -> Result<Edits, Error> {
        if self.kernel.is_some() {
            return Ok(Edits::default());
        }
        let leftovers = removal(&self.programs)?;
        self.kernel = Some(Ruleset::default());
        Ok(leftovers)
    }

    /// Rules of both variants are in force at once: what the other one has would decide beside this node's plan.
    fn remove_from_others(&mut self) -> Result<u64, Error> {
        let mut writes = 0;
        while let Some(programs) = self.others.last() {
            // A variant that the kernel does not have cannot be asked, and holds nothing.
            let edits = removal(programs).unwrap_or_default();
            if !edits.is_empty() {
                programs.restore(&edits.text())?;
                writes += edits.len() as u64;
            }
            self.others.pop();
        }
        Ok(writes)
    }

    fn commit(&mut self, edits: Edits) -> Result<(), Error> {
        if edits.is_empty() {
            return Ok(());
        }
        // What a change that failed left is looked at by the next.
        let kernel = self.kernel.take();
        self.programs.restore(&edits.text())?;
        self.kernel = kernel.map(|mut kernel| {
            kernel.apply(edits);
            kernel
        });
        Ok(())
    }
}

/// What takes it away.
fn removal(programs: &Programs) -> Result<Edits, Error> {
    // Asked for by its name, the table would be there from then on.
    Ok(tables::removal(programs.save_all()?).of(Table::Raw))
}

fn jumps() -> [Jump; 2] {
    let why = comment("DNS server of this node");
    ["PREROUTING", "OUTPUT"].map(|from| Jump {
        table: Table::Raw,
        from: from.to_owned(),
        rule: Rule::new(&format!("{why} -j {DNS}")),
    })
}

/// None without an address of that family. Late answers must not make flows either, or who asks again from the same port
/// would be led back here.
fn rules(context: &NodeContext, family: IpFamily) -> Option<Rules> {
    let addresses = context.local_dns.iter().map(|address| IpNetwork::from(*address));
    let of_family = addresses.filter(|address| IpFamily::from(address.ip()) == family);
    let rules = of_family.flat_map(|address| {
        let ways = [
            ("-d", "--dport", "question", context.dns_answers),
            ("-s", "--sport", "answer", true),
        ];
        let wanted = ways.into_iter().filter(|(.., is_wanted)| *is_wanted);
        wanted.flat_map(move |(end, port, what, _)| {
            ["udp", "tcp"].map(|protocol| {
                let why = comment(what);
                Rule::new(&format!(
                    "{end} {address} -p {protocol} {why} -m {protocol} {port} 53 -j CT --notrack"
                ))
            })
        })
    });
    let rules: Vec<_> = rules.collect();
    (!rules.is_empty()).then(|| rules.into())
}
