//! The HTTP endpoints: `/health`, `/ready`, `/metrics`, each where its plugin says.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use nix::errno::Errno;
use tokio::net::TcpListener;

use crate::serve::ServeError;
use crate::state::State;

/// What one address answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// `/health`.
    pub health: bool,
    /// `/ready`.
    pub ready: bool,
    /// `/metrics`.
    pub metrics: bool,
}

/// Takes every address.
///
/// # Errors
/// When one of them cannot be had.
pub async fn listen(
    addresses: &BTreeMap<SocketAddr, Endpoints>,
) -> Result<Vec<(TcpListener, Endpoints)>, ServeError> {
    let mut listeners = Vec::new();
    for (address, endpoints) in addresses {
        listeners.push((bind(*address).await?, *endpoints));
    }
    Ok(listeners)
}

/// Where the kernel has no IPv6, everywhere means every IPv4 address.
async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let errno = |error: std::io::Error| error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    match TcpListener::bind(address).await.map_err(errno) {
        Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) if address.ip().is_unspecified() => {
            let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            TcpListener::bind(v4).await.map_err(errno)
        }
        bound => bound,
    }
    .map_err(|errno| ServeError::new(address, "tcp", errno))
}

/// The pages of one address.
pub fn router(endpoints: Endpoints, state: &Arc<State>) -> Router {
    let mut router = Router::new();
    if endpoints.health {
        router = router.route("/health", get(|| async { "OK" }));
    }
    if endpoints.ready {
        let state = Arc::clone(state);
        router = router.route("/ready", get(move || async move { ready(&state) }));
    }
    if endpoints.metrics {
        let state = Arc::clone(state);
        let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
        router = router.route(
            "/metrics",
            get(move || async move { (content_type, state.metrics()) }),
        );
    }
    router
}

/// Ready while the cluster's names can be told from others; as in CoreDNS the body names the plugin that is not.
fn ready(state: &State) -> (StatusCode, &'static str) {
    if state.is_ready() {
        (StatusCode::OK, "OK")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "kubernetes")
    }
}
