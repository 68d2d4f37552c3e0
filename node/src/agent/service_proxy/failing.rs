//! Services that are not in the kernel as they should be, kept apart from all others: what is wrong with one of them
//! shall neither hide nor hold up the rest.

use std::collections::{BTreeMap, BTreeSet};

use model::{ObjectName, Snapshot, with_causes};
use proxy::Error;

use super::backlog::{Changes, Had};

/// One of them.
#[derive(Debug)]
struct Failing {
    /// Every error of the latest attempt: each layer and each version of IP may have its own.
    errors: Vec<String>,
    /// Whether a map of the socket hook has no room for it.
    map_full: bool,
    /// Whether that will not pass by itself: there is no room, or it failed more than once.
    lasts: bool,
    /// Whether users were told.
    told: bool,
    /// What of it the kernel had when it began to fail.
    had: Had,
    /// How that differs from what it shall have.
    changes: Changes,
}

impl Failing {
    fn note(&self) -> String {
        let errors = self.errors.join("; ");
        if self.map_full {
            format!("{errors}; the packet rules serve it")
        } else {
            format!("its latest change is not in the kernel: {errors}")
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct FailingServices {
    services: BTreeMap<ObjectName, Failing>,
    /// Those that began to fail since any Service was last programmed, and not for want of room.
    refused: BTreeSet<ObjectName>,
}

/// What a sync tried, and what of it failed.
#[derive(Clone, Copy, Debug)]
pub struct Tried<'a> {
    /// Services whose change got there; one that is among the failures too did not.
    pub applied: &'a [ObjectName],
    /// Services whose change did not get there; one may stand here for each layer and version of IP.
    pub failures: &'a [(ObjectName, Error)],
}

impl FailingServices {
    /// A sync of the newest snapshot ended. `had` is the last that was in the kernel but for those that failed already.
    pub fn synced(&mut self, tried: Tried<'_>, had: &Snapshot, newest: &Snapshot) {
        let failed = by_service(tried.failures.iter().map(|(service, error)| (service, error)));
        let applied = tried.applied.iter();
        let mut programmed = false;
        for service in applied.filter(|service| !failed.contains_key(*service)) {
            self.services.remove(service);
            programmed = true;
        }
        if programmed {
            self.refused.clear();
        }
        self.extend(failed, had, newest);
    }

    /// An audit of what `asked` says ended. One that reached everything settled all those that it does not name.
    pub fn audited<'a>(
        &mut self,
        failures: impl IntoIterator<Item = (&'a ObjectName, &'a Error)>,
        reached_everything: bool,
        asked: &Snapshot,
    ) {
        let failed = by_service(failures);
        if reached_everything {
            self.services.retain(|service, _| failed.contains_key(service));
            self.refused.retain(|service| failed.contains_key(service));
        }
        self.extend(failed, asked, asked);
    }

    /// These Services changed.
    pub fn note(&mut self, changed: &BTreeSet<ObjectName>, newest: &Snapshot) {
        for service in changed {
            if let Some(failing) = self.services.get_mut(service) {
                failing.changes = failing.had.changes(service, newest);
            }
        }
    }

    /// What changed and is not in the kernel: of these Services, and of all others since `programmed`.
    #[must_use]
    pub fn pending(&self, programmed: &Snapshot, newest: &Snapshot) -> Changes {
        let others = Changes::between(programmed, newest, |service| !self.contains(service));
        self.services.values().fold(others, |sum, failing| Changes {
            services: sum.services + failing.changes.services,
            slices: sum.slices + failing.changes.slices,
        })
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn contains(&self, service: &ObjectName) -> bool {
        self.services.contains_key(service)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.services.len() as u64
    }

    /// For how many a map of the socket hook has no room: the packet rules serve them.
    #[must_use]
    pub fn map_full(&self) -> u64 {
        let full = self.services.values().filter(|failing| failing.map_full);
        full.count() as u64
    }

    /// Whether it is not a Service that is at fault but the kernel that takes none: several began to fail, and nothing
    /// was programmed since.
    #[must_use]
    pub fn is_every_change_refused(&self) -> bool {
        self.refused.len() > 1
    }

    /// What users of Services shall hear, once for each that begins to fail for longer. Nothing while the kernel takes
    /// no change at all: that is no single Service's.
    pub fn news(&mut self) -> Vec<(ObjectName, String)> {
        if self.is_every_change_refused() {
            return Vec::new();
        }
        let services = self.services.iter_mut();
        let news = services.filter(|(_, failing)| failing.lasts && !failing.told);
        let note = |(service, failing): (&ObjectName, &mut Failing)| {
            failing.told = true;
            (service.clone(), failing.note())
        };
        news.map(note).collect()
    }

    /// Each, whether a map of the socket hook has no room for it, and what is wrong, in words.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectName, bool, String)> {
        let services = self.services.iter();
        services.map(|(service, failing)| (service, failing.map_full, failing.note()))
    }

    /// What is wrong, in words: the first Service, and how many more there are.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let (service, failing) = self.services.first_key_value()?;
        let errors = failing.errors.join("; ");
        Some(match self.services.len() - 1 {
            0 => format!("degraded: {service}: {errors}"),
            more => format!("degraded: {service}: {errors} (and {more} more Services)"),
        })
    }

