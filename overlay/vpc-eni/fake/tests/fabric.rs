//! The fabric of the fake VPC: real packets between network namespaces. Needs root; says so when it is not.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod privileged {
    use std::collections::BTreeMap;
    use std::ffi::OsString;
    use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use fake_vpc::fabric::{Drops, Place, Problem};
    use fake_vpc::request::{Reply, Request};
    use fake_vpc::{Cloud, Fabric};
    use ipnetwork::IpNetwork;
    use netlink::nft::{BaseChain, Chain, Element, Family, Layout, Nft, Rule, Table, read::RuleInfo};
    use netlink::{
        Address, Kernel, Link, LinkChange, Namespace, Neighbour, Netlink, NewLink, NewLinkKind, Route,
        RouteFilter, VethPeer, sysctl,
    };
    use nix::sys::socket::{setsockopt, sockopt};
    use vpc_eni::ec2::{
        Addresses, Amount, AttachmentId, Eni, EniId, InstanceId, NewEni, SubnetId, Tags, VpcId,
    };

    const INTERNET: [&str; 2] = ["198.51.100.1", "2001:db8:ffff::1"];
    const PATIENCE: Duration = Duration::from_secs(10);

    /// A named namespace, removed on drop.
    struct TestNamespace {
        name: String,
        namespace: Namespace,
    }

    impl TestNamespace {
        fn new(label: &str) -> Self {
            static COUNT: AtomicUsize = AtomicUsize::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("cwt-vpc-{}-{number}-{label}", std::process::id());
            let namespace = Namespace::create(&name).expect("make a namespace");
            let set = namespace.run(|| {
                // Otherwise a new namespace has what the machine has.
                for place in ["all", "default"] {
                    sysctl::write(&format!("net/ipv4/conf/{place}/rp_filter"), "0").expect("writable");
                }
            });
            set.expect("entered");
            Self { name, namespace }
        }

        fn netlink(&self) -> Netlink {
            Netlink::open_in(&self.namespace).expect("open a socket in it")
        }

        fn device(&self, mac: [u8; 6]) -> Option<Link> {
            let links = self.netlink().links().expect("list");
            links.into_iter().find(|link| link.mac == Some(mac))
        }

        /// The node has the address, as a pod of it would.
        fn hold(&self, device: &str, address: &str) {
            let mut kernel = self.netlink();
            let link = kernel
                .link_named(device)
                .expect("get")
                .expect("it is there")
                .index;
            let address = Address {
                no_dad: true,
                ..Address::global(link, IpNetwork::from(ip(address)))
            };
            kernel.add_address(&address).expect("add");
        }

        fn socket(&self, at: SocketAddr) -> UdpSocket {
            let bound = || {
                // IPv6 has the address's route later than the address (`addrconf_dad_work`).
                wait_for(|| UdpSocket::bind(at).ok(), "an address to bind to")
            };
            let socket = self.namespace.run(bound).expect("entered");
            socket
                .set_read_timeout(Some(Duration::from_millis(200)))
                .expect("set");
            socket
        }
    }

    impl Drop for TestNamespace {
        fn drop(&mut self) {
            if let Err(error) = Namespace::delete(&self.name) {
                eprintln!("left behind: {error}");
            }
        }
    }

    fn not_root(test: &str) -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            eprintln!("SKIPPED {test}: needs root");
        }
        !root
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[track_caller]
    fn wait_for<T>(mut condition: impl FnMut() -> Option<T>, what: &str) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(value) = condition() {
                return value;
            }
            assert!(Instant::now() < deadline, "waited for {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Nodes `a` and `b` in one subnet, `c` in another, and their router.
    struct World {
        cloud: Cloud,
        vpc: VpcId,
        subnet: SubnetId,
        router: TestNamespace,
        a: Node,
        b: Node,
        c: Node,
    }

    struct Node {
        instance: InstanceId,
        place: TestNamespace,
    }

    impl World {
        fn new() -> Self {
            let cloud = Cloud::new(7);
            let vpc = cloud.make_vpc(&["10.0.0.0/16".parse().unwrap()]).unwrap();
            let subnet = |number: u8| {
                let network = format!("10.0.{number}.0/24").parse().unwrap();
                let network_v6 = format!("2001:db8:0:{number}::/64").parse().unwrap();
                cloud
                    .make_dual_subnet(&vpc, network, network_v6, "eu-west-1a", Tags::new())
                    .unwrap()
            };
            let (one, two) = (subnet(1), subnet(2));
            let node = |label: &str, subnet: &SubnetId| Node {
                instance: cloud.make_instance("m5.large", subnet, &[]).unwrap(),
                place: TestNamespace::new(label),
            };
            Self {
                a: node("a", &one),
                b: node("b", &one),
                c: node("c", &two),
                router: TestNamespace::new("router"),
                subnet: one,
                vpc,
                cloud,
            }
        }

        fn nodes(&self) -> [&Node; 3] {
            [&self.a, &self.b, &self.c]
        }

        async fn try_start(&self) -> Fabric {
            self.start_with(INTERNET.map(ip).to_vec()).await
        }

        async fn start_with(&self, internet: Vec<IpAddr>) -> Fabric {
            let nodes = self.nodes().into_iter();
            let place = Place {
                vpc: self.vpc.clone(),
                router: self.router.namespace.clone(),
                nodes: nodes
                    .map(|node| (node.instance.clone(), node.place.namespace.clone()))
                    .collect(),
                internet,
            };
            Fabric::start(&self.cloud, place).await.expect("started")
        }

        async fn start(&self) -> Fabric {
            let fabric = self.try_start().await;
            assert_fine(&fabric.problems());
            for node in self.nodes() {
                route_v6(&self.router, &node.place, "eth0");
            }
            fabric
        }

        fn eni(&self, node: &Node, device_index: u32) -> Eni {
            let attached = self.cloud.interfaces_of(&node.instance).into_iter();
            let is_it = |eni: &Eni| eni.attachment.as_ref().unwrap().device_index == device_index;
            attached.map(|interface| interface.eni).find(is_it).unwrap()
        }

        fn primary(&self, node: &Node) -> IpAddr {
            self.eni(node, 0).primary.into()
        }

        fn assign(&self, eni: &EniId, amount: Amount) -> Addresses {
            let eni = eni.clone();
            let request = match amount {
                Amount::PrefixesV6(prefixes) => Request::AssignIpv6Addresses { eni, prefixes },
                amount => Request::AssignPrivateIpAddresses { eni, amount },
            };
            match self.cloud.meddle(&request).unwrap() {
                Reply::Assigned { addresses, .. } => addresses,
                other => panic!("{other:?}"),
            }
        }

        fn make(&self) -> Eni {
            let new = NewEni {
                subnet: self.subnet.clone(),
                groups: Vec::new(),
                description: String::new(),
                tags: Tags::new(),
                amount: Amount::Addresses(1),
                client_token: String::new(),
            };
            match self.cloud.meddle(&Request::CreateNetworkInterface(new)).unwrap() {
                Reply::Created { interface, .. } => interface.eni,
                other => panic!("{other:?}"),
            }
        }

        fn attach(&self, eni: &Eni, node: &Node, device_index: u32) -> AttachmentId {
            let request = Request::AttachNetworkInterface {
                eni: eni.id.clone(),
                instance: node.instance.clone(),
                device_index,
                card_index: 0,
            };
            match self.cloud.meddle(&request).unwrap() {
                Reply::Attached { attachment, .. } => attachment,
                other => panic!("{other:?}"),
            }
        }

        fn detach(&self, attachment: AttachmentId) {
            let request = Request::DetachNetworkInterface { attachment };
            self.cloud.meddle(&request).unwrap();
        }
    }

    #[track_caller]
    fn assert_fine(problems: &[Problem]) {
        assert!(problems.is_empty(), "{problems:#?}");
    }

    /// The way out in IPv6, which the fabric leaves to the node. It knows the router's MAC address, so that it does not
    /// ask for it, which were packets, too, and from the same source.
    fn route_v6(router: &TestNamespace, place: &TestNamespace, device: &str) {
        let mut kernel = place.netlink();
        let device = kernel.link_named(device).expect("get").expect("it is there");
        let port = router
            .netlink()
            .link_at(device.parent.unwrap())
            .expect("get")
            .unwrap();
        let gateway = ip("fe80::1");
        let route = Route::via("::/0".parse().unwrap(), gateway, device.index, 3);
        kernel.replace_route(&route).expect("replace");
        let neighbour = Neighbour::permanent(device.index, gateway, port.mac.unwrap());
        kernel.replace_neighbour(&neighbour).expect("replace");
    }

    /// What a node does with a device that was attached: up, and all that is sent by it goes to the gateway.
    fn use_device(place: &TestNamespace, device: &Link) {
        let mut kernel = place.netlink();
        kernel.change_link(device.index, &LinkChange::up()).expect("up");
        let route = Route {
            onlink: true,
            metric: 100,
            ..Route::via("0.0.0.0/0".parse().unwrap(), ip("10.0.1.1"), device.index, 3)
        };
        kernel.replace_route(&route).expect("replace");
    }

    /// The socket sends and receives by this device alone.
    fn use_only(socket: &UdpSocket, device: &str) {
        let device = OsString::from(device);
        setsockopt(socket, sockopt::BindToDevice, &device).expect("set");
    }

    /// A packet from an address of the node's by a device to an address where a socket is.
    fn send(from: &TestNamespace, device: &str, source: IpAddr, to: SocketAddr, packet: &[u8]) {
        let socket = from.socket((source, 0).into());
        use_only(&socket, device);
        socket.send_to(packet, to).expect("sent");
    }

    /// A packet that is like no other, as more than one of a kind may be under way.
    fn new_packet() -> Vec<u8> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        format!("packet {}", COUNT.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }

    /// Who sent a packet that is at the socket.
    fn sender_of(packet: &[u8], socket: &UdpSocket) -> Option<IpAddr> {
        let mut buffer = [0; 64];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            if buffer[..len] == *packet {
                return Some(from.ip());
            }
        }
        None
    }

    /// Who it was that a packet came from that arrives at the socket.
    #[track_caller]
    fn arrives(socket: &UdpSocket, send: impl Fn(&[u8])) -> IpAddr {
        let packet = new_packet();
        let received = || {
            send(&packet);
            sender_of(&packet, socket)
        };
        wait_for(received, "a packet")
    }

    /// That a packet is dropped, for this reason, and does not arrive at the socket.
    #[track_caller]
    fn is_dropped(fabric: &Fabric, socket: Option<&UdpSocket>, reason: Drops, send: impl Fn(&[u8])) {
        let before = fabric.drops().expect("read");
        let expected = Drops {
            of_stranger: before.of_stranger + reason.of_stranger,
            to_nobody: before.to_nobody + reason.to_nobody,
        };
        let packet = new_packet();
        send(&packet);
        let dropped = || (fabric.drops().expect("read") != before).then_some(());
        wait_for(dropped, "a drop");
        assert_eq!(fabric.drops().expect("read"), expected);
        if let Some(socket) = socket {
            socket.set_nonblocking(true).expect("set");
            assert_eq!(sender_of(&packet, socket), None);
            socket.set_nonblocking(false).expect("set");
        }
    }

    const STRANGER: Drops = Drops {
        of_stranger: 1,
        to_nobody: 0,
    };
    const NOBODYS: Drops = Drops {
        of_stranger: 0,
        to_nobody: 1,
    };

    /// Some address of each kind that an interface has.
    fn kinds(world: &World, eni: &Eni) -> Vec<IpAddr> {
        let secondary = world.assign(&eni.id, Amount::Addresses(1)).secondary[0];
        let prefix = world.assign(&eni.id, Amount::Prefixes(1)).prefixes[0];
        let prefix_v6 = world.assign(&eni.id, Amount::PrefixesV6(1)).prefixes_v6[0];
        vec![
            secondary.into(),
            prefix.network().into(),
            prefix.broadcast().into(),
            prefix_v6.iter().nth(0x1234).unwrap().into(),
        ]
    }

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

    fn sorted(mut everything: Everything) -> Everything {
        everything.routes.iter_mut().for_each(|routes| routes.sort());
        everything
    }

    fn pair(router: &TestNamespace, name: &str, node: &TestNamespace, device: &str, mac: [u8; 6]) -> Link {
        let peer = VethPeer {
            name: device.to_owned(),
            mac: Some(mac),
            mtu: None,
            namespace: Some(node.namespace.clone()),
        };
        let new = NewLink::new(name, NewLinkKind::Veth(peer));
        router.netlink().create_link(&new).expect("make")
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
        let told =
            |problems: &[Problem]| -> Vec<String> { problems.iter().map(ToString::to_string).collect() };
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
}
