//! Plans against a kernel in memory, damaged as operators and races damage it.

use model::lease::{Encap, Lease, Site};
use model::{Mtu, Vni};
use netlink::{FakeKernel, Operation};
use nix::errno::Errno;

use super::*;
use crate::flannel::NetworkConfig;
use crate::plan::{Underlay, plan};

const ETH0_MAC: [u8; 6] = [2, 9, 9, 9, 9, 9];

fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

fn lease(third: u8, node: u8, mac_of: u8) -> Lease {
    let site = |subnet: String, public_ip: String, mac_of| Site {
        subnet: subnet.parse().expect("a subnet"),
        public_ip: public_ip.parse().expect("an address"),
        encap: Encap::Vxlan {
            vni: Vni(1),
            vtep_mac: mac(mac_of),
        },
    };
    Lease {
        sites: ByFamily {
            v4: Some(site(
                format!("10.5.{third}.0/24"),
                format!("172.30.0.{node}"),
                mac_of,
            )),
            v6: None,
        },
    }
}

/// The same node with a subnet of each version.
fn dual(third: u8, node: u8, mac_of: u8) -> Lease {
    let mut lease = lease(third, node, mac_of);
    lease.sites.v6 = Some(Site {
        subnet: format!("fd05:0:0:{third}::/64").parse().expect("a subnet"),
        public_ip: format!("fd77::{node}").parse().expect("an address"),
        encap: Encap::Vxlan {
            vni: Vni(1),
            vtep_mac: mac(0x60 + mac_of),
        },
    });
    lease
}

struct Node {
    kernel: FakeKernel,
    pods: Vec<PodRoute>,
}

impl Node {
    fn new() -> Self {
        let mut kernel = FakeKernel::new();
        kernel.plug("eth0", ETH0_MAC, 1500);
        Self {
            kernel,
            pods: Vec::new(),
        }
    }

    /// One pass; returns its writes, read from the kernel's record, and its problems.
    fn pass(&mut self, others: &[Lease], complete: bool) -> (Vec<String>, Vec<String>) {
        self.pass_as(&lease(1, 11, 1), others, complete)
    }

    fn pass_as(&mut self, own: &Lease, others: &[Lease], complete: bool) -> (Vec<String>, Vec<String>) {
        let config = NetworkConfig::parse(
            r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48","Backend":{"Type":"vxlan"}}"#,
        )
        .expect("valid");
        let network = |text: &str| text.parse::<IpNetwork>().expect("a network");
        let underlay = Underlay {
            networks: ["172.30.0.11/24", "fd77::11/64"]
                .map(network)
                .into_iter()
                .collect(),
            mtu: Mtu(1500),
        };
        let (plan, _) = plan(&config, own, others, &underlay);
        self.kernel.writes.clear();
        let mut outcome = Outcome::default();
        let tunnels = plan.halves.map(|_, half| {
            let device = half.device.as_ref().expect("vxlan");
            let index =
                ensure_device(&mut self.kernel, device, 1, &mut outcome).expect("the device can be made");
            index.expect("no other device has its name")
        });
        let mirror = Mirror::read(&mut self.kernel, &tunnels).expect("readable");
        let devices = Devices { tunnels, underlay: 1 };
        let repaired = repair(&mut self.kernel, &mirror, &plan, devices, &self.pods, |_| {
            complete
        });
        assert_eq!(repaired.writes + outcome.writes, self.kernel.writes.len());
        outcome.problems.extend(repaired.problems);
        let writes = self
            .kernel
            .writes
            .iter()
            .map(|(operation, object)| format!("{operation} {object}"));
        (writes.collect(), outcome.problems)
    }

    #[track_caller]
    fn settled(&mut self, others: &[Lease]) {
        assert_eq!(self.pass(others, true), (vec![], vec![]), "nothing is left to do");
    }
}

#[test]
fn a_node_that_comes_is_made_reachable_from_the_inside_out_and_a_second_pass_writes_nothing() {
    let mut node = Node::new();
    let others = [lease(2, 12, 2)];
    let (writes, problems) = node.pass(&others, true);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(
        writes,
        [
            "create link flannel.1",
            "change link 2",
            "add address 10.5.1.0/32 on link 2",
            "replace neighbour 10.5.2.0 on link 2",
            "replace forwarding entry 02:00:00:00:00:02 to 172.30.0.12 on link 2",
            "replace route 10.5.2.0/24 via 10.5.2.0 link 2 table 254 protocol 213",
        ]
    );
    node.settled(&others);
}

