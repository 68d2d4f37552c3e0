//! The kernel's settings that packets to Services and pods need: set at start, looked at every five seconds, and set
//! again when somebody changed them. [`wanted`] says which; this reads, compares, writes and tells.
//!
//! - `net.ipv4.ip_forward`, and `net.ipv6.conf.all.forwarding` where pods, or the node by its Node object, have IPv6.
//!   A kernel that forwards IPv6 hears no router unless `accept_ra` is 2, so that a device over which the node has its
//!   own default route gets that first.
//! - `rp_filter` of the overlay's tunnel device: loose. Another node sends to a pod here by the tunnel, with its own
//!   address as the source where a process of it has bound that; the way back to that address is no tunnel, which
//!   strict mode takes for a forgery. Others' devices are left as they are, and `all` and `default` too: nothing that
//!   comes by them needs to come the way that leads back. So are the node's ends of pods' devices, where strict mode
//!   is right: a pod has one address, and the route to it leads back to the pod.
//! - The limits of connection tracking, which every flow to a Service goes through.
//!
//! `route_localnet` is not set here: it opens the node's loopback to its neighbours (CVE-2020-8558). The overlay sets
//! it on devices of pods with host ports, behind a rule that keeps it closed to them.

mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use model::{IpFamily, NodeName, Snapshot, with_causes};
use netlink::{Kernel as _, Netlink, RouteFilter, sysctl};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::supervisor::Part;
use crate::backoff::Backoff;
use crate::config::{Config, Datapath};
use crate::metrics::{Counters, labels};
use wanted::{Paths, Value, Wanted, forwarding, limits};

/// Between two looks.
const AUDIT: Duration = Duration::from_secs(5);

/// Delays before what failed is tried again: limits of connection tracking appear with the first rule that tracks.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = AUDIT;

/// Who made a route that a router advertised: `RTPROT_RA`, `linux/rtnetlink.h`.
const ADVERTISED: u8 = 9;

/// What the part is started with.
#[derive(Clone)]
pub struct Sysctls {
    node: NodeName,
    /// What the agent is told, now.
    config: watch::Receiver<Arc<Config>>,
    /// Versions of IP that the kernel speaks and Services are served over.
    families: BTreeSet<IpFamily>,
    /// The cluster.
    snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The overlay's tunnel device, as soon as there is one.
    tunnel: watch::Receiver<Option<String>>,
    /// Settings that somebody changed and that were set again, by name.
    repairs: Arc<Counters>,
}

impl Sysctls {
    /// What the configuration needs. `families`: those over which Services are served here. None where neither Services
    /// nor pods are the agent's.
    #[must_use]
    pub fn of(
        config: watch::Receiver<Arc<Config>>,
        families: BTreeSet<IpFamily>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        tunnel: watch::Receiver<Option<String>>,
        repairs: Arc<Counters>,
    ) -> Option<Self> {
        let (serves, node) = {
            let config = config.borrow();
            (
                serves(&config) || config.gives_addresses(),
                config.node_name.clone(),
            )
        };
        serves.then(|| Self {
            node,
            config,
            families,
            snapshots,
            tunnel,
            repairs,
        })
    }

    fn limits(&self) -> Vec<Wanted> {
        let config = self.config.borrow();
        if !serves(&config) {
            return Vec::new();
        }
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
        limits(&config.proxy.conntrack, cpus)
    }

    /// Versions of IP that are forwarded: 4, and 6 where pods have it, by the configuration or by the Node object, or
    /// the node has: what comes to its node ports may go on to another node's.
    fn forwarded(&self) -> BTreeSet<IpFamily> {
        let snapshot = self.snapshots.borrow();
        let node = snapshot.nodes.get(&self.node);
        let of_node = node.iter().flat_map(|node| &node.pod_cidrs);
        let pod_networks = self.config.borrow().pod_networks();
        let of_pods = pod_networks.iter().chain(of_node).any(IpNetwork::is_ipv6);
        let nodes_own = node.is_some_and(|node| node.internal_addresses.iter().any(IpAddr::is_ipv6));
        let v6 = self.families.contains(&IpFamily::V6) && (of_pods || nodes_own);
        let v6 = v6.then_some(IpFamily::V6);
        [IpFamily::V4].into_iter().chain(v6).collect()
    }

