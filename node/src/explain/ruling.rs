//! Engine C: the attached program's own verdict. The program at a pod's device is run, in the kernel, on a packet that
//! nobody sends ([`ebpf::ruling`]); what it makes of it stands beside what its maps and the objects say.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpf::FastPathMaps;
use ebpf::ruling::{Asked, Attached, NOBODY, Ruling};
use model::{MacAddr, with_causes};
use netlink::{Link, LinkKind};
use serde::{Deserialize, Serialize};

use super::objects::Way;
use super::passage::Found;
use super::{Entry, PodHere, Stage, Step};

/// Runs that are written down; more are not worth their room.
const RECORDED: usize = 1 << 14;

/// A pod's connection.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// The pod's device on the node's side.
    pub device: &'a str,
    /// The pod's address.
    pub source: IpAddr,
    /// The MAC address of the pod's own device.
    pub mac: MacAddr,
    /// The receiver's address.
    pub to: IpAddr,
    /// The port there.
    pub port: u16,
}

/// The program at a device, and what it makes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Which.
    pub program: Program,
    /// What it does.
    pub verdict: Verdict,
}

/// A program at a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The kernel's number for it.
    id: u32,
    /// Others that look at packets before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    before: Vec<String>,
}

/// What it does with a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It leaves it to the network stack, as the counter of this name counts.
    Stack(String),
    /// It drops it.
    Drops,
    /// It sends it by a device.
    Sends {
        /// Index of the device.
        device: u32,
        /// The MAC address that the pod's packet goes to.
        there: MacAddr,
        /// What is around it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        wrapping: Option<Wrapping>,
    },
    /// It is of another version, which answers nobody.
    Silent,
}

/// What is around a packet in the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrapping {
    source: IpAddr,
    destination: IpAddr,
    port: u16,
    vni: u32,
}

impl From<Ruling> for Verdict {
    fn from(ruling: Ruling) -> Self {
        match ruling {
            Ruling::Stack(reason) => Self::Stack(reason.to_owned()),
            Ruling::Dropped => Self::Drops,
            Ruling::Sent {
                device,
                there,
                wrapping,
            } => Self::Sends {
                device,
                there: MacAddr(there),
                wrapping: wrapping.map(|around| {
                    let ebpf::ruling::Wrapping {
                        source,
                        destination,
                        port,
                        vni,
                    } = around;
                    Wrapping {
                        source,
                        destination,
                        port,
                        vni,
                    }
                }),
            },
            Ruling::Unknown(_) => Self::Silent,
        }
    }
}

impl Verdict {
    fn text(&self) -> String {
        match self {
            Self::Stack(reason) => format!("leaves it to the stack ({reason})"),
            Self::Drops => "drops it".to_owned(),
            Self::Sends {
                device,
                there,
                wrapping: None,
            } => format!("sends it to {there} by device {device}"),
            Self::Sends {
                device,
                there,
                wrapping: Some(around),
            } => format!(
                "wraps it for {there}, network {}, {} -> {}:{}/UDP, by device {device}",
                around.vni, around.source, around.destination, around.port
            ),
            Self::Silent => "it is of another version, and does not tell".to_owned(),
        }
    }
}

/// Asks the program at a device of the calling thread's network namespace. None: none of ours is there.
///
/// # Errors
/// When the kernel does not run it; for people.
pub fn ask(maps: &FastPathMaps, link: &Link, opening: &Opening<'_>) -> Result<Option<Told>, String> {
    let attached = Attached::at(opening.device, maps).map_err(|error| with_causes(&error))?;
    let Some(attached) = attached else {
        return Ok(None);
    };
    Ok(Some(Told {
        program: Program::of(&attached),
        verdict: run(&attached, link, opening)?,
    }))
}

fn run(attached: &Attached, link: &Link, opening: &Opening<'_>) -> Result<Verdict, String> {
    let asked = Asked {
        device: link.index,
        macs: (link.mac.unwrap_or_default(), opening.mac.0),
        source: opening.source,
        destination: opening.to,
        port: opening.port,
    };
    let ruling = attached.ask(&asked).map_err(|error| with_causes(&error))?;
    Ok(ruling.into())
}

impl Program {
    fn of(attached: &Attached) -> Self {
        Self {
            id: attached.id,
            before: attached.before.clone(),
        }
    }
}

/// What the programs at pods' devices make of packets to each of their entries, as it was asked once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Each verdict once.
    verdicts: Vec<Verdict>,
    senders: Vec<Sender>,
}

/// An address of a pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sender {
    device: String,
    source: IpAddr,
    /// None: no program of ours is there.
    program: Option<Program>,
    /// Which verdict, by a pod's address, or that of another node's subnet, or of nobody.
    to: BTreeMap<IpAddr, usize>,
    /// Why it was not asked, or not of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
}

