//! What a drop means. The kernel says why in its own words, and at some places it says nothing: there the place tells.

use netlink::conntrack::Usage;
use serde::{Deserialize, Serialize};

use crate::hop::{Hop, Protocol};

/// What a drop means, and what to look at. In the table `DEVICE`, `SENDER` and `RECEIVER` stand for those of the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// In words.
    pub means: String,
    /// What shows or mends it.
    pub look: String,
}

impl Cause {
    /// The same of this packet: with its device and its addresses in place of the words for them.
    #[must_use]
    pub fn about(self, hop: &Hop) -> Self {
        let flow = hop.header.flow;
        let device = Some(hop.device.as_str()).filter(|device| !device.is_empty());
        let name = |text: String| {
            let text = text.replace("DEVICE", device.unwrap_or("DEVICE"));
            let text = text.replace("SENDER", &flow.source.ip().to_string());
            text.replace("RECEIVER", &flow.destination.ip().to_string())
        };
        Self {
            means: name(self.means),
            look: name(self.look),
        }
    }
}

/// A row: reason, the beginning of the place's name, what it means, what to look at. Empty: any.
type Row = (&'static str, &'static str, &'static str, &'static str);

/// The first row that fits is taken. Reasons are those of include/net/dropreason-core.h; a place is where a function
/// gives no reason of its own.
const ROWS: [Row; 43] = [
    (
        "NETFILTER_DROP",
        "",
        "a rule of nftables or iptables dropped it",
        "nft list ruleset, iptables-save",
    ),
    (
        "NO_TX_TARGET",
        "vxlan",
        "the VXLAN device knows no node for the packet's MAC address: the FDB entry is missing",
        "bridge fdb show dev DEVICE; does the lease of the other node exist?",
    ),
    (
        "VXLAN_VNI_NOT_FOUND",
        "",
        "no VXLAN device of this node has the packet's network identifier",
        "ip -d link show type vxlan",
    ),
    (
        "NO_SOCKET",
        "__udp",
        "nobody listens at this UDP port",
        "ss -uln; for VXLAN: ip -d link show type vxlan",
    ),
    (
        "NO_SOCKET",
        "",
        "nobody listens at this address and port",
        "ss -tln",
    ),
    (
        "IP_RPFILTER",
        "",
        "the way back to the sender is not by the device that it came from (rp_filter)",
        "ip route get SENDER; sysctl net.ipv4.conf.all.rp_filter",
    ),
    (
        "NEIGH_FAILED",
        "",
        "nobody answers for the next hop's address on the link",
        "ip neigh show",
    ),
    (
        "NEIGH_QUEUEFULL",
        "",
        "too many packets wait for the next hop's MAC address",
        "ip neigh show",
    ),
    (
        "NEIGH_CREATEFAIL",
        "",
        "the table of neighbours is full",
        "sysctl net.ipv4.neigh.default.gc_thresh3",
    ),
    (
        "IP_OUTNOROUTES",
        "",
        "there is no route to the receiver",
        "ip route get RECEIVER",
    ),
    (
        "IP_INNOROUTES",
        "",
        "there is no route to the receiver",
        "ip route get RECEIVER from SENDER iif DEVICE",
    ),
    (
        "IP_LOCALNET",
        "",
        "loopback addresses do not leave their host",
        "sysctl net.ipv4.conf.all.route_localnet",
    ),
    (
        "IP_LOCAL_SOURCE",
        "",
        "the sender's address is one of the receiver's own",
        "ip address show",
    ),
    (
        "IP_INVALID_SOURCE",
        "",
        "the sender's address cannot be one",
        "ip address show",
    ),
    (
        "PKT_TOO_BIG",
        "",
        "it is larger than device DEVICE takes (MTU)",
        "ip link show; the MTU of pods must leave room for the tunnel",
    ),
    (
        "NOT_SPECIFIED",
        "__dev_forward_skb",
        "the other end of the veth DEVICE is down, or takes no packets of that size: the MTUs of its ends differ",
        "ip link show, on both ends",
    ),
    (
        "NOT_SPECIFIED",
        "veth_xmit",
        "the other end of the veth DEVICE is down, or takes no packets of that size: the MTUs of its ends differ",
        "ip link show, on both ends",
    ),
    (
        "NOT_SPECIFIED",
        "ip_forward",
        "the host does not forward it",
        "sysctl net.ipv4.ip_forward; the packet's TTL and size",
    ),
    (
        "NOT_SPECIFIED",
        "ip6_forward",
        "the host does not forward it",
        "sysctl net.ipv6.conf.all.forwarding; the packet's hop limit and size",
    ),
    (
        "NOT_SPECIFIED",
        "ip_error",
        "there is no route to the receiver, or forwarding is off",
        "ip route get RECEIVER; sysctl net.ipv4.ip_forward",
    ),
    (
        "TC_INGRESS",
        "",
        "a program or filter at the device's ingress (tc) dropped it",
        "tc filter show dev DEVICE ingress; bpftool net",
    ),
    (
        "TC_EGRESS",
        "",
        "a program or filter at the device's egress (tc) dropped it",
        "tc filter show dev DEVICE egress; bpftool net",
    ),
    (
        "XDP",
        "",
        "an XDP program at the device dropped it",
        "ip link show; bpftool net",
    ),
    (
        "QDISC_DROP",
        "",
        "device DEVICE or its peer is down, or its queue is full",
        "ip link show DEVICE: NO-CARRIER is a peer that is down; tc -s qdisc show dev DEVICE",
    ),
    (
        "DEV_READY",
        "",
        "device DEVICE or its peer is down",
        "ip link show DEVICE, and its other end",
    ),
    (
        "SOCKET_RCVBUFF",
        "",
        "the socket's buffer is full: the program reads too slowly",
        "ss -nmp",
    ),
    (
        "SOCKET_FILTER",
        "",
        "a filter at the socket, or a program at its cgroup, dropped it",
        "bpftool cgroup tree",
    ),
    (
        "TCP_LISTEN_OVERFLOW",
        "",
        "the listener's queue is full: the program accepts too slowly",
        "ss -tln",
    ),
    (
        "TCP_CSUM",
        "",
        "TCP's checksum is wrong",
        "ethtool -k DEVICE: try without tx-checksumming",
    ),
    (
        "UDP_CSUM",
        "",
        "UDP's checksum is wrong",
        "ethtool -k DEVICE: try without tx-checksumming",
    ),
    (
        "QUEUE_PURGE",
        "",
        "it had arrived: the socket was closed before it was read",
        "the program at that socket",
    ),
    (
        "BPF_CGROUP_EGRESS",
        "",
        "a program at the sender's cgroup dropped it",
        "bpftool cgroup tree",
    ),
    (
        "CPU_BACKLOG",
        "",
        "the CPU's queue of received packets was full",
        "cat /proc/net/softnet_stat; sysctl net.core.netdev_max_backlog",
    ),
    (
        "FULL_RING",
        "",
        "the device's ring was full",
        "ip -s link show dev DEVICE",
    ),
    (
        "DEV_READY",
        "",
        "the device, or the other end of its cable, is down",
        "ip link show, on both ends",
    ),
    (
        "SOCKET_BACKLOG",
        "",
        "the socket's backlog is full: the program reads too slowly",
        "ss -nmp",
    ),
    (
        "PROTO_MEM",
        "",
        "the protocol may use no more memory",
        "cat /proc/net/sockstat; sysctl net.ipv4.tcp_mem net.ipv4.udp_mem",
    ),
    (
        "TCP_ZEROWINDOW",
        "",
        "the receiver's window is closed: the program reads too slowly",
        "ss -tnmp",
    ),
    (
        "TCP_OFO_QUEUE_PRUNE",
        "",
        "no room was left for segments that came before their turn",
        "ss -tnmp",
    ),
    (
        "IPV6DISABLED",
        "",
        "IPv6 is switched off at the device",
        "sysctl net.ipv6.conf.DEVICE.disable_ipv6",
    ),
    (
        "FRAG_REASM_TIMEOUT",
        "",
        "the other fragments of it did not come in time",
        "a fragment is dropped elsewhere: causeway drops on the way",
    ),
    (
        "TCP_RFC7323_PAWS",
        "",
        "its time stamp is older than one that was seen: a copy, or a sender behind the same address",
        "sysctl net.ipv4.tcp_timestamps, at the sender",
    ),
    (
        "OTHERHOST",
        "",
        "its MAC address is another host's",
        "ip neigh show, at the sender",
    ),
];

