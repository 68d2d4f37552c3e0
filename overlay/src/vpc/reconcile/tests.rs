//! Plans against a kernel in memory, damaged as operators and predecessors damage it.

use ipnetwork::IpNetwork;
use model::{ByFamily, Mtu};
use netlink::rule::Action;
use netlink::{FakeKernel, Neighbour, NewLink, NewLinkKind, Operation};
use nix::errno::Errno;

use super::*;
use crate::vpc::{Interface, Interfaces, Snat, Ways, plan};

/// Who else makes rules: amazon-vpc-cni-k8s says nothing, `ip` says this.
const NOBODY: u8 = 0;
const BY_HAND: u8 = 3;

fn network(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

fn interface(number: u8) -> Interface {
    Interface {
        mac: mac(number),
        address: Ipv4Addr::new(10, 0, number, 5),
        subnet: format!("10.0.{number}.0/24").parse().expect("a network"),
        device_index: u32::from(number),
        blocks: vec![network(&format!("10.0.{number}.16/28"))],
    }
}

fn pod(address: &str) -> PodRoute {
    PodRoute {
        address: address.parse().expect("an address"),
        host_ifname: format!("cw{address}"),
        pod_mac: mac(9),
        is_limited: false,
    }
}

/// A node with two interfaces and a pod of each.
struct Node {
    kernel: FakeKernel,
    ways: Ways,
    pods: Vec<PodRoute>,
}

impl Node {
    fn new() -> Self {
        let mut kernel = FakeKernel::new();
        let eth0 = kernel.plug("eth0", mac(0).0, 9001);
        kernel.plug("eth1", mac(1).0, 1500);
        kernel
            .addresses
            .push(Address::global(eth0, network("10.0.0.5/24")));
        let mut node = Self {
            kernel,
            ways: Ways {
                interfaces: Some(Interfaces {
                    primary: interface(0),
                    others: vec![interface(1)],
                }),
                vpc_networks: vec![network("10.0.0.0/16")],
                external_services: vec![network("192.0.2.0/24")],
                snat: Snat::External,
                node_ports: true,
                mtu: Mtu(9001),
            },
            pods: Vec::new(),
        };
        node.add_pod("10.0.0.17");
        node.add_pod("10.0.1.17");
        node.kernel.writes.clear();
        node
    }

    fn add_pod(&mut self, address: &str) {
        let pod = pod(address);
        let device = NewLink::new(&pod.host_ifname, NewLinkKind::Bridge);
        self.kernel.create_link(&device).expect("the name is free");
        self.pods.push(pod);
    }

    /// One pass: its writes in words, and its problems.
    fn pass(&mut self) -> (Vec<String>, Vec<String>) {
        self.kernel.writes.clear();
        let mirror = Mirror::read(&mut self.kernel, &ByFamily::default()).expect("readable");
        let (plan, _) = plan(&self.ways, &self.pods);
        let actual = Actual::read(&mut self.kernel, &mirror, &plan).expect("readable");
        let outcome = repair(&mut self.kernel, &mirror, &actual, &plan, &self.pods);
        assert_eq!(outcome.writes, self.kernel.writes.len());
        let writes = self.kernel.writes.iter();
        let words = writes.map(|(operation, object)| format!("{operation} {object}"));
        (words.collect(), outcome.problems)
    }

    /// Everything is written in one pass, and nothing by the next.
    #[track_caller]
    fn settle(&mut self) -> State {
        assert_eq!(self.pass().1, Vec::<String>::new());
        assert_eq!(self.pass(), (Vec::new(), Vec::new()));
        self.state()
    }

    fn state(&mut self) -> State {
        let mut routes = self.kernel.routes.clone();
        routes.sort();
        let mut addresses = self.kernel.addresses.clone();
        addresses.sort();
        let mut rules = self.kernel.all_rules().expect("readable");
        rules.sort();
        State {
            links: self.kernel.links.clone(),
            addresses,
            rules,
            routes,
            neighbours: self.kernel.neighbours.iter().cloned().collect(),
        }
    }

    fn eth1(&mut self) -> u32 {
        let link = self.kernel.link_named("eth1").expect("readable");
        link.expect("it is there").index
    }
}

/// What a kernel has, whatever the order in which it came.
#[derive(Debug, PartialEq, Eq)]
struct State {
    links: Vec<Link>,
    addresses: Vec<Address>,
    rules: Vec<Rule>,
    routes: Vec<Route>,
    neighbours: BTreeSet<Neighbour>,
}

#[test]
fn a_node_gets_what_its_plan_says_in_an_order_in_which_every_packet_finds_a_way() {
    let mut node = Node::new();
    let (writes, problems) = node.pass();
    let expected = [
        "replace neighbour 10.0.0.17 on link 3",
        "replace neighbour 10.0.1.17 on link 4",
        "replace route 10.0.0.17/32 link 3 table 254 protocol 213",
        "replace route 10.0.1.17/32 link 4 table 254 protocol 213",
        "change link 2",
        "add address 10.0.1.5/32 on link 2",
        "replace route 10.0.1.1/32 link 2 table 2 protocol 213",
        "replace route 0.0.0.0/0 via 10.0.1.1 link 2 table 2 protocol 213",
        "add rule of policy routing 512: to 10.0.0.17/32 table 254 protocol 213",
        "add rule of policy routing 512: to 10.0.1.17/32 table 254 protocol 213",
        "add rule of policy routing 1024: fwmark 0x80/0x80 table 254 protocol 213",
        "add rule of policy routing 1535: to 192.0.2.0/24 table 254 protocol 213",
        "add rule of policy routing 1536: from 10.0.1.17/32 table 2 protocol 213",
        "add rule of policy routing 32765: from 10.0.1.5/32 table 2 protocol 213",
    ];
    assert_eq!(
        (writes, problems),
        (expected.map(str::to_owned).into(), Vec::new())
    );
    let eth1 = node.kernel.links[1].clone();
    assert_eq!((eth1.up, eth1.mtu), (true, 9001));
    assert_eq!(node.pass(), (Vec::new(), Vec::new()));
}

type Damage = fn(&mut Node);

#[test]
fn whatever_somebody_takes_or_changes_comes_back() {
    let damages: [(&str, Damage); 9] = [
        ("a rule", |node| drop(node.kernel.rules.pop())),
        ("all rules", |node| node.kernel.rules.clear()),
        ("the default route", |node| {
            node.kernel.routes.retain(|route| route.destination.prefix() != 0);
        }),
        ("another default route", |node| {
            let eth0 = node.kernel.links[0].index;
            for route in node
                .kernel
                .routes
                .iter_mut()
                .filter(|route| route.destination.prefix() == 0)
            {
                (route.link, route.protocol) = (Some(eth0), BY_HAND);
            }
        }),
        ("all routes and neighbours", |node| {
            node.kernel.routes.clear();
            node.kernel.neighbours.clear();
        }),
        ("the address", |node| {
            let eth1 = node.eth1();
            node.kernel.addresses.retain(|address| address.link != eth1);
        }),
        ("a pod's address on the interface's device", |node| {
            let eth1 = node.eth1();
            node.kernel
                .addresses
                .push(Address::global(eth1, network("10.0.1.17/24")));
        }),
        ("the subnet's route", |node| {
            let eth1 = node.eth1();
            node.kernel
                .routes
                .push(Route::on_link(network("10.0.1.0/24"), eth1, KERNELS_PROTOCOL));
        }),
        ("the device is down", |node| {
            let eth1 = node.eth1();
            node.kernel.change_link(eth1, &LinkChange::down()).expect("there");
        }),
    ];
    for (what, damage) in damages {
        let mut node = Node::new();
        let good = node.settle();
        damage(&mut node);
        assert_ne!(node.state(), good, "{what}");
        assert_eq!(node.settle(), good, "{what}");
    }
}

#[test]
fn what_is_not_wanted_any_more_goes_and_nothing_else() {
    let mut node = Node::new();
    let without = {
        let mut node = Node::new();
        node.pods.clear();
        node.settle()
    };
    node.settle();
    node.pods.clear();
    let (writes, _) = node.pass();
    let goes = [
        "delete route 10.0.0.17/32 link 3 table 254 protocol 213",
        "delete route 10.0.1.17/32 link 4 table 254 protocol 213",
        "delete rule of policy routing 512: to 10.0.0.17/32 table 254 protocol 213",
        "delete rule of policy routing 512: to 10.0.1.17/32 table 254 protocol 213",
        "delete rule of policy routing 1536: from 10.0.1.17/32 table 2 protocol 213",
    ];
    assert_eq!(writes, goes);
    node.kernel.neighbours.clear(); // they go with the pods' devices
    assert_eq!(node.settle(), without);

    if let Some(interfaces) = &mut node.ways.interfaces {
        interfaces.others.clear();
    }
    let (writes, _) = node.pass();
    let goes = [
        "delete rule of policy routing 32765: from 10.0.1.5/32 table 2 protocol 213",
        "delete route 0.0.0.0/0 via 10.0.1.1 link 2 table 2 protocol 213",
        "delete route 10.0.1.1/32 link 2 table 2 protocol 213",
    ];
    assert_eq!(writes, goes);
}

#[test]
fn the_last_state_counts_however_the_ones_before_it_came() {
    type Step = fn(&mut Node);
    let steps: [Step; 5] = [
        |node| node.ways.interfaces = None,
        |node| node.pods.truncate(1),
        |node| {
            let more = Node::new();
            (node.ways, node.pods) = (more.ways, more.pods);
            node.ways.node_ports = false;
        },
        |node| node.ways.external_services = vec![network("198.51.100.0/24")],
        |node| {
            if let Some(interfaces) = &mut node.ways.interfaces {
                interfaces.others[0].device_index = 4;
            }
        },
    ];
    let last = |node: &mut Node| {
        let ways = Node::new();
        (node.ways, node.pods) = (ways.ways, ways.pods);
    };
    let good = Node::new().settle();
    let orders: [&[usize]; 6] = [
        &[],
        &[0, 1, 2, 3, 4],
        &[4, 3, 2, 1, 0],
        &[0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
        &[2, 4, 2, 4],
        &[3, 0, 4, 1, 2],
    ];
    for order in orders {
        for squashed in [false, true] {
            let mut node = Node::new();
            for step in order {
                steps[*step](&mut node);
                if !squashed {
                    node.pass();
                }
            }
            last(&mut node);
            assert_eq!(node.settle(), good, "{order:?} {squashed}");
        }
    }
}

#[test]
fn nothing_goes_before_the_interfaces_are_known() {
    let mut node = Node::new();
    let good = node.settle();
    node.ways.interfaces = None;
    node.pods.clear();
    node.ways.external_services.clear();
    assert_eq!(node.settle(), good);
}

#[test]
fn a_pod_whose_interface_is_not_listed_any_more_leaves_by_it_all_the_same() {
    type Loss = fn(&mut Interfaces);
    let losses: [(Loss, &[&str]); 2] = [
        (|interfaces| interfaces.others[0].blocks.clear(), &[]),
        (
            |interfaces| interfaces.others.clear(),
            &["delete rule of policy routing 32765: from 10.0.1.5/32 table 2 protocol 213"],
        ),
    ];
    for (loss, expected) in losses {
        let mut node = Node::new();
        node.settle();
        node.ways.interfaces.as_mut().map(loss).expect("known");
        assert_eq!(
            node.pass(),
            (
                expected.iter().map(|text| (*text).to_owned()).collect(),
                Vec::new()
            )
        );
    }
}

#[test]
fn a_pod_whose_address_went_to_another_interface_has_a_way_at_every_moment() {
    let mut node = Node::new();
    node.kernel.plug("eth2", mac(2).0, 9001);
    node.settle();
    if let Some(interfaces) = &mut node.ways.interfaces {
        let mut third = interface(2);
        third.blocks = std::mem::take(&mut interfaces.others[0].blocks);
        interfaces.others.push(third);
    }
    let (writes, _) = node.pass();
    let moved: Vec<&String> = writes.iter().filter(|write| write.contains("1536: ")).collect();
    let expected = [
        "add rule of policy routing 1536: from 10.0.1.17/32 table 3 protocol 213",
        "delete rule of policy routing 1536: from 10.0.1.17/32 table 2 protocol 213",
    ];
    assert_eq!(moved, expected.iter().collect::<Vec<_>>());
}

#[test]
fn rules_of_others_stay_and_equal_ones_become_ours_without_being_doubled() {
    let mut node = Node::new();
    let good = node.settle();
    for maker in [NOBODY, BY_HAND] {
        let mut migrating = Node::new();
        for rule in &good.rules {
            let theirs = Rule {
                protocol: maker,
                ..rule.clone()
            };
            migrating.kernel.rules.push(theirs);
        }
        let (writes, problems) = migrating.pass();
        let taken = writes.iter().filter(|write| write.starts_with("take over"));
        assert_eq!((taken.count(), problems), (good.rules.len(), Vec::new()));
        assert_eq!(migrating.settle(), good);
        // As after a crash in the middle of it.
        let double = Rule {
            protocol: maker,
            ..good.rules[0].clone()
        };
        migrating.kernel.rules.push(double);
        assert_eq!(migrating.settle(), good);
    }

    let from = |address: &str, table, priority, protocol| Rule {
        source: Some(network(address)),
        protocol,
        ..Rule::new(priority, Action::LookUp(table))
    };
    let foreign = [
        from("10.0.1.99/32", 2, 1536, NOBODY),
        from("10.0.1.0/24", 2, 1536, 213),
        from("10.0.1.17/32", 2, 1537, 213),
        Rule::new(0, Action::LookUp(255)),
        Rule::new(32766, Action::LookUp(254)),
    ];
    node.kernel.rules.extend(foreign.clone());
    assert_eq!(node.pass(), (Vec::new(), Vec::new()));
    node.pods.clear();
    node.pass();
    for rule in &foreign {
        assert!(node.kernel.rules.contains(rule), "{rule}");
    }
}

#[test]
fn routes_of_others_in_an_interfaces_table_stay() {
    let mut node = Node::new();
    node.settle();
    let theirs = Route {
        table: 2,
        ..Route::on_link(network("192.0.2.0/24"), node.eth1(), BY_HAND)
    };
    node.kernel.routes.push(theirs.clone());
    assert_eq!(node.pass(), (Vec::new(), Vec::new()));
    node.pods.clear();
    node.pass();
    assert!(node.kernel.routes.contains(&theirs));
}

#[test]
fn a_foreign_rule_that_leads_a_pods_packets_elsewhere_is_told_and_left_alone() {
    let mut node = Node::new();
    let other = Rule {
        source: Some(network("10.0.1.17/32")),
        ..Rule::new(1536, Action::LookUp(5))
    };
    node.kernel.rules.push(other.clone());
    let problem = "foreign rule in the way, left alone: 1536: from 10.0.1.17/32 table 5 protocol 0";
    for _ in 0..2 {
        assert_eq!(node.pass().1, [problem]);
        assert!(node.kernel.rules.contains(&other));
    }
}

#[test]
fn an_interface_whose_device_is_not_there_is_told_until_it_comes_and_stops_nothing() {
    let mut node = Node::new();
    let good = node.settle();
    let mut node = Node::new();
    let eth1 = node.kernel.links.remove(1);
    let problem =
        "interface 02:00:00:00:00:01, 10.0.1.5: there is no such device (yet?), what its pods send is lost";
    let (writes, problems) = node.pass();
    assert_eq!(problems, [problem]);
    assert!(
        writes
            .iter()
            .any(|write| write.ends_with("1536: from 10.0.1.17/32 table 2 protocol 213"))
    );
    assert_eq!(node.pass(), (Vec::new(), vec![problem.to_owned()]));
    node.kernel.links.insert(1, eth1);
    assert_eq!(node.settle(), good);
}

#[test]
fn a_device_that_only_shares_an_interfaces_mac_address_is_not_its() {
    let mut node = Node::new();
    let good = node.settle();
    let mut bridge = NewLink::new("br0", NewLinkKind::Bridge);
    bridge.mac = Some(mac(1).0);
    // Before the interface's own in every order.
    let mut link = node.kernel.create_link(&bridge).expect("the name is free");
    node.kernel.links.retain(|other| other.index != link.index);
    link.index = 0;
    node.kernel.links.insert(0, link);
    assert_eq!(node.pass(), (Vec::new(), Vec::new()));
    assert_eq!(
        (node.state().rules, node.state().routes),
        (good.rules, good.routes)
    );
}

#[test]
fn what_fails_is_told_with_its_object_stops_nothing_and_is_written_by_the_next_pass() {
    let good = Node::new().settle();
    let rows = [
        (
            Operation::ReplaceNeighbour,
            "replace neighbour 10.0.0.17 on link 3: EBUSY",
        ),
        (
            Operation::ReplaceRoute,
            "replace route 10.0.0.17/32 link 3 table 254 protocol 213: EBUSY",
        ),
        (Operation::ChangeLink, "change link 2: EBUSY"),
        (Operation::AddAddress, "add address 10.0.1.5/32 on link 2: EBUSY"),
        (
            Operation::AddRule,
            "add rule of policy routing 512: to 10.0.0.17/32 table 254 protocol 213: EBUSY",
        ),
    ];
    for (operation, expected) in rows {
        let mut node = Node::new();
        node.kernel.fail_next(operation, Errno::EBUSY);
        let (writes, problems) = node.pass();
        let told: Vec<_> = problems
            .iter()
            .map(|told| told.split(": Device").next())
            .collect();
        assert_eq!(told, [Some(expected)]);
        assert_eq!(writes.len(), 13, "{operation}");
        assert_eq!(node.settle(), good, "{operation}");
    }
    // What takes something away, and what makes others' rules ours.
    let rows = [
        Operation::DeleteRule,
        Operation::DeleteRoute,
        Operation::DeleteAddress,
        Operation::TakeOverRule,
    ];
    for operation in rows {
        let mut node = Node::new();
        node.settle();
        let eth1 = node.eth1();
        let old = [Operation::DeleteRule, Operation::DeleteRoute];
        if old.contains(&operation) {
            let gone = pod("10.0.0.18");
            let rule = Rule {
                destination: Some(network("10.0.0.18/32")),
                protocol: ROUTE_PROTOCOL,
                ..Rule::new(512, Action::LookUp(254))
            };
            node.kernel.rules.push(rule);
            node.kernel.routes.push(Route::on_link(
                IpNetwork::from(gone.address),
                eth1,
                ROUTE_PROTOCOL,
            ));
        }
        node.kernel
            .addresses
            .push(Address::global(eth1, network("10.0.1.18/32")));
        node.kernel.rules[0].protocol = BY_HAND;
        node.kernel.fail_next(operation, Errno::EBUSY);
        let (_, problems) = node.pass();
        assert_eq!(problems.len(), 1, "{operation}: {problems:?}");
        assert!(problems[0].starts_with(&operation.to_string()), "{problems:?}");
        assert_eq!(node.settle(), good, "{operation}");
    }
    // What cannot be read is not taken for what is not there.
    for operation in [
        Operation::ListRules,
        Operation::ListRoutes,
        Operation::ListAddresses,
    ] {
        let mut node = Node::new();
        node.settle();
        let mirror = Mirror::read(&mut node.kernel, &ByFamily::default()).expect("readable");
        let (plan, _) = plan(&node.ways, &node.pods);
        node.kernel.fail_next(operation, Errno::ENOBUFS);
        let read = Actual::read(&mut node.kernel, &mirror, &plan);
        assert_eq!(read.expect_err("told").operation, operation);
    }
}

#[test]
fn everything_of_ours_goes_when_the_network_does() {
    let mut node = Node::new();
    let theirs = Rule {
        protocol: BY_HAND,
        source: Some(network("10.0.9.9/32")),
        ..Rule::new(1536, Action::LookUp(2))
    };
    node.kernel.rules.push(theirs.clone());
    node.settle();
    let mirror = Mirror::read(&mut node.kernel, &ByFamily::default()).expect("readable");
    let outcome = remove_all(&mut node.kernel, &mirror).expect("readable");
    assert_eq!((outcome.writes, outcome.problems), (8, Vec::new()));
    assert_eq!(node.kernel.rules, [theirs]);
    assert!(node.kernel.routes.iter().all(|route| route.table == TABLE_MAIN));
}

/// What a pass for one pod writes, in words, or why it does not.
fn led(node: &mut Node, pod: &PodRoute) -> Result<Vec<String>, String> {
    node.kernel.writes.clear();
    let (plan, _) = plan(&node.ways, std::slice::from_ref(pod));
    let writes = lead(&mut node.kernel, &plan, pod.address).expect("the kernel does as told")?;
    assert_eq!(writes, node.kernel.writes.len());
    let words = node.kernel.writes.iter();
    Ok(words
        .map(|(operation, object)| format!("{operation} {object}"))
        .collect())
}

#[test]
fn a_pod_that_is_led_by_itself_has_its_rules_and_takes_nothing_from_others() {
    let mut node = Node::new();
    node.settle();
    let to = "add rule of policy routing 512: to 10.0.1.18/32 table 254 protocol 213";
    let from = "add rule of policy routing 1536: from 10.0.1.18/32 table 2 protocol 213";
    let second = pod("10.0.1.18");
    assert_eq!(led(&mut node, &second), Ok(vec![to.to_owned(), from.to_owned()]));
    assert_eq!(led(&mut node, &second), Ok(Vec::new()));
    // The next pass over everything has nothing to write but what its wiring brings.
    node.add_pod("10.0.1.18");
    let (writes, problems) = node.pass();
    let wiring = [
        "replace neighbour 10.0.1.18 on link 5",
        "replace route 10.0.1.18/32 link 5 table 254 protocol 213",
    ];
    assert_eq!((writes, problems), (wiring.map(str::to_owned).into(), Vec::new()));

    let to_first = "add rule of policy routing 512: to 10.0.0.18/32 table 254 protocol 213";
    assert_eq!(led(&mut node, &pod("10.0.0.18")), Ok(vec![to_first.to_owned()]));
}

#[test]
fn what_a_pod_that_had_the_address_left_is_not_in_its_way() {
    let mut node = Node::new();
    node.settle();
    let new = pod("10.0.1.18");
    let by = |table, protocol| Rule {
        protocol,
        source: Some(network("10.0.1.18/32")),
        ..Rule::new(1536, Action::LookUp(table))
    };
    // Of another interface, ours; and the right one, by amazon-vpc-cni-k8s.
    node.kernel.rules.extend([by(3, ROUTE_PROTOCOL), by(2, NOBODY)]);
    let writes = [
        "add rule of policy routing 512: to 10.0.1.18/32 table 254 protocol 213",
        "take over rule of policy routing 1536: from 10.0.1.18/32 table 2 protocol 0",
        "delete rule of policy routing 1536: from 10.0.1.18/32 table 3 protocol 213",
    ];
    assert_eq!(led(&mut node, &new), Ok(writes.map(str::to_owned).into()));
}

/// The kernel takes the first of two rules of one priority.
#[test]
fn a_pod_that_somebody_elses_rule_leads_is_not_answered_for() {
    let mut node = Node::new();
    node.settle();
    let foreign = Rule {
        protocol: NOBODY,
        source: Some(network("10.0.1.18/32")),
        ..Rule::new(1536, Action::LookUp(5))
    };
    node.kernel.rules.insert(0, foreign);
    let problem = "foreign rule in the way, left alone: 1536: from 10.0.1.18/32 table 5 protocol 0";
    assert_eq!(led(&mut node, &pod("10.0.1.18")), Err(problem.to_owned()));
}

#[test]
fn a_pod_whose_interface_does_not_lead_on_waits() {
    let rows: [(&str, Damage, &str); 3] = [
        (
            "10.0.1.18",
            |node| node.kernel.routes.retain(|route| route.table == TABLE_MAIN),
            "table 2 of interface 10.0.1.5 has no route to its gateway yet",
        ),
        ("10.0.7.18", |_| {}, "10.0.7.18 is of no interface that is served"),
        (
            "10.0.1.18",
            |node| {
                node.ways
                    .interfaces
                    .as_mut()
                    .expect("they are known")
                    .others
                    .clear()
            },
            "10.0.1.18 is of no interface that is served",
        ),
    ];
    for (address, damage, reason) in rows {
        let mut node = Node::new();
        node.settle();
        damage(&mut node);
        assert_eq!(led(&mut node, &pod(address)), Err(reason.to_owned()));
        assert_eq!(node.kernel.writes, []);
    }
    let mut node = Node::new();
    node.settle();
    node.kernel.fail_next(Operation::AddRule, Errno::ENOBUFS);
    let (plan, _) = plan(&node.ways, &[pod("10.0.1.18")]);
    let failed = lead(&mut node.kernel, &plan, "10.0.1.18".parse().expect("an address"));
    assert_eq!(failed.expect_err("told").operation, Operation::AddRule);
}
