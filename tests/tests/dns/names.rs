//! Names that hold no record, names that do not exist, and the zone itself: what the specification leaves to the DNS.

use crate::Rule;
use crate::subject::Subject;

pub const RULES: &[Rule] = &[
    (
        "the zone itself has an SOA record and no address",
        &[
            ("@ A", "NODATA"),
            ("@ AAAA", "NODATA"),
            ("@ SRV", "NODATA"),
            ("@ TXT", "NODATA"),
            (
                "@ SOA",
                "NOERROR SOA ns.dns.cluster.local. hostmaster.cluster.local.",
            ),
            (
                "CLUSTER.Local. SOA",
                "NOERROR SOA ns.dns.CLUSTER.Local. hostmaster.CLUSTER.Local.",
            ),
            (
                "in-addr.arpa. SOA",
                "NOERROR SOA ns.dns.in-addr.arpa. hostmaster.in-addr.arpa.",
            ),
            ("in-addr.arpa. PTR", "NODATA in-addr.arpa."),
            ("ip6.arpa. A", "NODATA ip6.arpa."),
        ],
    ),
    (
        "what only holds other names has no data (RFC 8020 §2)",
        &[
            ("svc A", "NODATA"),
            ("pod A", "NODATA"),
            ("svc AAAA", "NODATA"),
            ("SVC A", "NODATA"),
            ("testns.svc A", "NODATA"),
            ("testns.svc AAAA", "NODATA"),
            ("TESTNS.svc A", "NODATA"),
        ],
    ),
    (
        "a namespace without a Service exists",
        &[("emptyns.svc A", "NODATA"), ("emptyns.svc SRV", "NODATA")],
    ),
    (
        "a namespace that is not there does not exist, nor does anything in it",
        &[
            ("nons.svc A", "NXDOMAIN"),
            ("svc1.nons.svc A", "NXDOMAIN"),
            ("x.svc1.nons.svc A", "NXDOMAIN"),
        ],
    ),
    (
        "a Service that is not there does not exist, in whatever type it is asked for",
        &[
            ("nosvc.testns.svc A", "NXDOMAIN"),
            ("nosvc.testns.svc AAAA", "NXDOMAIN"),
            ("nosvc.testns.svc SRV", "NXDOMAIN"),
            ("nosvc.testns.svc MX", "NXDOMAIN"),
            ("nosvc.testns.svc HTTPS", "NXDOMAIN"),
            ("nosvc.testns.svc CNAME", "NXDOMAIN"),
            ("svc1.emptyns.svc A", "NXDOMAIN"),
            ("svc1.default.svc A", "NXDOMAIN"),
        ],
    ),
    (
        "a Service has no records of other types, known or not (RFC 3597)",
        &[
            ("svc1.testns.svc MX", "NODATA"),
            ("svc1.testns.svc TXT", "NODATA"),
            ("svc1.testns.svc HTTPS", "NODATA"),
            ("svc1.testns.svc SVCB", "NODATA"),
            ("svc1.testns.svc CNAME", "NODATA"),
            ("svc1.testns.svc SOA", "NODATA"),
            ("svc1.testns.svc NS", "NODATA"),
            ("svc1.testns.svc PTR", "NODATA"),
            ("svc1.testns.svc CAA", "NODATA"),
            ("svc1.testns.svc DS", "NODATA"),
            ("svc1.testns.svc ANY", "NODATA"),
            ("svc1.testns.svc TYPE65280", "NODATA"),
            ("hdls1.testns.svc MX", "NODATA"),
            ("dup-name.hdls1.testns.svc TXT", "NODATA"),
        ],
    ),
    (
        "the grammar knows svc and pod alone, and ends with port and protocol",
        &[
            ("svc1.testns.kind A", "NXDOMAIN"),
            ("kind A", "NXDOMAIN"),
            ("svc1.testns A", "NXDOMAIN"),
            ("svc1 A", "NXDOMAIN"),
            ("a.b.svc1.testns.svc A", "NXDOMAIN"),
            ("a._http._tcp.svc1.testns.svc SRV", "NXDOMAIN"),
            ("a.b.c.d.e.f.g.svc1.testns.svc A", "NXDOMAIN"),
            ("x.172-0-0-1.svc1.testns.svc A", "NXDOMAIN"),
            ("svc.svc A", "NXDOMAIN"),
            ("svc1.testns.svc.cluster.local A", "NXDOMAIN"),
        ],
    ),
    (
        "wildcards are names like others (CoreDNS 1.9 took their meaning away)",
        &[
            ("*.testns.svc A", "NXDOMAIN"),
            ("any.testns.svc A", "NXDOMAIN"),
            ("svc1.*.svc A", "NXDOMAIN"),
            ("svc1.any.svc A", "NXDOMAIN"),
            ("*.hdls1.testns.svc A", "NXDOMAIN"),
            ("*._tcp.svc1.testns.svc SRV", "NXDOMAIN"),
            ("_http.*.svc1.testns.svc SRV", "NXDOMAIN"),
        ],
    ),
    (
        "a denial names the zone in the question's case",
        &[
            ("nosvc.testns.svc.CLUSTER.local. A", "NXDOMAIN CLUSTER.local."),
            ("nosvc.testns.svc.cLuStEr.LoCaL. A", "NXDOMAIN cLuStEr.LoCaL."),
            ("svc1.testns.svc.Cluster.Local. AAAA", "NODATA Cluster.Local."),
            ("99.0.0.10.In-Addr.Arpa. PTR", "NXDOMAIN In-Addr.Arpa."),
        ],
    ),
    (
        "the zone's name server has no other records, and no neighbours",
        &[
            ("ns.dns TXT", "NODATA"),
            ("x.ns.dns A", "NXDOMAIN"),
            ("y.dns A", "NXDOMAIN"),
        ],
    ),
    (
        "reverse names that spell no address do not exist",
        &[
            ("x.0.0.10.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."),
            ("300.0.0.10.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."),
            ("01.0.0.10.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."),
            ("+1.0.0.10.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."),
            ("1.1.0.0.10.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."),
            (
                "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.c.b.a.4.3.2.g.ip6.arpa. PTR",
                "NXDOMAIN ip6.arpa.",
            ),
            (
                "11.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.c.b.a.4.3.2.1.ip6.arpa. PTR",
                "NXDOMAIN ip6.arpa.",
            ),
            ("svc1.testns.svc.in-addr.arpa. A", "NXDOMAIN in-addr.arpa."),
        ],
    ),
    (
        "a reversed address has PTR records alone",
        &[
            ("1.0.0.10.in-addr.arpa. A", "NODATA in-addr.arpa."),
            ("1.0.0.10.in-addr.arpa. TXT", "NODATA in-addr.arpa."),
        ],
    ),
    (
        "zones are not handed out",
        &[("@ AXFR", "REFUSED"), ("@ IXFR", "REFUSED")],
    ),
    (
        "names outside of the zones, with nobody to ask, are a failure and no denial",
        &[
            ("example.com. A", "SERVFAIL"),
            ("xcluster.local. A", "SERVFAIL"),
            ("local. A", "SERVFAIL"),
            (". NS", "SERVFAIL"),
        ],
    ),
];

