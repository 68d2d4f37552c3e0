//! Addresses of load balancers, external addresses, and who may use them.

use ipnetwork::IpNetwork;
use model::Service;
use model::TrafficPolicy::Local;

use super::Becomes::{Answer, Refused, Silence};
use super::From::{Far, Near, Node, Outside, Pod, Stranger};
use super::How::{Sctp, Tcp, Udp, UdpUnconnected};
use super::Sees::{Client, Node as ItsNode};
use super::To::{BalancerIp, BalancerOtherPort, ExternalIp, ExternalOtherPort, NodePort, Vip};
use super::{Scene, row};
use crate::cluster::{FAR, NEAR, with_balancer, with_external_addresses, with_sctp};

pub fn scenes() -> Vec<Scene> {
    [
        balancers(),
        external_addresses(),
        source_ranges(),
        admitted_to_what(),
    ]
    .concat()
}

fn balancers() -> Vec<Scene> {
    vec![
        Scene::new("balancer, both ready", [NEAR, FAR])
            .service(with_balancer)
            .rule(
                "KEP-1860: nodes translate at the address of a balancer of ipMode VIP",
                [
                    row(Outside, Tcp, BalancerIp, Answer("near far", ItsNode)),
                    row(Outside, Udp, BalancerIp, Answer("near far", ItsNode)),
                    row(Pod, Tcp, BalancerIp, Answer("near far", ItsNode)).hook(Answer("near far", Client)),
                    row(Pod, Udp, BalancerIp, Answer("near far", ItsNode)).hook(Answer("near far", Client)),
                    row(Pod, UdpUnconnected, BalancerIp, Answer("near far", ItsNode))
                        .hook(Answer("near far", Client)),
                    row(Node, Tcp, BalancerIp, Answer("near far", ItsNode)),
                ],
            )
            .rule(
                "a port that the balancer's address does not have is not ours",
                [
                    row(Outside, Tcp, BalancerOtherPort, Answer("beyond", Client)),
                    row(Outside, Udp, BalancerOtherPort, Answer("beyond", Client)),
                    row(Pod, Tcp, BalancerOtherPort, Answer("beyond", Client)),
                    row(Node, Tcp, BalancerOtherPort, Answer("beyond", Client)),
                ],
            ),
        Scene::new("balancer, near ready", [NEAR])
            .service(with_balancer)
            .rule(
                "hairpin: an endpoint that is sent to itself",
                [
                    row(Near, Tcp, BalancerIp, Answer("near", ItsNode)).hook(Answer("near", Client)),
                    row(Near, Udp, BalancerIp, Answer("near", ItsNode)).hook(Answer("near", Client)),
                ],
            ),
        Scene::new("balancer, none", []).service(with_balancer).rule(
            "trap 1: without any endpoint the client is refused",
            [
                row(Outside, Tcp, BalancerIp, Refused),
                row(Outside, Udp, BalancerIp, Refused),
                row(Pod, Tcp, BalancerIp, Refused),
                row(Node, Tcp, BalancerIp, Refused),
                row(Outside, Tcp, BalancerOtherPort, Answer("beyond", Client)),
            ],
        ),
        Scene::new("balancer that translates itself", [NEAR, FAR])
            .service(|service| {
                with_balancer(service);
                service
                    .load_balancer
                    .iter_mut()
                    .for_each(|ingress| ingress.proxied = true);
            })
            .rule(
                "trap 11, KEP-1860: nodes leave packets to a balancer of ipMode Proxy alone",
                [
                    row(Outside, Tcp, BalancerIp, Answer("beyond", Client)),
                    row(Pod, Tcp, BalancerIp, Answer("beyond", Client)),
                    row(Pod, Udp, BalancerIp, Answer("beyond", Client)),
                    row(Node, Tcp, BalancerIp, Answer("beyond", Client)),
                    row(Outside, Tcp, NodePort, Answer("near far", ItsNode)),
                ],
            ),
        Scene::new("balancer of IPv4", [NEAR, FAR])
            .service(|service| {
                with_balancer(service);
                let of_v4 = service
                    .load_balancer
                    .iter()
                    .filter(|ingress| ingress.address.is_ipv4());
                service.load_balancer = of_v4.cloned().collect();
            })
            .rule(
                "trap 11: an address is served in its own family",
                [
                    row(Outside, Tcp, BalancerIp, Answer("near far", ItsNode)).v4(),
                    row(Outside, Tcp, BalancerIp, Answer("beyond", Client)).v6(),
                ],
            ),
        Scene::new("balancer, SCTP", [NEAR, FAR])
            .service(with_balancer)
            .service(with_sctp)
            .service(|service| ranges(service, &["172.30.77.0/24", "fd00:77::/64"]))
            .rule(
                "trap 10: source ranges are for every protocol",
                [
                    row(Outside, Sctp, BalancerIp, Answer("near far", ItsNode)),
                    row(Stranger, Sctp, BalancerIp, Silence),
                ],
            ),
    ]
}

