//! Parts of Services that are not served at this moment, and which of them are new.

use std::collections::{BTreeMap, BTreeSet};

use model::ObjectName;
use proxy::Rejected;
use proxy::plan::Reason;

/// What of each Service is not served.
#[derive(Debug, Default)]
pub struct RejectedParts {
    parts: BTreeMap<ObjectName, BTreeSet<Reason>>,
    counts: BTreeMap<&'static str, u64>,
}

/// The Services that a sync looked at.
#[derive(Clone, Copy, Debug)]
pub struct LookedAt<'a> {
    /// Whose plans were made anew. None: all were.
    pub planned: Option<&'a BTreeSet<ObjectName>>,
    /// Whose claims on frontends were looked at.
    pub claims: &'a BTreeSet<ObjectName>,
}

#[cfg(test)]
impl LookedAt<'_> {
    /// All Services.
    pub const EVERYTHING: Self = Self {
        planned: None,
        claims: &BTreeSet::new(),
    };
}

impl RejectedParts {
    /// Takes what a sync rejected of the Services that it looked at, in the place of what was rejected of them before,
    /// and returns what is new.
    pub fn replace(&mut self, looked_at: LookedAt<'_>, rejected: Vec<Rejected>) -> Vec<Rejected> {
        let before = self.take_out(looked_at);
        let is_known = |part: &Rejected| {
            let known = before.get(&part.service);
            known.is_some_and(|reasons| reasons.contains(&part.reason))
        };
        let mut new: Vec<_> = rejected
            .into_iter()
            .filter(|part| self.insert(part) && !is_known(part))
            .collect();
        new.sort();
        new
    }

    /// How many parts there are for each kind of reason; 0 for one that there was.
    #[must_use]
    pub fn by_reason(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectName, &Reason)> {
        let parts = self.parts.iter();
        parts.flat_map(|(service, reasons)| reasons.iter().map(move |reason| (service, reason)))
    }

    fn insert(&mut self, Rejected { service, reason }: &Rejected) -> bool {
        let reasons = self.parts.entry(service.clone()).or_default();
        let inserted = reasons.insert(reason.clone());
        *self.counts.entry(label(reason)).or_default() += u64::from(inserted);
        inserted
    }

    /// Takes out what the sync decided again.
    fn take_out(&mut self, looked_at: LookedAt<'_>) -> BTreeMap<ObjectName, BTreeSet<Reason>> {
        let Some(planned) = looked_at.planned else {
            self.counts.values_mut().for_each(|count| *count = 0);
            return std::mem::take(&mut self.parts);
        };
        let mut taken = BTreeMap::new();
        for service in looked_at.claims.difference(planned) {
            if let Some(reasons) = self.parts.get_mut(service) {
                let by_claims = |reason: &Reason| matches!(reason, Reason::Taken { .. });
                taken.insert(service.clone(), reasons.extract_if(.., by_claims).collect());
            }
        }
        for service in planned {
            if let Some((service, reasons)) = self.parts.remove_entry(service) {
                taken.insert(service, reasons);
            }
        }
        for reason in taken.values().flatten() {
            *self.counts.entry(label(reason)).or_default() -= 1;
        }
        taken
    }
}

/// The reason's name in metrics.
fn label(reason: &Reason) -> &'static str {
    match reason {
        Reason::FamilyOff(_) => "family-off",
        Reason::ExternalAddressesOff => "external-addresses-off",
        Reason::BadAddress(_) => "bad-address",
        Reason::BadEndpoint(_) => "bad-endpoint",
        Reason::BadSourceRange(_) => "bad-source-range",
        Reason::TooManyEndpoints(_) => "too-many-endpoints",
        Reason::DuplicateFrontend(_) => "duplicate-frontend",
        Reason::Taken { .. } => "taken",
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{frontend, name};
    use super::*;

    fn rejected(service: &str, reason: Reason) -> Rejected {
        Rejected {
            service: name(service),
            reason,
        }
    }

    fn taken() -> Reason {
        Reason::Taken {
            frontend: frontend("10.96.0.7", 80),
            owner: name("owner"),
        }
    }

    fn names(names: &[&str]) -> BTreeSet<ObjectName> {
        names.iter().map(|service| name(service)).collect()
    }

    #[test]
    fn a_part_is_new_once_and_goes_when_its_service_was_looked_at_without_it() {
        let mut parts = RejectedParts::default();
        let all = vec![
            rejected("web", Reason::TooManyEndpoints(9)),
            rejected("web", taken()),
            rejected("web", taken()),
            rejected("api", Reason::ExternalAddressesOff),
        ];
        let both = names(&["web", "api"]);
        let planned = LookedAt {
            planned: Some(&both),
            claims: &both,
        };
        let mut expected = all.clone();
        expected.sort();
        expected.dedup();
        assert_eq!(parts.replace(planned, all.clone()), expected);
        assert_eq!(parts.replace(planned, all), [], "known by now");
        let counts = [
            ("external-addresses-off", 1),
            ("taken", 1),
            ("too-many-endpoints", 1),
        ];
        assert_eq!(*parts.by_reason(), counts.into());

        // Nobody looked at them: they stay.
        let nobody = BTreeSet::new();
        let none = LookedAt {
            planned: Some(&nobody),
            claims: &nobody,
        };
        assert_eq!(parts.replace(none, Vec::new()), []);
        assert_eq!(*parts.by_reason(), counts.into());

        // The other Service gave the frontend up: the plan is as it was, but the claim is not.
        let web = names(&["web"]);
        let claims = LookedAt { claims: &web, ..none };
        assert_eq!(parts.replace(claims, Vec::new()), []);
        let counts = [
            ("external-addresses-off", 1),
            ("taken", 0),
            ("too-many-endpoints", 1),
        ];
        assert_eq!(*parts.by_reason(), counts.into());

        let back = vec![rejected("web", taken())];
        assert_eq!(
            parts.replace(LookedAt::EVERYTHING, back.clone()),
            back,
            "it went and came again"
        );
        let counts = [
            ("external-addresses-off", 0),
            ("taken", 1),
            ("too-many-endpoints", 0),
        ];
        assert_eq!(*parts.by_reason(), counts.into());
    }
}
