//! §2.4, records for a headless Service.

use crate::Rule;
use crate::subject::Subject;

pub const RULES: &[Rule] = &[
    (
        "§2.4.1: a headless Service has the address of each ready endpoint; no condition is ready",
        &[
            (
                "hdls1.testns.svc A",
                "NOERROR A 172.0.0.2 A 172.0.0.3 A 172.0.0.4 A 172.0.0.5 A 172.0.0.8",
            ),
            (
                "hdls1.testns.svc AAAA",
                "NOERROR AAAA 5678:abcd:: AAAA 5678:abcd::1",
            ),
            (
                "hdls-three.testns.svc A",
                "NOERROR A 10.244.3.1 A 10.244.3.2 A 10.244.3.3",
            ),
            (
                "HDLS-Three.TestNS.svc A",
                "NOERROR A 10.244.3.1 A 10.244.3.2 A 10.244.3.3",
            ),
            ("hdls-three.testns.svc AAAA", "NODATA"),
            ("hdls-dual.testns.svc A", "NOERROR A 172.0.0.50"),
            ("hdls-dual.testns.svc AAAA", "NOERROR AAAA 5678:abcd::50"),
        ],
    ),
    (
        "§2.4.1: without a ready endpoint the answer is NXDOMAIN",
        &[
            ("hdls-unready.testns.svc A", "NXDOMAIN"),
            ("hdls-unready.testns.svc AAAA", "NXDOMAIN"),
            ("hdls-unready.testns.svc SRV", "NXDOMAIN"),
            ("hdls-none.testns.svc A", "NXDOMAIN"),
            ("hdls-none.testns.svc TXT", "NXDOMAIN"),
        ],
    ),
    (
        "readiness is the condition ready alone: serving and terminating say nothing",
        &[
            ("hdls-terminating.testns.svc A", "NXDOMAIN"),
            ("hdls-published.testns.svc A", "NOERROR A 172.0.0.32"),
        ],
    ),
    (
        "slices of host names are no matter of DNS",
        &[("hdls-fqdn.testns.svc A", "NXDOMAIN")],
    ),
    (
        "an endpoint that two slices tell of while they are rewritten is one",
        &[
            ("hdls-skewed.testns.svc A", "NOERROR A 172.0.0.33"),
            ("172-0-0-33.hdls-skewed.testns.svc A", "NOERROR A 172.0.0.33"),
            (
                "33.0.0.172.in-addr.arpa. PTR",
                "NOERROR PTR 172-0-0-33.hdls-skewed.testns.svc",
            ),
        ],
    ),
    (
        "§2.4.1: an endpoint's hostname is its name, and several may share it",
        &[
            ("dup-name.hdls1.testns.svc A", "NOERROR A 172.0.0.4 A 172.0.0.5"),
            ("Dup-Name.hdls1.testns.svc A", "NOERROR A 172.0.0.4 A 172.0.0.5"),
            ("dup-name.hdls1.testns.svc AAAA", "NODATA"),
            ("a.hdls-two-ports.testns.svc A", "NOERROR A 172.0.0.40"),
            ("b.hdls-two-ports.testns.svc A", "NOERROR A 172.0.0.41"),
            ("host.hdls-dual.testns.svc A", "NOERROR A 172.0.0.50"),
            ("host.hdls-dual.testns.svc AAAA", "NOERROR AAAA 5678:abcd::50"),
            ("c.hdls-two-ports.testns.svc A", "NXDOMAIN"),
            ("a.hdls-unready.testns.svc A", "NXDOMAIN"),
        ],
    ),
    (
        "§2.1: without a hostname it has an identifier, which is the address with dashes (CoreDNS)",
        &[
            ("172-0-0-2.hdls1.testns.svc A", "NOERROR A 172.0.0.2"),
            ("172-0-0-3.hdls1.testns.svc A", "NOERROR A 172.0.0.3"),
            ("172-0-0-8.hdls1.testns.svc A", "NOERROR A 172.0.0.8"),
            ("5678-abcd--1.hdls1.testns.svc AAAA", "NOERROR AAAA 5678:abcd::1"),
            ("5678-ABCD--1.hdls1.testns.svc AAAA", "NOERROR AAAA 5678:abcd::1"),
            ("172-0-0-20.hdls-portless.testns.svc A", "NOERROR A 172.0.0.20"),
        ],
    ),
    (
        "a label may not end in a dash, so that an address ending in :: gets a zero",
        &[("5678-abcd--0.hdls1.testns.svc AAAA", "NOERROR AAAA 5678:abcd::")],
    ),
    (
        "an endpoint has one name: a hostname takes the dashed one away, and an address has one spelling",
        &[
            ("172-0-0-4.hdls1.testns.svc A", "NXDOMAIN"),
            ("172-0-0-40.hdls-two-ports.testns.svc A", "NXDOMAIN"),
            ("172-000-0-2.hdls1.testns.svc A", "NXDOMAIN"),
            ("5678-abcd-0--1.hdls1.testns.svc AAAA", "NXDOMAIN"),
            ("web-0.hdls1.testns.svc A", "NXDOMAIN"),
        ],
    ),
    (
        "an endpoint that is not ready has no name",
        &[
            ("172-0-0-6.hdls1.testns.svc A", "NXDOMAIN"),
            ("172-0-0-30.hdls-unready.testns.svc A", "NXDOMAIN"),
        ],
    ),
    (
        "the family that an endpoint has not is no data",
        &[
            ("172-0-0-2.hdls1.testns.svc AAAA", "NODATA"),
            ("5678-abcd--1.hdls1.testns.svc A", "NODATA"),
        ],
    ),
    (
        "§2.4.2: N ready endpoints times M named ports are so many SRV records; a weight is 100 divided by them",
        &[
            (
                "_http._tcp.hdls-three.testns.svc SRV",
                "NOERROR SRV 0 33 80 10-244-3-1.hdls-three.testns.svc SRV 0 33 80 10-244-3-2.hdls-three.testns.svc \
                 SRV 0 33 80 10-244-3-3.hdls-three.testns.svc \
                 + 10-244-3-1.hdls-three.testns.svc A 10.244.3.1 + 10-244-3-2.hdls-three.testns.svc A 10.244.3.2 \
                 + 10-244-3-3.hdls-three.testns.svc A 10.244.3.3",
            ),
            (
                "_http._tcp.hdls-two-ports.testns.svc SRV",
                "NOERROR SRV 0 50 80 a.hdls-two-ports.testns.svc SRV 0 50 80 b.hdls-two-ports.testns.svc \
                 + a.hdls-two-ports.testns.svc A 172.0.0.40 + b.hdls-two-ports.testns.svc A 172.0.0.41",
            ),
            (
                "hdls-two-ports.testns.svc SRV",
                "NOERROR SRV 0 25 443 a.hdls-two-ports.testns.svc SRV 0 25 443 b.hdls-two-ports.testns.svc \
                 SRV 0 25 80 a.hdls-two-ports.testns.svc SRV 0 25 80 b.hdls-two-ports.testns.svc \
                 + a.hdls-two-ports.testns.svc A 172.0.0.40 + b.hdls-two-ports.testns.svc A 172.0.0.41",
            ),
            (
                "_https._tcp.hdls-two-ports.testns.svc SRV",
                "NOERROR SRV 0 50 443 a.hdls-two-ports.testns.svc SRV 0 50 443 b.hdls-two-ports.testns.svc \
                 + a.hdls-two-ports.testns.svc A 172.0.0.40 + b.hdls-two-ports.testns.svc A 172.0.0.41",
            ),
            (
                "_dns._udp.hdls-dns.testns.svc SRV",
                "NOERROR SRV 0 100 53 ns-0.hdls-dns.testns.svc + ns-0.hdls-dns.testns.svc A 172.0.0.43",
            ),
        ],
    ),
    (
        "endpoints that share a hostname are one record with both addresses, and both count for the weight",
        &[
            (
                "_http._tcp.hdls1.testns.svc SRV",
                "NOERROR SRV 0 14 80 172-0-0-2.hdls1.testns.svc SRV 0 14 80 172-0-0-3.hdls1.testns.svc \
                 SRV 0 14 80 172-0-0-8.hdls1.testns.svc SRV 0 14 80 5678-abcd--0.hdls1.testns.svc \
                 SRV 0 14 80 5678-abcd--1.hdls1.testns.svc SRV 0 14 80 dup-name.hdls1.testns.svc \
                 + 172-0-0-2.hdls1.testns.svc A 172.0.0.2 + 172-0-0-3.hdls1.testns.svc A 172.0.0.3 \
                 + 172-0-0-8.hdls1.testns.svc A 172.0.0.8 + 5678-abcd--0.hdls1.testns.svc AAAA 5678:abcd:: \
                 + 5678-abcd--1.hdls1.testns.svc AAAA 5678:abcd::1 \
                 + dup-name.hdls1.testns.svc A 172.0.0.4 + dup-name.hdls1.testns.svc A 172.0.0.5",
            ),
            (
                "_http._tcp.hdls-dual.testns.svc SRV",
                "NOERROR SRV 0 50 80 host.hdls-dual.testns.svc + host.hdls-dual.testns.svc A 172.0.0.50 \
                 + host.hdls-dual.testns.svc AAAA 5678:abcd::50",
            ),
        ],
    ),
    (
        "SRV on an endpoint's own name has its ports",
        &[
            (
                "172-0-0-2.hdls1.testns.svc SRV",
                "NOERROR SRV 0 100 80 172-0-0-2.hdls1.testns.svc + 172-0-0-2.hdls1.testns.svc A 172.0.0.2",
            ),
            (
                "a.hdls-two-ports.testns.svc SRV",
                "NOERROR SRV 0 50 443 a.hdls-two-ports.testns.svc SRV 0 50 80 a.hdls-two-ports.testns.svc \
                 + a.hdls-two-ports.testns.svc A 172.0.0.40",
            ),
        ],
    ),
    (
        "§2.4.2: ports that are unnamed, unknown or of another protocol have no SRV record of their own",
        &[
            ("_ftp._tcp.hdls1.testns.svc SRV", "NXDOMAIN"),
            ("_http._udp.hdls1.testns.svc SRV", "NXDOMAIN"),
            ("_dns._tcp.hdls-dns.testns.svc SRV", "NXDOMAIN"),
            ("_http._tcp.hdls-unnamed.testns.svc SRV", "NXDOMAIN"),
            ("_http._tcp.hdls-portless.testns.svc SRV", "NXDOMAIN"),
            ("_http._tcp.hdls-unready.testns.svc SRV", "NXDOMAIN"),
        ],
    ),
    (
        "CoreDNS: SRV on the Service's name has unnamed ports as well",
        &[(
            "hdls-unnamed.testns.svc SRV",
            "NOERROR SRV 0 100 7000 172-0-0-42.hdls-unnamed.testns.svc + 172-0-0-42.hdls-unnamed.testns.svc A 172.0.0.42",
        )],
    ),
    (
        "CoreDNS: a Service without ports has addresses and no SRV record",
        &[
            ("hdls-portless.testns.svc A", "NOERROR A 172.0.0.20"),
            ("hdls-portless.testns.svc SRV", "NODATA"),
        ],
    ),
    (
        "the address of a port's name is that of the endpoints that serve it",
        &[
            (
                "_http._tcp.hdls-three.testns.svc A",
                "NOERROR A 10.244.3.1 A 10.244.3.2 A 10.244.3.3",
            ),
            ("_http._tcp.hdls-three.testns.svc AAAA", "NODATA"),
        ],
    ),
    (
        "§2.4.3: a ready endpoint's address leads back to its name",
        &[
            (
                "2.0.0.172.in-addr.arpa. PTR",
                "NOERROR PTR 172-0-0-2.hdls1.testns.svc",
            ),
            (
                "4.0.0.172.in-addr.arpa. PTR",
                "NOERROR PTR dup-name.hdls1.testns.svc",
            ),
            (
                "40.0.0.172.in-addr.arpa. PTR",
                "NOERROR PTR a.hdls-two-ports.testns.svc",
            ),
            (
                "0.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.c.b.a.8.7.6.5.ip6.arpa. PTR",
                "NOERROR PTR host.hdls-dual.testns.svc",
            ),
            (
                "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.c.b.a.8.7.6.5.ip6.arpa. PTR",
                "NOERROR PTR 5678-abcd--1.hdls1.testns.svc",
            ),
            (
                "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.c.b.a.8.7.6.5.ip6.arpa. PTR",
                "NOERROR PTR 5678-abcd--0.hdls1.testns.svc",
            ),
            ("6.0.0.172.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."),
            ("30.0.0.172.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."),
        ],
    ),
];

#[test]
fn headless_services_have_their_records() {
    Subject::start("").check(RULES);
}

#[test]
fn a_weight_is_never_nothing() {
    let subject = Subject::start("");
    let answer = subject.ask("_http._tcp.hdls-120.testns.svc SRV", 5);
    let records = answer.split(" SRV ").skip(1);
    let weights: Vec<&str> = records.filter_map(|record| record.split(' ').nth(1)).collect();
    assert!(
        !weights.is_empty() && weights.iter().all(|weight| *weight == "1"),
        "{answer}"
    );
}
