//! The services that this server does not have. They answer every call, so that a client reads why, not only that.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::{body::Body, server::NamedService};
use tower::Service;

use super::status;

macro_rules! unsupported_service {
    ($type:ident, $service:literal, $what:literal) => {
        #[doc = concat!("Answers every call of `", $service, "` with UNIMPLEMENTED.")]
        #[derive(Debug, Clone, Copy)]
        pub struct $type;

        impl NamedService for $type {
            const NAME: &'static str = $service;
        }

        impl Service<Request<Body>> for $type {
            type Response = Response<Body>;
            type Error = Infallible;
            type Future = Ready<Result<Response<Body>, Infallible>>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, _: Request<Body>) -> Self::Future {
                ready(Ok(status::unsupported($what).into_http()))
            }
        }
    };
}

unsupported_service!(
    Auth,
    "etcdserverpb.Auth",
    "Auth (clients are known by their certificates)"
);
unsupported_service!(
    Lock,
    "v3lockpb.Lock",
    "Lock (a transaction that creates a key does the same)"
);
unsupported_service!(
    Election,
    "v3electionpb.Election",
    "Election (a transaction that creates a key does the same)"
);
