//! A keeper over a fake datapath: what it programs, and what it tells.

use std::num::NonZeroU16;

use model::{Change, EndpointSlice, Kind, Node, Protocol, Service, ServiceKind, TrafficPolicy};
use proxy::Settings;
use proxy::datapath::fake::FakeDatapath;
use proxy::plan::{FrontendKey, HealthCheck};

use super::super::no_local::Policy;
use super::super::samples::{self, name};
use super::*;
use crate::agent::health_check_ports::HealthChecks;
use crate::agent::progress::OVERDUE;
use crate::agent::supervisor::{Health, Parts};
use crate::watch::Notices;

/// A keeper over a fake datapath, and what it tells.
struct Bench<'a> {
    keeper: Keeper<'a>,
    fake: FakeDatapath,
    snapshot: Arc<Snapshot>,
    notices: Notices,
}

impl<'a> Bench<'a> {
    fn new(progress: &'a ProxyProgress, part: &'a Part) -> Self {
        let fake = FakeDatapath::default();
        let network = "10.244.0.0/16".parse().expect("a network");
        let settings = Settings::new("node-1".into(), [network]);
        let proxy = Proxy::with_datapath(settings, Box::new(fake.clone()));
        let (events, notices) = Events::queue();
        Self {
            keeper: Keeper::new(proxy, progress, part, events, Status::default()),
            fake,
            snapshot: Arc::default(),
            notices,
        }
    }

    fn publish(&mut self, changes: impl IntoIterator<Item = Change>) {
        let snapshot = Arc::make_mut(&mut self.snapshot);
        for change in changes {
            snapshot.apply(change);
        }
        self.keeper.queue(&self.snapshot);
    }

    fn sync(&mut self) {
        self.keeper.sync(&self.snapshot);
    }

    fn retry(&mut self) {
        self.keeper.retry(&self.snapshot);
    }

    /// Lets the next attempt at these Services fail.
    fn fail_next(&self, services: &[&str]) {
        self.fake.with(|fake| {
            let names = services.iter().map(|service| name(service));
            fake.fail_next.extend(names);
        });
    }

    /// Whether the node were unhealthy if nothing came in between.
    fn is_going_overdue(&self) -> bool {
        !self.keeper.progress.is_in_time_at(Instant::now() + OVERDUE)
    }
}

/// A Service at an address of its own.
fn at(service: &str, last: u8) -> Change {
    Change::Service(Service {
        kind: ServiceKind::ClusterIp {
            addresses: [[10, 96, 0, last].into()].into(),
        },
        ..samples::service(service)
    })
}

/// A Service whose endpoints have the port `health`.
fn balanced(service: &str, node_port: u16, health: u16) -> Change {
    Change::Service(Service {
        external_policy: TrafficPolicy::Local,
        health_check_node_port: NonZeroU16::new(health),
        ..samples::with_node_port(service, node_port)
    })
}

fn own_node_in_a_zone() -> Node {
    Node {
        internal_addresses: vec![[192, 0, 2, 1].into()],
        zone: Some("zone-1".into()),
        ..Node::new("node-1")
    }
}

fn one_service() -> Changes {
    Changes {
        services: 1,
        slices: 0,
    }
}

/// For how many changes of IPv4 it is known how long they took.
#[track_caller]
fn check_measured(progress: &ProxyProgress, expected: u64) {
    let mut page = crate::metrics::Page::default();
    crate::agent::proxy_metrics::write(progress, crate::config::Datapath::Ebpf, &mut page);
    let line =
        format!("kubeproxy_network_programming_duration_seconds_count{{ip_family=\"IPv4\"}} {expected}\n");
    let text = page.into_text();
    assert!(text.contains(&line), "no {line} in {text}");
}

