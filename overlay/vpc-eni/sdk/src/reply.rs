//! EC2's replies in the words of [`vpc_eni::ec2`]. Nearly every member of the SDK's types is optional; what is needed
//! and is not there makes the reply unusable. Members are named as the API reference names them.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use aws_sdk_ec2::types;
use ipnetwork::{Ipv4Network, Ipv6Network};
use vpc_eni::ec2::{Addresses, Attached, Eni, Instance, Limits, Subnet, Tags};

/// Why a reply cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("the reply has no {member}")]
    Missing { member: &'static str },
    #[error("the reply's {member} is {value:?}")]
    Malformed { member: &'static str, value: String },
    #[error("the reply's pages have no end: nextToken came twice")]
    Endless,
}

pub(crate) type Usable<T> = Result<T, Unusable>;

pub(crate) fn needed<T>(member: &'static str, value: Option<T>) -> Usable<T> {
    value.ok_or(Unusable::Missing { member })
}

fn id<T: for<'a> From<&'a str>>(member: &'static str, value: Option<&str>) -> Usable<T> {
    needed(member, value.filter(|id| !id.is_empty())).map(T::from)
}

fn parsed<T: FromStr>(member: &'static str, value: Option<&str>) -> Usable<T> {
    let text = needed(member, value)?;
    text.parse().map_err(|_| malformed(member, text))
}

fn count(member: &'static str, value: Option<i32>) -> Usable<u32> {
    let number = needed(member, value)?;
    u32::try_from(number).map_err(|_| malformed(member, number))
}

fn malformed(member: &'static str, value: impl fmt::Display) -> Unusable {
    let value = value.to_string();
    Unusable::Malformed { member, value }
}

fn tags(tags: &[types::Tag]) -> Usable<Tags> {
    let pair = |tag: &types::Tag| {
        let key = needed("key", tag.key())?;
        Ok((key.to_owned(), tag.value().unwrap_or_default().to_owned()))
    };
    tags.iter().map(pair).collect()
}

pub(crate) fn eni(interface: &types::NetworkInterface) -> Usable<Eni> {
    let kind = needed("interfaceType", interface.interface_type())?;
    let addresses = interface.private_ip_addresses();
    let secondary = addresses.iter().filter(|address| address.primary() != Some(true));
    let groups = interface.groups().iter();
    Ok(Eni {
        id: id("networkInterfaceId", interface.network_interface_id())?,
        subnet: id("subnetId", interface.subnet_id())?,
        mac: parsed("macAddress", interface.mac_address())?,
        description: interface.description().unwrap_or_default().to_owned(),
        tags: tags(interface.tag_set())?,
        groups: groups
            .map(|group| id("groupId", group.group_id()))
            .collect::<Usable<_>>()?,
        primary: primary(interface)?,
        secondary: secondary
            .map(|address| parsed("privateIpAddress", address.private_ip_address()))
            .collect::<Usable<_>>()?,
        prefixes: prefixes(interface.ipv4_prefixes())?,
        prefixes_v6: interface
            .ipv6_prefixes()
            .iter()
            .map(|prefix| parsed("ipv6Prefix", prefix.ipv6_prefix()))
            .collect::<Usable<_>>()?,
        kind: kind.as_str().to_owned(),
        attachment: interface.attachment().map(attached).transpose()?,
    })
}

/// The interface's own address. One that cannot have any (`efa-only`; of an IPv6-only subnet) has 0.0.0.0: it takes a
/// place on its instance all the same, and must not hide the others.
fn primary(interface: &types::NetworkInterface) -> Usable<Ipv4Addr> {
    let is_plain = interface.interface_type() == Some(&types::NetworkInterfaceType::Interface);
    match interface.private_ip_address() {
        None if !is_plain || interface.ipv6_native() == Some(true) => Ok(Ipv4Addr::UNSPECIFIED),
        address => parsed("privateIpAddress", address),
    }
}

fn prefixes(prefixes: &[types::Ipv4PrefixSpecification]) -> Usable<Vec<Ipv4Network>> {
    let prefix = |prefix: &types::Ipv4PrefixSpecification| parsed("ipv4Prefix", prefix.ipv4_prefix());
    prefixes.iter().map(prefix).collect()
}

fn attached(attachment: &types::NetworkInterfaceAttachment) -> Usable<Attached> {
    Ok(Attached {
        id: id("attachmentId", attachment.attachment_id())?,
        instance: id("instanceId", attachment.instance_id())?,
        device_index: count("deviceIndex", attachment.device_index())?,
        card_index: card_index(attachment.network_card_index())?,
        delete_on_termination: needed("deleteOnTermination", attachment.delete_on_termination())?,
    })
}

/// EC2 leaves it out where an instance has one card.
fn card_index(index: Option<i32>) -> Usable<u32> {
    count("networkCardIndex", Some(index.unwrap_or(0)))
}

pub(crate) fn instance(instance: &types::Instance) -> Usable<Instance> {
    let instance_type = needed("instanceType", instance.instance_type())?;
    let placement = instance.placement();
    Ok(Instance {
        id: id("instanceId", instance.instance_id())?,
        instance_type: instance_type.as_str().to_owned(),
        vpc: id("vpcId", instance.vpc_id())?,
        subnet: id("subnetId", instance.subnet_id())?,
        zone: id(
            "availabilityZone",
            placement.and_then(types::Placement::availability_zone),
        )?,
        device_indexes: device_indexes(instance.network_interfaces())?,
    })
}

/// Those of the first card, from the lowest.
fn device_indexes(interfaces: &[types::InstanceNetworkInterface]) -> Usable<Vec<u32>> {
    let mut indexes = Vec::new();
    for interface in interfaces {
        let attachment = needed("attachment", interface.attachment())?;
        if card_index(attachment.network_card_index())? == 0 {
            indexes.push(count("deviceIndex", attachment.device_index())?);
        }
    }
    indexes.sort_unstable();
    Ok(indexes)
}

pub(crate) fn limits(instance_type: &types::InstanceTypeInfo) -> Usable<Limits> {
    let network = needed("networkInfo", instance_type.network_info())?;
    let default_card = network.default_network_card_index().unwrap_or(0);
    // A type with several cards tells the sum of them outside.
    let of_card = network
        .network_cards()
        .iter()
        .find(|card| card.network_card_index() == Some(default_card))
        .and_then(types::NetworkCardInfo::maximum_network_interfaces);
    let interfaces = of_card.or(network.maximum_network_interfaces());
    // A machine without a hypervisor has Nitro's cards.
    let is_nitro = instance_type.hypervisor() == Some(&types::InstanceTypeHypervisor::Nitro)
        || instance_type.bare_metal() == Some(true);
    Ok(Limits {
        interfaces: count("maximumNetworkInterfaces", interfaces)?,
        addresses_per_interface: count(
            "ipv4AddressesPerInterface",
            network.ipv4_addresses_per_interface(),
        )?,
        is_nitro,
    })
}

/// `None` where it has no IPv4 addresses (IPv6-only).
pub(crate) fn subnet(subnet: &types::Subnet) -> Usable<Option<Subnet>> {
    if subnet.ipv6_native() == Some(true) {
        return Ok(None);
    }
    Ok(Some(Subnet {
        id: id("subnetId", subnet.subnet_id())?,
        vpc: id("vpcId", subnet.vpc_id())?,
        zone: id("availabilityZone", subnet.availability_zone())?,
        network: parsed("cidrBlock", subnet.cidr_block())?,
        free_addresses: count("availableIpAddressCount", subnet.available_ip_address_count())?,
        tags: tags(subnet.tags())?,
    }))
}

/// What `AssignPrivateIpAddresses` gave.
pub(crate) fn assigned(
    addresses: &[types::AssignedPrivateIpAddress],
    blocks: &[types::Ipv4PrefixSpecification],
) -> Usable<Addresses> {
    let secondary = addresses
        .iter()
        .map(|address| parsed("privateIpAddress", address.private_ip_address()))
        .collect::<Usable<_>>()?;
    Ok(Addresses {
        secondary,
        prefixes: prefixes(blocks)?,
        prefixes_v6: Vec::new(),
    })
}

/// What `AssignIpv6Addresses` gave.
pub(crate) fn assigned_v6(blocks: &[String]) -> Usable<Addresses> {
    let prefixes_v6 = blocks
        .iter()
        .map(|block| parsed::<Ipv6Network>("assignedIpv6PrefixSet", Some(block)))
        .collect::<Usable<_>>()?;
    Ok(Addresses {
        prefixes_v6,
        ..Addresses::default()
    })
}
