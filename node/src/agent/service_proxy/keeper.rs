//! The proxy, and what of it is not settled; tells how far it has come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use model::{IpFamily, Kind, ObjectName, Snapshot, UnixTime, with_causes};
use proxy::plan::Reason;
use proxy::stale::Forgotten;
use proxy::{AuditReport, Error, Proxy, Rejected, Settings, SyncReport};
use tracing::field::Empty;
use tracing::info_span;

use super::backlog::{Changes, Triggers};
use super::failing::Tried;
use super::no_local::NoLocalEndpoints;
use super::rejected::LookedAt;
use crate::agent::progress::{Pass, ProxyProgress, State};
use crate::agent::supervisor::Part;
use crate::telemetry::TARGET;
use crate::watch::{Events, Notice, Scope, Status, Subject};

/// Between two looks for flows that lead nowhere, and which part of the time they may take: each walks through
/// everything that connection tracking has.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
const LOOKS_SHARE: u32 = 3;
const AFTER_FAILED_LOOK: Duration = Duration::from_secs(1);

/// How far an audit goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// Attachments, pins and chains.
    Structure,
    /// Everything.
    Everything,
}

/// The proxy, and what of it is not settled. An audit that finds nothing settles no sync that failed, nor the reverse:
/// the fixed structure may be whole while something else is not in the kernel.
pub struct Keeper<'a> {
    proxy: Proxy,
    progress: &'a ProxyProgress,
    part: &'a Part,
    events: Events,
    /// The last snapshot that a sync was given.
    given: Arc<Snapshot>,
    /// Whether a sync had complete lists.
    began: bool,
    /// What the latest sync, and the latest audit, could not do that is no single Service's.
    sync_failure: Option<String>,
    audit_failure: Option<String>,
    /// What the latest look for stale flows could not do: it harms clients that hold on to their port, and does not
    /// make this proxy less programmed.
    flows_failure: Option<String>,
    triggers: Triggers,
    /// Whose changes are programmed.
    watches: Status,
    no_local: NoLocalEndpoints,
}

impl<'a> Keeper<'a> {
    pub fn new(
        proxy: Proxy,
        progress: &'a ProxyProgress,
        part: &'a Part,
        events: Events,
        watches: Status,
    ) -> Self {
        Self {
            proxy,
            progress,
            part,
            events,
            watches,
            given: Arc::default(),
            began: false,
            sync_failure: None,
            audit_failure: None,
            flows_failure: None,
            triggers: Triggers::new(now()),
            no_local: NoLocalEndpoints::default(),
        }
    }

    fn is_every_change_refused(&self) -> bool {
        self.progress.state().failing.is_every_change_refused()
    }

    /// Whether there is nothing to try again.
    pub fn is_settled(&self) -> bool {
        let has_failed = self.sync_failure.is_some() || self.audit_failure.is_some();
        // Before the lists are complete all is pending, and no use to try.
        !has_failed && self.progress.state().failing.is_empty() && !(self.began && self.proxy.has_pending())
    }

    /// Whether flows wait to be looked at.
    pub fn has_stale_flows(&self) -> bool {
        self.proxy.has_stale_flows()
    }

    /// What could not be done that is no single Service's.
    fn common_failure(&self) -> Option<String> {
        let failures = [&self.sync_failure, &self.audit_failure, &self.flows_failure];
        let failures: Vec<_> = failures.into_iter().flatten().map(String::as_str).collect();
        (!failures.is_empty()).then(|| failures.join("; "))
    }

    /// Whether this proxy serves by now, single Services that fail aside.
    pub fn is_programmed(&self) -> bool {
        let has_failed = self.sync_failure.is_some() || self.audit_failure.is_some();
        self.began && !has_failed && !self.is_every_change_refused()
    }

    /// A snapshot came that is to be brought into the kernel.
    pub fn queue(&mut self, snapshot: &Arc<Snapshot>) {
        let progress = self.progress;
        let before = std::mem::replace(&mut progress.state().queued, snapshot.clone());
        let Changes { services, slices } = Changes::between(&before, snapshot, |_| true);
        progress.service_changes.fetch_add(services, Ordering::Relaxed);
        progress.slice_changes.fetch_add(slices, Ordering::Relaxed);
        // Before that the proxy waits for the API, which is no change that is overdue.
        if self.began {
            progress.queue();
        }
    }

