//! Security groups and tags of interfaces made here.

use std::time::Duration;

use fake_vpc::request::Request;
use fake_vpc::weather::Fault;
use vpc_eni::ec2::{Action, Tags};
use vpc_eni::home::{EniConfig, Facts};

use crate::world::World;

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn interfaces_carry_the_tags_that_tools_know() {
    let mut world = World::build(
        "m5.large",
        r#"CLUSTER_NAME=prod ADDITIONAL_ENI_TAGS={"team":"net"}"#,
    );
    world.start();
    world.book.add_pods(1);
    world.settle().await;
    let eni = world.cloud.interface(&world.eni(1)).expect("there").eni;
    let mut tags = eni.tags;
    let created = tags.remove("node.k8s.amazonaws.com/createdAt").expect("a time");
    assert!(created.parse::<jiff::Timestamp>().is_ok(), "{created}");
    let expected = [
        ("cluster.k8s.amazonaws.com/name", "prod"),
        ("node.k8s.amazonaws.com/instance_id", world.instance.0.as_str()),
        ("team", "net"),
    ];
    assert_eq!(
        tags,
        expected
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    );
    assert_eq!(eni.description, format!("aws-K8S-{}", world.instance));
    assert!(eni.attachment.expect("attached").delete_on_termination);
}

