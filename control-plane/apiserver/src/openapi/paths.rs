//! The paths of a row: what can be asked for there, with which parameters, and what is answered.

use k8s_openapi::schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::schemas::{self, DELETE_OPTIONS, PATCH, STATUS};
use super::{Dialect, group_path};
use crate::resources::{Resource, Subresource};

/// Name, type, description.
type Parameter = (&'static str, &'static str, &'static str);

const DRY_RUN: Parameter = (
    "dryRun",
    "string",
    "`All`: the request is carried out in whole, but nothing is stored.",
);
const FIELD_MANAGER: Parameter = (
    "fieldManager",
    "string",
    "The name of the actor who makes the change.",
);
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What becomes of fields that the server does not know: `Ignore`, `Warn` (the default) or `Strict`.",
);
const WRITE: [Parameter; 3] = [DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const DELETE: [Parameter; 3] = [
    DRY_RUN,
    (
        "gracePeriodSeconds",
        "integer",
        "Seconds until the object is deleted; zero deletes at once.",
    ),
    (
        "propagationPolicy",
        "string",
        "What becomes of what the object owns: `Orphan`, `Background` or `Foreground`.",
    ),
];
const SELECT: [Parameter; 7] = [
    (
        "continue",
        "string",
        "The token of the list whose next part is wanted.",
    ),
    ("fieldSelector", "string", "Objects are selected by their fields."),
    ("labelSelector", "string", "Objects are selected by their labels."),
    ("limit", "integer", "The most objects of one answer."),
    (
        "resourceVersion",
        "string",
        "The version that the answer is at least of.",
    ),
    (
        "resourceVersionMatch",
        "string",
        "How `resourceVersion` is meant: `Exact` or `NotOlderThan`.",
    ),
    (
        "timeoutSeconds",
        "integer",
        "After how many seconds a watch ends.",
    ),
];
const WATCH: [Parameter; 3] = [
    (
        "allowWatchBookmarks",
        "boolean",
        "A watch also tells how far it is.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "A watch begins with the objects that there are.",
    ),
    (
        "watch",
        "boolean",
        "Changes are told as they happen, instead of a list.",
    ),
];
const PRETTY: Parameter = ("pretty", "string", "Accepted and without effect.");

const BODIES: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];
const PATCHES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];
const ANSWERS: &[&str] = &["application/json", "application/yaml"];

/// One method of a path.
struct Operation {
    method: &'static str,
    action: &'static str,
    /// Its id is `{verb}{group and version}{infix}{kind}…`, as upstream's.
    verb: &'static str,
    infix: &'static str,
    parameters: Vec<Parameter>,
    /// Definition of the body.
    takes: Option<String>,
    /// Definition of the answer; without one it is text, or a stream.
    gives: Option<String>,
}

/// One path of a row, with the kind that is exchanged there.
struct Endpoint<'a> {
    row: &'a Resource,
    path: String,
    /// Last part of the ids.
    suffix: String,
    kind: Value,
    operations: Vec<Operation>,
}

/// All paths of a row with what can be done there.
pub(super) fn of(row: &Resource, dialect: Dialect) -> Vec<(String, Value)> {
    let endpoints = endpoints(row).into_iter();
    endpoints
        .map(|endpoint| (endpoint.path.clone(), endpoint.item(dialect)))
        .collect()
}

fn endpoints(row: &Resource) -> Vec<Endpoint<'_>> {
    let name = schemas::name(row);
    let root = format!("/{}", group_path(row.group, row.version));
    let scope = if row.namespaced {
        "namespaces/{namespace}/"
    } else {
        ""
    };
    let collection = format!("{root}/{scope}{}", row.plural);
    let kind = schemas::group_version_kind((row.group, row.version), row.kind);
    let object = format!("{collection}/{{name}}");
    let mut found = Vec::new();
    let mut add = |path: &str, suffix: &str, operations: Vec<Operation>| {
        let serves = |operation: &Operation| row.verbs().contains(&operation.serves());
        let operations: Vec<Operation> = operations.into_iter().filter(serves).collect();
        if !operations.is_empty() {
            found.push(Endpoint {
                row,
                path: path.to_owned(),
                suffix: suffix.to_owned(),
                kind: kind.clone(),
                operations,
            });
        }
    };
    let whole = vec![list(&name), create(&name), delete_collection()];
    add(&collection, "", whole);
    add(
        &object,
        "",
        changes(&name).into_iter().chain([delete()]).collect(),
    );
    if row.namespaced {
        let everywhere = format!("{root}/{}", row.plural);
        add(&everywhere, "ForAllNamespaces", vec![list(&name)]);
    }
    let below = row.subresources();
    found.extend(below.iter().map(|sub| subresource(row, &name, &object, sub)));
    found
}

