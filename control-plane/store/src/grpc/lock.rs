//! `v3lockpb.Lock` (`server/etcdserver/api/v3lock`). The crate has no server of it: its few messages stand here.

use bytes::Bytes;
use etcd_client::proto::{PbLockResponse, PbUnlockResponse};
use tonic::{Request, Response, Status, body::Body};

use super::{Service, by_hand, kv, status};
use crate::mvcc::{Delete, KeyRange, Op, Range};

#[derive(Clone, PartialEq, prost::Message)]
struct LockRequest {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
    #[prost(int64, tag = "2")]
    lease: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UnlockRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

by_hand::service!(Lock, "v3lockpb.Lock", answer);

async fn answer(service: Service, request: http::Request<Body>) -> http::Response<Body> {
    match request.uri().path() {
        "/v3lockpb.Lock/Lock" => by_hand::unary(request, |request| service.clone().lock(request)).await,
        "/v3lockpb.Lock/Unlock" => by_hand::unary(request, |request| service.clone().unlock(request)).await,
        _ => by_hand::no_such_call(),
    }
}

impl Service {
    async fn lock(self, request: Request<LockRequest>) -> Result<Response<PbLockResponse>, Status> {
        let (scope, LockRequest { name, lease }) = kv::open(request)?;
        let lease = self.lease_or_new(lease, &scope).await?;
        let place = self.enter(&scope, &name, lease, Bytes::new()).await?.place;
        let revision = self.turn(&scope, &name, &place).await?;
        let own = self
            .engine
            .range(&Range::all(KeyRange::single(place.key.clone())))?;
        if own.entries.is_empty() {
            return Err(status::lock_lost());
        }
        Ok(Response::new(PbLockResponse {
            header: Some(self.header(revision)),
            key: place.key.to_vec(),
        }))
    }

    async fn unlock(self, request: Request<UnlockRequest>) -> Result<Response<PbUnlockResponse>, Status> {
        let (scope, UnlockRequest { key }) = kv::open(request)?;
        if key.is_empty() {
            return Err(status::empty_key());
        }
        let delete = Delete {
            keys: KeyRange::single(key),
            prev_kv: false,
        };
        let revision = self.write(scope, Op::Delete(delete)).await?.revision;
        Ok(Response::new(PbUnlockResponse {
            header: Some(self.header(revision)),
        }))
    }
}
