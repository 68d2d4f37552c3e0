//! What a client may say of `metadata.managedFields` (`ValidateManagedFields`). A list of which an entry cannot be read
//! counts for nothing, so that only what is too large is told here.

use serde_json::Value;

use super::ManagedFields;
use crate::object::Fields;
use crate::resources::field::{Errors, Path};

/// Entries of a list: far more than programs write one object.
const MAX_ENTRIES: usize = 500;
/// Bytes of a manager's name (`FieldManagerMaxLength`).
pub(crate) const MAX_MANAGER: usize = 128;
/// Bytes of a subresource (`MaxSubresourceNameLength`).
const MAX_SUBRESOURCE: usize = 256;
/// Bytes of a group and a version.
const MAX_API_VERSION: usize = 253 + 1 + 63;

/// `list` is what a body says.
pub(crate) fn validate(list: &Value, errors: &mut Errors) {
    let path = Path::new("metadata.managedFields");
    let entries = list.as_array().map(Vec::as_slice).unwrap_or_default();
    if entries.len() > MAX_ENTRIES {
        errors.too_many(&path, entries.len(), MAX_ENTRIES);
        return;
    }
    if ManagedFields::read(list).is_none() {
        return;
    }
    for (at, entry) in entries.iter().enumerate() {
        let path = path.index(at);
        for (field, most) in [
            ("manager", MAX_MANAGER),
            ("apiVersion", MAX_API_VERSION),
            ("subresource", MAX_SUBRESOURCE),
        ] {
            if entry.text(field).len() > most {
                errors.too_long(&path.child(field), most);
            }
        }
        if entry.text("manager").chars().any(char::is_control) {
            let why = "should only contain printable characters";
            errors.invalid(&path.child("manager"), entry.text("manager"), why);
        }
    }
}
