//! The kernel's limits of connection tracking, which every flow to a Service goes through.

use std::time::Duration;

use model::with_causes;
use netlink::sysctl;
use tokio_util::sync::CancellationToken;

use super::supervisor::Part;
use crate::backoff::Backoff;
use crate::config::Conntrack;

/// Between two looks.
const AUDIT: Duration = Duration::from_secs(300);

/// Delays before what failed is tried again: the settings appear with the first rule that tracks connections.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = AUDIT;

/// `nf_conntrack_max` is not raised beyond it, whatever the number of CPUs.
const MOST: u64 = 1_048_576;

/// Flows for each hash bucket, at most: the kernel's own choice for a table of default size
/// (`nf_conntrack_init_start`) is less.
const FLOWS_PER_BUCKET: u64 = 4;

/// A value that a setting shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    /// Below `/proc/sys/net/netfilter`.
    name: &'static str,
    value: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// Somebody who set more knows why.
    AtLeast(u64),
    Exactly(u64),
}

impl Value {
    /// What is to be written over a value that is there.
    fn over(self, present: u64) -> Option<u64> {
        match self {
            Self::AtLeast(least) => (present < least).then_some(least),
            Self::Exactly(value) => (present != value).then_some(value),
        }
    }
}

/// What the configuration wants on a node with that many CPUs.
fn wanted(conntrack: &Conntrack, cpus: u64) -> Vec<Wanted> {
    let Conntrack {
        max_per_core,
        min,
        tcp_established_timeout,
        tcp_close_wait_timeout,
    } = conntrack;
    let mut wanted = Vec::new();
    if *max_per_core > 0 {
        let flows = u64::from(*max_per_core).saturating_mul(cpus).min(MOST);
        let flows = flows.max(u64::from(*min).min(MOST));
        wanted.push(Wanted {
            name: "nf_conntrack_max",
            value: Value::AtLeast(flows),
        });
        wanted.push(Wanted {
            name: "nf_conntrack_buckets",
            value: Value::AtLeast(flows / FLOWS_PER_BUCKET),
        });
    }
    let timeouts = [
        ("nf_conntrack_tcp_timeout_established", tcp_established_timeout),
        ("nf_conntrack_tcp_timeout_close_wait", tcp_close_wait_timeout),
    ];
    let timeouts = timeouts.into_iter().filter(|(_, timeout)| timeout.as_secs() > 0);
    wanted.extend(timeouts.map(|(name, timeout)| Wanted {
        name,
        value: Value::Exactly(timeout.as_secs()),
    }));
    wanted
}

/// Where settings are.
trait Settings {
    fn read(&self, name: &str) -> Result<String, String>;
    fn write(&mut self, name: &str, value: &str) -> Result<(), String>;
}

/// Those of this process's network namespace.
struct Kernel;

impl Settings for Kernel {
    fn read(&self, name: &str) -> Result<String, String> {
        sysctl::read(&format!("net/netfilter/{name}")).map_err(|error| with_causes(&error))
    }

    fn write(&mut self, name: &str, value: &str) -> Result<(), String> {
        sysctl::write(&format!("net/netfilter/{name}"), value).map_err(|error| with_causes(&error))
    }
}

/// Writes what differs, and returns every failure.
fn apply(wanted: &[Wanted], settings: &mut impl Settings) -> Vec<String> {
    let results = wanted.iter().map(|wanted| apply_one(*wanted, settings));
    results.filter_map(Result::err).collect()
}

fn apply_one(wanted: Wanted, settings: &mut impl Settings) -> Result<(), String> {
    let Wanted { name, value } = wanted;
    let text = settings.read(name)?;
    let present = text
        .trim()
        .parse()
        .map_err(|_| format!("{name} is {text:?}, which is no number"))?;
    let Some(value) = value.over(present) else {
        return Ok(());
    };
    settings.write(name, &value.to_string())?;
    tracing::info!(setting = name, before = present, value, "connection tracking set");
    Ok(())
}

