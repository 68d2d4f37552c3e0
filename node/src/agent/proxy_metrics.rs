//! The proxy's metrics. The names that begin with `kubeproxy_` are kube-proxy's, and mean what they mean there; labels
//! likewise. One pass brings all versions of IP into the kernel: what is measured of it stands under each `ip_family`.

use std::sync::atomic::{AtomicU64, Ordering};

use super::ip_families;
use super::metrics::{Durations, Page, labels};
use super::progress::ProxyProgress;
use super::service_proxy::Policy;
use crate::config::Datapath;

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
        families.map(move |family| (vec![("ip_family", ip_families::name(*family))], durations))
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
        let samples = families.map(|family| (labels(&[("ip_family", ip_families::name(*family))]), seconds));
        page.gauges(name, help, samples);
    }
}

fn network_programming(proxy: &ProxyProgress, page: &mut Page) {
    let families = proxy.network_programming.iter();
    page.durations(
        "kubeproxy_network_programming_duration_seconds",
        "From a change of pods, by the clock of whoever wrote the EndpointSlice, until it was in the kernel.",
        families.map(|(family, durations)| (vec![("ip_family", ip_families::name(*family))], durations)),
    );
}

fn changes(proxy: &ProxyProgress, page: &mut Page) {
    let pending = proxy.state().pending;
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
    let state = proxy.state().clone();
    let policies = [Policy::Internal, Policy::External];
    let samples = proxy.families.iter().flat_map(|family| {
        policies.map(|policy| {
            let pairs = [
                ("ip_family", ip_families::name(*family)),
                ("traffic_policy", policy.name()),
            ];
            let ports = state.no_local_endpoints.get(&(*family, policy));
            (labels(&pairs), ports.copied().unwrap_or(0) as f64)
        })
    });
    page.gauges(
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "Ports of Services whose policy Local finds no endpoint on this node, although there are some elsewhere.",
        samples,
    );
    let rejected = state.rejected.iter().map(|(reason, parts)| (*reason, *parts));
    let rejected = rejected.chain([("map-full", state.map_full)]);
    page.gauges(
        "causeway_proxy_rejected",
        "Parts of Services that are not served, by reason; map-full: Services without room in the socket hook's maps.",
        rejected.map(|(reason, parts)| (labels(&[("reason", reason)]), parts as f64)),
    );
    page.gauges(
        "causeway_proxy_failed_services",
        "Services that are not in the kernel as they should be, and are tried again.",
        [(String::new(), state.failed_services as f64)],
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
    count(
        page,
        "kubeproxy_conntrack_reconciler_deleted_entries_total",
        "Tracked UDP flows that led to endpoints that are gone, and were forgotten.",
        &proxy.stale_flows,
    );
    match datapath {
        // The hook has the same rules under it.
        Datapath::Nftables | Datapath::Ebpf => count(
            page,
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
            "Syncs and audits of which something failed at nftables.",
            &proxy.rules_failures,
        ),
        Datapath::Iptables => count(
            page,
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
            "Syncs and audits of which something failed at iptables.",
            &proxy.rules_failures,
        ),
        Datapath::None => {}
    }
    count(
        page,
        "causeway_proxy_failures_total",
        "Syncs and audits of which something failed, be it for one Service.",
        &proxy.failures,
    );
    count(
        page,
        "causeway_proxy_repairs_total",
        "What audits found changed by others, and repaired; what the proxy had left undone itself is not counted.",
        &proxy.repairs,
    );
}

fn count(page: &mut Page, name: &str, help: &str, counter: &AtomicU64) {
    page.counters(name, help, [(String::new(), counter.load(Ordering::Relaxed))]);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use model::IpFamily;

    use super::super::progress::Pass;
    use super::super::service_proxy::Changes;
    use super::*;

    #[test]
    fn every_metric_of_kube_proxys_stands_under_its_name_and_labels() {
        let proxy = ProxyProgress::new([IpFamily::V4, IpFamily::V6].into());
        proxy.done(Pass::Full, Duration::from_millis(3));
        proxy.done(Pass::Partial, Duration::from_millis(1));
        proxy.passed(Pass::Full, Duration::from_millis(2));
        if let Some(durations) = proxy.network_programming.get(&IpFamily::V4) {
            durations.observe(Duration::from_secs(2));
        }
        proxy.service_changes.store(7, Ordering::Relaxed);
        proxy.slice_changes.store(8, Ordering::Relaxed);
        proxy.stale_flows.store(9, Ordering::Relaxed);
        proxy.rules_failures.store(1, Ordering::Relaxed);
        {
            let mut state = proxy.state();
            state.pending = Changes {
                services: 1,
                slices: 2,
            };
            state.no_local_endpoints = [((IpFamily::V4, Policy::External), 3)].into();
            state.rejected = [("taken", 4)].into();
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
            r#"kubeproxy_conntrack_reconciler_deleted_entries_total 9"#,
            r#"kubeproxy_sync_proxy_rules_nftables_sync_failures_total 1"#,
            r#"causeway_proxy_rejected{reason="taken"} 4"#,
            r#"causeway_proxy_rejected{reason="map-full"} 0"#,
        ];
        for line in expected {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        let mut page = Page::default();
        write(&proxy, Datapath::Iptables, &mut page);
        let iptables = page.into_text();
        let line = "kubeproxy_sync_proxy_rules_iptables_restore_failures_total 1";
        assert!(iptables.lines().any(|found| found == line), "{iptables}");
        assert!(!iptables.contains("nftables_sync_failures"), "{iptables}");
        for name in ["last_timestamp", "last_queued_timestamp"] {
            let name = format!("kubeproxy_sync_proxy_rules_{name}_seconds{{ip_family=\"IPv4\"}} ");
            assert!(text.contains(&name), "no {name} in\n{text}");
        }
    }
}