/// What a drop means; `None` where the kernel's words are all that is known.
#[must_use]
pub fn of(reason: &str, place: &str) -> Option<Cause> {
    let found = ROWS
        .iter()
        .find(|(row_reason, at, ..)| *row_reason == reason && place.starts_with(at));
    found.map(|(_, _, means, look)| Cause {
        means: (*means).to_owned(),
        look: (*look).to_owned(),
    })
}

/// Of a table of so many hundredths that a packet was dropped at, it is said that it is full: entries come and go.
const FULL_PERCENT: u64 = 99;

/// What a drop by netfilter means where connection tracking has no room: no rule dropped the packet then, unless its
/// connection was there. The kernel says the same of both (`nf_conntrack_in` drops what it cannot track). None: it has room.
/// `usage` looks how full it is, where that matters.
#[must_use]
pub fn of_full_table(reason: &str, usage: impl FnOnce() -> Option<Usage>) -> Option<Cause> {
    if reason != "NETFILTER_DROP" {
        return None;
    }
    let Usage { tracked, most } = usage().filter(|usage| usage.has_reached(FULL_PERCENT))?;
    Some(Cause {
        means: format!(
            "connection tracking's table is full ({tracked} of {most}): packets of new connections are dropped"
        ),
        look: "sysctl net.netfilter.nf_conntrack_max; conntrack -L: who has so many; conntrack -S: drop, early_drop"
            .to_owned(),
    })
}

