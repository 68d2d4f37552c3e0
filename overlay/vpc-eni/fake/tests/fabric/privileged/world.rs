//! Nodes in namespaces, and packets between them.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fake_vpc::fabric::{Drops, Place, Problem};
use fake_vpc::request::{Reply, Request};
use fake_vpc::{Cloud, Fabric};
use ipnetwork::IpNetwork;
use netlink::{
    Address, Kernel, Link, LinkChange, Namespace, Neighbour, Netlink, NewLink, NewLinkKind, Route, VethPeer,
    sysctl,
};
use nix::sys::socket::{setsockopt, sockopt};
use vpc_eni::ec2::{Addresses, Amount, AttachmentId, Eni, EniId, InstanceId, NewEni, SubnetId, Tags, VpcId};

pub(super) const INTERNET: [&str; 2] = ["198.51.100.1", "2001:db8:ffff::1"];
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A named namespace, removed on drop.
pub(super) struct TestNamespace {
    pub(super) name: String,
    pub(super) namespace: Namespace,
}

impl TestNamespace {
    pub(super) fn new(label: &str) -> Self {
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

    pub(super) fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.namespace).expect("open a socket in it")
    }

    pub(super) fn device(&self, mac: [u8; 6]) -> Option<Link> {
        let links = self.netlink().links().expect("list");
        links.into_iter().find(|link| link.mac == Some(mac))
    }

    /// The node has the address, as a pod of it would.
    pub(super) fn hold(&self, device: &str, address: &str) {
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

    pub(super) fn socket(&self, at: SocketAddr) -> UdpSocket {
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

pub(super) fn not_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: needs root");
    }
    !root
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[track_caller]
pub(super) fn wait_for<T>(mut condition: impl FnMut() -> Option<T>, what: &str) -> T {
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
pub(super) struct World {
    pub(super) cloud: Cloud,
    pub(super) vpc: VpcId,
    pub(super) subnet: SubnetId,
    pub(super) router: TestNamespace,
    pub(super) a: Node,
    pub(super) b: Node,
    pub(super) c: Node,
}

pub(super) struct Node {
    pub(super) instance: InstanceId,
    pub(super) place: TestNamespace,
}

impl World {
    pub(super) fn new() -> Self {
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

    pub(super) fn nodes(&self) -> [&Node; 3] {
        [&self.a, &self.b, &self.c]
    }

    pub(super) async fn try_start(&self) -> Fabric {
        self.start_with(INTERNET.map(ip).to_vec()).await
    }

    pub(super) async fn start_with(&self, internet: Vec<IpAddr>) -> Fabric {
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

    pub(super) async fn start(&self) -> Fabric {
        let fabric = self.try_start().await;
        assert_fine(&fabric.problems());
        for node in self.nodes() {
            route_v6(&self.router, &node.place, "eth0");
        }
        fabric
    }

    pub(super) fn eni(&self, node: &Node, device_index: u32) -> Eni {
        let attached = self.cloud.interfaces_of(&node.instance).into_iter();
        let is_it = |eni: &Eni| eni.attachment.as_ref().unwrap().device_index == device_index;
        attached.map(|interface| interface.eni).find(is_it).unwrap()
    }

    pub(super) fn primary(&self, node: &Node) -> IpAddr {
        self.eni(node, 0).primary.into()
    }

    pub(super) fn assign(&self, eni: &EniId, amount: Amount) -> Addresses {
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

    pub(super) fn make(&self) -> Eni {
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

    pub(super) fn attach(&self, eni: &Eni, node: &Node, device_index: u32) -> AttachmentId {
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

    pub(super) fn detach(&self, attachment: AttachmentId) {
        let request = Request::DetachNetworkInterface { attachment };
        self.cloud.meddle(&request).unwrap();
    }
}

#[track_caller]
pub(super) fn assert_fine(problems: &[Problem]) {
    assert!(problems.is_empty(), "{problems:#?}");
}

/// The way out in IPv6, which the fabric leaves to the node. It knows the router's MAC address, so that it does not
/// ask for it, which were packets, too, and from the same source.
pub(super) fn route_v6(router: &TestNamespace, place: &TestNamespace, device: &str) {
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
pub(super) fn use_device(place: &TestNamespace, device: &Link) {
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
pub(super) fn use_only(socket: &UdpSocket, device: &str) {
    let device = OsString::from(device);
    setsockopt(socket, sockopt::BindToDevice, &device).expect("set");
}

/// A packet from an address of the node's by a device to an address where a socket is.
pub(super) fn send(from: &TestNamespace, device: &str, source: IpAddr, to: SocketAddr, packet: &[u8]) {
    let socket = from.socket((source, 0).into());
    use_only(&socket, device);
    socket.send_to(packet, to).expect("sent");
}

/// A packet that is like no other, as more than one of a kind may be under way.
pub(super) fn new_packet() -> Vec<u8> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("packet {}", COUNT.fetch_add(1, Ordering::Relaxed)).into_bytes()
}

/// Who sent a packet that is at the socket.
pub(super) fn sender_of(packet: &[u8], socket: &UdpSocket) -> Option<IpAddr> {
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
pub(super) fn arrives(socket: &UdpSocket, send: impl Fn(&[u8])) -> IpAddr {
    let packet = new_packet();
    let received = || {
        send(&packet);
        sender_of(&packet, socket)
    };
    wait_for(received, "a packet")
}

/// That a packet is dropped, for this reason, and does not arrive at the socket.
#[track_caller]
pub(super) fn is_dropped(fabric: &Fabric, socket: Option<&UdpSocket>, reason: Drops, send: impl Fn(&[u8])) {
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

pub(super) const STRANGER: Drops = Drops {
    of_stranger: 1,
    to_nobody: 0,
};
pub(super) const NOBODYS: Drops = Drops {
    of_stranger: 0,
    to_nobody: 1,
};

/// Some address of each kind that an interface has.
pub(super) fn kinds(world: &World, eni: &Eni) -> Vec<IpAddr> {
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

pub(super) fn pair(
    router: &TestNamespace,
    name: &str,
    node: &TestNamespace,
    device: &str,
    mac: [u8; 6],
) -> Link {
    let peer = VethPeer {
        name: device.to_owned(),
        mac: Some(mac),
        mtu: None,
        namespace: Some(node.namespace.clone()),
    };
    let new = NewLink::new(name, NewLinkKind::Veth(peer));
    router.netlink().create_link(&new).expect("make")
}
