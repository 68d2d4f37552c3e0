//! §2, execution protocol: parameters, errors, operations.

use std::collections::BTreeSet;

use serde_json::json;
use tests::topology::Host;

use crate::subject::Subject;

const NONE: Vec<String> = Vec::new();

#[test]
fn a_missing_or_wrong_parameter_is_code_4() {
    for subject in Subject::all("CNI §2: parameters") {
        let pod = Host::new("pod").expect("a namespace");
        let required = [
            (
                "ADD",
                &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"][..],
            ),
            ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"]),
            (
                "CHECK",
                &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            ),
        ];
        for (verb, variables) in required {
            for variable in variables {
                let ran = subject.call(verb, "c1", &pod.path()).with(variable, "").run();
                assert_eq!(
                    ran.code(),
                    Some(4),
                    "{} {verb} without {variable}: {ran:?}",
                    subject.name
                );
            }
        }
        let long = "x".repeat(16);
        for (variable, value) in [
            ("CNI_COMMAND", "UPDATE"),
            ("CNI_COMMAND", "add"),
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_CONTAINERID", "-a"),
            ("CNI_IFNAME", long.as_str()),
            ("CNI_IFNAME", "."),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", "a:b"),
            ("CNI_IFNAME", "a b"),
        ] {
            let ran = subject.call("ADD", "c1", &pod.path()).with(variable, value).run();
            assert_eq!(
                ran.code(),
                Some(4),
                "{} {variable}={value}: {ran:?}",
                subject.name
            );
        }
        assert_eq!(subject.devices(), NONE, "{}", subject.name);
    }
}

#[test]
fn add_connects_and_del_leaves_nothing_however_often_and_whatever_is_missing() {
    for subject in Subject::all_of_each_network("CNI §2: ADD and DEL (F10)") {
        let (pod, result) = subject.add("c1");
        let sandbox = pod.path();
        let of_pod = |interface: &&serde_json::Value| interface["sandbox"] == json!(sandbox);
        let interfaces = result["interfaces"].as_array().expect("interfaces");
        let inside = interfaces.iter().find(of_pod).expect("the pod's own");
        let shown = pod
            .command("ip", &["-o", "link", "show", "eth0"])
            .expect("ip runs")
            .stdout;
        assert_eq!(inside["name"], "eth0");
        assert!(
            shown.contains(inside["mac"].as_str().expect("a text")),
            "{}: {shown}",
            subject.name
        );
        let address = result["ips"][0]["address"].as_str().expect("an address");
        let shown = pod
            .command("ip", &["-o", "addr", "show", "eth0"])
            .expect("ip runs")
            .stdout;
        assert!(shown.contains(address), "{}: {shown}", subject.name);

        for _ in 0..2 {
            let ran = subject.call("DEL", "c1", &sandbox).run();
            assert!(ran.success && ran.output.is_null(), "{}: {ran:?}", subject.name);
        }
        assert!(
            !pod.command("ip", &["link", "show", "eth0"])
                .expect("ip runs")
                .status
                .success()
        );
        assert_eq!(subject.devices(), NONE, "{}", subject.name);

        // Of a container that never was, without a namespace, with one that is gone.
        for (container, netns) in [
            ("never", sandbox.as_str()),
            ("never", ""),
            ("never", "/nonexistent"),
        ] {
            let ran = subject
                .call("DEL", container, netns)
                .with("CNI_NETNS", netns)
                .run();
            assert!(ran.success, "{} {container} {netns:?}: {ran:?}", subject.name);
        }
        let (pod, _) = subject.add("c2");
        drop(pod);
        let ran = subject.call("DEL", "c2", "").with("CNI_NETNS", "").run();
        assert!(ran.success, "{}: its namespace went first: {ran:?}", subject.name);
        subject.await_no_rules();
    }
}

#[test]
fn addresses_are_given_once_and_come_back() {
    for subject in Subject::all("CNI §2: addresses") {
        let added: Vec<_> = (0..8).map(|number| subject.add(&format!("c{number}"))).collect();
        let mut addresses: Vec<String> = added
            .iter()
            .map(|(_, result)| result["ips"][0]["address"].to_string())
            .collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), added.len(), "{}", subject.name);
        for (number, (pod, _)) in added.iter().enumerate() {
            assert!(
                subject
                    .call("DEL", &format!("c{number}"), &pod.path())
                    .run()
                    .success
            );
        }
        assert_eq!(subject.devices(), NONE, "{}", subject.name);
    }
}

#[test]
fn a_hundred_at_once_get_an_address_each_and_leave_none() {
    for subject in Subject::ours_with_many_addresses("CNI §2: a hundred at once (F11)") {
        add_and_remove_a_hundred(&subject);
    }
}

fn add_and_remove_a_hundred(subject: &Subject) {
    let results: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..100)
            .map(|number| scope.spawn(move || subject.add(&format!("c{number}"))))
            .collect();
        all.into_iter().map(|one| one.join().expect("served")).collect()
    });
    let addresses: BTreeSet<String> = results
        .iter()
        .map(|(_, result)| result["ips"][0]["address"].to_string())
        .collect();
    assert_eq!((addresses.len(), subject.devices().len()), (100, 100));
    // Whoever was answered for is led.
    let rules = subject.rules_of_pods();
    let led = rules.iter().filter(|rule| rule.starts_with("512:")).count();
    assert_eq!(led, if subject.is_in_vpc() { 100 } else { 0 }, "{rules:?}");
    std::thread::scope(|scope| {
        for (number, (pod, _)) in results.iter().enumerate() {
            scope.spawn(move || {
                let ran = subject.call("DEL", &format!("c{number}"), &pod.path()).run();
                assert!(ran.success, "{ran:?}");
            });
        }
    });
    assert_eq!(subject.devices(), NONE);
    subject.await_no_rules();
}

