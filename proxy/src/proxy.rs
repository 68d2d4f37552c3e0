//! The proxy of one node: takes snapshots, keeps what it asked the kernel for, retries, repairs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::{Changed, Kind, ObjectName, Snapshot};
use netlink::nft::{Monitor, Nft};

use crate::datapath::iptables::Iptables;
use crate::datapath::packets::Packets;
use crate::datapath::sockets::Sockets;
use crate::datapath::{Change, Datapath, Kernel, NodeAddresses, NodeRole};
use crate::plan::{
    HealthCheck, NodeContext, NodePortAddresses, Reason, Rejected, ServicePlan, ServiceView, plan_service,
};
use crate::report::{AuditReport, SyncReport};
use crate::settings::{Config, DatapathKind, Settings};
use crate::stale::StaleFlows;
use crate::{Claims, Error};

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
    /// Services whose last change failed.
    failed: BTreeSet<ObjectName>,
    context_pending: bool,
    nodes_pending: bool,
    sweep_pending: bool,
    stale: StaleFlows,
}

impl Proxy {
    /// Opens the kernel's interfaces in the network namespace of the calling thread, reads back what an earlier
    /// process left there, and changes nothing of it: the first [`Proxy::sync`] writes only what differs.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let context = config.settings.context(None);
        let (datapath, own_ports) = open_datapath(&config.datapath, &context)?;
        let mut proxy = Self::with_datapath(config.settings.clone(), datapath);
        proxy.own_ports = own_ports;
        Ok(proxy)
    }

    /// Takes all that is the proxy's out of the kernel: Services stop working on this node. For leaving a node for
    /// good; a proxy that only ends leaves everything in place.
    pub fn uninstall(config: &Config) -> Result<(), Error> {
        match &config.datapath {
            DatapathKind::Ebpf { pin_dir, .. } => {
                // What fails of the one is told when the other is gone too.
                let hook = ebpf::SocketHook::remove(pin_dir);
                let rules = remove_tables();
                hook?;
                rules
            }
            DatapathKind::Nftables => remove_tables(),
            DatapathKind::Iptables { .. } => Iptables::remove(&config.settings.context(None)),
        }
    }

    /// Takes out of the kernel what a datapath that ran here before this one left, so that no hook and no rule decides
    /// by lists that nobody keeps up. For when a sync of this one succeeded.
    pub fn remove_other_datapaths(config: &Config, pin_dir: &Path) -> Result<(), Error> {
        let hook = match &config.datapath {
            DatapathKind::Ebpf { .. } => Ok(()),
            DatapathKind::Nftables | DatapathKind::Iptables { .. } => ebpf::SocketHook::remove(pin_dir),
        };
        let rules = match &config.datapath {
            DatapathKind::Ebpf { .. } | DatapathKind::Nftables => Ok(()),
            DatapathKind::Iptables { .. } => remove_tables(),
        };
        hook?;
        rules
    }

    /// A proxy over any datapath.
    #[must_use]
    pub fn with_datapath(settings: Settings, datapath: Box<dyn Datapath>) -> Self {
        Self {
            context: settings.context(None),
            settings,
            datapath,
            own_ports: Vec::new(),
            seen: Snapshot::default(),
            plans: BTreeMap::new(),
            claims: Claims::default(),
            asked: BTreeMap::new(),
            failed: BTreeSet::new(),
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
        let waiting_for: Vec<_> = kinds
            .into_iter()
            .filter(|kind| !snapshot.is_synced(*kind))
            .collect();
        let mut report = SyncReport {
            waiting_for,
            ..SyncReport::default()
        };
        if !report.waiting_for.is_empty() {
            return report;
        }
        let started = Instant::now();
        let mut changed = snapshot.changed_since(&self.seen);
        self.look_at_own_node(snapshot, &mut changed);
        let pending = self.plan(snapshot, &changed, &mut report);
        self.seen = snapshot.clone();
        self.nodes_pending |= !changed.nodes.is_empty() || changed.synced.contains(&Kind::Node);
        report.durations.plan = started.elapsed();
        let started = Instant::now();
        self.apply_context(&mut report);
        self.apply_nodes(&mut report);
        self.apply(pending, &mut report);
        self.sweep(&mut report);
        self.forget_flows(&mut report);
        report.durations.apply = started.elapsed();
        report
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
        if self.sweep_pending {
            return report;
        }
        let mut sync = SyncReport::default();
        self.nodes_pending = true;
        self.apply_nodes(&mut sync);
        let everything = self.asked.keys().cloned().collect();
        self.apply(everything, &mut sync);
        self.sweep_pending = true;
        self.sweep(&mut sync);
        report.writes = sync.writes;
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

    /// Verdicts of the socket hook so far on this node, by name; they outlive the process. Empty without the hook.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        self.datapath.counters()
    }

    /// Whether something waits for the next sync although no object changed.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        !self.failed.is_empty()
            || self.context_pending
            || self.nodes_pending
            || self.sweep_pending
            || !self.stale.is_empty()
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

    /// A change of this node's own zone, addresses or networks is a change of every plan.
    fn look_at_own_node(&mut self, snapshot: &Snapshot, changed: &mut Changed) {
        let node = snapshot.nodes.get(&self.settings.node);
        let context = self.settings.context(node.map(AsRef::as_ref));
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
        let mut pending = self.failed.clone();
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
        (Arc::new(plan), rejected)
    }

    fn apply(&mut self, pending: BTreeSet<ObjectName>, report: &mut SyncReport) {
        let wanted: Vec<_> = pending
            .into_iter()
            .map(|name| (self.owned_plan(&name).0, name))
            .collect();
        let nothing = Arc::default();
        let changes: Vec<_> = wanted
            .iter()
            .map(|(new, service)| Change {
                service,
                old: self.asked.get(service).unwrap_or(&nothing),
                new,
            })
            .collect();
        for Change { old, new, .. } in &changes {
            self.stale.add_change(old, new);
        }
        let applied = self.datapath.apply(&changes);
        report.writes += applied.writes;
        self.sweep_pending |= applied.damaged;
        let failed: BTreeSet<_> = applied
            .failures
            .iter()
            .map(|(service, _)| service.clone())
            .collect();
        for (plan, name) in wanted {
            self.remember(name, plan, &failed, report);
        }
        report.failures.extend(applied.failures);
        if applied.damaged {
            self.apply_everything_again(report);
        }
    }

    /// After a failure the datapath may hold parts of the old plan and of the new one: both were asked for.
    fn remember(
        &mut self,
        name: ObjectName,
        plan: Arc<ServicePlan>,
        failed: &BTreeSet<ObjectName>,
        report: &mut SyncReport,
    ) {
        if failed.contains(&name) {
            let old = Arc::unwrap_or_clone(self.asked.remove(&name).unwrap_or_default());
            let both = old.or(Arc::unwrap_or_clone(plan));
            self.asked.insert(name.clone(), Arc::new(both));
            self.failed.insert(name);
            return;
        }
        self.failed.remove(&name);
        if plan.is_empty() {
            self.asked.remove(&name);
        } else {
            self.asked.insert(name.clone(), plan);
        }
        report.applied.push(name);
    }

    /// Somebody else changed the kernel's state in the middle of a sync: what was fine before may be gone.
    fn apply_everything_again(&mut self, report: &mut SyncReport) {
        let names = self.plans.keys().cloned().collect::<Vec<_>>();
        let wanted: Vec<_> = names
            .into_iter()
            .map(|name| (self.owned_plan(&name).0, name))
            .collect();
        let changes: Vec<_> = wanted
            .iter()
            .map(|(new, service)| Change {
                service,
                old: self.asked.get(service).unwrap_or(new),
                new,
            })
            .collect();
        let applied = self.datapath.apply(&changes);
        report.writes += applied.writes;
        self.failed
            .extend(applied.failures.iter().map(|(service, _)| service.clone()));
        report.failures.extend(applied.failures);
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
            let addresses = node.internal_addresses.iter().chain(&node.external_addresses);
            let addresses = addresses.filter(|address| self.serves_node_ports(**address));
            roles.extend(addresses.map(|address| (*address, NodeRole::OtherNode)));
        }
        let own = self.context.addresses.iter();
        let own = own.filter(|address| self.context.serves_node_ports_on(**address));
        roles.extend(own.map(|address| (*address, NodeRole::ThisNode)));
        NodeAddresses {
            roles,
            complete: self.seen.is_synced(Kind::Node),
        }
    }

    /// Whether another node serves node ports on its address, if it is told what this one is told.
    fn serves_node_ports(&self, address: IpAddr) -> bool {
        match &self.settings.node_port_addresses {
            NodePortAddresses::Networks(_) => self.context.serves_node_ports_on(address),
            NodePortAddresses::All | NodePortAddresses::Primary => true,
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
            }
            Err(error) => report.common_failures.push(error),
        }
    }

    fn forget_flows(&mut self, report: &mut SyncReport) {
        if self.stale.is_empty() {
            return;
        }
        match self.datapath.forget_flows(&self.stale) {
            Ok(count) => {
                report.stale_flows = count;
                self.stale = StaleFlows::default();
            }
            Err(error) => report.common_failures.push(error),
        }
    }
}

