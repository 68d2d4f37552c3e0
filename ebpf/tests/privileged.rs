//! The programs on real sockets, and what an owner finds that opens them again. Needs root; uses only loopback in
//! network namespaces of its own.

mod world;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData, MapType};
use ebpf::abi::net::Port;
use ebpf::abi::service::{Affinity, AffinityKey, FrontendKey, NodeAddress, SlotKey, SocketPeer, Translated};
use ebpf::connected::{self, Connected};
use ebpf::kernel_types::KernelTypes;
use ebpf::{Attachment, Capacity, Error, SocketHook, probe};
use nix::libc;
use world::{
    Service, World, ask_tcp, ask_udp, at, enter_namespace, frontend, node_port, privileged, receive, serve,
    udp,
};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Service address as an application names it, and the endpoint behind it: nothing routes to the former.
const FORMS: [(&str, &str); 3] = [
    ("10.96.0.1:80", "127.0.0.2:8080"),
    ("[fd00:10:96::1]:80", "[::1]:8080"),
    ("[::ffff:10.96.0.1]:80", "127.0.0.2:8080"),
];

/// One Service of both protocols and families, with one endpoint each.
fn both_families() -> World {
    let mut world = World::build(Capacity::default());
    for ((service, endpoint), id) in FORMS[..2].iter().zip(1..) {
        serve(at(endpoint));
        for (proto, id) in [(TCP, id), (UDP, id + 10)] {
            world.publish(&Service::new(
                id,
                proto,
                &[frontend(at(service), proto)],
                &[(id, at(endpoint))],
            ));
        }
    }
    world
}

#[test]
fn a_connection_goes_to_the_endpoint_and_its_peer_is_the_service() {
    if !privileged("a connection goes to the endpoint and its peer is the Service") {
        return;
    }
    let world = both_families();
    for (service, endpoint) in FORMS.map(|(service, endpoint)| (at(service), at(endpoint))) {
        assert_eq!(ask_tcp(service), (endpoint, service));
        let socket = udp(service);
        socket.connect(service).expect("connected");
        assert_eq!(socket.peer_addr().expect("a peer"), service);
        for _ in 0..3 {
            socket.send(b"?").expect("sent");
            assert_eq!(receive(&socket), (endpoint, service));
        }
    }
    assert_eq!(world.counted("translated"), 6);
}

#[test]
fn to_which_services_sockets_are_connected_is_told_by_their_cookies() {
    if !privileged("to which Services sockets are connected is told") {
        return;
    }
    let world = both_families();
    let types = KernelTypes::read().expect("the kernel's types");
    let nowhere = Connected::start(&types, Path::new("/nowhere/SOCKETS"));
    assert!(!Path::new("/nowhere").exists() && nowhere.is_err());
    let connected =
        Connected::start(&types, &connected::pinned(&world.config.pin_dir)).expect("the hook's map");
    let mut expected = BTreeSet::new();
    for (service, endpoint) in FORMS[..2]
        .iter()
        .map(|(service, endpoint)| (at(service), at(endpoint)))
    {
        assert_eq!(ask_tcp(service), (endpoint, service));
        // To no Service: not told.
        assert_eq!(ask_tcp(endpoint), (endpoint, endpoint));
        expected.insert(Translated {
            service_addr: service.ip().into(),
            endpoint_addr: endpoint.ip().into(),
            service_port: Port::new(service.port()),
            endpoint_port: Port::new(endpoint.port()),
        });
    }
    let told = connected.services().expect("told");
    let cookies: BTreeSet<u64> = told.iter().map(|(cookie, _)| *cookie).collect();
    assert!(cookies.len() == 2 && !cookies.contains(&0), "{told:?}");
    assert_eq!(
        told.into_iter().map(|(_, to)| to).collect::<BTreeSet<_>>(),
        expected
    );
}