/// CoreDNS says NXDOMAIN to these, by which it denies what is below them, too (RFC 8020 §2, RFC 2308 §2.1).
pub const FIXED: &[Rule] = &[
    (
        "_tcp above a port's name exists, as far as there is one",
        &[
            ("_tcp.svc1.testns.svc A", "NODATA"),
            ("_tcp.svc1.testns.svc SRV", "NODATA"),
            ("_udp.kube-dns.kube-system.svc A", "NODATA"),
            ("_sctp.protocols.testns.svc A", "NODATA"),
            ("_tcp.hdls1.testns.svc A", "NODATA"),
            ("_udp.svc1.testns.svc A", "NXDOMAIN"),
            ("_tcp.unnamed.testns.svc A", "NXDOMAIN"),
            ("_tcp.hdls-portless.testns.svc A", "NXDOMAIN"),
            ("_tcp.nosvc.testns.svc A", "NXDOMAIN"),
        ],
    ),
    (
        "an empty namespace exists in whatever type it is asked for",
        &[
            ("emptyns.svc TXT", "NODATA"),
            ("emptyns.svc MX", "NODATA"),
            ("nons.svc TXT", "NXDOMAIN"),
        ],
    ),
    (
        "dns-version exists, also where it is not asked for its text",
        &[
            ("dns-version A", "NODATA"),
            ("dns-version AAAA", "NODATA"),
            ("dns-version SRV", "NODATA"),
        ],
    ),
    ("dns above the zone's name server exists", &[("dns A", "NODATA")]),
    (
        "above a reversed address there are names, where there is one",
        &[
            ("0.0.10.in-addr.arpa. PTR", "NODATA in-addr.arpa."),
            ("172.in-addr.arpa. SOA", "NODATA in-addr.arpa."),
            ("10.in-addr.arpa. A", "NODATA in-addr.arpa."),
            ("4.3.2.1.ip6.arpa. PTR", "NODATA ip6.arpa."),
            ("0.77.10.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."),
            ("9.9.9.9.ip6.arpa. PTR", "NXDOMAIN ip6.arpa."),
            ("x.10.in-addr.arpa. PTR", "NXDOMAIN in-addr.arpa."),
        ],
    ),
];

#[test]
fn names_exist_or_not_whatever_they_are_asked_for() {
    Subject::start("").check(RULES);
}

#[test]
fn names_above_other_names_exist() {
    Subject::start("").check_ours(FIXED);
}

mod privileged {
    //! On a host of its own, whose addresses are known.

    use tests::topology::Host;

    use super::*;
    use crate::cluster::{endpoint, slice};

    const ALONE: &[Rule] = &[(
        "the zone's name server is ns.dns, with the machine's addresses",
        &[
            (
                "@ NS",
                "NOERROR NS ns.dns + ns.dns A 10.244.9.9 + ns.dns AAAA fd00::9",
            ),
            ("ns.dns A", "NOERROR A 10.244.9.9"),
            ("NS.dns AAAA", "NOERROR AAAA fd00::9"),
        ],
    )];

    const OF_A_SERVICE: &[Rule] = &[(
        "a server that is an endpoint is called like its Service, and has that one's addresses",
        &[(
            "@ NS",
            "NOERROR NS kube-dns.kube-system.svc + kube-dns.kube-system.svc A 10.0.0.10",
        )],
    )];

    #[test]
    fn the_zone_has_a_name_server() {
        if !tests::privileged("the zone's name server") {
            return;
        }
        let host = Host::new("dns").expect("a namespace");
        for address in ["10.244.9.9/32", "fd00::9/128"] {
            host.add_address("lo", address.parse().expect("network"))
                .expect("added");
        }
        let asked = host.run(|| {
            let subject = Subject::start("");
            subject.check_ours(ALONE);
            let own = vec![endpoint("10.244.9.9")];
            let ports = &[("dns", "UDP", 53)];
            subject
                .api
                .put(slice("kube-system", "dns-a", "kube-dns", ports, own));
            subject.wait_until("10-244-9-9.kube-dns.kube-system.svc A", "NOERROR A 10.244.9.9");
            subject.check_ours(OF_A_SERVICE);
        });
        asked.expect("the host is there");
    }
}
