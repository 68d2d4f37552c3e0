//! Running an operation: decide the path, check it, then write. Only the last step changes anything, and it cannot fail.

use std::{cmp::Ordering, collections::BTreeSet, sync::Arc};

use bytes::Bytes;

use super::{
    Applied, Compare, Delete, Entry, Error, Event, EventId, Keyspace, LeaseChange, LeaseId, Leases, Op,
    OpResult, Put, Range, Relation, Revision, Target,
};

/// An operation whose comparisons are decided.
enum Step<'a> {
    Range(&'a Range),
    Put(&'a Put),
    Delete(&'a Delete),
    Txn { succeeded: bool, steps: Vec<Step<'a>> },
}

impl Keyspace {
    /// Runs the operation at the next revision, all of it or (on an error) nothing.
    pub fn apply(&mut self, op: &Op, leases: &mut Leases) -> Result<Applied, Error> {
        let step = self.decide(op);
        self.check_puts(&step, leases)?;
        self.check_ranges(&step)?;
        let mut write = Write {
            revision: self.revision() + 1,
            keyspace: self,
            leases,
            events: Vec::new(),
        };
        let result = write.run(&step);
        let events = write.events;
        self.close_revision(events);
        Ok(Applied {
            result,
            revision: self.revision(),
        })
    }

    /// Ends a lease: its keys are deleted in one revision.
    pub fn revoke(&mut self, id: LeaseId, leases: &mut Leases) -> Result<Revision, Error> {
        let keys: BTreeSet<Bytes> = leases.remove(id).ok_or(Error::LeaseNotFound)?;
        let mut write = Write {
            revision: self.revision() + 1,
            keyspace: self,
            leases,
            events: Vec::new(),
        };
        for key in keys {
            write.delete_key(key);
        }
        let events = write.events;
        self.close_revision(events);
        Ok(self.revision())
    }

    /// Comparisons all see the state before the transaction, nested ones too.
    fn decide<'a>(&self, op: &'a Op) -> Step<'a> {
        let txn = match op {
            Op::Range(range) => return Step::Range(range),
            Op::Put(put) => return Step::Put(put),
            Op::Delete(delete) => return Step::Delete(delete),
            Op::Txn(txn) => txn,
        };
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &txn.success } else { &txn.failure };
        Step::Txn {
            succeeded,
            steps: ops.iter().map(|op| self.decide(op)).collect(),
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let mut found = self.entries(&compare.keys, self.revision()).peekable();
        if found.peek().is_none() {
            return compare.holds_for_absent();
        }
        found.all(|entry| compare.holds_for(entry))
    }

    /// All puts are checked before all ranges, as in etcd: where both are wrong the client is told of the put.
    fn check_puts(&self, step: &Step<'_>, leases: &Leases) -> Result<(), Error> {
        match step {
            Step::Put(put) => {
                let keeps = put.value.is_none() || put.lease == LeaseChange::Keep;
                if keeps && self.entry(&put.key, self.revision()).is_none() {
                    return Err(Error::KeyNotFound);
                }
                match put.lease {
                    LeaseChange::Set(Some(id)) if !leases.contains(id) => Err(Error::LeaseNotFound),
                    LeaseChange::Set(_) | LeaseChange::Keep => Ok(()),
                }
            }
            Step::Txn { steps, .. } => steps.iter().try_for_each(|step| self.check_puts(step, leases)),
            Step::Range(_) | Step::Delete(_) => Ok(()),
        }
    }

    fn check_ranges(&self, step: &Step<'_>) -> Result<(), Error> {
        match step {
            Step::Range(range) => self.readable(range.revision, self.revision()).map(drop),
            Step::Txn { steps, .. } => steps.iter().try_for_each(|step| self.check_ranges(step)),
            Step::Put(_) | Step::Delete(_) => Ok(()),
        }
    }
}

/// A write transaction under way; its events carry the revision that it will end as.
struct Write<'a> {
    keyspace: &'a mut Keyspace,
    leases: &'a mut Leases,
    revision: Revision,
    events: Vec<Event>,
}

