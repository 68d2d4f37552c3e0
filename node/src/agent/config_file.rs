//! The configuration file while the agent runs: a change is taken where that can be done without a restart, and told
//! where not.
//!
//! ```text
//! file ─ every second: other text? ─► checked ─► what may change (config::live) ─► watch channel ─► parts
//!                                        └ refused: the former one stays       └ the rest: "needs a restart"
//! ```
//!
//! The file is looked at by its path, so that a ConfigMap's volume, which puts a new directory behind the link
//! `..data`, is seen like a file that is written or renamed in place.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::supervisor::Part;
use crate::config::{self, Config, ConfigError};
use crate::logs;
use crate::metrics::{Counters, Page, labels};
use crate::telemetry::Traces;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Where the configuration is, and what was given beside it.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// The file.
    pub path: PathBuf,
    /// The node's name, in place of the file's.
    pub node_name: Option<String>,
}

impl ConfigFile {
    /// Reads and checks it.
    ///
    /// # Errors
    /// [`ConfigError`] tells every problem.
    pub fn load(&self) -> Result<(Config, Fingerprint), ConfigError> {
        let text = config::read(&self.path)?;
        let config = config::parse(&self.path, &text, self.node_name.as_deref())?;
        Ok((config, Fingerprint::of(&text)))
    }

    fn text(&self) -> Result<String, String> {
        config::read(&self.path).map_err(|error| error.to_string())
    }
}

/// What an agent starts with.
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Of the text that it was in.
    pub fingerprint: Fingerprint,
    /// Where that was.
    pub file: ConfigFile,
    /// What is logged.
    pub log_level: logs::Level,
    /// Spans for the collector, where there is one.
    pub traces: Option<Traces>,
}

/// A text, to be told from others: the first 16 hexadecimal digits of its SHA-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// Of a text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let digest = Sha256::digest(text.as_bytes());
        Self(digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }
}

/// How far a running agent follows its file.
#[derive(Debug)]
pub struct ConfigStatus {
    state: Mutex<State>,
    changes: Counters,
}

#[derive(Debug)]
struct State {
    /// What was looked at last; none where it could not be read.
    seen: Option<Fingerprint>,
    /// What the agent last took.
    taken: Fingerprint,
    /// Why what is there now is not used.
    refused: Option<String>,
    /// Keys of what was taken that need a restart.
    waiting: Vec<String>,
}

impl ConfigStatus {
    /// Of an agent that was started with that.
    #[must_use]
    pub fn new(taken: Fingerprint) -> Self {
        let state = State {
            seen: Some(taken.clone()),
            taken,
            refused: None,
            waiting: Vec::new(),
        };
        Self {
            state: Mutex::new(state),
            changes: Counters::default(),
        }
    }

    /// Keys that need a restart.
    #[must_use]
    pub fn waiting(&self) -> Vec<String> {
        self.state().waiting.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, result: &str) {
        self.changes.add(labels(&[("result", result)]));
    }

    /// Its metrics.
    pub fn write(&self, page: &mut Page) {
        page.counted(
            "causeway_config_reloads_total",
            "Changes of the configuration file: taken, taken but for keys that need a restart, or refused.",
            &self.changes,
        );
        let state = self.state();
        page.gauges(
            "causeway_config_info",
            "1 for the configuration that the agent last took, by the beginning of its SHA-256.",
            [(labels(&[("sha256", &state.taken.0)]), 1.0)],
        );
        page.gauges(
            "causeway_config_refused",
            "1 while the configuration file cannot be used as it is, and the one before it is in effect.",
            [(String::new(), if state.refused.is_some() { 1.0 } else { 0.0 })],
        );
        page.gauges(
            "causeway_config_keys_waiting_for_restart",
            "Keys of the configuration that are in effect only after a restart.",
            [(String::new(), state.waiting.len() as f64)],
        );
    }
}

/// What the part is started with.
#[derive(Clone)]
pub struct Following {
    /// The file.
    pub file: ConfigFile,
    /// What the agent was started with, but for what was taken since.
    pub config: watch::Sender<Arc<Config>>,
    /// Where it is told how far it has come.
    pub status: Arc<ConfigStatus>,
    /// What is logged.
    pub log_level: logs::Level,
}

