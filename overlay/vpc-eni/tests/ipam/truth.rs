//! Whose word counts: EC2's over the metadata service's, our own over an old one of EC2's, and pods' over all. The
//! peer's open faults stand here as rows.

use std::time::Duration;

use fake_vpc::weather::{Fault, Stale};
use ipnetwork::IpNetwork;
use tokio::time::Instant;
use vpc_eni::ec2::{Action, Addresses, Tags};

use crate::world::World;

const MINUTE: Duration = Duration::from_secs(60);

/// A node of two interfaces with twelve pods.
async fn with_pods() -> World {
    let mut world = World::build("m5.large", "WARM_IP_TARGET=2");
    world.start();
    world.book.add_pods(12);
    world.settle().await;
    assert_eq!(world.held(), [9, 5]);
    world
}

/// amazon-vpc-cni-k8s #1967: the metadata service does not tell of an interface for a while; it was force-removed with
/// its pods' addresses, and deleted.
#[tokio::test(start_paused = true)]
async fn an_interface_that_the_metadata_service_forgot_is_kept_with_its_pods() {
    let world = with_pods().await;
    let eni = world.eni(1);
    world.cloud.set_weather(|weather| {
        weather.metadata.missing.insert(eni.clone());
    });
    tokio::time::sleep(3 * 60 * MINUTE).await;
    assert_eq!((world.held(), world.eni(1)), (vec![9, 5], eni));
    world.assert_nothing_is_lost();
}

/// amazon-vpc-cni-k8s #3019: likewise for single addresses, which were released while pods had them.
#[tokio::test(start_paused = true)]
async fn addresses_that_the_metadata_service_forgot_are_kept() {
    let world = with_pods().await;
    let pods = world.book.pods();
    world
        .cloud
        .set_weather(|weather| weather.metadata.missing_addresses.extend(pods.clone()));
    tokio::time::sleep(3 * 60 * MINUTE).await;
    assert_eq!(world.book.pods(), pods);
    world.assert_nothing_is_lost();
}

/// amazon-vpc-cni-k8s #3887: an address that EC2 had taken back was given to a pod after a restart, since the metadata
/// service still told of it.
#[tokio::test(start_paused = true)]
async fn an_address_that_ec2_took_back_is_given_to_nobody_after_a_restart() {
    let mut world = with_pods().await;
    tokio::time::sleep(61 * MINUTE).await;
    world.kill().await;
    let pods = world.book.pods();
    let free: Vec<IpNetwork> = world
        .book
        .offered()
        .into_iter()
        .filter(|block| !pods.contains(&block.ip()))
        .collect();
    assert_eq!(free.len(), 2, "two are ready");
    world
        .cloud
        .set_weather(|weather| weather.metadata.behind = 60 * MINUTE);
    world
        .cloud
        .take_addresses(&world.eni(1), &free.iter().copied().collect())
        .expect("it has them");
    world.start();
    world.settle().await;
    world.book.add_pods(6);
    world.settle().await;
    world.assert_nothing_is_lost();
}

/// EC2's own list may be old, too: what it misses once is given to nobody, and is lost when it is missed again.
#[tokio::test(start_paused = true)]
async fn what_a_single_look_misses_is_given_to_nobody_and_lost_only_by_a_second_one() {
    let world = with_pods().await;
    let pods = world.book.pods();
    let stolen = pods
        .iter()
        .rev()
        .find(|pod| world.cloud.owner(&world.vpc, **pod) == Some(world.eni(1)));
    let stolen = *stolen.expect("a pod of the second interface");
    let taken: Addresses = [IpNetwork::from(stolen)].into_iter().collect();
    world
        .cloud
        .take_addresses(&world.eni(1), &taken)
        .expect("it has it");
    world
        .until("it is told", 62 * MINUTE, |world| {
            world.problem("stranded").is_some()
        })
        .await;
    let problem = world.problem("stranded").expect("told");
    assert!(problem.contains(&stolen.to_string()), "{problem}");
    // The pod keeps what it has: it still reaches its own node.
    assert_eq!(world.book.pods(), pods);
    assert!(!world.book.offered().contains(&IpNetwork::from(stolen)));
}

