//! Endpoints come and go.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::ledger::Holdings;
use tests::probe::{Attempt, Attempts, Kind, Outcome, now};
use tests::{is_full_run, privileged, wait};

use crate::DEADLINE;
use crate::world::{
    DATAPATHS, NODE_PORT, NOTHING, PORT, READY, TERMINATING, VIP, VIP_V6, World, assert_in_place,
    on_each_datapath, server, service, slices, socket, web,
};

/// R6: endpoint change to new flows.
const PROGRAMMED: Duration = Duration::from_millis(250);

/// What a refusal may take; the bar of 10 ms is left to a benchmark, on a machine that does nothing else.
const REFUSED: Duration = Duration::from_millis(100);

/// Of `World::connections`.
const TCP_CLIENTS: usize = 3;

fn is_at(number: u16) -> impl Fn(&Attempt) -> bool {
    move |attempt| attempt.server().is_some_and(|at| server(number).contains(&at))
}

#[test]
fn services_refuse_at_zero_endpoints_and_recover_at_once() -> anyhow::Result<()> {
    if !privileged("Services refuse at zero endpoints and recover at once (F34)") {
        return Ok(());
    }
    for datapath in DATAPATHS {
        let (world, _agent) = World::with_agent(&format!("zero-{datapath}"), datapath, &[1])?;
        let pod = world.pod_place();
        let mut attempts = world.connections(100)?;
        for vip in [VIP, VIP_V6] {
            attempts.push(Attempts::start(
                &pod,
                Kind::ConnectedRequests,
                socket(vip, PORT),
                100,
            )?);
        }
        let (mut refusals, mut recoveries) = (Vec::new(), Vec::new());
        for number in [2, 3, 4] {
            world.put_endpoints(&[]);
            for attempts in &attempts {
                let refused = attempts.await_outcome("refused", DEADLINE, |attempt| {
                    attempt.outcome == Outcome::Refused && attempt.took <= REFUSED
                });
                refusals.push(refused.took);
            }
            let back = now();
            world.put_endpoints(&[number]);
            for attempts in &attempts {
                let answered = attempts.await_outcome("answered", DEADLINE, is_at(number));
                let first = attempts
                    .since(back)
                    .into_iter()
                    .find(is_at(number))
                    .unwrap_or(answered);
                recoveries.push(Duration::from_micros(first.began - back));
            }
        }
        // Rules refuse UDP by ICMP, of which the kernel sends a client one in a second (`icmp_ratelimit`).
        let told = if datapath == "ebpf" {
            attempts.len()
        } else {
            TCP_CLIENTS
        };
        for attempts in &attempts[..told] {
            let mut holes = attempts.all();
            holes.retain(|attempt| matches!(attempt.outcome, Outcome::Silent | Outcome::Error(_)));
            assert_eq!(holes, [], "{datapath}: nothing falls into a hole");
        }
        recoveries.sort();
        refusals.sort();
        let most = recoveries.last().copied().unwrap_or_default();
        println!(
            "F34 {datapath}: refused after {:?} at most, back after {most:?} at most",
            refusals.last()
        );
        assert!(most <= PROGRAMMED, "{datapath}: {recoveries:?}");
    }
    Ok(())
}

#[test]
fn terminating_endpoints_serve_only_while_there_is_no_other_and_affinity_can_be_switched()
-> anyhow::Result<()> {
    if !privileged("terminating endpoints and affinity flips (F34)") {
        return Ok(());
    }
    on_each_datapath(check_conditions)
}

