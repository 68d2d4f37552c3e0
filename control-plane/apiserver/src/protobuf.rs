//! Bodies in Kubernetes' protobuf (`application/vnd.kubernetes.protobuf`), which kubectl 1.32 and later send: made
//! into the JSON that the same object would have been, so that everything behind knows one form only.
//!
//! A body is the magic `k8s\0` and a `runtime.Unknown`, whose `raw` is the object (apimachinery
//! `pkg/runtime/serializer/protobuf`). What the fields are called is in [`messages`]; a zero in a field that is no
//! pointer in Go says nothing there and is left out here.

mod leaf;
mod messages;
#[cfg(test)]
mod tests;
mod wire;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use crate::object::json_values_at_least;
use messages::{Field, Kind, Messages, Shape};
use wire::{Payload, Reader};

/// The media type of such bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";

/// What is wrong with a body, in the words of Go's decoders (gogo/protobuf; `protobuf.go` of the serializer).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// No `k8s\0` at the start.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoPrefix,
    /// The envelope does not say what is in it.
    #[error("Object 'Kind' is missing in the envelope")]
    NoKind,
    /// The kind is not one of the API.
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\" in scheme")]
    UnknownKind {
        /// As the envelope says it.
        api_version: String,
        /// As the envelope says it.
        kind: String,
    },
    /// The bytes end inside a field.
    #[error("unexpected EOF")]
    Truncated,
    /// A number has more than ten bytes.
    #[error("proto: integer overflow")]
    Overflow,
    /// A length with its highest bit set.
    #[error("proto: negative length found during unmarshaling")]
    NegativeLength,
    /// A field number below one.
    #[error("proto: illegal tag {0}")]
    IllegalTag(i32),
    /// The wire types 6 and 7 do not exist.
    #[error("proto: illegal wireType {0}")]
    IllegalWireType(u8),
    /// A group ends that did not begin.
    #[error("proto: unexpected end of group")]
    EndOfGroup,
    /// A field is not encoded as its type wants.
    #[error("proto: wrong wireType = {found} for field {field}")]
    WrongWireType {
        /// The JSON name of the field.
        field: &'static str,
        /// The wire type.
        found: u8,
    },
    /// More than the reader wants to hold.
    #[error("proto: too many values")]
    TooManyValues,
    /// A value that JSON cannot hold.
    #[error("proto: field {field}: {why}")]
    Value {
        /// The JSON name of the field.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// Who an envelope says is in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TypeMeta {
    /// `v1`, `apps/v1`.
    pub api_version: String,
    /// `Pod`.
    pub kind: String,
}

/// The envelope of a body, and the object's bytes.
///
/// # Errors
/// What is wrong with the envelope.
pub fn open(body: &[u8]) -> Result<(TypeMeta, &[u8]), ProtobufError> {
    let envelope = body.strip_prefix(MAGIC).ok_or(ProtobufError::NoPrefix)?;
    let mut meta = TypeMeta::default();
    let mut raw: &[u8] = &[];
    let mut fields = Reader::new(envelope);
    while let Some((number, payload)) = fields.field()? {
        match number {
            1 => {
                let mut inner = Reader::new(payload.bytes("typeMeta")?);
                while let Some((number, payload)) = inner.field()? {
                    match number {
                        1 => meta.api_version = text(payload.bytes("apiVersion")?),
                        2 => meta.kind = text(payload.bytes("kind")?),
                        _ => {}
                    }
                }
            }
            2 => raw = payload.bytes("raw")?,
            _ => {}
        }
    }
    if meta.kind.is_empty() {
        return Err(ProtobufError::NoKind);
    }
    Ok((meta, raw))
}

/// The object in an opened envelope as JSON, with `apiVersion` and `kind`. It is as deep as the type of its message;
/// of more than `max_values` values it is refused, since a value takes two bytes on the wire and hundreds in memory.
///
/// # Errors
/// What is wrong with the bytes, or that no such kind is known.
pub fn to_json(meta: &TypeMeta, raw: &[u8], max_values: usize) -> Result<Value, ProtobufError> {
    let messages = Messages::global();
    let kind = messages.of_kind(&meta.api_version, &meta.kind);
    let message = kind.ok_or_else(|| ProtobufError::UnknownKind {
        api_version: meta.api_version.clone(),
        kind: meta.kind.clone(),
    })?;
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), meta.api_version.as_str().into());
    object.insert("kind".to_owned(), meta.kind.as_str().into());
    let mut transcoder = Transcoder {
        messages,
        values_left: max_values,
    };
    transcoder.read_message(message, raw, &mut object)?;
    Ok(Value::Object(object))
}

struct Transcoder {
    messages: &'static Messages,
    values_left: usize,
}

