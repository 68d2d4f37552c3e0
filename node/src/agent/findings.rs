//! What an agent finds wrong with itself and with what it is told, for `causeway doctor`.
//!
//! It is served as JSON on a Unix socket in the state directory, for root alone: findings have the names of objects,
//! which are nobody else's business on the node.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use dns::http;
use model::ObjectName;
use overlay::fast_path;
use proxy::plan::Reason;
use tokio_util::sync::CancellationToken;

use super::examining;
use super::explaining;
use super::progress::{OVERDUE, ProxyProgress};
use super::report::Sources;
use super::socket;
use super::supervisor::{Health, Part};
use super::vpc_eni;
use crate::ask::{ALIVE, SOCKET};
use crate::bundle;
use crate::doctor::vpc;
use crate::explain;
use crate::findings::{self, Finding, Severity};
use crate::names;
use crate::watch::{NetworkPolicies, Rejected};

/// Serves the findings until shutdown.
///
/// # Errors
/// When the socket cannot be made.
pub async fn serve(
    state_dir: &Path,
    sources: Sources,
    part: Part,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let path = state_dir.join(SOCKET);
    let listener = socket::listen(&path).with_context(|| format!("listen on {}", path.display()))?;
    let router = Router::new()
        .route(
            ALIVE,
            get(async |State(sources): State<Sources>| sources.node.to_string()),
        )
        .route(explain::PATH, post(explaining::answer))
        .route(names::PATH, post(explaining::name))
        .route(bundle::PATH, post(explaining::tell))
        .route(findings::PATH, post(examining::examine))
        .with_state(sources);
    part.works();
    shutdown.run_until_cancelled(http::serve(listener, router)).await;
    Ok(())
}

impl Sources {
    /// What is to be told at this moment, what is wrong first.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = self.failing_parts();
        findings.extend(self.vpc_problems());
        findings.extend(self.failing_watches());
        findings.extend(self.watches.rejected().iter().map(rejected_object));
        findings.extend(self.proxy.iter().flat_map(|proxy| of_proxy(proxy)));
        findings.extend(self.refused_fast_path());
        findings.extend(self.waiting_config());
        let policies = self.policies.as_ref().and_then(NetworkPolicies::known);
        findings.extend(policies.and_then(|policies| not_enforced(&policies)));
        findings.sort_by_key(|finding| finding.severity);
        findings
    }

    fn failing_parts(&self) -> Vec<Finding> {
        let heard = self.vpc_eni.as_ref();
        // Each of its problems is a finding of its own.
        let is_told = heard.is_some_and(|heard| !heard.status.borrow().problems.is_empty());
        let parts = self.parts.all().into_iter();
        let parts = parts.filter(|(name, _)| !(is_told && *name == vpc_eni::PART));
        let failing = parts.filter_map(|(name, part)| match part.health {
            Health::Failing { since, error } => Some(Finding {
                evidence: format!("for {} s: {error}", since.elapsed().as_secs()),
                ..wrong(
                    "part-failing",
                    format!("part {name}"),
                    "see what the evidence names; the agent goes on trying what can pass by itself",
                )
            }),
            Health::Starting | Health::Working => None,
        });
        failing.collect()
    }

    fn vpc_problems(&self) -> Vec<Finding> {
        let status = self.vpc_eni.as_ref().map(|heard| heard.status.borrow().clone());
        status.map_or_else(Vec::new, |status| vpc::problems(&status))
    }

    fn failing_watches(&self) -> Vec<Finding> {
        let kinds = self.watches.kinds().into_iter();
        let failing = kinds.filter_map(|(kind, status)| {
            let failing = status.failing?;
            Some(Finding {
                evidence: format!("for {} s: {}", failing.since.elapsed().as_secs(), failing.error),
                ..wrong(
                    "watch-failing",
                    format!("watch of {}", kind.name()),
                    "see that the API server answers from this node and that the agent may list and watch there",
                )
            })
        });
        failing.collect()
    }

    fn waiting_config(&self) -> Option<Finding> {
        let keys = self.config_status.waiting();
        (!keys.is_empty()).then(|| Finding {
            severity: Severity::Note,
            evidence: format!("changed in the file and not in effect: {}", keys.join(", ")),
            ..wrong(
                "config-needs-restart",
                "configuration".to_owned(),
                "restart the agent, which breaks no connection, or put the keys back",
            )
        })
    }

    fn refused_fast_path(&self) -> Option<Finding> {
        let fast_path::State::Refused(reason) = self.fast_path.borrow().clone() else {
            return None;
        };
        Some(Finding {
            severity: Severity::Note,
            evidence: format!("packets between pods take the whole network stack: {reason}"),
            ..wrong(
                "fast-path-refused",
                "network.fastPath".to_owned(),
                "none is needed; removing what is named makes pods faster, fastPath: false ends this note",
            )
        })
    }
}

