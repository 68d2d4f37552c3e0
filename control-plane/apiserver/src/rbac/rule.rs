//! One rule of a role: what it allows, and which rules it is as much as.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write as _};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::object::Fields;
use crate::request::{RequestInfo, ResourcePath, Target};

const ALL: &str = "*";

/// `PolicyRule`: verbs on resources, or on paths that are none.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rule {
    /// `get`, `list`, …; `*` is all.
    pub verbs: Vec<String>,
    /// API groups; `*` is all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// `pods`, `pods/log`, `*/status`; `*` is all with their subresources.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Names of objects; none is all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Paths; one that ends in `*` is all that begin so.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    /// Every verb on every object.
    pub fn everything() -> Self {
        let all = || vec![ALL.to_owned()];
        Rule {
            verbs: all(),
            api_groups: all(),
            resources: all(),
            ..Rule::default()
        }
    }

    /// The rules of a Role or ClusterRole. What is no rule allows nothing: the role was checked when it was written.
    pub fn read_all(role: &Value) -> Vec<Self> {
        let rules = role.list("rules").iter();
        rules
            .filter_map(|rule| serde_json::from_value(rule.clone()).ok())
            .collect()
    }

    /// True when the request is one of those that the rule allows.
    pub fn allows(&self, request: &RequestInfo) -> bool {
        has(&self.verbs, &request.verb)
            && match &request.target {
                Target::Other(segments) => self.allows_path(&format!("/{}", segments.join("/"))),
                Target::Resource(path) => self.allows_resource(path),
            }
    }

    fn allows_path(&self, path: &str) -> bool {
        self.non_resource_urls
            .iter()
            .any(|allowed| is_within(path, allowed))
    }

    fn allows_resource(&self, path: &ResourcePath) -> bool {
        let subresource = path.subresource.as_deref().unwrap_or_default();
        let name = path.name.as_deref().or(path.selected.as_deref());
        has(&self.api_groups, &path.group)
            && has_resource(&self.resources, &path.resource, subresource)
            && (self.resource_names.is_empty() || name.is_some_and(|name| self.names(name)))
    }

    fn names(&self, object: &str) -> bool {
        self.resource_names.iter().any(|name| name == object)
    }

    /// The rule in rules that name one verb, one group, one resource, one object or one path each.
    fn atoms(&self) -> impl Iterator<Item = Atom<'_>> {
        let names = self.resource_names.iter().map(|name| Some(name.as_str()));
        let any_name = self.resource_names.is_empty().then_some(None);
        let names: Vec<Option<&str>> = names.chain(any_name).collect();
        let objects = self.api_groups.iter().flat_map(move |group| {
            let names = names.clone();
            self.resources.iter().flat_map(move |resource| {
                let of = move |name| On::Object {
                    group,
                    resource,
                    name,
                };
                names.clone().into_iter().map(of)
            })
        });
        let paths = self.non_resource_urls.iter().map(|path| On::Path(path));
        let on: Vec<On<'_>> = objects.chain(paths).collect();
        self.verbs
            .iter()
            .flat_map(move |verb| on.clone().into_iter().map(move |on| Atom { verb, on }))
    }

    /// Whether this rule alone allows all that the atom does.
    fn covers(&self, atom: &Atom<'_>) -> bool {
        has(&self.verbs, atom.verb)
            && match atom.on {
                On::Path(path) => self.allows_path(path),
                On::Object {
                    group,
                    resource,
                    name,
                } => {
                    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
                    has(&self.api_groups, group)
                        && has_resource(&self.resources, resource, subresource)
                        && (self.resource_names.is_empty() || name.is_some_and(|name| self.names(name)))
                }
            }
    }
}

/// One verb on one thing.
#[derive(Debug, Clone, Copy)]
struct Atom<'a> {
    verb: &'a str,
    on: On<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum On<'a> {
    Object {
        group: &'a str,
        resource: &'a str,
        name: Option<&'a str>,
    },
    Path(&'a str),
}

/// What of `wanted` the rules `held` do not allow, with the verbs of one thing together; empty when they allow all.
pub fn missing<'a>(held: &[&Rule], wanted: impl IntoIterator<Item = &'a Rule>) -> Vec<Rule> {
    let mut verbs: BTreeMap<On<'a>, Vec<String>> = BTreeMap::new();
    for atom in wanted.into_iter().flat_map(Rule::atoms) {
        let of = verbs.get(&atom.on);
        let is_told = of.is_some_and(|told| told.iter().any(|verb| verb == atom.verb));
        if !is_told && !held.iter().any(|rule| rule.covers(&atom)) {
            verbs.entry(atom.on).or_default().push(atom.verb.to_owned());
        }
    }
    let rules = verbs.into_iter();
    rules.map(|(on, verbs)| on.rule(verbs)).collect()
}

