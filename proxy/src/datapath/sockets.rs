//! The socket hook's maps, by revision.
//!
//! A changed list of endpoints is written under the next revision; then each frontend is switched to it by one write;
//! a second later, when no reader can be in the middle of the old list, that is removed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use ebpf::abi::net::{Ip4, Port};
use ebpf::abi::service::{Endpoint4, Frontend, FrontendKey4, NodeAddress, SlotKey};
use model::ObjectName;

use super::{Applied, Change, NodeAddresses, Swept};
use crate::Error;
use crate::plan::{Action, FrontendKey, PortKey, PortPlan};

mod abi;
mod maps;

use abi::{Lists, Target4, flags_of, from_abi, ip4, node_address, to_abi};
pub use maps::{Contents, HookMaps};

/// How long a list that was replaced stays.
const GRACE: Duration = Duration::from_secs(1);

/// Renders plans into the maps of the socket hook.
#[derive(Debug)]
pub struct Sockets<M> {
    maps: M,
    mirror: Contents,
    /// Frontends of each service id.
    frontends_of: BTreeMap<u32, BTreeSet<FrontendKey4>>,
    /// Slots in which each endpoint id stands.
    uses: BTreeMap<u32, u32>,
    endpoint_ids: BTreeMap<(Ip4, Port, u8), u32>,
    service_ids: BTreeMap<(ObjectName, PortKey), u32>,
    next_service: u32,
    next_endpoint: u32,
    replaced: VecDeque<(Instant, u32, u16)>,
}

impl<M: HookMaps> Sockets<M> {
    /// Reads back what is there.
    pub fn open(maps: M) -> Result<Self, Error> {
        let mut sockets = Self {
            maps,
            mirror: Contents::default(),
            frontends_of: BTreeMap::new(),
            uses: BTreeMap::new(),
            endpoint_ids: BTreeMap::new(),
            service_ids: BTreeMap::new(),
            next_service: 1,
            next_endpoint: 1,
            replaced: VecDeque::new(),
        };
        sockets.read_back()?;
        Ok(sockets)
    }