/// A program at a device, and what asks it.
type Asking<'a> = (Program, Box<dyn Fn(&Opening<'_>) -> Result<Verdict, String> + 'a>);

impl Recorded {
    /// Asks in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the maps cannot be read, or there is too much to ask; for people. A program that does not run is an error of its
    /// senders alone ([`Self::missing`]).
    pub fn take(maps: &FastPathMaps, pods: &[PodHere], links: &[Link]) -> Result<Self, String> {
        let failed = |error: ebpf::Error| with_causes(&error);
        // A subnet's first addresses are its own and its tunnel's.
        let within = |subnet: IpAddr| match subnet {
            IpAddr::V4(address) => IpAddr::from(Ipv4Addr::from(u32::from(address) | 2)),
            IpAddr::V6(address) => IpAddr::from(Ipv6Addr::from(u128::from(address) | 2)),
        };
        let mut receivers: BTreeMap<IpAddr, IpAddr> = NOBODY.map(|address| (address, address)).into();
        let remotes = maps.all_remotes().map_err(failed)?;
        receivers.extend(remotes.into_iter().map(|(subnet, ..)| (subnet, within(subnet))));
        let here = maps.all_pods().map_err(failed)?;
        receivers.extend(here.into_iter().map(|(address, _)| (address, address)));
        let own = pods.iter().flat_map(|pod| &pod.addresses);
        receivers.extend(own.map(|address| (*address, *address)));
        let senders = pods.iter().flat_map(|pod| &pod.addresses).count();
        if senders * receivers.len() > RECORDED {
            return Err(format!(
                "the verdicts of the programs at pods' devices are not recorded: {senders} addresses of pods by {} are too many",
                receivers.len()
            ));
        }
        Ok(Self::of(pods, &receivers, |device| {
            let Some(link) = links.iter().find(|link| link.name == device) else {
                return Ok(None);
            };
            let attached = Attached::at(device, maps).map_err(failed)?;
            Ok(attached.map(|attached| -> Asking<'_> {
                let program = Program::of(&attached);
                (program, Box::new(move |opening| run(&attached, link, opening)))
            }))
        }))
    }

    /// `open` finds the program at a device.
    fn of<'a>(
        pods: &[PodHere],
        receivers: &BTreeMap<IpAddr, IpAddr>,
        open: impl Fn(&str) -> Result<Option<Asking<'a>>, String>,
    ) -> Self {
        let mut recorded = Self::default();
        for pod in pods {
            if let Some(mac) = pod.mac {
                recorded.add(pod, mac, receivers, open(&pod.device));
            }
        }
        recorded
    }

    fn add(
        &mut self,
        pod: &PodHere,
        mac: MacAddr,
        receivers: &BTreeMap<IpAddr, IpAddr>,
        opened: Result<Option<Asking<'_>>, String>,
    ) {
        for source in &pod.addresses {
            let mut sender = Sender {
                device: pod.device.clone(),
                source: *source,
                program: None,
                to: BTreeMap::new(),
                missing: None,
            };
            let receivers = receivers
                .iter()
                .filter(|(_, receiver)| receiver.is_ipv4() == source.is_ipv4());
            let asked = match &opened {
                Ok(None) => Ok(()),
                Ok(Some((program, ask))) => {
                    sender.program = Some(program.clone());
                    receivers.into_iter().try_for_each(|(name, receiver)| {
                        let verdict = ask(&Opening {
                            device: &pod.device,
                            source: *source,
                            mac,
                            to: *receiver,
                            port: 1,
                        })?;
                        sender.to.insert(*name, self.place(verdict));
                        Ok(())
                    })
                }
                Err(reason) => Err(reason.clone()),
            };
            sender.missing = asked.err();
            self.senders.push(sender);
        }
    }

    /// Whose programs were not asked of all, and why; for people.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let missing = self.senders.iter().filter_map(|sender| {
            let reason = sender.missing.as_ref()?;
            Some(format!("{} at {}: {reason}", sender.source, sender.device))
        });
        Some(missing.collect::<Vec<_>>().join("; ")).filter(|missing| !missing.is_empty())
    }

    fn place(&mut self, verdict: Verdict) -> usize {
        let found = self.verdicts.iter().position(|known| *known == verdict);
        found.unwrap_or_else(|| {
            self.verdicts.push(verdict);
            self.verdicts.len() - 1
        })
    }

    /// As [`ask`]; `subnet` is that of the receiver, where another node has it.
    ///
    /// # Errors
    /// When it was not asked; for people.
    pub fn told(&self, opening: &Opening<'_>, subnet: Option<IpAddr>) -> Result<Option<Told>, String> {
        let mut senders = self.senders.iter();
        let sender = senders
            .find(|sender| (sender.device.as_str(), sender.source) == (opening.device, opening.source));
        let sender = sender.ok_or("its verdict is not recorded")?;
        if let Some(reason) = &sender.missing {
            return Err(reason.clone());
        }
        let Some(program) = &sender.program else {
            return Ok(None);
        };
        let nobody = NOBODY
            .iter()
            .find(|nobody| nobody.is_ipv4() == opening.to.is_ipv4());
        let names = [Some(opening.to), subnet, nobody.copied()];
        let found = names.iter().flatten().find_map(|name| sender.to.get(name));
        let verdict = found.and_then(|at| self.verdicts.get(*at));
        Ok(Some(Told {
            program: program.clone(),
            verdict: verdict.ok_or("its verdict is not recorded")?.clone(),
        }))
    }
}

