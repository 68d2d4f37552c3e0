//! `externalTrafficPolicy` and `internalTrafficPolicy`, with endpoints here, elsewhere, and nowhere.

use model::TrafficPolicy::Local;

use super::Becomes::{Answer, Refused, Silence};
use super::From::{Far, Near, Node, Outside, Pod, Stranger};
use super::How::{Sctp, Tcp, Udp, UdpUnconnected};
use super::Sees::{Client, Node as ItsNode};
use super::To::{BalancerIp, ExternalIp, LoopbackNodePort, NodePort, RemoteNodePort, SecondNodeAddress, Vip};
use super::{Scene, row};
use crate::cluster::{EndpointAt, FAR, NEAR, with_balancer, with_external_addresses, with_sctp};

pub fn scenes() -> Vec<Scene> {
    [external_local(), internal_local(), both_local()].concat()
}

/// With every kind of frontend.
fn scene(name: &'static str, endpoints: impl Into<Vec<EndpointAt>>) -> Scene {
    Scene::new(name, endpoints)
        .service(with_balancer)
        .service(with_external_addresses)
        .service(with_sctp)
        .settings(|settings| settings.external_addresses = true)
}

fn external_local() -> Vec<Scene> {
    let scene = |name, endpoints: &[EndpointAt]| {
        scene(name, endpoints).service(|service| service.external_policy = Local)
    };
    vec![
        scene("external Local, both", &[NEAR, FAR])
            .rule(
                "trap 4a: external policy Local, a pod gets any endpoint and keeps its address",
                [
                    row(Pod, Tcp, NodePort, Answer("near far", Client)),
                    row(Pod, Udp, NodePort, Answer("near far", Client)),
                    row(Pod, UdpUnconnected, NodePort, Answer("near far", Client)),
                    row(Pod, Sctp, NodePort, Answer("near far", Client)),
                    row(Pod, Tcp, BalancerIp, Answer("near far", Client)),
                    row(Pod, Udp, BalancerIp, Answer("near far", Client)),
                    row(Pod, Tcp, ExternalIp, Answer("near far", Client)),
                    row(Pod, Tcp, SecondNodeAddress, Answer("near far", Client)),
                ],
            )
            .rule(
                "trap 4b: external policy Local, the node gets any endpoint and is masqueraded",
                [
                    row(Node, Tcp, NodePort, Answer("near far", ItsNode)),
                    row(Node, Udp, NodePort, Answer("near far", ItsNode)),
                    row(Node, Sctp, NodePort, Answer("near far", ItsNode)),
                    row(Node, Tcp, BalancerIp, Answer("near far", ItsNode)),
                    row(Node, Tcp, ExternalIp, Answer("near far", ItsNode)),
                    row(Node, Tcp, SecondNodeAddress, Answer("near far", ItsNode)),
                ],
            )
            .rule(
                "trap 4c: external policy Local, outside clients get an endpoint here and keep their address",
                [
                    row(Outside, Tcp, NodePort, Answer("near", Client)),
                    row(Outside, Udp, NodePort, Answer("near", Client)),
                    row(Outside, Sctp, NodePort, Answer("near", Client)),
                    row(Outside, Tcp, BalancerIp, Answer("near", Client)),
                    row(Outside, Udp, BalancerIp, Answer("near", Client)),
                    row(Outside, Tcp, ExternalIp, Answer("near", Client)),
                    row(Stranger, Tcp, NodePort, Answer("near", Client)),
                    row(Stranger, Tcp, SecondNodeAddress, Answer("near", Client)),
                ],
            )
            .rule(
                "trap 3: external policy Local leaves ClusterIPs alone",
                [
                    row(Pod, Tcp, Vip, Answer("near far", Client)),
                    row(Outside, Tcp, Vip, Answer("near far", ItsNode)),
                ],
            )
            .rule(
                "external policy Local: another node decides for itself",
                [
                    row(Pod, Tcp, RemoteNodePort, Answer("beyond", Client)),
                    row(Node, Tcp, RemoteNodePort, Answer("beyond", Client)),
                ],
            )
            .rule(
                "trap 4b: loopback is the node",
                [row(Node, Tcp, LoopbackNodePort, Refused).hook(Answer("near far", ItsNode))],
            ),
        scene("external Local, far", &[FAR])
            .rule(
                "trap 4a: external policy Local, pods get endpoints of other nodes",
                [
                    row(Pod, Tcp, NodePort, Answer("far", Client)),
                    row(Pod, Tcp, BalancerIp, Answer("far", Client)),
                    row(Pod, Tcp, ExternalIp, Answer("far", Client)),
                    row(Near, Udp, NodePort, Answer("far", Client)),
                ],
            )
            .rule(
                "trap 4b: external policy Local, the node gets endpoints of other nodes",
                [
                    row(Node, Tcp, NodePort, Answer("far", ItsNode)),
                    row(Node, Tcp, BalancerIp, Answer("far", ItsNode)),
                    row(Node, Tcp, ExternalIp, Answer("far", ItsNode)),
                ],
            )
            .rule(
                "trap 1, 4c: external policy Local, without an endpoint here outside clients are dropped",
                [
                    row(Outside, Tcp, NodePort, Silence),
                    row(Outside, Udp, NodePort, Silence),
                    row(Outside, Sctp, NodePort, Silence),
                    row(Outside, Tcp, BalancerIp, Silence),
                    row(Outside, Tcp, ExternalIp, Silence),
                ],
            ),
        scene("external Local, near", &[NEAR])
            .rule(
                "trap 4c: external policy Local, outside clients keep their address",
                [row(Outside, Tcp, NodePort, Answer("near", Client))],
            )
            .rule(
                "trap 4a: external policy Local, pods of other nodes are pods",
                [
                    row(Far, Tcp, NodePort, Answer("near", Client)),
                    row(Far, Tcp, BalancerIp, Answer("near", Client)),
                ],
            )
            .rule(
                "hairpin: an endpoint that is sent to itself, external policy Local",
                [
                    row(Near, Tcp, NodePort, Answer("near", ItsNode)).hook(Answer("near", Client)),
                    row(Near, Tcp, BalancerIp, Answer("near", ItsNode)).hook(Answer("near", Client)),
                ],
            ),
        scene("external Local, none", &[]).rule(
            "trap 1: external policy Local, without any endpoint everyone is refused",
            [
                row(Outside, Tcp, NodePort, Refused),
                row(Outside, Tcp, BalancerIp, Refused),
                row(Outside, Tcp, ExternalIp, Refused),
                row(Pod, Tcp, NodePort, Refused),
                row(Node, Tcp, BalancerIp, Refused),
            ],
        ),
    ]
}

