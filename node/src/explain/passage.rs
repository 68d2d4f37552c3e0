//! The fast path between pods: it takes TCP past this node's routes, neighbours and rules.

use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use ebpf::FastPathMaps;
use ebpf::abi::pods::Hop;
use model::MacAddr;
use netlink::Link;
use serde::{Deserialize, Serialize};

use super::objects::Way;
use super::ruling::{self, Opening, Told};
use super::witness::Had;
use super::{Entry, PodHere, Stage, Step};

/// What of the fast path concerns a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The pod's entry.
    Pod(Hop),
    /// The entry of the other node's subnet, and that node.
    Remote(Hop, IpAddr),
}

/// Looks up who takes a packet that comes by `device`. None: the stack does.
///
/// # Errors
/// When the maps cannot be read.
pub fn look(maps: &FastPathMaps, device: &str, to: IpAddr) -> Result<Option<Found>, ebpf::Error> {
    if !maps.is_attached(device) || !maps.lets_begin()? {
        return Ok(None);
    }
    if let Some(hop) = maps.pod(to)? {
        return Ok(Some(Found::Pod(hop)));
    }
    let remote = maps.remote(to)?;
    Ok(remote.map(|remote| Found::Remote(remote.hop, remote.node.into())))
}

/// The maps, as they were read once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recorded {
    /// Devices at which a program looks at what comes by them.
    attached: Vec<String>,
    /// Whether connections might begin at that moment.
    lets_begin: bool,
    pods: Vec<PodRow>,
    remotes: Vec<RemoteRow>,
    /// What the attached programs themselves say.
    #[serde(default = "not_asked")]
    verdicts: Had<ruling::Recorded>,
}

