//! One health check over gRPC (`grpc.health.v1.Health/Check`). The texts are those of `pkg/probe/grpc`.

use std::net::SocketAddr;

use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

const METHOD: &str = "/grpc.health.v1.Health/Check";

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

impl ServingStatus {
    fn name(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Serving => "SERVING",
            Self::NotServing => "NOT_SERVING",
            Self::ServiceUnknown => "SERVICE_UNKNOWN",
        }
    }
}

/// Asks once; the error is the text of an `Unhealthy` event.
pub(super) async fn check(address: SocketAddr, service: &str) -> Result<(), String> {
    let unreachable = |error: &dyn std::error::Error| {
        let cause = error
            .source()
            .map(|cause| format!(": {cause}"))
            .unwrap_or_default();
        format!("error: failed to connect service at \"{address}\": {error}{cause}")
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .and_then(|endpoint| endpoint.user_agent("kube-probe/1.33"))
        .map_err(|error| unreachable(&error))?;
    let channel = endpoint.connect().await.map_err(|error| unreachable(&error))?;
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| unreachable(&error))?;
    let request = Request::new(HealthCheckRequest {
        service: service.to_owned(),
    });
    let codec: ProstCodec<HealthCheckRequest, HealthCheckResponse> = ProstCodec::default();
    let answer = client
        .unary(request, PathAndQuery::from_static(METHOD), codec)
        .await;
    let status = answer.map_err(|status| match status.code() {
        Code::Unimplemented => format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        ),
        code => format!(
            "error: health rpc probe failed: rpc error: code = {code:?} desc = {}",
            status.message()
        ),
    })?;
    match status.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        other => Err(format!("service unhealthy (responded with \"{}\")", other.name())),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures::stream;
    use http::{HeaderMap, HeaderValue, Response};
    use http_body::Frame;
    use http_body_util::{BodyExt as _, StreamBody};
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use prost::Message as _;
    use tokio::net::TcpListener;

    use super::*;

    /// The status of each service, in the framing of gRPC: `[compressed:1][length:4 be][message]`, then trailers.
    async fn answer(
        request: hyper::Request<Incoming>,
    ) -> Result<Response<impl http_body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
        assert_eq!(request.uri().path(), METHOD);
        let body = request.into_body().collect().await.expect("a body").to_bytes();
        let asked = HealthCheckRequest::decode(&body[5..]).expect("a request");
        let (status, code) = match asked.service.as_str() {
            "" => (ServingStatus::Serving, "0"),
            "down" => (ServingStatus::NotServing, "0"),
            "other" => (ServingStatus::Unknown, "5"),
            _ => (ServingStatus::Unknown, "12"),
        };
        let message = HealthCheckResponse {
            status: status as i32,
        }
        .encode_to_vec();
        let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).expect("short")];
        frame.extend(message);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(code));
        let frames = [Ok(Frame::data(Bytes::from(frame))), Ok(Frame::trailers(trailers))];
        let response = Response::builder().header("content-type", "application/grpc");
        Ok(response
            .body(StreamBody::new(stream::iter(frames)))
            .expect("a response"))
    }

    #[tokio::test]
    async fn serving_is_success_and_all_else_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service_fn(answer));
                tokio::spawn(connection);
            }
        });
        for (service, expected) in [
            ("", Ok(())),
            ("down", Err("service unhealthy (responded with \"NOT_SERVING\")")),
            (
                "other",
                Err("error: health rpc probe failed: rpc error: code = NotFound desc = "),
            ),
            (
                "old",
                Err(
                    "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): ",
                ),
            ),
        ] {
            assert_eq!(
                check(address, service).await,
                expected.map_err(str::to_owned),
                "{service}"
            );
        }
        server.abort();
        let gone = server.await;
        assert!(gone.is_err_and(|error| error.is_cancelled()));
        let refused = check(address, "").await.expect_err("nobody listens");
        let told = format!("error: failed to connect service at \"{address}\": ");
        assert!(refused.starts_with(&told), "{refused}");
    }
}
