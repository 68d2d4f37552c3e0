//! Ending connected UDP sockets and forgetting tracked flows, with real sockets of both families.

mod place;

mod privileged {
    use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

    use netlink::conntrack::{Conntrack, Glance};
    use netlink::nft::{BaseChain, Chain, Family, Layout, Nft, Rule, Table};
    use netlink::sock_diag::SockDiag;

    use crate::place::{add_address, in_namespace, run};

    fn bound(address: &str) -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind((address, 0)).expect("a port");
        let address = socket.local_addr().expect("bound");
        (socket, address)
    }

    fn connected(from: &str, to: SocketAddr) -> (UdpSocket, SocketAddr) {
        let (socket, _) = bound(from);
        socket.connect(to).expect("connected");
        let address = socket.local_addr().expect("bound");
        (socket, address)
    }

    #[track_caller]
    fn assert_works(socket: &UdpSocket, server: &UdpSocket) {
        socket.send(b"x").expect("sent");
        let (_, from) = server.recv_from(&mut [0; 1]).expect("received");
        server.send_to(b"y", from).expect("answered");
        assert_eq!(socket.recv(&mut [0; 1]).expect("the answer"), 1);
    }

    #[track_caller]
    fn assert_fails(result: std::io::Result<usize>, errno: i32) {
        let error = result.expect_err("the socket was ended");
        assert_eq!(error.raw_os_error(), Some(errno));
    }

    /// `client` speaks from its own address to one of two servers at `server`.
    #[track_caller]
    fn check(client: &str, server: &str) {
        let (server, to) = bound(server);
        let (other_server, other_to) = bound(&to.ip().to_string());
        let client_address: IpAddr = client.parse().expect("an address");
        let target = match to.ip() {
            IpAddr::V4(address) if client_address.is_ipv6() => {
                SocketAddr::new(address.to_ipv6_mapped().into(), to.port())
            }
            _ => to,
        };
        let other_target = SocketAddr::new(target.ip(), other_to.port());
        let (doomed, from) = connected(client, target);
        let (waiting, _) = connected(client, target);
        let (bystander, _) = connected(client, other_target);
        let (unconnected, _) = bound(client);
        assert_works(&doomed, &server);

        let mut diag = SockDiag::open().expect("a socket");
        let found = diag
            .connected_udp(|socket| socket.destination == to)
            .expect("listed");
        let mut sources: Vec<_> = found.iter().map(|socket| socket.source.port()).collect();
        sources.sort_unstable();
        let mut expected: Vec<_> = [&doomed, &waiting]
            .map(|socket| socket.local_addr().expect("bound").port())
            .into();
        expected.sort_unstable();
        assert_eq!(sources, expected, "{client} to {to}");
        let ours = found
            .iter()
            .find(|socket| socket.source.port() == from.port())
            .expect("it is there");
        assert_eq!(ours.source.ip(), from.ip().to_canonical());

        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| waiting.recv(&mut [0; 1]));
            for socket in &found {
                diag.destroy(socket).expect("destroyed");
                diag.destroy(socket).expect("gone already is fine");
            }
            assert_fails(receiver.join().expect("no panic"), libc::ECONNABORTED);
        });
        assert_fails(doomed.send(b"x"), libc::EDESTADDRREQ);
        assert_fails(doomed.recv(&mut [0; 1]), libc::ECONNABORTED);
        doomed.connect(target).expect("connected anew");
        assert_works(&doomed, &server);
        diag.connected_udp(|socket| socket.destination == to)
            .expect("listed")
            .iter()
            .for_each(|socket| diag.destroy(socket).expect("destroyed"));
        assert_works(&bystander, &other_server);
        unconnected.send_to(b"x", target).expect("not touched");
        assert_eq!(
            diag.connected_udp(|socket| socket.destination == to)
                .expect("listed"),
            []
        );
    }

    #[test]
    fn a_destroyed_socket_tells_its_application_and_others_go_on() {
        in_namespace("destroy", || {
            run("ip link set lo up");
            for (client, server) in [
                ("127.0.0.1", "127.0.0.1"),
                ("0.0.0.0", "127.0.0.1"),
                ("::1", "::1"),
                ("::", "::1"),
                ("::", "127.0.0.1"),
                ("::ffff:127.0.0.1", "127.0.0.1"),
            ] {
                check(client, server);
            }
        });
    }

    #[test]
    fn sockets_of_other_namespaces_are_neither_seen_nor_ended() {
        in_namespace("here", || {
            run("ip link set lo up");
            let (server, to) = bound("127.0.0.1");
            let (client, _) = connected("127.0.0.1", to);
            in_namespace("there", || {
                let mut diag = SockDiag::open().expect("a socket");
                assert_eq!(diag.connected_udp(|_| true).expect("listed"), []);
            });
            assert_works(&client, &server);
        });
    }

    #[test]
    fn flows_of_both_families_are_listed_with_both_directions_and_forgotten_one_by_one() {
        in_namespace("flows", || {
            run("ip link set lo up");
            // Tracking starts with the first rule that needs it.
            for family in [Family::Ip, Family::Ip6] {
                let mut layout = Layout::new(Table::new(family, "cwt"));
                let rules = [Rule::new("tracked").destination_was_translated().accept()];
                layout.add_chain(Chain::base("output", BaseChain::OUTPUT_NAT), rules);
                let mut nft = Nft::open().expect("a socket");
                nft.ensure(&layout).expect("written");
            }
            let pairs = ["127.0.0.1", "::1"].map(|address| {
                let (server, to) = bound(address);
                let (client, from) = bound(address);
                client.send_to(b"x", to).expect("sent");
                (server, to, client, from)
            });
            let mut conntrack = Conntrack::open().expect("a socket");
            let udp = |glance: Glance| glance.protocol == 17;
            let everywhere = |conntrack: &mut Conntrack| conntrack.flows(udp, |_| true).expect("listed");
            for (server, to, _client, from) in &pairs {
                let mut flows = conntrack
                    .flows(udp, |flow| flow.original.destination == *to)
                    .expect("listed");
                let flow = flows.pop().expect("one flow");
                assert_eq!(flows, []);
                assert_eq!((flow.original.source, flow.original.protocol), (*from, 17));
                assert_eq!((flow.reply.source, flow.reply.destination), (*to, *from));
                let unanswered = |conntrack: &mut Conntrack| {
                    let flows =
                        conntrack.flows(|glance| !glance.answered, |other| other.original == flow.original);
                    flows.expect("listed").len()
                };
                assert_eq!((flow.answered, unanswered(&mut conntrack)), (false, 1));
                server.send_to(b"y", from).expect("sent");
                assert_eq!(unanswered(&mut conntrack), 0);
                let tcp = conntrack.flows(|glance| glance.protocol == 6, |_| true);
                assert_eq!(tcp.expect("listed"), []);
                let mut others = everywhere(&mut conntrack);
                others.retain(|other| other.original != flow.original);
                conntrack.delete(&flow).expect("deleted");
                assert_eq!(everywhere(&mut conntrack), others);
                conntrack.delete(&flow).expect("gone already is fine");
            }
            assert_eq!(everywhere(&mut conntrack), []);
        });
    }

    #[test]
    fn an_address_of_ipv6_is_never_taken_for_one_of_ipv4() {
        in_namespace("compatible", || {
            run("ip link set lo up");
            // ::127.0.0.1 is IPv6, although its last bytes are those of an IPv4 address.
            let odd: Ipv6Addr = "::7f00:1".parse().expect("an address");
            add_address(&format!("{odd}/128"), "lo");
            let (_server, to) = bound(&odd.to_string());
            let (_client, _) = connected(&odd.to_string(), to);
            let mut diag = SockDiag::open().expect("a socket");
            let found = diag.connected_udp(|_| true).expect("listed");
            let destinations: Vec<_> = found.iter().map(|socket| socket.destination).collect();
            assert_eq!(destinations, [to]);
        });
    }
}
