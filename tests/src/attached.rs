//! The BPF programs of a process, by their numbers.

use std::collections::BTreeSet;

/// Those that a process holds by descriptors, attached or not.
#[must_use]
pub fn programs_of(pid: u32) -> BTreeSet<u32> {
    descriptors(pid).filter_map(|text| program(&text)).collect()
}

/// Those that a process has attached, by links that it holds.
#[must_use]
pub fn attached_by(pid: u32) -> BTreeSet<u32> {
    let links = descriptors(pid).filter(|text| text.contains("link_type:"));
    links.filter_map(|text| program(&text)).collect()
}

/// The program that a descriptor is of.
fn program(text: &str) -> Option<u32> {
    let line = text.lines().find_map(|line| line.strip_prefix("prog_id:"))?;
    line.trim().parse().ok()
}

/// What the kernel tells of a process's descriptors.
fn descriptors(pid: u32) -> impl Iterator<Item = String> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fdinfo"));
    let entries = descriptors.into_iter().flatten().flatten();
    entries.filter_map(|entry| std::fs::read_to_string(entry.path()).ok())
}
