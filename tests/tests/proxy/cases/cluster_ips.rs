//! ClusterIPs.

use super::Becomes::{Answer, Refused, Silence};
use super::From::{Far, Near, Node, Outside, Pod, Stranger};
use super::How::{Sctp, Tcp, Udp, UdpUnconnected};
use super::Sees::{Client, Node as ItsNode};
use super::To::{BalancerIp, ExternalIp, NodeOtherPort, NodePort, Vip, VipOtherPort};
use super::{BEYOND, Scene, row};
use crate::cluster::{FAR, FAR2, NEAR, NEAR2, with_sctp};

pub fn scenes() -> Vec<Scene> {
    vec![
        Scene::new("both ready", [NEAR, FAR])
            .rule(
                "trap 7: a pod keeps its address at a ClusterIP",
                [
                    row(Pod, Tcp, Vip, Answer("near far", Client)),
                    row(Pod, Udp, Vip, Answer("near far", Client)),
                    row(Pod, UdpUnconnected, Vip, Answer("near far", Client)),
                ],
            )
            .rule(
                "trap 7: at a ClusterIP the node is masqueraded",
                [
                    row(Node, Tcp, Vip, Answer("near far", ItsNode)),
                    row(Node, Udp, Vip, Answer("near far", ItsNode)),
                    row(Node, UdpUnconnected, Vip, Answer("near far", ItsNode)),
                ],
            )
            .rule(
                "trap 7: at a ClusterIP clients outside are masqueraded",
                [
                    row(Outside, Tcp, Vip, Answer("near far", ItsNode)),
                    row(Outside, Udp, Vip, Answer("near far", ItsNode)),
                    row(Stranger, Tcp, Vip, Answer("near far", ItsNode)),
                ],
            )
            .rule(
                "a port that the ClusterIP does not have is refused",
                [
                    row(Pod, Tcp, VipOtherPort, Refused),
                    row(Pod, Udp, VipOtherPort, Refused),
                    row(Pod, UdpUnconnected, VipOtherPort, Silence),
                    row(Outside, Tcp, VipOtherPort, Refused),
                    row(Outside, Udp, VipOtherPort, Refused),
                    row(Node, Tcp, VipOtherPort, Refused),
                    row(Node, Udp, VipOtherPort, Refused),
                    row(Near, Tcp, VipOtherPort, Refused),
                ],
            ),
        Scene::new("four ready", [NEAR, NEAR2, FAR, FAR2]).rule(
            "connections are spread over all endpoints",
            [
                row(Pod, Tcp, Vip, Answer("near near2 far far2", Client)),
                row(Pod, Udp, Vip, Answer("near near2 far far2", Client)),
                row(Outside, Tcp, NodePort, Answer("near near2 far far2", ItsNode)),
            ],
        ),
        Scene::new("near ready", [NEAR])
            .rule(
                "hairpin: an endpoint that is sent to itself",
                [
                    row(Near, Tcp, Vip, Answer("near", ItsNode)).hook(Answer("near", Client)),
                    row(Near, Udp, Vip, Answer("near", ItsNode)).hook(Answer("near", Client)),
                    row(Near, UdpUnconnected, Vip, Answer("near", ItsNode)).hook(Answer("near", Client)),
                ],
            )
            .rule(
                "trap 7: pods of other nodes are pods too",
                [
                    row(Far, Tcp, Vip, Answer("near", Client)),
                    row(Far, Udp, Vip, Answer("near", Client)),
                ],
            ),
        Scene::new("far ready", [FAR]).rule(
            "trap 7: an endpoint's own connections are a pod's",
            [row(Near, Tcp, Vip, Answer("far", Client))],
        ),
        Scene::new("none", []).rule(
            "trap 1: without any endpoint the client is refused",
            [
                row(Pod, Tcp, Vip, Refused),
                row(Pod, Udp, Vip, Refused),
                row(Node, Tcp, Vip, Refused),
                row(Node, Udp, Vip, Refused),
                row(Outside, Tcp, Vip, Refused),
                row(Outside, Udp, Vip, Refused),
            ],
        ),
        Scene::new("networks of ClusterIPs are known", [NEAR, FAR])
            .service_networks(&["10.96.0.0/12", "198.51.100.0/24"])
            .service_networks(&["fd00:96::/108", "2001:db8:51::/64"])
            .rule(
                "KEP-3866: an address of Services that none has is not let out",
                [
                    row(Pod, Tcp, ExternalIp, Silence),
                    row(Pod, Udp, ExternalIp, Silence),
                    row(Pod, UdpUnconnected, ExternalIp, Silence),
                    row(Node, Tcp, ExternalIp, Silence),
                    row(Outside, Tcp, ExternalIp, Silence),
                    row(Outside, Udp, ExternalIp, Silence),
                ],
            )
            .rule(
                "KEP-3866: other addresses, and those of Services, are as they were",
                [
                    row(Pod, Tcp, Vip, Answer("near far", Client)),
                    row(Node, Udp, Vip, Answer("near far", ItsNode)),
                    row(Pod, Tcp, VipOtherPort, Refused),
                    row(Pod, Udp, BalancerIp, Answer(BEYOND, Client)),
                ],
            ),
        Scene::new(
            "the node's own address is in a network of ClusterIPs",
            [NEAR, FAR],
        )
        .service_networks(&["172.30.77.0/24", "fd00:77::/64"])
        .rule(
            "KEP-3866: what the node has itself is the node's",
            [
                row(Outside, Tcp, NodePort, Answer("near far", ItsNode)),
                row(Pod, Udp, NodePort, Answer("near far", ItsNode)).hook(Answer("near far", Client)),
                row(Outside, Tcp, NodeOtherPort, Refused),
            ],
        ),
        Scene::new("SCTP, both ready", [NEAR, FAR])
            .service(with_sctp)
            .rule(
                "KEP-614: SCTP is translated as packets, connections of pods and all others",
                [
                    row(Pod, Sctp, Vip, Answer("near far", Client)),
                    row(Outside, Sctp, Vip, Answer("near far", ItsNode)),
                    row(Node, Sctp, Vip, Answer("near far", ItsNode)),
                    row(Outside, Sctp, NodePort, Answer("near far", ItsNode)),
                    row(Pod, Sctp, NodePort, Answer("near far", ItsNode)),
                    row(Pod, Sctp, VipOtherPort, Refused),
                ],
            ),
        Scene::new("SCTP, near ready", [NEAR]).service(with_sctp).rule(
            "hairpin: an endpoint that is sent to itself",
            [row(Near, Sctp, Vip, Answer("near", ItsNode))],
        ),
        Scene::new("SCTP, none", []).service(with_sctp).rule(
            "trap 1: without any endpoint the client is refused",
            [
                row(Pod, Sctp, Vip, Refused),
                row(Outside, Sctp, NodePort, Refused),
            ],
        ),
    ]
}
