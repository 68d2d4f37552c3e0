//! The packet rules: nftables, complete for every protocol and every source of packets, one table for each version of
//! IP.
//!
//! No chain, rule or anonymous map belongs to a Service: Services and endpoints are elements of a few maps, so that a
//! change costs what changed, and the kernel looks packets up by hash. See [`layout`] for a packet's walk.

use std::collections::{BTreeMap, BTreeSet};

use model::{IpFamily, ObjectName};
use netlink::nft::{self, Batch, Family, Nft, Repair, Table, Verdict};

use super::{Applied, Change, Swept};
use crate::Error;
use crate::plan::{FrontendKey, NodeContext, PortKey, PortPlan, ServicePlan};

pub mod elements;
mod ids;
pub mod layout;
mod packed_map;
pub(crate) mod read_back;
mod sharers;
mod takeover;
pub mod template;

use elements::{Data, Elements, Key, Name, frontend_of, shared_keys};
use ids::Ids;
use layout::{ip_family, nft_family};
use sharers::Sharers;
use takeover::Takeover;
use template::Template;

/// Elements in one transaction. A transaction holds the netlink lock, during which other networking changes on the
/// node wait (kubernetes#139328): a cold start is cut into pieces.
const CHUNK: usize = 20_000;

/// What the kernel has.
pub type Mirror = BTreeMap<Name, Elements>;

/// Renders plans into an nftables table of its own, for one version of IP.
#[derive(Debug)]
pub struct Packets {
    nft: Nft,
    family: Family,
    /// Not known before the first sync: until then the kernel's rules are not compared with anything.
    context: Option<NodeContext>,
    takeover: Takeover,
    /// What the kernel has, or, while a table of another layout is there, what this one's will have.
    mirror: Mirror,
    templates: BTreeSet<Template>,
    ids: Ids,
    sharers: Sharers,
}

/// An element that is not as it is wanted.
struct Difference<'a> {
    name: Name,
    key: &'a Key,
    /// As the kernel has it.
    old: Option<Data>,
    new: Option<&'a Data>,
}

/// Reads sets of a table that is there.
fn read_mirror(
    nft: &mut Nft,
    table: &Table,
    names: impl IntoIterator<Item = Name>,
) -> Result<Mirror, nft::Error> {
    let mut mirror = Mirror::new();
    for name in names {
        let elements = nft.elements(table, name.text())?;
        let of_name: &mut Elements = mirror.entry(name).or_default();
        for element in elements {
            of_name.insert(&elements::mirror_key(&element), &element.data.into());
        }
    }
    Ok(mirror)
}

/// What is wanted of some elements: data, or absence.
type Edits = BTreeMap<(Name, Key), Option<Data>>;

impl Packets {
    /// Reads back what an earlier process left for each version of IP that is served, and changes nothing. Works in
    /// the network namespace of the calling thread.
    pub fn open_all(context: &NodeContext) -> Result<Vec<Self>, Error> {
        context
            .families
            .iter()
            .map(|family| Self::open(*family))
            .collect()
    }

    /// The same for one version of IP.
    pub fn open(family: IpFamily) -> Result<Self, Error> {
        Self::over(Nft::open()?, family)
    }

    /// The same by a connection that is open.
    pub fn over(nft: Nft, family: IpFamily) -> Result<Self, Error> {
        let mut packets = Self {
            nft,
            family: nft_family(family),
            context: None,
            takeover: Takeover::Done,
            mirror: Mirror::new(),
            templates: BTreeSet::new(),
            ids: Ids::default(),
            sharers: Sharers::default(),
        };
        packets.reread()?;
        Ok(packets)
    }

    /// The proxy's tables.
    #[must_use]
    pub fn tables() -> [Table; 2] {
        [Family::Ip, Family::Ip6].map(layout::table)
    }

    /// The version of IP that it renders.
    #[must_use]
    pub const fn family(&self) -> IpFamily {
        ip_family(self.family)
    }

