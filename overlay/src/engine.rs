//! The thread that keeps the kernel right: on new leases, on changes of pods, on kernel events that may concern us,
//! and every ten seconds regardless.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use model::lease::Lease;
use model::wiring::ROUTE_PROTOCOL;
use model::{ByFamily, IpFamily, Mtu, with_causes};
use netlink::nft::{Monitor, Nft, Repair, Table};
use netlink::{Event, Events, Group, Netlink};
use tokio::sync::watch;

use crate::error::Error;
use crate::flannel::NetworkConfig;
use crate::leaks::Leaks;
use crate::plan::{self, plan};
use crate::pods::wiring::{host_ifname, pod_mac};
use crate::pods::{Assigned, PodNetwork};
use crate::reconcile::{Devices, Mirror, Outcome, PodRoute, ensure_device, repair};
use crate::strangers::Strangers;
use crate::{fast_path, guard, host_ports, masquerade, subnet_env, underlay};

/// Everything is compared at least this often.
const AUDIT: Duration = Duration::from_secs(10);

/// Sooner where something failed.
const RETRY: Duration = Duration::from_secs(1);

/// Events come in bursts: wait for the rest of one.
const BURST: Duration = Duration::from_millis(30);

/// How often the listeners look whether they shall end.
const LISTEN: Duration = Duration::from_millis(500);

/// The network as leases tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) config: NetworkConfig,
    pub(crate) own: Lease,
    pub(crate) others: Vec<Lease>,
    /// These are all: what is not among them may be deleted.
    pub(crate) complete: bool,
}

/// How it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// MTU of pods; `None` before the first pass that reached the kernel.
    pub(crate) mtu: Option<Mtu>,
    /// What the kernel was made to have by the latest pass that knew.
    pub(crate) plan: Option<Arc<plan::Plan>>,
    /// How packets between pods pass through this node.
    pub(crate) fast_path: fast_path::State,
    /// What is wrong.
    pub(crate) problems: Vec<String>,
}

/// What the thread needs to know for good.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The underlay's device, as it was found.
    pub(crate) interface: String,
    pub(crate) subnet_env: PathBuf,
    /// Whether what is sent in another's name is dropped.
    pub(crate) anti_spoofing: bool,
    /// Where the fast path's maps and links are pinned, and whether there shall be one.
    pub(crate) pin_dir: PathBuf,
    pub(crate) fast_path: fast_path::State,
}

enum Order {
    Network(Box<Network>),
    Look,
    End,
}

/// The handle; the thread ends when it is dropped.
pub(crate) struct Engine {
    orders: Sender<Order>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    pub(crate) reports: watch::Receiver<Report>,
}

impl Engine {
    /// Starts the threads, in the calling thread's network namespace.
    pub(crate) fn start(settings: Settings, pods: PodNetwork) -> Result<Self, Error> {
        let nft = Nft::open()?;
        let tables: Vec<Table> = IpFamily::ALL.into_iter().flat_map(tables).collect();
        let monitor = Monitor::open(&tables, &[nft.port()])?;
        let monitor = monitor.and_rules_of_others(fast_path::OUR_TABLES);
        let kernel = Netlink::open()?;
        let groups = [
            Group::Links,
            Group::Neighbours,
            Group::AddressesV4,
            Group::AddressesV6,
            Group::RoutesV4,
            Group::RoutesV6,
        ];
        let events = Events::open(&groups)?;
        let (orders, received) = mpsc::channel();
        let (reported, reports) = watch::channel(Report::default());
        let stop = Arc::new(AtomicBool::new(false));
        let changed = orders.clone();
        pods.listen(move || drop(changed.send(Order::Look)));
        let worker = Worker {
            fast_path: fast_path::Keeper::new(settings.pin_dir.clone(), settings.fast_path.clone()),
            host_ports: host_ports::Keeper::default(),
            leaks: Leaks::default(),
            strangers: Strangers::default(),
            settings,
            pods,
            kernel,
            nft,
            network: None,
            plan: None,
            reported,
            last: Outcome::default(),
        };
        let threads = vec![
            spawn("overlay", move || worker.run(&received))?,
            spawn(
                "overlay-events",
                listener(events, orders.clone(), Arc::clone(&stop)),
            )?,
            spawn(
                "overlay-nft",
                nft_listener(monitor, orders.clone(), Arc::clone(&stop)),
            )?,
        ];
        Ok(Self {
            orders,
            stop,
            threads,
            reports,
        })
    }

