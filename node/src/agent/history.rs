//! Who had an address of which nothing else is known now: packets of a connection go on to where a pod was, and the
//! question comes after the pod has gone.
//!
//! It is read off the snapshots, a Service's own addresses and pods that were its endpoints, and the CNI plugin tells of
//! this node's pods. A pod of another node that left its Service may live on. What an earlier agent saw is not known.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::{ObjectName, Snapshot};
use overlay::pods::Assigned;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use super::supervisor::Part;
use crate::explain::names::addresses_of;

/// How long it is known who had an address.
const KEPT: Duration = Duration::from_mins(15);

/// More are not kept: those that went first are forgotten.
const MOST: usize = 10_000;

/// Who had which address. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Gone>>);

#[derive(Debug, Default)]
struct Gone {
    by_address: BTreeMap<IpAddr, Former>,
    in_order: BTreeSet<(Instant, IpAddr)>,
}

#[derive(Debug)]
struct Former {
    holder: Holder,
    /// Since when it is not its.
    since: Instant,
}

/// Who has an address.
#[derive(Debug)]
struct Holder {
    /// A kind and a name.
    name: String,
    /// The pod, where it is one's.
    pod: Option<ObjectName>,
}

impl History {
    /// Follows the snapshots until shutdown.
    ///
    /// # Errors
    /// None: it ends where the snapshots do.
    pub async fn follow(
        self,
        mut snapshots: Receiver<Arc<Snapshot>>,
        part: Part,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        part.works();
        let mut before = snapshots.borrow_and_update().clone();
        while let Some(Ok(())) = shutdown.run_until_cancelled(snapshots.changed()).await {
            let after = snapshots.borrow_and_update().clone();
            self.gone().learn(&before, &after, Instant::now());
            before = after;
        }
        Ok(())
    }

    /// A pod of this node gave its addresses back.
    pub fn left(&self, pod: &Assigned) {
        let Some(name) = &pod.pod else { return };
        let mut gone = self.gone();
        for address in pod.addresses().values() {
            let holder = Holder {
                name: format!("pod {name}"),
                pod: Some(name.clone()),
            };
            gone.put(*address, holder, Instant::now());
        }
    }

    /// Whose each address was that went lately, and since when it is not, as a part of a sentence.
    #[must_use]
    pub fn former(&self) -> BTreeMap<IpAddr, String> {
        self.gone().former(Instant::now())
    }

    /// The pod that had an address lately which is nobody's now.
    #[must_use]
    pub fn pod(&self, address: &IpAddr) -> Option<ObjectName> {
        let mut gone = self.gone();
        gone.forget(Instant::now());
        gone.by_address.get(address)?.holder.pod.clone()
    }

    fn gone(&self) -> MutexGuard<'_, Gone> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gone {
    fn learn(&mut self, before: &Snapshot, after: &Snapshot, now: Instant) {
        let changed = after.changed_since(before).services;
        let here: BTreeMap<IpAddr, Holder> = changed.iter().flat_map(|name| holders(after, name)).collect();
        for address in here.keys() {
            self.take_back(*address);
        }
        for (address, holder) in changed.iter().flat_map(|name| holders(before, name)) {
            if !here.contains_key(&address) {
                self.put(address, holder, now);
            }
        }
        self.forget(now);
    }

    fn former(&mut self, now: Instant) -> BTreeMap<IpAddr, String> {
        self.forget(now);
        let told = |Former { holder, since }: &Former| {
            let seconds = now.duration_since(*since).as_secs();
            format!("{} until {seconds} s ago", holder.name)
        };
        let former = self.by_address.iter();
        former.map(|(address, former)| (*address, told(former))).collect()
    }

    fn put(&mut self, address: IpAddr, holder: Holder, since: Instant) {
        self.take_back(address);
        self.by_address.insert(address, Former { holder, since });
        self.in_order.insert((since, address));
    }

    fn take_back(&mut self, address: IpAddr) {
        if let Some(former) = self.by_address.remove(&address) {
            self.in_order.remove(&(former.since, address));
        }
    }

    fn forget(&mut self, now: Instant) {
        while let Some((since, address)) = self.in_order.first().copied()
            && (self.in_order.len() > MOST || now.duration_since(since) > KEPT)
        {
            self.in_order.pop_first();
            self.by_address.remove(&address);
        }
    }
}

