//! Pods with addresses of an AWS VPC: what the manager of addresses is refused, in the words in which it is told there,
//! what the kernel has against the plan, and whether amazon-vpc-cni-k8s runs beside this agent.

use std::path::Path;

use model::NodeName;
use netlink::nft::Nft;
use netlink::{Netlink, nft};
use overlay::pods::Assigned;
use overlay::vpc::audit::{self, AuditError, Difference, Part, Whose};
use overlay::vpc::{Plan, aws_node};
use vpc_eni::ipam::Status;

use super::finding;
use super::network::pod_text;
use crate::findings::{Finding, Severity};

/// Pods that need no address of their own: those on the node's network. The peer's figures for `--max-pods` add as many.
const ON_THE_NODES_NETWORK: u32 = 2;

/// What helps where every pass of the agent mends it.
const MENDS: &str =
    "the agent mends it when it sees the change: find who changes it (another agent, a script)";

/// One finding for each thing that does not work, by its kind.
#[must_use]
pub fn problems(status: &Status) -> Vec<Finding> {
    let told = status.problems.iter().map(|(subject, problem)| {
        finding(
            problem.kind.id(),
            format!("VPC addresses: {subject}"),
            problem.what.clone(),
            &problem.advice,
        )
    });
    told.collect()
}

/// Pods that have no address yet.
#[must_use]
pub fn waiting(status: &Status) -> Option<Finding> {
    let Status {
        waiting,
        assigned,
        total,
        cooling,
        ..
    } = status;
    (*waiting > 0).then(|| {
        finding(
            "vpc-pods-waiting",
            "this node".to_owned(),
            format!(
                "{waiting} pods wait for an address: of {total} that the node has pods have {assigned}, and {cooling} cool \
                 down"
            ),
            "see what else is found of VPC addresses; where nothing is, EC2 is slow, or addresses may not be given again \
             yet (IP_COOLDOWN_PERIOD, 30 s): keep more ready (WARM_IP_TARGET, MINIMUM_IP_TARGET)",
        )
    })
}

/// Interfaces that cost addresses and serve nobody.
#[must_use]
pub fn leaked(status: &Status) -> Vec<Finding> {
    let told = status.leaked.iter().map(|eni| Finding {
        severity: Severity::Note,
        ..finding(
            "vpc-leaked-interface",
            format!("interface {eni}"),
            "it is attached to no instance: an agent that ended made it, or could not attach it".to_owned(),
            "none is needed: this agent deletes it, and tries that every 20 minutes; where it stays, see what else is found of \
             leaks",
        )
    });
    told.collect()
}

/// A kubelet that takes more pods than the instance has addresses for.
#[must_use]
pub fn most_pods(node: &NodeName, most_pods: u32, status: &Status) -> Option<Finding> {
    let most = status.most_addresses;
    let instance_type = status.instance_type.as_deref().unwrap_or("this type");
    (most > 0 && most_pods > most + ON_THE_NODES_NETWORK).then(|| Finding {
        severity: Severity::Note,
        ..finding(
            "vpc-max-pods",
            format!("Node {node}"),
            format!(
                "its kubelet takes {most_pods} pods, and an instance of {instance_type} has addresses for {most}: pods \
                 beyond that wait here for one"
            ),
            "give the kubelet --max-pods of that and the pods on the node's own network; or turn \
             ENABLE_PREFIX_DELEGATION on, raise MAX_ENI, or take a larger type",
        )
    })
}

/// One finding for each thing that the kernel does not have as planned.
///
/// # Errors
/// When the kernel cannot be read.
pub fn differences(plan: &Plan, pods: &[Assigned]) -> Result<Vec<Finding>, AuditError> {
    let mut kernel = Netlink::open()?;
    let mut found = audit::differences(&mut kernel, plan, pods)?;
    found.extend(audit::reverse_paths(&mut kernel, plan)?);
    found.extend(audit::translation(&mut kernel, &mut Nft::open()?, plan)?);
    Ok(found.iter().map(told).collect())
}

