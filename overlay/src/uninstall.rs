//! Takes all that the overlay wrote off a node that leaves for good: the kernel's side by what every pass of the engine
//! does with what is not wanted any more, then the files. For when no overlay runs.
//!
//! What is known of the tunnels is in the [`Memory`]: without one they are somebody else's, flannel's perhaps.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ebpf::FastPath;
use model::{ByFamily, IpFamily, Removal};
use netlink::nft::Nft;
use netlink::{AbsentIsFine, Kernel, LinkKind, Netlink};

use crate::config::Etcd;
use crate::engine;
use crate::error::Error;
use crate::etcd::Store;
use crate::flannel::{Backend, NetworkConfig, Record};
use crate::memory::{self, Memory};
use crate::pods::{self, PodNetwork};
use crate::reconcile::{Mirror, remove_all};
use crate::subnet_env;

/// Where the overlay's traces are.
#[derive(Clone, Debug)]
pub struct Places {
    /// Directory of what is remembered over restarts.
    pub state_dir: PathBuf,
    /// Directory on a BPF file system for the fast path's maps and links.
    pub pin_dir: PathBuf,
    /// Where the node's subnet is told to others.
    pub subnet_env: Option<PathBuf>,
}

/// Gives the node's subnet back to the others. A lease that cannot be given back ends by itself.
pub async fn release_lease(etcd: &Etcd, state_dir: &Path) -> Removal {
    let mut removal = Removal::default();
    let own = Memory::load(state_dir).own.and_then(|own| own.record());
    let Some(own) = own else { return removal };
    match release(etcd, &own).await {
        Ok(released) => removal.add("leases", Ok::<_, Error>(released)),
        Err(error) => removal.left.push(format!(
            "lease {} in etcd, which ends by itself within a day: {}",
            own.key(),
            model::with_causes(&error)
        )),
    }
    removal
}

/// Whether there was a lease of this node. One that an operator reserved stays.
async fn release(etcd: &Etcd, own: &Record) -> Result<bool, Error> {
    let mut store = Store::connect(etcd).await?;
    let held = store.list().await?.held;
    let mut of_this_node = held.iter().filter(|held| {
        let same_key = held.record.key() == own.key();
        same_key && held.record.lease.public_ips() == own.lease.public_ips() && !held.reserved
    });
    match of_this_node.next() {
        Some(held) => store.delete(held).await,
        None => Ok(false),
    }
}

/// Takes everything away, in the calling thread's network namespace; `pods` lose their devices. What fails stops
/// nothing else, but for the files that the next try needs.
#[must_use]
pub fn uninstall(places: &Places, pods: Option<&PodNetwork>) -> Removal {
    let mut removal = Removal::default();
    let memory = Memory::load(&places.state_dir);
    let retained = pods.map_or(Ok(Vec::new()), |pods| pods.retain(&[]));
    removal.add("pods", retained.map(|pods| pods.len()));
    removal.add("fast paths", FastPath::remove(&places.pin_dir));
    remove_entries(&memory, &mut removal);
    removal.add("nftables tables", remove_tables());
    if removal.failed.is_empty() {
        remove_files(places, &memory, &mut removal);
    }
    removal
}

fn remove_entries(memory: &Memory, removal: &mut Removal) {
    let removed = Netlink::open().map_err(Error::from).and_then(|mut kernel| {
        let tunnels = tunnels(&mut kernel, memory)?;
        let mirror = Mirror::read(&mut kernel, &tunnels)?;
        let pods = mirror.links.values();
        let pods = pods.filter(|link| mirror.pod_routes(link).next().is_some());
        removal.left.extend(pods.map(|link| {
            let device = &link.name;
            format!("device {device}: of a pod whose record is lost; it has no route any more")
        }));
        let outcome = remove_all(&mut kernel, &mirror, tunnels);
        removal.failed.extend(outcome.problems);
        for tunnel in tunnels.values() {
            let deleted = kernel.delete_link(*tunnel).absent_is_fine();
            removal.add("tunnel devices", deleted.map(|()| 1_usize));
        }
        Ok(outcome.writes)
    });
    removal.add("routes, neighbours and forwarding entries", removed);
}