    /// How the kernel names this renderer's connection in events.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.nft.port()
    }

    /// See [`super::Datapath::set_context`].
    pub fn set_context(&mut self, context: &NodeContext) -> Result<u64, Error> {
        self.context = Some(context.clone());
        let repaired = self.repair()?;
        if !repaired.is_empty() {
            tracing::info!(?repaired, "the rules of the proxy were made for this node");
        }
        Ok(repaired.len() as u64)
    }

    /// See [`super::Datapath::apply`].
    pub fn apply(&mut self, changes: &[Change<'_>]) -> Applied {
        if self.takeover != Takeover::Done {
            return self.apply_to_new_table(changes);
        }
        let kept = kept(changes);
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
        let mut applied = Applied {
            writes: self.finish_takeover()?,
            ..Applied::default()
        };
        let mut swept = Swept::default();
        let mut edits = Edits::new();
        let family = ip_family(self.family);
        for (name, elements) in &self.mirror {
            for key in elements.keys() {
                let frontend = frontend_of(family, *name, key);
                let is_wanted = match &frontend {
                    Some(frontend) => wanted(frontend),
                    None if Name::OF_ID.contains(name) => true,
                    None => self.sharers.has(*name, key),
                };
                if !is_wanted {
                    edits.insert((*name, Key::from_slice(key)), None);
                    swept.frontends.extend(frontend);
                }
            }
        }
        self.commit(&edits, &mut applied)?;
        self.commit(&self.orphans(), &mut applied)?;
        swept.writes = applied.writes;
        swept.damaged = applied.damaged;
        self.drop_unused_templates()?;
        Ok(swept)
    }

    /// Elements of ids that no frontend has.
    fn orphans(&self) -> Edits {
        let ids = elements::ids(&self.mirror);
        let mut orphans = Edits::new();
        for name in Name::OF_ID {
            let keys = self.mirror.get(&name).into_iter().flat_map(Elements::keys);
            let lost = keys.filter(|key| elements::leading_id(key).is_none_or(|id| !ids.contains_key(&id)));
            orphans.extend(lost.map(|key| ((name, Key::from_slice(key)), None)));
        }
        orphans
    }

    /// See [`super::Datapath::repair`].
    pub fn repair(&mut self) -> Result<Vec<String>, Error> {
        let Some(context) = self.context.as_ref().filter(|_| self.takeover == Takeover::Done) else {
            return Ok(Vec::new());
        };
        let layout = layout::layout(self.family, context, &self.templates);
        let table = layout.table().name.clone();
        Ok(match self.nft.ensure(&layout)? {
            Repair::Unchanged => Vec::new(),
            Repair::Chains(names) => vec![format!("chains of {table} differed: {}", names.join(", "))],
            Repair::Rebuilt => {
                // Every set is empty now.
                self.mirror.clear();
                vec![format!("the table {table} was not there")]
            }
        })
    }

    /// See [`super::Datapath::reread`].
    pub fn reread(&mut self) -> Result<Vec<String>, Error> {
        let table = layout::table(self.family);
        let there = self.nft.has_table(&table)?;
        if self.context.is_none() && there && !self.nft.has_sets_of(&layout::sets(self.family))? {
            self.takeover = Takeover::Due;
        }
        if self.takeover != Takeover::Done {
            return Ok(Vec::new());
        }
        let chains = if there {
            self.nft.chains(&table)?
        } else {
            Vec::new()
        };
        self.templates
            .extend(chains.iter().filter_map(|chain| Template::parse(&chain.name)));
        let repaired = self.repair()?;
        self.mirror = if there || self.context.is_some() {
            read_mirror(&mut self.nft, &table, Name::written())?
        } else {
            Mirror::new()
        };
        self.ids.found(elements::ids(&self.mirror));
        Ok(repaired)
    }

    /// Adds to `edits` what a change wants.
    fn collect(&mut self, change: &Change<'_>, kept: &BTreeSet<FrontendKey>, edits: &mut Edits) {
        let family = ip_family(self.family);
        for (key, plan) in ports(change.new, family) {
            let id = self.ids.of(change.service, key, plan, &self.mirror);
            elements::desired(id, plan, &self.mirror, edits);
        }
        for (key, plan) in ports(change.old, family) {
            if ports(change.new, family).any(|(new, _)| new == key) {
                continue;
            }
            if let Some(id) = self.ids.release(change.service, key, plan, &self.mirror) {
                elements::absent_id(id, &self.mirror, edits);
            }
        }
        let gone = change.old.frontends().filter(|key| key.family() == family);
        for key in gone.filter(|key| !kept.contains(*key)) {
            elements::absent(*key, edits);
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
        let family = ip_family(self.family);
        let number = self.ids.of_service(service);
        let wanted = shared_keys(new, family);
        for (name, key) in shared_keys(old, family).difference(&wanted) {
            self.sharers.remove(*name, key, number);
            if !self.sharers.has(*name, key) {
                edits.insert((*name, key.clone()), None);
            }
        }
        if wanted.is_empty() {
            self.ids.release_service(service);
        }
        for (name, key) in wanted {
            self.sharers.add(name, &key, number);
            edits.insert((name, key), Some(Data::None));
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
        let compared = edits.iter().map(|((name, key), want)| Difference {
            name: *name,
            key,
            old: self.actual(*name, key),
            new: want.as_ref(),
        });
        let differing: Vec<_> = compared.filter(|edit| edit.old.as_ref() != edit.new).collect();
        if differing.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new(&layout::table(self.family));
        let new_templates = self.add_templates(differing.iter().filter_map(|edit| edit.new), &mut batch);
        for name in Name::written() {
            let of_map = || differing.iter().filter(move |edit| edit.name == name);
            let old = of_map().filter_map(|edit| Some(name.element(edit.key, edit.old.as_ref()?)));
            batch.delete_elements(name.text(), &old.collect::<Vec<_>>());
            let new = of_map().filter_map(|edit| Some(name.element(edit.key, edit.new?)));
            batch.add_elements(name.text(), &new.collect::<Vec<_>>());
        }
        self.nft.commit(&batch)?;
        applied.writes += batch.changes() as u64;
        self.templates.extend(new_templates);
        for Difference { name, key, new, .. } in differing {
            self.note(name, key, new);
        }
        Ok(())
    }

    /// Makes the mirror say what is wanted of an element.
    fn note(&mut self, name: Name, key: &Key, wanted: Option<&Data>) {
        let elements = self.mirror.entry(name).or_default();
        match wanted {
            Some(data) => elements.insert(key, data),
            None => elements.remove(key),
        }
    }

    fn actual(&self, name: Name, key: &[u8]) -> Option<Data> {
        self.mirror.get(&name)?.get(key)
    }

    /// Adds the chains that verdicts lead to and that are not there yet.
    fn add_templates<'a>(
        &self,
        wanted: impl Iterator<Item = &'a Data>,
        batch: &mut Batch,
    ) -> BTreeSet<Template> {
        let Some(context) = &self.context else {
            return BTreeSet::new();
        };
        let new: BTreeSet<_> = wanted
            .filter_map(template_of)
            .filter(|template| !self.templates.contains(template))
            .collect();
        for template in &new {
            let (chain, rules) = template.chain(self.family, context);
            batch.add_chain(&chain);
            for rule in &rules {
                batch.add_rule(&chain.name, rule);
            }
        }
        new
    }

    /// The chains that the mirror's verdicts lead to.
    fn used_templates(&self) -> BTreeSet<Template> {
        let data = self.mirror.values().flat_map(Elements::data);
        data.filter_map(|data| template_of(&data)).collect()
    }

    /// Housekeeping: a template that no Service uses any more is kept until now, since the next one may want it.
    fn drop_unused_templates(&mut self) -> Result<(), Error> {
        let used = self.used_templates();
        let unused: Vec<_> = self.templates.difference(&used).cloned().collect();
        let mut batch = Batch::new(&layout::table(self.family));
        for template in &unused {
            let name = template.to_string();
            batch.flush_chain(&name).delete_chain(&name);
        }
        self.nft.commit(&batch)?;
        self.templates = used;
        Ok(())
    }
}

/// Takes away the tables of versions of IP that are no longer served.
pub fn remove_unserved(context: &NodeContext) -> Result<(), Error> {
    let mut nft = Nft::open()?;
    for table in Packets::tables() {
        let family = ip_family(table.family);
        if !context.families.contains(&family) {
            nft.remove(&table)
                .map_err(|error| Error::from(error).of(family))?;
        }
    }
    Ok(())
}

/// The frontends that there are after these changes.
fn kept(changes: &[Change<'_>]) -> BTreeSet<FrontendKey> {
    let kept = changes.iter().flat_map(|change| change.new.frontends());
    kept.copied().collect()
}

/// The ports of a plan that take traffic in one version of IP.
fn ports(plan: &ServicePlan, family: IpFamily) -> impl Iterator<Item = (&PortKey, &PortPlan)> {
    let ports = plan.ports.iter();
    ports.filter(move |(key, port)| key.family == family && !port.frontends.is_empty())
}

fn template_of(data: &Data) -> Option<Template> {
    match data {
        Data::Verdict(verdict) => match verdict.as_ref() {
            Verdict::Goto(chain) => Template::parse(chain),
            _ => None,
        },
        _ => None,
    }
}
