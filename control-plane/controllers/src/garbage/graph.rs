//! Who owns whom, and what follows from it.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use model::ObjectName;

use crate::discovery::Kind;

/// The finalizer of an object whose dependents are to be let go.
pub(crate) const ORPHAN: &str = "orphan";
/// The finalizer of an object whose dependents are to go first.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
/// How many uids of objects that are gone are remembered.
const REMEMBERED: usize = 10_000;

/// An object, as far as its owners and dependents are concerned.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub uid: String,
    pub kind: Arc<Kind>,
    pub name: ObjectName,
    pub owners: Vec<OwnerReference>,
    pub is_deleting: bool,
    pub finalizers: Vec<String>,
}

impl Node {
    /// Reads it from an object's metadata; `None` for one without uid, which no server hands out.
    pub fn new(kind: &Arc<Kind>, meta: &ObjectMeta) -> Option<Self> {
        Some(Self {
            uid: meta.uid.clone()?,
            kind: Arc::clone(kind),
            name: ObjectName::new(
                meta.namespace.clone().unwrap_or_default(),
                meta.name.clone().unwrap_or_default(),
            ),
            owners: meta.owner_references.clone().unwrap_or_default(),
            is_deleting: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
        })
    }

    fn waits_for_dependents(&self) -> bool {
        self.is_deleting && self.finalizers.iter().any(|finalizer| finalizer == FOREGROUND)
    }

    fn is_blocking(&self, owner: &str) -> bool {
        self.owners
            .iter()
            .any(|reference| reference.uid == owner && reference.block_owner_deletion == Some(true))
    }
}

/// How it stands with an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Present,
    /// It is being deleted, and waits for its dependents to go first.
    Waiting,
    Gone,
}

/// What to do with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Keep,
    /// Some owner is left: only the references to the others go.
    Unlink(Vec<String>),
    Delete,
    /// Its owner waits for it, and it has dependents of its own that go before it.
    DeleteForeground,
}

/// Judges an object by its owners (upstream's `attemptToDeleteItem`).
pub(crate) fn verdict(owners: &[(String, Owner)], has_blocking_dependents: bool) -> Verdict {
    let uids = |wanted: &[Owner]| -> Vec<String> {
        owners
            .iter()
            .filter(|(_, owner)| wanted.contains(owner))
            .map(|(uid, _)| uid.clone())
            .collect()
    };
    let leaving = uids(&[Owner::Waiting, Owner::Gone]);
    if leaving.is_empty() {
        Verdict::Keep
    } else if leaving.len() < owners.len() {
        Verdict::Unlink(leaving)
    } else if !uids(&[Owner::Waiting]).is_empty() && has_blocking_dependents {
        Verdict::DeleteForeground
    } else {
        Verdict::Delete
    }
}

/// All objects that were seen.
#[derive(Default)]
pub(crate) struct Graph {
    nodes: HashMap<String, Node>,
    /// Uids of dependents by the uid of the owner, whether that is known or not.
    dependents: HashMap<String, BTreeSet<String>>,
    gone: HashSet<String>,
    gone_in_order: VecDeque<String>,
}

impl Graph {
    /// The object with this uid.
    pub fn node(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// Takes in what an object is now. Returns the uids to look at.
    pub fn observe(&mut self, node: Node) -> Vec<String> {
        let before = self.nodes.remove(&node.uid);
        for owner in before.iter().flat_map(|before| &before.owners) {
            self.unlink(&owner.uid, &node.uid);
        }
        for owner in &node.owners {
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(node.uid.clone());
        }
        let is_news = before.as_ref().is_none_or(|before| {
            before.owners != node.owners
                || before.is_deleting != node.is_deleting
                || before.finalizers != node.finalizers
        });
        let concerns_us = !node.owners.is_empty() || node.is_deleting && !node.finalizers.is_empty();
        let uid = node.uid.clone();
        self.nodes.insert(uid.clone(), node);
        if is_news && concerns_us {
            vec![uid]
        } else {
            Vec::new()
        }
    }

    /// Takes in that an object is gone. Returns the uids to look at: its dependents, and the owners that wait
    /// for it.
    pub fn forget(&mut self, uid: &str) -> Vec<String> {
        self.note_absent(uid);
        let mut concerned: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        if let Some(node) = self.nodes.remove(uid) {
            for owner in &node.owners {
                self.unlink(&owner.uid, uid);
                if self.nodes.get(&owner.uid).is_some_and(Node::waits_for_dependents) {
                    concerned.push(owner.uid.clone());
                }
            }
        }
        concerned
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    /// Remembers that no object has this uid. A uid never comes back.
    pub fn note_absent(&mut self, uid: &str) {
        if self.gone.insert(uid.to_owned()) {
            self.gone_in_order.push_back(uid.to_owned());
            if self.gone_in_order.len() > REMEMBERED
                && let Some(oldest) = self.gone_in_order.pop_front()
            {
                self.gone.remove(&oldest);
            }
        }
    }

    /// How it stands with an owner, as far as that is known.
    pub fn owner(&self, reference: &OwnerReference) -> Option<Owner> {
        match self.nodes.get(&reference.uid) {
            Some(node) if node.waits_for_dependents() => Some(Owner::Waiting),
            Some(_) => Some(Owner::Present),
            None => self.gone.contains(&reference.uid).then_some(Owner::Gone),
        }
    }

    /// The objects that name this owner.
    pub fn dependents(&self, uid: &str) -> Vec<Node> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| self.nodes.get(uid)).cloned().collect()
    }

