//! Endpoints that are not ready, or about to go.

use model::TrafficPolicy::Local;

use super::Becomes::{Answer, Refused, Silence};
use super::From::{Node, Outside, Pod};
use super::How::{Tcp, Udp};
use super::Sees::{Client, Node as ItsNode};
use super::To::{NodePort, Vip};
use super::{Scene, row};
use crate::cluster::{FAR, NEAR};

pub fn scenes() -> Vec<Scene> {
    [cluster_wide(), with_policies(), unready()].concat()
}

fn cluster_wide() -> Vec<Scene> {
    vec![
        Scene::new("near leaves", [NEAR.leaving(), FAR]).rule(
            "KEP-1669: endpoints that terminate get nothing while another is ready",
            [
                row(Pod, Tcp, Vip, Answer("far", Client)),
                row(Pod, Udp, Vip, Answer("far", Client)),
                row(Outside, Tcp, NodePort, Answer("far", ItsNode)),
            ],
        ),
        Scene::new("far leaves", [NEAR, FAR.leaving()]).rule(
            "KEP-1669: endpoints that terminate get nothing while another is ready",
            [
                row(Pod, Tcp, Vip, Answer("near", Client)),
                row(Node, Tcp, NodePort, Answer("near", ItsNode)),
            ],
        ),
        Scene::new("both leave", [NEAR.leaving(), FAR.leaving()]).rule(
            "KEP-1669: when none is ready, all that terminate and serve",
            [
                row(Pod, Tcp, Vip, Answer("near far", Client)),
                row(Outside, Tcp, NodePort, Answer("near far", ItsNode)),
            ],
        ),
        Scene::new("near leaves, far unready", [NEAR.leaving(), FAR.unready()]).rule(
            "KEP-1669: an endpoint that is not ready and does not terminate is no fallback",
            [
                row(Pod, Tcp, Vip, Answer("near", Client)),
                row(Outside, Tcp, NodePort, Answer("near", ItsNode)),
            ],
        ),
        Scene::new("both gone", [NEAR.gone(), FAR.gone()]).rule(
            "KEP-1669: endpoints that terminate and do not serve are none",
            [row(Pod, Tcp, Vip, Refused), row(Outside, Tcp, NodePort, Refused)],
        ),
        Scene::new("near twice", [NEAR.leaving(), NEAR, FAR.leaving()]).rule(
            "trap 13: of one address that is listed twice the one that does not terminate counts",
            [row(Pod, Tcp, Vip, Answer("near", Client))],
        ),
    ]
}

fn with_policies() -> Vec<Scene> {
    vec![
        Scene::new("external Local, near leaves", [NEAR.leaving(), FAR])
            .service(|service| service.external_policy = Local)
            .rule(
                "trap 1: the list of this node falls back on its own",
                [
                    row(Outside, Tcp, NodePort, Answer("near", Client)),
                    row(Outside, Udp, NodePort, Answer("near", Client)),
                    row(Pod, Tcp, NodePort, Answer("far", Client)),
                    row(Node, Tcp, NodePort, Answer("far", ItsNode)),
                ],
            ),
        Scene::new("external Local, near gone", [NEAR.gone(), FAR])
            .service(|service| service.external_policy = Local)
            .rule(
                "KEP-1669: what does not serve is no endpoint of this node",
                [
                    row(Outside, Tcp, NodePort, Silence),
                    row(Pod, Tcp, NodePort, Answer("far", Client)),
                ],
            ),
        Scene::new("external Local, far leaves", [FAR.leaving()])
            .service(|service| service.external_policy = Local)
            .rule(
                "trap 1: the list of the cluster falls back on its own",
                [
                    row(Outside, Tcp, NodePort, Silence),
                    row(Pod, Tcp, NodePort, Answer("far", Client)),
                ],
            ),
        Scene::new("external Local, near unready", [NEAR.unready(), FAR])
            .service(|service| service.external_policy = Local)
            .rule(
                "trap 1: policy Local with endpoints elsewhere drops",
                [row(Outside, Tcp, NodePort, Silence)],
            ),
        Scene::new("internal Local, near leaves", [NEAR.leaving(), FAR])
            .service(|service| service.internal_policy = Local)
            .rule(
                "trap 1: the list of this node falls back on its own",
                [
                    row(Pod, Tcp, Vip, Answer("near", Client)),
                    row(Node, Tcp, Vip, Answer("near", ItsNode)),
                    row(Outside, Tcp, NodePort, Answer("far", ItsNode)),
                ],
            ),
        Scene::new("internal Local, both leave", [NEAR.leaving(), FAR.leaving()])
            .service(|service| service.internal_policy = Local)
            .rule(
                "trap 1: both lists fall back",
                [
                    row(Pod, Tcp, Vip, Answer("near", Client)),
                    row(Outside, Tcp, NodePort, Answer("near far", ItsNode)),
                ],
            ),
    ]
}

fn unready() -> Vec<Scene> {
    vec![
        Scene::new("both unready", [NEAR.unready(), FAR.unready()]).rule(
            "trap 1: endpoints that are not ready are none",
            [
                row(Pod, Tcp, Vip, Refused),
                row(Pod, Udp, Vip, Refused),
                row(Outside, Tcp, NodePort, Refused),
            ],
        ),
        Scene::new("far unready", [NEAR, FAR.unready()]).rule(
            "trap 1: endpoints that are not ready get nothing",
            [row(Pod, Tcp, Vip, Answer("near", Client))],
        ),
        Scene::new("unready pods published as ready", [NEAR, FAR])
            .service(|service| service.publish_not_ready = true)
            .rule(
                "publishNotReadyAddresses: the controller says that they are ready",
                [row(Pod, Tcp, Vip, Answer("near far", Client))],
            ),
        Scene::new("unready pods, published or not", [NEAR.unready()])
            .service(|service| service.publish_not_ready = true)
            .rule(
                "publishNotReadyAddresses: without the controller's word nothing is ready",
                [row(Pod, Tcp, Vip, Refused)],
            ),
    ]
}
