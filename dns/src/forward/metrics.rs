//! What a scrape is told of forwarders and upstreams, under CoreDNS's names.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{CODES, Forward, Upstream};
use crate::metrics::Exposition;
use crate::mnemonic::code_name;

/// The upstreams at an address, by the protocol of their streams. One of several blocks is one series.
type Upstreams<'f> = BTreeMap<(SocketAddr, &'static str), Vec<&'f Upstream>>;

/// Writes what all forwarders counted.
pub fn write_metrics<'f>(forwards: impl Iterator<Item = &'f Arc<Forward>>, text: &mut Exposition) {
    let (mut rejected, mut broken) = (0, 0);
    let mut upstreams = Upstreams::new();
    for forward in forwards {
        rejected += forward.rejected.load(Ordering::Relaxed);
        broken += forward.all_down.load(Ordering::Relaxed);
        for upstream in forward.upstreams() {
            let key = (upstream.address, upstream.stream_protocol());
            upstreams.entry(key).or_default().push(upstream);
        }
    }
    write_upstreams(&upstreams, text);
    write_streams(&upstreams, text);
    for (name, help, value) in [
        (
            "coredns_forward_max_concurrent_rejects_total",
            "Counter of the number of queries rejected because the concurrent queries were at maximum.",
            rejected,
        ),
        (
            "coredns_forward_healthcheck_broken_total",
            "Counter of the number of complete failures of the healthchecks.",
            broken,
        ),
    ] {
        text.family(name, "counter", help);
        text.sample(name, "", value as f64);
    }
}

fn write_upstreams(upstreams: &Upstreams<'_>, text: &mut Exposition) {
    let mut by_address: BTreeMap<SocketAddr, Vec<&Upstream>> = BTreeMap::new();
    for ((address, _), same) in upstreams {
        by_address.entry(*address).or_default().extend(same);
    }
    let name = "coredns_proxy_request_duration_seconds";
    text.family(name, "histogram", "Histogram of the time each request took.");
    for (to, same) in &by_address {
        for code in 0..CODES {
            let rcode = code_name(code as u16);
            let labels = format!("proxy_name=\"forward\",to=\"{to}\",rcode=\"{rcode}\"");
            text.histograms(
                name,
                &labels,
                same.iter().map(|upstream| &upstream.durations[code]),
            );
        }
    }
    let name = "coredns_proxy_healthcheck_failures_total";
    text.family(name, "counter", "Counter of the number of failed healthchecks.");
    for (to, same) in &by_address {
        let failed = same
            .iter()
            .map(|upstream| upstream.failed_checks.load(Ordering::Relaxed));
        let labels = format!("proxy_name=\"forward\",to=\"{to}\"");
        text.sample(name, &labels, failed.sum::<u64>() as f64);
    }
}

fn write_streams(upstreams: &Upstreams<'_>, text: &mut Exposition) {
    type Streams = fn((u64, u64)) -> u64;
    let streams: [(&str, &str, Streams); 2] = [
        (
            "coredns_proxy_conn_cache_hits_total",
            "Counter of connection cache hits per upstream and protocol.",
            |(reused, _)| reused,
        ),
        (
            "coredns_proxy_conn_cache_misses_total",
            "Counter of connection cache misses per upstream and protocol.",
            |(_, opened)| opened,
        ),
    ];
    for (name, help, value) in streams {
        text.family(name, "counter", help);
        for ((to, proto), same) in upstreams {
            let labels = format!("proxy_name=\"forward\",to=\"{to}\",proto=\"{proto}\"");
            let counts = same.iter().map(|upstream| value(upstream.stream_counts()));
            text.sample(name, &labels, counts.sum::<u64>() as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::fake_upstream::{FakeUpstream, answer, code};
    use crate::forward::{Options, Target};
    use crate::question::{Query, query_packet, rcode, rtype};

    #[tokio::test]
    async fn an_upstream_of_two_blocks_is_one_series_for_each_code() {
        let upstream = FakeUpstream::start(|packet, _| {
            let is_known = packet[13..18].eq_ignore_ascii_case(b"known");
            vec![if is_known {
                answer(packet, &[[1, 1, 1, 1]])
            } else {
                code(packet, rcode::NXDOMAIN)
            }]
        })
        .await;
        let forwards = [(); 2].map(|()| {
            Arc::new(Forward::new(Options {
                to: vec![Target::from(upstream.address)],
                ..Options::default()
            }))
        });
        for (forward, name) in [
            (&forwards[0], &b"\x05known\0"[..]),
            (&forwards[1], b"\x05known\0"),
            (&forwards[1], b"\x07unknown\0"),
        ] {
            let packet = query_packet(7, name, rtype::A);
            let query = Query::parse(&packet).expect("query");
            forward.exchange(&query, None, false).await.expect("response");
        }
        let mut text = Exposition::default();
        write_metrics(forwards.iter(), &mut text);
        let lines: Vec<&str> = text.text.lines().collect();
        let to = format!("proxy_name=\"forward\",to=\"{}\"", upstream.address);
        for expected in [
            format!("coredns_proxy_request_duration_seconds_count{{{to},rcode=\"NOERROR\"}} 2"),
            format!("coredns_proxy_request_duration_seconds_count{{{to},rcode=\"NXDOMAIN\"}} 1"),
            format!("coredns_proxy_healthcheck_failures_total{{{to}}} 0"),
            format!("coredns_proxy_conn_cache_hits_total{{{to},proto=\"tcp\"}} 0"),
            format!("coredns_proxy_conn_cache_misses_total{{{to},proto=\"tcp\"}} 0"),
        ] {
            let found = lines.iter().filter(|line| **line == expected);
            assert_eq!(found.count(), 1, "{expected}\n{}", text.text);
        }
        let counts = lines.iter().filter(|line| line.contains("seconds_count{"));
        assert_eq!(counts.count(), 2, "{}", text.text);
    }
}
