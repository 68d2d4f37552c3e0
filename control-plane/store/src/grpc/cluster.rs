//! `etcdserverpb.Cluster`: one member, for ever.

use etcd_client::proto::{
    PbClusterService, PbMember, PbMemberAddRequest, PbMemberAddResponse, PbMemberListRequest,
    PbMemberListResponse, PbMemberPromoteRequest, PbMemberPromoteResponse, PbMemberRemoveRequest,
    PbMemberRemoveResponse, PbMemberUpdateRequest, PbMemberUpdateResponse,
};
use tonic::{Request, Response, Status};

use super::{Service, administrators_only, status};

#[tonic::async_trait]
impl PbClusterService for Service {
    async fn member_list(
        &self,
        _: Request<PbMemberListRequest>,
    ) -> Result<Response<PbMemberListResponse>, Status> {
        let member = PbMember {
            id: self.engine.member_id,
            name: "causeway".into(),
            peer_ur_ls: Vec::new(),
            client_ur_ls: self.client_urls.to_vec(),
            is_learner: false,
        };
        Ok(Response::new(PbMemberListResponse {
            header: Some(self.header_now()),
            members: vec![member],
        }))
    }

    async fn member_add(
        &self,
        request: Request<PbMemberAddRequest>,
    ) -> Result<Response<PbMemberAddResponse>, Status> {
        administrators_only(&request)?;
        Err(status::unsupported("MemberAdd"))
    }

    async fn member_remove(
        &self,
        request: Request<PbMemberRemoveRequest>,
    ) -> Result<Response<PbMemberRemoveResponse>, Status> {
        administrators_only(&request)?;
        if request.get_ref().id != self.engine.member_id {
            return Err(status::member_not_found());
        }
        Err(status::unsupported("MemberRemove"))
    }

    async fn member_update(
        &self,
        request: Request<PbMemberUpdateRequest>,
    ) -> Result<Response<PbMemberUpdateResponse>, Status> {
        administrators_only(&request)?;
        Err(status::unsupported("MemberUpdate"))
    }

    async fn member_promote(
        &self,
        request: Request<PbMemberPromoteRequest>,
    ) -> Result<Response<PbMemberPromoteResponse>, Status> {
        administrators_only(&request)?;
        Err(status::unsupported("MemberPromote"))
    }
}
