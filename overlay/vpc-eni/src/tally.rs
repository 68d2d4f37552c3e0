//! How often EC2 was called, for metrics: around whoever calls it. A list of several pages counts as one call.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::ec2::{
    Action, Addresses, Amount, AttachmentId, Called, Ec2, Eni, EniId, Instance, InstanceId, Limits, NewEni,
    SecurityGroupId, Subnet, Tags, VpcId, Which,
};

/// Calls of an action.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Calls {
    /// How many.
    pub made: u64,
    /// How many of them failed.
    pub failed: u64,
    /// How many of those EC2 answered, by its code.
    pub refused: BTreeMap<String, u64>,
}

/// EC2, with a count of what it is asked.
#[derive(Clone, Debug)]
pub struct Tallied<E> {
    ec2: E,
    calls: Arc<Mutex<BTreeMap<Action, Calls>>>,
}

impl<E> Tallied<E> {
    /// Nothing was asked yet.
    pub fn new(ec2: E) -> Self {
        Self {
            ec2,
            calls: Arc::default(),
        }
    }

    /// The calls so far.
    #[must_use]
    pub fn calls(&self) -> BTreeMap<Action, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note<T>(&self, action: Action, called: Called<T>) -> Called<T> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = calls.entry(action).or_default();
        calls.made += 1;
        if let Err(error) = &called {
            calls.failed += 1;
            if let Some(code) = error.code() {
                *calls.refused.entry(code.to_owned()).or_default() += 1;
            }
        }
        called
    }
}

impl<E: Ec2> Ec2 for Tallied<E> {
    async fn instance(&self, id: &InstanceId) -> Called<Instance> {
        self.note(Action::DescribeInstances, self.ec2.instance(id).await)
    }

    async fn limits(&self, instance_type: &str) -> Called<Option<Limits>> {
        self.note(
            Action::DescribeInstanceTypes,
            self.ec2.limits(instance_type).await,
        )
    }

    async fn subnets(&self, vpc: &VpcId, zone: &str) -> Called<Vec<Subnet>> {
        self.note(Action::DescribeSubnets, self.ec2.subnets(vpc, zone).await)
    }

    async fn interfaces(&self, which: &Which) -> Called<Vec<Eni>> {
        self.note(
            Action::DescribeNetworkInterfaces,
            self.ec2.interfaces(which).await,
        )
    }

    async fn create(&self, new: &NewEni) -> Called<Eni> {
        self.note(Action::CreateNetworkInterface, self.ec2.create(new).await)
    }

    async fn attach(&self, eni: &EniId, instance: &InstanceId, device_index: u32) -> Called<AttachmentId> {
        self.note(
            Action::AttachNetworkInterface,
            self.ec2.attach(eni, instance, device_index).await,
        )
    }

    async fn delete_on_termination(&self, eni: &EniId, attachment: &AttachmentId) -> Called<()> {
        let called = self.ec2.delete_on_termination(eni, attachment).await;
        self.note(Action::ModifyNetworkInterfaceAttribute, called)
    }

    async fn set_groups(&self, eni: &EniId, groups: &[SecurityGroupId]) -> Called<()> {
        self.note(
            Action::ModifyNetworkInterfaceAttribute,
            self.ec2.set_groups(eni, groups).await,
        )
    }

    async fn tag(&self, eni: &EniId, tags: &Tags) -> Called<()> {
        self.note(Action::CreateTags, self.ec2.tag(eni, tags).await)
    }

    async fn detach(&self, attachment: &AttachmentId) -> Called<()> {
        self.note(Action::DetachNetworkInterface, self.ec2.detach(attachment).await)
    }

    async fn delete(&self, eni: &EniId) -> Called<()> {
        self.note(Action::DeleteNetworkInterface, self.ec2.delete(eni).await)
    }

    async fn assign(&self, eni: &EniId, amount: Amount) -> Called<Addresses> {
        let action = match amount {
            Amount::Addresses(_) | Amount::Prefixes(_) => Action::AssignPrivateIpAddresses,
            Amount::PrefixesV6(_) => Action::AssignIpv6Addresses,
        };
        self.note(action, self.ec2.assign(eni, amount).await)
    }

    async fn unassign(&self, eni: &EniId, addresses: &Addresses) -> Called<()> {
        let action = match addresses.prefixes_v6.is_empty() {
            true => Action::UnassignPrivateIpAddresses,
            false => Action::UnassignIpv6Addresses,
        };
        self.note(action, self.ec2.unassign(eni, addresses).await)
    }
}
