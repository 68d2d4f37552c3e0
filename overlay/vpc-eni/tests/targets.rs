//! The published tables of warm targets, and rows of our own: which interfaces and addresses a node comes to hold.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use vpc_eni::ec2::{Amount, EniId};
use vpc_eni::plan::{Block, Interface, Step, View, next_step};
use vpc_eni::warm::{Target, Targets, Unit};

/// How many interfaces, and IPv4 addresses on each, an instance type has (AWS, "Maximum IP addresses per network
/// interface").
fn limits(instance_type: &str) -> (u32, u32) {
    match instance_type {
        "t3.micro" => (2, 2),
        "t3.small" => (3, 4),
        "m5.large" => (3, 10),
        "m4.4xlarge" => (8, 30),
        "p3dn.24xlarge" => (15, 50),
        other => panic!("{other}?"),
    }
}

struct Node {
    view: View,
    pods: u32,
}

impl Node {
    fn new(fields: &[&str]) -> Self {
        let &[kind, unit, eni, prefix, warm, minimum, max_eni, max_pods, _] = fields else {
            panic!("{fields:?}");
        };
        let number = |text: &str| text.parse::<u32>().ok();
        let target = match (number(eni), number(prefix), number(warm), number(minimum)) {
            (Some(eni), None, None, None) => Target::Interfaces(eni),
            (None, Some(prefix), None, None) => Target::Prefixes(prefix),
            (None, None, warm, minimum) => Target::Addresses {
                warm: warm.unwrap_or(0),
                minimum: minimum.unwrap_or(0),
            },
            _ => panic!("{fields:?}"),
        };
        let (interfaces, addresses) = limits(kind);
        let units = addresses - 1;
        let view = View {
            targets: Targets {
                target,
                unit: match unit {
                    "ip" => Unit::Address,
                    "prefix" => Unit::Prefix,
                    other => panic!("{other}?"),
                },
                units_per_interface: units,
                max_pods: number(max_pods),
            },
            interfaces: vec![Interface {
                id: "primary".into(),
                room: units,
                blocks: Vec::new(),
                may_go: false,
            }],
            more_interfaces: interfaces.min(number(max_eni).unwrap_or(u32::MAX)) - 1,
            waiting: 0,
            may_give_back: true,
        };
        Self { view, pods: 0 }
    }

    fn blocks(&mut self) -> impl Iterator<Item = &mut Block> {
        let interfaces = self.view.interfaces.iter_mut();
        interfaces.flat_map(|interface| &mut interface.blocks)
    }

    fn add_pod(&mut self) {
        self.pods += 1;
        self.view.waiting += 1;
        self.serve();
        self.settle();
    }

    /// Who waits has the first address that is free.
    fn serve(&mut self) {
        while self.view.waiting > 0 {
            let Some(block) = self.blocks().find(|block| block.assigned < block.size()) else {
                return;
            };
            block.assigned += 1;
            self.view.waiting -= 1;
        }
    }

    fn remove_pod(&mut self) {
        self.pods -= 1;
        if self.view.waiting > 0 {
            self.view.waiting -= 1;
        } else {
            let used = self.blocks().filter(|block| block.assigned > 0);
            used.last().expect("a pod has an address").assigned -= 1;
        }
        self.settle();
    }

    /// Does what is next until nothing is. Steps that would never end are a failure.
    fn settle(&mut self) {
        for _ in 0..100 {
            match next_step(&self.view) {
                Step::Rest | Step::Full => return,
                Step::Fill { eni, amount } => self.fill(&eni, amount),
                Step::Add { amount } => {
                    let id = EniId(format!("eni-{}", self.view.interfaces.len()));
                    self.view.more_interfaces -= 1;
                    self.view.interfaces.push(Interface {
                        id: id.clone(),
                        room: self.view.targets.units_per_interface,
                        blocks: Vec::new(),
                        may_go: true,
                    });
                    self.fill(&id, amount);
                }
                Step::GiveBack { eni, blocks } => {
                    let interface = self.interface(&eni);
                    let before = interface.blocks.len();
                    interface.blocks.retain(|block| !blocks.contains(&block.network));
                    interface.room += (before - interface.blocks.len()) as u32;
                }
                Step::Remove { eni } => {
                    self.view.interfaces.retain(|interface| interface.id != eni);
                    self.view.more_interfaces += 1;
                }
            }
        }
        panic!("no end of steps: {:?}", self.view);
    }

