//! Debian's etcd, for what is kept in one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::{self, Place, Process};

/// For it to serve.
const DEADLINE: Duration = Duration::from_secs(30);

/// Where it listens, in the namespace of its place.
pub const URL: &str = "http://127.0.0.1:2379";

/// The program, on PATH or unpacked by `setup.sh test`.
#[must_use]
pub fn program() -> Option<PathBuf> {
    process::installed("etcd")
}

/// Starts it on [`URL`], and waits until it serves.
///
/// # Errors
/// When it cannot be started.
pub fn start(place: &Place, program: &Path, data: &str) -> anyhow::Result<Process> {
    start_at(place, program, data, URL)
}

/// The same on another URL.
///
/// # Errors
/// When it cannot be started.
pub fn start_at(place: &Place, program: &Path, data: &str, url: &str) -> anyhow::Result<Process> {
    let peers = "http://127.0.0.1:2380";
    let mut command = process::command(place, program);
    command
        .args(["--data-dir", data])
        .args(["--listen-client-urls", url, "--advertise-client-urls", url])
        .args([
            "--listen-peer-urls",
            peers,
            "--initial-advertise-peer-urls",
            peers,
        ])
        .args(["--initial-cluster", &format!("default={peers}")]);
    let mut etcd = Process::spawn(place, &mut command)?;
    etcd.await_line("ready to serve client requests", DEADLINE);
    Ok(etcd)
}