    fn extend(&mut self, failed: BTreeMap<&ObjectName, Vec<&Error>>, had: &Snapshot, newest: &Snapshot) {
        for (service, errors) in failed {
            let texts = errors.iter().map(|error| with_causes(*error)).collect();
            let map_full = errors.iter().any(|error| error.is_full());
            if let Some(failing) = self.services.get_mut(service) {
                failing.errors = texts;
                failing.map_full = map_full;
                failing.lasts = true;
                continue;
            }
            let wants_room = errors.iter().all(|error| is_want_of_room(error));
            if !wants_room {
                self.refused.insert(service.clone());
            }
            let had = Had::of(service, had);
            let failing = Failing {
                errors: texts,
                map_full,
                lasts: wants_room,
                told: false,
                changes: had.changes(service, newest),
                had,
            };
            self.services.insert(service.clone(), failing);
        }
    }
}

fn by_service<'a>(
    failures: impl IntoIterator<Item = (&'a ObjectName, &'a Error)>,
) -> BTreeMap<&'a ObjectName, Vec<&'a Error>> {
    let mut failed: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (service, error) in failures {
        failed.entry(service).or_default().push(error);
    }
    failed
}

/// The kernel works as before; there is only no place for more.
fn is_want_of_room(error: &Error) -> bool {
    error.is_full() || matches!(error, Error::Exhausted { .. })
}

#[cfg(test)]
mod tests {
    use super::super::samples::name;
    use super::*;

    fn full() -> Error {
        let (map, capacity) = ("FRONTENDS", 1);
        ebpf::Error::Full { map, capacity }.into()
    }

    /// Syncs, each with the Services that were applied and those that failed.
    #[track_caller]
    fn check(
        syncs: &[(&[&str], &[&str])],
        error: fn() -> Error,
        expected: &[&str],
        is_every_change_refused: bool,
    ) {
        let mut failing = FailingServices::default();
        for (applied, failures) in syncs {
            let applied: Vec<_> = applied.iter().map(|service| name(service)).collect();
            let failures: Vec<_> = failures.iter().map(|service| (name(service), error())).collect();
            let tried = Tried {
                applied: &applied,
                failures: &failures,
            };
            failing.synced(tried, &Snapshot::default(), &Snapshot::default());
        }
        let expected: Vec<_> = expected.iter().map(|service| name(service)).collect();
        let found: Vec<_> = failing.services.keys().cloned().collect();
        assert_eq!(found, expected, "after {syncs:?}");
        assert_eq!(
            failing.is_every_change_refused(),
            is_every_change_refused,
            "after {syncs:?}"
        );
    }

    #[test]
    fn the_kernel_is_at_fault_when_several_begin_to_fail_and_nothing_is_programmed() {
        let refused = || Error::Injected("apply");
        check(&[(&[], &["a"]), (&[], &["a"])], refused, &["a"], false);
        check(&[(&[], &["a", "a"])], refused, &["a"], false);
        check(&[(&[], &["a", "b"])], refused, &["a", "b"], true);
        check(&[(&[], &["a"]), (&[], &["b"])], refused, &["a", "b"], true);
        check(&[(&["c"], &["a", "b"])], full, &["a", "b"], false);
        check(&[(&[], &["a", "b"])], full, &["a", "b"], false);
        // Something was programmed since: it takes the others.
        check(&[(&[], &["a", "b"]), (&["c"], &[])], refused, &["a", "b"], false);
        check(
            &[(&[], &["a", "b"]), (&["c"], &[]), (&[], &["a", "b"])],
            refused,
            &["a", "b"],
            false,
        );
        check(&[(&[], &["a", "b"]), (&["b"], &[])], refused, &["a"], false);
        // What was applied and then lost again is not there.
        check(&[(&[], &["a"]), (&["a"], &["a"])], refused, &["a"], false);
        check(&[(&[], &["a"]), (&["a"], &[])], refused, &[], false);
    }

    #[test]
    fn each_is_counted_once_and_told_with_all_its_errors() {
        let mut failing = FailingServices::default();
        let failures = [
            (name("web"), full()),
            (name("web"), Error::Injected("apply")),
            (name("api"), Error::Exhausted { what: "mark" }),
        ];
        let tried = Tried {
            applied: &[],
            failures: &failures,
        };
        failing.synced(tried, &Snapshot::default(), &Snapshot::default());
        assert_eq!((failing.count(), failing.map_full()), (2, 1));
        let problem = "degraded: default/api: no free mark is left (and 1 more Services)";
        assert_eq!(failing.problem().as_deref(), Some(problem));

        // An audit that could not look at everything settles nothing.
        failing.audited([], false, &Snapshot::default());
        assert_eq!(failing.count(), 2);
        let (web, error) = (name("web"), full());
        failing.audited([(&web, &error)], true, &Snapshot::default());
        assert_eq!((failing.count(), failing.map_full()), (1, 1));
        failing.audited([], true, &Snapshot::default());
        assert_eq!(failing.problem(), None);
    }
}