#[test]
fn a_datagram_goes_to_the_endpoint_and_its_answer_is_from_the_service() {
    if !privileged("a datagram goes to the endpoint and its answer is from the Service") {
        return;
    }
    let world = both_families();
    let other = at("127.0.0.3:53");
    serve(other);
    for (service, endpoint) in FORMS.map(|(service, endpoint)| (at(service), at(endpoint))) {
        let socket = udp(service);
        assert_eq!(ask_udp(&socket, service), (endpoint, service));
        assert_eq!(ask_udp(&socket, service), (endpoint, service));
        // What the socket itself sends to the endpoint comes from the endpoint, and the Service goes on after it.
        let direct = if service.is_ipv6() && endpoint.is_ipv4() {
            at(&format!("[::ffff:{}]:{}", endpoint.ip(), endpoint.port()))
        } else {
            endpoint
        };
        assert_eq!(ask_udp(&socket, direct), (endpoint, direct));
        assert_eq!(ask_udp(&socket, service), (endpoint, service));
        // A socket that is connected elsewhere may send with an address too; it does not receive from there.
        let connected = udp(other);
        if service.is_ipv4() {
            connected.connect(other).expect("connected");
            connected.send_to(b"?", service).expect("sent");
            connected.send(b"?").expect("sent");
            assert_eq!(receive(&connected), (other, other));
        }
    }
    assert_eq!(world.counted("translated"), 4);
    assert_eq!(world.counted("flow_kept"), 6);
}

#[test]
fn a_service_without_endpoints_refuses_in_every_way() {
    if !privileged("a Service without endpoints refuses in every way") {
        return;
    }
    let mut world = World::build(Capacity::default());
    for ((service, _), id) in FORMS[..2].iter().zip(1..) {
        for (proto, id) in [(TCP, id), (UDP, id + 10)] {
            world.publish(&Service::new(id, proto, &[frontend(at(service), proto)], &[]));
        }
    }
    for service in FORMS.map(|(service, _)| at(service)) {
        let refused = [
            TcpStream::connect(service).map(|_| ()),
            udp(service).connect(service),
            udp(service).send_to(b"?", service).map(|_| ()),
        ];
        let kinds = refused.map(|result| result.expect_err("refused").kind());
        assert_eq!(kinds, [ErrorKind::ConnectionRefused; 3], "{service}");
    }
    assert_eq!(world.counted("refused"), 9);
}

#[test]
fn a_node_port_is_served_on_node_addresses_of_its_family_alone() {
    if !privileged("a node port is served on node addresses of its family alone") {
        return;
    }
    let mut world = World::build(Capacity::default());
    let [near, near6] = ["127.0.0.2:8080", "[::1]:8080"].map(at);
    serve(near);
    serve(near6);
    for address in ["10.1.1.1", "fd00:1::1"] {
        let address: std::net::IpAddr = address.parse().expect("an address");
        let node = NodeAddress { flags: 0 };
        world.hook.nodes.insert(address.into(), node).expect("written");
    }
    let (kind4, kind6) = (FrontendKey::NODE_PORT4, FrontendKey::NODE_PORT6);
    world.publish(&Service::new(
        1,
        TCP,
        &[node_port(kind4, 30080, TCP)],
        &[(1, near)],
    ));
    world.publish(&Service::new(
        2,
        UDP,
        &[node_port(kind4, 30080, UDP)],
        &[(2, near)],
    ));
    let refused = |to: &str| TcpStream::connect(at(to)).expect_err("nobody is there").kind();
    let rows4 = [
        "127.0.0.1:30080",
        "[::ffff:127.0.0.1]:30080",
        "10.1.1.1:30080",
        "[::ffff:10.1.1.1]:30080",
    ];
    for to in rows4.map(at) {
        assert_eq!(ask_tcp(to), (near, to));
        assert_eq!(ask_udp(&udp(to), to), (near, to));
    }
    assert_eq!(refused("[::1]:30080"), ErrorKind::ConnectionRefused);
    world.publish(&Service::new(
        3,
        TCP,
        &[node_port(kind6, 30080, TCP)],
        &[(3, near6)],
    ));
    for to in ["[::1]:30080", "[fd00:1::1]:30080"].map(at) {
        assert_eq!(ask_tcp(to), (near6, to));
    }
    // A pod's loopback is the pod's own.
    let before = world.counted("not_a_service");
    let pod = std::thread::spawn(move || {
        enter_namespace();
        ["127.0.0.1:30080", "[::1]:30080", "[::ffff:127.0.0.1]:30080"].map(refused)
    });
    let kinds = pod.join().expect("no panic");
    assert_eq!(kinds, [ErrorKind::ConnectionRefused; 3]);
    assert_eq!(world.counted("not_a_service"), before + 3);
}