#[tokio::test(start_paused = true)]
async fn a_look_that_is_older_than_our_own_change_takes_nothing_back() {
    let mut world = World::build("m5.large", "WARM_IP_TARGET=2");
    world.start();
    world.settle().await;
    let stale = Stale {
        changes: 0,
        time: Duration::from_secs(40),
    };
    world.cloud.set_weather(|weather| {
        weather.stale.insert(Action::DescribeNetworkInterfaces, stale);
    });
    // An answer that is lost makes it look at once, and what it sees is old.
    world
        .cloud
        .fail(Action::AssignPrivateIpAddresses, 2, Fault::AnswerLost);
    for _ in 0..6 {
        world.book.add_pods(3);
        world.settle().await;
        world.assert_nothing_is_lost();
    }
}

#[tokio::test(start_paused = true)]
async fn an_interface_that_somebody_deletes_is_replaced_and_its_pods_are_told() {
    let world = with_pods().await;
    // The next interface may well get the same addresses: until then they are nobody's.
    world
        .cloud
        .set_weather(|weather| weather.answer_after = Duration::from_secs(1));
    world.cloud.take_interface(&world.eni(1)).expect("there");
    world
        .until("it is told", 62 * MINUTE, |world| {
            world.problem("stranded").is_some()
        })
        .await;
    world.book.remove_pods(3);
    world
        .until("it is over", MINUTE, |world| world.problem("stranded").is_none())
        .await;
    world.settle().await;
    world.assert_nothing_is_lost();
}

#[tokio::test(start_paused = true)]
async fn a_list_without_the_primary_interface_is_not_believed() {
    let world = with_pods().await;
    let before = (world.book.pods(), world.book.offered());
    // As it was before the instance was there.
    let stale = Stale {
        changes: usize::MAX,
        time: Duration::ZERO,
    };
    world.cloud.set_weather(|weather| {
        weather.stale.insert(Action::DescribeNetworkInterfaces, stale);
    });
    world
        .until("it is told", 62 * MINUTE, |world| {
            world.problem("interfaces").is_some()
        })
        .await;
    assert_eq!((world.book.pods(), world.book.offered()), before);
    world.cloud.set_weather(|weather| weather.stale.clear());
    world
        .until("it is over", 2 * MINUTE, |world| {
            world.problem("interfaces").is_none()
        })
        .await;
    world.assert_nothing_is_lost();
}

/// amazon-vpc-cni-k8s #1127: the times of cooling addresses were lost with a restart. The book keeps them; the manager
/// takes an interface for unused only when they are over.
#[tokio::test(start_paused = true)]
async fn an_interface_goes_only_when_its_addresses_have_cooled_down() {
    let mut world = World::build("m5.large", "");
    world.start();
    world.book.add_pods(10);
    world.settle().await;
    assert_eq!(world.held(), [9, 9, 9]);
    tokio::time::sleep(2 * MINUTE).await;
    world.book.remove_pods(10);
    world.kill().await;
    world.start();
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(world.held(), [9, 9, 9]);
    world.settle().await;
    assert_eq!(world.held(), [9]);
    world.assert_nothing_is_lost();
}

/// amazon-vpc-cni-k8s #2294: a whole interface was kept warm though one was free already.
#[tokio::test(start_paused = true)]
async fn one_free_interface_is_enough() {
    let mut world = World::build("m5.large", "");
    world.start();
    world.book.add_pods(1);
    world.settle().await;
    world.book.remove_pods(1);
    world.settle().await;
    assert_eq!(world.held(), [9]);
}

#[tokio::test(start_paused = true)]
async fn leaked_interfaces_of_this_cluster_are_deleted_and_those_of_others_are_not() {
    let mut world = World::build("m5.large", "CLUSTER_NAME=prod");
    let tags = |cluster: &str, instance: &str, created: &str| {
        let pairs = [
            ("cluster.k8s.amazonaws.com/name", cluster),
            ("node.k8s.amazonaws.com/instance_id", instance),
            ("node.k8s.amazonaws.com/createdAt", created),
        ];
        Tags::from(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())))
    };
    let (old, young) = ("2026-01-01T00:00:00Z", "2999-01-01T00:00:00Z");
    let own = world.instance.0.clone();
    let leaked = [
        world.make_another(tags("prod", &own, young)),
        world.make_another(tags("prod", "i-0dead", old)),
    ];
    let others = [
        world.make_another(tags("prod", "i-0alive", young)),
        world.make_another(tags("test", "i-0dead", old)),
        world.make_another(Tags::new()),
        world.make_another({
            let mut tags = tags("prod", "i-0dead", old);
            tags.insert("node.k8s.amazonaws.com/no_manage".to_owned(), "true".to_owned());
            tags
        }),
    ];
    world.start();
    let are_gone = |world: &World| leaked.iter().all(|eni| world.cloud.interface(eni).is_none());
    world.until("they are deleted", MINUTE, are_gone).await;
    tokio::time::sleep(60 * MINUTE).await;
    for other in &others {
        assert!(
            world.cloud.interface(other).is_some(),
            "{other} is somebody else's"
        );
    }
    // One that leaks later is found within twenty minutes.
    let later = world.make_another(tags("prod", "i-0dead", old));
    world
        .until("it is deleted", 20 * MINUTE, |world| {
            world.cloud.interface(&later).is_none()
        })
        .await;
}