#[track_caller]
fn check_health(parts: &Parts, expected: Option<&str>) {
    let told = match &parts.all()["proxy"].health {
        Health::Starting => Some("starting".to_owned()),
        Health::Working => None,
        Health::Failing { error, .. } => Some(error.clone()),
    };
    assert_eq!(told.as_deref(), expected);
}

fn synced() -> [Change; 3] {
    [Kind::Service, Kind::EndpointSlice, Kind::Node].map(Change::Synced)
}

fn slice(address: &str, last_change: UnixTime) -> Change {
    Change::EndpointSlice(EndpointSlice {
        endpoints: vec![samples::endpoint(address)].into(),
        last_change: Some(last_change),
        ..samples::slice("web-1", "web")
    })
}

#[test]
fn a_sync_that_failed_is_tried_again_although_audits_find_nothing() {
    let (progress, parts) = (ProxyProgress::default(), Parts::default());
    let part = parts.part("proxy");
    let mut bench = Bench::new(&progress, &part);
    bench.fake.with(|fake| fake.fail_sweep = true);
    bench.publish(synced());
    bench.sync();
    bench.keeper.audit(Audit::Structure);
    assert!(!bench.keeper.is_settled(), "nothing made good what failed");
    bench.retry();
    assert!(bench.keeper.is_settled());
    check_health(&parts, None);
}

#[test]
fn a_service_that_keeps_failing_is_told_and_tried_again_and_is_not_the_whole_nodes_matter() {
    let (progress, parts) = (ProxyProgress::default(), Parts::default());
    let part = parts.part("proxy");
    let mut bench = Bench::new(&progress, &part);
    bench.publish(synced());
    bench.publish([at("web", 1), at("api", 2)]);
    bench.fail_next(&["web"]);
    bench.sync();
    for attempt in 0..3 {
        assert!(bench.keeper.is_programmed(), "other datapaths can go");
        assert!(!bench.keeper.is_settled(), "it is to be tried again");
        assert!(!bench.is_going_overdue(), "attempt {attempt}");
        assert_eq!(progress.state().failing.count(), 1);
        assert_eq!(progress.state().pending(), one_service());
        check_health(&parts, Some("degraded: default/web: told to fail: apply"));
        bench.fail_next(&["web"]);
        bench.retry();
    }
    // Its own change, and another's: neither is late, and the other's is in the kernel.
    bench.publish([at("web", 3), at("dns", 4)]);
    assert!(bench.is_going_overdue(), "until a sync had them");
    bench.fail_next(&["web"]);
    bench.sync();
    assert!(!bench.is_going_overdue());
    assert_eq!(progress.state().pending(), one_service());
    bench.publish([at("dns", 5)]);
    let both = Changes {
        services: 2,
        slices: 0,
    };
    assert_eq!(
        progress.state().pending(),
        both,
        "what was in the kernel is not counted"
    );
    bench.fake.with(|fake| fake.fail_next.clear());
    bench.sync();
    assert_eq!(
        progress.state().failing.count(),
        1,
        "nobody tried it: it did not change"
    );
    check_health(&parts, Some("degraded: default/web: told to fail: apply"));
    bench.retry();
    assert!(bench.keeper.is_settled());
    assert_eq!(progress.state().failing.count(), 0);
    assert_eq!(progress.state().pending(), Changes::default());
    check_health(&parts, None);
}

#[test]
fn a_kernel_that_takes_nothing_makes_the_node_unhealthy() {
    let (progress, parts) = (ProxyProgress::default(), Parts::default());
    let part = parts.part("proxy");
    let mut bench = Bench::new(&progress, &part);
    bench.publish(synced());
    bench.publish([at("web", 1), at("api", 2)]);
    bench.fail_next(&["web", "api"]);
    bench.sync();
    assert!(bench.is_going_overdue() && !bench.keeper.is_programmed());
    bench.fail_next(&["web", "api"]);
    bench.retry();
    assert!(bench.is_going_overdue() && !bench.keeper.is_programmed());
    bench.fail_next(&["web"]);
    bench.retry();
    assert!(!bench.is_going_overdue() && bench.keeper.is_programmed());
}

