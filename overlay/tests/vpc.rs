//! A node of an AWS VPC with a pod of each of its two interfaces, and a router that takes from an interface only packets
//! from its own addresses. Needs root.

mod privileged {
    use std::collections::BTreeMap;
    use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
    use std::path::PathBuf;
    use std::thread::JoinHandle;
    use std::time::Duration;

    use cni_plugin::wire::Sides;
    use ipnetwork::IpNetwork;
    use model::wiring::{ROUTE_PROTOCOL, Wishes};
    use model::{MacAddr, Mtu, Removal};
    use netlink::rule::Rule;
    use netlink::{Kernel, LinkChange, NewLink, NewLinkKind, Route, RouteFilter, VethPeer, sysctl};
    use overlay::pods::{Attachment, AttachmentKey, Block, Growth, PodNetwork, Pool};
    use overlay::uninstall::{Places, Remembered, uninstall};
    use overlay::vpc::{Config, Interface, Interfaces, Random, Snat, Status, Ways};
    use tests::topology::{Host, connect};
    use tests::wait;
    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    const SOON: Duration = Duration::from_secs(20);
    const SILENCE: Duration = Duration::from_millis(400);

    /// The node's address, and places in the VPC, out of it, and out of it where pods keep their addresses.
    const NODE: &str = "10.0.0.5";
    const IN_VPC: &str = "10.0.9.1";
    const OUTSIDE: &str = "198.51.100.1";
    const EXCLUDED: &str = "192.0.2.1";

    /// Pods of the first and of the second interface.
    const FIRST: &str = "10.0.0.17";
    const SECOND: &str = "10.0.1.17";

    const ANY: &str = "0.0.0.0";

    const PORT: u16 = 7000;
    const NODE_PORT: u16 = 30080;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn network(text: &str) -> IpNetwork {
        text.parse().expect("a network")
    }

    #[track_caller]
    fn command(host: &Host, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = host.command(words[0], &words[1..]).expect("it is installed");
        assert!(output.status.success(), "{line}: {output:?}");
        output.stdout
    }

    /// The node and its VPC. Threads end before namespaces.
    struct Vpc {
        ways: watch::Sender<Ways>,
        status: watch::Receiver<Status>,
        shutdown: CancellationToken,
        thread: Option<JoinHandle<()>>,
        pods: PodNetwork,
        directory: PathBuf,
        node: Host,
        router: Host,
    }

