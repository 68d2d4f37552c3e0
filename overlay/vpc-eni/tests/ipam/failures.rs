//! Calls that fail, answers that are lost, and managers that die between two calls: at every call of a node that grows
//! and shrinks.

use std::time::Duration;

use fake_vpc::weather::{Fault, Rate, Stale};
use tokio::time::Instant;
use vpc_eni::ec2::Action;

use crate::world::World;

const MINUTE: Duration = Duration::from_secs(60);

/// All that a run can ask for.
const ACTIONS: [Action; 12] = [
    Action::AssignPrivateIpAddresses,
    Action::AttachNetworkInterface,
    Action::CreateNetworkInterface,
    Action::DeleteNetworkInterface,
    Action::DescribeInstanceTypes,
    Action::DescribeInstances,
    Action::DescribeNetworkInterfaces,
    Action::DescribeSubnets,
    Action::DetachNetworkInterface,
    Action::ModifyNetworkInterfaceAttribute,
    Action::UnassignPrivateIpAddresses,
    Action::UnassignIpv6Addresses,
];

fn world() -> World {
    let world = World::build("m5.large", "WARM_IP_TARGET=2");
    world.cloud.set_weather(|weather| {
        weather.attaching = Duration::from_secs(2);
        weather.device_after = Duration::from_secs(3);
        weather.detaching = Duration::from_secs(4);
        weather.answer_after = Duration::from_millis(300);
    });
    world
}

/// Grows over two interfaces more, and shrinks again.
async fn breathe(world: &World) {
    world.settle().await;
    world.book.add_pods(20);
    world.settle().await;
    world.assert_sound();
    world.book.remove_pods(15);
    world.settle().await;
}

async fn assert_mended(world: &World, what: &str) {
    // What was leaked is found within twenty minutes, what is not known within an hour.
    tokio::time::sleep(61 * MINUTE).await;
    world.settle().await;
    let held = world.held();
    assert_eq!(
        (held.iter().sum::<usize>(), world.book.pods().len()),
        (7, 5),
        "{what}"
    );
    assert!(held.len() <= 2 && !held.contains(&0), "{what}: {held:?}");
    world.assert_nothing_is_lost();
}

#[tokio::test(start_paused = true)]
async fn without_failures_a_node_breathes() {
    let mut world = world();
    world.start();
    breathe(&world).await;
    assert_mended(&world, "nothing").await;
    let problems = world.status().problems;
    assert!(problems.is_empty(), "{problems:?}");
}

