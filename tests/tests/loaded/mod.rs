//! The BPF programs of this machine.

use std::collections::BTreeSet;

/// Their numbers.
pub fn loaded() -> BTreeSet<u32> {
    let programs = aya::programs::loaded_programs();
    programs.filter_map(|program| Some(program.ok()?.id())).collect()
}