fn check_conditions(datapath: &'static str) -> anyhow::Result<()> {
    let (world, _agent) = World::with_agent(&format!("ending-{datapath}"), datapath, &[1])?;
    let attempts = world.connections(60)?;
    let alone = |number: u16, what: &str| {
        for attempts in &attempts {
            attempts.await_outcome(what, DEADLINE, is_at(number));
            let from = now();
            wait::until_value(what, DEADLINE, || attempts.since(from), |seen| seen.len() >= 10);
            assert!(attempts.since(from).iter().all(is_at(number)), "{what}");
        }
    };
    world.put_endpoints_of("web", &[2], &TERMINATING);
    alone(2, "the only one serves while it ends");
    world.put_endpoints(&[3]);
    alone(3, "a ready one takes over");

    let sticky = || {
        let mut sticky = web();
        sticky["spec"]["sessionAffinity"] = "ClientIP".into();
        sticky["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 600}});
        sticky
    };
    for service in [sticky(), web(), sticky(), web()] {
        world.node.api.put(service);
        attempts.iter().for_each(|attempts| attempts.await_more(5));
    }
    world.node.api.put(sticky());
    world.put_endpoints(&[4]);
    alone(4, "clients leave an endpoint that is gone");
    for attempts in &attempts {
        assert_eq!(attempts.lost(), [], "{datapath}");
    }
    Ok(())
}

#[test]
fn churn_sends_nobody_to_an_endpoint_that_is_gone() -> anyhow::Result<()> {
    if !privileged("churn sends nobody to an endpoint that is gone (F33)") {
        return Ok(());
    }
    for datapath in DATAPATHS {
        check_churn(datapath)?;
    }
    Ok(())
}

#[track_caller]
fn check_churn(datapath: &'static str) -> anyhow::Result<()> {
    let (services, per_second, seconds) = if is_full_run() {
        (1000, 500, 60)
    } else {
        (200, 100, 3)
    };
    let (world, agent) = World::with_agent(&format!("churn-{datapath}"), datapath, &[1])?;
    let names: Vec<_> = (0..services)
        .map(|number: u16| format!("other-{number}"))
        .collect();
    for (number, name) in names.iter().enumerate() {
        let (high, low) = (number / 250 + 1, number % 250 + 1);
        let service = service(
            name,
            &format!("10.96.{high}.{low}"),
            &format!("fd00:96::{high:x}:{low:x}"),
            None,
        );
        world.node.api.put(service);
        world.put_endpoints_of(name, &[1, 2], &READY);
    }
    await_settled(&world);
    let before = Holdings::of(agent.0.pid())?;
    let pod = world.pod_place();
    let mut attempts = world.connections(50)?;
    for (place, to) in [
        (&pod, socket(VIP, PORT)),
        (&pod, socket(VIP_V6, PORT)),
        (&world.outside().place(), socket("172.30.8.11", NODE_PORT)),
    ] {
        attempts.push(Attempts::start(place, Kind::Requests, to, 50)?);
    }
    attempts.iter().for_each(|attempts| attempts.await_more(10));

    // Who left, and when: `web` changes once in half a second, and each of the others in turn.
    let mut leavings = vec![(now(), 1)];
    let start = Instant::now();
    let interval = Duration::from_secs(1) / per_second;
    for change in 0..per_second * seconds {
        if change % (per_second / 2).max(1) == 0 {
            let number = u16::try_from(leavings.len() % 4)? + 1;
            world.put_endpoints(&[number]);
            leavings.push((now(), number));
        } else {
            let change = usize::try_from(change)?;
            let name = &names[change % names.len()];
            // Other endpoints in each round.
            let number = u16::try_from((change + change / names.len()) % 4)? + 1;
            world.put_endpoints_of(name, &[number, number % 4 + 1], &READY);
        }
        // The pace of the changes, which is the fault; nothing is awaited.
        std::thread::sleep((interval * (change + 1)).saturating_sub(start.elapsed()));
    }
    let cpu = Holdings::of(agent.0.pid())?.cpu_ticks - before.cpu_ticks;
    let load = cpu as f64 / 100.0 / start.elapsed().as_secs_f64();
    attempts.iter().for_each(|attempts| attempts.await_more(30));

    let (mut late, mut in_flight) = (Vec::new(), 0);
    for (attempts, index) in attempts.iter().zip(0..) {
        for attempt in attempts.all() {
            match attempt.server() {
                Some(at) => late.extend(lateness(&leavings, attempt.began, at)),
                // A datagram that is under way to an endpoint that left, or back, when its flow is forgotten.
                None if index >= TCP_CLIENTS && is_near(&leavings, &attempt) => in_flight += 1,
                None => panic!("{datapath} {index}: {attempt:?} among {leavings:?}"),
            }
        }
    }
    assert!(
        in_flight <= leavings.len(),
        "{datapath}: {in_flight} datagrams lost"
    );
    late.sort();
    let most = late.last().copied().unwrap_or_default();
    println!(
        "F33 {datapath}: {} attempts found an endpoint that had left, {most:?} after it at most; {in_flight} datagrams \
         lost in {} leavings; {load:.2} of a CPU",
        late.len(),
        leavings.len()
    );
    assert!(
        most <= PROGRAMMED,
        "{datapath}: {:?}",
        &late[late.len().saturating_sub(20)..]
    );
    let last = leavings.last().expect("there is one").1;
    assert_eq!(stale_flows(&world, last)?, NOTHING, "{datapath}");

    await_settled(&world);
    assert_in_place(&world, agent);
    Ok(())
}

/// The last change that was made is in the kernel.
#[track_caller]
fn await_settled(world: &World) {
    let marker = service("marker", "10.96.250.1", "fd00:96::250", None);
    world.node.api.put(marker.clone());
    world.put_endpoints_of("marker", &[1], &READY);
    let is_there = |there: bool| {
        let what = format!("the marker is there: {there}");
        wait::until_value(
            &what,
            DEADLINE,
            || world.rules(),
            |rules| rules.iter().any(|part| part.contains("fd00:96::250 . udp")) == there,
        );
    };
    is_there(true);
    world.node.api.delete(&marker);
    for slice in slices("marker", &[], &READY) {
        world.node.api.delete(&slice);
    }
    is_there(false);
}

/// How long after its endpoint had left an attempt began.
fn lateness(leavings: &[(u64, u16)], began: u64, at: IpAddr) -> Option<Duration> {
    let current = leavings.iter().rposition(|(moment, _)| *moment <= began)?;
    let (_, wanted) = leavings[current];
    let next = leavings.get(current + 1).map(|(_, number)| *number);
    // One that began just before a change may meet the next endpoint.
    if server(wanted).contains(&at) || next.is_some_and(|next| server(next).contains(&at)) {
        return None;
    }
    Some(Duration::from_micros(began - leavings[current].0))
}

/// Whether an endpoint's flows may have been forgotten while the attempt was under way.
fn is_near(leavings: &[(u64, u16)], attempt: &Attempt) -> bool {
    let [took, programmed] =
        [attempt.took, PROGRAMMED].map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    leavings
        .iter()
        .any(|(moment, _)| attempt.began <= moment + programmed && attempt.began + took >= *moment)
}

/// Tracked UDP flows to `web` that lead to another endpoint than the one that is left.
fn stale_flows(world: &World, number: u16) -> anyhow::Result<Vec<String>> {
    let mut stale = Vec::new();
    for (family, vip, address) in [
        ("ipv4", VIP, server(number)[0]),
        ("ipv6", VIP_V6, server(number)[1]),
    ] {
        let words = ["-L", "-p", "udp", "-f", family, "--orig-dst", vip];
        let output = world.node.host().command("conntrack", &words)?;
        let flows = output.stdout.lines();
        let others = flows.filter(|line| !line.contains(&format!("src={address} ")));
        stale.extend(others.map(str::to_owned));
    }
    Ok(stale)
}
