//! What a region of an AWS account holds: VPCs, subnets, security groups, instances and interfaces. Plain data; what
//! the time is comes in with each question.

mod addresses;
mod changes;
mod making;
mod saving;
mod searching;
mod space;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnetwork::{Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant};
use vpc_eni::ec2::{EniId, InstanceId, Limits, NewEni, SecurityGroupId, Subnet, SubnetId, VpcId};

use crate::instance_types;
use crate::request::{Interface, Machine, Refusal, Reply, Request, SecurityGroup};
pub(crate) use searching::hypervisor;
use space::Space;

/// A VPC.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Vpc {
    pub(crate) networks: Vec<Ipv4Network>,
    pub(crate) default_group: SecurityGroupId,
}

/// A subnet with what only the account knows of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Land {
    /// Its `free_addresses` are not kept up: they are counted when it is told of.
    subnet: Subnet,
    network_v6: Option<Ipv6Network>,
    /// Addresses of things that are no interfaces of this account's: load balancers and their like.
    occupied: BTreeSet<Ipv4Addr>,
}

/// How a change comes about: what the weather says of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) now: Instant,
    /// How long an attachment stays `attaching`.
    pub(crate) attaching: Duration,
    /// How long it takes until the instance has the device.
    pub(crate) device_after: Duration,
    /// How long an attachment stays `detaching`.
    pub(crate) detaching: Duration,
    /// Where addresses are given here and there: where that begins.
    pub(crate) scattered: Option<u32>,
    /// How many objects are told of at once to who asks for no pages.
    pub(crate) page_size: Option<u32>,
}

/// All that there is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Account {
    types: BTreeMap<String, Limits>,
    /// How many network cards a type has, where it is more than one.
    cards: BTreeMap<String, u32>,
    vpcs: BTreeMap<VpcId, Vpc>,
    lands: BTreeMap<SubnetId, Land>,
    groups: BTreeMap<SecurityGroupId, (SecurityGroup, VpcId)>,
    machines: BTreeMap<InstanceId, Machine>,
    interfaces: BTreeMap<EniId, Interface>,
    /// What was made with which client token.
    tokens: BTreeMap<String, (NewEni, Interface)>,
    /// How many interfaces the account may have.
    most_interfaces: usize,
    last_number: u64,
}

impl Account {
    pub(crate) fn new() -> Self {
        Self {
            types: instance_types::published(),
            cards: BTreeMap::new(),
            vpcs: BTreeMap::new(),
            lands: BTreeMap::new(),
            groups: BTreeMap::new(),
            machines: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            tokens: BTreeMap::new(),
            // The quota "Network interfaces per Region" as it is without having been raised.
            most_interfaces: 5_000,
            last_number: 0,
        }
    }

    /// Does or answers what is asked.
    pub(crate) fn answer(&mut self, request: &Request, pace: Pace) -> Result<Reply, Refusal> {
        match request {
            Request::AssignIpv6Addresses { eni, prefixes } => self.assign_v6(eni, *prefixes),
            Request::AssignPrivateIpAddresses { eni, amount } => self.assign(eni, *amount, pace),
            Request::AttachNetworkInterface {
                eni,
                instance,
                device_index,
                card_index,
            } => self.attach(eni, instance, *device_index, *card_index, pace),
            Request::CreateNetworkInterface(new) => self.create(new, pace),
            Request::CreateTags { resources, tags } => self.tag(resources, tags),
            Request::DeleteNetworkInterface { eni } => self.delete(eni),
            Request::DescribeInstanceTypes(search) => self.search_types(search, pace),
            Request::DescribeInstances(search) => self.search_instances(search, pace),
            Request::DescribeNetworkInterfaces(search) => self.search_interfaces(search, pace),
            Request::DescribeSecurityGroups(search) => self.search_groups(search, pace),
            Request::DescribeSubnets(search) => self.search_subnets(search, pace),
            Request::DetachNetworkInterface { attachment } => self.detach(attachment, pace),
            Request::ModifyNetworkInterfaceAttribute { eni, attribute } => self.modify(eni, attribute),
            Request::UnassignIpv6Addresses { eni, prefixes } => self.unassign_v6(eni, prefixes),
            Request::UnassignPrivateIpAddresses {
                eni,
                addresses,
                prefixes,
            } => self.unassign(eni, addresses, prefixes),
        }
    }

    /// Whether there is all that a changing request names: what has not arrived everywhere yet is not found.
    pub(crate) fn knows_what_is_named(&self, request: &Request) -> Result<(), Refusal> {
        match request {
            Request::AssignIpv6Addresses { eni, .. }
            | Request::AssignPrivateIpAddresses { eni, .. }
            | Request::AttachNetworkInterface { eni, .. }
            | Request::DeleteNetworkInterface { eni }
            | Request::ModifyNetworkInterfaceAttribute { eni, .. }
            | Request::UnassignIpv6Addresses { eni, .. }
            | Request::UnassignPrivateIpAddresses { eni, .. } => self.interface(eni).map(drop),
            Request::DetachNetworkInterface { attachment } => self.attached_by(attachment).map(drop),
            Request::CreateTags { resources, .. } => resources.iter().try_for_each(|id| self.taggable(id)),
            Request::CreateNetworkInterface(_)
            | Request::DescribeInstanceTypes(_)
            | Request::DescribeInstances(_)
            | Request::DescribeNetworkInterfaces(_)
            | Request::DescribeSecurityGroups(_)
            | Request::DescribeSubnets(_) => Ok(()),
        }
    }

