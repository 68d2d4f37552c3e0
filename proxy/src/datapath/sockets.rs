//! The socket hook's maps, by revision.
//!
//! A changed list of endpoints is written under the next revision; then each frontend is switched to it by one write;
//! a second later, when no reader can be in the middle of the old list, that is removed. What says that a client may
//! stay with an endpoint is written before the switch where it is new, and taken away after it.
//!
//! The packet rules are complete under the hook: a Service for which a map has no room is taken out of the hook as a
//! whole, and works.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use ebpf::abi::net::Ip;
use ebpf::abi::service::{Frontend, FrontendKey as HookKey, NodeAddress};
use model::ObjectName;

use super::{Applied, Change, NodeAddresses, Swept};
use crate::Error;
use crate::plan::{Action, Admits, FrontendKey, PortKey, PortPlan};
use crate::stale::StaleFlows;

mod abi;
mod compact_map;
mod departed;
mod maps;
pub(crate) mod read_back;
mod tables;

use abi::{Lists, Members, affinity_seconds, flags_of, from_abi, node_address, to_abi};
pub use maps::{Contents, HookMaps};
use tables::{ListName, Tables};

/// How long a list that was replaced stays.
const GRACE: Duration = Duration::from_secs(1);

/// Renders plans into the maps of the socket hook.
#[derive(Debug)]
pub struct Sockets<M> {
    tables: Tables<M>,
    service_ids: BTreeMap<(ObjectName, PortKey), u32>,
    next_service: u32,
    replaced: VecDeque<(Instant, ListName)>,
}

impl<M: HookMaps> Sockets<M> {
    /// Reads back what is there.
    pub fn open(maps: M) -> Result<Self, Error> {
        let mut sockets = Self {
            tables: Tables::open(maps)?,
            service_ids: BTreeMap::new(),
            next_service: 1,
            replaced: VecDeque::new(),
        };
        sockets.skip_used_ids();
        Ok(sockets)
    }

