//! The machine that is measured on: what it is, and how much others wanted of it meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use crate::results::Round;

/// What a reader has to know of it, as names and words. What it does not tell is left out.
#[must_use]
pub fn description() -> BTreeMap<String, String> {
    let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let of_list = |path: &str, name: &str| -> Option<String> {
        let text = read(path)?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let processors = std::thread::available_parallelism()
        .ok()
        .map(|count| count.to_string());
    let told = [
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("processor", of_list("/proc/cpuinfo", "model name")),
        ("processors", processors),
        ("memory", of_list("/proc/meminfo", "MemTotal")),
        ("hypervisor", read("/sys/hypervisor/type")),
        ("load before", read("/proc/loadavg")),
        // New namespaces have it, too: a namespace may choose only what the machine allows to all.
        (
            "tcp_congestion_control",
            read("/proc/sys/net/ipv4/tcp_congestion_control"),
        ),
        ("bpf_jit_enable", read("/proc/sys/net/core/bpf_jit_enable")),
    ];
    let there = told
        .into_iter()
        .filter_map(|(name, told)| Some((name.to_owned(), told?)));
    there.collect()
}

/// How much was wanted of the processors until now.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    at: Instant,
    waited: Duration,
    stolen: Duration,
}

impl Wanted {
    /// As it stands. A kernel without pressure figures has nobody wait.
    #[must_use]
    pub fn now() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            at: Instant::now(),
            waited: waited(&read("/proc/pressure/cpu")).unwrap_or_default(),
            stolen: stolen(&read("/proc/stat")).unwrap_or_default(),
        }
    }

    /// What it was like since.
    #[must_use]
    pub fn until(&self, later: &Self) -> Round {
        let whole = later.at.saturating_duration_since(self.at).as_secs_f64();
        let share = |before: Duration, after: Duration| match whole > 0.0 {
            true => after.saturating_sub(before).as_secs_f64() / whole,
            false => 0.0,
        };
        Round {
            pressure: share(self.waited, later.waited),
            steal: share(self.stolen, later.stolen),
        }
    }
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=123`, in microseconds (Documentation/accounting/psi.rst).
fn waited(text: &str) -> Option<Duration> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    let total = some.split("total=").nth(1)?;
    Some(Duration::from_micros(total.trim().parse().ok()?))
}

/// The eighth number of the first line, in hundredths of a second, of all processors (proc_stat(5)).
fn stolen(text: &str) -> Option<Duration> {
    let all = text.lines().next()?;
    let steal = all.split_ascii_whitespace().nth(8)?;
    Some(Duration::from_millis(steal.parse::<u64>().ok()? * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_and_steal_are_shares_of_the_time_between() {
        let psi = "some avg10=1.50 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 total=9\n";
        assert_eq!(waited(psi), Some(Duration::from_millis(2_500)));
        assert_eq!(waited(""), None);
        let stat = "cpu  10 20 30 40 50 60 70 85 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(stolen(stat), Some(Duration::from_millis(850)));
        let at = Instant::now();
        let before = Wanted {
            at,
            waited: Duration::from_secs(1),
            stolen: Duration::ZERO,
        };
        let after = Wanted {
            at: at + Duration::from_secs(10),
            waited: Duration::from_secs(3),
            stolen: Duration::from_secs(1),
        };
        let round = before.until(&after);
        assert_eq!((round.pressure, round.steal), (0.2, 0.1));
        assert_eq!(before.until(&before).pressure, 0.0);
    }
}
