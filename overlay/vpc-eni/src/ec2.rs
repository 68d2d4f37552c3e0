//! What the manager asks of EC2: one call for each action, in the words of its API (version 2016-11-15), and what can
//! go wrong with each.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use model::MacAddr;
use serde::{Deserialize, Serialize};

/// A name that EC2 gave.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
    };
}

id!(
    /// A network interface: `eni-…`.
    EniId
);
id!(
    /// The attachment of an interface to an instance: `eni-attach-…`.
    AttachmentId
);
id!(
    /// An instance: `i-…`.
    InstanceId
);
id!(
    /// A subnet: `subnet-…`.
    SubnetId
);
id!(
    /// A VPC: `vpc-…`.
    VpcId
);
id!(
    /// A security group: `sg-…`.
    SecurityGroupId
);

/// A MAC address as its text form.
mod mac_as_text {
    use model::MacAddr;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(mac: &MacAddr, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(mac)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MacAddr, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Tags by key.
pub type Tags = BTreeMap<String, String>;

/// A network interface, as `DescribeNetworkInterfaces` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eni {
    /// Its name.
    pub id: EniId,
    /// Where its addresses are of.
    pub subnet: SubnetId,
    /// Its MAC address, by which the node finds the device.
    #[serde(with = "mac_as_text")]
    pub mac: MacAddr,
    /// What its maker wrote.
    pub description: String,
    /// Its tags.
    pub tags: Tags,
    /// Its security groups.
    pub groups: Vec<SecurityGroupId>,
    /// Its own address.
    pub primary: Ipv4Addr,
    /// Its secondary addresses.
    pub secondary: Vec<Ipv4Addr>,
    /// The `/28` blocks that are delegated to it.
    pub prefixes: Vec<Ipv4Network>,
    /// The `/80` blocks that are delegated to it.
    pub prefixes_v6: Vec<Ipv6Network>,
    /// `interface`, or `trunk`, `efa`, …: what is not `interface` is not the manager's.
    pub kind: String,
    /// Where it is attached.
    pub attachment: Option<Attached>,
}

/// Where an interface is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The attachment's own name.
    pub id: AttachmentId,
    /// The instance.
    pub instance: InstanceId,
    /// 0 is the instance's primary interface.
    pub device_index: u32,
    /// Which of the instance's network cards.
    pub card_index: u32,
    /// Whether it goes with its instance.
    pub delete_on_termination: bool,
}

/// An instance, as `DescribeInstances` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
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
    /// The device indexes of its first network card that are taken.
    pub device_indexes: Vec<u32>,
}

/// What an instance type allows, as `DescribeInstanceTypes` tells it; of the first network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How many interfaces can be attached.
    pub interfaces: u32,
    /// How many IPv4 addresses, or prefixes in their place, an interface can have, its own among them.
    pub addresses_per_interface: u32,
    /// Whether it is of the Nitro hypervisor, without which there are no prefixes.
    pub is_nitro: bool,
}

/// A subnet, as `DescribeSubnets` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Its name.
    pub id: SubnetId,
    /// Its VPC.
    pub vpc: VpcId,
    /// Its availability zone.
    pub zone: String,
    /// Its addresses.
    pub network: Ipv4Network,
    /// How many addresses nobody has.
    pub free_addresses: u32,
    /// Its tags.
    pub tags: Tags,
}

/// Which interfaces are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those of an instance.
    AttachedTo(InstanceId),
    /// Those that nobody has (`available`) in a VPC, with a tag.
    Available {
        /// The VPC.
        vpc: VpcId,
        /// The tag's key.
        tag_key: String,
        /// Its value; any, where it is `None`.
        tag_value: Option<String>,
    },
    /// One by its name.
    Named(EniId),
}

/// How many addresses of which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Amount {
    /// So many secondary addresses.
    Addresses(u32),
    /// So many `/28` blocks.
    Prefixes(u32),
    /// So many `/80` blocks.
    PrefixesV6(u32),
}

