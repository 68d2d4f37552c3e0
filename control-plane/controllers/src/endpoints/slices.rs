//! EndpointSlices (KEP-752): which slices a Service should have.
//!
//! Endpoints stay in the slice that they are in, so that a change touches one slice. Slices that nothing is
//! left in are used again before new ones are made; one, possibly empty, is always there.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::observed::{PodEndpoint, Port, ServicePods, families, family, is_headless, publishes_not_ready};
use crate::ownership;
use crate::selector::Labels;

/// The label that ties a slice to its Service.
pub(crate) const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// Upstream's name: consumers know it.
const MANAGED_BY: &str = "endpointslice-controller.k8s.io";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Upstream's default; larger slices cost consumers more per change.
const MAX_ENDPOINTS: usize = 100;

/// Whether this controller writes the slice.
pub(crate) fn is_ours(slice: &EndpointSlice) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(MANAGED_BY_LABEL))
        .is_some_and(|by| by == MANAGED_BY)
}

/// What to write. New slices have `generateName` only; changed ones carry the resource version that they were
/// read at.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<Arc<EndpointSlice>>,
}

/// What makes an endpoint the same one as before: its address, and the uid of its pod.
type Identity = (IpAddr, Option<String>);

/// Compares a Service's endpoints with its `existing` slices.
pub(crate) fn plan(service: &Service, pods: &ServicePods<'_>, existing: &[Arc<EndpointSlice>]) -> Plan {
    let families = families(service);
    let mut plan = Plan::default();
    for family in &families {
        let of_family = existing
            .iter()
            .filter(|slice| slice.address_type == *family)
            .cloned()
            .collect();
        FamilyPlan {
            service,
            family,
            into: &mut plan,
        }
        .fill(groups(pods, family), of_family);
    }
    let foreign = existing
        .iter()
        .filter(|slice| !families.contains(&slice.address_type.as_str()));
    plan.delete.extend(foreign.cloned());
    plan
}

/// Endpoints by the ports that their pods offer: a slice has one list of ports for all of its endpoints.
fn groups(pods: &ServicePods<'_>, wanted: &str) -> BTreeMap<Vec<Port>, BTreeMap<Identity, Endpoint>> {
    let mut groups: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for pod in &pods.endpoints {
        for address in pod.addresses.iter().filter(|address| family(address) == wanted) {
            let identity = (*address, pod.target.uid.clone());
            let endpoint = endpoint(pod, *address, publishes_not_ready(pods.service));
            groups
                .entry(pod.ports.clone())
                .or_default()
                .insert(identity, endpoint);
        }
    }
    groups
}

fn endpoint(pod: &PodEndpoint, address: IpAddr, publishes_not_ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(publishes_not_ready || (pod.serving && !pod.terminating)),
            serving: Some(pod.serving),
            terminating: Some(pod.terminating),
        }),
        hostname: pod.hostname.clone(),
        node_name: pod.node.clone(),
        zone: pod.zone.clone(),
        target_ref: Some(pod.target.clone()),
        deprecated_topology: None,
        hints: None,
    }
}

fn identity(endpoint: &Endpoint) -> Option<Identity> {
    let address = endpoint.addresses.first()?.parse().ok()?;
    Some((
        address,
        endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()),
    ))
}

/// The plan for one address family.
struct FamilyPlan<'a> {
    service: &'a Service,
    family: &'static str,
    into: &'a mut Plan,
}