/// Whoever sets `ADDITIONAL_ENI_TAGS` later means the interfaces that are there, too.
#[tokio::test(start_paused = true)]
async fn tags_that_are_set_later_come_to_the_interfaces_that_are_there() {
    let tags_of = |world: &World, device_index| {
        let interface = world.cloud.interface(&world.eni(device_index)).expect("there");
        interface.eni.tags
    };
    let mut world = World::build("m5.large", r#"ADDITIONAL_ENI_TAGS={"team":"net","cost":"7"}"#);
    world.start();
    world.book.add_pods(1);
    world.settle().await;
    let mut expected = tags_of(&world, 1);
    let theirs = tag(&world, 1, "seen", "yes");
    let of_primary = tag(&world, 0, "team", "none");
    let stranger = world.attach_another(2, Tags::new());
    world.kill().await;

    world.set_variables(r#"CLUSTER_NAME=prod ADDITIONAL_ENI_TAGS={"team":"dev"}"#);
    world.start();
    let asked = world.cloud.count(Action::CreateTags);
    tokio::time::sleep(5 * MINUTE).await;
    let more = [
        ("cluster.k8s.amazonaws.com/name", "prod"),
        // What is not set any more stays: nobody knows who else reads it.
        ("cost", "7"),
        ("team", "dev"),
    ];
    expected.extend(more.map(|(key, value)| (key.to_owned(), value.to_owned())));
    expected.extend(theirs);
    assert_eq!((tags_of(&world, 1), tags_of(&world, 0)), (expected, of_primary));
    let stranger = world.cloud.interface(&stranger).expect("there").eni;
    assert_eq!(stranger.tags, Tags::new(), "somebody else's");
    tokio::time::sleep(3 * 60 * MINUTE).await;
    assert_eq!(world.cloud.count(Action::CreateTags), asked + 1);
}

/// Somebody tags an interface.
fn tag(world: &World, device_index: u32, key: &str, value: &str) -> Tags {
    let tags = Tags::from([(key.to_owned(), value.to_owned())]);
    let request = Request::CreateTags {
        resources: vec![world.eni(device_index).0],
        tags: tags.clone(),
    };
    world.cloud.meddle(&request).expect("there");
    tags
}

#[tokio::test(start_paused = true)]
async fn tags_that_are_refused_are_told_and_asked_for_once_an_hour() {
    for (code, most) in [("UnauthorizedOperation", 4), ("RequestLimitExceeded", 500)] {
        let mut world = World::build("m5.large", "");
        world.start();
        world.book.add_pods(1);
        world.settle().await;
        world.kill().await;
        world.set_variables("CLUSTER_NAME=prod");
        for nth in 1..=500 {
            world.cloud.fail(Action::CreateTags, nth, Fault::refused(code));
        }
        world.start();
        let about = format!("tags of {}", world.eni(1));
        world
            .until("it is told", MINUTE, |world| world.problem(&about).is_some())
            .await;
        tokio::time::sleep(3 * 60 * MINUTE).await;
        let calls = world.cloud.count(Action::CreateTags);
        assert!((4..=most).contains(&calls), "{calls} calls, {code}");
        // Pods are served meanwhile.
        world.book.add_pods(10);
        world.settle().await;
        for nth in 1..=500 {
            world.cloud.forget(Action::CreateTags, nth);
        }
        world
            .until("it is over", 61 * MINUTE, |world| {
                world.status().problems.is_empty()
            })
            .await;
        let eni = world.cloud.interface(&world.eni(1)).expect("there").eni;
        let cluster = eni.tags.get("cluster.k8s.amazonaws.com/name");
        assert_eq!(cluster.map(String::as_str), Some("prod"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_groups_of_the_primary_interface_are_those_of_all() {
    let mut world = World::build("m5.large", "");
    world.start();
    world.book.add_pods(1);
    world.settle().await;
    let group = world
        .cloud
        .make_security_group(&world.vpc, Tags::new())
        .expect("a group");
    let primary = world.eni(0);
    world.set_groups(&primary, std::slice::from_ref(&group));
    let second = world.eni(1);
    let has = |world: &World| {
        world
            .cloud
            .interface(&second)
            .is_some_and(|found| found.eni.groups == [group.clone()])
    };
    world.until("they are taken over", 61 * MINUTE, has).await;
}

/// Until the node's ENIConfig is read, nobody knows which groups its interfaces shall have.
#[tokio::test(start_paused = true)]
async fn without_an_eniconfig_the_groups_of_its_interfaces_stay() {
    let mut world = World::build("m5.large", "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true");
    let group = world
        .cloud
        .make_security_group(&world.vpc, Tags::new())
        .expect("a group");
    let named = Facts {
        eni_config: Ok(EniConfig {
            name: "a".to_owned(),
            subnet: world.subnet.clone(),
            groups: vec![group.clone()],
        }),
        ..Facts::default()
    };
    world.facts.send_replace(named);
    world.start();
    world.book.add_pods(1);
    world.settle().await;
    world.kill().await;
    world.facts.send_replace(Facts::default());
    world.start();
    tokio::time::sleep(5 * MINUTE).await;
    let eni = world.cloud.interface(&world.eni(1)).expect("there").eni;
    assert_eq!(eni.groups, [group]);
}

#[tokio::test(start_paused = true)]
async fn groups_are_a_set_and_are_taken_over_whatever_is_refused_first() {
    let mut world = World::build("m5.large", "");
    world.start();
    world.book.add_pods(1);
    world.settle().await;
    let group = || {
        world
            .cloud
            .make_security_group(&world.vpc, Tags::new())
            .expect("a group")
    };
    let (one, other) = (group(), group());
    world.set_groups(&world.eni(0), &[one.clone(), other.clone()]);
    world.set_groups(&world.eni(1), &[other.clone(), one.clone()]);
    let before = world.cloud.count(Action::ModifyNetworkInterfaceAttribute);
    tokio::time::sleep(61 * MINUTE).await;
    assert_eq!(world.cloud.count(Action::ModifyNetworkInterfaceAttribute), before);

    for nth in 1..=3 {
        world.cloud.fail(
            Action::ModifyNetworkInterfaceAttribute,
            nth,
            Fault::refused("RequestLimitExceeded"),
        );
    }
    world.set_groups(&world.eni(0), std::slice::from_ref(&one));
    tokio::time::sleep(62 * MINUTE).await;
    let eni = world.cloud.interface(&world.eni(1)).expect("there").eni;
    assert_eq!(eni.groups, [one]);
    let calls = world.cloud.count(Action::ModifyNetworkInterfaceAttribute) - before;
    assert_eq!((calls, world.status().problems.is_empty()), (4, true));
}
