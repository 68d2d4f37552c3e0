//! Ids of ports of Services, and numbers of Services.

use std::collections::{BTreeMap, BTreeSet};

use model::ObjectName;

use super::Mirror;
use super::elements::id_of;
use crate::plan::{PortKey, PortPlan};

type Owner = (ObjectName, PortKey);

/// Who has which id.
#[derive(Debug, Default)]
pub(super) struct Ids {
    by_owner: BTreeMap<Owner, u32>,
    /// Ids that are somebody's.
    taken: BTreeSet<u32>,
    /// Ids that frontends had in the kernel when it was read last, with how many frontends had them.
    in_kernel: BTreeMap<u32, usize>,
    last: u32,
    services: BTreeMap<ObjectName, u32>,
    last_service: u32,
}

impl Ids {
    /// Takes note of the ids that frontends have in the kernel, and of how many frontends have each.
    pub(super) fn found(&mut self, ids: BTreeMap<u32, usize>) {
        self.last = self.last.max(ids.keys().next_back().copied().unwrap_or_default());
        self.in_kernel = ids;
    }

    /// The id of a port of a Service: the one it had, also in an earlier process, unless that is another's by now.
    pub(super) fn of(
        &mut self,
        service: &ObjectName,
        key: &PortKey,
        plan: &PortPlan,
        mirror: &Mirror,
    ) -> u32 {
        let owner = (service.clone(), key.clone());
        if let Some(id) = self.by_owner.get(&owner) {
            return *id;
        }
        let id = self.unowned(plan, mirror).unwrap_or_else(|| self.next());
        self.by_owner.insert(owner, id);
        self.taken.insert(id);
        id
    }

    /// Takes the id away from a port that is gone, and returns it.
    pub(super) fn release(
        &mut self,
        service: &ObjectName,
        key: &PortKey,
        plan: &PortPlan,
        mirror: &Mirror,
    ) -> Option<u32> {
        let Some(id) = self.by_owner.remove(&(service.clone(), key.clone())) else {
            return self.unowned(plan, mirror);
        };
        self.taken.remove(&id);
        Some(id)
    }

    /// The number of a Service, of this process alone.
    pub(super) fn of_service(&mut self, service: &ObjectName) -> u32 {
        if let Some(number) = self.services.get(service) {
            return *number;
        }
        self.last_service = self.last_service.wrapping_add(1);
        self.services.insert(service.clone(), self.last_service);
        self.last_service
    }

    /// Takes the number away from a Service that shares nothing any more.
    pub(super) fn release_service(&mut self, service: &ObjectName) {
        self.services.remove(service);
    }

    /// An id that nobody has. There are far more than ports: one is always found.
    fn next(&mut self) -> u32 {
        loop {
            self.last = self.last.wrapping_add(1);
            if !self.taken.contains(&self.last) && !self.in_kernel.contains_key(&self.last) {
                return self.last;
            }
        }
    }

    /// An id that frontends of the port have in the kernel, and that nobody else has, neither here nor there: an id that
    /// two ports share is nobody's.
    fn unowned(&self, plan: &PortPlan, mirror: &Mirror) -> Option<u32> {
        let ids: Vec<u32> = plan
            .frontends
            .keys()
            .filter_map(|key| id_of(*key, mirror))
            .collect();
        let is_its_own = |id: &u32| {
            let count = ids.iter().filter(|other| *other == id).count();
            self.in_kernel.get(id) == Some(&count)
        };
        ids.iter()
            .find(|id| !self.taken.contains(id) && is_its_own(id))
            .copied()
    }
}
