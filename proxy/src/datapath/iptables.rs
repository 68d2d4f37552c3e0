//! Rules of iptables, with kube-proxy's chain names: for kernels that are too old for [`super::packets`], and for
//! people and tools that know these chains.
//!
//! A packet's walk, for the first packet of a connection (nat sees no other):
//! ```text
//! nat PREROUTING, OUTPUT → KUBE-SERVICES
//!   address, protocol, port   → KUBE-SVC-…, KUBE-SVL-… (this node's endpoints), KUBE-EXT-…, or KUBE-FW-…
//!   an address of the node    → KUBE-NODEPORTS → KUBE-EXT-…
//!     KUBE-FW-…    admitted source → KUBE-EXT-…; others stay untranslated
//!     KUBE-EXT-…   marks who is masqueraded; pods and this node → KUBE-SVC-…, others → as the policy says
//!     KUBE-SVC-…   marks clients that are no pods; the endpoint that the client has, else one by lot → KUBE-SEP-…
//!     KUBE-SEP-…   marks hairpins; DNAT
//! filter INPUT, FORWARD, OUTPUT, for what was not translated
//!   KUBE-PROXY-FIREWALL      source ranges: drop
//!   KUBE-SERVICES, KUBE-EXTERNAL-SERVICES    no endpoints: reject; none here under policy Local: drop;
//!                            no such port of a ClusterIP: reject
//! filter FORWARD → KUBE-FORWARD    invalid: drop; masqueraded or established: accept
//! nat POSTROUTING → KUBE-POSTROUTING    marked: masquerade
//! ```
//! Node ports on loopback are not served: that needs `route_localnet`, which opens loopback services of the node to
//! its neighbours (CVE-2020-8558). The socket hook serves them.
//!
//! Before all of that [`untracked`] leaves alone what goes to the node's own DNS server.
//!
//! Rules are kept by Service. A sync writes the chains of the Services that changed and, when they changed too, the
//! chains that list all Services; x_tables replaces the whole table in the kernel all the same. A node with thousands of
//! Services is better served by [`super::packets`]: with 5000 of five endpoints each, a full write took 3 s by the
//! legacy programs and 64 s by the nft ones, and a change of one Service 0.7 s and 0.1 to 0.5 s, on two cores.
//!
//! Needs iptables 1.6.2 (`iptables-restore -w`, `MASQUERADE --random-fully`).

use std::collections::{BTreeMap, BTreeSet};

use model::{IpFamily, ObjectName};
use netlink::conntrack::Conntrack;

use super::{Applied, Change, Datapath, NodeAddresses, Swept};
use crate::Error;
use crate::plan::{FrontendKey, NodeContext, ServicePlan};
use crate::report::IptablesRules;
use crate::stale::{Forgotten, StaleFlows};

#[cfg(test)]
mod golden;
mod layout;
mod names;
mod programs;
mod render;
mod rule;
mod ruleset;
mod tables;
mod untracked;
#[cfg(test)]
mod walk;

pub use programs::Variant;

use programs::Programs;
use ruleset::{Edits, Table};
use tables::Tables;
use untracked::Untracked;

/// Renders plans into chains of iptables.
#[derive(Debug)]
pub struct Iptables {
    conntrack: Conntrack,
    /// What every Service was last asked for, to render it anew when the node changes.
    plans: BTreeMap<ObjectName, ServicePlan>,
    tables: Vec<Tables>,
    untracked: Vec<Untracked>,
    /// Whether the last repair of it failed.
    is_untracked_failing: bool,
}

impl Iptables {
    /// Reads back what is there, for each version of IP of the context, and makes the fixed part if it is not there.
    /// Works in the network namespace of the calling thread, also later.
    ///
    /// # Errors
    /// When a program is missing or fails.
    pub fn open(context: &NodeContext, variant: Variant) -> Result<Self, Error> {
        let mut opened = Self {
            conntrack: Conntrack::open()?,
            plans: BTreeMap::new(),
            tables: Vec::new(),
            untracked: Vec::new(),
            is_untracked_failing: false,
        };
        for family in context.families.iter().copied() {
            let programs = Programs::find(family, variant)?;
            tracing::info!(?family, variant = ?programs.variant(), "rules of Services are made by iptables");
            opened.untracked.push(Untracked::new(family, programs.clone())?);
            opened.tables.push(Tables::open(family, programs, context)?);
        }
        Ok(opened)
    }

