//! amazon-vpc-cni-k8s's metrics (`utils/prometheusmetrics` there) by their names, labels and kinds, as far as what they
//! count is known here. Those that are not: what counts its own functions (`fn` of `ipamd_error_count`,
//! `ipamd_action_inprogress`, `reconcile_count`, `aws_utils_error_count`), what SDKs hide (`aws_api_latency_ms` has the
//! HTTP status), what never happens here (`force_removed_…`, `unrecovered_checkpoint_entries`, `pod_eni_error_count`), why
//! a pod went (`del_ip_req_count`), and how long starts took.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use overlay::pods::Census;
use vpc_eni::ipam::Status;

use crate::agent::cni::Requests;
use crate::metrics::{Page, labels};

/// Writes them.
pub fn write(status: &Status, census: Option<&Census>, requests: &Requests, page: &mut Page) {
    gauges(status, page);
    in_use(status, census, page);
    calls(status, page);
    page.gauges(
        "causeway_vpc_problems",
        "What does not work with the addresses of the VPC, by its subject and kind.",
        status.problems.iter().map(|(subject, problem)| {
            let kind = problem.kind.id();
            (labels(&[("subject", subject), ("kind", kind)]), 1.0)
        }),
    );
    page.counters(
        "awscni_add_ip_req_count",
        "Requests of pods for an address.",
        [(String::new(), requests.additions())],
    );
    page.counters(
        "awscni_no_available_ip_addresses",
        "Requests of pods for an address for which there was none, after they had waited.",
        [(String::new(), requests.without_address())],
    );
}

fn gauges(status: &Status, page: &mut Page) {
    let blocks = || {
        status
            .interfaces
            .iter()
            .flatten()
            .flat_map(|interface| &interface.blocks)
    };
    let prefixes = blocks()
        .filter(|block| block.is_ipv4() && block.prefix() < 32)
        .count();
    let gauges = [
        (
            "awscni_eni_allocated",
            "Network interfaces that are attached.",
            status.attached,
        ),
        (
            "awscni_eni_max",
            "Network interfaces that can be attached.",
            status.most_interfaces,
        ),
        (
            "awscni_ip_max",
            "Addresses that pods can have at the most.",
            status.most_addresses,
        ),
        (
            "awscni_total_ip_addresses",
            "Addresses that pods can have now.",
            status.total,
        ),
        (
            "awscni_assigned_ip_addresses",
            "Addresses that pods have.",
            status.assigned,
        ),
        (
            "awscni_total_ipv4_prefixes",
            "Prefixes of IPv4 that interfaces have for pods.",
            u32::try_from(prefixes).unwrap_or(u32::MAX),
        ),
    ];
    for (name, help, value) in gauges {
        page.gauges(name, help, [(String::new(), f64::from(value))]);
    }
}

/// How many addresses pods have of each block, and of each interface.
fn in_use(status: &Status, census: Option<&Census>, page: &mut Page) {
    let counts = census.map_or(&[][..], |census| &census.blocks);
    let assigned: BTreeMap<IpNetwork, usize> = counts
        .iter()
        .map(|count| (count.block.network, count.assigned))
        .collect();
    page.gauges(
        "awscni_assigned_ip_per_cidr",
        "Addresses that pods have, by the block that they are of.",
        assigned
            .iter()
            .map(|(block, count)| (labels(&[("cidr", &block.to_string())]), *count as f64)),
    );
    let of_interface = |blocks: &[IpNetwork]| -> usize {
        let counts = blocks.iter().filter_map(|block| assigned.get(block));
        counts.sum()
    };
    page.gauges(
        "awscni_assigned_ip_per_eni",
        "Addresses that pods have, by the interface that they are of.",
        status.interfaces.iter().flatten().map(|interface| {
            let count = of_interface(&interface.blocks);
            (labels(&[("eni", &interface.id.0)]), count as f64)
        }),
    );
}

