//! A proxy over the kernel: how it is opened, and taken out again.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use model::{IpFamily, Removal};
use netlink::conntrack::Conntrack;
use netlink::nft::{Family, Nft, Table};

use super::Proxy;
use crate::Error;
use crate::datapath::iptables::Iptables;
use crate::datapath::packets::Packets;
use crate::datapath::sockets::Sockets;
use crate::datapath::{Datapath, Kernel};
use crate::plan::NodeContext;
use crate::settings::{Config, DatapathKind};

/// Whose kube-proxy's chains of iptables are: their names do not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chains {
    /// The datapath `iptables` made them.
    Ours,
    /// Perhaps another program did.
    KubeProxys,
}

impl Proxy {
    /// Opens the kernel's interfaces in the network namespace of the calling thread, reads back what an earlier
    /// process left there, and changes nothing of it: the first [`Proxy::sync`] writes only what differs.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let context = config.settings.context(None);
        let (datapath, own_ports) = open_datapath(&config.datapath, &context)?;
        let mut proxy = Self::with_datapath(config.settings.clone(), datapath);
        proxy.own_ports = own_ports;
        Ok(proxy)
    }

    /// Takes all that is the proxy's out of the kernel, of every datapath that may have run here: Services stop working
    /// on this node. For leaving a node for good; a proxy that only ends leaves everything in place. What fails stops
    /// nothing else. `families`: the versions of IP that are looked through for chains of iptables.
    #[must_use]
    pub fn uninstall(pin_dir: &Path, chains: Chains, families: &BTreeSet<IpFamily>) -> Removal {
        let mut removal = Removal::default();
        removal.add("socket hooks", ebpf::SocketHook::remove(pin_dir));
        removal.add_each("nftables tables", remove_tables());
        removal.add_each("iptables chains of DNS", Iptables::remove_untracked(families));
        match chains {
            Chains::Ours => {
                if Iptables::is_there(families) {
                    let left =
                        "tables of iptables, with the chains that it makes itself: they are everybody's";
                    removal.left.push(left.to_owned());
                }
                removal.add_each("iptables rulesets", Iptables::remove(families));
            }
            Chains::KubeProxys if Iptables::is_there(families) => {
                let reason = "by their names they may be kube-proxy's, and proxy.datapath is not iptables";
                removal.left.push(format!("chains KUBE-* of iptables: {reason}"));
            }
            Chains::KubeProxys => {}
        }
        removal
    }

    /// Whether the packet rules of this proxy are there, which serve without their process too.
    pub fn has_rules() -> Result<bool, Error> {
        let mut nft = Nft::open()?;
        let there = Packets::tables().map(|table| nft.has_table(&table));
        let there: Result<Vec<_>, _> = there.into_iter().collect();
        Ok(there?.contains(&true))
    }

    /// Takes out of the kernel what kube-proxy wrote there: its tables of nftables (`pkg/proxy/nftables/proxier.go`) and
    /// its chains of iptables, of both variants. For when it has ended: it would write them again. Connections that
    /// its rules translated go on, since connection tracking knows them.
    #[must_use]
    pub fn remove_kube_proxy(families: &BTreeSet<IpFamily>) -> Removal {
        let mut removal = Removal::default();
        let tables = [Family::Ip, Family::Ip6].map(|family| Table::new(family, "kube-proxy"));
        removal.add_each("kube-proxy's nftables tables", remove(tables));
        removal.add_each("kube-proxy's iptables rulesets", Iptables::remove(families));
        removal
    }

    /// Takes out of the kernel what a datapath, or a version, that ran here before this one left, so that no hook and no
    /// rule decides by lists that nobody keeps up. For when a sync of this one succeeded. kube-proxy's chains of iptables
    /// are not among it: they may be kube-proxy's own; [`Proxy::uninstall`] removes them. What the other variant of
    /// iptables has of DNS went when the datapath learned what this node is.
    pub fn remove_other_datapaths(config: &Config, pin_dir: &Path) -> Result<(), Error> {
        let hook = match &config.datapath {
            DatapathKind::Ebpf { .. } => ebpf::SocketHook::remove_other_layouts(pin_dir),
            DatapathKind::Nftables | DatapathKind::Iptables { .. } => {
                ebpf::SocketHook::remove(pin_dir).map(drop)
            }
        };
        let rules = match &config.datapath {
            DatapathKind::Ebpf { .. } | DatapathKind::Nftables => {
                Iptables::remove_untracked(&[IpFamily::V4, IpFamily::V6].into())
            }
            DatapathKind::Iptables { .. } => remove_tables(),
        };
        hook?;
        rules.into_iter().try_for_each(|removed| removed.map(drop))
    }
}

/// The kernel's interfaces for a datapath, and its connections to nftables.
fn open_datapath(kind: &DatapathKind, context: &NodeContext) -> Result<(Box<dyn Datapath>, Vec<u32>), Error> {
    if let DatapathKind::Iptables { variant } = kind {
        return Ok((Box::new(Iptables::open(context, *variant)?), Vec::new()));
    }
    let packets = Packets::open_all(context)?;
    let own_ports = packets.iter().map(Packets::port).collect();
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let sockets = match kind {
        DatapathKind::Ebpf { cgroup, pin_dir } => {
            let hook = ebpf::SocketHook::open(&ebpf::HookConfig {
                cgroup: cgroup.clone(),
                pin_dir: pin_dir.clone(),
                capacity: ebpf::Capacity::default(),
                loopback: loopback
                    .iter()
                    .any(|address| context.serves_node_ports_on(*address)),
            })?;
            Some(Sockets::open(hook)?)
        }
        DatapathKind::Nftables | DatapathKind::Iptables { .. } => None,
    };
    let kernel = Kernel {
        packets,
        sockets,
        conntrack: Conntrack::open()?,
    };
    Ok((Box::new(kernel), own_ports))
}

/// Whether each was there.
fn remove_tables() -> Vec<Result<bool, Error>> {
    remove(Packets::tables())
}

/// Whether each was there.
fn remove(tables: [Table; 2]) -> Vec<Result<bool, Error>> {
    match Nft::open() {
        Ok(mut nft) => tables.map(|table| Ok(nft.remove(&table)?)).into(),
        Err(error) => vec![Err(error.into())],
    }
}
