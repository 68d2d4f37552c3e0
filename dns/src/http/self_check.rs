//! The server asks for its own health page, as CoreDNS does: how long that takes shows how busy it is.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::metrics::Histogram;
use crate::state::State;

const PAUSE: Duration = Duration::from_secs(1);
/// What takes longer has failed, and is counted as so long.
const LONGEST: Duration = Duration::from_secs(3);

/// What became of the requests.
#[derive(Debug)]
pub struct SelfChecks {
    /// How long they took.
    pub durations: Histogram,
    /// How many got no good answer.
    pub failures: AtomicU64,
}

impl Default for SelfChecks {
    fn default() -> Self {
        Self {
            durations: Histogram::slim(),
            failures: AtomicU64::new(0),
        }
    }
}

/// Asks again and again, while there is the page at the address that the Corefile writes as `address` and that is
/// listened at as `bound`. Never ends.
pub async fn check_health(address: SocketAddr, bound: SocketAddr, state: Arc<State>) {
    let target = match bound.ip() {
        ip if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, bound.port())),
        _ => bound,
    };
    let SelfChecks { durations, failures } = &state.self_checks;
    loop {
        tokio::time::sleep(PAUSE).await;
        if !state.endpoints(&address).health {
            continue;
        }
        let started = Instant::now();
        match timeout(LONGEST, is_healthy(target)).await {
            Ok(Ok(true)) => durations.record(started.elapsed()),
            failed => {
                tracing::debug!(?failed, address = %target, "no answer to a request for the own health");
                durations.record(LONGEST);
                failures.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

async fn is_healthy(target: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect(target).await?;
    let request = format!("GET /health HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut page = Vec::new();
    stream.read_to_end(&mut page).await?;
    Ok(page.starts_with(b"HTTP/1.1 200 "))
}
