//! `metadata.managedFields`: who wrote which field of an object last, or applied it (apimachinery
//! `pkg/util/managedfields`, structured-merge-diff `merge/update.go`). Server-side apply lives by it: what somebody
//! else owns is a conflict, and what an applier no longer names goes when nobody else owns it.

mod fields;
mod set;
#[cfg(test)]
mod tests;
mod validation;

use std::collections::{BTreeMap, btree_map};
use std::mem;

use serde_json::{Map, Value, json};

use crate::object::{self, Fields};
pub(crate) use fields::{Difference, fields_of};
use set::Room;
pub(crate) use set::{FieldSet, shown};
pub(crate) use validation::{MAX_MANAGER, validate};

/// Who owns the fields of an object that was there before anybody's were recorded.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// More updaters are remembered as one (upstream's `DefaultMaxUpdateManagers`).
const MAX_UPDATERS: usize = 10;
/// Who the oldest updaters become.
const ANCIENT: &str = "ancient-changes";

/// How a manager came to own fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    /// Server-side apply.
    Apply,
    /// Any other write.
    Update,
}

/// Who writes, and how.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Manager {
    /// Appliers come first.
    pub(crate) operation: Operation,
    pub(crate) name: String,
    /// Version of the object that the fields are of.
    pub(crate) api_version: String,
    /// Empty for the object itself.
    pub(crate) subresource: String,
}

impl Manager {
    /// An applier is the same in every version.
    fn is(&self, other: &Manager) -> bool {
        let versions_agree = self.operation == Operation::Apply || self.api_version == other.api_version;
        versions_agree
            && (self.operation, &self.name, &self.subresource)
                == (other.operation, &other.name, &other.subresource)
    }

    /// As errors name it: `"kubectl-edit" using apps/v1`.
    fn shown(&self) -> String {
        let mut text = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    manager: Manager,
    /// RFC 3339 in whole seconds; empty when nobody said.
    time: String,
    fields: FieldSet,
}

/// Who owns what of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ManagedFields(Vec<Entry>);

/// A field of an applied configuration that somebody else set to another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// `"kubectl-edit" using apps/v1`.
    pub(crate) manager: String,
    /// `.spec.replicas`.
    pub(crate) path: String,
}

/// What others own of what an apply changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Conflicts {
    /// Those that there was room to tell.
    pub(crate) told: Vec<Conflict>,
    /// How many there are.
    pub(crate) count: usize,
}

/// What a body says about owners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Given {
    /// Nothing, or nothing that can be read: what is stored holds.
    Nothing,
    /// `[{}]`: all is forgotten.
    Reset,
    /// A list that takes the place of the stored one.
    List(ManagedFields),
}

impl Given {
    /// From `metadata.managedFields` of a body.
    /// A body for a subresource says nothing of them.
    pub(crate) fn read(list: &Value, whole: bool) -> Self {
        match list.as_array().map(Vec::as_slice) {
            None | Some([]) => Given::Nothing,
            Some(_) if !whole => Given::Nothing,
            Some([only]) if only.as_object().is_some_and(Map::is_empty) => Given::Reset,
            Some(_) => ManagedFields::read(list).map_or(Given::Nothing, Given::List),
        }
    }

    /// The owners before the write; `recorded` are those in the store.
    pub(crate) fn or_recorded(self, recorded: &Value) -> ManagedFields {
        match self {
            Given::Nothing => ManagedFields::read(recorded).unwrap_or_default(),
            Given::Reset => ManagedFields::default(),
            Given::List(list) => list,
        }
    }
}

impl ManagedFields {
    /// Those of a stored object; none where they cannot be read.
    pub(crate) fn of(object: &Value) -> Self {
        ManagedFields::read(object.at("metadata.managedFields")).unwrap_or_default()
    }

