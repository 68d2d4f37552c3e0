//! `shareProcessNamespace`: the containers of a pod see each other's processes. A PID namespace lives as long as its
//! process 1, which here is the built-in `pause`, as with Kubernetes: it reaps what they leave behind.

use std::path::PathBuf;

use super::{Worker, log_leftover};
use crate::cgroup::Cgroup;
use crate::disk::{self, OnPath};
use crate::images::PAUSE;
use crate::oci::{ContainerSpec, Security, oci_config};
use crate::pod::container::DEFAULT_PATH;
use crate::pod::launch::refused;
use crate::pod::slot::Trouble;
use crate::process::Signal;
use crate::shim::state::{ContainerRequest, Stdin};

/// Its name among the pod's containers, which is none that a pod can give: Kubernetes' own of old.
pub(super) const PAUSER: &str = "POD";

impl Worker {
    /// Whether its containers share a PID namespace that is the pod's own.
    pub(in crate::pod) fn shares_processes(&self) -> bool {
        let spec = self.pod.spec.as_ref();
        spec.is_some_and(|spec| spec.share_process_namespace == Some(true) && spec.host_pid != Some(true))
    }

    /// The PID namespace that the pod's containers share.
    pub(in crate::pod) fn shared_pids(&self) -> Option<PathBuf> {
        let pauser = self.pauser.as_ref().filter(|_| self.shares_processes())?;
        Some(PathBuf::from(format!("/proc/{}/ns/pid", pauser.started.init.pid)))
    }

    /// Starts process 1 where it is to be there and is not.
    pub(super) async fn share_processes(&mut self) -> Result<(), Trouble> {
        let is_there = |pauser: &crate::runtime::Container| pauser.started.init.is_alive();
        if !self.shares_processes() || self.pauser.as_ref().is_some_and(is_there) {
            return Ok(());
        }
        self.end_pauser().await;
        let image = self.node.images.find(PAUSE)?;
        let image =
            image.ok_or_else(|| Trouble::Config(format!("the built-in image {PAUSE} is not there")))?;
        let uid = self.uid();
        let own_dir = self.node.config.pod_dir(&uid).join("containers").join(PAUSER);
        disk::make_dir(&own_dir)?;
        let termination_log = own_dir.join("message");
        std::fs::write(&termination_log, b"").on("create", &termination_log)?;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let request = ContainerRequest {
            id: uuid::Uuid::new_v4().simple().to_string(),
            pod_namespace: text(&self.pod.metadata.namespace),
            pod_name: text(&self.pod.metadata.name),
            cgroup: self.node.config.pods_cgroup().join(&uid).join(PAUSER),
            pod_uid: uid,
            container: PAUSER.to_owned(),
            attempt: 0,
            image: PAUSE.to_owned(),
            image_id: image.id.clone(),
            image_rootfs: image.rootfs.clone(),
            terminal: false,
            stdin: Stdin::Closed,
            sub_paths: Vec::new(),
            log: own_dir.join("log"),
            termination_log,
            falls_back_to_log: false,
            shares_pids: false,
            created_at: jiff::Timestamp::now(),
        };
        let cgroup = Cgroup::at(&request.cgroup)?;
        let spec = ContainerSpec {
            args: image.config.entrypoint.clone(),
            // libcontainer looks for it whatever the program's path is.
            env: vec![DEFAULT_PATH.to_owned()],
            cwd: "/".to_owned(),
            hostname: self.hostname(),
            netns: self.sandbox.as_ref().and_then(|sandbox| sandbox.netns_path()),
            rootfs: self.node.runtime.container_dir(&request.id).rootfs(),
            cgroup_path: cgroup.oci_path(),
            security: Security {
                withheld: !self.node.own_capabilities,
                drop: vec!["ALL".to_owned()],
                read_only_root: true,
                no_new_privileges: true,
                ..Security::default()
            },
            ..ContainerSpec::default()
        };
        let started = self.node.runtime.start(request, &oci_config(&spec)).await;
        self.pauser = Some(started.map_err(refused)?);
        Ok(())
    }

    /// Ends process 1, and with it whatever is left in its namespace.
    pub(super) async fn end_pauser(&mut self) {
        if let Some(pauser) = self.pauser.take() {
            pauser.signal(Signal::KILL);
            let destroyed = self.node.runtime.destroy_aside(&pauser.request).await;
            destroyed.unwrap_or_else(log_leftover);
        }
    }
}