#[test]
fn each_version_of_ip_has_a_device_of_its_own_with_what_is_reached_through_it() {
    let mut node = Node::new();
    let (own, others) = (dual(1, 11, 1), [dual(2, 12, 2), lease(3, 13, 3)]);
    let (writes, problems) = node.pass_as(&own, &others, true);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(
        writes,
        [
            "create link flannel.1",
            "change link 2",
            "add address 10.5.1.0/32 on link 2",
            "create link flannel-v6.1",
            "change link 3",
            "add address fd05:0:0:1::/128 on link 3",
            "replace neighbour 10.5.2.0 on link 2",
            "replace neighbour 10.5.3.0 on link 2",
            "replace neighbour fd05:0:0:2:: on link 3",
            "replace forwarding entry 02:00:00:00:00:02 to 172.30.0.12 on link 2",
            "replace forwarding entry 02:00:00:00:00:03 to 172.30.0.13 on link 2",
            "replace forwarding entry 02:00:00:00:00:62 to fd77::12 on link 3",
            "replace route 10.5.2.0/24 via 10.5.2.0 link 2 table 254 protocol 213",
            "replace route 10.5.3.0/24 via 10.5.3.0 link 2 table 254 protocol 213",
            "replace route fd05:0:0:2::/64 via fd05:0:0:2:: link 3 table 254 protocol 213",
        ]
    );
    assert_eq!(node.pass_as(&own, &others, true), (vec![], vec![]));
    let (writes, _) = node.pass_as(&own, &[lease(2, 12, 2), lease(3, 13, 3)], true);
    assert_eq!(
        writes,
        [
            "delete route fd05:0:0:2::/64 via fd05:0:0:2:: link 3 table 254 protocol 213",
            "delete forwarding entry 02:00:00:00:00:62 to fd77::12 on link 3",
            "delete neighbour fd05:0:0:2:: on link 3",
        ],
        "a node that lost its IPv6 subnet is reached over IPv4"
    );
}

#[test]
fn a_node_that_goes_takes_its_entries_with_it_but_only_once_all_leases_are_known() {
    let mut node = Node::new();
    node.pass(&[lease(2, 12, 2), lease(3, 13, 3)], true);
    let left = [lease(3, 13, 3)];
    assert_eq!(
        node.pass(&left, false),
        (vec![], vec![]),
        "not complete: nothing is deleted"
    );
    let (writes, _) = node.pass(&left, true);
    assert_eq!(
        writes,
        [
            "delete route 10.5.2.0/24 via 10.5.2.0 link 2 table 254 protocol 213",
            "delete forwarding entry 02:00:00:00:00:02 to 172.30.0.12 on link 2",
            "delete neighbour 10.5.2.0 on link 2",
        ]
    );
    node.settled(&left);
}

#[test]
fn a_changed_mac_address_replaces_the_neighbour_and_leaves_no_old_forwarding_entry() {
    let mut node = Node::new();
    node.pass(&[lease(2, 12, 2)], true);
    let changed = [lease(2, 12, 7)];
    let (writes, _) = node.pass(&changed, true);
    assert_eq!(
        writes,
        [
            "replace neighbour 10.5.2.0 on link 2",
            "replace forwarding entry 02:00:00:00:00:07 to 172.30.0.12 on link 2",
            "delete forwarding entry 02:00:00:00:00:02 to 172.30.0.12 on link 2",
        ]
    );
    node.settled(&changed);
}

#[test]
fn every_damage_is_repaired() {
    let others = [lease(2, 12, 2), lease(3, 13, 3)];
    type Damage = fn(&mut FakeKernel);
    let damages: [(&str, Damage); 8] = [
        ("a route is deleted", |kernel| {
            kernel.routes.pop();
        }),
        ("a route is changed", |kernel| kernel.routes[0].gateway = None),
        ("a neighbour is deleted", |kernel| {
            kernel.neighbours.pop();
        }),
        ("a neighbour is no longer permanent", |kernel| {
            kernel.neighbours[0].permanent = false
        }),
        ("a forwarding entry is deleted", |kernel| {
            kernel.forwarding.pop();
        }),
        ("the address is deleted", |kernel| kernel.addresses.clear()),
        ("the device is down, and its routes are gone", |kernel| {
            kernel.change_link(2, &LinkChange::down()).expect("down")
        }),
        ("the device is deleted", |kernel| {
            kernel.delete_link(2).expect("delete")
        }),
    ];
    for (name, damage) in damages {
        let mut node = Node::new();
        node.pass(&others, true);
        let before = node.kernel.clone();
        damage(&mut node.kernel);
        let (writes, problems) = node.pass(&others, true);
        assert!(!writes.is_empty() && problems.is_empty(), "{name}: {problems:?}");
        node.settled(&others);
        let macs = |kernel: &FakeKernel| kernel.links.iter().map(|link| link.mac).collect::<Vec<_>>();
        assert_eq!(
            macs(&node.kernel),
            macs(&before),
            "{name}: the device keeps its MAC address"
        );
    }
}

