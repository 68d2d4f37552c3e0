//! The proxy, and what of it is not settled; tells how far it has come.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use model::{IpFamily, ObjectName, Snapshot, UnixTime, with_causes};
use proxy::plan::Reason;
use proxy::{AuditReport, Error, Proxy, Rejected, SyncReport};

use super::backlog::{Changes, Triggers};
use super::no_local::NoLocalEndpoints;
use super::rejected::{LookedAt, RejectedParts};
use crate::agent::health_check_ports::HealthChecks;
use crate::agent::progress::{Pass, ProxyProgress};
use crate::agent::supervisor::Part;

/// How far an audit goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// Attachments, pins and chains.
    Structure,
    /// Everything.
    Everything,
}

/// The proxy, and what of it is not settled. An audit that finds nothing settles no sync that failed, nor the reverse:
/// the fixed structure may be whole while a Service is not in the kernel.
pub struct Keeper<'a> {
    proxy: Proxy,
    progress: &'a ProxyProgress,
    part: &'a Part,
    /// The newest snapshot that came, the last that a sync was given, and the last that is in the kernel as a whole.
    queued: Arc<Snapshot>,
    given: Arc<Snapshot>,
    programmed: Arc<Snapshot>,
    /// Whether a sync had complete lists.
    began: bool,
    sync_failed: bool,
    audit_failed: bool,
    triggers: Triggers,
    rejected: RejectedParts,
    no_local: NoLocalEndpoints,
}

impl<'a> Keeper<'a> {
    pub fn new(proxy: Proxy, progress: &'a ProxyProgress, part: &'a Part) -> Self {
        Self {
            proxy,
            progress,
            part,
            queued: Arc::default(),
            given: Arc::default(),
            programmed: Arc::default(),
            began: false,
            sync_failed: false,
            audit_failed: false,
            triggers: Triggers::new(now()),
            rejected: RejectedParts::default(),
            no_local: NoLocalEndpoints::default(),
        }
    }

    /// Whether there is nothing to try again.
    pub fn is_settled(&self) -> bool {
        !self.sync_failed && !self.audit_failed
    }

    /// Whether the kernel has everything, and not only because nothing was asked for yet.
    pub fn is_programmed(&self) -> bool {
        self.began && self.is_settled()
    }

    /// A snapshot came that is to be brought into the kernel.
    pub fn queue(&mut self, snapshot: &Arc<Snapshot>) {
        let Changes { services, slices } = Changes::between(&self.queued, snapshot);
        let progress = self.progress;
        progress.service_changes.fetch_add(services, Ordering::Relaxed);
        progress.slice_changes.fetch_add(slices, Ordering::Relaxed);
        progress.state().pending = Changes::between(&self.programmed, snapshot);
        self.queued = snapshot.clone();
        // Before that the proxy waits for the API, which is no change that is overdue.
        if self.began {
            progress.queue();
        }
    }

    /// Brings a snapshot into the kernel.
    pub fn sync(&mut self, snapshot: &Arc<Snapshot>) {
        if !Arc::ptr_eq(&self.queued, snapshot) {
            self.queue(snapshot);
        }
        let started = Instant::now();
        let context = self.proxy.context().clone();
        let report = self.proxy.sync(snapshot);
        if !report.waiting_for.is_empty() {
            tracing::debug!(waiting_for = ?report.waiting_for, "proxy waits for complete lists");
            return;
        }
        self.progress.queue();
        let pass = if self.began { Pass::Partial } else { Pass::Full };
        self.began = true;
        let older = std::mem::replace(&mut self.given, snapshot.clone());
        let changed = snapshot.changed_since(&older).services;
        let planned = (*self.proxy.context() == context).then_some(&changed);
        log_sync(&report);
        self.measure(&older, &report);
        self.look_at_plans(planned);
        let failure = first_failure(&report);
        let failed_at_rules = has_rules_failure(&report);
        self.look_at_rejected(planned, report);
        self.sync_failed = failure.is_some();
        match failure {
            Some(error) => self.failed(&error, failed_at_rules),
            None => {
                self.programmed = snapshot.clone();
                self.progress.done(pass, started.elapsed());
                if self.is_settled() {
                    self.part.works();
                }
            }
        }
    }

