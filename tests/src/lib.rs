//! The testkit: what black-box tests of every area share.
//!
//! - [`topology`]: hosts and LANs made of network namespaces.
//! - [`ledger`]: what a node has and an agent holds, before a fault and after it.
//! - [`ports`]: ports for programs that cannot choose their own.
//! - [`probe`]: traffic that goes on while faults are made, and counts what it loses.
//! - [`process`]: child processes inside a host and a cgroup, with their output, ended when dropped.
//! - [`attached`]: the BPF programs of a process.
//! - [`bpffs`]: BPF file systems, unmounted when dropped.
//! - [`cgroup`]: cgroup v2 directories, removed when dropped.
//! - [`directory`]: temporary directories, removed when dropped.
//! - [`etcd`]: Debian's etcd.
//! - [`api`]: the Kubernetes API of any cluster, and commands in its pods; [`client`]: who asks Services.
//! - [`cluster`]: a whole cluster, by `causeway up`, and kubectl on it; [`kubectl`]: that of each version.
//! - [`traced`]: `causeway trace`, and what its tests need around it.
//! - [`tracked`]: a table of connections that is full.
//! - [`transcript`]: what is typed at a cluster and what is printed then, as a text that is played.
//! - [`image`]: the image of `node/deploy`, of this build's programs.
//! - [`network`]: a pod network of several nodes, with agents and an etcd.
//! - [`node`]: a node for an agent, with a fake API server of its own.
//! - [`fake_api`]: a Kubernetes API server that is fed with JSON and misbehaves on demand.
//! - [`collector`]: who takes an agent's traces.
//! - [`name_server`]: name servers that answer what a test wants; [`http`]: pages.
//! - [`route`]: routes of this machine, removed when dropped.
//! - [`rr`]: request and response, measured between arms of one run.
//! - [`pcapng`]: captures, read back.
//! - [`sctp`]: SCTP's first two packets, for kernels without SCTP sockets.
//! - [`packages`]: what the programs are built of, and their bill of materials.
//! - [`wait`]: awaiting a condition with a deadline, instead of sleeping.
//! - [`privileged`]: the gate before everything that needs root; [`is_full_run`]: how much shall be tried.
//!
//! Everything that it makes in the system is named `cwt-PID-N-LABEL`, so that tests run side by side, and what a
//! killed test left behind is recognised and removed by the next one.

pub mod api;
pub mod attached;
pub mod bpffs;
pub mod cgroup;
pub mod client;
pub mod cluster;
pub mod collector;
pub mod directory;
pub mod etcd;
pub mod fake_api;
pub mod http;
pub mod image;
pub mod kubectl;
pub mod ledger;
pub mod name_server;
pub mod network;
pub mod node;
pub mod packages;
pub mod pcapng;
pub mod ports;
pub mod probe;
pub mod process;
pub mod route;
pub mod rr;
pub mod sctp;
pub mod topology;
pub mod traced;
pub mod tracked;
pub mod transcript;
pub mod wait;

use std::sync::atomic::{AtomicU32, Ordering};

/// Whether a privileged test can run; says loudly on standard error when it cannot.
///
/// ```no_run
/// # fn test() {
/// if !tests::privileged("pods on two nodes reach each other") {
///     return;
/// }
/// # }
/// ```
#[must_use]
pub fn privileged(test: &str) -> bool {
    let root =
        std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !root {
        skipped(test, "needs root");
    }
    root
}

/// Says loudly that a test did not run.
pub fn skipped(test: &str, reason: &str) {
    eprintln!("\n==== SKIPPED: {test}: {reason} ====\n");
}

/// Whether the counts shall be those of papers and of the fault matrix, and not those for every change:
/// `CAUSEWAY_TEST_FULL` is 1.
#[must_use]
pub fn is_full_run() -> bool {
    std::env::var_os("CAUSEWAY_TEST_FULL").is_some_and(|value| value == "1")
}

/// A name that no other test uses: `cwt-PID-N-LABEL`.
pub(crate) fn unique_name(label: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("cwt-{}-{number}-{label}", std::process::id())
}

/// Whether a name was made by [`unique_name`] of a test process that is gone.
pub(crate) fn is_stale(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("cwt-") else {
        return false;
    };
    let Some((pid, _)) = rest.split_once('-') else {
        return false;
    };
    pid.parse::<u32>()
        .is_ok_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_names_of_dead_test_processes_are_stale() {
        let own = super::unique_name("x");
        let rows = [
            (own.as_str(), false),
            ("cwt-4294967294-0-x", true),
            ("cwt-x-1", false),
            ("cwt-nl-1", false),
            ("node-1", false),
        ];
        for (name, stale) in rows {
            assert_eq!(super::is_stale(name), stale, "{name}");
        }
    }
}
