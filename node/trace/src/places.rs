//! Names of what the kernel tells by number: why packets are dropped, functions, network namespaces.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::thread::JoinHandle;

use ebpf::kernel_types::{KernelTypes, TypesError};

/// Reasons of subsystems (net/mac80211/drop.h, net/openvswitch/drop.h).
const OF_SUBSYSTEMS: [&str; 2] = ["mac80211_drop_reason", "ovs_drop_reason"];

/// `SKB_DROP_REASON_SUBSYS_SHIFT`.
const SUBSYSTEM_SHIFT: u32 = 16;

/// Names of reasons and functions.
#[derive(Debug, Default)]
pub struct Places {
    reasons: BTreeMap<u32, String>,
    /// Who has reasons of its own, by the upper half of their numbers.
    subsystems: BTreeMap<u32, String>,
    /// There when the first function was asked for, since there are many.
    functions: Option<Functions>,
    /// Reads them before, where somebody wants to wait for nothing then.
    reading: Option<JoinHandle<Functions>>,
}

/// The kernel's functions: there are a hundred thousand and more, and few are asked for.
#[derive(Debug)]
struct Functions {
    /// `/proc/kallsyms`: `ffffffff81a2b3c0 T ip_rcv`.
    text: String,
    /// Where functions begin, in memory and in the text, in the order of their addresses.
    begins: Vec<(u64, usize)>,
}

impl Places {
    pub(crate) fn read(types: &KernelTypes) -> Result<Self, TypesError> {
        let reasons = types.enumeration("skb_drop_reason")?;
        let short = |name: String| name.trim_start_matches("SKB_DROP_REASON_").to_owned();
        let mut reasons: BTreeMap<u32, String> = reasons
            .into_iter()
            .map(|(number, name)| (number, short(name)))
            .collect();
        for list in OF_SUBSYSTEMS {
            // Where the subsystem is not part of the kernel proper, it has no list here.
            reasons.extend(types.enumeration(list).unwrap_or_default());
        }
        // Before Linux 6.4 no subsystem has reasons of its own.
        let subsystems = types.enumeration("skb_drop_reason_subsys").unwrap_or_default();
        Ok(Self {
            reasons,
            subsystems: subsystems
                .into_iter()
                .map(|(number, name)| (number, short(name).trim_start_matches("SUBSYS_").to_owned()))
                .collect(),
            functions: None,
            reading: None,
        })
    }

    /// The kernel's name of a reason: numbers differ between kernels. Of a subsystem that is a module its name and a
    /// number.
    pub(crate) fn reason(&self, number: u32) -> String {
        let subsystem = self.subsystems.get(&(number >> SUBSYSTEM_SHIFT));
        match (self.reasons.get(&number), subsystem) {
            (Some(name), _) => name.clone(),
            (None, Some(subsystem)) if number >> SUBSYSTEM_SHIFT != 0 => {
                format!("{subsystem} reason {:#x}", number & 0xffff)
            }
            _ => format!("reason {number:#x}"),
        }
    }

    /// Begins to read the names of functions, beside whatever comes next; once.
    pub(crate) fn read_functions(&mut self) {
        if self.functions.is_none() && self.reading.is_none() {
            self.reading = Some(std::thread::spawn(Functions::read));
        }
    }

    /// The function that an address is in.
    pub(crate) fn function(&mut self, address: u64) -> String {
        let reading = &mut self.reading;
        let functions = self.functions.get_or_insert_with(|| match reading.take() {
            Some(reading) => {
                let read = reading.join();
                read.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }
            None => Functions::read(),
        });
        let found = functions.at(address);
        found.map_or_else(|| format!("{address:#x}"), str::to_owned)
    }
}

/// Whether a place is the bare number that [`Places::function`] leaves where the kernel shows no symbols.
pub(crate) fn is_bare(place: &str) -> bool {
    place.starts_with("0x")
}

impl Functions {
    /// The running kernel's. Without the right to see addresses all are 0, and there is none.
    fn read() -> Self {
        Self::of(fs::read_to_string("/proc/kallsyms").unwrap_or_default())
    }

    fn of(text: String) -> Self {
        let mut begins = Vec::new();
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            let mut fields = line.splitn(3, ' ');
            let address = fields
                .next()
                .and_then(|field| u64::from_str_radix(field, 16).ok());
            let is_function = matches!(fields.next(), Some("t" | "T"));
            begins.extend(
                address
                    .filter(|address| is_function && *address != 0)
                    .map(|address| (address, at)),
            );
            at += line.len();
        }
        // Of several names of a place the last stands.
        begins.sort_unstable();
        Self { text, begins }
    }

    /// The name of the function that an address is in.
    fn at(&self, address: u64) -> Option<&str> {
        let behind = self.begins.partition_point(|(begin, _)| *begin <= address);
        let (_, line) = self.begins.get(behind.checked_sub(1)?)?;
        let name = self.text.get(*line..)?.split_ascii_whitespace().nth(2)?;
        // Compilers add suffixes to functions that they cut up: `.isra.0`.
        name.split('.').next()
    }
}

