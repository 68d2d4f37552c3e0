//! Groups that are stored without behaviour of their own here, and the reviews.

use k8s_openapi::api::{
    authentication::v1 as authentication, authorization::v1 as authorization,
    autoscaling::v1 as autoscaling_v1, autoscaling::v2 as autoscaling, policy::v1 as policy,
    scheduling::v1 as scheduling, storage::v1 as storage,
};

use serde_json::Value;

use super::views::{autoscaler_defaults, decode_as};
use super::workloads::clear_status;
use super::{Resource, Serves, View, autoscaler, budget};
use crate::metrics;
use crate::table;

pub(super) fn rows() -> Vec<Resource> {
    let mut rows = reviews();
    rows.extend(figures());
    let horizontal = |row: Resource| {
        Resource {
            prepare_create: clear_status,
            ..row
        }
        .short(&["hpa"])
        .in_all()
        .with_status()
        .defaulted(autoscaler_defaults)
        .validated(autoscaler::validate, |_, _, _| {})
    };
    let disruption_budget = |version: &'static str| {
        Resource {
            prepare_create: clear_status,
            ..Resource::new::<policy::PodDisruptionBudget>(
                ("policy", version),
                "PodDisruptionBudget",
                "poddisruptionbudgets",
            )
        }
        .short(&["pdb"])
        .with_status()
        .with_generation()
        .printed(
            table::workloads::DISRUPTION_BUDGET,
            table::workloads::disruption_budget,
        )
        .validated(budget::validate, |_, _, _| {})
    };
    const AUTOSCALER: (&str, &str) = ("HorizontalPodAutoscaler", "horizontalpodautoscalers");
    rows.extend([
        horizontal(Resource::new::<autoscaling::HorizontalPodAutoscaler>(
            ("autoscaling", "v2"),
            AUTOSCALER.0,
            AUTOSCALER.1,
        )),
        Resource {
            serves: Serves::View(View::Autoscaler),
            ..horizontal(Resource::new::<autoscaling_v1::HorizontalPodAutoscaler>(
                ("autoscaling", "v1"),
                AUTOSCALER.0,
                AUTOSCALER.1,
            ))
        },
        disruption_budget("v1"),
        Resource {
            serves: Serves::View(View::DisruptionBudget),
            decode: |object| decode_as::<policy::PodDisruptionBudget>(object, "policy/v1"),
            ..disruption_budget("v1beta1")
        },
        Resource::new::<scheduling::PriorityClass>(
            ("scheduling.k8s.io", "v1"),
            "PriorityClass",
            "priorityclasses",
        )
        .cluster_scoped()
        .short(&["pc"]),
        Resource::new::<storage::StorageClass>(("storage.k8s.io", "v1"), "StorageClass", "storageclasses")
            .cluster_scoped()
            .short(&["sc"]),
        // kubectl lists them to know whether a kind that it does not find may yet come to be.
        Resource {
            serves: Serves::None,
            ..Resource::new::<Value>(
                ("apiextensions.k8s.io", "v1"),
                "CustomResourceDefinition",
                "customresourcedefinitions",
            )
        }
        .cluster_scoped()
        .short(&["crd", "crds"]),
    ]);
    rows
}

/// What metrics-server serves elsewhere.
fn figures() -> [Resource; 2] {
    let row = |kind, plural| Resource {
        serves: Serves::Figures,
        ..Resource::new::<Value>(metrics::GROUP_VERSION, kind, plural)
    };
    [
        row("NodeMetrics", "nodes")
            .cluster_scoped()
            .printed(table::core::NODE_METRICS, table::core::node_metrics),
        row("PodMetrics", "pods").printed(table::core::POD_METRICS, table::core::pod_metrics),
    ]
}

fn reviews() -> Vec<Resource> {
    const AUTHENTICATION: (&str, &str) = ("authentication.k8s.io", "v1");
    const AUTHORIZATION: (&str, &str) = ("authorization.k8s.io", "v1");
    let rows = [
        Resource::new::<authorization::SelfSubjectRulesReview>(
            AUTHORIZATION,
            "SelfSubjectRulesReview",
            "selfsubjectrulesreviews",
        ),
        Resource::new::<authentication::SelfSubjectReview>(
            AUTHENTICATION,
            "SelfSubjectReview",
            "selfsubjectreviews",
        ),
        Resource::new::<authentication::TokenReview>(AUTHENTICATION, "TokenReview", "tokenreviews"),
        Resource::new::<authorization::SelfSubjectAccessReview>(
            AUTHORIZATION,
            "SelfSubjectAccessReview",
            "selfsubjectaccessreviews",
        ),
        Resource::new::<authorization::SubjectAccessReview>(
            AUTHORIZATION,
            "SubjectAccessReview",
            "subjectaccessreviews",
        ),
    ];
    let local = Resource::new::<authorization::LocalSubjectAccessReview>(
        AUTHORIZATION,
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
    );
    let rows = rows.into_iter().map(Resource::cluster_scoped).chain([local]);
    rows.map(|row| Resource {
        serves: Serves::Reviews,
        ..row
    })
    .collect()
}
