//! Everything that is known of the cluster at one moment.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{EndpointSlice, Node, NodeName, ObjectName, Pod, Pools, Service, SharedMap, Slices, Text};

/// A kind of object that a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// `core/v1` Services.
    Service,
    /// `discovery/v1` EndpointSlices.
    EndpointSlice,
    /// `core/v1` Nodes.
    Node,
    /// `core/v1` Namespaces.
    Namespace,
    /// `core/v1` Pods (watched only where a feature asks for them).
    Pod,
    /// `networking/v1` ServiceCIDRs, which servers have from Kubernetes 1.33 on.
    ServiceCidr,
}

impl Kind {
    /// `kind` of its objects.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }
}

/// A Namespace: DNS answers differently for names in one that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: Text,
}

/// A ServiceCIDR: networks from which the cluster takes its ClusterIPs (KEP-1880).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCidr {
    /// `metadata.name`.
    pub name: Text,
    /// `spec.cidrs`.
    pub networks: BTreeSet<IpNetwork>,
}

/// One edit of a snapshot. In JSON: `{"service": {…}}`, `{"delete-service": {"namespace": …, "name": …}}`, and so on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// A Service was added or changed.
    Service(Service),
    /// A Service is gone.
    DeleteService(ObjectName),
    /// An EndpointSlice was added or changed.
    EndpointSlice(EndpointSlice),
    /// An EndpointSlice is gone.
    DeleteEndpointSlice(ObjectName),
    /// A Node was added or changed.
    Node(Node),
    /// A Node is gone.
    DeleteNode(NodeName),
    /// A Namespace was added or changed.
    Namespace(Namespace),
    /// A Namespace is gone.
    DeleteNamespace(Text),
    /// A Pod was added or changed.
    Pod(Pod),
    /// A Pod is gone.
    DeletePod(ObjectName),
    /// A ServiceCIDR was added or changed.
    ServiceCidr(ServiceCidr),
    /// A ServiceCIDR is gone.
    DeleteServiceCidr(Text),
    /// The first complete list of a kind is in: from now on absence means absence.
    Synced(Kind),
}

impl Change {
    /// Makes its object take no more memory than it must, for one that is to be kept. There are many of two kinds.
    pub fn pack(&mut self, pools: &mut Pools) {
        match self {
            Self::Service(service) => service.pack(pools),
            Self::EndpointSlice(slice) => slice.pack(pools),
            _ => {}
        }
    }
}

/// The cluster as one watcher knows it. A copy is cheap and shares structure with the original.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Services by name.
    pub services: SharedMap<ObjectName, Service>,
    /// EndpointSlices by the Service that they belong to.
    pub slices: SharedMap<ObjectName, Slices>,
    /// Nodes by name.
    pub nodes: SharedMap<NodeName, Node>,
    /// Namespaces by name.
    pub namespaces: SharedMap<Text, Namespace>,
    /// Pods by name.
    pub pods: SharedMap<ObjectName, Pod>,
    /// ServiceCIDRs by name.
    pub service_cidrs: SharedMap<Text, ServiceCidr>,
    synced: BTreeSet<Kind>,
    /// The same slices by their own names: a deletion names only the slice.
    slices_by_name: SharedMap<ObjectName, EndpointSlice>,
}

/// What differs between two snapshots. A changed slice counts as a change of its Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Services that changed, or whose endpoints did.
    pub services: BTreeSet<ObjectName>,
    /// Nodes that changed.
    pub nodes: BTreeSet<NodeName>,
    /// Namespaces that changed.
    pub namespaces: BTreeSet<Text>,
    /// Pods that changed.
    pub pods: BTreeSet<ObjectName>,
    /// ServiceCIDRs that changed.
    pub service_cidrs: BTreeSet<Text>,
    /// Kinds that became synced.
    pub synced: BTreeSet<Kind>,
}

