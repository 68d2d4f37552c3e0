//! Transcripts: what is typed at a cluster and what is printed then, in one text that can be read as a paper and is
//! played with kubectls of several versions.
//!
//! A line is `[VERSIONS] MARK TEXT`; lines that begin with `#` are prose. VERSIONS restricts a line to minor versions
//! of kubectl: `24+`, `31-` (up to 31), `27`, or several of them: `20,30+`. The marks:
//!
//! | mark | meaning |
//! |---|---|
//! | `>` | a file of the working directory, whose lines follow with `<` |
//! | `$` | a command, run by a shell; `kubectl` is the kubectl under test |
//! | `~` | the same, again and again until what it prints is as expected |
//! | `&` | a command that goes on in the background |
//! | `.` | by now that has printed what follows; then it is killed |
//! | `<` | a line of the command's standard input, or of the file |
//! | `\|` | a line of its standard output. All are given: `*` stands for any text, `...` for any lines, blanks are one |
//! | `!` | a line that is among those of its standard error |
//! | `=` | its exit code, else 0 |
//! | `(` `)` | from here to there one kubectl at a time |
//!
//! Commands have a directory of their own and these variables: `NS` (a namespace for this kubectl alone), `PORT` (a
//! free port of 127.0.0.1), `MINOR`. In expected lines `$NS`, `$PORT` and `$MINOR` stand for their values.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::ops::RangeInclusive;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::cluster::Cluster;
use crate::directory::Directory;
use crate::kubectl::{Kubectl, run_with_input};

/// How long a `~` or `.` waits.
const SOON: Duration = Duration::from_secs(30);
/// How long a command may take, for `timeout`.
const LIMIT: &str = "100";
/// Between two tries of a `~`.
const AGAIN: Duration = Duration::from_millis(150);

/// A parsed transcript.
#[derive(Debug, Default)]
pub struct Transcript {
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    /// Counted from one.
    line: usize,
    versions: Versions,
    act: Act,
    text: String,
    input: String,
    output: Vec<(Versions, String)>,
    errors: Vec<(Versions, String)>,
    codes: Vec<(Versions, i32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    File,
    Run,
    Await,
    Begin,
    End,
    Alone,
    Together,
}

/// Minor versions of kubectl: any of these ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Versions(Vec<RangeInclusive<u32>>);

impl Versions {
    fn all() -> Self {
        Self(vec![0..=u32::MAX])
    }

    fn parse(word: &str) -> anyhow::Result<Self> {
        let number = |text: &str| {
            text.parse::<u32>()
                .with_context(|| format!("{word} is no version"))
        };
        let range = |part: &str| {
            Ok(if let Some(from) = part.strip_suffix('+') {
                number(from)?..=u32::MAX
            } else if let Some(to) = part.strip_suffix('-') {
                0..=number(to)?
            } else {
                number(part)?..=number(part)?
            })
        };
        word.split(',')
            .map(range)
            .collect::<anyhow::Result<_>>()
            .map(Self)
    }

    fn holds(&self, minor: u32) -> bool {
        self.0.iter().any(|range| range.contains(&minor))
    }
}

impl Transcript {
    /// The one of the repository, `tests/cluster/transcript.txt`.
    ///
    /// # Errors
    /// As [`Transcript::parse`], or when it is not there.
    pub fn read() -> anyhow::Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/transcript.txt");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Reads a text.
    ///
    /// # Errors
    /// With the number of the first line that means nothing.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut transcript = Self::default();
        for (at, line) in text.lines().enumerate() {
            if !line.trim().is_empty() && !line.starts_with('#') {
                transcript
                    .take(at + 1, line)
                    .with_context(|| format!("line {}: {line}", at + 1))?;
            }
        }
        Ok(transcript)
    }

    fn take(&mut self, number: usize, line: &str) -> anyhow::Result<()> {
        let rest = line.trim_start();
        let (versions, rest) = match rest.starts_with(|first: char| first.is_ascii_digit()) {
            true => {
                let (word, rest) = rest.split_once(' ').context("a version without a mark")?;
                (Versions::parse(word)?, rest.trim_start())
            }
            false => (Versions::all(), rest),
        };
        let mut characters = rest.chars();
        let mark = characters.next().context("no mark")?;
        let text = characters.as_str();
        let text = text.strip_prefix(' ').unwrap_or(text).to_owned();
        let act = match mark {
            '>' => Act::File,
            '$' => Act::Run,
            '~' => Act::Await,
            '&' => Act::Begin,
            '.' => Act::End,
            '(' => Act::Alone,
            ')' => Act::Together,
            _ => return self.add(mark, versions, text),
        };
        self.steps.push(Step {
            line: number,
            versions,
            act,
            text,
            input: String::new(),
            output: Vec::new(),
            errors: Vec::new(),
            codes: Vec::new(),
        });
        Ok(())
    }

