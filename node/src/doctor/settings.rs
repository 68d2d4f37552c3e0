//! The kernel's settings that packets need, against what they are.

use netlink::route::TABLE_MAIN;
use netlink::rule::TABLE_LOCAL;
use netlink::{Netlink, sysctl};

use super::finding;
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

/// Tables of routes that no packet looks up any more.
///
/// # Errors
/// When the kernel does not tell.
pub fn rules() -> netlink::Result<Vec<Finding>> {
    let rules = Netlink::open()?.rules()?;
    let tables = [(TABLE_LOCAL, "local"), (TABLE_MAIN, "main")];
    let lost = tables.into_iter().filter(|(table, _)| {
        let mut rules = rules.iter();
        !rules.any(|rule| rule.is_for_all && rule.table == Some(*table))
    });
    let told = lost.map(|(_, name)| {
        finding(
            "routing-rule",
            format!("table {name}"),
            format!(
                "no rule of policy routing lets every packet look up table {name}: its routes lead nobody"
            ),
            "ip rule add lookup TABLE, with its usual preference: local 0, main 32766",
        )
    });
    Ok(told.collect())
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