fn internal_local() -> Vec<Scene> {
    let scene = |name, endpoints: &[EndpointAt]| {
        scene(name, endpoints).service(|service| service.internal_policy = Local)
    };
    vec![
        scene("internal Local, both", &[NEAR, FAR])
            .rule(
                "KEP-2086: internal policy Local, only endpoints of this node",
                [
                    row(Pod, Tcp, Vip, Answer("near", Client)),
                    row(Pod, Udp, Vip, Answer("near", Client)),
                    row(Pod, UdpUnconnected, Vip, Answer("near", Client)),
                    row(Pod, Sctp, Vip, Answer("near", Client)),
                    row(Node, Tcp, Vip, Answer("near", ItsNode)),
                    row(Outside, Tcp, Vip, Answer("near", ItsNode)),
                    row(Near, Tcp, Vip, Answer("near", ItsNode)).hook(Answer("near", Client)),
                ],
            )
            .rule(
                "trap 6: internal policy Local is for ClusterIPs only",
                [
                    row(Pod, Tcp, NodePort, Answer("near far", ItsNode)).hook(Answer("near far", Client)),
                    row(Outside, Tcp, NodePort, Answer("near far", ItsNode)),
                    row(Outside, Tcp, BalancerIp, Answer("near far", ItsNode)),
                    row(Pod, Tcp, ExternalIp, Answer("near far", ItsNode)).hook(Answer("near far", Client)),
                    row(Node, Tcp, NodePort, Answer("near far", ItsNode)),
                ],
            ),
        scene("internal Local, far", &[FAR])
            .rule(
                "trap 1: internal policy Local, without an endpoint here clients are dropped",
                [
                    row(Pod, Tcp, Vip, Silence),
                    row(Pod, Udp, Vip, Silence),
                    row(Pod, UdpUnconnected, Vip, Silence),
                    row(Node, Tcp, Vip, Silence),
                    row(Outside, Tcp, Vip, Silence),
                ],
            )
            .rule(
                "trap 6: internal policy Local is for ClusterIPs only",
                [
                    row(Pod, Tcp, NodePort, Answer("far", ItsNode)).hook(Answer("far", Client)),
                    row(Outside, Tcp, NodePort, Answer("far", ItsNode)),
                    row(Outside, Tcp, ExternalIp, Answer("far", ItsNode)),
                ],
            ),
        scene("internal Local, near", &[NEAR]).rule(
            "KEP-2086: internal policy Local, only endpoints of this node",
            [
                row(Pod, Tcp, Vip, Answer("near", Client)),
                row(Far, Tcp, Vip, Answer("near", Client)),
            ],
        ),
        scene("internal Local, none", &[]).rule(
            "trap 1: internal policy Local, without any endpoint everyone is refused",
            [
                row(Pod, Tcp, Vip, Refused),
                row(Node, Tcp, Vip, Refused),
                row(Outside, Udp, Vip, Refused),
                row(Outside, Tcp, NodePort, Refused),
            ],
        ),
    ]
}

fn both_local() -> Vec<Scene> {
    let scene = |name, endpoints: &[EndpointAt]| {
        scene(name, endpoints).service(|service| {
            service.external_policy = Local;
            service.internal_policy = Local;
        })
    };
    vec![
        scene("both Local, both", &[NEAR, FAR]).rule(
            "trap 3: both policies Local, the short cuts still lead to all endpoints",
            [
                row(Pod, Tcp, Vip, Answer("near", Client)),
                row(Outside, Tcp, Vip, Answer("near", ItsNode)),
                row(Outside, Tcp, NodePort, Answer("near", Client)),
                row(Pod, Tcp, NodePort, Answer("near far", Client)),
                row(Node, Tcp, BalancerIp, Answer("near far", ItsNode)),
            ],
        ),
        scene("both Local, far", &[FAR]).rule(
            "trap 3: both policies Local, endpoints elsewhere",
            [
                row(Pod, Tcp, Vip, Silence),
                row(Outside, Tcp, NodePort, Silence),
                row(Outside, Udp, ExternalIp, Silence),
                row(Pod, Tcp, BalancerIp, Answer("far", Client)),
                row(Node, Tcp, NodePort, Answer("far", ItsNode)),
            ],
        ),
        scene("both Local, near", &[NEAR]).rule(
            "trap 3: both policies Local, endpoints here",
            [
                row(Pod, Tcp, Vip, Answer("near", Client)),
                row(Outside, Tcp, ExternalIp, Answer("near", Client)),
            ],
        ),
        scene("both Local, none", &[]).rule(
            "trap 1: both policies Local, without any endpoint everyone is refused",
            [
                row(Pod, Tcp, Vip, Refused),
                row(Outside, Tcp, NodePort, Refused),
                row(Outside, Tcp, BalancerIp, Refused),
            ],
        ),
    ]
}
