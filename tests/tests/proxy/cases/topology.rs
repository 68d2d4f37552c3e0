//! Hints: which ready endpoints cluster-wide traffic prefers. The node is `node-1` in zone `a`.

use model::TrafficPolicy::Local;

use super::Becomes::Answer;
use super::From::{Node, Outside, Pod};
use super::How::{Tcp, Udp};
use super::Sees::{Client, Node as ItsNode};
use super::To::{NodePort, Vip};
use super::{Scene, row};
use crate::cluster::{FAR, FAR2, NEAR};

pub fn scenes() -> Vec<Scene> {
    [zones(), nodes(), with_conditions()].concat()
}

fn zones() -> Vec<Scene> {
    vec![
        Scene::new("zone hints", [NEAR.zones(&["b"]), FAR.zones(&["a"])]).rule(
            "KEP-2433: only endpoints that are hinted to this zone",
            [
                row(Pod, Tcp, Vip, Answer("far", Client)),
                row(Pod, Udp, Vip, Answer("far", Client)),
                row(Node, Tcp, Vip, Answer("far", ItsNode)),
                row(Outside, Tcp, NodePort, Answer("far", ItsNode)),
            ],
        ),
        Scene::new(
            "hints to several zones",
            [NEAR.zones(&["c", "a"]), FAR.zones(&["b"])],
        )
        .rule(
            "KEP-2433: an endpoint may be hinted to several zones",
            [row(Pod, Tcp, Vip, Answer("near", Client))],
        ),
        Scene::new(
            "zone hints but one",
            [NEAR.zones(&["b"]), FAR, FAR2.zones(&["a"])],
        )
        .rule(
            "trap 2: an endpoint without a hint, and none counts",
            [row(Pod, Tcp, Vip, Answer("near far far2", Client))],
        ),
        Scene::new("zone hints elsewhere", [NEAR.zones(&["b"]), FAR.zones(&["c"])]).rule(
            "trap 2: no endpoint is hinted to this zone, and no hint counts",
            [
                row(Pod, Tcp, Vip, Answer("near far", Client)),
                row(Outside, Tcp, NodePort, Answer("near far", ItsNode)),
            ],
        ),
        Scene::new("zone hints, no zone", [NEAR.zones(&["b"]), FAR.zones(&["a"])])
            .node(|node| node.zone = None)
            .rule(
                "trap 2: a node without a zone follows no zone hints",
                [row(Pod, Tcp, Vip, Answer("near far", Client))],
            ),
        Scene::new("zone hints, other zone", [NEAR.zones(&["b"]), FAR.zones(&["a"])])
            .node(|node| node.zone = Some("b".into()))
            .rule(
                "KEP-2433: only endpoints that are hinted to this zone",
                [row(Pod, Tcp, Vip, Answer("near", Client))],
            ),
        Scene::new(
            "zone hints, external Local",
            [NEAR.zones(&["b"]), FAR.zones(&["a"])],
        )
        .service(|service| service.external_policy = Local)
        .rule(
            "trap 1: topology does not narrow the list of this node",
            [
                row(Outside, Tcp, NodePort, Answer("near", Client)),
                row(Pod, Tcp, NodePort, Answer("far", Client)),
                row(Node, Tcp, NodePort, Answer("far", ItsNode)),
            ],
        ),
        Scene::new(
            "zone hints, internal Local",
            [NEAR.zones(&["b"]), FAR.zones(&["a"])],
        )
        .service(|service| service.internal_policy = Local)
        .rule(
            "trap 1: topology does not narrow the list of this node",
            [
                row(Pod, Tcp, Vip, Answer("near", Client)),
                row(Outside, Tcp, NodePort, Answer("far", ItsNode)),
            ],
        ),
    ]
}

fn nodes() -> Vec<Scene> {
    vec![
        Scene::new("node hints", [NEAR.nodes(&["node-1"]), FAR.nodes(&["node-2"])]).rule(
            "KEP-4444: only endpoints that are hinted to this node",
            [
                row(Pod, Tcp, Vip, Answer("near", Client)),
                row(Pod, Udp, Vip, Answer("near", Client)),
                row(Outside, Tcp, NodePort, Answer("near", ItsNode)),
            ],
        ),
        Scene::new(
            "node hints against zone hints",
            [
                NEAR.nodes(&["node-1"]).zones(&["b"]),
                FAR.nodes(&["node-2"]).zones(&["a"]),
            ],
        )
        .rule(
            "trap 2: hints to this node come before hints to its zone",
            [row(Pod, Tcp, Vip, Answer("near", Client))],
        ),
        Scene::new(
            "node hints elsewhere",
            [
                NEAR.nodes(&["node-3"]).zones(&["b"]),
                FAR.nodes(&["node-2"]).zones(&["a"]),
            ],
        )
        .rule(
            "trap 2: no endpoint is hinted to this node, so that zones count",
            [row(Pod, Tcp, Vip, Answer("far", Client))],
        ),
        Scene::new(
            "node hints but one",
            [NEAR.nodes(&["node-1"]).zones(&["b"]), FAR.zones(&["a"])],
        )
        .rule(
            "trap 2: an endpoint without a node hint, so that zones count",
            [row(Pod, Tcp, Vip, Answer("far", Client))],
        ),
        Scene::new(
            "node hints elsewhere alone",
            [NEAR.nodes(&["node-3"]), FAR.nodes(&["node-2"])],
        )
        .rule(
            "trap 2: no endpoint is hinted to this node, and no hint counts",
            [row(Pod, Tcp, Vip, Answer("near far", Client))],
        ),
    ]
}

fn with_conditions() -> Vec<Scene> {
    vec![
        Scene::new(
            "zone hints, one unready without",
            [NEAR.zones(&["b"]), FAR.zones(&["a"]), FAR2.unready()],
        )
        .rule(
            "trap 2: only ready endpoints must have hints",
            [row(Pod, Tcp, Vip, Answer("far", Client))],
        ),
        Scene::new(
            "zone hints, one leaving without",
            [NEAR.leaving(), FAR.zones(&["a"]), FAR2.zones(&["b"])],
        )
        .rule(
            "trap 2: only ready endpoints must have hints",
            [row(Pod, Tcp, Vip, Answer("far", Client))],
        ),
        Scene::new(
            "zone hints, this zone's unready",
            [
                NEAR.zones(&["a"]).unready(),
                FAR.zones(&["b"]),
                FAR2.zones(&["c"]),
            ],
        )
        .rule(
            "trap 2: an endpoint that is not ready is no reason to follow hints",
            [row(Pod, Tcp, Vip, Answer("far far2", Client))],
        ),
        Scene::new(
            "zone hints, all leave",
            [NEAR.zones(&["b"]).leaving(), FAR.zones(&["a"]).leaving()],
        )
        .rule(
            "trap 1: the fallback to terminating endpoints ignores hints",
            [
                row(Pod, Tcp, Vip, Answer("near far", Client)),
                row(Outside, Tcp, NodePort, Answer("near far", ItsNode)),
            ],
        ),
    ]
}
