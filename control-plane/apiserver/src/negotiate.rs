//! Bodies: which encoding a client sends, and which one it wants back.

use std::io::Write as _;

use axum::body::Body;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RETRY_AFTER, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use serde_json::Value;

use crate::protobuf::{self, ProtobufError};
use crate::status::{Failure, Result};
use crate::table::Include;
use crate::values::{self, Read};

/// More values than any object has that the store takes (Endpoints of a thousand addresses have ten thousand); each may
/// take half a kilobyte of memory.
pub const MAX_VALUES: usize = 1 << 17;

/// Upstream's `defaultGzipThresholdBytes`.
const PACKED_FROM_BYTES: u64 = 128 << 10;

/// What `Accept` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Whole objects.
    Object,
    /// A Table of this version of `meta.k8s.io`.
    Table(&'static str),
    /// `PartialObjectMetadata`.
    Metadata,
}

/// The wanted answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Objects, a Table, or metadata only.
    pub shape: Shape,
    /// YAML instead of JSON.
    pub yaml: bool,
}

impl Wanted {
    /// The first alternative in `Accept` that can be served. Protobuf is never spoken; clients that ask for it name
    /// JSON too.
    pub fn from_headers(headers: &HeaderMap) -> Result<Self> {
        let accept = headers
            .get(ACCEPT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("*/*");
        let accept = if accept.trim().is_empty() { "*/*" } else { accept };
        accept
            .split(',')
            .find_map(alternative)
            .ok_or_else(Failure::not_acceptable)
    }
}

fn alternative(text: &str) -> Option<Wanted> {
    let mut parts = text.split(';').map(str::trim);
    let yaml = match parts.next()? {
        "application/json" | "application/*" | "*/*" => false,
        "application/yaml" | "text/yaml" => true,
        _ => return None,
    };
    let (mut kind, mut version) = ("", "");
    for parameter in parts {
        match parameter.split_once('=') {
            Some(("as", value)) => kind = value,
            Some(("v", value)) => version = value,
            Some(("stream", _)) => {}
            _ => {}
        }
    }
    let shape = match (kind, version) {
        ("", _) => Shape::Object,
        ("Table", "v1") => Shape::Table("v1"),
        ("Table", "v1beta1") => Shape::Table("v1beta1"),
        ("PartialObjectMetadata" | "PartialObjectMetadataList", _) => Shape::Metadata,
        _ => return None,
    };
    Some(Wanted { shape, yaml })
}

/// `includeObject` of a Table request.
pub fn include_object(value: Option<&str>) -> Include {
    match value {
        Some("None") => Include::None,
        Some("Object") => Include::Object,
        _ => Include::Metadata,
    }
}

/// The media type of a body, without parameters; JSON when absent.
pub fn content_type(headers: &HeaderMap) -> &str {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("application/json");
    let bare = value.split(';').next().unwrap_or_default().trim();
    if bare.is_empty() { "application/json" } else { bare }
}

/// A body in JSON, YAML or Kubernetes' protobuf.
///
/// # Errors
/// 400 for what cannot be read, 413 for more than `MAX_VALUES` values, 415 for other encodings.
pub fn decode_body(headers: &HeaderMap, body: &[u8]) -> Result<Value> {
    read_body(headers, body).map(|read| read.value)
}

/// The same, and which fields stand in it more than once.
///
/// # Errors
/// As [`decode_body`].
pub fn read_body(headers: &HeaderMap, body: &[u8]) -> Result<Read<Value>> {
    let unreadable = |error: &dyn std::fmt::Display| {
        Failure::bad_request(format!(
            "the object provided is unrecognized (must be of type): {error}"
        ))
    };
    let refused = |error: values::Error| match error {
        values::Error::TooManyValues => Failure::too_many_values(MAX_VALUES),
        error => unreadable(&error),
    };
    match content_type(headers) {
        "application/json" | "*/*" => values::read_json(body, MAX_VALUES).map_err(refused),
        "application/yaml" | "text/yaml" => values::read_yaml(body, MAX_VALUES).map_err(refused),
        protobuf::MEDIA_TYPE => {
            let (meta, raw) = protobuf::open(body).map_err(|error| unreadable(&error))?;
            let read = protobuf::to_json(&meta, raw, MAX_VALUES).map_err(|error| match error {
                ProtobufError::TooManyValues => Failure::too_many_values(MAX_VALUES),
                ProtobufError::UnknownKind { .. } => Failure::bad_request(error.to_string()),
                error => {
                    let (kind, version) = (&meta.kind, short_version(&meta.api_version));
                    Failure::bad_request(format!(
                        "{kind} in version \"{version}\" cannot be handled as a {kind}: {error}"
                    ))
                }
            });
            read.map(|value| Read {
                value,
                duplicates: Vec::new(),
            })
        }
        other => Err(Failure::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: \
             application/json, application/yaml, application/vnd.kubernetes.protobuf (got {other})"
        ))),
    }
}

