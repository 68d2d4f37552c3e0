//! A pod that puts ten thousand forged packets on its cable, of every kind that we know of (F51).

mod privileged {
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    use model::IpFamily;
    use netlink::{Kernel, Scope};
    use tests::wait;

    use crate::dual_stack::FAMILIES;
    use crate::harness::{Cluster, Node, Pod, SOON, await_talk_over};
    use crate::spoofing::{address, bind, dropped, nodes_address, thief_and_others, tunnelled};
    use crate::wire::{Packet, Wire, ethernet, octets};

    const ALL: usize = 10_000;

    /// In every forged frame, and nowhere else: a MAC address that nobody has.
    const FORGED: [u8; 6] = [2, 0xf0, 0x26, 0xed, 0x51, 0x51];
    /// In every honest one.
    const HONEST: [u8; 6] = [2, 0x40, 0xe5, 0x70, 0x51, 0x51];

    const PORT: u16 = 7010;
    const TUNNEL: u16 = 8472;
    const ETHERTYPE_ARP: u16 = 0x0806;
    const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

    /// Who drops a kind of forgery.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum By {
        /// The guard, which counts each.
        Guard,
        /// The node's stack, to which it means nothing.
        Stack,
    }

    struct Kind {
        what: String,
        frame: Vec<u8>,
        by: By,
    }

    /// What is on the sender's cable.
    struct Ends {
        own: [u8; 6],
        gateway: [u8; 6],
        link_local: IpAddr,
    }

    impl Ends {
        fn of(pod: &Pod) -> Self {
            let mut kernel = pod.host.netlink().expect("a socket");
            let link = kernel.link_named("eth0").expect("readable").expect("it is there");
            let neighbours = kernel.neighbours(Some(link.index)).expect("readable");
            let gateway = neighbours.iter().find(|neighbour| neighbour.permanent);
            let addresses = kernel.addresses(Some(link.index)).expect("readable");
            let link_local = addresses
                .iter()
                .find(|address| address.network.is_ipv6() && address.scope == Scope::Link);
            Self {
                own: link.mac.expect("Ethernet"),
                gateway: gateway.and_then(|gateway| gateway.mac).expect("it is known"),
                link_local: link_local.expect("IPv6 has one").network.ip(),
            }
        }

        fn to_gateway(&self, packet: &Packet) -> Vec<u8> {
            ethernet(self.gateway, self.own, packet.ethertype(), &packet.bytes())
        }
    }

    fn text(address: &str) -> IpAddr {
        address.parse().expect("an address")
    }

    /// Packets from addresses, and in frames from a MAC address, that are not the pod's.
    fn sources(family: IpFamily, ends: &Ends, [thief, near, far]: [&Pod; 3], kinds: &mut Vec<Kind>) {
        let outside = match family {
            IpFamily::V4 => text("192.0.2.7"),
            IpFamily::V6 => text("2001:db8::7"),
        };
        let own = address(thief, family);
        for to in [near, far] {
            let destination = address(to, family);
            let stolen = [near, far].map(|pod| address(pod, family));
            let stolen = stolen
                .into_iter()
                .chain([outside, nodes_address(0, family), nodes_address(1, family)])
                .filter(|stolen| *stolen != destination);
            for stolen in stolen {
                for packet in [
                    Packet::udp(stolen, destination, PORT, &FORGED),
                    Packet::syn(stolen, destination, PORT, &FORGED),
                ] {
                    kinds.push(Kind {
                        what: format!("protocol {} from {stolen} to {}", packet.protocol, to.id),
                        frame: ends.to_gateway(&packet),
                        by: By::Guard,
                    });
                }
            }
            for packet in [
                Packet::udp(own, destination, PORT, &FORGED),
                Packet::syn(own, destination, PORT, &FORGED),
            ] {
                let bytes = packet.bytes();
                kinds.push(Kind {
                    what: format!(
                        "protocol {} from another MAC address to {}",
                        packet.protocol, to.id
                    ),
                    frame: ethernet(ends.gateway, FORGED, packet.ethertype(), &bytes),
                    by: By::Guard,
                });
            }
        }
    }

    /// Packets for the pods of a node, in others that are addressed to the node itself: VXLAN, IP in IP and GRE.
    fn wrapped(
        family: IpFamily,
        ends: &Ends,
        nodes: &[Node<'_>],
        [thief, near, far]: [&Pod; 3],
        kinds: &mut Vec<Kind>,
    ) {
        let own = address(thief, family);
        for (number, (source, victim)) in [(far, near), (near, far)].into_iter().enumerate() {
            let node = nodes_address(u8::try_from(number).expect("few"), family);
            let inner = Packet::udp(address(source, family), address(victim, family), PORT, &FORGED);
            let mut push = |what: &str, packet: Packet, by| {
                kinds.push(Kind {
                    what: format!("{what} to {node}"),
                    frame: ends.to_gateway(&packet),
                    by,
                });
            };
            let vxlan = tunnelled(&nodes[number], &inner);
            push("VXLAN", Packet::udp(own, node, TUNNEL, &vxlan), By::Guard);
            // RFC 2003, RFC 2473: 4 and 41. RFC 2784 §2.1: no flags, and the type of what is inside.
            let ip_in_ip = if family == IpFamily::V4 { 4 } else { 41 };
            let gre = [&[0, 0], &inner.ethertype().to_be_bytes()[..], &inner.bytes()].concat();
            for (what, protocol, payload) in [("IP in IP", ip_in_ip, inner.bytes()), ("GRE", 47, gre)] {
                let honest = Packet::new(own, node, protocol, payload.clone());
                push(what, honest, By::Stack);
                let stolen = Packet::new(address(source, family), node, protocol, payload);
                push(&format!("{what} from {}", source.id), stolen, By::Guard);
            }
        }
    }

    /// RFC 826: who has what address, which is not asked here.
    fn arp(ends: &Ends, [_, near, far]: [&Pod; 3], kinds: &mut Vec<Kind>) {
        let claimed = [
            address(near, IpFamily::V4),
            address(far, IpFamily::V4),
            nodes_address(0, IpFamily::V4),
            text("169.254.1.1"),
        ];
        for claimed in claimed {
            for (what, operation, target) in [
                ("asks", 1_u16, text("169.254.1.1")),
                ("announces", 1, claimed),
                ("answers", 2, nodes_address(0, IpFamily::V4)),
            ] {
                let message = [
                    vec![0, 1, 8, 0, 6, 4],
                    operation.to_be_bytes().to_vec(),
                    FORGED.to_vec(),
                    octets(claimed),
                    vec![0; 6],
                    octets(target),
                ];
                kinds.push(Kind {
                    what: format!("ARP {what} as {claimed}"),
                    frame: ethernet([0xff; 6], ends.own, ETHERTYPE_ARP, &message.concat()),
                    by: By::Stack,
                });
            }
        }
    }

    /// RFC 4861 §4: what routers and neighbours say.
    fn neighbour_discovery(ends: &Ends, [thief, near, far]: [&Pod; 3], kinds: &mut Vec<Kind>) {
        let own = address(thief, IpFamily::V6);
        let everybody = text("ff02::1");
        let mut push = |what: String, source: IpAddr, message: Vec<u8>, by| {
            let packet = Packet::new(source, everybody, 58, message).with_checksum_at(2);
            kinds.push(Kind {
                what: format!("{what} from {source}"),
                frame: ethernet(ALL_NODES, ends.own, packet.ethertype(), &packet.bytes()),
                by,
            });
        };
        let link_address = |option: u8| [&[option, 1], &FORGED[..]].concat();
        // A default router for half an hour, and a prefix to make addresses of.
        let mut advertisement = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
        advertisement.extend(link_address(1));
        advertisement.extend([3, 4, 64, 0xc0, 0, 0, 0x07, 0x08, 0, 0, 0x07, 0x08, 0, 0, 0, 0]);
        advertisement.extend(octets(text("2001:db8:51::")));
        for source in [ends.link_local, own, text("fe80::1")] {
            push(
                "router advertisement".to_owned(),
                source,
                advertisement.clone(),
                By::Guard,
            );
        }
        for victim in [near, far] {
            let claimed = octets(address(victim, IpFamily::V6));
            let redirect = [
                vec![137, 0, 0, 0, 0, 0, 0, 0],
                octets(ends.link_local),
                claimed.clone(),
                link_address(2),
            ];
            let what = format!("redirect of {}", victim.id);
            push(what, ends.link_local, redirect.concat(), By::Guard);
            // Unsolicited, and to override what is known.
            let claim = [
                vec![136, 0, 0, 0, 0x20, 0, 0, 0],
                claimed.clone(),
                link_address(2),
            ]
            .concat();
            let what = format!("neighbour advertisement of {}", victim.id);
            push(what.clone(), ends.link_local, claim.clone(), By::Stack);
            push(what, address(victim, IpFamily::V6), claim, By::Guard);
            let asks = [
                vec![135, 0, 0, 0, 0, 0, 0, 0],
                octets(text("fe80::1")),
                link_address(1),
            ];
            let what = format!("neighbour solicitation as {}", victim.id);
            push(what, address(victim, IpFamily::V6), asks.concat(), By::Guard);
        }
    }

    /// What a node knows of pods, neighbours and routers.
    fn knows(node: &Node<'_>) -> BTreeSet<String> {
        let mut known = BTreeSet::new();
        for line in [
            "-4 neigh show nud permanent",
            "-6 neigh show nud permanent",
            "-4 route show",
            "-6 route show",
            "-6 -o addr show scope global",
        ] {
            let arguments: Vec<&str> = line.split(' ').collect();
            let output = node.host.command("ip", &arguments).expect("ip runs");
            assert!(output.status.success(), "{output:?}");
            known.extend(output.stdout.lines().map(str::to_owned));
        }
        known
    }

    /// Pods that look at what comes to them.
    struct Witness<'p> {
        pod: &'p Pod,
        wire: Wire,
        honest: usize,
    }

    impl Witness<'_> {
        /// Waits for honest packets. Forged ones that were sent before them would have come before them.
        #[track_caller]
        fn await_honest(&mut self, count: usize, after: &str) {
            let wanted = self.honest + count;
            let what = format!("{} gets what is honest after: {after}", self.pod.id);
            wait::until(&what, SOON, || {
                for frame in self.wire.seen() {
                    let has = |mark: [u8; 6]| frame.windows(mark.len()).any(|bytes| bytes == mark);
                    assert!(!has(FORGED), "{} got it: {after}: {frame:02x?}", self.pod.id);
                    self.honest += usize::from(has(HONEST));
                }
                if self.honest == wanted {
                    Ok(())
                } else {
                    Err(self.honest)
                }
            });
        }
    }

    #[test]
    fn of_ten_thousand_forged_packets_of_a_pod_none_arrives_and_all_that_are_packets_of_ours_are_counted() {
        let Some(cluster) = Cluster::new("forged", 2) else {
            return;
        };
        let (nodes, [thief, near, far]) = thief_and_others(&cluster);
        // Somebody listens: an ICMP error would repeat the packet.
        let mut listeners = Vec::new();
        for family in FAMILIES {
            for pod in [&near, &far] {
                await_talk_over(family, &thief, pod);
                listeners.push(bind(&pod.host, address(pod, family), PORT));
            }
        }
        let ends = Ends::of(&thief);
        let pods = [&thief, &near, &far];
        let mut kinds = Vec::new();
        for family in FAMILIES {
            sources(family, &ends, pods, &mut kinds);
            wrapped(family, &ends, &nodes, pods, &mut kinds);
        }
        arp(&ends, pods, &mut kinds);
        neighbour_discovery(&ends, pods, &mut kinds);

        let mut wire = Wire::of(&thief.host);
        let mut witnesses = [&near, &far].map(|pod| Witness {
            pod,
            wire: Wire::of(&pod.host),
            honest: 0,
        });
        let honest: Vec<Vec<u8>> = [&near, &far]
            .into_iter()
            .flat_map(|pod| FAMILIES.map(|family| (address(&thief, family), address(pod, family))))
            .map(|(own, to)| ends.to_gateway(&Packet::udp(own, to, PORT, &HONEST)))
            .collect();
        let before = [0, 1].map(|number| knows(&nodes[number]));
        let (mut sent, mut counted) = (0, 0);
        assert_eq!(dropped(&nodes[0]), 0, "so far all was honest");
        for (number, kind) in kinds.iter().enumerate() {
            // The first ones take what does not divide.
            let count = ALL / kinds.len() + usize::from(number < ALL % kinds.len());
            for _ in 0..count {
                wire.send(&kind.frame);
            }
            sent += count;
            for frame in &honest {
                wire.send(frame);
            }
            for witness in &mut witnesses {
                witness.await_honest(FAMILIES.len(), &kind.what);
            }
            counted += if kind.by == By::Guard { count } else { 0 };
            assert_eq!(dropped(&nodes[0]), counted as u64, "counted after: {}", kind.what);
        }
        assert_eq!(sent, ALL);
        for (number, before) in before.iter().enumerate() {
            assert_eq!(
                &knows(&nodes[number]),
                before,
                "node {number} believes nothing of it"
            );
        }
        for family in FAMILIES {
            await_talk_over(family, &near, &far);
            await_talk_over(family, &far, &near);
        }
        for witness in &mut witnesses {
            witness.await_honest(0, "the end");
        }
        let honest: usize = witnesses.iter().map(|witness| witness.honest).sum();
        println!(
            "F51 {sent} forged packets of {} kinds: 0 delivered, {counted} counted by the guard, \
             {} to the node's stack without effect; {honest} honest ones between them all arrived",
            kinds.len(),
            sent - counted,
        );
    }
}
