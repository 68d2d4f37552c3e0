//! `causeway` as it is called.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tests::cluster::program;
use tests::directory::Directory;
use tests::process::copy_program;

#[track_caller]
fn check(command: &mut Command, code: i32, words: &str) {
    let output = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert_eq!((output.status.code(), said.trim_end()), (Some(code), words));
}

#[test]
fn a_cluster_command_without_its_program_says_which_one_is_missing() {
    let directory = Directory::new("alone");
    let alone = directory.path().join("causeway");
    copy_program(&program("causeway"), &alone).expect("copied");
    let missing = directory.path().join("causeway-cluster");
    let words = format!(
        "error: execute {}: No such file or directory (os error 2) (`causeway up` needs the program \
         causeway-cluster in the same directory as causeway)",
        missing.display()
    );
    check(Command::new(&alone).args(["up", "--nodes", "3"]), 2, &words);
}

#[test]
fn a_cluster_command_hands_over_its_arguments_and_exit_code() {
    let directory = Directory::new("together");
    let copy = directory.path().join("causeway");
    copy_program(&program("causeway"), &copy).expect("copied");
    let script = directory.write("causeway-cluster", "#!/bin/sh\necho \"$@\"\nexit 7\n");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(script, executable).expect("own file");
    check(
        Command::new(&copy).args(["status", "-o", "json", "-h"]),
        7,
        "status -o json -h",
    );
}

#[test]
fn a_reader_that_is_gone_is_no_fault() {
    let directory = Directory::new("gone");
    let config = directory.write("node.yaml", "{nodeName: n, proxy: {podNetwork: 10.244.0.0/16}}");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(program("causeway"));
    let config = config.to_str().expect("plain path");
    command
        .args(["node", "config", "print", "--config", config])
        .stdout(writer);
    check(&mut command, 0, "");
}

#[test]
fn a_configuration_is_checked_with_an_exit_code_for_each_outcome() {
    let directory = Directory::new("check");
    let good = directory.write("good.yaml", "{nodeName: n, proxy: {podNetwork: 10.244.0.0/16}}");
    let bad = directory.write("bad.yaml", "stateDir: here\nproxy: {datapath: none}\n");
    let check_file = |path: &Path, code: i32, words: &str| {
        let config = path.to_str().expect("plain path");
        check(
            Command::new(program("causeway")).args(["node", "config", "check", "--config", config]),
            code,
            words,
        );
    };
    check_file(&good, 0, "");
    let words = format!("error: {}: stateDir: here is not an absolute path", bad.display());
    check_file(&bad, 1, &words);
    let words = "error: read /nonexistent.yaml: No such file or directory (os error 2)";
    check_file(Path::new("/nonexistent.yaml"), 2, words);
}

#[test]
fn a_migration_prints_a_configuration_that_its_own_check_takes_and_tells_the_settings_beside_it() {
    let directory = Directory::new("migrate");
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    let run = |text: &str, arguments: &[&str]| {
        let file = directory.write("theirs.yaml", text);
        let mut command = Command::new(program("causeway"));
        command.args(["migrate", "check"]).arg(file).args(arguments);
        let output = command.output().expect("it starts");
        let [config, told] =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        (output.status.code(), config, told)
    };
    let (code, config, told) = run(&format!("{head}clusterCIDR: 10.244.0.0/16"), &[]);
    assert_eq!(code, Some(0), "{told}");
    assert!(
        told.contains("taken          kube-proxy  clusterCIDR: 10.244.0.0/16  (proxy.podNetworks)"),
        "{told}"
    );
    let ours = directory.write("ours.yaml", &config);
    let ours = ours.to_str().expect("plain path");
    check(
        Command::new(program("causeway")).args(["node", "config", "check", "--config", ours]),
        0,
        "",
    );

    let (code, _, told) = run(&format!("{head}windPower: 7"), &[]);
    assert_eq!(code, Some(1), "{told}");
    assert!(
        told.contains("NOT SUPPORTED  kube-proxy  windPower: 7  (is not known here)"),
        "{told}"
    );
    let (code, json, _) = run(&format!("{head}windPower: 7"), &["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (code, &json["config"]["proxy"]["datapath"]),
        (Some(1), &serde_json::json!("ebpf"))
    );
    let (code, _, told) = run("x: 7", &[]);
    assert_eq!(code, Some(2), "{told}");
    assert!(
        told.contains("theirs.yaml: there is no KubeProxyConfiguration"),
        "{told}"
    );
}

#[test]
fn commands_that_are_unknown_or_incomplete_are_refused_with_code_2() {
    for arguments in [
        &["explode"][..],
        &[],
        &["node", "--confg", "f"],
        &["node", "cleanup", "--forse"],
        &["node", "cleanup", "--wait", "--force"],
        &["node", "cleanup", "--kube-proxy", "--dns-state", "/nonexistent"],
        &["node", "cleanup", "--config", "/nonexistent.yaml"],
    ] {
        let output = Command::new(program("causeway"))
            .args(arguments)
            .output()
            .expect("it starts");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn the_version_is_told_to_people_and_programs() {
    let version = env!("CARGO_PKG_VERSION");
    check(
        Command::new(program("causeway")).arg("version"),
        0,
        &format!("causeway {version}"),
    );
    let json = format!(r#"{{"name":"causeway","version":"{version}"}}"#);
    check(
        Command::new(program("causeway")).args(["version", "-o", "json"]),
        0,
        &json,
    );
}

#[test]
fn connectivity_tells_where_it_looked_for_a_cluster() {
    let directory = Directory::new("nowhere");
    let connectivity = |arguments: &[&str]| {
        let mut command = Command::new(program("causeway"));
        command.arg("connectivity").args(arguments);
        command.env_remove("KUBECONFIG").env("HOME", directory.path());
        command
    };
    let words = "error: use kubeconfig /nonexistent: failed to read kubeconfig from '\"/nonexistent\"': No such file or \
                 directory (os error 2)";
    check(&mut connectivity(&["--kubeconfig", "/nonexistent"]), 2, words);
    let words = "error: no file that KUBECONFIG names is there";
    check(connectivity(&[]).env("KUBECONFIG", "/nonexistent"), 2, words);
    let words = "error: --external nobody: HOST:PORT or [ADDRESS]:PORT is what a connection can be opened to";
    check(&mut connectivity(&["--external", "nobody"]), 2, words);
}
