//! ClusterIPs and node ports: chosen here, and reserved by keys that are written in the same etcd transaction as the
//! Service. A ClusterIP is an `IPAddress` object (KEP-1880); a node port is a key of its own. There is nothing to
//! repair, since a Service and what it holds come and go together.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use rand::Rng;
use serde_json::{Value, json};

use crate::object::{self, Fields};
use crate::resources::field::{Errors, FieldError, Path};

/// Where addresses and ports come from.
#[derive(Debug, Clone, Copy)]
pub struct Ranges {
    /// ClusterIPs.
    pub cidr: IpNetwork,
    /// Node ports, both ends included.
    pub ports: (u16, u16),
}

/// What others hold already, as far as is known; the transaction has the last word.
#[derive(Debug, Default)]
pub struct Taken {
    /// ClusterIPs.
    pub addresses: HashSet<IpAddr>,
    /// Node ports.
    pub ports: HashSet<i64>,
}

/// Something a Service holds alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Holding {
    /// A ClusterIP.
    Address(IpAddr),
    /// A node port.
    Port(i64),
}

/// A holding that a Service asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What.
    pub holding: Holding,
    /// The user named it, so that a collision is the user's to know.
    named_at: Option<Path>,
}

impl Claim {
    /// The error when somebody else holds what the user named; `None` when the choice was ours.
    pub fn collision(&self) -> Option<Vec<FieldError>> {
        let at = self.named_at.as_ref()?;
        let mut errors = Errors::default();
        match &self.holding {
            Holding::Address(ip) => {
                let detail = format!("failed to allocate IP {ip}: provided IP is already allocated");
                errors.invalid(at, json!([ip.to_string()]), detail);
            }
            Holding::Port(port) => errors.invalid(at, *port, "provided port is already allocated"),
        }
        errors.into_result().err()
    }
}

/// What a stored Service holds.
pub fn holdings(service: &Value) -> Vec<Holding> {
    let addresses = service
        .list("spec.clusterIPs")
        .iter()
        .filter_map(|ip| ip.as_str()?.parse().ok());
    let ports = service
        .list("spec.ports")
        .iter()
        .filter_map(|port| port.int("nodePort").filter(|port| *port != 0));
    let mut seen = HashSet::new();
    let all = addresses.map(Holding::Address).chain(ports.map(Holding::Port));
    all.filter(|holding| seen.insert(holding.clone())).collect()
}

/// The `IPAddress` object that reserves a ClusterIP.
pub fn ip_address_object(ip: IpAddr, service: &Value, now: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {
            "name": ip.to_string(), "uid": uuid::Uuid::new_v4().to_string(), "creationTimestamp": now,
            "labels": {
                "ipaddress.kubernetes.io/ip-family": family(ip),
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": { "parentRef": {
            "group": "", "resource": "services",
            "namespace": object::namespace(service), "name": object::name(service),
        } },
    })
}

/// Carries over what an updater left out, and drops what a change of type makes void
/// (`patchAllocatedValues`, `dropTypeDependentFields`).
pub fn carry_over(new: &mut Value, old: &Value) {
    let kind = new.text("spec.type").to_owned();
    let needs_address = kind != "ExternalName";
    if needs_address && old.text("spec.type") != "ExternalName" && new.text("spec.clusterIP").is_empty() {
        for field in ["clusterIP", "clusterIPs"] {
            object::copy_field(old.at("spec"), &mut new["spec"], field);
        }
    }
    if !needs_address
        && old.text("spec.type") != "ExternalName"
        && new.at("spec.clusterIP") == old.at("spec.clusterIP")
    {
        for field in [
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "internalTrafficPolicy",
        ] {
            object::remove(&mut new["spec"], field);
        }
    }
    let has_node_ports = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
    if !has_node_ports && matches!(old.text("spec.type"), "NodePort" | "LoadBalancer") {
        object::remove(&mut new["spec"], "externalTrafficPolicy");
        object::remove(&mut new["spec"], "allocateLoadBalancerNodePorts");
    }
    let old_ports = old.list("spec.ports").to_vec();
    for port in new["spec"]
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let same =
            |one: &&Value| one.at("port") == port.at("port") && one.at("protocol") == port.at("protocol");
        let Some(before) = old_ports.iter().find(same) else {
            continue;
        };
        let unset = port.int("nodePort").unwrap_or(0) == 0;
        if has_node_ports && unset {
            object::copy_field(before, port, "nodePort");
        } else if !has_node_ports && port.at("nodePort") == before.at("nodePort") {
            object::remove(port, "nodePort");
        }
    }
}

