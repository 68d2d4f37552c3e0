//! The packet rules: nftables, complete for every protocol and every source of packets.
//!
//! No chain, rule or anonymous map belongs to a Service: Services and endpoints are elements of a few maps, so that a
//! change costs what changed, and the kernel looks packets up by hash. See [`layout`] for a packet's walk.

use std::collections::{BTreeMap, BTreeSet};

use model::ObjectName;
use netlink::conntrack::Conntrack;
use netlink::nft::{self, Batch, Element, ElementData, Nft, Repair, Table, Verdict};

use super::{Applied, Change, Swept};
use crate::Error;
use crate::plan::{FrontendKey, NodeContext, ServicePlan};
use crate::stale::StaleFlows;

pub mod elements;
pub mod layout;

use elements::{Name, desired, frontend_of, shared_keys};
use layout::Template;

/// Elements in one transaction. A transaction holds the netlink lock, during which other networking changes on the
/// node wait (kubernetes#139328): a cold start is cut into pieces.
const CHUNK: usize = 20_000;

/// Elements by map and key, as the kernel has them.
pub type Mirror = BTreeMap<Name, BTreeMap<Vec<u8>, ElementData>>;

/// Renders plans into an nftables table of its own.
#[derive(Debug)]
pub struct Packets {
    nft: Nft,
    conntrack: Conntrack,
    context: NodeContext,
    mirror: Mirror,
    templates: BTreeSet<Template>,
    /// Elements that several Services may want, with those that do.
    sharers: BTreeMap<(Name, Vec<u8>), BTreeSet<ObjectName>>,
}

/// What is wanted of some elements: data, or absence.
type Edits = BTreeMap<(Name, Vec<u8>), Option<ElementData>>;

impl Packets {
    /// Makes the table if it is not there, and reads back what it holds. Works in the network namespace of the
    /// calling thread.
    pub fn open(context: &NodeContext) -> Result<Self, Error> {
        let mut packets = Self {
            nft: Nft::open()?,
            conntrack: Conntrack::open()?,
            context: context.clone(),
            mirror: Mirror::new(),
            templates: BTreeSet::new(),
            sharers: BTreeMap::new(),
        };
        packets.reread()?;
        Ok(packets)
    }

    /// The proxy's table.
    #[must_use]
    pub fn table() -> Table {
        layout::table()
    }

