//! What a drop means. The kernel says why in its own words, and at some places it says nothing: there the place tells.

use std::net::IpAddr;

use netlink::conntrack::Usage;
use serde::{Deserialize, Serialize};

use crate::hop::{Hop, Protocol};
use crate::places;
use crate::shell::quoted;

/// What a drop means, and what to look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// In words.
    pub means: String,
    /// What shows or mends it: commands that run as they stand, or what else to look at.
    pub look: Vec<String>,
}

/// Where a packet ended, and whose it was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scene<'a> {
    /// The device that it was at; empty where it was at none.
    pub device: &'a str,
    /// Its sender.
    pub sender: Option<IpAddr>,
    /// Its receiver.
    pub receiver: Option<IpAddr>,
    /// What the network namespace is called.
    pub at: &'a str,
    /// What runs a command there, as [`places::Names::entering`] has it.
    pub entering: Option<&'a str>,
}

/// What to look at. As in the texts beside it, `DEVICE`, `SENDER` and `RECEIVER` stand for those of the packet.
#[derive(Clone, Copy, Debug)]
enum Look {
    /// A command that tells of the network namespace where it ended.
    There(&'static str),
    /// Anything else.
    Say(&'static str),
}
use Look::{Say, There};

impl<'a> Scene<'a> {
    /// That of a hop, and what its network namespace is called.
    #[must_use]
    pub fn of(hop: &'a Hop, at: &'a str, entering: Option<&'a str>) -> Self {
        let flow = hop.header.flow;
        Self {
            device: &hop.device,
            sender: Some(flow.source.ip()),
            receiver: Some(flow.destination.ip()),
            at,
            entering,
        }
    }

    fn cause(&self, means: &str, look: &[Look]) -> Cause {
        let look = look.iter().map(|look| match look {
            There(command) => places::command_at(&self.name(command, quoted), self.entering, self.at),
            Say(what) => self.name(what, str::to_owned),
        });
        Cause {
            means: self.name(means, str::to_owned),
            look: look.collect(),
        }
    }

    /// The text with the packet's device and addresses in place of the words for them, the device as `written`.
    fn name(&self, text: &str, written: fn(&str) -> String) -> String {
        let address = |address: Option<IpAddr>| address.map(|address| address.to_string());
        let device = Some(self.device).filter(|device| !device.is_empty());
        let words = [
            ("DEVICE", device.map(written)),
            ("SENDER", address(self.sender)),
            ("RECEIVER", address(self.receiver)),
        ];
        let known = words.into_iter().filter_map(|(word, known)| Some((word, known?)));
        known.fold(text.to_owned(), |text, (word, known)| text.replace(word, &known))
    }
}

/// A row: reason, the beginning of the place's name, what it means, what to look at. Empty: any.
type Row = (&'static str, &'static str, &'static str, &'static [Look]);

/// The first row that fits is taken. Reasons are those of include/net/dropreason-core.h; a place is where a function
/// gives no reason of its own.
const ROWS: [Row; 42] = [
    (
        "NETFILTER_DROP",
        "",
        "a rule of nftables or iptables dropped it",
        &[There("nft list ruleset"), There("iptables-save")],
    ),
    (
        "NO_TX_TARGET",
        "vxlan",
        "the VXLAN device knows no node for the packet's MAC address: the FDB entry is missing",
        &[
            There("bridge fdb show dev DEVICE"),
            Say("whether the other node has a lease"),
        ],
    ),
    (
        "VXLAN_VNI_NOT_FOUND",
        "",
        "no VXLAN device of this node has the packet's network identifier",
        &[There("ip -d link show type vxlan")],
    ),
    (
        "NO_SOCKET",
        "__udp",
        "nobody listens at this UDP port",
        &[There("ss -uln"), There("ip -d link show type vxlan")],
    ),
    (
        "NO_SOCKET",
        "",
        "nobody listens at this address and port",
        &[There("ss -tln")],
    ),
    (
        "IP_RPFILTER",
        "",
        "the way back to the sender is not by the device that it came from (rp_filter)",
        &[
            There("ip route get SENDER"),
            There("sysctl net.ipv4.conf.all.rp_filter"),
        ],
    ),
    (
        "NEIGH_FAILED",
        "",
        "nobody answers for the next hop's address on the link",
        &[There("ip neigh show")],
    ),
    (
        "NEIGH_QUEUEFULL",
        "",
        "too many packets wait for the next hop's MAC address",
        &[There("ip neigh show")],
    ),
    (
        "NEIGH_CREATEFAIL",
        "",
        "the table of neighbours is full",
        // Only the first network namespace of a machine has it, for all of them.
        &[Say("sysctl net.ipv4.neigh.default.gc_thresh3")],
    ),
    (
        "IP_OUTNOROUTES",
        "",
        "there is no route to the receiver",
        &[There("ip route get RECEIVER")],
    ),
    (
        "IP_INNOROUTES",
        "",
        "there is no route to the receiver",
        &[There("ip route get RECEIVER from SENDER iif DEVICE")],
    ),
    (
        "IP_LOCALNET",
        "",
        "loopback addresses do not leave their host",
        &[There("sysctl net.ipv4.conf.all.route_localnet")],
    ),
    (
        "IP_LOCAL_SOURCE",
        "",
        "the sender's address is one of the receiver's own",
        &[There("ip address show")],
    ),
    (
        "IP_INVALID_SOURCE",
        "",
        "the sender's address cannot be one",
        &[There("ip address show")],
    ),
    (
        "PKT_TOO_BIG",
        "",
        "it is larger than device DEVICE takes (MTU)",
        &[
            There("ip link show"),
            Say("the MTU of pods must leave room for the tunnel"),
        ],
    ),
    (
        "NOT_SPECIFIED",
        "__dev_forward_skb",
        "the other end of the veth DEVICE is down, or takes no packets of that size: the MTUs of its ends differ",
        &[
            There("ip -d link show dev DEVICE"),
            Say("the same of its other end"),
        ],
    ),
    (
        "NOT_SPECIFIED",
        "veth_xmit",
        "the other end of the veth DEVICE is down, or takes no packets of that size: the MTUs of its ends differ",
        &[
            There("ip -d link show dev DEVICE"),
            Say("the same of its other end"),
        ],
    ),
    (
        "NOT_SPECIFIED",
        "ip_forward",
        "the host does not forward it",
        &[
            There("sysctl net.ipv4.ip_forward"),
            Say("the packet's TTL and size"),
        ],
    ),
    (
        "NOT_SPECIFIED",
        "ip6_forward",
        "the host does not forward it",
        &[
            There("sysctl net.ipv6.conf.all.forwarding"),
            Say("the packet's hop limit and size"),
        ],
    ),
    (
        "NOT_SPECIFIED",
        "ip_error",
        "there is no route to the receiver, or forwarding is off",
        &[
            There("ip route get RECEIVER"),
            There("sysctl net.ipv4.ip_forward"),
        ],
    ),
    (
        "TC_INGRESS",
        "",
        "a program or filter at the device's ingress (tc) dropped it",
        &[There("tc filter show dev DEVICE ingress"), There("bpftool net")],
    ),
    (
        "TC_EGRESS",
        "",
        "a program or filter at the device's egress (tc) dropped it",
        &[There("tc filter show dev DEVICE egress"), There("bpftool net")],
    ),
    (
        "XDP",
        "",
        "an XDP program at the device dropped it",
        &[There("ip link show"), There("bpftool net")],
    ),
    (
        "QDISC_DROP",
        "",
        "device DEVICE or its peer is down, or its queue is full",
        &[
            There("ip link show DEVICE"),
            There("tc -s qdisc show dev DEVICE"),
            Say("NO-CARRIER is a peer that is down"),
        ],
    ),
    (
        "DEV_READY",
        "",
        "device DEVICE or its peer is down",
        &[There("ip link show DEVICE"), Say("the same of its other end")],
    ),
    (
        "SOCKET_RCVBUFF",
        "",
        "the socket's buffer is full: the program reads too slowly",
        &[There("ss -nmp")],
    ),
    (
        "SOCKET_FILTER",
        "",
        "a filter at the socket, or a program at its cgroup, dropped it",
        &[Say("bpftool cgroup tree")],
    ),
    (
        "TCP_LISTEN_OVERFLOW",
        "",
        "the listener's queue is full: the program accepts too slowly",
        &[There("ss -tln")],
    ),
    (
        "TCP_CSUM",
        "",
        "TCP's checksum is wrong",
        &[There("ethtool -k DEVICE"), Say("try without tx-checksumming")],
    ),
    (
        "UDP_CSUM",
        "",
        "UDP's checksum is wrong",
        &[There("ethtool -k DEVICE"), Say("try without tx-checksumming")],
    ),
    (
        "QUEUE_PURGE",
        "",
        "it had arrived: the socket was closed before it was read",
        &[Say("the program at that socket")],
    ),
    (
        "BPF_CGROUP_EGRESS",
        "",
        "a program at the sender's cgroup dropped it",
        &[Say("bpftool cgroup tree")],
    ),
    (
        "CPU_BACKLOG",
        "",
        "the CPU's queue of received packets was full",
        &[
            Say("cat /proc/net/softnet_stat"),
            Say("sysctl net.core.netdev_max_backlog"),
        ],
    ),
    (
        "FULL_RING",
        "",
        "the device's ring was full",
        &[There("ip -s link show dev DEVICE")],
    ),
    (
        "SOCKET_BACKLOG",
        "",
        "the socket's backlog is full: the program reads too slowly",
        &[There("ss -nmp")],
    ),
    (
        "PROTO_MEM",
        "",
        "the protocol may use no more memory",
        &[
            There("cat /proc/net/sockstat"),
            Say("sysctl net.ipv4.tcp_mem net.ipv4.udp_mem"),
        ],
    ),
    (
        "TCP_ZEROWINDOW",
        "",
        "the receiver's window is closed: the program reads too slowly",
        &[There("ss -tnmp")],
    ),
    (
        "TCP_OFO_QUEUE_PRUNE",
        "",
        "no room was left for segments that came before their turn",
        &[There("ss -tnmp")],
    ),
    (
        "IPV6DISABLED",
        "",
        "IPv6 is switched off at the device",
        &[There("sysctl net.ipv6.conf.DEVICE.disable_ipv6")],
    ),
    (
        "FRAG_REASM_TIMEOUT",
        "",
        "the other fragments of it did not come in time",
        &[Say(
            "a fragment is dropped elsewhere: causeway drops, at each node of its way",
        )],
    ),
    (
        "TCP_RFC7323_PAWS",
        "",
        "its time stamp is older than one that was seen: a copy, or a sender behind the same address",
        &[Say("sysctl net.ipv4.tcp_timestamps, at the sender")],
    ),
    (
        "OTHERHOST",
        "",
        "its MAC address is another host's",
        &[Say("ip neigh show, at the sender")],
    ),
];

/// What a drop means; `None` where the kernel's words are all that is known.
#[must_use]
pub fn of(reason: &str, place: &str, scene: &Scene<'_>) -> Option<Cause> {
    let found = ROWS
        .iter()
        .find(|(row_reason, at, ..)| *row_reason == reason && place.starts_with(at));
    found.map(|(_, _, means, look)| scene.cause(means, look))
}

/// Of a table of so many hundredths that a packet was dropped at, it is said that it is full: entries come and go.
const FULL_PERCENT: u64 = 99;

/// Where rules and policies of nftables drop a packet themselves, since Linux 6.7 (`nft_do_chain`).
const BY_RULE: &str = "nft_do_chain";

/// What a drop by netfilter means where connection tracking has no room: `nf_conntrack_in` drops what it cannot track, and
/// the packet goes in `nf_hook_slow`, as with all that a hook's function drops: rules of legacy iptables, and before Linux
/// 6.7 those of nftables. None: it has room, or the place is that of a rule. `usage` looks how full it is, where that
/// matters.
#[must_use]
pub fn of_full_table(
    reason: &str,
    place: &str,
    scene: &Scene<'_>,
    usage: impl FnOnce() -> Option<Usage>,
) -> Option<Cause> {
    if reason != "NETFILTER_DROP" || place.starts_with(BY_RULE) {
        return None;
    }
    let Usage { tracked, most } = usage().filter(|usage| usage.has_reached(FULL_PERCENT))?;
    let look = [
        There("sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max"),
        There("conntrack -S"),
        There("conntrack -L"),
    ];
    let means = format!(
        "connection tracking's table is full ({tracked} of {most}): packets of new connections are dropped"
    );
    Some(scene.cause(&means, &look))
}

/// Answers that refuse: TCP's, and errors by ICMP as [`crate::hop`] calls them; what they mean, and what to look at.
/// `SENDER` is who refuses.
const REFUSALS: [(&str, &str, &[Look]); 10] = [
    (
        "port unreachable",
        "nobody listens at this UDP port of SENDER, or a rule there rejects it",
        &[
            There("ss -uln"),
            There("nft list ruleset"),
            There("iptables-save"),
        ],
    ),
    (
        "host unreachable",
        "SENDER knows no way to the receiver: nobody on the link answers for its address, or a route refuses it",
        &[There("ip neigh show"), There("ip route")],
    ),
    (
        "address unreachable",
        "SENDER knows no way to the receiver: nobody on the link answers for its address, or a route refuses it",
        &[There("ip -6 neigh show"), There("ip -6 route")],
    ),
    (
        "network unreachable",
        "SENDER has no route to the receiver",
        &[There("ip route")],
    ),
    (
        "no route",
        "SENDER has no route to the receiver",
        &[There("ip -6 route")],
    ),
    (
        "administratively prohibited",
        "a rule, or a route, of SENDER rejects it",
        &[
            There("nft list ruleset"),
            There("iptables-save"),
            There("ip route"),
        ],
    ),
    (
        "time exceeded",
        "it went in a circle, or over more hops than its TTL allows, and ended at SENDER",
        &[Say("ip route get, at each node of its way")],
    ),
    (
        "fragmentation needed",
        "it is larger than the next link of SENDER takes (MTU), and may not be cut up",
        &[
            There("ip link show"),
            Say("the MTU of pods must leave room for the tunnel"),
        ],
    ),
    (
        "packet too big",
        "it is larger than the next link of SENDER takes (MTU)",
        &[
            There("ip link show"),
            Say("the MTU of pods must leave room for the tunnel"),
        ],
    ),
    (
        "RST",
        "nobody listens at this address and port, or a rule rejects it",
        &[
            There("ss -tln"),
            There("nft list ruleset"),
            There("iptables-save"),
        ],
    ),
];

/// What an answer means that says no: an error by ICMP, or TCP's RST. `None` where it is none of these.
#[must_use]
pub fn of_refusal(protocol: Protocol, what: &str, scene: &Scene<'_>) -> Option<Cause> {
    let name = if protocol == Protocol::TCP { "RST" } else { what };
    let found = REFUSALS.iter().find(|(row, ..)| *row == name);
    found.map(|(_, means, look)| scene.cause(means, look))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_tells_where_the_reason_does_not() {
        let means = |reason, place| of(reason, place, &Scene::default()).map(|cause| cause.means);
        let rows = [
            ("NO_TX_TARGET", "vxlan_xmit", "FDB entry is missing"),
            ("NOT_SPECIFIED", "__dev_forward_skb2", "MTUs of its ends differ"),
            ("NO_SOCKET", "__udp4_lib_rcv", "this UDP port"),
            ("NO_SOCKET", "tcp_v4_rcv", "this address and port"),
        ];
        for (reason, place, part) in rows {
            let means = means(reason, place).expect("known");
            assert!(means.contains(part), "{reason} {place}: {means}");
        }
        for reason in ["QDISC_DROP", "DEV_READY"] {
            let means = means(reason, "__dev_queue_xmit").expect("known");
            assert!(
                means.starts_with("device DEVICE or its peer is down"),
                "{reason}: {means}"
            );
        }
        assert_eq!(means("NOT_SPECIFIED", "somewhere"), None);
        assert_eq!(means("NO_TX_TARGET", "elsewhere"), None);
    }

    #[test]
    fn a_full_table_is_no_rule() {
        let means = |reason, place, tracked: Option<u64>| {
            let usage = || tracked.map(|tracked| Usage { tracked, most: 1000 });
            of_full_table(reason, place, &Scene::default(), usage).map(|cause| cause.means)
        };
        assert_eq!(
            means("NETFILTER_DROP", "nf_hook_slow", Some(998)).as_deref(),
            Some("connection tracking's table is full (998 of 1000): packets of new connections are dropped")
        );
        assert_eq!(means("NETFILTER_DROP", "nf_hook_slow", Some(989)), None);
        assert_eq!(means("NETFILTER_DROP", "nf_hook_slow", None), None);
        assert_eq!(means("NO_SOCKET", "tcp_v4_rcv", Some(1000)), None);
        // A rule dropped it, however full the table is.
        for place in ["nft_do_chain", "nft_do_chain.isra.0"] {
            assert_eq!(means("NETFILTER_DROP", place, Some(1000)), None);
        }
    }

    #[test]
    fn commands_run_as_they_stand_where_the_packet_ended() {
        let look = |entering| {
            let scene = Scene {
                device: "vethp",
                sender: Some([10, 241, 0, 5].into()),
                receiver: None,
                at: "node-1",
                entering,
            };
            of("IP_RPFILTER", "ip_rcv_finish_core", &scene)
                .expect("known")
                .look
        };
        let setting = "sysctl net.ipv4.conf.all.rp_filter";
        assert_eq!(look(Some("")), ["ip route get 10.241.0.5", setting]);
        let within = "ip netns exec node-1";
        assert_eq!(
            look(Some(within)),
            [
                format!("{within} ip route get 10.241.0.5"),
                format!("{within} {setting}")
            ]
        );
        // Nobody knows how to get there.
        assert_eq!(
            look(None),
            [
                "ip route get 10.241.0.5  # at node-1".to_owned(),
                format!("{setting}  # at node-1")
            ]
        );
    }

    #[test]
    fn a_devices_name_runs_nothing() {
        let cause = |reason, place| {
            let scene = Scene {
                device: "a;id",
                at: "node-1",
                entering: Some("ip netns exec node-1"),
                ..Scene::default()
            };
            of(reason, place, &scene).expect("known")
        };
        assert_eq!(
            cause("NO_TX_TARGET", "vxlan_xmit").look[0],
            "ip netns exec node-1 bridge fdb show dev 'a;id'"
        );
        assert_eq!(
            cause("IPV6DISABLED", "ip6_rcv").look,
            ["ip netns exec node-1 sysctl net.ipv6.conf.'a;id'.disable_ipv6"]
        );
        let queue = cause("QDISC_DROP", "__dev_queue_xmit");
        assert!(
            queue.means.starts_with("device a;id or its peer"),
            "{}",
            queue.means
        );
    }

    #[test]
    fn what_the_whole_machine_has_once_is_not_looked_for_in_a_nodes_namespace() {
        let scene = Scene {
            at: "node-1",
            entering: Some("ip netns exec node-1"),
            ..Scene::default()
        };
        let full = of("NEIGH_CREATEFAIL", "ip_finish_output2", &scene).expect("known");
        assert_eq!(full.look, ["sysctl net.ipv4.neigh.default.gc_thresh3"]);
    }

    #[test]
    fn a_refusal_means_something_by_each_of_its_names() {
        let means = |protocol, what| of_refusal(protocol, what, &Scene::default()).map(|cause| cause.means);
        let rows = [
            (
                Protocol::TCP,
                "RST,ACK",
                "nobody listens at this address and port",
            ),
            (
                Protocol::ICMP,
                "port unreachable",
                "nobody listens at this UDP port",
            ),
            (
                Protocol::ICMP_V6,
                "port unreachable",
                "nobody listens at this UDP port",
            ),
            (Protocol::ICMP, "host unreachable", "no way to the receiver"),
            (Protocol::ICMP_V6, "address unreachable", "no way to the receiver"),
            (Protocol::ICMP_V6, "no route", "no route to the receiver"),
            (Protocol::ICMP_V6, "packet too big", "(MTU)"),
        ];
        for (protocol, what, part) in rows {
            let means = means(protocol, what).expect("known");
            assert!(means.contains(part), "{protocol} {what}: {means}");
        }
        assert_eq!(means(Protocol::ICMP, "type 42 code 0"), None);
    }
}
