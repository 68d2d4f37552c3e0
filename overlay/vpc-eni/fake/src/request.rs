//! What is asked of EC2 and what comes back, whichever way it came: by the trait in this process or by HTTP.

use std::net::Ipv4Addr;

use ipnetwork::{Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use vpc_eni::ec2::{
    Action, Addresses, Amount, AttachmentId, Eni, EniId, InstanceId, Limits, NewEni, SecurityGroupId, Subnet,
    SubnetId, Tags, VpcId,
};

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the actions and members of EC2's API, by their names there"
)]
pub enum Request {
    AssignIpv6Addresses {
        eni: EniId,
        prefixes: u32,
    },
    AssignPrivateIpAddresses {
        eni: EniId,
        amount: Amount,
    },
    AttachNetworkInterface {
        eni: EniId,
        instance: InstanceId,
        device_index: u32,
        card_index: u32,
    },
    /// Without a client token where that is empty.
    CreateNetworkInterface(NewEni),
    CreateTags {
        resources: Vec<String>,
        tags: Tags,
    },
    DeleteNetworkInterface {
        eni: EniId,
    },
    DescribeInstanceTypes(Search),
    DescribeInstances(Search),
    DescribeNetworkInterfaces(Search),
    DescribeSecurityGroups(Search),
    DescribeSubnets(Search),
    DetachNetworkInterface {
        attachment: AttachmentId,
    },
    ModifyNetworkInterfaceAttribute {
        eni: EniId,
        attribute: Attribute,
    },
    UnassignIpv6Addresses {
        eni: EniId,
        prefixes: Vec<Ipv6Network>,
    },
    UnassignPrivateIpAddresses {
        eni: EniId,
        addresses: Vec<Ipv4Addr>,
        prefixes: Vec<Ipv4Network>,
    },
}

/// What of an interface is changed: one attribute in a call, as EC2 wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// Whether it goes with its instance.
    DeleteOnTermination {
        /// The attachment, which must be the interface's.
        attachment: AttachmentId,
        /// Whether it does.
        value: bool,
    },
    /// Its security groups, in place of those it has.
    Groups(Vec<SecurityGroupId>),
}

/// Which objects a Describe is after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// Those of these names, each of which must be there; any, where it is empty.
    pub ids: Vec<String>,
    /// What each must be like.
    pub filters: Vec<Filter>,
    /// How many at the most.
    pub max_results: Option<u32>,
    /// Where the last answer ended.
    pub next_token: Option<String>,
}

/// One property, with the values of which any will do (`*` stands for any text, `?` for one character).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// `attachment.instance-id`, `tag:KEY`, …
    pub name: String,
    /// Its values.
    pub values: Vec<String>,
}

impl Request {
    /// Its name in the API.
    #[must_use]
    pub const fn action(&self) -> Action {
        match self {
            Self::AssignIpv6Addresses { .. } => Action::AssignIpv6Addresses,
            Self::AssignPrivateIpAddresses { .. } => Action::AssignPrivateIpAddresses,
            Self::AttachNetworkInterface { .. } => Action::AttachNetworkInterface,
            Self::CreateNetworkInterface(_) => Action::CreateNetworkInterface,
            Self::CreateTags { .. } => Action::CreateTags,
            Self::DeleteNetworkInterface { .. } => Action::DeleteNetworkInterface,
            Self::DescribeInstanceTypes(_) => Action::DescribeInstanceTypes,
            Self::DescribeInstances(_) => Action::DescribeInstances,
            Self::DescribeNetworkInterfaces(_) => Action::DescribeNetworkInterfaces,
            Self::DescribeSecurityGroups(_) => Action::DescribeSecurityGroups,
            Self::DescribeSubnets(_) => Action::DescribeSubnets,
            Self::DetachNetworkInterface { .. } => Action::DetachNetworkInterface,
            Self::ModifyNetworkInterfaceAttribute { .. } => Action::ModifyNetworkInterfaceAttribute,
            Self::UnassignIpv6Addresses { .. } => Action::UnassignIpv6Addresses,
            Self::UnassignPrivateIpAddresses { .. } => Action::UnassignPrivateIpAddresses,
        }
    }
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is done, and there is nothing to say about it.
    Done,
    /// What an interface got, and no more than that.
    Assigned {
        /// The interface.
        eni: EniId,
        /// What is new.
        addresses: Addresses,
    },
    /// What an interface gave up.
    Unassigned {
        /// The interface.
        eni: EniId,
        /// What it gave up.
        addresses: Addresses,
    },
    /// An interface is being attached.
    Attached {
        /// The attachment.
        attachment: AttachmentId,
        /// The network card.
        card_index: u32,
    },
    /// A new interface.
    Created {
        /// The interface.
        interface: Box<Interface>,
        /// The token that it was asked for with.
        client_token: String,
    },
    /// Instance types by their names.
    InstanceTypes(Page<(String, Limits)>),
    /// Instances.
    Instances(Page<Machine>),
    /// Interfaces.
    Interfaces(Page<Interface>),
    /// Security groups, each with its VPC.
    SecurityGroups(Page<(SecurityGroup, VpcId)>),
    /// Subnets.
    Subnets(Page<Subnet>),
}

/// A part of what was searched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The objects.
    pub items: Vec<T>,
    /// Where the next page begins; `None` with the last.
    pub next_token: Option<String>,
}

/// An interface with what the trait's words leave out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// What the trait says.
    pub eni: Eni,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its availability zone.
    pub zone: String,
    /// How far its attachment is; there is one exactly where `eni.attachment` is.
    #[serde(skip)]
    pub progress: Option<Progress>,
}

/// How far an attachment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// When it was asked for.
    pub since: Instant,
    /// When it is `attached`.
    pub attached_at: Instant,
    /// When the instance has the device.
    pub device_at: Instant,
    /// When the detaching, where that was asked for, is over.
    pub gone_at: Option<Instant>,
}

impl Progress {
    /// `attaching`, `attached` or `detaching`.
    #[must_use]
    pub fn status(&self, now: Instant) -> &'static str {
        if self.gone_at.is_some() {
            "detaching"
        } else if now < self.attached_at {
            "attaching"
        } else {
            "attached"
        }
    }
}

impl Interface {
    /// `in-use` or `available`.
    #[must_use]
    pub const fn status(&self) -> &'static str {
        if self.eni.attachment.is_some() {
            "in-use"
        } else {
            "available"
        }
    }
}

/// An instance with what the trait's words leave out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub id: InstanceId,
    /// `m5.large`, …
    pub instance_type: String,
    /// Its VPC.
    pub vpc: VpcId,
    /// The primary interface's subnet.
    pub subnet: SubnetId,
    /// The availability zone.
    pub zone: String,
    /// Whether it is over: EC2 goes on telling of it for about an hour.
    pub is_terminated: bool,
    /// Its interfaces by device index; filled in where it is told of.
    #[serde(skip)]
    pub interfaces: Vec<Interface>,
}

/// A security group, as `DescribeSecurityGroups` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroup {
    /// Its name.
    pub id: SecurityGroupId,
    /// Its tags.
    pub tags: Tags,
}

/// Why EC2 does not do what it is asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// EC2's code.
    pub code: String,
    /// Words about it.
    pub message: String,
}

impl Refusal {
    /// A refusal of this code.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
        }
    }
}
