//! Node ports, and on which addresses they are served.

use proxy::{NodePortAddresses, Settings};

use super::Becomes::{Answer, Refused};
use super::From::{Far, Near, Node, Outside, Pod, Stranger};
use super::How::{Tcp, Udp, UdpUnconnected};
use super::Sees::{Client, Loopback, Node as ItsNode};
use super::To::{LoopbackNodePort, NodeOtherPort, NodePort, RemoteNodePort, SecondNodeAddress, Vip};
use super::{Scene, row};
use crate::cluster::{FAR, NEAR};

fn served_on(settings: &mut Settings, networks: &[&str]) {
    let networks = networks.iter().map(|network| network.parse().expect("a network"));
    settings.node_port_addresses = NodePortAddresses::Networks(networks.collect());
}

pub fn scenes() -> Vec<Scene> {
    [on_all_addresses(), on_some_addresses()].concat()
}

fn on_all_addresses() -> Vec<Scene> {
    vec![
        Scene::new("both ready", [NEAR, FAR])
            .rule(
                "trap 5: policy Cluster masquerades everyone at a node port",
                [
                    row(Outside, Tcp, NodePort, Answer("near far", ItsNode)),
                    row(Outside, Udp, NodePort, Answer("near far", ItsNode)),
                    row(Stranger, Tcp, NodePort, Answer("near far", ItsNode)),
                    row(Pod, Tcp, NodePort, Answer("near far", ItsNode)).hook(Answer("near far", Client)),
                    row(Pod, Udp, NodePort, Answer("near far", ItsNode)).hook(Answer("near far", Client)),
                    row(Pod, UdpUnconnected, NodePort, Answer("near far", ItsNode))
                        .hook(Answer("near far", Client)),
                    row(Near, Tcp, NodePort, Answer("near far", ItsNode)).hook(Answer("near far", Client)),
                    row(Far, Tcp, NodePort, Answer("near far", ItsNode)),
                    row(Node, Tcp, NodePort, Answer("near far", ItsNode)),
                    row(Node, Udp, NodePort, Answer("near far", ItsNode)),
                    row(Node, UdpUnconnected, NodePort, Answer("near far", ItsNode)),
                ],
            )
            .rule(
                "nodePortAddresses: by default all of the node's",
                [
                    row(Outside, Tcp, SecondNodeAddress, Answer("near far", ItsNode)),
                    row(Pod, Tcp, SecondNodeAddress, Answer("near far", ItsNode))
                        .hook(Answer("near far", Client)),
                    row(Node, Udp, SecondNodeAddress, Answer("near far", ItsNode)),
                ],
            )
            .rule(
                "a port of the node that is no Service's is the node's",
                [
                    row(Outside, Tcp, NodeOtherPort, Refused),
                    row(Outside, Udp, NodeOtherPort, Refused),
                    row(Pod, Tcp, NodeOtherPort, Refused),
                    row(Node, Tcp, NodeOtherPort, Refused),
                ],
            )
            .rule(
                "another node's node port is that node's matter, but the hook knows all nodes",
                [
                    row(Pod, Tcp, RemoteNodePort, Answer("beyond", Client)).hook(Answer("near far", Client)),
                    row(Pod, Udp, RemoteNodePort, Answer("beyond", Client)).hook(Answer("near far", Client)),
                    row(Node, Tcp, RemoteNodePort, Answer("beyond", Client))
                        .hook(Answer("near far", ItsNode)),
                    row(Outside, Tcp, RemoteNodePort, Answer("beyond", Client)),
                ],
            )
            .rule(
                "on the node's loopback only the hook serves node ports (CVE-2020-8558)",
                [
                    row(Node, Tcp, LoopbackNodePort, Refused).hook(Answer("near far", ItsNode)),
                    row(Node, Udp, LoopbackNodePort, Refused).hook(Answer("near far", ItsNode)),
                ],
            )
            .rule(
                "a pod's loopback is the pod's own",
                [
                    row(Pod, Tcp, LoopbackNodePort, Answer("pod", Loopback)),
                    row(Pod, Udp, LoopbackNodePort, Answer("pod", Loopback)),
                    row(Pod, UdpUnconnected, LoopbackNodePort, Answer("pod", Loopback)),
                    row(Near, Tcp, LoopbackNodePort, Refused),
                    row(Near, Udp, LoopbackNodePort, Refused),
                ],
            ),
        Scene::new("near ready", [NEAR])
            .rule(
                "trap 5: policy Cluster masquerades even to local endpoints",
                [
                    row(Outside, Tcp, NodePort, Answer("near", ItsNode)),
                    row(Far, Tcp, NodePort, Answer("near", ItsNode)),
                ],
            )
            .rule(
                "hairpin: an endpoint that is sent to itself",
                [
                    row(Near, Tcp, NodePort, Answer("near", ItsNode)).hook(Answer("near", Client)),
                    row(Near, Udp, NodePort, Answer("near", ItsNode)).hook(Answer("near", Client)),
                ],
            ),
        Scene::new("far ready", [FAR]).rule(
            "trap 5: policy Cluster takes clients of node ports to other nodes",
            [
                row(Outside, Tcp, NodePort, Answer("far", ItsNode)),
                row(Outside, Udp, NodePort, Answer("far", ItsNode)),
            ],
        ),
        Scene::new("none", [])
            .rule(
                "trap 1: without any endpoint the client is refused",
                [
                    row(Outside, Tcp, NodePort, Refused),
                    row(Outside, Udp, NodePort, Refused),
                    row(Pod, Tcp, NodePort, Refused),
                    row(Pod, Udp, NodePort, Refused),
                    row(Node, Tcp, NodePort, Refused),
                    row(Node, Tcp, LoopbackNodePort, Refused),
                ],
            )
            .rule(
                "a pod's loopback is the pod's own",
                [row(Pod, Tcp, LoopbackNodePort, Answer("pod", Loopback))],
            ),
    ]
}