/// A new interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEni {
    /// Where its addresses are of.
    pub subnet: SubnetId,
    /// Its security groups.
    pub groups: Vec<SecurityGroupId>,
    /// What is written on it.
    pub description: String,
    /// Its tags, there from its first moment.
    pub tags: Tags,
    /// What it has besides its own address.
    pub amount: Amount,
    /// The same token makes one interface only, however often it is asked for.
    pub client_token: String,
}

/// What an interface gives up or was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Secondary addresses.
    pub secondary: Vec<Ipv4Addr>,
    /// `/28` blocks.
    pub prefixes: Vec<Ipv4Network>,
    /// `/80` blocks.
    pub prefixes_v6: Vec<Ipv6Network>,
}

impl Addresses {
    /// Each as a block; a single address is one of one.
    pub fn blocks(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        let secondary = self
            .secondary
            .iter()
            .map(|address| IpNetwork::from(IpAddr::V4(*address)));
        let prefixes = self.prefixes.iter().copied().map(IpNetwork::V4);
        secondary
            .chain(prefixes)
            .chain(self.prefixes_v6.iter().copied().map(IpNetwork::V6))
    }
}

impl FromIterator<IpNetwork> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpNetwork>>(blocks: I) -> Self {
        let mut addresses = Self::default();
        for block in blocks {
            match block {
                IpNetwork::V4(block) if block.prefix() == 32 => addresses.secondary.push(block.ip()),
                IpNetwork::V4(block) => addresses.prefixes.push(block),
                IpNetwork::V6(block) => addresses.prefixes_v6.push(block),
            }
        }
        addresses
    }
}

/// EC2's actions, by their names in the API: those that [`Ec2`] has, and what a fake EC2 answers besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[expect(missing_docs, reason = "EC2's documents say what each does")]
pub enum Action {
    AssignIpv6Addresses,
    AssignPrivateIpAddresses,
    AttachNetworkInterface,
    CreateNetworkInterface,
    CreateTags,
    DeleteNetworkInterface,
    DescribeInstanceTypes,
    DescribeInstances,
    DescribeNetworkInterfaces,
    DescribeSecurityGroups,
    DescribeSubnets,
    DetachNetworkInterface,
    ModifyNetworkInterfaceAttribute,
    UnassignIpv6Addresses,
    UnassignPrivateIpAddresses,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::AssignIpv6Addresses,
        Self::AssignPrivateIpAddresses,
        Self::AttachNetworkInterface,
        Self::CreateNetworkInterface,
        Self::CreateTags,
        Self::DeleteNetworkInterface,
        Self::DescribeInstanceTypes,
        Self::DescribeInstances,
        Self::DescribeNetworkInterfaces,
        Self::DescribeSecurityGroups,
        Self::DescribeSubnets,
        Self::DetachNetworkInterface,
        Self::ModifyNetworkInterfaceAttribute,
        Self::UnassignIpv6Addresses,
        Self::UnassignPrivateIpAddresses,
    ];

    /// Whether the manager asks for it, so that it must be allowed to.
    #[must_use]
    pub const fn is_needed(self) -> bool {
        !matches!(self, Self::DescribeSecurityGroups)
    }

    /// Whether it changes something.
    #[must_use]
    pub const fn changes(self) -> bool {
        !matches!(
            self,
            Self::DescribeInstanceTypes
                | Self::DescribeInstances
                | Self::DescribeNetworkInterfaces
                | Self::DescribeSecurityGroups
                | Self::DescribeSubnets
        )
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{action}: {why}")]
pub struct CallError {
    /// The call.
    pub action: Action,
    /// Why.
    pub why: Why,
}

/// What went wrong with a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// EC2 answered with an error, by its code (`RequestLimitExceeded`, …).
    #[error("{code}: {message}")]
    Refused {
        /// EC2's code.
        code: String,
        /// EC2's words.
        message: String,
    },
    /// There was nothing to sign the call with.
    #[error("no credentials: {0}")]
    NoCredentials(String),
    /// Nobody answered, or not in words that are understood: what was asked for may have happened.
    #[error("no answer: {0}")]
    NoAnswer(String),
}

