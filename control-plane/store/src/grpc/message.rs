//! Between the protocol's messages and the key space's operations.

use std::{ops::RangeInclusive, sync::Arc};

use bytes::Bytes;
use etcd_client::{
    CompareOp, SortOrder, SortTarget,
    proto::{
        PbCompare, PbDeleteRequest, PbDeleteResponse, PbPutRequest, PbPutResponse, PbRangeRequest,
        PbRangeResponse, PbResponseHeader, PbResponseOp, PbTargetUnion, PbTxnOpRequest, PbTxnOpResponse,
        PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
    },
};
use tonic::Status;

use super::status;
use crate::{
    disk::key_value,
    mvcc::{
        Compare, Delete, Entry, KeyRange, LeaseChange, LeaseId, Op, OpResult, Order, Put, Range, RangeResult,
        Relation, Revision, Sort, SortBy, Target, Txn,
    },
};

/// The fields that `compare::CompareTarget` names, by number.
const COMPARE_VERSION: i32 = 0;
const COMPARE_CREATE: i32 = 1;
const COMPARE_MOD: i32 = 2;
const COMPARE_VALUE: i32 = 3;
const COMPARE_LEASE: i32 = 4;

pub fn range(request: PbRangeRequest) -> Result<Range, Status> {
    let PbRangeRequest {
        key,
        range_end,
        limit,
        revision,
        sort_order,
        sort_target,
        serializable: _,
        keys_only,
        count_only,
        min_mod_revision,
        max_mod_revision,
        min_create_revision,
        max_create_revision,
    } = request;
    if key.is_empty() {
        return Err(status::empty_key());
    }
    Ok(Range {
        keys: KeyRange::from_protocol(key, range_end),
        revision: (revision > 0).then_some(revision),
        limit: usize::try_from(limit).ok().filter(|limit| *limit > 0),
        sort: Some(sort(sort_order, sort_target)?),
        keys_only,
        count_only,
        mod_revisions: between(min_mod_revision, max_mod_revision),
        create_revisions: between(min_create_revision, max_create_revision),
    })
}

/// In the protocol 0 means no bound.
fn between(min: Revision, max: Revision) -> RangeInclusive<Revision> {
    min..=if max == 0 { Revision::MAX } else { max }
}

fn sort(order: i32, target: i32) -> Result<Sort, Status> {
    const ORDERS: [(i32, Option<Order>); 3] = [
        (SortOrder::None as i32, None),
        (SortOrder::Ascend as i32, Some(Order::Ascending)),
        (SortOrder::Descend as i32, Some(Order::Descending)),
    ];
    const TARGETS: [(i32, SortBy); 5] = [
        (SortTarget::Key as i32, SortBy::Key),
        (SortTarget::Version as i32, SortBy::Version),
        (SortTarget::Create as i32, SortBy::CreateRevision),
        (SortTarget::Mod as i32, SortBy::ModRevision),
        (SortTarget::Value as i32, SortBy::Value),
    ];
    let order = ORDERS
        .iter()
        .find(|(number, _)| *number == order)
        .ok_or_else(status::invalid_sort_option)?
        .1;
    let by = TARGETS
        .iter()
        .find(|(number, _)| *number == target)
        .ok_or_else(status::invalid_sort_option)?
        .1;
    Ok(Sort { by, order })
}

pub fn put(request: PbPutRequest) -> Result<Put, Status> {
    let PbPutRequest {
        key,
        value,
        lease,
        prev_kv,
        ignore_value,
        ignore_lease,
    } = request;
    if key.is_empty() {
        return Err(status::empty_key());
    }
    if ignore_value && !value.is_empty() {
        return Err(status::value_provided());
    }
    if ignore_lease && lease != 0 {
        return Err(status::lease_provided());
    }
    let value = (!ignore_value).then(|| Bytes::from(value));
    let lease = if ignore_lease {
        LeaseChange::Keep
    } else {
        LeaseChange::Set(LeaseId::from_protocol(lease))
    };
    Ok(Put {
        key: key.into(),
        value,
        lease,
        prev_kv,
    })
}

pub fn delete(request: PbDeleteRequest) -> Result<Delete, Status> {
    let PbDeleteRequest {
        key,
        range_end,
        prev_kv,
    } = request;
    if key.is_empty() {
        return Err(status::empty_key());
    }
    Ok(Delete {
        keys: KeyRange::from_protocol(key, range_end),
        prev_kv,
    })
}

pub fn txn(request: PbTxnRequest) -> Result<Txn, Status> {
    let PbTxnRequest {
        compare: compares,
        success,
        failure,
    } = request;
    Ok(Txn {
        compares: compares.into_iter().map(compare).collect::<Result<_, _>>()?,
        success: success.into_iter().map(op).collect::<Result<_, _>>()?,
        failure: failure.into_iter().map(op).collect::<Result<_, _>>()?,
    })
}