/// The kernel's interfaces for a datapath, and its connections to nftables.
fn open_datapath(kind: &DatapathKind, context: &NodeContext) -> Result<(Box<dyn Datapath>, Vec<u32>), Error> {
    if let DatapathKind::Iptables { variant } = kind {
        return Ok((Box::new(Iptables::open(context, *variant)?), Vec::new()));
    }
    let packets = Packets::open_all(context)?;
    let own_ports = packets.iter().map(Packets::port).collect();
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let sockets = match kind {
        DatapathKind::Ebpf { cgroup, pin_dir } => {
            let hook = ebpf::SocketHook::open(&ebpf::HookConfig {
                cgroup: cgroup.clone(),
                pin_dir: pin_dir.clone(),
                capacity: ebpf::Capacity::default(),
                loopback: loopback
                    .iter()
                    .any(|address| context.serves_node_ports_on(*address)),
            })?;
            Some(Sockets::open(hook)?)
        }
        DatapathKind::Nftables | DatapathKind::Iptables { .. } => None,
    };
    Ok((Box::new(Kernel { packets, sockets }), own_ports))
}

fn remove_tables() -> Result<(), Error> {
    let mut nft = Nft::open()?;
    let removed = Packets::tables().map(|table| nft.remove(&table));
    Ok(removed.into_iter().collect::<Result<_, _>>()?)
}