    /// Compares with the kernel, as far as `audit` goes, and repairs.
    pub fn audit(&mut self, audit: Audit) {
        let started = Instant::now();
        let AuditReport {
            repaired,
            writes,
            failures,
        } = match audit {
            Audit::Structure => self.proxy.audit_structure(),
            Audit::Everything => self.proxy.audit(),
        };
        let differences = repaired.len() as u64 + writes;
        if differences > 0 {
            self.progress.repairs.fetch_add(differences, Ordering::Relaxed);
            tracing::warn!(structure = ?repaired, writes, "somebody changed what the proxy programmed, repaired");
        }
        let failed_before = std::mem::replace(&mut self.audit_failed, !failures.is_empty());
        let at_rules = failures.iter().any(|(_, error)| is_rules(error));
        match failures.first() {
            Some((Some(service), error)) => {
                self.failed(&format!("repair {service}: {}", with_causes(error)), at_rules);
            }
            Some((None, error)) => self.failed(&format!("repair: {}", with_causes(error)), at_rules),
            None => {
                if audit == Audit::Everything && self.began {
                    self.progress.passed(Pass::Full, started.elapsed());
                }
                if failed_before && self.is_settled() {
                    self.part.works();
                }
            }
        }
    }

    /// Tries again what failed.
    pub fn retry(&mut self, snapshot: &Arc<Snapshot>) {
        if self.audit_failed {
            self.audit(Audit::Everything);
        }
        // A repair that failed left its Services to the next sync.
        self.sync(snapshot);
    }

    pub fn read_counters(&self) {
        match self.proxy.counters() {
            Ok(verdicts) => self.progress.state().verdicts = verdicts,
            Err(error) => tracing::debug!(error = with_causes(&error), "hook's counters cannot be read"),
        }
    }

    /// How long changes took to get here, and what became of flows that led nowhere.
    fn measure(&mut self, older: &Snapshot, report: &SyncReport) {
        let failed: BTreeSet<_> = report.failures.iter().map(|(service, _)| service).collect();
        self.triggers.note(older, &self.given);
        let took = self.triggers.settle(|service| failed.contains(service), now());
        for (family, duration) in took {
            if let Some(durations) = self.progress.network_programming.get(&family) {
                durations.observe(duration);
            }
        }
        let stale = report.stale_flows as u64;
        self.progress.stale_flows.fetch_add(stale, Ordering::Relaxed);
    }

    /// What follows from plans and is not the kernel's: health checks, and policies that find no endpoint.
    fn look_at_plans(&mut self, planned: Option<&BTreeSet<ObjectName>>) {
        if planned.is_some_and(BTreeSet::is_empty) {
            return;
        }
        self.no_local.update(self.proxy.plans(), planned);
        self.progress.state().no_local_endpoints = self.no_local.totals();
        let context = self.proxy.context();
        let families = [IpFamily::V4, IpFamily::V6].into_iter();
        let families = families.filter(|family| context.families.contains(family));
        let wanted = HealthChecks {
            checks: self.proxy.health_checks(),
            networks: families
                .flat_map(|family| context.node_port_networks(family))
                .collect(),
        };
        self.progress.health_checks.send_if_modified(|checks| {
            let differs = **checks != wanted;
            if differs {
                *checks = Arc::new(wanted);
            }
            differs
        });
    }

