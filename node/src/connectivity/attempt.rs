//! Cells are tried: one command in each pod that asks, for all that it asks, and again for what failed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use futures::future::join_all;
use tokio::time::sleep;

use super::cells::Cell;
use super::objects::{self, Role};
use super::stage::Stage;
use crate::watch::Objects;

/// The program of the image.
const PROGRAM: &str = "/testserver";

/// An answer that comes later does not come.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a command may take besides.
const COMMAND: Duration = Duration::from_secs(10);

/// So many are tried by one command.
const AT_ONCE: usize = 64;

/// What is new is served within this time; what fails until then is tried again.
const SETTLE: Duration = Duration::from_secs(5);

/// Between two rounds.
const BETWEEN: Duration = Duration::from_millis(250);

/// How the reason begins where the command could not be run: that says nothing of the network.
const NOT_ASKED: &str = "could not ask: ";

/// What came of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// How often it was tried.
    pub attempts: u32,
    /// How long the answer took, in microseconds; or why there is none.
    pub outcome: Result<u64, String>,
}

/// Asks in the pods of a stage.
pub struct Asker<'s> {
    objects: &'s Objects,
    namespace: &'s str,
    image: &'s str,
}

impl<'s> Asker<'s> {
    /// In these pods.
    #[must_use]
    pub fn of(objects: &'s Objects, stage: &'s Stage<'_>, image: &'s str) -> Self {
        Self {
            objects,
            namespace: &stage.namespace,
            image,
        }
    }

    /// Tries all cells, and again those that fail, until what is new must be served.
    ///
    /// # Errors
    /// When the image has no program that asks, or nobody can be asked.
    pub async fn settle(&self, cells: &[Cell]) -> anyhow::Result<Vec<Tried>> {
        let began = Instant::now();
        let mut tried: Vec<Tried> = Vec::with_capacity(cells.len());
        tried.resize(
            cells.len(),
            Tried {
                attempts: 0,
                outcome: Err("not tried".to_owned()),
            },
        );
        loop {
            let is_late = began.elapsed() >= SETTLE;
            let open: Vec<usize> = (0..cells.len())
                .filter(|cell| tried[*cell].outcome.is_err())
                .collect();
            for (cell, outcome) in self.round(cells, &open).await? {
                tried[cell].attempts += 1;
                tried[cell].outcome = outcome;
            }
            if is_late || tried.iter().all(|tried| tried.outcome.is_ok()) {
                return somebody_was_asked(tried);
            }
            sleep(BETWEEN).await;
        }
    }

    /// Tries one cell once.
    ///
    /// # Errors
    /// As [`Asker::settle`].
    pub async fn once(&self, cell: &Cell) -> anyhow::Result<()> {
        self.round(std::slice::from_ref(cell), &[0]).await.map(drop)
    }

    async fn round(
        &self,
        cells: &[Cell],
        open: &[usize],
    ) -> anyhow::Result<Vec<(usize, Result<u64, String>)>> {
        let mut by_pod: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for index in open {
            let cell = &cells[*index];
            let role = if cell.path.is_of_node() {
                Role::Host
            } else {
                Role::Client
            };
            by_pod
                .entry(objects::pod_name(role, cell.from))
                .or_default()
                .push(*index);
        }
        let commands = by_pod.iter().flat_map(|(pod, indices)| {
            let batches = indices.chunks(AT_ONCE);
            batches.map(move |batch| self.command(pod, cells, batch))
        });
        let mut outcomes = Vec::with_capacity(open.len());
        for batch in join_all(commands).await {
            outcomes.extend(batch?);
        }
        Ok(outcomes)
    }

    async fn command(
        &self,
        pod: &str,
        cells: &[Cell],
        batch: &[usize],
    ) -> anyhow::Result<Vec<(usize, Result<u64, String>)>> {
        let timeout = PATIENCE.as_millis().to_string();
        let mut words = [PROGRAM, "probe", "--timeout-ms", &timeout]
            .map(str::to_owned)
            .to_vec();
        words.extend(batch.iter().map(|index| cells[*index].probe()));
        let ended = self
            .objects
            .execute((self.namespace, pod), &words, PATIENCE + COMMAND)
            .await;
        let printed = match ended {
            Ok(ended) if matches!(ended.code, 0 | 1) => ended.stdout,
            Ok(ended) => bail!(
                "image {} cannot be used: `{PROGRAM} probe` in pod {pod} ended with exit code {}: {} (it has to be \
                 causeway/testserver:v1, or an image with its program at {PROGRAM} and as its entrypoint)",
                self.image,
                ended.code,
                ended.stderr.trim()
            ),
            Err(error) => {
                let reason = format!("{NOT_ASKED}{}", model::with_causes(&error));
                return Ok(batch.iter().map(|index| (*index, Err(reason.clone()))).collect());
            }
        };
        let mut lines = printed.lines();
        let outcomes = batch.iter().map(|index| {
            let line = lines.next().unwrap_or_default();
            (*index, outcome(&cells[*index], line))
        });
        Ok(outcomes.collect())
    }
}

