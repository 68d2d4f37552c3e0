//! What the kernel does at one frontend, read back without a [`crate::Proxy`], beside what a plan wants there.
//!
//! Nothing is made, repaired or written: it may be asked for beside a proxy that runs, or when none does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ebpf::ServiceMaps;
use ebpf::abi::service::flags;
use model::IpFamily;
use netlink::nft;

use crate::Error;
use crate::datapath::packets::layout::REFUSE;
use crate::datapath::packets::read_back::Rules;
use crate::datapath::packets::template::{Choice, Template};
use crate::datapath::sockets;
use crate::plan::{Frontend, FrontendKey, List, PortPlan, Target};
use recorded::RecordedMaps;

mod recorded;

pub use recorded::Recorded;

/// An object of the kernel as it was found, in the words of the tools that show such.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it lies: `map FRONTENDS`, `set ip causeway-proxy service-ips`.
    pub place: String,
    /// Its key.
    pub key: String,
    /// What lies beside it; none where there is no such entry.
    pub value: Option<String>,
}

/// What a layer does with new connections to a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Treatment {
    /// What the frontend's own entry says.
    pub rule: Rule,
    /// Endpoints of the list for cluster-wide traffic.
    pub cluster: BTreeSet<Target>,
    /// Endpoints of the list for node-local traffic.
    pub local: BTreeSet<Target>,
}

/// What a frontend's entry says. Displays in the layer's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// An entry of the socket hook.
    Hook {
        /// Bits of [`ebpf::abi::service::flags`].
        flags: u16,
        /// How long a client keeps its endpoint; 0 = not.
        affinity_seconds: u32,
    },
    /// A verdict of nftables that leads to the chain which refuses.
    Refuse,
    /// A verdict of nftables.
    Drop,
    /// A verdict of nftables that leads to a chain of this proxy's.
    Template(Template),
    /// A verdict of nftables that this proxy never writes.
    Foreign(nft::Verdict),
}

/// What becomes of a new connection in a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The client is told that nobody is there.
    Refuse,
    /// Nothing comes back.
    Drop,
    /// It gets one of these endpoints; never none.
    Spread(BTreeSet<Target>),
}

/// Whose connection it is: that decides which layers it meets, and which list it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A pod's of this node.
    PodHere,
    /// Another node's pod's, or one that is a pod's by its address alone.
    PodElsewhere,
    /// This node's own.
    ThisNode,
    /// Anybody else's.
    Outside,
}

/// A layer of the datapath, in the order in which a connection meets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LayerKind {
    /// Programs at `connect()` and its relatives, for sockets of this node.
    SocketHook,
    /// nftables, for every packet.
    PacketRules,
}

impl LayerKind {
    /// `socket hook` or `packet rules`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SocketHook => "socket hook",
            Self::PacketRules => "packet rules",
        }
    }
}

impl From<nft::Verdict> for Rule {
    fn from(verdict: nft::Verdict) -> Self {
        match &verdict {
            nft::Verdict::Drop => Self::Drop,
            nft::Verdict::Goto(chain) if chain == REFUSE => Self::Refuse,
            nft::Verdict::Goto(chain) => {
                Template::parse(chain).map_or(Self::Foreign(verdict), Self::Template)
            }
            nft::Verdict::Accept | nft::Verdict::Return | nft::Verdict::Jump(_) => Self::Foreign(verdict),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hook {
                flags,
                affinity_seconds,
            } => {
                f.write_str(&sockets::read_back::flags_text(*flags))?;
                match affinity_seconds {
                    0 => Ok(()),
                    seconds => write!(f, ", clients stay for {seconds} s"),
                }
            }
            Self::Refuse => write!(f, "goto {REFUSE}"),
            Self::Drop => f.write_str("drop"),
            Self::Template(template) => write!(f, "goto {template}"),
            Self::Foreign(verdict) => write!(f, "{verdict}"),
        }
    }
}

impl Treatment {
    /// Whether it is for clients of the Service's source ranges alone; others' packets are dropped.
    #[must_use]
    pub const fn is_filtered(&self) -> bool {
        matches!(&self.rule, Rule::Template(template) if template.filtered)
    }