#[test]
fn foreign_objects_are_left_alone_and_told() {
    let mut node = Node::new();
    let destination: IpNetwork = "10.5.2.0/24".parse().expect("network");
    let foreign = Route::via(destination, "172.30.0.99".parse().expect("address"), 1, 4);
    let unrelated = Route::via(
        "192.0.2.0/24".parse().expect("net"),
        "172.30.0.99".parse().expect("address"),
        1,
        3,
    );
    let neighbour = Neighbour::permanent(1, "172.30.0.99".parse().expect("address"), [2; 6]);
    node.kernel.routes = vec![foreign.clone(), unrelated.clone()];
    node.kernel.neighbours = vec![neighbour.clone()];
    let (_, problems) = node.pass(&[lease(2, 12, 2)], true);
    assert_eq!(
        problems,
        ["foreign route in the way, left alone: 10.5.2.0/24 via 172.30.0.99 link 1 table 254 protocol 4"]
    );
    assert_eq!(node.kernel.routes, [foreign, unrelated]);
    assert!(node.kernel.neighbours.contains(&neighbour));
}

#[test]
fn flannels_device_and_routes_are_taken_over_without_an_interruption() {
    let mut node = Node::new();
    node.pass(&[lease(2, 12, 2), lease(9, 19, 9)], true);
    for route in &mut node.kernel.routes {
        route.protocol = FLANNELS_PROTOCOL;
    }
    let (writes, problems) = node.pass(&[lease(2, 12, 2)], true);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(
        writes,
        [
            "replace route 10.5.2.0/24 via 10.5.2.0 link 2 table 254 protocol 213",
            "delete route 10.5.9.0/24 via 10.5.9.0 link 2 table 254 protocol 3",
            "delete forwarding entry 02:00:00:00:00:09 to 172.30.0.19 on link 2",
            "delete neighbour 10.5.9.0 on link 2",
        ]
    );
}

#[test]
fn a_failure_at_one_object_stops_no_other_and_is_gone_at_the_next_pass() {
    let others = [lease(2, 12, 2), lease(3, 13, 3)];
    for operation in [
        Operation::ReplaceNeighbour,
        Operation::ReplaceForwarding,
        Operation::ReplaceRoute,
    ] {
        let mut node = Node::new();
        node.kernel.fail_next(operation, Errno::ENOMEM);
        let (writes, problems) = node.pass(&others, true);
        assert_eq!(
            (writes.len(), problems.len()),
            (8, 1),
            "{operation}: {problems:?}"
        );
        let (writes, problems) = node.pass(&others, true);
        assert_eq!((writes.len(), problems.len()), (1, 0), "{operation}");
        node.settled(&others);
    }
}

#[test]
fn a_pods_route_follows_its_device() {
    let mut node = Node::new();
    node.pods = vec![PodRoute {
        address: "10.5.1.2".parse().expect("an address"),
        host_ifname: "cw1".to_owned(),
        pod_mac: mac(5),
        is_limited: false,
    }];
    node.pass(&[], true);
    node.settled(&[]);
    node.kernel.plug("cw1", [2, 8, 8, 8, 8, 8], 1450);
    let (writes, _) = node.pass(&[], true);
    assert_eq!(
        writes,
        [
            "replace neighbour 10.5.1.2 on link 3",
            "replace route 10.5.1.2/32 link 3 table 254 protocol 213"
        ]
    );
    node.pods.clear();
    let (writes, _) = node.pass(&[], true);
    assert_eq!(writes, ["delete route 10.5.1.2/32 link 3 table 254 protocol 213"]);
}
