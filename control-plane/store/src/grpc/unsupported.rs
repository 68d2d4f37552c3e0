//! The service that this server does not have. It answers every call, so that a client reads why, not only that.

use http::{Request, Response};
use tonic::body::Body;

use super::{Service, by_hand, status};

by_hand::service!(Auth, "etcdserverpb.Auth", answer);

async fn answer(_: Service, _: Request<Body>) -> Response<Body> {
    status::unsupported("Auth (clients are known by their certificates)").into_http()
}
