//! Who is masqueraded, by each way to tell pods from others.

use model::TrafficPolicy::Local;
use proxy::{DetectLocal, Settings};

use super::Becomes::{Answer, Silence};
use super::From::{Far, Near, Node, Outside, Pod};
use super::How::{Tcp, Udp};
use super::Sees::{Client, Node as ItsNode};
use super::To::{NodePort, Vip};
use super::{Scene, row};
use crate::cluster::{FAR, NEAR};

fn detector_off(settings: &mut Settings) {
    settings.detect_local = DetectLocal::Off;
}

fn by_interface(settings: &mut Settings) {
    settings.detect_local = DetectLocal::BridgeInterface("pod".to_owned());
}

fn by_prefix(settings: &mut Settings) {
    settings.detect_local = DetectLocal::InterfaceNamePrefix("nea".to_owned());
}

fn by_node_networks(settings: &mut Settings) {
    settings.detect_local = DetectLocal::NodeCidr;
}

fn masquerade_all(settings: &mut Settings) {
    settings.masquerade_all = true;
}

pub fn scenes() -> Vec<Scene> {
    [networks(), interfaces(), off(), all()].concat()
}

fn networks() -> Vec<Scene> {
    vec![
        Scene::new("pods by the node's networks, near", [NEAR])
            .settings(by_node_networks)
            .rule(
                "trap 7, NodeCIDR: pods of this node keep their address",
                [
                    row(Pod, Tcp, Vip, Answer("near", Client)),
                    row(Pod, Udp, Vip, Answer("near", Client)),
                ],
            )
            .rule(
                "trap 7, NodeCIDR: everyone else is masqueraded",
                [
                    row(Far, Tcp, Vip, Answer("near", ItsNode)),
                    row(Node, Tcp, Vip, Answer("near", ItsNode)),
                    row(Outside, Tcp, Vip, Answer("near", ItsNode)),
                ],
            ),
        Scene::new("pods by the node's networks, external Local, far", [FAR])
            .settings(by_node_networks)
            .service(|service| service.external_policy = Local)
            .rule(
                "trap 4, NodeCIDR: pods of other nodes come from outside",
                [
                    row(Far, Tcp, NodePort, Silence),
                    row(Pod, Tcp, NodePort, Answer("far", Client)),
                ],
            ),
        Scene::new("pods by networks of IPv4", [NEAR, FAR])
            .settings(|settings| {
                let networks = ["10.244.0.0/16".parse().expect("a network")];
                settings.detect_local = DetectLocal::ClusterCidr(networks.into());
            })
            .rule(
                "trap 7, ClusterCIDR: a family without networks has no detector",
                [
                    row(Pod, Tcp, Vip, Answer("near far", Client)),
                    row(Outside, Tcp, Vip, Answer("near far", ItsNode)).v4(),
                    row(Outside, Tcp, Vip, Answer("near far", Client)).v6(),
                ],
            ),
        Scene::new("pods by two networks", [FAR])
            .settings(|settings| {
                let networks = [
                    "10.244.1.0/24",
                    "10.244.3.0/24",
                    "fd00:244:1::/48",
                    "fd00:244:3::/48",
                ];
                let networks = networks.map(|network| network.parse().expect("a network"));
                settings.detect_local = DetectLocal::ClusterCidr(networks.into());
            })
            .service(|service| service.external_policy = Local)
            .rule(
                "trap 7, ClusterCIDR: pods are in any of the networks",
                [
                    row(Pod, Tcp, Vip, Answer("far", Client)),
                    row(Near, Tcp, Vip, Answer("far", Client)),
                    row(Outside, Tcp, Vip, Answer("far", ItsNode)),
                    row(Pod, Tcp, NodePort, Answer("far", Client)),
                    row(Near, Tcp, NodePort, Answer("far", Client)),
                    row(Far, Tcp, NodePort, Silence),
                ],
            ),
    ]
}

fn interfaces() -> Vec<Scene> {
    vec![
        Scene::new("pods by a bridge", [FAR])
            .settings(by_interface)
            .rule(
                "trap 7, BridgeInterface: what comes in by it keeps its address",
                [
                    row(Pod, Tcp, Vip, Answer("far", Client)),
                    row(Pod, Udp, Vip, Answer("far", Client)),
                ],
            )
            .rule(
                "trap 7, BridgeInterface: everyone else is masqueraded",
                [
                    row(Near, Tcp, Vip, Answer("far", ItsNode)).hook(Answer("far", Client)),
                    row(Node, Tcp, Vip, Answer("far", ItsNode)),
                    row(Outside, Tcp, Vip, Answer("far", ItsNode)),
                ],
            ),
        Scene::new("pods by a bridge, external Local, far", [FAR])
            .settings(by_interface)
            .service(|service| service.external_policy = Local)
            .rule(
                "trap 4, BridgeInterface: only what comes in by it has the short cut",
                [
                    row(Pod, Tcp, NodePort, Answer("far", Client)),
                    row(Near, Tcp, NodePort, Silence).hook(Answer("far", Client)),
                    row(Node, Tcp, NodePort, Answer("far", ItsNode)),
                    row(Outside, Tcp, NodePort, Silence),
                ],
            ),
        Scene::new("pods by a prefix", [FAR])
            .settings(by_prefix)
            .rule(
                "trap 7, InterfaceNamePrefix: what comes in by such a device keeps its address",
                [
                    row(Near, Tcp, Vip, Answer("far", Client)),
                    row(Near, Udp, Vip, Answer("far", Client)),
                ],
            )
            .rule(
                "trap 7, InterfaceNamePrefix: everyone else is masqueraded",
                [
                    row(Pod, Tcp, Vip, Answer("far", ItsNode)).hook(Answer("far", Client)),
                    row(Node, Tcp, Vip, Answer("far", ItsNode)),
                    row(Outside, Udp, Vip, Answer("far", ItsNode)),
                ],
            ),
        Scene::new("pods by a prefix, external Local, far", [FAR])
            .settings(by_prefix)
            .service(|service| service.external_policy = Local)
            .rule(
                "trap 4, InterfaceNamePrefix: only what comes in by such a device has the short cut",
                [
                    row(Near, Tcp, NodePort, Answer("far", Client)),
                    row(Pod, Tcp, NodePort, Silence).hook(Answer("far", Client)),
                    row(Node, Tcp, NodePort, Answer("far", ItsNode)),
                ],
            ),
    ]
}