/// Puts the program's verdict beside what is found in its maps. Returns whether the stack gets the packet.
pub fn compare(
    step: &mut Step,
    device: &str,
    found: Option<Found>,
    told: Result<Option<Told>, String>,
    wanted: &Way,
    out: Option<&Link>,
) -> bool {
    let by_maps = found.is_some();
    let program = |key: &str, value: String| Entry::new("program from_pod", key, Some(value));
    let told = match told {
        Ok(Some(told)) => told,
        Ok(None) => {
            if by_maps {
                step.differences.append(&mut step.problems);
                step.differences.push(format!(
                    "its link is pinned, but no program of ours looks at what comes by {device}: the stack takes it"
                ));
            }
            return true;
        }
        Err(reason) => {
            step.kernel.push(program(device, format!("not run: {reason}")));
            return !by_maps;
        }
    };
    let Told {
        program: Program { id, before },
        verdict,
    } = told;
    step.look.push(format!("bpftool prog show id {id}"));
    let key = format!("{device}, id {id}");
    step.kernel
        .push(program(&key, format!("test run: {}", verdict.text())));
    if !before.is_empty() {
        step.kernel
            .push(program(&key, format!("looks after {}", before.join(", "))));
    }
    let text = verdict.text();
    match verdict {
        Verdict::Silent => return !by_maps,
        Verdict::Stack(_) => {
            step.differences.append(&mut step.problems);
            if by_maps {
                step.differences.push(format!(
                    "its maps lead past the stack, but the attached program {text}"
                ));
            }
            return true;
        }
        Verdict::Drops => step.problems.push(format!("the attached program {text}")),
        Verdict::Sends { .. } if !step.problems.is_empty() => {}
        Verdict::Sends {
            there,
            wrapping,
            device,
        } => {
            let wrong = wrong(wanted, out, (device, there, wrapping));
            if let Some(wrong) = wrong {
                step.problems
                    .push(format!("the attached program {text}: {wrong}"));
            } else if !by_maps {
                step.differences.push(format!(
                    "its pinned maps have nothing for it, but the attached program {text}"
                ));
            }
        }
    }
    false
}

/// What of it is not as planned.
fn wrong(
    wanted: &Way,
    out: Option<&Link>,
    (device, there, wrapping): (u32, MacAddr, Option<Wrapping>),
) -> Option<String> {
    let (mac, node) = match wanted {
        Way::Pod { mac, .. } => (*mac, None),
        Way::Tunnel { mac, public_ip, .. } => (Some(*mac), Some(*public_ip)),
        _ => return None,
    };
    if let Some(mac) = mac.filter(|mac| *mac != there) {
        return Some(format!("the receiver's MAC address is {mac}"));
    }
    let Some(around) = wrapping else {
        let out = out.filter(|out| out.index != device)?;
        return Some(format!("{} is device {}", out.name, out.index));
    };
    let Some(node) = node else {
        return Some("the receiver is a pod of this node".to_owned());
    };
    if around.destination != node {
        return Some(format!("its node is {node}"));
    }
    let LinkKind::Vxlan(tunnel) = &out?.kind else {
        return None;
    };
    let tunnel_name = &out?.name;
    if around.vni != tunnel.vni {
        return Some(format!("{tunnel_name} is of network {}", tunnel.vni));
    }
    if around.port != tunnel.port {
        return Some(format!("{tunnel_name} sends to UDP port {}", tunnel.port));
    }
    let local = tunnel.local.filter(|local| *local != around.source)?;
    Some(format!("{tunnel_name} sends from {local}"))
}

/// A step of the fast path of which only the program tells.
#[must_use]
pub fn step(to: IpAddr) -> Step {
    Step::new(Stage::FastPath, to.to_string())
}

#[cfg(test)]
mod tests;
