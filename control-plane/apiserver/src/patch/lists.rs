//! How lists and maps of the API are merged, for every kind of patch that knows: after the tags `patchMergeKey`,
//! `listType`, `listMapKey`, `mapType` and `structType` of the API types (k8s.io/api), which our crates leave out. What
//! kubectl needs of them for its own patches stands by definition in `openapi::merge`.

use serde_json::{Map, Value};

/// Where a value stands: the field that holds it, and the one around that. Elements stand where their list does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    parent: &'a str,
    field: &'a str,
}

impl<'a> Place<'a> {
    /// The whole object.
    pub(crate) const ROOT: Place<'static> = Place {
        parent: "",
        field: "",
    };

    /// A field of the object (or of the elements) that stands here.
    pub(crate) fn below(self, field: &'a str) -> Self {
        Place {
            parent: self.field,
            field,
        }
    }

    /// The field that holds the value.
    pub(crate) fn field(self) -> &'a str {
        self.field
    }

    /// How a list that stands here is merged.
    pub(crate) fn list_rule(self) -> ListRule {
        use ListRule::{AppliedByKeys, AppliedSet, Atomic, ByKeys, ReplacedByApply, Set};
        match (self.parent, self.field) {
            // ServiceAccount: the object itself has the lists.
            ("", "imagePullSecrets") => Atomic,
            ("", "secrets") => ByKeys(&["name"]),
            (
                _,
                "containers"
                | "initContainers"
                | "ephemeralContainers"
                | "env"
                | "volumes"
                | "imagePullSecrets"
                | "schedulingGates"
                | "resourceClaims"
                | "resourceClaimStatuses"
                | "allocatedResourcesStatus",
            ) => ByKeys(&["name"]),
            ("containers" | "initContainers" | "ephemeralContainers", "ports") => {
                ByKeys(&["containerPort", "protocol"])
            }
            ("spec", "ports") => ByKeys(&["port", "protocol"]),
            (_, "volumeMounts") => ByKeys(&["mountPath"]),
            (_, "volumeDevices") => ByKeys(&["devicePath"]),
            (_, "hostAliases" | "podIPs") => ByKeys(&["ip"]),
            (_, "hostIPs") => ReplacedByApply("ip"),
            (_, "topologySpreadConstraints") => ByKeys(&["topologyKey", "whenUnsatisfiable"]),
            ("status", "conditions" | "addresses") => ByKeys(&["type"]),
            ("metadata", "ownerReferences") => ByKeys(&["uid"]),
            ("metadata", "finalizers") | ("spec", "podCIDRs") => Set,
            ("resources", "claims") => AppliedByKeys(&["name"]),
            ("uncountedTerminatedPods", "succeeded" | "failed") => AppliedSet,
            _ => Atomic,
        }
    }

    /// Whether a map that stands here has one owner.
    pub(crate) fn has_atomic_map(self) -> bool {
        matches!(
            (self.parent, self.field),
            (
                _,
                "selector" | "labelSelector" | "namespaceSelector" | "podSelector" | "nodeSelector"
            ) | (_, "requiredDuringSchedulingIgnoredDuringExecution")
                | ("nodeAffinity", "required")
                | (
                    _,
                    "configMapKeyRef" | "secretKeyRef" | "fieldRef" | "resourceFieldRef" | "secretRef"
                )
                | (
                    _,
                    "involvedObject" | "regarding" | "related" | "claimRef" | "dataSource" | "scaleTargetRef"
                )
                | ("", "roleRef" | "secrets")
                | ("defaultBackend", "resource")
                | (_, "imagePullSecrets")
                | ("metadata", "ownerReferences")
        )
    }
}

/// How a list is merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListRule {
    /// The patch's list replaces the object's.
    Atomic,
    /// The same under server-side apply; a strategic merge matches objects by this field.
    ReplacedByApply(&'static str),
    /// Objects are matched by these fields, under a strategic merge by the first of them alone.
    ByKeys(&'static [&'static str]),
    /// An apply matches objects by these fields; a strategic merge replaces the list.
    AppliedByKeys(&'static [&'static str]),
    /// A set of plain values.
    Set,
    /// The same under server-side apply; a strategic merge replaces the list.
    AppliedSet,
}

impl ListRule {
    /// An apply tells its elements apart.
    pub(crate) fn has_elements(self) -> bool {
        matches!(
            self,
            ListRule::ByKeys(_) | ListRule::AppliedByKeys(_) | ListRule::Set | ListRule::AppliedSet
        )
    }

    /// The field by which a strategic merge matches objects.
    pub(crate) fn merge_key(self) -> Option<&'static str> {
        match self {
            ListRule::ByKeys(keys) => keys.first().copied(),
            ListRule::ReplacedByApply(key) => Some(key),
            ListRule::AppliedByKeys(_) | ListRule::Atomic | ListRule::Set | ListRule::AppliedSet => None,
        }
    }
}

/// Why an element of a list has no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unnamed {
    /// A key is missing.
    #[error(
        "associative list with keys has an element that omits key field \"{0}\" (and doesn't have default value)"
    )]
    Omits(&'static str),
    /// It is no object.
    #[error("associative list with keys may not have non-map elements")]
    NoObject,
    /// It is no plain value.
    #[error("associative list without keys has an element that's a list or map type")]
    NotPlain,
}

/// How `fieldsV1` names an element: `k:{"name":"web"}` by its keys, `v:"a"` by its value.
pub(crate) fn element_name(rule: ListRule, item: &Value) -> Result<String, Unnamed> {
    let (ListRule::ByKeys(keys) | ListRule::AppliedByKeys(keys)) = rule else {
        return match item {
            Value::Object(_) | Value::Array(_) => Err(Unnamed::NotPlain),
            plain => Ok(format!("v:{plain}")),
        };
    };
    let Value::Object(fields) = item else {
        return Err(Unnamed::NoObject);
    };
    let mut named = Map::new();
    for key in keys {
        let value = match fields.get(*key) {
            None | Some(Value::Null) if *key == "protocol" => Value::from("TCP"),
            None | Some(Value::Null) => return Err(Unnamed::Omits(key)),
            Some(value) => value.clone(),
        };
        named.insert((*key).to_owned(), value);
    }
    Ok(format!("k:{}", Value::Object(named)))
}

/// The elements by name, in their order; `None` when one has none or two share one: then the list is merged as a whole.
pub(crate) fn named_elements(rule: ListRule, items: &[Value]) -> Option<Vec<(String, &Value)>> {
    if !rule.has_elements() {
        return None;
    }
    let mut seen = std::collections::HashSet::with_capacity(items.len());
    let mut named = Vec::with_capacity(items.len());
    for item in items {
        let name = element_name(rule, item).ok()?;
        if !seen.insert(name.clone()) {
            return None;
        }
        named.push((name, item));
    }
    Some(named)
}