impl Changed {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Snapshot {
    /// Applies one edit and returns whether it changed anything.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Service(service) => self.services.insert(service.name.clone(), service),
            Change::DeleteService(name) => self.services.remove(&name).is_some(),
            Change::EndpointSlice(slice) => self.put_slice(slice),
            Change::DeleteEndpointSlice(name) => self.remove_slice(&name),
            Change::Node(node) => self.nodes.insert(node.name.clone(), node),
            Change::DeleteNode(name) => self.nodes.remove(&name).is_some(),
            Change::Namespace(namespace) => self.namespaces.insert(namespace.name.clone(), namespace),
            Change::DeleteNamespace(name) => self.namespaces.remove(&name).is_some(),
            Change::Pod(pod) => self.pods.insert(pod.name.clone(), pod),
            Change::DeletePod(name) => self.pods.remove(&name).is_some(),
            Change::ServiceCidr(cidr) => self.service_cidrs.insert(cidr.name.clone(), cidr),
            Change::DeleteServiceCidr(name) => self.service_cidrs.remove(&name).is_some(),
            Change::Synced(kind) => self.synced.insert(kind),
        }
    }

    /// Whether the first complete list of `kind` is in. Until then nothing may be deleted for being absent.
    #[must_use]
    pub fn is_synced(&self, kind: Kind) -> bool {
        self.synced.contains(&kind)
    }

    /// The kinds whose first complete list is in.
    pub fn synced(&self) -> impl Iterator<Item = Kind> {
        self.synced.iter().copied()
    }

    /// The slices of a Service, by name. A Service without any has none.
    pub fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &EndpointSlice> {
        self.slices
            .get(service)
            .into_iter()
            .flat_map(|slices| slices.iter().map(Arc::as_ref))
    }

    /// What differs between `older` and this snapshot, however many states lie between.
    #[must_use]
    pub fn changed_since(&self, older: &Self) -> Changed {
        let mut services: BTreeSet<ObjectName> = self
            .services
            .keys_changed_since(&older.services)
            .into_iter()
            .cloned()
            .collect();
        services.extend(self.slices.keys_changed_since(&older.slices).into_iter().cloned());
        Changed {
            services,
            nodes: self
                .nodes
                .keys_changed_since(&older.nodes)
                .into_iter()
                .cloned()
                .collect(),
            namespaces: self
                .namespaces
                .keys_changed_since(&older.namespaces)
                .into_iter()
                .cloned()
                .collect(),
            pods: self
                .pods
                .keys_changed_since(&older.pods)
                .into_iter()
                .cloned()
                .collect(),
            service_cidrs: self
                .service_cidrs
                .keys_changed_since(&older.service_cidrs)
                .into_iter()
                .cloned()
                .collect(),
            synced: self.synced.difference(&older.synced).copied().collect(),
        }
    }

    /// The edits that make an empty snapshot into this one: objects first, `Synced` last.
    pub fn as_changes(&self) -> impl Iterator<Item = Change> {
        let namespaces = self
            .namespaces
            .iter()
            .map(|(_, object)| Change::Namespace((**object).clone()));
        let nodes = self
            .nodes
            .iter()
            .map(|(_, object)| Change::Node((**object).clone()));
        let services = self
            .services
            .iter()
            .map(|(_, object)| Change::Service((**object).clone()));
        let slices = self.slices.iter().flat_map(|(_, slices)| slices.iter());
        let slices = slices.map(|object| Change::EndpointSlice((**object).clone()));
        let pods = self
            .pods
            .iter()
            .map(|(_, object)| Change::Pod((**object).clone()));
        let service_cidrs = self
            .service_cidrs
            .iter()
            .map(|(_, object)| Change::ServiceCidr((**object).clone()));
        let synced = self.synced.iter().map(|kind| Change::Synced(*kind));
        namespaces
            .chain(nodes)
            .chain(services)
            .chain(slices)
            .chain(pods)
            .chain(service_cidrs)
            .chain(synced)
    }

    /// The edits that make `older` into this snapshot, sorted by object.
    #[must_use]
    pub fn changes_since(&self, older: &Self) -> Vec<Change> {
        let changed = self.changed_since(older);
        let mut changes = Vec::new();
        changes.extend(
            changed
                .namespaces
                .into_iter()
                .map(|name| match self.namespaces.get(&name) {
                    Some(object) => Change::Namespace((**object).clone()),
                    None => Change::DeleteNamespace(name),
                }),
        );
        changes.extend(changed.nodes.into_iter().map(|name| match self.nodes.get(&name) {
            Some(object) => Change::Node((**object).clone()),
            None => Change::DeleteNode(name),
        }));
        for name in changed.services {
            changes.extend(self.service_changes(older, &name));
        }
        changes.extend(changed.pods.into_iter().map(|name| match self.pods.get(&name) {
            Some(object) => Change::Pod((**object).clone()),
            None => Change::DeletePod(name),
        }));
        let service_cidrs = changed.service_cidrs.into_iter();
        changes.extend(service_cidrs.map(|name| match self.service_cidrs.get(&name) {
            Some(object) => Change::ServiceCidr((**object).clone()),
            None => Change::DeleteServiceCidr(name),
        }));
        changes.extend(changed.synced.into_iter().map(Change::Synced));
        changes
    }

    fn service_changes(&self, older: &Self, name: &ObjectName) -> Vec<Change> {
        let mut changes = Vec::new();
        match (self.services.get(name), older.services.get(name)) {
            (Some(new), old) if old != Some(new) => changes.push(Change::Service((**new).clone())),
            (None, Some(_)) => changes.push(Change::DeleteService(name.clone())),
            _ => {}
        }
        let empty = Slices::default();
        let new = self.slices.get(name).map_or(&empty, Arc::as_ref);
        let old = older.slices.get(name).map_or(&empty, Arc::as_ref);
        let put = new.changed_since(old);
        changes.extend(put.map(|slice| Change::EndpointSlice((**slice).clone())));
        // A slice that moved to another Service is put there, not deleted here.
        let gone = old
            .iter()
            .filter(|slice| self.slices_by_name.get(&slice.name).is_none());
        changes.extend(gone.map(|slice| Change::DeleteEndpointSlice(slice.name.clone())));
        changes
    }

    fn put_slice(&mut self, slice: EndpointSlice) -> bool {
        let moved = match self.slices_by_name.get(&slice.name) {
            Some(known) if **known == slice => return false,
            Some(known) => known.service != slice.service,
            None => false,
        };
        if moved {
            self.remove_slice(&slice.name);
        }
        let (owner, slice) = (slice.service_name(), Arc::new(slice));
        self.slices_by_name
            .insert_shared(slice.name.clone(), slice.clone());
        let slices = self.slices.get(&owner).map(Arc::as_ref);
        let slices = slices.cloned().unwrap_or_default().with(slice);
        self.slices.insert(owner, slices)
    }

    fn remove_slice(&mut self, name: &ObjectName) -> bool {
        let Some(slice) = self.slices_by_name.remove(name) else {
            return false;
        };
        let owner = slice.service_name();
        let Some(slices) = self.slices.get(&owner) else {
            return false;
        };
        let slices = slices.without(&name.name);
        if slices.is_empty() {
            self.slices.remove(&owner);
        } else {
            self.slices.insert(owner, slices);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Endpoints, Few, IpFamily, ServiceKind, UnixTime};

    fn service(name: &str) -> Service {
        Service::new(ObjectName::new("default", name), ServiceKind::Headless)
    }

    fn slice(name: &str, service: &str) -> EndpointSlice {
        EndpointSlice {
            name: ObjectName::new("default", name),
            service: service.into(),
            family: IpFamily::V4,
            endpoints: Endpoints::default(),
            ports: Few::none(),
            last_change: None,
        }
    }

    fn snapshot(changes: impl IntoIterator<Item = Change>) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for change in changes {
            snapshot.apply(change);
        }
        snapshot
    }

    #[test]
    fn a_changed_slice_is_a_change_of_its_service() {
        let before = snapshot([Change::Service(service("a")), Change::Service(service("b"))]);
        let mut after = before.clone();
        after.apply(Change::EndpointSlice(slice("a-1", "a")));
        let expected = BTreeSet::from([ObjectName::new("default", "a")]);
        assert_eq!(
            after.changed_since(&before),
            Changed {
                services: expected,
                ..Changed::default()
            }
        );
        assert_eq!(
            after
                .slices_of(&ObjectName::new("default", "a"))
                .collect::<Vec<_>>(),
            [&slice("a-1", "a")]
        );
    }

    #[test]
    fn a_slice_that_moves_to_another_service_changes_both() {
        let before = snapshot([Change::EndpointSlice(slice("s", "a"))]);
        let mut after = before.clone();
        assert!(after.apply(Change::EndpointSlice(slice("s", "b"))));
        let changed = after.changed_since(&before).services;
        assert_eq!(
            changed,
            BTreeSet::from([ObjectName::new("default", "a"), ObjectName::new("default", "b")])
        );
        assert_eq!(after.slices_of(&ObjectName::new("default", "a")).count(), 0);
    }

    #[test]
    fn edits_between_two_snapshots_rebuild_the_newer_from_the_older() {
        let older = snapshot([
            Change::Service(service("kept")),
            Change::Service(service("gone")),
            Change::EndpointSlice(slice("moves", "kept")),
            Change::EndpointSlice(slice("leaves", "gone")),
            Change::Namespace(Namespace {
                name: "default".into(),
            }),
        ]);
        let mut newer = older.clone();
        newer.apply(Change::DeleteService(ObjectName::new("default", "gone")));
        newer.apply(Change::DeleteEndpointSlice(ObjectName::new("default", "leaves")));
        newer.apply(Change::EndpointSlice(slice("moves", "new")));
        newer.apply(Change::Service(service("new")));
        newer.apply(Change::DeleteNamespace("default".into()));
        newer.apply(Change::Synced(Kind::Service));

        let mut rebuilt = older.clone();
        for change in newer.changes_since(&older) {
            rebuilt.apply(change);
        }
        assert_eq!(rebuilt, newer);
        assert_eq!(snapshot(newer.as_changes()), newer);
        assert_eq!(newer.changes_since(&newer.clone()), []);
    }

    #[test]
    fn the_same_object_again_is_no_change() {
        let mut state = snapshot([
            Change::Service(service("a")),
            Change::EndpointSlice(slice("s", "a")),
        ]);
        assert!(!state.apply(Change::Service(service("a"))));
        assert!(!state.apply(Change::EndpointSlice(slice("s", "a"))));
        let written_again = EndpointSlice {
            last_change: Some(UnixTime(Duration::from_secs(1))),
            ..slice("s", "a")
        };
        assert!(!state.apply(Change::EndpointSlice(written_again)));
        assert!(!state.apply(Change::DeleteEndpointSlice(ObjectName::new(
            "default",
            "never-there"
        ))));
    }
}
