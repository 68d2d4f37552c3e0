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
    last: u32,
    services: BTreeMap<ObjectName, u32>,
    last_service: u32,
}

impl Ids {
    /// Gives out no id again that is among these.
    pub(super) fn not_below(&mut self, ids: BTreeSet<u32>) {
        self.last = self.last.max(ids.last().copied().unwrap_or_default());
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
        let id = self.unowned(plan, mirror).unwrap_or_else(|| {
            // invariant: a thousand new ports a second take 49 days to use all up, and the next process starts over.
            self.last = self.last.wrapping_add(1);
            self.last
        });
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

    /// An id that a frontend of the port has in the kernel and that belongs to nobody.
    fn unowned(&self, plan: &PortPlan, mirror: &Mirror) -> Option<u32> {
        let mut ids = plan.frontends.keys().filter_map(|key| id_of(*key, mirror));
        ids.find(|id| !self.taken.contains(id))
    }
}
