//! What is a Service for this proxy at all, and which of its ports and families.

use model::{IpFamily, Protocol, Service, ServiceKind};

use super::Becomes::{Answer, Refused};
use super::From::{Node, Outside, Pod};
use super::How::{Tcp, Udp};
use super::Sees::{Client, Node as ItsNode};
use super::To::{
    BalancerIp, NodePort, NodePortAdmin, NodePortTcpNumber, Vip, VipAdmin, VipOtherPort, VipTcpNumber,
};
use super::{PacketCase, Scene, row};
use crate::cluster::{ADMIN, FAR, NEAR, TCP, UDP, VIP, port, with_balancer};

pub fn scenes() -> Vec<Scene> {
    [others(), ports(), families()].concat()
}

fn labelled(service: &mut Service, label: &str) {
    service.proxy_labels.insert(label.to_owned(), "other".to_owned());
}

const ALONE: [PacketCase; 6] = [
    row(Pod, Tcp, Vip, Answer("beyond", Client)),
    row(Pod, Udp, Vip, Answer("beyond", Client)),
    row(Node, Tcp, Vip, Answer("beyond", Client)),
    row(Outside, Tcp, Vip, Answer("beyond", Client)),
    row(Outside, Tcp, BalancerIp, Answer("beyond", Client)),
    row(Outside, Tcp, NodePort, Refused),
];

fn others() -> Vec<Scene> {
    vec![
        Scene::new("headless", [NEAR, FAR])
            .service(with_balancer)
            .service(|service| service.kind = ServiceKind::Headless)
            .rule("trap 12: a headless Service is left alone", ALONE),
        Scene::new("ExternalName", [NEAR, FAR])
            .service(with_balancer)
            .service(|service| service.kind = ServiceKind::ExternalName("example.org".to_owned()))
            .rule("trap 12: a Service of type ExternalName is left alone", ALONE),
        Scene::new("another proxy's", [NEAR, FAR])
            .service(with_balancer)
            .service(|service| labelled(service, "service.kubernetes.io/service-proxy-name"))
            .rule("trap 12, KEP-2447: another proxy's Service is left alone", ALONE),
        Scene::new("labelled headless", [NEAR, FAR])
            .service(with_balancer)
            .service(|service| labelled(service, "service.kubernetes.io/headless"))
            .rule("trap 12: what is labelled headless is left alone", ALONE),
        Scene::new("ours again", [NEAR, FAR]).service(with_balancer).rule(
            "trap 12: a label that is taken away is as if the Service were new",
            [
                row(Pod, Tcp, Vip, Answer("near far", Client)),
                row(Outside, Tcp, NodePort, Answer("near far", ItsNode)),
                row(Outside, Tcp, BalancerIp, Answer("near far", ItsNode)),
            ],
        ),
        Scene::new("the node's own DNS", [NEAR, FAR])
            .settings(|settings| settings.local_dns = VIP.both().into())
            .rule(
                "packets to an address that the node answers itself are left alone",
                [
                    row(Pod, Udp, Vip, Answer("beyond", Client)),
                    row(Pod, Tcp, Vip, Answer("beyond", Client)),
                    row(Outside, Udp, NodePort, Answer("near far", ItsNode)),
                ],
            ),
    ]
}

