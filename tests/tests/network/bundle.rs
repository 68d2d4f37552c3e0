//! `causeway bundle` on a broken node, and what it says afterwards to somebody who has neither the node nor a right.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::cluster::program;
use tests::network::{Network, Pod, SOON};
use tests::process::{self, Place, Process};
use tests::wait;

use crate::services::{run, service, slice};

/// What a run of the program came to.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    code: Option<i32>,
    output: String,
    error: String,
}

/// On the node, by root.
fn live(world: &Network, arguments: &[&str]) -> Told {
    let place = world.host(0).place();
    let mut command = process::command(&place, program("causeway"));
    command.args(arguments).arg("--config").arg(world.configure(0));
    command.env_remove("NODE_NAME");
    told(&place, &mut command)
}

/// Who has nothing: another user, in a network namespace of nothing.
const NOBODY: u32 = 65534;

/// By a user who may nothing, where nothing of the network is.
fn replay(file: &Path, arguments: &[&str]) -> Told {
    let mut command = Command::new(program("causeway"));
    command.args(["bundle", "replay"]).arg(file).args(arguments);
    command
        .uid(NOBODY)
        .gid(NOBODY)
        .env_remove("NODE_NAME")
        .current_dir("/");
    told(&Place::default(), &mut command)
}

fn told(place: &Place, command: &mut Command) -> Told {
    let output = process::run_in(place, command, b"").expect("it runs");
    Told {
        code: output.status.code(),
        output: output.stdout,
        error: output.stderr,
    }
}

/// Makes a bundle, and gives it to somebody else.
fn bundle(world: &Network, name: &str, code: i32) -> (PathBuf, Told) {
    let path = world.directory.path().join(name);
    let made = live(world, &["bundle", "--force", "-o", path.to_str().expect("UTF-8")]);
    assert_eq!(made.code, Some(code), "{made:?}");
    let mode = fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let given = world.directory.path().join(format!("given-{name}"));
    fs::copy(&path, &given).expect("copied");
    chown(&given, Some(NOBODY), Some(NOBODY)).expect("given");
    (given, made)
}

/// A question to the node, and to its bundle: the answers are the same, word for word.
#[track_caller]
fn alike(world: &Network, file: &Path, question: &[&str], code: i32, cause: &str) {
    let now = live(world, &[&["explain"], question].concat());
    let then = replay(file, &[&["explain"], question].concat());
    assert_eq!((&then.output, then.code), (&now.output, now.code), "{then:?}");
    assert_eq!(now.code, Some(code), "{now:?}");
    assert!(now.output.contains(cause), "{cause}: {now:?}");
}

#[track_caller]
fn await_explained(world: &Network, question: &[&str], code: i32, cause: &str) {
    wait::until_value(
        cause,
        SOON,
        || live(world, &[&["explain"], question].concat()),
        |told| told.code == Some(code) && told.output.contains(cause),
    );
}

const WAY: [&str; 2] = ["pod/near", "svc/web:http"];
/// What opens the cluster to whoever reads it.
const TOKEN: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImN3dCJ9.eyJzdWIiOiJjd3QtYWdlbnQifQ.c2lnbmF0dXJlLW9mLWN3dA";
/// What opens an etcd, where it is not escaped as it should, and what a proxy takes.
const PASSWORD: &str = "cwt/s3cr#et";
const OPAQUE: &str = "cwt-opaque";
const KEY: &str = "LS0tLS1CRUdJTiBFQyBQUklWQVRFIEtFWS0tLS0tCk1IY0NBUUVFSU9jd3Q=";

#[test]
fn a_bundle_of_a_broken_node_names_the_same_causes_to_somebody_without_it() {
    let Some(mut world) = Network::without_agents("a bundle names the same causes", "bundle", 2, "ebpf")
    else {
        return;
    };
    trust(&world);
    world.agents[0] = Some(agent_with_a_log(&world));
    world.start_agent(1);
    (0..2).for_each(|number| world.await_ready(number));
    let (near, far) = (world.pod(0, "near"), world.pod(1, "far"));
    world.put(service());
    world.put(slice(&far, "http", true));
    world.put(json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "default", "name": "cwt-secret"},
        "data": {"password": "Y3d0LWh1bnRlcjI="},
    }));
    await_explained(&world, &WAY, 0, "WORKS");
    world.await_fast_path(0);
    tell_secrets(&world);
    let works = of_a_node_that_works(&world, &near, &far);
    of_a_broken_node(&world, &near, &far);
    bad_input(&world, &works);
    of_a_node_whose_agent_hangs(&world);
    world.kill_agent(0);
    of_a_node_without_an_agent(&world, &near, &far);
}

