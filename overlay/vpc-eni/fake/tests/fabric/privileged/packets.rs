//! What passes, and what is dropped and counted.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use fake_vpc::fabric::Drops;
use netlink::{Kernel, Route, sysctl};
use vpc_eni::ec2::Amount;

use super::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_an_interface_owns_passes_between_nodes_and_to_the_internet() {
    if not_root("own addresses") {
        return;
    }
    let world = World::new();
    let fabric = world.start().await;
    let mut held: BTreeMap<&str, Vec<IpAddr>> = BTreeMap::new();
    for (label, node) in [("a", &world.a), ("b", &world.b), ("c", &world.c)] {
        let mut addresses = kinds(&world, &world.eni(node, 0));
        for address in &addresses {
            node.place.hold("eth0", &address.to_string());
        }
        addresses.push(world.primary(node));
        held.insert(label, addresses);
    }
    assert_fine(&fabric.settle().await);
    for (from, node) in [("a", &world.a), ("c", &world.c)] {
        for (to, other) in [("b", &world.b), ("c", &world.c), ("a", &world.a)] {
            for (source, destination) in held[from].iter().zip(&held[to]).filter(|_| from != to) {
                let socket = other.place.socket((*destination, 0).into());
                let at = socket.local_addr().unwrap();
                let seen = arrives(&socket, |packet| send(&node.place, "eth0", *source, at, packet));
                assert_eq!(seen, *source, "{from} to {to}, {destination}");
            }
        }
        for source in &held[from] {
            let mut internet = INTERNET.map(ip).into_iter();
            let internet = internet
                .find(|address| address.is_ipv4() == source.is_ipv4())
                .unwrap();
            let socket = wait_for(|| fabric.listen((internet, 0).into()).ok(), "the internet");
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let at = socket.local_addr().unwrap();
            let seen = arrives(&socket, |packet| send(&node.place, "eth0", *source, at, packet));
            assert_eq!(seen, *source, "{from} to the internet");
            // And the internet answers.
            let near = node.place.socket((*source, 0).into());
            let at = near.local_addr().unwrap();
            let answered = arrives(&near, |packet| {
                socket.send_to(packet, at).expect("sent");
            });
            assert_eq!(answered, internet);
        }
    }
    assert_eq!(fabric.drops().unwrap(), Drops::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_interface_owns_comes_by_its_device_though_nobody_there_answers_for_it() {
    if not_root("delivery") {
        return;
    }
    let world = World::new();
    let second = world.make();
    world.attach(&second, &world.b, 1);
    let addresses = kinds(&world, &second);
    let fabric = world.start().await;
    let device = world.b.place.device(second.mac.0).unwrap();
    // Nor has it an address of its own on the link.
    let none = format!("net/ipv6/conf/{}/addr_gen_mode", device.name);
    let set = world.b.place.namespace.run(|| sysctl::write(&none, "1"));
    set.unwrap().unwrap();
    use_device(&world.b.place, &device);
    let ours = kinds(&world, &world.eni(&world.a, 0));
    assert_fine(&fabric.settle().await);
    for (source, to) in ours.iter().zip(addresses) {
        world.a.place.hold("eth0", &source.to_string());
        // No address is on the device itself, so that the node answers for none there.
        world.b.place.hold("eth0", &to.to_string());
        let quiet = format!("net/ipv4/conf/{}/arp_ignore", device.name);
        let set = world.b.place.namespace.run(|| sysctl::write(&quiet, "1"));
        set.unwrap().unwrap();
        let socket = world.b.place.socket((to, 0).into());
        use_only(&socket, &device.name);
        let at = socket.local_addr().unwrap();
        let seen = arrives(&socket, |packet| {
            send(&world.a.place, "eth0", *source, at, packet)
        });
        assert_eq!(seen, *source, "to {to}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_the_interface_does_not_own_is_dropped_and_counted() {
    if not_root("strangers") {
        return;
    }
    let world = World::new();
    let second = world.make();
    world.attach(&second, &world.a, 1);
    let fabric = world.start().await;
    use_device(&world.a.place, &world.a.place.device(second.mac.0).unwrap());
    let theirs = kinds(&world, &world.eni(&world.b, 0));
    let ours = kinds(&world, &world.eni(&world.a, 0));
    assert_fine(&fabric.settle().await);
    let (v4, v6) = (world.primary(&world.c), ip("2001:db8:ffff::1"));
    let socket = world.c.place.socket((v4, 0).into());
    let socket_v6 = wait_for(|| fabric.listen((v6, 0).into()).ok(), "the internet");
    let of_second = IpAddr::from(second.secondary[0]);
    let rows = [
        ("eth0", theirs[0], false),
        ("eth0", theirs[1], false),
        ("eth0", theirs[3], false),
        ("eth0", ip("10.0.1.200"), false),
        ("eth0", ip("192.0.2.7"), false),
        ("eth0", ip("2001:db8:0:1:ffff::7"), false),
        ("eth0", ours[0], true),
        // An address of the node's by the wrong of its interfaces.
        ("eth1", ours[0], false),
        ("eth0", of_second, false),
        ("eth1", of_second, true),
    ];
    for (device, source, passes) in rows {
        world.a.place.hold("eth0", &source.to_string());
        let socket = if source.is_ipv4() { &socket } else { &socket_v6 };
        let at = socket.local_addr().unwrap();
        let sends = |packet: &[u8]| send(&world.a.place, device, source, at, packet);
        if passes {
            assert_eq!(arrives(socket, sends), source, "{source} by {device}");
        } else {
            is_dropped(&fabric, Some(socket), STRANGER, sends);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_nobody_owns_is_dropped_and_counted() {
    if not_root("nobodys") {
        return;
    }
    let world = World::new();
    let fabric = world.start().await;
    let source = kinds(&world, &world.eni(&world.a, 0))[3];
    world.a.place.hold("eth0", &source.to_string());
    assert_fine(&fabric.settle().await);
    // The router may have ways to elsewhere: they are no ways to what is nobody's.
    let mut kernel = world.router.netlink();
    let out = kernel.link_named("vpc-internet").unwrap().unwrap().index;
    for anywhere in ["0.0.0.0/0", "::/0"] {
        let route = Route::on_link(anywhere.parse().unwrap(), out, 3);
        kernel.replace_route(&route).unwrap();
    }
    for (address, is_routed) in [
        ("192.0.2.1", true),
        ("10.0.1.200", false),
        ("10.0.77.1", false),
        ("2001:db8:1::1", true),
        ("2001:db8:0:2:3::1", false),
    ] {
        let route = kernel.route_to(ip(address)).unwrap();
        let leaves = route.is_some_and(|route| route.link == Some(out));
        assert_eq!(leaves, is_routed, "{address}");
    }
    let primary = world.primary(&world.a);
    let rows = [
        (primary, ip("10.0.2.200")),
        // In no subnet.
        (primary, ip("10.0.77.1")),
        (source, ip("2001:db8:0:2:3::1")),
    ];
    for (source, to) in rows {
        is_dropped(&fabric, None, NOBODYS, |packet| {
            send(&world.a.place, "eth0", source, (to, 9).into(), packet);
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_passes_from_when_it_is_assigned_until_it_is_unassigned() {
    if not_root("assigned") {
        return;
    }
    let world = World::new();
    let fabric = world.start().await;
    let primary = world.primary(&world.b);
    let socket = world.b.place.socket((primary, 0).into());
    let at = socket.local_addr().unwrap();
    let eni = world.eni(&world.a, 0).id;
    for amount in [Amount::Addresses(1), Amount::Prefixes(1)] {
        let addresses = world.assign(&eni, amount);
        let block = addresses.blocks().next().unwrap();
        let source = block.ip();
        world.a.place.hold("eth0", &source.to_string());
        let sends = |packet: &[u8]| send(&world.a.place, "eth0", source, at, packet);
        // Without being asked to look.
        assert_eq!(arrives(&socket, sends), source);
        world.cloud.take_addresses(&eni, &addresses).unwrap();
        assert_fine(&fabric.settle().await);
        is_dropped(&fabric, Some(&socket), STRANGER, sends);
        is_dropped(&fabric, None, NOBODYS, |packet| {
            send(
                &world.c.place,
                "eth0",
                world.primary(&world.c),
                (source, 9).into(),
                packet,
            );
        });
    }
}