fn ports() -> Vec<Scene> {
    vec![
        Scene::new("two ports", [NEAR, FAR])
            .service(|service| service.ports.push(port("admin", Protocol::Tcp, ADMIN)))
            .rule(
                "named ports: each leads to the endpoints' port of its name",
                [
                    row(Pod, Tcp, VipAdmin, Answer("near-admin far-admin", Client)),
                    row(Pod, Tcp, Vip, Answer("near far", Client)),
                    row(
                        Outside,
                        Tcp,
                        NodePortAdmin,
                        Answer("near-admin far-admin", ItsNode),
                    ),
                    row(Outside, Tcp, NodePort, Answer("near far", ItsNode)),
                ],
            ),
        Scene::new("a port that no endpoint has", [NEAR, FAR])
            .service(|service| service.ports.push(port("nowhere", Protocol::Tcp, ADMIN)))
            .rule(
                "named ports: one that no endpoint has is refused",
                [
                    row(Pod, Tcp, VipAdmin, Refused),
                    row(Outside, Tcp, NodePortAdmin, Refused),
                    row(Pod, Tcp, Vip, Answer("near far", Client)),
                ],
            ),
        Scene::new("a port removed", [NEAR, FAR])
            .service(|service| {
                let of_udp = service.ports.iter().filter(|port| port.protocol == Protocol::Udp);
                service.ports = of_udp.cloned().collect();
            })
            .rule(
                "a port that the ClusterIP does not have is refused",
                [
                    row(Pod, Tcp, Vip, Refused),
                    row(Pod, Udp, Vip, Answer("near far", Client)),
                    row(Outside, Tcp, NodePort, Refused),
                ],
            ),
        Scene::new("one number for two protocols", [NEAR, FAR])
            .service(|service| {
                service.ports = [port("TCP", Protocol::Tcp, TCP), port("UDP", Protocol::Udp, TCP)].into();
            })
            .rule(
                "trap 14: TCP and UDP may have one port number",
                [
                    row(Pod, Tcp, VipTcpNumber, Answer("near far", Client)),
                    row(Pod, Udp, VipTcpNumber, Answer("near far", Client)),
                    row(Outside, Tcp, NodePortTcpNumber, Answer("near far", ItsNode)),
                    row(Outside, Udp, NodePortTcpNumber, Answer("near far", ItsNode)),
                    row(Pod, Udp, Vip, Refused),
                ],
            ),
        Scene::new("one number for two protocols, one without endpoints", [NEAR, FAR])
            .service(|service| {
                service.ports = [
                    port("TCP", Protocol::Tcp, TCP),
                    port("nowhere", Protocol::Udp, TCP),
                ]
                .into();
            })
            .rule(
                "trap 14: protocols of one number have nothing in common",
                [
                    row(Pod, Tcp, VipTcpNumber, Answer("near far", Client)),
                    row(Pod, Udp, VipTcpNumber, Refused),
                ],
            ),
        Scene::new("no node ports", [NEAR, FAR])
            .service(|service| service.ports.iter_mut().for_each(|port| port.node_port = None))
            .service(with_balancer)
            .rule(
                "KEP-1864: a balancer needs no node ports",
                [
                    row(Outside, Tcp, NodePort, Refused),
                    row(Outside, Tcp, BalancerIp, Answer("near far", ItsNode)),
                    row(Pod, Udp, Vip, Answer("near far", Client)),
                ],
            ),
        Scene::new("node port numbers swapped", [NEAR, FAR])
            .service(|service| {
                service.ports = [
                    port("TCP", Protocol::Tcp, (UDP.0, TCP.1)),
                    port("UDP", Protocol::Udp, (TCP.0, UDP.1)),
                ]
                .into();
            })
            .rule(
                "trap 14: a port is known by its name, not by its number",
                [
                    row(Pod, Udp, VipTcpNumber, Answer("near far", Client)),
                    row(Pod, Tcp, Vip, Refused),
                    row(Outside, Tcp, NodePort, Answer("near far", ItsNode)),
                ],
            ),
    ]
}

fn families() -> Vec<Scene> {
    vec![
        Scene::new("endpoints of IPv4", [NEAR.v4_only(), FAR.v4_only()])
            .service(with_balancer)
            .rule(
                "dual stack: a family has its own endpoints, or none",
                [
                    row(Pod, Tcp, Vip, Answer("near far", Client)).v4(),
                    row(Outside, Tcp, NodePort, Answer("near far", ItsNode)).v4(),
                    row(Pod, Tcp, Vip, Refused).v6(),
                    row(Pod, Udp, Vip, Refused).v6(),
                    row(Outside, Tcp, NodePort, Refused).v6(),
                    row(Outside, Tcp, BalancerIp, Refused).v6(),
                ],
            ),
        Scene::new("an endpoint of IPv4 more", [NEAR.v4_only(), FAR]).rule(
            "dual stack: a family has its own endpoints",
            [
                row(Pod, Tcp, Vip, Answer("near far", Client)).v4(),
                row(Pod, Tcp, Vip, Answer("far", Client)).v6(),
            ],
        ),
        Scene::new("single stack", [NEAR, FAR])
            .service(|service| {
                let addresses = [VIP.of(IpFamily::V4)].into();
                service.kind = ServiceKind::ClusterIp { addresses };
            })
            .rule(
                "dual stack: a Service of one family is none of the other's",
                [
                    row(Pod, Tcp, Vip, Answer("near far", Client)).v4(),
                    row(Outside, Tcp, NodePort, Answer("near far", ItsNode)).v4(),
                    row(Pod, Tcp, VipOtherPort, Refused).v4(),
                    row(Pod, Tcp, Vip, Answer("beyond", Client)).v6(),
                    row(Pod, Tcp, VipOtherPort, Answer("beyond", Client)).v6(),
                    row(Outside, Tcp, NodePort, Refused).v6(),
                ],
            ),
        Scene::new("single stack of IPv6", [NEAR, FAR])
            .service(|service| {
                let addresses = [VIP.of(IpFamily::V6)].into();
                service.kind = ServiceKind::ClusterIp { addresses };
            })
            .rule(
                "dual stack: a Service of one family is none of the other's",
                [
                    row(Pod, Tcp, Vip, Answer("beyond", Client)).v4(),
                    row(Outside, Tcp, NodePort, Refused).v4(),
                    row(Pod, Tcp, Vip, Answer("near far", Client)).v6(),
                    row(Outside, Udp, NodePort, Answer("near far", ItsNode)).v6(),
                ],
            ),
        Scene::new("a node that serves IPv4", [NEAR, FAR])
            .settings(|settings| settings.families = [IpFamily::V4].into())
            .rule(
                "a family that the node does not serve is left alone, whatever it did before",
                [
                    row(Pod, Tcp, Vip, Answer("near far", Client)).v4(),
                    row(Pod, Tcp, Vip, Answer("beyond", Client)).v6(),
                    row(Outside, Tcp, NodePort, Refused).v6(),
                ],
            ),
    ]
}