/// Completes a Service with addresses and ports, and tells what must be claimed for it beyond what `held` has.
pub fn allocate(
    service: &mut Value,
    held: &[Holding],
    ranges: &Ranges,
    taken: &Taken,
) -> Result<Vec<Claim>, Vec<FieldError>> {
    let mut errors = Errors::default();
    let mut claims = Vec::new();
    allocate_address(service, ranges, taken, &mut claims, &mut errors);
    if matches!(service.text("spec.type"), "NodePort" | "LoadBalancer") {
        allocate_ports(service, ranges, taken, &mut claims, &mut errors);
    }
    errors.into_result()?;
    claims.retain(|claim| !held.contains(&claim.holding));
    Ok(claims)
}

fn allocate_address(
    service: &mut Value,
    ranges: &Ranges,
    taken: &Taken,
    claims: &mut Vec<Claim>,
    errors: &mut Errors,
) {
    let at = Path::new("spec");
    let spec = &mut service["spec"];
    if spec.text("type") == "ExternalName" {
        return;
    }
    let policy = spec.text("ipFamilyPolicy");
    if policy == "RequireDualStack" {
        let detail = "this cluster is not configured for dual-stack services";
        errors.invalid(&at.child("ipFamilyPolicy"), policy, detail);
    }
    let wanted = match spec.text("clusterIP") {
        "" => spec
            .list("clusterIPs")
            .first()
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
        given => given.to_owned(),
    };
    let address = match wanted.as_str() {
        "None" => "None".to_owned(),
        "" => match free_address(ranges.cidr, &taken.addresses) {
            Some(ip) => {
                claims.push(Claim {
                    holding: Holding::Address(ip),
                    named_at: None,
                });
                ip.to_string()
            }
            None => {
                let detail = "failed to allocate a serviceIP: range is full";
                errors.invalid(&at.child("clusterIPs"), json!([]), detail);
                return;
            }
        },
        named => {
            let Ok(ip) = named.parse::<IpAddr>() else { return };
            if !ranges.cidr.contains(ip) {
                let cidr = ranges.cidr;
                let detail = format!(
                    "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range of valid IPs is {cidr}"
                );
                errors.invalid(&at.child("clusterIP"), named, detail);
                return;
            }
            let named_at = Some(at.child("clusterIPs"));
            claims.push(Claim {
                holding: Holding::Address(ip),
                named_at,
            });
            named.to_owned()
        }
    };
    spec["clusterIPs"] = json!([address]);
    spec["clusterIP"] = address.into();
    if spec.list("ipFamilies").is_empty() {
        spec["ipFamilies"] = json!([family(ranges.cidr.ip())]);
    }
    object::default_to(spec, "ipFamilyPolicy", "SingleStack");
}

fn allocate_ports(
    service: &mut Value,
    ranges: &Ranges,
    taken: &Taken,
    claims: &mut Vec<Claim>,
    errors: &mut Errors,
) {
    let automatic = service.at("spec.allocateLoadBalancerNodePorts") != &Value::Bool(false);
    let mut chosen: HashSet<i64> = HashSet::new();
    let ports = service["spec"]
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten();
    for (index, port) in ports.enumerate() {
        let at = Path::new("spec").child("ports").index(index).child("nodePort");
        let (first, last) = ranges.ports;
        match port.int("nodePort").unwrap_or(0) {
            0 if !automatic => {}
            0 => match free_port(ranges.ports, |number| {
                taken.ports.contains(&number) || chosen.contains(&number)
            }) {
                Some(number) => {
                    port["nodePort"] = number.into();
                    chosen.insert(number);
                    claims.push(Claim {
                        holding: Holding::Port(number),
                        named_at: None,
                    });
                }
                None => errors.invalid(&at, 0, "failed to allocate a nodePort: range is full"),
            },
            number if !(i64::from(first)..=i64::from(last)).contains(&number) => {
                let detail = format!(
                    "provided port is not in the valid range. The range of valid ports is {first}-{last}"
                );
                errors.invalid(&at, number, detail);
            }
            // One Service may use a number for TCP and UDP alike: claimed once.
            number if chosen.insert(number) => {
                claims.push(Claim {
                    holding: Holding::Port(number),
                    named_at: Some(at),
                });
            }
            _ => {}
        }
    }
}