    /// Those among them that the owner's foreground deletion waits for.
    pub fn blocking_dependents(&self, uid: &str) -> Vec<Node> {
        let mut dependents = self.dependents(uid);
        dependents.retain(|dependent| dependent.is_blocking(uid));
        dependents
    }

    /// The uids of all objects of one kind.
    pub fn of_kind(&self, kind: &Kind) -> Vec<String> {
        let nodes = self.nodes.values().filter(|node| {
            node.kind.resource.kind == kind.resource.kind && node.kind.resource.group == kind.resource.group
        });
        nodes.map(|node| node.uid.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Owner::{Gone, Present, Waiting};

    #[track_caller]
    fn check(owners: &[Owner], has_blocking_dependents: bool, expected: Verdict) {
        let owners: Vec<_> = owners
            .iter()
            .enumerate()
            .map(|(i, owner)| (i.to_string(), *owner))
            .collect();
        assert_eq!(verdict(&owners, has_blocking_dependents), expected);
    }

    #[test]
    fn an_object_goes_when_its_last_owner_does() {
        check(&[], false, Verdict::Keep);
        check(&[Present], false, Verdict::Keep);
        check(&[Gone], false, Verdict::Delete);
        check(&[Gone, Gone], true, Verdict::Delete);
        check(&[Gone, Present], false, Verdict::Unlink(vec!["0".into()]));
        check(
            &[Present, Waiting, Gone],
            false,
            Verdict::Unlink(vec!["1".into(), "2".into()]),
        );
        check(&[Waiting], false, Verdict::Delete);
        check(&[Waiting, Gone], true, Verdict::DeleteForeground);
    }

    fn node(uid: &str, owners: &[&str], finalizers: &[&str]) -> Node {
        let kind = Arc::new(Kind::for_tests());
        let owners: Vec<_> = owners
            .iter()
            .map(|uid| OwnerReference {
                uid: (*uid).to_owned(),
                block_owner_deletion: Some(true),
                ..OwnerReference::default()
            })
            .collect();
        let meta = ObjectMeta {
            uid: Some(uid.to_owned()),
            owner_references: Some(owners),
            finalizers: Some(finalizers.iter().map(|name| (*name).to_owned()).collect()),
            ..ObjectMeta::default()
        };
        Node {
            is_deleting: !finalizers.is_empty(),
            ..Node::new(&kind, &meta).unwrap()
        }
    }

    #[test]
    fn the_end_of_an_owner_calls_for_a_look_at_its_dependents_and_the_end_of_a_dependent_at_a_waiting_owner()
    {
        let mut graph = Graph::default();
        assert_eq!(graph.observe(node("owner", &[], &[])), [] as [&str; 0]);
        assert_eq!(graph.observe(node("b", &["owner"], &[])), ["b"]);
        assert_eq!(graph.observe(node("a", &["owner"], &[])), ["a"]);
        assert_eq!(graph.observe(node("a", &["owner"], &[])), [] as [&str; 0]);
        assert_eq!(graph.observe(node("owner", &[], &[FOREGROUND])), ["owner"]);
        assert_eq!(graph.forget("a"), ["owner"]);
        let left: Vec<_> = graph
            .blocking_dependents("owner")
            .into_iter()
            .map(|node| node.uid)
            .collect();
        assert_eq!(left, ["b"]);
        assert_eq!(graph.forget("owner"), ["b"]);
        assert_eq!(graph.owner(&node("b", &["owner"], &[]).owners[0]), Some(Gone));
    }

    #[test]
    fn owners_come_before_or_after_their_dependents() {
        for order in [["owner", "a"], ["a", "owner"]] {
            let mut graph = Graph::default();
            for uid in order {
                graph.observe(if uid == "a" {
                    node("a", &["owner"], &[])
                } else {
                    node("owner", &[], &[])
                });
            }
            let dependents: Vec<_> = graph
                .dependents("owner")
                .into_iter()
                .map(|node| node.uid)
                .collect();
            assert_eq!(dependents, ["a"]);
        }
    }
}
