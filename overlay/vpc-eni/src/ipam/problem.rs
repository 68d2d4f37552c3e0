//! What does not work and what to do about it: for STATUS, `causeway doctor` and the log.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::ec2::{CallError, EniId, Meaning, SubnetId, Why};
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
            | Self::Device(eni) => Some(eni),
            Self::Identity
            | Self::Limits
            | Self::Interfaces
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

/// A problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
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

    /// What keeps new addresses from coming.
    #[must_use]
    pub fn growth(&self) -> Option<String> {
        let mut problems = self.0.iter().filter(|(subject, _)| subject.is_growth());
        problems.next().map(|(_, noted)| noted.problem.to_string())
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
        Subject::Subnets => "subnets".to_owned(),
        Subject::Subnet(subnet) => format!("subnet {subnet}"),
        Subject::NewInterface => "new interface".to_owned(),
        Subject::Interface(eni) => format!("interface {eni}"),
        Subject::GivingBack(eni) => format!("addresses back from {eni}"),
        Subject::Removal(eni) => format!("removal of {eni}"),
        Subject::Termination(eni) => format!("termination of {eni}"),
        Subject::Groups(eni) => format!("security groups of {eni}"),
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
    let action = error.action;
    let advice = match (&error.why, error.meaning()) {
        (Why::NoCredentials(_), _) => "give the agent credentials: an IAM role of its service account (IRSA or Pod \
             Identity), or of the instance, whose metadata service it must reach"
            .to_owned(),
        (_, Meaning::Denied) => {
            format!("allow ec2:{action} in the policy of the agent's IAM role, and see that its credentials are valid")
        }
        (_, Meaning::Throttled) => {
            "EC2 refuses calls of this account for being too many; it is tried again, ever more seldom".to_owned()
        }
        (_, Meaning::SubnetExhausted) => {
            "free addresses of the subnet, or give pods another one (a subnet with the tag kubernetes.io/role/cni=1, or \
             an ENIConfig); fragments shorter than /28 serve no prefixes (see subnet CIDR reservations)"
                .to_owned()
        }
        (_, Meaning::InterfaceLimit) => {
            "the instance type, or the account, allows no more interfaces: set MAX_ENI, or ask AWS for a higher quota"
                .to_owned()
        }
        (_, Meaning::NoSuchGroup) => {
            "a security group that the interfaces shall have is gone: mend the primary interface's groups or the \
             ENIConfig"
                .to_owned()
        }
        (_, Meaning::Unknown) => {
            "EC2's endpoint of this region must be reachable from the node (route, VPC endpoint, proxy, AWS_EC2_ENDPOINT \
             and AWS_REGION); it is tried again"
                .to_owned()
        }
        (_, Meaning::NotFound | Meaning::InterfaceFull | Meaning::IndexTaken | Meaning::InUse) => "it is looked at anew".to_owned(),
        (_, Meaning::Other) => "it is tried again; the code says what EC2 has against it".to_owned(),
    };
    Problem {
        what: error.to_string(),
        advice,
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
        what: format!("custom networking is on, and {none}"),
        advice,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
