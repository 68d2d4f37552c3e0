//! What the kernel does at one frontend, read back without a [`crate::Proxy`], beside what a plan wants there.
//!
//! Nothing is made, repaired or written: it may be asked for beside a proxy that runs, or when none does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use ebpf::ServiceMaps;
use model::IpFamily;

use crate::Error;
use crate::datapath::packets::read_back::Rules;
use crate::datapath::sockets;
use crate::plan::{Frontend, FrontendKey, PortPlan, Target};

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Treatment {
    /// In the layer's own words: flags of the hook, or a verdict of nftables.
    pub verdict: String,
    /// Endpoints of the list for cluster-wide traffic.
    pub cluster: BTreeSet<Target>,
    /// Endpoints of the list for node-local traffic.
    pub local: BTreeSet<Target>,
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

/// The layer of nftables, by its name.
pub const PACKET_RULES: &str = "packet rules";

/// One layer of the datapath at one frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// `socket hook` or `packet rules`.
    pub name: &'static str,
    /// What the plan wants of this layer. None: nothing, or it is not known.
    pub wanted: Option<Treatment>,
    /// Whether `wanted` says something.
    pub is_wanted_known: bool,
    /// What it does. None: it does not know the frontend.
    pub found: Option<Treatment>,
    /// The entries by which it does so, and those that it lacks for it.
    pub entries: Vec<Entry>,
}

impl Layer {
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
    if wanted.verdict != found.verdict {
        let (wanted, found) = (&wanted.verdict, &found.verdict);
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
        let Self {
            verdict,
            cluster,
            local,
        } = self;
        f.write_str(verdict)?;
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
    hook: Option<ServiceMaps>,
    rules: BTreeMap<IpFamily, Rules>,
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
            hook,
            rules: rules.collect::<Result<_, Error>>()?,
        })
    }

    /// What each layer does at a frontend.
    pub fn layers(&self, key: &FrontendKey, wanted: Wanted<'_>) -> Result<Vec<Layer>, Error> {
        let hook = self.hook.as_ref();
        let hook = hook.map(|maps| sockets::read_back::layer(maps, key, wanted));
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
        if let Some(maps) = &self.hook {
            found.extend(sockets::read_back::frontends(maps)?);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn treatment(verdict: &str, cluster: &[&str]) -> Treatment {
        let target = |text: &&str| {
            let address: SocketAddr = text.parse().expect("an address");
            Target {
                address: address.ip(),
                port: address.port().try_into().expect("no zero"),
            }
        };
        Treatment {
            verdict: verdict.to_owned(),
            cluster: cluster.iter().map(target).collect(),
            local: BTreeSet::new(),
        }
    }

    #[track_caller]
    fn check(wanted: Option<Treatment>, found: Option<Treatment>, expected: &[&str]) {
        let mut layer = Layer {
            name: "packet rules",
            wanted,
            is_wanted_known: true,
            found,
            entries: Vec::new(),
        };
        assert_eq!(layer.differences(), expected);
        layer.is_wanted_known = false;
        assert_eq!(layer.differences(), [""; 0], "nobody knows what is wanted");
    }

    #[test]
    fn what_is_missing_or_stray_is_told_by_its_endpoint() {
        let two = || Some(treatment("goto c2", &["10.244.1.5:80", "10.244.2.6:80"]));
        check(two(), two(), &[]);
        check(None, None, &[]);
        check(
            two(),
            None,
            &["no entry, where the plan wants goto c2, 2 endpoints in the cluster"],
        );
        check(
            None,
            Some(treatment("drop", &[])),
            &["drop, where the plan wants no entry"],
        );
        check(
            two(),
            Some(treatment("goto c1", &["10.244.1.5:80", "[fd00::7]:80"])),
            &[
                "goto c1, where the plan wants goto c2",
                "list for the cluster: endpoint 10.244.2.6:80 is missing",
                "list for the cluster: endpoint [fd00::7]:80 is not the plan's",
            ],
        );
    }
}
