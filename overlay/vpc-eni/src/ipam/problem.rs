//! What does not work and what to do about it: for STATUS, `causeway doctor` and the log.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::ec2::{Action, CallError, EniId, Meaning, SubnetId, Why};
use crate::home::{NamedBy, NoEniConfig};

/// What a problem is about. One subject has one problem.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Subject {
    /// Who the instance is.
    Identity,
    /// What its type allows.
    Limits,
    /// Which interfaces it has.
    Interfaces,
    /// Which networks the VPC has.
    Networks,
    /// Which subnets there are.
    Subnets,
    /// Addresses of a subnet.
    Subnet(SubnetId),
    /// Another interface.
    NewInterface,
    /// More addresses for one that there is.
    Interface(EniId),
    /// Addresses that one gives back.
    GivingBack(EniId),
    /// One that goes.
    Removal(EniId),
    /// That one goes with its instance.
    Termination(EniId),
    /// The security groups of one.
    Groups(EniId),
    /// The tags of one.
    Tags(EniId),
    /// Its device on this node.
    Device(EniId),
    /// Room on this instance.
    Room,
    /// Pods whose addresses no interface has.
    Stranded,
    /// The record of what was begun.
    File,
    /// Interfaces that nobody has.
    Leaks,
}

impl Subject {
    /// The interface that it is about.
    #[must_use]
    pub const fn eni(&self) -> Option<&EniId> {
        match self {
            Self::Interface(eni)
            | Self::GivingBack(eni)
            | Self::Removal(eni)
            | Self::Termination(eni)
            | Self::Groups(eni)
            | Self::Tags(eni)
            | Self::Device(eni) => Some(eni),
            Self::Identity
            | Self::Limits
            | Self::Interfaces
            | Self::Networks
            | Self::Subnets
            | Self::Subnet(_)
            | Self::NewInterface
            | Self::Room
            | Self::Stranded
            | Self::File
            | Self::Leaks => None,
        }
    }

    /// Whether its problem keeps new addresses from coming.
    const fn is_growth(&self) -> bool {
        matches!(
            self,
            Self::Identity
                | Self::Limits
                | Self::Interfaces
                | Self::Subnets
                | Self::Subnet(_)
                | Self::NewInterface
                | Self::Interface(_)
                | Self::Room
                | Self::File
        )
    }
}

/// What kind of thing a problem is: what somebody has to look for, whatever it befell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Nothing to sign calls with, or nothing that EC2 takes.
    Credentials,
    /// A right that the agent's role lacks.
    Permission,
    /// The instance's metadata service.
    Metadata,
    /// EC2 knows nothing of this instance: it is another region's that is asked.
    Region,
    /// EC2 does not know what the instance's type allows.
    InstanceType,
    /// A subnet without addresses, or without whole blocks.
    Subnet,
    /// No more interfaces, by the instance type or the account.
    InterfaceLimit,
    /// A security group that is gone.
    SecurityGroup,
    /// More calls than EC2 takes of the account.
    Throttling,
    /// EC2 does not answer.
    Unreachable,
    /// The instance has all the addresses that it can have, and pods wait.
    Full,
    /// Pods whose addresses are not the node's any more.
    Stranded,
    /// An interface without a device.
    Device,
    /// The node's `ENIConfig`.
    EniConfig,
    /// The record on disk.
    Record,
    /// Something else that EC2 says.
    Refused,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Credentials,
        Self::Permission,
        Self::Metadata,
        Self::Region,
        Self::InstanceType,
        Self::Subnet,
        Self::InterfaceLimit,
        Self::SecurityGroup,
        Self::Throttling,
        Self::Unreachable,
        Self::Full,
        Self::Stranded,
        Self::Device,
        Self::EniConfig,
        Self::Record,
        Self::Refused,
    ];

    /// Its name as a finding of `causeway doctor`, which never changes its meaning.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::Credentials => "vpc-credentials",
            Self::Permission => "vpc-permission",
            Self::Metadata => "vpc-metadata",
            Self::Region => "vpc-region",
            Self::InstanceType => "vpc-instance-type",
            Self::Subnet => "vpc-subnet-exhausted",
            Self::InterfaceLimit => "vpc-interface-limit",
            Self::SecurityGroup => "vpc-security-group",
            Self::Throttling => "vpc-throttled",
            Self::Unreachable => "vpc-unreachable",
            Self::Full => "vpc-full",
            Self::Stranded => "vpc-stranded",
            Self::Device => "vpc-interface-device",
            Self::EniConfig => "vpc-eniconfig",
            Self::Record => "vpc-record",
            Self::Refused => "vpc-refused",
        }
    }
}

