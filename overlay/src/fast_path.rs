//! Pods of one node reach each other past the node's network stack: which pods, when not, and keeping it so.
//!
//! The program at each pod's device ([`ebpf::fast_path`]) passes by netfilter. So it is there only while nobody's rules
//! there could mean the packets of pods: our own never do, since they translate what is addressed to Services, and
//! what leaves the pod network. When rules of others appear, it goes, and connections go on through the stack.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use ebpf::abi::net::Ip;
use ebpf::abi::pods::Pod;
use ebpf::{Attachment, FastPath};
use model::with_causes;
use netlink::Link;
use netlink::nft::{Filter, Nft};

use crate::reconcile::PodRoute;

/// What the names of all our nftables tables begin with.
const OUR_TABLES: &str = "causeway-";

/// Tables of x_tables that the thread's network namespace has; absent where the kernel has no x_tables.
const LEGACY_TABLES: [&str; 2] = [
    "/proc/thread-self/net/ip_tables_names",
    "/proc/thread-self/net/ip6_tables_names",
];

/// Whether pods of this node reach each other past its network stack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It is not wanted.
    #[default]
    Off,
    /// It is there.
    On,
    /// It is wanted, and not there for this reason. Packets take the stack.
    Refused(String),
}

impl State {
    /// `off`, `on` or `refused`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Refused(_) => "refused",
        }
    }
}

/// The fast path of one node.
pub(crate) struct Keeper {
    pin_dir: PathBuf,
    wanted: bool,
    path: Option<FastPath>,
    state: State,
}

impl Keeper {
    pub(crate) fn new(pin_dir: PathBuf, wanted: bool) -> Self {
        Self {
            pin_dir,
            wanted,
            path: None,
            state: State::Off,
        }
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Makes the kernel's side what it shall be, in the thread's network namespace; returns how much was written.
    /// What hinders it becomes the state's reason: packets have another way.
    pub(crate) fn keep(&mut self, nft: &mut Nft, pods: &[PodRoute], links: &BTreeMap<String, Link>) -> usize {
        let (writes, state) = match self.try_keep(nft, pods, links) {
            Ok(done) => done,
            Err(reason) => {
                let removed = self.remove();
                (removed, State::Refused(reason))
            }
        };
        if state != self.state {
            match &state {
                State::On => tracing::info!("pods of this node reach each other by the fast path"),
                State::Off => tracing::info!("the fast path between pods is switched off"),
                State::Refused(reason) => {
                    tracing::info!(%reason, "pods of this node reach each other through the network stack");
                }
            }
            self.state = state;
        }
        writes
    }

    fn try_keep(
        &mut self,
        nft: &mut Nft,
        pods: &[PodRoute],
        links: &BTreeMap<String, Link>,
    ) -> Result<(usize, State), String> {
        if !self.wanted {
            return Ok((self.remove(), State::Off));
        }
        let filters = nft.filters().map_err(|error| with_causes(&error))?;
        let legacy = LEGACY_TABLES.map(|path| fs::read_to_string(path).unwrap_or_default());
        if let Some(reason) = obstacle(&filters, &legacy.concat()) {
            return Err(reason);
        }
        let path = match &mut self.path {
            Some(path) => path,
            closed => closed.insert(FastPath::open(&self.pin_dir).map_err(|error| with_causes(&error))?),
        };
        let writes = repair(path, &wanted(pods, links)).map_err(|error| with_causes(&error))?;
        Ok((writes, State::On))
    }

    /// Packets take the stack from here on.
    fn remove(&mut self) -> usize {
        self.path = None;
        let there = self.pin_dir.join("pods").exists();
        if !there {
            return 0;
        }
        match FastPath::remove(&self.pin_dir) {
            Ok(()) => 1,
            Err(error) => {
                tracing::warn!(error = with_causes(&error), "the fast path cannot be removed");
                0
            }
        }
    }
}

/// A pod that can be reached by the fast path.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reachable {
    device: String,
    entry: Pod,
}

/// Pods whose device is there, by address. A device that is not there yet, or no more, brings us back by its event.
fn wanted(pods: &[PodRoute], links: &BTreeMap<String, Link>) -> BTreeMap<Ip, Reachable> {
    let reachable = |pod: &PodRoute| {
        let link = links.get(&pod.host_ifname)?;
        let entry = Pod {
            ifindex: link.index,
            mtu: link.mtu,
            pod_mac: pod.pod_mac.0,
            host_mac: link.mac?,
        };
        let device = pod.host_ifname.clone();
        Some((Ip::from(pod.address), Reachable { device, entry }))
    };
    pods.iter().filter_map(reachable).collect()
}

