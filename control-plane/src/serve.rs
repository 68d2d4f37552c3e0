//! What the cluster's own processes run: the supervisor, the control plane, a kubelet.

use std::future::Future;
use std::io::IsTerminal as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use ipnetwork::IpNetwork;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::cgroup::Cgroup;
use crate::layout::{NodeDir, StateDir};
use crate::preflight::Programs;
use crate::settings::{self, Agent, ExternalEtcd, Leases, Settings};
use crate::supervise::Unit;
use crate::{owner, status, supervise, underlay};

/// What the API server's keys begin with.
pub const REGISTRY: &str = "/registry";

/// `causeway-cluster supervise`.
pub fn supervisor(state: &StateDir) -> anyhow::Result<()> {
    log_to_stderr();
    // A session of its own: the end of the terminal is not its end. Fails only where it leads one already.
    let _ = nix::unistd::setsid();
    let _owner = owner::hold()?;
    let settings = load(state)?;
    let units = units(state, &settings, &Programs::find()?)?;
    runtime()?.block_on(supervise::supervise(units, state.processes(), state.logs()))
}

fn units(state: &StateDir, settings: &Settings, programs: &Programs) -> anyhow::Result<Vec<Unit>> {
    let cgroup = Cgroup::find()?;
    let text = |path: &Path| path.display().to_string();
    let cluster = text(&programs.cluster);
    let enter = |places: &[String], command: &[String]| {
        [
            &[cluster.clone(), "enter".to_owned()],
            places,
            &["--".to_owned()],
            command,
        ]
        .concat()
    };
    let unit = |name: String, command: Vec<String>| Unit {
        log: state.logs().join(format!("{name}.log")),
        name,
        command,
    };

    let root = text(state.root());
    let place = ["--cgroup".to_owned(), text(&cgroup.control_plane())];
    let of_cluster = |what: &str| {
        let words = [&cluster, what, "--state-dir", &root].map(str::to_owned);
        unit(what.to_owned(), enter(&place, &words))
    };
    let mut units = vec![of_cluster("control-plane")];
    units.extend(settings.vpc.is_some().then(|| of_cluster("vpc")));
    for name in settings.node_names() {
        let places = [
            "--net".to_owned(),
            format!(
                "{}/{}",
                netlink::netns::PIN_DIRECTORY,
                underlay::namespace_name(&name)
            ),
            "--mnt".to_owned(),
            text(&state.namespaces().join(format!("{name}.mnt"))),
            "--cgroup".to_owned(),
            text(&cgroup.node_system(&name)),
        ];
        units.extend(
            daemons(&state.node(&name), settings.agent, programs)
                .into_iter()
                .map(|(what, command)| unit(format!("{name}-{what}"), enter(&places, &command))),
        );
    }
    Ok(units)
}

/// The processes of a node, by what they are.
fn daemons(node: &NodeDir, agent: Agent, programs: &Programs) -> Vec<(&'static str, Vec<String>)> {
    let command = |program: &Path, what: &str, option: &str, file: PathBuf| {
        let words = [program, Path::new(what), Path::new(option), &file];
        words.map(|word| word.display().to_string()).to_vec()
    };
    let kubelet = command(&programs.cluster, "kubelet", "--config", node.kubelet_config());
    let mut daemons = vec![("kubelet", kubelet)];
    match agent {
        Agent::BuiltIn => daemons.extend([
            (
                "agent",
                command(&programs.causeway, "node", "--config", node.agent_config()),
            ),
            (
                "dns",
                command(&programs.causeway, "dns", "--conf", node.corefile()),
            ),
        ]),
        Agent::None => {}
    }
    daemons
}

/// `causeway-cluster control-plane`: store, API server and controllers in one process.
pub fn control_plane(state: &StateDir) -> anyhow::Result<()> {
    log_to_stderr();
    let settings = load(state)?;
    runtime()?.block_on(until_signalled(|shutdown| {
        run_control_plane(state.clone(), settings, shutdown)
    }))
}

/// `causeway-cluster vpc`.
pub fn vpc(state: &StateDir) -> anyhow::Result<()> {
    log_to_stderr();
    let settings = load(state)?;
    runtime()?.block_on(until_signalled(|shutdown| {
        crate::vpc::run(state.clone(), settings, shutdown)
    }))
}

async fn run_control_plane(
    state: StateDir,
    settings: Settings,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let _stop_all = shutdown.clone().drop_guard();
    let store = match &settings.etcd {
        Some(_) => None,
        None => Some(
            store::Server::bind(store_config(&state, &settings))
                .await
                .context("starting the store")?,
        ),
    };
    let store = async {
        match store {
            Some(store) => store.run(shutdown.clone()).await.context("the store"),
            None => Ok(()),
        }
    };
    let rest = run_api_and_controllers(&state, &settings, &shutdown);
    tokio::try_join!(store, rest).map(|_| ())
}

async fn run_api_and_controllers(
    state: &StateDir,
    settings: &Settings,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let api = apiserver::Server::bind(api_config(state, settings))
        .await
        .context("starting the API server")?;
    let api = async { api.run(shutdown.clone()).await.context("the API server") };
    let controllers = async {
        let client = status::client(&state.pki().join("controllers.kubeconfig")).await?;
        let config = controllers_config(state, settings)?;
        controllers::run(client, config, shutdown.clone())
            .await
            .context("the controllers")
    };
    tokio::try_join!(api, controllers).map(|_| ())
}