    /// Tells whether this node's DNS server answers; the next sync acts on it.
    pub fn set_dns_answers(&mut self, answers: bool) {
        self.proxy.set_dns_answers(answers);
    }

    /// Tells what plans are made by from now on; the next sync acts on it.
    pub fn set_settings(&mut self, settings: Settings) {
        self.proxy.set_settings(settings);
    }

    /// Brings a snapshot into the kernel.
    pub fn sync(&mut self, snapshot: &Arc<Snapshot>) {
        let is_queued = Arc::ptr_eq(&self.progress.state().queued, snapshot);
        if !is_queued {
            self.queue(snapshot);
        }
        let started = Instant::now();
        let context = self.proxy.context().clone();
        let report = self.sync_traced(snapshot);
        if !report.waiting_for.is_empty() {
            tracing::debug!(waiting_for = ?report.waiting_for, "proxy waits for complete lists");
            return;
        }
        let pass = if self.began { Pass::Partial } else { Pass::Full };
        if !self.began {
            self.began = true;
            self.progress.queue();
        }
        let older = std::mem::replace(&mut self.given, snapshot.clone());
        let changed = snapshot.changed_since(&older).services;
        let planned = (*self.proxy.context() == context).then_some(&changed);
        if planned.is_none() || pass == Pass::Full {
            self.progress.state().context = Some(self.proxy.context().clone());
        }
        log_sync(&report);
        self.look_at_failures(&report, &changed);
        self.measure(&older);
        self.look_at_plans(planned);
        self.look_at_rejected(planned, report);
        if self.sync_failure.is_some() || self.is_every_change_refused() {
            self.progress.held_up();
        } else {
            self.progress.done(pass, started.elapsed());
        }
        self.tell();
    }

    fn sync_traced(&mut self, snapshot: &Snapshot) -> SyncReport {
        let change = self.watches.take_change();
        let span = info_span!(
            target: TARGET,
            parent: &change,
            "program",
            services = Empty,
            writes = Empty,
            error = Empty
        );
        let report = span.in_scope(|| self.proxy.sync(snapshot));
        span.record("services", report.applied.len() as u64);
        span.record("writes", report.writes);
        let of_services = report.failures.iter().map(|(_, error)| error);
        if let Some(error) = first_of(report.common_failures.iter().chain(of_services)) {
            span.record("error", error);
        }
        report
    }

    /// Compares with the kernel, as far as `audit` goes, and repairs.
    pub fn audit(&mut self, audit: Audit) {
        let started = Instant::now();
        // What was left undone is written by an audit too, and was changed by nobody.
        let had_pending = self.proxy.has_pending() || !self.progress.state().failing.is_empty();
        let AuditReport {
            repaired,
            writes,
            failures,
            unswept,
        } = match audit {
            Audit::Structure => self.proxy.audit_structure(),
            Audit::Everything => self.proxy.audit(),
        };
        let writes = if had_pending { 0 } else { writes };
        let differences = repaired.len() as u64 + writes;
        if differences > 0 {
            self.progress.repairs.fetch_add(differences, Ordering::Relaxed);
            tracing::warn!(structure = ?repaired, writes, "somebody changed what the proxy programmed, repaired");
        }
        self.count_failures(failures.iter().map(|(_, error)| error), &unswept);
        let common = failures.iter().filter(|(service, _)| service.is_none());
        let common = first_of(common.map(|(_, error)| error));
        self.audit_failure = common.map(|error| format!("repair: {error}"));
        // Where something of the structure was lost the proxy looks at everything.
        let looked_at_everything = audit == Audit::Everything || !repaired.is_empty();
        let whole = looked_at_everything && self.began && self.audit_failure.is_none();
        let failures = failures.iter();
        let of_services = failures.filter_map(|(service, error)| Some((service.as_ref()?, error)));
        let mut state = self.progress.state();
        state.failing.audited(of_services, whole, &self.given);
        state.iptables = self.proxy.iptables();
        drop(state);
        if whole {
            self.progress.passed(Pass::Full, started.elapsed());
        }
        self.tell();
    }

