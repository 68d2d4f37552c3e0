//! `causeway on`: a command of this program on other nodes, in the pods of their agents, by the Kubernetes API.
//!
//! ```text
//! causeway on ─ pods/exec ─► API server ─► kubelet ─► agent's pod: causeway COMMAND ─ agent.sock ─► agent
//! ```
//! An agent's socket is its node's alone. Whoever may run commands in its pod may ask it from elsewhere: the API server
//! knows who that is, and no port is opened for it.
//!
//! - [`errand`]: what may run there; [`addressed`]: pods of other nodes in it.
//! - [`hint`]: what to type where this machine has nobody to be asked.
//! - [`nodes`]: which nodes are meant.
//! - [`cluster`]: what the API server is asked.
//! - [`telling`], [`sink`]: one result of what several say, and where it goes; [`merged`]: captures of several as one.
//!
//! A command that runs in a container outlives the connection to it: no kubelet kills it. It is therefore run with a
//! standard input to which nothing is ever written and whose end ends it as Ctrl-C does (`--while-input-is-open`). The
//! kubelet closes it when the connection breaks, whatever became of us.

mod addressed;
mod cluster;
mod errand;
mod hint;
mod merged;
mod nodes;
mod sink;
mod telling;

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use futures::future::join;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::cli::OnArgs;
use crate::logs::tell;
use crate::watch::{Container, Objects, Said};
pub use hint::elsewhere;

use cluster::Cluster;
use errand::{Errand, Form, Refused};
use nodes::CONTAINER;
use sink::Sink;
use telling::{Piece, Teller, Told, Way};

/// A command that was told to end tells what it has within this time.
const GRACE: Duration = Duration::from_secs(5);

/// How often it is looked what has waited long enough.
const DUE: Duration = Duration::from_millis(100);

/// So many commands begin at the same time: API servers bound what one user may ask for.
const BEGIN_AT_ONCE: usize = 50;

/// Pieces of output that wait to be told. Beyond it the nodes wait.
const IN_FLIGHT: usize = 64;

/// Runs a command on nodes, at the same time, and tells what they say by `show`, which says whether anybody reads it.
/// Returns the worst of their exit codes.
///
/// # Errors
/// When the command is none for other nodes, a node is not known, or the API server does not answer.
pub async fn run(
    args: &OnArgs,
    shutdown: &CancellationToken,
    show: impl FnMut(&[u8]) -> bool,
) -> anyhow::Result<u8> {
    let errand = match Errand::parse(&args.command) {
        // As if it had been typed alone: help is no error.
        Err(Refused::Usage(usage)) => usage.exit(),
        other => other?,
    };
    let to_terminal = io::stdout().is_terminal();
    ensure!(
        errand.form != Form::Packets(None) || !to_terminal,
        "-w -: packets are nothing for a terminal: name a file, or hand them on to a program"
    );
    let objects = Objects::of(args.server.credentials()?).await?;
    let cluster = Cluster::new(&objects, &args.namespace);
    let choice = async {
        let places = cluster.places(&errand.ends).await;
        let chosen = cluster.choose(args, &errand, &places).await?;
        anyhow::Ok((chosen, places))
    };
    let (chosen, places) = tokio::select! {
        chosen = choice => chosen?,
        () = shutdown.cancelled() => anyhow::bail!("interrupted"),
    };
    let is_one = !args.all && chosen.len() == 1;
    let way = Way::of(&errand.form, is_one, args.prefix, to_terminal);
    let file = match &errand.form {
        Form::Packets(file) => file.as_deref(),
        _ => None,
    };
    let mut sink = Sink::new(file, show);
    let enough = shutdown.child_token();
    let names = chosen.iter().map(|(node, _)| node.clone());
    let mut teller = Teller::new(way, is_one, names);
    let (sender, mut pieces) = mpsc::channel(IN_FLIGHT);
    let beginning = Arc::new(Semaphore::new(BEGIN_AT_ONCE));
    let mut visits = JoinSet::new();
    for (number, (node, agent)) in chosen.into_iter().enumerate() {
        let visit = Visit {
            objects: objects.clone(),
            namespace: args.namespace.clone(),
            words: words(errand.words_on(&node, &places)),
            beginning: Arc::clone(&beginning),
            begins_within: args.timeout,
            lasts: errand.lasts.map(|lasts| lasts + args.timeout),
            enough: enough.clone(),
            said: Speech {
                number,
                sender: sender.clone(),
            },
        };
        visits.spawn(visit.make(node, agent));
    }
    drop(sender);
    let mut ticks = interval(DUE);
    loop {
        let told = tokio::select! {
            piece = pieces.recv() => match piece {
                Some((number, piece)) => teller.take(number, piece, std::time::Instant::now()),
                None => break,
            },
            _ = ticks.tick() => teller.due(std::time::Instant::now()),
        };
        for told in told {
            match told {
                Told::Err(line) => tell(line),
                Told::Out(bytes) => {
                    if !sink.put(&bytes)? {
                        enough.cancel();
                    }
                }
            }
        }
    }
    if let Some(file) = sink.written() {
        tell(format_args!("written to {}", file.display()));
    }
    Ok(teller.code())
}

/// The command as it is run in a container.
fn words(command: Vec<String>) -> Vec<String> {
    let program = ["causeway", "--while-input-is-open"].map(str::to_owned);
    program.into_iter().chain(command).collect()
}

/// Where a node's pieces go.
#[derive(Clone)]
struct Speech {
    number: usize,
    sender: mpsc::Sender<(usize, Piece)>,
}

impl Speech {
    /// Hands a piece on. Returns whether anybody takes it.
    async fn say(&self, piece: Piece) -> bool {
        self.sender.send((self.number, piece)).await.is_ok()
    }
}

/// A command on a node.
struct Visit {
    objects: Objects,
    namespace: String,
    words: Vec<String>,
    /// Who may begin.
    beginning: Arc<Semaphore>,
    /// How long it may take to begin.
    begins_within: Duration,
    /// How long it may then take; `None` = until it is ended.
    lasts: Option<Duration>,
    /// It shall end.
    enough: CancellationToken,
    said: Speech,
}

impl Visit {
    async fn make(self, node: String, agent: Result<String, String>) {
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