#[test]
fn a_common_failure_makes_the_node_unhealthy_and_its_changes_are_not_programmed() {
    let (progress, parts) = (ProxyProgress::default(), Parts::default());
    let part = parts.part("proxy");
    let mut bench = Bench::new(&progress, &part);
    bench.fake.with(|fake| fake.fail_sweep = true);
    bench.publish(synced());
    bench.publish([at("web", 1), slice("10.244.9.2", now())]);
    bench.sync();
    assert!(bench.is_going_overdue() && !bench.keeper.is_programmed());
    let both = Changes {
        services: 1,
        slices: 1,
    };
    assert_eq!(progress.state().pending(), both);
    assert_eq!(progress.state().failing.count(), 0);
    check_health(&parts, Some("told to fail: sweep"));
    check_measured(&progress, 0);
    bench.retry();
    assert!(!bench.is_going_overdue() && bench.keeper.is_programmed());
    assert_eq!(progress.state().pending(), Changes::default());
    check_health(&parts, None);
    check_measured(&progress, 1);
}

#[test]
fn an_audit_blames_nobody_for_what_the_proxy_left_undone() {
    let (progress, parts) = (ProxyProgress::default(), Parts::default());
    let part = parts.part("proxy");
    let mut bench = Bench::new(&progress, &part);
    let repairs = || progress.repairs.load(Ordering::Relaxed);
    bench.publish(synced());
    bench.publish([at("web", 1), at("api", 2), slice("10.244.9.2", now())]);
    bench.fail_next(&["web"]);
    bench.sync();
    bench.keeper.audit(Audit::Everything);
    assert_eq!(repairs(), 0, "it was never there");
    assert!(bench.keeper.is_settled(), "the audit made it good");
    assert_eq!(progress.state().failing.count(), 0);
    check_health(&parts, None);

    bench.fake.with(|fake| fake.frontends.clear());
    bench.keeper.audit(Audit::Everything);
    assert_eq!(repairs(), 2, "somebody removed both");

    bench.publish([at("web", 3)]);
    bench.fail_next(&["web"]);
    bench.sync();
    bench.fail_next(&["api"]);
    bench.fake.with(|fake| fake.drift = vec!["a chain".to_owned()]);
    bench.keeper.audit(Audit::Structure);
    assert_eq!(repairs(), 3, "the chain was somebody's doing");
    assert_eq!(progress.state().failing.count(), 1, "web is there by now");
    assert!(!bench.is_going_overdue() && !bench.keeper.is_settled());
    check_health(&parts, Some("degraded: default/api: told to fail: apply"));
    bench.retry();
    assert_eq!(repairs(), 3);
    check_health(&parts, None);
}

#[test]
fn flows_that_an_audit_leaves_are_looked_for_until_that_succeeds() {
    let (progress, parts) = (ProxyProgress::default(), Parts::default());
    let part = parts.part("proxy");
    let mut bench = Bench::new(&progress, &part);
    assert!(bench.keeper.is_settled(), "nothing is known to be done yet");
    bench.publish(synced());
    bench.publish([at("web", 1), slice("10.244.9.2", now())]);
    bench.sync();
    bench.keeper.forget_flows();
    assert!(bench.keeper.is_settled());

    // Clients may have been led by what somebody else put there.
    let foreign = FrontendKey {
        protocol: Protocol::Udp,
        ..samples::frontend("10.96.0.99", 53)
    };
    bench.fake.with(|fake| {
        let value = fake.frontends.values().next().cloned();
        fake.frontends.insert(foreign, value.expect("web is there"));
        fake.forgotten.clear();
    });
    bench.keeper.audit(Audit::Everything);
    assert_eq!(progress.repairs.load(Ordering::Relaxed), 1);
    assert!(bench.keeper.has_stale_flows(), "flows to it are still tracked");
    check_health(&parts, None);
    bench.fake.with(|fake| fake.fail_forget = true);
    bench.keeper.forget_flows();
    check_health(&parts, Some("stale flows: told to fail: forget flows"));
    assert!(bench.keeper.has_stale_flows(), "they are looked for again");
    assert!(bench.keeper.is_programmed() && !bench.is_going_overdue());
    bench.keeper.forget_flows();
    assert!(bench.keeper.is_settled() && !bench.keeper.has_stale_flows());
    check_health(&parts, None);
    let (to, anybody) = (([10, 96, 0, 99], 53).into(), ([10, 244, 9, 2], 53).into());
    let looks = bench.fake.with(|fake| fake.forgotten.clone());
    assert!(
        matches!(looks.as_slice(), [stale] if stale.leads_nowhere(to, anybody)),
        "{looks:?}"
    );
}