    /// Settings that are not as they shall be: name, value, and what it shall be.
    #[must_use]
    pub fn differences(&self) -> Vec<(String, u64, u64)> {
        let (wanted, _) = self.wanted();
        let differs = |wanted: Wanted| {
            let present = sysctl::read(&wanted.path).ok()?.trim().parse().ok()?;
            Some((name(&wanted.path), present, wanted.value.over(present)?))
        };
        wanted.into_iter().filter_map(differs).collect()
    }

    /// What is wanted at this moment, and why that is not quite known.
    fn wanted(&self) -> (Vec<Wanted>, Option<String>) {
        let families = self.forwarded();
        let (advertised, failure) = if families.contains(&IpFamily::V6) {
            match advertised() {
                Ok(devices) => (devices, None),
                Err(error) => (BTreeSet::new(), Some(with_causes(&error))),
            }
        } else {
            Default::default()
        };
        let paths = Paths {
            families,
            tunnel: self.tunnel.borrow().clone(),
            advertised,
        };
        let mut wanted = forwarding(&paths);
        wanted.extend(self.limits());
        (wanted, failure)
    }
}

/// Whether Services are the agent's.
fn serves(config: &Config) -> bool {
    config.proxy.datapath != Datapath::None
}

/// The settings, by name and value, that are as an agent sets them in whatever cluster. `families`: versions of IP that
/// the kernel speaks. What they were before it came nobody knows.
///
/// # Errors
/// When the kernel does not tell of its devices.
pub fn of_an_agent(config: &Config, families: BTreeSet<IpFamily>) -> netlink::Result<Vec<String>> {
    let (_, snapshots) = watch::channel(Arc::default());
    let (_, tunnel) = watch::channel(None);
    let (_, config) = watch::channel(Arc::new(config.clone()));
    let Some(sysctls) = Sysctls::of(config, families.clone(), snapshots, tunnel, Arc::default()) else {
        return Ok(Vec::new());
    };
    // A router that advertised once may be gone.
    let links = Netlink::open()?.links()?.into_iter();
    let mut wanted = forwarding(&Paths {
        families,
        tunnel: None,
        advertised: links.map(|link| link.name).collect(),
    });
    wanted.extend(sysctls.limits());
    Ok(as_written(&wanted, &Kernel))
}

fn as_written(wanted: &[Wanted], settings: &impl Settings) -> Vec<String> {
    let told = |Wanted { path, value }: &Wanted| {
        let present: u64 = settings.read(path).ok()??.trim().parse().ok()?;
        let may_be_ours = value.may_have_written(present);
        may_be_ours.then(|| format!("{} = {present}", name(path)))
    };
    wanted.iter().filter_map(told).collect()
}

/// Devices over which the node has a default route that a router advertised.
fn advertised() -> netlink::Result<BTreeSet<String>> {
    let mut kernel = Netlink::open()?;
    let everywhere = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let routes = kernel.routes(&RouteFilter::made_by(ADVERTISED))?.into_iter();
    let defaults =
        routes.filter(|route| route.destination.ip() == everywhere && route.destination.prefix() == 0);
    let mut devices = BTreeSet::new();
    for index in defaults.filter_map(|route| route.link) {
        devices.extend(kernel.link_at(index)?.map(|link| link.name));
    }
    Ok(devices)
}

/// Where settings are.
trait Settings {
    /// None: there is no such setting.
    fn read(&self, path: &str) -> Result<Option<String>, String>;
    fn write(&mut self, path: &str, value: &str) -> Result<(), String>;
}

