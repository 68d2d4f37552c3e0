//! What names exist: the cluster's snapshot turned into tables that are searched without work.
//!
//! A [`Table`] belongs to no zone and no configuration: zone names, TTLs and modes come in when it is asked, so that
//! every `kubernetes` plugin shares it. An update builds what changed and shares the rest with the table before.

mod dashed;
pub mod endpoint;
pub mod grammar;
mod reverse;
pub mod service;

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use model::feed::is_complete;
use model::{Kind as ObjectKind, ObjectName, SharedMap, Snapshot, Text};

pub use dashed::address_of_pod_label;
pub use endpoint::{Endpoint, EndpointNames, Port};
pub use grammar::{Asked, PortName};
pub use reverse::addresses_below;
use reverse::{Edits, Reverse};
pub use service::{Called, Kind, ServiceRecords};

/// Everything that the cluster zone answers from.
#[derive(Clone, Debug, Default)]
pub struct Table {
    namespaces: HashMap<Box<[u8]>, Arc<NamespaceTable>>,
    /// Which Services lead back from an address.
    reverse: Reverse,
    /// Which pods have an address, per namespace, for `pods verified` and autopath by pods.
    pods: SharedMap<(Text, IpAddr), Box<[Text]>>,
    /// The SOA's serial: when the table last changed, in Unix seconds.
    pub serial: u32,
    /// Whether absence from this table means absence from the cluster.
    pub synced: bool,
    /// Whether the same holds for pods.
    pub pods_synced: bool,
    /// This machine's addresses, for the zone's NS record.
    pub local_addresses: Vec<IpAddr>,
}

/// The Services of a namespace.
#[derive(Clone, Debug, Default)]
struct NamespaceTable {
    /// A Namespace object is there. A Service that arrives before its Namespace answers nevertheless.
    exists: bool,
    services: HashSet<Named>,
}

/// A Service, found by its label.
#[derive(Clone, Debug)]
struct Named(Arc<ServiceRecords>);

impl Borrow<[u8]> for Named {
    fn borrow(&self) -> &[u8] {
        self.0.label()
    }
}

impl Hash for Named {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.label().hash(state);
    }
}

impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        self.0.label() == other.0.label()
    }
}

impl Eq for Named {}

/// A Service that was found by an address.
#[derive(Clone, Copy, Debug)]
pub struct Reversed<'t> {
    /// First label of the Service's name.
    pub service: &'t [u8],
    /// Its namespace.
    pub namespace: &'t [u8],
    /// The Service.
    pub records: &'t ServiceRecords,
    /// Whether the address is one of its endpoints', not its own.
    pub is_endpoint: bool,
}

impl Table {
    /// The table of a newer snapshot: `self` is the table of `older`.
    #[must_use]
    pub fn updated(&self, older: &Snapshot, newer: &Snapshot, now_unix_seconds: u32) -> Self {
        let changed = newer.changed_since(older);
        let mut table = self.clone();
        for namespace in &changed.namespaces {
            let exists = newer.namespaces.get(namespace).is_some();
            table.edit_namespace(namespace, |entry| entry.exists = exists);
        }
        let mut by_namespace: HashMap<&str, Vec<&ObjectName>> = HashMap::new();
        for name in &changed.services {
            by_namespace.entry(&name.namespace).or_default().push(name);
        }
        let mut edits = Edits::default();
        for (namespace, names) in by_namespace {
            table.put_services(namespace, &names, newer, &mut edits);
        }
        table.reverse = self.reverse.updated(edits);
        for name in &changed.pods {
            table.put_pod(name, older, newer);
        }
        table.synced = is_complete(newer);
        table.pods_synced = newer.is_synced(ObjectKind::Pod);
        if !changed.is_empty() {
            // CoreDNS's serial is a time as well; never smaller than before, so that it stays a serial.
            table.serial = now_unix_seconds.max(self.serial);
        }
        table
    }

