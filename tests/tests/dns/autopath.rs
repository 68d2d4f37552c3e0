//! `autopath @kubernetes`: names are completed along the search path of the pod that asks.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};
use tests::topology::Host;
use tests::wait;

use crate::Rule;
use crate::section_2_5_external_name::upstream;
use crate::subject::{Config, DEADLINE, DEFAULT_TTL, Subject};

/// Clients: a pod of `testns`, one of `otherns`, and nobody's address.
const OF_TESTNS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 2));
const OF_OTHERNS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 3));
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 4));

const BY_TESTNS: &[Rule] = &[
    (
        "autopath: a name that exists has its own answer",
        &[
            ("svc1.testns.svc A", "NOERROR A 10.0.0.1"),
            ("svc1.testns.svc AAAA", "NODATA"),
        ],
    ),
    (
        "autopath: else the first one on the path that exists answers, behind an alias for it",
        &[
            (
                "svc1.otherns.testns.svc A",
                "NOERROR CNAME svc1.otherns.svc svc1.otherns.svc A 10.0.1.1",
            ),
            (
                "svc1.otherns.svc.testns.svc A",
                "NOERROR CNAME svc1.otherns.svc svc1.otherns.svc A 10.0.1.1",
            ),
            (
                "SVC1.otherns.TestNS.svc A",
                "NOERROR CNAME svc1.otherns.svc svc1.otherns.svc A 10.0.1.1",
            ),
            (
                "ext.interwebs.test.testns.svc A",
                "NOERROR CNAME ext.interwebs.test. ext.interwebs.test. A 192.0.2.53",
            ),
        ],
    ),
    (
        "autopath: where that one has no such records there is nothing to lead to",
        &[
            ("ext.interwebs.test.testns.svc AAAA", "NOERROR"),
            ("svc1.otherns.testns.svc AAAA", "NODATA"),
        ],
    ),
    (
        "autopath: where nothing exists the first answer stands",
        &[("none.interwebs.test.testns.svc A", "NXDOMAIN")],
    ),
    (
        "autopath: who asks by another domain than the first of its path is left alone",
        &[
            ("ext.interwebs.test.svc A", "NXDOMAIN"),
            ("ext.interwebs.test.cluster.local. A", "NXDOMAIN"),
            ("svc1.testns.otherns.svc A", "NXDOMAIN"),
            ("testns.svc A", "NODATA"),
        ],
    ),
];

const BY_OTHERS: &[(IpAddr, &str, &str)] = &[
    (
        OF_OTHERNS,
        "svc1.testns.otherns.svc A",
        "NOERROR CNAME svc1.testns.svc svc1.testns.svc A 10.0.0.1",
    ),
    (OF_OTHERNS, "svc1.otherns.testns.svc A", "NXDOMAIN"),
    (NOBODY, "svc1.testns.otherns.svc A", "NXDOMAIN"),
    (NOBODY, "svc1.otherns.testns.svc A", "NXDOMAIN"),
    (NOBODY, "svc1.testns.svc A", "NOERROR A 10.0.0.1"),
];

fn pod(namespace: &str, name: &str, address: IpAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name}, "spec": {},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    })
}

#[test]
fn names_are_completed_along_the_path_of_the_pod_that_asks() {
    if !tests::privileged("names are completed along the path of the pod that asks") {
        return;
    }
    let host = Host::new("dns").expect("host");
    for client in [OF_TESTNS, OF_OTHERNS, NOBODY] {
        host.add_address("lo", client.into()).expect("address");
    }
    host.run(check).expect("its namespace");
}

/// On a host that has the clients' addresses.
fn check() {
    let plugins = format!(
        "autopath @kubernetes\n    forward . {} {{\n        prefer_udp\n    }}",
        upstream()
    );
    let subject = Subject::with(Config {
        options: "pods verified",
        plugins: &plugins,
        ..Config::default()
    });
    let wait_until = |client: IpAddr, question: &str, expected: &str| {
        let ask = || subject.ask_from(client, question, DEFAULT_TTL);
        wait::until_value(question, DEADLINE, ask, |found| found == expected);
    };
    subject.api.put(pod("testns", "client", OF_TESTNS));
    subject.api.put(pod("otherns", "client", OF_OTHERNS));
    let [found, denied] = [
        "NOERROR CNAME svc1.otherns.svc svc1.otherns.svc A 10.0.1.1",
        "NXDOMAIN",
    ];
    wait_until(OF_TESTNS, "svc1.otherns.testns.svc A", found);
    wait_until(OF_OTHERNS, BY_OTHERS[0].1, BY_OTHERS[0].2);
    let rows = BY_TESTNS
        .iter()
        .flat_map(|(rule, rows)| rows.iter().map(move |row| (*rule, row)));
    for (rule, (question, expected)) in rows {
        assert_eq!(
            subject.ask_from(OF_TESTNS, question, DEFAULT_TTL),
            *expected,
            "{rule}: {question}"
        );
    }
    for (client, question, expected) in BY_OTHERS {
        assert_eq!(
            subject.ask_from(*client, question, DEFAULT_TTL),
            *expected,
            "{client} {question}"
        );
    }

    // The pod ends, and one of another namespace gets its address.
    subject.api.delete(&pod("testns", "client", OF_TESTNS));
    wait_until(OF_TESTNS, "svc1.otherns.testns.svc A", denied);
    subject.api.put(pod("otherns", "next", OF_TESTNS));
    wait_until(OF_TESTNS, BY_OTHERS[0].1, BY_OTHERS[0].2);
    wait_until(OF_TESTNS, "svc1.otherns.testns.svc A", denied);
}
