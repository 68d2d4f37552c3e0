//! The API server is away, slow, or says strange things.

use std::time::{Duration, Instant};

use tests::fake_api::Behaviour;
use tests::ledger::Holdings;
use tests::probe::{Attempts, Kind, now};
use tests::{is_full_run, privileged, wait};

use crate::DEADLINE;
use crate::world::{
    NOTHING, PORT, READY, World, assert_in_place, hook_maps, on_each_datapath, outlast, rule_changes, server,
    service, slices, socket, web,
};

/// After an outage of seconds a change arrives within this time; the delay between attempts grows with the outage.
const BACK: Duration = Duration::from_secs(15);

#[track_caller]
fn await_server(attempts: &[Attempts], number: u16, timeout: Duration) {
    for attempts in attempts {
        let what = format!("server {number} answers");
        attempts.await_outcome(&what, timeout, |attempt| {
            attempt.server().is_some_and(|at| server(number).contains(&at))
        });
    }
}

#[track_caller]
fn assert_nothing_lost(attempts: &[Attempts]) {
    for attempts in attempts {
        assert_eq!(attempts.lost(), [], "of {}", attempts.all().len());
    }
}

/// Those that the table `outage` refused.
fn refused_connections(world: &World) -> anyhow::Result<u64> {
    let output = world
        .node
        .host()
        .command("nft", &["list", "table", "inet", "outage"])?;
    let words: Vec<_> = output.stdout.split_whitespace().collect();
    let count = words.windows(2).find(|pair| pair[0] == "packets");
    let count = count.ok_or_else(|| anyhow::anyhow!("no counter: {}", output.stdout))?;
    Ok(count[1].parse()?)
}

/// What each of those who ask the API (the kinds that are watched, and single objects) may try while it is away: from
/// a quarter of a second, twice as long each time, up to fifteen seconds.
fn most_attempts(outage: Duration) -> u64 {
    const ASK: u64 = 10;
    const WHILE_IT_DOUBLES: u64 = 8;
    ASK * (WHILE_IT_DOUBLES + outage.as_secs() / 15)
}

#[test]
fn an_outage_of_the_api_changes_nothing_and_the_next_change_arrives() -> anyhow::Result<()> {
    if !privileged("an outage of the API changes nothing (F19)") {
        return Ok(());
    }
    let outage = Duration::from_secs(if is_full_run() { 180 } else { 4 });
    let (world, agent) = World::with_agent("outage", "ebpf", &[1, 2])?;
    let flows = world.flows(50, 10)?;
    let attempts = world.connections(30)?;
    let written = agent.writes();
    let before = Holdings::of(agent.0.pid())?;
    let rules = world.rules();
    let port = world.node.api.address().port().to_string();
    world.nft(&["add", "table", "inet", "outage"])?;
    world.nft(&[
        "add",
        "chain",
        "inet",
        "outage",
        "in",
        "{ type filter hook input priority 0; }",
    ])?;
    world.nft(&[
        "add", "rule", "inet", "outage", "in", "tcp", "dport", &port, "tcp", "flags", "syn", "counter",
        "reject", "with", "tcp", "reset",
    ])?;
    world.nft(&[
        "add", "rule", "inet", "outage", "in", "tcp", "dport", &port, "reject", "with", "tcp", "reset",
    ])?;
    // Connections that are open meet the reset with their next packet.
    world.node.api.cut();
    wait::until_value(
        "the outage is told",
        DEADLINE,
        || world.node.metrics().unwrap_or_default(),
        |page| page.contains("causeway_watch_failing{kind=\"Service\"} 1"),
    );
    outlast(outage);
    assert_eq!(agent.writes(), written, "nothing changed");
    let after = Holdings::of(agent.0.pid())?;
    let attempts_to_connect = refused_connections(&world)?;
    let most = most_attempts(outage);
    assert!(attempts_to_connect <= most, "{attempts_to_connect}, not {most}");
    world.nft(&["delete", "table", "inet", "outage"])?;
    assert_eq!(world.rules(), rules);
    world.put_endpoints(&[3]);
    let back = Instant::now();
    await_server(&attempts, 3, BACK.max(outage));
    let grown = after.resident_kib.saturating_sub(before.resident_kib);
    assert!(grown <= 5 << 10, "{grown} KiB more");
    println!(
        "F19: a change arrived {:?} after an outage of {outage:?}; {attempts_to_connect} attempts, CPU {} ms, {} KiB \
         more, {} files more",
        back.elapsed(),
        (after.cpu_ticks - before.cpu_ticks) * 10,
        grown,
        after.open_files().saturating_sub(before.open_files()),
    );
    assert_nothing_lost(&attempts);
    let counts = flows.counts();
    assert_eq!((counts.open, counts.broken), (50, 0), "{:#?}", flows.breaks());
    Ok(())
}

