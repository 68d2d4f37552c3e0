//! What EC2 and the metadata service do to a node (F44), and an agent that ends between two calls (F45): pods that run keep
//! running, those that come get what is ready, calls are few, and nothing is left with nobody.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::Result;
use fake_vpc::fabric::Drops;
use fake_vpc::request::Interface;
use fake_vpc::weather::{Fault, Stale, Weather};
use serde_json::json;
use tests::probe::{Attempts, Kind};
use tests::{privileged, wait};
use vpc_eni::ec2::{Action, Limits};

use crate::world::{KEYS, PORT, SOON, World};

/// What an agent asks EC2 while it has addresses, and what it asks for.
const ASKED: [Action; 6] = [
    Action::DescribeInstances,
    Action::DescribeNetworkInterfaces,
    Action::AssignPrivateIpAddresses,
    Action::CreateNetworkInterface,
    Action::AttachNetworkInterface,
    Action::ModifyNetworkInterfaceAttribute,
];

/// How many addresses are ready.
const WARM: usize = 3;

/// How long the mood is looked at.
const WINDOW: Duration = Duration::from_secs(8);

/// What an ADD takes at the most that finds an address, by a build without optimisation on a machine that is busy. One
/// that waits for EC2 in any of the moods takes longer.
const AT_ONCE: Duration = Duration::from_secs(3);

type Mood = fn(&World);

/// Addresses for pods that the node's interfaces have, of which each has those of one attachment; nothing is with nobody.
fn secondary(world: &World) -> std::result::Result<usize, String> {
    let all = world.cloud.interfaces();
    let nobodys: Vec<&Interface> = all
        .iter()
        .filter(|interface| interface.eni.attachment.is_none())
        .collect();
    if !nobodys.is_empty() {
        return Err(format!("with nobody: {nobodys:?}"));
    }
    let own = world.cloud.interfaces_of(&world.nodes[0].instance);
    Ok(own.iter().map(|interface| interface.eni.secondary.len()).sum())
}

/// It has as many addresses as it shall, by its own word and by EC2's, and nothing is left.
#[track_caller]
fn await_addresses(world: &World, what: &str, count: usize) {
    let node = &world.nodes[0];
    let told = || (secondary(world), node.sample("awscni_total_ip_addresses"));
    let wanted = (Ok(count), Some(count.to_string()));
    let _settled = wait::until_value(what, 3 * SOON, told, |told| *told == wanted);
}

/// Nodes with a pod each, connections from the other one's to the first one's, and what is ready beside them.
fn world_with_traffic(label: &str) -> Result<(World, Attempts)> {
    let variables = json!({
        "WARM_IP_TARGET": WARM.to_string(),
        "MINIMUM_IP_TARGET": WARM.to_string(),
        "IP_COOLDOWN_PERIOD": "0",
    });
    let limits = Limits {
        interfaces: 3,
        addresses_per_interface: 5,
        is_nitro: true,
    };
    let mut world = World::of_type(label, 2, &variables, limits)?;
    for (number, node) in world.nodes.iter_mut().enumerate() {
        node.start_agent(&KEYS)?;
        node.await_status();
        node.add(&format!("{label}-pod-{number}"))?;
    }
    await_addresses(&world, "addresses are ready", 1 + WARM);
    let [server, client] = [0, 1].map(|number| &world.nodes[number].pods[0]);
    let to = SocketAddr::from((server.address, PORT));
    let attempts = Attempts::start(&client.host.place(), Kind::Connections, to, 20)?;
    attempts.await_more(5);
    Ok((world, attempts))
}

#[track_caller]
fn check_mood(label: &str, mood: Mood) -> Result<()> {
    if !privileged(&format!("EC2 in a bad mood: {label} (F44)")) {
        return Ok(());
    }
    let (mut world, attempts) = world_with_traffic(label)?;
    world.cloud.take_calls();
    mood(&world);
    let began = Instant::now();
    for number in 0..WARM {
        let asked = Instant::now();
        world.nodes[0].add(&format!("{label}-{number}"))?;
        world.nodes[0].send_at_once()?;
        assert!(
            asked.elapsed() < AT_ONCE,
            "{label}: ADD took {:?}",
            asked.elapsed()
        );
    }
    let seen = || (world.cloud.calls().len(), began.elapsed());
    let (calls, elapsed) = wait::until_value("it is looked at", SOON, seen, |seen| seen.1 >= WINDOW);
    assert!(calls > 0, "{label}: nothing was asked for");
    // A few in a row where they are answered, and one a second in the long run.
    let most = 6 + usize::try_from(elapsed.as_secs())?;
    assert!(
        calls <= most,
        "{label}: {calls} calls in {elapsed:?}: {:?}",
        world.cloud.counts()
    );
    world.nodes[0].remove_last()?;
    world.cloud.set_weather(|weather| *weather = Weather::default());
    for (action, nth) in ASKED
        .into_iter()
        .flat_map(|action| (1..=50).map(move |nth| (action, nth)))
    {
        world.cloud.forget(action, nth);
    }
    await_addresses(&world, "it is over", WARM + WARM);
    attempts.await_more(5);
    assert_eq!(attempts.lost(), [], "{label}: of {}", attempts.all().len());
    assert_eq!(world.fabric.drops()?, Drops::default(), "{label}");
    Ok(())
}

