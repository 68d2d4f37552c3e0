//! The EndpointSlices of one Service.

use std::sync::Arc;

use crate::{EndpointSlice, Few};

/// The slices of one Service, each once, sorted by name. Most Services have one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slices(Few<Arc<EndpointSlice>>);

impl Slices {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.0.iter()
    }

    /// The slice of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<EndpointSlice>> {
        let place = self.0.binary_search_by(|slice| (*slice.name.name).cmp(name));
        self.0.get(place.ok()?)
    }

    /// The slice at a place, from 0.
    #[must_use]
    pub fn nth(&self, place: usize) -> Option<&Arc<EndpointSlice>> {
        self.0.get(place)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that are not the same in `older`.
    pub fn changed_since<'a>(&'a self, older: &'a Self) -> impl Iterator<Item = &'a Arc<EndpointSlice>> {
        let slices = self.iter();
        slices.filter(|slice| older.get(&slice.name.name) != Some(slice))
    }

    /// These and another one, which takes the place of the one of the same name.
    #[must_use]
    pub(crate) fn with(&self, slice: Arc<EndpointSlice>) -> Self {
        let others = || self.iter().cloned();
        let before = others().filter(|other| other.name.name < slice.name.name);
        let after = others().filter(|other| other.name.name > slice.name.name);
        Self(before.chain([slice.clone()]).chain(after).collect())
    }

    /// These but the one of that name.
    #[must_use]
    pub(crate) fn without(&self, name: &str) -> Self {
        let others = self.iter().filter(|slice| slice.name.name != *name);
        Self(others.cloned().collect())
    }
}
