//! What the options of CoreDNS's plugin `kubernetes` change.

use tests::directory::Directory;

use crate::subject::{Config, Subject};
use crate::{Rule, cluster};

pub const NAMESPACES: &[Rule] = &[
    (
        "namespaces: those that are named exist",
        &[
            ("svc1.otherns.svc A", "NOERROR A 10.0.1.1"),
            ("emptyns.svc A", "NODATA"),
            ("1-2-3-4.otherns.pod A", "NOERROR A 1.2.3.4"),
        ],
    ),
    (
        "namespaces: others do not, by any name",
        &[
            ("svc1.testns.svc A", "NXDOMAIN"),
            ("testns.svc A", "NXDOMAIN"),
            ("hdls1.testns.svc A", "NXDOMAIN"),
            ("dup-name.hdls1.testns.svc A", "NXDOMAIN"),
            ("_http._tcp.svc1.testns.svc SRV", "NXDOMAIN"),
            ("external.testns.svc CNAME", "NXDOMAIN"),
            ("1-2-3-4.testns.pod A", "NXDOMAIN"),
            ("testns.pod A", "NXDOMAIN"),
            ("2.0.0.10.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."),
            ("2.0.0.172.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."),
        ],
    ),
    (
        "namespaces: an endpoint of two Services leads back to the one that is shown",
        &[(
            "1.0.0.172.in-addr.arpa. PTR",
            "NOERROR PTR 172-0-0-1.svc1.otherns.svc",
        )],
    ),
    (
        "namespaces: a name that is named and not there does not exist",
        &[("nons.svc A", "NXDOMAIN")],
    ),
];

pub const NAMESPACE_LABELS: &[Rule] = &[(
    "namespace_labels: namespaces that match exist, and others do not",
    &[
        ("svc1.otherns.svc A", "NOERROR A 10.0.1.1"),
        ("otherns.svc A", "NODATA"),
        ("svc1.testns.svc A", "NXDOMAIN"),
        ("testns.svc A", "NXDOMAIN"),
        ("emptyns.svc A", "NXDOMAIN"),
    ],
)];

pub const LABELS: &[Rule] = &[(
    "labels: Services and their slices that match have names, and others have not",
    &[
        ("svc1.testns.svc A", "NOERROR A 10.0.0.1"),
        ("svc1.otherns.svc A", "NOERROR A 10.0.1.1"),
        ("172-0-0-1.svc1.testns.svc A", "NOERROR A 172.0.0.1"),
        ("svc6.testns.svc AAAA", "NXDOMAIN"),
        ("hdls1.testns.svc A", "NXDOMAIN"),
        ("external.testns.svc CNAME", "NXDOMAIN"),
        ("testns.svc A", "NODATA"),
        ("2.0.0.172.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."),
    ],
)];

pub const NO_ENDPOINTS: &[Rule] = &[
    (
        "noendpoints: Services with addresses are as they were",
        &[
            ("svc1.testns.svc A", "NOERROR A 10.0.0.1"),
            (
                "_http._tcp.svc1.testns.svc SRV",
                "NOERROR SRV 0 100 80 svc1.testns.svc + svc1.testns.svc A 10.0.0.1",
            ),
            ("1.0.0.10.in-addr.arpa. PTR", "NOERROR PTR svc1.testns.svc"),
            ("external.testns.svc CNAME", "NOERROR CNAME ext.interwebs.test."),
        ],
    ),
    (
        "noendpoints: endpoints and headless Services have no names",
        &[
            ("172-0-0-1.svc1.testns.svc A", "NXDOMAIN"),
            ("hdls1.testns.svc A", "NXDOMAIN"),
            ("_http._tcp.hdls1.testns.svc SRV", "NXDOMAIN"),
            ("dup-name.hdls1.testns.svc A", "NXDOMAIN"),
            ("1.0.0.172.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."),
        ],
    ),
];

