//! The plugin and its agent end, or their disk fails, in the middle of an ADD or a DEL: what a runtime does then, which
//! is DEL, leaves nothing behind, and no address is given twice.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tests::topology::Host;
use tests::{is_full_run, wait};

use crate::subject::{Ran, Subject};

/// How often an agent is killed, each time a millisecond later.
const KILLS: u64 = 8;

/// A call of the kernel: its name, and which one of that name.
type KernelCall = (String, usize);

/// Runs a verb under strace, which kills it at a call of the kernel.
fn killed(subject: &Subject, verb: &str, pod: &Host, (name, at): &KernelCall) -> Ran {
    let inject = format!("inject={name}:signal=SIGKILL:when={at}");
    let call = subject.call(verb, "c1", &pod.path());
    call.under_strace(&["-f", "-qq", "-o", "/dev/null", "-e", &inject])
        .run()
}

/// The calls that a verb makes, in their order.
fn calls(subject: &Subject, verb: &str, pod: &Host) -> Vec<KernelCall> {
    let trace = pod.path().replace("/run/netns/", "/tmp/") + "-trace";
    let call = subject.call(verb, "c1", &pod.path());
    let ran = call.under_strace(&["-f", "-qq", "-o", &trace]).run();
    assert!(ran.success, "{verb}: {ran:?}");
    let text = std::fs::read_to_string(&trace).expect("strace wrote it");
    std::fs::remove_file(&trace).expect("it is there");
    // `PID NAME(…) = …`
    let mut counts = BTreeMap::<&str, usize>::new();
    let names = text
        .lines()
        .filter_map(|line| Some(line.split_whitespace().nth(1)?.split_once('(')?.0));
    names
        .map(|name| {
            let count = counts.entry(name).or_default();
            *count += 1;
            (name.to_owned(), *count)
        })
        .collect()
}

/// What a runtime does with an ADD that failed.
#[track_caller]
fn delete(subject: &Subject, pod: &Host, what: &str) {
    let ran = subject.call("DEL", "c1", &pod.path()).run();
    assert!(ran.success, "DEL {what}: {ran:?}");
    assert_eq!(subject.devices(), Vec::<String>::new(), "{what}");
}

/// All addresses can be given, each once, and no rule for a pod stays.
#[track_caller]
fn nothing_leaked(subject: &Subject) {
    let added: Vec<_> = (0..subject.addresses)
        .map(|number| subject.add(&format!("n{number}")))
        .collect();
    let addresses: BTreeSet<String> = added
        .iter()
        .map(|(_, result)| result["ips"][0]["address"].to_string())
        .collect();
    assert_eq!(
        addresses.len(),
        subject.addresses,
        "{}: {addresses:?}",
        subject.name
    );
    for (number, (pod, _)) in added.iter().enumerate() {
        assert!(
            subject
                .call("DEL", &format!("n{number}"), &pod.path())
                .run()
                .success
        );
    }
    subject.await_no_rules();
}

#[test]
fn a_plugin_that_is_killed_at_any_call_leaves_nothing_once_it_was_deleted() {
    let claim = "CNI: a plugin that is killed (F6)";
    if !std::path::Path::new("/usr/bin/strace").exists() {
        return tests::skipped(claim, "strace is not installed");
    }
    for subject in Subject::ours_with_few_addresses(claim) {
        kill_at_each_call(&subject);
    }
}

fn kill_at_each_call(subject: &Subject) {
    let pod = Host::new("pod").expect("a namespace");
    let add = calls(subject, "ADD", &pod);
    let del = calls(subject, "DEL", &pod);
    let (mut runs, mut ended) = (0, 0);
    for call in &add {
        runs += 1;
        ended += usize::from(!killed(subject, "ADD", &pod, call).success);
        // Either way: a runtime that tries again, or one that gives up.
        if runs % 2 == 0 {
            let ran = subject.call("ADD", "c1", &pod.path()).run();
            let there = subject.call("CHECK", "c1", &pod.path()).run();
            assert!(
                ran.success || there.success,
                "killed at {call:?}: {ran:?} {there:?}"
            );
        }
        delete(
            subject,
            &pod,
            &format!("after an ADD that was killed at {call:?}"),
        );
    }
    for call in &del {
        runs += 1;
        let ran = subject.call("ADD", "c1", &pod.path()).run();
        assert!(ran.success, "{ran:?}");
        ended += usize::from(!killed(subject, "DEL", &pod, call).success);
        delete(subject, &pod, &format!("after a DEL that was killed at {call:?}"));
    }
    nothing_leaked(subject);
    println!(
        "{}: {ended} of {runs} runs were killed, of {} and {} calls",
        subject.name,
        add.len(),
        del.len()
    );
    assert!(ended > runs / 2, "strace kills: {ended} of {runs}");
}

