//! Who has a frontend when more than one Service wants it.
//!
//! The API server hands each address and node port out once, but a Service that takes over an address may be seen
//! before the deletion of the one that had it, and anybody may name any address as an external one. A ClusterIP is its
//! Service's before it is another's; else the owner is the claimant with the least name, so that the outcome does not
//! depend on the order of events. When it lets go, the next one gets the frontend.

use std::collections::{BTreeMap, BTreeSet};

use model::ObjectName;
use smallvec::SmallVec;

use crate::plan::{FrontendKey, ServicePlan};

/// All claims on all frontends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Claimants in order. Almost every frontend has one.
    claimants: BTreeMap<FrontendKey, SmallVec<[Claimant; 1]>>,
}

/// In the order of their rights.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claimant {
    /// It is not its own ClusterIP.
    foreign: bool,
    service: ObjectName,
}

impl Claims {
    /// Replaces what `service` claims and returns the services whose ownership of some frontend changed by it, itself
    /// not among them.
    pub fn replace(
        &mut self,
        service: &ObjectName,
        old: &ServicePlan,
        new: &ServicePlan,
    ) -> BTreeSet<ObjectName> {
        let claims = |plan: &ServicePlan| -> BTreeSet<_> {
            let claims = plan.frontends().map(|key| (*key, !plan.is_cluster_ip(key)));
            claims.collect()
        };
        let (old, new) = (claims(old), claims(new));
        let mut affected = BTreeSet::new();
        for (key, _) in old.difference(&new) {
            let was_owner = self.owner(key) == Some(service);
            if let Some(claimants) = self.claimants.get_mut(key) {
                claimants.retain(|claimant| claimant.service != *service);
                if claimants.is_empty() {
                    self.claimants.remove(key);
                }
            }
            affected.extend(self.owner(key).filter(|_| was_owner).cloned());
        }
        for (key, foreign) in new.difference(&old) {
            let before = self.owner(key).cloned();
            let claimants = self.claimants.entry(*key).or_default();
            let claimant = Claimant {
                foreign: *foreign,
                service: service.clone(),
            };
            if let Err(place) = claimants.binary_search(&claimant) {
                claimants.insert(place, claimant);
            }
            affected.extend(before.filter(|_| self.owner(key) == Some(service)));
        }
        affected.remove(service);
        affected
    }

    /// Who has the frontend.
    #[must_use]
    pub fn owner(&self, key: &FrontendKey) -> Option<&ObjectName> {
        let first = self.claimants.get(key)?.first()?;
        Some(&first.service)
    }
}
