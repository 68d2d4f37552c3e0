//! Pods with addresses of an AWS VPC: the manager of addresses, which asks EC2, between the book of pods' addresses and
//! what the kernel is made to have.
//!
//! ```text
//! EC2 ◄─ SDK ─ vpc_eni::Ipam ─┬─ blocks ─► PodNetwork ─► cni
//!                             └─ interfaces ─► overlay::vpc ─► rules, tables, translation
//! ```

mod former;
mod introspection;
pub mod metrics;
mod parts;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use ipnetwork::IpNetwork;
use model::{MacAddr, Mtu, with_causes};
use netlink::{Kernel as _, Netlink};
use overlay::pods::{Block, Growth, PodNetwork, Pool};
use overlay::vpc::{self, Random, Snat, Ways};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vpc_eni::ec2::{Metadata as _, MetadataError};
use vpc_eni::home::{Census, Facts, Home, Interface, Use};
use vpc_eni::ipam::problem::{self, Problems, Subject};
use vpc_eni::ipam::{Ipam, Status};
use vpc_eni::settings::{Randomize, Settings};
use vpc_eni_sdk::{Client, ImdsMetadata};

pub use former::Former;
use introspection::serve as serve_introspection;
pub use parts::start;

use super::pod_network::Pods;
use super::supervisor::Part;
use crate::config::Config;

/// How soon it is looked again for addresses that cool down.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The part that asks EC2, by its name.
pub const PART: &str = "vpc-addresses";

/// What pods wait for in the beginning.
const ASKED: &str = "the instance's network interfaces are asked for";

/// What the manager tells other parts of the agent.
#[derive(Clone, Debug)]
pub struct Told {
    status: watch::Sender<Status>,
    /// What is known of the node's place in the VPC.
    pub ways: watch::Sender<Ways>,
    /// What the kernel shall have.
    pub plan: watch::Sender<Option<Arc<vpc::Plan>>>,
}

/// What other parts of the agent hear.
#[derive(Clone, Debug)]
pub struct Heard {
    /// How the manager stands.
    pub status: watch::Receiver<Status>,
    /// What the kernel shall have, once that is known.
    pub plan: watch::Receiver<Option<Arc<vpc::Plan>>>,
}

/// Where the manager tells it. None where the configuration has no such network.
pub fn channel(config: &Config) -> (Option<Told>, Option<Heard>) {
    if config.vpc_eni.is_none() {
        return (None, None);
    }
    let (status, told) = watch::channel(Status::default());
    let nothing = Ways {
        interfaces: None,
        vpc_networks: Vec::new(),
        external_services: Vec::new(),
        snat: Snat::External,
        node_ports: false,
        mtu: Mtu(Settings::default().mtu.into()),
    };
    let ways = watch::Sender::new(nothing);
    let (plan, heard) = watch::channel(None);
    let heard = Heard {
        status: told,
        plan: heard,
    };
    (Some(Told { status, ways, plan }), Some(heard))
}

/// The part that asks EC2.
#[derive(Clone, Debug)]
pub struct Manager {
    /// What it is told.
    pub settings: Settings,
    /// What of that cannot be used.
    pub refused: Vec<String>,
    /// Where it writes down what it began.
    pub state_dir: PathBuf,
    /// Who has which address.
    pub pods: Pods,
    /// Who gave addresses here before.
    pub former: Former,
    /// What the cluster says of the node.
    pub facts: watch::Sender<Facts>,
    /// Where it tells how it stands.
    pub told: Told,
}

impl Manager {
    /// Runs until shutdown.
    ///
    /// # Errors
    /// When the settings cannot be used, the region is not known, or what must be remembered cannot be read.
    pub async fn run(self, part: Part, shutdown: CancellationToken) -> anyhow::Result<()> {
        let pods = self.pods.open().await?;
        let ended = self.manage(&pods, &part, shutdown).await;
        if let Err(error) = &ended {
            pods.wait_for(format!("{error:#}"));
        }
        ended
    }