/// Writes the difference. A pod becomes known before its device has the program, and the reverse at its end.
fn repair(path: &mut FastPath, wanted: &BTreeMap<Ip, Reachable>) -> Result<usize, ebpf::Error> {
    let actual = path.pods.entries()?;
    let mut writes = 0;
    for (address, reachable) in wanted {
        if actual.get(address) != Some(&reachable.entry) {
            path.pods.insert(*address, reachable.entry)?;
            writes += 1;
        }
    }
    for address in actual.keys().filter(|address| !wanted.contains_key(address)) {
        path.pods.remove(address)?;
        writes += 1;
    }
    let devices: BTreeSet<String> = wanted.values().map(|pod| pod.device.clone()).collect();
    for device in &devices {
        writes += usize::from(path.ensure_attached(device)? == Attachment::Made);
    }
    writes += path.detach_others(&devices)?;
    Ok(writes)
}

/// Why packets between pods must go through the stack: rules of others, which nobody here can read the meaning of.
fn obstacle(filters: &[Filter], legacy_tables: &str) -> Option<String> {
    let foreign = filters
        .iter()
        .find(|filter| !filter.table.starts_with(OUR_TABLES));
    if let Some(Filter { family, table, chain }) = foreign {
        return Some(format!(
            "nftables chain {chain} of table {family} {table} may mean packets between pods"
        ));
    }
    let legacy = legacy_tables.split_whitespace().find(|table| *table != "nat")?;
    Some(format!(
        "legacy iptables has a table {legacy}, which may mean packets between pods"
    ))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use model::MacAddr;
    use netlink::LinkKind;

    use super::*;

    fn link(name: &str, index: u32, mac: Option<[u8; 6]>) -> (String, Link) {
        let link = Link {
            index,
            name: name.to_owned(),
            mac,
            mtu: 1450,
            up: true,
            loopback: false,
            master: None,
            alias: None,
            parent: None,
            parent_elsewhere: true,
            kind: LinkKind::Veth,
        };
        (name.to_owned(), link)
    }

    fn pod(last: u8, device: &str) -> PodRoute {
        PodRoute {
            address: Ipv4Addr::new(10, 5, 1, last),
            host_ifname: device.to_owned(),
            pod_mac: MacAddr([2, 0, 0, 0, 1, last]),
        }
    }

    #[test]
    fn a_pod_is_reachable_by_its_own_device_once_that_is_there() {
        let mac = [2, 0, 0, 0, 2, 2];
        let links = [
            link("cw2", 7, Some(mac)),
            link("cw3", 8, None),
            link("eth0", 2, Some(mac)),
        ];
        let pods = [pod(2, "cw2"), pod(3, "cw3"), pod(4, "cw4")];
        let entry = Pod {
            ifindex: 7,
            mtu: 1450,
            pod_mac: [2, 0, 0, 0, 1, 2],
            host_mac: mac,
        };
        let reachable = Reachable {
            device: "cw2".to_owned(),
            entry,
        };
        let expected = BTreeMap::from([(Ip::from(Ipv4Addr::new(10, 5, 1, 2)), reachable)]);
        assert_eq!(wanted(&pods, &links.into()), expected);
    }

    #[test]
    fn rules_of_others_are_in_the_way_and_ours_are_not() {
        let filter = |family, table: &str| Filter {
            family,
            table: table.to_owned(),
            chain: "forward".to_owned(),
        };
        let ours = filter("ip6", "causeway-proxy");
        let rows: [(&[Filter], &str, Option<&str>); 5] = [
            (&[], "", None),
            (std::slice::from_ref(&ours), "nat\n", None),
            (
                &[ours.clone(), filter("inet", "firewalld")],
                "",
                Some("nftables chain forward of table inet firewalld may mean packets between pods"),
            ),
            (
                &[filter("ip", "kube-proxy")],
                "filter\n",
                Some("nftables chain forward of table ip kube-proxy may mean packets between pods"),
            ),
            (
                &[],
                "nat\nfilter\n",
                Some("legacy iptables has a table filter, which may mean packets between pods"),
            ),
        ];
        for (filters, legacy, expected) in rows {
            assert_eq!(obstacle(filters, legacy).as_deref(), expected);
        }
    }
}