    fn add(&mut self, mark: char, versions: Versions, text: String) -> anyhow::Result<()> {
        let step = self.steps.last_mut().context("it belongs to nothing")?;
        match mark {
            '<' => step.input.extend([text.as_str(), "\n"]),
            '|' => step.output.push((versions, text)),
            '!' => step.errors.push((versions, text)),
            '=' => step.codes.push((versions, text.trim().parse()?)),
            _ => bail!("{mark:?} is no mark"),
        }
        Ok(())
    }

    /// How many commands it has for a minor version.
    #[must_use]
    pub fn commands(&self, minor: u32) -> usize {
        let is_command = |step: &&Step| {
            matches!(step.act, Act::Run | Act::Await | Act::Begin) && step.versions.holds(minor)
        };
        self.steps.iter().filter(is_command).count()
    }
}

/// What a command printed and how it ended.
#[derive(Debug)]
struct Seen {
    code: Option<i32>,
    output: String,
    errors: String,
}

impl Seen {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// What one kubectl shall see of a step.
struct Wanted {
    code: i32,
    output: Vec<String>,
    errors: Vec<String>,
}

impl Wanted {
    fn is_met_by(&self, seen: &Seen) -> bool {
        let said: Vec<String> = seen.errors.lines().map(squeezed).collect();
        seen.code == Some(self.code)
            && lines_match(&self.output, &lines(&seen.output))
            && self
                .errors
                .iter()
                .all(|wanted| said.iter().any(|line| line_matches(wanted, line)))
    }
}

fn squeezed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Without empty lines at the end.
fn lines(text: &str) -> Vec<String> {
    text.trim_end().lines().map(squeezed).collect()
}

/// `...` stands for any lines.
fn lines_match(wanted: &[String], seen: &[String]) -> bool {
    match wanted.split_first() {
        None => seen.is_empty(),
        Some((first, rest)) if first == "..." => {
            (0..=seen.len()).any(|skipped| lines_match(rest, &seen[skipped..]))
        }
        Some((first, rest)) => seen
            .split_first()
            .is_some_and(|(line, more)| line_matches(first, line) && lines_match(rest, more)),
    }
}

/// `*` stands for any text.
fn line_matches(wanted: &str, seen: &str) -> bool {
    let Some((head, tail)) = wanted.split_once('*') else {
        return wanted == seen;
    };
    let Some(rest) = seen.strip_prefix(head) else {
        return false;
    };
    let starts = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    starts.into_iter().any(|at| line_matches(tail, &rest[at..]))
}

/// Plays transcripts with one kubectl on one cluster.
pub struct Player<'a> {
    kubectl: &'a Kubectl,
    directory: Directory,
    namespace: String,
    port: u16,
    alone: &'a Mutex<()>,
    stop: Option<&'a AtomicBool>,
}

impl<'a> Player<'a> {
    /// For a kubectl on a cluster; `label` tells its namespace from those of other players. `alone` is shared by the
    /// players of one cluster.
    ///
    /// # Errors
    /// When its directory cannot be filled.
    pub fn new(
        kubectl: &'a Kubectl,
        cluster: &Cluster,
        label: &str,
        alone: &'a Mutex<()>,
    ) -> anyhow::Result<Self> {
        let namespace = format!("{label}-{}", kubectl.minor);
        let directory = Directory::new(&namespace);
        let programs = directory.path().join("bin");
        std::fs::create_dir(&programs)?;
        std::os::unix::fs::symlink(kubectl.path(), programs.join("kubectl"))?;
        std::fs::copy(cluster.kubeconfig(), directory.path().join("kubeconfig"))?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        Ok(Self {
            kubectl,
            directory,
            namespace,
            port,
            alone,
            stop: None,
        })
    }