    /// See [`super::Datapath::apply`].
    pub fn apply(&mut self, changes: &[Change<'_>]) -> Applied {
        let started = Instant::now();
        let mut failures = Vec::new();
        let kept: BTreeSet<_> = changes
            .iter()
            .flat_map(|change| change.new.frontends())
            .copied()
            .collect();
        if let Err(error) = self.remove_replaced(started) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "replaced endpoint lists could not be removed"
            );
        }
        // Housekeeping is not counted: an audit that finds writes has found damage.
        let before = self.tables.writes();
        for change in changes {
            if let Err(error) = self.apply_one(change, &kept) {
                failures.push((change.service.clone(), error));
            }
        }
        Applied {
            writes: self.tables.writes() - before,
            failures,
            damaged: false,
            in_sockets: started.elapsed(),
        }
    }

    /// See [`super::Datapath::sweep`].
    pub fn sweep(&mut self, wanted: &dyn Fn(&FrontendKey) -> bool) -> Result<Swept, Error> {
        let before = self.tables.writes();
        let mut swept = Swept::default();
        let keys: Vec<_> = self.tables.frontends().keys().copied().collect();
        for key in keys {
            let frontend = from_abi(&key);
            if frontend.is_some_and(|frontend| wanted(&frontend)) {
                continue;
            }
            self.remove_frontend(&key)?;
            swept.frontends.extend(frontend);
        }
        let waiting: BTreeSet<_> = self.replaced.iter().map(|(_, list)| *list).collect();
        self.tables.remove_orphans(&waiting)?;
        swept.writes = self.tables.writes() - before;
        Ok(swept)
    }

    /// See [`super::Datapath::set_nodes`].
    pub fn set_nodes(&mut self, nodes: &NodeAddresses) -> Result<u64, Error> {
        let before = self.tables.writes();
        let wanted: BTreeMap<Ip, NodeAddress> = nodes
            .roles
            .iter()
            .map(|(address, role)| (Ip::from(*address), node_address(*role)))
            .collect();
        // First, since it makes room.
        if nodes.complete {
            self.tables.retain_nodes(|address| wanted.contains_key(address))?;
        }
        for (address, value) in wanted {
            self.tables.put_node(address, value)?;
        }
        Ok(self.tables.writes() - before)
    }

    /// See [`super::Datapath::repair`].
    pub fn repair(&mut self) -> Result<Vec<String>, Error> {
        self.remove_replaced(Instant::now())?;
        self.tables.repair()
    }

    /// See [`super::Datapath::reread`].
    pub fn reread(&mut self) -> Result<Vec<String>, Error> {
        let repaired = self.tables.repair()?;
        self.tables.read_back()?;
        self.skip_used_ids();
        Ok(repaired)
    }

    /// See [`super::Datapath::forget_flows`].
    pub fn forget_flows(&mut self, stale: &StaleFlows) -> Result<usize, Error> {
        departed::forget(self.tables.maps_mut(), stale)
    }

    /// See [`super::Datapath::counters`].
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        self.tables.counters()
    }

    fn skip_used_ids(&mut self) {
        let used = self.tables.last_service();
        self.next_service = self.next_service.max(used.saturating_add(1));
    }

    fn apply_one(&mut self, change: &Change<'_>, kept: &BTreeSet<FrontendKey>) -> Result<(), Error> {
        let mut full = None;
        for (key, port) in &change.new.ports {
            match self.apply_port(change.service, key, port) {
                Err(error) if error.is_full() => {
                    self.withdraw(change.service, key, port)?;
                    full.get_or_insert(error);
                }
                result => result?,
            }
        }
        let gone = change.old.frontends().filter(|key| !kept.contains(*key));
        for key in gone.filter_map(to_abi) {
            self.remove_frontend(&key)?;
        }
        for port in change
            .old
            .ports
            .keys()
            .filter(|port| !change.new.ports.contains_key(*port))
        {
            self.service_ids.remove(&(change.service.clone(), port.clone()));
        }
        full.map_or(Ok(()), Err)
    }

    fn apply_port(&mut self, service: &ObjectName, key: &PortKey, plan: &PortPlan) -> Result<(), Error> {
        let mut frontends: BTreeMap<HookKey, Action> = BTreeMap::new();
        for (key, frontend) in &plan.frontends {
            let Some(key) = to_abi(key) else {
                continue;
            };
            match frontend.admits {
                Admits::Everyone => {
                    frontends.insert(key, frontend.action);
                }
                // Who the client is, the packet rules see.
                Admits::Sources => self.remove_frontend(&key)?,
            }
        }
        if frontends.is_empty() {
            return Ok(());
        }
        let id = self.service_id(service, key, &frontends)?;
        let lists = Lists::needed(plan, &frontends, key.protocol);
        let members = Members::needed(plan, &lists, key.protocol);
        let revision = self.write_lists(id, &lists)?;
        self.tables.add_members(id, &members)?;
        for (key, action) in frontends {
            let value = Frontend {
                service: id,
                revision,
                flags: flags_of(action),
                cluster: lists.cluster_len(),
                local: lists.local_len(),
                affinity_seconds: affinity_seconds(plan.affinity),
            };
            let left = self.tables.put_frontend(key, value)?;
            self.abandon(left)?;
        }
        self.tables.retain_members(id, &members)
    }

    /// Leaves a port of a Service to the packet rules: none of its frontends stays in the hook, which would lead to a
    /// list that is not written to its end, or to one of the past.
    fn withdraw(&mut self, service: &ObjectName, key: &PortKey, plan: &PortPlan) -> Result<(), Error> {
        for key in plan.frontends.keys().filter_map(to_abi) {
            self.remove_frontend(&key)?;
        }
        let Some(id) = self.service_ids.get(&(service.clone(), key.clone())).copied() else {
            return Ok(());
        };
        let keys: Vec<_> = self.tables.frontends_of(id).copied().collect();
        for key in keys {
            self.remove_frontend(&key)?;
        }
        let waiting: BTreeSet<_> = self.replaced.iter().map(|(_, list)| *list).collect();
        for list in self.tables.lists_of(id) {
            if !waiting.contains(&list) {
                self.tables.remove_list(list)?;
            }
        }
        self.tables.retain_members(id, &Members::default())
    }

    /// The id of a port of a Service: the one it had, also in an earlier process, unless that is another's by now.
    fn service_id(
        &mut self,
        service: &ObjectName,
        port: &PortKey,
        frontends: &BTreeMap<HookKey, Action>,
    ) -> Result<u32, Error> {
        let owner = (service.clone(), port.clone());
        if let Some(id) = self.service_ids.get(&owner) {
            return Ok(*id);
        }
        let present = self.tables.frontends();
        let found = frontends
            .keys()
            .find_map(|key| present.get(key))
            .map(|frontend| frontend.service);
        // All its frontends must be this port's: an id that two ports share is nobody's.
        let ours = |id: &u32| {
            let mut keys = self.tables.frontends_of(*id);
            keys.all(|key| frontends.contains_key(key))
        };
        let id = match found.filter(ours) {
            Some(id) => id,
            None => {
                let id = self.next_service;
                self.next_service = id.checked_add(1).ok_or(Error::Exhausted { what: "service id" })?;
                id
            }
        };
        self.service_ids.insert(owner, id);
        Ok(id)
    }

    /// Makes the lists available under some revision and returns it: the present one where nothing changed.
    fn write_lists(&mut self, service: u32, lists: &Lists) -> Result<u16, Error> {
        let current = self.tables.revision(service);
        let is_current = |revision: &u16| self.tables.lists((service, *revision)) == *lists;
        if let Some(revision) = current.filter(is_current) {
            return Ok(revision);
        }
        let revision = self.tables.free_revision(service, current.unwrap_or(0))?;
        self.tables.write_lists((service, revision), lists)?;
        if let Some(replaced) = current {
            self.replaced.push_back((Instant::now(), (service, replaced)));
        }
        Ok(revision)
    }

    fn remove_frontend(&mut self, key: &HookKey) -> Result<(), Error> {
        let left = self.tables.remove_frontend(key)?;
        self.abandon(left)
    }

    /// The last list of a service id that is used no more is replaced by nothing, and no client stays with it.
    fn abandon(&mut self, list: Option<ListName>) -> Result<(), Error> {
        let Some((service, revision)) = list else {
            return Ok(());
        };
        self.replaced.push_back((Instant::now(), (service, revision)));
        self.tables.retain_members(service, &Members::default())
    }

    /// Removes lists that were replaced more than [`GRACE`] ago.
    fn remove_replaced(&mut self, now: Instant) -> Result<(), Error> {
        while let Some((since, list)) = self.replaced.front().copied() {
            if now.duration_since(since) < GRACE {
                break;
            }
            if !self.tables.is_referenced(list) {
                self.tables.remove_list(list)?;
            }
            self.replaced.pop_front();
        }
        Ok(())
    }
}