    /// Takes everything of the proxy's away, in both variants, in the network namespace of the calling thread.
    /// Kubelet's chains stay, and chains that somebody else's rules lead to. Returns of each ruleset, of a version of IP
    /// and a variant, whether there was something.
    #[must_use]
    pub fn remove(families: &BTreeSet<IpFamily>) -> Vec<Result<bool, Error>> {
        let each = families.iter();
        each.flat_map(|family| remove_family(*family)).collect()
    }

    /// Takes away what leaves the node's DNS server untracked, in both variants: the one chain that is ours by its name.
    /// Returns of each ruleset whether there was something; one that cannot be looked at has nothing.
    #[must_use]
    pub fn remove_untracked(families: &BTreeSet<IpFamily>) -> Vec<Result<bool, Error>> {
        let removals = families.iter().filter_map(|family| removals(*family).ok());
        let readable = removals
            .flatten()
            .filter_map(|(programs, edits)| Some((programs, edits.ok()?)));
        readable
            .map(|(programs, edits)| remove(&programs, &edits.of(Table::Raw)))
            .collect()
    }

    /// Whether there is anything that [`Iptables::remove`] would take away. What cannot be looked at holds nothing.
    #[must_use]
    pub fn is_there(families: &BTreeSet<IpFamily>) -> bool {
        let removals = families.iter().filter_map(|family| removals(*family).ok());
        removals
            .flatten()
            .any(|(_, edits)| edits.is_ok_and(|edits| !edits.is_empty()))
    }

    /// Versions of IP that are no longer served leave nothing behind.
    fn remove_unserved(&self, context: &NodeContext) {
        let families = [IpFamily::V4, IpFamily::V6];
        for family in families
            .iter()
            .filter(|family| !context.families.contains(family))
        {
            // A host without that version of IP has no program for it, or one that fails.
            for error in remove_family(*family).into_iter().filter_map(Result::err) {
                tracing::debug!(
                    ?family,
                    error = &error as &dyn std::error::Error,
                    "rules of a version of IP that is not served cannot be looked for"
                );
            }
        }
    }

    fn each_family<T>(
        &mut self,
        mut work: impl FnMut(&mut Tables) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let work = |tables: &mut Tables| work(tables).map_err(|error| error.of(tables.family()));
        let results: Vec<_> = self.tables.iter_mut().map(work).collect();
        results.into_iter().collect()
    }

    fn each_untracked<T>(
        &mut self,
        mut work: impl FnMut(&mut Untracked) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let work = |untracked: &mut Untracked| work(untracked).map_err(|error| error.of(untracked.family()));
        let results: Vec<_> = self.untracked.iter_mut().map(work).collect();
        results.into_iter().collect()
    }

    /// Repairs what is left untracked, and what Services need as told. What cannot be left untracked costs entries of
    /// connection tracking, and stops no repair of Services.
    fn repair_with(
        &mut self,
        tables: impl FnMut(&mut Tables) -> Result<Vec<String>, Error>,
    ) -> Result<Vec<String>, Error> {
        let untracked = self.each_untracked(Untracked::repair);
        let was_failing = std::mem::replace(&mut self.is_untracked_failing, untracked.is_err());
        if let Err(error) = &untracked
            && !was_failing
        {
            let error = model::with_causes(error);
            tracing::warn!(
                error,
                "what leaves queries to the node's own DNS server untracked cannot be repaired"
            );
        }
        let tables = self.each_family(tables)?;
        Ok([untracked.unwrap_or_default().concat(), tables.concat()].concat())
    }
}