/// What an error means for the manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Too many calls: later.
    Throttled,
    /// What the call names is not there, or not yet.
    NotFound,
    /// The subnet has no address left, or no whole block.
    SubnetExhausted,
    /// The interface has all the addresses it can have.
    InterfaceFull,
    /// The instance has all the interfaces it can have, or the account has.
    InterfaceLimit,
    /// The device index is taken.
    IndexTaken,
    /// The interface is attached.
    InUse,
    /// A security group is not there.
    NoSuchGroup,
    /// It is not allowed.
    Denied,
    /// It cannot be said whether it happened.
    Unknown,
    /// Something else.
    Other,
}

impl CallError {
    /// An error that EC2 answered with.
    #[must_use]
    pub fn refused(action: Action, code: &str, message: impl Into<String>) -> Self {
        let why = Why::Refused {
            code: code.to_owned(),
            message: message.into(),
        };
        Self { action, why }
    }

    /// EC2's code, where it answered.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match &self.why {
            Why::Refused { code, .. } => Some(code),
            Why::NoCredentials(_) | Why::NoAnswer(_) => None,
        }
    }

    /// What it means (EC2's "Error codes for the Amazon EC2 API").
    #[must_use]
    pub fn meaning(&self) -> Meaning {
        let code = match &self.why {
            Why::Refused { code, .. } => code.as_str(),
            Why::NoCredentials(_) => return Meaning::Denied,
            Why::NoAnswer(_) => return Meaning::Unknown,
        };
        match code {
            "RequestLimitExceeded"
            | "Throttling"
            | "ThrottlingException"
            | "EC2ThrottledException"
            | "Client.RequestLimitExceeded" => Meaning::Throttled,
            "InvalidNetworkInterfaceID.NotFound"
            | "InvalidNetworkInterfaceId.NotFound"
            | "InvalidAttachmentID.NotFound"
            | "InvalidInstanceID.NotFound"
            | "InvalidSubnetID.NotFound" => Meaning::NotFound,
            "InsufficientFreeAddressesInSubnet" | "InsufficientCidrBlocks" => Meaning::SubnetExhausted,
            "PrivateIpAddressLimitExceeded" | "Ipv6AddressLimitExceeded" => Meaning::InterfaceFull,
            "AttachmentLimitExceeded" | "NetworkInterfaceLimitExceeded" => Meaning::InterfaceLimit,
            "InvalidGroup.NotFound" | "InvalidSecurityGroupID.NotFound" | "InvalidGroupId.NotFound" => {
                Meaning::NoSuchGroup
            }
            "UnauthorizedOperation"
            | "AuthFailure"
            | "AccessDenied"
            | "InvalidClientTokenId"
            | "ExpiredToken"
            | "RequestExpired"
            | "OptInRequired"
            | "SignatureDoesNotMatch" => Meaning::Denied,
            "InternalError" | "InternalFailure" | "Unavailable" | "ServiceUnavailable" => Meaning::Unknown,
            "InvalidNetworkInterface.InUse" => Meaning::InUse,
            // EC2 has one code for everything that is wrong with a parameter.
            "InvalidParameterValue" if self.speaks_of("currently in use") => Meaning::InUse,
            "InvalidParameterValue"
                if self.speaks_of("device index") || self.speaks_of("already has an interface") =>
            {
                Meaning::IndexTaken
            }
            _ => Meaning::Other,
        }
    }

    fn speaks_of(&self, words: &str) -> bool {
        matches!(&self.why, Why::Refused { message, .. } if message.to_lowercase().contains(words))
    }
}

/// What a call gives.
pub type Called<T> = Result<T, CallError>;

