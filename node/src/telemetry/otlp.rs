//! The bodies of a request to `/v1/traces` and of its answer, in JSON (OTLP 1.9, "JSON Protobuf Encoding": ids in hexadecimal, numbers of 64
//! bits as text).

use serde_json::{Value as Json, json};

use super::spans::{Span, Value};

/// `SPAN_KIND_INTERNAL`.
const INTERNAL: u8 = 1;
/// `STATUS_CODE_ERROR`.
const ERROR: u8 = 2;

/// The body that tells of these spans of a node. Names of attributes are those of OpenTelemetry's semantic conventions.
#[must_use]
pub fn body(node: &str, spans: &[Span]) -> Json {
    let version = env!("CARGO_PKG_VERSION");
    let resource = [
        ("service.name", "causeway"),
        ("service.version", version),
        ("k8s.node.name", node),
    ];
    let resource = resource.map(|(name, value)| attribute(name, &Value::Text(value.to_owned())));
    json!({"resourceSpans": [{
        "resource": {"attributes": resource},
        "scopeSpans": [{
            "scope": {"name": "causeway", "version": version},
            "spans": spans.iter().map(span).collect::<Vec<_>>(),
        }],
    }]})
}

/// What a collector that took a request did not take of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Partial {
    /// Spans.
    pub rejected: u64,
    /// Why.
    pub message: String,
}

/// What the answer to a request that was taken says. One that cannot be read says nothing.
#[must_use]
pub fn partial_success(answer: &[u8]) -> Partial {
    let answer: Json = serde_json::from_slice(answer).unwrap_or_default();
    let partial = &answer["partialSuccess"];
    // Readers of this encoding take numbers of 64 bits as numbers, too.
    let rejected = &partial["rejectedSpans"];
    let rejected = rejected.as_u64().or_else(|| rejected.as_str()?.parse().ok());
    Partial {
        rejected: rejected.unwrap_or(0),
        message: partial["errorMessage"].as_str().unwrap_or_default().to_owned(),
    }
}

fn span(span: &Span) -> Json {
    let Span {
        trace,
        id,
        parent,
        name,
        start,
        end,
        fields,
        error,
    } = span;
    let attributes: Vec<_> = fields
        .iter()
        .map(|(name, value)| attribute(name, value))
        .collect();
    let status = match error {
        Some(error) => json!({"code": ERROR, "message": error}),
        None => json!({}),
    };
    json!({
        "traceId": format!("{trace:032x}"),
        "spanId": format!("{id:016x}"),
        "parentSpanId": parent.map(|id| format!("{id:016x}")).unwrap_or_default(),
        "name": name,
        "kind": INTERNAL,
        "startTimeUnixNano": start.to_string(),
        "endTimeUnixNano": end.to_string(),
        "attributes": attributes,
        "status": status,
    })
}

fn attribute(name: &str, value: &Value) -> Json {
    let value = match value {
        Value::Number(number) => json!({"intValue": number.to_string()}),
        Value::Switch(switch) => json!({"boolValue": switch}),
        Value::Text(text) => json!({"stringValue": text}),
    };
    json!({"key": name, "value": value})
}