/// Whose the addresses are that a Service tells of.
fn holders(snapshot: &Snapshot, service: &ObjectName) -> Vec<(IpAddr, Holder)> {
    let own = snapshot.services.get(service).into_iter();
    let of_service = |address| {
        let holder = Holder {
            name: format!("Service {service}"),
            pod: None,
        };
        (address, holder)
    };
    let own = own.flat_map(|own| addresses_of(own).map(of_service));
    let endpoints = snapshot
        .slices_of(service)
        .flat_map(|slice| slice.endpoints.iter());
    let pods = endpoints.filter_map(|endpoint| {
        let pod = endpoint.pod?;
        // It may live on and be no endpoint any more: only its own node knows.
        let holder = Holder {
            name: format!(
                "pod {}/{pod}, an endpoint of Service {}",
                service.namespace, service.name
            ),
            pod: Some(ObjectName::new(service.namespace.clone(), pod)),
        };
        Some((endpoint.address, holder))
    });
    own.chain(pods).collect()
}

#[cfg(test)]
mod tests {
    use model::{Change, Endpoint, EndpointSlice, Few, IpFamily, Service, ServiceKind};

    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("shop", name)
    }

    fn slice(service: &str, pods: &[(&str, u8)]) -> Change {
        let endpoint = |(pod, last): &(&str, u8)| Endpoint {
            pod: Some((*pod).into()),
            ..Endpoint::new([10, 244, 2, *last].into())
        };
        Change::EndpointSlice(EndpointSlice {
            name: name(&format!("{service}-1")),
            service: service.into(),
            family: IpFamily::V4,
            endpoints: pods.iter().map(endpoint).collect(),
            ports: Few::none(),
            last_change: None,
        })
    }

    #[test]
    fn an_address_is_told_by_who_had_it_last_until_somebody_has_it_again_or_long_after() {
        let begun = Instant::now();
        let (mut gone, mut snapshot) = (Gone::default(), Snapshot::default());
        let mut after = |seconds: u64, changes: Vec<Change>| {
            let before = snapshot.clone();
            for change in changes {
                snapshot.apply(change);
            }
            let now = begun + Duration::from_secs(seconds);
            gone.learn(&before, &snapshot, now);
            let told = gone.former(now + Duration::from_secs(4));
            let told = told
                .into_iter()
                .map(|(address, told)| format!("{address} {told}"));
            told.collect::<Vec<_>>()
        };
        let kind = ServiceKind::ClusterIp {
            addresses: Few::from(vec![[10, 96, 0, 7].into()]),
        };
        let service = Change::Service(Service::new(name("web"), kind));
        let nobody = Vec::<String>::new();
        assert_eq!(
            after(0, vec![service, slice("web", &[("a", 1), ("b", 2)])]),
            nobody
        );
        // Of another Service, too.
        assert_eq!(after(1, vec![slice("api", &[("b", 2)])]), nobody);
        assert_eq!(
            after(2, vec![slice("web", &[("b", 2)])]),
            ["10.244.2.1 pod shop/a, an endpoint of Service web until 4 s ago"]
        );
        assert_eq!(
            after(12, vec![Change::DeleteService(name("web"))]),
            [
                "10.96.0.7 Service shop/web until 4 s ago",
                "10.244.2.1 pod shop/a, an endpoint of Service web until 14 s ago"
            ]
        );
        // Somebody else has it now.
        assert_eq!(
            after(13, vec![slice("web", &[("c", 1), ("b", 2)])]),
            ["10.96.0.7 Service shop/web until 5 s ago"]
        );
        assert_eq!(after(12 + 15 * 60, vec![]), nobody);
    }

    #[test]
    fn no_more_are_kept_than_there_is_room_for_and_the_first_go_first() {
        let now = Instant::now();
        let mut gone = Gone::default();
        let mut snapshot = Snapshot::default();
        for index in 0..u32::try_from(MOST).expect("few") + 3 {
            let kind = ServiceKind::ClusterIp {
                addresses: Few::from(vec![IpAddr::from(index.to_be_bytes())]),
            };
            let mut there = snapshot.clone();
            there.apply(Change::Service(Service::new(name("web"), kind)));
            gone.learn(&there, &snapshot, now + Duration::from_millis(u64::from(index)));
            snapshot = Snapshot::default();
        }
        assert_eq!((gone.by_address.len(), gone.in_order.len()), (MOST, MOST));
        let first = gone.by_address.keys().next().expect("there are some");
        assert_eq!(*first, IpAddr::from(3_u32.to_be_bytes()));
    }
}
