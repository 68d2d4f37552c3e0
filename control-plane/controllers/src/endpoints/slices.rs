//! EndpointSlices (KEP-752): which slices there should be for a Service, or for an Endpoints object that is mirrored.
//!
//! Endpoints stay in the slice that they are in, so that a change touches one slice. Slices that nothing is left
//! in are used again before new ones are made.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::observed::Port;
use crate::selector::Labels;

/// The label that ties a slice to its Service.
pub(crate) const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// The label that names who writes a slice.
pub(crate) const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// When what a slice says came about; absent where that is not known.
const CHANGED_AT_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Upstream's default; larger slices cost consumers more per change.
const MAX_ENDPOINTS: usize = 100;

/// Whether `manager` writes the slice.
pub(crate) fn is_managed_by(slice: &EndpointSlice, manager: &str) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(MANAGED_BY_LABEL))
        .is_some_and(|by| by == manager)
}

/// What to write. New slices have `generateName` only; changed ones carry the resource version that they were
/// read at.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<Arc<EndpointSlice>>,
}

/// What the slices belong to.
#[derive(Debug)]
pub(crate) struct Subject {
    pub namespace: Option<String>,
    /// The slices' names begin with it, and a dash.
    pub name: String,
    pub owner: OwnerReference,
    /// All labels of the slices.
    pub labels: Labels,
    /// When what is to be written came about, as far as is known.
    pub changed_at: Option<Timestamp>,
    /// Whether an empty slice stands for "no endpoints".
    pub keeps_one: bool,
}

/// Endpoints by their ports: a slice has one list of ports for all of its endpoints.
pub(crate) type Groups = BTreeMap<Vec<Port>, BTreeMap<Identity, Endpoint>>;

/// What makes an endpoint the same one as before: its address, and the uid of its pod.
pub(crate) type Identity = (IpAddr, Option<String>);

/// Compares the endpoints of each address family with the `existing` slices.
pub(crate) fn plan(
    subject: &Subject,
    families: Vec<(&'static str, Groups)>,
    existing: &[Arc<EndpointSlice>],
) -> Plan {
    let mut plan = Plan::default();
    let wanted: Vec<&str> = families.iter().map(|(family, _)| *family).collect();
    for (family, groups) in families {
        let of_family = existing
            .iter()
            .filter(|slice| slice.address_type == family)
            .cloned()
            .collect();
        FamilyPlan {
            subject,
            family,
            into: &mut plan,
        }
        .fill(groups, of_family);
    }
    let foreign = existing
        .iter()
        .filter(|slice| !wanted.contains(&slice.address_type.as_str()));
    plan.delete.extend(foreign.cloned());
    plan
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
    subject: &'a Subject,
    family: &'static str,
    into: &'a mut Plan,
}

impl FamilyPlan<'_> {
    fn fill(&mut self, groups: Groups, existing: Vec<Arc<EndpointSlice>>) {
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
        if kept.is_empty() && !created && self.subject.keeps_one {
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
        let mut annotations = meta.annotations.unwrap_or_default();
        annotations.remove(CHANGED_AT_ANNOTATION);
        if let Some(time) = self.subject.changed_at {
            annotations.insert(CHANGED_AT_ANNOTATION.to_owned(), time.to_string());
        }
        let generate_name = meta
            .generate_name
            .or_else(|| Some(format!("{}-", self.subject.name)));
        EndpointSlice {
            metadata: ObjectMeta {
                namespace: self.subject.namespace.clone(),
                generate_name,
                annotations: (!annotations.is_empty()).then_some(annotations),
                labels: Some(self.subject.labels.clone()),
                owner_references: Some(vec![self.subject.owner.clone()]),
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

/// Whether writing `wanted` over `stored` would change nothing. Absent lists and empty ones are the same; the time of
/// a change is none itself.
fn is_same(wanted: &EndpointSlice, stored: &EndpointSlice) -> bool {
    wanted.endpoints == stored.endpoints
        && ports_of(wanted) == ports_of(stored)
        && wanted.metadata.labels == stored.metadata.labels
        && wanted.metadata.owner_references == stored.metadata.owner_references
}
