//! The BPF programs of this machine, by their numbers.

use std::collections::BTreeSet;

/// Those that are loaded.
pub fn programs() -> BTreeSet<u32> {
    let programs = aya::programs::loaded_programs();
    programs.filter_map(|program| Some(program.ok()?.id())).collect()
}
