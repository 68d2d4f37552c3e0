//! The gRPC services of etcd's API (`etcdserverpb`, `etcd.io/docs/v3.5/dev-guide/api_reference_v3`).

mod by_hand;
mod cluster;
mod election;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod message;
mod queue;
mod snapshot;
mod status;
mod unsupported;
mod watch;

use std::{sync::Arc, time::Duration};

use etcd_client::proto::{
    PbClusterServer, PbKvServer, PbLeaseServer, PbMaintenanceServer, PbResponseHeader, PbWatchServer,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, service::Routes};

use crate::{engine::Engine, mvcc::Revision, scope::Scope};

/// The term of an election that never takes place.
const TERM: u64 = 1;

/// What every service works with. One member, which is always the leader.
#[derive(Debug, Clone)]
pub struct Service {
    /// The store.
    pub engine: Arc<Engine>,
    /// Where clients can reach it, as URLs.
    pub client_urls: Arc<[String]>,
    /// How often an idle watch that asked for it is told the revision.
    pub progress_interval: Duration,
    /// Ends the streams.
    pub shutdown: CancellationToken,
}

impl Service {
    /// All services.
    pub fn routes(self) -> Routes {
        Routes::new(PbKvServer::new(self.clone()))
            .add_service(PbWatchServer::new(self.clone()))
            .add_service(PbLeaseServer::new(self.clone()))
            .add_service(PbMaintenanceServer::new(self.clone()))
            .add_service(PbClusterServer::new(self.clone()))
            .add_service(lock::Lock(self.clone()))
            .add_service(election::Election(self.clone()))
            .add_service(unsupported::Auth(self))
    }

    fn header(&self, revision: Revision) -> PbResponseHeader {
        PbResponseHeader {
            cluster_id: self.engine.cluster_id,
            member_id: self.engine.member_id,
            revision,
            raft_term: TERM,
        }
    }

    /// The header of an answer that is about no particular revision.
    fn header_now(&self) -> PbResponseHeader {
        self.header(self.engine.revision())
    }
}

/// What the client of the request may touch.
fn scope<T>(request: &Request<T>) -> Scope {
    request
        .extensions()
        .get()
        .cloned()
        .expect("invariant: every connection has a scope, see listen::Connection")
}

/// Refuses a client that may not touch everything.
fn administrators_only<T>(request: &Request<T>) -> Result<(), tonic::Status> {
    if scope(request).is_unlimited() {
        Ok(())
    } else {
        Err(status::permission_denied())
    }
}