#[test]
fn errors_of_the_api_remove_no_service_and_churn_no_rule() -> anyhow::Result<()> {
    if !privileged("errors of the API remove no Service (F21)") {
        return Ok(());
    }
    on_each_datapath(check_errors)
}

fn check_errors(datapath: &'static str) -> anyhow::Result<()> {
    let (world, agent) = World::with_agent(&format!("errors-{datapath}"), datapath, &[1, 2])?;
    let attempts = world.connections(30)?;
    let monitor = world.monitor_rules()?;
    let written = agent.writes();
    let maps = || (datapath == "ebpf").then(|| hook_maps(&world)).transpose();
    let programmed = maps()?;
    let api = &world.node.api;
    let begin = |requests: usize, what: &str| {
        wait::until_value(
            what,
            DEADLINE,
            || api.requests().len(),
            |count| *count >= requests,
        );
    };
    // An ERROR event in the middle of the watches, and lists by all of them.
    let before = api.requests().len();
    api.compact();
    begin(before + 4, "all list again");
    let refusals = [410, 429, 500, 503, 401].map(|code| ([code; 4], false));
    for (codes, by_text) in refusals.into_iter().chain([([429; 4], true)]) {
        let before = api.requests().len();
        api.behave(|behaviour| {
            behaviour.fail_next = codes.into();
            behaviour.retry_after = 1;
            behaviour.refuses_by_text = by_text;
        });
        api.cut();
        begin(before + 8, &format!("all try again after {codes:?}"));
    }
    // Nobody is left who waits for an answer.
    wait::until_value(
        "all watches work",
        DEADLINE,
        || world.node.metrics().unwrap_or_default(),
        |page| {
            page.contains("causeway_watch_failing{")
                && !page
                    .lines()
                    .any(|line| line.starts_with("causeway_watch_failing{") && line.ends_with(" 1"))
        },
    );
    assert_eq!(rule_changes(&monitor), NOTHING);
    assert_eq!(agent.writes(), written);
    assert_eq!(maps()?, programmed);
    world.put_endpoints(&[3]);
    await_server(&attempts, 3, BACK);
    assert_nothing_lost(&attempts);
    Ok(())
}

#[test]
fn stalled_replayed_and_lost_events_end_in_the_servers_state() -> anyhow::Result<()> {
    if !privileged("stalled, replayed and lost events end in the server's state (F23)") {
        return Ok(());
    }
    let (world, agent) = World::with_agent("events", "ebpf", &[1])?;
    let attempts = world.connections(30)?;
    let api = &world.node.api;

    // Open and silent; bookmarks only; then everything at once.
    api.behave(|behaviour| behaviour.silent = true);
    for change in 0..50 {
        world.put_endpoints(&[change % 4 + 1]);
    }
    api.bookmark();
    api.behave(|behaviour| behaviour.silent = false);
    world.put_endpoints(&[2]);
    await_server(&attempts, 2, BACK);

    // Each watch ends at once, and the next one begins with what was told already.
    let before = api.requests().len();
    api.behave(|behaviour| behaviour.hasty_ends = true);
    api.cut();
    wait::until_value(
        "watches begin anew",
        DEADLINE,
        || api.requests().len(),
        |count| *count >= before + 12,
    );
    api.behave(|behaviour| behaviour.hasty_ends = false);
    world.put_endpoints(&[3]);
    await_server(&attempts, 3, DEADLINE);

    // The same again and again is no change.
    let written = agent.writes();
    for _ in 0..20 {
        world.put_endpoints(&[3]);
        api.put(web());
    }
    // A Service beside it shows that they were seen.
    let other = service("other", "10.96.0.8", "fd00:96::8", None);
    let delete = |object: &serde_json::Value| api.delete_unseen(object);
    api.put(other.clone());
    world.put_endpoints_of("other", &[1], &READY);
    let seen = Attempts::start(
        &world.pod_place(),
        Kind::Connections,
        socket("10.96.0.8", PORT),
        20,
    )?;
    await_server(std::slice::from_ref(&seen), 1, BACK);
    let more = agent.writes().split_off(written.len());
    assert!(
        more.len() <= 3,
        "more than that Service and its two slices: {more:#?}"
    );

    // Deletions that no watch told, found by the next list.
    delete(&other);
    slices("other", &[1], &READY).iter().for_each(delete);
    api.compact();
    wait::until("the Service is gone", DEADLINE, || {
        let rules = world.rules();
        if rules.iter().any(|part| part.contains("10.96.0.8")) {
            Err(rules)
        } else {
            Ok(())
        }
    });
    assert_nothing_lost(&attempts);
    assert_in_place(&world, agent);
    Ok(())
}