#[test]
fn of_ten_calls_nine_are_throttled() -> Result<()> {
    check_mood("vpc-throttled", |world| {
        world.cloud.set_weather(|weather| weather.throttled_per_cent = 90);
    })
}

#[test]
fn ec2_is_unavailable() -> Result<()> {
    check_mood("vpc-503", |world| {
        for (action, nth) in ASKED
            .into_iter()
            .flat_map(|action| (1..=50).map(move |nth| (action, nth)))
        {
            world
                .cloud
                .fail(action, nth, Fault::refused("ServiceUnavailable"));
        }
    })
}

#[test]
fn ec2_hangs_for_twenty_seconds() -> Result<()> {
    check_mood("vpc-hangs", |world| {
        world
            .cloud
            .set_weather(|weather| weather.answer_after = Duration::from_secs(20));
    })
}

#[test]
fn what_happened_is_seen_half_a_minute_later() -> Result<()> {
    check_mood("vpc-lag", |world| {
        let late = Stale {
            time: Duration::from_secs(30),
            ..Stale::default()
        };
        world.cloud.set_weather(|weather| {
            weather.metadata.behind = late.time;
            for action in [Action::DescribeInstances, Action::DescribeNetworkInterfaces] {
                weather.stale.insert(action, late);
            }
        });
    })
}

#[test]
fn the_metadata_service_is_disabled_while_pods_come() -> Result<()> {
    check_mood("vpc-imds-off", |world| {
        world
            .cloud
            .set_weather(|weather| weather.metadata.is_disabled = true);
    })
}

/// A metadata service that answers everything with a status.
fn answering(world: &World, status: u16) -> Result<String> {
    let listener = world.nodes[0].host.run(|| TcpListener::bind("127.0.0.1:0"))??;
    let at = format!("http://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            // Who hangs up has its answer.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    Ok(at)
}

#[test]
fn whatever_the_metadata_service_answers_pods_of_an_agent_that_restarts_keep_running() -> Result<()> {
    if !privileged("a metadata service that refuses (F44)") {
        return Ok(());
    }
    let (mut world, attempts) = world_with_traffic("vpc-imds")?;
    for status in [401, 404, 503] {
        world.nodes[0].agent = None;
        let at = answering(&world, status)?;
        let variables = [
            KEYS.as_slice(),
            &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", at.as_str())],
        ]
        .concat();
        world.nodes[0].start_agent(&variables)?;
        let told = format!("{status}");
        world.nodes[0].says(
            "the metadata service is named",
            ["metadata service", told.as_str()],
        );
        attempts.await_more(5);
    }
    world.nodes[0].agent = None;
    world.nodes[0].start_agent(&KEYS)?;
    world.nodes[0].await_status();
    await_addresses(&world, "nothing came and nothing went", 1 + WARM);
    attempts.await_more(5);
    assert_eq!(attempts.lost(), [], "of {}", attempts.all().len());
    Ok(())
}

#[test]
fn an_agent_that_ends_between_two_calls_leaves_nothing_and_asks_for_nothing_twice() -> Result<()> {
    if !privileged("an agent that ends between two calls (F45)") {
        return Ok(());
    }
    let variables = json!({"WARM_IP_TARGET": "1", "MINIMUM_IP_TARGET": "1", "IP_COOLDOWN_PERIOD": "0"});
    let limits = Limits {
        interfaces: 8,
        addresses_per_interface: 3,
        is_nitro: true,
    };
    let mut world = World::of_type("vpc-ends", 1, &variables, limits)?;
    world.nodes[0].start_agent(&KEYS)?;
    world.nodes[0].await_status();
    for action in [
        Action::CreateNetworkInterface,
        Action::AttachNetworkInterface,
        Action::ModifyNetworkInterfaceAttribute,
        Action::AssignPrivateIpAddresses,
    ] {
        let before = world.cloud.count(action);
        world
            .cloud
            .set_weather(|weather| weather.answer_after = Duration::from_secs(1));
        // It was called, and its answer is on its way.
        while world.cloud.count(action) == before {
            let pods = world.nodes[0].pods.len();
            world.nodes[0].add(&format!("pod-{pods}"))?;
            let (cloud, node) = (&world.cloud, &world.nodes[0]);
            let seen = || {
                (
                    cloud.count(action) > before,
                    node.sample("awscni_total_ip_addresses"),
                )
            };
            let enough = Some((pods + 2).to_string());
            wait::until_value("one more is ready", SOON, seen, |seen| seen.0 || seen.1 == enough);
        }
        world.nodes[0].agent.as_mut().expect("it runs").kill();
        world
            .cloud
            .set_weather(|weather| weather.answer_after = Duration::ZERO);
        world.nodes[0].start_agent(&KEYS)?;
        world.nodes[0].await_status();
        let pods = world.nodes[0].pods.len();
        await_addresses(&world, &format!("counts after {action}"), pods + 1);
        let interfaces = world.interfaces(0).len();
        assert_eq!(
            interfaces,
            (pods + 1).div_ceil(2),
            "after {action}, with {pods} pods"
        );
    }
    Ok(())
}
