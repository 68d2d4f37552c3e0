//! Whose word counts: EC2's over the metadata service's, our own over an old one of EC2's, and pods' over all. The
//! peer's open faults stand here as rows.

use std::time::Duration;

use fake_vpc::weather::{Fault, Stale};
use ipnetwork::IpNetwork;
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