impl On<'_> {
    fn rule(self, verbs: Vec<String>) -> Rule {
        match self {
            On::Object {
                group,
                resource,
                name,
            } => Rule {
                verbs,
                api_groups: vec![group.to_owned()],
                resources: vec![resource.to_owned()],
                resource_names: name.map(str::to_owned).into_iter().collect(),
                ..Rule::default()
            },
            On::Path(path) => Rule {
                verbs,
                non_resource_urls: vec![path.to_owned()],
                ..Rule::default()
            },
        }
    }
}

/// As upstream's refusals tell it: `{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}`.
impl Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.resource_names),
            ("NonResourceURLs", &self.non_resource_urls),
            ("Verbs", &self.verbs),
        ];
        f.write_char('{')?;
        let mut told = fields.into_iter().filter(|(_, values)| !values.is_empty());
        if let Some(first) = told.next() {
            write_field(f, first)?;
        }
        for field in told {
            f.write_str(", ")?;
            write_field(f, field)?;
        }
        f.write_char('}')
    }
}

fn write_field(f: &mut fmt::Formatter<'_>, (name, values): (&str, &Vec<String>)) -> fmt::Result {
    let quoted: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
    write!(f, "{name}:[{}]", quoted.join(" "))
}

fn has(allowed: &[String], one: &str) -> bool {
    allowed.iter().any(|allowed| allowed == ALL || allowed == one)
}

/// `*` is everything, `*/x` the subresource of everything.
fn has_resource(allowed: &[String], resource: &str, subresource: &str) -> bool {
    allowed.iter().any(|allowed| match allowed.split_once('/') {
        None if allowed == ALL => true,
        None => subresource.is_empty() && allowed == resource,
        Some((of, below)) => below == subresource && (of == ALL || of == resource),
    })
}

fn is_within(path: &str, allowed: &str) -> bool {
    allowed == path
        || allowed
            .strip_suffix('*')
            .is_some_and(|begin| path.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> Rule {
        let owned = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
        Rule {
            verbs: owned(verbs),
            api_groups: owned(groups),
            resources: owned(resources),
            resource_names: owned(names),
            non_resource_urls: Vec::new(),
        }
    }

    fn paths(verbs: &[&str], paths: &[&str]) -> Rule {
        Rule {
            non_resource_urls: paths.iter().map(|path| (*path).to_owned()).collect(),
            ..rule(verbs, &[], &[], &[])
        }
    }

    #[test]
    fn nobody_gives_more_than_all_of_the_own_rules_together() {
        let held = [
            rule(&["get", "list"], &[""], &["pods", "*/status"], &[]),
            rule(&["update"], &["", "apps"], &["pods", "deployments"], &[]),
            rule(&["get"], &[""], &["secrets"], &["a", "b"]),
            paths(&["get"], &["/healthz/*"]),
        ];
        let held: Vec<&Rule> = held.iter().collect();
        for (wanted, expected) in [
            (rule(&["get", "update"], &[""], &["pods"], &[]), ""),
            (
                rule(&["get"], &[""], &["pods/status", "nodes/status"], &["x"]),
                "",
            ),
            (
                rule(&["get", "delete", "watch"], &[""], &["pods"], &[]),
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete" "watch"]}"#,
            ),
            (
                rule(&["*"], &[""], &["pods"], &[]),
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["*"]}"#,
            ),
            (
                rule(&["update"], &["*"], &["pods"], &[]),
                r#"{APIGroups:["*"], Resources:["pods"], Verbs:["update"]}"#,
            ),
            (rule(&["get"], &[""], &["secrets"], &["b", "a"]), ""),
            (
                rule(&["get"], &[""], &["secrets"], &[]),
                r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}"#,
            ),
            (
                rule(&["get"], &[""], &["secrets"], &["a", "c"]),
                r#"{APIGroups:[""], Resources:["secrets"], ResourceNames:["c"], Verbs:["get"]}"#,
            ),
            (
                rule(&["get"], &[""], &["*"], &[]),
                r#"{APIGroups:[""], Resources:["*"], Verbs:["get"]}"#,
            ),
            (paths(&["get"], &["/healthz/etcd", "/healthz/*"]), ""),
            (
                paths(&["get", "post"], &["/healthz"]),
                r#"{NonResourceURLs:["/healthz"], Verbs:["get" "post"]}"#,
            ),
        ] {
            let told: Vec<String> = missing(&held, [&wanted]).iter().map(Rule::to_string).collect();
            assert_eq!(told.join(" "), expected, "{wanted}");
        }
        let all = rule(&["*"], &["*"], &["*"], &[]);
        assert_eq!(missing(&[&all], held), [paths(&["get"], &["/healthz/*"])]);
    }

    #[test]
    fn rules_are_read_as_they_are_written() {
        let role = json!({ "rules": [{ "verbs": ["get"], "nonResourceURLs": ["/x"] },
            { "verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"] }] });
        let read = Rule::read_all(&role);
        assert_eq!(
            read,
            [paths(&["get"], &["/x"]), rule(&["get"], &[""], &["pods"], &["a"])]
        );
        assert_eq!(serde_json::to_value(&read).expect("JSON"), role["rules"]);
    }
}