    /// See [`super::Datapath::apply`].
    pub fn apply(&mut self, changes: &[Change<'_>]) -> Applied {
        let mut failures = Vec::new();
        let kept: BTreeSet<_> = changes
            .iter()
            .flat_map(|change| change.new.frontends())
            .copied()
            .collect();
        if let Err(error) = self.remove_replaced(Instant::now()) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "replaced endpoint lists could not be removed"
            );
        }
        // Housekeeping is not counted: an audit that finds writes has found damage.
        let before = self.maps.writes();
        for change in changes {
            if let Err(error) = self.apply_one(change, &kept) {
                failures.push((change.service.clone(), error));
            }
        }
        Applied {
            writes: self.maps.writes() - before,
            failures,
            damaged: false,
        }
    }

    /// See [`super::Datapath::sweep`].
    pub fn sweep(&mut self, wanted: &dyn Fn(&FrontendKey) -> bool) -> Result<Swept, Error> {
        let before = self.maps.writes();
        let mut swept = Swept::default();
        let keys: Vec<_> = self.mirror.frontends.keys().copied().collect();
        for key in keys {
            let frontend = from_abi(&key);
            if frontend.is_some_and(|frontend| wanted(&frontend)) {
                continue;
            }
            self.remove_frontend(&key)?;
            swept.frontends.extend(frontend);
        }
        self.remove_orphans()?;
        swept.writes = self.maps.writes() - before;
        Ok(swept)
    }

    /// See [`super::Datapath::set_nodes`].
    pub fn set_nodes(&mut self, nodes: &NodeAddresses) -> Result<u64, Error> {
        let before = self.maps.writes();
        let wanted: BTreeMap<Ip4, NodeAddress> = nodes
            .roles
            .iter()
            .filter_map(|(address, role)| Some((ip4(*address)?, node_address(*role))))
            .collect();
        for (address, value) in &wanted {
            if self.mirror.nodes.get(address) != Some(value) {
                self.maps.put_node(*address, *value)?;
                self.mirror.nodes.insert(*address, *value);
            }
        }
        let unwanted = self
            .mirror
            .nodes
            .keys()
            .filter(|address| nodes.complete && !wanted.contains_key(*address));
        for address in unwanted.copied().collect::<Vec<_>>() {
            self.maps.remove_node(&address)?;
            self.mirror.nodes.remove(&address);
        }
        Ok(self.maps.writes() - before)
    }

    /// See [`super::Datapath::repair`].
    pub fn repair(&mut self) -> Result<Vec<String>, Error> {
        self.remove_replaced(Instant::now())?;
        self.maps.repair()
    }

    /// See [`super::Datapath::reread`].
    pub fn reread(&mut self) -> Result<Vec<String>, Error> {
        let repaired = self.maps.repair()?;
        self.read_back()?;
        Ok(repaired)
    }

    /// See [`super::Datapath::counters`].
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        self.maps.counters()
    }

    fn read_back(&mut self) -> Result<(), Error> {
        self.mirror = self.maps.contents()?;
        self.frontends_of.clear();
        for (key, frontend) in &self.mirror.frontends {
            self.frontends_of
                .entry(frontend.service)
                .or_default()
                .insert(*key);
        }
        self.uses.clear();
        for id in self.mirror.slots.values() {
            *self.uses.entry(*id).or_default() += 1;
        }
        let endpoints = self.mirror.endpoints.iter();
        self.endpoint_ids = endpoints
            .map(|(id, e)| ((e.addr, e.port, e.proto), *id))
            .collect();
        let services = self.mirror.slots.keys().map(|slot| slot.service);
        let services = services.chain(self.mirror.frontends.values().map(|frontend| frontend.service));
        self.next_service = self
            .next_service
            .max(services.max().unwrap_or(0).saturating_add(1));
        let endpoints = self.mirror.endpoints.keys().next_back();
        self.next_endpoint = self
            .next_endpoint
            .max(endpoints.copied().unwrap_or(0).saturating_add(1));
        Ok(())
    }

    fn apply_one(&mut self, change: &Change<'_>, kept: &BTreeSet<FrontendKey>) -> Result<(), Error> {
        for (key, port) in &change.new.ports {
            self.apply_port(change.service, key, port)?;
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
        Ok(())
    }

    fn apply_port(&mut self, service: &ObjectName, key: &PortKey, plan: &PortPlan) -> Result<(), Error> {
        let frontends: BTreeMap<_, _> = plan
            .frontends
            .iter()
            .filter_map(|(key, action)| Some((to_abi(key)?, *action)))
            .collect();
        if frontends.is_empty() {
            return Ok(());
        }
        let id = self.service_id(service, key, &frontends)?;
        let lists = Lists::needed(plan, &frontends, key.protocol);
        let revision = self.write_lists(id, &lists)?;
        for (key, action) in frontends {
            let value = Frontend {
                service: id,
                revision,
                flags: flags_of(action),
                cluster: lists.cluster_len(),
                local: lists.local_len(),
                affinity_seconds: 0,
            };
            self.put_frontend(key, value)?;
        }
        Ok(())
    }

    /// The id of a port of a Service: the one it had, also in an earlier process, unless that is another's by now.
    fn service_id(
        &mut self,
        service: &ObjectName,
        port: &PortKey,
        frontends: &BTreeMap<FrontendKey4, Action>,
    ) -> Result<u32, Error> {
        let owner = (service.clone(), port.clone());
        if let Some(id) = self.service_ids.get(&owner) {
            return Ok(*id);
        }
        let found = frontends
            .keys()
            .find_map(|key| self.mirror.frontends.get(key))
            .map(|frontend| frontend.service);
        // All its frontends must be this port's: an id that two ports share is nobody's.
        let ours = |id: &u32| {
            let keys = self.frontends_of.get(id);
            keys.is_some_and(|keys| keys.iter().all(|key| frontends.contains_key(key)))
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
        let current = self.revision(service);
        if let Some(revision) = current.filter(|revision| self.lists(service, *revision) == *lists) {
            return Ok(revision);
        }
        let revision = self.free_revision(service, current.unwrap_or(0))?;
        for (base, targets) in [(0, &lists.cluster), (SlotKey::LOCAL, &lists.local)] {
            for (target, slot) in targets.iter().zip(base..) {
                let endpoint = self.endpoint_id(*target)?;
                let key = SlotKey {
                    service,
                    revision,
                    slot,
                };
                self.maps.put_slot(key, endpoint)?;
                self.mirror.slots.insert(key, endpoint);
                *self.uses.entry(endpoint).or_default() += 1;
            }
        }
        if let Some(old) = current {
            self.replaced.push_back((Instant::now(), service, old));
        }
        Ok(revision)
    }

    fn revision(&self, service: u32) -> Option<u16> {
        let key = self.frontends_of.get(&service)?.first()?;
        self.mirror.frontends.get(key).map(|frontend| frontend.revision)
    }

    fn free_revision(&self, service: u32, current: u16) -> Result<u16, Error> {
        (1..u16::MAX)
            .map(|step| current.wrapping_add(step))
            .find(|revision| self.slots(service, *revision).next().is_none())
            .ok_or(Error::Exhausted { what: "revision" })
    }

    fn slots(&self, service: u32, revision: u16) -> impl Iterator<Item = (&SlotKey, &u32)> {
        let first = SlotKey {
            service,
            revision,
            slot: 0,
        };
        let last = SlotKey {
            service,
            revision,
            slot: u16::MAX,
        };
        self.mirror.slots.range(first..=last)
    }

    /// The lists as the kernel has them; an endpoint that is missing makes them differ from any that is wanted.
    fn lists(&self, service: u32, revision: u16) -> Lists {
        let mut lists = Lists::default();
        for (key, id) in self.slots(service, revision) {
            let missing = (Ip4::ANY, Port(0), 0);
            let target = self
                .mirror
                .endpoints
                .get(id)
                .map_or(missing, |e| (e.addr, e.port, e.proto));
            let list = if key.slot & SlotKey::LOCAL == 0 {
                &mut lists.cluster
            } else {
                &mut lists.local
            };
            list.push(target);
        }
        lists
    }

    fn endpoint_id(&mut self, target: Target4) -> Result<u32, Error> {
        if let Some(id) = self.endpoint_ids.get(&target) {
            return Ok(*id);
        }
        let id = self.next_endpoint;
        self.next_endpoint = id
            .checked_add(1)
            .ok_or(Error::Exhausted { what: "endpoint id" })?;
        let (addr, port, proto) = target;
        let endpoint = Endpoint4 {
            addr,
            port,
            proto,
            flags: 0,
            id,
            pad: 0,
        };
        self.maps.put_endpoint(id, endpoint)?;
        self.mirror.endpoints.insert(id, endpoint);
        self.endpoint_ids.insert(target, id);
        Ok(id)
    }

    fn put_frontend(&mut self, key: FrontendKey4, value: Frontend) -> Result<(), Error> {
        let old = self.mirror.frontends.get(&key).copied();
        if old == Some(value) {
            return Ok(());
        }
        self.maps.put_frontend(key, value)?;
        if let Some(old) = old.filter(|old| old.service != value.service) {
            self.forget_owner(&key, &old);
        }
        self.mirror.frontends.insert(key, value);
        self.frontends_of.entry(value.service).or_default().insert(key);
        Ok(())
    }

    fn remove_frontend(&mut self, key: &FrontendKey4) -> Result<(), Error> {
        if let Some(old) = self.mirror.frontends.get(key).copied() {
            self.maps.remove_frontend(key)?;
            self.mirror.frontends.remove(key);
            self.forget_owner(key, &old);
        }
        Ok(())
    }

    /// Takes a frontend from a service id; the last one's list is replaced by nothing.
    fn forget_owner(&mut self, key: &FrontendKey4, old: &Frontend) {
        let Some(keys) = self.frontends_of.get_mut(&old.service) else {
            return;
        };
        keys.remove(key);
        if keys.is_empty() {
            self.frontends_of.remove(&old.service);
            self.replaced
                .push_back((Instant::now(), old.service, old.revision));
        }
    }

    /// Removes lists that were replaced more than [`GRACE`] ago.
    fn remove_replaced(&mut self, now: Instant) -> Result<(), Error> {
        while let Some((since, service, revision)) = self.replaced.front().copied() {
            if now.duration_since(since) < GRACE {
                break;
            }
            if !self.is_referenced(service, revision) {
                self.remove_list(service, revision)?;
            }
            self.replaced.pop_front();
        }
        Ok(())
    }

    fn is_referenced(&self, service: u32, revision: u16) -> bool {
        let keys = self.frontends_of.get(&service).into_iter().flatten();
        keys.filter_map(|key| self.mirror.frontends.get(key))
            .any(|frontend| frontend.revision == revision)
    }

    fn remove_list(&mut self, service: u32, revision: u16) -> Result<(), Error> {
        let slots: Vec<_> = self
            .slots(service, revision)
            .map(|(key, id)| (*key, *id))
            .collect();
        for (key, id) in slots {
            self.maps.remove_slot(&key)?;
            self.mirror.slots.remove(&key);
            let uses = self.uses.entry(id).or_default();
            *uses = uses.saturating_sub(1);
            if *uses == 0 {
                self.uses.remove(&id);
                self.remove_endpoint(id)?;
            }
        }
        Ok(())
    }

    fn remove_endpoint(&mut self, id: u32) -> Result<(), Error> {
        if let Some(endpoint) = self.mirror.endpoints.get(&id).copied() {
            self.maps.remove_endpoint(&id)?;
            self.mirror.endpoints.remove(&id);
            let target = (endpoint.addr, endpoint.port, endpoint.proto);
            if self.endpoint_ids.get(&target) == Some(&id) {
                self.endpoint_ids.remove(&target);
            }
        }
        Ok(())
    }

    /// Removes lists and endpoints that nothing leads to, such as those of an update that a crash cut off.
    fn remove_orphans(&mut self) -> Result<(), Error> {
        let lists: BTreeSet<_> = self
            .mirror
            .slots
            .keys()
            .map(|slot| (slot.service, slot.revision))
            .collect();
        let waiting: BTreeSet<_> = self
            .replaced
            .iter()
            .map(|(_, service, revision)| (*service, *revision))
            .collect();
        for (service, revision) in lists.difference(&waiting) {
            if !self.is_referenced(*service, *revision) {
                self.remove_list(*service, *revision)?;
            }
        }
        let unused = self
            .mirror
            .endpoints
            .keys()
            .filter(|id| !self.uses.contains_key(id));
        for id in unused.copied().collect::<Vec<_>>() {
            self.remove_endpoint(id)?;
        }
        Ok(())
    }
}