fn store_config(state: &StateDir, settings: &Settings) -> store::Config {
    let files = state.key_pair("etcd");
    let tls = store::TlsFiles {
        cert: files.cert,
        key: files.key,
        client_ca: state.key_pair("ca").cert,
    };
    store::Config {
        tls: Some(tls),
        ..store::Config::new(state.store(), listen(settings, settings.etcd_port))
    }
}

fn api_config(state: &StateDir, settings: &Settings) -> apiserver::Config {
    let serving = state.key_pair("apiserver");
    let kubelet_client = state.key_pair("apiserver-kubelet-client");
    apiserver::Config {
        listen: listen(settings, settings.api_port),
        cert: serving.cert,
        key: serving.key,
        client_ca: state.key_pair("ca").cert,
        sa_signing_key: state.key_pair("service-account").key,
        sa_issuer: apiserver::Config::DEFAULT_ISSUER.to_owned(),
        etcd: api_etcd_config(state, settings),
        service_cidrs: settings.service_cidr,
        node_port_range: apiserver::Config::DEFAULT_NODE_PORTS,
        kubelet_client_cert: kubelet_client.cert,
        kubelet_client_key: kubelet_client.key,
        nearby_nodes: Vec::new(),
        limits: apiserver::Limits::default(),
        features: apiserver::Features {
            version: settings.kubernetes_version,
            gates: settings.feature_gates.clone(),
        },
    }
}

fn api_etcd_config(state: &StateDir, settings: &Settings) -> apiserver::EtcdConfig {
    match &settings.etcd {
        Some(etcd) => external_etcd_config(etcd),
        None => {
            let client = state.key_pair("apiserver-etcd-client");
            let endpoints = vec![format!("https://127.0.0.1:{}", settings.etcd_port)];
            let ca = Some(state.key_pair("ca").cert);
            apiserver::EtcdConfig {
                endpoints,
                ca,
                cert: Some(client.cert),
                key: Some(client.key),
                user: None,
                prefix: REGISTRY.to_owned(),
            }
        }
    }
}

/// How the API server reaches an etcd that somebody else runs.
pub fn external_etcd_config(etcd: &ExternalEtcd) -> apiserver::EtcdConfig {
    let ExternalEtcd {
        endpoints,
        ca,
        client,
        user,
    } = etcd.clone();
    let (cert, key) = client.unzip();
    let user = user.map(|(name, password_file)| apiserver::EtcdUser { name, password_file });
    apiserver::EtcdConfig {
        endpoints,
        ca,
        cert,
        key,
        user,
        prefix: REGISTRY.to_owned(),
    }
}

fn controllers_config(state: &StateDir, settings: &Settings) -> anyhow::Result<controllers::Config> {
    let kubernetes = controllers::KubernetesService {
        cluster_ip: settings.kubernetes_service().into(),
        port: 443,
        addresses: vec![settings.control_plane_address().into()],
        target_port: settings.api_port,
    };
    let node_cidrs = match settings.leases {
        Leases::Etcd => Vec::new(),
        Leases::Kubernetes => settings.pod_cidr.iter().map(range).collect(),
    };
    Ok(controllers::Config {
        node_cidrs,
        root_ca_pem: std::fs::read_to_string(state.key_pair("ca").cert)?,
        kubernetes_service: Some(kubernetes),
        cluster_dns: Some(settings.cluster_dns().into()),
        ..controllers::Config::default()
    })
}

fn range(network: IpNetwork) -> controllers::NodeRange {
    let prefix = settings::node_prefix(network);
    controllers::NodeRange { network, prefix }
}

fn listen(settings: &Settings, port: u16) -> Vec<SocketAddr> {
    let addresses: [IpAddr; 2] = [
        Ipv4Addr::LOCALHOST.into(),
        settings.control_plane_address().into(),
    ];
    addresses
        .into_iter()
        .map(|address| SocketAddr::new(address, port))
        .collect()
}

/// `causeway-cluster kubelet`.
pub fn kubelet(config: &Path) -> anyhow::Result<()> {
    log_to_stderr();
    let text = std::fs::read_to_string(config).with_context(|| format!("reading {}", config.display()))?;
    let config: kubelet::Config =
        serde_yaml_ng::from_str(&text).with_context(|| format!("reading {}", config.display()))?;
    runtime()?.block_on(until_signalled(|shutdown| async {
        kubelet::run(config, shutdown).await.map_err(anyhow::Error::from)
    }))
}

/// Runs `work` until it ends or a signal asks it to.
async fn until_signalled<F: Future<Output = anyhow::Result<()>>>(
    work: impl FnOnce(CancellationToken) -> F,
) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let signalled = shutdown.clone();
    tokio::spawn(async move {
        if supervise::wait_for_signal().await.is_ok() {
            signalled.cancel();
        }
    });
    work(shutdown).await
}

fn load(state: &StateDir) -> anyhow::Result<Settings> {
    Settings::load(&state.settings())?.with_context(|| format!("{} is missing", state.settings().display()))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("CAUSEWAY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .with_writer(std::io::stderr)
        .init();
}