fn subresource<'a>(row: &'a Resource, of: &str, object: &str, sub: &Subresource) -> Endpoint<'a> {
    let other = schemas::exchanged(sub.kind, &mut SchemaSettings::draft07().into_generator());
    let passes_through = sub.name == "log" || other.is_none() && sub.kind != row.kind;
    let name = other.unwrap_or_else(|| of.to_owned());
    let operations = match passes_through {
        true => sub.verbs.iter().map(|verb| connect(verb)).collect(),
        false => changes(&name)
            .into_iter()
            .chain([create(&name)])
            .filter(|operation| sub.verbs.iter().any(|verb| method(verb) == operation.method))
            .collect(),
    };
    Endpoint {
        row,
        path: format!("{object}/{}", sub.name),
        suffix: capitalized(sub.name),
        kind: schemas::group_version_kind(sub.of.unwrap_or((row.group, row.version)), sub.kind),
        operations,
    }
}

/// The HTTP method of a verb.
fn method(verb: &str) -> &'static str {
    match verb {
        "create" => "post",
        "update" => "put",
        "patch" => "patch",
        "delete" => "delete",
        _ => "get",
    }
}

impl Operation {
    fn new(method: &'static str, verb: &'static str, parameters: &[Parameter]) -> Self {
        Operation {
            method,
            action: method,
            verb,
            infix: "",
            parameters: parameters.to_vec(),
            takes: None,
            gives: None,
        }
    }

    /// The verb that it is for clients.
    fn serves(&self) -> &'static str {
        match self.action {
            "post" => "create",
            "put" => "update",
            other => other,
        }
    }

    fn takes(self, definition: &str) -> Self {
        Operation {
            takes: Some(definition.to_owned()),
            ..self
        }
    }

    fn gives(self, definition: &str) -> Self {
        Operation {
            gives: Some(definition.to_owned()),
            ..self
        }
    }
}

/// What only passes through the server.
fn connect(verb: &str) -> Operation {
    let method = method(verb);
    let verb = match method {
        "get" => "connectGet",
        "post" => "connectPost",
        "put" => "connectPut",
        "patch" => "connectPatch",
        _ => "connectDelete",
    };
    Operation {
        action: "connect",
        ..Operation::new(method, verb, &[])
    }
}

fn list(name: &str) -> Operation {
    let parameters = [&SELECT[..], &WATCH].concat();
    let operation = Operation {
        action: "list",
        ..Operation::new("get", "list", &parameters)
    };
    operation.gives(&format!("{name}List"))
}

fn create(name: &str) -> Operation {
    Operation::new("post", "create", &WRITE).takes(name).gives(name)
}

fn changes(name: &str) -> Vec<Operation> {
    vec![
        Operation::new("get", "read", &[]).gives(name),
        Operation::new("put", "replace", &WRITE).takes(name).gives(name),
        Operation::new("patch", "patch", &WRITE).takes(PATCH).gives(name),
    ]
}

fn delete() -> Operation {
    Operation::new("delete", "delete", &DELETE)
        .takes(DELETE_OPTIONS)
        .gives(STATUS)
}

fn delete_collection() -> Operation {
    Operation {
        action: "deletecollection",
        infix: "Collection",
        parameters: [&SELECT[..], &DELETE].concat(),
        ..delete()
    }
}

