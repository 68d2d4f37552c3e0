//! Commands that show what is told of, for whoever wants to see it: they can be run as they stand, by root.

use std::net::IpAddr;

use netlink::Lookup;
use proxy::programmed::At;
use serde::{Deserialize, Serialize};

/// From where somebody looks at the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vantage {
    /// What enters the node's network namespace, before a command; empty where that is the asker's own.
    pub network: String,
    /// The root of the node's file system, before a path; empty where that is the asker's own.
    pub root: String,
}

impl Vantage {
    fn in_network(&self, command: &str) -> String {
        match self.network.as_str() {
            "" => command.to_owned(),
            prefix => format!("{prefix} {command}"),
        }
    }

    /// What shows a frontend's own entry.
    pub(super) fn entry(&self, at: &At) -> String {
        match at {
            At::Map { pin, key } => {
                let bytes: Vec<_> = key.iter().map(|byte| format!("{byte:02x}")).collect();
                format!(
                    "bpftool map lookup pinned {}{} key hex {}",
                    self.root,
                    pin.display(),
                    bytes.join(" ")
                )
            }
            At::Set {
                family,
                table,
                set,
                key,
            } => self.in_network(&format!("nft get element {family} {table} {set} '{{ {key} }}'")),
        }
    }

    /// What asks for a packet's route.
    pub(super) fn route(&self, packet: &Lookup, arrives_by: Option<&str>) -> String {
        let mut command = format!("ip route get {}", packet.destination);
        if let Some(source) = packet.source {
            command += &format!(" from {source}");
        }
        if let Some(device) = arrives_by {
            command += &format!(" iif {device}");
        }
        if packet.mark != 0 {
            command += &format!(" mark {:#x}", packet.mark);
        }
        self.in_network(&command)
    }

    pub(super) fn tracked(&self) -> String {
        self.in_network("sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max")
    }

    pub(super) fn link(&self, device: &str) -> String {
        self.in_network(&format!("ip -d link show dev {device}"))
    }

    pub(super) fn neighbour(&self, address: IpAddr, device: &str) -> String {
        self.in_network(&format!("ip neigh show {address} dev {device}"))
    }

    pub(super) fn forwarding(&self, device: &str) -> String {
        self.in_network(&format!("bridge fdb show dev {device}"))
    }

    pub(super) fn chain(&self, family: &str, table: &str, chain: &str) -> String {
        self.in_network(&format!("nft -a list chain {family} {table} {chain}"))
    }
}
