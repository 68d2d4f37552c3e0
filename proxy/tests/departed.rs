//! UDP sockets whose endpoint left, over maps in memory.

mod world;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use ebpf::abi::net::Port;
use ebpf::abi::service::{Reply, SocketPeer};
use model::Protocol;
use proxy::datapath::fake::FakeMaps;
use proxy::datapath::sockets::Sockets;
use proxy::{ServiceView, plan_service};
use world::{READY, context, port, service, slice};

#[test]
fn clients_of_an_endpoint_that_left_are_ended_and_no_others() {
    let at = |text: &str| text.parse::<SocketAddr>().expect("an address and port");
    let peer = |socket, to: &str| SocketPeer {
        socket,
        addr: at(to).ip().into(),
        port: Port::new(at(to).port()),
        pad: [0; 3],
    };
    let reply = |service: &str| Reply {
        addr: at(service).ip().into(),
        port: Port::new(at(service).port()),
        pad: 0,
    };
    let maps = FakeMaps::default();
    let written = [
        (peer(1, "10.244.0.1:8080"), reply("10.96.0.1:53")),
        (peer(2, "10.244.0.2:8080"), reply("10.96.0.1:53")),
        (peer(3, "10.244.0.1:8080"), reply("10.96.0.2:53")),
        (peer(4, "[fd00:244::1]:8080"), reply("[fd00:96::1]:53")),
        (peer(5, "10.244.0.1:8080"), reply("172.30.0.11:30053")),
    ];
    maps.with(|maps| maps.replies.extend(written));
    let mut sockets = Sockets::open(maps.clone()).expect("opens");
    let udp = |endpoints: &[&str]| {
        let mut dns = service("dns", "10.96.0.1");
        dns.ports = [port("http", Protocol::Udp, 53, Some(30053))].into();
        let rows: Vec<_> = endpoints
            .iter()
            .map(|address| (*address, "there", READY))
            .collect();
        let mut slice = slice("dns-1", "dns", &rows);
        slice.ports[0].protocol = Protocol::Udp;
        let view = ServiceView {
            service: &dns,
            slices: vec![&slice],
        };
        plan_service(&view, &context()).0
    };
    let mut stale = proxy::stale::StaleFlows::default();
    stale.add_change(&udp(&["10.244.0.1", "10.244.0.2"]), &udp(&["10.244.0.2"]));
    assert_eq!(sockets.forget_flows(&stale).expect("ended"), 2);
    let (ended, left) = maps.with(|maps| (maps.ended.clone(), maps.replies.clone()));
    let gone = at("10.244.0.1:8080");
    assert_eq!(ended, BTreeSet::from([(1, gone), (5, gone)]));
    assert_eq!(left.keys().map(|peer| peer.socket).collect::<Vec<_>>(), [2, 3, 4]);
}
