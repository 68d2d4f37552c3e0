//! When what a slice says came about: consumers measure by it how long a change takes to reach them
//! (`endpoints.kubernetes.io/last-change-trigger-time`, KEP-752).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;

use super::observed::ServicePods;

/// The newest moments that are known of a Service and of its pods. A Service tells only when it was made.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Moments {
    service: Option<Timestamp>,
    /// By uid.
    pods: BTreeMap<String, Timestamp>,
}

impl Moments {
    /// What a Service and its pods tell now.
    pub fn of(service: &Service, pods: &ServicePods<'_>) -> Self {
        let told = pods
            .endpoints
            .iter()
            .filter_map(|pod| Some((pod.target.uid.clone()?, pod.changed_at?)));
        Self {
            service: service.metadata.creation_timestamp.as_ref().map(|time| time.0),
            pods: told.collect(),
        }
    }

    /// The first change since `seen`. What tells no time, such as the end of a pod that is gone, has none; nor has
    /// the first look at a Service that has slices already, since it cannot tell the old from the new.
    pub fn first_change_since(&self, seen: Option<&Self>, has_slices: bool) -> Option<Timestamp> {
        let Some(seen) = seen else {
            return self.service.filter(|_| !has_slices);
        };
        let service = self.service.filter(|made| Some(*made) > seen.service);
        let pods = self
            .pods
            .iter()
            .filter(|(uid, time)| seen.pods.get(*uid).is_none_or(|before| before < time))
            .map(|(_, time)| *time);
        service.into_iter().chain(pods).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn moments(service: i64, pods: &[(&str, i64)]) -> Moments {
        Moments {
            service: Some(second(service)),
            pods: pods
                .iter()
                .map(|(uid, time)| ((*uid).to_owned(), second(*time)))
                .collect(),
        }
    }

    #[track_caller]
    fn check(now: &Moments, seen: Option<&Moments>, has_slices: bool, expected: Option<i64>) {
        assert_eq!(now.first_change_since(seen, has_slices), expected.map(second));
    }

    #[test]
    fn the_first_of_several_changes_counts() {
        let before = moments(1, &[("a", 2), ("b", 3)]);
        check(&before, Some(&before), true, None);
        check(&moments(1, &[("a", 9), ("b", 8)]), Some(&before), true, Some(8));
        check(
            &moments(1, &[("a", 2), ("b", 3), ("c", 5)]),
            Some(&before),
            true,
            Some(5),
        );
        check(&moments(7, &[("a", 9)]), Some(&before), true, Some(7));
    }

    #[test]
    fn what_tells_no_time_has_none() {
        let before = moments(1, &[("a", 2), ("b", 3)]);
        check(&moments(1, &[("a", 2)]), Some(&before), true, None);
    }

    #[test]
    fn a_new_service_is_its_own_first_change() {
        let now = moments(1, &[("a", 2)]);
        check(&now, None, false, Some(1));
        check(&now, None, true, None);
    }
}
