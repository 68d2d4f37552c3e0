//! ClusterIPs and address families: what goes together, and what may change
//! (`ValidateServiceClusterIPsRelatedFields`, `validateUpgradeDowngrade…`).

use std::net::IpAddr;

use serde_json::Value;

use super::super::field::{Errors, Path};
use super::super::ip::validate_ip;
use crate::object::Fields;
use crate::services::is_headless;

/// Rules for `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`. Addresses may be missing yet.
pub(crate) fn validate_cluster_ips(service: &Value, errors: &mut Errors) {
    let spec = service.at("spec");
    if spec.text("type") == "ExternalName" {
        return;
    }
    let at = Path::new("spec");
    let addresses = spec.list("clusterIPs");
    validate_pair(spec.text("clusterIP"), addresses, &at.child("clusterIPs"), errors);
    validate_families(spec.list("ipFamilies"), &at.child("ipFamilies"), errors);
    let policy = spec.text("ipFamilyPolicy");
    let policies = &["PreferDualStack", "RequireDualStack", "SingleStack"];
    if !policy.is_empty() && !policies.contains(&policy) {
        errors.not_supported(&at.child("ipFamilyPolicy"), policy, policies);
    }
    let Some(parsed) = parse_all(addresses, &at.child("clusterIPs"), errors) else {
        return;
    };
    if addresses.len() > 2 {
        errors.invalid(
            &at.child("clusterIPs"),
            addresses.to_vec(),
            "may only hold up to 2 values",
        );
    }
    let count = |ipv4: bool| parsed.iter().filter(|ip| ip.is_ipv4() == ipv4).count();
    if addresses.len() > 1 && (count(true) > 1 || count(false) > 1) {
        let detail = "may specify no more than one IP for each IP family";
        errors.invalid(&at.child("clusterIPs"), addresses.to_vec(), detail);
    }
    for (index, (ip, wanted)) in parsed.iter().zip(spec.list("ipFamilies")).enumerate() {
        let fits = match wanted.as_str() {
            Some("IPv4") => ip.is_ipv4(),
            Some("IPv6") => ip.is_ipv6(),
            _ => true,
        };
        if !fits {
            let wanted = wanted.as_str().unwrap_or_default();
            let detail = format!("expected an {wanted} value as indicated by `ipFamilies[{index}]`");
            errors.invalid(&at.child("clusterIPs").index(index), ip.to_string(), detail);
        }
    }
}

fn validate_pair(single: &str, addresses: &[Value], at: &Path, errors: &mut Errors) {
    match (single, addresses) {
        ("", []) => {}
        ("", several) => {
            let detail = "must be empty when `clusterIP` is not specified";
            errors.invalid(at, several.to_vec(), detail);
        }
        (_, []) => errors.required(at, ""),
        (single, [first, ..]) if first != single => {
            errors.invalid(at, addresses.to_vec(), "first value must match `clusterIP`");
        }
        _ => {}
    }
}

fn validate_families(families: &[Value], at: &Path, errors: &mut Errors) {
    for (index, family) in families.iter().enumerate() {
        let text = family.as_str().unwrap_or_default();
        if !matches!(text, "IPv4" | "IPv6") {
            errors.not_supported(&at.index(index), text, &["IPv4", "IPv6"]);
        }
        if families.iter().take(index).any(|before| before == family) {
            errors.duplicate(&at.index(index), text);
        }
    }
}

/// The addresses; none for a headless Service. `None` when one of them is no address.
fn parse_all(addresses: &[Value], at: &Path, errors: &mut Errors) -> Option<Vec<IpAddr>> {
    if let [first, rest @ ..] = addresses
        && first == "None"
    {
        if !rest.is_empty() {
            errors.invalid(at, addresses.to_vec(), "'None' must be the first and only value");
            return None;
        }
        return Some(Vec::new());
    }
    let parsed: Vec<Option<IpAddr>> = addresses
        .iter()
        .enumerate()
        .map(|(index, text)| validate_ip(text.as_str().unwrap_or_default(), &at.index(index), errors))
        .collect();
    parsed.into_iter().collect()
}

/// The first address and family stay; the second may come, or go with the policy.
pub(super) fn validate_cluster_ips_update(new: &Value, old: &Value, errors: &mut Errors) {
    let is_alias = |service: &Value| service.text("spec.type") == "ExternalName";
    if is_alias(new) || is_alias(old) || (is_headless(new) && is_headless(old)) {
        return;
    }
    let addresses = Lists {
        new,
        old,
        field: "clusterIPs",
        unset: "primary clusterIP can not be unset",
        released: "must be set to 'SingleStack' when releasing the secondary clusterIP",
    };
    addresses.validate(errors);
    if is_headless(new) == is_headless(old) {
        let families = Lists {
            field: "ipFamilies",
            unset: "primary ipFamily can not be unset",
            released: "must be set to 'SingleStack' when releasing the secondary ipFamily",
            ..addresses
        };
        families.validate(errors);
    }
}

/// One of the two parallel lists, before and after.
struct Lists<'a> {
    new: &'a Value,
    old: &'a Value,
    field: &'static str,
    unset: &'static str,
    released: &'static str,
}

impl Lists<'_> {
    fn validate(&self, errors: &mut Errors) {
        let (now, before) = (
            self.new.at("spec").list(self.field),
            self.old.at("spec").list(self.field),
        );
        let at = Path::new("spec").child(self.field);
        if now.is_empty() && !before.is_empty() {
            errors.invalid(&at.index(0), now.to_vec(), self.unset);
        }
        for (index, _) in now.iter().zip(before).enumerate().filter(|(_, (a, b))| a != b) {
            errors.invalid(&at.index(index), now.to_vec(), "may not change once set");
        }
        let policy = self.new.at("spec.ipFamilyPolicy");
        if now.len() == 1 && before.len() == 2 && policy != "SingleStack" {
            let at = Path::new("spec").child("ipFamilyPolicy");
            errors.invalid(&at, policy.clone(), self.released);
        }
    }
}