#[tokio::test(start_paused = true)]
async fn whatever_call_fails_in_whatever_way_nothing_leaks_and_every_pod_is_served() {
    let faults = [
        Fault::Lost,
        Fault::AnswerLost,
        Fault::refused("RequestLimitExceeded"),
        Fault::refused("InternalError"),
        Fault::done_and_refused("InternalError"),
        Fault::refused("UnauthorizedOperation"),
        Fault::refused("InvalidParameterValue"),
    ];
    for action in ACTIONS {
        for fault in &faults {
            for nth in 1..=3 {
                let mut world = world();
                world.cloud.fail(action, nth, fault.clone());
                world.start();
                breathe(&world).await;
                assert_mended(&world, &format!("{fault:?} at {action} {nth}")).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_dies_at_any_call_leaks_nothing() {
    let mut first = world();
    first.start();
    breathe(&first).await;
    let calls = first.cloud.calls().len();
    assert!(calls > 20, "{calls} calls");
    for nth in 1..=calls {
        for lives in [Duration::from_millis(150), Duration::from_millis(350)] {
            let mut world = world();
            world.start();
            let dying = async {
                world
                    .until("so many calls", 60 * MINUTE, |world| {
                        world.cloud.calls().len() >= nth
                    })
                    .await;
                tokio::time::sleep(lives).await;
            };
            tokio::select! {
                () = dying => {}
                () = breathe(&world) => {}
            }
            world.kill().await;
            // Pods come and go while it is dead.
            let pods = world.book.pods().len() + world.book.waiting();
            world.book.remove_pods(pods as u32);
            world.start();
            world.book.add_pods(5);
            assert_mended(&world, &format!("death after call {nth}")).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn in_bad_weather_a_node_breathes_more_slowly() {
    for seed in 1..=5 {
        let mut world = world();
        world.cloud.set_weather(|weather| {
            weather.throttled_per_cent = 50 + seed * 5;
            for action in [
                Action::DescribeNetworkInterfaces,
                Action::DescribeInstances,
                Action::DescribeSubnets,
            ] {
                let time = Duration::from_secs(u64::from(seed) * 4);
                weather.stale.insert(action, Stale { changes: 0, time });
            }
        });
        world.start();
        breathe(&world).await;
        assert_mended(&world, &format!("{seed}")).await;
    }
}

/// F44: nine of ten calls refused; the pods that have addresses keep them, those that wait get theirs.
#[tokio::test(start_paused = true)]
async fn of_ten_calls_nine_are_refused_and_all_pods_are_served() {
    let mut world = world();
    world.start();
    world.book.add_pods(5);
    world.settle().await;
    world.cloud.set_weather(|weather| weather.throttled_per_cent = 90);
    let (before, began) = (world.cloud.calls().len(), Instant::now());
    world.book.add_pods(15);
    world
        .until("pods have addresses", 60 * MINUTE, |world| {
            world.book.waiting() == 0
        })
        .await;
    let calls = world.cloud.calls().len() - before;
    // How long it takes is chance's; what it costs others is not.
    let most = 60.0 + 8.0 * began.elapsed().as_secs_f64() / 60.0;
    assert!(
        (calls as f64) < most,
        "{calls} calls, more than {most}, make it worse for others"
    );
    world.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_bucket_of_few_calls_is_not_emptied_in_vain() {
    let mut world = world();
    let rate = Rate {
        burst: 1,
        per_second: 0.05,
    };
    world.cloud.set_weather(|weather| {
        weather.limits.insert(Action::AttachNetworkInterface, rate);
        weather.limits.insert(Action::CreateNetworkInterface, rate);
    });
    world.start();
    breathe(&world).await;
    assert_mended(&world, "a small bucket").await;
}

/// F45: no EC2 at all for an hour.
#[tokio::test(start_paused = true)]
async fn an_outage_changes_nothing_that_works() {
    let mut world = world();
    world.start();
    world.book.add_pods(5);
    world.settle().await;
    let (held, pods) = (world.held(), world.book.pods());
    world.cloud.set_weather(|weather| weather.outage = true);
    world.book.add_pods(2);
    tokio::time::sleep(MINUTE).await;
    assert_eq!(world.book.waiting(), 0, "two were ready");
    world.book.remove_pods(2);
    tokio::time::sleep(90 * MINUTE).await;
    assert_eq!((world.held(), world.book.pods()), (held, pods));
    world.kill().await;
    world.start();
    tokio::time::sleep(10 * MINUTE).await;
    let problem = world.problem("identity").expect("told");
    assert!(problem.contains("AWS_EC2_ENDPOINT"), "{problem}");
    world.cloud.set_weather(|weather| weather.outage = false);
    assert_mended(&world, "an outage").await;
}

#[tokio::test(start_paused = true)]
async fn a_permission_that_is_missing_is_named_and_pods_that_run_keep_running() {
    for action in ACTIONS {
        if matches!(action, Action::UnassignIpv6Addresses) {
            continue;
        }
        let mut world = world();
        world.cloud.set_weather(|weather| {
            weather.denied.insert(action);
        });
        world.start();
        let names_it = |world: &World| {
            let status = world.status();
            let mut problems = status.problems.iter().map(|(_, problem)| problem.to_string());
            problems.any(|problem| problem.contains(&format!("allow ec2:{action} ")))
        };
        world.book.add_pods(12);
        if matches!(
            action,
            Action::UnassignPrivateIpAddresses
                | Action::DetachNetworkInterface
                | Action::DeleteNetworkInterface
        ) {
            world.settle().await;
            let pods = world.book.pods();
            world.book.remove_pods(8);
            world.until("it is named", 10 * MINUTE, names_it).await;
            assert_eq!(world.book.pods(), pods[..4]);
        } else {
            world.until("it is named", 10 * MINUTE, names_it).await;
        }
        world.cloud.set_weather(|weather| weather.denied.clear());
        world
            .until("it is over", 20 * MINUTE, |world| {
                world.status().problems.is_empty()
            })
            .await;
        world.settle().await;
        tokio::time::sleep(61 * MINUTE).await;
        world.settle().await;
        world.assert_nothing_is_lost();
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_metadata_service_it_waits_and_says_so() {
    let mut world = world();
    world.cloud.set_weather(|weather| weather.metadata.is_down = true);
    world.start();
    world
        .until("it is told", MINUTE, |world| world.problem("identity").is_some())
        .await;
    let problem = world.problem("identity").expect("told");
    assert!(problem.contains("HttpEndpoint"), "{problem}");
    world
        .cloud
        .set_weather(|weather| weather.metadata.is_down = false);
    world
        .until("it is over", 2 * MINUTE, |world| {
            world.problem("identity").is_none()
        })
        .await;
    breathe(&world).await;
    assert_mended(&world, "no metadata").await;
}

#[tokio::test(start_paused = true)]
async fn a_security_group_that_is_gone_is_told_and_the_next_ones_are_taken() {
    let mut world = World::build("m5.large", "");
    let group = world
        .cloud
        .make_security_group(&world.vpc, Default::default())
        .expect("a group");
    world.set_groups(&world.eni(0), std::slice::from_ref(&group));
    world.start();
    world.settle().await;
    world.cloud.take_group(&group).expect("there");
    world.book.add_pods(9);
    world
        .until("it is told", 2 * MINUTE, |world| {
            world.problem("new interface").is_some()
        })
        .await;
    let problem = world.problem("new interface").expect("told");
    assert!(
        problem.contains("security group") && problem.contains("ENIConfig"),
        "{problem}"
    );
    world
        .until("others are taken", 2 * MINUTE, |world| world.held() == [9, 9])
        .await;
    world.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_the_account_is_told_and_leaves_nothing_behind() {
    let mut world = world();
    world.cloud.limit_interfaces(1);
    world.start();
    world.book.add_pods(10);
    world
        .until("it is told", 2 * MINUTE, |world| {
            world.problem("new interface").is_some()
        })
        .await;
    let problem = world.problem("new interface").expect("told");
    assert!(problem.contains("quota"), "{problem}");
    world.cloud.limit_interfaces(10);
    world
        .until("pods have addresses", 5 * MINUTE, |world| {
            world.book.waiting() == 0
        })
        .await;
    world.settle().await;
    world.assert_nothing_is_lost();
}

/// How often something is asked for that is refused again and again, in ten minutes.
#[tokio::test(start_paused = true)]
async fn what_is_refused_is_asked_for_ever_more_seldom() {
    for (action, code) in [
        (Action::UnassignPrivateIpAddresses, "UnauthorizedOperation"),
        (Action::UnassignPrivateIpAddresses, "RequestLimitExceeded"),
        (Action::UnassignPrivateIpAddresses, "InvalidParameterValue"),
        (Action::AssignPrivateIpAddresses, "RequestLimitExceeded"),
        (
            Action::AssignPrivateIpAddresses,
            "InsufficientFreeAddressesInSubnet",
        ),
        (Action::AssignPrivateIpAddresses, "PrivateIpAddressLimitExceeded"),
        (Action::DetachNetworkInterface, "UnauthorizedOperation"),
        (Action::DeleteNetworkInterface, "InvalidParameterValue"),
        (Action::AttachNetworkInterface, "UnauthorizedOperation"),
        (Action::AttachNetworkInterface, "AttachmentLimitExceeded"),
        (Action::CreateNetworkInterface, "NetworkInterfaceLimitExceeded"),
        (Action::ModifyNetworkInterfaceAttribute, "UnauthorizedOperation"),
    ] {
        let mut world = world();
        world.start();
        world.settle().await;
        for nth in 1..=500 {
            world.cloud.fail(action, nth, Fault::refused(code));
        }
        world.book.add_pods(9);
        tokio::time::sleep(2 * MINUTE).await;
        world.book.remove_pods(7);
        let before = (world.cloud.calls().len(), world.counts());
        tokio::time::sleep(10 * MINUTE).await;
        let more = world.cloud.calls().len() - before.0;
        assert!(
            more <= 60,
            "{more} calls where {action} is {code}: {:?} after {:?}",
            world.counts(),
            before.1
        );
    }
}

/// However long EC2 is away, the record says of each interface once that it may have changed.
#[tokio::test(start_paused = true)]
async fn the_record_does_not_grow_with_the_length_of_an_outage() {
    let mut world = world();
    world.start();
    world.settle().await;
    world.cloud.set_weather(|weather| weather.outage = true);
    world.book.add_pods(8);
    tokio::time::sleep(3 * 60 * MINUTE).await;
    let records = world.records();
    assert!(records.len() <= 2, "{records:?}");
    world.cloud.set_weather(|weather| weather.outage = false);
    world.settle().await;
    tokio::time::sleep(5 * MINUTE).await;
    assert_eq!(world.records(), [] as [serde_json::Value; 0]);
    world.assert_nothing_is_lost();
}

/// It serves pods as it is.
#[tokio::test(start_paused = true)]
async fn an_interface_that_may_not_go_with_its_instance_is_filled_all_the_same() {
    let mut world = world();
    world.cloud.set_weather(|weather| {
        weather.denied.insert(Action::ModifyNetworkInterfaceAttribute);
    });
    world.start();
    world.book.add_pods(9);
    tokio::time::sleep(20 * MINUTE).await;
    world.book.add_pods(7);
    world
        .until("pods have addresses", 5 * MINUTE, |world| {
            world.book.waiting() == 0
        })
        .await;
    assert_eq!(world.book.pods().len(), 16);
    // And gives back what is too much.
    world.book.remove_pods(13);
    world
        .until("addresses go", 5 * MINUTE, |world| {
            world.held().iter().sum::<usize>() == 5
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn subnets_that_are_told_of_late_are_waited_for() {
    let mut world = World::build("m5.large", "");
    let stale = Stale {
        changes: 0,
        time: Duration::from_secs(40),
    };
    world.cloud.set_weather(|weather| {
        weather.stale.insert(Action::DescribeSubnets, stale);
    });
    world.start();
    world
        .until("it is told", MINUTE, |world| world.problem("subnets").is_some())
        .await;
    world
        .until("addresses come", 5 * MINUTE, |world| world.held() == [9])
        .await;
    assert_eq!(world.problem("subnets"), None);
}

/// Some other node's, perhaps, which this one's role does not let it delete; or EC2 has no time for it.
#[tokio::test(start_paused = true)]
async fn a_leak_that_cannot_be_deleted_holds_nothing_up() {
    for (code, most_calls) in [("UnauthorizedOperation", 2), ("RequestLimitExceeded", 60)] {
        let mut world = World::build("m5.large", "CLUSTER_NAME=prod WARM_IP_TARGET=2");
        let tags = [
            ("cluster.k8s.amazonaws.com/name", "prod"),
            ("node.k8s.amazonaws.com/instance_id", "i-0dead"),
            ("node.k8s.amazonaws.com/createdAt", "2020-01-01T00:00:00Z"),
        ];
        world.make_another(tags.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        for nth in 1..=500 {
            world
                .cloud
                .fail(Action::DeleteNetworkInterface, nth, Fault::refused(code));
        }
        world.start();
        world.book.add_pods(6);
        tokio::time::sleep(5 * MINUTE).await;
        assert_eq!((world.held(), world.book.waiting()), (vec![8], 0), "{code}");
        world.book.remove_pods(5);
        world
            .until("addresses go", 5 * MINUTE, |world| world.held() == [3])
            .await;
        let calls = world.cloud.count(Action::DeleteNetworkInterface);
        assert!(calls <= most_calls, "{calls} calls, {code}");
    }
}

/// Its place is taken until EC2 has let go of it.
#[tokio::test(start_paused = true)]
async fn an_interface_that_cannot_go_keeps_its_place() {
    let mut world = World::build("t3.small", "");
    world.start();
    world.book.add_pods(6);
    world.settle().await;
    assert_eq!(world.held(), [3, 3, 3]);
    world.cloud.set_weather(|weather| {
        weather.denied.insert(Action::DetachNetworkInterface);
    });
    world.book.remove_pods(6);
    tokio::time::sleep(10 * MINUTE).await;
    let made = world.cloud.count(Action::CreateNetworkInterface);
    world.book.add_pods(9);
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!(world.cloud.count(Action::CreateNetworkInterface), made);
    world.cloud.set_weather(|weather| weather.denied.clear());
    world.settle().await;
    world.assert_nothing_is_lost();
}

/// EC2 allows fewer interfaces than its list of types says.
#[tokio::test(start_paused = true)]
async fn a_limit_of_the_instance_is_believed_for_a_while() {
    let mut world = world();
    world.start();
    world.settle().await;
    let two = vpc_eni::ec2::Limits {
        interfaces: 2,
        addresses_per_interface: 10,
        is_nitro: true,
    };
    world.cloud.make_instance_type("m5.large", two);
    world.book.add_pods(20);
    tokio::time::sleep(9 * MINUTE).await;
    assert_eq!(world.held(), [9, 9]);
    assert_eq!(world.cloud.count(Action::CreateNetworkInterface), 2);
    let problem = world.problem("new interface").expect("told");
    assert!(problem.contains("AttachmentLimitExceeded"), "{problem}");
    let three = vpc_eni::ec2::Limits { interfaces: 3, ..two };
    world.cloud.make_instance_type("m5.large", three);
    world
        .until("pods have addresses", 10 * MINUTE, |world| {
            world.book.waiting() == 0
        })
        .await;
}

/// F45: nobody answers, the next call is refused for good, and the first one made an interface all the same.
#[tokio::test(start_paused = true)]
async fn what_an_unanswered_call_made_is_found_within_five_minutes_of_a_refusal() {
    for restarts in [false, true] {
        let mut world = world();
        world.start();
        // The next look for leaks that is due anyway is a while away.
        tokio::time::sleep(30 * MINUTE).await;
        world.until_a_sweep().await;
        world
            .cloud
            .fail(Action::CreateNetworkInterface, 1, Fault::AnswerLost);
        for nth in 2..=500 {
            let refused = Fault::refused("UnauthorizedOperation");
            world.cloud.fail(Action::CreateNetworkInterface, nth, refused);
        }
        world.book.add_pods(8);
        world
            .until("it is made", MINUTE, |world| world.cloud.interfaces().len() == 2)
            .await;
        // What was made just now is not told of for a while.
        let stale = Stale {
            changes: 0,
            time: Duration::from_secs(40),
        };
        world.cloud.set_weather(|weather| {
            weather.stale.insert(Action::DescribeNetworkInterfaces, stale);
        });
        if restarts {
            world.kill().await;
            world.start();
        }
        world
            .until("it is gone", 5 * MINUTE, |world| {
                world.cloud.interfaces().len() == 1
            })
            .await;
        // It is no reason to look again and again.
        let sweeps = world.sweeps().len();
        tokio::time::sleep(60 * MINUTE).await;
        assert_eq!(world.sweeps().len() - sweeps, 3, "restarts: {restarts}");
    }
}

/// What cannot be attached would be made in vain, and deleted again.
#[tokio::test(start_paused = true)]
async fn an_interface_that_cannot_be_attached_is_followed_by_another_after_two_minutes() {
    let mut world = World::build("m5.large", "");
    world.cloud.set_weather(|weather| {
        weather.denied.insert(Action::AttachNetworkInterface);
    });
    world.start();
    world.book.add_pods(10);
    tokio::time::sleep(10 * MINUTE + Duration::from_secs(10)).await;
    let counts = [
        world.cloud.count(Action::CreateNetworkInterface),
        world.cloud.count(Action::DeleteNetworkInterface),
    ];
    assert_eq!(counts, [6, 6]);
}

/// It was refused for long, is made, and is not told of everywhere yet: it is as young as its making.
#[tokio::test(start_paused = true)]
async fn an_interface_that_was_made_late_is_waited_for_like_any_other() {
    let mut world = World::build("m5.large", "");
    world.start();
    world.settle().await;
    // Half a second, one, two, …, by half of which chance may shorten each: more than a minute.
    for nth in 1..=9 {
        world.cloud.fail(
            Action::CreateNetworkInterface,
            nth,
            Fault::refused("RequestLimitExceeded"),
        );
    }
    let stale = Stale {
        changes: 0,
        time: Duration::from_secs(20),
    };
    world.cloud.set_weather(|weather| {
        for action in [Action::AttachNetworkInterface, Action::DescribeNetworkInterfaces] {
            weather.stale.insert(action, stale);
        }
    });
    world.book.add_pods(1);
    world
        .until("it serves", 10 * MINUTE, |world| world.held() == [9, 9])
        .await;
    let counts = [
        world.cloud.count(Action::CreateNetworkInterface),
        world.cloud.count(Action::DeleteNetworkInterface),
    ];
    assert_eq!(counts, [10, 0]);
}

/// An interface that was made without an answer is this node's, once the call is answered that asks for it again.
#[tokio::test(start_paused = true)]
async fn what_is_being_made_is_no_leak() {
    let mut world = World::build("m5.large", "");
    world.start();
    world.settle().await;
    world
        .cloud
        .fail(Action::CreateNetworkInterface, 1, Fault::AnswerLost);
    for nth in 2..=6 {
        let fault = Fault::refused("RequestLimitExceeded");
        world.cloud.fail(Action::CreateNetworkInterface, nth, fault);
    }
    world.book.add_pods(1);
    world
        .until("it is made", MINUTE, |world| world.cloud.interfaces().len() == 2)
        .await;
    let made = world.cloud.interfaces().remove(1).eni.id;
    // Who starts looks for leaks.
    world.kill().await;
    world.start();
    world
        .until("it serves", 5 * MINUTE, |world| world.held() == [9, 9])
        .await;
    assert_eq!(
        (world.eni(1), world.cloud.count(Action::DeleteNetworkInterface)),
        (made, 0)
    );
}
