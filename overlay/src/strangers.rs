//! Interfaces of pods that the kernel has and the log has not: the disk lost their records. Nobody else may get their
//! addresses, and they keep their routes until their devices go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use model::wiring::is_host_ifname;

use crate::pods::Assigned;
use crate::pods::wiring::host_ifname;
use crate::reconcile::{Mirror, PodRoute};

/// How long an interface has no record before it is told: a DEL without namespace and `prevResult` takes the record
/// while the kernel still removes the device.
const TOLD_AFTER: Duration = Duration::from_secs(5);

/// Those that there are, by the name of their device on the node's side.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    by_device: BTreeMap<String, Stranger>,
}

#[derive(Debug)]
struct Stranger {
    since: Instant,
    routes: BTreeMap<IpAddr, PodRoute>,
}

impl Strangers {
    /// Looks for them. The pods must be listed after the mirror was read.
    pub(crate) fn look(&mut self, mirror: &Mirror, pods: &[Assigned], now: Instant) {
        let known: BTreeSet<String> = pods.iter().map(host_ifname).collect();
        let has_record = |device: &str| known.contains(device);
        self.by_device
            .retain(|device, _| mirror.links.contains_key(device) && !has_record(device));
        for (device, link) in &mirror.links {
            if !is_host_ifname(device) || has_record(device) {
                continue;
            }
            for route in mirror.pod_routes(link) {
                let stranger = self.by_device.entry(device.clone()).or_insert_with(|| Stranger {
                    since: now,
                    routes: BTreeMap::new(),
                });
                stranger.routes.insert(route.address, route);
            }
        }
        let taken: BTreeSet<IpAddr> = pods.iter().flat_map(Assigned::each_address).collect();
        for stranger in self.by_device.values_mut() {
            stranger.routes.retain(|address, _| !taken.contains(address));
        }
    }

    /// Their routes, which stay.
    pub(crate) fn routes(&self) -> impl Iterator<Item = &PodRoute> {
        self.by_device
            .values()
            .flat_map(|stranger| stranger.routes.values())
    }

    /// The devices that have such routes.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &str> {
        let served = self.by_device.iter();
        let served = served.filter(|(_, stranger)| !stranger.routes.is_empty());
        served.map(|(device, _)| device.as_str())
    }

    /// What there is to tell, one line for each.
    pub(crate) fn notes(&self, now: Instant) -> impl Iterator<Item = String> {
        let lasting = self
            .by_device
            .iter()
            .filter(move |(_, stranger)| now.duration_since(stranger.since) >= TOLD_AFTER);
        lasting.filter_map(|(device, stranger)| {
            let addresses: Vec<_> = stranger.routes.keys().map(IpAddr::to_string).collect();
            (!addresses.is_empty()).then(|| {
                format!(
                    "device {device} has {} and no record (was {} damaged?): the pod keeps them until it is deleted, without host ports",
                    addresses.join(" and "),
                    crate::pods::LOG
                )
            })
        })
    }
}
