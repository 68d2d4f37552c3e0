//! Pods by their addresses: §2.6 of the specification's first version, and what CoreDNS made of it.

use serde_json::json;

use crate::Rule;
use crate::subject::Subject;

pub const DISABLED: &[Rule] = &[(
    "pods disabled, the default: no pod has a name",
    &[
        ("172-0-0-3.testns.pod A", "NXDOMAIN"),
        ("1-2-3-4.testns.pod A", "NXDOMAIN"),
        ("5678-abcd--50.testns.pod AAAA", "NXDOMAIN"),
        ("web-0.testns.pod A", "NXDOMAIN"),
        ("1-2-3-4.nons.pod A", "NXDOMAIN"),
    ],
)];

pub const INSECURE: &[Rule] = &[
    (
        "pods insecure: every address has a name in every namespace that exists",
        &[
            ("172-0-0-3.testns.pod A", "NOERROR A 172.0.0.3"),
            ("1-2-3-4.testns.pod A", "NOERROR A 1.2.3.4"),
            ("1-2-3-4.emptyns.pod A", "NOERROR A 1.2.3.4"),
            ("1-2-3-4.TestNS.POD A", "NOERROR A 1.2.3.4"),
            ("5678-abcd--50.testns.pod AAAA", "NOERROR AAAA 5678:abcd::50"),
            ("5678-ABCD--50.testns.pod AAAA", "NOERROR AAAA 5678:abcd::50"),
            ("1-2-3-4-5-6-7-8.testns.pod AAAA", "NOERROR AAAA 1:2:3:4:5:6:7:8"),
            ("--1.testns.pod AAAA", "NOERROR AAAA ::1"),
            ("1-2-3-4.nons.pod A", "NXDOMAIN"),
        ],
    ),
    (
        "the family that is not asked for is no data, and so is another type",
        &[
            ("1-2-3-4.testns.pod AAAA", "NODATA"),
            ("5678-abcd--50.testns.pod A", "NODATA"),
            ("1-2-3-4.testns.pod TXT", "NODATA"),
        ],
    ),
    (
        "what spells no address is no pod, and nothing is below one",
        &[
            ("web-0.testns.pod A", "NXDOMAIN"),
            ("1-2-3.testns.pod A", "NXDOMAIN"),
            ("1-2-3-256.testns.pod A", "NXDOMAIN"),
            ("1-2-3-4-5.testns.pod A", "NXDOMAIN"),
            ("x.1-2-3-4.testns.pod A", "NXDOMAIN"),
            ("1234.testns.pod A", "NXDOMAIN"),
        ],
    ),
    (
        "a namespace exists among the pods as it does among the Services",
        &[("testns.pod A", "NODATA"), ("nons.pod A", "NXDOMAIN")],
    ),
    (
        "a pod has no port, and its address leads back to the endpoint that it is",
        &[
            ("_http._tcp.1-2-3-4.testns.pod SRV", "NXDOMAIN"),
            (
                "3.0.0.172.in-addr.arpa. PTR",
                "NOERROR PTR 172-0-0-3.hdls1.testns.svc",
            ),
            ("70.0.0.172.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."),
        ],
    ),
];

pub const VERIFIED: &[Rule] = &[
    (
        "pods verified: an address has a name in the namespace of the pod that has it",
        &[
            ("172-0-0-3.testns.pod A", "NOERROR A 172.0.0.3"),
            ("172-0-0-3.TESTNS.pod A", "NOERROR A 172.0.0.3"),
            ("172-0-0-50.testns.pod A", "NOERROR A 172.0.0.50"),
            ("172-0-0-70.otherns.pod A", "NOERROR A 172.0.0.70"),
            ("172-0-0-3.testns.pod AAAA", "NODATA"),
        ],
    ),
    (
        "and no other address has one",
        &[
            ("1-2-3-4.testns.pod A", "NXDOMAIN"),
            ("172-0-0-3.otherns.pod A", "NXDOMAIN"),
            ("172-0-0-3.nons.pod A", "NXDOMAIN"),
            ("172-0-0-70.testns.pod A", "NXDOMAIN"),
            ("web-0.testns.pod A", "NXDOMAIN"),
            ("x.172-0-0-3.testns.pod A", "NXDOMAIN"),
        ],
    ),
    (
        "a pod that has ended has no name: another may have its address by now",
        &[
            ("172-0-0-60.testns.pod A", "NXDOMAIN"),
            ("172-0-0-61.testns.pod A", "NXDOMAIN"),
        ],
    ),
    (
        "a namespace exists also without a pod",
        &[
            ("testns.pod A", "NODATA"),
            ("emptyns.pod A", "NODATA"),
            ("nons.pod A", "NXDOMAIN"),
        ],
    ),
];

/// CoreDNS reads `podIP` alone.
pub const VERIFIED_SECOND_FAMILY: &[Rule] = &[(
    "a pod of two families has a name by each of its addresses",
    &[
        ("5678-abcd--50.testns.pod AAAA", "NOERROR AAAA 5678:abcd::50"),
        ("5678-abcd--50.testns.pod A", "NODATA"),
        ("5678-abcd--50.otherns.pod AAAA", "NXDOMAIN"),
    ],
)];

#[test]
fn pods_are_disabled_by_default() {
    Subject::start("").check(DISABLED);
    Subject::start("pods disabled").check(DISABLED);
}

#[test]
fn pods_by_whatever_address_is_asked_for() {
    Subject::start("pods insecure").check(INSECURE);
}

#[test]
fn pods_that_exist() {
    let subject = Subject::start("pods verified");
    subject.wait_until("172-0-0-3.testns.pod A", "NOERROR A 172.0.0.3");
    subject.check(VERIFIED);
    subject.check_ours(VERIFIED_SECOND_FAMILY);
}

#[test]
fn a_pod_has_its_name_for_as_long_as_it_has_its_address() {
    let subject = Subject::start("pods verified");
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "testns", "name": "late"},
        "spec": {}, "status": {"phase": "Pending"},
    });
    subject.api.put(pod.clone());
    subject.wait_until("172-0-0-80.testns.pod A", "NXDOMAIN");
    pod["status"] = json!({"phase": "Running", "podIP": "172.0.0.80", "podIPs": [{"ip": "172.0.0.80"}]});
    subject.api.put(pod.clone());
    subject.wait_until("172-0-0-80.testns.pod A", "NOERROR A 172.0.0.80");
    pod["status"]["phase"] = "Succeeded".into();
    subject.api.put(pod);
    subject.wait_until("172-0-0-80.testns.pod A", "NXDOMAIN");
}
