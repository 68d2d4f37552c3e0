//! Takes all that the agent wrote off a node that leaves for good: `causeway node cleanup`.
//!
//! It holds the lock of the state directory, as an agent does. Whatever fails stops nothing else. What tells where our
//! things are goes after them: the overlay's memory and the book of pod addresses when all of the overlay's is gone,
//! the record of the DNS address with the address. What is left of the state, the tombstones of pods, the lock and the
//! directories, goes last and only when nothing failed: the next try finds what it needs.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use model::{IpFamily, Removal};
use netlink::{Kernel as _, LinkKind, Netlink};
use nix::errno::Errno;
use overlay::files::remove_file;
use overlay::pods::PodNetwork;
use overlay::uninstall::{Places, Remembered, live_pods, release_lease, uninstall};
use proxy::{Chains, Proxy};
use tokio_util::sync::CancellationToken;
use vpc_eni::undertaking::{self, Undertakings};

use super::{LOCK, cni, dns_address, dns_feed, ip_families, own_state_dir, pod_network, socket, sysctls};
use crate::ask::SOCKET;
use crate::config::{Config, Datapath, LeasesIn};
use crate::install_cni::PLUGIN;

/// Between two looks whether agent and pods have ended.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What others than the agent put on the node for it, and where. It goes last.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// The container runtime's directory of plugins.
    pub cni_plugins: Option<PathBuf>,
    /// Where a DNS server keeps its snapshots.
    pub dns_state: Option<PathBuf>,
}

/// Why nothing was touched.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// An agent runs.
    #[error("{0:#}")]
    AgentRuns(anyhow::Error),
    /// What it left cannot be read.
    #[error("{0:#}")]
    CouldNotRun(anyhow::Error),
    /// Pods would lose their network.
    #[error("pods on this node would lose their network; remove them first, or say --force: {}", .0.join(", "))]
    PodsLive(Vec<String>),
}

