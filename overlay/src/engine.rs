//! What keeps the kernel right in a network of leases: one pass over everything, which [`crate::drive`] has done on new
//! leases and whatever else is an occasion.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::lease::Lease;
use model::wiring::ROUTE_PROTOCOL;
use model::{ByFamily, IpFamily, Mtu, with_causes};
use netlink::nft::{Monitor, Nft, Repair, Table};
use netlink::{Event, Events, Group, Netlink};
use tokio::sync::watch;

use crate::drive::{self, Drive, Watched, Work};
use crate::error::Error;
use crate::flannel::NetworkConfig;
use crate::own_pods::OwnPods;
use crate::plan::{self, plan};
use crate::pods::PodNetwork;
use crate::reconcile::{Devices, Mirror, Outcome, PodRoute, ensure_device, repair};
use crate::{fast_path, guard, host_ports, masquerade, subnet_env, underlay};

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

/// The handle; the threads end when it is dropped.
pub(crate) struct Engine {
    drive: Drive<Network>,
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
        let (reported, reports) = watch::channel(Report::default());
        let watched = Watched {
            events,
            concerns: concerns_us,
            tables: monitor,
        };
        let worker = Worker {
            fast_path: fast_path::Keeper::new(settings.pin_dir.clone(), settings.fast_path.clone()),
            host_ports: host_ports::Keeper::default(),
            pods: OwnPods::new(pods.clone()),
            settings,
            kernel,
            nft,
            network: None,
            plan: None,
            reported,
            last: Outcome::default(),
        };
        let names = ["overlay", "overlay-events", "overlay-nft"];
        let drive = Drive::start(names, worker, watched, &pods)?;
        Ok(Self { drive, reports })
    }

    /// The network is this now.
    pub(crate) fn apply(&self, network: Network) -> Result<(), Error> {
        self.drive.tell(network)
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
        Event::Rule(_) | Event::RuleGone(_) => false,
    }
}

struct Worker {
    settings: Settings,
    pods: OwnPods,
    kernel: Netlink,
    nft: Nft,
    fast_path: fast_path::Keeper,
    host_ports: host_ports::Keeper,
    network: Option<Network>,
    plan: Option<Arc<plan::Plan>>,
    reported: watch::Sender<Report>,
    last: Outcome,
}

impl Work for Worker {
    type News = Network;

    fn take(&mut self, network: Network) -> bool {
        self.network = Some(network);
        true
    }

    fn pass(&mut self) -> bool {
        let Some(network) = self.network.clone() else {
            return true;
        };
        let mut outcome = Outcome::default();
        let mtu = self.reconcile(&network, &mut outcome).unwrap_or_else(|error| {
            outcome.problems.push(with_causes(&error));
            None
        });
        drive::log(&outcome, &self.last);
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
}

impl Worker {
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
        let assigned = self.pods.list(&mirror, outcome);
        let pods = self.pods.routes(&mirror, &assigned, outcome);
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
        let known = self.settings.anti_spoofing.then_some(known);
        guard::keep(
            &mut self.nft,
            family,
            plan.halves.get(family),
            pods,
            known,
            outcome,
        );
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