    async fn manage(self, pods: &PodNetwork, part: &Part, shutdown: CancellationToken) -> anyhow::Result<()> {
        // Those of an earlier try are not this one's.
        self.told
            .status
            .send_modify(|status| status.problems = Problems::default());
        if !self.refused.is_empty() {
            bail!("the environment cannot be used: {}", self.refused.join("; "));
        }
        let settings = self.settings;
        let taken_over = self.former.take_over(pods, part);
        let Some(taken_over) = shutdown.run_until_cancelled(taken_over).await else {
            return Ok(());
        };
        taken_over?;
        pods.wait_for("the kernel is looked at for pods that are there".to_owned());
        if shutdown.run_until_cancelled(pods.await_look()).await.is_none() {
            return Ok(());
        }
        pods.wait_for(ASKED.to_owned());
        let metadata = ImdsMetadata::new(None)?;
        let Some(region) = shutdown.run_until_cancelled(region(&metadata)).await else {
            return Ok(());
        };
        let region = match region {
            Ok(region) => region,
            Err(error) => {
                let problem = problem::without_metadata(&error);
                let said =
                    format!("AWS_REGION is not set, and the instance does not tell its region: {problem}");
                self.told.status.send_modify(|status| {
                    status.problems.note(&Subject::Identity, problem);
                });
                bail!(said);
            }
        };
        let mut client = vpc_eni_sdk::Settings::from_env(region);
        client.endpoint.clone_from(&settings.ec2_endpoint);
        let client = Client::new(client).await?;
        let home = NodeHome::new(pods.clone(), &settings);
        let (manager, status) = Ipam::new(
            client,
            metadata,
            home,
            settings.clone(),
            self.facts.subscribe(),
            &self.state_dir,
        )?;
        tokio::select! {
            () = manager.run(shutdown) => Ok(()),
            () = tell(status, &settings, pods, &self.told, part) => std::future::pending().await,
            again = self.former.comes_back() => {
                again?;
                pods.suspend(former::RUNS.to_owned());
                bail!(former::RUNS)
            }
        }
    }
}

/// The region that EC2 is asked of.
async fn region(metadata: &ImdsMetadata) -> Result<String, MetadataError> {
    if let Some(region) = std::env::var("AWS_REGION")
        .ok()
        .filter(|region| !region.is_empty())
    {
        return Ok(region);
    }
    Ok(metadata.identity().await?.region)
}