    /// How the kernel names this renderer's connection in events.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.nft.port()
    }

    /// See [`super::Datapath::apply`].
    pub fn apply(&mut self, changes: &[Change<'_>]) -> Applied {
        let kept: BTreeSet<_> = changes
            .iter()
            .flat_map(|change| change.new.frontends())
            .copied()
            .collect();
        let mut applied = Applied::default();
        let mut edits = Edits::new();
        let mut chunk = Vec::new();
        for change in changes {
            chunk.push(*change);
            self.collect(change, &kept, &mut edits);
            if edits.len() >= CHUNK {
                self.apply_chunk(std::mem::take(&mut edits), &chunk, &kept, &mut applied);
                chunk.clear();
            }
        }
        self.apply_chunk(edits, &chunk, &kept, &mut applied);
        applied
    }

    /// Applies a chunk in one transaction; when that is refused, each of its changes in one of its own, so that one
    /// Service's failure stops no other.
    fn apply_chunk(
        &mut self,
        edits: Edits,
        changes: &[Change<'_>],
        kept: &BTreeSet<FrontendKey>,
        applied: &mut Applied,
    ) {
        let whole = self.commit(&edits, applied);
        match (whole, changes) {
            (Ok(()), _) => {}
            (Err(error), [only]) => applied.failures.push((only.service.clone(), error.into())),
            (Err(error), _) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "a transaction of many Services was refused"
                );
                for change in changes {
                    let mut edits = Edits::new();
                    self.collect(change, kept, &mut edits);
                    if let Err(error) = self.commit(&edits, applied) {
                        applied.failures.push((change.service.clone(), error.into()));
                    }
                }
            }
        }
    }

    /// See [`super::Datapath::sweep`].
    pub fn sweep(&mut self, wanted: &dyn Fn(&FrontendKey) -> bool) -> Result<Swept, Error> {
        let mut swept = Swept::default();
        let mut edits = Edits::new();
        for (name, elements) in &self.mirror {
            for key in elements.keys() {
                let frontend = frontend_of(*name, key);
                let is_wanted = match &frontend {
                    Some(frontend) => wanted(frontend),
                    None => self.sharers.contains_key(&(*name, key.clone())),
                };
                if !is_wanted {
                    edits.insert((*name, key.clone()), None);
                    swept.frontends.extend(frontend);
                }
            }
        }
        let mut applied = Applied::default();
        self.commit(&edits, &mut applied)?;
        swept.writes = applied.writes;
        self.drop_unused_templates()?;
        Ok(swept)
    }

    /// See [`super::Datapath::repair`].
    pub fn repair(&mut self) -> Result<Vec<String>, Error> {
        let layout = layout::layout(&self.context, &self.templates);
        Ok(match self.nft.ensure(&layout)? {
            Repair::Unchanged => Vec::new(),
            Repair::Chains(names) => vec![format!("chains differed: {}", names.join(", "))],
            Repair::Rebuilt => {
                // Every set is empty now.
                self.mirror.clear();
                vec!["the table was not there".to_owned()]
            }
        })
    }

    /// See [`super::Datapath::reread`].
    pub fn reread(&mut self) -> Result<Vec<String>, Error> {
        let table = layout::table();
        let chains = if self.nft.has_table(&table)? {
            self.nft.chains(&table)?
        } else {
            Vec::new()
        };
        self.templates
            .extend(chains.iter().filter_map(|chain| Template::parse(&chain.name)));
        let repaired = self.repair()?;
        let mut mirror = Mirror::new();
        for name in Name::ALL {
            let elements = self.nft.elements(&table, name.text())?;
            mirror.insert(
                name,
                elements
                    .into_iter()
                    .map(|element| (element.key, element.data))
                    .collect(),
            );
        }
        self.mirror = mirror;
        Ok(repaired)
    }

    /// See [`super::Datapath::forget_flows`].
    pub fn forget_flows(&mut self, stale: &StaleFlows) -> Result<usize, Error> {
        let flows = self.conntrack.flows(|flow| stale.matches(flow))?;
        for flow in &flows {
            self.conntrack.delete(flow)?;
        }
        Ok(flows.len())
    }

    /// Adds to `edits` what a change wants.
    fn collect(&mut self, change: &Change<'_>, kept: &BTreeSet<FrontendKey>, edits: &mut Edits) {
        for plan in change.new.ports.values() {
            for (key, action) in &plan.frontends {
                desired(*key, *action, plan, &self.mirror, edits);
            }
        }
        for key in change.old.frontends().filter(|key| !kept.contains(*key)) {
            elements::absent(*key, &self.mirror, edits);
        }
        self.collect_shared(change.service, change.old, change.new, edits);
    }

    fn collect_shared(
        &mut self,
        service: &ObjectName,
        old: &ServicePlan,
        new: &ServicePlan,
        edits: &mut Edits,
    ) {
        let new = shared_keys(new);
        for key in shared_keys(old).difference(&new) {
            let Some(sharers) = self.sharers.get_mut(key) else {
                continue;
            };
            sharers.remove(service);
            if sharers.is_empty() {
                self.sharers.remove(key);
                edits.insert(key.clone(), None);
            }
        }
        for key in new {
            self.sharers
                .entry(key.clone())
                .or_default()
                .insert(service.clone());
            edits.insert(key, Some(ElementData::None));
        }
    }

    /// Makes the kernel have what `edits` says, in one transaction. When the kernel's state turns out to be another
    /// than the mirror's, it is read back and the transaction made again.
    fn commit(&mut self, edits: &Edits, applied: &mut Applied) -> Result<(), nft::Error> {
        let error = match self.try_commit(edits, applied) {
            Err(error) if error.is_conflict() => error,
            result => return result,
        };
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the table was changed by somebody else"
        );
        applied.damaged = true;
        match self.reread() {
            Ok(_) => self.try_commit(edits, applied),
            Err(Error::Nftables(error)) => Err(error),
            Err(_) => Err(error),
        }
    }

    fn try_commit(&mut self, edits: &Edits, applied: &mut Applied) -> Result<(), nft::Error> {
        let differing: Vec<_> = edits
            .iter()
            .filter(|((name, key), want)| self.actual(*name, key) != want.as_ref())
            .collect();
        if differing.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new(&layout::table());
        let new_templates =
            self.add_templates(differing.iter().filter_map(|(_, want)| want.as_ref()), &mut batch);
        for name in Name::ALL {
            let of_map = || differing.iter().filter(move |((map, _), _)| *map == name);
            let old = of_map().filter_map(|((_, key), _)| {
                let data = self.actual(name, key)?.clone();
                Some(Element {
                    key: key.clone(),
                    data,
                })
            });
            batch.delete_elements(name.text(), &old.collect::<Vec<_>>());
            let new = of_map().filter_map(|((_, key), want)| {
                let data = (*want).clone()?;
                Some(Element {
                    key: key.clone(),
                    data,
                })
            });
            batch.add_elements(name.text(), &new.collect::<Vec<_>>());
        }
        self.nft.commit(&batch)?;
        applied.writes += batch.changes() as u64;
        self.templates.extend(new_templates);
        for ((name, key), want) in differing {
            let elements = self.mirror.entry(*name).or_default();
            match want {
                Some(data) => elements.insert(key.clone(), data.clone()),
                None => elements.remove(key),
            };
        }
        Ok(())
    }

    fn actual(&self, name: Name, key: &[u8]) -> Option<&ElementData> {
        self.mirror.get(&name)?.get(key)
    }

    /// Adds the chains that verdicts lead to and that are not there yet.
    fn add_templates<'a>(
        &self,
        wanted: impl Iterator<Item = &'a ElementData>,
        batch: &mut Batch,
    ) -> BTreeSet<Template> {
        let new: BTreeSet<_> = wanted
            .filter_map(template_of)
            .filter(|template| !self.templates.contains(template))
            .collect();
        for template in &new {
            let (chain, rules) = template.chain(&self.context);
            batch.add_chain(&chain);
            for rule in &rules {
                batch.add_rule(&chain.name, rule);
            }
        }
        new
    }

    /// Housekeeping: a template that no Service uses any more is kept until now, since the next one may want it.
    fn drop_unused_templates(&mut self) -> Result<(), Error> {
        let used: BTreeSet<_> = self
            .mirror
            .values()
            .flat_map(BTreeMap::values)
            .filter_map(template_of)
            .collect();
        let unused: Vec<_> = self.templates.difference(&used).cloned().collect();
        let mut batch = Batch::new(&layout::table());
        for template in &unused {
            let name = template.name();
            batch.flush_chain(&name).delete_chain(&name);
        }
        self.nft.commit(&batch)?;
        self.templates = used;
        Ok(())
    }
}

fn template_of(data: &ElementData) -> Option<Template> {
    match data {
        ElementData::Verdict(Verdict::Goto(chain)) => Template::parse(chain),
        _ => None,
    }
}
