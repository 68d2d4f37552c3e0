//! The proxy's metrics. The names that begin with `kubeproxy_` are kube-proxy's, and mean what they mean there; labels
//! likewise. Flows that were forgotten are of all protocols here, where kube-proxy's are of UDP alone. One pass brings
//! all versions of IP into the kernel: what is measured of it stands under each `ip_family`.

use std::sync::atomic::{AtomicU64, Ordering};

use proxy::{IptablesRules, TableRules};

use super::progress::{FamilyProgress, ProxyProgress};
use super::service_proxy::Policy;
use crate::config::Datapath;
use crate::metrics::{Durations, Page, labels};

/// Writes all of them.
pub fn write(proxy: &ProxyProgress, datapath: Datapath, page: &mut Page) {
    passes(proxy, page);
    network_programming(proxy, page);
    changes(proxy, page);
    services(proxy, page);
    kernel(proxy, datapath, page);
}

fn passes(proxy: &ProxyProgress, page: &mut Page) {
    let for_each_family = |durations| {
        let families = proxy.families.iter();
        families.map(move |family| (vec![("ip_family", family.name())], durations))
    };
    let histograms: [(&str, &str, &Durations); 3] = [
        (
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "How long it took to bring a change into the kernel, or to look at all that is there.",
            &proxy.passes.all,
        ),
        (
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "The same, where everything was looked at: the first sync, and audits.",
            &proxy.passes.full,
        ),
        (
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "The same, where only what changed was looked at.",
            &proxy.passes.partial,
        ),
    ];
    for (name, help, durations) in histograms {
        page.durations(name, help, for_each_family(durations));
    }
    let moments = [
        (
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "When the kernel was last as it should be, but for Services that fail, in seconds since 1970.",
            proxy.synced.unix_seconds(),
        ),
        (
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "When the last change came in, in seconds since 1970.",
            proxy.queued.unix_seconds(),
        ),
    ];
    for (name, help, seconds) in moments {
        let families = proxy.families.iter();
        let samples = families.map(|family| (labels(&[("ip_family", family.name())]), seconds));
        page.gauges(name, help, samples);
    }
}

fn network_programming(proxy: &ProxyProgress, page: &mut Page) {
    for_each_family(
        proxy,
        page,
        "kubeproxy_network_programming_duration_seconds",
        "From a change of pods, by the clock of whoever wrote the EndpointSlice, until it was in the kernel.",
        |progress| &progress.network_programming,
    );
}

fn changes(proxy: &ProxyProgress, page: &mut Page) {
    let pending = proxy.state().pending();
    page.gauges(
        "kubeproxy_sync_proxy_rules_service_changes_pending",
        "Services that changed and are not in the kernel yet.",
        [(String::new(), pending.services as f64)],
    );
    count(
        page,
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "Changes of Services; those within 10 ms are one.",
        &proxy.service_changes,
    );
    page.gauges(
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
        "EndpointSlices that changed and are not in the kernel yet.",
        [(String::new(), pending.slices as f64)],
    );
    count(
        page,
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "Changes of EndpointSlices; those within 10 ms are one.",
        &proxy.slice_changes,
    );
}

fn services(proxy: &ProxyProgress, page: &mut Page) {
    let state = proxy.state();
    let policies = [Policy::Internal, Policy::External];
    let samples = proxy.families.iter().flat_map(|family| {
        policies.map(|policy| {
            let pairs = [("ip_family", family.name()), ("traffic_policy", policy.name())];
            let ports = state.no_local_endpoints.get(&(*family, policy));
            (labels(&pairs), ports.copied().unwrap_or(0) as f64)
        })
    });
    page.gauges(
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "Ports of Services whose policy Local finds no endpoint on this node, although there are some elsewhere.",
        samples,
    );
    let rejected = state
        .rejected
        .by_reason()
        .iter()
        .map(|(reason, parts)| (*reason, *parts));
    let rejected = rejected.chain([("map-full", state.failing.map_full())]);
    page.gauges(
        "causeway_proxy_rejected",
        "Parts of Services that are not served, by reason; map-full: Services without room in the socket hook's maps.",
        rejected.map(|(reason, parts)| (labels(&[("reason", reason)]), parts as f64)),
    );
    page.gauges(
        "causeway_proxy_failed_services",
        "Services that are not in the kernel as they should be, and are tried again.",
        [(String::new(), state.failing.count() as f64)],
    );
    page.counters(
        "causeway_hook_verdicts_total",
        "What the socket hook decided, by verdict; read every 10 s.",
        state
            .verdicts
            .iter()
            .map(|(verdict, count)| (labels(&[("verdict", verdict)]), *count)),
    );
}

