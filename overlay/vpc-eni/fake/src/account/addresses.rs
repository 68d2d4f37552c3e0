//! Addresses and prefixes that come to interfaces and go from them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnetwork::{Ipv4Network, Ipv6Network};
use vpc_eni::ec2::{Addresses, Amount, Eni, EniId, SubnetId};

use super::space::{self, Order, Space, Taken};
use super::{Account, Pace};
use crate::request::{Refusal, Reply};

/// How many addresses an interface can have that is attached to nothing: what the largest type allows.
pub(super) const MOST_WHILE_FREE: u32 = 50;

/// Which address an interface has of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Primary {
    /// The one that it has already.
    Kept,
    /// One that is free.
    Any,
    /// This.
    This(Ipv4Addr),
}

impl Account {
    pub(super) fn assign(&mut self, eni: &EniId, amount: Amount, pace: Pace) -> Result<Reply, Refusal> {
        let held = &self.interface(eni)?.eni;
        let (Amount::Addresses(count) | Amount::Prefixes(count) | Amount::PrefixesV6(count)) = amount;
        if count == 0 {
            return Err(nothing_asked_for());
        }
        if matches!(amount, Amount::Prefixes(_)) {
            self.check_nitro(held)?;
        }
        check_room(amount, slots(held), count, self.most_addresses(held))?;
        let subnet = held.subnet.clone();
        let (_, addresses) = self.choose(&subnet, Primary::Kept, amount, pace)?;
        self.give(eni, addresses)
    }

    pub(super) fn assign_v6(&mut self, eni: &EniId, count: u32) -> Result<Reply, Refusal> {
        let held = &self.interface(eni)?.eni;
        if count == 0 {
            return Err(nothing_asked_for());
        }
        self.check_nitro(held)?;
        let amount = Amount::PrefixesV6(count);
        check_room(amount, slots_v6(held), count, self.most_addresses(held))?;
        let prefixes_v6 = self.choose_v6(&held.subnet, count)?;
        let addresses = Addresses {
            prefixes_v6,
            ..Addresses::default()
        };
        self.give(eni, addresses)
    }

    fn give(&mut self, eni: &EniId, addresses: Addresses) -> Result<Reply, Refusal> {
        let held = &mut self.interface_mut(eni)?.eni;
        held.secondary.extend(&addresses.secondary);
        held.prefixes.extend(&addresses.prefixes);
        held.prefixes_v6.extend(&addresses.prefixes_v6);
        Ok(Reply::Assigned {
            eni: eni.clone(),
            addresses,
        })
    }

    pub(super) fn unassign(
        &mut self,
        eni: &EniId,
        addresses: &[Ipv4Addr],
        prefixes: &[Ipv4Network],
    ) -> Result<Reply, Refusal> {
        let held = &mut self.interface_mut(eni)?.eni;
        if addresses.is_empty() && prefixes.is_empty() {
            return Err(nothing_asked_for());
        }
        if addresses.contains(&held.primary) {
            let message = format!("The primary private IP address of interface {eni} cannot be unassigned.");
            return Err(Refusal::new("InvalidParameterValue", message));
        }
        let has_all = addresses.iter().all(|address| held.secondary.contains(address))
            && prefixes.iter().all(|prefix| held.prefixes.contains(prefix));
        if !has_all {
            return Err(not_assigned(eni));
        }
        held.secondary.retain(|address| !addresses.contains(address));
        held.prefixes.retain(|prefix| !prefixes.contains(prefix));
        Ok(Reply::Done)
    }

    pub(super) fn unassign_v6(&mut self, eni: &EniId, prefixes: &[Ipv6Network]) -> Result<Reply, Refusal> {
        let held = &mut self.interface_mut(eni)?.eni;
        if prefixes.is_empty() {
            return Err(nothing_asked_for());
        }
        if !prefixes.iter().all(|prefix| held.prefixes_v6.contains(prefix)) {
            return Err(not_assigned(eni));
        }
        held.prefixes_v6.retain(|prefix| !prefixes.contains(prefix));
        let addresses = Addresses {
            prefixes_v6: prefixes.to_vec(),
            ..Addresses::default()
        };
        Ok(Reply::Unassigned {
            eni: eni.clone(),
            addresses,
        })
    }

    /// Free addresses of a subnet; nobody has them yet.
    pub(super) fn choose(
        &self,
        subnet: &SubnetId,
        primary: Primary,
        amount: Amount,
        pace: Pace,
    ) -> Result<(Option<Ipv4Addr>, Addresses), Refusal> {
        let mut space = self.space(self.land(subnet)?);
        let order = pace.scattered.map_or(Order::Ascending, Order::Scattered);
        let mut addresses = Addresses::default();
        if let Primary::This(address) = primary {
            take_this(&mut space, address)?;
        }
        if let Amount::Prefixes(count) = amount {
            addresses.prefixes = space.take_blocks(count).ok_or_else(no_free_blocks)?;
        }
        let singles = match amount {
            Amount::Addresses(count) => count,
            Amount::Prefixes(_) | Amount::PrefixesV6(_) => 0,
        };
        let is_chosen = primary == Primary::Any;
        let singles = singles.saturating_add(u32::from(is_chosen));
        let taken = space
            .take_addresses(singles, order)
            .ok_or_else(no_free_addresses)?;
        let (chosen, secondary) = taken.split_at(usize::from(is_chosen));
        addresses.secondary = secondary.to_vec();
        if let Amount::PrefixesV6(count) = amount {
            addresses.prefixes_v6 = self.choose_v6(subnet, count)?;
        }
        let primary = match primary {
            Primary::This(address) => Some(address),
            Primary::Any | Primary::Kept => chosen.first().copied(),
        };
        Ok((primary, addresses))
    }