impl Transcoder {
    /// Reads the fields of a message into `object`; a field that comes again is merged or replaced, as in protobuf.
    fn read_message(
        &mut self,
        message: usize,
        bytes: &[u8],
        object: &mut Map<String, Value>,
    ) -> Result<(), ProtobufError> {
        let mut fields = Reader::new(bytes);
        while let Some((number, payload)) = fields.field()? {
            // Fields of another version are passed over, as Go's decoder does.
            if let Some(field) = self.messages.field(message, number) {
                self.read_field(field, &payload, object)?;
            }
        }
        Ok(())
    }

    fn read_field(
        &mut self,
        field: &Field,
        payload: &Payload<'_>,
        object: &mut Map<String, Value>,
    ) -> Result<(), ProtobufError> {
        match field.shape {
            Shape::Inline(inner) => self.read_message(inner, payload.bytes(field.json)?, object),
            Shape::Repeated => {
                let list = object.entry(field.json).or_insert_with(|| json!([]));
                let list = list.as_array_mut().expect("invariant: a field has one shape");
                self.read_items(field, payload, list)
            }
            Shape::Map => {
                let (key, value) = self.read_entry(field, payload.bytes(field.json)?)?;
                let map = object.entry(field.json).or_insert_with(|| json!({}));
                map[key] = value;
                Ok(())
            }
            Shape::One { pointer } => {
                let value = self.read_value(field, payload, object.remove(field.json))?;
                if !says_nothing(pointer, &value) {
                    object.insert(field.json.to_owned(), value);
                }
                Ok(())
            }
        }
    }

    /// Numbers may come packed.
    fn read_items(
        &mut self,
        field: &Field,
        payload: &Payload<'_>,
        list: &mut Vec<Value>,
    ) -> Result<(), ProtobufError> {
        let (Kind::Int, Payload::Bytes(packed)) = (field.kind, payload) else {
            list.push(self.read_value(field, payload, None)?);
            return Ok(());
        };
        let mut numbers = Reader::new(packed);
        while let Some(number) = numbers.next_varint()? {
            list.push(self.read_value(field, &Payload::Varint(number), None)?);
        }
        Ok(())
    }

    /// An entry of a map: key = 1, value = 2; what is missing is empty.
    fn read_entry(&mut self, field: &Field, bytes: &[u8]) -> Result<(String, Value), ProtobufError> {
        let mut key = String::new();
        let mut value = None;
        let mut fields = Reader::new(bytes);
        while let Some((number, payload)) = fields.field()? {
            match number {
                1 => key = text(payload.bytes(field.json)?),
                2 => value = Some(self.read_value(field, &payload, value)?),
                _ => {}
            }
        }
        let value = match value {
            Some(value) => value,
            None => self.read_value(field, &Payload::Bytes(&[]), None)?,
        };
        Ok((key, value))
    }

    fn spend(&mut self, values: usize) -> Result<(), ProtobufError> {
        let left = self.values_left.checked_sub(values);
        self.values_left = left.ok_or(ProtobufError::TooManyValues)?;
        Ok(())
    }

    fn read_value(
        &mut self,
        field: &Field,
        payload: &Payload<'_>,
        before: Option<Value>,
    ) -> Result<Value, ProtobufError> {
        self.spend(1)?;
        let name = field.json;
        Ok(match field.kind {
            Kind::Int => payload.varint(name)?.cast_signed().into(),
            Kind::Bool => (payload.varint(name)? != 0).into(),
            Kind::String => text(payload.bytes(name)?).into(),
            Kind::Bytes => BASE64.encode(payload.bytes(name)?).into(),
            Kind::Texts => {
                let texts = leaf::texts(payload.bytes(name)?)?;
                self.spend(texts.len())?;
                texts.into()
            }
            Kind::Time => leaf::time(payload.bytes(name)?, name)?,
            Kind::MicroTime => leaf::micro_time(payload.bytes(name)?, name)?,
            Kind::Quantity => leaf::quantity(payload.bytes(name)?)?,
            Kind::IntOrString => leaf::int_or_string(payload.bytes(name)?)?,
            Kind::Raw => {
                let bytes = leaf::raw(payload.bytes(name)?)?;
                self.spend(json_values_at_least(bytes))?;
                leaf::json(bytes, name)?
            }
            Kind::Message(inner) => {
                let mut object = match before {
                    Some(Value::Object(before)) => before,
                    _ => Map::new(),
                };
                self.read_message(inner, payload.bytes(name)?, &mut object)?;
                Value::Object(object)
            }
        })
    }
}

/// Go writes every field that is no pointer, so its zero is no more than its absence. A time that is zero is null even
/// behind a pointer. An empty message is left: Go's JSON has it too.
fn says_nothing(pointer: bool, value: &Value) -> bool {
    match value {
        Value::Null => true,
        _ if pointer => false,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_i64() == Some(0),
        Value::String(value) => value.is_empty(),
        Value::Object(_) | Value::Array(_) => false,
    }
}

/// Go's strings hold any bytes; its JSON encoder replaces what is no UTF-8 in the same way.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
