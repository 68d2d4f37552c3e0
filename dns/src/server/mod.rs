//! The composition root: a configuration becomes sockets, threads and tasks; another one takes its place while they go
//! on; all of it ends in order.
//!
//! ```text
//! Corefile ─► prepare: what is new is opened ─► commit: swap in the chain, start what is new, end what is not wanted
//!    ▲            └► refused: nothing changed
//!    └── watch: the file and its imports are read again every interval
//! ```

mod prepare;
mod running;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::feed::Watcher;
use crate::{Config, Error};
use prepare::Prepared;
use running::Running;
use watch::Watch;

/// A server that has its sockets and does not serve yet. From here on clients' queries are kept by the kernel.
pub struct Bound {
    running: Running,
    prepared: Prepared,
}

impl Bound {
    /// Takes every socket of a configuration in which no API server is named.
    ///
    /// # Errors
    /// When one of them cannot be had; nothing is left open then.
    pub async fn new(config: &Config) -> Result<Self, Error> {
        Self::with_watcher(config, None).await
    }

    /// Takes every socket of a configuration, whose API servers `watcher` watches.
    ///
    /// # Errors
    /// When one of them cannot be had; nothing is left open then.
    pub async fn with_watcher(config: &Config, watcher: Option<Arc<Watcher>>) -> Result<Self, Error> {
        let running = Running::new(watcher);
        let mut prepared = running.prepare(&config.0)?;
        running.open(&mut prepared)?;
        Ok(Self { running, prepared })
    }

    /// Where UDP and TCP are listened at.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.prepared.addresses()
    }

    /// Where HTTP is listened at.
    #[must_use]
    pub fn http_addresses(&self) -> Vec<SocketAddr> {
        self.prepared.http_addresses()
    }

    /// Serves until `shutdown`, and for the lameduck time after it. Where the Corefile says `reload`, what it says is
    /// followed meanwhile.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let addresses = self.addresses();
        let (mut running, mut prepared) = (self.running, self.prepared);
        running.follow(&mut prepared);
        prepared.wait_for_objects(&shutdown).await;
        running.commit(prepared)?;
        tracing::info!(?addresses, "serving");
        let mut watch = Watch::default();
        loop {
            let changed = tokio::select! {
                () = shutdown.cancelled() => break,
                changed = watch.changed(running.corefile()) => changed,
            };
            let taken = match changed {
                Ok(corefile) => running.change_to(&corefile, &shutdown).await,
                Err(error) => Err(error.into()),
            };
            match taken {
                Ok(()) => {
                    watch.note_taken();
                    tracing::info!("the Corefile changed and was taken");
                }
                Err(error) => {
                    running.note_refused();
                    let error = model::with_causes(&error).to_string();
                    if watch.is_news(&error) {
                        tracing::error!(
                            error,
                            "the Corefile changed and is refused; the one before goes on"
                        );
                    }
                }
            }
        }
        running.note_ending();
        let lameduck = lameduck(&running);
        if !lameduck.is_zero() {
            tracing::info!(seconds = lameduck.as_secs_f64(), "going on for the lameduck time");
            tokio::time::sleep(lameduck).await;
        }
        running.end().await;
        tracing::info!("ended");
        Ok(())
    }
}

fn lameduck(running: &Running) -> Duration {
    let blocks = running.corefile().blocks.iter();
    let longest = blocks.filter_map(|block| Some(block.health?.lameduck)).max();
    longest.unwrap_or_default()
}
