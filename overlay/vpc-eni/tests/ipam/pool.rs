//! How a pool grows and shrinks, and how little EC2 is asked for.

use std::time::Duration;

use fake_vpc::cloud::Cloud;
use fake_vpc::weather::{Fault, Stale};
use vpc_eni::ec2::{Action, Tags};
use vpc_eni::home::{EniConfig, Facts};

use crate::world::World;

const MINUTE: Duration = Duration::from_secs(60);

/// What was called so often.
#[track_caller]
fn assert_changes(world: &World, expected: &[(Action, usize)]) {
    let changes: Vec<_> = world
        .counts()
        .into_iter()
        .filter(|(action, count)| action.changes() && *count > 0)
        .collect();
    assert_eq!(changes, expected);
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_filled_with_no_more_calls_than_addresses_need() {
    let mut world = World::build("m5.large", "");
    world.start();
    world.settle().await;
    assert_eq!(world.held(), [9]);
    assert_changes(&world, &[(Action::AssignPrivateIpAddresses, 1)]);

    world.book.add_pods(10);
    world.settle().await;
    assert_eq!(world.held(), [9, 9, 9]);
    world.assert_nothing_is_lost();
    assert_changes(
        &world,
        &[
            (Action::AssignPrivateIpAddresses, 1),
            (Action::AttachNetworkInterface, 2),
            (Action::CreateNetworkInterface, 2),
            (Action::ModifyNetworkInterfaceAttribute, 2),
        ],
    );
}

#[tokio::test(start_paused = true)]
async fn a_hundred_pods_take_seven_prefixes_and_as_many_calls_at_most() {
    let mut world = World::build("m5.large", "ENABLE_PREFIX_DELEGATION=true WARM_IP_TARGET=1");
    world.start();
    world.settle().await;
    world.book.add_pods(100);
    world.settle().await;
    assert_eq!(world.held(), [7]);
    // One for the first pod to come, and one for the rest.
    assert_changes(&world, &[(Action::AssignPrivateIpAddresses, 2)]);
    world.assert_nothing_is_lost();
}

#[tokio::test(start_paused = true)]
async fn from_3_pods_to_150_and_back_interfaces_and_addresses_follow() {
    let mut world = World::build("m5.4xlarge", "");
    world.start();
    world.settle().await;
    let mut pods = 0;
    // 8 interfaces of 29 addresses; one more than pods need is kept ready.
    for (wanted, held) in [
        (0, vec![29]),
        (3, vec![29; 2]),
        (29, vec![29; 2]),
        (30, vec![29; 3]),
        (100, vec![29; 5]),
        (150, vec![29; 7]),
        (100, vec![29; 5]),
        (30, vec![29; 3]),
        (3, vec![29; 2]),
        (0, vec![29; 1]),
    ] {
        match wanted > pods {
            true => world.book.add_pods(wanted - pods),
            false => world.book.remove_pods(pods - wanted),
        }
        pods = wanted;
        world.settle().await;
        assert_eq!(world.held(), held, "{wanted} pods");
        world.assert_nothing_is_lost();
        let status = world.status();
        let counts = (status.attached as usize, status.total, status.assigned);
        assert_eq!(
            counts,
            (held.len(), held.len() as u32 * 29, pods),
            "{wanted} pods"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn from_3_pods_to_150_and_back_by_prefixes() {
    let mut world = World::build("m5.4xlarge", "ENABLE_PREFIX_DELEGATION=true WARM_PREFIX_TARGET=1");
    world.start();
    let mut pods = 0;
    for (wanted, held) in [
        (3, vec![2]),
        (16, vec![2]),
        (17, vec![3]),
        (150, vec![11]),
        (17, vec![3]),
        (3, vec![2]),
    ] {
        match wanted > pods {
            true => world.book.add_pods(wanted - pods),
            false => world.book.remove_pods(pods - wanted),
        }
        pods = wanted;
        world.settle().await;
        assert_eq!(world.held(), held, "{wanted} pods");
        world.assert_nothing_is_lost();
    }
}

#[tokio::test(start_paused = true)]
async fn pods_that_come_together_are_served_together() {
    let mut world = World::build("t3.small", "WARM_IP_TARGET=1 MINIMUM_IP_TARGET=1");
    world.start();
    world.settle().await;
    assert_eq!(world.held(), [1]);
    world.book.add_pods(5);
    world
        .until("pods have addresses", MINUTE, |world| world.book.waiting() == 0)
        .await;
    world.settle().await;
    assert_eq!(world.held(), [3, 3]);
    // Five pods and one in advance: two for the first interface, three with the second.
    assert_changes(
        &world,
        &[
            (Action::AssignPrivateIpAddresses, 2),
            (Action::AttachNetworkInterface, 1),
            (Action::CreateNetworkInterface, 1),
            (Action::ModifyNetworkInterfaceAttribute, 1),
        ],
    );
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_can_have_no_more_says_so_and_what_to_do() {
    let mut world = World::build("t3.small", "");
    world.start();
    world.settle().await;
    world.book.add_pods(11);
    world
        .until("it is told", MINUTE, |world| world.problem("room").is_some())
        .await;
    assert_eq!(
        (world.held(), world.book.pods().len(), world.book.waiting()),
        (vec![3; 3], 9, 2)
    );
    let problem = world.problem("room").expect("told");
    assert!(
        problem.contains("t3.small") && problem.contains("ENABLE_PREFIX_DELEGATION"),
        "{problem}"
    );
    world.book.remove_pods(2);
    world
        .until("it is over", MINUTE, |world| world.problem("room").is_none())
        .await;
    world.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn max_eni_and_the_kubelets_limit_are_kept() {
    let mut world = World::build("m5.large", "MAX_ENI=2");
    world.start();
    world.book.add_pods(17);
    world.settle().await;
    assert_eq!(world.held(), [9, 9]);

    let mut world = World::build("m5.large", "");
    world.facts.send_modify(|facts| facts.max_pods = Some(9));
    world.start();
    world.book.add_pods(8);
    world.settle().await;
    assert_eq!(world.held(), [9]);
}

#[tokio::test(start_paused = true)]
async fn without_nitro_addresses_are_single() {
    let mut world = World::build("m4.large", "ENABLE_PREFIX_DELEGATION=true WARM_PREFIX_TARGET=1");
    world.start();
    world.book.add_pods(3);
    world.settle().await;
    let eni = world.cloud.interface(&world.eni(0)).expect("it is there").eni;
    assert_eq!((eni.prefixes, eni.secondary.len()), (Vec::new(), 9));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_takes_no_pods_stays_as_it_is_but_for_pods_that_wait() {
    let mut world = World::build("m5.large", "");
    world.start();
    world.book.add_pods(10);
    world.settle().await;
    world.facts.send_modify(|facts| facts.is_schedulable = false);
    world.book.remove_pods(10);
    world.settle().await;
    assert_eq!(world.held(), [9, 9, 9]);
    world.facts.send_modify(|facts| facts.is_schedulable = true);
    world.settle().await;
    assert_eq!(world.held(), [9]);
}

#[tokio::test(start_paused = true)]
async fn a_short_subnet_gives_what_it_has_and_another_one_the_rest() {
    // 11 usable addresses, one of which is the primary interface's.
    let mut world = World::build_in("10.0.0.0/28", "m5.large", "CLUSTER_NAME=prod");
    let role = |value: &str| Tags::from([("kubernetes.io/role/cni".to_owned(), value.to_owned())]);
    let of = |cluster: &str| {
        (
            format!("cni.networking.k8s.aws/cluster/{cluster}"),
            "1".to_owned(),
        )
    };
    let subnet = |cloud: &Cloud, network: &str, tags| {
        let network = network.parse().expect("a network");
        cloud
            .make_subnet(&world.vpc, network, "eu-west-1a", tags)
            .expect("a subnet")
    };
    let cloud = &world.cloud;
    subnet(cloud, "10.0.1.0/24", Tags::new());
    let mut others = role("1");
    others.extend([of("test")]);
    subnet(cloud, "10.0.2.0/24", others);
    subnet(cloud, "10.0.3.0/24", role("0"));
    let mut ours = role("1");
    ours.extend([of("prod"), of("test")]);
    let second = subnet(cloud, "10.0.4.0/26", ours);

    world.start();
    world.book.add_pods(15);
    world.settle().await;
    let subnets: Vec<_> = [1, 2]
        .map(|index| {
            world
                .cloud
                .interface(&world.eni(index))
                .expect("there")
                .eni
                .subnet
        })
        .into();
    assert_eq!(subnets, [second.clone(), second]);
    world.assert_nothing_is_lost();
}

#[tokio::test(start_paused = true)]
async fn a_subnet_in_pieces_gives_prefixes_as_far_as_it_has_any() {
    // Of four blocks one is whole.
    let mut world = World::build_in(
        "10.0.0.0/26",
        "m5.large",
        "ENABLE_PREFIX_DELEGATION=true WARM_PREFIX_TARGET=3",
    );
    for last in [20, 50] {
        world
            .cloud
            .occupy(&world.subnet, World::address(last))
            .expect("free");
    }
    world.start();
    world
        .until("it is told", MINUTE, |world| {
            world.problem(&format!("subnet {}", world.subnet)).is_some()
        })
        .await;
    assert_eq!(world.held(), [1]);
    let problem = world.problem(&format!("subnet {}", world.subnet)).expect("told");
    assert!(
        problem.contains("InsufficientCidrBlocks") && problem.contains("reservations"),
        "{problem}"
    );
    world.book.add_pods(16);
    world
        .until("pods have addresses", MINUTE, |world| world.book.waiting() == 0)
        .await;
    world
        .cloud
        .vacate(&world.subnet, World::address(20))
        .expect("occupied");
    world
        .until("another block is used", 5 * MINUTE, |world| world.held() == [2])
        .await;
    world.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn custom_networking_leaves_the_primary_interface_to_the_node() {
    let mut world = World::build("m5.large", "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true");
    let network = "10.0.8.0/24".parse().expect("a network");
    let pods = world
        .cloud
        .make_subnet(&world.vpc, network, "eu-west-1a", Tags::new())
        .expect("a subnet");
    let group = world
        .cloud
        .make_security_group(&world.vpc, Tags::new())
        .expect("a group");
    world.start();
    world
        .until("it is told", MINUTE, |world| {
            world.problem("new interface").is_some()
        })
        .await;
    assert_eq!(world.held(), [0]);
    world.facts.send_replace(Facts {
        eni_config: Ok(EniConfig {
            name: "eu-west-1a".to_owned(),
            subnet: pods.clone(),
            groups: vec![group.clone()],
        }),
        ..Facts::default()
    });
    world.book.add_pods(9);
    world.settle().await;
    assert_eq!(
        (world.held(), world.problem("new interface")),
        (vec![0, 9, 9], None)
    );
    let eni = world.cloud.interface(&world.eni(1)).expect("there").eni;
    assert_eq!((eni.subnet, eni.groups), (pods, vec![group]));
}

#[tokio::test(start_paused = true)]
async fn interfaces_that_are_somebody_elses_are_left_alone() {
    let mut world = World::build("m5.large", "");
    let no_manage = Tags::from([("node.k8s.amazonaws.com/no_manage".to_owned(), "true".to_owned())]);
    let other = world.attach_another(1, no_manage);
    world.start();
    world.book.add_pods(18);
    world.settle().await;
    // Of three that the type allows one is taken.
    assert_eq!(world.held(), [9, 0, 9]);
    world.book.remove_pods(18);
    world.settle().await;
    assert_eq!((world.held(), world.eni(1)), (vec![9, 0], other));
}

/// Those of other network cards have indexes and tables of their own, which the agent has no ways for.
#[tokio::test(start_paused = true)]
async fn interfaces_of_other_network_cards_are_left_alone() {
    let mut world = World::build("m5.large", "");
    world.cloud.set_network_cards("m5.large", 2);
    let tags = [(
        "node.k8s.amazonaws.com/instance_id".to_owned(),
        world.instance.0.clone(),
    )];
    let other = world.attach_to_card(1, 1, tags.into());
    world.start();
    world.book.add_pods(18);
    world.settle().await;
    let status = world.status();
    let ids: Vec<_> = status
        .interfaces
        .unwrap_or_default()
        .into_iter()
        .map(|found| found.id)
        .collect();
    assert_eq!((status.attached, status.total, ids.len()), (3, 27, 3));
    assert!(!ids.contains(&other), "{other} of {ids:?}");
    world.book.remove_pods(18);
    world.settle().await;
    assert_eq!((world.status().attached, world.cloud.interfaces().len()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn an_instance_type_that_nobody_knows_is_told() {
    let mut world = World::build("m5.large", "");
    world.cloud.fail(
        Action::DescribeInstanceTypes,
        1,
        Fault::refused("InvalidInstanceType"),
    );
    world.start();
    world
        .until("it is told", MINUTE, |world| world.problem("limits").is_some())
        .await;
    let problem = world.problem("limits").expect("told");
    assert!(
        problem.contains("m5.large") && problem.contains("AWS_REGION"),
        "{problem}"
    );
    world
        .until("it is over", MINUTE, |world| world.held() == [9])
        .await;
}

/// Somebody makes the subnet of an ENIConfig when the manager runs already.
#[tokio::test(start_paused = true)]
async fn an_interface_of_a_new_subnet_serves_pods_at_once() {
    let mut world = World::build(
        "m5.large",
        "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true ENABLE_SUBNET_DISCOVERY=false",
    );
    let late = Stale {
        changes: 0,
        time: MINUTE,
    };
    world.cloud.set_weather(|weather| {
        weather.answer_after = Duration::from_millis(100);
        weather.stale.insert(Action::DescribeSubnets, late);
    });
    world.start();
    tokio::time::sleep(20 * MINUTE).await;
    let asked = world.cloud.count(Action::DescribeSubnets);
    let network = "10.0.8.0/24".parse().expect("a network");
    let subnet = world
        .cloud
        .make_subnet(&world.vpc, network, "eu-west-1a", Tags::new())
        .expect("a subnet");
    world.facts.send_replace(Facts {
        eni_config: Ok(EniConfig {
            name: "a".to_owned(),
            subnet,
            groups: Vec::new(),
        }),
        ..Facts::default()
    });
    world.book.add_pods(1);
    world
        .until("pods have addresses", 3 * MINUTE, |world| {
            world.book.waiting() == 0
        })
        .await;
    let asked = world.cloud.count(Action::DescribeSubnets) - asked;
    assert!(asked <= 3, "asked {asked} times");
}

/// What is held from before other settings were there goes when it is not in use.
#[tokio::test(start_paused = true)]
async fn settings_that_change_at_a_restart_leave_nothing_behind() {
    const PREFIXES: &str = "ENABLE_PREFIX_DELEGATION=true WARM_PREFIX_TARGET=1";
    for (before, after, held) in [
        ("WARM_IP_TARGET=9", "WARM_IP_TARGET=2", vec![4]),
        ("", "MAX_ENI=1 WARM_IP_TARGET=1", vec![3]),
        ("WARM_IP_TARGET=5", PREFIXES, vec![1, 1]),
        ("", PREFIXES, vec![1, 1]),
        (PREFIXES, "WARM_IP_TARGET=2", vec![1]),
        ("WARM_ENI_TARGET=2", "WARM_ENI_TARGET=1", vec![9, 9]),
        ("", "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true", vec![0, 9, 9]),
        ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true", "", vec![9, 9]),
    ] {
        let mut world = World::build("m5.large", before);
        world.facts.send_replace(Facts {
            eni_config: Ok(EniConfig {
                name: "a".to_owned(),
                subnet: world.subnet.clone(),
                groups: Vec::new(),
            }),
            ..Facts::default()
        });
        world.start();
        world.book.add_pods(5);
        world.settle().await;
        world.kill().await;
        world.set_variables(after);
        world.start();
        world.settle().await;
        let what = format!("{before:?}, then {after:?}");
        assert_eq!(world.problem("stranded"), None, "{what}: EC2 took nothing");
        // Every pod is put anew.
        world.book.remove_pods(5);
        world.settle().await;
        world.book.add_pods(2);
        world.settle().await;
        assert_eq!(world.held(), held, "{what}");
        world.assert_nothing_is_lost();
    }
}
