//! A node of a cluster of IPv6: one `/80` of its primary interface, and nothing else.

use std::time::Duration;

use fake_vpc::request::Request;
use fake_vpc::weather::Fault;
use ipnetwork::{IpNetwork, Ipv6Network};
use vpc_eni::ec2::{Action, Addresses, Tags};

use crate::world::World;

const MINUTE: Duration = Duration::from_secs(60);

fn prefixes(world: &World) -> Vec<Ipv6Network> {
    world
        .cloud
        .interface(&world.eni(0))
        .expect("there")
        .eni
        .prefixes_v6
}

/// The node has one prefix, pods are given addresses of it, and that is all that was done for them.
#[track_caller]
fn assert_served(world: &World, pods: usize, what: &str) {
    let prefixes = prefixes(world);
    let offered: Vec<IpNetwork> = prefixes.iter().copied().map(IpNetwork::V6).collect();
    assert_eq!(prefixes.len(), 1, "{what}: {prefixes:?}");
    assert_eq!(
        world.book.offered().into_iter().collect::<Vec<_>>(),
        offered,
        "{what}"
    );
    assert_eq!(
        (world.book.pods().len(), world.book.waiting()),
        (pods, 0),
        "{what}"
    );
    assert_eq!(world.held(), [1], "{what}");
    world.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn whatever_becomes_of_the_call_there_is_one_prefix() {
    for (fault, calls) in [
        (Fault::Lost, 2),
        (Fault::AnswerLost, 1),
        (Fault::refused("RequestLimitExceeded"), 2),
        (Fault::refused("InternalError"), 2),
        (Fault::done_and_refused("InternalError"), 1),
        (Fault::refused("UnauthorizedOperation"), 2),
        (Fault::refused("InsufficientCidrBlocks"), 2),
    ] {
        let mut world = World::build_v6("m5.large");
        world.cloud.fail(Action::AssignIpv6Addresses, 1, fault.clone());
        world.start();
        world.book.add_pods(3);
        world.settle().await;
        let what = format!("{fault:?}");
        assert_served(&world, 3, &what);
        assert_eq!(world.cloud.count(Action::AssignIpv6Addresses), calls, "{what}");
        assert!(world.status().problems.is_empty(), "{what}: {:?}", world.status());
    }
}

#[tokio::test(start_paused = true)]
async fn who_dies_at_any_call_leaves_one_prefix() {
    for nth in 1..=6 {
        let mut world = World::build_v6("m5.large");
        world
            .cloud
            .set_weather(|weather| weather.answer_after = Duration::from_millis(300));
        world.start();
        world
            .until("so many calls", 5 * MINUTE, |world| {
                world.cloud.calls().len() >= nth
            })
            .await;
        world.kill().await;
        world.start();
        world.book.add_pods(3);
        world.settle().await;
        assert_served(&world, 3, &format!("death at call {nth}"));
        assert_eq!(
            world.cloud.count(Action::AssignIpv6Addresses),
            1,
            "death at call {nth}"
        );
        tokio::time::sleep(5 * MINUTE).await;
        assert_eq!(
            world.records(),
            [] as [serde_json::Value; 0],
            "death at call {nth}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_prefix_stays_whatever_pods_come_and_go() {
    let mut world = World::build_v6("m5.large");
    world.start();
    world.book.add_pods(100);
    world.settle().await;
    let first = prefixes(&world);
    world.book.remove_pods(100);
    tokio::time::sleep(2 * 60 * MINUTE).await;
    world.kill().await;
    world.start();
    world.book.add_pods(2);
    world.settle().await;
    assert_eq!(prefixes(&world), first);
    assert_served(&world, 2, "after a restart");
    assert_eq!(world.changes(), 1);
}

/// Somebody takes the prefix, and another interface has it before this one asks for another.
#[tokio::test(start_paused = true)]
async fn a_prefix_that_somebody_took_is_replaced_and_its_pods_are_told() {
    let mut world = World::build_v6("m5.large");
    world.start();
    world.book.add_pods(2);
    world.settle().await;
    let first = prefixes(&world);
    let taken = Addresses {
        prefixes_v6: first.clone(),
        ..Addresses::default()
    };
    world
        .cloud
        .take_addresses(&world.eni(0), &taken)
        .expect("it has it");
    let eni = world.make_another(Tags::new());
    let request = Request::AssignIpv6Addresses { eni, prefixes: 1 };
    world.cloud.meddle(&request).expect("room");
    world
        .until("it is told", 62 * MINUTE, |world| {
            world.problem("stranded").is_some()
        })
        .await;
    world
        .until("there is another", MINUTE, |world| prefixes(world).len() == 1)
        .await;
    let second = prefixes(&world);
    assert_ne!(second, first);
    world.book.remove_pods(2);
    world.book.add_pods(1);
    world.settle().await;
    assert_eq!(world.problem("stranded"), None);
    let pods = world.book.pods();
    assert!(
        pods.iter().all(|pod| IpNetwork::V6(second[0]).contains(*pod)),
        "{pods:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn without_nitro_there_is_none_and_ec2s_reason_is_told() {
    let mut world = World::build_v6("m4.large");
    world.start();
    world.book.add_pods(1);
    let about = format!("interface {}", world.eni(0));
    world
        .until("it is told", MINUTE, |world| world.problem(&about).is_some())
        .await;
    let problem = world.problem(&about).expect("told");
    assert!(problem.contains("UnsupportedOperation"), "{problem}");
    assert_eq!((world.held(), world.book.waiting()), (vec![0], 1));
}

#[tokio::test(start_paused = true)]
async fn a_node_of_ipv6_has_one_prefix_and_needs_no_more() {
    let mut world = World::build_v6("m5.large");
    world.start();
    world.book.add_pods(200);
    world.settle().await;
    assert_eq!((world.held(), world.book.pods().len()), (vec![1], 200));
    let status = world.status();
    let counts = (status.total, status.assigned, status.most_addresses);
    assert_eq!(counts, (u32::MAX, 200, u32::MAX));
    assert_eq!(
        (world.changes(), world.cloud.count(Action::AssignIpv6Addresses)),
        (1, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_prefix_of_ipv6_that_is_refused_is_asked_for_ever_more_seldom() {
    for code in [
        "InsufficientCidrBlocks",
        "Ipv6AddressLimitExceeded",
        "UnauthorizedOperation",
    ] {
        let mut world = World::build_v6("m5.large");
        world
            .cloud
            .set_weather(|weather| weather.answer_after = Duration::from_millis(10));
        for nth in 1..=500 {
            world
                .cloud
                .fail(Action::AssignIpv6Addresses, nth, Fault::refused(code));
        }
        world.start();
        tokio::time::sleep(10 * MINUTE).await;
        let calls = world.cloud.calls().len();
        assert!(calls <= 60, "{calls} calls where it is {code}");
    }
}