#[test]
fn an_address_that_is_no_service_any_more_is_left_alone() {
    if !privileged("an address that is no Service any more is left alone") {
        return;
    }
    for (service, endpoint) in [
        ("127.0.0.9:53", "127.0.0.2:8080"),
        ("[::ffff:127.0.0.9]:53", "127.0.0.2:8080"),
        ("[::1]:53", "[::1]:8080"),
    ] {
        let mut world = World::build(Capacity::default());
        let (service, endpoint) = (at(service), at(endpoint));
        let itself = SocketAddr::new(service.ip().to_canonical(), service.port());
        serve(endpoint);
        serve(itself);
        let key = frontend(service, UDP);
        world.publish(&Service::new(1, UDP, &[key], &[(1, endpoint)]));
        let (socket, connected) = (udp(service), udp(service));
        connected.connect(service).expect("connected");
        assert_eq!(ask_udp(&socket, service), (endpoint, service));
        world.hook.frontends.remove(&key).expect("removed");
        assert_eq!(ask_udp(&socket, service), (itself, service));
        // A connected socket keeps its endpoint until it connects anew.
        connected.send(b"?").expect("sent");
        assert_eq!(receive(&connected), (endpoint, service));
        connected.connect(service).expect("connected");
        connected.send(b"?").expect("sent");
        assert_eq!(receive(&connected), (itself, service));
    }
}

#[test]
fn a_disconnected_socket_is_nobodys_client() {
    if !privileged("a disconnected socket is nobody's client") {
        return;
    }
    let _world = both_families();
    let (service, endpoint) = (at(FORMS[0].0), at(FORMS[0].1));
    let socket = udp(service);
    socket.connect(service).expect("connected");
    disconnect(&socket);
    assert_eq!(ask_udp(&socket, endpoint), (endpoint, endpoint));
    assert_eq!(ask_udp(&socket, service), (endpoint, service));
}

/// `connect()` to no family (udp(7)).
fn disconnect(socket: &UdpSocket) {
    let nobody = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let bytes = size_of_val(&nobody) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the address is that many bytes.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, bytes) };
    assert_eq!(result, 0);
}

#[test]
fn an_endpoint_whose_address_is_a_frontend_is_reached_all_the_same() {
    if !privileged("an endpoint whose address is a frontend is reached all the same") {
        return;
    }
    let mut world = both_families();
    let (service, endpoint, other) = (at(FORMS[2].0), at(FORMS[2].1), at("127.0.0.3:53"));
    serve(other);
    world.publish(&Service::new(20, UDP, &[frontend(endpoint, UDP)], &[(20, other)]));
    // This kind of socket names its peer with each datagram.
    let socket = udp(service);
    socket.connect(service).expect("connected");
    for _ in 0..3 {
        socket.send(b"?").expect("sent");
        assert_eq!(receive(&socket), (endpoint, service));
    }
}

/// Endpoints of a test with two.
fn two() -> [(u32, SocketAddr); 2] {
    let endpoints = [(1, at("127.0.0.2:8080")), (2, at("127.0.0.3:8080"))];
    for (_, address) in endpoints {
        serve(address);
    }
    endpoints
}

/// The affinity map, as the kernel has it.
fn affinity(world: &World) -> HashMap<MapData, AffinityKey, Affinity> {
    let map = MapData::from_pin(world.layout_dir().join("AFFINITY")).expect("pinned");
    HashMap::try_from(Map::LruHashMap(map)).expect("the layout")
}

