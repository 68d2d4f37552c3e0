//! The table of everything that is served: one row per resource. Handlers, discovery, OpenAPI and tables read nothing
//! but rows, so that a further kind is a further row.

pub mod field;

mod autoscaler;
mod batch;
mod budget;
mod cluster;
mod codec;
mod container;
mod core;
mod events;
mod ip;
mod names;
mod node;
mod others;
mod pod;
mod pod_spec;
mod rbac;
mod service;
mod views;
mod workloads;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use jiff::Timestamp;
use k8s_openapi::schemars::{JsonSchema, Schema, SchemaGenerator};
use k8s_openapi::serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

pub use codec::unknown_fields;
pub use names::{NameRule, validate_metadata, validate_metadata_update};
pub use pod::{is_finished as pod_is_finished, is_ready as pod_is_ready};
pub(crate) use service::validate_cluster_ips;
pub use views::View;

use crate::features::Features;
use crate::table;
use field::Errors;

/// One row: everything that distinguishes a resource from the others.
pub struct Resource {
    /// API group, empty for core.
    pub group: &'static str,
    /// Version within the group.
    pub version: &'static str,
    /// Kind of the objects.
    pub kind: &'static str,
    /// Name in paths.
    pub plural: &'static str,
    /// Name of one, for people.
    pub singular: String,
    /// Objects live in namespaces.
    pub namespaced: bool,
    /// Abbreviations for kubectl.
    pub short_names: &'static [&'static str],
    /// `all`.
    pub categories: &'static [&'static str],
    /// What can be done with it.
    pub serves: Serves,
    /// There is a `/status`.
    pub has_status: bool,
    /// There is a `/scale`.
    pub has_scale: bool,
    /// `metadata.generation` counts changes of the spec.
    pub has_generation: bool,
    /// How objects may be named.
    pub names: NameRule,
    /// Fields that can be selected by, besides name and namespace.
    pub fields: &'static [&'static str],
    /// What `kubectl get` shows.
    pub columns: &'static [table::Column],
    /// The cells under `columns`.
    pub cells: fn(&Value, Timestamp) -> Vec<Value>,
    /// The type's schema, by reference; what it refers to is then known to the generator.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// Checks types and drops unknown fields.
    pub decode: fn(Value) -> Result<Value, String>,
    /// Fills absent fields.
    pub defaults: fn(&mut Value),
    /// Clears or sets what the creator may not decide.
    pub prepare_create: fn(&mut Value),
    /// Carries over what an updater may not change: `(new, old)`.
    pub prepare_update: fn(&mut Value, &Value),
    /// Completes what was written by the `/status` path.
    pub prepare_status: fn(&mut Value),
    /// Rules for what was written by the `/status` path.
    pub validate_status: fn(&Value, &mut Errors),
    /// Rules for every object.
    pub validate: fn(&Value, &mut Errors),
    /// Rules for a change: `(new, old)`.
    pub validate_update: fn(&Value, &Value, &mut Errors),
}

/// What can be done with a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    /// Stored objects with all verbs.
    Objects,
    /// Another version's or group's form of stored objects.
    View(View),
    /// Nothing is stored; a create is answered at once (reviews).
    Reviews,
    /// Nothing is stored; what nodes and pods use is read only.
    Figures,
    /// Clients look whether there are any, but none can be made yet: an empty place in the store.
    None,
}

/// A path below an object.
pub struct Subresource {
    /// Last segment of the path.
    pub name: &'static str,
    /// Kind that is exchanged.
    pub kind: &'static str,
    /// Group and version of that kind, when not the parent's.
    pub of: Option<(&'static str, &'static str)>,
    /// Its verbs.
    pub verbs: &'static [&'static str],
}

