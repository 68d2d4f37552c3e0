//! The plans of all Services at once, for whoever looks without a [`crate::Proxy`].

use std::collections::BTreeMap;
use std::sync::Arc;

use model::{ObjectName, Snapshot};

use crate::Claims;
use crate::plan::{NodeContext, ServicePlan, ServiceView, plan_service};

/// The plans of all Services, each without the frontends that another one has: what a proxy makes of the snapshot, and
/// what [`crate::verdict::decide`] is asked with.
#[must_use]
pub fn plans_of(snapshot: &Snapshot, context: &NodeContext) -> BTreeMap<ObjectName, Arc<ServicePlan>> {
    let (mut plans, mut claims) = (BTreeMap::new(), Claims::default());
    let nothing = ServicePlan::default();
    for (name, service) in snapshot.services.iter() {
        let view = ServiceView {
            service,
            slices: snapshot.slices_of(name).collect(),
        };
        let (plan, _) = plan_service(&view, context);
        claims.replace(name, &nothing, &plan);
        plans.insert(name.clone(), plan);
    }
    let owned = plans.into_iter().map(|(name, plan)| {
        let plan = plan.retain(|key| claims.owner(key) == Some(&name));
        (name, Arc::new(plan))
    });
    owned.collect()
}
