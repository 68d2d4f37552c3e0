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
        !rules.any(|rule| rule.is_for_all() && rule.table() == Some(*table))
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
    if value("net/ipv4/ip_forward").as_deref() != Some("1") {
        return Vec::new();
    }
    let silent = names.filter_map(|device| {
        let path = format!("net/ipv4/conf/{device}/forwarding");
        (value(&path).as_deref() == Some("0")).then(|| {
            finding(
                "kernel-setting",
                // As sysctl(8) names it: slashes within the parts.
                format!("net.ipv4.conf.{}.forwarding", device.replace('.', "/")),
                format!("it is 0: packets that come in by {device} are not forwarded"),
                "sysctl -w it to 1; setting net.ipv4.ip_forward anew sets it for all devices",
            )
        })
    });
    silent.collect()
}
