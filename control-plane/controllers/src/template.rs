//! Versions of a pod template: which templates are the same, and the short text that names one.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use sha2::{Digest as _, Sha256};

use crate::ownership::SAFE_ALPHABET;

/// The label that tells the pods of one version of a Deployment from those of another.
pub(crate) const HASH_LABEL: &str = "pod-template-hash";

/// Whether both make the same pods.
pub(crate) fn is_same(one: &PodTemplateSpec, other: &PodTemplateSpec) -> bool {
    bare(one) == bare(other)
}

/// The template without what does not make a version: our own label, and empty maps.
fn bare(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let meta = template.metadata.get_or_insert_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH_LABEL);
    }
    meta.labels = meta.labels.take().filter(|labels| !labels.is_empty());
    meta.annotations = meta
        .annotations
        .take()
        .filter(|annotations| !annotations.is_empty());
    meta.creation_timestamp = None;
    template
}

/// The name of a version, in ten letters and digits or fewer. Upstream hashes a Go printer's output, which nobody else
/// can reproduce; nothing depends on the value, since versions are compared by template.
pub(crate) fn hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let mut hash = Sha256::new();
    let canonical = serde_json::to_vec(&bare(template)).unwrap_or_default();
    hash.update(canonical);
    hash.update(collisions.to_le_bytes());
    let digest = hash.finalize();
    let short = digest
        .iter()
        .take(4)
        .fold(0_u32, |number, byte| (number << 8) | u32::from(*byte));
    let digits = short.to_string().into_bytes();
    digits
        .into_iter()
        .map(|digit| char::from(SAFE_ALPHABET[usize::from(digit) % SAFE_ALPHABET.len()]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_hash_depends_on_the_template_and_the_collisions_and_not_on_our_own_label() {
        let template = |labels: serde_json::Value| -> PodTemplateSpec {
            serde_json::from_value(json!({ "metadata": { "labels": labels } })).unwrap()
        };
        let plain = hash(&template(json!({ "a": "1" })), 0);
        assert_eq!(plain, hash(&template(json!({ "a": "1", HASH_LABEL: "x" })), 0));
        assert_ne!(plain, hash(&template(json!({ "a": "1" })), 1));
        assert_ne!(plain, hash(&template(json!({ "a": "2" })), 0));
        assert!(plain.bytes().all(|byte| SAFE_ALPHABET.contains(&byte)), "{plain}");
    }
}
