//! A kubelet of its own, for trying things out: `cargo run -p kubelet --example one_node -- CONFIG.yaml`.
//!
//! Run it as root in a network and mount namespace of its own; `RUST_LOG=kubelet=debug` shows each step.

use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let path = std::env::args()
        .nth(1)
        .ok_or_else(|| anyhow::anyhow!("usage: one_node CONFIG.yaml"))?;
    let config: kubelet::Config = serde_yaml_ng::from_str(&std::fs::read_to_string(path)?)?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    Ok(kubelet::run(config, shutdown).await?)
}
