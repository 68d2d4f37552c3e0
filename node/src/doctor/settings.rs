//! The kernel's settings that packets need, against what they are.

use std::net::IpAddr;

use netlink::route::TABLE_MAIN;
use netlink::rule::{Action, Rule, TABLE_LOCAL};
use netlink::{Netlink, sysctl};

use super::finding;
use crate::explain::PodHere;
use crate::findings::Finding;

/// Settings that somebody changed, of those that the agent keeps: name, value, and what it shall be.
#[must_use]
pub fn look(differences: Vec<(String, u64, u64)>) -> Vec<Finding> {
    let told = differences.into_iter().map(|(setting, present, wanted)| {
        finding(
            "kernel-setting",
            setting,
            format!("it is {present} and shall be {wanted}"),
            "the agent sets it again every five seconds: find who changes it (sysctl.d, another agent)",
        )
    });
    told.collect()
}

/// Tables of routes that no packet looks up any more, and rules that no packet of a pod gets past.
///
/// # Errors
/// When the kernel does not tell.
pub fn rules(pods: &[PodHere]) -> netlink::Result<Vec<Finding>> {
    let mut kernel = Netlink::open()?;
    let mut families = vec![("", kernel.rules()?)];
    if pods.iter().flat_map(|pod| &pod.addresses).any(IpAddr::is_ipv6) {
        families.push(("-6 ", kernel.rules_v6()?));
    }
    let of_family = |(version, rules): &(&str, Vec<Rule>)| {
        let in_the_way = rules.iter().filter_map(|rule| in_the_way(rule, pods));
        let found: Vec<Finding> = lost_tables(rules, version)
            .into_iter()
            .chain(in_the_way)
            .collect();
        found
    };
    Ok(families.iter().flat_map(of_family).collect())
}

/// Tables that no packet of a version of IP looks up any more. `version` is the option of `ip` for that one.
fn lost_tables(rules: &[Rule], version: &str) -> Vec<Finding> {
    let tables = [(TABLE_LOCAL, "local", 0), (TABLE_MAIN, "main", 32_766)];
    let lost = tables.into_iter().filter(|(table, ..)| {
        let mut rules = rules.iter();
        !rules.any(|rule| rule.is_for_all() && rule.table() == Some(*table))
    });
    let of = if version.is_empty() { "" } else { " of IPv6" };
    let told = lost.map(|(_, name, preference)| {
        finding(
            "routing-rule",
            format!("table {name}{of}"),
            format!(
                "no rule of policy routing lets every packet{of} look up table {name}: its routes lead nobody"
            ),
            &format!("ip {version}rule add lookup {name} pref {preference}"),
        )
    });
    told.collect()
}

/// A rule that ends the way of what pods send or get; one that asks for more than addresses may let some of it pass.
fn in_the_way(rule: &Rule, pods: &[PodHere]) -> Option<Finding> {
    let does = match rule.action {
        Action::Blackhole => "drops",
        Action::Unreachable | Action::Prohibit => "refuses",
        Action::LookUp(_) | Action::GoTo(_) | Action::Nothing | Action::Other(_) => return None,
    };
    let (what, network) = match (rule.source, rule.destination) {
        (Some(source), None) => ("is sent from", source),
        (None, Some(destination)) => ("is sent to", destination),
        (Some(_), Some(_)) | (None, None) => return None,
    };
    let mut meant = pods
        .iter()
        .filter(|pod| !rule.inverted && pod.addresses.iter().any(|address| network.contains(*address)));
    let first = meant.next()?;
    let first = match &first.name {
        Some(name) => format!("Pod {name}"),
        None => format!("the pod behind {}", first.device),
    };
    let object = match meant.count() {
        0 => first,
        others => format!("{first} and {others} more"),
    };
    let version = if rule.is_v6 { "-6 " } else { "" };
    let priority = rule.priority;
    Some(finding(
        "routing-rule",
        object,
        format!("ip {version}rule {priority} {does} what {what} {network}"),
        &format!("ip {version}rule del pref {priority}, where nobody needs it: find who made it"),
    ))
}

