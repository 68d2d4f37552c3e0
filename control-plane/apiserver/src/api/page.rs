//! Lists in parts and lists of the past: `limit`, `continue`, `remainingItemCount` (apiserver `pkg/storage/continue.go`,
//! `etcd3/store.go`).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::read::parse_revision;
use super::{Api, Call};
use crate::features::Feature;
use crate::object::Fields;
use crate::selectors::Selection;
use crate::status::{Failure, Result};
use crate::storage::{Page, StorageError};

/// Objects read at once when a selector leaves some out, at most.
const MAX_CHUNK: i64 = 10_000;

/// A list, or a part of one.
pub(super) struct Listed {
    pub objects: Vec<Value>,
    /// `metav1.ListMeta`.
    pub metadata: Value,
}

impl Listed {
    pub(super) fn whole(objects: Vec<Value>, revision: i64) -> Self {
        Listed {
            objects,
            metadata: json!({ "resourceVersion": revision.to_string() }),
        }
    }
}

/// Where a list goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Position {
    /// The revision of the list's first part; `None` for the newest, which is not consistent with it.
    revision: Option<i64>,
    /// The first key, without the prefix of the list.
    start: String,
}

impl Position {
    /// `{"v":"meta.k8s.io/v1","rv":7,"start":"default/a\u0000"}` in base64 for URLs.
    fn encode(&self) -> String {
        let token = json!({ "v": "meta.k8s.io/v1", "rv": self.revision.unwrap_or(-1), "start": self.start });
        URL_SAFE_NO_PAD.encode(token.to_string())
    }

    fn decode(token: &str) -> Result<Self> {
        let invalid =
            |why: &dyn std::fmt::Display| Failure::bad_request(format!("continue key is not valid: {why}"));
        let json = URL_SAFE_NO_PAD
            .decode(token.trim_end_matches('='))
            .map_err(|error| invalid(&error))?;
        let token: Value = serde_json::from_slice(&json).map_err(|error| invalid(&error))?;
        if token.text("v") != "meta.k8s.io/v1" {
            let version = token.text("v");
            return Err(invalid(&format!(
                "server does not recognize this encoded version {version:?}"
            )));
        }
        let start = token.text("start");
        if start.is_empty() {
            return Err(invalid(&"encoded start key empty (version meta.k8s.io/v1)"));
        }
        match token.int("rv") {
            Some(-1) => Ok(None),
            Some(revision @ 1..) => Ok(Some(revision)),
            _ => Err(invalid(
                &"incorrect encoded start resourceVersion (version meta.k8s.io/v1)",
            )),
        }
        .map(|revision| Position {
            revision,
            start: start.to_owned(),
        })
    }
}

impl Api {
    /// A part of a list, or a list of a past revision, when one is asked for: from memory ("resourceVersion=0") lists
    /// come whole, as upstream's.
    pub(super) async fn part(&self, call: &Call, selection: &Selection) -> Result<Option<Listed>> {
        let query = &call.query;
        let limit = self.limit(call).unwrap_or(0);
        let matched = query.get("resourceVersionMatch");
        let revision = query.get("resourceVersion").map(parse_revision).transpose()?;
        let is_paged = self.features.has(Feature::ApiListChunking);
        let position = match query.get("continue").filter(|_| is_paged) {
            Some(_) if revision.is_some_and(|revision| revision != 0) => {
                let told = "specifying resource version is not allowed when using continue";
                return Err(Failure::bad_request(told));
            }
            Some(token) => Position::decode(token)?,
            None if matched != Some("Exact") && (limit <= 0 || revision == Some(0)) => return Ok(None),
            None if matched == Some("NotOlderThan") => return Ok(None),
            None => Position {
                revision: revision.filter(|revision| *revision != 0),
                start: String::new(),
            },
        };
        self.part_from(call, selection, &position, limit).await.map(Some)
    }

    /// How many objects a client wants at once. `None` where lists have no parts.
    pub(super) fn limit(&self, call: &Call) -> Option<i64> {
        let limit = call.query.int("limit");
        limit.filter(|_| self.features.has(Feature::ApiListChunking))
    }