/// The API server of this test asks nobody who he is; an agent has a token and a key all the same.
fn trust(world: &Network) {
    let path = world.directory.path().join("kubeconfig");
    let text = fs::read_to_string(&path).expect("written");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    config["users"][0]["user"] = json!({"token": TOKEN});
    fs::write(&path, config.to_string()).expect("written");
    let key = world.directory.path().join("client.key");
    fs::write(&key, KEY).expect("written");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("its own");
}

fn log(world: &Network) -> PathBuf {
    world.path(0, "agent.log")
}

/// Of node 0: its log is a file.
fn agent_with_a_log(world: &Network) -> Process {
    let place = world.host(0).place();
    let mut command = process::command(&place, "sh");
    command
        .args(["-c", "exec \"$0\" node --config \"$1\" 2>> \"$2\""])
        .arg(program("causeway"))
        .arg(world.configure(0))
        .arg(log(world));
    Process::spawn(&place, command.env_remove("NODE_NAME")).expect("the agent starts")
}

/// Has the agent log an error that names a URL with a password, and tokens.
fn tell_secrets(world: &Network) {
    let kind = format!("https://root:{PASSWORD}@10.0.0.1/?token={OPAQUE} for {TOKEN}");
    world.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": "odd-1", "labels": {"kubernetes.io/service-name": "odd"}},
        "addressType": kind, "ports": [], "endpoints": [],
    }));
    wait::until_value(
        "the error with secrets in the log",
        SOON,
        || fs::read_to_string(log(world)).expect("the log"),
        |log| {
            [PASSWORD, OPAQUE, TOKEN]
                .iter()
                .all(|secret| log.contains(secret))
        },
    );
}

fn of_a_node_that_works(world: &Network, near: &Pod, far: &Pod) -> PathBuf {
    let (file, made) = bundle(world, "works.tar.gz", 0);
    assert!(!made.error.contains("missing: "), "{made:?}");
    alike(world, &file, &WAY, 0, "FAST PATH");
    alike(
        world,
        &file,
        &[&WAY[..], &["-o", "json"]].concat(),
        0,
        "\"conclusion\": \"works\"",
    );
    alike(
        world,
        &file,
        &["pod/near", "svc/web:81"],
        1,
        "FAILS: refused: Service default/web has no port 81",
    );
    alike(
        world,
        &file,
        &["pod/far", "svc/web:80"],
        2,
        "the endpoint is chosen on node-1",
    );
    alike(world, &file, &["node/node-0", "10.96.0.7:80"], 0, "WORKS");
    alike(
        world,
        &file,
        &["198.51.100.9", &near.address.to_string()],
        1,
        "no way",
    );
    alike(
        world,
        &file,
        &["pod/near", &format!("{}:7000/udp", far.address)],
        0,
        "ROUTE",
    );
    let neer = |told: &Told| told.error.contains("did you mean pod/near?");
    let (now, then) = (
        live(world, &["explain", "pod/neer", "svc/web"]),
        replay(&file, &["explain", "pod/neer", "svc/web"]),
    );
    assert!(neer(&now) && neer(&then), "{now:?} {then:?}");
    let by_name = replay(&file, &["explain", "pod/near", "example.org:80"]);
    assert_eq!(by_name.code, Some(2));
    assert!(
        by_name
            .error
            .contains("what the node's resolver has for it is not recorded"),
        "{by_name:?}"
    );
    let doctor = replay(&file, &["doctor"]);
    // A question writes the agent's configuration anew, which it may find half written.
    let then = findings(&replay(&file, &DOCTOR));
    wait::until_value(
        &format!("the findings {then:?}"),
        SOON,
        || findings(&live(world, &DOCTOR)),
        |now| *now == then,
    );
    assert!(
        doctor.error.starts_with("as recorded of node-0 at 20"),
        "{doctor:?}"
    );
    let status = replay(&file, &["status"]);
    assert!(
        status.output.contains("working  part ") && status.output.ends_with("node-0: nothing fails\n"),
        "{status:?}"
    );
    assert_eq!(status.code, Some(0));
    let names = replay(&file, &["names"]);
    let web = "10.96.0.7:80/TCP  Service default/web\n";
    assert!(
        names.output.starts_with(web) && names.output.contains("  pod default/far\n"),
        "{names:?}"
    );
    has_no_secret(world, &file);
    file
}

