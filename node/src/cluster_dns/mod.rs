//! `causeway dns`: the DNS server, with watches of the API servers that its Corefile names; [`check`] looks at a
//! Corefile, [`query`] asks the server why it answers as it does.

mod check;
mod query;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use dns::feed::{Watched, slim};
use dns::kubernetes::{Access, ApiServer};
use model::{Kind, Snapshot};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use check::check;
pub use query::query;

use crate::watch::{self as api, ApiSource, Credentials, Events, Status, TlsFiles, Wanted};

/// Serves until shutdown.
///
/// # Errors
/// When a socket cannot be had.
pub async fn serve(config: dns::Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let watches = Watches {
        known: Mutex::default(),
        shutdown: shutdown.clone(),
    };
    let watcher = move |server: &ApiServer| watches.of(server);
    let served = dns::run(config, Arc::new(watcher), shutdown).await;
    served.context("run the DNS server")
}

/// The watches that are kept, one for each API server and selection.
struct Watches {
    known: Mutex<BTreeMap<ApiServer, Watched>>,
    shutdown: CancellationToken,
}

impl Watches {
    fn of(&self, server: &ApiServer) -> Watched {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let watched = known
            .entry(server.clone())
            .or_insert_with(|| begin(server, &self.shutdown));
        watched.clone()
    }
}

/// Begins a watch that ends with `shutdown`.
fn begin(server: &ApiServer, shutdown: &CancellationToken) -> Watched {
    let (sender, snapshots) = watch::channel(Arc::<Snapshot>::default());
    let status = Status::default();
    // Nobody is told of bad objects by Events: that needs a right which no DNS server has.
    let run = api::run(
        source(&server.access),
        wanted(server),
        sender,
        status.clone(),
        Events::default(),
        shutdown.clone(),
    );
    tokio::spawn(run);
    let silence = Arc::new(move || silence(&status));
    Watched { snapshots, silence }
}

fn silence(status: &Status) -> Option<Duration> {
    let kinds = status.kinds().into_values();
    kinds.filter_map(|kind| Some(kind.failing?.since.elapsed())).max()
}

fn wanted(server: &ApiServer) -> Wanted {
    let mut kinds = vec![Kind::Service, Kind::Namespace];
    kinds.extend(server.endpoints.then_some(Kind::EndpointSlice));
    kinds.extend(server.pods.then_some(Kind::Pod));
    Wanted {
        kinds,
        labels: server.labels.clone(),
        namespace_labels: server.namespace_labels.clone(),
        trim: slim,
    }
}

fn source(access: &Access) -> ApiSource {
    let credentials = match access.clone() {
        Access::ServiceAccount => Credentials::ServiceAccount,
        Access::Kubeconfig { file, context } => Credentials::Kubeconfig { path: file, context },
        Access::Endpoint { url, tls } => Credentials::Endpoint {
            url,
            tls: tls.map(|files| TlsFiles {
                certificate: files.certificate,
                key: files.key,
                authority: files.authority,
            }),
        },
    };
    ApiSource {
        credentials,
        ..ApiSource::default()
    }
}
