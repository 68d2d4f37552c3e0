//! Commands that show what is told of, for whoever wants to see it: they can be run as they stand, by root.

use std::net::IpAddr;

use netlink::Lookup;
use proxy::programmed::At;
use serde::{Deserialize, Serialize};
use trace::shell::quoted;

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
                    "bpftool map lookup pinned {} key hex {}",
                    quoted(&format!("{}{}", self.root, pin.display())),
                    bytes.join(" ")
                )
            }
            At::Set {
                family,
                table,
                set,
                key,
            } => self.in_network(&format!(
                "nft get element {family} {} {} {}",
                quoted(table),
                quoted(set),
                quoted(&format!("{{ {key} }}"))
            )),
        }
    }

    /// What asks for a packet's route.
    pub(super) fn route(&self, packet: &Lookup, arrives_by: Option<&str>) -> String {
        let mut command = format!("ip route get {}", packet.destination);
        if let Some(source) = packet.source {
            command += &format!(" from {source}");
        }
        if let Some(device) = arrives_by {
            command += &format!(" iif {}", quoted(device));
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
        self.in_network(&format!("ip -d link show dev {}", quoted(device)))
    }

    pub(super) fn neighbour(&self, address: IpAddr, device: &str) -> String {
        self.in_network(&format!("ip neigh show {address} dev {}", quoted(device)))
    }

    pub(super) fn forwarding(&self, device: &str) -> String {
        self.in_network(&format!("bridge fdb show dev {}", quoted(device)))
    }

    pub(super) fn table(&self, table: &str) -> String {
        self.in_network(&format!("nft -a list table {table}"))
    }

    pub(super) fn chain(&self, family: &str, table: &str, chain: &str) -> String {
        self.in_network(&format!(
            "nft -a list chain {family} {} {}",
            quoted(table),
            quoted(chain)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_single_words() {
        let from = Vantage {
            network: "ip netns exec node-1".to_owned(),
            root: "/proc/7/root".to_owned(),
        };
        let route = Lookup {
            destination: IpAddr::from([10, 244, 1, 2]),
            source: None,
            device: None,
            mark: 0,
        };
        let map = At::Map {
            pin: "/sys/fs/bpf/my node/frontends".into(),
            key: vec![10, 96],
        };
        let rows = [
            (from.link("a;id"), "ip -d link show dev 'a;id'"),
            (
                from.neighbour(IpAddr::from([10, 244, 1, 2]), "a;id"),
                "ip neigh show 10.244.1.2 dev 'a;id'",
            ),
            (from.forwarding("a;id"), "bridge fdb show dev 'a;id'"),
            (
                from.route(&route, Some("a;id")),
                "ip route get 10.244.1.2 iif 'a;id'",
            ),
            (
                from.chain("ip", "filter", "$(id)"),
                "nft -a list chain ip filter '$(id)'",
            ),
        ];
        for (command, expected) in rows {
            assert_eq!(command, format!("ip netns exec node-1 {expected}"));
        }
        assert_eq!(
            from.entry(&map),
            "bpftool map lookup pinned '/proc/7/root/sys/fs/bpf/my node/frontends' key hex 0a 60"
        );
    }
}
