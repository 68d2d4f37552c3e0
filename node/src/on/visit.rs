//! A command on a node.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;
use super::nodes::CONTAINER;
use super::telling::Piece;
use crate::watch::{Container, Objects, Said};

/// A command that was told to end tells what it has within this time.
const GRACE: Duration = Duration::from_secs(5);

/// The command as it is run in a container.
pub(super) fn words(command: Vec<String>) -> Vec<String> {
    let program = ["causeway", "--while-input-is-open"].map(str::to_owned);
    program.into_iter().chain(command).collect()
}

/// Where a node's pieces go.
#[derive(Clone)]
pub(super) struct Speech {
    /// The node's number.
    pub(super) number: usize,
    /// To whoever tells.
    pub(super) sender: mpsc::Sender<(usize, Piece)>,
}

impl Speech {
    /// Hands a piece on. Returns whether anybody takes it.
    async fn say(&self, piece: Piece) -> bool {
        self.sender.send((self.number, piece)).await.is_ok()
    }
}

/// A command on a node.
pub(super) struct Visit {
    pub(super) objects: Objects,
    /// That of the agents.
    pub(super) namespace: String,
    /// The command.
    pub(super) words: Vec<String>,
    /// Who may begin.
    pub(super) beginning: Arc<Semaphore>,
    /// How long it may take to begin.
    pub(super) begins_within: Duration,
    /// How long it may then take; `None` = until it is ended.
    pub(super) lasts: Option<Duration>,
    /// It shall end.
    pub(super) enough: CancellationToken,
    pub(super) said: Speech,
}

impl Visit {
    /// Runs it, and says how it ended.
    pub(super) async fn make(self, node: String, agent: Result<String, String>) {
        let ended = match agent {
            Ok(pod) => self.run(&pod).await,
            Err(why) => Err(why),
        };
        tracing::debug!(node, ?ended, "a command on a node ended");
        self.said.say(Piece::Ended(ended)).await;
    }

    /// The exit code, or why there is none.
    async fn run(&self, pod: &str) -> Result<i32, String> {
        let container = Container {
            namespace: &self.namespace,
            pod,
            name: Some(CONTAINER),
        };
        let start = async {
            let _turn = self.beginning.acquire().await;
            let start = self.objects.start(container, &self.words, true);
            timeout(self.begins_within, start).await
        };
        let started = tokio::select! {
            started = start => started,
            () = self.enough.cancelled() => return Err("interrupted before it began".to_owned()),
        };
        let mut running = match started {
            Ok(Ok(running)) => running,
            Ok(Err(error)) => {
                return Err(Cluster::new(&self.objects, &self.namespace)
                    .refusal(&error, pod)
                    .await);
            }
            Err(_) => {
                let seconds = self.begins_within.as_secs_f32();
                return Err(format!(
                    "the command did not begin in {seconds} s: its kubelet does not answer"
                ));
            }
        };
        let (stdout, stderr) = (running.stdout(), running.stderr());
        let end = running.end();
        let talk = async {
            join(
                hand_on(stdout, &self.said, Piece::Out),
                hand_on(stderr, &self.said, Piece::Err),
            )
            .await;
            end.await
        };
        tokio::pin!(talk);
        let mut deadline = self.lasts.map(|lasts| Instant::now() + lasts);
        let mut is_told = false;
        loop {
            tokio::select! {
                ended = &mut talk => return match ended {
                    // A server that knows no other way ended the connection.
                    Err(_) if is_told => Err("interrupted: it does not tell what it saw until then".to_owned()),
                    ended => ended.map_err(|error| model::with_causes(&error)),
                },
                () = self.enough.cancelled(), if !is_told => {
                    is_told = true;
                    deadline = Some(Instant::now() + GRACE);
                    running.close_input().await;
                }
                () = until(deadline) => return Err(match is_told {
                    true => format!("interrupted: it did not end in {} s", GRACE.as_secs()),
                    false => "it does not end, longer than the command takes and --timeout: is the node there?".to_owned(),
                }),
            }
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Hands on what is said, until its end or until nobody listens.
async fn hand_on(mut stream: Said, said: &Speech, piece: fn(Vec<u8>) -> Piece) {
    while let Some(bytes) = stream.next().await {
        if !said.say(piece(bytes)).await {
            return;
        }
    }
}
