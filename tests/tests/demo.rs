//! The demo as its user runs it: with the built-in store, with a real etcd, and with agents that are pods. It checks
//! each of its steps itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::cluster::{causeway, everything, programs};
use tests::directory::Directory;
use tests::{image, wait};

const END_LIMIT: Duration = Duration::from_secs(20);

/// There is one cluster on a machine at a time.
static MACHINE: Mutex<()> = Mutex::new(());

/// Runs the demo, takes the cluster down again, and returns what the demo printed.
fn run(label: &str, flags: &[&str], environment: &[(&str, &str)]) -> String {
    let _machine = MACHINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let state_dir = PathBuf::from(format!("/var/lib/cwt-demo-{}-{label}", std::process::id()));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo.sh");
    let mut command = Command::new(script);
    command
        .args(flags)
        .env("STATE_DIR", &state_dir)
        .envs(environment.iter().copied());
    let output = command.output().expect("the demo can be started");
    let said = everything(&output);
    let down = causeway("down", &state_dir, &[]).expect("causeway can be started");
    if let Some((etcd, data)) = demo_etcd(&said) {
        kill(etcd, Signal::SIGTERM).expect("the demo's etcd runs");
        wait::until("the demo's etcd ends", END_LIMIT, || match kill(etcd, None) {
            Err(Errno::ESRCH) => Ok(()),
            other => Err(other),
        });
        std::fs::remove_dir_all(data).expect("the demo's etcd left its data");
    }
    assert!(output.status.success(), "{said}");
    assert!(down.status.success(), "{}", everything(&down));
    said
}

/// The demo says `pid N, data in DIRECTORY` of the etcd that it started.
fn demo_etcd(said: &str) -> Option<(Pid, PathBuf)> {
    let line = said.lines().find(|line| line.contains("etcd Version"))?;
    let after = |key: &str| line.split_once(key)?.1.split([' ', ',']).next();
    Some((
        Pid::from_raw(after("pid ")?.parse().ok()?),
        PathBuf::from(after("data in ")?),
    ))
}

#[test]
fn the_demo_passes_with_the_built_in_store() {
    if tests::privileged("the demo") {
        let said = run("store", &[], &[]);
        assert!(said.contains("no request failed"), "{said}");
    }
}

#[test]
fn the_demo_passes_with_a_real_etcd() {
    if !tests::privileged("the demo with a real etcd") {
        return;
    }
    let etcd = programs().join("../tools/usr/bin/etcd");
    let on_path = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("etcd").exists()));
    if !etcd.exists() && !on_path {
        tests::skipped(
            "the demo with a real etcd",
            "no etcd: ./setup.sh test unpacks one",
        );
        return;
    }
    let said = run("etcd", &[], &[("DEMO_ETCD", "1")]);
    assert!(said.contains("--endpoints http://172.30.0.1:12379"), "{said}");
}

#[test]
fn the_demo_passes_with_agents_and_dns_servers_that_are_pods() {
    if !tests::privileged("the demo with DaemonSets") {
        return;
    }
    let directory = Directory::new("demo-image");
    let archive = directory.path().join("causeway.tar");
    image::archive(&archive).expect("an image of this build");
    let archive = archive.to_str().expect("a path");
    let said = run("daemonset", &["--daemonset"], &[("IMAGE", archive)]);
    for shown in ["what programs them are pods", "no request failed"] {
        assert!(said.contains(shown), "{said}");
    }
}
