//! An API server of its own, for trying things out: starts a store, makes fresh certificates, writes a kubeconfig.
//!
//! ```text
//! cargo run -p apiserver --example standalone -- [DIRECTORY] [PORT]
//! kubectl --kubeconfig DIRECTORY/admin.kubeconfig get namespaces
//! ```
//! DIRECTORY defaults to `/tmp/causeway-apiserver`, PORT to 16443. The store is the bundled one; with
//! `ETCD=http://127.0.0.1:2379` in the environment it is that etcd, with `ETCD=real` the `etcd` on PATH (Debian's
//! `etcd-server`) or the one that `ETCD_BINARY` names, its data in DIRECTORY. No controllers run: create the `default` ServiceAccount before any Pod.

#[path = "../tests/harness/mod.rs"]
mod harness;

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter("info,apiserver=debug")
        .with_writer(std::io::stderr)
        .init();
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(
        arguments
            .next()
            .unwrap_or_else(|| "/tmp/causeway-apiserver".to_owned()),
    );
    let port: u16 = arguments.next().map_or(Ok(16443), |port| port.parse())?;
    let files = harness::Files::create(&directory, port)?;
    let (endpoint, _etcd) = match std::env::var("ETCD") {
        Ok(word) if word == "real" => own(harness::Etcd::real(&directory)?),
        Ok(endpoint) => (endpoint, None),
        Err(_) => own(harness::Etcd::bundled(&directory).await?),
    };
    let server = apiserver::Server::bind(files.config(port, &endpoint)).await?;
    println!("export KUBECONFIG={}", files.kubeconfig().display());
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
    });
    server.run(shutdown).await?;
    Ok(())
}

fn own(etcd: harness::Etcd) -> (String, Option<harness::Etcd>) {
    (etcd.endpoint().to_owned(), Some(etcd))
}
