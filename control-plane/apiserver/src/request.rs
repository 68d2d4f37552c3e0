//! From method, path and query to what is asked: upstream's `RequestInfo` (apiserver `pkg/endpoints/request`).

use std::borrow::Cow;
use std::collections::HashMap;

use http::Method;

/// A request, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestInfo {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; the lower-case HTTP method
    /// for paths that are no resources. Reviews ask for others, too: `impersonate`, `bind`, `escalate`, `*`.
    pub verb: Cow<'static, str>,
    /// What it is about.
    pub target: Target,
}

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `/healthz`, `/apis/apps/v1`, `/openapi/v3/…`: the segments of the path.
    Other(Vec<String>),
    /// An object or a collection.
    Resource(ResourcePath),
}

/// `/api/v1/namespaces/{namespace}/{resource}/{name}/{subresource}/{rest}`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResourcePath {
    /// API group, empty for core.
    pub group: String,
    /// Version within the group.
    pub version: String,
    /// Plural name.
    pub resource: String,
    /// Namespace in the path.
    pub namespace: Option<String>,
    /// Object name.
    pub name: Option<String>,
    /// `status`, `log`, ….
    pub subresource: Option<String>,
    /// The one object that a list's field selector leaves.
    pub selected: Option<String>,
}

impl RequestInfo {
    /// Understands a request line.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let segments: Vec<String> = path
            .split('/')
            .filter(|segment| !segment.is_empty())
            .map(percent_decoded)
            .collect();
        match resource_path(&segments) {
            Some(path) => {
                let verb = resource_verb(method, &path, query);
                let selected = selected_name(query).filter(|_| matches!(verb, "list" | "watch"));
                RequestInfo {
                    verb: verb.into(),
                    target: Target::Resource(ResourcePath { selected, ..path }),
                }
            }
            None => RequestInfo {
                verb: plain_verb(method).into(),
                target: Target::Other(segments),
            },
        }
    }
}

fn selected_name(query: &Query) -> Option<String> {
    let mut terms = query.get("fieldSelector")?.split(',');
    let name = terms.find_map(|term| term.strip_prefix("metadata.name="))?;
    Some(name.trim_start_matches('=').to_owned()).filter(|name| !name.is_empty())
}

/// An escaped slash names nothing: no object's name has one, and etcd keys are divided by them.
fn resource_path(segments: &[String]) -> Option<ResourcePath> {
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version, rest) = match words.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return None,
    };
    let owned = |word: &&str| Some((*word).to_owned());
    let base = ResourcePath {
        group: group.to_owned(),
        version: version.to_owned(),
        ..ResourcePath::default()
    };
    let path = match rest {
        // `namespaces/x/status` and `/finalize` are subresources of the namespace itself.
        ["namespaces", name, sub @ ("status" | "finalize")] => ResourcePath {
            resource: "namespaces".to_owned(),
            name: owned(name),
            subresource: owned(sub),
            ..base
        },
        ["namespaces", namespace, resource, more @ ..] => ResourcePath {
            resource: (*resource).to_owned(),
            namespace: owned(namespace),
            name: more.first().and_then(owned),
            subresource: more.get(1).and_then(owned),
            ..base
        },
        [resource, more @ ..] => ResourcePath {
            resource: (*resource).to_owned(),
            name: more.first().and_then(owned),
            subresource: more.get(1).and_then(owned),
            ..base
        },
        [] => return None,
    };
    let parts = [
        Some(&path.group),
        Some(&path.version),
        Some(&path.resource),
        path.namespace.as_ref(),
        path.name.as_ref(),
        path.subresource.as_ref(),
    ];
    let escaped = parts.into_iter().flatten().any(|part| part.contains('/'));
    (!escaped).then_some(path)
}

fn resource_verb(method: &Method, path: &ResourcePath, query: &Query) -> &'static str {
    let named = path.name.is_some();
    match method.as_str() {
        "GET" | "HEAD" if named => "get",
        "GET" | "HEAD" if query.flag("watch") => "watch",
        "GET" | "HEAD" => "list",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" if named => "delete",
        "DELETE" => "deletecollection",
        _ => "unknown",
    }
}

