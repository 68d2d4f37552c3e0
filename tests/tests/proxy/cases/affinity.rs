//! `sessionAffinity: ClientIP`.

use std::time::Duration;

use model::TrafficPolicy::Local;
use model::{Service, SessionAffinity};

use super::Becomes::{Answer, Keeps, Leaves, Refused, Silence};
use super::From::{Node, Outside, Pod, Stranger};
use super::How::{Sctp, Tcp, Udp, UdpUnconnected};
use super::Sees::{Client, Either, Node as ItsNode};
use super::To::{BalancerIp, LoopbackNodePort, NodePort, Vip, VipAndNodePort, VipBalancerAndExternalIp};
use super::{SHORT, Scene, row};
use crate::cluster::{FAR, FAR2, NEAR, NEAR2, with_balancer, with_external_addresses, with_sctp};

const ALL: &str = "near near2 far far2";

fn sticky(service: &mut Service) {
    service.affinity = SessionAffinity::ClientIp {
        timeout: Duration::from_secs(10_800),
    };
}

pub fn scenes() -> Vec<Scene> {
    vec![
        Scene::new("affinity", [NEAR, NEAR2, FAR, FAR2])
            .service(sticky)
            .service(with_balancer)
            .service(with_external_addresses)
            .service(with_sctp)
            .settings(|settings| settings.external_addresses = true)
            .rule(
                "session affinity: a client keeps its endpoint at a ClusterIP",
                [
                    row(Pod, Tcp, Vip, Keeps(ALL, Client)),
                    row(Pod, Udp, Vip, Keeps(ALL, Client)),
                    row(Pod, UdpUnconnected, Vip, Keeps(ALL, Client)),
                    row(Pod, Sctp, Vip, Keeps(ALL, Client)),
                    row(Node, Tcp, Vip, Keeps(ALL, ItsNode)),
                    row(Outside, Tcp, Vip, Keeps(ALL, ItsNode)),
                ],
            )
            .rule(
                "session affinity: a client keeps its endpoint at a node port",
                [
                    row(Outside, Tcp, NodePort, Keeps(ALL, ItsNode)),
                    row(Outside, Udp, NodePort, Keeps(ALL, ItsNode)),
                    row(Stranger, Tcp, NodePort, Keeps(ALL, ItsNode)),
                    row(Node, Tcp, LoopbackNodePort, Refused).hook(Keeps(ALL, ItsNode)),
                ],
            )
            .rule(
                "trap 9: all frontends of a port share a client's affinity",
                [
                    row(Outside, Tcp, VipAndNodePort, Keeps(ALL, ItsNode)),
                    row(Outside, Udp, VipAndNodePort, Keeps(ALL, ItsNode)),
                    row(Outside, Tcp, VipBalancerAndExternalIp, Keeps(ALL, ItsNode)),
                    row(Pod, Tcp, VipAndNodePort, Keeps(ALL, Either)),
                    row(Pod, Udp, VipBalancerAndExternalIp, Keeps(ALL, Either)),
                ],
            ),
        Scene::new("affinity, fewer endpoints", [FAR])
            .service(sticky)
            .rule(
                "trap 9: an endpoint that is no longer eligible is not kept",
                [
                    row(Pod, Tcp, Vip, Keeps("far", Client)),
                    row(Pod, Udp, Vip, Keeps("far", Client)),
                    row(Outside, Tcp, NodePort, Keeps("far", ItsNode)),
                ],
            ),
        Scene::new("affinity, external Local", [NEAR, NEAR2, FAR, FAR2])
            .service(sticky)
            .service(with_balancer)
            .service(|service| service.external_policy = Local)
            .rule(
                "session affinity with external policy Local: within the list that the client may use",
                [
                    row(Outside, Tcp, NodePort, Keeps("near near2", Client)),
                    row(Outside, Tcp, BalancerIp, Keeps("near near2", Client)),
                    row(Stranger, Udp, NodePort, Keeps("near near2", Client)),
                    row(Pod, Tcp, NodePort, Keeps(ALL, Client)),
                    row(Pod, Tcp, VipAndNodePort, Keeps(ALL, Client)),
                    row(Node, Tcp, NodePort, Keeps(ALL, ItsNode)),
                ],
            ),
        Scene::new("affinity, external Local, far", [FAR, FAR2])
            .service(sticky)
            .service(|service| service.external_policy = Local)
            .rule(
                "session affinity with external policy Local: no endpoint here, whatever the client had",
                [
                    row(Outside, Tcp, NodePort, Silence),
                    row(Pod, Tcp, NodePort, Keeps("far far2", Client)),
                ],
            ),
        Scene::new("affinity, internal Local", [NEAR, NEAR2, FAR, FAR2])
            .service(sticky)
            .service(|service| service.internal_policy = Local)
            .rule(
                "session affinity with internal policy Local: within the list of this node",
                [
                    row(Pod, Tcp, Vip, Keeps("near near2", Client)),
                    row(Pod, Udp, Vip, Keeps("near near2", Client)),
                    row(Node, Tcp, Vip, Keeps("near near2", ItsNode)),
                ],
            ),
        Scene::new("affinity, none", []).service(sticky).rule(
            "trap 1: without any endpoint the client is refused",
            [row(Pod, Tcp, Vip, Refused), row(Outside, Udp, NodePort, Refused)],
        ),
        Scene::new("affinity, short", [NEAR, FAR])
            .service(|service| service.affinity = SessionAffinity::ClientIp { timeout: SHORT })
            .rule(
                "session affinity: a client is forgotten that did not come for its time",
                [
                    row(Pod, Tcp, Vip, Leaves("near far", Client)),
                    row(Outside, Udp, NodePort, Leaves("near far", ItsNode)),
                ],
            ),
        Scene::new("affinity ended", [NEAR, FAR]).rule(
            "session affinity: none when it is switched off",
            [
                row(Pod, Tcp, Vip, Answer("near far", Client)),
                row(Outside, Tcp, NodePort, Answer("near far", ItsNode)),
            ],
        ),
    ]
}
