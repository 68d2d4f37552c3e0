//! What a node has before a fault and after it: what differs was leaked, or lost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::{self, Output, Place};
use crate::topology::Host;

/// Which fields of a line change by themselves.
const RESTLESS: [&str; 5] = ["expires", "age", "cache", "packets", "bytes"];

/// A snapshot: lines by what they are of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger(BTreeMap<&'static str, BTreeSet<String>>);

impl Ledger {
    /// Links, addresses, routes, rules, nftables and BPF pins of a node.
    ///
    /// # Errors
    /// When a tool is missing.
    pub fn of(node: &Place, pins: &Path) -> Result<Self> {
        let shown = [
            ("links", "ip", &["-o", "link", "show"][..]),
            ("addresses", "ip", &["-o", "address", "show"]),
            ("routes", "ip", &["route", "show", "table", "all"]),
            ("routes of IPv6", "ip", &["-6", "route", "show", "table", "all"]),
            ("rules", "ip", &["rule", "show"]),
        ];
        let mut entries = BTreeMap::new();
        for (what, program, arguments) in shown {
            let output = run(node, program, arguments)?;
            ensure!(
                output.status.success(),
                "{program} {arguments:?}: {}",
                output.stderr
            );
            entries.insert(what, output.stdout.lines().map(without_restless).collect());
        }
        entries.insert("nftables", rules(node)?);
        entries.insert("pins", files_below(pins)?);
        Ok(Self(entries))
    }

    /// What was not there before, with `+`, and what is not there any more, with `-`. Empty when nothing leaked.
    #[must_use]
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let nothing = BTreeSet::new();
        let mut changes = Vec::new();
        for (what, now) in &self.0 {
            let then = before.0.get(what).unwrap_or(&nothing);
            changes.extend(now.difference(then).map(|line| format!("+ {what}: {line}")));
            changes.extend(then.difference(now).map(|line| format!("- {what}: {line}")));
        }
        changes
    }
}

/// The parts of all nftables tables of a host: elements are printed in the order of their hashes, so they are taken
/// apart, and each keeps the table and object that it is in.
///
/// # Errors
/// When `nft` is missing.
pub fn rules(host: &Place) -> Result<BTreeSet<String>> {
    let output = run(host, "nft", &["list", "ruleset"])?;
    ensure!(output.status.success(), "nft list ruleset: {}", output.stderr);
    let (mut table, mut object) = ("", "");
    let mut parts = BTreeSet::new();
    for line in output.stdout.lines() {
        let opened = line.trim().strip_suffix(" {");
        match opened {
            Some(opened) if !line.starts_with('\t') => (table, object) = (opened, ""),
            Some(opened) if !line.starts_with("\t\t") => object = opened,
            _ => {}
        }
        for part in line.split(',') {
            let part = part.replace("elements =", "");
            let part = part.trim_matches(|c: char| c.is_whitespace() || "{}".contains(c));
            // Clients of Services with affinity come and go.
            if !part.is_empty() && !part.contains("expires") {
                let part = without_restless(part);
                parts.insert(format!("{table} | {object} | {part}"));
            }
        }
    }
    Ok(parts)
}

fn run(place: &Place, program: &str, arguments: &[&str]) -> Result<Output> {
    process::run_in(place, Command::new(program).args(arguments), b"")
}

fn without_restless(line: &str) -> String {
    let mut words = Vec::new();
    let mut line = line.split_whitespace();
    while let Some(word) = line.next() {
        if RESTLESS.contains(&word) {
            line.next();
        } else {
            words.push(word);
        }
    }
    words.join(" ")
}

fn files_below(directory: &Path) -> Result<BTreeSet<String>> {
    let mut files = BTreeSet::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue; // nobody pinned anything
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            }
            files.insert(entry.path().display().to_string());
        }
    }
    Ok(files)
}

/// Flows that a host tracks.
///
/// # Errors
/// When the kernel does not track any.
pub fn tracked_flows(host: &Host) -> Result<u64> {
    let text = host.run(|| netlink::sysctl::read("net/netfilter/nf_conntrack_count"))??;
    text.trim().parse().context("a count")
}

/// Begins anew with the most memory that a process ever had.
///
/// # Errors
/// When it is not ours.
pub fn forget_peak(pid: u32) -> Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("clear_refs")
}

/// What a process holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Open files, by what they are: `socket`, `anon_inode:bpf-map`, a path.
    pub files: BTreeMap<String, usize>,
    /// Threads.
    pub threads: usize,
    /// Resident memory, in KiB.
    pub resident_kib: u64,
    /// The most of it since its start, or since [`forget_peak`].
    pub peak_kib: u64,
    /// Processor time so far, in ticks of 10 ms.
    pub cpu_ticks: u64,
}

impl Holdings {
    /// Of a process that runs.
    ///
    /// # Errors
    /// When it does not.
    pub fn of(pid: u32) -> Result<Self> {
        let directory = format!("/proc/{pid}");
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(format!("{directory}/fd"))? {
            // One that was closed meanwhile is not held.
            let Ok(target) = std::fs::read_link(entry?.path()) else {
                continue;
            };
            let target = target.display().to_string();
            let what = target.split_once(":[").map_or(target.as_str(), |(what, _)| what);
            *files.entry(what.to_owned()).or_default() += 1;
        }
        let threads = std::fs::read_dir(format!("{directory}/task"))?.count();
        let status = std::fs::read_to_string(format!("{directory}/status"))?;
        let kib = |field: &'static str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let number = line.and_then(|line| line.split_whitespace().next());
            anyhow::Ok(number.context(field)?.parse()?)
        };
        let stat = std::fs::read_to_string(format!("{directory}/stat"))?;
        // proc(5): the name ends with the last parenthesis; utime and stime are the 12th and 13th field behind it.
        let (_, fields) = stat.rsplit_once(") ").context("a name in parentheses")?;
        let times = fields.split(' ').skip(11).take(2);
        Ok(Self {
            files,
            threads,
            resident_kib: kib("VmRSS:")?,
            peak_kib: kib("VmHWM:")?,
            cpu_ticks: times.filter_map(|time| time.parse::<u64>().ok()).sum(),
        })
    }

    /// How many files are open.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.files.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_and_what_went_is_told_and_what_ages_is_not() {
        let ledger = |lines: &[&str]| {
            Ledger(
                [(
                    "routes",
                    lines.iter().map(|line| without_restless(line)).collect(),
                )]
                .into(),
            )
        };
        let before = ledger(&["default via 172.30.8.1", "fe80::/64 expires 20sec"]);
        let after = ledger(&["default via 172.30.8.2", "fe80::/64 expires 10sec"]);
        assert_eq!(
            after.changes_since(&before),
            [
                "+ routes: default via 172.30.8.2",
                "- routes: default via 172.30.8.1"
            ]
        );
        assert!(after.changes_since(&after).is_empty());
    }

    #[test]
    fn a_process_holds_what_it_opened() {
        let before = Holdings::of(std::process::id()).expect("this process runs");
        let _file = std::fs::File::open("/proc/self/maps").expect("readable");
        let after = Holdings::of(std::process::id()).expect("this process runs");
        let count = |holdings: &Holdings| {
            let own = format!("/proc/{}/maps", std::process::id());
            holdings.files.get(&own).copied().unwrap_or_default()
        };
        assert_eq!(count(&after), count(&before) + 1);
        assert!(after.threads >= 1 && after.resident_kib > 0);
    }
}