/// A problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What kind of thing it is.
    pub kind: Kind,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub advice: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.advice)
    }
}

/// The problems that there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(BTreeMap<Subject, Noted>);

/// A problem with its subject's word.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Noted {
    key: String,
    problem: Problem,
}

impl Serialize for Problems {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl Problems {
    /// Notes one; it is logged when it is new.
    pub fn note(&mut self, subject: &Subject, problem: Problem) {
        let key = key(subject);
        if self.0.get(subject).is_none_or(|noted| noted.problem != problem) {
            tracing::warn!(
                subject = key,
                problem = problem.what,
                advice = problem.advice,
                "VPC addresses: a problem"
            );
        }
        self.0.insert(subject.clone(), Noted { key, problem });
    }

    /// It is over.
    pub fn ends(&mut self, subject: &Subject) {
        if let Some(noted) = self.0.remove(subject) {
            tracing::info!(subject = noted.key, "VPC addresses: the problem is over");
        }
    }

    /// Those are over of whose subjects `keep` does not hold.
    pub fn retain(&mut self, keep: impl Fn(&Subject) -> bool) {
        let over: Vec<Subject> = self.0.keys().filter(|subject| !keep(subject)).cloned().collect();
        for subject in over {
            self.ends(&subject);
        }
    }

    /// All of them, by their subject.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Problem)> {
        self.0.values().map(|noted| (noted.key.as_str(), &noted.problem))
    }

