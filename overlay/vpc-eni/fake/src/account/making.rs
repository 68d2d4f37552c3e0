//! What is there before the manager comes: VPCs, subnets, groups, instance types, instances; and what goes without it.

use std::net::Ipv4Addr;

use ipnetwork::{Ipv4Network, Ipv6Network};
use vpc_eni::ec2::{
    Addresses, Amount, EniId, InstanceId, Limits, NewEni, SecurityGroupId, Subnet, SubnetId, Tags, VpcId,
};

use super::{Account, Land, Pace, Vpc};
use crate::request::{Machine, Refusal, SecurityGroup};

impl Account {
    pub(crate) fn make_vpc(&mut self, networks: &[Ipv4Network]) -> Result<VpcId, Refusal> {
        if networks.is_empty() {
            return Err(Refusal::new(
                "MissingParameter",
                "a VPC has at least one CIDR block",
            ));
        }
        if let Some(network) = networks.iter().find(|network| !is_block(**network)) {
            let message = format!("The CIDR '{network}' is invalid.");
            return Err(Refusal::new("InvalidVpc.Range", message));
        }
        let id = VpcId(self.next_id("vpc"));
        let default_group = self.new_group(&id, Tags::new());
        let vpc = Vpc {
            networks: networks.to_vec(),
            default_group,
        };
        self.vpcs.insert(id.clone(), vpc);
        Ok(id)
    }

    pub(crate) fn associate_network(&mut self, vpc: &VpcId, network: Ipv4Network) -> Result<(), Refusal> {
        self.vpc(vpc)?;
        if !is_block(network) {
            return Err(Refusal::new(
                "InvalidVpc.Range",
                format!("The CIDR '{network}' is invalid."),
            ));
        }
        let vpc = self.vpcs.get_mut(vpc).expect("invariant: it was found above");
        vpc.networks.push(network);
        Ok(())
    }

    pub(crate) fn make_subnet(
        &mut self,
        vpc: &VpcId,
        network: Ipv4Network,
        network_v6: Option<Ipv6Network>,
        zone: &str,
        tags: Tags,
    ) -> Result<SubnetId, Refusal> {
        let within = |outer: &Ipv4Network| holds(*outer, network);
        if !is_block(network) || !self.vpc(vpc)?.networks.iter().any(within) {
            let message = format!("The CIDR '{network}' is invalid.");
            return Err(Refusal::new("InvalidSubnet.Range", message));
        }
        if network_v6.is_some_and(|network| network.prefix() != 64 || network.ip() != network.network()) {
            let message = "a subnet's IPv6 block is a /64";
            return Err(Refusal::new("InvalidSubnet.Range", message));
        }
        let overlaps = |land: &&Land| land.subnet.vpc == *vpc && land.subnet.network.overlaps(network);
        if self.lands.values().find(overlaps).is_some() {
            let message = format!("The CIDR '{network}' conflicts with another subnet");
            return Err(Refusal::new("InvalidSubnet.Conflict", message));
        }
        let id = SubnetId(self.next_id("subnet"));
        let subnet = Subnet {
            id: id.clone(),
            vpc: vpc.clone(),
            zone: zone.to_owned(),
            network,
            free_addresses: 0,
            tags,
        };
        let land = Land {
            subnet,
            network_v6,
            occupied: [].into(),
        };
        self.lands.insert(id.clone(), land);
        Ok(id)
    }

    pub(crate) fn make_group(&mut self, vpc: &VpcId, tags: Tags) -> Result<SecurityGroupId, Refusal> {
        self.vpc(vpc)?;
        Ok(self.new_group(vpc, tags))
    }

    fn new_group(&mut self, vpc: &VpcId, tags: Tags) -> SecurityGroupId {
        let id = SecurityGroupId(self.next_id("sg"));
        let group = SecurityGroup { id: id.clone(), tags };
        self.groups.insert(id.clone(), (group, vpc.clone()));
        id
    }

    pub(crate) fn make_type(&mut self, name: &str, limits: Limits) {
        self.types.insert(name.to_owned(), limits);
    }

    pub(crate) fn set_cards(&mut self, instance_type: &str, cards: u32) {
        self.cards.insert(instance_type.to_owned(), cards);
    }

    pub(crate) fn limit_interfaces(&mut self, most: usize) {
        self.most_interfaces = most;
    }

