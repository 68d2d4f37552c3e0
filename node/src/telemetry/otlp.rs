//! The body of a request to `/v1/traces`, in JSON (OTLP 1.9, "JSON Protobuf Encoding": ids in hexadecimal, numbers of 64
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
