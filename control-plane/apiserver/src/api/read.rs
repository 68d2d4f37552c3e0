//! get and list.

use axum::body::Body;
use http::Response;
use serde_json::{Value, json};

use super::page::Listed;
use super::{Api, Call, now};
use crate::negotiate::{self, Shape};
use crate::object::{self, Fields};
use crate::selectors::Selection;
use crate::status::{Failure, Result};
use crate::{authz, table};

impl Api {
    pub(super) async fn get(&self, call: &Call) -> Result<Response<Body>> {
        if call.resource.kind == "Secret" && self.secret_is_foreign(call) {
            let why = format!("no pod on the node of {} refers to it", call.user.name);
            return Err(Failure::forbidden_object(call.resource, call.name(), why));
        }
        let object = self.stored(call).await?;
        Ok(self.respond_object(call, 200, object))
    }

    /// A kubelet reads only what its pods need. It knows a pod from the same cache, so that none is missing here.
    fn secret_is_foreign(&self, call: &Call) -> bool {
        if !authz::is_held_to_its_node(&call.user) {
            return false;
        }
        let pods = self.caches.of(&self.storage, self.registry.kind("", "Pod"));
        !pods.items().iter().map(|item| &item.object).any(|pod| {
            call.namespace() == Some(object::namespace(pod))
                && !authz::pod_is_foreign_to(&call.user, pod)
                && authz::refers_to_secret(pod.at("spec"), call.name())
        })
    }

    /// The object that the path names, newest state.
    pub(super) async fn stored(&self, call: &Call) -> Result<Value> {
        let key = self.storage.key(call.resource, call.namespace(), call.name());
        self.storage
            .get(&key)
            .await?
            .ok_or_else(|| Failure::not_found(call.resource, call.name()))
    }

    /// One object in the shape that the client wants.
    pub(super) fn respond_object(&self, call: &Call, code: u16, object: Value) -> Response<Body> {
        let object = call.resource.outward(object);
        let shaped = match call.wanted.shape {
            Shape::Object => object,
            Shape::Metadata => table::partial_metadata(&object, "v1"),
            Shape::Table(version) => {
                let metadata = json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
                let include = negotiate::include_object(call.query.get("includeObject"));
                table::table(call.resource, [&object], metadata, (version, include), now())
            }
        };
        negotiate::respond(code, &shaped, call.wanted.yaml)
    }

    pub(super) async fn list(&self, call: &Call) -> Result<Response<Body>> {
        if call.path.name.is_some() {
            return Err(Failure::method_not_allowed());
        }
        let prefix = self.storage.scope_prefix(call.resource, call.namespace());
        let all = self.caches.of(&self.storage, call.resource).count(&prefix);
        let most = self.limit(call).and_then(|limit| usize::try_from(limit).ok());
        let wanted = most
            .filter(|limit| *limit > 0)
            .map_or(all, |limit| limit.min(all));
        let _room = self.bounds.objects(wanted).await?;
        let listed = self.selected(call).await?;
        Ok(self.respond_list(call, listed))
    }

    /// A list in the shape that the client wants.
    pub(super) fn respond_list(&self, call: &Call, listed: Listed) -> Response<Body> {
        let Listed { objects, metadata } = listed;
        let resource = call.resource;
        let list = match call.wanted.shape {
            Shape::Object => json!({
                "kind": format!("{}List", resource.kind), "apiVersion": resource.api_version(),
                "metadata": metadata, "items": objects,
            }),
            Shape::Metadata => {
                let items: Vec<Value> = objects
                    .iter()
                    .map(|one| table::partial_metadata(one, "v1"))
                    .collect();
                json!({
                    "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata, "items": items,
                })
            }
            Shape::Table(version) => {
                let include = negotiate::include_object(call.query.get("includeObject"));
                table::table(resource, &objects, metadata, (version, include), now())
            }
        };
        negotiate::respond(200, &list, call.wanted.yaml)
    }

    /// The selected objects: all of them, or the part that `limit` and `continue` ask for.
    pub(super) async fn selected(&self, call: &Call) -> Result<Listed> {
        let selection = self.selection(call)?;
        if let Some(part) = self.part(call, &selection).await? {
            return Ok(part);
        }
        let (objects, revision) = self.all(call).await?;
        let selected = objects
            .into_iter()
            .map(|object| call.resource.outward(object))
            .filter(|object| selection.matches(call.resource, object))
            .collect();
        Ok(Listed::whole(selected, revision))
    }

    pub(super) fn selection(&self, call: &Call) -> Result<Selection> {
        let (labels, fields) = (call.query.get("labelSelector"), call.query.get("fieldSelector"));
        Selection::parse(call.resource, call.namespace(), labels, fields)
    }

    /// All objects in scope, not older than `resourceVersion` asks for: "0" is whatever memory has, absent is the newest
    /// state by etcd's word.
    async fn all(&self, call: &Call) -> Result<(Vec<Value>, i64)> {
        let prefix = self.storage.scope_prefix(call.resource, call.namespace());
        let wanted = match call.query.get("resourceVersion") {
            None => return Ok(self.storage.list(&prefix).await?),
            Some(text) => parse_revision(text)?,
        };
        let progress = self.caches.progress();
        if wanted <= progress {
            let items = self.caches.of(&self.storage, call.resource).items();
            let objects = items
                .iter()
                .filter(|item| {
                    call.namespace()
                        .is_none_or(|wanted| object::namespace(&item.object) == wanted)
                })
                .map(|item| item.object.clone())
                .collect();
            return Ok((objects, progress));
        }
        let (objects, revision) = self.storage.list(&prefix).await?;
        if revision < wanted {
            return Err(Failure::revision_too_large(wanted, revision));
        }
        Ok((objects, revision))
    }
}

/// A `resourceVersion` parameter.
pub(super) fn parse_revision(text: &str) -> Result<i64> {
    let parsed: Option<i64> = text.parse().ok().filter(|revision| *revision >= 0);
    parsed.ok_or_else(|| {
        Failure::bad_request(format!(
            "Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}