    /// Ends the detaching that is over by now.
    pub(crate) fn settle(&mut self, now: Instant) {
        for interface in self.interfaces.values_mut() {
            let gone_at = interface.progress.and_then(|progress| progress.gone_at);
            if gone_at.is_some_and(|gone_at| gone_at <= now) {
                interface.eni.attachment = None;
                interface.progress = None;
            }
        }
    }

    /// When the next detaching is over.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        let progress = self
            .interfaces
            .values()
            .filter_map(|interface| interface.progress);
        progress.filter_map(|progress| progress.gone_at).min()
    }

    /// When the next thing happens that takes its time.
    pub(crate) fn next_change(&self, now: Instant) -> Option<Instant> {
        self.interfaces
            .values()
            .filter_map(|interface| interface.progress)
            .flat_map(|progress| {
                [
                    Some(progress.attached_at),
                    Some(progress.device_at),
                    progress.gone_at,
                ]
            })
            .flatten()
            .filter(|at| *at > now)
            .min()
    }

    pub(crate) fn vpcs(&self) -> impl Iterator<Item = &VpcId> {
        self.vpcs.keys()
    }

    /// Each with its interfaces.
    pub(crate) fn machines(&self) -> impl Iterator<Item = Machine> + '_ {
        self.machines.values().map(|machine| Machine {
            interfaces: self.interfaces_of(&machine.id).into_iter().cloned().collect(),
            ..machine.clone()
        })
    }

    pub(crate) fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces.values()
    }

    /// Those of an instance, by device index.
    pub(crate) fn interfaces_of(&self, instance: &InstanceId) -> Vec<&Interface> {
        let index = |interface: &Interface| {
            let attached = interface.eni.attachment.as_ref()?;
            (attached.instance == *instance).then_some((attached.card_index, attached.device_index))
        };
        let mut found: Vec<(_, &Interface)> = self
            .interfaces
            .values()
            .filter_map(|interface| Some((index(interface)?, interface)))
            .collect();
        found.sort_by_key(|(index, _)| *index);
        found.into_iter().map(|(_, interface)| interface).collect()
    }

    pub(crate) fn interface(&self, id: &EniId) -> Result<&Interface, Refusal> {
        self.interfaces.get(id).ok_or_else(|| no_such_interface(id))
    }

    fn interface_mut(&mut self, id: &EniId) -> Result<&mut Interface, Refusal> {
        self.interfaces.get_mut(id).ok_or_else(|| no_such_interface(id))
    }

    pub(crate) fn machine(&self, id: &InstanceId) -> Result<&Machine, Refusal> {
        let refusal = || {
            Refusal::new(
                "InvalidInstanceID.NotFound",
                format!("The instance ID '{id}' does not exist"),
            )
        };
        self.machines.get(id).ok_or_else(refusal)
    }

    pub(crate) fn vpc(&self, id: &VpcId) -> Result<&Vpc, Refusal> {
        self.vpcs.get(id).ok_or_else(|| {
            Refusal::new(
                "InvalidVpcID.NotFound",
                format!("The vpc ID '{id}' does not exist"),
            )
        })
    }

    fn land(&self, id: &SubnetId) -> Result<&Land, Refusal> {
        let refusal = || {
            Refusal::new(
                "InvalidSubnetID.NotFound",
                format!("The subnet ID '{id}' does not exist"),
            )
        };
        self.lands.get(id).ok_or_else(refusal)
    }

    /// The subnets of a VPC, each with its IPv6 block; how many addresses are free is not kept up in them.
    pub(crate) fn subnets_of<'a>(
        &'a self,
        vpc: &'a VpcId,
    ) -> impl Iterator<Item = (&'a Subnet, Option<Ipv6Network>)> {
        let of_vpc = self.lands.values().filter(move |land| land.subnet.vpc == *vpc);
        of_vpc.map(|land| (&land.subnet, land.network_v6))
    }

    /// A subnet, with how many of its addresses are free.
    pub(crate) fn subnet(&self, id: &SubnetId) -> Result<Subnet, Refusal> {
        let land = self.land(id)?;
        Ok(Subnet {
            free_addresses: self.space(land).free(),
            ..land.subnet.clone()
        })
    }

    fn group(&self, id: &SecurityGroupId) -> Result<&(SecurityGroup, VpcId), Refusal> {
        let refusal = || {
            Refusal::new(
                "InvalidGroup.NotFound",
                format!("The security group '{id}' does not exist"),
            )
        };
        self.groups.get(id).ok_or_else(refusal)
    }

    /// What a machine's type allows.
    fn limits(&self, machine: &Machine) -> Limits {
        self.types
            .get(&machine.instance_type)
            .copied()
            .expect("invariant: an instance is made of a type that is there, and types do not go")
    }

    fn space(&self, land: &Land) -> Space {
        let single = |address: Ipv4Addr| Ipv4Network::from(address);
        let interfaces = self
            .interfaces
            .values()
            .filter(|interface| interface.eni.subnet == land.subnet.id)
            .flat_map(|interface| {
                let eni = &interface.eni;
                let addresses = std::iter::once(eni.primary).chain(eni.secondary.iter().copied());
                addresses.map(single).chain(eni.prefixes.iter().copied())
            });
        let occupied = land.occupied.iter().copied().map(single);
        Space::new(land.subnet.network, interfaces.chain(occupied))
    }

    /// A number that none had before.
    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// A name of EC2's form: a kind and 17 hexadecimal digits.
    fn next_id(&mut self, kind: &str) -> String {
        format!("{kind}-{:017x}", self.next_number())
    }
}

fn no_such_interface(id: &EniId) -> Refusal {
    Refusal::new(
        "InvalidNetworkInterfaceID.NotFound",
        format!("The networkInterface ID '{id}' does not exist"),
    )
}
