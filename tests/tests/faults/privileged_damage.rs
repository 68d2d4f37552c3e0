//! Others damage what the agent programmed.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::wait;

use crate::DEADLINE;
use crate::world::{World, layout, open_hook};

const TABLE: &str = "causeway-proxy";

/// The bar of F13.
const REPAIRED: Duration = Duration::from_secs(1);

/// Between two looks at the structure, and what a repair may take.
const AUDITED: Duration = Duration::from_secs(12);

/// In nft's words.
fn damages() -> Vec<Vec<&'static str>> {
    let mut damages = Vec::new();
    for (family, element, foreign) in [
        ("ip", "{ 10.96.0.7 . tcp . 80 }", "{ 10.96.0.99 }"),
        ("ip6", "{ fd00:96::7 . tcp . 80 }", "{ fd00:96::99 }"),
    ] {
        damages.extend([
            vec!["delete", "table", family, TABLE],
            vec!["flush", "chain", family, TABLE, "services"],
            vec!["delete", "element", family, TABLE, "service-ips", element],
            vec!["flush", "map", family, TABLE, "endpoints"],
            vec!["add", "element", family, TABLE, "cluster-ips", foreign],
            vec!["add", "rule", family, TABLE, "postrouting", "accept"],
        ]);
    }
    damages
}

fn foreign(rules: &BTreeSet<String>) -> BTreeSet<&String> {
    rules
        .iter()
        .filter(|part| part.starts_with("table inet foreign"))
        .collect()
}

#[test]
fn damaged_rules_are_repaired_within_a_second_and_others_are_left_alone() -> anyhow::Result<()> {
    if !tests::privileged("damaged rules are repaired within a second (F13)") {
        return Ok(());
    }
    let (world, _agent) = World::with_agent("rules", "nftables", &[1, 2])?;
    world.nft(&["add", "table", "inet", "foreign"])?;
    world.nft(&[
        "add",
        "chain",
        "inet",
        "foreign",
        "mine",
        "{ type filter hook input priority 5; }",
    ])?;
    world.nft(&[
        "add", "rule", "inet", "foreign", "mine", "tcp", "dport", "4711", "drop",
    ])?;
    let whole = world.rules();
    assert!(!foreign(&whole).is_empty(), "{whole:#?}");
    let mut took = Vec::new();
    let mut repair = |damage: Vec<&str>| -> Result<()> {
        world.nft(&damage)?;
        let start = Instant::now();
        wait::until(&format!("{damage:?} is repaired"), DEADLINE, || {
            let rules = world.rules();
            if rules == whole {
                return Ok(());
            }
            let differ = rules.symmetric_difference(&whole).cloned().collect::<Vec<_>>();
            Err(differ)
        });
        took.push(start.elapsed());
        assert!(
            start.elapsed() <= REPAIRED,
            "{damage:?} took {:?}",
            start.elapsed()
        );
        Ok(())
    };
    // Without the table the kernel translates no flow, and an answer that is under way just then resets its own:
    // nobody could repair that. Any other damage leaves flows alone.
    let (tables, others): (Vec<_>, Vec<_>) = damages()
        .into_iter()
        .partition(|damage| damage.contains(&"table"));
    tables.into_iter().try_for_each(&mut repair)?;
    let flows = world.flows(50, 10)?;
    others.into_iter().try_for_each(&mut repair)?;
    flows.await_more(50);
    let counts = flows.counts();
    assert_eq!((counts.open, counts.broken), (50, 0), "{:#?}", flows.breaks());
    took.sort();
    println!(
        "F13: {} damages repaired, median {:?}, most {:?}",
        took.len(),
        took[took.len() / 2],
        took.last()
    );
    Ok(())
}

/// BPF_OBJ_GET and BPF_LINK_DETACH, `include/uapi/linux/bpf.h`: the link stays pinned, and leads nowhere.
const DETACH: &str = "
import ctypes, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b'\\0'))
    result = libc.syscall(321, command, buffer, 128)
    if result < 0: sys.exit(f'bpf {command}: errno {ctypes.get_errno()}')
    return result
path = ctypes.create_string_buffer(sys.argv[1].encode())
link = bpf(7, struct.pack('<QII', ctypes.addressof(path), 0, 0))
bpf(34, struct.pack('<I', link))
";

