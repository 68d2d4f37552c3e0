//! What this process takes of the machine, under the names that Prometheus' own libraries give it.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

use crate::open_files;

/// One metric of a process; it has no labels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// `process_cpu_seconds_total` and its like.
    pub name: &'static str,
    /// `counter` or `gauge`.
    pub kind: &'static str,
    /// What it is.
    pub help: &'static str,
    /// At this moment: seconds, bytes, or how many.
    pub value: f64,
}

/// All of them; none where `/proc` cannot be read.
#[must_use]
pub fn metrics() -> Vec<Metric> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let open_files = fs::read_dir("/proc/self/fd").map(Iterator::count);
    let (Some(usage), Ok(open_files)) = (
        Usage::parse(&read("/proc/self/stat"), &read("/proc/stat")),
        open_files,
    ) else {
        return Vec::new();
    };
    let unit = |variable| sysconf(variable).ok().flatten().unwrap_or(1) as f64;
    let (tick, page) = (1.0 / unit(SysconfVar::CLK_TCK), unit(SysconfVar::PAGE_SIZE));
    let metric = |name, kind, help, value| Metric {
        name,
        kind,
        help,
        value,
    };
    vec![
        metric(
            "process_cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            usage.cpu_ticks as f64 * tick,
        ),
        metric(
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory size in bytes.",
            usage.resident_pages as f64 * page,
        ),
        metric(
            "process_virtual_memory_bytes",
            "gauge",
            "Virtual memory size in bytes.",
            usage.virtual_bytes as f64,
        ),
        metric(
            "process_open_fds",
            "gauge",
            "Number of open file descriptors.",
            open_files as f64,
        ),
        metric(
            "process_max_fds",
            "gauge",
            "Maximum number of open file descriptors.",
            open_files::limit() as f64,
        ),
        metric(
            "process_start_time_seconds",
            "gauge",
            "Start time of the process since unix epoch in seconds.",
            usage.boot_seconds as f64 + usage.start_ticks as f64 * tick,
        ),
    ]
}

/// What the kernel says, in its own units.
#[derive(Debug, PartialEq, Eq)]
struct Usage {
    /// Of user and system.
    cpu_ticks: u64,
    /// After boot.
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
    /// After 1970.
    boot_seconds: u64,
}

impl Usage {
    /// Of `/proc/PID/stat` and `/proc/stat` (proc_pid_stat(5), proc_stat(5)). The program's name, in parentheses, may
    /// hold spaces and parentheses.
    fn parse(of_process: &str, of_machine: &str) -> Option<Self> {
        let (_, fields) = of_process.rsplit_once(')')?;
        // The manual counts from 1, and two fields stand before.
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let boot = of_machine.lines().find_map(|line| line.strip_prefix("btime "))?;
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
            boot_seconds: boot.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_a_name_with_spaces_and_parentheses() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 2000 0 12 0 300 45 0 0 20 0 9 0 81234 104857600 2560 \
                    18446744073709551615 1 1 0 0 0 0 0 4096 17642 0 0 0 17 1 0 0 0 0 0\n";
        let machine = "cpu  1 2 3\nbtime 1700000000\nprocesses 9\n";
        let expected = Usage {
            cpu_ticks: 345,
            start_ticks: 81_234,
            virtual_bytes: 104_857_600,
            resident_pages: 2560,
            boot_seconds: 1_700_000_000,
        };
        assert_eq!(Usage::parse(stat, machine), Some(expected));
        assert_eq!(Usage::parse(stat, "cpu  1 2 3\n"), None);
        assert_eq!(Usage::parse("7 (cut) S 1", machine), None);
    }

    #[test]
    fn this_process_has_started_and_holds_memory_and_files() {
        let metrics = metrics();
        let value = |name: &str| {
            metrics
                .iter()
                .find(|metric| metric.name == name)
                .map(|metric| metric.value)
        };
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("past 1970");
        let started = value("process_start_time_seconds").expect("told");
        assert!(started > 1e9 && started <= now.as_secs_f64() + 1.0, "{started}");
        let resident = value("process_resident_memory_bytes").expect("told");
        let reserved = value("process_virtual_memory_bytes").expect("told");
        assert!(resident > 1e5 && resident < reserved, "{resident} of {reserved}");
        let open = value("process_open_fds").expect("told");
        assert!(open >= 3.0 && Some(open) <= value("process_max_fds"), "{open}");
    }
}