    /// An instance, with a primary interface that is attached already.
    pub(crate) fn make_instance(
        &mut self,
        instance_type: &str,
        subnet: &SubnetId,
        groups: &[SecurityGroupId],
        primary: Option<Ipv4Addr>,
        pace: Pace,
    ) -> Result<InstanceId, Refusal> {
        if !self.types.contains_key(instance_type) {
            let message = format!("Invalid value '{instance_type}' for InstanceType.");
            return Err(Refusal::new("InvalidParameterValue", message));
        }
        let home = self.subnet(subnet)?;
        let new = NewEni {
            subnet: subnet.clone(),
            groups: groups.to_vec(),
            description: String::new(),
            tags: Tags::new(),
            amount: Amount::Addresses(0),
            client_token: String::new(),
        };
        let eni = self.new_interface(&new, primary, pace)?.eni.id;
        let id = InstanceId(self.next_id("i"));
        let machine = Machine {
            id: id.clone(),
            instance_type: instance_type.to_owned(),
            vpc: home.vpc,
            subnet: home.id,
            zone: home.zone,
            is_terminated: false,
            interfaces: Vec::new(),
        };
        self.machines.insert(id.clone(), machine);
        let at_once = Pace {
            attaching: std::time::Duration::ZERO,
            device_after: std::time::Duration::ZERO,
            ..pace
        };
        self.attach(&eni, &id, 0, 0, at_once)?;
        let interface = self.interface_mut(&eni)?;
        let attachment = interface.eni.attachment.as_mut();
        attachment
            .expect("invariant: it was attached above")
            .delete_on_termination = true;
        Ok(id)
    }

    /// The interfaces that go with the instance go, the others are free.
    pub(crate) fn terminate(&mut self, instance: &InstanceId) -> Result<(), Refusal> {
        self.machine(instance)?;
        let machine = self
            .machines
            .get_mut(instance)
            .expect("invariant: it was found above");
        machine.is_terminated = true;
        self.interfaces.retain(|_, interface| {
            let attachment = interface.eni.attachment.as_ref();
            let Some(attached) = attachment.filter(|attached| attached.instance == *instance) else {
                return true;
            };
            let stays = !attached.delete_on_termination;
            interface.eni.attachment = None;
            interface.progress = None;
            stays
        });
        Ok(())
    }

    /// Something that is no interface has the address from now on.
    pub(crate) fn occupy(&mut self, subnet: &SubnetId, address: Ipv4Addr) -> Result<(), Refusal> {
        if !self.space(self.land(subnet)?).is_free(address) {
            let message = format!("Address {address} is in use.");
            return Err(Refusal::new("InvalidIPAddress.InUse", message));
        }
        let land = self.lands.get_mut(subnet).expect("invariant: it was found above");
        land.occupied.insert(address);
        Ok(())
    }

    /// Nobody has the address any more.
    pub(crate) fn vacate(&mut self, subnet: &SubnetId, address: Ipv4Addr) -> Result<(), Refusal> {
        self.land(subnet)?;
        let land = self.lands.get_mut(subnet).expect("invariant: it was found above");
        land.occupied.remove(&address);
        Ok(())
    }

    /// The interface goes, attached or not: somebody detached it by force and deleted it.
    pub(crate) fn take_interface(&mut self, id: &EniId) -> Result<(), Refusal> {
        self.interface(id)?;
        self.interfaces.remove(id);
        Ok(())
    }

    /// The addresses go from their interface.
    pub(crate) fn take_addresses(&mut self, id: &EniId, addresses: &Addresses) -> Result<(), Refusal> {
        if !addresses.prefixes_v6.is_empty() {
            self.unassign_v6(id, &addresses.prefixes_v6)?;
        }
        if addresses.secondary.is_empty() && addresses.prefixes.is_empty() {
            return Ok(());
        }
        self.unassign(id, &addresses.secondary, &addresses.prefixes)
            .map(drop)
    }

    /// The group goes from the VPC and from the interfaces that had it; an interface without any gets the VPC's own.
    pub(crate) fn take_group(&mut self, id: &SecurityGroupId) -> Result<(), Refusal> {
        let vpc = self.group(id)?.1.clone();
        let default_group = self.vpc(&vpc)?.default_group.clone();
        if *id == default_group {
            let message = format!("the specified group: \"{id}\" cannot be deleted");
            return Err(Refusal::new("CannotDelete", message));
        }
        self.groups.remove(id);
        for interface in self.interfaces.values_mut() {
            let groups = &mut interface.eni.groups;
            groups.retain(|group| group != id);
            if groups.is_empty() {
                groups.push(default_group.clone());
            }
        }
        Ok(())
    }
}

/// Whether it is a block that a VPC or a subnet can have: aligned, and from `/16` to `/28`.
pub(super) fn is_block(network: Ipv4Network) -> bool {
    network.ip() == network.network() && (16..=28).contains(&network.prefix())
}

/// Whether a block is within another.
pub(super) fn holds(outer: Ipv4Network, inner: Ipv4Network) -> bool {
    outer.contains(inner.network()) && outer.contains(inner.broadcast())
}