/// # Errors
/// When no command could be run in any pod: nothing is known then.
fn somebody_was_asked(tried: Vec<Tried>) -> anyhow::Result<Vec<Tried>> {
    let not_asked = |tried: &Tried| {
        let reason = tried.outcome.as_ref().err()?;
        reason.strip_prefix(NOT_ASKED).map(str::to_owned)
    };
    let reasons: Option<Vec<String>> = tried.iter().map(not_asked).collect();
    match reasons.and_then(|reasons| reasons.into_iter().next()) {
        Some(reason) => bail!("{reason}"),
        None => Ok(tried),
    }
}

/// Reads a line of `testserver probe`: `PROBE ok|failed MICROSECONDS ANSWER`.
fn outcome(cell: &Cell, line: &str) -> Result<u64, String> {
    let unread = || format!("the image's program said {line:?}");
    let rest = line.strip_prefix(&cell.probe()).ok_or_else(unread)?;
    let mut words = rest.trim_start().splitn(3, ' ');
    let (word, micros, answer) = (words.next(), words.next(), words.next().unwrap_or_default());
    let micros = micros.and_then(|micros| micros.parse().ok()).ok_or_else(unread)?;
    match (word, &cell.server) {
        (Some("ok"), Some(server)) if server != answer => {
            Err(format!("{answer} answered instead of {server}"))
        }
        (Some("ok"), _) => Ok(micros),
        (Some("failed"), _) => Err(answer.to_owned()),
        _ => Err(unread()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::cells::{cells, tests::site};
    use super::*;

    #[test]
    fn where_nobody_could_be_asked_nothing_is_known() {
        let tried = |reasons: &[Option<&str>]| {
            let tried = reasons.iter().map(|reason| Tried {
                attempts: 1,
                outcome: reason.map_or(Ok(1), |reason| Err(reason.to_owned())),
            });
            somebody_was_asked(tried.collect()).map_err(|error| error.to_string())
        };
        let refused = Some("could not ask: run /testserver in pod client-1: forbidden");
        let known: [&[Option<&str>]; 3] = [&[refused, None], &[refused, Some("connection refused")], &[]];
        for reasons in known {
            assert_eq!(tried(reasons).map(|tried| tried.len()), Ok(reasons.len()));
        }
        let error = "run /testserver in pod client-1: forbidden".to_owned();
        assert_eq!(tried(&[refused, refused]), Err(error));
    }

    #[test]
    fn an_answer_counts_where_the_right_server_gives_it() {
        let all = cells(&[site(1, false)], &[], &[]);
        let [small, large] = ["tcp:10.244.1.3:8080", "udp+large:10.244.1.3:8081"].map(|probe| {
            let cell = all.iter().find(|cell| cell.probe() == probe);
            cell.expect("it is tried").clone()
        });
        let rows = [
            (&small, "ok 130 server-1", Ok(130)),
            (
                &small,
                "ok 130 somebody",
                Err("somebody answered instead of server-1"),
            ),
            (&small, "failed 90 connection refused", Err("connection refused")),
            (&large, "ok 400 1422", Ok(400)),
            (
                &large,
                "failed 1000000 1422 bytes: no answer",
                Err("1422 bytes: no answer"),
            ),
        ];
        for (cell, rest, expected) in rows {
            let line = format!("{} {rest}", cell.probe());
            assert_eq!(outcome(cell, &line), expected.map_err(str::to_owned), "{line}");
        }
        for line in [
            "",
            "tcp:10.244.1.3:8080",
            "tcp:10.244.1.3:8080 ok soon",
            "udp:1.2.3.4:5 ok 1 a",
        ] {
            let error = outcome(&small, line).expect_err(line);
            assert_eq!(error, format!("the image's program said {line:?}"));
        }
    }
}
