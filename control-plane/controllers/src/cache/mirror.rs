//! The objects of one kind, and the rules by which news replaces them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use kube::Resource;
use kube::runtime::watcher::Event;
use model::ObjectName;

use super::{Change, Object, name_of};

/// Field management is of no use to a controller, and often half of an object's size.
pub(super) fn strip<K: Object>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object
}

/// How many deleted uids are remembered: enough to outlast the answers that are still under way.
const TOMBSTONES: usize = 1024;

/// The objects, and the rules by which news replaces them.
pub(super) struct Mirror<K> {
    pub(super) objects: BTreeMap<ObjectName, Arc<K>>,
    /// The list that is coming in, until it is complete.
    listing: Option<BTreeMap<ObjectName, Arc<K>>>,
    /// What was written since that list began: it may be missing there, and is no less true for that.
    written_meanwhile: BTreeSet<ObjectName>,
    tombstones: VecDeque<String>,
}

impl<K> Default for Mirror<K> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            listing: None,
            written_meanwhile: BTreeSet::new(),
            tombstones: VecDeque::new(),
        }
    }
}

impl<K: Object> Mirror<K> {
    pub(super) fn observe(&mut self, event: Event<K>) -> Vec<Change<K>> {
        match event {
            Event::Init => {
                self.listing = Some(BTreeMap::new());
                self.written_meanwhile.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                let object = Arc::new(strip(object));
                let listing = self.listing.get_or_insert_default();
                listing.insert(name_of(&*object), object);
                Vec::new()
            }
            Event::InitDone => self.replace_all(),
            Event::Apply(object) => self.put(Arc::new(strip(object))).into_iter().collect(),
            Event::Delete(object) => {
                let uid = object.meta().uid.clone().unwrap_or_default();
                self.forget(&name_of(&object), &uid).into_iter().collect()
            }
        }
    }

    fn replace_all(&mut self) -> Vec<Change<K>> {
        let listed = self.listing.take().unwrap_or_default();
        let kept = std::mem::take(&mut self.written_meanwhile);
        let gone: Vec<_> = self
            .objects
            .iter()
            .filter(|(name, _)| !listed.contains_key(name) && !kept.contains(name))
            .map(|(name, object)| (name.clone(), object.meta().uid.clone().unwrap_or_default()))
            .collect();
        let mut changes: Vec<_> = gone
            .iter()
            .filter_map(|(name, uid)| self.forget(name, uid))
            .collect();
        for (name, object) in listed {
            let change = if kept.contains(&name) {
                self.put(object)
            } else {
                self.set(object)
            };
            changes.extend(change);
        }
        changes
    }

    pub(super) fn note_written(&mut self, object: Arc<K>) -> Option<Change<K>> {
        if self.listing.is_some() {
            self.written_meanwhile.insert(name_of(&*object));
        }
        self.put(object)
    }

    /// Takes `object` unless something newer is known.
    fn put(&mut self, object: Arc<K>) -> Option<Change<K>> {
        let uid = object.meta().uid.as_ref();
        if uid.is_some_and(|uid| self.tombstones.contains(uid)) {
            return None;
        }
        let known = self.objects.get(&name_of(&*object));
        if known.is_some_and(|known| version(&**known) >= version(&*object)) {
            return None;
        }
        self.set(object)
    }

    fn set(&mut self, object: Arc<K>) -> Option<Change<K>> {
        let old = self.objects.insert(name_of(&*object), object.clone());
        let same = old.as_ref().is_some_and(|old| {
            old.meta().uid == object.meta().uid
                && old.meta().resource_version == object.meta().resource_version
        });
        (!same).then_some(Change {
            old,
            new: Some(object),
        })
    }

    pub(super) fn forget(&mut self, name: &ObjectName, uid: &str) -> Option<Change<K>> {
        if !self.tombstones.iter().any(|dead| dead == uid) {
            self.tombstones.push_back(uid.to_owned());
            if self.tombstones.len() > TOMBSTONES {
                self.tombstones.pop_front();
            }
        }
        let known = self.objects.get(name)?;
        if known.meta().uid.as_deref().unwrap_or_default() != uid {
            return None;
        }
        let old = self.objects.remove(name);
        Some(Change { old, new: None })
    }
}

/// Resource versions of one kind are comparable numbers (KEP-5504; true of every etcd-backed server before it
/// too). One that is not a number counts as newest, so that at worst the watch alone decides.
fn version<K: Resource>(object: &K) -> Option<u64> {
    object
        .meta()
        .resource_version
        .as_ref()
        .and_then(|version| version.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn object(name: &str, uid: &str, version: u64) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                uid: Some(uid.to_owned()),
                resource_version: Some(version.to_string()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    enum Step {
        Watch(Event<ConfigMap>),
        Write(ConfigMap),
    }
    use Step::{Watch, Write};

    #[track_caller]
    fn check(steps: Vec<Step>, expected: &[(&str, &str, u64)]) {
        let mut mirror = Mirror::default();
        for step in steps {
            match step {
                Watch(event) => drop(mirror.observe(event)),
                Write(object) => drop(mirror.note_written(Arc::new(object))),
            }
        }
        let held: Vec<_> = mirror
            .objects
            .values()
            .map(|o| {
                (
                    o.metadata.name.as_deref().unwrap(),
                    o.metadata.uid.as_deref().unwrap(),
                    version(&**o).unwrap(),
                )
            })
            .collect();
        assert_eq!(held, expected);
    }

    #[test]
    fn a_write_is_seen_at_once_and_stale_news_does_not_undo_it() {
        check(
            vec![
                Write(object("a", "1", 5)),
                Watch(Event::Apply(object("a", "1", 4))),
            ],
            &[("a", "1", 5)],
        );
        check(
            vec![
                Write(object("a", "1", 5)),
                Watch(Event::Apply(object("a", "1", 6))),
            ],
            &[("a", "1", 6)],
        );
    }

    #[test]
    fn an_answer_that_comes_after_the_objects_end_does_not_revive_it() {
        check(
            vec![
                Watch(Event::Apply(object("a", "1", 5))),
                Watch(Event::Delete(object("a", "1", 6))),
                Write(object("a", "1", 5)),
            ],
            &[],
        );
    }

    #[test]
    fn the_end_of_an_earlier_object_leaves_its_successor_of_the_same_name() {
        check(
            vec![
                Write(object("a", "2", 9)),
                Watch(Event::Delete(object("a", "1", 8))),
            ],
            &[("a", "2", 9)],
        );
    }

    #[test]
    fn a_new_list_replaces_everything_but_what_was_written_while_it_came_in() {
        check(
            vec![
                Write(object("old", "1", 1)),
                Watch(Event::Init),
                Write(object("new", "2", 7)),
                Watch(Event::InitApply(object("listed", "3", 2))),
                Watch(Event::InitDone),
            ],
            &[("listed", "3", 2), ("new", "2", 7)],
        );
    }
}