    /// Makes connection tracking forget what leads nowhere since the changes that were programmed. Returns how long
    /// to wait with the next look.
    pub fn forget_flows(&mut self) -> Duration {
        let started = Instant::now();
        let looked = self.proxy.forget_flows();
        let took = started.elapsed();
        for progress in self.progress.by_family.values() {
            progress.forgetting.observe(took);
        }
        let pause = match looked {
            Ok(Forgotten { flows, sockets }) => {
                tracing::debug!(
                    ?flows,
                    sockets,
                    took_us = took.as_micros(),
                    "looked for stale flows"
                );
                self.flows_failure = None;
                self.progress.ended_sockets.fetch_add(sockets, Ordering::Relaxed);
                for (family, progress) in &self.progress.by_family {
                    let flows = flows.get(family).copied().unwrap_or(0);
                    progress.forgotten_flows.fetch_add(flows, Ordering::Relaxed);
                }
                BETWEEN_LOOKS.max(took * (LOOKS_SHARE - 1))
            }
            Err(error) => {
                let error = with_causes(&error);
                if self.flows_failure.is_none() {
                    tracing::warn!(error, "stale flows are not all forgotten, trying again");
                }
                self.flows_failure = Some(format!("stale flows: {error}"));
                self.progress.failed();
                AFTER_FAILED_LOOK
            }
        };
        self.tell();
        pause
    }

    /// Tries again what failed.
    pub fn retry(&mut self, snapshot: &Arc<Snapshot>) {
        if self.audit_failure.is_some() {
            self.audit(Audit::Everything);
        }
        // A repair that failed left its Services to the next sync.
        self.proxy.retry_failed();
        self.sync(snapshot);
    }

    pub fn read_counters(&self) {
        match self.proxy.counters() {
            Ok(verdicts) => self.progress.state().verdicts = verdicts,
            Err(error) => tracing::debug!(error = with_causes(&error), "hook's counters cannot be read"),
        }
    }

    /// What is in the kernel by now, and what is not.
    fn look_at_failures(&mut self, report: &SyncReport, changed: &BTreeSet<ObjectName>) {
        let of_services = report.failures.iter().map(|(_, error)| error);
        self.count_failures(of_services.chain(&report.common_failures), &report.unswept);
        let tried = Tried {
            applied: &report.applied,
            failures: &report.failures,
        };
        self.sync_failure = first_of(&report.common_failures);
        let iptables = self.proxy.iptables();
        let mut state = self.progress.state();
        let State {
            failing, programmed, ..
        } = &mut *state;
        failing.note(changed, &self.given);
        failing.synced(tried, programmed, &self.given);
        if self.sync_failure.is_none() {
            *programmed = self.given.clone();
        }
        state.iptables = iptables;
    }

