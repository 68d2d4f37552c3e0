//! The cloud's calls by the trait that the manager knows.

use vpc_eni::ec2::{
    Action, Addresses, Amount, AttachmentId, CallError, Called, Ec2, Eni, EniId, Instance, InstanceId,
    Limits, NewEni, SecurityGroupId, Subnet, Tags, VpcId, Which, Why,
};

use crate::Cloud;
use crate::request::{Attribute, Filter, Page, Reply, Request, Search};

/// EC2 without a network between.
#[derive(Clone)]
pub struct Client(Cloud);

impl Client {
    pub(crate) fn new(cloud: Cloud) -> Self {
        Self(cloud)
    }

    /// All pages of what a search finds.
    async fn pages<T>(
        &self,
        mut search: Search,
        request: fn(Search) -> Request,
        page: fn(Reply) -> Option<Page<T>>,
    ) -> Called<Vec<T>> {
        let mut all = Vec::new();
        loop {
            let request = request(search.clone());
            let action = request.action();
            let found = page(self.0.call(request).await?);
            let found = found.ok_or_else(|| not_understood(action, "another action's reply"))?;
            all.extend(found.items);
            match found.next_token {
                Some(token) => search.next_token = Some(token),
                None => return Ok(all),
            }
        }
    }

    async fn one_done(&self, request: Request) -> Called<()> {
        self.0.call(request).await.map(drop)
    }
}

fn not_understood(action: Action, why: &str) -> CallError {
    CallError {
        action,
        why: Why::NoAnswer(why.to_owned()),
    }
}

fn named(id: &str) -> Search {
    Search {
        ids: vec![id.to_owned()],
        ..Search::default()
    }
}

fn filtered<const N: usize>(filters: [(&str, &str); N]) -> Search {
    let filters = filters.map(|(name, value)| Filter {
        name: name.to_owned(),
        values: vec![value.to_owned()],
    });
    Search {
        filters: filters.into(),
        ..Search::default()
    }
}

impl Ec2 for Client {
    async fn instance(&self, id: &InstanceId) -> Called<Instance> {
        let page = |reply| match reply {
            Reply::Instances(page) => Some(page),
            _ => None,
        };
        let mut found = self.pages(named(&id.0), Request::DescribeInstances, page).await?;
        let machine = found.pop().filter(|machine| !machine.is_terminated);
        let missing = || {
            not_understood(
                Action::DescribeInstances,
                "the instance has no VPC: it is terminated",
            )
        };
        let machine = machine.ok_or_else(missing)?;
        let attachments = machine
            .interfaces
            .iter()
            .filter_map(|interface| interface.eni.attachment.as_ref());
        let device_indexes = attachments
            .filter(|attached| attached.card_index == 0)
            .map(|attached| attached.device_index);
        Ok(Instance {
            id: machine.id.clone(),
            instance_type: machine.instance_type.clone(),
            vpc: machine.vpc.clone(),
            subnet: machine.subnet.clone(),
            zone: machine.zone.clone(),
            device_indexes: device_indexes.collect(),
        })
    }

