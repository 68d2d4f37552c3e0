//! `rbac.authorization.k8s.io`: roles and bindings (`pkg/apis/rbac/{v1,validation}`).

use jiff::Timestamp;
use k8s_openapi::api::rbac::v1 as rbac;
use serde_json::Value;

use super::field::{Errors, Path};
use super::{NameRule, Resource};
use crate::object::{self, Fields};
use crate::rbac::GROUP;
use crate::table::{Column, age, text, wide};

const CREATED: &[Column] = &[text("Name"), text("Created At")];
const BOUND: &[Column] = &[
    text("Name"),
    text("Role"),
    text("Age"),
    wide("Users"),
    wide("Groups"),
    wide("ServiceAccounts"),
];

pub(super) fn rows() -> Vec<Resource> {
    const V1: (&str, &str) = (GROUP, "v1");
    let rows = [
        Resource::new::<rbac::ClusterRoleBinding>(V1, "ClusterRoleBinding", "clusterrolebindings")
            .cluster_scoped()
            .defaulted(default_binding)
            .validated(validate_cluster_binding, validate_binding_update)
            .printed(BOUND, binding_cells),
        Resource::new::<rbac::ClusterRole>(V1, "ClusterRole", "clusterroles")
            .cluster_scoped()
            .validated(validate_cluster_role, |_, _, _| {})
            .printed(CREATED, role_cells),
        Resource::new::<rbac::RoleBinding>(V1, "RoleBinding", "rolebindings")
            .defaulted(default_binding)
            .validated(validate_binding, validate_binding_update)
            .printed(BOUND, binding_cells),
        Resource::new::<rbac::Role>(V1, "Role", "roles")
            .validated(validate_role, |_, _, _| {})
            .printed(CREATED, role_cells),
    ];
    rows.into_iter()
        .map(|row| row.named(NameRule::PathSegment))
        .collect()
}

fn default_binding(binding: &mut Value) {
    if binding.at("roleRef").is_object() {
        object::default_to(&mut binding["roleRef"], "apiGroup", GROUP);
    }
    let subjects = binding.get_mut("subjects").and_then(Value::as_array_mut);
    for subject in subjects.into_iter().flatten() {
        if matches!(subject.text("kind"), "User" | "Group") {
            object::default_to(subject, "apiGroup", GROUP);
        }
    }
}

fn validate_role(role: &Value, errors: &mut Errors) {
    validate_rules(role, true, errors);
}

fn validate_cluster_role(role: &Value, errors: &mut Errors) {
    validate_rules(role, false, errors);
    let aggregation = role.at("aggregationRule");
    let selectors = Path::new("aggregationRule").child("clusterRoleSelectors");
    if aggregation.is_object() && aggregation.list("clusterRoleSelectors").is_empty() {
        errors.required(
            &selectors,
            "at least one clusterRoleSelector required if aggregationRule is non-nil",
        );
    }
}

fn validate_rules(role: &Value, is_namespaced: bool, errors: &mut Errors) {
    for (index, rule) in role.list("rules").iter().enumerate() {
        let path = Path::new("rules").index(index);
        if rule.list("verbs").is_empty() {
            errors.required(&path.child("verbs"), "verbs must contain at least one value");
        }
        let on_resources = ["apiGroups", "resources", "resourceNames"];
        let names_resources = on_resources.iter().any(|field| !rule.list(field).is_empty());
        let paths = path.child("nonResourceURLs");
        let urls = rule.at("nonResourceURLs");
        if !rule.list("nonResourceURLs").is_empty() {
            if is_namespaced {
                let why = "namespaced rules cannot apply to non-resource URLs";
                errors.invalid(&paths, urls.clone(), why);
            }
            if names_resources {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                errors.invalid(&paths, urls.clone(), why);
            }
            continue;
        }
        if rule.list("apiGroups").is_empty() {
            let why = "resource rules must supply at least one api group";
            errors.required(&path.child("apiGroups"), why);
        }
        if rule.list("resources").is_empty() {
            let why = "resource rules must supply at least one resource";
            errors.required(&path.child("resources"), why);
        }
    }
}

fn validate_binding(binding: &Value, errors: &mut Errors) {
    validate_reference(binding, &["Role", "ClusterRole"], errors);
    validate_subjects(binding, errors);
}

fn validate_cluster_binding(binding: &Value, errors: &mut Errors) {
    validate_reference(binding, &["ClusterRole"], errors);
    validate_subjects(binding, errors);
}

fn validate_reference(binding: &Value, kinds: &[&str], errors: &mut Errors) {
    let (role, path) = (binding.at("roleRef"), Path::new("roleRef"));
    if role.text("apiGroup") != GROUP {
        errors.not_supported(&path.child("apiGroup"), role.text("apiGroup"), &[GROUP]);
    }
    if !kinds.contains(&role.text("kind")) {
        errors.not_supported(&path.child("kind"), role.text("kind"), kinds);
    }
    match role.text("name") {
        "" => errors.required(&path.child("name"), ""),
        name => {
            if let Some(complaint) = NameRule::PathSegment.complaint(name) {
                errors.invalid(&path.child("name"), name, complaint);
            }
        }
    }
}