const DOCTOR: [&str; 3] = ["doctor", "-o", "json"];

/// What kind of thing is found of what; but for how full the machine is, which others change.
fn findings(doctor: &Told) -> Vec<(String, String)> {
    let report: Value = serde_json::from_str(&doctor.output).expect("JSON");
    let findings = report["findings"].as_array().expect("a list").iter();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let found = findings.map(|finding| (text(&finding["id"]), text(&finding["object"])));
    let mut found: Vec<_> = found
        .filter(|(id, _)| !matches!(id.as_str(), "disk-full" | "conntrack-full"))
        .collect();
    found.sort_unstable();
    found
}

/// Neither what the agent is known by, nor what the cluster keeps from it.
fn has_no_secret(world: &Network, file: &Path) {
    let unpacked = world.directory.path().join("unpacked");
    fs::create_dir_all(&unpacked).expect("made");
    let status = Command::new("tar")
        .arg("-xzf")
        .arg(file)
        .arg("-C")
        .arg(&unpacked)
        .status();
    assert!(status.expect("tar runs").success());
    let folder = unpacked.join("causeway-bundle");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).expect("unpacked") {
        let entry = entry.expect("readable");
        let content = fs::read_to_string(entry.path()).expect("text");
        for secret in [
            TOKEN,
            KEY,
            PASSWORD,
            OPAQUE,
            "c2lnbmF0dXJl",
            "Y3d0LWh1bnRlcjI=",
            "cwt-hunter2",
            "cwt-secret",
        ] {
            assert!(!content.contains(secret), "{secret}: {:?}", entry.path());
        }
        // The error is there, without them.
        let is_told = content.contains("https://<left out>@10.0.0.1/?token=<left out> for <left out>");
        let tells = ["log.txt", "doctor.json"]
            .map(Into::into)
            .contains(&entry.file_name());
        assert!(is_told || !tells, "{content}");
        names.push(entry.file_name().into_string().expect("UTF-8"));
    }
    names.sort_unstable();
    let expected = [
        "agent.json",
        "config.yaml",
        "doctor.json",
        "log.txt",
        "manifest.json",
        "metrics.txt",
        "network.json",
        "objects.json",
        "programs.json",
        "settings.json",
        "status.json",
    ];
    assert_eq!(names, expected);
    fs::remove_dir_all(unpacked).expect("unpacked");
}

