//! The cluster as the API tells it: Services, EndpointSlices, Nodes and Namespaces, as one [`Snapshot`].
//!
//! ```text
//! API ─ list, watch ─► stream::watch_kind (one per kind) ─ Observed ─► owner ─ Arc<Snapshot> ─► proxy, DNS feed, …
//! ```
//!
//! - [`client`]: credentials and a connection that notices a server gone silent;
//!   [`requests`]: how often it is asked, and that it answers; [`calls`]: what became of each request.
//! - [`object`]: one object, parsed leniently and converted at once; the kinds are in [`service`],
//!   [`endpoint_slice`], [`node`], [`pod`] and [`service_cidr`]. `k8s-openapi` types go no further than these.
//! - [`faults`]: what of an object is not used, and why.
//! - [`stream`]: streaming lists where the server has them, pages elsewhere, back-off, 410, 401.
//! - [`owner`]: the snapshot, relists by mark and sweep, and publication.
//! - [`events`]: what is wrong with objects, for whoever looks at them with kubectl.
//! - [`network_policies`]: that there are some, and nobody enforces them.
//! - [`own_node`], [`startup_taint`]: what is written to this node's own object.
//! - [`vpc_facts`]: what an AWS VPC's addresses for this node's pods depend on.
//! - [`kubeconfig`]: which cluster is meant where nobody says.
//! - [`objects`], [`commands`]: any object, and commands in containers, for who asks once.
//!
//! An outage of the API changes nothing in the snapshot. A kind is [synced](Snapshot::is_synced) once its first list
//! was complete, and only a complete list removes what it does not name.

mod calls;
mod client;
mod commands;
mod endpoint_slice;
mod events;
mod faults;
pub mod kubeconfig;
mod network_policies;
mod node;
mod object;
mod objects;
mod own_node;
mod owner;
mod pod;
mod requests;
mod service;
mod service_cidr;
mod startup_taint;
mod status;
mod stream;
#[cfg(test)]
mod tests;
mod vpc_facts;

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::Client;
use model::{Change, Snapshot};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use calls::Calls;
pub use client::{ApiSource, Credentials, TlsFiles, Versions};
pub use commands::{Container, Said};
#[cfg(test)]
pub use events::Notices;
pub use events::{Events, Notice, Scope, Subject};
pub use faults::Rejected;
pub use network_policies::NetworkPolicies;
pub use objects::{Objects, ObjectsError};
pub use own_node::OwnNode;
pub use startup_taint::StartupTaint;
pub use status::{KindStatus, Status};
pub use vpc_facts::VpcFacts;

use crate::backoff::Backoff;
use stream::{Ended, Observed, watch_kind};

/// Observations on their way to the owner. Beyond it the watches wait, and with them, by TCP, the server.
const IN_FLIGHT: usize = 1024;

/// Credentials that served this long before they were refused were good: new ones are tried soon.
const STEADY: Duration = Duration::from_secs(60);

/// The kinds that an agent watches.
pub const KINDS: [model::Kind; 5] = [
    model::Kind::Service,
    model::Kind::EndpointSlice,
    model::Kind::Node,
    model::Kind::Namespace,
    model::Kind::ServiceCidr,
];

/// What of the cluster is watched, and kept.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The kinds.
    pub kinds: Vec<model::Kind>,
    /// Label selector of Services, EndpointSlices and Pods. None = all of them.
    pub labels: Option<String>,
    /// Label selector of Namespaces. None = all of them.
    pub namespace_labels: Option<String>,
    /// Takes off an object what nobody reads, before it is kept.
    pub trim: fn(&mut Change),
}

impl Wanted {
    /// What a node's agent needs: all of every kind of [`KINDS`].
    #[must_use]
    pub fn by_agents() -> Self {
        Self {
            kinds: KINDS.to_vec(),
            labels: None,
            namespace_labels: None,
            trim: |_| {},
        }
    }

    fn selector(&self, kind: model::Kind) -> Option<&String> {
        use model::Kind;
        match kind {
            Kind::Service | Kind::EndpointSlice | Kind::Pod => self.labels.as_ref(),
            Kind::Namespace => self.namespace_labels.as_ref(),
            Kind::Node | Kind::ServiceCidr => None,
        }
    }
}

/// Watches until shutdown. The snapshot survives every change of connection and credentials. Objects that are not used,
/// or not whole, are told to `events`.
pub async fn run(
    source: ApiSource,
    wanted: Wanted,
    snapshots: watch::Sender<Arc<Snapshot>>,
    status: Status,
    events: Events,
    shutdown: CancellationToken,
) {
    let (observer, observed) = mpsc::channel(IN_FLIGHT);
    tokio::select! {
        () = owner::run(observed, wanted.clone(), snapshots, status.clone(), events) => {}
        () = keep_watching(source, &wanted, observer, status) => {}
        () = shutdown.cancelled() => {}
    }
}

async fn keep_watching(source: ApiSource, wanted: &Wanted, observer: mpsc::Sender<Observed>, status: Status) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    let heard: requests::Heard = {
        let status = status.clone();
        Arc::new(move |path, answer| status.answered(path, answer))
    };
    loop {
        let read = source.digests();
        match source.client(heard.clone()).await {
            Ok(client) => {
                let rotated = {
                    let source = source.clone();
                    move || source.digests() != read
                };
                let began = Instant::now();
                watch_all(client, wanted, observer.clone(), &status, rotated).await;
                if began.elapsed() >= STEADY {
                    backoff.reset();
                }
                if observer.is_closed() {
                    return;
                }
            }
            Err(error) => wanted.kinds.iter().for_each(|kind| status.failed(*kind, &error)),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Watches every kind until one of them needs new credentials.
async fn watch_all(
    client: Client,
    wanted: &Wanted,
    observer: mpsc::Sender<Observed>,
    status: &Status,
    rotated: impl Fn() -> bool + Clone + Send + Sync + 'static,
) {
    let mut kinds = JoinSet::new();
    macro_rules! watch {
        ($kind:ty) => {
            kinds.spawn(watch_kind::<$kind>(
                client.clone(),
                wanted.selector(<$kind as object::Watchable>::KIND).cloned(),
                observer.clone(),
                status.clone(),
                rotated.clone(),
            ))
        };
    }
    for kind in &wanted.kinds {
        match kind {
            model::Kind::Service => watch!(Service),
            model::Kind::EndpointSlice => watch!(EndpointSlice),
            model::Kind::Node => watch!(Node),
            model::Kind::Namespace => watch!(Namespace),
            model::Kind::Pod => watch!(pod::PodAddresses),
            model::Kind::ServiceCidr => watch!(ServiceCIDR),
        };
    }
    match kinds.join_next().await {
        Some(Ok(Ended::Credentials)) => {
            tracing::warn!("API server wants other credentials, reading them again")
        }
        Some(Ok(Ended::Closed)) | None => {}
        Some(Err(error)) => tracing::error!(%error, "watch broke off, starting all again"),
    }
}