/// As [`clean`] without force, once no agent runs and no pod lives. What is waited for is told on standard error.
///
/// # Errors
/// As [`clean`]. What was waited for, when the process is told to end before.
pub async fn clean_once_alone(
    config: &Config,
    beside: &Beside,
    shutdown: &CancellationToken,
) -> Result<Removal, CleanupError> {
    let mut told = String::new();
    loop {
        let reason = match clean(config, beside, false).await {
            Err(reason @ (CleanupError::AgentRuns(_) | CleanupError::PodsLive(_))) => reason,
            cleaned => return cleaned,
        };
        let waits = reason.to_string();
        if waits != told {
            eprintln!("waiting: {waits}");
            told = waits;
        }
        tokio::select! {
            () = shutdown.cancelled() => return Err(reason),
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

/// Takes everything away, in the network namespace of the process. Pods that live lose their network if it is forced.
///
/// # Errors
/// When nothing was touched.
pub async fn clean(config: &Config, beside: &Beside, force: bool) -> Result<Removal, CleanupError> {
    let state_dir = &config.state_dir;
    let was_installed = state_dir.exists();
    let _no_agent = if was_installed {
        Some(own_state_dir(state_dir).map_err(not_owned)?)
    } else {
        None
    };
    refuse_served(config).map_err(CleanupError::AgentRuns)?;
    let pods = known_pods(config).map_err(CleanupError::CouldNotRun)?;
    let live = names_of_live(pods.as_ref()).map_err(CleanupError::CouldNotRun)?;
    if !live.is_empty() && !force {
        return Err(CleanupError::PodsLive(live));
    }
    let mut removal = Removal::default();
    add(
        &mut removal,
        "CNI configurations",
        cni::conflist::remove(&config.cni.conf_dir),
    );
    let remembered = Remembered::read(state_dir);
    let has_records = pods.is_some() || !remembered.is_empty() || dns_address::has_record(state_dir);
    removal.merge(leave_network(config, &remembered).await);
    let places = Places {
        state_dir: state_dir.clone(),
        pin_dir: config.proxy.pin_dir.clone(),
        subnet_env: config.network.as_ref().map(|network| network.subnet_env.clone()),
    };
    removal.merge(uninstall(&places, pods.as_ref(), &remembered));
    let families = ip_families::of_this_node();
    let chains = match config.proxy.datapath {
        Datapath::Iptables => Chains::Ours,
        Datapath::Ebpf | Datapath::Nftables | Datapath::None => Chains::KubeProxys,
    };
    removal.merge(Proxy::uninstall(&config.proxy.pin_dir, chains, &families));
    add(&mut removal, "DNS addresses", dns_address::remove(state_dir));
    removal.add("files", dns_feed::forget(state_dir));
    for path in [&config.cni.socket, &config.dns.feed_socket] {
        removal.add("sockets", socket::remove(path));
    }
    if !has_records {
        tell_unrecorded(config, &mut removal);
    }
    if was_installed {
        tell_settings(config, families, &mut removal);
    }
    if removal.failed.is_empty() {
        remove_state(config, &mut removal);
        remove_beside(beside, &mut removal);
    }
    Ok(removal)
}

/// Why the state directory is not ours.
fn not_owned(error: anyhow::Error) -> CleanupError {
    match error.downcast_ref::<Errno>() {
        Some(&Errno::EWOULDBLOCK) => CleanupError::AgentRuns(error),
        _ => CleanupError::CouldNotRun(error),
    }
}

/// Takes away what kube-proxy left, and nothing of the agent's, which runs or not. Services that nobody else serves are
/// not reached any more if it is forced.
///
/// # Errors
/// When nothing was touched.
pub fn clean_kube_proxy(config: &Config, force: bool) -> Result<Removal, CleanupError> {
    let refused = |reason: &'static str| Err(CleanupError::CouldNotRun(anyhow!(reason)));
    if config.proxy.datapath == Datapath::Iptables {
        return refused(
            "with proxy.datapath iptables kube-proxy's chains are the agent's, which took them over",
        );
    }
    let has_rules = Proxy::has_rules().context("look for the agent's rules");
    if !force && !has_rules.map_err(CleanupError::CouldNotRun)? {
        return refused("nobody else serves Services here: start the agent first, or say --force");
    }
    Ok(Proxy::remove_kube_proxy(&ip_families::of_this_node()))
}

/// The book of pod addresses, without those that were deleted while no agent listened.
fn known_pods(config: &Config) -> anyhow::Result<Option<PodNetwork>> {
    let pods = PodNetwork::open_if_there(&config.state_dir).context("open the book of pod addresses")?;
    if let Some(pods) = &pods {
        cni::release_deleted(&config.cni.socket, pods)?;
    }
    Ok(pods)
}

/// Without its state directory, or with another one, an agent holds no lock that we see.
fn refuse_served(config: &Config) -> anyhow::Result<()> {
    let sockets = [&config.cni.socket, &config.dns.feed_socket];
    let served = sockets.into_iter().find(|path| socket::is_served(path));
    served.map_or(Ok(()), |path| {
        Err(anyhow!(
            "somebody serves {}: does an agent run without its state directory?",
            path.display()
        ))
    })
}

fn names_of_live(pods: Option<&PodNetwork>) -> anyhow::Result<Vec<String>> {
    let live = live_pods(pods).context("look for pods that live")?;
    let recorded = live.recorded.into_iter().map(|pod| match pod.pod {
        Some(pod) => pod.to_string(),
        None => format!("container {}", pod.key.container_id),
    });
    let lost = live.devices.into_iter();
    let lost = lost.map(|device| format!("device {device} (the pod's record is lost)"));
    Ok(recorded.chain(lost).collect())
}

/// What the other nodes know of this one.
async fn leave_network(config: &Config, remembered: &Remembered) -> Removal {
    let mut removal = Removal::default();
    let Some(network) = &config.network else {
        return removal;
    };
    match (network.leases, &network.etcd) {
        (LeasesIn::Etcd, Some(etcd)) => {
            removal = release_lease(&pod_network::etcd(etcd), remembered).await;
        }
        (LeasesIn::Kubernetes, _) if config.state_dir.exists() => removal.left.push(format!(
            "annotations flannel.alpha.coreos.com/* of Node {}: they go with the Node",
            config.node_name
        )),
        (LeasesIn::Etcd, None) | (LeasesIn::Kubernetes, _) => {}
    }
    removal
}

fn tell_settings(config: &Config, families: BTreeSet<IpFamily>, removal: &mut Removal) {
    match sysctls::of_an_agent(config, families) {
        Ok(settings) if settings.is_empty() => {}
        Ok(settings) => removal.left.push(format!(
            "kernel settings as the agent sets them, what they were before is not known: {}",
            settings.join(", ")
        )),
        Err(error) => removal.left.push(format!(
            "kernel settings of an agent, which cannot be told: {}",
            model::with_causes(&error)
        )),
    }
}

fn tell_unrecorded(config: &Config, removal: &mut Removal) {
    match tunnels() {
        Ok(tunnels) => {
            let told = unrecorded(config, &tunnels, !removal.removed.is_empty());
            removal.left.extend(told);
        }
        Err(error) => removal.failed.push(format!("tunnel devices: {error:#}")),
    }
}

/// The devices of flannel's name that are there, whosever they are.
fn tunnels() -> anyhow::Result<Vec<String>> {
    let links = Netlink::open()?.links()?.into_iter();
    let tunnels =
        links.filter(|link| matches!(link.kind, LinkKind::Vxlan(_)) && link.name.starts_with("flannel"));
    Ok(tunnels.map(|link| link.name).collect())
}

/// What is said where the state directory has no records. A proxy alone makes none.
fn unrecorded(config: &Config, tunnels: &[String], was_there: bool) -> Option<String> {
    let makes_records = config.network.is_some() || config.dns.address.is_some();
    if tunnels.is_empty() && !(makes_records && was_there) {
        return None;
    }
    let there = match tunnels {
        [] => String::new(),
        tunnels => format!("; there is {}, flannel's or such an agent's", tunnels.join(", ")),
    };
    Some(format!(
        "{} has no records: what an agent with another stateDir made is not known (tunnels, routes of pods, an address on \
         lo){there}",
        config.state_dir.display()
    ))
}

/// What was begun at EC2 and is not known to have ended, which nobody will end from here.
fn forget_undertakings(state_dir: &Path, removal: &mut Removal) {
    let path = state_dir.join(undertaking::FILE);
    if !path.exists() {
        return;
    }
    if let Ok(undertakings) = Undertakings::open(state_dir) {
        let open = undertakings.open_ones().iter().map(|open| format!("{open:?}"));
        removal.left.extend(open.map(|open| {
            format!(
                "interfaces at EC2, as far as this was begun (with CLUSTER_NAME other nodes of the VPC remove those that \
                 nobody has): {open}"
            )
        }));
    }
    removal.add("files", remove_file(&path));
}

/// Other files in our directories are not ours, and keep them there.
fn remove_state(config: &Config, removal: &mut Removal) {
    forget_undertakings(&config.state_dir, removal);
    let deletions = cni::deletions(&config.cni.socket);
    add(removal, "directories", remove_tombstones(&deletions));
    removal.add("sockets", socket::remove(&config.state_dir.join(SOCKET)));
    removal.add("files", remove_file(&config.state_dir.join(LOCK)));
    for directory in [&config.state_dir, &config.proxy.pin_dir] {
        match fs::remove_dir(directory) {
            Ok(()) => removal.add("directories", Ok::<_, overlay::Error>(true)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                let directory = directory.display();
                removal.left.push(format!("directory {directory}: {error}"));
            }
        }
    }
}

fn remove_beside(beside: &Beside, removal: &mut Removal) {
    if let Some(directory) = &beside.cni_plugins {
        removal.add("CNI plugins", remove_file(&directory.join(PLUGIN)));
    }
    if let Some(directory) = &beside.dns_state {
        removal.add("DNS snapshots", dns::feed::forget(directory));
    }
}

/// Whether there were any.
fn remove_tombstones(directory: &Path) -> anyhow::Result<bool> {
    match fs::remove_dir_all(directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("remove {}", directory.display())),
    }
}

fn add(removal: &mut Removal, kind: &'static str, result: anyhow::Result<bool>) {
    match result {
        Ok(removed) => removal.add(kind, Ok::<_, overlay::Error>(removed)),
        Err(error) => removal.failed.push(format!("{kind}: {error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn without_records_it_is_told_that_another_agents_things_are_not_known() {
        let unknown = "/s has no records: what an agent with another stateDir made is not known (tunnels, routes of pods, \
                       an address on lo)";
        let there = format!("{unknown}; there is flannel.1, flannel-v6.1, flannel's or such an agent's");
        let overlay =
            r#"network: {leases: kubernetes, config: {Network: 10.244.0.0/16, Backend: {Type: vxlan}}}"#;
        let dns = "{proxy: {datapath: none}, dns: {address: 169.254.20.10}}";
        let proxy = "proxy: {podNetworks: [10.244.0.0/16]}";
        let both = ["flannel.1".to_owned(), "flannel-v6.1".to_owned()];
        let rows = [
            (overlay, &both[..], true, Some(there.as_str())),
            (overlay, &both, false, Some(&there)),
            (overlay, &[], true, Some(unknown)),
            (overlay, &[], false, None),
            (dns, &[], true, Some(unknown)),
            (proxy, &both, true, Some(&there)),
            (proxy, &[], true, None),
        ];
        for (text, tunnels, was_there, expected) in rows {
            let mut config = config::parse("rows".as_ref(), text, Some("node-1")).expect(text);
            config.state_dir = "/s".into();
            let told = unrecorded(&config, tunnels, was_there);
            assert_eq!(told.as_deref(), expected, "for {text} {tunnels:?} {was_there}");
        }
    }
}
