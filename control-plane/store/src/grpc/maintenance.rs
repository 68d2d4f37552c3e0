//! `etcdserverpb.Maintenance`: what has a meaning for one member.

use etcd_client::proto::{
    PbAlarmRequest, PbAlarmResponse, PbDefragmentRequest, PbDefragmentResponse, PbDowngradeRequest,
    PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest, PbHashResponse,
    PbMaintenanceService, PbMoveLeaderRequest, PbMoveLeaderResponse, PbSnapshotRequest, PbSnapshotResponse,
    PbStatusRequest, PbStatusResponse,
};
use tokio_stream::Empty;
use tonic::{Request, Response, Status};

use super::{Service, TERM, administrators_only, status};

/// The version of etcd that this server behaves like. Kubernetes asks for watch progress only from 3.5.13 on
/// (`apiserver/pkg/storage/feature/feature_support_checker.go`).
const VERSION: &str = "3.5.21";

#[tonic::async_trait]
impl PbMaintenanceService for Service {
    /// There is nothing that could raise an alarm: the list is empty, and to clear one changes nothing.
    async fn alarm(&self, request: Request<PbAlarmRequest>) -> Result<Response<PbAlarmResponse>, Status> {
        administrators_only(&request)?;
        Ok(Response::new(PbAlarmResponse {
            header: Some(self.header_now()),
            alarms: Vec::new(),
        }))
    }

    async fn status(&self, _: Request<PbStatusRequest>) -> Result<Response<PbStatusResponse>, Status> {
        let header = self.header_now();
        let index = header.revision.cast_unsigned();
        let bytes = i64::try_from(self.engine.disk_bytes()).unwrap_or(i64::MAX);
        Ok(Response::new(PbStatusResponse {
            header: Some(header),
            version: VERSION.into(),
            db_size: bytes,
            // What is free within the file is known only to redb, which would have to walk it.
            db_size_in_use: bytes,
            leader: self.engine.member_id,
            raft_index: index,
            raft_applied_index: index,
            raft_term: TERM,
            ..PbStatusResponse::default()
        }))
    }

    async fn defragment(
        &self,
        request: Request<PbDefragmentRequest>,
    ) -> Result<Response<PbDefragmentResponse>, Status> {
        administrators_only(&request)?;
        self.engine.defragment().await?;
        Ok(Response::new(PbDefragmentResponse {
            header: Some(self.header_now()),
        }))
    }

    async fn hash(&self, request: Request<PbHashRequest>) -> Result<Response<PbHashResponse>, Status> {
        administrators_only(&request)?;
        let found = self.engine.hash(None)?;
        Ok(Response::new(PbHashResponse {
            header: Some(self.header(found.revision)),
            hash: found.hash,
        }))
    }

    async fn hash_kv(&self, request: Request<PbHashKvRequest>) -> Result<Response<PbHashKvResponse>, Status> {
        administrators_only(&request)?;
        let asked = request.get_ref().revision;
        let found = self.engine.hash((asked > 0).then_some(asked))?;
        Ok(Response::new(PbHashKvResponse {
            header: Some(self.header_now()),
            hash: found.hash,
            compact_revision: found.compacted.unwrap_or(-1),
            hash_revision: found.revision,
        }))
    }

    type SnapshotStream = Empty<Result<PbSnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        request: Request<PbSnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        administrators_only(&request)?;
        Err(status::unsupported("Snapshot"))
    }

    async fn move_leader(
        &self,
        request: Request<PbMoveLeaderRequest>,
    ) -> Result<Response<PbMoveLeaderResponse>, Status> {
        administrators_only(&request)?;
        Err(status::unsupported("MoveLeader"))
    }

    async fn downgrade(
        &self,
        request: Request<PbDowngradeRequest>,
    ) -> Result<Response<PbDowngradeResponse>, Status> {
        administrators_only(&request)?;
        Err(status::unsupported("Downgrade"))
    }
}
