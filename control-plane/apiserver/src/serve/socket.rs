//! A client's TCP connection. A peer that acknowledges nothing, or leaves its window closed, is ended by the kernel
//! (TCP_USER_TIMEOUT, tcp(7)); but not where a stream may pause: `kubectl logs -f | less`, or Ctrl-S in a shell.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

pub(super) struct Socket {
    tcp: TcpStream,
    unread_timeout_ms: u32,
    /// How many streams there are that may pause.
    streams: Arc<AtomicUsize>,
    may_pause: bool,
}

impl Socket {
    pub(super) fn new(tcp: TcpStream, unread_timeout: Duration, streams: Arc<AtomicUsize>) -> Self {
        let mut socket = Socket {
            tcp,
            unread_timeout_ms: u32::try_from(unread_timeout.as_millis()).unwrap_or(u32::MAX),
            streams,
            may_pause: true,
        };
        socket.follow_streams();
        socket
    }

    /// Each stream begins with a head that is written, so this comes before the first pause.
    fn follow_streams(&mut self) {
        let may_pause = self.streams.load(Ordering::Acquire) > 0;
        if may_pause == self.may_pause {
            return;
        }
        self.may_pause = may_pause;
        let timeout_ms = if may_pause { 0 } else { self.unread_timeout_ms };
        if let Err(error) = sockopt::set_tcp_user_timeout(&self.tcp, timeout_ms) {
            tracing::debug!(%error, "TCP_USER_TIMEOUT could not be set");
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        self.follow_streams();
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        self.follow_streams();
        Pin::new(&mut self.tcp).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn only_a_connection_without_streams_has_a_time_to_be_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let tcp = TcpStream::connect(address).await.expect("a connection");
        let streams = Arc::new(AtomicUsize::new(0));
        let mut socket = Socket::new(tcp, Duration::from_secs(60), streams.clone());
        for (count, expected_ms) in [(0, 60_000), (1, 0), (2, 0), (0, 60_000)] {
            streams.store(count, Ordering::Release);
            socket.write_all(b"head").await.expect("room");
            assert_eq!(
                sockopt::tcp_user_timeout(&socket.tcp),
                Ok(expected_ms),
                "{count} streams"
            );
        }
    }
}