/// Answers that refuse: TCP's, and errors by ICMP as [`crate::hop`] calls them; what they mean, and what to look at.
/// `SENDER` is who refuses.
const REFUSALS: [(&str, &str, &str); 10] = [
    (
        "port unreachable",
        "nobody listens at this UDP port of SENDER, or a rule there rejects it",
        "ss -uln; nft list ruleset, iptables-save, where SENDER is",
    ),
    (
        "host unreachable",
        "SENDER knows no way to the receiver: nobody on the link answers for its address, or a route refuses it",
        "ip neigh show; ip route, where SENDER is",
    ),
    (
        "address unreachable",
        "SENDER knows no way to the receiver: nobody on the link answers for its address, or a route refuses it",
        "ip -6 neigh show; ip -6 route, where SENDER is",
    ),
    (
        "network unreachable",
        "SENDER has no route to the receiver",
        "ip route, where SENDER is",
    ),
    (
        "no route",
        "SENDER has no route to the receiver",
        "ip -6 route, where SENDER is",
    ),
    (
        "administratively prohibited",
        "a rule, or a route, of SENDER rejects it",
        "nft list ruleset, iptables-save; ip route, where SENDER is",
    ),
    (
        "time exceeded",
        "it went in a circle, or over more hops than its TTL allows, and ended at SENDER",
        "ip route get, at each node of its way",
    ),
    (
        "fragmentation needed",
        "it is larger than the next link of SENDER takes (MTU), and may not be cut up",
        "ip link show, where SENDER is; the MTU of pods must leave room for the tunnel",
    ),
    (
        "packet too big",
        "it is larger than the next link of SENDER takes (MTU)",
        "ip link show, where SENDER is; the MTU of pods must leave room for the tunnel",
    ),
    (
        "RST",
        "nobody listens at this address and port, or a rule rejects it",
        "ss -tln; nft list ruleset, iptables-save, where SENDER is",
    ),
];

/// What an answer means that says no: an error by ICMP, or TCP's RST. `None` where it is none of these.
#[must_use]
pub fn of_refusal(protocol: Protocol, what: &str) -> Option<Cause> {
    let name = if protocol == Protocol::TCP { "RST" } else { what };
    let found = REFUSALS.iter().find(|(row, ..)| *row == name);
    found.map(|(_, means, look)| Cause {
        means: (*means).to_owned(),
        look: (*look).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_tells_where_the_reason_does_not() {
        let means = |reason, place| of(reason, place).map(|cause| cause.means);
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
        let means = |reason, tracked: Option<u64>| {
            let usage = || tracked.map(|tracked| Usage { tracked, most: 1000 });
            of_full_table(reason, usage).map(|cause| cause.means)
        };
        assert_eq!(
            means("NETFILTER_DROP", Some(998)).as_deref(),
            Some("connection tracking's table is full (998 of 1000): packets of new connections are dropped")
        );
        assert_eq!(means("NETFILTER_DROP", Some(989)), None);
        assert_eq!(means("NETFILTER_DROP", None), None);
        assert_eq!(means("NO_SOCKET", Some(1000)), None);
    }

    #[test]
    fn a_refusal_means_something_by_each_of_its_names() {
        let means = |protocol, what| of_refusal(protocol, what).map(|cause| cause.means);
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
