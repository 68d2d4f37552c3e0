//! Services, endpoints and policies that do not say what somebody meant.

use super::row::{Act, Ask, Row};
use super::world::At;

pub const ROWS: &[Row] = &[
    Row {
        name: "a_service_whose_deployment_has_no_pods_is_named",
        breaks: &[
            Act::Kubectl("scale deployment web --replicas=0"),
            Act::Kubectl("wait --for=delete pod {web} --timeout=30s"),
        ],
        asks: &[
            Ask::Explain(
                1,
                "pod/client svc/web:http",
                1,
                &["Service default/web", "has no endpoint"],
            ),
            Ask::Trace(At::Client, "pod/client {vip}:80", 1, &["REFUSED"]),
            Ask::Answered(At::Client, "{vip}:80", false),
        ],
        mends: &[
            Act::Kubectl("scale deployment web --replicas=1"),
            Act::Kubectl("rollout status deployment/web --timeout=60s"),
        ],
    },
    Row {
        name: "a_pod_that_is_not_ready_is_named_as_not_chosen",
        breaks: &[
            Act::Run(
                At::Server,
                "curl -sS -m 2 -X POST http://{web-ip}:8080/readyz?value=false",
            ),
            Act::Kubectl("wait --for=condition=Ready=false pod {web} --timeout=30s"),
        ],
        asks: &[
            Ask::Explain(
                1,
                "pod/client svc/web:http",
                1,
                &["pod default/{web} on node-2", "not chosen: not ready"],
            ),
            Ask::Answered(At::Client, "{vip}:80", false),
        ],
        mends: &[
            Act::Run(
                At::Server,
                "curl -sS -m 2 -X POST http://{web-ip}:8080/readyz?value=true",
            ),
            Act::Kubectl("wait --for=condition=Ready=true pod {web} --timeout=30s"),
        ],
    },
    Row {
        name: "a_target_port_that_no_pod_has_is_named",
        breaks: &[Act::Kubectl(
            r#"patch service web --type=json -p=[{"op":"replace","path":"/spec/ports/0/targetPort","value":"htpp"}]"#,
        )],
        asks: &[
            Ask::Explain(
                1,
                "pod/client svc/web:http",
                1,
                &["Service default/web", "endpoint"],
            ),
            Ask::Answered(At::Client, "{vip}:80", false),
        ],
        mends: &[Act::Kubectl(
            r#"patch service web --type=json -p=[{"op":"replace","path":"/spec/ports/0/targetPort","value":"http"}]"#,
        )],
    },
    Row {
        name: "a_selector_that_no_pod_has_is_named",
        breaks: &[Act::Kubectl(
            r#"patch service web -p={"spec":{"selector":{"app":"wbe"}}}"#,
        )],
        asks: &[
            Ask::Explain(
                1,
                "pod/client svc/web:http",
                1,
                &["Service default/web", "has no endpoint"],
            ),
            Ask::Answered(At::Client, "{vip}:80", false),
        ],
        mends: &[Act::Kubectl(
            r#"patch service web -p={"spec":{"selector":{"app":"web"}}}"#,
        )],
    },
    Row {
        name: "a_port_that_the_service_has_not_is_named",
        breaks: &[],
        asks: &[
            Ask::Explain(
                1,
                "pod/client svc/web:81",
                1,
                &["has no port 81/TCP", "svc/web:80/tcp"],
            ),
            Ask::Explain(
                1,
                "pod/client {vip}:81",
                1,
                &["has no port 81/TCP", "svc/web:80/tcp"],
            ),
        ],
        mends: &[],
    },
    Row {
        name: "a_name_that_is_almost_one_is_told_with_the_one_that_is_meant",
        breaks: &[],
        asks: &[Ask::Explain(
            1,
            "pod/client svc/wbe:80",
            2,
            &["there is no Service", "did you mean", "web"],
        )],
        mends: &[],
    },
    Row {
        name: "a_headless_service_that_is_asked_by_an_address_has_none",
        breaks: &[],
        asks: &[Ask::Explain(1, "pod/client svc/headless:8080", 2, &["headless"])],
        mends: &[],
    },
    Row {
        name: "a_node_without_an_endpoint_of_its_own_is_named_by_a_local_policy",
        breaks: &[],
        asks: &[
            Ask::Answered(At::Outside, "{node-2}:30081", true),
            Ask::Answered(At::Outside, "{node-1}:30081", false),
            Ask::Explain(
                1,
                "172.30.0.1 {node-1}:30081",
                1,
                &["Service default/local", "has no endpoint on this node"],
            ),
        ],
        mends: &[],
    },
    Row {
        name: "a_node_port_leads_to_other_nodes_endpoints",
        breaks: &[],
        asks: &[
            Ask::Answered(At::Outside, "{node-1}:30080", true),
            Ask::Explain(
                1,
                "172.30.0.1 {node-1}:30080",
                0,
                &["pod default/{web} on node-2: chosen"],
            ),
        ],
        mends: &[],
    },
    Row {
        name: "a_client_outside_the_source_ranges_is_told_so",
        breaks: &[Act::Kubectl(
            r#"patch service choosy --subresource=status -p={"status":{"loadBalancer":{"ingress":[{"ip":"198.51.100.9"}]}}}"#,
        )],
        asks: &[Ask::Explain(
            1,
            "172.30.0.1 198.51.100.9:80",
            1,
            &[
                "Service default/choosy",
                "admits the clients of its loadBalancerSourceRanges alone",
            ],
        )],
        mends: &[Act::Kubectl(
            r#"patch service choosy --subresource=status -p={"status":{"loadBalancer":null}}"#,
        )],
    },
    Row {
        name: "a_pod_reaches_itself_through_its_own_service",
        breaks: &[],
        asks: &[
            Ask::Explain(
                1,
                "pod/client svc/own:http",
                0,
                &["pod default/client on node-1: chosen"],
            ),
            Ask::Answered(At::Client, "{own-vip}:80", true),
        ],
        mends: &[],
    },
];
