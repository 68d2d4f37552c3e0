//! Commands that count packets until they are ended.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::attached::{attached_by, programs_of};
use tests::cluster::program;
use tests::wait;

use super::loaded::loaded;

pub const SOON: Duration = Duration::from_secs(20);

/// `causeway drops` or `causeway flows`, once it counts; killed when dropped.
pub struct Counting(pub Child);

impl Counting {
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(program("causeway"));
        command.args(arguments).stdout(Stdio::piped());
        let child = command.spawn().expect("started");
        let counting = Self(child);
        // A link is what attaches a program.
        let links = if arguments.first() == Some(&"flows") { 3 } else { 1 };
        let attached = || attached_by(counting.0.id()).len();
        wait::until_value("the links", SOON, attached, |attached| *attached == links);
        counting
    }

    pub fn programs(&self) -> BTreeSet<u32> {
        programs_of(self.0.id())
    }

    /// Ends it as Ctrl-C does. Returns what it printed and its exit code.
    pub fn interrupt(mut self) -> (String, Option<i32>) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("a pid"));
        kill(pid, Signal::SIGINT).expect("told");
        let mut text = String::new();
        let output = self.0.stdout.take().expect("piped");
        BufReader::new(output).read_to_string(&mut text).expect("read");
        (text, self.0.wait().expect("ended").code())
    }
}

/// The lines that a command prints while it runs. Nobody reads on once this is dropped.
pub struct Lines(Receiver<String>);

impl Lines {
    pub fn of(counting: &mut Counting) -> Self {
        let (sender, lines) = channel();
        let output = BufReader::new(counting.0.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            for line in output.lines() {
                if sender.send(line.expect("text")).is_err() {
                    break;
                }
            }
        });
        Self(lines)
    }

    /// The next one, which has to come soon.
    #[track_caller]
    pub fn next(&self) -> String {
        self.0.recv_timeout(SOON).expect("a line in time")
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

/// Whether nothing of a command is left that was killed: it attaches so many programs.
pub fn leaves_nothing(arguments: &[&str], programs: usize) {
    let mut counting = Counting::start(arguments);
    let own = wait::until_value(
        "the programs",
        SOON,
        || counting.programs(),
        |own| own.len() == programs,
    );
    counting.0.kill().expect("killed");
    counting.0.wait().expect("ended");
    let left = || loaded().intersection(&own).copied().collect::<BTreeSet<u32>>();
    wait::until_value("their end", SOON, left, BTreeSet::is_empty);
}

/// Whether each of these is refused with exit code 2 and such a text, whoever asks so.
pub fn refuses(command: &str, rows: &[(&[&str], &str)]) {
    for (arguments, part) in rows {
        let (code, told) = run_as(0, &[&[command], *arguments].concat());
        assert_eq!(code, Some(2), "{arguments:?}: {told}");
        assert!(told.contains(part), "{arguments:?}: {told}");
    }
}

/// The exit code and what is said on standard error, where this user runs it to its end.
pub fn run_as(user: u32, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(program("causeway"))
        .args(arguments)
        .uid(user)
        .output();
    let output = output.expect("started");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}