/// Devices that packets come in by and that do not forward them, where the host does. Nobody sets that again.
#[must_use]
pub fn devices<'a>(names: impl Iterator<Item = &'a str>) -> Vec<Finding> {
    let value = |path: &str| Some(sysctl::read(path).ok()?.trim().to_owned());
    let versions = [
        ("ipv4", "net/ipv4/ip_forward"),
        ("ipv6", "net/ipv6/conf/all/forwarding"),
    ];
    let forwarded: Vec<_> = versions
        .into_iter()
        .filter(|(_, setting)| value(setting).as_deref() == Some("1"))
        .collect();
    let mut silent = Vec::new();
    for device in names {
        for (version, all) in &forwarded {
            let path = format!("net/{version}/conf/{device}/forwarding");
            if value(&path).as_deref() == Some("0") {
                silent.push(of_device(version, device, &all.replace('/', ".")));
            }
        }
    }
    silent
}

fn of_device(version: &str, device: &str, all: &str) -> Finding {
    finding(
        "kernel-setting",
        // As sysctl(8) names it: slashes within the parts.
        format!("net.{version}.conf.{}.forwarding", device.replace('.', "/")),
        format!("it is 0: packets that come in by {device} are not forwarded"),
        &format!("sysctl -w it to 1; setting {all} anew sets it for all devices"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, address: &str) -> PodHere {
        PodHere {
            name: Some(model::ObjectName::new("default", name)),
            addresses: vec![address.parse().expect("an address")],
            node: "node-1".into(),
            device: format!("cw-{name}"),
            mac: None,
        }
    }

    #[test]
    fn a_table_that_no_packet_looks_up_is_told_with_the_rule_that_mends_it_in_each_version() {
        let v6 = |priority, action| Rule {
            is_v6: true,
            ..Rule::new(priority, action)
        };
        let local = v6(0, Action::LookUp(TABLE_LOCAL));
        let main = v6(32_766, Action::LookUp(TABLE_MAIN));
        let of_some = Rule {
            source: Some("fd00::/64".parse().expect("a network")),
            ..main.clone()
        };
        assert_eq!(lost_tables(&[local.clone(), main], "-6 "), []);
        let lost = lost_tables(&[local, of_some], "-6 ");
        let told: Vec<_> = lost
            .iter()
            .map(|finding| format!("{}: {}: {}", finding.object, finding.evidence, finding.repair))
            .collect();
        assert_eq!(
            told,
            [
                "table main of IPv6: no rule of policy routing lets every packet of IPv6 look up table main: its routes lead \
              nobody: ip -6 rule add lookup main pref 32766"
            ]
        );
    }

    #[test]
    fn rules_that_end_the_way_of_pods_are_told_with_whose_it_is() {
        let pods = [
            pod("a", "10.244.1.2"),
            pod("b", "10.244.1.3"),
            pod("six", "fd00::2"),
        ];
        let told = |action, source: Option<&str>, destination: Option<&str>| {
            let network = |text: &str| text.parse().expect("a network");
            let (source, destination) = (source.map(network), destination.map(network));
            let rule = Rule {
                source,
                destination,
                ..Rule::new(10, action)
            };
            in_the_way(&rule, &pods).map(|finding| format!("{}: {}", finding.object, finding.evidence))
        };
        let rows = [
            (
                told(Action::Blackhole, Some("10.244.1.2/32"), None),
                Some("Pod default/a: ip rule 10 drops what is sent from 10.244.1.2/32"),
            ),
            (
                told(Action::Prohibit, None, Some("10.244.0.0/16")),
                Some("Pod default/a and 1 more: ip rule 10 refuses what is sent to 10.244.0.0/16"),
            ),
            (told(Action::Blackhole, Some("198.51.100.0/24"), None), None),
            (told(Action::LookUp(100), Some("10.244.1.2/32"), None), None),
            (
                told(Action::Blackhole, Some("10.244.1.2/32"), Some("198.51.100.1/32")),
                None,
            ),
        ];
        for (told, expected) in rows {
            assert_eq!(told.as_deref(), expected);
        }
    }
}
