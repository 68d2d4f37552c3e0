//! What comes and goes without a call: the VPCs, subnets and instances that are there, and what a foreign hand does.

use std::net::Ipv4Addr;

use ipnetwork::{Ipv4Network, Ipv6Network};
use vpc_eni::ec2::{Addresses, EniId, InstanceId, Limits, SecurityGroupId, SubnetId, Tags, VpcId};

use super::Cloud;
use crate::request::{Refusal, Reply, Request};

/// What is there without the manager's doing.
impl Cloud {
    /// A VPC with these blocks, each `/16` to `/28`, and a security group of its own.
    ///
    /// # Errors
    /// `InvalidVpc.Range`.
    pub fn make_vpc(&self, networks: &[Ipv4Network]) -> Result<VpcId, Refusal> {
        self.change(|account, _| account.make_vpc(networks))
    }

    /// One more block for a VPC.
    ///
    /// # Errors
    /// `InvalidVpcID.NotFound`, `InvalidVpc.Range`.
    pub fn associate_network(&self, vpc: &VpcId, network: Ipv4Network) -> Result<(), Refusal> {
        self.change(|account, _| account.associate_network(vpc, network))
    }

    /// A subnet in a zone (`eu-west-1a`).
    ///
    /// # Errors
    /// `InvalidVpcID.NotFound`, `InvalidSubnet.Range`, `InvalidSubnet.Conflict`.
    pub fn make_subnet(
        &self,
        vpc: &VpcId,
        network: Ipv4Network,
        zone: &str,
        tags: Tags,
    ) -> Result<SubnetId, Refusal> {
        self.change(|account, _| account.make_subnet(vpc, network, None, zone, tags))
    }

    /// A subnet with an IPv6 block, a `/64`.
    ///
    /// # Errors
    /// As [`Self::make_subnet`].
    pub fn make_dual_subnet(
        &self,
        vpc: &VpcId,
        network: Ipv4Network,
        network_v6: Ipv6Network,
        zone: &str,
        tags: Tags,
    ) -> Result<SubnetId, Refusal> {
        self.change(|account, _| account.make_subnet(vpc, network, Some(network_v6), zone, tags))
    }

    /// A security group.
    ///
    /// # Errors
    /// `InvalidVpcID.NotFound`.
    pub fn make_security_group(&self, vpc: &VpcId, tags: Tags) -> Result<SecurityGroupId, Refusal> {
        self.change(|account, _| account.make_group(vpc, tags))
    }

    /// The security group that came with a VPC.
    #[must_use]
    pub fn default_group(&self, vpc: &VpcId) -> Option<SecurityGroupId> {
        self.now()
            .account
            .vpc(vpc)
            .ok()
            .map(|vpc| vpc.default_group.clone())
    }

    /// An instance type, or other limits for one that is there.
    pub fn make_instance_type(&self, name: &str, limits: Limits) {
        self.set(|account| account.make_type(name, limits));
    }

    /// How many network cards instances of a type have; one in the beginning. The type's limit is each card's.
    pub fn set_network_cards(&self, instance_type: &str, cards: u32) {
        self.set(|account| account.set_cards(instance_type, cards));
    }

    /// How many interfaces the account may have (5000 in the beginning).
    pub fn limit_interfaces(&self, most: usize) {
        self.set(|account| account.limit_interfaces(most));
    }

    /// An instance with its primary interface.
    ///
    /// # Errors
    /// An unknown type, subnet or group; that the subnet is full.
    pub fn make_instance(
        &self,
        instance_type: &str,
        subnet: &SubnetId,
        groups: &[SecurityGroupId],
    ) -> Result<InstanceId, Refusal> {
        self.change(|account, pace| account.make_instance(instance_type, subnet, groups, None, pace))
    }

    /// The same, with this primary address.
    ///
    /// # Errors
    /// As [`Self::make_instance`]; `InvalidIPAddress.InUse` where somebody has the address, `InvalidParameterValue` where
    /// it is none of the subnet's, or one of the five that AWS keeps.
    pub fn make_instance_at(
        &self,
        instance_type: &str,
        subnet: &SubnetId,
        groups: &[SecurityGroupId],
        primary: Ipv4Addr,
    ) -> Result<InstanceId, Refusal> {
        self.change(|account, pace| account.make_instance(instance_type, subnet, groups, Some(primary), pace))
    }

    /// Ends an instance: the interfaces that go with it go, the others become `available`.
    ///
    /// # Errors
    /// `InvalidInstanceID.NotFound`.
    pub fn terminate(&self, instance: &InstanceId) -> Result<(), Refusal> {
        self.change(|account, _| account.terminate(instance))
    }

    /// Gives an address to something that is no interface.
    ///
    /// # Errors
    /// `InvalidSubnetID.NotFound`, `InvalidIPAddress.InUse`.
    pub fn occupy(&self, subnet: &SubnetId, address: Ipv4Addr) -> Result<(), Refusal> {
        self.change(|account, _| account.occupy(subnet, address))
    }

    /// Takes an address back from what is no interface.
    ///
    /// # Errors
    /// `InvalidSubnetID.NotFound`.
    pub fn vacate(&self, subnet: &SubnetId, address: Ipv4Addr) -> Result<(), Refusal> {
        self.change(|account, _| account.vacate(subnet, address))
    }
}

/// A foreign hand: what somebody does behind the manager's back. It is in no ledger, and no weather holds it up.
impl Cloud {
    /// Takes addresses and prefixes from an interface.
    ///
    /// # Errors
    /// As the Unassign calls.
    pub fn take_addresses(&self, eni: &EniId, addresses: &Addresses) -> Result<(), Refusal> {
        self.change(|account, _| account.take_addresses(eni, addresses))
    }

    /// Deletes an interface, attached or not.
    ///
    /// # Errors
    /// `InvalidNetworkInterfaceID.NotFound`.
    pub fn take_interface(&self, eni: &EniId) -> Result<(), Refusal> {
        self.change(|account, _| account.take_interface(eni))
    }

    /// Deletes a security group; an interface that has no other gets its VPC's own.
    ///
    /// # Errors
    /// `InvalidGroup.NotFound`, `CannotDelete`.
    pub fn take_group(&self, group: &SecurityGroupId) -> Result<(), Refusal> {
        self.change(|account, _| account.take_group(group))
    }

    /// Makes any call at once, whatever the weather is.
    ///
    /// # Errors
    /// What EC2 refuses.
    pub fn meddle(&self, request: &Request) -> Result<Reply, Refusal> {
        self.change(|account, pace| account.answer(request, pace))
    }
}