    impl Vpc {
        /// `None` without root.
        fn new(label: &str) -> Option<Self> {
            if !tests::privileged(&format!("vpc {label}")) {
                return None;
            }
            let router = Host::new(&format!("{label}-router")).expect("a namespace");
            let node = Host::new(&format!("{label}-node")).expect("a namespace");
            build_router(&router, &node);
            for (setting, value) in [
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv4/conf/all/rp_filter", "0"),
                // As Amazon Linux has it: a packet must be answered by the way that it came.
                ("net/ipv4/conf/eth0/rp_filter", "1"),
                ("net/ipv4/conf/eth1/rp_filter", "1"),
            ] {
                node.set(setting, value).expect("settable");
            }
            node.add_address("eth0", network("10.0.0.5/24")).expect("added");
            command(&node, "ip route add default via 10.0.0.1");
            command(&node, "ip link set eth1 down");

            let directory = std::env::temp_dir().join(format!("cwt-vpc-{label}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&directory);
            let pods = PodNetwork::open(&directory).expect("a log");
            pods.serve([network("10.0.0.0/23")].into_iter().collect(), Mtu(1500));
            let (ways, told) = watch::channel(ways_of(&node));
            let (sender, status) = watch::channel(Status::default());
            let shutdown = CancellationToken::new();
            let thread = {
                let (namespace, pods, shutdown) = (node.namespace().clone(), pods.clone(), shutdown.clone());
                std::thread::spawn(move || {
                    namespace.enter().expect("enter the node");
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                    let config = Config { anti_spoofing: true };
                    let served = overlay::vpc::run(config, told, pods, sender, shutdown);
                    runtime
                        .expect("runtime")
                        .block_on(served)
                        .expect("it runs to its shutdown");
                })
            };
            Some(Self {
                ways,
                status,
                shutdown,
                thread: Some(thread),
                pods,
                directory,
                node,
                router,
            })
        }

        #[track_caller]
        fn await_status(&self, what: &str, is_so: impl Fn(&Status) -> bool) {
            wait::until_value(what, SOON, || self.status.borrow().clone(), is_so);
        }

        /// Ready, with nothing wrong and the plan of the last ways.
        #[track_caller]
        fn await_good(&self) {
            self.await_status("all is well", |status| status.ready && status.problems.is_empty());
        }

        /// A pod with that address, wired as the plugin does.
        fn add_pod(&self, address: &str) -> Host {
            let pod = Host::new("pod").expect("a namespace");
            let attachment = Attachment {
                key: key(address),
                netns: pod.path(),
                wishes: Wishes {
                    ips: vec![ip(address)],
                    ..Wishes::default()
                },
                ..Attachment::default()
            };
            let plan = self.pods.add(&attachment).expect("the address is free");
            let wired = self.node.run(|| Sides::open(pod.namespace())?.apply(&plan));
            wired.expect("entered").expect("wired");
            pod
        }

        fn our_rules(&self) -> Vec<Rule> {
            let mut kernel = self.node.netlink().expect("a socket");
            let rules = kernel.all_rules().expect("readable").into_iter();
            let mut ours: Vec<Rule> = rules.filter(|rule| rule.protocol == ROUTE_PROTOCOL).collect();
            ours.sort();
            ours
        }

        fn our_routes(&self) -> Vec<Route> {
            let mut kernel = self.node.netlink().expect("a socket");
            let mut routes = kernel
                .routes(&RouteFilter::made_by(ROUTE_PROTOCOL))
                .expect("readable");
            routes.sort();
            routes
        }

        fn end(&mut self) {
            self.shutdown.cancel();
            let ended = self.thread.take().map(JoinHandle::join);
            if ended.is_some_and(|ended| ended.is_err()) && !std::thread::panicking() {
                panic!("the node's thread panicked");
            }
        }
    }

    impl Drop for Vpc {
        fn drop(&mut self) {
            self.end();
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }

    fn key(address: &str) -> AttachmentKey {
        AttachmentKey {
            container_id: address.to_owned(),
            ifname: "eth0".to_owned(),
        }
    }

    /// Two cables, gateways, the world, and who may send from where.
    fn build_router(router: &Host, node: &Host) {
        for (near, far, gateway) in [("r0", "eth0", "10.0.0.1/24"), ("r1", "eth1", "10.0.1.1/24")] {
            connect((router, near), (node, far)).expect("a cable");
            router.add_address(near, network(gateway)).expect("added");
        }
        for place in [IN_VPC, OUTSIDE, EXCLUDED] {
            router
                .add_address("lo", IpNetwork::from(ip(place)))
                .expect("added");
        }
        router.set("net/ipv4/ip_forward", "1").expect("settable");
        router.set("net/ipv4/conf/all/rp_filter", "0").expect("settable");
        // The VPC knows which interface has an address; nobody asks for it on a wire.
        command(router, "ip route add 10.0.0.16/28 via 10.0.0.5 dev r0");
        command(router, "ip route add 10.0.1.16/28 via 10.0.1.5 dev r1 onlink");
        for rule in [
            "add table ip vpc",
            "add chain ip vpc in { type filter hook prerouting priority -400 ; }",
            "add rule ip vpc in iifname r0 ip saddr != { 10.0.0.5, 10.0.0.16/28 } counter drop",
            "add rule ip vpc in iifname r1 ip saddr != { 10.0.1.5, 10.0.1.16/28 } counter drop",
            // What is between pods of the node is not the VPC's.
            "add rule ip vpc in ip saddr 10.0.0.16/28 ip daddr 10.0.1.16/28 counter drop",
            "add rule ip vpc in ip saddr 10.0.1.16/28 ip daddr 10.0.0.16/28 counter drop",
        ] {
            let words: Vec<&str> = rule.split(' ').collect();
            let output = router.command("nft", &words).expect("nft runs");
            assert!(output.status.success(), "{rule}: {output:?}");
        }
    }

    fn mac_of(node: &Host, device: &str) -> MacAddr {
        let link = node
            .netlink()
            .expect("a socket")
            .link_named(device)
            .expect("readable");
        MacAddr(link.expect("it is there").mac.expect("a MAC address"))
    }

    fn interface(mac: MacAddr, number: u8) -> Interface {
        Interface {
            mac,
            address: Ipv4Addr::new(10, 0, number, 5),
            subnet: format!("10.0.{number}.0/24").parse().expect("a network"),
            device_index: u32::from(number),
            blocks: vec![network(&format!("10.0.{number}.16/28"))],
        }
    }

    fn ways_of(node: &Host) -> Ways {
        Ways {
            interfaces: Some(Interfaces {
                primary: interface(mac_of(node, "eth0"), 0),
                others: vec![interface(mac_of(node, "eth1"), 1)],
            }),
            vpc_networks: vec![network("10.0.0.0/16")],
            external_services: Vec::new(),
            snat: Snat::Here {
                excluded: vec![network("192.0.2.0/24")],
                random: Random::Prng,
            },
            node_ports: true,
            mtu: Mtu(1500),
        }
    }

    /// Asks from a host's address, and answers at `server`: the address that the server saw. `at`: where the client sends
    /// to.
    fn talk(
        (from, client): (&Host, &str),
        to: &Host,
        server: SocketAddr,
        at: SocketAddr,
    ) -> Result<IpAddr, String> {
        let bind = |host: &Host, address: SocketAddr| {
            let socket = host.run(|| UdpSocket::bind(address)).expect("entered");
            let socket = socket.map_err(|error| format!("bind {address}: {error}"))?;
            socket.set_read_timeout(Some(SILENCE)).expect("settable");
            Ok::<_, String>(socket)
        };
        let listening = bind(to, server)?;
        let client = bind(from, SocketAddr::new(ip(client), 0))?;
        let mut buffer = [0; 16];
        // The answer comes by a connection that is known; and then the question does, too.
        let mut seen = Err("nothing".to_owned());
        for _ in 0..2 {
            client
                .send_to(b"who", at)
                .map_err(|error| format!("ask: {error}"))?;
            let (_, source) = listening
                .recv_from(&mut buffer)
                .map_err(|error| format!("not asked: {error}"))?;
            listening
                .send_to(b"you", source)
                .map_err(|error| format!("answer: {error}"))?;
            let (_, answered) = client
                .recv_from(&mut buffer)
                .map_err(|error| format!("not answered: {error}"))?;
            if answered != at {
                return Err(format!("answered by {answered}"));
            }
            seen = Ok(source.ip());
        }
        seen
    }

    /// As whom a pod arrives somewhere.
    #[track_caller]
    fn check(vpc: &Vpc, pod: &Host, place: &str, expected: &str) {
        let at = SocketAddr::new(ip(place), PORT);
        let arrives = || match talk((pod, ANY), &vpc.router, at, at) {
            Ok(source) if source == ip(expected) => Ok(()),
            other => Err(other),
        };
        wait::until(&format!("{place} is asked by {expected}"), SOON, arrives);
    }

    #[test]
    fn packets_leave_by_the_interface_that_has_their_source() {
        let Some(vpc) = Vpc::new("leave") else { return };
        vpc.await_good();
        let (first, second) = (vpc.add_pod(FIRST), vpc.add_pod(SECOND));
        vpc.await_status("the pods are planned", |status| {
            status.plan.as_ref().is_some_and(|plan| plan.rules.len() == 5)
        });
        let rows = [
            (&first, IN_VPC, FIRST),
            (&second, IN_VPC, SECOND),
            (&first, OUTSIDE, NODE),
            (&second, OUTSIDE, NODE),
            (&first, EXCLUDED, FIRST),
            (&second, EXCLUDED, SECOND),
        ];
        for (pod, place, expected) in rows {
            check(&vpc, pod, place, expected);
        }
        for (from, to, own, other) in [(&first, &second, FIRST, SECOND), (&second, &first, SECOND, FIRST)] {
            let at = SocketAddr::new(ip(other), PORT);
            let seen = wait::until("pods of one node", SOON, || talk((from, ANY), to, at, at));
            assert_eq!(seen, ip(own));
        }

        // Who knows the pod by its own address out of the VPC, as over a peering, is answered by it.
        for (pod, own) in [(&first, FIRST), (&second, SECOND)] {
            let at = SocketAddr::new(ip(own), PORT);
            let seen = wait::until("a pod's own address", SOON, || {
                talk((&vpc.router, OUTSIDE), pod, at, at)
            });
            assert_eq!(seen, ip(OUTSIDE));
        }

        vpc.ways.send_modify(|ways| ways.snat = Snat::External);
        for (pod, place, expected) in [
            (&first, OUTSIDE, FIRST),
            (&second, OUTSIDE, SECOND),
            (&second, IN_VPC, SECOND),
        ] {
            check(&vpc, pod, place, expected);
        }
        vpc.await_good();
    }

    #[test]
    fn the_answers_of_node_ports_leave_by_the_primary_interface() {
        let Some(vpc) = Vpc::new("ports") else { return };
        let pods = [(FIRST, vpc.add_pod(FIRST)), (SECOND, vpc.add_pod(SECOND))];
        vpc.await_good();
        // As a proxy does it.
        command(&vpc.node, "nft add table ip proxy");
        let chain = "add chain ip proxy in { type nat hook prerouting priority -100 ; }";
        let words: Vec<&str> = chain.split(' ').collect();
        assert!(
            vpc.node
                .command("nft", &words)
                .expect("nft runs")
                .status
                .success()
        );
        let snats = [ways_of(&vpc.node).snat, Snat::External];
        for snat in snats {
            vpc.ways.send_modify(|ways| ways.snat = snat.clone());
            for (address, pod) in &pods {
                command(&vpc.node, "nft flush chain ip proxy in");
                let rule = format!("nft add rule ip proxy in udp dport {NODE_PORT} dnat to {address}:{PORT}");
                command(&vpc.node, &rule);
                let (server, at) = (
                    SocketAddr::new(ip(address), PORT),
                    SocketAddr::new(ip(NODE), NODE_PORT),
                );
                let what = format!("{address} by a port of the node, {snat:?}");
                wait::until(&what, SOON, || talk((&vpc.router, OUTSIDE), pod, server, at));
            }
        }
        // Whom a pod asks for a Service out of the VPC knows the node alone, although the Service is in it.
        command(&vpc.node, "nft flush chain ip proxy in");
        command(
            &vpc.node,
            &format!("nft add rule ip proxy in ip daddr 10.0.200.1 dnat to {OUTSIDE}"),
        );
        vpc.ways.send_modify(|ways| *ways = ways_of(&vpc.node));
        let (server, at) = (
            SocketAddr::new(ip(OUTSIDE), PORT),
            SocketAddr::new(ip("10.0.200.1"), PORT),
        );
        for (_, pod) in &pods {
            let arrives = || match talk((pod, ANY), &vpc.router, server, at) {
                Ok(source) if source == ip(NODE) => Ok(()),
                other => Err(other),
            };
            wait::until("a Service whose endpoint is out of the VPC", SOON, arrives);
        }
    }

    #[test]
    fn what_somebody_takes_comes_back_and_what_a_pod_had_goes_with_it() {
        let Some(vpc) = Vpc::new("drift") else { return };
        let theirs = "rule add from 10.0.1.99 lookup 2 priority 1536 protocol 3";
        command(&vpc.node, &format!("ip {theirs}"));
        vpc.await_good();
        let first = vpc.add_pod(FIRST);
        check(&vpc, &first, OUTSIDE, NODE);
        let number = || vpc.our_rules().len();
        wait::until_value("the rules of one", SOON, number, |rules| *rules == 3);
        let without = (vpc.our_rules(), vpc.our_routes());
        let second = vpc.add_pod(SECOND);
        check(&vpc, &second, OUTSIDE, NODE);
        wait::until_value("the rules of both", SOON, number, |rules| *rules == 5);
        let good = (vpc.our_rules(), vpc.our_routes());
        let damages = [
            "ip rule del to 10.0.1.17 lookup main",
            "ip rule del from 10.0.1.17 lookup 2",
            "ip rule del fwmark 0x80/0x80",
            "ip route flush table 2",
            "ip route replace default dev eth0 table 2",
            "ip route del 10.0.1.17/32",
            "ip address flush dev eth1",
            "ip link set eth1 down",
            "nft delete table ip causeway-vpc",
        ];
        for damage in damages {
            command(&vpc.node, damage);
            check(&vpc, &second, OUTSIDE, NODE);
            check(&vpc, &second, IN_VPC, SECOND);
            wait::until_value(
                damage,
                SOON,
                || (vpc.our_rules(), vpc.our_routes()),
                |now| *now == good,
            );
        }
        let strict = "net/ipv4/conf/eth0/rp_filter";
        vpc.node.set(strict, "1").expect("settable");
        let read = || {
            vpc.node
                .run(|| sysctl::read(strict))
                .expect("entered")
                .expect("readable")
        };
        wait::until_value("answers out of the world are taken", SOON, read, |value| {
            value == "2"
        });

        // As a DEL does it: the device first.
        let device = overlay::pods::wiring::ifname_by_key(&key(SECOND));
        command(&vpc.node, &format!("ip link del {device}"));
        vpc.pods.remove(&key(SECOND)).expect("written");
        let now = || (vpc.our_rules(), vpc.our_routes());
        wait::until_value("what the pod had is gone", SOON, now, |now| *now == without);
        assert!(
            command(&vpc.node, "ip rule").contains("10.0.1.99"),
            "it is not ours"
        );
    }

    /// The MAC address of a third interface.
    const THIRD: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x77]);