/// What the network namespace of what is in none is called.
const NOWHERE: &str = "-";

/// What people call network namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// By inode number: a pod's name, or what `ip netns` calls it.
    pub netns: BTreeMap<u32, String>,
    /// What runs a command there, by the same number: put before it, and empty for the caller's own.
    pub entering: BTreeMap<u32, String>,
    /// Pods by their addresses.
    pub pods: BTreeMap<IpAddr, String>,
}

impl Names {
    /// The names under which namespaces are pinned on this machine, and `host` for that of process 1 and the own one.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let (mut netns, mut entering) = (BTreeMap::new(), BTreeMap::new());
        for (name, path) in crate::namespaces::pinned() {
            if let Some(inode) = inode(&path) {
                entering.insert(inode, crate::namespaces::entering(inode, &path));
                netns.insert(inode, name);
            }
        }
        // In some containers process 1 shows its namespaces to nobody.
        for path in ["/proc/1/ns/net", "/proc/self/ns/net"] {
            let own = inode(path.as_ref());
            own.map(|inode| netns.entry(inode).or_insert_with(|| "host".to_owned()));
            own.map(|inode| entering.insert(inode, crate::namespaces::entering(inode, path.as_ref())));
        }
        Self {
            netns,
            entering,
            pods: BTreeMap::new(),
        }
    }

    /// A namespace's name; its number where it has none.
    #[must_use]
    pub fn of_netns(&self, inode: u32) -> String {
        match self.netns.get(&inode) {
            Some(name) => name.clone(),
            None if inode == 0 => NOWHERE.to_owned(),
            None => format!("netns:{inode}"),
        }
    }
}

/// A command that tells of a network namespace, as it is run from here by what enters it. Where nobody knows how to, it
/// says itself where it belongs.
#[must_use]
pub fn command_at(command: &str, entering: Option<&str>, at: &str) -> String {
    match entering {
        Some("") => command.to_owned(),
        Some(entering) => format!("{entering} {command}"),
        None if at.is_empty() || at == NOWHERE => command.to_owned(),
        None => format!("{command}  # at {at}"),
    }
}

/// A pod's name, as [`Names`] has it: `pod/NAMESPACE/NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodName<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its own.
    pub name: &'a str,
}

impl<'a> PodName<'a> {
    /// Takes the name apart; `None` where it is no pod's.
    #[must_use]
    pub fn of(name: &'a str) -> Option<Self> {
        let (namespace, name) = name.strip_prefix("pod/")?.split_once('/')?;
        Some(Self { namespace, name })
    }
}

/// The inode number of the namespace behind a path.
#[must_use]
pub fn inode(path: &std::path::Path) -> Option<u32> {
    u32::try_from(fs::metadata(path).ok()?.ino()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_the_function_that_begins_before_it() {
        let symbols = "\
ffffffff81000000 T ip_rcv
ffffffff81000100 t tcp_v4_rcv.isra.0
ffffffff81000180 D some_data
ffffffff81000200 T udp_rcv\t[module]
0000000000000000 T hidden
";
        let mut places = Places {
            reasons: BTreeMap::from([(12, "NETFILTER_DROP".to_owned())]),
            subsystems: BTreeMap::from([(0, "CORE".to_owned()), (2, "OPENVSWITCH".to_owned())]),
            functions: Some(Functions::of(symbols.to_owned())),
            reading: None,
        };
        let rows = [
            (0xffff_ffff_8100_0000, "ip_rcv"),
            (0xffff_ffff_8100_00ff, "ip_rcv"),
            (0xffff_ffff_8100_0190, "tcp_v4_rcv"),
            (0xffff_ffff_8100_0201, "udp_rcv"),
            (0x1000, "0x1000"),
        ];
        for (address, name) in rows {
            assert_eq!(places.function(address), name);
        }
        assert_eq!(places.reason(12), "NETFILTER_DROP");
        assert_eq!(places.reason(0x10001), "reason 0x10001");
        assert_eq!(places.reason(0x20003), "OPENVSWITCH reason 0x3");
        assert_eq!(places.reason(999), "reason 0x3e7");
    }
}