impl Resource {
    pub(crate) fn new<T: Serialize + DeserializeOwned + JsonSchema>(
        (group, version): (&'static str, &'static str),
        kind: &'static str,
        plural: &'static str,
    ) -> Self {
        Resource {
            group,
            version,
            kind,
            plural,
            singular: kind.to_lowercase(),
            namespaced: true,
            short_names: &[],
            categories: &[],
            serves: Serves::Objects,
            has_status: false,
            has_scale: false,
            has_generation: false,
            names: NameRule::Subdomain,
            fields: &[],
            columns: table::NAME_AND_AGE,
            cells: table::name_and_age,
            schema: |generator| generator.subschema_for::<T>(),
            decode: codec::round_trip::<T>,
            defaults: |_| {},
            prepare_create: |_| {},
            prepare_update: |_, _| {},
            prepare_status: |_| {},
            validate_status: |_, _| {},
            validate: |_, _| {},
            validate_update: |_, _, _| {},
        }
    }

    fn cluster_scoped(self) -> Self {
        Resource {
            namespaced: false,
            ..self
        }
    }

    fn short(self, short_names: &'static [&'static str]) -> Self {
        Resource { short_names, ..self }
    }

    fn in_all(self) -> Self {
        Resource {
            categories: &["all"],
            ..self
        }
    }

    fn with_status(self) -> Self {
        Resource {
            has_status: true,
            ..self
        }
    }

    fn with_scale(self) -> Self {
        Resource {
            has_scale: true,
            ..self
        }
    }

    fn with_generation(self) -> Self {
        Resource {
            has_generation: true,
            ..self
        }
    }

    fn named(self, names: NameRule) -> Self {
        Resource { names, ..self }
    }

    fn selectable_by(self, fields: &'static [&'static str]) -> Self {
        Resource { fields, ..self }
    }

    fn printed(self, columns: &'static [table::Column], cells: fn(&Value, Timestamp) -> Vec<Value>) -> Self {
        Resource {
            columns,
            cells,
            ..self
        }
    }

    fn defaulted(self, defaults: fn(&mut Value)) -> Self {
        Resource { defaults, ..self }
    }

    fn validated(
        self,
        validate: fn(&Value, &mut Errors),
        validate_update: fn(&Value, &Value, &mut Errors),
    ) -> Self {
        Resource {
            validate,
            validate_update,
            ..self
        }
    }

    /// `pods`, `deployments.apps`: how error texts name the resource.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        crate::object::api_version(self.group, self.version)
    }

    /// Group and plural under which the objects lie in the store.
    pub fn stored_as(&self) -> (&'static str, &'static str) {
        match self.serves {
            Serves::View(view) => {
                let (group, _, _, plural) = view.stored();
                (group, plural)
            }
            Serves::Objects | Serves::Reviews | Serves::Figures | Serves::None => (self.group, self.plural),
        }
    }

    /// The row under which the objects are kept.
    pub fn stored_row<'a>(&'a self, registry: &'a Registry) -> &'a Resource {
        match self.serves {
            Serves::View(view) => {
                let (group, _, kind, _) = view.stored();
                registry.kind(group, kind)
            }
            Serves::Objects | Serves::Reviews | Serves::Figures | Serves::None => self,
        }
    }

    /// From the stored form to the one that this row serves.
    pub fn outward(&self, object: Value) -> Value {
        match self.serves {
            Serves::View(view) => view.outward(object, self.api_version()),
            Serves::Objects | Serves::Reviews | Serves::Figures | Serves::None => object,
        }
    }

    /// From the form that this row serves to the stored one.
    pub fn inward(&self, object: Value) -> Value {
        match self.serves {
            Serves::View(view) => view.inward(object),
            Serves::Objects | Serves::Reviews | Serves::Figures | Serves::None => object,
        }
    }

    /// Verbs as discovery tells them.
    pub fn verbs(&self) -> &'static [&'static str] {
        match self.serves {
            Serves::Reviews => &["create"],
            Serves::Figures => &["get", "list"],
            Serves::None => &["get", "list", "watch"],
            Serves::Objects | Serves::View(_) => &[
                "create",
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "update",
                "watch",
            ],
        }
    }

    /// Paths below objects.
    pub fn subresources(&self) -> Vec<Subresource> {
        const CHANGE: &[&str] = &["get", "patch", "update"];
        let below = |name, kind, of, verbs| Subresource {
            name,
            kind,
            of,
            verbs,
        };
        const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
        let mut found = Vec::new();
        if self.has_status {
            found.push(below("status", self.kind, None, CHANGE));
        }
        if self.has_scale {
            found.push(below("scale", "Scale", Some(("autoscaling", "v1")), CHANGE));
        }
        match self.kind {
            "Namespace" => found.push(below("finalize", self.kind, None, &["update"])),
            "Pod" => {
                found.push(below("binding", "Binding", None, &["create"]));
                found.push(below("eviction", "Eviction", Some(("policy", "v1")), &["create"]));
                found.push(below("log", self.kind, None, &["get"]));
                for streamed in ["attach", "exec", "portforward"] {
                    let kind = match streamed {
                        "attach" => "PodAttachOptions",
                        "exec" => "PodExecOptions",
                        _ => "PodPortForwardOptions",
                    };
                    found.push(below(streamed, kind, None, &["create", "get"]));
                }
                found.push(below("proxy", "PodProxyOptions", None, PROXY));
            }
            "Service" => found.push(below("proxy", "ServiceProxyOptions", None, PROXY)),
            "Node" => found.push(below("proxy", "NodeProxyOptions", None, PROXY)),
            "ServiceAccount" => {
                let of = Some(("authentication.k8s.io", "v1"));
                found.push(below("token", "TokenRequest", of, &["create"]));
            }
            _ => {}
        }
        found
    }
}

