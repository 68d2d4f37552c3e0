//! Fabrics that come after each other, and what they leave.

use fake_vpc::Fabric;
use netlink::nft::{Element, Family, Nft, Table, read::RuleInfo};
use netlink::{Address, Kernel, Link, Neighbour, Route, RouteFilter, sysctl};

use super::world::*;

/// All that the fabric writes, as it reads.
#[derive(Debug, PartialEq)]
struct Everything {
    links: Vec<Vec<Link>>,
    addresses: Vec<Vec<Address>>,
    routes: Vec<Vec<Route>>,
    neighbours: Vec<Vec<Neighbour>>,
    rules: Vec<RuleInfo>,
    elements: Vec<Vec<Element>>,
    forwards_v6: String,
}

impl Everything {
    fn of(world: &World) -> Self {
        let nodes = world.nodes().map(|node| &node.place);
        let mut kernels: Vec<_> = std::iter::once(&world.router)
            .chain(nodes)
            .map(TestNamespace::netlink)
            .collect();
        let mut nft = world.router.namespace.run(Nft::open).unwrap().unwrap();
        let forwards_v6 = || sysctl::read("net/ipv6/conf/all/forwarding");
        let tables = [Family::Ip, Family::Ip6].map(|family| Table::new(family, "fake-vpc"));
        let mut everything = Self {
            links: Vec::new(),
            addresses: Vec::new(),
            routes: Vec::new(),
            neighbours: Vec::new(),
            rules: Vec::new(),
            elements: Vec::new(),
            forwards_v6: world.router.namespace.run(forwards_v6).unwrap().unwrap(),
        };
        for kernel in &mut kernels {
            let mut links = kernel.links().unwrap();
            // Which the kernel sees a moment later.
            links.iter_mut().for_each(|link| link.running = false);
            everything.links.push(links);
            let mut addresses = kernel.addresses(None).unwrap();
            // The kernel's own come when it likes.
            addresses.retain(|address| address.network.is_ipv4() || address.network.prefix() == 128);
            everything.addresses.push(addresses);
            let mut routes = kernel.routes(&RouteFilter::made_by(214)).unwrap();
            routes.extend(kernel.routes(&RouteFilter::made_by(16)).unwrap());
            everything.routes.push(routes);
            let mut neighbours = kernel.neighbours(None).unwrap();
            neighbours.retain(|neighbour| neighbour.permanent);
            everything.neighbours.push(neighbours);
        }
        for table in tables {
            if !nft.has_table(&table).unwrap() {
                continue;
            }
            everything.rules.extend(nft.rules(&table).unwrap());
            for set in ["ports", "owned", "addresses"] {
                everything.elements.push(nft.elements(&table, set).unwrap());
            }
        }
        everything
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fabric_over_what_is_there_changes_nothing_and_one_that_ends_leaves_nothing() {
    if not_root("restart") {
        return;
    }
    let world = World::new();
    let bare = Everything::of(&world);
    let second = world.make();
    world.attach(&second, &world.b, 1);
    kinds(&world, &world.eni(&world.a, 0));
    let fabric = world.start().await;
    is_dropped(&fabric, None, NOBODYS, |packet| {
        let primary = world.primary(&world.a);
        send(
            &world.a.place,
            "eth0",
            primary,
            (ip("10.0.2.200"), 9).into(),
            packet,
        );
    });
    let before = Everything::of(&world);
    fabric.abandon();
    assert_eq!(Everything::of(&world), before, "nobody looks after it");
    let fabric = world.try_start().await;
    assert_fine(&fabric.problems());
    assert_eq!(Everything::of(&world), before, "another fabric");
    assert_eq!(fabric.drops().unwrap(), NOBODYS);

    // What went or came in the meantime is put right.
    let mut kernel = world.router.netlink();
    let routes = kernel.routes(&RouteFilter::made_by(214)).unwrap();
    let route = routes.into_iter().find(|route| route.gateway.is_some()).unwrap();
    kernel.delete_route(&route).unwrap();
    let stray = Route::on_link("10.0.1.222/32".parse().unwrap(), route.link.unwrap(), 214);
    kernel.replace_route(&stray).unwrap();
    assert_fine(&fabric.settle().await);
    assert_eq!(sorted(Everything::of(&world)), sorted(before));

    // And with another internet.
    fabric.abandon();
    let fabric = world.start_with(vec![ip("203.0.113.5")]).await;
    assert_fine(&fabric.problems());
    let link = kernel.link_named("vpc-internet").unwrap().unwrap();
    let mut addresses = kernel.addresses(Some(link.index)).unwrap();
    addresses.retain(|address| matches!(address.network.prefix(), 32 | 128));
    assert_eq!(addresses, [Address::global(link.index, ip("203.0.113.5").into())]);

    assert_fine(&fabric.stop());
    assert_eq!(Everything::of(&world), bare);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_fabric_left_is_removed_without_it_and_without_the_cloud() {
    if not_root("remove") {
        return;
    }
    let world = World::new();
    let bare = Everything::of(&world);
    let second = world.make();
    world.attach(&second, &world.b, 1);
    kinds(&world, &world.eni(&world.a, 0));
    world.start().await.abandon();
    assert_ne!(Everything::of(&world), bare);
    assert_fine(&Fabric::remove(&world.router.namespace));
    assert_eq!(Everything::of(&world), bare);
    assert_fine(&Fabric::remove(&world.router.namespace));
    assert_eq!(Everything::of(&world), bare, "where nothing is left");
}

fn sorted(mut everything: Everything) -> Everything {
    everything.routes.iter_mut().for_each(|routes| routes.sort());
    everything
}