#[test]
fn what_waits_for_complete_lists_is_pending_but_not_overdue() {
    let (progress, parts) = (ProxyProgress::default(), Parts::default());
    let part = parts.part("proxy");
    let mut bench = Bench::new(&progress, &part);
    bench.publish([Change::Service(samples::service("web"))]);
    bench.sync();
    assert_eq!(progress.state().pending(), one_service());
    assert!(progress.queued.unix_seconds() == 0.0, "nothing is late");
    bench.publish(synced());
    bench.sync();
    assert_eq!(progress.state().pending(), Changes::default());
    assert_eq!(progress.service_changes.load(Ordering::Relaxed), 1);
    assert!(progress.queued.unix_seconds() > 0.0 && progress.synced.unix_seconds() > 0.0);
}

#[test]
fn changes_are_counted_when_they_come_and_pending_until_they_are_in_the_kernel() {
    let (progress, parts) = (ProxyProgress::default(), Parts::default());
    let part = parts.part("proxy");
    let mut bench = Bench::new(&progress, &part);
    bench.publish(synced());
    bench.sync();
    let web = || Change::Service(samples::service("web"));
    bench.publish([web(), slice("10.244.9.2", now())]);
    bench.publish([slice("10.244.9.3", now())]);
    let both = Changes {
        services: 1,
        slices: 1,
    };
    assert_eq!(progress.state().pending(), both);
    let counted = || {
        (
            progress.service_changes.load(Ordering::Relaxed),
            progress.slice_changes.load(Ordering::Relaxed),
        )
    };
    assert_eq!(counted(), (1, 2));

    bench.fail_next(&["web"]);
    bench.sync();
    assert_eq!(progress.state().pending(), both, "it did not get there");
    assert_eq!(progress.state().failing.count(), 1);
    bench.publish([Change::DeleteService(name("nobody"))]);
    assert_eq!(progress.state().pending(), both, "nor did anything since");
    bench.retry();
    assert_eq!(progress.state().pending(), Changes::default());
    assert_eq!(progress.state().failing.count(), 0);
    assert_eq!(counted(), (1, 2));
}

