//! The BPF programs of a process and of this machine, by their numbers.

use std::collections::BTreeSet;

/// Those that a process holds by descriptors.
pub fn programs_of(pid: u32) -> BTreeSet<u32> {
    let number = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix("prog_id:"))?;
        line.trim().parse().ok()
    };
    descriptors(pid).filter_map(number).collect()
}

/// What the kernel tells of a process's descriptors.
pub fn descriptors(pid: u32) -> impl Iterator<Item = String> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fdinfo"));
    let entries = descriptors.into_iter().flatten().flatten();
    entries.filter_map(|entry| std::fs::read_to_string(entry.path()).ok())
}

/// Those that are loaded.
pub fn programs() -> BTreeSet<u32> {
    let programs = aya::programs::loaded_programs();
    programs.filter_map(|program| Some(program.ok()?.id())).collect()
}
