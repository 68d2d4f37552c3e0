//! The proxy of one node: takes snapshots, keeps what it asked the kernel for, retries, repairs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::{Changed, Kind, ObjectName, Snapshot};
use netlink::nft::Monitor;

use crate::datapath::packets::Packets;
use crate::datapath::{Change, Datapath, NodeAddresses, NodeRole};
use crate::plan::{
    FrontendKey, HealthCheck, LocalTraffic, NodeContext, NodePortAddresses, Reason, Rejected, ServicePlan,
    ServiceView, plan_service,
};
use crate::report::{AuditReport, IptablesRules, SyncReport};
use crate::settings::{DetectLocal, Settings};
use crate::stale::{Forgotten, StaleFlows};
use crate::{Claims, Error, TRACE_TARGET};

mod kernel;

pub use kernel::Chains;

/// Tells, from any thread, when somebody else changes the proxy's table.
#[derive(Debug)]
pub struct DriftWatch(Monitor);

impl DriftWatch {
    /// Blocks until the table was changed by others (call [`Proxy::audit`] then); false when `timeout` passes first.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, Error> {
        Ok(self.0.wait(timeout)?)
    }
}

/// The proxy of one node.
#[derive(Debug)]
pub struct Proxy {
    settings: Settings,
    /// Whether the node's DNS server answers at [`Settings::local_dns`].
    dns_answers: bool,
    context: NodeContext,
    datapath: Box<dyn Datapath>,
    /// The renderer's connections to nftables, whose changes are no drift.
    own_ports: Vec<u32>,
    /// The last snapshot that was looked at.
    seen: Snapshot,
    /// What each Service wants, conflicts between Services aside.
    plans: BTreeMap<ObjectName, Arc<ServicePlan>>,
    claims: Claims,
    /// What the datapath was last asked for, successfully or not.
    asked: BTreeMap<ObjectName, Arc<ServicePlan>>,
    /// Services whose last change failed, with the plan that was in the kernel before.
    failed: BTreeMap<ObjectName, Arc<ServicePlan>>,
    /// Whether the next sync tries them again.
    retry: bool,
    /// Whether anything was asked for yet.
    began: bool,
    context_pending: bool,
    nodes_pending: bool,
    sweep_pending: bool,
    stale: StaleFlows,
}

impl Proxy {
    /// A proxy over any datapath.
    #[must_use]
    pub fn with_datapath(settings: Settings, datapath: Box<dyn Datapath>) -> Self {
        Self {
            context: settings.context(None),
            settings,
            dns_answers: true,
            datapath,
            own_ports: Vec::new(),
            seen: Snapshot::default(),
            plans: BTreeMap::new(),
            claims: Claims::default(),
            asked: BTreeMap::new(),
            failed: BTreeMap::new(),
            retry: false,
            began: false,
            context_pending: true,
            nodes_pending: true,
            sweep_pending: true,
            stale: StaleFlows::default(),
        }
    }

    /// Makes the kernel do what the snapshot says: plans what changed since the last one, and tries again what failed.
    /// Until the lists of Services, EndpointSlices and Nodes are complete nothing is done: a Service that is missing
    /// from an incomplete list is not gone, and without its zone a node would spread traffic over all zones for a
    /// moment.
    pub fn sync(&mut self, snapshot: &Snapshot) -> SyncReport {
        let kinds = [Kind::Service, Kind::EndpointSlice, Kind::Node];
        let lacks = |kind: &Kind| match kind {
            Kind::Node => !snapshot.is_synced(Kind::Node) || !(self.began || self.is_node_known(snapshot)),
            kind => !snapshot.is_synced(*kind),
        };
        let waiting_for: Vec<_> = kinds.into_iter().filter(lacks).collect();
        let mut report = SyncReport {
            waiting_for,
            ..SyncReport::default()
        };
        if !report.waiting_for.is_empty() {
            return report;
        }
        let started = Instant::now();
        let span = tracing::info_span!(target: TRACE_TARGET, "plan").entered();
        let mut changed = snapshot.changed_since(&self.seen);
        self.look_at_own_node(snapshot, &mut changed);
        let pending = self.plan(snapshot, &changed, &mut report);
        self.seen = snapshot.clone();
        self.nodes_pending |= !changed.nodes.is_empty() || changed.synced.contains(&Kind::Node);
        report.durations.plan = started.elapsed();
        drop(span);
        let started = Instant::now();
        let span = tracing::info_span!(target: TRACE_TARGET, "apply").entered();
        self.apply_context(&mut report);
        self.apply_nodes(&mut report);
        self.apply(pending, &mut report);
        self.sweep(&mut report);
        self.began = true;
        report.durations.apply = started.elapsed();
        drop(span);
        report
    }

