//! The overlay of one node, put together: underlay → lease → kernel → status.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use model::lease::Lease;
use model::{ByFamily, Mtu, with_causes};
use netlink::Netlink;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Leases};
use crate::engine::{Engine, Report, Settings};
use crate::error::Error;
use crate::flannel::NetworkConfig;
use crate::followed::Followed;
use crate::memory::Memory;
use crate::own::OwnNode;
use crate::plan::Plan;
use crate::pods::PodNetwork;
use crate::underlay::{self, Found};
use crate::{fast_path, follow, kubernetes};

/// How often it is looked whether this node still has its address.
const UNDERLAY_CHECK: Duration = Duration::from_secs(2);

/// How the overlay stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// This node's lease.
    pub lease: Option<Lease>,
    /// The network.
    pub network: Option<NetworkConfig>,
    /// MTU of pods.
    pub mtu: Option<Mtu>,
    /// What the kernel shall have for it.
    pub plan: Option<Arc<Plan>>,
    /// How many other nodes are known.
    pub others: usize,
    /// Pods can be connected.
    pub ready: bool,
    /// How packets between pods pass through this node.
    pub fast_path: fast_path::State,
    /// What is wrong, one line each; a node with problems may be ready.
    pub problems: Vec<String>,
}

/// Serves until shutdown. What was programmed stays. Everything that can pass by itself is tried again, and told in
/// `status` meanwhile; `pods` gives addresses as soon as the kernel is right.
///
/// # Errors
/// When the threads that program the kernel cannot be started, or end.
pub async fn run(
    config: Config,
    pods: PodNetwork,
    status: watch::Sender<Status>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    loop {
        let underlay = await_underlay(&config, &pods, &status);
        let Some(found) = shutdown.run_until_cancelled(underlay).await else {
            return Ok(());
        };
        tracing::info!(interface = %found.name, addresses = %told(&found.public_ips), "underlay found");
        match serve_on(&found, &config, &pods, &status, &shutdown).await? {
            Ended::Shutdown => return Ok(()),
            Ended::OtherUnderlay => {
                tracing::warn!(before = %told(&found.public_ips), "this node has other addresses now, starting over with them");
            }
        }
    }
}

/// Why serving ended.
enum Ended {
    Shutdown,
    OtherUnderlay,
}

/// Serves while the underlay is as it was found.
async fn serve_on(
    found: &Found,
    config: &Config,
    pods: &PodNetwork,
    status: &watch::Sender<Status>,
    shutdown: &CancellationToken,
) -> Result<Ended, Error> {
    let settings = Settings {
        interface: found.name.clone(),
        subnet_env: config.subnet_env.clone(),
        anti_spoofing: config.anti_spoofing,
        pin_dir: config.pin_dir.clone(),
        fast_path: config.fast_path.clone(),
    };
    let engine = {
        let pods = pods.clone();
        blocking(move || Engine::start(settings, pods)).await??
    };
    let (published, followed) = watch::channel(Followed::default());
    let follower = follow(found, config.clone(), published).await?;
    let ended = tokio::select! {
        () = shutdown.cancelled() => Ok(Ended::Shutdown),
        () = follower => Ok(Ended::Shutdown),
        () = await_other_underlay(config, found, status) => Ok(Ended::OtherUnderlay),
        ended = serve(&engine, followed, pods, status) => ended.map(|()| Ended::Shutdown),
    };
    // Ending the threads waits for a pass that is under way.
    blocking(move || drop(engine)).await?;
    ended
}

/// Follows leases, wherever they are kept, from what was remembered on.
async fn follow(
    found: &Found,
    config: Config,
    published: watch::Sender<Followed>,
) -> Result<Pin<Box<dyn Future<Output = ()> + Send>>, Error> {
    let own = OwnNode {
        name: config.node.clone(),
        interface: found.name.clone(),
        public_ips: found.public_ips,
    };
    Ok(match config.leases.clone() {
        Leases::Etcd(etcd) => {
            let follower = blocking(move || follow::Follower::new(own, etcd, &config, published)).await?;
            Box::pin(follower.run())
        }
        Leases::Kubernetes(nodes) => {
            let Config {
                network, state_dir, ..
            } = config;
            let follower =
                blocking(move || kubernetes::Follower::new(own, nodes, network, state_dir, published))
                    .await?;
            Box::pin(follower.run())
        }
    })
}

