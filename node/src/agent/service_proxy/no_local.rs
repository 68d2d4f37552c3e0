//! Ports of Services whose policy Local finds no endpoint on this node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::{IpFamily, ObjectName};
use proxy::ServicePlan;
use proxy::plan::{Action, PortPlan};

/// Which of a Service's policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// `internalTrafficPolicy`.
    Internal,
    /// `externalTrafficPolicy`.
    External,
}

impl Policy {
    /// kube-proxy's name for it in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::External => "external",
        }
    }
}

/// The ports, by Service. Those that have no endpoint anywhere are not among them: their clients are refused.
#[derive(Debug, Default)]
pub struct NoLocalEndpoints {
    ports: BTreeMap<ObjectName, Vec<(IpFamily, Policy)>>,
}

impl NoLocalEndpoints {
    /// Looks at plans that changed. None: at all.
    pub fn update(
        &mut self,
        plans: &BTreeMap<ObjectName, Arc<ServicePlan>>,
        changed: Option<&BTreeSet<ObjectName>>,
    ) {
        let Some(changed) = changed else {
            let all = plans
                .iter()
                .map(|(service, plan)| (service.clone(), lacking(plan)));
            self.ports = all.filter(|(_, ports)| !ports.is_empty()).collect();
            return;
        };
        for service in changed {
            let ports = plans.get(service).map(|plan| lacking(plan)).unwrap_or_default();
            if ports.is_empty() {
                self.ports.remove(service);
            } else {
                self.ports.insert(service.clone(), ports);
            }
        }
    }

    /// How many ports there are.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<(IpFamily, Policy), u64> {
        let mut totals = BTreeMap::new();
        for port in self.ports.values().flatten() {
            *totals.entry(*port).or_default() += 1;
        }
        totals
    }
}

fn lacking(plan: &ServicePlan) -> Vec<(IpFamily, Policy)> {
    let ports = plan.ports.iter();
    ports
        .flat_map(|(key, port)| policies(port).into_iter().map(|policy| (key.family, policy)))
        .collect()
}

fn policies(port: &PortPlan) -> BTreeSet<Policy> {
    let policies = port
        .frontends
        .values()
        .filter_map(|frontend| match frontend.action {
            Action::Drop => Some(Policy::Internal),
            Action::Split if port.local.is_empty() => Some(Policy::External),
            Action::Split | Action::Spread { .. } | Action::Refuse => None,
        });
    policies.collect()
}

#[cfg(test)]
mod tests {
    use model::{EndpointSlice, Service, TrafficPolicy};
    use proxy::{NodeContext, ServiceView, plan_service};

    use super::super::samples::{self, name};
    use super::*;

    fn plan(service: &Service, addresses: &[&str]) -> ServicePlan {
        let slice = EndpointSlice {
            endpoints: addresses
                .iter()
                .map(|address| samples::endpoint(address))
                .collect(),
            ..samples::slice("web-1", "web")
        };
        let view = ServiceView {
            service,
            slices: vec![&slice],
        };
        let context = NodeContext::new("node-1".into(), ["10.244.0.0/16".parse().expect("a network")]);
        plan_service(&view, &context).0
    }

    #[test]
    fn ports_are_counted_whose_policy_finds_endpoints_elsewhere_only() {
        let with = |internal_policy, external_policy| Service {
            internal_policy,
            external_policy,
            ..samples::with_node_port("web", 30_080)
        };
        let (local, cluster) = (TrafficPolicy::Local, TrafficPolicy::Cluster);
        let elsewhere: &[_] = &["10.244.9.2"];
        let internal = ((IpFamily::V4, Policy::Internal), 1);
        let external = ((IpFamily::V4, Policy::External), 1);
        let rows = [
            (cluster, cluster, elsewhere, vec![]),
            (local, cluster, elsewhere, vec![internal]),
            (cluster, local, elsewhere, vec![external]),
            (local, local, elsewhere, vec![internal, external]),
            (local, local, &[], vec![]),
        ];
        for (internal, external, addresses, expected) in rows {
            let plans = BTreeMap::from([(name("web"), Arc::new(plan(&with(internal, external), addresses)))]);
            let expected: BTreeMap<_, _> = expected.into_iter().collect();
            let mut counts = NoLocalEndpoints::default();
            counts.update(&plans, None);
            assert_eq!(counts.totals(), expected);
            let web = BTreeSet::from([name("web")]);
            counts.update(&plans, Some(&web));
            assert_eq!(counts.totals(), expected, "the same again");
            counts.update(&BTreeMap::new(), Some(&web));
            assert_eq!(counts.totals(), BTreeMap::new(), "the Service is gone");
        }
    }
}