pub const IGNORE_EMPTY: &[Rule] = &[
    (
        "ignore empty_service: a Service without a ready endpoint has no name",
        &[
            ("no-endpoints.testns.svc A", "NXDOMAIN"),
            ("no-endpoints.testns.svc SRV", "NXDOMAIN"),
            ("_http._tcp.no-endpoints.testns.svc SRV", "NXDOMAIN"),
            ("unready.testns.svc A", "NXDOMAIN"),
            ("hdls-none.testns.svc A", "NXDOMAIN"),
        ],
    ),
    (
        "ignore empty_service: one with an endpoint has, and so has an alias",
        &[
            ("svc1.testns.svc A", "NOERROR A 10.0.0.1"),
            ("dual.testns.svc AAAA", "NOERROR AAAA 1234:abcd::4"),
            ("external.testns.svc CNAME", "NOERROR CNAME ext.interwebs.test."),
            (
                "hdls-three.testns.svc A",
                "NOERROR A 10.244.3.1 A 10.244.3.2 A 10.244.3.3",
            ),
        ],
    ),
];

pub const POD_NAMES: &[Rule] = &[
    (
        "endpoint_pod_names: an endpoint without a hostname is called like its pod",
        &[
            ("web-0.hdls1.testns.svc A", "NOERROR A 172.0.0.3"),
            ("WEB-0.hdls1.testns.svc A", "NOERROR A 172.0.0.3"),
            ("svc1-pod.svc1.testns.svc A", "NOERROR A 172.0.0.1"),
            (
                "3.0.0.172.in-addr.arpa. PTR",
                "NOERROR PTR web-0.hdls1.testns.svc",
            ),
        ],
    ),
    (
        "endpoint_pod_names: a hostname goes before, and an address stays the name of what has neither",
        &[
            ("dup-name.hdls1.testns.svc A", "NOERROR A 172.0.0.4 A 172.0.0.5"),
            ("172-0-0-2.hdls1.testns.svc A", "NOERROR A 172.0.0.2"),
        ],
    ),
];

pub const UNSYNCED: &[Rule] = &[
    (
        "before everything is listed a name that is not known is a failure, not a denial",
        &[
            ("nosvc.testns.svc A", "SERVFAIL"),
            ("hdls1.testns.svc A", "SERVFAIL"),
            ("172-0-0-1.svc1.testns.svc A", "SERVFAIL"),
            ("nons.svc A", "SERVFAIL"),
            ("99.0.0.10.in-addr.arpa. PTR", "SERVFAIL in-addr.arpa."),
        ],
    ),
    (
        "and one that is known has its answer",
        &[
            ("svc1.testns.svc A", "NOERROR A 10.0.0.1"),
            ("svc1.testns.svc AAAA", "NODATA"),
            ("testns.svc A", "NODATA"),
            ("dns-version TXT", "NOERROR TXT 1.1.0"),
            ("1.0.0.10.in-addr.arpa. PTR", "NOERROR PTR svc1.testns.svc"),
        ],
    ),
];

#[test]
fn namespaces_that_are_named() {
    Subject::start("pods insecure\n        namespaces otherns emptyns nons").check(NAMESPACES);
}

#[test]
fn namespaces_by_their_labels() {
    Subject::start("namespace_labels name=otherns").check(NAMESPACE_LABELS);
}

#[test]
fn objects_by_their_labels() {
    Subject::start("labels app=svc1").check(LABELS);
}

#[test]
fn a_service_that_gets_the_label_gets_its_name_and_loses_both() {
    let subject = Subject::start("labels app=svc1");
    let mut service = cluster::cluster_ip("testns", "late", &["10.0.0.77"], &[]);
    subject.api.put(service.clone());
    subject.wait_until("late.testns.svc A", "NXDOMAIN");
    service["metadata"]["labels"]["app"] = "svc1".into();
    subject.api.put(service.clone());
    subject.wait_until("late.testns.svc A", "NOERROR A 10.0.0.77");
    service["metadata"]["labels"]["app"] = "late".into();
    subject.api.put(service);
    subject.wait_until("late.testns.svc A", "NXDOMAIN");
}