fn off() -> Vec<Scene> {
    vec![
        Scene::new("pods unknown", [NEAR, FAR])
            .settings(detector_off)
            .rule(
                "trap 7: without a detector nobody is masqueraded at a ClusterIP",
                [
                    row(Pod, Tcp, Vip, Answer("near far", Client)),
                    row(Outside, Tcp, Vip, Answer("near far", Client)),
                    row(Node, Tcp, Vip, Answer("near far", Client)).hook(Answer("near far", ItsNode)),
                ],
            )
            .rule(
                "trap 5: without a detector everyone is masqueraded at a node port all the same",
                [
                    row(Outside, Tcp, NodePort, Answer("near far", ItsNode)),
                    row(Pod, Tcp, NodePort, Answer("near far", ItsNode)).hook(Answer("near far", Client)),
                ],
            ),
        Scene::new("pods unknown, near", [NEAR])
            .settings(detector_off)
            .rule(
                "hairpin: needs no detector",
                [row(Near, Tcp, Vip, Answer("near", ItsNode)).hook(Answer("near", Client))],
            ),
        Scene::new("pods unknown, external Local", [NEAR, FAR])
            .settings(detector_off)
            .service(|service| service.external_policy = Local)
            .rule(
                "trap 4: without a detector pods have no short cut, but the hook knows where it is",
                [
                    row(Pod, Tcp, NodePort, Answer("near", Client)).hook(Answer("near far", Client)),
                    row(Node, Tcp, NodePort, Answer("near far", ItsNode)),
                    row(Outside, Tcp, NodePort, Answer("near", Client)),
                ],
            ),
        Scene::new("pods unknown, external Local, far", [FAR])
            .settings(detector_off)
            .service(|service| service.external_policy = Local)
            .rule(
                "trap 4: without a detector pods have no short cut, but the hook knows where it is",
                [
                    row(Pod, Tcp, NodePort, Silence).hook(Answer("far", Client)),
                    row(Node, Tcp, NodePort, Answer("far", ItsNode)),
                    row(Outside, Tcp, NodePort, Silence),
                ],
            ),
    ]
}

fn all() -> Vec<Scene> {
    vec![
        Scene::new("masquerade all", [NEAR, FAR])
            .settings(masquerade_all)
            .rule(
                "trap 7: masqueradeAll masquerades pods too",
                [
                    row(Pod, Tcp, Vip, Answer("near far", ItsNode)).hook(Answer("near far", Client)),
                    row(Pod, Udp, Vip, Answer("near far", ItsNode)).hook(Answer("near far", Client)),
                    row(Far, Tcp, Vip, Answer("near far", ItsNode)),
                    row(Node, Tcp, Vip, Answer("near far", ItsNode)),
                    row(Outside, Tcp, Vip, Answer("near far", ItsNode)),
                    row(Outside, Tcp, NodePort, Answer("near far", ItsNode)),
                ],
            ),
        Scene::new("masquerade all without a detector", [NEAR, FAR])
            .settings(masquerade_all)
            .settings(detector_off)
            .rule(
                "trap 7: masqueradeAll needs no detector",
                [
                    row(Pod, Tcp, Vip, Answer("near far", ItsNode)).hook(Answer("near far", Client)),
                    row(Outside, Tcp, Vip, Answer("near far", ItsNode)),
                ],
            ),
        Scene::new("masquerade all, both Local", [NEAR, FAR])
            .settings(masquerade_all)
            .service(|service| {
                service.external_policy = Local;
                service.internal_policy = Local;
            })
            .rule(
                "trap 4: masqueradeAll is for ClusterIPs, external policy Local keeps addresses",
                [
                    row(Pod, Tcp, Vip, Answer("near", ItsNode)).hook(Answer("near", Client)),
                    row(Pod, Tcp, NodePort, Answer("near far", Client)),
                    row(Outside, Tcp, NodePort, Answer("near", Client)),
                ],
            ),
    ]
}