#[test]
fn a_slow_api_at_start_removes_nothing_before_the_lists_are_complete() -> anyhow::Result<()> {
    if !privileged("a slow API at start removes nothing before the lists are complete (F24)") {
        return Ok(());
    }
    on_each_datapath(|datapath| {
        check_slow_start(datapath, "late", |api| api.delay = Duration::from_millis(400))
    })
}

#[test]
fn a_trickling_api_at_start_removes_nothing_before_the_lists_are_complete() -> anyhow::Result<()> {
    if !privileged("an API of 1 KiB/s at start removes nothing before the lists are complete (F24)") {
        return Ok(());
    }
    on_each_datapath(|datapath| check_slow_start(datapath, "trickle", |api| api.bytes_per_second = 1 << 10))
}

#[track_caller]
fn check_slow_start(
    datapath: &'static str,
    label: &str,
    slow: impl FnOnce(&mut Behaviour),
) -> anyhow::Result<()> {
    let (world, mut agent) = World::with_agent(&format!("{label}-{datapath}"), datapath, &[1, 2])?;
    let old = service("old", "10.96.0.8", "fd00:96::8", None);
    world.node.api.put(old.clone());
    world.put_endpoints_of("old", &[1], &READY);
    let flows = world.flows(20, 10)?;
    let attempts = world.connections(30)?;
    let to_old = Attempts::start(
        &world.pod_place(),
        Kind::Connections,
        socket("10.96.0.8", PORT),
        10,
    )?;
    wait::until("the other Service is there", DEADLINE, || {
        let rules = world.rules();
        if rules.iter().any(|part| part.contains("fd00:96::8 . udp")) {
            Ok(())
        } else {
            Err(agent.0.output())
        }
    });
    agent.0.kill();
    world.node.api.delete(&old);
    world.node.api.behave(slow);
    let before = world.rules();
    let monitor = world.monitor_rules()?;
    let agent = world.start_agent();
    let (start, started) = (Instant::now(), now());
    let mut looked = 0;
    wait::until("the lists are complete", DEADLINE, || {
        let rules = world.rules();
        if world.node.part("proxy").as_deref() == Some("working") {
            return Ok(());
        }
        // The log tells of a sync after it wrote; what is seen before that must be whole.
        if agent.writes().is_empty() && rule_changes(&monitor).is_empty() {
            assert_eq!(rules, before);
            assert!(
                to_old
                    .since(started)
                    .iter()
                    .all(|attempt| attempt.server().is_some())
            );
            looked += 1;
        }
        Err(looked)
    });
    let complete = start.elapsed();
    assert!(
        looked > 10 && complete > Duration::from_secs(1),
        "{looked} looks within {complete:?}"
    );
    let left = world.rules();
    assert!(
        !left.iter().any(|part| part.contains(" 10.96.0.8")),
        "what was deleted is swept then"
    );
    assert_nothing_lost(&attempts);
    let counts = flows.counts();
    assert_eq!((counts.open, counts.broken), (20, 0), "{:#?}", flows.breaks());
    assert_eq!(agent.writes().len(), 1, "one sync: {:#?}", agent.writes());
    println!("F24 {datapath}, {label}: lists complete after {complete:?}, {looked} looks before");
    Ok(())
}