    fn attach_third(vpc: &Vpc) {
        vpc.ways.send_modify(|ways| {
            if let Some(interfaces) = &mut ways.interfaces {
                interfaces.others.push(interface(THIRD, 2));
            }
        });
    }

    /// Its device; the index.
    fn plug_third(vpc: &Vpc) -> u32 {
        let mut kernel = vpc.node.netlink().expect("a socket");
        let peer = VethPeer {
            name: "r2".to_owned(),
            mac: None,
            mtu: None,
            namespace: Some(vpc.router.namespace().clone()),
        };
        let mut device = NewLink::new("eth2", NewLinkKind::Veth(peer));
        device.mac = Some(THIRD.0);
        let device = kernel.create_link(&device).expect("made");
        let mut router = vpc.router.netlink().expect("a socket");
        let far = router.link_named("r2").expect("readable").expect("there");
        router.change_link(far.index, &LinkChange::up()).expect("up");
        device.index
    }

    #[test]
    fn a_pod_is_answered_for_once_its_rules_are_there_and_its_interface_leads_on() {
        let Some(vpc) = Vpc::new("led") else { return };
        vpc.await_good();
        let block = |number: u32| Block {
            network: network(&format!("10.0.{number}.16/28")),
            device_index: number,
        };
        vpc.pods.serve_pool(Pool {
            blocks: (0..3).map(block).collect(),
            mtu: Mtu(1500),
            cool_down: Duration::ZERO,
            growth: Growth::Possible,
        });
        let record = |address: &str| {
            let wishes = Wishes {
                ips: vec![ip(address)],
                ..Wishes::default()
            };
            let attachment = Attachment {
                key: key(address),
                wishes,
                ..Attachment::default()
            };
            vpc.pods.add(&attachment).expect("the address is free");
        };
        let led = |address: &str, patience| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let key = key(address);
            let led = runtime
                .expect("a runtime")
                .block_on(vpc.pods.await_led(&key, patience));
            led.map_err(|error| error.to_string())
        };
        // Nothing is awaited: they are there when it is answered.
        let rules = |address: &str| {
            let of_pod = Some(IpNetwork::from(ip(address)));
            let ours = vpc.our_rules().into_iter();
            let of_pod = ours.filter(|rule| [rule.source, rule.destination].contains(&of_pod));
            of_pod.map(|rule| rule.to_string()).collect::<Vec<_>>()
        };
        let expected = |address: &str, table: u32| {
            let to = format!("512: to {address}/32 table 254 protocol 213");
            let from = format!("1536: from {address}/32 table {table} protocol 213");
            vec![to, from]
        };
        for (address, wanted) in [
            (FIRST, expected(FIRST, 1)[..1].to_vec()),
            (SECOND, expected(SECOND, 2)),
        ] {
            record(address);
            assert_eq!(led(address, SOON), Ok(()));
            assert_eq!(rules(address), wanted);
        }