#[test]
fn a_client_stays_with_its_endpoint_while_that_is_in_the_list_and_the_time_has_not_passed() {
    if !privileged("a client stays with its endpoint while that is in the list and the time has not passed") {
        return;
    }
    let service = at("10.96.0.1:80");
    for (proto, connects) in [(TCP, true), (UDP, false), (UDP, true)] {
        let ask = |to: SocketAddr| {
            if proto == TCP {
                return ask_tcp(to).0;
            }
            let socket = udp(to);
            if !connects {
                return ask_udp(&socket, to).0;
            }
            socket.connect(to).expect("connected");
            socket.send(b"?").expect("sent");
            receive(&socket).0
        };
        let mut world = World::build(Capacity::default());
        let endpoints = two();
        let key = [frontend(service, proto)];
        let sticky = Service {
            affinity_seconds: 100,
            ..Service::new(7, proto, &key, &endpoints)
        };
        world.publish(&sticky);
        let first = ask(service);
        let entry = |world: &World| affinity(world).iter().next().expect("one entry").expect("read");
        let (client, before) = entry(&world);
        assert_eq!(client.client, probe::netns_cookie().expect("a cookie").0);
        for _ in 0..20 {
            assert_eq!(ask(service), first);
        }
        assert_eq!(
            (world.counted("translated"), world.counted("affinity_kept")),
            (1, 20)
        );
        assert!(
            entry(&world).1.last_ns > before.last_ns,
            "each connection refreshes"
        );
        // The endpoint leaves the list, though it still serves: the next connection picks anew, and stays there.
        let (left, stays): (Vec<_>, Vec<_>) =
            endpoints.into_iter().partition(|(_, address)| *address == first);
        world.publish(&Service {
            revision: 2,
            endpoints: &stays,
            draining: &left,
            ..sticky
        });
        assert_eq!(ask(service), stays[0].1);
        world.publish(&Service {
            revision: 3,
            ..sticky
        });
        for _ in 0..20 {
            assert_eq!(ask(service), stays[0].1);
        }
        assert_eq!(
            (world.counted("translated"), world.counted("affinity_kept")),
            (2, 40)
        );
        // The time passes: the machine has been up for longer than the timeout from its boot.
        let expired = Affinity {
            last_ns: 0,
            ..entry(&world).1
        };
        affinity(&world).insert(client, expired, 0).expect("written");
        world.publish(&Service {
            revision: 3,
            affinity_seconds: 1,
            ..sticky
        });
        ask(service);
        assert_eq!(
            (world.counted("translated"), world.counted("affinity_kept")),
            (3, 40)
        );
        // Another pod is another client.
        let pod = std::thread::spawn(move || {
            enter_namespace();
            let socket = udp(service);
            if proto == UDP {
                socket.connect(service).expect("connected");
            }
        });
        pod.join().expect("no panic");
        let clients = affinity(&world).keys().count();
        assert_eq!(clients, if proto == UDP { 2 } else { 1 });
    }
}

#[test]
fn datagrams_of_a_socket_stay_with_their_endpoint_while_it_serves() {
    if !privileged("datagrams of a socket stay with their endpoint while it serves") {
        return;
    }
    for service in [at("10.96.0.1:53"), at("[::ffff:10.96.0.1]:53")] {
        let mut world = World::build(Capacity::default());
        let endpoints = two();
        let key = [frontend(service, UDP)];
        let spread = Service::new(7, UDP, &key, &endpoints);
        world.publish(&spread);
        let socket = udp(service);
        let (first, _) = ask_udp(&socket, service);
        for _ in 0..20 {
            assert_eq!(ask_udp(&socket, service), (first, service));
        }
        assert_eq!((world.counted("translated"), world.counted("flow_kept")), (1, 20));
        // Other sockets are spread: each side is missed once in a million million times.
        let seen: BTreeSet<_> = (0..40).map(|_| ask_udp(&udp(service), service).0).collect();
        assert_eq!(seen.len(), 2);
        // Terminating: new flows go elsewhere, this one stays.
        let (left, stays): (Vec<_>, Vec<_>) =
            endpoints.into_iter().partition(|(_, address)| *address == first);
        world.publish(&Service {
            revision: 2,
            endpoints: &stays,
            draining: &left,
            ..spread
        });
        assert_eq!(ask_udp(&socket, service), (first, service));
        assert_eq!(ask_udp(&udp(service), service), (stays[0].1, service));
        // Gone.
        world.publish(&Service {
            revision: 3,
            endpoints: &stays,
            ..spread
        });
        assert_eq!(ask_udp(&socket, service), (stays[0].1, service));
        // Another Service gets the address: the flow is not its.
        world.publish(&Service::new(8, UDP, &key, &left));
        assert_eq!(ask_udp(&socket, service), (first, service));
    }
}