/// All rows.
pub struct Registry {
    rows: Vec<Resource>,
}

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::new);

impl Registry {
    /// The one table of this process.
    pub fn global() -> &'static Registry {
        &REGISTRY
    }

    /// Builds the table.
    pub fn new() -> Self {
        // Views stand behind what they are views of, as clients prefer the first version.
        let groups = [
            core::rows(),
            workloads::rows(),
            batch::rows(),
            events::rows(),
            cluster::rows(),
            rbac::rows(),
            others::rows(),
        ];
        Registry {
            rows: groups.into_iter().flatten().collect(),
        }
    }

    /// The rows that are served.
    pub fn served(features: &Features) -> Self {
        let mut registry = Registry::new();
        registry.rows.retain(|row| features.serves(row));
        registry
    }

    /// All rows, in the order in which discovery lists them.
    pub fn rows(&self) -> &[Resource] {
        &self.rows
    }

    /// The row that a path names.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Resource> {
        self.rows
            .iter()
            .find(|row| (row.group, row.version, row.plural) == (group, version, plural))
    }

    /// The row of a kind in the form that is stored; panics never, since rows name each other only in this crate.
    pub fn kind(&self, group: &str, kind: &str) -> &Resource {
        let found = self
            .rows
            .iter()
            .filter(|row| !matches!(row.serves, Serves::View(_)))
            .find(|row| (row.group, row.kind) == (group, kind));
        found.expect("invariant: only rows of the table are looked up by kind")
    }

    /// Rows with objects of their own in the store.
    pub fn stored(&self) -> impl Iterator<Item = &Resource> {
        self.rows
            .iter()
            .filter(|row| matches!(row.serves, Serves::Objects | Serves::None))
    }

    /// Groups with their versions, the core group first; the preferred version, which is the stored one, first.
    pub fn groups(&self) -> BTreeMap<&'static str, Vec<&'static str>> {
        let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for row in &self.rows {
            let versions = groups.entry(row.group).or_default();
            if !versions.contains(&row.version) {
                versions.push(row.version);
            }
        }
        groups
    }
}

impl Default for Registry {
    fn default() -> Self {
        Registry::new()
    }
}