    /// Until somebody says so.
    #[must_use]
    pub fn until(mut self, stop: &'a AtomicBool) -> Self {
        self.stop = Some(stop);
        self
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    /// Plays all of it.
    ///
    /// # Errors
    /// When lines were not as expected. Each is printed as it comes: its number, the kubectl, the command, what was
    /// expected and what came.
    pub fn play(&self, transcript: &Transcript) -> anyhow::Result<()> {
        let failed = self.failures(transcript, |failure| println!("{failure}"));
        ensure!(
            failed == 0,
            "{}: {failed} lines are not as expected, told above",
            self.kubectl
        );
        Ok(())
    }

    /// Plays it, gives `tell` each line that was not as expected, and returns how many these were.
    pub fn failures(&self, transcript: &Transcript, tell: impl Fn(&str)) -> usize {
        let mut stage = Stage::default();
        let mut failures = 0;
        let minor = self.kubectl.minor;
        for step in transcript.steps.iter().filter(|step| step.versions.holds(minor)) {
            if self.is_stopped() {
                break;
            }
            if let Err(error) = self.act(step, &mut stage) {
                let (line, text) = (step.line, &step.text);
                tell(&format!(
                    "---- line {line}, kubectl 1.{minor}: {text}\n{error:#}\n"
                ));
                failures += 1;
            }
        }
        failures
    }

    fn act(&self, step: &Step, stage: &mut Stage<'a>) -> anyhow::Result<()> {
        match step.act {
            Act::Alone => stage.alone = Some(self.alone.lock().unwrap_or_else(PoisonError::into_inner)),
            Act::Together => stage.alone = None,
            Act::File => std::fs::write(self.directory.path().join(&step.text), self.filled(&step.input))?,
            Act::Run => self.run(step)?,
            Act::Await => self.run_until(step)?,
            Act::Begin => stage.background = Some(Background::start(self.shell(&step.text))?),
            Act::End => {
                let background = stage.background.take();
                self.end(step, &background.context("nothing runs in the background")?)?;
            }
        }
        Ok(())
    }

    fn filled(&self, text: &str) -> String {
        text.replace("$NS", &self.namespace)
            .replace("$PORT", &self.port.to_string())
            .replace("$MINOR", &self.kubectl.minor.to_string())
    }

    fn wanted(&self, step: &Step) -> Wanted {
        let minor = self.kubectl.minor;
        let of_this = |rows: &[(Versions, String)]| -> Vec<String> {
            let rows = rows.iter().filter(|(versions, _)| versions.holds(minor));
            rows.map(|(_, text)| squeezed(&self.filled(text))).collect()
        };
        let mut codes = step.codes.iter().filter(|(versions, _)| versions.holds(minor));
        Wanted {
            code: codes.next().map_or(0, |(_, code)| *code),
            output: of_this(&step.output),
            errors: of_this(&step.errors),
        }
    }

    fn shell(&self, line: &str) -> Command {
        let directory = self.directory.path();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("timeout");
        command
            .args([LIMIT, "/bin/sh", "-c", line])
            .current_dir(directory)
            .env("PATH", format!("{}:{path}", directory.join("bin").display()))
            .env("HOME", directory)
            .env("KUBECONFIG", directory.join("kubeconfig"))
            .env("NS", &self.namespace)
            .env("PORT", self.port.to_string())
            .env("MINOR", self.kubectl.minor.to_string());
        command
    }

    fn once(&self, step: &Step) -> anyhow::Result<Seen> {
        let input = self.filled(&step.input);
        let output = run_with_input(&mut self.shell(&step.text), input.as_bytes())?;
        Ok(Seen::of(&output))
    }

    fn run(&self, step: &Step) -> anyhow::Result<()> {
        let wanted = self.wanted(step);
        let seen = self.once(step)?;
        ensure!(wanted.is_met_by(&seen), report(&wanted, &seen));
        Ok(())
    }

    fn run_until(&self, step: &Step) -> anyhow::Result<()> {
        let wanted = self.wanted(step);
        let mut seen = self.once(step)?;
        let deadline = Instant::now() + SOON;
        while !wanted.is_met_by(&seen) {
            let late = Instant::now() > deadline || self.is_stopped();
            ensure!(!late, "not within {SOON:?}\n{}", report(&wanted, &seen));
            std::thread::sleep(AGAIN);
            seen = self.once(step)?;
        }
        Ok(())
    }

    fn end(&self, step: &Step, background: &Background) -> anyhow::Result<()> {
        let wanted = self.wanted(step).output;
        let deadline = Instant::now() + SOON;
        loop {
            let seen = background.lines();
            if lines_match(&wanted, &seen) {
                return Ok(());
            }
            let late = Instant::now() > deadline || self.is_stopped();
            ensure!(
                !late,
                "not within {SOON:?}\nexpected:\n{}\ngot:\n{}",
                wanted.join("\n"),
                seen.join("\n")
            );
            std::thread::sleep(AGAIN);
        }
    }
}

fn report(wanted: &Wanted, seen: &Seen) -> String {
    let marked = |mark: &str, lines: &[String]| -> String {
        lines.iter().map(|line| format!("{mark} {line}\n")).collect()
    };
    let said: Vec<String> = seen.errors.lines().map(str::to_owned).collect();
    format!(
        "expected: exit code {}\n{}{}got: exit code {:?}\n{}{}",
        wanted.code,
        marked("|", &wanted.output),
        marked("!", &wanted.errors),
        seen.code,
        marked("|", &lines(&seen.output)),
        marked("!", &said),
    )
}

/// What goes on between steps.
#[derive(Default)]
struct Stage<'a> {
    background: Option<Background>,
    alone: Option<MutexGuard<'a, ()>>,
}

