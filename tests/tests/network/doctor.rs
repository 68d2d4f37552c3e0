//! `causeway doctor` on a node where something is broken: each thing is named with its object and gone after `--fix`, or
//! after what the finding says.

use ebpf::abi::net::Port;
use ebpf::abi::service::{Endpoint, Frontend, FrontendKey, SlotKey};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::cluster::program;
use tests::network::{Network, Pod, SOON};
use tests::process;
use tests::wait;

use crate::services::{map, run, service, slice};

/// Id, object and evidence of each finding, those that were put right first.
type Findings = Vec<[String; 3]>;

fn doctor(world: &Network, arguments: &[&str]) -> (Option<i32>, Findings, Findings) {
    let place = world.host(0).place();
    let mut command = process::command(&place, program("causeway"));
    command
        .args(["doctor", "-o", "json", "--config"])
        .arg(world.configure(0))
        .args(arguments);
    command.env_remove("NODE_NAME");
    let output = process::run_in(&place, &mut command, b"").expect("it runs");
    let report: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
    let list = |name: &str| {
        let findings = report[name].as_array().cloned().unwrap_or_default();
        let text = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
        let short = |finding: &Value| ["id", "object", "evidence"].map(|field| text(finding, field));
        findings.iter().map(short).collect()
    };
    (output.status.code(), list("findings"), list("repaired"))
}

fn has(findings: &Findings, [id, object, evidence]: [&str; 3]) -> bool {
    let mut findings = findings.iter();
    findings.any(|finding| finding[0] == id && finding[1] == object && finding[2].contains(evidence))
}

/// Waits until nothing at all is found.
#[track_caller]
fn await_health(world: &Network) {
    wait::until_value(
        "nothing is wrong",
        SOON,
        || doctor(world, &[]),
        |(code, findings, _)| *code == Some(0) && findings.is_empty(),
    );
}

#[track_caller]
fn is_named(world: &Network, row: [&str; 3], code: i32) {
    wait::until_value(
        row[0],
        SOON,
        || doctor(world, &[]),
        |(found_code, findings, _)| *found_code == Some(code) && has(findings, row),
    );
}

/// It is named, put right by `--fix`, and told as put right.
#[track_caller]
fn is_named_and_fixed(world: &Network, row: [&str; 3]) {
    is_named(world, row, 1);
    let (_, left, repaired) = doctor(world, &["--fix"]);
    assert!(has(&repaired, row), "{row:?}: {repaired:?}, left: {left:?}");
    await_health(world);
}

const WEB: &str = "Service default/web";

#[test]
fn doctor_names_what_differs_from_plans_and_puts_it_right() {
    let Some(world) = Network::new("doctor puts right what differs", "doctor", 2) else {
        return;
    };
    let (near, far) = (world.pod(0, "near"), world.pod(1, "far"));
    world.put(service());
    world.put(slice(&far, "http", true));
    let frontends = map::<FrontendKey, Frontend>(&world.pins(0), "FRONTENDS");
    wait::until_value(
        "the Service has its endpoint",
        SOON,
        || {
            frontends
                .iter()
                .flatten()
                .map(|(_, value)| value.cluster)
                .collect()
        },
        |counts: &Vec<u16>| *counts == [1],
    );
    await_health(&world);
    entries_of_the_hook(&world, &near, &far);
    let shown = world
        .host(0)
        .command("ip", &["route", "show", &near.address.to_string()]);
    let shown = shown.expect("ip runs").stdout;
    let device = shown.split(' ').nth(2).expect("a device");
    the_pods_device(&world, device);
    what_goes_by_hand(&world);
    run(&world, "ip", &["link", "delete", device]);
    is_named(
        &world,
        ["pod-device-gone", "Pod default/near", "found nothing"],
        1,
    );
    world.delete(&near);
    await_health(&world);
}