fn external_addresses() -> Vec<Scene> {
    vec![
        Scene::new("external addresses, both ready", [NEAR, FAR])
            .service(with_external_addresses)
            .settings(|settings| settings.external_addresses = true)
            .rule(
                "trap 5: external addresses are served like node ports",
                [
                    row(Outside, Tcp, ExternalIp, Answer("near far", ItsNode)),
                    row(Outside, Udp, ExternalIp, Answer("near far", ItsNode)),
                    row(Pod, Tcp, ExternalIp, Answer("near far", ItsNode)).hook(Answer("near far", Client)),
                    row(Node, Tcp, ExternalIp, Answer("near far", ItsNode)),
                ],
            )
            .rule(
                "a port that the external address does not have is not ours",
                [
                    row(Outside, Tcp, ExternalOtherPort, Answer("beyond", Client)),
                    row(Pod, Tcp, ExternalOtherPort, Answer("beyond", Client)),
                ],
            ),
        Scene::new("external addresses, near ready", [NEAR])
            .service(with_external_addresses)
            .settings(|settings| settings.external_addresses = true)
            .rule(
                "hairpin: an endpoint that is sent to itself",
                [row(Near, Tcp, ExternalIp, Answer("near", ItsNode)).hook(Answer("near", Client))],
            ),
        Scene::new("external addresses, none", [])
            .service(with_external_addresses)
            .settings(|settings| settings.external_addresses = true)
            .rule(
                "trap 1: without any endpoint the client is refused",
                [
                    row(Outside, Tcp, ExternalIp, Refused),
                    row(Pod, Tcp, ExternalIp, Refused),
                    row(Node, Udp, ExternalIp, Refused),
                ],
            ),
        Scene::new("external addresses that are not allowed", [NEAR, FAR])
            .service(with_external_addresses)
            .rule(
                "CVE-2020-8554: externalIPs are served only where they are allowed",
                [
                    row(Outside, Tcp, ExternalIp, Answer("beyond", Client)),
                    row(Pod, Tcp, ExternalIp, Answer("beyond", Client)),
                    row(Node, Tcp, ExternalIp, Answer("beyond", Client)),
                    row(Pod, Tcp, Vip, Answer("near far", Client)),
                ],
            ),
    ]
}

fn ranges(service: &mut Service, ranges: &[&str]) {
    let ranges = ranges.iter().map(|range| {
        let (address, prefix) = range.split_once('/').expect("a range");
        let address = address.parse().expect("an address");
        IpNetwork::new(address, prefix.parse().expect("a prefix length")).expect("a range")
    });
    service.source_ranges = ranges.collect();
}

