//! Interfaces whose pod went without a DEL: the runtime lost them, or its state. Their namespace is gone and the device
//! on the node's side with it, so nobody can use the address any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use netlink::Link;

use crate::pods::wiring::host_ifname;
use crate::pods::{Assigned, AttachmentKey};

/// How long an interface is gone before its address is taken back: an ADD that is under way has no device yet.
const GONE_FOR: Duration = Duration::from_secs(20);

/// Since when which interfaces are gone.
#[derive(Debug, Default)]
pub(crate) struct Leaks {
    since: BTreeMap<AttachmentKey, Instant>,
}

impl Leaks {
    /// Those that are gone for good, to be released.
    pub(crate) fn found(
        &mut self,
        pods: &[Assigned],
        links: &BTreeMap<String, Link>,
        there: impl Fn(&str) -> bool,
        now: Instant,
    ) -> Vec<AttachmentKey> {
        let gone: BTreeSet<&AttachmentKey> = pods
            .iter()
            .filter(|pod| !links.contains_key(&host_ifname(pod)) && !there(&pod.netns))
            .map(|pod| &pod.key)
            .collect();
        self.since.retain(|key, _| gone.contains(key));
        for key in gone {
            self.since.entry(key.clone()).or_insert(now);
        }
        let old = self
            .since
            .iter()
            .filter(|(_, since)| now.duration_since(**since) >= GONE_FOR);
        old.map(|(key, _)| key.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use model::ByFamily;
    use netlink::{FakeKernel, Kernel};

    use super::*;

    #[test]
    fn an_interface_is_released_once_namespace_and_device_were_gone_for_long() {
        let key = |container: &str| AttachmentKey {
            container_id: container.to_owned(),
            ifname: "eth0".to_owned(),
        };
        let pod = |container: &str| {
            let mut pod = Assigned::new(key(container), &ByFamily::default());
            pod.netns = format!("/run/netns/{container}");
            pod
        };
        let pods = ["lives", "device", "namespace", "gone"].map(pod);
        let mut kernel = FakeKernel::new();
        for container in ["lives", "device"] {
            kernel.plug(&host_ifname(&pod(container)), [2, 0, 0, 0, 0, 1], 1450);
        }
        let links = kernel
            .links()
            .expect("a list")
            .into_iter()
            .map(|link| (link.name.clone(), link))
            .collect();
        let there = |netns: &str| ["/run/netns/lives", "/run/netns/namespace"].contains(&netns);
        let mut leaks = Leaks::default();
        let began = Instant::now();
        let mut found = |seconds| leaks.found(&pods, &links, there, began + Duration::from_secs(seconds));
        assert_eq!(found(0), []);
        assert_eq!(found(19), []);
        assert_eq!(found(20), [key("gone")]);

        let mut leaks = Leaks::default();
        let everywhere = |_: &str| true;
        leaks.found(&pods, &links, there, began);
        leaks.found(&pods, &links, everywhere, began + Duration::from_secs(10));
        let again = leaks.found(&pods, &links, there, began + Duration::from_secs(20));
        assert_eq!(again, [], "it was there in between");
    }
}