/// Keeps the settings until shutdown.
///
/// # Errors
/// When the thread that writes them breaks.
pub async fn keep(conntrack: Conntrack, part: Part, shutdown: CancellationToken) -> anyhow::Result<()> {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
    let wanted = wanted(&conntrack, cpus);
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    loop {
        let wanted = wanted.clone();
        let failures = tokio::task::spawn_blocking(move || apply(&wanted, &mut Kernel)).await?;
        let pause = if failures.is_empty() {
            part.works();
            backoff.reset();
            AUDIT
        } else {
            part.fails(&failures.join("; "));
            backoff.next_delay()
        };
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Settings in memory; some cannot be written.
    struct Fake {
        values: BTreeMap<&'static str, String>,
        read_only: Vec<&'static str>,
        written: Vec<String>,
    }

    impl Fake {
        fn new(values: &[(&'static str, &str)], read_only: &[&'static str]) -> Self {
            let values = values.iter().map(|(name, value)| (*name, (*value).to_owned()));
            Self {
                values: values.collect(),
                read_only: read_only.to_vec(),
                written: Vec::new(),
            }
        }
    }

    impl Settings for Fake {
        fn read(&self, name: &str) -> Result<String, String> {
            self.values.get(name).cloned().ok_or(format!("no {name}"))
        }

        fn write(&mut self, name: &str, value: &str) -> Result<(), String> {
            if self.read_only.contains(&name) {
                return Err(format!("{name} is read-only"));
            }
            self.written.push(format!("{name} = {value}"));
            Ok(())
        }
    }

    const KERNELS: [(&str, &str); 4] = [
        ("nf_conntrack_max", "65536"),
        ("nf_conntrack_buckets", "65536"),
        ("nf_conntrack_tcp_timeout_established", "432000"),
        ("nf_conntrack_tcp_timeout_close_wait", "60"),
    ];

    #[test]
    fn the_limit_grows_with_the_cpus_between_the_least_and_the_most() {
        let config = Conntrack::default();
        let limit = |config: &Conntrack, cpus| wanted(config, cpus).first().map(|wanted| wanted.value);
        for (cpus, expected) in [(1, 131_072), (4, 131_072), (8, 262_144), (64, 1_048_576)] {
            assert_eq!(
                limit(&config, cpus),
                Some(Value::AtLeast(expected)),
                "{cpus} CPUs"
            );
        }
        let greedy = Conntrack {
            min: u32::MAX,
            ..config
        };
        assert_eq!(limit(&greedy, 1), Some(Value::AtLeast(MOST)));
    }

    #[test]
    fn only_what_differs_is_written_and_limits_are_never_lowered() {
        let wanted = wanted(&Conntrack::default(), 16);
        let mut fresh = Fake::new(&KERNELS, &[]);
        assert_eq!(apply(&wanted, &mut fresh), Vec::<String>::new());
        let expected = [
            "nf_conntrack_max = 524288",
            "nf_conntrack_buckets = 131072",
            "nf_conntrack_tcp_timeout_established = 86400",
            "nf_conntrack_tcp_timeout_close_wait = 3600",
        ];
        assert_eq!(fresh.written, expected);

        let settled = [
            ("nf_conntrack_max", "1000000"),
            ("nf_conntrack_buckets", "262144"),
            ("nf_conntrack_tcp_timeout_established", "86400"),
            ("nf_conntrack_tcp_timeout_close_wait", "3600"),
        ];
        let mut settled = Fake::new(&settled, &[]);
        assert_eq!(apply(&wanted, &mut settled), Vec::<String>::new());
        assert_eq!(settled.written, Vec::<String>::new());
    }

    #[test]
    fn a_setting_that_cannot_be_read_or_written_stops_no_other() {
        let mut values = KERNELS;
        values[0].1 = "many";
        let mut fake = Fake::new(
            values.get(..3).expect("there are four"),
            &["nf_conntrack_buckets"],
        );
        let failures = apply(&wanted(&Conntrack::default(), 16), &mut fake);
        let expected = [
            "nf_conntrack_max is \"many\", which is no number",
            "nf_conntrack_buckets is read-only",
            "no nf_conntrack_tcp_timeout_close_wait",
        ];
        assert_eq!(failures, expected);
        assert_eq!(fake.written, ["nf_conntrack_tcp_timeout_established = 86400"]);
    }

    #[test]
    fn nothing_is_set_that_is_to_be_left_as_it_is() {
        let config = Conntrack {
            max_per_core: 0,
            min: 131_072,
            tcp_established_timeout: Duration::ZERO,
            tcp_close_wait_timeout: Duration::ZERO,
        };
        assert_eq!(wanted(&config, 64), []);
    }
}