impl Write<'_> {
    fn run(&mut self, step: &Step<'_>) -> OpResult {
        match step {
            Step::Range(range) => {
                let now = self.now();
                OpResult::Range(self.keyspace.range_at(range, range.revision.unwrap_or(now), now))
            }
            Step::Put(put) => self.put(put),
            Step::Delete(delete) => self.delete(delete),
            Step::Txn { succeeded, steps } => {
                let results = steps.iter().map(|step| self.run(step)).collect();
                OpResult::Txn {
                    succeeded: *succeeded,
                    results,
                }
            }
        }
    }

    /// The transaction sees its own writes.
    fn now(&self) -> Revision {
        if self.events.is_empty() {
            self.revision - 1
        } else {
            self.revision
        }
    }

    fn put(&mut self, put: &Put) -> OpResult {
        let prev = self.keyspace.entry(&put.key, self.revision).cloned();
        let old_lease = prev.as_ref().and_then(|prev| prev.lease);
        let lease = match put.lease {
            LeaseChange::Set(lease) => lease,
            LeaseChange::Keep => old_lease,
        };
        let kept_value = || prev.as_ref().map(|prev| prev.value.clone()).unwrap_or_default();
        let entry = Entry {
            key: put.key.clone(),
            value: put.value.clone().unwrap_or_else(kept_value),
            create_revision: prev.as_ref().map_or(self.revision, |prev| prev.create_revision),
            mod_revision: self.revision,
            version: prev.as_ref().map_or(1, |prev| prev.version + 1),
            lease,
        };
        if let Some(id) = old_lease {
            self.leases.detach(id, &put.key);
        }
        if let Some(id) = lease {
            self.leases.attach(id, put.key.clone());
        }
        self.record(put.key.clone(), Some(Arc::new(entry)));
        OpResult::Put {
            revision: self.revision,
            prev: prev.filter(|_| put.prev_kv),
        }
    }

    fn delete(&mut self, delete: &Delete) -> OpResult {
        let found: Vec<Arc<Entry>> = self
            .keyspace
            .entries(&delete.keys, self.revision)
            .cloned()
            .collect();
        for entry in &found {
            if let Some(id) = entry.lease {
                self.leases.detach(id, &entry.key);
            }
            self.delete_key(entry.key.clone());
        }
        let deleted = found.len();
        let prev = if delete.prev_kv { found } else { Vec::new() };
        OpResult::Delete {
            revision: self.now(),
            deleted,
            prev,
        }
    }

    fn delete_key(&mut self, key: Bytes) {
        self.record(key, None);
    }

    fn record(&mut self, key: Bytes, entry: Option<Arc<Entry>>) {
        let sub =
            u32::try_from(self.events.len()).expect("invariant: a transaction has fewer than 2^32 events");
        let event = Event {
            id: EventId {
                revision: self.revision,
                sub,
            },
            key: key.clone(),
            entry,
        };
        self.keyspace.keys.entry(key).or_default().push(event.clone());
        self.events.push(event);
    }
}

impl Compare {
    fn holds_for_absent(&self) -> bool {
        let ordering = match &self.target {
            // An absent value cannot be told from an empty one on the wire, so that neither equals anything.
            Target::Value(_) => return false,
            Target::Version(given)
            | Target::CreateRevision(given)
            | Target::ModRevision(given)
            | Target::Lease(given) => 0.cmp(given),
        };
        self.relation.accepts(ordering)
    }

    fn holds_for(&self, entry: &Entry) -> bool {
        let ordering = match &self.target {
            Target::Version(given) => entry.version.cmp(given),
            Target::CreateRevision(given) => entry.create_revision.cmp(given),
            Target::ModRevision(given) => entry.mod_revision.cmp(given),
            Target::Value(given) => entry.value.cmp(given),
            Target::Lease(given) => entry.lease.map_or(0, LeaseId::get).cmp(given),
        };
        self.relation.accepts(ordering)
    }
}

impl Relation {
    fn accepts(self, ordering: Ordering) -> bool {
        match self {
            Relation::Equal => ordering.is_eq(),
            Relation::Greater => ordering.is_gt(),
            Relation::Less => ordering.is_lt(),
            Relation::NotEqual => ordering.is_ne(),
        }
    }
}
