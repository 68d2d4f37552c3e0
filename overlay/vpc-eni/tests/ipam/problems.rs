//! Problems are told as long as they are there, and end with what they were about.

use std::time::Duration;

use fake_vpc::weather::Fault;
use vpc_eni::ec2::Action;

use crate::world::World;

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_problem_ends_with_the_interface_that_it_was_about() {
    let mut world = World::build("m5.large", "WARM_IP_TARGET=2");
    world.start();
    world.book.add_pods(9);
    world.settle().await;
    let second = world.eni(1);
    let about = format!("security groups of {second}");
    world.cloud.set_weather(|weather| {
        weather.denied.insert(Action::ModifyNetworkInterfaceAttribute);
    });
    let group = world
        .cloud
        .make_security_group(&world.vpc, Default::default())
        .expect("a group");
    world.set_groups(&world.eni(0), &[group]);
    world
        .until("it is told", 62 * MINUTE, |world| world.problem(&about).is_some())
        .await;
    world.cloud.take_interface(&second).expect("there");
    tokio::time::sleep(62 * MINUTE).await;
    assert_eq!(world.problem(&about), None);
}

/// A subnet without addresses, and an instance with room: it is not the instance's type that is to blame.
#[tokio::test(start_paused = true)]
async fn a_subnet_that_is_empty_is_told_and_no_other_reason() {
    let mut world = World::build_in("10.0.0.0/28", "t3.small", "MAX_ENI=2 WARM_IP_TARGET=1");
    for last in 7..=14 {
        world
            .cloud
            .occupy(&world.subnet, World::address(last))
            .expect("free");
    }
    world.start();
    world.book.add_pods(3);
    tokio::time::sleep(10 * MINUTE).await;
    let subnet = format!("subnet {}", world.subnet);
    assert!(world.problem(&subnet).is_some(), "{:?}", world.status());
    assert_eq!(world.problem("room"), None);
    for last in 7..=14 {
        world
            .cloud
            .vacate(&world.subnet, World::address(last))
            .expect("occupied");
    }
    world.settle().await;
    assert!(
        world.status().problems.is_empty(),
        "{:?}",
        world.status().problems
    );
    world.assert_nothing_is_lost();
}

/// Nobody misses what nobody wants.
#[tokio::test(start_paused = true)]
async fn problems_of_growth_end_when_nothing_more_is_wanted() {
    for (code, on_subnet) in [
        ("InsufficientFreeAddressesInSubnet", true),
        ("RequestLimitExceeded", false),
    ] {
        let mut world = World::build("m5.large", "WARM_IP_TARGET=1");
        world.start();
        world.settle().await;
        for nth in 1..=500 {
            world
                .cloud
                .fail(Action::AssignPrivateIpAddresses, nth, Fault::refused(code));
        }
        world.book.add_pods(3);
        let subject = match on_subnet {
            true => format!("subnet {}", world.subnet),
            false => format!("interface {}", world.eni(0)),
        };
        world
            .until("it is told", MINUTE, |world| world.problem(&subject).is_some())
            .await;
        world.book.remove_pods(3);
        world
            .until("it is over", Duration::from_secs(1), |world| {
                world.status().problems.is_empty()
            })
            .await;
    }
}

/// A subnet that has addresses again is not blamed for what holds up the rest.
#[tokio::test(start_paused = true)]
async fn the_problem_of_a_subnet_ends_with_the_next_interface_that_is_made_there() {
    let mut world = World::build("m5.large", "WARM_IP_TARGET=1");
    world.start();
    world.settle().await;
    for nth in 1..=2 {
        let fault = Fault::refused("InsufficientFreeAddressesInSubnet");
        world.cloud.fail(Action::CreateNetworkInterface, nth, fault);
    }
    for nth in 1..=500 {
        let fault = Fault::refused("RequestLimitExceeded");
        world.cloud.fail(Action::AttachNetworkInterface, nth, fault);
    }
    world.book.add_pods(10);
    let subnet = format!("subnet {}", world.subnet);
    world
        .until("it is told", MINUTE, |world| world.problem(&subnet).is_some())
        .await;
    world
        .until("it is made", 3 * MINUTE, |world| {
            world.cloud.count(Action::AttachNetworkInterface) > 0
        })
        .await;
    assert_eq!(world.problem(&subnet), None);
    assert!(world.problem("new interface").is_some(), "{:?}", world.status());
}

/// Whose answer was lost, and who has all the same what it can have.
#[tokio::test(start_paused = true)]
async fn the_problem_of_an_interface_ends_when_it_is_full() {
    let mut world = World::build("m5.large", "");
    world.cloud.set_weather(|weather| {
        weather.denied.insert(Action::CreateNetworkInterface);
    });
    world
        .cloud
        .fail(Action::AssignPrivateIpAddresses, 1, Fault::AnswerLost);
    world.start();
    world.book.add_pods(1);
    let first = format!("interface {}", world.eni(0));
    world
        .until("it is told", MINUTE, |world| {
            world.problem("new interface").is_some()
        })
        .await;
    assert_eq!((world.held(), world.problem(&first)), (vec![9], None));
}
