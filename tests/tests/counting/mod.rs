//! Commands that count packets until they are ended.

use std::collections::BTreeSet;
use std::io::{BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::attached::{attached_by, programs_of};
use tests::cluster::program;
use tests::wait;

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

impl Drop for Counting {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

/// The command runs to its end as this user.
pub fn run_as(user: u32, arguments: &[&str]) -> Output {
    let output = Command::new(program("causeway"))
        .args(arguments)
        .uid(user)
        .output();
    output.expect("started")
}
