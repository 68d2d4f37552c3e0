//! The way between nodes: device, routes, neighbours, forwarding entries, and what lies below.

use nix::sys::signal::Signal;

use super::row::{Act, Ask, Row};
use super::world::{At, World};

//
// What passes by the stack, TCP on the fast path, does not meet what is wrong there: rows that ask the stack by trace
// do so with a datagram.

const NODE_1: At = At::Node(1);
const NODE_2: At = At::Node(2);

pub const ROWS: &[Row] = &[
    Row {
        name: "what_the_attached_program_says_stands_beside_its_maps",
        breaks: &[],
        asks: &[Ask::Explain(
            1,
            "pod/client svc/web:http",
            0,
            &[
                "FAST PATH",
                "program from_pod [{client-veth}, id ",
                "test run: wraps it for {mac-2}, network 1, {node-1} -> {node-2}:8472/UDP",
            ],
        )],
        mends: &[],
    },
    Row {
        name: "a_program_that_wraps_for_another_network_than_the_tunnels_is_told_by_its_own_verdict",
        breaks: &[Act::SiegeBy(World::lead_astray)],
        asks: &[
            Ask::Explain(
                1,
                "pod/client svc/web:http",
                1,
                &[
                    "FAST PATH",
                    "test run: wraps it for {mac-2}, network 77",
                    "PROBLEM  the attached program",
                    "flannel.1 is of network 1",
                ],
            ),
            Ask::Answered(At::Client, "{web-ip}:8080", false),
        ],
        mends: &[Act::Do(World::lead_back)],
    },
    Row {
        name: "a_forwarding_entry_that_goes_is_named_by_doctor",
        breaks: &[Act::Siege(
            NODE_1,
            &["bridge fdb del {mac-2} dev flannel.1 dst {node-2}"],
        )],
        asks: &[Ask::Doctor(
            1,
            "tunnel-fdb",
            "Node node-2",
            &["{mac-2} behind {node-2}", "found nothing"],
        )],
        mends: &[],
    },
    Row {
        name: "a_forwarding_entry_that_goes_while_the_agent_stands_still_is_named_by_trace",
        breaks: &[
            Act::Signal("node-1-agent", Signal::SIGSTOP),
            Act::Run(NODE_1, "bridge fdb del {mac-2} dev flannel.1 dst {node-2}"),
        ],
        asks: &[
            Ask::Trace(
                At::Client,
                "pod/client {web-ip}:9000/udp",
                1,
                &["DROPPED", "flannel.1", "FDB entry"],
            ),
            Ask::NoDoctor(1, &["stopped"]),
        ],
        mends: &[Act::Signal("node-1-agent", Signal::SIGCONT)],
    },
    Row {
        name: "a_forwarding_entry_that_leads_elsewhere_is_named",
        breaks: &[Act::Siege(
            NODE_1,
            &["bridge fdb replace {mac-2} dev flannel.1 dst 172.30.0.99"],
        )],
        asks: &[Ask::Doctor(
            1,
            "tunnel-fdb",
            "Node node-2",
            &["{mac-2} behind {node-2}", "found {mac-2} behind 172.30.0.99"],
        )],
        mends: &[],
    },
    Row {
        name: "a_neighbour_of_the_tunnel_that_goes_is_named",
        breaks: &[Act::Siege(NODE_1, &["ip neigh del {vtep-2} dev flannel.1"])],
        asks: &[Ask::Doctor(
            1,
            "pod-neighbour",
            "Node node-2",
            &["neighbour {vtep-2} with {mac-2}", "found nothing"],
        )],
        mends: &[],
    },
    Row {
        name: "a_neighbour_of_the_tunnel_with_anothers_mac_address_is_named",
        breaks: &[Act::Siege(
            NODE_1,
            &["ip neigh replace {vtep-2} lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent"],
        )],
        asks: &[Ask::Doctor(
            1,
            "pod-neighbour",
            "Node node-2",
            &["found neighbour {vtep-2} with 02:00:00:00:00:99"],
        )],
        mends: &[],
    },
    Row {
        name: "a_subnets_route_that_goes_is_named",
        breaks: &[Act::Siege(NODE_1, &["ip route del {subnet-2}"])],
        asks: &[Ask::Doctor(
            1,
            "pod-route",
            "Node node-2",
            &["route {subnet-2} via {vtep-2}", "found nothing"],
        )],
        mends: &[],
    },
    Row {
        name: "a_foreign_route_in_the_place_of_ours_is_named",
        breaks: &[Act::Run(
            NODE_1,
            "ip route replace blackhole {subnet-2} proto static",
        )],
        asks: &[
            Ask::Doctor(
                1,
                "pod-route",
                "Node node-2",
                &[
                    "route {subnet-2} via {vtep-2}",
                    "found route blackhole {subnet-2}",
                ],
            ),
            // TCP passes it by the fast path.
            Ask::Explain(1, "pod/client svc/web:http", 0, &["DIFFERS", "blackhole"]),
            Ask::Explain(1, "pod/client {web-ip}:9000/udp", 1, &["PROBLEM", "blackhole"]),
            Ask::Trace(
                At::Client,
                "pod/client {web-ip}:9000/udp",
                1,
                &["DROPPED", "node-1"],
            ),
        ],
        mends: &[Act::Run(NODE_1, "ip route del blackhole {subnet-2}")],
    },
    Row {
        name: "a_foreign_route_to_one_pod_is_named",
        breaks: &[Act::Run(NODE_1, "ip route add blackhole {web-ip}/32")],
        asks: &[
            Ask::Doctor(
                1,
                "foreign-route",
                "Node node-2",
                &["{subnet-2}", "blackhole {web-ip}/32"],
            ),
            // TCP passes it by the fast path.
            Ask::Explain(1, "pod/client svc/web:http", 0, &["DIFFERS", "blackhole"]),
            Ask::Explain(1, "pod/client {web-ip}:9000/udp", 1, &["PROBLEM", "blackhole"]),
            Ask::Trace(
                At::Client,
                "pod/client {web-ip}:9000/udp",
                1,
                &["DROPPED", "node-1"],
            ),
        ],
        mends: &[Act::Run(NODE_1, "ip route del blackhole {web-ip}/32")],
    },
    Row {
        name: "a_tunnel_with_too_small_an_mtu_is_named",
        breaks: &[Act::Siege(NODE_1, &["ip link set flannel.1 mtu 1300"])],
        asks: &[Ask::Doctor(
            1,
            "tunnel-device",
            "this node",
            &["expected flannel.1 up, MTU 1450", "found flannel.1 up, MTU 1300"],
        )],
        mends: &[],
    },
    Row {
        name: "a_tunnel_that_is_down_is_named",
        breaks: &[Act::Siege(NODE_1, &["ip link set flannel.1 down"])],
        asks: &[Ask::Doctor(
            1,
            "tunnel-device",
            "this node",
            &["found flannel.1 down"],
        )],
        mends: &[],
    },
    Row {
        name: "a_tunnel_that_learns_addresses_is_named",
        breaks: &[Act::Siege(NODE_1, &["ip link set flannel.1 type vxlan learning"])],
        asks: &[Ask::Doctor(
            1,
            "tunnel-device",
            "this node",
            &[
                "VNI 1, port 8472, from {node-1}, found",
                "from {node-1}, learning",
            ],
        )],
        mends: &[],
    },
    Row {
        name: "a_tunnel_with_another_identifier_on_the_other_node_is_named",
        breaks: &[
            Act::Signal("node-2-agent", Signal::SIGSTOP),
            Act::Run(NODE_2, "ip link del flannel.1"),
            Act::Run(
                NODE_2,
                "ip link add flannel.1 address {mac-2} mtu 1450 type vxlan id 7 dev eth0 local {node-2} dstport 8472 nolearning",
            ),
            Act::Run(NODE_2, "ip link set flannel.1 up"),
        ],
        asks: &[Ask::Trace(
            At::Client,
            "pod/client {web-ip}:9000/udp",
            1,
            &["DROPPED", "node-2", "VXLAN_VNI_NOT_FOUND"],
        )],
        mends: &[Act::Signal("node-2-agent", Signal::SIGCONT)],
    },
    Row {
        name: "an_underlay_that_is_down_is_named",
        breaks: &[Act::Run(NODE_1, "ip link set eth0 down")],
        asks: &[
            Ask::Doctor(1, "underlay", "this node", &["eth0", "{node-1}", "down"]),
            Ask::Answered(At::Client, "{web-ip}:8080", false),
        ],
        mends: &[
            Act::Run(NODE_1, "ip link set eth0 up"),
            Act::Run(
                NODE_1,
                "ip route replace default via 172.30.0.1 dev eth0 proto static",
            ),
        ],
    },
    Row {
        name: "pods_that_send_more_than_a_smaller_underlay_takes_are_named",
        breaks: &[Act::Run(NODE_1, "ip link set eth0 mtu 1400")],
        asks: &[Ask::Doctor(
            1,
            "pod-device",
            "Pod default/client",
            &["MTU 1350 at most", "found {client-veth} up, MTU 1450"],
        )],
        mends: &[Act::Run(NODE_1, "ip link set eth0 mtu 1500")],
    },
    Row {
        name: "a_node_with_anothers_mac_address_on_the_underlay_is_named",
        breaks: &[Act::Run(
            NODE_1,
            "ip neigh replace {node-2} lladdr 02:00:00:00:00:99 dev eth0 nud permanent",
        )],
        asks: &[
            Ask::Doctor(
                1,
                "underlay-neighbour",
                "Node node-2",
                &["{node-2}", "02:00:00:00:00:99"],
            ),
            Ask::Answered(At::Client, "{web-ip}:8080", false),
        ],
        mends: &[Act::Run(NODE_1, "ip neigh del {node-2} dev eth0")],
    },
    Row {
        name: "a_foreign_rule_that_drops_the_tunnel_is_named",
        breaks: &[
            Act::Run(NODE_2, "nft add table ip cwt-fw"),
            Act::Run(
                NODE_2,
                "nft add chain ip cwt-fw input { type filter hook input priority 0 ; }",
            ),
            Act::Run(NODE_2, "nft add rule ip cwt-fw input udp dport 8472 drop"),
        ],
        asks: &[
            Ask::Doctor(2, "foreign-rules", "chain ip cwt-fw input", &["may drop"]),
            Ask::Trace(
                At::Client,
                "pod/client {web-ip}:8080",
                1,
                &["DROPPED", "node-2", "NETFILTER_DROP"],
            ),
        ],
        mends: &[Act::Run(NODE_2, "nft delete table ip cwt-fw")],
    },
    Row {
        name: "an_uplink_that_takes_more_than_its_way_is_named_with_who_is_not_reached",
        breaks: &[Act::Run(NODE_1, "ip link set eth0 mtu 9000")],
        asks: &[
            Ask::Doctor(1, "path-mtu", "Node node-2", &["9000 bytes", "eth0", "vanish"]),
            Ask::Doctor(1, "path-mtu", "API server", &["9000 bytes", "eth0", "vanish"]),
        ],
        mends: &[Act::Run(NODE_1, "ip link set eth0 mtu 1500")],
    },
    Row {
        name: "a_way_between_nodes_that_takes_less_than_their_uplinks_is_named",
        breaks: &[Act::Run(At::Outside, "ip link set cw-node-2 mtu 1300")],
        asks: &[
            Ask::Doctor(1, "path-mtu", "Node node-2", &["1500 bytes", "eth0", "vanish"]),
            Ask::Doctor(2, "path-mtu", "Node node-1", &["1500 bytes", "eth0", "vanish"]),
        ],
        mends: &[Act::Run(At::Outside, "ip link set cw-node-2 mtu 1500")],
    },
];
