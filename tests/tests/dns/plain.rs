//! A server without a cluster: what a Corefile alone makes of it.

use std::net::SocketAddr;
use std::time::Duration;

use tests::directory::Directory;
use tests::probe::queries;
use tests::process::Process;
use tests::{http, wait};

use crate::message::ask_udp;
use crate::subject::{DEADLINE, start_causeway};

/// No answer on the loopback takes longer.
const ANSWER: Duration = Duration::from_secs(5);

/// `causeway dns` with a Corefile of its own.
pub struct Plain {
    pub process: Process,
    directory: Directory,
}

impl Plain {
    /// Starts it, and waits until it serves.
    #[track_caller]
    pub fn start(corefile: &str) -> Self {
        Self::start_with(corefile, &[])
    }

    /// The same with further arguments.
    #[track_caller]
    pub fn start_with(corefile: &str, arguments: &[&str]) -> Self {
        let directory = Directory::new("plain");
        let path = directory.write("Corefile", corefile).display().to_string();
        let arguments = [&["dns", "--conf", &path], arguments].concat();
        let mut process = start_causeway(&arguments);
        process.await_line("serving", DEADLINE);
        Self { process, directory }
    }

    /// Puts another Corefile in the place of its own.
    pub fn write(&self, corefile: &str) {
        let path = self.directory.path().join("Corefile");
        std::fs::write(path, corefile).expect("written");
    }
}

/// The address of a name, or what the answer says instead, or `silence`.
pub fn ask(server: SocketAddr, name: &str) -> String {
    let packet = queries::query(7, name);
    let Some(answer) = ask_udp(server, &packet, ANSWER) else {
        return "silence".to_owned();
    };
    queries::address(&packet, &answer).map_or_else(|instead| instead, |address| address.to_string())
}

#[track_caller]
pub fn wait_until(server: SocketAddr, name: &str, expected: &str) {
    wait::until_value(name, DEADLINE, || ask(server, name), |found| found == expected);
}

/// The value of a metric, its labels given.
#[track_caller]
pub fn metric(pages: SocketAddr, series: &str) -> u64 {
    let page = http::get(pages, "/metrics").expect("a page");
    let line = page.lines().find_map(|line| line.strip_prefix(series));
    let line = line.unwrap_or_else(|| panic!("{series} is not in {page}"));
    line.trim().parse().expect("a number")
}

/// What a line of a process's status tells, in KiB. `VmData` is what it may write to, touched or not.
pub fn memory(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.expect("it is told").trim().trim_end_matches(" kB");
    number.parse().expect("a number")
}
