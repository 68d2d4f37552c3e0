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
//! - [`visit`]: a command on a node.
//! - [`traced`], [`parts`], [`story`]: a trace on several nodes, as one story.
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
mod parts;
mod sink;
mod story;
mod telling;
mod traced;
mod visit;

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use crate::cli::OnArgs;
use crate::logs::tell;
use crate::watch::Objects;
pub use hint::elsewhere;

use cluster::Cluster;
use errand::{Errand, Form, Refused};
use sink::Sink;
use story::Nodes;
use telling::{Teller, Told, Way};
use visit::{Speech, Visit, words};

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
        let sender = match &errand.trace {
            Some(trace) => cluster.node_of(&trace.source, &places).await.ok().flatten(),
            None => None,
        };
        anyhow::Ok((chosen, places, sender))
    };
    let (chosen, places, sender) = tokio::select! {
        chosen = choice => chosen?,
        () = shutdown.cancelled() => anyhow::bail!("interrupted"),
    };
    let is_one = !args.all && chosen.len() == 1;
    if let Some(trace) = errand.trace.as_ref().filter(|_| !is_one) {
        let nodes = Nodes {
            chosen,
            places: &places,
            sender,
        };
        return story::tell_one(args, trace, &objects, nodes, shutdown, show).await;
    }
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
