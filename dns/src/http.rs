//! The HTTP endpoints: `/health`, `/ready`, `/metrics`, each where its plugin says.

mod self_check;
mod serving;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::serve::{self, ServeError};
use crate::state::State;
pub use self_check::{SelfChecks, check_health};
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

/// Takes every address. Those of `own` are this server's already: where one of them is part of another, or the other
/// way round, they share their port until the one that is not wanted any more is given back.
///
/// # Errors
/// When one of them cannot be had.
pub fn listen<'a>(
    addresses: impl Iterator<Item = &'a SocketAddr>,
    own: &[SocketAddr],
) -> Result<BTreeMap<SocketAddr, TcpListener>, ServeError> {
    let listeners = addresses.map(|address| Ok((*address, bind(*address, own)?)));
    listeners.collect()
}

/// The same for one address.
///
/// # Errors
/// When it cannot be had.
pub fn bind(address: SocketAddr, own: &[SocketAddr]) -> Result<TcpListener, ServeError> {
    let has_v6 = || serve::everywhere().iter().any(IpAddr::is_ipv6);
    let address = match address {
        // Where the kernel has no IPv6, everywhere means every IPv4 address.
        SocketAddr::V6(v6) if v6.ip().is_unspecified() && !has_v6() => {
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, v6.port()))
        }
        address => address,
    };
    let is_everywhere = |own: &SocketAddr| own.ip().is_unspecified() || address.ip().is_unspecified();
    let is_shared = own
        .iter()
        .any(|own| own.port() == address.port() && is_everywhere(own));
    if !is_shared {
        serve::probe_stream(address)?;
    }
    serve::dual_listener(address)
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

/// Ready while the cluster's names can be told from others, until the server is told to end; as in CoreDNS the body
/// names the plugin that is not.
fn ready(state: &State) -> (StatusCode, &'static str) {
    if state.is_ending() {
        (StatusCode::SERVICE_UNAVAILABLE, "health: lameduck")
    } else if state.is_ready() {
        (StatusCode::OK, "OK")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "kubernetes")
    }
}