#[test]
fn a_new_owner_keeps_what_is_attached_and_repairs_the_rest() {
    if !privileged("a new owner keeps what is attached and repairs the rest") {
        return;
    }
    let mut world = both_families();
    let mut next = SocketHook::open(&world.config).expect("opens");
    assert_eq!(next.ensure_attached().expect("attached"), Attachment::Kept);
    assert_eq!(next.frontends.entries().expect("read").len(), 4);
    assert_eq!(world.hook.ensure_attached().expect("attached"), Attachment::Kept);
    let links = world.layout_dir().join("links");
    for link in std::fs::read_dir(&links).expect("links").flatten() {
        std::fs::remove_file(link.path()).expect("removed");
        assert_eq!(next.ensure_attached().expect("attached"), Attachment::Made);
        assert_eq!(next.ensure_attached().expect("attached"), Attachment::Kept);
    }
    assert_eq!(std::fs::read_dir(&links).expect("links").count(), 8);
    for map in ["FRONTENDS", "MEMBERS", "AFFINITY", "FLOWS", "REPLIES", "SOCKETS"] {
        std::fs::remove_file(world.layout_dir().join(map)).expect("removed");
    }
    assert!(next.ensure_pinned().expect("pinned"));
    assert!(!next.ensure_pinned().expect("pinned"));
    drop(next);
    let mut next = SocketHook::open(&world.config).expect("opens");
    assert_eq!(next.ensure_attached().expect("attached"), Attachment::Kept);
    let before = world.counted("translated");
    let (service, endpoint) = (at(FORMS[0].0), at(FORMS[0].1));
    assert_eq!(ask_tcp(service), (endpoint, service));
    assert_eq!(world.counted("translated"), before + 1);
}

/// Puts a map with values twice as long in the place of a pinned one; returns how many entries it has.
fn widen<K: aya::Pod, const BYTES: usize, const WIDE: usize>(directory: &Path, name: &str) -> usize {
    let pin = directory.join(name);
    let map = MapData::from_pin(&pin).expect("pinned");
    let map = match map.info().and_then(|info| info.map_type()).expect("told") {
        MapType::LruHash => Map::LruHashMap(map),
        _ => Map::HashMap(map),
    };
    let narrow = HashMap::<_, K, [u8; BYTES]>::try_from(map).expect("the layout");
    let mut wide = HashMap::<MapData, K, [u8; WIDE]>::create(64, 0).expect("made");
    for entry in narrow.iter() {
        let (key, value) = entry.expect("read");
        let mut longer = [0xff; WIDE];
        longer[..BYTES].copy_from_slice(&value);
        wide.insert(key, longer, 0).expect("room");
    }
    std::fs::remove_file(&pin).expect("removed");
    let entries = wide.keys().count();
    wide.pin(&pin).expect("pinned");
    entries
}

