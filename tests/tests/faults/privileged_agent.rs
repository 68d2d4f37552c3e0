//! The agent is killed and stopped.

use std::net::IpAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::ledger::{Holdings, tracked_flows};
use tests::probe::now;
use tests::{is_full_run, wait};

use crate::DEADLINE;
use crate::world::{NOTHING, VIP, World, hook_maps, on_each_datapath, put_others, rule_changes, server};

#[track_caller]
fn check_kills(datapath: &'static str) -> anyhow::Result<()> {
    let (kills, rate, connections) = if is_full_run() { (10, 100, 100) } else { (3, 5, 30) };
    let world = World::build(&format!("kills-{datapath}"), datapath)?.with_dns();
    world.put_web(&[1, 2]);
    put_others(&world, 50);
    let mut agent = world.start_agent();
    world.node.until_working("proxy");
    world.node.until_working("dns-address");
    let _dns = world.start_dns()?;
    let ledger = world.ledger()?;
    let maps = (datapath == "ebpf").then(|| hook_maps(&world)).transpose()?;
    let flows = world.flows(200, rate)?;
    let attempts = world.connections(connections)?;
    let queries = world.queries(connections)?;
    let monitor = world.monitor_rules()?;
    let mut held = Vec::new();
    for _ in 0..kills {
        held.push(Holdings::of(agent.0.pid())?);
        agent.0.kill();
        attempts.iter().for_each(|attempts| attempts.await_more(10));
        queries.await_more(10);
        agent = world.start_agent();
        world.node.until_working("proxy");
        attempts.iter().for_each(|attempts| attempts.await_more(10));
        queries.await_more(10);
        assert_eq!(agent.writes(), NOTHING, "nothing changed");
    }
    flows.await_more(400);
    let counts = flows.counts();
    assert_eq!((counts.open, counts.broken), (200, 0), "{:#?}", flows.breaks());
    let tried: usize = attempts.iter().map(|attempts| attempts.all().len()).sum();
    for attempts in &attempts {
        assert_eq!(attempts.lost(), [], "of {}", attempts.all().len());
    }
    let mut wrong = queries.all();
    let asked = wrong.len();
    wrong.retain(|query| query.server() != VIP.parse().ok());
    assert_eq!(wrong, [], "of {asked} DNS queries");
    assert_eq!(rule_changes(&monitor), NOTHING);
    drop(monitor);
    if let Some(maps) = maps {
        assert_eq!(hook_maps(&world)?, maps);
    }
    assert_eq!(world.ledger()?.changes_since(&ledger), NOTHING);
    let (first, last) = (&held[0], Holdings::of(agent.0.pid())?);
    assert_eq!(
        last.files.get("anon_inode:bpf-map"),
        first.files.get("anon_inode:bpf-map")
    );
    println!(
        "F1 {datapath}: {kills} kills, {} exchanges, longest {:?}, {tried} connections, {asked} DNS queries, {} flows \
         tracked; agent: {} files, {} threads, {} KiB",
        counts.exchanged,
        counts.longest,
        tracked_flows(world.node.host())?,
        last.open_files(),
        last.threads,
        last.resident_kib,
    );
    Ok(())
}

#[test]
fn nftables_flows_and_new_connections_survive_kills_and_a_restart_writes_nothing() -> anyhow::Result<()> {
    if !tests::privileged("nftables flows survive kills (F1)") {
        return Ok(());
    }
    check_kills("nftables")
}

#[test]
fn ebpf_flows_and_new_connections_survive_kills_and_a_restart_writes_nothing() -> anyhow::Result<()> {
    if !tests::privileged("eBPF flows survive kills (F1)") {
        return Ok(());
    }
    check_kills("ebpf")
}

#[test]
fn a_stopped_agent_catches_up_with_all_changes_within_5_seconds() -> anyhow::Result<()> {
    if !tests::privileged("a stopped agent catches up (F2)") {
        return Ok(());
    }
    on_each_datapath(check_stopped)
}

fn check_stopped(datapath: &'static str) -> anyhow::Result<()> {
    let (world, agent) = World::with_agent(&format!("stopped-{datapath}"), datapath, &[1])?;
    let attempts = world.connections(50)?;
    agent.signal(Signal::SIGSTOP)?;
    for change in 0..200_u16 {
        world.put_endpoints(&[change % 4 + 1, (change + 1) % 4 + 1]);
    }
    world.put_endpoints(&[3]);
    attempts.iter().for_each(|attempts| attempts.await_more(5));
    agent.signal(Signal::SIGCONT)?;
    let continued = now();
    let mut took = Duration::ZERO;
    for (attempts, to) in attempts.iter().zip(0..) {
        // It passes through states in between: the last other answer counts.
        let other = wait::until("the last endpoint answers alone", DEADLINE, || {
            let seen = attempts.since(continued);
            let is_other = |at: Option<IpAddr>| !at.is_some_and(|at| server(3).contains(&at));
            let others = seen.iter().rposition(|attempt| is_other(attempt.server()));
            let behind = others.map_or(0, |last| last + 1);
            if seen.len() >= behind + 30 {
                Ok(others.map_or(continued, |last| seen[last].began))
            } else {
                Err(seen)
            }
        });
        took = took.max(Duration::from_micros(other - continued));
        assert_eq!(attempts.lost(), [], "{to}");
    }
    assert!(took <= Duration::from_secs(5), "{took:?}");
    wait::until_value(
        "settled",
        DEADLINE,
        || world.node.part("proxy"),
        |state| state.as_deref() == Some("working"),
    );
    println!("F2 {datapath}: converged {took:?} after SIGCONT");
    Ok(())
}
