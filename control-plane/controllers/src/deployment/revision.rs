//! Which ReplicaSet belongs to which version of the pod template, and how the versions are numbered.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use crate::template;

/// The number of a version, on the Deployment and on its ReplicaSets.
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
/// The numbers that a ReplicaSet had before a rollback gave it a new one, joined by commas.
pub(crate) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// On a ReplicaSet: how many pods its Deployment asked for when it was last scaled.
pub(crate) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// On a ReplicaSet: how many pods its Deployment allowed then, surge included.
pub(crate) const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that its ReplicaSets do not inherit.
const OWN_ANNOTATIONS: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

/// A ReplicaSet's or a Deployment's annotations.
pub(crate) type Annotations = BTreeMap<String, String>;

/// Whether `set` was made from the Deployment's current template.
pub(crate) fn has_template_of(set: &ReplicaSet, deployment: &Deployment) -> bool {
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let wanted = deployment.spec.as_ref().map(|spec| &spec.template);
    template
        .zip(wanted)
        .is_some_and(|(have, want)| template::is_same(have, want))
}

/// The number of a ReplicaSet's version; 0 where it has none.
pub(crate) fn revision(set: &ReplicaSet) -> i64 {
    number(set.metadata.annotations.as_ref(), REVISION).unwrap_or(0)
}

/// A number among annotations.
pub(crate) fn number(annotations: Option<&Annotations>, key: &str) -> Option<i64> {
    annotations?.get(key)?.parse().ok()
}

/// Brings the annotations of the current ReplicaSet up to date: those that it inherits, its number, and the
/// history of its numbers.
pub(crate) fn annotate_new(deployment: &Deployment, annotations: &mut Annotations, revision: i64) {
    let inherited = deployment.metadata.annotations.iter().flatten();
    for (key, value) in inherited.filter(|(key, _)| !OWN_ANNOTATIONS.contains(&key.as_str())) {
        annotations.insert(key.clone(), value.clone());
    }
    let old = annotations.get(REVISION).cloned();
    let old_number = old.as_ref().and_then(|old| old.parse::<i64>().ok()).unwrap_or(0);
    if old_number >= revision {
        return;
    }
    annotations.insert(REVISION.to_owned(), revision.to_string());
    if let Some(old) = old {
        let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
        if !history.is_empty() {
            history.push(',');
        }
        history.push_str(&old);
    }
}

/// Notes on a ReplicaSet what it was scaled for.
pub(crate) fn annotate_scale(annotations: &mut Annotations, desired: i32, max: i32) {
    annotations.insert(DESIRED.to_owned(), desired.to_string());
    annotations.insert(MAX.to_owned(), max.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[track_caller]
    fn check(deployment: &[(&str, &str)], set: &[(&str, &str)], revision: i64, expected: &[(&str, &str)]) {
        let mut deployment_object = Deployment::default();
        deployment_object.metadata.annotations = Some(annotations(deployment));
        let mut set = annotations(set);
        annotate_new(&deployment_object, &mut set, revision);
        assert_eq!(set, annotations(expected));
    }

    #[test]
    fn a_set_inherits_its_deployments_annotations_but_not_the_bookkeeping() {
        check(
            &[
                ("kubernetes.io/change-cause", "v2"),
                (REVISION, "7"),
                (OWN_ANNOTATIONS[0], "{}"),
            ],
            &[],
            1,
            &[("kubernetes.io/change-cause", "v2"), (REVISION, "1")],
        );
    }

    #[test]
    fn a_rollback_gives_a_new_number_and_remembers_the_old_ones() {
        check(
            &[],
            &[(REVISION, "1")],
            3,
            &[(REVISION, "3"), (REVISION_HISTORY, "1")],
        );
        check(
            &[],
            &[(REVISION, "3"), (REVISION_HISTORY, "1")],
            5,
            &[(REVISION, "5"), (REVISION_HISTORY, "1,3")],
        );
        check(&[], &[(REVISION, "5")], 5, &[(REVISION, "5")]);
    }
}
