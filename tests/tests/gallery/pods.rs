//! Pods: both ends of their devices, and what they have inside.

use super::row::{Act, Ask, Row};
use super::world::At;

const NODE_1: At = At::Node(1);
const CLIENT: &str = "Pod default/client";

pub const ROWS: &[Row] = &[
    Row {
        name: "a_pods_device_that_is_down_on_the_node_is_named_and_fixed",
        breaks: &[Act::Run(NODE_1, "ip link set {client-veth} down")],
        asks: &[
            Ask::Doctor(1, "pod-device", CLIENT, &["found {client-veth} down"]),
            Ask::Explain(
                1,
                "pod/client svc/web:http",
                1,
                &["PROBLEM", "{client-veth}", "is down"],
            ),
            Ask::Trace(At::Server, "{web-ip} {client-ip}:8080", 1, &["node-1"]),
        ],
        mends: &[Act::Fix(1, "pod-device", CLIENT)],
    },
    Row {
        name: "a_pods_device_whose_ends_take_different_sizes_is_named_and_fixed",
        breaks: &[Act::Run(NODE_1, "ip link set {client-veth} mtu 1300")],
        asks: &[Ask::Doctor(
            1,
            "pod-inside",
            CLIENT,
            &["eth0 has MTU 1450", "{client-veth}", "MTU 1300"],
        )],
        mends: &[Act::Fix(1, "pod-inside", CLIENT)],
    },
    Row {
        name: "a_device_that_is_down_inside_a_pod_is_named_and_fixed",
        breaks: &[Act::Run(At::Client, "ip link set eth0 down")],
        asks: &[
            Ask::Doctor(1, "pod-inside", CLIENT, &["device eth0 is down"]),
            Ask::Explain(
                1,
                "pod/client svc/web:http",
                1,
                &["PROBLEM", "{client-veth}", "is down"],
            ),
            Ask::Trace(At::Server, "{web-ip} {client-ip}:8080", 1, &["node-1"]),
        ],
        mends: &[Act::Fix(1, "pod-inside", CLIENT)],
    },
    Row {
        name: "a_pod_without_its_address_is_named_and_fixed",
        breaks: &[Act::Run(At::Client, "ip address del {client-ip}/32 dev eth0")],
        asks: &[Ask::Doctor(
            1,
            "pod-inside",
            CLIENT,
            &["address {client-ip}/32 is missing"],
        )],
        mends: &[Act::Fix(1, "pod-inside", CLIENT)],
    },
    Row {
        name: "a_pod_without_its_default_route_is_named_and_fixed",
        breaks: &[Act::Run(At::Client, "ip route del default")],
        asks: &[
            Ask::Doctor(1, "pod-inside", CLIENT, &["route to 0.0.0.0/0 is missing"]),
            Ask::Answered(At::Client, "{web-ip}:8080", false),
        ],
        mends: &[Act::Fix(1, "pod-inside", CLIENT)],
    },
    Row {
        name: "a_pod_that_does_not_know_its_gateway_is_named_and_fixed",
        breaks: &[Act::Run(At::Client, "ip neigh del 169.254.1.1 dev eth0")],
        asks: &[Ask::Doctor(
            1,
            "pod-inside",
            CLIENT,
            &["neighbour 169.254.1.1", "missing"],
        )],
        mends: &[Act::Fix(1, "pod-inside", CLIENT)],
    },
    Row {
        name: "a_pod_that_sends_in_anothers_name_is_named",
        breaks: &[
            Act::Run(At::Client, "ip address add 10.98.7.6/32 dev eth0"),
            Act::Run(
                At::Client,
                "ip route add {web-ip}/32 via 169.254.1.1 dev eth0 src 10.98.7.6",
            ),
        ],
        asks: &[
            Ask::Trace(
                At::Client,
                "10.98.7.6 {web-ip}:8080",
                1,
                &["DROPPED", "node-1", "{client-veth}", "NETFILTER_DROP"],
            ),
            Ask::Doctor(
                1,
                "pod-inside",
                CLIENT,
                &["address 10.98.7.6/32 is not the pod's"],
            ),
        ],
        mends: &[
            Act::Run(At::Client, "ip route del {web-ip}/32"),
            Act::Run(At::Client, "ip address del 10.98.7.6/32 dev eth0"),
        ],
    },
];