/// How many ADDs and DELs each of four runtimes makes, and on a full run.
const ROUNDS: usize = 50;
const ROUNDS_FULL: usize = 1250;

#[test]
fn after_a_storm_of_adds_and_deletions_with_agents_that_are_killed_nothing_is_left() {
    for subject in Subject::ours_with_few_addresses("CNI: a storm (F6)") {
        storm(&subject);
    }
}

fn storm(subject: &Subject) {
    let rounds = if is_full_run() { ROUNDS_FULL } else { ROUNDS };
    let (working, served) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let kills = std::thread::scope(|scope| {
        let runtime = |number: usize| {
            let (subject, working, served) = (subject, &working, &served);
            working.fetch_add(1, Ordering::Relaxed);
            scope.spawn(move || {
                let pod = Host::new("pod").expect("a namespace");
                let container = format!("storm-{number}");
                for _ in 0..rounds {
                    let ran = subject.call("ADD", &container, &pod.path()).run();
                    served.fetch_add(usize::from(ran.success), Ordering::Relaxed);
                    // It succeeds without an agent, too.
                    let ran = subject.call("DEL", &container, &pod.path()).run();
                    assert!(ran.success || ran.code().is_some(), "{ran:?}");
                }
                working.fetch_sub(1, Ordering::Relaxed);
            })
        };
        let runtimes: Vec<_> = (0..4).map(runtime).collect();
        let mut kills = 0;
        while working.load(Ordering::Relaxed) > 0 {
            let before = served.load(Ordering::Relaxed);
            let goes_on = || (served.load(Ordering::Relaxed), working.load(Ordering::Relaxed));
            let serves = |now: &(usize, usize)| now.0 > before || now.1 == 0;
            wait::until_value("it serves somebody", Duration::from_secs(60), goes_on, serves);
            subject.kill_agent();
            subject.replace_agent();
            kills += 1;
        }
        for runtime in runtimes {
            runtime.join().expect("no panic");
        }
        kills
    });
    let served = served.into_inner();
    for number in 0..4 {
        let ran = subject
            .call("DEL", &format!("storm-{number}"), "")
            .with("CNI_NETNS", "")
            .run();
        assert!(ran.success, "{ran:?}");
    }
    assert_eq!(subject.devices(), Vec::<String>::new());
    nothing_leaked(subject);
    println!(
        "{}: {served} of {} ADDs were served, {kills} agents were killed",
        subject.name,
        4 * rounds
    );
    assert!(served > 0 && kills > 1);
}

/// strace on the agent, which does this to it. It ends with the value.
struct Strace(Child);