    /// What becomes of such a connection. `Ok(None)`: the layer leaves it as it is, to whatever comes next.
    ///
    /// # Errors
    /// When that is not this proxy's to know: the entry leads elsewhere.
    pub fn verdict(&self, client: Client) -> Result<Option<Verdict>, &nft::Verdict> {
        let of = |list: List| {
            let targets = match list {
                List::Cluster => &self.cluster,
                List::Local => &self.local,
            };
            (!targets.is_empty()).then(|| Verdict::Spread(targets.clone()))
        };
        Ok(match &self.rule {
            Rule::Hook { flags, .. } if flags & flags::REFUSE != 0 => Some(Verdict::Refuse),
            Rule::Hook { flags, .. } if flags & flags::LOCAL_ONLY != 0 => of(List::Local),
            Rule::Hook { .. } => of(List::Cluster),
            Rule::Refuse => Some(Verdict::Refuse),
            Rule::Drop => Some(Verdict::Drop),
            Rule::Template(template) => match &template.choice {
                Choice::Refuse => Some(Verdict::Refuse),
                Choice::Spread { list, .. } => of(*list),
                Choice::Split { local, .. } => match client {
                    Client::PodHere | Client::PodElsewhere | Client::ThisNode => of(List::Cluster),
                    Client::Outside if *local == 0 => Some(Verdict::Drop),
                    Client::Outside => of(List::Local),
                },
            },
            Rule::Foreign(verdict) => return Err(verdict),
        })
    }
}

/// What becomes of a new connection by what is programmed: of the first layer that it meets and that does not leave it
/// as it is, with that layer. None: it goes on unchanged.
///
/// # Errors
/// The layer whose entry is none of this proxy's.
pub fn follow(layers: &[Layer], client: Client) -> Result<Option<(&Layer, Verdict)>, &Layer> {
    for layer in layers.iter().filter(|layer| layer.is_met_by(client)) {
        let Some(found) = &layer.found else { continue };
        match found.verdict(client) {
            Ok(Some(verdict)) => return Ok(Some((layer, verdict))),
            Ok(None) => {}
            Err(_) => return Err(layer),
        }
    }
    Ok(None)
}

/// What somebody knows of what a frontend shall do.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// Nothing: only the kernel is asked.
    Unknown,
    /// There shall be no such frontend.
    Nothing,
    /// The plan of its port.
    Port(&'a PortPlan, Frontend),
}

/// One layer of the datapath at one frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Which.
    pub kind: LayerKind,
    /// Whether anything asks it: without programs that are attached nobody looks into the hook's maps.
    pub is_attached: bool,
    /// What the plan wants of this layer. None: nothing, or it is not known.
    pub wanted: Option<Treatment>,
    /// Whether `wanted` says something.
    pub is_wanted_known: bool,
    /// What it does. None: it does not know the frontend.
    pub found: Option<Treatment>,
    /// The entries by which it does so, and those that it lacks for it.
    pub entries: Vec<Entry>,
    /// Where its own entry is, or would be; none where the layer has no such frontends.
    pub at: Option<At>,
}

/// Where a frontend's own entry lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// In a pinned map.
    Map {
        /// The pin.
        pin: PathBuf,
        /// The key's bytes.
        key: Vec<u8>,
    },
    /// In a map of an nftables table.
    Set {
        /// `ip` or `ip6`.
        family: &'static str,
        /// The table.
        table: String,
        /// The map.
        set: &'static str,
        /// The key, as `nft` reads it.
        key: String,
    },
}

impl Layer {
    /// Whether such a connection comes by.
    #[must_use]
    pub const fn is_met_by(&self, client: Client) -> bool {
        let is_here = matches!(client, Client::PodHere | Client::ThisNode);
        self.is_attached && (is_here || matches!(self.kind, LayerKind::PacketRules))
    }

    /// Where it is not what the plan wants, one line each. Nothing where that is not known.
    #[must_use]
    pub fn differences(&self) -> Vec<String> {
        if !self.is_wanted_known {
            return Vec::new();
        }
        match (&self.wanted, &self.found) {
            (None, None) => Vec::new(),
            (Some(wanted), None) => vec![format!("no entry, where the plan wants {wanted}")],
            (None, Some(found)) => vec![format!("{found}, where the plan wants no entry")],
            (Some(wanted), Some(found)) => differences(wanted, found),
        }
    }
}