/// EC2, or what stands for it in tests. A call is one request: whoever implements it does not repeat one that changes
/// something.
pub trait Ec2: Send + Sync + 'static {
    /// `DescribeInstances`, of one.
    fn instance(&self, id: &InstanceId) -> impl Future<Output = Called<Instance>> + Send;

    /// `DescribeInstanceTypes`, of one; `None` where there is no such type.
    fn limits(&self, instance_type: &str) -> impl Future<Output = Called<Option<Limits>>> + Send;

    /// `DescribeSubnets`, of a VPC and an availability zone.
    fn subnets(&self, vpc: &VpcId, zone: &str) -> impl Future<Output = Called<Vec<Subnet>>> + Send;

    /// `DescribeNetworkInterfaces`, all pages.
    fn interfaces(&self, which: &Which) -> impl Future<Output = Called<Vec<Eni>>> + Send;

    /// `CreateNetworkInterface`.
    fn create(&self, new: &NewEni) -> impl Future<Output = Called<Eni>> + Send;

    /// `AttachNetworkInterface`, to the first network card.
    fn attach(
        &self,
        eni: &EniId,
        instance: &InstanceId,
        device_index: u32,
    ) -> impl Future<Output = Called<AttachmentId>> + Send;

    /// `ModifyNetworkInterfaceAttribute`: it goes with its instance.
    fn delete_on_termination(
        &self,
        eni: &EniId,
        attachment: &AttachmentId,
    ) -> impl Future<Output = Called<()>> + Send;

    /// `ModifyNetworkInterfaceAttribute`: its security groups.
    fn set_groups(&self, eni: &EniId, groups: &[SecurityGroupId]) -> impl Future<Output = Called<()>> + Send;

    /// `CreateTags`.
    fn tag(&self, eni: &EniId, tags: &Tags) -> impl Future<Output = Called<()>> + Send;

    /// `DetachNetworkInterface`.
    fn detach(&self, attachment: &AttachmentId) -> impl Future<Output = Called<()>> + Send;

    /// `DeleteNetworkInterface`.
    fn delete(&self, eni: &EniId) -> impl Future<Output = Called<()>> + Send;

    /// `AssignPrivateIpAddresses` or `AssignIpv6Addresses`; what came.
    fn assign(&self, eni: &EniId, amount: Amount) -> impl Future<Output = Called<Addresses>> + Send;

    /// `UnassignPrivateIpAddresses`, `UnassignIpv6Addresses`.
    fn unassign(&self, eni: &EniId, addresses: &Addresses) -> impl Future<Output = Called<()>> + Send;
}

/// What the instance tells itself (IMDSv2): who it is. Which interfaces it has is EC2's to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `instance-id`.
    pub instance: InstanceId,
    /// `placement/region`.
    pub region: String,
    /// `placement/availability-zone`.
    pub zone: String,
    /// `instance-type`.
    pub instance_type: String,
    /// `mac`: the primary interface's.
    pub primary_mac: MacAddr,
}

/// The instance's metadata service, or what stands for it in tests.
pub trait Metadata: Send + Sync + 'static {
    /// Who the instance is.
    fn identity(&self) -> impl Future<Output = Result<Identity, MetadataError>> + Send;

    /// `network/interfaces/macs/MAC/vpc-ipv4-cidr-blocks`, of the primary interface: one at least.
    fn vpc_networks(
        &self,
        primary: MacAddr,
    ) -> impl Future<Output = Result<Vec<IpNetwork>, MetadataError>> + Send;
}

/// Why the metadata service gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// Nobody answers: it may be disabled, or the hop limit of its answers too short for a pod.
    #[error("the instance's metadata service does not answer: {0}")]
    NoAnswer(String),
    /// It answers, but not with that.
    #[error("the instance's metadata service has no {path}: {why}")]
    Missing {
        /// What was asked for.
        path: String,
        /// What it said.
        why: String,
    },
}