/// Tells how the manager stands as long as it runs.
async fn tell(
    mut status: watch::Receiver<Status>,
    settings: &Settings,
    pods: &PodNetwork,
    told: &Told,
    part: &Part,
) {
    loop {
        let now = status.borrow_and_update().clone();
        if now.interfaces.is_none() {
            // Until there are some nobody else says what pods wait for.
            pods.wait_for(now.problems.growth().unwrap_or_else(|| ASKED.to_owned()));
        }
        if let Some(ways) = ways(&now, settings) {
            told.ways.send_if_modified(|before| {
                let differs = *before != ways;
                *before = ways;
                differs
            });
        }
        let problems: Vec<String> = now
            .problems
            .iter()
            .map(|(_, problem)| problem.to_string())
            .collect();
        if !problems.is_empty() {
            part.fails(&problems.join("; "));
        } else if now.interfaces.is_some() {
            part.works();
        }
        told.status.send_replace(now);
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// What the kernel shall have, once the interfaces are known.
fn ways(status: &Status, settings: &Settings) -> Option<Ways> {
    let interfaces = status.interfaces.as_ref()?;
    let (primary, others): (Vec<_>, Vec<_>) = interfaces
        .iter()
        .partition(|interface| interface.device_index == 0);
    let as_way = |interface: &Interface| vpc::Interface {
        mac: interface.mac,
        address: interface.address,
        subnet: interface.subnet,
        device_index: interface.device_index,
        blocks: interface.blocks.clone(),
    };
    let interfaces = vpc::Interfaces {
        primary: primary.first().map(|primary| as_way(primary))?,
        others: others.into_iter().map(as_way).collect(),
    };
    let random = match settings.randomize {
        Randomize::Prng => Random::Prng,
        Randomize::HashRandom => Random::HashRandom,
        Randomize::None => Random::None,
    };
    let excluded = settings.snat_excluded.clone();
    Some(Ways {
        interfaces: Some(interfaces),
        vpc_networks: status.vpc_networks.clone(),
        external_services: settings.external_services.clone(),
        snat: if settings.external_snat {
            Snat::External
        } else {
            Snat::Here { excluded, random }
        },
        node_ports: settings.node_ports,
        mtu: Mtu(settings.mtu.into()),
    })
}

/// Keeps the kernel as the manager tells.
///
/// # Errors
/// When the threads that program the kernel end, or the book cannot be read.
pub async fn keep_ways(
    anti_spoofing: bool,
    pods: Pods,
    told: Told,
    ready: watch::Sender<bool>,
    part: Part,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let pods = pods.open().await?;
    let (sender, mut status) = watch::channel(vpc::Status::default());
    let tell = async {
        loop {
            let now = status.borrow_and_update().clone();
            if !now.problems.is_empty() {
                part.fails(&now.problems.join("; "));
            } else if now.ready {
                part.works();
            }
            told.plan.send_if_modified(|before| {
                let differs = *before != now.plan;
                before.clone_from(&now.plan);
                differs
            });
            ready.send_if_modified(|before| std::mem::replace(before, now.ready) != now.ready);
            if status.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        ended = vpc::run(vpc::Config { anti_spoofing }, told.ways.subscribe(), pods, sender, shutdown) => {
            ended.context("keep the ways of pods with a VPC's addresses")
        }
        () = tell => std::future::pending().await,
    }
}

/// The node, as the manager sees it.
struct NodeHome {
    pods: PodNetwork,
    /// Of the book's changes the one that was heard of last.
    heard: AtomicU64,
    mtu: Mtu,
    cool_down: Duration,
    /// Something will change of which nobody tells.
    looks_again: AtomicBool,
}

impl NodeHome {
    fn new(pods: PodNetwork, settings: &Settings) -> Self {
        Self {
            heard: AtomicU64::new(*pods.changes().borrow()),
            pods,
            mtu: Mtu(settings.pod_mtu().into()),
            cool_down: settings.cool_down,
            looks_again: AtomicBool::new(false),
        }
    }
}

impl Home for NodeHome {
    fn devices(&self) -> Option<BTreeSet<MacAddr>> {
        match Netlink::open().and_then(|mut kernel| kernel.links()) {
            Ok(links) => Some(vpc::interface_devices(links.iter()).into_keys().collect()),
            Err(error) => {
                tracing::warn!(error = with_causes(&error), "the node's devices are not known");
                None
            }
        }
    }

    fn serve(&self, interfaces: &[Interface], blocked: Option<&str>) {
        let blocks: Vec<Block> = interfaces
            .iter()
            .flat_map(|interface| {
                let device_index = interface.device_index;
                let block = move |network: &IpNetwork| Block {
                    network: *network,
                    device_index,
                };
                interface.blocks.iter().map(block)
            })
            .collect();
        let networks: Vec<IpNetwork> = blocks.iter().map(|block| block.network).collect();
        self.pods.serve_pool(Pool {
            blocks,
            mtu: self.mtu,
            cool_down: self.cool_down,
            growth: match blocked {
                None => Growth::Possible,
                Some(reason) => Growth::Blocked {
                    reason: reason.to_owned(),
                },
            },
        });
        let withdrawn: BTreeSet<IpNetwork> = self.pods.census().map_or_else(BTreeSet::new, |census| {
            let counts = census.blocks.iter().filter(|count| count.is_withdrawn);
            counts.map(|count| count.block.network).collect()
        });
        if networks.iter().any(|network| withdrawn.contains(network))
            && let Err(error) = self.pods.restore(&networks)
        {
            tracing::warn!(
                error = with_causes(&error),
                "withdrawn addresses cannot be given again"
            );
        }
    }

    fn census(&self) -> Census {
        let Some(census) = self.pods.census() else {
            return Census::default();
        };
        let blocks: BTreeMap<IpNetwork, Use> = census
            .blocks
            .iter()
            .map(|count| {
                let used = Use {
                    assigned: number(count.assigned),
                    cooling: number(count.cooling),
                };
                (count.block.network, used)
            })
            .collect();
        if blocks.values().any(|used| used.cooling > 0) {
            self.looks_again.store(true, Ordering::Relaxed);
        }
        Census {
            blocks,
            waiting: number(census.unmet),
            stranded: census.stranded.iter().map(|stranded| stranded.address).collect(),
        }
    }

    fn withdraw(&self, blocks: &[IpNetwork]) -> Vec<IpNetwork> {
        match self.pods.withdraw(blocks) {
            Ok(withdrawal) => withdrawal.refused.iter().map(|busy| busy.network).collect(),
            Err(error) => {
                tracing::warn!(error = with_causes(&error), "addresses cannot be withdrawn");
                blocks.to_vec()
            }
        }
    }

    async fn changed(&self) {
        let heard = self.heard.load(Ordering::Relaxed);
        let mut changes = self.pods.changes();
        let looks_again = self.looks_again.swap(false, Ordering::Relaxed);
        let later = async {
            if looks_again {
                tokio::time::sleep(LOOK_AGAIN).await;
            } else {
                std::future::pending().await
            }
        };
        tokio::select! {
            // Who gives addresses lives as long as this.
            change = changes.wait_for(|change| *change != heard) => {
                if let Ok(change) = change {
                    self.heard.store(*change, Ordering::Relaxed);
                }
            }
            () = later => {}
        }
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