#[test]
fn no_endpoints() {
    let subject = Subject::start("noendpoints");
    subject.check(NO_ENDPOINTS);
    let watched = subject.api.requests();
    assert!(
        !watched.iter().any(|request| request.contains("endpointslices")),
        "{watched:?}"
    );
}

#[test]
fn services_without_endpoints_are_ignored_where_they_shall_be() {
    Subject::start("ignore empty_service").check(IGNORE_EMPTY);
}

#[test]
fn endpoints_are_called_like_their_pods_where_they_shall_be() {
    Subject::start("endpoint_pod_names").check(POD_NAMES);
}

#[test]
fn a_record_lives_for_the_time_that_is_set_and_a_denial_for_five_minutes_at_most() {
    for ttl in [0, 30, 3600] {
        let subject = Subject::start(&format!("ttl {ttl}"));
        let rules: &[Rule] = &[(
            "ttl",
            &[
                ("svc1.testns.svc A", "NOERROR A 10.0.0.1"),
                (
                    "_http._tcp.svc1.testns.svc SRV",
                    "NOERROR SRV 0 100 80 svc1.testns.svc + svc1.testns.svc A 10.0.0.1",
                ),
                ("nosvc.testns.svc A", "NXDOMAIN"),
                ("svc1.testns.svc AAAA", "NODATA"),
            ],
        )];
        subject.check_ttl(rules, ttl);
    }
}

#[test]
fn a_denial_falls_through_to_the_next_plugin_and_nothing_else_does() {
    // Without another plugin its end is a failure.
    let subject = Subject::start("fallthrough in-addr.arpa ip6.arpa");
    subject.check(&[(
        "fallthrough",
        &[
            ("99.0.0.10.in-addr.arpa. PTR", "SERVFAIL"),
            ("1.0.0.10.in-addr.arpa. PTR", "NOERROR PTR svc1.testns.svc"),
            ("1.0.0.10.in-addr.arpa. A", "NODATA in-addr.arpa."),
            ("nosvc.testns.svc A", "NXDOMAIN"),
        ],
    )]);
    let subject = Subject::start("fallthrough");
    subject.check(&[(
        "fallthrough for every zone",
        &[
            ("nosvc.testns.svc A", "SERVFAIL"),
            ("svc1.testns.svc AAAA", "NODATA"),
            ("svc1.testns.svc A", "NOERROR A 10.0.0.1"),
        ],
    )]);
}

#[test]
fn the_api_server_is_found_by_a_kubeconfig_and_one_of_its_contexts() {
    let directory = Directory::new("dns-kubeconfig");
    let file = directory.path().join("kubeconfig");
    for (current, context) in [("fake", ""), ("another", "fake")] {
        let api = cluster::api();
        api.write_kubeconfig(&file).expect("written");
        let text = std::fs::read_to_string(&file).expect("written before");
        let text = text.replace(
            r#""current-context":"fake""#,
            &format!(r#""current-context":"{current}""#),
        );
        assert!(text.contains(current), "{text}");
        std::fs::write(&file, text).expect("written");
        let source = format!("kubeconfig {} {context}", file.display());
        let config = Config {
            source: Some(&source),
            ..Config::default()
        };
        let subject = Subject::on(api, config);
        subject.wait_until("svc1.testns.svc A", "NOERROR A 10.0.0.1");
        subject.wait_until("nosvc.testns.svc A", "NXDOMAIN");
    }
}

#[test]
fn nothing_is_denied_before_everything_is_known() {
    let api = cluster::api();
    api.behave(|behaviour| behaviour.absent.push("endpointslices"));
    let config = Config {
        options: "startup_timeout 0s",
        ..Config::default()
    };
    let subject = Subject::on(api, config);
    subject.wait_until("svc1.testns.svc A", "NOERROR A 10.0.0.1");
    subject.wait_until("testns.svc A", "NODATA");
    subject.check(UNSYNCED);
    subject.api.behave(|behaviour| behaviour.absent.clear());
    subject.wait_until("nosvc.testns.svc A", "NXDOMAIN");
    subject.wait_until("hdls-skewed.testns.svc A", "NOERROR A 172.0.0.33");
}
