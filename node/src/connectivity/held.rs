//! Who put a namespace up: what a killed run left is told from what another run still needs.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::objects::HOLDER;

/// No run takes longer, since pods are waited for no longer than [`LONGEST_WAIT`]: one of another machine that is older
/// was killed.
const LONGEST_RUN: SignedDuration = SignedDuration::from_mins(15);

/// How long pods may be waited for, at the most.
pub const LONGEST_WAIT: Duration = Duration::from_mins(10);

/// A process: its number means something on one boot of one machine, in one namespace of processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    boot: String,
    pids: u64,
    pid: u32,
    /// In clock ticks since the boot (`proc_pid_stat(5)`, field 22).
    started: u64,
}

impl Holder {
    /// This process.
    ///
    /// # Errors
    /// When `/proc` does not tell.
    pub fn own() -> std::io::Result<Self> {
        let pid = std::process::id();
        Ok(Self {
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id")?
                .trim()
                .to_owned(),
            pids: fs::metadata("/proc/self/ns/pid")?.ino(),
            pid,
            started: started(pid).unwrap_or_default(),
        })
    }

    /// As an annotation.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{} {} {} {}", self.boot, self.pids, self.pid, self.started)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let holder = Self {
            boot: words.next()?.to_owned(),
            pids: words.next()?.parse().ok()?,
            pid: words.next()?.parse().ok()?,
            started: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(holder)
    }

    /// Whether nobody needs a namespace any more. `self` is who asks.
    #[must_use]
    pub fn finds_left(&self, namespace: &Value, now: Timestamp) -> bool {
        let metadata = &namespace["metadata"];
        let holder = metadata["annotations"][HOLDER].as_str().and_then(Self::parse);
        match holder {
            Some(holder) if (&holder.boot, holder.pids) == (&self.boot, self.pids) => {
                started(holder.pid) != Some(holder.started)
            }
            _ => {
                let made = metadata["creationTimestamp"].as_str();
                let made = made.and_then(|text| text.parse::<Timestamp>().ok());
                made.is_some_and(|made| now.duration_since(made) > LONGEST_RUN)
            }
        }
    }
}

/// When a process began; none where it has ended, also if nobody has asked yet how it ended (a zombie).
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name may have spaces and brackets of its own; field 3 follows its last one.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    fields.next().filter(|state| !matches!(*state, "Z" | "X"))?;
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_killed_process_put_up_is_left_before_anybody_asks_how_it_ended() {
        let own = Holder::own().expect("proc");
        let mut child = Command::new("sleep").arg("60").spawn().expect("started");
        let holder = Holder {
            pid: child.id(),
            started: started(child.id()).expect("it runs"),
            ..own.clone()
        };
        let metadata = json!({"annotations": {HOLDER: holder.text()}});
        let namespace = json!({ "metadata": metadata });
        let is_left = || own.finds_left(&namespace, Timestamp::now());
        assert!(!is_left());
        child.kill().expect("it ran");
        // It stays in the table of processes until it is waited for.
        ::tests::wait::until_value("its end", Duration::from_secs(20), is_left, |left| *left);
        child.wait().expect("it ended");
    }

    #[test]
    fn what_a_process_that_is_gone_put_up_is_left_and_what_another_machine_did_once_it_is_old() {
        let own = Holder::own().expect("proc");
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a time");
        let is_left = |holder: &str, made: &str| {
            let metadata = json!({"annotations": {HOLDER: holder}, "creationTimestamp": made});
            own.finds_left(&json!({ "metadata": metadata }), now)
        };
        let (fresh, old) = ("2026-01-01T11:59:00Z", "2026-01-01T11:00:00Z");
        let ended = Holder {
            started: own.started + 1,
            ..own.clone()
        };
        let elsewhere = Holder {
            boot: "another".to_owned(),
            ..own.clone()
        };
        let rows = [
            (own.text(), old, false),
            (ended.text(), fresh, true),
            (elsewhere.text(), fresh, false),
            (elsewhere.text(), old, true),
            ("what nobody wrote".to_owned(), fresh, false),
            ("what nobody wrote".to_owned(), old, true),
        ];
        for (holder, made, left) in rows {
            assert_eq!(is_left(&holder, made), left, "{holder}, {made}");
        }
        assert_eq!(Holder::parse(&own.text()), Some(own));
    }
}
