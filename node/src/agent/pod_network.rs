//! The pod network: the overlay, and the book of pod addresses that it shares with the CNI server.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use model::ByFamily;
use overlay::fast_path::State;
use overlay::plan::Plan;
use overlay::pods::PodNetwork;
use overlay::{Leases, Nodes, Status};
use tokio::sync::{OnceCell, watch};
use tokio_util::sync::CancellationToken;

use super::supervisor::Part;
use crate::config::{Config, Datapath, Etcd, LeasesIn, Network};

/// The book of pod addresses, opened by whichever part comes first.
#[derive(Clone, Debug)]
pub struct Pods {
    directory: PathBuf,
    opened: Arc<OnceCell<PodNetwork>>,
}

impl Pods {
    /// The book in that directory.
    #[must_use]
    pub fn in_directory(directory: PathBuf) -> Self {
        Self {
            directory,
            opened: Arc::default(),
        }
    }

    /// Opens the book unless it is open.
    ///
    /// # Errors
    /// When it cannot be read; the next call tries again.
    pub async fn open(&self) -> anyhow::Result<PodNetwork> {
        let open = || async {
            let directory = self.directory.clone();
            let opened = tokio::task::spawn_blocking(move || PodNetwork::open(&directory)).await;
            anyhow::Ok(opened.context("open the book of pod addresses")??)
        };
        self.opened.get_or_try_init(open).await.cloned()
    }

    /// The book, once some part has opened it.
    #[must_use]
    pub fn opened(&self) -> Option<&PodNetwork> {
        self.opened.get()
    }
}

/// What the pod network tells other parts of the agent.
#[derive(Clone, Debug)]
pub struct Told {
    /// The name of its tunnel device for IPv4, once that is there.
    pub tunnel: watch::Sender<Option<String>>,
    /// What the kernel shall have for it.
    pub network: watch::Sender<Option<Arc<Plan>>>,
    /// How packets between pods pass through this node.
    pub fast_path: watch::Sender<State>,
    /// Whether pods can be connected.
    pub ready: watch::Sender<bool>,
}

/// Runs the overlay until shutdown.
///
/// # Errors
/// When it ends by itself, or the book of pod addresses cannot be read.
pub async fn run(
    settings: overlay::Config,
    pods: Pods,
    told: Told,
    part: Part,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let pods = pods.open().await?;
    let (sender, status) = watch::channel(Status::default());
    tokio::select! {
        ended = overlay::run(settings, pods, sender, shutdown) => ended.context("run the overlay"),
        () = tell(status, &told, &part) => std::future::pending().await,
    }
}

/// Tells how the overlay stands as long as it runs.
async fn tell(mut status: watch::Receiver<Status>, told: &Told, part: &Part) {
    loop {
        let Status {
            ready,
            problems,
            network,
            mtu,
            plan,
            fast_path,
            ..
        } = status.borrow_and_update().clone();
        // The MTU is known once the devices are there.
        let device = network
            .filter(|_| mtu.is_some())
            .and_then(|network| network.device_names().v4);
        update(&told.tunnel, device);
        update(&told.network, plan);
        update(&told.fast_path, fast_path);
        update(&told.ready, ready);
        if !problems.is_empty() {
            part.fails(&problems.join("; "));
        } else if ready {
            part.works();
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// Where packets are translated in the stack, those of pods must pass there, too.
fn fast_path(config: &Config, network: &Network) -> State {
    match config.proxy.datapath {
        _ if !network.fast_path => State::Off,
        Datapath::Ebpf => State::On,
        Datapath::None => {
            State::Refused("another proxy than this agent's translates for Services".to_owned())
        }
        datapath => State::Refused(format!(
            "packets are translated for Services by proxy.datapath {}",
            datapath.name()
        )),
    }
}

/// Tells only what is new.
fn update<T: PartialEq>(told: &watch::Sender<T>, now: T) {
    told.send_if_modified(|before| {
        let differs = *before != now;
        *before = now;
        differs
    });
}

/// The overlay's own configuration, of the agent's. None where that names no keeper of leases, which is refused when it
/// is read.
#[must_use]
pub fn settings(config: &Config, network: &Network, nodes: Nodes) -> Option<overlay::Config> {
    let leases = match network.leases {
        LeasesIn::Kubernetes => Leases::Kubernetes(nodes),
        LeasesIn::Etcd => Leases::Etcd(etcd(network.etcd.as_ref()?)),
    };
    Some(overlay::Config {
        node: config.node_name.clone(),
        leases,
        interface: network.interface.clone(),
        public_ips: ByFamily {
            v4: network.public_ip.map(IpAddr::V4),
            v6: network.public_ip_v6.map(IpAddr::V6),
        },
        network: network.flannel_config(),
        subnet_env: network.subnet_env.clone(),
        anti_spoofing: network.anti_spoofing,
        state_dir: config.state_dir.clone(),
        fast_path: fast_path(config, network),
        pin_dir: config.proxy.pin_dir.clone(),
    })
}

/// The etcd as the overlay is told of it.
#[must_use]
pub fn etcd(etcd: &Etcd) -> overlay::Etcd {
    overlay::Etcd {
        endpoints: etcd.endpoints.clone(),
        prefix: etcd.prefix.clone(),
        ca: etcd.ca.clone(),
        cert: etcd.cert.clone(),
        key: etcd.key.clone(),
        username: etcd.username.clone(),
        password_file: etcd.password_file.clone(),
    }
}
