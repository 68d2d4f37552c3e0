//! Takes all that the overlay wrote off a node that leaves for good: the kernel's side by what every pass of the engine
//! does with what is not wanted any more, then the files. For when no overlay runs.
//!
//! What is known of the tunnels is [`Remembered`]: without it they are somebody else's, flannel's perhaps.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use ebpf::FastPath;
use model::{ByFamily, IpFamily, Removal};
use netlink::nft::Nft;
use netlink::{AbsentIsFine, Kernel, LinkKind, Netlink};

use crate::config::Etcd;
use crate::engine;
use crate::error::Error;
use crate::etcd::Store;
use crate::files::{remove_file, remove_if_there, successor};
use crate::flannel::{Backend, NetworkConfig, Record};
use crate::lease::Held;
use crate::memory::{self, Memory};
use crate::pods::wiring::host_ifname;
use crate::pods::{self, Assigned, PodNetwork};
use crate::reconcile::{Mirror, remove_all};
use crate::strangers::Strangers;
use crate::{subnet_env, vpc};

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

/// What the overlay knew of itself.
#[derive(Debug, Default)]
pub struct Remembered {
    network: Option<NetworkConfig>,
    own: Option<Record>,
    /// What of it cannot be read.
    unreadable: Vec<Error>,
}

impl Remembered {
    /// Reads it from the state directory. What cannot be read stays there: [`uninstall`] tells it as a failure.
    #[must_use]
    pub fn read(state_dir: &Path) -> Self {
        let mut remembered = Self::default();
        let memory = Memory::read(state_dir).unwrap_or_else(|error| {
            remembered.unreadable.push(error);
            Memory::default()
        });
        let path = memory::path(state_dir);
        match memory.network.as_deref().map(NetworkConfig::parse).transpose() {
            Ok(network) => remembered.network = network,
            Err(source) => remembered.unreadable.push(Error::BadNetwork {
                key: path.display().to_string(),
                source,
            }),
        }
        match memory.own.as_ref().map(memory::Entry::read).transpose() {
            Ok(own) => remembered.own = own,
            Err(error) => remembered.unreadable.push(Error::ReadFile {
                path,
                source: io::Error::new(ErrorKind::InvalidData, error),
            }),
        }
        remembered
    }

    /// Whether no overlay left anything there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.network.is_none() && self.own.is_none() && self.unreadable.is_empty()
    }
}

/// What became of the node's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Release {
    Released,
    /// There was none of this node.
    Absent,
    /// An operator reserved it.
    Reserved,
    /// Somebody wrote it since it was read.
    Changed,
}

/// Gives the node's subnet back to the others. A lease that cannot be given back ends by itself, but for a reserved one.
pub async fn release_lease(etcd: &Etcd, remembered: &Remembered) -> Removal {
    let mut removal = Removal::default();
    let Some(own) = &remembered.own else {
        return removal;
    };
    let reason = match release(etcd, own).await {
        Ok(Release::Released) => {
            removal.add("leases", Ok::<_, Error>(true));
            return removal;
        }
        Ok(Release::Absent) => return removal,
        Ok(Release::Reserved) => "which is reserved for this node".to_owned(),
        Ok(Release::Changed) => "which somebody changed meanwhile".to_owned(),
        Err(error) => {
            let error = model::with_causes(&error);
            format!("which ends by itself within a day unless it is reserved: {error}")
        }
    };
    removal
        .left
        .push(format!("lease {} in etcd, {reason}", own.key()));
    removal
}

async fn release(etcd: &Etcd, own: &Record) -> Result<Release, Error> {
    let mut store = Store::connect(etcd).await?;
    let held = store.list().await?.held;
    let mut of_this_node = held.iter().filter(|held| {
        let same_key = held.record.key() == own.key();
        same_key && held.record.lease.public_ips() == own.lease.public_ips()
    });
    match of_this_node.next() {
        Some(held) => give_back(&mut store, held).await,
        None => Ok(Release::Absent),
    }
}

async fn give_back(store: &mut Store, held: &Held) -> Result<Release, Error> {
    if held.reserved {
        return Ok(Release::Reserved);
    }
    let deleted = store.delete(held).await?;
    Ok(if deleted {
        Release::Released
    } else {
        Release::Changed
    })
}

/// Pods that lose their network by [`uninstall`].
#[derive(Debug)]
pub struct LivePods {
    /// Those that have a record.
    pub recorded: Vec<Assigned>,
    /// The devices of those whose record is lost.
    pub devices: Vec<String>,
}

/// The pods that have a device in the calling thread's network namespace. Where a pod's own namespace is, as the runtime
/// told it, does not count: a path of the runtime's is another file in a container, or none.
///
/// # Errors
/// When the kernel does not tell.
pub fn live_pods(pods: Option<&PodNetwork>) -> Result<LivePods, Error> {
    let mirror = Mirror::read(&mut Netlink::open()?, &ByFamily::default())?;
    let mut recorded = recorded(pods);
    let devices = without_record(&mirror, &recorded);
    recorded.retain(|pod| mirror.links.contains_key(&host_ifname(pod)));
    Ok(LivePods { recorded, devices })
}

