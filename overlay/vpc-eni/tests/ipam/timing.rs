//! When something is done of which nobody tells that it is time.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;
use vpc_eni::ec2::Action;

use crate::world::World;

const MINUTE: Duration = Duration::from_secs(60);

/// A node that has been at rest for long, of which nothing is due for minutes.
async fn at_rest(variables: &str, pods: u32) -> World {
    let mut world = World::build("m5.large", variables);
    world
        .cloud
        .set_weather(|weather| weather.answer_after = Duration::from_millis(300));
    world.start();
    world.book.add_pods(pods);
    world.settle().await;
    world.until_a_sweep().await;
    // A look may be due at the same second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    world
}

/// How often an action was called, one second before and one after this time.
async fn assert_called_at(world: &World, action: Action, after: Duration) {
    let before = world.cloud.count(action);
    tokio::time::sleep(after - Duration::from_secs(1)).await;
    assert_eq!(world.cloud.count(action), before, "too early");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.cloud.count(action), before + 1, "{:?}", world.status());
}

/// The pods for which addresses came did not wait for them: nothing cools down, and nobody tells of anything.
#[tokio::test(start_paused = true)]
async fn addresses_that_came_in_vain_go_half_a_minute_later() {
    let world = at_rest("WARM_IP_TARGET=2", 2).await;
    world.book.add_pods(5);
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.book.remove_pods(3);
    world
        .until("they come", Duration::from_secs(1), |world| {
            world.cloud.count(Action::AssignPrivateIpAddresses) == 2
        })
        .await;
    assert!(world.held() > vec![6], "{:?}", world.held());
    assert_called_at(
        &world,
        Action::UnassignPrivateIpAddresses,
        Duration::from_secs(30),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_interface_that_came_in_vain_goes_a_minute_later() {
    let world = at_rest("", 0).await;
    world.book.add_pods(1);
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.book.remove_pods(1);
    world
        .until("it comes", Duration::from_secs(2), |world| world.held() == [9, 9])
        .await;
    assert_called_at(&world, Action::DetachNetworkInterface, MINUTE).await;
}

/// What it gave back is settled for the interface itself.
#[tokio::test(start_paused = true)]
async fn an_interface_that_gave_addresses_back_may_go_half_a_minute_later() {
    let world = at_rest("WARM_IP_TARGET=2", 12).await;
    assert_eq!(world.held(), [9, 5]);
    // Three of these pods have addresses of the second one, which has two more.
    world.book.remove_pods(5);
    world
        .until("two are given back", Duration::from_secs(1), |world| {
            world.held() == [9, 3]
        })
        .await;
    assert_called_at(&world, Action::DetachNetworkInterface, Duration::from_secs(30)).await;
    assert_eq!(world.cloud.count(Action::UnassignPrivateIpAddresses), 1);
}

/// What is missed may be lost: then fewer are too many.
#[tokio::test(start_paused = true)]
async fn while_something_is_doubted_nothing_is_given_back() {
    let world = at_rest("WARM_IP_TARGET=2", 6).await;
    let pods = world.book.pods();
    let free = world
        .book
        .offered()
        .into_iter()
        .find(|block| !pods.contains(&block.ip()));
    let stolen = free.expect("two are ready");
    world
        .cloud
        .take_addresses(&world.eni(0), &[stolen].into_iter().collect())
        .expect("it has it");
    let looks = world.looks().len();
    world
        .until("it is looked", 62 * MINUTE, |world| world.looks().len() > looks)
        .await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    world.book.remove_pods(3);
    tokio::time::sleep(Duration::from_secs(28)).await;
    assert_eq!(world.cloud.count(Action::UnassignPrivateIpAddresses), 0);
    world.settle().await;
    assert_eq!(world.held(), [5]);
    world.assert_nothing_is_lost();
}

#[tokio::test(start_paused = true)]
async fn a_node_at_rest_asks_four_times_an_hour_and_changes_nothing() {
    let mut world = World::build("m5.large", "");
    world.start();
    world.book.add_pods(5);
    world.settle().await;
    let (asked, changed) = (world.cloud.calls().len(), world.changes());
    tokio::time::sleep(6 * 60 * MINUTE).await;
    assert_eq!(world.changes(), changed);
    let more = world.cloud.calls().len() - asked;
    assert!((18..=24).contains(&more), "{more} calls in six hours");
}

/// Many nodes are made at once: EC2's limits are an account's.
#[tokio::test(start_paused = true)]
async fn nodes_that_start_together_ask_at_other_times() {
    let mut world = World::build("m5.large", "");
    let mut others = Vec::new();
    for _ in 0..4 {
        let group = world.cloud.default_group(&world.vpc).expect("a VPC has one");
        others.push(
            world
                .cloud
                .make_instance("m5.large", &world.subnet, &[group])
                .expect("room"),
        );
    }
    let mut asked = Vec::new();
    for instance in std::iter::once(world.instance.clone()).chain(others) {
        world.work_for(&instance);
        world.cloud.take_calls();
        let began = Instant::now();
        world.start();
        // Not before it is at rest.
        tokio::time::sleep(6 * 60 * MINUTE).await;
        let calls = world
            .cloud
            .take_calls()
            .into_iter()
            .map(|call| (call.at - began).as_secs());
        let at_rest: Vec<u64> = calls.filter(|second| *second >= 2 * 3600).collect();
        assert_eq!(at_rest.len(), 4 * 4, "{instance}");
        asked.push(at_rest);
        world.kill().await;
    }
    let seconds: BTreeSet<u64> = asked.iter().flatten().copied().collect();
    // Of its four calls an hour a node makes two together, as an hour is three times twenty minutes.
    assert_eq!(seconds.len(), 5 * 4 * 3, "{asked:?}");
}

/// A block that is added to a VPC is where pods go with their own address.
#[tokio::test(start_paused = true)]
async fn networks_that_come_to_the_vpc_are_known_within_minutes_and_ec2_is_not_asked() {
    let mut world = World::build("m5.large", "");
    world.start();
    world.settle().await;
    let own = "10.0.0.0/16".parse().expect("a network");
    let more = "100.64.0.0/16".parse().expect("a network");
    assert_eq!(world.status().vpc_networks, [own]);
    world.until_a_sweep().await;
    // A look may be due at the same second.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let calls = world.cloud.calls().len();
    world.cloud.set_weather(|weather| weather.metadata.is_down = true);
    world
        .cloud
        .associate_network(&world.vpc, "100.64.0.0/16".parse().expect("a network"))
        .expect("a VPC");
    world
        .until("it is told", 6 * MINUTE, |world| {
            world.problem("networks").is_some()
        })
        .await;
    assert_eq!(world.status().vpc_networks, [own]);
    world
        .cloud
        .set_weather(|weather| weather.metadata.is_down = false);
    world
        .until("they are known", MINUTE, |world| {
            world.status().vpc_networks == [own, more]
        })
        .await;
    assert_eq!(world.problem("networks"), None);
    assert_eq!(world.cloud.calls()[calls..], []);
}

/// Another interface may be of a block that came with it.
#[tokio::test(start_paused = true)]
async fn networks_are_asked_for_when_an_interface_comes() {
    let mut world = World::build("m5.large", "");
    world.start();
    world.settle().await;
    world
        .cloud
        .associate_network(&world.vpc, "100.64.0.0/16".parse().expect("a network"))
        .expect("a VPC");
    world.book.add_pods(9);
    world
        .until("it serves", MINUTE, |world| world.held() == [9, 9])
        .await;
    world
        .until("they are known", Duration::from_secs(1), |world| {
            world.status().vpc_networks.len() == 2
        })
        .await;
}