/// `apps/v1` -> `v1`.
pub fn short_version(api_version: &str) -> &str {
    api_version.rsplit('/').next().unwrap_or(api_version)
}

/// The response that a failure is.
pub fn refuse(failure: &Failure) -> Response<Body> {
    let mut response = respond(failure.code, &failure.to_json(), false);
    if let Some(seconds) = failure.retry_after() {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// A response with a JSON (or YAML) body.
pub fn respond(code: u16, value: &Value, yaml: bool) -> Response<Body> {
    let (kind, text) = match yaml {
        true => (
            "application/yaml",
            serde_yaml_ng::to_string(value).unwrap_or_default(),
        ),
        false => ("application/json", value.to_string()),
    };
    bytes(code, kind, text)
}

/// A response with any body.
pub fn bytes(code: u16, content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert("cache-control", HeaderValue::from_static("no-cache, private"));
    response
}

/// A response of a document that changes with this program only: with a tag (`hash`), and 304 without a body where the
/// client says that it has it.
pub fn tagged(
    content_type: &'static str,
    hash: &str,
    headers: &HeaderMap,
    body: impl FnOnce() -> Result<Body>,
) -> Result<Response<Body>> {
    let tag = format!("\"{hash}\"");
    let mut response = match names(headers, &IF_NONE_MATCH, &tag) {
        true => bytes(304, content_type, Body::empty()),
        false => bytes(200, content_type, body()?),
    };
    let headers = response.headers_mut();
    headers.insert(ETAG, HeaderValue::from_str(&tag).map_err(Failure::internal)?);
    headers.insert(VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    Ok(response)
}

/// A large answer, compressed: kubectl and client-go take gzip (upstream's `APIResponseCompression`, which is as fast
/// and as small as this).
///
/// # Errors
/// 500 when the body cannot be read.
pub async fn packed(response: Response<Body>) -> Result<Response<Body>> {
    let is_large = response
        .body()
        .size_hint()
        .exact()
        .is_some_and(|bytes| bytes >= PACKED_FROM_BYTES);
    if !is_large || response.headers().contains_key(CONTENT_ENCODING) {
        return Ok(response);
    }
    let (mut parts, body) = response.into_parts();
    let plain = body.collect().await.map_err(Failure::internal)?.to_bytes();
    let pack = move || {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&plain).and_then(|()| gzip.finish())
    };
    let text = tokio::task::spawn_blocking(pack)
        .await
        .map_err(Failure::internal)?;
    parts
        .headers
        .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts
        .headers
        .append(VARY, HeaderValue::from_static("Accept-Encoding"));
    Ok(Response::from_parts(
        parts,
        text.map_err(Failure::internal)?.into(),
    ))
}

/// Whether a header that is a list names something.
pub fn names(headers: &HeaderMap, header: &HeaderName, what: &str) -> bool {
    let values = headers.get_all(header).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains(what))
}

/// RFC 9110's retired warning header, which kubectl prints.
pub fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append("warning", value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(accept: &str, expected: Option<(Shape, bool)>) {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().expect("a header"));
        let found = Wanted::from_headers(&headers)
            .ok()
            .map(|wanted| (wanted.shape, wanted.yaml));
        assert_eq!(found, expected, "{accept}");
    }

    #[test]
    fn the_first_alternative_that_is_served_wins() {
        check("*/*", Some((Shape::Object, false)));
        check("application/json", Some((Shape::Object, false)));
        check("application/yaml", Some((Shape::Object, true)));
        check(
            "application/vnd.kubernetes.protobuf,application/json",
            Some((Shape::Object, false)),
        );
        check("application/vnd.kubernetes.protobuf", None);
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some((Shape::Table("v1"), false)),
        );
        check(
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            Some((Shape::Metadata, false)),
        );
    }
}