impl Following {
    /// Looks at the file until shutdown.
    ///
    /// # Errors
    /// When the thread that reads it breaks.
    pub async fn follow(self, part: Part, shutdown: CancellationToken) -> anyhow::Result<()> {
        loop {
            let file = self.file.clone();
            let text = tokio::task::spawn_blocking(move || file.text()).await?;
            self.look(text);
            match self.status.state().refused.clone() {
                None => part.works(),
                Some(reason) => part.fails(&reason),
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Takes what is there, if it is another text than at the last look.
    fn look(&self, text: Result<String, String>) {
        let text = match text {
            Ok(text) => text,
            Err(reason) => return self.refuse(reason, None),
        };
        let fingerprint = Fingerprint::of(&text);
        if self.status.state().seen.as_ref() == Some(&fingerprint) {
            return;
        }
        match config::parse(&self.file.path, &text, self.file.node_name.as_deref()) {
            Ok(config) => self.take(&config, fingerprint),
            Err(error) => self.refuse(error.to_string(), Some(fingerprint)),
        }
    }

    fn refuse(&self, reason: String, fingerprint: Option<Fingerprint>) {
        let mut state = self.status.state();
        if state.refused.as_ref() != Some(&reason) {
            self.status.count("refused");
        }
        state.seen = fingerprint;
        state.refused = Some(reason);
    }

    fn take(&self, newer: &Config, fingerprint: Fingerprint) {
        let running = self.config.borrow().clone();
        let applied = running.with_live_parts_of(newer);
        let taken = running.differing_keys(&applied);
        let waiting = applied.differing_keys(newer);
        if !taken.is_empty() {
            tracing::info!(keys = taken.join(", "), "configuration taken without a restart");
            self.log_level.set(applied.logging.level);
            self.config.send_replace(Arc::new(applied));
        }
        if waiting.is_empty() {
            self.status.count("taken");
        } else {
            tracing::warn!(
                keys = waiting.join(", "),
                "the changed configuration needs a restart"
            );
            self.status.count("needs_restart");
        }
        let mut state = self.status.state();
        *state = State {
            seen: Some(fingerprint.clone()),
            taken: fingerprint,
            refused: None,
            waiting,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "{nodeName: n, proxy: {datapath: nftables, podNetwork: 10.1.0.0/16}}";

    fn following() -> Following {
        let file = ConfigFile {
            path: "/c/node.yaml".into(),
            node_name: None,
        };
        let config = config::parse(&file.path, FIRST, None).expect("valid");
        Following {
            file,
            config: watch::channel(Arc::new(config)).0,
            status: Arc::new(ConfigStatus::new(Fingerprint::of(FIRST))),
            log_level: logs::Level::fixed(),
        }
    }

    /// Metrics but for their heads, and the fingerprint.
    fn told(status: &ConfigStatus) -> String {
        let mut page = Page::default();
        status.write(&mut page);
        let text = page.into_text();
        let lines = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.contains("sha256"));
        let short = lines.map(|line| line.trim_start_matches("causeway_config_"));
        short.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn each_other_text_is_taken_told_or_refused_once() {
        let following = following();
        let looked = |text: Result<&str, &str>| {
            following.look(text.map(str::to_owned).map_err(str::to_owned));
            told(&following.status)
        };
        let nothing = "refused 0, keys_waiting_for_restart 0";
        assert_eq!(looked(Ok(FIRST)), nothing);
        let live = FIRST.replace("}}", ", masqueradeAll: true}}");
        let one = format!("reloads_total{{result=\"taken\"}} 1, {nothing}");
        assert_eq!(looked(Ok(&live)), one);
        assert_eq!(looked(Ok(&live)), one, "it is no other text");
        assert!(following.config.borrow().proxy.masquerade_all);
        let two = format!("reloads_total{{result=\"taken\"}} 2, {nothing}");
        assert_eq!(
            looked(Ok(&format!("{live}\n# a comment"))),
            two,
            "nothing is to be done"
        );

        let refused = |count, taken| {
            format!(
                "reloads_total{{result=\"refused\"}} {count}, reloads_total{{result=\"taken\"}} {taken}, \
                 refused 1, keys_waiting_for_restart 0"
            )
        };
        assert_eq!(looked(Ok("proxy: 7")), refused(1, 2));
        assert_eq!(looked(Ok("proxy: 7")), refused(1, 2));
        let reason = following.status.state().refused.clone().expect("it is refused");
        assert!(reason.starts_with("/c/node.yaml: proxy: "), "{reason}");
        assert_eq!(looked(Err("no such file")), refused(2, 2));
        assert_eq!(looked(Err("no such file")), refused(2, 2));
        assert!(
            following.config.borrow().proxy.masquerade_all,
            "the former one stays"
        );

        let other = live
            .replace("nftables", "iptables")
            .replace("masqueradeAll: true", "externalIPs: true");
        let told = looked(Ok(&other));
        assert!(
            told.contains("{result=\"needs_restart\"} 1")
                && told.ends_with("refused 0, keys_waiting_for_restart 1"),
            "{told}"
        );
        assert_eq!(following.status.waiting(), ["proxy.datapath"]);
        let config = following.config.borrow().clone();
        assert!(config.proxy.external_ips && !config.proxy.masquerade_all);
        assert_eq!(config.proxy.datapath, config::Datapath::Nftables);
        assert!(looked(Ok(FIRST)).ends_with(nothing), "put back");
    }
}
