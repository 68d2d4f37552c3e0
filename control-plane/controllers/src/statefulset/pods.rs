//! The pods of a StatefulSet: each has a place, and with it a name that it keeps.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume};

use crate::history::HASH_LABEL;
use crate::pods;
use crate::workload::Workload;

/// The label that selects one pod, for a Service of its own.
pub(crate) const NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
/// The label of a pod's place.
pub(crate) const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// The place of a pod in the set of that name; `None` for a name of another form.
pub(crate) fn ordinal(set: &str, pod: &Pod) -> Option<i32> {
    let name = pod.metadata.name.as_deref()?;
    let number = name.strip_prefix(set)?.strip_prefix('-')?;
    let is_plain = number == "0" || !number.starts_with(['0', '+', '-']);
    number.parse().ok().filter(|_| is_plain)
}

/// The revision that a pod was made of.
pub(crate) fn revision(pod: &Pod) -> &str {
    crate::history::hash_of(&pod.metadata)
}

/// How well a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// It has ended, although it should not.
    Ended,
    /// It was told to go and is still there.
    Going,
    /// It does not run, or is not ready, or not for long enough yet.
    Starting,
    Available,
}

/// Judges a pod that has to be ready for `min_ready`.
pub(crate) fn health(pod: &Pod, min_ready: Duration, now: Timestamp) -> Health {
    match pod.metadata.deletion_timestamp {
        None if pods::is_finished(pod) => Health::Ended,
        Some(_) => Health::Going,
        None if pods::phase(pod) == "Running"
            && pods::available_from(pod, min_ready).is_some_and(|from| from <= now) =>
        {
            Health::Available
        }
        None => Health::Starting,
    }
}

/// The pod of one place, made from the template of the revision of that name.
pub(crate) fn pod_at(
    workload: &Workload<'_, StatefulSet>,
    template: &PodTemplateSpec,
    revision: &str,
    ordinal: i32,
) -> Pod {
    let set = workload.object;
    let mut pod = workload.pod_from(template);
    let name = format!("{}-{ordinal}", set.metadata.name.as_deref().unwrap_or_default());
    pod.metadata.name = Some(name.clone());
    pod.metadata.generate_name = None;
    let labels = pod.metadata.labels.get_or_insert_default();
    for (key, value) in [
        (NAME_LABEL, name.clone()),
        (INDEX_LABEL, ordinal.to_string()),
        (HASH_LABEL, revision.to_owned()),
    ] {
        labels.insert(key.to_owned(), value);
    }
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(name.clone());
        spec.subdomain = set.spec.as_ref().and_then(|spec| spec.service_name.clone());
        let claims = set
            .spec
            .iter()
            .flat_map(|spec| spec.volume_claim_templates.iter().flatten());
        for claim in claims {
            let volume = claim.metadata.name.clone().unwrap_or_default();
            let volumes = spec.volumes.get_or_insert_default();
            volumes.retain(|known| known.name != volume);
            volumes.push(Volume {
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: format!("{volume}-{name}"),
                    read_only: None,
                }),
                name: volume,
                ..Volume::default()
            });
        }
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(name: &str, expected: Option<i32>) {
        let pod = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
        assert_eq!(ordinal("web", &pod), expected, "{name}");
    }

    #[test]
    fn the_place_of_a_pod_is_in_its_name() {
        check("web-0", Some(0));
        check("web-12", Some(12));
        check("web-012", None);
        check("web--1", None);
        check("web-x", None);
        check("web", None);
        check("other-1", None);
        check("web-extra-1", None);
    }
}
