//! Pods reach each other past their nodes' network stacks, on one node and through the tunnel: which pods, when not, and
//! keeping it so.
//!
//! The programs at the devices of pods, tunnel and underlay ([`ebpf::fast_path`]) pass by netfilter, so they are there
//! only while nobody else's rules could mean what they pass by: rules for forwarded packets, and IPsec policies, take
//! all of them away; where there are rules for packets to or from the node, which wrapped ones are, the tunnel's device
//! wraps and unwraps. Our own rules never stand in the way: they translate what is addressed to Services or to ports of
//! the node, and what leaves the pod network; and what they drop as sent in another's name, the programs leave to them.
//! When rules of others appear, the programs go, and connections go on through the stack. Nobody looks while there is no
//! agent: connections begin by the fast path only as long as an agent looked lately.
//!
//! It is for nodes whose sockets are translated before there is a packet. Where rules translate a pod's connections,
//! one to a Service and one to its endpoint may have the same ports, and only connection tracking that sees both tells
//! them apart.
//!
//! Not looked for: what others do with these packets by tc or by policy routing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ebpf::abi::net::{Ip, Port};
use ebpf::abi::pods::{self, ADDRESS_BITS, Hop, Tunnel};
use ebpf::fast_path::Origin;
use ebpf::{Attachment, FastPath};
use ipnetwork::IpNetwork;
use model::{ByFamily, IpFamily, with_causes};
use netlink::nft::{self, Filter, Nft};
use netlink::{Kernel, Link, Way, sysctl, xfrm};

use crate::plan::{Plan, Remote, vxlan_overhead};
use crate::reconcile::{Mirror, Outcome, PodRoute};

mod ways;

use ways::Ways;

/// What the names of all our nftables tables begin with.
pub(crate) const OUR_TABLES: &str = "causeway-";

/// Tables of x_tables that the thread's network namespace has; absent where the kernel has no x_tables.
const LEGACY_TABLES: [&str; 2] = [
    "/proc/thread-self/net/ip_tables_names",
    "/proc/thread-self/net/ip6_tables_names",
];

/// How many hops packets of IPv4 may go.
const DEFAULT_HOPS: &str = "net/ipv4/ip_default_ttl";

/// The ports that the kernel chooses from, those of the tunnel's packets among them: the first and the last.
const LOCAL_PORTS: &str = "net/ipv4/ip_local_port_range";

/// For how long connections may begin after a look at the node's rules; looks are ten seconds apart.
const LEASE: Duration = Duration::from_secs(60);

/// Whether TCP between pods passes by this node's network stack.
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

/// What a pass knows of the node.
pub(crate) struct Node<'a> {
    pub(crate) plan: &'a Plan,
    /// The name of the underlay's device.
    pub(crate) underlay: &'a str,
    pub(crate) pods: &'a [PodRoute],
    pub(crate) mirror: &'a Mirror,
}

/// The fast path of one node.
pub(crate) struct Keeper {
    pin_dir: PathBuf,
    /// What the configuration says.
    wish: State,
    path: Option<FastPath>,
    ways: Ways,
    state: State,
}

