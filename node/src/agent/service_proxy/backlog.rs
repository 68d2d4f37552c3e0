//! What changed and is not in the kernel yet: how much, and since when.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::{EndpointSlice, IpFamily, ObjectName, Service, ServiceKind, Slices, Snapshot, UnixTime};

/// How many objects differ between two snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Services.
    pub services: u64,
    /// EndpointSlices.
    pub slices: u64,
}

impl Changes {
    /// What differs of the Services that are `wanted`, however many states lie between.
    #[must_use]
    pub fn between(older: &Snapshot, newer: &Snapshot, wanted: impl Fn(&ObjectName) -> bool) -> Self {
        let services = newer.services.keys_changed_since(&older.services).into_iter();
        let slices = newer.slices.keys_changed_since(&older.slices).into_iter();
        let slices = slices.filter(|service| wanted(service)).map(|service| {
            let (new, old) = (newer.slices.get(service), older.slices.get(service));
            changed_slices(old, new)
        });
        Self {
            services: services.filter(|service| wanted(service)).count() as u64,
            slices: slices.sum(),
        }
    }
}

/// What a snapshot has of one Service.
#[derive(Debug)]
pub struct Had {
    service: Option<Arc<Service>>,
    slices: Option<Arc<Slices>>,
}

impl Had {
    /// Takes it out: a Service that fails for days shall not keep the whole cluster of then in memory.
    #[must_use]
    pub fn of(service: &ObjectName, snapshot: &Snapshot) -> Self {
        Self {
            service: snapshot.services.get(service).cloned(),
            slices: snapshot.slices.get(service).cloned(),
        }
    }

    /// What of it differs by now.
    #[must_use]
    pub fn changes(&self, service: &ObjectName, newer: &Snapshot) -> Changes {
        Changes {
            services: u64::from(newer.services.get(service) != self.service.as_ref()),
            slices: changed_slices(self.slices.as_ref(), newer.slices.get(service)),
        }
    }
}

fn changed_slices(old: Option<&Arc<Slices>>, new: Option<&Arc<Slices>>) -> u64 {
    let empty = Slices::default();
    let new = new.map_or(&empty, Arc::as_ref);
    let old = old.map_or(&empty, Arc::as_ref);
    let gone = old.iter().filter(|slice| new.get(&slice.name.name).is_none());
    (new.changed_since(old).count() + gone.count()) as u64
}

/// Moments that are kept for one Service: one whose changes never reach the kernel shall not fill the memory.
const KEPT: usize = 100;

/// When pods changed whose slices are not in the kernel yet: what network programming latency is measured from.
#[derive(Debug)]
pub struct Triggers {
    not_before: UnixTime,
    pending: BTreeMap<ObjectName, Vec<(IpFamily, UnixTime)>>,
}

impl Triggers {
    /// What happened before `not_before` is not measured: the proxy was not there to see it.
    #[must_use]
    pub const fn new(not_before: UnixTime) -> Self {
        Self {
            not_before,
            pending: BTreeMap::new(),
        }
    }

    /// Notes for which moments the slices were written that differ.
    pub fn note(&mut self, older: &Snapshot, newer: &Snapshot) {
        let empty = Slices::default();
        for service in newer.slices.keys_changed_since(&older.slices) {
            if !is_programmed(newer, service) {
                continue;
            }
            let new = newer.slices.get(service).map_or(&empty, Arc::as_ref);
            let old = older.slices.get(service).map_or(&empty, Arc::as_ref);
            let written = new.changed_since(old);
            let moments: Vec<_> = written.filter_map(|slice| self.moment(slice)).collect();
            if !moments.is_empty() {
                let pending = self.pending.entry(service.clone()).or_default();
                pending.extend(moments);
                pending.truncate(KEPT);
            }
        }
    }

    /// Takes out what is in the kernel by now, and returns how long each took.
    pub fn settle(
        &mut self,
        failed: impl Fn(&ObjectName) -> bool,
        now: UnixTime,
    ) -> Vec<(IpFamily, Duration)> {
        let settled = self.pending.extract_if(.., |service, _| !failed(service));
        let moments = settled.flat_map(|(_, moments)| moments);
        // The clock of whoever wrote the moment down may be ahead of ours.
        moments
            .map(|(family, then)| (family, now.0.saturating_sub(then.0)))
            .collect()
    }

    fn moment(&self, slice: &EndpointSlice) -> Option<(IpFamily, UnixTime)> {
        let moment = slice.last_change.filter(|moment| *moment >= self.not_before);
        Some((slice.family, moment?))
    }
}

