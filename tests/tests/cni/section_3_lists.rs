//! §3, execution of network configurations: a plugin in a list, between others.

use serde_json::{Value, json};
use tests::topology::Host;

use crate::subject::{REFERENCE, Subject};

/// One plugin of a list, as a runtime calls it: its own fields, and what comes from the list and from before it.
fn request(plugin: &Value, previous: Option<&Value>, runtime_config: &Value) -> String {
    let mut request = plugin.clone();
    request["cniVersion"] = json!("1.0.0");
    request["name"] = json!("list");
    request["runtimeConfig"] = runtime_config.clone();
    if let Some(previous) = previous {
        request["prevResult"] = previous.clone();
    }
    request.to_string()
}

#[test]
fn reference_plugins_go_on_with_what_ours_made_and_ours_undoes_what_they_left() {
    let claim = "CNI §3: a list";
    let Some(subject) = Subject::ours(claim) else {
        return;
    };
    let reference = ["tuning", "bandwidth"].map(|kind| std::path::Path::new(REFERENCE).join(kind));
    if reference.iter().any(|program| !program.exists()) {
        return tests::skipped(claim, "install containernetworking-plugins");
    }
    let own = subject.config("1.0.0");
    let tuning = json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}});
    let pod = Host::new("pod").expect("a namespace");
    let none = json!({});
    let first = subject
        .call("ADD", "c1", &pod.path())
        .input(request(&own, None, &none))
        .run();
    assert!(first.success, "{first:?}");
    let second = subject
        .call("ADD", "c1", &pod.path())
        .by(&reference[0])
        .input(request(&tuning, Some(&first.output), &none))
        .run();
    assert!(second.success, "{second:?}");
    assert_eq!(
        second.output["ips"], first.output["ips"],
        "the result is passed on"
    );
    let set = pod
        .run(|| netlink::sysctl::read("net/core/somaxconn"))
        .expect("entered");
    assert_eq!(set.expect("readable"), "500");

    for (program, plugin) in [(None, &own), (Some(&reference[0]), &tuning)] {
        let mut call = subject.call("CHECK", "c1", &pod.path());
        if let Some(program) = program {
            call = call.by(program);
        }
        let ran = call.input(request(plugin, Some(&second.output), &none)).run();
        assert!(ran.success, "{ran:?}");
    }
    // Backwards, as a runtime deletes.
    for (program, plugin) in [(Some(&reference[0]), &tuning), (None, &own)] {
        let mut call = subject.call("DEL", "c1", &pod.path());
        if let Some(program) = program {
            call = call.by(program);
        }
        let ran = call.input(request(plugin, Some(&second.output), &none)).run();
        assert!(ran.success, "{ran:?}");
    }
    assert_eq!(subject.devices(), Vec::<String>::new());
}

/// A node that changes from flannel keeps its list: `/opt/cni/bin/flannel` is ours from then on.
#[test]
fn under_flannels_name_and_with_its_configuration_it_serves_the_same() {
    let Some(subject) = Subject::ours("CNI §3: type flannel") else {
        return;
    };
    let flannel = subject.copied_as("flannel");
    let mut config = json!({
        "type": "flannel",
        "delegate": {"hairpinMode": true, "isDefaultGateway": true},
        "subnetFile": "/run/flannel/subnet.env",
    });
    config["socket"] = subject.config("1.0.0")["socket"].clone();
    let pod = Host::new("pod").expect("a namespace");
    let call = |verb: &str| {
        let call = subject.call(verb, "c1", &pod.path()).by(&flannel);
        call.input(request(&config, None, &json!({}))).run()
    };
    let added = call("ADD");
    assert!(
        added.success && added.output["ips"][0]["address"].is_string(),
        "{added:?}"
    );
    for verb in ["CHECK", "DEL"] {
        let ran = call(verb);
        assert!(ran.success, "{verb}: {ran:?}");
    }
    assert_eq!(subject.devices(), Vec::<String>::new());
}
