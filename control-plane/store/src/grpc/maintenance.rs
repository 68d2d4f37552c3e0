//! `etcdserverpb.Maintenance`: what has a meaning for one member.

use etcd_client::proto::{
    PbAlarmMember, PbAlarmRequest, PbAlarmResponse, PbDefragmentRequest, PbDefragmentResponse,
    PbDowngradeRequest, PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest,
    PbHashResponse, PbMaintenanceService, PbMoveLeaderRequest, PbMoveLeaderResponse, PbSnapshotRequest,
    PbSnapshotResponse, PbStatusRequest, PbStatusResponse,
};
use etcd_client::{AlarmAction, AlarmType};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Service, TERM, administrators_only, snapshot, status};

/// The version of etcd that this server behaves like. Kubernetes asks for watch progress only from 3.5.13 on
/// (`apiserver/pkg/storage/feature/feature_support_checker.go`).
const VERSION: &str = "3.5.21";

/// Parts of a snapshot that wait for the client to read them.
const UNREAD_PARTS: usize = 4;

#[tonic::async_trait]
impl PbMaintenanceService for Service {
    /// The one alarm is NOSPACE, of the one member.
    async fn alarm(&self, request: Request<PbAlarmRequest>) -> Result<Response<PbAlarmResponse>, Status> {
        administrators_only(&request)?;
        let request = request.into_inner();
        let action = AlarmAction::try_from(request.action).map_err(|_| status::invalid_field("action"))?;
        let kind = AlarmType::try_from(request.alarm).map_err(|_| status::invalid_field("alarm"))?;
        let member = self.engine.member_id;
        let ours = kind == AlarmType::Nospace && request.member_id == member;
        let told = match action {
            AlarmAction::Get => kind != AlarmType::Corrupt && self.engine.no_space(),
            AlarmAction::Activate if ours => {
                self.engine.set_no_space(true).await?;
                true
            }
            AlarmAction::Deactivate if ours => self.engine.set_no_space(false).await?,
            AlarmAction::Deactivate => false,
            AlarmAction::Activate => return Err(status::unsupported("an alarm but NOSPACE of this member")),
        };
        let alarm = PbAlarmMember {
            member_id: member,
            alarm: AlarmType::Nospace as i32,
        };
        Ok(Response::new(PbAlarmResponse {
            header: Some(self.header_now()),
            alarms: if told { vec![alarm] } else { Vec::new() },
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
            errors: if self.engine.no_space() {
                vec![format!("memberID:{} alarm:NOSPACE ", self.engine.member_id)]
            } else {
                Vec::new()
            },
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

    type SnapshotStream = ReceiverStream<Result<PbSnapshotResponse, Status>>;

    /// The bytes of a file that a store can start from (as `store.redb` in its data directory), then their SHA-256.
    async fn snapshot(
        &self,
        request: Request<PbSnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        administrators_only(&request)?;
        let contents = self.engine.snapshot().await?;
        let path = self.engine.temporary_file();
        let (parts, stream) = mpsc::channel(UNREAD_PARTS);
        tokio::task::spawn_blocking(move || snapshot::send(&path, &contents, &parts));
        Ok(Response::new(ReceiverStream::new(stream)))
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
