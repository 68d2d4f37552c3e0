//! Cluster DNS as its clients see it, black box: a process that is told of a cluster and asked over UDP and TCP.
//!
//! The Kubernetes DNS specification 1.1.0 section by section (`section_…`), then what it leaves open and CoreDNS has
//! settled: [`names`] that hold nothing, [`pods`], their search paths ([`autopath`]), [`options`] of the plugin, the
//! [`protocol`] itself. The rows can be put to another server that reads a Corefile and watches an API server:
//! `CAUSEWAY_TEST_DNS="coredns -conf" cargo test -p tests --test dns`. What is known to be otherwise there, and why,
//! says [`subject::Subject::check_ours`].
//!
//! [`serving`]: what a stream tells its client, where is served, and what the server does not wait for. [`commands`]:
//! what `causeway dns check` and `query` tell. [`survival`]: what is answered while others are away. [`reload`]: while
//! the Corefile changes. [`feed`]: the same server as a node's agent feeds it.
//! [`manifests`]: examples that run it.

mod autopath;
mod cluster;
mod commands;
mod feed;
mod manifests;
mod message;
mod names;
mod options;
mod plain;
mod pods;
mod protocol;
mod reload;
mod section_2_2_version;
mod section_2_3_cluster_ip;
mod section_2_4_headless;
mod section_2_5_external_name;
mod serving;
mod subject;
mod survival;

/// A rule, and questions that show it with their answers, as [`message::render`] writes them.
type Rule = (&'static str, &'static [(&'static str, &'static str)]);

/// Every table of rows.
const TABLES: &[&[Rule]] = &[
    section_2_2_version::RULES,
    section_2_3_cluster_ip::RULES,
    section_2_4_headless::RULES,
    section_2_5_external_name::RULES,
    section_2_5_external_name::FIXED,
    section_2_5_external_name::THROUGH_AN_UPSTREAM,
    names::RULES,
    names::FIXED,
    pods::DISABLED,
    pods::INSECURE,
    pods::VERIFIED,
    pods::VERIFIED_SECOND_FAMILY,
    options::NAMESPACES,
    options::NAMESPACE_LABELS,
    options::LABELS,
    options::NO_ENDPOINTS,
    options::IGNORE_EMPTY,
    options::POD_NAMES,
    options::UNSYNCED,
];

#[test]
fn no_question_is_asked_twice_by_a_table() {
    let mut rows = 0;
    for table in TABLES {
        let questions = table
            .iter()
            .flat_map(|(_, rows)| rows.iter().map(|(question, _)| question));
        let mut questions: Vec<_> = questions.collect();
        rows += questions.len();
        questions.sort();
        let twice: Vec<_> = questions.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(twice.is_empty(), "{twice:?}");
    }
    assert!(rows >= 250, "{rows} rows");
}

#[test]
fn other_plugins_of_the_block_change_no_row() {
    let subject = subject::Subject::with(subject::Config {
        plugins: "errors
    log
    acl {
        block net 192.0.2.0/24
    }
    bufsize 4096
    cache
    loadbalance
    rewrite name exact alias.example svc1.testns.svc.cluster.local
    template ANY ANY other.example {
        rcode NXDOMAIN
    }
    hosts {
        192.0.2.1 host.example
        fallthrough
    }",
        ..subject::Config::default()
    });
    for table in [
        section_2_2_version::RULES,
        section_2_3_cluster_ip::RULES,
        section_2_4_headless::RULES,
        section_2_5_external_name::RULES,
        names::RULES,
        pods::DISABLED,
    ] {
        subject.check(table);
    }
}