fn plain_verb(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" | "HEAD" => "get",
        "POST" => "post",
        _ => "unknown",
    }
}

/// The query of a request.
#[derive(Debug, Clone, Default)]
pub struct Query {
    values: HashMap<String, String>,
    raw: String,
}

impl Query {
    /// Reads `a=b&c=d`; the last of equal names wins.
    pub fn parse(query: Option<&str>) -> Self {
        let raw = query.unwrap_or_default();
        let pairs = raw.split('&').filter(|pair| !pair.is_empty());
        let values = pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(decoded_pair)
            .collect();
        Query {
            values,
            raw: raw.to_owned(),
        }
    }

    /// The value of a parameter, unless absent or empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// `true` and `1` (Go's `ParseBool` as client-go writes it); also a bare `?watch`.
    pub fn flag(&self, name: &str) -> bool {
        self.values
            .get(name)
            .is_some_and(|value| matches!(value.as_str(), "" | "1" | "t" | "true" | "True" | "TRUE"))
    }

    /// As it was sent: repeated parameters (`command=a&command=b`) are for the kubelet to read.
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// A number.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.get(name)?.parse().ok()
    }
}

fn decoded_pair((name, value): (&str, &str)) -> (String, String) {
    (
        percent_decoded(&name.replace('+', " ")),
        percent_decoded(&value.replace('+', " ")),
    )
}

/// RFC 3986 §2.1; a broken escape stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                bytes.push(hex_value(*high) << 4 | hex_value(*low));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex_value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit - b'A' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: &str, path: &str, query: &str, expected: &str) {
        let method = method.parse().expect("a method");
        let info = RequestInfo::parse(&method, path, &Query::parse(Some(query)));
        let seen = match info.target {
            Target::Other(segments) => format!("{} {}", info.verb, segments.join("|")),
            Target::Resource(path) => format!(
                "{} {}/{} {} ns={} name={} sub={}",
                info.verb,
                path.group,
                path.version,
                path.resource,
                path.namespace.unwrap_or_default(),
                path.name.unwrap_or_default(),
                path.subresource.unwrap_or_default(),
            ),
        };
        assert_eq!(seen, expected);
    }

    #[test]
    fn paths_name_what_upstream_says_they_name() {
        check("GET", "/healthz", "", "get healthz");
        check("GET", "/apis/apps/v1", "", "get apis|apps|v1");
        check("GET", "/api/v1/pods", "", "list /v1 pods ns= name= sub=");
        check(
            "GET",
            "/api/v1/pods",
            "watch=true",
            "watch /v1 pods ns= name= sub=",
        );
        check("GET", "/api/v1/pods", "watch=0", "list /v1 pods ns= name= sub=");
        check(
            "GET",
            "/api/v1/namespaces/a",
            "",
            "get /v1 namespaces ns= name=a sub=",
        );
        check(
            "PUT",
            "/api/v1/namespaces/a/finalize",
            "",
            "update /v1 namespaces ns= name=a sub=finalize",
        );
        check(
            "POST",
            "/api/v1/namespaces/a/pods",
            "",
            "create /v1 pods ns=a name= sub=",
        );
        check(
            "DELETE",
            "/api/v1/namespaces/a/pods",
            "",
            "deletecollection /v1 pods ns=a name= sub=",
        );
        check("PATCH", "/apis/apps/v1/namespaces/a/deployments/b/scale", "", {
            "patch apps/v1 deployments ns=a name=b sub=scale"
        });
        check(
            "GET",
            "/api/v1/nodes/n%20x/status",
            "",
            "get /v1 nodes ns= name=n x sub=status",
        );
        check(
            "GET",
            "/api/v1/namespaces/a/configmaps/b%2Fc",
            "",
            "get api|v1|namespaces|a|configmaps|b/c",
        );
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse(Some("labelSelector=app%3Dweb%2Ctier+in+%28a%29&watch&limit=500"));
        assert_eq!(query.get("labelSelector"), Some("app=web,tier in (a)"));
        assert_eq!(
            (query.flag("watch"), query.int("limit"), query.get("absent")),
            (true, Some(500), None)
        );
    }
}
