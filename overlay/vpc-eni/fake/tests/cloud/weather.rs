//! What the weather does: late, stale, throttled, denied, lost.

use std::time::Duration;

use fake_vpc::ledger::Outcome;
use fake_vpc::request::{Request, Search};
use fake_vpc::weather::{Fault, Rate, Stale, Weather};
use http::StatusCode;
use tokio::time::{Instant, advance, timeout};
use vpc_eni::ec2::{Action, Amount, CallError, Ec2, EniId, Meaning, Which, Why};

use crate::support::{Http, SIGNED, World, parse};

const SECOND: Duration = Duration::from_secs(1);

fn describe() -> Request {
    Request::DescribeNetworkInterfaces(Search::default())
}

fn stale(world: &World, action: Action, stale: Stale) {
    world.cloud.set_weather(|weather| {
        weather.stale.insert(action, stale);
    });
}

#[tokio::test(start_paused = true)]
async fn an_attachment_takes_its_time_and_the_device_its_own() {
    let world = World::new();
    world.cloud.set_weather(|weather| {
        weather.attaching = 2 * SECOND;
        weather.device_after = 5 * SECOND;
        weather.detaching = 3 * SECOND;
    });
    let eni = world
        .ec2
        .create(&world.new_eni(Amount::Addresses(0)))
        .await
        .unwrap();
    let attachment = world.ec2.attach(&eni.id, &world.instance, 1).await.unwrap();
    let look = || {
        let interface = world.cloud.interface(&eni.id).unwrap();
        let status = interface.progress.map(|progress| progress.status(Instant::now()));
        (
            interface.status(),
            status,
            world.cloud.devices(&world.instance).len(),
        )
    };
    assert_eq!(look(), ("in-use", Some("attaching"), 1));
    advance(2 * SECOND).await;
    assert_eq!(look(), ("in-use", Some("attached"), 1));
    advance(3 * SECOND).await;
    assert_eq!(look(), ("in-use", Some("attached"), 2));
    world.ec2.detach(&attachment).await.unwrap();
    assert_eq!(look(), ("in-use", Some("detaching"), 2));
    advance(3 * SECOND).await;
    assert_eq!(look(), ("available", None, 1));
    assert_eq!(world.ec2.delete(&eni.id).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_changes_is_woken_by_calls_and_by_time() {
    let world = World::new();
    world
        .cloud
        .set_weather(|weather| weather.device_after = 5 * SECOND);
    let mut changes = world.cloud.changes();
    let eni = world
        .ec2
        .create(&world.new_eni(Amount::Addresses(0)))
        .await
        .unwrap();
    let attachment = world.ec2.attach(&eni.id, &world.instance, 1).await.unwrap();
    let begin = Instant::now();
    changes.next().await;
    assert_eq!(begin.elapsed(), Duration::ZERO, "by the calls");
    changes.next().await;
    assert_eq!(begin.elapsed(), 5 * SECOND, "by the device");
    world.cloud.set_weather(|weather| weather.detaching = 3 * SECOND);
    changes.next().await;
    world.ec2.detach(&attachment).await.unwrap();
    changes.next().await;
    assert_eq!(begin.elapsed(), 5 * SECOND, "by the call");
    changes.next().await;
    assert_eq!(begin.elapsed(), 8 * SECOND, "by the end of the detaching");
    assert!(
        timeout(3600 * SECOND, changes.next()).await.is_err(),
        "nothing more"
    );
}

#[tokio::test(start_paused = true)]
async fn what_changed_a_moment_ago_is_not_seen_for_a_time() {
    let world = World::new();
    let late = Stale {
        changes: 0,
        time: 10 * SECOND,
    };
    stale(&world, Action::DescribeNetworkInterfaces, late);
    advance(20 * SECOND).await;
    let primary = world.primary().id;
    let eni = world.attached(Amount::Addresses(0), 1);
    assert_eq!(world.seen().await, std::slice::from_ref(&primary));
    advance(9 * SECOND).await;
    assert_eq!(world.seen().await, std::slice::from_ref(&primary));
    // Other calls see it.
    assert_eq!(
        world.ec2.instance(&world.instance).await.unwrap().device_indexes,
        [0, 1]
    );
    advance(SECOND).await;
    assert_eq!(world.seen().await, [primary.clone(), eni.id.clone()]);
    // Going is seen as late as coming.
    world.cloud.take_interface(&eni.id).unwrap();
    assert_eq!(world.seen().await, [primary.clone(), eni.id.clone()]);
    advance(10 * SECOND).await;
    assert_eq!(world.seen().await, [primary]);
}

#[tokio::test(start_paused = true)]
async fn a_detaching_that_is_over_is_seen_late_too() {
    let world = World::new();
    world.cloud.set_weather(|weather| weather.detaching = 3 * SECOND);
    let eni = world.attached(Amount::Addresses(0), 1);
    advance(20 * SECOND).await;
    let late = Stale {
        changes: 0,
        time: 10 * SECOND,
    };
    stale(&world, Action::DescribeNetworkInterfaces, late);
    world
        .ec2
        .detach(&eni.attachment.clone().unwrap().id)
        .await
        .unwrap();
    // It ends after 3 seconds, and that is seen after 13.
    advance(12 * SECOND).await;
    assert_eq!(world.cloud.interface(&eni.id).unwrap().status(), "available");
    assert_eq!(world.seen().await, [world.primary().id, eni.id]);
    advance(SECOND).await;
    assert_eq!(world.seen().await, [world.primary().id]);
}

#[tokio::test]
async fn of_the_last_changes_some_are_not_seen_and_older_ones_are() {
    let world = World::new();
    let late = Stale {
        changes: 2,
        time: Duration::ZERO,
    };
    stale(&world, Action::DescribeNetworkInterfaces, late);
    let eni = world.make(world.new_eni(Amount::Addresses(0)));
    for _ in 0..2 {
        world
            .cloud
            .meddle(&Request::AssignPrivateIpAddresses {
                eni: eni.id.clone(),
                amount: Amount::Addresses(1),
            })
            .unwrap();
    }
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..64 {
        let found = world.ec2.interfaces(&Which::Named(eni.id.clone())).await.unwrap();
        seen.insert(found[0].secondary.len());
    }
    assert_eq!(
        seen,
        [0, 1, 2].into(),
        "none, one or both; but the making of it is seen"
    );
}

#[tokio::test(start_paused = true)]
async fn what_has_not_arrived_yet_is_not_found_by_what_changes_it() {
    let world = World::new();
    advance(60 * SECOND).await;
    let late = Stale {
        changes: 0,
        time: 5 * SECOND,
    };
    stale(&world, Action::AttachNetworkInterface, late);
    let eni = world
        .ec2
        .create(&world.new_eni(Amount::Addresses(0)))
        .await
        .unwrap();
    let error = world.ec2.attach(&eni.id, &world.instance, 1).await.unwrap_err();
    assert_eq!(error.meaning(), Meaning::NotFound, "{error}");
    assert_eq!(world.cloud.interface(&eni.id).unwrap().eni, eni);
    advance(5 * SECOND).await;
    assert!(world.ec2.attach(&eni.id, &world.instance, 1).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_bucket_of_tokens_throttles_and_fills_again() {
    let world = World::new();
    let rate = Rate {
        burst: 2,
        per_second: 0.5,
    };
    world.cloud.set_weather(|weather| {
        weather.limits.insert(Action::CreateTags, rate);
    });
    let eni = world.primary().id;
    let tag = async || {
        let tags = crate::support::tags([("a", "b")]);
        world
            .ec2
            .tag(&eni, &tags)
            .await
            .map_err(|error| (error.code().map(str::to_owned), error.meaning()))
    };
    let throttled = Err((Some("RequestLimitExceeded".to_owned()), Meaning::Throttled));
    assert_eq!(
        [tag().await, tag().await, tag().await],
        [Ok(()), Ok(()), throttled.clone()]
    );
    advance(SECOND).await;
    assert_eq!(tag().await, throttled);
    advance(SECOND).await;
    assert_eq!([tag().await, tag().await], [Ok(()), throttled.clone()]);
    // No more than it holds, however long nobody comes.
    advance(3600 * SECOND).await;
    assert_eq!(
        [tag().await, tag().await, tag().await],
        [Ok(()), Ok(()), throttled]
    );
    // Other actions have their own.
    assert!(world.ec2.instance(&world.instance).await.is_ok());
}

#[tokio::test]
async fn a_share_of_all_calls_is_throttled_alike_for_one_seed() {
    let throttled = async || {
        let world = World::new();
        world.cloud.set_weather(|weather| weather.throttled_per_cent = 30);
        let mut which = Vec::new();
        for _ in 0..200 {
            which.push(world.cloud.call(describe()).await.is_err());
        }
        which
    };
    let first = throttled().await;
    assert_eq!(throttled().await, first);
    let count = first.iter().filter(|throttled| **throttled).count();
    assert!((40..=80).contains(&count), "about 60 of 200: {count}");
    let world = World::new();
    world
        .cloud
        .set_weather(|weather| weather.throttled_per_cent = 100);
    for _ in 0..50 {
        assert_eq!(
            world.cloud.call(describe()).await.unwrap_err().meaning(),
            Meaning::Throttled
        );
    }
}

#[tokio::test]
async fn what_is_denied_is_told_by_its_name() {
    let world = World::new();
    world.cloud.set_weather(|weather| {
        weather.denied.insert(Action::CreateNetworkInterface);
    });
    let error = world
        .ec2
        .create(&world.new_eni(Amount::Addresses(0)))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.meaning()),
        (Some("UnauthorizedOperation"), Meaning::Denied)
    );
    assert!(
        error.to_string().contains("ec2:CreateNetworkInterface"),
        "{error}"
    );
    assert_eq!(world.enis(), [world.primary()]);
}

/// What becomes of the second of three creations that a fault befalls: each answer, and what was made.
struct Befalls {
    fault: Fault,
    answer: Why,
    outcome: Outcome,
    made: usize,
}

#[tokio::test]
async fn a_fault_befalls_the_call_that_it_is_for_and_no_other() {
    let refused = |code: &str| Why::Refused {
        code: code.to_owned(),
        message: "injected".to_owned(),
    };
    let rows = [
        Befalls {
            fault: Fault::Lost,
            answer: Why::NoAnswer("the call was lost".to_owned()),
            outcome: Outcome::NoAnswer { happened: false },
            made: 2,
        },
        Befalls {
            fault: Fault::AnswerLost,
            answer: Why::NoAnswer("the answer was lost".to_owned()),
            outcome: Outcome::NoAnswer { happened: true },
            made: 3,
        },
        Befalls {
            fault: Fault::refused("InternalError"),
            answer: refused("InternalError"),
            outcome: Outcome::Refused {
                code: "InternalError".to_owned(),
                happened: false,
            },
            made: 2,
        },
        Befalls {
            fault: Fault::done_and_refused("Unavailable"),
            answer: refused("Unavailable"),
            outcome: Outcome::Refused {
                code: "Unavailable".to_owned(),
                happened: true,
            },
            made: 3,
        },
    ];
    for row in rows {
        let world = World::new();
        // An earlier call of the action does not count.
        world
            .ec2
            .create(&world.new_eni(Amount::Addresses(0)))
            .await
            .unwrap();
        world.cloud.take_calls();
        let before = world.enis().len();
        world.cloud.fail(Action::CreateNetworkInterface, 2, row.fault);
        let mut answers = Vec::new();
        for _ in 0..3 {
            answers.push(
                world
                    .ec2
                    .create(&world.new_eni(Amount::Addresses(0)))
                    .await
                    .map(drop),
            );
        }
        let failed = CallError {
            action: Action::CreateNetworkInterface,
            why: row.answer,
        };
        assert_eq!(answers, [Ok(()), Err(failed), Ok(())]);
        let outcomes: Vec<Outcome> = world.cloud.calls().into_iter().map(|call| call.outcome).collect();
        assert_eq!(outcomes, [Outcome::Done, row.outcome.clone(), Outcome::Done]);
        assert_eq!(world.enis().len() - before, row.made, "{:?}", row.outcome);
    }
}

#[tokio::test]
async fn in_an_outage_nobody_answers_and_nothing_happens() {
    let world = World::new();
    world.cloud.set_weather(|weather| weather.outage = true);
    let error = world
        .ec2
        .create(&world.new_eni(Amount::Addresses(0)))
        .await
        .unwrap_err();
    assert_eq!(error.meaning(), Meaning::Unknown);
    assert_eq!(world.enis(), [world.primary()]);
    world.cloud.set_weather(|weather| *weather = Weather::default());
    assert!(
        world
            .ec2
            .create(&world.new_eni(Amount::Addresses(0)))
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn who_goes_before_the_answer_comes_has_been_served_nevertheless() {
    let world = World::new();
    world
        .cloud
        .set_weather(|weather| weather.answer_after = 10 * SECOND);
    let new = world.new_eni(Amount::Addresses(0));
    assert!(timeout(SECOND, world.ec2.create(&new)).await.is_err());
    assert_eq!(world.enis().len(), 2);
    let begin = Instant::now();
    world.ec2.create(&new).await.unwrap();
    assert_eq!(begin.elapsed(), 10 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn the_ledger_has_every_call_with_its_time_and_its_outcome() {
    let world = World::new();
    let begin = Instant::now();
    let missing = EniId::from("eni-0");
    world.ec2.delete(&missing).await.unwrap_err();
    advance(SECOND).await;
    world.cloud.call(describe()).await.unwrap();
    let calls = world.cloud.calls();
    let expected = [
        fake_vpc::ledger::Call {
            at: begin,
            request: Request::DeleteNetworkInterface { eni: missing },
            outcome: Outcome::Refused {
                code: "InvalidNetworkInterfaceID.NotFound".to_owned(),
                happened: false,
            },
        },
        fake_vpc::ledger::Call {
            at: begin + SECOND,
            request: describe(),
            outcome: Outcome::Done,
        },
    ];
    assert_eq!(calls, expected);
    let counts = [
        (Action::DeleteNetworkInterface, 1),
        (Action::DescribeNetworkInterfaces, 1),
    ];
    assert_eq!(world.cloud.counts(), counts.into());
    assert_eq!(world.cloud.take_calls(), expected);
    assert_eq!(
        (
            world.cloud.calls(),
            world.cloud.count(Action::DeleteNetworkInterface)
        ),
        (vec![], 0)
    );
}

#[tokio::test]
async fn the_weather_is_felt_over_http() {
    let world = World::new();
    let http = Http::new(&world.cloud);
    let form = crate::support::form(&describe());
    let code = async || {
        let (status, body) = http.post(&form, &[SIGNED]).await?;
        let code = parse(&body).at(&["Errors", "Error", "Code"]).text.clone();
        Some((status, code))
    };
    let set = |change: fn(&mut Weather)| {
        world.cloud.set_weather(|weather| {
            *weather = Weather::default();
            change(weather);
        });
    };
    set(|weather| weather.throttled_per_cent = 100);
    assert_eq!(
        code().await,
        Some((StatusCode::SERVICE_UNAVAILABLE, "RequestLimitExceeded".to_owned()))
    );
    set(|weather| {
        weather.denied.insert(Action::DescribeNetworkInterfaces);
    });
    assert_eq!(
        code().await,
        Some((StatusCode::FORBIDDEN, "UnauthorizedOperation".to_owned()))
    );
    set(|weather| weather.outage = true);
    assert_eq!(code().await, None);
    set(|_| {});
    world.cloud.fail(
        Action::DescribeNetworkInterfaces,
        1,
        Fault::refused("InternalError"),
    );
    assert_eq!(
        code().await,
        Some((StatusCode::INTERNAL_SERVER_ERROR, "InternalError".to_owned()))
    );
    world
        .cloud
        .fail(Action::DescribeNetworkInterfaces, 1, Fault::AnswerLost);
    assert_eq!(code().await, None);
    assert!(
        http.post(&form, &[SIGNED])
            .await
            .is_some_and(|(status, _)| status == StatusCode::OK)
    );
}

#[tokio::test]
async fn a_server_ends_with_its_drop() {
    let world = World::new();
    let Http { server, .. } = Http::new(&world.cloud);
    let at = server.ec2();
    let metadata = server
        .serve_metadata(&world.instance, crate::support::loopback())
        .unwrap();
    // A connection that is open already ends, and no other is taken.
    let mut open = tokio::net::TcpStream::connect(at).await.unwrap();
    drop(server);
    let mut rest = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut open, &mut rest);
    timeout(10 * SECOND, read).await.expect("it ends").ok();
    for at in [at, metadata] {
        let closed = async {
            while tokio::net::TcpStream::connect(at).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(10 * SECOND, closed).await.expect("nobody listens");
    }
}
