//! The cluster's controllers and its scheduler. They need nothing but a Kubernetes API server, ours or any
//! other.
//!
//! ```no_run
//! # async fn start(client: kube::Client, root_ca_pem: String) -> Result<(), controllers::Error> {
//! let config = controllers::Config { root_ca_pem, ..controllers::Config::default() };
//! controllers::run(client, config, tokio_util::sync::CancellationToken::new()).await
//! # }
//! ```
//!
//! Each controller is a task under one supervisor and consists of a pure decision, `(what is observed, now) →
//! what is to be done`, and a thin shell that reads the caches, applies the decision and writes back. All
//! state is in the API: a restart observes again and decides the same.
//!
//! - `replicaset`, `deployment`, `daemonset`, `statefulset`, `job`, `cronjob`: workloads, with upstream's rules to the
//!   letter where users see them.
//! - `disruption`: what PodDisruptionBudgets allow.
//! - `endpoints`: EndpointSlices and Endpoints of Services.
//! - `scheduler`: pods to nodes.
//! - `nodes`, `pod_gc`: nodes that stop answering, pods whose node is gone; each node's part of the pods' addresses.
//! - `namespaces`, `garbage`: deletion of what is contained and what is owned.
//! - `accounts`, `builtin`: what every namespace, and the cluster, has by itself.
//! - `aggregation`: ClusterRoles that are made of others.
//! - `workload`, `history`, `template`: what workloads have in common.
//! - `cache`, `queue`, `supervisor`, `events`: the common shell.

mod accounts;
mod aggregation;
mod builtin;
mod cache;
mod config;
mod context;
mod cronjob;
mod daemonset;
mod deployment;
mod discovery;
mod disruption;
mod endpoints;
mod error;
mod events;
mod garbage;
mod history;
mod job;
mod namespaces;
mod nodes;
mod ownership;
mod pod_gc;
mod pods;
mod queue;
mod replicaset;
mod scheduler;
mod selector;
mod share;
mod statefulset;
mod supervisor;
mod taints;
mod template;
mod workload;

use std::sync::Arc;

use futures::future::BoxFuture;
use kube::Client;
use tokio_util::sync::CancellationToken;

pub use config::{Config, KubernetesService, NodeRange};
pub use error::Error;

pub(crate) use context::Context;

/// Who our writes are attributed to in `metadata.managedFields`.
pub(crate) const FIELD_MANAGER: &str = "causeway-controllers";

/// What a controller runs as.
type Run = fn(Arc<Context>) -> BoxFuture<'static, Result<(), Error>>;

/// Every controller, by the name under which [`Config::disabled`] knows it.
const PARTS: [(&str, Run); 21] = [
    ("builtin", |context| Box::pin(builtin::run(context))),
    ("clusterrole-aggregation", |context| {
        Box::pin(aggregation::run(context))
    }),
    ("cronjob", |context| Box::pin(cronjob::run(context))),
    ("daemonset", |context| Box::pin(daemonset::run(context))),
    ("deployment", |context| Box::pin(deployment::run(context))),
    ("disruption", |context| Box::pin(disruption::run(context))),
    ("endpoints", |context| Box::pin(endpoints::run_endpoints(context))),
    ("endpointslice", |context| {
        Box::pin(endpoints::run_slices(context))
    }),
    ("endpointslice-mirroring", |context| {
        Box::pin(endpoints::run_mirror(context))
    }),
    ("garbage-collector", |context| Box::pin(garbage::run(context))),
    ("job", |context| Box::pin(job::run(context))),
    ("namespace", |context| Box::pin(namespaces::run(context))),
    ("node-ipam", |context| Box::pin(nodes::run_subnets(context))),
    ("node-lifecycle", |context| Box::pin(nodes::run(context))),
    ("pod-gc", |context| Box::pin(pod_gc::run(context))),
    ("replicaset", |context| Box::pin(replicaset::run(context))),
    ("root-ca", |context| Box::pin(accounts::run_root_ca(context))),
    ("scheduler", |context| Box::pin(scheduler::run(context))),
    ("serviceaccount", |context| {
        Box::pin(accounts::run_service_accounts(context))
    }),
    ("statefulset", |context| Box::pin(statefulset::run(context))),
    ("taint-eviction", |context| Box::pin(nodes::run_eviction(context))),
];

/// Runs all controllers until `shutdown`, and fails only for a configuration that cannot be meant. An API
/// server that is not there yet, or goes away, is waited for.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    if let Some(unknown) = config
        .disabled
        .iter()
        .find(|name| !PARTS.iter().any(|(part, _)| part == name))
    {
        return Err(Error::UnknownController {
            name: unknown.clone(),
        });
    }
    let (context, background) = Context::start(client, config);
    let enabled = PARTS
        .into_iter()
        .filter(|(name, _)| !context.config.disabled.contains(*name));
    let parts = enabled.map(|(name, run)| {
        let context = Arc::clone(&context);
        (
            name,
            Box::new(move || run(Arc::clone(&context))) as supervisor::Start,
        )
    });
    let parts = parts.collect();
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = context.caches.synced() => {
            tracing::info!("caches are filled, controllers start");
            supervisor::supervise(parts, shutdown.clone()).await;
        }
    }
    drop(background);
    Ok(())
}
