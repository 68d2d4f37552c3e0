//! Elements that several Services may want, such as the address of an endpoint that two of them have.

use super::elements::Name;
use super::packed_map::PackedMap;

/// Who wants which of these elements: `[name of the set:1] key [number of the Service:4]`. Keys of one set are of one
/// length.
#[derive(Debug, Default)]
pub(super) struct Sharers(PackedMap);

impl Sharers {
    pub(super) fn add(&mut self, name: Name, key: &[u8], service: u32) {
        self.0.insert(&entry(name, key, &service.to_be_bytes()), &[]);
    }

    pub(super) fn remove(&mut self, name: Name, key: &[u8], service: u32) {
        self.0.remove(&entry(name, key, &service.to_be_bytes()));
    }

    /// Whether any Service wants the element.
    pub(super) fn has(&self, name: Name, key: &[u8]) -> bool {
        self.0.starting_with(entry(name, key, &[])).next().is_some()
    }
}

fn entry(name: Name, key: &[u8], service: &[u8]) -> Vec<u8> {
    [&[name as u8], key, service].concat()
}
