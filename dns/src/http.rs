//! The HTTP endpoints: `/health`, `/ready`, `/metrics`, each where its plugin says.

mod serving;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use nix::errno::Errno;
use tokio::net::TcpListener;

use crate::serve::ServeError;
use crate::state::State;
pub use serving::serve;

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
    addresses: impl Iterator<Item = &SocketAddr>,
) -> Result<BTreeMap<SocketAddr, TcpListener>, ServeError> {
    let mut listeners = BTreeMap::new();
    for address in addresses {
        listeners.insert(*address, bind(*address).await?);
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

/// The pages of one address. Which of them there are is looked up each time: another configuration may come.
pub fn router(address: SocketAddr, state: &Arc<State>) -> Router {
    const ABSENT: (StatusCode, &str) = (StatusCode::NOT_FOUND, "not here");
    let page = |path, answer: fn(&State, Endpoints) -> Response| {
        let state = Arc::clone(state);
        Router::new().route(
            path,
            get(move || async move { answer(&state, state.endpoints(&address)) }),
        )
    };
    page("/health", |_, own| match own.health {
        true => "OK".into_response(),
        false => ABSENT.into_response(),
    })
    .merge(page("/ready", |state, own| match own.ready {
        true => ready(state).into_response(),
        false => ABSENT.into_response(),
    }))
    .merge(page("/metrics", |state, own| {
        let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
        match own.metrics {
            true => (content_type, state.metrics()).into_response(),
            false => ABSENT.into_response(),
        }
    }))
}

/// Ready while the cluster's names can be told from others; as in CoreDNS the body names the plugin that is not.
fn ready(state: &State) -> (StatusCode, &'static str) {
    if state.is_ready() {
        (StatusCode::OK, "OK")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "kubernetes")
    }
}
