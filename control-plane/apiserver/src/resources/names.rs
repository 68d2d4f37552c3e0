//! Names, labels and the rest of `metadata`: RFC 1123 and RFC 1035 as Kubernetes reads them
//! (apimachinery `pkg/util/validation`, `pkg/api/validation`).

use serde_json::Value;

use super::Resource;
use super::field::{Errors, Path};
use crate::object::{self, Fields};

/// Keys and values of all annotations (`TotalAnnotationSizeLimitB`).
const MAX_ANNOTATIONS_BYTES: usize = 256 << 10;

/// How objects of a resource may be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain, up to 253.
    Subdomain,
    /// RFC 1123 label, up to 63.
    Label,
    /// RFC 1035 label (starts with a letter), up to 63.
    Rfc1035,
    /// Anything that is one path segment (RBAC).
    PathSegment,
}

const LABEL_TEXT: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_TEXT: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const RFC1035_TEXT: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE_TEXT: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const QUALIFIED_TEXT: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

impl NameRule {
    /// What is wrong with a name; `None` when it is good.
    pub fn complaint(self, name: &str) -> Option<String> {
        let too_long = |limit: usize| format!("must be no more than {limit} characters");
        match self {
            NameRule::Subdomain if name.len() > 253 => Some(too_long(253)),
            NameRule::Subdomain => (!is_subdomain(name)).then(|| SUBDOMAIN_TEXT.to_owned()),
            NameRule::Label | NameRule::Rfc1035 if name.len() > 63 => Some(too_long(63)),
            NameRule::Label => (!is_label(name)).then(|| LABEL_TEXT.to_owned()),
            NameRule::Rfc1035 => {
                let good = is_label(name) && name.starts_with(|letter: char| letter.is_ascii_lowercase());
                (!good).then(|| RFC1035_TEXT.to_owned())
            }
            NameRule::PathSegment if matches!(name, "." | "..") => Some(format!("may not be '{name}'")),
            NameRule::PathSegment => ['/', '%']
                .into_iter()
                .find(|letter| name.contains(*letter))
                .map(|letter| format!("may not contain '{letter}'")),
        }
    }
}

/// RFC 1123 label.
pub fn is_label(text: &str) -> bool {
    let inner = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
    !text.is_empty() && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// RFC 1123 subdomain.
pub fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn is_qualified_part(text: &str) -> bool {
    let inner = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    let edge = |letter: char| letter.is_ascii_alphanumeric();
    !text.is_empty()
        && text.len() <= 63
        && text.chars().all(inner)
        && text.starts_with(edge)
        && text.ends_with(edge)
}

fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && prefix.len() <= 253 && is_qualified_part(name),
        None => is_qualified_part(text),
    }
}

/// `metadata` of any object (`ValidateObjectMeta`).
pub fn validate_metadata(resource: &Resource, object: &Value, errors: &mut Errors) {
    let at = Path::new("metadata");
    let name = object::name(object);
    if name.is_empty() {
        errors.required(&at.child("name"), "name or generateName is required");
    } else if let Some(complaint) = resource.names.complaint(name) {
        errors.invalid(&at.child("name"), name, complaint);
    }
    validate_labels(object.at("metadata.labels"), &at.child("labels"), errors);
    validate_keys(
        object.at("metadata.annotations"),
        &at.child("annotations"),
        errors,
    );
    if size_of_all(object.at("metadata.annotations")) > MAX_ANNOTATIONS_BYTES {
        errors.too_long(&at.child("annotations"), MAX_ANNOTATIONS_BYTES);
    }
    for (index, owner) in object.list("metadata.ownerReferences").iter().enumerate() {
        let at = at.child("ownerReferences").index(index);
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner.text(field).is_empty() {
                errors.invalid(&at.child(field), "", format!("{field} must not be empty"));
            }
        }
    }
    let controllers = object
        .list("metadata.ownerReferences")
        .iter()
        .filter(|owner| owner.flag("controller"))
        .count();
    if controllers > 1 {
        let detail = "Only one reference can have Controller set to true.";
        errors.invalid(
            &at.child("ownerReferences"),
            object.at("metadata.ownerReferences").clone(),
            detail,
        );
    }
}

fn size_of_all(map: &Value) -> usize {
    let pairs = map.as_object().into_iter().flatten();
    pairs
        .map(|(key, value)| key.len() + value.as_str().unwrap_or_default().len())
        .sum()
}

/// What of `metadata` may never change.
pub fn validate_metadata_update(new: &Value, old: &Value, errors: &mut Errors) {
    let at = Path::new("metadata");
    for field in ["name", "namespace", "uid"] {
        let (new, old) = (new["metadata"].text(field), old["metadata"].text(field));
        if new != old {
            errors.invalid(&at.child(field), new, "field is immutable");
        }
    }
    // Deletion is one-way: once it began, finalizers may only go (`ValidateObjectMetaUpdate`).
    if object::is_terminating(old) {
        let before = old.list("metadata.finalizers");
        let added: Vec<&Value> = new
            .list("metadata.finalizers")
            .iter()
            .filter(|one| !before.contains(one))
            .collect();
        if !added.is_empty() {
            let detail = "no new finalizers can be added if the object is being deleted";
            errors.forbidden(&at.child("finalizers"), detail);
        }
    }
}

/// Label keys and values.
pub fn validate_labels(labels: &Value, at: &Path, errors: &mut Errors) {
    validate_keys(labels, at, errors);
    for (_, value) in labels.as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        if value.len() > 63 {
            errors.invalid(at, value, "must be no more than 63 characters");
        } else if !value.is_empty() && !is_qualified_part(value) {
            errors.invalid(at, value, LABEL_VALUE_TEXT);
        }
    }
}

/// A name with an optional DNS prefix, such as `example.com/class` (`ValidateQualifiedName`).
pub(super) fn validate_qualified_name(name: &str, at: &Path, errors: &mut Errors) {
    if !is_qualified_name(name) {
        errors.invalid(at, name, QUALIFIED_TEXT);
    }
}

fn validate_keys(map: &Value, at: &Path, errors: &mut Errors) {
    for (key, _) in map.as_object().into_iter().flatten() {
        if !is_qualified_name(key) {
            errors.invalid(at, key.as_str(), QUALIFIED_TEXT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_their_rfc() {
        let long = "a".repeat(64);
        for (rule, name, good) in [
            (NameRule::Subdomain, "a.b-c.9", true),
            (NameRule::Subdomain, "A", false),
            (NameRule::Subdomain, "a..b", false),
            (NameRule::Subdomain, "a_b", false),
            (NameRule::Label, "9a", true),
            (NameRule::Label, "a.b", false),
            (NameRule::Label, &long, false),
            (NameRule::Rfc1035, "web-1", true),
            (NameRule::Rfc1035, "1web", false),
            (NameRule::Rfc1035, "web-", false),
            (NameRule::PathSegment, "system:node", true),
            (NameRule::PathSegment, "a/b", false),
        ] {
            assert_eq!(rule.complaint(name).is_none(), good, "{rule:?} {name}");
        }
    }

    #[test]
    fn label_keys_may_have_a_dns_prefix() {
        for (key, good) in [
            ("app", true),
            ("app.kubernetes.io/name", true),
            ("a/b/c", false),
            ("-a", false),
            ("A_b", true),
        ] {
            assert_eq!(is_qualified_name(key), good, "{key}");
        }
    }
}