fn recorded(pods: Option<&PodNetwork>) -> Vec<Assigned> {
    pods.map(PodNetwork::list).unwrap_or_default()
}

fn without_record(mirror: &Mirror, recorded: &[Assigned]) -> Vec<String> {
    let mut strangers = Strangers::default();
    strangers.look(mirror, recorded, Instant::now());
    strangers.devices().map(str::to_owned).collect()
}

/// Takes everything away, in the calling thread's network namespace; `pods` lose their devices. What fails stops
/// nothing else, but for the files that the next try needs.
#[must_use]
pub fn uninstall(places: &Places, pods: Option<&PodNetwork>, remembered: &Remembered) -> Removal {
    let mut removal = Removal::default();
    let unreadable = remembered
        .unreadable
        .iter()
        .map(|error| model::with_causes(error));
    removal.failed.extend(unreadable);
    if let Some(pods) = pods {
        let evict = |pod: Assigned| pods.evict(&pod.key).map(|evicted| evicted.is_some());
        removal.add_each("pods", pods.list().into_iter().map(evict));
    }
    removal.add("fast paths", FastPath::remove(&places.pin_dir));
    remove_entries(remembered, &recorded(pods), &mut removal);
    removal.add_each("nftables tables", remove_tables());
    if removal.failed.is_empty() {
        remove_files(places, remembered, &mut removal);
    }
    removal
}

fn remove_entries(remembered: &Remembered, recorded: &[Assigned], removal: &mut Removal) {
    let removed = Netlink::open().map_err(Error::from).and_then(|mut kernel| {
        let tunnels = tunnels(&mut kernel, remembered.network.as_ref())?;
        let mirror = Mirror::read(&mut kernel, &tunnels)?;
        let pods = without_record(&mirror, recorded).into_iter();
        removal.left.extend(pods.map(|device| {
            format!("device {device}: of a pod whose record is lost; it has no route any more")
        }));
        let ways = vpc::remove_all(&mut kernel, &mirror)?;
        removal.failed.extend(ways.problems);
        removal.add("rules and routes of interfaces", Ok::<_, Error>(ways.writes));
        let outcome = remove_all(&mut kernel, &mirror, tunnels);
        removal.failed.extend(outcome.problems);
        for tunnel in tunnels.values() {
            let deleted = kernel.delete_link(*tunnel).absent_is_fine();
            removal.add("tunnel devices", deleted.map(|()| true));
        }
        Ok(outcome.writes)
    });
    removal.add("routes, neighbours and forwarding entries", removed);
}

