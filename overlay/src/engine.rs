//! The thread that keeps the kernel right: on new leases, on changes of pods, on kernel events that may concern us,
//! and every ten seconds regardless.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use model::lease::Lease;
use model::wiring::ROUTE_PROTOCOL;
use model::{Mtu, with_causes};
use netlink::nft::{Monitor, Nft, Repair};
use netlink::{Event, Events, Group, Netlink};
use tokio::sync::watch;

use crate::error::Error;
use crate::flannel::NetworkConfig;
use crate::plan::{self, plan};
use crate::pods::PodNetwork;
use crate::pods::wiring::{host_ifname, pod_mac};
use crate::reconcile::{Devices, Mirror, Outcome, PodRoute, ensure_device, repair};
use crate::{fast_path, masquerade, subnet_env, underlay};

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
    /// How pods of this node reach each other.
    pub(crate) fast_path: fast_path::State,
    /// What is wrong.
    pub(crate) problems: Vec<String>,
}

/// What the thread needs to know for good.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The underlay's device and its address, as they were found.
    pub(crate) interface: String,
    pub(crate) public_ip: Ipv4Addr,
    pub(crate) subnet_env: PathBuf,
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
        let monitor = Monitor::open(&[masquerade::table()], &[nft.port()])?;
        let monitor = monitor.and_rules_of_others(fast_path::OUR_TABLES);
        let kernel = Netlink::open()?;
        let groups = [
            Group::Links,
            Group::Neighbours,
            Group::AddressesV4,
            Group::RoutesV4,
        ];
        let events = Events::open(&groups)?;
        let (orders, received) = mpsc::channel();
        let (reported, reports) = watch::channel(Report::default());
        let stop = Arc::new(AtomicBool::new(false));
        let changed = orders.clone();
        pods.listen(move || drop(changed.send(Order::Look)));
        let worker = Worker {
            fast_path: fast_path::Keeper::new(settings.pin_dir.clone(), settings.fast_path.clone()),
            settings,
            pods,
            kernel,
            nft,
            network: None,
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
    network: Option<Network>,
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
                fast_path: self.fast_path.state().clone(),
                problems: outcome.problems.clone(),
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
        for problem in outcome
            .problems
            .iter()
            .filter(|problem| !self.last.problems.contains(problem))
        {
            tracing::warn!(%problem, "pod network has a problem");
        }
    }

    fn reconcile(&mut self, network: &Network, outcome: &mut Outcome) -> Result<Option<Mtu>, Error> {
        let settings = &self.settings;
        let found = underlay::find(
            &mut self.kernel,
            Some(&settings.interface),
            Some(settings.public_ip),
        )?;
        let (plan, rejected) = plan(&network.config, &network.own, &network.others, &found.underlay);
        let rejected = rejected
            .iter()
            .map(|lease| format!("lease {} {}", lease.subnet, lease.reason));
        outcome.problems.extend(rejected);
        let tunnel = match &plan.device {
            Some(device) => ensure_device(&mut self.kernel, device, found.index, outcome)?,
            None => None,
        };
        let mirror = Mirror::read(&mut self.kernel, tunnel)?;
        let pods = pod_routes(&self.pods);
        let devices = Devices {
            tunnel,
            underlay: found.index,
        };
        let repaired = repair(&mut self.kernel, &mirror, &plan, devices, &pods, network.complete);
        outcome.writes += repaired.writes;
        outcome.problems.extend(repaired.problems);
        self.fast_path.keep(&mut self.nft, &pods, &mirror.links, outcome);
        self.masquerade(network, outcome);
        self.write_subnet_env(network, &plan, outcome);
        let usable = plan.device.is_none() || tunnel.is_some();
        Ok(usable.then_some(plan.pod_mtu))
    }

    fn masquerade(&mut self, network: &Network, outcome: &mut Outcome) {
        let layout = masquerade::layout(network.config.network, network.own.subnet);
        match self.nft.ensure(&layout) {
            Ok(Repair::Unchanged) => {}
            Ok(_) => outcome.writes += 1,
            Err(error) => outcome
                .problems
                .push(format!("masquerade: {}", with_causes(&error))),
        }
    }

    fn write_subnet_env(&self, network: &Network, plan: &plan::Plan, outcome: &mut Outcome) {
        let path = &self.settings.subnet_env;
        match subnet_env::write(path, network.config.network, network.own.subnet, plan.pod_mtu) {
            Ok(written) => outcome.writes += usize::from(written),
            Err(error) => outcome
                .problems
                .push(format!("write {}: {error}", path.display())),
        }
    }
}

fn pod_routes(pods: &PodNetwork) -> Vec<PodRoute> {
    let route = |assigned: crate::pods::Assigned| PodRoute {
        address: assigned.address,
        host_ifname: host_ifname(&assigned.key),
        pod_mac: pod_mac(&assigned.key),
    };
    pods.list().into_iter().map(route).collect()
}
