//! Histories by chance: pods come and go, calls fail, managers die, looks are old, and somebody meddles. At no time is an
//! address two pods' or one of nobody's; and when it is calm again nothing is lost.

use std::time::Duration;

use fake_vpc::weather::{Fault, Stale};
use ipnetwork::IpNetwork;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use vpc_eni::ec2::{Action, EniId, Tags};

use crate::world::World;

const VARIABLES: [&str; 5] = [
    "",
    "WARM_IP_TARGET=2",
    "WARM_IP_TARGET=1 MINIMUM_IP_TARGET=6",
    "ENABLE_PREFIX_DELEGATION=true WARM_PREFIX_TARGET=1",
    "WARM_ENI_TARGET=0",
];

const ACTIONS: [Action; 8] = [
    Action::AssignPrivateIpAddresses,
    Action::AttachNetworkInterface,
    Action::CreateNetworkInterface,
    Action::DeleteNetworkInterface,
    Action::DescribeNetworkInterfaces,
    Action::DetachNetworkInterface,
    Action::ModifyNetworkInterfaceAttribute,
    Action::UnassignPrivateIpAddresses,
];

fn fault(chance: &mut StdRng) -> Fault {
    match chance.random_range(0..5) {
        0 => Fault::Lost,
        1 => Fault::AnswerLost,
        2 => Fault::refused("RequestLimitExceeded"),
        3 => Fault::done_and_refused("InternalError"),
        _ => Fault::refused("UnauthorizedOperation"),
    }
}

/// One thing that happens.
async fn happen(world: &mut World, chance: &mut StdRng) {
    let pods = world.book.pods().len() as u32;
    match chance.random_range(0..20) {
        0..=5 => world
            .book
            .add_pods(chance.random_range(1..=(26 - pods.min(25)).min(8))),
        6..=10 => world.book.remove_pods(chance.random_range(0..=pods.min(8))),
        11..=14 => {
            let action = *ACTIONS.choose(chance).expect("some");
            world
                .cloud
                .fail(action, chance.random_range(1..=3), fault(chance));
        }
        15 | 16 => {
            // What dies in the middle of a call dies a little later.
            tokio::time::sleep(Duration::from_millis(chance.random_range(0..700))).await;
            world.kill().await;
            tokio::time::sleep(Duration::from_secs(chance.random_range(0..90))).await;
            world.start();
        }
        17 => {
            let time = Duration::from_secs(chance.random_range(0..45));
            world.cloud.set_weather(|weather| {
                let stale = Stale { changes: 0, time };
                weather.stale.insert(Action::DescribeNetworkInterfaces, stale);
            });
        }
        18 => {
            let per_cent = chance.random_range(0..60);
            world
                .cloud
                .set_weather(|weather| weather.throttled_per_cent = per_cent);
        }
        _ => world.cloud.set_weather(|weather| {
            weather.stale.clear();
            weather.throttled_per_cent = 0;
        }),
    }
}

async fn calm(world: &World, what: &str) {
    world.cloud.set_weather(|weather| {
        weather.stale.clear();
        weather.throttled_per_cent = 0;
    });
    for action in ACTIONS {
        for nth in 1..=3 {
            world.cloud.forget(action, nth);
        }
    }
    let short = world.book.waiting();
    world.book.remove_pods(short as u32);
    tokio::time::sleep(Duration::from_secs(62 * 60)).await;
    world.settle().await;
    world.assert_nothing_is_lost();
    assert_eq!(world.records(), [] as [serde_json::Value; 0], "{what}");
    assert!(
        world.status().problems.is_empty(),
        "{what}: {:?}",
        world.status().problems
    );
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_every_address_of_a_pod_is_delivered_and_nothing_is_lost() {
    for seed in 1..=20 {
        let mut chance = StdRng::seed_from_u64(seed);
        let mut world = World::build("m5.large", VARIABLES[seed as usize % VARIABLES.len()]);
        world.cloud.set_weather(|weather| {
            weather.attaching = Duration::from_secs(2);
            weather.device_after = Duration::from_secs(3);
            weather.detaching = Duration::from_secs(4);
            weather.answer_after = Duration::from_millis(300);
        });
        world.start();
        for step in 0..40 {
            happen(&mut world, &mut chance).await;
            for _ in 0..chance.random_range(1..12) {
                tokio::time::sleep(Duration::from_secs(1)).await;
                world.assert_delivered(&format!("seed {seed}, step {step}"));
            }
        }
        calm(&world, &format!("seed {seed}")).await;
    }
}

/// Somebody takes what nobody uses, attaches interfaces and takes them away: that is known within an hour at most, and
/// never takes anything from a pod that has it.
#[tokio::test(start_paused = true)]
async fn whoever_meddles_the_manager_finds_its_way() {
    for seed in 1..=20 {
        let mut chance = StdRng::seed_from_u64(1000 + seed);
        let mut world = World::build("m5.large", VARIABLES[seed as usize % VARIABLES.len()]);
        world
            .cloud
            .set_weather(|weather| weather.answer_after = Duration::from_millis(100));
        world.start();
        world.settle().await;
        let mut others: Vec<EniId> = Vec::new();
        for _ in 0..60 {
            let pods = world.book.pods();
            match chance.random_range(0..8) {
                0..=2 => world
                    .book
                    .add_pods(chance.random_range(0..=(16 - pods.len().min(16) as u32).min(5))),
                3 | 4 => world
                    .book
                    .remove_pods(chance.random_range(0..=(pods.len() as u32).min(5))),
                5 => {
                    let is_free = |block: &IpNetwork| !pods.iter().any(|pod| block.contains(*pod));
                    let free = world.book.offered().into_iter().find(is_free);
                    let owner = free.and_then(|block| world.cloud.owner(&world.vpc, block.ip()));
                    if let (Some(block), Some(owner)) = (free, owner) {
                        // It may have gone already.
                        let _ = world.cloud.take_addresses(&owner, &[block].into_iter().collect());
                    }
                }
                6 if others.is_empty() && world.held().len() < 3 => {
                    let tags =
                        Tags::from([("node.k8s.amazonaws.com/no_manage".to_owned(), "true".to_owned())]);
                    others.push(world.attach_another(5, tags));
                }
                _ => {
                    if let Some(other) = others.pop() {
                        world.cloud.take_interface(&other).expect("there");
                    }
                }
            }
            tokio::time::sleep(Duration::from_secs(chance.random_range(1..900))).await;
        }
        for other in others {
            world.cloud.take_interface(&other).expect("there");
        }
        tokio::time::sleep(Duration::from_secs(62 * 60)).await;
        // Pods whose addresses were taken before anybody could know are put anew.
        world
            .book
            .remove_pods(world.book.pods().len() as u32 + world.book.waiting() as u32);
        world.settle().await;
        tokio::time::sleep(Duration::from_secs(62 * 60)).await;
        world.settle().await;
        world.assert_nothing_is_lost();
        assert!(
            world.status().problems.is_empty(),
            "seed {seed}: {:?}",
            world.status().problems
        );
    }
}