fn kernel(proxy: &ProxyProgress, datapath: Datapath, page: &mut Page) {
    conntrack(proxy, page);
    match datapath {
        // The hook has the same rules under it.
        Datapath::Nftables | Datapath::Ebpf => nftables(proxy, page),
        Datapath::Iptables => iptables(proxy, page),
        Datapath::None => {}
    }
    count(
        page,
        "causeway_proxy_failures_total",
        "Syncs, audits and looks for stale flows of which something failed, be it for one Service.",
        &proxy.failures,
    );
    count(
        page,
        "causeway_proxy_repairs_total",
        "What audits found changed by others, and repaired; what the proxy had left undone itself is not counted.",
        &proxy.repairs,
    );
}

fn conntrack(proxy: &ProxyProgress, page: &mut Page) {
    for_each_family(
        proxy,
        page,
        "kubeproxy_conntrack_reconciler_sync_duration_seconds",
        "How long it took to find and forget tracked flows that led nowhere, be there any or not.",
        |progress| &progress.forgetting,
    );
    count_each_family(
        proxy,
        page,
        "kubeproxy_conntrack_reconciler_deleted_entries_total",
        "Tracked flows that led nowhere and were forgotten: by UDP to endpoints that are gone, by any protocol from before their Service was there.",
        |progress| &progress.forgotten_flows,
    );
    count(
        page,
        "causeway_hook_ended_sockets_total",
        "UDP sockets that were connected to endpoints that are gone, and were ended.",
        &proxy.ended_sockets,
    );
}

fn nftables(proxy: &ProxyProgress, page: &mut Page) {
    count_each_family(
        proxy,
        page,
        "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
        "Syncs and audits of which something failed at nftables.",
        |progress| &progress.rules_failures,
    );
    count_each_family(
        proxy,
        page,
        "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
        "Those of them that could not remove from nftables what nobody asked for.",
        |progress| &progress.cleanup_failures,
    );
}

fn iptables(proxy: &ProxyProgress, page: &mut Page) {
    count_each_family(
        proxy,
        page,
        "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
        "Syncs and audits of which something failed at iptables.",
        |progress| &progress.rules_failures,
    );
    let IptablesRules {
        tables,
        refused_changes,
    } = proxy.state().iptables.clone();
    page.counters(
        "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
        "Changes that iptables refused, after which all rules were read back and compared.",
        refused_changes
            .iter()
            .map(|(family, refused)| (labels(&[("ip_family", family.name())]), *refused)),
    );
    let of_table = |rules: &TableRules| labels(&[("ip_family", rules.family.name()), ("table", rules.table)]);
    page.gauges(
        "kubeproxy_sync_proxy_rules_iptables_total",
        "Rules of iptables in the proxy's chains.",
        tables.iter().map(|rules| (of_table(rules), rules.total as f64)),
    );
    page.gauges(
        "kubeproxy_sync_proxy_rules_iptables_last",
        "Rules of iptables that the latest change wrote.",
        tables.iter().map(|rules| (of_table(rules), rules.written as f64)),
    );
}

fn for_each_family(
    proxy: &ProxyProgress,
    page: &mut Page,
    name: &str,
    help: &str,
    durations: impl Fn(&FamilyProgress) -> &Durations,
) {
    let families = proxy.by_family.iter();
    let samples = families.map(|(family, progress)| {
        let label = vec![("ip_family", family.name())];
        (label, durations(progress))
    });
    page.durations(name, help, samples);
}

fn count_each_family(
    proxy: &ProxyProgress,
    page: &mut Page,
    name: &str,
    help: &str,
    counter: impl Fn(&FamilyProgress) -> &AtomicU64,
) {
    let families = proxy.by_family.iter();
    let samples = families.map(|(family, progress)| {
        let label = labels(&[("ip_family", family.name())]);
        (label, counter(progress).load(Ordering::Relaxed))
    });
    page.counters(name, help, samples);
}