/// A view of EC2's that is as old as from then to now.
fn see_as_at(world: &World, then: Instant) {
    let stale = Stale {
        changes: 0,
        time: then.elapsed(),
    };
    world.cloud.set_weather(|weather| {
        weather.stale.insert(Action::DescribeNetworkInterfaces, stale);
    });
}

fn see_clearly(world: &World) {
    world.cloud.set_weather(|weather| weather.stale.clear());
}

/// A node that asks slowly.
fn slow_node() -> World {
    let world = World::build("m5.large", "WARM_IP_TARGET=1");
    world
        .cloud
        .set_weather(|weather| weather.answer_after = Duration::from_secs(10));
    world
}

/// How long after its start a slow node looks for leaks when it is at rest.
async fn sweeps_after() -> Duration {
    let mut twin = slow_node();
    twin.start();
    let began = Instant::now();
    tokio::time::sleep(31 * MINUTE).await;
    let mut sweeps = twin.sweeps();
    sweeps.retain(|at| *at > began + 10 * MINUTE);
    twin.kill().await;
    *sweeps.first().expect("it looked for leaks") - began
}

/// A look for leaks that is so old that an interface was not attached yet.
#[tokio::test(start_paused = true)]
async fn an_interface_in_use_is_not_taken_for_a_leak_by_an_old_word() {
    let sweeps_after = sweeps_after().await;
    for restarts in [true, false] {
        let mut world = slow_node();
        world.start();
        let sweeps_at = Instant::now() + sweeps_after;
        world.settle().await;
        if !restarts {
            tokio::time::sleep_until(sweeps_at - Duration::from_secs(50)).await;
        }
        world.book.add_pods(10);
        world
            .until("another is made", MINUTE, |world| {
                world.cloud.count(Action::CreateNetworkInterface) == 1
            })
            .await;
        let made = Instant::now() + Duration::from_secs(2);
        world
            .until("pods have addresses", MINUTE, |world| world.book.waiting() == 0)
            .await;
        let second = world.eni(1);
        if restarts {
            world.kill().await;
            world
                .cloud
                .set_weather(|weather| weather.answer_after = Duration::ZERO);
            see_as_at(&world, made);
            world.start();
            tokio::time::sleep(Duration::from_secs(30)).await;
        } else {
            tokio::time::sleep_until(sweeps_at).await;
            see_as_at(&world, made);
            tokio::time::sleep(Duration::from_secs(15)).await;
        }
        see_clearly(&world);
        if !restarts {
            assert_eq!(world.cloud.count(Action::DeleteNetworkInterface), 0);
        }
        for _ in 0..180 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(world.eni(1), second, "restarts: {restarts}");
        }
        world.settle().await;
        assert_eq!((world.eni(1), world.problem("stranded")), (second, None));
        world.assert_nothing_is_lost();
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_given_back_before_a_restart_is_offered_to_nobody_by_an_old_word() {
    let mut world = World::build("m5.large", "WARM_IP_TARGET=2");
    world.start();
    world.book.add_pods(6);
    world.settle().await;
    let before = Instant::now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.book.remove_pods(5);
    world
        .until("addresses are given back", 2 * MINUTE, |world| {
            world.cloud.count(Action::UnassignPrivateIpAddresses) > 0
        })
        .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.kill().await;
    see_as_at(&world, before);
    world.start();
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.assert_delivered("after a restart");
    }
    see_clearly(&world);
    for _ in 0..90 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.assert_delivered("when EC2 has caught up");
    }
    world.settle().await;
    world.assert_nothing_is_lost();
    tokio::time::sleep(3 * MINUTE).await;
    assert_eq!(world.records(), [] as [serde_json::Value; 0]);
}

