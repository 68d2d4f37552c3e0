//! UDP flows that connection tracking still sends to endpoints that are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use model::{ObjectName, Protocol};
use netlink::conntrack::{Conntrack, Error, Flow};
use proxy::plan::{FrontendAddress, PortPlan};

use super::finding;
use super::services::Plans;
use crate::findings::Finding;

/// Flows that are named of one Service.
const NAMED: usize = 3;

/// One finding for each Service that has such flows.
///
/// # Errors
/// When connection tracking cannot be read.
pub fn look(plans: &Plans) -> Result<Vec<Finding>, Error> {
    let served = served(plans);
    if served.is_empty() {
        return Ok(Vec::new());
    }
    let is_udp = |protocol| protocol == Protocol::Udp.number();
    let owner = |flow: &Flow| {
        let (to, answers) = (flow.original.destination, flow.reply.source);
        let (service, port) = served.get(&to)?;
        // Without translation it is nobody's endpoint: the Service had none, or was not there yet.
        let serves = port
            .serving
            .iter()
            .any(|target| SocketAddr::new(target.address, target.port.get()) == answers);
        (!serves && is_udp(flow.original.protocol)).then_some(*service)
    };
    let flows = Conntrack::open()?.flows(|glance| is_udp(glance.protocol), |flow| owner(flow).is_some())?;
    let mut stale: BTreeMap<&ObjectName, BTreeSet<String>> = BTreeMap::new();
    for flow in &flows {
        if let Some(service) = owner(flow) {
            let (from, to, answers) = (flow.original.source, flow.original.destination, flow.reply.source);
            let line = format!("from {from} to {to} goes to {answers}");
            stale.entry(service).or_default().insert(line);
        }
    }
    Ok(stale
        .into_iter()
        .map(|(service, lines)| told(service, &lines))
        .collect())
}

/// Services by UDP, by where clients find them.
fn served(plans: &Plans) -> BTreeMap<SocketAddr, (&ObjectName, &PortPlan)> {
    let ports = plans
        .iter()
        .flat_map(|(service, plan)| plan.ports.values().map(move |port| (service, port)));
    let frontends = ports.flat_map(|(service, port)| {
        let keys = port.frontends.keys().filter(|key| key.protocol == Protocol::Udp);
        keys.filter_map(move |key| match key.address {
            FrontendAddress::Service(address) => {
                Some((SocketAddr::new(address, key.port.get()), (service, port)))
            }
            FrontendAddress::EveryNodeAddress(_) => None,
        })
    });
    frontends.collect()
}

fn told(service: &ObjectName, lines: &BTreeSet<String>) -> Finding {
    let mut named: Vec<String> = lines.iter().take(NAMED).cloned().collect();
    if lines.len() > NAMED {
        named.push(format!("and {} more", lines.len() - NAMED));
    }
    finding(
        "conntrack-stale",
        format!("Service {service}"),
        format!(
            "connection tracking sends flows to what is no endpoint: {}",
            named.join("; ")
        ),
        "conntrack -D -p udp -d ADDRESS, with its port; the agent does so when an endpoint leaves",
    )
}
