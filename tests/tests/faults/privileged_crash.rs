//! A proxy dies in the middle of a sync: a process of its own is killed at its k-th call of the kernel.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proxy::Proxy;
use tests::{is_full_run, privileged, process, skipped};

use crate::snapshots::{config, snapshot};
use crate::world::World;

/// What writes to nftables and to BPF maps.
const CALLS: &str = "sendto,sendmsg,bpf";

/// The bar of F4 and F5 for the next process.
const RECOVERED: Duration = Duration::from_secs(5);

/// Kills on a normal run, evenly over all calls; on a full one there is one at each call, as far as they get in time.
const SAMPLES: usize = 10;
const LONGEST: Duration = Duration::from_secs(900);

/// All calls, so that those of any beginning of the list are spread evenly: each pass over them begins one earlier.
fn spread(calls: usize) -> impl Iterator<Item = usize> {
    let step = (calls / SAMPLES).max(1);
    (0..step).flat_map(move |offset| (1..=calls - offset).rev().step_by(step))
}

const OTHERS: u16 = 20;

/// The two states. Each has endpoints of its own, so that a mixture shows.
const OLD: [u16; 2] = [1, 2];
const NEW: [u16; 2] = [3, 4];

/// The process that is killed.
#[test]
#[ignore = "runs in a process of its own, started by another test"]
fn syncer() {
    let Ok(datapath) = std::env::var("CWT_FAULTS_SYNC") else {
        return;
    };
    let datapath = match datapath.split_once('\n') {
        Some((cgroup, pin_dir)) => proxy::DatapathKind::Ebpf {
            cgroup: cgroup.into(),
            pin_dir: pin_dir.into(),
        },
        None => proxy::DatapathKind::Nftables,
    };
    let config = proxy::Config {
        settings: crate::snapshots::settings(),
        datapath,
    };
    let mut proxy = Proxy::open(&config).expect("a proxy");
    let report = proxy.sync(&snapshot(&NEW, OTHERS));
    assert!(
        report.failures.is_empty() && report.common_failures.is_empty(),
        "{report:?}"
    );
    println!("\nSYNCED {}", report.writes);
}

/// Runs [`syncer`] on the node under strace.
fn run_syncer(world: &World, strace: &[&str]) -> Result<process::Output> {
    let datapath = match config(world).datapath {
        proxy::DatapathKind::Ebpf { cgroup, pin_dir } => {
            format!("{}\n{}", cgroup.display(), pin_dir.display())
        }
        _ => "nftables".to_owned(),
    };
    let program = std::env::current_exe()?;
    let mut command = Command::new("strace");
    command
        .args(["-f", "-qq", "-e", &format!("trace={CALLS}")])
        .args(strace)
        .arg(program);
    command.args([
        "--ignored",
        "--exact",
        "privileged_crash::syncer",
        "--nocapture",
        "--test-threads=1",
    ]);
    command.env("CWT_FAULTS_SYNC", datapath);
    process::run_in(&world.node.host().place(), &mut command, b"")
}

/// How often the busiest thread of [`syncer`] calls: strace counts for each thread.
fn count_calls(world: &World) -> Result<usize> {
    let trace = world.node.directory.path().join("trace");
    let output = run_syncer(world, &["-o", &trace.display().to_string()])?;
    ensure!(output.stdout.contains("SYNCED"), "{output:?}");
    let text = std::fs::read_to_string(trace)?;
    let calls = text.lines().filter(|line| !line.contains("resumed>"));
    let mut by_thread = std::collections::BTreeMap::<&str, usize>::new();
    for thread in calls.filter_map(|line| line.split_whitespace().next()) {
        *by_thread.entry(thread).or_default() += 1;
    }
    by_thread.into_values().max().context("it calls")
}

#[track_caller]
fn check_crashes(datapath: &'static str) -> Result<()> {
    if Command::new("strace").arg("-V").output().is_err() {
        skipped("a sync that dies (F4, F5)", "strace is not installed");
        return Ok(());
    }
    let world = World::build(&format!("crash-{datapath}"), datapath)?;
    let open = || -> Result<Proxy> { Ok(world.node.host().run(|| Proxy::open(&config(&world)))??) };
    open()?.sync(&snapshot(&OLD, OTHERS));
    let calls = count_calls(&world)?;
    open()?.sync(&snapshot(&OLD, OTHERS));
    let attempts = world.connections(40)?;
    let kills_at_most = if is_full_run() { calls } else { SAMPLES };
    let began = Instant::now();
    let (mut kills, mut longest) = (0, Duration::ZERO);
    for k in spread(calls).take(kills_at_most) {
        if began.elapsed() > LONGEST {
            break;
        }
        let inject = format!("inject={CALLS}:signal=SIGKILL:when={k}");
        let output = run_syncer(&world, &["-o", "/dev/null", "-e", &inject])?;
        ensure!(
            !output.stdout.contains("SYNCED") || k == calls,
            "call {k} of {calls}: {output:?}"
        );
        kills += 1;
        attempts.iter().for_each(|attempts| attempts.await_more(4));
        let start = Instant::now();
        let mut proxy = open()?;
        let report = proxy.sync(&snapshot(&NEW, OTHERS));
        longest = longest.max(start.elapsed());
        assert!(
            report.failures.is_empty() && report.common_failures.is_empty(),
            "{datapath}, killed at {k}: {report:?}"
        );
        let audit = proxy.audit();
        assert!(audit.is_clean(), "{datapath}, killed at {k}: {audit:?}");
        proxy.sync(&snapshot(&OLD, OTHERS));
    }
    println!(
        "F4, F5 {datapath}: killed at {kills} of {calls} calls; the next process was done within {longest:?}"
    );
    assert!(longest <= RECOVERED, "{longest:?}");
    for attempts in &attempts {
        assert_eq!(attempts.lost(), [], "{datapath}: of {}", attempts.all().len());
    }
    Ok(())
}

#[test]
fn a_sync_of_rules_that_dies_leaves_one_state_or_the_other() -> Result<()> {
    if !privileged("a sync of rules that dies (F4)") {
        return Ok(());
    }
    check_crashes("nftables")
}

#[test]
fn a_sync_of_the_hook_that_dies_leaves_no_frontend_without_endpoints() -> Result<()> {
    if !privileged("a sync of the hook that dies (F5)") {
        return Ok(());
    }
    check_crashes("ebpf")
}
