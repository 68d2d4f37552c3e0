//! The cluster DNS server: CoreDNS's place, configured by a Corefile, fed by the node agent or by an API server.
//!
//! Tour, from the wire inwards:
//! - [`serve`]: UDP threads and TCP connections; [`chain`]: which server block and which plugin answers.
//! - [`question`] reads packets, [`answer`] writes them; neither allocates for a cluster name.
//! - [`kubernetes`]: the cluster zone's rules; [`zone`]: its tables, made of the agent's snapshots.
//! - [`feed`]: the agent's socket or a watch of an API server, and the last good snapshot on disk.
//! - [`forward`], [`cache`]: everything that is not the cluster's. [`acl`], [`rate_limit`]: who may ask.
//! - [`aaaa`]: no IPv6 outside; [`rewrite`]: other questions instead; [`template`], [`hosts`]: answers made of the Corefile
//!   and of files.
//! - [`explain`]: why a name is answered as it is; [`client`] asks for it.
//! - [`corefile`]: the configuration; [`metrics`], [`process`], [`http`], [`state`], [`query_log`], [`error_log`],
//!   [`log_queue`]: what can be seen from outside.
//! - [`server`]: sockets and threads put together; [`run`] does all of it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

pub mod aaaa;
pub mod acl;
pub mod answer;
pub mod cache;
pub mod chain;
pub mod client;
pub mod corefile;
pub mod error_log;
pub mod explain;
pub mod feed;
pub mod forward;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod hosts;
pub mod http;
pub mod kubernetes;
pub mod log_queue;
pub mod metrics;
pub mod mnemonic;
pub mod name;
mod open_files;
pub mod pattern;
pub mod presentation;
pub mod process;
pub mod query_log;
pub mod question;
pub mod rate_limit;
pub mod reply;
pub mod rewrite;
#[cfg(any(test, feature = "fuzzing"))]
mod samples;
pub mod serve;
pub mod server;
pub mod state;
pub mod template;
mod xorshift;
pub mod zone;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config(pub corefile::Corefile);

impl Config {
    /// Reads a Corefile, with this process's environment for its variables.
    ///
    /// # Errors
    /// With file and line of the first thing that is wrong.
    pub fn parse(path: impl AsRef<Path>) -> Result<Self, Error> {
        Ok(Self(corefile::Corefile::read(path.as_ref())?))
    }

    /// The same, but plugins that are not known are passed over with a warning.
    ///
    /// # Errors
    /// With file and line of the first thing that is wrong.
    pub fn parse_leniently(path: impl AsRef<Path>) -> Result<Self, Error> {
        Ok(Self(corefile::Corefile::read_again(path.as_ref(), true)?))
    }
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Corefile is wrong.
    #[error(transparent)]
    Corefile(#[from] corefile::Error),
    /// The cluster's objects cannot be followed.
    #[error(transparent)]
    Feed(#[from] feed::FeedError),
    /// A socket cannot be had.
    #[error(transparent)]
    Serve(#[from] serve::ServeError),
    /// A thread cannot be started.
    #[error("cannot start a serving thread")]
    Thread {
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// How long [`run`] waits for an address to bind to: the node agent may be about to give it to the machine.
const ADDRESS_WAIT: Duration = Duration::from_secs(60);
const ADDRESS_RETRY: Duration = Duration::from_millis(100);

/// Takes the sockets, serves until `shutdown`, and for the lameduck time after it. This process may have as many files
/// open from then on as its hard limit says. The log line `serving` tells that every socket answers; [`server::Bound`]
/// tells it to a caller that wants to know. `watcher` watches the API servers that the configuration names.
///
/// # Errors
/// When a socket cannot be had. An address that this machine does not have yet is waited for, up to a minute.
pub async fn run(
    config: Config,
    watcher: Arc<feed::Watcher>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    open_files::raise();
    let deadline = Instant::now() + ADDRESS_WAIT;
    let mut reported = false;
    loop {
        match server::Bound::with_watcher(&config, Some(Arc::clone(&watcher))).await {
            Err(Error::Serve(serve::ServeError::NotOurs { address, .. })) if Instant::now() < deadline => {
                if !std::mem::replace(&mut reported, true) {
                    tracing::warn!(%address, "no interface has the address to listen at yet; waiting for it");
                }
            }
            bound => return bound?.run(shutdown).await,
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(ADDRESS_RETRY) => {}
        }
    }
}