#[test]
fn load_balancers_are_told_what_the_plans_say() {
    let (progress, parts) = (ProxyProgress::default(), Parts::default());
    let part = parts.part("proxy");
    let mut bench = Bench::new(&progress, &part);
    let check = |port| {
        let port = NonZeroU16::new(port).expect("no port is 0");
        HealthCheck { port, ready_here: 0 }
    };
    bench.publish(synced());
    bench.publish([balanced("web", 30_080, 32_000), slice("10.244.9.2", now())]);
    bench.sync();
    let expected = HealthChecks {
        checks: [(name("web"), check(32_000))].into(),
        networks: ["0.0.0.0/0", "::/0"]
            .map(|network| network.parse().expect("a network"))
            .into(),
    };
    assert_eq!(**progress.health_checks.borrow(), expected);
    let lacking = [((IpFamily::V4, Policy::External), 1)];
    assert_eq!(progress.state().no_local_endpoints, lacking.into());

    let mut told = progress.health_checks.subscribe();
    bench.publish([at("plain", 9)]);
    bench.sync();
    assert!(
        !told.has_changed().expect("the progress is there"),
        "that is no news"
    );
    bench.publish([balanced("api", 30_081, 32_001)]);
    bench.sync();
    let both = [(name("api"), check(32_001)), (name("web"), check(32_000))];
    assert_eq!(told.borrow_and_update().checks, both.into());

    bench.publish([
        Change::DeleteService(name("web")),
        balanced("api", 30_081, 32_002),
    ]);
    bench.sync();
    assert_eq!(
        told.borrow_and_update().checks,
        [(name("api"), check(32_002))].into()
    );
    // What the node serves changed: all plans are made anew.
    bench.publish([
        Change::DeleteService(name("api")),
        Change::Node(own_node_in_a_zone()),
    ]);
    bench.sync();
    assert_eq!(progress.health_checks.borrow().checks, [].into());
    assert_eq!(progress.state().no_local_endpoints, [].into());
}

#[test]
fn network_programming_is_measured_for_changes_that_came_while_the_proxy_was_there() {
    let (progress, parts) = (ProxyProgress::default(), Parts::default());
    let part = parts.part("proxy");
    let mut bench = Bench::new(&progress, &part);
    bench.publish(synced());
    let long_ago = UnixTime(Duration::from_secs(1));
    bench.publish([
        Change::Service(samples::service("web")),
        slice("10.244.9.2", long_ago),
    ]);
    bench.sync();
    check_measured(&progress, 0);
    bench.publish([slice("10.244.9.3", now())]);
    bench.sync();
    check_measured(&progress, 1);
    bench.publish([slice("10.244.9.3", now())]);
    bench.sync();
    check_measured(&progress, 1);
}

#[test]
fn users_are_told_once_of_a_service_that_keeps_failing_or_is_not_served_whole() {
    let (progress, parts) = (ProxyProgress::default(), Parts::default());
    let part = parts.part("proxy");
    let mut bench = Bench::new(&progress, &part);
    bench.publish(synced());
    bench.sync();
    assert_eq!(bench.notices.take(), []);
    let notice = |scope, reason, note: &str| Notice {
        subject: Subject::Watched(Kind::Service),
        object: name("web"),
        scope,
        reason,
        note: note.to_owned(),
    };
    bench.publish([
        Change::Service(samples::service("web")),
        slice("10.244.9.2", now()),
    ]);
    bench.fail_next(&["web"]);
    bench.sync();
    assert_eq!(bench.notices.take(), [], "it may pass");
    let failed = "its latest change is not in the kernel: told to fail: apply";
    let failed = notice(Scope::ThisNode, "FailedToProgram", failed);
    for expected in [vec![failed.clone()], vec![]] {
        bench.fail_next(&["web"]);
        bench.retry();
        assert_eq!(bench.notices.take(), expected);
    }
    bench.retry();
    let external = model::Service {
        external_addresses: ["192.0.2.7".parse().expect("an address")].into(),
        source_ranges: ["192.0.2.7/24".parse().expect("a network")].into(),
        ..samples::service("web")
    };
    bench.publish([Change::Service(external)]);
    bench.sync();
    let here = "part of it is not served: externalIPs are not allowed on this node (proxy.externalIPs)";
    let everywhere = "part of it is not served: the source range 192.0.2.7/24 has bits set behind its prefix";
    assert_eq!(
        bench.notices.take(),
        [
            notice(Scope::ThisNode, "NotServed", here),
            notice(Scope::Everywhere, "NotServed", everywhere)
        ]
    );
    bench.publish([slice("10.244.9.3", now())]);
    bench.sync();
    assert_eq!(bench.notices.take(), [], "known by now");
}
