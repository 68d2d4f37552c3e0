//! Serving HTTP to whoever can reach the node, here and in the agent: no client holds much of the process, nor any of
//! it for long.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Connections to one listener. Who comes beyond them waits in the kernel's queue.
const CONNECTIONS: usize = 64;

/// In this time the head of a request must be there, also of the next one on the same connection.
const HEAD: Duration = Duration::from_secs(5);

/// How long a connection lives; then it may finish the answer under way.
const LIFE: Duration = Duration::from_secs(30);

/// How long that may take.
const GRACE: Duration = Duration::from_secs(5);

/// The largest head.
const HEAD_BYTES: usize = 16 * 1024;

/// Serves until it is dropped, and its connections with it.
pub async fn serve<L: Listener>(mut listener: L, router: Router) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = free.clone().acquire_owned().await else {
            return;
        };
        let (stream, _) = listener.accept().await;
        let router = router.clone();
        connections.spawn(async move {
            serve_connection(stream, router).await;
            drop(permit);
        });
    }
}

/// How it ends is the client's own affair.
async fn serve_connection<S>(stream: S, router: Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    if timeout(LIFE, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _too_slow = timeout(GRACE, connection).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    async fn server() -> (SocketAddr, AbortOnDropHandle<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let router = Router::new().route("/", get(|| async { "here" }));
        (
            address,
            AbortOnDropHandle::new(tokio::spawn(serve(listener, router))),
        )
    }

    async fn ask(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream
            .write_all(b"GET / HTTP/1.0\r\n\r\n")
            .await
            .expect("it reads");
        let mut answer = String::new();
        let read = timeout(4 * HEAD, stream.read_to_string(&mut answer)).await;
        read.expect("in time").expect("text");
        answer
    }

    #[tokio::test]
    async fn clients_that_say_nothing_are_sent_away_and_the_next_one_is_served() {
        let (address, _server) = server().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS + 1 {
            silent.push(TcpStream::connect(address).await.expect("it listens"));
        }
        assert!(ask(address).await.ends_with("here"));
        let mut nothing = String::new();
        let first = silent.first_mut().expect("there are many");
        let end = timeout(HEAD, first.read_to_string(&mut nothing)).await;
        let _reset = end.expect("it was sent away");
    }

    #[tokio::test]
    async fn a_head_without_end_is_refused() {
        let (address, _server) = server().await;
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let line = format!("GET /{} HTTP/1.1\r\n", "x".repeat(2 * HEAD_BYTES));
        let _reset = stream.write_all(line.as_bytes()).await;
        let mut answer = Vec::new();
        let read = timeout(HEAD, stream.read_to_end(&mut answer)).await;
        let _reset = read.expect("it was sent away");
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains("200 OK"), "{answer}");
        assert!(ask(address).await.ends_with("here"));
    }
}