    /// Tells of parts of Services that are not served, once each.
    fn look_at_rejected(&mut self, planned: Option<&BTreeSet<ObjectName>>, report: SyncReport) {
        let failed_services = report.failures.len() as u64;
        let full = report.failures.iter().filter(|(_, error)| is_full(error));
        let map_full = full.count() as u64;
        let failed = report.failures.into_iter().map(|(service, _)| service);
        let rejected = report.rejected.iter().map(|part| part.service.clone());
        let claims = report.applied.into_iter().chain(failed).chain(rejected).collect();
        let looked_at = LookedAt {
            planned,
            claims: &claims,
        };
        for Rejected { service, reason } in self.rejected.replace(looked_at, report.rejected) {
            match reason {
                // Every dual-stack Service has it on a node without IPv6, which was told when the agent started.
                Reason::FamilyOff(_) => tracing::debug!(%service, %reason, "part of a Service is not served"),
                _ => tracing::warn!(%service, %reason, "part of a Service is not served"),
            }
        }
        let mut state = self.progress.state();
        state.rejected.clone_from(self.rejected.by_reason());
        state.failed_services = failed_services;
        state.map_full = map_full;
    }

    fn failed(&self, error: &str, at_rules: bool) {
        self.progress.failed();
        let rules = u64::from(at_rules);
        self.progress.rules_failures.fetch_add(rules, Ordering::Relaxed);
        self.part.fails(error);
    }
}

/// The wall clock: changes of pods are told by it.
fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    UnixTime(since.unwrap_or(Duration::ZERO))
}

fn log_sync(report: &SyncReport) {
    for (service, error) in &report.failures {
        tracing::debug!(%service, error = with_causes(error), "Service is not in the kernel yet");
    }
    if !report.applied.is_empty() || report.writes > 0 {
        tracing::debug!(
            services = report.applied.len(),
            writes = report.writes,
            stale_flows = report.stale_flows,
            plan_us = report.durations.plan.as_micros(),
            apply_us = report.durations.apply.as_micros(),
            "Services programmed"
        );
    }
}

/// The first thing that a sync could not do, and how much else.
fn first_failure(report: &SyncReport) -> Option<String> {
    let services = report
        .failures
        .iter()
        .map(|(service, error)| format!("{service}: {}", with_causes(error)));
    let mut errors = report
        .common_failures
        .iter()
        .map(|error| with_causes(error))
        .chain(services);
    let first = errors.next()?;
    Some(match errors.count() {
        0 => first,
        more => format!("{first} (and {more} more)"),
    })
}

fn has_rules_failure(report: &SyncReport) -> bool {
    let services = report.failures.iter().map(|(_, error)| error);
    services.chain(&report.common_failures).any(is_rules)
}

fn is_rules(error: &Error) -> bool {
    matches!(error, Error::Nftables(_) | Error::Program { .. })
}

