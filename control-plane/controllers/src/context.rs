//! What every controller is given: the client, the caches, the recorder of events.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::task::JoinSet;

use crate::cache::Cache;
use crate::config::Config;
use crate::events::{Recorder, write_events};

/// The namespace of the Leases by which kubelets say that they live.
pub(crate) const NODE_LEASES: &str = "kube-node-lease";
/// The ConfigMap that carries the cluster's CA.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";

/// Shared by all controllers.
pub(crate) struct Context {
    pub client: Client,
    pub config: Config,
    pub caches: Caches,
    pub recorder: Recorder,
}

/// One cache, and one watch, per kind in the whole process.
pub(crate) struct Caches {
    pub pods: Cache<Pod>,
    pub nodes: Cache<Node>,
    /// Only those in [`NODE_LEASES`].
    pub leases: Cache<Lease>,
    pub services: Cache<Service>,
    pub endpoints: Cache<Endpoints>,
    pub slices: Cache<EndpointSlice>,
    pub replica_sets: Cache<ReplicaSet>,
    pub deployments: Cache<Deployment>,
    pub daemon_sets: Cache<DaemonSet>,
    pub controller_revisions: Cache<ControllerRevision>,
    pub budgets: Cache<PodDisruptionBudget>,
    pub stateful_sets: Cache<StatefulSet>,
    pub jobs: Cache<Job>,
    pub cron_jobs: Cache<CronJob>,
    pub namespaces: Cache<Namespace>,
    pub service_accounts: Cache<ServiceAccount>,
    /// Only those named [`ROOT_CA`].
    pub root_cas: Cache<ConfigMap>,
    pub cluster_roles: Cache<ClusterRole>,
}

impl Context {
    /// Starts the watches and the writer of events; they end when the returned set is dropped.
    pub fn start(client: Client, config: Config) -> (Arc<Self>, JoinSet<()>) {
        let (recorder, told) = Recorder::new();
        let caches = Caches::new(&client);
        let context = Arc::new(Self {
            client: client.clone(),
            config,
            caches,
            recorder,
        });
        let mut background = JoinSet::new();
        background.spawn(write_events(client, told));
        Caches::watch(&context, &mut background);
        (context, background)
    }
}

impl Caches {
    fn new(client: &Client) -> Self {
        Self {
            pods: Cache::new(client.clone()),
            nodes: Cache::new(client.clone()),
            leases: Cache::new(client.clone()),
            services: Cache::new(client.clone()),
            endpoints: Cache::new(client.clone()),
            slices: Cache::new(client.clone()),
            replica_sets: Cache::new(client.clone()),
            deployments: Cache::new(client.clone()),
            daemon_sets: Cache::new(client.clone()),
            controller_revisions: Cache::new(client.clone()),
            budgets: Cache::new(client.clone()),
            stateful_sets: Cache::new(client.clone()),
            jobs: Cache::new(client.clone()),
            cron_jobs: Cache::new(client.clone()),
            namespaces: Cache::new(client.clone()),
            service_accounts: Cache::new(client.clone()),
            root_cas: Cache::new(client.clone()),
            cluster_roles: Cache::new(client.clone()),
        }
    }

    fn watch(context: &Arc<Context>, background: &mut JoinSet<()>) {
        macro_rules! watch {
            ($($cache:ident: $api:expr, $config:expr);* $(;)?) => {
                $({
                    let context = Arc::clone(context);
                    let api = $api(context.client.clone());
                    background.spawn(async move { context.caches.$cache.watch(api, $config).await });
                })*
            };
        }
        let config = watcher::Config::default;
        watch!(
            pods: Api::all, config();
            nodes: Api::all, config();
            leases: |client| Api::namespaced(client, NODE_LEASES), config();
            services: Api::all, config();
            endpoints: Api::all, config();
            slices: Api::all, config();
            replica_sets: Api::all, config();
            deployments: Api::all, config();
            daemon_sets: Api::all, config();
            controller_revisions: Api::all, config();
            budgets: Api::all, config();
            stateful_sets: Api::all, config();
            jobs: Api::all, config();
            cron_jobs: Api::all, config();
            namespaces: Api::all, config();
            service_accounts: Api::all, config();
            root_cas: Api::all, config().fields(&format!("metadata.name={ROOT_CA}"));
            cluster_roles: Api::all, config();
        );
    }

    /// Waits until every cache has its first complete list.
    pub async fn synced(&self) {
        tokio::join!(
            self.pods.synced(),
            self.nodes.synced(),
            self.leases.synced(),
            self.services.synced(),
            self.endpoints.synced(),
            self.slices.synced(),
            self.replica_sets.synced(),
            self.deployments.synced(),
            self.daemon_sets.synced(),
            self.controller_revisions.synced(),
            self.budgets.synced(),
            self.stateful_sets.synced(),
            self.jobs.synced(),
            self.cron_jobs.synced(),
            self.namespaces.synced(),
            self.service_accounts.synced(),
            self.root_cas.synced(),
            self.cluster_roles.synced(),
        );
    }
}