    /// The network is this now.
    pub(crate) fn apply(&self, network: Network) -> Result<(), Error> {
        self.orders
            .send(Order::Network(Box::new(network)))
            .map_err(|_| Error::EngineEnded)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.orders.send(Order::End); // it ended already
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // its panic was told when it happened
        }
    }
}

fn spawn(name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map_err(|source| Error::StartThread { name, source })
}

/// Reads kernel events and asks for a look at each that may concern us. Our own writes come back as events too: the
/// look that they cause finds nothing to do.
fn listener(mut events: Events, orders: Sender<Order>, stop: Arc<AtomicBool>) -> impl FnOnce() {
    move || {
        while !stop.load(Ordering::Relaxed) {
            let concerns = match events.next(LISTEN) {
                Ok(Some(event)) => concerns_us(&event),
                Ok(None) => false,
                Err(error) => {
                    tracing::warn!(
                        error = with_causes(&error),
                        "kernel events cannot be read, audits go on"
                    );
                    thread::sleep(LISTEN);
                    true
                }
            };
            if concerns && orders.send(Order::Look).is_err() {
                return;
            }
        }
    }
}

fn concerns_us(event: &Event) -> bool {
    match event {
        Event::Link(_) | Event::LinkGone(_) | Event::Address(_) | Event::AddressGone(_) | Event::Overrun => {
            true
        }
        Event::Forwarding(_) | Event::ForwardingGone(_) | Event::NeighbourGone(_) => true,
        // What comes and goes as hosts talk is not ours: ours are permanent.
        Event::Neighbour(neighbour) => neighbour.permanent,
        Event::Route(route) | Event::RouteGone(route) => {
            route.protocol == ROUTE_PROTOCOL || route.table == netlink::route::TABLE_MAIN
        }
    }
}

fn nft_listener(mut monitor: Monitor, orders: Sender<Order>, stop: Arc<AtomicBool>) -> impl FnOnce() {
    move || {
        while !stop.load(Ordering::Relaxed) {
            match monitor.wait(LISTEN) {
                Ok(false) => {}
                Ok(true) => {
                    if orders.send(Order::Look).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        error = with_causes(&error),
                        "nftables events cannot be read, audits go on"
                    );
                    thread::sleep(LISTEN);
                }
            }
        }
    }
}

struct Worker {
    settings: Settings,
    pods: PodNetwork,
    kernel: Netlink,
    nft: Nft,
    fast_path: fast_path::Keeper,
    host_ports: host_ports::Keeper,
    leaks: Leaks,
    strangers: Strangers,
    network: Option<Network>,
    plan: Option<Arc<plan::Plan>>,
    reported: watch::Sender<Report>,
    last: Outcome,
}

