//! Services of which the crate has clients alone.

use http::{Request, Response};
use prost::Message;
use tokio_stream::Stream;
use tonic::{Code, Status, body::Body, server::Grpc};
use tonic_prost::ProstCodec;

/// A service by its name, with what answers its calls.
macro_rules! service {
    ($type:ident, $name:literal, $answer:ident) => {
        #[doc = concat!("Answers the calls of `", $name, "`.")]
        #[derive(Debug, Clone)]
        pub struct $type(pub super::Service);

        impl tonic::server::NamedService for $type {
            const NAME: &'static str = $name;
        }

        impl tower::Service<http::Request<tonic::body::Body>> for $type {
            type Response = http::Response<tonic::body::Body>;
            type Error = std::convert::Infallible;
            type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

            fn poll_ready(
                &mut self,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Result<(), Self::Error>> {
                std::task::Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
                let answer = $answer(self.0.clone(), request);
                Box::pin(async move { Ok(answer.await) })
            }
        }
    };
}
pub(super) use service;

/// A call with one answer.
pub async fn unary<Q, A, F>(
    request: Request<Body>,
    mut answer: impl FnMut(tonic::Request<Q>) -> F + Send,
) -> Response<Body>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
    F: Future<Output = Result<tonic::Response<A>, Status>> + Send,
{
    Grpc::new(ProstCodec::<A, Q>::default())
        .unary(
            tower::service_fn(|request| {
                let answer = answer(request);
                async { answer.await.map_err(passed_on) }
            }),
            request,
        )
        .await
}

/// A call with a stream of answers.
pub async fn streaming<Q, A, F, S>(
    request: Request<Body>,
    mut answer: impl FnMut(tonic::Request<Q>) -> F + Send,
) -> Response<Body>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
    S: Stream<Item = Result<A, Status>> + Send + 'static,
    F: Future<Output = Result<tonic::Response<S>, Status>> + Send,
{
    Grpc::new(ProstCodec::<A, Q>::default())
        .server_streaming(
            tower::service_fn(|request| {
                let answer = answer(request);
                async { answer.await.map_err(passed_on) }
            }),
            request,
        )
        .await
}

/// These services of etcd are clients of the others, and pass on the texts of what those refuse, without the codes.
fn passed_on(refused: Status) -> Status {
    match refused.code() {
        Code::NotFound | Code::InvalidArgument | Code::ResourceExhausted => {
            Status::unknown(refused.message())
        }
        _ => refused,
    }
}

/// As generated servers answer what they do not know.
pub fn no_such_call() -> Response<Body> {
    Status::unimplemented("").into_http()
}
