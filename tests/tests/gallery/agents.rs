//! Agents, leases, the API server and DNS.

use nix::sys::signal::Signal;

use super::row::{Act, Ask, Row};
use super::world::{At, World};

const NODE_1: At = At::Node(1);

pub const ROWS: &[Row] = &[
    Row {
        name: "an_agent_that_does_not_run_is_told",
        breaks: &[Act::SiegeSignal("node-1-agent", Signal::SIGKILL)],
        asks: &[
            Ask::NoDoctor(1, &["ask the agent at", "does `causeway node` run"]),
            Ask::Answered(At::Client, "{vip}:80", true),
        ],
        mends: &[],
    },
    Row {
        name: "an_agent_that_stands_still_is_told",
        breaks: &[Act::Signal("node-1-agent", Signal::SIGSTOP)],
        asks: &[
            Ask::NoDoctor(1, &["is stopped", "kill -CONT"]),
            Ask::Status(1, &["✗ node-1-agent", "stopped, by SIGSTOP", "kill -CONT"]),
            Ask::Answered(At::Client, "{vip}:80", true),
        ],
        mends: &[Act::Signal("node-1-agent", Signal::SIGCONT)],
    },
    Row {
        name: "an_api_server_that_stands_still_is_told_as_unknown",
        breaks: &[Act::Signal("control-plane", Signal::SIGSTOP)],
        asks: &[Ask::Status(
            1,
            &[
                "✗ control-plane",
                "stopped, by SIGSTOP",
                "says nothing",
                "pods running: unknown",
            ],
        )],
        mends: &[Act::Signal("control-plane", Signal::SIGCONT)],
    },
    Row {
        name: "an_api_server_that_is_not_reached_is_told",
        breaks: &[
            Act::Run(NODE_1, "nft add table ip cwt-api"),
            Act::Run(
                NODE_1,
                "nft add chain ip cwt-api output { type filter hook output priority 0 ; }",
            ),
            Act::Run(
                NODE_1,
                "nft add rule ip cwt-api output tcp dport 6443 reject with tcp reset",
            ),
            Act::Run(NODE_1, "ss -K dport = 6443"),
        ],
        asks: &[
            Ask::Doctor(1, "watch-failing", "watch of Service", &["Connection refused"]),
            Ask::Answered(At::Client, "{vip}:80", true),
        ],
        mends: &[Act::Run(NODE_1, "nft delete table ip cwt-api")],
    },
    Row {
        name: "a_lease_with_this_nodes_address_is_told",
        breaks: &[Act::Etcdctl(
            "put /coreos.com/network/subnets/10.244.250.0-24",
            r#"{"PublicIP":"{node-1}","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}"#,
        )],
        asks: &[Ask::Doctor(
            1,
            "part-failing",
            "part overlay",
            &["lease 10.244.250.0/24", "has our own address {node-1}"],
        )],
        mends: &[Act::Etcdctl(
            "del /coreos.com/network/subnets/10.244.250.0-24",
            "",
        )],
    },
    Row {
        name: "a_lease_with_another_nodes_mac_address_is_told",
        breaks: &[Act::Etcdctl(
            "put /coreos.com/network/subnets/10.244.251.0-24",
            r#"{"PublicIP":"172.30.0.77","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"{mac-2}"}}"#,
        )],
        asks: &[Ask::Doctor(
            1,
            "part-failing",
            "part overlay",
            &["has the MAC address of", "{mac-2}"],
        )],
        mends: &[Act::Etcdctl(
            "del /coreos.com/network/subnets/10.244.251.0-24",
            "",
        )],
    },
    Row {
        name: "leases_that_are_lost_are_claimed_again_while_traffic_goes_on",
        breaks: &[Act::Etcdctl("del --prefix /coreos.com/network/subnets/", "")],
        asks: &[Ask::Answered(At::Client, "{web-ip}:8080", true)],
        mends: &[Act::Do(World::await_leases)],
    },
    Row {
        name: "a_dns_server_that_stands_still_is_named",
        breaks: &[Act::Signal("node-1-dns", Signal::SIGSTOP)],
        asks: &[Ask::Doctor(
            1,
            "dns-server",
            "DNS server at 10.96.0.10",
            &["this node's own server does not answer"],
        )],
        mends: &[Act::Signal("node-1-dns", Signal::SIGCONT)],
    },
    Row {
        name: "a_name_that_no_service_has_is_told_with_the_plugin_that_says_so",
        breaks: &[],
        asks: &[
            Ask::Dns(1, "web.default.svc.cluster.local", 0, &["{vip}", "default/web"]),
            Ask::Dns(1, "wbe.default.svc.cluster.local", 1, &["NXDOMAIN", "kubernetes"]),
        ],
        mends: &[],
    },
];
