//! Runs all controllers and the scheduler against the cluster that `KUBECONFIG` (or the usual places) names.
//!
//! ```sh
//! KUBECONFIG=admin.kubeconfig cargo run -p controllers --example standalone-controllers
//! ```
//!
//! `CONTROLLERS_SERVICE=10.96.0.1,172.30.0.1,6443` has it keep the Service `kubernetes` (its address, the API server's
//! address and port), `CONTROLLERS_DNS=10.96.0.10` the Service `kube-dns`, `CONTROLLERS_CA=FILE` the
//! ConfigMap
//! `kube-root-ca.crt`, and `CONTROLLERS_DISABLED=scheduler,pod-gc` leaves controllers out.

use std::env;
use std::fs;

use anyhow::Context as _;
use controllers::{Config, KubernetesService};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).init();
    let client = kube::Client::try_default()
        .await
        .context("no cluster is configured")?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    controllers::run(client, config()?, shutdown)
        .await
        .map_err(Into::into)
}

fn config() -> anyhow::Result<Config> {
    let mut config = Config::default();
    if let Ok(service) = env::var("CONTROLLERS_SERVICE") {
        let parts: Vec<&str> = service.split(',').collect();
        let [cluster_ip, address, port] = parts[..] else {
            anyhow::bail!("CONTROLLERS_SERVICE is not like 10.96.0.1,172.30.0.1,6443");
        };
        config.kubernetes_service = Some(KubernetesService {
            cluster_ip: cluster_ip.parse()?,
            port: 443,
            addresses: vec![address.parse()?],
            target_port: port.parse()?,
        });
    }
    if let Ok(address) = env::var("CONTROLLERS_DNS") {
        config.cluster_dns = Some(address.parse()?);
    }
    if let Ok(file) = env::var("CONTROLLERS_CA") {
        config.root_ca_pem = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    }
    if let Ok(disabled) = env::var("CONTROLLERS_DISABLED") {
        config.disabled = disabled.split(',').map(str::to_owned).collect();
    }
    Ok(config)
}