/// All but the evidence.
fn wrong(id: &str, object: String, repair: &str) -> Finding {
    Finding {
        severity: Severity::Wrong,
        id: id.to_owned(),
        object,
        evidence: String::new(),
        repair: repair.to_owned(),
    }
}

/// One for all: the first of their names are enough.
fn not_enforced(policies: &BTreeSet<ObjectName>) -> Option<Finding> {
    const NAMED: usize = 10;
    let mut names: Vec<String> = policies.iter().take(NAMED).map(ToString::to_string).collect();
    match policies.len() {
        0 => return None,
        count if count > NAMED => names.push(format!("and {} more", count - NAMED)),
        _ => {}
    }
    Some(Finding {
        evidence: format!("pods are reached as if they were not there: {}", names.join(", ")),
        ..wrong(
            "network-policies-not-enforced",
            format!("{} NetworkPolicies", policies.len()),
            "enforce them by something else, and say network.networkPolicies: ignore, or delete them",
        )
    })
}

/// A part of an object that cannot be meant as it stands.
fn rejected_object(rejected: &Rejected) -> Finding {
    let evidence = match rejected.field.as_str() {
        "" => format!("the object is not used: {}", rejected.reason),
        field => format!("{field} is not used: {}", rejected.reason),
    };
    Finding {
        evidence,
        ..wrong(
            "object-rejected",
            rejected.object_text(),
            "correct the object, or whatever writes it",
        )
    }
}

fn of_proxy(proxy: &ProxyProgress) -> Vec<Finding> {
    let in_time = proxy.in_time();
    let state = proxy.state();
    let mut findings = Vec::new();
    if !in_time {
        findings.push(Finding {
            evidence: format!(
                "changes have not reached the kernel for more than {} s",
                OVERDUE.as_secs()
            ),
            ..wrong(
                "sync-overdue",
                "part proxy".to_owned(),
                "see what part proxy says; restarting the agent breaks no connection",
            )
        });
    }
    for (service, is_full, note) in state.failing.iter() {
        let (id, repair) = if is_full {
            (
                "map-full",
                "remove Services or endpoints that nobody needs: the socket hook's maps hold no more",
            )
        } else {
            (
                "not-programmed",
                "the agent goes on trying; the kernel's answer is in the evidence",
            )
        };
        findings.push(Finding {
            evidence: note,
            ..wrong(id, service_text(service), repair)
        });
    }
    let mut without_family = 0;
    for (service, reason) in state.rejected.iter() {
        match reason {
            Reason::FamilyOff(_) => without_family += 1,
            _ => findings.push(Finding {
                evidence: format!("part of it is not served: {reason}"),
                ..wrong("not-served", service_text(service), repair_of(reason))
            }),
        }
    }
    if without_family > 0 {
        findings.push(Finding {
            severity: Severity::Note,
            evidence: format!(
                "{without_family} addresses or ports of Services are of a version of IP that this node lacks"
            ),
            ..wrong(
                "family-off",
                "this node".to_owned(),
                "none is needed where no pod of this node has that version",
            )
        });
    }
    findings
}

