//! What the server answers while others are away: the API server, upstreams, itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tests::ledger::{Holdings, forget_peak};
use tests::wait;

use crate::Rule;
use crate::cluster::{cluster_ip, endpoint, slice};
use crate::subject::{Config, DEADLINE, Subject};

/// Some of everything.
const KNOWN: &[Rule] = &[(
    "what was known answers",
    &[
        ("svc1.testns.svc A", "NOERROR A 10.0.0.1"),
        (
            "hdls-three.testns.svc A",
            "NOERROR A 10.244.3.1 A 10.244.3.2 A 10.244.3.3",
        ),
        ("172-0-0-3.testns.pod A", "NOERROR A 172.0.0.3"),
        ("5678-abcd--50.testns.pod AAAA", "NOERROR AAAA 5678:abcd::50"),
        ("1.0.0.10.in-addr.arpa. PTR", "NOERROR PTR svc1.testns.svc"),
        (
            "external-internal.testns.svc A",
            "NOERROR CNAME svc1.testns.svc svc1.testns.svc A 10.0.0.1",
        ),
        ("nosvc.testns.svc A", "NXDOMAIN"),
        ("172-0-0-99.testns.pod A", "NXDOMAIN"),
    ],
)];

fn start() -> Option<Subject> {
    let subject = Subject::with(Config {
        options: "pods verified",
        plugins: "forward . 127.0.0.1:1",
        ..Config::default()
    });
    if !subject.is_ours {
        tests::skipped("survival", "another server keeps no snapshot");
        return None;
    }
    subject.wait_until("172-0-0-3.testns.pod A", "NOERROR A 172.0.0.3");
    Some(subject)
}

/// Where the only snapshot of a directory is kept.
pub fn snapshot_in(directory: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files = entries.map(|entry| entry.path());
    files.find(|file| file.extension().is_some_and(|extension| extension == "snapshot"))
}

/// Pods are listed beside the kinds that a snapshot waits for, and may come to be saved later.
const WITH_PODS: &str = r#"{"synced":"Pod"}"#;

/// The snapshot on disk holds `text`.
fn wait_until_saved(subject: &Subject, text: &str) {
    wait::until("the snapshot is saved", DEADLINE, || {
        let file = snapshot_in(subject.directory.path()).unwrap_or_default();
        let saved = fs::read_to_string(file).unwrap_or_default();
        if saved.contains(text) {
            Ok(())
        } else {
            Err(saved.len())
        }
    });
}

#[test]
fn cluster_names_answer_while_the_api_server_and_every_upstream_are_dead() {
    let Some(subject) = start() else { return };
    subject.api.go_down();
    subject.check(KNOWN);
    subject.check(&[("nobody answers for others", &[("example.com. A", "SERVFAIL")])]);
}

#[test]
fn a_restart_answers_before_the_api_server_does_and_then_follows_it() {
    let Some(mut subject) = start() else { return };
    wait_until_saved(&subject, WITH_PODS);
    subject.api.go_down();
    let began = Instant::now();
    subject.restart();
    subject.check(KNOWN);
    let took = began.elapsed();
    assert!(took.as_secs() < 4, "it waited for the API server: {took:?}");

    // What changed meanwhile is known as soon as the API server is back.
    let gone = cluster_ip("testns", "svc1", &["10.0.0.1"], &[]);
    subject.api.delete(&gone);
    subject
        .api
        .put(cluster_ip("testns", "fresh", &["10.0.0.55"], &[]));
    subject.api.come_up();
    subject.wait_until("fresh.testns.svc A", "NOERROR A 10.0.0.55");
    subject.wait_until("svc1.testns.svc A", "NXDOMAIN");
    subject.wait_until("hdls-skewed.testns.svc A", "NOERROR A 172.0.0.33");
}

#[test]
fn a_crash_while_the_snapshot_is_written_costs_nothing_that_was_known() {
    let Some(mut subject) = start() else { return };
    wait_until_saved(&subject, WITH_PODS);
    subject.api.go_down();
    // What a crash leaves beside the file, and what a full disk might.
    fs::write(
        snapshot_in(subject.directory.path())
            .expect("saved")
            .with_extension("snapshot.new"),
        "{\"begin\":{\"ver",
    )
    .expect("written");
    subject.restart();
    subject.check(KNOWN);
}

#[test]
fn a_relist_takes_little_more_memory_than_there_is() {
    const SERVICES: usize = 5_000;
    let Some(subject) = start() else { return };
    for number in 0..SERVICES {
        let (name, high, low) = (format!("s{number}"), number / 250, number % 250);
        let ports = &[("http", "TCP", 80)];
        subject.api.put(cluster_ip(
            "testns",
            &name,
            &[&format!("10.9.{high}.{low}")],
            ports,
        ));
        let endpoints = (0..10).map(|n| endpoint(&format!("10.{}.{high}.{low}", 100 + n)));
        subject.api.put(slice(
            "testns",
            &format!("{name}-x"),
            &name,
            ports,
            endpoints.collect(),
        ));
    }
    let last = format!("s{}", SERVICES - 1);
    wait_until_saved(&subject, &format!("\"{last}-x\""));
    let pid = subject.process.pid();
    let lists = || {
        let requests = subject.api.requests();
        let lists = requests
            .iter()
            .filter(|request| request.contains("sendInitialEvents"));
        lists.count()
    };
    let before = lists();
    forget_peak(pid).expect("our own process");
    let holdings = || Holdings::of(pid).expect("it runs");
    let steady = holdings().resident_kib;
    subject.api.compact();
    wait::until_value("every kind is listed again", DEADLINE, lists, |now| {
        *now >= before + 4
    });
    // Lists come in the order of names: what comes last in both tells that they have been taken.
    subject
        .api
        .put(cluster_ip("testns", "zz-last", &["10.0.0.56"], &[]));
    subject.api.put(slice(
        "testns",
        "zz-last-x",
        "zz-last",
        &[],
        vec![endpoint("10.0.0.57")],
    ));
    subject.wait_until("10-0-0-57.zz-last.testns.svc A", "NOERROR A 10.0.0.57");
    let peak = holdings().peak_kib;
    println!("memory {steady} KiB, at most {peak} KiB while {SERVICES} Services are listed again");
    assert!(
        peak * 100 <= steady * 125,
        "{peak} KiB at the relist, {steady} KiB before"
    );
}