/// Returns when the others should send to another address than the one found, of a version of IP that the network has.
/// A device or an address that is only gone, not replaced, is waited for.
async fn await_other_underlay(config: &Config, found: &Found, status: &watch::Sender<Status>) {
    loop {
        tokio::time::sleep(UNDERLAY_CHECK).await;
        let Ok(now) = find_underlay(config, found.public_ips).await else {
            continue;
        };
        let of_network = status
            .borrow()
            .network
            .as_ref()
            .map(|network| network.pools.families());
        let concerns = |family| of_network.is_none_or(|families| families.get(family).is_some());
        let differs = now
            .public_ips
            .iter()
            .any(|(family, now)| concerns(family) && found.public_ips.get(family) != Some(now));
        if differs || now.name != found.name {
            return;
        }
    }
}

async fn find_underlay(config: &Config, present: ByFamily<IpAddr>) -> Result<Found, Error> {
    let wish = underlay::Wish {
        interface: config.interface.clone(),
        public_ips: config.public_ips,
    };
    blocking(move || underlay::find(&mut Netlink::open()?, &wish, &present)).await?
}

fn told(addresses: &ByFamily<IpAddr>) -> String {
    let addresses: Vec<String> = addresses.values().map(IpAddr::to_string).collect();
    addresses.join(" ")
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::EngineEnded)
}

/// Waits for the device that the others send to.
async fn await_underlay(config: &Config, pods: &PodNetwork, status: &watch::Sender<Status>) -> Found {
    loop {
        // Of several addresses the one that the lease has.
        let remembered = Memory::load(&config.state_dir).public_ips();
        match find_underlay(config, remembered).await {
            Ok(found) => return found,
            Err(error) => {
                let problem = with_causes(&error);
                pods.wait_for(problem.clone());
                let news = status.send_if_modified(|status| {
                    let changed = status.problems != [problem.as_str()];
                    status.problems = vec![problem.clone()];
                    changed
                });
                if news {
                    tracing::warn!(%problem, "waiting for the underlay");
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Hands every network to the kernel thread, and tells how it stands.
async fn serve(
    engine: &Engine,
    mut followed: watch::Receiver<Followed>,
    pods: &PodNetwork,
    status: &watch::Sender<Status>,
) -> Result<(), Error> {
    let mut reports = engine.reports.clone();
    let mut applied = None;
    loop {
        let now = followed.borrow_and_update().clone();
        let report = reports.borrow_and_update().clone();
        if now.network != applied
            && let Some(network) = &now.network
        {
            engine.apply(network.clone())?;
            applied = now.network.clone();
        }
        publish(&now, &report, pods, status);
        tokio::select! {
            changed = followed.changed() => changed.map_err(|_| Error::EngineEnded)?,
            changed = reports.changed() => changed.map_err(|_| Error::EngineEnded)?,
        }
    }
}

fn publish(followed: &Followed, report: &Report, pods: &PodNetwork, status: &watch::Sender<Status>) {
    let network = followed.network.as_ref();
    let lease = network.map(|network| network.own.clone());
    match (&lease, report.mtu) {
        (Some(lease), Some(mtu)) => pods.serve(lease.subnets(), mtu),
        _ => pods.wait_for(
            followed
                .trouble
                .clone()
                .unwrap_or_else(|| "the overlay starts".to_owned()),
        ),
    }
    let mut problems: Vec<String> = followed.trouble.iter().cloned().collect();
    problems.extend(followed.problems.iter().cloned());
    problems.extend(report.problems.iter().cloned());
    let next = Status {
        network: network.map(|network| network.config.clone()),
        others: network.map_or(0, |network| network.others.len()),
        ready: lease.is_some() && report.mtu.is_some(),
        mtu: report.mtu,
        plan: report.plan.clone(),
        fast_path: report.fast_path.clone(),
        lease,
        problems,
    };
    status.send_if_modified(|status| {
        let changed = *status != next;
        if changed && next.ready != status.ready {
            tracing::info!(ready = next.ready, "overlay readiness changed");
        }
        *status = next;
        changed
    });
}