/// A random free address, from the upper band first: the lower one is left to those who name their address
/// (KEP-3070, `ipallocator.calculateRangeOffset`).
fn free_address(cidr: IpNetwork, taken: &HashSet<IpAddr>) -> Option<IpAddr> {
    let (base, host_bits) = match cidr {
        IpNetwork::V4(net) => (u128::from(u32::from(net.network())), 32 - u32::from(net.prefix())),
        IpNetwork::V6(net) => (u128::from(net.network()), 128 - u32::from(net.prefix())),
    };
    // Without the network's own address; IPv4 loses the broadcast address too.
    let size = 1_u128.checked_shl(host_bits).unwrap_or(u128::MAX);
    let last = if cidr.is_ipv4() {
        size.saturating_sub(2)
    } else {
        size.saturating_sub(1)
    };
    let offset = (size / 16).clamp(16, 256);
    let address = |number: u128| match cidr {
        IpNetwork::V4(_) => u32::try_from(base + number)
            .ok()
            .map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
        IpNetwork::V6(_) => Some(IpAddr::V6(Ipv6Addr::from(base + number))),
    };
    let bands = [(offset.min(last), last), (1, offset.min(last))];
    bands.into_iter().find_map(|(from, to)| {
        let start = rand::rng().random_range(from..=to.max(from));
        let tries = (to.max(from) - from + 1).min(taken.len() as u128 + 2);
        (0..tries).find_map(|step| {
            let number = from + (start - from + step) % (to.max(from) - from + 1);
            address(number).filter(|ip| !taken.contains(ip))
        })
    })
}

fn free_port((first, last): (u16, u16), taken: impl Fn(i64) -> bool) -> Option<i64> {
    let count = i64::from(last) - i64::from(first) + 1;
    let start = rand::rng().random_range(0..count);
    (0..count)
        .map(|step| i64::from(first) + (start + step) % count)
        .find(|number| !taken(*number))
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(cidr: &str) -> Ranges {
        Ranges {
            cidr: cidr.parse().expect("a network"),
            ports: (30000, 30002),
        }
    }

    #[track_caller]
    fn complaint(spec: Value) -> String {
        let mut service = json!({ "spec": spec });
        let told = allocate(&mut service, &[], &ranges("10.96.0.0/12"), &Taken::default());
        told.expect_err("must be refused")
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn addresses_come_from_the_upper_band_until_it_is_full() {
        let cidr: IpNetwork = "10.0.0.0/27".parse().expect("a network");
        let mut taken = HashSet::new();
        for _ in 0..30 {
            let ip = free_address(cidr, &taken).expect("the range is not full");
            let low = ip < "10.0.0.16".parse::<IpAddr>().expect("an address");
            assert_eq!(low, taken.len() >= 15, "{ip} after {}", taken.len());
            taken.insert(ip);
        }
        assert_eq!(free_address(cidr, &taken), None);
    }

    #[test]
    fn named_addresses_and_ports_must_be_in_range() {
        assert_eq!(
            complaint(json!({ "type": "ClusterIP", "clusterIP": "1.2.3.4" })),
            "spec.clusterIP: Invalid value: \"1.2.3.4\": failed to allocate IP 1.2.3.4: the provided IP (1.2.3.4) is not in the valid range. The range of valid IPs is 10.96.0.0/12",
        );
        assert_eq!(
            complaint(json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 80 }] })),
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-30002",
        );
    }

    #[test]
    fn a_service_claims_only_what_it_does_not_hold() {
        let spec = json!({ "type": "NodePort", "clusterIP": "10.96.0.10", "ports": [
            { "port": 1, "protocol": "TCP", "nodePort": 30001 }, { "port": 1, "protocol": "UDP", "nodePort": 30001 },
        ] });
        let mut service = json!({ "spec": spec });
        let ranges = ranges("10.96.0.0/12");
        let claims = allocate(&mut service, &[], &ranges, &Taken::default()).expect("all is free");
        let claimed: Vec<Holding> = claims.into_iter().map(|claim| claim.holding).collect();
        assert_eq!(claimed, holdings(&service));
        let again = allocate(&mut service, &claimed, &ranges, &Taken::default());
        assert_eq!(again, Ok(vec![]));
    }

    #[test]
    fn a_change_of_type_gives_node_ports_back() {
        let old = json!({ "spec": {
            "type": "NodePort", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
            "ports": [{ "port": 80, "protocol": "TCP", "nodePort": 30000 }],
        } });
        let mut new = json!({ "spec": { "type": "ClusterIP", "ports": [{ "port": 80, "protocol": "TCP", "nodePort": 30000 }] } });
        carry_over(&mut new, &old);
        assert_eq!(
            holdings(&new),
            [Holding::Address("10.96.0.10".parse().expect("an address"))]
        );
        let mut same =
            json!({ "spec": { "type": "NodePort", "ports": [{ "port": 80, "protocol": "TCP" }] } });
        carry_over(&mut same, &old);
        assert_eq!(holdings(&same), holdings(&old));
    }
}