    fn read(list: &Value) -> Option<Self> {
        let entries = list.as_array()?.iter().map(|entry| {
            let operation = match entry.text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            };
            if !matches!(entry.text("fieldsType"), "FieldsV1") {
                return None;
            }
            let fields = match entry.at("fieldsV1") {
                Value::Null => FieldSet::default(),
                fields => FieldSet::read(fields)?,
            };
            let text = |field: &str| entry.text(field).to_owned();
            let manager = Manager {
                operation,
                name: text("manager"),
                api_version: text("apiVersion"),
                subresource: text("subresource"),
            };
            Some(Entry {
                manager,
                time: text("time"),
                fields,
            })
        });
        entries.collect::<Option<Vec<_>>>().map(ManagedFields)
    }

    /// Nobody owns anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As `metadata.managedFields`; null when nobody owns anything.
    pub(crate) fn into_list(mut self) -> Value {
        self.0.retain(|entry| !entry.fields.is_empty());
        self.0
            .sort_by_cached_key(|entry| (entry.manager.operation, entry.time.clone(), entry.manager.clone()));
        match self.is_empty() {
            true => Value::Null,
            false => self.0.iter().map(written).collect(),
        }
    }

    /// Writes the list into an object; an empty one is left out.
    pub(crate) fn write(self, object: &mut Value) {
        let metadata = object::metadata(object);
        match self.into_list() {
            Value::Null => drop(metadata.remove("managedFields")),
            list => drop(metadata.insert("managedFields".to_owned(), list)),
        }
    }

    /// Who makes an object does not say how it is.
    pub(crate) fn forget_status(&mut self) {
        for entry in &mut self.0 {
            entry.fields.forget(&["f:status"]);
        }
    }

    /// After a write that is no apply: who wrote owns what is different now. An object that nobody's fields are
    /// recorded of stays so, as what was there before would be nobody's.
    pub(crate) fn after_update(mut self, difference: &Difference, manager: &Manager, now: &str) -> Self {
        if self.is_empty() || difference.is_empty() {
            return self;
        }
        self.take(difference);
        self.give(difference.written.clone(), manager, now);
        self.bound();
        self
    }

    /// Of a new object: everything is whose who made it.
    pub(crate) fn of_new(object: &Value, manager: &Manager, now: &str) -> Self {
        let mut owners = ManagedFields::default();
        owners.give(Difference::between(&Value::Null, object).written, manager, now);
        owners
    }

    /// The owners of an object that nobody's fields are recorded of, when it is applied for the first time.
    pub(crate) fn before_first_apply(live: &Value, api_version: &str, now: &str) -> Self {
        let manager = Manager {
            operation: Operation::Update,
            name: BEFORE_FIRST_APPLY.to_owned(),
            api_version: api_version.to_owned(),
            subresource: String::new(),
        };
        let mut object = live.clone();
        object::remove(&mut object, "status");
        ManagedFields::of_new(&object, &manager, now)
    }

    /// What a manager owns.
    pub(crate) fn owned_by(&self, manager: &Manager) -> Option<&FieldSet> {
        let entry = self.0.iter().find(|entry| entry.manager.is(manager))?;
        Some(&entry.fields)
    }

    /// What all others own together.
    pub(crate) fn owned_by_others(&self, manager: &Manager) -> FieldSet {
        let mut all = FieldSet::default();
        for entry in self.0.iter().filter(|entry| !entry.manager.is(manager)) {
            all.add(&entry.fields);
        }
        all
    }

    /// What others own of the fields that an apply writes, and is not in `allowed`.
    pub(crate) fn conflicts(&self, written: &FieldSet, manager: &Manager, allowed: &FieldSet) -> Conflicts {
        let mut others: Vec<&Entry> = self.0.iter().filter(|entry| !entry.manager.is(manager)).collect();
        others.sort_by(|one, other| one.manager.name.cmp(&other.manager.name));
        let mut conflicts = Conflicts::default();
        let mut room = Room::default();
        for entry in others {
            let mut common = entry.fields.common(written);
            common.subtract(allowed);
            conflicts.count += common.count();
            let paths = common.paths(&mut room).into_iter();
            conflicts.told.extend(paths.map(|path| Conflict {
                manager: entry.manager.shown(),
                path,
            }));
        }
        conflicts
    }

    /// After an apply of `fields` by which the object came to differ.
    pub(crate) fn after_apply(
        mut self,
        fields: FieldSet,
        difference: &Difference,
        manager: &Manager,
        now: &str,
    ) -> Self {
        let own = self.0.iter().position(|entry| entry.manager.is(manager));
        let before = own.map(|at| self.0.remove(at));
        self.take(difference);
        let time = match before {
            Some(before) if before.fields == fields && difference.is_empty() => before.time,
            _ => now.to_owned(),
        };
        self.0.push(Entry {
            manager: manager.clone(),
            time,
            fields,
        });
        self
    }

    /// The entries that own the field at a path of `fieldsV1` names, each owning that alone.
    pub(crate) fn narrowed(&self, path: &[&str]) -> Self {
        let only = FieldSet::of_path(path);
        let entries = self.0.iter().map(|entry| Entry {
            fields: entry.fields.common(&only),
            ..entry.clone()
        });
        ManagedFields(entries.filter(|entry| !entry.fields.is_empty()).collect())
    }

    /// All entries said to be of another version.
    pub(crate) fn in_version(mut self, api_version: &str) -> Self {
        for entry in &mut self.0 {
            api_version.clone_into(&mut entry.manager.api_version);
        }
        self
    }

    /// Nobody owns what is written anew or gone.
    fn take(&mut self, difference: &Difference) {
        for entry in &mut self.0 {
            entry.fields.subtract(&difference.written);
            entry.fields.subtract(&difference.removed);
        }
        self.0.retain(|entry| !entry.fields.is_empty());
    }

    fn give(&mut self, fields: FieldSet, manager: &Manager, now: &str) {
        if fields.is_empty() {
            return;
        }
        match self.0.iter_mut().find(|entry| entry.manager.is(manager)) {
            Some(entry) => {
                entry.fields.add(&fields);
                now.clone_into(&mut entry.time);
            }
            None => self.0.push(Entry {
                manager: manager.clone(),
                time: now.to_owned(),
                fields,
            }),
        }
    }

    /// Makes one of the oldest updaters when there are too many: one for each version and subresource.
    fn bound(&mut self) {
        let is_updater = |entry: &Entry| entry.manager.operation == Operation::Update;
        let mut updaters = self.0.iter().filter(|entry| is_updater(entry)).count();
        if updaters <= MAX_UPDATERS {
            return;
        }
        self.0.sort_by(|one, other| one.time.cmp(&other.time));
        let is_ancient = |entry: &Entry| is_updater(entry) && entry.manager.name == ANCIENT;
        let (ancient, others) = mem::take(&mut self.0)
            .into_iter()
            .partition::<Vec<_>, _>(&is_ancient);
        let mut merged: BTreeMap<Manager, Entry> = BTreeMap::new();
        for mut entry in ancient.into_iter().chain(others) {
            let is_kept = updaters <= MAX_UPDATERS && !is_ancient(&entry);
            if is_kept || !is_updater(&entry) {
                self.0.push(entry);
                continue;
            }
            ANCIENT.clone_into(&mut entry.manager.name);
            match merged.entry(entry.manager.clone()) {
                btree_map::Entry::Vacant(place) => drop(place.insert(entry)),
                btree_map::Entry::Occupied(mut place) => {
                    let known = place.get_mut();
                    known.fields.add(&entry.fields);
                    known.time = entry.time;
                    updaters -= 1;
                }
            }
        }
        self.0.extend(merged.into_values());
    }
}

