//! A proxy over the kernel: how it is opened, and taken out again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use netlink::conntrack::Conntrack;
use netlink::nft::Nft;

use super::Proxy;
use crate::Error;
use crate::datapath::iptables::Iptables;
use crate::datapath::packets::Packets;
use crate::datapath::sockets::Sockets;
use crate::datapath::{Datapath, Kernel};
use crate::plan::NodeContext;
use crate::settings::{Config, DatapathKind};

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

    /// Takes all that is the proxy's out of the kernel: Services stop working on this node. For leaving a node for
    /// good; a proxy that only ends leaves everything in place.
    pub fn uninstall(config: &Config) -> Result<(), Error> {
        match &config.datapath {
            DatapathKind::Ebpf { pin_dir, .. } => {
                // What fails of the one is told when the other is gone too.
                let hook = ebpf::SocketHook::remove(pin_dir);
                let rules = remove_tables();
                hook?;
                rules
            }
            DatapathKind::Nftables => remove_tables(),
            DatapathKind::Iptables { .. } => Iptables::remove(&config.settings.context(None)),
        }
    }

    /// Takes out of the kernel what a datapath, or a version, that ran here before this one left, so that no hook and no
    /// rule decides by lists that nobody keeps up. For when a sync of this one succeeded. Chains of iptables are not
    /// among it: by their names they may be kube-proxy's; [`Proxy::uninstall`] removes them.
    pub fn remove_other_datapaths(config: &Config, pin_dir: &Path) -> Result<(), Error> {
        let hook = match &config.datapath {
            DatapathKind::Ebpf { .. } => ebpf::SocketHook::remove_other_layouts(pin_dir),
            DatapathKind::Nftables | DatapathKind::Iptables { .. } => ebpf::SocketHook::remove(pin_dir),
        };
        let rules = match &config.datapath {
            DatapathKind::Ebpf { .. } | DatapathKind::Nftables => Ok(()),
            DatapathKind::Iptables { .. } => remove_tables(),
        };
        hook?;
        rules
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

fn remove_tables() -> Result<(), Error> {
    let mut nft = Nft::open()?;
    let removed = Packets::tables().map(|table| nft.remove(&table));
    Ok(removed.into_iter().collect::<Result<_, _>>()?)
}
