//! A set of fields, as `fieldsV1` writes it (structured-merge-diff `fieldpath/serialize.go`): a tree of names, where
//! `f:replicas` is a field, `k:{"name":"web"}` an element by its keys, `v:"a"` one by its value, and `.` says that what
//! it stands in belongs to the set itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::values::{MAX_TOLD, MAX_TOLD_BYTES};

/// Fields of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldSet {
    /// Whether this node itself is in the set.
    pub(super) member: bool,
    /// By the names that `fieldsV1` uses; none of them is empty.
    below: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    /// Whether this node itself is in it.
    pub(crate) fn is_member(&self) -> bool {
        self.member
    }

    /// One field with nothing below.
    pub(super) fn leaf() -> Self {
        FieldSet {
            member: true,
            ..FieldSet::default()
        }
    }

    /// Reads `fieldsV1`; `None` when it is none.
    pub(super) fn read(fields: &Value) -> Option<Self> {
        let mut set = FieldSet::default();
        for (name, inner) in fields.as_object()? {
            if name == "." {
                set.member = true;
                continue;
            }
            if !matches!(name.as_bytes(), [b'f' | b'k' | b'v' | b'i', b':', ..]) {
                return None;
            }
            let mut inner = FieldSet::read(inner)?;
            inner.member |= inner.below.is_empty();
            set.below.insert(name.clone(), inner);
        }
        Some(set)
    }

    /// As `fieldsV1`.
    pub(super) fn to_json(&self) -> Value {
        let below = self.below.iter().map(|(name, inner)| {
            let mut written = inner.to_json();
            if inner.member && !inner.below.is_empty() {
                written["."] = json!({});
            }
            (name.clone(), written)
        });
        Value::Object(below.collect::<Map<_, _>>())
    }

    /// Nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }

    /// What it has below this node under a name.
    pub(crate) fn get(&self, name: &str) -> Option<&FieldSet> {
        self.below.get(name)
    }

    /// The nodes directly below this one.
    pub(crate) fn below(&self) -> impl Iterator<Item = (&str, &FieldSet)> {
        self.below.iter().map(|(name, set)| (name.as_str(), set))
    }

    /// Puts a set under a name, unless it is empty.
    pub(super) fn put(&mut self, name: String, set: FieldSet) {
        if !set.is_empty() {
            self.below.insert(name, set);
        }
    }

    /// The set of one path.
    pub(crate) fn of_path(path: &[&str]) -> Self {
        path.iter().rev().fold(FieldSet::leaf(), |inner, name| {
            let mut outer = FieldSet::default();
            outer.put((*name).to_owned(), inner);
            outer
        })
    }

    /// Takes out everything at and below a path.
    pub(super) fn forget(&mut self, path: &[&str]) {
        match path {
            [] => {}
            [last] => drop(self.below.remove(*last)),
            [first, rest @ ..] => {
                if let Some(inner) = self.below.get_mut(*first) {
                    inner.forget(rest);
                    if inner.is_empty() {
                        self.below.remove(*first);
                    }
                }
            }
        }
    }

    /// Adds what another has.
    pub(crate) fn add(&mut self, other: &FieldSet) {
        self.member |= other.member;
        for (name, inner) in &other.below {
            match self.below.get_mut(name) {
                Some(own) => own.add(inner),
                None => drop(self.below.insert(name.clone(), inner.clone())),
            }
        }
    }

    /// Takes out what another has.
    pub(crate) fn subtract(&mut self, other: &FieldSet) {
        self.member &= !other.member;
        for (name, inner) in &other.below {
            if let Some(own) = self.below.get_mut(name) {
                own.subtract(inner);
                if own.is_empty() {
                    self.below.remove(name);
                }
            }
        }
    }

    /// What both have.
    pub(crate) fn common(&self, other: &FieldSet) -> FieldSet {
        let mut common = FieldSet {
            member: self.member && other.member,
            ..FieldSet::default()
        };
        for (name, inner) in &self.below {
            if let Some(theirs) = other.below.get(name) {
                common.put(name.clone(), inner.common(theirs));
            }
        }
        common
    }

    /// How many members it has.
    pub(super) fn count(&self) -> usize {
        let below: usize = self.below.values().map(FieldSet::count).sum();
        usize::from(self.member) + below
    }

    /// The paths of the members that there is room for, as people read them:
    /// `.spec.template.spec.containers[name="web"].image`.
    pub(crate) fn paths(&self, room: &mut Room) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect_paths(&mut String::new(), room, &mut paths);
        paths
    }

    fn collect_paths(&self, here: &mut String, room: &mut Room, paths: &mut Vec<String>) {
        if self.member {
            paths.extend(room.take(here));
        }
        let length = here.len();
        for (name, inner) in &self.below {
            if room.is_full() {
                return;
            }
            here.push_str(&shown(name));
            inner.collect_paths(here, room, paths);
            here.truncate(length);
        }
    }
}

/// How many paths may still be told, and of how many bytes together: names are as long as clients made them, and a path
/// repeats those above it.
#[derive(Debug)]
pub(crate) struct Room {
    paths: usize,
    bytes: usize,
}

impl Default for Room {
    fn default() -> Self {
        Room {
            paths: MAX_TOLD,
            bytes: MAX_TOLD_BYTES,
        }
    }
}

impl Room {
    fn is_full(&self) -> bool {
        self.paths == 0 || self.bytes == 0
    }

    /// As much of a path as there is room for.
    fn take(&mut self, path: &str) -> Option<String> {
        if self.is_full() {
            return None;
        }
        let kept = path.get(..path.floor_char_boundary(self.bytes))?;
        self.paths -= 1;
        self.bytes = self.bytes.saturating_sub(path.len());
        Some(kept.to_owned())
    }
}

/// A name as people read it: `.replicas`, `[name="web"]`, `[="a"]`, `[0]`.
pub(crate) fn shown(name: &str) -> String {
    let (kind, rest) = name.split_at(name.len().min(2));
    match kind {
        "k:" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let mut text = String::from("[");
            for (at, (key, value)) in keys.iter().enumerate() {
                let comma = if at == 0 { "" } else { "," };
                // Writing to a String cannot fail.
                let _written = write!(text, "{comma}{key}={value}");
            }
            text.push(']');
            text
        }
        "v:" => format!("[={rest}]"),
        "i:" => format!("[{rest}]"),
        _ => format!(".{rest}"),
    }
}