#[test]
fn another_layout_is_taken_over_with_its_sockets_and_flows() {
    if !privileged("another layout is taken over with its sockets and flows") {
        return;
    }
    let mut world = World::build(Capacity::default());
    let (service, endpoints) = (at("10.96.0.1:80"), two());
    for (id, proto) in [(1, TCP), (2, UDP)] {
        world.publish(&Service::new(id, proto, &[frontend(service, proto)], &endpoints));
    }
    let before = world.hook.frontends.entries().expect("read");
    let flow = udp(service);
    let (server, _) = ask_udp(&flow, service);
    let connected = udp(service);
    connected.connect(service).expect("connected");
    let stream = TcpStream::connect(service).expect("connected");

    let newer = world.config.pin_dir.join(format!("v{}", ebpf::abi::LAYOUT + 1));
    std::fs::rename(world.layout_dir(), &newer).expect("renamed");
    assert_eq!(widen::<FrontendKey, 16, 32>(&newer, "FRONTENDS"), 2);
    assert_eq!(widen::<SocketPeer, 8, 16>(&newer, "FLOWS"), 1);
    assert_eq!(widen::<SocketPeer, 20, 40>(&newer, "REPLIES"), 2);
    // An answer under way while the programs change.
    flow.send_to(b"?", service).expect("sent");
    let next = SocketHook::open(&world.config).expect("opens");
    assert_eq!(receive(&flow), (server, service));
    let old = std::mem::replace(&mut world.hook, next);
    let links = |layout: &Path| std::fs::read_dir(layout.join("links")).expect("links").count();
    assert_eq!((links(&world.layout_dir()), links(&newer)), (8, 0));
    assert_eq!(world.hook.frontends.entries().expect("read"), before);
    assert_eq!(world.hook.ensure_attached().expect("attached"), Attachment::Kept);

    let ran = old.counters().expect("counters");
    for _ in 0..10 {
        assert_eq!(ask_udp(&flow, service), (server, service));
        connected.send(b"?").expect("sent");
        assert_eq!(receive(&connected).1, service);
        assert_eq!(ask_tcp(service).1, service);
    }
    assert_eq!(connected.peer_addr().expect("a peer"), service);
    assert_eq!(stream.peer_addr().expect("a peer"), service);
    assert_eq!(
        (world.counted("translated"), world.counted("flow_kept")),
        (10, 10)
    );
    assert_eq!(old.counters().expect("counters"), ran, "nothing of it runs");
    SocketHook::remove_other_layouts(&world.config.pin_dir).expect("removed");
    assert!(!newer.exists());
    assert_eq!(ask_udp(&flow, service), (server, service));
}

#[test]
fn what_has_no_room_is_left_out_of_a_take_over() {
    if !privileged("what has no room is left out of a take-over") {
        return;
    }
    let mut world = World::build(Capacity::default());
    let (services, endpoints) = (["10.96.0.1:80", "10.96.0.2:80"].map(at), two());
    for (id, service) in [1, 2].into_iter().zip(services) {
        world.publish(&Service::new(id, TCP, &[frontend(service, TCP)], &endpoints));
    }
    let before = world.hook.frontends.entries().expect("read");
    let newer = world.config.pin_dir.join(format!("v{}", ebpf::abi::LAYOUT + 1));
    std::fs::rename(world.layout_dir(), &newer).expect("renamed");
    assert_eq!(widen::<FrontendKey, 16, 32>(&newer, "FRONTENDS"), 2);
    world.config.capacity.frontends = 1;
    world.hook = SocketHook::open(&world.config).expect("opens");
    let left = world.hook.frontends.entries().expect("read");
    let fits = before.into_iter().filter(|(key, _)| left.contains_key(key));
    assert_eq!(left, fits.take(1).collect());
    assert!(!left.is_empty());
}

#[test]
fn a_take_over_that_was_cut_short_goes_on() {
    if !privileged("a take-over that was cut short goes on") {
        return;
    }
    let mut world = World::build(Capacity::default());
    let newer = world.config.pin_dir.join(format!("v{}", ebpf::abi::LAYOUT + 1));
    std::fs::rename(world.layout_dir(), &newer).expect("renamed");
    assert_eq!(widen::<SocketPeer, 20, 40>(&newer, "REPLIES"), 0);
    world.hook = SocketHook::open(&world.config).expect("opens");
    // What the programs of the other layout note before they are changed, and after what is there was copied.
    let map = MapData::from_pin(newer.join("REPLIES")).expect("pinned");
    let mut theirs = HashMap::<_, SocketPeer, [u8; 40]>::try_from(Map::HashMap(map)).expect("the layout");
    let peer = SocketPeer {
        socket: 7,
        addr: at(FORMS[0].1).ip().into(),
        port: Port::new(8080),
        pad: [0; 3],
    };
    theirs.insert(peer, [0; 40], 0).expect("room");
    world.hook = SocketHook::open(&world.config).expect("opens");
    let replies = world.hook.replies.entries().expect("read");
    assert_eq!(replies.into_keys().collect::<Vec<_>>(), [peer]);
}