/// Broken so that no agent repairs it: by routes and rules of somebody else.
fn of_a_broken_node(world: &Network, near: &Pod, far: &Pod) {
    let host_route = format!("{}/32", far.address);
    let from = near.address.to_string();
    run(world, "ip", &["route", "add", &host_route, "via", "172.30.8.1"]);
    run(
        world,
        "ip",
        &["route", "add", "blackhole", "default", "table", "77"],
    );
    run(world, "ip", &["rule", "add", "to", &from, "lookup", "77"]);
    run(world, "nft", &["add", "table", "inet", "fw"]);
    let chain = "{ type filter hook forward priority 0; policy drop; }";
    run(world, "nft", &["add", "chain", "inet", "fw", "forward", chain]);
    world.put(slice(far, "http", false));
    await_explained(world, &WAY, 1, "no endpoint that takes connections");
    let by_udp = format!("{}:7000/udp", far.address);
    await_explained(
        world,
        &["pod/near", &by_udp],
        1,
        "its policy of chain inet fw forward, at hook forward",
    );
    let (file, _) = bundle(world, "broken.tar.gz", 0);
    alike(
        world,
        &file,
        &WAY,
        1,
        "FAILS: refused: Service default/web has no endpoint that takes connections",
    );
    alike(
        world,
        &file,
        &["pod/near", &by_udp],
        1,
        "the route leads to eth0, not to flannel.1",
    );
    alike(world, &file, &["pod/far", &from], 1, "no way: a blackhole");
    alike(
        world,
        &file,
        &["pod/near", "10.244.255.255"],
        1,
        "no node's lease has it",
    );
    let doctor = replay(&file, &["doctor", "-o", "json"]);
    let report: Value = serde_json::from_str(&doctor.output).expect("JSON");
    let findings = report["findings"].as_array().expect("a list");
    let is_route = |finding: &&Value| {
        finding["evidence"]
            .as_str()
            .is_some_and(|seen| seen.contains(&host_route))
    };
    assert!(findings.iter().any(|finding| is_route(&finding)), "{doctor:?}");
    assert_eq!(doctor.code, live(world, &["doctor"]).code);
    run(world, "nft", &["delete", "table", "inet", "fw"]);
    run(world, "ip", &["rule", "delete", "to", &from, "lookup", "77"]);
    run(world, "ip", &["route", "delete", &host_route]);
    world.put(slice(far, "http", true));
    await_explained(world, &WAY, 0, "WORKS");
}

fn bad_input(world: &Network, file: &Path) {
    let is_refused = |told: &Told, reason: &str| {
        assert_eq!(told.code, Some(2), "{told:?}");
        assert!(told.error.contains(reason), "{reason}: {told:?}");
        assert_eq!(told.output, "");
    };
    let path = world.directory.path().join("works.tar.gz");
    let path = path.to_str().expect("UTF-8");
    is_refused(&live(world, &["bundle", "-o", path]), "exists already");
    is_refused(
        &live(world, &["bundle", "-o", "/nowhere/b"]),
        "write /nowhere/b: ",
    );
    leaves_no_half_where_the_disk_is_full(world);
    is_refused(
        &replay(file, &["trace", "pod/near", "svc/web"]),
        "trace cannot be asked of a bundle",
    );
    is_refused(
        &replay(Path::new("/dev/null"), &["doctor"]),
        "/dev/null is no bundle of causeway",
    );
    is_refused(&replay(Path::new("/nowhere"), &["doctor"]), "read /nowhere: ");
    let half = file.with_extension("half");
    let bytes = fs::read(file).expect("readable");
    fs::write(&half, &bytes[..bytes.len() / 2]).expect("written");
    is_refused(&replay(&half, &["doctor"]), "is cut off or damaged");
    fs::remove_file(half).expect("written");
    // By standard output, as out of a container.
    let piped = Command::new("sh")
        .args([
            "-c",
            "\"$0\" bundle -o - --config \"$1\" 2>/dev/null | tar -tzf - | head -n 1",
        ])
        .arg(program("causeway"))
        .arg(world.configure(0))
        .env_remove("NODE_NAME")
        .output()
        .expect("sh runs");
    assert_eq!(
        String::from_utf8_lossy(&piped.stdout),
        "causeway-bundle/manifest.json\n"
    );
    nobody_makes_one(world);
}

/// A file system that is full soon, unmounted on drop.
struct Small(PathBuf);

impl Small {
    fn new(path: PathBuf) -> Self {
        fs::create_dir_all(&path).expect("made");
        let mount = ["-t", "tmpfs", "-o", "size=4k", "cwt-small"];
        let mounted = Command::new("mount").args(mount).arg(&path).status();
        assert!(mounted.expect("mount runs").success());
        Self(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("left behind: {}", self.0.display());
        }
    }
}

fn leaves_no_half_where_the_disk_is_full(world: &Network) {
    let small = Small::new(world.directory.path().join("small"));
    for options in [&[][..], &["--force"]] {
        let path = small.0.join("b.tar.gz");
        let output = ["bundle", "-o", path.to_str().expect("UTF-8")];
        let made = live(world, &[&output[..], options].concat());
        let left = fs::read_dir(&small.0).expect("there").count();
        let is_told = made.code == Some(2) && made.error.contains("No space left on device");
        assert!(is_told && left == 0, "{made:?}: {left}");
    }
}