/// The agent looks at them every five minutes by itself.
fn entries_of_the_hook(world: &Network, near: &Pod, far: &Pod) {
    let pins = world.pins(0);
    let mut frontends = map::<FrontendKey, Frontend>(&pins, "FRONTENDS");
    let key = frontends.keys().next().expect("one").expect("readable");
    let value = frontends.get(&key, 0).expect("there");
    frontends.remove(&key).expect("there");
    let absent = "10.96.0.7:80/TCP: socket hook: no entry";
    is_named_and_fixed(world, ["service-differs", WEB, absent]);

    let mut slots = map::<SlotKey, u32>(&pins, "SLOTS");
    for slot in slots.keys().collect::<Result<Vec<_>, _>>().expect("readable") {
        slots.remove(&slot).expect("there");
    }
    let missing = format!("endpoint {}:7000 is missing", far.address);
    is_named_and_fixed(world, ["service-differs", WEB, &missing]);

    let mut endpoints = map::<u32, Endpoint>(&pins, "ENDPOINTS");
    let all: Result<Vec<_>, _> = endpoints.iter().collect();
    for (id, endpoint) in all.expect("readable") {
        let wrong = Endpoint {
            addr: near.address.into(),
            ..endpoint
        };
        endpoints.insert(id, wrong, 0).expect("there is room");
    }
    let not_its = format!("endpoint {}:7000 is not the plan's", near.address);
    is_named_and_fixed(world, ["service-differs", WEB, &not_its]);

    let stray = FrontendKey {
        port: Port::new(81),
        ..key
    };
    frontends.insert(stray, value, 0).expect("there is room");
    let object = "frontend 10.96.0.7:81/TCP";
    is_named_and_fixed(world, ["frontend-stray", object, "no Service has it"]);
}

/// The agent does not take it up by itself.
fn the_pods_device(world: &Network, device: &str) {
    for (change, found) in [(["down", ""], "down"), (["mtu", "1600"], "up, MTU 1600")] {
        let mut arguments = vec!["link", "set", device];
        arguments.extend(change.into_iter().filter(|word| !word.is_empty()));
        run(world, "ip", &arguments);
        let evidence = format!("found {device} {found}");
        is_named_and_fixed(world, ["pod-device", "Pod default/near", &evidence]);
    }
}

/// It stands in the agent's way, and is not the agent's.
fn what_goes_by_hand(world: &Network) {
    let route = world.routes(0).pop().expect("one to the other node");
    let subnet = route.split(' ').next().expect("a network");
    let foreign = [subnet, "via", "172.30.8.1", "proto", "static"];
    run(world, "ip", &[&["route", "replace"], &foreign[..]].concat());
    let in_the_way = [
        "pod-route",
        "Node node-1",
        &format!("expected route {subnet} via"),
    ];
    is_named(world, in_the_way, 1);
    let (code, findings, _) = doctor(world, &["--fix"]);
    assert!(code == Some(1) && has(&findings, in_the_way), "{findings:?}");
    run(world, "ip", &[&["route", "delete"], &foreign[..]].concat());
    await_health(world);

    // Before the agent makes it anew.
    Network::signal(world.agents[0].as_ref(), Signal::SIGSTOP);
    run(world, "ip", &["link", "delete", "flannel.1"]);
    run(world, "ip", &["link", "add", "flannel.1", "type", "bridge"]);
    Network::signal(world.agents[0].as_ref(), Signal::SIGCONT);
    let rows = [
        ["tunnel-device", "this node", "found a device that is no tunnel"],
        ["tunnel-fdb", "Node node-1", "behind 172.30.8.12, found nothing"],
        ["pod-neighbour", "Node node-1", "found nothing"],
    ];
    for row in rows {
        is_named(world, row, 1);
    }
    run(world, "ip", &["link", "delete", "flannel.1"]);
    await_health(world);

    run(world, "nft", &["add", "table", "inet", "fw"]);
    let chain = "{ type filter hook forward priority 0; policy drop; }";
    run(world, "nft", &["add", "chain", "inet", "fw", "forward", chain]);
    let foreign = [
        "foreign-rules",
        "chain inet fw forward",
        "may drop or change them",
    ];
    is_named(world, foreign, 0);
    run(world, "nft", &["delete", "table", "inet", "fw"]);
    await_health(world);
}
