//! ClusterIPs and node ports: chosen here, and reserved by keys that are written in the same etcd transaction as the
//! Service. A ClusterIP is an `IPAddress` object (KEP-1880); a node port is a key of its own. There is nothing to
//! repair, since a Service and what it holds come and go together.
//!
//! An update passes through [`carry_over`], both kinds of writes through [`settle_families`], then come the rules, and
//! [`allocate`] last.

mod families;
mod kind;
mod pool;
mod update;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::config::Cidrs;
use crate::object::{self, Fields};
use crate::resources::field::{Errors, FieldError, Path};
pub use families::settle_families;
pub(crate) use kind::{
    is_externally_accessible, is_headless, is_load_balancer, needs_health_check, needs_node_ports,
};
pub use update::{align_cluster_ips, carry_over};

/// Where addresses and ports come from.
#[derive(Debug, Clone, Copy)]
pub struct Ranges {
    /// ClusterIPs.
    pub cidrs: Cidrs,
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
    /// A node port, for traffic or for health checks.
    Port(i64),
}

/// A holding that a Service asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// What.
    pub holding: Holding,
    /// The error when somebody else holds what the user named; `None` when the choice was ours.
    pub collision: Option<Vec<FieldError>>,
}

impl Claim {
    fn chosen(holding: Holding) -> Self {
        Claim {
            holding,
            collision: None,
        }
    }

    fn named(holding: Holding, at: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        let mut errors = Errors::default();
        errors.invalid(at, value, detail);
        Claim {
            holding,
            collision: errors.into_result().err(),
        }
    }
}

/// What a stored Service holds.
pub fn holdings(service: &Value) -> Vec<Holding> {
    let addresses = service
        .list("spec.clusterIPs")
        .iter()
        .filter_map(|ip| ip.as_str()?.parse().ok());
    let mut seen = HashSet::new();
    let all = addresses
        .map(Holding::Address)
        .chain(node_ports(service).map(Holding::Port));
    all.filter(|holding| seen.insert(holding.clone())).collect()
}

/// Every port that a Service has on the nodes, that of its health checks included.
pub fn node_ports(service: &Value) -> impl Iterator<Item = i64> {
    let ports = service.list("spec.ports").iter();
    let ports = ports.filter_map(|port| port.int("nodePort"));
    ports
        .chain(service.int("spec.healthCheckNodePort"))
        .filter(|port| *port != 0)
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

/// Completes a Service, whose families are settled, with addresses and ports, and tells what must be claimed for it
/// beyond what it held when it was `old`.
pub fn allocate(
    service: &mut Value,
    old: Option<&Value>,
    ranges: &Ranges,
    taken: &Taken,
) -> Result<Vec<Claim>, Vec<FieldError>> {
    let mut allocation = Allocation {
        ranges,
        taken,
        held: old.map(holdings).unwrap_or_default(),
        asked: node_ports(service).collect(),
        ports: HashSet::new(),
        claims: Vec::new(),
        errors: Errors::default(),
    };
    allocation.addresses(service);
    if needs_node_ports(service) {
        allocation.node_ports(service, old.is_none());
    }
    if needs_health_check(service) {
        allocation.health_check_port(service);
    }
    let Allocation {
        held,
        mut claims,
        errors,
        ..
    } = allocation;
    errors.into_result()?;
    claims.retain(|claim| !held.contains(&claim.holding));
    Ok(claims)
}

const PORT_IS_TAKEN: &str = "provided port is already allocated";

/// One Service on its way to what it will hold.
struct Allocation<'a> {
    ranges: &'a Ranges,
    taken: &'a Taken,
    held: Vec<Holding>,
    /// Node ports that it names, which are not to be chosen for another of its ports.
    asked: HashSet<i64>,
    /// Node ports that it has so far.
    ports: HashSet<i64>,
    claims: Vec<Claim>,
    errors: Errors,
}

