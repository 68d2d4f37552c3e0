//! Connections between pods of different nodes, past the stacks of both.

pub use privileged::await_on;

mod privileged {
    use std::collections::{BTreeMap, BTreeSet};
    use std::io::{Read as _, Write as _};
    use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
    use std::time::Duration;

    use aya::maps::{HashMap, Map, MapData};
    use ebpf::abi::pods::{ASKED, LAYOUT, PodFlow, PodFlowKey};
    use ebpf::fast_path::Origin;
    use ebpf::ruling::{Asked, Attached, Ruling};
    use ebpf::{FastPath, FastPathMaps};
    use model::IpFamily;
    use nix::sys::socket::{setsockopt, sockopt};
    use overlay::fast_path::State;
    use tests::topology::Host;
    use tests::wait;

    use crate::dual_stack::{FAMILIES, nodes, pods};
    use crate::harness::{Cluster, Node, Pod, SOON};
    use crate::wire::{Wire, checksum, octets};

    const PORT: u16 = 7003;

    /// Sends back what comes.
    fn serve(pod: &Pod) {
        for address in pod.addresses.values() {
            let listener = pod.host.run(|| TcpListener::bind((*address, PORT)));
            let listener = listener.expect("entered").expect("bound");
            std::thread::spawn(move || {
                while let Ok((mut stream, _)) = listener.accept() {
                    std::thread::spawn(move || {
                        let mut reader = stream.try_clone().expect("a second handle");
                        std::io::copy(&mut reader, &mut stream)
                    });
                }
            });
        }
    }

    #[track_caller]
    fn connect(from: &Pod, to: IpAddr) -> TcpStream {
        let stream = wait::until("a connection", SOON, || {
            let stream = from
                .host
                .run(|| TcpStream::connect_timeout(&SocketAddr::new(to, PORT), SOON));
            stream.expect("entered").map_err(|error| error.to_string())
        });
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        stream.set_write_timeout(Some(SOON)).expect("a timeout");
        stream
    }

    /// How much [`exchange`] sends each way.
    const EXCHANGED: u32 = 1 << 20;

    /// No packet holds more, however the sender cuts (`GSO_LEGACY_MAX_SIZE` of include/linux/netdevice.h).
    const LARGEST: u32 = 1 << 16;

