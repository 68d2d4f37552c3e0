//! `etcdserverpb.KV`.

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKvService, PbPutRequest,
    PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse, PbTxnRequest, PbTxnResponse,
};
use prost::Message;
use tokio_stream::Empty;
use tonic::{Request, Response, Status};

use super::{Service, administrators_only, message, scope, status};
use crate::{
    mvcc::{Applied, Op, OpResult, check_txn},
    scope::Scope,
};

/// etcd's defaults of `--max-txn-ops` and `--max-request-bytes`.
const MAX_TXN_OPS: usize = 128;
const MAX_REQUEST_BYTES: usize = 1536 * 1024;

#[tonic::async_trait]
impl PbKvService for Service {
    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        let scope = scope(&request);
        let range = message::range(request.into_inner())?;
        if !scope.permits(&range.keys) {
            return Err(status::permission_denied());
        }
        let result = self.engine.range(&range)?;
        Ok(Response::new(message::range_response(
            self.header(result.revision),
            result,
        )))
    }

    type RangeStreamStream = Empty<Result<PbRangeStreamResponse, Status>>;

    async fn range_stream(
        &self,
        _: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(status::unsupported("RangeStream"))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        let (scope, request) = open(request)?;
        let applied = self.write(scope, Op::Put(message::put(request)?)).await?;
        let OpResult::Put { revision, prev } = applied.result else {
            return Err(mismatch());
        };
        Ok(Response::new(message::put_response(
            self.header(revision),
            revision,
            prev.as_deref(),
        )))
    }

    async fn delete_range(
        &self,
        request: Request<PbDeleteRequest>,
    ) -> Result<Response<PbDeleteResponse>, Status> {
        let (scope, request) = open(request)?;
        let applied = self.write(scope, Op::Delete(message::delete(request)?)).await?;
        let OpResult::Delete {
            revision,
            deleted,
            prev,
        } = applied.result
        else {
            return Err(mismatch());
        };
        Ok(Response::new(message::delete_response(
            self.header(revision),
            revision,
            deleted,
            &prev,
        )))
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        let (scope, request) = open(request)?;
        let txn = message::txn(request)?;
        check_txn(&txn, MAX_TXN_OPS)?;
        let Applied { result, revision } = self.write(scope, Op::Txn(txn)).await?;
        let OpResult::Txn { succeeded, results } = result else {
            return Err(mismatch());
        };
        Ok(Response::new(message::txn_response(
            self.header(revision),
            succeeded,
            results,
        )))
    }

    async fn compact(
        &self,
        request: Request<PbCompactionRequest>,
    ) -> Result<Response<PbCompactionResponse>, Status> {
        administrators_only(&request)?;
        let PbCompactionRequest { revision, physical } = request.into_inner();
        let now = self.engine.compact(revision, physical).await?;
        Ok(Response::new(PbCompactionResponse {
            header: Some(self.header(now)),
        }))
    }
}

impl Service {
    /// Does what the client may do.
    pub(super) async fn write(&self, scope: Scope, op: Op) -> Result<Applied, Status> {
        if !scope.permits_op(&op) {
            return Err(status::permission_denied());
        }
        Ok(self.engine.apply(op, scope).await?)
    }
}

/// What the client may touch, and its request, which has a bound.
pub(super) fn open<T: Message>(request: Request<T>) -> Result<(Scope, T), Status> {
    let scope = scope(&request);
    let message = request.into_inner();
    if message.encoded_len() > MAX_REQUEST_BYTES {
        return Err(status::request_too_large());
    }
    Ok((scope, message))
}

pub(super) fn mismatch() -> Status {
    Status::internal("the answer does not belong to the operation")
}