impl Allocation<'_> {
    /// One address of each of the Service's families.
    fn addresses(&mut self, service: &mut Value) {
        if !kind::needs_cluster_ip(service) || is_headless(service) {
            return;
        }
        let asked = service.list("spec.clusterIPs").to_vec();
        let mut addresses = Vec::new();
        for (index, wanted) in service.list("spec.ipFamilies").iter().enumerate() {
            let named = asked.get(index).and_then(Value::as_str).unwrap_or_default();
            let address = match named {
                "" => self.free_address(wanted.as_str().unwrap_or_default()),
                named => self.named_address(named, &asked),
            };
            addresses.extend(address);
        }
        let spec = &mut service["spec"];
        object::set_or_remove(spec, "clusterIP", addresses.first().map(|first| json!(first)));
        spec["clusterIPs"] = json!(addresses);
    }

    fn free_address(&mut self, wanted: &str) -> Option<String> {
        let cidr = self
            .ranges
            .cidrs
            .iter()
            .find(|cidr| family(cidr.ip()) == wanted)?;
        match pool::free_address(cidr, &self.taken.addresses) {
            Some(ip) => {
                self.claims.push(Claim::chosen(Holding::Address(ip)));
                Some(ip.to_string())
            }
            None => {
                let at = Path::new("spec").child("clusterIPs");
                self.errors
                    .invalid(&at, json!([]), "failed to allocate a serviceIP: range is full");
                None
            }
        }
    }

    fn named_address(&mut self, named: &str, asked: &[Value]) -> Option<String> {
        let ip: IpAddr = named.parse().ok()?;
        let holding = Holding::Address(ip);
        let at = Path::new("spec").child("clusterIPs");
        let cidr = self
            .ranges
            .cidrs
            .iter()
            .find(|cidr| cidr.is_ipv4() == ip.is_ipv4());
        if let Some(cidr) = cidr
            && !cidr.contains(ip)
            && !self.held.contains(&holding)
        {
            let detail = format!(
                "failed to allocate IP {named}: the provided IP ({named}) is not in the valid range. The range of valid IPs is {cidr}"
            );
            self.errors.invalid(&at, asked.to_vec(), detail);
            return None;
        }
        let detail = format!("failed to allocate IP {named}: provided IP is already allocated");
        self.claims
            .push(Claim::named(holding, &at, asked.to_vec(), detail));
        Some(named.to_owned())
    }

    /// A new Service has one node port for all protocols of a port; a port that comes later has its own.
    fn node_ports(&mut self, service: &mut Value, is_new: bool) {
        let automatic = service.at("spec.allocateLoadBalancerNodePorts") != &Value::Bool(false);
        let at = Path::new("spec").child("ports");
        let mut shared = if is_new {
            requested_ports(service)
        } else {
            BTreeMap::new()
        };
        let ports = service["spec"].get_mut("ports").and_then(Value::as_array_mut);
        for (index, port) in ports.into_iter().flatten().enumerate() {
            let at = at.index(index).child("nodePort");
            let named = match port.int("nodePort").unwrap_or(0) {
                0 if !automatic => continue,
                0 => port.int("port").and_then(|number| shared.get(&number)).copied(),
                named => Some(named),
            };
            let number = match named {
                Some(named) => self.named_port(named, &at).then_some(named),
                None => self.free_port(&at),
            };
            let Some(number) = number else { continue };
            port["nodePort"] = number.into();
            if let (true, Some(service_port)) = (is_new, port.int("port")) {
                shared.entry(service_port).or_insert(number);
            }
        }
    }

    fn health_check_port(&mut self, service: &mut Value) {
        let at = Path::new("spec").child("healthCheckNodePort");
        let number = match service.int("spec.healthCheckNodePort").unwrap_or(0) {
            0 => self.free_port(&at),
            named if self.ports.contains(&named) => {
                self.errors.invalid(&at, named, PORT_IS_TAKEN);
                None
            }
            named => self.named_port(named, &at).then_some(named),
        };
        object::set_or_remove(
            &mut service["spec"],
            "healthCheckNodePort",
            number.map(Value::from),
        );
    }

    fn named_port(&mut self, named: i64, at: &Path) -> bool {
        let (first, last) = self.ranges.ports;
        let holding = Holding::Port(named);
        let in_range = (i64::from(first)..=i64::from(last)).contains(&named);
        if !in_range && !self.held.contains(&holding) {
            let detail = format!(
                "provided port is not in the valid range. The range of valid ports is {first}-{last}"
            );
            self.errors.invalid(at, named, detail);
            return false;
        }
        // One Service may use a number for TCP and UDP alike: claimed once.
        if self.ports.insert(named) {
            self.claims.push(Claim::named(holding, at, named, PORT_IS_TAKEN));
        }
        true
    }

    fn free_port(&mut self, at: &Path) -> Option<i64> {
        let sets = [&self.taken.ports, &self.asked, &self.ports];
        let is_taken = |number| sets.iter().any(|set| set.contains(&number));
        let Some(number) = pool::free_port(self.ranges.ports, is_taken) else {
            self.errors
                .invalid(at, 0, "failed to allocate a nodePort: range is full");
            return None;
        };
        self.ports.insert(number);
        self.claims.push(Claim::chosen(Holding::Port(number)));
        Some(number)
    }
}

/// The node ports that were named, by the number of the Service's port.
fn requested_ports(service: &Value) -> BTreeMap<i64, i64> {
    let mut requested = BTreeMap::new();
    for port in service.list("spec.ports") {
        let node_port = port.int("nodePort").filter(|number| *number != 0);
        if let (Some(number), Some(node_port)) = (port.int("port"), node_port) {
            requested.entry(number).or_insert(node_port);
        }
    }
    requested
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

#[cfg(test)]
#[path = "services/tests.rs"]
mod tests;
