//! §2.3, records for a Service with ClusterIP.

use crate::Rule;
use crate::subject::Subject;

pub const RULES: &[Rule] = &[
    (
        "§2.3.1: a Service's name has its ClusterIP",
        &[
            ("svc1.testns.svc A", "NOERROR A 10.0.0.1"),
            ("svc1.otherns.svc A", "NOERROR A 10.0.1.1"),
            ("kube-dns.kube-system.svc A", "NOERROR A 10.0.0.10"),
            ("svc6.testns.svc AAAA", "NOERROR AAAA 1234:abcd::1"),
            ("old.testns.svc A", "NOERROR A 10.0.0.12"),
            ("1digit.testns.svc A", "NOERROR A 10.0.0.9"),
        ],
    ),
    (
        "a Service may be called as a part of the grammar",
        &[("svc.testns.svc A", "NOERROR A 10.0.0.13")],
    ),
    (
        "node ports and load balancers change nothing: the name has the ClusterIP alone",
        &[
            ("node-port.testns.svc A", "NOERROR A 10.0.0.7"),
            ("balancer.testns.svc A", "NOERROR A 10.0.0.8"),
            ("balancer.testns.svc AAAA", "NODATA"),
        ],
    ),
    (
        "dual stack: each family has its address, whichever is the first",
        &[
            ("dual.testns.svc A", "NOERROR A 10.0.0.4"),
            ("dual.testns.svc AAAA", "NOERROR AAAA 1234:abcd::4"),
            ("dual6.testns.svc A", "NOERROR A 10.0.0.14"),
            ("dual6.testns.svc AAAA", "NOERROR AAAA 1234:abcd::5"),
        ],
    ),
    (
        "the family that a Service has not is no data, not a name error (RFC 4074 §3)",
        &[
            ("svc1.testns.svc AAAA", "NODATA"),
            ("svc6.testns.svc A", "NODATA"),
            ("kube-dns.kube-system.svc AAAA", "NODATA"),
        ],
    ),
    (
        "a Service has its name also without a ready endpoint",
        &[
            ("no-endpoints.testns.svc A", "NOERROR A 10.0.0.5"),
            ("unready.testns.svc A", "NOERROR A 10.0.0.6"),
        ],
    ),
    (
        "§2.1: comparisons ignore case, and the question's case comes back",
        &[
            ("SVC1.testns.svc A", "NOERROR A 10.0.0.1"),
            ("svc1.TestNS.SVC A", "NOERROR A 10.0.0.1"),
            ("sVc1.tEsTnS.sVc.ClUsTeR.LoCaL. A", "NOERROR A 10.0.0.1"),
            ("SVC6.TESTNS.SVC.CLUSTER.LOCAL. AAAA", "NOERROR AAAA 1234:abcd::1"),
        ],
    ),
    (
        "§2.3.2: a named port has an SRV record, with the Service's address beside it",
        &[
            (
                "_http._tcp.svc1.testns.svc SRV",
                "NOERROR SRV 0 100 80 svc1.testns.svc + svc1.testns.svc A 10.0.0.1",
            ),
            (
                "_http._tcp.svc6.testns.svc SRV",
                "NOERROR SRV 0 100 80 svc6.testns.svc + svc6.testns.svc AAAA 1234:abcd::1",
            ),
            (
                "_http._tcp.two-ports.testns.svc SRV",
                "NOERROR SRV 0 100 80 two-ports.testns.svc + two-ports.testns.svc A 10.0.0.2",
            ),
            (
                "_https._tcp.two-ports.testns.svc SRV",
                "NOERROR SRV 0 100 443 two-ports.testns.svc + two-ports.testns.svc A 10.0.0.2",
            ),
            (
                "_http._tcp.node-port.testns.svc SRV",
                "NOERROR SRV 0 100 80 node-port.testns.svc + node-port.testns.svc A 10.0.0.7",
            ),
            (
                "_http._tcp.no-endpoints.testns.svc SRV",
                "NOERROR SRV 0 100 80 no-endpoints.testns.svc + no-endpoints.testns.svc A 10.0.0.5",
            ),
        ],
    ),
    (
        "§2.3.2: a port is found by its own protocol alone",
        &[
            (
                "_dns._udp.kube-dns.kube-system.svc SRV",
                "NOERROR SRV 0 100 53 kube-dns.kube-system.svc + kube-dns.kube-system.svc A 10.0.0.10",
            ),
            (
                "_dns-tcp._tcp.kube-dns.kube-system.svc SRV",
                "NOERROR SRV 0 100 53 kube-dns.kube-system.svc + kube-dns.kube-system.svc A 10.0.0.10",
            ),
            ("_dns._tcp.kube-dns.kube-system.svc SRV", "NXDOMAIN"),
            ("_dns-tcp._udp.kube-dns.kube-system.svc SRV", "NXDOMAIN"),
            (
                "_m3ua._sctp.protocols.testns.svc SRV",
                "NOERROR SRV 0 100 2905 protocols.testns.svc + protocols.testns.svc A 10.0.0.11",
            ),
            (
                "_media._udp.protocols.testns.svc SRV",
                "NOERROR SRV 0 100 2 protocols.testns.svc + protocols.testns.svc A 10.0.0.11",
            ),
            ("_sig._sctp.protocols.testns.svc SRV", "NXDOMAIN"),
        ],
    ),
    (
        "§2.3.2: unnamed ports and unknown ones have no SRV record of their own",
        &[
            ("_http._tcp.unnamed.testns.svc SRV", "NXDOMAIN"),
            ("_8080._tcp.unnamed.testns.svc SRV", "NXDOMAIN"),
            ("_ftp._tcp.svc1.testns.svc SRV", "NXDOMAIN"),
            ("_http._icmp.svc1.testns.svc SRV", "NXDOMAIN"),
            ("_http._tcp.nosvc.testns.svc SRV", "NXDOMAIN"),
            ("_http._tcp.svc1.nons.svc SRV", "NXDOMAIN"),
        ],
    ),
    (
        "CoreDNS: the underscores may be left out, and case does not matter",
        &[
            (
                "http.tcp.svc1.testns.svc SRV",
                "NOERROR SRV 0 100 80 svc1.testns.svc + svc1.testns.svc A 10.0.0.1",
            ),
            (
                "_http.tcp.svc1.testns.svc SRV",
                "NOERROR SRV 0 100 80 svc1.testns.svc + svc1.testns.svc A 10.0.0.1",
            ),
            (
                "_HTTP._TCP.svc1.testns.svc SRV",
                "NOERROR SRV 0 100 80 svc1.testns.svc + svc1.testns.svc A 10.0.0.1",
            ),
        ],
    ),
    (
        "CoreDNS: a weight is 100 divided by pairs of address and port, counted before equal records become one",
        &[
            (
                "_http._tcp.dual.testns.svc SRV",
                "NOERROR SRV 0 50 80 dual.testns.svc + dual.testns.svc A 10.0.0.4 + dual.testns.svc AAAA 1234:abcd::4",
            ),
            (
                "two-ports.testns.svc SRV",
                "NOERROR SRV 0 50 443 two-ports.testns.svc SRV 0 50 80 two-ports.testns.svc \
                 + two-ports.testns.svc A 10.0.0.2",
            ),
            (
                "kube-dns.kube-system.svc SRV",
                "NOERROR SRV 0 33 53 kube-dns.kube-system.svc SRV 0 33 9153 kube-dns.kube-system.svc \
                 + kube-dns.kube-system.svc A 10.0.0.10",
            ),
        ],
    ),
    (
        "CoreDNS: SRV on the Service's own name has every port, named or not",
        &[
            (
                "svc1.testns.svc SRV",
                "NOERROR SRV 0 100 80 svc1.testns.svc + svc1.testns.svc A 10.0.0.1",
            ),
            (
                "unnamed.testns.svc SRV",
                "NOERROR SRV 0 100 8080 unnamed.testns.svc + unnamed.testns.svc A 10.0.0.3",
            ),
            (
                "protocols.testns.svc SRV",
                "NOERROR SRV 0 33 1 protocols.testns.svc SRV 0 33 2 protocols.testns.svc \
                 SRV 0 33 2905 protocols.testns.svc + protocols.testns.svc A 10.0.0.11",
            ),
        ],
    ),
    (
        "CoreDNS: the address of a port's name is the Service's",
        &[
            ("_http._tcp.svc1.testns.svc A", "NOERROR A 10.0.0.1"),
            ("_http._tcp.svc1.testns.svc AAAA", "NODATA"),
            ("_http._tcp.dual.testns.svc AAAA", "NOERROR AAAA 1234:abcd::4"),
            ("_http._tcp.svc1.testns.svc TXT", "NODATA"),
        ],
    ),
    (
        "§2.3.3: a ClusterIP leads back to the Service",
        &[
            ("1.0.0.10.in-addr.arpa. PTR", "NOERROR PTR svc1.testns.svc"),
            ("1.1.0.10.in-addr.arpa. PTR", "NOERROR PTR svc1.otherns.svc"),
            ("4.0.0.10.in-addr.arpa. PTR", "NOERROR PTR dual.testns.svc"),
            (
                "5.0.0.10.in-addr.arpa. PTR",
                "NOERROR PTR no-endpoints.testns.svc",
            ),
            (
                "10.0.0.10.in-addr.arpa. PTR",
                "NOERROR PTR kube-dns.kube-system.svc",
            ),
            ("1.0.0.10.IN-ADDR.ARPA. PTR", "NOERROR PTR svc1.testns.svc"),
        ],
    ),
    (
        "§2.3.3: the same for IPv6 (RFC 3596 §2.5)",
        &[
            (
                "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.c.b.a.4.3.2.1.ip6.arpa. PTR",
                "NOERROR PTR svc6.testns.svc",
            ),
            (
                "4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.D.C.B.A.4.3.2.1.ip6.arpa. PTR",
                "NOERROR PTR dual.testns.svc",
            ),
            (
                "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.c.b.a.4.3.2.1.ip6.arpa. PTR",
                "NOERROR PTR dual6.testns.svc",
            ),
        ],
    ),
    (
        "addresses that are no ClusterIP lead nowhere: node ports', load balancers', and other clusters'",
        &[
            ("1.100.51.198.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."),
            ("2.100.51.198.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."),
            ("99.0.0.10.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."),
        ],
    ),
    (
        "CoreDNS: endpoints of a Service with an address have names, too",
        &[
            ("172-0-0-1.svc1.testns.svc A", "NOERROR A 172.0.0.1"),
            ("172-0-0-1.svc1.otherns.svc A", "NOERROR A 172.0.0.1"),
            ("172-0-0-1.svc1.testns.svc AAAA", "NODATA"),
            ("5678-abcd--6.svc6.testns.svc AAAA", "NOERROR AAAA 5678:abcd::6"),
            ("172-0-0-90.dual.testns.svc A", "NOERROR A 172.0.0.90"),
            ("5678-abcd--90.dual.testns.svc AAAA", "NOERROR AAAA 5678:abcd::90"),
            ("172-0-0-2.svc1.testns.svc A", "NXDOMAIN"),
            ("172-0-0-91.unready.testns.svc A", "NXDOMAIN"),
            ("svc1-pod.svc1.testns.svc A", "NXDOMAIN"),
            ("10-0-0-1.svc1.testns.svc A", "NXDOMAIN"),
        ],
    ),
    (
        "CoreDNS: and their addresses lead back to those, one name for each Service",
        &[
            (
                "1.0.0.172.in-addr.arpa. PTR",
                "NOERROR PTR 172-0-0-1.svc1.otherns.svc PTR 172-0-0-1.svc1.testns.svc",
            ),
            (
                "90.0.0.172.in-addr.arpa. PTR",
                "NOERROR PTR 172-0-0-90.dual.testns.svc",
            ),
            ("91.0.0.172.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."),
        ],
    ),
];

#[test]
fn services_with_addresses_have_their_records() {
    Subject::start("").check(RULES);
}
