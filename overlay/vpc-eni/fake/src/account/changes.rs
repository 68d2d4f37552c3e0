//! What the calls that change something do, whole or not at all.

use std::net::Ipv4Addr;

use model::MacAddr;
use vpc_eni::ec2::{
    Amount, Attached, AttachmentId, Eni, EniId, InstanceId, NewEni, SecurityGroupId, SubnetId, Tags, VpcId,
};

use super::addresses::{MOST_WHILE_FREE, Primary, check_room, prefixes_need_nitro, slots, slots_v6};
use super::{Account, Pace};
use crate::request::{Attribute, Interface, Progress, Refusal, Reply};

/// How many client tokens are remembered; how long EC2 does is not published.
const MOST_TOKENS: usize = 200;

impl Account {
    pub(super) fn create(&mut self, new: &NewEni, pace: Pace) -> Result<Reply, Refusal> {
        if let Some((asked, made)) = self.tokens.get(&new.client_token) {
            if asked != new {
                let message =
                    "The request has another parameter than the one that this client token came with first.";
                return Err(Refusal::new("IdempotentParameterMismatch", message));
            }
            let now = self.interfaces.get(&made.eni.id).unwrap_or(made);
            return Ok(Reply::Created {
                interface: Box::new(now.clone()),
                client_token: new.client_token.clone(),
            });
        }
        let interface = self.new_interface(new, None, pace)?;
        if !new.client_token.is_empty() {
            let made = (new.clone(), interface.clone());
            self.tokens.insert(new.client_token.clone(), made);
            self.forget_old_tokens();
        }
        Ok(Reply::Created {
            interface: Box::new(interface),
            client_token: new.client_token.clone(),
        })
    }

    /// Those of the interfaces that were made first go: names of one length count up.
    fn forget_old_tokens(&mut self) {
        while self.tokens.len() > MOST_TOKENS {
            let all = self.tokens.iter();
            let oldest = all
                .min_by_key(|(_, (_, made))| &made.eni.id)
                .map(|(token, _)| token.clone());
            oldest.and_then(|token| self.tokens.remove(&token));
        }
    }

    /// A new interface, with this address or any that is free.
    pub(super) fn new_interface(
        &mut self,
        new: &NewEni,
        primary: Option<Ipv4Addr>,
        pace: Pace,
    ) -> Result<Interface, Refusal> {
        let home = self.subnet(&new.subnet)?;
        let groups = if new.groups.is_empty() {
            vec![self.vpc(&home.vpc)?.default_group.clone()]
        } else {
            self.check_groups(&new.groups, &home.vpc)?;
            new.groups.clone()
        };
        check_tags(&new.tags)?;
        if self.interfaces.len() >= self.most_interfaces {
            let message = "The maximum number of network interfaces for this account is reached.";
            return Err(Refusal::new("NetworkInterfaceLimitExceeded", message));
        }
        let (Amount::Addresses(count) | Amount::Prefixes(count) | Amount::PrefixesV6(count)) = new.amount;
        let taken = u32::from(!matches!(new.amount, Amount::PrefixesV6(_)));
        check_room(new.amount, taken, count, MOST_WHILE_FREE)?;
        let primary = primary.map_or(Primary::Any, Primary::This);
        let (primary, addresses) = self.choose(&new.subnet, primary, new.amount, pace)?;
        let number = self.next_number();
        let eni = Eni {
            id: EniId(self.next_id("eni")),
            subnet: new.subnet.clone(),
            mac: mac(number),
            description: new.description.clone(),
            tags: new.tags.clone(),
            groups,
            primary: primary.expect("invariant: a primary address was asked for"),
            secondary: addresses.secondary,
            prefixes: addresses.prefixes,
            prefixes_v6: addresses.prefixes_v6,
            kind: "interface".to_owned(),
            attachment: None,
        };
        let interface = Interface {
            eni,
            vpc: home.vpc,
            zone: home.zone,
            progress: None,
        };
        self.interfaces
            .insert(interface.eni.id.clone(), interface.clone());
        Ok(interface)
    }