/// The indices of the devices that were ours: those of the network that is remembered, by name and VNI.
fn tunnels(kernel: &mut impl Kernel, network: Option<&NetworkConfig>) -> Result<ByFamily<u32>, Error> {
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

/// Whether each was there.
fn remove_tables() -> Vec<Result<bool, Error>> {
    let families = IpFamily::ALL.into_iter().filter(|family| engine::speaks(*family));
    let tables = families.flat_map(engine::tables).chain([vpc::table()]);
    match Nft::open() {
        Ok(mut nft) => tables.map(|table| Ok(nft.remove(&table)?)).collect(),
        Err(error) => vec![Err(error.into())],
    }
}

fn remove_files(places: &Places, remembered: &Remembered, removal: &mut Removal) {
    if let Some(path) = &places.subnet_env {
        removal.add("files", remove_if_there(&successor(path)));
    }
    let own = remembered.own.as_ref();
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::IpAddr;

    use ipnetwork::IpNetwork;
    use model::NodeName;
    use model::lease::{Encap, Lease, Site};
    use model::wiring::ROUTE_PROTOCOL;
    use netlink::{FakeKernel, Neighbour, NewLink, NewLinkKind, Route, Vxlan};
    use tokio_util::sync::CancellationToken;

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
        let with = |backend: &str| format!(r#"{{"Network":"10.244.0.0/16","Backend":{backend}}}"#);
        let ours = with(r#"{"Type":"vxlan"}"#);
        let rows = [
            ("flannel.1", Some(1), Some(ours.as_str()), true),
            ("flannel.1", Some(2), Some(&ours), false),
            ("flannel.1", None, Some(&ours), false),
            ("flannel.99", Some(1), Some(&ours), false),
            ("flannel.1", Some(1), None, false),
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
            let config = network.map(|network| NetworkConfig::parse(network).expect("valid"));
            let found = tunnels(&mut kernel, config.as_ref()).expect("works");
            assert_eq!(found.v4, index.filter(|_| expected), "{name} {vni:?} {network:?}");
        }
    }

    /// A directory of the test's own.
    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("cwt-uninstall-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("writable");
        path
    }

    #[test]
    fn what_is_remembered_and_cannot_be_read_is_a_failure_and_stays() {
        let network = r#""{\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}""#;
        let own =
            r#"{"key":"10.244.3.0-24","value":"{\"PublicIP\":\"192.0.2.3\",\"BackendType\":\"host-gw\"}"}"#;
        let with = |network: &str, own: &str| {
            format!(r#"{{"network":{network},"own":{own},"others":[],"cluster_id":1,"revision":1}}"#)
        };
        let rows = [
            (None, (false, false, 0)),
            (Some(with("null", "null")), (false, false, 0)),
            (Some(with(network, own)), (true, true, 0)),
            (Some(with(r#""{""#, own)), (false, true, 1)),
            (
                Some(with(network, r#"{"key":"x","value":"{}"}"#)),
                (true, false, 1),
            ),
            (Some(with(network, own).split_off(1)), (false, false, 1)),
        ];
        let directory = directory("remembered");
        for (text, expected) in rows {
            if let Some(text) = &text {
                fs::write(memory::path(&directory), text).expect("writable");
            }
            let Remembered {
                network,
                own,
                unreadable,
            } = Remembered::read(&directory);
            let found = (network.is_some(), own.is_some(), unreadable.len());
            assert_eq!(found, expected, "{text:?}: {unreadable:?}");
        }
        fs::remove_file(memory::path(&directory)).expect("there");
        fs::create_dir(memory::path(&directory)).expect("writable");
        assert_eq!(Remembered::read(&directory).unreadable.len(), 1, "no file");
        fs::remove_dir_all(directory).expect("there");
    }

    #[test]
    fn a_pod_without_record_is_one_whose_device_has_a_route_of_ours() {
        let mut kernel = FakeKernel::new();
        let address = |last| IpAddr::from([10, 244, 3, last]);
        let mac = [2, 0, 0, 0, 0, 1];
        for (last, name, routed) in [(2, "cwlost", true), (3, "cwgone", false), (4, "eth9", true)] {
            let link = kernel.plug(name, mac, 1500);
            kernel
                .neighbours
                .push(Neighbour::permanent(link, address(last), mac));
            let destination = IpNetwork::from(address(last));
            let route = Route::on_link(destination, link, ROUTE_PROTOCOL);
            kernel.routes.extend(routed.then_some(route));
        }
        let mirror = Mirror::read(&mut kernel, &ByFamily::default()).expect("works");
        assert_eq!(without_record(&mirror, &[]), ["cwlost"]);
    }

    /// A lease of a node, and what tells of it.
    fn own() -> Record {
        let site = Site {
            subnet: "10.244.3.0/24".parse().expect("a subnet"),
            public_ip: [192, 0, 2, 3].into(),
            encap: Encap::HostGw,
        };
        let sites = [(IpFamily::V4, site)].into_iter().collect();
        Record::new(Lease { sites }, NodeName::from("node-1"))
    }

    #[tokio::test]
    async fn a_lease_goes_unless_somebody_else_decided_on_it() {
        let directory = directory("lease");
        let config = store::Config::new(&directory, vec![([127, 0, 0, 1], 0).into()]);
        let server = store::Server::bind(config).await.expect("a free port");
        let url = format!("http://{}", server.local_addrs()[0]);
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(server.run(shutdown.clone()));
        let etcd = Etcd {
            endpoints: vec![url.clone()],
            prefix: "/coreos.com/network".to_owned(),
            ca: None,
            cert: None,
            key: None,
            username: None,
            password_file: None,
        };
        let remembered = Remembered {
            own: Some(own()),
            ..Remembered::default()
        };
        let release = async || release_lease(&etcd, &remembered).await;
        assert_eq!(release().await, Removal::default(), "there is none");

        let mut store = Store::connect(&etcd).await.expect("it serves");
        store.create(&own(), None).await.expect("it serves");
        let released = Removal {
            removed: [("leases", 1)].into(),
            ..Removal::default()
        };
        assert_eq!(release().await, released);

        store.create(&own(), None).await.expect("it serves");
        let read = store.list().await.expect("it serves").held.remove(0);
        store.update(&read, &own()).await.expect("it serves");
        let given_back = give_back(&mut store, &read).await.expect("it serves");
        assert_eq!(given_back, Release::Changed);

        let reserved = Held {
            reserved: true,
            ..store.list().await.expect("it serves").held.remove(0)
        };
        store.update(&reserved, &own()).await.expect("it serves");
        let left = |reason: &str| format!("lease 10.244.3.0-24 in etcd, {reason}");
        assert_eq!(release().await.left, [left("which is reserved for this node")]);
        let held = store.list().await.expect("it serves").held;
        assert_eq!(held.len(), 1, "it stays");

        shutdown.cancel();
        let _ended = serving.await.expect("no panic");
        let told = release().await.left.concat();
        let expected = left("which ends by itself within a day unless it is reserved: etcd: ");
        assert!(told.starts_with(&expected), "{told}");
        fs::remove_dir_all(directory).expect("there");
    }
}
