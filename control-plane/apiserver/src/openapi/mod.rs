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
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::header::{ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, EXPIRES, LOCATION};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::features::{Feature, Features, KubernetesVersion};
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

/// The documents of one server.
pub struct Documents {
    registry: Registry,
    version: KubernetesVersion,
    has_v3: bool,
    v2_as_json: OnceLock<Document>,
    v2_as_protobuf: OnceLock<Document>,
    /// By path below `/openapi/v3/`.
    v3: OnceLock<BTreeMap<String, Document>>,
}

impl Documents {
    /// Of what is served.
    pub fn new(features: &Features) -> Self {
        Documents {
            registry: Registry::served(features),
            version: features.version,
            has_v3: features.has(Feature::OpenApiV3),
            v2_as_json: OnceLock::new(),
            v2_as_protobuf: OnceLock::new(),
            v3: OnceLock::new(),
        }
    }

    /// The rows that are served.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Answers `/openapi/…`: `segments` are those after it.
    ///
    /// # Errors
    /// 404 for what is not served.
    pub async fn answer(
        self: Arc<Self>,
        segments: &[String],
        query: &Query,
        headers: &HeaderMap,
    ) -> Result<Response<Body>> {
        let path = segments.join("/");
        let hash = query.get("hash").map(str::to_owned);
        let headers = headers.clone();
        // The first request makes the documents, which takes a moment.
        let answered =
            tokio::task::spawn_blocking(move || self.answer_blocking(&path, hash.as_deref(), &headers));
        answered.await.map_err(Failure::internal)?
    }

    fn answer_blocking(&self, path: &str, hash: Option<&str>, headers: &HeaderMap) -> Result<Response<Body>> {
        match path {
            "v2" if negotiate::names(headers, &ACCEPT, "proto-openapi") => {
                let document = || Document::new(&gnostic::document(&self.v2()));
                self.v2_as_protobuf
                    .get_or_init(document)
                    .respond(V2_PROTOBUF, headers)
            }
            "v2" => {
                let document = || Document::new(self.v2().to_string().as_bytes());
                self.v2_as_json.get_or_init(document).respond(JSON, headers)
            }
            "v3" if self.has_v3 => {
                Document::new(self.v3_index().to_string().as_bytes()).respond(JSON, headers)
            }
            other => {
                let found = other.strip_prefix("v3/").filter(|_| self.has_v3);
                let found = found.and_then(|path| self.v3_documents().get_key_value(path));
                let (path, document) = found.ok_or_else(Failure::no_such_path)?;
                document.respond_hashed(path, hash, headers)
            }
        }
    }

    fn v3_documents(&self) -> &BTreeMap<String, Document> {
        self.v3.get_or_init(|| {
            let all = self.registry.groups().into_iter();
            let all =
                all.flat_map(|(group, versions)| versions.into_iter().map(move |version| (group, version)));
            all.map(|(group, version)| {
                let text = self.v3(group, version).to_string();
                (group_path(group, version), Document::new(text.as_bytes()))
            })
            .collect()
        })
    }

    fn v3_index(&self) -> Value {
        let entry = |(path, document): (&String, &Document)| {
            (
                path.clone(),
                json!({ "serverRelativeURL": document.address(path) }),
            )
        };
        json!({ "paths": self.v3_documents().iter().map(entry).collect::<Map<_, _>>() })
    }

    fn v3(&self, group: &str, version: &str) -> Value {
        let rows = || {
            let rows = self.registry.rows().iter();
            rows.filter(move |row| (row.group, row.version) == (group, version))
        };
        json!({
            "openapi": "3.0.0",
            "info": self.info(),
            "paths": all_paths(rows(), Dialect::V3),
            "components": { "schemas": schemas::of(rows(), Dialect::V3) },
        })
    }

    fn v2(&self) -> Value {
        let rows = self.registry.rows();
        json!({
            "swagger": "2.0",
            "info": self.info(),
            "paths": all_paths(rows.iter(), Dialect::V2),
            "definitions": schemas::of(rows.iter(), Dialect::V2),
        })
    }

    fn info(&self) -> Value {
        json!({ "title": "Kubernetes", "version": crate::git_version(self.version) })
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
