//! `etcdserverpb.Lease`.

use etcd_client::proto::{
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse,
    PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseService,
    PbLeaseStatus, PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Service, scope};
use crate::{
    mvcc::{Error, Grant, LeaseId},
    scope::Scope,
};

/// Answers that wait for a client to read them; then its requests wait.
const UNREAD_ANSWERS: usize = 16;

#[tonic::async_trait]
impl PbLeaseService for Service {
    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        let holder = scope(&request).holder();
        let PbLeaseGrantRequest { ttl, id } = request.into_inner();
        let asked = Grant { seconds: ttl, holder };
        let (id, ttl) = self.engine.grant(LeaseId::from_protocol(id), asked).await?;
        let header = Some(self.header_now());
        Ok(Response::new(PbLeaseGrantResponse {
            header,
            id: id.get(),
            ttl,
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        let id = LeaseId::from_protocol(request.get_ref().id).ok_or(Error::LeaseNotFound)?;
        let revision = self.engine.revoke(id, scope(&request)).await?;
        Ok(Response::new(PbLeaseRevokeResponse {
            header: Some(self.header(revision)),
        }))
    }

    type LeaseKeepAliveStream = ReceiverStream<Result<PbLeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let scope = scope(&request);
        let (answers, stream) = mpsc::channel(UNREAD_ANSWERS);
        tokio::spawn(self.clone().keep_alive(scope, request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        let scope = scope(&request);
        let PbLeaseTimeToLiveRequest { id, keys: with_keys } = request.into_inner();
        let lease = match LeaseId::from_protocol(id) {
            Some(id) => self.engine.lease(id, &scope).await?,
            None => None,
        };
        let header = Some(self.header_now());
        let Some(lease) = lease else {
            let absent = PbLeaseTimeToLiveResponse {
                header,
                id,
                ttl: -1,
                ..PbLeaseTimeToLiveResponse::default()
            };
            return Ok(Response::new(absent));
        };
        let keys = lease
            .keys
            .iter()
            .filter(|_| with_keys)
            .map(|key| key.to_vec())
            .collect();
        let (ttl, granted_ttl) = (lease.remaining_seconds, lease.granted_seconds);
        Ok(Response::new(PbLeaseTimeToLiveResponse {
            header,
            id,
            ttl,
            granted_ttl,
            keys,
        }))
    }

    async fn lease_leases(
        &self,
        request: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        let leases = self
            .engine
            .leases(&scope(&request))
            .await?
            .into_iter()
            .map(|id| PbLeaseStatus { id: id.get() })
            .collect();
        Ok(Response::new(PbLeaseLeasesResponse {
            header: Some(self.header_now()),
            leases,
        }))
    }
}

impl Service {
    async fn keep_alive(
        self,
        scope: Scope,
        mut requests: Streaming<PbLeaseKeepAliveRequest>,
        answers: mpsc::Sender<Result<PbLeaseKeepAliveResponse, Status>>,
    ) {
        loop {
            let request = tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = answers.closed() => return,
                request = requests.message() => request,
            };
            let Ok(Some(PbLeaseKeepAliveRequest { id })) = request else {
                return;
            };
            if answers.send(self.renewal(&scope, id).await).await.is_err() {
                return;
            }
        }
    }

    async fn renewal(&self, scope: &Scope, id: i64) -> Result<PbLeaseKeepAliveResponse, Status> {
        let renewed = match LeaseId::from_protocol(id) {
            Some(lease) => self.engine.renew(lease, scope).await?,
            None => None,
        };
        let header = Some(self.header_now());
        let ttl = renewed.unwrap_or(0);
        Ok(PbLeaseKeepAliveResponse { header, id, ttl })
    }
}