fn is_full(error: &Error) -> bool {
    matches!(error, Error::Hook(ebpf::Error::Full { .. }))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use model::{Change, EndpointSlice, Kind, Service, TrafficPolicy};
    use proxy::Settings;
    use proxy::datapath::fake::FakeDatapath;
    use proxy::plan::HealthCheck;

    use super::super::no_local::Policy;
    use super::super::samples::{self, name};
    use super::*;
    use crate::agent::supervisor::{Health, Parts};

    /// A keeper over a fake datapath, and what it tells.
    struct Bench<'a> {
        keeper: Keeper<'a>,
        fake: FakeDatapath,
        snapshot: Arc<Snapshot>,
    }

    impl<'a> Bench<'a> {
        fn new(progress: &'a ProxyProgress, part: &'a Part) -> Self {
            let fake = FakeDatapath::default();
            let network = "10.244.0.0/16".parse().expect("a network");
            let settings = Settings::new("node-1".into(), [network]);
            let proxy = Proxy::with_datapath(settings, Box::new(fake.clone()));
            Self {
                keeper: Keeper::new(proxy, progress, part),
                fake,
                snapshot: Arc::default(),
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
    }

    fn synced() -> [Change; 3] {
        [Kind::Service, Kind::EndpointSlice, Kind::Node].map(Change::Synced)
    }

    fn slice(address: &str, last_change: UnixTime) -> Change {
        Change::EndpointSlice(EndpointSlice {
            endpoints: vec![samples::endpoint(address)],
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
        bench.keeper.retry(&bench.snapshot);
        assert!(bench.keeper.is_settled());
        assert!(matches!(parts.all()["proxy"].health, Health::Working));
    }

    #[test]
    fn what_waits_for_complete_lists_is_pending_but_not_overdue() {
        let (progress, parts) = (ProxyProgress::default(), Parts::default());
        let part = parts.part("proxy");
        let mut bench = Bench::new(&progress, &part);
        bench.publish([Change::Service(samples::service("web"))]);
        bench.sync();
        let one = Changes {
            services: 1,
            slices: 0,
        };
        assert_eq!(progress.state().pending, one);
        assert!(progress.queued.unix_seconds() == 0.0, "nothing is late");
        bench.publish(synced());
        bench.sync();
        assert_eq!(progress.state().pending, Changes::default());
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
        assert_eq!(progress.state().pending, both);
        let counted = || {
            (
                progress.service_changes.load(Ordering::Relaxed),
                progress.slice_changes.load(Ordering::Relaxed),
            )
        };
        assert_eq!(counted(), (1, 2));

        bench.fake.with(|fake| fake.fail_next.insert(name("web")));
        bench.sync();
        assert_eq!(progress.state().pending, both, "it did not get there");
        assert_eq!(progress.state().failed_services, 1);
        bench.publish([Change::DeleteService(name("nobody"))]);
        assert_eq!(progress.state().pending, both, "nor did anything since");
        bench.sync();
        assert_eq!(progress.state().pending, Changes::default());
        assert_eq!(progress.state().failed_services, 0);
        assert_eq!(counted(), (1, 2));
    }

    #[test]
    fn load_balancers_are_told_what_the_plans_say() {
        let (progress, parts) = (ProxyProgress::default(), Parts::default());
        let part = parts.part("proxy");
        let mut bench = Bench::new(&progress, &part);
        let port = NonZeroU16::new(32_000).expect("no port is 0");
        let balanced = Service {
            external_policy: TrafficPolicy::Local,
            health_check_node_port: Some(port),
            ..samples::with_node_port("web", 30_080)
        };
        bench.publish(synced());
        bench.publish([Change::Service(balanced), slice("10.244.9.2", now())]);
        bench.sync();
        let check = HealthCheck { port, ready_here: 0 };
        let expected = HealthChecks {
            checks: [(name("web"), check)].into(),
            networks: ["0.0.0.0/0", "::/0"]
                .map(|network| network.parse().expect("a network"))
                .into(),
        };
        assert_eq!(**progress.health_checks.borrow(), expected);
        let lacking = [((IpFamily::V4, Policy::External), 1)];
        assert_eq!(progress.state().no_local_endpoints, lacking.into());

        bench.publish([Change::DeleteService(name("web"))]);
        bench.sync();
        assert_eq!(progress.health_checks.borrow().checks, [].into());
        assert_eq!(progress.state().no_local_endpoints, [].into());
    }

    #[test]
    fn network_programming_is_measured_for_changes_that_came_while_the_proxy_was_there() {
        let (progress, parts) = (ProxyProgress::default(), Parts::default());
        let part = parts.part("proxy");
        let mut bench = Bench::new(&progress, &part);
        let counted = |expected: u64| {
            let mut page = crate::agent::metrics::Page::default();
            crate::agent::proxy_metrics::write(&progress, crate::config::Datapath::Ebpf, &mut page);
            let line = format!(
                "kubeproxy_network_programming_duration_seconds_count{{ip_family=\"IPv4\"}} {expected}\n"
            );
            let text = page.into_text();
            assert!(text.contains(&line), "no {line} in {text}");
        };
        bench.publish(synced());
        let long_ago = UnixTime(Duration::from_secs(1));
        bench.publish([
            Change::Service(samples::service("web")),
            slice("10.244.9.2", long_ago),
        ]);
        bench.sync();
        counted(0);
        bench.publish([slice("10.244.9.3", now())]);
        bench.sync();
        counted(1);
        bench.publish([slice("10.244.9.3", now())]);
        bench.sync();
        counted(1);
    }
}