impl Endpoint<'_> {
    fn item(&self, dialect: Dialect) -> Value {
        let mut item = Map::new();
        for operation in &self.operations {
            item.insert(operation.method.to_owned(), self.operation(operation, dialect));
        }
        let named = [
            ("namespace", "The namespace of the object."),
            ("name", "The name of the object."),
        ];
        let in_path = named
            .into_iter()
            .filter(|(name, _)| self.path.contains(&format!("{{{name}}}")));
        let parameters: Vec<Value> = in_path
            .map(|(name, about)| {
                let mut parameter = parameter((name, "string", about), "path", dialect);
                parameter["required"] = true.into();
                parameter
            })
            .chain([parameter(PRETTY, "query", dialect)])
            .collect();
        item.insert("parameters".to_owned(), parameters.into());
        Value::Object(item)
    }

    fn operation(&self, operation: &Operation, dialect: Dialect) -> Value {
        let Operation {
            method: _,
            action,
            verb,
            infix,
            parameters,
            takes,
            gives,
        } = operation;
        let group = group_words(self.row.group);
        let scope = if self.path.contains("{namespace}") {
            "Namespaced"
        } else {
            ""
        };
        let (version, kind, suffix) = (capitalized(self.row.version), self.row.kind, &self.suffix);
        let mut parameters: Vec<Value> = parameters
            .iter()
            .map(|one| parameter(*one, "query", dialect))
            .collect();
        let mut found = json!({
            "operationId": format!("{verb}{group}{version}{infix}{scope}{kind}{suffix}"),
            "tags": [format!("{}_{}", lower_first(&group), self.row.version)],
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": self.kind,
        });
        let refers = |name: &String| json!({ "$ref": format!("{}{name}", dialect.prefix()) });
        let body_types = match takes.as_deref() {
            Some(PATCH) => PATCHES,
            _ => BODIES,
        };
        let mut answer = json!({ "description": "OK" });
        match dialect {
            Dialect::V2 => {
                if let Some(body) = takes {
                    let schema = refers(body);
                    parameters
                        .push(json!({ "name": "body", "in": "body", "required": true, "schema": schema }));
                    found["consumes"] = json!(body_types);
                }
                answer["schema"] = gives.as_ref().map_or(json!({ "type": "string" }), refers);
                found["produces"] = json!(if gives.is_some() { ANSWERS } else { &["*/*"] });
            }
            Dialect::V3 => {
                let content = |types: &[&str], schema: Value| {
                    types
                        .iter()
                        .map(|one| ((*one).to_owned(), json!({ "schema": schema })))
                        .collect::<Map<_, _>>()
                };
                if let Some(body) = takes {
                    found["requestBody"] =
                        json!({ "required": true, "content": content(body_types, refers(body)) });
                }
                answer["content"] = match gives {
                    Some(name) => content(ANSWERS, refers(name)).into(),
                    None => content(&["*/*"], json!({ "type": "string" })).into(),
                };
            }
        }
        found["responses"] = json!({ "200": answer, "401": { "description": "Unauthorized" } });
        found["parameters"] = parameters.into();
        found
    }
}

fn parameter((name, kind, about): Parameter, place: &str, dialect: Dialect) -> Value {
    let mut found = json!({ "name": name, "in": place, "description": about });
    match dialect {
        Dialect::V2 => {
            found["type"] = kind.into();
            found["uniqueItems"] = true.into();
        }
        Dialect::V3 => found["schema"] = json!({ "type": kind, "uniqueItems": true }),
    }
    found
}

/// `rbac.authorization.k8s.io` -> `RbacAuthorization`, as in upstream's ids.
fn group_words(group: &str) -> String {
    match group {
        "" => "Core".to_owned(),
        _ => group
            .trim_end_matches(".k8s.io")
            .split('.')
            .map(capitalized)
            .collect(),
    }
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map(|first| first.to_ascii_uppercase())
        .into_iter()
        .chain(letters)
        .collect()
}

fn lower_first(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map(|first| first.to_ascii_lowercase())
        .into_iter()
        .chain(letters)
        .collect()
}