    /// What keeps new addresses from coming: all of it, since what comes first need not be what can be mended.
    #[must_use]
    pub fn growth(&self) -> Option<String> {
        let problems = self.0.iter().filter(|(subject, _)| subject.is_growth());
        let mut told: Vec<String> = problems.map(|(_, noted)| noted.problem.to_string()).collect();
        told.dedup();
        (!told.is_empty()).then(|| told.join("; "))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A subject as a word of metrics and findings: `interface eni-1`.
#[must_use]
pub fn key(subject: &Subject) -> String {
    match subject {
        Subject::Identity => "identity".to_owned(),
        Subject::Limits => "limits".to_owned(),
        Subject::Interfaces => "interfaces".to_owned(),
        Subject::Networks => "networks".to_owned(),
        Subject::Subnets => "subnets".to_owned(),
        Subject::Subnet(subnet) => format!("subnet {subnet}"),
        Subject::NewInterface => "new interface".to_owned(),
        Subject::Interface(eni) => format!("interface {eni}"),
        Subject::GivingBack(eni) => format!("addresses back from {eni}"),
        Subject::Removal(eni) => format!("removal of {eni}"),
        Subject::Termination(eni) => format!("termination of {eni}"),
        Subject::Groups(eni) => format!("security groups of {eni}"),
        Subject::Tags(eni) => format!("tags of {eni}"),
        Subject::Device(eni) => format!("device of {eni}"),
        Subject::Room => "room".to_owned(),
        Subject::Stranded => "stranded".to_owned(),
        Subject::File => "record".to_owned(),
        Subject::Leaks => "leaks".to_owned(),
    }
}

/// A call that failed, as a problem.
#[must_use]
pub fn of_call(error: &CallError) -> Problem {
    let kind = kind_of(error);
    Problem {
        kind,
        what: error.to_string(),
        advice: advice(kind, error.action),
    }
}

fn kind_of(error: &CallError) -> Kind {
    if matches!(error.why, Why::NoCredentials(_)) {
        return Kind::Credentials;
    }
    match error.meaning() {
        // EC2 takes credentials before it looks at rights.
        Meaning::Denied => match error.code() {
            Some("UnauthorizedOperation" | "AccessDenied") => Kind::Permission,
            _ => Kind::Credentials,
        },
        Meaning::Throttled => Kind::Throttling,
        Meaning::SubnetExhausted => Kind::Subnet,
        Meaning::InterfaceLimit => Kind::InterfaceLimit,
        Meaning::NoSuchGroup => Kind::SecurityGroup,
        Meaning::Unknown => Kind::Unreachable,
        // Who asks is that instance.
        Meaning::NotFound if error.action == Action::DescribeInstances => Kind::Region,
        Meaning::NotFound
        | Meaning::InterfaceFull
        | Meaning::IndexTaken
        | Meaning::InUse
        | Meaning::Other => Kind::Refused,
    }
}

/// What to do where a call failed.
fn advice(kind: Kind, action: Action) -> String {
    let advice = match kind {
        Kind::Credentials => {
            "give the agent credentials that are valid: an IAM role of its service account (IRSA or Pod Identity), or \
             of the instance, whose metadata service it must reach; the node's clock must be right"
        }
        Kind::Permission => {
            return format!("allow ec2:{action} in the policy of the agent's IAM role; it is tried again");
        }
        Kind::Throttling => {
            "EC2 refuses calls of this account for being too many; it is tried again, ever more seldom"
        }
        Kind::Subnet => {
            "free addresses of the subnet, or give pods another one (a subnet with the tag kubernetes.io/role/cni=1, or \
             an ENIConfig); fragments shorter than /28 serve no prefixes (see subnet CIDR reservations)"
        }
        Kind::InterfaceLimit => {
            "the instance type, or the account, allows no more interfaces: set MAX_ENI, or ask AWS for a higher quota"
        }
        Kind::SecurityGroup => {
            "a security group that the interfaces shall have is gone: mend the primary interface's groups or the \
             ENIConfig"
        }
        Kind::Unreachable => {
            "EC2's endpoint of this region must be reachable from the node (route, VPC endpoint, proxy, AWS_EC2_ENDPOINT \
             and AWS_REGION); it is tried again"
        }
        Kind::Region => REGION,
        _ => "it is tried again; the code says what EC2 has against it",
    };
    advice.to_owned()
}

/// What to do where EC2 does not know what is there.
pub(super) const REGION: &str =
    "see that the agent asks EC2 of the instance's own region (AWS_REGION, AWS_EC2_ENDPOINT)";

/// Nobody tells who this instance is.
#[must_use]
pub fn without_metadata(why: &dyn std::error::Error) -> Problem {
    Problem {
        kind: Kind::Metadata,
        what: model::with_causes(why),
        advice: "the agent must reach 169.254.169.254 from the node's own network: enable the instance's metadata service \
                 (HttpEndpoint), IMDSv2, with a hop limit of 2 where the agent is not on the node's network"
            .to_owned(),
    }
}

/// Custom networking without an `ENIConfig`, as a problem.
#[must_use]
pub fn without_eni_config(none: &NoEniConfig) -> Problem {
    let advice = match none {
        NoEniConfig::Unread => {
            "the API server must answer the agent, have the CRD eniconfigs.crd.k8s.amazonaws.com, and let the agent's \
             role list and watch nodes and eniconfigs"
                .to_owned()
        }
        NoEniConfig::NoNode(_) => "nodeName must be what the kubelet calls the node".to_owned(),
        NoEniConfig::Missing { named_by: NamedBy::Nobody(key), .. } => {
            format!("label the Node with {key}, or make an ENIConfig of that name")
        }
        NoEniConfig::Missing { .. } => {
            "make that ENIConfig, with a subnet of the node's zone, or have the Node name another".to_owned()
        }
        NoEniConfig::Unusable { .. } => {
            "its spec.subnet is the id of a subnet of the node's zone, and spec.securityGroups a list of ids".to_owned()
        }
    };
    Problem {
        kind: Kind::EniConfig,
        what: format!("custom networking is on, and {none}"),
        advice,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_call_that_failed_is_told_by_what_has_to_be_mended() {
        let refused = |action, code: &str| CallError::refused(action, code, "words");
        let why = |why| CallError {
            action: Action::DescribeSubnets,
            why,
        };
        let create = Action::CreateNetworkInterface;
        let rows = [
            (
                why(Why::NoCredentials("none".into())),
                Kind::Credentials,
                "IRSA or Pod Identity",
            ),
            (
                why(Why::NoAnswer("timeout".into())),
                Kind::Unreachable,
                "AWS_EC2_ENDPOINT",
            ),
            (refused(create, "AuthFailure"), Kind::Credentials, "clock"),
            (
                refused(create, "ExpiredToken"),
                Kind::Credentials,
                "IRSA or Pod Identity",
            ),
            (
                refused(create, "UnauthorizedOperation"),
                Kind::Permission,
                "allow ec2:CreateNetworkInterface in the policy",
            ),
            (
                refused(Action::DescribeInstances, "InvalidInstanceID.NotFound"),
                Kind::Region,
                "AWS_REGION",
            ),
            (
                refused(Action::AttachNetworkInterface, "InvalidInstanceID.NotFound"),
                Kind::Refused,
                "tried again",
            ),
            (
                refused(create, "InsufficientFreeAddressesInSubnet"),
                Kind::Subnet,
                "kubernetes.io/role/cni=1",
            ),
            (
                refused(create, "InsufficientCidrBlocks"),
                Kind::Subnet,
                "CIDR reservations",
            ),
            (
                refused(create, "NetworkInterfaceLimitExceeded"),
                Kind::InterfaceLimit,
                "quota",
            ),
            (
                refused(create, "InvalidGroup.NotFound"),
                Kind::SecurityGroup,
                "security group",
            ),
            (
                refused(create, "RequestLimitExceeded"),
                Kind::Throttling,
                "too many",
            ),
            (refused(create, "InvalidParameterValue"), Kind::Refused, "code"),
        ];
        for (error, kind, advice) in rows {
            let problem = of_call(&error);
            assert_eq!((problem.kind, problem.what), (kind, error.to_string()));
            assert!(problem.advice.contains(advice), "{error}: {}", problem.advice);
        }
    }

    #[test]
    fn kinds_have_names_of_their_own() {
        let names: BTreeSet<&str> = Kind::ALL.into_iter().map(Kind::id).collect();
        assert_eq!(names.len(), Kind::ALL.len());
    }

    #[test]
    fn all_that_keeps_addresses_from_coming_is_told_once() {
        let mut problems = Problems::default();
        assert_eq!(problems.growth(), None);
        let problem = |code| {
            of_call(&CallError::refused(
                Action::AssignPrivateIpAddresses,
                code,
                "words",
            ))
        };
        let denied = problem("UnauthorizedOperation");
        problems.note(&Subject::Interface("eni-1".into()), denied.clone());
        problems.note(&Subject::Interface("eni-2".into()), denied.clone());
        let exhausted = problem("InsufficientFreeAddressesInSubnet");
        problems.note(&Subject::Subnet("subnet-1".into()), exhausted.clone());
        // Keeps nothing from coming.
        problems.note(&Subject::Leaks, problem("RequestLimitExceeded"));
        assert_eq!(problems.growth(), Some(format!("{exhausted}; {denied}")));
    }

    #[test]
    fn what_is_missing_for_custom_networking_is_named_with_what_to_do() {
        let missing = |named_by| NoEniConfig::Missing {
            name: "a".to_owned(),
            named_by,
        };
        let rows = [
            (
                missing(NamedBy::Label("zone".to_owned())),
                "custom networking is on, and there is no ENIConfig a, which the Node's label zone names: make that \
                 ENIConfig, with a subnet of the node's zone, or have the Node name another",
            ),
            (
                missing(NamedBy::Nobody("zone".to_owned())),
                "custom networking is on, and there is no ENIConfig a, which is meant where the Node names none: label \
                 the Node with zone, or make an ENIConfig of that name",
            ),
            (
                NoEniConfig::Unusable {
                    name: "a".to_owned(),
                    why: "spec: missing field `subnet`".to_owned(),
                },
                "custom networking is on, and the ENIConfig a cannot be used: spec: missing field `subnet`: its \
                 spec.subnet is the id of a subnet of the node's zone, and spec.securityGroups a list of ids",
            ),
        ];
        for (none, expected) in rows {
            assert_eq!(without_eni_config(&none).to_string(), expected);
        }
    }
}