fn count(page: &mut Page, name: &str, help: &str, counter: &AtomicU64) {
    page.counters(name, help, [(String::new(), counter.load(Ordering::Relaxed))]);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use model::{Change, IpFamily};
    use proxy::Rejected;
    use proxy::plan::Reason;

    use super::super::progress::Pass;
    use super::super::service_proxy::LookedAt;
    use super::super::service_proxy::samples::{frontend, name, service, slice};
    use super::*;

    #[test]
    fn every_metric_of_kube_proxys_stands_under_its_name_and_labels() {
        let proxy = ProxyProgress::new([IpFamily::V4, IpFamily::V6].into());
        proxy.done(Pass::Full, Duration::from_millis(3));
        proxy.done(Pass::Partial, Duration::from_millis(1));
        proxy.passed(Pass::Full, Duration::from_millis(2));
        let v4 = &proxy.by_family[&IpFamily::V4];
        v4.network_programming.observe(Duration::from_secs(2));
        v4.forgetting.observe(Duration::from_millis(2));
        v4.forgotten_flows.store(9, Ordering::Relaxed);
        v4.rules_failures.store(1, Ordering::Relaxed);
        v4.cleanup_failures.store(2, Ordering::Relaxed);
        proxy.service_changes.store(7, Ordering::Relaxed);
        proxy.slice_changes.store(8, Ordering::Relaxed);
        proxy.ended_sockets.store(5, Ordering::Relaxed);
        {
            let mut state = proxy.state();
            let queued = Arc::make_mut(&mut state.queued);
            queued.apply(Change::Service(service("web")));
            queued.apply(Change::EndpointSlice(slice("web-1", "web")));
            queued.apply(Change::EndpointSlice(slice("web-2", "web")));
            state.no_local_endpoints = [((IpFamily::V4, Policy::External), 3)].into();
            let taken = Reason::Taken {
                frontend: frontend("10.96.0.7", 80),
                owner: name("owner"),
            };
            let rejected = ["a", "b", "c", "d"].map(|service| Rejected {
                service: name(service),
                reason: taken.clone(),
            });
            state.rejected.replace(LookedAt::EVERYTHING, rejected.into());
            state.iptables = IptablesRules {
                tables: vec![TableRules {
                    family: IpFamily::V4,
                    table: "nat",
                    total: 40,
                    written: 4,
                }],
                refused_changes: vec![(IpFamily::V6, 6)],
            };
        }
        let mut page = Page::default();
        write(&proxy, Datapath::Nftables, &mut page);
        let text = page.into_text();
        let expected = [
            r#"kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 3"#,
            r#"kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv6"} 3"#,
            r#"kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"} 2"#,
            r#"kubeproxy_sync_partial_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.001"} 1"#,
            r#"kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="1"} 0"#,
            r#"kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="2"} 1"#,
            r#"kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="300"} 1"#,
            r#"kubeproxy_network_programming_duration_seconds_count{ip_family="IPv6"} 0"#,
            r#"kubeproxy_sync_proxy_rules_service_changes_pending 1"#,
            r#"kubeproxy_sync_proxy_rules_service_changes_total 7"#,
            r#"kubeproxy_sync_proxy_rules_endpoint_changes_pending 2"#,
            r#"kubeproxy_sync_proxy_rules_endpoint_changes_total 8"#,
            r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 3"#,
            r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="internal"} 0"#,
            r#"kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family="IPv4"} 1"#,
            r#"kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family="IPv6"} 0"#,
            r#"kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"} 9"#,
            r#"kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv6"} 0"#,
            r#"causeway_hook_ended_sockets_total 5"#,
            r#"kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family="IPv4"} 1"#,
            r#"kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family="IPv4"} 2"#,
            r#"causeway_proxy_rejected{reason="taken"} 4"#,
            r#"causeway_proxy_rejected{reason="map-full"} 0"#,
        ];
        for line in expected {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        let mut page = Page::default();
        write(&proxy, Datapath::Iptables, &mut page);
        let iptables = page.into_text();
        for line in [
            r#"kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family="IPv4"} 1"#,
            r#"kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family="IPv6"} 6"#,
            r#"kubeproxy_sync_proxy_rules_iptables_total{ip_family="IPv4",table="nat"} 40"#,
            r#"kubeproxy_sync_proxy_rules_iptables_last{ip_family="IPv4",table="nat"} 4"#,
        ] {
            assert!(
                iptables.lines().any(|found| found == line),
                "no {line} in\n{iptables}"
            );
        }
        assert!(!iptables.contains("nftables_sync_failures"), "{iptables}");
        for name in ["last_timestamp", "last_queued_timestamp"] {
            let name = format!("kubeproxy_sync_proxy_rules_{name}_seconds{{ip_family=\"IPv4\"}} ");
            assert!(text.contains(&name), "no {name} in\n{text}");
        }
    }
}
