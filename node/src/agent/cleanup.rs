//! Takes all that the agent wrote off a node that leaves for good: `causeway node cleanup`.
//!
//! It holds the lock of the state directory, as an agent does. Whatever fails stops nothing else, and what tells where
//! our things are, the state directory, goes last and only when all else is gone: the next try finds what is left.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;
use model::Removal;
use overlay::pods::{Assigned, PodNetwork};
use overlay::uninstall::{Places, release_lease, remove_file, uninstall};
use proxy::{Chains, Proxy};

use super::{LOCK, cni, dns_address, findings, ip_families, own_state_dir, pod_network, socket, sysctls};
use crate::config::{Config, Datapath, LeasesIn};

/// Why nothing was touched.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// An agent runs, or what it left cannot be read.
    #[error("{0:#}")]
    CouldNotRun(anyhow::Error),
    /// Pods would lose their network.
    #[error("pods on this node would lose their network; remove them first, or say --force: {}", .0.join(", "))]
    PodsLive(Vec<String>),
}

/// Takes everything away, in the network namespace of the process. Pods that live lose their network if it is forced.
///
/// # Errors
/// When nothing was touched.
pub async fn clean(config: &Config, force: bool) -> Result<Removal, CleanupError> {
    let state_dir = &config.state_dir;
    let was_installed = state_dir.exists();
    let _no_agent = if was_installed {
        Some(own_state_dir(state_dir).map_err(CleanupError::CouldNotRun)?)
    } else {
        None
    };
    let pods = known_pods(config).map_err(CleanupError::CouldNotRun)?;
    let live = pods.as_ref().map(live_pods).unwrap_or_default();
    if !live.is_empty() && !force {
        return Err(CleanupError::PodsLive(live));
    }
    let mut removal = Removal::default();
    add(
        &mut removal,
        "CNI configurations",
        cni::conflist::remove(&config.cni.conf_dir),
    );
    removal.merge(leave_network(config).await);
    let places = Places {
        state_dir: state_dir.clone(),
        pin_dir: config.proxy.pin_dir.clone(),
        subnet_env: config.network.as_ref().map(|network| network.subnet_env.clone()),
    };
    removal.merge(uninstall(&places, pods.as_ref()));
    let families = ip_families::of_this_node();
    let chains = match config.proxy.datapath {
        Datapath::Iptables => Chains::Ours,
        Datapath::Ebpf | Datapath::Nftables | Datapath::None => Chains::KubeProxys,
    };
    removal.merge(Proxy::uninstall(&config.proxy.pin_dir, chains, &families));
    add(&mut removal, "DNS addresses", dns_address::remove(state_dir));
    for path in [&config.cni.socket, &config.dns.feed_socket] {
        removal.add("sockets", socket::remove(path));
    }
    if was_installed {
        let settings = sysctls::of_an_agent(config, families);
        if !settings.is_empty() {
            removal.left.push(format!(
                "kernel settings as the agent sets them, what they were before is not known: {}",
                settings.join(", ")
            ));
        }
    }
    if removal.failed.is_empty() {
        remove_state(config, &mut removal);
    }
    Ok(removal)
}

/// The book of pod addresses, without those that were deleted while no agent listened.
fn known_pods(config: &Config) -> anyhow::Result<Option<PodNetwork>> {
    let pods = PodNetwork::open_if_there(&config.state_dir).context("open the book of pod addresses")?;
    cni::forget_deletions(&config.cni.socket, pods.as_ref())?;
    Ok(pods)
}

/// Those whose namespace is there.
fn live_pods(pods: &PodNetwork) -> Vec<String> {
    let lives = |pod: &Assigned| Path::new(&pod.netns).exists();
    let name = |pod: Assigned| match pod.pod {
        Some(pod) => pod.to_string(),
        None => format!("container {}", pod.key.container_id),
    };
    pods.list().into_iter().filter(lives).map(name).collect()
}

/// What the other nodes know of this one.
async fn leave_network(config: &Config) -> Removal {
    let mut removal = Removal::default();
    let Some(network) = &config.network else {
        return removal;
    };
    match (network.leases, &network.etcd) {
        (LeasesIn::Etcd, Some(etcd)) => {
            removal = release_lease(&pod_network::etcd(etcd), &config.state_dir).await;
        }
        (LeasesIn::Kubernetes, _) if config.state_dir.exists() => removal.left.push(format!(
            "annotations flannel.alpha.coreos.com/* of Node {}: they go with the Node",
            config.node_name
        )),
        (LeasesIn::Etcd, None) | (LeasesIn::Kubernetes, _) => {}
    }
    removal
}

/// Other files in our directories are not ours, and keep them there.
fn remove_state(config: &Config, removal: &mut Removal) {
    removal.add(
        "sockets",
        socket::remove(&config.state_dir.join(findings::SOCKET)),
    );
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

fn add(removal: &mut Removal, kind: &'static str, result: anyhow::Result<bool>) {
    match result {
        Ok(removed) => removal.add(kind, Ok::<_, overlay::Error>(removed)),
        Err(error) => removal.failed.push(format!("{kind}: {error:#}")),
    }
}