/// Endpoints of headless Services are DNS's matter alone.
fn is_programmed(snapshot: &Snapshot, service: &ObjectName) -> bool {
    let service = snapshot.services.get(service);
    service.is_some_and(|service| matches!(service.kind, ServiceKind::ClusterIp { .. }))
}

#[cfg(test)]
mod tests {
    use model::Change;

    use super::super::samples::{self, name};
    use super::*;

    fn slice(slice: &str, service: &str, second: u64) -> Change {
        Change::EndpointSlice(EndpointSlice {
            last_change: Some(UnixTime(Duration::from_secs(second))),
            endpoints: vec![samples::endpoint(&format!(
                "10.244.{}.{}",
                second / 250,
                second % 250
            ))]
            .into(),
            ..samples::slice(slice, service)
        })
    }

    fn with(mut snapshot: Snapshot, changes: impl IntoIterator<Item = Change>) -> Snapshot {
        for change in changes {
            snapshot.apply(change);
        }
        snapshot
    }

    #[test]
    fn services_and_slices_that_differ_are_counted_once_each() {
        let before = with(
            Snapshot::default(),
            [
                Change::Service(samples::service("a")),
                Change::Service(samples::service("b")),
                slice("a-1", "a", 1),
                slice("a-2", "a", 1),
                slice("b-1", "b", 1),
            ],
        );
        let after = with(
            before.clone(),
            [
                Change::DeleteService(name("b")),
                Change::DeleteEndpointSlice(name("b-1")),
                slice("a-1", "a", 2),
                slice("a-1", "a", 3),
                slice("c-1", "c", 3),
            ],
        );
        let expected = Changes {
            services: 1,
            slices: 3,
        };
        let all = |_: &ObjectName| true;
        assert_eq!(Changes::between(&before, &after, all), expected);
        assert_eq!(Changes::between(&after, &after.clone(), all), Changes::default());
        // One Service alone, and all but it: the same together.
        let one = |service: &str| Had::of(&name(service), &before).changes(&name(service), &after);
        let but = |left_out: &str| {
            let left_out = name(left_out);
            Changes::between(&before, &after, |service| *service != left_out)
        };
        let (services, slices) = (1, 1);
        let rows = [
            (
                "a",
                Changes { services: 0, slices },
                Changes { services, slices: 2 },
            ),
            (
                "b",
                Changes { services, slices },
                Changes {
                    services: 0,
                    slices: 2,
                },
            ),
            ("d", Changes::default(), expected),
        ];
        for (service, alone, others) in rows {
            assert_eq!((one(service), but(service)), (alone, others), "of {service}");
        }
    }

    #[test]
    fn latency_is_measured_from_each_change_to_the_sync_that_had_it() {
        let at = |second| UnixTime(Duration::from_secs(second));
        let start = with(
            Snapshot::default(),
            [
                Change::Service(samples::service("web")),
                Change::Service(samples::service("slow")),
                Change::Service(samples::headless("headless")),
            ],
        );
        let mut triggers = Triggers::new(at(100));
        let first = with(
            start.clone(),
            [
                slice("web-1", "web", 99),
                slice("web-2", "web", 101),
                slice("headless-1", "headless", 101),
                slice("nobody-1", "nobody", 101),
                slice("slow-1", "slow", 101),
            ],
        );
        triggers.note(&start, &first);
        let slow_fails = |service: &ObjectName| service.name == "slow";
        let took = |seconds| (IpFamily::V4, Duration::from_secs(seconds));
        assert_eq!(triggers.settle(slow_fails, at(103)), [took(2)]);
        assert_eq!(triggers.settle(slow_fails, at(104)), []);

        let second = with(
            first.clone(),
            [slice("slow-1", "slow", 110), slice("web-1", "web", 130)],
        );
        triggers.note(&first, &second);
        // In the order of Services; a clock that is ahead makes no time negative.
        assert_eq!(triggers.settle(|_| false, at(120)), [took(19), took(10), took(0)]);
    }

    #[test]
    fn a_service_that_never_gets_there_is_kept_within_bounds() {
        let mut triggers = Triggers::new(UnixTime(Duration::ZERO));
        let mut older = with(Snapshot::default(), [Change::Service(samples::service("web"))]);
        for second in 0..1000 {
            let newer = with(older.clone(), [slice("web-1", "web", second)]);
            triggers.note(&older, &newer);
            assert_eq!(
                triggers.settle(|_| true, UnixTime(Duration::from_secs(second))),
                []
            );
            older = newer;
        }
        let settled = triggers.settle(|_| false, UnixTime(Duration::from_secs(1000)));
        assert_eq!(settled.len(), KEPT);
    }
}
