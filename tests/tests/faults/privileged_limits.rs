//! The kernel or the machine refuses what the socket hook needs, and maps run full.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tests::cluster::program;
use tests::probe::{Attempts, Kind};
use tests::{privileged, process, wait};

use crate::DEADLINE;
use crate::snapshots::other_vips;
use crate::world::{Agent, PORT, READY, World, service, slices};

/// The bar of F37 for telling it.
const TOLD: Duration = Duration::from_secs(5);

/// What `/healthz` says of the proxy.
fn proxy_health(world: &World) -> Option<Value> {
    let answer = world.node.health("/healthz").ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    let health: Value = serde_json::from_str(body).ok()?;
    Some(health["parts"]["proxy"].clone())
}

/// Waits until the proxy is told to fail, for that reason.
#[track_caller]
pub fn await_failing(world: &World, reason: &str) {
    let health = wait::until_value(
        "the failure is told",
        TOLD,
        || proxy_health(world),
        |health| health.as_ref().is_some_and(|health| health["state"] == "failing"),
    );
    let health = health.unwrap_or_default().to_string();
    assert!(health.contains(reason), "{health}");
}

fn links(directory: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    let count = |entry: std::fs::DirEntry| {
        let path = entry.path();
        let is_link = path.parent().is_some_and(|parent| parent.ends_with("links"));
        if path.is_dir() {
            links(&path)
        } else {
            usize::from(is_link)
        }
    };
    entries.flatten().map(count).sum()
}

/// All eight programs.
const WHOLE: usize = 8;

#[test]
fn a_missing_cgroup_is_told_and_looked_for_again() -> Result<()> {
    if !privileged("a missing cgroup is told and looked for again (F37)") {
        return Ok(());
    }
    let world = World::build("nocgroup", "ebpf")?;
    world.put_web(&[1]);
    let missing = world.node.cgroup.path().join("later");
    let config = world.configure(&json!({"cgroup": missing}));
    let place = world.node.place();
    let _agent = Agent::spawn(
        &place,
        process::command(&place, program("causeway"))
            .arg("node")
            .arg("--config")
            .arg(config),
    );
    await_failing(&world, "later");
    assert_eq!(links(world.bpffs.path()), 0, "nothing is half attached");
    std::fs::create_dir(&missing)?;
    world.node.until_working("proxy");
    assert_eq!(links(world.bpffs.path()), WHOLE);
    Ok(())
}

#[test]
fn a_missing_bpf_file_system_is_told_and_looked_for_again() -> Result<()> {
    if !privileged("a missing BPF file system is told and looked for again (F37)") {
        return Ok(());
    }
    let world = World::build("nobpffs", "ebpf")?;
    world.put_web(&[1]);
    let plain = world.node.directory.path().join("bpf");
    std::fs::create_dir(&plain)?;
    let config = world.configure(&json!({"pinDir": plain.join("causeway")}));
    let place = world.node.place();
    let agent = Agent::spawn(
        &place,
        process::command(&place, program("causeway"))
            .arg("node")
            .arg("--config")
            .arg(config),
    );
    await_failing(&world, "BPF file system");
    assert_eq!(links(&plain), 0, "nothing is half attached");
    mount(Some("bpf"), &plain, Some("bpf"), MsFlags::empty(), None::<&str>)?;
    let works = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        world.node.until_working("proxy");
        assert_eq!(links(&plain), WHOLE);
    }));
    drop(agent);
    umount2(&plain, MntFlags::MNT_DETACH)?;
    works.map_err(|_| anyhow::anyhow!("it did not work once the file system was there"))
}

#[test]
fn a_kernel_that_refuses_the_programs_is_told_and_nothing_is_half_attached() -> Result<()> {
    if !privileged("a kernel that refuses the programs is told (F37)") {
        return Ok(());
    }
    let world = World::build("nobpf", "ebpf")?;
    world.put_web(&[1]);
    let config = world.configure(&json!({}));
    let place = world.node.place();
    // Neither capability that would let it load programs; the others as before.
    let mut weak = process::command(&place, "setpriv");
    weak.args(["--bounding-set", "-bpf,-sys_admin", "--"])
        .arg(program("causeway"));
    let mut agent = Agent::spawn(&place, weak.arg("node").arg("--config").arg(config));
    await_failing(&world, "");
    assert_eq!(links(world.bpffs.path()), 0, "nothing is half attached");
    let reason = proxy_health(&world).unwrap_or_default().to_string();
    assert!(
        reason.contains("PERM") || reason.contains("permitted"),
        "{reason}"
    );
    println!("F37: {reason}");
    agent.0.kill();
    let _agent = world.start_agent();
    world.node.until_working("proxy");
    assert_eq!(links(world.bpffs.path()), WHOLE);
    wait::until_value(
        "no part fails",
        DEADLINE,
        || proxy_health(&world),
        |health| health.as_ref().is_some_and(|health| health["state"] == "working"),
    );
    Ok(())
}