    /// Tells whether the node's DNS server answers at [`Settings::local_dns`] from now on; the next sync acts on it.
    /// Until it is told, it does.
    pub fn set_dns_answers(&mut self, answers: bool) {
        self.dns_answers = answers;
    }

    /// Changes what plans are made by; the next sync plans everything anew where they depend on it. What was planned
    /// stays while the Node object is absent, or does not say what the new settings need of it.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Makes the next sync try again what failed. Otherwise it looks only at what changed, so that a Service that
    /// cannot be programmed does not cost anything at every change of another.
    pub fn retry_failed(&mut self) {
        self.retry = true;
    }

    /// Compares the fixed structure (attachments, pins, chains) with the kernel's and repairs it. Cheap: for every few
    /// seconds. When more than that was lost, everything is audited.
    pub fn audit_structure(&mut self) -> AuditReport {
        match self.datapath.repair() {
            Ok(repaired) if repaired.is_empty() => AuditReport::default(),
            Ok(repaired) => {
                let mut report = self.audit();
                report.repaired.splice(0..0, repaired);
                report
            }
            Err(error) => AuditReport {
                failures: vec![(None, error)],
                ..AuditReport::default()
            },
        }
    }

    /// Reads everything back from the kernel and repairs what differs from what was asked for. Before the first
    /// complete sync only the structure is looked at.
    pub fn audit(&mut self) -> AuditReport {
        let mut report = AuditReport::default();
        match self.datapath.reread() {
            Ok(repaired) => report.repaired = repaired,
            Err(error) => {
                report.failures.push((None, error));
                return report;
            }
        }
        if !self.began {
            return report;
        }
        let mut sync = SyncReport::default();
        self.nodes_pending = true;
        self.apply_nodes(&mut sync);
        let everything = self.asked.keys().cloned().collect();
        self.apply(everything, &mut sync);
        self.sweep_pending = true;
        self.sweep(&mut sync);
        if sync.writes > 0 || !report.repaired.is_empty() {
            self.add_lost_frontends();
        }
        report.writes = sync.writes;
        report.unswept = sync.unswept;
        report.failures.extend(
            sync.failures
                .into_iter()
                .map(|(service, error)| (Some(service), error)),
        );
        report
            .failures
            .extend(sync.common_failures.into_iter().map(|error| (None, error)));
        report
    }

    /// What was not whole may have let packets out untranslated.
    fn add_lost_frontends(&mut self) {
        for plan in self.asked.values() {
            self.stale.add_change(&ServicePlan::default(), plan);
        }
    }

