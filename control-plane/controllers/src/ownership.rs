//! Who owns what: controller references, and which objects a controller adopts or releases.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;
use rand::Rng as _;
use serde_json::{Value, json};

use crate::selector;

/// The owner that controls an object, if there is one.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
}

/// Whether `object` is controlled by exactly the object with this uid.
pub(crate) fn is_controlled_by(object: &ObjectMeta, uid: Option<&String>) -> bool {
    uid.is_some() && controller_of(object).map(|owner| &owner.uid) == uid
}

/// The reference by which `owner` controls what it creates.
pub(crate) fn controller_ref<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// What a controller does about one object that it may own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is ours.
    Own,
    /// It matches and nobody controls it: take it.
    Adopt,
    /// We control it, and it no longer matches: let it go.
    Release,
    /// It is none of our business.
    Ignore,
}

/// Decides about `object` for a controller with `owner`'s metadata and `selector` (upstream's
/// `BaseControllerRefManager.ClaimObject`).
pub(crate) fn claim(owner: &ObjectMeta, selector: &LabelSelector, object: &ObjectMeta) -> Claim {
    let no_labels = selector::Labels::new();
    let matches = selector::matches(selector, object.labels.as_ref().unwrap_or(&no_labels));
    let owner_is_going = owner.deletion_timestamp.is_some();
    match controller_of(object) {
        Some(controller) if Some(&controller.uid) != owner.uid.as_ref() => Claim::Ignore,
        Some(_) if matches => Claim::Own,
        Some(_) if owner_is_going => Claim::Ignore,
        Some(_) => Claim::Release,
        None if owner_is_going || !matches || object.deletion_timestamp.is_some() => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// A merge patch that makes `owner` the controller of `object`, if that is still the object that was decided
/// about.
pub(crate) fn adoption<K: Resource<DynamicType = ()>>(owner: &K, object: &ObjectMeta) -> Value {
    let mut owners = object.owner_references.clone().unwrap_or_default();
    owners.push(controller_ref(owner));
    owners_patch(object, owners)
}

/// A merge patch that ends the control of `owner` over `object`.
pub(crate) fn release(owner: &ObjectMeta, object: &ObjectMeta) -> Value {
    let mut owners = object.owner_references.clone().unwrap_or_default();
    owners.retain(|reference| Some(&reference.uid) != owner.uid.as_ref());
    owners_patch(object, owners)
}

fn owners_patch(object: &ObjectMeta, owners: Vec<OwnerReference>) -> Value {
    json!({ "metadata": {
        "uid": object.uid,
        "resourceVersion": object.resource_version,
        "ownerReferences": owners,
    } })
}

/// Sorts `objects` into those that are claimed in some way and the rest.
pub(crate) fn claims<K: Resource<DynamicType = ()>>(
    owner: &ObjectMeta,
    selector: &LabelSelector,
    objects: Vec<Arc<K>>,
) -> Vec<(Claim, Arc<K>)> {
    let judged = objects
        .into_iter()
        .map(|object| (claim(owner, selector, object.meta()), object));
    judged.filter(|(claim, _)| *claim != Claim::Ignore).collect()
}

/// What upstream's generated names and hashes are written in: no vowels and no look-alikes, so that no word
/// arises.
pub(crate) const SAFE_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A name as the API server would generate it: the prefix, cut so that everything fits 63 characters, and
/// five characters at random. Generated here, a create that is repeated after a lost answer cannot make a
/// second object.
pub(crate) fn generated_name(prefix: &str) -> String {
    let mut rng = rand::rng();
    let suffix = (0..5).map(|_| char::from(SAFE_ALPHABET[rng.random_range(0..SAFE_ALPHABET.len())]));
    prefix.chars().take(58).chain(suffix).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(uid: &str, label: &str, owner: Option<&str>, going: bool) -> ObjectMeta {
        serde_json::from_value(json!({
            "uid": uid,
            "labels": { "app": label },
            "ownerReferences": owner.map(|uid| vec![json!({
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": uid, "controller": true,
            })]),
            "deletionTimestamp": going.then_some("2026-01-01T00:00:00Z"),
        }))
        .unwrap()
    }

    #[test]
    fn objects_are_adopted_and_released_by_selector_and_controller() {
        let selector = serde_json::from_value(json!({ "matchLabels": { "app": "a" } })).unwrap();
        let rows = [
            (
                "ours and matching",
                false,
                meta("p", "a", Some("me"), false),
                Claim::Own,
            ),
            (
                "ours, terminating",
                false,
                meta("p", "a", Some("me"), true),
                Claim::Own,
            ),
            (
                "ours, not matching",
                false,
                meta("p", "b", Some("me"), false),
                Claim::Release,
            ),
            (
                "somebody else's",
                false,
                meta("p", "a", Some("you"), false),
                Claim::Ignore,
            ),
            (
                "an orphan that matches",
                false,
                meta("p", "a", None, false),
                Claim::Adopt,
            ),
            (
                "an orphan that does not",
                false,
                meta("p", "b", None, false),
                Claim::Ignore,
            ),
            (
                "a terminating orphan",
                false,
                meta("p", "a", None, true),
                Claim::Ignore,
            ),
            (
                "an orphan, while we go",
                true,
                meta("p", "a", None, false),
                Claim::Ignore,
            ),
            (
                "ours, not matching, while we go",
                true,
                meta("p", "b", Some("me"), false),
                Claim::Ignore,
            ),
        ];
        for (row, going, object, expected) in rows {
            assert_eq!(
                claim(&meta("me", "", None, going), &selector, &object),
                expected,
                "{row}"
            );
        }
    }

    #[test]
    fn generated_names_fit_a_label_and_keep_their_prefix() {
        let name = generated_name(&"x".repeat(80));
        assert_eq!(name.len(), 63);
        assert!(generated_name("web-").starts_with("web-"));
    }
}
