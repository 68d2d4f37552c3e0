//! What a row says, and how it is played.
//!
//! Words in braces stand for what a row cannot know ([`World::facts`]): `{web}` is the server's pod, `{client-veth}` the
//! node's end of the client's device.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;
use tests::cluster::pid_of;
use tests::process::Output;

use super::world::{At, World, run_at};

/// For anything that is awaited.
const SOON: Duration = Duration::from_secs(15);
/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(50);
/// Between the blows of a siege.
const BETWEEN_BLOWS: Duration = Duration::from_millis(10);

/// What is done again and again.
pub type Blow = Box<dyn FnMut() -> anyhow::Result<()> + Send>;

/// A thing that breaks.
pub struct Row {
    /// What it claims.
    pub name: &'static str,
    /// What breaks it, in order.
    pub breaks: &'static [Act],
    /// What is asked then, and what the answer must have.
    pub asks: &'static [Ask],
    /// What mends it, in order. A siege ends before.
    pub mends: &'static [Act],
}

/// Something that is done to the cluster. Commands are words with single spaces between them.
pub enum Act {
    /// A command, which must succeed.
    Run(At, &'static str),
    /// Commands again and again, whether they succeed or not: for what the agent puts right at once.
    Siege(At, &'static [&'static str]),
    /// A signal to a process of the cluster, again and again: for what is started again at once.
    SiegeSignal(&'static str, Signal),
    /// The same of what no command does.
    SiegeBy(fn(&World) -> anyhow::Result<Blow>),
    /// `kubectl` with these arguments.
    Kubectl(&'static str),
    /// `etcdctl` with these arguments, and a value behind them.
    Etcdctl(&'static str, &'static str),
    /// What no command does.
    Do(fn(&World) -> anyhow::Result<()>),
    /// `causeway doctor --fix` of a node, which must tell that it put this right: an id, and an object.
    Fix(u8, &'static str, &'static str),
    /// A signal to a process of the cluster.
    Signal(&'static str, Signal),
}

/// A question, and what the answer must have.
pub enum Ask {
    /// `causeway doctor` of a node: a finding with this id, of this object, whose evidence contains all of these words.
    Doctor(u8, &'static str, &'static str, &'static [&'static str]),
    /// `causeway doctor` of a node cannot run, and says so.
    NoDoctor(u8, &'static [&'static str]),
    /// `causeway explain` as a node sees it: exit code, and words in its output.
    Explain(u8, &'static str, i32, &'static [&'static str]),
    /// `causeway trace --inject` from a pod: exit code, and words in its output.
    Trace(At, &'static str, i32, &'static [&'static str]),
    /// `causeway drops` of a second, of both nodes: exit code, and words in its output.
    Drops(&'static str, i32, &'static [&'static str]),
    /// `causeway dns query` in a node's namespace: exit code, and words in its output.
    Dns(u8, &'static str, i32, &'static [&'static str]),
    /// `causeway status`: exit code, and words in its output.
    Status(i32, &'static [&'static str]),
    /// Whether a client gets its answer from an address and port, from the client's pod or from outside.
    Answered(At, &'static str, bool),
}

impl Row {
    /// Breaks, asks, mends, and sees that all works again. What was broken is mended whatever failed before.
    ///
    /// # Errors
    /// With everything that is not as it shall be.
    pub fn play(&self, world: &World) -> anyhow::Result<()> {
        let began = Instant::now();
        let facts = world.facts()?;
        let mut sieges = Vec::new();
        let mut failures = Vec::new();
        let broken = self
            .breaks
            .iter()
            .try_for_each(|act| act.perform(world, &facts, &mut sieges));
        match broken {
            Err(error) => failures.push(format!("broken: {error:#}")),
            Ok(()) => failures.extend(
                self.asks
                    .iter()
                    .filter_map(|ask| ask.check(world, &facts).err())
                    .map(|error| format!("{error:#}")),
            ),
        }
        let asked = began.elapsed();
        failures.extend(
            sieges
                .into_iter()
                .filter_map(|siege| siege.end().err())
                .map(|error| format!("{error:#}")),
        );
        for act in self.mends {
            let mended = act.perform(world, &facts, &mut Vec::new());
            failures.extend(mended.err().map(|error| format!("mended: {error:#}")));
        }
        if !self.breaks.is_empty() {
            let whole = await_that("all works again", || world.is_whole());
            failures.extend(whole.err().map(|error| format!("{error:#}")));
        }
        println!(
            "{}: asked within {:.1} s, mended within {:.1} s",
            self.name,
            asked.as_secs_f64(),
            (began.elapsed() - asked).as_secs_f64()
        );
        ensure!(failures.is_empty(), "{}", failures.join("\n----\n"));
        Ok(())
    }
}

/// Goes on until it is ended, or dropped.
struct Siege {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Siege {
    /// Each blow must succeed at least once.
    fn lay(mut blows: Vec<Blow>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut failures: Vec<_> = blows.iter().map(|_| Some(anyhow::anyhow!("not tried"))).collect();
            while !told.load(Ordering::Relaxed) {
                for (blow, failure) in blows.iter_mut().zip(&mut failures) {
                    let struck = blow();
                    if failure.is_some() {
                        *failure = struck.err();
                    }
                }
                std::thread::sleep(BETWEEN_BLOWS);
            }
            failures.into_iter().flatten().next().map_or(Ok(()), Err)
        });
        Self {
            over,
            thread: Some(thread),
        }
    }

    fn end(mut self) -> anyhow::Result<()> {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        match ended {
            Some(Ok(Err(error))) => Err(error.context("a siege that never struck")),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            Some(Ok(Ok(()))) | None => Ok(()),
        }
    }
}

impl Drop for Siege {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Act {
    fn perform(
        &self,
        world: &World,
        facts: &BTreeMap<&'static str, String>,
        sieges: &mut Vec<Siege>,
    ) -> anyhow::Result<()> {
        let filled = |text: &str| fill(text, facts);
        match self {
            Self::Run(at, command) => {
                let words = filled(command)?;
                succeed(&world.run(*at, &words)?, &words)?;
            }
            Self::Siege(at, commands) => {
                let commands = commands.iter().map(|command| filled(command));
                let commands = commands.collect::<anyhow::Result<Vec<_>>>()?;
                let blows = commands.into_iter().map(|words| {
                    let place = world.place(*at)?;
                    let blow: Blow = Box::new(move || succeed(&run_at(&place, &words)?, &words));
                    Ok(blow)
                });
                sieges.push(Siege::lay(blows.collect::<anyhow::Result<_>>()?));
            }
            Self::SiegeSignal(name, signal) => {
                let (name, signal) = (*name, *signal);
                let state_dir = world.cluster.state_dir().to_path_buf();
                sieges.push(Siege::lay(vec![Box::new(move || send(&state_dir, name, signal))]));
            }
            Self::SiegeBy(lay) => sieges.push(Siege::lay(vec![lay(world)?])),
            Self::Kubectl(arguments) => {
                let words = filled(arguments)?;
                world.cluster.run(&words.split(' ').collect::<Vec<_>>())?;
            }
            Self::Etcdctl(arguments, value) => {
                world.etcdctl(&filled(arguments)?, &filled(value)?)?;
            }
            Self::Do(work) => work(world)?,
            Self::Fix(node, id, object) => {
                let object = filled(object)?;
                let output = world.ask("doctor", &["--fix"], &[*node])?;
                let fixed = format!("FIXED  {id}  {object}");
                ensure!(output.stdout.contains(&fixed), "no {fixed:?} in {output:?}");
            }
            Self::Signal(name, signal) => send(world.cluster.state_dir(), name, *signal)?,
        }
        Ok(())
    }
}

fn succeed(output: &Output, words: &str) -> anyhow::Result<()> {
    ensure!(
        output.status.success(),
        "{words}: {}{}",
        output.stdout,
        output.stderr
    );
    Ok(())
}

/// Sends a signal to a process of the cluster.
fn send(state_dir: &Path, name: &str, signal: Signal) -> anyhow::Result<()> {
    let pid = nix::unistd::Pid::from_raw(pid_of(state_dir, name)?);
    nix::sys::signal::kill(pid, signal).with_context(|| format!("{signal} to {name}"))
}

impl Ask {
    fn check(&self, world: &World, facts: &BTreeMap<&'static str, String>) -> anyhow::Result<()> {
        let filled = |text: &str| fill(text, facts);
        let all = |words: &[&str]| {
            words
                .iter()
                .map(|word| filled(word))
                .collect::<Result<Vec<_>, _>>()
        };
        match self {
            Self::Doctor(node, id, object, evidence) => {
                let (object, evidence) = (filled(object)?, all(evidence)?);
                await_that(
                    &format!("doctor of node-{node}: {id} {object} {evidence:?}"),
                    || {
                        let report = world.doctor(*node)?;
                        let is_told = report.findings.iter().any(|finding| {
                            finding.id == *id
                                && finding.object == object
                                && evidence.iter().all(|words| finding.evidence.contains(words))
                        });
                        ensure!(is_told, "{report:?}");
                        Ok(())
                    },
                )
            }
            Self::NoDoctor(node, words) => {
                let words = all(words)?;
                await_that(&format!("doctor of node-{node} cannot run"), || {
                    let output = world.ask("doctor", &[], &[*node])?;
                    said(&output, 2, &words)
                })
            }
            Self::Explain(node, ends, code, words) => {
                let (ends, words) = (filled(ends)?, all(words)?);
                await_that(&format!("explain {ends}: {words:?}"), || {
                    let output = world.ask("explain", &ends.split(' ').collect::<Vec<_>>(), &[*node])?;
                    said(&output, *code, &words)
                })?;
                // What is put right meanwhile, and broken again, may differ.
                await_that(&format!("a bundle explains {ends} as the node does"), || {
                    world.bundle_explains_alike(*node, &ends)
                })
            }
            Self::Trace(from, ends, code, words) => {
                let (ends, words) = (filled(ends)?, all(words)?);
                // Another test on this machine may have a pod with the same address.
                let netns = format!("/proc/{}/ns/net", world.process(*from)?);
                let mut arguments: Vec<&str> = ends.split(' ').collect();
                arguments.extend(["--inject", "--timeout", "3s", "--netns", &netns]);
                await_that(&format!("trace {ends}: {words:?}"), || {
                    said(&world.ask("trace", &arguments, &[1, 2])?, *code, &words)
                })
            }
            Self::Drops(arguments, code, words) => {
                let words = all(words)?;
                let arguments = format!("--for 1s {arguments}");
                let arguments: Vec<&str> = arguments.split(' ').collect();
                await_that(&format!("drops: {words:?}"), || {
                    said(&world.ask("drops", &arguments, &[1, 2])?, *code, &words)
                })
            }
            Self::Dns(node, name, code, words) => {
                let words = all(words)?;
                await_that(&format!("dns query {name}: {words:?}"), || {
                    said(&world.dns_query(*node, name)?, *code, &words)
                })
            }
            Self::Status(code, words) => {
                let words = all(words)?;
                await_that(&format!("status: {words:?}"), || {
                    let status = world.cluster.causeway("status", &[])?;
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    let output = Output {
                        status: status.status,
                        stdout: text(&status.stdout),
                        stderr: text(&status.stderr),
                    };
                    said(&output, *code, &words)
                })
            }
            Self::Answered(at, to, wanted) => {
                let to = filled(to)?;
                await_that(&format!("{to} answers: {wanted}"), || {
                    let is_answered = world.fetch(*at, &to);
                    ensure!(is_answered.is_ok() == *wanted, "{is_answered:?}");
                    Ok(())
                })
            }
        }
    }
}

fn said(output: &Output, code: i32, words: &[String]) -> anyhow::Result<()> {
    let said = format!("{}{}", output.stdout, output.stderr);
    let missing: Vec<_> = words.iter().filter(|words| !said.contains(*words)).collect();
    ensure!(
        output.status.code() == Some(code) && missing.is_empty(),
        "exit code {:?}, not said: {missing:?}\n{said}",
        output.status.code()
    );
    Ok(())
}

/// Asks until it is so.
///
/// # Errors
/// With what was seen last, when that does not come to be.
fn await_that(what: &str, mut look: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        match look() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("not within {} s: {what}", SOON.as_secs())));
            }
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
}

/// The text with facts in the place of words in braces.
fn fill(text: &str, facts: &BTreeMap<&'static str, String>) -> anyhow::Result<String> {
    let mut filled = text.to_owned();
    for (name, value) in facts {
        filled = filled.replace(&format!("{{{name}}}"), value);
    }
    let is_name = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-')
    };
    let unknown = filled
        .split('{')
        .skip(1)
        .filter_map(|part| Some(part.split_once('}')?.0))
        .find(|part| is_name(part));
    match unknown {
        Some(name) => bail!("{text}: nobody knows {name}"),
        None => Ok(filled),
    }
}