    pub(super) fn attach(
        &mut self,
        eni: &EniId,
        instance: &InstanceId,
        device_index: u32,
        card_index: u32,
        pace: Pace,
    ) -> Result<Reply, Refusal> {
        let interface = self.interface(eni)?;
        let machine = self.machine(instance)?;
        if machine.is_terminated {
            let message = format!("The instance '{instance}' is terminated.");
            return Err(Refusal::new("IncorrectInstanceState", message));
        }
        if interface.eni.attachment.is_some() {
            let message = format!("Interface: [{eni}] in use.");
            return Err(Refusal::new("InvalidNetworkInterface.InUse", message));
        }
        if interface.zone != machine.zone || interface.vpc != machine.vpc {
            let message =
                format!("The interface '{eni}' and the instance '{instance}' are not in one zone and VPC.");
            return Err(Refusal::new("InvalidParameterCombination", message));
        }
        let cards = self.cards.get(&machine.instance_type).copied().unwrap_or(1);
        if card_index >= cards {
            let message =
                format!("The instance '{instance}' has no network card with the index '{card_index}'.");
            return Err(Refusal::new("InvalidParameterValue", message));
        }
        let limits = self.limits(machine);
        let mut others = self.interfaces_of(instance);
        others.retain(|other| {
            let attached = other.eni.attachment.as_ref();
            attached.is_some_and(|attached| attached.card_index == card_index)
        });
        let is_taken = |other: &&Interface| {
            let attached = other.eni.attachment.as_ref();
            attached.is_some_and(|attached| attached.device_index == device_index)
        };
        if others.iter().any(is_taken) {
            let message = format!(
                "Instance '{instance}' already has an interface attached at device index '{device_index}'."
            );
            return Err(Refusal::new("InvalidParameterValue", message));
        }
        let count = others.len() + 1;
        if count > limits.interfaces as usize {
            let message = format!(
                "Interface count {count} exceeds the limit for {}",
                machine.instance_type
            );
            return Err(Refusal::new("AttachmentLimitExceeded", message));
        }
        let held = &interface.eni;
        let has_prefixes = !held.prefixes.is_empty() || !held.prefixes_v6.is_empty();
        if has_prefixes && !limits.is_nitro {
            return Err(prefixes_need_nitro(&machine.instance_type));
        }
        check_room(
            Amount::Addresses(0),
            slots(held),
            0,
            limits.addresses_per_interface,
        )?;
        check_room(
            Amount::PrefixesV6(0),
            slots_v6(held),
            0,
            limits.addresses_per_interface,
        )?;

        let attachment = AttachmentId(self.next_id("eni-attach"));
        let interface = self.interface_mut(eni)?;
        interface.eni.attachment = Some(Attached {
            id: attachment.clone(),
            instance: instance.clone(),
            device_index,
            card_index,
            delete_on_termination: false,
        });
        interface.progress = Some(Progress {
            since: pace.now,
            attached_at: pace.now + pace.attaching,
            device_at: pace.now + pace.device_after,
            gone_at: None,
        });
        Ok(Reply::Attached {
            attachment,
            card_index,
        })
    }

    pub(super) fn detach(&mut self, attachment: &AttachmentId, pace: Pace) -> Result<Reply, Refusal> {
        let id = self.attached_by(attachment)?.eni.id.clone();
        let interface = self.interface_mut(&id)?;
        let is_primary = |attached: &Attached| attached.device_index == 0;
        if interface.eni.attachment.as_ref().is_some_and(is_primary) {
            let message = "The network interface at device index 0 cannot be detached.";
            return Err(Refusal::new("OperationNotPermitted", message));
        }
        let progress = interface.progress.as_mut();
        let progress = progress.expect("invariant: what is attached tells how far it is");
        if progress.gone_at.is_some() {
            let message = format!("The attachment '{attachment}' is being detached already.");
            return Err(Refusal::new("IncorrectState", message));
        }
        progress.gone_at = Some(pace.now + pace.detaching);
        self.settle(pace.now);
        Ok(Reply::Done)
    }

    pub(super) fn delete(&mut self, eni: &EniId) -> Result<Reply, Refusal> {
        if self.interface(eni)?.eni.attachment.is_some() {
            let message = format!("Network interface '{eni}' is currently in use.");
            return Err(Refusal::new("InvalidParameterValue", message));
        }
        self.interfaces.remove(eni);
        Ok(Reply::Done)
    }

