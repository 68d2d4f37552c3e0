//! Pods of one node reach each other past the node's network stack: which pods, when not, and keeping it so.
//!
//! The program at each pod's device ([`ebpf::fast_path`]) passes by netfilter. So it is there only while nobody else's
//! rules there could mean the packets of pods. Our own never do: they translate what is addressed to Services or to ports
//! of the node, and what leaves the pod network, and drop what is sent in another's name, which the program lets to them. When rules of others appear, it goes, and connections go on through the stack. Nobody looks
//! while there is no agent: connections begin by the fast path only as long as an agent looked lately.
//!
//! It is for nodes whose sockets are translated before there is a packet. Where rules translate a pod's connections,
//! one to a Service and one to its endpoint may have the same ports, and only connection tracking that sees both tells
//! them apart.
//!
//! Not looked for: what others do with these packets by tc, by policy routing or by IPsec.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use ebpf::abi::net::Ip;
use ebpf::abi::pods::Pod;
use ebpf::{Attachment, FastPath};
use model::with_causes;
use netlink::Link;
use netlink::nft::{Filter, Nft};

use crate::reconcile::{Outcome, PodRoute};

/// What the names of all our nftables tables begin with.
pub(crate) const OUR_TABLES: &str = "causeway-";

/// Tables of x_tables that the thread's network namespace has; absent where the kernel has no x_tables.
const LEGACY_TABLES: [&str; 2] = [
    "/proc/thread-self/net/ip_tables_names",
    "/proc/thread-self/net/ip6_tables_names",
];

/// For how long connections may begin after a look at the node's rules; looks are ten seconds apart.
const LEASE: Duration = Duration::from_secs(60);

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
    /// What the configuration says.
    wish: State,
    path: Option<FastPath>,
    state: State,
}

impl Keeper {
    pub(crate) fn new(pin_dir: PathBuf, wish: State) -> Self {
        Self {
            pin_dir,
            wish,
            path: None,
            state: State::Off,
        }
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Makes the kernel's side what it shall be, in the thread's network namespace. What hinders all of it becomes the
    /// state's reason, since packets have another way; what hinders a part of it is a problem.
    pub(crate) fn keep(
        &mut self,
        nft: &mut Nft,
        pods: &[PodRoute],
        links: &BTreeMap<String, Link>,
        outcome: &mut Outcome,
    ) {
        let state = match &self.wish {
            State::On => match obstacle(nft) {
                None => self.repair(pods, links, outcome),
                Some(reason) => {
                    self.detach(outcome);
                    State::Refused(reason)
                }
            },
            State::Off | State::Refused(_) => {
                self.path = None;
                self.note(FastPath::remove(&self.pin_dir), outcome);
                self.wish.clone()
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
    }

    fn repair(&mut self, pods: &[PodRoute], links: &BTreeMap<String, Link>, outcome: &mut Outcome) -> State {
        let path = match &mut self.path {
            Some(path) => path,
            closed => match FastPath::open(&self.pin_dir) {
                Ok(path) => closed.insert(path),
                Err(error) => return State::Refused(with_causes(&error)),
            },
        };
        repair(path, &wanted(pods, links), outcome);
        if let Err(error) = path.renew(LEASE) {
            problem(outcome, &error);
        }
        State::On
    }

    /// Packets take the stack from here on. What was counted stays.
    fn detach(&mut self, outcome: &mut Outcome) {
        let detached = match &mut self.path {
            Some(path) => path.detach_others(&BTreeSet::new()).map(|detached| detached > 0),
            None => FastPath::remove(&self.pin_dir),
        };
        self.note(detached, outcome);
    }

    fn note(&self, done: Result<bool, ebpf::Error>, outcome: &mut Outcome) {
        match done {
            Ok(written) => outcome.writes += usize::from(written),
            Err(error) => problem(outcome, &error),
        }
    }
}

fn problem(outcome: &mut Outcome, error: &ebpf::Error) {
    outcome
        .problems
        .push(format!("fast path: {}", with_causes(error)));
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

/// Writes the difference. A pod becomes known before its device has the program, and is forgotten before the program
/// goes: what is addressed to it takes the stack then.
fn repair(path: &mut FastPath, wanted: &BTreeMap<Ip, Reachable>, outcome: &mut Outcome) {
    let actual = match path.pods.entries() {
        Ok(actual) => actual,
        Err(error) => return problem(outcome, &error),
    };
    let mut note = |result: Result<usize, ebpf::Error>| match result {
        Ok(writes) => outcome.writes += writes,
        Err(error) => problem(outcome, &error),
    };
    for (address, reachable) in wanted {
        if actual.get(address) != Some(&reachable.entry) {
            note(path.pods.insert(*address, reachable.entry).map(|()| 1));
        }
    }
    for address in actual.keys().filter(|address| !wanted.contains_key(address)) {
        note(path.pods.remove(address).map(|()| 1));
    }
    let devices: BTreeSet<String> = wanted.values().map(|pod| pod.device.clone()).collect();
    for device in &devices {
        let attached = path.ensure_attached(device);
        note(attached.map(|attached| usize::from(attached == Some(Attachment::Made))));
    }
    note(path.detach_others(&devices));
    note(path.remove_other_layouts());
}

/// Why packets between pods must go through the stack: rules of others, which nobody here can read the meaning of, or
/// that they cannot be looked at.
fn obstacle(nft: &mut Nft) -> Option<String> {
    let filters = match nft.filters() {
        Ok(filters) => filters,
        Err(error) => return Some(with_causes(&error)),
    };
    let mut legacy = String::new();
    for path in LEGACY_TABLES {
        match fs::read_to_string(path) {
            Ok(names) => legacy += &names,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Some(format!("read {path}: {error}")),
        }
    }
    foreign(&filters, &legacy)
}

fn foreign(filters: &[Filter], legacy_tables: &str) -> Option<String> {
    let filter = filters
        .iter()
        .find(|filter| !filter.table.starts_with(OUR_TABLES));
    if let Some(Filter { family, table, chain }) = filter {
        return Some(format!(
            "nftables chain {chain} of table {family} {table} may mean packets between pods"
        ));
    }
    let table = legacy_tables.split_whitespace().next()?;
    Some(format!(
        "legacy iptables has a table {table}, which may mean packets between pods"
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
            address: Ipv4Addr::new(10, 5, 1, last).into(),
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
            (std::slice::from_ref(&ours), "", None),
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
                "nat\n",
                Some("legacy iptables has a table nat, which may mean packets between pods"),
            ),
        ];
        for (filters, legacy, expected) in rows {
            assert_eq!(foreign(filters, legacy).as_deref(), expected);
        }
    }
}