/// The indices of the devices that were ours: those of the network that is remembered, by name and VNI.
fn tunnels(kernel: &mut impl Kernel, memory: &Memory) -> Result<ByFamily<u32>, Error> {
    let network = memory.network.as_deref();
    let network = network.and_then(|text| NetworkConfig::parse(text).ok());
    let Some((network, vni)) = network.and_then(|network| match network.backend {
        Backend::Vxlan { vni, .. } => Some((network, vni)),
        Backend::HostGw => None,
    }) else {
        return Ok(ByFamily::default());
    };
    let mut found = Vec::new();
    for (family, name) in network.device_names().iter() {
        let link = kernel.link_named(name)?;
        let is_ours = |kind: &LinkKind| matches!(kind, LinkKind::Vxlan(vxlan) if vxlan.vni == vni.0);
        found.extend(
            link.filter(|link| is_ours(&link.kind))
                .map(|link| (family, link.index)),
        );
    }
    Ok(found.into_iter().collect())
}

/// Returns how many there were.
fn remove_tables() -> Result<usize, Error> {
    let mut nft = Nft::open()?;
    let families = IpFamily::ALL.into_iter().filter(|family| engine::speaks(*family));
    let tables: Vec<_> = families.flat_map(engine::tables).collect();
    let removed: Vec<_> = tables.iter().map(|table| nft.remove(table)).collect();
    let removed = removed.into_iter().map(|removed| removed.map(usize::from));
    Ok(removed.sum::<Result<usize, _>>()?)
}

fn remove_files(places: &Places, memory: &Memory, removal: &mut Removal) {
    let own = memory.own.as_ref().and_then(|own| own.record());
    if let Some(path) = places.subnet_env.as_deref().filter(|path| path.exists()) {
        if own.is_some_and(|own| own.lease.subnets() == subnet_env::read(path)) {
            removal.add("files", remove_file(path));
        } else {
            let path = path.display();
            removal
                .left
                .push(format!("{path}: it does not tell of this node's subnet"));
        }
    }
    for name in [memory::FILE, pods::LOG, pods::FRESH_LOG] {
        removal.add("files", remove_file(&places.state_dir.join(name)));
    }
}

/// Removes a file, and what a crash left of a successor that was not put in its place. Whether it was there.
///
/// # Errors
/// When it is there and stays.
pub fn remove_file(path: &Path) -> Result<bool, Error> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    remove_if_there(Path::new(&fresh))?;
    remove_if_there(path)
}

fn remove_if_there(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::RemoveFile {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use netlink::{FakeKernel, NewLink, NewLinkKind, Vxlan};

    use super::*;

    #[test]
    fn only_a_vxlan_device_of_the_remembered_network_is_ours() {
        let vxlan = |vni| {
            NewLinkKind::Vxlan(Vxlan {
                vni,
                local: None,
                device: None,
                port: 8472,
                learning: false,
                udp_csum: true,
                gbp: false,
                collect_metadata: false,
            })
        };
        let memory = |network: Option<&str>| Memory {
            network: network.map(str::to_owned),
            ..Memory::default()
        };
        let with = |backend: &str| format!(r#"{{"Network":"10.244.0.0/16","Backend":{backend}}}"#);
        let ours = with(r#"{"Type":"vxlan"}"#);
        let rows = [
            ("flannel.1", Some(1), Some(ours.as_str()), true),
            ("flannel.1", Some(2), Some(&ours), false),
            ("flannel.1", None, Some(&ours), false),
            ("flannel.99", Some(1), Some(&ours), false),
            ("flannel.1", Some(1), None, false),
            ("flannel.1", Some(1), Some(r#"{"Network""#), false),
        ];
        for (name, vni, network, expected) in rows {
            let mut kernel = FakeKernel::new();
            match vni {
                Some(vni) => drop(
                    kernel
                        .create_link(&NewLink::new(name, vxlan(vni)))
                        .expect("works"),
                ),
                None => drop(kernel.plug(name, [2, 0, 0, 0, 0, 1], 1500)),
            }
            let index = kernel.link_named(name).expect("works").map(|link| link.index);
            let found = tunnels(&mut kernel, &memory(network)).expect("works");
            assert_eq!(found.v4, index.filter(|_| expected), "{name} {vni:?} {network:?}");
        }
    }
}
