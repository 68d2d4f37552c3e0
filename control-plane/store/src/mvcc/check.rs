//! What makes a transaction unacceptable before it is run (`server/etcdserver/api/v3rpc/key.go`).

use std::collections::HashSet;

use bytes::Bytes;

use super::{Error, KeyRange, Op, Txn};

/// The operations of a transaction and of all that are nested in it, comparisons included. etcd has no such bound, and
/// what fits into a request could keep it busy for minutes.
const MAX_NESTED_OPS: usize = 512;

/// Refuses a transaction with more than `max_ops` operations in one list (those of the transactions around it count),
/// one with more than `MAX_NESTED_OPS` of them in all, and one that could write a key twice in one revision.
pub fn check_txn(txn: &Txn, max_ops: usize) -> Result<(), Error> {
    check_size(txn, max_ops)?;
    if count(txn) > MAX_NESTED_OPS {
        return Err(Error::TooManyOps);
    }
    Writes::of(&txn.success)?;
    Writes::of(&txn.failure)?;
    Ok(())
}

fn count(txn: &Txn) -> usize {
    let Txn {
        compares,
        success,
        failure,
    } = txn;
    let nested = success.iter().chain(failure).map(|op| match op {
        Op::Txn(inner) => 1 + count(inner),
        _ => 1,
    });
    compares.len() + nested.sum::<usize>()
}

fn check_size(txn: &Txn, max_ops: usize) -> Result<(), Error> {
    let size = txn.compares.len().max(txn.success.len()).max(txn.failure.len());
    let left = max_ops.checked_sub(size).ok_or(Error::TooManyOps)?;
    txn.success
        .iter()
        .chain(&txn.failure)
        .try_for_each(|op| match op {
            Op::Txn(inner) => check_size(inner, left),
            _ => Ok(()),
        })
}

/// What a list of operations may write. As in etcd, deletes may overlap each other, and the two lists of a nested
/// transaction may put the same key, since only one of them runs.
#[derive(Default)]
struct Writes {
    puts: HashSet<Bytes>,
    deletes: Vec<KeyRange>,
}

impl Writes {
    fn of(ops: &[Op]) -> Result<Self, Error> {
        let mut writes = Self::default();
        for op in ops {
            if let Op::Delete(delete) = op {
                writes.deletes.push(delete.keys.clone());
            }
        }
        for op in ops {
            if let Op::Txn(txn) = op {
                writes.add_nested(Self::of(&txn.success)?, Self::of(&txn.failure)?)?;
            }
        }
        for op in ops {
            if let Op::Put(put) = op {
                writes.add_put(&put.key)?;
            }
        }
        Ok(writes)
    }

    fn add_nested(&mut self, success: Writes, failure: Writes) -> Result<(), Error> {
        for key in &success.puts {
            self.add_put(key)?;
        }
        for key in &failure.puts {
            if success.puts.contains(key) {
                continue;
            }
            self.add_put(key)?;
        }
        self.deletes.extend(success.deletes);
        self.deletes.extend(failure.deletes);
        Ok(())
    }

    fn add_put(&mut self, key: &Bytes) -> Result<(), Error> {
        let deleted = self.deletes.iter().any(|keys| keys.contains(key));
        if deleted || !self.puts.insert(key.clone()) {
            return Err(Error::DuplicateKey);
        }
        Ok(())
    }
}