    /// Reads on until `limit` objects are selected or the list ends; no limit is the whole rest.
    async fn part_from(
        &self,
        call: &Call,
        selection: &Selection,
        position: &Position,
        limit: i64,
    ) -> Result<Listed> {
        let prefix = self.storage.scope_prefix(call.resource, call.namespace());
        let wanted = usize::try_from(limit)
            .ok()
            .filter(|limit| *limit > 0)
            .unwrap_or(usize::MAX);
        let (mut chunk, mut at) = (limit.clamp(0, MAX_CHUNK), position.revision);
        let mut from = format!("{prefix}{}", position.start);
        let mut objects = Vec::new();
        loop {
            let read = self.storage.page(&prefix, &from, chunk, at).await;
            let page = read.map_err(|error| self.too_old(error, at, &from, &prefix, call))?;
            let Page {
                pairs,
                revision,
                after,
            } = page;
            at = Some(revision);
            let mut left = i64::try_from(pairs.len()).unwrap_or(i64::MAX);
            for (key, object) in pairs {
                left -= 1;
                from = format!("{key}\0");
                let object = call.resource.outward(object);
                if selection.matches(call.resource, &object) {
                    objects.push(object);
                }
                if objects.len() >= wanted {
                    break;
                }
            }
            let remaining = left + after;
            if remaining == 0 || objects.len() >= wanted {
                let start = from.strip_prefix(prefix.as_str()).unwrap_or_default().to_owned();
                let next = Position { revision: at, start };
                let next = (remaining > 0).then(|| (next.encode(), remaining));
                return Ok(listed(objects, revision, next, selection));
            }
            chunk = (chunk * 2).min(MAX_CHUNK);
        }
    }

    /// 410 for what the store has forgotten: with a token to go on with when the list has begun.
    fn too_old(
        &self,
        error: StorageError,
        at: Option<i64>,
        from: &str,
        prefix: &str,
        call: &Call,
    ) -> Failure {
        let text = error.to_string();
        let revision = at.unwrap_or_default();
        if text.contains("compacted") {
            if call.query.get("continue").is_none() && from == prefix {
                return Failure::expired(format!(
                    "The resourceVersion for the provided list is too old: {revision}"
                ));
            }
            let start = from.strip_prefix(prefix).unwrap_or_default().to_owned();
            let token = Position {
                revision: None,
                start,
            };
            return Failure::continue_expired(token.encode());
        }
        if text.contains("future revision") {
            return Failure::revision_too_large(revision, self.caches.progress());
        }
        error.into()
    }
}

/// How many remain is told only where every object counts.
fn listed(objects: Vec<Value>, revision: i64, next: Option<(String, i64)>, selection: &Selection) -> Listed {
    let mut listed = Listed::whole(objects, revision);
    if let Some((token, remaining)) = next {
        listed.metadata["continue"] = token.into();
        if selection.is_everything() {
            listed.metadata["remainingItemCount"] = remaining.into();
        }
    }
    listed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_where_the_list_goes_on() {
        for revision in [Some(7), None] {
            let position = Position {
                revision,
                start: "default/a\0".to_owned(),
            };
            assert_eq!(Position::decode(&position.encode()).ok(), Some(position));
        }
    }

    #[test]
    fn a_token_that_is_not_ours_is_refused() {
        let token = |json: &str| URL_SAFE_NO_PAD.encode(json);
        for (token, expected) in [
            (
                "!".to_owned(),
                "continue key is not valid: Invalid symbol 33, offset 0.",
            ),
            (
                token("{}"),
                "continue key is not valid: server does not recognize this encoded version \"\"",
            ),
            (
                token(r#"{"v":"meta.k8s.io/v1","rv":1}"#),
                "continue key is not valid: encoded start key empty (version meta.k8s.io/v1)",
            ),
            (
                token(r#"{"v":"meta.k8s.io/v1","rv":0,"start":"a"}"#),
                "continue key is not valid: incorrect encoded start resourceVersion (version meta.k8s.io/v1)",
            ),
        ] {
            let told = Position::decode(&token).map_err(|failure| failure.message);
            assert_eq!(told, Err(expected.to_owned()));
        }
    }
}
