//! Serves a Corefile, as `causeway dns --conf Corefile` does: for trying this crate alone.
//!
//! `cargo run -p dns --example serve -- Corefile`

use std::io::Write;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

async fn serve() -> anyhow::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "Corefile".to_owned());
    let server = dns::server::Bound::new(&dns::Config::parse(path)?).await?;
    // For a caller that let the kernel choose ports.
    let mut out = std::io::stdout();
    writeln!(out, "dns {:?}", server.addresses())?;
    writeln!(out, "http {:?}", server.http_addresses())?;
    out.flush()?;
    let shutdown = CancellationToken::new();
    let ended = shutdown.clone();
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        ended.cancel();
    });
    Ok(server.run(shutdown).await?)
}
