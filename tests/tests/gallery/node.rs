//! The node: settings of the kernel, rules of others, and the tables and maps that serve Services.

use super::row::{Act, Ask, Row};
use super::world::{At, World};

const NODE_1: At = At::Node(1);
const WEB: &str = "Service default/web";

pub const ROWS: &[Row] = &[
    Row {
        name: "a_node_that_does_not_forward_is_named",
        breaks: &[Act::Siege(NODE_1, &["sysctl -q -w net.ipv4.ip_forward=0"])],
        asks: &[
            Ask::Doctor(1, "kernel-setting", "net.ipv4.ip_forward", &["it is 0", "1"]),
            Ask::Trace(
                At::Client,
                "pod/client {web-ip}:9000/udp",
                1,
                &["DROPPED", "node-1", "ip_error"],
            ),
        ],
        mends: &[],
    },
    Row {
        name: "a_device_that_does_not_forward_is_named",
        breaks: &[Act::Run(
            NODE_1,
            "sysctl -q -w net/ipv4/conf/{client-veth}/forwarding=0",
        )],
        asks: &[
            Ask::Doctor(
                1,
                "kernel-setting",
                "net.ipv4.conf.{client-veth}.forwarding",
                &["it is 0", "not forwarded"],
            ),
            Ask::Trace(
                At::Client,
                "pod/client {web-ip}:9000/udp",
                1,
                &["DROPPED", "node-1", "ip_error"],
            ),
        ],
        mends: &[Act::Run(
            NODE_1,
            "sysctl -q -w net/ipv4/conf/{client-veth}/forwarding=1",
        )],
    },
    Row {
        name: "a_table_of_routes_that_nobody_looks_up_is_named",
        breaks: &[Act::Run(NODE_1, "ip rule del lookup main")],
        asks: &[
            Ask::Doctor(1, "routing-rule", "table main", &["no rule of policy routing"]),
            Ask::Explain(
                1,
                "pod/client svc/web:http",
                1,
                &["UNDERLAY", "PROBLEM", "no route leads there"],
            ),
            Ask::Answered(At::Client, "{web-ip}:8080", false),
        ],
        mends: &[Act::Run(NODE_1, "ip rule add lookup main pref 32766")],
    },
    Row {
        name: "a_tunnel_with_a_strict_reverse_path_filter_is_named",
        breaks: &[Act::Siege(
            NODE_1,
            &["sysctl -q -w net/ipv4/conf/flannel.1/rp_filter=1"],
        )],
        asks: &[Ask::Doctor(
            1,
            "kernel-setting",
            "net.ipv4.conf.flannel/1.rp_filter",
            &["it is 1", "2"],
        )],
        mends: &[],
    },
    Row {
        name: "a_foreign_rule_that_drops_a_pods_packets_is_named",
        breaks: &[
            Act::Run(NODE_1, "nft add table ip cwt-fw"),
            Act::Run(
                NODE_1,
                "nft add chain ip cwt-fw forward { type filter hook forward priority 0 ; }",
            ),
            Act::Run(NODE_1, "nft add rule ip cwt-fw forward ip daddr {web-ip} drop"),
        ],
        asks: &[
            Ask::Doctor(1, "foreign-rules", "chain ip cwt-fw forward", &["may drop"]),
            Ask::Explain(
                1,
                "pod/client svc/web:http",
                1,
                &[
                    "RULES",
                    "rule handle 2 of chain ip cwt-fw forward, at hook forward",
                ],
            ),
            Ask::Trace(
                At::Client,
                "pod/client {web-ip}:8080",
                1,
                &["DROPPED", "node-1", "NETFILTER_DROP"],
            ),
        ],
        mends: &[Act::Run(NODE_1, "nft delete table ip cwt-fw")],
    },
    Row {
        name: "a_rule_at_a_device_that_drops_what_comes_by_it_is_named",
        breaks: &[
            Act::Run(NODE_1, "nft add table netdev cwt-fw"),
            Act::Run(
                NODE_1,
                "nft add chain netdev cwt-fw in { type filter hook ingress device {client-veth} priority 0 ; }",
            ),
            Act::Run(NODE_1, "nft add rule netdev cwt-fw in ip daddr {web-ip} drop"),
        ],
        asks: &[
            Ask::Doctor(1, "foreign-rules", "chain netdev cwt-fw in", &["may drop"]),
            Ask::Explain(
                1,
                "pod/client svc/web:http",
                1,
                &[
                    "RULES",
                    "rule handle 2 of chain netdev cwt-fw in, at hook ingress",
                ],
            ),
            Ask::Trace(
                At::Client,
                "pod/client {web-ip}:8080",
                1,
                &["DROPPED", "node-1", "NETFILTER_DROP"],
            ),
        ],
        mends: &[Act::Run(NODE_1, "nft delete table netdev cwt-fw")],
    },
    Row {
        name: "a_rule_of_iptables_that_drops_what_the_tunnel_sends_is_named",
        breaks: &[Act::Run(
            NODE_1,
            "iptables-nft -A OUTPUT -p udp --dport 8472 -m comment --comment why -j DROP",
        )],
        asks: &[Ask::Explain(
            1,
            "pod/client svc/web:http",
            1,
            &[
                "RULES",
                "{node-2}:8472/UDP",
                "chain ip filter OUTPUT, at hook output",
            ],
        )],
        mends: &[Act::Run(NODE_1, "nft delete table ip filter")],
    },
    Row {
        name: "an_answer_that_a_foreign_rule_rejects_is_told_on_its_way_back",
        breaks: &[
            Act::Run(NODE_1, "nft add table inet cwt-fw"),
            Act::Run(
                NODE_1,
                "nft add chain inet cwt-fw forward { type filter hook forward priority 0 ; policy drop ; }",
            ),
            Act::Run(
                NODE_1,
                "nft add rule inet cwt-fw forward iifname {client-veth} ct state new accept",
            ),
        ],
        asks: &[
            Ask::Explain(
                1,
                "pod/client svc/web:http",
                1,
                &["reverse", "its policy of chain inet cwt-fw forward"],
            ),
            Ask::Answered(At::Client, "{web-ip}:8080", false),
        ],
        mends: &[Act::Run(NODE_1, "nft delete table inet cwt-fw")],
    },
    Row {
        name: "foreign_rules_that_are_not_understood_are_counted_with_their_place",
        breaks: &[
            Act::Run(NODE_1, "nft add table ip cwt-fw"),
            Act::Run(
                NODE_1,
                "nft add chain ip cwt-fw forward { type filter hook forward priority 0 ; }",
            ),
            Act::Run(
                NODE_1,
                "nft add rule ip cwt-fw forward fib daddr type multicast drop",
            ),
        ],
        asks: &[
            Ask::Explain(
                1,
                "pod/client svc/web:http",
                0,
                &["not evaluated, in chain ip cwt-fw forward: handle 2"],
            ),
            Ask::Answered(At::Client, "{web-ip}:8080", true),
        ],
        mends: &[Act::Run(NODE_1, "nft delete table ip cwt-fw")],
    },
    Row {
        name: "a_rule_of_policy_routing_that_drops_what_a_pod_sends_is_named",
        breaks: &[Act::Run(NODE_1, "ip rule add pref 10 from {client-ip} blackhole")],
        asks: &[Ask::Doctor(
            1,
            "routing-rule",
            "Pod default/client",
            &["ip rule 10 drops what is sent from {client-ip}/32"],
        )],
        mends: &[Act::Run(NODE_1, "ip rule del pref 10")],
    },
    Row {
        name: "a_default_route_that_went_with_its_device_is_named",
        breaks: &[
            Act::Run(NODE_1, "ip link set eth0 down"),
            Act::Run(NODE_1, "ip link set eth0 up"),
        ],
        asks: &[Ask::Doctor(
            1,
            "default-route",
            "default route of IPv4",
            &["it is gone", "masqueraded has no way"],
        )],
        mends: &[Act::Run(
            NODE_1,
            "ip route add default via 172.30.0.1 dev eth0 proto static",
        )],
    },
    Row {
        name: "an_element_of_the_rules_that_goes_is_named_with_its_service",
        breaks: &[Act::Siege(
            NODE_1,
            &["nft flush map ip causeway-proxy service-ips"],
        )],
        asks: &[Ask::Doctor(
            1,
            "service-differs",
            WEB,
            &["{vip}:80/TCP: packet rules: no entry"],
        )],
        mends: &[],
    },
    Row {
        name: "a_table_of_rules_that_goes_is_named_once",
        breaks: &[Act::Siege(NODE_1, &["nft delete table ip causeway-proxy"])],
        asks: &[Ask::Doctor(
            1,
            "service-table-gone",
            "table ip causeway-proxy",
            &["is not there"],
        )],
        mends: &[],
    },
    Row {
        name: "the_table_against_spoofing_that_goes_is_named",
        breaks: &[Act::Siege(NODE_1, &["nft delete table ip causeway-guard"])],
        asks: &[Ask::Doctor(
            1,
            "network-rules",
            "table ip causeway-guard",
            &["is not there"],
        )],
        mends: &[],
    },
    Row {
        name: "the_table_that_masquerades_that_goes_is_named",
        breaks: &[Act::Siege(NODE_1, &["nft delete table ip causeway-masq"])],
        asks: &[Ask::Doctor(
            1,
            "network-rules",
            "table ip causeway-masq",
            &["is not there"],
        )],
        mends: &[],
    },
    Row {
        name: "an_entry_of_the_hooks_maps_that_goes_is_named_and_fixed",
        breaks: &[Act::Do(World::forget_frontends)],
        asks: &[
            Ask::Doctor(
                1,
                "service-differs",
                WEB,
                &["{vip}:80/TCP: socket hook: no entry"],
            ),
            // The packet rules serve it meanwhile.
            Ask::Explain(
                1,
                "pod/client svc/web:http",
                0,
                &["DIFFERS", "socket hook: no entry"],
            ),
        ],
        mends: &[Act::Fix(1, "service-differs", WEB)],
    },
    Row {
        name: "a_hook_that_is_detached_is_named",
        breaks: &[Act::Siege(
            At::Outside,
            &["find {pins}/links -name connect4-* -delete"],
        )],
        asks: &[Ask::Doctor(1, "hook-detached", "socket hook", &["connect4"])],
        mends: &[],
    },
    Row {
        name: "a_full_table_of_connections_is_named_and_no_rule_blamed",
        breaks: &[
            Act::SiegeBy(World::fill_tracked),
            // Each from a port of its own.
            Act::Siege(At::Client, &["bash -c echo>/dev/udp/{web-ip}/9000"]),
        ],
        asks: &[
            Ask::Doctor(
                1,
                "conntrack-full",
                "this node",
                &[" of {most-tracked}", "packets of new ones are dropped"],
            ),
            Ask::Explain(
                1,
                "pod/client {web-ip}:9000/udp",
                1,
                &[
                    "TRACKING",
                    "connection tracking's table is full (",
                    " of {most-tracked})",
                ],
            ),
            Ask::Trace(
                At::Client,
                "pod/client {web-ip}:9000/udp",
                1,
                &[
                    "DROPPED",
                    "node-1",
                    "NETFILTER_DROP",
                    "connection tracking's table is full",
                ],
            ),
            Ask::Drops(
                "--pod client",
                1,
                &[
                    "node-1",
                    "NETFILTER_DROP in nf_hook_slow",
                    "connection tracking's table is full",
                ],
            ),
            // What passes the stack by is not tracked.
            Ask::Answered(At::Client, "{web-ip}:8080", true),
        ],
        mends: &[Act::Do(World::empty_tracked)],
    },
    Row {
        name: "a_tracked_flow_to_an_endpoint_that_is_gone_is_named",
        breaks: &[Act::Run(
            NODE_1,
            "conntrack -I -p udp -s {client-ip} -d {echo-vip} --sport 4000 --dport 9000 -r 10.244.0.9 -q {client-ip} --reply-port-src 9000 --reply-port-dst 4000 -t 120",
        )],
        asks: &[Ask::Doctor(
            1,
            "conntrack-stale",
            "Service default/echo",
            &["{client-ip}:4000", "{echo-vip}:9000", "10.244.0.9:9000"],
        )],
        mends: &[Act::Run(
            NODE_1,
            "conntrack -D -p udp -s {client-ip} --sport 4000 -d {echo-vip}",
        )],
    },
];
