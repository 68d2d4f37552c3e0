//! Devices of interfaces, and what keeps them from being there.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use fake_vpc::fabric::{Place, Problem};
use fake_vpc::{Cloud, Fabric};
use ipnetwork::IpNetwork;
use netlink::{Address, Kernel, LinkChange, NewLink, NewLinkKind, RouteFilter};
use vpc_eni::ec2::VpcId;

use super::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn attaching_brings_the_device_after_its_time_and_detaching_takes_it_away() {
    if not_root("attach") {
        return;
    }
    let world = World::new();
    let fabric = world.start().await;
    let late = Duration::from_millis(400);
    world.cloud.set_weather(|weather| {
        weather.device_after = late;
        weather.detaching = late;
    });
    let eni = world.make();
    let asked = Instant::now();
    let attachment = world.attach(&eni, &world.a, 2);
    assert_fine(&fabric.settle().await);
    assert_eq!(world.a.place.device(eni.mac.0), None);
    let device = wait_for(|| world.a.place.device(eni.mac.0), "the device");
    assert!(asked.elapsed() >= late, "{:?}", asked.elapsed());
    assert_eq!(
        (device.name.as_str(), device.mtu, device.up),
        ("eth2", 9001, false)
    );
    let asked = Instant::now();
    world.detach(attachment);
    assert_fine(&fabric.settle().await);
    assert_eq!(world.a.place.device(eni.mac.0).unwrap().index, device.index);
    wait_for(
        || world.a.place.device(eni.mac.0).is_none().then_some(()),
        "the device to go",
    );
    assert!(asked.elapsed() >= late, "{:?}", asked.elapsed());

    // To another node, between two looks.
    world.cloud.set_weather(|weather| *weather = Default::default());
    let attachment = world.attach(&eni, &world.a, 1);
    assert_fine(&fabric.settle().await);
    assert!(world.a.place.device(eni.mac.0).is_some());
    world.detach(attachment);
    world.attach(&eni, &world.b, 1);
    assert_fine(&fabric.settle().await);
    assert_eq!(world.a.place.device(eni.mac.0), None);
    assert_eq!(world.b.place.device(eni.mac.0).unwrap().name, "eth1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_device_that_is_there_by_another_name_is_a_port_and_stays() {
    if not_root("adopt") {
        return;
    }
    let world = World::new();
    let eni = world.eni(&world.a, 0);
    let mac = eni.mac.0;
    let link = pair(&world.router, "cable", &world.a.place, "ens5", mac);
    let device = world.a.place.device(mac).unwrap();
    let mut kernel = world.a.place.netlink();
    kernel.change_link(device.index, &LinkChange::up()).unwrap();
    let network = IpNetwork::new(eni.primary.into(), 24).unwrap();
    kernel
        .add_address(&Address::global(device.index, network))
        .unwrap();
    let fabric = world.try_start().await;
    assert_fine(&fabric.problems());
    let links = kernel.links().unwrap();
    let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
    assert_eq!(names, ["lo", "ens5"]);

    let primary = world.primary(&world.b);
    let socket = world.b.place.socket((primary, 0).into());
    let at = socket.local_addr().unwrap();
    let source = IpAddr::from(eni.primary);
    assert_eq!(
        arrives(&socket, |packet| send(&world.a.place, "ens5", source, at, packet)),
        source
    );
    world.a.place.hold("ens5", "10.0.1.99");
    is_dropped(&fabric, Some(&socket), STRANGER, |packet| {
        send(&world.a.place, "ens5", ip("10.0.1.99"), at, packet);
    });

    assert_fine(&fabric.stop());
    let mut router = world.router.netlink();
    assert_eq!(router.link_named("cable").unwrap().unwrap().index, link.index);
    let mut addresses = router.addresses(Some(link.index)).unwrap();
    addresses.retain(|address| address.network.is_ipv4());
    assert_eq!(addresses, []);
    assert_eq!(router.routes(&RouteFilter::made_by(214)).unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_cannot_be_is_a_problem_until_it_can_and_the_others_are_there() {
    if not_root("problems") {
        return;
    }
    let world = World::new();
    // Of the first one's MAC address, and to nowhere near the router.
    let elsewhere = TestNamespace::new("elsewhere");
    let mac = world.eni(&world.a, 0).mac.0;
    let astray = pair(&elsewhere, "cable", &world.a.place, "ens5", mac);
    // The name that the second one's shall have.
    let taken = NewLink::new("eth0", NewLinkKind::Bridge);
    let taken = world.b.place.netlink().create_link(&taken).unwrap();
    let fabric = world.try_start().await;
    let told = |problems: &[Problem]| -> Vec<String> { problems.iter().map(ToString::to_string).collect() };
    let (first, second) = (world.eni(&world.a, 0).id, world.eni(&world.b, 0).id);
    let expected = [
        format!("ens5 has the MAC address of {first}, and does not lead to the router"),
        format!("device of {second}"),
    ];
    assert_eq!(told(&fabric.problems()), expected);
    assert!(world.c.place.device(world.eni(&world.c, 0).mac.0).unwrap().up);

    elsewhere.netlink().delete_link(astray.index).unwrap();
    world.b.place.netlink().delete_link(taken.index).unwrap();
    // Without anything happening in the cloud.
    wait_for(|| fabric.problems().is_empty().then_some(()), "no problems");
    for node in world.nodes() {
        assert_eq!(node.place.device(world.eni(node, 0).mac.0).unwrap().name, "eth0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vpc_that_is_not_there_has_no_fabric() {
    if not_root("no vpc") {
        return;
    }
    let router = TestNamespace::new("router");
    let place = Place {
        vpc: VpcId::from("vpc-0"),
        router: router.namespace.clone(),
        nodes: BTreeMap::new(),
        internet: vec![Ipv4Addr::new(198, 51, 100, 1).into()],
    };
    let error = Fabric::start(&Cloud::new(7), place).await.err().expect("refused");
    assert_eq!(
        error.to_string(),
        "look at the VPC: InvalidVpcID.NotFound: The vpc ID 'vpc-0' does not exist"
    );
    let links = router.netlink().links().unwrap();
    assert_eq!(links.len(), 1, "{links:?}");
}
