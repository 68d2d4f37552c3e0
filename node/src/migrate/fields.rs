//! A configuration taken apart by a table of its fields, so that none is passed over.

use serde_json::Value;

use super::draft::Draft;
use super::told::Verdict;
use super::types::Type;

/// When a field is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// When it says something: not null, empty, zero or `false`, which is Go's way to write an absent field.
    Set,
    /// When it is there and not null: its zero is not its default.
    Given,
    /// Always: its default is told too.
    Always,
}

/// What becomes of a field. `S` is what the rules know of the rest of the configuration.
pub enum Rule<S> {
    /// It has no effect here.
    NotNeeded(&'static str),
    /// It is done otherwise.
    Differs(&'static str),
    /// It depends on the value.
    Read(fn(&S, &Value) -> Verdict),
    /// A map, whose names are settings of their own.
    Each(fn(&S, &str, &Value) -> Verdict),
}

/// A field by its path, with dots between.
pub struct Field<S> {
    path: &'static str,
    when: When,
    rule: Rule<S>,
}

/// A field that has no effect here, and why.
pub const fn not_needed<S>(path: &'static str, why: &'static str) -> Field<S> {
    let rule = Rule::NotNeeded(why);
    let when = When::Set;
    Field { path, when, rule }
}

/// A field that is done otherwise, and how.
pub const fn differs<S>(path: &'static str, how: &'static str) -> Field<S> {
    let rule = Rule::Differs(how);
    let when = When::Set;
    Field { path, when, rule }
}

/// A field whose value decides.
pub const fn read<S>(path: &'static str, when: When, rule: fn(&S, &Value) -> Verdict) -> Field<S> {
    let rule = Rule::Read(rule);
    Field { path, when, rule }
}

/// A map.
pub const fn each<S>(path: &'static str, rule: fn(&S, &str, &Value) -> Verdict) -> Field<S> {
    let rule = Rule::Each(rule);
    let when = When::Given;
    Field { path, when, rule }
}

/// A table, whose configuration it is, and whether its names are read in any case of letters, as Go reads JSON.
pub struct Fields<S: 'static> {
    /// The program.
    pub of: &'static str,
    /// Whether `vni` is `VNI`.
    pub any_case: bool,
    /// What its program reads at a path of the table.
    pub type_of: fn(&str) -> Type,
    /// The table.
    pub table: &'static [Field<S>],
}

impl<S> Fields<S> {
    /// Tells each field of `document`, and those that are always told. `at` stands before their paths.
    pub fn read(&self, state: &S, document: &Value, at: &str, draft: &mut Draft) {
        let mut leaves = Vec::new();
        self.flatten("", document, &mut leaves);
        for (path, value) in &leaves {
            match self.find(path) {
                Some(field) => self.apply(state, field, &format!("{at}{path}"), value, draft),
                None => {
                    let section = self.is_section(path).then_some(Type::Map);
                    let refusal = section.and_then(|section| section.refusal(self.of, value));
                    let verdict = refusal.unwrap_or_else(|| unknown(value));
                    draft.add(self.of, format!("{at}{path}"), value, &verdict);
                }
            }
        }
        let is_said = |known: &str| leaves.iter().any(|(path, _)| self.is(known, path));
        let unsaid = self.table.iter().filter(|field| field.when == When::Always);
        for field in unsaid.filter(|field| !is_said(field.path)) {
            self.apply(state, field, &format!("{at}{}", field.path), &Value::Null, draft);
        }
    }

    /// What the table has as a field, or not at all, with its path.
    fn flatten<'v>(&self, prefix: &str, section: &'v Value, leaves: &mut Vec<(String, &'v Value)>) {
        for (name, value) in section.as_object().into_iter().flatten() {
            let path = format!("{prefix}{name}");
            let is_section = self.find(&path).is_none() && self.is_section(&path);
            if is_section && value.is_object() {
                self.flatten(&format!("{path}."), value, leaves);
            } else if !(is_section && value.is_null()) {
                leaves.push((path, value));
            }
        }
    }

    /// The field at a path.
    pub fn find(&self, path: &str) -> Option<&Field<S>> {
        self.table.iter().find(|field| self.is(field.path, path))
    }

    fn is(&self, known: &str, path: &str) -> bool {
        if self.any_case {
            known.eq_ignore_ascii_case(path)
        } else {
            known == path
        }
    }

    fn is_section(&self, path: &str) -> bool {
        self.table.iter().any(|field| {
            let parent = field.path.get(..path.len());
            parent.is_some_and(|parent| self.is(parent, path)) && field.path[path.len()..].starts_with('.')
        })
    }

    fn apply(&self, state: &S, field: &Field<S>, path: &str, value: &Value, draft: &mut Draft) {
        if let Some(refusal) = (self.type_of)(field.path).refusal(self.of, value) {
            draft.add(self.of, path, value, &refusal);
            return;
        }
        let counts = match field.when {
            When::Set => !is_zero(value),
            When::Given => !value.is_null(),
            When::Always => true,
        };
        if !counts {
            return;
        }
        let verdict = match &field.rule {
            Rule::NotNeeded(why) => Verdict::not_needed(*why),
            Rule::Differs(how) => Verdict::differs(*how),
            Rule::Read(rule) => rule(state, value),
            Rule::Each(rule) => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    draft.add(
                        self.of,
                        format!("{path}.{name}"),
                        value,
                        &rule(state, name, value),
                    );
                }
                return;
            }
        };
        draft.add(self.of, path, value, &verdict);
    }
}

fn unknown(value: &Value) -> Verdict {
    if is_zero(value) {
        Verdict::not_needed("is not known here, and not set")
    } else {
        Verdict::not_supported("is not known here")
    }
}

/// Whether Go would leave it out: what `kubectl` and kubeadm print of fields that nobody set.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.values().all(is_zero),
    }
}
