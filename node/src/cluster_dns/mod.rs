//! `causeway dns`: the DNS server, with watches of the API servers that its Corefile names; [`check`] looks at a
//! Corefile, [`query`] asks the server why it answers as it does.

mod check;
mod query;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::Context;
use dns::feed::{Silence, Watched, trim_of};
use dns::kubernetes::{Access, ApiServer, Objects};
use model::{Kind, Snapshot};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

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

/// The watches that are under way, one for each API server and selection.
struct Watches {
    known: Mutex<BTreeMap<ApiServer, Known>>,
    shutdown: CancellationToken,
}

/// A watch that lives as long as somebody has its [`Watched`].
struct Known {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    silence: Silence,
    hold: Weak<DropGuard>,
}

impl Watches {
    fn of(&self, server: &ApiServer) -> Watched {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, known| known.hold.strong_count() > 0);
        if let Some(watched) = known.get(server).and_then(Known::watched) {
            return watched;
        }
        let watched = begin(server, &self.shutdown);
        let new = Known {
            snapshots: watched.snapshots.clone(),
            silence: watched.silence.clone(),
            hold: Arc::downgrade(&watched.hold),
        };
        known.insert(server.clone(), new);
        watched
    }
}

impl Known {
    fn watched(&self) -> Option<Watched> {
        Some(Watched {
            snapshots: self.snapshots.clone(),
            silence: self.silence.clone(),
            hold: self.hold.upgrade()?,
        })
    }
}

/// Begins a watch that ends with `shutdown`, or when nobody holds it any more: a configuration that names another API
/// server has taken the place of the one that named this.
fn begin(server: &ApiServer, shutdown: &CancellationToken) -> Watched {
    let (sender, snapshots) = watch::channel(Arc::<Snapshot>::default());
    let status = Status::default();
    let ended = shutdown.child_token();
    // Nobody is told of bad objects by Events: that needs a right which no DNS server has.
    let run = api::run(
        source(&server.access),
        wanted(server),
        sender,
        status.clone(),
        Events::default(),
        ended.clone(),
    );
    tokio::spawn(run);
    Watched {
        snapshots,
        silence: Arc::new(move || silence(&status)),
        hold: Arc::new(ended.drop_guard()),
    }
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
        trim: trim_of(&Objects::Api(server.clone())),
    }
}

fn source(access: &Access) -> ApiSource {
    let credentials = match access.clone() {
        Access::ServiceAccount => Credentials::ServiceAccount,
        Access::Kubeconfig { file, context } => Credentials::Kubeconfig {
            paths: vec![file],
            context,
        },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watch_is_shared_while_somebody_has_it_and_then_ends() {
        let url = "http://127.0.0.1:1".to_owned();
        let server = ApiServer {
            access: Access::Endpoint { url, tls: None },
            ..ApiServer::default()
        };
        let watches = Watches {
            known: Mutex::default(),
            shutdown: CancellationToken::new(),
        };
        let first = watches.of(&server);
        let second = watches.of(&server);
        assert!(first.snapshots.same_channel(&second.snapshots));
        drop(first);
        assert!(second.snapshots.has_changed().is_ok());
        let mut snapshots = second.snapshots.clone();
        drop(second);
        // The channel closes with its sender, which the watch has.
        let closed = async { while snapshots.changed().await.is_ok() {} };
        let ended = tokio::time::timeout(Duration::from_secs(20), closed).await;
        ended.expect("the watch ends");
        assert!(!watches.of(&server).snapshots.same_channel(&snapshots));
    }
}