    fn edit_namespace(&mut self, namespace: &str, edit: impl FnOnce(&mut NamespaceTable)) {
        let key = namespace.to_ascii_lowercase().into_bytes().into_boxed_slice();
        let entry = Arc::make_mut(self.namespaces.entry(key.clone()).or_default());
        edit(entry);
        if !entry.exists && entry.services.is_empty() {
            self.namespaces.remove(&key);
        }
    }

    /// Notes who gets addresses by that, and who loses them.
    fn put_services(
        &mut self,
        namespace: &str,
        names: &[&ObjectName],
        newer: &Snapshot,
        reversals: &mut Edits,
    ) {
        self.edit_namespace(namespace, |table| {
            for name in names {
                let own_name = ObjectName::new(lower(&name.namespace), lower(&name.name));
                let service = newer.services.get(name);
                let new = service.map(|service| ServiceRecords::new(service, newer.slices.get(name)));
                let new = new.map(Arc::new);
                let old = match &new {
                    Some(records) => table.services.replace(Named(Arc::clone(records))),
                    None => table.services.take(own_name.name.as_bytes()),
                };
                let addresses = |records: Option<&ServiceRecords>| {
                    records.map_or_else(Vec::new, ServiceRecords::reversible_addresses)
                };
                let old = addresses(old.as_ref().map(|Named(records)| &**records));
                let new = addresses(new.as_deref());
                for (one, other, is_there) in [(&old, &new, false), (&new, &old, true)] {
                    let only = one.iter().filter(|address| other.binary_search(address).is_err());
                    only.for_each(|address| reversals.add(*address, own_name.clone(), is_there));
                }
            }
        });
    }

    fn put_pod(&mut self, name: &ObjectName, older: &Snapshot, newer: &Snapshot) {
        for (snapshot, present) in [(older, false), (newer, true)] {
            let pod = snapshot.pods.get(name);
            for address in pod.iter().flat_map(|pod| &pod.addresses) {
                let key = (name.namespace.clone(), *address);
                edit_set(&mut self.pods, key, name.name.clone(), present);
            }
        }
    }

    /// Whether names may stand below this namespace.
    #[must_use]
    pub fn has_namespace(&self, namespace: &[u8]) -> bool {
        self.namespaces.contains_key(namespace)
    }

    /// Whether the namespace's own object is there.
    #[must_use]
    pub fn lists_namespace(&self, namespace: &[u8]) -> bool {
        self.namespaces.get(namespace).is_some_and(|entry| entry.exists)
    }

    /// The records of a Service, its labels in lower case.
    #[must_use]
    pub fn service(&self, namespace: &[u8], service: &[u8]) -> Option<&ServiceRecords> {
        let found = self.namespaces.get(namespace)?.services.get(service);
        found.map(|Named(records)| &**records)
    }

    /// Whether a pod of that namespace has the address.
    #[must_use]
    pub fn has_pod(&self, namespace: &[u8], address: IpAddr) -> bool {
        let Ok(namespace) = std::str::from_utf8(namespace) else {
            return false;
        };
        self.pods.get(&(namespace.into(), address)).is_some()
    }

    /// The Services that an address leads back to: the one whose ClusterIP it is (DNS specification §2.3.3), else every
    /// one it is an endpoint of.
    pub fn reversed(&self, address: IpAddr) -> impl Iterator<Item = Reversed<'_>> {
        let owners = self.reverse.owners(address);
        let found = owners.filter_map(move |owner| {
            let (namespace, service) = (owner.namespace.as_bytes(), owner.name.as_bytes());
            let records = self.service(namespace, service)?;
            Some(Reversed {
                service,
                namespace,
                records,
                is_endpoint: !records.owns(address),
            })
        });
        // One alone need not be chosen.
        let are_many = self.reverse.owners(address).nth(1).is_some();
        let mut all = found.clone();
        let own = are_many.then(|| all.find(|owner| !owner.is_endpoint)).flatten();
        let others = found.filter(move |_| own.is_none());
        own.into_iter().chain(others)
    }

    /// Whether one of these addresses leads back to a Service.
    #[must_use]
    pub fn any_reversed(&self, range: &RangeInclusive<IpAddr>) -> bool {
        self.reverse.any_within(range)
    }

    /// How many Services the table holds.
    #[must_use]
    pub fn service_count(&self) -> usize {
        self.namespaces
            .values()
            .map(|namespace| namespace.services.len())
            .sum()
    }
}

