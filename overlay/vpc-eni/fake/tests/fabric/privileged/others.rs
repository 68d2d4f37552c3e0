//! What others have in the namespace of the router.

use fake_vpc::Fabric;
use fake_vpc::fabric::Drops;
use netlink::nft::{BaseChain, Chain, Family, Layout, Nft, Rule, Table};
use netlink::{Address, Kernel, Link, LinkChange, Route, RouteFilter, sysctl};

use super::world::*;

/// What is in the router's namespace and is none of the fabric's, with the way from a machine `outside`.
struct Others {
    outside: TestNamespace,
    uplink: Link,
}

impl Others {
    const OUTSIDE: &str = "192.0.2.2";

    fn new(world: &World) -> Self {
        let outside = TestNamespace::new("outside");
        let uplink = pair(&world.router, "uplink", &outside, "up", [2, 0, 0, 0, 0, 9]);
        let mut router = world.router.netlink();
        let mut kernel = outside.netlink();
        let device = kernel.link_named("up").unwrap().unwrap();
        for (kernel, index, address) in [
            (&mut router, uplink.index, "192.0.2.1/24"),
            (&mut kernel, device.index, "192.0.2.2/24"),
        ] {
            kernel.change_link(index, &LinkChange::up()).unwrap();
            kernel
                .add_address(&Address::global(index, address.parse().unwrap()))
                .unwrap();
        }
        let gateway = ip("192.0.2.1");
        kernel
            .replace_route(&Route::via(
                "0.0.0.0/0".parse().unwrap(),
                gateway,
                device.index,
                3,
            ))
            .unwrap();
        for (destination, protocol) in [("0.0.0.0/0", 3), ("10.0.0.0/8", 4), ("203.0.113.0/24", 4)] {
            let route = Route::via(
                destination.parse().unwrap(),
                ip(Self::OUTSIDE),
                uplink.index,
                protocol,
            );
            router.replace_route(&route).unwrap();
        }
        // Of the fabric's protocol, and in another table than its routes are.
        let elsewhere = Route {
            table: 77,
            ..Route::via(
                "10.0.1.0/24".parse().unwrap(),
                ip(Self::OUTSIDE),
                uplink.index,
                214,
            )
        };
        router.replace_route(&elsewhere).unwrap();
        let others = Self { outside, uplink };
        others.in_router(world, || {
            sysctl::write("net/ipv4/conf/uplink/forwarding", "1").unwrap();
            let mut layout = Layout::new(Table::new(Family::Ip, "somebodys"));
            layout.add_chain(
                Chain::base("prerouting", BaseChain::PREROUTING_RAW),
                [Rule::new("all that comes").count().accept()],
            );
            Nft::open().unwrap().ensure(&layout).unwrap();
        });
        others
    }

    fn in_router<T: Send>(&self, world: &World, work: impl FnOnce() -> T + Send) -> T {
        world.router.namespace.run(work).unwrap()
    }

    /// All of it, as it reads, but for what is counted.
    fn read(&self, world: &World) -> impl PartialEq + std::fmt::Debug + use<> {
        let mut kernel = world.router.netlink();
        let mut link = kernel.link_at(self.uplink.index).unwrap();
        link.iter_mut().for_each(|link| link.running = false);
        let mut addresses = kernel.addresses(Some(self.uplink.index)).unwrap();
        addresses.retain(|address| address.network.is_ipv4());
        let mut routes = kernel.routes(&RouteFilter::default()).unwrap();
        // What the kernel itself makes has protocol 2.
        routes.retain(|route| route.link == Some(self.uplink.index) && route.protocol != 2);
        let settings = self.in_router(world, || {
            let forwarding = ["uplink", "all", "default"].map(|place| {
                ["ipv4", "ipv6"]
                    .map(|family| sysctl::read(&format!("net/{family}/conf/{place}/forwarding")).unwrap())
            });
            let settings = ["rp_filter", "proxy_arp", "send_redirects"]
                .map(|setting| sysctl::read(&format!("net/ipv4/conf/uplink/{setting}")).unwrap());
            (forwarding, settings)
        });
        let rules = self.in_router(world, || {
            let mut nft = Nft::open().unwrap();
            let rules = nft.rules(&Table::new(Family::Ip, "somebodys")).unwrap();
            rules.into_iter().map(|rule| rule.chain).collect::<Vec<_>>()
        });
        (link, addresses, routes, settings, rules)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_have_in_the_routers_namespace_is_neither_touched_nor_filtered() {
    if not_root("others") {
        return;
    }
    let world = World::new();
    let others = Others::new(&world);
    let before = others.read(&world);
    let fabric = world.start().await;
    assert_eq!(others.read(&world), before, "started");

    // Packets of others, whatever address of the VPC they are from or to, are none of the fabric's.
    let primary = world.primary(&world.a);
    let socket = world.a.place.socket((primary, 0).into());
    let at = socket.local_addr().unwrap();
    for source in [Others::OUTSIDE, "10.0.1.222"] {
        others.outside.hold("up", source);
        let seen = arrives(&socket, |packet| {
            send(&others.outside, "up", ip(source), at, packet)
        });
        assert_eq!(seen, ip(source));
    }
    let socket = others.outside.socket((ip(Others::OUTSIDE), 0).into());
    let at = socket.local_addr().unwrap();
    let seen = arrives(&socket, |packet| {
        send(&world.a.place, "eth0", primary, at, packet)
    });
    assert_eq!(seen, primary);
    assert_eq!(fabric.drops().unwrap(), Drops::default());
    is_dropped(&fabric, Some(&socket), STRANGER, |packet| {
        world.a.place.hold("eth0", "10.0.1.200");
        send(&world.a.place, "eth0", ip("10.0.1.200"), at, packet);
    });

    fabric.abandon();
    assert_eq!(others.read(&world), before, "abandoned");
    assert_fine(&Fabric::remove(&world.router.namespace));
    assert_eq!(others.read(&world), before, "removed");
    let fabric = world.start().await;
    assert_fine(&fabric.stop());
    assert_eq!(others.read(&world), before, "stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_of_somebody_elses_to_the_vpc_stays_and_is_told() {
    if not_root("routes of others") {
        return;
    }
    let world = World::new();
    let others = Others::new(&world);
    let mut kernel = world.router.netlink();
    let primary = world.primary(&world.a);
    for destination in [
        "10.0.0.0/16".to_owned(),
        format!("{primary}/32"),
        "2001:db8:0:1::/64".to_owned(),
    ] {
        let route = Route::on_link(destination.parse().unwrap(), others.uplink.index, 4);
        kernel.replace_route(&route).unwrap();
    }
    let before = others.read(&world);
    let fabric = world.try_start().await;
    let told: Vec<String> = fabric.problems().iter().map(ToString::to_string).collect();
    let expected = ["10.0.0.0/16", &format!("{primary}/32"), "2001:db8:0:1::/64"]
        .map(|route| format!("the router has a route to {route} that is not the fabric's"));
    assert_eq!(told, expected);
    assert_eq!(others.read(&world), before);
    assert_fine(&fabric.stop());
    assert_eq!(others.read(&world), before);
}
