//! `causeway bench` on a machine: what a run leaves, whole or interrupted, and what is said of two. How long something took
//! is asserted nowhere.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tests::cluster::program;
use tests::directory::Directory;
use tests::process::{Output, Place, run_in};

const EXPERIMENTS: [&str; 3] = ["tcp-rr", "tcp-crr", "udp-rr"];

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(program("causeway"));
    run_in(&Place::default(), command.arg("bench").args(arguments), b"").expect("it runs")
}

fn results(directory: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(directory.join("results.json")).ok()?).ok()
}

/// A run's results in which an arm takes so many times as long as it did.
fn slowed(of: &Value, arm: &str, times: f64) -> Value {
    let mut results = of.clone();
    for experiment in results["experiments"].as_array_mut().expect("some") {
        let arms = experiment["arms"].as_array_mut().expect("some").iter_mut();
        for arm in arms.filter(|found| found["name"] == arm) {
            for samples in arm["samples"].as_object_mut().expect("some").values_mut() {
                for sample in samples.as_array_mut().expect("some") {
                    *sample = json!(sample.as_f64().expect("a number") * times);
                }
            }
        }
    }
    results
}

/// Twelve rounds of two arms and the first of them again, which differ from round to round.
fn recorded() -> Value {
    let samples = |times: f64| -> Value {
        let rounds: Vec<f64> = (0..12_u32)
            .map(|round| times * (20.0 + f64::from(round * 7 % 5) / 10.0))
            .collect();
        json!({"p01": rounds, "p50": rounds, "p99": rounds, "cpu": rounds})
    };
    let arm = |name: &str, again: Option<&str>, times: f64| {
        let mut arm = json!({"name": name, "about": "", "samples": samples(times)});
        if let Some(again) = again {
            arm["again"] = again.into();
        }
        arm
    };
    let arms = [
        arm("veth", None, 1.0),
        arm("routed", None, 1.2),
        arm("veth again", Some("veth"), 1.0),
    ];
    json!({
        "form": 1, "begun": "2026-12-01T00:00:00Z", "finished": true, "command": ["causeway", "bench"], "machine": {},
        "experiments": [{"name": "tcp-rr", "about": "", "arms": arms, "rounds": [], "absent": []}],
    })
}

#[test]
fn what_takes_more_than_before_is_told_by_the_exit_code() {
    let directory = Directory::new("bench-compare");
    let before = recorded();
    let write =
        |name: &str, results: &Value| directory.write(name, &results.to_string()).display().to_string();
    let before_file = write("before.json", &before);
    for (name, arm, times, code, words) in [
        ("same.json", "routed", 1.0, 0, "as before"),
        ("slower.json", "routed", 1.1, 1, "TAKES MORE 1.100"),
        ("faster.json", "routed", 0.9, 0, "takes less 0.900"),
    ] {
        let after = write(name, &slowed(&before, arm, times));
        let said = bench(&["compare", &before_file, &after]);
        said.assert_said(code, &[]);
        let routed: Vec<&str> = said
            .stdout
            .lines()
            .filter(|line| line.contains(" routed "))
            .collect();
        assert_eq!(routed.len(), 3, "p01, p50, CPU: {}", said.stdout);
        assert!(
            routed.iter().all(|line| line.contains(words)),
            "{name}: {}",
            said.stdout
        );
    }
    // A machine that is slower as a whole.
    let mut slower = before.clone();
    for arm in ["veth", "routed", "veth again"] {
        slower = slowed(&slower, arm, 2.0);
    }
    bench(&["compare", &before_file, &write("all.json", &slower)]).assert_said(0, &[]);
}

