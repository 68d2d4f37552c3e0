//! What a pod's containers stand in: sandbox, `/etc` files, volumes. Making, refreshing, removing.

use std::fs;
use std::time::Duration;

use jiff::Timestamp;

use super::Worker;
use crate::disk::{self, DiskError};
use crate::events::EventType;
use crate::pod::decide::Backoff;
use crate::pod::env::Sources;
use crate::pod::etc_files::{self, ClusterDns, Resolv};
use crate::pod::volumes::{self, Mounted, Volumes};
use crate::sandbox::{Sandbox, SandboxError};

/// When volumes that could not be refreshed are tried again.
const REFRESH_RETRY: Duration = Duration::from_secs(10);

impl Worker {
    /// Sandbox, `/etc` files and volumes: whatever is not there yet.
    pub(super) async fn prepare(&mut self) {
        if self.sandbox.is_none() {
            match Sandbox::create(&self.node.config, &self.pod).await {
                Ok(sandbox) => self.sandbox = Some(sandbox),
                Err(error) => return self.sandbox_failed(&error),
            }
        }
        if let Err(error) = self.write_etc_files() {
            self.node
                .events
                .pod(&self.pod, EventType::Warning, "FailedMount", error.to_string());
            return self.preparing.failed_briefly(Timestamp::now());
        }
        match self.mount_volumes().await {
            Ok(mounted) => {
                self.mounted = mounted;
                self.prepared = true;
                self.preparing = Backoff::default();
            }
            Err((volume, error)) => {
                let text = format!("MountVolume.SetUp failed for volume \"{volume}\" : {error}");
                self.node
                    .events
                    .pod(&self.pod, EventType::Warning, "FailedMount", text);
                self.preparing.failed_briefly(Timestamp::now());
            }
        }
    }

    fn sandbox_failed(&mut self, error: &SandboxError) {
        let text = format!("Failed to create pod sandbox: {error}");
        self.node
            .events
            .pod(&self.pod, EventType::Warning, "FailedCreatePodSandBox", text);
        self.preparing.failed_briefly(Timestamp::now());
    }

    async fn mount_volumes(&self) -> Result<Mounted, (String, volumes::VolumeError)> {
        let (ips, sources) = (self.ips(), Sources::default());
        let context = self.env_context(&ips, &[], &sources);
        let directory = self.node.config.pod_dir(&self.uid()).join("volumes");
        Volumes {
            config: &self.node.config,
            client: &self.node.client,
            context: &context,
            directory,
        }
        .mount_all()
        .await
    }

    pub(super) async fn refresh_if_due(&mut self) {
        let now = Timestamp::now();
        if self.mounted.refresh_at.is_none_or(|at| at > now) {
            return;
        }
        match self.mount_volumes().await {
            Ok(mounted) => self.mounted = mounted,
            Err((volume, error)) => {
                tracing::warn!(pod = self.name(), volume, %error, "volume not refreshed, keeping what is there");
                self.mounted.refresh_at = Some(now + REFRESH_RETRY);
            }
        }
    }

    fn write_etc_files(&self) -> Result<(), DiskError> {
        let config = &self.node.config;
        let directory = self.etc_dir();
        disk::make_dir(&directory)?;
        let host = Resolv::parse(&fs::read_to_string(&config.resolv_conf).unwrap_or_default());
        let cluster = ClusterDns {
            nameservers: &config.cluster_dns,
            domain: &config.cluster_domain,
            host: &host,
        };
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or("default");
        if let Some(spec) = &self.pod.spec {
            let (resolv, cut) = etc_files::pod_resolv(spec, namespace, &cluster);
            for text in cut {
                self.node
                    .events
                    .pod(&self.pod, EventType::Warning, "DNSConfigForming", text);
            }
            disk::write_for_now(&directory.join("resolv.conf"), resolv.render().as_bytes())?;
        }
        let hosts = if self.is_on_host_network() {
            fs::read_to_string("/etc/hosts").unwrap_or_default()
        } else {
            etc_files::hosts(&self.pod, &self.ips(), &config.cluster_domain)
        };
        disk::write_for_now(&directory.join("hosts"), hosts.as_bytes())?;
        disk::write_for_now(
            &directory.join("hostname"),
            format!("{}\n", self.hostname()).as_bytes(),
        )
    }

    /// Removes the network, once every container has ended.
    pub(super) async fn remove_sandbox(&mut self) {
        let Some(sandbox) = self.sandbox.clone() else {
            return;
        };
        self.end_pauser().await;
        match sandbox.destroy(&self.node.config).await {
            Ok(()) => {
                self.sandbox = None;
                self.prepared = false;
                self.preparing = Backoff::default();
            }
            Err(error) => {
                let text = format!("error killing pod: failed to destroy network for sandbox: {error}");
                self.node
                    .events
                    .pod(&self.pod, EventType::Warning, "FailedKillPod", text);
                self.preparing.failed_briefly(Timestamp::now());
            }
        }
    }
}
