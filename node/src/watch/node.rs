//! `core/v1` Nodes and Namespaces.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use model::{Change, Kind, Namespace, Node, NodeName, ObjectName, Text};

use super::faults::Faults;
use super::object::{Converted, Watchable};

/// The zone of a node.
const ZONE: &str = "topology.kubernetes.io/zone";

/// The cluster autoscaler is about to delete the node (KEP-3836).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// What flannel's annotations begin with.
pub(super) const FLANNEL: &str = "flannel.alpha.coreos.com/";

/// The condition by which pods are kept away from a node without a pod network.
pub(super) const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

impl Watchable for core::Node {
    const KIND: Kind = Kind::Node;

    fn convert(self, name: &ObjectName, faults: &mut Faults) -> Converted {
        let Self {
            metadata,
            spec,
            status,
        } = self;
        let core::NodeSpec {
            config_source: _,
            external_id: _,
            pod_cidr,
            pod_cidrs,
            provider_id: _,
            taints,
            unschedulable: _,
        } = spec.unwrap_or_default();
        let status = status.unwrap_or_default();
        let addresses = status.addresses.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        // `podCIDRs` is absent on objects of servers before 1.16 only.
        let pod_cidrs = pod_cidrs.unwrap_or_else(|| pod_cidr.into_iter().collect());
        let pod_cidrs = pod_cidrs.iter().enumerate();
        let taints: Vec<Text> = taints
            .unwrap_or_default()
            .into_iter()
            .map(|taint| taint.key.into())
            .collect();
        let doomed = taints.iter().any(|key| **key == *TO_BE_DELETED);
        Converted::Put(Box::new(Change::Node(Node {
            name: NodeName(name.name.clone()),
            internal_addresses: addresses_of_type("InternalIP", &addresses, faults),
            external_addresses: addresses_of_type("ExternalIP", &addresses, faults),
            pod_cidrs: pod_cidrs
                .filter_map(|(index, text)| faults.network(&format!("spec.podCIDRs[{index}]"), text))
                .collect(),
            zone: metadata
                .labels
                .and_then(|mut labels| labels.remove(ZONE))
                .map(Text::from),
            flannel: flannels(metadata.annotations.unwrap_or_default()),
            network_available: conditions
                .iter()
                .any(|condition| condition.type_ == NETWORK_UNAVAILABLE && condition.status == "False"),
            taints,
            draining: doomed || metadata.deletion_timestamp.is_some(),
        })))
    }
}

fn flannels(annotations: BTreeMap<String, String>) -> BTreeMap<Text, Text> {
    let annotations = annotations.into_iter();
    annotations
        .filter_map(|(name, value)| Some((name.strip_prefix(FLANNEL)?.into(), value.into())))
        .collect()
}

fn addresses_of_type(wanted: &str, addresses: &[core::NodeAddress], faults: &mut Faults) -> Vec<IpAddr> {
    let addresses = addresses.iter().enumerate();
    addresses
        .filter(|(_, core::NodeAddress { type_, address: _ })| type_ == wanted)
        .filter_map(|(index, core::NodeAddress { address, type_: _ })| {
            faults.reachable_address(&format!("status.addresses[{index}].address"), address)
        })
        .collect()
}

impl Watchable for core::Namespace {
    const KIND: Kind = Kind::Namespace;

    fn convert(self, name: &ObjectName, _faults: &mut Faults) -> Converted {
        Converted::Put(Box::new(Change::Namespace(Namespace {
            name: name.name.clone(),
        })))
    }
}