#[test]
fn an_interface_that_is_there_is_refused_and_stays_as_it_is() {
    for subject in Subject::all_of_each_network("CNI §2: ADD twice (F9)") {
        let (pod, result) = subject.add("c1");
        let show = || {
            pod.command("ip", &["-o", "addr", "show", "eth0"])
                .expect("ip runs")
                .stdout
        };
        let before = show();
        let ran = subject.call("ADD", "c1", &pod.path()).run();
        assert!(!ran.success, "{}: {ran:?}", subject.name);
        // The reference plugins take the address from the interface that they refuse to make again.
        if subject.is_ours() {
            assert_eq!(show(), before);
            let address = result["ips"][0]["address"].as_str().expect("an address");
            let (other, theirs) = subject.add("c2");
            assert_ne!(theirs["ips"][0]["address"], address, "it is still in use");
            assert!(subject.call("DEL", "c2", &other.path()).run().success);
        }
        let foreign = Host::new("pod").expect("a namespace");
        foreign
            .command("ip", &["link", "add", "eth0", "type", "bridge"])
            .expect("ip runs");
        let ran = subject.call("ADD", "c3", &foreign.path()).run();
        assert!(!ran.success, "{}: {ran:?}", subject.name);
        let kept = foreign
            .command("ip", &["-d", "link", "show", "eth0"])
            .expect("ip runs")
            .stdout;
        assert!(kept.contains("bridge"), "{}: {kept}", subject.name);
    }
}

#[test]
fn a_namespace_that_is_missing_or_the_plugins_own_is_refused() {
    for subject in Subject::all("CNI §2: namespaces") {
        let ran = subject.call("ADD", "c1", "/nonexistent").run();
        assert!(!ran.success, "{}: {ran:?}", subject.name);
        if subject.name == "causeway-cni" {
            assert_eq!(ran.code(), Some(3), "{ran:?}");
            let own = subject.call("ADD", "c1", "/proc/self/ns/net").run();
            assert_eq!(own.code(), Some(4), "{own:?}");
        }
        assert_eq!(subject.devices(), NONE, "{}", subject.name);
    }
}

#[test]
fn check_holds_until_something_is_changed() {
    for subject in Subject::all("CNI §2: CHECK") {
        let (pod, result) = subject.add("c1");
        let mut config = subject.config(subject.newest);
        config["prevResult"] = result;
        let check = || {
            subject
                .call("CHECK", "c1", &pod.path())
                .input(config.to_string())
                .run()
        };
        let ran = check();
        assert!(ran.success && ran.output.is_null(), "{}: {ran:?}", subject.name);
        pod.command("ip", &["addr", "flush", "dev", "eth0"])
            .expect("ip runs");
        assert!(!check().success, "{}", subject.name);
        let ran = subject
            .call("CHECK", "other", &pod.path())
            .input(config.to_string())
            .run();
        assert!(!ran.success, "{}: {ran:?}", subject.name);
    }
}

#[test]
fn verbs_are_refused_in_versions_that_do_not_have_them() {
    let Some(subject) = Subject::ours("CNI §2: verbs of versions") else {
        return;
    };
    let (pod, result) = subject.add("c1");
    for (verb, version, code) in [
        ("CHECK", "0.3.1", Some(1)),
        ("CHECK", "0.4.0", None),
        ("STATUS", "1.0.0", Some(1)),
        ("STATUS", "1.1.0", None),
        ("GC", "1.0.0", Some(1)),
    ] {
        let mut config = subject.config(version);
        config["prevResult"] = result.clone();
        let ran = subject
            .call(verb, "c1", &pod.path())
            .input(config.to_string())
            .run();
        assert_eq!(ran.code(), code, "{verb} {version}: {ran:?}");
    }
}

#[test]
fn gc_releases_what_is_not_listed_and_nothing_else() {
    let Some(subject) = Subject::ours("CNI §2: GC") else {
        return;
    };
    let (kept, _) = subject.add("kept");
    let (_stale, _) = subject.add("stale");
    assert_eq!(subject.devices().len(), 2);
    let gc = |valid: serde_json::Value| {
        let mut config = subject.config("1.1.0");
        config["cni.dev/valid-attachments"] = valid;
        subject.call("GC", "", "").input(config.to_string()).run()
    };
    let listed = json!([{"containerID": "kept", "ifname": "eth0"}]);
    for _ in 0..2 {
        let ran = gc(listed.clone());
        assert!(ran.success && ran.output.is_null(), "{ran:?}");
        assert_eq!(subject.devices().len(), 1);
    }
    let ran = subject.call("CHECK", "kept", &kept.path()).run();
    assert!(ran.success, "{ran:?}");
    let missing = subject.call("GC", "", "").run();
    assert_eq!(
        missing.code(),
        Some(7),
        "without the list it would release everything: {missing:?}"
    );
    assert!(gc(json!([])).success);
    assert_eq!(subject.devices(), NONE);
}