/// Who is not root has what the kernel tells everybody, and is told what he lacks.
fn nobody_makes_one(world: &Network) {
    let directory = world.directory.path().join("nobody");
    fs::create_dir(&directory).expect("made");
    chown(&directory, Some(NOBODY), Some(NOBODY)).expect("given");
    let config = directory.join("node.yaml");
    fs::copy(world.configure(0), &config).expect("copied");
    chown(&config, Some(NOBODY), Some(NOBODY)).expect("given");
    let place = world.host(0).place();
    let mut command = process::command(&place, program("causeway"));
    command
        .arg("bundle")
        .arg("--config")
        .arg(&config)
        .current_dir(&directory);
    command.uid(NOBODY).gid(NOBODY).env_remove("NODE_NAME");
    let made = told(&place, &mut command);
    assert_eq!(made.code, Some(1), "{made:?}");
    let note = "made without root, and without agent.json, doctor.json, ";
    let mends = ": run it as root to have them (the agent's socket, maps and rules are root's)";
    assert!(
        made.error.contains(note) && made.error.contains(mends),
        "{made:?}"
    );
    for part in ["agent.json", "doctor.json", "programs.json: services"] {
        assert!(
            made.error.contains(&format!("missing: {part}: ")),
            "{part}: {made:?}"
        );
    }
    let names = fs::read_dir(&directory)
        .expect("there")
        .flatten()
        .map(|entry| entry.path());
    let file = names
        .into_iter()
        .find(|path| path.to_string_lossy().ends_with(".tar.gz"))
        .expect("one");
    let then = replay(&file, &["explain", "172.30.8.11", "172.30.8.12"]);
    assert_eq!(then.code, Some(2), "{then:?}");
    assert!(
        then.error.contains(note) && then.error.contains(mends),
        "{then:?}"
    );
    assert!(
        then.output
            .contains("whether this is the node's network namespace is not known"),
        "{then:?}"
    );
}

fn of_a_node_whose_agent_hangs(world: &Network) {
    Network::signal(world.agents[0].as_ref(), Signal::SIGSTOP);
    let (file, made) = bundle(world, "silent.tar.gz", 1);
    let question = ["pod/near", "10.96.0.7:80"];
    alike(world, &file, &question, 2, "UNKNOWN: the agent does not answer");
    let (now, then) = (live(world, &["doctor"]), replay(&file, &["doctor"]));
    Network::signal(world.agents[0].as_ref(), Signal::SIGCONT);
    assert!(
        made.error.contains("missing: agent.json: the agent, process "),
        "{made:?}"
    );
    assert_eq!((now.code, then.code), (Some(2), Some(2)));
    let said = then.error.lines().last().unwrap_or_default();
    assert_eq!(said, now.error.lines().last().unwrap_or_default());
}

fn of_a_node_without_an_agent(world: &Network, near: &Pod, far: &Pod) {
    let mac = world.mac(1, "flannel.1");
    let entry = ["fdb", "delete", &mac, "dev", "flannel.1", "dst", "172.30.8.12"];
    run(world, "bridge", &entry);
    let (file, made) = bundle(world, "alone.tar.gz", 1);
    assert!(
        made.error.contains("missing: objects.json: ask the agent at "),
        "{made:?}"
    );
    let (to, from) = (far.address.to_string(), near.address.to_string());
    alike(
        world,
        &file,
        &["pod/near", "10.96.0.7:80"],
        1,
        "EXPLAIN pod default/near on node-0",
    );
    alike(
        world,
        &file,
        &[&from, "10.96.0.7:80"],
        1,
        "map FRONTENDS [10.96.0.7:80/TCP] service ",
    );
    alike(
        world,
        &file,
        &[&from, &to],
        1,
        &format!("FAILS: flannel.1 does not know where {mac} is"),
    );
    let asked = replay(&file, &["explain", "pod/near", "svc/web:80"]);
    assert!(asked.error.contains("no agent of this node answers"), "{asked:?}");
}