fn repair_of(reason: &Reason) -> &'static str {
    match reason {
        Reason::ExternalAddressesOff => {
            "set proxy.externalIPs: true on every node where whoever may write Services may be trusted"
        }
        Reason::BadAddress(_) | Reason::BadSourceRange(_) => "correct the Service",
        Reason::BadEndpoint(_) => "correct the EndpointSlice, or whatever writes it",
        Reason::TooManyEndpoints(_) => "divide the endpoints among several Services",
        Reason::DuplicateFrontend(_) => "give each port of the Service a number of its own",
        Reason::Taken { .. } => "give one of the two another address or port",
        Reason::FamilyOff(_) => "none is needed",
    }
}

fn service_text(service: &ObjectName) -> String {
    format!("Service {service}")
}

#[cfg(test)]
mod tests {
    use model::Snapshot;

    use super::super::service_proxy::samples::{frontend, name};
    use super::super::service_proxy::{LookedAt, Tried};
    use super::*;

    #[test]
    fn services_that_are_not_programmed_are_told_apart_from_those_without_room() {
        let proxy = ProxyProgress::default();
        let full = ebpf::Error::Full {
            map: "FRONTENDS",
            capacity: 1,
        };
        let failures = [
            (name("web"), full.into()),
            (name("api"), proxy::Error::Injected("apply")),
        ];
        let tried = Tried {
            applied: &[],
            failures: &failures,
        };
        let (had, newest) = (Snapshot::default(), Snapshot::default());
        proxy.state().failing.synced(tried, &had, &newest);
        let findings = of_proxy(&proxy);
        let short: Vec<_> = findings
            .iter()
            .map(|finding| (finding.id.as_str(), finding.object.as_str()))
            .collect();
        let expected = [
            ("not-programmed", "Service default/api"),
            ("map-full", "Service default/web"),
        ];
        assert_eq!(short, expected);
        let evidence = &findings[1].evidence;
        assert!(evidence.ends_with("the packet rules serve it"), "{evidence}");
    }

    #[test]
    fn policies_are_one_finding_with_the_first_of_their_names() {
        let evidence = |count: u8| {
            let names = (0..count).map(|number| name(&format!("p{number}")));
            not_enforced(&names.collect()).map(|finding| finding.evidence)
        };
        assert_eq!(evidence(0), None);
        let start = "pods are reached as if they were not there: default/p0, default/p1";
        assert_eq!(evidence(2).as_deref(), Some(start));
        let many = evidence(12).expect("one");
        assert!(
            many.starts_with(start) && many.ends_with("default/p7, and 2 more"),
            "{many}"
        );
    }

    #[test]
    fn parts_of_services_that_are_not_served_are_named_and_missing_versions_counted() {
        let proxy = ProxyProgress::default();
        let taken = Reason::Taken {
            frontend: frontend("10.96.0.7", 80),
            owner: name("owner"),
        };
        let part = |service, reason| proxy::Rejected {
            service: name(service),
            reason,
        };
        let rejected = vec![
            part("dual", Reason::FamilyOff(model::IpFamily::V6)),
            part("dual-too", Reason::FamilyOff(model::IpFamily::V6)),
            part("web", taken),
        ];
        proxy.state().rejected.replace(LookedAt::EVERYTHING, rejected);
        let findings = of_proxy(&proxy);
        let short: Vec<_> = findings
            .iter()
            .map(|finding| (finding.id.as_str(), finding.object.as_str(), finding.severity))
            .collect();
        let expected = [
            ("not-served", "Service default/web", Severity::Wrong),
            ("family-off", "this node", Severity::Note),
        ];
        assert_eq!(short, expected);
        let evidence = &findings[0].evidence;
        assert!(evidence.contains("is taken by default/owner"), "{evidence}");
        assert!(findings[1].evidence.starts_with("2 "), "{}", findings[1].evidence);
    }
}