impl Worker {
    fn run(mut self, orders: &Receiver<Order>) {
        let mut next = Instant::now() + AUDIT;
        loop {
            match orders.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(order) => {
                    self.take(order);
                    if !self.take_burst(orders) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let good = self.pass();
            next = Instant::now() + if good { AUDIT } else { RETRY };
        }
    }

    fn take(&mut self, order: Order) {
        if let Order::Network(network) = order {
            self.network = Some(*network);
        }
    }

    /// Takes what else came; false at the end.
    fn take_burst(&mut self, orders: &Receiver<Order>) -> bool {
        let until = Instant::now() + BURST;
        loop {
            match orders.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Order::End) => return false,
                Ok(order) => self.take(order),
                Err(_) => return true,
            }
        }
    }

    /// One comparison of everything, and its report. Whether all is well.
    fn pass(&mut self) -> bool {
        let Some(network) = self.network.clone() else {
            return true;
        };
        let mut outcome = Outcome::default();
        let mtu = self.reconcile(&network, &mut outcome).unwrap_or_else(|error| {
            outcome.problems.push(with_causes(&error));
            None
        });
        self.log(&outcome);
        let good = outcome.problems.is_empty();
        self.reported.send_if_modified(|report| {
            let next = Report {
                mtu: mtu.or(report.mtu),
                plan: self.plan.clone(),
                fast_path: self.fast_path.state().clone(),
                problems: outcome.problems.iter().chain(&outcome.notes).cloned().collect(),
            };
            let changed = next != *report;
            *report = next;
            changed
        });
        self.last = outcome;
        good
    }

    fn log(&self, outcome: &Outcome) {
        if outcome.writes > 0 {
            tracing::info!(writes = outcome.writes, "pod network written");
        }
        let told =
            |problem: &&String| self.last.problems.contains(problem) || self.last.notes.contains(problem);
        let problems = outcome.problems.iter().chain(&outcome.notes);
        for problem in problems.filter(|problem| !told(problem)) {
            tracing::warn!(%problem, "pod network has a problem");
        }
    }

    fn reconcile(&mut self, network: &Network, outcome: &mut Outcome) -> Result<Option<Mtu>, Error> {
        let settings = &self.settings;
        let wish = underlay::Wish {
            interface: Some(settings.interface.clone()),
            ..underlay::Wish::default()
        };
        let found = underlay::find(&mut self.kernel, &wish, &network.own.public_ips())?;
        let (underlay, gone) = found.underlay_of(&network.own);
        outcome.problems.extend(gone);
        let (plan, rejected) = plan(&network.config, &network.own, &network.others, &underlay);
        let rejected = rejected
            .iter()
            .map(|lease| format!("lease {} {}", lease.subnet, lease.reason));
        outcome.problems.extend(rejected);
        let tunnels = self.tunnels(&plan, found.index, outcome);
        let mirror = Mirror::read(&mut self.kernel, &tunnels)?;
        self.release_leaked(&mirror, outcome);
        let assigned = self.pods.list();
        let pods = self.pod_routes(&mirror, &assigned, outcome);
        let devices = Devices {
            tunnels,
            underlay: found.index,
        };
        // Without its address on the underlay, or its tunnel, a version of IP stays as it is.
        let stands = |family| {
            let half = plan.halves.get(family);
            half.is_some_and(|half| half.device.is_none() || tunnels.get(family).is_some())
        };
        let is_ours = |family| network.own.sites.get(family).is_some();
        let may_delete = |family| network.complete && (stands(family) || !is_ours(family));
        let passage = fast_path::passage(&mut self.nft);
        let known = guard::Known {
            leases: network.complete,
            rules: passage == Ok(fast_path::Passage::Whole),
        };
        for family in IpFamily::ALL {
            if stands(family) || !is_ours(family) {
                self.guard(family, &plan, &pods, known, outcome);
            }
        }
        let repaired = repair(&mut self.kernel, &mirror, &plan, devices, &pods, may_delete);
        outcome.writes += repaired.writes;
        outcome.problems.extend(repaired.problems);
        let node = fast_path::Node {
            plan: &plan,
            underlay: &found.name,
            pods: &pods,
            mirror: &mirror,
        };
        self.fast_path.keep(&mut self.kernel, &passage, &node, outcome);
        self.masquerade(network, outcome);
        for family in IpFamily::ALL.into_iter().filter(|family| speaks(*family)) {
            let (nft, kernel) = (&mut self.nft, &mut self.kernel);
            self.host_ports.keep(nft, kernel, family, &assigned, outcome);
        }
        self.write_subnet_env(network, &plan, outcome);
        let usable = network.own.sites.iter().all(|(family, _)| stands(family));
        let mtu = plan.pod_mtu;
        if self.plan.as_deref() != Some(&plan) {
            self.plan = Some(Arc::new(plan));
        }
        Ok(usable.then_some(mtu))
    }

    fn release_leaked(&mut self, mirror: &Mirror, outcome: &mut Outcome) {
        let is_there = |netns: &str| Path::new(netns).exists();
        let leaked = self
            .leaks
            .found(&self.pods.list(), &mirror.links, is_there, Instant::now());
        for key in leaked {
            match self.pods.remove(&key) {
                Ok(_) => tracing::info!(
                    container = key.container_id,
                    "pod went without a DEL, its address is free again"
                ),
                Err(error) => outcome.problems.push(with_causes(&error)),
            }
        }
    }

    /// How this node reaches its pods: those that the log has, and those that it lost.
    fn pod_routes(&mut self, mirror: &Mirror, assigned: &[Assigned], outcome: &mut Outcome) -> Vec<PodRoute> {
        let now = Instant::now();
        self.strangers.look(mirror, assigned, now);
        let strangers = self.strangers.routes();
        self.pods.hold(strangers.map(|route| route.address).collect());
        outcome.notes.extend(self.strangers.notes(now));
        let strangers = self.strangers.routes().cloned();
        strangers.chain(routes_of(assigned)).collect()
    }

    /// The indices of the tunnel devices, which are there afterwards unless something stands in the way.
    fn tunnels(&mut self, plan: &plan::Plan, underlay: u32, outcome: &mut Outcome) -> ByFamily<u32> {
        let mut tunnels = Vec::new();
        for (family, half) in plan.halves.iter() {
            let Some(device) = &half.device else { continue };
            match ensure_device(&mut self.kernel, device, underlay, outcome) {
                Ok(index) => tunnels.extend(index.map(|index| (family, index))),
                Err(error) => outcome.problems.push(with_causes(&error)),
            }
        }
        tunnels.into_iter().collect()
    }

    fn guard(
        &mut self,
        family: IpFamily,
        plan: &plan::Plan,
        pods: &[PodRoute],
        known: guard::Known,
        outcome: &mut Outcome,
    ) {
        if !speaks(family) {
            return;
        }
        let kept = if self.settings.anti_spoofing {
            guard::plan(family, plan.halves.get(family), pods, known)
                .keep(&mut self.nft)
                .map(|written| written.changes)
        } else {
            self.nft.remove(&guard::table(family)).map(usize::from)
        };
        match kept {
            Ok(writes) => outcome.writes += writes,
            Err(error) => outcome
                .problems
                .push(format!("anti-spoofing: {}", with_causes(&error))),
        }
    }

    fn masquerade(&mut self, network: &Network, outcome: &mut Outcome) {
        for family in IpFamily::ALL.into_iter().filter(|family| speaks(*family)) {
            let kept = match (network.config.pools.get(family), network.own.sites.get(family)) {
                (Some(pool), Some(site)) => {
                    let layout = masquerade::layout(family, pool.network, site.subnet);
                    self.nft.ensure(&layout).map(|repair| repair != Repair::Unchanged)
                }
                // The network had this version, and has it no more.
                _ if network.complete => self.nft.remove(&masquerade::table(family)),
                _ => Ok(false),
            };
            match kept {
                Ok(written) => outcome.writes += usize::from(written),
                Err(error) => outcome
                    .problems
                    .push(format!("masquerade: {}", with_causes(&error))),
            }
        }
    }

    fn write_subnet_env(&self, network: &Network, plan: &plan::Plan, outcome: &mut Outcome) {
        let path = &self.settings.subnet_env;
        match subnet_env::write(path, &network.config, &network.own.subnets(), plan.pod_mtu) {
            Ok(written) => outcome.writes += usize::from(written),
            Err(error) => outcome
                .problems
                .push(format!("write {}: {error}", path.display())),
        }
    }
}

/// The nftables tables that the overlay may have for a version of IP.
pub(crate) fn tables(family: IpFamily) -> [Table; 3] {
    [
        masquerade::table(family),
        guard::table(family),
        host_ports::table(family),
    ]
}

/// Whether the kernel speaks a version of IP: without IPv6 it has no tables for it either.
pub(crate) fn speaks(family: IpFamily) -> bool {
    family == IpFamily::V4 || Path::new("/proc/sys/net/ipv6").exists()
}

pub(crate) fn routes_of(pods: &[Assigned]) -> impl Iterator<Item = PodRoute> {
    let routes = |assigned: &Assigned| {
        let (host_ifname, pod_mac) = (host_ifname(assigned), pod_mac(assigned));
        assigned.addresses().map(|_, address| PodRoute {
            address: *address,
            host_ifname: host_ifname.clone(),
            pod_mac,
            is_limited: assigned.bandwidth.ingress.is_some(),
        })
    };
    let each = pods.iter().map(routes);
    each.flat_map(|routes| [routes.v4, routes.v6]).flatten()
}
