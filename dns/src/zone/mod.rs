//! What names exist: the cluster's snapshot turned into tables that are searched without work.
//!
//! A [`Table`] belongs to no zone and no configuration: zone names, TTLs and modes come in when it is asked, so that
//! every `kubernetes` plugin shares it. An update builds what changed and shares the rest with the table before.

mod addresses;
pub mod grammar;
pub mod service;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use model::feed::is_complete;
use model::{Kind as ObjectKind, ObjectName, SharedMap, Snapshot, Text};

use addresses::Addresses;
pub use addresses::addresses_below;
pub use grammar::{Asked, PortName};
pub use service::{Called, Endpoint, EndpointNames, Kind, Port, ServiceRecords};

/// Everything that the cluster zone answers from.
#[derive(Clone, Debug, Default)]
pub struct Table {
    namespaces: HashMap<Box<[u8]>, Arc<NamespaceTable>>,
    /// Which Services lead back from an address.
    reverse: SharedMap<IpAddr, Box<[ReverseEntry]>>,
    /// The keys of `reverse`.
    addresses: Addresses,
    /// Which pods have an address, per namespace, for `pods verified`.
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
    services: HashMap<Arc<[u8]>, Arc<ServiceRecords>>,
}

/// A Service that an address belongs to. Sorted so that ClusterIPs come first: they win (dns specification §2.3.3).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ReverseEntry {
    is_endpoint: bool,
    namespace: Arc<[u8]>,
    service: Arc<[u8]>,
}

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
        let mut addresses = BTreeSet::new();
        for (namespace, names) in by_namespace {
            table.put_services(namespace, &names, newer, &mut addresses);
        }
        let addresses: BTreeMap<IpAddr, bool> = addresses
            .into_iter()
            .map(|address| (address, table.reverse.get(&address).is_some()))
            .collect();
        table.addresses = self.addresses.updated(&addresses);
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

    /// Notes the addresses that belong to one of these Services, or did.
    fn put_services(
        &mut self,
        namespace: &str,
        names: &[&ObjectName],
        newer: &Snapshot,
        touched: &mut BTreeSet<IpAddr>,
    ) {
        let namespace_label: Arc<[u8]> = namespace.to_ascii_lowercase().into_bytes().into();
        let mut reversals = Vec::new();
        self.edit_namespace(namespace, |table| {
            for name in names {
                let label: Arc<[u8]> = name.name.to_ascii_lowercase().into_bytes().into();
                let records = newer
                    .services
                    .get(name)
                    .map(|service| Arc::new(ServiceRecords::new(service, newer.slices_of(name))));
                let old = match &records {
                    Some(records) => table.services.insert(Arc::clone(&label), Arc::clone(records)),
                    None => table.services.remove(&label),
                };
                reversals.push((label, old, records));
            }
        });
        for (service, old, new) in reversals {
            let entry = ReverseEntry {
                is_endpoint: false,
                namespace: Arc::clone(&namespace_label),
                service,
            };
            self.edit_reverse(old.as_deref(), &entry, false, touched);
            self.edit_reverse(new.as_deref(), &entry, true, touched);
        }
    }

    fn edit_reverse(
        &mut self,
        records: Option<&ServiceRecords>,
        entry: &ReverseEntry,
        present: bool,
        touched: &mut BTreeSet<IpAddr>,
    ) {
        let Some(records) = records else { return };
        let alone = |is_endpoint| {
            alone(ReverseEntry {
                is_endpoint,
                ..entry.clone()
            })
        };
        let (own, of_endpoint) = (alone(false), alone(true));
        for address in records.reversible_addresses() {
            let is_own = matches!(&records.kind, Kind::ClusterIp(own) if own.contains(&address));
            let set = if is_own { &own } else { &of_endpoint };
            edit_set(&mut self.reverse, address, set, present);
            touched.insert(address);
        }
    }

    fn put_pod(&mut self, name: &ObjectName, older: &Snapshot, newer: &Snapshot) {
        for (snapshot, present) in [(older, false), (newer, true)] {
            let pod = snapshot.pods.get(name);
            for address in pod.iter().flat_map(|pod| &pod.addresses) {
                let key = (name.namespace.clone(), *address);
                edit_set(&mut self.pods, key, &alone(name.name.clone()), present);
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
        self.namespaces
            .get(namespace)?
            .services
            .get(service)
            .map(Arc::as_ref)
    }

    /// Whether a pod of that namespace has the address.
    #[must_use]
    pub fn has_pod(&self, namespace: &[u8], address: IpAddr) -> bool {
        let Ok(namespace) = std::str::from_utf8(namespace) else {
            return false;
        };
        self.pods.get(&(namespace.into(), address)).is_some()
    }

    /// The Services that an address leads back to: the one whose ClusterIP it is, else every one it is an endpoint of.
    pub fn reversed(&self, address: IpAddr) -> impl Iterator<Item = Reversed<'_>> {
        let entries = self.reverse.get(&address).map_or(&[][..], |entries| &***entries);
        // ClusterIPs come first.
        let is_own = entries.first().is_some_and(|entry| !entry.is_endpoint);
        let count = if is_own { 1 } else { entries.len() };
        entries.iter().take(count).filter_map(|entry| {
            Some(Reversed {
                service: &entry.service,
                namespace: &entry.namespace,
                records: self.service(&entry.namespace, &entry.service)?,
                is_endpoint: entry.is_endpoint,
            })
        })
    }

    /// Whether one of these addresses leads back to a Service.
    #[must_use]
    pub fn any_reversed(&self, range: &RangeInclusive<IpAddr>) -> bool {
        self.addresses.any_within(range)
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

/// A set of one value.
fn alone<V>(value: V) -> Arc<Box<[V]>> {
    Arc::new(Box::new([value]))
}

/// Puts the value of a set of one into the sorted set at a key, or takes it out. The sets are slices because nearly all
/// hold one value, and there is one for every endpoint: a tree would take ten times the memory. Those that hold `value`
/// alone are `value` itself, so that all endpoints of a Service share theirs.
fn edit_set<K, V>(map: &mut SharedMap<K, Box<[V]>>, key: K, value: &Arc<Box<[V]>>, present: bool)
where
    K: Ord + std::hash::Hash + Clone,
    V: Ord + Clone,
{
    let known: &[V] = map.get(&key).map_or(&[], |set| &***set);
    let others = known.iter().filter(|known| !value.contains(known));
    let mut set: Vec<V> = others.cloned().collect();
    if present && set.is_empty() {
        map.insert_shared(key, Arc::clone(value));
        return;
    }
    if present {
        set.extend(value.iter().cloned());
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
                .map(move |(name, records)| format!("{namespace:?} {name:?} {records:?}"))
        });
        let empty = table
            .namespaces
            .iter()
            .map(|(name, entry)| format!("{name:?} {}", entry.exists));
        let reverse = table
            .reverse
            .iter()
            .map(|(address, entries)| format!("{address} {entries:?}"));
        let pods = table.pods.iter().map(|(key, names)| format!("{key:?} {names:?}"));
        let addresses = std::iter::once(format!("{:?}", table.addresses));
        let mut lines: Vec<String> = services
            .chain(empty)
            .chain(reverse)
            .chain(pods)
            .chain(addresses)
            .collect();
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