impl FamilyPlan<'_> {
    fn fill(
        &mut self,
        groups: BTreeMap<Vec<Port>, BTreeMap<Identity, Endpoint>>,
        existing: Vec<Arc<EndpointSlice>>,
    ) {
        let mut by_ports: BTreeMap<Vec<Port>, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
        for slice in existing {
            by_ports.entry(ports_of(&slice)).or_default().push(slice);
        }
        // Slices that are still needed keep their endpoints; the rest is spare.
        let mut spare = VecDeque::new();
        let mut kept = Vec::new();
        let mut homeless = Vec::new();
        for (ports, mut wanted) in groups {
            for slice in by_ports.remove(&ports).unwrap_or_default() {
                let endpoints = still_wanted(&slice, &mut wanted);
                if endpoints.is_empty() {
                    spare.push_back(slice)
                } else {
                    kept.push((slice, ports.clone(), endpoints))
                }
            }
            homeless.push((ports, wanted));
        }
        spare.extend(by_ports.into_values().flatten());
        for (ports, wanted) in homeless {
            self.house(&ports, wanted.into_values().collect(), &mut kept, &mut spare);
        }
        self.finish(kept, spare);
    }

    /// Puts endpoints that are in no slice yet into slices with room, then into spare ones, then into new
    /// ones.
    fn house(
        &mut self,
        ports: &[Port],
        mut endpoints: VecDeque<Endpoint>,
        kept: &mut [(Arc<EndpointSlice>, Vec<Port>, Vec<Endpoint>)],
        spare: &mut VecDeque<Arc<EndpointSlice>>,
    ) {
        let mut roomy: Vec<_> = kept.iter_mut().filter(|(_, theirs, _)| theirs == ports).collect();
        roomy.sort_by_key(|(_, _, inside)| std::cmp::Reverse(inside.len()));
        for (_, _, inside) in roomy {
            let room = MAX_ENDPOINTS.saturating_sub(inside.len()).min(endpoints.len());
            inside.extend(endpoints.drain(..room));
        }
        while !endpoints.is_empty() {
            let batch = endpoints.drain(..MAX_ENDPOINTS.min(endpoints.len())).collect();
            match spare.pop_front() {
                Some(slice) => self.write(&slice, ports, batch),
                None => self
                    .into
                    .create
                    .push(self.slice(ObjectMeta::default(), ports, batch)),
            }
        }
    }

    fn finish(
        &mut self,
        kept: Vec<(Arc<EndpointSlice>, Vec<Port>, Vec<Endpoint>)>,
        mut spare: VecDeque<Arc<EndpointSlice>>,
    ) {
        let created = self
            .into
            .create
            .iter()
            .chain(&self.into.update)
            .any(|slice| slice.address_type == self.family);
        if kept.is_empty() && !created {
            match spare.pop_front() {
                Some(slice) => self.write(&slice, &ports_of(&slice), Vec::new()),
                None => self
                    .into
                    .create
                    .push(self.slice(ObjectMeta::default(), &[], Vec::new())),
            }
        }
        for (slice, ports, endpoints) in kept {
            self.write(&slice, &ports, endpoints);
        }
        self.into.delete.extend(spare);
    }

    fn write(&mut self, slice: &Arc<EndpointSlice>, ports: &[Port], endpoints: Vec<Endpoint>) {
        let changed = self.slice(slice.metadata.clone(), ports, endpoints);
        if !is_same(&changed, slice) {
            self.into.update.push(changed);
        }
    }

    fn slice(&self, meta: ObjectMeta, ports: &[Port], endpoints: Vec<Endpoint>) -> EndpointSlice {
        let service = &self.service.metadata;
        let generate_name = meta
            .generate_name
            .or_else(|| Some(format!("{}-", service.name.as_deref()?)));
        EndpointSlice {
            metadata: ObjectMeta {
                namespace: service.namespace.clone(),
                generate_name,
                labels: Some(labels(self.service)),
                owner_references: Some(vec![ownership::controller_ref(self.service)]),
                ..meta
            },
            address_type: self.family.to_owned(),
            endpoints,
            ports: Some(ports.iter().map(port).collect()),
        }
    }
}

/// Takes from `wanted` what the slice holds already, in the slice's order, in its wanted state.
fn still_wanted(slice: &EndpointSlice, wanted: &mut BTreeMap<Identity, Endpoint>) -> Vec<Endpoint> {
    slice
        .endpoints
        .iter()
        .filter_map(identity)
        .filter_map(|identity| wanted.remove(&identity))
        .collect()
}

fn labels(service: &Service) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS_LABEL);
    if is_headless(service) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    labels.insert(
        SERVICE_LABEL.to_owned(),
        service.metadata.name.clone().unwrap_or_default(),
    );
    labels.insert(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned());
    labels
}

fn port(port: &Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.clone()),
        port: Some(port.number),
        app_protocol: port.app_protocol.clone(),
    }
}

fn ports_of(slice: &EndpointSlice) -> Vec<Port> {
    let mut ports: Vec<Port> = slice
        .ports
        .iter()
        .flatten()
        .map(|port| Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            number: port.port.unwrap_or(0),
            app_protocol: port.app_protocol.clone(),
        })
        .collect();
    ports.sort();
    ports
}

/// Whether writing `wanted` over `stored` would change nothing. Absent lists and empty ones are the same.
fn is_same(wanted: &EndpointSlice, stored: &EndpointSlice) -> bool {
    wanted.endpoints == stored.endpoints
        && ports_of(wanted) == ports_of(stored)
        && wanted.metadata.labels == stored.metadata.labels
        && wanted.metadata.owner_references == stored.metadata.owner_references
}

#[cfg(test)]
#[path = "slices_tests.rs"]
mod tests;