    fn interface(&mut self, id: &EniId) -> &mut Interface {
        let mut interfaces = self.view.interfaces.iter_mut();
        interfaces
            .find(|interface| interface.id == *id)
            .expect("it is there")
    }

    fn fill(&mut self, id: &EniId, amount: Amount) {
        let (count, len) = match amount {
            Amount::Addresses(count) => (count, 32),
            Amount::Prefixes(count) => (count, 28),
            Amount::PrefixesV6(_) => panic!("{amount:?}"),
        };
        for _ in 0..count {
            // Somewhere that nothing is yet.
            let used: Vec<IpNetwork> = self.blocks().map(|block| block.network).collect();
            let place = (0_u32..).map(|place| Ipv4Addr::from(0x0a00_0000 + place * 16));
            let network = place
                .map(|address| IpNetwork::new(IpAddr::V4(address), len).expect("a length"))
                .find(|network| !used.contains(network))
                .expect("room");
            let interface = self.interface(id);
            interface.room -= 1;
            interface.blocks.push(Block {
                network,
                assigned: 0,
                cooling: 0,
            });
        }
        self.serve();
    }

    /// The units on each interface, and how many addresses nobody has.
    fn holds(&self) -> (String, i64) {
        let interfaces = self.view.interfaces.iter();
        let units: Vec<String> = interfaces
            .map(|interface| interface.blocks.len().to_string())
            .collect();
        let blocks = self
            .view
            .interfaces
            .iter()
            .flat_map(|interface| &interface.blocks);
        let total: u32 = blocks.map(Block::size).sum();
        (units.join(","), i64::from(total) - i64::from(self.pods))
    }
}

fn rows() -> Vec<(String, Vec<String>)> {
    let text = include_str!("targets.txt");
    let rows = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    rows.map(|line| {
        let parts = line.split('|').map(|part| part.trim().to_owned()).collect();
        (line.to_owned(), parts)
    })
    .collect()
}

#[test]
fn a_node_holds_what_the_tables_say() {
    let rows = rows();
    for (line, parts) in &rows {
        let fields: Vec<&str> = parts[0].split_whitespace().collect();
        let mut node = Node::new(&fields);
        node.settle();
        for _ in 0..fields[8].parse().expect("pods") {
            node.add_pod();
        }
        let expected = (parts[1].clone(), parts[2].parse::<i64>().expect("free"));
        assert_eq!(node.holds(), expected, "{line}");
    }
    assert!(rows.len() >= 60, "{} rows", rows.len());
}

#[test]
fn what_came_for_pods_goes_with_them_and_nothing_is_asked_for_twice() {
    for (line, parts) in rows() {
        let fields: Vec<&str> = parts[0].split_whitespace().collect();
        let mut node = Node::new(&fields);
        node.settle();
        let empty = node.holds();
        let pods: u32 = fields[8].parse().expect("pods");
        (0..pods).for_each(|_| node.add_pod());
        (0..pods).for_each(|_| node.remove_pod());
        let (units, free) = node.holds();
        // An interface that was filled whole stays whole; and one block more may stay, so that it does not come and go.
        assert!(
            units.split(',').count() <= empty.0.split(',').count() + 1,
            "{line}: {units}, {empty:?}"
        );
        assert!(
            free >= empty.1 && free <= empty.1 + i64::from(node.view.targets.units_per_interface) * 16,
            "{line}: {free}"
        );
    }
}