fn calls(status: &Status, page: &mut Page) {
    let calls: Vec<_> = status
        .calls
        .iter()
        .map(|(action, calls)| (action.to_string(), calls))
        .collect();
    let of_action = |action: &str| labels(&[("fn", action)]);
    page.counters(
        "awscni_ec2api_req_count",
        "Calls to EC2 by their action.",
        calls
            .iter()
            .map(|(action, calls)| (of_action(action), calls.made)),
    );
    page.counters(
        "awscni_ec2api_error_count",
        "Calls to EC2 that failed, by their action.",
        calls
            .iter()
            .map(|(action, calls)| (of_action(action), calls.failed)),
    );
    page.counters(
        "awscni_aws_api_error_count",
        "Calls that EC2 refused, by their action and its code.",
        calls.iter().flat_map(|(action, calls)| {
            let refused = calls.refused.iter();
            refused.map(move |(code, count)| (labels(&[("api", action), ("error", code)]), *count))
        }),
    );
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use model::MacAddr;
    use overlay::pods::{Block, Count};
    use vpc_eni::ec2::{Action, EniId};
    use vpc_eni::home::Interface;
    use vpc_eni::tally::Calls;

    use super::*;

    fn network(text: &str) -> IpNetwork {
        text.parse().expect("valid")
    }

    fn interface(number: u8, blocks: &[&str]) -> Interface {
        Interface {
            id: EniId(format!("eni-{number}")),
            mac: MacAddr([2, 0, 0, 0, 0, number]),
            address: Ipv4Addr::new(10, 0, number, 4),
            subnet: format!("10.0.{number}.0/24").parse().expect("valid"),
            device_index: number.into(),
            blocks: blocks.iter().map(|block| network(block)).collect(),
        }
    }

    #[test]
    fn addresses_are_counted_by_block_and_interface_and_calls_by_code() {
        let calls = Calls {
            made: 3,
            failed: 2,
            refused: [("RequestLimitExceeded".to_owned(), 1)].into(),
        };
        let status = Status {
            interfaces: Some(vec![
                interface(0, &["10.0.0.5/32", "10.0.0.6/32"]),
                interface(1, &["10.0.1.16/28", "10.0.1.32/28"]),
            ]),
            calls: [(Action::AssignPrivateIpAddresses, calls)].into(),
            ..Status::default()
        };
        let count = |text: &str, assigned| Count {
            block: Block {
                network: network(text),
                device_index: 0,
            },
            assigned,
            cooling: 0,
            free: 0,
            is_withdrawn: false,
        };
        let census = Census {
            blocks: vec![
                count("10.0.0.5/32", 1),
                count("10.0.0.6/32", 0),
                count("10.0.1.16/28", 3),
                count("10.0.1.32/28", 2),
            ],
            stranded: Vec::new(),
            unmet: 0,
        };
        let mut page = Page::default();
        write(&status, Some(&census), &Requests::default(), &mut page);
        let text = page.into_text();
        for line in [
            "awscni_total_ipv4_prefixes 2",
            "awscni_assigned_ip_per_cidr{cidr=\"10.0.0.5/32\"} 1",
            "awscni_assigned_ip_per_cidr{cidr=\"10.0.0.6/32\"} 0",
            "awscni_assigned_ip_per_cidr{cidr=\"10.0.1.16/28\"} 3",
            "awscni_assigned_ip_per_eni{eni=\"eni-0\"} 1",
            "awscni_assigned_ip_per_eni{eni=\"eni-1\"} 5",
            "awscni_ec2api_req_count{fn=\"AssignPrivateIpAddresses\"} 3",
            "awscni_ec2api_error_count{fn=\"AssignPrivateIpAddresses\"} 2",
            "awscni_aws_api_error_count{api=\"AssignPrivateIpAddresses\",error=\"RequestLimitExceeded\"} 1",
            "awscni_add_ip_req_count 0",
            "awscni_no_available_ip_addresses 0",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is not in\n{text}");
        }
    }
}
