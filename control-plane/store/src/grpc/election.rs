//! `v3electionpb.Election` (`server/etcdserver/api/v3election`). The crate has no server of it: its few messages stand
//! here.

use std::sync::Arc;

use bytes::Bytes;
use etcd_client::proto::{
    PbCampaignResponse, PbLeaderKey, PbLeaderResponse, PbProclaimResponse, PbResignResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, body::Body};

use super::{
    Service, by_hand, kv,
    queue::{self, Place},
    status,
};
use crate::{
    disk::key_value,
    engine::{Error, Watched},
    mvcc::{Entry, KeyRange, LeaseChange, Op, Put, Revision},
    scope::Scope,
};

/// Answers that wait for the client to read them.
const UNREAD_LEADERS: usize = 4;

/// So many bytes of changes are looked at in one go.
const LOOK_BYTES: usize = 1 << 20;

#[derive(Clone, PartialEq, prost::Message)]
struct CampaignRequest {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
    #[prost(int64, tag = "2")]
    lease: i64,
    #[prost(bytes = "vec", tag = "3")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ProclaimRequest {
    #[prost(message, optional, tag = "1")]
    leader: Option<PbLeaderKey>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LeaderRequest {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResignRequest {
    #[prost(message, optional, tag = "1")]
    leader: Option<PbLeaderKey>,
}

by_hand::service!(Election, "v3electionpb.Election", answer);

async fn answer(service: Service, request: http::Request<Body>) -> http::Response<Body> {
    let service = || service.clone();
    match request.uri().path() {
        "/v3electionpb.Election/Campaign" => {
            by_hand::unary(request, |request| service().campaign(request)).await
        }
        "/v3electionpb.Election/Proclaim" => {
            by_hand::unary(request, |request| service().proclaim(request)).await
        }
        "/v3electionpb.Election/Leader" => by_hand::unary(request, |request| service().leader(request)).await,
        "/v3electionpb.Election/Observe" => {
            by_hand::streaming(request, |request| service().observe(request)).await
        }
        "/v3electionpb.Election/Resign" => by_hand::unary(request, |request| service().resign(request)).await,
        _ => by_hand::no_such_call(),
    }
}

impl Service {
    async fn campaign(
        self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<PbCampaignResponse>, Status> {
        let (scope, CampaignRequest { name, lease, value }) = kv::open(request)?;
        let lease = self.lease_or_new(lease, &scope).await?;
        let value = Bytes::from(value);
        let entered = self.enter(&scope, &name, lease, value.clone()).await?;
        let place = entered.place;
        let leader = PbLeaderKey {
            name: name.clone(),
            key: place.key.to_vec(),
            rev: place.created,
            lease: lease.get(),
        };
        if entered.known.is_some_and(|known| known != value) {
            self.proclaim_as(&scope, leader.clone(), value).await?;
        }
        self.turn(&scope, &name, &place).await?;
        Ok(Response::new(PbCampaignResponse {
            header: Some(self.header(entered.revision)),
            leader: Some(leader),
        }))
    }

    async fn proclaim(
        self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<PbProclaimResponse>, Status> {
        let (scope, ProclaimRequest { leader, value }) = kv::open(request)?;
        let leader = leader.ok_or_else(status::no_leader_given)?;
        let revision = self.proclaim_as(&scope, leader, value.into()).await?;
        Ok(Response::new(PbProclaimResponse {
            header: Some(self.header(revision)),
        }))
    }

    async fn proclaim_as(
        &self,
        scope: &Scope,
        leader: PbLeaderKey,
        value: Bytes,
    ) -> Result<Revision, Status> {
        let lease = self.lease_or_new(leader.lease, scope).await?;
        let place = place_of(leader);
        let put = Put {
            key: place.key.clone(),
            value: Some(value),
            lease: LeaseChange::Set(Some(lease)),
            prev_kv: false,
        };
        match self.if_held(scope, &place, Op::Put(put)).await? {
            (true, revision) => Ok(revision),
            (false, _) => Err(status::not_leader()),
        }
    }

    async fn leader(self, request: Request<LeaderRequest>) -> Result<Response<PbLeaderResponse>, Status> {
        let (scope, LeaderRequest { name }) = kv::open(request)?;
        Self::check_queue(&scope, &name)?;
        let found = self
            .engine
            .range(&queue::first_of(&queue::keys_of(&name), None))?;
        let leader = found.entries.first().ok_or_else(status::no_leader)?;
        Ok(Response::new(self.leader_response(found.revision, leader)))
    }

    async fn observe(
        self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<ReceiverStream<Result<PbLeaderResponse, Status>>>, Status> {
        let (scope, LeaderRequest { name }) = kv::open(request)?;
        Self::check_queue(&scope, &name)?;
        let (leaders, stream) = mpsc::channel(UNREAD_LEADERS);
        tokio::spawn(async move {
            let keys = queue::keys_of(&name);
            tokio::select! {
                () = leaders.closed() => {}
                Err(ended) = self.tell_leaders(&keys, &leaders) => drop(leaders.try_send(Err(ended))),
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn resign(self, request: Request<ResignRequest>) -> Result<Response<PbResignResponse>, Status> {
        let (scope, ResignRequest { leader }) = kv::open(request)?;
        let leader = leader.ok_or_else(status::no_leader_given)?;
        let revision = self.leave(&scope, &place_of(leader)).await?;
        Ok(Response::new(PbResignResponse {
            header: Some(self.header(revision)),
        }))
    }

    /// Tells who leads, and each value that the leader proclaims, revision by revision; goes on with the newest when a
    /// compaction has passed it. Ends with an error alone.
    async fn tell_leaders(&self, keys: &KeyRange, leaders: &Leaders) -> Result<(), Status> {
        let mut told = None;
        let mut published = self.engine.follow();
        'anew: loop {
            let now = self.engine.range(&queue::first_of(keys, None))?;
            self.tell(leaders, now.revision, now.entries.first(), &mut told)
                .await?;
            let mut next = now.revision + 1;
            loop {
                published.mark_unchanged();
                let Watched {
                    batch,
                    published: newest,
                    compacted: _,
                } = self.engine.watch(keys, next, LOOK_BYTES, false);
                let Ok(changes) = batch else { continue 'anew };
                for change in &changes.events {
                    let revision = change.event.id.revision;
                    let Ok(then) = self.engine.range(&queue::first_of(keys, Some(revision))) else {
                        continue 'anew;
                    };
                    self.tell(leaders, revision, then.entries.first(), &mut told)
                        .await?;
                }
                next = changes.next;
                if next > newest {
                    self.changed(&mut published).await?;
                }
            }
        }
    }

    async fn tell(
        &self,
        leaders: &Leaders,
        revision: Revision,
        leader: Option<&Arc<Entry>>,
        told: &mut Option<Arc<Entry>>,
    ) -> Result<(), Status> {
        let Some(leader) = leader.filter(|leader| told.as_ref() != Some(*leader)) else {
            return Ok(());
        };
        *told = Some(Arc::clone(leader));
        let response = self.leader_response(revision, leader);
        leaders
            .send(Ok(response))
            .await
            .map_err(|_| Error::Stopped.into())
    }

    fn leader_response(&self, revision: Revision, leader: &Entry) -> PbLeaderResponse {
        PbLeaderResponse {
            header: Some(self.header(revision)),
            kv: Some(key_value(leader)),
        }
    }
}

type Leaders = mpsc::Sender<Result<PbLeaderResponse, Status>>;

fn place_of(leader: PbLeaderKey) -> Place {
    Place {
        key: leader.key.into(),
        created: leader.rev,
    }
}
