//! A node that comes from amazon-vpc-cni-k8s (the DaemonSet `aws-node`): its pods live on, and its rules go.
//!
//! 1. As long as its daemon runs, nothing is given: two would give the same addresses. Where somebody starts it again, all
//!    of this begins anew.
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

use vpc_eni::settings::Settings;

use crate::agent::cni::conflist;
use crate::agent::supervisor::Part;
use crate::config::{Config, VpcEni};

/// Between two looks whether its daemon has ended, or our conflist is there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How soon it is tried again to take away what it left.
const TRY_AGAIN: Duration = Duration::from_secs(10);

pub(super) const RUNS: &str = "aws-node runs on this node and gives addresses of the same interfaces: keep it off the node \
                    (node/deploy/VPC-ENI.md), since of two each would give an address a second time";

/// Where its traces are.
#[derive(Clone, Debug)]
pub struct Former {
    directory: PathBuf,
    /// Where its daemon would tell about itself, by the same variable as we do.
    introspection: SocketAddr,
    conf_dir: PathBuf,
    standing: watch::Sender<Standing>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Nobody looked yet.
    Unknown,
    /// Its pods are taken over: from then on the endpoint that would tell of its daemon is ours.
    TakenOver,
    /// It was, and its daemon was started again.
    There,
}

impl Former {
    /// Nothing is looked at yet.
    pub fn of(config: &Config, section: &VpcEni, settings: &Settings) -> Self {
        Self {
            directory: section.aws_node_dir.clone(),
            introspection: settings.introspection,
            conf_dir: config.cni.conf_dir.clone(),
            standing: watch::Sender::new(Standing::Unknown),
        }
    }

    /// Returns once its pods are in the book. What it waits for is told.
    ///
    /// # Errors
    /// When the kernel does not tell what there is, or the book cannot be written.
    pub async fn take_over(&self, pods: &PodNetwork, part: &Part) -> anyhow::Result<()> {
        let endpoint = match *self.standing.borrow() {
            Standing::TakenOver => return Ok(()),
            Standing::Unknown => Some(self.introspection),
            Standing::There => None,
        };
        while self.runs(endpoint).await? {
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
        self.standing.send_replace(Standing::TakenOver);
        Ok(())
    }

    /// Returns once somebody started its daemon again.
    ///
    /// # Errors
    /// When it cannot be looked for it.
    pub async fn comes_back(&self) -> anyhow::Result<()> {
        while !self.runs(None).await? {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.standing.send_replace(Standing::There);
        Ok(())
    }

    /// Returns once its pods are taken over, and the endpoint is free that its daemon has, too.
    pub async fn is_taken_over(&self) {
        self.stands(Standing::TakenOver).await;
    }

    async fn stands(&self, wanted: Standing) {
        let mut standing = self.standing.subscribe();
        // The sender is our own.
        let _known = standing.wait_for(|standing| *standing == wanted).await;
    }

    /// Takes away its rules once ours are there, which `ready` tells, and its conflist once ours is, as often as it comes.
    pub async fn remove(
        self,
        ready: watch::Receiver<bool>,
        ways: watch::Receiver<Ways>,
        part: Part,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        // What it waits for is told by others.
        part.works();
        let work = self.keep_removed(&ready, &ways, &part);
        shutdown.run_until_cancelled(work).await;
        Ok(())
    }

    async fn keep_removed(&self, ready: &watch::Receiver<bool>, ways: &watch::Receiver<Ways>, part: &Part) {
        loop {
            self.is_taken_over().await;
            while let Err(error) = self.remove_once(ready.clone(), ways).await {
                part.fails(&format!("{error:#}"));
                tokio::time::sleep(TRY_AGAIN).await;
            }
            part.works();
            // It writes both again.
            self.stands(Standing::There).await;
        }
    }

    async fn remove_once(
        &self,
        mut ready: watch::Receiver<bool>,
        ways: &watch::Receiver<Ways>,
    ) -> anyhow::Result<()> {
        let ours = ready.wait_for(|ready| *ready).await;
        ours.context("wait for our rules")?;
        let wants_table = wants_table(&ways.borrow());
        while wants_table && !has_table().await? {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.remove_rules().await?;
        while !self.conf_dir.join(conflist::NAME).exists() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.remove_conflist().await
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