impl Keeper {
    pub(crate) fn new(pin_dir: PathBuf, wish: State) -> Self {
        Self {
            pin_dir,
            wish,
            path: None,
            ways: Ways::default(),
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
        kernel: &mut impl Kernel,
        passage: &Result<Passage, String>,
        node: &Node<'_>,
        outcome: &mut Outcome,
    ) {
        let state = match &self.wish {
            State::On => match passage {
                Ok(passage) => {
                    let underlay = match passage {
                        Passage::Whole => Underlay::of(node.mirror.links.get(node.underlay), outcome),
                        Passage::BehindDevice => None,
                    };
                    if let Some(underlay) = &underlay {
                        self.ways.look(kernel, node, underlay.link, outcome);
                    }
                    let wanted = Wanted::new(node, underlay, &self.ways.known);
                    self.repair(&wanted, outcome)
                }
                Err(reason) => {
                    self.detach(outcome);
                    State::Refused(reason.clone())
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
                State::On => tracing::info!("pods reach each other by the fast path"),
                State::Off => tracing::info!("the fast path between pods is switched off"),
                State::Refused(reason) => {
                    tracing::info!(%reason, "pods reach each other through the network stack");
                }
            }
            self.state = state;
        }
    }

    fn repair(&mut self, wanted: &Wanted, outcome: &mut Outcome) -> State {
        let path = match &mut self.path {
            Some(path) => path,
            closed => match FastPath::open(&self.pin_dir) {
                Ok(path) => closed.insert(path),
                Err(error) => return State::Refused(with_causes(&error)),
            },
        };
        repair(path, wanted, outcome);
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

/// The device of the underlay, which wrapped packets may come and go by.
#[derive(Clone, Copy, Debug)]
struct Underlay<'a> {
    link: &'a Link,
    /// The first UDP port that they leave from, and how many there are.
    ports: (u16, u16),
    /// How many hops they may go, and how large they may be, in bytes, where no route says less.
    limits: ByFamily<Limits>,
}

/// What the node's settings say of packets of a version of IP that leave by the underlay's device.
#[derive(Clone, Copy, Debug)]
struct Limits {
    hops: u32,
    mtu: u32,
}

impl<'a> Underlay<'a> {
    /// `None`: the tunnel's device shall do it. The programs look for IP behind an Ethernet header.
    fn of(link: Option<&'a Link>, outcome: &mut Outcome) -> Option<Self> {
        let link = link.filter(|link| link.mac.is_some())?;
        let read = || Ok::<_, String>((ports()?, limits(link)?));
        match read() {
            Ok((ports, limits)) => Some(Self { link, ports, limits }),
            Err(error) => {
                outcome.problems.push(format!("fast path: {error}"));
                None
            }
        }
    }
}

/// What is reached by the fast path, and from where.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// Pods of this node by address.
    pods: BTreeMap<Ip, Hop>,
    /// Other nodes' subnets by network address and length of the prefix.
    remotes: BTreeMap<(Ip, u32), pods::Remote>,
    /// What is for the tunnels' devices, of IPv4 and IPv6.
    tunnels: [Tunnel; Tunnel::COUNT as usize],
    /// The devices that packets come from.
    devices: BTreeMap<String, Origin>,
}

impl Wanted {
    /// Pods and tunnels whose device is there. One that is not there yet, or no more, brings us back by its event.
    /// Where the underlay is given, wrapped packets come and go by its device. What is given to a pod past the stack
    /// passes by the queue of its device, too: one with a limit on what comes to it is reached through the stack alone.
    fn new(node: &Node<'_>, underlay: Option<Underlay<'_>>, ways: &BTreeMap<IpAddr, Option<Way>>) -> Self {
        let links = &node.mirror.links;
        let mut wanted = Self::default();
        for pod in node.pods {
            if let Some(hop) = hop(links.get(&pod.host_ifname), pod.pod_mac.0) {
                if !pod.is_limited {
                    wanted.pods.insert(Ip::from(pod.address), hop);
                }
                wanted.devices.insert(pod.host_ifname.clone(), Origin::Pod);
            }
        }
        for (family, half) in node.plan.halves.iter() {
            let Some(device) = &half.device else { continue };
            let tunnel = links.get(&device.name);
            // What the tunnel's device would cut up, or has more to say in its header, it does.
            let limits = underlay.and_then(|underlay| Some((underlay, *underlay.limits.get(family)?)));
            let fits = |mtu: u32| tunnel.is_some_and(|link| link.mtu + vxlan_overhead(family) <= mtu);
            let wraps = limits.filter(|(_, limits)| !device.gbp && fits(limits.mtu));
            for (subnet, remote) in &half.remotes {
                if let Remote::Tunnel { mac, public_ip, .. } = remote
                    && let Some(hop) = hop(tunnel, mac.0)
                {
                    let by_device = pods::Remote {
                        hop,
                        node: Ip::from(*public_ip),
                        underlay: 0,
                        neighbour: Ip::ANY,
                        hops: 0,
                    };
                    let way = ways.get(public_ip).copied().flatten();
                    let remote = wraps.zip(way).map_or(by_device, |((underlay, limits), way)| {
                        let passes = way.mtu.map(|mtu| mtu.saturating_sub(vxlan_overhead(family)));
                        pods::Remote {
                            hop: Hop {
                                mtu: passes.map_or(hop.mtu, |mtu| mtu.min(hop.mtu)),
                                ..hop
                            },
                            underlay: underlay.link.index,
                            neighbour: way.neighbour.map_or(Ip::ANY, Ip::from),
                            hops: way.hops.unwrap_or(limits.hops),
                            ..by_device
                        }
                    });
                    wanted.remotes.insert(key(*subnet), remote);
                    wanted.devices.insert(device.name.clone(), Origin::Tunnel);
                }
            }
            // A header with more in it than the network's identifier is the stack's.
            if let Some(link) = tunnel.filter(|_| !device.gbp) {
                let [v4, v6] = &mut wanted.tunnels;
                let entry = match family {
                    IpFamily::V4 => v4,
                    IpFamily::V6 => v6,
                };
                let (first_port, ports) = underlay.map(|underlay| underlay.ports).unwrap_or_default();
                *entry = Tunnel {
                    ifindex: link.index,
                    local: Ip::from(device.local),
                    vni: Tunnel::vni(device.vni.0),
                    port: Port::new(device.port),
                    mac: device.mac.0,
                    first_port,
                    ports,
                };
            }
        }
        let has_tunnel = wanted.devices.values().any(|origin| *origin == Origin::Tunnel);
        if let Some(underlay) = underlay.filter(|_| has_tunnel) {
            wanted
                .devices
                .insert(underlay.link.name.clone(), Origin::Underlay);
        }
        wanted
    }
}

/// A hop by a device, where that is there.
fn hop(link: Option<&Link>, there: [u8; 6]) -> Option<Hop> {
    let link = link?;
    Some(Hop {
        ifindex: link.index,
        mtu: link.mtu,
        there,
        here: link.mac?,
    })
}

/// The subnet as the programs' map has it, where IPv4 addresses are mapped.
fn key(subnet: IpNetwork) -> (Ip, u32) {
    let bits = match subnet {
        IpNetwork::V4(_) => 32,
        IpNetwork::V6(_) => 128,
    };
    let length = ADDRESS_BITS - bits + u32::from(subnet.prefix());
    (Ip::from(subnet.network()), length)
}

/// Writes the difference. What packets go to becomes known before the devices that they come from have the program, and
/// is forgotten before the program goes: what is addressed to it takes the stack then.
fn repair(path: &mut FastPath, wanted: &Wanted, outcome: &mut Outcome) {
    let (pods, remotes) = match (path.pods.entries(), path.remotes.entries()) {
        (Ok(pods), Ok(remotes)) => (pods, remotes),
        (Err(error), _) | (_, Err(error)) => return problem(outcome, &error),
    };
    let mut note = |result: Result<usize, ebpf::Error>| match result {
        Ok(writes) => outcome.writes += writes,
        Err(error) => problem(outcome, &error),
    };
    for (address, hop) in &wanted.pods {
        if pods.get(address) != Some(hop) {
            note(path.pods.insert(*address, *hop).map(|()| 1));
        }
    }
    for (subnet, remote) in &wanted.remotes {
        if remotes.get(subnet) != Some(remote) {
            note(path.remotes.insert(*subnet, *remote).map(|()| 1));
        }
    }
    note(path.set_tunnels(wanted.tunnels));
    for address in pods.keys().filter(|address| !wanted.pods.contains_key(address)) {
        note(path.pods.remove(address).map(|()| 1));
    }
    for subnet in remotes
        .keys()
        .filter(|subnet| !wanted.remotes.contains_key(subnet))
    {
        note(path.remotes.remove(*subnet).map(|()| 1));
    }
    for (device, origin) in &wanted.devices {
        let attached = path.ensure_attached(device, *origin);
        note(attached.map(|attached| usize::from(attached == Some(Attachment::Made))));
    }
    note(path.detach_others(&wanted.devices.keys().cloned().collect()));
    note(path.remove_other_layouts());
}

/// What of the stack packets between pods may pass by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passage {
    /// All of it.
    Whole,
    /// All but the tunnel's device: others have rules for packets to or from this node, which wrapped ones are.
    BehindDevice,
}

/// What packets between pods may pass by; or why they must go through the stack: rules of others, which nobody here can
/// read the meaning of, or that they cannot be looked at.
pub(crate) fn passage(nft: &mut Nft) -> Result<Passage, String> {
    let filters = foreign_filters(nft).map_err(|error| with_causes(&error))?;
    let legacy = legacy_tables()?.join(" ");
    let has_policies = xfrm::has_policies().map_err(|error| format!("look for IPsec policies: {error}"))?;
    passage_beside(&filters, &legacy, has_policies)
}

/// Base chains of others in the thread's network namespace that may drop or change packets.
///
/// # Errors
/// When the kernel does not list them.
pub fn foreign_filters(nft: &mut Nft) -> Result<Vec<Filter>, nft::Error> {
    Ok(foreign(nft.filters()?))
}

/// Whether a table of nftables is ours, by its name.
#[must_use]
pub fn is_ours(table: &str) -> bool {
    table.starts_with(OUR_TABLES)
}

/// Tables of legacy iptables in the thread's network namespace, whose rules nobody here reads.
///
/// # Errors
/// When the kernel does not tell.
pub fn legacy_tables() -> Result<Vec<String>, String> {
    let mut legacy = Vec::new();
    for path in LEGACY_TABLES {
        match fs::read_to_string(path) {
            Ok(names) => legacy.extend(names.split_whitespace().map(str::to_owned)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(format!("read {path}: {error}")),
        }
    }
    Ok(legacy)
}

fn foreign(mut filters: Vec<Filter>) -> Vec<Filter> {
    filters.retain(|filter| !is_ours(&filter.table));
    filters
}

fn passage_beside(foreign: &[Filter], legacy_tables: &str, has_policies: bool) -> Result<Passage, String> {
    let (of_the_node, passing): (Vec<_>, Vec<_>) = foreign.iter().partition(|filter| filter.is_of_node);
    if let Some(Filter {
        family, table, chain, ..
    }) = passing.first()
    {
        return Err(format!(
            "nftables chain {chain} of table {family} {table} may mean packets between pods"
        ));
    }
    if let Some(table) = legacy_tables.split_whitespace().next() {
        return Err(format!(
            "legacy iptables has a table {table}, which may mean packets between pods"
        ));
    }
    if has_policies {
        return Err("IPsec policies may mean packets between pods".to_owned());
    }
    Ok(if of_the_node.is_empty() {
        Passage::Whole
    } else {
        Passage::BehindDevice
    })
}

/// The first of the ports that the tunnel's packets leave from in the thread's network namespace, and how many.
fn ports() -> Result<(u16, u16), String> {
    let text = sysctl::read(LOCAL_PORTS).map_err(|error| with_causes(&error))?;
    port_range(&text).ok_or_else(|| format!("{LOCAL_PORTS} is {text:?}, not two ports"))
}

/// What the settings in the thread's network namespace say. A kernel without IPv6 has none of it, and sends none.
fn limits(link: &Link) -> Result<ByFamily<Limits>, String> {
    let of_v6 = |name: &str| format!("net/ipv6/conf/{}/{name}", link.name);
    let hops = number(DEFAULT_HOPS)?.unwrap_or_default();
    let (v6_hops, v6_mtu) = (number(&of_v6("hop_limit"))?, number(&of_v6("mtu"))?);
    Ok(ByFamily {
        v4: Some(Limits { hops, mtu: link.mtu }),
        v6: v6_hops.zip(v6_mtu).map(|(hops, mtu)| Limits {
            hops,
            mtu: mtu.min(link.mtu),
        }),
    })
}

fn number(setting: &str) -> Result<Option<u32>, String> {
    match sysctl::read(setting) {
        Ok(text) => {
            let number = text.trim().parse();
            let number = number.map_err(|_| format!("{setting} is {text:?}, not a number"));
            number.map(Some)
        }
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(with_causes(&error)),
    }
}

/// The device leaves the last one out.
fn port_range(text: &str) -> Option<(u16, u16)> {
    let mut words = text.split_whitespace().map(str::parse::<u16>);
    let (first, last) = (words.next()?.ok()?, words.next()?.ok()?);
    Some((first, last.checked_sub(first)?))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use model::{MacAddr, Mtu, Vni};
    use netlink::LinkKind;

    use super::*;
    use crate::plan::{Device, Half};

    fn link(name: &str, index: u32, mac: Option<[u8; 6]>) -> (String, Link) {
        let link = Link {
            index,
            name: name.to_owned(),
            mac,
            mtu: 1450,
            up: true,
            running: true,
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
            is_limited: false,
        }
    }

    pub(super) const MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];

    /// Of a node with another one, in both versions of IP.
    pub(super) fn plan() -> Plan {
        let half = |name: &str, subnet: &str, public_ip: &str| {
            let [local, vtep, public_ip] = [public_ip; 3].map(|text| text.parse().expect("an address"));
            let device = Device {
                name: name.to_owned(),
                vni: Vni(1),
                port: 8472,
                gbp: false,
                mac: MacAddr(MAC),
                mtu: Mtu(1450),
                local,
                address: local,
            };
            let remote = Remote::Tunnel {
                vtep,
                mac: MacAddr([2, 0, 0, 0, 3, 3]),
                public_ip,
            };
            Half {
                network: IpNetwork::from(local),
                subnet: IpNetwork::from(local),
                device: Some(device),
                remotes: [(subnet.parse().expect("a network"), remote)].into(),
            }
        };
        Plan {
            halves: ByFamily {
                v4: Some(half("flannel.1", "10.5.2.0/24", "192.0.2.2")),
                v6: Some(half("flannel-v6.1", "fd05:0:0:2::/64", "2001:db8::2")),
            },
            pod_mtu: Mtu(1450),
        }
    }

    #[test]
    fn pods_and_subnets_are_reachable_by_devices_that_are_there() {
        let mac = MAC;
        let links = [
            link("cw2", 7, Some(mac)),
            link("cw3", 8, None),
            link("cw5", 10, Some(mac)),
            link("flannel.1", 9, Some(mac)),
        ];
        let limited = PodRoute {
            is_limited: true,
            ..pod(5, "cw5")
        };
        let pods = [pod(2, "cw2"), pod(3, "cw3"), pod(4, "cw4"), limited];
        let plan = plan();
        let expected = |ifindex, there| Hop {
            ifindex,
            mtu: 1450,
            there,
            here: mac,
        };
        let mut mirror = Mirror::default();
        mirror.links = BTreeMap::from(links);
        let node = Node {
            plan: &plan,
            underlay: "eth0",
            pods: &pods,
            mirror: &mirror,
        };
        let (_, mut eth0) = link("eth0", 4, Some(mac));
        eth0.mtu = 1500;
        let public_ip = IpAddr::from([192, 0, 2, 2]);
        let way = |neighbour, mtu, hops| {
            let way = Way { neighbour, mtu, hops };
            BTreeMap::from([(public_ip, Some(way))])
        };
        let ports = (32768, 28231);
        let underlay = |mtu| Underlay {
            link: &eth0,
            ports,
            limits: ByFamily {
                v4: Some(Limits { hops: 64, mtu }),
                v6: None,
            },
        };
        let whole = Some(underlay(1500));
        let wanted = Wanted::new(&node, whole, &way(Some(public_ip), None, None));
        let pod = (
            Ip::from(Ipv4Addr::new(10, 5, 1, 2)),
            expected(7, [2, 0, 0, 0, 1, 2]),
        );
        assert_eq!(wanted.pods, [pod].into());
        // The device for IPv6 is not there.
        let subnet = (Ip::from(Ipv4Addr::new(10, 5, 2, 0)), 96 + 24);
        let remote = pods::Remote {
            hop: expected(9, [2, 0, 0, 0, 3, 3]),
            node: Ip::from(public_ip),
            underlay: 4,
            neighbour: Ip::from(public_ip),
            hops: 64,
        };
        assert_eq!(wanted.remotes, [(subnet, remote)].into());
        let tunnel = Tunnel {
            ifindex: 9,
            local: Ip::from(Ipv4Addr::new(192, 0, 2, 2)),
            vni: 0x100_u32.to_be(),
            port: Port::new(8472),
            mac,
            first_port: 32768,
            ports: 28231,
        };
        assert_eq!(wanted.tunnels, [tunnel, Tunnel::default()]);
        let devices = [
            ("cw2", Origin::Pod),
            ("cw5", Origin::Pod),
            ("eth0", Origin::Underlay),
            ("flannel.1", Origin::Tunnel),
        ];
        assert_eq!(
            wanted.devices,
            devices.map(|(device, origin)| (device.to_owned(), origin)).into()
        );
        // What the routes do not take is the stack's to answer; who of several gets a packet, theirs to say.
        for (mtu, passes) in [(9000, 1450), (1499, 1449), (40, 0)] {
            let wanted = Wanted::new(&node, whole, &way(None, Some(mtu), Some(9)));
            let remote = &wanted.remotes[&subnet];
            let said = (remote.hop.mtu, remote.neighbour, remote.hops);
            assert_eq!(said, (passes, Ip::ANY, 9));
        }
        let by_device = pods::Remote {
            underlay: 0,
            neighbour: Ip::ANY,
            hops: 0,
            ..remote
        };
        // Where somebody has rules for packets to or from the node, they meet those.
        let wanted = Wanted::new(&node, None, &way(Some(public_ip), Some(40), None));
        assert_eq!(wanted.remotes, [(subnet, by_device)].into());
        assert!(!wanted.devices.contains_key("eth0"));
        // What the underlay does not take whole, the tunnel's device cuts up; what no route leads by it, that knows.
        let small = Some(underlay(1499));
        for (underlay, ways) in [
            (small, way(Some(public_ip), None, None)),
            (whole, BTreeMap::from([(public_ip, None)])),
            (whole, BTreeMap::new()),
        ] {
            let wanted = Wanted::new(&node, underlay, &ways);
            assert_eq!(wanted.remotes, [(subnet, by_device)].into());
            assert!(wanted.devices.contains_key("eth0"));
        }
        // One without Ethernet is left alone.
        eth0.mac = None;
        let mut outcome = Outcome::default();
        assert!(Underlay::of(Some(&eth0), &mut outcome).is_none());
        assert_eq!(outcome, Outcome::default());
    }

    #[test]
    fn the_last_port_of_the_range_is_not_the_tunnels() {
        let rows = [
            ("32768\t60999\n", Some((32768, 28231))),
            ("7 7", Some((7, 0))),
            ("8 7", None),
            ("8", None),
            ("1 70000", None),
        ];
        for (text, expected) in rows {
            assert_eq!(port_range(text), expected, "{text:?}");
        }
    }

    #[test]
    fn rules_of_others_are_in_the_way_and_ours_are_not() {
        let filter = |family, table: &str, chain: &str| Filter {
            family,
            table: table.to_owned(),
            chain: chain.to_owned(),
            is_of_node: chain != "forward",
        };
        let ours = filter("ip6", "causeway-proxy", "forward");
        let ours_too = filter("ip", "causeway-guard", "input");
        let in_the_way = |what: &str| Err(format!("{what} may mean packets between pods"));
        let rows: [(&[Filter], &str, Result<Passage, String>); 7] = [
            (&[], "", Ok(Passage::Whole)),
            (&[ours.clone(), ours_too], "", Ok(Passage::Whole)),
            (
                &[filter("inet", "firewalld", "input")],
                "",
                Ok(Passage::BehindDevice),
            ),
            (
                &[ours.clone(), filter("inet", "firewalld", "forward")],
                "",
                in_the_way("nftables chain forward of table inet firewalld"),
            ),
            (
                &[filter("ip", "a", "input"), filter("ip", "a", "forward")],
                "",
                in_the_way("nftables chain forward of table ip a"),
            ),
            (
                &[filter("ip", "kube-proxy", "forward")],
                "filter\n",
                in_the_way("nftables chain forward of table ip kube-proxy"),
            ),
            (&[], "nat\n", in_the_way("legacy iptables has a table nat, which")),
        ];
        for (filters, legacy, expected) in rows {
            assert_eq!(
                passage_beside(&foreign(filters.to_vec()), legacy, false),
                expected
            );
        }
        assert!(passage_beside(&[], "", true).is_err());
    }
}
