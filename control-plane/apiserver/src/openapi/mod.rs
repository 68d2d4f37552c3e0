//! OpenAPI: what kubectl explains objects from (`explain`), checks manifests by before it sends them (up to 1.27), and
//! computes patches by (`apply`). Version 3 is one document for each group and version, version 2 one for all.
//!
//! Documents are made when they are first asked for, in one go from the types that the server is built with, and kept
//! compressed: some hundred kilobytes in all, where the values they are made of take a hundred times that.

mod gnostic;
mod list_types;
mod merge;
mod paths;
mod schemas;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::sync::LazyLock;

use axum::body::Body;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::header::{ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, EXPIRES, LOCATION};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::negotiate;
use crate::object::api_version;
use crate::request::Query;
use crate::resources::{Registry, Resource};
use crate::status::{Failure, Result};

/// Content type of version 2's protobuf. With `@` in place of the last dot of `spec.v2`, as in clients' `Accept`, Go's
/// MIME parser refuses it.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const JSON: &str = "application/json";
/// A date that no cache will see.
const NEVER: &str = "Thu, 31 Dec 2099 23:59:59 GMT";

/// A version of OpenAPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    /// Where definitions are found.
    fn prefix(self) -> &'static str {
        match self {
            Dialect::V2 => "#/definitions/",
            Dialect::V3 => "#/components/schemas/",
        }
    }
}

/// A document as it is kept.
struct Document {
    gzip: Bytes,
    /// Hash of its text, as hexadecimal digits.
    hash: String,
}

static V2_AS_JSON: LazyLock<Document> = LazyLock::new(|| Document::new(v2().to_string().as_bytes()));
static V2_AS_PROTOBUF: LazyLock<Document> = LazyLock::new(|| Document::new(&gnostic::document(&v2())));
/// By path below `/openapi/v3/`.
static V3: LazyLock<BTreeMap<String, Document>> = LazyLock::new(|| {
    let registry = Registry::global();
    let all = registry.groups().into_iter();
    let all = all.flat_map(|(group, versions)| versions.into_iter().map(move |version| (group, version)));
    all.map(|(group, version)| {
        let text = v3(registry, group, version).to_string();
        (group_path(group, version), Document::new(text.as_bytes()))
    })
    .collect()
});

/// Answers `/openapi/…`: `segments` are those after it.
///
/// # Errors
/// 404 for what is not served.
pub async fn answer(segments: &[String], query: &Query, headers: &HeaderMap) -> Result<Response<Body>> {
    let path = segments.join("/");
    let hash = query.get("hash").map(str::to_owned);
    let headers = headers.clone();
    // The first request makes the documents, which takes a moment.
    let answered = tokio::task::spawn_blocking(move || answer_blocking(&path, hash.as_deref(), &headers));
    answered.await.map_err(Failure::internal)?
}

fn answer_blocking(path: &str, hash: Option<&str>, headers: &HeaderMap) -> Result<Response<Body>> {
    match path {
        "v2" if negotiate::names(headers, &ACCEPT, "proto-openapi") => {
            V2_AS_PROTOBUF.respond(V2_PROTOBUF, headers)
        }
        "v2" => V2_AS_JSON.respond(JSON, headers),
        "v3" => Document::new(v3_index().to_string().as_bytes()).respond(JSON, headers),
        other => {
            let found = other.strip_prefix("v3/").and_then(|path| V3.get_key_value(path));
            let (path, document) = found.ok_or_else(Failure::no_such_path)?;
            document.respond_hashed(path, hash, headers)
        }
    }
}

impl Document {
    fn new(text: &[u8]) -> Self {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        let written = gzip.write_all(text).and_then(|()| gzip.finish());
        Document {
            gzip: written
                .expect("invariant: a vector takes all that is written")
                .into(),
            hash: hex::encode_upper(Sha256::digest(text)),
        }
    }

    fn respond(&self, content_type: &'static str, headers: &HeaderMap) -> Result<Response<Body>> {
        let packed = negotiate::names(headers, &ACCEPT_ENCODING, "gzip");
        let mut response = negotiate::tagged(content_type, &self.hash, headers, || {
            if packed {
                return Ok(self.gzip.clone().into());
            }
            let mut text = Vec::new();
            GzDecoder::new(&self.gzip[..])
                .read_to_end(&mut text)
                .map_err(Failure::internal)?;
            Ok(text.into())
        })?;
        if packed && response.status() == StatusCode::OK {
            let gzip = HeaderValue::from_static("gzip");
            response.headers_mut().insert(CONTENT_ENCODING, gzip);
        }
        Ok(response)
    }

    /// By the address in the index it never changes; with another hash it has moved there (kube-openapi `handler3`).
    fn respond_hashed(&self, path: &str, hash: Option<&str>, headers: &HeaderMap) -> Result<Response<Body>> {
        let mut response = match hash {
            Some(hash) if hash != self.hash => {
                let mut moved = negotiate::bytes(StatusCode::MOVED_PERMANENTLY.as_u16(), JSON, Body::empty());
                let place = HeaderValue::from_str(&self.address(path)).map_err(Failure::internal)?;
                moved.headers_mut().insert(LOCATION, place);
                return Ok(moved);
            }
            _ => self.respond(JSON, headers)?,
        };
        if hash.is_some() {
            let headers = response.headers_mut();
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
            headers.insert(EXPIRES, HeaderValue::from_static(NEVER));
        }
        Ok(response)
    }

    fn address(&self, path: &str) -> String {
        format!("/openapi/v3/{path}?hash={}", self.hash)
    }
}

fn v3_index() -> Value {
    let entry = |(path, document): (&String, &Document)| {
        (
            path.clone(),
            json!({ "serverRelativeURL": document.address(path) }),
        )
    };
    json!({ "paths": V3.iter().map(entry).collect::<Map<_, _>>() })
}

fn v3(registry: &Registry, group: &str, version: &str) -> Value {
    let rows = || {
        registry
            .rows()
            .iter()
            .filter(move |row| (row.group, row.version) == (group, version))
    };
    json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": all_paths(rows(), Dialect::V3),
        "components": { "schemas": schemas::of(rows(), Dialect::V3) },
    })
}

fn v2() -> Value {
    let rows = Registry::global().rows();
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": all_paths(rows.iter(), Dialect::V2),
        "definitions": schemas::of(rows.iter(), Dialect::V2),
    })
}

fn info() -> Value {
    json!({ "title": "Kubernetes", "version": crate::GIT_VERSION })
}

fn all_paths<'a>(rows: impl Iterator<Item = &'a Resource>, dialect: Dialect) -> Map<String, Value> {
    rows.flat_map(|row| paths::of(row, dialect)).collect()
}

fn group_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{}", api_version(group, version))
    }
}

#[cfg(test)]
mod tests;
