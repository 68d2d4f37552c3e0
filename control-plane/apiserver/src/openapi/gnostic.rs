//! A version 2 document as gnostic's protobuf (`openapi.v2.Document`): kubectl up to 1.27 reads no other form. The
//! numbers are those of gnostic's `OpenAPIv2.proto`; what upstream's documents do not use is left out.

use std::sync::LazyLock;

use prost::encoding::{WireType, bool, encode_key, encode_varint};
use serde_json::{Map, Value};

type Fields = Map<String, Value>;

/// Messages and strings, one after the other, each with its field's number and length.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn bytes(&mut self, number: u32, bytes: &[u8]) {
        encode_key(number, WireType::LengthDelimited, &mut self.0);
        encode_varint(bytes.len() as u64, &mut self.0);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, number: u32, message: Message) {
        self.bytes(number, &message.0);
    }

    /// The string at `field`, if there is one.
    fn text(&mut self, number: u32, fields: &Fields, field: &str) {
        if let Some(text) = fields.get(field).and_then(Value::as_str) {
            self.bytes(number, text.as_bytes());
        }
    }

    /// The strings at `field`.
    fn texts(&mut self, number: u32, fields: &Fields, field: &str) {
        for text in list(fields, field).iter().filter_map(Value::as_str) {
            self.bytes(number, text.as_bytes());
        }
    }

    fn flag(&mut self, number: u32, fields: &Fields, field: &str) {
        if fields.get(field).and_then(Value::as_bool) == Some(true) {
            bool::encode(number, &true, &mut self.0);
        }
    }

    /// `NamedAny`s: JSON is YAML.
    fn extensions(&mut self, number: u32, fields: &Fields) {
        for (name, value) in fields.iter().filter(|(name, _)| name.starts_with("x-")) {
            let mut any = Message::default();
            any.bytes(2, value.to_string().as_bytes());
            self.message(number, named(name, any));
        }
    }
}

/// The whole document.
pub(super) fn document(document: &Value) -> Vec<u8> {
    let mut message = Message::default();
    let document = fields(document);
    message.text(1, document, "swagger");
    let info = map(document, "info");
    let mut about = Message::default();
    about.text(1, info, "title");
    about.text(2, info, "version");
    message.message(2, about);
    let mut paths = Message::default();
    for (path, item) in map(document, "paths") {
        paths.message(2, named(path, path_item(fields(item))));
    }
    message.message(8, paths);
    message.message(9, schemas(map(document, "definitions")));
    message.0
}

fn named(name: &str, value: Message) -> Message {
    let mut message = Message::default();
    message.bytes(1, name.as_bytes());
    message.message(2, value);
    message
}

/// `Definitions` and `Properties` are alike.
fn schemas(named_schemas: &Fields) -> Message {
    let mut message = Message::default();
    for (name, value) in named_schemas {
        message.message(1, named(name, schema(fields(value))));
    }
    message
}

fn schema(from: &Fields) -> Message {
    let mut message = Message::default();
    message.text(1, from, "$ref");
    message.text(2, from, "format");
    message.text(4, from, "description");
    message.texts(19, from, "required");
    if let Some(Value::Object(values)) = from.get("additionalProperties") {
        let mut item = Message::default();
        item.message(1, schema(values));
        message.message(21, item);
    }
    if let Some(kind) = from.get("type").and_then(Value::as_str) {
        let mut item = Message::default();
        item.bytes(1, kind.as_bytes());
        message.message(22, item);
    }
    if let Some(Value::Object(items)) = from.get("items") {
        let mut item = Message::default();
        item.message(1, schema(items));
        message.message(23, item);
    }
    if let Some(Value::Object(properties)) = from.get("properties") {
        message.message(25, schemas(properties));
    }
    message.extensions(31, from);
    message
}

fn path_item(from: &Fields) -> Message {
    let mut message = Message::default();
    for (number, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(Value::Object(found)) = from.get(method) {
            message.message(number, operation(found));
        }
    }
    parameters(&mut message, 9, from);
    message
}

fn operation(from: &Fields) -> Message {
    let mut message = Message::default();
    message.texts(1, from, "tags");
    message.text(5, from, "operationId");
    message.texts(6, from, "produces");
    message.texts(7, from, "consumes");
    parameters(&mut message, 8, from);
    let mut responses = Message::default();
    for (code, answer) in map(from, "responses") {
        let answer = fields(answer);
        let mut response = Message::default();
        response.text(1, answer, "description");
        if let Some(Value::Object(found)) = answer.get("schema") {
            let mut item = Message::default();
            item.message(1, schema(found));
            response.message(2, item);
        }
        let mut value = Message::default();
        value.message(1, response);
        responses.message(1, named(code, value));
    }
    message.message(9, responses);
    message.extensions(13, from);
    message
}

/// `ParametersItem { parameter }`, one for each.
fn parameters(message: &mut Message, number: u32, from: &Fields) {
    for found in list(from, "parameters") {
        let found = fields(found);
        let mut parameter = Message::default();
        match found.get("in").and_then(Value::as_str) {
            Some("body") => {
                let mut body = Message::default();
                body.text(2, found, "name");
                body.text(3, found, "in");
                body.flag(4, found, "required");
                body.message(5, schema(map(found, "schema")));
                parameter.message(1, body);
            }
            Some(place) => {
                // Query parameters may be empty; beyond that both messages count alike.
                let (in_place, kind) = if place == "path" { (4, 5) } else { (3, 6) };
                let mut value = Message::default();
                value.flag(1, found, "required");
                value.text(2, found, "in");
                value.text(3, found, "description");
                value.text(4, found, "name");
                value.text(kind, found, "type");
                let mut other = Message::default();
                other.message(in_place, value);
                parameter.message(2, other);
            }
            None => continue,
        }
        let mut item = Message::default();
        item.message(1, parameter);
        message.message(number, item);
    }
}

fn map<'a>(of: &'a Fields, field: &str) -> &'a Fields {
    of.get(field).map_or(&EMPTY, fields)
}

fn list<'a>(of: &'a Fields, field: &str) -> &'a [Value] {
    of.get(field)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

fn fields(value: &Value) -> &Fields {
    value.as_object().unwrap_or(&EMPTY)
}

static EMPTY: LazyLock<Fields> = LazyLock::new(Fields::new);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_is_encoded_field_by_field() {
        let encoded = document(&json!({
            "swagger": "2.0", "info": { "title": "t", "version": "v" }, "paths": {},
            "definitions": { "a": { "type": "object", "x-b": ["c"] } },
        }));
        let expected = [
            &b"\x0a\x032.0"[..],
            b"\x12\x06\x0a\x01t\x12\x01v",
            b"\x42\x00",
            b"\x4a\x23\x0a\x21\x0a\x01a\x12\x1c",
            b"\xb2\x01\x08\x0a\x06object",
            b"\xfa\x01\x0e\x0a\x03x-b\x12\x07\x12\x05[\"c\"]",
        ];
        assert_eq!(encoded, expected.concat());
    }

    #[test]
    fn long_texts_have_long_lengths() {
        let mut message = Message::default();
        message.bytes(1, &[7; 300]);
        assert_eq!(message.0[..3], [0x0a, 0xac, 0x02]);
    }
}