    /// What failed in a sync or an audit; of `unswept` something is left that is nobody's.
    fn count_failures<'e>(&self, errors: impl IntoIterator<Item = &'e Error>, unswept: &BTreeSet<IpFamily>) {
        let mut errors = errors.into_iter().peekable();
        if errors.peek().is_none() {
            return;
        }
        self.progress.failed();
        let of_rules: BTreeSet<_> = errors.filter_map(Error::rules_of).collect();
        for (family, progress) in &self.progress.by_family {
            let failed = u64::from(of_rules.contains(family));
            progress.rules_failures.fetch_add(failed, Ordering::Relaxed);
            let left = u64::from(unswept.contains(family));
            progress.cleanup_failures.fetch_add(left, Ordering::Relaxed);
        }
    }

    /// Says how the part is doing. What is merely left to be done is no news.
    fn tell(&mut self) {
        let news = self.progress.state().failing.news();
        for (service, note) in news {
            self.notify(service, Scope::ThisNode, "FailedToProgram", note);
        }
        let problem = self.progress.state().failing.problem();
        match self.common_failure().or(problem) {
            Some(problem) => self.part.fails(&problem),
            None if self.began && self.is_settled() => self.part.works(),
            None => {}
        }
    }

    /// Says it to whoever looks at the Service.
    fn notify(&self, service: ObjectName, scope: Scope, reason: &'static str, note: String) {
        self.events.tell(Notice {
            subject: Subject::Watched(Kind::Service),
            object: service,
            scope,
            reason,
            note,
        });
    }

    /// How long changes took to get here.
    fn measure(&mut self, older: &Snapshot) {
        self.triggers.note(older, &self.given);
        let held_up = self.sync_failure.is_some();
        let state = self.progress.state();
        let is_open = |service: &ObjectName| held_up || state.failing.contains(service);
        let took = self.triggers.settle(is_open, now());
        drop(state);
        for (family, duration) in took {
            if let Some(progress) = self.progress.by_family.get(&family) {
                progress.network_programming.observe(duration);
            }
        }
    }

    /// What follows from plans and is not the kernel's: health checks, and policies that find no endpoint.
    fn look_at_plans(&mut self, planned: Option<&BTreeSet<ObjectName>>) {
        if planned.is_some_and(BTreeSet::is_empty) {
            return;
        }
        self.no_local.update(self.proxy.plans(), planned);
        self.progress.state().no_local_endpoints = self.no_local.totals();
        self.look_at_health_checks(planned);
    }

    fn look_at_health_checks(&self, planned: Option<&BTreeSet<ObjectName>>) {
        let context = self.proxy.context();
        let families = [IpFamily::V4, IpFamily::V6].into_iter();
        let families = families.filter(|family| context.families.contains(family));
        let networks: BTreeSet<_> = families
            .flat_map(|family| context.node_port_networks(family))
            .collect();
        let plans = self.proxy.plans();
        self.progress.health_checks.send_if_modified(|told| {
            let differences = match planned {
                Some(changed) => told.differences(plans, changed),
                None => told.differences(plans, told.checks.keys().chain(plans.keys())),
            };
            let differs = !differences.is_empty() || told.networks != networks;
            if differs {
                Arc::make_mut(told).update(differences, networks);
            }
            differs
        });
    }

    /// Tells of parts of Services that are not served, once each.
    fn look_at_rejected(&mut self, planned: Option<&BTreeSet<ObjectName>>, report: SyncReport) {
        let failed = report.failures.into_iter().map(|(service, _)| service);
        let rejected = report.rejected.iter().map(|part| part.service.clone());
        let claims = report.applied.into_iter().chain(failed).chain(rejected).collect();
        let looked_at = LookedAt {
            planned,
            claims: &claims,
        };
        let mut notes = BTreeMap::<_, Vec<_>>::new();
        let new = self.progress.state().rejected.replace(looked_at, report.rejected);
        for Rejected { service, reason } in new {
            match reason {
                // Every dual-stack Service has it on a node without IPv6, which was told when the agent started.
                Reason::FamilyOff(_) => tracing::debug!(%service, %reason, "part of a Service is not served"),
                _ => {
                    tracing::warn!(%service, %reason, "part of a Service is not served");
                    let scope = if reason.is_of_this_node() {
                        Scope::ThisNode
                    } else {
                        Scope::Everywhere
                    };
                    notes
                        .entry((service, scope))
                        .or_default()
                        .push(reason.to_string());
                }
            }
        }
        for ((service, scope), reasons) in notes {
            let note = format!("part of it is not served: {}", reasons.join("; "));
            self.notify(service, scope, "NotServed", note);
        }
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
            plan_us = report.durations.plan.as_micros(),
            apply_us = report.durations.apply.as_micros(),
            "Services programmed"
        );
    }
}

/// The first error, and how many more there are.
fn first_of<'e>(errors: impl IntoIterator<Item = &'e Error>) -> Option<String> {
    let mut errors = errors.into_iter();
    let first = with_causes(errors.next()?);
    Some(match errors.count() {
        0 => first,
        more => format!("{first} (and {more} more)"),
    })
}

#[cfg(test)]
mod tests;