/// A command that goes on, with all that it started; killed on drop.
struct Background {
    child: Child,
    output: Arc<Mutex<Vec<String>>>,
}

impl Background {
    fn start(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let into = Arc::clone(&output);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                into.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Ok(Self { child, output })
    }

    fn lines(&self) -> Vec<String> {
        let lines = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|line| squeezed(line)).collect()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // `timeout` makes itself the leader of a group; it is the one of `process_group(0)` already.
        if let Ok(group) = i32::try_from(self.child.id()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL); // ended already
        }
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_match_by_wild_cards_and_blanks() {
        let rows = [
            ("a\nb", "a\nb\n", true),
            ("a", "a\nb", false),
            ("a\nb", "a", false),
            ("", "", true),
            ("", "a", false),
            ("...", "", true),
            ("...\nb\n...", "a\nb\nc", true),
            ("...\nb\n...", "a\nc", false),
            ("...\nb", "b\nb", true),
            ("NAME *\nx 1/1 *", "NAME    READY\nx   1/1   Running\n", true),
            ("x*y", "xy", true),
            ("x*y*", "xaybz", true),
            ("x*y", "xya", false),
            ("*é", "aé", true),
        ];
        for (wanted, seen, expected) in rows {
            let wanted: Vec<String> = wanted.lines().map(squeezed).collect();
            assert_eq!(
                lines_match(&wanted, &lines(seen)),
                expected,
                "{wanted:?} {seen:?}"
            );
        }
    }

    #[test]
    fn versions_hold_from_to_and_among() {
        let rows = [
            ("24+", [false, false, true, true]),
            ("24-", [true, true, false, false]),
            ("20,27", [true, false, true, false]),
            ("23", [false, true, false, false]),
            ("20,27+", [true, false, true, true]),
        ];
        for (word, expected) in rows {
            let versions = Versions::parse(word).expect(word);
            assert_eq!(
                [20, 23, 27, 33].map(|minor| versions.holds(minor)),
                expected,
                "{word}"
            );
        }
        for word in ["x", "1x", "24,", "+"] {
            assert!(Versions::parse(word).is_err(), "{word}");
        }
    }

    #[test]
    fn a_line_that_means_nothing_is_told_by_its_number() {
        for (text, told) in [
            ("# prose\n\n? x", "line 3: ? x"),
            ("| printed by nothing", "line 1"),
            ("$ x\n= many", "line 2"),
            ("24+", "line 1"),
        ] {
            let error = Transcript::parse(text).expect_err(text);
            assert!(error.to_string().starts_with(told), "{error:#}");
        }
    }

    #[test]
    fn a_command_has_what_follows_it() {
        let text = "  > a.yaml\n < x: 1\n24+ $ kubectl get\n | out\n 30- | old\n ! err\n = 1\n ~ later";
        let transcript = Transcript::parse(text).expect("it parses");
        let [file, get, later] = transcript.steps.as_slice() else {
            panic!("{transcript:?}")
        };
        assert_eq!((file.act, file.input.as_str()), (Act::File, "x: 1\n"));
        assert_eq!((get.line, &get.versions), (3, &Versions(vec![24..=u32::MAX])));
        assert_eq!(
            get.output,
            [
                (Versions::all(), "out".to_owned()),
                (Versions(vec![0..=30]), "old".to_owned())
            ]
        );
        assert_eq!(get.codes, [(Versions::all(), 1)]);
        assert_eq!(later.act, Act::Await);
        assert_eq!(transcript.commands(20), 1);
        assert_eq!(transcript.commands(24), 2);
    }
}