fn op(request: PbTxnRequestOp) -> Result<Op, Status> {
    Ok(match request.request {
        Some(PbTxnOpRequest::RequestRange(request)) => Op::Range(range(request)?),
        Some(PbTxnOpRequest::RequestPut(request)) => Op::Put(put(request)?),
        Some(PbTxnOpRequest::RequestDeleteRange(request)) => Op::Delete(delete(request)?),
        Some(PbTxnOpRequest::RequestTxn(request)) => Op::Txn(txn(request)?),
        // etcd's answer to an operation that is none (`checkRequestOp`).
        None => return Err(crate::mvcc::Error::KeyNotFound.into()),
    })
}

/// A given value of another field than the one that is compared counts as zero, as in etcd (`compareKV`).
fn compare(request: PbCompare) -> Result<Compare, Status> {
    let PbCompare {
        result,
        target,
        key,
        range_end,
        target_union: given,
    } = request;
    if key.is_empty() {
        return Err(status::empty_key());
    }
    let target = match (target, given) {
        (COMPARE_VERSION, Some(PbTargetUnion::Version(version))) => Target::Version(version),
        (COMPARE_VERSION, _) => Target::Version(0),
        (COMPARE_CREATE, Some(PbTargetUnion::CreateRevision(revision))) => Target::CreateRevision(revision),
        (COMPARE_CREATE, _) => Target::CreateRevision(0),
        (COMPARE_MOD, Some(PbTargetUnion::ModRevision(revision))) => Target::ModRevision(revision),
        (COMPARE_MOD, _) => Target::ModRevision(0),
        (COMPARE_VALUE, Some(PbTargetUnion::Value(value))) => Target::Value(value.into()),
        (COMPARE_VALUE, _) => Target::Value(Bytes::new()),
        (COMPARE_LEASE, Some(PbTargetUnion::Lease(lease))) => Target::Lease(lease),
        (COMPARE_LEASE, _) => Target::Lease(0),
        _ => return Err(status::invalid_field("compare target")),
    };
    Ok(Compare {
        keys: KeyRange::from_protocol(key, range_end),
        relation: relation(result)?,
        target,
    })
}

fn relation(number: i32) -> Result<Relation, Status> {
    const RELATIONS: [(i32, Relation); 4] = [
        (CompareOp::Equal as i32, Relation::Equal),
        (CompareOp::Greater as i32, Relation::Greater),
        (CompareOp::Less as i32, Relation::Less),
        (CompareOp::NotEqual as i32, Relation::NotEqual),
    ];
    let found = RELATIONS.iter().find(|(known, _)| *known == number);
    found
        .map(|(_, relation)| *relation)
        .ok_or_else(|| status::invalid_field("compare result"))
}

pub fn range_response(header: PbResponseHeader, result: RangeResult) -> PbRangeResponse {
    let RangeResult {
        revision,
        entries,
        count,
        more,
        keys_only,
    } = result;
    let kvs = entries.iter().map(|entry| {
        if keys_only {
            key_value(&without_value(entry))
        } else {
            key_value(entry)
        }
    });
    PbRangeResponse {
        header: Some(PbResponseHeader { revision, ..header }),
        kvs: kvs.collect(),
        more,
        count: wide(count),
    }
}

fn without_value(entry: &Entry) -> Entry {
    Entry {
        value: Bytes::new(),
        ..entry.clone()
    }
}

pub fn put_response(header: PbResponseHeader, revision: Revision, prev: Option<&Entry>) -> PbPutResponse {
    PbPutResponse {
        header: Some(PbResponseHeader { revision, ..header }),
        prev_kv: prev.map(key_value),
    }
}

pub fn delete_response(
    header: PbResponseHeader,
    revision: Revision,
    deleted: usize,
    prev: &[Arc<Entry>],
) -> PbDeleteResponse {
    PbDeleteResponse {
        header: Some(PbResponseHeader { revision, ..header }),
        deleted: wide(deleted),
        prev_kvs: prev.iter().map(|entry| key_value(entry)).collect(),
    }
}

pub fn txn_response(header: PbResponseHeader, succeeded: bool, results: Vec<OpResult>) -> PbTxnResponse {
    let responses = results.into_iter().map(|result| PbResponseOp {
        response: Some(op_response(result)),
    });
    PbTxnResponse {
        header: Some(header),
        succeeded,
        responses: responses.collect(),
    }
}

/// The headers within a transaction's answer carry only the revision, as etcd's do.
fn op_response(result: OpResult) -> PbTxnOpResponse {
    let header = PbResponseHeader::default();
    match result {
        OpResult::Range(result) => PbTxnOpResponse::ResponseRange(range_response(header, result)),
        OpResult::Put { revision, prev } => {
            PbTxnOpResponse::ResponsePut(put_response(header, revision, prev.as_deref()))
        }
        OpResult::Delete {
            revision,
            deleted,
            prev,
        } => PbTxnOpResponse::ResponseDeleteRange(delete_response(header, revision, deleted, &prev)),
        OpResult::Txn { succeeded, results } => {
            PbTxnOpResponse::ResponseTxn(txn_response(header, succeeded, results))
        }
    }
}

fn wide(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