    pub(super) fn modify(&mut self, eni: &EniId, attribute: &Attribute) -> Result<Reply, Refusal> {
        let vpc = self.interface(eni)?.vpc.clone();
        match attribute {
            Attribute::Groups(groups) => {
                if groups.is_empty() {
                    let message = "An interface has at least one security group.";
                    return Err(Refusal::new("InvalidParameterValue", message));
                }
                self.check_groups(groups, &vpc)?;
                self.interface_mut(eni)?.eni.groups.clone_from(groups);
            }
            Attribute::DeleteOnTermination { attachment, value } => {
                let attached = self.interface_mut(eni)?.eni.attachment.as_mut();
                let attached = attached.filter(|attached| attached.id == *attachment);
                attached
                    .ok_or_else(|| no_such_attachment(attachment))?
                    .delete_on_termination = *value;
            }
        }
        Ok(Reply::Done)
    }

    pub(super) fn tag(&mut self, resources: &[String], tags: &Tags) -> Result<Reply, Refusal> {
        check_tags(tags)?;
        resources.iter().try_for_each(|id| self.taggable(id))?;
        for id in resources {
            let all = if let Some(interface) = self.interfaces.get_mut(&EniId(id.clone())) {
                &mut interface.eni.tags
            } else if let Some(land) = self.lands.get_mut(&SubnetId(id.clone())) {
                &mut land.subnet.tags
            } else {
                let group = self.groups.get_mut(&SecurityGroupId(id.clone()));
                &mut group
                    .expect("invariant: it can be tagged, and is none of the others")
                    .0
                    .tags
            };
            all.extend(tags.clone());
        }
        Ok(Reply::Done)
    }

    /// Whether it is there and keeps tags.
    pub(super) fn taggable(&self, id: &str) -> Result<(), Refusal> {
        let known = self.interfaces.contains_key(&EniId::from(id))
            || self.lands.contains_key(&SubnetId::from(id))
            || self.groups.contains_key(&SecurityGroupId::from(id));
        match id.split_once('-') {
            _ if known => Ok(()),
            Some(("eni", _)) => Err(super::no_such_interface(&EniId::from(id))),
            Some(("subnet", _)) => self.land(&SubnetId::from(id)).map(drop),
            Some(("sg", _)) => self.group(&SecurityGroupId::from(id)).map(drop),
            _ => Err(Refusal::new("InvalidID", format!("The ID '{id}' is not valid"))),
        }
    }

    pub(super) fn attached_by(&self, attachment: &AttachmentId) -> Result<&Interface, Refusal> {
        let is_it = |interface: &&Interface| {
            let attached = interface.eni.attachment.as_ref();
            attached.is_some_and(|attached| attached.id == *attachment)
        };
        let found = self.interfaces.values().find(is_it);
        found.ok_or_else(|| no_such_attachment(attachment))
    }

    fn check_groups(&self, groups: &[SecurityGroupId], vpc: &VpcId) -> Result<(), Refusal> {
        for id in groups {
            if self.group(id)?.1 != *vpc {
                let message = format!("The security group '{id}' is of another network.");
                return Err(Refusal::new("InvalidParameter", message));
            }
        }
        Ok(())
    }
}

/// EC2 user guide, "Tag restrictions".
fn check_tags(tags: &Tags) -> Result<(), Refusal> {
    for (key, value) in tags {
        if key.is_empty() || key.chars().count() > 128 || key.starts_with("aws:") {
            let message = format!("The tag key '{key}' is not valid.");
            return Err(Refusal::new("InvalidParameterValue", message));
        }
        if value.chars().count() > 256 {
            let message = format!("The value of the tag '{key}' is too long.");
            return Err(Refusal::new("InvalidParameterValue", message));
        }
    }
    if tags.len() > 50 {
        return Err(Refusal::new(
            "TagLimitExceeded",
            "A resource has at most 50 tags.",
        ));
    }
    Ok(())
}

/// Locally administered, as those of EC2 are.
fn mac(number: u64) -> MacAddr {
    let [_, _, _, a, b, c, d, e] = number.to_be_bytes();
    MacAddr::locally_administered([0x0a, a, b, c, d, e])
}

fn no_such_attachment(attachment: &AttachmentId) -> Refusal {
    Refusal::new(
        "InvalidAttachmentID.NotFound",
        format!("The interface attachment '{attachment}' does not exist."),
    )
}