/// What older recordings have.
fn not_asked() -> Had<ruling::Recorded> {
    Had::Missing("its verdict is not recorded".to_owned())
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PodRow {
    address: IpAddr,
    hop: HopRow,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RemoteRow {
    subnet: IpAddr,
    /// How many of 128 bits count; addresses of IPv4 are mapped.
    bits: u32,
    node: IpAddr,
    hop: HopRow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HopRow {
    device: u32,
    mtu: u32,
    there: MacAddr,
    here: MacAddr,
}

impl From<Hop> for HopRow {
    fn from(hop: Hop) -> Self {
        Self {
            device: hop.ifindex,
            mtu: hop.mtu,
            there: MacAddr(hop.there),
            here: MacAddr(hop.here),
        }
    }
}

impl From<HopRow> for Hop {
    fn from(row: HopRow) -> Self {
        Self {
            ifindex: row.device,
            mtu: row.mtu,
            there: row.there.0,
            here: row.here.0,
        }
    }
}

impl Recorded {
    /// Reads the maps that are pinned below `pin_dir`, and asks the programs at the devices of these pods. None where
    /// nothing is pinned.
    ///
    /// # Errors
    /// When the maps cannot be read.
    pub fn take(pin_dir: &Path, links: &[Link], own: &[PodHere]) -> Result<Option<Self>, ebpf::Error> {
        let Some(maps) = FastPathMaps::open(pin_dir)? else {
            return Ok(None);
        };
        let names = links.iter().map(|link| link.name.clone());
        let pods = maps.all_pods()?.into_iter().map(|(address, hop)| PodRow {
            address,
            hop: hop.into(),
        });
        let remotes = maps
            .all_remotes()?
            .into_iter()
            .map(|(subnet, bits, remote)| RemoteRow {
                subnet,
                bits,
                node: remote.node.into(),
                hop: remote.hop.into(),
            });
        Ok(Some(Self {
            attached: names.filter(|name| maps.is_attached(name)).collect(),
            lets_begin: maps.lets_begin()?,
            verdicts: ruling::Recorded::take(&maps, own, links).into(),
            pods: pods.collect(),
            remotes: remotes.collect(),
        }))
    }

    /// As [`look`], where they are.
    #[must_use]
    pub fn look(&self, device: &str, to: IpAddr) -> Option<Found> {
        if !self.lets_begin || !self.attached.iter().any(|attached| attached == device) {
            return None;
        }
        if let Some(pod) = self.pods.iter().find(|pod| pod.address == to) {
            return Some(Found::Pod(pod.hop.into()));
        }
        let remote = self.remote(to)?;
        Some(Found::Remote(remote.hop.into(), remote.node))
    }

    fn remote(&self, to: IpAddr) -> Option<&RemoteRow> {
        let remotes = self.remotes.iter().filter(|remote| remote.has(to));
        remotes.max_by_key(|remote| remote.bits)
    }

    /// Why verdicts of attached programs are not there, where some are not.
    #[must_use]
    pub fn missing_verdicts(&self) -> Option<String> {
        match self.verdicts.there() {
            Ok(recorded) => recorded.missing(),
            Err(reason) => Some(reason),
        }
    }

    /// What the program at a pod's device said of such a packet. None: none of ours was there.
    ///
    /// # Errors
    /// When it was not asked; for people.
    pub fn ruling(&self, opening: &Opening<'_>) -> Result<Option<Told>, String> {
        let subnet = self.remote(opening.to).map(|remote| remote.subnet);
        self.verdicts.there()?.told(opening, subnet)
    }
}

impl RemoteRow {
    fn has(&self, address: IpAddr) -> bool {
        let number = |address: IpAddr| {
            let mapped: Ipv6Addr = match address {
                IpAddr::V4(address) => address.to_ipv6_mapped(),
                IpAddr::V6(address) => address,
            };
            u128::from(mapped)
        };
        let differs = number(self.subnet) ^ number(address);
        differs.leading_zeros() >= self.bits
    }
}

/// What both say of it. `index` is that of the device that the plan leads to, where there is one.
#[must_use]
pub fn step(wanted: &Way, to: IpAddr, device: &str, found: Result<Found, &str>, index: Option<u32>) -> Step {
    let mut step = Step::new(Stage::FastPath, to.to_string());
    step.objects
        .push("TCP from pod to pod: past this node's routes, neighbours and rules".to_owned());
    let attached = Some("a program looks at what comes by it".to_owned());
    step.kernel.push(Entry::new("pinned links", device, attached));
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            step.unknown.push(format!("its maps cannot be read: {error}"));
            return step;
        }
    };
    let hop = match found {
        Found::Pod(hop) => {
            step.kernel
                .push(Entry::new("map PODS", to.to_string(), Some(hop_text(&hop))));
            hop
        }
        Found::Remote(hop, node) => {
            let value = format!("node {node}, {}", hop_text(&hop));
            step.kernel
                .push(Entry::new("map REMOTES", to.to_string(), Some(value)));
            hop
        }
    };
    let mac = MacAddr(hop.there);
    let leads = match (wanted, found) {
        (Way::Pod { mac: wanted, .. }, Found::Pod(_)) => wanted.is_none_or(|wanted| wanted == mac),
        (
            Way::Tunnel {
                mac: wanted,
                public_ip,
                ..
            },
            Found::Remote(_, node),
        ) => (*wanted, *public_ip) == (mac, node),
        _ => false,
    };
    if !leads || index.is_some_and(|index| index != hop.ifindex) {
        step.problems.push(format!(
            "the fast path leads {to} to {mac} by device {}, not to where it is",
            hop.ifindex
        ));
    }
    step
}

fn hop_text(hop: &Hop) -> String {
    format!(
        "{} by device {}, MTU {}",
        MacAddr(hop.there),
        hop.ifindex,
        hop.mtu
    )
}

/// Makes of what the stack would stumble over what it is where the fast path serves: differences. A device that is down
/// or too small stops both, and so does an underlay without a way.
pub fn pass_by(steps: &mut [Step]) {
    let is_passed = |step: &&mut Step| !matches!(step.stage, Stage::Link | Stage::Underlay);
    for step in steps.iter_mut().filter(is_passed) {
        let problems = std::mem::take(&mut step.problems);
        step.differences.extend(problems);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_maps_give_the_longest_subnet_and_pods_first() {
        let hop = |device| HopRow {
            device,
            mtu: 1450,
            there: MacAddr([2, 0, 0, 0, 0, 1]),
            here: MacAddr([2, 0, 0, 0, 0, 2]),
        };
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let remote = |subnet: &str, bits, device| RemoteRow {
            subnet: address(subnet),
            bits,
            node: address("172.30.8.12"),
            hop: hop(device),
        };
        let mut maps = Recorded {
            attached: vec!["cw1".to_owned()],
            lets_begin: true,
            verdicts: not_asked(),
            pods: vec![PodRow {
                address: address("10.244.1.2"),
                hop: hop(1),
            }],
            remotes: vec![
                remote("10.244.0.0", 96 + 16, 2),
                remote("10.244.3.0", 96 + 24, 3),
                remote("fd00::", 64, 4),
            ],
        };
        let device = |maps: &Recorded, by: &str, to: &str| {
            maps.look(by, address(to)).map(|found| match found {
                Found::Pod(hop) | Found::Remote(hop, _) => hop.ifindex,
            })
        };
        assert_eq!(device(&maps, "cw1", "10.244.1.2"), Some(1));
        assert_eq!(device(&maps, "cw1", "10.244.1.3"), Some(2));
        assert_eq!(device(&maps, "cw1", "10.244.3.9"), Some(3));
        assert_eq!(device(&maps, "cw1", "fd00::9"), Some(4));
        assert_eq!(device(&maps, "cw1", "10.245.0.1"), None);
        assert_eq!(device(&maps, "cw2", "10.244.1.2"), None);
        maps.lets_begin = false;
        assert_eq!(device(&maps, "cw1", "10.244.1.2"), None);
    }
}