/// Those of this process's network namespace.
struct Kernel;

impl Settings for Kernel {
    fn read(&self, path: &str) -> Result<Option<String>, String> {
        match sysctl::read(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(with_causes(&error)),
        }
    }

    fn write(&mut self, path: &str, value: &str) -> Result<(), String> {
        sysctl::write(path, value).map_err(|error| with_causes(&error))
    }
}

/// What is there by now.
#[derive(Debug, Default)]
struct Held {
    /// Paths of settings that had their values when they were last looked at, with what was wanted of them.
    right: BTreeMap<String, Value>,
}

/// What a look found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Looked {
    /// Settings that somebody changed, and that have their values again.
    repaired: Vec<String>,
    /// Settings that do not have their values.
    failures: Vec<String>,
}

impl Held {
    /// Writes what differs; one that fails stops no other.
    fn look(&mut self, wanted: &[Wanted], settings: &mut impl Settings) -> Looked {
        let mut looked = Looked::default();
        for wanted in wanted {
            match self.look_at(wanted, settings) {
                Ok(false) => {}
                Ok(true) => looked.repaired.push(name(&wanted.path)),
                Err(failure) => looked.failures.push(failure),
            }
        }
        looked
    }

    /// Whether it was repaired.
    fn look_at(&mut self, wanted: &Wanted, settings: &mut impl Settings) -> Result<bool, String> {
        let Wanted { path, value: wanted } = wanted;
        let setting = name(path);
        let Some(text) = settings.read(path)? else {
            self.right.remove(path);
            return if wanted.may_be_absent() {
                Ok(false)
            } else {
                Err(format!("{setting} does not exist"))
            };
        };
        let present = text.trim().parse();
        let present = present.map_err(|_| format!("{setting} is {text:?}, which is no number"))?;
        let Some(value) = wanted.over(present) else {
            self.right.insert(path.clone(), *wanted);
            return Ok(false);
        };
        let written = settings.write(path, &value.to_string());
        written.map_err(|error| format!("{setting} is {present} and shall be {value}: {error}"))?;
        // Another value may be wanted than before.
        let is_repair = self.right.insert(path.clone(), *wanted) == Some(*wanted);
        if is_repair {
            tracing::warn!(
                setting,
                found = present,
                value,
                "somebody changed a kernel setting, repaired"
            );
        } else {
            tracing::info!(setting, before = present, value, "kernel setting set");
        }
        Ok(is_repair)
    }
}

/// As sysctl(8) names it: dots between the parts, slashes within.
fn name(path: &str) -> String {
    let swapped = path.chars().map(|letter| match letter {
        '/' => '.',
        '.' => '/',
        other => other,
    });
    swapped.collect()
}

/// Keeps the settings until shutdown.
///
/// # Errors
/// When the thread that writes them breaks.
pub async fn keep(sysctls: Sysctls, part: Part, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut tunnel = sysctls.tunnel.clone();
    let mut config = sysctls.config.clone();
    let mut held = Held::default();
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    loop {
        tunnel.mark_unchanged();
        config.mark_unchanged();
        let source = sysctls.clone();
        let look = move || {
            let (wanted, failure) = source.wanted();
            let mut looked = held.look(&wanted, &mut Kernel);
            looked.failures.extend(failure);
            (held, looked)
        };
        let looked;
        (held, looked) = tokio::task::spawn_blocking(look).await?;
        for setting in &looked.repaired {
            sysctls.repairs.add(labels(&[("sysctl", setting)]));
        }
        let pause = if looked.failures.is_empty() {
            part.works();
            backoff.reset();
            AUDIT
        } else {
            part.fails(&looked.failures.join("; "));
            backoff.next_delay()
        };
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
            // Where there is no overlay nobody tells.
            Ok(()) = tunnel.changed() => {}
            Ok(()) = config.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests;