fn written(entry: &Entry) -> Value {
    let Entry {
        manager,
        time,
        fields,
    } = entry;
    let mut value = json!({
        "manager": manager.name, "operation": format!("{:?}", manager.operation), "apiVersion": manager.api_version,
        "fieldsType": "FieldsV1", "fieldsV1": fields.to_json(),
    });
    for (field, text) in [("time", time), ("subresource", &manager.subresource)] {
        if !text.is_empty() {
            value[field] = text.as_str().into();
        }
    }
    value
}

/// The text of the conflicts (`getConflictMessage`); those that are not told are counted.
pub(crate) fn conflict_message(conflicts: &Conflicts) -> String {
    let Conflicts { told, count } = conflicts;
    if let ([only], 1) = (told.as_slice(), count) {
        let Conflict { manager, path } = only;
        return format!("Apply failed with 1 conflict: conflict with {manager}: {path}");
    }
    let mut by_manager: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Conflict { manager, path } in told {
        by_manager.entry(manager).or_default().push(path);
    }
    let mut lines = Vec::new();
    for (manager, paths) in by_manager {
        lines.push(format!("conflicts with {manager}:"));
        lines.extend(paths.iter().map(|path| format!("- {path}")));
    }
    if *count > told.len() {
        lines.push(format!("and {} more", count - told.len()));
    }
    format!("Apply failed with {count} conflicts: {}", lines.join("\n"))
}