    /// Sends a mebibyte and gets it back whole.
    #[track_caller]
    fn exchange(stream: &mut TcpStream) {
        let sent: Vec<u8> = (0..EXCHANGED).map(|number| (number % 251) as u8).collect();
        let mut reader = stream.try_clone().expect("a second handle");
        let mut received = vec![0; sent.len()];
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| reader.read_exact(&mut received));
            stream.write_all(&sent).expect("sent");
            reading.join().expect("no panic").expect("all of it");
        });
        assert!(received == sent, "what came back is not what was sent");
    }

    fn counters(cluster: &Cluster, number: usize) -> BTreeMap<&'static str, u64> {
        let counters = ebpf::fast_path::counters(&cluster.pin_dir(number)).expect("readable");
        counters.into_iter().flatten().collect()
    }

    /// Connections that pass by the stack; those that end meanwhile may be missing.
    fn connections(cluster: &Cluster, number: usize) -> BTreeSet<PodFlowKey> {
        let pin = cluster.pin_dir(number).join(format!("pods/v{LAYOUT}/POD_FLOWS"));
        let map = Map::LruHashMap(MapData::from_pin(pin).expect("it is pinned"));
        let flows = HashMap::<_, PodFlowKey, PodFlow>::try_from(map).expect("of that layout");
        let keys: Result<_, _> = flows.keys().collect();
        keys.expect("readable")
    }

    fn nft(host: &Host, rule: &str) {
        let output = host.command("nft", &[rule]).expect("nft runs");
        assert!(output.status.success(), "{rule}: {output:?}");
    }

    /// Each node has the programs at its pods' devices, at both tunnels' and at the underlay's.
    #[track_caller]
    pub fn await_on(cluster: &Cluster, nodes: &[Node<'_>], pods: &[usize]) {
        for (number, (node, pods)) in nodes.iter().zip(pods).enumerate() {
            node.await_status("the fast path is on", |status| status.fast_path == State::On);
            let links = ebpf::fast_path::links_dir(&cluster.pin_dir(number));
            let links = || std::fs::read_dir(&links).map_or(0, Iterator::count);
            wait::until_value("the programs are attached", SOON, links, |links| {
                *links == pods + 3
            });
        }
    }

    /// Two nodes on the fast path with a pod each, the second one's a server.
    #[track_caller]
    fn served(cluster: &Cluster) -> (Vec<Node<'_>>, Vec<Pod>) {
        let nodes = nodes(cluster, "vxlan");
        let pods = pods(&nodes);
        await_on(cluster, &nodes, &[1, 1]);
        serve(&pods[1]);
        (nodes, pods)
    }

    #[test]
    fn connections_between_nodes_pass_by_both_stacks_whole_and_two_hops_on() {
        let Some(cluster) = Cluster::new("far", 2) else {
            return;
        };
        let (_nodes, pods) = served(&cluster);
        // The server takes only what two routers would have made of it.
        for rule in [
            "add table inet cwt",
            "add chain inet cwt input { type filter hook input priority 0; }",
            "add rule inet cwt input meta l4proto tcp ip ttl != 62 drop",
            "add rule inet cwt input meta l4proto tcp ip6 hoplimit != 62 drop",
        ] {
            nft(&pods[1].host, rule);
        }
        for family in FAMILIES {
            let before = [0, 1].map(|number| counters(&cluster, number));
            let server = *pods[1].addresses.get(family).expect("both versions");
            let mut stream = connect(&pods[0], server);
            exchange(&mut stream);
            let after = [0, 1].map(|number| counters(&cluster, number));
            for (before, after) in before.iter().zip(&after) {
                let more = |name: &str| after[name] - before[name];
                let given = more("given") + more("unwrapped");
                // The client's node sends, the server's gives, and the reverse for what comes back. What is cut up on its
                // way is the tunnel's device's.
                assert!(
                    more("sent") > 0 && more("wrapped") > 0 && given > 20 && more("unwrapped") > 0,
                    "{family}: {before:?} {after:?}"
                );
                assert_eq!(more("other_flow"), 0, "{family}: {before:?} {after:?}");
            }
        }
    }

    #[test]
    fn connections_live_on_when_one_node_or_both_leave_the_fast_path_and_come_back() {
        let Some(cluster) = Cluster::new("leave", 2) else {
            return;
        };
        let (nodes, pods) = served(&cluster);
        let server = pods[1].address;
        let mut old = connect(&pods[0], server);
        exchange(&mut old);
        for leaving in [vec![0], vec![1], vec![0, 1]] {
            for number in &leaving {
                let host = nodes[*number].host;
                nft(host, "add table inet firewall");
                nft(
                    host,
                    "add chain inet firewall forward { type filter hook forward priority 0; }",
                );
                nft(host, "add rule inet firewall forward ct state invalid drop");
                nodes[*number].await_status("the rules are seen", |status| {
                    matches!(status.fast_path, State::Refused(_))
                });
            }
            exchange(&mut old);
            let mut new = connect(&pods[0], server);
            exchange(&mut new);
            for number in &leaving {
                nft(nodes[*number].host, "delete table inet firewall");
            }
            await_on(&cluster, &nodes, &[1, 1]);
            exchange(&mut old);
            exchange(&mut new);
            exchange(&mut connect(&pods[0], server));
        }
    }

    /// Nothing is sent, counted or noted when the program at a pod's device is asked.
    #[test]
    fn the_attached_program_says_what_it_would_do_and_leaves_no_trace() {
        let Some(cluster) = Cluster::new("asked", 2) else {
            return;
        };
        let (_nodes, pods) = served(&cluster);
        let maps = FastPathMaps::open(&cluster.pin_dir(0)).expect("readable");
        let maps = maps.expect("they are pinned");
        let mut wires = [cluster.host(0), &pods[0].host, &pods[1].host].map(Wire::of);
        let ask = |asked: &Asked| {
            let ruling = cluster.host(0).run(|| {
                let device = nix::net::if_::if_indextoname(asked.device).expect("a device");
                let device = device.to_str().expect("a name");
                let attached = Attached::at(device, &maps).expect("the kernel tells");
                attached.expect("it is attached").ask(asked)
            });
            ruling.expect("entered").expect("it was run")
        };
        let ends =
            |family| [0, 1].map(|number: usize| *pods[number].addresses.get(family).expect("both versions"));
        let sent = |wires: &mut [Wire; 3], ends: &[u8]| {
            let has = |frame: &Vec<u8>| frame.windows(ends.len()).any(|window| window == ends);
            [0, 1, 2].map(|number: usize| wires[number].seen().iter().any(has))
        };
        for family in FAMILIES {
            let [source, destination] = ends(family);
            let own = maps.pod(source).expect("readable").expect("the client");
            let remote = maps.remote(destination).expect("readable");
            let remote = remote.expect("the server's node");
            let before = (counters(&cluster, 0), connections(&cluster, 0));
            wires.iter_mut().for_each(|wire| drop(wire.seen()));
            let asked = Asked {
                device: own.ifindex,
                macs: (own.here, own.there),
                source,
                destination,
                port: PORT,
            };
            let Ruling::Sent {
                device,
                there,
                wrapping: Some(around),
            } = ask(&asked)
            else {
                panic!("{family:?}: {:?}", ask(&asked));
            };
            assert_eq!((device, there), (remote.underlay, remote.hop.there), "{family:?}");
            assert_eq!(around.destination, IpAddr::from(remote.node), "{family:?}");
            assert_eq!((around.port, around.vni), (8472, 1), "{family:?}");
            let nobody: IpAddr = match family {
                IpFamily::V4 => [198, 51, 100, 1].into(),
                IpFamily::V6 => std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
            };
            let rows = [
                (
                    Asked {
                        source: destination,
                        destination: source,
                        ..asked
                    },
                    "other_source",
                ),
                (
                    Asked {
                        macs: (own.here, own.here),
                        ..asked
                    },
                    "other_source",
                ),
                (
                    Asked {
                        destination: nobody,
                        ..asked
                    },
                    "no_pod",
                ),
                (
                    Asked {
                        macs: (own.there, own.there),
                        ..asked
                    },
                    "other_packet",
                ),
            ];
            for (asked, reason) in rows {
                assert_eq!(ask(&asked), Ruling::Stack(reason), "{family:?}: {asked:?}");
            }
            let after = (counters(&cluster, 0), connections(&cluster, 0));
            assert_eq!(after, before, "{family:?}");
            let both = [octets(source), octets(destination)].concat();
            assert_eq!(sent(&mut wires, &both), [false, false, false], "{family:?}");
        }
        // Real ones go where the program said, and all of that is seen then.
        for family in FAMILIES {
            let [source, destination] = ends(family);
            // What is full takes no more.
            wires.iter_mut().for_each(|wire| drop(wire.seen()));
            let before = (counters(&cluster, 0), connections(&cluster, 0));
            let mut stream = connect(&pods[0], destination);
            let both = [octets(source), octets(destination)].concat();
            assert_eq!(sent(&mut wires, &both), [true, true, true], "{family:?}");
            let after = (counters(&cluster, 0), connections(&cluster, 0));
            assert!(after.0["wrapped"] > before.0["wrapped"], "{after:?}");
            assert_eq!(after.1.difference(&before.1).count(), 1, "{after:?}");
            // A mark that a pod gives to what it sends is gone where the program looks: nobody else can ask.
            setsockopt(&stream, sockopt::Mark, &ASKED).expect("marked");
            exchange(&mut stream);
            let more = counters(&cluster, 0)["wrapped"] - after.0["wrapped"];
            assert!(more > u64::from(EXCHANGED / LARGEST), "{family:?}: {more}");
        }
        // A program of the same name is somebody else's.
        let host = cluster.host(0);
        let [source, _] = ends(IpFamily::V4);
        let own = maps.pod(source).expect("readable").expect("the client");
        let elsewhere = cluster.pin_dir(0).with_file_name("elsewhere");
        let mut theirs = FastPath::open(&elsewhere).expect("opened");
        let found = host.run(|| {
            let device = nix::net::if_::if_indextoname(own.ifindex).expect("a device");
            let device = device.to_str().expect("a name");
            let attached = theirs.ensure_attached(device, Origin::Pod);
            assert!(attached.expect("attached").is_some());
            let their_maps = FastPathMaps::open(&elsewhere).expect("readable");
            [&maps, &their_maps.expect("they are pinned")].map(|maps| {
                let attached = Attached::at(device, maps).expect("the kernel tells");
                let program = maps.program_at(device).expect("the kernel tells");
                (attached.map(|attached| attached.id), program)
            })
        });
        let [(ours, ours_pinned), (theirs, theirs_pinned)] = found.expect("entered");
        assert!(ours.is_some() && ours == ours_pinned, "{ours:?} {ours_pinned:?}");
        assert!(
            theirs.is_some() && theirs == theirs_pinned,
            "{theirs:?} {theirs_pinned:?}"
        );
        assert_ne!(ours, theirs);
    }

    /// What packet rules translated on the client's node: the answers must meet the connection tracking that knows of it.
    #[test]
    fn a_connection_that_rules_translate_on_its_node_is_answered_from_where_it_asked() {
        let Some(cluster) = Cluster::new("slow", 2) else {
            return;
        };
        let (nodes, pods) = served(&cluster);
        // As our own proxy's rules do it, under the name of ours: others' would switch the path off.
        let host = nodes[0].host;
        nft(host, "add table ip causeway-test");
        nft(
            host,
            "add chain ip causeway-test prerouting { type nat hook prerouting priority -100; }",
        );
        let server = pods[1].address;
        nft(
            host,
            &format!(
                "add rule ip causeway-test prerouting ip daddr 10.96.0.80 tcp dport {PORT} dnat to {server}"
            ),
        );
        let service: IpAddr = "10.96.0.80".parse().expect("an address");
        let before = counters(&cluster, 0);
        let mut stream = connect(&pods[0], service);
        exchange(&mut stream);
        let after = counters(&cluster, 0);
        for counter in ["given", "unwrapped"] {
            assert_eq!(
                after[counter], before[counter],
                "the client would not know the answer's source"
            );
        }
        // The other node sees a connection from pod to pod, which it is there.
        let after = counters(&cluster, 1);
        assert!(after["given"] + after["unwrapped"] > 20, "{after:?}");
        nft(host, "delete table ip causeway-test");
    }

    /// Somebody's rules for packets to the node, which a wrapped packet is one of.
    #[test]
    fn where_others_have_rules_for_packets_to_the_node_the_stack_unwraps_them() {
        let Some(cluster) = Cluster::new("input", 2) else {
            return;
        };
        let (nodes, pods) = served(&cluster);
        let host = nodes[1].host;
        nft(host, "add table inet firewall");
        nft(
            host,
            "add chain inet firewall input { type filter hook input priority 0; }",
        );
        nft(host, "add rule inet firewall input udp dport 8472 counter");
        let links = || {
            let pins = std::fs::read_dir(ebpf::fast_path::links_dir(&cluster.pin_dir(1)));
            pins.map_or(0, Iterator::count)
        };
        wait::until_value("the underlay's device is left alone", SOON, links, |links| {
            *links == 3
        });
        // A link whose pin is gone goes in the kernel's own time.
        wait::until("the stack unwraps", SOON, || {
            let before = counters(&cluster, 1);
            exchange(&mut connect(&pods[0], pods[1].address));
            let after = counters(&cluster, 1);
            let given = after["given"] > before["given"];
            if given && after["unwrapped"] == before["unwrapped"] {
                Ok(())
            } else {
                Err(after)
            }
        });
        assert_eq!(nodes[1].status.borrow().fast_path, State::On);
        nft(host, "delete table inet firewall");
        wait::until_value("the underlay's device is looked at", SOON, links, |links| {
            *links == 4
        });
        let before = counters(&cluster, 1)["unwrapped"];
        exchange(&mut connect(&pods[0], pods[1].address));
        assert!(counters(&cluster, 1)["unwrapped"] > before);
    }

    /// Who wants the tunnel encrypted gets it through the stack, which knows how.
    #[test]
    fn where_there_are_ipsec_policies_packets_take_the_stack() {
        let Some(cluster) = Cluster::new("ipsec", 2) else {
            return;
        };
        let (nodes, pods) = served(&cluster);
        let policy = |verb: &str| {
            let ends = "src 192.0.2.1 dst 192.0.2.2 dir out";
            let line = format!("xfrm policy {verb} {ends}");
            let output = nodes[0].host.command("ip", &line.split(' ').collect::<Vec<_>>());
            let output = output.expect("ip runs");
            assert!(output.status.success(), "{line}: {output:?}");
        };
        policy("add");
        nodes[0].await_status(
            "the policy is seen",
            |status| matches!(&status.fast_path, State::Refused(reason) if reason.contains("IPsec")),
        );
        // Its programs are gone, in the kernel's own time: nobody counts any more.
        wait::until("the stack has it", SOON, || {
            let before = counters(&cluster, 0);
            exchange(&mut connect(&pods[0], pods[1].address));
            let after = counters(&cluster, 0);
            if after == before {
                Ok(())
            } else {
                Err((before, after))
            }
        });
        policy("delete");
        await_on(&cluster, &nodes, &[1, 1]);
        let before = counters(&cluster, 0)["wrapped"];
        exchange(&mut connect(&pods[0], pods[1].address));
        assert!(counters(&cluster, 0)["wrapped"] > before);
    }

    /// How many of the tunnel's packets the LAN's switch has routed, where it is asked to count them.
    fn routed(switch: &Host) -> u64 {
        let output = switch
            .command("nft", &["list", "table", "inet", "cwt"])
            .expect("nft runs");
        let (_, rest) = output.stdout.split_once("packets ").expect("a counter");
        let (packets, _) = rest.split_once(' ').expect("a number");
        packets.parse().expect("a number")
    }

    /// Makes a router of the LAN's switch, which counts the tunnel's packets that it routes.
    #[track_caller]
    fn make_router(switch: &Host) {
        for (setting, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/br0/send_redirects", "0"),
        ] {
            switch.set(setting, value).expect("a router");
        }
        for rule in [
            "add table inet cwt",
            "add chain inet cwt forward { type filter hook forward priority 0; }",
            "add rule inet cwt forward udp dport 8472 counter",
        ] {
            nft(switch, rule);
        }
    }

    /// Changes the first node's routes to the second one.
    #[track_caller]
    fn route(cluster: &Cluster, verb: &str, how: &str) {
        let line = format!("route {verb} {}/32 {how}", cluster.lan.hosts[1].address);
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = cluster.host(0).command("ip", &words).expect("ip runs");
        assert!(output.status.success(), "{line}: {output:?}");
    }

    fn by_router(cluster: &Cluster) -> String {
        format!("via {}", cluster.lan.network.nth(1).expect("the switch's"))
    }

    /// Sends and gets back what is in one packet each way: what is cut up on its way is the tunnel's device's.
    #[track_caller]
    fn ask(stream: &mut TcpStream) {
        let mut answer = [0; 8];
        stream.write_all(b"question").expect("sent");
        stream.read_exact(&mut answer).expect("all of it");
        assert_eq!(&answer, b"question");
    }

    /// What the stream sends from the first node is wrapped by the program, and comes by the router, or not.
    #[track_caller]
    fn await_wrapped(cluster: &Cluster, stream: &mut TcpStream, what: &str, by_router: bool) {
        let counted = || (counters(cluster, 0)["wrapped"], routed(&cluster.lan.switch));
        wait::until(what, SOON, || {
            let before = counted();
            ask(stream);
            let after = counted();
            if after.0 > before.0 && (after.1 > before.1) == by_router {
                Ok(())
            } else {
                Err((before, after))
            }
        });
    }

    /// A route to the other node leads wrapped packets as it leads all others, and is asked what passes.
    #[test]
    fn wrapped_packets_go_where_the_routes_of_the_underlay_lead() {
        let Some(cluster) = Cluster::new("ways", 2) else {
            return;
        };
        let (_nodes, pods) = served(&cluster);
        make_router(&cluster.lan.switch);
        let mut stream = connect(&pods[0], pods[1].address);
        await_wrapped(&cluster, &mut stream, "straight", false);
        route(&cluster, "add", &by_router(&cluster));
        await_wrapped(&cluster, &mut stream, "by the router", true);
        route(&cluster, "delete", "");
        await_wrapped(&cluster, &mut stream, "straight again", false);
        // What a route does not take is the stack's, which tells the pod.
        route(&cluster, "add", "dev eth0 mtu 1300");
        wait::until("large packets take the stack", SOON, || {
            let before = counters(&cluster, 0)["too_big"];
            exchange(&mut connect(&pods[0], pods[1].address));
            let after = counters(&cluster, 0)["too_big"];
            if after > before { Ok(()) } else { Err(after) }
        });
        await_wrapped(&cluster, &mut stream, "small ones are wrapped", false);
    }

    #[test]
    fn where_nobody_follows_the_routes_any_more_the_program_asks_for_them() {
        let Some(cluster) = Cluster::new("alone", 2) else {
            return;
        };
        let (mut nodes, pods) = served(&cluster);
        make_router(&cluster.lan.switch);
        let mut stream = connect(&pods[0], pods[1].address);
        await_wrapped(&cluster, &mut stream, "straight", false);
        drop(nodes.remove(0));
        route(&cluster, "add", &by_router(&cluster));
        await_wrapped(&cluster, &mut stream, "straight, as it was said last", false);
        let mut path = FastPath::open(&cluster.pin_dir(0)).expect("opened");
        path.renew(Duration::ZERO).expect("the last minute is over");
        await_wrapped(&cluster, &mut stream, "by the router", true);
    }

    /// A frame of the underlay with a pod's packet in it.
    #[derive(Debug, PartialEq, Eq)]
    struct Wrapped {
        /// MAC addresses, the IP header without identification and checksum, and the rest up to the inner IP header, but for
        /// UDP's checksum.
        headers: Vec<u8>,
        /// UDP's port that it is from.
        port: u16,
        /// What the outer header says of congestion, and the inner one (RFC 3168 §5).
        congestion: [u8; 2],
        /// Where the sums are right: of an IPv4 header, and of UDP once the inner TCP has its own.
        sums: bool,
    }

    /// What the node sends to the other one's tunnel: frames with this text in them.
    fn wrapped(frames: &[Vec<u8>], family: IpFamily, text: &[u8]) -> Option<Wrapped> {
        let ip = match family {
            IpFamily::V4 => 20,
            IpFamily::V6 => 40,
        };
        let (udp, inner) = (14 + ip, 14 + ip + 8 + 8 + 14);
        let frame = frames.iter().find(|frame| {
            let port = frame.get(udp + 2..udp + 4);
            port == Some(&8472_u16.to_be_bytes()) && frame.ends_with(text)
        })?;
        let addresses = |at: usize| match family {
            IpFamily::V4 => &frame[at + 12..at + 20],
            IpFamily::V6 => &frame[at + 8..at + 40],
        };
        let pseudo = |at: usize, protocol: u8, segment: &[u8]| {
            let len = u16::try_from(segment.len()).expect("short").to_be_bytes();
            [addresses(at), &[0, protocol], &len, segment].concat()
        };
        // A device that there is none of here would sum up the inner packet.
        let mut complete = frame.clone();
        let tcp = inner + ip;
        complete[tcp + 16..tcp + 18].fill(0);
        let sum = checksum(&pseudo(inner, 6, &complete[tcp..]));
        complete[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
        let udp_is_right = checksum(&pseudo(14, 17, &complete[udp..])) == 0;
        let ip_is_right = family == IpFamily::V6 || checksum(&frame[14..udp]) == 0;
        let mut headers = frame[..inner].to_vec();
        let mut forget = |at: usize| headers[at..at + 2].fill(0);
        if family == IpFamily::V4 {
            forget(14 + 4);
            forget(14 + 10);
        }
        forget(udp + 6);
        let congestion = [14, inner].map(|at| match family {
            IpFamily::V4 => frame[at + 1] & 3,
            IpFamily::V6 => frame[at + 1] >> 4 & 3,
        });
        Some(Wrapped {
            headers,
            congestion,
            port: u16::from_be_bytes([frame[udp], frame[udp + 1]]),
            sums: udp_is_right && ip_is_right && frame[udp + 6..udp + 8] != [0, 0],
        })
    }

    /// Rules for packets of the node make the device wrap again; a connection's packets are the same on the wire.
    #[test]
    fn what_the_program_wraps_is_what_the_tunnels_device_makes_of_it() {
        let Some(cluster) = Cluster::new("wraps", 2) else {
            return;
        };
        let host = cluster.host(0);
        host.set("net/ipv4/ip_default_ttl", "33").expect("set");
        host.set("net/ipv6/conf/eth0/hop_limit", "34").expect("set");
        let (_nodes, pods) = served(&cluster);
        let mut wire = Wire::of(host);
        // As packets are, and as routers mark them that are congested.
        for (family, marked) in FAMILIES
            .into_iter()
            .flat_map(|family| [(family, false), (family, true)])
        {
            let mark = match family {
                IpFamily::V4 => "add rule inet cwt output ip ecn set ce",
                IpFamily::V6 => "add rule inet cwt output ip6 ecn set ce",
            };
            let chain = "add chain inet cwt output { type filter hook output priority 0; }";
            for rule in ["add table inet cwt", chain, mark].into_iter().filter(|_| marked) {
                nft(&pods[0].host, rule);
            }
            let server = *pods[1].addresses.get(family).expect("both versions");
            let mut stream = connect(&pods[0], server);
            let mut send = |text: &[u8], counter: &str| {
                wait::until("a packet of that kind", SOON, || {
                    wire.seen();
                    let before = counters(&cluster, 0);
                    stream.write_all(text).expect("sent");
                    let mut back = vec![0; text.len()];
                    stream.read_exact(&mut back).expect("all of it");
                    let after = counters(&cluster, 0);
                    let seen = wire.seen();
                    match wrapped(&seen, family, text) {
                        Some(packet) if after[counter] > before[counter] => Ok(packet),
                        _ => Err((before, after, seen.len())),
                    }
                })
            };
            let by_program = send(b"one text of the pod", "wrapped");
            assert!(by_program.sums, "{family}: {by_program:?}");
            // The way between the nodes may mark what is marked inside already.
            assert_eq!(by_program.congestion, if marked { [2, 3] } else { [0, 0] });
            for rule in [
                "add table inet firewall",
                "add chain inet firewall output { type filter hook output priority 0; }",
                "add rule inet firewall output udp dport 8472 counter",
            ] {
                nft(host, rule);
            }
            let by_device = send(b"the text of the pod", "sent");
            assert_eq!(by_program, by_device, "{family}");
            nft(host, "delete table inet firewall");
            send(b"one text of the pod", "wrapped");
            if marked {
                nft(&pods[0].host, "delete table inet cwt");
            }
        }
    }
}