fn on_some_addresses() -> Vec<Scene> {
    vec![
        Scene::new("on the primary address", [NEAR, FAR])
            .settings(|settings| settings.node_port_addresses = NodePortAddresses::Primary)
            .rule(
                "nodePortAddresses primary: the first InternalIP of each family",
                [
                    row(Outside, Tcp, NodePort, Answer("near far", ItsNode)),
                    row(Outside, Tcp, SecondNodeAddress, Refused),
                    row(Pod, Tcp, NodePort, Answer("near far", ItsNode)).hook(Answer("near far", Client)),
                    row(Pod, Tcp, SecondNodeAddress, Refused),
                    row(Node, Tcp, SecondNodeAddress, Refused),
                ],
            )
            .rule(
                "nodePortAddresses primary: not on loopback",
                [row(Node, Tcp, LoopbackNodePort, Refused)],
            ),
        Scene::new("on the second address", [NEAR, FAR])
            .settings(|settings| served_on(settings, &["172.30.78.0/24", "fd00:78::/64"]))
            .rule(
                "nodePortAddresses: the node's addresses in these networks",
                [
                    row(Outside, Tcp, NodePort, Refused),
                    row(Outside, Tcp, SecondNodeAddress, Answer("near far", ItsNode)),
                    row(Pod, Tcp, NodePort, Refused),
                    row(Pod, Udp, SecondNodeAddress, Answer("near far", ItsNode))
                        .hook(Answer("near far", Client)),
                    row(Node, Tcp, NodePort, Refused),
                    row(Node, Tcp, LoopbackNodePort, Refused),
                ],
            )
            .rule(
                "nodePortAddresses are no matter of ClusterIPs",
                [row(Pod, Tcp, Vip, Answer("near far", Client))],
            ),
        Scene::new("on loopback and the primary address", [NEAR, FAR])
            .settings(|settings| {
                let networks = ["127.0.0.0/8", "::1/128", "172.30.77.11/32", "fd00:77::/64"];
                served_on(settings, &networks);
            })
            .rule(
                "nodePortAddresses: loopback, where it is named",
                [
                    row(Node, Tcp, LoopbackNodePort, Refused).hook(Answer("near far", ItsNode)),
                    row(Outside, Tcp, NodePort, Answer("near far", ItsNode)),
                    row(Outside, Tcp, SecondNodeAddress, Refused),
                ],
            ),
        Scene::new("on addresses of IPv4", [NEAR, FAR])
            .settings(|settings| served_on(settings, &["172.30.78.0/24"]))
            .rule(
                "nodePortAddresses: a family without a network is served on all addresses",
                [
                    row(Outside, Tcp, NodePort, Refused).v4(),
                    row(Outside, Tcp, SecondNodeAddress, Answer("near far", ItsNode)).v4(),
                    row(Outside, Tcp, NodePort, Answer("near far", ItsNode)).v6(),
                    row(Outside, Tcp, SecondNodeAddress, Answer("near far", ItsNode)).v6(),
                ],
            ),
    ]
}
