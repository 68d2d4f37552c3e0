//! What the manager tells: the agent which addresses pods may be given, and people how it stands.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;
use serde::Serialize;
use tokio::time::Instant;

use super::problem::{Kind, Problem, Problems, Subject};
use super::{Held, Ipam};
use crate::ec2::{Action, Ec2, EniId, Metadata};
use crate::home::{Home, Interface};
use crate::plan;
use crate::tally::Calls;
use crate::warm::Stock;

/// How the manager stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The interfaces that serve pods; nothing before they were looked at.
    pub interfaces: Option<Vec<Interface>>,
    /// The networks of the VPC.
    pub vpc_networks: Vec<IpNetwork>,
    /// What does not work.
    pub problems: Problems,
    /// Interfaces that nobody has any more and that are yet to be deleted: an earlier program, or another node's, left
    /// them.
    pub leaked: BTreeSet<EniId>,
    /// How many pods wait for an address.
    pub waiting: u32,
    /// Addresses that came back too lately to be given again.
    pub cooling: u32,
    /// How many interfaces are attached.
    pub attached: u32,
    /// How many can be.
    pub most_interfaces: u32,
    /// Addresses in all.
    pub total: u32,
    /// How many of them pods have.
    pub assigned: u32,
    /// Addresses that pods can have at the most, with all interfaces full.
    pub most_addresses: u32,
    /// What the instance is.
    pub instance_type: Option<String>,
    /// Calls to EC2 so far.
    pub calls: BTreeMap<Action, Calls>,
}

impl<E: Ec2, M: Metadata, H: Home> Ipam<E, M, H> {
    /// The interfaces whose addresses pods are given, as far as their devices are there.
    fn serving(&mut self) -> Vec<Interface> {
        // What the kernel does not tell now has not gone.
        if let Some(devices) = self.home.devices() {
            self.devices = devices;
        }
        let mut serving = Vec::new();
        let mut absent = Vec::new();
        for held in self.held().filter(|held| self.manages(held)) {
            let Some(subnet) = self.subnets.get(&held.eni.subnet) else {
                continue;
            };
            if !self.devices.contains(&held.eni.mac) {
                absent.push((held.eni.id.clone(), held.eni.mac));
                continue;
            }
            let blocks = if self.serves(held) {
                held.offered()
            } else {
                BTreeSet::new()
            };
            serving.push(Interface {
                id: held.eni.id.clone(),
                mac: held.eni.mac,
                address: held.eni.primary,
                subnet: subnet.network,
                device_index: held.device_index(),
                blocks: blocks.into_iter().collect(),
            });
        }
        self.problems.retain(|subject| match subject {
            Subject::Device(eni) => absent.iter().any(|(absent, _)| absent == eni),
            _ => true,
        });
        for (eni, mac) in absent {
            let problem = Problem {
                kind: Kind::Device,
                what: format!("{eni} is attached, and no device of this node has its MAC address {mac}"),
                advice: "the kernel takes some seconds; if it stays, look at its log (dmesg) and detach the interface \
                         by hand"
                    .to_owned(),
            };
            self.problems.note(&Subject::Device(eni), problem);
        }
        serving
    }

    pub(super) fn publish(&mut self) {
        if self.node.is_none() {
            let (problems, calls) = (self.problems.clone(), self.ec2.calls());
            let instance_type = self.instance_type();
            self.status.send_modify(|status| {
                status.problems = problems;
                status.instance_type = instance_type;
                status.calls = calls;
            });
            return;
        }
        let serving = self.serving();
        self.home.serve(&serving, self.problems.growth().as_deref());
        let census = self.home.census();
        self.note_stranded(&census.stranded);
        let now = Instant::now();
        let stock = self
            .limits
            .map_or_else(Stock::default, |limits| plan::stock(&self.view(limits, now)));
        let status = Status {
            interfaces: Some(serving),
            vpc_networks: self.networks.known().to_vec(),
            problems: self.problems.clone(),
            leaked: self.leaked.clone(),
            waiting: census.waiting,
            cooling: census.blocks.values().map(|used| used.cooling).sum(),
            instance_type: self.instance_type(),
            attached: self.held().count() as u32,
            most_interfaces: self.limits.map_or(0, |limits| self.most_interfaces(limits, now)),
            total: stock.total,
            assigned: stock.assigned,
            most_addresses: self.limits.map_or(0, |limits| self.most_addresses(limits, now)),
            calls: self.ec2.calls(),
        };
        self.status.send_if_modified(|before| {
            let differs = *before != status;
            *before = status;
            differs
        });
    }

    fn instance_type(&self) -> Option<String> {
        let instance = self.instance.as_ref()?;
        Some(instance.instance_type.clone())
    }

    fn note_stranded(&mut self, stranded: &[std::net::IpAddr]) {
        // Those of an interface that serves no more pods, or that is doubted, are this node's all the same.
        let is_lost = |address: &&std::net::IpAddr| {
            let mut blocks = self.held().flat_map(Held::blocks);
            !blocks.any(|block| block.contains(**address))
        };
        let stranded: Vec<_> = stranded.iter().filter(is_lost).collect();
        if stranded.is_empty() {
            return self.problems.ends(&Subject::Stranded);
        }
        let addresses: Vec<String> = stranded.iter().map(ToString::to_string).collect();
        let problem = Problem {
            kind: Kind::Stranded,
            what: format!(
                "pods have addresses that EC2 took from this node: {}",
                addresses.join(", ")
            ),
            advice:
                "nobody else's packets reach them; delete these pods, and find out who changes the interfaces"
                    .to_owned(),
        };
        self.problems.note(&Subject::Stranded, problem);
    }
}