    async fn limits(&self, instance_type: &str) -> Called<Option<Limits>> {
        let page = |reply| match reply {
            Reply::InstanceTypes(page) => Some(page),
            _ => None,
        };
        let found = self
            .pages(named(instance_type), Request::DescribeInstanceTypes, page)
            .await;
        match found {
            Ok(mut types) => Ok(types.pop().map(|(_, limits)| limits)),
            Err(error) if error.code() == Some("InvalidInstanceType") => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn subnets(&self, vpc: &VpcId, zone: &str) -> Called<Vec<Subnet>> {
        let search = filtered([("vpc-id", &vpc.0), ("availability-zone", zone)]);
        let page = |reply| match reply {
            Reply::Subnets(page) => Some(page),
            _ => None,
        };
        self.pages(search, Request::DescribeSubnets, page).await
    }

    async fn interfaces(&self, which: &Which) -> Called<Vec<Eni>> {
        let search = match which {
            Which::AttachedTo(instance) => filtered([("attachment.instance-id", &instance.0)]),
            Which::Named(eni) => named(&eni.0),
            Which::Available {
                vpc,
                tag_key,
                tag_value: None,
            } => filtered([("status", "available"), ("vpc-id", &vpc.0), ("tag-key", tag_key)]),
            Which::Available {
                vpc,
                tag_key,
                tag_value: Some(value),
            } => {
                let tag = format!("tag:{tag_key}");
                filtered([("status", "available"), ("vpc-id", &vpc.0), (&tag, value)])
            }
        };
        let page = |reply| match reply {
            Reply::Interfaces(page) => Some(page),
            _ => None,
        };
        let found = self
            .pages(search, Request::DescribeNetworkInterfaces, page)
            .await?;
        Ok(found.into_iter().map(|interface| interface.eni).collect())
    }

    async fn create(&self, new: &NewEni) -> Called<Eni> {
        match self.0.call(Request::CreateNetworkInterface(new.clone())).await? {
            Reply::Created { interface, .. } => Ok(interface.eni),
            _ => Err(not_understood(Action::CreateNetworkInterface, "no interface")),
        }
    }

    async fn attach(&self, eni: &EniId, instance: &InstanceId, device_index: u32) -> Called<AttachmentId> {
        let request = Request::AttachNetworkInterface {
            eni: eni.clone(),
            instance: instance.clone(),
            device_index,
            card_index: 0,
        };
        match self.0.call(request).await? {
            Reply::Attached { attachment, .. } => Ok(attachment),
            _ => Err(not_understood(Action::AttachNetworkInterface, "no attachment")),
        }
    }

    async fn delete_on_termination(&self, eni: &EniId, attachment: &AttachmentId) -> Called<()> {
        let attribute = Attribute::DeleteOnTermination {
            attachment: attachment.clone(),
            value: true,
        };
        let eni = eni.clone();
        self.one_done(Request::ModifyNetworkInterfaceAttribute { eni, attribute })
            .await
    }

    async fn set_groups(&self, eni: &EniId, groups: &[SecurityGroupId]) -> Called<()> {
        let attribute = Attribute::Groups(groups.to_vec());
        let eni = eni.clone();
        self.one_done(Request::ModifyNetworkInterfaceAttribute { eni, attribute })
            .await
    }

    async fn tag(&self, eni: &EniId, tags: &Tags) -> Called<()> {
        let request = Request::CreateTags {
            resources: vec![eni.0.clone()],
            tags: tags.clone(),
        };
        self.one_done(request).await
    }

    async fn detach(&self, attachment: &AttachmentId) -> Called<()> {
        let attachment = attachment.clone();
        self.one_done(Request::DetachNetworkInterface { attachment })
            .await
    }

    async fn delete(&self, eni: &EniId) -> Called<()> {
        self.one_done(Request::DeleteNetworkInterface { eni: eni.clone() })
            .await
    }

    async fn assign(&self, eni: &EniId, amount: Amount) -> Called<Addresses> {
        let eni = eni.clone();
        let request = match amount {
            Amount::PrefixesV6(prefixes) => Request::AssignIpv6Addresses { eni, prefixes },
            Amount::Addresses(_) | Amount::Prefixes(_) => Request::AssignPrivateIpAddresses { eni, amount },
        };
        let action = request.action();
        match self.0.call(request).await? {
            Reply::Assigned { addresses, .. } => Ok(addresses),
            _ => Err(not_understood(action, "no addresses")),
        }
    }

    async fn unassign(&self, eni: &EniId, addresses: &Addresses) -> Called<()> {
        if !(addresses.secondary.is_empty() && addresses.prefixes.is_empty()) {
            let request = Request::UnassignPrivateIpAddresses {
                eni: eni.clone(),
                addresses: addresses.secondary.clone(),
                prefixes: addresses.prefixes.clone(),
            };
            self.one_done(request).await?;
        }
        if addresses.prefixes_v6.is_empty() {
            return Ok(());
        }
        let request = Request::UnassignIpv6Addresses {
            eni: eni.clone(),
            prefixes: addresses.prefixes_v6.clone(),
        };
        self.one_done(request).await
    }
}