        let third = "10.0.2.17";
        let refused = |reason: &str| Err(format!("the kernel does not lead the pod's packets: {reason}"));
        record(third);
        let unknown = refused("10.0.2.17 is of no interface that is served");
        assert_eq!(led(third, SILENCE), unknown);
        assert!(vpc.pods.list().iter().all(|pod| pod.key != key(third)));
        attach_third(&vpc);
        vpc.await_status("its device is missed", |status| !status.problems.is_empty());
        record(third);
        let without = refused("table 3 of interface 10.0.2.5 has no route to its gateway yet");
        assert_eq!(led(third, SILENCE), without);
        record(third);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| led(third, SOON).map(|()| rules(third)));
            plug_third(&vpc);
            assert_eq!(waits.join().expect("no panic"), Ok(expected(third, 3)));
        });
    }

    #[test]
    fn an_interface_is_served_as_soon_as_its_device_comes() {
        let Some(vpc) = Vpc::new("hotplug") else { return };
        vpc.await_good();
        attach_third(&vpc);
        let problem = format!(
            "interface {THIRD}, 10.0.2.5: there is no such device (yet?), what its pods send is lost"
        );
        vpc.await_status("it is told", |status| status.problems == [problem.clone()]);
        let index = plug_third(&vpc);
        vpc.await_good();
        let routes: Vec<String> = vpc
            .our_routes()
            .into_iter()
            .filter(|route| route.table == 3)
            .map(|route| route.to_string())
            .collect();
        let expected = [
            format!("0.0.0.0/0 via 10.0.2.1 link {index} table 3 protocol 213"),
            format!("10.0.2.1/32 link {index} table 3 protocol 213"),
        ];
        assert_eq!(routes, expected);
    }

    #[test]
    fn a_node_that_leaves_keeps_nothing_of_it() {
        let Some(mut vpc) = Vpc::new("uninstall") else {
            return;
        };
        let _second = vpc.add_pod(SECOND);
        vpc.await_good();
        wait::until_value("all rules", SOON, || vpc.our_rules().len(), |rules| *rules == 4);
        vpc.end();
        let places = Places {
            state_dir: vpc.directory.clone(),
            pin_dir: vpc.directory.join("pins"),
            subnet_env: None,
        };
        let remove = || uninstall(&places, Some(&vpc.pods), &Remembered::default());
        let removal = vpc.node.run(remove).expect("entered");
        let expected = Removal {
            removed: BTreeMap::from([
                ("pods", 1),
                ("rules and routes of interfaces", 6),
                // Of anti-spoofing each version of IP has its own.
                ("nftables tables", 3),
                ("files", 1),
            ]),
            ..Removal::default()
        };
        assert_eq!(removal, expected);
        assert_eq!((vpc.our_rules(), vpc.our_routes()), (Vec::new(), Vec::new()));
        assert!(!command(&vpc.node, "nft list tables").contains("causeway"));
        assert_eq!(vpc.node.run(remove).expect("entered"), Removal::default());
    }
}