#[test]
fn a_damaged_hook_is_repaired_and_established_flows_stay() -> anyhow::Result<()> {
    if !tests::privileged("a damaged hook is repaired (F14)") {
        return Ok(());
    }
    let (world, agent) = World::with_agent("hook", "ebpf", &[1, 2])?;
    for number in 1..=60 {
        let name = format!("other-{number}");
        let service = crate::world::service(
            &name,
            &format!("10.96.1.{number}"),
            &format!("fd00:96::1:{number:x}"),
            None,
        );
        world.node.api.put(service);
        world.put_endpoints_of(&name, &[1, 2, 3], &crate::world::READY);
    }
    wait::until("all Services are there", DEADLINE, || {
        let rules = world.rules();
        if rules.iter().any(|part| part.contains("10.96.1.60 . udp")) {
            Ok(())
        } else {
            Err(agent.0.output())
        }
    });
    wait::until_value(
        "nothing is pending",
        DEADLINE,
        || world.node.metrics().unwrap_or_default(),
        |page| page.contains("kubeproxy_sync_proxy_rules_endpoint_changes_pending 0"),
    );
    let whole = open_hook(&world)?.frontends.entries()?;
    let flows = world.flows(50, 10)?;
    let attempts = world.connections(30)?;

    // Structure: found every 10 s.
    let pins = layout(&world.pin_dir())?;
    let repaired = |what: &str, times: usize| {
        let start = Instant::now();
        wait::until(what, AUDITED, || {
            let log = agent.0.output();
            let count = log.matches("somebody changed what the proxy programmed").count();
            if count >= times { Ok(()) } else { Err(log) }
        });
        println!("F14: {what} after {:?}", start.elapsed());
    };
    let first = |name: &str| {
        let links = std::fs::read_dir(pins.join("links"))
            .expect("links are pinned")
            .flatten();
        let mut links = links.map(|entry| entry.path());
        links
            .find(|path| path.display().to_string().contains(&format!("/{name}-")))
            .expect(name)
    };
    std::fs::remove_file(pins.join("FRONTENDS"))?;
    std::fs::remove_file(first("connect6"))?;
    repaired("a map's pin and a link are back", 1);
    assert!(pins.join("FRONTENDS").exists() && first("connect6").exists());
    std::fs::remove_dir_all(&pins)?;
    repaired("all pins are back", 2);
    assert_eq!(open_hook(&world)?.frontends.entries()?, whole, "the maps stayed");

    // Entries: the rules beneath serve what is not there, until everything is looked at.
    let mut hook = open_hook(&world)?;
    let mut deleted = 0;
    for key in hook.frontends.entries()?.into_keys().take(50) {
        hook.frontends.remove(&key)?;
        deleted += 1;
    }
    for key in hook.slots.entries()?.into_keys().take(50) {
        hook.slots.remove(&key)?;
        deleted += 1;
    }
    drop(hook);
    assert_eq!(deleted, 100);
    attempts.iter().for_each(|attempts| attempts.await_more(20));
    world.nft(&["add", "element", "ip", TABLE, "cluster-ips", "{ 10.96.0.99 }"])?;
    wait::until("the entries are back", Duration::from_secs(2), || {
        let hook = open_hook(&world).expect("it is in order");
        let frontends = hook.frontends.entries().expect("readable");
        if frontends.keys().eq(whole.keys()) {
            Ok(())
        } else {
            Err(frontends.len())
        }
    });
    let counts = flows.counts();
    assert_eq!((counts.open, counts.broken), (50, 0), "{:#?}", flows.breaks());
    for attempts in &attempts {
        assert_eq!(attempts.lost(), [], "of {}", attempts.all().len());
    }
    Ok(())
}

#[test]
fn a_link_that_was_detached_by_force_is_attached_again() -> anyhow::Result<()> {
    if !tests::privileged("a link that was detached by force is attached again (F14)") {
        return Ok(());
    }
    let (world, agent) = World::with_agent("detach", "ebpf", &[1, 2])?;
    let flows = world.flows(20, 10)?;
    let links = layout(&world.pin_dir())?.join("links");
    for link in std::fs::read_dir(links)?.flatten() {
        let output = Command::new("python3")
            .args(["-c", DETACH])
            .arg(link.path())
            .output()?;
        ensure!(output.status.success(), "{output:?}");
    }
    wait::until("the links are attached again", AUDITED, || {
        let log = agent.0.output();
        if log.contains("the socket hook was not attached") {
            Ok(())
        } else {
            Err(log)
        }
    });
    let attempts = world.connections(30)?;
    attempts.iter().for_each(|attempts| attempts.await_more(10));
    for attempts in &attempts {
        assert_eq!(attempts.lost(), []);
    }
    let counts = flows.counts();
    assert_eq!((counts.open, counts.broken), (20, 0), "{:#?}", flows.breaks());
    Ok(())
}
