//! §2.5, records for ExternalName Services.

use std::net::{Ipv4Addr, SocketAddr};

use tests::name_server::{self, HEADER, NXDOMAIN, answer_for, head};

use crate::Rule;
use crate::message::wire;
use crate::subject::{Config, DEFAULT_TTL, Subject};

pub const RULES: &[Rule] = &[
    (
        "§2.5: the name is an alias",
        &[
            ("external.testns.svc CNAME", "NOERROR CNAME ext.interwebs.test."),
            ("EXTERNAL.testns.svc CNAME", "NOERROR CNAME ext.interwebs.test."),
            (
                "external-dot.testns.svc CNAME",
                "NOERROR CNAME dot.interwebs.test.",
            ),
            (
                "external-internal.testns.svc CNAME",
                "NOERROR CNAME svc1.testns.svc",
            ),
            ("external.otherns.svc CNAME", "NOERROR CNAME svc1.testns.svc"),
        ],
    ),
    (
        "§2.5: the server looks the target up and appends its addresses, the alias first",
        &[
            (
                "external-internal.testns.svc A",
                "NOERROR CNAME svc1.testns.svc svc1.testns.svc A 10.0.0.1",
            ),
            (
                "external.otherns.svc A",
                "NOERROR CNAME svc1.testns.svc svc1.testns.svc A 10.0.0.1",
            ),
            (
                "external-v6.testns.svc AAAA",
                "NOERROR CNAME svc6.testns.svc svc6.testns.svc AAAA 1234:abcd::1",
            ),
            (
                "external-headless.testns.svc A",
                "NOERROR CNAME hdls-three.testns.svc hdls-three.testns.svc A 10.244.3.1 \
                 hdls-three.testns.svc A 10.244.3.2 hdls-three.testns.svc A 10.244.3.3",
            ),
            (
                "external-endpoint.testns.svc A",
                "NOERROR CNAME a.hdls-two-ports.testns.svc a.hdls-two-ports.testns.svc A 172.0.0.40",
            ),
        ],
    ),
    (
        "an alias of an alias is followed",
        &[
            (
                "external-chain.testns.svc A",
                "NOERROR CNAME external-internal.testns.svc external-internal.testns.svc CNAME svc1.testns.svc \
                 svc1.testns.svc A 10.0.0.1",
            ),
            (
                "external-chain.testns.svc CNAME",
                "NOERROR CNAME external-internal.testns.svc",
            ),
        ],
    ),
    (
        "a target that has no such record, or does not exist, or cannot be asked, leaves the alias alone",
        &[
            (
                "external-internal.testns.svc AAAA",
                "NOERROR CNAME svc1.testns.svc",
            ),
            ("external-v6.testns.svc A", "NOERROR CNAME svc6.testns.svc"),
            ("external-none.testns.svc A", "NOERROR CNAME nosvc.testns.svc"),
            ("external-pod.testns.svc A", "NOERROR CNAME 172-0-0-3.testns.pod"),
            ("external.testns.svc A", "NOERROR CNAME ext.interwebs.test."),
            ("external.testns.svc AAAA", "NOERROR CNAME ext.interwebs.test."),
        ],
    ),
    (
        "an external name that is an address is no name (CoreDNS)",
        &[
            ("external-ip.testns.svc A", "NXDOMAIN"),
            ("external-ip.testns.svc CNAME", "NXDOMAIN"),
            ("external-ip6.testns.svc AAAA", "NXDOMAIN"),
        ],
    ),
    (
        "an ExternalName Service has no ports and no endpoints: nothing is below it",
        &[
            ("external.testns.svc SRV", "NODATA"),
            ("_http._tcp.external.testns.svc SRV", "NXDOMAIN"),
            ("_http._tcp.external-internal.testns.svc SRV", "NXDOMAIN"),
            ("x.external.testns.svc A", "NXDOMAIN"),
            ("_tcp.external.testns.svc A", "NXDOMAIN"),
            ("172-0-0-1.external-internal.testns.svc A", "NXDOMAIN"),
        ],
    ),
];

/// CoreDNS says NODATA to these, as if there were no alias.
pub const FIXED: &[Rule] = &[
    (
        "RFC 1034 §3.6.2: an alias is there whatever its target has",
        &[
            (
                "external-internal.testns.svc AAAA",
                "NOERROR CNAME svc1.testns.svc",
            ),
            ("external-v6.testns.svc A", "NOERROR CNAME svc6.testns.svc"),
        ],
    ),
    (
        "aliases that go in circles are told once",
        &[
            ("loop-self.testns.svc A", "NOERROR CNAME loop-self.testns.svc"),
            (
                "loop-a.testns.svc A",
                "NOERROR CNAME loop-b.testns.svc loop-b.testns.svc CNAME loop-a.testns.svc",
            ),
            ("loop-self.testns.svc CNAME", "NOERROR CNAME loop-self.testns.svc"),
        ],
    ),
];

/// The upstream knows one name.
pub const THROUGH_AN_UPSTREAM: &[Rule] = &[(
    "§2.5: a target outside of the cluster is looked up by the server, too",
    &[
        (
            "external.testns.svc A",
            "NOERROR CNAME ext.interwebs.test. ext.interwebs.test. A 192.0.2.53",
        ),
        ("external.testns.svc AAAA", "NOERROR CNAME ext.interwebs.test."),
        ("external-dot.testns.svc A", "NOERROR CNAME dot.interwebs.test."),
        ("ext.interwebs.test. A", "NOERROR A 192.0.2.53"),
    ],
)];

/// Answers for `ext.interwebs.test` and denies all other names, until the test process ends. It asks nobody itself, so
/// that RA is not set.
pub fn upstream() -> SocketAddr {
    const RA: u8 = 0x80;
    name_server::start(|query, _| {
        let is_known = query[HEADER..]
            .to_ascii_lowercase()
            .starts_with(&wire("ext.interwebs.test"));
        let mut reply = if is_known {
            answer_for(query, Ipv4Addr::new(192, 0, 2, 53), DEFAULT_TTL)
        } else {
            head(query, 0, NXDOMAIN, 0)
        };
        reply[3] &= !RA;
        vec![reply]
    })
}

#[test]
fn external_names_have_their_records() {
    Subject::start("").check(RULES);
}

#[test]
fn targets_outside_are_looked_up() {
    let plugins = format!("forward . {} {{\n        prefer_udp\n    }}", upstream());
    let subject = Subject::with(Config {
        plugins: &plugins,
        ..Config::default()
    });
    subject.check(THROUGH_AN_UPSTREAM);
}

#[test]
fn an_alias_is_there_whatever_it_leads_to() {
    Subject::start("").check_ours(FIXED);
}

#[test]
fn ten_aliases_are_followed_and_no_more() {
    let subject = Subject::start("");
    if !subject.is_ours {
        tests::skipped("ten aliases are followed", "another server has another limit");
        return;
    }
    let aliases = |question: &str| subject.ask(question, 5).matches("CNAME").count();
    let found = [
        "chain-0.testns.svc A",
        "chain-2.testns.svc A",
        "chain-3.testns.svc A",
    ]
    .map(aliases);
    assert_eq!(found, [11, 11, 10]);
    // The last of them reaches the end.
    let answer = subject.ask("chain-3.testns.svc A", 5);
    assert!(answer.ends_with(" svc1.testns.svc A 10.0.0.1"), "{answer}");
    assert!(!subject.ask("chain-2.testns.svc A", 5).contains(" A "));
}
