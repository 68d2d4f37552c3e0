//! A node that comes from amazon-vpc-cni-k8s (the DaemonSet `aws-node`): its pods live on, and its rules go.
//!
//! 1. As long as its daemon runs, nothing is given: two would give the same addresses.
//! 2. Its pods come into the book of addresses, before the first address is given.
//! 3. Once ours are in the kernel, its rules go, and once our conflist is there, its own, which the runtime would prefer.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use netlink::nft::Nft;
use overlay::pods::PodNetwork;
use overlay::vpc::aws_node::{self, TakenOver};
use overlay::vpc::{self, Snat, Ways};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::agent::cni::conflist;
use crate::agent::supervisor::Part;
use crate::config::{Config, VpcEni};

/// Between two looks whether its daemon has ended, or our conflist is there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Between two looks whether somebody started it again.
const WATCH: Duration = Duration::from_secs(10);

const RUNS: &str = "aws-node runs on this node and gives addresses of the same interfaces: keep it off the node \
                    (node/deploy/VPC-ENI.md), since of two each would give an address a second time";

/// Where its traces are.
#[derive(Clone, Debug)]
pub struct Former {
    directory: PathBuf,
    introspection: Option<SocketAddr>,
    conf_dir: PathBuf,
    /// Whether its pods are taken over: from then on the endpoint that would tell of its daemon is ours.
    taken_over: watch::Sender<bool>,
}

impl Former {
    /// Nothing is looked at yet.
    pub fn of(config: &Config, section: &VpcEni) -> Self {
        let (settings, _) = section.settings(std::env::vars());
        Self {
            directory: section.aws_node_dir.clone(),
            introspection: settings.introspection.and_then(|at| at.parse().ok()),
            conf_dir: config.cni.conf_dir.clone(),
            taken_over: watch::Sender::new(false),
        }
    }

    /// Returns once its pods are in the book. What it waits for is told.
    ///
    /// # Errors
    /// When the kernel does not tell what there is, or the book cannot be written.
    pub async fn take_over(&self, pods: &PodNetwork, part: &Part) -> anyhow::Result<()> {
        if *self.taken_over.borrow() {
            return Ok(());
        }
        while self.runs(self.introspection).await? {
            part.fails(RUNS);
            pods.wait_for(RUNS.to_owned());
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let (directory, book) = (self.directory.clone(), pods.clone());
        let taken = spawn_blocking(move || aws_node::take_over(&directory, &book)).await;
        let taken = taken.context("take aws-node's pods over")??;
        let TakenOver {
            pods,
            strangers,
            problems,
        } = &taken;
        if *pods > 0 {
            tracing::info!(pods, "aws-node's pods are taken over");
        }
        if !strangers.is_empty() {
            tracing::warn!(
                devices = strangers.join(", "),
                "pods of which aws-node's checkpoint does not tell keep their addresses until they are deleted"
            );
        }
        for problem in problems {
            tracing::warn!(problem, "of what aws-node left");
        }
        self.taken_over.send_replace(true);
        Ok(())
    }

    /// Returns once its pods are taken over, and the endpoint is free that its daemon has, too.
    pub async fn is_taken_over(&self) {
        let mut taken_over = self.taken_over.subscribe();
        // The sender is our own.
        let _known = taken_over.wait_for(|taken_over| *taken_over).await;
    }

    /// Takes away its rules once ours are there, which `ready` tells, and its conflist once ours is; and tells if somebody
    /// starts it again.
    ///
    /// # Errors
    /// When something of that cannot be removed: the next try begins anew.
    pub async fn remove(
        self,
        mut ready: watch::Receiver<bool>,
        ways: watch::Receiver<Ways>,
        part: Part,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        // What it waits for is told by others.
        part.works();
        let work = async {
            self.is_taken_over().await;
            ready
                .wait_for(|ready| *ready)
                .await
                .context("wait for our rules")?;
            let wants_table = wants_table(&ways.borrow());
            while wants_table && !has_table().await? {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            self.remove_rules().await?;
            while !self.conf_dir.join(conflist::NAME).exists() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            self.remove_conflist().await?;
            part.works();
            loop {
                tokio::time::sleep(WATCH).await;
                if self.runs(None).await? {
                    part.fails(RUNS);
                    while self.runs(None).await? {
                        tokio::time::sleep(LOOK_AGAIN).await;
                    }
                    // It wrote both again.
                    self.remove_rules().await?;
                    self.remove_conflist().await?;
                    part.works();
                }
            }
        };
        shutdown.run_until_cancelled(work).await.unwrap_or(Ok(()))
    }

    async fn runs(&self, introspection: Option<SocketAddr>) -> anyhow::Result<bool> {
        let directory = self.directory.clone();
        let runs = spawn_blocking(move || aws_node::is_running(&directory, introspection)).await;
        runs.context("look for aws-node")
    }

    async fn remove_rules(&self) -> anyhow::Result<()> {
        let remove = || {
            let removed = aws_node::remove_rules(&mut Nft::open()?)?;
            anyhow::Ok((removed, aws_node::has_legacy_tables()))
        };
        let removed = spawn_blocking(remove).await.context("remove aws-node's rules")?;
        let (removed, has_legacy_tables) = removed.context("remove aws-node's rules")?;
        if removed > 0 {
            tracing::info!(
                removed,
                "aws-node's chains, rules and tables are gone: ours translate"
            );
        }
        if has_legacy_tables && self.directory.join("ipam.json").exists() {
            tracing::warn!(
                "legacy iptables has rules here, which cannot be seen: look for AWS-SNAT-CHAIN-0 by iptables-legacy-save, \
                 and remove what aws-node has there (node/deploy/VPC-ENI.md)"
            );
        }
        Ok(())
    }

    async fn remove_conflist(&self) -> anyhow::Result<()> {
        let directory = self.conf_dir.clone();
        let removed = spawn_blocking(move || conflist::remove_of_aws_node(&directory)).await;
        if removed.context("remove aws-node's conflist")?? {
            tracing::info!("aws-node's conflist is gone: the container runtime takes ours");
        }
        Ok(())
    }
}

/// Whether ours translate at all.
fn wants_table(ways: &Ways) -> bool {
    ways.snat != Snat::External || ways.node_ports
}

/// Whether ours do.
async fn has_table() -> anyhow::Result<bool> {
    let look = || anyhow::Ok(Nft::open()?.has_table(&vpc::table())?);
    spawn_blocking(look).await.context("look for our table")?
}
