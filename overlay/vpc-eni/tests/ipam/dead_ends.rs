//! What will never work, in one way: pods are served in another, or are told why not, and EC2 is left alone.

use std::time::Duration;

use fake_vpc::request::Refusal;
use fake_vpc::weather::{Fault, Stale};
use vpc_eni::ec2::{Action, SubnetId, Tags};
use vpc_eni::home::{EniConfig, Facts};

use crate::world::World;

const MINUTE: Duration = Duration::from_secs(60);

/// A node under custom networking, whose ENIConfig names that subnet.
fn world_with(subnet: impl Fn(&World) -> SubnetId) -> World {
    let world = World::build("m5.large", "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true");
    let subnet = subnet(&world);
    world.facts.send_replace(Facts {
        eni_config: Ok(EniConfig {
            name: "pods".to_owned(),
            subnet,
            groups: Vec::new(),
        }),
        ..Facts::default()
    });
    world
}

fn another_subnet(world: &World, network: &str, zone: &str) -> SubnetId {
    let network = network.parse().expect("a network");
    let made = world.cloud.make_subnet(&world.vpc, network, zone, Tags::new());
    made.expect("a subnet")
}

#[tokio::test(start_paused = true)]
async fn an_eniconfigs_subnet_without_addresses_is_told_and_asked_once_in_two_minutes() {
    // Eleven addresses, of which an interface has one itself.
    let mut world = world_with(|world| another_subnet(world, "10.0.4.0/28", "eu-west-1a"));
    world.start();
    world.book.add_pods(18);
    tokio::time::sleep(5 * MINUTE).await;
    let before = world.cloud.count(Action::CreateNetworkInterface);
    tokio::time::sleep(20 * MINUTE).await;
    let more = world.cloud.count(Action::CreateNetworkInterface) - before;
    assert!(more <= 4 * 10, "{more} in twenty minutes");
    let told = world.problem("new interface").expect("told");
    assert!(told.contains("of the ENIConfig pods has no addresses"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn an_interface_of_another_zones_subnet_is_given_up_and_the_next_one_is_taken() {
    let mut world = world_with(|world| another_subnet(world, "10.0.5.0/24", "eu-west-1b"));
    world.start();
    world.book.add_pods(3);
    tokio::time::sleep(10 * MINUTE).await;
    let told = world.problem("new interface").expect("told");
    assert!(told.contains("InvalidParameterCombination"), "{told}");
    let subnet = another_subnet(&world, "10.0.6.0/24", "eu-west-1a");
    world.facts.send_modify(|facts| {
        let config = facts.eni_config.as_mut().expect("there");
        config.subnet = subnet;
    });
    world
        .until("pods have addresses", 5 * MINUTE, |world| {
            world.book.waiting() == 0
        })
        .await;
    world.settle().await;
    world.assert_nothing_is_lost();
}

#[tokio::test(start_paused = true)]
async fn a_list_of_subnets_that_lacks_one_takes_no_interface_from_pods() {
    let mut world = World::build("m5.large", "WARM_IP_TARGET=1");
    tokio::time::sleep(120 * MINUTE).await;
    let for_pods = Tags::from([("kubernetes.io/role/cni".to_owned(), "1".to_owned())]);
    let network = "10.0.16.0/20".parse().expect("a network");
    let larger = world
        .cloud
        .make_subnet(&world.vpc, network, "eu-west-1a", for_pods);
    let larger = larger.expect("a subnet");
    world.start();
    world.book.add_pods(12);
    world.settle().await;
    let of_second = world.cloud.interface(&world.eni(1)).expect("there").eni.subnet;
    assert_eq!(of_second, larger);
    // The subnet that is older is told alone.
    let stale = Stale {
        changes: 0,
        time: 90 * MINUTE,
    };
    world.cloud.set_weather(|weather| {
        weather.stale.insert(Action::DescribeSubnets, stale);
    });
    let asked = world.cloud.count(Action::DescribeSubnets);
    tokio::time::sleep(15 * MINUTE).await;
    world.book.add_pods(8);
    world.settle().await;
    assert!(world.cloud.count(Action::DescribeSubnets) > asked);
    let interfaces = world.status().interfaces.expect("known").into_iter();
    let subnets: Vec<u8> = interfaces
        .map(|interface| interface.subnet.ip().octets()[2])
        .collect();
    assert_eq!(subnets, [0, 16, 16]);
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_detached_serves_pods_as_before() {
    let mut world = World::build("t3.small", "");
    world.start();
    world.book.add_pods(6);
    world.settle().await;
    assert_eq!(world.held(), [3, 3, 3]);
    world.cloud.set_weather(|weather| {
        weather.denied.insert(Action::DetachNetworkInterface);
    });
    world.book.remove_pods(6);
    tokio::time::sleep(15 * MINUTE).await;
    assert!(world.cloud.count(Action::DetachNetworkInterface) <= 4);
    // All places are taken as before, and all of it is there for pods.
    world.book.add_pods(9);
    world
        .until("pods have addresses", 12 * MINUTE, |world| {
            world.book.waiting() == 0
        })
        .await;
    assert_eq!(world.held(), [3, 3, 3]);
}

/// EC2 gives again what came back last, and the agent is started again: it is the pod's.
#[tokio::test(start_paused = true)]
async fn an_address_that_comes_again_is_not_taken_for_one_that_went() {
    let mut world = World::build("m5.large", "WARM_IP_TARGET=1");
    world.start();
    world.book.add_pods(4);
    world.settle().await;
    world.book.remove_pods(3);
    world
        .until("addresses went", 5 * MINUTE, |world| world.held() == [2])
        .await;
    world.book.add_pods(4);
    world
        .until("they came again", MINUTE, |world| {
            world.book.waiting() == 0 && world.held() == [6]
        })
        .await;
    world.kill().await;
    world.start();
    world
        .until("it is looked at", MINUTE, |world| {
            world.status().interfaces.is_some()
        })
        .await;
    assert_eq!(world.problem("stranded"), None);
    world.assert_nothing_is_lost();
}

#[tokio::test(start_paused = true)]
async fn a_device_that_never_comes_is_no_room_for_a_pod_that_waits() {
    let mut world = World::build("m5.large", "WARM_IP_TARGET=1");
    world.start();
    world.settle().await;
    world.book.limit_devices(1);
    world.book.add_pods(12);
    world
        .until("it is told", MINUTE, |world| {
            world
                .status()
                .problems
                .iter()
                .any(|(_, problem)| problem.what.contains("no device"))
        })
        .await;
    // Each is given a minute.
    tokio::time::sleep(5 * MINUTE).await;
    assert_eq!(world.held().len(), 3, "others are tried");
    world.book.limit_devices(3);
    world.settle().await;
    world.assert_sound();
}

/// A node that takes no pods wants nothing that could be refused.
#[tokio::test(start_paused = true)]
async fn a_cordon_ends_what_was_told_of_growth() {
    let mut world = World::build("m5.large", "");
    for nth in 1..=500 {
        let refused = Fault::refused("UnauthorizedOperation");
        world.cloud.fail(Action::CreateNetworkInterface, nth, refused);
    }
    world.start();
    world.book.add_pods(12);
    world
        .until("it is told", MINUTE, |world| {
            world.problem("new interface").is_some()
        })
        .await;
    world.book.remove_pods(12);
    world.facts.send_modify(|facts| facts.is_schedulable = false);
    world
        .until("it is over", 2 * MINUTE, |world| {
            world.problem("new interface").is_none()
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_full_instance_whose_addresses_cool_down_has_room_in_a_moment() {
    let mut world = World::build("t3.small", "");
    world.start();
    world.book.add_pods(9);
    world.settle().await;
    world.book.remove_pods(9);
    world.book.add_pods(5);
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((world.book.waiting(), world.problem("room")), (5, None));
    }
    world.book.add_pods(5);
    world
        .until("it is told", MINUTE, |world| world.problem("room").is_some())
        .await;
    world.book.remove_pods(1);
    world.settle().await;
    assert_eq!(world.problem("room"), None);
}

#[tokio::test(start_paused = true)]
async fn a_leak_is_told_until_it_is_deleted_whoever_began() {
    let mut world = World::build("m5.large", "");
    let instance = world.instance.0.clone();
    let leak = world.make_another(Tags::from([(
        "node.k8s.amazonaws.com/instance_id".to_owned(),
        instance,
    )]));
    world.cloud.set_weather(|weather| {
        let refusal = Refusal::new("RequestLimitExceeded", "later");
        weather.refused.insert(Action::DeleteNetworkInterface, refusal);
    });
    let leaked = |world: &World| world.status().leaked.contains(&leak);
    world.start();
    world.until("it is told", MINUTE, leaked).await;
    tokio::time::sleep(30 * MINUTE).await;
    assert!(leaked(&world));
    world.kill().await;
    world.start();
    tokio::time::sleep(30 * MINUTE).await;
    assert!(leaked(&world));
    world.cloud.set_weather(|weather| weather.refused.clear());
    world.until("it is over", MINUTE, |world| !leaked(world)).await;
    assert_eq!(world.cloud.interface(&leak), None);
}