    /// Verdicts of the socket hook so far on this node, by name; they outlive the process. Empty without the hook.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        self.datapath.counters()
    }

    /// What there is of iptables: nothing where another datapath works.
    #[must_use]
    pub fn iptables(&self) -> IptablesRules {
        self.datapath.iptables()
    }

    /// Whether something waits for the next sync although no object changed.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        !self.failed.is_empty() || self.context_pending || self.nodes_pending || self.sweep_pending
    }

    /// Whether the changes since the last look may have left flows that lead nowhere.
    #[must_use]
    pub fn has_stale_flows(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Makes connection tracking forget the flows that lead nowhere since the changes before, and ends such sockets.
    /// The kernel walks through everything that it tracks, which may take longer than a sync: once for several syncs.
    ///
    /// # Errors
    /// What was not done is left to the next call.
    pub fn forget_flows(&mut self) -> Result<Forgotten, Error> {
        if self.stale.is_empty() {
            return Ok(Forgotten::default());
        }
        self.stale
            .set_node_addresses(self.context.addresses.iter().copied());
        let forgotten = self.datapath.forget_flows(&self.stale)?;
        self.stale = StaleFlows::default();
        Ok(forgotten)
    }

    /// A watch on changes of the proxy's tables by others, to be waited for on a thread of its own. Must be called in
    /// the network namespace in which the proxy was opened. None over a datapath that is not the kernel's.
    pub fn watch_drift(&self) -> Result<Option<DriftWatch>, Error> {
        if self.own_ports.is_empty() {
            return Ok(None);
        }
        let monitor = Monitor::open(&Packets::tables(), &self.own_ports)?;
        Ok(Some(DriftWatch(monitor)))
    }

    /// Health check ports that load balancers ask, by Service.
    #[must_use]
    pub fn health_checks(&self) -> BTreeMap<ObjectName, HealthCheck> {
        let checks = self.plans.iter();
        checks
            .filter_map(|(name, plan)| Some((name.clone(), plan.health?)))
            .collect()
    }

    /// What plans are made for at present.
    #[must_use]
    pub fn context(&self) -> &NodeContext {
        &self.context
    }

    /// What each Service wants, conflicts between Services aside.
    #[must_use]
    pub fn plans(&self) -> &BTreeMap<ObjectName, Arc<ServicePlan>> {
        &self.plans
    }

    /// Whether what this node is told to take from its Node object is there.
    fn is_node_known(&self, snapshot: &Snapshot) -> bool {
        let node = snapshot.nodes.get(&self.settings.node);
        let context = self.settings.context(node.map(AsRef::as_ref));
        let has_networks = match (&self.settings.detect_local, &context.local_traffic) {
            (DetectLocal::NodeCidr, LocalTraffic::Networks(networks)) => !networks.is_empty(),
            _ => true,
        };
        let needs_addresses = self.settings.node_port_addresses == NodePortAddresses::Primary;
        has_networks && !(needs_addresses && context.addresses.is_empty())
    }

    /// A change of this node's own zone, addresses or networks, of whether its DNS answers, or of the Services'
    /// networks, is a change of every plan. While its Node object is absent, the last one holds: a node that is
    /// registered anew is still the same.
    fn look_at_own_node(&mut self, snapshot: &Snapshot, changed: &mut Changed) {
        let mut context = match snapshot.nodes.get(&self.settings.node) {
            Some(node) if !self.began || self.is_node_known(snapshot) => self.settings.context(Some(node)),
            None if !self.began => self.settings.context(None),
            _ => self.context.clone(),
        };
        context.dns_answers = self.dns_answers;
        let cidrs = snapshot.service_cidrs.iter();
        context.service_networks = cidrs
            .flat_map(|(_, cidr)| cidr.networks.iter().copied())
            .collect();
        if context != self.context {
            self.context = context;
            self.context_pending = true;
            changed
                .services
                .extend(snapshot.services.iter().map(|(name, _)| name.clone()));
        }
    }

    /// Plans what changed and returns the Services that the datapath must be asked about.
    fn plan(
        &mut self,
        snapshot: &Snapshot,
        changed: &Changed,
        report: &mut SyncReport,
    ) -> BTreeSet<ObjectName> {
        let mut pending = if std::mem::take(&mut self.retry) {
            self.datapath.try_again();
            self.failed.keys().cloned().collect()
        } else {
            BTreeSet::new()
        };
        let mut affected = BTreeSet::new();
        for name in &changed.services {
            let (plan, rejected) = match snapshot.services.get(name) {
                Some(service) => {
                    let view = ServiceView {
                        service,
                        slices: snapshot.slices_of(name).collect(),
                    };
                    plan_service(&view, &self.context)
                }
                None => Default::default(),
            };
            report.rejected.extend(rejected);
            let old = self.plans.get(name).cloned().unwrap_or_default();
            if *old == plan {
                continue;
            }
            affected.extend(self.claims.replace(name, &old, &plan));
            affected.insert(name.clone());
            if plan.is_empty() {
                self.plans.remove(name);
            } else {
                self.plans.insert(name.clone(), Arc::new(plan));
            }
        }
        for name in affected {
            let (plan, taken) = self.owned_plan(&name);
            report.rejected.extend(taken);
            if self
                .asked
                .get(&name)
                .map_or(!plan.is_empty(), |asked| *asked != plan)
            {
                pending.insert(name);
            }
        }
        pending
    }

    /// A Service's plan without the frontends that another Service has.
    fn owned_plan(&self, name: &ObjectName) -> (Arc<ServicePlan>, Vec<Rejected>) {
        let plan = self.plans.get(name).cloned().unwrap_or_default();
        if plan.frontends().all(|key| self.claims.owner(key) == Some(name)) {
            return (plan, Vec::new());
        }
        let mut rejected = Vec::new();
        let plan = Arc::unwrap_or_clone(plan).retain(|key| {
            let owner = self.claims.owner(key);
            if let Some(owner) = owner.filter(|owner| *owner != name) {
                let reason = Reason::Taken {
                    frontend: *key,
                    owner: owner.clone(),
                };
                rejected.push(Rejected {
                    service: name.clone(),
                    reason,
                });
            }
            owner == Some(name)
        });
        // Without a frontend its addresses are no matter of it either.
        let plan = if plan.is_empty() {
            ServicePlan::default()
        } else {
            plan
        };
        (Arc::new(plan), rejected)
    }

    fn apply(&mut self, pending: BTreeSet<ObjectName>, report: &mut SyncReport) {
        if self.apply_once(pending, report) {
            self.apply_everything_again(report);
        }
    }

    /// Somebody else changed the kernel's state in the middle of a sync: what was fine before may be gone.
    fn apply_everything_again(&mut self, report: &mut SyncReport) {
        let everything = self.plans.keys().cloned().collect();
        self.sweep_pending |= self.apply_once(everything, report);
        report.applied.sort_unstable();
        report.applied.dedup();
    }

    /// Asks the datapath for these Services; returns whether it found the kernel's state damaged.
    fn apply_once(&mut self, pending: BTreeSet<ObjectName>, report: &mut SyncReport) -> bool {
        let wanted: Vec<_> = pending
            .into_iter()
            .map(|name| (self.owned_plan(&name).0, self.asked_plan(&name), name))
            .collect();
        let changes: Vec<_> = wanted
            .iter()
            .map(|(new, old, service)| Change { service, old, new })
            .collect();
        let applied = self.datapath.apply(&changes);
        report.writes += applied.writes;
        report.durations.sockets += applied.in_sockets;
        self.sweep_pending |= applied.damaged;
        let failed: BTreeSet<_> = applied
            .failures
            .iter()
            .map(|(service, _)| service.clone())
            .collect();
        for (plan, old, name) in wanted {
            if failed.contains(&name) {
                self.remember_failed(name, plan, old);
            } else {
                self.remember_applied(name, plan, &old, report);
            }
        }
        report.failures.extend(applied.failures);
        applied.damaged
    }

    /// What a Service was asked for, without what another Service has by now: that is not its to remove.
    fn asked_plan(&self, name: &ObjectName) -> Arc<ServicePlan> {
        let asked = self.asked.get(name).cloned().unwrap_or_default();
        let is_its_own = |key: &FrontendKey| self.claims.owner(key).is_none_or(|owner| owner == name);
        if asked.frontends().all(is_its_own) {
            asked
        } else {
            Arc::new(Arc::unwrap_or_clone(asked).retain(is_its_own))
        }
    }

    /// After a failure the datapath may hold parts of the old plan and of the new one: both were asked for.
    fn remember_failed(&mut self, name: ObjectName, plan: Arc<ServicePlan>, old: Arc<ServicePlan>) {
        let asked = Arc::unwrap_or_clone(self.asked.remove(&name).unwrap_or_default());
        let both = asked.or(Arc::unwrap_or_clone(plan));
        self.asked.insert(name.clone(), Arc::new(both));
        self.failed.entry(name).or_insert(old);
    }

    fn remember_applied(
        &mut self,
        name: ObjectName,
        plan: Arc<ServicePlan>,
        old: &ServicePlan,
        report: &mut SyncReport,
    ) {
        // What failed may have been in the kernel in parts, or not at all.
        if let Some(before) = self.failed.remove(&name) {
            self.stale.add_change(&before, &plan);
        }
        self.stale.add_change(old, &plan);
        if plan.is_empty() {
            self.asked.remove(&name);
        } else {
            self.asked.insert(name.clone(), plan);
        }
        report.applied.push(name);
    }

    fn apply_context(&mut self, report: &mut SyncReport) {
        if !self.context_pending {
            return;
        }
        match self.datapath.set_context(&self.context) {
            Ok(writes) => {
                report.writes += writes;
                self.context_pending = false;
                self.nodes_pending = true;
            }
            Err(error) => report.common_failures.push(error),
        }
    }

    fn apply_nodes(&mut self, report: &mut SyncReport) {
        if !self.nodes_pending {
            return;
        }
        match self.datapath.set_nodes(&self.node_roles()) {
            Ok(writes) => {
                report.writes += writes;
                self.nodes_pending = false;
            }
            Err(error) => report.common_failures.push(error),
        }
    }

    /// Addresses on which nodes serve node ports.
    fn node_roles(&self) -> NodeAddresses {
        let mut roles = BTreeMap::new();
        for (name, node) in self.seen.nodes.iter() {
            if *name == self.context.name {
                continue;
            }
            let addresses = self.context.node_port_addresses_of(node);
            roles.extend(
                addresses
                    .into_iter()
                    .map(|address| (address, NodeRole::OtherNode)),
            );
        }
        let own = self.context.addresses.iter();
        let own = own.filter(|address| self.context.serves_node_ports_on(**address));
        roles.extend(own.map(|address| (*address, NodeRole::ThisNode)));
        NodeAddresses {
            roles,
            complete: self.seen.is_synced(Kind::Node),
        }
    }

    /// Once, after the first complete sync and after each audit: what nobody asked for is removed.
    fn sweep(&mut self, report: &mut SyncReport) {
        if !self.sweep_pending {
            return;
        }
        let asked: BTreeSet<_> = self
            .asked
            .values()
            .flat_map(|plan| plan.frontends())
            .copied()
            .collect();
        match self.datapath.sweep(&|key| asked.contains(key)) {
            Ok(swept) => {
                report.writes += swept.writes;
                for key in &swept.frontends {
                    self.stale.add_gone(key);
                }
                self.sweep_pending = false;
                if swept.damaged {
                    self.apply_everything_again(report);
                }
            }
            Err(error) => {
                report.unswept.extend(error.rules_of());
                report.common_failures.push(error);
            }
        }
    }
}