#[tokio::test(start_paused = true)]
async fn an_interface_that_went_is_not_reckoned_with_by_an_old_word() {
    for restarts in [true, false] {
        let mut world = World::build("m5.large", "WARM_IP_TARGET=1");
        world.start();
        world.book.add_pods(10);
        world.settle().await;
        let before = Instant::now();
        world.book.remove_pods(10);
        world
            .until("it goes", 5 * MINUTE, |world| {
                world.cloud.count(Action::DeleteNetworkInterface) == 1
            })
            .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        if restarts {
            world.kill().await;
        }
        see_as_at(&world, before);
        if restarts {
            world.start();
        } else {
            // Which makes it look.
            world
                .cloud
                .fail(Action::AssignPrivateIpAddresses, 1, Fault::AnswerLost);
        }
        world.book.add_pods(3);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let attached = world.status().attached as usize;
        assert_eq!(attached, world.held().len(), "restarts: {restarts}");
        world.book.add_pods(9);
        world
            .until("pods have addresses", 2 * MINUTE, |world| {
                world.book.waiting() == 0
            })
            .await;
        see_clearly(&world);
        world.settle().await;
        world.assert_nothing_is_lost();
    }
}

/// EC2 refuses to take back what is not there: that says that it is not there.
#[tokio::test(start_paused = true)]
async fn an_address_that_somebody_took_is_not_offered_when_ec2_refuses_to_take_it_back() {
    let mut world = World::build("m5.large", "WARM_IP_TARGET=2");
    world.start();
    world.book.add_pods(6);
    world.settle().await;
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
    world.book.remove_pods(5);
    world
        .until("it is refused", 2 * MINUTE, |world| {
            world.cloud.count(Action::UnassignPrivateIpAddresses) > 0
        })
        .await;
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.assert_delivered("after the refusal");
    }
    world.settle().await;
    world.assert_nothing_is_lost();
    assert_eq!(world.held(), [3]);
    assert!(
        world.status().problems.is_empty(),
        "{:?}",
        world.status().problems
    );
}

/// A single address that a look misses is no reason for an interface more.
#[tokio::test(start_paused = true)]
async fn while_something_is_doubted_nothing_is_bought() {
    let mut world = World::build("m5.large", "");
    world.start();
    world.settle().await;
    let free = world.book.offered().into_iter().next().expect("nine are ready");
    world
        .cloud
        .take_addresses(&world.eni(0), &[free].into_iter().collect())
        .expect("it has it");
    tokio::time::sleep(62 * MINUTE).await;
    world.settle().await;
    assert_eq!(
        (world.held(), world.cloud.count(Action::CreateNetworkInterface)),
        (vec![9], 0)
    );
}

/// The first look after a start may be of a time before something was taken.
#[tokio::test(start_paused = true)]
async fn after_a_start_it_is_looked_twice() {
    let mut world = World::build("m5.large", "");
    world.start();
    world.settle().await;
    world.kill().await;
    let before = Instant::now();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let stolen = world.book.offered().into_iter().next().expect("nine are ready");
    world
        .cloud
        .take_addresses(&world.eni(0), &[stolen].into_iter().collect())
        .expect("it has it");
    see_as_at(&world, before);
    world.start();
    tokio::time::sleep(2 * MINUTE).await;
    world.assert_delivered("two minutes after a start");
}

/// Whose attaching is held up, for which a search for leaks finds it.
#[tokio::test(start_paused = true)]
async fn an_interface_that_is_about_to_be_attached_is_no_leak() {
    let mut world = World::build("m5.large", "");
    world
        .cloud
        .set_weather(|weather| weather.answer_after = Duration::from_millis(300));
    world.start();
    world.settle().await;
    for nth in 1..=4 {
        let fault = Fault::refused("RequestLimitExceeded");
        world.cloud.fail(Action::AttachNetworkInterface, nth, fault);
    }
    world.book.add_pods(1);
    world
        .until("it is made", MINUTE, |world| {
            world.cloud.count(Action::AttachNetworkInterface) > 0
        })
        .await;
    world.kill().await;
    world.start();
    world.settle().await;
    let counts = (
        world.cloud.count(Action::CreateNetworkInterface),
        world.cloud.count(Action::DeleteNetworkInterface),
    );
    assert_eq!((world.held(), counts), (vec![9, 9], (1, 0)));
}
