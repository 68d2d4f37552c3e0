//! Drops that are part of normal traffic: nobody misses these packets.

use std::net::IpAddr;

use crate::hop::Protocol;

use super::Kind;

/// Reasons that say so by themselves (include/net/dropreason-core.h): what TCP has had already or closes with, and
/// sockets between programs of one machine.
const REASONS: [&str; 14] = [
    "SOCKET_CLOSE",
    "UNIX_DISCONNECT",
    "UNIX_SKIP_OOB",
    "TCP_OLD_DATA",
    "TCP_OFOMERGE",
    "TCP_OLD_ACK",
    "TCP_TOO_OLD_ACK",
    "TCP_OLD_SEQUENCE",
    "TCP_RFC7323_TW_PAWS",
    "TCP_RFC7323_PAWS_ACK",
    "TCP_RESET",
    "TCP_CLOSE",
    "TCP_ABORT_ON_DATA",
    "BRIDGE_INGRESS_STP_STATE",
];

/// What becomes of packets to many that this machine is not one of.
const OF_MANY: [&str; 9] = [
    "NOT_SPECIFIED",
    "NO_SOCKET",
    "OTHERHOST",
    "UNHANDLED_PROTO",
    "IP_NOPROTO",
    "IP_INADDRERRORS",
    "IPV6DISABLED",
    "IP_INVALID_DEST",
    // A tunnel that leads to nodes that are known, each by its MAC address.
    "NO_TX_TARGET",
];

/// `ETH_P_ARP`.
const ARP: u16 = 0x0806;

/// Whether drops of this kind are nobody's loss.
pub(crate) fn is_ordinary(kind: &Kind) -> bool {
    let reason = kind.reason.as_str();
    // What a program asks of the routing tables is a packet that the kernel makes up, and throws away.
    if REASONS.contains(&reason) || kind.place.ends_with("_rtm_getroute") {
        return true;
    }
    match (kind.protocol, kind.destination) {
        (Some(protocol), Some(destination)) => {
            // A connection that is over, or whose process is: its last packets find no socket, or one that reads no more
            // (the FIN itself lies there unread).
            // What is within a tunnel's packet has not come to a socket of its own.
            let is_late = protocol == Protocol::TCP
                && !kind.opens
                && !kind.wrapped
                && matches!(reason, "NO_SOCKET" | "QUEUE_PURGE");
            is_late || (is_to_many(destination) && OF_MANY.contains(&reason))
        }
        // Unix and netlink sockets; a question of ARP's to others, and what no protocol here takes.
        _ if kind.ethertype == 0 => true,
        _ if kind.ethertype == ARP => matches!(reason, "NOT_SPECIFIED" | "OTHERHOST"),
        _ => matches!(reason, "NOT_SPECIFIED" | "OTHERHOST" | "UNHANDLED_PROTO"),
    }
}

fn is_to_many(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(reason: &str, protocol: Option<Protocol>, destination: Option<&str>) -> Kind {
        Kind {
            reason: reason.to_owned(),
            place: "somewhere".to_owned(),
            netns: 1,
            device: "eth0".to_owned(),
            ethertype: if destination.is_some() { 0x0800 } else { 0 },
            protocol,
            opens: false,
            wrapped: false,
            source: destination.map(|_| "10.0.0.1".parse().expect("an address")),
            source_port: None,
            destination: destination.map(|text| text.parse().expect("an address")),
            destination_port: None,
        }
    }

    #[test]
    fn what_nobody_misses_is_told_from_what_somebody_does() {
        let (tcp, udp, icmp6) = (Some(Protocol::TCP), Some(Protocol::UDP), Some(Protocol::ICMP_V6));
        let opens = |kind: Kind| Kind { opens: true, ..kind };
        let wrapped = |kind: Kind| Kind {
            wrapped: true,
            ..kind
        };
        let arp = |reason| Kind {
            ethertype: ARP,
            ..kind(reason, None, None)
        };
        let rows = [
            (kind("TCP_OLD_ACK", tcp, Some("10.0.0.2")), true),
            (kind("NO_SOCKET", tcp, Some("10.0.0.2")), true),
            (wrapped(kind("NO_SOCKET", tcp, Some("10.0.0.2"))), false),
            (kind("QUEUE_PURGE", tcp, Some("10.0.0.2")), true),
            (kind("QUEUE_PURGE", udp, Some("10.0.0.2")), false),
            (opens(kind("NO_SOCKET", tcp, Some("10.0.0.2"))), false),
            (kind("NO_SOCKET", udp, Some("10.0.0.2")), false),
            (kind("NO_SOCKET", udp, Some("224.0.0.251")), true),
            (kind("NO_SOCKET", udp, Some("255.255.255.255")), true),
            (kind("NETFILTER_DROP", udp, Some("224.0.0.251")), false),
            (kind("NOT_SPECIFIED", icmp6, Some("ff02::2")), true),
            (kind("NOT_SPECIFIED", icmp6, Some("fd00::2")), false),
            (kind("NO_TX_TARGET", icmp6, Some("ff02::2")), true),
            (kind("NO_TX_TARGET", udp, Some("10.0.0.2")), false),
            (kind("NOT_SPECIFIED", None, None), true),
            (arp("NOT_SPECIFIED"), true),
            (arp("NETFILTER_DROP"), false),
            (kind("NETFILTER_DROP", tcp, Some("10.0.0.2")), false),
            (kind("TCP_LISTEN_OVERFLOW", tcp, Some("10.0.0.2")), false),
        ];
        for (kind, expected) in rows {
            assert_eq!(is_ordinary(&kind), expected, "{kind:?}");
        }
        let asked = kind("NOT_SPECIFIED", udp, Some("10.0.0.2"));
        assert!(!is_ordinary(&asked));
        let place = "inet_rtm_getroute".to_owned();
        assert!(is_ordinary(&Kind { place, ..asked }));
    }
}