#[test]
fn what_cannot_be_read_or_meant_is_refused() {
    let directory = Directory::new("bench-refused");
    let newer = directory.write("newer.json", r#"{"form": 2, "of": "another time"}"#);
    let other = directory.write("other.json", r#"{"form": 1}"#);
    let whole = directory.write("whole.json", &recorded().to_string());
    let [newer, other, whole] = [newer, other, whole].map(|path| path.display().to_string());
    for (arguments, words) in [
        (
            vec!["compare", &whole, &newer],
            "has form 2, and 1 is the newest that is known here",
        ),
        (
            vec!["compare", &other, &whole],
            "is no results.json: missing field `begun`",
        ),
        (
            vec!["compare", "/none/such", &whole],
            "read /none/such: No such file",
        ),
        (vec!["report", "/none/such"], "read /none/such: No such file"),
        (
            vec!["report", &whole, "-o", "/none/such"],
            "write /none/such: No such file",
        ),
        (vec!["tcp"], r#""tcp" is none of tcp-rr, tcp-crr, udp-rr"#),
        (vec!["--rounds", "1"], "1 is not in 2..=10000"),
        (vec!["compare", &whole], "<AFTER>"),
    ] {
        let said = bench(&arguments);
        assert_eq!(said.status.code(), Some(2), "{arguments:?}: {said:?}");
        assert!(said.stderr.contains(words), "{arguments:?}: {}", said.stderr);
    }
}

#[test]
fn a_page_needs_nothing_but_a_browser() {
    let directory = Directory::new("bench-page");
    let mut results = recorded();
    results["finished"] = false.into();
    results["command"] = json!(["causeway", "bench", "<script>alert(1)</script>"]);
    results["experiments"][0]["arms"][0]["peer"] = true.into();
    results["experiments"][0]["arms"][1]["ours"] = true.into();
    results["experiments"][0]["absent"] = json!([{"arm": "flannel", "why": "no flanneld & no etcd"}]);
    let file = directory.write("results.json", &results.to_string());
    let page = directory.path().join("page.html");
    let paths = [&file, &page].map(|path| path.display().to_string());
    bench(&["report", &paths[0], "-o", &paths[1]]).assert_said(0, &[]);
    let page = fs::read_to_string(page).expect("written");
    for none in ["<script", "http:", "https:", "url(", "src="] {
        assert!(!page.contains(none), "{none}");
    }
    for there in [
        "<svg",
        "Partial",
        "Where we lose",
        "<li>tcp-rr: routed takes <span class=\"more\">20.0 % more</span> p50 than veth</li>",
        "&lt;script&gt;",
        "flannel: no flanneld &amp; no etcd",
    ] {
        assert!(page.contains(there), "{there}");
    }
}

mod privileged {
    use std::sync::{Mutex, PoisonError};
    use std::time::Duration;

    use netlink::Namespace;
    use tests::process::{Process, command};
    use tests::{cgroup, privileged, wait};

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    /// A run takes away what a killed one left, whosever that is.
    static ALONE: Mutex<()> = Mutex::new(());

    /// What runs of that process have in the system, or of any.
    fn left(pid: Option<u32>) -> Vec<String> {
        let begin = pid.map_or_else(|| "cwb-".to_owned(), |pid| format!("cwb-{pid}-"));
        let names = |directory: &Path| -> Vec<String> {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            entries
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect()
        };
        let mut left = Namespace::pinned().expect("listed");
        left.extend(names(&cgroup::mount_point().expect("a hierarchy")));
        left.extend(names(&std::env::temp_dir()));
        left.retain(|name| name.starts_with(&begin));
        left
    }

    fn start(out: &str) -> Process {
        let place = Place::default();
        let mut command = command(&place, program("causeway"));
        command.args(["bench", "tcp-rr", "--rounds", "10000", "--out", out]);
        Process::spawn(&place, &mut command).expect("it starts")
    }

    fn await_round(out: &Path) {
        let rounds = || {
            let results = results(out)?;
            Some(results["experiments"][0]["rounds"].as_array()?.len())
        };
        wait::until_value("a round is written", SOON, rounds, |rounds| {
            rounds.is_some_and(|rounds| rounds > 0)
        });
    }

    #[test]
    fn a_run_leaves_its_results_and_nothing_else() {
        if !privileged("a run leaves its results and nothing else") {
            return;
        }
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = Directory::new("bench-run");
        let out = directory.path().join("out");
        let path = out.display().to_string();
        let said = bench(&["--rounds", "2", "--out", &path]);
        said.assert_said(0, &[]);
        let found = results(&out).expect("written");
        assert_eq!((&found["form"], &found["finished"]), (&json!(1), &json!(true)));
        assert!(found["machine"]["kernel"].is_string(), "{found}");
        let experiments = found["experiments"].as_array().expect("some");
        let names: Vec<&str> = experiments
            .iter()
            .filter_map(|found| found["name"].as_str())
            .collect();
        assert_eq!(names, EXPERIMENTS);
        for experiment in experiments {
            let arms = experiment["arms"].as_array().expect("some");
            let names: Vec<&str> = arms.iter().filter_map(|arm| arm["name"].as_str()).collect();
            assert_eq!(
                names,
                [
                    "veth",
                    "routed",
                    "causeway nftables",
                    "causeway ebpf",
                    "routed again"
                ]
            );
            for (arm, metric) in arms
                .iter()
                .flat_map(|arm| ["p01", "p50", "p99", "cpu"].map(|metric| (arm, metric)))
            {
                let samples = arm["samples"][metric].as_array().expect("some");
                assert_eq!(samples.len(), 2, "{arm}");
                assert!(
                    samples
                        .iter()
                        .all(|sample| sample.as_f64().is_some_and(|time| time > 0.0)),
                    "{arm}"
                );
            }
            assert!(
                said.stdout
                    .contains(&format!("{}: ", experiment["name"].as_str().expect("a name")))
            );
        }
        let mut files: Vec<_> = fs::read_dir(&out)
            .expect("there")
            .flatten()
            .map(|file| file.file_name())
            .collect();
        files.sort();
        assert_eq!(files, ["report.html", "results.json"]);
        let again = bench(&["--rounds", "2", "--out", &path]);
        assert_eq!(again.status.code(), Some(2));
        assert!(
            again
                .stderr
                .contains("results.json is there: choose another --out"),
            "{}",
            again.stderr
        );
    }

    #[test]
    fn what_was_measured_stays_and_all_else_goes_whoever_ends_a_run() {
        if !privileged("what was measured stays, whoever ends a run") {
            return;
        }
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = Directory::new("bench-ended");
        let out = |name: &str| directory.path().join(name);
        let mut told = start(&out("told").display().to_string());
        await_round(&out("told"));
        told.terminate().expect("it is told");
        assert_eq!(told.await_end(SOON).code(), Some(1));
        assert_eq!(left(Some(told.pid())), [""; 0]);
        assert_eq!(results(&out("told")).expect("written")["finished"], false);
        let page = fs::read_to_string(out("told").join("report.html")).expect("written");
        assert!(page.contains("Partial"));

        let mut killed = start(&out("killed").display().to_string());
        await_round(&out("killed"));
        let pid = killed.pid();
        killed.kill();
        assert_eq!(results(&out("killed")).expect("written")["finished"], false);
        assert_ne!(left(Some(pid)), [""; 0], "nobody took it away");
        let next = bench(&[
            "udp-rr",
            "--rounds",
            "2",
            "--out",
            &out("next").display().to_string(),
        ]);
        next.assert_said(0, &[]);
        assert!(
            next.stderr.contains("was left by a run that was killed"),
            "{}",
            next.stderr
        );
        assert_eq!(left(Some(pid)), [""; 0]);
    }
}
