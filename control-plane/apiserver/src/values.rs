//! Bodies in JSON and YAML. Values are counted while they are read: a byte of JSON may take hundreds of memory, and what a
//! YAML alias stands for is counted each time that it stands there, as a few lines can be billions of values. Of equal
//! fields the last one counts, and all are told (`fieldValidation`).

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// More duplicates of one body are not told (sigs.k8s.io/json `strictErrorLimit`).
pub const MAX_TOLD: usize = 100;
/// Nor are those after so many bytes of paths: a path may be as long as the body.
pub(crate) const MAX_TOLD_BYTES: usize = 64 << 10;

/// Why a body is no value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It has more of them than may be.
    #[error("too many values")]
    TooManyValues,
    /// It is no JSON.
    #[error(transparent)]
    Json(serde_json::Error),
    /// It is no YAML, or more than one document.
    #[error(transparent)]
    Yaml(serde_yaml_ng::Error),
}

/// What was read, and the paths of the fields that stood there more than once: `spec.ports[0].port`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Read<T> {
    /// What was read.
    pub value: T,
    /// In the order in which they were found, each once.
    pub duplicates: Vec<String>,
}

/// Reads JSON of at most `limit` values.
///
/// # Errors
/// As [`Error`] says.
pub fn read_json(body: &[u8], limit: usize) -> Result<Read<Value>, Error> {
    let found = Found::new(limit);
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let read = Reader::of(&found).deserialize(&mut deserializer);
    let read = read.and_then(|value| deserializer.end().map(|()| value));
    found.into_read(read, Error::Json)
}

/// Reads a YAML document of at most `limit` values.
///
/// # Errors
/// As [`Error`] says.
pub fn read_yaml(body: &[u8], limit: usize) -> Result<Read<Value>, Error> {
    let found = Found::new(limit);
    let read = Reader::of(&found).deserialize(serde_yaml_ng::Deserializer::from_slice(body));
    found.into_read(read, Error::Yaml)
}

/// What is found out on the way.
struct Found {
    /// `None` = one value too many.
    left: Cell<Option<usize>>,
    duplicates: RefCell<Vec<String>>,
    bytes_left: Cell<usize>,
}

impl Found {
    fn new(limit: usize) -> Self {
        Found {
            left: Cell::new(Some(limit)),
            duplicates: RefCell::default(),
            bytes_left: Cell::new(MAX_TOLD_BYTES),
        }
    }

    fn into_read<E>(
        self,
        read: Result<Value, E>,
        unreadable: impl Fn(E) -> Error,
    ) -> Result<Read<Value>, Error> {
        let duplicates = self.duplicates.into_inner();
        match (read, self.left.get()) {
            (Ok(value), _) => Ok(Read { value, duplicates }),
            (Err(_), None) => Err(Error::TooManyValues),
            (Err(error), Some(_)) => Err(unreadable(error)),
        }
    }
}

/// Where a value stands.
#[derive(Clone, Copy)]
enum Path<'p> {
    Root,
    Field(&'p Path<'p>, &'p str),
    Item(&'p Path<'p>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Item(parent, at) => write!(f, "{parent}[{at}]"),
        }
    }
}

/// Reads the value at a path.
#[derive(Clone, Copy)]
struct Reader<'r> {
    found: &'r Found,
    path: Path<'r>,
}

impl<'r> Reader<'r> {
    fn of(found: &'r Found) -> Self {
        Reader {
            found,
            path: Path::Root,
        }
    }

    fn one<E: serde::de::Error>(self, value: impl Into<Value>) -> Result<Value, E> {
        self.spend()?;
        Ok(value.into())
    }

    fn spend<E: serde::de::Error>(self) -> Result<(), E> {
        let left = &self.found.left;
        left.set(left.get().and_then(|left| left.checked_sub(1)));
        match left.get() {
            Some(_) => Ok(()),
            None => Err(E::custom("too many values")),
        }
    }

    fn tell_duplicate(self) {
        let mut told = self.found.duplicates.borrow_mut();
        let left = &self.found.bytes_left;
        if told.len() == MAX_TOLD || left.get() == 0 {
            return;
        }
        let mut path = self.path.to_string();
        left.set(left.get().saturating_sub(path.len()));
        path.truncate(path.floor_char_boundary(MAX_TOLD_BYTES));
        if !told.contains(&path) {
            told.push(path);
        }
    }
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
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
        loop {
            let path = Path::Item(&self.path, list.len());
            match items.next_element_seed(Reader { path, ..self })? {
                Some(item) => list.push(item),
                None => return Ok(list.into()),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        self.spend()?;
        let mut map = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            let reader = Reader {
                path: Path::Field(&self.path, &key),
                ..self
            };
            if map.contains_key(&key) {
                reader.tell_duplicate();
            }
            let value = fields.next_value_seed(reader)?;
            map.insert(key, value);
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
        assert_eq!(
            read_yaml(text.as_bytes(), 100).expect("a document").value,
            expected
        );
        for wrong in ["a: [", "--- 1\n--- 2", "a: !x {b: c}"] {
            assert!(
                matches!(read_yaml(wrong.as_bytes(), 100), Err(Error::Yaml(_))),
                "{wrong}"
            );
        }
        for wrong in ["", "{", "{} {}", "{'a': 1}"] {
            assert!(
                matches!(read_json(wrong.as_bytes(), 100), Err(Error::Json(_))),
                "{wrong}"
            );
        }
    }

    #[test]
    fn the_last_of_equal_fields_counts_and_each_is_told_once() {
        let text = r#"{"a": 1, "b": [{"c": 1, "d": 2, "c": 3}], "a": {"e": 1, "e": 2}, "a": 5}"#;
        let expected = Read {
            value: json!({ "a": 5, "b": [{ "c": 3, "d": 2 }] }),
            duplicates: ["b[0].c", "a", "a.e"].map(str::to_owned).to_vec(),
        };
        assert_eq!(read_json(text.as_bytes(), 100).expect("JSON"), expected);
        assert_eq!(read_yaml(text.as_bytes(), 100).expect("YAML"), expected);
        let many: Vec<String> = (0..300).map(|at| format!("\"{at}\":0,\"{at}\":0")).collect();
        let text = format!("{{{}}}", many.join(","));
        assert_eq!(
            read_json(text.as_bytes(), 1000).expect("JSON").duplicates.len(),
            100
        );
    }

    #[test]
    fn long_paths_of_duplicates_take_no_more_memory_than_some_bodies() {
        let long = "x".repeat(1 << 20);
        let many: Vec<String> = (0..1000).map(|at| format!("\"{at}\":0,\"{at}\":0")).collect();
        let text = format!("{{\"{long}\":{{{}}}}}", many.join(","));
        let told = read_json(text.as_bytes(), 10_000).expect("JSON").duplicates;
        assert_eq!(told, [&long[..MAX_TOLD_BYTES]]);
    }

    #[test]
    fn what_aliases_stand_for_counts_each_time() {
        let ones = "1,".repeat(50);
        let aliases = "*a,".repeat(50);
        let text = format!("a: &a [{ones}]\nb: [{aliases}]\n");
        // The document, both lists, and fifty-one lists of fifty.
        let count = 1 + 51 + 1 + 50 * 51;
        assert!(read_yaml(text.as_bytes(), count).is_ok());
        assert!(matches!(
            read_yaml(text.as_bytes(), count - 1),
            Err(Error::TooManyValues)
        ));
        assert!(read_json(b"[1,{\"a\":2}]", 4).is_ok());
        assert!(matches!(
            read_json(b"[1,{\"a\":2}]", 3),
            Err(Error::TooManyValues)
        ));
    }
}