fn validate_subjects(binding: &Value, errors: &mut Errors) {
    for (index, subject) in binding.list("subjects").iter().enumerate() {
        let path = Path::new("subjects").index(index);
        let (name, group) = (subject.text("name"), subject.text("apiGroup"));
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        }
        match subject.text("kind") {
            "ServiceAccount" => {
                if let Some(complaint) = NameRule::Subdomain.complaint(name).filter(|_| !name.is_empty()) {
                    errors.invalid(&path.child("name"), name, complaint);
                }
                if !group.is_empty() {
                    errors.not_supported(&path.child("apiGroup"), group, &[""]);
                }
                if subject.text("namespace").is_empty() {
                    errors.required(&path.child("namespace"), "");
                }
            }
            "User" | "Group" => {
                if group != GROUP {
                    errors.not_supported(&path.child("apiGroup"), group, &[GROUP]);
                }
            }
            kind => errors.not_supported(&path.child("kind"), kind, &["ServiceAccount", "User", "Group"]),
        }
    }
}

fn validate_binding_update(new: &Value, old: &Value, errors: &mut Errors) {
    if new.at("roleRef") != old.at("roleRef") {
        errors.invalid(
            &Path::new("roleRef"),
            new.at("roleRef").clone(),
            "cannot change roleRef",
        );
    }
}

fn role_cells(role: &Value, _now: Timestamp) -> Vec<Value> {
    vec![
        object::name(role).into(),
        role.at("metadata.creationTimestamp").clone(),
    ]
}

fn binding_cells(binding: &Value, now: Timestamp) -> Vec<Value> {
    let role = format!(
        "{}/{}",
        binding.text("roleRef.kind"),
        binding.text("roleRef.name")
    );
    let of = |kind: &str| {
        let subjects = binding.list("subjects").iter();
        let names = subjects
            .filter(|subject| subject.text("kind") == kind)
            .map(|subject| match kind {
                "ServiceAccount" => format!("{}/{}", subject.text("namespace"), subject.text("name")),
                _ => subject.text("name").to_owned(),
            });
        Value::from(names.collect::<Vec<_>>().join(", "))
    };
    vec![
        object::name(binding).into(),
        role.into(),
        age(binding, now),
        of("User"),
        of("Group"),
        of("ServiceAccount"),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn told(check: impl Fn(&mut Errors)) -> Vec<String> {
        let mut errors = Errors::default();
        check(&mut errors);
        let found = errors.into_result().err().unwrap_or_default();
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_are_for_resources_or_for_paths() {
        let bare = json!({ "rules": [{}, { "verbs": ["get"], "nonResourceURLs": ["/x"], "resources": ["pods"] },
            { "verbs": ["get"], "apiGroups": [""], "resources": ["pods"] }] });
        let of_both = [
            "rules[0].verbs: Required value: verbs must contain at least one value",
            "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
            "rules[0].resources: Required value: resource rules must supply at least one resource",
        ];
        let both = "rules[1].nonResourceURLs: Invalid value: [\"/x\"]: rules cannot apply to both regular resources and non-resource URLs";
        let namespaced = "rules[1].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs";
        assert_eq!(
            told(|errors| validate_cluster_role(&bare, errors)),
            [&of_both[..], &[both]].concat()
        );
        assert_eq!(
            told(|errors| validate_role(&bare, errors)),
            [&of_both[..], &[namespaced, both]].concat()
        );
    }

    #[test]
    fn bindings_name_a_role_and_subjects_and_keep_the_role() {
        let mut binding = json!({ "roleRef": { "kind": "Role", "name": "r" }, "subjects": [
            { "kind": "User", "name": "u" }, { "kind": "ServiceAccount", "name": "s", "namespace": "n" } ] });
        default_binding(&mut binding);
        assert_eq!(binding.text("roleRef.apiGroup"), GROUP);
        assert_eq!(binding["subjects"][0]["apiGroup"], GROUP);
        assert_eq!(
            told(|errors| validate_binding(&binding, errors)),
            Vec::<String>::new()
        );
        assert_eq!(
            told(|errors| validate_cluster_binding(&binding, errors)),
            ["roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\""]
        );
        let mut other = binding.clone();
        other["roleRef"]["name"] = "x".into();
        let changed = told(|errors| validate_binding_update(&other, &binding, errors));
        assert_eq!(changed.len(), 1);
        assert!(changed[0].ends_with("cannot change roleRef"), "{changed:?}");
        let wrong = json!({ "roleRef": {}, "subjects": [{ "kind": "Robot", "name": "r" },
            { "kind": "ServiceAccount", "name": "s", "apiGroup": "x" }, { "kind": "Group", "apiGroup": "x" }] });
        assert_eq!(
            told(|errors| validate_binding(&wrong, errors)),
            [
                "roleRef.apiGroup: Unsupported value: \"\": supported values: \"rbac.authorization.k8s.io\"",
                "roleRef.kind: Unsupported value: \"\": supported values: \"Role\", \"ClusterRole\"",
                "roleRef.name: Required value",
                "subjects[0].kind: Unsupported value: \"Robot\": supported values: \"ServiceAccount\", \"User\", \"Group\"",
                "subjects[1].apiGroup: Unsupported value: \"x\": supported values: \"\"",
                "subjects[1].namespace: Required value",
                "subjects[2].name: Required value",
                "subjects[2].apiGroup: Unsupported value: \"x\": supported values: \"rbac.authorization.k8s.io\"",
            ]
        );
    }
}