#[test]
fn another_layout_serves_until_this_ones_lists_are_written() {
    if !privileged("another layout serves until this one's lists are written") {
        return;
    }
    let mut world = both_families();
    // What is there plays the older one.
    let older = world.config.pin_dir.join("v1");
    std::fs::rename(world.layout_dir(), &older).expect("renamed");
    let foreign = world.config.pin_dir.join("vendor");
    std::fs::create_dir(&foreign).expect("made");
    let next = SocketHook::open(&world.config).expect("opens");
    assert!(older.exists() && world.layout_dir().exists());
    let old = std::mem::replace(&mut world.hook, next);
    let (service, endpoint) = (at(FORMS[0].0), at(FORMS[0].1));
    let key = frontend(service, TCP);
    world.publish(&Service::new(1, TCP, &[key], &[(1, endpoint)]));
    SocketHook::remove_other_layouts(&world.config.pin_dir).expect("removed");
    assert!(!older.exists() && foreign.exists() && world.layout_dir().exists());
    // The kernel detaches a link whose pin is gone in its own time (`bpf_link_put`, kernel/bpf/syscall.c).
    let deadline = Instant::now() + Duration::from_secs(5);
    let ran = || -> u64 {
        let counters = old.counters().expect("counters");
        counters.iter().map(|(_, count)| count).sum()
    };
    loop {
        let (before, translated) = (ran(), world.counted("translated"));
        let (server, peer) = ask_tcp(service);
        assert_eq!(server, endpoint);
        if ran() == before {
            assert_eq!(peer, service);
            assert_eq!(world.counted("translated"), translated + 1);
            break;
        }
        assert!(Instant::now() < deadline, "the old programs run on");
    }
    SocketHook::remove(&world.config.pin_dir).expect("removed");
    assert!(!world.layout_dir().exists() && foreign.exists());
    loop {
        match TcpStream::connect(service) {
            Err(error) if error.kind() == ErrorKind::NetworkUnreachable => break,
            other => assert!(Instant::now() < deadline, "still translated: {other:?}"),
        }
        std::thread::yield_now();
    }
    SocketHook::remove(&world.config.pin_dir).expect("nothing to remove");
}

#[test]
fn a_full_map_says_so_and_still_takes_new_values() {
    if !privileged("a full map says so and still takes new values") {
        return;
    }
    let capacity = Capacity {
        slots: 2,
        ..Capacity::default()
    };
    let mut world = World::build(capacity);
    for number in 0..2 {
        world.hook.slots.insert(slot(number), 1).expect("room");
    }
    let error = world.hook.slots.insert(slot(2), 1).expect_err("no room");
    assert!(
        matches!(
            error,
            Error::Full {
                map: "SLOTS",
                capacity: 2
            }
        ),
        "{error:?}"
    );
    assert_eq!(error.to_string(), "map SLOTS is full: it takes 2 entries");
    world.hook.slots.insert(slot(1), 2).expect("replaced");
}

const fn slot(slot: u16) -> SlotKey {
    SlotKey {
        service: 1,
        revision: 1,
        slot,
    }
}

#[test]
fn many_entries_are_written_up_to_the_one_that_finds_no_room() {
    if !privileged("many entries are written up to the one that finds no room") {
        return;
    }
    let capacity = Capacity {
        slots: 3,
        ..Capacity::default()
    };
    let mut world = World::build(capacity);
    let slots = &mut world.hook.slots;
    assert!(matches!(slots.insert_all(&[]), (0, Ok(()))));
    assert!(matches!(
        slots.insert_all(&[(slot(0), 1), (slot(1), 1)]),
        (2, Ok(()))
    ));
    let more = [(slot(1), 2), (slot(2), 2), (slot(3), 2), (slot(0), 2)];
    let (written, result) = slots.insert_all(&more);
    assert!(
        matches!(result, Err(Error::Full { map: "SLOTS", .. })),
        "{result:?}"
    );
    let there = slots.entries().expect("read");
    let expected = [(slot(0), 1), (slot(1), 2), (slot(2), 2)];
    assert_eq!((written, there, slots.writes()), (2, expected.into(), 5));
}