fn source_ranges() -> Vec<Scene> {
    vec![
        Scene::new("ranges of the outside's network", [NEAR, FAR])
            .service(with_balancer)
            .service(|service| ranges(service, &["172.30.77.0/24", "fd00:77::/64"]))
            .rule(
                "trap 10: clients in the source ranges are admitted, the node among them",
                [
                    row(Outside, Tcp, BalancerIp, Answer("near far", ItsNode)),
                    row(Outside, Udp, BalancerIp, Answer("near far", ItsNode)),
                    row(Node, Tcp, BalancerIp, Answer("near far", ItsNode)),
                ],
            )
            .rule(
                "trap 10: others are dropped, pods among them",
                [
                    row(Stranger, Tcp, BalancerIp, Silence),
                    row(Stranger, Udp, BalancerIp, Silence),
                    row(Pod, Tcp, BalancerIp, Silence),
                    row(Pod, Udp, BalancerIp, Silence),
                    row(Pod, UdpUnconnected, BalancerIp, Silence),
                    row(Near, Tcp, BalancerIp, Silence),
                    row(Far, Tcp, BalancerIp, Silence),
                ],
            )
            .rule(
                "trap 10: source ranges are no matter of ClusterIPs and node ports",
                [
                    row(Stranger, Tcp, NodePort, Answer("near far", ItsNode)),
                    row(Stranger, Tcp, Vip, Answer("near far", ItsNode)),
                    row(Pod, Tcp, Vip, Answer("near far", Client)),
                    row(Pod, Tcp, NodePort, Answer("near far", ItsNode)).hook(Answer("near far", Client)),
                ],
            ),
        Scene::new("ranges of the pods", [NEAR, FAR])
            .service(with_balancer)
            .service(|service| ranges(service, &["10.244.0.0/16", "fd00:244::/32"]))
            .rule(
                "trap 10: pods in the source ranges are admitted, the node and the outside are not",
                [
                    row(Pod, Tcp, BalancerIp, Answer("near far", ItsNode)),
                    row(Pod, UdpUnconnected, BalancerIp, Answer("near far", ItsNode)),
                    row(Outside, Tcp, BalancerIp, Silence),
                    row(Node, Tcp, BalancerIp, Silence),
                ],
            ),
        Scene::new("ranges with everything", [NEAR, FAR])
            .service(with_balancer)
            .service(|service| ranges(service, &["10.1.0.0/16", "0.0.0.0/0", "fd01::/16", "::/0"]))
            .rule(
                "trap 10: a range of length 0 is no filter",
                [
                    row(Outside, Tcp, BalancerIp, Answer("near far", ItsNode)),
                    row(Stranger, Tcp, BalancerIp, Answer("near far", ItsNode)),
                    row(Pod, Tcp, BalancerIp, Answer("near far", ItsNode)).hook(Answer("near far", Client)),
                ],
            ),
        Scene::new("ranges of IPv6", [NEAR, FAR])
            .service(with_balancer)
            .service(|service| ranges(service, &["fd00:77::/64"]))
            .rule(
                "trap 10: ranges of one family leave the other open",
                [
                    row(Stranger, Tcp, BalancerIp, Answer("near far", ItsNode)).v4(),
                    row(Pod, Tcp, BalancerIp, Answer("near far", ItsNode))
                        .hook(Answer("near far", Client))
                        .v4(),
                    row(Outside, Tcp, BalancerIp, Answer("near far", ItsNode)).v6(),
                    row(Stranger, Tcp, BalancerIp, Silence).v6(),
                    row(Pod, Tcp, BalancerIp, Silence).v6(),
                ],
            ),
        Scene::new("ranges that overlap", [NEAR, FAR])
            .service(with_balancer)
            .service(|service| {
                let v4 = [
                    "172.30.77.0/24",
                    "172.30.0.0/16",
                    "172.30.77.50/32",
                    "172.30.76.0/23",
                ];
                let v6 = ["fd00:77::/64", "fd00:77::/32", "fd00:77::50/128"];
                ranges(service, &[&v4[..], &v6[..]].concat());
            })
            .rule(
                "source ranges may lie in each other, meet and repeat",
                [
                    row(Outside, Tcp, BalancerIp, Answer("near far", ItsNode)),
                    row(Stranger, Tcp, BalancerIp, Answer("near far", ItsNode)).v4(),
                    row(Stranger, Tcp, BalancerIp, Silence).v6(),
                    row(Pod, Tcp, BalancerIp, Silence),
                ],
            ),
        Scene::new("ranges that are neighbours", [NEAR, FAR])
            .service(with_balancer)
            .service(|service| {
                let v4 = ["172.30.78.0/24", "172.30.79.0/24", "255.255.255.255/32"];
                let v6 = ["fd00:78::/32", "fd00:79::/32", "ffff::/16"];
                ranges(service, &[&v4[..], &v6[..]].concat());
            })
            .rule(
                "source ranges may touch each other and the end of all addresses",
                [
                    row(Stranger, Tcp, BalancerIp, Answer("near far", ItsNode)),
                    row(Outside, Tcp, BalancerIp, Silence),
                    row(Pod, Tcp, BalancerIp, Silence),
                ],
            ),
        Scene::new("ranges with bits behind the prefix", [NEAR, FAR])
            .service(with_balancer)
            .service(|service| ranges(service, &["172.30.77.200/24", "fd00:77::abcd/64"]))
            .rule(
                "a source range with bits behind its prefix is its network",
                [
                    row(Outside, Tcp, BalancerIp, Answer("near far", ItsNode)),
                    row(Stranger, Tcp, BalancerIp, Silence),
                ],
            ),
    ]
}

/// Source ranges with everything else that happens at an address of a balancer.
fn admitted_to_what() -> Vec<Scene> {
    vec![
        Scene::new("ranges, none", [])
            .service(with_balancer)
            .service(|service| ranges(service, &["172.30.77.0/24", "fd00:77::/64"]))
            .rule(
                "trap 10: clients outside the ranges are dropped, not refused",
                [
                    row(Outside, Tcp, BalancerIp, Refused),
                    row(Stranger, Tcp, BalancerIp, Silence),
                    row(Pod, Tcp, BalancerIp, Silence),
                    row(Pod, Udp, BalancerIp, Silence),
                ],
            ),
        Scene::new("ranges, external policy Local", [NEAR, FAR])
            .service(with_balancer)
            .service(|service| ranges(service, &["172.30.77.0/24", "fd00:77::/64"]))
            .service(|service| service.external_policy = Local)
            .rule(
                "trap 10: source ranges come before the policy",
                [
                    row(Outside, Tcp, BalancerIp, Answer("near", Client)),
                    row(Stranger, Tcp, BalancerIp, Silence),
                    row(Pod, Tcp, BalancerIp, Silence),
                    row(Node, Tcp, BalancerIp, Answer("near far", ItsNode)),
                    row(Stranger, Tcp, NodePort, Answer("near", Client)),
                ],
            ),
        Scene::new("ranges and external addresses", [NEAR, FAR])
            .service(with_balancer)
            .service(with_external_addresses)
            .service(|service| ranges(service, &["172.30.77.0/24", "fd00:77::/64"]))
            .settings(|settings| settings.external_addresses = true)
            .rule(
                "trap 10: source ranges are no matter of external addresses",
                [
                    row(Stranger, Tcp, ExternalIp, Answer("near far", ItsNode)),
                    row(Pod, Tcp, ExternalIp, Answer("near far", ItsNode)).hook(Answer("near far", Client)),
                    row(Stranger, Tcp, BalancerIp, Silence),
                ],
            ),
    ]
}