    fn choose_v6(&self, subnet: &SubnetId, count: u32) -> Result<Vec<Ipv6Network>, Refusal> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let Some(network) = self.land(subnet)?.network_v6 else {
            let message = format!("The subnet '{subnet}' has no IPv6 CIDR block.");
            return Err(Refusal::new("InvalidParameterValue", message));
        };
        let in_subnet = |interface: &&super::Interface| interface.eni.subnet == *subnet;
        let used: BTreeSet<Ipv6Network> = self
            .interfaces
            .values()
            .filter(in_subnet)
            .flat_map(|interface| interface.eni.prefixes_v6.iter().copied())
            .collect();
        space::take_blocks_v6(network, &used, count).ok_or_else(no_free_blocks)
    }

    /// How many addresses an interface can have where it is now.
    fn most_addresses(&self, eni: &Eni) -> u32 {
        let machine = eni
            .attachment
            .as_ref()
            .and_then(|attached| self.machine(&attached.instance).ok());
        machine.map_or(MOST_WHILE_FREE, |machine| {
            self.limits(machine).addresses_per_interface
        })
    }

    fn check_nitro(&self, eni: &Eni) -> Result<(), Refusal> {
        let machine = eni
            .attachment
            .as_ref()
            .and_then(|attached| self.machine(&attached.instance).ok());
        match machine {
            Some(machine) if !self.limits(machine).is_nitro => {
                Err(prefixes_need_nitro(&machine.instance_type))
            }
            _ => Ok(()),
        }
    }
}

/// How many of its places for addresses are taken; a prefix takes one.
pub(super) fn slots(eni: &Eni) -> u32 {
    let count = 1 + eni.secondary.len() + eni.prefixes.len();
    u32::try_from(count).expect("invariant: a subnet has at most 2^16 addresses")
}

pub(super) fn slots_v6(eni: &Eni) -> u32 {
    u32::try_from(eni.prefixes_v6.len()).expect("invariant: a subnet has at most 2^16 blocks")
}

/// Whether so many more fit; the interface's own address is among `taken`, but for IPv6.
pub(super) fn check_room(amount: Amount, taken: u32, more: u32, most: u32) -> Result<(), Refusal> {
    let (taken, code) = match amount {
        Amount::Addresses(_) | Amount::Prefixes(_) => (taken, "PrivateIpAddressLimitExceeded"),
        // EC2's reference does not name the code for IPv6; this is what the manager takes for it.
        Amount::PrefixesV6(_) => (taken, "Ipv6AddressLimitExceeded"),
    };
    if taken.saturating_add(more) > most {
        return Err(Refusal::new(
            code,
            "Number of private addresses will exceed limit.",
        ));
    }
    Ok(())
}

/// One address of the subnet, and no other.
fn take_this(space: &mut Space, address: Ipv4Addr) -> Result<(), Refusal> {
    match space.take_this(address) {
        Taken::Yes => Ok(()),
        Taken::InUse => Err(Refusal::new(
            "InvalidIPAddress.InUse",
            format!("Address {address} is in use."),
        )),
        Taken::Kept => Err(Refusal::new(
            "InvalidParameterValue",
            format!("Address {address} is in subnet's reserved address range"),
        )),
        Taken::Elsewhere => Err(Refusal::new(
            "InvalidParameterValue",
            format!("Address {address} does not fall within the subnet's address range"),
        )),
    }
}

pub(super) fn prefixes_need_nitro(instance_type: &str) -> Refusal {
    Refusal::new(
        "UnsupportedOperation",
        format!("Prefixes can be delegated on Nitro instances only, which {instance_type} is not."),
    )
}

fn nothing_asked_for() -> Refusal {
    Refusal::new(
        "MissingParameter",
        "The request asks for no address and no prefix.",
    )
}

fn not_assigned(eni: &EniId) -> Refusal {
    Refusal::new(
        "InvalidParameterValue",
        format!("Some of the specified addresses are not assigned to interface {eni}"),
    )
}

fn no_free_addresses() -> Refusal {
    Refusal::new(
        "InsufficientFreeAddressesInSubnet",
        "The specified subnet does not have enough free addresses to satisfy the request.",
    )
}

fn no_free_blocks() -> Refusal {
    Refusal::new(
        "InsufficientCidrBlocks",
        "The specified subnet does not have enough free cidr blocks to satisfy the request.",
    )
}