fn told(difference: &Difference) -> Finding {
    let Difference { part, whose, said } = difference;
    let (id, repair) = match part {
        Part::Rule => ("vpc-rule", MENDS),
        Part::Table => ("vpc-table", MENDS),
        Part::Device => ("vpc-device", MENDS),
        Part::ReversePath => (
            "vpc-rp-filter",
            "answers from out of the VPC to pods of other interfaces are dropped: find what sets it (sysctl.d)",
        ),
        Part::Translation => ("vpc-translation", MENDS),
        Part::PodRoute => ("pod-route", MENDS),
        Part::PodDevice => (
            "pod-device",
            "ip link set DEVICE up; where it is gone, delete the pod: its device comes with a new one",
        ),
    };
    let object = match whose {
        Whose::Rule(rule) => format!("rule {rule}"),
        Whose::Table(table) => format!("table {table}"),
        Whose::Device(device) => format!("device {device}"),
        Whose::ThisNode => "this node".to_owned(),
        Whose::Pod(name, container) => pod_text(name.as_ref(), container),
    };
    finding(id, object, said.clone(), repair)
}

/// amazon-vpc-cni-k8s on the same node: both give pods addresses of the same interfaces, and its rules translate as well.
/// `directory` is where it has its socket, since its 1.23.
///
/// # Errors
/// When the rules cannot be listed.
pub fn peer(directory: &Path) -> Result<Vec<Finding>, nft::Error> {
    let left = aws_node::rules_left(&mut Nft::open()?)?;
    let runs = aws_node::is_running(directory, None).then(|| {
        finding(
            "vpc-aws-node",
            "DaemonSet kube-system/aws-node".to_owned(),
            format!(
                "it runs on this node as well: it answers in {}, and gives pods addresses that this agent gives, too",
                directory.display()
            ),
            "keep it off this node, or take this agent off: node/deploy/VPC-ENI.md",
        )
    });
    Ok(runs
        .into_iter()
        .chain(left.into_iter().map(peers_rules))
        .collect())
}

/// Its rules without it: an agent that went left them.
fn peers_rules(object: String) -> Finding {
    finding(
        "vpc-aws-node-rules",
        object,
        "aws-node left it: what leaves the VPC goes by its settings, and by interfaces that it knew"
            .to_owned(),
        "take its rules away once no aws-node runs here: iptables-save | grep -e AWS- -e 'AWS, ', then -D and -X in each \
         table, and nft delete table ip aws-cni; what is translated goes on here",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            total: 3,
            assigned: 2,
            cooling: 1,
            most_addresses: 9,
            instance_type: Some("t3.small".to_owned()),
            ..Status::default()
        }
    }

    #[test]
    fn pods_that_wait_are_told_with_what_there_is() {
        assert_eq!(waiting(&status()), None);
        let told = waiting(&Status {
            waiting: 2,
            ..status()
        });
        let expected = "2 pods wait for an address: of 3 that the node has pods have 2, and 1 cool down";
        assert_eq!(told.map(|finding| finding.evidence).as_deref(), Some(expected));
    }

    #[test]
    fn a_kubelet_that_takes_more_pods_than_there_are_addresses_is_told() {
        let told = |most, status: &Status| most_pods(&"n".into(), most, status).map(|told| told.evidence);
        assert_eq!(told(11, &status()), None);
        let evidence = told(12, &status()).expect("one");
        assert!(
            evidence
                .starts_with("its kubelet takes 12 pods, and an instance of t3.small has addresses for 9"),
            "{evidence}"
        );
        assert_eq!(told(110, &Status::default()), None, "nothing is known yet");
    }

    #[test]
    fn what_differs_is_told_of_what_it_is_about() {
        let row = |part, whose, id: &str, object: &str| {
            let told = told(&Difference {
                part,
                whose,
                said: "it is not there".to_owned(),
            });
            assert_eq!(
                (told.id.as_str(), told.object.as_str(), told.evidence.as_str()),
                (id, object, "it is not there")
            );
        };
        let rule = Whose::Rule("512: to 10.0.0.5/32 table 254".to_owned());
        row(Part::Rule, rule, "vpc-rule", "rule 512: to 10.0.0.5/32 table 254");
        row(Part::Table, Whose::Table(2), "vpc-table", "table 2");
        row(
            Part::Device,
            Whose::Device("eth1".into()),
            "vpc-device",
            "device eth1",
        );
        row(
            Part::ReversePath,
            Whose::Device("eth0".into()),
            "vpc-rp-filter",
            "device eth0",
        );
        row(Part::Translation, Whose::ThisNode, "vpc-translation", "this node");
        let pod = || Whose::Pod(Some(model::ObjectName::new("default", "web")), "c1".into());
        row(Part::PodRoute, pod(), "pod-route", "Pod default/web");
        row(Part::PodDevice, pod(), "pod-device", "Pod default/web");
    }
}