/// A name in lower case, which nearly all are.
fn lower(text: &Text) -> Text {
    match text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => text.to_ascii_lowercase().into(),
        false => text.clone(),
    }
}

/// Puts a value into the sorted set at a key, or takes it out. The sets are slices because nearly all hold one value, and
/// there is one for every pod: a tree would take ten times the memory.
fn edit_set<K, V>(map: &mut SharedMap<K, Box<[V]>>, key: K, value: V, present: bool)
where
    K: Ord + Hash + Clone,
    V: Ord + Clone,
{
    let known: &[V] = map.get(&key).map_or(&[], |set| &***set);
    let mut set: Vec<V> = known.iter().filter(|known| **known != value).cloned().collect();
    if present {
        set.push(value);
        set.sort_unstable();
    }
    if set.is_empty() {
        map.remove(&key);
    } else {
        map.insert(key, set.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;
    use model::Change;

    fn table(snapshot: &Snapshot) -> Table {
        Table::default().updated(&Snapshot::default(), snapshot, 100)
    }

    /// What a table tells of every service, sorted, for whole comparisons.
    fn contents(table: &Table) -> Vec<String> {
        let services = table.namespaces.iter().flat_map(|(namespace, entry)| {
            entry
                .services
                .iter()
                .map(move |Named(records)| format!("{namespace:?} {records:?}"))
        });
        let empty = table
            .namespaces
            .iter()
            .map(|(name, entry)| format!("{name:?} {}", entry.exists));
        let reverse = table
            .reverse
            .iter()
            .map(|(address, service)| format!("{address} {service}"));
        let pods = table.pods.iter().map(|(key, names)| format!("{key:?} {names:?}"));
        let mut lines: Vec<String> = services.chain(empty).chain(reverse).chain(pods).collect();
        lines.sort();
        lines
    }

    #[test]
    fn an_updated_table_equals_one_built_anew_and_shares_untouched_namespaces() {
        let older = samples::snapshot();
        let before = table(&older);
        let mut newer = older.clone();
        newer.apply(Change::DeleteService(ObjectName::new("testns", "svc1")));
        newer.apply(Change::DeleteEndpointSlice(ObjectName::new("testns", "hdls1-a")));
        newer.apply(Change::Service(samples::cluster_ip(
            "testns",
            "fresh",
            &["10.0.0.200"],
            &[("", 80)],
        )));
        newer.apply(Change::DeletePod(ObjectName::new("testns", "web-0")));
        newer.apply(Change::DeleteNamespace("emptyns".into()));
        let after = before.updated(&older, &newer, 200);

        assert_eq!(contents(&after), contents(&table(&newer)));
        assert_eq!((before.serial, after.serial), (100, 200));
        let other: &[u8] = b"otherns";
        assert!(Arc::ptr_eq(&before.namespaces[other], &after.namespaces[other]));
    }

    #[test]
    fn a_table_is_synced_when_services_slices_and_namespaces_are() {
        let mut snapshot = Snapshot::default();
        for (kind, expected) in [
            (ObjectKind::Service, false),
            (ObjectKind::Namespace, false),
            (ObjectKind::Node, false),
            (ObjectKind::EndpointSlice, true),
        ] {
            snapshot.apply(Change::Synced(kind));
            assert_eq!(table(&snapshot).synced, expected, "after {kind:?}");
        }
    }

    #[test]
    fn taking_everything_away_leaves_an_empty_table() {
        let older = samples::snapshot();
        let emptied = table(&older).updated(&older, &Snapshot::default(), 200);
        assert_eq!(contents(&emptied), contents(&Table::default()));
        assert_eq!(emptied.service_count(), 0);
    }
}
