//! Who writes, and what of the object is theirs afterwards (`metadata.managedFields`).

use serde_json::Value;

use super::{Call, now};
use crate::managed::{Difference, Given, MAX_MANAGER, ManagedFields, Manager, Operation};
use crate::object;
use crate::resources::{Registry, Resource};

/// Whose the fields are that a write sets.
#[derive(Debug, Clone)]
pub(super) enum Author {
    /// The server itself: nobody's are recorded.
    Nobody,
    /// Whoever asked owns what is different afterwards.
    Updater(Manager),
    /// A server-side apply, which says who owns what afterwards.
    Applier(ManagedFields),
}

impl Author {
    pub(super) fn of_new(self, resource: &Resource, object: &Value) -> ManagedFields {
        match self {
            Author::Nobody => ManagedFields::default(),
            Author::Applier(owners) => owners,
            Author::Updater(manager) => {
                let mut owners = ManagedFields::of_new(object, &manager, &timestamp());
                if resource.has_status {
                    owners.forget_status();
                }
                owners
            }
        }
    }

    /// `managedFields` after a write that made `new` of `current`: null for none, `None` when they stay as recorded.
    pub(super) fn after(self, recorded: &Value, given: Given, current: &Value, new: &Value) -> Option<Value> {
        match self {
            Author::Nobody => None,
            Author::Applier(owners) => Some(owners.into_list()),
            Author::Updater(_) if given == Given::Nothing && recorded.is_null() => None,
            Author::Updater(manager) => {
                let difference = Difference::between(current, new);
                if given == Given::Nothing && difference.is_empty() {
                    return None;
                }
                let owners = given.or_recorded(recorded);
                Some(
                    owners
                        .after_update(&difference, &manager, &timestamp())
                        .into_list(),
                )
            }
        }
    }
}

impl Call {
    /// Who this request is from in `managedFields` (`managerOrUserAgent`).
    pub(super) fn manager(&self, registry: &Registry, operation: Operation) -> Manager {
        let agent = self
            .headers
            .get("user-agent")
            .and_then(|agent| agent.to_str().ok());
        let program = agent.unwrap_or_default().split('/').next().unwrap_or_default();
        let program: String = program.chars().take(MAX_MANAGER).collect();
        let name = match self.query.get("fieldManager") {
            Some(name) => name.to_owned(),
            None if program.is_empty() => "unknown".to_owned(),
            None => program,
        };
        Manager {
            operation,
            name,
            api_version: self.resource.stored_row(registry).api_version(),
            subresource: self.path.subresource.clone().unwrap_or_default(),
        }
    }
}

/// Now, as `managedFields` says it.
pub(super) fn timestamp() -> String {
    object::time(now()).as_str().unwrap_or_default().to_owned()
}

/// `managedFields` of an object, which has none any more; null for none.
pub(super) fn take_managed(object: &mut Value) -> Value {
    let list = object::metadata(object).remove("managedFields");
    list.unwrap_or_default()
}

pub(super) fn put_managed(object: &mut Value, list: Value) {
    if !list.is_null() {
        object::metadata(object).insert("managedFields".to_owned(), list);
    }
}