fn differences(wanted: &Treatment, found: &Treatment) -> Vec<String> {
    let mut lines = Vec::new();
    if wanted.rule != found.rule {
        let (wanted, found) = (&wanted.rule, &found.rule);
        lines.push(format!("{found}, where the plan wants {wanted}"));
    }
    let lists = [
        ("list for the cluster", &wanted.cluster, &found.cluster),
        ("list for this node", &wanted.local, &found.local),
    ];
    for (list, wanted, found) in lists {
        let missing = wanted.difference(found);
        lines.extend(missing.map(|target| format!("{list}: endpoint {} is missing", text(target))));
        let stray = found.difference(wanted);
        lines.extend(stray.map(|target| format!("{list}: endpoint {} is not the plan's", text(target))));
    }
    lines
}

impl fmt::Display for Treatment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, cluster, local } = self;
        write!(f, "{rule}")?;
        for (count, list) in [(cluster.len(), "in the cluster"), (local.len(), "on this node")] {
            let plural = if count == 1 { "" } else { "s" };
            if count > 0 {
                write!(f, ", {count} endpoint{plural} {list}")?;
            }
        }
        Ok(())
    }
}

/// As a socket address.
pub(crate) fn text(target: &Target) -> String {
    SocketAddr::new(target.address, target.port.get()).to_string()
}

/// What both layers have, as it was found.
#[derive(Debug)]
pub struct Programmed {
    hook: Option<Hook>,
    rules: BTreeMap<IpFamily, Rules>,
}

/// The socket hook's maps.
#[derive(Debug)]
enum Hook {
    /// As they are pinned.
    Pinned(Box<ServiceMaps>),
    /// As they were read once.
    Recorded(RecordedMaps),
}

impl Hook {
    fn layer(&self, key: &FrontendKey, wanted: Wanted<'_>) -> Result<Layer, Error> {
        match self {
            Self::Pinned(maps) => sockets::read_back::layer(&**maps, key, wanted),
            Self::Recorded(maps) => sockets::read_back::layer(maps, key, wanted),
        }
    }

    fn frontends(&self) -> Result<Vec<FrontendKey>, Error> {
        match self {
            Self::Pinned(maps) => sockets::read_back::frontends(&**maps),
            Self::Recorded(maps) => sockets::read_back::frontends(maps),
        }
    }
}

impl Programmed {
    /// Opens the socket hook's maps that are pinned below `pin_dir`, where there are some, and reads the packet rules of
    /// these versions of IP in the network namespace of the calling thread. Chains of iptables are not read.
    pub fn read(pin_dir: Option<&Path>, families: impl IntoIterator<Item = IpFamily>) -> Result<Self, Error> {
        let hook = match pin_dir {
            Some(pin_dir) => ServiceMaps::open(pin_dir)?,
            None => None,
        };
        let rules = families.into_iter().map(|family| {
            let rules = Rules::read(family).map_err(|error| Error::from(error).of(family));
            Ok((family, rules?))
        });
        Ok(Self {
            hook: hook.map(|maps| Hook::Pinned(Box::new(maps))),
            rules: rules.collect::<Result<_, Error>>()?,
        })
    }

    /// What each layer does at a frontend.
    pub fn layers(&self, key: &FrontendKey, wanted: Wanted<'_>) -> Result<Vec<Layer>, Error> {
        let hook = self.hook.as_ref();
        let hook = hook.map(|hook| hook.layer(key, wanted));
        let rules = self.rules.get(&key.family());
        let rules = rules.map(|rules| Ok(rules.layer(key, wanted)));
        hook.into_iter().chain(rules).collect()
    }

    /// Tables of packet rules that are not there at all, as nft names them.
    #[must_use]
    pub fn missing_tables(&self) -> Vec<String> {
        self.rules.values().filter_map(Rules::missing).collect()
    }

    /// Whether the socket hook's maps are pinned.
    #[must_use]
    pub const fn has_hook(&self) -> bool {
        self.hook.is_some()
    }

    /// All frontends that a layer knows.
    pub fn frontends(&self) -> Result<BTreeSet<FrontendKey>, Error> {
        let mut found: BTreeSet<_> = self.rules.values().flat_map(Rules::frontends).collect();
        if let Some(hook) = &self.hook {
            found.extend(hook.frontends()?);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
