//! Pods of one node and the program between them: what passes by the node's stack, what must not, and that neither is
//! lost when the program comes or goes. Needs root; real packets in network namespaces.

mod privileged {
    use std::io::{Read as _, Write as _};
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::path::PathBuf;
    use std::time::Duration;

    use ebpf::abi::pods::Hop;
    use ebpf::fast_path::Origin;
    use ebpf::{Attachment, FastPath, fast_path};
    use netlink::Kernel;
    use tests::bpffs::Bpffs;
    use tests::topology::{Host, connect};
    use tests::wait;

    const SOON: Duration = Duration::from_secs(10);
    const HOUR: Duration = Duration::from_secs(3600);

    const CLIENT: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(10, 244, 1, 2)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 2)),
    ];
    const SERVER: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(10, 244, 2, 3)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 2, 0, 0, 0, 0, 3)),
    ];
    const PORT: u16 = 8080;
    const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

    /// A node with a client's and a server's pod.
    struct World {
        node: Host,
        client: Host,
        server: Host,
        bpffs: Bpffs,
    }

    impl World {
        fn build(label: &str) -> Option<Self> {
            if !tests::privileged(&format!("fast path: {label}")) {
                return None;
            }
            let node = Host::new(label).expect("a node");
            for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
                node.set(setting, "1").expect("forwarding");
            }
            let client = pod(&node, "client", CLIENT);
            let server = pod(&node, "server", SERVER);
            for address in SERVER {
                let listener = server.run(|| TcpListener::bind((address, PORT)));
                let listener = listener.expect("entered").expect("listens");
                std::thread::spawn(move || serve(&listener));
            }
            let bpffs = Bpffs::mount(label).expect("a BPF file system");
            let world = Self {
                node,
                client,
                server,
                bpffs,
            };
            // What passes through the stack is counted: by connection, in both directions.
            world.nft("add table inet cwt");
            world.nft("add counter inet cwt forwarded");
            world.nft("add chain inet cwt forward { type filter hook forward priority 0; }");
            world.nft("add rule inet cwt forward meta l4proto tcp counter name forwarded");
            Some(world)
        }

        fn pin_dir(&self) -> PathBuf {
            self.bpffs.path().join("pins")
        }

        /// The program at both pods' devices.
        fn open(&self) -> (FastPath, [Attachment; 2]) {
            let work = || {
                let mut path = FastPath::open(&self.pin_dir()).expect("the program");
                path.renew(HOUR).expect("written");
                for (device, pod, addresses) in
                    [("client", &self.client, CLIENT), ("server", &self.server, SERVER)]
                {
                    let entry = self.entry(device, pod);
                    for address in addresses {
                        path.pods.insert(address.into(), entry).expect("written");
                    }
                }
                let attached = ["client", "server"].map(|device| {
                    path.ensure_attached(device, Origin::Pod)
                        .expect("attached")
                        .expect("it is there")
                });
                (path, attached)
            };
            self.node.run(work).expect("entered")
        }

        fn entry(&self, device: &str, pod: &Host) -> Hop {
            let link = |host: &Host, name: &str| {
                let found = host.netlink().expect("netlink").link_named(name);
                found.expect("readable").expect("a device")
            };
            let (near, far) = (link(&self.node, device), link(pod, "eth0"));
            Hop {
                ifindex: near.index,
                mtu: far.mtu,
                there: far.mac.expect("a MAC address"),
                here: near.mac.expect("a MAC address"),
            }
        }

        #[track_caller]
        fn nft(&self, rule: &str) -> String {
            nft(&self.node, rule)
        }

        /// TCP packets that the stack forwarded since the last time that this was asked.
        fn forwarded(&self) -> u64 {
            packets(&self.nft("reset counter inet cwt forwarded"))
        }

        fn counted(&self, name: &str) -> u64 {
            let counters = fast_path::counters(&self.pin_dir()).expect("readable");
            let counters = counters.expect("the program was there");
            let found = counters.into_iter().find(|(counter, _)| *counter == name);
            found.expect("a counter of that name").1
        }

        fn connect(&self, to: impl Into<SocketAddr>) -> TcpStream {
            let to = to.into();
            let stream = self.client.run(|| TcpStream::connect_timeout(&to, SOON));
            let stream = stream.expect("entered").expect("connected");
            stream.set_read_timeout(Some(SOON)).expect("a timeout");
            stream
        }

        /// A connection of that source port.
        fn connect_from(&self, port: u16, to: SocketAddr) -> TcpStream {
            use nix::sys::socket::{
                self, AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrStorage, sockopt,
            };
            let IpAddr::V4(own) = CLIENT[0] else {
                unreachable!()
            };
            let work = || {
                let socket = socket::socket(
                    AddressFamily::Inet,
                    SockType::Stream,
                    SockFlag::SOCK_CLOEXEC,
                    None,
                );
                let socket = socket.expect("a socket");
                socket::setsockopt(&socket, sockopt::ReuseAddr, &true).expect("set");
                let own: SockaddrIn = std::net::SocketAddrV4::new(own, port).into();
                socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &own).expect("bound");
                let stream: TcpStream = socket.into();
                socket::connect(
                    std::os::fd::AsRawFd::as_raw_fd(&stream),
                    &SockaddrStorage::from(to),
                )
                .expect("connected");
                stream.set_read_timeout(Some(SOON)).expect("a timeout");
                stream
            };
            self.client.run(work).expect("entered")
        }
    }

    #[track_caller]
    fn nft(host: &Host, rule: &str) -> String {
        let output = host.command("nft", &[rule]).expect("nft runs");
        assert!(output.status.success(), "nft {rule}: {}", output.stderr);
        output.stdout
    }

    #[track_caller]
    fn ip(host: &Host, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = host.command("ip", &words).expect("ip runs");
        assert!(output.status.success(), "ip {line}: {}", output.stderr);
    }

    /// What a counter says that was listed.
    fn packets(listed: &str) -> u64 {
        let packets = listed.split_once("packets ").expect("a counter").1;
        let packets = packets.split_whitespace().next().expect("a number");
        packets.parse().expect("a number")
    }

    fn pod(node: &Host, label: &str, addresses: [IpAddr; 2]) -> Host {
        let host = Host::new(label).expect("a pod");
        connect((node, label), (&host, "eth0")).expect("a cable");
        for address in addresses {
            let (prefix, gateway, nodad) = match address {
                IpAddr::V4(_) => (32, "169.254.1.1", ""),
                IpAddr::V6(_) => (128, "fe80::1", "nodad"),
            };
            let gateway_prefix = if address.is_ipv4() { 32 } else { 64 };
            ip(
                node,
                &format!("address add {gateway}/{gateway_prefix} dev {label} {nodad}"),
            );
            ip(node, &format!("route add {address}/{prefix} dev {label}"));
            ip(&host, &format!("address add {address}/{prefix} dev eth0 {nodad}"));
            if address.is_ipv4() {
                ip(&host, &format!("route add {gateway} dev eth0"));
            }
            let family = if address.is_ipv4() { "-4" } else { "-6" };
            ip(
                &host,
                &format!("{family} route add default via {gateway} dev eth0"),
            );
        }
        host
    }

    /// Sends back what comes.
    fn serve(listener: &TcpListener) {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut reader = stream.try_clone().expect("a second handle");
                let mut writer = stream;
                let _ = std::io::copy(&mut reader, &mut writer); // its end is the client's
            });
        }
    }

    #[track_caller]
    fn exchange(stream: &mut TcpStream) {
        let mut answer = [0; 4];
        stream.write_all(b"ping").expect("sent");
        stream.read_exact(&mut answer).expect("answered");
        assert_eq!(&answer, b"ping");
    }

    #[test]
    fn a_connection_between_pods_passes_by_the_stack_in_both_families_and_whole() {
        let Some(world) = World::build("whole") else {
            return;
        };
        let (path, attached) = world.open();
        assert_eq!(attached, [Attachment::Made; 2]);
        // The server sees what a router would have made of it.
        for rule in [
            "add table inet cwt",
            "add counter inet cwt hop",
            "add chain inet cwt input { type filter hook input priority 0; }",
            "add rule inet cwt input ip ttl 63 counter name hop",
            "add rule inet cwt input ip6 hoplimit 63 counter name hop",
            "add rule inet cwt input meta l4proto tcp ip ttl != 63 drop",
            "add rule inet cwt input meta l4proto tcp ip6 hoplimit != 63 drop",
        ] {
            nft(&world.server, rule);
        }
        let sent: Vec<u8> = (0..4_000_000_u32).map(|number| (number % 251) as u8).collect();
        for server in SERVER {
            let before = world.counted("given");
            let mut stream = world.connect((server, PORT));
            exchange(&mut stream);
            let mut reader = stream.try_clone().expect("a second handle");
            let received = std::thread::scope(|scope| {
                let reading = scope.spawn(move || {
                    let mut received = Vec::new();
                    reader.read_to_end(&mut received).expect("all of it");
                    received
                });
                stream.write_all(&sent).expect("sent");
                stream.shutdown(std::net::Shutdown::Write).expect("ended");
                reading.join().expect("no panic")
            });
            assert!(received == sent, "{server}: what came back is not what was sent");
            assert!(world.counted("given") > before + 20, "{server}");
        }
        assert_eq!(world.forwarded(), 0, "nothing of it went through the stack");
        drop(path);
    }

    #[test]
    fn what_the_rules_translated_and_what_is_no_connection_goes_through_the_stack() {
        let Some(world) = World::build("residual") else {
            return;
        };
        world.nft("add chain inet cwt prerouting { type nat hook prerouting priority -100; }");
        let (IpAddr::V4(server), client) = (SERVER[0], CLIENT[0]) else {
            unreachable!()
        };
        world.nft(&format!(
            "add rule inet cwt prerouting ip daddr {SERVICE} tcp dport 80 dnat ip to {server}:{PORT}"
        ));
        let (_path, _) = world.open();
        let mut translated = world.connect((SERVICE, 80));
        exchange(&mut translated);
        assert_eq!(
            world.counted("given"),
            0,
            "the client would not know the answer's source"
        );
        assert!(world.forwarded() > 4);

        // The same ports first from pod to pod, then by the Service: what is noted of the former connection, which
        // ended in order, must not take the answers of the latter.
        let mut direct = world.connect_from(40_000, (server, PORT).into());
        exchange(&mut direct);
        direct.shutdown(std::net::Shutdown::Write).expect("ended");
        assert_eq!(direct.read(&mut [0]).expect("the server ends it too"), 0);
        drop(direct);
        assert!(world.counted("given") > 8);
        // Who gets an answer from where it did not ask answers there.
        let to_server =
            format!("add rule inet cwt output ip daddr {server} meta l4proto tcp counter name direct");
        for rule in [
            "add table inet cwt",
            "add counter inet cwt direct",
            "add chain inet cwt output { type filter hook output priority 0; }",
            &to_server,
        ] {
            nft(&world.client, rule);
        }
        let mut again = world.connect_from(40_000, (SERVICE, 80).into());
        exchange(&mut again);
        assert_eq!(packets(&nft(&world.client, "list counter inet cwt direct")), 0);

        // A datagram and its answer.
        let ends = [(&world.client, client), (&world.server, SERVER[0])].map(|(host, address)| {
            let socket = host.run(|| UdpSocket::bind((address, 9000)));
            let socket = socket.expect("entered").expect("bound");
            socket.set_read_timeout(Some(SOON)).expect("a timeout");
            socket
        });
        let before = world.counted("given");
        let mut datagram = [0; 4];
        ends[0].send_to(b"ping", (server, 9000)).expect("sent");
        let (_, from) = ends[1].recv_from(&mut datagram).expect("received");
        assert_eq!(from, (client, 9000).into());
        ends[1].send_to(b"pong", from).expect("sent");
        ends[0].recv_from(&mut datagram).expect("received");
        assert_eq!((&datagram, world.counted("given")), (b"pong", before));
    }

    #[test]
    fn connections_live_on_when_the_program_comes_and_goes_and_a_new_owner_keeps_it() {
        let Some(world) = World::build("comes-goes") else {
            return;
        };
        let mut older = world.connect((SERVER[0], PORT));
        exchange(&mut older);
        let (path, _) = world.open();
        exchange(&mut older);
        assert_eq!(world.counted("given"), 0, "it did not begin here");
        let mut newer = world.connect((SERVER[0], PORT));
        exchange(&mut newer);
        world.forwarded();
        // The owner's death changes nothing.
        drop(path);
        exchange(&mut newer);
        assert_eq!(world.forwarded(), 0);
        let (mut path, attached) = world.open();
        assert_eq!(attached, [Attachment::Kept; 2]);
        exchange(&mut newer);
        assert_eq!(world.forwarded(), 0);
        // A device that is not kept loses the program.
        let kept = ["client".to_owned()].into();
        let detached = world.node.run(|| path.detach_others(&kept));
        assert_eq!(detached.expect("entered").expect("detached"), 1);
        // A link whose pin is gone goes in the kernel's own time.
        wait::until("answers go through the stack", SOON, || {
            exchange(&mut newer);
            match world.forwarded() {
                0 => Err("none was forwarded"),
                _ => Ok(()),
            }
        });
        FastPath::remove(&world.pin_dir()).expect("removed");
        drop(path);
        exchange(&mut newer);
        exchange(&mut older);
        assert!(fast_path::counters(&world.pin_dir()).expect("readable").is_none());
    }

    #[test]
    fn connections_begin_in_the_stack_when_nobody_looks_after_the_path_any_more() {
        let Some(world) = World::build("lease") else {
            return;
        };
        let (mut path, _) = world.open();
        let mut older = world.connect((SERVER[0], PORT));
        exchange(&mut older);
        world.forwarded();
        path.renew(Duration::ZERO).expect("written");
        let given = world.counted("given");
        let mut newer = world.connect((SERVER[0], PORT));
        exchange(&mut newer);
        assert!(world.forwarded() > 2);
        assert!(world.counted("no_lease") > 0);
        assert_eq!(world.counted("given"), given);
        // What has begun goes on.
        exchange(&mut older);
        assert!(world.counted("given") > given);
        // A device that is gone is no failure.
        let gone = world.node.run(|| path.ensure_attached("gone", Origin::Pod));
        assert_eq!(gone.expect("entered").expect("asked"), None);
    }

    #[test]
    fn what_the_stack_must_answer_to_reaches_it() {
        let Some(world) = World::build("stack") else {
            return;
        };
        let (mut path, _) = world.open();
        // An address that is not the pod's.
        let foreign = Ipv4Addr::new(10, 244, 1, 9);
        world
            .client
            .add_address("eth0", format!("{foreign}/32").parse().expect("an address"))
            .expect("added");
        ip(&world.node, "route add 10.244.1.9/32 dev client");
        ip(
            &world.client,
            "route replace default via 169.254.1.1 src 10.244.1.9",
        );
        let mut stream = world.connect((SERVER[0], PORT));
        exchange(&mut stream);
        assert_eq!(stream.local_addr().expect("an address").ip(), IpAddr::V4(foreign));
        assert!(world.counted("other_source") > 0);
        assert_eq!(world.counted("given"), 0);
        ip(
            &world.client,
            "route replace default via 169.254.1.1 src 10.244.1.2",
        );

        // A pod that takes less than is sent.
        let mut entry = world.entry("server", &world.server);
        entry.mtu = 600;
        path.pods.insert(SERVER[0].into(), entry).expect("written");
        let mut stream = world.connect((SERVER[0], PORT));
        stream.write_all(&[7; 1400]).expect("sent");
        stream.read_exact(&mut [0; 1400]).expect("answered");
        assert!(world.counted("too_big") > 0);

        // The last hop: the stack says so.
        world
            .client
            .set("net/ipv4/ip_default_ttl", "1")
            .expect("a setting of the namespace");
        let to = SocketAddr::from((SERVER[0], PORT));
        let refused = world.client.run(|| TcpStream::connect_timeout(&to, SOON));
        let error = refused.expect("entered").expect_err("no hop is left");
        assert_eq!(error.raw_os_error(), Some(nix::libc::EHOSTUNREACH), "{error}");
        assert!(world.counted("last_hop") > 0);
    }
}
