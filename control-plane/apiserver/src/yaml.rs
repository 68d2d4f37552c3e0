//! YAML bodies. What aliases stand for is counted each time that they stand there: a few lines can be billions of values.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Why a body is no value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It has more of them than may be.
    #[error("too many values")]
    TooManyValues,
    /// It is no YAML, or more than one document.
    #[error(transparent)]
    Unreadable(serde_yaml_ng::Error),
}

/// Reads a document of at most `limit` values.
///
/// # Errors
/// As [`Error`] says.
pub fn read(body: &[u8], limit: usize) -> Result<Value, Error> {
    let left = Cell::new(Some(limit));
    let read = Counted(&left).deserialize(serde_yaml_ng::Deserializer::from_slice(body));
    read.map_err(|error| match left.get() {
        None => Error::TooManyValues,
        Some(_) => Error::Unreadable(error),
    })
}

/// A value that is counted; `None` = one too many.
#[derive(Clone, Copy)]
struct Counted<'l>(&'l Cell<Option<usize>>);

impl Counted<'_> {
    fn one<E: serde::de::Error>(self, value: impl Into<Value>) -> Result<Value, E> {
        self.spend()?;
        Ok(value.into())
    }

    fn spend<E: serde::de::Error>(self) -> Result<(), E> {
        self.0.set(self.0.get().and_then(|left| left.checked_sub(1)));
        match self.0.get() {
            Some(_) => Ok(()),
            None => Err(E::custom("too many values")),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Counted<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counted<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has, too")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.one(value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.one(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.one(value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        self.one(value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.one(value)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.one(Value::Null)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Value, E> {
        self.one(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.spend()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        self.spend()?;
        let mut map = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            let value = fields.next_value_seed(self)?;
            if map.insert(key.clone(), value).is_some() {
                return Err(A::Error::custom(format!("duplicate entry with key {key:?}")));
            }
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_the_values_that_json_has() {
        let text = "a: 1\nb: [-2, 0.5, yes, true, ~, '3', \"x\\ny\"]\nc: &c {d: e}\nf: *c\n";
        let expected = json!({ "a": 1, "b": [-2, 0.5, "yes", true, null, "3", "x\ny"], "c": { "d": "e" },
            "f": { "d": "e" } });
        assert_eq!(read(text.as_bytes(), 100).expect("a document"), expected);
        for wrong in ["a: [", "a: 1\na: 2", "--- 1\n--- 2", "a: !x {b: c}"] {
            assert!(
                matches!(read(wrong.as_bytes(), 100), Err(Error::Unreadable(_))),
                "{wrong}"
            );
        }
    }

    #[test]
    fn what_aliases_stand_for_counts_each_time() {
        let ones = "1,".repeat(50);
        let aliases = "*a,".repeat(50);
        let text = format!("a: &a [{ones}]\nb: [{aliases}]\n");
        // The document, both lists, and fifty-one lists of fifty.
        let count = 1 + 51 + 1 + 50 * 51;
        assert!(read(text.as_bytes(), count).is_ok());
        assert!(matches!(
            read(text.as_bytes(), count - 1),
            Err(Error::TooManyValues)
        ));
    }
}
