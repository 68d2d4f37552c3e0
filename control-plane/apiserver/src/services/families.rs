//! Address families of a Service (KEP-563): which it has by its policy, by what was asked, and by the networks that
//! there are. This comes before the rules, which judge the completed object.

use serde_json::{Value, json};

use super::kind::has_selector;
use super::{family, kind};
use crate::config::Cidrs;
use crate::object::Fields;
use crate::resources::field::{Errors, FieldError, Path};
use crate::resources::validate_cluster_ips;

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

/// Fills in `ipFamilyPolicy` and `ipFamilies`; a Service that goes back to one family loses what it has of the other.
pub fn settle_families(
    service: &mut Value,
    old: Option<&Value>,
    cidrs: &Cidrs,
) -> Result<(), Vec<FieldError>> {
    if !kind::needs_cluster_ip(service) || old.is_some_and(|old| keeps_preference(service, old)) {
        return Ok(());
    }
    if service.text("spec.ipFamilyPolicy").is_empty() {
        service["spec"]["ipFamilyPolicy"] = default_policy(service, old).into();
    }
    let mut errors = Errors::default();
    validate_cluster_ips(service, &mut errors);
    errors.into_result()?;

    let mut errors = Errors::default();
    if let Some(old) = old {
        release_secondary(service, old, &mut errors);
    }
    refuse_two_in_single_stack(service, &mut errors);
    infer_families(service, cidrs, &mut errors);
    errors.into_result()?;

    // Whoever writes the endpoints of a headless Service without selector may have families that the cluster has not.
    if service.text("spec.clusterIP") == "None" && !has_selector(service) {
        add_families(service, cidrs.primary().is_ipv4(), true);
        return Ok(());
    }
    let mut errors = Errors::default();
    refuse_what_the_cluster_lacks(service, cidrs, &mut errors);
    errors.into_result()?;
    add_families(service, cidrs.primary().is_ipv4(), cidrs.secondary().is_some());
    Ok(())
}

/// A Service that prefers two families is neither upgraded nor downgraded because the cluster's networks changed, but
/// only when its own fields do.
fn keeps_preference(new: &Value, old: &Value) -> bool {
    let prefers = |service: &Value| service.text("spec.ipFamilyPolicy") == PREFER;
    let lists = ["spec.clusterIPs", "spec.ipFamilies"];
    prefers(new)
        && prefers(old)
        && new.text("spec.type") == old.text("spec.type")
        && lists.iter().all(|path| new.list(path) == old.list(path))
}

fn default_policy<'a>(service: &Value, old: Option<&'a Value>) -> &'a str {
    let before = old.map(|old| old.text("spec.ipFamilyPolicy")).unwrap_or_default();
    if !before.is_empty() {
        before
    } else if service.text("spec.clusterIP") == "None" && !has_selector(service) {
        REQUIRE
    } else {
        SINGLE
    }
}

/// The policy alone is enough to go back to one family; taking an address or a family out of the lists is not.
fn release_secondary(service: &mut Value, old: &Value, errors: &mut Errors) {
    let at = Path::new("spec").child("ipFamilyPolicy");
    let policy = service.at("spec.ipFamilyPolicy").clone();
    for (field, thing) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let (list, before) = (service.at("spec").list(field), old.at("spec").list(field));
        if policy == SINGLE {
            if let ([first, _, ..], true) = (list, list == before) {
                service["spec"][field] = json!([first]);
            }
        } else if !list.is_empty() && list.len() < before.len() {
            let detail = format!("must be 'SingleStack' to release the secondary {thing}");
            errors.invalid(&at, policy.clone(), detail);
        }
    }
}

fn refuse_two_in_single_stack(service: &Value, errors: &mut Errors) {
    if service.text("spec.ipFamilyPolicy") != SINGLE {
        return;
    }
    for (field, things) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
        if service.at("spec").list(field).len() == 2 {
            let detail = format!(
                "must be 'RequireDualStack' or 'PreferDualStack' when multiple {things} are specified"
            );
            errors.invalid(&Path::new("spec").child("ipFamilyPolicy"), SINGLE, detail);
        }
    }
}

/// Addresses that were named tell their families.
fn infer_families(service: &mut Value, cidrs: &Cidrs, errors: &mut Errors) {
    let addresses = service.list("spec.clusterIPs").to_vec();
    let mut families = service.list("spec.ipFamilies").to_vec();
    let known = families.len();
    for (index, address) in addresses.iter().enumerate().skip(known) {
        let Some(ip) = address.as_str().and_then(|text| text.parse().ok()) else {
            break;
        };
        if is_configured(cidrs, family(ip)) {
            families.push(family(ip).into());
        } else {
            let at = Path::new("spec").child("clusterIPs").index(index);
            let detail = format!("{} is not configured on this cluster", family(ip));
            errors.invalid(&at, addresses.clone(), detail);
        }
    }
    if !families.is_empty() {
        service["spec"]["ipFamilies"] = families.into();
    }
}

fn refuse_what_the_cluster_lacks(service: &Value, cidrs: &Cidrs, errors: &mut Errors) {
    let at = Path::new("spec");
    if service.text("spec.ipFamilyPolicy") == REQUIRE && cidrs.secondary().is_none() {
        let detail = "this cluster is not configured for dual-stack services";
        errors.invalid(&at.child("ipFamilyPolicy"), REQUIRE, detail);
    }
    for (index, wanted) in service.list("spec.ipFamilies").iter().enumerate() {
        if !is_configured(cidrs, wanted.as_str().unwrap_or_default()) {
            let detail = "not configured on this cluster";
            errors.invalid(&at.child("ipFamilies").index(index), wanted.clone(), detail);
        }
    }
}

/// The cluster's family when none was asked for, and the other one where the policy wants two and two are `possible`.
fn add_families(service: &mut Value, ipv4_first: bool, possible: bool) {
    let wants_two = service.text("spec.ipFamilyPolicy") != SINGLE && possible;
    let mut families = service.list("spec.ipFamilies").to_vec();
    if families.is_empty() {
        families.push(if ipv4_first { "IPv4" } else { "IPv6" }.into());
    }
    if let ([only], true) = (families.as_slice(), wants_two) {
        let other = if only == "IPv4" { "IPv6" } else { "IPv4" };
        families.push(other.into());
    }
    service["spec"]["ipFamilies"] = families.into();
}

fn is_configured(cidrs: &Cidrs, wanted: &str) -> bool {
    cidrs.iter().any(|cidr| family(cidr.ip()) == wanted)
}
