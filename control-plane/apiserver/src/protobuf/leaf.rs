//! Messages that are one value in JSON (`generated.proto` of apimachinery's `meta/v1`, `resource`, `intstr`, `runtime`).

use jiff::Timestamp;
use serde_json::Value;

use super::wire::Reader;
use super::{ProtobufError, text};
use crate::object;

/// `items` = 1.
pub(super) fn texts(bytes: &[u8]) -> Result<Vec<String>, ProtobufError> {
    let mut items = Vec::new();
    let mut fields = Reader::new(bytes);
    while let Some((number, payload)) = fields.field()? {
        if number == 1 {
            items.push(text(payload.bytes("items")?));
        }
    }
    Ok(items)
}

/// Whole seconds, as `Time.Unmarshal` leaves the rest out; an empty message is no time.
pub(super) fn time(bytes: &[u8], field: &'static str) -> Result<Value, ProtobufError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (seconds, _) = timestamp(bytes)?;
    Ok(object::time(instant(seconds, 0, field)?))
}

/// Microseconds.
pub(super) fn micro_time(bytes: &[u8], field: &'static str) -> Result<Value, ProtobufError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (seconds, nanos) = timestamp(bytes)?;
    Ok(object::micro_time(instant(seconds, nanos, field)?))
}

/// `seconds` = 1, `nanos` = 2.
fn timestamp(bytes: &[u8]) -> Result<(i64, i64), ProtobufError> {
    let (mut seconds, mut nanos) = (0, 0);
    let mut fields = Reader::new(bytes);
    while let Some((number, payload)) = fields.field()? {
        match number {
            1 => seconds = payload.varint("seconds")?.cast_signed(),
            2 => nanos = payload.varint("nanos")?.cast_signed(),
            _ => {}
        }
    }
    Ok((seconds, nanos))
}

/// Years 0 to 9999: RFC 3339 has no others.
fn instant(seconds: i64, nanos: i64, field: &'static str) -> Result<Timestamp, ProtobufError> {
    let out_of_range = || ProtobufError::Value {
        field,
        why: "year outside of range [0,9999]".to_owned(),
    };
    let nanos = i32::try_from(nanos).map_err(|_| out_of_range())?;
    let instant = Timestamp::new(seconds, nanos).map_err(|_| out_of_range())?;
    let year_zero = -62_167_219_200;
    if instant.as_second() < year_zero {
        return Err(out_of_range());
    }
    Ok(instant)
}

/// `string` = 1.
pub(super) fn quantity(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let mut quantity = String::new();
    let mut fields = Reader::new(bytes);
    while let Some((number, payload)) = fields.field()? {
        if number == 1 {
            quantity = text(payload.bytes("string")?);
        }
    }
    Ok(quantity.into())
}

/// `type` = 1 (0 for a number), `intVal` = 2, `strVal` = 3.
pub(super) fn int_or_string(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number_value, mut text_value) = (false, 0, String::new());
    let mut fields = Reader::new(bytes);
    while let Some((number, payload)) = fields.field()? {
        match number {
            1 => is_text = payload.varint("type")? != 0,
            2 => number_value = payload.varint("intVal")?.cast_signed(),
            3 => text_value = text(payload.bytes("strVal")?),
            _ => {}
        }
    }
    Ok(match is_text {
        true => text_value.into(),
        false => number_value.into(),
    })
}

/// `raw` = 1: JSON.
pub(super) fn raw(bytes: &[u8]) -> Result<&[u8], ProtobufError> {
    let mut json: &[u8] = &[];
    let mut fields = Reader::new(bytes);
    while let Some((number, payload)) = fields.field()? {
        if number == 1 {
            json = payload.bytes("raw")?;
        }
    }
    Ok(json)
}

/// What stands in a [`raw`]; nothing is null.
pub(super) fn json(json: &[u8], field: &'static str) -> Result<Value, ProtobufError> {
    if json.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(json).map_err(|error| ProtobufError::Value {
        field,
        why: error.to_string(),
    })
}