impl Datapath for Iptables {
    fn apply(&mut self, changes: &[Change<'_>]) -> Applied {
        let mut applied = Applied::default();
        for tables in &mut self.tables {
            let render =
                |change: &Change<'_>| (change.service.clone(), tables.render(change.service, change.new));
            let wanted = changes.iter().map(render).collect();
            applied.add(tables.apply(wanted).of(tables.family()));
        }
        for change in changes {
            if *change.new == ServicePlan::default() {
                self.plans.remove(change.service);
            } else {
                self.plans.insert(change.service.clone(), change.new.clone());
            }
        }
        applied
    }

    fn sweep(&mut self, wanted: &dyn Fn(&FrontendKey) -> bool) -> Result<Swept, Error> {
        let mut all = Swept::default();
        for swept in self.each_family(|tables| tables.sweep(wanted))? {
            all.writes += swept.writes;
            all.frontends.extend(swept.frontends);
        }
        Ok(all)
    }

    fn set_context(&mut self, context: &NodeContext) -> Result<u64, Error> {
        let plans = std::mem::take(&mut self.plans);
        let writes = self.each_family(|tables| tables.set_context(context, &plans));
        self.plans = plans;
        let untracked = self.each_untracked(|untracked| untracked.set_context(context));
        self.remove_unserved(context);
        Ok(writes?.into_iter().chain(untracked?).sum())
    }

    fn set_nodes(&mut self, _: &NodeAddresses) -> Result<u64, Error> {
        // The kernel is asked which addresses are this node's, packet by packet.
        Ok(0)
    }

    fn repair(&mut self) -> Result<Vec<String>, Error> {
        self.repair_with(Tables::repair)
    }

    fn reread(&mut self) -> Result<Vec<String>, Error> {
        self.repair_with(Tables::reread)
    }

    fn forget_flows(&mut self, stale: &StaleFlows) -> Result<Forgotten, Error> {
        stale.forget_in(&mut self.conntrack)
    }

    fn counters(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        Ok(Vec::new())
    }

    fn iptables(&self) -> IptablesRules {
        let tables = self.tables.iter();
        IptablesRules {
            tables: tables.clone().flat_map(Tables::rules).collect(),
            refused_changes: tables
                .map(|tables| (tables.family(), tables.refused_changes()))
                .collect(),
        }
    }
}

/// What takes everything of the proxy's away, in one variant.
type VariantRemoval = (Programs, Result<Edits, Error>);

/// All that the installed programs of both versions of IP have, as they print it, for people.
pub fn saved() -> Result<String, Error> {
    let mut text = String::new();
    for family in [IpFamily::V4, IpFamily::V6] {
        for programs in Programs::installed(family)? {
            let saved = programs.save_text()?;
            text += &format!("# {family}, {:?}\n{saved}", programs.variant());
        }
    }
    Ok(text)
}

fn removals(family: IpFamily) -> Result<Vec<VariantRemoval>, Error> {
    let installed = Programs::installed(family)?.into_iter();
    let removal = |programs: Programs| {
        let edits = programs.save_all().map(tables::removal);
        (programs, edits)
    };
    Ok(installed.map(removal).collect())
}

fn remove_family(family: IpFamily) -> Vec<Result<bool, Error>> {
    let removals = match removals(family) {
        Ok(removals) => removals,
        Err(error) => return vec![Err(error)],
    };
    // A variant that the kernel does not have cannot be asked, and holds nothing.
    let is_readable = removals.iter().any(|(_, edits)| edits.is_ok());
    let remove = |(programs, edits): VariantRemoval| match edits {
        Ok(edits) => remove(&programs, &edits),
        Err(_) if is_readable => Ok(false),
        Err(error) => Err(error),
    };
    removals.into_iter().map(remove).collect()
}

/// Whether there was something to remove.
fn remove(programs: &Programs, edits: &Edits) -> Result<bool, Error> {
    if !edits.is_empty() {
        programs.restore(&edits.text())?;
    }
    Ok(!edits.is_empty())
}