impl Strace {
    fn attach(subject: &Subject, inject: &str) -> Self {
        let pid = subject.agent_pid().to_string();
        let child = Command::new("/usr/bin/strace")
            .args(["-f", "-q", "-o", "/dev/null", "-e", inject, "-p", &pid])
            .stderr(Stdio::null())
            .spawn()
            .expect("strace runs");
        let status = format!("/proc/{pid}/status");
        wait::until_value(
            "strace is attached",
            Duration::from_secs(10),
            || std::fs::read_to_string(&status).unwrap_or_default(),
            |text| {
                let traced = |line: &str| line.starts_with("TracerPid:") && !line.ends_with("\t0");
                // What is done to it may have been done at once.
                text.lines()
                    .any(|line| traced(line) || line.starts_with("State:\tZ"))
            },
        );
        Self(child)
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        // It lets go of what it traces.
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

#[test]
fn an_agent_that_is_killed_while_it_serves_gives_no_address_twice() {
    for subject in Subject::ours_with_few_addresses("CNI: an agent that is killed (F6)") {
        kill_agents(&subject);
    }
}

fn kill_agents(subject: &Subject) {
    let (kept, result) = subject.add("kept");
    let pod = Host::new("pod").expect("a namespace");
    let mut refused = 0;
    // From before the plugin has asked to after it was answered.
    for delay_millis in 0..KILLS {
        for verb in ["ADD", "DEL"] {
            let ran = std::thread::scope(|scope| {
                let call = scope.spawn(|| subject.call(verb, "c1", &pod.path()).run());
                std::thread::sleep(Duration::from_millis(delay_millis));
                subject.kill_agent();
                call.join().expect("no panic")
            });
            refused += usize::from(!ran.success);
            subject.replace_agent();
        }
        let deleted = subject.call("DEL", "c1", &pod.path()).run();
        assert!(deleted.success, "{delay_millis} ms: {deleted:?}");
        assert_eq!(subject.devices().len(), 1, "that of the pod that stays");
    }
    let ran = subject.call("CHECK", "kept", &kept.path()).run();
    assert!(ran.success, "{ran:?}");
    let (other, theirs) = subject.add("other");
    assert_ne!(theirs["ips"][0]["address"], result["ips"][0]["address"]);
    for (container, pod) in [("kept", &kept), ("other", &other)] {
        assert!(subject.call("DEL", container, &pod.path()).run().success);
    }
    nothing_leaked(subject);
    let name = subject.name;
    println!("{name}: {refused} calls were refused as their agent was killed");
    assert!(refused > 0, "the first ones come before the plugin has asked");
}

#[test]
fn while_the_disk_fails_nothing_is_given_and_afterwards_everything_is() {
    let claim = "CNI: a disk that fails (F7)";
    if !std::path::Path::new("/usr/bin/strace").exists() {
        return tests::skipped(claim, "strace is not installed");
    }
    for subject in Subject::ours_with_few_addresses(claim) {
        fail_disk(&subject);
    }
}

fn fail_disk(subject: &Subject) {
    let (kept, result) = subject.add("kept");
    let pod = Host::new("pod").expect("a namespace");
    for error in ["ENOSPC", "EIO"] {
        let strace = Strace::attach(subject, &format!("inject=fdatasync:error={error}"));
        let ran = subject.call("ADD", "c1", &pod.path()).run();
        assert_eq!(ran.code(), Some(5), "{error}: {ran:?}");
        assert!(
            !pod.command("ip", &["link", "show", "eth0"])
                .expect("ip runs")
                .status
                .success()
        );
        let ran = subject.call("DEL", "kept", &kept.path()).run();
        assert_eq!(
            ran.code(),
            Some(5),
            "{error}: it may still be in use by the log's word: {ran:?}"
        );
        let status = subject.call("STATUS", "c1", &pod.path()).run();
        assert_eq!(status.code(), Some(50), "{error}: {status:?}");
        drop(strace);
        let status = subject.call("STATUS", "c1", &pod.path()).run();
        assert!(status.success, "after {error}: {status:?}");
        let ran = subject.call("ADD", "c1", &pod.path()).run();
        assert!(ran.success, "after {error}: {ran:?}");
        assert_ne!(
            ran.output["ips"][0]["address"], result["ips"][0]["address"],
            "{error}"
        );
        assert!(subject.call("DEL", "c1", &pod.path()).run().success);
    }
    assert!(subject.call("DEL", "kept", &kept.path()).run().success);
    nothing_leaked(subject);
}

/// What a disk makes of the book of pods' addresses.
type Damage = fn(Vec<u8>) -> Vec<u8>;

/// One bit in the middle of the first record.
fn flip(mut log: Vec<u8>) -> Vec<u8> {
    let end = log.iter().position(|byte| *byte == b'\n').expect("a line");
    log[end / 2] ^= 0x10;
    log
}

/// Records that a later version may write, before those that are there.
fn of_the_future(log: Vec<u8>) -> Vec<u8> {
    [b"99999999 {\"lease\":{\"until\":1}}\n".to_vec(), log].concat()
}

#[test]
fn whatever_the_disk_makes_of_the_book_no_address_is_given_twice_and_pods_stay_led() {
    let damages: [(&str, Damage); 5] = [
        ("empty", |_| Vec::new()),
        ("half of it", |log| log[..log.len() / 2].to_vec()),
        ("zeroes", |log| vec![0; log.len()]),
        ("a bit", flip),
        ("of the future", of_the_future),
    ];
    for subject in Subject::ours_with_few_addresses("CNI: a book that is damaged (F8)") {
        for (what, damage) in damages {
            let kept: Vec<_> = ["a", "b", "c"].iter().map(|id| subject.add(id)).collect();
            let led = subject.rules_of_pods();
            subject.kill_agent();
            let log = std::fs::read(subject.log()).expect("readable");
            std::fs::write(subject.log(), damage(log)).expect("writable");
            subject.replace_agent();
            let more: Vec<_> = (kept.len()..subject.addresses)
                .map(|number| subject.add(&format!("n{number}")))
                .collect();
            let all = kept.iter().chain(&more);
            let addresses: BTreeSet<String> = all
                .map(|(_, result)| result["ips"][0]["address"].to_string())
                .collect();
            assert_eq!(
                addresses.len(),
                subject.addresses,
                "{} {what}: {addresses:?}",
                subject.name
            );
            let now = subject.rules_of_pods();
            assert!(
                led.iter().all(|rule| now.contains(rule)),
                "{what}: {led:?} {now:?}"
            );
            let ids = ["a", "b", "c"].map(str::to_owned).into_iter();
            let ids = ids.chain((kept.len()..subject.addresses).map(|number| format!("n{number}")));
            for (id, (pod, _)) in ids.zip(kept.iter().chain(&more)) {
                let ran = subject.call("DEL", &id, &pod.path()).run();
                assert!(ran.success, "{what}: {id}: {ran:?}");
            }
            assert_eq!(subject.devices(), Vec::<String>::new(), "{what}");
            subject.await_no_rules();
        }
        nothing_leaked(&subject);
    }
}

/// Where an agent is killed: which call of which name after the plugin was started. It writes records and answers, makes
/// them durable, and tells the kernel.
const AGENTS_CALLS: [(&str, usize); 5] = [
    ("write", 1),
    ("write", 3),
    ("fdatasync", 1),
    ("sendto", 1),
    ("sendto", 4),
];

#[test]
fn an_agent_that_is_killed_at_a_call_of_its_own_leaves_nothing_and_gives_no_address_twice() {
    let claim = "CNI: an agent that is killed at a call (F6)";
    if !std::path::Path::new("/usr/bin/strace").exists() {
        return tests::skipped(claim, "strace is not installed");
    }
    for subject in Subject::ours_with_few_addresses(claim) {
        let (kept, result) = subject.add("kept");
        let pod = Host::new("pod").expect("a namespace");
        let mut refused = 0;
        for (name, at) in AGENTS_CALLS {
            for verb in ["ADD", "DEL"] {
                let strace = Strace::attach(&subject, &format!("inject={name}:signal=SIGKILL:when={at}"));
                let ran = subject.call(verb, "c1", &pod.path()).run();
                refused += usize::from(verb == "ADD" && !ran.success);
                subject.kill_agent();
                drop(strace);
                subject.replace_agent();
                if verb == "ADD" && !ran.success {
                    let ran = subject.call("ADD", "c1", &pod.path()).run();
                    assert!(ran.success, "{} {name} {at}: tried again: {ran:?}", subject.name);
                    assert_ne!(ran.output["ips"][0]["address"], result["ips"][0]["address"]);
                    subject.assert_led(&ran);
                }
            }
            let ran = subject.call("DEL", "c1", &pod.path()).run();
            assert!(ran.success, "{} {name} {at}: {ran:?}", subject.name);
            assert_eq!(subject.devices().len(), 1, "that of the pod that stays");
        }
        let ran = subject.call("CHECK", "kept", &kept.path()).run();
        assert!(ran.success, "{}: {ran:?}", subject.name);
        assert!(subject.call("DEL", "kept", &kept.path()).run().success);
        nothing_leaked(&subject);
        println!(
            "{}: {refused} ADDs were refused as their agent was killed at a call",
            subject.name
        );
        assert!(refused >= 2, "{}: strace kills", subject.name);
    }
}