#[test]
fn what_no_map_has_room_for_is_served_by_the_rules() -> Result<()> {
    if !privileged("what no map has room for is served by the rules (F35)") {
        return Ok(());
    }
    const MANY: u16 = 60;
    let world = World::build("full", "ebpf")?;
    // Maps that are there keep their size: an agent that had little memory made these. A Service has four frontends,
    // `web` some more for its node port.
    let small = ebpf::HookConfig {
        cgroup: world.node.cgroup.path().to_owned(),
        pin_dir: world.pin_dir(),
        capacity: ebpf::Capacity {
            frontends: 64,
            ..ebpf::Capacity::default()
        },
        loopback: true,
    };
    drop(world.node.host().run(|| ebpf::SocketHook::open(&small))??);
    world.put_web(&[1, 2]);
    let _agent = world.start_agent();
    world.node.until_working("proxy");
    let flows = world.flows(20, 20)?;
    let web = world.connections(30)?;

    for number in 1..=MANY {
        put_other(&world, number);
    }
    await_failing(&world, "FRONTENDS");
    let full = wait::until("the Services without room are counted", DEADLINE, || {
        let page = world.node.metrics().unwrap_or_default();
        let full = page
            .lines()
            .find_map(|line| line.strip_prefix(MAP_FULL)?.parse::<u16>().ok());
        // Sixteen Services would fill the map without `web`.
        full.filter(|full| *full >= MANY - 16).ok_or(page)
    });
    // One for each of those Services, however often they are tried again, up to the limit of a burst.
    let told = wait::until("Services without room have an Event", DEADLINE, || {
        let events = world.node.api.objects("/api/v1/events");
        let about = |event: &Value| event["involvedObject"]["name"].as_str().map(str::to_owned);
        let about: Vec<_> = events.iter().filter_map(about).collect();
        if about.len() >= 20 { Ok(events) } else { Err(about) }
    });
    let objects: BTreeSet<_> = told
        .iter()
        .map(|event| event["involvedObject"].to_string())
        .collect();
    assert_eq!(objects.len(), told.len(), "one each: {told:#?}");
    for event in &told {
        let text = event.to_string();
        assert_eq!(event["reason"], "FailedToProgram", "{text}");
        assert_eq!(event["involvedObject"]["kind"], "Service", "{text}");
        assert_eq!(event["reportingInstance"], "node-1", "{text}");
        assert!(text.contains("map FRONTENDS is full"), "{text}");
    }
    let pod = world.pod_place();
    for number in (1..=MANY).step_by(7) {
        for vip in other_vips(number) {
            let other = Attempts::start(&pod, Kind::Connections, (vip, PORT).into(), 50)?;
            other.await_more(2);
            assert_eq!(other.lost(), [], "other-{number}");
        }
    }
    for number in 6..=MANY {
        delete_other(&world, number);
    }
    world.node.until_working("proxy");
    for attempts in &web {
        assert_eq!(attempts.lost(), []);
    }
    let counts = flows.counts();
    assert_eq!((counts.open, counts.broken), (20, 0), "{:#?}", flows.breaks());
    println!(
        "F35: {full} of {MANY} Services had no room in a map of 64; {} Events",
        told.len()
    );
    Ok(())
}

const MAP_FULL: &str = "causeway_proxy_rejected{reason=\"map-full\"} ";

fn other(number: u16) -> (String, Value) {
    let name = format!("other-{number}");
    let [v4, v6] = other_vips(number).map(|vip| vip.to_string());
    let object = service(&name, &v4, &v6, None);
    (name, object)
}

fn put_other(world: &World, number: u16) {
    let (name, object) = other(number);
    world.node.api.put(object);
    world.put_endpoints_of(&name, &[1, 2], &READY);
}

fn delete_other(world: &World, number: u16) {
    let (name, object) = other(number);
    world.node.api.delete(&object);
    for slice in slices(&name, &[], &READY) {
        world.node.api.delete(&slice);
    }
}
